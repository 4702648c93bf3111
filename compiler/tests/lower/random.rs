//! Random graphs over random dimensions: operations no derivation has put together yet.

use super::{Draw, compare};
use chunkwise_compiler::graph::interp::Extent;
use chunkwise_compiler::graph::ir::*;
use chunkwise_compiler::graph::shape::{Scope, canonical};
use chunkwise_compiler::graph::verify::verify;
use chunkwise_compiler::tensor::Bundle;
use std::collections::BTreeMap;

const N_DIMS: usize = 11;
const J: DimId = DimId(0);
const T: DimId = DimId(3);
const S: DimId = DimId(5);
const K: DimId = DimId(7);
const V: DimId = DimId(8);
const L: DimId = DimId(9);

fn dims(draw: &mut Draw) -> Vec<Dim> {
    let rows = [4, 4, 6, 18][draw.below(4)];
    let half = rows / 2;
    let dims: [(&str, DimKind, usize); N_DIMS] = [
        ("j", DimKind::Slot, 1 + draw.below(2)),
        ("b", DimKind::Block, 2),
        ("c", DimKind::BlockCol, 2),
        ("t", DimKind::Row, rows),
        ("i", DimKind::Row, half),
        ("s", DimKind::Col, rows),
        ("u", DimKind::Col, half),
        ("K", DimKind::Axis(0), 1 + draw.below(3)),
        ("V", DimKind::Axis(1), [1, 2, 3, 17][draw.below(4)]),
        ("L", DimKind::Axis(2), 2),
        ("M", DimKind::Axis(3), 2),
    ];
    dims.map(|(name, kind, size)| Dim { name: name.into(), kind, size }).to_vec()
}

fn draw_gates(draw: &mut Draw, graph: &Graph, wanted: &[DimId]) -> Gates {
    let n = draw.below(4);
    let mut events = Vec::new();
    for _ in 0..n {
        let kind = [GateKind::Log, GateKind::Factor][draw.below(2)];
        let names: &[u32] = match kind {
            GateKind::Log => &[2, 3],
            GateKind::Factor => &[4, 5],
        };
        let value = NodeId(names[draw.below(2)]);
        if graph.node(value).dims.iter().all(|d| *d == T || wanted.contains(d)) {
            events.push(Gate { value, kind });
        }
    }
    let n = events.len();
    Gates { from: draw.below(n + 1), to: draw.below(n + 1), events }
}

/// Whether a node is a value; a scan is not, only its results are.
fn is_value(node: &Node) -> bool {
    !matches!(node.op, Op::Scan(_))
}

/// A later node more often, so that chains grow.
fn pick(draw: &mut Draw, graph: &Graph) -> NodeId {
    let values: Vec<usize> = (0..graph.nodes.len()).filter(|&n| is_value(&graph.nodes[n])).collect();
    let n = values.len();
    NodeId(values[n - 1 - draw.below(n).min(draw.below(n))] as u32)
}

/// A node with exactly these dimensions, if there is one.
fn with_dims(draw: &mut Draw, graph: &Graph, dims: &[DimId]) -> Option<NodeId> {
    let dims = canonical(graph, dims.iter().copied());
    let all: Vec<usize> =
        (0..graph.nodes.len()).filter(|&n| is_value(&graph.nodes[n]) && graph.nodes[n].dims == dims).collect();
    (!all.is_empty()).then(|| NodeId(all[draw.below(all.len())] as u32))
}

/// An operation on nodes drawn from those there are. Many make no sense; the shape rules tell.
fn draw_op(draw: &mut Draw, graph: &Graph) -> Option<Op> {
    let [a, b, c, d] = [(); 4].map(|()| pick(draw, graph));
    let [p, q, r] = [(); 3].map(|()| DimId(draw.below(N_DIMS) as u32));
    let shared: Vec<DimId> =
        graph.node(a).dims.iter().copied().filter(|dim| graph.node(b).dims.contains(dim)).collect();
    let some: Vec<DimId> = shared.iter().copied().filter(|_| draw.below(3) > 0).collect();
    let diagonal = draw.below(2) == 0;
    let side = [Side::Prefix, Side::Suffix, Side::Total][draw.below(3)];
    Some(match draw.below(34) {
        0 => Op::Const([0.0, 1.0, -1.0, 0.5][draw.below(4)]),
        1 | 2 => Op::Unary([Unary::Neg, Unary::Tanh, Unary::Abs, Unary::Sigmoid][draw.below(4)], a),
        3..=6 => Op::Binary([Binary::Add, Binary::Sub, Binary::Mul, Binary::Max][draw.below(4)], a, b),
        7 => Op::Select { op: Compare::Lt, lhs: a, rhs: b, then: c, otherwise: d },
        8 => Op::Broadcast(a),
        9 => Op::Sum(a, graph.node(a).dims.iter().copied().filter(|_| draw.below(2) == 0).collect()),
        10 => Op::MaxOver(a, p),
        11..=15 => Op::Contract(a, b, some),
        16 | 17 => Op::Rename(a, p, q),
        18 => Op::Index(a, p, draw.below(2)),
        19 => {
            let parts = (0..graph.dim(J).size).map(|n| [Some(a), None, Some(b)][(n + draw.below(3)) % 3]);
            Op::Stack(parts.collect(), J)
        }
        20 => Op::Guard(a, [0.0, 1.0][draw.below(2)]),
        21 => Op::Diagonal(a, p, q),
        22 => Op::DiagonalPart(a, p, q),
        23 => Op::Split(a, p, q, r),
        24 => Op::Merge(a, p, q, r),
        25 => Op::Segment { gates: draw_gates(draw, graph, &[]), row: T, col: S, diagonal },
        26 => {
            let gates = draw_gates(draw, graph, &[]);
            let weight = with_dims(draw, graph, &[T, S])?;
            let event = draw.below(gates.events.len().max(1));
            Op::SegmentGrad { weight, gates, row: T, col: S, diagonal, event }
        }
        27 => Op::Boundary { side, gates: draw_gates(draw, graph, &[K]), row: T },
        28 => {
            let gates = draw_gates(draw, graph, &[K]);
            let event = draw.below(gates.events.len().max(1));
            let weight = a;
            Op::BoundaryGrad { weight, side, gates, row: T, event }
        }
        29 | 30 => {
            let axes = if draw.below(2) == 0 { vec![K] } else { vec![K, L] };
            let gates = draw_gates(draw, graph, &axes);
            let weight = with_dims(draw, graph, &[T, S]);
            let rows = with_dims(draw, graph, &[&[T][..], &axes].concat());
            let cols = with_dims(draw, graph, &[&[S][..], &axes].concat());
            let event = draw.below(gates.events.len().max(1));
            let (part, weight, rows, cols) = match draw.below(4) {
                0 => (GatedPart::Weight, None, rows, cols),
                1 => (GatedPart::Rows, weight, None, cols),
                2 => (GatedPart::Cols, weight, rows, None),
                _ => (GatedPart::Gate(event), weight, rows, cols),
            };
            Op::Gated { part, weight, rows, cols, gates, row: T, col: S, axes }
        }
        31 | 32 => {
            let n = graph.dim(J).size;
            let axes: &[DimId] = [&[V][..], &[K][..], &[][..], &[K, L][..]][draw.below(4)];
            let axes = if draw.below(2) == 0 { &[K][..] } else { axes };
            let gates = if axes.contains(&K) && draw.below(2) == 0 {
                draw_gates(draw, graph, axes)
            } else {
                Gates { events: Vec::new(), from: 0, to: 0 }
            };
            let e = gates.events.len();
            let mut lower = Vec::new();
            for _ in 0..n * n {
                lower.push(if draw.below(4) == 0 { None } else { with_dims(draw, graph, &[T, S]) });
            }
            let full = [&[T][..], axes].concat();
            let mut rhs = Vec::new();
            let mut scale = Vec::new();
            for _ in 0..n {
                rhs.push(with_dims(draw, graph, &full)?);
                scale.push(if draw.below(2) == 0 { None } else { with_dims(draw, graph, &full) });
            }
            Op::Solve(Solve {
                lower,
                rhs,
                scale,
                reads: (0..n).map(|_| draw.below(e + 1)).collect(),
                writes: (0..n).map(|_| draw.below(e + 1)).collect(),
                gates,
                transposed: diagonal,
                slot: J,
                row: T,
                col: S,
            })
        }
        _ => Op::StopGradient(a),
    })
}

/// Adds a node if its operands allow it, and its value stays small.
fn push(graph: &mut Graph, op: Op) {
    let stated = match &op {
        Op::Broadcast(x) => canonical(graph, graph.node(*x).dims.iter().copied().chain([T, K])),
        _ => Vec::new(),
    };
    let shape = Scope { graph, nodes: &graph.nodes, inputs: None }.infer(&op, &stated);
    if let Ok(dims) = shape
        && graph.sizes(&dims).iter().product::<usize>() <= 2000
    {
        let mut with = graph.clone();
        with.nodes.push(Node { op, dims, span: None, rule: "drawn" });
        if verify(&with).is_ok() {
            *graph = with;
        }
    }
}

/// A loop over the rows: a state, decayed and written to, read out.
fn push_scan(draw: &mut Draw, graph: &mut Graph) {
    let state: &[DimId] = [&[K][..], &[K, V][..], &[][..]][draw.below(3)];
    let (Some(first), Some(factor)) = (with_dims(draw, graph, state), with_dims(draw, graph, &[T])) else { return };
    let Some(written) = with_dims(draw, graph, &[&[T][..], state].concat()) else { return };
    let Some(other) = with_dims(draw, graph, &[K]) else { return };
    let body = |op, dims: &[DimId]| Node { op, dims: dims.to_vec(), span: None, rule: "drawn" };
    let mut nodes = vec![
        body(Op::BodyInput(0), &[]),
        body(Op::BodyInput(1), state),
        body(Op::BodyInput(2), &[K]),
        body(Op::BodyInput(3), state),
        body(Op::BodyInput(4), state),
        body(Op::Binary(Binary::Mul, NodeId(0), NodeId(3)), state),
        body(Op::Binary(Binary::Add, NodeId(5), NodeId(1)), state),
        body(Op::Unary(Unary::Tanh, NodeId(3)), state),
    ];
    // The second carry follows the first one, from its old or its new value.
    let seen = [NodeId(3), NodeId(6), NodeId(7)][draw.below(3)];
    nodes.push(body(Op::Binary(Binary::Sub, NodeId(4), seen), state));
    nodes.push(body(Op::Unary(Unary::Tanh, NodeId(8)), state));
    let read = if state.contains(&K) {
        nodes.push(body(Op::Contract(NodeId(6), NodeId(2), vec![K]), &state[1..]));
        nodes.push(body(Op::Unary(Unary::Tanh, NodeId(10)), &state[1..]));
        NodeId(11)
    } else {
        NodeId(6)
    };
    let read_dims = nodes[read.index()].dims.clone();
    let outputs = if draw.below(2) == 0 {
        vec![NodeId(6), NodeId(9), read, NodeId(9)]
    } else {
        // The carries change places.
        vec![NodeId(9), NodeId(3), read, NodeId(9)]
    };
    let scan = Scan {
        sequences: vec![factor, written],
        invariants: vec![other],
        carries: vec![first, first],
        body: Body { nodes, inputs: (0..5).map(NodeId).collect(), outputs },
        reverse: draw.below(2) == 0,
        row: T,
    };
    let mut with = graph.clone();
    let at = NodeId(with.nodes.len() as u32);
    let dims: Vec<Vec<DimId>> =
        vec![state.to_vec(), state.to_vec(), [&[T][..], &read_dims].concat(), [&[T][..], state].concat()];
    // The scan itself has the dimensions the shape rules give it.
    let op = Op::Scan(Box::new(scan));
    let Ok(own) = Scope { graph, nodes: &graph.nodes, inputs: None }.infer(&op, &[]) else { return };
    with.nodes.push(Node { op, dims: own, span: None, rule: "drawn" });
    for (n, dims) in dims.into_iter().enumerate() {
        with.nodes.push(Node { op: Op::ScanResult(at, n), dims, span: None, rule: "drawn" });
    }
    if verify(&with).is_ok() {
        *graph = with;
    }
}

fn draw_graph(draw: &mut Draw) -> Graph {
    let dims = dims(draw);
    let rows = dims[T.index()].size;
    let mut graph = Graph {
        name: "random".into(),
        dims,
        nodes: Vec::new(),
        time: Some(T),
        tokens: if draw.below(2) == 0 { rows } else { rows - 1 },
        reverse: draw.below(2) == 0,
        span: None,
        carries: Vec::new(),
        outputs: Vec::new(),
        layouts: Vec::new(),
        saves: Vec::new(),
    };
    let tensors = [
        ("x", InputKind::Token, vec![V, K]),
        ("y", InputKind::Cotangent, vec![K]),
        ("g", InputKind::Token, vec![]),
        ("h", InputKind::Token, vec![K]),
        ("f", InputKind::Token, vec![]),
        ("e", InputKind::Token, vec![K]),
        ("a", InputKind::Head, vec![K]),
        ("S", InputKind::Carry, vec![K, V]),
        ("R", InputKind::Carry, vec![K]),
        ("Q", InputKind::Carry, vec![K]),
        ("w", InputKind::Token, vec![L, K]),
    ];
    for (name, kind, layout) in tensors {
        let dims = canonical(
            &graph,
            layout
                .iter()
                .copied()
                .chain([T].into_iter().filter(|_| matches!(kind, InputKind::Token | InputKind::Cotangent))),
        );
        let op = Op::Input { name: name.into(), kind, layout };
        graph.nodes.push(Node { op, dims, span: None, rule: "drawn" });
    }
    for (name, input) in [("S", NodeId(7)), ("R", NodeId(8)), ("Q", NodeId(9))] {
        let layout = graph.node(input).dims.clone();
        let last = (draw.below(3) > 0).then(|| format!("final.{name}"));
        let init = (draw.below(3) > 0).then(|| format!("init.{name}"));
        graph.carries.push(Carry { name: name.into(), input, output: input, init, begins: Begin::Zero, last, layout });
    }
    // Matrices over pairs of tokens, and values over columns, which much else needs.
    push(&mut graph, Op::Rename(NodeId(1), T, S));
    push(&mut graph, Op::Contract(NodeId(3), NodeId(11), vec![K]));
    push(&mut graph, Op::Rename(NodeId(10), T, S));
    let given = graph.nodes.len();
    for attempt in 0..250 {
        if graph.nodes.len() >= 45 {
            break;
        }
        if attempt % 40 == 20 {
            push_scan(draw, &mut graph);
        } else if let Some(op) = draw_op(draw, &graph) {
            push(&mut graph, op);
        }
    }
    for n in 0..graph.carries.len() {
        let dims = &graph.node(graph.carries[n].input).dims;
        let fits: Vec<usize> =
            (0..graph.nodes.len()).filter(|&at| is_value(&graph.nodes[at]) && graph.nodes[at].dims == *dims).collect();
        graph.carries[n].output = NodeId(fits[draw.below(fits.len())] as u32);
    }
    for at in given..graph.nodes.len() {
        if matches!(graph.nodes[at].op, Op::Scan(_)) {
            continue;
        }
        if graph.nodes[at].dims.contains(&T) && draw.below(4) == 0 {
            graph.outputs.push((format!("o{at}"), NodeId(at as u32)));
        } else if draw.below(6) == 0 {
            graph.saves.push((format!("s{at}"), NodeId(at as u32)));
        }
    }
    graph
}

fn random_graphs(seed: u64, cases: usize) -> BTreeMap<String, usize> {
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for case in 0..cases {
        let mut draw = Draw(seed + case as u64);
        let graph = draw_graph(&mut draw);
        if let Err(error) = verify(&graph) {
            panic!("case {case}\n{error}");
        }
        for node in &graph.nodes {
            let name: String = match &node.op {
                Op::Gated { part, .. } => format!("{part:?}").chars().take_while(|c| c.is_alphanumeric()).collect(),
                op => format!("{op:?}").chars().take_while(|c| c.is_alphanumeric()).collect(),
            };
            *ops.entry(name).or_default() += 1;
        }
        let length = [0, 1, 3, 7, 23][draw.below(5)];
        let extent = Extent { batch: 2, length, heads: 2, offsets: None };
        let mut given = Bundle::new();
        let tensors: [(&str, &[DimId], f64, f64); 8] = [
            ("x", &[V, K], -1.0, 1.0),
            ("y", &[K], -1.0, 1.0),
            ("g", &[], -1.0, 0.0),
            ("h", &[K], -1.0, 0.0),
            ("f", &[], -1.0, 1.0),
            ("e", &[K], -1.0, 1.0),
            ("w", &[L, K], -1.0, 1.0),
            ("a", &[K], -1.0, 1.0),
        ];
        for (name, inner, lo, hi) in tensors {
            let leading = if name == "a" { vec![2] } else { vec![2, length, if name == "f" { 1 } else { 2 }] };
            given.insert(name.into(), draw.tensor(&[leading, graph.sizes(inner)].concat(), lo, hi));
        }
        for (name, inner) in [("init.S", &[K, V][..]), ("init.R", &[K][..]), ("init.Q", &[K][..])] {
            given.insert(name.into(), draw.tensor(&[vec![2, 2], graph.sizes(inner)].concat(), -1.0, 1.0));
        }
        compare(&format!("seed {}", seed + case as u64), &graph, &given, &extent);
    }
    ops
}

#[test]
fn a_kernel_computes_what_its_graph_does() {
    let ops = random_graphs(1, 400);
    println!("{ops:?}");
    assert_eq!(ops.len(), 28, "every kind of operation was drawn: {ops:?}");
}

/// Much longer than a test should take.
#[test]
#[ignore = "a long run, for changes to the lowering"]
fn many_more_graphs() {
    random_graphs(100_000, 20_000);
}
