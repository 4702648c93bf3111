//! Learning. Comes in: a model and batches. Goes out: curves of what was measured on the way, and how fast it went.
//! It draws a progress bar and nothing else.

use std::time::{Duration, Instant};

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use chunkwise::verify::random::Random;
use indicatif::{ProgressBar, ProgressStyle};

use crate::mechanism::Mechanism;
use crate::model::Model;
use crate::recall::Task;
use crate::text::{Batch, Text};

/// How long and how fast to learn.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Steps.
    pub steps: usize,
    /// Sequences a step.
    pub batch: usize,
    /// Tokens a sequence, of a text.
    pub window: usize,
    /// Highest learning rate, reached after a twentieth of the steps.
    pub rate: f64,
    /// Steps from one measurement to the next.
    pub measure_every: usize,
    /// Decides the data.
    pub seed: u64,
}

/// What one run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// (step, loss while learning in bits)
    pub learning: Vec<(f64, f64)>,
    /// (step, what was measured)
    pub measured: Vec<(f64, f64)>,
    /// The last measurement.
    pub last: f64,
    /// Tokens learned from a second, measurements not counted.
    pub tokens_per_second: f64,
    /// The share of that time spent in the recurrence.
    pub share_in_recurrence: f64,
    /// Numbers learned.
    pub n_parameters: usize,
}

/// Batches of held-out text that are measured, the same ones every time.
const MEASURED_BATCHES: usize = 8;

/// New sequences that recall is measured on, the same ones every time.
const MEASURED_SEQUENCES: usize = 64;

/// Learns a text; what is measured is bits a byte of the held-out part.
pub fn learn_text(model: &Model, mechanism: &Mechanism, text: &Text, schedule: &Schedule) -> Result<Outcome> {
    let Schedule { batch, window, .. } = *schedule;
    let bits = || -> Result<f64> {
        let mut sum = 0.0;
        for number in 0..MEASURED_BATCHES {
            let Batch { tokens, targets } = text.held_out(number, MEASURED_BATCHES, batch, window)?;
            let logits = model.forward(&tokens)?;
            sum += f64::from(loss(&logits, &targets)?.to_scalar::<f32>()?) / std::f64::consts::LN_2;
        }
        Ok(sum / MEASURED_BATCHES as f64)
    };
    learn(
        model,
        mechanism,
        schedule,
        "bits per byte, held out",
        |random| {
            let Batch { tokens, targets } = text.draw(random, batch, window)?;
            let n_tokens = tokens.elem_count();
            Ok((loss(&model.forward(&tokens)?, &targets)?, n_tokens))
        },
        bits,
    )
}

/// Learns to recall; what is measured is the share of questions answered rightly, on new sequences.
pub fn learn_recall(model: &Model, mechanism: &Mechanism, task: &Task, schedule: &Schedule) -> Result<Outcome> {
    let answers = |tokens: &Tensor| model.forward(tokens)?.narrow(1, 2 * task.pairs, task.questions)?.contiguous();
    learn(
        model,
        mechanism,
        schedule,
        "questions answered rightly",
        |random| {
            let Batch { tokens, targets } = task.draw(random, schedule.batch)?;
            let n_tokens = tokens.elem_count();
            Ok((loss(&answers(&tokens)?, &targets)?, n_tokens))
        },
        || {
            let mut random = Random::new(schedule.seed, "new sequences");
            let Batch { tokens, targets } = task.draw(&mut random, MEASURED_SEQUENCES)?;
            let right = answers(&tokens)?.argmax(D::Minus1)?.eq(&targets)?;
            right.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>().map(f64::from)
        },
    )
}

/// Mean of −log p of the targets, in nats.
fn loss(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let classes = logits.dim(D::Minus1)?;
    candle_nn::loss::cross_entropy(&logits.reshape(((), classes))?, &targets.flatten_all()?)
}

fn learn(
    model: &Model,
    mechanism: &Mechanism,
    schedule: &Schedule,
    measures: &str,
    mut loss_of_a_batch: impl FnMut(&mut Random) -> Result<(Tensor, usize)>,
    mut measure: impl FnMut() -> Result<f64>,
) -> Result<Outcome> {
    let mut random = Random::new(schedule.seed, "batches");
    let config = ParamsAdamW { lr: schedule.rate, beta2: 0.99, weight_decay: 0.05, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(model.parameters(), config)?;
    let bar = progress_bar(schedule.steps, &mechanism.name);
    let (mut learning, mut measured) = (Vec::new(), Vec::new());
    let (mut spent, mut in_recurrence, mut n_tokens) = (Duration::ZERO, 0.0, 0);
    for step in 0..schedule.steps {
        if step % schedule.measure_every == 0 {
            measured.push((step as f64, measure()?));
        }
        let started = Instant::now();
        mechanism.take_seconds();
        optimizer.set_learning_rate(schedule.rate * rate_at(step, schedule.steps));
        let (loss, tokens) = loss_of_a_batch(&mut random)?;
        optimizer.backward_step(&loss)?;
        let bits = f64::from(loss.to_scalar::<f32>()?) / std::f64::consts::LN_2;
        spent += started.elapsed();
        in_recurrence += mechanism.take_seconds();
        n_tokens += tokens;
        learning.push((step as f64, bits));
        let (_, latest) = measured.last().expect("step 0 was measured");
        bar.set_message(format!("{latest:.3} {measures}"));
        bar.inc(1);
    }
    let last = measure()?;
    measured.push((schedule.steps as f64, last));
    bar.finish_with_message(format!("{last:.3} {measures}"));
    let seconds = spent.as_secs_f64();
    Ok(Outcome {
        learning,
        measured,
        last,
        tokens_per_second: n_tokens as f64 / seconds,
        share_in_recurrence: in_recurrence / seconds,
        n_parameters: model.n_parameters(),
    })
}

/// The share of the highest rate: up in a straight line, down along a cosine to a tenth.
fn rate_at(step: usize, steps: usize) -> f64 {
    let warm = (steps / 20).max(1);
    if step < warm {
        return (step + 1) as f64 / warm as f64;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    0.55 + 0.45 * (std::f64::consts::PI * done).cos()
}

/// A bar of one line; where nobody looks at a screen, it draws nothing.
pub fn progress_bar(steps: usize, name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:<18} {bar:32} {pos:>4}/{len} {elapsed:>4} {msg}")
        .expect("the template is fixed and well formed")
        .progress_chars("━╸ ");
    ProgressBar::new(steps as u64).with_style(style).with_prefix(name.to_owned())
}
