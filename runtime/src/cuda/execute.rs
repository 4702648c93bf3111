//! Whole runs of an artifact on a GPU: outputs from inputs, gradients from cotangents.
//!
//! Comes in: a recurrence compiled for GPUs, and tensors by the names of the calling contract, of any float type. Goes
//! out: new tensors of the kernels' types. It is called as [`crate::execute::CpuArtifact`] is, and gives the same
//! names; absent first states and cotangents are zero here too, and what kernels leave to their caller is done by the
//! same code.

use super::assemble::Assembler;
use super::device::CudaDevice;
use super::error::CudaError;
use super::memory::Stream;
use super::module::{LoadedModule, assembled_by_driver};
use super::resident::Resident;
use crate::batch::Batch;
use crate::cache::{Cache, Entry, Key, Lookup};
use crate::error::LaunchError;
use crate::execute::{readable, sum_shared};
use crate::tensor::{HostTensor, Tensors};
use chunkwise_abi::gpu::{GpuModule, GpuRecurrence};
use chunkwise_abi::{ABI_VERSION, Access, KernelSignature, Signature};
use std::sync::Arc;
use std::time::Instant;

/// Which module of a recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Outputs and last states.
    Forward,
    /// The same, keeping what the backward needs.
    ForwardSaving,
    /// Gradients.
    Backward,
}

impl Direction {
    /// `forward`, `forward_saving`, `backward`.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::ForwardSaving => "forward_saving",
            Direction::Backward => "backward",
        }
    }
}

/// A recurrence in one form on one GPU, ready to run.
#[derive(Debug)]
pub struct GpuArtifact {
    /// What it computes.
    pub signature: Signature,
    /// What whoever runs it should know of how it was loaded.
    pub warning: Option<String>,
    /// How long each direction took from PTX to code that can be launched.
    pub loading: Vec<(Direction, Loading)>,
    stream: Stream,
    forward: Option<Arc<LoadedModule>>,
    forward_saving: Option<Arc<LoadedModule>>,
    backward: Option<Arc<LoadedModule>>,
}

impl GpuArtifact {
    /// Loads the modules of a recurrence; their work goes to `stream`. Machine code is found in the cache, or made by an
    /// assembler; without one, or where that refuses, the driver makes it, and the cache keeps it too.
    ///
    /// # Safety
    /// The code keeps the contract of [`chunkwise_abi::gpu`] for the signatures beside it.
    pub unsafe fn load(
        stream: &Stream,
        recurrence: &GpuRecurrence,
        assembler: Option<&Assembler>,
        cache: &Cache,
    ) -> Result<GpuArtifact, CudaError> {
        let signature = &recurrence.signature;
        follows_the_contract(signature)?;
        let modules = [&recurrence.forward, &recurrence.forward_saving, &recurrence.backward];
        // Assembling takes longest of all, and modules have nothing to do with each other.
        let loaded = std::thread::scope(|scope| {
            let load = |module| {
                // SAFETY: promised by the caller.
                unsafe { load_module(stream, module, signature, assembler, cache) }
            };
            let threads = modules.map(|module| module.as_ref().map(|module| scope.spawn(move || load(module))));
            threads.map(|thread| thread.map(|thread| thread.join()))
        });
        let modules = loaded.map(|loaded| {
            // It is ours either way; who joins a thread that panicked goes on panicking.
            loaded.map(|loaded| loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).transpose()
        });
        let [forward, forward_saving, backward] = modules;
        GpuArtifact::of(stream, signature, [forward?, forward_saving?, backward?])
    }

    /// Puts modules together that were loaded one by one: forward, forward that saves, backward.
    pub fn of(
        stream: &Stream,
        signature: &Signature,
        modules: [Option<ModuleOnGpu>; 3],
    ) -> Result<GpuArtifact, CudaError> {
        follows_the_contract(signature)?;
        let mut warning = None;
        let mut loading = Vec::new();
        let directions = [Direction::Forward, Direction::ForwardSaving, Direction::Backward];
        let mut taken = directions.into_iter().zip(modules).map(|(direction, module)| {
            let module = module?;
            warning = warning.take().or(module.warning);
            loading.push((direction, module.loading));
            Some(Arc::new(module.loaded))
        });
        let (forward, forward_saving, backward) =
            (taken.next().flatten(), taken.next().flatten(), taken.next().flatten());
        drop(taken);
        let (signature, stream) = (signature.clone(), stream.clone());
        Ok(GpuArtifact { signature, warning, loading, stream, forward, forward_saving, backward })
    }

    /// Where its work is queued.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The module of a direction.
    pub fn module(&self, direction: Direction) -> Result<&Arc<LoadedModule>, CudaError> {
        let module = match direction {
            Direction::Forward => &self.forward,
            Direction::ForwardSaving => &self.forward_saving,
            Direction::Backward => &self.backward,
        };
        let what = match direction {
            Direction::Forward => "forward",
            Direction::ForwardSaving => "forward-saving",
            Direction::Backward => "backward",
        };
        let recurrence = &self.signature.name;
        Ok(module.as_ref().ok_or_else(|| LaunchError::NoKernel { recurrence: recurrence.clone(), what })?)
    }

    /// Outputs and final states. With `offsets` the sequences are packed.
    pub fn run(&self, inputs: &Tensors, offsets: Option<&[usize]>) -> Result<Tensors, CudaError> {
        let direction = if self.forward.is_some() { Direction::Forward } else { Direction::ForwardSaving };
        let mut resident = self.resident(&[direction], inputs, offsets)?;
        resident.poison()?;
        resident.launch(direction)?;
        resident.results(direction)
    }

    /// Outputs, final states and every gradient.
    pub fn run_backward(&self, inputs: &Tensors, offsets: Option<&[usize]>) -> Result<Tensors, CudaError> {
        let directions = [Direction::ForwardSaving, Direction::Backward];
        let mut resident = self.resident(&directions, inputs, offsets)?;
        resident.poison()?;
        for direction in directions {
            resident.launch(direction)?;
        }
        let mut results = resident.results(Direction::ForwardSaving)?;
        let mut gradients = resident.results(Direction::Backward)?;
        sum_shared(&mut gradients, self.module(Direction::Backward)?.signature(), inputs)?;
        results.extend(gradients);
        Ok(results)
    }

    /// A call with these tensors, on the GPU, for some directions.
    pub fn resident(
        &self,
        directions: &[Direction],
        inputs: &Tensors,
        offsets: Option<&[usize]>,
    ) -> Result<Resident, CudaError> {
        let together = self.together(directions)?;
        let batch = Batch::of(&together, inputs, offsets)?;
        self.refuse_too_long(&batch)?;
        let shapes = |arg: &chunkwise_abi::ArgSignature| inputs.get(&arg.name).map(|it| it.shape().to_vec());
        let resident = Resident::new(self, directions, batch, &shapes)?;
        let saved = Tensors::new();
        for arg in together.args.iter().filter(|arg| arg.access == Access::Read && !arg.name.starts_with("saved.")) {
            let elements = readable(arg, inputs, &saved, resident.batch())?;
            resident.fill(&arg.name, &elements)?;
        }
        Ok(resident)
    }

    /// A call of these sizes, for some directions, whose tensors repeat the given ones as often as needed: data for a
    /// measurement. Tensors that are not given are zero.
    pub fn resident_of(&self, directions: &[Direction], batch: Batch, period: &Tensors) -> Result<Resident, CudaError> {
        self.refuse_too_long(&batch)?;
        let resident = Resident::new(self, directions, batch, &|_| None)?;
        for arg in self.together(directions)?.args.iter().filter(|arg| arg.access == Access::Read) {
            let elements = match period.get(&arg.name) {
                Some(elements) => elements.to_type(arg.dtype.into())?,
                None => HostTensor::zeros(arg.dtype.into(), &[1])?,
            };
            resident.fill(&arg.name, &elements)?;
        }
        Ok(resident)
    }

    /// The arguments of several directions, each once.
    fn together(&self, directions: &[Direction]) -> Result<KernelSignature, CudaError> {
        let mut args: Vec<chunkwise_abi::ArgSignature> = Vec::new();
        for direction in directions {
            for arg in &self.module(*direction)?.signature().args {
                if !args.iter().any(|known| known.name == arg.name) {
                    args.push(arg.clone());
                }
            }
        }
        Ok(KernelSignature { symbol: self.signature.name.clone(), args, scratch_bytes: 0 })
    }

    fn refuse_too_long(&self, batch: &Batch) -> Result<(), CudaError> {
        match self.signature.max_length {
            Some(limit) if batch.sequences.longest() > limit => {
                let form = format!("the {} form of `{}`", self.signature.form, self.signature.name);
                Err(LaunchError::TooLong { form, found: batch.sequences.longest(), limit }.into())
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn follows_the_contract(signature: &Signature) -> Result<(), LaunchError> {
    match signature.abi {
        ABI_VERSION => Ok(()),
        abi => {
            let why = format!("it follows version {abi} of the calling contract, this is {ABI_VERSION}");
            Err(LaunchError::Signature { why })
        }
    }
}

/// Seconds from PTX to code that can be launched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loading {
    /// Until there was machine code: found, or made by an assembler.
    pub assemble: f64,
    /// Until the driver had taken it.
    pub load: f64,
}

/// A module that can be launched, and how it got there.
#[derive(Debug)]
pub struct ModuleOnGpu {
    loaded: LoadedModule,
    warning: Option<String>,
    loading: Loading,
}

/// Loads one module of a recurrence: as machine code from the cache or from an assembler, else as PTX.
///
/// # Safety
/// As [`GpuArtifact::load`].
pub unsafe fn load_module(
    stream: &Stream,
    module: &GpuModule,
    signature: &Signature,
    assembler: Option<&Assembler>,
    cache: &Cache,
) -> Result<ModuleOnGpu, CudaError> {
    let device = stream.device();
    let started = Instant::now();
    let (cubin, warning) = match assembled(device, module, signature, assembler, cache) {
        Ok(cubin) => (cubin, None),
        Err(why) => (None, Some(why)),
    };
    let assemble = started.elapsed().as_secs_f64();
    // SAFETY: promised by the caller.
    let loaded = unsafe { LoadedModule::load(device, module, cubin.as_deref()) }?;
    let load = started.elapsed().as_secs_f64() - assemble;
    Ok(ModuleOnGpu { loaded, warning, loading: Loading { assemble, load } })
}

/// Machine code of a module for a GPU, from the cache or made. None leaves it to the driver when it loads the module:
/// where there is no assembler, and nowhere to keep what the driver's own would make.
fn assembled(
    device: &CudaDevice,
    module: &GpuModule,
    signature: &Signature,
    assembler: Option<&Assembler>,
    cache: &Cache,
) -> Result<Option<Vec<u8>>, String> {
    let arch = device.assembled_for(&module.arch);
    let by = match (assembler, cache.directory()) {
        (Some(assembler), _) => assembler.version().to_string(),
        (None, Some(_)) => format!("driver {:?}", device.facts().driver),
        (None, None) => return Ok(None),
    };
    let key = Key::of(format!("cubin {arch} {by}\n{}", module.ptx).as_bytes());
    if let Lookup::Hit(entry) = cache.get(key) {
        return Ok(Some(entry.object));
    }
    let made = match assembler {
        Some(assembler) => Some(assembler.assemble(&module.ptx, &arch).map_err(|error| error.to_string())?.cubin),
        None => assembled_by_driver(device, &module.ptx),
    };
    if let Some(object) = &made {
        // A cache that does not keep is told of where the code itself is kept; here it only costs time.
        let _ = cache.put(key, &Entry { signature: signature.clone(), object: object.clone() });
    }
    Ok(made)
}
