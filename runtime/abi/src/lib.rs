//! What a kernel looks like from outside: the contract between the compiler, the runtime and a C program.
//!
//! A compiled kernel is one C function, [`KernelFn`]. It works on a range of *items*; item `i` is head `i % heads` of
//! sequence `i / heads`. Items are independent, so a caller may hand disjoint ranges to threads, each with scratch
//! memory of its own. Nothing is allocated, locked or printed inside.

pub mod gpu;

use serde::{Deserialize, Serialize};

/// Version of this contract; part of every cache key and manifest.
pub const ABI_VERSION: u32 = 1;

/// Type of an element in memory. Arithmetic inside a kernel is float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE binary16.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }
    /// `f32`, `bf16`, `f16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
        }
    }
}

/// How a tensor is indexed before its inner dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// One value a token and head: `[B, T, H, inner…]`.
    Token,
    /// One value a head: `[H, inner…]`, the same for every sequence.
    Head,
    /// One value a sequence and head: `[B, H, inner…]`.
    Sequence,
    /// One value a chunk of `n` tokens: per sequence and head, `chunk_slots` values; see [`chunk_slot`].
    Chunk(usize),
}

/// First chunk slot of sequence `n`, which starts at token `offset` of the packed tokens: slots of different
/// sequences never overlap, and `chunk_slot(chunk, total, n_sequences)` slots are enough for all.
pub fn chunk_slot(chunk: usize, offset: usize, n: usize) -> usize {
    offset / chunk + n
}

/// Whether a kernel reads or writes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Only read.
    Read,
    /// Every element is written, none is read.
    Write,
}

/// A tensor as a kernel gets it. Strides are in elements; inner dimensions are contiguous, row-major.
///
/// Element (sequence n, token t, head h) of a `Token` tensor starts at
/// `data + n·stride_sequence + t·stride_time + (h / (H / heads))·stride_head`; with packed sequences, at
/// `data + (offsets[n] + t)·stride_time + …`. `Sequence` and `Head` tensors have no time part, `Head` no sequence
/// part. A `Chunk(c)` tensor has its chunk `j` of sequence n at `data + (slot + j)·stride_time + h·stride_head`, with
/// `slot = chunk_slot(c, offsets[n] or n·T, n)`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TensorArg {
    /// First element. May be null only for a tensor without elements.
    pub data: *mut core::ffi::c_void,
    /// From sequence to sequence.
    pub stride_sequence: i64,
    /// From token to token, or from chunk to chunk.
    pub stride_time: i64,
    /// From head to head.
    pub stride_head: i64,
    /// Heads this tensor has; divides the call's heads.
    pub heads: i64,
}

/// One call of a kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// One per argument of the signature, in its order.
    pub tensors: *const TensorArg,
    /// Packed sequences: `sequences + 1` ascending token offsets; null when sequences have equal length.
    pub offsets: *const i64,
    /// Number of sequences, B (or N when packed).
    pub sequences: i64,
    /// Tokens a sequence, T; ignored when packed.
    pub length: i64,
    /// Heads, H.
    pub heads: i64,
}

/// The C function of a kernel: works on items `begin..end` of a call, with `scratch_bytes` of scratch, aligned to 64.
pub type KernelFn = unsafe extern "C" fn(call: *const Call, begin: i64, end: i64, scratch: *mut core::ffi::c_void);

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArgSignature {
    /// `NAME`, `init.STATE`, `grad_out.NAME`, `grad_final.STATE` (read); `out.NAME`, `final.STATE`, `grad.NAME`,
    /// `grad_init.STATE` (written); `saved.STATE` (written by a forward for its backward, read by that).
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Leading indices.
    pub role: Role,
    /// Static inner dimensions.
    pub inner: Vec<usize>,
    /// Names of the inner dimensions.
    pub axes: Vec<String>,
    /// Read or written.
    pub access: Access,
}

impl ArgSignature {
    /// What the tensor's address and its strides have to be multiples of on a GPU, in bytes: 16 where the inner
    /// dimensions together have a multiple of that, else as large a power of two as they have. Kernels there read and
    /// write as much at once. A stride along a dimension of one may be anything.
    pub fn alignment(&self) -> usize {
        let bytes = self.inner.iter().product::<usize>() * self.dtype.bytes();
        1 << bytes.trailing_zeros().min(4)
    }
}

/// One kernel of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSignature {
    /// Symbol of the [`KernelFn`].
    pub symbol: String,
    /// Arguments, in order.
    pub args: Vec<ArgSignature>,
    /// Scratch a worker needs, in bytes.
    pub scratch_bytes: usize,
}

/// What an artifact computes: a forward kernel, one that also saves for a backward, and the backward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// [`ABI_VERSION`].
    pub abi: u32,
    /// The recurrence's name.
    pub name: String,
    /// `recurrent`, `chunkwise` or `parallel`.
    pub form: String,
    /// Tokens a chunk.
    pub chunk: usize,
    /// The longest sequence the form takes, if it has a limit (parallel).
    pub max_length: Option<usize>,
    /// Outputs and final states from inputs. Absent when only the backward was asked for.
    pub forward: Option<KernelSignature>,
    /// As `forward`, and the states the backward needs.
    pub forward_saving: Option<KernelSignature>,
    /// Gradients from inputs, saved states and cotangents. Gradients of `Head` tensors come per sequence
    /// (role `Sequence`): the caller sums them over sequences, in order.
    pub backward: Option<KernelSignature>,
}

/// What a shared library made ahead of time holds; written beside it as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`ABI_VERSION`].
    pub abi: u32,
    /// Name of the library's file, which lies in the same folder.
    pub library: String,
    /// Instructions a processor must have beyond the plainest of its family, by LLVM's names: `avx2`, `avx512f`, …
    pub features: Vec<String>,
    /// What can be computed on a processor.
    pub recurrences: Vec<Signature>,
    /// What can be computed on GPUs: each recurrence once for every family. The code itself is not here but in the
    /// library, as PTX that ends in 0: [`gpu::ptx_symbol`] names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu: Vec<gpu::GpuRecurrence>,
}
