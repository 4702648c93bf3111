//! Arithmetic on the bits of float32, with numbers below the normal range counted as zero.
//!
//! Sums, products, quotients and conversions are correctly rounded, as PTX defines them. A multiply-add is rounded to
//! float64 before it is rounded to float32, which differs from one rounding in about one case of 2²⁹. What PTX only
//! approximates (`ex2`, `lg2`, `tanh`, …) is the nearest float32 here.

use half::{bf16, f16};

const SIGN: u32 = 0x8000_0000;
const EXPONENT: u32 = 0x7f80_0000;

/// Zero of the same sign, if a number is below the normal range.
#[inline(always)]
pub fn flush(bits: u32) -> u32 {
    if bits & EXPONENT == 0 { bits & SIGN } else { bits }
}

#[inline(always)]
pub fn float(bits: u32) -> f32 {
    f32::from_bits(flush(bits))
}

#[inline(always)]
pub fn bits(value: f32) -> u32 {
    flush(value.to_bits())
}

#[inline(always)]
pub fn multiply_add(a: u32, b: u32, c: u32) -> u32 {
    bits((float(a) as f64 * float(b) as f64 + float(c) as f64) as f32)
}

/// The smaller; a number where the other is none; −0 before 0.
#[inline(always)]
pub fn min(a: u32, b: u32) -> u32 {
    let (x, y) = (float(a), float(b));
    let less = x < y || y.is_nan() || (x == y && x.is_sign_negative());
    bits(if less { x } else { y })
}

#[inline(always)]
pub fn max(a: u32, b: u32) -> u32 {
    let (x, y) = (float(a), float(b));
    let greater = x > y || y.is_nan() || (x == y && x.is_sign_positive());
    bits(if greater { x } else { y })
}

/// To ten digits after the first, ties away from zero.
#[inline(always)]
pub fn to_tf32(a: u32) -> u32 {
    if a & EXPONENT == EXPONENT { a } else { a.wrapping_add(0x1000) & !0x1fff }
}

pub fn to_bf16(a: u32) -> u32 {
    u32::from(bf16::from_f32(f32::from_bits(a)).to_bits())
}

pub fn to_f16(a: u32) -> u32 {
    u32::from(f16::from_f32(f32::from_bits(a)).to_bits())
}

/// The number of 16 bits, zero if it is below the normal range.
pub fn half(a: u32) -> f32 {
    let value = f16::from_bits(a as u16);
    if value.is_normal() || !value.is_finite() { value.to_f32() } else { 0.0 }
}

pub fn from_f16(a: u32) -> u32 {
    bits(f16::from_bits(a as u16).to_f32())
}

/// The nearest float32 that is no further from zero: so the sums of tensor cores end.
#[inline(always)]
pub fn towards_zero(value: f64) -> f32 {
    let near = value as f32;
    if (near as f64).abs() > value.abs() { f32::from_bits(near.to_bits() - 1) } else { near }
}
