//! The one integration test binary: each that links LLVM is large.

mod cli;
#[cfg(feature = "llvm")]
mod random;
