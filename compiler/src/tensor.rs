//! Plain host tensors: float64, row-major, named as in a `.safetensors` file.
//!
//! Comes from whoever read or drew the data, goes to the interpreters and to the comparison of their results. Never
//! reads a file, never rounds, never looks at strides.

use indexmap::IndexMap;

/// A dense float64 tensor; the last dimension varies fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extent of every dimension; empty for a single number.
    pub shape: Vec<usize>,
    /// The elements, as many as the product of `shape`.
    pub data: Vec<f64>,
}

/// Tensors by name. Into a recurrence go `NAME` `[B, T, H, axes…]`, a parameter `NAME` `[H, axes…]`, `init.STATE`
/// `[B, H, axes…]`, and for the backward pass `grad_out.NAME` and `grad_final.STATE`; `init.*` and the cotangents may
/// be absent and are then zero. Out of it come `out.NAME`, `final.STATE`, `grad.NAME` and `grad_init.STATE`.
pub type Bundle = IndexMap<String, Tensor>;

impl Tensor {
    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Tensor {
        Tensor::from_fn(shape, |_| 0.0)
    }

    /// Every element from its position in memory order.
    pub fn from_fn(shape: &[usize], element: impl FnMut(usize) -> f64) -> Tensor {
        let elements = elements(shape).expect("a tensor one asks for fits into memory");
        Tensor { shape: shape.to_vec(), data: (0..elements).map(element).collect() }
    }

    /// Euclidean norm of all elements.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// ‖self − reference‖ / max(‖reference‖, floor). Infinite where the shapes differ or a NaN stands on either side.
    pub fn relative_error(&self, reference: &Tensor, floor: f64) -> f64 {
        if self.shape != reference.shape || self.data.len() != reference.data.len() {
            return f64::INFINITY;
        }
        let distance = self.data.iter().zip(&reference.data).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        if distance == 0.0 {
            return 0.0;
        }
        let error = distance / reference.norm().max(floor);
        if error.is_nan() { f64::INFINITY } else { error }
    }
}

/// How many elements a shape asks for, `None` beyond what can be counted. One extent of 0 makes it 0, however large
/// the others.
pub fn elements(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_error_is_relative_down_to_the_floor() {
        let reference = Tensor { shape: vec![2], data: vec![3.0, 4.0] };
        let off = Tensor { shape: vec![2], data: vec![3.0, 4.5] };
        assert_eq!(off.relative_error(&reference, 0.0), 0.1);
        assert_eq!(off.relative_error(&reference, 50.0), 0.01);
        assert_eq!(reference.relative_error(&reference, 0.0), 0.0);
        let zero = Tensor::zeros(&[2]);
        assert_eq!(zero.relative_error(&zero, 0.0), 0.0);
        assert_eq!(off.relative_error(&zero, 0.0), f64::INFINITY);
    }

    #[test]
    fn relative_error_of_anything_not_comparable_is_infinite() {
        let reference = Tensor { shape: vec![2], data: vec![3.0, 4.0] };
        for wrong in [
            Tensor { shape: vec![2], data: vec![3.0, f64::NAN] },
            Tensor { shape: vec![2], data: vec![3.0, f64::INFINITY] },
            Tensor { shape: vec![1, 2], data: vec![3.0, 4.0] },
        ] {
            assert_eq!(wrong.relative_error(&reference, 1.0), f64::INFINITY);
            assert_eq!(reference.relative_error(&wrong, 1.0), f64::INFINITY);
        }
    }
}
