//! What a recurrence means, in float64 and in the plainest way: token by token, head by head, statement by statement.
//!
//! Comes from a checked program with its sizes, goes to every test and to `verify` as the truth to compare with. It
//! shares nothing with the derivation: no chunk, no normal form, and a reverse mode of its own that walks back over
//! the very operations it did.
//!
//! ```text
//! program + sizes --plan--> flat list of operations --interp--> outputs, final states, gradients
//! program --numpy--> the same as a Python function
//! ```
//!
//! Conventions where a derivative does not exist: |x| and relu have slope 0 at 0, sign has slope 0 everywhere, a tie
//! in `min` or `max` splits the gradient equally. NaN goes through every function as in NumPy.

mod bind;
mod error;
mod functions;
mod interp;
mod nest;
pub mod numpy;
mod plan;
mod python;
mod rounding;
mod rows;
mod sums;

pub use error::ReferenceError;
pub use interp::{run, run_backward, run_backward_rounded, run_packed, run_packed_backward};
pub use rounding::Rounding;
