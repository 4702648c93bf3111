//! `chunkwise tune`: which schedule is fastest on a GPU. In: a program, sizes, a GPU; out: a table, and a record that
//! says what was tried and what was best. Every schedule is measured by a `bench` in a process of its own, so that one
//! that breaks the GPU's context, or never ends, costs only itself.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chunkwise_abi::DType;
use chunkwise_compiler::schedule::cost::Load;
use chunkwise_compiler::schedule::{Products, SPANS, Schedule, Stages};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::options::{Arch, Device, Which};
use crate::precision::Precision;
use crate::report;
use crate::source::{Checked, plain};
use crate::tensors::write_whole;
use crate::tuning::{self, Bucket, Tuned};

/// Arguments of `tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The record says for each direction which schedule was fastest. In the folder of records, CHUNKWISE_TUNING or `tuning` in
the cache, `bench`, `run`, `verify` and `build` find it for the same program, type and GPU and a like load.

Examples:
  chunkwise tune delta.cw --size K=128,V=128 --batch 8 --length 2048 --heads 16
  chunkwise tune delta.cw --size K=128,V=128 --chunks 64 --threads-a-block 256 -o delta.h200.json")]
pub struct Arguments {
    /// The program
    file: PathBuf,
    /// Which GPU: cuda or cuda:NUMBER
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    device: Device,
    /// Family of GPUs to make code for [default: the one of the GPU]
    #[arg(long, value_enum, value_name = "FAMILY")]
    arch: Option<Arch>,
    /// Sequences
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Tokens a sequence
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    length: u32,
    /// Heads
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    heads: u32,
    /// Type of the tensors of a token
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    dtype: Precision,
    /// Tokens a chunk to try
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [32, 64, 128],
        value_parser = clap::value_parser!(u16).range(16..=256))]
    chunks: Vec<u16>,
    /// Threads a block to try
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', default_values_t = [128, 256],
        value_parser = clap::value_parser!(u16).range(32..=1024))]
    threads_a_block: Vec<u16>,
    /// Seconds to measure each direction of each schedule for
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// Where to write the record [default: the folder of records, where it is found again]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// Print the record on standard output
    #[arg(long)]
    json: bool,
}

/// What is compared.
const DIRECTIONS: [&str; 2] = ["forward", "forward+backward"];

/// The longest that one measurement may take, compiling included.
const PATIENCE: Duration = Duration::from_secs(180);

/// One schedule, measured; none is the compiler's own choice.
struct Tried {
    schedule: Option<Schedule>,
    /// What `bench` said, or why it said nothing.
    outcome: Result<Value, String>,
}

impl Tried {
    fn name(&self) -> String {
        self.schedule.map_or("the compiler's choice".to_owned(), |schedule| schedule.to_string())
    }

    /// A number of a direction.
    fn number(&self, direction: &str, name: &str) -> Option<f64> {
        let figures = self.outcome.as_ref().ok()?["figures"].as_array()?;
        figures.iter().find(|figure| figure["direction"] == direction)?[name].as_f64()
    }
}

/// Tries every schedule.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Device::Cuda(number) = arguments.device else {
        return Err(Failure::Input("only GPUs are tuned for; --device takes cuda or cuda:NUMBER here".to_owned()));
    };
    if !crate::engine::COMPILES {
        return Err(Failure::Input("this chunkwise was built without LLVM and makes no code to tune".to_owned()));
    }
    // Refused here once, and not by every measurement.
    let device = chunkwise_runtime::cuda::device::CudaDevice::open(number);
    let device = device.map_err(|error| Failure::Input(error.to_string()))?;
    let checked = Checked::read(&arguments.file)?;
    let program = checked.select(arguments.which.recurrence.as_deref())?;
    let instance = arguments.which.instance(program)?;
    let Some(dtype) = arguments.dtype.compiled() else {
        return Err(Failure::Input("float64 is for the interpreters; --dtype takes f32, bf16 or f16".to_owned()));
    };
    let schedules = schedules(arguments);
    let mut tried: Vec<Tried> = Vec::new();
    for (done, schedule) in schedules.iter().enumerate() {
        show_progress(done, schedules.len(), &tried);
        tried.push(Tried { schedule: *schedule, outcome: measure(arguments, &program.name, *schedule) });
    }
    show_progress(schedules.len(), schedules.len(), &tried);
    let best = |direction: &str| {
        let timed = tried.iter().filter_map(|it| Some((it, it.number(direction, "gpu_seconds")?)));
        timed.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(it, _)| it)
    };
    if best(DIRECTIONS[0]).is_none() {
        let why = tried.iter().find_map(|it| it.outcome.as_ref().err());
        return Err(Failure::Input(format!("no schedule could be measured: {}", why.map_or("", String::as_str))));
    }
    let facts = device.facts();
    let load = Load::of(arguments.batch as usize, arguments.heads as usize, arguments.length as usize, false);
    let bucket = Bucket::of(&load, facts.multiprocessors as usize);
    let record = record(arguments, &program.name, facts, bucket, &tried, &best);
    let tuned = Tuned { instance: &instance, dtype, device: &facts.name, bucket };
    let folder = tuning::folder().unwrap_or_default();
    let output: PathBuf = arguments.output.clone().unwrap_or_else(|| folder.join(tuned.file()));
    if let Some(folder) = output.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::Input(format!("`{}` cannot be made: {}", folder.display(), plain(&error))))?;
    }
    write_whole(&output, format!("{record:#}\n").as_bytes())?;
    if arguments.json {
        report::say_json(&record);
        return Ok(());
    }
    show(&program.name, &tried, &best);
    report::say(format_args!("written to {}", output.display()));
    Ok(())
}

/// Everything that is tried, the compiler's own choice first.
fn schedules(arguments: &Arguments) -> Vec<Option<Schedule>> {
    let mut schedules = vec![None];
    for stages in Stages::ALL {
        for chunk in &arguments.chunks {
            for threads in &arguments.threads_a_block {
                let (chunk, threads) = (Some(usize::from(*chunk)), Some(usize::from(*threads)));
                schedules.push(Some(Schedule { chunk, threads, ..Schedule::of(stages) }));
            }
        }
    }
    if arguments.dtype == Precision::Bf16 {
        // Warp groups multiply chunks of 64 tokens and more.
        for chunk in arguments.chunks.iter().filter(|chunk| usize::from(**chunk) >= 64) {
            let usual = Schedule { states: DType::BF16, operands: DType::BF16, ..Schedule::of(Stages::Fused) };
            let chunk = Some(usize::from(*chunk));
            schedules.push(Some(Schedule { chunk, products: Products::Warpgroup, ..usual }));
        }
        // Spans of the sequence beside each other: as many as make about a block for each multiprocessor, and twice that.
        let heads = arguments.batch as u64 * arguments.heads as u64;
        for chunk in &arguments.chunks {
            for blocks in [128, 256] {
                let steps = arguments.length as u64 * heads / (blocks * u64::from(*chunk));
                let Some(spans) = usize::try_from(steps).ok().filter(|steps| SPANS.contains(steps)) else { continue };
                for stages in [Stages::Fused, Stages::PreparePass] {
                    let usual = Schedule { states: DType::BF16, operands: DType::BF16, ..Schedule::of(stages) };
                    schedules.push(Some(Schedule { chunk: Some(usize::from(*chunk)), spans: Some(spans), ..usual }));
                }
            }
        }
    }
    schedules
}

/// One `bench` in a process of its own.
fn measure(arguments: &Arguments, recurrence: &str, schedule: Option<Schedule>) -> Result<Value, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(own);
    // What was tuned before is not the compiler's own choice.
    command.env("CHUNKWISE_TUNING", "");
    command.arg("bench").arg(&arguments.file).args(["--recurrence", recurrence, "--json"]);
    command.args(["--device", &arguments.device.to_string(), "--dtype", arguments.dtype.name()]);
    for (option, number) in [("--batch", arguments.batch), ("--length", arguments.length), ("--heads", arguments.heads)]
    {
        command.args([option, &number.to_string()]);
    }
    command.args(["--seconds", &arguments.seconds.to_string()]);
    for (axis, size) in &arguments.which.sizes {
        command.args(["--size", &format!("{axis}={size}")]);
    }
    for (constant, value) in &arguments.which.constants {
        command.args(["--set", &format!("{constant}={value}")]);
    }
    if let Some(arch) = arguments.arch {
        command.args(["--arch", arch.name()]);
    }
    if let Some(schedule) = schedule {
        command.args(["--schedule", &schedule.to_string()]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    // Read on the side: a pipe that is full would keep the child from ending.
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let read = |pipe: &mut dyn Read| {
        let mut text = Vec::new();
        // What could be read is what there is.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        let out = scope.spawn(|| out.as_mut().map(|pipe| read(pipe)).unwrap_or_default());
        let err = scope.spawn(|| err.as_mut().map(|pipe| read(pipe)).unwrap_or_default());
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Ok(status),
                Ok(None) if started.elapsed() > PATIENCE => {
                    // Of the two outcomes of a race with its end, either will do.
                    let _ = child.kill();
                    let _ = child.wait();
                    break Err(format!("was stopped after {} s", PATIENCE.as_secs()));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => break Err(error.to_string()),
            }
        };
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        if !ended?.success() {
            let said = err.lines().next().unwrap_or("it ended without a word");
            return Err(said.trim_start_matches("error: ").to_owned());
        }
        serde_json::from_str(&out).map_err(|error| format!("its figures cannot be read: {error}"))
    })
}

fn show_progress(done: usize, of: usize, tried: &[Tried]) {
    const WIDTH: usize = 30;
    let mut screen = std::io::stderr();
    if screen.is_terminal() {
        let full = WIDTH * done / of.max(1);
        let failed = tried.iter().filter(|it| it.outcome.is_err()).count();
        let text = if done == of {
            "\r\x1b[K".to_owned()
        } else {
            format!("\r{}{} {done} of {of}, {failed} failed ", "█".repeat(full), "░".repeat(WIDTH - full))
        };
        // A screen that cannot be written to shows no progress; nothing else depends on it.
        let _ = screen.write_all(text.as_bytes());
    }
}

/// What was tried and what was best, to be read by people and programs.
fn record<'t>(
    arguments: &Arguments,
    name: &str,
    device: &chunkwise_runtime::cuda::device::Facts,
    bucket: Bucket,
    tried: &[Tried],
    best: &impl Fn(&str) -> Option<&'t Tried>,
) -> Value {
    let of = |it: &Tried, direction: &str| {
        json!({
            "gpu_seconds": it.number(direction, "gpu_seconds"),
            "times_floor": it.number(direction, "times_floor"),
            "extra_bytes": it.number(direction, "extra_bytes"),
        })
    };
    let fastest = DIRECTIONS.map(|direction| {
        let best = best(direction).map(|it| {
            let mut value = of(it, direction);
            value["schedule"] = json!(it.schedule.map(|schedule| schedule.to_string()));
            value
        });
        (direction.to_owned(), json!(best))
    });
    let all = tried.iter().map(|it| {
        json!({
            "schedule": it.schedule.map(|schedule| schedule.to_string()),
            "forward": of(it, DIRECTIONS[0]),
            "forward+backward": of(it, DIRECTIONS[1]),
            "failed": it.outcome.as_ref().err(),
        })
    });
    json!({
        "chunkwise": env!("CARGO_PKG_VERSION"),
        "recurrence": name,
        "dtype": arguments.dtype.name(),
        "sizes": arguments.which.sizes.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "device": device.name,
        "capability": format!("{}.{}", device.capability.0, device.capability.1),
        "bucket": {
            "heads": bucket.heads,
            "tokens": bucket.tokens,
        },
        "batch": arguments.batch,
        "length": arguments.length,
        "heads": arguments.heads,
        "fastest": fastest.into_iter().collect::<serde_json::Map<_, _>>(),
        "tried": all.collect::<Vec<_>>(),
    })
}

fn show<'t>(name: &str, tried: &[Tried], best: &impl Fn(&str) -> Option<&'t Tried>) {
    let mut order: Vec<&Tried> = tried.iter().collect();
    let time = |it: &Tried| it.number(DIRECTIONS[1], "gpu_seconds").unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| time(a).total_cmp(&time(b)));
    let rows = order.into_iter().map(|it| {
        let cell = |direction: &str| match (it.number(direction, "gpu_seconds"), it.number(direction, "times_floor")) {
            (Some(seconds), Some(floors)) => format!("{:.1} µs, {floors:.2} × floor", seconds * 1e6),
            (_, _) => String::new(),
        };
        let failed = it.outcome.as_ref().err().cloned().unwrap_or_default();
        [it.name(), cell(DIRECTIONS[0]), cell(DIRECTIONS[1]), failed]
    });
    report::say(name);
    report::say(report::table(["schedule", DIRECTIONS[0], DIRECTIONS[1], "failed"], rows));
    for direction in DIRECTIONS {
        if let Some(it) = best(direction) {
            report::say(format_args!("fastest {direction}: {}", it.name()));
        }
    }
}
