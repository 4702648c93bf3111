//! `chunkwise fmt`: lays programs out in the one usual way. In: files; out: the same files, or text. A file that
//! does not parse is left as it is.

use std::path::PathBuf;

use crate::failure::Failure;
use crate::source::Source;
use crate::{render, report, tensors};

/// Arguments of `fmt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  chunkwise fmt recurrence.cw                 # in place
  chunkwise fmt --check examples/mechanisms/*.cw
  chunkwise fmt - < recurrence.cw             # to standard output")]
pub struct Arguments {
    /// Files to lay out in place; `-` is standard input, laid out to standard output
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Change nothing; fail if a file would change
    #[arg(long)]
    check: bool,
    /// Print the result instead of changing the file
    #[arg(long, conflicts_with = "check")]
    stdout: bool,
}

/// Lays out every file it can before it says which it could not.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut differing = Vec::new();
    let mut failures = Vec::new();
    for path in &arguments.files {
        match format(path) {
            Ok((source, formatted)) if arguments.stdout || (source.path == "standard input" && !arguments.check) => {
                report::say(formatted.trim_end_matches('\n'));
                drop(source);
            }
            Ok((source, formatted)) if source.text == formatted => {}
            Ok((source, _)) if arguments.check => differing.push(source.path),
            Ok((source, formatted)) => {
                tensors::write_whole(path, formatted.as_bytes())?;
                report::say(format_args!("{}: laid out", source.path));
            }
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    for path in &differing {
        report::say(format_args!("{path}: would change"));
    }
    if !failures.is_empty() {
        return Err(Failure::input_all(failures));
    }
    match differing.len() {
        0 => Ok(()),
        number => Err(Failure::Verification(format!(
            "{} not laid out; `chunkwise fmt` does it",
            if number == 1 { "1 file is".to_owned() } else { format!("{number} files are") }
        ))),
    }
}

fn format(path: &std::path::Path) -> Result<(Source, String), Failure> {
    let source = Source::read(path)?;
    let (file, diagnostics) = chunkwise_dsl::parse(&source.text);
    let errors: Vec<_> = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    for diagnostic in &errors {
        report::complain(format_args!("{}\n", render::draw(&source, diagnostic, render::colours_on_stderr())));
    }
    if errors.is_empty() {
        let formatted = chunkwise_dsl::format(&file);
        Ok((source, formatted))
    } else {
        Err(Failure::Refused(format!("`{}` does not parse and stays as it is", source.path)))
    }
}
