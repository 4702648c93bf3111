//! Everything that is done to a program between two levels, in order.
//!
//! Comes in: nothing. Goes out: tables of passes, for the runner in [`crate::pass`] and for whoever lists them.

use crate::graph::ir::Graph;
use crate::graph::passes::{bare_operands, cse, dce, fold, invert_solve, join_sums, scale_late, slice_sums, sum_gates};
use crate::pass::Pass;

/// Numbers are folded, neutral terms and inverse pairs go.
pub const FOLD: Pass<Graph> = Pass {
    name: "fold-trivial",
    about: "compute what is known without data, leave out what does nothing",
    run: fold::fold_trivial,
};
/// One node for equal ones.
pub const CSE: Pass<Graph> =
    Pass { name: "share-equal", about: "keep one of several nodes that compute the same", run: cse::share_equal };
/// Only what results need.
pub const DCE: Pass<Graph> =
    Pass { name: "drop-unused", about: "drop what no result needs, number the rest anew", run: dce::drop_unused };

/// What every graph goes through after it was made or rewritten.
pub const SIMPLIFY: &[Pass<Graph>] = &[FOLD, CSE, DCE];

/// Factors after the contractions that do not sum over them.
pub const SCALE_LATE: Pass<Graph> = Pass {
    name: "scale-late",
    about: "multiply by a factor after the contraction that does not sum over it",
    run: scale_late::scale_late,
};

/// What a graph goes through for a processor.
pub const FOR_CPU: &[Pass<Graph>] = &[FOLD, CSE, DCE, SCALE_LATE, CSE, DCE];

/// Sums along time as products.
pub const SUM_GATES: Pass<Graph> = Pass {
    name: "sum-gates",
    about: "compute sums of logarithms along time as products with triangles of ones",
    run: sum_gates::sum_gates,
};

/// Long sums in slices.
pub const SLICE_SUMS: Pass<Graph> = Pass {
    name: "slice-sums",
    about: "cut sums over an axis that have a decay inside into slices",
    run: slice_sums::slice_sums,
};

/// What a graph of chunks goes through for a GPU, simplified before and after.
pub const FOR_GPU: &[Pass<Graph>] = &[FOLD, CSE, DCE, SUM_GATES, SLICE_SUMS, FOLD, CSE, DCE];

/// Sums along time as products, but for the decays between two tokens.
pub const SUM_BOUNDARIES: Pass<Graph> = Pass {
    name: "sum-boundaries",
    about: "compute sums of logarithms along time as products with triangles of ones, decays between two tokens excepted",
    run: sum_gates::sum_gates_but_segments,
};

/// Triangular systems as products with their inverse.
pub const INVERT_SOLVE: Pass<Graph> = Pass {
    name: "invert-solve",
    about: "solve triangular systems by products with their inverse",
    run: invert_solve::invert_solve,
};

/// Factors off the operands that are tensors without them.
pub const BARE_OPERANDS: Pass<Graph> = Pass {
    name: "bare-operands",
    about: "take factors off operands of products that are tensors from outside, or shared, without them",
    run: bare_operands::bare_operands,
};

/// Sums along time that are added up, as one.
pub const JOIN_SUMS: Pass<Graph> =
    Pass { name: "join-sums", about: "make one of sums along time that are added up", run: join_sums::join_sums };

/// What a graph of chunks goes through before it becomes products of whole tiles, simplified before and after. Solutions
/// come first: what they are is multiplied too.
pub const FOR_TENSOR_CORES: &[Pass<Graph>] = &[
    FOLD,
    CSE,
    DCE,
    INVERT_SOLVE,
    FOLD,
    BARE_OPERANDS,
    FOLD,
    CSE,
    DCE,
    SUM_BOUNDARIES,
    FOLD,
    CSE,
    DCE,
    JOIN_SUMS,
    FOLD,
    CSE,
    DCE,
];
