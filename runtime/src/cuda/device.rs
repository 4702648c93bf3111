//! A GPU, opened.
//!
//! Comes in: its number. Goes out: a handle that keeps its context, and what is known of it. It never changes a
//! setting of the GPU.

use super::driver::{self, check};
use super::error::CudaError;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use std::sync::Arc;

/// The oldest compute capability we make code for.
pub const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// The oldest driver that knows every call we make, as a CUDA version.
pub const OLDEST_DRIVER: (u32, u32) = (12, 8);

/// A GPU whose context is held. Copies are the same GPU.
#[derive(Clone)]
pub struct CudaDevice(Arc<Opened>);

struct Opened {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    facts: Facts,
}

// SAFETY: a context may be used from any thread that makes it current, which `bind` does.
unsafe impl Send for Opened {}
// SAFETY: as above; the fields themselves never change.
unsafe impl Sync for Opened {}

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its number, from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Shared memory a block may ask for, in bytes.
    pub shared_memory: u32,
    /// Bytes of the cache that all multiprocessors share.
    pub cache: u64,
    /// The CUDA version the driver goes up to.
    pub driver: (u32, u32),
}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CudaDevice").field(&self.0.facts).finish()
    }
}

impl CudaDevice {
    /// The number of GPUs.
    pub fn count() -> Result<usize, CudaError> {
        if !driver::is_present() {
            return Err(CudaError::NoDriver);
        }
        // SAFETY: the driver is there; the argument is the only one allowed.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(CudaError::NoDevice),
            // What containers without a GPU, and toolkits without a driver, have in its place.
            CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(CudaError::NoDriver),
            answer => check(answer, "starting")?,
        }
        let mut count = 0;
        // SAFETY: the driver writes one number.
        check(unsafe { sys::cuDeviceGetCount(&mut count) }, "counting GPUs")?;
        match usize::try_from(count) {
            Ok(0) | Err(_) => Err(CudaError::NoDevice),
            Ok(count) => Ok(count),
        }
    }

    /// Opens a GPU, counted from 0.
    pub fn open(ordinal: usize) -> Result<CudaDevice, CudaError> {
        let found = CudaDevice::count()?;
        let driver = driver_version()?;
        if driver < OLDEST_DRIVER {
            return Err(CudaError::OldDriver { found: driver });
        }
        let number = i32::try_from(ordinal).ok().filter(|_| ordinal < found);
        let number = number.ok_or(CudaError::NoSuchDevice { asked: ordinal, found })?;
        let mut handle = 0;
        // SAFETY: the driver writes one handle.
        check(unsafe { sys::cuDeviceGet(&mut handle, number) }, "opening a GPU")?;
        let facts = facts(ordinal, handle, driver)?;
        if facts.capability < OLDEST_CAPABILITY {
            return Err(CudaError::OldDevice { name: facts.name, capability: facts.capability });
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver writes one handle, which `drop` gives back once.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, handle) }, "opening a GPU")?;
        let device = CudaDevice(Arc::new(Opened { handle, context, facts }));
        device.bind()?;
        Ok(device)
    }

    /// What is known of it.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Makes it the one that calls of this thread go to.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is held.
        check(unsafe { sys::cuCtxSetCurrent(self.0.context) }, "choosing a GPU")
    }

    /// Bytes free, and bytes in all.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for free memory")?;
        Ok((free as u64, total as u64))
    }

    /// Whether code for an architecture runs on it: `sm_90a` on 9.0 alone, `sm_80` on 8.0 and all newer.
    pub fn runs(&self, arch: &str) -> bool {
        runs_on(arch, self.0.facts.capability)
    }

    /// The architecture that an assembler makes machine code of this GPU for, from code for `arch`.
    pub fn assembled_for(&self, arch: &str) -> String {
        let (major, minor) = self.0.facts.capability;
        if arch.ends_with('a') { arch.to_string() } else { format!("sm_{major}{minor}") }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: held since `open`. There is nothing to be done about a driver that does not take it back.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

pub(super) fn driver_version() -> Result<(u32, u32), CudaError> {
    let mut version = 0;
    // SAFETY: the driver writes one number.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "telling its version")?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}

fn facts(ordinal: usize, handle: sys::CUdevice, driver: (u32, u32)) -> Result<Facts, CudaError> {
    const DOING: &str = "describing a GPU";
    let number = |attribute: Attribute| {
        let mut value = 0;
        // SAFETY: the driver writes one number.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, handle) }, DOING)?;
        Ok::<u32, CudaError>(u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most that many bytes, the last of them 0.
    check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, handle) }, DOING)?;
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut memory = 0;
    // SAFETY: the driver writes one number.
    check(unsafe { sys::cuDeviceTotalMem_v2(&mut memory, handle) }, DOING)?;
    Ok(Facts {
        ordinal,
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory as u64,
        shared_memory: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        cache: u64::from(number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        driver,
    })
}

/// Whether code for `sm_XY` or `sm_XYa` runs on a compute capability.
pub fn runs_on(arch: &str, capability: (u32, u32)) -> bool {
    let Some(digits) = arch.strip_prefix("sm_") else { return false };
    let (digits, only_there) = match digits.strip_suffix('a') {
        Some(digits) => (digits, true),
        None => (digits, false),
    };
    let Ok(number) = digits.parse::<u32>() else { return false };
    let made_for = (number / 10, number % 10);
    if only_there { capability == made_for } else { capability >= made_for }
}

#[cfg(test)]
mod tests {
    use super::runs_on;

    #[test]
    fn code_runs_on_what_it_was_made_for_and_newer() {
        assert!(runs_on("sm_80", (8, 0)) && runs_on("sm_80", (8, 9)) && runs_on("sm_80", (12, 0)));
        assert!(!runs_on("sm_80", (7, 5)) && !runs_on("sm_90", (8, 9)));
        assert!(runs_on("sm_90a", (9, 0)) && !runs_on("sm_90a", (10, 0)) && !runs_on("sm_90a", (8, 0)));
        assert!(!runs_on("avx2", (9, 0)) && !runs_on("sm_", (9, 0)) && !runs_on("sm_a", (9, 0)));
    }
}
