//! Decays between the tokens of a chunk, the same for all elements of a row: tables from which any segment is a sum of
//! three numbers.
//!
//! Comes in: a segment whose events are one number a token. Goes out: tables in shared memory, and elements from them.
//! A segment is summed from what lies in it, never as a difference of running sums: within a block of sixteen tokens it
//! stands in a table of its own, across blocks it is the rest of the writer's block, the blocks between, and the
//! beginning of the reader's.

use super::Refusal;
use super::block::{Block, Fold, Home, Point};
use super::eval::Known;
use super::index::Linear;
use super::memory::Touch;
use super::shape::STRIP;
use crate::graph::ir::{DimId, GateKind, Gates, NodeId, Op, Unary};
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;

/// The tables of a segment.
#[derive(Clone, Debug)]
pub struct Segments {
    /// Everything is a sum of logarithms, else a product of factors.
    logs: bool,
    /// `[row]`: from the start of its block to the reader's clock.
    reader: Home,
    /// `[row]`: from the writer's clock to the end of its block.
    writer: Home,
    /// `[block of the reader, block of the writer]`: between them, where there may be any.
    between: Option<Home>,
    /// `[row, place of the writer in its block]`: within a block.
    within: Home,
}

impl Block<'_> {
    /// Tables for a segment.
    pub fn segment_tables(&mut self, x: NodeId) -> Result<(), Refusal> {
        let Op::Segment { gates, row, .. } = self.op(x) else { return Err(self.bug(x, "is no segment")) };
        let (n, row) = (self.size(*row), *row);
        if !n.is_multiple_of(STRIP) || n > 32 * self.warps.count() {
            return Err(Refusal::unsupported("a decay over such a chunk"));
        }
        // The tables of another segment of the same decay serve this one.
        let twin = self.segments.keys().copied().find(|other| match self.op(*other) {
            Op::Segment { gates: own, row: own_row, .. } => own == gates && *own_row == row,
            _ => false,
        });
        if let Some(twin) = twin {
            let tables = self.segments[&twin].clone();
            self.segments.insert(x, tables);
            return Ok(());
        }
        let logs = gates.events.iter().all(|gate| gate.kind == GateKind::Log);
        for gate in &gates.events {
            if self.dims(gate.value).iter().any(|d| *d != row) {
                return Err(Refusal::unsupported("a decay between tokens that differs along an axis"));
            }
            self.ready(gate.value)?;
            // Every thread reads many of them.
            if !self.homes.contains_key(&gate.value) {
                self.park_flat(gate.value)?;
            }
        }
        let tables = self.tables(gates, row, logs)?;
        self.segments.insert(x, tables);
        Ok(())
    }

    fn tables(&mut self, gates: &Gates, row: DimId, logs: bool) -> Result<Segments, Refusal> {
        let n = self.size(row);
        let blocks = n / STRIP;
        let threads = 32 * self.warps.count();
        let own = if n < threads {
            let last = self.int(n - 1);
            self.w.intrinsic("smin", &[self.thread, last], Ty::I32)
        } else {
            self.thread
        };
        let (four, fifteen) = (self.int(4), self.int(STRIP - 1));
        let block = self.w.op("lshr", own, four, Ty::I32);
        let place = self.w.op("and", own, fifteen, Ty::I32);
        let neutral = self.w.f32(if logs { 0.0 } else { 1.0 }, 0);
        let name = if logs { "fadd" } else { "fmul" };
        // All events of each token of the thread's block.
        let mut tokens = Vec::new();
        for k in 0..STRIP {
            let mut at = Linear::value(block, STRIP as i64);
            at.constant = k as i64;
            let point = Point::default().with(row, self.ix.of(at));
            tokens.push(self.events(gates, logs, &point, |_| true)?);
        }
        let here = Point::default().with(row, self.ix.of(Linear::value(own, 1)));
        let read = self.events(gates, logs, &here, |event| event < gates.to)?;
        let written = self.events(gates, logs, &here, |event| event >= gates.from)?;
        let (mut before, mut after) = (read, written);
        for (k, token) in tokens.iter().enumerate() {
            let k = self.int(k);
            let earlier = self.w.icmp("slt", k, place, Ty::I32);
            let factor = self.w.select(earlier, *token, neutral, Ty::F32);
            before = self.w.op(name, before, factor, Ty::F32);
            let later = self.w.icmp("sgt", k, place, Ty::I32);
            let factor = self.w.select(later, *token, neutral, Ty::F32);
            after = self.w.op(name, after, factor, Ty::F32);
        }
        let mut within = vec![neutral; STRIP];
        let mut running = read;
        for k in (0..STRIP).rev() {
            // The writer's own events after its clock, and everything up to the reader's.
            let at = {
                let mut at = Linear::value(block, STRIP as i64);
                at.constant = k as i64;
                Point::default().with(row, self.ix.of(at))
            };
            let rest = self.events(gates, logs, &at, |event| event >= gates.from)?;
            within[k] = self.w.op(name, running, rest, Ty::F32);
            let k_val = self.int(k);
            let earlier = self.w.icmp("slt", k_val, place, Ty::I32);
            let factor = self.w.select(earlier, tokens[k], neutral, Ty::F32);
            running = self.w.op(name, running, factor, Ty::F32);
        }
        let middle = match blocks {
            ..=2 => None,
            _ => Some(self.middle(gates, row, logs)?),
        };
        let table = |this: &mut Self, bytes: usize| {
            let region = this.memory.allocate(bytes, false);
            Home {
                region,
                dtype: chunkwise_abi::DType::F32,
                strides: Vec::new(),
                parts: (1, 0),
                fold: Fold::Sum,
                half: None,
            }
        };
        let asked = self.warps.padded_rows(n).max(self.warps.padded_cols(n));
        let asked_blocks = asked / STRIP;
        // Rows of a table within blocks start in different banks.
        let pitch = 4 * (STRIP + 2);
        let homes = Segments {
            logs,
            reader: table(self, 4 * asked),
            writer: table(self, 4 * asked),
            between: middle.is_some().then(|| {
                let pairs = (blocks * blocks).next_power_of_two();
                table(self, (4 * (asked_blocks + 1) * blocks + 4 * pairs).max(4 * asked_blocks * blocks))
            }),
            within: table(self, pitch * asked),
        };
        self.statement();
        let put = |this: &mut Self, home: &Home, bytes: Linear, value: Val| {
            let address = this.shared(home.region, &bytes);
            text::store(&mut this.w, value, address, "f32", 4);
        };
        let always = [&homes.reader, &homes.writer, &homes.within];
        let regions: Vec<_> = always.into_iter().chain(&homes.between).map(|home| home.region).collect();
        self.touch_all(&regions, Touch::Write);
        let rows = (n < threads).then(|| {
            let end = self.int(n);
            self.w.icmp("slt", self.thread, end, Ty::I32)
        });
        if let Some(rows) = rows {
            self.open_if(rows);
        }
        put(self, &homes.reader, Linear::value(own, 4), before);
        put(self, &homes.writer, Linear::value(own, 4), after);
        for (k, value) in within.into_iter().enumerate() {
            let mut bytes = Linear::value(own, pitch as i64);
            bytes.constant = 4 * k as i64;
            put(self, &homes.within, bytes, value);
        }
        if rows.is_some() {
            self.close_if();
        }
        if let (Some(home), Some((pair, middle))) = (&homes.between, middle) {
            let end = self.int(blocks * blocks);
            let first = self.w.icmp("slt", self.thread, end, Ty::I32);
            self.open_if(first);
            put(self, home, Linear::value(pair, 4), middle);
            self.close_if();
        }
        Ok(homes)
    }

    /// All events of the blocks between two, one pair a thread: the pair's number, and they.
    fn middle(&mut self, gates: &Gates, row: DimId, logs: bool) -> Result<(Val, Val), Refusal> {
        let blocks = self.size(row) / STRIP;
        let neutral = self.w.f32(if logs { 0.0 } else { 1.0 }, 0);
        let name = if logs { "fadd" } else { "fmul" };
        let (last, width) = (self.int(blocks * blocks - 1), self.int(blocks));
        let pair = self.w.intrinsic("smin", &[self.thread, last], Ty::I32);
        let reader = self.w.op("udiv", pair, width, Ty::I32);
        let writer = self.w.op("urem", pair, width, Ty::I32);
        let mut middle = neutral;
        for b in 1..blocks.saturating_sub(1) {
            let mut total = neutral;
            for k in 0..STRIP {
                let at = Point::default().with(row, self.fixed(STRIP * b + k));
                let token = self.events(gates, logs, &at, |_| true)?;
                total = self.w.op(name, total, token, Ty::F32);
            }
            let b = self.int(b);
            let (above, below) = (self.w.icmp("slt", writer, b, Ty::I32), self.w.icmp("slt", b, reader, Ty::I32));
            let both = self.both(Some(above), Some(below)).expect("two conditions");
            let total = self.w.select(both, total, neutral, Ty::F32);
            middle = self.w.op(name, middle, total, Ty::F32);
        }
        Ok((pair, middle))
    }

    /// Some of the events of a token, summed (or multiplied).
    fn events(
        &mut self,
        gates: &Gates,
        logs: bool,
        at: &Point,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Val, Refusal> {
        let mut total: Option<Val> = None;
        for (n, gate) in gates.events.iter().enumerate().filter(|(n, _)| wanted(*n)) {
            let _ = n;
            let value = self.gate(gate, logs, at)?;
            let name = if logs { "fadd" } else { "fmul" };
            total = Some(total.map_or(value, |total| self.w.op(name, total, value, Ty::F32)));
        }
        Ok(total.unwrap_or_else(|| self.w.f32(if logs { 0.0 } else { 1.0 }, 0)))
    }

    /// A segment from its tables.
    pub fn between(&mut self, x: NodeId, at: &Point) -> Result<Val, Refusal> {
        let Op::Segment { gates, row, col, diagonal } = self.op(x) else { return Err(self.bug(x, "is no segment")) };
        let (t, s) = (at.get(*row).expect("a position of each"), at.get(*col).expect("a position of each"));
        let zero = self.w.f32(0.0, 0);
        let visible = self.compare("slt", s, t);
        let own = match diagonal {
            false => Known::Never,
            true => self.compare("eq", s, t),
        };
        let tables = self.segments[&x].clone();
        let name = if tables.logs { "fadd" } else { "fmul" };
        let (strip, blocks) = (STRIP as i64, (self.size(*row) / STRIP) as i64);
        let (t_block, _) = self.ix.get(t).divide(strip);
        let (s_block, s_place) = self.ix.get(s).divide(strip);
        let table = |this: &mut Self, home: &Home, bytes: Linear| {
            this.touch(home.region, Touch::Read);
            this.word(home, &bytes)
        };
        let scaled = |linear: &Linear, factor: i64| {
            let mut scaled = Linear::default();
            scaled.add_scaled(linear, factor);
            scaled
        };
        let (t_linear, s_linear) = (self.ix.get(t).clone(), self.ix.get(s).clone());
        let (t_ix, s_ix) = (self.ix.of(t_block.clone()), self.ix.of(s_block.clone()));
        let same = self.compare("eq", t_ix, s_ix);
        let mut value = zero;
        if same != Known::Always {
            let reader = table(self, &tables.reader, scaled(&t_linear, 4));
            let writer = table(self, &tables.writer, scaled(&s_linear, 4));
            value = self.w.op(name, reader, writer, Ty::F32);
            if let Some(home) = &tables.between {
                let mut bytes = scaled(&t_block, 4 * blocks);
                bytes.add_scaled(&s_block, 4);
                let between = table(self, home, bytes);
                value = self.w.op(name, value, between, Ty::F32);
            }
        }
        if same != Known::Never {
            let mut bytes = scaled(&t_linear, 4 * (STRIP as i64 + 2));
            bytes.add_scaled(&s_place, 4);
            let within = table(self, &tables.within, bytes);
            value = self.choose(same, within, value);
        }
        if tables.logs {
            value = self.function(Unary::Exp, value);
        }
        value = self.choose(visible, value, zero);
        if own != Known::Never {
            let here = Point::default().with(*row, t);
            let logs = tables.logs;
            let (from, to) = (gates.from, gates.to);
            let mut factor = self.events(gates, logs, &here, |event| event >= from && event < to)?;
            if logs && from < to {
                factor = self.function(Unary::Exp, factor);
            } else if logs {
                factor = self.w.f32(1.0, 0);
            }
            value = self.choose(own, factor, value);
        }
        Ok(value)
    }
}
