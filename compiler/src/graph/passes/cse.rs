//! `share-equal`: of nodes that compute the same from the same, one stays.
//!
//! Comes in: a graph. Goes out: the graph with every later copy unused (and left out). Never looks at what an operation
//! means: equal is equal in structure.

use super::rename_references;
use crate::graph::ir::{Graph, InputKind, Node, NodeId, Op};
use std::collections::HashMap;

/// Shares equal nodes, in bodies too.
pub fn share_equal(graph: &mut Graph) {
    let nodes = std::mem::take(&mut graph.nodes);
    let (nodes, new) = share(nodes);
    graph.nodes = nodes;
    rename_references(graph, |x| new[x.index()]);
}

fn share(nodes: Vec<Node>) -> (Vec<Node>, Vec<NodeId>) {
    let mut kept: Vec<Node> = Vec::new();
    let mut seen: HashMap<String, NodeId> = HashMap::new();
    let mut new: Vec<NodeId> = Vec::new();
    for mut node in nodes {
        node.op.for_each_operand(&mut |x| *x = new[x.index()]);
        if let Op::Scan(scan) = &mut node.op {
            let (body, inside) = share(std::mem::take(&mut scan.body.nodes));
            scan.body.nodes = body;
            for x in scan.body.inputs.iter_mut().chain(&mut scan.body.outputs) {
                *x = inside[x.index()];
            }
        }
        let id = NodeId(kept.len() as u32);
        // Two carries may have the same name.
        let own = matches!(node.op, Op::Input { kind: InputKind::Carry, .. });
        let id = match own {
            true => id,
            false => *seen.entry(format!("{:?} {:?}", node.op, node.dims)).or_insert(id),
        };
        if id.index() == kept.len() {
            kept.push(node);
        }
        new.push(id);
    }
    (kept, new)
}
