//! What can go wrong between a call and a GPU, in words for whoever made the call.

use crate::error::LaunchError;
use crate::tensor::ShapeError;

/// Why something was not done on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaError {
    /// The machine has no NVIDIA driver.
    NoDriver,
    /// The driver sees no GPU.
    NoDevice,
    /// There are not so many GPUs.
    NoSuchDevice {
        /// Its number, from 0.
        asked: usize,
        /// How many there are.
        found: usize,
    },
    /// The GPU is older than any code we make.
    OldDevice {
        /// Its name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The driver is older than what we need of it.
    OldDriver {
        /// The CUDA version it goes up to.
        found: (u32, u32),
    },
    /// The code was made for another family of GPUs.
    WrongArch {
        /// What the code was made for.
        arch: String,
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The GPU has no memory left.
    OutOfMemory {
        /// What it was wanted for.
        what: String,
        /// Bytes wanted.
        bytes: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the GPU.
        total: u64,
    },
    /// A kernel did what it must not, or was stopped. The process can use this GPU no more.
    Fault {
        /// What ran last.
        during: String,
        /// The driver's words.
        why: String,
    },
    /// The driver does not take the code.
    Load {
        /// What it belongs to.
        module: String,
        /// The driver's words.
        why: String,
    },
    /// The call does not fit the kernel.
    Launch(LaunchError),
    /// The driver fails at something that should work.
    Driver {
        /// At what.
        doing: &'static str,
        /// Its words.
        why: String,
    },
}

impl CudaError {
    /// Whether the machine or the input is at fault rather than we.
    pub fn is_a_limit(&self) -> bool {
        match self {
            CudaError::NoDriver
            | CudaError::NoDevice
            | CudaError::NoSuchDevice { .. }
            | CudaError::OldDevice { .. }
            | CudaError::OldDriver { .. }
            | CudaError::WrongArch { .. }
            | CudaError::OutOfMemory { .. }
            | CudaError::Launch(
                LaunchError::TooLong { .. } | LaunchError::TooLarge { .. } | LaunchError::Misaligned { .. },
            )
            | CudaError::Driver { .. } => true,
            CudaError::Fault { .. }
            | CudaError::Load { .. }
            | CudaError::Launch(
                LaunchError::NoKernel { .. }
                | LaunchError::Missing { .. }
                | LaunchError::Type { .. }
                | LaunchError::Shape { .. }
                | LaunchError::Heads { .. }
                | LaunchError::Offsets { .. }
                | LaunchError::Signature { .. },
            ) => false,
        }
    }
}

impl std::fmt::Display for CudaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CudaError::NoDriver => {
                write!(f, "this machine has no NVIDIA driver (there is no libcuda), so nothing can run on a GPU")
            }
            CudaError::NoDevice => write!(f, "the NVIDIA driver sees no GPU in this machine"),
            CudaError::NoSuchDevice { asked, found } => {
                write!(f, "there is no GPU {asked}; this machine has {found}, counted from 0")
            }
            CudaError::OldDevice { name, capability: (major, minor) } => write!(
                f,
                "the GPU {name} has compute capability {major}.{minor}; chunkwise needs 8.0 (Ampere) or newer"
            ),
            CudaError::OldDriver { found: (major, minor) } => write!(
                f,
                "the NVIDIA driver goes up to CUDA {major}.{minor} only, which is too old for this code; update it \
                 (chunkwise needs 12.8, driver 570, or newer)"
            ),
            CudaError::WrongArch { arch, name, capability: (major, minor) } => {
                write!(f, "this code was made for {arch}; the GPU {name} is of compute capability {major}.{minor}")
            }
            CudaError::OutOfMemory { what, bytes, free, total } => write!(
                f,
                "the GPU has no memory for {what}: {} wanted, {} of {} free",
                in_words(*bytes),
                in_words(*free),
                in_words(*total)
            ),
            CudaError::Fault { during, why } => {
                write!(f, "the GPU broke off {during}: {why}; this process can compute nothing more on it")
            }
            CudaError::Load { module, why } => write!(f, "the driver does not take the code of {module}: {why}"),
            CudaError::Launch(error) => error.fmt(f),
            CudaError::Driver { doing, why } => write!(f, "the NVIDIA driver fails at {doing}: {why}"),
        }
    }
}
impl std::error::Error for CudaError {}

impl From<LaunchError> for CudaError {
    fn from(error: LaunchError) -> CudaError {
        CudaError::Launch(error)
    }
}

impl From<ShapeError> for CudaError {
    fn from(error: ShapeError) -> CudaError {
        CudaError::Launch(error.into())
    }
}

fn in_words(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        10_000_000..=9_999_999_999 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}
