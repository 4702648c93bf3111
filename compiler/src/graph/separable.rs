//! Whether a graph may be run on blocks of an axis, each by itself.
//!
//! Comes in: a graph that verifies, and a dimension. Goes out: yes or no. Never changes a graph, and never looks at what
//! a dimension means.
//!
//! If yes, the graph may be run on any block of positions of the dimension, with every tensor that has the dimension cut
//! to those positions, and gives those positions of every result that has it. A result that lacks the dimension depends
//! on nothing that has it, so every block computes the same value: each may store it, since it is the same, or only one.
//! Where a result is added to what is there (the gradient of an input that heads share), only one may.

use super::ir::{DimId, Graph, Node, Op};

/// Whether no position of the dimension knows of another: nothing is summed, maximised, solved or scanned along it,
/// takes one position of it, or gives it another name.
pub fn separable_along(graph: &Graph, dim: DimId) -> bool {
    // Which rows are void depends on the step as a whole.
    graph.time != Some(dim) && positions_apart(&graph.nodes, dim)
}

fn positions_apart(nodes: &[Node], dim: DimId) -> bool {
    nodes.iter().all(|node| {
        let met = || node.op.operands().iter().any(|x| nodes[x.index()].dims.contains(&dim));
        // What had the dimension and lost it was reduced along it.
        let kept = || node.dims.contains(&dim) || !met();
        match &node.op {
            // A layout only says where the dimension lies in memory.
            Op::Input { .. } => true,
            // A scan has no dimensions itself; its results have.
            Op::Scan(scan) => scan.row != dim && positions_apart(&scan.body.nodes, dim),
            // The form sums over its axes, unless the result has them.
            Op::Gated { row, col, .. } => *row != dim && *col != dim && kept(),
            Op::BodyInput(_)
            | Op::Const(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Sum(..)
            | Op::MaxOver(..)
            | Op::Contract(..)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::Guard(..)
            | Op::Diagonal(..)
            | Op::DiagonalPart(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::StopGradient(_)
            | Op::Segment { .. }
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::ScanResult(..) => !node.op.named_dims().contains(&dim) && kept(),
        }
    })
}
