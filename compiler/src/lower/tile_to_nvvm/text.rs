//! The words of a GPU's function that the writer of processors' functions does not have: 32-bit numbers, pointers into
//! numbered address spaces, intrinsics by name.
//!
//! Comes in: operands. Goes out: lines of MLIR. It decides nothing.

use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val, Writer};

/// An address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pointer {
    /// The parameters.
    Generic,
    /// The GPU's memory.
    Global,
    /// The block's.
    Shared,
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Pointer::Generic => "!llvm.ptr",
            Pointer::Global => "!llvm.ptr<1>",
            Pointer::Shared => "!llvm.ptr<3>",
        })
    }
}

/// An address.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The pointer.
    pub at: Val,
    /// Its address space.
    pub space: Pointer,
}

/// A 32-bit number.
pub fn int(w: &mut Writer, value: i64) -> Val {
    w.int(Ty::I32, value)
}

/// An intrinsic by its LLVM name; gives a value of type `result`.
pub fn intrinsic(w: &mut Writer, name: &str, operands: &[(Val, Ty)], result: &str) -> Val {
    let call = call(name, operands);
    w.raw_value(format_args!("{call} -> {result}"))
}

/// An intrinsic without a result.
pub fn command(w: &mut Writer, name: &str, operands: &[(Val, Ty)]) {
    let call = call(name, operands);
    w.raw(format_args!("{call} -> ()"));
}

fn call(name: &str, operands: &[(Val, Ty)]) -> String {
    let names: Vec<String> = operands.iter().map(|(val, _)| val.to_string()).collect();
    let types: Vec<String> = operands.iter().map(|(_, ty)| ty.to_string()).collect();
    format!("llvm.call_intrinsic \"{name}\"({}) : ({})", names.join(", "), types.join(", "))
}

/// Member `n` of a struct.
pub fn member(w: &mut Writer, value: Val, n: usize, of: &str) -> Val {
    w.raw_value(format_args!("llvm.extractvalue {value}[{n}] : {of}"))
}

/// A struct of `n` members of one type.
pub fn struct_of(n: usize, ty: Ty) -> String {
    format!("!llvm.struct<({})>", vec![ty.to_string(); n].join(", "))
}

/// All threads of the block wait for each other, and see what each wrote.
pub fn barrier(w: &mut Writer) {
    let zero = int(w, 0);
    command(w, "llvm.nvvm.barrier.cta.sync.aligned.all", &[(zero, Ty::I32)]);
}

/// An address in shared memory as a number, 32 bits.
pub fn number_of(w: &mut Writer, address: Address) -> Val {
    w.raw_value(format_args!("llvm.ptrtoint {} : {} to i32", address.at, address.space))
}

/// So many threads wait for each other at a barrier of their own.
pub fn barrier_of(w: &mut Writer, number: usize, threads: usize) {
    let [number, threads] = [number, threads].map(|n| int(w, i64::try_from(n).expect("a small number")));
    command(w, "llvm.nvvm.barrier.cta.sync.aligned.count", &[(number, Ty::I32), (threads, Ty::I32)]);
}

/// Makes eight bytes of shared memory a barrier of so many arrivals (PTX ISA, "mbarrier").
pub fn init_arrivals(w: &mut Writer, at: Address, count: usize) {
    let count = int(w, i64::try_from(count).expect("a small number"));
    w.raw(format_args!(
        "llvm.call_intrinsic \"llvm.nvvm.mbarrier.init.shared\"({}, {count}) : ({}, i32) -> ()",
        at.at, at.space
    ));
}

/// The thread arrives.
pub fn arrive(w: &mut Writer, at: Address) {
    w.raw_value(format_args!(
        "llvm.call_intrinsic \"llvm.nvvm.mbarrier.arrive.shared\"({}) : ({}) -> i64",
        at.at, at.space
    ));
}

/// The thread arrives as soon as what it copies is there.
pub fn arrive_after_copies(w: &mut Writer, at: Address) {
    let name = "llvm.nvvm.cp.async.mbarrier.arrive.noinc.shared";
    w.raw(format_args!("llvm.call_intrinsic \"{name}\"({}) : ({}) -> ()", at.at, at.space));
}

/// Waits until all have arrived in a round of this parity; at once in parity 1 before the first.
pub fn wait_for_arrivals(w: &mut Writer, at: Address, parity: Val) {
    let number = number_of(w, at);
    let text = "{\\0A.reg .pred done;\\0Aarrivals_${:uid}:\\0A\
                mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;\\0A@!done bra arrivals_${:uid};\\0A}";
    w.raw(format_args!(
        "llvm.inline_asm has_side_effects \"{text}\", \"r,r,~{{memory}}\" {number}, {parity} : (i32, i32) -> ()"
    ));
}

/// The threads of a warp group take more registers from now on, or give some back.
pub fn set_registers(w: &mut Writer, more: bool, registers: usize) {
    let name = if more { "inc" } else { "dec" };
    w.raw(format_args!(
        "llvm.inline_asm has_side_effects \"setmaxnreg.{name}.sync.aligned.u32 {registers};\", \"\" : () -> ()"
    ));
}

/// What the thread wrote to shared memory is seen by the products of warp groups, once others have waited for it (PTX ISA,
/// "Async proxy").
pub fn fence_operands(w: &mut Writer) {
    w.raw(format_args!(
        "llvm.inline_asm has_side_effects \"fence.proxy.async.shared::cta;\", \"~{{memory}}\" : () -> ()"
    ));
}

/// The threads of a warp wait for each other, and see what each wrote.
pub fn warp_barrier(w: &mut Writer) {
    let all = int(w, -1);
    command(w, "llvm.nvvm.bar.warp.sync", &[(all, Ty::I32)]);
}

/// A number about where this thread is: `tid.x`, `ctaid.y`, …
pub fn register(w: &mut Writer, name: &str) -> Val {
    intrinsic(w, &format!("llvm.nvvm.read.ptx.sreg.{name}"), &[], "i32")
}

/// Element `index` of an array of `elem`.
pub fn element(w: &mut Writer, base: Address, index: Val, index_ty: Ty, elem: Elem) -> Address {
    let (space, elem) = (base.space, Ty::scalar(elem));
    let at =
        w.raw_value(format_args!("llvm.getelementptr {}[{index}] : ({space}, {index_ty}) -> {space}, {elem}", base.at));
    Address { at, space }
}

/// So many bytes further.
pub fn bytes(w: &mut Writer, base: Address, bytes: usize) -> Address {
    if bytes == 0 {
        return base;
    }
    let space = base.space;
    let at = w.raw_value(format_args!("llvm.getelementptr {}[{bytes}] : ({space}) -> {space}, i8", base.at));
    Address { at, space }
}

/// So many bytes further, a number of 32 bits.
pub fn further(w: &mut Writer, base: Address, bytes: Val) -> Address {
    let space = base.space;
    let at = w.raw_value(format_args!("llvm.getelementptr {}[{bytes}] : ({space}, i32) -> {space}, i8", base.at));
    Address { at, space }
}

/// Reads memory.
pub fn load(w: &mut Writer, from: Address, ty: Ty, align: usize) -> Val {
    w.raw_value(format_args!("llvm.load {} {{alignment = {align} : i64}} : {} -> {ty}", from.at, from.space))
}

/// Writes memory.
pub fn store(w: &mut Writer, value: Val, to: Address, ty: &str, align: usize) {
    w.raw(format_args!("llvm.store {value}, {} {{alignment = {align} : i64}} : {ty}, {}", to.at, to.space));
}

/// Lane `n` of a vector.
pub fn lane(w: &mut Writer, vector: Val, n: usize, ty: Ty) -> Val {
    let at = int(w, i64::try_from(n).expect("a lane"));
    w.raw_value(format_args!("llvm.extractelement {vector}[{at} : i32] : {ty}"))
}

/// Values side by side.
pub fn vector(w: &mut Writer, values: &[Val], elem: Elem) -> Val {
    let ty = Ty { elem, lanes: values.len() };
    let mut vector = w.raw_value(format_args!("llvm.mlir.poison : {ty}"));
    for (n, value) in values.iter().enumerate() {
        let at = int(w, i64::try_from(n).expect("a lane"));
        vector = w.raw_value(format_args!("llvm.insertelement {value}, {vector}[{at} : i32] : {ty}"));
    }
    vector
}

/// Two float32 as two bfloat16 in one word, the first in the low half.
pub fn pack_bf16(w: &mut Writer, low: Val, high: Val) -> Val {
    let pair = vector(w, &[low, high], Elem::F32);
    let narrow = w.raw_value(format_args!("llvm.fptrunc {pair} : vector<2xf32> to vector<2xbf16>"));
    w.raw_value(format_args!("llvm.bitcast {narrow} : vector<2xbf16> to i32"))
}

/// Two bfloat16 of a word as float32, the one in the low half first.
pub fn unpack_bf16(w: &mut Writer, word: Val) -> [Val; 2] {
    let (sixteen, high) = (int(w, 16), int(w, -65536));
    let low = w.op("shl", word, sixteen, Ty::I32);
    let high = w.op("and", word, high, Ty::I32);
    [low, high].map(|bits| w.cast("bitcast", bits, Ty::I32, Ty::F32))
}

/// Writes 8 × 8 matrices of sixteen-bit numbers to shared memory, each lane the address of one row of one of them.
pub fn store_matrices(w: &mut Writer, to: Address, words: &[Val]) {
    let number = number_of(w, to);
    let count = words.len();
    let names: Vec<String> = words.iter().map(Val::to_string).collect();
    let places: Vec<String> = (1..=count).map(|n| format!("${n}")).collect();
    w.raw(format_args!(
        "llvm.inline_asm has_side_effects \"stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [$0], {{{}}};\", \"r{},~{{memory}}\" \
         {number}, {} : (i32{}) -> ()",
        places.join(", "),
        ",r".repeat(count),
        names.join(", "),
        ", i32".repeat(count)
    ));
}

/// The same word, of which the compiler knows nothing: it computes nothing from it before.
pub fn unknown(w: &mut Writer, word: Val) -> Val {
    w.raw_value(format_args!("llvm.inline_asm has_side_effects \"\", \"=r,0\" {word} : (i32) -> i32"))
}

/// The same number, which the compiler computes here and nowhere later: it moves what is pure to where it is used, also
/// across branches, and what that is computed from takes registers until then.
pub fn pinned(w: &mut Writer, number: Val) -> Val {
    w.raw_value(format_args!("llvm.inline_asm has_side_effects \"\", \"=f,0\" {number} : (f32) -> f32"))
}
