//! `chunkwise explain`: how a recurrence is derived, or what an error code means. In: a `.cw` file or a code; out:
//! text, or a page.

use std::path::PathBuf;

use chunkwise_dsl::codes::Code;
use serde_json::json;

use crate::explain::{self, page};
use crate::failure::Failure;
use crate::options::{FormChoice, InsideChoice, Which};
use crate::report;
use crate::source::Checked;
use crate::tensors::write_whole;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes that are not given are 64, and 2 for an axis that a `for` runs over.

Examples:
  chunkwise explain delta.cw
  chunkwise explain delta.cw --form recurrent --size K=128,V=128
  chunkwise explain delta.cw --html delta.html
  chunkwise explain E0204")]
pub struct Arguments {
    /// A program, or the code of an error or a warning
    #[arg(value_name = "FILE or CODE")]
    what: PathBuf,
    /// The form whose derivation is shown
    #[arg(long, value_enum, default_value_t = FormChoice::Chunkwise)]
    form: FormChoice,
    /// Tokens a chunk, 16 to 256
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u16).range(16..=256))]
    chunk: Option<u16>,
    /// Tokens of a sequence, for the parallel form
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    length: usize,
    /// Write a page with typeset equations and the dataflow drawn
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// How a decay inside a sum is computed within a block of 16 rows
    #[arg(long, value_enum, default_value_t = InsideChoice::Anchored)]
    inside: InsideChoice,
    #[command(flatten)]
    which: Which,
    /// Print the steps and the costs as JSON
    #[arg(long)]
    json: bool,
}

/// Explains.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let word = arguments.what.to_string_lossy();
    if !arguments.what.exists() {
        if let Some(code) = Code::from_number(&word) {
            report::say(format_args!("{}: {}\n\n{}", code.number(), code.title(), code.explanation().trim_end()));
            return Ok(());
        }
        if looks_like_a_code(&word) {
            let numbers: Vec<&str> = Code::ALL.iter().map(|code| code.number()).collect();
            return Err(Failure::Input(format!("there is no code {word}; the codes are {}", numbers.join(" "))));
        }
    }
    let checked = Checked::read(&arguments.what)?;
    let program = checked.select(arguments.which.recurrence.as_deref())?;
    let instance = arguments.which.instance(program)?;
    let Some(form) = arguments.form.derived() else {
        return Err(Failure::Input(
            "the naive form is the program itself; --form takes recurrent, parallel and chunkwise here".to_owned(),
        ));
    };
    let facts = explain::forms(&instance, arguments.chunk.map(usize::from), arguments.length, arguments.inside.into())?;
    if let Some(path) = &arguments.html {
        write_whole(path, page::html(&instance, &facts, arguments.length).as_bytes())?;
        report::say(format_args!("written to {}", path.display()));
        return Ok(());
    }
    if arguments.json {
        report::say_json(&as_json(&program.name, &facts));
        return Ok(());
    }
    report::say(format_args!("{}\n{}", program.name, program.doc.trim_end()));
    for facts in &facts {
        match &facts.outcome {
            Ok(found) if facts.form == form => {
                report::say(format_args!("\nThe {} form, {} tokens a step\n", form.name(), found.derived.chunk));
                report::say(found.derived.derivation.to_string().trim_end());
            }
            Ok(_) => {}
            Err(why) => report::say(format_args!("\nThere is no {} form: {why}", facts.form.name())),
        }
    }
    report::say("\nWhat each form costs, a token and head");
    report::say(explain::costs_table(&facts));
    report::say(format_args!("(the parallel form for a sequence of {} tokens)", arguments.length));
    Ok(())
}

fn looks_like_a_code(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|first| "EWew".contains(first)) && word.len() > 1 && letters.all(|c| c.is_ascii_digit())
}

fn as_json(name: &str, facts: &[explain::FormFacts]) -> serde_json::Value {
    let forms = facts.iter().map(|facts| match &facts.outcome {
        Err(why) => json!({ "form": facts.form.name(), "refused": why }),
        Ok(found) => json!({
            "form": facts.form.name(),
            "chunk": found.derived.chunk,
            "steps": found.derived.derivation.steps.iter().map(|step| json!({
                "rule": step.rule.name,
                "facts": step.facts,
                "before": step.rule.before,
                "after": step.rule.after,
                "holds_when": step.rule.holds_when,
                "source": step.rule.source,
            })).collect::<Vec<_>>(),
            "flops": found.forward.flops(),
            "flops_with_gradients": found.gradients.flops(),
            "bytes": found.forward.bytes,
            "saved_bytes": found.saved_bytes,
            "step_bytes": found.forward.step_bytes,
        }),
    });
    json!({ "recurrence": name, "forms": forms.collect::<Vec<_>>() })
}
