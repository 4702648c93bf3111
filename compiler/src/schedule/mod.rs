//! How a recurrence is laid out on a GPU: plain values that print and parse.
//!
//! Comes in: a person's words, or sizes ([`cost`]). Goes out: a [`Schedule`], which [`crate::graph::split`] and the
//! lowering obey. Never looks at data, and never at which mechanism it schedules.
//!
//! # Text form
//! ```text
//! schedule = stages ("," setting)*
//! stages   = "fused" | "prepare + pass" | "pass + outputs" | "prepare + pass + outputs"
//! setting  = "chunk" integer | "threads" integer | "parts" integer | "spans" integer | "forward" stages
//!          | ("states" | "operands") ("f32" | "bf16" | "f16") | "products" ("warp" | "warpgroup")
//! ```
//! as in `prepare + pass + outputs, chunk 64, threads 256, operands bf16`. What is not said is left to the compiler.

pub mod cost;

use crate::artifact::Direction;
use crate::compile::CHUNKS;
use crate::error::CompileError;
use crate::graph::ir::{Graph, Op};
use crate::graph::split::can_be_in_spans;
use chunkwise_abi::DType;
use std::fmt;
use std::str::FromStr;

/// Threads a block may have.
pub const THREADS: std::ops::RangeInclusive<usize> = 32..=1024;

/// Parts of an axis that blocks may take.
pub const PARTS: std::ops::RangeInclusive<usize> = 1..=16;

/// Chunks a span may have.
pub const SPANS: std::ops::RangeInclusive<usize> = 1..=4096;

/// How a recurrence is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    /// Which kernels a direction becomes.
    pub stages: Stages,
    /// The same for a forward; none if it is no other.
    pub forward: Option<Stages>,
    /// Tokens a chunk; none leaves it to the compiler.
    pub chunk: Option<usize>,
    /// Threads a block; none leaves it to the compiler.
    pub threads: Option<usize>,
    /// Blocks that share a head, each with its part of an axis, in kernels whose chunks wait for each other and where that
    /// is possible; none leaves it to the compiler.
    pub parts: Option<usize>,
    /// Chunks of a span of the sequence, if spans are to go side by side: states at their starts are found first.
    pub spans: Option<usize>,
    /// Type of the states that one kernel hands to a later one, whatever that does with them. A state inside a kernel is
    /// float32 all the same.
    pub states: DType,
    /// Type of what one kernel hands to a later one that only multiplies it on the tensor cores. Where these round their
    /// operands to this type, or to one with fewer digits, nothing is lost by it.
    pub operands: DType,
    /// Who multiplies matrices of bfloat16 together.
    pub products: Products,
}

/// Threads that compute a product of matrices together, where values stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Products {
    /// The warps of a block, each for itself: `mma.sync`.
    Warp,
    /// Four warps, in chunks of 64 tokens and more, of GPUs that can: `wgmma`.
    Warpgroup,
}

impl Schedule {
    /// These stages, and everything else as usual.
    pub const fn of(stages: Stages) -> Schedule {
        Schedule {
            stages,
            forward: None,
            chunk: None,
            threads: None,
            parts: None,
            spans: None,
            states: DType::F32,
            operands: DType::F32,
            products: Products::Warp,
        }
    }
}

impl Schedule {
    /// The same for one direction, with the kernels that it becomes.
    pub fn of_direction(&self, direction: Direction) -> Schedule {
        let stages = match direction {
            Direction::Forward | Direction::ForwardSaving => self.forward.unwrap_or(self.stages),
            Direction::Backward => self.stages,
        };
        Schedule { stages, ..*self }
    }
}

/// Which kernels a direction becomes, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stages {
    /// One: chunks in order, states in it.
    Fused,
    /// What needs no state, all chunks at once; then the rest, chunks in order.
    PreparePass,
    /// The states, chunks in order; then everything else, all chunks at once.
    PassOutputs,
    /// All three.
    PreparePassOutputs,
}

impl Stages {
    /// Every one, from the fewest kernels to the most.
    pub const ALL: [Stages; 4] = [Stages::Fused, Stages::PreparePass, Stages::PassOutputs, Stages::PreparePassOutputs];

    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Stages::Fused => "fused",
            Stages::PreparePass => "prepare + pass",
            Stages::PassOutputs => "pass + outputs",
            Stages::PreparePassOutputs => "prepare + pass + outputs",
        }
    }

    /// Whether a kernel prepares what needs no state.
    pub fn prepares(self) -> bool {
        match self {
            Stages::PreparePass | Stages::PreparePassOutputs => true,
            Stages::Fused | Stages::PassOutputs => false,
        }
    }

    /// Whether a kernel of its own computes what no state needs.
    pub fn has_outputs(self) -> bool {
        match self {
            Stages::PassOutputs | Stages::PreparePassOutputs => true,
            Stages::Fused | Stages::PreparePass => false,
        }
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stages)?;
        if let Some(forward) = self.forward {
            write!(f, ", forward {forward}")?;
        }
        if let Some(chunk) = self.chunk {
            write!(f, ", chunk {chunk}")?;
        }
        if let Some(threads) = self.threads {
            write!(f, ", threads {threads}")?;
        }
        if let Some(parts) = self.parts {
            write!(f, ", parts {parts}")?;
        }
        if let Some(spans) = self.spans {
            write!(f, ", spans {spans}")?;
        }
        for (name, dtype) in [("states", self.states), ("operands", self.operands)] {
            match dtype {
                DType::F32 => {}
                DType::BF16 | DType::F16 => write!(f, ", {name} {}", dtype.name())?,
            }
        }
        match self.products {
            Products::Warp => {}
            Products::Warpgroup => f.write_str(", products warpgroup")?,
        }
        Ok(())
    }
}

/// The schedule of a call when nobody asks for one: the same for all directions, the one with the smallest estimate for
/// them together; of equals, the one with the fewest kernels. Tensors are of type `dtype`.
pub fn choose_for(
    graphs: &[&Graph],
    dtype: DType,
    gpu: &cost::Gpu,
    load: &cost::Load,
) -> Result<Schedule, CompileError> {
    if dtype == DType::BF16 {
        return Ok(in_registers(graphs, gpu, load));
    }
    let mut seconds = Stages::ALL.map(|_| 0.0);
    for graph in graphs {
        for (sum, estimate) in seconds.iter_mut().zip(cost::estimates(graph, gpu, load)?) {
            *sum += estimate.seconds;
        }
    }
    let mut best = 0;
    for at in 1..seconds.len() {
        if seconds[at] < seconds[best] {
            best = at;
        }
    }
    Ok(Schedule::of(Stages::ALL[best]))
}

/// Where values stay in registers, as measured on an H200 (the tables are in the book). With enough heads a block for each
/// is faster than anything that writes states and reads them again; but a system is solved before, where nothing waits for a
/// state, and the backward of a decay inside a sum has more to do that knows no state than one block a head can. With fewer
/// heads, spans of the sequence beside each other, as many as there are multiprocessors for; or, where states do not allow
/// it or sequences are short, parts of each head.
fn in_registers(graphs: &[&Graph], gpu: &cost::Gpu, load: &cost::Load) -> Schedule {
    let any = |wanted: fn(&Op) -> bool| graphs.iter().any(|graph| graph.nodes.iter().any(|node| wanted(&node.op)));
    let inside = any(|op| matches!(op, Op::Gated { .. }));
    let solves = any(|op| matches!(op, Op::Solve(_)));
    let edits = graphs.iter().map(|graph| edits_of(graph)).max().unwrap_or(0);
    let gradients = graphs.iter().any(|graph| graph.reverse);
    let usual = |stages| Schedule { states: DType::BF16, operands: DType::BF16, ..Schedule::of(stages) };
    let chunk = (inside || solves).then_some(32);
    // Systems are solved once, before anything waits for a state.
    let forward = Some(if solves { Stages::PreparePass } else { Stages::Fused });
    // Of one edit a token, gradients of what solves are computed without states too, unless nothing decays: then there are few.
    let decays = any(|op| matches!(op, Op::Segment { gates, .. } if !gates.events.is_empty()));
    let backward = match (inside, solves && edits == 1) {
        (true, _) => Stages::PreparePass,
        (false, true) if decays => Stages::PreparePass,
        (false, _) => Stages::Fused,
    };
    // Several edits a token make so many rows that warp groups multiply in short chunks.
    let products = if gpu.warpgroups && edits > 1 && !gradients { Products::Warpgroup } else { Products::Warp };
    let many = Schedule { chunk, forward, parts: Some(1), products, ..usual(backward) };
    if 4 * load.items >= 3 * gpu.multiprocessors {
        return many;
    }
    let spans = (gpu.multiprocessors / load.items.max(1)).max(1);
    let steps = load.tokens / (spans * chunk.unwrap_or(64));
    // Where systems are solved, spans have every step computed three times over: of several edits a token, few of them are
    // no gain to gradients.
    let worth = !(edits > 1 && gradients && spans < 8);
    if worth && steps >= SHORTEST_SPAN && graphs.iter().all(|graph| can_be_in_spans(graph)) {
        let stages = if solves && edits == 1 { Stages::PreparePass } else { many.stages };
        return Schedule { stages, spans: Some(steps.min(*SPANS.end())), ..many };
    }
    let fits = |parts: &usize| parts.is_power_of_two() && load.items * parts <= gpu.multiprocessors;
    let parts = (1..=*PARTS.end()).rev().find(fits).unwrap_or(1);
    Schedule { parts: Some(parts), chunk: inside.then_some(32), ..usual(Stages::PreparePassOutputs) }
}

/// Edits of a token that wait for each other.
fn edits_of(graph: &Graph) -> usize {
    let slots = graph.nodes.iter().map(|node| match &node.op {
        Op::Solve(solve) => graph.dim(solve.slot).size,
        _ => 0,
    });
    slots.max().unwrap_or(0)
}

/// Chunks of a span below which finding the states at its start costs more than it saves.
const SHORTEST_SPAN: usize = 8;

/// Why a text is no schedule, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleError(pub String);

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScheduleError {}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        let mut parts = text.split(',').map(str::trim);
        let stages = parts.next().unwrap_or_default();
        let mut schedule = Schedule::of(kernels(stages)?);
        let mut said = Vec::new();
        for part in parts {
            let (name, value) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
            let value = value.trim();
            if said.contains(&name) {
                return Err(ScheduleError(format!("`{name}` is said twice; say it once")));
            }
            said.push(name);
            match name {
                "chunk" => schedule.chunk = Some(number(name, value, &CHUNKS)?),
                "threads" => {
                    let threads = number(name, value, &THREADS)?;
                    if !threads.is_multiple_of(32) {
                        return Err(ScheduleError(format!("`threads {value}` is not a multiple of 32")));
                    }
                    schedule.threads = Some(threads);
                }
                "forward" => schedule.forward = Some(kernels(value)?),
                "parts" => schedule.parts = Some(number(name, value, &PARTS)?),
                "spans" => schedule.spans = Some(number(name, value, &SPANS)?),
                "states" => schedule.states = dtype(name, value)?,
                "operands" => schedule.operands = dtype(name, value)?,
                "products" => {
                    schedule.products = match value {
                        "warp" => Products::Warp,
                        "warpgroup" => Products::Warpgroup,
                        _ => {
                            return Err(ScheduleError(format!(
                                "`{part}`: write `products warp` or `products warpgroup`"
                            )));
                        }
                    }
                }
                _ => {
                    return Err(ScheduleError(format!(
                        "`{part}` is no setting; write `chunk 64`, `threads 256`, `parts 2`, `spans 32`, `forward fused`, `states bf16`, `operands bf16` or `products warpgroup`"
                    )));
                }
            }
        }
        Ok(schedule)
    }
}

fn kernels(text: &str) -> Result<Stages, ScheduleError> {
    let words: Vec<&str> = text.split('+').map(str::trim).collect();
    let same = |stages: &&Stages| stages.name().split(" + ").eq(words.iter().copied());
    Stages::ALL.iter().find(same).copied().ok_or_else(|| {
        let all = Stages::ALL.map(|stages| format!("`{stages}`")).join(", ");
        ScheduleError(format!("`{text}` names no kernels; write one of {all}"))
    })
}

fn number(name: &str, value: &str, range: &std::ops::RangeInclusive<usize>) -> Result<usize, ScheduleError> {
    let found = value.parse().ok().filter(|number| range.contains(number));
    found.ok_or_else(|| {
        let (lo, hi) = (range.start(), range.end());
        ScheduleError(format!("`{name} {value}`: write a whole number from {lo} to {hi}, as in `{name} 64`"))
    })
}

fn dtype(name: &str, value: &str) -> Result<DType, ScheduleError> {
    let found = [DType::F32, DType::BF16, DType::F16].into_iter().find(|dtype| dtype.name() == value);
    found.ok_or_else(|| ScheduleError(format!("`{name} {value}`: write `{name} f32`, `{name} bf16` or `{name} f16`")))
}
