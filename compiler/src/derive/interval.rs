//! Between which bounds the values of a graph lie, if the inputs keep the promises of their ranges.
//!
//! In: a graph and the program it came from. Out: an interval for each node, any number where nothing is known. A bound
//! may be wider than the truth, never narrower, rounding aside. Never looks at data.

use crate::graph::ir::{Binary, Graph, InputKind, NodeId, Op, Unary};
use chunkwise_dsl::bounds::{self, ANY, Interval};
use chunkwise_dsl::program::{self, Program};

/// The interval of every node.
pub fn intervals(graph: &Graph, program: &Program) -> Vec<Interval> {
    let mut found: Vec<Interval> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let at = |x: &NodeId| found[x.index()];
        let interval = match &node.op {
            Op::Input { name, kind: InputKind::Token | InputKind::Head, .. } => {
                let declared = program.tensors.iter().find(|tensor| tensor.name == *name);
                declared.map_or(ANY, |tensor| bounds::declared(&tensor.range))
            }
            Op::Const(value) => Interval::new(*value, *value),
            Op::Unary(function, x) => unary(*function, at(x)),
            Op::Binary(function, x, y) => bounds::binary(binary(*function), at(x), at(y)),
            Op::Select { then, otherwise, .. } => hull(at(then), at(otherwise)),
            Op::Broadcast(x)
            | Op::MaxOver(x, _)
            | Op::Rename(x, _, _)
            | Op::Index(x, _, _)
            | Op::DiagonalPart(x, _, _)
            | Op::Split(x, _, _, _)
            | Op::Merge(x, _, _, _)
            | Op::StopGradient(x) => at(x),
            Op::Guard(x, number) => hull(at(x), Interval::new(*number, *number)),
            Op::Diagonal(x, _, _) => hull(at(x), Interval::new(0.0, 0.0)),
            Op::Stack(parts, _) => {
                let each = parts.iter().map(|part| part.as_ref().map_or(Interval::new(0.0, 0.0), at));
                each.reduce(hull).unwrap_or(ANY)
            }
            Op::Sum(x, over) => times_as_many(at(x), graph.sizes(over).iter().product()),
            Op::Contract(x, y, over) => times_as_many(at(x).of_products(at(y)), graph.sizes(over).iter().product()),
            Op::Input { .. }
            | Op::BodyInput(_)
            | Op::Segment { .. }
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => ANY,
        };
        found.push(interval);
    }
    found
}

fn hull(a: Interval, b: Interval) -> Interval {
    Interval::new(a.lo.min(b.lo), a.hi.max(b.hi))
}

/// Of a sum of that many numbers.
fn times_as_many(x: Interval, count: usize) -> Interval {
    x.of_products(Interval::new(count as f64, count as f64))
}

fn unary(function: Unary, x: Interval) -> Interval {
    let known = match function {
        Unary::Recip => return x.inverse(),
        Unary::Expm1 => return Interval::new(x.lo.exp_m1(), x.hi.exp_m1()),
        Unary::Erf => return Interval::new(-1.0, 1.0),
        Unary::Neg => program::Unary::Neg,
        Unary::Exp => program::Unary::Exp,
        Unary::Log => program::Unary::Log,
        Unary::Sqrt => program::Unary::Sqrt,
        Unary::Abs => program::Unary::Abs,
        Unary::Sign => program::Unary::Sign,
        Unary::Square => program::Unary::Square,
        Unary::Sigmoid => program::Unary::Sigmoid,
        Unary::LogSigmoid => program::Unary::LogSigmoid,
        Unary::Softplus => program::Unary::Softplus,
        Unary::Tanh => program::Unary::Tanh,
        Unary::Sin => program::Unary::Sin,
        Unary::Cos => program::Unary::Cos,
    };
    bounds::unary(known, x)
}

fn binary(function: Binary) -> program::Binary {
    match function {
        Binary::Add => program::Binary::Add,
        Binary::Sub => program::Binary::Sub,
        Binary::Mul => program::Binary::Mul,
        Binary::Div => program::Binary::Div,
        Binary::Min => program::Binary::Min,
        Binary::Max => program::Binary::Max,
        Binary::Pow => program::Binary::Pow,
    }
}
