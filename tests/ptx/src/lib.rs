//! Runs kernels for GPUs on a processor, instruction by instruction, and watches what they do with memory.
//!
//! Comes in: PTX as LLVM prints it for this project's kernels, a launch, memory. Goes out: memory, or a [`Fault`] that
//! says which thread did what wrong at which line. It knows the instructions those kernels use and no others: an unknown
//! one is refused where it is read, by name. It says nothing about speed, and is no model of a particular GPU: where
//! rounding is not defined (sums of the tensor cores, approximations), see [`numbers`] and [`matrix`].
//!
//! The threads of a warp go in step, those at the lowest line first; the warps of a block one after the other, each up to
//! where it has to wait for others. Every order that the rules of PTX allow gives the same result unless the kernel has a race, and races
//! are looked for: see [`clock`], [`shared`] and [`memory`].

mod arithmetic;
mod arrivals;
mod block;
mod clock;
mod instruction;
mod matrix;
mod memory;
mod numbers;
mod opcodes;
mod parse;
mod shared;
#[cfg(test)]
mod tests;
mod warp;
mod warpgroup;

pub use block::{Fault, Launch, NOT_A_NUMBER, run};
pub use memory::{Memory, Place};
pub use parse::{Kernel, Module};
