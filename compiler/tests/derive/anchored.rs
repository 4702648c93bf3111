//! Which decays are anchored within a block, and that the plain product gives what the pairs give.

use crate::draw::Draw;
use chunkwise_compiler::compile::{Derived, Request, derive, replay};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::derive::rules::{anchor_inside, gate_inside};
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::graph::ir::{GatedPart, Graph, Op};
use chunkwise_compiler::graph::verify::verify;
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Program, TensorKind};
use std::collections::BTreeMap;

/// A delta rule with a gate on K; `range` is what is declared of it.
fn delta(range: &str, decay: &str) -> Program {
    let source = format!(
        "recurrence gated {{ axis K, V input q: [K], k: [K] in unit(K), v: [V], g: [K] {range}, f: [K], beta: [] in [0, 1]
         state S: [K, V] S = {decay} * S S = S + k * (beta * (v - k @ S)) output o: [V] = q @ S }}"
    );
    program(&source)
}

fn program(source: &str) -> Program {
    chunkwise_dsl::compile(source).unwrap_or_else(|errors| panic!("{errors:?}")).programs.remove(0)
}

fn instance(program: &Program) -> Instance<'_> {
    let sizes = program.axes.iter().map(|axis| (axis.name.clone(), if axis.name == "K" { 3 } else { 2 })).collect();
    Instance::new(program, &sizes, &BTreeMap::new()).expect("the sizes fit")
}

fn request(inside: Inside, chunk: usize) -> Request {
    Request { form: Form::Chunkwise, chunk: Some(chunk), max_length: 0, backward: true, inside }
}

fn derived(program: &Program, inside: Inside, chunk: usize) -> Derived {
    let instance = instance(program);
    let derived = derive(&instance, &request(inside, chunk)).expect("it has a chunk form");
    replay(&instance, &request(inside, chunk), &derived).expect("the same again");
    derived
}

fn graphs(derived: &Derived) -> [&Graph; 3] {
    let asked = "asked for";
    [&derived.forward, derived.forward_saving.as_ref().expect(asked), derived.backward.as_ref().expect(asked)]
}

/// Sums over pairs that are left, but for those that are gradients of gates.
fn pairs(graph: &Graph) -> usize {
    let left = |op: &Op| matches!(op, Op::Gated { part, .. } if !matches!(part, GatedPart::Gate(_)));
    graph.nodes.iter().filter(|node| left(&node.op)).count()
}

fn gate_gradients(graph: &Graph) -> usize {
    let is = |op: &Op| matches!(op, Op::Gated { part: GatedPart::Gate(_), .. });
    graph.nodes.iter().filter(|node| is(&node.op)).count()
}

/// What is said of the decay within a block: the rule's name and the facts.
fn said(derived: &Derived) -> (&'static str, String) {
    let step = derived.derivation.steps.iter().find(|step| step.facts.starts_with("within a block"));
    let step = step.expect("the route is recorded");
    (step.rule.name, step.facts.clone())
}

#[test]
fn a_declared_range_decides_the_route() {
    let anchored = anchor_inside::RULE.name;
    let kept = gate_inside::RULE.name;
    for (range, decay, rule, numbers) in [
        ("in [-5, 0]", "exp(g)", anchored, "5.0000 · 16 · log₂e = 115.42, below 126"),
        ("in (-5, 0)", "exp(g)", anchored, "5.0000 · 16 · log₂e = 115.42, below 126"),
        // 5.46 · 16 · log₂e is 126.04.
        ("in [-5.46, 0]", "exp(g)", kept, "5.4600 · 16 · log₂e = 126.03, not below 126"),
        // Below 126, but a bound rounded to bfloat16 might not be.
        ("in [-5.45, 0]", "exp(g)", kept, "= 125.80"),
        ("in (-inf, 0]", "exp(g)", kept, "no declared range"),
        ("in [-5, 0.1]", "exp(g)", kept, "no declared range"),
        ("", "exp(g)", kept, "no declared range"),
        // A factor has no logarithm that a range is declared of.
        ("in [0.5, 1]", "g", kept, "no declared range"),
        // Bounds follow through functions: −4 · sigmoid(f) lies between −4 and 0.
        ("in [0, 1]", "exp(-4 * g * sigmoid(f))", anchored, "4.0000 · 16 · log₂e = 92.33"),
    ] {
        let program = delta(range, decay);
        let both = derived(&program, Inside::Anchored, 32);
        let (name, facts) = said(&both);
        assert_eq!(name, rule, "{range} {decay}: {facts}");
        assert!(facts.contains(numbers), "{range} {decay}: {facts}");
        for graph in graphs(&both) {
            verify(graph).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(pairs(graph) == 0, rule == anchored, "{range} {decay}: {}", graph.name);
        }
        assert_eq!(gate_gradients(graphs(&both)[2]), 2, "one for each product of scores");
        // Asked for, pairs are what is made, whatever is declared.
        let asked = derived(&program, Inside::Pairs, 32);
        assert_eq!(said(&asked).0, kept);
        assert!(graphs(&asked).iter().all(|graph| pairs(graph) > 0));
    }
}

#[test]
fn two_decays_a_token_count_twice() {
    let source = |lowest: f64| {
        format!(
            "recurrence twice {{ axis K, V input q: [K], k: [K], v: [V], g: [K] in [{lowest}, 0], h: [K] in [{lowest}, 0]
             state S: [K, V] S = exp(g) * S + k * v S = exp(h) * S output o: [V] = q @ S }}"
        )
    };
    let found = |lowest| said(&derived(&program(&source(lowest)), Inside::Anchored, 16));
    assert_eq!(found(-2.5).0, anchor_inside::RULE.name);
    let (rule, facts) = found(-3.0);
    assert_eq!(rule, gate_inside::RULE.name);
    assert!(facts.contains("6.0000 · 16 · log₂e = 138.50, not below 126"), "{facts}");
}

/// A short chunk decays less: seven rows allow what sixteen do not.
#[test]
fn the_rows_of_a_block_count() {
    let program = delta("in [-12, 0]", "exp(g)");
    assert_eq!(said(&derived(&program, Inside::Anchored, 7)).0, anchor_inside::RULE.name);
    assert_eq!(said(&derived(&program, Inside::Anchored, 16)).0, gate_inside::RULE.name);
}

/// Gates of one token and element.
type GateAt = fn(&mut Draw, usize) -> f64;

/// All of a run's tensors; gates between `lo` and 0 by `gate`, every third exactly at a bound.
fn bundle(instance: &Instance, tokens: usize, gate: GateAt, lo: f64) -> Bundle {
    let program = instance.program;
    let mut draw = Draw::new(tokens as u64);
    let mut given = Bundle::new();
    let plain = |draw: &mut Draw, shape: Vec<usize>| Tensor::from_fn(&shape, |_| draw.between(-1.0, 1.0));
    for tensor in &program.tensors {
        assert_eq!(tensor.kind, TensorKind::Input);
        let axes = instance.shape(&tensor.axes);
        let shape = [vec![2, tokens, 1], axes.clone()].concat();
        let row: usize = axes.iter().product();
        let value = match tensor.name.as_str() {
            "g" | "h" => Tensor::from_fn(&shape, |at| -lo.abs() * gate(&mut draw, at / row)),
            "beta" => Tensor::from_fn(&shape, |_| draw.between(0.0, 1.0)),
            "k" => Tensor::from_fn(&shape, |_| draw.between(-0.5, 0.5)),
            _ => plain(&mut draw, shape),
        };
        given.insert(tensor.name.clone(), value);
    }
    for state in &program.states {
        let shape = [vec![2, 1], instance.shape(&state.axes)].concat();
        given.insert(format!("init.{}", state.name), plain(&mut draw, shape.clone()));
        given.insert(format!("grad_final.{}", state.name), plain(&mut draw, shape));
    }
    for output in &program.outputs {
        let shape = [vec![2, tokens, 1], instance.shape(&output.axes)].concat();
        given.insert(format!("grad_out.{}", output.name), plain(&mut draw, shape));
    }
    given
}

#[test]
fn plain_products_give_what_the_reference_gives() {
    let on_v = "recurrence on_v { axis K, V input q: [K], k: [K], v: [V], g: [V] in [-5, 0]
                state S: [K, V] S = exp(g) * S + k * v output o: [V] = q @ S }";
    let reading = "recurrence reading { axis K, V input q: [K], k: [K], v: [V], g: [V] in [-5, 0]
                   state S: [K, V] S = exp(g) * S S = S + k * (v - k @ S) output o: [V] = q @ S }";
    let twice = "recurrence twice { axis K, V input q: [K], k: [K], v: [V], g: [K] in [-2.7, 0], h: [K] in [-2.5, 0]
                 state S: [K, V] S = exp(g) * S + k * v S = exp(h) * S S = S + q * (v - k @ S) output o: [V] = q @ S }";
    let gates: [(&str, GateAt); 4] = [
        ("at the bound", |_, _| 1.0),
        ("anywhere", |draw, _| draw.between(0.0, 1.0)),
        ("at either bound", |draw, _| draw.choose(&[0.0, 1.0])),
        // What is left after a strong start has to be as exact as what came before.
        ("strong, then weak", |draw, token| if token % 16 < 11 { 1.0 } else { 0.001 * draw.between(0.0, 1.0) }),
    ];
    let programs = [
        delta("in [-5.4, 0]", "exp(g)"),
        program(on_v),
        program(reading),
        program(twice),
        delta("in [-5, 0]", "exp(g)"),
    ];
    for program in &programs {
        let instance = instance(program);
        let lo = if program.name == "twice" { 2.5 } else { 5.0 };
        for chunk in [5, 16, 20, 32, 48] {
            let derived = derived(program, Inside::Anchored, chunk);
            assert_eq!(said(&derived).0, anchor_inside::RULE.name, "{}", program.name);
            let [_, saving, backward] = graphs(&derived);
            for (what, gate) in gates {
                for tokens in [0, 1, 16, 37] {
                    let given = bundle(&instance, tokens, gate, lo);
                    let expected = reference::run_backward(&instance, &given).unwrap();
                    let found = interp::run_backward(saving, backward, &given, Some(1)).unwrap();
                    for (name, expected) in &expected {
                        let error = found[name].relative_error(expected, 1e-3);
                        let label = format!("{} {what}, chunk {chunk}, T {tokens}: {name}", program.name);
                        assert!(error <= 1e-11, "{label}: {error:e}");
                    }
                }
            }
        }
    }
}
