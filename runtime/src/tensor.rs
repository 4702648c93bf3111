//! Tensors in this machine's memory.
//!
//! Comes in: a type and a shape, numbers. Goes out: elements, first one at a multiple of 64 bytes, dense, the last
//! dimension fastest. It never looks at what a dimension means.

use chunkwise_abi::DType;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use indexmap::IndexMap;

/// Tensors by the names of the calling contract.
pub type Tensors = IndexMap<String, HostTensor>;

/// Type of an element. [`chunkwise_abi::DType`] and float64, which no kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE binary16.
    F16,
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> ElementType {
        match dtype {
            DType::F32 => ElementType::F32,
            DType::BF16 => ElementType::BF16,
            DType::F16 => ElementType::F16,
        }
    }
}

impl ElementType {
    /// `f64`, `f32`, `bf16`, `f16`.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::F64 => "f64",
            ElementType::F32 => "f32",
            ElementType::BF16 => "bf16",
            ElementType::F16 => "f16",
        }
    }
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::F64 => 8,
            ElementType::F32 => 4,
            ElementType::BF16 | ElementType::F16 => 2,
        }
    }
}

/// Where the first element lies, in bytes: a cache line, which is also the widest vector.
pub const ALIGNMENT: usize = 64;

/// A vector whose first element lies at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub struct Aligned<T> {
    storage: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy> Aligned<T> {
    /// `len` times `value`; none if so much memory cannot be had.
    pub fn filled(len: usize, value: T) -> Option<Aligned<T>> {
        let slack = ALIGNMENT / size_of::<T>().max(1);
        let total = len.checked_add(slack)?;
        // `vec!` ends the process where there is no memory, so ask first; it gives zeros without touching them.
        Vec::<T>::new().try_reserve_exact(total).ok()?;
        let storage = vec![value; total];
        prefer_large_pages(&storage);
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(slack);
        Some(Aligned { storage, start, len })
    }
    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        &self.storage[self.start..self.start + self.len]
    }
    /// The elements, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// Asks for large pages under big tensors: rows of one head lie a small page apart, so that each would need an entry
/// of its own in the processor's table of pages. Only a wish; where it is not granted nothing changes.
fn prefer_large_pages<T>(storage: &[T]) {
    #[cfg(target_os = "linux")]
    {
        const LARGE_PAGE: usize = 1 << 21;
        const MADV_HUGEPAGE: i32 = 14;
        unsafe extern "C" {
            fn madvise(address: *mut core::ffi::c_void, length: usize, advice: i32) -> i32;
        }
        let bytes = std::mem::size_of_val(storage);
        let first = storage.as_ptr().cast::<u8>();
        let skipped = first.align_offset(LARGE_PAGE);
        if let Some(rest) = bytes.checked_sub(skipped).filter(|rest| *rest >= LARGE_PAGE) {
            let whole = rest / LARGE_PAGE * LARGE_PAGE;
            // SAFETY: the range lies inside `storage`, and the advice changes neither content nor access.
            unsafe { madvise(first.add(skipped).cast_mut().cast(), whole, MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = storage;
}

impl<T: Copy> Clone for Aligned<T> {
    fn clone(&self) -> Aligned<T> {
        // The copy lies elsewhere, and its first element is elsewhere from the next multiple, too.
        let mut storage = self.storage.clone();
        let slack = storage.len() - self.len;
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(slack);
        storage[start..start + self.len].copy_from_slice(self.as_slice());
        Aligned { storage, start, len: self.len }
    }
}

/// The elements of a tensor. The 16-bit types are kept as their bits.
#[derive(Clone, Debug)]
enum Elements {
    F64(Aligned<f64>),
    F32(Aligned<f32>),
    BF16(Aligned<u16>),
    F16(Aligned<u16>),
}

/// A dense tensor.
#[derive(Clone, Debug)]
pub struct HostTensor {
    shape: Vec<usize>,
    elements: Elements,
}

/// A shape that has more elements than can be had, or not as many as were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeError {
    /// No memory for so many elements.
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
    },
    /// As many numbers as the shape has elements were expected.
    Count {
        /// The shape.
        shape: Vec<usize>,
        /// Numbers given.
        found: usize,
    },
}

impl std::fmt::Display for ShapeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ShapeError::TooLarge { shape } => write!(f, "there is no memory for a tensor of shape {shape:?}"),
            ShapeError::Count { shape, found } => write!(f, "{found} numbers do not fill a tensor of shape {shape:?}"),
        }
    }
}
impl std::error::Error for ShapeError {}

/// Elements of a shape; none beyond what a machine can count. One extent of 0 makes it 0, whatever the others.
pub fn count(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent))
}

impl HostTensor {
    /// All zeros.
    pub fn zeros(dtype: ElementType, shape: &[usize]) -> Result<HostTensor, ShapeError> {
        HostTensor::filled(dtype, shape, 0.0)
    }

    /// All NaN, so that what is never written is seen.
    pub fn poisoned(dtype: ElementType, shape: &[usize]) -> Result<HostTensor, ShapeError> {
        HostTensor::filled(dtype, shape, f32::NAN)
    }

    fn filled(dtype: ElementType, shape: &[usize], value: f32) -> Result<HostTensor, ShapeError> {
        let allocate = |len| {
            Some(match dtype {
                ElementType::F64 => Elements::F64(Aligned::filled(len, f64::from(value))?),
                ElementType::F32 => Elements::F32(Aligned::filled(len, value)?),
                ElementType::BF16 => Elements::BF16(Aligned::filled(len, bf16::from_f32(value).to_bits())?),
                ElementType::F16 => Elements::F16(Aligned::filled(len, f16::from_f32(value).to_bits())?),
            })
        };
        match count(shape).and_then(allocate) {
            Some(elements) => Ok(HostTensor { shape: shape.to_vec(), elements }),
            None => Err(ShapeError::TooLarge { shape: shape.to_vec() }),
        }
    }

    /// From float64 numbers, each rounded to the nearest element.
    pub fn from_f64(dtype: ElementType, shape: &[usize], values: &[f64]) -> Result<HostTensor, ShapeError> {
        let mut tensor = HostTensor::sized(dtype, shape, values.len())?;
        match &mut tensor.elements {
            Elements::F64(own) => own.as_mut_slice().copy_from_slice(values),
            Elements::F32(own) => own.as_mut_slice().iter_mut().zip(values).for_each(|(x, value)| *x = *value as f32),
            Elements::BF16(own) => own.as_mut_slice().reinterpret_cast_mut::<bf16>().convert_from_f64_slice(values),
            Elements::F16(own) => own.as_mut_slice().reinterpret_cast_mut::<f16>().convert_from_f64_slice(values),
        }
        Ok(tensor)
    }

    /// From float32 numbers, each rounded to the nearest element.
    pub fn from_f32(dtype: ElementType, shape: &[usize], values: &[f32]) -> Result<HostTensor, ShapeError> {
        let mut tensor = HostTensor::sized(dtype, shape, values.len())?;
        match &mut tensor.elements {
            Elements::F64(own) => {
                own.as_mut_slice().iter_mut().zip(values).for_each(|(x, value)| *x = f64::from(*value));
            }
            Elements::F32(own) => own.as_mut_slice().copy_from_slice(values),
            Elements::BF16(own) => own.as_mut_slice().reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values),
            Elements::F16(own) => own.as_mut_slice().reinterpret_cast_mut::<f16>().convert_from_f32_slice(values),
        }
        Ok(tensor)
    }

    /// Zeros for as many numbers as are given.
    fn sized(dtype: ElementType, shape: &[usize], found: usize) -> Result<HostTensor, ShapeError> {
        if count(shape) != Some(found) {
            return Err(ShapeError::Count { shape: shape.to_vec(), found });
        }
        HostTensor::zeros(dtype, shape)
    }

    /// The elements as float64, exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.elements {
            Elements::F64(own) => own.as_slice().to_vec(),
            Elements::F32(own) => own.as_slice().iter().map(|x| f64::from(*x)).collect(),
            Elements::BF16(own) => own.as_slice().reinterpret_cast::<bf16>().to_f64_vec(),
            Elements::F16(own) => own.as_slice().reinterpret_cast::<f16>().to_f64_vec(),
        }
    }

    /// The elements as float32, rounded to the nearest where they are float64.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.elements {
            Elements::F64(own) => own.as_slice().iter().map(|x| *x as f32).collect(),
            Elements::F32(own) => own.as_slice().to_vec(),
            Elements::BF16(own) => own.as_slice().reinterpret_cast::<bf16>().to_f32_vec(),
            Elements::F16(own) => own.as_slice().reinterpret_cast::<f16>().to_f32_vec(),
        }
    }

    /// The same numbers as another type, rounded to the nearest.
    pub fn to_type(&self, dtype: ElementType) -> Result<HostTensor, ShapeError> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        match &self.elements {
            // One rounding, not two.
            Elements::F64(own) => HostTensor::from_f64(dtype, &self.shape, own.as_slice()),
            Elements::F32(own) => HostTensor::from_f32(dtype, &self.shape, own.as_slice()),
            Elements::BF16(_) | Elements::F16(_) => HostTensor::from_f32(dtype, &self.shape, &self.to_f32()),
        }
    }

    /// The elements, if they are float32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.elements {
            Elements::F32(own) => Some(own.as_slice()),
            Elements::F64(_) | Elements::BF16(_) | Elements::F16(_) => None,
        }
    }

    /// The elements, to be changed, if they are float32.
    pub fn as_mut_f32(&mut self) -> Option<&mut [f32]> {
        match &mut self.elements {
            Elements::F32(own) => Some(own.as_mut_slice()),
            Elements::F64(_) | Elements::BF16(_) | Elements::F16(_) => None,
        }
    }

    /// Writes NaN everywhere.
    pub fn poison(&mut self) {
        match &mut self.elements {
            Elements::F64(own) => own.as_mut_slice().fill(f64::NAN),
            Elements::F32(own) => own.as_mut_slice().fill(f32::NAN),
            Elements::BF16(own) => own.as_mut_slice().fill(bf16::NAN.to_bits()),
            Elements::F16(own) => own.as_mut_slice().fill(f16::NAN.to_bits()),
        }
    }

    /// The same memory under another shape with as many elements; none if it has not as many.
    pub fn reshaped(mut self, shape: &[usize]) -> Option<HostTensor> {
        if count(shape) != Some(self.n_elements()) {
            return None;
        }
        self.shape = shape.to_vec();
        Some(self)
    }

    /// Extent of every dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Type of an element.
    pub fn dtype(&self) -> ElementType {
        match &self.elements {
            Elements::F64(_) => ElementType::F64,
            Elements::F32(_) => ElementType::F32,
            Elements::BF16(_) => ElementType::BF16,
            Elements::F16(_) => ElementType::F16,
        }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        match &self.elements {
            Elements::F64(own) => own.len,
            Elements::F32(own) => own.len,
            Elements::BF16(own) | Elements::F16(own) => own.len,
        }
    }

    /// The elements as they lie in memory.
    pub fn bytes(&self) -> &[u8] {
        let length = self.n_elements() * self.dtype().bytes();
        // SAFETY: that many bytes start there, all of them set, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.address().cast(), length) }
    }

    /// The elements as they lie in memory, to be changed: every pattern of bits is a float.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.n_elements() * self.dtype().bytes();
        // SAFETY: as above, and mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address_mut().cast(), length) }
    }

    /// Address of the first element.
    pub(crate) fn address(&self) -> *const core::ffi::c_void {
        match &self.elements {
            Elements::F64(own) => own.as_slice().as_ptr().cast(),
            Elements::F32(own) => own.as_slice().as_ptr().cast(),
            Elements::BF16(own) | Elements::F16(own) => own.as_slice().as_ptr().cast(),
        }
    }

    /// Address of the first element, to write through.
    pub(crate) fn address_mut(&mut self) -> *mut core::ffi::c_void {
        match &mut self.elements {
            Elements::F64(own) => own.as_mut_slice().as_mut_ptr().cast(),
            Elements::F32(own) => own.as_mut_slice().as_mut_ptr().cast(),
            Elements::BF16(own) | Elements::F16(own) => own.as_mut_slice().as_mut_ptr().cast(),
        }
    }
}
