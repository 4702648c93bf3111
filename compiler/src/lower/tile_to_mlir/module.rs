//! The crossing into MLIR: a context with the few dialects used, parsing, and the passes down to the `llvm` dialect.
//!
//! Comes in: text. Goes out: a module that holds only the `llvm` dialect. What MLIR complains of is collected and
//! returned, never printed.

use crate::error::CompileError;
use melior::dialect::DialectHandle;
use melior::pass::{self, PassManager};
use std::sync::{Arc, Mutex};

/// A module of the `llvm` dialect.
pub struct Mlir<'c> {
    module: melior::ir::Module<'c>,
}

impl<'c> Mlir<'c> {
    /// The module.
    pub fn module(&self) -> &melior::ir::Module<'c> {
        &self.module
    }
}

/// A context of the calling thread: no threads of its own, only the dialects used.
pub fn context() -> melior::Context {
    let context = melior::Context::new_with_threading(false);
    for dialect in [DialectHandle::llvm(), DialectHandle::scf(), DialectHandle::cf(), DialectHandle::arith()] {
        dialect.register_dialect(&context);
        dialect.load_dialect(&context);
    }
    context
}

/// Parses a module and lowers it.
pub fn parse<'c>(context: &'c melior::Context, text: &str) -> Result<Mlir<'c>, CompileError> {
    let complaints = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&complaints);
    let handler = context.attach_diagnostic_handler(move |diagnostic| {
        let mut all = sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.push_str(&format!("{} ({})\n", diagnostic, diagnostic.location()));
        true
    });
    let bug = |pass: &'static str| CompileError::Bug {
        pass,
        message: complaints.lock().unwrap_or_else(std::sync::PoisonError::into_inner).trim_end().to_string(),
        dump: text.to_string(),
    };
    let result = (|| {
        let mut module = melior::ir::Module::parse(context, text).ok_or_else(|| bug("parse-mlir"))?;
        let passes = PassManager::new(context);
        passes.enable_verifier(cfg!(debug_assertions));
        passes.add_pass(pass::conversion::create_scf_to_control_flow());
        passes.add_pass(pass::conversion::create_arith_to_llvm());
        passes.add_pass(pass::conversion::create_control_flow_to_llvm());
        passes.run(&mut module).map_err(|_| bug("scf-to-llvm"))?;
        Ok(Mlir { module })
    })();
    context.detach_diagnostic_handler(handler);
    result
}
