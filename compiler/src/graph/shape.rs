//! The shape rule of every operation: which dimensions its result has.
//!
//! Comes in: an operation and the nodes before it. Goes out: its dimensions in canonical order, or what is wrong with
//! its operands. Never looks into a scan's body: that is the verifier's.

use super::ir::{DimId, DimKind, Gates, Graph, InputKind, Inverse, Node, NodeId, Op, Scan, Side, Solve};

/// The set of dimensions in canonical order.
pub fn canonical(graph: &Graph, dims: impl IntoIterator<Item = DimId>) -> Vec<DimId> {
    let mut list: Vec<DimId> = dims.into_iter().collect();
    list.sort_by_key(|&dim| (graph.dim(dim).kind, dim));
    list.dedup();
    list
}

/// The nodes that operands refer to.
#[derive(Clone, Copy)]
pub struct Scope<'s> {
    /// For dimensions and the row dimension.
    pub graph: &'s Graph,
    /// Nodes before the one in question.
    pub nodes: &'s [Node],
    /// Dimensions of a body's inputs; none outside a scan.
    pub inputs: Option<&'s [Vec<DimId>]>,
}

type Shape = Result<Vec<DimId>, String>;

impl Scope<'_> {
    fn dims(&self, x: NodeId) -> &[DimId] {
        &self.nodes[x.index()].dims
    }

    /// All dimensions of these operands, and some more.
    fn union(&self, operands: impl IntoIterator<Item = NodeId>, more: &[DimId]) -> Vec<DimId> {
        let all = operands.into_iter().flat_map(|x| self.dims(x).to_vec()).chain(more.iter().copied());
        canonical(self.graph, all)
    }

    fn name(&self, dim: DimId) -> &str {
        &self.graph.dim(dim).name
    }

    fn needs(&self, x: NodeId, dim: DimId) -> Result<(), String> {
        if self.dims(x).contains(&dim) { Ok(()) } else { Err(format!("%{} lacks dimension {}", x.0, self.name(dim))) }
    }

    fn lacks(&self, x: NodeId, dim: DimId) -> Result<(), String> {
        if self.dims(x).contains(&dim) { Err(format!("%{} has dimension {}", x.0, self.name(dim))) } else { Ok(()) }
    }

    fn same_size(&self, a: DimId, b: DimId) -> Result<(), String> {
        let (a, b) = (self.graph.dim(a), self.graph.dim(b));
        match a.size == b.size {
            true => Ok(()),
            false => Err(format!("{} has {} positions, {} has {}", a.name, a.size, b.name, b.size)),
        }
    }

    fn product(&self, dim: DimId, outer: DimId, inner: DimId) -> Result<(), String> {
        let size = |dim: DimId| self.graph.dim(dim).size;
        match size(outer).checked_mul(size(inner)) == Some(size(dim)) && outer != inner {
            true => Ok(()),
            false => {
                let names = [dim, outer, inner].map(|dim| self.name(dim));
                Err(format!("{} is not {} times {}", names[0], names[1], names[2]))
            }
        }
    }

    /// Dimensions of a node; `stated` are those it says it has, which a broadcast is free to choose.
    pub fn infer(&self, op: &Op, stated: &[DimId]) -> Shape {
        let minus = |dims: Vec<DimId>, gone: &[DimId]| -> Vec<DimId> {
            dims.into_iter().filter(|dim| !gone.contains(dim)).collect()
        };
        match op {
            Op::Input { kind, layout, .. } => self.input(*kind, layout),
            Op::BodyInput(number) => match self.inputs {
                None => Err("a body's input outside a scan".into()),
                Some(inputs) => inputs.get(*number).cloned().ok_or_else(|| format!("the scan has no input {number}")),
            },
            Op::Const(_) => Ok(Vec::new()),
            Op::Unary(_, x) | Op::StopGradient(x) => Ok(self.dims(*x).to_vec()),
            Op::Binary(_, a, b) => Ok(self.union([*a, *b], &[])),
            Op::Select { lhs, rhs, then, otherwise, .. } => Ok(self.union([*lhs, *rhs, *then, *otherwise], &[])),
            Op::Broadcast(x) => {
                for &dim in self.dims(*x) {
                    if !stated.contains(&dim) {
                        return Err(format!("it drops dimension {} of %{}", self.name(dim), x.0));
                    }
                }
                Ok(canonical(self.graph, stated.iter().copied()))
            }
            Op::Sum(x, over) => {
                over.iter().try_for_each(|&dim| self.needs(*x, dim))?;
                Ok(minus(self.dims(*x).to_vec(), over))
            }
            Op::MaxOver(x, dim) | Op::Index(x, dim, _) => {
                self.needs(*x, *dim)?;
                if let Op::Index(_, _, at) = op
                    && *at >= self.graph.dim(*dim).size
                {
                    return Err(format!("{} has no position {at}", self.name(*dim)));
                }
                Ok(minus(self.dims(*x).to_vec(), &[*dim]))
            }
            Op::Contract(a, b, over) => {
                over.iter().try_for_each(|&dim| self.needs(*a, dim).and(self.needs(*b, dim)))?;
                Ok(minus(self.union([*a, *b], &[]), over))
            }
            Op::Rename(x, from, to) => {
                self.needs(*x, *from)?;
                self.lacks(*x, *to)?;
                self.same_size(*from, *to)?;
                Ok(minus(self.union([*x], &[*to]), &[*from]))
            }
            Op::Stack(parts, dim) => {
                parts.iter().flatten().try_for_each(|&part| self.lacks(part, *dim))?;
                if parts.len() != self.graph.dim(*dim).size {
                    return Err(format!("{} parts along {}", parts.len(), self.name(*dim)));
                }
                Ok(self.union(parts.iter().flatten().copied(), &[*dim]))
            }
            Op::Guard(x, _) => {
                if let Some(time) = self.graph.time {
                    self.needs(*x, time)?;
                }
                Ok(self.dims(*x).to_vec())
            }
            Op::Diagonal(x, row, col) => {
                self.needs(*x, *row)?;
                self.lacks(*x, *col)?;
                self.same_size(*row, *col)?;
                Ok(self.union([*x], &[*col]))
            }
            Op::DiagonalPart(x, row, col) => {
                self.needs(*x, *row)?;
                self.needs(*x, *col)?;
                self.same_size(*row, *col)?;
                if row == col {
                    return Err("row and column are the same dimension".into());
                }
                Ok(minus(self.dims(*x).to_vec(), &[*col]))
            }
            Op::Split(x, dim, outer, inner) => {
                self.needs(*x, *dim)?;
                self.lacks(*x, *outer)?;
                self.lacks(*x, *inner)?;
                self.product(*dim, *outer, *inner)?;
                Ok(minus(self.union([*x], &[*outer, *inner]), &[*dim]))
            }
            Op::Merge(x, outer, inner, dim) => {
                self.needs(*x, *outer)?;
                self.needs(*x, *inner)?;
                self.lacks(*x, *dim)?;
                self.product(*dim, *outer, *inner)?;
                Ok(minus(self.union([*x], &[*dim]), &[*outer, *inner]))
            }
            Op::Segment { gates, row, col, .. } => self.segment(gates, *row, *col),
            Op::SegmentGrad { weight, gates, row, col, event, .. } => {
                let segment = self.segment(gates, *row, *col)?;
                self.needs(*weight, *row)?;
                self.needs(*weight, *col)?;
                self.weighs(*weight, &segment)?;
                self.event(gates, *event)
            }
            Op::Boundary { side, gates, row } => self.boundary(*side, gates, *row),
            Op::BoundaryGrad { weight, side, gates, row, event } => {
                let boundary = self.boundary(*side, gates, *row)?;
                self.weighs(*weight, &boundary)?;
                self.event(gates, *event)
            }
            Op::Gated { .. } => self.gated(op),
            Op::Solve(solve) => self.solve(solve),
            Op::Inverse(inverse) => self.inverse(inverse),
            Op::Scan(scan) => self.scan(scan),
            Op::ScanResult(x, number) => match &self.nodes[x.index()].op {
                Op::Scan(scan) => self.scan_result(scan, *number),
                _ => Err(format!("%{} is not a scan", x.0)),
            },
        }
    }

    fn input(&self, kind: InputKind, layout: &[DimId]) -> Shape {
        if self.inputs.is_some() {
            return Err("a tensor is read inside a scan".into());
        }
        let dims = canonical(self.graph, layout.iter().copied());
        if dims.len() != layout.len() {
            return Err("a dimension stands twice in its layout".into());
        }
        let Some(time) = self.graph.time else { return Ok(dims) };
        match kind {
            InputKind::Saved => Ok(dims),
            InputKind::Token | InputKind::Cotangent | InputKind::Head | InputKind::Carry if dims.contains(&time) => {
                Err(format!("its layout contains the row dimension {}", self.name(time)))
            }
            InputKind::Token | InputKind::Cotangent => Ok(canonical(self.graph, dims.into_iter().chain([time]))),
            InputKind::Head | InputKind::Carry => Ok(dims),
        }
    }

    /// Checks a decay; gives all dimensions of its events.
    fn decay(&self, gates: &Gates, row: DimId, col: Option<DimId>) -> Shape {
        if let Some(col) = col {
            self.same_size(row, col)?;
            if row == col {
                return Err("row and column are the same dimension".into());
            }
        }
        for clock in [gates.from, gates.to] {
            self.clock(gates, clock)?;
        }
        for gate in &gates.events {
            self.needs(gate.value, row)?;
            if let Some(col) = col {
                self.lacks(gate.value, col)?;
            }
        }
        Ok(self.union(gates.events.iter().map(|gate| gate.value), &[]))
    }

    fn clock(&self, gates: &Gates, clock: usize) -> Result<(), String> {
        match clock <= gates.events.len() {
            true => Ok(()),
            false => Err(format!("clock {clock} of a decay with {} events", gates.events.len())),
        }
    }

    fn event(&self, gates: &Gates, event: usize) -> Shape {
        match gates.events.get(event) {
            Some(gate) => Ok(self.dims(gate.value).to_vec()),
            None => Err(format!("event {event} of a decay with {} events", gates.events.len())),
        }
    }

    fn weighs(&self, weight: NodeId, weighed: &[DimId]) -> Result<(), String> {
        match self.dims(weight).iter().find(|dim| !weighed.contains(dim)) {
            None => Ok(()),
            Some(&dim) => {
                Err(format!("the weight %{} has dimension {}, what it weighs has not", weight.0, self.name(dim)))
            }
        }
    }

    fn segment(&self, gates: &Gates, row: DimId, col: DimId) -> Shape {
        let dims = self.decay(gates, row, Some(col))?;
        Ok(canonical(self.graph, dims.into_iter().chain([row, col])))
    }

    fn boundary(&self, side: Side, gates: &Gates, row: DimId) -> Shape {
        let dims = self.decay(gates, row, None)?;
        match side {
            Side::Prefix | Side::Suffix => Ok(canonical(self.graph, dims.into_iter().chain([row]))),
            Side::Total => Ok(dims.into_iter().filter(|&dim| dim != row).collect()),
        }
    }

    fn gated(&self, op: &Op) -> Shape {
        use super::ir::GatedPart;
        let Op::Gated { part, weight, rows, cols, gates, row, col, axes } = op else {
            unreachable!("called for gated forms only");
        };
        let events = self.decay(gates, *row, Some(*col))?;
        let strange = events
            .iter()
            .find(|&&dim| dim != *row && !axes.contains(&dim) && matches!(self.graph.dim(dim).kind, DimKind::Axis(_)));
        if let Some(&dim) = strange {
            return Err(format!("the gates' axis {} is not among its axes", self.name(dim)));
        }
        let absent = match part {
            GatedPart::Weight => Some(0),
            GatedPart::Rows => Some(1),
            GatedPart::Cols => Some(2),
            GatedPart::Gate(_) => None,
        };
        for (number, operand) in [weight, rows, cols].into_iter().enumerate() {
            if operand.is_none() != (absent == Some(number)) {
                let name = ["weight", "rows", "cols"][number];
                let fault = if operand.is_none() { "needs" } else { "has" };
                return Err(format!("this part of the form {fault} an operand `{name}`"));
            }
        }
        if let Some(weight) = weight {
            self.needs(*weight, *row)?;
            self.needs(*weight, *col)?;
            axes.iter().try_for_each(|&axis| self.lacks(*weight, axis))?;
        }
        for (operand, own, other) in [(rows, row, col), (cols, col, row)] {
            if let Some(operand) = operand {
                self.needs(*operand, *own)?;
                self.lacks(*operand, *other)?;
                axes.iter().try_for_each(|&axis| self.needs(*operand, axis))?;
            }
        }
        let operands = [weight, rows, cols].into_iter().flatten().copied();
        let events = gates.events.iter().map(|gate| gate.value);
        let all = self.union(operands.chain(events), &[*row, *col]);
        let without = |gone: &[DimId]| all.iter().copied().filter(|dim| !gone.contains(dim)).collect::<Vec<_>>();
        match part {
            GatedPart::Weight => Ok(without(axes)),
            GatedPart::Rows => Ok(canonical(self.graph, without(&[*col]).into_iter().chain(axes.iter().copied()))),
            GatedPart::Cols => Ok(canonical(self.graph, without(&[*row]).into_iter().chain(axes.iter().copied()))),
            GatedPart::Gate(event) => self.event(gates, *event),
        }
    }

    fn solve(&self, solve: &Solve) -> Shape {
        let Solve { lower, rhs, scale, gates, reads, writes, slot, row, col, transposed: _ } = solve;
        let n = rhs.len();
        if [lower.len(), scale.len(), reads.len(), writes.len(), self.graph.dim(*slot).size] != [n * n, n, n, n, n] {
            return Err(format!(
                "{n} right-hand sides with {} blocks, {} factors, {} read and {} write clocks, {} of size {}",
                lower.len(),
                scale.len(),
                reads.len(),
                writes.len(),
                self.name(*slot),
                self.graph.dim(*slot).size
            ));
        }
        self.decay(gates, *row, Some(*col))?;
        reads.iter().chain(writes).try_for_each(|&clock| self.clock(gates, clock))?;
        for &block in lower.iter().flatten() {
            self.needs(block, *row)?;
            self.needs(block, *col)?;
            self.lacks(block, *slot)?;
        }
        for &x in rhs.iter().chain(scale.iter().flatten()) {
            self.needs(x, *row)?;
            self.lacks(x, *col)?;
            self.lacks(x, *slot)?;
        }
        let blocks = lower.iter().flatten().chain(scale.iter().flatten()).copied();
        let events = gates.events.iter().map(|gate| gate.value);
        let all = self.union(rhs.iter().copied().chain(blocks).chain(events), &[*slot, *row]);
        Ok(all.into_iter().filter(|dim| dim != col).collect())
    }

    fn inverse(&self, inverse: &Inverse) -> Shape {
        let Inverse { lower, slot, from, row, col } = inverse;
        self.same_size(*slot, *from)?;
        self.same_size(*row, *col)?;
        if slot == from || row == col {
            return Err("the inverse of a system has two slot dimensions, a row and a column".into());
        }
        let n = self.graph.dim(*slot).size;
        if lower.len() != n * n {
            return Err(format!("{} blocks, {} has {n} positions", lower.len(), self.name(*slot)));
        }
        for &block in lower.iter().flatten() {
            [*row, *col].into_iter().try_for_each(|dim| self.needs(block, dim))?;
            [*slot, *from].into_iter().try_for_each(|dim| self.lacks(block, dim))?;
        }
        Ok(self.union(lower.iter().flatten().copied(), &[*slot, *from, *row, *col]))
    }

    /// A scan itself has no dimensions: its results have.
    fn scan(&self, scan: &Scan) -> Shape {
        scan.sequences.iter().try_for_each(|&x| self.needs(x, scan.row))?;
        scan.invariants.iter().chain(&scan.carries).try_for_each(|&x| self.lacks(x, scan.row))?;
        let n_inputs = scan.sequences.len() + scan.invariants.len() + scan.carries.len();
        if scan.body.inputs.len() != n_inputs {
            return Err(format!("its body takes {} inputs, it is given {n_inputs}", scan.body.inputs.len()));
        }
        if scan.body.outputs.len() < scan.carries.len() {
            return Err(format!("its body gives {} of {} carries", scan.body.outputs.len(), scan.carries.len()));
        }
        Ok(Vec::new())
    }

    fn scan_result(&self, scan: &Scan, number: usize) -> Shape {
        let Some(output) = scan.body.outputs.get(number) else {
            return Err(format!("the scan has {} results", scan.body.outputs.len()));
        };
        let inner = scan.body.nodes[output.index()].dims.iter().copied();
        match number < scan.carries.len() {
            true => Ok(inner.collect()),
            false => Ok(canonical(self.graph, inner.chain([scan.row]))),
        }
    }
}

/// Dimensions an operation at the end of the graph would have.
pub fn infer(op: &Op, graph: &Graph) -> Result<Vec<DimId>, String> {
    Scope { graph, nodes: &graph.nodes, inputs: None }.infer(op, &[])
}

/// Dimensions that a scan's body sees of each of its inputs.
pub fn body_inputs(scope: &Scope, scan: &Scan) -> Vec<Vec<DimId>> {
    let whole = scan.invariants.iter().chain(&scan.carries).map(|&x| scope.dims(x).to_vec());
    let one_row = |&x: &NodeId| scope.dims(x).iter().copied().filter(|&dim| dim != scan.row).collect();
    scan.sequences.iter().map(one_row).chain(whole).collect()
}
