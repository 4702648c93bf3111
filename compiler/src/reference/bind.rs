//! Which tensor of the caller is which of the program, and how many sequences, tokens and heads there are.
//!
//! Comes from an [`Instance`] and the caller's tensors, goes to the interpreter, which may rely on every shape.

use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{AxisId, TensorKind};
use std::ops::Range;

use super::error::ReferenceError;
use crate::tensor::{Bundle, Tensor, elements};

/// The most elements of one result.
const MAX_ELEMENTS: usize = 1 << 31;

/// An input or parameter of the caller.
pub(super) struct Bound<'c> {
    pub kind: TensorKind,
    pub shape: &'c [usize],
    pub data: &'c [f64],
    /// Its own head count: the call's, or a divisor of it.
    heads: usize,
}

impl Bound<'_> {
    /// The row of its data, each one token of one head, that head `head` of the call reads.
    pub fn row(&self, call: &Call, batch: usize, token: usize, head: usize) -> usize {
        let own_head = head / (call.heads / self.heads);
        match self.kind {
            TensorKind::Input => (batch * call.tokens + token) * self.heads + own_head,
            TensorKind::Param => own_head,
        }
    }
}

/// A stretch of tokens with a state of its own.
pub(super) struct Sequence {
    pub batch: usize,
    pub tokens: Range<usize>,
}

/// One call: extents and every tensor, by id.
pub(super) struct Call<'c> {
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub n_sequences: usize,
    offsets: Option<&'c [usize]>,
    pub tensors: Vec<Bound<'c>>,
    pub inits: Vec<Option<&'c [f64]>>,
    pub grad_outputs: Vec<Option<&'c [f64]>>,
    pub grad_finals: Vec<Option<&'c [f64]>>,
}

impl Call<'_> {
    /// A sequence by its number, which is also the row of its states.
    pub fn sequence(&self, number: usize) -> Sequence {
        match self.offsets {
            None => Sequence { batch: number, tokens: 0..self.tokens },
            Some(offsets) => Sequence { batch: 0, tokens: offsets[number]..offsets[number + 1] },
        }
    }

    /// The row of an output, each one token of one head.
    pub fn row(&self, batch: usize, token: usize, head: usize) -> usize {
        (batch * self.tokens + token) * self.heads + head
    }

    /// `[B, T, H, axes…]`
    pub fn output_shape(&self, instance: &Instance, axes: &[AxisId]) -> Vec<usize> {
        [vec![self.batch, self.tokens, self.heads], sizes_of(instance, axes)].concat()
    }

    /// `[B, H, axes…]`, or `[N, H, axes…]` for packed sequences.
    pub fn state_shape(&self, instance: &Instance, axes: &[AxisId]) -> Vec<usize> {
        [vec![self.n_sequences, self.heads], sizes_of(instance, axes)].concat()
    }
}

/// Matches the caller's tensors with the program's, or says what does not fit.
pub(super) fn bind<'c>(
    instance: &Instance,
    tensors: &'c Bundle,
    offsets: Option<&'c [usize]>,
    backward: bool,
) -> Result<Call<'c>, ReferenceError> {
    let program = instance.program;
    refuse_unknown_names(instance, tensors)?;

    // Extents first, each from the first tensor that has it; then every tensor against all of them.
    let mut extents: Option<(usize, usize)> = None;
    let mut heads = 0;
    let mut tensors_found = Vec::new();
    for tensor in &program.tensors {
        let leading = match tensor.kind {
            TensorKind::Input => ["B", "T", "H"].as_slice(),
            TensorKind::Param => ["H"].as_slice(),
        };
        let described = || describe(instance, leading, &tensor.axes);
        let Some(found) = tensors.get(&tensor.name) else {
            return Err(ReferenceError::Missing { name: tensor.name.clone(), expected: described() });
        };
        check_elements(&tensor.name, found)?;
        let axes = sizes_of(instance, &tensor.axes);
        if found.shape.len() != leading.len() + axes.len() || found.shape[leading.len()..] != axes {
            return Err(wrong_shape(&tensor.name, found, described()));
        }
        if tensor.kind == TensorKind::Input {
            let (batch, tokens) = *extents.get_or_insert((found.shape[0], found.shape[1]));
            if (found.shape[0], found.shape[1]) != (batch, tokens) {
                let leading = [&format!("B={batch}"), &format!("T={tokens}"), "H"];
                return Err(wrong_shape(&tensor.name, found, describe(instance, &leading, &tensor.axes)));
            }
        }
        heads = heads.max(found.shape[leading.len() - 1]);
        tensors_found.push((tensor, found, leading.len() - 1));
    }
    let Some((batch, tokens)) = extents else {
        return Err(ReferenceError::NoInput { program: program.name.clone() });
    };
    let n_sequences = match offsets {
        None => batch,
        Some(offsets) => count_packed(offsets, batch, tokens)?,
    };
    for state in &program.states {
        if let Some(init) = tensors.get(&format!("init.{}", state.name)) {
            heads = heads.max(init.shape.get(1).copied().unwrap_or(0));
        }
    }

    let mut bound = Vec::new();
    for (tensor, found, head_at) in tensors_found {
        let own = found.shape[head_at];
        if heads > 0 && (own == 0 || heads % own != 0) {
            return Err(ReferenceError::Heads { name: tensor.name.clone(), found: own, heads });
        }
        bound.push(Bound { kind: tensor.kind, shape: &found.shape, data: &found.data, heads: own });
    }
    let mut call = Call {
        batch,
        tokens,
        heads,
        n_sequences,
        offsets,
        tensors: bound,
        inits: Vec::new(),
        grad_outputs: Vec::new(),
        grad_finals: Vec::new(),
    };
    let given = |name: String, shape: Vec<usize>, leading: &[&str], axes: &[AxisId]| match tensors.get(&name) {
        None => Ok(None),
        Some(found) => {
            check_elements(&name, found)?;
            if found.shape != shape {
                let leading: Vec<String> =
                    leading.iter().zip(&shape).map(|(name, extent)| format!("{name}={extent}")).collect();
                let leading: Vec<&str> = leading.iter().map(String::as_str).collect();
                return Err(wrong_shape(&name, found, describe(instance, &leading, axes)));
            }
            Ok(Some(found.data.as_slice()))
        }
    };
    refuse_too_large("sequences and heads", &[n_sequences, heads])?;
    let state_leading = if offsets.is_some() { ["N", "H"] } else { ["B", "H"] };
    let output_leading = ["B", "T", "H"];
    for state in &program.states {
        let shape = call.state_shape(instance, &state.axes);
        refuse_too_large(&format!("elements of `final.{}`", state.name), &shape)?;
        call.inits.push(given(format!("init.{}", state.name), shape, &state_leading, &state.axes)?);
    }
    for output in &program.outputs {
        refuse_too_large(&format!("elements of `out.{}`", output.name), &call.output_shape(instance, &output.axes))?;
    }
    if backward {
        for state in &program.states {
            let shape = call.state_shape(instance, &state.axes);
            call.grad_finals.push(given(format!("grad_final.{}", state.name), shape, &state_leading, &state.axes)?);
        }
        for output in &program.outputs {
            let shape = call.output_shape(instance, &output.axes);
            call.grad_outputs.push(given(format!("grad_out.{}", output.name), shape, &output_leading, &output.axes)?);
        }
    }
    Ok(call)
}

/// The expected results that a fixture carries are no concern of a run; any other stranger is a slip of the caller.
fn refuse_unknown_names(instance: &Instance, tensors: &Bundle) -> Result<(), ReferenceError> {
    let program = instance.program;
    let mut known: Vec<String> = program.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    known.extend(program.states.iter().map(|state| format!("init.{}", state.name)));
    known.extend(program.outputs.iter().map(|output| format!("grad_out.{}", output.name)));
    known.extend(program.states.iter().map(|state| format!("grad_final.{}", state.name)));
    for name in tensors.keys() {
        let is_result = ["out.", "final.", "grad.", "grad_init."].iter().any(|prefix| name.starts_with(prefix));
        if !is_result && !known.contains(name) {
            return Err(ReferenceError::Unknown { name: name.clone(), known });
        }
    }
    Ok(())
}

fn count_packed(offsets: &[usize], batch: usize, tokens: usize) -> Result<usize, ReferenceError> {
    let wrong = |reason: String| Err(ReferenceError::Offsets { reason });
    if batch != 1 {
        return wrong(format!("packed sequences stand in a batch of 1, and this batch is {batch}"));
    }
    if offsets.first() != Some(&0) {
        return wrong("they start with 0".to_string());
    }
    if let Some(pair) = offsets.windows(2).find(|pair| pair[0] > pair[1]) {
        return wrong(format!("they never fall, but {} is followed by {}", pair[0], pair[1]));
    }
    if offsets.last() != Some(&tokens) {
        return wrong(format!("they end with the number of tokens, {tokens}"));
    }
    Ok(offsets.len() - 1)
}

fn sizes_of(instance: &Instance, axes: &[AxisId]) -> Vec<usize> {
    axes.iter().map(|axis| instance.sizes[axis.index()]).collect()
}

/// `[B, T, H, K=32]`
fn describe(instance: &Instance, leading: &[&str], axes: &[AxisId]) -> String {
    let named = axes
        .iter()
        .map(|axis| format!("{}={}", instance.program.axes[axis.index()].name, instance.sizes[axis.index()]));
    let all: Vec<String> = leading.iter().map(|name| name.to_string()).chain(named).collect();
    format!("[{}]", all.join(", "))
}

fn wrong_shape(name: &str, found: &Tensor, expected: String) -> ReferenceError {
    ReferenceError::Shape { name: name.to_string(), found: found.shape.clone(), expected }
}

fn check_elements(name: &str, tensor: &Tensor) -> Result<(), ReferenceError> {
    if elements(&tensor.shape) == Some(tensor.data.len()) {
        return Ok(());
    }
    Err(ReferenceError::Elements { name: name.to_string(), shape: tensor.shape.clone(), found: tensor.data.len() })
}

fn refuse_too_large(what: &str, shape: &[usize]) -> Result<(), ReferenceError> {
    match elements(shape) {
        Some(elements) if elements <= MAX_ELEMENTS => Ok(()),
        Some(_) | None => {
            Err(ReferenceError::TooLarge { what: format!("the number of {what}, {shape:?},"), limit: MAX_ELEMENTS })
        }
    }
}
