//! Random programs, compiled in float32: outputs and states within 2e-5, gradients within 1e-4 of the float64 reference,
//! relative to max(‖reference‖, a root mean square of 1e-3), and more where rounding alone, of the inputs, of what is
//! computed on the way and of what blocks of tokens add up, moves the reference by more ([`chunkwise::verify::budget`]).
//!
//! The long mode: `CHUNKWISE_PROGRAMS=2000 cargo test --release --test all -- --ignored many_random_programs_compiled
//! --nocapture`, from the seed in `CHUNKWISE_SEED`.

use chunkwise::engine::Place;
use chunkwise::options::FormChoice;
use chunkwise::precision::Precision;
use chunkwise::verify::budget::Share;
use chunkwise::verify::case::Case;
use chunkwise::verify::measure::Check;
use chunkwise::verify::{verify_case, verify_case_at};
use chunkwise_compiler::generate::Sketch;
use chunkwise_dsl::program::Program;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is tried of the program of a seed.
pub struct Trial {
    /// What is checked.
    pub checks: Vec<Check>,
    /// Where compiled code runs.
    pub place: Place,
    /// Whether sizes are as models have them.
    pub wide: bool,
    /// Whether what is asked for may be more than a program allows.
    pub may_be_limited: bool,
}

impl Trial {
    /// Forms in float32 on this machine's processor.
    fn of(forms: &[FormChoice]) -> Trial {
        let checks = forms.iter().map(|&form| Check::Agrees(form.into(), Precision::F32)).collect();
        Trial { checks, place: Place::Cpu, wide: false, may_be_limited: false }
    }

    /// Whether a kernel took the place with it, so that nothing more can be tried there.
    fn is_lost(&self) -> bool {
        match &self.place {
            Place::Cpu | Place::StandIn(_) => false,
            Place::Gpu(gpu) => gpu.stream.synchronize().is_err(),
        }
    }
}

/// How many programs are tried, and for how long.
pub struct Extent {
    /// The first seed.
    pub first: u64,
    /// Programs.
    pub count: u64,
    /// Nothing is begun after that.
    pub within: Duration,
    /// Enough failures to stop.
    pub enough: usize,
    /// How long each is made smaller.
    pub shrink_for: Duration,
    /// Whether failures are printed as they come, and how far it is.
    pub progress: bool,
}

impl Extent {
    fn of(first: u64, count: u64, progress: bool) -> Extent {
        let (within, shrink_for) = (Duration::MAX, Duration::from_secs(60));
        Extent { first, count, within, enough: 8, shrink_for, progress }
    }
}

/// What a program gave.
#[derive(Default)]
struct Findings {
    /// Worst error of outputs and states, and of gradients.
    worst: [f64; 2],
    /// Results that were allowed more because rounding the inputs moves the reference.
    conditioned: usize,
    compared: usize,
    limit: Option<String>,
    void: bool,
}

fn compare(program: &Program, case: &Case, trial: &Trial) -> Result<Findings, String> {
    let report = verify_case_at(program, &BTreeMap::new(), &trial.checks, case, &trial.place);
    if let Some(failed) = report.failed.first() {
        return Err(match (&failed.finding, &failed.message) {
            (Some(it), _) => {
                format!("{}: {} is off by {:.1e}, allowed {:.1e}", failed.check.name(), it.tensor, it.error, it.allowed)
            }
            (None, message) => format!("{}: {}", failed.check.name(), message.clone().unwrap_or_default()),
        });
    }
    let mut findings = Findings { void: report.void > 0, ..Findings::default() };
    for row in &report.rows {
        findings.compared += row.cases;
        findings.conditioned += row.conditioned;
        if row.limit.is_some() {
            findings.limit.clone_from(&row.limit);
        }
        if let Some(worst) = row.worst.as_ref().filter(|worst| !worst.conditioned) {
            let at = usize::from(worst.share == Share::Gradients);
            findings.worst[at] = findings.worst[at].max(worst.error);
        }
    }
    Ok(findings)
}

/// A program of the generator, in a case; a panic is a failure like any other.
fn try_sketch(
    sketch: &Sketch,
    case: Option<&Case>,
    seed: u64,
    trial: &Trial,
) -> Option<(Case, Result<Findings, String>)> {
    let program = chunkwise_dsl::compile(&sketch.source()).ok()?.programs.remove(0);
    let drawn = if trial.wide { Case::draw_wide } else { Case::draw }(&program, seed, seed as usize);
    let mut case = match case {
        Some(case) => {
            Case { sizes: drawn.sizes.keys().map(|axis| (axis.clone(), case.sizes[axis])).collect(), ..case.clone() }
        }
        None => drawn,
    };
    // A renamed axis has the size of its new name.
    if let Some(&keys) = case.sizes.get("K") {
        case.sizes.entry("J".to_owned()).and_modify(|size| *size = keys);
    }
    let result = catch_unwind(AssertUnwindSafe(|| compare(&program, &case, trial))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        Err(format!(
            "panic: {}",
            words.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned())).unwrap_or_default()
        ))
    });
    Some((case, result))
}

fn try_seed(seed: u64, trial: &Trial, shrink_for: Duration) -> Result<Findings, String> {
    let sketch = Sketch::draw(seed);
    let Some((case, result)) = try_sketch(&sketch, None, seed, trial) else {
        return Err(format!("seed {seed}: refused\n{}", sketch.source()));
    };
    let message = match result {
        Ok(Findings { limit: Some(limit), .. }) if !(sketch.may_be_limited() || trial.may_be_limited) => {
            return Err(format!("seed {seed}: limited: {limit}\n{case}\n{}", sketch.source()));
        }
        Ok(findings) => return Ok(findings),
        Err(message) => message,
    };
    if trial.is_lost() {
        return Err(format!("seed {seed}: {message}\n{case}\n{}", sketch.source()));
    }
    Err(format!("seed {seed}: {message}\n{}", shrunk(sketch, case, seed, trial, shrink_for)))
}

/// The smallest program and case that still fail, as text.
fn shrunk(mut sketch: Sketch, mut case: Case, seed: u64, trial: &Trial, shrink_for: Duration) -> String {
    let started = Instant::now();
    let mut message = String::new();
    let fails = |sketch: &Sketch, case: &Case| match try_sketch(sketch, Some(case), seed, trial) {
        Some((_, Err(message))) => Some(message),
        Some((_, Ok(_))) | None => None,
    };
    'smaller: while started.elapsed() < shrink_for {
        for smaller in sketch.smaller() {
            // A smaller program may have axes that the case has no size for.
            let known = chunkwise_dsl::compile(&smaller.source())
                .is_ok_and(|it| it.programs[0].axes.iter().all(|axis| case.sizes.contains_key(&axis.name)));
            if let Some(why) = known.then(|| fails(&smaller, &case)).flatten() {
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
    format!("shrunk: {message}\n{case}\n{}", sketch.source())
}

/// What many programs gave together.
#[derive(Default)]
pub struct Tally {
    programs: usize,
    compared: usize,
    conditioned: usize,
    limited: usize,
    void: usize,
    worst: [(f64, u64); 2],
    failures: Vec<String>,
}

impl Tally {
    /// Programs tried.
    pub fn programs(&self) -> usize {
        self.programs
    }

    /// What went wrong, in words.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    fn words(&self) -> String {
        let [values, gradients] = self.worst;
        format!(
            "{} programs, {} comparisons, {} failed; {} comparisons allowed more for their condition, {} programs \
             limited, {} void; worst error of the others: outputs and states {:.1e} (seed {}), gradients {:.1e} (seed {})",
            self.programs,
            self.compared,
            self.failures.len(),
            self.conditioned,
            self.limited,
            self.void,
            values.0,
            values.1,
            gradients.0,
            gradients.1
        )
    }
}

/// Tries programs on all processors. `trial` says what of the program of a seed.
pub fn try_many(extent: &Extent, trial: &(dyn Fn(u64) -> Trial + Sync)) -> Tally {
    let Extent { first, count, within, enough, shrink_for, progress } = *extent;
    let next = AtomicU64::new(first);
    let tally = Mutex::new(Tally::default());
    let started = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failures = tally.lock().expect("no holder panics").failures.len();
                    if seed >= first + count || failures >= enough || started.elapsed() >= within {
                        return;
                    }
                    let trial = trial(seed);
                    let result = try_seed(seed, &trial, shrink_for);
                    if result.is_err() && trial.is_lost() {
                        next.store(first + count, Ordering::Relaxed);
                    }
                    let mut tally = tally.lock().expect("no holder panics");
                    tally.programs += 1;
                    match result {
                        Ok(findings) => {
                            tally.compared += findings.compared;
                            tally.conditioned += findings.conditioned;
                            tally.limited += usize::from(findings.limit.is_some());
                            tally.void += usize::from(findings.void);
                            for (worst, found) in tally.worst.iter_mut().zip(findings.worst) {
                                if found > worst.0 {
                                    *worst = (found, seed);
                                }
                            }
                        }
                        Err(message) => {
                            if progress {
                                eprintln!("{message}");
                            }
                            tally.failures.push(message);
                        }
                    }
                    if progress && tally.programs.is_multiple_of(50) {
                        eprintln!("{:.0} s: {}", started.elapsed().as_secs_f64(), tally.words());
                    }
                }
            });
        }
    });
    tally.into_inner().expect("no holder panics")
}

pub fn conclude(tally: &Tally) {
    println!("{}", tally.words());
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n\n"));
    assert!(tally.limited * 100 < tally.programs * 20, "too many programs only a token at a time");
    assert!(tally.void * 100 < tally.programs * 5, "too many programs without a number to compare");
    assert!(tally.conditioned * 20 < tally.compared, "too many comparisons were allowed more than the tolerance");
}

/// Programs whose compiled code once went wrong, as small as they could be made.
const ONCE_WRONG: [(&str, &str); 1] = [(
    "a parameter on which nothing depends",
    "recurrence drawn { axis V input u: [], v: [V] param G: [] in (-inf, 0], D: [V] state c: [] \
     c = exp(G) * c c = u output o: [V] = c + D * v }",
)];

#[test]
fn programs_that_once_went_wrong_compiled() {
    for (name, source) in ONCE_WRONG {
        let program = chunkwise_dsl::compile(source).expect("the source is a program").programs.remove(0);
        for number in 0..4 {
            let case = Case::draw(&program, 3, number);
            let findings = compare(&program, &case, &Trial::of(&[FormChoice::Chunkwise, FormChoice::Recurrent]));
            let findings = findings.unwrap_or_else(|message| panic!("{name}: {message}"));
            assert!(findings.limit.is_none() && findings.compared > 0, "{name}");
        }
    }
}

/// Programs and cases whose gradient goes through a quotient by a sum or norm of its own numerator, over few positions:
/// all of it cancels, or nearly all. Found by the long mode.
const CANCELS: [(&str, &str); 7] = [
    (
        "seed=3903631953,batch=1,tokens=2,heads=1,groups=1,chunk=16,init=no,regime=saturated,size.K=1,size.V=3",
        "axis K, V input x0: [K], v0: [V], k0: [K] in unit(K) state S: [K, V] \
         S = S + softmax(x0, K) * v0 output o0: [V] = k0 @ S",
    ),
    (
        "seed=3903631953,batch=1,tokens=70,heads=1,groups=1,chunk=16,init=yes,regime=saturated,size.K=3,size.V=5",
        "axis K, V input x0: [K], v0: [V], k0: [K] in unit(K) state S: [K, V] \
         S = S + softmax(x0, K) * v0 output o0: [V] = k0 @ S",
    ),
    (
        "seed=2752308976,batch=3,tokens=7,heads=2,groups=2,chunk=64,init=yes,regime=usual,size.K=1,size.V=20",
        "axis K, V input k0: [K] in unit(K), v0: [V], k2: [K] in unit(K), x1: [K] param B1: [] in [0, 1] \
         state M: [K, V] output o0: [V] = k0 @ M M = M + k0 * v0 M = M - k2 * (0.5 * B1 * (softmax(x1, K) @ M))",
    ),
    (
        "seed=3982358043,batch=1,tokens=33,heads=2,groups=1,chunk=64,init=no,regime=saturated,size.K=1,size.V=33",
        "axis K, V input k0: [K] in unit(K), v0: [V], k1: [K] in unit(K), x1: [K] state M: [K, V] state S: [K, V] \
         output o0: [V] = k0 @ M M = M + k0 * v0 S = S + k1 * (0.2 * (softmax(x1, K) @ M))",
    ),
    (
        "seed=2381736625,batch=1,tokens=1,heads=1,groups=1,chunk=16,init=yes,regime=usual,size.K=1,size.V=4",
        "axis K, V input x0: [K] state S: [K, V] output o0: [V] = l2norm(x0, K) @ S",
    ),
    (
        "seed=528797419,batch=1,tokens=1,heads=1,groups=1,chunk=16,init=no,regime=usual,size.K=1,size.V=1",
        "axis K, V input x0: [K], v0: [V] state S: [K, V] state h: [V] S = S + l2norm(x0, K) * v0 output o0: [V] = h",
    ),
    (
        "seed=1649943037,batch=3,tokens=2,heads=4,groups=2,chunk=64,init=yes,regime=usual,size.K=16,size.V=1",
        "axis K, V input k2: [K] in unit(K), v0: [V], q2: [K] in unit(K) state S: [K, V] state n: [K] state p: [K] \
         S = S + 0.5 * (k2 + p) * v0 output o0: [V] = l2norm(q2 @ S + 0.5 * (k2 @ n), V) p = k2",
    ),
];

#[test]
fn gradients_that_cancel_need_no_allowance() {
    for (case, source) in CANCELS {
        let source = format!("recurrence drawn {{ {source} }}");
        let program = chunkwise_dsl::compile(&source).expect("the source is a program").programs.remove(0);
        let case: Case = case.parse().expect("a case");
        let findings = compare(&program, &case, &Trial::of(&[FormChoice::Chunkwise, FormChoice::Recurrent]));
        let findings = findings.unwrap_or_else(|message| panic!("{case}\n{source}\n{message}"));
        assert!(findings.compared > 0 && findings.conditioned == 0, "{case}\n{source}");
    }
}

/// An edit with a key that is 1 whatever its input is overwrites the state: the gradient of the first one is 1 − 1, of
/// computed numbers, and is allowed what rounding leaves.
#[test]
fn a_difference_of_computed_numbers_is_allowed_their_rounding() {
    let source = "recurrence drawn { axis K, V input x: [K], v: [V], q: [K] in unit(K) state S: [K, V] \
                  S = S + softmax(x, K) * (v - softmax(x, K) @ S) output o: [V] = q @ S }";
    let program = chunkwise_dsl::compile(source).expect("the source is a program").programs.remove(0);
    for seed in 0..8 {
        let case = format!(
            "seed={seed},batch=1,tokens=7,heads=3,groups=1,chunk=48,init=yes,regime=saturated,size.K=1,size.V=3"
        );
        let case: Case = case.parse().expect("a case");
        let findings = compare(&program, &case, &Trial::of(&[FormChoice::Chunkwise, FormChoice::Recurrent]));
        findings.unwrap_or_else(|message| panic!("{case}\n{message}"));
    }
}

/// Programs whose edits take away all or nearly all of the state, or of its gradient, that a block of tokens has added
/// up. Found by the long mode.
const TAKEN_AWAY: [(FormChoice, &str, &str); 4] = [
    (
        FormChoice::Parallel,
        "seed=4186139021,batch=2,tokens=64,heads=2,groups=1,chunk=32,init=yes,regime=saturated,size.K=1,\
         size.R=1,size.V=1",
        "axis K, V, R input k1_r: [R, K] in unit(K), x2_r: [R, K], k0: [K] in unit(K) state S: [K, V] \
         for r in R { S = S + k1_r[r] * (0.5 * (l2norm(x2_r[r], K) @ S)) } \
         output o0: [V] = tanh(stop_gradient(k0) @ S)",
    ),
    (
        FormChoice::Chunkwise,
        "seed=49307587,batch=3,tokens=16,heads=2,groups=1,chunk=64,init=no,regime=saturated,size.K=1,size.N=3,\
         size.R=3,size.V=4",
        "axis K, V, N, R input beta0_r: [R] in [0, 1], s2: [R, K] in unit(K), v2_r: [R, V], y: [N] state S: [K, V] \
         for r in R { S = S + s2[0] * (beta0_r[r] * (softmax(v2_r[r], V) - s2[0] @ S)) } \
         output o0: [V, N] = (s2[0] @ S) * y",
    ),
    (
        FormChoice::Chunkwise,
        "seed=664106316,batch=3,tokens=31,heads=2,groups=1,chunk=16,init=yes,regime=strong,size.K=1,size.R=3,size.V=33",
        "axis K, V, R input f0: [], k2_r: [R, K] in unit(K), v2_r: [R, V], k1: [K] in unit(K) state S: [K, V] \
         S = exp(logsigmoid(f0) / 4) * S for r in R { S = S + k2_r[r] * (v2_r[r] - k2_r[r] @ S) } \
         output o0: [V] = k1 @ S",
    ),
    (
        FormChoice::Parallel,
        "seed=2720761614,batch=1,tokens=63,heads=2,groups=1,chunk=16,init=no,regime=usual,size.K=7,size.R=2,size.V=16",
        "axis K, V, R input k0_r: [R, K] in unit(K), v0_r: [R, V] state S: [K, V] state c: [] \
         for r in R { S = S + k0_r[r] * (v0_r[r] - k0_r[r] @ S) } output o0: [] = c",
    ),
];

/// A form in blocks is allowed the rounding of what a block adds up, a token at a time nothing: there the edits take
/// it away.
#[test]
fn what_edits_take_away_is_rounded_only_in_blocks() {
    for (form, case, source) in TAKEN_AWAY {
        let source = format!("recurrence drawn {{ {source} }}");
        let program = chunkwise_dsl::compile(&source).expect("the source is a program").programs.remove(0);
        let case: Case = case.parse().expect("a case");
        for form in [form, FormChoice::Recurrent] {
            let checks = [Check::Agrees(form.into(), Precision::F32)];
            let report = verify_case(&program, &BTreeMap::new(), &checks, &case);
            assert!(report.failed.is_empty(), "{case}\n{source}\n{:?}", report.failed);
            let worst: Vec<_> = report.rows.iter().filter_map(|row| row.worst.as_ref()).collect();
            assert_eq!(worst.len(), 2, "outputs and states, and gradients");
            // What is allowed stays small beside the terms: the floor is a thousandth of them.
            assert!(worst.iter().all(|it| it.allowed < 0.03), "{worst:?}");
            let conditioned: usize = report.rows.iter().map(|row| row.conditioned).sum();
            assert_eq!(conditioned > 0, form != FormChoice::Recurrent, "{case}\n{source}\n{worst:?}");
        }
    }
}

/// Only the program's own tensors say how many tokens there are: the graph reads none that has any.
#[test]
fn an_output_that_depends_on_no_input_is_interpreted() {
    let source = "recurrence drawn { axis V input g: [] in (-inf, 0] param D: [V] state h: [V] \
                  h = exp(g) * h h = D output o: [V] = h }";
    let program = chunkwise_dsl::compile(source).expect("the source is a program").programs.remove(0);
    for number in 0..4 {
        let case = Case::draw(&program, 3, number);
        let report = verify_case(
            &program,
            &BTreeMap::new(),
            &[Check::Agrees(FormChoice::Recurrent.into(), Precision::F64)],
            &case,
        );
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        assert!(report.rows.iter().any(|row| row.cases > 0), "nothing was compared");
    }
}

#[test]
fn random_programs_compiled() {
    // The chunkwise form of every program, and the others by turns.
    let forms =
        |seed: u64| vec![FormChoice::Chunkwise, [FormChoice::Recurrent, FormChoice::Parallel][seed as usize % 2]];
    conclude(&try_many(&Extent::of(0, 64, false), &|seed| Trial::of(&forms(seed))));
}

#[test]
#[ignore = "takes long; see the top of this file"]
fn many_random_programs_compiled() {
    let extent = Extent::of(number("CHUNKWISE_SEED", 2_000_000), number("CHUNKWISE_PROGRAMS", 2000), true);
    let forms = [FormChoice::Chunkwise, FormChoice::Recurrent, FormChoice::Parallel];
    conclude(&try_many(&extent, &|_| Trial::of(&forms)));
}

/// A number that a variable of the environment gives.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a whole number, not `{text}`")),
        Err(_) => default,
    }
}
