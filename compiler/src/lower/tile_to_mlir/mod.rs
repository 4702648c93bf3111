//! Tile program → MLIR.
//!
//! Comes in: kernels and how wide the vectors are. Goes out: one module as text in the `llvm` dialect structured by
//! `scf`, and that module parsed. It never looks at a mechanism, and never at LLVM. Only this directory and
//! [`super::mlir_to_llvm`] see melior.
//!
//! Text rather than builders: it is what `chunkwise emit --to mlir` shows, and parsing takes a millisecond.

pub(in crate::lower) mod begin;
mod expr;
pub(in crate::lower) mod functions;
mod kernel;
mod lanes;
mod matmul;
mod memory;
mod module;
mod requests;
mod transpose;
pub(in crate::lower) mod writer;

pub use module::{Mlir, context, parse};

use crate::tile::ir::{Kernel, Stmt};
use std::fmt::Write;

/// What the vectors of a processor can do, as far as the text depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// Lanes of a float32 vector: 16, 8 or 4.
    pub lanes: usize,
    /// Stores take masks.
    pub masks: bool,
    /// There are instructions that convert binary16.
    pub f16: bool,
}

/// The module of several kernels, each under its symbol.
pub fn module_text(kernels: &[(&Kernel, &str)], vectors: &Vectors) -> String {
    let mut functions = functions::Functions::default();
    let mut attributes = String::from("#memory = #llvm.tbaa_root<id = \"memory\">\n");
    let mut bodies = String::new();
    for (number, (kernel, symbol)) in kernels.iter().enumerate() {
        let tensors = (0..kernel.args.len()).map(|n| ('a', n));
        let buffers = (0..kernel.buffers.len()).map(|n| ('b', n));
        for (kind, index) in tensors.chain(buffers) {
            let tag = kernel::tag(number, kind, u32::try_from(index).expect("ids have 32 bits"));
            let name = &tag[1..];
            write!(
                attributes,
                "{tag}_type = #llvm.tbaa_type_desc<id = \"{name}\", members = {{<#memory, 0>}}>\n\
                 {tag} = #llvm.tbaa_tag<base_type = {tag}_type, access_type = {tag}_type, offset = 0>\n"
            )
            .expect("writing to a string");
        }
        bodies.push_str(&kernel::lower(kernel, number, symbol, vectors, &mut functions));
    }
    if functions.needs_matmul {
        bodies.push_str(&matmul::define(vectors));
    }
    if functions.needs_transpose {
        bodies.push_str(&transpose::define(vectors));
    }
    format!("{attributes}module {{\n{bodies}{}}}\n", functions.define())
}

/// Whether every product has a right operand whose columns are side by side: the only ones processors are given.
pub fn takes(body: &[Stmt]) -> bool {
    body.iter().all(|stmt| match stmt {
        Stmt::For { body, .. } | Stmt::Lanes { body, .. } | Stmt::If { body, .. } => takes(body),
        Stmt::Matmul(product) => product.b.col_stride == 1,
        Stmt::Local { .. } | Stmt::Assign { .. } | Stmt::Store { .. } | Stmt::ReduceLanes { .. } => true,
    })
}

/// Bytes of scratch a worker of this kernel needs.
pub fn scratch_bytes(kernel: &Kernel) -> usize {
    kernel::scratch_bytes(kernel)
}
