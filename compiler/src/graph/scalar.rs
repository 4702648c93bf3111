//! Values of the elementwise functions, in float64.
//!
//! Comes in: numbers. Goes out: the function's value, NaN wherever the mathematics has none. Never panics, never
//! overflows on the way to a result that is finite.

use super::ir::{Binary, Compare, Unary};

impl Unary {
    /// The function's value.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Unary::Neg => -x,
            Unary::Exp => x.exp(),
            Unary::Expm1 => x.exp_m1(),
            Unary::Log => x.ln(),
            Unary::Sqrt => x.sqrt(),
            Unary::Recip => 1.0 / x,
            Unary::Abs => x.abs(),
            // Not `signum`, which is ±1 at ±0.
            Unary::Sign => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x * 0.0
                }
            }
            Unary::Square => x * x,
            Unary::Sigmoid => {
                if x >= 0.0 {
                    1.0 / (1.0 + (-x).exp())
                } else {
                    x.exp() / (1.0 + x.exp())
                }
            }
            Unary::LogSigmoid => -Unary::Softplus.apply(-x),
            Unary::Softplus => {
                if x > 0.0 {
                    x + (-x).exp().ln_1p()
                } else {
                    x.exp().ln_1p()
                }
            }
            Unary::Tanh => x.tanh(),
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Erf => libm::erf(x),
        }
    }
}

impl Binary {
    /// The function's value.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min if a.is_nan() || b.is_nan() => f64::NAN,
            Binary::Max if a.is_nan() || b.is_nan() => f64::NAN,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::Pow => a.powf(b),
        }
    }
}

/// Whether `lhs op rhs`; false if either is NaN.
pub fn compare(op: Compare, lhs: f64, rhs: f64) -> bool {
    match op {
        Compare::Lt => lhs < rhs,
        Compare::Le => lhs <= rhs,
        Compare::Eq => lhs == rhs,
    }
}
