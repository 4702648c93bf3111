//! `fold-trivial`: what is known without data is computed, what does nothing is left out.
//!
//! Comes in: a graph. Goes out: the graph with numbers folded, neutral factors and terms gone, and inverse pairs of
//! rearrangements cancelled. Never turns 0·x into 0 unless x is known to be finite: a NaN in the data must stay one.

use super::rename_references;
use crate::graph::ir::*;
use crate::graph::scalar::compare;

/// Folds every node, in bodies too.
pub fn fold_trivial(graph: &mut Graph) {
    let nodes = std::mem::take(&mut graph.nodes);
    let (nodes, new) = fold_nodes(nodes, &graph.dims);
    graph.nodes = nodes;
    rename_references(graph, |x| new[x.index()]);
}

fn fold_nodes(nodes: Vec<Node>, dims: &[Dim]) -> (Vec<Node>, Vec<NodeId>) {
    let mut folder = Folder { dims, nodes: Vec::new() };
    let mut new: Vec<NodeId> = Vec::new();
    for mut node in nodes {
        node.op.for_each_operand(&mut |x| *x = new[x.index()]);
        if let Op::Scan(scan) = &mut node.op {
            let (body, inside) = fold_nodes(std::mem::take(&mut scan.body.nodes), dims);
            scan.body.nodes = body;
            for x in scan.body.inputs.iter_mut().chain(&mut scan.body.outputs) {
                *x = inside[x.index()];
            }
        }
        new.push(folder.fold(node));
    }
    (folder.nodes, new)
}

/// What a node turns out to be.
enum Folded {
    /// This value, repeated along dimensions it lacks.
    Same(NodeId),
    /// This number everywhere.
    Number(f64),
    /// Another operation with the same dimensions.
    Other(Op),
}

struct Folder<'f> {
    dims: &'f [Dim],
    nodes: Vec<Node>,
}

impl Folder<'_> {
    fn op(&self, x: NodeId) -> &Op {
        &self.nodes[x.index()].op
    }

    fn has(&self, x: NodeId, dim: DimId) -> bool {
        self.nodes[x.index()].dims.contains(&dim)
    }

    /// The number a value is everywhere, if it is known.
    fn number(&self, x: NodeId) -> Option<f64> {
        match self.op(x) {
            Op::Const(number) => Some(*number),
            Op::Broadcast(x) => self.number(*x),
            _ => None,
        }
    }

    /// The value that a broadcast repeats; itself otherwise.
    fn repeated(&self, x: NodeId) -> NodeId {
        match self.op(x) {
            Op::Broadcast(inner) => *inner,
            _ => x,
        }
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds a node, or finds what it is the same as.
    fn fold(&mut self, node: Node) -> NodeId {
        match self.known(&node) {
            None => self.push(node),
            Some(Folded::Other(op)) => self.fold(Node { op, ..node }),
            Some(Folded::Number(number)) => {
                let constant = self.push(Node { op: Op::Const(number), dims: Vec::new(), ..node.clone() });
                self.repeat(constant, node)
            }
            Some(Folded::Same(x)) => self.repeat(x, node),
        }
    }

    /// A value with the dimensions of a node it stands in for.
    fn repeat(&mut self, x: NodeId, node: Node) -> NodeId {
        if self.nodes[x.index()].dims == node.dims {
            return x;
        }
        let op = Op::Broadcast(self.repeated(x));
        self.push(Node { op, ..node })
    }

    fn known(&self, node: &Node) -> Option<Folded> {
        use Folded::{Number, Other, Same};
        match &node.op {
            Op::Unary(function, x) => match (function, self.op(*x)) {
                (Unary::Neg, Op::Unary(Unary::Neg, inner)) => Some(Same(*inner)),
                _ => self.number(*x).map(|x| Number(function.apply(x))),
            },
            Op::Binary(function, a, b) => self.binary(*function, *a, *b),
            Op::Select { op, lhs, rhs, then, otherwise } => match (self.number(*lhs), self.number(*rhs)) {
                (Some(lhs), Some(rhs)) => Some(Same(if compare(*op, lhs, rhs) { *then } else { *otherwise })),
                _ if then == otherwise => Some(Same(*then)),
                _ => None,
            },
            Op::Broadcast(x) => match self.op(*x) {
                Op::Broadcast(_) => Some(Same(*x)),
                _ if self.nodes[x.index()].dims == node.dims => Some(Same(*x)),
                _ => None,
            },
            Op::Sum(x, over) => self.sum(*x, over, node),
            Op::Contract(a, b, over) if over.is_empty() => Some(Other(Op::Binary(Binary::Mul, *a, *b))),
            Op::Rename(x, from, to) => match *self.op(*x) {
                Op::Rename(inner, first, middle) if middle == *from && first == *to => Some(Same(inner)),
                Op::Rename(inner, first, middle) if middle == *from => Some(Other(Op::Rename(inner, first, *to))),
                Op::Broadcast(inner) if !self.has(inner, *from) => Some(Same(inner)),
                _ => None,
            },
            Op::Index(x, dim, at) => match self.op(*x) {
                Op::Stack(parts, along) if along == dim => Some(parts[*at].map_or(Number(0.0), Same)),
                Op::Broadcast(inner) if !self.has(*inner, *dim) => Some(Same(*inner)),
                _ => None,
            },
            Op::Stack(parts, dim) => self.unstacked(parts, *dim, node),
            Op::Guard(x, number) => match self.op(*x) {
                Op::Guard(_, inner) if inner == number => Some(Same(*x)),
                _ => (self.number(*x) == Some(*number)).then_some(Same(*x)),
            },
            Op::StopGradient(x) => matches!(self.op(*x), Op::StopGradient(_)).then_some(Same(*x)),
            Op::DiagonalPart(x, row, col) => match *self.op(*x) {
                Op::Diagonal(inner, r, c) if (r, c) == (*row, *col) => Some(Same(inner)),
                _ => None,
            },
            Op::Split(x, dim, outer, inner) => match *self.op(*x) {
                Op::Merge(value, o, i, d) if (o, i, d) == (*outer, *inner, *dim) => Some(Same(value)),
                _ => None,
            },
            Op::Merge(x, outer, inner, dim) => match *self.op(*x) {
                Op::Split(value, d, o, i) if (o, i, d) == (*outer, *inner, *dim) => Some(Same(value)),
                _ => None,
            },
            Op::Input { .. }
            | Op::BodyInput(_)
            | Op::Const(_)
            | Op::MaxOver(..)
            | Op::Contract(..)
            | Op::Diagonal(..)
            | Op::Segment { .. }
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => None,
        }
    }

    fn binary(&self, function: Binary, a: NodeId, b: NodeId) -> Option<Folded> {
        use Folded::{Number, Other, Same};
        let (x, y) = (self.number(a), self.number(b));
        if let (Some(x), Some(y)) = (x, y) {
            return Some(Number(function.apply(x, y)));
        }
        match (function, x, y) {
            (Binary::Mul, Some(1.0), _) | (Binary::Add, Some(0.0), _) => Some(Same(b)),
            (Binary::Mul | Binary::Div | Binary::Pow, _, Some(1.0)) | (Binary::Add | Binary::Sub, _, Some(0.0)) => {
                Some(Same(a))
            }
            // The negation must not lose dimensions that only the number was repeated along.
            (Binary::Mul, Some(-1.0), _) | (Binary::Sub, Some(0.0), _) if self.covers(b, a) => {
                Some(Other(Op::Unary(Unary::Neg, b)))
            }
            (Binary::Mul, _, Some(-1.0)) if self.covers(a, b) => Some(Other(Op::Unary(Unary::Neg, a))),
            (Binary::Mul, Some(0.0), _) if self.is_mask(b) => Some(Number(0.0)),
            (Binary::Mul, _, Some(0.0)) if self.is_mask(a) => Some(Number(0.0)),
            _ => None,
        }
    }

    /// Whether one value has all dimensions of another.
    fn covers(&self, x: NodeId, y: NodeId) -> bool {
        self.nodes[y.index()].dims.iter().all(|&dim| self.has(x, dim))
    }

    /// Whether a value is nothing but zeros and ones.
    fn is_mask(&self, x: NodeId) -> bool {
        matches!(self.op(x), Op::Segment { gates, .. } if gates.events.is_empty())
    }

    fn sum(&self, x: NodeId, over: &[DimId], node: &Node) -> Option<Folded> {
        match self.op(x) {
            _ if over.is_empty() => Some(Folded::Same(x)),
            Op::Sum(inner, first) => Some(Folded::Other(Op::Sum(*inner, [first.as_slice(), over].concat()))),
            // The same number as often as the dimensions have positions.
            Op::Broadcast(inner) if over.iter().all(|&dim| !self.has(*inner, dim)) => {
                let times: usize = over.iter().map(|dim| self.dims[dim.index()].size).product();
                match self.number(*inner) {
                    Some(number) => Some(Folded::Number(number * times as f64)),
                    None if times == 1 && self.nodes[inner.index()].dims == node.dims => Some(Folded::Same(*inner)),
                    None => None,
                }
            }
            _ => None,
        }
    }

    /// The value whose positions, in order, a stack puts side by side again.
    fn unstacked(&self, parts: &[Option<NodeId>], dim: DimId, node: &Node) -> Option<Folded> {
        let whole = |(at, part): (usize, &Option<NodeId>)| match *self.op((*part)?) {
            Op::Index(x, along, position) if along == dim && position == at => Some(x),
            _ => None,
        };
        let mut wholes = parts.iter().enumerate().map(whole);
        let first = wholes.next()??;
        let same = wholes.all(|x| x == Some(first)) && self.nodes[first.index()].dims == node.dims;
        same.then_some(Folded::Same(first))
    }
}
