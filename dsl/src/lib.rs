//! The language of chunkwise: text in, checked [`program::Program`] out. Pure: no input or output, no LLVM.

pub mod instance;
pub mod program;
pub mod span;
mod suggest;
mod value;
