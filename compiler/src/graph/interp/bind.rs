//! From named tensors to the elements of a node.
//!
//! Comes in: the tensors a caller gave. Goes out: how many sequences, tokens and heads there are, checked tensors, and
//! where the elements of a value stand in them. Never copies a tensor.

use std::fmt;

use crate::graph::ir::{DimId, Graph, InputKind, Op};
use crate::tensor::{Bundle, Tensor};

/// Why a graph did not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterpError {
    /// A tensor the graph reads was not given.
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than the graph and the other tensors ask for.
    Shape {
        /// Its name.
        name: String,
        /// What it has.
        found: Vec<usize>,
        /// What it should have; `H` may be any divisor of the head count.
        expected: String,
    },
    /// No tensor given says how many tokens there are.
    NoTokens,
    /// Offsets of packed sequences that do not ascend from 0 to the number of tokens.
    Offsets(String),
    /// The graph is not one the verifier lets through.
    Graph(String),
}

impl fmt::Display for InterpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InterpError::Missing { name } => write!(f, "tensor `{name}` is missing"),
            InterpError::Shape { name, found, expected } => {
                write!(f, "tensor `{name}` has shape {found:?}, expected {expected}")
            }
            InterpError::NoTokens => {
                write!(f, "no tensor given says how many tokens there are; run over an explicit extent")
            }
            InterpError::Offsets(reason) => write!(f, "offsets of packed sequences: {reason}"),
            InterpError::Graph(reason) => write!(f, "not a graph one can run: {reason}"),
        }
    }
}

impl std::error::Error for InterpError {}

/// What a run goes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// B of the token tensors.
    pub batch: usize,
    /// T of the token tensors.
    pub length: usize,
    /// H: heads of the results.
    pub heads: usize,
    /// With B = 1: sequence n takes the tokens from entry n up to entry n + 1.
    pub offsets: Option<Vec<usize>>,
}

impl Extent {
    /// What the tensors that these graphs read say. The head count is the largest of any of them, or `heads`.
    pub fn of(
        graphs: &[&Graph],
        bundle: &Bundle,
        heads: Option<usize>,
        offsets: Option<&[usize]>,
    ) -> Result<Extent, InterpError> {
        let mut tokens = None;
        let mut most = heads.unwrap_or(0);
        for graph in graphs {
            for (name, kind, rank) in read_by(graph) {
                let Some(tensor) = bundle.get(name) else { continue };
                let leading = match kind {
                    InputKind::Token | InputKind::Cotangent => 3,
                    InputKind::Head => 1,
                    InputKind::Carry => 2,
                    InputKind::Saved => continue,
                };
                if tensor.shape.len() != leading + rank {
                    let expected = format!("{} dimensions", leading + rank);
                    return Err(InterpError::Shape { name: name.into(), found: tensor.shape.clone(), expected });
                }
                if leading == 3 {
                    tokens.get_or_insert((tensor.shape[0], tensor.shape[1]));
                }
                most = most.max(tensor.shape[leading - 1]);
            }
        }
        let (batch, length) = tokens.ok_or(InterpError::NoTokens)?;
        let extent = Extent { batch, length, heads: most, offsets: offsets.map(<[usize]>::to_vec) };
        extent.check_offsets()?;
        Ok(extent)
    }

    fn check_offsets(&self) -> Result<(), InterpError> {
        let Some(offsets) = &self.offsets else { return Ok(()) };
        let wrong = |reason: &str| Err(InterpError::Offsets(reason.into()));
        if self.batch != 1 {
            return wrong("packed sequences stand in tensors with B = 1");
        }
        if offsets.first() != Some(&0) || offsets.last() != Some(&self.length) {
            return wrong("they begin with 0 and end with the number of tokens");
        }
        if offsets.windows(2).any(|pair| pair[0] > pair[1]) {
            return wrong("they ascend");
        }
        Ok(())
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.offsets.as_ref().map_or(self.batch, |offsets| offsets.len() - 1)
    }

    /// The index into B of a sequence, its first token there, and its length.
    pub fn sequence(&self, number: usize) -> (usize, usize, usize) {
        match &self.offsets {
            None => (number, 0, self.length),
            Some(offsets) => (0, offsets[number], offsets[number + 1] - offsets[number]),
        }
    }

    /// Steps of the longest sequence.
    pub fn steps(&self, tokens: usize) -> usize {
        let longest = (0..self.sequences()).map(|sequence| self.sequence(sequence).2).max().unwrap_or(0);
        longest.div_ceil(tokens)
    }

    /// A tensor `[B, T, H, …]`, whose heads may be shared.
    pub fn token_tensor<'b>(&self, bundle: &'b Bundle, name: &str, inner: &[usize]) -> Result<&'b Tensor, InterpError> {
        self.grouped_tensor(bundle, name, &[self.batch, self.length], inner)
    }

    /// A tensor `[H, …]`, whose heads may be shared.
    pub fn head_tensor<'b>(&self, bundle: &'b Bundle, name: &str, inner: &[usize]) -> Result<&'b Tensor, InterpError> {
        self.grouped_tensor(bundle, name, &[], inner)
    }

    fn grouped_tensor<'b>(
        &self,
        bundle: &'b Bundle,
        name: &str,
        leading: &[usize],
        inner: &[usize],
    ) -> Result<&'b Tensor, InterpError> {
        let tensor = bundle.get(name).ok_or_else(|| InterpError::Missing { name: name.into() })?;
        let heads = tensor.shape.get(leading.len()).copied().unwrap_or(0);
        let fits = tensor.shape.len() == leading.len() + 1 + inner.len()
            && tensor.shape.starts_with(leading)
            && tensor.shape.ends_with(inner)
            && (heads == self.heads || (heads > 0 && self.heads.is_multiple_of(heads)));
        if fits {
            return Ok(tensor);
        }
        let expected = format!("{leading:?}, a divisor of {} heads, {inner:?}", self.heads);
        Err(InterpError::Shape { name: name.into(), found: tensor.shape.clone(), expected })
    }

    /// Heads of a result: those of `X` for `grad.X`, where the head count stands at `position`, else all.
    pub fn heads_of_result(&self, bundle: &Bundle, name: &str, position: usize) -> usize {
        let shared = name.strip_prefix("grad.").and_then(|input| bundle.get(input));
        shared.and_then(|tensor| tensor.shape.get(position).copied()).unwrap_or(self.heads)
    }
}

/// A tensor whose leading dimensions are these and no others.
pub fn exact_tensor<'b>(
    bundle: &'b Bundle,
    name: &str,
    leading: &[usize],
    inner: &[usize],
) -> Result<&'b Tensor, InterpError> {
    let tensor = bundle.get(name).ok_or_else(|| InterpError::Missing { name: name.into() })?;
    let expected = [leading, inner].concat();
    if tensor.shape == expected {
        return Ok(tensor);
    }
    let expected = format!("{expected:?}");
    Err(InterpError::Shape { name: name.into(), found: tensor.shape.clone(), expected })
}

/// Tensors a graph reads: name, kind, and how many dimensions stand after the leading ones.
fn read_by(graph: &Graph) -> impl Iterator<Item = (&str, InputKind, usize)> {
    let inputs = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::Input { name, kind, layout } if *kind != InputKind::Carry => Some((name.as_str(), *kind, layout.len())),
        _ => None,
    });
    let carries = graph.carries.iter();
    let first = carries.filter_map(|carry| Some((carry.init.as_deref()?, InputKind::Carry, carry.layout.len())));
    inputs.chain(first)
}

/// Where the elements of a value stand in a tensor: by element, its row and its place among the inner dimensions.
pub struct Placed {
    rows: Vec<usize>,
    places: Vec<usize>,
    /// Elements of the inner dimensions.
    pub inner: usize,
}

impl Placed {
    /// A value over `dims` whose inner dimensions lie in the order of `layout`; the row dimension is not an inner one
    /// unless it stands in `layout`.
    pub fn new(graph: &Graph, dims: &[DimId], layout: &[DimId]) -> Placed {
        let strides = super::plan::strides(graph, layout);
        let stride = |dim: DimId| layout.iter().position(|&d| d == dim).map_or(0, |at| strides[at]);
        let places = super::plan::table(graph, dims, |position| {
            position.iter().zip(dims).map(|(&p, &dim)| p * stride(dim)).sum()
        });
        let row = dims.iter().position(|&dim| Some(dim) == graph.time);
        let rows = super::plan::table(graph, dims, |position| row.map_or(0, |at| position[at]));
        Placed { rows, places, inner: graph.sizes(layout).iter().product() }
    }

    /// Reads a value without rows of its own.
    pub fn load(&self, value: &mut [f64], data: &[f64]) {
        for (element, &place) in value.iter_mut().zip(&self.places) {
            *element = data[place];
        }
    }

    /// Adds a value without rows of its own.
    pub fn add(&self, value: &[f64], data: &mut [f64]) {
        for (element, &place) in value.iter().zip(&self.places) {
            data[place] += element;
        }
    }

    /// Reads the rows of a value: row r from token `row(r)` of the step, zero where there is none.
    pub fn load_rows(&self, value: &mut [f64], data: &[f64], heads: usize, row: impl Fn(usize) -> Option<usize>) {
        for (i, element) in value.iter_mut().enumerate() {
            *element = row(self.rows[i]).map_or(0.0, |token| data[token * heads * self.inner + self.places[i]]);
        }
    }

    /// Adds the real rows of a value.
    pub fn add_rows(&self, value: &[f64], data: &mut [f64], heads: usize, count: usize) {
        for (i, element) in value.iter().enumerate() {
            if self.rows[i] < count {
                data[self.rows[i] * heads * self.inner + self.places[i]] += element;
            }
        }
    }
}
