//! Which schedule is fastest, by arithmetic.
//!
//! Comes in: a graph, a GPU, and how much there is to do. Goes out: an estimate for each schedule. Estimates are of what bounds a kernel (memory, arithmetic, or one step waiting for the next); they are for
//! choosing, not for promising. Never runs anything, never looks at data, and in batch-invariant mode not at the batch.

use super::{Schedule, Stages};
use crate::error::CompileError;
use crate::graph::ir::Graph;
use crate::graph::split::price::{Prices, Work, graph_work};
use crate::graph::split::{Stage, split_at};

/// A GPU, as far as the choice needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes a second, of all together.
    pub bytes: f64,
    /// Operations a second on the tensor cores, of all together, in products as small as ours.
    pub tensor: f64,
    /// Other operations a second, of all together.
    pub vector: f64,
    /// Seconds until a step that waits for another can begin: a barrier and the way through shared memory.
    pub turn: f64,
    /// Seconds from one kernel to the next.
    pub launch: f64,
    /// Warp groups can multiply.
    pub warpgroups: bool,
}

impl Gpu {
    /// An H200.
    pub const H200: Gpu = Gpu {
        multiprocessors: 132,
        bytes: 4.3e12,
        tensor: 3.9e14,
        vector: 3.0e13,
        turn: 0.15e-6,
        launch: 3e-6,
        warpgroups: true,
    };
    /// One that is known by its compute capability and the number of its multiprocessors: as fast for each of these as
    /// the one of its generation above or below.
    pub fn of(capability: (u32, u32), multiprocessors: usize) -> Gpu {
        let like = if capability >= (9, 0) { Gpu::H200 } else { Gpu::A100 };
        let times = multiprocessors.max(1) as f64 / like.multiprocessors as f64;
        let (bytes, tensor, vector) = (like.bytes * times, like.tensor * times, like.vector * times);
        // Only compute capability 9.0 has them, no later one.
        let warpgroups = capability == (9, 0);
        Gpu { multiprocessors: multiprocessors.max(1), bytes, tensor, vector, warpgroups, ..like }
    }

    /// An A100 of 80 GB.
    pub const A100: Gpu = Gpu {
        multiprocessors: 108,
        bytes: 1.8e12,
        tensor: 1.5e14,
        vector: 0.9e13,
        turn: 0.2e-6,
        launch: 3e-6,
        warpgroups: false,
    };
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Heads of all sequences together: what a fused kernel has blocks for.
    pub items: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
}

impl Load {
    /// More heads than most GPUs have multiprocessors: 8 sequences of 16 heads.
    pub const MANY: Load = Load { items: 128, tokens: 2048 };
    /// A quarter of that.
    pub const SOME: Load = Load { items: 32, tokens: 16384 };
    /// One sequence of 8 heads.
    pub const FEW: Load = Load { items: 8, tokens: 32768 };

    /// What a call brings, rounded up to powers of two, so that nearly equal calls share their code. With
    /// `batch_invariant` neither the number of sequences nor their length counts, which belong
    /// to the batch, but only the heads, which belong to the model: a sequence of middling length by itself.
    pub fn of(sequences: usize, heads: usize, tokens: usize, batch_invariant: bool) -> Load {
        match batch_invariant {
            true => Load { items: heads.max(1), tokens: 4096 },
            false => {
                let up = |n: usize| n.max(1).checked_next_power_of_two().unwrap_or(n);
                Load { items: up(sequences.saturating_mul(heads)), tokens: up(tokens) }
            }
        }
    }
}

/// What a schedule is estimated to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Which.
    pub stages: Stages,
    /// Seconds.
    pub seconds: f64,
    /// Seconds of each of its kernels.
    pub kernels: Vec<(&'static str, f64)>,
}

/// Every schedule's estimate, from the fewest kernels to the most.
pub fn estimates(graph: &Graph, gpu: &Gpu, load: &Load) -> Result<Vec<Estimate>, CompileError> {
    let prices = Prices::default();
    let mut found = Vec::new();
    for stages in Stages::ALL {
        let parts = split_at(graph, &Schedule::of(stages), &prices)?;
        let kernels: Vec<(&'static str, f64)> =
            parts.iter().map(|stage| (stage.name, kernel(stage, &prices, gpu, load))).collect();
        found.push(Estimate { stages, seconds: kernels.iter().map(|(_, seconds)| seconds).sum(), kernels });
    }
    Ok(found)
}

/// Seconds of one kernel.
fn kernel(stage: &Stage, prices: &Prices, gpu: &Gpu, load: &Load) -> f64 {
    let work = graph_work(&stage.graph, prices);
    let chunks = load.tokens.div_ceil(stage.graph.tokens).max(1) as f64;
    let items = load.items as f64;
    let sms = gpu.multiprocessors as f64;
    let Work { bytes, tensor, vector, turns } = work;
    // One block alone on a multiprocessor.
    let arithmetic = tensor as f64 / (gpu.tensor / sms) + vector as f64 / (gpu.vector / sms);
    let waiting = turns as f64 * gpu.turn;
    let memory = items * chunks * bytes as f64 / gpu.bytes;
    let seconds = match stage.graph.carries.is_empty() {
        // Every chunk has its block; they wait beside each other, several on a multiprocessor.
        true => {
            let blocks = items * chunks;
            let rounds = (blocks / sms).ceil();
            let beside = rounds.min(RESIDENT);
            memory.max(rounds * arithmetic.max(waiting / beside)).max(arithmetic + waiting)
        }
        // Chunks one after another; heads beside each other.
        false => {
            let rounds = (items / sms).ceil();
            let beside = rounds.min(RESIDENT);
            memory.max(chunks * rounds * (arithmetic + waiting / beside))
        }
    };
    seconds + gpu.launch
}

/// Blocks that fit on a multiprocessor together.
const RESIDENT: f64 = 2.0;
