//! Tokens to chunks of rows. Void rows of the last chunk are made neutral: they write nothing and decay nothing.

use crate::derive::chunk::Chunk;
use crate::derive::rule::Rule;
use crate::graph::ir::{Gate, GateKind, NodeId};

/// The rule.
pub const RULE: Rule = Rule {
    name: "split time into chunks",
    before: "S_t = f_t(S_{t−1}) for t = 1 … T",
    after: "S_n = f_{nC} ∘ … ∘ f_{(n−1)C+1} (S_{n−1}) for n = 1 … ⌈T/C⌉; state-free values become rows",
    holds_when: "always; rows past the end get log decay 0 (factor 1) and writer 0, so that they are the identity",
    why: "composition is associative; a state-free value of a token is a row of a matrix",
    source: "Hua et al. 2022, arXiv 2202.10447; Sun et al. 2023, arXiv 2307.08621, §2.3",
};

/// A decay event as rows, neutral where void.
pub fn gate(chunk: &mut Chunk, value: NodeId, kind: GateKind) -> Gate {
    let t = chunk.t;
    let rows = chunk.b.broadcast(value, &[t]);
    let neutral = match kind {
        GateKind::Log => 0.0,
        GateKind::Factor => 1.0,
    };
    Gate { value: chunk.b.guard(rows, neutral), kind }
}

/// A writer as rows, zero where void.
pub fn writer(chunk: &mut Chunk, u: NodeId) -> NodeId {
    let t = chunk.t;
    let rows = chunk.b.broadcast(u, &[t]);
    chunk.b.guard(rows, 0.0)
}
