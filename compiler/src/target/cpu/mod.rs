//! Processors: x86-64 at three levels of vector instructions.

pub mod caps;
pub mod emit;
pub mod jit;

pub use caps::{CpuTarget, LEVELS, Level};
pub use emit::{Compiled, Want, compile_kernels};
pub use jit::Loaded;

/// The LLVM that is linked in: major, minor, patch.
pub fn llvm_version() -> (u32, u32, u32) {
    inkwell::support::get_llvm_version()
}
