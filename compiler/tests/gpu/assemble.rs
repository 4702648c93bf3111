//! Every example compiles to PTX for every family; where NVIDIA's assembler is found, it takes the PTX, and no kernel
//! takes more shared memory or registers than its family has. On Hopper nothing spills that is not said here; elsewhere,
//! where a block has less than half the shared memory, what spills is printed.

use chunkwise_abi::gpu::GpuModule;
use chunkwise_abi::{DType, Signature};
use chunkwise_compiler::artifact::{Parts, choose_schedule, compile_gpu, compile_gpu_and};
use chunkwise_compiler::compile::Request;
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::error::CompileError;
use chunkwise_compiler::schedule::cost::{Gpu, Load};
use chunkwise_compiler::target::nvptx::FAMILIES;
use chunkwise_dsl::instance::Instance;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The assembler: `CHUNKWISE_PTXAS`, or `ptxas` on the path.
pub fn assembler() -> Option<PathBuf> {
    let named = std::env::var_os("CHUNKWISE_PTXAS").map(PathBuf::from);
    let program = named.unwrap_or_else(|| PathBuf::from("ptxas"));
    Command::new(&program).arg("--version").output().ok().filter(|out| out.status.success()).map(|_| program)
}

/// Kernels that lack registers on Hopper, laid out for heads that fill it, and bytes a thread may write to memory for it:
/// gradients of decays inside sums hold more than there are, others a word or a few at their fullest. Of forwards it is none
/// in a loop of those who compute.
const LACKING: [(&str, usize); 27] = [
    ("delta_rule_chunkwise_forward_prepare", 4),
    ("delta_rule_chunkwise_forward_saving_prepare", 4),
    ("gated_delta_product_chunkwise_backward_fused", 164),
    ("gated_delta_product_chunkwise_forward_prepare", 8),
    ("gated_delta_product_chunkwise_forward_saving_prepare", 8),
    ("gated_delta_rule_chunkwise_backward_fused", 60),
    ("gated_delta_rule_chunkwise_forward_prepare", 4),
    ("gated_delta_rule_chunkwise_forward_saving_prepare", 4),
    ("gla_chunkwise_backward_prepare", 32),
    ("gla_strong_decay_chunkwise_backward_prepare", 32),
    ("kda_chunkwise_backward_outputs", 116),
    ("kda_chunkwise_backward_prepare", 4),
    ("kda_chunkwise_forward_prepare", 4),
    ("kda_chunkwise_forward_saving_prepare", 4),
    ("linear_attention_chunkwise_forward_fused", 16),
    ("linear_attention_chunkwise_forward_saving_fused", 16),
    ("mamba1_chunkwise_backward_fused", 16),
    ("mamba1_chunkwise_forward_fused", 12),
    ("mamba2_chunkwise_backward_fused", 48),
    ("mlstm_chunkwise_backward_fused", 24),
    ("normalized_linear_attention_chunkwise_backward_fused", 24),
    ("retention_chunkwise_backward_fused", 48),
    ("retention_chunkwise_forward_fused", 16),
    ("rwkv6_chunkwise_backward_prepare", 60),
    ("rwkv7_chunkwise_backward_outputs", 348),
    ("rwkv7_chunkwise_backward_prepare", 62),
    ("simple_gla_chunkwise_backward_fused", 32),
];

/// Kernels, and bytes of a thread's own that the assembler had to put into memory.
fn spills(report: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut kernel = String::new();
    for line in report.lines() {
        if let Some(name) = line.split('\'').nth(1).filter(|_| line.contains("Compiling entry function")) {
            kernel = name.to_owned();
        }
        let stores = line.split("bytes stack frame, ").nth(1).and_then(|rest| rest.split(' ').next());
        if let Some(bytes) = stores.and_then(|bytes| bytes.parse().ok()) {
            found.push((kernel.clone(), bytes));
        }
    }
    found
}

/// What the assembler says of a module: of its registers and memory, or why it does not take it.
pub fn report(assembler: &Path, module: &GpuModule) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let (ptx, cubin) = (folder.path().join("kernel.ptx"), folder.path().join("kernel.cubin"));
    std::fs::write(&ptx, &module.ptx).unwrap();
    let out = Command::new(assembler)
        .args(["-v", "--warn-on-spills", "--warn-on-local-memory-usage"])
        .arg(format!("-arch={}", module.arch))
        .arg(&ptx)
        .arg("-o")
        .arg(&cubin)
        .output()
        .unwrap();
    let report = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(report) } else { Err(report) }
}

fn assemble(assembler: &Path, name: &str, module: &GpuModule) -> Vec<String> {
    let report = match report(assembler, module) {
        Ok(report) => report,
        Err(report) => return vec![format!("{name}: does not assemble:\n{report}")],
    };
    let mut wrong = Vec::new();
    for (kernel, bytes) in spills(&report).into_iter().filter(|(_, bytes)| *bytes > 0) {
        let allowed = LACKING.iter().find(|(known, _)| kernel.strip_prefix("cw_") == Some(known)).map_or(0, |it| it.1);
        match module.arch == "sm_90a" && bytes > allowed {
            true => wrong.push(format!("{kernel}: {bytes} bytes a thread are put into memory, {allowed} are known of")),
            false => println!("{kernel} {}: {bytes} bytes a thread are put into memory", module.arch),
        }
    }
    // Products of warp groups that wait for each other, since something else touches their registers.
    if module.arch == "sm_90a" && report.to_lowercase().contains("serializ") {
        wrong.push(format!("{name}: products of warp groups are serialised"));
    }
    for line in report.lines().filter(|line| line.contains("Used ")) {
        let registers = line.split("Used ").nth(1).and_then(|rest| rest.split(' ').next());
        let registers: usize = registers.and_then(|n| n.parse().ok()).expect("ptxas says how many registers are used");
        // A multiprocessor has 65,536; a block that needs more of them cannot start.
        if registers * module.kernels[0].threads as usize > 65_536 {
            wrong.push(format!("{name}: {registers} registers a thread"));
        }
    }
    wrong
}

#[test]
fn every_example_for_every_family() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let assembler = assembler();
    if assembler.is_none() {
        println!("skipped: no ptxas; name it in CHUNKWISE_PTXAS");
    }
    let only = std::env::var("CHUNKWISE_ONLY").unwrap_or_default();
    files.retain(|file| file.file_stem().is_some_and(|name| name.to_string_lossy().starts_with(&only)));
    assert!(!files.is_empty(), "nothing to compile");
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = one_example(file, assembler.as_deref());
                    wrong.lock().unwrap().extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Compiles an example in its forms for every family, and assembles what came out.
fn one_example(file: &Path, assembler: Option<&Path>) -> Vec<String> {
    let what = file.file_stem().unwrap().to_string_lossy().into_owned();
    let mut wrong = Vec::new();
    let mut made = 0;
    let compiled = chunkwise_dsl::compile(&std::fs::read_to_string(file).unwrap()).unwrap();
    let program = &compiled.programs[0];
    let sizes: BTreeMap<String, usize> = program
        .axes
        .iter()
        .filter_map(|axis| {
            let size = match axis.name.as_str() {
                "K" | "V" => 128,
                "N" => 16,
                "R" => 2,
                _ => return None,
            };
            Some((axis.name.clone(), size))
        })
        .collect();
    let instance = Instance::new(program, &sizes, &BTreeMap::new()).unwrap();
    for (form, chunk) in [(Form::Chunkwise, None), (Form::Recurrent, None)] {
        let request = Request { form, chunk, max_length: 0, backward: true, inside: Inside::default() };
        for family in FAMILIES {
            // As a library has it.
            let gpu = Gpu::of(family.capability, Gpu::H200.multiprocessors);
            let schedule = choose_schedule(&instance, &request, Parts::Both, DType::BF16, &gpu, &Load::MANY).unwrap();
            let recurrence = match compile_gpu(&instance, &request, Parts::Both, DType::BF16, family, &schedule) {
                Ok(recurrence) => recurrence,
                Err(CompileError::Limit { .. }) => continue,
                Err(error) => panic!("{what} {form:?} {}: {error:?}", family.name),
            };
            let modules = [&recurrence.forward, &recurrence.forward_saving, &recurrence.backward];
            for module in modules.into_iter().flatten() {
                made += 1;
                for kernel in &module.kernels {
                    assert!(kernel.shared_bytes as usize <= family.shared_limit, "{what} {}", kernel.symbol);
                }
                assert!(module.ptx.contains(".entry"), "{what}: no entry in\n{}", module.ptx);
                // Recurrent forms are small, and one family speaks for both.
                let speaks = form == Form::Chunkwise || family.name == "sm_80";
                if let (Some(assembler), true) = (assembler, speaks) {
                    let name = format!("{} {}", module.signature.symbol, family.name);
                    wrong.extend(assemble(assembler, &name, module));
                }
            }
        }
    }
    assert!(made > 0, "{what}: nothing was compiled");
    wrong
}

/// Kernels are compiled on threads of their own, and come out in one module, in order, the same every time.
#[test]
fn kernels_compiled_side_by_side_are_one_module() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms/gated_delta_rule.cw");
    let compiled = chunkwise_dsl::compile(&std::fs::read_to_string(file).unwrap()).unwrap();
    let sizes = BTreeMap::from([("K".to_owned(), 64), ("V".to_owned(), 64)]);
    let instance = Instance::new(&compiled.programs[0], &sizes, &BTreeMap::new()).unwrap();
    let request =
        Request { form: Form::Chunkwise, chunk: None, max_length: 0, backward: true, inside: Inside::default() };
    let schedule = "prepare + pass + outputs".parse().unwrap();
    let compile = || {
        let told = Mutex::new(Vec::new());
        let ready = |direction, _: &Signature, module: &GpuModule| {
            told.lock().unwrap().push((direction, module.ptx.clone()));
        };
        let (family, dtype) = (&FAMILIES[1], DType::BF16);
        let made = compile_gpu_and(&instance, &request, Parts::Both, dtype, family, &schedule, &ready).unwrap();
        let mut told = told.into_inner().unwrap();
        told.sort_by_key(|(direction, _)| *direction);
        (made, told)
    };
    let (first, told) = compile();
    assert_eq!(compile(), (first.clone(), told.clone()));
    let modules = [&first.forward, &first.forward_saving, &first.backward];
    let texts = modules.into_iter().flatten().map(|module| &module.ptx);
    assert!(texts.eq(told.iter().map(|(_, ptx)| ptx)), "every direction is told as it is made");
    let assembler = assembler();
    for module in modules.into_iter().flatten() {
        assert_eq!(module.kernels.len(), 3);
        assert_eq!(module.ptx.matches(".version").count(), 1, "{}", module.ptx);
        let entries: Vec<&str> =
            module.ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('(')).collect();
        assert!(entries.into_iter().eq(module.kernels.iter().map(|kernel| kernel.symbol.as_str())));
        if let Some(assembler) = &assembler {
            report(assembler, module).unwrap_or_else(|said| panic!("it does not assemble:\n{said}"));
        }
    }
}
