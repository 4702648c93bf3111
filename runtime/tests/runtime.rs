//! The runtime, with kernels written by hand in the place of compiled ones.

#[path = "runtime/cache.rs"]
mod cache;
#[path = "runtime/cuda.rs"]
mod cuda;
#[path = "runtime/execute.rs"]
mod execute;
#[path = "runtime/launch.rs"]
mod launch;
#[path = "runtime/library.rs"]
mod library;
#[path = "runtime/ptx.rs"]
mod ptx;
#[path = "runtime/recurrence.rs"]
mod recurrence;
#[path = "runtime/tensor.rs"]
mod tensor;
