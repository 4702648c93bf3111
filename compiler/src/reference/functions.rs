//! The scalar functions of the language and their slopes, in float64.
//!
//! Each is written in the form that keeps its accuracy at both ends: no `1 − sigmoid(x)`, no `ln(1 + e^x)`.

use chunkwise_dsl::program::{Binary, Unary};
use std::f64::consts::{FRAC_1_SQRT_2, LN_2, PI};

/// f(x)
pub(super) fn unary(function: Unary, x: f64) -> f64 {
    match function {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Exp2 => x.exp2(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Abs => x.abs(),
        Unary::Sign => sign(x),
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
        Unary::Relu => {
            if x <= 0.0 {
                0.0
            } else {
                x
            }
        }
        Unary::Gelu => x * normal_distribution(x),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Square => x * x,
    }
}

/// f′(x), given also y = f(x).
pub(super) fn unary_slope(function: Unary, x: f64, y: f64) -> f64 {
    match function {
        Unary::Neg => -1.0,
        Unary::Exp => y,
        Unary::Exp2 => LN_2 * y,
        Unary::Log => 1.0 / x,
        Unary::Sqrt => 0.5 / y,
        Unary::Abs => sign(x),
        Unary::Sign => 0.0,
        Unary::Sigmoid => y * sigmoid(-x),
        Unary::LogSigmoid => sigmoid(-x),
        Unary::Softplus => sigmoid(x),
        Unary::Silu => sigmoid(x) * (1.0 + x * sigmoid(-x)),
        Unary::Tanh => (1.0 / x.cosh()).powi(2),
        Unary::Elu => {
            if x > 0.0 {
                1.0
            } else {
                x.exp()
            }
        }
        Unary::Relu => {
            if x > 0.0 {
                1.0
            } else {
                0.0
            }
        }
        Unary::Gelu => normal_distribution(x) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt(),
        Unary::Sin => x.cos(),
        Unary::Cos => -x.sin(),
        Unary::Square => 2.0 * x,
    }
}

/// f(a, b)
pub(super) fn binary(function: Binary, a: f64, b: f64) -> f64 {
    match function {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Min => {
            if a < b || a.is_nan() {
                a
            } else {
                b
            }
        }
        Binary::Max => {
            if a > b || a.is_nan() {
                a
            } else {
                b
            }
        }
    }
}

/// ∂f/∂a and ∂f/∂b, given also y = f(a, b).
pub(super) fn binary_slopes(function: Binary, a: f64, b: f64, y: f64) -> (f64, f64) {
    match function {
        Binary::Add => (1.0, 1.0),
        Binary::Sub => (1.0, -1.0),
        Binary::Mul => (b, a),
        Binary::Div => (1.0 / b, -y / b),
        // a⁰ is the constant 1 and 0ᵇ the constant 0: the general formulas would give 0 · ∞ there.
        Binary::Pow => (if b == 0.0 { 0.0 } else { b * a.powf(b - 1.0) }, if a == 0.0 { 0.0 } else { y * a.ln() }),
        Binary::Min => share(a < b, b < a),
        Binary::Max => share(a > b, b > a),
    }
}

/// The slopes of a choice between two values.
fn share(first_wins: bool, second_wins: bool) -> (f64, f64) {
    match (first_wins, second_wins) {
        (true, _) => (1.0, 0.0),
        (false, true) => (0.0, 1.0),
        (false, false) => (0.5, 0.5),
    }
}

fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        // 0 and NaN are their own sign.
        x
    }
}

fn sigmoid(x: f64) -> f64 {
    // e^−|x| never overflows, and the small side keeps all its digits.
    let decay = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + decay) } else { decay / (1.0 + decay) }
}

fn softplus(x: f64) -> f64 {
    let linear = if x <= 0.0 { 0.0 } else { x };
    linear + (-x.abs()).exp().ln_1p()
}

/// Φ(x), the standard normal distribution.
fn normal_distribution(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}
