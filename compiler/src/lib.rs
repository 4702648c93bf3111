//! From a checked program to compiled kernels, one stage after another.

pub mod artifact;
pub mod compile;
pub mod derive;
pub mod error;
pub mod generate;
pub mod graph;
pub mod lower;
pub mod pass;
pub mod pipeline;
pub mod reference;
pub mod schedule;
#[cfg(feature = "llvm")]
pub mod target;
pub mod tensor;
pub mod tile;
