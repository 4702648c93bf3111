//! Statements of one token to decays, edits and reads. The work is done in [`crate::derive::recognise`].

use crate::derive::rule::Rule;

/// The rule.
pub const RULE: Rule = Rule {
    name: "recognise the normal form",
    before: "S ← f(S), affine in S, statement after statement",
    after: "S ← a ⊙ S;  S ← S + u ⊗ (b ⊙ (wᵀS) + c);  reads rᵀS; each at its clock",
    holds_when: "the linear part is an elementwise factor that splits by axis, plus products of a vector and a read over \
                 always the same axes; a decay written eᵍ or sigmoid(f) keeps its logarithm, any other its factor",
    why: "affine maps are closed under substitution; terms with the same writer u are one edit",
    source: "Yang et al. 2024, arXiv 2406.06484 (delta rule); Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464, eq. 10",
};
