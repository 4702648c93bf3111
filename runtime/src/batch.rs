//! How many sequences, tokens and heads a call has, and what shapes follow.
//!
//! Comes in: sizes or the tensors of a call. Goes out: a checked [`Batch`], and the shape of any argument. It never
//! touches elements.

use crate::error::LaunchError;
use crate::tensor::{ElementType, HostTensor, Tensors};
use chunkwise_abi::{Access, ArgSignature, KernelSignature, Role, chunk_slot};

/// The sequences of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sequences {
    /// `count` sequences of `length` tokens each: tensors of tokens are `[count, length, …]`.
    Equal {
        /// B
        count: usize,
        /// T
        length: usize,
    },
    /// One after the other, sequence n from token `offsets[n]` to `offsets[n + 1]`: tensors of tokens are
    /// `[1, total, …]`. Made by [`Sequences::packed`].
    Packed(Offsets),
}

/// Offsets that start at 0 and do not fall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets(Vec<i64>);

/// What a call works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its sequences.
    pub sequences: Sequences,
    /// H
    pub heads: usize,
}

impl Sequences {
    /// Packed sequences, from the first token of each and, last, the number of all.
    pub fn packed(offsets: &[usize]) -> Result<Sequences, LaunchError> {
        let fail = |why: String| Err(LaunchError::Offsets { why });
        if offsets.first() != Some(&0) {
            return fail("must start with 0".to_string());
        }
        if let Some(at) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
            return fail(format!("fall from {} to {}", offsets[at], offsets[at + 1]));
        }
        match offsets.iter().map(|offset| i64::try_from(*offset)).collect::<Result<_, _>>() {
            Ok(offsets) => Ok(Sequences::Packed(Offsets(offsets))),
            Err(_) => fail("are too large".to_string()),
        }
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        match self {
            Sequences::Equal { count, .. } => *count,
            Sequences::Packed(offsets) => offsets.0.len() - 1,
        }
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        match self {
            Sequences::Equal { length, .. } => *length,
            Sequences::Packed(offsets) => {
                offsets.0.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
            }
        }
    }

    /// Tokens of all sequences; none beyond what can be counted.
    pub fn total(&self) -> Option<usize> {
        match self {
            Sequences::Equal { count, length } => count.checked_mul(*length),
            Sequences::Packed(offsets) => offsets.0.last().map(|total| *total as usize),
        }
    }

    /// The leading dimensions of a tensor of tokens.
    fn leading(&self) -> [usize; 2] {
        match self {
            Sequences::Equal { count, length } => [*count, *length],
            Sequences::Packed(offsets) => [1, offsets.0.last().copied().unwrap_or(0) as usize],
        }
    }

    /// Offsets as a kernel takes them; none for equal lengths.
    pub fn offsets(&self) -> Option<&[i64]> {
        match self {
            Sequences::Equal { .. } => None,
            Sequences::Packed(offsets) => Some(&offsets.0),
        }
    }
}

impl Batch {
    /// The sizes of a call, from the tensors a kernel reads: B and T from the first tensor of tokens, H from the
    /// largest number of heads. With `offsets` the sequences are packed.
    pub fn of(kernel: &KernelSignature, tensors: &Tensors, offsets: Option<&[usize]>) -> Result<Batch, LaunchError> {
        let given = || {
            let read = kernel.args.iter().filter(|arg| arg.access == Access::Read);
            read.filter_map(|arg| Some((arg, tensors.get(&arg.name)?)))
        };
        let mut heads = None;
        for (arg, tensor) in given() {
            let own = heads_of(arg, tensor.shape())?;
            heads = heads.max(Some(own));
        }
        let Some(heads) = heads else {
            let why = "none of its tensors is given, so the sizes of the call are unknown".to_string();
            return Err(match kernel.args.iter().find(|arg| arg.access == Access::Read) {
                Some(arg) => LaunchError::Missing { name: arg.name.clone(), expected: described(arg) },
                None => LaunchError::Signature { why },
            });
        };
        if let Some(offsets) = offsets {
            return Ok(Batch { sequences: Sequences::packed(offsets)?, heads });
        }
        if let Some((_, tensor)) = given().find(|(arg, _)| arg.role == Role::Token) {
            let (count, length) = (tensor.shape()[0], tensor.shape()[1]);
            return Ok(Batch { sequences: Sequences::Equal { count, length }, heads });
        }
        match kernel.args.iter().find(|arg| arg.role == Role::Token && arg.access == Access::Read) {
            Some(arg) => Err(LaunchError::Missing { name: arg.name.clone(), expected: described(arg) }),
            None => Err(LaunchError::Signature { why: "it reads nothing that has a length".to_string() }),
        }
    }

    /// The shape of an argument with `heads` heads.
    pub fn shape(&self, arg: &ArgSignature, heads: usize) -> Result<Vec<usize>, LaunchError> {
        let leading = match arg.role {
            Role::Token => self.sequences.leading().to_vec(),
            Role::Head => vec![],
            Role::Sequence => vec![self.sequences.count()],
            Role::Chunk(0) => return Err(LaunchError::Signature { why: "a chunk of no tokens".to_string() }),
            Role::Chunk(chunk) => {
                let too_large = || LaunchError::TooLarge { what: "the number of tokens".to_string() };
                let total = self.sequences.total().ok_or_else(too_large)?;
                vec![chunk_slot(chunk, total, self.sequences.count())]
            }
        };
        Ok(leading.into_iter().chain([heads]).chain(arg.inner.iter().copied()).collect())
    }

    /// Checks that a tensor is what the call needs for an argument; gives its number of heads.
    pub fn check(&self, arg: &ArgSignature, tensor: &HostTensor) -> Result<usize, LaunchError> {
        self.check_shape(arg, tensor.dtype(), tensor.shape())
    }

    /// The same of a tensor wherever it lies.
    pub fn check_shape(
        &self,
        arg: &ArgSignature,
        found: ElementType,
        found_shape: &[usize],
    ) -> Result<usize, LaunchError> {
        if found != arg.dtype.into() {
            return Err(LaunchError::Type { name: arg.name.clone(), found, expected: arg.dtype.into() });
        }
        let heads = heads_of(arg, found_shape)?;
        let own = if may_share_heads(arg) { heads } else { self.heads };
        let shape = self.shape(arg, own)?;
        if found_shape != shape {
            let names = names(arg);
            let sizes: Vec<String> = names.iter().zip(&shape).map(|(name, size)| format!("{name} = {size}")).collect();
            return Err(LaunchError::Shape {
                name: arg.name.clone(),
                found: found_shape.to_vec(),
                expected: format!("[{}]", sizes.join(", ")),
            });
        }
        let divides = if heads == 0 { self.heads == 0 } else { self.heads.is_multiple_of(heads) };
        if !divides {
            return Err(LaunchError::Heads { name: arg.name.clone(), found: heads, heads: self.heads });
        }
        Ok(heads)
    }
}

/// Whether several heads may share one of the tensor's: only of the recurrence's own inputs, whose names have no
/// prefix. States, cotangents and what is written have a place for every head.
fn may_share_heads(arg: &ArgSignature) -> bool {
    arg.access == Access::Read && !arg.name.contains('.')
}

/// Position of the heads among the dimensions of an argument.
pub(crate) fn head_position(role: Role) -> usize {
    match role {
        Role::Token => 2,
        Role::Sequence | Role::Chunk(_) => 1,
        Role::Head => 0,
    }
}

/// The heads of a shape with the right number of dimensions.
fn heads_of(arg: &ArgSignature, shape: &[usize]) -> Result<usize, LaunchError> {
    if shape.len() != head_position(arg.role) + 1 + arg.inner.len() {
        return Err(LaunchError::Shape { name: arg.name.clone(), found: shape.to_vec(), expected: described(arg) });
    }
    Ok(shape[head_position(arg.role)])
}

/// Names of the dimensions of an argument.
fn names(arg: &ArgSignature) -> Vec<String> {
    let leading: &[&str] = match arg.role {
        Role::Token => &["B", "T", "H"],
        Role::Sequence => &["B", "H"],
        Role::Head => &["H"],
        Role::Chunk(_) => &["chunk slots", "H"],
    };
    let axis = |at: usize| arg.axes.get(at).cloned().unwrap_or_else(|| "?".to_string());
    leading.iter().map(|name| name.to_string()).chain((0..arg.inner.len()).map(axis)).collect()
}

/// The shape of an argument in words: `[B, T, H, K = 128]`.
pub fn described(arg: &ArgSignature) -> String {
    let names = names(arg);
    let leading = names.len() - arg.inner.len();
    let named = names.iter().enumerate().map(|(at, name)| match at.checked_sub(leading) {
        None => name.clone(),
        Some(axis) => format!("{name} = {}", arg.inner[axis]),
    });
    format!("[{}]", named.collect::<Vec<_>>().join(", "))
}
