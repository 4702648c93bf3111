//! What can be wrong with a call, in words for whoever made it.

use crate::tensor::{ElementType, ShapeError};

/// Why a kernel was not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchError {
    /// The artifact holds no such kernel.
    NoKernel {
        /// The recurrence.
        recurrence: String,
        /// `forward`, `forward that saves`, `backward`.
        what: &'static str,
    },
    /// A tensor that must be there is not.
    Missing {
        /// Its name.
        name: String,
        /// The shape it should have, with names of dimensions.
        expected: String,
    },
    /// A tensor has another element type than the kernel takes.
    Type {
        /// Its name.
        name: String,
        /// Type found.
        found: ElementType,
        /// Type expected.
        expected: ElementType,
    },
    /// A tensor has another shape than the call needs.
    Shape {
        /// Its name.
        name: String,
        /// Shape found.
        found: Vec<usize>,
        /// Shape expected, with names of dimensions.
        expected: String,
    },
    /// A tensor's heads do not divide the call's.
    Heads {
        /// Its name.
        name: String,
        /// Its number of heads.
        found: usize,
        /// The call's number of heads.
        heads: usize,
    },
    /// The offsets of packed sequences are none.
    Offsets {
        /// What is wrong with them.
        why: String,
    },
    /// A tensor does not lie as kernels on a GPU read it.
    Misaligned {
        /// Its name.
        name: String,
        /// What its address and strides should be multiples of, in bytes.
        wanted: usize,
    },
    /// The form takes no sequence as long as this.
    TooLong {
        /// The recurrence and the form.
        form: String,
        /// Tokens of the longest sequence.
        found: usize,
        /// Tokens the form takes.
        limit: usize,
    },
    /// A size is beyond what can be counted, or there is no memory for it.
    TooLarge {
        /// What is too large.
        what: String,
    },
    /// The kernel's own description cannot be right.
    Signature {
        /// What is wrong with it.
        why: String,
    },
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchError::NoKernel { recurrence, what } => write!(f, "`{recurrence}` was built without a {what} kernel"),
            LaunchError::Missing { name, expected } => {
                write!(f, "tensor `{name}` is missing; give one of shape {expected}")
            }
            LaunchError::Type { name, found, expected } => {
                write!(f, "tensor `{name}` holds {}, this kernel takes {}", found.name(), expected.name())
            }
            LaunchError::Shape { name, found, expected } => {
                write!(f, "tensor `{name}` has shape {found:?}, expected {expected}")
            }
            LaunchError::Heads { name, found, heads } => write!(
                f,
                "tensor `{name}` has {found} heads, which do not divide the {heads} heads of the largest tensor"
            ),
            LaunchError::Offsets { why } => write!(f, "the offsets of packed sequences {why}"),
            LaunchError::Misaligned { name, wanted } => write!(
                f,
                "tensor `{name}` begins at an address or has strides that are no multiples of {wanted} bytes, as kernels \
                 on a GPU need them; copy it to memory of its own"
            ),
            LaunchError::TooLong { form, found, limit } => write!(
                f,
                "{form} takes at most {limit} tokens a sequence, this one has {found}; use the chunkwise or the recurrent form"
            ),
            LaunchError::TooLarge { what } => write!(f, "{what} is too large"),
            LaunchError::Signature { why } => write!(f, "the kernel's description is damaged: {why}"),
        }
    }
}
impl std::error::Error for LaunchError {}

impl From<ShapeError> for LaunchError {
    fn from(error: ShapeError) -> LaunchError {
        match error {
            ShapeError::TooLarge { shape } | ShapeError::Count { shape, .. } => {
                LaunchError::TooLarge { what: format!("a tensor of shape {shape:?}") }
            }
        }
    }
}
