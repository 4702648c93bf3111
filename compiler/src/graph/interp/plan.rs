//! A list of nodes with every index worked out once, and its evaluation.
//!
//! Comes in: the nodes of a graph or of a scan's body. Goes out: a plan, and a frame of values it is evaluated in, node
//! by node in order. Never looks at tensors; inputs are filled in before.

use super::gated::{GatedPlan, InversePlan, Lines, SolvePlan, Task};
use crate::graph::ir::{Binary, Compare, DimId, Gates, Graph, Node, NodeId, Op, Scan, Unary};
use crate::graph::scalar::compare;
use crate::graph::shape::canonical;

/// Row-major strides of dimensions in that order.
pub fn strides(graph: &Graph, dims: &[DimId]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for at in (0..dims.len().saturating_sub(1)).rev() {
        strides[at] = strides[at + 1] * graph.dim(dims[at + 1]).size;
    }
    strides
}

/// A number for every position of the dimensions, in row-major order.
pub fn table(graph: &Graph, dims: &[DimId], number: impl Fn(&[usize]) -> usize) -> Vec<usize> {
    let sizes = graph.sizes(dims);
    let mut position = vec![0; dims.len()];
    let count = sizes.iter().product();
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        numbers.push(number(&position));
        for at in (0..dims.len()).rev() {
            position[at] += 1;
            if position[at] < sizes[at] {
                break;
            }
            position[at] = 0;
        }
    }
    numbers
}

/// Where, for every position of `over`, the element of a value over `dims` stands. A dimension of `over` that the value
/// lacks does not matter; one of the value that `over` lacks stays at 0.
pub fn offsets(graph: &Graph, over: &[DimId], dims: &[DimId]) -> Vec<usize> {
    let factors: Vec<usize> = over.iter().map(|&dim| stride(graph, dims, dim)).collect();
    table(graph, over, |position| position.iter().zip(&factors).map(|(p, factor)| p * factor).sum())
}

/// Elements from one position of `dim` to the next in a value over `dims`; 0 if it lacks the dimension.
pub fn stride(graph: &Graph, dims: &[DimId], dim: DimId) -> usize {
    dims.iter().position(|&d| d == dim).map_or(0, |at| strides(graph, dims)[at])
}

/// `dims` without some of them.
pub fn without(dims: &[DimId], gone: &[DimId]) -> Vec<DimId> {
    dims.iter().copied().filter(|dim| !gone.contains(dim)).collect()
}

/// An operand, and which of its elements goes with each element of the result.
struct Gather {
    node: NodeId,
    index: Vec<usize>,
}

/// What is done for a node.
enum Work {
    /// Filled in before.
    Given,
    Constant(f64),
    Unary(Unary, NodeId),
    Binary(Binary, Gather, Gather),
    Select(Compare, [Gather; 4]),
    Copy(Gather),
    /// By element of the result, and by position summed over.
    Sum(Gather, Vec<usize>),
    Max(Gather, Vec<usize>),
    Contract(Gather, Vec<usize>, Gather, Vec<usize>),
    /// By part: which elements of the result, and which of the part.
    Scatter(Vec<(Vec<usize>, Gather)>),
    /// By element of the result, its row.
    Guard(NodeId, Vec<usize>, f64),
    Gated(Box<GatedPlan>),
    Solve(Box<SolvePlan>),
    Inverse(Box<InversePlan>),
    Scan(Box<ScanPlan>),
    /// A scan, the first element of the result in its value.
    ScanResult(NodeId, usize),
}

/// A loop over rows.
struct ScanPlan {
    body: Plan,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    n_carries: usize,
    reverse: bool,
    /// The rows are the tokens of the step: only real ones count.
    over_tokens: bool,
    rows: usize,
    /// By sequence: which elements make row 0, elements from row to row.
    sequences: Vec<(NodeId, Vec<usize>, usize)>,
    invariants: Vec<NodeId>,
    carries: Vec<NodeId>,
    /// By output of the body: first element of the result, which elements make row 0, elements from row to row.
    results: Vec<(usize, Vec<usize>, usize)>,
}

/// A list of nodes, ready to be evaluated any number of times.
pub struct Plan {
    works: Vec<Work>,
    sizes: Vec<usize>,
}

/// Values of the nodes of a plan.
pub struct Frame {
    values: Vec<Vec<f64>>,
    bodies: Vec<Option<Box<Frame>>>,
}

impl Frame {
    /// The value of a node.
    pub fn value(&self, node: NodeId) -> &[f64] {
        &self.values[node.index()]
    }
    /// The value of an input, to be filled in.
    pub fn value_mut(&mut self, node: NodeId) -> &mut [f64] {
        &mut self.values[node.index()]
    }
}

impl Plan {
    /// Works out every index.
    pub fn new(graph: &Graph, nodes: &[Node]) -> Plan {
        let planner = Planner { graph, nodes };
        let works: Vec<Work> = nodes.iter().map(|node| planner.work(node)).collect();
        let size = |(node, work): (&Node, &Work)| match work {
            Work::Scan(scan) => scan.results.iter().map(|(start, _, _)| *start).next_back().unwrap_or(0),
            _ => graph.sizes(&node.dims).iter().product(),
        };
        let sizes = nodes.iter().zip(&works).map(size).collect();
        Plan { works, sizes }
    }

    /// Space for the values.
    pub fn frame(&self) -> Frame {
        let mut values: Vec<Vec<f64>> = self.sizes.iter().map(|&size| vec![0.0; size]).collect();
        let mut bodies = Vec::new();
        for (work, value) in self.works.iter().zip(&mut values) {
            if let Work::Constant(number) = work {
                value.fill(*number);
            }
            bodies.push(match work {
                Work::Scan(scan) => Some(Box::new(scan.body.frame())),
                _ => None,
            });
        }
        Frame { values, bodies }
    }

    /// Computes every node in order, for a step of `real` tokens.
    pub fn evaluate(&self, frame: &mut Frame, real: usize) {
        for (idx, work) in self.works.iter().enumerate() {
            let mut out = std::mem::take(&mut frame.values[idx]);
            let body = frame.bodies[idx].as_deref_mut();
            evaluate(work, &mut out, &frame.values, body, real);
            frame.values[idx] = out;
        }
    }
}

/// Computes one node.
fn evaluate(work: &Work, out: &mut [f64], values: &[Vec<f64>], body: Option<&mut Frame>, real: usize) {
    let value = |node: NodeId| values[node.index()].as_slice();
    match work {
        Work::Given | Work::Constant(_) => {}
        Work::Unary(function, x) => {
            for (element, &x) in out.iter_mut().zip(value(*x)) {
                *element = function.apply(x);
            }
        }
        Work::Binary(function, a, b) => {
            let (a_data, b_data) = (value(a.node), value(b.node));
            for (i, element) in out.iter_mut().enumerate() {
                *element = function.apply(a_data[a.index[i]], b_data[b.index[i]]);
            }
        }
        Work::Select(op, gathers) => {
            for (i, element) in out.iter_mut().enumerate() {
                let [lhs, rhs, then, otherwise] = gathers.each_ref().map(|g| value(g.node)[g.index[i]]);
                *element = if compare(*op, lhs, rhs) { then } else { otherwise };
            }
        }
        Work::Copy(x) => {
            let data = value(x.node);
            for (element, &at) in out.iter_mut().zip(&x.index) {
                *element = data[at];
            }
        }
        Work::Sum(x, over) => {
            let data = value(x.node);
            for (element, &base) in out.iter_mut().zip(&x.index) {
                *element = over.iter().map(|offset| data[base + offset]).sum();
            }
        }
        Work::Max(x, over) => {
            let data = value(x.node);
            for (element, &base) in out.iter_mut().zip(&x.index) {
                let elements = over.iter().map(|offset| data[base + offset]);
                *element = elements.fold(f64::NEG_INFINITY, |a, b| Binary::Max.apply(a, b));
            }
        }
        Work::Contract(a, a_over, b, b_over) => {
            let (a_data, b_data) = (value(a.node), value(b.node));
            for (i, element) in out.iter_mut().enumerate() {
                let (a_data, b_data) = (&a_data[a.index[i]..], &b_data[b.index[i]..]);
                *element = a_over.iter().zip(b_over).map(|(&at, &bt)| a_data[at] * b_data[bt]).sum();
            }
        }
        Work::Scatter(parts) => {
            out.fill(0.0);
            for (places, x) in parts {
                let data = value(x.node);
                for (&place, &at) in places.iter().zip(&x.index) {
                    out[place] = data[at];
                }
            }
        }
        Work::Guard(x, rows, number) => {
            for ((element, &x), &row) in out.iter_mut().zip(value(*x)).zip(rows) {
                *element = if row < real { x } else { *number };
            }
        }
        Work::Gated(plan) => plan.evaluate(out, values),
        Work::Solve(plan) => plan.evaluate(out, values),
        Work::Inverse(plan) => plan.evaluate(out, values),
        Work::Scan(scan) => scan.evaluate(out, values, body.expect("a frame has a body for every scan"), real),
        Work::ScanResult(scan, start) => out.copy_from_slice(&value(*scan)[*start..*start + out.len()]),
    }
}

impl ScanPlan {
    fn evaluate(&self, out: &mut [f64], values: &[Vec<f64>], body: &mut Frame, real: usize) {
        let real = if self.over_tokens { real } else { self.rows };
        let carry_inputs = &self.inputs[self.sequences.len() + self.invariants.len()..];
        for (&input, &node) in
            self.inputs[self.sequences.len()..].iter().zip(self.invariants.iter().chain(&self.carries))
        {
            body.value_mut(input).copy_from_slice(&values[node.index()]);
        }
        out.fill(0.0);
        for turn in 0..real {
            let row = if self.reverse { real - 1 - turn } else { turn };
            for (&input, (node, elements, step)) in self.inputs.iter().zip(&self.sequences) {
                let data = &values[node.index()][row * step..];
                for (element, &at) in body.value_mut(input).iter_mut().zip(elements) {
                    *element = data[at];
                }
            }
            self.body.evaluate(body, real);
            for (&output, (start, elements, step)) in self.outputs.iter().zip(&self.results) {
                for (&element, &at) in body.value(output).iter().zip(elements) {
                    out[start + row * step + at] = element;
                }
            }
            // What a carry becomes may be another carry's old value: read all from the results first.
            for (&input, (start, elements, _)) in carry_inputs.iter().zip(&self.results) {
                for (element, &at) in body.value_mut(input).iter_mut().zip(elements) {
                    *element = out[start + at];
                }
            }
        }
        let stacked = &self.results[self.n_carries..self.outputs.len()];
        for (start, elements, step) in stacked {
            // Void rows repeat the last real row; a backward leaves zero there.
            for row in real..if self.reverse { real } else { self.rows } {
                for &at in elements {
                    out[start + row * step + at] = out[start + (real - 1) * step + at];
                }
            }
        }
    }
}

/// Works out indices.
struct Planner<'p> {
    graph: &'p Graph,
    nodes: &'p [Node],
}

impl Planner<'_> {
    fn dims(&self, node: NodeId) -> &[DimId] {
        &self.nodes[node.index()].dims
    }

    /// An operand broadcast by name along `over`.
    fn gather(&self, over: &[DimId], node: NodeId) -> Gather {
        Gather { node, index: offsets(self.graph, over, self.dims(node)) }
    }

    /// An operand whose dimensions are read under other names, at a fixed distance from its start.
    fn gather_as(&self, over: &[DimId], node: NodeId, dims: &[DimId], start: usize) -> Gather {
        let index = offsets(self.graph, over, dims).into_iter().map(|at| at + start).collect();
        Gather { node, index }
    }

    /// Where every element of a value over `over` stands in `node`, when a step along `from` there is as many elements.
    fn gather_by(&self, over: &[DimId], node: NodeId, step: impl Fn(DimId) -> usize) -> Gather {
        let steps: Vec<usize> = over.iter().map(|&dim| step(dim)).collect();
        let index = table(self.graph, over, |position| position.iter().zip(&steps).map(|(p, step)| p * step).sum());
        Gather { node, index }
    }

    fn work(&self, node: &Node) -> Work {
        let graph = self.graph;
        let dims = &node.dims;
        let gated =
            |lines: &Lines, gates: &Gates, task: Task| Work::Gated(Box::new(GatedPlan::new(lines, gates, task, dims)));
        match &node.op {
            Op::Input { .. } | Op::BodyInput(_) => Work::Given,
            Op::Const(number) => Work::Constant(*number),
            Op::Unary(function, x) => Work::Unary(*function, *x),
            Op::Binary(function, a, b) => Work::Binary(*function, self.gather(dims, *a), self.gather(dims, *b)),
            Op::Select { op, lhs, rhs, then, otherwise } => {
                Work::Select(*op, [lhs, rhs, then, otherwise].map(|x| self.gather(dims, *x)))
            }
            Op::Broadcast(x) | Op::StopGradient(x) => Work::Copy(self.gather(dims, *x)),
            Op::Sum(x, over) => Work::Sum(self.gather(dims, *x), offsets(graph, over, self.dims(*x))),
            Op::MaxOver(x, over) => Work::Max(self.gather(dims, *x), offsets(graph, &[*over], self.dims(*x))),
            Op::Contract(a, b, over) => Work::Contract(
                self.gather(dims, *a),
                offsets(graph, over, self.dims(*a)),
                self.gather(dims, *b),
                offsets(graph, over, self.dims(*b)),
            ),
            Op::Rename(x, from, to) => {
                let renamed: Vec<DimId> = self.dims(*x).iter().map(|&d| if d == *from { *to } else { d }).collect();
                Work::Copy(self.gather_as(dims, *x, &renamed, 0))
            }
            Op::Index(x, dim, at) => {
                Work::Copy(self.gather_as(dims, *x, self.dims(*x), at * stride(graph, self.dims(*x), *dim)))
            }
            Op::Stack(parts, slot) => {
                let rest = without(dims, &[*slot]);
                let part = |(at, part): (usize, &Option<NodeId>)| {
                    let start = at * stride(graph, dims, *slot);
                    let places = offsets(graph, &rest, dims).into_iter().map(|place| start + place).collect();
                    part.map(|part| (places, self.gather(&rest, part)))
                };
                Work::Scatter(parts.iter().enumerate().filter_map(part).collect())
            }
            Op::Guard(x, number) => {
                let row = dims.iter().position(|&dim| Some(dim) == graph.time);
                Work::Guard(*x, table(graph, dims, |position| row.map_or(0, |at| position[at])), *number)
            }
            Op::Diagonal(x, row, col) => {
                let inner = self.dims(*x);
                let places = self.gather_by(inner, *x, |dim| {
                    let beside = if dim == *row { stride(graph, dims, *col) } else { 0 };
                    stride(graph, dims, dim) + beside
                });
                Work::Scatter(vec![(places.index, self.gather(inner, *x))])
            }
            Op::DiagonalPart(x, row, col) => Work::Copy(self.gather_by(dims, *x, |dim| {
                let beside = if dim == *row { stride(graph, self.dims(*x), *col) } else { 0 };
                stride(graph, self.dims(*x), dim) + beside
            })),
            Op::Split(x, dim, outer, inner) => {
                let step = stride(graph, self.dims(*x), *dim);
                Work::Copy(self.gather_by(dims, *x, |d| {
                    if d == *outer {
                        step * graph.dim(*inner).size
                    } else if d == *inner {
                        step
                    } else {
                        stride(graph, self.dims(*x), d)
                    }
                }))
            }
            Op::Merge(x, outer, inner, dim) => {
                // The places in the result, for the elements in the order of the operand.
                let step = stride(graph, dims, *dim);
                let places = self.gather_by(self.dims(*x), *x, |d| {
                    if d == *outer {
                        step * graph.dim(*inner).size
                    } else if d == *inner {
                        step
                    } else {
                        stride(graph, dims, d)
                    }
                });
                Work::Scatter(vec![(places.index, self.gather(self.dims(*x), *x))])
            }
            Op::Segment { gates, row, col, diagonal } => {
                let lines = Lines::new(graph, self.nodes, node, *row, Some(*col));
                gated(&lines, gates, Task::Segment { diagonal: *diagonal })
            }
            Op::SegmentGrad { weight, gates, row, col, diagonal, event } => {
                let lines = Lines::new(graph, self.nodes, node, *row, Some(*col));
                let weight = lines.operand(*weight);
                gated(&lines, gates, Task::SegmentGrad { weight, diagonal: *diagonal, event: *event })
            }
            Op::Boundary { side, gates, row } => {
                let lines = Lines::new(graph, self.nodes, node, *row, None);
                gated(&lines, gates, Task::Boundary(*side))
            }
            Op::BoundaryGrad { weight, side, gates, row, event } => {
                let lines = Lines::new(graph, self.nodes, node, *row, None);
                let weight = lines.operand(*weight);
                gated(&lines, gates, Task::BoundaryGrad { weight, side: *side, event: *event })
            }
            Op::Gated { part, weight, rows, cols, gates, row, col, axes: _ } => {
                let lines = Lines::new(graph, self.nodes, node, *row, Some(*col));
                let [weight, rows, cols] = [weight, rows, cols].map(|x| x.map(|x| lines.operand(x)));
                gated(&lines, gates, Task::Trilinear { part: *part, weight, rows, cols })
            }
            Op::Solve(solve) => Work::Solve(Box::new(SolvePlan::new(graph, self.nodes, solve, dims))),
            Op::Inverse(inverse) => Work::Inverse(Box::new(InversePlan::new(graph, self.nodes, inverse, dims))),
            Op::Scan(scan) => Work::Scan(Box::new(self.scan(scan))),
            Op::ScanResult(scan, number) => Work::ScanResult(*scan, self.scan_results(*scan)[*number].0),
        }
    }

    fn scan(&self, scan: &Scan) -> ScanPlan {
        let sequence = |&node: &NodeId| {
            let dims = self.dims(node);
            let elements = offsets(self.graph, &without(dims, &[scan.row]), dims);
            (node, elements, stride(self.graph, dims, scan.row))
        };
        ScanPlan {
            body: Plan::new(self.graph, &scan.body.nodes),
            inputs: scan.body.inputs.clone(),
            outputs: scan.body.outputs.clone(),
            n_carries: scan.carries.len(),
            reverse: scan.reverse,
            over_tokens: Some(scan.row) == self.graph.time,
            rows: self.graph.dim(scan.row).size,
            sequences: scan.sequences.iter().map(sequence).collect(),
            invariants: scan.invariants.clone(),
            carries: scan.carries.clone(),
            results: self.results_of(scan),
        }
    }

    fn scan_results(&self, node: NodeId) -> Vec<(usize, Vec<usize>, usize)> {
        match &self.nodes[node.index()].op {
            Op::Scan(scan) => self.results_of(scan),
            _ => unreachable!("the verifier lets results be taken of scans only"),
        }
    }

    /// Where a scan's results stand in its value; one more entry says where they end.
    fn results_of(&self, scan: &Scan) -> Vec<(usize, Vec<usize>, usize)> {
        let mut start = 0;
        let mut results = Vec::new();
        for (number, output) in scan.body.outputs.iter().enumerate() {
            let inner = &scan.body.nodes[output.index()].dims;
            let dims = match number < scan.carries.len() {
                true => inner.clone(),
                false => canonical(self.graph, inner.iter().copied().chain([scan.row])),
            };
            results.push((start, offsets(self.graph, inner, &dims), stride(self.graph, &dims, scan.row)));
            start += self.graph.sizes(&dims).iter().product::<usize>();
        }
        results.push((start, Vec::new(), 0));
        results
    }
}
