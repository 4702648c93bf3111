//! `chunkwise emit`: a program at any stage of the compiler, as text. In: a `.cw` file; out: text. It never runs
//! anything.

use std::path::PathBuf;

use chunkwise_compiler::reference;

use crate::failure::Failure;
use crate::options::Which;
use crate::report;
use crate::source::{Checked, Source};

/// Stages of the compiler that have a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// the program as it was read
    Ast,
    /// the reference as a NumPy function
    Reference,
}

/// Arguments of `emit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  chunkwise emit delta.cw --to reference > delta.py")]
pub struct Arguments {
    /// The program
    file: PathBuf,
    /// The stage
    #[arg(long, value_enum, value_name = "STAGE")]
    to: Stage,
    #[command(flatten)]
    which: Which,
}

/// Prints one stage.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match arguments.to {
        Stage::Ast => {
            let checked = Checked::read(&arguments.file)?;
            let Source { text, .. } = &checked.source;
            let (file, _) = chunkwise_dsl::parse(text);
            report::say(chunkwise_dsl::format(&file).trim_end());
        }
        Stage::Reference => {
            let checked = Checked::read(&arguments.file)?;
            let program = checked.select(arguments.which.recurrence.as_deref())?;
            report::say(reference::numpy::print(program).trim_end());
        }
    }
    Ok(())
}
