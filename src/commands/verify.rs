//! `chunkwise verify`: many drawn cases, every form against the reference, and the contracts. In: a program; out: a
//! table, and for what failed a command that makes it fail again.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::options::{Device, Where, Which};
use crate::report;
use crate::source::Checked;
use crate::verify::case::{Case, Regime};
use crate::verify::measure::Check;
use crate::verify::{self, Failed, Options, Report, Row};

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A case has random sizes, and data inside the declared ranges: gates weak, strong, saturated, at their bounds, exact
zeros. Relative errors are ‖x − ref‖ / max(‖ref‖, 1e-3·√elements). Where a case magnifies rounding, so that moving each
input by half a unit in its last place changes a result, that result may differ by 64 times that change beyond its
budget, and by 16 times that of moving what a chunk adds up; the column `magnified` counts these. On a GPU, narrow types are also held against what rounding of inputs and
results alone costs: such a row counts multiples of that.

Examples:
  chunkwise verify delta.cw
  chunkwise verify delta.cw --cases 200 --seed 7
  chunkwise verify delta.cw --device cuda
  chunkwise verify delta.cw --device cuda --long 131072 --size K=128,V=128
  chunkwise verify delta.cw --case seed=1,batch=1,tokens=17,heads=1,size.K=4,size.V=3")]
pub struct Arguments {
    /// The program
    file: PathBuf,
    /// Number of cases
    #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cases: u32,
    /// Decides all cases
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Sequences of that many tokens instead, each against the recurrent form in float32
    #[arg(long, value_name = "TOKENS", conflicts_with = "cases",
        value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    long: Option<u32>,
    /// One case, as a failure names it
    #[arg(long, value_name = "CASE", conflicts_with_all = ["cases", "seed"])]
    case: Option<Case>,
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    which: Which,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Verifies one recurrence.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let place = arguments.place.open()?;
    let checked = Checked::read(&arguments.file)?;
    let program = checked.select(arguments.which.recurrence.as_deref())?;
    // Names of sizes and constants are looked at before the first case, not in the middle of the work.
    arguments.which.instance(program)?;
    let constants = arguments.which.constants()?;
    let checks = match arguments.long {
        None => Check::all_at(program, &constants, &place),
        Some(_) => Check::all_long(),
    };
    let report = match &arguments.case {
        Some(case) => {
            let missing: Vec<&str> = (program.axes.iter().map(|axis| axis.name.as_str()))
                .filter(|axis| !case.sizes.contains_key(*axis))
                .collect();
            if !missing.is_empty() {
                return Err(Failure::Input(format!("the case gives no size.{}", missing.join(", size."))));
            }
            verify::verify_case_at(program, &constants, &checks, case, &place)
        }
        None => {
            let options = Options {
                cases: arguments.cases as usize,
                seed: arguments.seed,
                constants,
                checks,
                sizes: arguments.which.sizes()?,
                place,
            };
            match arguments.long {
                None => verify::verify(program, &options, show_progress),
                Some(tokens) => {
                    let of = |regime| {
                        let mut case = Case::long(program, options.seed, tokens as usize, regime);
                        case.sizes.extend(options.sizes.clone());
                        case
                    };
                    let cases = [Regime::Usual, Regime::Weak, Regime::Strong].map(of);
                    verify::verify_cases(program, &options, &cases, show_progress)
                }
            }
        }
    };
    if arguments.json {
        report::say_json(&as_json(arguments, &program.name, &report));
    } else {
        show(arguments, &program.name, &report);
    }
    verdict(&program.name, &report)
}

fn show_progress(done: usize, of: usize) {
    let mut screen = std::io::stderr();
    if screen.is_terminal() {
        let text = if done == of { "\r\x1b[K".to_owned() } else { format!("\rcase {} of {of} ", done + 1) };
        // A screen that cannot be written to shows no progress; nothing else depends on it.
        let _ = screen.write_all(text.as_bytes());
    }
}

fn show(arguments: &Arguments, name: &str, report: &Report) {
    let rows = report.rows.iter().map(|row| {
        [
            row.check.name(),
            row.share.map_or(String::new(), |share| share.name().to_owned()),
            row.cases.to_string(),
            row.worst.as_ref().map_or(String::new(), |worst| report::error(worst.error)),
            row.worst.as_ref().map_or(String::new(), |worst| report::error(worst.allowed)),
            row.worst.as_ref().map_or(String::new(), |worst| worst.tensor.clone()),
            if row.conditioned > 0 { row.conditioned.to_string() } else { String::new() },
            result(report, row).to_owned(),
        ]
    });
    report::say(name);
    let head = ["check", "of", "cases", "worst", "allowed", "tensor", "magnified", "result"];
    report::say(report::table(head, rows));
    let mut limits: Vec<(&String, Vec<String>)> = Vec::new();
    for row in &report.rows {
        let Some(limit) = &row.limit else { continue };
        match limits.iter_mut().find(|(known, _)| *known == limit) {
            Some((_, checks)) => checks.push(row.check.name()),
            None => limits.push((limit, vec![row.check.name()])),
        }
    }
    for (limit, checks) in limits {
        report::say(format_args!("not possible for some cases, because of a limit: {}", checks.join("; ")));
        report::say(format_args!("  {limit}"));
    }
    for failed in &report.failed {
        report::say(format_args!("\n{} fails{}", failed.check.name(), why(failed)));
        report::say("again, with as little as it takes:");
        report::say(format_args!("  {}", again(arguments, failed)));
    }
}

/// The command that makes it fail again.
fn again(arguments: &Arguments, failed: &Failed) -> String {
    let device = match arguments.place.device {
        Device::Cpu => String::new(),
        device @ Device::Cuda(_) => format!(" --device {device}"),
    };
    let arch = arguments.place.arch.map_or(String::new(), |arch| format!(" --arch {}", arch.name()));
    let long = match failed.check {
        Check::LikeRecurrent(..) => format!(" --long {}", failed.case.tokens),
        Check::Agrees(..)
        | Check::Causal(_)
        | Check::BatchInvariant(_)
        | Check::Repeatable(_)
        | Check::ChunkInvariant
        | Check::Splits(_)
        | Check::Composes
        | Check::NearRounding(..) => String::new(),
    };
    format!("chunkwise verify {}{device}{arch}{long} --case {}", arguments.file.display(), failed.case)
}

fn why(failed: &Failed) -> String {
    match (&failed.finding, &failed.message) {
        (Some(it), _) => {
            format!(": `{}` is off by {}, allowed is {}", it.tensor, report::error(it.error), report::error(it.allowed))
        }
        (None, Some(message)) => format!(": {message}"),
        (None, None) => String::new(),
    }
}

fn result(report: &Report, row: &Row) -> &'static str {
    let failed = report.failed.iter().any(|failed| failed.check == row.check);
    match (&row.worst, &row.limit) {
        (Some(worst), _) if !worst.holds() => "FAILS",
        (None, None) if failed => "FAILS",
        (Some(_), _) => "ok",
        (None, Some(_)) => "limit",
        (None, None) => "",
    }
}

fn as_json(arguments: &Arguments, name: &str, report: &Report) -> Value {
    let rows = report.rows.iter().map(|row| {
        json!({
            "check": row.check.name(),
            "of": row.share.map(|share| share.name()),
            "cases": row.cases,
            "worst": row.worst.as_ref().map(|worst| json!({
                "tensor": worst.tensor,
                // JSON has no infinity; a result that cannot be compared has no number.
                "error": worst.error.is_finite().then_some(worst.error),
                "allowed": worst.allowed,
            })),
            "magnified": row.conditioned,
            "result": result(report, row),
            "limit": row.limit,
        })
    });
    let failed = report.failed.iter().map(|failed| {
        json!({
            "check": failed.check.name(),
            "case": failed.case.to_string(),
            "why": why(failed).trim_start_matches(": "),
            "again": again(arguments, failed),
        })
    });
    json!({
        "recurrence": name,
        "seed": arguments.seed,
        "checks": rows.collect::<Vec<_>>(),
        "failed": failed.collect::<Vec<_>>(),
        "void": report.void,
    })
}

fn verdict(name: &str, report: &Report) -> Result<(), Failure> {
    if !report.failed.is_empty() {
        let failed: Vec<String> = report.failed.iter().map(|failed| failed.check.name()).collect();
        return Err(Failure::Verification(format!("{name} does not hold: {}", failed.join("; "))));
    }
    if report.rows.iter().any(|row| row.worst.is_some()) {
        return Ok(());
    }
    let limits = report.rows.iter().filter_map(|row| row.limit.clone()).next();
    Err(Failure::Input(match limits {
        Some(limit) => format!("nothing could be verified: {limit}"),
        None => "nothing could be verified: in no case did the results stay finite".to_owned(),
    }))
}
