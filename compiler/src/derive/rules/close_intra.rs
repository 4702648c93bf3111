//! What a read sees of the edits of its own chunk.

use super::{gate_inside, split_time};
use crate::derive::chunk::{Chunk, ChunkState};
use crate::derive::recurrence::Clock;
use crate::derive::rule::Rule;
use crate::graph::ir::NodeId;

/// The rule.
pub const RULE: Rule = Rule {
    name: "close the chunk",
    before: "Σ over edits e before the read of rᵀ (decay from e to the read ⊙ (u_e ⊗ x_e))",
    after: "A X,  A[r,e] = (r · u_e) · exp(γ_r − γ_e) where e is visible, else 0",
    holds_when: "the decay is scalar or absent: it multiplies the C×C tile after the product, exponents are sums over the \
                 segment alone, ≤ 0 for gates ≤ 0",
    why: "the sum over tokens becomes one product of matrices under a mask",
    source: "Dao, Gu 2024, arXiv 2405.21060, §6; Sun et al. 2023, arXiv 2307.08621",
};

/// `[t, s]`: how strongly each row reads each column's edit; zero where it does not see it.
pub fn scores(
    chunk: &mut Chunk,
    state: &ChunkState,
    reader: NodeId,
    writer: NodeId,
    write: Clock,
    read: Clock,
) -> NodeId {
    let sees_itself = write.order <= read.order;
    chunk.b.rule = RULE.name;
    chunk.derivation.record(&split_time::RULE, "state-free values as rows", None);
    if state.on_contracted.is_empty() {
        let columns = chunk.to_col(writer);
        let product = chunk.b.contract(reader, columns, &state.contracted);
        let segment = chunk.segment(&state.scalar, write.scalar, read.scalar, sees_itself);
        chunk.derivation.record(
            &RULE,
            format!(
                "edits of {} under {}",
                state.name,
                if state.scalar.is_empty() { "the causal mask" } else { "a scalar decay on the tile" }
            ),
            None,
        );
        return chunk.b.times(product, segment);
    }
    let gates = Chunk::gates(&state.on_contracted, write.contracted, read.contracted);
    let mut product = gate_inside::weight(chunk, reader, writer, &state.contracted, gates, &state.name);
    if sees_itself {
        // The token's own edit, apart: only its own events lie between, and none of them is subtracted later.
        let within = chunk.within_token(&state.on_contracted, write.contracted, read.contracted);
        let own = chunk.scaled(writer, [within]);
        let own = chunk.b.contract(reader, own, &state.contracted);
        let (t, s) = (chunk.t, chunk.s);
        let own = chunk.b.diagonal(own, t, s);
        product = chunk.b.plus(product, own);
    }
    if state.scalar.is_empty() {
        return product;
    }
    let segment = chunk.segment(&state.scalar, write.scalar, read.scalar, sees_itself);
    chunk.b.times(product, segment)
}

/// `[t, free…]`: the sum over columns of scores times what the edits wrote.
pub fn apply(chunk: &mut Chunk, state: &ChunkState, scores: NodeId, x: NodeId, write: Clock, read: Clock) -> NodeId {
    chunk.b.rule = RULE.name;
    let (t, s) = (chunk.t, chunk.s);
    if state.on_free.is_empty() {
        let columns = chunk.to_col(x);
        let product = chunk.b.contract(scores, columns, &[s]);
        return chunk.b.broadcast(product, &[t]);
    }
    let gates = Chunk::gates(&state.on_free, write.free, read.free);
    let mut sum = gate_inside::rows(chunk, scores, x, &state.free, gates, &state.name);
    if write.order <= read.order {
        let within = chunk.within_token(&state.on_free, write.free, read.free);
        let own = chunk.b.diagonal_part(scores, t, s);
        let own = chunk.b.times(own, x);
        let own = chunk.scaled(own, [within]);
        sum = chunk.b.plus(sum, own);
    }
    sum
}
