//! `chunkwise run`: a recurrence on the tensors of a file. In: a program and a `.safetensors` file; out: another, or
//! nothing at all.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::Program;
use serde_json::json;

use crate::binding::{self, Extents, Leading};
use crate::engine::{Engine, Place, Plan};
use crate::failure::Failure;
use crate::options::{FormChoice, InsideChoice, Where, Which};
use crate::precision::Precision;
use crate::source::Checked;
use crate::tensors::{self, TensorFile};
use crate::{data_checks, report};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Tensors by name. In: an input NAME [B, T, H, ...], a parameter NAME [H, ...], init.STATE [B, H, ...];
with --backward also grad_out.OUTPUT [B, T, H, ...] and grad_final.STATE [B, H, ...]. What begins with init. or grad_
may be absent and is then zero; out.*, final.*, grad.* and grad_init.* in the input are passed over.
Out: out.OUTPUT and final.STATE; with --backward also grad.NAME and grad_init.STATE.

Examples:
  chunkwise run delta.cw --input in.safetensors --output out.safetensors
  chunkwise run delta.cw --input in.safetensors --output out.safetensors --backward --chunk 64
  chunkwise run delta.cw --input in.safetensors --output out.safetensors --form naive
  chunkwise run delta.cw --input in.safetensors --output out.safetensors --dtype bf16 --set scale=0.125
  chunkwise run delta.cw --input in.safetensors --output out.safetensors --dtype bf16 --device cuda")]
pub struct Arguments {
    /// The program
    file: PathBuf,
    /// Tensors to read, of any float type
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write the results
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also compute gradients
    #[arg(long)]
    backward: bool,
    /// How the tokens are gone through
    #[arg(long, value_enum, default_value_t = FormChoice::Chunkwise)]
    form: FormChoice,
    /// Tokens a chunk, 16 to 256
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u16).range(16..=256))]
    chunk: Option<u16>,
    /// Type of the tensors of a token [default: f32; for --form naive f64]
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    #[command(flatten)]
    place: Where,
    /// How a decay inside a sum is computed within a block of 16 rows
    #[arg(long, value_enum, default_value_t = InsideChoice::Anchored)]
    inside: InsideChoice,
    #[command(flatten)]
    which: Which,
    /// Worker threads [default: one a core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Refuse NaN and infinities in the input, and in results of a finite input
    #[arg(long)]
    check_finite: bool,
    /// Refuse input outside the ranges that the program declares
    #[arg(long)]
    check_ranges: bool,
    /// Keep and reuse compiled code (the default)
    #[arg(long, overrides_with = "no_cache")]
    cache: bool,
    /// Compile anew and keep nothing
    #[arg(long)]
    no_cache: bool,
    /// Say what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Reads, checks, computes, writes.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let place = arguments.place.open()?;
    let checked = Checked::read(&arguments.file)?;
    let program = checked.select(arguments.which.recurrence.as_deref())?;
    let plan = plan(arguments)?;
    let file = TensorFile::read(&arguments.input)?;
    let (instance, bundle, extents) = bind(program, &file, arguments, plan.precision)?;
    if arguments.check_finite {
        refuse("--check-finite", data_checks::not_finite(program, &bundle))?;
    }
    if arguments.check_ranges {
        refuse("--check-ranges", data_checks::out_of_range(program, &bundle))?;
    }
    if arguments.backward && !bundle.keys().any(|name| name.starts_with("grad_")) {
        report::complain(format_args!(
            "warning: no grad_out.* or grad_final.* in `{}`, so every gradient will be zero",
            file.path()
        ));
    }
    let length = extents.tokens;
    let parts = if arguments.backward { Parts::Gradients } else { Parts::Forward };
    let items = extents.batch.saturating_mul(extents.heads);
    let mut engine = match place {
        Place::Cpu => Engine::prepare_for(&instance, &plan, parts, length, items)?,
        #[cfg(feature = "llvm")]
        Place::Gpu(gpu) => {
            let amount = crate::engine::Amount { batch: extents.batch, length, heads: extents.heads };
            Engine::prepare_on(&gpu, &instance, &plan, parts, length, amount)?
        }
        #[cfg(feature = "llvm")]
        Place::StandIn(_) => unreachable!("no option asks for it"),
    };
    if let Some(warning) = engine.warning() {
        report::complain(format_args!("warning: {warning}"));
    }
    let results = engine.run(&bundle, arguments.backward)?;
    let precision = |name: &str| result_precision(program, plan.precision, name);
    let overflowed = data_checks::overflowed(program, &bundle, &results, precision);
    if let Some(first) = overflowed.first() {
        const WHY: &str = "every input is finite, so something overflowed; float64 reaches further (--form naive)";
        if arguments.check_finite {
            return Err(Failure::input_all(
                std::iter::once(format!("--check-finite refuses the results; {WHY}:")).chain(overflowed),
            ));
        }
        report::complain(format_args!("warning: {first}, and {WHY}"));
    }
    tensors::write(&arguments.output, &results, precision)?;
    say(arguments, &plan, &engine, &results, precision);
    Ok(())
}

fn plan(arguments: &Arguments) -> Result<Plan, Failure> {
    let naive = arguments.form == FormChoice::Naive;
    if arguments.chunk.is_some() && arguments.form != FormChoice::Chunkwise {
        return Err(Failure::Input(format!(
            "--chunk has a meaning with --form chunkwise only; the {} form has no chunks",
            arguments.form.name()
        )));
    }
    Ok(Plan {
        form: arguments.form,
        chunk: arguments.chunk.map(usize::from),
        precision: arguments.dtype.unwrap_or(if naive { Precision::F64 } else { Precision::F32 }),
        inside: arguments.inside.into(),
        threads: arguments.threads.map(usize::from),
        cache: !arguments.no_cache,
    })
}

/// Takes from the file what the program needs, each tensor in the precision it has in a kernel.
fn bind<'p>(
    program: &'p Program,
    file: &TensorFile,
    arguments: &Arguments,
    precision: Precision,
) -> Result<(Instance<'p>, Bundle, Extents), Failure> {
    let shapes: BTreeMap<String, Vec<usize>> =
        file.entries().iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect();
    let extents = binding::bind(program, &shapes, &arguments.which.sizes()?).map_err(Failure::input_all)?;
    let instance = Instance::new(program, &extents.sizes, &arguments.which.constants()?).map_err(Failure::input_all)?;
    let mut bundle = Bundle::new();
    for slot in binding::slots(program) {
        if file.entries().contains_key(&slot.name) && (arguments.backward || !slot.cotangent) {
            let precision = if slot.leading == Leading::Token { precision } else { precision.beside() };
            bundle.insert(slot.name.clone(), file.tensor(&slot.name, precision)?);
        }
    }
    Ok((instance, bundle, extents))
}

/// What a result has one of for every token is in the precision asked for, the rest in the one beside it.
fn result_precision(program: &Program, precision: Precision, name: &str) -> Precision {
    let of_token = match name.split_once('.') {
        Some(("out", _)) => true,
        Some(("grad", name)) => {
            binding::slots(program).iter().any(|slot| slot.name == name && slot.leading == Leading::Token)
        }
        Some(_) | None => false,
    };
    if of_token { precision } else { precision.beside() }
}

fn refuse(option: &str, complaints: Vec<String>) -> Result<(), Failure> {
    if complaints.is_empty() {
        return Ok(());
    }
    Err(Failure::input_all(std::iter::once(format!("{option} refuses the input:")).chain(complaints)))
}

fn say(arguments: &Arguments, plan: &Plan, engine: &Engine, results: &Bundle, precision: impl Fn(&str) -> Precision) {
    if arguments.json {
        let tensors = results
            .iter()
            .map(|(name, tensor)| json!({ "name": name, "shape": tensor.shape, "dtype": precision(name).name() }));
        report::say_json(&json!({
            "output": arguments.output.display().to_string(),
            "form": plan.form.name(),
            "chunk": engine.chunk(),
            "dtype": plan.precision.name(),
            "tensors": tensors.collect::<Vec<_>>(),
        }));
        return;
    }
    let rows = results
        .iter()
        .map(|(name, tensor)| [name.clone(), format!("{:?}", tensor.shape), precision(name).name().to_owned()]);
    report::say(report::table(["tensor", "shape", "type"], rows));
    report::say(format_args!("written to {}", arguments.output.display()));
}
