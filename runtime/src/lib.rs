//! Load, launch, keep: everything a compiled kernel needs, and nothing of how it was made.
//!
//! Comes in: kernels with their signatures, tensors by name. Goes out: tensors by name, or an error in plain words.
//! It never names the compiler; who uses a library made ahead of time needs only this crate.

pub mod batch;
pub mod blocks;
pub mod cache;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod execute;
pub mod library;
pub mod tensor;

pub use chunkwise_abi as abi;
