//! The frame that the rules of a chunk work in: its dimensions and what a state looks like there.

use super::recurrence::Clock;
use super::rule::Derivation;
use crate::graph::build::Builder;
use crate::graph::ir::{DimId, DimKind, Gate, GateKind, Gates, NodeId, Op, Side};

/// Rows of a block inside which a decay on a contracted axis is multiplied out pair by pair.
pub const BLOCK: usize = 16;

/// A chunk graph under construction.
pub struct Chunk {
    /// Nodes so far.
    pub b: Builder,
    /// Rows: tokens of the chunk.
    pub t: DimId,
    /// Columns: tokens of the chunk, as writers.
    pub s: DimId,
    /// Present where the chunk has more than one block.
    pub blocks: Option<Blocks>,
    /// What was done.
    pub derivation: Derivation,
}

/// Dimensions of blocks of rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Which block, of rows.
    pub row_block: DimId,
    /// Which block, of columns.
    pub col_block: DimId,
    /// Row in its block.
    pub row: DimId,
    /// Column in its block.
    pub col: DimId,
}

/// A state in a chunk.
#[derive(Clone, Debug)]
pub struct ChunkState {
    /// Name.
    pub name: String,
    /// Its value when the chunk begins.
    pub start: NodeId,
    /// Axes that reads sum over.
    pub contracted: Vec<DimId>,
    /// The others.
    pub free: Vec<DimId>,
    /// Decay along no axis, `[t]` each.
    pub scalar: Vec<Gate>,
    /// Decay along contracted axes, `[t, …]` each.
    pub on_contracted: Vec<Gate>,
    /// Decay along free axes, `[t, …]` each.
    pub on_free: Vec<Gate>,
}

/// An edit in a chunk, its right-hand side solved: `S += u ⊗ x`.
#[derive(Clone, Debug)]
pub struct ChunkEdit {
    /// Which state it writes.
    pub target: usize,
    /// `[t, contracted…]`, zero in void rows.
    pub u: NodeId,
    /// `[t, free…]`.
    pub x: NodeId,
    /// When it writes.
    pub write: Clock,
}

impl Chunk {
    /// A chunk of `rows` rows over these axes.
    pub fn new(axes: Builder, rows: usize) -> Self {
        let mut b = axes;
        let t = b.dim("t", DimKind::Row, rows);
        let s = b.dim("s", DimKind::Col, rows);
        let blocks = (rows > BLOCK).then(|| {
            assert!(rows.is_multiple_of(BLOCK), "rows are padded to whole blocks");
            Blocks {
                row_block: b.dim("tb", DimKind::Block, rows / BLOCK),
                col_block: b.dim("sb", DimKind::BlockCol, rows / BLOCK),
                row: b.dim("ti", DimKind::Row, BLOCK),
                col: b.dim("si", DimKind::Col, BLOCK),
            }
        });
        Chunk { b, t, s, blocks, derivation: Derivation::default() }
    }

    /// A per-row value as one of columns.
    pub fn to_col(&mut self, x: NodeId) -> NodeId {
        self.b.rename(x, self.t, self.s)
    }

    /// A decay over the span between two clocks.
    pub fn gates(events: &[Gate], from: usize, to: usize) -> Gates {
        Gates { events: events.to_vec(), from, to }
    }

    /// The segment from clock `from` of the column's token to clock `to` of the row's, `[t, s]`; zero where the row
    /// does not see the column.
    pub fn segment(&mut self, events: &[Gate], from: usize, to: usize, diagonal: bool) -> NodeId {
        let gates = Self::gates(events, from, to);
        let dims = self.b.gate_dims(&gates).into_iter().chain([self.t, self.s]).collect();
        self.b.add(Op::Segment { gates, row: self.t, col: self.s, diagonal }, dims)
    }

    /// A segment from or to an end of the chunk; nothing where there is no decay.
    pub fn boundary(&mut self, side: Side, events: &[Gate], clock: usize) -> Option<NodeId> {
        let row = self.t;
        boundary(&mut self.b, side, events, clock, row)
    }

    /// The product of a token's events `from..to`; nothing where there are none.
    pub fn within_token(&mut self, events: &[Gate], from: usize, to: usize) -> Option<NodeId> {
        within_token(&mut self.b, events, from, to)
    }

    /// A product with factors that may be absent.
    pub fn scaled(&mut self, x: NodeId, factors: impl IntoIterator<Item = Option<NodeId>>) -> NodeId {
        factors.into_iter().flatten().fold(x, |acc, f| self.b.times(acc, f))
    }

    /// Number of positions of a list of dimensions.
    pub fn extent(&self, dims: &[DimId]) -> usize {
        dims.iter().map(|d| self.b.size(*d)).product()
    }
}

/// A segment from or to an end of the rows; nothing where there is no decay.
pub fn boundary(b: &mut Builder, side: Side, events: &[Gate], clock: usize, row: DimId) -> Option<NodeId> {
    if events.is_empty() {
        return None;
    }
    let gates = match side {
        Side::Prefix => Chunk::gates(events, 0, clock),
        Side::Suffix => Chunk::gates(events, clock, 0),
        Side::Total => Chunk::gates(events, 0, 0),
    };
    let mut dims = b.gate_dims(&gates);
    if side == Side::Total {
        dims.retain(|d| *d != row);
    }
    Some(b.add(Op::Boundary { side, gates, row }, dims))
}

/// The product of one token's events `from..to`; nothing where there are none.
pub fn within_token(b: &mut Builder, events: &[Gate], from: usize, to: usize) -> Option<NodeId> {
    if to <= from {
        return None;
    }
    let factors: Vec<NodeId> = events[from..to]
        .iter()
        .map(|gate| match gate.kind {
            GateKind::Log => b.exp(gate.value),
            GateKind::Factor => gate.value,
        })
        .collect();
    Some(b.product(factors))
}
