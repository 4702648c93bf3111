//! How the reference answers to rounding. In: an instance, tensors, and how they are computed with; out: by how much more
//! than its budget a result may be off. It never looks at a form's results, only at how many tokens it takes at once.

use chunkwise_compiler::reference::{self, ReferenceError, Rounding};
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;

use super::budget;
use super::case::Case;
use super::random::Random;
use crate::precision::Precision;

/// The reference, still, and moved by roundings that are drawn twice.
pub struct Moved {
    still: Bundle,
    inputs: Vec<Bundle>,
    steps: Vec<Bundle>,
    blocks: Vec<Bundle>,
}

impl Moved {
    /// Moves the inputs alone, then every value on the way as well, and where `block` tokens are gone through at once,
    /// what they add up.
    pub fn new(
        instance: &Instance,
        case: &Case,
        bundle: &Bundle,
        precision: Precision,
        block: Option<usize>,
    ) -> Result<Moved, ReferenceError> {
        let (mut random, mut ways) = (Random::new(case.seed, "nudge"), Random::new(case.seed, "steps"));
        let half_unit = budget::arithmetic_half_unit(precision);
        let still = reference::run_backward(instance, bundle)?;
        let mut moved = Moved { still, inputs: Vec::new(), steps: Vec::new(), blocks: Vec::new() };
        for _ in 0..2 {
            let nudged = budget::nudged(bundle, precision, &mut random);
            let seed = ways.bits();
            let rounded =
                |block| reference::run_backward_rounded(instance, &nudged, Rounding { half_unit, seed, block });
            moved.steps.push(rounded(None)?);
            if block.is_some() {
                moved.blocks.push(rounded(block)?);
            }
            moved.inputs.push(reference::run_backward(instance, &nudged)?);
        }
        Ok(moved)
    }

    /// What a result is allowed beyond its budget.
    pub fn allowance(&self, name: &str, floor: f64) -> f64 {
        let change =
            |by: &[Bundle]| by.iter().map(|it| it[name].relative_error(&self.still[name], floor)).fold(0.0, f64::max);
        let by_token = budget::ROUNDINGS * change(&self.inputs).max(change(&self.steps));
        by_token.max(budget::ROUNDINGS_OF_BLOCKS * change(&self.blocks))
    }
}
