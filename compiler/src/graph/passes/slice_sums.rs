//! `slice-sums`: long sums with a decay inside are cut into slices that many threads can share.
//!
//! Comes in: a graph. Goes out: the graph in which the weights of a gated product, Σ over an axis of products with a
//! running decay, are the sum of what slices of the axis give. Each slice is computed as before, term by term; only how
//! the terms are bracketed changes.

use super::rewrite_nodes;
use crate::graph::build::Builder;
use crate::graph::ir::*;

/// Positions of an axis in a slice.
const SLICE: usize = 16;

/// Cuts every sum that is long enough.
pub fn slice_sums(graph: &mut Graph) {
    rewrite_nodes(graph, sliced);
}

fn sliced(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Gated { part: GatedPart::Weight, weight: None, rows: Some(rows), cols: Some(cols), gates, row, col, axes } =
        &node.op
    else {
        return None;
    };
    let [axis] = axes[..] else { return None };
    let Dim { name, kind, size } = b.dims[axis.index()].clone();
    if size <= SLICE || !size.is_multiple_of(SLICE) {
        return None;
    }
    let slice = b.dim(&format!("{name}_slice"), DimKind::Block, size / SLICE);
    let within = b.dim(&format!("{name}_within"), kind, SLICE);
    let cut = |b: &mut Builder, x: NodeId| b.split(x, axis, slice, within);
    let (rows, cols) = (cut(b, *rows), cut(b, *cols));
    let mut gates = gates.clone();
    for event in &mut gates.events {
        event.value = cut(b, event.value);
    }
    let part = GatedPart::Weight;
    let (row, col) = (*row, *col);
    let op = Op::Gated { part, weight: None, rows: Some(rows), cols: Some(cols), gates, row, col, axes: vec![within] };
    let dims = node.dims.iter().copied().chain([slice]).collect();
    let parts = b.add(op, dims);
    Some(b.sum(parts, &[slice]))
}
