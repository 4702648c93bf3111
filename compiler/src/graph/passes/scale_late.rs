//! `scale-late`: factors that a contraction does not sum over are multiplied by after it.
//!
//! Comes in: a graph. Goes out: the graph with Σ_k (x·s)\[…k…\]·y\[…k…\] as s · Σ_k x\[…k…\]·y\[…k…\], where s has fewer
//! dimensions than x and none of those summed over. The product x·s then needs no memory of its own, and the factor goes
//! into whatever reads the contraction. Nothing is moved unless all readers of the product are such contractions, and
//! their results together are not much larger than it. It never reorders a sum.

use super::dce::drop_unused;
use super::rename_references;
use crate::graph::ir::{Binary, Dim, DimId, Graph, Node, NodeId, Op};

/// Moves factors until none can be moved.
pub fn scale_late(graph: &mut Graph) {
    while let Some(found) = find(graph) {
        apply(graph, &found);
        drop_unused(graph);
    }
}

/// A product that is not needed.
struct Found {
    product: NodeId,
    /// What stays in the contractions.
    kept: NodeId,
    /// What goes after them.
    factor: NodeId,
}

fn find(graph: &Graph) -> Option<Found> {
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); graph.nodes.len()];
    let mut elsewhere = vec![false; graph.nodes.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        for x in node.op.operands() {
            readers[x.index()].push(NodeId(u32::try_from(at).expect("ids have 32 bits")));
        }
    }
    let results = graph.outputs.iter().chain(&graph.saves).map(|(_, node)| *node);
    for x in results.chain(graph.carries.iter().map(|carry| carry.output)) {
        elsewhere[x.index()] = true;
    }
    // The last first: once it is gone, what it was made of may go too.
    (0..graph.nodes.len()).rev().find_map(|at| {
        let product = NodeId(u32::try_from(at).expect("ids have 32 bits"));
        let node = &graph.nodes[at];
        let Op::Binary(Binary::Mul, a, b) = node.op else { return None };
        let readers = &readers[at];
        if elsewhere[at] || readers.is_empty() {
            return None;
        }
        let (kept, factor) = [(a, b), (b, a)].into_iter().find(|&(kept, factor)| {
            let factor = &graph.nodes[factor.index()].dims;
            graph.nodes[kept.index()].dims == node.dims
                && factor.len() < node.dims.len()
                && readers.iter().all(|&reader| passes(&graph.nodes[reader.index()], product, factor))
        })?;
        let made: usize = readers.iter().map(|reader| size(&graph.dims, &graph.nodes[reader.index()].dims)).sum();
        (made <= 2 * size(&graph.dims, &node.dims)).then_some(Found { product, kept, factor })
    })
}

/// Whether a reader of a product is a contraction of it with something else, over none of these dimensions.
fn passes(reader: &Node, product: NodeId, factor: &[DimId]) -> bool {
    let Op::Contract(a, b, over) = &reader.op else { return false };
    !over.is_empty() && (*a == product) != (*b == product) && !factor.iter().any(|dim| over.contains(dim))
}

fn size(all: &[Dim], dims: &[DimId]) -> usize {
    dims.iter().map(|dim| all[dim.index()].size).product()
}

fn apply(graph: &mut Graph, found: &Found) {
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len() + 2);
    let mut new: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    let push = |nodes: &mut Vec<Node>, node: Node| {
        nodes.push(node);
        NodeId(u32::try_from(nodes.len() - 1).expect("ids have 32 bits"))
    };
    for mut node in std::mem::take(&mut graph.nodes) {
        let reads = node.op.operands().contains(&found.product);
        node.op.for_each_operand(&mut |x| *x = if *x == found.product { found.kept } else { *x });
        node.op.for_each_operand(&mut |x| *x = new[x.index()]);
        let mut id = push(&mut nodes, node.clone());
        if reads {
            let op = Op::Binary(Binary::Mul, id, new[found.factor.index()]);
            id = push(&mut nodes, Node { op, ..node });
        }
        new.push(id);
    }
    graph.nodes = nodes;
    rename_references(graph, |x| new[x.index()]);
}
