//! IR 1: what is computed.

pub mod build;
pub mod edits;
pub mod interp;
pub mod ir;
mod parse;
pub mod passes;
pub mod scalar;
pub mod separable;
pub mod shape;
pub mod split;
pub mod text;
pub mod verify;
