//! The state the chunk leaves behind.

use crate::derive::chunk::{Chunk, ChunkEdit, ChunkState};
use crate::derive::rule::Rule;
use crate::graph::ir::{NodeId, Side};

/// The rule.
pub const RULE: Rule = Rule {
    name: "carry the state out",
    before: "S_C = a_C ⊙ (… (a_1 ⊙ S₀ + u_1 ⊗ x_1) …) + u_C ⊗ x_C",
    after: "S_C = exp(γ_C) ⊙ S₀ + (u ⊙ exp(γ_C − γ_e))ᵀ (X ⊙ exp(γᵛ_C − γᵛ_e))",
    holds_when: "γ_C − γ_e is the sum of log decays from the edit's write clock to the chunk's end; every factor ≤ 1 for gates ≤ 0",
    why: "decay distributes over the edits already made; the sum of rank-one terms is one product of matrices",
    source: "Yang et al. 2023, arXiv 2312.06635, §4; Yang et al. 2024, arXiv 2406.06484, eq. 8",
};

/// The state after the chunk.
pub fn state(chunk: &mut Chunk, state: &ChunkState, edits: &[&ChunkEdit]) -> NodeId {
    chunk.b.rule = RULE.name;
    let t = chunk.t;
    let totals = [
        chunk.boundary(Side::Total, &state.scalar, 0),
        chunk.boundary(Side::Total, &state.on_contracted, 0),
        chunk.boundary(Side::Total, &state.on_free, 0),
    ];
    let totals: Vec<NodeId> = totals.into_iter().flatten().collect();
    let total = chunk.b.product(totals);
    let mut sum = chunk.b.times(total, state.start);
    for edit in edits {
        let scalar = chunk.boundary(Side::Suffix, &state.scalar, edit.write.scalar);
        let on_contracted = chunk.boundary(Side::Suffix, &state.on_contracted, edit.write.contracted);
        let on_free = chunk.boundary(Side::Suffix, &state.on_free, edit.write.free);
        let early = chunk.extent(&state.contracted) < chunk.extent(&state.free);
        let u = chunk.scaled(edit.u, [on_contracted, scalar.filter(|_| early)]);
        let x = chunk.scaled(edit.x, [on_free, scalar.filter(|_| !early)]);
        let written = chunk.b.contract(u, x, &[t]);
        sum = chunk.b.plus(sum, written);
    }
    chunk.derivation.record(&RULE, format!("{} after {} edits a token", state.name, edits.len()), None);
    sum
}
