//! Builds nodes: computes their dimensions, shares equal ones, and leaves out the trivial.
//!
//! In: operations on ids of the arena under construction. Out: ids. Never changes a node once made.

use super::ir::{Binary, Body, Compare, Dim, DimId, DimKind, Gates, Graph, InputKind, Node, NodeId, Op, Unary};
use chunkwise_dsl::span::Span;
use std::collections::HashMap;

/// An arena of nodes under construction.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    /// Dimensions made so far.
    pub dims: Vec<Dim>,
    /// Nodes made so far.
    pub nodes: Vec<Node>,
    /// Rule put on new nodes.
    pub rule: &'static str,
    /// Span put on new nodes.
    pub span: Option<Span>,
    seen: HashMap<String, NodeId>,
}

impl Builder {
    /// An empty arena over existing dimensions.
    pub fn with_dims(dims: Vec<Dim>) -> Self {
        Builder { dims, ..Builder::default() }
    }

    /// Goes on with an arena made before; ids stay.
    pub fn resume(dims: Vec<Dim>, nodes: Vec<Node>) -> Self {
        let mut builder = Builder::with_dims(dims);
        for (i, node) in nodes.iter().enumerate() {
            builder.seen.entry(format!("{:?}{:?}", node.op, node.dims)).or_insert(NodeId(i as u32));
        }
        builder.nodes = nodes;
        builder
    }

    /// The dimension of that name, made if there is none.
    pub fn dim(&mut self, name: &str, kind: DimKind, size: usize) -> DimId {
        if let Some(at) = self.dims.iter().position(|d| d.name == name) {
            return DimId(at as u32);
        }
        self.dims.push(Dim { name: name.to_owned(), kind, size });
        DimId(self.dims.len() as u32 - 1)
    }

    /// Number of positions of a dimension.
    pub fn size(&self, dim: DimId) -> usize {
        self.dims[dim.index()].size
    }

    /// Dimensions of a node.
    pub fn dims_of(&self, id: NodeId) -> &[DimId] {
        &self.nodes[id.index()].dims
    }

    /// Whether a node varies along a dimension.
    pub fn has(&self, id: NodeId, dim: DimId) -> bool {
        self.dims_of(id).contains(&dim)
    }

    /// The set of dimensions, in canonical order.
    pub fn canonical(&self, dims: impl IntoIterator<Item = DimId>) -> Vec<DimId> {
        let mut list: Vec<DimId> = dims.into_iter().collect();
        list.sort_by_key(|d| (self.dims[d.index()].kind, *d));
        list.dedup();
        list
    }

    /// Adds a node, or finds the equal one.
    pub fn add(&mut self, op: Op, dims: Vec<DimId>) -> NodeId {
        let dims = self.canonical(dims);
        let key = format!("{op:?}{dims:?}");
        if let Some(&id) = self.seen.get(&key) {
            return id;
        }
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { op, dims, span: self.span, rule: self.rule });
        self.seen.insert(key, id);
        id
    }

    /// A number.
    pub fn constant(&mut self, value: f64) -> NodeId {
        self.add(Op::Const(value), vec![])
    }

    /// The number a node is, if it is one (also when repeated along dimensions).
    pub fn as_constant(&self, id: NodeId) -> Option<f64> {
        match &self.nodes[id.index()].op {
            Op::Const(value) => Some(*value),
            Op::Broadcast(x) => self.as_constant(*x),
            _ => None,
        }
    }

    /// A tensor from outside.
    pub fn input(&mut self, name: &str, kind: InputKind, layout: Vec<DimId>, time: Option<DimId>) -> NodeId {
        let per_token = matches!(kind, InputKind::Token | InputKind::Cotangent);
        let dims = layout.iter().copied().chain(time.filter(|_| per_token)).collect();
        self.add(Op::Input { name: name.to_owned(), kind, layout }, dims)
    }

    /// Elementwise function of one value.
    pub fn unary(&mut self, function: Unary, x: NodeId) -> NodeId {
        if let (Unary::Neg, Some(value)) = (function, self.as_constant(x)) {
            let negated = self.constant(-value);
            let dims = self.dims_of(x).to_vec();
            return self.broadcast(negated, &dims);
        }
        if let (Unary::Neg, Op::Unary(Unary::Neg, inner)) = (function, &self.nodes[x.index()].op) {
            return *inner;
        }
        let dims = self.dims_of(x).to_vec();
        self.add(Op::Unary(function, x), dims)
    }

    /// −x
    pub fn neg(&mut self, x: NodeId) -> NodeId {
        self.unary(Unary::Neg, x)
    }

    /// eˣ
    pub fn exp(&mut self, x: NodeId) -> NodeId {
        self.unary(Unary::Exp, x)
    }

    /// Elementwise function of two values.
    pub fn binary(&mut self, function: Binary, a: NodeId, b: NodeId) -> NodeId {
        let dims = self.canonical(self.dims_of(a).iter().chain(self.dims_of(b)).copied());
        let (ca, cb) = (self.as_constant(a), self.as_constant(b));
        let kept = match (function, ca, cb) {
            (Binary::Mul, Some(1.0), _) | (Binary::Add, Some(0.0), _) => Some(b),
            (Binary::Mul | Binary::Div, _, Some(1.0)) | (Binary::Add | Binary::Sub, _, Some(0.0)) => Some(a),
            (Binary::Sub, Some(0.0), _) => Some(self.neg(b)),
            (Binary::Mul, Some(-1.0), _) => Some(self.neg(b)),
            (Binary::Mul, _, Some(-1.0)) => Some(self.neg(a)),
            _ => None,
        };
        if let Some(kept) = kept {
            return self.broadcast(kept, &dims);
        }
        if let (Some(x), Some(y)) = (ca, cb) {
            let value = match function {
                Binary::Add => x + y,
                Binary::Sub => x - y,
                Binary::Mul => x * y,
                Binary::Div => x / y,
                Binary::Min => x.min(y),
                Binary::Max => x.max(y),
                Binary::Pow => x.powf(y),
            };
            let folded = self.constant(value);
            return self.broadcast(folded, &dims);
        }
        self.add(Op::Binary(function, a, b), dims)
    }

    /// a + b
    pub fn plus(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Add, a, b)
    }

    /// a − b
    pub fn minus(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Sub, a, b)
    }

    /// a · b
    pub fn times(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.binary(Binary::Mul, a, b)
    }

    /// The product of all; 1 of none.
    pub fn product(&mut self, factors: impl IntoIterator<Item = NodeId>) -> NodeId {
        let one = self.constant(1.0);
        factors.into_iter().fold(one, |acc, f| self.times(acc, f))
    }

    /// The sum of what is there; nothing of nothing.
    pub fn sum_all(&mut self, terms: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
        let mut total = None;
        for term in terms {
            total = Some(match total {
                None => term,
                Some(acc) => self.plus(acc, term),
            });
        }
        total
    }

    /// `lhs op rhs ? then : otherwise`
    pub fn select(&mut self, op: Compare, lhs: NodeId, rhs: NodeId, then: NodeId, otherwise: NodeId) -> NodeId {
        let all = [lhs, rhs, then, otherwise];
        let dims = self.canonical(all.iter().flat_map(|&x| self.dims_of(x).to_vec()));
        self.add(Op::Select { op, lhs, rhs, then, otherwise }, dims)
    }

    /// The value with at least these dimensions.
    pub fn broadcast(&mut self, x: NodeId, dims: &[DimId]) -> NodeId {
        let all = self.canonical(self.dims_of(x).iter().chain(dims).copied());
        if all == self.dims_of(x) {
            return x;
        }
        let inner = match self.nodes[x.index()].op {
            Op::Broadcast(inner) => inner,
            _ => x,
        };
        self.add(Op::Broadcast(inner), all)
    }

    /// Σ over those dimensions; one the value lacks counts its size.
    pub fn sum(&mut self, x: NodeId, over: &[DimId]) -> NodeId {
        let (present, absent): (Vec<DimId>, Vec<DimId>) = over.iter().partition(|d| self.has(x, **d));
        let count: f64 = absent.iter().map(|d| self.size(*d) as f64).product();
        // A repeated value is not summed but counted.
        if let Op::Broadcast(inner) = self.nodes[x.index()].op
            && present.iter().any(|d| !self.has(inner, *d))
        {
            let kept: Vec<DimId> = self.dims_of(x).iter().copied().filter(|d| !present.contains(d)).collect();
            let summed = self.sum(inner, over);
            return self.broadcast(summed, &kept);
        }
        let summed = if present.is_empty() {
            x
        } else {
            let dims = self.dims_of(x).iter().copied().filter(|d| !present.contains(d)).collect();
            let present = self.canonical(present);
            self.add(Op::Sum(x, present), dims)
        };
        let count = self.constant(count);
        self.times(summed, count)
    }

    /// max over one dimension.
    pub fn max_over(&mut self, x: NodeId, dim: DimId) -> NodeId {
        if !self.has(x, dim) {
            return x;
        }
        let dims = self.dims_of(x).iter().copied().filter(|d| *d != dim).collect();
        self.add(Op::MaxOver(x, dim), dims)
    }

    /// Product, summed over `over`. A dimension only one operand has is summed in it first; one that neither has
    /// counts its size.
    pub fn contract(&mut self, a: NodeId, b: NodeId, over: &[DimId]) -> NodeId {
        let mut shared = Vec::new();
        let (mut only_a, mut only_b) = (Vec::new(), Vec::new());
        for &d in over {
            match (self.has(a, d), self.has(b, d)) {
                (true, true) => shared.push(d),
                (false, true) => only_b.push(d),
                (true, false) | (false, false) => only_a.push(d),
            }
        }
        let a = self.sum(a, &only_a);
        let b = self.sum(b, &only_b);
        // A repeated operand is counted, not multiplied out.
        for (x, other) in [(a, b), (b, a)] {
            if let Op::Broadcast(inner) = self.nodes[x.index()].op
                && shared.iter().any(|d| !self.has(inner, *d))
            {
                let kept: Vec<DimId> = self.dims_of(x).iter().copied().filter(|d| !shared.contains(d)).collect();
                let reduced = self.contract(inner, other, &shared);
                return self.broadcast(reduced, &kept);
            }
        }
        if shared.is_empty() {
            return self.times(a, b);
        }
        let shared = self.canonical(shared);
        let dims = self.dims_of(a).iter().chain(self.dims_of(b)).copied().filter(|d| !shared.contains(d)).collect();
        self.add(Op::Contract(a, b, shared), dims)
    }

    /// The value with dimension `from` called `to`.
    pub fn rename(&mut self, x: NodeId, from: DimId, to: DimId) -> NodeId {
        if from == to || !self.has(x, from) {
            return x;
        }
        if let Op::Rename(inner, first, middle) = self.nodes[x.index()].op
            && middle == from
        {
            return self.rename(inner, first, to);
        }
        let dims = self.dims_of(x).iter().map(|&d| if d == from { to } else { d }).collect();
        self.add(Op::Rename(x, from, to), dims)
    }

    /// One position of a dimension.
    pub fn index(&mut self, x: NodeId, dim: DimId, at: usize) -> NodeId {
        if !self.has(x, dim) {
            return x;
        }
        if let Op::Stack(parts, d) = &self.nodes[x.index()].op
            && *d == dim
            && let Some(part) = parts[at]
        {
            return part;
        }
        let dims = self.dims_of(x).iter().copied().filter(|d| *d != dim).collect();
        self.add(Op::Index(x, dim, at), dims)
    }

    /// Values side by side along a dimension none of them has.
    pub fn stack(&mut self, parts: Vec<Option<NodeId>>, dim: DimId) -> NodeId {
        let dims = self
            .canonical(parts.iter().flatten().flat_map(|&x| self.dims_of(x).to_vec()).chain([dim]).collect::<Vec<_>>());
        self.add(Op::Stack(parts, dim), dims)
    }

    /// The value with void rows replaced.
    pub fn guard(&mut self, x: NodeId, fill: f64) -> NodeId {
        if self.as_constant(x) == Some(fill) {
            return x;
        }
        let dims = self.dims_of(x).to_vec();
        self.add(Op::Guard(x, fill), dims)
    }

    /// On the diagonal of (row, col).
    pub fn diagonal(&mut self, x: NodeId, row: DimId, col: DimId) -> NodeId {
        let x = self.broadcast(x, &[row]);
        let dims = self.dims_of(x).iter().copied().chain([col]).collect();
        self.add(Op::Diagonal(x, row, col), dims)
    }

    /// The diagonal of (row, col).
    pub fn diagonal_part(&mut self, x: NodeId, row: DimId, col: DimId) -> NodeId {
        let dims = self.dims_of(x).iter().copied().filter(|d| *d != col).collect();
        self.add(Op::DiagonalPart(x, row, col), dims)
    }

    /// One dimension as two.
    pub fn split(&mut self, x: NodeId, dim: DimId, outer: DimId, inner: DimId) -> NodeId {
        if !self.has(x, dim) {
            return x;
        }
        let dims = self.dims_of(x).iter().copied().filter(|d| *d != dim).chain([outer, inner]).collect();
        self.add(Op::Split(x, dim, outer, inner), dims)
    }

    /// Two dimensions as one.
    pub fn merge(&mut self, x: NodeId, outer: DimId, inner: DimId, dim: DimId) -> NodeId {
        let x = self.broadcast(x, &[outer, inner]);
        let dims = self.dims_of(x).iter().copied().filter(|d| *d != outer && *d != inner).chain([dim]).collect();
        self.add(Op::Merge(x, outer, inner, dim), dims)
    }

    /// Dimensions of a decay's events together.
    pub fn gate_dims(&self, gates: &Gates) -> Vec<DimId> {
        self.canonical(gates.events.iter().flat_map(|g| self.dims_of(g.value).to_vec()))
    }

    /// Takes over a body's nodes with operands given for its inputs; returns ids of its outputs.
    pub fn inline(&mut self, body: &Body, operands: &[NodeId]) -> Vec<NodeId> {
        let mut map: Vec<NodeId> = Vec::with_capacity(body.nodes.len());
        for node in &body.nodes {
            let id = match node.op {
                Op::BodyInput(n) => operands[n],
                _ => {
                    let mut op = node.op.clone();
                    op.for_each_operand(&mut |x| *x = map[x.index()]);
                    self.add(op, node.dims.clone())
                }
            };
            map.push(id);
        }
        body.outputs.iter().map(|o| map[o.index()]).collect()
    }
}

/// The nodes that the given ones need, renumbered in order; and where each went.
pub fn reachable(nodes: &[Node], roots: &[NodeId]) -> (Vec<Node>, HashMap<NodeId, NodeId>) {
    let mut needed = vec![false; nodes.len()];
    let mut stack: Vec<NodeId> = roots.to_vec();
    while let Some(id) = stack.pop() {
        if !std::mem::replace(&mut needed[id.index()], true) {
            stack.extend(nodes[id.index()].op.operands());
        }
    }
    let mut map = HashMap::new();
    let mut kept: Vec<Node> = Vec::new();
    for (i, node) in nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
        let mut node = node.clone();
        node.op.for_each_operand(&mut |x| *x = map[x]);
        map.insert(NodeId(i as u32), NodeId(kept.len() as u32));
        kept.push(node);
    }
    (kept, map)
}

/// By node: how often it is used, by others and as a result.
pub fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![0; graph.nodes.len()];
    graph.nodes.iter().flat_map(|node| node.op.operands()).for_each(|x| uses[x.index()] += 1);
    let results = graph.outputs.iter().chain(&graph.saves).map(|(_, x)| *x);
    results.chain(graph.carries.iter().map(|carry| carry.output)).for_each(|x| uses[x.index()] += 1);
    uses
}
