//! Which tensor of a file is which of a recurrence, and what sizes follow. In: names and shapes, and sizes and
//! constants from the command line; out: the sizes of every axis and of batch, time and head, or every complaint at
//! once. It never looks at data.

use std::collections::BTreeMap;

use chunkwise_compiler::tensor::elements;
use chunkwise_dsl::program::{AxisId, Program, TensorKind};
use chunkwise_dsl::suggest::nearest;

/// The most elements that one result may have.
const MAX_ELEMENTS: usize = 1 << 31;

/// Results that a fixture or an earlier run left in a file; they are no input.
const IGNORED: [&str; 4] = ["out.", "final.", "grad.", "grad_init."];

/// What a name means to a recurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The name in the file.
    pub name: String,
    /// Which leading dimensions it has.
    pub leading: Leading,
    /// Its axes, in order of layout.
    pub axes: Vec<AxisId>,
    /// Whether the recurrence cannot run without it.
    pub required: bool,
    /// Whether it only matters to a backward pass.
    pub cotangent: bool,
}

/// The dimensions before a tensor's axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leading {
    /// `[B, T, H, …]`
    Token,
    /// `[H, …]`
    Head,
    /// `[B, H, …]`
    Sequence,
}

impl Leading {
    /// The letters of the dimensions.
    pub fn letters(self) -> &'static [&'static str] {
        match self {
            Leading::Token => &["B", "T", "H"],
            Leading::Head => &["H"],
            Leading::Sequence => &["B", "H"],
        }
    }
}

/// Everything that follows from the shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Sequences.
    pub batch: usize,
    /// Tokens a sequence.
    pub tokens: usize,
    /// Heads; an input may have fewer, in groups.
    pub heads: usize,
    /// Size of each axis, by name.
    pub sizes: BTreeMap<String, usize>,
}

/// Every tensor that a recurrence can be given.
pub fn slots(program: &Program) -> Vec<Slot> {
    let tensors = program.tensors.iter().map(|tensor| Slot {
        name: tensor.name.clone(),
        leading: match tensor.kind {
            TensorKind::Input => Leading::Token,
            TensorKind::Param => Leading::Head,
        },
        axes: tensor.axes.clone(),
        required: true,
        cotangent: false,
    });
    let optional = |prefix: &str, name: &str, leading, axes: &[AxisId], cotangent| Slot {
        name: format!("{prefix}{name}"),
        leading,
        axes: axes.to_vec(),
        required: false,
        cotangent,
    };
    let inits = program.states.iter().map(|it| optional("init.", &it.name, Leading::Sequence, &it.axes, false));
    let outputs = program.outputs.iter().map(|it| optional("grad_out.", &it.name, Leading::Token, &it.axes, true));
    let finals = program.states.iter().map(|it| optional("grad_final.", &it.name, Leading::Sequence, &it.axes, true));
    tensors.chain(inits).chain(outputs).chain(finals).collect()
}

/// Finds the sizes, or everything that does not fit.
pub fn bind(
    program: &Program,
    shapes: &BTreeMap<String, Vec<usize>>,
    given_sizes: &BTreeMap<String, usize>,
) -> Result<Extents, Vec<String>> {
    let slots = slots(program);
    let mut complaints = unknown_names(&slots, shapes);
    let mut found: Vec<(&Slot, &Vec<usize>)> = Vec::new();
    for slot in &slots {
        match shapes.get(&slot.name) {
            None if slot.required => complaints.push(missing(program, slot)),
            None => {}
            Some(shape) if shape.len() != slot.leading.letters().len() + slot.axes.len() => {
                complaints.push(wrong_rank(program, slot, shape));
            }
            Some(shape) => found.push((slot, shape)),
        }
    }
    let mut sizes = Sizes::default();
    for (axis, &size) in given_sizes {
        sizes.settle(axis, size, "--size", &mut complaints);
    }
    for (slot, shape) in &found {
        for (letter, &extent) in slot.leading.letters().iter().zip(*shape) {
            // Heads may differ: an input with fewer is shared by groups of heads. They are settled below.
            if *letter != "H" {
                sizes.settle(letter, extent, &slot.name, &mut complaints);
            }
        }
        for (axis, &extent) in slot.axes.iter().zip(&shape[slot.leading.letters().len()..]) {
            sizes.settle(&program.axes[axis.index()].name, extent, &slot.name, &mut complaints);
        }
    }
    let heads = settle_heads(&found, &mut complaints);
    for axis in &program.axes {
        if complaints.is_empty() && !sizes.known.contains_key(&axis.name) {
            complaints
                .push(format!("no tensor has axis `{0}`, so its size has to be given: --size {0}=NUMBER", axis.name));
        }
    }
    let size = |letter: &str| sizes.known.get(letter).map_or(0, |(size, _)| *size);
    let extents = Extents {
        batch: size("B"),
        tokens: size("T"),
        heads,
        sizes: program
            .axes
            .iter()
            .filter_map(|axis| Some((axis.name.clone(), sizes.known.get(&axis.name)?.0)))
            .chain(given_sizes.clone())
            .collect(),
    };
    if complaints.is_empty() {
        complaints.extend(too_large(program, &extents));
    }
    if complaints.is_empty() { Ok(extents) } else { Err(complaints) }
}

/// Sizes found so far, and who gave each first.
#[derive(Default)]
struct Sizes {
    known: BTreeMap<String, (usize, String)>,
}

impl Sizes {
    fn settle(&mut self, name: &str, size: usize, giver: &str, complaints: &mut Vec<String>) {
        match self.known.get(name) {
            None => {
                self.known.insert(name.to_owned(), (size, giver.to_owned()));
            }
            Some((known, _)) if *known == size => {}
            Some((known, first)) => complaints.push(format!(
                "`{first}` says {name}={known}, but `{giver}` says {name}={size}{}",
                match name {
                    "B" => " (B is the batch)",
                    "T" => " (T is the number of tokens)",
                    _ => "",
                }
            )),
        }
    }
}

fn settle_heads(found: &[(&Slot, &Vec<usize>)], complaints: &mut Vec<String>) -> usize {
    let own = |slot: &Slot, shape: &[usize]| shape[slot.leading.letters().len() - 1];
    let free = || found.iter().filter(|(slot, _)| !slot.cotangent);
    let Some((most, shape)) = free().max_by_key(|(slot, shape)| own(slot, shape)) else { return 0 };
    let heads = own(most, shape);
    for (slot, shape) in found {
        let count = own(slot, shape);
        let shared = slot.leading != Leading::Sequence && !slot.cotangent;
        if count != heads && !shared {
            complaints.push(format!("`{}` has H={count} heads, but `{}` has H={heads}", slot.name, most.name));
        } else if count == 0 && heads > 0 || count > 0 && heads % count != 0 {
            complaints.push(format!(
                "`{}` has H={count} heads and `{}` has H={heads}; fewer heads are shared in groups, so the smaller \
                 number has to divide the larger",
                slot.name, most.name
            ));
        }
    }
    heads
}

fn unknown_names(slots: &[Slot], shapes: &BTreeMap<String, Vec<usize>>) -> Vec<String> {
    let strangers = shapes.keys().filter(|name| {
        !slots.iter().any(|slot| slot.name == **name) && !IGNORED.iter().any(|prefix| name.starts_with(prefix))
    });
    strangers
        .map(|name| {
            let known = || slots.iter().map(|slot| slot.name.as_str());
            let hint = match nearest(name, known()) {
                Some(similar) => format!("did you mean `{similar}`?"),
                None => format!("it takes {}", known().collect::<Vec<_>>().join(", ")),
            };
            format!("the recurrence has no tensor `{}`; {hint}", crate::tensors::shown_name(name))
        })
        .collect()
}

fn missing(program: &Program, slot: &Slot) -> String {
    let what = match slot.leading {
        Leading::Token => "input",
        Leading::Head => "parameter",
        Leading::Sequence => "state",
    };
    format!("{what} `{}` is missing; it has the shape {}", slot.name, letters(program, slot))
}

fn wrong_rank(program: &Program, slot: &Slot, shape: &[usize]) -> String {
    let mut words = vec![];
    for letter in slot.leading.letters() {
        words.push(match *letter {
            "B" => "batch",
            "T" => "tokens",
            _ => "heads",
        });
    }
    words.extend(slot.axes.iter().map(|axis| program.axes[axis.index()].name.as_str()));
    format!(
        "`{}` has shape {shape:?}, which is {}; {} were expected, {}: {}",
        slot.name,
        crate::render::count(shape.len(), "dimension"),
        words.len(),
        letters(program, slot),
        words.join(", ")
    )
}

/// `[B, T, H, K]`
fn letters(program: &Program, slot: &Slot) -> String {
    let axes = slot.axes.iter().map(|axis| program.axes[axis.index()].name.as_str());
    format!("[{}]", slot.leading.letters().iter().copied().chain(axes).collect::<Vec<_>>().join(", "))
}

/// Results have shapes of their own, which may be too large though every tensor given is small, or empty.
fn too_large(program: &Program, extents: &Extents) -> Vec<String> {
    let size = |axis: &AxisId| extents.sizes.get(&program.axes[axis.index()].name).copied().unwrap_or(0);
    let outputs = program.outputs.iter().map(|it| ("out.", &it.name, Leading::Token, &it.axes));
    let finals = program.states.iter().map(|it| ("final.", &it.name, Leading::Sequence, &it.axes));
    let mut complaints = Vec::new();
    for (prefix, name, leading, axes) in outputs.chain(finals) {
        let leading: Vec<usize> = match leading {
            Leading::Token => vec![extents.batch, extents.tokens, extents.heads],
            Leading::Head => vec![extents.heads],
            Leading::Sequence => vec![extents.batch, extents.heads],
        };
        let shape: Vec<usize> = leading.into_iter().chain(axes.iter().map(size)).collect();
        if elements(&shape).is_none_or(|elements| elements > MAX_ELEMENTS) {
            complaints.push(format!("`{prefix}{name}` would have shape {shape:?}, more than 2^31 elements"));
        }
    }
    complaints
}
