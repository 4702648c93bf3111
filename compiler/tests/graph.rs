//! The graph: text, verifier, interpreter and passes, against graphs written by hand.

#[path = "graph/bare_operands.rs"]
mod bare_operands;
#[path = "graph/closed_forms.rs"]
mod closed_forms;
#[path = "graph/derived.rs"]
mod derived;
#[path = "graph/gated.rs"]
mod gated;
#[path = "graph/inverse.rs"]
mod inverse;
#[path = "graph/passes.rs"]
mod passes;
#[path = "graph/random.rs"]
mod random;
#[path = "graph/text.rs"]
mod text;
#[path = "graph/verify.rs"]
mod verify;

use chunkwise_compiler::graph::ir::Graph;
use chunkwise_compiler::graph::{interp, text as graph_text, verify as graph_verify};
use chunkwise_compiler::tensor::{Bundle, Tensor};

/// A graph from its text; it must verify.
fn graph(text: &str) -> Graph {
    let graph = graph_text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    if let Err(error) = graph_verify::verify(&graph) {
        panic!("{error}");
    }
    graph
}

/// Numbers that look random and are the same every time.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }
    fn between(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.bits() as f64 / (1u64 << 31) as f64
    }
    fn tensor(&mut self, shape: &[usize], lo: f64, hi: f64) -> Tensor {
        Tensor::from_fn(shape, |_| self.between(lo, hi))
    }
}

fn bundle(tensors: Vec<(&str, Tensor)>) -> Bundle {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

fn run(graph: &Graph, inputs: &Bundle) -> Bundle {
    interp::run(graph, inputs, None).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (x, y)) in found.iter().zip(expected).enumerate() {
        let far = (x - y).abs() > tolerance * y.abs().max(1.0);
        assert!(!far && !(x.is_nan() ^ y.is_nan()), "element {at}: {x} where {y} is expected");
    }
}
