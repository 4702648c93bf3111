//! Data for the tests, the same in every run, and the check of gradients by finite differences.

use chunkwise_compiler::reference::{run, run_backward};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::TensorKind;

/// Numbers without pattern (splitmix64).
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    /// Evenly from `lo..hi`.
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        lo + (hi - lo) * (bits >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn tensor(&mut self, shape: &[usize], lo: f64, hi: f64) -> Tensor {
        Tensor::from_fn(shape, |_| self.uniform(lo, hi))
    }
}

/// Every input, parameter, initial state and cotangent of an instance, evenly from `lo..hi` (cotangents from −1..1).
pub fn bundle(instance: &Instance, [batch, tokens, heads]: [usize; 3], lo: f64, hi: f64, seed: u64) -> Bundle {
    let mut draw = Draw::new(seed);
    let mut bundle = Bundle::new();
    let program = instance.program;
    for tensor in &program.tensors {
        let leading = match tensor.kind {
            TensorKind::Input => vec![batch, tokens, heads],
            TensorKind::Param => vec![heads],
        };
        let shape = [leading, instance.shape(&tensor.axes)].concat();
        bundle.insert(tensor.name.clone(), draw.tensor(&shape, lo, hi));
    }
    for state in &program.states {
        let shape = [vec![batch, heads], instance.shape(&state.axes)].concat();
        bundle.insert(format!("init.{}", state.name), draw.tensor(&shape, lo, hi));
        bundle.insert(format!("grad_final.{}", state.name), draw.tensor(&shape, -1.0, 1.0));
    }
    for output in &program.outputs {
        let shape = [vec![batch, tokens, heads], instance.shape(&output.axes)].concat();
        bundle.insert(format!("grad_out.{}", output.name), draw.tensor(&shape, -1.0, 1.0));
    }
    bundle
}

/// Σ result · cotangent, the number whose gradient the backward pass gives.
fn pairing(instance: &Instance, bundle: &Bundle) -> f64 {
    let results = run(instance, bundle).expect("the drawn tensors fit");
    let pair = |result: &Tensor, cotangent: &Tensor| -> f64 {
        result.data.iter().zip(&cotangent.data).map(|(x, y)| x * y).sum()
    };
    results
        .iter()
        .map(|(name, result)| match name.split_once('.') {
            Some((prefix, name)) => pair(result, &bundle[&format!("grad_{prefix}.{name}")]),
            None => unreachable!("a result is out.NAME or final.STATE, not {name}"),
        })
        .sum()
}

/// Compares every element of every gradient with a central difference of fourth order.
pub fn check_gradients(what: &str, instance: &Instance, bundle: &Bundle) {
    let results = run_backward(instance, bundle).expect("the drawn tensors fit");
    let step = 2e-4;
    let size = pairing(instance, bundle).abs();
    let mut n_checked = 0;
    for (name, gradient) in &results {
        let Some(of) = name
            .strip_prefix("grad.")
            .map(str::to_string)
            .or_else(|| name.strip_prefix("grad_init.").map(|state| format!("init.{state}")))
        else {
            continue;
        };
        for at in 0..gradient.data.len() {
            let moved = |by: f64| {
                let mut bundle = bundle.clone();
                bundle[&of].data[at] += by * step;
                pairing(instance, &bundle)
            };
            let difference = (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * step);
            // What the difference leaves out, and what subtracting numbers of that size loses.
            let tolerance = 2e-9 * difference.abs().max(1.0) + 1e-11 * size;
            assert!(
                (gradient.data[at] - difference).abs() <= tolerance,
                "{what}: {name}[{at}] is {}, the finite difference {difference}",
                gradient.data[at]
            );
            n_checked += 1;
        }
    }
    assert!(n_checked > 0, "{what}: there was no gradient to check");
}
