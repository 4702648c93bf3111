//! `join-sums`: sums along time that are added up become one.
//!
//! Comes in: a graph. Goes out: the graph in which of the summands of one sum, all that are products of a triangle of
//! ones with something, along the same tokens, are one such product. Where a token counts for itself in some of them and
//! not in others, what counts is added beside it. Nothing is subtracted, and nobody else's summand is touched.

use super::rewrite_nodes_at;
use crate::graph::build::{Builder, uses};
use crate::graph::ir::{Binary, DimId, Gates, Graph, NodeId, Op};
use std::collections::BTreeMap;

/// A product of a triangle of ones with something.
struct Along {
    /// What is summed, and along which tokens.
    x: NodeId,
    over: DimId,
    row: DimId,
    col: DimId,
    /// A token counts for itself.
    diagonal: bool,
}

/// Joins sums along time.
pub fn join_sums(graph: &mut Graph) {
    let old = graph.clone();
    let uses = uses(&old);
    let sums: BTreeMap<usize, Vec<NodeId>> = (0..old.nodes.len())
        .filter(|&n| is_sum(&old, n) && !is_part_of_sum(&old, &uses, n))
        .map(|n| (n, summands(&old, &uses, n)))
        .filter(|(_, summands)| groups(&old, &uses, summands).values().any(|group| group.len() > 1))
        .collect();
    rewrite_nodes_at(graph, |b, n, _, new| {
        let summands = sums.get(&n)?;
        let groups = groups(&old, &uses, summands);
        let joined: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
        let is_joined = |x: &NodeId| joined.iter().flatten().any(|(own, _)| own == x);
        let mut terms: Vec<NodeId> = summands.iter().filter(|x| !is_joined(x)).map(|x| new[x.index()]).collect();
        for group in &joined {
            terms.extend(join(b, group, new));
        }
        b.sum_all(terms)
    });
}

/// The sums of a group as one, and what is added beside it.
fn join(b: &mut Builder, group: &[(NodeId, Along)], new: &[NodeId]) -> Vec<NodeId> {
    let Some((_, Along { over, row, col, .. })) = group.first() else { return Vec::new() };
    let everywhere = group.iter().all(|(_, along)| along.diagonal);
    let all = b.sum_all(group.iter().map(|(_, along)| new[along.x.index()])).expect("a group has sums");
    let gates = Gates { events: Vec::new(), from: 0, to: 0 };
    let triangle = b.add(Op::Segment { gates, row: *row, col: *col, diagonal: everywhere }, vec![*row, *col]);
    let kept = if over == row { *col } else { *row };
    let own = group.iter().filter(|(_, along)| along.diagonal && !everywhere);
    let mut terms: Vec<NodeId> = own.map(|(_, along)| b.rename(new[along.x.index()], *over, kept)).collect();
    terms.push(b.contract(triangle, all, &[*over]));
    terms
}

fn is_sum(graph: &Graph, n: usize) -> bool {
    matches!(graph.nodes[n].op, Op::Binary(Binary::Add, ..))
}

/// Whether a value is only added to others.
fn is_part_of_sum(graph: &Graph, uses: &[usize], n: usize) -> bool {
    let user = graph.nodes.iter().position(|node| node.op.operands().iter().any(|x| x.index() == n));
    uses[n] == 1 && user.is_some_and(|user| is_sum(graph, user) && graph.nodes[user].dims == graph.nodes[n].dims)
}

/// What a sum is of, in order.
fn summands(graph: &Graph, uses: &[usize], n: usize) -> Vec<NodeId> {
    let Op::Binary(Binary::Add, a, b) = graph.nodes[n].op else { return Vec::new() };
    let mut all = Vec::new();
    for x in [a, b] {
        match is_sum(graph, x.index()) && is_part_of_sum(graph, uses, x.index()) {
            true => all.extend(summands(graph, uses, x.index())),
            false => all.push(x),
        }
    }
    all
}

/// Summands that are sums along time and nothing else, by what they have in common.
fn groups(graph: &Graph, uses: &[usize], summands: &[NodeId]) -> BTreeMap<(DimId, DimId, DimId), Vec<(NodeId, Along)>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for &x in summands.iter().filter(|x| uses[x.index()] == 1) {
        if let Some(along) = along(graph, x) {
            groups.entry((along.over, along.row, along.col)).or_default().push((x, along));
        }
    }
    let alike = |group: &Vec<(NodeId, Along)>| {
        let dims = |(_, along): &(NodeId, Along)| graph.nodes[along.x.index()].dims.clone();
        group.windows(2).all(|pair| dims(&pair[0]) == dims(&pair[1]))
    };
    groups.retain(|_, group| alike(group));
    groups
}

fn along(graph: &Graph, x: NodeId) -> Option<Along> {
    let Op::Contract(a, b, over) = &graph.nodes[x.index()].op else { return None };
    let [over] = over[..] else { return None };
    [(*a, *b), (*b, *a)].into_iter().find_map(|(triangle, x)| {
        let Op::Segment { gates, row, col, diagonal } = &graph.nodes[triangle.index()].op else { return None };
        let kept = if over == *row { *col } else { *row };
        let fits = gates.events.is_empty() && (over == *row || over == *col);
        let free = !graph.nodes[x.index()].dims.contains(&kept);
        (fits && free).then_some(Along { x, over, row: *row, col: *col, diagonal: *diagonal })
    })
}
