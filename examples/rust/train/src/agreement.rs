//! Whether a mechanism does in candle's graph what its file says. Comes in: a mechanism. Goes out: how far outputs and
//! gradients, packed, run and unpacked as in training, are from the float64 reference. It trains nothing.

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use chunkwise::verify::random::Random;
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::{Bundle, Tensor as HostTensor};

use crate::mechanism::Mechanism;
use crate::model::within;

/// Sequences, tokens and heads that are compared: no whole number of chunks, and no two sizes the same.
const SIZES: [usize; 3] = [2, 75, 3];

/// What is allowed, relative to the norm of what the reference gives.
pub const ALLOWED: f64 = 1e-4;

/// The worst relative error of the output and of every gradient.
pub fn worst_error(mechanism: &Arc<Mechanism>) -> Result<f64> {
    let mut random = Random::new(0, "agreement");
    let rows: usize = SIZES.iter().product();
    let [batch, tokens, heads] = SIZES;
    let mut bundle = Bundle::new();
    let mut parts = Vec::new();
    for part in &mechanism.inputs {
        let numbers: Vec<f32> = (0..rows * part.width()).map(|_| random.normal() as f32).collect();
        let raw = Tensor::from_vec(numbers, (batch, tokens, heads, part.width()), &Device::Cpu)?;
        let ranged = within(&part.range, &raw)?;
        bundle.insert(part.name.clone(), widened(&ranged, &part.sizes)?);
        parts.push(ranged);
    }
    let packed = Var::from_tensor(&Tensor::cat(&parts, 3)?)?;
    let output = mechanism.apply(packed.as_tensor())?;
    let cotangent: Vec<f32> = (0..output.elem_count()).map(|_| random.normal() as f32).collect();
    let cotangent = Tensor::from_vec(cotangent, output.shape(), &Device::Cpu)?;
    let gradients = (&output * &cotangent)?.sum_all()?.backward()?;
    let gradient = gradients.get(packed.as_tensor()).context("no gradient came back")?;

    let name = &mechanism.output.name;
    bundle.insert(format!("grad_out.{name}"), widened(&cotangent, &mechanism.output.sizes)?);
    let expected = reference::run_backward(&mechanism.instance()?, &bundle)?;
    let mut worst = error(&output, &expected[&format!("out.{name}")])?;
    let mut begin = 0;
    for part in &mechanism.inputs {
        let own = gradient.narrow(3, begin, part.width())?;
        worst = worst.max(error(&own, &expected[&format!("grad.{}", part.name)])?);
        begin += part.width();
    }
    Ok(worst)
}

fn widened(tensor: &Tensor, sizes: &[usize]) -> Result<HostTensor> {
    let data = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    Ok(HostTensor { shape: [SIZES.as_slice(), sizes].concat(), data })
}

/// ‖found − expected‖ / ‖expected‖; not finite counts as infinite.
fn error(found: &Tensor, expected: &HostTensor) -> Result<f64> {
    let found = found.flatten_all()?.to_vec1::<f32>()?;
    let difference: f64 = found.iter().zip(&expected.data).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = expected.data.iter().map(|x| x.powi(2)).sum();
    let error = (difference / norm.max(1e-12)).sqrt();
    Ok(if error.is_finite() { error } else { f64::INFINITY })
}
