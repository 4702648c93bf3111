//! `chunkwise bench`: how fast compiled code is on this machine. In: a program and sizes; out: the median of several
//! runs, forward and with gradients. It checks nothing: that is what `verify` does.

use std::path::PathBuf;

use crate::failure::Failure;
use crate::options::{FormChoice, InsideChoice, Where, Which};
use crate::precision::Precision;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes that are not given are 64, and 2 for an axis that a `for` runs over. Data are drawn from the declared ranges.
`forward+backward` is one forward that keeps what the gradients need, and the gradients. On a GPU the floor is the time
a plain copy takes for the bytes of inputs and results, each moved once; the GPU's time is taken with its cache emptied.

Examples:
  chunkwise bench delta.cw
  chunkwise bench delta.cw --batch 1 --length 4096 --heads 8 --size K=128,V=128 --threads 2
  chunkwise bench delta.cw --form recurrent --dtype bf16 --json
  chunkwise bench delta.cw --device cuda --dtype bf16 --batch 8 --length 2048 --heads 16 --size K=128,V=128")]
pub struct Arguments {
    /// The program
    file: PathBuf,
    /// Sequences
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Tokens a sequence
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    length: u32,
    /// Heads
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    heads: u32,
    /// Which form
    #[arg(long, value_enum, default_value_t = FormChoice::Chunkwise)]
    form: FormChoice,
    /// Tokens a chunk, 16 to 256
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u16).range(16..=256))]
    chunk: Option<u16>,
    /// Type of the tensors of a token
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Seconds to measure each direction for
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// How a decay inside a sum is computed within a block of 16 rows
    #[arg(long, value_enum, default_value_t = InsideChoice::Anchored)]
    inside: InsideChoice,
    /// Take compiled code from the cache and keep it there; then compiling is not measured
    #[arg(long)]
    cache: bool,
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    which: Which,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        Ok(_) | Err(_) => Err("give seconds between 0.01 and 3600".to_owned()),
    }
}

/// Measures.
#[cfg(not(feature = "llvm"))]
pub fn run(_: &Arguments) -> Result<(), Failure> {
    Err(crate::engine::no_compiler())
}

/// Measures.
#[cfg(feature = "llvm")]
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    measuring::run(arguments)
}

#[cfg(feature = "llvm")]
mod measuring {
    use std::time::Instant;

    use chunkwise_compiler::artifact::{self, Direction, Parts};
    use chunkwise_compiler::compile;
    use chunkwise_dsl::instance::Instance;
    use serde_json::json;

    use super::Arguments;
    use crate::bench_gpu::{self, Wanted};
    use crate::engine::{Engine, Place, Plan, request};
    use crate::failure::Failure;
    use crate::source::Checked;
    use crate::verify::case::{Case, Regime};
    use crate::verify::draw::draw;
    use crate::{compiled, costs, report};

    /// The fewest and the most runs of a measurement.
    const RUNS: std::ops::RangeInclusive<usize> = 5..=1000;

    /// One direction, measured.
    struct Figure {
        name: &'static str,
        median: f64,
        best: f64,
        runs: usize,
        flops: f64,
        bytes: f64,
    }

    pub fn run(arguments: &Arguments) -> Result<(), Failure> {
        let place = arguments.place.open()?;
        let checked = Checked::read(&arguments.file)?;
        let program = checked.select(arguments.which.recurrence.as_deref())?;
        let instance = arguments.which.instance(program)?;
        let Some(form) = arguments.form.derived() else {
            return Err(Failure::Input("the naive form is not compiled; --form takes the others here".to_owned()));
        };
        if arguments.dtype.compiled().is_none() {
            return Err(Failure::Input("float64 is for the interpreters; --dtype takes f32, bf16 or f16".to_owned()));
        }
        let plan = Plan {
            form: arguments.form,
            chunk: arguments.chunk.map(usize::from),
            precision: arguments.dtype,
            inside: arguments.inside.into(),
            threads: arguments.threads.map(usize::from),
            cache: arguments.cache,
        };
        let (batch, length, heads) = (arguments.batch as usize, arguments.length as usize, arguments.heads as usize);
        if let Place::Gpu(gpu) = place {
            let wanted = Wanted {
                batch,
                length,
                heads,
                seconds: arguments.seconds,
                sizes: &arguments.which.sizes,
                json: arguments.json,
            };
            return bench_gpu::run(&wanted, &gpu, &instance, &plan);
        }
        refuse_too_large(&instance, batch, length, heads)?;
        let started = Instant::now();
        let engine = Engine::prepare(&instance, &plan, Parts::Both, length)?;
        let compile_time = started.elapsed().as_secs_f64();
        let artifact = &engine.compiled().expect("a derived form below float64 is compiled").artifact;
        let request = request(form, plan.chunk, length, Parts::Both, plan.inside);
        let graphs = artifact::graphs(&compile::derive(&instance, &request)?, Parts::Both)?;
        let flops = |wanted: Direction| {
            let graph = graphs.iter().find(|(direction, _)| *direction == wanted);
            graph.map_or(0.0, |(_, graph)| costs::of(graph).flops()) * (batch * length * heads) as f64
        };

        let sizes = program.axes.iter().zip(&instance.sizes).map(|(axis, size)| (axis.name.clone(), *size)).collect();
        let case = Case {
            seed: 0,
            batch,
            tokens: length,
            heads,
            groups: 1,
            chunk: artifact.signature.chunk,
            init: true,
            regime: Regime::Usual,
            sizes,
        };
        let tensors = compiled::narrow(&artifact.signature, &draw(program, &case, arguments.dtype))?;
        let options = compiled::options(plan.threads);
        let traffic = |kernel: &Option<chunkwise_abi::KernelSignature>| {
            kernel.as_ref().map_or(0.0, |kernel| compiled::traffic(kernel, batch, length, heads))
        };
        let signature = &artifact.signature;
        let (median, best, runs) = median(arguments.seconds, || {
            let results = artifact.run(&tensors, None, &options).map_err(compiled::launch)?;
            artifact.recycle(results);
            Ok(())
        })?;
        let forward = Figure {
            name: "forward",
            median,
            best,
            runs,
            flops: flops(Direction::Forward),
            bytes: traffic(&signature.forward),
        };
        let (median, best, runs) = self::median(arguments.seconds, || {
            let results = artifact.run_backward(&tensors, None, &options).map_err(compiled::launch)?;
            artifact.recycle(results);
            Ok(())
        })?;
        let both = Figure {
            name: "forward+backward",
            median,
            best,
            runs,
            flops: flops(Direction::ForwardSaving) + flops(Direction::Backward),
            bytes: traffic(&signature.forward_saving) + traffic(&signature.backward),
        };
        say(arguments, program.name.as_str(), signature.chunk, options.threads, compile_time, &[forward, both]);
        Ok(())
    }

    fn refuse_too_large(instance: &Instance, batch: usize, length: usize, heads: usize) -> Result<(), Failure> {
        let program = instance.program;
        let token: f64 = (program.tensors.iter().map(|it| &it.axes))
            .chain(program.outputs.iter().map(|it| &it.axes))
            .map(|axes| instance.shape(axes).iter().map(|&size| size as f64).product::<f64>())
            .sum();
        // Inputs, outputs and cotangents, in float64 while they are drawn and in the kernels' types after.
        let bytes = 3.0 * 12.0 * token * (batch as f64) * (length as f64) * (heads as f64);
        if bytes > 64e9 {
            let needed = report::bytes(bytes);
            return Err(Failure::Input(format!("the tensors of this measurement would take about {needed}")));
        }
        Ok(())
    }

    /// Runs once to warm up, then as often as the time allows: median and best seconds, number of runs.
    fn median(seconds: f64, mut once: impl FnMut() -> Result<(), Failure>) -> Result<(f64, f64, usize), Failure> {
        once()?;
        let started = Instant::now();
        let mut times = Vec::new();
        while times.len() < *RUNS.start() || (started.elapsed().as_secs_f64() < seconds && times.len() < *RUNS.end()) {
            let begin = Instant::now();
            once()?;
            times.push(begin.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok((times[times.len() / 2], times[0], times.len()))
    }

    fn say(arguments: &Arguments, name: &str, chunk: usize, threads: usize, compile_time: f64, figures: &[Figure]) {
        let Arguments { batch, length, heads, form, dtype, .. } = arguments;
        let tokens = (*batch as f64) * (*length as f64);
        if arguments.json {
            let figures = figures.iter().map(|figure| {
                json!({
                    "direction": figure.name,
                    "median_seconds": figure.median,
                    "best_seconds": figure.best,
                    "runs": figure.runs,
                    "tokens_per_second": tokens / figure.median,
                    "flops": figure.flops,
                    "gflops_per_second": figure.flops / figure.median / 1e9,
                    "bytes": figure.bytes,
                })
            });
            report::say_json(&json!({
                "recurrence": name,
                "form": form.name(),
                "chunk": chunk,
                "dtype": dtype.name(),
                "batch": batch,
                "length": length,
                "heads": heads,
                "sizes": arguments.which.sizes,
                "threads": threads,
                "compile_seconds": compile_time,
                "figures": figures.collect::<Vec<_>>(),
            }));
            return;
        }
        report::say(format_args!(
            "{name}, {} in chunks of {chunk}, {}: B {batch}, T {length}, H {heads}, {threads} threads",
            form.name(),
            dtype.name()
        ));
        let rows = figures.iter().map(|figure| {
            [
                figure.name.to_owned(),
                report::duration(figure.median),
                report::duration(figure.best),
                figure.runs.to_string(),
                format!("{:.0}", tokens / figure.median),
                format!("{:.1}", figure.flops / figure.median / 1e9),
                report::bytes(figure.bytes),
            ]
        });
        report::say(report::table(["direction", "median", "best", "runs", "tokens/s", "GFLOP/s", "tensors"], rows));
        report::say(format_args!("compiled in {}", report::duration(compile_time)));
    }
}
