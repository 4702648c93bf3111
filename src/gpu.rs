//! Compiled code for an NVIDIA GPU: from the cache, or made and kept there. In: an instance and what is asked for; out:
//! an artifact that runs. Tensors go in and come out in float64, converted here. It never takes the processor for a GPU
//! that is not there.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use chunkwise_abi::gpu::{GpuModule, GpuRecurrence};
use chunkwise_abi::{DType, Signature};
use chunkwise_compiler::artifact::{self, Parts};
use chunkwise_compiler::compile::Request;
use chunkwise_compiler::derive::form::Form;
use chunkwise_compiler::schedule::Schedule;
use chunkwise_compiler::schedule::cost::{self, Load};
use chunkwise_compiler::target::nvptx::{self, Family};
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_runtime::cache::{Cache, Entry, Key, Lookup};
use chunkwise_runtime::cuda::assemble::{AssembleError, Assembler};
use chunkwise_runtime::cuda::device::CudaDevice;
use chunkwise_runtime::cuda::error::CudaError;
use chunkwise_runtime::cuda::execute::{Direction, GpuArtifact, ModuleOnGpu, load_module};
use chunkwise_runtime::cuda::memory::Stream;
use chunkwise_runtime::tensor::Tensors;

use crate::compiled::{build, narrow, widen};
use crate::engine::Amount;
use crate::failure::Failure;
use crate::options::Arch;
use crate::tuning::{Bucket, Tuned};

/// Something that runs code for a GPU where there is none.
pub trait StandIn: std::fmt::Debug + Send + Sync {
    /// What code is made for.
    fn family(&self) -> &'static Family;

    /// How work is laid out.
    fn schedule(&self) -> Schedule;

    /// Outputs and final states from inputs, or these and every gradient; or why there are none.
    fn run(&self, made: &GpuRecurrence, given: &Tensors, backward: bool) -> Result<Tensors, String>;
}

/// A GPU to compute on.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// Where its work is queued.
    pub stream: Stream,
    /// What code is made for.
    pub family: &'static Family,
    /// How work is laid out; none leaves it to what was tuned, and then to the compiler.
    pub schedule: Option<Schedule>,
    /// Whether neither the number of sequences nor their lengths may decide how work is laid out, which changes rounding.
    pub batch_invariant: bool,
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
        Ok(Gpu { stream, family, schedule, batch_invariant: false, assembler: assembler()? })
    }

    fn load(&self, amount: Amount) -> Load {
        Load::of(amount.batch, amount.heads, amount.length, self.batch_invariant)
    }

    /// What of an amount decides how work is laid out.
    pub fn layout(&self, amount: Amount) -> String {
        self.schedule.map_or_else(|| format!("{:?}", self.load(amount)), |schedule| schedule.to_string())
    }

    /// How work of an amount is laid out: as asked for, else as was fastest when it was tuned, else as the compiler
    /// estimates.
    fn schedule_of(
        &self,
        instance: &Instance,
        request: &Request,
        parts: Parts,
        dtype: DType,
        amount: Amount,
    ) -> Result<Schedule, Failure> {
        if let Some(schedule) = self.schedule {
            return Ok(schedule);
        }
        let (load, facts) = (self.load(amount), self.stream.device().facts());
        let multiprocessors = facts.multiprocessors as usize;
        if request.form == Form::Chunkwise {
            let tuned = Tuned { instance, dtype, device: &facts.name, bucket: Bucket::of(&load, multiprocessors) };
            if let Some(schedule) = tuned.find(parts)? {
                return Ok(schedule);
            }
        }
        let gpu = cost::Gpu::of(facts.capability, multiprocessors);
        Ok(artifact::choose_schedule(instance, request, parts, dtype, &gpu, &load)?)
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
    /// How it is laid out.
    pub schedule: Schedule,
    /// Whether it was found in the cache.
    pub cached: bool,
    /// What the user should know of how it was made.
    pub warning: Option<String>,
    /// Seconds from the program to the last PTX; none where it was found.
    pub compile_time: Option<f64>,
    /// Seconds from then on until everything can be launched. What was compiled first is assembled before.
    pub load_time: f64,
    /// What each direction took by itself.
    pub phases: Vec<Phase>,
}

/// Seconds of one direction. Directions are made side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// Which.
    pub direction: Direction,
    /// From the program to PTX; 0 where it was found.
    pub compile: f64,
    /// From there to machine code; 0 where the driver does that when it loads.
    pub assemble: f64,
    /// From there to what can be launched.
    pub load: f64,
}

/// A direction, seconds until it was compiled, and what loading it gave.
type Made = (Direction, f64, Result<ModuleOnGpu, CudaError>);

/// Finds or makes the code.
pub fn prepare(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    gpu: &Gpu,
    use_cache: bool,
    amount: Amount,
) -> Result<OnGpu, Failure> {
    let (cache, mut warning) = if use_cache { Cache::of_user() } else { (Cache::off(), None) };
    let schedule = gpu.schedule_of(instance, request, parts, dtype, amount)?;
    let key = key(instance, request, parts, dtype, gpu.family, &schedule);
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
        let phases = phases(&artifact, &[]);
        return Ok(OnGpu { artifact, schedule, cached: true, warning, compile_time: None, load_time, phases });
    }
    let started = Instant::now();
    // Each direction goes on to the GPU as soon as it is compiled; the slowest to compile is mostly the slowest to
    // assemble too, so that little is left to do when it is through.
    let compiled: Mutex<Vec<Made>> = Mutex::default();
    let ready = |direction: artifact::Direction, signature: &Signature, module: &GpuModule| {
        let seconds = started.elapsed().as_secs_f64();
        // SAFETY: compiled for this signature here.
        let loaded = unsafe { load_module(&gpu.stream, module, signature, gpu.assembler.as_ref(), &cache) };
        let mut compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.push((on_gpu(direction), seconds, loaded));
    };
    let made = artifact::compile_gpu_and(instance, request, parts, dtype, gpu.family, &schedule, &ready)?;
    let mut modules = [None, None, None];
    let mut times = Vec::new();
    for (direction, seconds, loaded) in compiled.into_inner().unwrap_or_else(PoisonError::into_inner) {
        modules[direction as usize] = Some(loaded.map_err(failure)?);
        times.push((direction, seconds));
    }
    let mut artifact = GpuArtifact::of(&gpu.stream, &made.signature, modules).map_err(failure)?;
    let compile_time = times.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    let load_time = started.elapsed().as_secs_f64() - compile_time;
    let phases = phases(&artifact, &times);
    let object = serde_json::to_vec(&made)
        .map_err(|error| Failure::Ours(format!("the compiled code cannot be written down: {error}")))?;
    if let Err(problem) = cache.put(key, &Entry { signature: made.signature, object }) {
        warning = Some(problem);
    }
    let warning = artifact.warning.take().or(warning.map(|warning| warning.to_string()));
    Ok(OnGpu { artifact, schedule, cached: false, warning, compile_time: Some(compile_time), load_time, phases })
}

/// The runtime's word for a direction.
fn on_gpu(direction: artifact::Direction) -> Direction {
    match direction {
        artifact::Direction::Forward => Direction::Forward,
        artifact::Direction::ForwardSaving => Direction::ForwardSaving,
        artifact::Direction::Backward => Direction::Backward,
    }
}

fn phases(artifact: &GpuArtifact, compiled: &[(Direction, f64)]) -> Vec<Phase> {
    let each = artifact.loading.iter().map(|(direction, loading)| Phase {
        direction: *direction,
        compile: compiled.iter().find(|(own, _)| own == direction).map_or(0.0, |(_, seconds)| *seconds),
        assemble: loading.assemble,
        load: loading.load,
    });
    each.collect()
}

/// Compiles for a library.
pub fn make(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: Option<Schedule>,
) -> Result<GpuRecurrence, Failure> {
    // Nothing is known of the calls to come: it is laid out for a GPU that heads fill.
    let like = cost::Gpu::of(family.capability, cost::Gpu::H200.multiprocessors);
    let usual = || artifact::choose_schedule(instance, request, parts, dtype, &like, &Load::MANY);
    let schedule = schedule.map_or_else(usual, Ok)?;
    Ok(artifact::compile_gpu(instance, request, parts, dtype, family, &schedule)?)
}

/// Everything that decides what is compiled.
fn key(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: &Schedule,
) -> Key {
    Key::of(format!("gpu {} {family:?} {schedule:?} {dtype:?} {parts:?} {request:?} {instance:?}", build()).as_bytes())
}

/// One call is on a GPU at a time: where a kernel breaks the GPU off, its own call is the one that is told.
static TURN: Mutex<()> = Mutex::new(());

/// Runs on float64 tensors.
pub fn run(artifact: &GpuArtifact, tensors: &Bundle, backward: bool) -> Result<Bundle, Failure> {
    let given = narrow(&artifact.signature, tensors)?;
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let results = if backward { artifact.run_backward(&given, None) } else { artifact.run(&given, None) };
    drop(turn);
    Ok(widen(&results.map_err(failure)?))
}

/// Whose fault it is.
pub fn failure(error: CudaError) -> Failure {
    if error.is_a_limit() { Failure::Input(error.to_string()) } else { Failure::Ours(error.to_string()) }
}
