//! Random programs: every form and every gradient against the reference, in float64.
//!
//! The long mode: `CHUNKWISE_PROGRAMS=20000 cargo test --release -p chunkwise-compiler --test derive -- --ignored
//! many_random_programs --nocapture`, from the seed in `CHUNKWISE_SEED`.

use crate::draw::Case;
use chunkwise_compiler::compile::{Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::error::CompileError;
use chunkwise_compiler::generate::Sketch;
use chunkwise_compiler::graph::interp::{self, Extent};
use chunkwise_compiler::graph::verify;
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::Program;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// ‖found − reference‖ may be this much of max(‖reference‖, floor), the floor a root mean square of 1e-3.
const TOLERANCE: f64 = 1e-9;

/// Numbers larger than this are not tame, and say little about rounding.
const WILD: f64 = 1e8;

/// What a program gave.
#[derive(Default)]
struct Findings {
    worst: f64,
    /// Forms refused as a limit.
    limits: Vec<String>,
    /// The reference's numbers were too large to compare.
    wild: bool,
}

fn program(source: &str) -> Result<Program, String> {
    match chunkwise_dsl::compile(source) {
        Ok(mut compiled) => Ok(compiled.programs.remove(0)),
        Err(errors) => {
            Err(format!("refused: {}", errors.iter().map(|it| it.title.clone()).collect::<Vec<_>>().join("; ")))
        }
    }
}

/// Every form of a program against the reference.
fn compare(program: &Program, case: &Case) -> Result<Findings, String> {
    let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).map_err(|errors| format!("{errors:?}"))?;
    let bundle = case.bundle(program);
    let expected = reference::run_backward(&instance, &bundle).map_err(|error| format!("reference: {error}"))?;
    if expected.values().flat_map(|tensor| &tensor.data).any(|x| x.is_nan() || x.abs() >= WILD) {
        return Ok(Findings { wild: true, ..Findings::default() });
    }
    // No output need depend on an input, and then no tensor that a graph reads says how many tokens there are.
    let extent = Extent { batch: case.batch, length: case.tokens, heads: case.heads, offsets: None };
    let mut findings = Findings::default();
    let [one, other] = case.chunks;
    let mut forms = vec![(Form::Recurrent, None), (Form::Parallel, None), (Form::Chunkwise, Some(one))];
    if one != other {
        forms.push((Form::Chunkwise, Some(other)));
    }
    for (form, chunk) in forms {
        let label = format!("{} {}", form.name(), chunk.unwrap_or(0));
        let request = Request { form, chunk, max_length: case.tokens, backward: true, inside: Inside::default() };
        let derived = match derive(&instance, &request) {
            Ok(derived) => derived,
            Err(error @ CompileError::Limit { .. }) if form != Form::Recurrent => {
                findings.limits.push(error.to_string());
                continue;
            }
            Err(error) => return Err(format!("{label}: {error}")),
        };
        let (saving, backward) =
            (derived.forward_saving.as_ref().expect("asked for"), derived.backward.as_ref().expect("asked for"));
        for graph in [&derived.forward, saving, backward] {
            verify::verify(graph).map_err(|error| format!("{label}: {}: {:?}", graph.name, error.complaints))?;
        }
        let found = interp::run_backward_over(saving, backward, &bundle, &extent)
            .map_err(|error| format!("{label}: {error}"))?;
        findings.worst = findings.worst.max(worst(&label, &found, &expected)?);
        let forward =
            interp::run_over(&derived.forward, &bundle, &extent).map_err(|error| format!("{label}: {error}"))?;
        for (name, value) in &forward {
            if *value != found[name] {
                return Err(format!("{label}: {name} depends on whether states are saved"));
            }
        }
    }
    Ok(findings)
}

fn worst(label: &str, found: &Bundle, expected: &Bundle) -> Result<f64, String> {
    if found.len() != expected.len() {
        return Err(format!("{label}: {} results instead of {}", found.len(), expected.len()));
    }
    let mut worst: f64 = 0.0;
    for (name, expected) in expected {
        let found = found.get(name).ok_or_else(|| format!("{label}: no {name}"))?;
        let floor = 1e-3 * (expected.data.len() as f64).sqrt();
        let error = found.relative_error(expected, floor);
        if error.is_nan() || error > TOLERANCE {
            return Err(format!("{label}: {name} is off by {error:e}"));
        }
        worst = worst.max(error);
    }
    Ok(worst)
}

/// What a source gives, a panic being a failure like any other.
fn try_source(source: &str, case: Option<&Case>, seed: u64) -> (Option<Case>, Result<Findings, String>) {
    let program = match program(source) {
        Ok(program) => program,
        Err(refused) => return (None, Err(refused)),
    };
    let mut case = case.cloned().unwrap_or_else(|| Case::draw(seed, &program));
    let named = |name: &String| program.axes.iter().any(|axis| axis.name == *name);
    case.sizes.retain(|name, _| named(name));
    let result = catch_unwind(AssertUnwindSafe(|| compare(&program, &case))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        Err(format!("panic: {}", words.unwrap_or_default()))
    });
    (Some(case), result)
}

/// The whole of one seed.
fn try_seed(seed: u64) -> Result<Findings, String> {
    let sketch = Sketch::draw(seed);
    let (case, result) = try_source(&sketch.source(), None, seed);
    match result {
        Ok(findings) if !findings.limits.is_empty() && !sketch.may_be_limited() => {
            Err(format!("seed {seed}: limited: {}\n{}", findings.limits[0], shrunk(sketch, case, true)))
        }
        Ok(findings) => Ok(findings),
        Err(refused) if case.is_none() => Err(format!("seed {seed}: {refused}\n{}", sketch.source())),
        Err(message) => Err(format!("seed {seed}: {message}\n{}", shrunk(sketch, case, false))),
    }
}

/// The smallest program and case that still fail, as text.
fn shrunk(mut sketch: Sketch, case: Option<Case>, limited: bool) -> String {
    let started = Instant::now();
    let mut case = case.expect("the program was accepted");
    let fails = |sketch: &Sketch, case: &Case| match try_source(&sketch.source(), Some(case), case.seed) {
        (None, _) => None,
        (_, Ok(findings)) if limited => {
            (!findings.limits.is_empty() && !sketch.may_be_limited()).then(|| findings.limits[0].clone())
        }
        (_, Ok(_)) => None,
        (_, Err(message)) => (!limited).then_some(message),
    };
    let mut message = String::new();
    'smaller: while started.elapsed() < Duration::from_secs(20) {
        for smaller in sketch.smaller() {
            if let Some(why) = fails(&smaller, &case) {
                (sketch, message) = (smaller, why);
                continue 'smaller;
            }
        }
        for smaller in case.smaller() {
            if let Some(why) = fails(&sketch, &smaller) {
                (case, message) = (smaller, why);
                continue 'smaller;
            }
        }
        break;
    }
    format!("shrunk: {message}\n{case:?}\n{}", sketch.source())
}

/// What many programs gave together.
#[derive(Default)]
struct Tally {
    programs: usize,
    limited: usize,
    wild: usize,
    worst: (f64, u64),
    failures: Vec<String>,
}

/// Tries the programs of these seeds on all processors; stops after a few failures.
fn try_many(first: u64, count: u64, progress: bool) -> Tally {
    let next = AtomicU64::new(first);
    let tally = Mutex::new(Tally::default());
    let started = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || tally.lock().expect("no holder panics").failures.len() >= 12 {
                        return;
                    }
                    let result = try_seed(seed);
                    let mut tally = tally.lock().expect("no holder panics");
                    tally.programs += 1;
                    match result {
                        Ok(findings) => {
                            tally.limited += usize::from(!findings.limits.is_empty());
                            tally.wild += usize::from(findings.wild);
                            if findings.worst > tally.worst.0 {
                                tally.worst = (findings.worst, seed);
                            }
                        }
                        Err(message) => {
                            if progress {
                                eprintln!("{message}");
                            }
                            tally.failures.push(message);
                        }
                    }
                    if progress && tally.programs.is_multiple_of(500) {
                        let Tally { programs, limited, wild, worst, failures } = &*tally;
                        eprintln!(
                            "{programs} of {count} programs in {:.0} s: {} failed, {limited} limited, {wild} too large, worst error {:.1e} (seed {})",
                            started.elapsed().as_secs_f64(),
                            failures.len(),
                            worst.0,
                            worst.1
                        );
                    }
                }
            });
        }
    });
    tally.into_inner().expect("no holder panics")
}

fn conclude(tally: &Tally) {
    println!(
        "{} programs: {} failed, {} limited, {} too large to compare, worst error {:.1e} (seed {})",
        tally.programs,
        tally.failures.len(),
        tally.limited,
        tally.wild,
        tally.worst.0,
        tally.worst.1
    );
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n\n"));
    assert!(tally.limited * 100 < tally.programs * 15, "too many programs only a token at a time");
    assert!(tally.wild * 100 < tally.programs * 2, "too many programs whose numbers explode");
    assert!(tally.worst.0 > 0.0, "forms that agree to the last bit were not computed in different ways");
}

/// Programs on which a derivation once went wrong, as small as they could be made.
const ONCE_WRONG: [(&str, &str); 7] = [
    (
        "a reader made from a state that is scanned before the state it reads",
        "recurrence drawn { axis K, V input k: [K] in unit(K) state p: [K], S: [K, V] \
         output o: [V] = (0.5 * (k + p)) @ S p = k }",
    ),
    (
        "a reader made from a state that is scanned after the state it reads",
        "recurrence drawn { axis K, V input k: [K] in unit(K) state S: [K, V], p: [K] \
         output o: [V] = (0.5 * (k + p)) @ S p = k }",
    ),
    (
        "a product made anew of something a scan does not give",
        "recurrence drawn { axis K, V input k: [K] in unit(K), x: [K] in unit(K) state S: [K, V], p: [K] \
         S = S + k * (0.5 * ((0.5 * (x + p)) @ S)) output o: [V] = k @ S p = x }",
    ),
    (
        "a product of two states",
        "recurrence drawn { axis K input k: [K] in unit(K), x: [K] in unit(K) state n: [K], p: [K] \
         n = n + x output o: [] = (0.5 * (k + p)) @ n p = k }",
    ),
    (
        "a decay on V beside one on K and L that is a sum",
        "recurrence drawn { axis K, L, V input a: [K, L] in [0, 1], g: [V] in (-inf, 0] \
         input k: [K] in unit(K), j: [L] in unit(L) state S: [K, L, V] \
         S = (1 - a) * exp(g) * S + k * j * (0.5 * ((k * j) @ S)) output o: [V] = (k * j) @ S }",
    ),
    (
        "a value in between that needs another state than the last one",
        "recurrence drawn { axis K input k: [K] in unit(K), x: [K] in unit(K) state n: [K], p: [K] \
         output o: [] = k @ n n = n + 0.5 * (x + p) n = k p = x }",
    ),
    (
        "a read written as a sum of a sum",
        "recurrence drawn { axis K, L, V input k: [K] in unit(K), j: [L] in unit(L) state S: [K, L, V] \
         S = S + k * j * (0.5 * ((k * j) @ S)) output o: [V] = sum(sum(k * j * S, K), L) }",
    ),
];

#[test]
fn programs_that_once_went_wrong() {
    for (name, source) in ONCE_WRONG {
        for seed in 0..12 {
            let (_, result) = try_source(source, None, seed);
            let findings = result.unwrap_or_else(|message| panic!("{name}: {message}"));
            assert!(findings.limits.is_empty(), "{name}: {}", findings.limits[0]);
            assert!(!findings.wild, "{name}: too large to compare");
        }
    }
}

#[test]
fn random_programs() {
    conclude(&try_many(0, 300, false));
}

#[test]
#[ignore = "takes long; see the top of this file"]
fn many_random_programs() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not `{text}`")),
        Err(_) => default,
    };
    conclude(&try_many(number("CHUNKWISE_SEED", 1_000_000), number("CHUNKWISE_PROGRAMS", 20_000), true));
}

#[test]
fn the_generator_draws_every_feature() {
    let text: String = (0..3000).map(|seed| Sketch::draw(seed).source()).collect();
    let features = [
        "for r in R",
        "rename(",
        "stop_gradient(",
        "softplus(",
        "logsigmoid(",
        "exp2(",
        "l2norm(",
        "softmax(",
        "elu(",
        "silu(",
        "relu(",
        "gelu(",
        "sin(",
        "cos(",
        "sum(",
        "max(",
        "min(",
        "mean(",
        "sqrt(",
        "log(",
        "state S: [V, K]",
        "state S: [K, L, V]",
        "state M",
        "state n",
        "state h",
        "state c",
        "state p",
        "[-1, 1]",
        "const decay",
        "(1 - a",
        "@ (S + U",
        "seen0",
        "s0[0]",
        ", N]",
        "0.2 * S",
    ];
    let missing: Vec<&str> = features.into_iter().filter(|feature| !text.contains(feature)).collect();
    assert!(missing.is_empty(), "never drawn: {missing:?}");
}
