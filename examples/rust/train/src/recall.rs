//! Associative recall: pairs of a key and a value, one after another, then keys alone; each has to be answered with its
//! value. A key may come again with another value, and then the last one counts: a memory that can only add keeps
//! both. Comes in: a stream of random numbers. Goes out: batches. No sequence is ever seen twice.

use candle_core::{Device, Tensor};
use chunkwise::verify::random::Random;

use crate::text::Batch;

/// The shape of the task.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Different keys.
    pub keys: usize,
    /// Different values.
    pub values: usize,
    /// Pairs before the first question.
    pub pairs: usize,
    /// Questions, each about a key that was seen.
    pub questions: usize,
}

impl Task {
    /// Tokens a sequence.
    pub fn length(&self) -> usize {
        2 * self.pairs + self.questions
    }

    /// Sequences `[B, length]` and the answers to their questions `[B, questions]`.
    pub fn draw(&self, random: &mut Random, batch: usize) -> candle_core::Result<Batch> {
        let mut tokens = Vec::with_capacity(batch * self.length());
        let mut answers = Vec::with_capacity(batch * self.questions);
        for _ in 0..batch {
            let mut bound = vec![None; self.keys];
            let mut seen = Vec::new();
            for _ in 0..self.pairs {
                let (key, value) = (random.below(self.keys), self.keys + random.below(self.values));
                if bound[key].replace(value).is_none() {
                    seen.push(key);
                }
                tokens.extend([key as u32, value as u32]);
            }
            for _ in 0..self.questions {
                let key = random.choose(&seen);
                tokens.push(key as u32);
                answers.push(bound[key].expect("only keys that were seen are asked for") as u32);
            }
        }
        Ok(Batch {
            tokens: Tensor::from_vec(tokens, (batch, self.length()), &Device::Cpu)?,
            targets: Tensor::from_vec(answers, (batch, self.questions), &Device::Cpu)?,
        })
    }
}
