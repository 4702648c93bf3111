//! Kernels made ahead of time, from a shared library and its manifest.
//!
//! Comes in: the path of a manifest, with the library beside it. Goes out: artifacts that can run. The manifest is
//! checked before the library is touched; a library made for another processor is refused, not run.

use crate::cache::Cache;
use crate::cuda::error::CudaError;
use crate::cuda::execute::GpuArtifact;
use crate::cuda::memory::Stream;
use crate::error::LaunchError;
use crate::execute::CpuArtifact;
use chunkwise_abi::gpu::{GpuRecurrence, ptx_symbol};
use chunkwise_abi::{ABI_VERSION, KernelFn, Manifest};
use indexmap::IndexMap;
use std::any::Any;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a library was not loaded.
#[derive(Debug)]
pub enum LibraryError {
    /// A file could not be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
    /// The manifest says something that cannot be.
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// This processor lacks what the library needs.
    Processor {
        /// The instructions it lacks.
        feature: String,
    },
    /// A kernel does not fit its description.
    Kernel(LaunchError),
    /// A GPU does not take the code.
    Gpu(CudaError),
}

impl std::fmt::Display for LibraryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LibraryError::Read { path, why } => write!(f, "cannot read {}: {why}", path.display()),
            LibraryError::Manifest { path, why } => write!(f, "{} is no manifest of kernels: {why}", path.display()),
            LibraryError::Processor { feature } => write!(
                f,
                "the library needs `{feature}`, which this processor does not have; build it for this processor"
            ),
            LibraryError::Kernel(error) => error.fmt(f),
            LibraryError::Gpu(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for LibraryError {}

/// Every recurrence of a library, for this processor.
///
/// # Safety
/// Loading a library runs its code: the manifest and the library must come from a source one would run a program from.
pub unsafe fn load(manifest: &Path) -> Result<Vec<CpuArtifact>, LibraryError> {
    // SAFETY: promised by the caller.
    let (described, library) = unsafe { open(manifest) }?;
    let library = Arc::new(library);
    let keep_alive: Arc<dyn Any + Send + Sync> = Arc::clone(&library) as _;
    let artifact = |signature| {
        let find = |symbol: &str| {
            // SAFETY: the caller vouches that the library is what its manifest says, so the symbol is a `KernelFn`.
            unsafe { library.get::<KernelFn>(symbol.as_bytes()) }.ok().map(|function| *function)
        };
        // SAFETY: as above, and the library stays loaded while `keep_alive` is held.
        unsafe { CpuArtifact::new(signature, &keep_alive, find) }.map_err(LibraryError::Kernel)
    };
    described.recurrences.into_iter().map(artifact).collect()
}

/// Every recurrence of a library, for the GPU of a stream: in code for that GPU alone where there is such, else in the
/// newest that runs on it.
///
/// # Safety
/// As [`load`].
pub unsafe fn load_for_gpu(manifest: &Path, stream: &Stream) -> Result<Vec<GpuArtifact>, LibraryError> {
    // SAFETY: promised by the caller.
    let (described, library) = unsafe { open(manifest) }?;
    let damaged = |why: String| LibraryError::Manifest { path: manifest.to_path_buf(), why };
    let arch_of = |recurrence: &GpuRecurrence| {
        let modules = [&recurrence.forward, &recurrence.forward_saving, &recurrence.backward];
        modules.into_iter().flatten().map(|module| module.arch.clone()).next()
    };
    let mut chosen: IndexMap<String, (String, GpuRecurrence)> = IndexMap::new();
    for recurrence in described.gpu {
        let Some(arch) = arch_of(&recurrence).filter(|arch| stream.device().runs(arch)) else { continue };
        // Newer before older, and code for one GPU alone before code that it shares with others.
        let rank = |arch: &str| (arch.len(), arch.to_string());
        let better = chosen.get(&recurrence.signature.name).is_none_or(|(known, _)| rank(&arch) > rank(known));
        if better {
            chosen.insert(recurrence.signature.name.clone(), (arch, recurrence));
        }
    }
    if chosen.is_empty() {
        let facts = stream.device().facts();
        let (name, (major, minor)) = (&facts.name, facts.capability);
        return Err(damaged(format!("it has no code for the GPU {name}, compute capability {major}.{minor}")));
    }
    let mut artifacts = Vec::new();
    for (_, mut recurrence) in chosen.into_values() {
        let modules = [&mut recurrence.forward, &mut recurrence.forward_saving, &mut recurrence.backward];
        for module in modules.into_iter().flatten() {
            let symbol = ptx_symbol(&module.signature.symbol, &module.arch);
            // SAFETY: the caller vouches that the library is what its manifest says: this is text that ends in 0.
            let text =
                unsafe { library.get::<*const c_char>(symbol.as_bytes()).ok().map(|address| CStr::from_ptr(*address)) };
            let text = text.ok_or_else(|| damaged(format!("the library has no `{symbol}`")))?;
            module.ptx = text.to_string_lossy().into_owned();
        }
        // SAFETY: as above.
        let artifact = unsafe { GpuArtifact::load(stream, &recurrence, None, &Cache::off()) };
        artifacts.push(artifact.map_err(LibraryError::Gpu)?);
    }
    Ok(artifacts)
}

/// The manifest, checked, and its library.
///
/// # Safety
/// As [`load`].
unsafe fn open(manifest: &Path) -> Result<(Manifest, libloading::Library), LibraryError> {
    let damaged = |why: String| LibraryError::Manifest { path: manifest.to_path_buf(), why };
    let unreadable = |path: &Path, why: String| LibraryError::Read { path: path.to_path_buf(), why };
    let text = std::fs::read_to_string(manifest).map_err(|error| unreadable(manifest, error.to_string()))?;
    let described: Manifest = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if described.abi != ABI_VERSION {
        let why = format!("it follows version {} of the calling contract, this is {ABI_VERSION}", described.abi);
        return Err(damaged(why));
    }
    let plain = Path::new(&described.library).file_name().is_some_and(|name| name == described.library.as_str());
    if !plain {
        return Err(damaged(format!("`{}` is not the plain name of a file beside it", described.library)));
    }
    if let Some(feature) = described.features.iter().find(|feature| !has_feature(feature)) {
        return Err(LibraryError::Processor { feature: feature.clone() });
    }
    // A path with a separator keeps the system from looking elsewhere.
    let folder = manifest.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let path = folder.join(&described.library);
    // SAFETY: the caller vouches for what the library runs when it is loaded.
    let library = unsafe { libloading::Library::new(&path) };
    let library = library.map_err(|error| unreadable(&path, error.to_string()))?;
    Ok((described, library))
}

/// Whether this processor has instructions, by LLVM's name for them. One that is not known here is not had.
fn has_feature(name: &str) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        match name.trim_start_matches('+') {
            "sse2" => true,
            "avx" => std::arch::is_x86_feature_detected!("avx"),
            "avx2" => std::arch::is_x86_feature_detected!("avx2"),
            "fma" => std::arch::is_x86_feature_detected!("fma"),
            "f16c" => std::arch::is_x86_feature_detected!("f16c"),
            "bmi" => std::arch::is_x86_feature_detected!("bmi1"),
            "bmi2" => std::arch::is_x86_feature_detected!("bmi2"),
            "avx512f" => std::arch::is_x86_feature_detected!("avx512f"),
            "avx512bw" => std::arch::is_x86_feature_detected!("avx512bw"),
            "avx512dq" => std::arch::is_x86_feature_detected!("avx512dq"),
            "avx512vl" => std::arch::is_x86_feature_detected!("avx512vl"),
            "avx512cd" => std::arch::is_x86_feature_detected!("avx512cd"),
            "avx512bf16" => std::arch::is_x86_feature_detected!("avx512bf16"),
            _ => false,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = name;
        false
    }
}
