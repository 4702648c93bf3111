//! Summaries of spans: computed apart and composed, they carry the state as one pass does.

use crate::examples::{MECHANISMS, fixture, mechanism, sized};
use chunkwise_compiler::compile::summarise;
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Program, TensorKind};

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
            assert!(summary.is_err(), "{name}");
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
