//! Two functions of the model with their gradients, each in one pass over memory where candle's own operations would
//! take a dozen: on a small model those passes are most of the time. Comes in: contiguous float32 tensors. Goes out:
//! tensors of the same shape.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Added to a sum of squares before its root, so that nothing is divided by zero.
const EPSILON: f32 = 1e-6;

/// Every row of the last axis divided by the root of its mean square.
pub fn normalised(x: &Tensor) -> Result<Tensor> {
    let count = x.dim(candle_core::D::Minus1)? as f32;
    x.contiguous()?.apply_op1(Normalise { count })
}

/// Every row of the last axis divided by its length.
pub fn of_unit_length(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Normalise { count: 1.0 })
}

/// max(x, 0)²
pub fn squared_relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(SquaredRelu)
}

/// x / √(Σ x² / count + ε) along the last axis.
struct Normalise {
    count: f32,
}

impl Normalise {
    fn factor(&self, row: &[f32]) -> f32 {
        (row.iter().map(|x| x * x).sum::<f32>() / self.count + EPSILON).sqrt().recip()
    }
}

impl CustomOp1 for Normalise {
    fn name(&self) -> &'static str {
        "normalise"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width(layout.shape())) {
            let factor = self.factor(row);
            y.extend(row.iter().map(|x| x * factor));
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    // With y = x·r and r = (Σ x² / n + ε)^(−1/2): ∂x = r · (∂y − y · (∂y·y) / n).
    fn bwd(&self, x: &Tensor, y: &Tensor, y_adj: &Tensor) -> Result<Option<Tensor>> {
        let width = width(x.shape());
        let (x_all, y_all, y_adj_all) = (vector(x)?, vector(y)?, vector(y_adj)?);
        let mut x_adj = Vec::with_capacity(x_all.len());
        let rows = x_all.chunks_exact(width).zip(y_all.chunks_exact(width)).zip(y_adj_all.chunks_exact(width));
        for ((x, y), y_adj) in rows {
            let factor = self.factor(x);
            let along = y.iter().zip(y_adj).map(|(y, adj)| y * adj).sum::<f32>() / self.count;
            x_adj.extend(y.iter().zip(y_adj).map(|(y, adj)| factor * (adj - y * along)));
        }
        Ok(Some(Tensor::from_vec(x_adj, x.shape(), x.device())?))
    }
}

/// max(x, 0)²
struct SquaredRelu;

impl CustomOp1 for SquaredRelu {
    fn name(&self) -> &'static str {
        "squared relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = numbers(storage, layout)?.iter().map(|x| x.max(0.0).powi(2)).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, y_adj: &Tensor) -> Result<Option<Tensor>> {
        let x_adj: Vec<f32> = vector(x)?.iter().zip(vector(y_adj)?).map(|(x, adj)| 2.0 * x.max(0.0) * adj).collect();
        Ok(Some(Tensor::from_vec(x_adj, x.shape(), x.device())?))
    }
}

fn width(shape: &Shape) -> usize {
    shape.dims().last().copied().unwrap_or(1).max(1)
}

fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((begin, end)) => Ok(&storage.as_slice::<f32>()?[begin..end]),
        None => candle_core::bail!("the tensor has to be contiguous"),
    }
}

fn vector(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}
