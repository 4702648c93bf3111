//! IR 1: what is computed.

pub mod ir;
