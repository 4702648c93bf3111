//! Rewrites that keep a graph's meaning.
//!
//! Comes in: a graph that verifies. Goes out: one that does, with the same results. Each pass does one thing; their
//! order stands in [`crate::pipeline`].

pub mod bare_operands;
pub mod cse;
pub mod dce;
pub mod fold;
pub mod invert_solve;
pub mod join_sums;
pub mod scale_late;
pub mod slice_sums;
pub mod sum_gates;

use super::build::Builder;
use super::ir::{Graph, Node, NodeId};

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

/// Replaces every node that `rewrite` gives another for. The node it is shown has its operands already replaced.
fn rewrite_nodes(graph: &mut Graph, mut rewrite: impl FnMut(&mut Builder, &Node) -> Option<NodeId>) {
    rewrite_nodes_at(graph, |builder, _, node, _| rewrite(builder, node));
}

/// The same, where `rewrite` is also told the node's number, and what all before it have become.
fn rewrite_nodes_at(
    graph: &mut Graph,
    mut rewrite: impl FnMut(&mut Builder, usize, &Node, &[NodeId]) -> Option<NodeId>,
) {
    let nodes = std::mem::take(&mut graph.nodes);
    let mut builder = Builder::with_dims(std::mem::take(&mut graph.dims));
    let mut new: Vec<NodeId> = Vec::new();
    for (n, mut node) in nodes.into_iter().enumerate() {
        node.op.for_each_operand(&mut |x| *x = new[x.index()]);
        builder.rule = node.rule;
        builder.span = node.span;
        let made = rewrite(&mut builder, n, &node, &new);
        new.push(made.unwrap_or_else(|| {
            // Not shared here: two carries may have the same name.
            builder.nodes.push(node);
            NodeId(builder.nodes.len() as u32 - 1)
        }));
    }
    graph.nodes = builder.nodes;
    graph.dims = builder.dims;
    rename_references(graph, |x| new[x.index()]);
}
