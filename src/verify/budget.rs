//! How far a result may be from the reference. In: a result's name, the precision it was computed in; out: a relative
//! error. The numbers are those that the numerics chapter of the book states; nothing here looks at the results.

use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Program, Range};

use crate::precision::Precision;

/// What a result is part of, in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Share {
    /// Outputs and final states.
    Values,
    /// Gradients of everything.
    Gradients,
}

impl Share {
    /// Words for the table.
    pub fn name(self) -> &'static str {
        match self {
            Share::Values => "outputs, states",
            Share::Gradients => "gradients",
        }
    }

    /// The share of a result.
    pub fn of(name: &str) -> Share {
        if name.starts_with("grad") { Share::Gradients } else { Share::Values }
    }
}

/// The relative error allowed to a result: ‖x − ref‖ / max(‖ref‖, [`floor`]).
pub fn allowed(program: &Program, name: &str, precision: Precision) -> f64 {
    match (precision, Share::of(name)) {
        (Precision::F64, _) => 1e-9,
        (Precision::F32, Share::Values) => 2e-5,
        (Precision::F32, Share::Gradients) => 1e-4,
        (Precision::Bf16 | Precision::F16, Share::Values) => 5e-3,
        (Precision::Bf16 | Precision::F16, Share::Gradients) => {
            let of = name.split_once('.').map_or(name, |(_, rest)| rest);
            let gate = program.tensors.iter().any(|tensor| {
                tensor.name == of && (tensor.axes.is_empty() || matches!(tensor.range, Range::Interval { .. }))
            });
            if gate { 2e-2 } else { 8e-3 }
        }
    }
}

/// How many times farther off than rounding of inputs and results alone a narrow type may be: where edits only add, and
/// where they depend on each other.
pub const BEYOND_ROUNDING: (f64, f64) = (1.5, 2.8);

/// The fewest rounding errors, independent of each other, that an error is measured against.
///
/// Each is uniform within half a unit, which goes with the size of its number. For numbers normally distributed, the
/// square of one has a variance of (3 · 9/5 − 1) = 4.4 times its squared mean; so the norm of n of them differs from
/// what is expected by √4.4 / 2√n = 1.05/√n of it, one standard deviation. A kernel stands at about 1.1 times rounding
/// alone. That it passes for 1.5 takes a norm that happens to be 0.27 too small, which for 256 is four standard
/// deviations: a verification makes about a thousand such comparisons, and one in thirty thousand is wrong.
pub const ENOUGH_ROUNDINGS: usize = 256;

/// Half a unit in the last place of the type that tensors are stored in.
pub fn half_unit(precision: Precision) -> f64 {
    match precision {
        Precision::F64 => 2f64.powi(-53),
        Precision::F32 => 2f64.powi(-24),
        Precision::Bf16 => 2f64.powi(-9),
        Precision::F16 => 2f64.powi(-12),
    }
}

/// Below this norm a result is judged by its absolute error: a root mean square of 1e-3, where inputs and cotangents
/// have about 1. Gates that forget at once have gradients so small that they are the difference of larger numbers.
pub fn floor(tensor: &Tensor) -> f64 {
    1e-3 * (tensor.data.len() as f64).sqrt()
}

/// How strongly results answer to rounding alone: each one's relative change when every input is moved by half a unit
/// in its last place, or when every value computed on the way is moved so too, as computing the program as it is
/// written, a token at a time, would round it. A result may differ by [`ROUNDINGS`] times the larger, whatever the
/// budget says: a division by a sum near zero, say, magnifies every rounding, in any order of computation.
///
/// Inputs alone do not show everything. A key that is computed is rounded like one that is given, and what an edit with
/// it leaves of a state, or of its gradient, is a difference of equal numbers that answers to that: with the key
/// `softmax(x, K)` and one position of K, `S + k (v − k @ S)` has the gradient 1 − k² with regard to S, and no change of
/// `x` moves k from 1. That is why the same factor stands before both. What is moved is the reference, never the form
/// under test: a form that loses more than the program itself does is found out.
pub const ROUNDINGS: f64 = 64.0;

/// The same for what a form has to round because it goes through a block of tokens at once: how many times farther off
/// a result may be than the root of the sum of the squares of all edits of a block, rounded once, makes it.
///
/// A token at a time, an edit that takes away what the state held takes its rounding away too, and so does a gradient's
/// way back through it. A block adds up its edits instead, S₀ + Σ u ⊗ x, and the gradient Σ q ⊗ do + Σ w ⊗ dx; if little
/// or nothing remains, what remains is the rounding of the terms. With `S + k (v − k @ S)`, one position of K and three
/// edits a token, the gradient with regard to S₀ is exactly zero a token at a time, and in chunks of 16 the sum of 48
/// terms of about one.
///
/// The edits are those of the reference, and so are their sizes. Of the roundings, what is moved once is an edit's own;
/// the terms of a read, of the substitution and of a product's partial sums are not, each a few times as large.
/// Programs of that kind were 0.4 to 5.6 times as far off as a move, in results of a few numbers up to 10 times, where
/// a move by so few signs says least. Only forms in blocks are allowed this, and it is a quarter of the factor above:
/// it stands before a size that counts the terms already.
pub const ROUNDINGS_OF_BLOCKS: f64 = 16.0;

/// Half a unit in the last place of the type that is computed in: float32 also where tensors are narrower.
pub fn arithmetic_half_unit(precision: Precision) -> f64 {
    match precision {
        Precision::F64 => 2f64.powi(-53),
        Precision::F32 | Precision::Bf16 | Precision::F16 => 2f64.powi(-24),
    }
}

/// Inputs each moved by half a unit in the last place, up or down.
pub fn nudged(bundle: &Bundle, precision: Precision, random: &mut super::random::Random) -> Bundle {
    let half_unit = arithmetic_half_unit(precision);
    let mut nudged = bundle.clone();
    for tensor in nudged.values_mut() {
        for value in &mut tensor.data {
            *value *= if random.below(2) == 0 { 1.0 + half_unit } else { 1.0 - half_unit };
        }
    }
    nudged
}
