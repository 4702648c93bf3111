//! What a value makes of a state alone: the part of an affine value that the state is a factor of.
//!
//! Comes in: nodes of a graph, a value that is affine in a carry, and what to put for the carry. Goes out: a node that
//! is linear in that, and whether positions of the carry's axes mix on the way. Never looks at what else is added, and
//! refuses what it does not see to be affine.

use crate::graph::build::Builder;
use crate::graph::ir::{Binary, Node, NodeId, Op, Unary};
use std::collections::HashMap;

/// The linear part of a value.
pub struct Linear {
    /// The node; none if nothing depends on the carry.
    pub node: Option<NodeId>,
    /// Some position of the result takes in other positions of the carry.
    pub mixes: bool,
}

/// The linear part of `of` in the carry whose input is `carry`, with `seed` for that; or why it has none. Repeated
/// values keep their dimensions with `whole`; else they are left as short as they are.
pub fn linear(
    builder: &mut Builder,
    carry: NodeId,
    of: NodeId,
    seed: NodeId,
    whole: bool,
) -> Result<Linear, &'static str> {
    let nodes = builder.nodes[..=of.index()].to_vec();
    let mut needed = vec![false; nodes.len()];
    needed[of.index()] = true;
    // Users come later.
    for at in (0..nodes.len()).rev() {
        if needed[at] {
            nodes[at].op.operands().iter().for_each(|x| needed[x.index()] = true);
        }
    }
    let mut walk = Walk { builder, known: HashMap::new(), whole, mixes: false };
    walk.known.insert(carry, seed);
    for (at, node) in nodes.iter().enumerate() {
        let depends = node.op.operands().iter().any(|x| walk.known.contains_key(x));
        if needed[at] && depends {
            let part = walk.node(node)?;
            if let Some(part) = part {
                walk.known.insert(NodeId(u32::try_from(at).expect("a graph is small")), part);
            }
        }
    }
    Ok(Linear { node: walk.known.get(&of).copied(), mixes: walk.mixes })
}

struct Walk<'b> {
    builder: &'b mut Builder,
    /// By node that depends on the carry: its linear part.
    known: HashMap<NodeId, NodeId>,
    whole: bool,
    mixes: bool,
}

/// Why a value is not affine.
const NOT_AFFINE: &str = "its new value is not seen to be affine in it";

impl Walk<'_> {
    /// The linear part of a node some operand of which depends on the carry.
    fn node(&mut self, node: &Node) -> Result<Option<NodeId>, &'static str> {
        let of = |this: &Self, x: &NodeId| this.known.get(x).copied();
        // What a position of the result has from one position of the carry alone.
        let kept = match &node.op {
            Op::Unary(Unary::Neg, x) => of(self, x).map(|x| self.builder.neg(x)),
            Op::Binary(Binary::Add, a, b) => match (of(self, a), of(self, b)) {
                (Some(a), Some(b)) => Some(self.builder.plus(a, b)),
                (a, b) => a.or(b).map(|x| self.repeated(x, node)),
            },
            Op::Binary(Binary::Sub, a, b) => match (of(self, a), of(self, b)) {
                (Some(a), Some(b)) => Some(self.builder.minus(a, b)),
                (Some(a), None) => Some(self.repeated(a, node)),
                (None, Some(b)) => {
                    let negated = self.builder.neg(b);
                    Some(self.repeated(negated, node))
                }
                (None, None) => None,
            },
            Op::Binary(Binary::Mul, a, b) => match (of(self, a), of(self, b)) {
                (Some(_), Some(_)) => return Err(NOT_AFFINE),
                (Some(a), None) => Some(self.builder.times(a, *b)),
                (None, Some(b)) => Some(self.builder.times(*a, b)),
                (None, None) => None,
            },
            Op::Binary(Binary::Div, a, b) => match (of(self, a), of(self, b)) {
                (Some(a), None) => Some(self.builder.binary(Binary::Div, a, *b)),
                (_, _) => return Err(NOT_AFFINE),
            },
            Op::Select { op, lhs, rhs, then, otherwise } => {
                if of(self, lhs).or(of(self, rhs)).is_some() {
                    return Err(NOT_AFFINE);
                }
                let zero = self.builder.constant(0.0);
                let (then, otherwise) = (of(self, then).unwrap_or(zero), of(self, otherwise).unwrap_or(zero));
                Some(self.builder.select(*op, *lhs, *rhs, then, otherwise))
            }
            Op::Broadcast(x) => of(self, x).map(|x| self.repeated(x, node)),
            Op::Guard(x, _) => of(self, x).map(|x| self.builder.guard(x, 0.0)),
            Op::StopGradient(x) => of(self, x),
            Op::Binary(Binary::Min | Binary::Max | Binary::Pow, ..)
            | Op::Unary(..)
            | Op::MaxOver(..)
            | Op::Segment { .. }
            | Op::Boundary { .. }
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..)
            | Op::Input { .. }
            | Op::BodyInput(_)
            | Op::Const(_) => return Err(NOT_AFFINE),
            Op::Sum(..)
            | Op::Contract(..)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::Diagonal(..)
            | Op::DiagonalPart(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::SegmentGrad { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_) => {
                self.mixes = true;
                return self.mixed(node).map(Some);
            }
        };
        Ok(kept)
    }

    /// The same where positions of axes mix: the operation on the linear parts of what it is linear in.
    fn mixed(&mut self, node: &Node) -> Result<NodeId, &'static str> {
        let depends = |x: NodeId| self.known.contains_key(&x);
        let of = |x: NodeId| self.known.get(&x).copied().unwrap_or(x);
        let mut op = node.op.clone();
        match &mut op {
            Op::Sum(x, _)
            | Op::Rename(x, ..)
            | Op::Index(x, ..)
            | Op::Diagonal(x, ..)
            | Op::DiagonalPart(x, ..)
            | Op::Split(x, ..)
            | Op::Merge(x, ..) => *x = of(*x),
            Op::Contract(a, b, _) => {
                if depends(*a) && depends(*b) {
                    return Err(NOT_AFFINE);
                }
                (*a, *b) = (of(*a), of(*b));
            }
            Op::Stack(parts, _) => {
                for part in parts.iter_mut() {
                    *part = part.filter(|x| depends(*x)).map(of);
                }
            }
            Op::SegmentGrad { weight, gates, .. } | Op::BoundaryGrad { weight, gates, .. } => {
                if gates.events.iter().any(|gate| depends(gate.value)) {
                    return Err(NOT_AFFINE);
                }
                *weight = of(*weight);
            }
            Op::Gated { weight, rows, cols, gates, .. } => {
                let parts = [weight, rows, cols];
                let several = parts.iter().filter(|part| part.is_some_and(depends)).count() != 1;
                if several || gates.events.iter().any(|gate| depends(gate.value)) {
                    return Err(NOT_AFFINE);
                }
                parts.into_iter().for_each(|part| *part = part.map(of));
            }
            Op::Solve(solve) => {
                let factors = solve.lower.iter().chain(&solve.scale).flatten().copied();
                if factors.chain(solve.gates.events.iter().map(|gate| gate.value)).any(depends) {
                    return Err(NOT_AFFINE);
                }
                let zero = self.builder.constant(0.0);
                let zero = self.builder.broadcast(zero, &[solve.row]);
                for rhs in &mut solve.rhs {
                    *rhs = self.known.get(rhs).copied().unwrap_or(zero);
                }
            }
            _ => return Err(NOT_AFFINE),
        }
        Ok(self.builder.add(op, node.dims.clone()))
    }

    /// A linear part that stands for all positions of a node.
    fn repeated(&mut self, x: NodeId, node: &Node) -> NodeId {
        if self.whole { self.builder.broadcast(x, &node.dims) } else { x }
    }
}
