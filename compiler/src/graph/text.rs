//! The graph as text (`.cwg`).
//!
//! Comes in: any graph, right or wrong. Goes out: text, one node a line, that [`parse`] reads back to an equal graph;
//! or the same text with complaints under the lines they are about. Never checks anything: that is
//! [`super::verify`]'s part.
//!
//! # Grammar
//! `*` repeats, `?` is optional. A semicolon starts a comment that ends with the line; a node's own comment names the
//! rule that made it and its place in the source. Line breaks are only spaces.
//! ```text
//! graph    = "graph" name "{" dim* step node* carry* output* layout* save* "}"
//! dim      = "dim" name ":" ("slot" | "block" | "block_col" | "row" | "col" | "axis" rank) size
//! step     = "step" "tokens" "=" integer ("time" "=" dim)? "reverse"? ("span" "=" integer)?
//! node     = %n "=" operation ":" "[" dims "]"
//! carry    = "carry" name "=" %n "->" %n ("init" "=" name)? ("from" ("one" | "identity"))? ("final" "=" name)?
//!            ("layout" "[" dims "]")?
//! output   = "output" name "=" %n
//! layout   = "layout" name "[" dims "]"
//! save     = "save" name "=" %n
//!
//! operation
//!   = ("token" | "cotangent" | "head" | "carry" | "saved") name ("layout" "[" dims "]")?
//!   | "given" integer | "const" number | unary %n | binary %n %n
//!   | "select" ("lt" | "le" | "eq") %n %n %n %n
//!   | "broadcast" %n | "stop_gradient" %n
//!   | "sum" %n ("over" dims)? | "max_over" %n "over" dim | "contract" %n %n ("over" dims)?
//!   | "rename" %n dim "->" dim | "split" %n dim "->" dim "," dim | "merge" %n dim "," dim "->" dim
//!   | "index" %n dim "at" integer | "stack" dim nodes | "guard" %n number
//!   | "diagonal" %n dim dim | "diagonal_part" %n dim dim
//!   | "segment" dim dim "diagonal"? gates | "segment_grad" integer %n dim dim "diagonal"? gates
//!   | "boundary" side dim gates | "boundary_grad" integer %n side dim gates
//!   | "gated" ("weight" | "rows" | "cols" | "gate" integer)
//!       ("weight" "=" %n)? ("rows" "=" %n)? ("cols" "=" %n)? dim dim ("over" dims)? gates
//!   | "solve" "transposed"? dim dim dim "lower" nodes "rhs" nodes "scale" nodes "reads" clocks "writes" clocks gates
//!   | "inverse" dim dim dim dim "lower" nodes
//!   | "scan" "reverse"? dim "sequences" nodes "invariants" nodes "carries" nodes
//!       "{" node* "inputs" nodes "outputs" nodes "}"
//!   | "result" %n integer
//! gates    = "gates" "(" (("log" | "factor") %n ("," …)*)? ")" "from" integer "to" integer
//! nodes    = "(" ((%n | "_") ("," …)*)? ")"
//! clocks   = "(" (integer ("," …)*)? ")"
//! side     = "prefix" | "suffix" | "total"
//! ```
//! Without `layout` the axes of an input or carry lie in memory in the order of its dimensions. A name that is not made
//! of letters, digits, `_`, `.` and `-` stands in quotes.

use super::ir::*;
use std::fmt::Write;

pub use super::parse::{ParseError, parse};

/// A line of the printed graph that a complaint can stand under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The first line.
    Head,
    /// A dimension.
    Dim(usize),
    /// The line that says what a step is.
    Step,
    /// A node: its position in the graph; in a body, the positions of the scans around it first.
    Node(Vec<usize>),
    /// What the body of the scan at this position takes and gives.
    Body(Vec<usize>),
    /// A carry.
    Carry(usize),
    /// An output.
    Output(usize),
    /// An output's layout.
    Layout(usize),
    /// A save.
    Save(usize),
}

/// The graph as text.
pub fn print(graph: &Graph) -> String {
    print_with_notes(graph, &[])
}

/// The graph as text, with notes as comments under the lines they are about.
pub fn print_with_notes(graph: &Graph, notes: &[(Place, String)]) -> String {
    let mut printer = Printer { graph, notes, text: String::new() };
    printer.graph();
    printer.text
}

/// Names of elementwise functions of one value.
pub const UNARY: &[(Unary, &str)] = &[
    (Unary::Neg, "neg"),
    (Unary::Exp, "exp"),
    (Unary::Expm1, "expm1"),
    (Unary::Log, "log"),
    (Unary::Sqrt, "sqrt"),
    (Unary::Recip, "recip"),
    (Unary::Abs, "abs"),
    (Unary::Sign, "sign"),
    (Unary::Square, "square"),
    (Unary::Sigmoid, "sigmoid"),
    (Unary::LogSigmoid, "logsigmoid"),
    (Unary::Softplus, "softplus"),
    (Unary::Tanh, "tanh"),
    (Unary::Sin, "sin"),
    (Unary::Cos, "cos"),
    (Unary::Erf, "erf"),
];
/// Names of elementwise functions of two values.
pub const BINARY: &[(Binary, &str)] = &[
    (Binary::Add, "add"),
    (Binary::Sub, "sub"),
    (Binary::Mul, "mul"),
    (Binary::Div, "div"),
    (Binary::Min, "min"),
    (Binary::Max, "max"),
    (Binary::Pow, "pow"),
];
/// Names of comparisons.
pub const COMPARE: &[(Compare, &str)] = &[(Compare::Lt, "lt"), (Compare::Le, "le"), (Compare::Eq, "eq")];
/// Names of kinds of input.
pub const INPUT: &[(InputKind, &str)] = &[
    (InputKind::Token, "token"),
    (InputKind::Cotangent, "cotangent"),
    (InputKind::Head, "head"),
    (InputKind::Carry, "carry"),
    (InputKind::Saved, "saved"),
];
/// Names of sides.
pub const SIDE: &[(Side, &str)] = &[(Side::Prefix, "prefix"), (Side::Suffix, "suffix"), (Side::Total, "total")];
/// Names of kinds of gate.
pub const GATE: &[(GateKind, &str)] = &[(GateKind::Log, "log"), (GateKind::Factor, "factor")];

fn name_in<T: Copy + PartialEq>(table: &[(T, &'static str)], value: T) -> &'static str {
    table.iter().find(|(entry, _)| *entry == value).map(|(_, name)| *name).expect("the tables name everything")
}

/// Words that may stand where a dimension does: a name like one of these is quoted.
const RESERVED: &[&str] = &["reverse", "transposed", "diagonal", "over", "gates"];

/// Whether a name needs no quotes.
pub fn is_plain(name: &str) -> bool {
    !RESERVED.contains(&name)
        && name.chars().all(|c| c.is_alphanumeric() || "_.-".contains(c))
        && name.starts_with(|c: char| c.is_alphanumeric())
}

fn quoted(name: &str) -> String {
    match is_plain(name) {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")),
    }
}

fn ids(nodes: &[NodeId]) -> String {
    listed(nodes.iter().map(|x| format!("%{}", x.0)))
}

fn optional_ids(nodes: &[Option<NodeId>]) -> String {
    listed(nodes.iter().map(|x| x.map_or("_".to_owned(), |x| format!("%{}", x.0))))
}

fn listed(items: impl Iterator<Item = String>) -> String {
    format!("({})", items.collect::<Vec<_>>().join(", "))
}

struct Printer<'p> {
    graph: &'p Graph,
    notes: &'p [(Place, String)],
    text: String,
}

impl Printer<'_> {
    fn line(&mut self, depth: usize, place: &Place, text: &str) {
        let indent = "  ".repeat(depth);
        let _ = writeln!(self.text, "{indent}{text}");
        for (_, note) in self.notes.iter().filter(|(at, _)| at == place) {
            let note = note.replace('\n', "; ");
            let _ = writeln!(self.text, "{indent}; ^ {note}");
        }
    }

    fn dim(&self, dim: DimId) -> String {
        // A wrong graph is printed too.
        self.graph.dims.get(dim.index()).map_or(format!("\"dim {}\"", dim.0), |dim| quoted(&dim.name))
    }

    fn dims(&self, dims: &[DimId]) -> String {
        dims.iter().map(|&dim| self.dim(dim)).collect::<Vec<_>>().join(", ")
    }

    fn over(&self, dims: &[DimId]) -> String {
        if dims.is_empty() { String::new() } else { format!(" over {}", self.dims(dims)) }
    }

    fn graph(&mut self) {
        let graph = self.graph;
        self.line(0, &Place::Head, &format!("graph {} {{", quoted(&graph.name)));
        for (idx, dim) in graph.dims.iter().enumerate() {
            let kind = match dim.kind {
                DimKind::Slot => "slot".to_owned(),
                DimKind::Block => "block".to_owned(),
                DimKind::BlockCol => "block_col".to_owned(),
                DimKind::Row => "row".to_owned(),
                DimKind::Col => "col".to_owned(),
                DimKind::Axis(rank) => format!("axis {rank}"),
            };
            self.line(1, &Place::Dim(idx), &format!("dim {} : {kind} {}", quoted(&dim.name), dim.size));
        }
        let time = graph.time.map_or(String::new(), |time| format!(" time={}", self.dim(time)));
        let reverse = if graph.reverse { " reverse" } else { "" };
        let span = graph.span.map_or(String::new(), |steps| format!(" span={steps}"));
        self.line(1, &Place::Step, &format!("step tokens={}{time}{reverse}{span}", graph.tokens));
        self.nodes(1, &graph.nodes, &[]);
        for (idx, carry) in graph.carries.iter().enumerate() {
            let mut text = format!("carry {} = %{} -> %{}", quoted(&carry.name), carry.input.0, carry.output.0);
            if let Some(tensor) = &carry.init {
                let _ = write!(text, " init={}", quoted(tensor));
            }
            text.push_str(match carry.begins {
                Begin::Zero => "",
                Begin::One => " from one",
                Begin::Identity => " from identity",
            });
            if let Some(tensor) = &carry.last {
                let _ = write!(text, " final={}", quoted(tensor));
            }
            if graph.nodes.get(carry.input.index()).map(|node| &node.dims) != Some(&carry.layout) {
                let _ = write!(text, " layout [{}]", self.dims(&carry.layout));
            }
            self.line(1, &Place::Carry(idx), &text);
        }
        for (idx, (name, node)) in graph.outputs.iter().enumerate() {
            self.line(1, &Place::Output(idx), &format!("output {} = %{}", quoted(name), node.0));
        }
        for (idx, (name, layout)) in graph.layouts.iter().enumerate() {
            self.line(1, &Place::Layout(idx), &format!("layout {} [{}]", quoted(name), self.dims(layout)));
        }
        for (idx, (name, node)) in graph.saves.iter().enumerate() {
            self.line(1, &Place::Save(idx), &format!("save {} = %{}", quoted(name), node.0));
        }
        self.text.push_str("}\n");
    }

    fn nodes(&mut self, depth: usize, nodes: &[Node], around: &[usize]) {
        for (idx, node) in nodes.iter().enumerate() {
            let path = [around, &[idx]].concat();
            let mut end = format!(" : [{}]", self.dims(&node.dims));
            let origin = [
                (!node.rule.is_empty()).then(|| format!("rule {}", quoted(node.rule))),
                node.span.map(|span| format!("@{}..{}", span.start, span.end)),
            ];
            let origin: Vec<String> = origin.into_iter().flatten().collect();
            if !origin.is_empty() {
                let _ = write!(end, "  ; {}", origin.join(" "));
            }
            match &node.op {
                Op::Scan(scan) => {
                    let reverse = if scan.reverse { "reverse " } else { "" };
                    let head = format!(
                        "%{idx} = scan {reverse}{} sequences {} invariants {} carries {} {{",
                        self.dim(scan.row),
                        ids(&scan.sequences),
                        ids(&scan.invariants),
                        ids(&scan.carries)
                    );
                    let _ = writeln!(self.text, "{}{head}", "  ".repeat(depth));
                    self.nodes(depth + 1, &scan.body.nodes, &path);
                    let ends = format!("inputs {} outputs {}", ids(&scan.body.inputs), ids(&scan.body.outputs));
                    self.line(depth + 1, &Place::Body(path.clone()), &ends);
                    self.line(depth, &Place::Node(path), &format!("}}{end}"));
                }
                op => {
                    let text = format!("%{idx} = {}{end}", self.op(op, &node.dims));
                    self.line(depth, &Place::Node(path), &text);
                }
            }
        }
    }

    fn gates(&self, gates: &Gates) -> String {
        let event = |gate: &Gate| format!("{} %{}", name_in(GATE, gate.kind), gate.value.0);
        format!("gates {} from {} to {}", listed(gates.events.iter().map(event)), gates.from, gates.to)
    }

    fn op(&self, op: &Op, dims: &[DimId]) -> String {
        let pair = |row: &DimId, col: &DimId| format!("{} {}", self.dim(*row), self.dim(*col));
        match op {
            Op::Input { name, kind, layout } => {
                let head = format!("{} {}", name_in(INPUT, *kind), quoted(name));
                match *layout == default_layout(self.graph.time, *kind, dims) {
                    true => head,
                    false => format!("{head} layout [{}]", self.dims(layout)),
                }
            }
            Op::BodyInput(number) => format!("given {number}"),
            Op::Const(number) => format!("const {number:?}"),
            Op::Unary(function, x) => format!("{} %{}", name_in(UNARY, *function), x.0),
            Op::Binary(function, a, b) => format!("{} %{} %{}", name_in(BINARY, *function), a.0, b.0),
            Op::Select { op, lhs, rhs, then, otherwise } => {
                let op = name_in(COMPARE, *op);
                format!("select {op} %{} %{} %{} %{}", lhs.0, rhs.0, then.0, otherwise.0)
            }
            Op::Broadcast(x) => format!("broadcast %{}", x.0),
            Op::StopGradient(x) => format!("stop_gradient %{}", x.0),
            Op::Sum(x, over) => format!("sum %{}{}", x.0, self.over(over)),
            Op::MaxOver(x, dim) => format!("max_over %{} over {}", x.0, self.dim(*dim)),
            Op::Contract(a, b, over) => format!("contract %{} %{}{}", a.0, b.0, self.over(over)),
            Op::Rename(x, from, to) => format!("rename %{} {} -> {}", x.0, self.dim(*from), self.dim(*to)),
            Op::Index(x, dim, at) => format!("index %{} {} at {at}", x.0, self.dim(*dim)),
            Op::Stack(parts, dim) => format!("stack {} {}", self.dim(*dim), optional_ids(parts)),
            Op::Guard(x, number) => format!("guard %{} {number:?}", x.0),
            Op::Diagonal(x, row, col) => format!("diagonal %{} {}", x.0, pair(row, col)),
            Op::DiagonalPart(x, row, col) => format!("diagonal_part %{} {}", x.0, pair(row, col)),
            Op::Split(x, dim, outer, inner) => {
                format!("split %{} {} -> {}", x.0, self.dim(*dim), self.dims(&[*outer, *inner]))
            }
            Op::Merge(x, outer, inner, dim) => {
                format!("merge %{} {} -> {}", x.0, self.dims(&[*outer, *inner]), self.dim(*dim))
            }
            Op::Segment { gates, row, col, diagonal } => {
                let diagonal = if *diagonal { " diagonal" } else { "" };
                format!("segment {}{diagonal} {}", pair(row, col), self.gates(gates))
            }
            Op::SegmentGrad { weight, gates, row, col, diagonal, event } => {
                let diagonal = if *diagonal { " diagonal" } else { "" };
                format!("segment_grad {event} %{} {}{diagonal} {}", weight.0, pair(row, col), self.gates(gates))
            }
            Op::Boundary { side, gates, row } => {
                format!("boundary {} {} {}", name_in(SIDE, *side), self.dim(*row), self.gates(gates))
            }
            Op::BoundaryGrad { weight, side, gates, row, event } => {
                let side = name_in(SIDE, *side);
                format!("boundary_grad {event} %{} {side} {} {}", weight.0, self.dim(*row), self.gates(gates))
            }
            Op::Gated { part, weight, rows, cols, gates, row, col, axes } => {
                let mut text = match part {
                    GatedPart::Weight => "gated weight".to_owned(),
                    GatedPart::Rows => "gated rows".to_owned(),
                    GatedPart::Cols => "gated cols".to_owned(),
                    GatedPart::Gate(event) => format!("gated gate {event}"),
                };
                for (name, operand) in [("weight", weight), ("rows", rows), ("cols", cols)] {
                    if let Some(operand) = operand {
                        let _ = write!(text, " {name}=%{}", operand.0);
                    }
                }
                format!("{text} {}{} {}", pair(row, col), self.over(axes), self.gates(gates))
            }
            Op::Solve(solve) => self.solve(solve),
            Op::Inverse(Inverse { lower, slot, from, row, col }) => {
                let slots = pair(slot, from);
                format!("inverse {slots} {} lower {}", pair(row, col), optional_ids(lower))
            }
            Op::Scan(_) => unreachable!("a scan takes more than a line"),
            Op::ScanResult(x, number) => format!("result %{} {number}", x.0),
        }
    }

    fn solve(&self, solve: &Solve) -> String {
        let clocks = |clocks: &[usize]| listed(clocks.iter().map(usize::to_string));
        format!(
            "solve {}{} {} {} lower {} rhs {} scale {} reads {} writes {} {}",
            if solve.transposed { "transposed " } else { "" },
            self.dim(solve.slot),
            self.dim(solve.row),
            self.dim(solve.col),
            optional_ids(&solve.lower),
            ids(&solve.rhs),
            optional_ids(&solve.scale),
            clocks(&solve.reads),
            clocks(&solve.writes),
            self.gates(&solve.gates)
        )
    }
}

/// The layout of an input that does not say its layout.
pub fn default_layout(time: Option<DimId>, kind: InputKind, dims: &[DimId]) -> Vec<DimId> {
    let per_token = match kind {
        InputKind::Token | InputKind::Cotangent => true,
        InputKind::Head | InputKind::Carry | InputKind::Saved => false,
    };
    dims.iter().copied().filter(|&dim| !(per_token && Some(dim) == time)).collect()
}
