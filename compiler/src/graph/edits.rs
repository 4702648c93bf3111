//! Which operands of a product need more digits than a narrow type has.
//!
//! Comes in: a graph and a product's operands. Goes out: whether they have to keep their digits. Edits of a chunk solve a
//! triangular system. Where keys are alike, its inverse and the edits are much larger than what they come to together in a
//! state or an output, and so is what rounding them leaves there; what an output multiplies them by counts as much as they
//! do. That takes three products for one, so it is done only where it is asked for ([`crate::schedule::Schedule::operands`]),
//! and never in a backward pass, which has no room for it; products with the inverse keep their digits where it is computed.
//!
//! A kernel tells what an earlier one handed on by its name: [`INVERSE`], [`EDITS`].

use super::ir::{Binary, Graph, InputKind, NodeId, Op, Unary};
use std::collections::BTreeSet;

/// What the name of a handed inverse begins with.
pub const INVERSE: &str = "handed.inverse";
/// What the name of handed edits begins with.
pub const EDITS: &str = "handed.edits";

/// Whether the operands of a product have to keep their digits; with `edits`, those of edits too.
pub fn is_exact(graph: &Graph, a: NodeId, b: NodeId, edits: bool) -> bool {
    let inverse = [a, b].into_iter().any(|x| of_inverse(graph, x, edits));
    inverse || edits && (of_edits(graph, a) || of_edits(graph, b))
}

/// Whether a value is of the inverse of a triangular system, computed here or, if that counts, handed on.
pub fn of_inverse(graph: &Graph, x: NodeId, handed: bool) -> bool {
    match &graph.node(x).op {
        Op::Inverse(_) => true,
        Op::Input { name, kind: InputKind::Saved, .. } => handed && name.starts_with(INVERSE),
        op => moved(op).is_some_and(|x| of_inverse(graph, x, handed)),
    }
}

/// Whether a value is what a triangular system was solved for: also scaled, or the sum of several.
pub fn of_edits(graph: &Graph, x: NodeId) -> bool {
    let (mut stack, mut seen) = (vec![x], BTreeSet::from([x]));
    while let Some(x) = stack.pop() {
        let next = match &graph.node(x).op {
            Op::Contract(a, b, _) if of_inverse(graph, *a, true) || of_inverse(graph, *b, true) => return true,
            Op::Input { name, kind: InputKind::Saved, .. } if name.starts_with(EDITS) => return true,
            Op::Binary(Binary::Add | Binary::Sub | Binary::Mul, a, b) => vec![*a, *b],
            op => moved(op).into_iter().collect(),
        };
        stack.extend(next.into_iter().filter(|x| seen.insert(*x)));
    }
    false
}

/// The operand whose elements a node's are, in other places, negated, or zero.
pub fn moved(op: &Op) -> Option<NodeId> {
    match op {
        Op::Rename(x, ..)
        | Op::Index(x, ..)
        | Op::Split(x, ..)
        | Op::Merge(x, ..)
        | Op::DiagonalPart(x, ..)
        | Op::Diagonal(x, ..)
        | Op::Broadcast(x)
        | Op::StopGradient(x)
        | Op::Unary(Unary::Neg, x) => Some(*x),
        Op::Guard(x, number) => (*number == 0.0).then_some(*x),
        Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Const(_)
        | Op::Unary(..)
        | Op::Binary(..)
        | Op::Select { .. }
        | Op::Sum(..)
        | Op::MaxOver(..)
        | Op::Contract(..)
        | Op::Stack(..)
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
