//! The one integration test binary: each that links LLVM is large.

#[cfg(feature = "llvm")]
mod anchored;
mod cli;
#[cfg(feature = "llvm")]
mod interpreted;
#[cfg(feature = "llvm")]
mod large;
#[cfg(feature = "llvm")]
mod random;
#[cfg(feature = "llvm")]
mod random_gpu;
