//! Expressions, for one number outside `lanes` and for a group of vectors inside.
//!
//! Comes in: an [`Expr`]. Goes out: the values, one for each vector of the group. What does not depend on the lane is
//! computed once. Products that are added or subtracted become fused multiply-adds here, so that the result does not
//! depend on what a later pass makes of them.

use super::functions;
use super::kernel::{Lowering, predicate};
use super::writer::{Elem, Ty, Val};
use crate::tile::ir::{Affine, BinaryOp, Compare, Cond, Expr, Memory, Place, UnaryOp};
use chunkwise_abi::Role;

/// A value of an expression.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// The same in every lane: a scalar.
    Uniform(Val),
    /// One vector for each of the group.
    Lanes(Vec<Val>),
}

impl Lowering<'_> {
    /// The value of an expression for each vector of the group; outside lanes, one scalar.
    pub(super) fn values(&mut self, expr: &Expr) -> Vec<Val> {
        let value = self.expr(expr);
        self.spread(value)
    }

    fn spread(&mut self, value: Value) -> Vec<Val> {
        match (value, &self.group) {
            (Value::Lanes(values), _) => values,
            (Value::Uniform(val), None) => vec![val],
            (Value::Uniform(val), Some(group)) => {
                let (lanes, count) = (group.lanes, group.count);
                vec![self.w.broadcast(val, Elem::F32, lanes); count]
            }
        }
    }

    pub(super) fn expr(&mut self, expr: &Expr) -> Value {
        match expr {
            // The rounding to float32 is what a constant means.
            #[expect(clippy::cast_possible_truncation)]
            Expr::Const(number) => Value::Uniform(self.w.f32(*number as f32, 0)),
            Expr::Load(place) => self.load(place),
            Expr::Local(local) => {
                let slots = &self.locals[local];
                let (places, lanes) = (slots.places.clone(), slots.lanes);
                let values: Vec<Val> = places.iter().map(|place| self.w.load(*place, Ty::f32s(lanes), "")).collect();
                if lanes == 0 { Value::Uniform(values[0]) } else { Value::Lanes(values) }
            }
            Expr::Unary(op, x) => self.unary(*op, x),
            Expr::Binary(op, a, b) => self.binary(*op, a, b),
            Expr::Select(cond, a, b) => self.select(cond, a, b),
            Expr::SelectValue(op, lhs, rhs, a, b) => {
                let operands = [self.expr(lhs), self.expr(rhs), self.expr(a), self.expr(b)];
                let predicate = match op {
                    Compare::Lt => "olt",
                    Compare::Le => "ole",
                    Compare::Eq => "oeq",
                };
                self.each(&operands, |this, v, lanes| {
                    let ty = Ty::f32s(lanes);
                    let holds = this.w.fcmp(predicate, v[0], v[1], ty);
                    this.w.select(holds, v[2], v[3], ty)
                })
            }
        }
    }

    /// Applies a function lane by lane: once to scalars if no operand depends on the lane, else to every vector.
    fn each(&mut self, operands: &[Value], mut f: impl FnMut(&mut Self, &[Val], usize) -> Val) -> Value {
        let scalars: Option<Vec<Val>> = operands
            .iter()
            .map(|value| match value {
                Value::Uniform(val) => Some(*val),
                Value::Lanes(_) => None,
            })
            .collect();
        if let Some(scalars) = scalars {
            return Value::Uniform(f(self, &scalars, 0));
        }
        let (lanes, count) = self.group.as_ref().map_or((0, 1), |group| (group.lanes, group.count));
        let spread: Vec<Vec<Val>> = operands.iter().map(|value| self.spread(value.clone())).collect();
        Value::Lanes(
            (0..count)
                .map(|n| {
                    let vectors: Vec<Val> = spread.iter().map(|values| values[n]).collect();
                    f(self, &vectors, lanes)
                })
                .collect(),
        )
    }

    fn unary(&mut self, op: UnaryOp, x: &Expr) -> Value {
        let operand = self.expr(x);
        self.each(&[operand], |this, v, lanes| this.functions.unary(&mut this.w, op, v[0], lanes))
    }

    fn binary(&mut self, op: BinaryOp, a: &Expr, b: &Expr) -> Value {
        // (factors, addend, negate the product, negate the addend)
        let fused = match (op, a, b) {
            (BinaryOp::Add, Expr::Binary(BinaryOp::Mul, x, y), c) => Some(((x, y), c, false, false)),
            (BinaryOp::Add, c, Expr::Binary(BinaryOp::Mul, x, y)) => Some(((x, y), c, false, false)),
            (BinaryOp::Sub, c, Expr::Binary(BinaryOp::Mul, x, y)) => Some(((x, y), c, true, false)),
            (BinaryOp::Sub, Expr::Binary(BinaryOp::Mul, x, y), c) => Some(((x, y), c, false, true)),
            _ => None,
        };
        let Some(((x, y), c, minus_product, minus_addend)) = fused else {
            let operands = [self.expr(a), self.expr(b)];
            return self.each(&operands, |this, v, lanes| this.functions.binary(&mut this.w, op, v[0], v[1], lanes));
        };
        let operands = [self.expr(x), self.expr(y), self.expr(c)];
        self.each(&operands, |this, v, lanes| {
            let ty = Ty::f32s(lanes);
            let factor = if minus_product { this.w.negate(v[0], ty) } else { v[0] };
            let addend = if minus_addend { this.w.negate(v[2], ty) } else { v[2] };
            this.w.intrinsic("fmuladd", &[factor, v[1], addend], ty)
        })
    }

    fn select(&mut self, cond: &Cond, a: &Expr, b: &Expr) -> Value {
        let by_lane = self.group.as_ref().is_some_and(|group| mentions(&cond.lhs, group) || mentions(&cond.rhs, group));
        if by_lane {
            return self.select_lanes(cond, a, b);
        }
        let holds = self.cond(cond);
        if cheap(a) && cheap(b) {
            let operands = [self.expr(a), self.expr(b)];
            return self.each(&operands, |this, v, lanes| {
                this.w.raw_value(format_args!("llvm.select {holds}, {}, {} : i1, {}", v[0], v[1], Ty::f32s(lanes)))
            });
        }
        // Dear, or not to be read when the condition does not hold: only the branch taken is computed.
        let (lanes, count) = self.group.as_ref().map_or((0, 1), |group| (group.lanes, group.count));
        let ty = Ty::f32s(lanes);
        let results = self.w.open_if_yielding(holds, count, ty);
        self.open_scope();
        let first = self.values(a);
        self.close_scope();
        self.w.other(&first, ty);
        self.open_scope();
        let second = self.values(b);
        self.close_scope();
        let values = self.w.end_yielding(results, &second, ty);
        if self.group.is_some() { Value::Lanes(values) } else { Value::Uniform(values[0]) }
    }

    fn select_lanes(&mut self, cond: &Cond, a: &Expr, b: &Expr) -> Value {
        let masks = self.lane_masks(cond);
        let group = self.group.as_mut().expect("a condition on lanes stands inside lanes");
        let before = group.active.clone();
        let lanes = group.lanes;
        let masks_ty = Ty { elem: Elem::I1, lanes };
        // The branch not taken is not read.
        let limit = |this: &mut Self, masks: &[Val]| {
            let active = match &before {
                None => masks.to_vec(),
                Some(old) => old.iter().zip(masks).map(|(o, m)| this.w.op("and", *o, *m, masks_ty)).collect(),
            };
            this.group.as_mut().expect("still inside lanes").active = Some(active);
        };
        if reads_arguments(a) {
            limit(self, &masks);
        }
        let first = self.values(a);
        self.group.as_mut().expect("still inside lanes").active = before.clone();
        if reads_arguments(b) {
            let all = self.w.int(masks_ty, 1);
            let others: Vec<Val> = masks.iter().map(|mask| self.w.op("xor", *mask, all, masks_ty)).collect();
            limit(self, &others);
        }
        let second = self.values(b);
        self.group.as_mut().expect("still inside lanes").active = before;
        let ty = Ty::f32s(lanes);
        let chosen =
            masks.iter().zip(first.iter().zip(&second)).map(|(m, (a, b))| self.w.select(*m, *a, *b, ty)).collect();
        Value::Lanes(chosen)
    }

    /// Where a condition on the lane holds, for each vector.
    fn lane_masks(&mut self, cond: &Cond) -> Vec<Val> {
        let group = self.group.as_ref().expect("a condition on lanes stands inside lanes");
        let (var, lanes, count) = (group.var, group.lanes, group.count);
        let coefficient = |affine: &Affine| affine.vars.iter().find(|(v, _)| *v == var).map_or(0, |(_, c)| *c);
        let factor = coefficient(&cond.lhs) - coefficient(&cond.rhs);
        // factor · lane op rest, where `rest` holds everything else, the first lane of the group included.
        let mut rest = self.resolve(&cond.rhs);
        let lhs = self.resolve(&cond.lhs);
        rest.add(&lhs, -1);
        let ints = Ty { elem: Elem::I32, lanes };
        let ramp = self.w.ramp(lanes, factor);
        (0..count)
            .map(|n| {
                let mut here = rest.clone();
                here.constant -= factor * i64::try_from(n * lanes).expect("a lane");
                let here = self.linear(&here);
                // Clamped so that it fits 32 bits; the ramp is far within.
                let (low, high) = (self.w.i64(-(1 << 30)), self.w.i64(1 << 30));
                let here = self.w.intrinsic("smin", &[here, high], Ty::I64);
                let here = self.w.intrinsic("smax", &[here, low], Ty::I64);
                let here = self.w.cast("trunc", here, Ty::I64, Ty::I32);
                let here = self.w.broadcast(here, Elem::I32, lanes);
                self.w.icmp(predicate(cond.op), ramp, here, ints)
            })
            .collect()
    }
}

/// Whether an affine form depends on the lane.
pub(super) fn mentions(affine: &Affine, group: &super::lanes::Group) -> bool {
    affine.vars.iter().any(|(var, _)| *var == group.var)
}

/// Whether an expression costs little and reads only what may always be read.
fn cheap(expr: &Expr) -> bool {
    weight(expr) <= 8 && !reads_unclamped(expr)
}

/// Work of an expression, in simple operations.
pub(super) fn weight(expr: &Expr) -> usize {
    match expr {
        Expr::Const(_) | Expr::Local(_) => 0,
        Expr::Load(place) => match place.memory {
            Memory::Buffer(_) => 1,
            Memory::Arg(_) => 2,
        },
        Expr::Unary(op, x) => functions::weight(*op) + weight(x),
        Expr::Binary(BinaryOp::Pow, a, b) => 80 + weight(a) + weight(b),
        Expr::Binary(_, a, b) => 1 + weight(a) + weight(b),
        Expr::Select(_, a, b) => 2 + weight(a) + weight(b),
        Expr::SelectValue(_, lhs, rhs, a, b) => 2 + weight(lhs) + weight(rhs) + weight(a) + weight(b),
    }
}

/// Whether any place read satisfies a condition.
fn any_read(expr: &Expr, found: &dyn Fn(&Place) -> bool) -> bool {
    match expr {
        Expr::Const(_) | Expr::Local(_) => false,
        Expr::Load(place) => found(place),
        Expr::Unary(_, x) => any_read(x, found),
        Expr::Binary(_, a, b) | Expr::Select(_, a, b) => any_read(a, found) || any_read(b, found),
        Expr::SelectValue(_, lhs, rhs, a, b) => [lhs, rhs, a, b].iter().any(|x| any_read(x, found)),
    }
}

fn reads_arguments(expr: &Expr) -> bool {
    any_read(expr, &|place| matches!(place.memory, Memory::Arg(_)))
}

/// An argument read at an index without an upper limit may lie outside when the condition does not hold.
fn reads_unclamped(expr: &Expr) -> bool {
    any_read(expr, &|place| {
        matches!(place.memory, Memory::Arg(_)) && place.indices.first().is_some_and(|index| index.at_most.is_none())
    })
}

/// Whether tensors of a role are indexed by token or chunk first.
pub(super) fn has_leading_index(role: Role) -> bool {
    match role {
        Role::Token | Role::Chunk(_) => true,
        Role::Head | Role::Sequence => false,
    }
}
