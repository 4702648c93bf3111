//! `chunkwise check`: reads programs and says everything that is wrong with them. It writes nothing.

use std::path::PathBuf;

use serde_json::json;

use crate::failure::Failure;
use crate::source::Source;
use crate::{render, report};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  chunkwise check recurrence.cw
  chunkwise check examples/mechanisms/*.cw
  chunkwise check --json recurrence.cw        # for an editor")]
pub struct Arguments {
    /// Files to read; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print everything as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Checks every file before it says how many errors there are.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (mut errors, mut warnings, mut unreadable) = (0, 0, Vec::new());
    let mut listed = Vec::new();
    for file in &arguments.files {
        let source = match Source::read(file) {
            Ok(source) => source,
            Err(failure) => {
                unreadable.push(failure.to_string());
                continue;
            }
        };
        let (programs, diagnostics) = source.check();
        let found = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
        errors += found;
        warnings += diagnostics.len() - found;
        if arguments.json {
            listed.extend(diagnostics.iter().map(|diagnostic| render::as_json(&source, diagnostic)));
            continue;
        }
        for diagnostic in &diagnostics {
            report::complain(format_args!("{}\n", render::draw(&source, diagnostic, render::colours_on_stderr())));
        }
        if found == 0 {
            let names: Vec<&str> = programs.iter().map(|program| program.name.as_str()).collect();
            let what = if names.is_empty() { "holds no recurrence".to_owned() } else { names.join(", ") };
            report::say(format_args!("{}: {what}", source.path));
        }
    }
    if arguments.json {
        report::say_json(&json!({ "errors": errors, "warnings": warnings, "diagnostics": listed }));
    }
    if !unreadable.is_empty() {
        return Err(Failure::input_all(unreadable));
    }
    match (errors, warnings) {
        (0, _) => Ok(()),
        (_, 0) => Err(Failure::Refused(render::count(errors, "error"))),
        _ => {
            Err(Failure::Refused(format!("{}, {}", render::count(errors, "error"), render::count(warnings, "warning"))))
        }
    }
}
