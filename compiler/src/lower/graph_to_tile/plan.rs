//! What is stored and what is computed in passing. In: the nodes of a graph or of a scan's body, and where its values
//! go. Out: for every node whether it gets scratch of its own, the order in which stored values are computed, and how
//! often each is read. It never emits a statement.

use std::collections::BTreeMap;

use crate::graph::ir::{Binary, DimId, Graph, InputKind, Node, NodeId, Op, Unary};

/// What happens to a value in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// It is written somewhere, element by element.
    Store,
    /// It has to stay in scratch until the end of the step.
    Keep,
}

/// Something that is emitted in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// A stored value.
    Node(NodeId),
    /// A sink of kind [`Sink::Store`], by position.
    Sink(usize),
}

/// A triangle: zero where the column is beyond the row (`strict`: or on it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Row dimension.
    pub row: DimId,
    /// Column dimension.
    pub col: DimId,
    /// The diagonal is zero too.
    pub strict: bool,
}

/// How the nodes of one arena are computed.
pub struct Plan {
    /// Has scratch of its own.
    pub stored: Vec<bool>,
    /// Is added into the result of another node, and exists nowhere else.
    pub absorbed: Vec<bool>,
    /// Depends on parameters and numbers only.
    pub fixed: Vec<bool>,
    /// Is zero above a diagonal.
    pub lower: Vec<Option<Lower>>,
    /// Nobody looks at its elements above this diagonal.
    pub masked: Vec<Option<Lower>>,
    /// Number of operand positions it stands in, sinks included.
    pub users: Vec<usize>,
    /// What is emitted, in order.
    pub order: Vec<Root>,
    /// What each of `order` reads, without repetition: stored nodes only.
    pub reads: Vec<Vec<NodeId>>,
    /// How many of `order` (and kept sinks) read a stored node.
    pub uses: Vec<usize>,
}

/// Whether a node may be computed where it is read.
fn may_inline(op: &Op) -> bool {
    match op {
        Op::Const(_)
        | Op::Unary(..)
        | Op::Binary(..)
        | Op::Select { .. }
        | Op::Broadcast(_)
        | Op::Rename(..)
        | Op::Index(..)
        | Op::Guard(..)
        | Op::Diagonal(..)
        | Op::DiagonalPart(..)
        | Op::Split(..)
        | Op::StopGradient(_) => true,
        Op::Contract(_, _, over) => over.is_empty(),
        Op::Segment { gates, .. } => gates.events.is_empty(),
        Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Sum(..)
        | Op::MaxOver(..)
        | Op::Stack(..)
        | Op::Merge(..)
        | Op::SegmentGrad { .. }
        | Op::Boundary { .. }
        | Op::BoundaryGrad { .. }
        | Op::Gated { .. }
        | Op::Solve(_)
        | Op::Inverse(_)
        | Op::Scan(_)
        | Op::ScanResult(..) => false,
    }
}

/// Whether a node is another name for the elements of its operand.
pub fn is_view(op: &Op) -> Option<NodeId> {
    match op {
        Op::Broadcast(x)
        | Op::Rename(x, _, _)
        | Op::Index(x, _, _)
        | Op::DiagonalPart(x, _, _)
        | Op::Split(x, _, _, _)
        | Op::StopGradient(x) => Some(*x),
        Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Const(_)
        | Op::Unary(..)
        | Op::Binary(..)
        | Op::Select { .. }
        | Op::Sum(..)
        | Op::MaxOver(..)
        | Op::Contract(..)
        | Op::Stack(..)
        | Op::Guard(..)
        | Op::Diagonal(..)
        | Op::Merge(..)
        | Op::Segment { .. }
        | Op::SegmentGrad { .. }
        | Op::Boundary { .. }
        | Op::BoundaryGrad { .. }
        | Op::Gated { .. }
        | Op::Solve(_)
        | Op::Inverse(_)
        | Op::Scan(_)
        | Op::ScanResult(..) => None,
    }
}

/// Operands that have to be in scratch, and operands whose elements are computed in passing.
fn operands(op: &Op) -> (Vec<NodeId>, Vec<NodeId>) {
    match op {
        Op::Contract(_, _, over) if !over.is_empty() => (op.operands(), Vec::new()),
        Op::Merge(x, ..) => (vec![*x], Vec::new()),
        Op::Solve(solve) => {
            let blocks = solve.lower.iter().chain(&solve.scale).copied().flatten();
            (blocks.chain(solve.gates.events.iter().map(|e| e.value)).collect(), solve.rhs.clone())
        }
        Op::Scan(scan) => (scan.sequences.iter().chain(&scan.invariants).copied().collect(), scan.carries.clone()),
        Op::Segment { .. }
        | Op::SegmentGrad { .. }
        | Op::Boundary { .. }
        | Op::BoundaryGrad { .. }
        | Op::Gated { .. } => (op.operands(), Vec::new()),
        Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Const(_)
        | Op::Unary(..)
        | Op::Binary(..)
        | Op::Select { .. }
        | Op::Broadcast(_)
        | Op::Sum(..)
        | Op::MaxOver(..)
        | Op::Contract(..)
        | Op::Rename(..)
        | Op::Index(..)
        | Op::Stack(..)
        | Op::Guard(..)
        | Op::Diagonal(..)
        | Op::DiagonalPart(..)
        | Op::Split(..)
        | Op::StopGradient(_)
        | Op::Inverse(_)
        | Op::ScanResult(..) => (Vec::new(), op.operands()),
    }
}

/// Rough price of an element, in additions.
fn price(op: &Op) -> usize {
    match op {
        Op::Unary(Unary::Neg | Unary::Abs | Unary::Square | Unary::Sign, _) => 1,
        Op::Unary(Unary::Recip | Unary::Sqrt, _) | Op::Binary(Binary::Div, ..) => 6,
        Op::Unary(..) | Op::Binary(Binary::Pow, ..) => 12,
        Op::Binary(..) | Op::Guard(..) | Op::Select { .. } => 1,
        Op::Contract(..) | Op::Diagonal(..) | Op::Segment { .. } => 1,
        Op::Const(_)
        | Op::Broadcast(_)
        | Op::Rename(..)
        | Op::Index(..)
        | Op::DiagonalPart(..)
        | Op::Split(..)
        | Op::StopGradient(_)
        | Op::Input { .. }
        | Op::BodyInput(_)
        | Op::Sum(..)
        | Op::MaxOver(..)
        | Op::Stack(..)
        | Op::Merge(..)
        | Op::SegmentGrad { .. }
        | Op::Boundary { .. }
        | Op::BoundaryGrad { .. }
        | Op::Gated { .. }
        | Op::Solve(_)
        | Op::Inverse(_)
        | Op::Scan(_)
        | Op::ScanResult(..) => 0,
    }
}

impl Plan {
    /// Moves inputs to the front, so that they are under way together.
    pub fn inputs_first(&mut self, nodes: &[Node]) {
        let is_input = |root: &Root| match root {
            Root::Node(id) => matches!(nodes[id.index()].op, Op::Input { .. }),
            Root::Sink(_) => false,
        };
        let mut numbers: Vec<usize> = (0..self.order.len()).collect();
        numbers.sort_by_key(|&n| !is_input(&self.order[n]));
        self.order = numbers.iter().map(|&n| self.order[n]).collect();
        self.reads = numbers.iter().map(|&n| std::mem::take(&mut self.reads[n])).collect();
    }

    /// Plans one arena; `sinks` say where its values go.
    pub fn new(graph: &Graph, nodes: &[Node], sinks: &[(NodeId, Sink)]) -> Plan {
        let n = nodes.len();
        let fixed = fixed(graph, nodes);
        let lower = triangles(nodes);
        let mut users = vec![0; n];
        let mut outside = vec![false; n];
        for (id, node) in nodes.iter().enumerate() {
            for x in node.op.operands() {
                users[x.index()] += 1;
                outside[x.index()] |= !fixed[id];
            }
        }
        for (x, _) in sinks {
            users[x.index()] += 1;
            outside[x.index()] = true;
        }
        let masked = masked(nodes, &lower, sinks);

        let mut weight = vec![0usize; n];
        for (id, node) in nodes.iter().enumerate() {
            if may_inline(&node.op) {
                let below: usize = node.op.operands().iter().map(|x| weight[x.index()]).sum();
                weight[id] = price(&node.op) + below.min(1000);
            }
        }
        // From the last node to the first: by then every reader of a node is settled.
        let count = |dims: &[DimId]| dims.iter().map(|&d| graph.dim(d).size).product::<usize>();
        let mut stored = vec![false; n];
        let mut array = vec![false; n];
        // The roots a node is computed in: id, number of elements computed there, whether it is a reduction.
        let mut roots: Vec<BTreeMap<usize, (usize, bool)>> = vec![BTreeMap::new(); n];
        for (k, (x, sink)) in sinks.iter().enumerate() {
            match sink {
                Sink::Store => {
                    roots[x.index()].insert(n + k, (count(&nodes[x.index()].dims), false));
                }
                Sink::Keep => array[x.index()] = true,
            }
        }
        for id in (0..n).rev() {
            let node = &nodes[id];
            let size = count(&node.dims);
            let view = is_view(&node.op).is_some();
            stored[id] = if !may_inline(&node.op) {
                true
            } else if view {
                false
            } else {
                let dear = weight[id] > 1;
                array[id]
                    || dear
                        && (roots[id].len() > 1
                            || roots[id].values().any(|&(loops, _)| loops > size)
                            || users[id] > 1 && roots[id].values().any(|&(_, reduction)| reduction)
                            || fixed[id] && outside[id])
            };
            let (arrays, inline) = operands(&node.op);
            for x in arrays {
                array[x.index()] = true;
            }
            let reduction = matches!(node.op, Op::Sum(..) | Op::MaxOver(..));
            for x in inline {
                if view && array[id] {
                    array[x.index()] = true;
                }
                if stored[id] {
                    let loops = if reduction { count(&nodes[x.index()].dims) } else { size };
                    let loops = match &node.op {
                        Op::Stack(parts, _) => loops / parts.len().max(1),
                        Op::Solve(solve) => loops / solve.rhs.len().max(1),
                        Op::Scan(_) => count(&nodes[x.index()].dims),
                        _ => loops,
                    };
                    roots[x.index()].insert(id, (loops, reduction));
                } else {
                    let above = roots[id].clone();
                    roots[x.index()].extend(above);
                }
            }
        }
        let mut plan = Plan {
            absorbed: vec![false; n],
            stored,
            fixed,
            lower,
            masked,
            users,
            order: Vec::new(),
            reads: Vec::new(),
            uses: vec![0; n],
        };
        for id in 0..n {
            if plan.stored[id] {
                plan.absorb(nodes, NodeId(id as u32), NodeId(id as u32));
            }
        }
        for id in 0..n {
            plan.stored[id] &= !plan.absorbed[id];
        }
        plan.schedule(nodes, sinks);
        plan
    }

    /// Marks the products that can be accumulated into the sum `root`.
    fn absorb(&mut self, nodes: &[Node], root: NodeId, at: NodeId) {
        let terms = match &nodes[at.index()].op {
            Op::Binary(Binary::Add | Binary::Sub, a, b) => vec![*a, *b],
            Op::Unary(Unary::Neg, a) if at != root => vec![*a],
            _ => return,
        };
        for term in terms {
            let node = &nodes[term.index()];
            if self.users[term.index()] != 1 || node.dims != nodes[root.index()].dims {
                continue;
            }
            match &node.op {
                Op::Contract(a, b, over) if !over.is_empty() && !node.dims.is_empty() => {
                    let last = node.dims[node.dims.len() - 1];
                    let batch = [a, b].iter().all(|x| nodes[x.index()].dims.contains(&last));
                    if !batch {
                        self.absorbed[term.index()] = true;
                    }
                }
                _ if !self.stored[term.index()] => self.absorb(nodes, root, term),
                _ => {}
            }
        }
    }

    /// The stored nodes that computing `id` reads.
    fn reads_of(&self, nodes: &[Node], id: NodeId, found: &mut Vec<NodeId>) {
        for x in nodes[id.index()].op.operands() {
            self.reads_through(nodes, x, found);
        }
    }

    fn reads_through(&self, nodes: &[Node], x: NodeId, found: &mut Vec<NodeId>) {
        if self.stored[x.index()] {
            if !found.contains(&x) {
                found.push(x);
            }
        } else {
            self.reads_of(nodes, x, found);
        }
    }

    fn schedule(&mut self, nodes: &[Node], sinks: &[(NodeId, Sink)]) {
        let mut order: Vec<((usize, usize), Root)> = Vec::new();
        for id in 0..nodes.len() {
            if self.stored[id] {
                order.push(((id, 0), Root::Node(NodeId(id as u32))));
            }
        }
        for (k, (x, sink)) in sinks.iter().enumerate() {
            if *sink == Sink::Store {
                order.push(((x.index(), 1), Root::Sink(k)));
            }
        }
        order.sort_by_key(|(key, _)| *key);
        let mut reads = Vec::new();
        for (_, root) in &order {
            let mut found = Vec::new();
            match *root {
                Root::Node(id) => self.reads_of(nodes, id, &mut found),
                Root::Sink(k) => self.reads_through(nodes, sinks[k].0, &mut found),
            }
            reads.push(found);
        }
        // What only the next step needs comes last, so that it may overwrite what this step was given.
        let mut early = Vec::new();
        let mut late = Vec::new();
        for (k, (_, root)) in order.iter().enumerate() {
            let delayed = match root {
                Root::Node(id) => {
                    sinks.contains(&(*id, Sink::Keep))
                        && matches!(nodes[id.index()].op, Op::Binary(..) | Op::Unary(..))
                        && !reads.iter().any(|r| r.contains(id))
                }
                Root::Sink(_) => false,
            };
            if delayed { late.push(k) } else { early.push(k) }
        }
        for k in early.into_iter().chain(late) {
            self.order.push(order[k].1);
            self.reads.push(std::mem::take(&mut reads[k]));
        }
        for read in self.reads.iter().flatten() {
            self.uses[read.index()] += 1;
        }
        for (x, sink) in sinks {
            if *sink == Sink::Keep {
                let mut found = Vec::new();
                self.reads_through(nodes, *x, &mut found);
                for read in found {
                    self.uses[read.index()] += 1;
                }
            }
        }
    }
}

/// Nodes that depend on parameters and numbers only.
fn fixed(graph: &Graph, nodes: &[Node]) -> Vec<bool> {
    let mut fixed: Vec<bool> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let of = match &node.op {
            Op::Input { kind, .. } => *kind == InputKind::Head,
            Op::BodyInput(_) | Op::Guard(..) | Op::Scan(_) | Op::ScanResult(..) => false,
            op => op.operands().iter().all(|x| fixed[x.index()]),
        };
        fixed.push(of && graph.time.is_none_or(|t| !node.dims.contains(&t)));
    }
    fixed
}

/// Nodes that are zero above a diagonal.
fn triangles(nodes: &[Node]) -> Vec<Option<Lower>> {
    let mut found: Vec<Option<Lower>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let of = |x: &NodeId| found[x.index()];
        let lower = match &node.op {
            Op::Segment { row, col, diagonal, .. } => Some(Lower { row: *row, col: *col, strict: !diagonal }),
            Op::Gated { part: crate::graph::ir::GatedPart::Weight, row, col, .. } => {
                Some(Lower { row: *row, col: *col, strict: true })
            }
            Op::Diagonal(_, row, col) => Some(Lower { row: *row, col: *col, strict: false }),
            Op::Binary(Binary::Mul, a, b) => match (of(a), of(b)) {
                (Some(a), Some(b)) if a.row == b.row && a.col == b.col => {
                    Some(Lower { strict: a.strict || b.strict, ..a })
                }
                (a, b) => a.or(b),
            },
            Op::Contract(a, b, over) if over.is_empty() => of(a).or(of(b)),
            Op::Binary(Binary::Add | Binary::Sub, a, b) => match (of(a), of(b)) {
                (Some(a), Some(b)) if a.row == b.row && a.col == b.col => {
                    Some(Lower { strict: a.strict && b.strict, ..a })
                }
                _ => None,
            },
            Op::Unary(Unary::Neg, x) | Op::Broadcast(x) | Op::StopGradient(x) | Op::Index(x, _, _) => of(x),
            Op::Rename(x, from, to) => of(x).map(|l| Lower {
                row: if l.row == *from { *to } else { l.row },
                col: if l.col == *from { *to } else { l.col },
                ..l
            }),
            _ => None,
        };
        found.push(lower.filter(|l| node.dims.contains(&l.row) && node.dims.contains(&l.col)));
    }
    found
}

/// Values of which nothing beyond a diagonal is ever looked at, from the last node to the first.
fn masked(nodes: &[Node], lower: &[Option<Lower>], sinks: &[(NodeId, Sink)]) -> Vec<Option<Lower>> {
    // Outside: whether anybody looks. Inside: the triangle, none for everything.
    let mut seen: Vec<Option<Option<Lower>>> = vec![None; nodes.len()];
    fn look(seen: &mut [Option<Option<Lower>>], x: NodeId, by: Option<Lower>) {
        let entry = &mut seen[x.index()];
        *entry = Some(match (*entry, by) {
            (None, by) => by,
            (Some(Some(a)), Some(b)) if a.row == b.row && a.col == b.col => {
                Some(Lower { strict: a.strict && b.strict, ..a })
            }
            _ => None,
        });
    }
    for (x, _) in sinks {
        look(&mut seen, *x, None);
    }
    for (id, node) in nodes.iter().enumerate().rev() {
        let own = seen[id].flatten();
        match &node.op {
            Op::Binary(Binary::Mul, a, b) => {
                look(&mut seen, *a, lower[b.index()].or(own));
                look(&mut seen, *b, lower[a.index()].or(own));
            }
            Op::Binary(_, a, b) => {
                look(&mut seen, *a, own);
                look(&mut seen, *b, own);
            }
            Op::Unary(_, x) | Op::StopGradient(x) => look(&mut seen, *x, own),
            Op::SegmentGrad { weight, row, col, diagonal, gates, .. } => {
                look(&mut seen, *weight, Some(Lower { row: *row, col: *col, strict: !diagonal }));
                gates.events.iter().for_each(|e| look(&mut seen, e.value, None));
            }
            Op::Gated { weight, rows, cols, gates, row, col, .. } => {
                if let Some(weight) = weight {
                    look(&mut seen, *weight, Some(Lower { row: *row, col: *col, strict: true }));
                }
                rows.iter().chain(cols).for_each(|x| look(&mut seen, *x, None));
                gates.events.iter().for_each(|e| look(&mut seen, e.value, None));
            }
            op => op.operands().into_iter().for_each(|x| look(&mut seen, x, None)),
        }
    }
    (0..nodes.len())
        .map(|id| {
            let dims = &nodes[id].dims;
            seen[id].flatten().filter(|l| dims.contains(&l.row) && dims.contains(&l.col))
        })
        .collect()
}

/// Whether the elements of a product beyond a triangle may be left out.
pub fn may_skip(nodes: &[Node], id: NodeId, triangle: &Lower) -> bool {
    let node = &nodes[id.index()];
    let Op::Contract(a, b, over) = &node.op else { return false };
    let ends = node.dims.contains(&triangle.row) && node.dims.last() == Some(&triangle.col);
    !over.is_empty() && ends && masked_shape(node, &nodes[a.index()], &nodes[b.index()])
}

/// Whether a product's last dimension comes from one operand and the one before from the other.
fn masked_shape(node: &Node, a: &Node, b: &Node) -> bool {
    let n = node.dims.len();
    if n < 2 {
        return false;
    }
    let (row, col) = (node.dims[n - 2], node.dims[n - 1]);
    let has = |x: &Node, d| x.dims.contains(&d);
    (has(a, row) && !has(a, col) && has(b, col) && !has(b, row))
        || (has(b, row) && !has(b, col) && has(a, col) && !has(a, row))
}
