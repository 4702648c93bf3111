//! `invert-solve`: solutions of triangular systems become products with the inverse.
//!
//! Comes in: a graph. Goes out: the graph in which every system without decay and factors whose solution has an axis is
//! inverted once, X_j = Σ_i T_ji R_i and, transposed, Y_i = Σ_j T_jiᵀ R_j. The inverse depends on no right-hand side, so
//! forward and transposed solutions share it, and so may a kernel before the one that knows the state. Products of whole
//! tiles take the place of rows that wait for each other.
//!
//! A block T_ji that is zero, or the identity, for want of a way from slot i to slot j is left out. A solution that is
//! a number for each row stays: it is less work than the inverse.

use super::rewrite_nodes;
use crate::graph::build::Builder;
use crate::graph::ir::*;

/// Inverts every system that has axes to share the inverse.
pub fn invert_solve(graph: &mut Graph) {
    rewrite_nodes(graph, |b, node| {
        let Op::Solve(solve) = &node.op else { return None };
        is_plain(b, node, solve).then(|| multiplied(b, solve))
    });
}

/// Whether nothing but the blocks is between the unknowns, and they have an axis.
fn is_plain(b: &Builder, node: &Node, solve: &Solve) -> bool {
    let has_axis = node.dims.iter().any(|dim| matches!(b.dims[dim.index()].kind, DimKind::Axis(_)));
    has_axis && solve.gates.events.is_empty() && solve.scale.iter().all(Option::is_none)
}

/// The solution as products with the inverse.
fn multiplied(b: &mut Builder, solve: &Solve) -> NodeId {
    let Solve { lower, rhs, slot, row, col, transposed, .. } = solve;
    let (slot, row, col) = (*slot, *row, *col);
    let n = rhs.len();
    let Dim { name, kind, size } = b.dims[slot.index()].clone();
    let from = b.dim(&format!("{name}_from"), kind, size);
    let dims: Vec<DimId> = lower.iter().flatten().flat_map(|&x| b.dims_of(x).to_vec()).collect();
    let dims = [dims, vec![slot, from, row, col]].concat();
    let inverse = b.add(Op::Inverse(Inverse { lower: lower.clone(), slot, from, row, col }), dims);
    let ways = ways(lower, n);
    let mut parts = Vec::new();
    for to in 0..n {
        let mut terms = Vec::new();
        for (of, &given) in rhs.iter().enumerate() {
            // The block of the inverse: its rows' slot, its columns' slot.
            let (j, i) = if *transposed { (of, to) } else { (to, of) };
            if !ways[j * n + i] {
                terms.extend((i == j).then_some(given));
                continue;
            }
            let block = b.index(inverse, slot, j);
            let block = b.index(block, from, i);
            terms.push(match transposed {
                false => {
                    let given = b.rename(given, row, col);
                    b.contract(block, given, &[col])
                }
                true => {
                    let product = b.contract(block, given, &[row]);
                    b.rename(product, col, row)
                }
            });
        }
        parts.push(b.sum_all(terms));
    }
    b.stack(parts, slot)
}

/// By block j·n + i: whether an unknown of slot i is read, by however many others, for one of slot j.
fn ways(lower: &[Option<NodeId>], n: usize) -> Vec<bool> {
    let mut ways: Vec<bool> = lower.iter().map(Option::is_some).collect();
    for by in 0..n {
        for j in 0..n {
            for i in 0..n {
                ways[j * n + i] |= ways[j * n + by] && ways[by * n + i];
            }
        }
    }
    ways
}
