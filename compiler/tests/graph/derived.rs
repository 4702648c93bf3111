//! The graphs of every example and form: they verify, survive a round trip, and mean the same when simplified.

use super::{Draw, assert_close};
use chunkwise_compiler::compile::{Derived, Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::graph::ir::Graph;
use chunkwise_compiler::graph::text::{parse, print};
use chunkwise_compiler::graph::verify::verify;
use chunkwise_compiler::pass::{self, Options};
use chunkwise_compiler::pipeline::{FOR_CPU, FOR_GPU, SIMPLIFY};
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Program, Range, TensorKind};
use std::collections::BTreeMap;
use std::path::Path;

fn examples() -> Vec<(String, Program)> {
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

/// Everything a backward takes, for B 1, T 21 and H 2.
fn draw(instance: &Instance, draw: &mut Draw) -> Bundle {
    let program = instance.program;
    let mut given = Bundle::new();
    for tensor in &program.tensors {
        let leading: &[usize] = if tensor.kind == TensorKind::Input { &[1, 21, 2] } else { &[2] };
        let (lo, hi) = match tensor.range {
            Range::Interval { hi, .. } if hi <= 0.0 => (-1.0, 0.0),
            Range::Any | Range::Interval { .. } | Range::Unit(_) => (0.05, 0.6),
        };
        let shape = [leading, &instance.shape(&tensor.axes)].concat();
        given.insert(tensor.name.clone(), draw.tensor(&shape, lo, hi));
    }
    for state in &program.states {
        let shape = [&[1, 2][..], &instance.shape(&state.axes)].concat();
        given.insert(format!("init.{}", state.name), draw.tensor(&shape, -1.0, 1.0));
        given.insert(format!("grad_final.{}", state.name), draw.tensor(&shape, -1.0, 1.0));
    }
    for output in &program.outputs {
        let shape = [&[1, 21, 2][..], &instance.shape(&output.axes)].concat();
        given.insert(format!("grad_out.{}", output.name), draw.tensor(&shape, -1.0, 1.0));
    }
    given
}

fn checked(graph: &Graph, label: &str) -> Graph {
    if let Err(error) = verify(graph) {
        let about: Vec<String> = error.complaints.iter().map(|(place, note)| format!("{place:?}: {note}")).collect();
        panic!("{label}: {}\n{error}", about.join("\n"));
    }
    assert_eq!(parse(&print(graph)).unwrap(), *graph, "{label}");
    let mut simple = graph.clone();
    pass::run(&mut simple, SIMPLIFY, &mut Options { verify: true, dump: None })
        .unwrap_or_else(|error| panic!("{label}: {error}"));
    simple
}

#[test]
fn graphs_of_every_example_verify_and_simplify() {
    let mut data = Draw(51);
    let examples = examples();
    assert!(examples.len() >= 16);
    for (name, program) in &examples {
        // Sizes that differ, so that one axis cannot pass for another, and a little below the usual.
        let sizes: BTreeMap<String, usize> =
            program.axes.iter().enumerate().map(|(at, axis)| (axis.name.clone(), 2 + at)).collect();
        let sizes = BTreeMap::from_iter(sizes.into_iter().map(|(name, size)| {
            // Long enough to be cut into slices.
            let long = size + if name == "K" { 30 } else { 0 };
            (name, long)
        }));
        let instance = Instance::new(program, &sizes, &BTreeMap::new()).expect("sizes fit");
        let given = draw(&instance, &mut data);
        for (form, chunk) in [
            (Form::Recurrent, None),
            (Form::Parallel, None),
            (Form::Chunkwise, Some(5)),
            (Form::Chunkwise, Some(16)),
            (Form::Chunkwise, Some(20)),
        ] {
            let label = format!("{name} {} {chunk:?}", form.name());
            let request = Request { form, chunk, max_length: 21, backward: true, inside: Inside::default() };
            let Derived { token, forward, forward_saving, backward, .. } =
                derive(&instance, &request).unwrap_or_else(|error| panic!("{label}: {error}"));
            checked(&token, &label);
            checked(&forward, &label);
            let (saving, backward) = (forward_saving.expect("asked for"), backward.expect("asked for"));
            let (simple_saving, simple_backward) = (checked(&saving, &label), checked(&backward, &label));
            let before = interp::run_backward(&saving, &backward, &given, None).unwrap();
            let after = interp::run_backward(&simple_saving, &simple_backward, &given, None).unwrap();
            assert_eq!(before.len(), after.len(), "{label}");
            let [spread, scaled] = [FOR_GPU, FOR_CPU].map(|passes| {
                let [saving, backward] = [&saving, &backward].map(|graph| {
                    let mut graph = graph.clone();
                    pass::run(&mut graph, passes, &mut Options { verify: true, dump: None })
                        .unwrap_or_else(|error| panic!("{label}: {error}"));
                    graph
                });
                interp::run_backward(&saving, &backward, &given, None).unwrap()
            });
            for (result, tensor) in &before {
                assert_close(&after[result].data, &tensor.data, 1e-12);
                assert_close(&spread[result].data, &tensor.data, 1e-12);
                assert_close(&scaled[result].data, &tensor.data, 1e-12);
            }
        }
    }
}
