//! One way to compute a recurrence: the program as written, a derived form in the float64 interpreter, or compiled
//! code. In: a plan and tensors; out: results under the same names whichever way was taken. It never decides which
//! way is right: that is what `verify` compares.

use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::compile::{self, Derived, Request};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::interp::{self, Extent};
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Program, TensorKind};

use crate::failure::Failure;
use crate::options::FormChoice;
use crate::precision::Precision;

/// Whether this build makes compiled code.
pub const COMPILES: bool = cfg!(feature = "llvm");

/// How to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which form.
    pub form: FormChoice,
    /// Tokens a chunk; the compiler's choice if absent.
    pub chunk: Option<usize>,
    /// Type of the tensors of a token. float64 means an interpreter.
    pub precision: Precision,
    /// How a decay inside a sum is computed within a block.
    pub inside: Inside,
    /// Worker threads; one a core if absent.
    pub threads: Option<usize>,
    /// Whether compiled code is kept and reused.
    pub cache: bool,
}

/// How much a call brings, by which kernels for a GPU are laid out when nobody says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Sequences.
    pub batch: usize,
    /// Tokens of the longest.
    pub length: usize,
    /// Heads.
    pub heads: usize,
}

/// Where compiled code runs.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// On this machine's processor.
    #[default]
    Cpu,
    /// On a GPU.
    #[cfg(feature = "llvm")]
    Gpu(crate::gpu::Gpu),
    /// On what runs code for a GPU in its stead.
    #[cfg(feature = "llvm")]
    StandIn(std::sync::Arc<dyn crate::gpu::StandIn>),
}

impl Place {
    /// What of a call's amount decides how its kernels are laid out: calls with the same may share them.
    pub fn layout(&self, amount: Amount) -> String {
        match self {
            Place::Cpu => {
                let _ = amount;
                String::new()
            }
            #[cfg(feature = "llvm")]
            Place::Gpu(gpu) => gpu.layout(amount),
            #[cfg(feature = "llvm")]
            Place::StandIn(stand_in) => stand_in.schedule().to_string(),
        }
    }
}

/// A recurrence made ready to run.
pub struct Engine<'p> {
    instance: Instance<'p>,
    way: Way,
}

enum Way {
    Reference,
    Interpreted(Box<Derived>),
    #[cfg(feature = "llvm")]
    Compiled(Box<crate::compiled::Compiled>, Option<usize>),
    /// On a GPU.
    #[cfg(feature = "llvm")]
    OnGpu(Box<crate::gpu::OnGpu>),
    /// In the stead of a GPU.
    #[cfg(feature = "llvm")]
    StandIn(Box<chunkwise_abi::gpu::GpuRecurrence>, std::sync::Arc<dyn crate::gpu::StandIn>),
    /// A forward, an axis in blocks, each on threads of its own.
    #[cfg(feature = "llvm")]
    Blocks(Box<chunkwise_runtime::blocks::Blocks>, Option<usize>),
}

impl<'p> Engine<'p> {
    /// Prepares for a call with that many heads and sequences together: where they are fewer than the threads, a
    /// forward is cut along an axis too.
    pub fn prepare_for(
        instance: &Instance<'p>,
        plan: &Plan,
        parts: Parts,
        length: usize,
        items: usize,
    ) -> Result<Engine<'p>, Failure> {
        #[cfg(feature = "llvm")]
        if let (Some(form), Some(dtype), Parts::Forward) = (plan.form.derived(), plan.precision.compiled(), parts) {
            let request = request(form, plan.chunk, length, parts, plan.inside);
            let threads = crate::compiled::options(plan.threads).threads;
            let blocks = crate::compiled::prepare_blocks(instance, &request, dtype, plan.cache, items, threads)?;
            if let Some(blocks) = blocks {
                return Ok(Engine { instance: instance.clone(), way: Way::Blocks(Box::new(blocks), plan.threads) });
            }
        }
        let _ = items;
        Engine::prepare(instance, plan, parts, length)
    }

    /// Derives and compiles what the plan asks for. `length` is the longest sequence that will come, which a form
    /// whose memory depends on it has to know.
    pub fn prepare(instance: &Instance<'p>, plan: &Plan, parts: Parts, length: usize) -> Result<Engine<'p>, Failure> {
        let way = match (plan.form.derived(), plan.precision.compiled()) {
            (None, _) => Way::Reference,
            (Some(form), None) => {
                let request = request(form, plan.chunk, length, parts, plan.inside);
                Way::Interpreted(Box::new(compile::derive(instance, &request)?))
            }
            #[cfg(feature = "llvm")]
            (Some(form), Some(dtype)) => {
                let request = request(form, plan.chunk, length, parts, plan.inside);
                let compiled = crate::compiled::prepare(instance, &request, parts, dtype, plan.cache)?;
                Way::Compiled(Box::new(compiled), plan.threads)
            }
            #[cfg(not(feature = "llvm"))]
            (Some(_), Some(_)) => return Err(no_compiler()),
        };
        Ok(Engine { instance: instance.clone(), way })
    }

    /// Derives and compiles what the plan asks for, for a place.
    pub fn prepare_at(
        place: &Place,
        instance: &Instance<'p>,
        plan: &Plan,
        parts: Parts,
        length: usize,
        amount: Amount,
    ) -> Result<Engine<'p>, Failure> {
        let _ = amount;
        match place {
            Place::Cpu => Engine::prepare(instance, plan, parts, length),
            #[cfg(feature = "llvm")]
            Place::Gpu(gpu) => Engine::prepare_on(gpu, instance, plan, parts, length, amount),
            #[cfg(feature = "llvm")]
            Place::StandIn(stand_in) => Engine::prepare_in_stead(stand_in, instance, plan, parts, length),
        }
    }

    /// Derives and compiles what the plan asks for, for what runs code for a GPU in its stead.
    #[cfg(feature = "llvm")]
    fn prepare_in_stead(
        stand_in: &std::sync::Arc<dyn crate::gpu::StandIn>,
        instance: &Instance<'p>,
        plan: &Plan,
        parts: Parts,
        length: usize,
    ) -> Result<Engine<'p>, Failure> {
        let (form, dtype) = derived_in_a_narrow_type(plan)?;
        let request = request(form, plan.chunk, length, parts, plan.inside);
        let schedule = Some(stand_in.schedule());
        let made = crate::gpu::make(instance, &request, parts, dtype, stand_in.family(), schedule)?;
        let way = Way::StandIn(Box::new(made), std::sync::Arc::clone(stand_in));
        Ok(Engine { instance: instance.clone(), way })
    }

    /// Derives and compiles what the plan asks for, for a GPU. The plan's threads mean nothing there.
    #[cfg(feature = "llvm")]
    pub fn prepare_on(
        gpu: &crate::gpu::Gpu,
        instance: &Instance<'p>,
        plan: &Plan,
        parts: Parts,
        length: usize,
        amount: Amount,
    ) -> Result<Engine<'p>, Failure> {
        let (form, dtype) = derived_in_a_narrow_type(plan)?;
        let request = request(form, plan.chunk, length, parts, plan.inside);
        let made = crate::gpu::prepare(instance, &request, parts, dtype, gpu, plan.cache, amount)?;
        Ok(Engine { instance: instance.clone(), way: Way::OnGpu(Box::new(made)) })
    }

    /// Computes outputs and final states, with `backward` also every gradient.
    pub fn run(&mut self, tensors: &Bundle, backward: bool) -> Result<Bundle, Failure> {
        match &self.way {
            Way::Reference if backward => {
                reference::run_backward(&self.instance, tensors).map_err(|error| Failure::Input(error.to_string()))
            }
            Way::Reference => {
                reference::run(&self.instance, tensors).map_err(|error| Failure::Input(error.to_string()))
            }
            Way::Interpreted(derived) => {
                let extent = extent(self.instance.program, tensors);
                let result = match (backward, &derived.forward_saving, &derived.backward) {
                    (true, Some(saving), Some(backward)) => {
                        interp::run_backward_over(saving, backward, tensors, &extent)
                    }
                    (true, _, _) => return Err(Failure::Ours("gradients were not prepared".to_owned())),
                    (false, _, _) => interp::run_over(&derived.forward, tensors, &extent),
                };
                // The tensors were matched with the program before, so whatever is wrong is wrong here.
                result.map_err(|error| Failure::Ours(error.to_string()))
            }
            #[cfg(feature = "llvm")]
            Way::Compiled(compiled, threads) => crate::compiled::run(&compiled.artifact, tensors, backward, *threads),
            #[cfg(feature = "llvm")]
            Way::OnGpu(made) => crate::gpu::run(&made.artifact, tensors, backward),
            #[cfg(feature = "llvm")]
            Way::StandIn(made, stand_in) => {
                let given = crate::compiled::narrow(&made.signature, tensors)?;
                let results = stand_in.run(made, &given, backward).map_err(Failure::Ours)?;
                Ok(crate::compiled::widen(&results))
            }
            #[cfg(feature = "llvm")]
            Way::Blocks(..) if backward => Err(Failure::Ours("gradients were not prepared".to_owned())),
            #[cfg(feature = "llvm")]
            Way::Blocks(blocks, threads) => crate::compiled::run_blocks(blocks, tensors, *threads),
        }
    }

    /// Changes the number of worker threads. An interpreter has one.
    pub fn set_threads(&mut self, number: Option<usize>) {
        match &mut self.way {
            #[cfg(feature = "llvm")]
            Way::Compiled(_, threads) | Way::Blocks(_, threads) => *threads = number,
            #[cfg(feature = "llvm")]
            Way::OnGpu(_) | Way::StandIn(..) => {}
            Way::Reference | Way::Interpreted(_) => {
                let _ = number;
            }
        }
    }

    /// Tokens a chunk, where there are chunks.
    pub fn chunk(&self) -> Option<usize> {
        match &self.way {
            Way::Reference => None,
            Way::Interpreted(derived) => Some(derived.chunk),
            #[cfg(feature = "llvm")]
            Way::Compiled(compiled, _) => Some(compiled.artifact.signature.chunk),
            #[cfg(feature = "llvm")]
            Way::OnGpu(made) => Some(made.artifact.signature.chunk),
            #[cfg(feature = "llvm")]
            Way::StandIn(made, _) => Some(made.signature.chunk),
            #[cfg(feature = "llvm")]
            Way::Blocks(blocks, _) => Some(blocks.artifact.signature.chunk),
        }
    }

    /// What the user should know about how it was prepared.
    pub fn warning(&self) -> Option<&str> {
        match &self.way {
            Way::Reference | Way::Interpreted(_) => None,
            #[cfg(feature = "llvm")]
            Way::Compiled(compiled, _) => compiled.warning.as_deref(),
            #[cfg(feature = "llvm")]
            Way::OnGpu(made) => made.warning.as_deref(),
            #[cfg(feature = "llvm")]
            Way::Blocks(..) | Way::StandIn(..) => None,
        }
    }

    /// The compiled code, where there is some.
    #[cfg(feature = "llvm")]
    pub fn compiled(&self) -> Option<&crate::compiled::Compiled> {
        match &self.way {
            Way::Reference | Way::Interpreted(_) | Way::Blocks(..) | Way::OnGpu(_) | Way::StandIn(..) => None,
            Way::Compiled(compiled, _) => Some(compiled),
        }
    }

    /// The code on a GPU, where there is some.
    #[cfg(feature = "llvm")]
    pub fn on_gpu(&self) -> Option<&crate::gpu::OnGpu> {
        match &self.way {
            Way::Reference | Way::Interpreted(_) | Way::Blocks(..) | Way::Compiled(..) | Way::StandIn(..) => None,
            Way::OnGpu(made) => Some(made),
        }
    }
}

/// What a GPU can be asked for.
#[cfg(feature = "llvm")]
fn derived_in_a_narrow_type(plan: &Plan) -> Result<(Form, chunkwise_abi::DType), Failure> {
    plan.form.derived().zip(plan.precision.compiled()).ok_or_else(|| {
        Failure::Input(
            "a GPU computes the derived forms in f32, bf16 or f16; leave out --device for the float64 interpreters"
                .to_owned(),
        )
    })
}

/// How many sequences, tokens and heads there are. The program's own tensors say so: a graph may read none of them.
fn extent(program: &Program, tensors: &Bundle) -> Extent {
    let mut extent = Extent { batch: 0, length: 0, heads: 0, offsets: None };
    for tensor in &program.tensors {
        match (tensor.kind, tensors.get(&tensor.name).map(|it| it.shape.as_slice())) {
            (TensorKind::Input, Some([batch, length, heads, ..])) => {
                (extent.batch, extent.length) = (*batch, *length);
                extent.heads = extent.heads.max(*heads);
            }
            (TensorKind::Param, Some([heads, ..])) => extent.heads = extent.heads.max(*heads),
            // Refused where the tensors were matched with the program.
            (TensorKind::Input | TensorKind::Param, Some(_) | None) => {}
        }
    }
    // First states and cotangents may have the heads that inputs share.
    for (name, tensor) in tensors {
        let at = match name.split_once('.') {
            Some(("grad_out", _)) => 2,
            Some(("init" | "grad_final", _)) => 1,
            Some(_) | None => continue,
        };
        extent.heads = extent.heads.max(tensor.shape.get(at).copied().unwrap_or(0));
    }
    extent
}

/// What to ask of the compiler. Only a parallel form is made for a length, which is rounded up so that sequences of
/// nearly the same length share one.
pub fn request(form: Form, chunk: Option<usize>, length: usize, parts: Parts, inside: Inside) -> Request {
    let max_length = match form {
        Form::Parallel if length <= 16 => 16,
        Form::Parallel => length.checked_next_multiple_of(64).unwrap_or(length),
        Form::Recurrent | Form::Chunkwise => 0,
    };
    let backward = match parts {
        Parts::Forward => false,
        Parts::Gradients | Parts::Both => true,
    };
    Request { form, chunk, max_length, backward, inside }
}

/// Said wherever compiled code is asked for and cannot be made.
#[cfg(not(feature = "llvm"))]
pub fn no_compiler() -> Failure {
    Failure::Input(
        "this chunkwise was built without LLVM and makes no compiled code; use --dtype f64, or build it with the \
         feature `llvm`"
            .to_owned(),
    )
}
