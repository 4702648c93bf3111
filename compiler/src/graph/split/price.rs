//! What it takes to compute a node for one chunk of one head, and what that is worth beside moving bytes.
//!
//! Comes in: nodes with their sizes. Goes out: counts of operations and bytes. The counts are of what the lowering does,
//! to within a small factor: they decide what is computed again and what is handed on, never what is right.

use crate::graph::ir::{Binary, DimId, Graph, InputKind, Node, NodeId, Op, Unary};

/// What a node or a graph takes, for one chunk of one head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read from or written to memory.
    pub bytes: u64,
    /// Multiplications and additions of products large enough for the tensor cores.
    pub tensor: u64,
    /// All other operations.
    pub vector: u64,
    /// Steps that wait for the one before: rows of a solve or a scan, and one for a value that others wait for.
    pub turns: u64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.bytes += other.bytes;
        self.tensor += other.tensor;
        self.vector += other.vector;
        self.turns += other.turns;
    }
}

/// What work is worth. Prices are in [`Prices::UNIT`]ths of a byte moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// Operations on the tensor cores in the time a byte takes.
    pub tensor: u64,
    /// Other operations in the time a byte takes.
    pub vector: u64,
    /// Bytes moved in the time one row waits for the one before.
    pub turn: u64,
    /// How many times dearer arithmetic is where chunks wait for each other than where they do not.
    pub sequential: u64,
    /// What handing on one more value costs beside its bytes, in bytes.
    pub handing: u64,
    /// Bytes of an element of the caller's tensors.
    pub token_bytes: u64,
}

impl Default for Prices {
    /// An H200: 4.3 TB/s, 250 TFLOP/s in products this small, about half of 67 in float32.
    fn default() -> Self {
        Prices { tensor: 58, vector: 7, turn: 1024, sequential: 3, handing: 2048, token_bytes: 2 }
    }
}

impl Prices {
    /// Parts a byte is counted in.
    pub const UNIT: u64 = 1024;

    /// What moving so many bytes costs.
    pub fn moving(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(Self::UNIT)
    }

    /// What arithmetic costs.
    pub fn computing(&self, work: Work) -> u64 {
        self.moving(work.turns.saturating_mul(self.turn))
            + work.tensor.saturating_mul(Self::UNIT) / self.tensor.max(1)
            + work.vector.saturating_mul(Self::UNIT) / self.vector.max(1)
    }
}

/// Positions of these dimensions.
fn count(graph: &Graph, dims: &[DimId]) -> u64 {
    dims.iter().map(|&dim| graph.dim(dim).size as u64).product()
}

/// Elements of a value.
pub fn elements(graph: &Graph, node: &Node) -> u64 {
    count(graph, &node.dims)
}

/// What a whole graph takes, its inputs and results included.
pub fn graph_work(graph: &Graph, prices: &Prices) -> Work {
    let mut total = Work::default();
    for node in &graph.nodes {
        total += node_work(graph, &graph.nodes, node, prices);
    }
    for (_, node) in &graph.outputs {
        total.bytes += prices.token_bytes * count(graph, &graph.node(*node).dims);
    }
    for (_, node) in &graph.saves {
        total.bytes += 4 * elements(graph, graph.node(*node));
    }
    total
}

/// What a node takes beyond its operands.
pub fn node_work(graph: &Graph, nodes: &[Node], node: &Node, prices: &Prices) -> Work {
    let own = count(graph, &node.dims);
    let size = |x: NodeId| count(graph, &nodes[x.index()].dims);
    let vector = |vector: u64| Work { vector, ..Work::default() };
    let stored = |vector: u64| Work { vector, turns: 1, ..Work::default() };
    match &node.op {
        Op::Input { kind, .. } => {
            let bytes = match kind {
                InputKind::Token | InputKind::Cotangent => prices.token_bytes * own,
                InputKind::Saved => 4 * own,
                // Read once for all chunks, or not at all.
                InputKind::Head | InputKind::Carry => 0,
            };
            Work { bytes, ..Work::default() }
        }
        Op::Const(_)
        | Op::BodyInput(_)
        | Op::Broadcast(_)
        | Op::Rename(..)
        | Op::Index(..)
        | Op::DiagonalPart(..)
        | Op::Split(..)
        | Op::StopGradient(_)
        | Op::ScanResult(..) => Work::default(),
        Op::Unary(function, _) => vector(own * unary(*function)),
        Op::Binary(Binary::Div, ..) => vector(own * 6),
        Op::Binary(Binary::Pow, ..) => vector(own * 16),
        Op::Binary(..) | Op::Select { .. } | Op::Guard(..) | Op::Diagonal(..) => vector(own),
        Op::Stack(..) | Op::Merge(..) => stored(own),
        Op::Sum(x, _) | Op::MaxOver(x, _) => stored(size(*x)),
        Op::Contract(a, b, over) => contract(graph, nodes, node, [*a, *b], over),
        // A running sum of logarithms and an exponential for every position.
        Op::Segment { gates, .. } => vector(own * (8 + gates.events.len() as u64)),
        Op::SegmentGrad { weight, gates, .. } => {
            Work { turns: 1, ..vector(size(*weight) * (8 + gates.events.len() as u64)) }
        }
        Op::Boundary { gates, row, .. } | Op::BoundaryGrad { gates, row, .. } => {
            let rows = gates.events.iter().map(|gate| size(gate.value)).max().unwrap_or(own);
            Work { turns: 1 + graph.dim(*row).size as u64 / 16, ..vector(rows * (8 + gates.events.len() as u64)) }
        }
        Op::Gated { weight, rows, cols, gates, row, col, axes, part: _ } => {
            let operands = [weight, rows, cols].into_iter().flatten().copied();
            let all = operands.chain(gates.events.iter().map(|gate| gate.value));
            let mut dims: Vec<DimId> = all.flat_map(|x| nodes[x.index()].dims.clone()).collect();
            dims.extend(axes.iter().chain([row, col]));
            dims.sort();
            dims.dedup();
            stored(count(graph, &dims) * 6)
        }
        Op::Solve(solve) => {
            let rows = graph.dim(solve.row).size as u64;
            let slots = solve.rhs.len() as u64;
            Work { turns: rows * slots, ..vector(own * rows * slots) }
        }
        // By blocks of 16: those on the diagonal row by row, the others as products. A third of a product's terms.
        Op::Inverse(inverse) => {
            let rows = graph.dim(inverse.row).size as u64;
            let slots = graph.dim(inverse.slot).size as u64;
            Work { tensor: 2 * own * rows * slots / 3, turns: 16 * slots + rows / 16, ..vector(own * 8) }
        }
        Op::Scan(scan) => {
            let rows = graph.dim(scan.row).size as u64;
            let mut body = Work::default();
            for node in &scan.body.nodes {
                body += node_work(graph, &scan.body.nodes, node, prices);
            }
            Work { turns: rows, ..vector(rows * (body.vector + body.tensor)) }
        }
    }
}

fn contract(graph: &Graph, nodes: &[Node], node: &Node, [a, b]: [NodeId; 2], over: &[DimId]) -> Work {
    let operations = 2 * count(graph, &node.dims) * count(graph, over);
    match on_tensor_cores(graph, &nodes[a.index()].dims, &nodes[b.index()].dims, over) {
        true => Work { tensor: operations, turns: 1, ..Work::default() },
        false => Work { vector: operations, turns: u64::from(!over.is_empty()), ..Work::default() },
    }
}

/// Whether a product of operands with these dimensions is large enough for the tensor cores: each has some of its own,
/// and there is something to sum.
pub fn on_tensor_cores(graph: &Graph, a: &[DimId], b: &[DimId], over: &[DimId]) -> bool {
    let own = |x: &[DimId], y: &[DimId]| {
        let alone: Vec<DimId> = x.iter().copied().filter(|dim| !y.contains(dim)).collect();
        count(graph, &alone)
    };
    own(a, b) >= 8 && own(b, a) >= 8 && count(graph, over) >= 8
}

/// Price of a function, in additions.
fn unary(function: Unary) -> u64 {
    match function {
        Unary::Neg | Unary::Abs | Unary::Square | Unary::Sign => 1,
        Unary::Recip | Unary::Sqrt | Unary::Exp | Unary::Log | Unary::Sigmoid | Unary::Tanh => 8,
        Unary::Expm1 | Unary::LogSigmoid | Unary::Softplus | Unary::Sin | Unary::Cos | Unary::Erf => 16,
    }
}
