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
//! Each row has one factor for each h, and running sums within h rows give its logarithm: by exchanges between lanes,
//! since a lane has rows g and g + 8.
//!
//! The gradient of a logarithm is the same backwards: what a factor's logarithm was summed from gets its part.

use super::Refusal;
use super::block::{Block, Element, Fold, Home, Point};
use super::index::Linear;
use super::memory::Touch;
use super::shape::{STRIP, Shape, extent};
use crate::graph::ir::{DimId, GateKind, GatedPart, Gates, NodeId, Op};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;

/// Halves of a block: rows whose bit is set are the later ones.
const HALVES: [usize; 4] = [1, 2, 4, 8];

/// The running sums of the logarithms of one element's column, within so many rows.
#[derive(Clone, Copy)]
struct Running {
    /// Before the row.
    before: Val,
    /// After it.
    after: Val,
    /// All of them.
    total: Val,
    /// The row's own, up to the reader's clock, and from the writer's on.
    read: Val,
    written: Val,
}

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
    fn is_plain(&self, x: NodeId) -> bool {
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
        self.statement();
        let nowhere = Point::default();
        let elements = self.elements(&shape, &nowhere);
        let there = self.elements(&of_columns, &nowhere);
        let n_cols = extent(self.graph, &shape.cols);
        let (strips, eights) = (self.warps.strips(extent(self.graph, &shape.rows)), self.warps.eights(n_cols));
        let zero = self.w.f32(0.0, 0);
        let pitch = 4 * (STRIP + 2);
        let rows = self.warps.padded_rows(extent(self.graph, &shape.rows));
        let mut results: Vec<Vec<(Linear, [Val; 2])>> = vec![Vec::new(); forms.len()];
        for strip in 0..strips {
            // By form, half and eight of the block's columns.
            let mut sums = vec![[[[zero; 4]; 2]; HALVES.len()]; forms.len()];
            for first in (0..eights).step_by(2) {
                let together = if eights - first >= 2 { 2 } else { 1 };
                let own: Vec<usize> = (0..4 * together).map(|n| 4 * (strip * eights + first) + n).collect();
                let mut running = Vec::new();
                let mut values: Vec<Vec<(Val, Val)>> = vec![Vec::new(); forms.len()];
                for &n in &own {
                    running.push(self.running(gates, &shape, &elements[n].at)?);
                    for (form, (_, a, b)) in forms.iter().enumerate() {
                        let real = self.real(&shape, &elements[n].at);
                        let a = self.eval(*a, &elements[n].at)?;
                        let b = self.eval(*b, &there[n].at)?;
                        let inside = |this: &mut Self, value: Val| match real {
                            None => value,
                            Some(real) => this.w.select(real, value, zero, Ty::F32),
                        };
                        let pair = (inside(self, a), inside(self, b));
                        values[form].push(pair);
                    }
                }
                for (level, &half) in HALVES.iter().enumerate() {
                    let factors: Vec<Val> =
                        (0..own.len()).map(|n| self.factor(&running[n], half, &elements[own[n]])).collect();
                    for (form, values) in values.iter().enumerate() {
                        let mut upper = Vec::new();
                        let mut lower = Vec::new();
                        for (n, (a, b)) in values.iter().enumerate() {
                            let element = &elements[own[n]];
                            let (a, b) = (
                                self.w.op("fmul", *a, factors[n], Ty::F32),
                                self.w.op("fmul", *b, factors[n], Ty::F32),
                            );
                            upper.push(self.of_half(half, element, a, zero));
                            lower.push(self.of_half(half, element, zero, b));
                        }
                        let upper: Vec<Val> = self.pairs(&upper);
                        let lower: Vec<Val> = self.pairs(&lower);
                        let none = self.int(0);
                        // Words lie by eight, then half of the strip.
                        let word = |words: &[Val], eight: usize, half: usize| match words.get(2 * eight + half) {
                            Some(word) => *word,
                            None => none,
                        };
                        let a = [word(&upper, 0, 0), word(&upper, 0, 1), word(&upper, 1, 0), word(&upper, 1, 1)];
                        for (side, sums) in sums[form][level].iter_mut().enumerate() {
                            // Later rows are never columns of the last half.
                            if half == 8 && side == 1 {
                                continue;
                            }
                            let b = [word(&lower, 0, side), word(&lower, 1, side)];
                            self.mma(&a, &b, sums);
                        }
                    }
                    for (n, running) in running.iter_mut().enumerate() {
                        let other = match half {
                            8 => continue,
                            _ => self.exchanged(running.total, 4 * half),
                        };
                        self.doubled(running, other, half, &elements[own[n]]);
                    }
                }
            }
            // Pairs of each half lie in the same 2h rows.
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
                                Some(self.same_group(2 * half, odd))
                            };
                            let sum = match same {
                                None => sum,
                                Some(same) => self.w.select(same, sum, zero, Ty::F32),
                            };
                            *value = self.w.op("fadd", *value, sum, Ty::F32);
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
            let strides = vec![(*col, 4), (*row, pitch), (block, STRIP * pitch)];
            let home = Home {
                region,
                dtype: DType::F32,
                strides,
                parts: (self.warps.across, part),
                fold: Fold::Sum,
                half: None,
            };
            self.homes.insert(*form, home);
            self.visited.insert(*form);
        }
        Ok(())
    }

    /// Sums over rows or columns of a weight times the others, and the gradients of the logarithms.
    fn gated_gradients(&mut self, x: NodeId, axis: DimId) -> Result<(), Refusal> {
        let Op::Gated { gates, row, col, weight: Some(weight), .. } = self.op(x) else {
            return Err(self.bug(x, "lacks its weight"));
        };
        // Everything of this weight and decay; its operands may wait for nothing that comes of it.
        let (mut rows, mut cols) = (None, None);
        let mut forms = Vec::new();
        for n in 0..self.graph.nodes.len() {
            let other = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            let Op::Gated { part, weight: Some(w), rows: a, cols: b, gates: g, row: r, col: c, .. } = self.op(other)
            else {
                continue;
            };
            if (w, r, c) != (weight, row, col) || g.events != gates.events || (g.from, g.to) != (gates.from, gates.to) {
                continue;
            }
            if other != x && !a.iter().chain(b).all(|operand| self.is_plain(*operand)) {
                continue;
            }
            if a.is_some_and(|a| rows.is_some_and(|known| known != a))
                || b.is_some_and(|b| cols.is_some_and(|known| known != b))
            {
                continue;
            }
            rows = rows.or(*a);
            cols = cols.or(*b);
            forms.push((other, *part));
        }
        for operand in [rows, cols].into_iter().flatten() {
            self.ready(operand)?;
        }
        self.ready(*weight)?;
        let Some(home) = self.homes.get(weight).cloned() else { return Err(Refusal::Park(*weight)) };
        let model = rows.or(cols).ok_or_else(|| self.bug(x, "lacks both operands"))?;
        let shape = self.matrix(self.dims(model))?;
        if shape.rows.len() != 2 || shape.cols != [axis] || !shape.outer.is_empty() {
            return Err(Refusal::unsupported("a decay inside a sum over blocks that lie otherwise"));
        }
        let block = shape.rows[0];
        let by_row = Shape { rows: vec![block, *row], ..shape.clone() };
        let by_col = Shape { rows: vec![block, *col], ..shape.clone() };
        self.statement();
        let nowhere = Point::default();
        let (elements, there) = (self.elements(&by_row, &nowhere), self.elements(&by_col, &nowhere));
        let n_cols = extent(self.graph, &shape.cols);
        let (strips, eights) = (self.warps.strips(extent(self.graph, &shape.rows)), self.warps.eights(n_cols));
        let zero = self.w.f32(0.0, 0);
        for strip in 0..strips {
            let weights = self.symmetric(&home, block, *row, *col, strip)?;
            for eight in 0..eights {
                let own: Vec<usize> = (0..4).map(|n| 4 * (strip * eights + eight) + n).collect();
                let mut running = Vec::new();
                let (mut a, mut b) = (Vec::new(), Vec::new());
                for &n in &own {
                    running.push(self.running(gates, &by_row, &elements[n].at)?);
                    let real = self.real(&by_row, &elements[n].at);
                    let operand = |this: &mut Self, node: Option<NodeId>, at: &Point| match node {
                        None => Ok(zero),
                        Some(node) => {
                            let value = this.eval(node, at)?;
                            Ok(match real {
                                None => value,
                                Some(real) => this.w.select(real, value, zero, Ty::F32),
                            })
                        }
                    };
                    a.push(operand(self, rows, &elements[n].at)?);
                    b.push(operand(self, cols, &there[n].at)?);
                }
                let (mut of_rows, mut of_cols) = (vec![zero; 4], vec![zero; 4]);
                // What each half's logarithms get.
                let mut shares: Vec<Vec<Val>> = Vec::new();
                for (level, &half) in HALVES.iter().enumerate() {
                    let factors: Vec<Val> = (0..4).map(|n| self.factor(&running[n], half, &elements[own[n]])).collect();
                    let decayed: Vec<Val> = (0..4)
                        .map(|n| {
                            let value = self.of_half(half, &elements[own[n]], a[n], b[n]);
                            self.w.op("fmul", value, factors[n], Ty::F32)
                        })
                        .collect();
                    let words = self.pairs(&decayed);
                    let turned = [self.turned(words[0]), self.turned(words[1])];
                    let mut sums = [zero; 4];
                    self.mma(&weights[level], &turned, &mut sums);
                    let mut share = Vec::new();
                    for n in 0..4 {
                        let decayed_sum = self.w.op("fmul", sums[n], factors[n], Ty::F32);
                        let upper = self.of_half(half, &elements[own[n]], decayed_sum, zero);
                        let lower = self.of_half(half, &elements[own[n]], zero, decayed_sum);
                        of_rows[n] = self.w.op("fadd", of_rows[n], upper, Ty::F32);
                        of_cols[n] = self.w.op("fadd", of_cols[n], lower, Ty::F32);
                        share.push(self.w.op("fmul", decayed[n], sums[n], Ty::F32));
                    }
                    shares.push(share);
                    if half < 8 {
                        for (n, running) in running.iter_mut().enumerate() {
                            let other = self.exchanged(running.total, 4 * half);
                            self.doubled(running, other, half, &elements[own[n]]);
                        }
                    }
                }
                let wants_gates = forms.iter().any(|(_, part)| matches!(part, GatedPart::Gate(_)));
                let logs = if wants_gates { self.backwards(&shares, &elements, &own) } else { Vec::new() };
                for (form, part) in &forms {
                    for (n, &at) in own.iter().enumerate() {
                        let (value, point) = match part {
                            GatedPart::Rows => (of_rows[n], &elements[at].at),
                            GatedPart::Cols => (of_cols[n], &there[at].at),
                            GatedPart::Gate(event) => {
                                let [token, read, written] = logs[n];
                                let mut value = token;
                                if *event < gates.to {
                                    value = self.w.op("fadd", value, read, Ty::F32);
                                }
                                if *event >= gates.from {
                                    value = self.w.op("fadd", value, written, Ty::F32);
                                }
                                (value, &elements[at].at)
                            }
                            GatedPart::Weight => continue,
                        };
                        let key = self.key(*form, point)?;
                        self.values.insert(key, value);
                    }
                }
            }
        }
        for (form, _) in forms {
            self.held.insert(form);
            self.visited.insert(form);
        }
        Ok(())
    }

    /// The logarithms of an element's column in its row, for the hardware's power of two.
    ///
    /// Beyond the last column they are zero: what lies there in shared memory may be no number, and zero times that is none.
    fn running(&mut self, gates: &Gates, shape: &Shape, at: &Point) -> Result<Running, Refusal> {
        let real = self.real(shape, at);
        let zero = self.w.f32(0.0, 0);
        let log2_e = self.w.f32(std::f32::consts::LOG2_E, 0);
        let (mut total, mut read, mut written) = (None, None, None);
        for (event, gate) in gates.events.iter().enumerate() {
            let value = self.eval(gate.value, at)?;
            let mut value = self.w.op("fmul", value, log2_e, Ty::F32);
            if let Some(real) = real {
                value = self.w.select(real, value, zero, Ty::F32);
            }
            let add = |this: &mut Self, sum: &mut Option<Val>| {
                *sum = Some(sum.map_or(value, |sum| this.w.op("fadd", sum, value, Ty::F32)));
            };
            add(self, &mut total);
            if event < gates.to {
                add(self, &mut read);
            }
            if event >= gates.from {
                add(self, &mut written);
            }
        }
        Ok(Running {
            before: zero,
            after: zero,
            total: total.unwrap_or(zero),
            read: read.unwrap_or(zero),
            written: written.unwrap_or(zero),
        })
    }

    /// A row's factor of one half.
    fn factor(&mut self, running: &Running, half: usize, element: &Element) -> Val {
        let later = self.w.op("fadd", running.before, running.read, Ty::F32);
        let earlier = self.w.op("fadd", running.after, running.written, Ty::F32);
        let log = self.of_half(half, element, later, earlier);
        text::intrinsic(&mut self.w, "llvm.nvvm.ex2.approx.ftz.f", &[(log, Ty::F32)], "f32")
    }

    /// Running sums within twice as many rows.
    fn doubled(&mut self, running: &mut Running, other: Val, half: usize, element: &Element) {
        let zero = self.w.f32(0.0, 0);
        let (before, after) = (self.of_half(half, element, other, zero), self.of_half(half, element, zero, other));
        running.before = self.w.op("fadd", running.before, before, Ty::F32);
        running.after = self.w.op("fadd", running.after, after, Ty::F32);
        running.total = self.w.op("fadd", running.total, other, Ty::F32);
    }

    /// One value for the later rows of a half, another for the earlier ones.
    fn of_half(&mut self, half: usize, element: &Element, later: Val, earlier: Val) -> Val {
        if half == 8 {
            return if element.half == 1 { later } else { earlier };
        }
        let is_later = self.is_later(half);
        self.w.select(is_later, later, earlier, Ty::F32)
    }

    /// Whether a lane's rows are the later ones of a half below eight.
    fn is_later(&mut self, half: usize) -> Val {
        let (bit, zero) = (self.int(half), self.int(0));
        let group = self.group;
        let bit = self.w.op("and", group, bit, Ty::I32);
        self.w.icmp("ne", bit, zero, Ty::I32)
    }

    /// Whether a lane's row and column lie in the same so many of eight.
    fn same_group(&mut self, size: usize, odd: usize) -> Val {
        let one = self.int(1);
        let (group, quad) = (self.group, self.quad);
        let col = self.w.op("shl", quad, one, Ty::I32);
        let odd = self.int(odd);
        let col = self.w.op("add", col, odd, Ty::I32);
        let differ = self.w.op("xor", group, col, Ty::I32);
        let size = self.int(size);
        self.w.icmp("ult", differ, size, Ty::I32)
    }

    /// Two numbers a word, in bfloat16.
    fn pairs(&mut self, numbers: &[Val]) -> Vec<Val> {
        numbers.chunks(2).map(|pair| text::pack_bf16(&mut self.w, pair[0], pair[1])).collect()
    }

    /// An 8 × 8 matrix transposed across the warp.
    fn turned(&mut self, word: Val) -> Val {
        self.w.raw_value(format_args!(
            "llvm.inline_asm has_side_effects \"movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;\", \"=r,r\" {word} : (i32) -> i32"
        ))
    }

    /// For each half, the weights of its pairs, both ways: row with column and column with row.
    fn symmetric(
        &mut self,
        home: &Home,
        block: DimId,
        row: DimId,
        col: DimId,
        strip: usize,
    ) -> Result<[[Val; 4]; 4], Refusal> {
        let mut at = Linear::value(self.down, 1);
        at.constant = (self.warps.down * strip) as i64;
        let block = (block, self.ix.of(at));
        let zero = self.w.f32(0.0, 0);
        let mut numbers: [Vec<Val>; 4] = Default::default();
        for ahead in [0i64, 8] {
            for half in [0i64, 8] {
                for odd in [0i64, 1] {
                    let mut i = Linear::value(self.group, 1);
                    i.constant = half;
                    let mut k = Linear::value(self.quad, 2);
                    k.constant = ahead + odd;
                    let (i_ix, k_ix) = (self.ix.of(i.clone()), self.ix.of(k.clone()));
                    let straight = self.load(home, &Point(vec![block, (row, i_ix), (col, k_ix)]))?;
                    let turned = self.load(home, &Point(vec![block, (row, k_ix), (col, i_ix)]))?;
                    let (i, k) = (self.number(&i), self.number(&k));
                    let below = self.w.icmp("slt", k, i, Ty::I32);
                    let value = self.w.select(below, straight, turned, Ty::F32);
                    let differ = self.w.op("xor", i, k, Ty::I32);
                    for (level, &half) in HALVES.iter().enumerate() {
                        let (half, end) = (self.int(half), self.int(2 * half));
                        let (far, near) =
                            (self.w.icmp("uge", differ, half, Ty::I32), self.w.icmp("ult", differ, end, Ty::I32));
                        let both = self.both(Some(far), Some(near)).expect("two conditions");
                        let value = self.w.select(both, value, zero, Ty::F32);
                        numbers[level].push(value);
                    }
                }
            }
        }
        let mut words = [[zero; 4]; 4];
        for (level, numbers) in numbers.iter().enumerate() {
            let pairs = self.pairs(numbers);
            words[level].copy_from_slice(&pairs);
        }
        Ok(words)
    }

    /// What the logarithm of each row's tokens gets of every factor it is in: of whole rows, of the reader's own part and
    /// of the writer's.
    fn backwards(&mut self, shares: &[Vec<Val>], elements: &[Element], own: &[usize]) -> Vec<[Val; 3]> {
        let zero = self.w.f32(0.0, 0);
        let (mut before, mut after, mut total) = (vec![zero; 4], vec![zero; 4], vec![zero; 4]);
        let (mut read, mut written) = (vec![zero; 4], vec![zero; 4]);
        for (level, &half) in HALVES.iter().enumerate().rev() {
            if half < 8 {
                for n in 0..4 {
                    // The neighbour's total was added to one of the two, and to the total.
                    let of_other = self.of_half(half, &elements[own[n]], before[n], after[n]);
                    let of_other = self.w.op("fadd", of_other, total[n], Ty::F32);
                    let got = self.exchanged(of_other, 4 * half);
                    total[n] = self.w.op("fadd", total[n], got, Ty::F32);
                }
            }
            for n in 0..4 {
                let share = shares[level][n];
                let later = self.of_half(half, &elements[own[n]], share, zero);
                let earlier = self.of_half(half, &elements[own[n]], zero, share);
                for (sum, value) in
                    [(&mut before, later), (&mut after, earlier), (&mut read, later), (&mut written, earlier)]
                {
                    sum[n] = self.w.op("fadd", sum[n], value, Ty::F32);
                }
            }
        }
        (0..4).map(|n| [total[n], read[n], written[n]]).collect()
    }
}
