//! A decay that stands inside a sum over an axis.

use super::anchor_decay;
use crate::derive::chunk::Chunk;
use crate::derive::rule::Rule;
use crate::graph::build::Builder;
use crate::graph::ir::{DimId, GatedPart, Gates, NodeId, Op};

/// The rule.
pub const RULE: Rule = Rule {
    name: "keep the decay inside the sum",
    before: "A[r,e] = Σ_k r_k · exp(γ_r − γ_e)_k · u_{e,k}  (decay on contracted axes), or  O_r = Σ_e A[r,e] exp(γ_r − γ_e) ⊙ x_e  (on free axes)",
    after: "a derivative of the gated trilinear form  Φ = Σ w[i,j] r_i u_j exp(γ_i − γ_j), strictly lower",
    holds_when: "inside a block of at most 16 rows: the factors of a segment are multiplied one by one, never a quotient",
    why: "Φ is linear in each of its three arguments and its derivatives are of its own kind, so the backward needs nothing new",
    source: "Yang et al. 2023, arXiv 2312.06635, §4.3 (secondary chunking), restated without exponent differences",
};

/// `[t, s]`: Σ over axes of reader · segment · writer, strictly lower.
pub fn weight(chunk: &mut Chunk, reader: NodeId, writer: NodeId, axes: &[DimId], gates: Gates, name: &str) -> NodeId {
    chunk.derivation.record(&RULE, format!("decay of {name} inside reads"), None);
    if let Some(blocks) = chunk.blocks {
        return anchor_decay::weight(chunk, blocks, reader, writer, axes, gates, name);
    }
    chunk.b.rule = RULE.name;
    let (t, s) = (chunk.t, chunk.s);
    let columns = chunk.b.broadcast(writer, &[t]);
    let columns = chunk.to_col(columns);
    strict_weight(&mut chunk.b, reader, columns, axes, gates, t, s)
}

/// `[t, axes…]`: Σ over columns of scores · segment · x, strictly lower.
pub fn rows(chunk: &mut Chunk, scores: NodeId, x: NodeId, axes: &[DimId], gates: Gates, name: &str) -> NodeId {
    chunk.derivation.record(&RULE, format!("decay of {name} across columns"), None);
    if let Some(blocks) = chunk.blocks {
        return anchor_decay::rows(chunk, blocks, scores, x, axes, gates, name);
    }
    chunk.b.rule = RULE.name;
    let (t, s) = (chunk.t, chunk.s);
    let columns = chunk.b.broadcast(x, &[t]);
    let columns = chunk.to_col(columns);
    strict_rows(&mut chunk.b, scores, columns, axes, gates, t, s)
}

/// The form's derivative by its weight.
pub fn strict_weight(
    b: &mut Builder,
    rows: NodeId,
    cols: NodeId,
    axes: &[DimId],
    gates: Gates,
    row: DimId,
    col: DimId,
) -> NodeId {
    let rows = with_axes(b, rows, axes, row);
    let cols = with_axes(b, cols, axes, col);
    let batch = batch_dims(b, [Some(rows), Some(cols)], &gates, axes, row, col);
    let dims = batch.into_iter().chain([row, col]).collect();
    let op = Op::Gated {
        part: GatedPart::Weight,
        weight: None,
        rows: Some(rows),
        cols: Some(cols),
        gates,
        row,
        col,
        axes: axes.to_vec(),
    };
    b.add(op, dims)
}

/// The form's derivative by its rows.
pub fn strict_rows(
    b: &mut Builder,
    weight: NodeId,
    cols: NodeId,
    axes: &[DimId],
    gates: Gates,
    row: DimId,
    col: DimId,
) -> NodeId {
    let weight = b.broadcast(weight, &[row, col]);
    let cols = with_axes(b, cols, axes, col);
    let batch = batch_dims(b, [Some(weight), Some(cols)], &gates, axes, row, col);
    let dims = batch.into_iter().chain([row]).chain(axes.iter().copied()).collect();
    let op = Op::Gated {
        part: GatedPart::Rows,
        weight: Some(weight),
        rows: None,
        cols: Some(cols),
        gates,
        row,
        col,
        axes: axes.to_vec(),
    };
    b.add(op, dims)
}

/// The form's derivative by its columns.
pub fn strict_cols(
    b: &mut Builder,
    weight: NodeId,
    rows: NodeId,
    axes: &[DimId],
    gates: Gates,
    row: DimId,
    col: DimId,
) -> NodeId {
    let weight = b.broadcast(weight, &[row, col]);
    let rows = with_axes(b, rows, axes, row);
    let batch = batch_dims(b, [Some(weight), Some(rows)], &gates, axes, row, col);
    let dims = batch.into_iter().chain([col]).chain(axes.iter().copied()).collect();
    let op = Op::Gated {
        part: GatedPart::Cols,
        weight: Some(weight),
        rows: Some(rows),
        cols: None,
        gates,
        row,
        col,
        axes: axes.to_vec(),
    };
    b.add(op, dims)
}

/// The form's derivative by the gate of one event.
#[allow(clippy::too_many_arguments)]
pub fn strict_gate(
    b: &mut Builder,
    event: usize,
    weight: NodeId,
    rows: NodeId,
    cols: NodeId,
    axes: &[DimId],
    gates: Gates,
    row: DimId,
    col: DimId,
) -> NodeId {
    let weight = b.broadcast(weight, &[row, col]);
    let rows = with_axes(b, rows, axes, row);
    let cols = with_axes(b, cols, axes, col);
    let dims = b.dims_of(gates.events[event].value).to_vec();
    let op = Op::Gated {
        part: GatedPart::Gate(event),
        weight: Some(weight),
        rows: Some(rows),
        cols: Some(cols),
        gates,
        row,
        col,
        axes: axes.to_vec(),
    };
    b.add(op, dims)
}

fn with_axes(b: &mut Builder, x: NodeId, axes: &[DimId], time: DimId) -> NodeId {
    let dims: Vec<DimId> = axes.iter().copied().chain([time]).collect();
    b.broadcast(x, &dims)
}

fn batch_dims(
    b: &Builder,
    operands: [Option<NodeId>; 2],
    gates: &Gates,
    axes: &[DimId],
    row: DimId,
    col: DimId,
) -> Vec<DimId> {
    let own = |d: &DimId| axes.contains(d) || *d == row || *d == col;
    let from_operands = operands.into_iter().flatten().flat_map(|x| b.dims_of(x).to_vec());
    from_operands.chain(b.gate_dims(gates)).filter(|d| !own(d)).collect()
}
