//! Work on the repository: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`, `cargo xtask bundle`,
//! `cargo xtask tidy`.
//!
//! In: a word on the command line. Out: an exit code, 0 when all went well, 1 when something of ours failed, 2 when
//! the machine lacks something that only its owner can bring. Every command that changes the machine is said aloud
//! before it runs. It never depends on a crate outside the standard library, so that it builds before anything else.

mod assembler;
mod bench;
mod bundle;
mod demo;
mod packages;
mod steps;
mod test;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo    install what is missing, build, verify two mechanisms, train two small language models
          and write one page of results
  test    install what is missing, then formatting, lints, tests and the book
  bench   install what is missing, build, and measure beside PyTorch in a throwaway environment
  bundle  build, and pack what a machine with a GPU and without Rust needs to test and measure;
          a word names the folder for the file
  tidy    only the rules of the house: what each module must say and must not do

On Debian 12 missing packages are installed with apt-get; elsewhere they are listed.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["demo", ..] => demo::run(&arguments[1..]),
        ["bench", ..] => bench::run(&arguments[1..]),
        ["bundle", ..] => bundle::run(&arguments[1..]),
        ["test"] => test::run(),
        ["tidy"] => test::tidy(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(steps::Stop { message, code }) => {
            eprintln!("\n{message}");
            ExitCode::from(code)
        }
    }
}
