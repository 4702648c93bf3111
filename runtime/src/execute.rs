//! Whole runs of an artifact: outputs from inputs, gradients from cotangents.
//!
//! Comes in: a loaded artifact and tensors by the names of the calling contract, of any float type. Goes out: new
//! tensors of the kernels' types. Absent first states and cotangents are zero. What a kernel leaves to its caller is
//! done here: gradients of one value a head are summed over sequences, gradients of inputs with fewer heads over the
//! heads that shared one, both in order, so that they are the same however many threads there are.

use crate::batch::{Batch, described, head_position};
use crate::cpu::{CpuKernel, LaunchArg, Options};
use crate::error::LaunchError;
use crate::tensor::{HostTensor, Tensors, count};
use chunkwise_abi::{ABI_VERSION, Access, ArgSignature, KernelFn, KernelSignature, Role, Signature};
use std::any::Any;
use std::borrow::Cow;
use std::sync::{Arc, Mutex};

/// A recurrence in one form, ready to run.
#[derive(Debug)]
pub struct CpuArtifact {
    /// What it computes.
    pub signature: Signature,
    /// Outputs from inputs.
    pub forward: Option<CpuKernel>,
    /// The same, keeping what the backward needs.
    pub forward_saving: Option<CpuKernel>,
    /// Gradients.
    pub backward: Option<CpuKernel>,
    /// Memory of tensors nobody needs any more: fresh memory costs more than many a kernel.
    spare: Mutex<Vec<HostTensor>>,
}

/// No more spare tensors than this are kept.
const MAX_SPARE: usize = 32;

/// What a forward run gives.
#[derive(Clone, Debug)]
pub struct ForwardRun {
    /// `out.*` and `final.*`.
    pub results: Tensors,
    /// `saved.*`, for the backward run; empty unless asked for.
    pub saved: Tensors,
}

impl CpuArtifact {
    /// Puts the kernels of a signature together with their functions.
    ///
    /// # Safety
    /// What `find` gives for a symbol keeps the contract of [`chunkwise_abi`] for the signature of that symbol, and
    /// stays callable as long as `keep_alive` is held.
    pub unsafe fn new(
        signature: Signature,
        keep_alive: &Arc<dyn Any + Send + Sync>,
        mut find: impl FnMut(&str) -> Option<KernelFn>,
    ) -> Result<CpuArtifact, LaunchError> {
        if signature.abi != ABI_VERSION {
            let why = format!("it follows version {} of the calling contract, this is {ABI_VERSION}", signature.abi);
            return Err(LaunchError::Signature { why });
        }
        let mut kernel = |signature: &Option<KernelSignature>| -> Result<Option<CpuKernel>, LaunchError> {
            let Some(signature) = signature else { return Ok(None) };
            let Some(function) = find(&signature.symbol) else {
                return Err(LaunchError::Signature { why: format!("there is no function `{}`", signature.symbol) });
            };
            // SAFETY: promised by the caller.
            Ok(Some(unsafe { CpuKernel::new(function, signature.clone(), Arc::clone(keep_alive)) }))
        };
        let (forward, forward_saving, backward) =
            (kernel(&signature.forward)?, kernel(&signature.forward_saving)?, kernel(&signature.backward)?);
        Ok(CpuArtifact { signature, forward, forward_saving, backward, spare: Mutex::new(Vec::new()) })
    }

    /// Outputs and final states. With `offsets` the sequences are packed.
    pub fn run(&self, inputs: &Tensors, offsets: Option<&[usize]>, options: &Options) -> Result<Tensors, LaunchError> {
        match (&self.forward, &self.forward_saving) {
            (Some(kernel), _) | (None, Some(kernel)) => {
                Ok(self.run_kernel(kernel, inputs, &Tensors::new(), offsets, options)?.results)
            }
            (None, None) => Err(self.no_kernel("forward")),
        }
    }

    /// Outputs, final states, and what [`CpuArtifact::gradients`] needs of this run.
    pub fn run_saving(
        &self,
        inputs: &Tensors,
        offsets: Option<&[usize]>,
        options: &Options,
    ) -> Result<ForwardRun, LaunchError> {
        let kernel = self.forward_saving.as_ref().ok_or_else(|| self.no_kernel("forward-saving"))?;
        self.run_kernel(kernel, inputs, &Tensors::new(), offsets, options)
    }

    /// `grad.*` and `grad_init.*`, from the inputs and cotangents in `inputs` and what the forward run saved.
    pub fn gradients(
        &self,
        inputs: &Tensors,
        saved: &Tensors,
        offsets: Option<&[usize]>,
        options: &Options,
    ) -> Result<Tensors, LaunchError> {
        let kernel = self.backward.as_ref().ok_or_else(|| self.no_kernel("backward"))?;
        let mut results = self.run_kernel(kernel, inputs, saved, offsets, options)?.results;
        sum_shared(&mut results, kernel.signature(), inputs)?;
        Ok(results)
    }

    /// Outputs, final states and every gradient.
    pub fn run_backward(
        &self,
        inputs: &Tensors,
        offsets: Option<&[usize]>,
        options: &Options,
    ) -> Result<Tensors, LaunchError> {
        let ForwardRun { mut results, saved } = self.run_saving(inputs, offsets, options)?;
        results.extend(self.gradients(inputs, &saved, offsets, options)?);
        self.recycle(saved);
        Ok(results)
    }

    /// Takes tensors that are no longer needed; later runs write to their memory.
    pub fn recycle(&self, tensors: Tensors) {
        if let Ok(mut spare) = self.spare.lock() {
            spare.extend(tensors.into_values());
            let too_many = spare.len().saturating_sub(MAX_SPARE);
            spare.drain(..too_many);
        }
    }

    /// Memory for what a kernel will write; its content means nothing.
    fn writable(&self, arg: &ArgSignature, batch: &Batch) -> Result<HostTensor, LaunchError> {
        let shape = batch.shape(arg, batch.heads)?;
        let fits =
            |tensor: &HostTensor| tensor.dtype() == arg.dtype.into() && count(&shape) == Some(tensor.n_elements());
        let found = self.spare.lock().ok().and_then(|mut spare| {
            let at = spare.iter().position(fits)?;
            Some(spare.swap_remove(at))
        });
        match found.and_then(|tensor| tensor.reshaped(&shape)) {
            Some(tensor) => Ok(tensor),
            None => Ok(HostTensor::zeros(arg.dtype.into(), &shape)?),
        }
    }

    fn no_kernel(&self, what: &'static str) -> LaunchError {
        LaunchError::NoKernel { recurrence: self.signature.name.clone(), what }
    }

    fn run_kernel(
        &self,
        kernel: &CpuKernel,
        inputs: &Tensors,
        saved: &Tensors,
        offsets: Option<&[usize]>,
        options: &Options,
    ) -> Result<ForwardRun, LaunchError> {
        let batch = Batch::of(kernel.signature(), inputs, offsets)?;
        if let Some(limit) = self.signature.max_length
            && batch.sequences.longest() > limit
        {
            let form = format!("the {} form of `{}`", self.signature.form, self.signature.name);
            return Err(LaunchError::TooLong { form, found: batch.sequences.longest(), limit });
        }
        let args = &kernel.signature().args;
        let mut read = Vec::new();
        let mut written = Vec::new();
        for arg in args {
            match arg.access {
                Access::Read => read.push(readable(arg, inputs, saved, &batch)?),
                Access::Write => written.push(self.writable(arg, &batch)?),
            }
        }
        {
            let (mut read, mut written) = (read.iter(), written.iter_mut());
            let mut launch: Vec<LaunchArg<'_>> = args
                .iter()
                .map(|arg| match arg.access {
                    Access::Read => LaunchArg::Read(read.next().expect("one was made for each read argument")),
                    Access::Write => LaunchArg::Write(written.next().expect("one was made for each written argument")),
                })
                .collect();
            kernel.launch_args(&mut launch, &batch, options)?;
        }
        let mut run = ForwardRun { results: Tensors::new(), saved: Tensors::new() };
        let written_args = args.iter().filter(|arg| arg.access == Access::Write);
        for (arg, tensor) in written_args.zip(written) {
            let kept = if arg.name.starts_with("saved.") { &mut run.saved } else { &mut run.results };
            kept.insert(arg.name.clone(), tensor);
        }
        Ok(run)
    }
}

/// Does what a backward kernel leaves to its caller: gradients of one value a head are summed over sequences, those of
/// inputs with fewer heads over the heads that shared one, in order.
pub fn sum_shared(results: &mut Tensors, kernel: &KernelSignature, inputs: &Tensors) -> Result<(), LaunchError> {
    for (name, gradient) in results {
        let Some(source) = source_of(name) else { continue };
        let Some(written) = kernel.args.iter().find(|arg| arg.name == *name) else { continue };
        // Told by what is written: a tensor on which nothing depends is no argument, but its gradient is, all zeros.
        let over_sequences = written.role == Role::Sequence && name.starts_with("grad.");
        let position = head_position(if over_sequences { Role::Head } else { written.role });
        let heads = inputs.get(&source).and_then(|input| input.shape().get(position).copied());
        if over_sequences {
            *gradient = sum_over_sequences(gradient)?;
        }
        if let Some(heads) = heads
            && heads != 0
            && gradient.shape()[position] != heads
        {
            *gradient = sum_over_groups(gradient, position, heads)?;
        }
    }
    Ok(())
}

/// The tensor a kernel reads for an argument: as given, in another type, or zeros.
pub fn readable<'a>(
    arg: &ArgSignature,
    inputs: &'a Tensors,
    saved: &'a Tensors,
    batch: &Batch,
) -> Result<Cow<'a, HostTensor>, LaunchError> {
    let given = if arg.name.starts_with("saved.") { saved.get(&arg.name) } else { inputs.get(&arg.name) };
    match given {
        Some(tensor) if tensor.dtype() == arg.dtype.into() => Ok(Cow::Borrowed(tensor)),
        Some(tensor) => Ok(Cow::Owned(tensor.to_type(arg.dtype.into())?)),
        None if ["init.", "grad_out.", "grad_final."].iter().any(|prefix| arg.name.starts_with(prefix)) => {
            let shape = batch.shape(arg, batch.heads)?;
            Ok(Cow::Owned(HostTensor::zeros(arg.dtype.into(), &shape)?))
        }
        None => Err(LaunchError::Missing { name: arg.name.clone(), expected: described(arg) }),
    }
}

/// The tensor a gradient belongs to: `q` for `grad.q`, `init.S` for `grad_init.S`.
fn source_of(gradient: &str) -> Option<String> {
    match gradient.strip_prefix("grad.") {
        Some(name) => Some(name.to_string()),
        None => gradient.strip_prefix("grad_init.").map(|name| format!("init.{name}")),
    }
}

/// `[B, …]` → `[…]`, from the first sequence to the last.
fn sum_over_sequences(tensor: &HostTensor) -> Result<HostTensor, LaunchError> {
    let shape = &tensor.shape()[1..];
    // With no sequences there are no elements to count by, and the sum of none is zero.
    let empty = HostTensor::zeros(tensor.dtype(), shape)?;
    let n = empty.n_elements();
    let mut sums = vec![0.0f64; n];
    if n > 0 {
        for sequence in tensor.to_f64().chunks_exact(n) {
            sums.iter_mut().zip(sequence).for_each(|(sum, x)| *sum += x);
        }
    }
    Ok(HostTensor::from_f64(tensor.dtype(), shape, &sums)?)
}

/// Dimension `position`, of all heads, down to `heads`: neighbours that shared one are summed, the first first.
fn sum_over_groups(tensor: &HostTensor, position: usize, heads: usize) -> Result<HostTensor, LaunchError> {
    let group = tensor.shape()[position] / heads;
    let inner: usize = tensor.shape()[position + 1..].iter().product();
    let mut shape = tensor.shape().to_vec();
    shape[position] = heads;
    let n = HostTensor::zeros(tensor.dtype(), &shape)?.n_elements();
    let mut sums = vec![0.0f64; n];
    if n > 0 {
        for (sum, shared) in sums.chunks_exact_mut(inner).zip(tensor.to_f64().chunks_exact(group * inner)) {
            for head in shared.chunks_exact(inner) {
                sum.iter_mut().zip(head).for_each(|(sum, x)| *sum += x);
            }
        }
    }
    Ok(HostTensor::from_f64(tensor.dtype(), &shape, &sums)?)
}
