//! The gated operations, pair by pair.
//!
//! Comes in: operands and a decay. Goes out: segments, their sums against weights, derivatives, solutions. A segment is
//! always multiplied up from its own factors; nothing is ever divided out or subtracted.
//!
//! The tokens of a step and their events make one *line* of factors, event m of token t at place t·E + m. The clock d of
//! token t is the gap before place t·E + d, so every segment is the product of the places between two gaps.

use super::plan::{offsets, stride, without};
use crate::graph::ir::{DimId, Gate, GateKind, GatedPart, Gates, Graph, Inverse, Node, NodeId, Side, Solve};
use crate::graph::shape::canonical;

/// Where the elements of a value stand: by line its first, then from row to row and from column to column.
struct Strided {
    base: Vec<usize>,
    row: usize,
    col: usize,
}

impl Strided {
    fn new(graph: &Graph, lines: &[DimId], dims: &[DimId], row: DimId, col: Option<DimId>) -> Strided {
        Strided {
            base: offsets(graph, lines, dims),
            row: stride(graph, dims, row),
            col: col.map_or(0, |col| stride(graph, dims, col)),
        }
    }
    fn at(&self, line: usize, row: usize, col: usize) -> usize {
        self.base[line] + row * self.row + col * self.col
    }
}

/// An operand read by line.
pub struct Operand {
    node: NodeId,
    strided: Strided,
}

impl Operand {
    fn get(&self, values: &[Vec<f64>], line: usize, row: usize, col: usize) -> f64 {
        values[self.node.index()][self.strided.at(line, row, col)]
    }
}

/// A decay, ready to be read line by line.
struct Decay {
    rows: usize,
    kinds: Vec<GateKind>,
    events: Vec<Operand>,
}

impl Decay {
    fn new(graph: &Graph, nodes: &[Node], lines: &[DimId], gates: &[Gate], row: DimId) -> Decay {
        let event = |gate: &Gate| {
            let dims = &nodes[gate.value.index()].dims;
            Operand { node: gate.value, strided: Strided::new(graph, lines, dims, row, None) }
        };
        Decay {
            rows: graph.dim(row).size,
            kinds: gates.iter().map(|gate| gate.kind).collect(),
            events: gates.iter().map(event).collect(),
        }
    }

    fn line(&self, values: &[Vec<f64>], line: usize) -> Line<'_> {
        let read = |row| self.events.iter().map(move |event| event.get(values, line, row, 0));
        Line { kinds: &self.kinds, values: (0..self.rows).flat_map(read).collect() }
    }
}

/// The factors of one line.
struct Line<'l> {
    kinds: &'l [GateKind],
    values: Vec<f64>,
}

/// The product of the factors from one gap of a line on.
struct Segment<'l> {
    line: &'l Line<'l>,
    end: usize,
    logarithm: f64,
    factor: f64,
}

impl Segment<'_> {
    /// The product up to a gap; the gaps asked for ascend. Up to a gap before the first it is empty.
    fn up_to(&mut self, gap: usize) -> f64 {
        for place in self.end..gap {
            match self.line.kinds[place % self.line.kinds.len()] {
                GateKind::Log => self.logarithm += self.line.values[place],
                GateKind::Factor => self.factor *= self.line.values[place],
            }
        }
        self.end = self.end.max(gap);
        self.logarithm.exp() * self.factor
    }
}

impl Line<'_> {
    /// The gap at a clock of a token.
    fn gap(&self, token: usize, clock: usize) -> usize {
        token * self.kinds.len() + clock
    }
    fn end(&self) -> usize {
        self.values.len()
    }
    fn from(&self, gap: usize) -> Segment<'_> {
        Segment { line: self, end: gap, logarithm: 0.0, factor: 1.0 }
    }
    fn between(&self, start: usize, end: usize) -> f64 {
        self.from(start).up_to(end)
    }

    /// The derivative of the segment by every gate of one event in it: visits the token and the number.
    fn derivatives(&self, start: usize, end: usize, event: usize, mut visit: impl FnMut(usize, f64)) {
        let n_events = self.kinds.len();
        let places = |kind: GateKind| (start..end).filter(move |place| self.kinds[place % n_events] == kind);
        match self.kinds[event] {
            // The derivative by a logarithm is the segment.
            GateKind::Log => {
                let segment = self.between(start, end);
                (start..end)
                    .filter(|place| place % n_events == event)
                    .for_each(|place| visit(place / n_events, segment));
            }
            // The derivative by a factor is the product of the others: of those before it and those after it.
            GateKind::Factor => {
                let logarithms: f64 = places(GateKind::Log).map(|place| self.values[place]).sum();
                let factors: Vec<usize> = places(GateKind::Factor).collect();
                let mut after = vec![1.0; factors.len() + 1];
                for at in (0..factors.len()).rev() {
                    after[at] = self.values[factors[at]] * after[at + 1];
                }
                let mut before = logarithms.exp();
                for (at, &place) in factors.iter().enumerate() {
                    if place % n_events == event {
                        visit(place / n_events, before * after[at + 1]);
                    }
                    before *= self.values[place];
                }
            }
        }
    }
}

/// What is computed from the segments of a line.
pub enum Task {
    /// Every segment.
    Segment {
        /// With those from a token to itself.
        diagonal: bool,
    },
    /// Their derivative by an event, weighted.
    SegmentGrad {
        /// By pair.
        weight: Operand,
        /// With those from a token to itself.
        diagonal: bool,
        /// Which event.
        event: usize,
    },
    /// Every segment that begins or ends where the step does.
    Boundary(Side),
    /// Their derivative by an event, weighted.
    BoundaryGrad {
        /// By row.
        weight: Operand,
        /// Which segments.
        side: Side,
        /// Which event.
        event: usize,
    },
    /// A derivative of the trilinear form.
    Trilinear {
        /// Which.
        part: GatedPart,
        /// By pair.
        weight: Option<Operand>,
        /// By row.
        rows: Option<Operand>,
        /// By column.
        cols: Option<Operand>,
    },
}

/// The lines of a gated operation: every position of everything that is neither row nor column. The result may lack
/// some of those dimensions; it is then summed over them.
pub struct Lines<'p> {
    graph: &'p Graph,
    nodes: &'p [Node],
    dims: Vec<DimId>,
    row: DimId,
    col: Option<DimId>,
}

impl<'p> Lines<'p> {
    /// The lines of a node.
    pub fn new(graph: &'p Graph, nodes: &'p [Node], node: &Node, row: DimId, col: Option<DimId>) -> Lines<'p> {
        let operands = node.op.operands();
        let everything = operands.iter().flat_map(|x| &nodes[x.index()].dims).chain(&node.dims).copied();
        let dims = without(&canonical(graph, everything), &[row, col.unwrap_or(row)]);
        Lines { graph, nodes, dims, row, col }
    }

    fn strided(&self, dims: &[DimId]) -> Strided {
        Strided::new(self.graph, &self.dims, dims, self.row, self.col)
    }

    /// An operand.
    pub fn operand(&self, x: NodeId) -> Operand {
        Operand { node: x, strided: self.strided(&self.nodes[x.index()].dims) }
    }
}

/// A gated operation other than a solve.
pub struct GatedPlan {
    decay: Decay,
    from: usize,
    to: usize,
    lines: usize,
    out: Strided,
    task: Task,
}

impl GatedPlan {
    /// A task over lines, for a result of these dimensions.
    pub fn new(lines: &Lines, gates: &Gates, task: Task, dims: &[DimId]) -> GatedPlan {
        GatedPlan {
            decay: Decay::new(lines.graph, lines.nodes, &lines.dims, &gates.events, lines.row),
            from: gates.from,
            to: gates.to,
            lines: lines.graph.sizes(&lines.dims).iter().product(),
            out: lines.strided(dims),
            task,
        }
    }

    /// Computes the result.
    pub fn evaluate(&self, out: &mut [f64], values: &[Vec<f64>]) {
        out.fill(0.0);
        for line in 0..self.lines {
            let factors = self.decay.line(values, line);
            match &self.task {
                Task::Segment { diagonal } => self.segments(&factors, *diagonal, |i, j, segment| {
                    out[self.out.at(line, i, j)] = segment;
                }),
                Task::SegmentGrad { weight, diagonal, event } => {
                    for (i, j) in self.pairs(*diagonal) {
                        let weight = weight.get(values, line, i, j);
                        let (start, end) = (factors.gap(j, self.from), factors.gap(i, self.to));
                        factors.derivatives(start, end, *event, |token, derivative| {
                            out[self.out.at(line, token, 0)] += weight * derivative;
                        });
                    }
                }
                Task::Boundary(side) => {
                    for (row, start, end) in self.boundaries(&factors, *side) {
                        out[self.out.at(line, row, 0)] = factors.between(start, end);
                    }
                }
                Task::BoundaryGrad { weight, side, event } => {
                    for (row, start, end) in self.boundaries(&factors, *side) {
                        let weight = weight.get(values, line, row, 0);
                        factors.derivatives(start, end, *event, |token, derivative| {
                            out[self.out.at(line, token, 0)] += weight * derivative;
                        });
                    }
                }
                Task::Trilinear { part, weight, rows, cols } => {
                    let w = |i, j| weight.as_ref().map_or(1.0, |x| x.get(values, line, i, j));
                    let r = |i| rows.as_ref().map_or(1.0, |x| x.get(values, line, i, 0));
                    let c = |j| cols.as_ref().map_or(1.0, |x| x.get(values, line, 0, j));
                    match part {
                        // The operand of that name is absent: what is left is the derivative by it.
                        GatedPart::Weight | GatedPart::Rows | GatedPart::Cols => {
                            self.segments(&factors, false, |i, j, segment| {
                                out[self.out.at(line, i, j)] += w(i, j) * r(i) * c(j) * segment;
                            });
                        }
                        GatedPart::Gate(event) => {
                            for (i, j) in self.pairs(false) {
                                let weight = w(i, j) * r(i) * c(j);
                                let (start, end) = (factors.gap(j, self.from), factors.gap(i, self.to));
                                factors.derivatives(start, end, *event, |token, derivative| {
                                    out[self.out.at(line, token, 0)] += weight * derivative;
                                });
                            }
                        }
                    }
                }
            }
        }
    }

    /// Pairs (i, j) of rows with j < i, or j ≤ i.
    fn pairs(&self, diagonal: bool) -> impl Iterator<Item = (usize, usize)> {
        (0..self.decay.rows).flat_map(move |i| (0..if diagonal { i + 1 } else { i }).map(move |j| (i, j)))
    }

    /// The segment of every pair.
    fn segments(&self, factors: &Line, diagonal: bool, mut visit: impl FnMut(usize, usize, f64)) {
        for j in 0..self.decay.rows {
            let mut segment = factors.from(factors.gap(j, self.from));
            for i in if diagonal { j } else { j + 1 }..self.decay.rows {
                visit(i, j, segment.up_to(factors.gap(i, self.to)));
            }
        }
    }

    /// Row, first and last gap of every segment that begins or ends where the step does.
    fn boundaries(&self, factors: &Line, side: Side) -> Vec<(usize, usize, usize)> {
        let rows = 0..self.decay.rows;
        match side {
            Side::Prefix => rows.map(|t| (t, 0, factors.gap(t, self.to))).collect(),
            Side::Suffix => rows.map(|t| (t, factors.gap(t, self.from), factors.end())).collect(),
            Side::Total => vec![(0, 0, factors.end())],
        }
    }
}

/// A triangular solve.
pub struct SolvePlan {
    decay: Decay,
    n: usize,
    reads: Vec<usize>,
    writes: Vec<usize>,
    transposed: bool,
    lines: usize,
    /// Elements from slot to slot of the result.
    slot: usize,
    out: Strided,
    lower: Vec<Option<Operand>>,
    rhs: Vec<Operand>,
    scale: Vec<Option<Operand>>,
}

impl SolvePlan {
    /// Works out every index.
    pub fn new(graph: &Graph, nodes: &[Node], solve: &Solve, dims: &[DimId]) -> SolvePlan {
        let lines = without(dims, &[solve.slot, solve.row]);
        let operand = |&x: &NodeId| {
            let strided = Strided::new(graph, &lines, &nodes[x.index()].dims, solve.row, Some(solve.col));
            Operand { node: x, strided }
        };
        SolvePlan {
            decay: Decay::new(graph, nodes, &lines, &solve.gates.events, solve.row),
            n: solve.rhs.len(),
            reads: solve.reads.clone(),
            writes: solve.writes.clone(),
            transposed: solve.transposed,
            lines: graph.sizes(&lines).iter().product(),
            slot: stride(graph, dims, solve.slot),
            out: Strided::new(graph, &lines, dims, solve.row, None),
            lower: solve.lower.iter().map(|block| block.as_ref().map(operand)).collect(),
            rhs: solve.rhs.iter().map(operand).collect(),
            scale: solve.scale.iter().map(|factor| factor.as_ref().map(operand)).collect(),
        }
    }

    /// Computes the solution.
    pub fn evaluate(&self, out: &mut [f64], values: &[Vec<f64>]) {
        for line in 0..self.lines {
            for slot in 0..self.n {
                for row in 0..self.decay.rows {
                    out[self.place(line, slot, row)] = self.rhs[slot].get(values, line, row, 0);
                }
            }
            let factors = self.decay.line(values, line);
            match self.transposed {
                false => self.forwards(out, values, line, &factors),
                true => self.backwards(out, values, line, &factors),
            }
        }
    }

    /// Every unknown, in order, is added to all that come after it.
    fn forwards(&self, out: &mut [f64], values: &[Vec<f64>], line: usize, factors: &Line) {
        for s in 0..self.decay.rows {
            for i in 0..self.n {
                let known = out[self.place(line, i, s)];
                self.readers(s, i, values, line, factors, |j, t, coefficient| {
                    out[self.place(line, j, t)] += coefficient * known;
                });
            }
        }
    }

    /// Every unknown, from the last, is the sum over all that read it.
    fn backwards(&self, out: &mut [f64], values: &[Vec<f64>], line: usize, factors: &Line) {
        for s in (0..self.decay.rows).rev() {
            for i in (0..self.n).rev() {
                let mut sum = 0.0;
                self.readers(s, i, values, line, factors, |j, t, coefficient| {
                    sum += coefficient * out[self.place(line, j, t)];
                });
                out[self.place(line, i, s)] += sum;
            }
        }
    }

    /// Visits slot, row and coefficient of every equation that contains the unknown of row s and slot i.
    fn readers(
        &self,
        s: usize,
        i: usize,
        values: &[Vec<f64>],
        line: usize,
        factors: &Line,
        mut visit: impl FnMut(usize, usize, f64),
    ) {
        for j in 0..self.n {
            let Some(block) = &self.lower[j * self.n + i] else { continue };
            let mut segment = factors.from(factors.gap(s, self.writes[i]));
            for t in if i < j { s } else { s + 1 }..self.decay.rows {
                let scale = self.scale[j].as_ref().map_or(1.0, |scale| scale.get(values, line, t, 0));
                let decayed = segment.up_to(factors.gap(t, self.reads[j]));
                visit(j, t, scale * block.get(values, line, t, s) * decayed);
            }
        }
    }

    fn place(&self, line: usize, slot: usize, row: usize) -> usize {
        self.out.at(line, row, 0) + slot * self.slot
    }
}

/// The inverse of a triangular system.
pub struct InversePlan {
    n: usize,
    rows: usize,
    lines: usize,
    /// Elements from slot to slot of the result, of the solution and of the right-hand side.
    slot: usize,
    from: usize,
    out: Strided,
    lower: Vec<Option<Operand>>,
}

impl InversePlan {
    /// Works out every index.
    pub fn new(graph: &Graph, nodes: &[Node], inverse: &Inverse, dims: &[DimId]) -> InversePlan {
        let Inverse { lower, slot, from, row, col } = inverse;
        let lines = without(dims, &[*slot, *from, *row, *col]);
        let block = |&x: &NodeId| Operand {
            node: x,
            strided: Strided::new(graph, &lines, &nodes[x.index()].dims, *row, Some(*col)),
        };
        InversePlan {
            n: graph.dim(*slot).size,
            rows: graph.dim(*row).size,
            lines: graph.sizes(&lines).iter().product(),
            slot: stride(graph, dims, *slot),
            from: stride(graph, dims, *from),
            out: Strided::new(graph, &lines, dims, *row, Some(*col)),
            lower: lower.iter().map(|x| x.as_ref().map(block)).collect(),
        }
    }

    /// Solves for every column of the identity.
    pub fn evaluate(&self, out: &mut [f64], values: &[Vec<f64>]) {
        out.fill(0.0);
        for line in 0..self.lines {
            for from in 0..self.n {
                for col in 0..self.rows {
                    out[self.place(line, (from, from), (col, col))] = 1.0;
                    self.solve(out, values, line, from, col);
                }
            }
        }
    }

    /// Every unknown of a column, in order, is added to all that come after it.
    fn solve(&self, out: &mut [f64], values: &[Vec<f64>], line: usize, from: usize, col: usize) {
        for s in col..self.rows {
            for i in 0..self.n {
                let known = out[self.place(line, (i, from), (s, col))];
                for j in 0..self.n {
                    let Some(block) = &self.lower[j * self.n + i] else { continue };
                    for t in if i < j { s } else { s + 1 }..self.rows {
                        let coefficient = block.get(values, line, t, s);
                        out[self.place(line, (j, from), (t, col))] += coefficient * known;
                    }
                }
            }
        }
    }

    fn place(&self, line: usize, (slot, from): (usize, usize), (row, col): (usize, usize)) -> usize {
        self.out.at(line, row, col) + slot * self.slot + from * self.from
    }
}
