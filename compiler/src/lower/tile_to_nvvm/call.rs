//! What a block finds in a kernel's parameter: which item is its own, the item's tokens and its tensors.
//!
//! Comes in: the kernel's arguments and how blocks are launched. Goes out: addresses and numbers, as
//! [`chunkwise_abi::gpu`] lays them out. It reads the parameter and the offsets of packed sequences, never a tensor.

use super::text::{self, Address, Pointer};
use crate::lower::tile_to_mlir::begin::Begin;
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val, Writer};
use crate::tile::ir::Arg;
use chunkwise_abi::gpu::{Grid, TENSORS_AT, call_bytes};
use chunkwise_abi::{DType, TensorArg};

/// A tensor of the caller, for the item at hand.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Its first element.
    pub base: Address,
    /// Elements from one leading index to the next, 64 bits.
    pub stride: Val,
}

/// What a block knows of its call.
pub struct Call {
    /// Number of the block, x first, then y, then z; 64 bits.
    pub block: Val,
    /// Address of the launch's scratch, 64 bits.
    pub workspace: Val,
    /// Tokens of the sequence, 64 bits.
    pub length: Val,
    /// By argument.
    pub tensors: Vec<Tensor>,
}

/// Head of the entry of a kernel, which takes one parameter.
pub fn entry(symbol: &str, args: usize) -> String {
    let bytes = call_bytes(args);
    format!(
        "llvm.func @{symbol}(%0: !llvm.ptr {{llvm.byval = !llvm.array<{bytes} x i8>, llvm.align = 8 : i64}}) attributes {{no_unwind}}"
    )
}

/// How an element stands in memory.
pub fn element(dtype: DType) -> Elem {
    match dtype {
        DType::F32 => Elem::F32,
        DType::BF16 => Elem::I16,
        DType::F16 => Elem::F16,
    }
}

/// Finds the sequence, the head and every tensor of the block's item.
pub fn read(w: &mut Writer, args: &[Arg], grid: Grid) -> Call {
    let call = Address { at: w.param(0), space: Pointer::Generic };
    let word = |w: &mut Writer, at: usize, ty: Ty| {
        let from = text::bytes(w, call, at);
        text::load(w, from, ty, if ty == Ty::I32 { 4 } else { 8 })
    };
    let wide = |w: &mut Writer, val: Val| w.cast("sext", val, Ty::I32, Ty::I64);
    let heads = word(w, 4, Ty::I32);
    let equal_length = word(w, 8, Ty::I64);
    let workspace = word(w, 16, Ty::I64);
    let offsets = word(w, 24, Ty::I64);
    let (block, sequence, head) = match grid {
        Grid::Item => {
            let item = text::register(w, "ctaid.x");
            let sequence = w.op("udiv", item, heads, Ty::I32);
            let before = w.op("mul", sequence, heads, Ty::I32);
            let head = w.op("sub", item, before, Ty::I32);
            (wide(w, item), sequence, head)
        }
        Grid::Chunk { .. } | Grid::Blocks { .. } | Grid::Spans { .. } => {
            let (x, head, sequence) =
                (text::register(w, "ctaid.x"), text::register(w, "ctaid.y"), text::register(w, "ctaid.z"));
            let (columns, rows) = (text::register(w, "nctaid.x"), text::register(w, "nctaid.y"));
            let (x, y, z) = (wide(w, x), wide(w, head), wide(w, sequence));
            let (columns, rows) = (wide(w, columns), wide(w, rows));
            let before = w.op("mul", z, rows, Ty::I64);
            let row = w.op("add", before, y, Ty::I64);
            let start = w.op("mul", row, columns, Ty::I64);
            (w.op("add", start, x, Ty::I64), sequence, head)
        }
    };
    let sequence = wide(w, sequence);

    // Packed sequences: `first` is the first token, and there is no stride from sequence to sequence.
    let zero = w.i64(0);
    let packed = w.icmp("ne", offsets, zero, Ty::I64);
    let results = w.open_if_yielding(packed, 3, Ty::I64);
    let table = w.raw_value(format_args!("llvm.inttoptr {offsets} : i64 to !llvm.ptr<1>"));
    let table = Address { at: table, space: Pointer::Global };
    let at = text::element(w, table, sequence, Ty::I64, Elem::I64);
    let first = text::load(w, at, Ty::I64, 8);
    let after = text::bytes(w, at, 8);
    let last = text::load(w, after, Ty::I64, 8);
    let length = w.op("sub", last, first, Ty::I64);
    w.other(&[length, first, first], Ty::I64);
    let start = w.op("mul", sequence, equal_length, Ty::I64);
    let found = w.end_yielding(results, &[equal_length, zero, start], Ty::I64);
    let (length, first, start) = (found[0], found[1], found[2]);
    let unpacked = w.select(packed, zero, sequence, Ty::I64);

    let mut tensors = Vec::new();
    for (index, arg) in args.iter().enumerate() {
        let here = TENSORS_AT + index * size_of::<TensorArg>();
        let data = word(w, here, Ty::I64);
        let by_sequence = word(w, here + 8, Ty::I64);
        let stride = word(w, here + 16, Ty::I64);
        let by_head = word(w, here + 24, Ty::I64);
        let own_heads = word(w, here + 32, Ty::I64);
        // Heads are few: 32 bits divide faster; and where every head has its own there is nothing to divide.
        let own = w.cast("trunc", own_heads, Ty::I64, Ty::I32);
        let shared = w.icmp("ne", own, heads, Ty::I32);
        let results = w.open_if_yielding(shared, 1, Ty::I32);
        let sharing = w.op("udiv", heads, own, Ty::I32);
        let quotient = w.op("udiv", head, sharing, Ty::I32);
        w.other(&[quotient], Ty::I32);
        let own_head = w.end_yielding(results, &[head], Ty::I32)[0];
        let own_head = wide(w, own_head);
        let offset = w.op("mul", own_head, by_head, Ty::I64);
        let offset = Begin { sequence, unpacked, first, start }.offset(w, arg.role, offset, by_sequence, stride);
        let at = w.raw_value(format_args!("llvm.inttoptr {data} : i64 to !llvm.ptr<1>"));
        let base = Address { at, space: Pointer::Global };
        let base = text::element(w, base, offset, Ty::I64, element(arg.dtype));
        tensors.push(Tensor { base, stride });
    }
    Call { block, workspace, length, tensors }
}
