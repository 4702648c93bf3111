//! One axis in blocks, each on threads of its own: for calls with fewer heads and sequences than there are processors.
//!
//! Comes in: an artifact compiled for a block of an axis along which every position goes its own way (the compiler says
//! which axes are such), and tensors of the whole axis. Goes out: results of the whole axis. Every number is computed
//! by the same operations in the same order as without blocks, so results do not depend on how many there are. Only
//! forwards: a backward sums gradients over the axis, and the order of a sum must not depend on the number of threads.

use crate::cpu::Options;
use crate::error::LaunchError;
use crate::execute::CpuArtifact;
use crate::tensor::{HostTensor, Tensors};
use chunkwise_abi::{Access, ArgSignature};

/// An artifact for blocks of an axis.
#[derive(Debug)]
pub struct Blocks {
    /// Compiled for one block.
    pub artifact: CpuArtifact,
    /// The axis.
    pub axis: String,
    /// Its whole size, a multiple of `block`.
    pub full: usize,
    /// Positions a block.
    pub block: usize,
}

impl Blocks {
    /// Outputs and final states. With `offsets` the sequences are packed.
    pub fn run(&self, inputs: &Tensors, offsets: Option<&[usize]>, options: &Options) -> Result<Tensors, LaunchError> {
        let signature = &self.artifact.signature;
        let Some(kernel) = signature.forward.as_ref().or(signature.forward_saving.as_ref()) else {
            return self.artifact.run(inputs, offsets, options);
        };
        let n_blocks = self.full / self.block;
        let share = Options { threads: (options.threads / n_blocks).max(1), ..*options };
        let along =
            |name: &str, access: Access| kernel.args.iter().find(|arg| arg.name == name && arg.access == access);
        let run_block = |number: usize| -> Result<Tensors, LaunchError> {
            let mut part = Tensors::new();
            for (name, tensor) in inputs {
                let place = along(name, Access::Read).and_then(|arg| self.place(arg, tensor, self.full));
                let tensor = match place {
                    Some(place) => self.cut(tensor, place, number)?,
                    None => tensor.clone(),
                };
                part.insert(name.clone(), tensor);
            }
            self.artifact.run(&part, offsets, &share)
        };
        let parts: Vec<Result<Tensors, LaunchError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..n_blocks).map(|number| scope.spawn(move || run_block(number))).collect();
            let first = run_block(0);
            let others = workers.into_iter().map(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => Err(LaunchError::Signature { why: "a block's thread ended before its work".to_string() }),
            });
            std::iter::once(first).chain(others).collect()
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut results = Tensors::new();
        for (name, first) in &parts[0] {
            let place = along(name, Access::Write).and_then(|arg| self.place(arg, first, self.block));
            let whole = match place {
                Some(place) => join(&parts, name, place)?,
                // The same in every block.
                None => first.clone(),
            };
            results.insert(name.clone(), whole);
        }
        Ok(results)
    }

    /// Which dimension of a tensor is the axis.
    fn place(&self, arg: &ArgSignature, tensor: &HostTensor, size: usize) -> Option<usize> {
        let at = arg.axes.iter().position(|axis| *axis == self.axis)?;
        let place = tensor.shape().len().checked_sub(arg.inner.len())? + at;
        (tensor.shape()[place] == size).then_some(place)
    }

    /// One block of a tensor.
    fn cut(&self, tensor: &HostTensor, place: usize, number: usize) -> Result<HostTensor, LaunchError> {
        let mut shape = tensor.shape().to_vec();
        let inner: usize = shape[place + 1..].iter().product();
        shape[place] = self.block;
        let (row, piece) = (self.full * inner, self.block * inner);
        let values = tensor.to_f32();
        let mut cut = Vec::with_capacity(values.len() / self.full.max(1) * self.block);
        if row > 0 {
            for whole in values.chunks_exact(row) {
                cut.extend_from_slice(&whole[number * piece..(number + 1) * piece]);
            }
        }
        Ok(HostTensor::from_f32(tensor.dtype(), &shape, &cut)?)
    }
}

/// Blocks side by side again.
fn join(parts: &[Tensors], name: &str, place: usize) -> Result<HostTensor, LaunchError> {
    let first = &parts[0][name];
    let mut shape = first.shape().to_vec();
    let piece: usize = shape[place..].iter().product();
    shape[place] *= parts.len();
    let values: Vec<Vec<f32>> = parts.iter().map(|part| part[name].to_f32()).collect();
    let mut whole = Vec::with_capacity(values[0].len() * parts.len());
    for at in (0..values[0].len()).step_by(piece.max(1)) {
        for part in &values {
            whole.extend_from_slice(&part[at..at + piece]);
        }
    }
    Ok(HostTensor::from_f32(first.dtype(), &shape, &whole)?)
}
