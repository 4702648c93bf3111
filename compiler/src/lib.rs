//! From a checked program to compiled kernels, one stage after another.

pub mod graph;
pub mod reference;
pub mod tensor;
pub mod tile;
