//! The driver's interface, as far as its answers go: a number from a call becomes nothing or an error.

use super::error::CudaError;
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CStr;

/// Whether there is a driver. To be asked before any other call: without one they panic.
pub fn is_present() -> bool {
    // SAFETY: only loads a library that runs nothing of its own when it is loaded.
    unsafe { sys::is_culib_present() }
}

/// An answer as an error. What a kernel did wrong turns up at any later call, so every answer is looked at for it.
pub fn check(answer: CUresult, doing: &'static str) -> Result<(), CudaError> {
    if answer == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let why = words(answer);
    if is_fault(answer) {
        return Err(CudaError::Fault { during: doing.to_string(), why });
    }
    Err(CudaError::Driver { doing, why })
}

/// Whether the answer says that a kernel went wrong, after which the context is of no more use.
pub fn is_fault(answer: CUresult) -> bool {
    // The driver's list is long and grows; these are the ones it documents as leaving the process unusable.
    matches!(
        answer,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
    )
}

/// The driver's own words for an answer: `an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)`.
pub fn words(answer: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const core::ffi::c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver writes a pointer to text that lives as long as itself, or answers that it knows none.
        let known = unsafe { get(answer, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: as above.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", answer as u32));
    match text(sys::cuGetErrorString) {
        Some(words) => format!("{words} ({name})"),
        None => name,
    }
}
