//! Decays between the tokens of a chunk, the same for all elements of a row: tables from which any segment is a sum of
//! three numbers, and any boundary of two.
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
use crate::graph::ir::{DimId, GateKind, Gates, NodeId, Op, Side, Unary};
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;

/// Bytes from row to row of a table within blocks: they start in different banks.
const PITCH: usize = 4 * (STRIP + 2);

/// The tables of a decay.
#[derive(Clone, Debug)]
pub struct Segments {
    /// What decays, and along which rows.
    gates: Gates,
    row: DimId,
    /// Everything is a sum of logarithms, else a product of factors.
    logs: bool,
    /// `[row]`: from the start of its block to the reader's clock.
    reader: Home,
    /// `[row]`: from the writer's clock to the end of its block.
    writer: Home,
    /// `[block of the reader, block of the writer + 1]`: the blocks between them. The reader may be past the last block,
    /// and the writer before the first.
    between: Home,
    /// `[row, place of the writer in its block]`: within a block.
    within: Home,
}

/// Which clocks of a decay matter to who asks for its tables.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    reader: bool,
    writer: bool,
}

/// Threads that each have a number of a table.
struct Rows {
    /// The thread's number among them, or the last.
    own: Val,
    /// Whether it is one of them; none if all are.
    is_one: Option<Val>,
}

impl Block<'_> {
    /// Tables for a segment.
    pub fn segment_tables(&mut self, x: NodeId) -> Result<(), Refusal> {
        let Op::Segment { gates, row, .. } = self.op(x) else { return Err(self.bug(x, "is no segment")) };
        self.tables_for(x, gates, *row, Clocks { reader: true, writer: true })
    }

    /// Tables for a boundary.
    pub fn boundary_tables(&mut self, x: NodeId) -> Result<(), Refusal> {
        let Op::Boundary { side, gates, row } = self.op(x) else { return Err(self.bug(x, "is no boundary")) };
        let clocks = Clocks { reader: *side == Side::Prefix, writer: *side == Side::Suffix };
        self.tables_for(x, gates, *row, clocks)
    }

    fn tables_for(&mut self, x: NodeId, gates: &Gates, row: DimId, clocks: Clocks) -> Result<(), Refusal> {
        let n = self.size(row);
        if !n.is_multiple_of(STRIP) || n > 32 * self.warps.count() {
            return Err(Refusal::unsupported("a decay over such a chunk"));
        }
        // The tables of the same decay serve all who ask for it.
        let fits = |own: &Gates| {
            let reader = !clocks.reader || own.to == gates.to;
            own.events == gates.events && reader && (!clocks.writer || own.from == gates.from)
        };
        let twin = self.segments.values().find(|tables| tables.row == row && fits(&tables.gates)).cloned();
        if let Some(tables) = twin {
            self.segments.insert(x, tables);
            return Ok(());
        }
        // So clocks that do not matter here are those of a segment, if there is one.
        let gates = self
            .graph
            .nodes
            .iter()
            .find_map(|node| match &node.op {
                Op::Segment { gates: own, row: own_row, .. } if *own_row == row && fits(own) => Some(own),
                _ => None,
            })
            .unwrap_or(gates);
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

    /// Threads from one on, as many as there are numbers; from the first on, if there are not enough.
    fn rows_from(&mut self, first: usize, count: usize) -> Rows {
        let threads = 32 * self.warps.count();
        let first = if first + count <= threads { first } else { 0 };
        let (start, last, end) = (self.int(first), self.int(count - 1), self.int(count));
        let from_there = self.w.op("sub", self.thread, start, Ty::I32);
        Rows {
            own: self.w.intrinsic("umin", &[from_there, last], Ty::I32),
            is_one: (count < threads).then(|| self.w.icmp("ult", from_there, end, Ty::I32)),
        }
    }

    fn tables(&mut self, gates: &Gates, row: DimId, logs: bool) -> Result<Segments, Refusal> {
        let n = self.size(row);
        let blocks = n / STRIP;
        let (four, fifteen) = (self.int(4), self.int(STRIP - 1));
        let neutral = self.w.f32(if logs { 0.0 } else { 1.0 }, 0);
        let name = if logs { "fadd" } else { "fmul" };
        // Three kinds of numbers, each by threads of its own where there are as many.
        let within_rows = self.rows_from(0, n);
        let block = self.w.op("lshr", within_rows.own, four, Ty::I32);
        let place = self.w.op("and", within_rows.own, fifteen, Ty::I32);
        let here = Point::default().with(row, self.ix.of(Linear::value(within_rows.own, 1)));
        let mut within = vec![neutral; STRIP];
        let mut running = self.events(gates, logs, &here, |event| event < gates.to)?;
        for k in (0..STRIP).rev() {
            // The writer's own events after its clock, and everything up to the reader's.
            let at = self.token_of(row, block, k);
            let rest = self.events(gates, logs, &at, |event| event >= gates.from)?;
            within[k] = self.w.op(name, running, rest, Ty::F32);
            let token = self.events(gates, logs, &at, |_| true)?;
            let k_val = self.int(k);
            let earlier = self.w.icmp("slt", k_val, place, Ty::I32);
            let factor = self.w.select(earlier, token, neutral, Ty::F32);
            running = self.w.op(name, running, factor, Ty::F32);
        }
        let side_rows = self.rows_from(n, n);
        let block = self.w.op("lshr", side_rows.own, four, Ty::I32);
        let place = self.w.op("and", side_rows.own, fifteen, Ty::I32);
        let here = Point::default().with(row, self.ix.of(Linear::value(side_rows.own, 1)));
        let mut before = self.events(gates, logs, &here, |event| event < gates.to)?;
        let mut after = self.events(gates, logs, &here, |event| event >= gates.from)?;
        for k in 0..STRIP {
            let at = self.token_of(row, block, k);
            let token = self.events(gates, logs, &at, |_| true)?;
            let k = self.int(k);
            let earlier = self.w.icmp("slt", k, place, Ty::I32);
            let factor = self.w.select(earlier, token, neutral, Ty::F32);
            before = self.w.op(name, before, factor, Ty::F32);
            let later = self.w.icmp("sgt", k, place, Ty::I32);
            let factor = self.w.select(later, token, neutral, Ty::F32);
            after = self.w.op(name, after, factor, Ty::F32);
        }
        let pairs = (blocks + 1) * (blocks + 1);
        let pair_rows = self.rows_from(2 * n, pairs);
        let middle = self.middle(gates, row, logs, pair_rows.own)?;
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
        let asked_blocks = (asked / STRIP).max(blocks);
        let tables = Segments {
            gates: gates.clone(),
            row,
            logs,
            reader: table(self, 4 * asked),
            writer: table(self, 4 * asked),
            // Who asks beyond the last block reads something.
            between: table(self, 4 * ((asked_blocks + 1) * (blocks + 1) + asked_blocks + 2)),
            within: table(self, PITCH * asked),
        };
        self.statement();
        let put = |this: &mut Self, home: &Home, bytes: Linear, value: Val| {
            let address = this.shared(home.region, &bytes);
            text::store(&mut this.w, value, address, "f32", 4);
        };
        let regions = [&tables.reader, &tables.writer, &tables.between, &tables.within].map(|home| home.region);
        self.touch_all(&regions, Touch::Write);
        let branch = |this: &mut Self, rows: &Rows, numbers: &[(&Home, Linear, Val)]| {
            if let Some(is_one) = rows.is_one {
                this.open_if(is_one);
            }
            for (home, bytes, value) in numbers {
                put(this, home, bytes.clone(), *value);
            }
            if rows.is_one.is_some() {
                this.close_if();
            }
        };
        let own = Linear::value(side_rows.own, 4);
        branch(self, &side_rows, &[(&tables.reader, own.clone(), before), (&tables.writer, own, after)]);
        let within: Vec<(&Home, Linear, Val)> = within
            .into_iter()
            .enumerate()
            .map(|(k, value)| {
                let mut bytes = Linear::value(within_rows.own, PITCH as i64);
                bytes.constant = 4 * k as i64;
                (&tables.within, bytes, value)
            })
            .collect();
        branch(self, &within_rows, &within);
        branch(self, &pair_rows, &[(&tables.between, Linear::value(pair_rows.own, 4), middle)]);
        Ok(tables)
    }

    /// Token `k` of a block.
    fn token_of(&mut self, row: DimId, block: Val, k: usize) -> Point {
        let mut at = Linear::value(block, STRIP as i64);
        at.constant = k as i64;
        Point::default().with(row, self.ix.of(at))
    }

    /// All events of the blocks between two, as [`Segments::between`] counts them.
    fn middle(&mut self, gates: &Gates, row: DimId, logs: bool, pair: Val) -> Result<Val, Refusal> {
        let blocks = self.size(row) / STRIP;
        let neutral = self.w.f32(if logs { 0.0 } else { 1.0 }, 0);
        let name = if logs { "fadd" } else { "fmul" };
        let width = self.int(blocks + 1);
        let reader = self.w.op("udiv", pair, width, Ty::I32);
        let writer = self.w.op("urem", pair, width, Ty::I32);
        let mut middle = neutral;
        for b in 0..blocks {
            let mut total = neutral;
            for k in 0..STRIP {
                let at = Point::default().with(row, self.fixed(STRIP * b + k));
                let token = self.events(gates, logs, &at, |_| true)?;
                total = self.w.op(name, total, token, Ty::F32);
            }
            let b = self.int(b);
            let (above, below) = (self.w.icmp("sle", writer, b, Ty::I32), self.w.icmp("slt", b, reader, Ty::I32));
            let both = self.both(Some(above), Some(below)).expect("two conditions");
            let total = self.w.select(both, total, neutral, Ty::F32);
            middle = self.w.op(name, middle, total, Ty::F32);
        }
        Ok(middle)
    }

    /// A boundary from its tables.
    pub fn boundary(&mut self, x: NodeId, at: &Point) -> Result<Val, Refusal> {
        let Op::Boundary { side, row, .. } = self.op(x) else { return Err(self.bug(x, "is no boundary")) };
        let tables = self.segments[&x].clone();
        let blocks = (self.size(*row) / STRIP) as i64;
        let name = if tables.logs { "fadd" } else { "fmul" };
        // The whole step: from before the first block to past the last.
        let mut pair = Linear::number(if *side == Side::Prefix { 0 } else { 4 * blocks * (blocks + 1) });
        let mut own = None;
        if *side != Side::Total {
            let along = self.ix.get(at.get(*row).expect("a position of each")).clone();
            let (block, _) = self.divided(&along, STRIP);
            let mut bytes = Linear::default();
            bytes.add_scaled(&along, 4);
            let (home, factor) = match side {
                Side::Prefix => (&tables.reader, 4 * (blocks + 1)),
                Side::Suffix | Side::Total => {
                    pair.constant += 4;
                    (&tables.writer, 4)
                }
            };
            pair.add_scaled(&block, factor);
            self.touch(home.region, Touch::Read);
            own = Some(self.word(home, &bytes));
        }
        self.touch(tables.between.region, Touch::Read);
        let others = self.word(&tables.between, &pair);
        let value = own.map_or(others, |own| self.w.op(name, own, others, Ty::F32));
        Ok(if tables.logs { self.function(Unary::Exp, value) } else { value })
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
        let blocks = (self.size(*row) / STRIP) as i64;
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
        let (t_block, _) = self.divided(&t_linear, STRIP);
        let (s_block, s_place) = self.divided(&s_linear, STRIP);
        let (t_ix, s_ix) = (self.ix.of(t_block.clone()), self.ix.of(s_block.clone()));
        let same = self.compare("eq", t_ix, s_ix);
        let mut value = zero;
        if same != Known::Always {
            let reader = table(self, &tables.reader, scaled(&t_linear, 4));
            let writer = table(self, &tables.writer, scaled(&s_linear, 4));
            value = self.w.op(name, reader, writer, Ty::F32);
            if blocks > 2 {
                let mut bytes = scaled(&t_block, 4 * (blocks + 1));
                bytes.add_scaled(&s_block, 4);
                bytes.constant += 4;
                let between = table(self, &tables.between, bytes);
                value = self.w.op(name, value, between, Ty::F32);
            }
        }
        if same != Known::Never {
            let mut bytes = scaled(&t_linear, PITCH as i64);
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
