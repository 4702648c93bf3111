//! Parts of tensors: some sequences of a batch, some tokens of a sequence. In: a bundle; out: another. It never
//! computes with a number.

use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::Program;

use crate::binding::{self, Leading};

/// The leading dimensions of a tensor that goes into a run or comes out of it; `None` for a name that does neither.
pub fn leading(program: &Program, name: &str) -> Option<Leading> {
    if let Some(slot) = binding::slots(program).into_iter().find(|slot| slot.name == name) {
        return Some(slot.leading);
    }
    let (prefix, rest) = name.split_once('.')?;
    match prefix {
        "out" => Some(Leading::Token),
        "final" | "grad_init" => Some(Leading::Sequence),
        "grad" => leading(program, rest),
        _ => None,
    }
}

/// One sequence of a batch, as a batch of one.
pub fn sequence(program: &Program, bundle: &Bundle, number: usize) -> Bundle {
    map(program, bundle, |leading, tensor| match leading {
        Leading::Head => tensor.clone(),
        Leading::Token | Leading::Sequence => range(tensor, 0, number..number + 1),
    })
}

/// Some tokens of every sequence; what has no tokens stays whole.
pub fn tokens(program: &Program, bundle: &Bundle, from_to: std::ops::Range<usize>) -> Bundle {
    map(program, bundle, |leading, tensor| match leading {
        Leading::Token => range(tensor, 1, from_to.clone()),
        Leading::Head | Leading::Sequence => tensor.clone(),
    })
}

fn map(program: &Program, bundle: &Bundle, part: impl Fn(Leading, &Tensor) -> Tensor) -> Bundle {
    let parts = bundle.iter().filter_map(|(name, tensor)| Some((name.clone(), part(leading(program, name)?, tensor))));
    parts.collect()
}

/// A range of positions along one dimension.
pub fn range(tensor: &Tensor, dimension: usize, positions: std::ops::Range<usize>) -> Tensor {
    let outer: usize = tensor.shape[..dimension].iter().product();
    let inner: usize = tensor.shape[dimension + 1..].iter().product();
    let extent = tensor.shape[dimension];
    let mut shape = tensor.shape.clone();
    shape[dimension] = positions.len();
    let mut data = Vec::with_capacity(outer * positions.len() * inner);
    for block in 0..outer {
        let begin = (block * extent + positions.start) * inner;
        data.extend_from_slice(&tensor.data[begin..begin + positions.len() * inner]);
    }
    Tensor { shape, data }
}

/// Two tensors one after the other along one dimension.
pub fn join(first: &Tensor, second: &Tensor, dimension: usize) -> Tensor {
    let outer: usize = first.shape[..dimension].iter().product();
    let mut shape = first.shape.clone();
    shape[dimension] += second.shape[dimension];
    let (a, b) = (first.data.len() / outer.max(1), second.data.len() / outer.max(1));
    let mut data = Vec::with_capacity(first.data.len() + second.data.len());
    for block in 0..outer {
        data.extend_from_slice(&first.data[block * a..(block + 1) * a]);
        data.extend_from_slice(&second.data[block * b..(block + 1) * b]);
    }
    Tensor { shape, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_joined_again() {
        let whole = Tensor::from_fn(&[2, 5, 3], |i| i as f64);
        for dimension in 0..3 {
            for at in 0..=whole.shape[dimension] {
                let (a, b) = (range(&whole, dimension, 0..at), range(&whole, dimension, at..whole.shape[dimension]));
                assert_eq!(join(&a, &b, dimension), whole);
            }
        }
        assert_eq!(range(&whole, 1, 2..3).data, [6.0, 7.0, 8.0, 21.0, 22.0, 23.0]);
    }
}
