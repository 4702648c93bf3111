//! States gone through a token at a time: the recurrent form of everything, and the only form of an elementwise state.

use crate::derive::chunk::Chunk;
use crate::derive::forms::{copy_op, is_elementwise};
use crate::derive::rule::Rule;
use crate::error::CompileError;
use crate::graph::build::Builder;
use crate::graph::ir::{Body, DimId, NodeId, Op, Scan};
use crate::lower::program_to_graph::TokenGraph;
use std::collections::{BTreeSet, HashMap, HashSet};

/// The rule.
pub const RULE: Rule = Rule {
    name: "scan the tokens",
    before: "S_t = f_t(S_{t−1}), o_t = g_t(S_{t−1}, S_t)",
    after: "a loop over the rows of the chunk that carries S; what does not depend on S is computed for all rows before, \
            what depends on it only through sums over it, after",
    holds_when: "always; no product of decays is ever formed, so no exponent can leave its range",
    why: "it is the definition",
    source: "Qin et al. 2023, arXiv 2311.04823 (HGRN); Gu, Dao 2023, arXiv 2312.00752 (selective scan)",
};

/// What goes into the loop and what comes out of it.
pub struct Needed {
    /// State-free nodes the loop reads, in arena order.
    pub operands: Vec<NodeId>,
    /// Nodes computed inside, in arena order.
    inside: Vec<NodeId>,
    /// Nodes given row by row to the outside, in arena order.
    exports: Vec<NodeId>,
}

/// What a scan gives.
pub struct Results {
    /// States after the last row.
    pub ends: Vec<NodeId>,
    /// Token nodes that are now rows.
    pub values: HashMap<NodeId, NodeId>,
}

/// Decides what is inside the loop; `earlier` lists states whose strata are already built, `kept` states that are
/// wanted as they were before each row.
pub fn split(
    token: &TokenGraph,
    arena: &Builder,
    states: &[usize],
    earlier: &[usize],
    kept: &BTreeSet<usize>,
) -> Needed {
    let carried: HashSet<NodeId> = states.iter().map(|&s| token.graph.carries[s].input).collect();
    let mut depends = vec![false; arena.nodes.len()];
    for (i, node) in arena.nodes.iter().enumerate() {
        depends[i] = carried.contains(&NodeId(i as u32)) || node.op.operands().iter().any(|x| depends[x.index()]);
    }
    // What depends on a state still to come cannot come out of this loop; its operands can. Nor can what sums over
    // both these states and the whole of an earlier one: outside it is a read of that one, by a weight from in here.
    let mut beyond = vec![false; arena.nodes.len()];
    let mut whole = vec![false; arena.nodes.len()];
    for (i, node) in arena.nodes.iter().enumerate() {
        let state = token.graph.carries.iter().position(|c| c.input == NodeId(i as u32));
        let operands = node.op.operands();
        whole[i] = state.is_some_and(|s| earlier.contains(&s))
            || (is_elementwise(&node.op) && operands.iter().any(|x| whole[x.index()]));
        beyond[i] = state.is_some_and(|s| !states.contains(&s) && !earlier.contains(&s))
            || operands.iter().any(|x| beyond[x.index()] || (depends[i] && whole[x.index()]));
    }
    let shapes: Vec<&[DimId]> = states.iter().map(|&s| arena.dims_of(token.graph.carries[s].input)).collect();
    let covers = |id: NodeId, least: usize| {
        let dims = arena.dims_of(id);
        shapes.iter().any(|shape| shape.len() >= least && shape.iter().all(|d| dims.contains(d)))
    };

    // Exports: what the outside uses, taken where a sum over a state has made it small.
    let mut exports = HashSet::new();
    let mut seen = HashSet::new();
    let mut stack: Vec<NodeId> = token.graph.outputs.iter().map(|(_, node)| *node).collect();
    for (s, versions) in token.versions.iter().enumerate() {
        if !states.contains(&s) {
            stack.extend(versions.iter().map(|v| v.node));
        }
    }
    while let Some(id) = stack.pop() {
        if !seen.insert(id) || !depends[id.index()] {
            continue;
        }
        let operands = arena.nodes[id.index()].op.operands();
        let touches = operands.iter().any(|x| depends[x.index()] && covers(*x, 0));
        if !beyond[id.index()] && (covers(id, 0) || touches) {
            exports.insert(id);
        } else {
            stack.extend(operands);
        }
    }

    exports.extend(states.iter().filter(|s| kept.contains(s)).map(|&s| token.graph.carries[s].input));

    // Inside: everything on the way to the states' last versions and to the exports.
    let mut inside = HashSet::new();
    let mut operands = HashSet::new();
    let mut stack: Vec<NodeId> = exports.iter().copied().collect();
    for &s in states {
        stack.push(token.versions[s].last().expect("a state has its first version").node);
    }
    let mut seen = HashSet::new();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) || carried.contains(&id) {
            continue;
        }
        let op = &arena.nodes[id.index()].op;
        // A state-free value as large as a matrix state is cheaper made again in every step than kept for all rows.
        let large = is_elementwise(op) && covers(id, 2);
        if depends[id.index()] || large || matches!(op, Op::Const(_)) {
            inside.insert(id);
            stack.extend(op.operands());
        } else {
            operands.insert(id);
        }
    }
    let sorted = |set: HashSet<NodeId>| {
        let mut list: Vec<NodeId> = set.into_iter().collect();
        list.sort_unstable();
        list
    };
    Needed { operands: sorted(operands), inside: sorted(inside), exports: sorted(exports) }
}

/// Builds the loop.
#[allow(clippy::too_many_arguments)]
pub fn scan(
    chunk: &mut Chunk,
    token: &TokenGraph,
    arena: &Builder,
    states: &[usize],
    needed: &Needed,
    lifted: &HashMap<NodeId, NodeId>,
    first: &[NodeId],
    keep_states: bool,
) -> Result<Results, CompileError> {
    let t = chunk.t;
    let (with_rows, without): (Vec<NodeId>, Vec<NodeId>) =
        needed.operands.iter().partition(|&&n| chunk.b.has(lifted[&n], t));
    let carried: Vec<NodeId> = states.iter().map(|&s| token.graph.carries[s].input).collect();

    let mut body = Builder::with_dims(chunk.b.dims.clone());
    body.rule = RULE.name;
    let mut map: HashMap<NodeId, NodeId> = HashMap::new();
    let mut inputs = Vec::new();
    for &node in with_rows.iter().chain(&without).chain(&carried) {
        let input = body.add(Op::BodyInput(inputs.len()), arena.dims_of(node).to_vec());
        inputs.push(input);
        map.insert(node, input);
    }
    for &id in &needed.inside {
        let node = &arena.nodes[id.index()];
        let operands: Vec<NodeId> = node.op.operands().iter().map(|x| map[x]).collect();
        body.span = node.span;
        let copied = copy_op(&mut body, &node.op, &node.dims, &operands, None)?;
        map.insert(id, copied);
    }
    let mut outputs = Vec::new();
    for (&s, &input) in states.iter().zip(&carried) {
        let last = token.versions[s].last().expect("a state has its first version").node;
        let dims = arena.dims_of(input).to_vec();
        outputs.push(body.broadcast(map[&last], &dims));
    }
    for id in &needed.exports {
        let dims = arena.dims_of(*id).to_vec();
        outputs.push(body.broadcast(map[id], &dims));
    }
    if keep_states {
        outputs.extend(carried.iter().map(|input| map[input]));
    }
    let result_dims: Vec<Vec<DimId>> = outputs.iter().map(|o| body.dims_of(*o).to_vec()).collect();
    let scan = Scan {
        sequences: with_rows.iter().map(|n| lifted[n]).collect(),
        invariants: without.iter().map(|n| lifted[n]).collect(),
        carries: first.to_vec(),
        body: Body { nodes: body.nodes, inputs, outputs },
        reverse: false,
        row: t,
    };
    let loop_node = chunk.b.add(Op::Scan(Box::new(scan)), vec![]);
    let result = |chunk: &mut Chunk, n: usize| {
        let mut dims = result_dims[n].clone();
        if n >= states.len() {
            dims.push(t);
        }
        chunk.b.add(Op::ScanResult(loop_node, n), dims)
    };
    let ends = (0..states.len()).map(|n| result(chunk, n)).collect();
    let mut values = HashMap::new();
    for (n, id) in needed.exports.iter().enumerate() {
        values.insert(*id, result(chunk, states.len() + n));
    }
    let names: Vec<&str> = states.iter().map(|&s| token.graph.carries[s].name.as_str()).collect();
    chunk.derivation.record(&RULE, names.join(", "), None);
    Ok(Results { ends, values })
}
