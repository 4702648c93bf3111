//! IR 2: where values live and when they are computed.

pub mod ir;
