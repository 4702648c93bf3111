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
        let signature = recurrence.signature.clone();
        if signature.abi != ABI_VERSION {
            let why = format!("it follows version {} of the calling contract, this is {ABI_VERSION}", signature.abi);
            return Err(LaunchError::Signature { why }.into());
        }
        let modules = [&recurrence.forward, &recurrence.forward_saving, &recurrence.backward];
        // Assembling takes longest of all, and modules have nothing to do with each other.
        let loaded = std::thread::scope(|scope| {
            let load = |module| {
                // SAFETY: promised by the caller.
                unsafe { load(stream, module, &signature, assembler, cache) }
            };
            let threads = modules.map(|module| module.as_ref().map(|module| scope.spawn(move || load(module))));
            threads.map(|thread| thread.map(|thread| thread.join()))
        });
        let mut warning = None;
        let mut taken = |loaded: Option<std::thread::Result<Loaded>>| match loaded {
            None => Ok(None),
            Some(Ok(loaded)) => {
                let (module, complaint) = loaded?;
                warning = warning.take().or(complaint);
                Ok::<_, CudaError>(Some(Arc::new(module)))
            }
            // It is ours either way; who joins a thread that panicked goes on panicking.
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        };
        let [forward, forward_saving, backward] = loaded;
        let (forward, forward_saving, backward) = (taken(forward)?, taken(forward_saving)?, taken(backward)?);
        Ok(GpuArtifact { signature, warning, stream: stream.clone(), forward, forward_saving, backward })
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

/// A module, and what should be known of how it was loaded.
type Loaded = Result<(LoadedModule, Option<String>), CudaError>;

/// Loads a module: as machine code from the cache or from an assembler, else as PTX.
///
/// # Safety
/// As [`GpuArtifact::load`].
unsafe fn load(
    stream: &Stream,
    module: &GpuModule,
    signature: &Signature,
    assembler: Option<&Assembler>,
    cache: &Cache,
) -> Loaded {
    let device = stream.device();
    let (cubin, warning) = match assembled(device, module, signature, assembler, cache) {
        Ok(cubin) => (cubin, None),
        Err(why) => (None, Some(why)),
    };
    // SAFETY: promised by the caller.
    let loaded = unsafe { LoadedModule::load(device, module, cubin.as_deref()) }?;
    Ok((loaded, warning))
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
