//! Tensors: types, alignment, sizes.

use chunkwise_runtime::tensor::{ALIGNMENT, ElementType, HostTensor, ShapeError, count};

const TYPES: [ElementType; 4] = [ElementType::F64, ElementType::F32, ElementType::BF16, ElementType::F16];

#[test]
fn every_tensor_is_aligned_and_so_is_its_copy() {
    let mut kept = Vec::new();
    for n in 1..40 {
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let tensor = HostTensor::from_f32(ElementType::F32, &[n], &values).unwrap();
        let copy = tensor.clone();
        for tensor in [&tensor, &copy] {
            let slice = tensor.as_f32().unwrap();
            assert_eq!(slice.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(slice, values);
        }
        kept.push((tensor, copy));
    }
}

#[test]
fn numbers_are_rounded_once_to_the_nearest() {
    // Halfway between two bfloat16 after rounding to float32, not before: a second rounding would go up.
    let below_half = 1.0 + 2f64.powi(-8) - 2f64.powi(-40);
    let expected = [(ElementType::F64, below_half), (ElementType::F32, 1.00390625), (ElementType::BF16, 1.0)];
    for (dtype, rounded) in expected {
        let tensor = HostTensor::from_f64(dtype, &[1], &[below_half]).unwrap();
        assert_eq!(tensor.to_f64(), [rounded], "{}", dtype.name());
    }
    let wide = HostTensor::from_f64(ElementType::F64, &[1], &[below_half]).unwrap();
    assert_eq!(wide.to_type(ElementType::BF16).unwrap().to_f64(), [1.0]);
    // Largest float16 is 65504; bfloat16 reaches as far as float32, with 8 bits.
    let large = [65504.0, 70000.0, -1e300, f64::NAN];
    let half = HostTensor::from_f64(ElementType::F16, &[4], &large).unwrap().to_f64();
    assert_eq!(half[..3], [65504.0, f64::INFINITY, f64::NEG_INFINITY]);
    assert!(half[3].is_nan());
    assert_eq!(HostTensor::from_f64(ElementType::BF16, &[1], &[70000.0]).unwrap().to_f32(), [70144.0]);
}

#[test]
fn all_types_hold_small_integers() {
    let values: Vec<f64> = (0..24).map(|i| f64::from(i) - 12.0).collect();
    for dtype in TYPES {
        let tensor = HostTensor::from_f64(dtype, &[2, 3, 4], &values).unwrap();
        assert_eq!((tensor.shape(), tensor.dtype(), tensor.n_elements()), (&[2usize, 3, 4][..], dtype, 24));
        assert_eq!(tensor.to_f64(), values);
        for other in TYPES {
            let converted = tensor.to_type(other).unwrap();
            assert_eq!((converted.dtype(), converted.to_f64()), (other, values.clone()));
        }
        let narrow: Vec<f32> = values.iter().map(|x| *x as f32).collect();
        assert_eq!(HostTensor::from_f32(dtype, &[24], &narrow).unwrap().to_f32(), narrow);
    }
}

#[test]
fn zeros_are_zero_and_poison_is_not_a_number() {
    for dtype in TYPES {
        assert_eq!(HostTensor::zeros(dtype, &[3]).unwrap().to_f64(), [0.0; 3]);
        assert!(HostTensor::poisoned(dtype, &[3]).unwrap().to_f64().iter().all(|x| x.is_nan()));
        let mut tensor = HostTensor::zeros(dtype, &[3]).unwrap();
        tensor.poison();
        assert!(tensor.to_f32().iter().all(|x| x.is_nan()));
    }
}

#[test]
fn sizes_beyond_memory_are_an_error() {
    let too_large = |shape: &[usize]| {
        let error = HostTensor::zeros(ElementType::F32, shape).unwrap_err();
        assert_eq!(error, ShapeError::TooLarge { shape: shape.to_vec() });
    };
    too_large(&[usize::MAX, 2]);
    too_large(&[usize::MAX]);
    too_large(&[1 << 62]);
    too_large(&[1 << 31, 1 << 30]);
    assert_eq!(HostTensor::zeros(ElementType::F64, &[usize::MAX, 0, usize::MAX]).unwrap().n_elements(), 0);
    assert_eq!((count(&[]), count(&[3, 0]), count(&[usize::MAX, 2])), (Some(1), Some(0), None));
    let error = HostTensor::from_f64(ElementType::F32, &[2, 2], &[1.0]).unwrap_err();
    assert_eq!(error.to_string(), "1 numbers do not fill a tensor of shape [2, 2]");
}

#[test]
fn memory_can_take_another_shape_of_the_same_size() {
    let tensor = HostTensor::from_f64(ElementType::F32, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let tensor = tensor.reshaped(&[3, 1, 2]).unwrap();
    assert_eq!((tensor.shape(), tensor.to_f64()[5]), (&[3usize, 1, 2][..], 6.0));
    assert!(tensor.reshaped(&[7]).is_none());
}
