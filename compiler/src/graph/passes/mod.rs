//! Rewrites that keep a graph's meaning.
//!
//! Comes in: a graph that verifies. Goes out: one that does, with the same results. Each pass does one thing; their
//! order stands in [`crate::pipeline`].

pub mod cse;
pub mod dce;
pub mod fold;
pub mod scale_late;
pub mod slice_sums;
pub mod sum_gates;

use super::ir::{Graph, NodeId};

/// Names every node the graph refers to anew.
fn rename_references(graph: &mut Graph, new: impl Fn(NodeId) -> NodeId) {
    for carry in &mut graph.carries {
        carry.input = new(carry.input);
        carry.output = new(carry.output);
    }
    for (_, node) in graph.outputs.iter_mut().chain(&mut graph.saves) {
        *node = new(*node);
    }
}
