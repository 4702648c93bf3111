//! A small language model whose only sequence mixer is a recurrence. Comes in: token ids `[B, T]`. Goes out: logits
//! `[B, T, vocabulary]`. Every parameter is drawn from a stream of its own name, so two models that differ in their
//! mechanism begin with the same numbers wherever they have the same parameter.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use chunkwise::verify::random::Random;
use chunkwise_dsl::program::Range;

use crate::functions::{normalised, of_unit_length, squared_relu};
use crate::mechanism::{Mechanism, Part};

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Different tokens.
    pub vocabulary: usize,
    /// Numbers a token between blocks.
    pub width: usize,
    /// Heads of the recurrence.
    pub heads: usize,
    /// Blocks.
    pub blocks: usize,
    /// Numbers a token inside the feed-forward part.
    pub hidden: usize,
}

/// The model.
pub struct Model {
    config: Config,
    mechanism: Arc<Mechanism>,
    embedding: Tensor,
    blocks: Vec<Block>,
    unembedding: Tensor,
    parameters: Vec<Var>,
}

struct Block {
    /// Weights, and for a gate its bias, of each input of the recurrence.
    projections: Vec<(Tensor, Option<Tensor>)>,
    out: Tensor,
    up: Tensor,
    down: Tensor,
}

/// Draws parameters and keeps them for the optimiser.
struct Drawing {
    seed: u64,
    parameters: Vec<Var>,
}

impl Drawing {
    fn normal(&mut self, name: &str, shape: (usize, usize), deviation: f64) -> Result<Tensor> {
        let mut random = Random::new(self.seed, name);
        let numbers: Vec<f32> = (0..shape.0 * shape.1).map(|_| (random.normal() * deviation) as f32).collect();
        self.keep(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
    }

    fn keep(&mut self, tensor: Tensor) -> Result<Tensor> {
        let var = Var::from_tensor(&tensor)?;
        self.parameters.push(var.clone());
        Ok(var.as_tensor().clone())
    }
}

impl Model {
    /// Draws a model.
    pub fn new(config: Config, mechanism: &Arc<Mechanism>, seed: u64) -> Result<Model> {
        let mut drawing = Drawing { seed, parameters: Vec::new() };
        let root = |fan_in: usize| (fan_in as f64).powf(-0.5);
        let Config { vocabulary, width, heads, hidden, .. } = config;
        let embedding = drawing.normal("embedding", (vocabulary, width), 0.5)?;
        let mut blocks = Vec::new();
        for number in 0..config.blocks {
            let mut projections = Vec::new();
            for part in &mechanism.inputs {
                let name = format!("{number}.{}", part.name);
                // A projection sees the token and the one before it.
                let weight = drawing.normal(&name, (2 * width, heads * part.width()), root(2 * width))?;
                let bias = match gate_bias(part, heads) {
                    Some(bias) => {
                        Some(drawing.keep(Tensor::from_vec(bias, (1, heads * part.width()), &Device::Cpu)?)?)
                    }
                    None => None,
                };
                projections.push((weight, bias));
            }
            let mixed = heads * mechanism.output.width();
            let calm = (2.0 * config.blocks as f64).powf(-0.5);
            blocks.push(Block {
                projections,
                out: drawing.normal(&format!("{number}.out"), (mixed, width), root(mixed) * calm)?,
                up: drawing.normal(&format!("{number}.up"), (width, hidden), root(width))?,
                down: drawing.normal(&format!("{number}.down"), (hidden, width), root(hidden) * calm)?,
            });
        }
        let unembedding = drawing.normal("unembedding", (width, vocabulary), root(width))?;
        let mechanism = Arc::clone(mechanism);
        Ok(Model { config, mechanism, embedding, blocks, unembedding, parameters: drawing.parameters })
    }

    /// What the optimiser changes.
    pub fn parameters(&self) -> Vec<Var> {
        self.parameters.clone()
    }

    /// How many numbers are learned.
    pub fn n_parameters(&self) -> usize {
        self.parameters.iter().map(|it| it.elem_count()).sum()
    }

    /// Logits `[B, T, vocabulary]` of what follows each token.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        let mut x = self.embedding.index_select(&tokens.flatten_all()?, 0)?;
        for block in &self.blocks {
            x = (&x + self.mix(block, &normalised(&x)?, batch, length)?)?;
            let hidden = squared_relu(&normalised(&x)?.matmul(&block.up)?)?;
            x = (x + hidden.matmul(&block.down)?)?;
        }
        normalised(&x)?.matmul(&self.unembedding)?.reshape((batch, length, self.config.vocabulary))
    }

    /// The recurrence of a block with its projections: rows `[B·T, width]` to the same.
    fn mix(&self, block: &Block, x: &Tensor, batch: usize, length: usize) -> Result<Tensor> {
        let Config { width, heads, .. } = self.config;
        let rows = batch * length;
        let by_token = x.reshape((batch, length, width))?;
        let nothing = Tensor::zeros((batch, 1, width), DType::F32, x.device())?;
        let previous = Tensor::cat(&[&nothing, &by_token.narrow(1, 0, length - 1)?], 1)?.reshape((rows, width))?;
        let seen = Tensor::cat(&[x, &previous], 1)?;
        let mut parts = Vec::new();
        for (part, (weight, bias)) in self.mechanism.inputs.iter().zip(&block.projections) {
            let mut raw = seen.matmul(weight)?;
            if let Some(bias) = bias {
                raw = raw.broadcast_add(bias)?;
            }
            let raw = raw.reshape((rows, heads, part.width()))?;
            parts.push(within(&part.range, &raw)?);
        }
        let packed = Tensor::cat(&parts, 2)?.reshape((batch, length, heads, self.mechanism.packed_width()))?;
        let mixed = self.mechanism.apply(&packed)?;
        // Each head's output is brought to the same length: a sum without decay grows with the text.
        normalised(&mixed)?.reshape((rows, heads * self.mechanism.output.width()))?.matmul(&block.out)
    }
}

/// Brings numbers into the range that the file declares for an input.
pub fn within(range: &Range, raw: &Tensor) -> Result<Tensor> {
    match range {
        Range::Any => Ok(raw.clone()),
        Range::Unit(_) => of_unit_length(raw),
        Range::Interval { lo, hi, .. } => match (lo.is_finite(), hi.is_finite()) {
            // log sigmoid, and its mirror image: smooth, and close to the bound where the gate is open.
            (false, true) => softplus(&raw.neg()?)?.neg()? + *hi,
            (true, false) => softplus(raw)? + *lo,
            (true, true) => candle_nn::ops::sigmoid(raw)?.affine(hi - lo, *lo),
            (false, false) => Ok(raw.clone()),
        },
    }
}

fn softplus(x: &Tensor) -> Result<Tensor> {
    (x.exp()? + 1.0)?.log()
}

/// What a gate begins with. A log decay begins with memories from a few tokens to a few hundred, head by head.
fn gate_bias(part: &Part, heads: usize) -> Option<Vec<f32>> {
    let (slowest, fastest) = (6.0, 2.0);
    match &part.range {
        Range::Any | Range::Unit(_) => None,
        Range::Interval { lo, hi, .. } if lo.is_infinite() && *hi == 0.0 => Some(
            (0..heads)
                .flat_map(|head| {
                    let share = head as f32 / (heads.max(2) - 1) as f32;
                    std::iter::repeat_n(fastest + (slowest - fastest) * share, part.width())
                })
                .collect(),
        ),
        Range::Interval { .. } => Some(vec![0.0; heads * part.width()]),
    }
}
