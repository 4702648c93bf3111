//! Kernels → what a linker or a reader wants: object code, assembly, LLVM IR, MLIR.
//!
//! Comes in: tile programs and a processor. Goes out: the texts and bytes asked for. Everything happens in the calling
//! thread and in contexts of its own, so several threads may compile at once. It never runs what it makes.

use super::caps::{CpuTarget, Level};
use crate::error::CompileError;
use crate::lower::{mlir_to_llvm, tile_to_mlir};
use crate::tile::ir::Kernel;
use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use std::sync::Once;

/// Triple of everything we emit for processors.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// LLVM's passes, in order: kernels are nearly straight already, and the general pipelines take twice the time.
const PASSES: &str = "always-inline,function(sroa<modify-cfg>,early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,loop-mssa(licm<allowspeculation>),early-cse<memssa>,simplifycfg)";

/// Which results are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// MLIR, before its own passes.
    pub mlir: bool,
    /// LLVM IR, optimised.
    pub llvm: bool,
    /// Assembly.
    pub asm: bool,
    /// An object file.
    pub object: bool,
}

impl Want {
    /// Only the object.
    pub const OBJECT: Want = Want { mlir: false, llvm: false, asm: false, object: true };
}

/// Results of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// MLIR text, if wanted.
    pub mlir: Option<String>,
    /// LLVM IR text, if wanted.
    pub llvm: Option<String>,
    /// Assembly text, if wanted.
    pub asm: Option<String>,
    /// An ELF object, position independent, if wanted.
    pub object: Option<Vec<u8>>,
    /// Bytes of scratch a worker needs, by kernel.
    pub scratch_bytes: Vec<usize>,
}

/// Compiles kernels, each to a function [`chunkwise_abi::KernelFn`] of the given symbol.
pub fn compile_kernels(kernels: &[(&Kernel, &str)], target: &CpuTarget, want: Want) -> Result<Compiled, CompileError> {
    if !kernels.iter().all(|(kernel, _)| tile_to_mlir::takes(&kernel.body)) {
        return Err(CompileError::Limit {
            what: "a product whose right operand has its columns apart, on a processor".to_owned(),
            instead: "a transposed copy of that operand, as kernels made for processors have; kernels made for GPUs \
                      are for `--arch`"
                .to_owned(),
            span: None,
        });
    }
    let text = tile_to_mlir::module_text(kernels, &target.vectors());
    let mut compiled = Compiled {
        mlir: None,
        llvm: None,
        asm: None,
        object: None,
        scratch_bytes: kernels.iter().map(|(kernel, _)| tile_to_mlir::scratch_bytes(kernel)).collect(),
    };
    if want.llvm || want.asm || want.object {
        let mlir_context = tile_to_mlir::context();
        let mlir = tile_to_mlir::parse(&mlir_context, &text)?;
        let context = inkwell::context::Context::create();
        let module = mlir_to_llvm::translate(&mlir_context, &mlir, &context)?;
        let machine = machine(target)?;
        optimise(&context, &module, &machine, target)?;
        if want.llvm {
            compiled.llvm = Some(module.print_to_string().to_string());
        }
        let bug = |pass: &'static str, message: String| CompileError::Bug {
            pass,
            message,
            dump: module.print_to_string().to_string(),
        };
        if want.asm {
            let buffer = machine
                .write_to_memory_buffer(&module, FileType::Assembly)
                .map_err(|message| bug("emit-assembly", message.to_string()))?;
            // inkwell's buffers end in NUL.
            compiled.asm = Some(String::from_utf8_lossy(buffer.as_slice()).trim_end_matches('\0').to_string());
        }
        if want.object {
            let buffer = machine
                .write_to_memory_buffer(&module, FileType::Object)
                .map_err(|message| bug("emit-object", message.to_string()))?;
            let bytes = buffer.as_slice();
            compiled.object = Some(bytes[..buffer.get_size().min(bytes.len())].to_vec());
        }
    }
    if want.mlir {
        compiled.mlir = Some(text);
    }
    Ok(compiled)
}

fn machine(target: &CpuTarget) -> Result<TargetMachine, CompileError> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| Target::initialize_x86(&InitializationConfig::default()));
    let triple = TargetTriple::create(TRIPLE);
    let missing = |message: String| CompileError::Bug {
        pass: "target-machine",
        message,
        dump: format!("{TRIPLE}, {}, {}", target.processor, target.features),
    };
    Target::from_triple(&triple)
        .map_err(|message| missing(message.to_string()))?
        .create_target_machine(
            &triple,
            &target.processor,
            &target.features,
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Default,
        )
        .ok_or_else(|| missing("LLVM does not know this processor".to_string()))
}

fn optimise(
    context: &inkwell::context::Context,
    module: &inkwell::module::Module<'_>,
    machine: &TargetMachine,
    target: &CpuTarget,
) -> Result<(), CompileError> {
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    for function in module.get_functions() {
        let set = |name: &str, value: &str| {
            function.add_attribute(AttributeLoc::Function, context.create_string_attribute(name, value));
        };
        set("target-cpu", &target.processor);
        set("target-features", &target.features);
        // Processors of the widest level are told apart by LLVM's taste for narrower vectors; ours is not that.
        match target.level {
            Level::Avx512 => set("prefer-vector-width", "512"),
            Level::Plain | Level::Avx2 => {}
        }
    }
    let bug = |pass: &'static str, message: String| CompileError::Bug {
        pass,
        message,
        dump: module.print_to_string().to_string(),
    };
    if cfg!(debug_assertions) {
        module.verify().map_err(|message| bug("verify-llvm", message.to_string()))?;
    }
    module
        .run_passes(PASSES, machine, PassBuilderOptions::create())
        .map_err(|message| bug("optimise-llvm", message.to_string()))
}
