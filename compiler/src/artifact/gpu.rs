//! From the graphs of a form to the kernels of a schedule for a family of GPUs.
//!
//! In: an instance, a form, a type of tensors, a schedule. Out: PTX with what each kernel takes and how it is launched.
//! Decides for each direction which lowering it takes: values in registers, states in registers a token at a time, or
//! tile programs. Does no IO, keeps nothing.

use super::{Direction, Parts, Tile, graphs_after, options_of, signature, tiles_as, verified};
use crate::compile::{Derived, Request, derive};
use crate::derive::form::{Form, Inside};
use crate::error::CompileError;
use crate::graph::ir::{DimId, Graph, Op};
use crate::graph::separable::separable_along;
use crate::graph::split::{Handed, Stage, split, temporaries};
use crate::lower::graph_to_nvvm::{self, Refusal};
use crate::lower::graph_to_tile::lower;
use crate::lower::scan_to_nvvm;
use crate::lower::tile_to_nvvm::{self, Entry, Products};
use crate::pipeline;
use crate::schedule::cost::{Gpu, Load};
use crate::schedule::{self, PARTS, Schedule, Stages, choose_for};
use crate::target::nvptx::{self, Family};
use crate::tile::arguments::share_arguments;
use crate::tile::ir::Arg;
use chunkwise_abi::gpu::{GpuKernel, GpuModule, GpuRecurrence};
use chunkwise_abi::{Access, ArgSignature, DType, KernelSignature, Signature};
use chunkwise_dsl::instance::Instance;

/// Derives a form and compiles it for a family of GPUs, in the kernels of a schedule.
pub fn compile_gpu(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: &Schedule,
) -> Result<GpuRecurrence, CompileError> {
    compile_gpu_and(instance, request, parts, dtype, family, schedule, &|_, _, _| ())
}

/// What is told of each direction as soon as its module is made.
pub type Ready<'a> = &'a (dyn Fn(Direction, &Signature, &GpuModule) + Sync);

/// The same, each direction on a thread of its own; `ready` is called there while others may still be compiled, so that
/// what comes next need not wait for them.
pub fn compile_gpu_and(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: &Schedule,
    ready: Ready,
) -> Result<GpuRecurrence, CompileError> {
    let (signature, directions) = lowered_for_gpu(instance, request, parts, dtype, family, schedule)?;
    let compile = |lowered: LoweredDirection| {
        let LoweredDirection { direction, signature: own, entries, temporaries } = lowered;
        let module = module(entries, family, own, temporaries)?;
        ready(direction, &signature, &module);
        Ok((direction, module))
    };
    let compile = &compile;
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = directions.into_iter().map(|lowered| scope.spawn(move || compile(lowered))).collect();
        // Who joins a thread that panicked goes on panicking.
        let join = |thread: std::thread::ScopedJoinHandle<_>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, CompileError>>()
    });
    let mut modules: std::collections::BTreeMap<Direction, GpuModule> = made?.into_iter().collect();
    let (forward, forward_saving, backward) = (
        modules.remove(&Direction::Forward),
        modules.remove(&Direction::ForwardSaving),
        modules.remove(&Direction::Backward),
    );
    Ok(GpuRecurrence { signature, forward, forward_saving, backward })
}

/// One direction's kernels, lowered.
struct LoweredDirection {
    direction: Direction,
    signature: KernelSignature,
    entries: Vec<Entry>,
    temporaries: Vec<ArgSignature>,
}

/// Lowers a form for a family of GPUs: values in registers where that is done for the type, in the longest chunks for
/// which every direction has room; by way of tile programs otherwise.
fn lowered_for_gpu(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: &Schedule,
) -> Result<(Signature, Vec<LoweredDirection>), CompileError> {
    let chunk = request.chunk.or(schedule.chunk);
    let asked = Request { chunk, ..*request };
    let in_registers = dtype == DType::BF16 && request.form != Form::Recurrent;
    if schedule.spans.is_some() && !in_registers {
        return Err(CompileError::Limit {
            what: format!("no spans that go side by side in {} for tensors of {}", request.form.name(), dtype.name()),
            instead: "take bf16 and the chunkwise form, or a schedule without `spans`".to_owned(),
            span: None,
        });
    }
    if schedule.products == schedule::Products::Warpgroup && !(in_registers && family.warpgroups) {
        return Err(CompileError::Limit {
            what: format!(
                "no products of warp groups in {} for tensors of {} on {}",
                request.form.name(),
                dtype.name(),
                family.name
            ),
            instead: "take bf16, the chunkwise form and `sm_90a`, or a schedule without `products`".to_owned(),
            span: None,
        });
    }
    if in_registers && chunk.is_none() && request.form == Form::Chunkwise {
        for chunk in CHUNKS_IN_REGISTERS {
            let wanted = Request { chunk: Some(chunk), ..asked };
            if let Some(made) = lowered_at(instance, &wanted, parts, dtype, family, schedule, Registers::Everywhere)? {
                return Ok(made);
            }
        }
    }
    let derived = derive_for_gpu(instance, &asked)?;
    let asked = Request { chunk: (request.form == Form::Chunkwise).then_some(derived.chunk), ..asked };
    let registers = if in_registers { Registers::WherePossible } else { Registers::Nowhere };
    let made = lowered_at(instance, &asked, parts, dtype, family, schedule, registers)?;
    Ok(made.expect("tile programs are never refused"))
}

/// Where values are to stay in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registers {
    /// In every direction, or there is no code.
    Everywhere,
    /// In the directions that have nothing that is not done this way.
    WherePossible,
    /// In none.
    Nowhere,
}

/// Lowers with chunks of a given length; none if values do not stay in registers where they have to.
fn lowered_at(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    family: &Family,
    schedule: &Schedule,
    where_registers: Registers,
) -> Result<Option<(Signature, Vec<LoweredDirection>)>, CompileError> {
    let derived = derive(instance, request)?;
    let options = options_of(request.form, dtype);
    let graphs = graphs_after(&derived, parts, pipeline::FOR_GPU)?;
    let whole = tiles_as(graphs.clone(), &options)?;
    let signature = signature(&instance.program.name, &derived, &whole, &vec![0; whole.len()]);
    // The same, for values in registers.
    let registers = match where_registers {
        Registers::Everywhere | Registers::WherePossible => {
            // Decays inside a block are halved there, which is safe for every gate and needs no declared range.
            let pairs = Request { inside: Inside::Pairs, ..*request };
            graphs_after(&derive(instance, &pairs)?, parts, pipeline::FOR_TENSOR_CORES)?
        }
        Registers::Nowhere => Vec::new(),
    };
    let mut directions = Vec::new();
    for (at, ((direction, graph), whole)) in graphs.iter().zip(&whole).enumerate() {
        let own = match direction {
            Direction::Forward => &signature.forward,
            Direction::ForwardSaving => &signature.forward_saving,
            Direction::Backward => &signature.backward,
        };
        let lowered = |(entries, temporaries)| LoweredDirection {
            direction: *direction,
            signature: own.clone().expect("every tile has its signature"),
            entries,
            temporaries,
        };
        if request.form == Form::Recurrent && *direction == Direction::Forward && is_usual(schedule) {
            let symbol = format!("{}_scan", whole.symbol);
            if let Some(entry) = in_registers_by_token(graph, &whole.kernel.args, &symbol)? {
                directions.push(lowered((vec![entry], vec![])));
                continue;
            }
        }
        let schedule = &schedule.of_direction(*direction);
        let stages = schedule.stages;
        let mut in_registers = None;
        if let Some((_, graph)) = registers.get(at) {
            // What has no room in few kernels may have in more.
            for stages in [stages, Stages::PreparePassOutputs] {
                if in_registers.is_none() {
                    in_registers =
                        kernels(graph, whole, &Schedule { stages, ..*schedule }, family, (request.form, dtype), true)?;
                }
            }
        }
        let made = match in_registers {
            Some(made) => Some(made),
            None if where_registers == Registers::Everywhere => return Ok(None),
            None => {
                kernels(graph, whole, &Schedule { spans: None, ..*schedule }, family, (request.form, dtype), false)?
            }
        };
        directions.push(lowered(made.expect("tile programs are never refused")));
    }
    Ok(Some((signature, directions)))
}

/// Kernels that are launched one after the other, and what they hand on.
type Kernels = (Vec<Entry>, Vec<ArgSignature>);

/// The kernels of a schedule's stages, and what they hand on. With `registers`, values stay in registers; none if some
/// stage has something that is not done this way.
fn kernels(
    graph: &Graph,
    whole: &Tile,
    schedule: &Schedule,
    family: &Family,
    kind: (Form, DType),
    registers: bool,
) -> Result<Option<Kernels>, CompileError> {
    let stages = split(graph, schedule)?;
    // The tensors of a call stand as they would for a single kernel, then what the kernels hand on.
    let handed = temporaries(&stages);
    let entries = match registers {
        true => {
            let Some(entries) = entries_in_registers(&stages, &handed, whole, schedule, family)? else {
                return Ok(None);
            };
            entries
        }
        false => entries_of_tiles(&stages, &handed, whole, schedule, family, kind)?,
    };
    Ok(Some((entries, handed.iter().map(|handed| handed.argument(Access::Write)).collect())))
}

/// A module as its caller sees it.
fn module(
    entries: Vec<Entry>,
    family: &Family,
    signature: KernelSignature,
    temporaries: Vec<ArgSignature>,
) -> Result<GpuModule, CompileError> {
    let symbols: Vec<String> = entries.iter().map(|entry| entry.symbol.clone()).collect();
    let compiled = nvptx::compile_kernels(entries, family, nvptx::Want::default())?;
    let count = |n: usize| u32::try_from(n).expect("a block is smaller than 2³² bytes");
    let launches = symbols.iter().zip(&compiled.lowered.launches).map(|(symbol, launch)| GpuKernel {
        symbol: symbol.clone(),
        threads: count(launch.threads),
        shared_bytes: count(launch.shared_bytes),
        workspace_bytes: launch.workspace_bytes as u64,
        grid: launch.grid,
    });
    let kernels = launches.collect();
    Ok(GpuModule { arch: family.name.to_owned(), ptx: compiled.ptx, signature, temporaries, kernels })
}

/// A graph that goes through tokens one at a time with its states in registers, lowered; none where they do not fit, or
/// where it does something else.
fn in_registers_by_token(graph: &Graph, args: &[Arg], symbol: &str) -> Result<Option<Entry>, CompileError> {
    match scan_to_nvvm::lower(graph, args, symbol) {
        Ok(entry) => Ok(Some(entry)),
        Err(CompileError::Limit { .. }) => Ok(None),
        Err(error @ CompileError::Bug { .. }) => Err(error),
    }
}

/// Whether a schedule leaves to the compiler how states are held.
fn is_usual(schedule: &Schedule) -> bool {
    schedule.stages == Stages::Fused && schedule.threads.is_none()
}

/// Kernels by way of tile programs.
fn entries_of_tiles(
    stages: &[Stage],
    handed: &[Handed],
    whole: &Tile,
    schedule: &Schedule,
    family: &Family,
    (form, dtype): (Form, DType),
) -> Result<Vec<Entry>, CompileError> {
    let options = options_of(form, dtype);
    let layout = layout(form, dtype, schedule.threads, family);
    let mut kernels = Vec::new();
    for stage in stages {
        let mut kernel = lower(&stage.graph, &options)?;
        stage.set_types(&mut kernel);
        kernels.push(kernel);
    }
    let names = whole.kernel.args.iter().map(|arg| arg.name.as_str());
    let last: Vec<&str> = names.chain(handed.iter().map(|handed| handed.name.as_str())).collect();
    let args = share_arguments(&mut kernels, &last);
    if args.iter().map(|arg| arg.name.as_str()).ne(last.iter().copied()) {
        return Err(CompileError::Bug {
            pass: "split",
            message: "the kernels of a schedule do not take the tensors of the whole".to_owned(),
            dump: stages.iter().map(|stage| crate::graph::text::print(&stage.graph)).collect(),
        });
    }
    let mut entries = Vec::new();
    for (stage, kernel) in stages.iter().zip(&kernels) {
        if cfg!(debug_assertions) {
            verified(kernel)?;
        }
        entries.push(tile_to_nvvm::entry(kernel, &format!("{}_{}", whole.symbol, stage.name), &layout)?);
    }
    Ok(entries)
}

/// Kernels whose values stay in registers; none if some stage has something that is not done this way.
fn entries_in_registers(
    stages: &[Stage],
    handed: &[Handed],
    whole: &Tile,
    schedule: &Schedule,
    family: &Family,
) -> Result<Option<Vec<Entry>>, CompileError> {
    let temporaries = handed.iter().map(|handed| {
        let ArgSignature { name, dtype, role, inner, access, .. } = handed.argument(Access::Write);
        Arg { name, dtype, role, inner, access }
    });
    let args: Vec<Arg> = whole.kernel.args.iter().cloned().chain(temporaries).collect();
    let mut entries = Vec::new();
    for stage in stages {
        let symbol = format!("{}_{}", whole.symbol, stage.name);
        let own = register_options(stage, whole.direction, schedule, family);
        // What takes least room comes last.
        let ways = [(true, true), (false, true), (true, false), (false, false)];
        let mut made = Err(Refusal::Room(0));
        for (ahead, whole_operands) in ways {
            if matches!(made, Err(Refusal::Room(_))) {
                let own = graph_to_nvvm::Options { ahead, whole_operands, ..own };
                made = graph_to_nvvm::entry(&stage.graph, &args, &symbol, &own);
            }
        }
        // Few warps wait better for themselves beside others; where there is room for one block only, it has more. Chunks
        // that wait for each other are another matter.
        let few = schedule.threads.is_none() && 32 * own.warps < USUAL_THREADS;
        let alone = made.as_ref().is_ok_and(|entry| entry.launch.resident == 1);
        if few && alone && stage.graph.carries.is_empty() {
            let more = graph_to_nvvm::Options { warps: USUAL_THREADS / 32, resident: 1, ..own };
            made = graph_to_nvvm::entry(&stage.graph, &args, &symbol, &more).or(made);
        }
        match made {
            Ok(entry) => entries.push(entry),
            Err(Refusal::Bug(message)) => {
                let dump = crate::graph::text::print(&stage.graph);
                return Err(CompileError::Bug { pass: "graph-to-nvvm", message, dump });
            }
            Err(Refusal::Unsupported(_) | Refusal::Room(_) | Refusal::Park(_)) => return Ok(None),
        }
    }
    Ok(Some(entries))
}

/// Threads a block when nobody asks.
const USUAL_THREADS: usize = 256;

/// How a stage is laid out whose values stay in registers.
fn register_options(
    stage: &Stage,
    direction: Direction,
    schedule: &Schedule,
    family: &Family,
) -> graph_to_nvvm::Options {
    let graph = &stage.graph;
    // What goes from span to span is little, and shared by as many as can be.
    let parts = match (graph.span, schedule.spans) {
        (None, Some(_)) => parts(graph, *PARTS.end()),
        (_, _) => parts(graph, schedule.parts.unwrap_or(1)),
    };
    // A narrow part of an axis is little work for many warps.
    let narrow = parts.is_some_and(|(axis, parts)| graph.dim(axis).size / parts <= 32);
    // An inverse waits for itself more than it computes: small blocks, several beside each other.
    let inverse = graph.nodes.iter().any(|node| matches!(node.op, Op::Inverse(_)));
    let waits = stage.name == "prepare" && inverse;
    let threads = schedule.threads.unwrap_or(if narrow || waits { 128 } else { USUAL_THREADS });
    let resident = match (waits, threads) {
        (true, ..=128) if graph.rows() <= 32 => 3,
        (true, ..=128) => 2,
        (false, ..=128) | (true, _) => 1,
        (false, _) => 1 + usize::from(parts.is_some()),
    };
    graph_to_nvvm::Options {
        warps: threads / 32,
        shared_limit: family.shared_limit,
        parts,
        ahead: true,
        whole_operands: true,
        warpgroups: schedule.products == schedule::Products::Warpgroup,
        exact_edits: schedule.operands == DType::F32 && direction != Direction::Backward,
        store_matrices: family.warpgroups,
        loaders: family.warpgroups && threads == USUAL_THREADS && resident == 1,
        resident,
    }
}

/// An axis that blocks may share, and into how many parts: no more than wanted, and none of them narrow.
fn parts(graph: &Graph, wanted: usize) -> Option<(DimId, usize)> {
    const NARROW: usize = 16;
    let carried = graph.carries.first()?;
    let axes = graph.node(carried.input).dims.iter().rev();
    let axis = axes.copied().find(|dim| separable_along(graph, *dim))?;
    let size = graph.dim(axis).size;
    let fits = |n: &usize| size.is_multiple_of(*n) && (size / n).is_multiple_of(NARROW);
    (2..=wanted).rev().find(fits).map(|n| (axis, n))
}

/// Derives a form for a GPU, where the usual chunk of some is too short.
fn derive_for_gpu(instance: &Instance, request: &Request) -> Result<Derived, CompileError> {
    let derived = derive(instance, request)?;
    if request.chunk.is_none() && request.form == Form::Chunkwise && derived.chunk < SHORTEST_CHUNK {
        return derive(instance, &Request { chunk: Some(SHORTEST_CHUNK), ..*request });
    }
    Ok(derived)
}

/// The schedule of a form for a GPU and a load, when nobody asks for one. Only chunks give a choice.
pub fn choose_schedule(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    gpu: &Gpu,
    load: &Load,
) -> Result<Schedule, CompileError> {
    match request.form {
        Form::Recurrent | Form::Parallel => Ok(USUAL_SCHEDULE),
        Form::Chunkwise => {
            let pairs = Request { inside: Inside::Pairs, ..*request };
            let request = if dtype == DType::BF16 { &pairs } else { request };
            let derived = derive_for_gpu(instance, request)?;
            let graphs = graphs_after(&derived, parts, pipeline::FOR_GPU)?;
            let graphs: Vec<&Graph> = graphs.iter().map(|(_, graph)| graph).collect();
            let chosen = choose_for(&graphs, dtype, gpu, load)?;
            if chosen.spans.is_none() || splits(&derived, parts, &chosen)? {
                return Ok(chosen);
            }
            // As for sequences that are too short for spans.
            choose_for(&graphs, dtype, gpu, &Load { tokens: 0, ..*load })
        }
    }
}

/// Whether the graphs that kernels are made of can be split as a schedule says.
fn splits(derived: &Derived, parts: Parts, schedule: &Schedule) -> Result<bool, CompileError> {
    for (direction, graph) in graphs_after(derived, parts, pipeline::FOR_TENSOR_CORES)? {
        match split(&graph, &schedule.of_direction(direction)) {
            Ok(_) => {}
            Err(CompileError::Limit { .. }) => return Ok(false),
            Err(bug @ CompileError::Bug { .. }) => return Err(bug),
        }
    }
    Ok(true)
}

/// Tokens a chunk when nobody asks: shorter ones leave the tensor cores idle.
const SHORTEST_CHUNK: usize = 32;

/// Tokens a chunk when nobody asks, where values stay in registers: the first of these for which there is room.
const CHUNKS_IN_REGISTERS: [usize; 2] = [64, 32];

/// The schedule when nobody asks and nothing is known of the load.
pub const USUAL_SCHEDULE: Schedule = Schedule::of(Stages::Fused);

/// How kernels for tensors of a type are laid out on a family of GPUs.
pub fn layout(form: Form, dtype: DType, threads: Option<usize>, family: &Family) -> tile_to_nvvm::Options {
    let products = match (dtype, form) {
        (DType::F32, _) => Products::Tf32x3,
        (DType::BF16, Form::Parallel) => Products::Bf16,
        // As `options_of` says of the recurrent form. What of the chunkwise one does not stay in registers is unusual, and
        // may ask for more digits than bfloat16 has.
        (DType::BF16, Form::Recurrent | Form::Chunkwise) => Products::Tf32,
        // The range of binary16 is too narrow for states: tf32 has its digits and float32's range.
        (DType::F16, _) => Products::Tf32,
    };
    tile_to_nvvm::Options { threads: threads.unwrap_or(256), shared_limit: family.shared_limit, products }
}
