//! Random graphs: each is printed, read, simplified and run before and after.

use super::{Draw, assert_close};
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::graph::ir::*;
use chunkwise_compiler::graph::shape::{Scope, canonical};
use chunkwise_compiler::graph::text::{parse, print};
use chunkwise_compiler::graph::verify::verify;
use chunkwise_compiler::pass::{self, Options};
use chunkwise_compiler::pipeline::FOR_CPU;
use chunkwise_compiler::tensor::Bundle;
use std::collections::BTreeMap;

const DIMS: [(&str, DimKind, usize); 9] = [
    ("j", DimKind::Slot, 2),
    ("b", DimKind::Block, 2),
    ("t", DimKind::Row, 4),
    ("i", DimKind::Row, 2),
    ("s", DimKind::Col, 4),
    ("K", DimKind::Axis(1), 2),
    ("V", DimKind::Axis(0), 3),
    ("L", DimKind::Axis(2), 2),
    ("M", DimKind::Axis(3), 4),
];
const T: DimId = DimId(2);
const S: DimId = DimId(4);

/// An operation on nodes drawn from those there are. Most make no sense; the shape rules tell.
fn draw_op(draw: &mut Draw, graph: &Graph) -> Op {
    let n = graph.nodes.len();
    // Later nodes more often, so that chains grow.
    let mut nodes = std::iter::from_fn(|| Some(NodeId((n - 1 - draw.below(n).min(draw.below(n))) as u32)))
        .take(6)
        .collect::<Vec<_>>();
    let mut x = || nodes.pop().expect("no operation takes more");
    let (a, b, c, d) = (x(), x(), x(), x());
    let mut dim = || DimId(draw.below(DIMS.len()) as u32);
    let (p, q, r) = (dim(), dim(), dim());
    let mut own = || graph.node(a).dims.get(draw.below(5)).copied().unwrap_or(p);
    let (own_p, own_q) = (own(), own());
    let shared: Vec<DimId> =
        graph.node(a).dims.iter().copied().filter(|dim| graph.node(b).dims.contains(dim)).collect();
    let n_events = draw.below(3);
    let event = |(value, kind): (NodeId, GateKind)| Gate { value, kind };
    let events: Vec<Gate> = [(c, GateKind::Factor), (d, GateKind::Log)].into_iter().take(n_events).map(event).collect();
    let gates = Gates { from: draw.below(n_events + 1), to: draw.below(n_events + 1), events };
    match draw.below(24) {
        0 => Op::Const([0.0, 1.0, -1.0, 0.5][draw.below(4)]),
        1 => Op::Unary([Unary::Neg, Unary::Tanh, Unary::Sin, Unary::Sigmoid][draw.below(4)], a),
        2..=5 => Op::Binary([Binary::Add, Binary::Sub, Binary::Mul, Binary::Max][draw.below(4)], a, b),
        6 => Op::Select { op: Compare::Lt, lhs: a, rhs: b, then: c, otherwise: d },
        7 => Op::Broadcast(a),
        8 => Op::Sum(a, graph.node(a).dims.iter().copied().take(draw.below(3)).collect()),
        9 => Op::MaxOver(a, p),
        10 | 11 => Op::Contract(a, b, shared),
        12 | 13 => Op::Rename(a, p, q),
        14 => Op::Index(a, p, draw.below(2)),
        15 => Op::Stack(vec![Some(a), [None, Some(b)][draw.below(2)]], DimId(0)),
        16 => Op::Guard(a, [0.0, 1.0][draw.below(2)]),
        17 => Op::Diagonal(a, p, q),
        18 => Op::DiagonalPart(a, p, q),
        19 => Op::Split(a, own_p, q, r),
        20 => Op::Merge(a, own_p, own_q, r),
        21 => Op::Segment { gates, row: T, col: S, diagonal: draw.below(2) == 0 },
        22 => Op::Boundary { side: [Side::Prefix, Side::Suffix, Side::Total][draw.below(3)], gates, row: T },
        _ => Op::StopGradient(a),
    }
}

fn draw_graph(draw: &mut Draw) -> Graph {
    let dims = DIMS.map(|(name, kind, size)| Dim { name: name.into(), kind, size });
    let mut graph = Graph {
        name: "random".into(),
        dims: dims.to_vec(),
        nodes: Vec::new(),
        time: Some(T),
        tokens: 3,
        reverse: draw.below(2) == 0,
        span: None,
        carries: Vec::new(),
        outputs: Vec::new(),
        layouts: Vec::new(),
        saves: Vec::new(),
    };
    let tensors = [
        ("x", InputKind::Token, vec![DimId(6), DimId(5)]),
        ("y", InputKind::Token, vec![]),
        ("z", InputKind::Cotangent, vec![DimId(5)]),
        ("a", InputKind::Head, vec![DimId(6)]),
        ("S", InputKind::Carry, vec![DimId(5)]),
        ("R", InputKind::Carry, vec![]),
    ];
    for (name, kind, layout) in tensors {
        let op = Op::Input { name: name.into(), kind, layout };
        push(&mut graph, op);
    }
    while graph.nodes.len() < 40 {
        let op = draw_op(draw, &graph);
        push(&mut graph, op);
    }
    for (name, input) in [("S", NodeId(4)), ("R", NodeId(5))] {
        let dims = graph.node(input).dims.clone();
        let fits =
            (0..graph.nodes.len()).rev().find(|&at| graph.nodes[at].dims == dims).expect("the input itself fits");
        let last = (draw.below(2) == 0).then(|| format!("final.{name}"));
        let (output, init) = (NodeId(fits as u32), Some(format!("init.{name}")));
        graph.carries.push(Carry { name: name.into(), input, output, init, begins: Begin::Zero, last, layout: dims });
    }
    for at in 6..graph.nodes.len() {
        if graph.nodes[at].dims.contains(&T) && draw.below(4) == 0 {
            graph.outputs.push((format!("o{at}"), NodeId(at as u32)));
        } else if draw.below(8) == 0 {
            graph.saves.push((format!("s{at}"), NodeId(at as u32)));
        }
    }
    graph
}

/// Adds a node if its operands allow it, and its value stays small.
fn push(graph: &mut Graph, op: Op) {
    let stated = match &op {
        Op::Broadcast(x) => canonical(graph, graph.node(*x).dims.iter().copied().chain([T, DimId(5)])),
        _ => Vec::new(),
    };
    let shape = Scope { graph, nodes: &graph.nodes, inputs: None }.infer(&op, &stated);
    if let Ok(dims) = shape
        && graph.sizes(&dims).iter().product::<usize>() <= 512
    {
        graph.nodes.push(Node { op, dims, span: None, rule: "drawn" });
    }
}

#[test]
fn simplifying_keeps_every_result() {
    let mut draw = Draw(41);
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for case in 0..300 {
        let graph = draw_graph(&mut draw);
        if let Err(error) = verify(&graph) {
            panic!("case {case}\n{error}");
        }
        let text = print(&graph);
        assert_eq!(parse(&text).unwrap(), graph, "case {case}\n{text}");
        for node in &graph.nodes {
            let name: String = format!("{:?}", node.op).chars().take_while(|c| c.is_alphanumeric()).collect();
            *ops.entry(name).or_default() += 1;
        }

        let mut simple = graph.clone();
        pass::run(&mut simple, FOR_CPU, &mut Options { verify: true, dump: None })
            .unwrap_or_else(|error| panic!("case {case}: {error}\n{text}"));
        assert!(simple.nodes.len() <= graph.nodes.len());
        let mut given = Bundle::new();
        for (name, shape) in [
            ("x", vec![2, 5, 2, 3, 2]),
            ("y", vec![2, 5, 2]),
            ("z", vec![2, 5, 2, 2]),
            ("a", vec![2, 3]),
            ("init.S", vec![2, 2, 2]),
        ] {
            given.insert(name.into(), draw.tensor(&shape, -1.0, 1.0));
        }
        let before = interp::run(&graph, &given, None).unwrap();
        let extent = interp::Extent { batch: 2, length: 5, heads: 2, offsets: None };
        let after = interp::run_over(&simple, &given, &extent).unwrap();
        assert_eq!(before.len(), after.len());
        for (name, tensor) in &before {
            assert_eq!(after[name].shape, tensor.shape, "case {case} {name}\n{text}");
            assert_close(&after[name].data, &tensor.data, 1e-9);
        }
    }
    assert_eq!(ops.len(), 20, "every kind of operation was drawn: {ops:?}");
}
