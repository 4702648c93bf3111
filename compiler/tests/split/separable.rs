//! Graphs on blocks of an axis: which may, and that they then give the blocks of what the whole gives.

use super::examples::examples;
use super::{graphs, run_stages, stages_of};
use crate::draw::{Case, Regime};
use chunkwise_compiler::compile::{Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::interp::{self, Extent};
use chunkwise_compiler::graph::ir::{DimId, DimKind, Graph, InputKind, Op};
use chunkwise_compiler::graph::separable::separable_along;
use chunkwise_compiler::graph::split::price::Prices;
use chunkwise_compiler::graph::text::parse;
use chunkwise_compiler::schedule::Stages;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use std::collections::BTreeMap;

fn dim(graph: &Graph, name: &str) -> DimId {
    DimId(graph.dims.iter().position(|dim| dim.name == name).expect("it is there") as u32)
}

/// Graphs of an example whose axes have these sizes, in rank order.
fn of(name: &str, sizes: &[usize]) -> Vec<Graph> {
    let (_, program) = examples().into_iter().find(|(example, _)| example == name).expect("an example");
    let sizes: BTreeMap<String, usize> =
        program.axes.iter().zip(sizes).map(|(axis, &size)| (axis.name.clone(), size)).collect();
    let instance = Instance::new(&program, &sizes, &BTreeMap::new()).expect("sizes fit");
    let request =
        Request { form: Form::Chunkwise, chunk: Some(64), max_length: 64, backward: true, inside: Inside::default() };
    graphs(&derive(&instance, &request).expect("it has a chunk form"))
}

#[test]
fn a_pass_goes_along_v_and_not_along_k() {
    for name in ["gated_delta_rule", "kda", "gla"] {
        for (direction, graph) in of(name, &[128, 128]).iter().enumerate() {
            for stages in [Stages::PreparePass, Stages::PreparePassOutputs, Stages::PassOutputs] {
                let parts = stages_of(graph, stages, &Prices::default()).unwrap();
                let pass = parts.iter().find(|stage| stage.name == "pass").expect("there are states");
                let along = |axis| separable_along(&pass.graph, dim(&pass.graph, axis));
                // A key is summed over K wherever it meets the state; the gradient of a key sums over V.
                let everything = stages == Stages::PreparePass;
                assert_eq!(along("V"), direction < 2 || !everything, "{}", pass.graph.name);
                assert!(!along("K") || name == "gla", "{}", pass.graph.name);
                assert!(!along("t"), "{}", pass.graph.name);
            }
        }
    }
}

#[test]
fn each_operation_that_meets_a_dimension_says_no() {
    let separable = |nodes: &str| {
        let text = format!(
            "graph g {{ dim j : slot 2 dim b : block 2 dim t : row 4 dim s : col 4 dim K : axis 0 4 dim L : axis 1 4
             dim a : axis 2 2 dim c : axis 3 2 step tokens=4 time=t
             %0 = token x : [t, K] %1 = token y : [t] {nodes} }}"
        );
        let graph = parse(&text).unwrap();
        separable_along(&graph, dim(&graph, "K"))
    };
    assert!(separable("%2 = exp %0 : [t, K] %3 = mul %2 %1 : [t, K] output o = %3"));
    assert!(separable("%2 = broadcast %1 : [t, K] output o = %2"));
    assert!(separable("%2 = sum %0 over t : [K] %3 = mul %0 %2 : [t, K] output o = %3"));
    assert!(separable("%2 = contract %0 %1 over t : [K] %3 = mul %0 %2 : [t, K] output o = %3"));
    assert!(!separable("%2 = sum %0 over K : [t] output o = %2"));
    assert!(!separable("%2 = max_over %0 over K : [t] output o = %2"));
    assert!(!separable("%2 = contract %0 %0 over K : [t] output o = %2"));
    assert!(!separable("%2 = index %0 K at 1 : [t] output o = %2"));
    assert!(!separable("%2 = rename %0 K -> L : [t, L] output o = %2"));
    assert!(!separable("%2 = split %0 K -> a, c : [t, a, c] output o = %2"));
    assert!(!separable("%2 = stack K (%1, %1, _, %1) : [t, K] output o = %2"));
    let scan = |body: &str, dims: &str| {
        let product = [dims, "t"].join(if dims.is_empty() { "" } else { ", " });
        format!(
            "%2 = const 0.0 : [] %3 = broadcast %2 : [{dims}] %4 = scan t sequences (%0) invariants () carries (%3) {{
             %0 = given 0 : [K] %1 = given 1 : [{dims}] {body} inputs (%0, %1) outputs (%2) }} : []
             %5 = result %4 0 : [{dims}] %6 = mul %1 %5 : [{product}] output o = %6"
        )
    };
    assert!(!separable(&scan("%2 = contract %0 %0 over K : []", "")));
    assert!(separable(&scan("%2 = add %0 %1 : [K]", "K")));
    assert!(!separable(
        "%2 = rename %0 t -> s : [s, K] %3 = gated weight rows=%0 cols=%2 t s over K gates () from 0 to 0 : [t, s]
         %4 = sum %3 over s : [t] output o = %4"
    ));
    let weight = "%2 = segment t s gates () from 0 to 0 : [t, s] %3 = gated cols weight=%2 rows=%0 t s over K \
                  gates () from 0 to 0 : [s, K] %4 = rename %3 s -> t : [t, K] output o = %4";
    assert!(separable(weight));
}

/// Some positions of one dimension of a tensor that begins with `leading` others.
fn cut(tensor: &Tensor, leading: usize, layout: &[DimId], along: DimId, block: (usize, usize)) -> Tensor {
    let Some(at) = layout.iter().position(|&dim| dim == along) else { return tensor.clone() };
    let at = leading + at;
    let inner: usize = tensor.shape[at + 1..].iter().product();
    let (start, size) = block;
    let mut shape = tensor.shape.clone();
    let whole = std::mem::replace(&mut shape[at], size);
    let rows = tensor.data.chunks(whole * inner);
    Tensor { shape, data: rows.flat_map(|row| row[start * inner..(start + size) * inner].to_vec()).collect() }
}

/// By name of everything a graph reads or gives: dimensions of the tensor, and how many stand before those.
fn layouts(graph: &Graph) -> BTreeMap<String, (usize, Vec<DimId>)> {
    let mut found = BTreeMap::new();
    for node in &graph.nodes {
        if let Op::Input { name, kind, layout } = &node.op {
            let leading = match kind {
                InputKind::Token | InputKind::Cotangent | InputKind::Saved => 3,
                InputKind::Head => 1,
                InputKind::Carry => continue,
            };
            found.insert(name.clone(), (leading, layout.clone()));
        }
    }
    for carry in &graph.carries {
        for name in carry.init.iter().chain(&carry.last) {
            found.insert(name.clone(), (if name.starts_with("grad.") { 1 } else { 2 }, carry.layout.clone()));
        }
    }
    for (name, _) in &graph.outputs {
        found.insert(name.clone(), (3, graph.output_layout(name)));
    }
    for (name, node) in &graph.saves {
        found.insert(name.clone(), (3, graph.node(*node).dims.clone()));
    }
    found
}

/// Runs a graph on blocks of a dimension; each must give its part of the whole.
fn check_blocks(graph: &Graph, given: &Bundle, extent: &Extent, along: DimId) {
    let whole = interp::run_over(graph, given, extent).unwrap();
    let layouts = layouts(graph);
    let size = graph.dim(along).size;
    for block in [(0, 1), (1, size - 1)] {
        let mut part = graph.clone();
        part.dims[along.index()].size = block.1;
        let of = |tensors: &Bundle| -> Bundle {
            let tensors = tensors.iter().filter_map(|(name, tensor)| {
                let (leading, layout) = layouts.get(name)?;
                Some((name.clone(), cut(tensor, *leading, layout, along, block)))
            });
            tensors.collect()
        };
        let found = interp::run_over(&part, &of(given), extent).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found, of(&whole), "{} along {}", graph.name, graph.dim(along).name);
    }
}

#[test]
fn blocks_give_their_part_of_the_whole() {
    let mut checked = BTreeMap::new();
    for (at, (name, program)) in examples().iter().enumerate() {
        let mut case = Case::draw(at as u64, program);
        (case.batch, case.heads, case.tokens, case.full, case.shared) = (2, 2, 9, true, false);
        (case.regime, case.mixed) = (Regime::Usual, false);
        case.sizes = program.axes.iter().enumerate().map(|(at, axis)| (axis.name.clone(), 2 + at)).collect();
        let instance = Instance::new(program, &case.sizes, &BTreeMap::new()).unwrap();
        let request =
            Request { form: Form::Chunkwise, chunk: Some(4), max_length: 9, backward: true, inside: Inside::default() };
        let extent = Extent { batch: case.batch, length: case.tokens, heads: case.heads, offsets: None };
        let mut given = case.bundle(program);
        for graph in graphs(&derive(&instance, &request).unwrap()) {
            for stages in Stages::ALL {
                let mut given = given.clone();
                for stage in stages_of(&graph, stages, &Prices::default()).unwrap() {
                    for along in (0..graph.dims.len() as u32).map(DimId) {
                        let is_axis = matches!(graph.dim(along).kind, DimKind::Axis(_));
                        let used = stage.graph.nodes.iter().any(|node| node.dims.contains(&along));
                        if is_axis && used && separable_along(&stage.graph, along) {
                            check_blocks(&stage.graph, &given, &extent, along);
                            *checked.entry(name.clone()).or_insert(0) += 1;
                        }
                    }
                    given.extend(interp::run_over(&stage.graph, &given, &extent).unwrap());
                }
            }
            let whole = stages_of(&graph, Stages::Fused, &Prices::default()).unwrap();
            given.extend(run_stages(&whole, &given, &extent).unwrap());
        }
    }
    assert!(checked.len() >= 12, "{checked:?}");
}
