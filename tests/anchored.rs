//! Decays anchored within a block, compiled in float32: as exact as pair by pair up to the declared bound, and never
//! silently wrong beyond it.

use chunkwise::engine::{Engine, Plan};
use chunkwise::options::FormChoice;
use chunkwise::precision::Precision;
use chunkwise::verify::case::{Case, Regime};
use chunkwise::verify::draw::draw;
use chunkwise::verify::measure::{Check, Way};
use chunkwise::verify::verify_case;
use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::derive::form::Inside;
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::Program;
use std::collections::BTreeMap;

/// Kimi's delta rule with a bounded gate, two decays a token, and a decay on V.
const PROGRAMS: [&str; 3] = [
    "recurrence bounded { axis K, V input q: [K], k: [K] in unit(K), v: [V], g: [K] in [-5.4, 0], beta: [] in [0, 1]
     state S: [K, V] S = exp(g) * S S = S + k * (beta * (v - k @ S)) output o: [V] = q @ S }",
    "recurrence twice { axis K, V input q: [K], k: [K] in unit(K), v: [V], g: [K] in [-2.7, 0], h: [K] in [-2.7, 0]
     state S: [K, V] S = exp(g) * S + k * v S = exp(h) * S output o: [V] = q @ S }",
    "recurrence on_v { axis K, V input q: [K], k: [K] in unit(K), v: [V], g: [V] in [-5.4, 0]
     state S: [K, V] S = exp(g) * S S = S + k * (0.5 * (v - k @ S)) output o: [V] = q @ S }",
];

fn programs() -> Vec<Program> {
    PROGRAMS.iter().map(|source| chunkwise_dsl::compile(source).expect("it is right").programs.remove(0)).collect()
}

fn case(regime: Regime, chunk: usize) -> Case {
    let sizes = BTreeMap::from([("K".to_owned(), 24), ("V".to_owned(), 20)]);
    Case { seed: 5, batch: 1, tokens: 70, heads: 2, groups: 1, chunk, init: true, regime, sizes }
}

fn engine<'p>(instance: &Instance<'p>, inside: Inside) -> Engine<'p> {
    let plan = Plan {
        form: FormChoice::Chunkwise,
        chunk: Some(32),
        precision: Precision::F32,
        inside,
        threads: Some(1),
        cache: false,
    };
    Engine::prepare(instance, &plan, Parts::Both, 0).expect("it compiles")
}

#[test]
fn every_promise_is_kept_in_every_regime() {
    for program in &programs() {
        let checks = Check::all(program, &BTreeMap::new());
        let pairs = Way { form: FormChoice::Chunkwise, inside: Inside::Pairs };
        assert!(checks.contains(&Check::Agrees(pairs, Precision::F32)), "{}: the ranges allow an anchor", program.name);
        let chunkwise = Way::from(FormChoice::Chunkwise);
        let checks = [
            Check::Agrees(chunkwise, Precision::F32),
            Check::Agrees(chunkwise, Precision::Bf16),
            Check::Causal(chunkwise),
            Check::Splits(chunkwise),
            Check::ChunkInvariant,
        ];
        for (number, regime) in Regime::ALL.into_iter().enumerate() {
            let case = case(regime, [16, 32, 64][number % 3]);
            let report = verify_case(program, &BTreeMap::new(), &checks, &case);
            assert!(report.failed.is_empty(), "{} {}: {:?}", program.name, regime.name(), report.failed);
            assert_eq!(report.void, 0);
        }
    }
}

/// Gates as the bundle has them, replaced.
fn with_gates(given: &Bundle, gate: impl Fn(usize) -> f64) -> Bundle {
    let mut given = given.clone();
    for name in ["g", "h"] {
        if let Some(tensor) = given.get_mut(name) {
            // [B, T, H, ...]
            let row: usize = tensor.shape[2..].iter().product();
            for (at, value) in tensor.data.iter_mut().enumerate() {
                *value = f64::from(gate(at / row) as f32);
            }
        }
    }
    given
}

fn worst(found: &Bundle, expected: &Bundle, gradients: bool) -> f64 {
    let of = expected.iter().filter(|(name, _)| name.starts_with("grad") == gradients);
    of.map(|(name, tensor)| {
        let floor = 1e-3 * (tensor.data.len() as f64).sqrt();
        found[name].relative_error(tensor, floor)
    })
    .fold(0.0, f64::max)
}

/// After gates at the bound most of what float32 can hold is used up; what follows has to be as exact as before, for
/// gradients of gates too, which nearly cancel.
#[test]
fn weak_gates_after_strong_ones_lose_no_digits() {
    for program in &programs() {
        let lowest = if program.name == "twice" { -2.7 } else { -5.4 };
        let case = case(Regime::Usual, 32);
        let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).expect("the sizes fit");
        let usual = draw(program, &case, Precision::F32);
        let mut engines = [Inside::Anchored, Inside::Pairs].map(|inside| (inside, engine(&instance, inside)));
        for strong in [1, 8, 13, 15, 16] {
            let given = with_gates(&usual, |token| if token % 16 < strong { lowest } else { -1e-3 });
            let expected = reference::run_backward(&instance, &given).unwrap();
            for (inside, engine) in &mut engines {
                let found = engine.run(&given, true).unwrap();
                let label = format!("{} {inside:?}, {strong} strong", program.name);
                let (values, gradients) = (worst(&found, &expected, false), worst(&found, &expected, true));
                assert!(values <= 3e-6, "{label}: {values:e}");
                assert!(gradients <= 3e-6, "{label}: gradients {gradients:e}");
            }
        }
    }
}

fn right_or_not_a_number(found: &Tensor, expected: &Tensor) -> bool {
    let scale = expected.data.iter().fold(1e-3_f64, |top, x| top.max(x.abs()));
    found.data.iter().zip(&expected.data).all(|(x, y)| x.is_nan() || x.is_infinite() || (x - y).abs() <= 1e-4 * scale)
}

#[test]
fn gates_that_break_the_promise_are_not_silently_wrong() {
    let program = &programs()[0];
    let case = case(Regime::Usual, 32);
    let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).expect("the sizes fit");
    let usual = draw(program, &case, Precision::F32);
    let mut not_numbers = 0;
    let (mut anchored, mut pairs) = (engine(&instance, Inside::Anchored), engine(&instance, Inside::Pairs));
    for gate in [-6.0, -7.0, -9.0, -12.0, -40.0, -1000.0] {
        for strong in [1, 4, 10, 16] {
            let given = with_gates(&usual, |token| if token % 16 < strong { gate } else { -1e-3 });
            let expected = reference::run(&instance, &given).unwrap();
            let found = anchored.run(&given, false).unwrap();
            assert!(right_or_not_a_number(&found["out.o"], &expected["out.o"]), "{strong} gates of {gate}");
            not_numbers += usize::from(found["out.o"].data.iter().any(|x| x.is_nan()));
            let exact = pairs.run(&given, false).unwrap();
            assert!(worst(&exact, &expected, false) <= 2e-5, "pair by pair there is no bound");
        }
    }
    assert!(not_numbers > 0, "some of these gates are beyond what float32 holds");
}

/// A later token that is huge, but finite, changes nothing before it.
#[test]
fn a_huge_token_leaves_the_past_alone() {
    for program in &programs() {
        let case = case(Regime::Bound, 32);
        let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).expect("the sizes fit");
        let given = draw(program, &case, Precision::F32);
        let mut engine = engine(&instance, Inside::Anchored);
        let one = engine.run(&given, false).unwrap();
        // What stands inside the sum may have 2^64 at most.
        for (name, times) in [("q", 1e18), ("v", 1e30)] {
            let mut changed = given.clone();
            let tensor = changed.get_mut(name).expect("an input");
            let row: usize = tensor.shape[2..].iter().product();
            tensor.data[41 * row..].iter_mut().for_each(|x| *x *= times);
            let two = engine.run(&changed, false).unwrap();
            assert!(two["out.o"].data.iter().all(|x| x.is_finite()), "{} {name}", program.name);
            let row: usize = one["out.o"].shape[2..].iter().product();
            let before =
                |found: &Bundle| found["out.o"].data[..41 * row].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(before(&one) == before(&two), "{}: a later {name} changes what came before", program.name);
        }
    }
}
