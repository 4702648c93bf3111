//! One way to compute a recurrence: the program as written, a derived form in the float64 interpreter, or compiled
//! code. In: a plan and tensors; out: results under the same names whichever way was taken. It never decides which
//! way is right: that is what `verify` compares.

use chunkwise_compiler::compile::{self, Derived, Request};
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;

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
    /// Worker threads; one a core if absent.
    pub threads: Option<usize>,
    /// Whether compiled code is kept and reused.
    pub cache: bool,
}

/// A recurrence made ready to run.
pub struct Engine<'p> {
    instance: Instance<'p>,
    way: Way,
}

enum Way {
    Reference,
    Interpreted(Box<Derived>),
}

impl<'p> Engine<'p> {
    /// Derives and compiles what the plan asks for. `length` is the longest sequence that will come, which a form
    /// whose memory depends on it has to know.
    pub fn prepare(instance: &Instance<'p>, plan: &Plan, backward: bool, length: usize) -> Result<Engine<'p>, Failure> {
        let way = match (plan.form.derived(), plan.precision) {
            (None, _) => Way::Reference,
            (Some(form), Precision::F64) => {
                let request = Request { form, chunk: plan.chunk, max_length: length, backward };
                Way::Interpreted(Box::new(compile::derive(instance, &request)?))
            }
            (Some(_), Precision::F32 | Precision::Bf16 | Precision::F16) => return Err(no_compiler()),
        };
        Ok(Engine { instance: instance.clone(), way })
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
                let result = match (backward, &derived.forward_saving, &derived.backward) {
                    (true, Some(saving), Some(backward)) => interp::run_backward(saving, backward, tensors, None),
                    (true, _, _) => return Err(Failure::Ours("gradients were not prepared".to_owned())),
                    (false, _, _) => interp::run(&derived.forward, tensors, None),
                };
                // The tensors were matched with the program before, so whatever is wrong is wrong here.
                result.map_err(|error| Failure::Ours(error.to_string()))
            }
        }
    }

    /// Changes the number of worker threads. An interpreter has one.
    pub fn set_threads(&mut self, threads: Option<usize>) {
        match &self.way {
            Way::Reference | Way::Interpreted(_) => {
                let _ = threads;
            }
        }
    }

    /// Tokens a chunk, where there are chunks.
    pub fn chunk(&self) -> Option<usize> {
        match &self.way {
            Way::Reference => None,
            Way::Interpreted(derived) => Some(derived.chunk),
        }
    }
}

fn no_compiler() -> Failure {
    Failure::Input(
        "this chunkwise was built without LLVM and makes no compiled code; use --dtype f64, or build it with the \
         feature `llvm`"
            .to_owned(),
    )
}
