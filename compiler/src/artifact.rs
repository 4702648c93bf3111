//! From the graphs of a form to tile programs, and on to an object with its signature: the order of the stages below
//! the graphs.
//!
//! In: a derived form, a type of tensors, a processor. Out: kernels, or object code and what each function takes. Does
//! no IO, keeps nothing: a cache stands around it, elsewhere.

#[cfg(feature = "llvm")]
mod gpu;

#[cfg(feature = "llvm")]
pub use self::gpu::{Ready, USUAL_SCHEDULE, choose_schedule, compile_gpu, compile_gpu_and, layout};

use crate::compile::Derived;
#[cfg(feature = "llvm")]
use crate::compile::{Request, derive};
use crate::derive::form::Form;
use crate::error::CompileError;
use crate::graph::ir::{DimId, Graph, InputKind, Op};
use crate::lower::graph_to_tile::{Options, lower};
use crate::pass;
use crate::pipeline;
#[cfg(feature = "llvm")]
use crate::target::cpu::{CpuTarget, Want, compile_kernels};
use crate::tile::ir::Kernel;
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
    tiles_as(graphs_after(derived, parts, pipeline::FOR_GPU)?, &options_of(derived.form, dtype))
}

/// How graphs become tile programs for a GPU: rows start in different banks, and products take operands as they lie.
fn options_for_gpu(dtype: DType) -> Options {
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

/// How graphs of a form become tile programs. A token at a time, a state is rounded for every read of it, and nothing is
/// gained by that: products are small, and memory is what takes time. So there states keep the digits of tf32 where they
/// are multiplied, and all of them where they are kept for the backward.
pub fn options_of(form: Form, dtype: DType) -> Options {
    let options = options_for_gpu(dtype);
    match form {
        Form::Recurrent => Options { dtype_saved: DType::F32, ..options },
        Form::Chunkwise | Form::Parallel => options,
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
