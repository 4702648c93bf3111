//! `drop-unused`: what no result needs is left out, the rest is numbered anew.
//!
//! Comes in: a graph. Goes out: the graph with the nodes its outputs, saves and carries need; also a scan's unused
//! results and operands, and carries that only feed themselves and are asked for by nobody. Never drops a carry whose
//! last value is a result.

use super::rename_references;
use crate::graph::ir::{Graph, Node, NodeId, Op, Scan};
use std::collections::HashMap;

/// Drops what is unused, in bodies too.
pub fn drop_unused(graph: &mut Graph) {
    let results = graph.outputs.iter().chain(&graph.saves).map(|(_, node)| *node);
    let last = graph.carries.iter().filter(|carry| carry.last.is_some());
    let mut roots: Vec<NodeId> = results.chain(last.flat_map(|carry| [carry.input, carry.output])).collect();
    // A carry that something else reads is needed, and then so is its next value.
    loop {
        let live = reach(&graph.nodes, &roots);
        let needed = graph.carries.iter().filter(|carry| live[carry.input.index()] && !live[carry.output.index()]);
        let more: Vec<NodeId> = needed.map(|carry| carry.output).collect();
        if more.is_empty() {
            graph.carries.retain(|carry| live[carry.input.index()]);
            break;
        }
        roots.extend(more);
    }
    roots.extend(graph.carries.iter().flat_map(|carry| [carry.input, carry.output]));
    let new = sweep(&mut graph.nodes, &roots);
    rename_references(graph, |x| new[&x]);
}

/// Which nodes the roots need. A scan needs only what its used results need.
fn reach(nodes: &[Node], roots: &[NodeId]) -> Vec<bool> {
    let mut live = vec![false; nodes.len()];
    for root in roots {
        live[root.index()] = true;
    }
    // Users come later, so which results are used is known when their scan is met.
    let mut used: HashMap<usize, Vec<usize>> = HashMap::new();
    for idx in (0..nodes.len()).rev() {
        if !live[idx] {
            continue;
        }
        let needed = match &nodes[idx].op {
            Op::ScanResult(scan, number) => {
                used.entry(scan.index()).or_default().push(*number);
                vec![*scan]
            }
            Op::Scan(scan) => {
                let body = reach(&scan.body.nodes, &used_outputs(scan, used.get(&idx)));
                let given = scan.sequences.iter().chain(&scan.invariants).zip(&scan.body.inputs);
                let read = given.filter(|(_, input)| body[input.index()]).map(|(operand, _)| *operand);
                read.chain(scan.carries.iter().copied()).collect()
            }
            op => op.operands(),
        };
        for x in needed {
            live[x.index()] = true;
        }
    }
    live
}

/// What a body gives that is used; carries always are.
fn used_outputs(scan: &Scan, used: Option<&Vec<usize>>) -> Vec<NodeId> {
    let is_used = |number: usize| number < scan.carries.len() || used.is_some_and(|used| used.contains(&number));
    (0..scan.body.outputs.len()).filter(|&number| is_used(number)).map(|number| scan.body.outputs[number]).collect()
}

/// Leaves what the roots need; gives the new ids.
fn sweep(nodes: &mut Vec<Node>, roots: &[NodeId]) -> HashMap<NodeId, NodeId> {
    let mut live = vec![false; nodes.len()];
    for root in roots {
        live[root.index()] = true;
    }
    // By scan: which results are used. Users come later, so they are known when the scan is met.
    let mut used: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut results: HashMap<(usize, usize), usize> = HashMap::new();
    for idx in (0..nodes.len()).rev() {
        if !live[idx] {
            continue;
        }
        if let Op::ScanResult(scan, number) = nodes[idx].op {
            used.entry(scan.index()).or_default().push(number);
        }
        if let Op::Scan(scan) = &mut nodes[idx].op {
            let used = used.remove(&idx).unwrap_or_default();
            for (old, new) in shrink(scan, &used) {
                results.insert((idx, old), new);
            }
        }
        for x in nodes[idx].op.operands() {
            live[x.index()] = true;
        }
    }
    let mut new = HashMap::new();
    let mut kept = Vec::new();
    for (idx, mut node) in std::mem::take(nodes).into_iter().enumerate() {
        if live[idx] {
            if let Op::ScanResult(scan, number) = &mut node.op {
                *number = results[&(scan.index(), *number)];
            }
            node.op.for_each_operand(&mut |x| *x = new[x]);
            new.insert(NodeId(idx as u32), NodeId(kept.len() as u32));
            kept.push(node);
        }
    }
    *nodes = kept;
    new
}

/// Drops a scan's unused stacked results and unused operands; gives old and new numbers of its results.
fn shrink(scan: &mut Scan, used: &[usize]) -> Vec<(usize, usize)> {
    let n_carries = scan.carries.len();
    let kept: Vec<usize> =
        (0..scan.body.outputs.len()).filter(|number| *number < n_carries || used.contains(number)).collect();
    scan.body.outputs = kept.iter().map(|&number| scan.body.outputs[number]).collect();

    let live = reach(&scan.body.nodes, &scan.body.outputs);
    let n_sequences = scan.sequences.len();
    let first_carry = n_sequences + scan.invariants.len();
    let keeps = |number: usize| number >= first_carry || live[scan.body.inputs[number].index()];
    let inputs: Vec<usize> = (0..scan.body.inputs.len()).filter(|&number| keeps(number)).collect();
    let operands = |range: std::ops::Range<usize>, all: &[NodeId]| -> Vec<NodeId> {
        inputs.iter().filter(|number| range.contains(number)).map(|number| all[number - range.start]).collect()
    };
    scan.sequences = operands(0..n_sequences, &scan.sequences);
    scan.invariants = operands(n_sequences..first_carry, &scan.invariants);
    for (new, &old) in inputs.iter().enumerate() {
        scan.body.nodes[scan.body.inputs[old].index()].op = Op::BodyInput(new);
    }
    scan.body.inputs = inputs.iter().map(|&number| scan.body.inputs[number]).collect();

    let roots = [scan.body.outputs.as_slice(), &scan.body.inputs].concat();
    let new = sweep(&mut scan.body.nodes, &roots);
    for x in scan.body.inputs.iter_mut().chain(&mut scan.body.outputs) {
        *x = new[x];
    }
    kept.into_iter().enumerate().map(|(new, old)| (old, new)).collect()
}
