//! Between which bounds every value of a program lies, if its inputs keep the promises of their ranges. In: a
//! program; out: an interval for each expression. Sizes are not known: an axis has one position at least. A bound may
//! be wider than the truth, never narrower, rounding aside.

use crate::program::{Binary, ExprId, ExprKind, Program, Range, Reduce, Stmt, Unary};
use crate::value;

/// All numbers from `lo` to `hi`, infinite ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

/// Any number.
pub const ANY: Interval = Interval { lo: f64::NEG_INFINITY, hi: f64::INFINITY };

impl Interval {
    /// The interval from `lo` to `hi`.
    pub fn new(lo: f64, hi: f64) -> Interval {
        // A bound that cannot be computed bounds nothing.
        Interval {
            lo: if lo.is_nan() { f64::NEG_INFINITY } else { lo },
            hi: if hi.is_nan() { f64::INFINITY } else { hi },
        }
    }

    /// Of a product of a number of each.
    pub fn of_products(self, other: Interval) -> Interval {
        // 0 · ∞ is 0: a bound is approached, never taken.
        let product = |a: f64, b: f64| if a == 0.0 || b == 0.0 { 0.0 } else { a * b };
        let corners = [
            product(self.lo, other.lo),
            product(self.lo, other.hi),
            product(self.hi, other.lo),
            product(self.hi, other.hi),
        ];
        Interval::new(
            corners.iter().copied().fold(f64::INFINITY, f64::min),
            corners.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        )
    }

    /// Of 1 / x.
    pub fn inverse(self) -> Interval {
        if self.lo > 0.0 || self.hi < 0.0 {
            Interval::new(1.0 / self.hi, 1.0 / self.lo)
        } else if self.lo == 0.0 && self.hi > 0.0 {
            Interval::new(1.0 / self.hi, f64::INFINITY)
        } else if self.hi == 0.0 && self.lo < 0.0 {
            Interval::new(f64::NEG_INFINITY, 1.0 / self.lo)
        } else {
            ANY
        }
    }

    /// Of a sum of one number or more.
    pub fn of_sums(self) -> Interval {
        Interval::new(
            if self.lo >= 0.0 { self.lo } else { f64::NEG_INFINITY },
            if self.hi <= 0.0 { self.hi } else { f64::INFINITY },
        )
    }
}

/// The interval of every expression, by [`ExprId`].
pub fn bounds(program: &Program) -> Vec<Interval> {
    let mut values: Vec<Option<ExprId>> = vec![None; program.locals.len()];
    values_of_locals(&program.body, &mut values);
    let mut bounds: Vec<Interval> = Vec::with_capacity(program.exprs.len());
    for expr in &program.exprs {
        let at = |id: ExprId| bounds.get(id.index()).copied().unwrap_or(ANY);
        let interval = match &expr.kind {
            ExprKind::Number(value) => Interval::new(*value, *value),
            ExprKind::AxisSize(_) => Interval::new(1.0, f64::INFINITY),
            ExprKind::LoopIndex(_) => Interval::new(0.0, f64::INFINITY),
            // A caller may override a constant.
            ExprKind::Const(_) | ExprKind::State(_) => ANY,
            ExprKind::Tensor(id) => declared(&program.tensors[id.index()].range),
            ExprKind::Local(local) => values[local.index()].map_or(ANY, at),
            ExprKind::Index { base: value, .. } | ExprKind::Rename { value, .. } | ExprKind::StopGradient(value) => {
                at(*value)
            }
            ExprKind::Unary(function, value) => unary(*function, at(*value)),
            ExprKind::Binary(function, lhs, rhs) => binary(*function, at(*lhs), at(*rhs)),
            ExprKind::Contract { lhs, rhs, .. } => at(*lhs).of_products(at(*rhs)).of_sums(),
            ExprKind::Reduce(Reduce::Sum, value, _) => at(*value).of_sums(),
            ExprKind::Reduce(Reduce::Mean | Reduce::Max, value, _) => at(*value),
            ExprKind::Reduce(Reduce::Softmax, ..) => Interval::new(0.0, 1.0),
            ExprKind::Reduce(Reduce::L2Norm, ..) => Interval::new(-1.0, 1.0),
        };
        bounds.push(interval);
    }
    bounds
}

/// What a declared range says of each element.
pub fn declared(range: &Range) -> Interval {
    match *range {
        Range::Any => ANY,
        Range::Interval { lo, hi, .. } => Interval::new(lo, hi),
        Range::Unit(_) => Interval::new(-1.0, 1.0),
    }
}

fn values_of_locals(body: &[Stmt], values: &mut [Option<ExprId>]) {
    for stmt in body {
        match stmt {
            Stmt::Let { local, value, .. } => values[local.index()] = Some(*value),
            Stmt::For { body, .. } => values_of_locals(body, values),
            Stmt::Update { .. } | Stmt::Output { .. } => {}
        }
    }
}

/// Of a function of one value.
pub fn unary(function: Unary, x: Interval) -> Interval {
    let rising = || Interval::new(value::unary(function, x.lo), value::unary(function, x.hi));
    match function {
        Unary::Neg => Interval::new(-x.hi, -x.lo),
        Unary::Exp | Unary::Exp2 | Unary::Sigmoid | Unary::Tanh | Unary::Elu | Unary::Relu | Unary::Sign => rising(),
        Unary::LogSigmoid | Unary::Softplus => rising(),
        Unary::Log => Interval::new(if x.lo > 0.0 { x.lo.ln() } else { f64::NEG_INFINITY }, x.hi.max(0.0).ln()),
        Unary::Sqrt => Interval::new(x.lo.max(0.0).sqrt(), x.hi.max(0.0).sqrt()),
        Unary::Abs | Unary::Square => {
            let (lo, hi) = (value::unary(function, x.lo), value::unary(function, x.hi));
            if x.lo <= 0.0 && x.hi >= 0.0 {
                Interval::new(0.0, lo.max(hi))
            } else {
                Interval::new(lo.min(hi), lo.max(hi))
            }
        }
        // Both fall to a shallow valley left of 0 and rise from there.
        Unary::Silu => Interval::new(-0.2785, x.hi.max(0.0)),
        Unary::Gelu => Interval::new(-0.1701, x.hi.max(0.0)),
        Unary::Sin | Unary::Cos => Interval::new(-1.0, 1.0),
    }
}

/// Of a function of two values.
pub fn binary(function: Binary, x: Interval, y: Interval) -> Interval {
    match function {
        Binary::Add => Interval::new(x.lo + y.lo, x.hi + y.hi),
        Binary::Sub => Interval::new(x.lo - y.hi, x.hi - y.lo),
        Binary::Mul => x.of_products(y),
        Binary::Div => x.of_products(y.inverse()),
        Binary::Min => Interval::new(x.lo.min(y.lo), x.hi.min(y.hi)),
        Binary::Max => Interval::new(x.lo.max(y.lo), x.hi.max(y.hi)),
        Binary::Pow if x.lo >= 0.0 => {
            let corners = [x.lo.powf(y.lo), x.lo.powf(y.hi), x.hi.powf(y.lo), x.hi.powf(y.hi)];
            let lo = corners.iter().copied().fold(f64::INFINITY, f64::min);
            let hi = corners.iter().copied().fold(0.0, f64::max);
            // Between the corners 0 and ∞ of a wide rectangle anything may lie.
            if corners.iter().any(|corner| corner.is_nan()) {
                Interval::new(0.0, f64::INFINITY)
            } else {
                Interval::new(lo, hi)
            }
        }
        Binary::Pow if y.lo == y.hi && y.lo.rem_euclid(2.0) == 0.0 => Interval::new(0.0, f64::INFINITY),
        Binary::Pow => ANY,
    }
}

#[cfg(test)]
mod tests {
    use super::{ANY, Interval, binary, unary};
    use crate::program::{Binary, Unary};
    use crate::value;

    /// Points on a grid inside an interval never lead outside of the bounds.
    #[test]
    fn bounds_hold_on_a_grid() {
        let functions = [
            Unary::Neg,
            Unary::Exp,
            Unary::Exp2,
            Unary::Abs,
            Unary::Sign,
            Unary::Sigmoid,
            Unary::LogSigmoid,
            Unary::Softplus,
            Unary::Silu,
            Unary::Tanh,
            Unary::Elu,
            Unary::Relu,
            Unary::Gelu,
            Unary::Sin,
            Unary::Cos,
            Unary::Square,
        ];
        let pairs = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max, Binary::Pow];
        let grid: Vec<f64> = (-12..=12).map(|step| f64::from(step) / 4.0).collect();
        for (from, &lo) in grid.iter().enumerate() {
            for &hi in &grid[from..] {
                let interval = Interval::new(lo, hi);
                for function in functions {
                    let bound = unary(function, interval);
                    for &x in grid.iter().filter(|&&x| lo <= x && x <= hi) {
                        let y = value::unary(function, x);
                        assert!(bound.lo - 1e-12 <= y && y <= bound.hi + 1e-12, "{function:?} {x} {y} {bound:?}");
                    }
                }
                for function in pairs {
                    for other in [Interval::new(-0.5, 2.0), Interval::new(0.25, 0.25), Interval::new(2.0, 2.0)] {
                        let bound = binary(function, interval, other);
                        for &x in grid.iter().filter(|&&x| lo <= x && x <= hi) {
                            for y in [other.lo, other.hi] {
                                let z = value::binary(function, x, y);
                                let holds = z.is_nan() || (bound.lo - 1e-9 <= z && z <= bound.hi + 1e-9);
                                assert!(holds, "{function:?} {x} {y} {z} {bound:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gate_laws_are_seen_to_decay() {
        let softplus = unary(Unary::Softplus, ANY);
        let rate = unary(Unary::Neg, unary(Unary::Exp, ANY));
        assert!(binary(Binary::Mul, rate, softplus).hi <= 0.0);
        assert!(unary(Unary::LogSigmoid, ANY).hi <= 0.0);
    }
}
