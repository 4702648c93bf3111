//! Every example, forward and backward, under every schedule: as the whole graph to the last bit, and as the reference.

use super::{can_be_in_spans, compare, graphs};
use crate::draw::{Case, Regime};
use chunkwise_compiler::compile::{Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::interp::Extent;
use chunkwise_compiler::graph::ir::Graph;
use chunkwise_compiler::pass::{self, Pass};
use chunkwise_compiler::pipeline::{FOR_TENSOR_CORES, SUM_GATES};
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::Program;
use std::collections::BTreeMap;
use std::path::Path;

pub fn examples() -> Vec<(String, Program)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        let compiled = chunkwise_dsl::compile(&source).expect("an example is right");
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        found.extend(compiled.programs.into_iter().map(|program| (name.clone(), program)));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// What the graphs went through before they are split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prepared {
    /// Nothing.
    AsDerived,
    /// Decays as products.
    AsProducts,
    /// As for products of whole tiles.
    ForTensorCores,
}

impl Prepared {
    pub const ALL: [Prepared; 3] = [Prepared::AsDerived, Prepared::AsProducts, Prepared::ForTensorCores];

    fn passes(self) -> &'static [Pass<Graph>] {
        match self {
            Prepared::AsDerived => &[],
            Prepared::AsProducts => &[SUM_GATES],
            Prepared::ForTensorCores => FOR_TENSOR_CORES,
        }
    }
}

/// Runs forward, saving forward and backward in stages; everything against the whole graphs and the reference.
pub fn check(program: &Program, case: &Case, chunk: usize, prepared: Prepared) -> Result<bool, String> {
    let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).map_err(|errors| format!("{errors:?}"))?;
    let request = Request {
        form: Form::Chunkwise,
        chunk: Some(chunk),
        max_length: case.tokens,
        backward: true,
        inside: Inside::default(),
    };
    let Ok(derived) = derive(&instance, &request) else { return Ok(false) };
    let given = case.bundle(program);
    let expected = reference::run_backward(&instance, &given).map_err(|error| error.to_string())?;
    if expected.values().flat_map(|tensor| &tensor.data).any(|x| x.is_nan() || x.abs() >= 1e8) {
        return Ok(false);
    }
    let extent = Extent { batch: case.batch, length: case.tokens, heads: case.heads, offsets: None };
    let mut graphs = graphs(&derived);
    for graph in &mut graphs {
        let mut options = pass::Options { verify: true, dump: None };
        pass::run(graph, prepared.passes(), &mut options).map_err(|error| error.to_string())?;
    }
    let found = run_all(&graphs, &given, &extent)?;
    for (name, expected) in &expected {
        let value = found.get(name).ok_or_else(|| format!("no {name}"))?;
        let error = value.relative_error(expected, 1e-3 * (expected.data.len() as f64).sqrt());
        if error.is_nan() || error > 1e-9 {
            return Err(format!("{name} is off the reference by {error:e}"));
        }
    }
    Ok(true)
}

/// Forward, forward that saves, backward, each compared under every schedule.
fn run_all(graphs: &[Graph], given: &Bundle, extent: &Extent) -> Result<Bundle, String> {
    let mut given = given.clone();
    let mut all = Bundle::new();
    for graph in graphs {
        let results = compare(graph, &given, extent)?;
        for (name, tensor) in results {
            if name.starts_with("saved.") {
                given.insert(name, tensor);
            } else {
                all.insert(name, tensor);
            }
        }
    }
    Ok(all)
}

#[test]
fn stages_of_every_example() {
    let examples = examples();
    assert!(examples.len() >= 16);
    for (at, (name, program)) in examples.iter().enumerate() {
        let mut case = Case::draw(at as u64, program);
        case.batch = 2;
        case.heads = 2;
        case.full = true;
        (case.regime, case.mixed) = (Regime::Usual, false);
        // Sizes that differ, so that one axis cannot pass for another.
        let differ: BTreeMap<String, usize> =
            program.axes.iter().enumerate().map(|(at, axis)| (axis.name.clone(), 2 + at)).collect();
        // And the same of all, where spans find both their parts in one kernel.
        let same: BTreeMap<String, usize> = program.axes.iter().map(|axis| (axis.name.clone(), 3)).collect();
        for (sizes, chunk, tokens) in
            [(&differ, 5, 17), (&same, 5, 17), (&differ, 20, 45), (&differ, 32, 64), (&differ, 16, 1), (&differ, 16, 0)]
        {
            case.tokens = tokens;
            case.sizes.clone_from(sizes);
            for prepared in Prepared::ALL {
                let ran = check(program, &case, chunk, prepared)
                    .unwrap_or_else(|error| panic!("{name}, chunk {chunk}, T {tokens}, {prepared:?}: {error}"));
                assert!(ran, "{name} has a chunk form and tame numbers");
            }
        }
    }
}

#[test]
fn examples_that_can_be_in_spans() {
    let mut not = Vec::new();
    for (at, (_, program)) in examples().iter().enumerate() {
        let case = Case::draw(at as u64, program);
        let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).unwrap();
        let request =
            Request { form: Form::Chunkwise, chunk: Some(16), max_length: 64, backward: true, inside: Inside::Pairs };
        let mut graphs = graphs(&derive(&instance, &request).unwrap());
        for graph in &mut graphs {
            pass::run(graph, FOR_TENSOR_CORES, &mut pass::Options { verify: true, dump: None }).unwrap();
            if !graph.carries.is_empty() && !can_be_in_spans(graph) {
                not.push(graph.name.clone());
            }
        }
    }
    // Theirs are scans, which go over tokens one by one.
    let scans = ["hgrn", "mamba1"]
        .map(|name| ["forward", "forward_saving", "backward"].map(|of| format!("{name}.chunkwise.{of}")));
    assert_eq!(not, scans.concat(), "of these, a span is not seen to be an affine map");
}

#[test]
fn stages_of_packed_sequences() {
    for (at, (name, program)) in examples().iter().enumerate() {
        if !["gated_delta_rule", "mlstm", "retention", "hgrn"].contains(&name.as_str()) {
            continue;
        }
        let mut case = Case::draw(at as u64, program);
        (case.batch, case.tokens, case.full) = (1, 21, false);
        (case.regime, case.mixed) = (Regime::Usual, false);
        case.sizes = program.axes.iter().enumerate().map(|(at, axis)| (axis.name.clone(), 2 + at)).collect();
        let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).unwrap();
        let request = Request {
            form: Form::Chunkwise,
            chunk: Some(4),
            max_length: 21,
            backward: true,
            inside: Inside::default(),
        };
        let graphs = graphs(&derive(&instance, &request).unwrap());
        let offsets = Some(vec![0, 7, 7, 20, 21]);
        let extent = Extent { batch: 1, length: 21, heads: case.heads, offsets };
        let results =
            run_all(&graphs, &case.bundle(program), &extent).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(results.keys().any(|name| name.starts_with("grad.")));
    }
}

/// Gradients of a parameter that lies in memory in another order than its axes are declared.
#[test]
fn stages_of_a_parameter_in_its_own_order() {
    let source = "recurrence own { axis K, V input k: [K], v: [V], g: [] in (-inf, 0] param W: [V, K] state S: [K, V] \
                  S = exp(g) * S + k * (v + W @ k) output o: [V] = k @ S }";
    let program = chunkwise_dsl::compile(source).expect("a program").programs.remove(0);
    for (keys, values) in [(3, 2), (2, 5)] {
        let mut case = Case::draw(7, &program);
        (case.batch, case.heads, case.tokens, case.full) = (2, 2, 37, true);
        (case.regime, case.mixed) = (Regime::Usual, false);
        case.sizes = [("K".to_owned(), keys), ("V".to_owned(), values)].into();
        for prepared in Prepared::ALL {
            let ran = check(&program, &case, 5, prepared).unwrap_or_else(|error| panic!("{prepared:?}: {error}"));
            assert!(ran, "it has a chunk form and tame numbers");
        }
    }
}

/// Two states that mix along axes of their own have no spans: their matrices would not fit one graph.
#[test]
fn states_that_mix_along_several_axes_have_no_spans() {
    let source = "recurrence two { axis K, J, V input k: [K] in unit(K), j: [J] in unit(J), v: [V] \
                  state S: [K, V], R: [J, V] S = S + k * (v - k @ S) R = R + j * (v - j @ R) \
                  output o: [V] = k @ S + j @ R }";
    let program = chunkwise_dsl::compile(source).expect("a program").programs.remove(0);
    for (keys, other, has) in [(3, 5, false), (4, 4, true)] {
        let sizes = [("K", keys), ("J", other), ("V", 2)].map(|(axis, size)| (axis.to_owned(), size)).into();
        let instance = Instance::new(&program, &sizes, &BTreeMap::new()).unwrap();
        let request =
            Request { form: Form::Chunkwise, chunk: Some(4), max_length: 64, backward: true, inside: Inside::Pairs };
        for graph in graphs(&derive(&instance, &request).unwrap()) {
            assert_eq!(can_be_in_spans(&graph), has, "{}", graph.name);
        }
        let mut case = Case::draw(11, &program);
        (case.batch, case.heads, case.tokens, case.full) = (1, 2, 23, true);
        (case.regime, case.mixed) = (Regime::Usual, false);
        case.sizes = [("K", keys), ("J", other), ("V", 2)].map(|(axis, size)| (axis.to_owned(), size)).into();
        assert!(check(&program, &case, 4, Prepared::ForTensorCores).unwrap_or_else(|error| panic!("{error}")));
    }
}
