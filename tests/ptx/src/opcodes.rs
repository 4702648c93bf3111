//! Words of PTX and what they mean.

use crate::instruction::{Binary, Compared, Relation, Space, Special, Unary};

type Read<T> = Result<T, String>;

pub fn special(name: &str) -> Option<Special> {
    Some(match name {
        "%tid.x" => Special::Thread,
        "%laneid" => Special::Lane,
        "%ntid.x" => Special::Threads,
        "%ctaid.x" => Special::Block(0),
        "%ctaid.y" => Special::Block(1),
        "%ctaid.z" => Special::Block(2),
        "%nctaid.x" => Special::Blocks(0),
        "%nctaid.y" => Special::Blocks(1),
        "%nctaid.z" => Special::Blocks(2),
        "%tid.y" | "%tid.z" => Special::Zero,
        "%ntid.y" | "%ntid.z" => Special::One,
        _ => return None,
    })
}

pub fn space_of(word: &str) -> Read<Space> {
    match word {
        "param" => Ok(Space::Parameter),
        "shared" => Ok(Space::Shared),
        "global" => Ok(Space::Global),
        _ => Err(format!("the memory `{word}` is not known")),
    }
}

pub fn bytes_of(kind: &str) -> Read<u32> {
    match kind {
        "b16" => Ok(2),
        "b32" => Ok(4),
        "b64" => Ok(8),
        _ => Err(format!("an access of `{kind}` is not known")),
    }
}

/// Checks that as many values stand there as the opcode says.
pub fn vector_of(words: &[&str], count: usize) -> Read<()> {
    let said = match words[2] {
        "v2" => 2,
        "v4" => 4,
        _ => 1,
    };
    if said == count { Ok(()) } else { Err(format!("{said} registers are expected")) }
}

pub fn comparison(relation: &str, kind: &str) -> Read<(Relation, Compared)> {
    let compared = match kind {
        "f32" => Compared::Float,
        "f16" => Compared::Half,
        "b16" | "u16" | "b32" | "u32" => Compared::Unsigned,
        "s32" => Compared::Signed,
        "b64" | "u64" => Compared::WideUnsigned,
        _ => Compared::WideSigned,
    };
    let (relation, unordered) = match relation.strip_suffix('u') {
        Some(relation) if compared == Compared::Float => (relation, true),
        Some(_) | None => (relation, false),
    };
    let known = match relation {
        "eq" => Relation::Equal,
        "ne" => Relation::NotEqual,
        "lt" => Relation::Less,
        "le" => Relation::LessOrEqual,
        "gt" => Relation::Greater,
        "ge" => Relation::GreaterOrEqual,
        "nan" if matches!(compared, Compared::Float | Compared::Half) => Relation::Unordered,
        "num" if matches!(compared, Compared::Float | Compared::Half) => Relation::Ordered,
        _ => return Err(format!("the relation `{relation}` is not known")),
    };
    Ok((known, if unordered { Compared::FloatOrUnordered } else { compared }))
}

pub fn unary(opcode: &str) -> Option<Unary> {
    Some(match opcode {
        "not.b16" | "not.b32" | "not.b64" => Unary::Not,
        "neg.s32" | "neg.s64" => Unary::Negate,
        "neg.ftz.f32" => Unary::NegateFloat,
        "abs.ftz.f32" => Unary::AbsoluteFloat,
        "ex2.approx.ftz.f32" => Unary::Exp2,
        "lg2.approx.ftz.f32" => Unary::Log2,
        "rcp.rn.ftz.f32" | "rcp.approx.ftz.f32" => Unary::Reciprocal,
        "sqrt.rn.ftz.f32" | "sqrt.approx.ftz.f32" => Unary::SquareRoot,
        "rsqrt.approx.ftz.f32" => Unary::ReciprocalSquareRoot,
        "tanh.approx.f32" => Unary::Tanh,
        "cvt.rna.tf32.f32" => Unary::ToTf32,
        "cvt.rn.bf16.f32" => Unary::ToBf16,
        "cvt.rn.f16.f32" => Unary::ToF16,
        "neg.bf16" | "neg.f16" | "neg.ftz.f16" => Unary::NegateHalf,
        "abs.bf16" | "abs.f16" | "abs.ftz.f16" => Unary::AbsoluteHalf,
        "cvt.rn.f32.s32" => Unary::FromSigned,
        "cvt.f32.f16" | "cvt.ftz.f32.f16" => Unary::FromF16,
        _ => return None,
    })
}

pub fn binary(opcode: &str) -> Option<Binary> {
    Some(match opcode {
        "add.rn.ftz.f32" => Binary::AddFloat,
        "sub.rn.ftz.f32" => Binary::SubtractFloat,
        "mul.rn.ftz.f32" => Binary::MultiplyFloat,
        "div.rn.ftz.f32" => Binary::DivideFloat,
        "min.ftz.f32" => Binary::MinFloat,
        "max.ftz.f32" => Binary::MaxFloat,
        "max.NaN.bf16x2" => Binary::MaxBf16OrNan,
        "copysign.f32" => Binary::CopySign,
        "cvt.rn.bf16x2.f32" => Binary::PackBf16,
        "cvt.rn.f16x2.f32" => Binary::PackF16,
        "add.s16" | "add.s32" | "add.u32" | "add.s64" | "add.u64" => Binary::Add,
        "sub.s16" | "sub.s32" | "sub.u32" | "sub.s64" | "sub.u64" => Binary::Subtract,
        "mul.lo.s16" | "mul.lo.s32" | "mul.lo.u32" | "mul.lo.s64" | "mul.lo.u64" => Binary::Multiply,
        "mul.hi.u32" | "mul.hi.u64" => Binary::MultiplyHighUnsigned,
        "mul.hi.s32" | "mul.hi.s64" => Binary::MultiplyHighSigned,
        "div.u32" | "div.u64" => Binary::DivideUnsigned,
        "div.s32" | "div.s64" => Binary::DivideSigned,
        "rem.u32" | "rem.u64" => Binary::RemainderUnsigned,
        "rem.s32" | "rem.s64" => Binary::RemainderSigned,
        "and.b16" | "and.b32" | "and.b64" => Binary::And,
        "or.b16" | "or.b32" | "or.b64" => Binary::Or,
        "xor.b16" | "xor.b32" | "xor.b64" => Binary::Xor,
        "shl.b16" | "shl.b32" | "shl.b64" => Binary::ShiftLeft,
        "shr.u16" | "shr.u32" | "shr.u64" => Binary::ShiftRightUnsigned,
        "shr.s32" | "shr.s64" => Binary::ShiftRightSigned,
        "min.u16" | "min.u32" | "min.u64" => Binary::MinUnsigned,
        "max.u16" | "max.u32" | "max.u64" => Binary::MaxUnsigned,
        "min.s32" | "min.s64" => Binary::MinSigned,
        "max.s32" | "max.s64" => Binary::MaxSigned,
        "min.relu.s32" => Binary::MinSignedNotNegative,
        "max.relu.s32" => Binary::MaxSignedNotNegative,
        _ => return None,
    })
}
