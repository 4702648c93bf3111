//! The normal form of a token: strata of states, decays, edits, reads.
//!
//! A *stratum* is a set of states that depend on each other (a strongly connected component); what an earlier stratum
//! gives a later one is, for the later, data like any other. A stratum of low rank is, in order and by clocks,
//!   decay  S ← a ⊙ S            a a product of parts that vary along no axis, the contracted or the free axes,
//!   edit   S ← S + u ⊗ (b ⊙ (Σ wᵀS) + c)      u, w along the contracted axes, b, c along the free ones,
//!   read   rᵀS.
//! Edits of one statement read the state as it was before the statement. Everything here points into a token arena.

use crate::graph::ir::{DimId, GateKind, NodeId};
use chunkwise_dsl::span::Span;

/// The strata of a recurrence, each after those it depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrence {
    /// In order.
    pub strata: Vec<Stratum>,
}

/// States that depend on each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Stratum {
    /// Their indices among the program's states.
    pub states: Vec<usize>,
    /// What is known of them.
    pub class: Class,
}

/// What is known of a stratum.
#[derive(Clone, Debug, PartialEq)]
pub enum Class {
    /// Decays, edits of rank one, and reads.
    LowRank(LowRank),
    /// Every element goes its own way: no sum over a state comes back into it.
    Elementwise {
        /// Why it is not taken as a matrix of low rank.
        because: String,
    },
    /// Neither: only a token at a time.
    General {
        /// Why.
        because: String,
        /// Where in the source.
        span: Option<Span>,
    },
}

/// A stratum in normal form.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Its states.
    pub states: Vec<MatrixState>,
    /// Its edits, in order.
    pub edits: Vec<Edit>,
}

/// A state as a matrix (contracted axes × free axes) with its decay.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixState {
    /// Index among the program's states.
    pub state: usize,
    /// Axes that reads sum over; never empty.
    pub contracted: Vec<DimId>,
    /// The others.
    pub free: Vec<DimId>,
    /// Decays along no axis.
    pub scalar: Vec<Event>,
    /// Decays along contracted axes.
    pub on_contracted: Vec<Event>,
    /// Decays along free axes.
    pub on_free: Vec<Event>,
    /// The moment at which each version of the state begins.
    pub clocks: Vec<Clock>,
}

/// One decay event in a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Logarithm or factor, in the token arena.
    pub value: NodeId,
    /// Which.
    pub kind: GateKind,
}

/// A moment in a token, for one state: how many events of each kind have happened, and after which statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clock {
    /// Statements done.
    pub order: usize,
    /// Events along no axis.
    pub scalar: usize,
    /// Events along contracted axes.
    pub contracted: usize,
    /// Events along free axes.
    pub free: usize,
}

/// `S ← S + u ⊗ (b ⊙ (Σ wᵀS) + c)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// State it writes: index in [`LowRank::states`].
    pub target: usize,
    /// Along the target's contracted axes.
    pub u: NodeId,
    /// What it reads; may be empty.
    pub reads: Vec<Read>,
    /// b, along free axes; absent is 1.
    pub scale: Option<NodeId>,
    /// c, along free axes; absent is 0.
    pub c: Option<NodeId>,
    /// When it writes.
    pub write: Clock,
}

/// `wᵀS` at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// State it reads: index in [`LowRank::states`].
    pub state: usize,
    /// Along that state's contracted axes.
    pub weight: NodeId,
    /// When.
    pub clock: Clock,
}
