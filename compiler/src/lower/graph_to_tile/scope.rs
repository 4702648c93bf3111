//! The values of one arena while it is lowered: where each of them lies and for how long. In: a plan. Out: regions of
//! scratch for operands and results. It never emits a statement.

use super::build::Builder;
use super::index::{Env, Region, number, scaled, variable};
use super::plan::Plan;
use crate::graph::ir::{DimId, Graph, Node, NodeId, Op};
use crate::tile::ir::{Affine, VarId};

/// The step of the outer loop, for what depends on the position in the sequence.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// Number of the step.
    pub step: VarId,
    /// Tokens a step takes.
    pub tokens: usize,
}

impl Position {
    /// The first token of the step.
    pub fn first(&self) -> Affine {
        scaled(&variable(self.step), self.tokens as i64)
    }
}

/// A copy of a stored value in another form, kept with it.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Of which value: the stored one or a view of it.
    pub of: NodeId,
    /// Which.
    pub form: Form,
    /// Where.
    pub region: Region,
}

/// Forms a stored value is copied to.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// With this order of dimensions.
    Order(Vec<DimId>),
    /// Its exponential.
    Exp,
}

/// One arena.
pub struct Scope<'a> {
    /// The graph, for its dimensions.
    pub graph: &'a Graph,
    /// Its nodes.
    pub nodes: &'a [Node],
    /// What is stored, and when.
    pub plan: Plan,
    /// Where stored values lie.
    pub regions: Vec<Option<Region>>,
    /// The value gives its buffer back when it is no longer used.
    pub owned: Vec<bool>,
    /// Somebody else's buffer, but it may be overwritten after the last use (a carry).
    pub lent: Vec<bool>,
    /// Reads to come.
    pub uses: Vec<usize>,
    /// Another value that holds the buffer for this one.
    pub holder: Vec<Option<NodeId>>,
    /// Copies kept with stored values.
    pub copies: Vec<Vec<Copied>>,
    /// Where in the sequence, if it matters.
    pub position: Option<Position>,
    /// Positions of dimensions that are fixed outside.
    pub outer: Env,
}

impl<'a> Scope<'a> {
    /// A scope in which nothing is computed yet.
    pub fn new(graph: &'a Graph, nodes: &'a [Node], plan: Plan) -> Self {
        let n = nodes.len();
        Scope {
            graph,
            nodes,
            uses: plan.uses.clone(),
            plan,
            regions: vec![None; n],
            owned: vec![false; n],
            lent: vec![false; n],
            holder: vec![None; n],
            copies: vec![Vec::new(); n],
            position: None,
            outer: Env::default(),
        }
    }

    /// The node behind an id.
    pub fn node(&self, id: NodeId) -> &'a Node {
        &self.nodes[id.index()]
    }

    /// Dimensions of a node.
    pub fn dims(&self, id: NodeId) -> &'a [DimId] {
        &self.nodes[id.index()].dims
    }

    /// Where a value lies that the plan put in scratch, or that is another name for part of such a value.
    pub fn region(&self, id: NodeId) -> Region {
        if let Some(region) = &self.regions[id.index()] {
            return region.clone();
        }
        let size = |d: DimId| self.graph.dim(d).size;
        match &self.node(id).op {
            Op::Broadcast(x) | Op::StopGradient(x) => self.region(*x),
            Op::Rename(x, from, to) => self.region(*x).renamed(*from, *to),
            Op::Index(x, dim, at) => self.region(*x).indexed(*dim, &number(*at as i64)),
            Op::DiagonalPart(x, row, col) => self.region(*x).diagonal(*row, *col),
            Op::Split(x, one, outer, inner) => self.region(*x).split(*one, *outer, *inner, size(*inner)),
            op => unreachable!("the plan stores what is read as an array, and this was not: {op:?}"),
        }
    }

    /// The stored value behind a chain of views.
    pub fn behind(&self, id: NodeId) -> NodeId {
        match super::plan::is_view(&self.node(id).op) {
            Some(x) if self.regions[id.index()].is_none() => self.behind(x),
            Some(_) | None => id,
        }
    }

    /// Scratch for a stored value, in canonical order.
    pub fn allocate(&mut self, b: &mut Builder, id: NodeId) -> Region {
        let region = b.allocate(&format!("v{}", id.0), self.dims(id));
        self.own(id, region.clone());
        region
    }

    /// Settles where a value lies; its buffer is given back after the last use.
    pub fn own(&mut self, id: NodeId, region: Region) {
        self.regions[id.index()] = Some(region);
        self.owned[id.index()] = true;
    }

    /// One reader of a stored value less.
    pub fn done(&mut self, b: &mut Builder, id: NodeId) {
        self.uses[id.index()] = self.uses[id.index()].saturating_sub(1);
        self.release_if_unused(b, id);
    }

    /// Gives the buffers of a value back if nobody will read it.
    pub fn release_if_unused(&mut self, b: &mut Builder, id: NodeId) {
        if self.uses[id.index()] > 0 || self.plan.fixed[id.index()] {
            return;
        }
        for copy in std::mem::take(&mut self.copies[id.index()]) {
            b.release(copy.region.buffer);
        }
        if std::mem::take(&mut self.owned[id.index()])
            && let Some(region) = &self.regions[id.index()]
        {
            b.release(region.buffer);
        }
        if let Some(holder) = self.holder[id.index()].take() {
            self.done(b, holder);
        }
    }
}
