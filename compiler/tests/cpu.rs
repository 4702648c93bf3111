//! Compiled kernels on this machine's processor, at every level it has, against the interpreter of the tile program;
//! kernels for GPUs, as far as they can be tried without one.

#[path = "gpu/assemble.rs"]
mod assemble;
#[path = "cpu/functions.rs"]
mod functions;
#[path = "cpu/native.rs"]
mod native;
#[path = "cpu/products.rs"]
mod products;
#[path = "cpu/random.rs"]
mod random;
#[path = "gpu/registers.rs"]
mod registers;
#[path = "cpu/statements.rs"]
mod statements;
#[path = "cpu/transposes.rs"]
mod transposes;
