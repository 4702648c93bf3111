//! MLIR → LLVM: the one place where a module crosses from melior's library into inkwell's.
//!
//! Comes in: a module of the `llvm` dialect. Goes out: an LLVM module that lives in a context inkwell owns, and whose
//! lifetime is tied to it. It optimises nothing.

use super::tile_to_mlir::Mlir;
use crate::error::CompileError;
use inkwell::context::AsContextRef;

/// Translates into `context`.
pub fn translate<'l>(
    mlir_context: &melior::Context,
    mlir: &Mlir<'_>,
    context: &'l inkwell::context::Context,
) -> Result<inkwell::module::Module<'l>, CompileError> {
    melior::utility::register_all_llvm_translations(mlir_context);
    let operation = mlir.module().as_operation();
    // SAFETY: both are LLVM's own handles of the one LLVM in this process, bound under two names; `operation` lives
    // through the call. The new module belongs to `context`, which the returned lifetime says.
    let raw = unsafe { mlir_sys::mlirTranslateModuleToLLVMIR(operation.to_raw(), context.as_ctx_ref().cast()) };
    if raw.is_null() {
        return Err(CompileError::Bug {
            pass: "mlir-to-llvm",
            message: "the translation failed".to_string(),
            dump: operation.to_string(),
        });
    }
    // SAFETY: `raw` is a fresh module that nothing else owns.
    Ok(unsafe { inkwell::module::Module::new(raw.cast()) })
}
