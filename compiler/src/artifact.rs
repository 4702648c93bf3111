//! From the graphs of a form to tile programs, and on to an object with its signature: the order of the stages below
//! the graphs.
//!
//! In: a derived form, a type of tensors, a processor. Out: kernels, or object code and what each function takes. Does
//! no IO, keeps nothing: a cache stands around it, elsewhere.

use crate::compile::Derived;
#[cfg(feature = "llvm")]
use crate::compile::{Request, derive};
#[cfg(feature = "llvm")]
use crate::derive::form::{Form, Inside};
use crate::error::CompileError;
use crate::graph::ir::{DimId, Graph, InputKind, Op};
#[cfg(feature = "llvm")]
use crate::graph::separable::separable_along;
#[cfg(feature = "llvm")]
use crate::graph::split::{Handed, Stage, split, temporaries};
#[cfg(feature = "llvm")]
use crate::lower::graph_to_nvvm::{self, Refusal};
use crate::lower::graph_to_tile::{Options, lower};
#[cfg(feature = "llvm")]
use crate::lower::scan_to_nvvm;
#[cfg(feature = "llvm")]
use crate::lower::tile_to_nvvm::{self, Entry, Products};
use crate::pass;
use crate::pipeline;
#[cfg(feature = "llvm")]
use crate::schedule::cost::{Gpu, Load};
#[cfg(feature = "llvm")]
use crate::schedule::{Schedule, Stages, choose_for};
#[cfg(feature = "llvm")]
use crate::target::cpu::{CpuTarget, Want, compile_kernels};
#[cfg(feature = "llvm")]
use crate::target::nvptx::{self, Family};
#[cfg(feature = "llvm")]
use crate::tile::arguments::share_arguments;
#[cfg(feature = "llvm")]
use crate::tile::ir::Arg;
use crate::tile::ir::Kernel;
#[cfg(feature = "llvm")]
use chunkwise_abi::Access;
#[cfg(feature = "llvm")]
use chunkwise_abi::gpu::{GpuKernel, GpuModule, GpuRecurrence};
use chunkwise_abi::{ABI_VERSION, ArgSignature, DType, KernelSignature, Signature};
#[cfg(feature = "llvm")]
use chunkwise_dsl::instance::Instance;

/// Which kernels are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parts {
    /// Outputs only.
    Forward,
    /// Outputs with what the gradients need, and the gradients.
    Gradients,
    /// All three kernels.
    Both,
}

/// The directions a form has, in the order of their kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Outputs and last states.
    Forward,
    /// The same, keeping what the backward needs.
    ForwardSaving,
    /// Gradients.
    Backward,
}

impl Direction {
    /// `forward`, `forward_saving`, `backward`.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::ForwardSaving => "forward_saving",
            Direction::Backward => "backward",
        }
    }
}

/// A kernel and what a caller sees of it.
#[derive(Clone, Debug)]
pub struct Tile {
    /// Which.
    pub direction: Direction,
    /// Its symbol.
    pub symbol: String,
    /// The tile program.
    pub kernel: Kernel,
    /// Names of the inner dimensions, by argument.
    pub axes: Vec<Vec<String>>,
}

/// The graphs of a form that some parts need, simplified.
pub fn graphs(derived: &Derived, parts: Parts) -> Result<Vec<(Direction, Graph)>, CompileError> {
    graphs_after(derived, parts, pipeline::SIMPLIFY)
}

fn graphs_after(
    derived: &Derived,
    parts: Parts,
    passes: &[pass::Pass<Graph>],
) -> Result<Vec<(Direction, Graph)>, CompileError> {
    let saving = derived.forward_saving.as_ref().map(|graph| (Direction::ForwardSaving, graph));
    let backward = derived.backward.as_ref().map(|graph| (Direction::Backward, graph));
    let forward = Some((Direction::Forward, &derived.forward));
    let wanted = match parts {
        Parts::Forward => [forward, None, None],
        Parts::Gradients => [None, saving, backward],
        Parts::Both => [forward, saving, backward],
    };
    let mut graphs = Vec::new();
    for (direction, graph) in wanted.into_iter().flatten() {
        let mut graph = graph.clone();
        pass::run(&mut graph, passes, &mut pass::Options::quiet())?;
        graphs.push((direction, graph));
    }
    Ok(graphs)
}

/// The tile programs of a form, for a processor.
pub fn tiles(derived: &Derived, dtype: DType, parts: Parts) -> Result<Vec<Tile>, CompileError> {
    tiles_as(graphs_after(derived, parts, pipeline::FOR_CPU)?, &Options { dtype_tokens: dtype, ..Options::default() })
}

/// The tile programs of a form, for a GPU.
pub fn tiles_for_gpu(derived: &Derived, dtype: DType, parts: Parts) -> Result<Vec<Tile>, CompileError> {
    tiles_as(graphs_after(derived, parts, pipeline::FOR_GPU)?, &options_for_gpu(dtype))
}

/// How graphs become tile programs for a GPU: rows start in different banks, and products take operands as they lie.
pub fn options_for_gpu(dtype: DType) -> Options {
    // States kept for the backward have the type that products round them to in any case.
    let dtype_saved = if dtype == DType::BF16 { DType::BF16 } else { DType::F32 };
    Options {
        dtype_tokens: dtype,
        pad: 8,
        any_strides: true,
        reuse: false,
        spread: true,
        dtype_saved,
        ..Options::default()
    }
}

fn tiles_as(graphs: Vec<(Direction, Graph)>, options: &Options) -> Result<Vec<Tile>, CompileError> {
    let mut tiles = Vec::new();
    for (direction, graph) in graphs {
        let kernel = lower(&graph, options)?;
        if cfg!(debug_assertions) {
            verified(&kernel)?;
        }
        let axes = kernel.args.iter().map(|arg| axis_names(&graph, &arg.name)).collect();
        let symbol = format!("cw_{}", kernel.name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        tiles.push(Tile { direction, symbol, kernel, axes });
    }
    Ok(tiles)
}

/// A kernel that does not verify is a mistake of the stage that made it.
fn verified(kernel: &Kernel) -> Result<(), CompileError> {
    crate::tile::verify::verify(kernel).map(drop).map_err(|error| CompileError::Bug {
        pass: "graph-to-tile",
        message: "its kernel does not verify".to_owned(),
        dump: error.to_string(),
    })
}

/// What a caller has to know about the kernels of a form, with the scratch each worker needs, by kernel.
pub fn signature(name: &str, derived: &Derived, tiles: &[Tile], scratch_bytes: &[usize]) -> Signature {
    let of = |direction: Direction| {
        let at = tiles.iter().position(|tile| tile.direction == direction)?;
        let tile = &tiles[at];
        let args = tile.kernel.args.iter().zip(&tile.axes).map(|(arg, axes)| ArgSignature {
            name: arg.name.clone(),
            dtype: arg.dtype,
            role: arg.role,
            inner: arg.inner.clone(),
            axes: axes.clone(),
            access: arg.access,
        });
        let (symbol, scratch_bytes) = (tile.symbol.clone(), scratch_bytes[at]);
        Some(KernelSignature { symbol, args: args.collect(), scratch_bytes })
    };
    Signature {
        abi: ABI_VERSION,
        name: name.to_owned(),
        form: derived.form.name().to_owned(),
        chunk: derived.chunk,
        max_length: derived.max_length,
        forward: of(Direction::Forward),
        forward_saving: of(Direction::ForwardSaving),
        backward: of(Direction::Backward),
    }
}

/// Names of the inner dimensions of a tensor of a graph, in their order in memory.
fn axis_names(graph: &Graph, tensor: &str) -> Vec<String> {
    let named = |dims: &[DimId]| dims.iter().map(|dim| graph.dims[dim.index()].name.clone()).collect();
    for node in &graph.nodes {
        if let Op::Input { name, kind, layout } = &node.op
            && name == tensor
            && *kind != InputKind::Carry
        {
            return named(layout);
        }
    }
    for carry in &graph.carries {
        if carry.init.as_deref() == Some(tensor) || carry.last.as_deref() == Some(tensor) {
            return named(&carry.layout);
        }
    }
    if let Some((_, node)) = graph.saves.iter().find(|(name, _)| name == tensor) {
        return named(&graph.node(*node).dims);
    }
    named(&graph.output_layout(tensor))
}

/// Object code with its signature.
#[cfg(feature = "llvm")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// What it computes and takes.
    pub signature: Signature,
    /// An ELF object, position independent.
    pub object: Vec<u8>,
}

/// Derives a form and compiles it for a processor.
#[cfg(feature = "llvm")]
pub fn compile_cpu(
    instance: &Instance,
    request: &Request,
    parts: Parts,
    dtype: DType,
    target: &CpuTarget,
) -> Result<Artifact, CompileError> {
    let derived = derive(instance, request)?;
    let tiles = tiles(&derived, dtype, parts)?;
    let kernels: Vec<(&Kernel, &str)> = tiles.iter().map(|tile| (&tile.kernel, tile.symbol.as_str())).collect();
    let compiled = compile_kernels(&kernels, target, Want::OBJECT)?;
    let Some(object) = compiled.object else {
        return Err(CompileError::Bug {
            pass: "emit-object",
            message: "no object came back".to_owned(),
            dump: String::new(),
        });
    };
    let signature = signature(&instance.program.name, &derived, &tiles, &compiled.scratch_bytes);
    Ok(Artifact { signature, object })
}

/// Derives a form and compiles it for a family of GPUs, in the kernels of a schedule.
#[cfg(feature = "llvm")]
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
#[cfg(feature = "llvm")]
pub type Ready<'a> = &'a (dyn Fn(Direction, &Signature, &GpuModule) + Sync);

/// The same, each direction on a thread of its own; `ready` is called there while others may still be compiled, so that
/// what comes next need not wait for them.
#[cfg(feature = "llvm")]
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
#[cfg(feature = "llvm")]
struct LoweredDirection {
    direction: Direction,
    signature: KernelSignature,
    entries: Vec<Entry>,
    temporaries: Vec<ArgSignature>,
}

/// Lowers a form for a family of GPUs: values in registers where that is done for the type, in the longest chunks for
/// which every direction has room; by way of tile programs otherwise.
#[cfg(feature = "llvm")]
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
    if in_registers && chunk.is_none() && request.form == Form::Chunkwise {
        for chunk in CHUNKS_IN_REGISTERS {
            let wanted = Request { chunk: Some(chunk), ..asked };
            if let Some(made) = lowered_at(instance, &wanted, parts, dtype, family, schedule, Registers::Everywhere)? {
                return Ok(made);
            }
        }
    }
    let derived = derive_for_gpu(instance, &asked, None)?;
    let asked = Request { chunk: (request.form == Form::Chunkwise).then_some(derived.chunk), ..asked };
    let registers = if in_registers { Registers::WherePossible } else { Registers::Nowhere };
    let made = lowered_at(instance, &asked, parts, dtype, family, schedule, registers)?;
    Ok(made.expect("tile programs are never refused"))
}

/// Where values are to stay in registers.
#[cfg(feature = "llvm")]
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
#[cfg(feature = "llvm")]
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
    let options = options_for_gpu(dtype);
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
        let stages = match direction {
            Direction::Forward => schedule.forward.unwrap_or(schedule.stages),
            Direction::ForwardSaving | Direction::Backward => schedule.stages,
        };
        let schedule = &Schedule { stages, ..*schedule };
        let mut in_registers = None;
        if let Some((_, graph)) = registers.get(at) {
            // What has no room in few kernels may have in more.
            for stages in [stages, Stages::PreparePassOutputs] {
                if in_registers.is_none() {
                    in_registers = kernels(graph, whole, &Schedule { stages, ..*schedule }, family, dtype, true)?;
                }
            }
        }
        let made = match in_registers {
            Some(made) => Some(made),
            None if where_registers == Registers::Everywhere => return Ok(None),
            None => kernels(graph, whole, schedule, family, dtype, false)?,
        };
        directions.push(lowered(made.expect("tile programs are never refused")));
    }
    Ok(Some((signature, directions)))
}

/// Kernels that are launched one after the other, and what they hand on.
#[cfg(feature = "llvm")]
type Kernels = (Vec<Entry>, Vec<ArgSignature>);

/// The kernels of a schedule's stages, and what they hand on. With `registers`, values stay in registers; none if some
/// stage has something that is not done this way.
#[cfg(feature = "llvm")]
fn kernels(
    graph: &Graph,
    whole: &Tile,
    schedule: &Schedule,
    family: &Family,
    dtype: DType,
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
        false => entries_of_tiles(&stages, &handed, whole, schedule, family, dtype)?,
    };
    Ok(Some((entries, handed.iter().map(|handed| handed.argument(Access::Write)).collect())))
}

/// A module as its caller sees it.
#[cfg(feature = "llvm")]
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
#[cfg(feature = "llvm")]
fn in_registers_by_token(graph: &Graph, args: &[Arg], symbol: &str) -> Result<Option<Entry>, CompileError> {
    match scan_to_nvvm::lower(graph, args, symbol) {
        Ok(entry) => Ok(Some(entry)),
        Err(CompileError::Limit { .. }) => Ok(None),
        Err(error @ CompileError::Bug { .. }) => Err(error),
    }
}

/// Whether a schedule leaves to the compiler how states are held.
#[cfg(feature = "llvm")]
fn is_usual(schedule: &Schedule) -> bool {
    schedule.stages == Stages::Fused && schedule.threads.is_none()
}

/// Kernels by way of tile programs.
#[cfg(feature = "llvm")]
fn entries_of_tiles(
    stages: &[Stage],
    handed: &[Handed],
    whole: &Tile,
    schedule: &Schedule,
    family: &Family,
    dtype: DType,
) -> Result<Vec<Entry>, CompileError> {
    let options = options_for_gpu(dtype);
    let layout = layout(dtype, schedule.threads, family);
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
#[cfg(feature = "llvm")]
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
        let own = register_options(&stage.graph, schedule, family);
        // What takes least room comes last.
        let ways = [(true, true), (false, true), (true, false), (false, false)];
        let mut made = Err(Refusal::Room(0));
        for (ahead, whole_operands) in ways {
            if matches!(made, Err(Refusal::Room(_))) {
                let own = graph_to_nvvm::Options { ahead, whole_operands, ..own };
                made = graph_to_nvvm::entry(&stage.graph, &args, &symbol, &own);
            }
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

/// How a stage is laid out whose values stay in registers.
#[cfg(feature = "llvm")]
fn register_options(graph: &Graph, schedule: &Schedule, family: &Family) -> graph_to_nvvm::Options {
    let parts = parts(graph, schedule.parts.unwrap_or(1));
    // A narrow part of an axis is little work for many warps.
    let narrow = parts.is_some_and(|(axis, parts)| graph.dim(axis).size / parts <= 32);
    let threads = schedule.threads.unwrap_or(if narrow { 128 } else { 256 });
    graph_to_nvvm::Options {
        warps: threads / 32,
        shared_limit: family.shared_limit,
        parts,
        ahead: true,
        whole_operands: true,
        resident: if parts.is_some() && threads > 128 { 2 } else { 1 },
    }
}

/// An axis that blocks may share, and into how many parts: no more than wanted, and none of them narrow.
#[cfg(feature = "llvm")]
fn parts(graph: &Graph, wanted: usize) -> Option<(DimId, usize)> {
    const NARROW: usize = 16;
    let carried = graph.carries.first()?;
    let axes = graph.node(carried.input).dims.iter().rev();
    let axis = axes.copied().find(|dim| separable_along(graph, *dim))?;
    let size = graph.dim(axis).size;
    let fits = |n: &usize| size.is_multiple_of(*n) && (size / n).is_multiple_of(NARROW);
    (2..=wanted).rev().find(fits).map(|n| (axis, n))
}

/// Derives a form for a GPU; a schedule may ask for a chunk.
#[cfg(feature = "llvm")]
fn derive_for_gpu(instance: &Instance, request: &Request, chunk: Option<usize>) -> Result<Derived, CompileError> {
    let chunk = request.chunk.or(chunk);
    let derived = derive(instance, &Request { chunk, ..*request })?;
    if chunk.is_none() && request.form == Form::Chunkwise && derived.chunk < SHORTEST_CHUNK {
        return derive(instance, &Request { chunk: Some(SHORTEST_CHUNK), ..*request });
    }
    Ok(derived)
}

/// The schedule of a form for a GPU and a load, when nobody asks for one. Only chunks give a choice.
#[cfg(feature = "llvm")]
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
            let derived = derive_for_gpu(instance, request, None)?;
            let graphs = graphs_after(&derived, parts, pipeline::FOR_GPU)?;
            let graphs: Vec<&Graph> = graphs.iter().map(|(_, graph)| graph).collect();
            choose_for(&graphs, dtype, gpu, load)
        }
    }
}

/// Tokens a chunk when nobody asks: shorter ones leave the tensor cores idle.
#[cfg(feature = "llvm")]
const SHORTEST_CHUNK: usize = 32;

/// Tokens a chunk when nobody asks, where values stay in registers: the first of these for which there is room.
#[cfg(feature = "llvm")]
const CHUNKS_IN_REGISTERS: [usize; 2] = [64, 32];

/// The schedule when nobody asks and nothing is known of the load.
#[cfg(feature = "llvm")]
pub const USUAL_SCHEDULE: Schedule = Schedule {
    stages: Stages::Fused,
    forward: None,
    chunk: None,
    threads: None,
    parts: None,
    states: DType::F32,
    operands: DType::F32,
};

/// How kernels for tensors of a type are laid out on a family of GPUs.
#[cfg(feature = "llvm")]
pub fn layout(dtype: DType, threads: Option<usize>, family: &Family) -> tile_to_nvvm::Options {
    let products = match dtype {
        DType::F32 => Products::Tf32x3,
        DType::BF16 => Products::Bf16,
        // The range of binary16 is too narrow for states: tf32 has its digits and float32's range.
        DType::F16 => Products::Tf32,
    };
    tile_to_nvvm::Options { threads: threads.unwrap_or(256), shared_limit: family.shared_limit, products }
}
