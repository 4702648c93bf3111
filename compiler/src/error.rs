//! Errors of the compiler proper. The user's own errors are gone once a program is checked and its sizes are
//! resolved; what is left is a limit of ours, said plainly, or a mistake of ours, with what is needed to find it.

/// Why a stage did not give its result.
#[derive(Clone, Debug, PartialEq)]
pub enum CompileError {
    /// The program is right but this cannot be done for it.
    Limit {
        /// What was asked for and why it cannot be had, in the user's words.
        what: String,
        /// What would be needed, or what to use instead.
        instead: String,
        /// Where in the source the reason stands.
        span: Option<chunkwise_dsl::span::Span>,
    },
    /// A stage broke its own rules.
    Bug {
        /// The stage or pass.
        pass: &'static str,
        /// What it says.
        message: String,
        /// The program it was working on, as text.
        dump: String,
    },
}

impl std::fmt::Display for CompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CompileError::Limit { what, instead, .. } => write!(f, "{what}; {instead}"),
            CompileError::Bug { pass, message, .. } => write!(f, "internal error in {pass}: {message}"),
        }
    }
}

impl std::error::Error for CompileError {}
