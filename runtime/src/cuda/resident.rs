//! A call whose tensors stay on the GPU: filled once, launched as often as wanted.
//!
//! Comes in: an artifact, the sizes of a call, tensors of this machine to fill it with. Goes out: kernels queued on the
//! artifact's stream, and, when asked for, results. What one direction writes and another reads (saved states) is one
//! tensor, so it never leaves the GPU.

use super::error::CudaError;
use super::execute::{Direction, GpuArtifact};
use super::memory::{Buffer, GpuTensor, Stream};
use super::module::{LoadedModule, Ready};
use crate::batch::Batch;
use crate::error::LaunchError;
use crate::tensor::{HostTensor, Tensors};
use chunkwise_abi::{Access, ArgSignature, TensorArg};
use indexmap::IndexMap;
use std::sync::Arc;

/// The tensors of a call, on the GPU.
pub struct Resident {
    stream: Stream,
    batch: Batch,
    tensors: IndexMap<String, GpuTensor>,
    calls: Vec<(Direction, Call)>,
    /// Read by kernels through its address.
    _offsets: Buffer,
}

/// A direction with its tensors bound.
struct Call {
    ready: Ready,
    temporaries: Vec<GpuTensor>,
    written: Vec<String>,
}

impl Resident {
    /// Takes memory for everything that the directions read and write. A tensor in `shapes` has that shape there, for
    /// inputs with fewer heads than the call; every other has that of the call.
    pub(super) fn new(
        artifact: &GpuArtifact,
        directions: &[Direction],
        batch: Batch,
        shapes: &dyn Fn(&ArgSignature) -> Option<Vec<usize>>,
    ) -> Result<Resident, CudaError> {
        let stream = artifact.stream().clone();
        let offsets = upload_offsets(&stream, &batch)?;
        let mut tensors: IndexMap<String, GpuTensor> = IndexMap::new();
        let mut calls = Vec::new();
        for direction in directions {
            let module = artifact.module(*direction)?;
            let args = &module.signature().args;
            for arg in args {
                if !tensors.contains_key(&arg.name) {
                    let shape = match shapes(arg).filter(|_| arg.access == Access::Read) {
                        Some(shape) => shape,
                        None => batch.shape(arg, batch.heads)?,
                    };
                    let tensor = GpuTensor::new(&stream, arg.dtype.into(), &shape, &arg.name)?;
                    tensors.insert(arg.name.clone(), tensor);
                }
            }
            calls.push((*direction, bind(module, &stream, &tensors, &batch, offsets.address())?));
        }
        Ok(Resident { stream, batch, tensors, calls, _offsets: offsets })
    }

    /// The sizes of the call.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Its stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Fills a tensor of the call, from the first of the elements again whenever they are used up. They must be of the
    /// kernels' type; a name that is not in the call is passed over.
    pub fn fill(&self, name: &str, elements: &HostTensor) -> Result<(), CudaError> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(()) };
        if elements.dtype() != tensor.dtype() {
            let (found, expected) = (elements.dtype(), tensor.dtype());
            return Err(LaunchError::Type { name: name.to_string(), found, expected }.into());
        }
        tensor.fill(elements)
    }

    /// Writes NaN over everything that is to be written, and over all scratch.
    pub fn poison(&self) -> Result<(), CudaError> {
        for (_, call) in &self.calls {
            for name in &call.written {
                self.tensors[name].poison()?;
            }
            for temporary in &call.temporaries {
                temporary.poison()?;
            }
            call.ready.poison()?;
        }
        Ok(())
    }

    /// Queues the kernels of a direction, and waits for nothing.
    pub fn launch(&mut self, direction: Direction) -> Result<(), CudaError> {
        let Some((_, call)) = self.calls.iter_mut().find(|(own, _)| *own == direction) else {
            let why = format!("the call was not made ready for {}", direction.name());
            return Err(LaunchError::Signature { why }.into());
        };
        // SAFETY: the tensors are ours and were checked; their memory stays with the stream, and so in order.
        unsafe { call.ready.launch() }
    }

    /// What a direction wrote, when everything queued is done; `saved.*` left out.
    pub fn results(&self, direction: Direction) -> Result<Tensors, CudaError> {
        // Told here, a fault is told with what ran; a copy would only tell that it cannot be made.
        self.stream.synchronize()?;
        let mut results = Tensors::new();
        for (_, call) in self.calls.iter().filter(|(own, _)| *own == direction) {
            for name in call.written.iter().filter(|name| !name.starts_with("saved.")) {
                results.insert(name.clone(), self.tensors[name].download()?);
            }
        }
        Ok(results)
    }

    /// One tensor, when everything queued is done.
    pub fn tensor(&self, name: &str) -> Option<Result<HostTensor, CudaError>> {
        self.tensors.get(name).map(GpuTensor::download)
    }

    /// Bytes on the GPU beyond what a caller hands in and gets back: saved states, temporaries, workspaces.
    pub fn extra_bytes(&self) -> u64 {
        let saved = self.tensors.iter().filter(|(name, _)| name.starts_with("saved."));
        let saved: u64 = saved.map(|(_, tensor)| tensor.buffer().bytes()).sum();
        let of_call = |call: &Call| {
            let temporaries: u64 = call.temporaries.iter().map(|tensor| tensor.buffer().bytes()).sum();
            temporaries + call.ready.workspace_bytes()
        };
        // All directions keep theirs as long as the call is resident.
        saved + self.calls.iter().map(|(_, call)| of_call(call)).sum::<u64>()
    }
}

fn upload_offsets(stream: &Stream, batch: &Batch) -> Result<Buffer, CudaError> {
    let bytes: Vec<u8> = batch.sequences.offsets().unwrap_or(&[]).iter().flat_map(|it| it.to_le_bytes()).collect();
    let buffer = stream.buffer(bytes.len() as u64, "the offsets of the sequences")?;
    buffer.write(0, &bytes)?;
    Ok(buffer)
}

/// Checks the tensors of a direction and puts its call together.
fn bind(
    module: &Arc<LoadedModule>,
    stream: &Stream,
    tensors: &IndexMap<String, GpuTensor>,
    batch: &Batch,
    offsets: u64,
) -> Result<Call, CudaError> {
    let mut args = Vec::new();
    let mut written = Vec::new();
    let mut temporaries = Vec::new();
    for arg in &module.signature().args {
        let tensor = &tensors[&arg.name];
        args.push(argument(arg, tensor, batch)?);
        if arg.access == Access::Write {
            if written.contains(&arg.name) {
                return Err(LaunchError::Signature { why: format!("`{}` occurs twice", arg.name) }.into());
            }
            written.push(arg.name.clone());
        }
    }
    for temporary in &module.module().temporaries {
        let shape = batch.shape(temporary, batch.heads)?;
        let tensor = GpuTensor::new(stream, temporary.dtype.into(), &shape, &temporary.name)?;
        // Heads of their own are for inputs alone; a temporary has a place for every head.
        let arg = ArgSignature { access: Access::Write, ..temporary.clone() };
        args.push(argument(&arg, &tensor, batch)?);
        temporaries.push(tensor);
    }
    let ready = module.ready(stream, &args, batch, offsets)?;
    Ok(Call { ready, temporaries, written })
}

/// A tensor as a kernel gets it.
fn argument(arg: &ArgSignature, tensor: &GpuTensor, batch: &Batch) -> Result<TensorArg, CudaError> {
    let heads = batch.check_shape(arg, tensor.dtype(), tensor.shape())?;
    let address = usize::try_from(tensor.buffer().address()).expect("addresses of a GPU are as wide as ours");
    let data = std::ptr::without_provenance_mut(address);
    Ok(crate::cpu::strides(arg.role, tensor.shape(), heads, data)?)
}
