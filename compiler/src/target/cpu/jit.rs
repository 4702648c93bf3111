//! Object code → functions that can be called, through ORC.
//!
//! Comes in: the bytes of an object from [`super::emit`]. Goes out: a [`Loaded`] that keeps the code alive. The object
//! may use `memcpy` and `memset` of this process and nothing else.

use crate::error::CompileError;
use chunkwise_abi::KernelFn;
use inkwell::llvm_sys::core::LLVMCreateMemoryBufferWithMemoryRangeCopy;
use inkwell::llvm_sys::error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage};
use inkwell::llvm_sys::orc2::lljit::{
    LLVMOrcCreateLLJIT, LLVMOrcDisposeLLJIT, LLVMOrcLLJITAddObjectFile, LLVMOrcLLJITGetGlobalPrefix,
    LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITLookup, LLVMOrcLLJITRef,
};
use inkwell::llvm_sys::orc2::{LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess, LLVMOrcJITDylibAddGenerator};
use inkwell::targets::{InitializationConfig, Target};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::Once;

/// Code in memory, ready to run.
pub struct Loaded {
    functions: HashMap<String, KernelFn>,
    jit: LLVMOrcLLJITRef,
}

// SAFETY: after `load` the JIT is only kept and finally disposed of, and the code it holds has no state of its own.
unsafe impl Send for Loaded {}
// SAFETY: as above; looking up a function reads a map.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// Links an object into this process and looks up its kernels.
    pub fn load(object: &[u8], symbols: &[&str]) -> Result<Loaded, CompileError> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| Target::initialize_x86(&InitializationConfig::default()));
        let mut jit = std::ptr::null_mut();
        // SAFETY: a null builder means the defaults; `jit` is written before it is read.
        check("create-jit", unsafe { LLVMOrcCreateLLJIT(&raw mut jit, std::ptr::null_mut()) })?;
        let mut loaded = Loaded { functions: HashMap::new(), jit };
        // SAFETY: `jit` is alive until `loaded` is dropped; the library belongs to it. The generator and the buffer,
        // once made, are handed over to it.
        unsafe {
            let library = LLVMOrcLLJITGetMainJITDylib(jit);
            let mut process = std::ptr::null_mut();
            check(
                "create-jit",
                LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(
                    &raw mut process,
                    LLVMOrcLLJITGetGlobalPrefix(jit),
                    None,
                    std::ptr::null_mut(),
                ),
            )?;
            LLVMOrcJITDylibAddGenerator(library, process);
            let buffer =
                LLVMCreateMemoryBufferWithMemoryRangeCopy(object.as_ptr().cast(), object.len(), c"kernels".as_ptr());
            check("link-object", LLVMOrcLLJITAddObjectFile(jit, library, buffer))?;
        }
        for symbol in symbols {
            let name =
                CString::new(*symbol).map_err(|_| bug("find-kernel", format!("`{symbol}` cannot be a symbol")))?;
            let mut address = 0;
            // SAFETY: `jit` is alive, `name` ends in NUL.
            check("link-object", unsafe { LLVMOrcLLJITLookup(jit, &raw mut address, name.as_ptr()) })?;
            if address == 0 {
                return Err(bug("find-kernel", format!("`{symbol}` has no address")));
            }
            // SAFETY: the symbol was compiled as a `KernelFn` by `emit`, and its code lives as long as `loaded`.
            let function = unsafe { std::mem::transmute::<u64, KernelFn>(address) };
            loaded.functions.insert((*symbol).to_string(), function);
        }
        Ok(loaded)
    }

    /// The kernel of a symbol. It must not be called after `self` is gone.
    pub fn function(&self, symbol: &str) -> Option<KernelFn> {
        self.functions.get(symbol).copied()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: made by `load`, disposed of once. An error here has no one to go to and no consequence.
        unsafe {
            let error = LLVMOrcDisposeLLJIT(self.jit);
            if !error.is_null() {
                LLVMDisposeErrorMessage(LLVMGetErrorMessage(error));
            }
        }
    }
}

fn bug(pass: &'static str, message: String) -> CompileError {
    CompileError::Bug { pass, message, dump: String::new() }
}

fn check(pass: &'static str, error: LLVMErrorRef) -> Result<(), CompileError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: taking the message consumes the error; the message ends in NUL and is disposed of once.
    let message = unsafe {
        let raw = LLVMGetErrorMessage(error);
        let message = CStr::from_ptr(raw).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(raw);
        message
    };
    Err(bug(pass, message))
}
