//! IR 2: where values live and when they are computed.

pub mod arguments;
pub mod interp;
pub mod ir;
mod overlap;
mod parse;
mod prove;
mod scan;
pub mod text;
pub mod verify;
