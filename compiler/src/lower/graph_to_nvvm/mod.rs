//! Graph → MLIR for NVIDIA GPUs, values in registers.
//!
//! Comes in: a graph of one chunk, and the tensors of the call it is a kernel of. Goes out: one function as text in the
//! `llvm` dialect, and what a launch of it needs; or a [`Refusal`], where the graph has something that is not done this
//! way, and [`super::tile_to_nvvm`] lowers it instead. It never looks at a mechanism, and never at LLVM.
//!
//! # How a graph runs on a GPU
//! A block of threads takes one chunk of one head, if chunks do not wait for each other, or one head and one part of an
//! axis, chunk after chunk. Every value of two dimensions is a matrix whose elements lie in the registers of the warps as
//! the tensor cores leave their sums ([`shape`]), so that what is done element by element needs no memory. Operands of
//! products go through shared memory in bfloat16 ([`product`]); sums over rows or columns are exchanged between lanes and
//! leave their result, a vector, in shared memory in float32 ([`ready`]). Whatever is neither is computed where it is
//! asked for, as often as it is ([`eval`]).
//!
//! Where threads read what others wrote stands a barrier ([`memory`]). Nothing is summed in an order that depends on
//! time, so results repeat to the last bit.

mod aside;
mod block;
mod copy;
mod eval;
mod gated;
mod gradients;
mod halves;
mod index;
mod inverse;
mod kernel;
mod loaders;
mod memory;
mod operand;
mod place;
mod product;
mod ready;
mod segments;
mod shape;
mod stage;
mod store;
mod warpgroup;

use super::tile_to_mlir::functions::Functions;
use super::tile_to_nvvm::Entry;
use crate::graph::ir::{DimId, Graph, NodeId};
use crate::tile::ir::Arg;

/// How a kernel is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Warps a block.
    pub warps: usize,
    /// Bytes of shared memory a block may use.
    pub shared_limit: usize,
    /// Equal parts of an axis, each a block's; only for a graph whose parts have nothing to do with each other.
    pub parts: Option<(DimId, usize)>,
    /// The next chunk's inputs arrive while this one's are used, where chunks wait for each other: they have room twice.
    pub ahead: bool,
    /// Operands that differ from block to block lie in shared memory whole; else each warp computes its own.
    pub whole_operands: bool,
    /// Products with edits keep their operands' digits, in a forward pass.
    pub exact_edits: bool,
    /// Four warps multiply together where chunks are long enough for it; not every GPU can.
    pub warpgroups: bool,
    /// A warp writes matrices to shared memory as it reads them (`stmatrix`); not every GPU can.
    pub store_matrices: bool,
    /// A warp group of its own copies what chunks read, where they follow each other.
    pub loaders: bool,
    /// Blocks that a multiprocessor is to hold at once: each takes no more registers than that allows.
    pub resident: usize,
}

/// Why a graph is not lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has something that is not done this way.
    Unsupported(String),
    /// It needs so many bytes of shared memory, which is more than there are.
    Room(usize),
    /// Threads ask for elements of a value that others have: it has to lie in memory they share.
    Park(NodeId),
    /// A mistake of this stage.
    Bug(String),
}

impl Refusal {
    fn unsupported(what: &str) -> Refusal {
        Refusal::Unsupported(what.to_owned())
    }
}

/// Lowers a graph of chunks to the entry of a kernel.
pub fn entry(graph: &Graph, args: &[Arg], symbol: &str, options: &Options) -> Result<Entry, Refusal> {
    let mut functions = Functions::default();
    let (text, launch) = kernel::lower(graph, args, symbol, options, &mut functions)?;
    Ok(Entry { symbol: symbol.to_owned(), text, launch, functions })
}
