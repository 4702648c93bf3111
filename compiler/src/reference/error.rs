//! What can be wrong with the tensors given to the reference, in words for whoever gave them.

use std::fmt;

/// Why the reference did not run. Never about the program: that was checked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReferenceError {
    /// A tensor that the program needs was not given.
    Missing {
        /// Its name.
        name: String,
        /// The shape it should have had.
        expected: String,
    },
    /// A tensor that the program does not know was given.
    Unknown {
        /// Its name.
        name: String,
        /// The names that would have been understood.
        known: Vec<String>,
    },
    /// A tensor of another shape than the program and the other tensors ask for.
    Shape {
        /// Its name.
        name: String,
        /// The shape it has.
        found: Vec<usize>,
        /// The shape it should have.
        expected: String,
    },
    /// A tensor whose data are more or fewer than its shape says.
    Elements {
        /// Its name.
        name: String,
        /// The shape it has.
        shape: Vec<usize>,
        /// How many elements it holds.
        found: usize,
    },
    /// A tensor whose head count does not divide the head count of the call.
    Heads {
        /// Its name.
        name: String,
        /// Its head count.
        found: usize,
        /// The largest head count of all tensors.
        heads: usize,
    },
    /// The program has no input, so nothing says how many tokens there are.
    NoInput {
        /// The program.
        program: String,
    },
    /// Offsets of packed sequences that do not describe a packing.
    Offsets {
        /// What is wrong with them.
        reason: String,
    },
    /// More than the reference is willing to hold.
    TooLarge {
        /// The number that is too large, in words.
        what: String,
        /// The largest it may be.
        limit: usize,
    },
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReferenceError::Missing { name, expected } => {
                write!(out, "`{name}` is missing: a tensor of shape {expected} is needed")
            }
            ReferenceError::Unknown { name, known } => {
                write!(out, "`{name}` is not a tensor of this recurrence; it knows {}", known.join(", "))
            }
            ReferenceError::Shape { name, found, expected } => {
                write!(out, "`{name}` has shape {found:?}, but {expected} was expected")
            }
            ReferenceError::Elements { name, shape, found } => {
                write!(out, "`{name}` has shape {shape:?} but holds {found} elements")
            }
            ReferenceError::Heads { name, found, heads } => write!(
                out,
                "`{name}` has {found} heads and another tensor has {heads}: \
                 the smaller count must divide the larger, so that heads can share it in groups"
            ),
            ReferenceError::NoInput { program } => {
                write!(out, "`{program}` has no input, so nothing says how many tokens there are")
            }
            ReferenceError::Offsets { reason } => {
                write!(out, "the offsets of the packed sequences are wrong: {reason}")
            }
            ReferenceError::TooLarge { what, limit } => {
                write!(out, "{what} is too large for the reference, whose limit is {limit}")
            }
        }
    }
}

impl std::error::Error for ReferenceError {}
