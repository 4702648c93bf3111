//! Runs kernels on NVIDIA GPUs, through the driver alone, which is looked for when it is first asked for.
//!
//! Comes in: modules as [`crate::abi::gpu`] describes them, tensors by name. Goes out: tensors by name, or an error in
//! plain words; where there is no driver or no GPU, that. It never waits for the GPU between kernels, and never takes
//! the lack of a GPU for a reason to panic.

pub mod assemble;
pub mod device;
mod driver;
pub mod error;
pub mod execute;
pub mod measure;
pub mod memory;
pub mod module;
pub mod resident;
