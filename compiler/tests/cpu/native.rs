//! Runs a kernel compiled and interpreted on the same numbers.

use chunkwise_abi::{Access, Call, DType, TensorArg};
use chunkwise_compiler::target::cpu::{CpuTarget, LEVELS, Level, Loaded, Want, compile_kernels};
use chunkwise_compiler::tile::interp::{HostCall, run};
use chunkwise_compiler::tile::ir::Kernel;
use chunkwise_compiler::tile::text::parse;
use chunkwise_compiler::tile::verify::verify;
use std::ffi::c_void;

/// Levels this machine can run.
pub fn levels() -> Vec<Level> {
    LEVELS.into_iter().filter(|level| CpuTarget::host_runs(*level)).collect()
}

/// Reproducible numbers in [−1, 1].
pub struct Numbers(pub u64);
impl Numbers {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / f64::from(1 << 23) - 1.0
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

pub fn checked(text: &str) -> Kernel {
    let kernel = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    verify(&kernel).unwrap_or_else(|error| panic!("{error}\n{text}"));
    kernel
}

/// A kernel in this process.
pub struct Native {
    loaded: Loaded,
    scratch_bytes: usize,
}

pub fn compile(kernel: &Kernel, level: Level) -> Native {
    let compiled = compile_kernels(&[(kernel, "kernel")], &CpuTarget::of_level(level), Want::OBJECT)
        .unwrap_or_else(|error| panic!("{error}\n{error:?}"));
    let loaded =
        Loaded::load(&compiled.object.expect("asked for"), &["kernel"]).unwrap_or_else(|error| panic!("{error}"));
    Native { loaded, scratch_bytes: compiled.scratch_bytes[0] }
}

/// Bits a tensor's memory is filled with where the kernel must not write.
const CANARY: u8 = 0xA5;

fn to_bytes(numbers: &[f64], dtype: DType) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &x in numbers {
        match dtype {
            DType::F32 => bytes.extend((x as f32).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
        }
    }
    bytes
}

fn from_bytes(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        DType::BF16 => bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::F16 => bytes.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
    }
}

impl Native {
    /// Runs all items of a call, in ranges of one and two items; the tensors' data are replaced by what is there
    /// afterwards. Every tensor stands between canaries, every other one at the start of a line of the cache, and
    /// scratch is filled with NaN.
    pub fn run(&self, kernel: &Kernel, call: &mut HostCall) {
        const GUARD: usize = 64;
        let mut memories: Vec<Vec<u8>> = Vec::new();
        let mut starts = Vec::new();
        for (n, (arg, tensor)) in kernel.args.iter().zip(&call.tensors).enumerate() {
            let bytes = to_bytes(&tensor.data, arg.dtype);
            let mut memory = vec![CANARY; bytes.len() + 4 * GUARD];
            let start = GUARD + memory[GUARD..].as_ptr().align_offset(64) + n % 2 * arg.dtype.bytes();
            memory[start..start + bytes.len()].copy_from_slice(&bytes);
            memories.push(memory);
            starts.push((start, bytes.len()));
        }
        let tensors: Vec<TensorArg> = call
            .tensors
            .iter()
            .zip(memories.iter_mut().zip(&starts))
            .map(|(tensor, (memory, (start, _)))| TensorArg {
                data: memory[*start..].as_mut_ptr().cast::<c_void>(),
                stride_sequence: tensor.stride_sequence as i64,
                stride_time: tensor.stride_time as i64,
                stride_head: tensor.stride_head as i64,
                heads: tensor.heads as i64,
            })
            .collect();
        let offsets: Option<Vec<i64>> = call.offsets.as_ref().map(|all| all.iter().map(|n| *n as i64).collect());
        let raw = Call {
            tensors: tensors.as_ptr(),
            offsets: offsets.as_ref().map_or(std::ptr::null(), |all| all.as_ptr()),
            sequences: call.sequences as i64,
            length: call.length as i64,
            heads: call.heads as i64,
        };
        let items = (call.sequences * call.heads) as i64;
        let words = self.scratch_bytes.div_ceil(4);
        let mut scratch = vec![f32::NAN; words + 32];
        let skip = scratch.as_ptr().align_offset(64);
        scratch[skip + words..].fill(1234.5);
        let function = self.loaded.function("kernel").expect("looked up when loaded");
        let mut begin = 0;
        let mut step = 1;
        while begin < items {
            let end = (begin + step).min(items);
            // SAFETY: the call is laid out as the contract says, by the same numbers the interpreter checks.
            unsafe { function(&raw const raw, begin, end, scratch[skip..].as_mut_ptr().cast()) };
            begin = end;
            step = 3 - step;
        }
        assert!(scratch[skip + words..].iter().all(|x| *x == 1234.5), "wrote past the scratch");
        let memories = memories.iter().zip(starts);
        for ((arg, tensor), (memory, (start, len))) in kernel.args.iter().zip(&mut call.tensors).zip(memories) {
            let (before, rest) = memory.split_at(start);
            let (data, after) = rest.split_at(len);
            assert!(before.iter().chain(after).all(|b| *b == CANARY), "wrote outside `{}`", arg.name);
            tensor.data = from_bytes(data, arg.dtype);
        }
    }
}

/// Rounds what a call reads to the types of its arguments, so that both sides see the same numbers.
pub fn round_inputs(kernel: &Kernel, call: &mut HostCall) {
    for (arg, tensor) in kernel.args.iter().zip(&mut call.tensors) {
        tensor.data = from_bytes(&to_bytes(&tensor.data, arg.dtype), arg.dtype);
    }
}

/// Random numbers for every argument of a call.
pub fn fill(kernel: &Kernel, mut call: HostCall, heads: &[(&str, usize)], numbers: &mut Numbers) -> HostCall {
    for arg in &kernel.args {
        let own = heads.iter().find(|(name, _)| *name == arg.name).map_or(call.heads, |(_, h)| *h);
        let count = call.dense_elements(arg, own);
        let data = (0..count).map(|_| numbers.next()).collect();
        let tensor = call.dense(arg, own, data);
        call.tensors.push(tensor);
    }
    round_inputs(kernel, &mut call);
    call
}

/// Runs a call compiled at every level, and interpreted; every written element must agree within `tolerance`,
/// relative to the larger of 1 and its size. Where the interpreter says NaN nothing is promised.
pub fn agree(kernel: &Kernel, call: &HostCall, tolerance: f64) {
    let mut expected = call.clone();
    run(kernel, &mut expected).unwrap_or_else(|error| panic!("{error:?}"));
    for level in levels() {
        let native = compile(kernel, level);
        compare(kernel, call, &expected, &native, level, tolerance);
    }
}

pub fn compare(kernel: &Kernel, call: &HostCall, expected: &HostCall, native: &Native, level: Level, tolerance: f64) {
    let mut found = call.clone();
    native.run(kernel, &mut found);
    for ((arg, found), expected) in kernel.args.iter().zip(&found.tensors).zip(&expected.tensors) {
        if arg.access == Access::Read {
            assert_eq!(found.data, expected.data, "`{}` was changed", arg.name);
            continue;
        }
        for (n, (f, e)) in found.data.iter().zip(&expected.data).enumerate() {
            let close = (f - e).abs() <= tolerance * e.abs().max(1.0) || e.is_nan() || f == e;
            assert!(close, "{} at {level:?}: `{}`[{n}] is {f}, the interpreter says {e}", kernel.name, arg.name);
        }
    }
}

/// As [`agree`], on one sequence of `length` tokens and two heads.
pub fn agree_on(text: &str, length: usize, tolerance: f64) {
    let kernel = checked(text);
    let call = fill(&kernel, HostCall::new(2, length, 2), &[], &mut Numbers(7));
    agree(&kernel, &call, tolerance);
}
