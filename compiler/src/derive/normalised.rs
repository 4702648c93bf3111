//! Quotients by a sum or a norm of the numerator itself, `a / Σ a` and `a / √(Σ a² + ε)`, and their adjoints.
//!
//! In: numerator, denominator and quotient of a builder, and the quotient's adjoint. Out: the adjoint of the numerator,
//! through the denominator as well. Never looks at sizes.
//!
//! Numerator and denominator transposed each alone give two terms that cancel but for what is left of the derivative:
//! all of it where one element has the whole weight. What float32 leaves there is as large as a rounding of the terms.
//! The derivative is a projection, though, which can be taken twice: the second time removes what rounding left of the
//! first. In exact arithmetic the second changes nothing.

use crate::graph::build::Builder;
use crate::graph::ir::{Binary, DimId, NodeId, Op, Unary};
use std::collections::HashSet;

/// Below this a sum of squares of a normalised value is as good as zero, and so is what it divides.
const LEAST_SQUARES: f64 = 1e-30;

/// What a value is divided by.
#[derive(Clone, Debug, PartialEq)]
pub enum Norm {
    /// Its sum: `Σ over`.
    Sum(Vec<DimId>),
    /// Its root of squares: `√(Σ over a² + ε)`.
    Root {
        /// Dimensions summed over.
        over: Vec<DimId>,
        /// Added under the root.
        epsilon: f64,
    },
}

/// How a denominator is made from its numerator, if in one of these ways.
pub fn norm_of(b: &Builder, numerator: NodeId, denominator: NodeId) -> Option<Norm> {
    let op = |id: NodeId| &b.nodes[id.index()].op;
    let squares = |id: NodeId| match op(id) {
        Op::Contract(x, y, over) if *x == numerator && *y == numerator => Some(over.clone()),
        Op::Sum(square, over) => match op(*square) {
            Op::Unary(Unary::Square, x) if *x == numerator => Some(over.clone()),
            Op::Binary(Binary::Mul, x, y) if *x == numerator && *y == numerator => Some(over.clone()),
            _ => None,
        },
        _ => None,
    };
    match op(denominator) {
        Op::Sum(x, over) if *x == numerator => Some(Norm::Sum(over.clone())),
        Op::Unary(Unary::Sqrt, sum) => match op(*sum) {
            Op::Binary(Binary::Add, x, y) => {
                let (over, other) = squares(*x).map(|over| (over, *y)).or_else(|| Some((squares(*y)?, *x)))?;
                Some(Norm::Root { over, epsilon: b.as_constant(other)? })
            }
            _ => Some(Norm::Root { over: squares(*sum)?, epsilon: 0.0 }),
        },
        _ => None,
    }
}

/// The adjoint of the numerator of `y`; `y_adj` has all dimensions of `y`.
pub fn numerator_adjoint(b: &mut Builder, norm: &Norm, denominator: NodeId, y: NodeId, y_adj: NodeId) -> NodeId {
    match norm {
        Norm::Sum(over) => {
            // (dy − Σ y dy) / s, where Σ y = 1: subtracting a weighted mean, and again what is left of it.
            let mut centred = y_adj;
            for _ in 0..2 {
                let weighted = b.times(y, centred);
                let mean = b.sum(weighted, over);
                centred = b.minus(centred, mean);
            }
            b.binary(Binary::Div, centred, denominator)
        }
        Norm::Root { over, epsilon } => {
            // (dy − y Σ y dy) / n, where Σ y² = 1 − ε/n²: the part of dy across y, and ε/n² of all of it.
            let square = b.unary(Unary::Square, y);
            let squares = b.sum(square, over);
            let along = b.times(y, y_adj);
            let along = b.sum(along, over);
            let whole = b.times(squares, y_adj);
            let part = b.times(y, along);
            let across = b.minus(whole, part);
            let left = b.times(y, across);
            let left = b.sum(left, over);
            let least = b.constant(LEAST_SQUARES);
            let squares = b.binary(Binary::Max, squares, least);
            let left = b.binary(Binary::Div, left, squares);
            let part = b.times(y, left);
            let across = b.minus(across, part);
            let epsilon = b.constant(*epsilon);
            let kept = b.binary(Binary::Div, epsilon, denominator);
            let kept = b.binary(Binary::Div, kept, denominator);
            let kept = b.times(kept, y_adj);
            let sum = b.plus(across, kept);
            b.binary(Binary::Div, sum, denominator)
        }
    }
}

/// Whether two values are made of a common one that a gradient goes to: their changes then go together.
pub fn have_a_source_in_common(b: &Builder, x: NodeId, y: NodeId) -> bool {
    let of_x = sources(b, x);
    sources(b, y).iter().any(|id| of_x.contains(id))
}

/// Inputs that a value varies with.
fn sources(b: &Builder, from: NodeId) -> HashSet<NodeId> {
    let mut seen = HashSet::new();
    let mut found = HashSet::new();
    let mut stack = vec![from];
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let op = &b.nodes[id.index()].op;
        match op {
            Op::StopGradient(_) => {}
            Op::Input { .. } | Op::BodyInput(_) => {
                found.insert(id);
            }
            _ => stack.extend(op.operands()),
        }
    }
    found
}
