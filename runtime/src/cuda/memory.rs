//! Streams of work on a GPU, the memory that belongs to them, and tensors in it.
//!
//! Comes in: a GPU, sizes, tensors of this machine. Goes out: buffers and tensors on the GPU. A stream does one thing
//! after the other, so memory that is no longer needed can be handed on at once to what is queued next: each stream
//! keeps its own, and nothing waits for the GPU when memory is freed.

use super::device::CudaDevice;
use super::driver::{check, is_fault, words};
use super::error::CudaError;
use crate::tensor::{ElementType, HostTensor, count};
use cudarc::driver::sys::{self, CUresult};
use std::sync::{Arc, Mutex};

/// Where a buffer starts: at a multiple of this, in bytes.
pub const ALIGNMENT: u64 = 256;

/// Buffers beyond this size come in multiples of it, so that nearly equal ones can take each other's place.
const LARGE: u64 = 2 << 20;

/// Work that is done in order. Copies are the same stream.
#[derive(Clone)]
pub struct Stream(Arc<Queue>);

struct Queue {
    device: CudaDevice,
    handle: sys::CUstream,
    /// Whether it is ours to take down.
    owned: bool,
    /// Memory nobody uses any more: address and size.
    spare: Mutex<Vec<(u64, u64)>>,
    /// What was queued last, for when it breaks off.
    last: Mutex<Arc<str>>,
}

// SAFETY: a stream may be used from any thread that makes its GPU current, which every call here does first.
unsafe impl Send for Queue {}
// SAFETY: as above; what changes is behind locks.
unsafe impl Sync for Queue {}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("device", &self.0.device).finish_non_exhaustive()
    }
}

impl Stream {
    /// A new one.
    pub fn new(device: &CudaDevice) -> Result<Stream, CudaError> {
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        let kind = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes one handle, which `drop` gives back once.
        check(unsafe { sys::cuStreamCreate(&mut handle, kind) }, "making a stream")?;
        Ok(Stream::of(device, handle, true))
    }

    /// Somebody else's, given as the driver's own handle (`CUstream`, which is also `cudaStream_t`).
    ///
    /// # Safety
    /// The handle is a stream of the device's primary context, and stays one as long as this and everything made with
    /// it is in use.
    pub unsafe fn borrowed(device: &CudaDevice, handle: *mut core::ffi::c_void) -> Stream {
        Stream::of(device, handle.cast(), false)
    }

    fn of(device: &CudaDevice, handle: sys::CUstream, owned: bool) -> Stream {
        let last = Mutex::new(Arc::from("what it was given"));
        Stream(Arc::new(Queue { device: device.clone(), handle, owned, spare: Mutex::new(Vec::new()), last }))
    }

    /// Its GPU.
    pub fn device(&self) -> &CudaDevice {
        &self.0.device
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.0.handle
    }

    /// Notes what is queued from here on.
    pub(super) fn note(&self, what: &Arc<str>) {
        if let Ok(mut last) = self.0.last.lock() {
            *last = Arc::clone(what);
        }
    }

    /// As [`check`]; a kernel that went wrong is told with what was queued last.
    pub(super) fn check(&self, answer: CUresult, doing: &'static str) -> Result<(), CudaError> {
        if is_fault(answer) {
            let during = self.0.last.lock().map_or_else(|_| doing.to_string(), |last| last.to_string());
            return Err(CudaError::Fault { during, why: words(answer) });
        }
        check(answer, doing)
    }

    /// Waits until everything queued is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.0.device.bind()?;
        // SAFETY: the stream is alive.
        self.check(unsafe { sys::cuStreamSynchronize(self.0.handle) }, "waiting for the GPU")
    }

    /// Memory whose content means nothing. It may be used by what is queued on this stream only.
    pub fn buffer(&self, bytes: u64, what: &str) -> Result<Buffer, CudaError> {
        let buffer = |address, capacity| Buffer { stream: self.clone(), address, capacity, bytes };
        if bytes == 0 {
            return Ok(buffer(0, 0));
        }
        let unit = if bytes <= LARGE { ALIGNMENT } else { LARGE };
        let capacity = bytes.checked_next_multiple_of(unit).unwrap_or(bytes);
        if let Some((address, capacity)) = self.take_spare(capacity) {
            return Ok(buffer(address, capacity));
        }
        self.0.device.bind()?;
        let mut answer = self.allocate(capacity);
        if matches!(answer, Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) {
            self.free_spare()?;
            answer = self.allocate(capacity);
        }
        match answer {
            Ok(address) => Ok(buffer(address, capacity)),
            Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                let (free, total) = self.0.device.memory()?;
                Err(CudaError::OutOfMemory { what: what.to_string(), bytes, free, total })
            }
            Err(answer) => Err(match self.check(answer, "allocating memory") {
                Err(error) => error,
                Ok(()) => CudaError::Driver { doing: "allocating memory", why: words(answer) },
            }),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<u64, CUresult> {
        let Ok(bytes) = usize::try_from(bytes) else { return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) };
        let mut address = 0;
        // SAFETY: the driver writes one address; the memory is freed once, by `free_spare` or with the stream.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            CUresult::CUDA_SUCCESS => Ok(address),
            answer => Err(answer),
        }
    }

    /// The smallest spare memory that is large enough, and not wastefully larger.
    fn take_spare(&self, bytes: u64) -> Option<(u64, u64)> {
        let mut spare = self.0.spare.lock().ok()?;
        let fits = |capacity: u64| capacity >= bytes && capacity <= bytes.saturating_mul(2);
        let at = (0..spare.len()).filter(|at| fits(spare[*at].1)).min_by_key(|at| spare[*at].1)?;
        Some(spare.swap_remove(at))
    }

    /// Gives spare memory back to the GPU.
    fn free_spare(&self) -> Result<(), CudaError> {
        self.synchronize()?;
        let spare = self.0.spare.lock().map(|mut spare| std::mem::take(&mut *spare)).unwrap_or_default();
        for (address, _) in spare {
            // SAFETY: allocated by `allocate`, no buffer has it, and nothing that used it is still queued.
            self.check(unsafe { sys::cuMemFree_v2(address) }, "freeing memory")?;
        }
        Ok(())
    }

    /// A point in the stream.
    pub(super) fn mark(&self) -> Result<Mark, CudaError> {
        self.0.device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver writes one handle, which `Mark` gives back once.
        check(unsafe { sys::cuEventCreate(&mut handle, 0) }, "making an event")?;
        let mark = Mark(handle);
        // SAFETY: both are alive.
        self.check(unsafe { sys::cuEventRecord(mark.0, self.0.handle) }, "recording an event")?;
        Ok(mark)
    }

    /// Seconds from one point to another, both of them passed.
    pub(super) fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: both are alive; the driver writes one number.
        self.check(unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, from.0, to.0) }, "reading a time")?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Nothing can be done about a driver that refuses; after a fault it refuses everything.
        let _ = self.device.bind();
        // SAFETY: the last handle of the stream and of all its buffers is gone; waiting comes before freeing.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.handle);
            for (address, _) in self.spare.get_mut().map(std::mem::take).unwrap_or_default() {
                let _ = sys::cuMemFree_v2(address);
            }
            if self.owned {
                let _ = sys::cuStreamDestroy_v2(self.handle);
            }
        }
    }
}

/// A point in a stream.
pub(super) struct Mark(sys::CUevent);

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: made by `mark`, given back once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Memory of a stream. When it is dropped, the stream hands it on.
#[derive(Debug)]
pub struct Buffer {
    stream: Stream,
    address: u64,
    capacity: u64,
    bytes: u64,
}

impl Buffer {
    /// Where it starts; 0 if it is empty.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) -> Result<(), CudaError> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.stream.device().bind()?;
        // SAFETY: the memory is ours and that large; the stream is alive.
        let answer = unsafe { sys::cuMemsetD8Async(self.address, byte, self.bytes as usize, self.stream.handle()) };
        self.stream.check(answer, "filling memory")
    }

    /// Copies bytes of this machine to `offset`.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(offset + bytes.len() as u64 <= self.bytes, "what is written lies inside the buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.device().bind()?;
        let to = self.address + offset;
        // SAFETY: both ranges are alive; from memory that is not pinned the driver has copied when the call returns.
        let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream.handle()) };
        self.stream.check(answer, "copying to the GPU")
    }

    /// Copies the first bytes of another buffer of the same stream to `offset`.
    pub fn copy(&self, offset: u64, from: &Buffer, bytes: u64) -> Result<(), CudaError> {
        assert!(offset + bytes <= self.bytes && bytes <= from.bytes, "what is copied lies inside the buffers");
        if bytes == 0 {
            return Ok(());
        }
        self.stream.device().bind()?;
        let to = self.address + offset;
        // SAFETY: both ranges are alive until what is queued here is done, since their memory stays with the stream.
        let answer = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from.address, bytes as usize, self.stream.handle()) };
        self.stream.check(answer, "copying on the GPU")
    }

    /// Copies to this machine, when everything queued before is done.
    pub fn read(&self, bytes: &mut [u8]) -> Result<(), CudaError> {
        assert!(bytes.len() as u64 <= self.bytes, "what is read lies inside the buffer");
        if !bytes.is_empty() {
            self.stream.device().bind()?;
            let (to, n) = (bytes.as_mut_ptr().cast(), bytes.len());
            // SAFETY: both ranges are alive until the stream has been waited for, below.
            let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(to, self.address, n, self.stream.handle()) };
            let queued = self.stream.check(answer, "copying from the GPU");
            // Also where the call failed: nothing may write to `bytes` after we have returned.
            self.stream.synchronize()?;
            queued?;
        }
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.address != 0
            && let Ok(mut spare) = self.stream.0.spare.lock()
        {
            spare.push((self.address, self.capacity));
        }
    }
}

/// A dense tensor on a GPU.
#[derive(Debug)]
pub struct GpuTensor {
    shape: Vec<usize>,
    dtype: ElementType,
    buffer: Buffer,
}

impl GpuTensor {
    /// One whose elements mean nothing yet.
    pub fn new(stream: &Stream, dtype: ElementType, shape: &[usize], name: &str) -> Result<GpuTensor, CudaError> {
        let too_large = || crate::tensor::ShapeError::TooLarge { shape: shape.to_vec() };
        let bytes = count(shape).and_then(|n| n.checked_mul(dtype.bytes())).ok_or_else(too_large)?;
        let buffer = stream.buffer(bytes as u64, &format!("`{name}` of shape {shape:?}"))?;
        Ok(GpuTensor { shape: shape.to_vec(), dtype, buffer })
    }

    /// Extent of every dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of an element.
    pub fn dtype(&self) -> ElementType {
        self.dtype
    }

    /// Its memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Writes NaN everywhere: all bits set is one in every float type.
    pub fn poison(&self) -> Result<(), CudaError> {
        self.buffer.fill(0xff)
    }

    /// Fills it with the elements of a tensor of its type, from the first again whenever they are used up.
    pub fn fill(&self, elements: &HostTensor) -> Result<(), CudaError> {
        assert_eq!(elements.dtype(), self.dtype, "the elements are of the tensor's type");
        let bytes = elements.bytes();
        let whole = self.buffer.bytes();
        if bytes.is_empty() || whole == 0 {
            return Ok(());
        }
        let mut filled = whole.min(bytes.len() as u64);
        self.buffer.write(0, &bytes[..filled as usize])?;
        while filled < whole {
            // The part that is there is a whole number of periods, so it goes on as it began.
            let more = filled.min(whole - filled);
            self.buffer.copy(filled, &self.buffer, more)?;
            filled += more;
        }
        Ok(())
    }

    /// Its elements, when everything queued before is done.
    pub fn download(&self) -> Result<HostTensor, CudaError> {
        let mut tensor = HostTensor::zeros(self.dtype, &self.shape)?;
        self.buffer.read(tensor.bytes_mut())?;
        Ok(tensor)
    }
}
