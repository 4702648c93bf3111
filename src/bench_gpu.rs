//! `chunkwise bench --device cuda`: how fast compiled code is on a GPU, beside the least it could take. In: a program,
//! sizes, a GPU; out: medians of the GPU's time and of the time from launch to launch, as multiples of the floor: the
//! bytes of inputs and results, each moved once, at the speed of a plain copy measured in the same run.

use chunkwise_abi::KernelSignature;
use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::schedule::Schedule;
use chunkwise_dsl::instance::Instance;
use chunkwise_runtime::batch::{Batch, Sequences};
use chunkwise_runtime::cuda::execute::Direction;
use chunkwise_runtime::cuda::measure::{self, Times};
use chunkwise_runtime::cuda::resident::Resident;
use serde_json::json;

use crate::compiled;
use crate::engine::{Amount, Engine, Plan};
use crate::failure::Failure;
use crate::gpu::{self, Gpu, OnGpu, Phase};
use crate::report;
use crate::verify::case::{Case, Regime};
use crate::verify::draw::draw;

/// Tokens that are drawn; longer sequences repeat them.
const DRAWN: usize = 512;

/// What is to be measured.
pub struct Wanted<'a> {
    /// Sequences.
    pub batch: usize,
    /// Tokens a sequence.
    pub length: usize,
    /// Heads.
    pub heads: usize,
    /// Seconds for each direction.
    pub seconds: f64,
    /// Sizes of axes, as they were given.
    pub sizes: &'a [(String, usize)],
    /// Whether to print JSON.
    pub json: bool,
}

/// What is launched as one run.
struct Run {
    name: &'static str,
    directions: &'static [Direction],
}

const FORWARD: Run = Run { name: "forward", directions: &[Direction::Forward] };
const BACKWARD: Run = Run { name: "backward", directions: &[Direction::Backward] };
const BOTH: Run = Run { name: "forward+backward", directions: &[Direction::ForwardSaving, Direction::Backward] };

/// One run, measured.
struct Figure {
    name: &'static str,
    chunk: usize,
    schedule: Schedule,
    times: Times,
    /// Bytes that must be moved.
    floor: f64,
    /// Bytes on the GPU beside inputs and results.
    extra: u64,
}

/// Measures.
pub fn run(wanted: &Wanted, gpu: &Gpu, instance: &Instance, plan: &Plan) -> Result<(), Failure> {
    let Wanted { batch, length, heads, seconds, .. } = *wanted;
    let program = instance.program;
    // A forward alone may be laid out otherwise than one that a backward follows.
    let amount = Amount { batch, length, heads };
    let prepared = |parts: Parts| {
        let engine = Engine::prepare_on(gpu, instance, plan, parts, length, amount)?;
        if let Some(warning) = engine.warning() {
            report::complain(format_args!("warning: {warning}"));
        }
        Ok::<Engine, Failure>(engine)
    };
    let engines = [prepared(Parts::Forward)?, prepared(Parts::Gradients)?];
    let [alone, made] = engines.each_ref().map(|engine| engine.on_gpu().expect("it was prepared on a GPU"));
    let signature = &made.artifact.signature;

    let sizes = program.axes.iter().zip(&instance.sizes).map(|(axis, size)| (axis.name.clone(), *size)).collect();
    let case = Case {
        seed: 0,
        batch: 1,
        tokens: length.min(DRAWN),
        heads,
        groups: 1,
        chunk: signature.chunk,
        init: true,
        regime: Regime::Usual,
        sizes,
    };
    let drawn = compiled::narrow(signature, &draw(program, &case, plan.precision))?;
    let bandwidth = measure::copy_bandwidth(&gpu.stream).map_err(gpu::failure)?;
    let least = |kernel: &Option<KernelSignature>| {
        let kernel = kernel.as_ref().expect("it was asked for");
        // What the forward keeps for the backward is our own affair; the floor knows only of what must be moved.
        let args = kernel.args.iter().filter(|arg| !arg.name.starts_with("saved.")).cloned().collect();
        compiled::traffic(&KernelSignature { args, ..kernel.clone() }, batch, length, heads)
    };
    let (forward, backward) = (least(&alone.artifact.signature.forward), least(&signature.backward));

    let ready = |made: &OnGpu, run: &Run| {
        let sizes = Batch { sequences: Sequences::Equal { count: batch, length }, heads };
        made.artifact.resident_of(run.directions, sizes, &drawn).map_err(gpu::failure)
    };
    let figure = |made: &OnGpu, resident: &mut Resident, run: Run, floor: f64| {
        let times = measure::times(resident, run.directions, seconds).map_err(gpu::failure)?;
        let (chunk, schedule) = (made.artifact.signature.chunk, made.schedule);
        Ok::<Figure, Failure>(Figure { name: run.name, chunk, schedule, times, floor, extra: resident.extra_bytes() })
    };
    let mut figures = vec![figure(alone, &mut ready(alone, &FORWARD)?, FORWARD, forward)?];
    let mut resident = ready(made, &BOTH)?;
    for (run, floor) in [(BOTH, forward + backward), (BACKWARD, backward)] {
        figures.push(figure(made, &mut resident, run, floor)?);
    }
    let both = [alone, made];
    let compile_time = both.iter().map(|made| made.compile_time.unwrap_or(0.0)).sum();
    let load_time = both.iter().map(|made| made.load_time).sum();
    let phases = both.iter().flat_map(|made| made.phases.iter().copied()).collect();
    let measured = Measured { compile_time, load_time, phases, bandwidth, figures };
    say(wanted, plan, gpu, &program.name, &measured);
    Ok(())
}

/// Everything that was measured.
struct Measured {
    /// Seconds to PTX, and from there to the GPU: for a forward alone, and then for one with its backward.
    compile_time: f64,
    load_time: f64,
    phases: Vec<Phase>,
    bandwidth: f64,
    figures: Vec<Figure>,
}

fn say(wanted: &Wanted, plan: &Plan, gpu: &Gpu, name: &str, measured: &Measured) {
    let Wanted { batch, length, heads, .. } = *wanted;
    let Measured { compile_time, load_time, phases, bandwidth, figures } = measured;
    let (form, dtype) = (plan.form, plan.precision);
    let tokens = batch as f64 * length as f64;
    let device = gpu.stream.device().facts();
    let floor_time = |figure: &Figure| figure.floor / bandwidth;
    if wanted.json {
        let figures = figures.iter().map(|figure| {
            json!({
                "direction": figure.name,
                "chunk": figure.chunk,
                "schedule": figure.schedule.to_string(),
                "gpu_seconds": figure.times.gpu,
                "best_gpu_seconds": figure.times.best,
                "launch_seconds": figure.times.launch,
                "runs": figure.times.runs,
                "tokens_per_second": tokens / figure.times.gpu,
                "floor_bytes": figure.floor,
                "floor_seconds": floor_time(figure),
                "times_floor": figure.times.gpu / floor_time(figure),
                "extra_bytes": figure.extra,
            })
        });
        report::say_json(&json!({
            "recurrence": name,
            "form": form.name(),
            "dtype": dtype.name(),
            "batch": batch,
            "length": length,
            "heads": heads,
            "sizes": wanted.sizes,
            "device": { "name": device.name, "number": device.ordinal, "driver_cuda": format!("{}.{}", device.driver.0, device.driver.1) },
            "arch": gpu.family.name,
            "copy_bytes_per_second": bandwidth,
            "compile_seconds": compile_time,
            "load_seconds": load_time,
            "phases": phases.iter().map(|phase| json!({
                "direction": phase.direction.name(),
                "compile_seconds": phase.compile,
                "assemble_seconds": phase.assemble,
                "load_seconds": phase.load,
            })).collect::<Vec<_>>(),
            "figures": figures.collect::<Vec<_>>(),
        }));
        return;
    }
    report::say(format_args!(
        "{name}, {}, {}: B {batch}, T {length}, H {heads} on {} (code for {})",
        form.name(),
        dtype.name(),
        device.name,
        gpu.family.name
    ));
    let rows = figures.iter().map(|figure| {
        [
            figure.name.to_owned(),
            fine(figure.times.gpu),
            fine(figure.times.best),
            fine(figure.times.launch),
            figure.times.runs.to_string(),
            report::bytes(figure.floor),
            fine(floor_time(figure)),
            format!("{:.2}", figure.times.gpu / floor_time(figure)),
            report::bytes(figure.extra as f64),
        ]
    });
    let head =
        ["direction", "GPU time", "best", "launch to launch", "runs", "must move", "floor", "× floor", "extra memory"];
    report::say(report::table(head, rows));
    report::say(format_args!(
        "a copy moves {:.0} GB/s (read and written), which is what the floor stands on; medians; compiled in {}, loaded in {}",
        bandwidth / 1e9,
        report::duration(*compile_time),
        report::duration(*load_time)
    ));
    for figure in figures.iter().filter(|figure| figure.name != BACKWARD.name) {
        report::say(format_args!("  {}: {}, in chunks of {}", figure.name, figure.schedule, figure.chunk));
    }
    let seconds = |seconds: f64| report::duration(seconds);
    for Phase { direction, compile, assemble, load } in phases {
        report::say(format_args!(
            "  {}: compiled in {}, assembled in {}, loaded in {}",
            direction.name(),
            seconds(*compile),
            seconds(*assemble),
            seconds(*load)
        ));
    }
}

/// Seconds of a kernel: tenths of microseconds count.
fn fine(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.1} µs", seconds * 1e6) } else { format!("{:.3} ms", seconds * 1e3) }
}
