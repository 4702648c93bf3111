//! The forms a recurrence can be computed in, and the routes inside a form.

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

/// How a decay inside a sum is computed within a block of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inside {
    /// Pair by pair, the factors of each segment multiplied one by one: right for any gate.
    Pairs,
    /// As a plain product, both sides anchored at the block's opening, where the declared ranges allow it; pair by pair
    /// where they do not.
    #[default]
    Anchored,
}
