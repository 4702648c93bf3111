//! Trains two small language models that differ in nothing but their `.cw` file, then sets both a task of recall.
//!
//! Comes in: a text and two mechanisms. Goes out: one page of results, and an exit code: 0 when every check held and
//! the second mechanism recalled more than the first, 1 when not, 2 when something was missing. The recurrences run as
//! compiled code only; the rest of the models is candle's.

mod agreement;
mod chart;
mod functions;
mod mechanism;
mod model;
mod page;
mod recall;
mod text;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use chunkwise::verify::Report;
use clap::Parser;

use mechanism::Mechanism;
use model::{Config, Model};
use recall::Task;
use text::Text;
use training::{Outcome, Schedule};

/// Trains two small language models that differ in one .cw file only.
#[derive(Parser)]
struct Arguments {
    /// The text to learn
    #[arg(long)]
    text: PathBuf,
    /// What the text is called on the page
    #[arg(long, default_value = "the text")]
    corpus: String,
    /// Where the page goes
    #[arg(long, default_value = "index.html")]
    page: PathBuf,
    /// The two mechanisms; the second should recall more
    #[arg(long, num_args = 2, default_values = ["examples/mechanisms/linear_attention.cw", "examples/mechanisms/gated_delta_rule.cw"])]
    mechanisms: Vec<PathBuf>,
    /// Cases of the verification of each mechanism
    #[arg(long, default_value_t = 4)]
    cases: usize,
    /// Steps of the language models
    #[arg(long, default_value_t = 200, value_parser = at_least_one)]
    steps: usize,
    /// Steps of the recall
    #[arg(long, default_value_t = 400, value_parser = at_least_one)]
    recall_steps: usize,
    /// Decides parameters and data
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number from 1 on".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Size of every axis of a mechanism: keys, values.
const HEAD: usize = 32;
const LANGUAGE: Config = Config { vocabulary: 256, width: 128, heads: 4, blocks: 2, hidden: 384 };
const TASK: Task = Task { keys: 16, values: 16, pairs: 32, questions: 32 };
const RECALL: Config = Config { vocabulary: TASK.keys + TASK.values, width: 64, heads: 2, blocks: 2, hidden: 128 };
/// The recall counts as won from this difference on.
const MARGIN: f64 = 0.1;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything held that has to hold.
fn run(arguments: &Arguments) -> Result<bool> {
    let started = Instant::now();
    let text_schedule = Schedule {
        steps: arguments.steps,
        batch: 4,
        window: 256,
        rate: 4e-3,
        measure_every: (arguments.steps / 10).max(1),
        seed: arguments.seed,
    };
    let recall_schedule = Schedule {
        steps: arguments.recall_steps,
        batch: 16,
        window: TASK.length(),
        rate: 6e-3,
        measure_every: (arguments.recall_steps / 10).max(1),
        seed: arguments.seed,
    };
    let text = Text::read(&arguments.text, text_schedule.window)?;

    let mut mechanisms = Vec::new();
    for path in &arguments.mechanisms {
        let mechanism = Arc::new(Mechanism::load(path, HEAD).with_context(|| path.display().to_string())?);
        let verification = verify(&mechanism, arguments.cases);
        if !verification.failed.is_empty() {
            for failed in &verification.failed {
                eprintln!("{}: {} fails on {}", path.display(), failed.check.name(), failed.case);
            }
            return Ok(false);
        }
        let error = agreement::worst_error(&mechanism)?;
        println!("{}: as an operation of candle off by {error:.1e} at most, gradients included", mechanism.name);
        if error > agreement::ALLOWED {
            eprintln!("{}: {:.0e} is allowed", path.display(), agreement::ALLOWED);
            return Ok(false);
        }
        mechanisms.push((mechanism, verification));
    }

    println!("\nLearning {} ({} bytes):", arguments.corpus, text.n_bytes().0);
    let mut of_text = Vec::new();
    for (mechanism, _) in &mechanisms {
        let model = Model::new(LANGUAGE, mechanism, arguments.seed)?;
        let outcome = training::learn_text(&model, mechanism, &text, &text_schedule)?;
        say(mechanism, &outcome, &format!("{:.3} bits per byte of held-out text", outcome.last));
        of_text.push(outcome);
    }
    println!("\nLearning to recall ({} pairs, {} keys that come again):", TASK.pairs, TASK.keys);
    let mut of_recall = Vec::new();
    for (mechanism, _) in &mechanisms {
        let model = Model::new(RECALL, mechanism, arguments.seed)?;
        let outcome = training::learn_recall(&model, mechanism, &TASK, &recall_schedule)?;
        say(mechanism, &outcome, &format!("{:.1} % of new questions answered rightly", outcome.last * 100.0));
        of_recall.push(outcome);
    }

    let runs: Vec<page::Run> = mechanisms
        .iter()
        .zip(of_text.iter().zip(&of_recall))
        .map(|((mechanism, verification), (text, recall))| page::Run { mechanism, verification, text, recall })
        .collect();
    let setting = page::Setting {
        corpus: &arguments.corpus,
        n_bytes: text.n_bytes(),
        model: &describe(&LANGUAGE),
        text: &text_schedule,
        recall: &recall_schedule,
        task: &TASK,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        seconds: started.elapsed().as_secs_f64(),
    };
    write(&arguments.page, &page::page(&setting, &runs))?;
    let ahead = of_recall[1].last - of_recall[0].last;
    let (first, second) = (&mechanisms[0].0.name, &mechanisms[1].0.name);
    if ahead < MARGIN {
        println!("\n{second} recalls no better than {first} ({:+.1} points): that should not be.", ahead * 100.0);
        return Ok(false);
    }
    println!(
        "\n{second} recalls {:.1} points more than {first}. All of it took {:.0} s.",
        ahead * 100.0,
        setting.seconds
    );
    Ok(true)
}

fn verify(mechanism: &Mechanism, cases: usize) -> Report {
    let bar = training::progress_bar(cases, &mechanism.name);
    let report = mechanism.verify(cases, |done, _| {
        bar.set_position(done as u64);
        bar.set_message("cases verified");
    });
    bar.finish();
    println!(
        "{}: compiled in {}, chunks of {} tokens; {} checks of {cases} cases, {} failed",
        mechanism.name,
        chunkwise::report::duration(mechanism.compile_seconds),
        mechanism.chunk,
        report.rows.len(),
        report.failed.len()
    );
    report
}

fn say(mechanism: &Mechanism, outcome: &Outcome, result: &str) {
    println!(
        "{:<18} {result}; {:.0} tokens a second, {:.0} % of the time in the recurrence",
        mechanism.name,
        outcome.tokens_per_second,
        outcome.share_in_recurrence * 100.0
    );
}

fn describe(config: &Config) -> String {
    let Config { width, heads, blocks, hidden, .. } = config;
    format!(
        "A model has {blocks} blocks of width {width}: the recurrence with {heads} heads of {HEAD} keys and {HEAD} \
         values, then a feed-forward part of {hidden}."
    )
}

/// Writes the page beside its place first, so that nobody ever sees half of it.
fn write(path: &Path, page: &str) -> Result<()> {
    let beside = path.with_extension("html.part");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    std::fs::write(&beside, page)
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("{} cannot be written", path.display()))
}
