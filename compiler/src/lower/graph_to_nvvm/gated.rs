//! A decay inside a sum, within a block of sixteen tokens, on the tensor cores and without a factor above one.
//!
//! Comes in: the gated trilinear form's derivatives ([`Op::Gated`]), whose decay is a sum of logarithms for each row and
//! column. Goes out: their elements.
//!
//! # Halving
//! Two different rows of a block differ in a highest bit h: the earlier lies in the lower and the later in the upper half
//! of the same 2h rows. Their segment is what follows the earlier up to the middle, times what precedes the later from
//! the middle on: one factor of each, both products of the decay's own factors. So the pairs of each h = 1, 2, 4, 8 are a
//! product of matrices, of upper rows times their factors with lower rows times theirs; together they are all pairs.
//! Each row has one factor for each h, whose logarithm is a sum over rows between it and the middle: a product with ones
//! ([`super::halves`]).
//!
//! Derivatives by other arguments than the weight are in [`super::gradients`].

use super::Refusal;
use super::block::{Block, Fold, Home, Point};
use super::halves::HALVES;
use super::index::{Linear, Step};
use super::memory::Touch;
use super::shape::{STRIP, extent};
use crate::graph::ir::{DimId, GateKind, GatedPart, NodeId, Op};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;

/// Registers that a form takes while it is computed, and those of all together.
const OF_EACH: usize = 32;
const OF_ALL: usize = 32;

impl Block<'_> {
    /// Makes a derivative of the gated form ready, and those that are computed along with it.
    pub fn gated(&mut self, x: NodeId) -> Result<(), Refusal> {
        let Op::Gated { part, gates, row, col, axes, .. } = self.op(x) else {
            return Err(self.bug(x, "is no gated form"));
        };
        let [axis] = axes[..] else { return Err(Refusal::unsupported("a decay inside a sum over several axes")) };
        if self.size(*row) != STRIP || self.size(*col) != STRIP {
            return Err(Refusal::unsupported("a decay inside a sum over other blocks"));
        }
        if gates.events.iter().any(|gate| gate.kind != GateKind::Log) {
            return Err(Refusal::unsupported("a decay inside a sum that is given by its factors"));
        }
        for gate in &gates.events {
            self.ready(gate.value)?;
        }
        match part {
            GatedPart::Weight => self.gated_weights(x, axis),
            GatedPart::Rows | GatedPart::Cols | GatedPart::Gate(_) => self.gated_gradients(x, axis),
        }
    }

    /// Whether a value can be had without products of others.
    pub fn is_plain(&self, x: NodeId) -> bool {
        if self.is_at_hand(x) {
            return true;
        }
        match self.op(x) {
            Op::Const(_) => true,
            Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Guard(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::StopGradient(_) => self.op(x).operands().into_iter().all(|operand| self.is_plain(operand)),
            _ => false,
        }
    }

    /// Sums over an axis of rows times columns times their segments, of all forms with this decay at once.
    fn gated_weights(&mut self, x: NodeId, axis: DimId) -> Result<(), Refusal> {
        let Op::Gated { gates, row, col, rows: Some(own_rows), cols: Some(own_cols), .. } = self.op(x) else {
            return Err(self.bug(x, "lacks an operand"));
        };
        let mut forms = vec![(x, *own_rows, *own_cols)];
        for n in 0..self.graph.nodes.len() {
            let other = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            if let Op::Gated { part: GatedPart::Weight, gates: g, row: r, col: c, rows: Some(a), cols: Some(b), .. } =
                self.op(other)
                && (g, r, c) == (gates, row, col)
                && other != x
                && self.is_plain(*a)
                && self.is_plain(*b)
            {
                forms.push((other, *a, *b));
            }
        }
        for (_, a, b) in &forms {
            self.ready(*a)?;
            self.ready(*b)?;
        }
        let shape = self.matrix(self.dims(*own_rows))?;
        let of_columns = self.matrix(self.dims(*own_cols))?;
        if shape.rows.len() != 2 || shape.cols != [axis] || !shape.outer.is_empty() || of_columns.rows.len() != 2 {
            return Err(Refusal::unsupported("a decay inside a sum over blocks that lie otherwise"));
        }
        let spans = self.spans(gates, &shape)?;
        self.statement();
        self.lives.works(OF_ALL + OF_EACH * forms.len());
        let nowhere = Point::default();
        let elements = self.elements(&shape, &nowhere);
        let there = self.elements(&of_columns, &nowhere);
        let n_cols = extent(self.graph, &shape.cols);
        let (strips, eights) = (self.warps.strips(extent(self.graph, &shape.rows)), self.warps.eights(n_cols));
        let (zero, none) = (self.w.f32(0.0, 0), self.int(0));
        let pitch = 4 * (STRIP + 2);
        let rows = self.warps.padded_rows(extent(self.graph, &shape.rows));
        let mut results: Vec<Vec<(Linear, [Val; 2])>> = vec![Vec::new(); forms.len()];
        for strip in 0..strips {
            // By form, half and eight of the block's columns.
            let mut sums = vec![[[[zero; 4]; 2]; HALVES.len()]; forms.len()];
            for first in (0..eights).step_by(2) {
                let together = if eights - first >= 2 { 2 } else { 1 };
                let own: Vec<usize> = (0..4 * together).map(|n| 4 * (strip * eights + first) + n).collect();
                let logs = self.logarithms(&spans, &shape, (strip, first), together)?;
                let mut values: Vec<Vec<(Val, Val)>> = vec![Vec::new(); forms.len()];
                for &n in &own {
                    let real = self.real(&shape, &elements[n].at);
                    for (form, (_, a, b)) in forms.iter().enumerate() {
                        let a = self.eval(*a, &elements[n].at)?;
                        let b = self.eval(*b, &there[n].at)?;
                        let pair = (self.or_zero(real, a), self.or_zero(real, b));
                        values[form].push(pair);
                    }
                }
                let mut factors = Vec::new();
                for (level, &half) in HALVES.iter().enumerate() {
                    if level % 2 == 0 {
                        let own = &elements[own[0]..own[0] + own.len()];
                        factors.extend(self.half_factors(&spans, &shape, &logs, own, [half, HALVES[level + 1]]));
                    }
                    for (form, values) in values.iter().enumerate() {
                        let mut decayed = Vec::new();
                        for (n, (a, b)) in values.iter().enumerate() {
                            let value = self.of_half(half, &elements[own[n]], *a, *b);
                            decayed.push(self.w.op("fmul", value, factors[level][n], Ty::F32));
                        }
                        // Words lie by eight, then half of the strip. Later rows are multiplied with earlier ones, and
                        // all others with them; what is no pair of this half is left out below.
                        let words = self.pairs(&decayed);
                        let word = |eight: usize, half: usize| words.get(2 * eight + half).copied().unwrap_or(none);
                        let a = [word(0, 0), word(0, 1), word(1, 0), word(1, 1)];
                        for (side, sums) in sums[form][level].iter_mut().enumerate() {
                            // Later rows are never columns of the last half.
                            if half == 8 && side == 1 {
                                continue;
                            }
                            let b = [word(0, side), word(1, side)];
                            self.mma(&a, &b, sums);
                        }
                    }
                }
            }
            for (form, sums) in sums.iter().enumerate() {
                for (side, upper) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let mut pair = [zero; 2];
                    for (odd, value) in pair.iter_mut().enumerate() {
                        for (level, &half) in HALVES.iter().enumerate() {
                            let sum = sums[level][side][2 * upper + odd];
                            let same = if half == 8 {
                                if side == 1 || upper == 0 {
                                    continue;
                                }
                                None
                            } else if side != upper {
                                continue;
                            } else {
                                Some(self.is_pair(half, odd))
                            };
                            // A pair differs in one highest bit.
                            *value = match same {
                                None => sum,
                                Some(same) => self.w.select(same, sum, *value, Ty::F32),
                            };
                        }
                    }
                    let mut bytes = Linear::default();
                    bytes.add_scaled(&self.row(strip, upper), pitch as i64);
                    bytes.add(self.quad, 8);
                    bytes.constant += 32 * side as i64;
                    results[form].push((bytes, pair));
                }
            }
        }
        let part = rows * pitch;
        let block = shape.rows[0];
        self.statement();
        for ((form, ..), stores) in forms.iter().zip(results) {
            let region = self.memory.allocate(part * self.warps.across, false);
            self.touch(region, Touch::Write);
            for (mut bytes, pair) in stores {
                bytes.add(self.across, part as i64);
                let address = self.shared(region, &bytes);
                let both = text::vector(&mut self.w, &pair, Elem::F32);
                text::store(&mut self.w, both, address, "vector<2xf32>", 8);
            }
            let Op::Gated { row, col, .. } = self.op(*form) else { continue };
            let strides = [(*col, 4), (*row, pitch), (block, STRIP * pitch)].map(|(dim, step)| (dim, Step::even(step)));
            let home = Home {
                region,
                dtype: DType::F32,
                strides: strides.to_vec(),
                parts: (self.warps.across, part),
                fold: Fold::Sum,
                half: None,
            };
            self.homes.insert(*form, home);
            self.visited.insert(*form);
        }
        Ok(())
    }
}
