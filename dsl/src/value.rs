//! The elementwise functions on plain numbers, for constants. In: float64; out: float64. It knows no tensors.
//!
//! The interpreters have their own copies on purpose: they are witnesses, and a witness borrows nothing.

use crate::program::{Binary, Unary};

/// A function of one number.
pub fn unary(function: Unary, x: f64) -> f64 {
    match function {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Exp2 => x.exp2(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Abs => x.abs(),
        Unary::Sign => {
            if x == 0.0 {
                0.0
            } else {
                x.signum()
            }
        }
        Unary::Sigmoid => sigmoid(x),
        Unary::LogSigmoid => -softplus(-x),
        Unary::Softplus => softplus(x),
        Unary::Silu => x * sigmoid(x),
        Unary::Tanh => x.tanh(),
        Unary::Elu => {
            if x > 0.0 {
                x
            } else {
                x.exp_m1()
            }
        }
        Unary::Relu => x.max(0.0),
        Unary::Gelu => x * 0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Square => x * x,
    }
}

/// A function of two numbers.
pub fn binary(function: Binary, x: f64, y: f64) -> f64 {
    match function {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Pow => x.powf(y),
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
    }
}

fn sigmoid(x: f64) -> f64 {
    // The exponent is never positive, so neither branch overflows.
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The complementary error function: a Taylor series near zero, Lentz's continued fraction in the tails.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        // erf x = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!, all terms positive.
        let mut term = x;
        let mut sum = x;
        let mut n = 0.0;
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum;
    }
    // erfc x = e^(−x²)/√π · 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + …)))), from the inside out.
    let mut tail = x;
    for n in (1..=120).rev() {
        tail = x + 0.5 * f64::from(n) / tail;
    }
    (-x * x).exp() / std::f64::consts::PI.sqrt() / tail
}

#[cfg(test)]
mod tests {
    use super::{erfc, unary};
    use crate::program::Unary;

    #[test]
    fn erfc_agrees_with_tables() {
        // Abramowitz & Stegun, table 7.1 (erf) and 7.3.
        for (x, erf) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((1.0 - erfc(x) - erf).abs() < 1e-10, "erf {x}");
            assert!((1.0 - erfc(-x) + erf).abs() < 1e-10, "erf −{x}");
        }
        assert!((erfc(3.0) / 2.209_049_699_858_544e-5 - 1.0).abs() < 1e-10);
    }

    #[test]
    fn far_arguments_stay_finite() {
        assert_eq!(unary(Unary::Sigmoid, -1e4), 0.0);
        assert_eq!(unary(Unary::Softplus, 1e4), 1e4);
        assert_eq!(unary(Unary::LogSigmoid, -1e4), -1e4);
        assert_eq!(unary(Unary::Gelu, -50.0), 0.0);
    }
}
