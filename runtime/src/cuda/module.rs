//! A module of kernels in a GPU's memory, and its launches.
//!
//! Comes in: a [`GpuModule`], as PTX or assembled; the addresses of a call's tensors. Goes out: kernels queued on a
//! stream, one after the other. What the module says of itself is held against the driver's view of it when it is
//! loaded, so that a launch cannot hand a kernel a parameter of another size.

use super::device::CudaDevice;
use super::driver::{check, words};
use super::error::CudaError;
use super::memory::{ALIGNMENT, Buffer, Stream};
use crate::batch::Batch;
use crate::error::LaunchError;
use chunkwise_abi::gpu::{GpuCall, GpuKernel, GpuModule, Grid, MAX_CALL_BYTES, call_bytes};
use chunkwise_abi::{ArgSignature, KernelSignature, Role, TensorArg};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option as Jit, CUresult};
use std::ffi::CString;
use std::sync::Arc;

/// Threads a block may have on any GPU.
const MAX_THREADS: u32 = 1024;
/// Blocks a grid may have along y and z.
const MAX_ROWS: usize = 65535;
/// Blocks a grid may have along x.
const MAX_BLOCKS: usize = i32::MAX as usize;

/// A module that can be launched.
pub struct LoadedModule {
    device: CudaDevice,
    handle: sys::CUmodule,
    module: GpuModule,
    functions: Vec<sys::CUfunction>,
    name: Arc<str>,
}

// SAFETY: a module may be used from any thread that makes its GPU current, which every call here does first.
unsafe impl Send for LoadedModule {}
// SAFETY: as above; nothing in it changes.
unsafe impl Sync for LoadedModule {}

impl std::fmt::Debug for LoadedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModule").field("name", &self.name).finish_non_exhaustive()
    }
}

impl LoadedModule {
    /// Loads a module; `cubin` is its code assembled for this GPU, where that has been done. Without, the driver
    /// assembles the PTX, and keeps the result for the next time where it likes.
    ///
    /// # Safety
    /// The code keeps the contract of [`chunkwise_abi::gpu`] for the module's description.
    pub unsafe fn load(
        device: &CudaDevice,
        module: &GpuModule,
        cubin: Option<&[u8]>,
    ) -> Result<LoadedModule, CudaError> {
        let facts = device.facts();
        if !device.runs(&module.arch) {
            let (name, capability) = (facts.name.clone(), facts.capability);
            return Err(CudaError::WrongArch { arch: module.arch.clone(), name, capability });
        }
        describes_itself_well(module, facts.shared_memory)?;
        device.bind()?;
        let name: Arc<str> = Arc::from(format!("`{}`", module.signature.symbol));
        let handle = match cubin {
            Some(cubin) => load_image(cubin.to_vec(), &name)?,
            None => load_image(format!("{}\0", module.ptx).into_bytes(), &name)?,
        };
        let mut loaded = LoadedModule {
            device: device.clone(),
            handle,
            module: module.clone(),
            functions: Vec::with_capacity(module.kernels.len()),
            name,
        };
        for kernel in &module.kernels {
            let function = loaded.function(kernel)?;
            loaded.functions.push(function);
        }
        Ok(loaded)
    }

    /// What it takes.
    pub fn signature(&self) -> &KernelSignature {
        &self.module.signature
    }

    /// Its description.
    pub fn module(&self) -> &GpuModule {
        &self.module
    }

    fn function(&self, kernel: &GpuKernel) -> Result<sys::CUfunction, CudaError> {
        let damaged = |why: String| CudaError::Launch(LaunchError::Signature { why });
        let symbol = &kernel.symbol;
        let name = CString::new(symbol.as_str()).map_err(|_| damaged(format!("`{symbol:?}` is no name")))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded; the driver writes one handle, which lives as long as the module.
        match unsafe { sys::cuModuleGetFunction(&mut function, self.handle, name.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => return Err(damaged(format!("the code has no kernel `{symbol}`"))),
            answer => check(answer, "looking for a kernel")?,
        }
        let known = |attribute| {
            let mut value = 0;
            // SAFETY: the driver writes one number.
            check(unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function) }, "describing a kernel")?;
            Ok::<u32, CudaError>(u32::try_from(value).unwrap_or(0))
        };
        let most = known(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        if kernel.threads > most {
            return Err(damaged(format!("`{symbol}` asks for {} threads, and takes at most {most}", kernel.threads)));
        }
        let mut sizes = Vec::new();
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the driver writes two numbers, and answers that there is no such parameter after the last.
        while unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) }
            == CUresult::CUDA_SUCCESS
        {
            sizes.push(size);
        }
        let expected = call_bytes(self.module.signature.args.len() + self.module.temporaries.len());
        if sizes != [expected] {
            let why = format!("`{symbol}` takes parameters of {sizes:?} bytes, and should take one of {expected}");
            return Err(damaged(why));
        }
        if kernel.shared_bytes > 0 {
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // It was held against what the GPU has, so it fits an i32.
            // SAFETY: the function is loaded.
            let answer = unsafe { sys::cuFuncSetAttribute(function, most, kernel.shared_bytes as i32) };
            check(answer, "allowing a kernel its shared memory")?;
        }
        Ok(function)
    }

    /// Makes a call ready: with `tensors` for the arguments and then the temporaries of the module, in order.
    pub(super) fn ready(
        self: &Arc<Self>,
        stream: &Stream,
        tensors: &[TensorArg],
        batch: &Batch,
        offsets: u64,
    ) -> Result<Ready, CudaError> {
        let args = self.module.signature.args.iter().chain(&self.module.temporaries);
        for (arg, tensor) in args.zip(tensors) {
            lies_well(arg, tensor, batch)?;
        }
        let mut launches = Vec::new();
        let mut workspace_bytes = 0;
        for (kernel, function) in self.module.kernels.iter().zip(&self.functions) {
            let Some(grid) = blocks(kernel.grid, batch)? else { continue };
            let n_blocks = grid.iter().map(|n| u64::from(*n)).try_fold(1u64, u64::checked_mul);
            let needed = n_blocks.and_then(|n| n.checked_mul(kernel.workspace_bytes));
            let too_large = || LaunchError::TooLarge { what: format!("the workspace of `{}`", kernel.symbol) };
            workspace_bytes = workspace_bytes.max(needed.ok_or_else(too_large)?);
            let wants_workspace = kernel.workspace_bytes > 0;
            launches
                .push((Launch { function: *function, grid, kernel: kernel.clone(), call: vec![] }, wants_workspace));
        }
        // Kernels run one after the other, and hand nothing on in it: one workspace serves all.
        let workspace = stream.buffer(workspace_bytes, &format!("the workspace of {}", self.name))?;
        for (launch, wants_workspace) in &mut launches {
            let address = if *wants_workspace { workspace.address() } else { 0 };
            launch.call = written(&head(batch, address, offsets)?, tensors);
        }
        let launches = launches.into_iter().map(|(launch, _)| launch).collect();
        Ok(Ready { module: Arc::clone(self), stream: stream.clone(), launches, workspace })
    }
}

impl Drop for LoadedModule {
    fn drop(&mut self) {
        let _ = self.device.bind();
        // SAFETY: loaded once. What was queued holds the module until it has been waited for, see `Ready`.
        let _ = unsafe { sys::cuModuleUnload(self.handle) };
    }
}

/// A call with everything decided but when.
pub(super) struct Ready {
    module: Arc<LoadedModule>,
    stream: Stream,
    launches: Vec<Launch>,
    workspace: Buffer,
}

struct Launch {
    function: sys::CUfunction,
    grid: [u32; 3],
    kernel: GpuKernel,
    /// The parameter, in units that are aligned as it must be.
    call: Vec<u64>,
}

// SAFETY: as `LoadedModule`, whose functions these are.
unsafe impl Send for Ready {}

impl Ready {
    /// Queues the kernels.
    ///
    /// # Safety
    /// The tensors the call was made ready with are still what they were, and stay until the stream has been waited
    /// for or is used for nothing but their like.
    pub unsafe fn launch(&mut self) -> Result<(), CudaError> {
        self.module.device.bind()?;
        self.stream.note(&self.module.name);
        for launch in &mut self.launches {
            let ([x, y, z], kernel) = (launch.grid, &launch.kernel);
            let mut parameters = [launch.call.as_mut_ptr().cast::<core::ffi::c_void>()];
            // SAFETY: the one parameter is as large as the kernel's, see `load`; the driver has copied it when the call
            // returns. The rest is the caller's promise and that of `load`.
            let answer = unsafe {
                sys::cuLaunchKernel(
                    launch.function,
                    x,
                    y,
                    z,
                    kernel.threads,
                    1,
                    1,
                    kernel.shared_bytes,
                    self.stream.handle(),
                    parameters.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            };
            self.stream.check(answer, "launching a kernel")?;
        }
        Ok(())
    }

    /// Fills the workspace with NaN, so that a kernel which reads what it did not write is seen.
    pub fn poison(&self) -> Result<(), CudaError> {
        self.workspace.fill(0xff)
    }

    /// Bytes of workspace.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes()
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // The module must stay loaded until its kernels have run; a stream that broke off has nothing left to run.
        let _ = self.stream.synchronize();
    }
}

/// Refuses a tensor that is not aligned as kernels need it.
fn lies_well(arg: &ArgSignature, tensor: &TensorArg, batch: &Batch) -> Result<(), LaunchError> {
    let wanted = arg.alignment();
    let several = |extent: usize| extent > 1;
    // Tokens of packed sequences are found by their strides along time alone; chunks of one sequence lie behind those of
    // another.
    let (sequences, time) = match arg.role {
        Role::Token => (batch.sequences.offsets().is_none(), several(batch.sequences.longest())),
        Role::Sequence => (true, false),
        Role::Chunk(_) => (false, true),
        Role::Head => (false, false),
    };
    let strides = [
        (tensor.stride_sequence, sequences && several(batch.sequences.count())),
        (tensor.stride_time, time),
        (tensor.stride_head, tensor.heads > 1),
    ];
    let bytes = |stride: i64| stride.unsigned_abs() as usize * arg.dtype.bytes();
    let strides_fit = strides.iter().all(|(stride, used)| !used || bytes(*stride).is_multiple_of(wanted));
    match tensor.data.addr().is_multiple_of(wanted) && strides_fit {
        true => Ok(()),
        false => Err(LaunchError::Misaligned { name: arg.name.clone(), wanted }),
    }
}

/// The start of the parameter.
pub fn head(batch: &Batch, workspace: u64, offsets: u64) -> Result<GpuCall, CudaError> {
    let too_large = |what: &str| LaunchError::TooLarge { what: what.to_string() };
    let small = |n: usize, what: &str| i32::try_from(n).map_err(|_| too_large(what));
    Ok(GpuCall {
        sequences: small(batch.sequences.count(), "the number of sequences")?,
        heads: small(batch.heads, "the number of heads")?,
        length: i64::try_from(batch.sequences.longest()).map_err(|_| too_large("the number of tokens"))?,
        workspace,
        offsets,
    })
}

/// The parameter as it lies in memory.
pub fn written(head: &GpuCall, tensors: &[TensorArg]) -> Vec<u64> {
    let mut words = vec![
        u64::from(head.sequences.cast_unsigned()) | u64::from(head.heads.cast_unsigned()) << 32,
        head.length.cast_unsigned(),
        head.workspace,
        head.offsets,
    ];
    for tensor in tensors {
        words.push(tensor.data.addr() as u64);
        let numbers = [tensor.stride_sequence, tensor.stride_time, tensor.stride_head, tensor.heads];
        words.extend(numbers.map(i64::cast_unsigned));
    }
    words
}

/// The blocks of a launch along x, y and z; none where there is nothing to do.
pub fn blocks(grid: Grid, batch: &Batch) -> Result<Option<[u32; 3]>, CudaError> {
    let too_large = |what: &str| CudaError::Launch(LaunchError::TooLarge { what: what.to_string() });
    let (n_sequences, heads) = (batch.sequences.count(), batch.heads);
    let rows = |n: usize, what: &str| u32::try_from(n).ok().filter(|_| n <= MAX_ROWS).ok_or_else(|| too_large(what));
    let along_x =
        |n: usize, what: &str| u32::try_from(n).ok().filter(|_| n <= MAX_BLOCKS).ok_or_else(|| too_large(what));
    let blocks = match grid {
        Grid::Item => {
            let what = "the number of sequences and heads";
            [along_x(n_sequences.checked_mul(heads).ok_or_else(|| too_large(what))?, what)?, 1, 1]
        }
        Grid::Chunk { tokens } => {
            let n_chunks = batch.sequences.longest().div_ceil(tokens as usize);
            [
                along_x(n_chunks, "the number of tokens")?,
                rows(heads, "the number of heads")?,
                rows(n_sequences, "the number of sequences")?,
            ]
        }
        Grid::Spans { tokens, blocks } => {
            let what = "the number of tokens";
            let spans = batch.sequences.longest().div_ceil(tokens as usize);
            [
                along_x(spans.checked_mul(blocks as usize).ok_or_else(|| too_large(what))?, what)?,
                rows(heads, "the number of heads")?,
                rows(n_sequences, "the number of sequences")?,
            ]
        }
        Grid::Blocks { blocks } => {
            [blocks, rows(heads, "the number of heads")?, rows(n_sequences, "the number of sequences")?]
        }
    };
    Ok((!blocks.contains(&0)).then_some(blocks))
}

/// What can be told of a description without the code.
fn describes_itself_well(module: &GpuModule, shared_memory: u32) -> Result<(), CudaError> {
    let damaged = |why: String| Err(CudaError::Launch(LaunchError::Signature { why }));
    let n_tensors = module.signature.args.len() + module.temporaries.len();
    if call_bytes(n_tensors) > MAX_CALL_BYTES {
        return Err(CudaError::Launch(LaunchError::TooLarge {
            what: format!("a kernel's parameter with {n_tensors} tensors"),
        }));
    }
    for kernel in &module.kernels {
        let symbol = &kernel.symbol;
        if kernel.threads == 0 || kernel.threads > MAX_THREADS {
            return damaged(format!("`{symbol}` asks for {} threads a block", kernel.threads));
        }
        if kernel.shared_bytes > shared_memory {
            return Err(CudaError::Launch(LaunchError::TooLarge {
                what: format!(
                    "the shared memory of `{symbol}`, {} bytes where this GPU gives a block {shared_memory},",
                    kernel.shared_bytes
                ),
            }));
        }
        if !kernel.workspace_bytes.is_multiple_of(ALIGNMENT) {
            return damaged(format!("`{symbol}` asks for {} bytes of workspace a block", kernel.workspace_bytes));
        }
        if kernel.grid == (Grid::Chunk { tokens: 0 }) {
            return damaged(format!("`{symbol}` works on chunks of no tokens"));
        }
        let none_or_many = |blocks: u32| blocks == 0 || blocks as usize > MAX_BLOCKS;
        if match kernel.grid {
            Grid::Item | Grid::Chunk { .. } => false,
            Grid::Blocks { blocks } => none_or_many(blocks),
            Grid::Spans { tokens, blocks } => tokens == 0 || none_or_many(blocks),
        } {
            return damaged(format!("`{symbol}` works on {:?}", kernel.grid));
        }
    }
    Ok(())
}

/// Hands code to the driver.
fn load_image(image: Vec<u8>, name: &str) -> Result<sys::CUmodule, CudaError> {
    let mut said = [0u8; 8192];
    let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes numbers in the place of pointers.
    let mut values = [said.as_mut_ptr().cast(), std::ptr::without_provenance_mut(said.len())];
    let mut handle = std::ptr::null_mut();
    // SAFETY: PTX ends in 0 and machine code tells its own length; the options are the two named, and their buffer is
    // alive. The driver writes one handle, given back once.
    let answer = unsafe {
        let n = options.len() as u32;
        sys::cuModuleLoadDataEx(&mut handle, image.as_ptr().cast(), n, options.as_mut_ptr(), values.as_mut_ptr())
    };
    match answer {
        CUresult::CUDA_SUCCESS => Ok(handle),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            Err(CudaError::OldDriver { found: super::device::driver_version()? })
        }
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(CudaError::OutOfMemory {
            what: format!("the code of {name}"),
            bytes: image.len() as u64,
            free: 0,
            total: 0,
        }),
        answer => {
            let length = said.iter().position(|byte| *byte == 0).unwrap_or(said.len());
            let log = String::from_utf8_lossy(&said[..length]);
            let why = if log.trim().is_empty() { words(answer) } else { format!("{}\n{}", words(answer), log.trim()) };
            Err(CudaError::Load { module: name.to_string(), why })
        }
    }
}

/// Machine code that the driver's own assembler makes of PTX for a GPU; none where it does not want to.
pub(super) fn assembled_by_driver(device: &CudaDevice, ptx: &str) -> Option<Vec<u8>> {
    device.bind().ok()?;
    let mut state = std::ptr::null_mut();
    // SAFETY: no options; the driver writes one handle, given back below.
    let made = unsafe { sys::cuLinkCreate_v2(0, std::ptr::null_mut(), std::ptr::null_mut(), &mut state) };
    if made != CUresult::CUDA_SUCCESS {
        return None;
    }
    let mut text = format!("{ptx}\0").into_bytes();
    let (mut code, mut length) = (std::ptr::null_mut(), 0);
    // SAFETY: the text ends in 0 and is alive for both calls; there are no options.
    let complete = unsafe {
        let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
        let (data, name, none) = (text.as_mut_ptr().cast(), c"kernels".as_ptr(), std::ptr::null_mut());
        sys::cuLinkAddData_v2(state, kind, data, text.len(), name, 0, none, std::ptr::null_mut())
            == CUresult::CUDA_SUCCESS
            && sys::cuLinkComplete(state, &mut code, &mut length) == CUresult::CUDA_SUCCESS
    };
    // SAFETY: the code is that long, and the driver's until the handle is given back.
    let code = (complete && !code.is_null()).then(|| unsafe { std::slice::from_raw_parts(code.cast::<u8>(), length) });
    let code = code.map(<[u8]>::to_vec);
    // SAFETY: made above, given back once.
    let _ = unsafe { sys::cuLinkDestroy(state) };
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Sequences;

    fn batch(sequences: Sequences, heads: usize) -> Batch {
        Batch { sequences, heads }
    }

    #[test]
    fn every_item_chunk_and_part_has_a_block() {
        let equal = |count, length| Sequences::Equal { count, length };
        let of = |grid, sequences, heads| blocks(grid, &batch(sequences, heads)).unwrap();
        assert_eq!(of(Grid::Item, equal(3, 100), 4), Some([12, 1, 1]));
        // A state is handed on even by a sequence without tokens; a chunk of none is nothing.
        assert_eq!(of(Grid::Item, equal(3, 0), 4), Some([12, 1, 1]));
        let chunk = Grid::Chunk { tokens: 64 };
        assert_eq!(of(chunk, equal(3, 100), 4), Some([2, 4, 3]));
        assert_eq!(of(chunk, equal(3, 0), 4), None);
        assert_eq!(of(chunk, Sequences::packed(&[0, 10, 210]).unwrap(), 5), Some([4, 5, 2]));
        assert!(blocks(chunk, &batch(equal(70_000, 1), 1)).is_err());
        let parts = Grid::Blocks { blocks: 2 };
        assert_eq!(of(parts, equal(3, 100), 4), Some([2, 4, 3]));
        assert_eq!(of(parts, equal(3, 0), 4), Some([2, 4, 3]));
        assert_eq!(of(parts, equal(0, 100), 4), None);
        assert!(blocks(parts, &batch(equal(70_000, 1), 1)).is_err());
        let spans = Grid::Spans { tokens: 64, blocks: 3 };
        assert_eq!(of(spans, equal(2, 65), 4), Some([6, 4, 2]));
        assert_eq!(of(spans, equal(2, 0), 4), None);
        assert!(blocks(Grid::Spans { tokens: 1, blocks: 1 << 20 }, &batch(equal(1, 1 << 20), 1)).is_err());
        assert!(blocks(parts, &batch(equal(1, 1), 70_000)).is_err());
        assert!(blocks(Grid::Item, &batch(equal(1 << 20, 1), 1 << 12)).is_err());
    }

    #[test]
    fn what_kernels_read_at_once_lies_together() {
        use chunkwise_abi::{Access, DType};
        let arg = |inner: &[usize], dtype| ArgSignature {
            name: "q".to_string(),
            dtype,
            role: Role::Token,
            inner: inner.to_vec(),
            axes: vec![],
            access: Access::Read,
        };
        let wanted = |inner: &[usize], dtype| arg(inner, dtype).alignment();
        assert_eq!([wanted(&[128], DType::BF16), wanted(&[20], DType::BF16), wanted(&[20], DType::F32)], [16, 8, 16]);
        assert_eq!([wanted(&[], DType::BF16), wanted(&[], DType::F32), wanted(&[2, 17], DType::F16)], [2, 4, 4]);

        let (q, one) = (arg(&[64], DType::BF16), batch(Sequences::Equal { count: 1, length: 5 }, 2));
        let lies = |address: usize, stride_sequence, stride_time, stride_head, batch: &Batch| {
            let data = std::ptr::without_provenance_mut(address);
            lies_well(&q, &TensorArg { data, stride_sequence, stride_time, stride_head, heads: 2 }, batch)
        };
        assert_eq!(lies(256, 640, 128, 64, &one), Ok(()));
        // A view of every third row of a larger tensor, and a stride along the only sequence.
        assert_eq!(lies(256 + 16, 3, 3 * 128, 64, &one), Ok(()));
        let refused = lies(256 + 2, 640, 128, 64, &one).unwrap_err();
        assert!(refused.to_string().contains("no multiples of 16 bytes"), "{refused}");
        assert!(lies(256, 640, 129, 64, &one).is_err() && lies(256, 640, 128, 60, &one).is_err());
        let two = batch(Sequences::Equal { count: 2, length: 5 }, 2);
        assert!(lies(256, 3, 128, 64, &two).is_err());
        assert_eq!(lies(256, 3, 128, 64, &batch(Sequences::packed(&[0, 4, 9]).unwrap(), 2)), Ok(()));
    }

    #[test]
    fn a_parameter_lies_as_the_contract_says() {
        let head = GpuCall { sequences: 3, heads: -1, length: 5, workspace: 6, offsets: 7 };
        let data = std::ptr::without_provenance_mut(8);
        let tensor = TensorArg { data, stride_sequence: 9, stride_time: 10, stride_head: -11, heads: 12 };
        let words = written(&head, &[tensor, tensor]);
        assert_eq!(words.len() * 8, call_bytes(2));
        // SAFETY: plain numbers and addresses, laid out by `repr(C)`; the length was just held against the contract.
        let (seen, tensors) = unsafe {
            let start = words.as_ptr();
            (*start.cast::<GpuCall>(), *start.byte_add(chunkwise_abi::gpu::TENSORS_AT).cast::<[TensorArg; 2]>())
        };
        assert_eq!(format!("{seen:?} {tensors:?}"), format!("{head:?} {:?}", [tensor, tensor]));
    }
}
