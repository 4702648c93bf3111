//! Nests: statements without products, spread over the threads of a block, over its warps, or run by one thread.
//!
//! Comes in: a statement whose loops around the lanes may run in any order. Goes out: the loop of each thread, and its
//! body. Sums over lanes go lane by lane in each thread and then pairwise over the warp: the same order whatever runs it.

use super::kernel::Lowering;
use super::place::Space;
use super::text;
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::tile::ir::{BinaryOp, Expr, Index, Memory, Order, Place, ReduceOp, Stmt, VarId};

/// Threads of a warp.
const WARP: i64 = 32;
/// Lanes of a group: 16 bytes of float32.
const GROUP: usize = 4;
/// Bytes that are copied past the registers at a time.
const COPIED: usize = 16;
/// Rows that a warp reduces at once.
const ROWS_TOGETHER: i64 = 8;
/// Turns of a thread whose loads are all issued before their stores.
const TOGETHER: i64 = 8;

/// A loop of any order that is spread.
struct Level<'s> {
    var: VarId,
    lo: &'s Index,
    hi: &'s Index,
}

/// A nest: loops of any order, then lanes, then the body.
struct Nest<'s> {
    levels: Vec<Level<'s>>,
    lanes: Option<(VarId, usize)>,
    body: &'s [Stmt],
}

impl<'s> Nest<'s> {
    fn of(stmt: &'s Stmt) -> Nest<'s> {
        let mut levels = Vec::new();
        let mut here = std::slice::from_ref(stmt);
        loop {
            match here {
                [Stmt::For { var, lo, hi, order: Order::Any, body }]
                    // Sizes of inner levels are known; only the outermost may depend on the sequence.
                    if levels.is_empty() || (lo.as_number().is_some() && hi.as_number().is_some()) =>
                {
                    levels.push(Level { var: *var, lo, hi });
                    here = body;
                }
                [Stmt::Lanes { var, extent, body }] => {
                    return Nest { levels, lanes: Some((*var, *extent)), body };
                }
                body => return Nest { levels, lanes: None, body },
            }
        }
    }
}

/// Variables and their values in one of several turns taken together.
type Bound = Vec<(VarId, Val)>;

/// Whether a thread can run these statements alone.
fn is_single(body: &[Stmt]) -> bool {
    body.iter().all(|stmt| match stmt {
        Stmt::For { body, .. } | Stmt::If { body, .. } => is_single(body),
        Stmt::Lanes { .. } | Stmt::ReduceLanes { .. } | Stmt::Matmul(_) => false,
        Stmt::Local { .. } | Stmt::Assign { .. } | Stmt::Store { .. } => true,
    })
}

/// Whether statements compute some numbers and store one, without loops.
fn is_plain(body: &[Stmt]) -> bool {
    let Some((Stmt::Store { .. }, before)) = body.split_last() else { return false };
    before.iter().all(|stmt| matches!(stmt, Stmt::Local { .. }))
}

impl Lowering<'_> {
    /// A nest, by all threads of the block.
    pub(super) fn spread(&mut self, stmt: &Stmt) {
        let nest = Nest::of(stmt);
        if self.copy(&nest) {
            return;
        }
        if is_single(nest.body) {
            self.over_threads(&nest);
        } else {
            self.over_warps(&nest);
        }
    }

    fn extent(&mut self, level: &Level) -> (Val, Option<i64>) {
        if let (Some(lo), Some(hi)) = (level.lo.as_number(), level.hi.as_number()) {
            let extent = (hi - lo).max(0);
            return (text::int(&mut self.w, extent), Some(extent));
        }
        let (lo, hi) = (self.index(level.lo), self.index(level.hi));
        let zero = text::int(&mut self.w, 0);
        let extent = self.w.op("sub", hi, lo, Ty::I32);
        (self.w.intrinsic("smax", &[extent, zero], Ty::I32), None)
    }

    /// Binds the variables of levels for turn `flat` of all their turns.
    fn bind(&mut self, levels: &[Level], flat: Val) {
        let mut rest = flat;
        for (n, level) in levels.iter().enumerate().rev() {
            let own = if n == 0 {
                rest
            } else {
                let (size, _) = self.extent(level);
                let own = self.w.op("urem", rest, size, Ty::I32);
                rest = self.w.op("udiv", rest, size, Ty::I32);
                own
            };
            let value = match level.lo.as_number() {
                Some(0) => own,
                Some(_) | None => {
                    let lo = self.index(level.lo);
                    self.w.op("add", own, lo, Ty::I32)
                }
            };
            self.vars.insert(level.var, value);
        }
    }

    /// Turns of all levels together.
    fn turns(&mut self, levels: &[Level]) -> (Val, Option<i64>) {
        let mut total = (text::int(&mut self.w, 1), Some(1));
        for level in levels {
            let (size, number) = self.extent(level);
            let product = match (total.1, number) {
                (Some(a), Some(b)) => Some(a * b),
                (None, _) | (_, None) => None,
            };
            total = match product {
                Some(product) => (text::int(&mut self.w, product), Some(product)),
                None => (self.w.op("mul", total.0, size, Ty::I32), None),
            };
        }
        total
    }

    fn over_threads(&mut self, nest: &Nest) {
        let threads = i64::try_from(self.options.threads).expect("a block is small");
        let (outer, outer_number) = self.turns(&nest.levels);
        let plain = is_plain(nest.body);
        let lanes = nest.lanes.map_or(1, |(_, extent)| extent);
        let lanes_number = i64::try_from(lanes).expect("a row fits memory");
        let enough = outer_number.is_none_or(|outer| outer * lanes_number >= 2 * threads);
        let group = if plain && enough && lanes.is_multiple_of(GROUP) { GROUP } else { 1 };
        let groups_a_row = i64::try_from(lanes / group).expect("a row fits memory");
        let groups = text::int(&mut self.w, groups_a_row);
        let (total, number) = match outer_number {
            Some(outer) => (text::int(&mut self.w, outer * groups_a_row), Some(outer * groups_a_row)),
            None => (self.w.op("mul", outer, groups, Ty::I32), None),
        };
        // Several turns at once hide the way to memory.
        let together = match number {
            Some(number) if plain && number % threads == 0 => {
                (1..=TOGETHER).rev().find(|n| (number / threads) % n == 0).unwrap_or(1)
            }
            Some(_) | None => 1,
        };
        let step = text::int(&mut self.w, threads * together);
        let thread = self.thread;
        let first = self.w.open_loop(thread, total, step, Ty::I32);
        let mut stored: Vec<(Bound, Vec<Val>)> = Vec::new();
        for turn in 0..together {
            let flat = if turn == 0 {
                first
            } else {
                let ahead = text::int(&mut self.w, turn * threads);
                self.w.op("add", first, ahead, Ty::I32)
            };
            let outer = match nest.lanes {
                None => flat,
                Some((var, _)) => {
                    let (outer, lane) = if nest.levels.is_empty() {
                        (flat, flat)
                    } else {
                        let lane = self.w.op("urem", flat, groups, Ty::I32);
                        (self.w.op("udiv", flat, groups, Ty::I32), lane)
                    };
                    let lane = if group == 1 {
                        lane
                    } else {
                        let size = text::int(&mut self.w, i64::try_from(group).expect("a group is small"));
                        self.w.op("mul", lane, size, Ty::I32)
                    };
                    self.vars.insert(var, lane);
                    outer
                }
            };
            self.bind(&nest.levels, outer);
            self.group = nest.lanes.map(|(var, _)| (var, group));
            if together == 1 {
                self.in_thread(nest.body);
                continue;
            }
            let Some((Stmt::Store { value, .. }, before)) = nest.body.split_last() else { continue };
            self.in_thread(before);
            let values = self.values(value, group);
            let bound = nest.levels.iter().map(|l| l.var).chain(nest.lanes.map(|(var, _)| var));
            stored.push((bound.map(|var| (var, self.vars[&var])).collect(), values));
        }
        for (bound, values) in stored {
            self.vars.extend(bound);
            let Some(Stmt::Store { place, .. }) = nest.body.last() else { continue };
            self.store(place, &values);
        }
        self.group = None;
        self.w.end();
    }

    /// A copy from a tensor to shared memory of the same type, sixteen bytes at a time, past the registers: it is under
    /// way while the threads go on. Does nothing if the nest is no such copy.
    fn copy(&mut self, nest: &Nest) -> bool {
        let ([Stmt::Store { place, value: Expr::Load(from) }], Some((var, extent))) = (nest.body, nest.lanes) else {
            return false;
        };
        let (Memory::Buffer(buffer), Memory::Arg(arg)) = (place.memory, from.memory) else { return false };
        let home = self.homes.homes[buffer.0 as usize];
        let tensor = &self.kernel.args[arg.0 as usize];
        let group = COPIED / home.dtype.bytes();
        if home.space != Space::Shared || tensor.dtype != home.dtype || !extent.is_multiple_of(group) {
            return false;
        }
        if !self.lie_together(place, var, group) || !self.lie_together(from, var, group) {
            return false;
        }
        let threads = i64::try_from(self.options.threads).expect("a block is small");
        let (outer, _) = self.turns(&nest.levels);
        let groups = text::int(&mut self.w, i64::try_from(extent / group).expect("a row fits memory"));
        let total = self.w.op("mul", outer, groups, Ty::I32);
        let step = text::int(&mut self.w, threads);
        let thread = self.thread;
        let flat = self.w.open_loop(thread, total, step, Ty::I32);
        let lane = self.w.op("urem", flat, groups, Ty::I32);
        let size = text::int(&mut self.w, i64::try_from(group).expect("a group is small"));
        let lane = self.w.op("mul", lane, size, Ty::I32);
        let outer = self.w.op("udiv", flat, groups, Ty::I32);
        self.vars.insert(var, lane);
        self.bind(&nest.levels, outer);
        let (to, from) = (self.address(place), self.address(from));
        self.w.raw(format_args!(
            "llvm.call_intrinsic \"llvm.nvvm.cp.async.cg.shared.global.16\"({}, {}) : ({}, {}) -> ()",
            to.at, from.at, to.space, from.space
        ));
        self.w.end();
        self.under_way = true;
        true
    }

    /// Reductions of many rows, several to a warp at once: their loads and exchanges overlap. Does nothing if the nest is
    /// something else.
    fn reduce_rows(&mut self, nest: &Nest) -> bool {
        let [Stmt::ReduceLanes { place, op, var, extent, value, accumulate: false }] = nest.body else { return false };
        let warps = i64::try_from(self.options.threads).expect("a block is small") / WARP;
        let (total, number) = self.turns(&nest.levels);
        let lanes = i64::try_from(*extent).expect("a row fits memory");
        let Some(rows) = number.filter(|rows| rows % warps == 0 && lanes % WARP == 0 && lanes <= 8 * WARP) else {
            return false;
        };
        let together = (1..=ROWS_TOGETHER).rev().find(|n| (rows / warps) % n == 0).unwrap_or(1);
        let binary = match op {
            ReduceOp::Sum => BinaryOp::Add,
            ReduceOp::Max => BinaryOp::Max,
        };
        let step = text::int(&mut self.w, warps * together);
        let warp = self.warp;
        let first = self.w.open_loop(warp, total, step, Ty::I32);
        let mut rows: Vec<(Bound, Val)> = Vec::new();
        for row in 0..together {
            let flat = if row == 0 {
                first
            } else {
                let ahead = text::int(&mut self.w, row * warps);
                self.w.op("add", first, ahead, Ty::I32)
            };
            self.bind(&nest.levels, flat);
            let mut parts = Vec::new();
            for turn in 0..lanes / WARP {
                let ahead = text::int(&mut self.w, turn * WARP);
                let lane = self.lane;
                let at = if turn == 0 { lane } else { self.w.op("add", lane, ahead, Ty::I32) };
                self.vars.insert(*var, at);
                parts.push(self.uniform(value));
            }
            let mut sum = parts[0];
            for part in &parts[1..] {
                sum = self.functions.binary(&mut self.w, binary, sum, *part, 0);
            }
            rows.push((nest.levels.iter().map(|level| (level.var, self.vars[&level.var])).collect(), sum));
        }
        for distance in [16, 8, 4, 2, 1] {
            for (_, sum) in &mut rows {
                let other = self.exchanged(*sum, distance);
                *sum = self.functions.binary(&mut self.w, binary, *sum, other, 0);
            }
        }
        let zero = text::int(&mut self.w, 0);
        let one = self.w.icmp("eq", self.lane, zero, Ty::I32);
        self.w.open_if(one);
        for (bound, sum) in rows {
            self.vars.extend(bound);
            self.store(place, &[sum]);
        }
        self.w.end();
        self.w.end();
        true
    }

    /// The value of the thread of the warp whose number differs in one bit.
    fn exchanged(&mut self, value: Val, distance: i64) -> Val {
        let (all, clamp) = (text::int(&mut self.w, -1), text::int(&mut self.w, 31));
        let distance = text::int(&mut self.w, distance);
        let operands = [(all, Ty::I32), (value, Ty::F32), (distance, Ty::I32), (clamp, Ty::I32)];
        text::intrinsic(&mut self.w, "llvm.nvvm.shfl.sync.bfly.f32", &operands, "f32")
    }

    fn over_warps(&mut self, nest: &Nest) {
        if self.reduce_rows(nest) {
            return;
        }
        let warps = i64::try_from(self.options.threads).expect("a block is small") / WARP;
        let (total, _) = self.turns(&nest.levels);
        let step = text::int(&mut self.w, warps);
        let warp = self.warp;
        let flat = self.w.open_loop(warp, total, step, Ty::I32);
        self.bind(&nest.levels, flat);
        self.in_warp(nest.body);
        self.w.end();
    }

    /// Statements of one thread, or of one for each lane of its group.
    pub(super) fn in_thread(&mut self, body: &[Stmt]) {
        let count = self.group.map_or(1, |(_, count)| count);
        for stmt in body {
            match stmt {
                Stmt::For { var, lo, hi, order, body } => {
                    let (lo, hi) = (self.index(lo), self.index(hi));
                    self.enter_loop(*var, lo, hi, *order);
                    self.in_thread(body);
                    self.w.end();
                }
                Stmt::If { cond, body } => {
                    let holds = self.cond(cond);
                    self.w.open_if(holds);
                    self.in_thread(body);
                    self.w.end();
                }
                Stmt::Local { local, value } => {
                    let values = self.values(value, count);
                    let slots: Vec<Val> = (0..count).map(|_| self.w.slot(Ty::F32)).collect();
                    for (slot, value) in slots.iter().zip(values) {
                        self.w.store(value, *slot, Ty::F32, "");
                    }
                    self.locals.insert(*local, slots);
                }
                Stmt::Assign { local, value } => {
                    let values = self.values(value, count);
                    let slots = self.locals[local].clone();
                    for (slot, value) in slots.iter().zip(values) {
                        self.w.store(value, *slot, Ty::F32, "");
                    }
                }
                Stmt::Store { place, value } => {
                    let values = self.values(value, count);
                    self.store(place, &values);
                }
                Stmt::Lanes { .. } | Stmt::ReduceLanes { .. } | Stmt::Matmul(_) => {
                    unreachable!("`is_single` and `is_narrow` let only one thread's statements through")
                }
            }
        }
    }

    /// Statements of a warp: its threads agree on everything but the lanes.
    pub(super) fn in_warp(&mut self, body: &[Stmt]) {
        for stmt in body {
            match stmt {
                Stmt::For { var, lo, hi, order, body } => {
                    let (lo, hi) = (self.index(lo), self.index(hi));
                    self.enter_loop(*var, lo, hi, *order);
                    self.in_warp(body);
                    self.w.end();
                }
                Stmt::If { cond, body } => {
                    let holds = self.cond(cond);
                    self.w.open_if(holds);
                    self.in_warp(body);
                    self.w.end();
                }
                Stmt::Lanes { var, extent, body } => {
                    let extent = text::int(&mut self.w, i64::try_from(*extent).expect("a row fits memory"));
                    let (lane, step) = (self.lane, text::int(&mut self.w, WARP));
                    let at = self.w.open_loop(lane, extent, step, Ty::I32);
                    self.vars.insert(*var, at);
                    self.in_thread(body);
                    self.w.end();
                    text::warp_barrier(&mut self.w);
                }
                Stmt::Local { local, value } => {
                    let value = self.uniform(value);
                    let slot = match self.locals.get(local) {
                        Some(slots) => slots[0],
                        None => self.w.slot(Ty::F32),
                    };
                    self.w.store(value, slot, Ty::F32, "");
                    self.locals.insert(*local, vec![slot]);
                }
                Stmt::Assign { local, value } => {
                    let value = self.uniform(value);
                    let slot = self.locals[local][0];
                    self.w.store(value, slot, Ty::F32, "");
                }
                Stmt::Store { place, value } => {
                    let value = self.uniform(value);
                    self.store_by_first(place, value);
                }
                Stmt::ReduceLanes { place, op, var, extent, value, accumulate } => {
                    self.reduce(place, *op, *var, *extent, value, *accumulate);
                }
                Stmt::Matmul(_) => unreachable!("products are the block's"),
            }
        }
    }

    /// One thread of the warp stores; the others see it afterwards.
    fn store_by_first(&mut self, place: &Place, value: Val) {
        text::warp_barrier(&mut self.w);
        let zero = text::int(&mut self.w, 0);
        let first = self.w.icmp("eq", self.lane, zero, Ty::I32);
        self.w.open_if(first);
        self.store(place, &[value]);
        self.w.end();
        text::warp_barrier(&mut self.w);
    }

    fn reduce(&mut self, place: &Place, op: ReduceOp, var: VarId, extent: usize, value: &Expr, accumulate: bool) {
        let (binary, start) = match op {
            ReduceOp::Sum => (BinaryOp::Add, 0.0),
            ReduceOp::Max => (BinaryOp::Max, f32::NEG_INFINITY),
        };
        let start = self.w.f32(start, 0);
        let end = text::int(&mut self.w, i64::try_from(extent).expect("a row fits memory"));
        let (lane, step) = (self.lane, text::int(&mut self.w, WARP));
        let turn = self.w.open_loop_carrying(lane, end, step, Ty::I32, &[(start, Ty::F32)]);
        self.vars.insert(var, turn.var);
        let next = self.uniform(value);
        let next = self.functions.binary(&mut self.w, binary, turn.values[0], next, 0);
        let mut total = self.w.end_carried(&turn, &[next])[0];
        for distance in [16, 8, 4, 2, 1] {
            let other = self.exchanged(total, distance);
            total = self.functions.binary(&mut self.w, binary, total, other, 0);
        }
        if accumulate {
            let before = self.uniform(&Expr::Load(place.clone()));
            total = self.functions.binary(&mut self.w, binary, before, total, 0);
        }
        self.store_by_first(place, total);
    }
}
