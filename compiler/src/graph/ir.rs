//! IR 1, the graph: what is computed, nothing of where or when.
//!
//! Comes from [`crate::lower::program_to_graph`], is rewritten by [`crate::derive`], goes to
//! [`crate::lower::graph_to_tile`] and to the interpreter ([`super::interp`]). Pure dataflow. A little over 600 lines:
//! an IR is one file, in which every type stands with its meaning.
//!
//! # Meaning
//! A [`Graph`] is the body of a loop over the *steps* of one sequence and head. A step takes `tokens` consecutive
//! tokens: one in a token graph, a chunk otherwise; the last step may take fewer. What goes from step to step is
//! listed in `carries`. With `reverse` the steps run from the last to the first. With `span` so many steps make a span,
//! the last one perhaps fewer, and spans know nothing of each other: carries begin anew in each.
//!
//! A node's value is an array over its `dims`, a *set of named dimensions* listed in canonical order ([`DimKind`],
//! then rank): two values are combined by name, never by position. Dimension sizes are numbers here.
//!
//! In a chunk graph a per-token value has the row dimension `time` of size `rows ≥ tokens`. Rows at or beyond the
//! number of tokens the step really takes are *void*: token inputs repeat the last real row there, cotangents are
//! zero there, [`Op::Guard`] replaces them, and nothing stored for a token comes from them.
//!
//! # Gates
//! A decay is a list of *events* in a token, each a node `[time, axes…]` that gives either the natural logarithm of
//! the factor or the factor itself ([`GateKind`]). A *clock* `d` of a token is the moment when `d` of its events have
//! happened. The *segment* from clock `from` of token s to clock `to` of token t ≥ s is the product of all factors
//! between; empty, it is 1. Within one token it is the product of events `from..to`, and 1 if `to ≤ from`.
//! Every gated operation computes it factor by factor, or as the exponential of a sum of logarithms over just that
//! segment, never as a difference or a quotient. Gradients are with respect to the logarithm or the factor as given,
//! and never divide by a factor.
//!
//! # Text form (`.cwg`), printed and parsed by [`super::text`]
//! ```text
//! graph gated_delta_rule.chunkwise.forward {
//!   dim t : row 64
//!   dim s : col 64
//!   dim K : axis 0 128
//!   step tokens=64 time=t
//!   %0 = token q : [t, K]
//!   %1 = contract %0 %7 over K : [t, V]        ; rule carry-in
//!   carry S = %9 -> %31 init=init.S final=final.S
//!   output o = %28
//! }
//! ```

use chunkwise_dsl::span::Span;

/// A node of [`Graph::nodes`] (or of a [`Body`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);
impl NodeId {
    /// Position in the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A dimension of [`Graph::dims`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DimId(pub u32);
impl DimId {
    /// Position in the arena.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A named dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Name, unique in the graph.
    pub name: String,
    /// What it counts; decides the canonical order.
    pub kind: DimKind,
    /// Number of positions, at least one.
    pub size: usize,
}

/// What a dimension counts, in canonical order of dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DimKind {
    /// Edits or events of a token, stacked.
    Slot,
    /// Blocks of rows.
    Block,
    /// Blocks of rows, as the second time dimension.
    BlockCol,
    /// Tokens of the step (or of a block).
    Row,
    /// Tokens of the step, as the second time dimension.
    Col,
    /// An axis of the program, by rank.
    Axis(u32),
}

/// The body of a loop over the steps of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Name: `mechanism.form.direction`.
    pub name: String,
    /// Dimensions, also of nested bodies.
    pub dims: Vec<Dim>,
    /// Nodes; an operand comes before its user.
    pub nodes: Vec<Node>,
    /// The row dimension; none in a token graph.
    pub time: Option<DimId>,
    /// Tokens a step takes.
    pub tokens: usize,
    /// Steps run from the last to the first.
    pub reverse: bool,
    /// Steps of a span, if carries begin anew in each: their first and last values are then tensors of one value a span.
    pub span: Option<usize>,
    /// What goes from step to step.
    pub carries: Vec<Carry>,
    /// Per-token results.
    pub outputs: Vec<(String, NodeId)>,
    /// Orders of axes in memory of outputs, by name; see [`Graph::output_layout`].
    pub layouts: Vec<(String, Vec<DimId>)>,
    /// Values kept once a step for the backward: `saved.STATE`.
    pub saves: Vec<(String, NodeId)>,
}

/// A value that goes from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct Carry {
    /// Name, for printing.
    pub name: String,
    /// The node that reads it, an [`Op::Input`] of kind [`InputKind::Carry`].
    pub input: NodeId,
    /// Its value after the step.
    pub output: NodeId,
    /// Tensor with its first value; `begins` without.
    pub init: Option<String>,
    /// Its first value where no tensor gives it.
    pub begins: Begin,
    /// Tensor that takes its last value.
    pub last: Option<String>,
    /// Order of dimensions in those tensors.
    pub layout: Vec<DimId>,
}

/// The first value of a carry that no tensor gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Begin {
    /// Zero.
    #[default]
    Zero,
    /// One everywhere.
    One,
    /// One where the positions of its two dimensions, which have one size, are equal; zero elsewhere.
    Identity,
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Dimensions, in canonical order.
    pub dims: Vec<DimId>,
    /// What in the source it stands for.
    pub span: Option<Span>,
    /// The derivation rule that made it; empty for what was written.
    pub rule: &'static str,
}

/// The body of an [`Op::Scan`].
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// Nodes; operands inside this arena only.
    pub nodes: Vec<Node>,
    /// One [`Op::BodyInput`] each: sequences, then invariants, then carries.
    pub inputs: Vec<NodeId>,
    /// Carries after the step, then per-step results.
    pub outputs: Vec<NodeId>,
}

/// A decay: its events in a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Gates {
    /// Events, in order; each `[…, time, axes…]`.
    pub events: Vec<Gate>,
    /// Clock of the column token (the writer) where the segment begins.
    pub from: usize,
    /// Clock of the row token (the reader) where it ends.
    pub to: usize,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Logarithm or factor.
    pub value: NodeId,
    /// Which.
    pub kind: GateKind,
}

/// What a gate's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GateKind {
    /// The natural logarithm of the factor; −∞ allowed.
    Log,
    /// The factor, of any sign, zero allowed.
    Factor,
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InputKind {
    /// A tensor `[B, T, H, …]`; void rows repeat the last real row.
    Token,
    /// A tensor `[B, T, H, …]`; void rows are zero.
    Cotangent,
    /// A tensor `[H, …]`.
    Head,
    /// A carry of the graph.
    Carry,
    /// A value the forward saved for this step.
    Saved,
}

/// An operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A value from outside. `layout` is the order of its axes in memory (the row dimension not among them).
    Input {
        /// Tensor name.
        name: String,
        /// What it is.
        kind: InputKind,
        /// Order of axes in memory.
        layout: Vec<DimId>,
    },
    /// Operand number `n` of the enclosing scan.
    BodyInput(usize),
    /// A number.
    Const(f64),
    /// Elementwise function of one value.
    Unary(Unary, NodeId),
    /// Elementwise function of two values, broadcast by name.
    Binary(Binary, NodeId, NodeId),
    /// `lhs op rhs ? then : otherwise`, elementwise; a comparison with NaN is false.
    Select {
        /// Comparison.
        op: Compare,
        /// Left side.
        lhs: NodeId,
        /// Right side.
        rhs: NodeId,
        /// Value where true.
        then: NodeId,
        /// Value where false.
        otherwise: NodeId,
    },
    /// The value repeated along the dimensions it lacks.
    Broadcast(NodeId),
    /// Σ over dimensions.
    Sum(NodeId, Vec<DimId>),
    /// max over one dimension.
    MaxOver(NodeId, DimId),
    /// Product, summed over `over`: dimensions both have.
    Contract(NodeId, NodeId, Vec<DimId>),
    /// The value with dimension `from` called `to`; same size.
    Rename(NodeId, DimId, DimId),
    /// One position of a dimension, which disappears.
    Index(NodeId, DimId, usize),
    /// Values side by side along a new dimension; an absent one is zero.
    Stack(Vec<Option<NodeId>>, DimId),
    /// The value, with void rows replaced by a number.
    Guard(NodeId, f64),
    /// `[…, row]` to `[…, row, col]`: on the diagonal, zero elsewhere.
    Diagonal(NodeId, DimId, DimId),
    /// `[…, row, col]` to `[…, row]`: the diagonal.
    DiagonalPart(NodeId, DimId, DimId),
    /// One dimension (of size outer·inner) as two.
    Split(NodeId, DimId, DimId, DimId),
    /// Two dimensions (outer, inner) as one.
    Merge(NodeId, DimId, DimId, DimId),
    /// The value; no gradient goes through.
    StopGradient(NodeId),
    /// `[row, col]`: the segment from the column's token to the row's where col < row (or ≤ with `diagonal`), else 0.
    /// Other dimensions of the gates (blocks, axes) are the result's too: a segment for each of their positions.
    Segment {
        /// Decay; may have no events: then 1 where visible.
        gates: Gates,
        /// Row dimension of the result and of the gates.
        row: DimId,
        /// Column dimension of the result.
        col: DimId,
        /// Whether a token sees itself.
        diagonal: bool,
    },
    /// `[row]`: Σ over (i, j) of `weight[i, j]` · ∂segment(i, j)/∂gate of event `event`; see [`Op::Segment`].
    SegmentGrad {
        /// `[row, col]`.
        weight: NodeId,
        /// Decay.
        gates: Gates,
        /// Row dimension.
        row: DimId,
        /// Column dimension.
        col: DimId,
        /// Whether the diagonal counts.
        diagonal: bool,
        /// Which event.
        event: usize,
    },
    /// `[row, axes…]` (`Total`: `[axes…]`): the segment from the start of the step to clock `to` of each row
    /// (`Prefix`), from clock `from` of each row to the end of the step (`Suffix`), or over the whole step (`Total`).
    Boundary {
        /// Which segment.
        side: Side,
        /// Decay.
        gates: Gates,
        /// Row dimension.
        row: DimId,
    },
    /// `[row, axes…]`: Σ of `weight` · ∂boundary/∂gate of event `event`; see [`Op::Boundary`].
    BoundaryGrad {
        /// As the boundary's value.
        weight: NodeId,
        /// Which segment.
        side: Side,
        /// Decay.
        gates: Gates,
        /// Row dimension.
        row: DimId,
        /// Which event.
        event: usize,
    },
    /// The gated trilinear form Φ = Σ over i, j < i, a of weight[i, j] · rows[i, a] · cols[j, a] · segment(i, j)[a],
    /// or one of its derivatives. The gates' axes are among `axes`. Strictly lower: j < i.
    Gated {
        /// Which derivative; the operand of that name is absent (for `Gate`, all three are there).
        part: GatedPart,
        /// `[…, row, col]`.
        weight: Option<NodeId>,
        /// `[…, row, axes…]`.
        rows: Option<NodeId>,
        /// `[…, col, axes…]`.
        cols: Option<NodeId>,
        /// Decay.
        gates: Gates,
        /// Row dimension.
        row: DimId,
        /// Column dimension.
        col: DimId,
        /// Axes of rows and cols.
        axes: Vec<DimId>,
    },
    /// The solution `[slot, row, axes…]` of a lower triangular system, forwards or transposed:
    /// X_j\[t\] = rhs_j\[t\] + scale_j\[t\] ⊙ Σ_i Σ_s l\[j·n + i\]\[t, s\] · segment(s, t) ⊙ X_i\[s\], or
    /// Y_i\[s\] = rhs_i\[s\] + Σ_j Σ_t l\[j·n + i\]\[t, s\] · segment(s, t) ⊙ scale_j\[t\] ⊙ Y_j\[t\].
    /// Strictly lower but for entries of one token, where i < j.
    Solve(Solve),
    /// `[slot, from, row, col]`: the inverse of the system of an [`Op::Solve`] without decay and factors. With
    /// right-hand sides R the solution is X_j\[t\] = Σ_i Σ_s inverse\[j, i, t, s\] · R_i\[s\], the transposed one
    /// Y_i\[s\] = Σ_j Σ_t inverse\[j, i, t, s\] · R_j\[t\].
    Inverse(Inverse),
    /// A loop over the real rows of the step (`reverse`: from the last to the first). Results are
    /// [`Op::ScanResult`]s: the carries' last values, then the per-step results stacked along the row dimension.
    /// Void rows of a stacked result repeat the last real row (`reverse`: are zero).
    Scan(Box<Scan>),
    /// Result number `n` of a scan.
    ScanResult(NodeId, usize),
}

/// See [`Op::Solve`].
#[derive(Clone, Debug, PartialEq)]
pub struct Solve {
    /// n·n blocks `[row, col]`, row-major; absent is zero.
    pub lower: Vec<Option<NodeId>>,
    /// n right-hand sides, each with the row dimension and any of the result's axes.
    pub rhs: Vec<NodeId>,
    /// n factors `[row, axes…]`; absent is 1.
    pub scale: Vec<Option<NodeId>>,
    /// Decay on the axes of the solution; events may be empty. `from` and `to` are unused:
    /// the clocks are in `reads` and `writes`.
    pub gates: Gates,
    /// Clock at which slot j reads.
    pub reads: Vec<usize>,
    /// Clock at which slot i writes.
    pub writes: Vec<usize>,
    /// The transposed system.
    pub transposed: bool,
    /// Slot dimension of the result.
    pub slot: DimId,
    /// Row dimension.
    pub row: DimId,
    /// Column dimension of the blocks.
    pub col: DimId,
}

/// See [`Op::Inverse`].
#[derive(Clone, Debug, PartialEq)]
pub struct Inverse {
    /// n·n blocks `[row, col]`, row-major; absent is zero. As in [`Solve::lower`].
    pub lower: Vec<Option<NodeId>>,
    /// Slot dimension of the solution.
    pub slot: DimId,
    /// Slot dimension of the right-hand sides; as large.
    pub from: DimId,
    /// Row dimension.
    pub row: DimId,
    /// Column dimension, also of the blocks.
    pub col: DimId,
}

/// See [`Op::Scan`].
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// Per-row operands, with the row dimension; the body sees one row.
    pub sequences: Vec<NodeId>,
    /// Operands that do not change.
    pub invariants: Vec<NodeId>,
    /// First values of the carries.
    pub carries: Vec<NodeId>,
    /// One step.
    pub body: Body,
    /// From the last row to the first.
    pub reverse: bool,
    /// Row dimension.
    pub row: DimId,
}

/// Sides of [`Op::Boundary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// From the start of the step.
    Prefix,
    /// To the end of the step.
    Suffix,
    /// The whole step.
    Total,
}

/// Derivatives of the gated trilinear form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatedPart {
    /// ∂Φ/∂weight, `[…, row, col]`, zero where col ≥ row.
    Weight,
    /// ∂Φ/∂rows, `[…, row, axes…]`.
    Rows,
    /// ∂Φ/∂cols, `[…, col, axes…]`.
    Cols,
    /// ∂Φ/∂gate of this event, with that gate's dimensions.
    Gate(usize),
}

/// Elementwise functions of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unary {
    /// −x
    Neg,
    /// eˣ
    Exp,
    /// eˣ − 1
    Expm1,
    /// ln x
    Log,
    /// √x
    Sqrt,
    /// 1 / x
    Recip,
    /// |x|
    Abs,
    /// −1, 0 or 1
    Sign,
    /// x²
    Square,
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// ln sigmoid(x)
    LogSigmoid,
    /// ln(1 + eˣ)
    Softplus,
    /// tanh x
    Tanh,
    /// sin x
    Sin,
    /// cos x
    Cos,
    /// The error function.
    Erf,
}

/// Elementwise functions of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Binary {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// The smaller; NaN if either is.
    Min,
    /// The larger; NaN if either is.
    Max,
    /// aᵇ
    Pow,
}

/// Comparisons.
pub type Compare = crate::tile::ir::Compare;

impl Op {
    /// Operands, in a fixed order.
    pub fn operands(&self) -> Vec<NodeId> {
        let mut found = Vec::new();
        let mut copy = self.clone();
        copy.for_each_operand(&mut |id| found.push(*id));
        found
    }

    /// Visits every operand in place, in a fixed order.
    pub fn for_each_operand(&mut self, visit: &mut dyn FnMut(&mut NodeId)) {
        fn gates(gates: &mut Gates, visit: &mut dyn FnMut(&mut NodeId)) {
            for gate in &mut gates.events {
                visit(&mut gate.value);
            }
        }
        match self {
            Op::Input { .. } | Op::BodyInput(_) | Op::Const(_) => {}
            Op::Unary(_, x)
            | Op::Broadcast(x)
            | Op::Sum(x, _)
            | Op::MaxOver(x, _)
            | Op::Rename(x, _, _)
            | Op::Index(x, _, _)
            | Op::Guard(x, _)
            | Op::Diagonal(x, _, _)
            | Op::DiagonalPart(x, _, _)
            | Op::Split(x, _, _, _)
            | Op::Merge(x, _, _, _)
            | Op::StopGradient(x)
            | Op::ScanResult(x, _) => visit(x),
            Op::Binary(_, a, b) | Op::Contract(a, b, _) => {
                visit(a);
                visit(b);
            }
            Op::Select { lhs, rhs, then, otherwise, .. } => {
                for x in [lhs, rhs, then, otherwise] {
                    visit(x);
                }
            }
            Op::Stack(parts, _) => parts.iter_mut().flatten().for_each(visit),
            Op::Segment { gates: g, .. } | Op::Boundary { gates: g, .. } => gates(g, visit),
            Op::SegmentGrad { weight, gates: g, .. } | Op::BoundaryGrad { weight, gates: g, .. } => {
                visit(weight);
                gates(g, visit);
            }
            Op::Gated { weight, rows, cols, gates: g, .. } => {
                for x in [weight, rows, cols].into_iter().flatten() {
                    visit(x);
                }
                gates(g, visit);
            }
            Op::Solve(solve) => {
                solve.lower.iter_mut().flatten().for_each(&mut *visit);
                solve.rhs.iter_mut().for_each(&mut *visit);
                solve.scale.iter_mut().flatten().for_each(&mut *visit);
                gates(&mut solve.gates, visit);
            }
            Op::Inverse(inverse) => inverse.lower.iter_mut().flatten().for_each(visit),
            Op::Scan(scan) => {
                let Scan { sequences, invariants, carries, .. } = &mut **scan;
                sequences.iter_mut().chain(invariants).chain(carries).for_each(visit);
            }
        }
    }
}

impl Op {
    /// Dimensions it names itself, other than in a scan's body.
    pub fn named_dims(&self) -> Vec<DimId> {
        match self {
            Op::Input { layout, .. } => layout.clone(),
            Op::BodyInput(_)
            | Op::Const(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Guard(..)
            | Op::StopGradient(_)
            | Op::ScanResult(..) => Vec::new(),
            Op::Sum(_, over) | Op::Contract(_, _, over) => over.clone(),
            Op::MaxOver(_, dim) | Op::Index(_, dim, _) | Op::Stack(_, dim) => vec![*dim],
            Op::Rename(_, a, b) | Op::Diagonal(_, a, b) | Op::DiagonalPart(_, a, b) => vec![*a, *b],
            Op::Split(_, a, b, c) | Op::Merge(_, a, b, c) => vec![*a, *b, *c],
            Op::Segment { row, col, .. } | Op::SegmentGrad { row, col, .. } => vec![*row, *col],
            Op::Boundary { row, .. } | Op::BoundaryGrad { row, .. } => vec![*row],
            Op::Gated { row, col, axes, .. } => [&[*row, *col], axes.as_slice()].concat(),
            Op::Solve(solve) => vec![solve.slot, solve.row, solve.col],
            Op::Inverse(inverse) => vec![inverse.slot, inverse.from, inverse.row, inverse.col],
            Op::Scan(scan) => vec![scan.row],
        }
    }
}

impl Graph {
    /// The node behind an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }
    /// The dimension behind an id.
    pub fn dim(&self, id: DimId) -> &Dim {
        &self.dims[id.index()]
    }
    /// Sizes of a list of dimensions.
    pub fn sizes(&self, dims: &[DimId]) -> Vec<usize> {
        dims.iter().map(|&d| self.dim(d).size).collect()
    }
    /// Order of an output's axes in memory (the row dimension not among them): as listed, else that of input `X` for
    /// `grad.X` where the graph reads `X`, else canonical.
    pub fn output_layout(&self, name: &str) -> Vec<DimId> {
        if let Some((_, layout)) = self.layouts.iter().find(|(output, _)| output == name) {
            return layout.clone();
        }
        let like = name.strip_prefix("grad.");
        let as_input = self.nodes.iter().find_map(|node| match &node.op {
            Op::Input { name, kind: InputKind::Token, layout } if Some(name.as_str()) == like => Some(layout.clone()),
            _ => None,
        });
        as_input.unwrap_or_else(|| {
            let value = self.outputs.iter().find(|(output, _)| output == name);
            let dims = value.map_or(&[][..], |(_, node)| &self.node(*node).dims);
            dims.iter().copied().filter(|&dim| Some(dim) != self.time).collect()
        })
    }
    /// Tokens of a span, where there are spans.
    pub fn span_tokens(&self) -> Option<usize> {
        self.span.map(|steps| steps * self.tokens)
    }
    /// Rows of the row dimension (1 in a token graph).
    pub fn rows(&self) -> usize {
        self.time.map_or(1, |t| self.dim(t).size)
    }
}
