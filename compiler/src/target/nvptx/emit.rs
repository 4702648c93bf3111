//! Kernels → PTX.
//!
//! Comes in: tile programs, how they are laid out, a family. Goes out: the texts asked for. Each kernel is compiled on a
//! thread of its own and in contexts of its own, and the texts are put together in order. It never runs what it makes.

use super::Family;
use crate::error::CompileError;
use crate::lower::tile_to_nvvm::{self, Entry, Launch, Lowered};
use crate::lower::{mlir_to_llvm, tile_to_mlir};
use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use std::sync::Once;

const TRIPLE: &str = "nvptx64-nvidia-cuda";
/// The version of PTX: every driver from CUDA 12.7 on takes it, and it knows all instructions used.
const FEATURES: &str = "+ptx86";
/// LLVM's number of the calling convention of a kernel's entry.
const PTX_KERNEL: u32 = 71;
/// LLVM's passes, in order. Nothing is moved out of loops: addresses of every product in the loop over the chunks would
/// be, and take all registers. The assembler, which counts registers, does that where it pays.
const PASSES: &str = "always-inline,function(sroa<modify-cfg>,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,simplifycfg)";

/// Which texts are wanted besides the PTX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// MLIR.
    pub mlir: bool,
    /// LLVM IR, optimised.
    pub llvm: bool,
}

/// Compiled kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What a launch needs.
    pub lowered: Lowered,
    /// LLVM IR, if wanted.
    pub llvm: Option<String>,
    /// PTX.
    pub ptx: String,
}

/// Compiles kernels to PTX, each on a thread of its own.
pub fn compile_kernels(entries: Vec<Entry>, family: &Family, want: Want) -> Result<Compiled, CompileError> {
    if entries.len() < 2 {
        return compile_together(entries, family, want);
    }
    let parts = std::thread::scope(|scope| {
        let compile = |entry: &Entry| compile_together(vec![entry.clone()], family, want);
        let threads: Vec<_> = entries.iter().map(|entry| scope.spawn(move || compile(entry))).collect();
        // Who joins a thread that panicked goes on panicking.
        let join = |thread: std::thread::ScopedJoinHandle<_>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, CompileError>>()
    })?;
    match joined(parts) {
        Some(compiled) => Ok(compiled),
        None => compile_together(entries, family, want),
    }
}

/// The line of PTX after which definitions begin.
const HEAD_ENDS: &str = ".address_size 64\n";

/// Several modules as one: the text of the first, and of the others what stands below the head. None where they share
/// more than the shared memory of a block, which may be declared again: then they have to be one module from the start.
fn joined(parts: Vec<Compiled>) -> Option<Compiled> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next()?;
    for part in parts {
        let (head, body) = part.ptx.split_once(HEAD_ENDS)?;
        let shares =
            |line: &str| [".func", ".visible .func", ".global", ".const"].iter().any(|it| line.starts_with(it));
        if whole.ptx.split_once(HEAD_ENDS)?.0 != head || whole.ptx.lines().chain(body.lines()).any(shares) {
            return None;
        }
        whole.ptx.push('\n');
        whole.ptx.push_str(body);
        whole.lowered.text.push_str(&part.lowered.text);
        whole.lowered.launches.extend(part.lowered.launches);
        if let (Some(llvm), Some(more)) = (&mut whole.llvm, part.llvm) {
            llvm.push_str(&more);
        }
    }
    Some(whole)
}

/// Compiles kernels in one module, in this thread.
fn compile_together(entries: Vec<Entry>, family: &Family, want: Want) -> Result<Compiled, CompileError> {
    let symbols: Vec<(String, Launch)> = entries.iter().map(|it| (it.symbol.clone(), it.launch)).collect();
    let lowered = tile_to_nvvm::module(entries);
    let mlir_context = tile_to_mlir::context();
    let mlir = tile_to_mlir::parse(&mlir_context, &lowered.text)?;
    let context = inkwell::context::Context::create();
    let module = mlir_to_llvm::translate(&mlir_context, &mlir, &context)?;
    let machine = machine(family)?;
    let bug = |pass: &'static str, message: String| CompileError::Bug {
        pass,
        message,
        dump: module.print_to_string().to_string(),
    };
    let text = |name: &str, value: &str| context.create_string_attribute(name, value);
    for (symbol, launch) in &symbols {
        let Some(entry) = module.get_function(symbol) else {
            return Err(bug("mlir-to-llvm", format!("no function `{symbol}` came out")));
        };
        entry.set_call_conventions(PTX_KERNEL);
        entry.add_attribute(AttributeLoc::Function, text("nvvm.reqntid", &launch.threads.to_string()));
        if launch.resident > 0 {
            entry.add_attribute(AttributeLoc::Function, text("nvvm.minctasm", &launch.resident.to_string()));
        }
        if let Some(registers) = launch.registers {
            entry.add_attribute(AttributeLoc::Function, text("nvvm.maxnreg", &registers.to_string()));
        }
        entry.add_attribute(AttributeLoc::Param(0), text("nvvm.grid_constant", ""));
    }
    for function in module.get_functions() {
        // Numbers below the normal range count as zero, as on processors.
        function.add_attribute(AttributeLoc::Function, text("denormal-fp-math-f32", "preserve-sign,preserve-sign"));
    }
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    if cfg!(debug_assertions) {
        module.verify().map_err(|message| bug("verify-llvm", message.to_string()))?;
    }
    module
        .run_passes(PASSES, &machine, PassBuilderOptions::create())
        .map_err(|message| bug("optimise-llvm", message.to_string()))?;
    let llvm = want.llvm.then(|| module.print_to_string().to_string());
    let buffer = machine
        .write_to_memory_buffer(&module, FileType::Assembly)
        .map_err(|message| bug("emit-ptx", message.to_string()))?;
    // inkwell's buffers end in NUL.
    let ptx = String::from_utf8_lossy(buffer.as_slice()).trim_end_matches('\0').to_string();
    Ok(Compiled { lowered, llvm, ptx })
}

fn machine(family: &Family) -> Result<TargetMachine, CompileError> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| Target::initialize_nvptx(&InitializationConfig::default()));
    let triple = TargetTriple::create(TRIPLE);
    let missing = |message: String| CompileError::Bug {
        pass: "target-machine",
        message,
        dump: format!("{TRIPLE}, {}, {FEATURES}", family.name),
    };
    Target::from_triple(&triple)
        .map_err(|message| missing(message.to_string()))?
        .create_target_machine(
            &triple,
            family.name,
            FEATURES,
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Default,
        )
        .ok_or_else(|| missing("LLVM does not know this family".to_string()))
}
