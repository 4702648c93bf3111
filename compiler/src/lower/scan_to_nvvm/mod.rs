//! Graph of a form that goes through tokens one at a time → MLIR for NVIDIA GPUs, its states in registers.
//!
//! Comes in: a forward graph whose steps hold one scan over their tokens, and the arguments that its general lowering
//! would take. Goes out: an entry as text in the `llvm` dialect structured by `scf`, and what a launch of it needs. It
//! never looks at a mechanism. What it cannot do it refuses, and the general lowering takes it.
//!
//! # How a token runs
//! A block of threads owns one head of a sequence, or a block of a dimension of it whose positions have nothing to do
//! with each other. Every dimension is dealt out to registers, lanes, warps and blocks ([`spread`], chosen by
//! [`choose`]). The states are read once, sixteen bytes a thread at once, and stay in registers; for each token its
//! tensors are read, sums go from registers over lanes to warps, in a fixed order, and outputs are written; after the
//! last token the states are written once. Each element of a state is read and written by one thread, or all have read
//! it before one writes, so the last states may take the place of the first.

mod choose;
mod kernel;
mod memory;
mod spread;
mod token;
mod value;

use super::tile_to_mlir::functions::Functions;
use super::tile_to_nvvm::{Lowered, module};
use crate::error::CompileError;
use crate::graph::ir::Graph;
use crate::tile::ir::Arg;

/// Lowers a graph to a module with one entry.
pub fn lower(graph: &Graph, args: &[Arg], symbol: &str) -> Result<Lowered, CompileError> {
    let token = token::one_token(graph)?;
    let mut functions = Functions::default();
    let (entry, launch) = kernel::lower(&token, args, symbol, &mut functions)?;
    Ok(Lowered { text: module(&entry, &functions), launches: vec![launch] })
}
