//! A span of tokens as an affine map, and how two such maps follow each other.

use crate::derive::rule::Rule;

/// The rule.
pub const RULE: Rule = Rule {
    name: "summarise a span",
    before: "S_end from S₀, through any number of tokens",
    after: "S_end = (M S₀) ⊙ D + U;  two spans compose to (M₂ M₁, D₁ ⊙ D₂, (M₂ U₁) ⊙ D₂ + U₂)",
    holds_when: "the stratum is of low rank and no other stratum's state enters it; D collects decays on free axes",
    why: "every token is affine in S, and affine maps compose",
    source: "Blelloch 1990 (scans of affine maps); Yang et al. 2024, arXiv 2406.06484",
};
