//! Compiled code for this processor: from the cache, or made and kept there. In: an instance and what is asked for;
//! out: an artifact that runs. Tensors go in and come out in float64, converted here.

use std::any::Any;
use std::sync::Arc;

use chunkwise_abi::{DType, Role, Signature};
use chunkwise_compiler::artifact::{self, Artifact, Parts};
use chunkwise_compiler::compile::{self, Request};
use chunkwise_compiler::target::cpu::{CpuTarget, Loaded};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_runtime::blocks::Blocks;
use chunkwise_runtime::cache::{Cache, Entry, Key, Lookup};
use chunkwise_runtime::error::LaunchError;
use chunkwise_runtime::execute::CpuArtifact;
use chunkwise_runtime::tensor::{ElementType, HostTensor, Tensors};

use crate::failure::Failure;

/// Compiled code, ready to run.
pub struct Compiled {
    /// What runs.
    pub artifact: CpuArtifact,
    /// Whether it was found in the cache.
    pub cached: bool,
    /// Why the cache was of no use, if it was asked for.
    pub warning: Option<String>,
}

/// Finds or makes the code.
pub fn prepare(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    use_cache: bool,
) -> Result<Compiled, Failure> {
    let target = CpuTarget::host();
    let (cache, mut warning) = if use_cache { Cache::of_user() } else { (Cache::off(), None) };
    let key = key(instance, request, parts, dtype, &target);
    if let Lookup::Hit(entry) = cache.get(key)
        // An entry with a true checksum that still does not load is no better than a damaged one: it is made anew.
        && let Ok(artifact) = load(&Artifact { signature: entry.signature, object: entry.object })
    {
        return Ok(Compiled { artifact, cached: true, warning: None });
    }
    let made = artifact::compile_cpu(instance, request, parts, dtype, &target)?;
    let artifact = load(&made)?;
    if let Err(problem) = cache.put(key, &Entry { signature: made.signature, object: made.object }) {
        warning = Some(problem);
    }
    Ok(Compiled { artifact, cached: false, warning: warning.map(|warning| warning.to_string()) })
}

/// Fewest positions a block of an axis has: less is more overhead than work.
const LEAST_BLOCK: usize = 32;

/// For a forward with fewer heads and sequences (`items`) than threads: code for blocks of an axis whose positions go
/// their own way, where there is such an axis and it is long enough.
pub fn prepare_blocks(
    instance: &Instance,
    request: &Request,
    dtype: DType,
    use_cache: bool,
    items: usize,
    threads: usize,
) -> Result<Option<Blocks>, Failure> {
    if items == 0 || items >= threads {
        return Ok(None);
    }
    let derived = compile::derive(instance, request)?;
    let longest =
        compile::separable_axes(instance.program, &derived).into_iter().max_by_key(|axis| instance.sizes[axis.index()]);
    let Some(axis) = longest else { return Ok(None) };
    let full = instance.sizes[axis.index()];
    let wanted = threads.div_ceil(items);
    // The most blocks that divide the axis evenly, no more than there are threads for.
    let Some(n_blocks) = (2..=wanted).rev().find(|n| full.is_multiple_of(*n) && full / n >= LEAST_BLOCK) else {
        return Ok(None);
    };
    // Constants keep the values they have for the whole axis.
    let mut part = instance.clone();
    part.sizes[axis.index()] = full / n_blocks;
    // What is multiplied first may depend on which axis is longer; in blocks nothing may round otherwise.
    if compile::derive(&part, request)?.forward.nodes != derived.forward.nodes {
        return Ok(None);
    }
    let compiled = prepare(&part, request, Parts::Forward, dtype, use_cache)?;
    let name = instance.program.axes[axis.index()].name.clone();
    Ok(Some(Blocks { artifact: compiled.artifact, axis: name, full, block: full / n_blocks }))
}

/// Runs a forward in blocks on float64 tensors.
pub fn run_blocks(blocks: &Blocks, tensors: &Bundle, threads: Option<usize>) -> Result<Bundle, Failure> {
    let given = narrow(&blocks.artifact.signature, tensors)?;
    let results = blocks.run(&given, None, &options(threads)).map_err(launch)?;
    Ok(widen(&results))
}

/// Results in float64.
pub fn widen(results: &Tensors) -> Bundle {
    let widened = results
        .iter()
        .map(|(name, tensor)| (name.clone(), Tensor { shape: tensor.shape().to_vec(), data: tensor.to_f64() }));
    widened.collect()
}

/// This build of chunkwise, which is part of every key: another may compile the same program differently.
pub fn build() -> String {
    let build = std::env::current_exe().ok().and_then(|path| std::fs::metadata(path).ok());
    let build = build.map(|it| (it.len(), it.modified().ok()));
    format!("{} {build:?}", env!("CARGO_PKG_VERSION"))
}

/// Everything that decides what is compiled.
fn key(instance: &Instance, request: &Request, parts: Parts, dtype: DType, target: &CpuTarget) -> Key {
    Key::of(format!("{} {target:?} {dtype:?} {parts:?} {request:?} {instance:?}", build()).as_bytes())
}

/// Links an object into this process.
fn load(made: &Artifact) -> Result<CpuArtifact, Failure> {
    let signature = &made.signature;
    let kernels = [&signature.forward, &signature.forward_saving, &signature.backward];
    let symbols: Vec<&str> = kernels.into_iter().flatten().map(|kernel| kernel.symbol.as_str()).collect();
    let loaded = Arc::new(Loaded::load(&made.object, &symbols)?);
    let keep_alive: Arc<dyn Any + Send + Sync> = Arc::clone(&loaded) as _;
    // SAFETY: the object was compiled for this signature, here or by the process that stored both under one checksum,
    // and `loaded`, which holds its code, is kept alive by the artifact.
    unsafe { CpuArtifact::new(signature.clone(), &keep_alive, |symbol| loaded.function(symbol)) }.map_err(launch)
}

/// Runs on float64 tensors.
pub fn run(
    artifact: &CpuArtifact,
    tensors: &Bundle,
    backward: bool,
    threads: Option<usize>,
) -> Result<Bundle, Failure> {
    let options = options(threads);
    let given = narrow(&artifact.signature, tensors)?;
    let results =
        if backward { artifact.run_backward(&given, None, &options) } else { artifact.run(&given, None, &options) };
    Ok(widen(&results.map_err(launch)?))
}

/// Threads and the rest.
pub fn options(threads: Option<usize>) -> chunkwise_runtime::cpu::Options {
    match threads {
        Some(threads) => chunkwise_runtime::cpu::Options::threads(threads),
        None => chunkwise_runtime::cpu::Options::all_processors(),
    }
}

/// The tensors in the types that the kernels take.
pub fn narrow(signature: &Signature, tensors: &Bundle) -> Result<Tensors, Failure> {
    let kernels = [&signature.forward, &signature.forward_saving, &signature.backward];
    let mut given = Tensors::new();
    for (name, tensor) in tensors {
        let mut args = kernels.into_iter().flatten().flat_map(|kernel| &kernel.args);
        // A tensor that the program declares and never uses has no argument, but still says how many heads there are.
        let dtype = args.find(|arg| arg.name == *name).map_or(ElementType::F32, |arg| arg.dtype.into());
        let host = HostTensor::from_f64(dtype, &tensor.shape, &tensor.data)
            .map_err(|error| Failure::Input(format!("`{name}`: {error}")))?;
        given.insert(name.clone(), host);
    }
    Ok(given)
}

/// The tensors were matched with the program before, so what is still wrong with them is wrong here; but for limits.
pub fn launch(error: LaunchError) -> Failure {
    match &error {
        LaunchError::TooLong { .. } | LaunchError::TooLarge { .. } | LaunchError::Misaligned { .. } => {
            Failure::Input(error.to_string())
        }
        LaunchError::NoKernel { .. }
        | LaunchError::Missing { .. }
        | LaunchError::Type { .. }
        | LaunchError::Shape { .. }
        | LaunchError::Heads { .. }
        | LaunchError::Offsets { .. }
        | LaunchError::Signature { .. } => Failure::Ours(error.to_string()),
    }
}

/// Bytes a call reads and writes, by the shapes of its kernels' arguments.
pub fn traffic(kernel: &chunkwise_abi::KernelSignature, batch: usize, tokens: usize, heads: usize) -> f64 {
    let sum = kernel.args.iter().map(|arg| {
        let rows = match arg.role {
            Role::Token => batch * tokens * heads,
            Role::Head => heads,
            Role::Sequence => batch * heads,
            Role::Chunk(chunk) => batch * heads * tokens.div_ceil(chunk),
        };
        rows as f64 * arg.inner.iter().product::<usize>() as f64 * arg.dtype.bytes() as f64
    });
    sum.sum()
}
