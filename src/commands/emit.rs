//! `chunkwise emit`: a program at any stage of the compiler, as text. In: a `.cw` file, or a text of one of our own
//! levels (`.cwg`, `.cwt`); out: text. It never runs anything.

use std::path::{Path, PathBuf};

use chunkwise_compiler::artifact::{self, Parts};
use chunkwise_compiler::compile;
use chunkwise_compiler::derive::form::Form;
use chunkwise_compiler::graph::ir::Graph;
use chunkwise_compiler::graph::split::{Handed, split};
use chunkwise_compiler::lower::graph_to_tile;
use chunkwise_compiler::lower::program_to_graph::program_to_graph;
use chunkwise_compiler::reference;
use chunkwise_compiler::schedule::Schedule;
#[cfg(feature = "llvm")]
use chunkwise_compiler::target::nvptx;
use chunkwise_compiler::tile::ir::Kernel;
use chunkwise_compiler::{graph, pass, pipeline, tile};
use chunkwise_dsl::instance::Instance;

use crate::engine;
use crate::failure::Failure;
use crate::options::{Arch, FormChoice, InsideChoice, Which};
use crate::precision::Precision;
use crate::report;
use crate::source::{Checked, Source};
use crate::tensors::write_whole;

/// The largest text of a level that is read back.
const MAX_TEXT: u64 = 64 << 20;

/// Stages of the compiler that have a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Stage {
    /// the program as it was read
    Ast,
    /// what one token does (.cwg)
    Graph,
    /// what one step of a form does (.cwg)
    Derived,
    /// the kernel, with its loops and memory (.cwt)
    Tile,
    /// MLIR
    Mlir,
    /// LLVM IR
    Llvm,
    /// assembly of this machine
    Asm,
    /// assembly of NVIDIA's virtual machine
    Ptx,
    /// assembly of an NVIDIA GPU; needs ptxas and nvdisasm
    Sass,
    /// the reference as a NumPy function
    Reference,
}

/// Outputs or gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Towards {
    /// outputs and final states
    Forward,
    /// the same, keeping what the gradients need
    ForwardSaving,
    /// gradients
    Backward,
}

/// Arguments of `emit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes that are not given are 64, and 2 for an axis that a `for` runs over. A file that ends in .cwg or .cwt is read at
that level and goes on from there.

Examples:
  chunkwise emit delta.cw --to reference > delta.py
  chunkwise emit delta.cw --to derived --form chunkwise --direction backward --size K=128,V=128
  chunkwise emit delta.cw --to derived > step.cwg; chunkwise emit step.cwg --to tile
  chunkwise emit delta.cw --to derived --schedule \"prepare + pass + outputs\"
  chunkwise emit delta.cw --to asm --dump passes/        # every stage and pass as a file
  chunkwise emit delta.cw --to ptx --arch sm_90a --dtype bf16 --size K=128,V=128")]
pub struct Arguments {
    /// The program: .cw, or .cwg or .cwt as an earlier `emit` wrote it
    file: PathBuf,
    /// The stage
    #[arg(long, value_enum, value_name = "STAGE")]
    to: Stage,
    /// Which form, from `derived` on
    #[arg(long, value_enum, default_value_t = FormChoice::Chunkwise)]
    form: FormChoice,
    /// Which kernel, from `derived` on
    #[arg(long, value_enum, default_value_t = Towards::Forward)]
    direction: Towards,
    /// Tokens a chunk, 1 to 256
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u16).range(1..=256))]
    chunk: Option<u16>,
    /// The longest sequence of a parallel form
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    length: usize,
    /// Type of the tensors of a token, from `tile` on
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// Family of GPUs to make code for: from `tile` to `llvm` in place of this machine, and for `ptx` and `sass`
    /// [default there: sm_80]
    #[arg(long, value_enum, value_name = "FAMILY")]
    arch: Option<Arch>,
    /// How work is laid out on a GPU: with `--to derived` the graph of each kernel of it, as in "prepare + pass, operands
    /// bf16"; with ptx and sass its kernels
    #[arg(long, value_name = "SCHEDULE")]
    schedule: Option<Schedule>,
    /// Also write every stage up to this one, pass by pass, into a folder
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    /// How a decay inside a sum is computed within a block of 16 rows
    #[arg(long, value_enum, default_value_t = InsideChoice::Anchored)]
    inside: InsideChoice,
    #[command(flatten)]
    which: Which,
}

impl Arguments {
    /// The family of GPUs that code is made for; none for this machine.
    fn gpu(&self) -> Option<Arch> {
        match self.to {
            Stage::Ptx | Stage::Sass => Some(self.arch.unwrap_or(Arch::Sm80)),
            Stage::Ast
            | Stage::Graph
            | Stage::Derived
            | Stage::Tile
            | Stage::Mlir
            | Stage::Llvm
            | Stage::Asm
            | Stage::Reference => self.arch,
        }
    }
}

/// Prints one stage.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let (Stage::Asm, Some(arch)) = (arguments.to, arguments.arch) {
        return Err(Failure::Input(format!(
            "asm is the assembly of this machine; for {} write --to ptx or --to sass",
            arch.name()
        )));
    }
    let scheduled = matches!(arguments.to, Stage::Derived | Stage::Ptx | Stage::Sass);
    if let (false, Some(schedule)) = (scheduled, arguments.schedule) {
        return Err(Failure::Input(format!(
            "--schedule \"{schedule}\" shows graphs and kernels; write --to derived, ptx or sass"
        )));
    }
    let mut dump = Dump::new(arguments.dump.as_deref())?;
    let text = match arguments.file.extension().and_then(|extension| extension.to_str()) {
        Some("cwg") => from_graph(arguments, read_graph(&arguments.file)?, &mut dump)?,
        Some("cwt") => from_tile(arguments, read_tile(&arguments.file)?, &mut dump)?,
        Some(_) | None => from_program(arguments, &mut dump)?,
    };
    report::say(text.trim_end());
    Ok(())
}

/// Files of a dump, numbered in order.
struct Dump<'a> {
    folder: Option<&'a Path>,
    written: usize,
}

impl<'a> Dump<'a> {
    fn new(folder: Option<&'a Path>) -> Result<Dump<'a>, Failure> {
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|error| {
                let why = crate::source::plain(&error);
                Failure::Input(format!("`{}` cannot be made a folder: {why}", folder.display()))
            })?;
        }
        Ok(Dump { folder, written: 0 })
    }

    fn file(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        let Some(folder) = self.folder else { return Ok(()) };
        let path = folder.join(format!("{:02}-{name}", self.written));
        self.written += 1;
        write_whole(&path, text.as_bytes())
    }
}

fn from_program(arguments: &Arguments, dump: &mut Dump) -> Result<String, Failure> {
    let checked = Checked::read(&arguments.file)?;
    let (file, _) = chunkwise_dsl::parse(&checked.source.text);
    let tree = chunkwise_dsl::format(&file);
    dump.file("ast.cw", &tree)?;
    if arguments.to == Stage::Ast {
        return Ok(tree);
    }
    let program = checked.select(arguments.which.recurrence.as_deref())?;
    if arguments.to == Stage::Reference {
        let text = reference::numpy::print(program);
        dump.file("reference.py", &text)?;
        return Ok(text);
    }
    let instance = arguments.which.instance(program)?;
    let mut token = program_to_graph(&instance).graph;
    // As it is read back: without what only the way there needed.
    pass::run(&mut token, pipeline::SIMPLIFY, &mut pass::Options::quiet())?;
    let token = graph::text::print(&token);
    dump.file("token.cwg", &token)?;
    if arguments.to == Stage::Graph {
        return Ok(token);
    }
    if matches!(arguments.to, Stage::Ptx | Stage::Sass) {
        return module_code(arguments, &instance, dump);
    }
    let graph = derive(arguments, &instance, dump)?;
    from_graph(arguments, graph, dump)
}

/// The graph of the form and direction asked for, with the record of its derivation in the dump.
fn derive(arguments: &Arguments, instance: &Instance, dump: &mut Dump) -> Result<Graph, Failure> {
    let Some(form) = arguments.form.derived() else {
        return Err(Failure::Input(
            "the naive form is the program itself; --to graph and --to reference show it, and the later stages are of \
             --form recurrent, parallel or chunkwise"
                .to_owned(),
        ));
    };
    let parts = match arguments.direction {
        Towards::Forward => Parts::Forward,
        Towards::ForwardSaving | Towards::Backward => Parts::Gradients,
    };
    let request =
        engine::request(form, arguments.chunk.map(usize::from), arguments.length, parts, arguments.inside.into());
    let derived = compile::derive(instance, &request)?;
    dump.file("derivation.txt", &derived.derivation.to_string())?;
    let wanted = match arguments.direction {
        Towards::Forward => Some(derived.forward),
        Towards::ForwardSaving => derived.forward_saving,
        Towards::Backward => derived.backward,
    };
    wanted.ok_or_else(|| Failure::Ours("the direction asked for was not derived".to_owned()))
}

fn from_graph(arguments: &Arguments, mut graph: Graph, dump: &mut Dump) -> Result<String, Failure> {
    match arguments.to {
        Stage::Ast | Stage::Reference => {
            return Err(downwards("a .cwg file", "derived, tile, mlir, llvm, asm, ptx, sass"));
        }
        Stage::Graph
        | Stage::Derived
        | Stage::Tile
        | Stage::Mlir
        | Stage::Llvm
        | Stage::Asm
        | Stage::Ptx
        | Stage::Sass => {}
    }
    dump.file("derived.cwg", &graph::text::print(&graph))?;
    let mut written = Ok(());
    let mut keep = |_: usize, name: &str, text: &str| {
        if written.is_ok() {
            written = dump.file(&format!("{name}.cwg"), text);
        }
    };
    let mut options = pass::Options { verify: true, dump: Some(&mut keep) };
    let for_cpu = arguments.to > Stage::Derived && arguments.gpu().is_none();
    let passes = match (for_cpu, arguments.schedule) {
        (true, _) => pipeline::FOR_CPU,
        (false, Some(_)) => pipeline::FOR_TENSOR_CORES,
        (false, None) => pipeline::SIMPLIFY,
    };
    pass::run(&mut graph, passes, &mut options)?;
    written?;
    if let Some(schedule) = &arguments.schedule {
        return stages(&graph, schedule, dump);
    }
    if arguments.to <= Stage::Derived {
        return Ok(graph::text::print(&graph));
    }
    let Some(dtype_tokens) = arguments.dtype.compiled() else {
        return Err(Failure::Input("kernels take f32, bf16 or f16; float64 is for the interpreters".to_owned()));
    };
    let options = match arguments.gpu() {
        Some(_) => artifact::options_of(arguments.form.derived().unwrap_or(Form::Chunkwise), dtype_tokens),
        None => graph_to_tile::Options { dtype_tokens, ..graph_to_tile::Options::default() },
    };
    let kernel = graph_to_tile::lower(&graph, &options)?;
    from_tile(arguments, kernel, dump)
}

/// The graph of each kernel of a schedule, under what it reads and writes of what they hand on.
fn stages(graph: &Graph, schedule: &Schedule, dump: &mut Dump) -> Result<String, Failure> {
    let mut texts = Vec::new();
    for stage in split(graph, schedule)? {
        let text = graph::text::print(&stage.graph);
        dump.file(&format!("{}.cwg", stage.name), &text)?;
        let line = |(word, handed): (&str, &Handed)| {
            let (axes, bytes) = (handed.axes.join(", "), handed.bytes_per_token());
            format!("; {word} {} [{axes}] {}, {bytes} bytes a token\n", handed.name, handed.dtype.name())
        };
        let reads = stage.reads.iter().map(|handed| ("reads", handed));
        let handed: String = reads.chain(stage.writes.iter().map(|handed| ("writes", handed))).map(line).collect();
        texts.push(format!("{handed}{text}"));
    }
    Ok(texts.join("\n"))
}

fn from_tile(arguments: &Arguments, kernel: Kernel, dump: &mut Dump) -> Result<String, Failure> {
    match arguments.to {
        Stage::Ast | Stage::Reference | Stage::Graph | Stage::Derived => {
            return Err(downwards("a .cwt file", "tile, mlir, llvm, asm, ptx, sass"));
        }
        Stage::Tile | Stage::Mlir | Stage::Llvm | Stage::Asm | Stage::Ptx | Stage::Sass => {}
    }
    let text = tile::text::print(&kernel);
    dump.file("kernel.cwt", &text)?;
    if arguments.to == Stage::Tile {
        return Ok(text);
    }
    match arguments.gpu() {
        Some(arch) => gpu_code(arguments, arch, &kernel, dump),
        None => machine_code(arguments.to, &kernel, dump),
    }
}

#[cfg(feature = "llvm")]
fn machine_code(to: Stage, kernel: &Kernel, dump: &mut Dump) -> Result<String, Failure> {
    use chunkwise_compiler::target::cpu::{CpuTarget, Want, compile_kernels};
    let everything = dump.folder.is_some();
    let want = |stage: Stage| to == stage || everything && to > stage;
    let want = Want { mlir: want(Stage::Mlir), llvm: want(Stage::Llvm), asm: want(Stage::Asm), object: false };
    let compiled = compile_kernels(&[(kernel, "kernel")], &CpuTarget::host(), want)?;
    let mut last = None;
    for (name, text) in [("kernel.mlir", compiled.mlir), ("kernel.ll", compiled.llvm), ("kernel.s", compiled.asm)] {
        if let Some(text) = text {
            dump.file(name, &text)?;
            last = Some(text);
        }
    }
    last.ok_or_else(|| Failure::Ours("the stage came back without a text".to_owned()))
}

/// The kernels of a direction, as they are launched.
#[cfg(feature = "llvm")]
fn module_code(arguments: &Arguments, instance: &Instance, dump: &mut Dump) -> Result<String, Failure> {
    let Some(form) = arguments.form.derived() else {
        return Err(Failure::Input("kernels are of --form recurrent, parallel or chunkwise".to_owned()));
    };
    let parts = match arguments.direction {
        Towards::Forward => Parts::Forward,
        Towards::ForwardSaving | Towards::Backward => Parts::Gradients,
    };
    let request =
        engine::request(form, arguments.chunk.map(usize::from), arguments.length, parts, arguments.inside.into());
    let Some(dtype) = arguments.dtype.compiled() else {
        return Err(Failure::Input("kernels take f32, bf16 or f16; float64 is for the interpreters".to_owned()));
    };
    let arch = arguments.arch.unwrap_or(Arch::Sm80);
    let family = crate::gpu::family(arch)?;
    let schedule = arguments.schedule.unwrap_or(artifact::USUAL_SCHEDULE);
    let made = artifact::compile_gpu(instance, &request, parts, dtype, family, &schedule)?;
    let module = match arguments.direction {
        Towards::Forward => made.forward,
        Towards::ForwardSaving => made.forward_saving,
        Towards::Backward => made.backward,
    };
    let module = module.ok_or_else(|| Failure::Ours("the direction asked for was not compiled".to_owned()))?;
    let kernels: String = module.kernels.iter().map(|kernel| format!("// {kernel:?}\n")).collect();
    dump.file("kernel.ptx", &module.ptx)?;
    sass(arguments, arch, &kernels, module.ptx, dump)
}

#[cfg(not(feature = "llvm"))]
fn module_code(_: &Arguments, _: &Instance, _: &mut Dump) -> Result<String, Failure> {
    Err(engine::no_compiler())
}

/// PTX, or what the assembler makes of it.
#[cfg(feature = "llvm")]
fn sass(arguments: &Arguments, arch: Arch, head: &str, ptx: String, dump: &mut Dump) -> Result<String, Failure> {
    use chunkwise_runtime::cuda::assemble::{Assembler, disassemble};
    if arguments.to != Stage::Sass {
        return Ok(format!("{head}{ptx}"));
    }
    let refused = |error: chunkwise_runtime::cuda::assemble::AssembleError| Failure::Input(error.to_string());
    let assembled = Assembler::find().and_then(|it| it.assemble(&ptx, arch.name())).map_err(refused)?;
    let report: String = assembled.report.lines().map(|line| format!("// {line}\n")).collect();
    let text = format!("{head}{report}{}", disassemble(&assembled.cubin).map_err(refused)?);
    dump.file("kernel.sass", &text)?;
    Ok(text)
}

#[cfg(feature = "llvm")]
fn gpu_code(arguments: &Arguments, arch: Arch, kernel: &Kernel, dump: &mut Dump) -> Result<String, Failure> {
    use chunkwise_compiler::lower::tile_to_nvvm::entry;
    use nvptx::{Want, compile_kernels};
    let Some(dtype) = arguments.dtype.compiled() else {
        return Err(Failure::Input("kernels take f32, bf16 or f16; float64 is for the interpreters".to_owned()));
    };
    let family = crate::gpu::family(arch)?;
    let want = Want { mlir: true, llvm: arguments.to == Stage::Llvm || dump.folder.is_some() };
    let form = arguments.form.derived().unwrap_or(Form::Chunkwise);
    let entry = entry(kernel, "kernel", &artifact::layout(form, dtype, None, family))?;
    let compiled = compile_kernels(vec![entry], family, want)?;
    dump.file("kernel.mlir", &compiled.lowered.text)?;
    if arguments.to == Stage::Mlir {
        return Ok(compiled.lowered.text);
    }
    if let Some(text) = compiled.llvm {
        dump.file("kernel.ll", &text)?;
        if arguments.to == Stage::Llvm {
            return Ok(text);
        }
    }
    dump.file("kernel.ptx", &compiled.ptx)?;
    sass(arguments, arch, "", compiled.ptx, dump)
}

#[cfg(not(feature = "llvm"))]
fn gpu_code(_: &Arguments, _: Arch, _: &Kernel, _: &mut Dump) -> Result<String, Failure> {
    Err(engine::no_compiler())
}

#[cfg(not(feature = "llvm"))]
fn machine_code(_: Stage, _: &Kernel, _: &mut Dump) -> Result<String, Failure> {
    Err(engine::no_compiler())
}

fn downwards(what: &str, stages: &str) -> Failure {
    Failure::Input(format!("{what} is read at its own level and goes down only: --to {stages}"))
}

fn read_graph(path: &Path) -> Result<Graph, Failure> {
    let Source { path, text } = Source::read_at_most(path, MAX_TEXT)?;
    let graph = graph::text::parse(&text).map_err(|error| Failure::Input(format!("`{path}`, {error}")))?;
    match graph::verify::verify(&graph) {
        Ok(_) => Ok(graph),
        Err(error) => Err(Failure::Input(format!("`{path}` is not a graph that makes sense:\n{error}"))),
    }
}

fn read_tile(path: &Path) -> Result<Kernel, Failure> {
    let Source { path, text } = Source::read_at_most(path, MAX_TEXT)?;
    let kernel = tile::text::parse(&text).map_err(|error| Failure::Input(format!("`{path}`, {error}")))?;
    match tile::verify::verify(&kernel) {
        Ok(()) => Ok(kernel),
        Err(error) => Err(Failure::Input(format!("`{path}`: {error}"))),
    }
}
