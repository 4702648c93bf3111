//! Edits that read the state they write: a triangular system over the edits of a chunk.

use super::{carry_in, close_intra};
use crate::derive::chunk::{Chunk, ChunkEdit, ChunkState};
use crate::derive::recurrence::{Clock, Read};
use crate::derive::rule::Rule;
use crate::error::CompileError;
use crate::graph::ir::{DimKind, Gates, NodeId, Op, Solve};

/// The rule.
pub const RULE: Rule = Rule {
    name: "solve the edits (UT transform)",
    before: "x_e = b_e ⊙ w_eᵀ S(before e) + c_e,  S ← S + u_e ⊗ x_e, edit after edit",
    after: "(I − b ⊙ L) X = c + b ⊙ ((w ⊙ exp γ)ᵀ S₀),  L[e,f] = (w_e · u_f) · exp(γ_e − γ_f) for f before e; \
            solved by rows, in float32, edits without a reader on the right-hand side",
    holds_when: "edits of one statement do not see each other, so L is strictly lower in the order of edits; a decay on \
                 free axes multiplies columns of X between rows and never leaves the substitution",
    why: "unrolling the edits gives a unit lower triangular system whose solution is what each edit writes",
    source: "Bischof, Van Loan 1987 (WY); Joffrain et al. 2006 (UT); Yang et al. 2024, arXiv 2406.06484, §3",
};

/// An edit before its right-hand side is known, in a chunk.
pub struct OpenEdit {
    /// Which state it writes.
    pub target: usize,
    /// `[t, contracted…]`, zero in void rows.
    pub u: NodeId,
    /// What it reads: weights are rows.
    pub reads: Vec<Read>,
    /// b.
    pub scale: Option<NodeId>,
    /// c.
    pub c: Option<NodeId>,
    /// When it writes.
    pub write: Clock,
}

/// Finds what every edit writes. The order of edits is kept.
pub fn solve(chunk: &mut Chunk, states: &[ChunkState], edits: &[OpenEdit]) -> Result<Vec<ChunkEdit>, CompileError> {
    let t = chunk.t;
    let closed: Vec<Option<ChunkEdit>> = edits
        .iter()
        .map(|edit| {
            let x = edit.c.filter(|_| edit.reads.is_empty())?;
            Some(ChunkEdit { target: edit.target, u: edit.u, x: chunk.b.broadcast(x, &[t]), write: edit.write })
        })
        .collect();
    let open: Vec<usize> = (0..edits.len()).filter(|&e| closed[e].is_none()).collect();
    if open.is_empty() {
        return Ok(closed.into_iter().flatten().collect());
    }
    let gated: Vec<&ChunkState> = states.iter().filter(|s| !s.on_free.is_empty()).collect();
    if !gated.is_empty() && states.len() > 1 {
        return Err(CompileError::Limit {
            what: format!("{} decays along an axis that reads keep, and is coupled to another state", gated[0].name),
            instead: "use --form recurrent; a chunk would need a system of its own for every column".to_owned(),
            span: None,
        });
    }

    // Right-hand sides: c, the state the chunk began with, and the edits that read nothing.
    let mut rhs = Vec::new();
    for &e in &open {
        let edit = &edits[e];
        let mut seen = Vec::new();
        for read in &edit.reads {
            let state = &states[read.state];
            seen.push(carry_in::read(chunk, state, read.weight, read.clock));
            for other in closed.iter().flatten().filter(|o| o.target == read.state) {
                let scores = close_intra::scores(chunk, state, read.weight, other.u, other.write, read.clock);
                seen.push(close_intra::apply(chunk, state, scores, other.x, other.write, read.clock));
            }
        }
        chunk.b.rule = RULE.name;
        let seen = chunk.b.sum_all(seen).expect("an open edit reads");
        let scaled = chunk.scaled(seen, [edit.scale]);
        rhs.push(match edit.c {
            Some(c) => chunk.b.plus(c, scaled),
            None => scaled,
        });
    }

    // The system: what each open edit reads of each open edit.
    let n = open.len();
    let mut lower = vec![None; n * n];
    for (j, &e) in open.iter().enumerate() {
        for (i, &f) in open.iter().enumerate() {
            for read in edits[e].reads.iter().filter(|r| r.state == edits[f].target) {
                let state = &states[read.state];
                let scores = close_intra::scores(chunk, state, read.weight, edits[f].u, edits[f].write, read.clock);
                lower[j * n + i] = Some(match lower[j * n + i] {
                    Some(already) => chunk.b.plus(already, scores),
                    None => scores,
                });
            }
        }
    }
    chunk.b.rule = RULE.name;
    let (events, mut reads) = match gated.first() {
        Some(state) => (state.on_free.clone(), Vec::new()),
        None => (vec![], vec![0; n]),
    };
    if !events.is_empty() {
        for &e in &open {
            let clocks: Vec<usize> = edits[e].reads.iter().map(|r| r.clock.free).collect();
            if clocks.iter().any(|c| *c != clocks[0]) {
                return Err(CompileError::Limit {
                    what: format!(
                        "an edit of {} reads it at two moments with a decay of kept axes between",
                        states[0].name
                    ),
                    instead: "use --form recurrent, or split the edit into two statements".to_owned(),
                    span: None,
                });
            }
            reads.push(clocks[0]);
        }
    }
    let writes = open.iter().map(|&e| if events.is_empty() { 0 } else { edits[e].write.free }).collect();
    let slot = chunk.b.dim(&format!("edits{n}"), DimKind::Slot, n);
    let solve = Solve {
        lower,
        rhs: rhs.iter().map(|&x| chunk.b.broadcast(x, &[t])).collect(),
        scale: open.iter().map(|&e| edits[e].scale.map(|x| chunk.b.broadcast(x, &[t]))).collect(),
        gates: Gates { events, from: 0, to: 0 },
        reads,
        writes,
        transposed: false,
        slot,
        row: t,
        col: chunk.s,
    };
    let free = &states[edits[open[0]].target].free;
    let dims = free.iter().copied().chain([slot, t]).collect();
    let solution = chunk.b.add(Op::Solve(solve), dims);
    chunk.derivation.record(&RULE, format!("{n} of {} edits a token read the state", edits.len()), None);

    let mut solved = Vec::new();
    for (e, closed) in closed.into_iter().enumerate() {
        solved.push(match closed {
            Some(edit) => edit,
            None => {
                let j = open.iter().position(|o| *o == e).expect("open or closed");
                let edit = &edits[e];
                ChunkEdit { target: edit.target, u: edit.u, x: chunk.b.index(solution, slot, j), write: edit.write }
            }
        });
    }
    Ok(solved)
}
