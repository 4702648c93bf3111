//! The commands, one file each. In: arguments as clap read them; out: done, or a [`Failure`].

use crate::failure::Failure;

pub mod bench;
pub mod build;
pub mod check;
pub mod doctor;
pub mod emit;
pub mod explain;
pub mod fmt;
pub mod run;
pub mod tune;
pub mod verify;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read programs and say everything that is wrong with them
    Check(check::Arguments),
    /// Lay programs out in the one usual way
    Fmt(fmt::Arguments),
    /// Compute a recurrence on tensors of a file
    Run(run::Arguments),
    /// Compare every form and gradient with the reference, and check the contracts
    Verify(verify::Arguments),
    /// Show a program at any stage of the compiler
    Emit(emit::Arguments),
    /// Measure compiled code on this machine
    Bench(bench::Arguments),
    /// Find the fastest schedule on a GPU
    Tune(tune::Arguments),
    /// Show how a recurrence is derived, or what an error code means
    Explain(explain::Arguments),
    /// Say what this machine has and what chunkwise lacks
    Doctor(doctor::Arguments),
    /// Make a library that needs neither LLVM nor chunkwise
    Build(build::Arguments),
}

/// Does it.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Fmt(arguments) => fmt::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Emit(arguments) => emit::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
    }
}
