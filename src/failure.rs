//! Why a command stops, and the exit code that says so. Comes from every command, goes to `main`, which draws it.

use chunkwise_compiler::error::CompileError;

/// Why a command did not do what was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Something that has to hold does not. The table has been shown; this sums it up.
    Verification(String),
    /// Files, tensors, sizes or options that do not fit, or a limit of ours: in words, with what to do instead.
    Input(String),
    /// A program with errors: how many. The messages have been drawn.
    Refused(String),
    /// A mistake of ours.
    Ours(String),
}

impl Failure {
    /// 1, 2 or 3, as documented in `chunkwise --help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Verification(_) => 1,
            Failure::Input(_) | Failure::Refused(_) => 2,
            Failure::Ours(_) => 3,
        }
    }

    /// Several complaints as one.
    pub fn input_all<T: std::fmt::Display>(complaints: impl IntoIterator<Item = T>) -> Failure {
        let complaints: Vec<String> = complaints.into_iter().map(|complaint| complaint.to_string()).collect();
        Failure::Input(complaints.join("\n       "))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Verification(text) | Failure::Input(text) | Failure::Refused(text) => f.write_str(text),
            Failure::Ours(text) => {
                write!(
                    f,
                    "{text}\nThis is a mistake in chunkwise, not in your program; please report it with the file."
                )
            }
        }
    }
}

impl std::error::Error for Failure {}

impl From<CompileError> for Failure {
    fn from(error: CompileError) -> Failure {
        match &error {
            CompileError::Limit { .. } => Failure::Input(error.to_string()),
            CompileError::Bug { dump, .. } => Failure::Ours(format!("{error}\n{}", excerpt(dump))),
        }
    }
}

/// The beginning of a dump: enough to see what it is about.
fn excerpt(dump: &str) -> String {
    const LINES: usize = 40;
    let mut text = dump.lines().take(LINES).collect::<Vec<_>>().join("\n");
    if dump.lines().count() > LINES {
        text.push_str("\n… (`chunkwise emit FILE --dump DIR` writes all of it)");
    }
    text
}
