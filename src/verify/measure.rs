//! Single checks. In: a program, a check and a case; out: how far each result is off and how far it may be. It never
//! decides what happens next: a case that fails is shrunk and reported elsewhere.

use std::collections::{BTreeMap, HashMap};

use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::compile;
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::derive::rules::{anchor_inside, ut_transform};
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Program, TensorKind};

use super::budget::{self, Share};
use super::case::Case;
use super::draw::draw;
use super::moved::Moved;
use super::random::Random;
use super::{slices, summary};
use crate::binding::Leading;
use crate::engine::{self, Amount, Engine, Place, Plan, request};
use crate::failure::Failure;
use crate::options::{FormChoice, default_sizes};
use crate::precision::Precision;

/// How often the same call is repeated on as many threads as there are cores.
const REPEATS: usize = 50;

/// Numbers of threads it is repeated on besides.
const THREADS: [usize; 6] = [1, 2, 3, 4, 7, 16];

/// A form, and the route inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// How the tokens are gone through.
    pub form: FormChoice,
    /// How a decay inside a sum is computed within a block.
    pub inside: Inside,
}

impl From<FormChoice> for Way {
    fn from(form: FormChoice) -> Way {
        Way { form, inside: Inside::default() }
    }
}

impl Way {
    /// Tokens that are gone through at once.
    fn block(self, case: &Case) -> Option<usize> {
        match self.form {
            FormChoice::Chunkwise => Some(case.chunk),
            FormChoice::Parallel => Some(case.tokens),
            FormChoice::Naive | FormChoice::Recurrent => None,
        }
    }

    fn name(self) -> String {
        match self.inside {
            Inside::Anchored => self.form.name().to_owned(),
            Inside::Pairs => format!("{}, pair by pair,", self.form.name()),
        }
    }
}

/// One thing that has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// A form gives what the reference gives.
    Agrees(Way, Precision),
    /// What comes after a token changes nothing up to it, to the bit.
    Causal(Way),
    /// A sequence gives the same alone and in a batch, to the bit.
    BatchInvariant(Way),
    /// The same call gives the same, to the bit, also on another number of threads.
    Repeatable(Way),
    /// Another chunk size gives the same, within rounding.
    ChunkInvariant,
    /// Two calls with the state carried over give what one gives, within rounding.
    Splits(Way),
    /// Summaries of spans, composed, give the final states of one pass, within rounding.
    Composes,
    /// Not much farther off than rounding inputs and results alone makes it.
    NearRounding(Way, Precision),
    /// A form gives what the recurrent one gives in float32: for lengths that the reference is too slow for.
    LikeRecurrent(Way, Precision),
}

impl Check {
    /// Everything that is checked of a program in this build.
    pub fn all(program: &Program, constants: &BTreeMap<String, f64>) -> Vec<Check> {
        Check::all_at(program, constants, &Place::Cpu)
    }

    /// The same, with compiled code running somewhere.
    pub fn all_at(program: &Program, constants: &BTreeMap<String, f64>, place: &Place) -> Vec<Check> {
        let mut ways: Vec<Way> =
            [FormChoice::Recurrent, FormChoice::Parallel, FormChoice::Chunkwise].map(Way::from).to_vec();
        if anchors(program, constants) {
            ways.push(Way { form: FormChoice::Chunkwise, inside: Inside::Pairs });
        }
        let each = |check: fn(Way) -> Check| ways.iter().copied().map(check);
        let mut checks = Vec::new();
        match place {
            Place::Cpu => {
                checks.extend(each(|way| Check::Agrees(way, Precision::F64)));
                if engine::COMPILES {
                    checks.extend(each(|way| Check::Agrees(way, Precision::F32)));
                    for precision in [Precision::Bf16, Precision::F16] {
                        let chunkwise = ways.iter().filter(|way| way.form == FormChoice::Chunkwise);
                        checks.extend(chunkwise.map(|&way| Check::Agrees(way, precision)));
                    }
                }
            }
            // There every type has instructions of its own, in every form.
            #[cfg(feature = "llvm")]
            Place::Gpu(_) | Place::StandIn(_) => {
                for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
                    checks.extend(ways.iter().map(|&way| Check::Agrees(way, precision)));
                }
                for precision in [Precision::Bf16, Precision::F16] {
                    checks.extend(ways.iter().map(|&way| Check::NearRounding(way, precision)));
                }
            }
        }
        checks.extend(each(Check::Causal));
        checks.extend(each(Check::BatchInvariant));
        checks.extend(each(Check::Repeatable));
        checks.push(Check::ChunkInvariant);
        checks.extend(each(Check::Splits));
        checks.push(Check::Composes);
        checks
    }

    /// What can be checked at lengths that the reference is too slow for.
    pub fn all_long() -> Vec<Check> {
        let chunkwise = Way::from(FormChoice::Chunkwise);
        [Precision::F32, Precision::Bf16, Precision::F16].map(|it| Check::LikeRecurrent(chunkwise, it)).to_vec()
    }

    /// Words for the table.
    pub fn name(self) -> String {
        match self {
            Check::Agrees(way, Precision::F64) => format!("{} f64 = reference", way.name()),
            Check::Agrees(way, precision) => format!("{} {} compiled = reference", way.name(), precision.name()),
            Check::Causal(way) => format!("{} causal, bitwise", way.name()),
            Check::BatchInvariant(way) => format!("{} batch invariant, bitwise", way.name()),
            Check::Repeatable(way) => format!("{} repeatable over runs and threads, bitwise", way.name()),
            Check::ChunkInvariant => "chunk size changes nothing".to_owned(),
            Check::Splits(way) => format!("{} two calls = one call", way.name()),
            Check::Composes => "composed span summaries = one call".to_owned(),
            Check::NearRounding(way, precision) => {
                format!("{} {} as multiple of rounding alone", way.name(), precision.name())
            }
            Check::LikeRecurrent(way, precision) => format!("{} {} = recurrent f32", way.name(), precision.name()),
        }
    }
}

/// How far a share of the results is off, at its worst tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Which results.
    pub share: Share,
    /// The tensor that is worst, measured against what is allowed.
    pub tensor: String,
    /// Its relative error.
    pub error: f64,
    /// What is allowed to it.
    pub allowed: f64,
    /// Whether more than the budget was allowed because the case magnifies rounding.
    pub conditioned: bool,
}

impl Finding {
    /// Whether it is within what is allowed.
    pub fn holds(&self) -> bool {
        self.error <= self.allowed
    }
}

/// What one check of one case gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// Numbers.
    Findings(Vec<Finding>),
    /// The case says nothing, and why.
    Void(&'static str),
}

/// A program under test, with the engines made for it so far.
pub struct Subject<'p> {
    program: &'p Program,
    constants: BTreeMap<String, f64>,
    place: Place,
    engines: HashMap<String, Engine<'p>>,
    /// What the reference gave for the last few bundles, by case and precision.
    references: HashMap<String, Bundle>,
}

impl<'p> Subject<'p> {
    /// A program with its constants, its compiled code to run somewhere.
    pub fn new(program: &'p Program, constants: BTreeMap<String, f64>, place: Place) -> Subject<'p> {
        Subject { program, constants, place, engines: HashMap::new(), references: HashMap::new() }
    }

    /// Makes one check of one case.
    pub fn measure(&mut self, check: Check, case: &Case) -> Result<Measured, Failure> {
        match check {
            Check::Agrees(way, precision) => self.agrees(way, precision, case),
            Check::Causal(way) => self.causal(way, case),
            Check::BatchInvariant(way) => self.batch_invariant(way, case),
            Check::Repeatable(way) => self.repeatable(way, case),
            Check::ChunkInvariant => self.chunk_invariant(case),
            Check::Splits(way) => self.splits(way, case),
            Check::Composes => self.composes(case),
            Check::NearRounding(way, precision) => self.near_rounding(way, precision, case),
            Check::LikeRecurrent(way, precision) => self.like_recurrent(way, precision, case),
        }
    }

    fn instance(&self, case: &Case) -> Result<Instance<'p>, Failure> {
        Instance::new(self.program, &case.sizes, &self.constants).map_err(Failure::input_all)
    }

    fn engine(&mut self, case: &Case, way: Way, precision: Precision) -> Result<&mut Engine<'p>, Failure> {
        let Way { form, inside } = way;
        let chunk = (form == FormChoice::Chunkwise).then_some(case.chunk);
        // Only the parallel form is made for a length.
        let length = if form == FormChoice::Parallel { case.tokens } else { 0 };
        let plan = Plan { form, chunk, precision, inside, threads: None, cache: false };
        let amount = Amount { batch: case.batch, length: case.tokens, heads: case.heads };
        let key = format!("{plan:?} {length} {:?} {}", case.sizes, self.place.layout(amount));
        // Shrinking asks for many sizes once each; engines of other sizes will not be asked for again.
        if self.engines.len() >= 24 {
            self.engines.clear();
        }
        if !self.engines.contains_key(&key) {
            let engine = Engine::prepare_at(&self.place, &self.instance(case)?, &plan, Parts::Both, length, amount)?;
            self.engines.insert(key.clone(), engine);
        }
        Ok(self.engines.get_mut(&key).expect("it was just put there"))
    }

    fn reference(&self, case: &Case, bundle: &Bundle) -> Result<Bundle, Failure> {
        reference::run_backward(&self.instance(case)?, bundle).map_err(|error| Failure::Ours(error.to_string()))
    }

    /// The reference on the data of a case. It takes by far the longest, and every form is held against the same.
    fn expected(&mut self, case: &Case, bundle: &Bundle, precision: Precision) -> Result<Bundle, Failure> {
        let key = format!("{} {case}", precision.name());
        let expected = match self.references.get(&key) {
            Some(expected) => expected.clone(),
            None => self.reference(case, bundle)?,
        };
        if self.references.len() >= 4 {
            self.references.clear();
        }
        self.references.insert(key, expected.clone());
        Ok(expected)
    }

    /// How far from the truth, which knows the numbers before they were rounded, as a multiple of how far exact
    /// arithmetic on the rounded ones is, its results rounded too.
    fn near_rounding(&mut self, way: Way, precision: Precision, case: &Case) -> Result<Measured, Failure> {
        let bundle = draw(self.program, case, precision);
        let rounded = self.expected(case, &bundle, precision)?;
        let truth = self.expected(case, &draw(self.program, case, Precision::F64), Precision::F64)?;
        if !usable(&truth, precision) || !usable(&rounded, precision) {
            return Ok(NOT_FINITE);
        }
        // Results that depend on few numbers, or on few products of a token with one before it, have as few independent
        // errors, however many they are themselves.
        let pairs = case.batch * case.heads * case.tokens * (case.tokens + 1) / 2;
        let given = self.program.tensors.iter().filter(|it| it.kind == TensorKind::Input && !it.axes.is_empty());
        let given = given.filter_map(|it| Some(bundle.get(&it.name)?.data.len())).min().unwrap_or(usize::MAX);
        let is_enough = |tensor: &Tensor| tensor.data.len().min(pairs).min(given) >= budget::ENOUGH_ROUNDINGS;
        if !truth.values().any(is_enough) {
            return Ok(Measured::Void("too few numbers for their rounding to have a usual size"));
        }
        let found = self.engine(case, way, precision)?.run(&bundle, true)?;
        let allowed = if self.edits_itself(case)? { budget::BEYOND_ROUNDING.1 } else { budget::BEYOND_ROUNDING.0 };
        let mut findings = Vec::new();
        for (name, truth) in truth.iter().filter(|(_, truth)| is_enough(truth)) {
            let of_token = slices::leading(self.program, name) == Some(Leading::Token);
            let stored = if of_token { precision } else { precision.beside() };
            let mut alone = rounded[name].clone();
            alone.data.iter_mut().for_each(|value| *value = stored.round(*value));
            let floor = budget::floor(truth);
            // A result that rounding happens to spare says nothing; half a unit is the least it would cost.
            let least = alone.relative_error(truth, floor).max(budget::half_unit(precision));
            let error = found.get(name).map_or(f64::INFINITY, |found| found.relative_error(truth, floor)) / least;
            findings.push(Finding { share: Share::of(name), tensor: name.clone(), error, allowed, conditioned: false });
        }
        Ok(Measured::Findings(worst(findings)))
    }

    /// Whether edits of a chunk depend on each other, as those of a delta rule do.
    fn edits_itself(&self, case: &Case) -> Result<bool, Failure> {
        let request = request(Form::Chunkwise, Some(case.chunk), 0, Parts::Forward, Inside::default());
        let derived = compile::derive(&self.instance(case)?, &request);
        Ok(derived.is_ok_and(|it| it.derivation.steps.iter().any(|step| step.rule.name == ut_transform::RULE.name)))
    }

    fn like_recurrent(&mut self, way: Way, precision: Precision, case: &Case) -> Result<Measured, Failure> {
        let bundle = draw(self.program, case, precision);
        let recurrent = Way::from(FormChoice::Recurrent);
        let expected = self.engine(case, recurrent, Precision::F32)?.run(&bundle, true)?;
        if !usable(&expected, precision) {
            return Ok(NOT_FINITE);
        }
        let found = self.engine(case, way, precision)?.run(&bundle, true)?;
        let findings = expected.iter().map(|(name, expected)| {
            let floor = budget::floor(expected);
            let error = found.get(name).map_or(f64::INFINITY, |found| found.relative_error(expected, floor));
            let allowed = budget::allowed(self.program, name, precision);
            Finding { share: Share::of(name), tensor: name.clone(), error, allowed, conditioned: false }
        });
        Ok(Measured::Findings(worst(findings.collect())))
    }

    fn agrees(&mut self, way: Way, precision: Precision, case: &Case) -> Result<Measured, Failure> {
        let bundle = draw(self.program, case, precision);
        let expected = self.expected(case, &bundle, precision)?;
        if !usable(&expected, precision) {
            return Ok(Measured::Void("the results of the reference are not finite, or too large for the precision"));
        }
        let engine = self.engine(case, way, precision)?;
        let forward = engine.run(&bundle, false)?;
        let found = engine.run(&bundle, true)?;
        let terms = Terms { case, precision, block: way.block(case), times: 1.0 };
        let mut findings = self.compare(&terms, &bundle, &expected, &found)?;
        let mut without: Bundle = expected;
        without.retain(|name, _| Share::of(name) == Share::Values);
        findings.extend(self.compare(&terms, &bundle, &without, &forward)?);
        Ok(Measured::Findings(worst(findings)))
    }

    /// The precision that contracts are checked in: that of compiled code, where there is any. On a GPU each type has
    /// instructions of its own, so cases take turns.
    fn contract_precision(&self, case: &Case) -> Precision {
        let turns: &[Precision] = match &self.place {
            Place::Cpu if engine::COMPILES => &[Precision::F32],
            Place::Cpu => &[Precision::F64],
            #[cfg(feature = "llvm")]
            Place::Gpu(_) | Place::StandIn(_) => &[Precision::F32, Precision::Bf16, Precision::F16],
        };
        turns[case.seed as usize % turns.len()]
    }

    /// Whether a kernel went so wrong that nothing more can be computed where it ran.
    pub fn is_lost(&self) -> bool {
        match &self.place {
            Place::Cpu => false,
            #[cfg(feature = "llvm")]
            Place::Gpu(gpu) => gpu.stream.synchronize().is_err(),
            #[cfg(feature = "llvm")]
            Place::StandIn(_) => false,
        }
    }

    /// Data and engine for a contract; `None` where results are not finite, about which nothing is promised.
    fn contract(&mut self, way: Way, case: &Case) -> Result<Option<(Bundle, Bundle)>, Failure> {
        let precision = self.contract_precision(case);
        let bundle = draw(self.program, case, precision);
        let once = self.engine(case, way, precision)?.run(&bundle, true)?;
        Ok(usable(&once, precision).then_some((bundle, once)))
    }

    fn causal(&mut self, way: Way, case: &Case) -> Result<Measured, Failure> {
        let case = Case { tokens: case.tokens.max(2), ..case.clone() };
        let Some((bundle, _)) = self.contract(way, &case)? else { return Ok(NOT_FINITE) };
        let at = 1 + Random::new(case.seed, "causal").below(case.tokens - 1);
        let other =
            draw(self.program, &Case { seed: case.seed ^ 0x5555, ..case.clone() }, self.contract_precision(&case));
        let mut changed = slices::tokens(self.program, &bundle, 0..at);
        for (name, tensor) in slices::tokens(self.program, &other, at..case.tokens) {
            let token = slices::leading(self.program, &name) == Some(Leading::Token);
            if let (true, Some(before)) = (token, changed.get(&name)) {
                let joined = slices::join(before, &tensor, 1);
                changed.insert(name, joined);
            }
        }
        let engine = self.engine(&case, way, self.contract_precision(&case))?;
        let (one, two) = (engine.run(&bundle, false)?, engine.run(&changed, false)?);
        let upto = |bundle: &Bundle| {
            let mut part = slices::tokens(self.program, bundle, 0..at);
            part.retain(|name, _| name.starts_with("out."));
            part
        };
        Ok(Measured::Findings(identical(&upto(&one), &upto(&two))))
    }

    fn batch_invariant(&mut self, way: Way, case: &Case) -> Result<Measured, Failure> {
        let case = Case { batch: case.batch.max(3), ..case.clone() };
        let Some((bundle, together)) = self.contract(way, &case)? else { return Ok(NOT_FINITE) };
        let mut findings = Vec::new();
        for number in 0..case.batch {
            let alone = slices::sequence(self.program, &bundle, number);
            let mut expected = slices::sequence(self.program, &together, number);
            // Gradients of parameters are sums over the batch.
            expected.retain(|name, _| slices::leading(self.program, name) != Some(Leading::Head));
            let engine = self.engine(&case, way, self.contract_precision(&case))?;
            findings.extend(identical(&expected, &engine.run(&alone, true)?));
        }
        Ok(Measured::Findings(worst(findings)))
    }

    fn repeatable(&mut self, way: Way, case: &Case) -> Result<Measured, Failure> {
        let Some((bundle, once)) = self.contract(way, case)? else { return Ok(NOT_FINITE) };
        let engine = self.engine(case, way, self.contract_precision(case))?;
        let mut findings = Vec::new();
        // An interpreter has one thread and no state between calls.
        let (repeats, threads) = if engine::COMPILES { (REPEATS, &THREADS[..]) } else { (2, &[][..]) };
        for number in std::iter::repeat_n(None, repeats).chain(threads.iter().copied().map(Some)) {
            engine.set_threads(number);
            findings.extend(identical(&once, &engine.run(&bundle, true)?));
        }
        engine.set_threads(None);
        Ok(Measured::Findings(worst(findings)))
    }

    fn chunk_invariant(&mut self, case: &Case) -> Result<Measured, Failure> {
        let way = Way::from(FormChoice::Chunkwise);
        let Some((bundle, once)) = self.contract(way, case)? else { return Ok(NOT_FINITE) };
        let precision = self.contract_precision(case);
        let mut findings = Vec::new();
        for chunk in [16, 64].into_iter().filter(|chunk| *chunk != case.chunk) {
            let other = Case { chunk, ..case.clone() };
            let again = self.engine(&other, way, precision)?.run(&bundle, true)?;
            let terms = Terms { case, precision, block: Some(chunk.max(case.chunk)), times: 2.0 };
            findings.extend(self.compare(&terms, &bundle, &once, &again)?);
        }
        Ok(Measured::Findings(worst(findings)))
    }

    fn splits(&mut self, way: Way, case: &Case) -> Result<Measured, Failure> {
        let Some((bundle, once)) = self.contract(way, case)? else { return Ok(NOT_FINITE) };
        let precision = self.contract_precision(case);
        let program = self.program;
        let at = Random::new(case.seed, "split").below(case.tokens + 1);
        let mut first = slices::tokens(self.program, &bundle, 0..at);
        let mut second = slices::tokens(self.program, &bundle, at..case.tokens);
        let engine = self.engine(case, way, precision)?;
        let carried = engine.run(&first, false)?;
        for state in &program.states {
            second.insert(format!("init.{}", state.name), carried[&format!("final.{}", state.name)].clone());
        }
        let after = engine.run(&second, true)?;
        for state in &program.states {
            first.insert(format!("grad_final.{}", state.name), after[&format!("grad_init.{}", state.name)].clone());
        }
        let before = engine.run(&first, true)?;
        let mut joined = Bundle::new();
        for name in once.keys() {
            let (a, b) = (&before[name], &after[name]);
            let tensor = match slices::leading(self.program, name) {
                Some(Leading::Token) => slices::join(a, b, 1),
                Some(Leading::Head) => {
                    let mut sum = a.clone();
                    sum.data.iter_mut().zip(&b.data).for_each(|(sum, more)| *sum += more);
                    sum
                }
                Some(Leading::Sequence) | None if name.starts_with("final.") => b.clone(),
                Some(Leading::Sequence) | None => a.clone(),
            };
            joined.insert(name.clone(), tensor);
        }
        let terms = Terms { case, precision, block: way.block(case), times: 2.0 };
        Ok(Measured::Findings(self.compare(&terms, &bundle, &once, &joined)?))
    }

    fn composes(&mut self, case: &Case) -> Result<Measured, Failure> {
        let Some((bundle, mut once)) = self.contract(FormChoice::Chunkwise.into(), case)? else {
            return Ok(NOT_FINITE);
        };
        let mut random = Random::new(case.seed, "spans");
        let mut cuts = [0, random.below(case.tokens + 1), random.below(case.tokens + 1), case.tokens];
        cuts.sort_unstable();
        let composed = summary::compose(&self.instance(case)?, &bundle, &cuts, case.chunk)?;
        once.retain(|name, _| name.starts_with("final."));
        let precision = self.contract_precision(case);
        let terms = Terms { case, precision, block: Some(case.chunk), times: 2.0 };
        Ok(Measured::Findings(self.compare(&terms, &bundle, &once, &composed)?))
    }

    /// Compares results, and asks how sensitive the case is only where a budget does not suffice.
    fn compare(
        &self,
        terms: &Terms,
        bundle: &Bundle,
        expected: &Bundle,
        found: &Bundle,
    ) -> Result<Vec<Finding>, Failure> {
        let mut findings = Vec::new();
        let mut moved: Option<Moved> = None;
        for (name, expected) in expected {
            let floor = budget::floor(expected);
            let error = found.get(name).map_or(f64::INFINITY, |found| found.relative_error(expected, floor));
            let mut allowed = terms.times * budget::allowed(self.program, name, terms.precision);
            let conditioned = error > allowed && error.is_finite();
            if conditioned {
                if moved.is_none() {
                    let &Terms { case, precision, block, .. } = terms;
                    let answers = Moved::new(&self.instance(case)?, case, bundle, precision, block);
                    moved = Some(answers.map_err(|error| Failure::Ours(error.to_string()))?);
                }
                allowed += moved.as_ref().expect("it was just put there").allowance(name, floor);
            }
            findings.push(Finding { share: Share::of(name), tensor: name.clone(), error, allowed, conditioned });
        }
        Ok(worst(findings))
    }
}

/// On what terms results are compared.
struct Terms<'c> {
    case: &'c Case,
    precision: Precision,
    /// Tokens that one side goes through at once, where it does.
    block: Option<usize>,
    /// How many budgets apart they may be: one, or two where both sides are rounded.
    times: f64,
}

/// Whether the declared ranges allow a decay inside a sum to be anchored within a block.
fn anchors(program: &Program, constants: &BTreeMap<String, f64>) -> bool {
    let Ok(instance) = Instance::new(program, &default_sizes(program), constants) else { return false };
    let request = request(Form::Chunkwise, None, 0, Parts::Forward, Inside::Anchored);
    let derived = compile::derive(&instance, &request);
    derived.is_ok_and(|it| it.derivation.steps.iter().any(|step| step.rule.name == anchor_inside::RULE.name))
}

const NOT_FINITE: Measured = Measured::Void("the results are not finite");

/// Whether every number is finite and far from where the precision ends.
fn usable(results: &Bundle, precision: Precision) -> bool {
    let end = match precision {
        Precision::F64 | Precision::F32 | Precision::Bf16 => 1e15,
        Precision::F16 => 3e4,
    };
    results.values().all(|tensor| tensor.data.iter().all(|value| value.abs() < end))
}

/// The worst finding of each share, measured against what is allowed.
fn worst(findings: Vec<Finding>) -> Vec<Finding> {
    let mut worst: BTreeMap<Share, Finding> = BTreeMap::new();
    let badness = |finding: &Finding| {
        if finding.allowed > 0.0 { finding.error / finding.allowed } else { finding.error * f64::MAX }
    };
    for finding in findings {
        match worst.get(&finding.share) {
            Some(known) if badness(known) >= badness(&finding) => {}
            Some(_) | None => {
                worst.insert(finding.share, finding);
            }
        }
    }
    worst.into_values().collect()
}

/// Compares to the bit. What one side lacks is as wrong as what differs.
fn identical(expected: &Bundle, found: &Bundle) -> Vec<Finding> {
    let findings = expected.iter().map(|(name, expected)| {
        let same = found.get(name).is_some_and(|found| {
            found.shape == expected.shape
                && found.data.iter().zip(&expected.data).all(|(a, b)| a.to_bits() == b.to_bits())
        });
        let error = match found.get(name) {
            _ if same => 0.0,
            Some(found) => found.relative_error(expected, 0.0).max(f64::MIN_POSITIVE),
            None => f64::INFINITY,
        };
        Finding { share: Share::of(name), tensor: name.clone(), error, allowed: 0.0, conditioned: false }
    });
    worst(findings.collect())
}
