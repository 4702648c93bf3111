//! What rounding does to a recurrence: every computed value moved by a little.
//!
//! In: the slots that an operation has written, or their adjoints. Out: the same, each moved by a fixed part of itself,
//! or of what it is a sum of, up or down. Never moves a value that computers give exactly: a copy, a sign, a maximum.

use chunkwise_dsl::program::{Binary, Reduce, Unary};

use super::plan::{Compute, Operation, Slots};
use super::sums::Sums;

/// How much values are moved, and which way.
#[derive(Clone, Copy, Debug)]
pub struct Rounding {
    /// Part of itself by which each value is moved.
    pub half_unit: f64,
    /// Says which way.
    pub seed: u64,
    /// How many tokens are gone through at once, where they are: a state, and its adjoint, is then moved by that part
    /// of the root of the sum of the squares of all that was added up in it since such a block began.
    pub block: Option<usize>,
}

impl Rounding {
    /// That of one token. A token that is gone through again is moved the same way again.
    pub(super) fn of(self, sequence: usize, head: usize, token: usize) -> Rounding {
        let seed = [sequence, head, token].into_iter().fold(self.seed, |seed, part| mixed(seed ^ part as u64));
        Rounding { seed, ..self }
    }

    /// That of the way back: of the adjoints, not of the values.
    pub(super) fn backwards(self) -> Rounding {
        Rounding { seed: !self.seed, ..self }
    }

    /// Moves what an operation has written, among the slots or their adjoints.
    pub(super) fn apply(self, operation: &Operation, slots: &mut [f64], sums: Option<&Sums>) {
        if !is_exact(&operation.compute) {
            self.shift(operation.result, slots, sums);
        }
    }

    /// Moves some slots, or their adjoints.
    pub(super) fn shift(self, run: Slots, slots: &mut [f64], sums: Option<&Sums>) {
        for at in run.range() {
            let up = mixed(self.seed ^ at as u64) & 1 == 0;
            let part = if up { self.half_unit } else { -self.half_unit };
            match sums.map(|it| it.squares()[at].sqrt()) {
                Some(size) if size > slots[at].abs() => slots[at] += part * size,
                Some(_) | None => slots[at] *= 1.0 + part,
            }
        }
    }
}

/// Whether a computer gives the result without rounding.
fn is_exact(compute: &Compute) -> bool {
    match compute {
        Compute::Copy(_)
        | Compute::Map(Unary::Neg | Unary::Abs | Unary::Sign | Unary::Relu, _)
        | Compute::Zip(Binary::Min | Binary::Max, _)
        | Compute::Reduce { function: Reduce::Max, .. } => true,
        Compute::Map(..) | Compute::Zip(..) | Compute::Contract(_) | Compute::Reduce { .. } => false,
    }
}

/// A number whose every bit depends on every bit of another.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
