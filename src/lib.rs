//! chunkwise: from a recurrence as it stands in a paper to verified kernels. This is the front door.
//!
//! Comes in: the command line, `.cw` and `.safetensors` files. Goes out: text, files, an exit code. It wires the
//! language ([`chunkwise_dsl`]), the compiler ([`chunkwise_compiler`]) and the runtime ([`chunkwise_runtime`])
//! together, and it alone reads, writes and draws. It never computes anything that a library could.

#[cfg(feature = "llvm")]
pub mod bench_gpu;
pub mod binding;
#[cfg(feature = "llvm")]
pub mod c_gpu;
#[cfg(feature = "llvm")]
pub mod c_interface;
pub mod commands;
#[cfg(feature = "llvm")]
pub mod compiled;
pub mod costs;
pub mod data_checks;
pub mod engine;
pub mod explain;
pub mod failure;
#[cfg(feature = "llvm")]
pub mod gpu;
pub mod options;
pub mod precision;
pub mod render;
pub mod report;
pub mod source;
pub mod tensors;
pub mod tuning;
pub mod verify;
