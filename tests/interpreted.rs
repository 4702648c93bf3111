//! Code for GPUs where there is none: every kernel goes through the interpreter of PTX, which watches what it does with
//! memory, and its results are held against the reference within the budgets of `verify`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chunkwise::engine::{Amount, Engine, Place, Plan};
use chunkwise::gpu::StandIn;
use chunkwise::options::{FormChoice, looped_axes};
use chunkwise::precision::Precision;
use chunkwise::verify::budget::{self, floor};
use chunkwise::verify::case::Case;
use chunkwise::verify::draw::draw;
use chunkwise::verify::measure::{Check, Finding};
use chunkwise::verify::{Failed, Row, verify_case_at};
use chunkwise_abi::gpu::{GpuModule, GpuRecurrence};
use chunkwise_abi::{Access, ArgSignature, KernelSignature, TensorArg};
use chunkwise_compiler::artifact::{Parts, USUAL_SCHEDULE};
use chunkwise_compiler::schedule::Schedule;
use chunkwise_compiler::target::nvptx::{Family, family};
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{AxisId, Program};
use chunkwise_ptx::{Launch, Memory, Module, NOT_A_NUMBER, run};
use chunkwise_runtime::batch::Batch;
use chunkwise_runtime::cpu::strides;
use chunkwise_runtime::cuda::module::{blocks, head, written};
use chunkwise_runtime::execute::{readable, sum_shared};
use chunkwise_runtime::tensor::{HostTensor, Tensors};

use clap::ValueEnum;

use crate::cli::root;
use crate::random::{Extent, number, try_many};

/// Runs kernels in the interpreter.
#[derive(Debug)]
pub struct Interpreter {
    family: &'static Family,
    schedule: Schedule,
    /// Blocks that run at a time.
    processors: usize,
    /// What is in memory that nobody wrote and anybody may read.
    unwritten: u8,
}

impl Interpreter {
    pub fn place(arch: &str, schedule: Schedule, processors: usize) -> Place {
        let family = family(arch).expect("there is such a family");
        Place::StandIn(Arc::new(Interpreter { family, schedule, processors, unwritten: NOT_A_NUMBER }))
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
            Ok::<Call, String>(Call { interpreter: self, memory: Memory::new(), tensors: BTreeMap::new(), batch })
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
struct Call<'a> {
    interpreter: &'a Interpreter,
    memory: Memory,
    tensors: BTreeMap<String, (chunkwise_ptx::Place, Vec<usize>)>,
    batch: Batch,
}

impl Call<'_> {
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
            let workspace = self.memory.add_scratch("the workspace", bytes, self.interpreter.unwritten);
            let head = head(&batch, self.memory.address(workspace), 0).map_err(|error| words(&error))?;
            let parameter: Vec<u8> = written(&head, &tensors).iter().flat_map(|it| it.to_le_bytes()).collect();
            let launch = Launch {
                kernel: code.kernel(&kernel.symbol).ok_or_else(|| format!("there is no `{}`", kernel.symbol))?,
                blocks,
                threads: kernel.threads,
                shared_bytes: kernel.shared_bytes,
                unwritten: self.interpreter.unwritten,
                parameter: &parameter,
            };
            run(&launch, &self.memory, self.interpreter.processors).map_err(|fault| words(&fault))?;
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

/// Every example, by name.
fn examples() -> Vec<Program> {
    let folder = std::fs::read_dir(root().join("examples/mechanisms")).unwrap();
    let mut files: Vec<_> =
        folder.map(|entry| entry.unwrap().path()).filter(|it| it.extension() == Some("cw".as_ref())).collect();
    files.sort();
    let program = |file| chunkwise_dsl::compile(&std::fs::read_to_string(file).unwrap()).unwrap().programs.remove(0);
    files.iter().map(program).collect()
}

/// How an example is tried: a form in a type, laid out somehow, on data of some size.
struct Trial {
    form: FormChoice,
    precision: Precision,
    schedule: &'static str,
    case: &'static str,
}

const CHUNKS: FormChoice = FormChoice::Chunkwise;
const TOKENS: FormChoice = FormChoice::Recurrent;

/// What takes turns. Lengths are no multiples of chunks, sizes none of what a warp has; every lowering and every way to
/// lay kernels out is among them. Axes have the sizes of K, V in their order.
const TRIALS: [Trial; 16] = [
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "fused",
        case: "seed=1,batch=2,tokens=70,heads=2,groups=2,chunk=32,init=yes,regime=usual,size.K=24,size.V=16",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "fused",
        case: "seed=2,batch=1,tokens=100,heads=1,groups=1,chunk=64,init=yes,regime=strong,size.K=16,size.V=60",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "prepare + pass, states bf16, operands bf16",
        case: "seed=3,batch=2,tokens=37,heads=2,groups=1,chunk=16,init=no,regime=mixed,size.K=8,size.V=8",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "prepare + pass + outputs, parts 2, states bf16, operands bf16",
        case: "seed=4,batch=1,tokens=81,heads=3,groups=1,chunk=32,init=yes,regime=usual,size.K=16,size.V=32",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::F16,
        schedule: "fused",
        case: "seed=5,batch=1,tokens=33,heads=2,groups=2,chunk=16,init=yes,regime=usual,size.K=17,size.V=12",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::F32,
        schedule: "fused",
        case: "seed=6,batch=1,tokens=45,heads=1,groups=1,chunk=32,init=yes,regime=saturated,size.K=20,size.V=33",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::F16,
        schedule: "prepare + pass + outputs",
        case: "seed=7,batch=1,tokens=65,heads=1,groups=1,chunk=32,init=no,regime=zeros,size.K=8,size.V=24",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::F32,
        schedule: "pass + outputs, threads 128",
        case: "seed=8,batch=2,tokens=17,heads=1,groups=1,chunk=16,init=yes,regime=weak,size.K=16,size.V=16",
    },
    Trial {
        form: TOKENS,
        precision: Precision::Bf16,
        schedule: "fused",
        case: "seed=9,batch=2,tokens=5,heads=2,groups=2,chunk=16,init=yes,regime=usual,size.K=60,size.V=24",
    },
    Trial {
        form: TOKENS,
        precision: Precision::F16,
        schedule: "fused",
        case: "seed=10,batch=1,tokens=1,heads=3,groups=1,chunk=16,init=yes,regime=usual,size.K=8,size.V=16",
    },
    Trial {
        form: TOKENS,
        precision: Precision::F32,
        schedule: "fused",
        case: "seed=11,batch=1,tokens=9,heads=1,groups=1,chunk=16,init=no,regime=bound,size.K=12,size.V=33",
    },
    Trial {
        form: FormChoice::Parallel,
        precision: Precision::Bf16,
        schedule: "fused",
        case: "seed=12,batch=1,tokens=15,heads=2,groups=1,chunk=16,init=yes,regime=usual,size.K=24,size.V=8",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "fused, spans 2, states bf16, operands bf16",
        case: "seed=13,batch=2,tokens=69,heads=1,groups=1,chunk=16,init=yes,regime=usual,size.K=16,size.V=24",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "prepare + pass, parts 2, spans 1, threads 128, states bf16, operands bf16",
        case: "seed=14,batch=1,tokens=75,heads=2,groups=1,chunk=32,init=yes,regime=weak,size.K=16,size.V=32",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "fused, states bf16, operands bf16, products warpgroup",
        case: "seed=15,batch=1,tokens=150,heads=3,groups=1,chunk=64,init=yes,regime=usual,size.K=24,size.V=72",
    },
    Trial {
        form: CHUNKS,
        precision: Precision::Bf16,
        schedule: "prepare + pass, spans 2, states bf16, operands bf16",
        case: "seed=16,batch=1,tokens=69,heads=2,groups=1,chunk=16,init=yes,regime=weak,size.K=16,size.V=16",
    },
];

/// What is beyond its budget in bfloat16, and why; see what does not hold in the book's chapter on measurements. What is
/// within its budget again has to go from here.
const BEYOND: [(&str, &str); 1] = [
    // The quotient's gradient is a difference of two products that are rounded apart.
    ("normalized_linear_attention", "grad.q"),
];

impl Trial {
    /// Whether a result is known to be beyond its budget, by no more than twice.
    fn is_known(&self, program: &Program, finding: &Finding) -> bool {
        let known = BEYOND.contains(&(program.name.as_str(), finding.tensor.as_str()));
        known && self.precision == Precision::Bf16 && finding.error <= 2.0 * finding.allowed
    }

    /// The case, with a size for each of the program's axes.
    fn case(&self, program: &Program) -> Case {
        let mut case: Case = self.case.parse().expect("a case");
        let sizes: Vec<usize> =
            [case.sizes["K"], case.sizes["V"]].into_iter().cycle().take(program.axes.len()).collect();
        let looped = looped_axes(program);
        let size = |at: usize| if looped.contains(&AxisId(at as u32)) { 2 } else { sizes[at] };
        case.sizes = program.axes.iter().enumerate().map(|(at, axis)| (axis.name.clone(), size(at))).collect();
        case
    }

    /// What went wrong with a program, if something did.
    fn wrong(&self, program: &Program) -> Vec<String> {
        let place = Interpreter::place("sm_90a", self.schedule.parse().expect("a schedule"), 1);
        let checks = [Check::Agrees(self.form.into(), self.precision)];
        let case = self.case(program);
        let report = verify_case_at(program, &BTreeMap::new(), &checks, &case, &place);
        let said = report.rows.iter().any(|row| row.cases > 0) || report.void > 0;
        let known = |failed: &&Failed| failed.finding.as_ref().is_some_and(|it| self.is_known(program, it));
        let failed = report.failed.iter().filter(|failed| !known(failed)).map(|failed| {
            match (&failed.finding, &failed.message) {
                (Some(it), _) => format!("{} is off by {:.1e}, allowed {:.1e}", it.tensor, it.error, it.allowed),
                (None, message) => message.clone().unwrap_or_default(),
            }
        });
        // Where every token is gone through by itself there are none.
        let no_spans = |row: &Row| row.limit.as_ref().is_some_and(|limit| limit.starts_with("no spans"));
        let scans = ["hgrn", "mamba1"].contains(&program.name.as_str());
        let limited = scans && report.rows.iter().any(no_spans);
        let silent = (!(said || limited)).then(|| "nothing was compared".to_owned());
        let (form, precision) = (self.form.name(), self.precision.name());
        let place = format!("{} {form} {precision}, {}, {case}", program.name, self.schedule);
        failed.chain(silent).map(|what| format!("{place}: {what}")).collect()
    }
}

/// Does something for many on all processors; what it finds wrong fails the test.
fn none_wrong<T: Sync>(items: &[T], wrong: impl Fn(&T) -> Vec<String> + Sync) {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let wrong = wrong(item);
                    found.lock().expect("no holder panics").extend(wrong);
                }
            });
        }
    });
    let found = found.into_inner().expect("no holder panics");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Each example in bfloat16, chunks and tokens, and in one of the other types; over all examples every trial.
#[test]
fn interpreted_examples_give_the_reference_s_results() {
    let all = std::env::var_os("CHUNKWISE_ALL_TRIALS").is_some();
    let taken = |number: usize, at: usize| {
        let turns = [[0, 1, 2, 3].as_slice(), &[4, 5, 6, 7], &[8, 9, 10, 11], &[12, 13, 14, 15]];
        all || turns.iter().any(|turn| turn[number % turn.len()] == at)
    };
    let examples = examples();
    let chosen: Vec<(&Program, &Trial)> = examples
        .iter()
        .enumerate()
        .flat_map(|(number, program)| {
            let taken = TRIALS.iter().enumerate().filter(move |(at, _)| taken(number, *at));
            taken.map(move |(_, trial)| (program, trial))
        })
        .collect();
    none_wrong(&chosen, |(program, trial)| trial.wrong(program));
}

/// What stands in a list of what is wrong is wrong.
#[test]
fn what_is_known_to_be_beyond_its_budget_is() {
    let examples = examples();
    for (name, tensor) in BEYOND {
        let program = examples.iter().find(|it| it.name == name).expect("an example");
        let place = Interpreter::place("sm_90a", USUAL_SCHEDULE, 1);
        let checks = [Check::Agrees(CHUNKS.into(), Precision::Bf16)];
        let report = verify_case_at(program, &BTreeMap::new(), &checks, &TRIALS[0].case(program), &place);
        let findings = report.failed.iter().filter_map(|failed| failed.finding.as_ref());
        assert!(findings.into_iter().any(|it| it.tensor == tensor), "{name}: {tensor} is within its budget");
    }
}

/// Rows and columns beyond the last are read along with the others. What is there must not matter, whether it is no number
/// or one.
#[test]
fn what_nobody_wrote_changes_no_bit() {
    let examples = examples();
    let named: Vec<&Program> =
        examples.iter().filter(|it| ["gated_delta_rule", "kda", "mlstm"].contains(&it.name.as_str())).collect();
    let (numbers, family) = ([NOT_A_NUMBER, 0x3f, 0x00], family("sm_90a").expect("there is such a family"));
    let chosen: Vec<(&Program, usize)> =
        named.into_iter().flat_map(|program| [0, 4, 13].map(|trial| (program, trial))).collect();
    none_wrong(&chosen, |(program, trial)| {
        let Trial { form, precision, schedule, .. } = TRIALS[*trial];
        let case = TRIALS[*trial].case(program);
        let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).expect("it has these axes");
        let plan =
            Plan { form, chunk: Some(case.chunk), precision, inside: Default::default(), threads: None, cache: false };
        let amount = Amount { batch: case.batch, length: case.tokens, heads: case.heads };
        let bundle = draw(program, &case, precision);
        let schedule = schedule.parse().expect("a schedule");
        let results = numbers.map(|unwritten| {
            let place = Place::StandIn(Arc::new(Interpreter { family, schedule, processors: 1, unwritten }));
            let engine = Engine::prepare_at(&place, &instance, &plan, Parts::Both, case.tokens, amount);
            engine.and_then(|mut engine| engine.run(&bundle, true)).expect("it runs")
        });
        let differ = results.iter().any(|it| *it != results[0]);
        differ.then(|| format!("{}, {case}: results differ", program.name)).into_iter().collect()
    });
}

/// Random programs as on a GPU. How many, from which seed: `CHUNKWISE_PROGRAMS`, `CHUNKWISE_SEED`.
#[test]
fn interpreted_random_programs() {
    let extent = Extent {
        first: number("CHUNKWISE_SEED", 3_000_100),
        count: number("CHUNKWISE_PROGRAMS", 6),
        within: Duration::MAX,
        enough: 1000,
        shrink_for: Duration::from_secs(number("CHUNKWISE_SHRINK_SECONDS", 10)),
        progress: true,
    };
    let place = Interpreter::place("sm_90a", USUAL_SCHEDULE, 1);
    let tally =
        try_many(&extent, &|seed| crate::random::Trial { wide: false, ..crate::random_gpu::trial(seed, &place) });
    assert!(tally.failures().is_empty(), "{}", tally.failures().join("\n\n"));
}

/// Keys that are nearly the same from token to token: each edit takes away most of what the last ones wrote, so that edits
/// are much larger than what they come to together. Operands in float32 keep what that asks for.
#[test]
fn interpreted_edits_with_correlated_keys() {
    let program = examples().into_iter().find(|it| it.name == "delta_rule").expect("it is an example");
    let sizes = [("K".to_owned(), 48), ("V".to_owned(), 64)].into();
    let instance = Instance::new(&program, &sizes, &BTreeMap::new()).expect("it has these axes");
    let mut bundle: Bundle = crate::cli::delta_rule(1, 70, 2, 48, 64);
    bundle.values_mut().flat_map(|it| &mut it.data).for_each(|it| *it = Precision::Bf16.round(*it));
    let expected = chunkwise_compiler::reference::run(&instance, &bundle).expect("it runs");
    let layouts = [
        ("fused", 32),
        ("fused", 64),
        ("prepare + pass, states bf16", 32),
        ("prepare + pass + outputs, parts 2, states bf16", 64),
    ];
    none_wrong(&layouts, |(schedule, chunk)| {
        let place = Interpreter::place("sm_90a", schedule.parse().expect("a schedule"), 1);
        let (chunk, precision) = (Some(*chunk), Precision::Bf16);
        let plan = Plan { form: CHUNKS, chunk, precision, inside: Default::default(), threads: None, cache: false };
        let amount = Amount { batch: 1, length: 70, heads: 2 };
        let engine = Engine::prepare_at(&place, &instance, &plan, Parts::Forward, 70, amount);
        let found = engine.and_then(|mut engine| engine.run(&bundle, false)).expect("it runs");
        let errors = expected.iter().map(|(name, it)| (name, found[name].relative_error(it, floor(it))));
        let wrong = errors.filter(|(name, error)| *error > budget::allowed(&program, name, precision));
        wrong.map(|(name, error)| format!("{schedule}, chunk {chunk:?}: {name} is off by {error:.1e}")).collect()
    });
}

/// A case of an example from the command line's words: `EXAMPLE` or `FILE`, `FORM`, `PRECISION`, `SCHEDULE`, `CASE`.
#[test]
#[ignore = "for looking into one case"]
fn interpreted_case() {
    let word = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let source = match std::env::var("FILE") {
        Ok(file) => std::fs::read_to_string(file).expect("a file"),
        Err(_) => {
            let name = word("EXAMPLE", "delta_rule");
            std::fs::read_to_string(root().join(crate::cli::example(&name))).expect("an example")
        }
    };
    let program = chunkwise_dsl::compile(&source).expect("a program").programs.remove(0);
    let form = FormChoice::value_variants().iter().find(|it| it.name() == word("FORM", "chunkwise")).expect("a form");
    let precision = Precision::ALL.into_iter().find(|it| it.name() == word("PRECISION", "bf16")).expect("a precision");
    let place = Interpreter::place("sm_90a", word("SCHEDULE", "fused").parse().unwrap(), 2);
    let case: Case = word("CASE", TRIALS[0].case).parse().unwrap();
    let report = verify_case_at(&program, &BTreeMap::new(), &[Check::Agrees((*form).into(), precision)], &case, &place);
    for worst in report.rows.iter().filter_map(|row| row.worst.as_ref()) {
        println!("{} is off by {:.2e}, allowed {:.2e}", worst.tensor, worst.error, worst.allowed);
    }
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}
