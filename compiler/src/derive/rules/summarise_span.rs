//! A span of tokens as an affine map, and how two such maps follow each other.

use crate::derive::affine::{Analysis, Base, Value, VersionId};
use crate::derive::forms::no_summary;
use crate::derive::recognise::versions_of;
use crate::derive::recurrence::{Edit, LowRank, MatrixState};
use crate::derive::rule::Rule;
use crate::error::CompileError;
use crate::graph::build::Builder;
use crate::graph::ir::{Begin, Carry, DimId, InputKind, NodeId};
use crate::lower::program_to_graph::{TokenGraph, Version};
use std::collections::HashMap;

/// The rule.
pub const RULE: Rule = Rule {
    name: "summarise a span",
    before: "S_end from S₀, through any number of tokens",
    after: "S_end = (M S₀) ⊙ D + U;  two spans compose to (M₂ M₁, D₁ ⊙ D₂, (M₂ U₁) ⊙ D₂ + U₂).  Elementwise: \
            S_end = M ⊙ S₀ + U;  two spans compose to (M₂ ⊙ M₁, M₂ ⊙ U₁ + U₂)",
    holds_when: "no other stratum's state enters it, and the stratum is of low rank, D collecting decays on free axes, or \
                 one elementwise state whose new value is affine in it, M collecting its factors",
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

/// Adds to a token, for an elementwise state `S`, a state `M.S` that collects the factors of `S` and lies along the axes
/// they vary along: M ← a ⊙ M, where the token makes a ⊙ S + … of S. Gives its index.
pub fn collect_factors(token: &mut TokenGraph, arena: &mut Builder, state: usize) -> Result<usize, CompileError> {
    let mut analysis = Analysis::new(arena, &versions_of(token, &[state]));
    let last = token.versions[state].len() - 1;
    let factor = factor(token, &mut analysis, VersionId { state, version: last }, &mut HashMap::new())?;
    let Carry { name, layout, .. } = token.graph.carries[state].clone();
    let name = format!("M.{name}");
    let layout: Vec<DimId> = layout.into_iter().filter(|dim| arena.has(factor, *dim)).collect();
    let input = arena.input(&name, InputKind::Carry, layout.clone(), None);
    let output = arena.times(factor, input);
    let versions = [(input, 0), (output, 1)].map(|(node, order)| Version { node, order });
    token.versions.push(versions.to_vec());
    token.graph.carries.push(Carry { name, input, output, init: None, begins: Begin::Zero, last: None, layout });
    Ok(token.graph.carries.len() - 1)
}

/// What a version of an elementwise state multiplies the state at the token's start with.
fn factor(
    token: &TokenGraph,
    analysis: &mut Analysis<'_>,
    of: VersionId,
    known: &mut HashMap<NodeId, NodeId>,
) -> Result<NodeId, CompileError> {
    let versions = &token.versions[of.state];
    let node = versions[of.version].node;
    if node == versions[0].node {
        return Ok(analysis.builder.constant(1.0));
    }
    if let Some(&factor) = known.get(&node) {
        return Ok(factor);
    }
    let refused = |because: &str| {
        let name = &token.graph.carries[of.state].name;
        Err(no_summary(&format!("the new value of {name} {because}")))
    };
    let terms = match analysis.definition(node) {
        Value::Free => vec![],
        Value::Affine(terms) => terms,
        Value::Opaque => return refused("is not seen to be affine in it"),
    };
    let mut sum = Vec::new();
    for term in terms {
        match term.base {
            Base::One => {}
            Base::Version(before) => {
                let before = factor(token, analysis, before, known)?;
                sum.push(analysis.builder.product(term.factors.into_iter().chain([before])));
            }
            Base::Read(_) => return refused("takes in a sum over it"),
        }
    }
    let zero = analysis.builder.constant(0.0);
    let factor = analysis.builder.sum_all(sum).unwrap_or(zero);
    known.insert(node, factor);
    Ok(factor)
}
