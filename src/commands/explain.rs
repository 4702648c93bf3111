//! `chunkwise explain`: how a recurrence is derived, or what an error code means. In: a `.cw` file or a code; out:
//! text.

use std::path::PathBuf;

use chunkwise_dsl::codes::Code;

use crate::failure::Failure;
use crate::options::Which;
use crate::report;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  chunkwise explain delta.cw
  chunkwise explain E0204")]
pub struct Arguments {
    /// A program, or the code of an error or a warning
    #[arg(value_name = "FILE or CODE")]
    what: PathBuf,
    #[command(flatten)]
    which: Which,
}

/// Explains.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let word = arguments.what.to_string_lossy();
    if let Some(code) = Code::from_number(&word) {
        report::say(format_args!("{}: {}\n\n{}", code.number(), code.title(), code.explanation().trim_end()));
        return Ok(());
    }
    if looks_like_a_code(&word) && !arguments.what.exists() {
        let first = Code::ALL.first().map_or("", |code| code.number());
        let last = Code::ALL.last().map_or("", |code| code.number());
        return Err(Failure::Input(format!("there is no code {word}; codes go from {first} to {last}")));
    }
    Err(Failure::Input("explaining a file comes with the derivation".to_owned()))
}

fn looks_like_a_code(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|first| "EWew".contains(first)) && word.len() > 1 && letters.all(|c| c.is_ascii_digit())
}
