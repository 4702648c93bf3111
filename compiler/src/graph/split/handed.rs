//! Values handed from one stage to a later one: what they look like outside, which values may be, and in which type.
//!
//! Comes in: nodes of a graph. Goes out: what a launcher has to know of each value, and what only products read. Never
//! decides what is handed on: that is the cut's part.

use super::price::on_tensor_cores;
use crate::graph::edits::{is_exact, moved};
use crate::graph::ir::{DimId, Graph, Node, NodeId, Op};
use chunkwise_abi::{Access, ArgSignature, DType, Role};

/// A value that one stage writes and a later one reads, once a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Name, as in the stages' graphs.
    pub name: String,
    /// Static dimensions of a step's value, rows among them.
    pub inner: Vec<usize>,
    /// Their names.
    pub axes: Vec<String>,
    /// Tokens a step.
    pub tokens: usize,
    /// Type of an element in memory.
    pub dtype: DType,
    /// It is also a result of the graph as a whole: the caller has room for it.
    pub result: bool,
}

impl Handed {
    /// A value over dimensions of a graph, once every so many tokens, in float32.
    pub fn new(graph: &Graph, name: &str, dims: &[DimId], tokens: usize) -> Handed {
        let axes = dims.iter().map(|&dim| graph.dim(dim).name.clone()).collect();
        Handed { name: name.to_owned(), inner: graph.sizes(dims), axes, tokens, dtype: DType::F32, result: false }
    }

    /// As an argument of a kernel.
    pub fn argument(&self, access: Access) -> ArgSignature {
        ArgSignature {
            name: self.name.clone(),
            dtype: self.dtype,
            role: Role::Chunk(self.tokens),
            inner: self.inner.clone(),
            axes: self.axes.clone(),
            access,
        }
    }

    /// Bytes of memory for each token of a head.
    pub fn bytes_per_token(&self) -> f64 {
        (self.inner.iter().product::<usize>() * self.dtype.bytes()) as f64 / self.tokens as f64
    }
}

/// By node: whether, on the way to these results, nothing is done with it but to multiply it on the tensor cores, also
/// when it was moved about, negated or had its void rows set to zero before: rounding comes out the same before and after
/// that.
pub fn only_multiplied(graph: &Graph, results: &[NodeId]) -> Vec<bool> {
    let mut only = vec![true; graph.nodes.len()];
    let mut needed = vec![false; graph.nodes.len()];
    for result in results {
        (only[result.index()], needed[result.index()]) = (false, true);
    }
    // Users come later.
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        if !needed[at] {
            continue;
        }
        node.op.operands().iter().for_each(|x| needed[x.index()] = true);
        let kept = match moved(&node.op) {
            Some(_) => only[at],
            None => rounds_operands(graph, node),
        };
        if !kept {
            node.op.operands().iter().for_each(|x| only[x.index()] = false);
        }
    }
    only
}

/// Whether a node is a product that the tensor cores compute of operands rounded to their type. A product with ones is
/// a sum, and keeps its digits.
fn rounds_operands(graph: &Graph, node: &Node) -> bool {
    let Op::Contract(a, b, over) = &node.op else { return false };
    let is_mask = |x: NodeId| matches!(&graph.node(x).op, Op::Segment { gates, .. } if gates.events.is_empty());
    let [left, right] = [a, b].map(|x| &graph.node(*x).dims);
    let ends = node.dims.last().is_some_and(|last| left.contains(last) != right.contains(last));
    let exact = is_mask(*a) || is_mask(*b) || is_exact(graph, *a, *b, false);
    ends && !exact && on_tensor_cores(graph, left, right, over)
}

/// Whether a value is worth keeping as such: not if it is another name for all of its operand, known without data,
/// at hand anyway, or no value.
pub fn may_be_handed(op: &Op) -> bool {
    match op {
        Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Const(_)
        | Op::Broadcast(_)
        | Op::Rename(..)
        | Op::Split(..)
        | Op::StopGradient(_)
        | Op::Scan(_) => false,
        Op::Unary(..)
        | Op::Binary(..)
        | Op::Select { .. }
        | Op::Sum(..)
        | Op::MaxOver(..)
        | Op::Contract(..)
        | Op::Index(..)
        | Op::Stack(..)
        | Op::Guard(..)
        | Op::Diagonal(..)
        | Op::DiagonalPart(..)
        | Op::Merge(..)
        | Op::Segment { .. }
        | Op::SegmentGrad { .. }
        | Op::Boundary { .. }
        | Op::BoundaryGrad { .. }
        | Op::Gated { .. }
        | Op::Solve(_)
        | Op::Inverse(_)
        | Op::ScanResult(..) => true,
    }
}

/// What a node is called when it is handed on.
pub fn word(op: &Op) -> &'static str {
    match op {
        Op::Contract(..) => "product",
        Op::Gated { .. } => "gated",
        Op::Solve(_) => "solve",
        Op::Inverse(_) => "inverse",
        Op::Scan(_) | Op::ScanResult(..) => "scan",
        Op::Segment { .. } | Op::Boundary { .. } => "decay",
        Op::SegmentGrad { .. } | Op::BoundaryGrad { .. } => "decay_grad",
        Op::Sum(..) | Op::MaxOver(..) => "sum",
        Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Const(_)
        | Op::Unary(..)
        | Op::Binary(..)
        | Op::Select { .. }
        | Op::Broadcast(_)
        | Op::Rename(..)
        | Op::Index(..)
        | Op::Stack(..)
        | Op::Guard(..)
        | Op::Diagonal(..)
        | Op::DiagonalPart(..)
        | Op::Split(..)
        | Op::Merge(..)
        | Op::StopGradient(_) => "value",
    }
}
