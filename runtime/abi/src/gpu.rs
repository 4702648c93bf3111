//! What a GPU module looks like from outside: the contract between the compiler and whoever launches its kernels.
//!
//! A direction of a recurrence (forward, forward that saves, backward) is one [`GpuModule`]: code for one family of
//! GPUs and the kernels of it, launched in order on one stream. Every kernel takes one parameter, by value: a
//! [`GpuCall`], followed directly by one [`TensorArg`] for each argument of the module's signature and then for each of
//! its temporaries, all in order; addresses are the GPU's own. [`call_bytes`] says how large that is. Every tensor is
//! aligned as [`ArgSignature::alignment`] says; whoever launches sees to it. Kernels allocate and lock nothing; which
//! block runs when changes nothing in the results.

use crate::{ArgSignature, KernelSignature, Signature, TensorArg};
use serde::{Deserialize, Serialize};

/// The start of a kernel's parameter; one [`TensorArg`] for each tensor follows it at [`TENSORS_AT`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GpuCall {
    /// Number of sequences, B (or N when packed).
    pub sequences: i32,
    /// Heads, H.
    pub heads: i32,
    /// Tokens of the longest sequence; of every one, unless packed.
    pub length: i64,
    /// Scratch of the launch: block `b` (counted x first, then y, then z) owns the `workspace_bytes` from
    /// `b·workspace_bytes` on. Aligned to 256. 0 if the kernel asks for none.
    pub workspace: u64,
    /// Packed sequences: `sequences + 1` ascending token offsets (int64) on the GPU; 0 when sequences have equal length.
    pub offsets: u64,
}

/// Where the tensors start in a kernel's parameter, in bytes.
pub const TENSORS_AT: usize = size_of::<GpuCall>();

/// Bytes of the parameter of a kernel with that many tensors, temporaries included. The largest that a GPU takes
/// everywhere is [`MAX_CALL_BYTES`].
pub const fn call_bytes(n_tensors: usize) -> usize {
    TENSORS_AT + n_tensors * size_of::<TensorArg>()
}

/// The largest parameter every driver and GPU takes.
pub const MAX_CALL_BYTES: usize = 4096;

/// The layout is part of the contract: kernels are generated against these numbers.
const _: () = {
    assert!(size_of::<GpuCall>() == 32 && align_of::<GpuCall>() == 8);
    assert!(std::mem::offset_of!(GpuCall, sequences) == 0 && std::mem::offset_of!(GpuCall, heads) == 4);
    assert!(std::mem::offset_of!(GpuCall, length) == 8 && std::mem::offset_of!(GpuCall, workspace) == 16);
    assert!(std::mem::offset_of!(GpuCall, offsets) == 24);
    assert!(size_of::<TensorArg>() == 40 && align_of::<TensorArg>() == 8);
    assert!(std::mem::offset_of!(TensorArg, data) == 0 && std::mem::offset_of!(TensorArg, stride_sequence) == 8);
    assert!(std::mem::offset_of!(TensorArg, stride_time) == 16 && std::mem::offset_of!(TensorArg, stride_head) == 24);
    assert!(std::mem::offset_of!(TensorArg, heads) == 32);
};

/// The blocks of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grid {
    /// One for each head of each sequence: `x = h + H·n`.
    #[default]
    Item,
    /// One for each chunk of each head of each sequence, chunks counted by the longest sequence: `x` = chunk, `y = h`,
    /// `z = n`. A shorter sequence has nothing to do for its last blocks.
    Chunk {
        /// Tokens a chunk.
        tokens: u32,
    },
    /// One for each of equal blocks of an axis of each head of each sequence: `x` = block, `y = h`, `z = n`. A sequence
    /// without tokens has its blocks too: they hand its state on.
    Blocks {
        /// Blocks of the axis.
        blocks: u32,
    },
    /// One for each of equal blocks of an axis of each span of each head of each sequence, spans counted by the longest
    /// sequence: `x` = span · blocks + block, `y = h`, `z = n`. A shorter sequence has nothing to do for its last spans.
    Spans {
        /// Tokens a span.
        tokens: u32,
        /// Blocks of the axis.
        blocks: u32,
    },
}

/// One kernel launch of a call on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuKernel {
    /// Name of the entry in the module.
    pub symbol: String,
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory a block, in bytes.
    pub shared_bytes: u32,
    /// Scratch in the GPU's memory that each block of the grid owns, in bytes, a multiple of 256; 0 if none. Its
    /// content is undefined when a kernel starts: nothing is handed on in it.
    pub workspace_bytes: u64,
    /// Blocks.
    pub grid: Grid,
}

/// The symbol of a module's PTX in a library made ahead of time: `symbol` is that of its signature.
pub fn ptx_symbol(symbol: &str, arch: &str) -> String {
    format!("{symbol}_{arch}_ptx")
}

/// One direction of a recurrence, compiled for a family of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuModule {
    /// The family it was compiled for: `sm_80` runs on that and all newer, `sm_90a` on that only.
    pub arch: String,
    /// The code, as PTX.
    pub ptx: String,
    /// What it takes: the same as for a processor. `symbol` names the module as a whole, `scratch_bytes` is 0.
    pub signature: KernelSignature,
    /// What one kernel hands on to a later one: allocated by the launcher, undefined at first, forgotten afterwards.
    /// They follow the signature's arguments in the parameter.
    #[serde(default)]
    pub temporaries: Vec<ArgSignature>,
    /// Launched in this order.
    pub kernels: Vec<GpuKernel>,
}

/// A recurrence in one form, compiled for a family of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecurrence {
    /// What it computes. Its kernels' signatures are those of the modules.
    pub signature: Signature,
    /// Outputs from inputs.
    pub forward: Option<GpuModule>,
    /// The same, keeping what the backward needs.
    pub forward_saving: Option<GpuModule>,
    /// Gradients.
    pub backward: Option<GpuModule>,
}
