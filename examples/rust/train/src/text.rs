//! A text as bytes to learn from. Comes in: a file. Goes out: batches of windows, at random for learning and always the
//! same ones, from the end of the text, for measuring. What is measured is never learned from.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use chunkwise::verify::random::Random;

/// Tokens and what follows each: both `[B, T]`.
pub struct Batch {
    /// What the model sees.
    pub tokens: Tensor,
    /// What it has to say.
    pub targets: Tensor,
}

/// The text.
pub struct Text {
    learned: Vec<u8>,
    held_out: Vec<u8>,
}

impl Text {
    /// Reads a text; its last tenth is held out.
    pub fn read(path: &Path, window: usize) -> Result<Text> {
        let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let split = bytes.len() / 10 * 9;
        ensure!(bytes.len() - split > 2 * window, "{} is too short a text: {} bytes", path.display(), bytes.len());
        let held_out = bytes[split..].to_vec();
        let learned = bytes[..split].to_vec();
        Ok(Text { learned, held_out })
    }

    /// Bytes to learn from, and bytes held out.
    pub fn n_bytes(&self) -> (usize, usize) {
        (self.learned.len(), self.held_out.len())
    }

    /// Windows from anywhere in what is learned from.
    pub fn draw(&self, random: &mut Random, batch: usize, window: usize) -> candle_core::Result<Batch> {
        let starts: Vec<usize> = (0..batch).map(|_| random.below(self.learned.len() - window - 1)).collect();
        windows(&self.learned, &starts, window)
    }

    /// Windows at equal distances over what is held out.
    pub fn held_out(&self, number: usize, of: usize, batch: usize, window: usize) -> candle_core::Result<Batch> {
        let room = self.held_out.len() - window - 1;
        let starts: Vec<usize> = (0..batch).map(|row| room * (number * batch + row) / (of * batch)).collect();
        windows(&self.held_out, &starts, window)
    }
}

fn windows(bytes: &[u8], starts: &[usize], window: usize) -> candle_core::Result<Batch> {
    let take = |shift: usize| {
        let ids: Vec<u32> = starts
            .iter()
            .flat_map(|start| &bytes[start + shift..start + shift + window])
            .map(|byte| u32::from(*byte))
            .collect();
        Tensor::from_vec(ids, (starts.len(), window), &Device::Cpu)
    };
    Ok(Batch { tokens: take(0)?, targets: take(1)? })
}
