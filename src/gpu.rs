//! Compiled code for an NVIDIA GPU: from the cache, or made and kept there. In: an instance and what is asked for; out:
//! an artifact that runs. Tensors go in and come out in float64, converted here. It never takes the processor for a GPU
//! that is not there.

use std::time::Instant;

use chunkwise_abi::DType;
use chunkwise_abi::gpu::GpuRecurrence;
use chunkwise_compiler::artifact::{self, Parts};
use chunkwise_compiler::compile::Request;
use chunkwise_compiler::schedule::Schedule;
use chunkwise_compiler::target::nvptx::{self, Family};
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_runtime::cache::{Cache, Entry, Key, Lookup};
use chunkwise_runtime::cuda::assemble::{AssembleError, Assembler};
use chunkwise_runtime::cuda::device::CudaDevice;
use chunkwise_runtime::cuda::error::CudaError;
use chunkwise_runtime::cuda::execute::GpuArtifact;
use chunkwise_runtime::cuda::memory::Stream;

use crate::compiled::{build, narrow, widen};
use crate::failure::Failure;
use crate::options::Arch;

/// A GPU to compute on.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// Where its work is queued.
    pub stream: Stream,
    /// What code is made for.
    pub family: &'static Family,
    /// How work is laid out; none leaves it to the compiler.
    pub schedule: Option<Schedule>,
    /// NVIDIA's assembler, where it is installed.
    assembler: Option<Assembler>,
}

impl Gpu {
    /// Opens a GPU, counted from 0. Code is made for its own family unless another is asked for.
    pub fn open(ordinal: usize, arch: Option<Arch>, schedule: Option<Schedule>) -> Result<Gpu, Failure> {
        let device = CudaDevice::open(ordinal).map_err(failure)?;
        let (major, minor) = device.facts().capability;
        let family = match arch {
            Some(arch) => family(arch)?,
            None => nvptx::family_of(major as i32, minor as i32)
                .ok_or_else(|| Failure::Ours(format!("no family covers compute capability {major}.{minor}")))?,
        };
        if !device.runs(family.name) {
            return Err(failure(CudaError::WrongArch {
                arch: family.name.to_owned(),
                name: device.facts().name.clone(),
                capability: (major, minor),
            }));
        }
        let stream = Stream::new(&device).map_err(failure)?;
        Ok(Gpu { stream, family, schedule, assembler: assembler()? })
    }
}

/// NVIDIA's assembler, where it is installed; without, the driver assembles. One that is named and is not there is an
/// error.
pub fn assembler() -> Result<Option<Assembler>, Failure> {
    match Assembler::find() {
        Ok(assembler) => Ok(Some(assembler)),
        Err(AssembleError::Missing { .. }) if std::env::var_os("CHUNKWISE_PTXAS").is_none() => Ok(None),
        Err(error) => Err(Failure::Input(error.to_string())),
    }
}

/// The family of an architecture.
pub fn family(arch: Arch) -> Result<&'static Family, Failure> {
    nvptx::family(arch.name()).ok_or_else(|| Failure::Ours(format!("there is no family `{}`", arch.name())))
}

/// Code for a GPU, ready to run.
#[derive(Debug)]
pub struct OnGpu {
    /// What runs.
    pub artifact: GpuArtifact,
    /// Whether it was found in the cache.
    pub cached: bool,
    /// What the user should know of how it was made.
    pub warning: Option<String>,
    /// Seconds from the program to PTX; none where it was found.
    pub compile_time: Option<f64>,
    /// Seconds from PTX to code that can be launched.
    pub load_time: f64,
}

/// Finds or makes the code.
pub fn prepare(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    gpu: &Gpu,
    use_cache: bool,
) -> Result<OnGpu, Failure> {
    let (cache, mut warning) = if use_cache { Cache::of_user() } else { (Cache::off(), None) };
    let key = key(instance, request, parts, dtype, gpu.family, gpu.schedule);
    let load = |recurrence: &GpuRecurrence| {
        // SAFETY: compiled for these signatures, here or by the process that stored both under one checksum.
        unsafe { GpuArtifact::load(&gpu.stream, recurrence, gpu.assembler.as_ref(), &cache) }
    };
    let started = Instant::now();
    if let Lookup::Hit(entry) = cache.get(key)
        && let Ok(recurrence) = serde_json::from_slice::<GpuRecurrence>(&entry.object)
        // An entry with a true checksum that still does not load is no better than a damaged one: it is made anew.
        && let Ok(mut artifact) = load(&recurrence)
    {
        let warning = artifact.warning.take();
        let load_time = started.elapsed().as_secs_f64();
        return Ok(OnGpu { artifact, cached: true, warning, compile_time: None, load_time });
    }
    let started = Instant::now();
    let made = make(instance, request, parts, dtype, gpu.family, gpu.schedule)?;
    let compile_time = Some(started.elapsed().as_secs_f64());
    let started = Instant::now();
    let mut artifact = load(&made).map_err(failure)?;
    let load_time = started.elapsed().as_secs_f64();
    let object = serde_json::to_vec(&made)
        .map_err(|error| Failure::Ours(format!("the compiled code cannot be written down: {error}")))?;
    if let Err(problem) = cache.put(key, &Entry { signature: made.signature, object }) {
        warning = Some(problem);
    }
    let warning = artifact.warning.take().or(warning.map(|warning| warning.to_string()));
    Ok(OnGpu { artifact, cached: false, warning, compile_time, load_time })
}

/// Compiles: the one place where code for GPUs is made to be run.
pub fn make(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: Option<Schedule>,
) -> Result<GpuRecurrence, Failure> {
    let schedule = schedule.unwrap_or(artifact::USUAL_SCHEDULE);
    Ok(artifact::compile_gpu(instance, request, parts, dtype, family, &schedule)?)
}

/// Everything that decides what is compiled.
fn key(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: Option<Schedule>,
) -> Key {
    Key::of(format!("gpu {} {family:?} {schedule:?} {dtype:?} {parts:?} {request:?} {instance:?}", build()).as_bytes())
}

/// Runs on float64 tensors.
pub fn run(artifact: &GpuArtifact, tensors: &Bundle, backward: bool) -> Result<Bundle, Failure> {
    let given = narrow(&artifact.signature, tensors)?;
    let results = if backward { artifact.run_backward(&given, None) } else { artifact.run(&given, None) };
    Ok(widen(&results.map_err(failure)?))
}

/// Whose fault it is.
pub fn failure(error: CudaError) -> Failure {
    if error.is_a_limit() { Failure::Input(error.to_string()) } else { Failure::Ours(error.to_string()) }
}
