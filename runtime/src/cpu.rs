//! Runs kernels on this machine's processor.
//!
//! Comes in: a kernel, its tensors, the sizes of the call. Goes out: written tensors. Everything a kernel relies on is
//! checked before it is called, so that no tensor, however wrong, makes it touch memory it does not own. Which thread
//! works on which items changes nothing in the results.

use crate::batch::{Batch, head_position};
use crate::error::LaunchError;
use crate::tensor::{Aligned, HostTensor, Tensors};
use chunkwise_abi::{Access, Call, KernelFn, KernelSignature, Role, TensorArg};
use std::any::Any;
use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

/// A kernel that can be called.
pub struct CpuKernel {
    function: KernelFn,
    signature: KernelSignature,
    /// What holds the code in memory.
    keep_alive: Arc<dyn Any + Send + Sync>,
    /// Scratch of earlier launches, used again.
    scratch: Mutex<Vec<Aligned<f32>>>,
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Worker threads, at least one; the calling thread is one of them.
    pub threads: usize,
    /// Fill scratch and what will be written with NaN first, so that a kernel which reads or leaves out what it
    /// should not is seen. Costs time.
    pub poison: bool,
}

impl Options {
    /// For work: `threads` workers, no poison but in a debug build.
    pub fn threads(threads: usize) -> Options {
        Options { threads: threads.max(1), poison: cfg!(debug_assertions) }
    }
    /// One worker for each processor.
    pub fn all_processors() -> Options {
        Options::threads(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// One argument of a launch.
pub enum LaunchArg<'a> {
    /// For [`Access::Read`].
    Read(&'a HostTensor),
    /// For [`Access::Write`].
    Write(&'a mut HostTensor),
}

impl std::fmt::Debug for CpuKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuKernel").field("signature", &self.signature).finish_non_exhaustive()
    }
}

impl CpuKernel {
    /// A kernel from its function.
    ///
    /// # Safety
    /// `function` keeps the contract of [`chunkwise_abi`] for `signature`, and stays callable as long as `keep_alive`
    /// is held.
    pub unsafe fn new(
        function: KernelFn,
        signature: KernelSignature,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> CpuKernel {
        CpuKernel { function, signature, keep_alive, scratch: Mutex::new(Vec::new()) }
    }

    /// What it takes.
    pub fn signature(&self) -> &KernelSignature {
        &self.signature
    }

    /// The C function, for callers that keep to the contract themselves. It must not outlive `self`.
    pub fn function(&self) -> KernelFn {
        self.function
    }

    /// What holds the code in memory.
    pub fn keep_alive(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::clone(&self.keep_alive)
    }

    /// Runs on tensors of a map, by name; all of them must be there, also those to be written.
    pub fn launch(&self, tensors: &mut Tensors, batch: &Batch, options: &Options) -> Result<(), LaunchError> {
        let mut written = Vec::new();
        for arg in self.signature.args.iter().filter(|arg| arg.access == Access::Write) {
            let Some(tensor) = tensors.get_mut(&arg.name) else {
                self.give_back(tensors, written);
                return Err(LaunchError::Missing { name: arg.name.clone(), expected: crate::batch::described(arg) });
            };
            let empty = HostTensor::zeros(crate::tensor::ElementType::F32, &[0])?;
            written.push(std::mem::replace(tensor, empty));
        }
        let result = self.launch_on(tensors, &mut written, batch, options);
        self.give_back(tensors, written);
        result
    }

    /// Puts the tensors that were taken out of the map back.
    fn give_back(&self, tensors: &mut Tensors, written: Vec<HostTensor>) {
        let names = self.signature.args.iter().filter(|arg| arg.access == Access::Write).map(|arg| &arg.name);
        for (name, tensor) in names.zip(written) {
            tensors.insert(name.clone(), tensor);
        }
    }

    fn launch_on(
        &self,
        read: &Tensors,
        written: &mut [HostTensor],
        batch: &Batch,
        options: &Options,
    ) -> Result<(), LaunchError> {
        let mut written = written.iter_mut();
        let mut args = Vec::new();
        for arg in &self.signature.args {
            args.push(match arg.access {
                Access::Write => LaunchArg::Write(written.next().expect("one was taken out for each written argument")),
                Access::Read => match read.get(&arg.name) {
                    Some(tensor) => LaunchArg::Read(tensor),
                    None => {
                        let expected = crate::batch::described(arg);
                        return Err(LaunchError::Missing { name: arg.name.clone(), expected });
                    }
                },
            });
        }
        self.launch_args(&mut args, batch, options)
    }

    /// Runs on tensors in the order of the signature.
    pub fn launch_args(&self, args: &mut [LaunchArg<'_>], batch: &Batch, options: &Options) -> Result<(), LaunchError> {
        let described = &self.signature.args;
        if args.len() != described.len() {
            let why = format!("it has {} arguments, {} were given", described.len(), args.len());
            return Err(LaunchError::Signature { why });
        }
        let mut names = HashSet::new();
        let mut tensors = Vec::new();
        for (arg, signature) in args.iter_mut().zip(described) {
            if !names.insert(&signature.name) {
                return Err(LaunchError::Signature { why: format!("`{}` occurs twice", signature.name) });
            }
            let (heads, shape, data) = match (arg, signature.access) {
                (LaunchArg::Read(tensor), Access::Read) => {
                    // The kernel does not write through the pointers of what it reads.
                    (batch.check(signature, tensor)?, tensor.shape(), tensor.address().cast_mut())
                }
                (LaunchArg::Write(tensor), Access::Write) => {
                    let heads = batch.check(signature, tensor)?;
                    if options.poison {
                        tensor.poison();
                    }
                    let data = tensor.address_mut();
                    (heads, tensor.shape(), data)
                }
                (LaunchArg::Read(_), Access::Write) | (LaunchArg::Write(_), Access::Read) => {
                    let why =
                        format!("`{}` was given to be read where it is written, or the other way", signature.name);
                    return Err(LaunchError::Signature { why });
                }
            };
            tensors.push(strides(signature.role, shape, heads, data)?);
        }
        let too_large = |what: &str| LaunchError::TooLarge { what: what.to_string() };
        let counted = |n: usize, what: &str| i64::try_from(n).map_err(|_| too_large(what));
        let n_sequences = batch.sequences.count();
        let items =
            n_sequences.checked_mul(batch.heads).ok_or_else(|| too_large("the number of sequences and heads"))?;
        let items = counted(items, "the number of sequences and heads")?;
        // A kernel's effect is what it writes: with nothing to write there may be very many items of nothing to do.
        let idle = args.iter().all(|arg| match arg {
            LaunchArg::Read(_) => true,
            LaunchArg::Write(tensor) => tensor.n_elements() == 0,
        });
        if items == 0 || idle {
            return Ok(());
        }
        let call = Call {
            tensors: tensors.as_ptr(),
            offsets: batch.sequences.offsets().map_or(std::ptr::null(), <[i64]>::as_ptr),
            sequences: counted(n_sequences, "the number of sequences")?,
            length: counted(batch.sequences.longest(), "the number of tokens")?,
            heads: counted(batch.heads, "the number of heads")?,
        };
        self.work(&call, items, options)
    }

    /// Hands ranges of items to threads until all are done.
    fn work(&self, call: &Call, items: i64, options: &Options) -> Result<(), LaunchError> {
        let n_workers = options.threads.clamp(1, usize::try_from(items).unwrap_or(usize::MAX));
        let mut scratch = Vec::new();
        for _ in 0..n_workers {
            scratch.push(self.take_scratch()?);
        }
        // Small ranges, so that a slow item keeps nobody waiting; not smaller than it takes to fetch one cheaply.
        let step = if options.poison { 1 } else { (items / (n_workers as i64 * 16)).max(1) };
        let next = AtomicI64::new(0);
        let shared = SharedCall(call);
        let worker = |memory: &mut Aligned<f32>| {
            loop {
                let begin = next.fetch_add(step, Ordering::Relaxed);
                if begin >= items {
                    break;
                }
                if options.poison {
                    memory.as_mut_slice().fill(f32::NAN);
                }
                // SAFETY: `launch_args` checked every tensor against the signature, and that none is written twice;
                // the tensors are borrowed until after the last call; ranges of different calls are disjoint, and so
                // is scratch, which is large enough and aligned; `new` promised the rest.
                unsafe {
                    (self.function)(
                        shared.get(),
                        begin,
                        end_of(begin, step, items),
                        memory.as_mut_slice().as_mut_ptr().cast(),
                    )
                };
            }
        };
        let (own, others) = scratch.split_first_mut().expect("there is at least one worker");
        std::thread::scope(|scope| {
            for memory in others {
                // Without a thread to be had, the others do its part.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || worker(memory));
            }
            worker(own);
        });
        self.keep_scratch(scratch);
        Ok(())
    }

    fn take_scratch(&self) -> Result<Aligned<f32>, LaunchError> {
        let kept = self.scratch.lock().ok().and_then(|mut kept| kept.pop());
        match kept.or_else(|| Aligned::filled(self.signature.scratch_bytes.div_ceil(4), 0.0)) {
            Some(memory) => Ok(memory),
            None => Err(LaunchError::TooLarge { what: format!("scratch of {} bytes", self.signature.scratch_bytes) }),
        }
    }

    fn keep_scratch(&self, memory: Vec<Aligned<f32>>) {
        if let Ok(mut kept) = self.scratch.lock() {
            kept.extend(memory);
        }
    }
}

fn end_of(begin: i64, step: i64, items: i64) -> i64 {
    begin.saturating_add(step).min(items)
}

/// A call, handed to threads.
struct SharedCall<'a>(&'a Call);
// SAFETY: kernels only read the call; what its pointers lead to is either only read, or written by disjoint items.
unsafe impl Sync for SharedCall<'_> {}

impl SharedCall<'_> {
    fn get(&self) -> *const Call {
        self.0
    }
}

/// The strides of a dense tensor.
pub fn strides(
    role: Role,
    shape: &[usize],
    heads: usize,
    data: *mut core::ffi::c_void,
) -> Result<TensorArg, LaunchError> {
    let position = head_position(role);
    let too_large = || LaunchError::TooLarge { what: format!("a tensor of shape {shape:?}") };
    // Elements from one index to the next of dimension `at`. With an extent of 0 elsewhere it may count what does not
    // exist, and then no element is ever addressed by it.
    let stride = |at: usize| -> Result<i64, LaunchError> {
        let product = shape[at + 1..].iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
        product.and_then(|product| i64::try_from(product).ok()).ok_or_else(too_large)
    };
    let stride_head = stride(position)?;
    let (stride_sequence, stride_time) = match role {
        Role::Token => (stride(0)?, stride(1)?),
        Role::Sequence => (stride(0)?, 0),
        Role::Head => (0, 0),
        Role::Chunk(_) => (0, stride(0)?),
    };
    let heads = i64::try_from(heads).map_err(|_| too_large())?;
    Ok(TensorArg { data, stride_sequence, stride_time, stride_head, heads })
}
