//! `bare-operands`: factors leave the operands of products that without them are values at hand.
//!
//! Comes in: a graph. Goes out: the graph with Σ_k (x ⊙ f)\[…k…\] · y\[…k…\] as f ⊙ Σ_k x·y where f lacks k, and, where f
//! has it, as Σ_k x · (y ⊙ f) if x is a tensor from outside and y is computed. A tensor is then multiplied as it lies in
//! memory, without a scaled copy of it, and rounded once, as it came; products that differ in factors only are one. A
//! factor of a value that nothing multiplies without it stays: it is applied where the value is computed.
//!
//! [`super::scale_late`] takes care that a scaled value disappears altogether; here it may stay for other readers.
//! It never reorders a sum.

use super::rename_references;
use crate::graph::build::Builder;
use crate::graph::ir::*;

/// Takes the factors off every operand where that helps.
pub fn bare_operands(graph: &mut Graph) {
    let multiplied = multiplied(graph);
    let nodes = std::mem::take(&mut graph.nodes);
    let mut bare = Bare { b: Builder::with_dims(std::mem::take(&mut graph.dims)), at_hand: Vec::new() };
    let mut new: Vec<NodeId> = Vec::new();
    for (mut node, multiplied) in nodes.into_iter().zip(multiplied) {
        node.op.for_each_operand(&mut |x| *x = new[x.index()]);
        bare.b.rule = node.rule;
        bare.b.span = node.span;
        let made = if let Op::Contract(x, y, over) = &node.op { bare.contract([*x, *y], over) } else { None };
        let id = made.unwrap_or_else(|| {
            // Not shared here: two carries may have the same name.
            bare.b.nodes.push(node);
            NodeId(bare.b.nodes.len() as u32 - 1)
        });
        bare.at_hand.resize(bare.b.nodes.len(), false);
        bare.at_hand[id.index()] |= multiplied;
        new.push(id);
    }
    graph.nodes = bare.b.nodes;
    graph.dims = bare.b.dims;
    rename_references(graph, |x| new[x.index()]);
}

/// By node: whether a product multiplies it as it is, perhaps under other names of dimensions.
fn multiplied(graph: &Graph) -> Vec<bool> {
    let mut found = vec![false; graph.nodes.len()];
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        if let Op::Contract(x, y, _) = &node.op {
            (found[x.index()], found[y.index()]) = (true, true);
        } else if let (Op::Rename(x, ..), true) = (&node.op, found[at]) {
            found[x.index()] = true;
        }
    }
    found
}

/// An operand as a product of what is left of it and factors with fewer dimensions.
struct Operand {
    base: NodeId,
    /// Factors that lack what is summed over; they go after the sum.
    free: Vec<NodeId>,
    /// Factors that have some of it; they stay on one operand.
    bound: Vec<NodeId>,
}

struct Bare {
    b: Builder,
    /// By node: a product multiplies it as it is.
    at_hand: Vec<bool>,
}

impl Bare {
    fn contract(&mut self, operands: [NodeId; 2], over: &[DimId]) -> Option<NodeId> {
        let [mut x, mut y] = operands.map(|x| self.stripped(x, over));
        let [x_given, y_given] = [&x, &y].map(|operand| self.is_given(operand.base));
        if x_given && !y_given {
            y.bound.append(&mut x.bound);
        } else if y_given && !x_given {
            x.bound.append(&mut y.bound);
        }
        let mut free = Vec::new();
        // A number goes with a factor that stays: fewer products, and the sum can be added to something as it is.
        for factor in [x.free, y.free].concat() {
            match [&mut x.bound, &mut y.bound].into_iter().find(|bound| !bound.is_empty()) {
                Some(bound) if self.b.dims_of(factor).is_empty() => bound.push(factor),
                _ => free.push(factor),
            }
        }
        let left = self.scaled(x.base, &x.bound);
        let right = self.scaled(y.base, &y.bound);
        if free.is_empty() && [left, right] == operands {
            return None;
        }
        let product = self.b.contract(left, right, over);
        if !free.is_empty() && self.size(product) > 2 * (self.size(left) + self.size(right)) {
            return None;
        }
        Some(self.scaled(product, &free))
    }

    fn size(&self, x: NodeId) -> usize {
        self.b.dims_of(x).iter().map(|&dim| self.b.size(dim)).product()
    }

    /// A value times some factors.
    fn scaled(&mut self, x: NodeId, factors: &[NodeId]) -> NodeId {
        self.multiply(factors).into_iter().fold(x, |x, factor| self.b.times(x, factor))
    }

    /// The products of factors, one for all whose dimensions one of them has.
    fn multiply(&mut self, factors: &[NodeId]) -> Vec<NodeId> {
        let mut products: Vec<NodeId> = Vec::new();
        for &factor in factors {
            let covers = |b: &Builder, x: NodeId, y: NodeId| b.dims_of(y).iter().all(|&dim| b.has(x, dim));
            let b = &self.b;
            let with = products.iter().position(|&product| covers(b, product, factor) || covers(b, factor, product));
            match with {
                Some(at) => products[at] = self.b.times(products[at], factor),
                None => products.push(factor),
            }
        }
        products
    }

    /// The factors of an operand, if what is left is at hand; otherwise none.
    fn stripped(&mut self, x: NodeId, over: &[DimId]) -> Operand {
        let whole = Operand { base: x, free: Vec::new(), bound: Vec::new() };
        let (base, factors) = self.factors(x);
        if factors.is_empty() || !self.is_at_hand(base) {
            return whole;
        }
        let (bound, free) = factors.into_iter().partition(|&factor| over.iter().any(|&dim| self.b.has(factor, dim)));
        Operand { base, free, bound }
    }

    /// What is left of a value when its factors with fewer dimensions are taken off, and those.
    fn factors(&mut self, x: NodeId) -> (NodeId, Vec<NodeId>) {
        let Node { op, dims, .. } = self.b.nodes[x.index()].clone();
        if let Op::Binary(Binary::Mul, p, q) = op {
            let of = |kept: NodeId, factor: NodeId| {
                self.b.dims_of(kept) == dims && self.b.dims_of(factor).len() < dims.len()
            };
            if let Some((kept, factor)) = [(p, q), (q, p)].into_iter().find(|&(kept, factor)| of(kept, factor)) {
                let (base, mut factors) = self.factors(kept);
                factors.push(factor);
                return (base, factors);
            }
        } else if let Op::Unary(Unary::Neg, inner) = op {
            let (base, mut factors) = self.factors(inner);
            factors.push(self.b.constant(-1.0));
            return (base, factors);
        } else if let Op::Rename(inner, from, to) = op {
            let (base, factors) = self.factors(inner);
            if !factors.is_empty() {
                let factors = factors.into_iter().map(|factor| self.b.rename(factor, from, to)).collect();
                return (self.b.rename(base, from, to), factors);
            }
        }
        (x, Vec::new())
    }

    /// Whether a value is an operand as it is, or comes from outside.
    fn is_at_hand(&self, x: NodeId) -> bool {
        let op = &self.b.nodes[x.index()].op;
        let renamed = if let Op::Rename(inner, ..) = op { self.is_at_hand(*inner) } else { false };
        renamed || self.is_given(x) || self.at_hand.get(x.index()).is_some_and(|&at_hand| at_hand)
    }

    /// Whether a value comes from outside, or is part of one that does, under whatever names, perhaps with void rows
    /// replaced.
    fn is_given(&self, x: NodeId) -> bool {
        let op = &self.b.nodes[x.index()].op;
        if let Op::Guard(x, _) | Op::Rename(x, ..) | Op::Index(x, ..) | Op::Split(x, ..) = op {
            return self.is_given(*x);
        }
        matches!(op, Op::Input { .. })
    }
}
