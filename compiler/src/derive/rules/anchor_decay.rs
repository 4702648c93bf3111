//! A decay inside a sum, over more rows than one block.

use super::gate_inside;
use crate::derive::chunk::{Blocks, Chunk, boundary};
use crate::derive::rule::Rule;
use crate::graph::build::Builder;
use crate::graph::ir::{DimId, Gate, GateKind, Gates, NodeId, Op, Side};

/// The rule.
pub const RULE: Rule = Rule {
    name: "anchor the decay at block openings",
    before: "exp(γ_r − γ_e) inside a sum, r in row block I, e in column block J < I",
    after: "exp(γ_r − γ_I) · exp(γ_I − γ_{J+1}) · exp(γ_{J+1} − γ_e), γ_I the clock at which block I opens",
    holds_when: "always: the three segments lie end to end, so for gates ≤ 0 each factor is ≤ 1; the anchor depends on \
                 shape alone, never on data or on a later token; diagonal blocks keep the decay inside the sum; between \
                 two blocks lies nothing, and only a mask is left of the middle segment",
    why: "a segment is the product of its parts; the first part moves onto the reader, the others onto the writer",
    source: "Yang et al. 2023, arXiv 2312.06635, §4.3; causal anchors as in public reports on safe gates for KDA",
};

/// A decay's events and block totals, split into blocks.
struct SplitGates {
    gates: Gates,
    between: Between,
    prefix: NodeId,
    suffix: NodeId,
}

/// The segment strictly between column block and row block, zero where the row block does not come after.
#[derive(Clone, Copy)]
enum Between {
    /// A decay.
    Decay(NodeId),
    /// Nothing lies between two blocks: ones and zeros, the same along every axis, which may be left out of a sum over
    /// it and come after.
    Mask(NodeId),
}

fn split(chunk: &mut Chunk, blocks: Blocks, gates: &Gates) -> SplitGates {
    let t = chunk.t;
    let b = &mut chunk.b;
    let events: Vec<Gate> = gates
        .events
        .iter()
        .map(|g| Gate { value: b.split(g.value, t, blocks.row_block, blocks.row), kind: g.kind })
        .collect();
    let between = between(b, blocks, &events);
    let prefix = boundary(b, Side::Prefix, &events, gates.to, blocks.row).expect("a decay has events");
    let suffix = boundary(b, Side::Suffix, &events, gates.from, blocks.row).expect("a decay has events");
    SplitGates { gates: Gates { events, from: gates.from, to: gates.to }, between, prefix, suffix }
}

fn between(b: &mut Builder, blocks: Blocks, events: &[Gate]) -> Between {
    let (row, col) = (blocks.row_block, blocks.col_block);
    let segment = |b: &mut Builder, events: Vec<Gate>, dims: Vec<DimId>| {
        let gates = Gates { from: events.len(), to: 0, events };
        b.add(Op::Segment { gates, row, col, diagonal: false }, dims)
    };
    if b.size(row) <= 2 {
        return Between::Mask(segment(b, Vec::new(), vec![row, col]));
    }
    let total = if events.iter().all(|g| g.kind == GateKind::Log) {
        let sums: Vec<NodeId> = events.iter().map(|g| b.sum(g.value, &[blocks.row])).collect();
        Gate { value: b.sum_all(sums).expect("a decay has events"), kind: GateKind::Log }
    } else {
        let value = boundary(b, Side::Total, events, 0, blocks.row).expect("a decay has events");
        Gate { value, kind: GateKind::Factor }
    };
    let dims = b.dims_of(total.value).iter().copied().chain([col]).collect();
    Between::Decay(segment(b, vec![total], dims))
}

/// Rows of blocks as columns of blocks.
fn as_columns(b: &mut Builder, blocks: Blocks, x: NodeId) -> NodeId {
    let x = b.rename(x, blocks.row_block, blocks.col_block);
    b.rename(x, blocks.row, blocks.col)
}

fn split_rows(chunk: &mut Chunk, blocks: Blocks, x: NodeId) -> NodeId {
    let t = chunk.t;
    let x = chunk.b.broadcast(x, &[t]);
    chunk.b.split(x, t, blocks.row_block, blocks.row)
}

/// `[t, s]`: Σ over axes of reader · segment · writer, strictly lower, block by block.
pub fn weight(
    chunk: &mut Chunk,
    blocks: Blocks,
    reader: NodeId,
    writer: NodeId,
    axes: &[DimId],
    gates: Gates,
    name: &str,
) -> NodeId {
    chunk.derivation.record(&RULE, format!("blocks of 16 rows for {name}"), None);
    chunk.b.rule = RULE.name;
    let reader = split_rows(chunk, blocks, reader);
    let writer = split_rows(chunk, blocks, writer);
    let parts = split(chunk, blocks, &gates);
    let (t, s) = (chunk.t, chunk.s);
    let b = &mut chunk.b;

    let anchored_reader = b.times(reader, parts.prefix);
    let anchored_writer = b.times(writer, parts.suffix);
    let anchored_writer = as_columns(b, blocks, anchored_writer);
    let off_diagonal = match parts.between {
        Between::Decay(between) => {
            let anchored_writer = b.times(anchored_writer, between);
            b.contract(anchored_reader, anchored_writer, axes)
        }
        Between::Mask(mask) => {
            let all = b.contract(anchored_reader, anchored_writer, axes);
            b.times(all, mask)
        }
    };

    let columns = b.rename(writer, blocks.row, blocks.col);
    let diagonal = gate_inside::strict_weight(b, reader, columns, axes, parts.gates, blocks.row, blocks.col);
    let diagonal = b.diagonal(diagonal, blocks.row_block, blocks.col_block);
    let all = b.plus(off_diagonal, diagonal);
    let all = b.merge(all, blocks.row_block, blocks.row, t);
    b.merge(all, blocks.col_block, blocks.col, s)
}

/// `[t, axes…]`: Σ over columns of scores · segment · x, strictly lower, block by block.
pub fn rows(
    chunk: &mut Chunk,
    blocks: Blocks,
    scores: NodeId,
    x: NodeId,
    axes: &[DimId],
    gates: Gates,
    name: &str,
) -> NodeId {
    chunk.derivation.record(&RULE, format!("blocks of 16 rows for {name}"), None);
    chunk.b.rule = RULE.name;
    let x = split_rows(chunk, blocks, x);
    let parts = split(chunk, blocks, &gates);
    let (t, s) = (chunk.t, chunk.s);
    let b = &mut chunk.b;
    let scores = b.broadcast(scores, &[t, s]);
    let scores = b.split(scores, t, blocks.row_block, blocks.row);
    let scores = b.split(scores, s, blocks.col_block, blocks.col);

    let anchored = b.times(x, parts.suffix);
    let anchored = as_columns(b, blocks, anchored);
    let (earlier, anchored) = match parts.between {
        Between::Decay(between) => (scores, b.times(anchored, between)),
        Between::Mask(mask) => (b.times(scores, mask), anchored),
    };
    let off_diagonal = b.contract(earlier, anchored, &[blocks.col_block, blocks.col]);
    let off_diagonal = b.times(off_diagonal, parts.prefix);

    let own = b.diagonal_part(scores, blocks.row_block, blocks.col_block);
    let columns = b.rename(x, blocks.row, blocks.col);
    let diagonal = gate_inside::strict_rows(b, own, columns, axes, parts.gates, blocks.row, blocks.col);
    let all = b.plus(off_diagonal, diagonal);
    b.merge(all, blocks.row_block, blocks.row, t)
}
