//! Code for GPUs where there is none: every kernel goes through the interpreter of PTX, which watches what it does with
//! memory, and its results are held against the reference within the budgets of `verify`.

use std::collections::BTreeMap;
use std::sync::Arc;

use chunkwise::engine::Place;
use chunkwise::gpu::StandIn;
use chunkwise::options::FormChoice;
use chunkwise::precision::Precision;
use chunkwise::verify::case::Case;
use chunkwise::verify::measure::Check;
use chunkwise::verify::verify_case_at;
use chunkwise_abi::gpu::{GpuModule, GpuRecurrence};
use chunkwise_abi::{Access, ArgSignature, KernelSignature, TensorArg};
use chunkwise_compiler::artifact::USUAL_SCHEDULE;
use chunkwise_compiler::schedule::Schedule;
use chunkwise_compiler::target::nvptx::{Family, family};
use chunkwise_ptx::{Launch, Memory, Module, NOT_A_NUMBER, Tensor, run};
use chunkwise_runtime::batch::Batch;
use chunkwise_runtime::cpu::strides;
use chunkwise_runtime::cuda::module::{blocks, head, written};
use chunkwise_runtime::execute::{readable, sum_shared};
use chunkwise_runtime::tensor::{HostTensor, Tensors};

use crate::cli::{example, root};

/// Runs kernels in the interpreter.
#[derive(Debug)]
pub struct Interpreter {
    family: &'static Family,
    schedule: Schedule,
    /// Blocks that run at a time.
    processors: usize,
}

impl Interpreter {
    pub fn place(arch: &str, schedule: Schedule, processors: usize) -> Place {
        let family = family(arch).expect("there is such a family");
        Place::StandIn(Arc::new(Interpreter { family, schedule, processors }))
    }
}

impl StandIn for Interpreter {
    fn family(&self) -> &'static Family {
        self.family
    }

    fn schedule(&self) -> Schedule {
        self.schedule
    }

    fn run(&self, made: &GpuRecurrence, given: &Tensors, backward: bool) -> Result<Tensors, String> {
        let call = |modules: &[&GpuModule]| {
            let batch = batch(modules, given)?;
            Ok::<Call, String>(Call {
                memory: Memory::new(),
                tensors: BTreeMap::new(),
                batch,
                processors: self.processors,
            })
        };
        if !backward {
            let module = made.forward.as_ref().or(made.forward_saving.as_ref()).ok_or("there is no forward")?;
            return call(&[module])?.run(module, given);
        }
        let saving = made.forward_saving.as_ref().ok_or("there is no forward that saves")?;
        let gradients = made.backward.as_ref().ok_or("there is no backward")?;
        let mut call = call(&[saving, gradients])?;
        let mut results = call.run(saving, given)?;
        let mut more = call.run(gradients, given)?;
        sum_shared(&mut more, &gradients.signature, given).map_err(|error| error.to_string())?;
        results.extend(more);
        Ok(results)
    }
}

/// A call of one or two directions: what is in memory, by the names of the calling contract.
struct Call {
    memory: Memory,
    tensors: BTreeMap<String, (Tensor, Vec<usize>)>,
    batch: Batch,
    processors: usize,
}

impl Call {
    /// Runs the kernels of a direction; gives what they wrote but for what is saved.
    fn run(&mut self, module: &GpuModule, given: &Tensors) -> Result<Tensors, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let batch = self.batch.clone();
        let mut tensors = Vec::new();
        for arg in &module.signature.args {
            tensors.push(self.argument(arg, given, &batch)?);
        }
        for arg in &module.temporaries {
            let arg = ArgSignature { access: Access::Write, ..arg.clone() };
            self.tensors.remove(&arg.name);
            tensors.push(self.argument(&arg, given, &batch)?);
        }
        let code = Module::parse(&module.ptx)?;
        for kernel in &module.kernels {
            let Some(blocks) = blocks(kernel.grid, &batch).map_err(|error| words(&error))? else { continue };
            let bytes = blocks.iter().map(|n| *n as usize).product::<usize>() * kernel.workspace_bytes as usize;
            let workspace = self.memory.add("the workspace", bytes, 256, None);
            let head = head(&batch, self.memory.address(workspace), 0).map_err(|error| words(&error))?;
            let parameter: Vec<u8> = written(&head, &tensors).iter().flat_map(|it| it.to_le_bytes()).collect();
            let launch = Launch {
                kernel: code.kernel(&kernel.symbol).ok_or_else(|| format!("there is no `{}`", kernel.symbol))?,
                blocks,
                threads: kernel.threads,
                shared_bytes: kernel.shared_bytes,
                unwritten: NOT_A_NUMBER,
                parameter: &parameter,
            };
            run(&launch, &self.memory, self.processors).map_err(|fault| words(&fault))?;
        }
        let mut results = Tensors::new();
        for arg in module.signature.args.iter().filter(|arg| arg.access == Access::Write) {
            let (tensor, shape) = &self.tensors[&arg.name];
            self.memory.may_be_written(*tensor, false);
            if !arg.name.starts_with("saved.") {
                let mut result = HostTensor::zeros(arg.dtype.into(), shape).map_err(|error| words(&error))?;
                result.bytes_mut().copy_from_slice(&self.memory.bytes(*tensor));
                results.insert(arg.name.clone(), result);
            }
        }
        Ok(results)
    }

    /// A tensor as a kernel gets it, put into memory where it is not there yet.
    fn argument(&mut self, arg: &ArgSignature, given: &Tensors, batch: &Batch) -> Result<TensorArg, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        if !self.tensors.contains_key(&arg.name) {
            let (shape, content) = match arg.access {
                Access::Write => (batch.shape(arg, batch.heads).map_err(|error| words(&error))?, None),
                Access::Read => {
                    let saved = Tensors::new();
                    let tensor = readable(arg, given, &saved, batch).map_err(|error| words(&error))?;
                    (tensor.shape().to_vec(), Some(tensor.bytes().to_vec()))
                }
            };
            let bytes = shape.iter().product::<usize>() * arg.dtype.bytes();
            let tensor = self.memory.add(&arg.name, bytes, arg.alignment(), content.as_deref());
            self.tensors.insert(arg.name.clone(), (tensor, shape));
        }
        let (tensor, shape) = &self.tensors[&arg.name];
        let heads = batch.check_shape(arg, arg.dtype.into(), shape).map_err(|error| words(&error))?;
        let data = std::ptr::without_provenance_mut(self.memory.address(*tensor) as usize);
        strides(arg.role, shape, heads, data).map_err(|error| words(&error))
    }
}

/// The sizes of a call, from what any of its directions reads.
fn batch(modules: &[&GpuModule], given: &Tensors) -> Result<Batch, String> {
    let args = modules.iter().flat_map(|module| module.signature.args.iter().cloned()).collect();
    let together = KernelSignature { symbol: String::new(), args, scratch_bytes: 0 };
    Batch::of(&together, given, None).map_err(|error| error.to_string())
}

/// Every example.
fn examples() -> Vec<String> {
    let folder = std::fs::read_dir(root().join("examples/mechanisms")).unwrap();
    let names = folder.filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".cw").map(str::to_owned));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn examples_try() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let precisions = std::env::var("PRECISION").unwrap_or("bf16,f16,f32".to_owned());
    let schedule = std::env::var("SCHEDULE").map_or(USUAL_SCHEDULE, |it| it.parse().unwrap());
    let place = Interpreter::place("sm_90a", schedule, 2);
    for name in examples() {
        if !name.contains(&only) {
            continue;
        }
        let source = std::fs::read_to_string(root().join(example(&name))).unwrap();
        let program = chunkwise_dsl::compile(&source).unwrap().programs.remove(0);
        for precision in [Precision::Bf16, Precision::F16, Precision::F32] {
            if !precisions.contains(precision.name()) {
                continue;
            }
            for form in [FormChoice::Chunkwise, FormChoice::Recurrent] {
                for number in 0..std::env::var("CASES").map_or(2, |it| it.parse().unwrap()) {
                    let case = match std::env::var("CASE") {
                        Ok(case) => case.parse().unwrap(),
                        Err(_) => Case::draw(&program, 7, number),
                    };
                    let begun = std::time::Instant::now();
                    let report = verify_case_at(
                        &program,
                        &BTreeMap::new(),
                        &[Check::Agrees(form.into(), precision)],
                        &case,
                        &place,
                    );
                    let worst: Vec<String> = report
                        .rows
                        .iter()
                        .filter_map(|row| row.worst.as_ref())
                        .map(|it| format!("{} {:.1e}/{:.0e}", it.tensor, it.error, it.allowed))
                        .collect();
                    println!(
                        "{name} {} {} {case}: {:.2} s {worst:?}",
                        precision.name(),
                        form.name(),
                        begun.elapsed().as_secs_f64()
                    );
                    for failed in report.failed {
                        println!("  FAILED {:?} {:?}", failed.message, failed.finding);
                    }
                }
            }
        }
    }
}
