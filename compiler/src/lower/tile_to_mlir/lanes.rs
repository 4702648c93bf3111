//! `lanes` and reductions over lanes: how many vectors at a time, the loop over them, the tail.
//!
//! Comes in: the lane variable, its extent and a body. Goes out: the body once for each way it must be written (the
//! loop, what is left of it, the tail). A *group* is several vectors worked on together, so that what they share is
//! read once and the processor finds independent work.

use super::expr::weight;
use super::kernel::Lowering;
use super::writer::{Ty, Val};
use crate::graph::ir::{Binary, Unary};
use crate::tile::ir::{Expr, LANES, Memory, Place, ReduceOp, Stmt, VarId};

/// The vectors at work.
pub(super) struct Group {
    /// The lane variable; its value is the first lane of the group.
    pub var: VarId,
    /// Lanes of a vector.
    pub lanes: usize,
    /// Vectors.
    pub count: usize,
    /// Lanes of the last vector that exist.
    pub valid: usize,
    /// In a branch of a choice by lane: where it is taken, for each vector.
    pub active: Option<Vec<Val>>,
}

/// How an extent is cut into vectors.
struct Cut {
    lanes: usize,
    full: usize,
    tail: usize,
}

impl Lowering<'_> {
    fn cut(&self, extent: usize) -> Cut {
        let lanes = self.vectors.lanes.min(extent.next_power_of_two()).max(4);
        Cut { lanes, full: extent / lanes, tail: extent % lanes }
    }

    pub(super) fn lanes(&mut self, var: VarId, extent: usize, body: &[Stmt]) {
        let mut cut = self.cut(extent);
        if cut.tail != 0 && self.may_run_over(var, extent, body) {
            // Rows are padded to whole vectors.
            cut.full += 1;
            cut.tail = 0;
        }
        let count = group_size(cut.full, body);
        if let Some(turns) = cut.full.checked_div(count) {
            let looped = turns * count;
            let write =
                |this: &mut Self, base: Val, count: usize| this.group_of(var, base, cut.lanes, count, cut.lanes, body);
            if looped > count {
                let (zero, end) = (self.w.i64(0), self.w.i64(size(looped * cut.lanes)));
                let base = self.w.open_for(zero, end, size(count * cut.lanes));
                write(self, base, count);
                self.w.end();
            } else {
                let zero = self.w.i64(0);
                write(self, zero, count);
            }
            if cut.full > looped {
                let base = self.w.i64(size(looped * cut.lanes));
                write(self, base, cut.full - looped);
            }
        }
        if cut.tail > 0 {
            let base = self.w.i64(size(cut.full * cut.lanes));
            self.group_of(var, base, cut.lanes, 1, cut.tail, body);
        }
    }

    fn group_of(&mut self, var: VarId, base: Val, lanes: usize, count: usize, valid: usize, body: &[Stmt]) {
        self.group = Some(Group { var, lanes, count, valid, active: None });
        self.vars.insert(var, base);
        self.fetched.clear();
        self.open_scope();
        self.stmts(body);
        self.close_scope();
        self.group = None;
    }

    /// Whether lanes past the extent may run as well: they touch only scratch, and write only the padding of rows
    /// that the extent covers to their end.
    fn may_run_over(&self, var: VarId, extent: usize, body: &[Stmt]) -> bool {
        body.iter().all(|stmt| match stmt {
            Stmt::Local { value, .. } | Stmt::Assign { value, .. } => self.reads_scratch(var, value),
            Stmt::Store { place, value } => self.covers_rows(var, extent, place) && self.reads_scratch(var, value),
            Stmt::If { body, .. } | Stmt::For { body, .. } => self.may_run_over(var, extent, body),
            Stmt::Lanes { .. } | Stmt::ReduceLanes { .. } | Stmt::Matmul(_) => false,
        })
    }

    fn covers_rows(&self, var: VarId, extent: usize, place: &Place) -> bool {
        let Memory::Buffer(buffer) = place.memory else { return false };
        let (last, before) = place.indices.split_last().expect("a buffer has a dimension");
        let whole = self.kernel.buffers[buffer.0 as usize].shape.last() == Some(&extent);
        let plain = last.at_most.is_none()
            && last.value.constant == 0
            && last.value.symbols.is_empty()
            && last.value.vars == [(var, 1)];
        let elsewhere = before.iter().any(|index| index.value.vars.iter().any(|(v, _)| *v == var));
        whole && plain && !elsewhere
    }

    fn reads_scratch(&self, var: VarId, expr: &Expr) -> bool {
        match expr {
            Expr::Const(_) | Expr::Local(_) => true,
            Expr::Load(place) => match place.memory {
                // The same element for every lane is fine; neighbours past the end are not.
                Memory::Arg(_) => !place.indices.iter().any(|index| index.value.vars.iter().any(|(v, _)| *v == var)),
                Memory::Buffer(_) => {
                    let (last, before) = place.indices.split_last().expect("a buffer has a dimension");
                    let elsewhere = before.iter().any(|index| index.value.vars.iter().any(|(v, _)| *v == var));
                    last.at_most.is_none() && !elsewhere
                }
            },
            Expr::Unary(_, x) => self.reads_scratch(var, x),
            Expr::Binary(_, a, b) | Expr::Select(_, a, b) => self.reads_scratch(var, a) && self.reads_scratch(var, b),
            Expr::SelectValue(_, lhs, rhs, a, b) => [lhs, rhs, a, b].iter().all(|x| self.reads_scratch(var, x)),
        }
    }

    pub(super) fn reduce(
        &mut self,
        place: &Place,
        op: ReduceOp,
        var: VarId,
        extent: usize,
        value: &Expr,
        accumulate: bool,
    ) {
        let cut = self.cut(extent);
        let ty = Ty::f32s(cut.lanes);
        let identity = match op {
            ReduceOp::Sum => 0.0,
            ReduceOp::Max => f32::NEG_INFINITY,
        };
        let count = (64 / (weight(value) + 1)).clamp(1, 4).min(cut.full);
        let mut partial: Vec<Val> = Vec::new();
        if let Some(turns) = cut.full.checked_div(count) {
            let looped = turns * count;
            if looped > count {
                let start = self.w.f32(identity, cut.lanes);
                let start = vec![(start, ty); count];
                let (zero, end) = (self.w.i64(0), self.w.i64(size(looped * cut.lanes)));
                let turn = self.w.open_for_carrying(zero, end, size(count * cut.lanes), &start);
                let next = self.reduced(op, var, turn.var, &cut, count, cut.lanes, value, &turn.values);
                partial = self.w.end_carried(&turn, &next);
            } else {
                let zero = self.w.i64(0);
                partial = self.reduced(op, var, zero, &cut, count, cut.lanes, value, &[]);
            }
            if cut.full > looped {
                let base = self.w.i64(size(looped * cut.lanes));
                let rest = cut.full - looped;
                let more = self.reduced(op, var, base, &cut, rest, cut.lanes, value, &partial[..rest]);
                partial[..rest].copy_from_slice(&more);
            }
        }
        if cut.tail > 0 {
            let base = self.w.i64(size(cut.full * cut.lanes));
            let values = self.reduced(op, var, base, &cut, 1, cut.tail, value, &[]);
            let mask = self.w.mask(cut.lanes, 0, cut.tail);
            let none = self.w.f32(identity, cut.lanes);
            let values = self.w.select(mask, values[0], none, ty);
            partial.push(values);
        }
        // A tree over vectors, then over halves of a vector: the same order whatever runs it.
        while partial.len() > 1 {
            let pairs = partial.clone();
            partial.clear();
            for pair in pairs.chunks(2) {
                partial.push(match pair {
                    [a, b] => self.join(op, *a, *b, cut.lanes),
                    alone => alone[0],
                });
            }
        }
        let mut vector = partial[0];
        let mut lanes = cut.lanes;
        while lanes > 1 {
            let half = lanes / 2;
            let whole = Ty::f32s(lanes);
            let low = self.w.shuffle(vector, vector, 0..half, whole);
            let high = self.w.shuffle(vector, vector, half..lanes, whole);
            vector = self.join(op, low, high, half);
            lanes = half;
        }
        let mut result = self.w.extract(vector, 0, Ty::f32s(1));
        if accumulate {
            let before = self.values(&Expr::Load(place.clone()))[0];
            result = self.join(op, before, result, 0);
        }
        self.store_scalar(place, result);
    }

    /// The values of a group, joined with those before.
    #[expect(clippy::too_many_arguments)]
    fn reduced(
        &mut self,
        op: ReduceOp,
        var: VarId,
        base: Val,
        cut: &Cut,
        count: usize,
        valid: usize,
        value: &Expr,
        before: &[Val],
    ) -> Vec<Val> {
        self.group = Some(Group { var, lanes: cut.lanes, count, valid, active: None });
        self.vars.insert(var, base);
        self.open_scope();
        let fused = match (op, value) {
            (ReduceOp::Sum, Expr::Binary(Binary::Mul, a, b)) if before.len() == count => {
                Some(((**a).clone(), (**b).clone()))
            }
            (ReduceOp::Sum, Expr::Unary(Unary::Square, a)) if before.len() == count => {
                Some(((**a).clone(), (**a).clone()))
            }
            _ => None,
        };
        let ty = Ty::f32s(cut.lanes);
        let values = match fused {
            Some((a, b)) => {
                let (a, b) = (self.values(&a), self.values(&b));
                let factors = a.into_iter().zip(b).zip(before);
                factors.map(|((a, b), sum)| self.w.intrinsic("fmuladd", &[a, b, *sum], ty)).collect()
            }
            None => {
                let values = self.values(value);
                if before.is_empty() {
                    values
                } else {
                    before.iter().zip(values).map(|(b, v)| self.join(op, *b, v, cut.lanes)).collect()
                }
            }
        };
        self.close_scope();
        self.group = None;
        values
    }

    fn join(&mut self, op: ReduceOp, a: Val, b: Val, lanes: usize) -> Val {
        let binary = match op {
            ReduceOp::Sum => Binary::Add,
            ReduceOp::Max => Binary::Max,
        };
        self.functions.binary(&mut self.w, binary, a, b, lanes)
    }
}

/// How many vectors are worked on together: the most that the work allows and that divide them all, none if there is
/// none.
fn group_size(full: usize, body: &[Stmt]) -> usize {
    let (work, nested) = body_weight(body);
    let most = if nested { 4 } else { (64 / (work + 1)).clamp(1, 4) };
    (1..=most.min(full)).rev().find(|count| full.is_multiple_of(*count)).unwrap_or(0)
}

/// Work of a body, and whether it loops.
fn body_weight(body: &[Stmt]) -> (usize, bool) {
    let mut work = 0;
    let mut nested = false;
    for stmt in body {
        match stmt {
            Stmt::Local { value, .. } | Stmt::Assign { value, .. } => work += weight(value),
            Stmt::Store { value, .. } => work += 1 + weight(value),
            Stmt::ReduceLanes { value, .. } => work += 8 + weight(value),
            Stmt::If { body, .. } => work += body_weight(body).0,
            Stmt::For { body, .. } => {
                work += body_weight(body).0;
                nested = true;
            }
            Stmt::Lanes { .. } | Stmt::Matmul(_) => work += LANES,
        }
    }
    (work, nested)
}

fn size(n: usize) -> i64 {
    i64::try_from(n).expect("a buffer fits memory")
}
