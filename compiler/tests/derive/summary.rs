//! Summaries of spans: computed apart and composed, they carry the state as one pass does.

use crate::draw::Case;
use crate::examples::{MECHANISMS, fixture, mechanism, program, sized};
use chunkwise_compiler::compile::{Request, derive, summarise};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::derive::recurrence::Class;
use chunkwise_compiler::generate::generate;
use chunkwise_compiler::graph::interp::{self, Extent};
use chunkwise_compiler::graph::ir::{DimId, Graph};
use chunkwise_compiler::graph::text::{parse, print};
use chunkwise_compiler::graph::verify::verify;
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Program, TensorKind};
use std::collections::BTreeMap;

/// Mechanisms whose state is gone through a token at a time.
const ELEMENTWISE: [&str; 2] = ["hgrn", "mamba1"];

/// The tokens `begin..end` of every input.
fn slice(program: &Program, all: &Bundle, begin: usize, end: usize) -> Bundle {
    let mut part = Bundle::new();
    for tensor in &program.tensors {
        let whole = &all[&tensor.name];
        let value = match tensor.kind {
            TensorKind::Param => whole.clone(),
            TensorKind::Input => {
                let mut shape = whole.shape.clone();
                let (batch, row) = (shape[0], shape[2..].iter().product::<usize>());
                let tokens = shape[1];
                shape[1] = end - begin;
                let data = (0..batch)
                    .flat_map(|b| whole.data[(b * tokens + begin) * row..(b * tokens + end) * row].to_vec())
                    .collect();
                Tensor { shape, data }
            }
        };
        part.insert(tensor.name.clone(), value);
    }
    part
}

#[test]
fn composed_summaries_are_one_pass() {
    for name in MECHANISMS {
        let Some(recorded) = fixture(name) else { continue };
        let program = mechanism(name);
        let instance = sized(&program, &recorded);
        let summary = summarise(&instance, Some(16));
        if ELEMENTWISE.contains(&name) {
            let summary = summary.unwrap_or_else(|error| panic!("{name}: {error}"));
            let [batch, heads] = recorded[&format!("init.{}", program.states[0].name)].shape[..2] else {
                panic!("{name}: a state has a batch and heads");
            };
            let carried = compose_elementwise(&summary, &program, &recorded, [batch, heads], &[0, 37, 64, 64, 100]);
            for (name_of_state, found) in carried {
                let error = found.relative_error(&recorded[&name_of_state], 1e-30);
                assert!(error <= 1e-11, "{name}: {name_of_state} is off by {error:e}");
            }
            continue;
        }
        let summary = summary.unwrap_or_else(|error| panic!("{name}: {error}"));
        for state in &program.states {
            // Every example's states are strata of their own, the contracted axis first.
            let init = &recorded[&format!("init.{}", state.name)];
            let (batch, heads, k) = (init.shape[0], init.shape[1], init.shape[2]);
            let v: usize = init.shape[3..].iter().product();
            let mut carried = init.data.clone();
            for (begin, end) in [(0, 37), (37, 64), (64, 64), (64, 100)] {
                let mut tensors = slice(&program, &recorded, begin, end);
                for other in &program.states {
                    let k = recorded[&format!("init.{}", other.name)].shape[2];
                    let identity = |i: usize| if (i / k) % k == i % k { 1.0 } else { 0.0 };
                    let shape = [batch, heads, k, k];
                    tensors.insert(format!("init.M.{}", other.name), Tensor::from_fn(&shape, identity));
                }
                let result = interp::run(&summary, &tensors, Some(heads)).unwrap_or_else(|e| panic!("{name}: {e}"));
                let m = &result[&format!("summary.M.{}", state.name)].data;
                let u = &result[&format!("summary.U.{}", state.name)].data;
                let before = std::mem::take(&mut carried);
                for item in 0..batch * heads {
                    for row in 0..k {
                        for col in 0..v {
                            let product: f64 =
                                (0..k).map(|j| m[(item * k + row) * k + j] * before[(item * k + j) * v + col]).sum();
                            carried.push(product + u[(item * k + row) * v + col]);
                        }
                    }
                }
            }
            let shape = recorded[&format!("final.{}", state.name)].shape.clone();
            let found = Tensor { shape, data: carried };
            let error = found.relative_error(&recorded[&format!("final.{}", state.name)], 1e-30);
            assert!(error <= 1e-11, "{name}: {} is off by {error:e}", state.name);
        }
    }
}

/// Where an element lies in a tensor along some of the axes, from where it lies in one along all of them.
fn place_along(graph: &Graph, whole: &[DimId], part: &[DimId]) -> impl Fn(usize) -> usize + use<> {
    let sizes = graph.sizes(whole);
    let steps: Vec<usize> = whole
        .iter()
        .map(|dim| match part.iter().position(|other| other == dim) {
            Some(at) => graph.sizes(&part[at + 1..]).iter().product(),
            None => 0,
        })
        .collect();
    move |mut at| {
        let mut place = 0;
        for (size, step) in sizes.iter().zip(&steps).rev() {
            place += at % size * step;
            at /= size;
        }
        place
    }
}

/// Final states from summaries of the spans between `cuts`: all summaries are composed from the last to the first
/// before a state is seen.
fn compose_elementwise(
    summary: &Graph,
    program: &Program,
    all: &Bundle,
    [batch, heads]: [usize; 2],
    cuts: &[usize],
) -> Bundle {
    let mut finals = Bundle::new();
    for state in &program.states {
        let layout_of = |part: &str| {
            let name = format!("{part}.{}", state.name);
            &summary.carries.iter().find(|carry| carry.name == name).unwrap_or_else(|| panic!("no {name}")).layout
        };
        let (whole, part) = (layout_of("U"), layout_of("M"));
        let place = place_along(summary, whole, part);
        let (n, n_part) =
            (summary.sizes(whole).iter().product::<usize>(), summary.sizes(part).iter().product::<usize>());
        // What comes after the tokens in hand: nothing, at first.
        let (mut m, mut u) = (vec![1.0; batch * heads * n_part], vec![0.0; batch * heads * n]);
        for span in cuts.windows(2).rev() {
            let mut tensors = slice(program, all, span[0], span[1]);
            for carry in summary.carries.iter().filter(|carry| carry.init.is_some()) {
                let shape = [vec![batch, heads], summary.sizes(&carry.layout)].concat();
                tensors.insert(carry.init.clone().expect("just seen"), Tensor::from_fn(&shape, |_| 1.0));
            }
            let extent = Extent { batch, length: span[1] - span[0], heads, offsets: None };
            let result = interp::run_over(summary, &tensors, &extent).expect("a summary runs");
            let (first_m, first_u) = (
                &result[&format!("summary.M.{}", state.name)].data,
                &result[&format!("summary.U.{}", state.name)].data,
            );
            for (i, later) in u.iter_mut().enumerate() {
                *later += m[i / n * n_part + place(i % n)] * first_u[i];
            }
            for (later, first) in m.iter_mut().zip(first_m) {
                *later *= first;
            }
        }
        let shape = [vec![batch, heads], summary.sizes(whole)].concat();
        let init = all.get(&format!("init.{}", state.name));
        let last = |i: usize| m[i / n * n_part + place(i % n)] * init.map_or(0.0, |init| init.data[i]) + u[i];
        finals.insert(format!("final.{}", state.name), Tensor::from_fn(&shape, last));
    }
    finals
}

/// Composes the summaries of a program whose states are all elementwise and compares with the reference. Nothing where
/// some state is not, where there is no summary, or where the numbers are too large to say much.
fn compare(source: &str, seed: u64) -> Option<f64> {
    let program = program(source);
    let case = Case::draw(seed, &program);
    let instance = Instance::new(&program, &case.sizes, &BTreeMap::new()).expect("the sizes are those of its axes");
    let request =
        Request { form: Form::Recurrent, chunk: None, max_length: 0, backward: false, inside: Inside::default() };
    let derived = derive(&instance, &request).expect("everything has a recurrent form");
    if !derived.recurrence.strata.iter().all(|stratum| matches!(stratum.class, Class::Elementwise { .. })) {
        return None;
    }
    let summary = summarise(&instance, Some(case.chunks[0])).ok()?;
    verify(&summary).unwrap_or_else(|error| panic!("{source}\n{:?}", error.complaints));
    assert_eq!(parse(&print(&summary)).expect("what is printed can be read"), summary, "{source}");
    let bundle = case.bundle(&program);
    let mut expected = reference::run_backward(&instance, &bundle).expect("the reference runs");
    expected.retain(|name, _| name.starts_with("final."));
    if expected.values().flat_map(|tensor| &tensor.data).any(|x| x.is_nan() || x.abs() >= 1e8) {
        return None;
    }
    let cuts = [0, case.tokens / 3, case.tokens / 3, 2 * case.tokens / 3, case.tokens];
    let found = compose_elementwise(&summary, &program, &bundle, [case.batch, case.heads], &cuts);
    let errors = expected
        .iter()
        .map(|(name, expected)| found[name].relative_error(expected, 1e-3 * (expected.data.len() as f64).sqrt()));
    Some(errors.fold(0.0, f64::max))
}

/// Two updates of a state in a token, one from a value kept from before, and factors along one axis, both and none.
const SEVERAL: &str = r#"
recurrence several {
    axis K, V
    input a: [K] in (-inf, 0], b: [V] in (0, 1), x: [K, V], y: [V]
    state S: [K, V], n: [V], plain: [], gone: [V]

    let old = S
    S = exp(a) * S + x
    S = b * S - 0.5 * old / (1 + exp(-y)) + y
    n = 0.9 * n + y
    n = n - 0.5 * n
    plain = plain + mean(y, V)
    gone = y

    output o: [K, V] = S + old * n + plain * gone
}
"#;

#[test]
fn factors_of_every_shape_are_collected() {
    for seed in 0..40 {
        let error = compare(SEVERAL, seed).expect("every state is elementwise and tame");
        assert!(error <= 1e-11, "seed {seed}: off by {error:e}");
    }
    let program = program(SEVERAL);
    let sizes = BTreeMap::from([("K".to_owned(), 2), ("V".to_owned(), 3)]);
    let summary = summarise(&Instance::new(&program, &sizes, &BTreeMap::new()).expect("sized"), None).expect("derived");
    let axes = |name: &str| summary.carries.iter().find(|carry| carry.name == name).expect("a carry").layout.len();
    assert_eq!([axes("M.S"), axes("M.n"), axes("M.plain"), axes("M.gone")], [2, 0, 0, 0]);
}

#[test]
fn drawn_elementwise_programs_compose() {
    let mut compared = 0;
    for seed in 0..1000 {
        let source = generate(seed);
        if let Some(error) = compare(&source, seed) {
            assert!(error <= 1e-9, "seed {seed}: off by {error:e}\n{source}");
            compared += 1;
        }
    }
    println!("{compared} drawn programs were elementwise");
    assert!(compared >= 30, "only {compared} programs were elementwise");
}

#[test]
fn what_is_hidden_or_fed_by_another_state_has_no_summary() {
    let refused = |source: &str| {
        let program = program(source);
        let sizes = program.axes.iter().map(|axis| (axis.name.clone(), 3)).collect();
        let instance = Instance::new(&program, &sizes, &BTreeMap::new()).expect("the sizes are those of its axes");
        summarise(&instance, None).expect_err("there is none").to_string()
    };
    let stopped = "recurrence r { axis V
        input x: [V]
        state h: [V]
        h = 0.5 * stop_gradient(h) + x
        output o: [V] = h
    }";
    assert!(refused(stopped).contains("the new value of h is not seen to be affine"), "{}", refused(stopped));
    let fed = "recurrence r { axis V
        input x: [V]
        state g: [V], h: [V]
        g = 0.5 * g + x
        h = sigmoid(g) * h + x
        output o: [V] = h
    }";
    assert!(refused(fed).contains("enters another"), "{}", refused(fed));
    let crossed = "recurrence r { axis V
        input x: [V]
        state g: [V], h: [V]
        g = 0.5 * g + 0.1 * h + x
        h = 0.5 * h - 0.1 * g
        output o: [V] = h
    }";
    assert!(refused(crossed).contains("the whole of each other"), "{}", refused(crossed));
}
