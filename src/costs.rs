//! What a form costs, counted on its graphs: operations, bytes of tensors, numbers kept. In: a graph of one step; out:
//! counts a token and head. They are counts of what is written down, not measurements, and say nothing of time.

use chunkwise_compiler::graph::ir::{Body, Dim, DimId, Graph, InputKind, Node, NodeId, Op};

/// Counts a token and head.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// Operations of products that are summed: two each.
    pub matmul_flops: f64,
    /// All other arithmetic, functions counted as one.
    pub other_flops: f64,
    /// Bytes of the caller's tensors read and written, 4 a number.
    pub bytes: f64,
    /// Bytes of everything a step computes, if it were all kept at once.
    pub step_bytes: f64,
}

impl Costs {
    /// All operations.
    pub fn flops(&self) -> f64 {
        self.matmul_flops + self.other_flops
    }
}

/// Counts a graph.
pub fn of(graph: &Graph) -> Costs {
    let tokens = graph.tokens.max(1) as f64;
    let rows = graph.rows().max(1) as f64;
    let mut costs = Costs::default();
    count(&graph.dims, &graph.nodes, rows, 1.0, &mut costs);
    for (_, node) in graph.outputs.iter().chain(&graph.saves) {
        costs.bytes += 4.0 * elements(&graph.dims, &graph.node(*node).dims);
    }
    Costs {
        matmul_flops: costs.matmul_flops / tokens,
        other_flops: costs.other_flops / tokens,
        bytes: costs.bytes / tokens,
        step_bytes: costs.step_bytes,
    }
}

/// Adds up the nodes of an arena that is gone through `times` times.
fn count(dims: &[Dim], nodes: &[Node], rows: f64, times: f64, costs: &mut Costs) {
    let dims_of = |id: NodeId| &nodes[id.index()].dims;
    for node in nodes {
        let size = elements(dims, &node.dims);
        costs.step_bytes += 4.0 * size;
        match &node.op {
            Op::Input { kind, .. } => match kind {
                InputKind::Token | InputKind::Cotangent | InputKind::Saved => costs.bytes += 4.0 * size * times,
                InputKind::Head | InputKind::Carry => {}
            },
            Op::Contract(lhs, rhs, _) => {
                costs.matmul_flops += 2.0 * elements(dims, &union(dims_of(*lhs), dims_of(*rhs))) * times;
            }
            Op::Unary(..) | Op::Binary(..) | Op::Select { .. } | Op::Guard(..) => costs.other_flops += size * times,
            Op::Sum(operand, _) | Op::MaxOver(operand, _) | Op::DiagonalPart(operand, ..) => {
                costs.other_flops += elements(dims, dims_of(*operand)) * times;
            }
            Op::Segment { .. } | Op::Boundary { .. } => costs.other_flops += 2.0 * size * times,
            Op::SegmentGrad { weight, .. } | Op::BoundaryGrad { weight, .. } => {
                costs.other_flops += 3.0 * elements(dims, dims_of(*weight)) * times;
            }
            Op::Gated { row, col, axes, .. } => {
                // A product, a decay and a sum for each pair of rows and each axis, below the diagonal.
                let pairs = elements(dims, &[*row]) * elements(dims, &[*col]) / 2.0;
                let outer = elements(
                    dims,
                    &node
                        .dims
                        .iter()
                        .copied()
                        .filter(|d| d != row && d != col && !axes.contains(d))
                        .collect::<Vec<_>>(),
                );
                costs.matmul_flops += 3.0 * pairs * outer * elements(dims, axes) * times;
            }
            Op::Solve(solve) => {
                let across = size * elements(dims, &[solve.row]) * elements(dims, &[solve.slot]) / 2.0;
                costs.matmul_flops += 2.0 * across * times;
            }
            Op::Inverse(inverse) => {
                costs.matmul_flops +=
                    size * elements(dims, &[inverse.row]) * elements(dims, &[inverse.slot]) / 3.0 * times;
            }
            Op::Scan(scan) => {
                let Body { nodes, .. } = &scan.body;
                count(dims, nodes, rows, times * rows, costs);
            }
            Op::BodyInput(_)
            | Op::Const(_)
            | Op::Broadcast(_)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::Diagonal(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::StopGradient(_)
            | Op::ScanResult(..) => {}
        }
    }
}

fn elements(dims: &[Dim], of: &[DimId]) -> f64 {
    of.iter().map(|dim| dims[dim.index()].size as f64).product()
}

fn union(a: &[DimId], b: &[DimId]) -> Vec<DimId> {
    a.iter().chain(b.iter().filter(|dim| !a.contains(dim))).copied().collect()
}
