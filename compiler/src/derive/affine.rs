//! What a node of the token graph is, as a function of the states: affine, and how, or not.
//!
//! In: the token graph and a set of states (a stratum). Out: for each node a sum of [`Term`]s, each a product of
//! state-free factors with 1, a version of a state, or a read of one. Never guesses: what is not seen to be affine is
//! [`Value::Opaque`].

use super::normalised::have_a_source_in_common;
use crate::graph::build::Builder;
use crate::graph::ir::{Binary, DimId, NodeId, Op, Unary};
use std::collections::HashMap;

/// What a term multiplies its factors with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// Nothing: the term is free of states.
    One,
    /// A version of a state, elementwise.
    Version(VersionId),
    /// A read: entry of [`Analysis::reads`].
    Read(usize),
}

/// A version of a state: (state, position among its versions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId {
    /// Index of the state.
    pub state: usize,
    /// Position among its versions; 0 is the token's start.
    pub version: usize,
}

/// A product.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// State-free factors.
    pub factors: Vec<NodeId>,
    /// What they multiply.
    pub base: Base,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// It does not depend on the states in question.
    Free,
    /// The sum of these.
    Affine(Vec<Term>),
    /// It depends on them in another way.
    Opaque,
}

/// `Σ over` of `weight · version`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadTerm {
    /// Which version is read.
    pub of: VersionId,
    /// The reader; has all of `over` or is constant along some.
    pub weight: NodeId,
    /// Axes summed over, canonical.
    pub over: Vec<DimId>,
}

/// The analysis of one set of states.
pub struct Analysis<'a> {
    /// The token arena; new products are added to it.
    pub builder: &'a mut Builder,
    /// Reads met so far.
    pub reads: Vec<ReadTerm>,
    versions: HashMap<NodeId, VersionId>,
    state_dims: HashMap<usize, Vec<DimId>>,
    memo: HashMap<NodeId, Value>,
    dependent: HashMap<NodeId, bool>,
}

impl<'a> Analysis<'a> {
    /// Prepares the analysis; `versions` lists the versions of the states in question.
    pub fn new(builder: &'a mut Builder, versions: &[(VersionId, NodeId)]) -> Self {
        let mut by_node = HashMap::new();
        let mut state_dims = HashMap::new();
        for &(id, node) in versions {
            by_node.entry(node).or_insert(id);
            state_dims.entry(id.state).or_insert_with(|| builder.dims_of(node).to_vec());
        }
        // A version that does not depend on any carry (an overwritten state) is free like any other value.
        let mut analysis = Analysis {
            builder,
            reads: vec![],
            versions: HashMap::new(),
            state_dims,
            memo: HashMap::new(),
            dependent: HashMap::new(),
        };
        for (&node, &id) in &by_node {
            if id.version == 0 {
                analysis.dependent.insert(node, true);
            }
        }
        analysis.versions = by_node;
        analysis
    }

    /// Dimensions of a state.
    pub fn dims_of_state(&self, state: usize) -> &[DimId] {
        &self.state_dims[&state]
    }

    /// Whether a node depends on the states in question.
    pub fn depends(&mut self, node: NodeId) -> bool {
        if let Some(&known) = self.dependent.get(&node) {
            return known;
        }
        let operands = self.builder.nodes[node.index()].op.operands();
        let found = operands.into_iter().any(|x| self.depends(x));
        self.dependent.insert(node, found);
        found
    }

    /// What a node is; a version stands for itself.
    pub fn value(&mut self, node: NodeId) -> Value {
        if !self.depends(node) {
            return Value::Free;
        }
        if let Some(&id) = self.versions.get(&node) {
            return Value::Affine(vec![Term { factors: vec![], base: Base::Version(id) }]);
        }
        self.definition(node)
    }

    /// What a node is, from its operands, even when it is a version.
    pub fn definition(&mut self, node: NodeId) -> Value {
        if !self.depends(node) {
            return Value::Free;
        }
        if let Some(known) = self.memo.get(&node) {
            return known.clone();
        }
        let found = self.by_op(node);
        self.memo.insert(node, found.clone());
        found
    }

    fn by_op(&mut self, node: NodeId) -> Value {
        let op = self.builder.nodes[node.index()].op.clone();
        match op {
            Op::Unary(Unary::Neg, x) => self.scale(x, |b| vec![b.constant(-1.0)]),
            Op::Broadcast(x) => self.value(x),
            Op::Binary(Binary::Add, x, y) => self.sum(x, y, 1.0),
            Op::Binary(Binary::Sub, x, y) => self.sum(x, y, -1.0),
            Op::Binary(Binary::Mul, x, y) => self.product(x, y),
            Op::Binary(Binary::Div, x, y) if !self.depends(y) => {
                let factor = match self.builder.nodes[y.index()].op {
                    // 1 / eˣ is e⁻ˣ: a decay keeps its logarithm.
                    Op::Unary(Unary::Exp, inner) => {
                        let negated = self.builder.neg(inner);
                        self.builder.exp(negated)
                    }
                    _ => self.builder.unary(Unary::Recip, y),
                };
                self.scale(x, |_| vec![factor])
            }
            Op::Contract(x, y, over) => match (self.depends(x), self.depends(y)) {
                (true, false) => self.contract(y, x, &over),
                (false, true) => self.contract(x, y, &over),
                _ => Value::Opaque,
            },
            Op::Sum(mut x, mut over) => {
                // A sum of a sum is one sum, over the axes of both.
                while let Op::Sum(inner, more) = &self.builder.nodes[x.index()].op
                    && !self.versions.contains_key(&x)
                {
                    over.extend(more);
                    x = *inner;
                }
                let one = self.builder.constant(1.0);
                self.contract(one, x, &over)
            }
            _ => Value::Opaque,
        }
    }

    /// The terms of a node, whether it depends on the states or not.
    fn terms(&mut self, node: NodeId) -> Option<Vec<Term>> {
        match self.value(node) {
            Value::Free => {
                Some(self.products(node).into_iter().map(|factors| Term { factors, base: Base::One }).collect())
            }
            Value::Affine(terms) => Some(terms),
            Value::Opaque => None,
        }
    }

    fn scale(&mut self, x: NodeId, factors: impl FnOnce(&mut Builder) -> Vec<NodeId>) -> Value {
        let Some(mut terms) = self.terms(x) else { return Value::Opaque };
        let factors = factors(self.builder);
        for term in &mut terms {
            term.factors.extend(factors.iter().copied());
        }
        Value::Affine(terms)
    }

    fn sum(&mut self, x: NodeId, y: NodeId, sign: f64) -> Value {
        let (Some(mut left), Some(right)) = (self.terms(x), self.terms(y)) else { return Value::Opaque };
        let sign_node = self.builder.constant(sign);
        for mut term in right {
            if sign != 1.0 {
                term.factors.push(sign_node);
            }
            left.push(term);
        }
        Value::Affine(left)
    }

    fn product(&mut self, x: NodeId, y: NodeId) -> Value {
        let (free, affine) = match (self.depends(x), self.depends(y)) {
            (false, true) => (x, y),
            (true, false) => (y, x),
            _ => return Value::Opaque,
        };
        let Some(terms) = self.terms(affine) else { return Value::Opaque };
        let products = self.products(free);
        let mut all = Vec::with_capacity(terms.len() * products.len());
        for factors in &products {
            for term in &terms {
                let mut term = term.clone();
                term.factors.extend(factors.iter().copied());
                all.push(term);
            }
        }
        Value::Affine(all)
    }

    /// Σ over of free · affine.
    fn contract(&mut self, free: NodeId, affine: NodeId, over: &[DimId]) -> Value {
        let Some(terms) = self.terms(affine) else { return Value::Opaque };
        let products = self.products(free);
        let mut all = Vec::new();
        for factors in &products {
            for term in &terms {
                let mut joined = term.factors.clone();
                joined.extend(factors.iter().copied());
                match self.contract_term(joined, term.base, over) {
                    Some(term) => all.push(term),
                    None => return Value::Opaque,
                }
            }
        }
        Value::Affine(all)
    }

    fn contract_term(&mut self, factors: Vec<NodeId>, base: Base, over: &[DimId]) -> Option<Term> {
        let (inside, mut outside): (Vec<NodeId>, Vec<NodeId>) =
            factors.into_iter().partition(|&f| over.iter().any(|&d| self.builder.has(f, d)));
        match base {
            Base::One => {
                let whole = self.builder.product(inside);
                outside.push(self.builder.sum(whole, over));
                Some(Term { factors: outside, base })
            }
            Base::Version(of) => {
                let dims = self.state_dims[&of.state].clone();
                if !over.iter().all(|d| dims.contains(d)) {
                    return None;
                }
                // The reader must not vary along the axes that stay.
                let weight = self.builder.product(inside);
                if self.builder.dims_of(weight).iter().any(|d| !over.contains(d)) {
                    return None;
                }
                let over = self.builder.canonical(over.iter().copied());
                let read = ReadTerm { of, weight, over };
                let at = self.reads.iter().position(|r| *r == read).unwrap_or_else(|| {
                    self.reads.push(read);
                    self.reads.len() - 1
                });
                Some(Term { factors: outside, base: Base::Read(at) })
            }
            Base::Read(at) => {
                let read = &self.reads[at];
                let kept: Vec<DimId> =
                    self.state_dims[&read.of.state].iter().copied().filter(|d| !read.over.contains(d)).collect();
                if over.iter().any(|d| kept.contains(d)) {
                    return None;
                }
                let whole = self.builder.product(inside);
                outside.push(self.builder.sum(whole, over));
                Some(Term { factors: outside, base })
            }
        }
    }

    /// A state-free node as a sum of products. A sum is multiplied out only where it mixes dimensions of a state:
    /// otherwise it is a factor like any other.
    pub fn products(&mut self, node: NodeId) -> Vec<Vec<NodeId>> {
        let op = self.builder.nodes[node.index()].op.clone();
        match op {
            Op::Binary(Binary::Mul, x, y) => {
                let (left, right) = (self.products(x), self.products(y));
                let mut all = Vec::with_capacity(left.len() * right.len());
                for l in &left {
                    for r in &right {
                        all.push(l.iter().chain(r).copied().collect());
                    }
                }
                all
            }
            Op::Binary(Binary::Div, x, y) => {
                let mut all = self.products(x);
                for factors in &mut all {
                    // A factor that varies with the divisor stays together with it: a part of each gradient cancels
                    // between the two, which rounding would spoil if they went into different sums.
                    let with = factors.iter().position(|&factor| {
                        let b = &*self.builder;
                        !self.mixes(factor)
                            && b.dims_of(y).iter().all(|&d| b.has(factor, d))
                            && have_a_source_in_common(b, factor, y)
                    });
                    match with {
                        Some(at) => factors[at] = self.builder.binary(Binary::Div, factors[at], y),
                        None => factors.push(self.builder.unary(Unary::Recip, y)),
                    }
                }
                all
            }
            Op::Unary(Unary::Neg, x) => {
                let minus = self.builder.constant(-1.0);
                let mut all = self.products(x);
                for factors in &mut all {
                    factors.push(minus);
                }
                all
            }
            Op::Broadcast(x) => self.products(x),
            Op::Binary(Binary::Add, x, y) if self.mixes(node) => {
                let mut all = self.products(x);
                all.extend(self.products(y));
                all
            }
            Op::Binary(Binary::Sub, x, y) if self.mixes(node) => {
                let minus = self.builder.constant(-1.0);
                let mut all = self.products(x);
                for mut factors in self.products(y) {
                    factors.push(minus);
                    all.push(factors);
                }
                all
            }
            _ => vec![vec![node]],
        }
    }

    /// Whether a node varies along more than one dimension of some state.
    fn mixes(&self, node: NodeId) -> bool {
        let dims = self.builder.dims_of(node);
        self.state_dims.values().any(|state| state.iter().filter(|d| dims.contains(d)).count() > 1)
    }
}
