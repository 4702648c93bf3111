//! A span of tokens as an affine map, and how two such maps follow each other.

use crate::derive::forms::no_summary;
use crate::derive::recurrence::{Edit, LowRank, MatrixState};
use crate::derive::rule::Rule;
use crate::error::CompileError;
use crate::graph::ir::DimId;

/// The rule.
pub const RULE: Rule = Rule {
    name: "summarise a span",
    before: "S_end from S₀, through any number of tokens",
    after: "S_end = (M S₀) ⊙ D + U;  two spans compose to (M₂ M₁, D₁ ⊙ D₂, (M₂ U₁) ⊙ D₂ + U₂)",
    holds_when: "the stratum is of low rank and no other stratum's state enters it; D collects decays on free axes",
    why: "every token is affine in S, and affine maps compose",
    source: "Blelloch 1990 (scans of affine maps); Yang et al. 2024, arXiv 2406.06484",
};

/// The stratum with nothing of its own to write, its free axes replaced by the columns of the identity it is applied to.
pub fn homogeneous(form: &LowRank, from: DimId) -> Result<LowRank, CompileError> {
    if form.edits.iter().any(|e| e.scale.is_some()) {
        return Err(no_summary("an edit scales what it reads along a kept axis, so every column has a map of its own"));
    }
    if form.edits.iter().any(|e| !e.reads.is_empty())
        && form.states.iter().any(|s| !s.on_free.is_empty())
        && form.states.len() > 1
    {
        return Err(no_summary("coupled states decay along kept axes"));
    }
    let states = form.states.iter().map(|s| MatrixState { free: vec![from], on_free: vec![], ..s.clone() }).collect();
    let edits = form.edits.iter().filter(|e| !e.reads.is_empty()).map(|e| Edit { c: None, ..e.clone() }).collect();
    Ok(LowRank { states, edits })
}
