//! `sum-gates`: sums of logarithms along time become products with triangles of ones.
//!
//! Comes in: a graph. Goes out: the graph in which every segment, boundary and gradient of one whose events are all
//! logarithms is a contraction over tokens, which many threads can share, instead of a running sum, which one has to
//! compute. A segment stays the sum of just its own gates, so nothing cancels: with A\[t, j\] = 1 where token j counts
//! for a reader at t and B\[j, s\] = g_j where it counts for a writer at s, the logarithm of segment (t, s) is (A·B)\[t, s\].
//! The gradient by g_j of weights M on the segments is Σ_{t ≥ j} Σ_{s < j} M\[t, s\], again two triangles.
//!
//! A logarithm of −∞ counts as −10³⁰, whose exponential is as much zero, and which times zero is zero. Segments that
//! hold factors stay as they are.

use super::rewrite_nodes;
use crate::graph::build::Builder;
use crate::graph::ir::*;

/// What stands for the logarithm of zero.
const LOG_ZERO: f64 = -1e30;

/// Rewrites every gate of logarithms.
pub fn sum_gates(graph: &mut Graph) {
    rewrite_nodes(graph, |b, node| Sums { b, keep_segments: false }.node(node));
}

/// Rewrites every gate of logarithms but segments, and boundaries of decays that are one number a token.
pub fn sum_gates_but_segments(graph: &mut Graph) {
    rewrite_nodes(graph, |b, node| Sums { b, keep_segments: true }.node(node));
}

/// Tokens of a block: tables are made of whole ones.
const BLOCK: usize = 16;

struct Sums<'b> {
    b: &'b mut Builder,
    /// Segments stay, and boundaries that are one number a token; gradients are made of them.
    keep_segments: bool,
}

/// The events of a decay, all logarithms, with the token dimension they run over.
struct Events {
    values: Vec<NodeId>,
    from: usize,
    to: usize,
}

impl Sums<'_> {
    /// What a node becomes, if it is one of ours.
    fn node(&mut self, node: &Node) -> Option<NodeId> {
        let value = match &node.op {
            Op::Boundary { gates, row, .. } if self.is_kept(gates, *row) => return None,
            Op::Boundary { side, gates, row } => {
                let events = self.events(gates)?;
                self.boundary(*side, &events, *row)
            }
            Op::BoundaryGrad { weight, side, gates, row, event } => {
                let events = self.events(gates)?;
                let boundary = match self.is_kept(gates, *row) {
                    true => self.kept_boundary(*side, gates, *row),
                    false => self.boundary(*side, &events, *row),
                };
                let weighted = self.b.times(*weight, boundary);
                let all = self.boundary_grad(weighted, *side, &events, *row, *event);
                self.reduced(all, &node.dims)
            }
            Op::Segment { gates, row, col, diagonal } if !gates.events.is_empty() && !self.keep_segments => {
                let events = self.events(gates)?;
                self.segment(&events, *row, *col, *diagonal)
            }
            Op::SegmentGrad { weight, gates, row, col, diagonal, event } => {
                let events = self.events(gates)?;
                let all = self.segment_grad(*weight, gates, &events, (*row, *col), *diagonal, *event);
                self.reduced(all, &node.dims)
            }
            Op::Input { .. }
            | Op::BodyInput(_)
            | Op::Const(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Sum(..)
            | Op::MaxOver(..)
            | Op::Contract(..)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::Guard(..)
            | Op::Diagonal(..)
            | Op::DiagonalPart(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::StopGradient(_)
            | Op::Segment { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => return None,
        };
        Some(self.b.broadcast(value, &node.dims))
    }

    /// Whether a boundary stays: tables that segments have give it.
    fn is_kept(&self, gates: &Gates, row: DimId) -> bool {
        let blocks = self.b.dims[row.index()].size;
        self.keep_segments && blocks.is_multiple_of(BLOCK) && self.b.gate_dims(gates) == [row]
    }

    fn kept_boundary(&mut self, side: Side, gates: &Gates, row: DimId) -> NodeId {
        let dims = if side == Side::Total { vec![] } else { vec![row] };
        self.b.add(Op::Boundary { side, gates: gates.clone(), row }, dims)
    }

    /// The events, if all are logarithms.
    fn events(&mut self, gates: &Gates) -> Option<Events> {
        if gates.events.iter().any(|event| event.kind != GateKind::Log) {
            return None;
        }
        let least = self.b.constant(LOG_ZERO);
        let values = gates.events.iter().map(|event| self.b.binary(Binary::Max, event.value, least)).collect();
        Some(Events { values, from: gates.from, to: gates.to })
    }

    /// A token dimension beside `row`.
    fn middle(&mut self, row: DimId) -> DimId {
        let Dim { name, kind, size } = self.b.dims[row.index()].clone();
        self.b.dim(&format!("{name}_between"), kind, size)
    }

    /// `[row, col]`: 1 where col < row, or ≤.
    fn triangle(&mut self, row: DimId, col: DimId, diagonal: bool) -> NodeId {
        let gates = Gates { events: Vec::new(), from: 0, to: 0 };
        self.b.add(Op::Segment { gates, row, col, diagonal }, vec![row, col])
    }

    /// The sum of some events of a token; nothing of none.
    fn total(&mut self, events: &Events, which: impl Fn(usize) -> bool) -> Option<NodeId> {
        let values: Vec<NodeId> =
            events.values.iter().enumerate().filter(|(n, _)| which(*n)).map(|(_, value)| *value).collect();
        self.b.sum_all(values)
    }

    /// Σ over tokens j with a triangle's (t, j) or (j, t) of a value.
    fn along(&mut self, value: NodeId, row: DimId, before: bool, diagonal: bool) -> NodeId {
        let middle = self.middle(row);
        let value = self.b.broadcast(value, &[row]);
        let value = self.b.rename(value, row, middle);
        let triangle = if before { self.triangle(row, middle, diagonal) } else { self.triangle(middle, row, diagonal) };
        self.b.contract(triangle, value, &[middle])
    }

    fn boundary(&mut self, side: Side, events: &Events, row: DimId) -> NodeId {
        // Which events of the row's own token count.
        let (own, other, before) = match side {
            Side::Total => {
                let all = self.total(events, |_| true);
                let zero = self.b.constant(0.0);
                let all = self.b.broadcast(all.unwrap_or(zero), &[row]);
                let sum = self.b.sum(all, &[row]);
                return self.b.exp(sum);
            }
            Side::Prefix => (self.total(events, |e| e < events.to), self.total(events, |e| e >= events.to), true),
            Side::Suffix => (self.total(events, |e| e >= events.from), self.total(events, |e| e < events.from), false),
        };
        let mut parts = Vec::new();
        for (value, diagonal) in [(own, true), (other, false)] {
            if let Some(value) = value {
                parts.push(self.along(value, row, before, diagonal));
            }
        }
        let sum = self.b.sum_all(parts);
        let zero = self.b.constant(0.0);
        self.b.exp(sum.unwrap_or(zero))
    }

    /// By each token's event: the weighted boundaries it counts for.
    fn boundary_grad(&mut self, weighted: NodeId, side: Side, events: &Events, row: DimId, event: usize) -> NodeId {
        match side {
            Side::Total => self.b.broadcast(weighted, &[row]),
            Side::Prefix => self.along(weighted, row, false, event < events.to),
            Side::Suffix => self.along(weighted, row, true, event >= events.from),
        }
    }

    /// The logarithms of all segments from one token to a later one; 0 elsewhere.
    fn logarithms(&mut self, events: &Events, row: DimId, col: DimId) -> NodeId {
        let middle = self.middle(row);
        let mut parts = Vec::new();
        for reader in [false, true] {
            for writer in [false, true] {
                let group = self.total(events, |e| (e < events.to) == reader && (e >= events.from) == writer);
                let Some(group) = group else { continue };
                let group = self.b.broadcast(group, &[row]);
                let gates = self.b.rename(group, row, middle);
                let counts = self.triangle(middle, col, writer);
                let left = self.triangle(row, middle, reader);
                let right = self.b.times(gates, counts);
                parts.push(self.b.contract(left, right, &[middle]));
            }
        }
        let zero = self.b.constant(0.0);
        self.b.sum_all(parts).unwrap_or(zero)
    }

    /// Within one token: the events between the writer's clock and the reader's.
    fn within(&mut self, events: &Events) -> Option<NodeId> {
        let sum = self.total(events, |e| e >= events.from && e < events.to)?;
        Some(self.b.exp(sum))
    }

    fn later(&mut self, events: &Events, row: DimId, col: DimId) -> NodeId {
        let logarithms = self.logarithms(events, row, col);
        let strictly = self.triangle(row, col, false);
        let decay = self.b.exp(logarithms);
        self.b.times(decay, strictly)
    }

    /// The segments from each token to a later one, as one value.
    fn kept(&mut self, gates: &Gates, row: DimId, col: DimId) -> NodeId {
        let dims: Vec<DimId> = self.b.gate_dims(gates).into_iter().chain([row, col]).collect();
        let dims = self.b.canonical(dims);
        self.b.add(Op::Segment { gates: gates.clone(), row, col, diagonal: false }, dims)
    }

    fn segment(&mut self, events: &Events, row: DimId, col: DimId, diagonal: bool) -> NodeId {
        let later = self.later(events, row, col);
        if !diagonal {
            return later;
        }
        let one = self.b.constant(1.0);
        let same = self.within(events).unwrap_or(one);
        let same = self.b.diagonal(same, row, col);
        self.b.plus(later, same)
    }

    fn segment_grad(
        &mut self,
        weight: NodeId,
        gates: &Gates,
        events: &Events,
        (row, col): (DimId, DimId),
        diagonal: bool,
        event: usize,
    ) -> NodeId {
        let later = match self.keep_segments {
            false => self.later(events, row, col),
            true => self.kept(gates, row, col),
        };
        let weights = self.b.times(weight, later);
        let middle = self.middle(row);
        let from_rows = self.triangle(row, middle, event < events.to);
        let rows = self.b.contract(from_rows, weights, &[row]);
        let from_cols = self.triangle(middle, col, event >= events.from);
        let both = self.b.times(rows, from_cols);
        let across = self.b.sum(both, &[col]);
        let across = self.b.rename(across, middle, row);
        if !(diagonal && event >= events.from && event < events.to) {
            return across;
        }
        let Some(same) = self.within(events) else { return across };
        let weight = self.b.broadcast(weight, &[row, col]);
        let own = self.b.diagonal_part(weight, row, col);
        let own = self.b.times(own, same);
        self.b.plus(across, own)
    }

    /// Summed over the dimensions that a gradient does not have.
    fn reduced(&mut self, value: NodeId, dims: &[DimId]) -> NodeId {
        let over: Vec<DimId> = self.b.dims_of(value).iter().copied().filter(|dim| !dims.contains(dim)).collect();
        self.b.sum(value, &over)
    }
}
