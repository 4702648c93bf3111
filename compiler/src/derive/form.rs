//! The forms a recurrence can be computed in.

/// How the tokens of a sequence are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// A token at a time.
    Recurrent,
    /// The whole sequence as one chunk.
    Parallel,
    /// Chunks in order, tokens inside a chunk together.
    Chunkwise,
}

impl Form {
    /// `recurrent`, `parallel`, `chunkwise`.
    pub fn name(self) -> &'static str {
        match self {
            Form::Recurrent => "recurrent",
            Form::Parallel => "parallel",
            Form::Chunkwise => "chunkwise",
        }
    }
}
