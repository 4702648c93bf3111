//! Reverse mode: from a graph's results back to its inputs, one operation at a time.
//!
//! In: nodes of a builder and adjoints of some of them. Out: adjoints of others, as new nodes of the same builder. The
//! adjoint of `x` is `x_adj`. Exact; conventions: |x|′(0) = 0, a tie in min or max splits equally, sign′ = 0.
//!
//! One file although long: it is one match over all operations, and one reads it beside the list of them.

use super::gate_inside::{strict_cols, strict_gate, strict_rows, strict_weight};
use crate::derive::chunk::within_token;
use crate::derive::normalised::{norm_of, numerator_adjoint};
use crate::derive::rule::Rule;
use crate::error::CompileError;
use crate::graph::build::Builder;
use crate::graph::ir::{
    Binary, Body, Compare, DimId, GateKind, GatedPart, Gates, NodeId, Op, Scan, Side, Solve, Unary,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The rule.
pub const RULE: Rule = Rule {
    name: "transpose the chunk",
    before: "(o, S_C) = F(inputs, S₀)",
    after: "(d inputs, dS₀) = Fᵀ(do, dS_C), chunks from the last to the first, S₀ of each chunk kept by the forward",
    holds_when: "every operation of F has an adjoint that does not divide by a gate and does not subtract terms that \
                 cancel: gate gradients are accumulated over the segments that hold the gate",
    why: "the adjoint of a loop is the loop of the adjoints, backwards",
    source: "Griewank, Walther 2008 (reverse mode); Radul et al. 2022, arXiv 2204.10923 (linearise, then transpose)",
};

/// What has been collected for a node.
#[derive(Default)]
struct Adjoint {
    whole: Vec<NodeId>,
    /// By (dimension, position): what reached single positions.
    parts: BTreeMap<(DimId, usize), Vec<NodeId>>,
    /// Of a scan: by result.
    results: BTreeMap<usize, Vec<NodeId>>,
}

/// Adjoints of `wanted`, given adjoints of some results. A node nothing reaches has none.
pub fn transpose(
    b: &mut Builder,
    seeds: &[(NodeId, NodeId)],
    wanted: &[NodeId],
) -> Result<HashMap<NodeId, NodeId>, CompileError> {
    let n_nodes = seeds.iter().map(|(node, _)| node.index() + 1).max().unwrap_or(0);
    let mut active = vec![false; n_nodes];
    for i in 0..n_nodes {
        let id = NodeId(i as u32);
        let operands = b.nodes[i].op.operands();
        let stops = matches!(b.nodes[i].op, Op::StopGradient(_));
        active[i] = wanted.contains(&id) || (!stops && operands.iter().any(|x| active[x.index()]));
    }
    let mut pass = Transposer { b, adjoints: HashMap::new(), active };
    for &(node, adjoint) in seeds {
        pass.add(node, adjoint);
    }
    let wanted_set: HashSet<NodeId> = wanted.iter().copied().collect();
    let mut found = HashMap::new();
    for i in (0..n_nodes).rev() {
        let id = NodeId(i as u32);
        if !pass.active[i] {
            continue;
        }
        let Some(adjoint) = pass.adjoints.remove(&id) else { continue };
        if let Op::Scan(scan) = pass.b.nodes[i].op.clone() {
            pass.scan(&scan, adjoint.results)?;
            continue;
        }
        let Some(total) = pass.total(id, adjoint) else { continue };
        if wanted_set.contains(&id) {
            found.insert(id, total);
        }
        pass.through(id, total)?;
    }
    Ok(found)
}

struct Transposer<'a> {
    b: &'a mut Builder,
    adjoints: HashMap<NodeId, Adjoint>,
    active: Vec<bool>,
}

impl Transposer<'_> {
    fn is_active(&self, x: NodeId) -> bool {
        self.active.get(x.index()).copied().unwrap_or(false)
    }

    /// Adds to the adjoint of a node, summed over dimensions it lacks.
    fn add(&mut self, x: NodeId, x_adj: NodeId) {
        if !self.is_active(x) || self.b.as_constant(x_adj) == Some(0.0) {
            return;
        }
        let own = self.b.dims_of(x).to_vec();
        let extra: Vec<DimId> = self.b.dims_of(x_adj).iter().copied().filter(|d| !own.contains(d)).collect();
        let x_adj = if extra.is_empty() { x_adj } else { self.b.sum(x_adj, &extra) };
        self.adjoints.entry(x).or_default().whole.push(x_adj);
    }

    fn total(&mut self, id: NodeId, adjoint: Adjoint) -> Option<NodeId> {
        let mut terms = adjoint.whole;
        let mut by_dim: BTreeMap<DimId, Vec<Option<NodeId>>> = BTreeMap::new();
        for ((dim, at), list) in adjoint.parts {
            let size = self.b.size(dim);
            let sum = self.b.sum_all(list);
            by_dim.entry(dim).or_insert_with(|| vec![None; size])[at] = sum;
        }
        for (dim, parts) in by_dim {
            let dims: Vec<DimId> = self.b.dims_of(id).iter().copied().filter(|d| *d != dim).collect();
            let parts = parts.into_iter().map(|p| p.map(|x| self.b.broadcast(x, &dims))).collect();
            terms.push(self.b.stack(parts, dim));
        }
        self.b.sum_all(terms)
    }

    /// The adjoint with every dimension of the node it belongs to.
    fn full(&mut self, id: NodeId, y_adj: NodeId) -> NodeId {
        let dims = self.b.dims_of(id).to_vec();
        self.b.broadcast(y_adj, &dims)
    }

    fn through(&mut self, y: NodeId, y_adj: NodeId) -> Result<(), CompileError> {
        let node = self.b.nodes[y.index()].clone();
        self.b.rule = RULE.name;
        self.b.span = node.span;
        match node.op {
            Op::Input { .. } | Op::BodyInput(_) | Op::Const(_) | Op::StopGradient(_) => {}
            Op::Unary(function, x) => self.unary(function, x, y, y_adj),
            Op::Binary(function, a, c) => self.binary(function, a, c, y, y_adj),
            Op::Select { op, lhs, rhs, then, otherwise } => {
                let y_adj = self.full(y, y_adj);
                let zero = self.b.constant(0.0);
                if self.is_active(then) {
                    let part = self.b.select(op, lhs, rhs, y_adj, zero);
                    self.add(then, part);
                }
                if self.is_active(otherwise) {
                    let part = self.b.select(op, lhs, rhs, zero, y_adj);
                    self.add(otherwise, part);
                }
            }
            Op::Broadcast(x) => {
                // What the adjoint lacks it has equally everywhere: count it.
                let y_adj = self.full(y, y_adj);
                self.add(x, y_adj);
            }
            Op::Sum(x, _) => self.add(x, y_adj),
            Op::MaxOver(x, dim) => {
                let (zero, one) = (self.b.constant(0.0), self.b.constant(1.0));
                let is_top = self.b.select(Compare::Eq, x, y, one, zero);
                let count = self.b.sum(is_top, &[dim]);
                let share = self.b.binary(Binary::Div, y_adj, count);
                let x_adj = self.b.select(Compare::Eq, x, y, share, zero);
                self.add(x, x_adj);
            }
            Op::Contract(a, c, _) => {
                let result = node.dims;
                for (x, other) in [(a, c), (c, a)] {
                    if !self.is_active(x) {
                        continue;
                    }
                    let own = self.b.dims_of(x).to_vec();
                    let over: Vec<DimId> =
                        result.iter().chain(self.b.dims_of(other)).copied().filter(|d| !own.contains(d)).collect();
                    let over = self.b.canonical(over);
                    let x_adj = self.b.contract(y_adj, other, &over);
                    self.add(x, x_adj);
                }
            }
            Op::Rename(x, from, to) => {
                let y_adj = self.b.rename(y_adj, to, from);
                self.add(x, y_adj);
            }
            Op::Index(x, dim, at) => {
                if self.is_active(x) {
                    self.adjoints.entry(x).or_default().parts.entry((dim, at)).or_default().push(y_adj);
                }
            }
            Op::Stack(parts, dim) => {
                for (at, part) in parts.iter().enumerate() {
                    if let Some(part) = part {
                        let part_adj = self.b.index(y_adj, dim, at);
                        self.add(*part, part_adj);
                    }
                }
            }
            Op::Guard(x, _) => {
                let y_adj = self.full(y, y_adj);
                let x_adj = self.b.guard(y_adj, 0.0);
                self.add(x, x_adj);
            }
            Op::Diagonal(x, row, col) => {
                let y_adj = self.full(y, y_adj);
                let x_adj = self.b.diagonal_part(y_adj, row, col);
                self.add(x, x_adj);
            }
            Op::DiagonalPart(x, row, col) => {
                let y_adj = self.full(y, y_adj);
                let x_adj = self.b.diagonal(y_adj, row, col);
                self.add(x, x_adj);
            }
            Op::Split(x, dim, outer, inner) => {
                let y_adj = self.full(y, y_adj);
                let x_adj = self.b.merge(y_adj, outer, inner, dim);
                self.add(x, x_adj);
            }
            Op::Merge(x, outer, inner, dim) => {
                let y_adj = self.full(y, y_adj);
                let x_adj = self.b.split(y_adj, dim, outer, inner);
                self.add(x, x_adj);
            }
            Op::Segment { gates, row, col, diagonal } => {
                let weight = self.full(y, y_adj);
                for (event, gate) in gates.events.iter().enumerate() {
                    if self.is_active(gate.value) {
                        let dims = self.b.dims_of(gate.value).to_vec();
                        let op = Op::SegmentGrad { weight, gates: gates.clone(), row, col, diagonal, event };
                        let gate_adj = self.b.add(op, dims);
                        self.add(gate.value, gate_adj);
                    }
                }
            }
            Op::Boundary { side, gates, row } => self.boundary(y, y_adj, side, &gates, row),
            Op::Gated { part, weight, rows, cols, gates, row, col, axes } => {
                let y_adj = self.full(y, y_adj);
                let (weight, rows, cols) = match part {
                    GatedPart::Weight => (Some(y_adj), rows, cols),
                    GatedPart::Rows => (weight, Some(y_adj), cols),
                    GatedPart::Cols => (weight, rows, Some(y_adj)),
                    GatedPart::Gate(_) => return self.no_second_derivative("a gate's gradient"),
                };
                let (Some(weight), Some(rows), Some(cols)) = (weight, rows, cols) else {
                    return self.no_second_derivative("a gated form without an operand");
                };
                self.gated(part, weight, rows, cols, &gates, row, col, &axes);
            }
            Op::Solve(solve) => self.solve(y, y_adj, &solve)?,
            Op::ScanResult(scan, n) => {
                if self.is_active(scan) {
                    let y_adj = self.full(y, y_adj);
                    self.adjoints.entry(scan).or_default().results.entry(n).or_default().push(y_adj);
                }
            }
            Op::Inverse(_) => return self.no_second_derivative("the inverse of a system"),
            Op::SegmentGrad { .. } | Op::BoundaryGrad { .. } => return self.no_second_derivative("a gate's gradient"),
            Op::Scan(_) => unreachable!("scans are taken before"),
        }
        Ok(())
    }

    fn no_second_derivative(&self, of: &str) -> Result<(), CompileError> {
        Err(CompileError::Bug {
            pass: "transpose",
            message: format!("asked for the derivative of {of}"),
            dump: String::new(),
        })
    }

    fn unary(&mut self, function: Unary, x: NodeId, y: NodeId, y_adj: NodeId) {
        if !self.is_active(x) {
            return;
        }
        let b = &mut *self.b;
        let slope = match function {
            Unary::Neg => {
                let x_adj = b.neg(y_adj);
                return self.add(x, x_adj);
            }
            Unary::Sign => return,
            Unary::Exp => y,
            Unary::Expm1 => b.exp(x),
            Unary::Log => b.unary(Unary::Recip, x),
            Unary::Sqrt => {
                let half = b.constant(0.5);
                b.binary(Binary::Div, half, y)
            }
            Unary::Recip => {
                let square = b.unary(Unary::Square, y);
                b.neg(square)
            }
            Unary::Abs => b.unary(Unary::Sign, x),
            Unary::Square => {
                let two = b.constant(2.0);
                b.times(two, x)
            }
            Unary::Sigmoid => {
                // 1 − y would lose every digit where y is near 1.
                let minus = b.neg(x);
                let other = b.unary(Unary::Sigmoid, minus);
                b.times(y, other)
            }
            Unary::LogSigmoid => {
                let minus = b.neg(x);
                b.unary(Unary::Sigmoid, minus)
            }
            Unary::Softplus => b.unary(Unary::Sigmoid, x),
            Unary::Tanh => {
                // 4 σ(2x) σ(−2x), for the same reason.
                let two = b.constant(2.0);
                let twice = b.times(two, x);
                let minus = b.neg(twice);
                let (p, q) = (b.unary(Unary::Sigmoid, twice), b.unary(Unary::Sigmoid, minus));
                let product = b.times(p, q);
                let four = b.constant(4.0);
                b.times(four, product)
            }
            Unary::Sin => b.unary(Unary::Cos, x),
            Unary::Cos => {
                let sine = b.unary(Unary::Sin, x);
                b.neg(sine)
            }
            Unary::Erf => {
                let square = b.unary(Unary::Square, x);
                let minus = b.neg(square);
                let bell = b.exp(minus);
                let scale = b.constant(std::f64::consts::FRAC_2_SQRT_PI);
                b.times(scale, bell)
            }
        };
        let x_adj = b.times(y_adj, slope);
        self.add(x, x_adj);
    }

    fn binary(&mut self, function: Binary, a: NodeId, c: NodeId, y: NodeId, y_adj: NodeId) {
        let dims = self.b.dims_of(y).to_vec();
        // An adjoint that lacks dimensions stands for the same everywhere; a sum over them has to see that.
        let y_adj = self.b.broadcast(y_adj, &dims);
        match function {
            Binary::Add => {
                self.add(a, y_adj);
                self.add(c, y_adj);
            }
            Binary::Sub => {
                self.add(a, y_adj);
                if self.is_active(c) {
                    let c_adj = self.b.neg(y_adj);
                    self.add(c, c_adj);
                }
            }
            Binary::Mul => {
                for (x, other) in [(a, c), (c, a)] {
                    if self.is_active(x) {
                        let own = self.b.dims_of(x).to_vec();
                        let over: Vec<DimId> = dims.iter().copied().filter(|d| !own.contains(d)).collect();
                        let x_adj = self.b.contract(y_adj, other, &over);
                        self.add(x, x_adj);
                    }
                }
            }
            Binary::Div => {
                if self.is_active(a)
                    && let Some(norm) = norm_of(self.b, a, c)
                {
                    let a_adj = numerator_adjoint(self.b, &norm, c, y, y_adj);
                    return self.add(a, a_adj);
                }
                if self.is_active(a) {
                    let a_adj = self.b.binary(Binary::Div, y_adj, c);
                    self.add(a, a_adj);
                }
                if self.is_active(c) {
                    let ratio = self.b.binary(Binary::Div, y, c);
                    let part = self.b.times(y_adj, ratio);
                    let c_adj = self.b.neg(part);
                    self.add(c, c_adj);
                }
            }
            Binary::Min | Binary::Max => {
                let (zero, half) = (self.b.constant(0.0), self.b.constant(0.5));
                let shared = self.b.times(half, y_adj);
                for (x, other) in [(a, c), (c, a)] {
                    if self.is_active(x) {
                        let (small, large) = if function == Binary::Min { (x, other) } else { (other, x) };
                        let tied = self.b.select(Compare::Eq, x, other, shared, zero);
                        let x_adj = self.b.select(Compare::Lt, small, large, y_adj, tied);
                        self.add(x, x_adj);
                    }
                }
            }
            Binary::Pow => {
                if self.is_active(a) {
                    let one = self.b.constant(1.0);
                    let less = self.b.minus(c, one);
                    let power = self.b.binary(Binary::Pow, a, less);
                    let slope = self.b.times(c, power);
                    let a_adj = self.b.times(y_adj, slope);
                    self.add(a, a_adj);
                }
                if self.is_active(c) {
                    let log = self.b.unary(Unary::Log, a);
                    let slope = self.b.times(y, log);
                    let c_adj = self.b.times(y_adj, slope);
                    self.add(c, c_adj);
                }
            }
        }
    }

    fn boundary(&mut self, y: NodeId, y_adj: NodeId, side: Side, gates: &Gates, row: DimId) {
        let weight = self.full(y, y_adj);
        for (event, gate) in gates.events.iter().enumerate() {
            if self.is_active(gate.value) {
                let dims = self.b.dims_of(gate.value).to_vec();
                let op = Op::BoundaryGrad { weight, side, gates: gates.clone(), row, event };
                let gate_adj = self.b.add(op, dims);
                self.add(gate.value, gate_adj);
            }
        }
    }

    /// Adjoints of the other operands of the gated form; the one named by `part` is the adjoint that came in.
    #[allow(clippy::too_many_arguments)]
    fn gated(
        &mut self,
        part: GatedPart,
        weight: NodeId,
        rows: NodeId,
        cols: NodeId,
        gates: &Gates,
        row: DimId,
        col: DimId,
        axes: &[DimId],
    ) {
        if part != GatedPart::Weight && self.is_active(weight) {
            let adj = strict_weight(self.b, rows, cols, axes, gates.clone(), row, col);
            self.add(weight, adj);
        }
        if part != GatedPart::Rows && self.is_active(rows) {
            let adj = strict_rows(self.b, weight, cols, axes, gates.clone(), row, col);
            self.add(rows, adj);
        }
        if part != GatedPart::Cols && self.is_active(cols) {
            let adj = strict_cols(self.b, weight, rows, axes, gates.clone(), row, col);
            self.add(cols, adj);
        }
        for (event, gate) in gates.events.iter().enumerate() {
            if self.is_active(gate.value) {
                let adj = strict_gate(self.b, event, weight, rows, cols, axes, gates.clone(), row, col);
                self.add(gate.value, adj);
            }
        }
    }

    fn solve(&mut self, y: NodeId, y_adj: NodeId, solve: &Solve) -> Result<(), CompileError> {
        if solve.transposed {
            return self.no_second_derivative("a transposed system");
        }
        let x_adj = self.full(y, y_adj);
        let (row, col, slot, n) = (solve.row, solve.col, solve.slot, solve.rhs.len());
        let axes: Vec<DimId> = self.b.dims_of(y).iter().copied().filter(|d| *d != row && *d != slot).collect();
        // Y = Tᵀ dX
        let rhs = (0..n).map(|j| self.b.index(x_adj, slot, j)).collect();
        let dims = self.b.dims_of(y).to_vec();
        let transposed = self.b.add(Op::Solve(Solve { rhs, transposed: true, ..solve.clone() }), dims);
        let xs: Vec<NodeId> = (0..n).map(|i| self.b.index(y, slot, i)).collect();
        for j in 0..n {
            let y_j = self.b.index(transposed, slot, j);
            self.add(solve.rhs[j], y_j);
            let scaled = match solve.scale[j] {
                Some(scale) => self.b.times(scale, y_j),
                None => y_j,
            };
            let mut seen = Vec::new();
            for (i, &x_i) in xs.iter().enumerate() {
                let Some(lower) = solve.lower[j * n + i] else { continue };
                let gates = Gates { events: solve.gates.events.clone(), from: solve.writes[i], to: solve.reads[j] };
                let columns = self.b.rename(x_i, row, col);
                if gates.events.is_empty() {
                    if self.is_active(lower) {
                        let lower_adj = self.b.contract(scaled, columns, &axes);
                        self.add(lower, lower_adj);
                    }
                    if solve.scale[j].is_some() {
                        seen.push(self.b.contract(lower, columns, &[col]));
                    }
                    continue;
                }
                if self.is_active(lower) {
                    let strict = strict_weight(self.b, scaled, columns, &axes, gates.clone(), row, col);
                    self.add(lower, strict);
                }
                for (event, gate) in gates.events.iter().enumerate() {
                    if self.is_active(gate.value) {
                        let adj = strict_gate(self.b, event, lower, scaled, columns, &axes, gates.clone(), row, col);
                        self.add(gate.value, adj);
                    }
                }
                // Entries within one token.
                let own = i < j;
                let within = within_token(self.b, &gates.events, gates.from, gates.to);
                let lower_own = self.b.diagonal_part(lower, row, col);
                if own {
                    let product = self.b.times(scaled, x_i);
                    let decayed = match within {
                        Some(within) => self.b.times(product, within),
                        None => product,
                    };
                    if self.is_active(lower) {
                        let sum = self.b.sum(decayed, &axes);
                        let lower_adj = self.b.diagonal(sum, row, col);
                        self.add(lower, lower_adj);
                    }
                    for event in gates.from..gates.to.max(gates.from) {
                        let gate = gates.events[event];
                        if !self.is_active(gate.value) {
                            continue;
                        }
                        let weighted = self.b.times(lower_own, product);
                        let mut others = Vec::new();
                        for (e, other) in gates.events.iter().enumerate().take(gates.to).skip(gates.from) {
                            if e != event || gate.kind == GateKind::Log {
                                others.push(match other.kind {
                                    GateKind::Log => self.b.exp(other.value),
                                    GateKind::Factor => other.value,
                                });
                            }
                        }
                        let rest = self.b.product(others);
                        let gate_adj = self.b.times(weighted, rest);
                        self.add(gate.value, gate_adj);
                    }
                }
                if solve.scale[j].is_some() {
                    seen.push(strict_rows(self.b, lower, columns, &axes, gates.clone(), row, col));
                    if own {
                        let part = self.b.times(lower_own, x_i);
                        seen.push(match within {
                            Some(within) => self.b.times(part, within),
                            None => part,
                        });
                    }
                }
            }
            if let Some(scale) = solve.scale[j]
                && self.is_active(scale)
                && let Some(read) = self.b.sum_all(seen)
            {
                let scale_adj = self.b.times(y_j, read);
                self.add(scale, scale_adj);
            }
        }
        Ok(())
    }

    /// The adjoint of a loop over rows: the loop of the adjoints, from the last row to the first.
    fn scan(&mut self, scan: &Scan, results: BTreeMap<usize, Vec<NodeId>>) -> Result<(), CompileError> {
        let n_carries = scan.carries.len();
        let (n_seq, n_inv) = (scan.sequences.len(), scan.invariants.len());
        let t = scan.row;
        let carry_inputs = &scan.body.inputs[n_seq + n_inv..];
        // The states before each row are among the results of a scan built for a backward.
        let mut before = Vec::new();
        for input in carry_inputs {
            let Some(n) = scan.body.outputs.iter().skip(n_carries).position(|o| o == input) else {
                return Err(CompileError::Bug {
                    pass: "transpose",
                    message: "a scan does not give the states before each row".to_owned(),
                    dump: String::new(),
                });
            };
            before.push(n_carries + n);
        }
        let forward = self.b.add(Op::Scan(Box::new(scan.clone())), vec![]);
        let node_dims = |n: usize| scan.body.nodes[scan.body.outputs[n].index()].dims.clone();
        let mut sequences = scan.sequences.clone();
        for &n in &before {
            let dims: Vec<DimId> = node_dims(n).into_iter().chain([t]).collect();
            sequences.push(self.b.add(Op::ScanResult(forward, n), dims));
        }
        let mut cotangents: Vec<usize> = Vec::new();
        let mut carry_adjs = vec![None; n_carries];
        for (n, list) in results {
            let Some(adj) = self.b.sum_all(list) else { continue };
            if n < n_carries {
                carry_adjs[n] = Some(adj);
            } else {
                cotangents.push(n);
                sequences.push(adj);
            }
        }
        let active_inv: Vec<usize> = (0..n_inv).filter(|&i| self.is_active(scan.invariants[i])).collect();
        let active_seq: Vec<usize> = (0..n_seq).filter(|&i| self.is_active(scan.sequences[i])).collect();

        // One step backwards.
        let mut body = Builder::with_dims(self.b.dims.clone());
        body.rule = RULE.name;
        let mut inputs = Vec::new();
        let input = |body: &mut Builder, inputs: &mut Vec<NodeId>, dims: Vec<DimId>| {
            let id = body.add(Op::BodyInput(inputs.len()), dims);
            inputs.push(id);
            id
        };
        let body_dims = |id: NodeId| scan.body.nodes[id.index()].dims.clone();
        let seq: Vec<NodeId> =
            scan.body.inputs[..n_seq].iter().map(|i| input(&mut body, &mut inputs, body_dims(*i))).collect();
        let states: Vec<NodeId> = carry_inputs.iter().map(|i| input(&mut body, &mut inputs, body_dims(*i))).collect();
        let seeds_seq: Vec<NodeId> = cotangents.iter().map(|&n| input(&mut body, &mut inputs, node_dims(n))).collect();
        let inv: Vec<NodeId> = scan.body.inputs[n_seq..n_seq + n_inv]
            .iter()
            .map(|i| input(&mut body, &mut inputs, body_dims(*i)))
            .collect();
        let adj_in: Vec<NodeId> = (0..n_carries).map(|n| input(&mut body, &mut inputs, node_dims(n))).collect();
        let acc_in: Vec<NodeId> =
            active_inv.iter().map(|&i| input(&mut body, &mut inputs, body_dims(scan.body.inputs[n_seq + i]))).collect();

        let operands: Vec<NodeId> = seq.iter().chain(&inv).chain(&states).copied().collect();
        let outputs = body.inline(&scan.body, &operands);
        let mut seeds: Vec<(NodeId, NodeId)> = (0..n_carries).map(|n| (outputs[n], adj_in[n])).collect();
        seeds.extend(cotangents.iter().zip(&seeds_seq).map(|(&n, &adj)| (outputs[n], adj)));
        let wanted: Vec<NodeId> = states
            .iter()
            .copied()
            .chain(active_inv.iter().map(|&i| inv[i]))
            .chain(active_seq.iter().map(|&i| seq[i]))
            .collect();
        let found = transpose(&mut body, &seeds, &wanted)?;
        let zero = body.constant(0.0);
        let mut results = Vec::new();
        for &state in &states {
            let dims = body.dims_of(state).to_vec();
            let adj = found.get(&state).copied().unwrap_or(zero);
            results.push(body.broadcast(adj, &dims));
        }
        for (&i, &acc) in active_inv.iter().zip(&acc_in) {
            results.push(match found.get(&inv[i]) {
                Some(&adj) => body.plus(acc, adj),
                None => acc,
            });
        }
        for &i in &active_seq {
            let dims = body.dims_of(seq[i]).to_vec();
            let adj = found.get(&seq[i]).copied().unwrap_or(zero);
            results.push(body.broadcast(adj, &dims));
        }
        let result_dims: Vec<Vec<DimId>> = results.iter().map(|r| body.dims_of(*r).to_vec()).collect();

        let zero = self.b.constant(0.0);
        let mut carries = Vec::new();
        for (n, adj) in carry_adjs.into_iter().enumerate() {
            let adj = adj.unwrap_or(zero);
            carries.push(self.b.broadcast(adj, &node_dims(n)));
        }
        for &i in &active_inv {
            let dims = self.b.dims_of(scan.invariants[i]).to_vec();
            carries.push(self.b.broadcast(zero, &dims));
        }
        let n_back = carries.len();
        let back = Scan {
            sequences,
            invariants: scan.invariants.clone(),
            carries,
            body: Body { nodes: body.nodes, inputs, outputs: results },
            reverse: !scan.reverse,
            row: t,
        };
        let back = self.b.add(Op::Scan(Box::new(back)), vec![]);
        for (n, &carry) in scan.carries.iter().enumerate() {
            let adj = self.b.add(Op::ScanResult(back, n), result_dims[n].clone());
            self.add(carry, adj);
        }
        for (at, &i) in active_inv.iter().enumerate() {
            let n = n_carries + at;
            let adj = self.b.add(Op::ScanResult(back, n), result_dims[n].clone());
            self.add(scan.invariants[i], adj);
        }
        for (at, &i) in active_seq.iter().enumerate() {
            let n = n_back + at;
            let dims: Vec<DimId> = result_dims[n].iter().copied().chain([t]).collect();
            let adj = self.b.add(Op::ScanResult(back, n), dims);
            self.add(scan.sequences[i], adj);
        }
        Ok(())
    }
}
