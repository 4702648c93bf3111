//! What a read sees of the state the chunk began with.

use crate::derive::chunk::{Chunk, ChunkState};
use crate::derive::recurrence::Clock;
use crate::derive::rule::Rule;
use crate::graph::ir::{NodeId, Side};

/// The rule.
pub const RULE: Rule = Rule {
    name: "carry the state in",
    before: "rᵀ (a_t ⊙ … ⊙ a_1 ⊙ S₀)",
    after: "((r ⊙ exp γ_r)ᵀ S₀) ⊙ exp γᵛ_r",
    holds_when: "γ_r is the sum of log decays from the chunk's start to the read's clock; every factor ≤ 1 if the gates are ≤ 0",
    why: "a decay on contracted axes moves onto the reader, one on free axes onto the result",
    source: "Yang et al. 2023, arXiv 2312.06635, §4 (GLA)",
};

/// `[t, free…]`: the part of a read that comes from the chunk's first state.
pub fn read(chunk: &mut Chunk, state: &ChunkState, weight: NodeId, clock: Clock) -> NodeId {
    chunk.b.rule = RULE.name;
    let scalar = chunk.boundary(Side::Prefix, &state.scalar, clock.scalar);
    let on_contracted = chunk.boundary(Side::Prefix, &state.on_contracted, clock.contracted);
    let on_free = chunk.boundary(Side::Prefix, &state.on_free, clock.free);
    // The scalar factor goes onto the reader: its gradient then comes out of the reader's, which the backward makes
    // anyway, and the product with the state need not be made again for it.
    let reader = chunk.scaled(weight, [on_contracted, scalar]);
    let product = chunk.b.contract(reader, state.start, &state.contracted);
    let t = chunk.t;
    let product = chunk.b.broadcast(product, &[t]);
    chunk.derivation.record(&RULE, format!("reads of {}", state.name), None);
    chunk.scaled(product, [on_free])
}
