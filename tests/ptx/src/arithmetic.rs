//! What instructions compute, for the 32 threads of a warp at once.
//!
//! Comes in: registers of every thread. Goes out: another. It never touches memory and never asks which threads are
//! active.

use crate::instruction::{Binary, Exchange, Relation, Ternary, Unary};
use crate::matrix::Narrow;
use crate::numbers::{bits, float, flush, from_f16, max, min, multiply_add, to_bf16, to_f16, to_tf32};

pub type Wide = [u64; 32];

/// The thread whose value one gets.
pub fn source(how: Exchange, own: u32, by: u32, clamp: u32) -> u32 {
    let (clamp, segments) = (clamp & 31, clamp >> 8 & 31);
    let first = own & segments;
    let last = first | clamp & !segments;
    let by = by & 31;
    match how {
        Exchange::Up => own.checked_sub(by).filter(|it| *it >= last).unwrap_or(own),
        Exchange::Down => Some(own + by).filter(|it| *it <= last).unwrap_or(own),
        Exchange::Butterfly => Some(own ^ by).filter(|it| *it <= last).unwrap_or(own),
        Exchange::Index => Some(first | by & !segments).filter(|it| *it <= last).unwrap_or(own),
    }
}

#[inline(always)]
pub fn zip(a: &Narrow, b: &Narrow, f: impl Fn(u32, u32) -> u32) -> Narrow {
    std::array::from_fn(|at| f(a[at], b[at]))
}

#[inline(always)]
fn zip_float(a: &Narrow, b: &Narrow, f: impl Fn(f32, f32) -> f32) -> Narrow {
    zip(a, b, |a, b| bits(f(float(a), float(b))))
}

fn each(a: &Narrow, f: impl Fn(u32) -> u32) -> Narrow {
    std::array::from_fn(|at| f(a[at]))
}

fn each_float(a: &Narrow, f: impl Fn(f64) -> f64) -> Narrow {
    each(a, |a| bits(f(f64::from(float(a))) as f32))
}

pub fn unary(what: Unary, a: &Narrow) -> Narrow {
    match what {
        Unary::Not => each(a, |a| !a),
        Unary::Negate => each(a, u32::wrapping_neg),
        Unary::NegateFloat => each(a, |a| flush(a) ^ 0x8000_0000),
        Unary::AbsoluteFloat => each(a, |a| flush(a) & 0x7fff_ffff),
        Unary::Exp2 => each_float(a, f64::exp2),
        Unary::Log2 => each_float(a, f64::log2),
        Unary::Reciprocal => each(a, |a| bits(1.0 / float(a))),
        Unary::SquareRoot => each(a, |a| bits(float(a).sqrt())),
        Unary::ReciprocalSquareRoot => each_float(a, |a| 1.0 / a.sqrt()),
        Unary::Tanh => each_float(a, f64::tanh),
        Unary::ToTf32 => each(a, to_tf32),
        Unary::ToBf16 => each(a, to_bf16),
        Unary::ToF16 => each(a, to_f16),
        Unary::FromF16 => each(a, from_f16),
        Unary::NegateHalf => each(a, |a| a & 0xffff ^ 0x8000),
        Unary::AbsoluteHalf => each(a, |a| a & 0x7fff),
        Unary::FromSigned => each(a, |a| bits(a.cast_signed() as f32)),
    }
}

pub fn binary(what: Binary, a: &Narrow, b: &Narrow) -> Narrow {
    use Binary as B;
    let signed = |f: fn(i32, i32) -> i32| zip(a, b, |a, b| f(a.cast_signed(), b.cast_signed()).cast_unsigned());
    match what {
        B::Add => zip(a, b, u32::wrapping_add),
        B::Subtract => zip(a, b, u32::wrapping_sub),
        B::Multiply => zip(a, b, u32::wrapping_mul),
        B::MultiplyHighUnsigned => zip(a, b, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        B::MultiplyHighSigned => signed(|a, b| ((i64::from(a) * i64::from(b)) >> 32) as i32),
        // What is divided by zero has all bits set.
        B::DivideUnsigned => zip(a, b, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        B::DivideSigned => signed(|a, b| if b == 0 { -1 } else { a.wrapping_div(b) }),
        B::RemainderUnsigned => zip(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
        B::RemainderSigned => signed(|a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        B::And => zip(a, b, |a, b| a & b),
        B::Or => zip(a, b, |a, b| a | b),
        B::Xor => zip(a, b, |a, b| a ^ b),
        B::ShiftLeft => zip(a, b, |a, b| a.checked_shl(b).unwrap_or(0)),
        B::ShiftRightUnsigned => zip(a, b, |a, b| a.checked_shr(b).unwrap_or(0)),
        B::ShiftRightSigned => zip(a, b, |a, b| (a.cast_signed() >> b.min(31)).cast_unsigned()),
        B::MinUnsigned => zip(a, b, u32::min),
        B::MaxUnsigned => zip(a, b, u32::max),
        B::MinSigned => signed(i32::min),
        B::MaxSigned => signed(i32::max),
        B::MinSignedNotNegative => signed(|a, b| a.min(b).max(0)),
        B::MaxSignedNotNegative => signed(|a, b| a.max(b).max(0)),
        B::AddFloat => zip_float(a, b, |a, b| a + b),
        B::SubtractFloat => zip_float(a, b, |a, b| a - b),
        B::MultiplyFloat => zip_float(a, b, |a, b| a * b),
        B::DivideFloat => zip_float(a, b, |a, b| a / b),
        B::MinFloat => zip(a, b, min),
        B::MaxFloat => zip(a, b, max),
        B::MaxBf16OrNan => zip(a, b, |a, b| {
            let each = [(a << 16, b << 16), (a & !0xffff, b & !0xffff)].map(|(a, b)| {
                let either = [a, b].map(f32::from_bits);
                if either.iter().any(|it| it.is_nan()) { 0x7fff_0000 } else { max(a, b) }
            });
            each[0] >> 16 | each[1]
        }),
        B::CopySign => zip(a, b, |a, b| a & 0x8000_0000 | b & 0x7fff_ffff),
        B::PackBf16 => zip(a, b, |a, b| to_bf16(a) << 16 | to_bf16(b)),
        B::PackF16 => zip(a, b, |a, b| to_f16(a) << 16 | to_f16(b)),
    }
}

pub fn ternary(what: Ternary, a: &Narrow, b: &Narrow, c: &Narrow) -> Narrow {
    match what {
        Ternary::MultiplyAdd => std::array::from_fn(|at| a[at].wrapping_mul(b[at]).wrapping_add(c[at])),
        Ternary::MultiplyAddFloat => std::array::from_fn(|at| multiply_add(a[at], b[at], c[at])),
        Ternary::ExtractUnsigned => std::array::from_fn(|at| {
            let (first, length) = (b[at] & 0xff, c[at] & 0xff);
            let mask = 1u32.checked_shl(length).map_or(u32::MAX, |bit| bit - 1);
            a[at].checked_shr(first).unwrap_or(0) & mask
        }),
        Ternary::ExtractSigned => std::array::from_fn(|at| {
            let (first, length) = (b[at] & 0xff, c[at] & 0xff);
            if length == 0 {
                return 0;
            }
            let value = i64::from(a[at].cast_signed()) >> first.min(63);
            let beyond = 64 - length.min(64);
            ((value << beyond) >> beyond) as u32
        }),
    }
}

pub fn wide_unary(what: Unary, a: &Wide) -> Option<Wide> {
    match what {
        Unary::Not => Some(a.map(|a| !a)),
        Unary::Negate => Some(a.map(u64::wrapping_neg)),
        _ => None,
    }
}

pub fn wide_shift(what: Binary, a: &Wide, b: &Narrow) -> Wide {
    std::array::from_fn(|at| match what {
        Binary::ShiftLeft => a[at].checked_shl(b[at]).unwrap_or(0),
        Binary::ShiftRightSigned => (a[at].cast_signed() >> b[at].min(63)).cast_unsigned(),
        _ => a[at].checked_shr(b[at]).unwrap_or(0),
    })
}

pub fn wide_binary(what: Binary, a: &Wide, b: &Wide) -> Option<Wide> {
    use Binary as B;
    #[inline(always)]
    fn zip(a: &Wide, b: &Wide, f: impl Fn(u64, u64) -> u64) -> Wide {
        std::array::from_fn(|at| f(a[at], b[at]))
    }
    let signed = |f: fn(i64, i64) -> i64| zip(a, b, |a, b| f(a.cast_signed(), b.cast_signed()).cast_unsigned());
    Some(match what {
        B::Add => zip(a, b, u64::wrapping_add),
        B::Subtract => zip(a, b, u64::wrapping_sub),
        B::Multiply => zip(a, b, u64::wrapping_mul),
        B::MultiplyHighUnsigned => zip(a, b, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        B::MultiplyHighSigned => signed(|a, b| ((i128::from(a) * i128::from(b)) >> 64) as i64),
        B::DivideUnsigned => zip(a, b, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        B::DivideSigned => signed(|a, b| if b == 0 { -1 } else { a.wrapping_div(b) }),
        B::RemainderUnsigned => zip(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
        B::RemainderSigned => signed(|a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        B::And => zip(a, b, |a, b| a & b),
        B::Or => zip(a, b, |a, b| a | b),
        B::Xor => zip(a, b, |a, b| a ^ b),
        B::MinUnsigned => zip(a, b, u64::min),
        B::MaxUnsigned => zip(a, b, u64::max),
        B::MinSigned => signed(i64::min),
        B::MaxSigned => signed(i64::max),
        _ => return None,
    })
}

/// For which threads a relation holds.
#[inline(always)]
pub fn order<T: Copy, N: PartialOrd>(a: &[T; 32], b: &[T; 32], relation: Relation, number: impl Fn(T) -> N) -> u32 {
    let holds = |a: N, b: N| match relation {
        Relation::Equal => a == b,
        Relation::NotEqual => a != b && a.partial_cmp(&b).is_some(),
        Relation::Less => a < b,
        Relation::LessOrEqual => a <= b,
        Relation::Greater => a > b,
        Relation::GreaterOrEqual => a >= b,
        Relation::Unordered => a.partial_cmp(&b).is_none(),
        Relation::Ordered => a.partial_cmp(&b).is_some(),
    };
    (0..32).fold(0, |mask, at| mask | u32::from(holds(number(a[at]), number(b[at]))) << at)
}
