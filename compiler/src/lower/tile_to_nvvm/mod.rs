//! Tile program → MLIR for NVIDIA GPUs.
//!
//! Comes in: a kernel and a family of instructions. Goes out: one function as text in the `llvm` dialect structured by
//! `scf`, and what a launch of it needs. It never looks at a mechanism, and never at LLVM.
//!
//! # How a tile program runs on a GPU
//! A block of threads takes one item, or one turn of the kernel's outermost loop if that loop's turns may run in any
//! order ([`Grid`]). The statements of the block run one after another, each by all threads together:
//! - a nest of loops of any order around `lanes` is spread over the threads, neighbouring lanes to neighbouring threads,
//!   four to a thread where that is aligned ([`nest`]);
//! - a nest that reduces is spread over warps, its lanes over the threads of a warp;
//! - statements without lanes (running sums over time) are one warp's;
//! - products go to the tensor cores ([`matmul`]).
//!
//! Between two statements of which one writes what the other touches stands a barrier. Scratch lies in shared memory,
//! and what does not fit in the block's part of a workspace in the GPU's memory ([`place`]). Nothing is summed in an
//! order that depends on time, so results repeat to the last bit.

pub(super) mod call;
pub(super) mod expr;
mod fragment;
mod kernel;
mod matmul;
mod nest;
mod place;
pub(super) mod text;

use super::tile_to_mlir::functions::Functions;
use crate::error::CompileError;
use crate::tile::ir::Kernel;
use chunkwise_abi::gpu::Grid;

/// How products of operands that need not stay exact are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Products {
    /// Operands rounded to bfloat16.
    Bf16,
    /// Operands rounded to the 10 bits of tf32: all of a binary16's, with the range of a float32.
    Tf32,
    /// Three products of the operands' high and low parts: float32 but for a few units in the last place.
    Tf32x3,
}

/// How a kernel is laid out on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Threads a block: a multiple of 32.
    pub threads: usize,
    /// Bytes of shared memory a block may use.
    pub shared_limit: usize,
    /// How products are computed.
    pub products: Products,
}

/// What a launch of a kernel needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// Threads a block.
    pub threads: usize,
    /// Blocks that a multiprocessor is to hold at once, if that is to bound their registers; else 0.
    pub resident: usize,
    /// Registers a thread is held to; none leaves it to the assembler.
    pub registers: Option<usize>,
    /// Dynamic shared memory, in bytes.
    pub shared_bytes: usize,
    /// Workspace a block, in bytes.
    pub workspace_bytes: usize,
    /// Blocks.
    pub grid: Grid,
}

/// Kernels for a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lowered {
    /// MLIR of all of them.
    pub text: String,
    /// What each launch needs.
    pub launches: Vec<Launch>,
}

/// A kernel's entry, and the functions it calls.
#[derive(Clone, Default)]
pub struct Entry {
    /// Its name.
    pub symbol: String,
    /// Its text.
    pub text: String,
    /// What a launch of it needs.
    pub launch: Launch,
    /// Functions it calls.
    pub functions: Functions,
}

/// Lowers a kernel to an entry.
pub fn entry(kernel: &Kernel, symbol: &str, options: &Options) -> Result<Entry, CompileError> {
    let mut functions = Functions::default();
    let (text, launch) = kernel::lower(kernel, symbol, options, &mut functions)?;
    Ok(Entry { symbol: symbol.to_owned(), text, launch, functions })
}

/// A module of entries.
pub fn module(entries: Vec<Entry>) -> Lowered {
    let mut functions = Functions::default();
    let mut launches = Vec::new();
    let mut text = String::new();
    for entry in entries {
        text.push_str(&entry.text);
        launches.push(entry.launch);
        functions.include(&entry.functions);
    }
    let shared =
        "llvm.mlir.global external @shared() {addr_space = 3 : i32, alignment = 128 : i64} : !llvm.array<0 x i8>";
    let text = format!("module {{\n  {shared}\n{text}{}}}\n", functions.define());
    Lowered { text, launches }
}
