//! IR 1: what is computed.

pub mod build;
pub mod interp;
pub mod ir;
pub mod scalar;
pub mod shape;
