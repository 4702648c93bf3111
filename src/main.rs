//! The command line: arguments → command → exit code. It draws failures on standard error and computes nothing.

use std::process::ExitCode;

use chunkwise::commands::{self, Command};
use chunkwise::failure::Failure;
use chunkwise::report;
use clap::Parser;

/// From a recurrence as it stands in a paper to verified kernels.
#[derive(Parser)]
#[command(
    name = "chunkwise",
    version,
    arg_required_else_help = true,
    after_help = "\
A recurrence is written in a .cw file; see examples/mechanisms. A first round:

  chunkwise check examples/mechanisms/gated_delta_rule.cw
  chunkwise verify examples/mechanisms/gated_delta_rule.cw
  chunkwise explain examples/mechanisms/gated_delta_rule.cw
  chunkwise bench examples/mechanisms/gated_delta_rule.cw --size K=128,V=128

Exit codes: 0 all went well, 1 a verification failed, 2 bad input, a refused program or a limit,
3 a mistake of ours."
)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// Programs may nest and chain deeply, and what walks them recurs; memory that is not touched costs nothing.
const STACK: usize = 256 << 20;

fn main() -> ExitCode {
    let line = Line::parse();
    let worker = std::thread::Builder::new().name("command".to_owned()).stack_size(STACK);
    let outcome = match worker.spawn(move || commands::run(line.command)) {
        // A panic has been printed by then; it is ours whatever the input was.
        Ok(worker) => worker.join().unwrap_or_else(|_| Err(Failure::Ours("a step broke off (see above)".to_owned()))),
        Err(error) => Err(Failure::Input(format!("this machine gives no thread to work in: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::complain(format_args!("error: {failure}"));
            ExitCode::from(failure.exit_code())
        }
    }
}
