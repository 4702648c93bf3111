//! The number types of tensors in files and in calls. In: a name or a number; out: that number as the type holds it.

use chunkwise_abi::DType;
use half::{bf16, f16};

/// Type of the tensors of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Precision {
    /// float64, in the interpreters
    F64,
    /// float32
    F32,
    /// bfloat16, computed in float32
    Bf16,
    /// float16, computed in float32
    F16,
}

impl Precision {
    /// All of them, the widest first.
    pub const ALL: [Precision; 4] = [Precision::F64, Precision::F32, Precision::Bf16, Precision::F16];

    /// `f64`, `f32`, `bf16`, `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }

    /// The nearest number that the type holds.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Precision::F64 => value,
            Precision::F32 => value as f32 as f64,
            Precision::Bf16 => to_bf16(value).to_f64(),
            Precision::F16 => to_f16(value).to_f64(),
        }
    }

    /// The type of states and parameters beside tokens of this type: never less than float32.
    pub fn beside(self) -> Precision {
        match self {
            Precision::F64 => Precision::F64,
            Precision::F32 | Precision::Bf16 | Precision::F16 => Precision::F32,
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F64 => 8,
            Precision::F32 => 4,
            Precision::Bf16 | Precision::F16 => 2,
        }
    }

    /// The type of a compiled kernel's tensors; there are no float64 kernels.
    pub fn compiled(self) -> Option<DType> {
        match self {
            Precision::F64 => None,
            Precision::F32 => Some(DType::F32),
            Precision::Bf16 => Some(DType::BF16),
            Precision::F16 => Some(DType::F16),
        }
    }
}

/// The nearest bfloat16.
pub fn to_bf16(value: f64) -> bf16 {
    bf16::from_f32(to_odd(value))
}

/// The nearest float16.
pub fn to_f16(value: f64) -> f16 {
    f16::from_f32(to_odd(value))
}

/// A float32 that rounds further as the number itself does: one that is not exact is cut off, and its last bit set.
/// (`half` converts from float64 by forgetting the lower bits, which is wrong just beyond a tie.)
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || !near.is_finite() {
        return near;
    }
    let beyond = f64::from(near).abs() > value.abs();
    f32::from_bits((near.to_bits() - u32::from(beyond)) | 1)
}

#[cfg(test)]
mod tests {
    use super::Precision;

    #[test]
    fn rounding_goes_to_the_nearest_number_once() {
        // Halfway between two bfloat16 numbers but for a bit that float32 does not hold: rounding twice goes down.
        let tricky = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(Precision::Bf16.round(tricky), 1.0 + 2f64.powi(-7));
        assert_eq!(Precision::F16.round(65520.0), f64::INFINITY);
        assert_eq!(Precision::F32.round(0.1), 0.1f32 as f64);
        assert_eq!(Precision::F64.round(0.1), 0.1);
    }
}
