//! Every mechanism in every form, forward and backward.

use super::{Draw, compare};
use chunkwise_compiler::compile::{Derived, Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::error::CompileError;
use chunkwise_compiler::graph::interp::Extent;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::TensorKind;
use std::collections::BTreeMap;
use std::path::Path;

/// Inputs, parameters, first states and cotangents. Decays and steps fall into ranges that are legal everywhere.
fn bundle(instance: &Instance, [batch, tokens, heads]: [usize; 3], draw: &mut Draw) -> Bundle {
    let mut bundle = Bundle::new();
    for tensor in &instance.program.tensors {
        let leading = match tensor.kind {
            TensorKind::Input => vec![batch, tokens, heads],
            TensorKind::Param => vec![heads],
        };
        let shape = [leading, instance.shape(&tensor.axes)].concat();
        let (lo, hi) = match tensor.name.as_str() {
            "g" | "w" | "A" => (-2.0, 0.0),
            "dt" | "beta" | "eta" => (0.0, 1.0),
            _ => (-1.0, 1.0),
        };
        bundle.insert(tensor.name.clone(), draw.tensor(&shape, lo, hi));
    }
    for state in &instance.program.states {
        let shape = [vec![batch, heads], instance.shape(&state.axes)].concat();
        bundle.insert(format!("init.{}", state.name), draw.tensor(&shape, -1.0, 1.0));
        bundle.insert(format!("grad_final.{}", state.name), draw.tensor(&shape, -1.0, 1.0));
    }
    for output in &instance.program.outputs {
        let shape = [vec![batch, tokens, heads], instance.shape(&output.axes)].concat();
        bundle.insert(format!("grad_out.{}", output.name), draw.tensor(&shape, -1.0, 1.0));
    }
    bundle
}

/// Every mechanism that has a form, derived, with what its graphs read.
pub fn derived(
    form: Form,
    chunk: Option<usize>,
    shape: [usize; 3],
    only: &str,
    seed: u64,
) -> Vec<(String, Derived, Bundle)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let what = file.file_stem().unwrap().to_string_lossy().into_owned();
        if !what.contains(only) {
            continue;
        }
        let compiled = chunkwise_dsl::compile(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let sizes: BTreeMap<String, usize> =
            [("K", 3), ("V", 5), ("N", 2), ("R", 2)].map(|(name, size)| (name.to_owned(), size)).into();
        for program in &compiled.programs {
            let sizes = sizes.iter().filter(|(name, _)| program.axes.iter().any(|a| a.name == **name));
            let sizes = sizes.map(|(name, size)| (name.clone(), *size)).collect();
            let instance = Instance::new(program, &sizes, &BTreeMap::new()).unwrap();
            let request = Request { form, chunk, max_length: shape[1], backward: true, inside: Inside::default() };
            let derived = match derive(&instance, &request) {
                Ok(derived) => derived,
                Err(CompileError::Limit { what: why, .. }) => {
                    println!("{what} has no {} form: {why}", form.name());
                    continue;
                }
                Err(error) => panic!("{what}: {error}"),
            };
            let given = bundle(&instance, shape, &mut Draw(seed));
            found.push((format!("{what}, {}, chunk {chunk:?}, T {}", form.name(), shape[1]), derived, given));
        }
    }
    assert!(!found.is_empty());
    found
}

fn every_mechanism(form: Form, chunk: Option<usize>, shape: [usize; 3], only: &str) {
    let extent = Extent { batch: shape[0], length: shape[1], heads: shape[2], offsets: None };
    for (what, derived, mut given) in derived(form, chunk, shape, only, 7) {
        compare(&format!("{what}, forward"), &derived.forward, &given, &extent);
        let saving = derived.forward_saving.expect("asked for");
        given.extend(compare(&format!("{what}, saving"), &saving, &given, &extent));
        compare(&format!("{what}, backward"), &derived.backward.expect("asked for"), &given, &extent);
    }
}

#[test]
fn chunks_of_16() {
    every_mechanism(Form::Chunkwise, Some(16), [2, 35, 2], "");
}

#[test]
fn chunks_with_void_rows() {
    every_mechanism(Form::Chunkwise, Some(20), [1, 45, 1], "");
}

#[test]
fn chunks_of_one_and_of_three_tokens() {
    every_mechanism(Form::Chunkwise, Some(1), [1, 4, 1], "");
    every_mechanism(Form::Chunkwise, Some(3), [1, 7, 1], "");
}

#[test]
fn nothing_and_one_token() {
    every_mechanism(Form::Chunkwise, Some(4), [1, 0, 1], "");
    every_mechanism(Form::Chunkwise, Some(4), [1, 1, 1], "");
}

#[test]
fn recurrent() {
    every_mechanism(Form::Recurrent, None, [2, 6, 2], "");
}

#[test]
fn parallel() {
    every_mechanism(Form::Parallel, None, [1, 19, 1], "");
}
