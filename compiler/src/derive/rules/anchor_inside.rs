//! A decay inside a sum, within one block of rows, where its declared range is narrow: a plain product.
//!
//! In: a derived graph (forward or backward) and the program's ranges. Out: the graph with the gated sums that the
//! ranges allow rewritten, and which sums those were. It comes after transposition, so that no gradient of a gate goes
//! through an anchor: [`GatedPart::Gate`] stays a sum over pairs, which subtracts nothing.

use crate::derive::form::Inside;
use crate::derive::interval::intervals;
use crate::derive::rule::Rule;
use crate::graph::build::Builder;
use crate::graph::ir::{DimId, Gate, GateKind, GatedPart, Gates, Graph, Node, NodeId, Op, Side, Unary};
use chunkwise_dsl::bounds::Interval;
use chunkwise_dsl::program::Program;
use chunkwise_dsl::span::Span;
use std::collections::HashMap;

/// The rule.
pub const RULE: Rule = Rule {
    name: "anchor the decay inside a block",
    before: "Σ_k r_k · u_{e,k} · exp(γ_r − γ_e)_k, r and e rows of one block, e before r (and the sums over e and over r \
             of its backward)",
    after: "Σ_k (r_k · p_r) · (u_{e,k} / p_e) where e is before r, else 0;  p = 2^h · exp(γ − γ_I), γ_I the clock at \
            which the block opens",
    holds_when: "every log gate is declared in [L, 0] and |L| · rows · (decays a token) · log₂e < 126, with room for \
                 rounding to bfloat16: then 2^-63 ≤ p ≤ 2^63; the anchor and h depend on shape and declared range alone, \
                 never on data or on a later token; gradients of gates stay sums over pairs, which subtract nothing",
    why: "a segment is a prefix divided by a prefix; p is a product of factors, so what both prefixes share cancels as it \
          was rounded",
    source: "Yang et al. 2023, arXiv 2312.06635, §4.3; causal anchors as in public reports on safe gates for KDA",
};

/// Powers of two that float32 holds on the far side of one.
pub const EXPONENTS: f64 = 126.0;

/// What rounding to bfloat16 may add to a bound, relative to it.
const ROUNDING: f64 = 1.0 / 256.0;

/// What the declared ranges say of one decay inside a block.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Lowest sum of the log gates of one token; −∞ where nothing is declared.
    pub lowest: f64,
    /// Rows of a block.
    pub rows: usize,
    /// Decays a token.
    pub decays: usize,
    /// Whether the ranges allow the plain product.
    pub allowed: bool,
    /// The decay in the source.
    pub span: Option<Span>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Found { lowest, rows, decays, allowed, .. } = self;
        if !lowest.is_finite() {
            return write!(f, "no declared range bounds the log gates from below, and by 0 from above");
        }
        let bits = self.bits();
        write!(
            f,
            "log gates of a token sum to {lowest} at least, over {rows} rows with {decays} decays each: {:.4} · {rows} · \
             log₂e = {bits:.2}, {} 126",
            lowest.abs(),
            if *allowed { "below" } else { "not below" }
        )
    }
}

impl Found {
    /// log₂ of what a block may decay by.
    fn bits(&self) -> f64 {
        self.lowest.abs() * self.rows as f64 * std::f64::consts::LOG2_E
    }

    fn of(gates: &Gates, row: DimId, graph: &Graph, bounds: &[Interval]) -> Found {
        let mut lowest = 0.0;
        for gate in &gates.events {
            let Interval { lo, hi } = bounds[gate.value.index()];
            lowest += if gate.kind == GateKind::Log && hi <= 0.0 { lo } else { f64::NEG_INFINITY };
        }
        let span = gates.events.iter().find_map(|gate| graph.node(gate.value).span);
        let (rows, decays) = (graph.dim(row).size, gates.events.len());
        let mut found = Found { lowest, rows, decays, allowed: false, span };
        found.allowed = decays > 0 && found.bits() * (1.0 + ROUNDING) < EXPONENTS;
        found
    }

    /// Half of what a block may decay by, as a power of two: it puts p in the middle of what float32 holds.
    fn half(&self) -> f64 {
        (self.bits() / 2.0).round().exp2()
    }
}

/// Rewrites what the ranges allow and `inside` asks for; says what was found of every decay inside a sum.
pub fn apply(graph: Graph, program: &Program, inside: Inside) -> (Graph, Vec<Found>) {
    let bounds = intervals(&graph, program);
    let mut all: Vec<Found> = Vec::new();
    let mut old = graph;
    let nodes = std::mem::take(&mut old.nodes);
    let with_nodes = Graph { nodes, ..old.clone() };
    let mut b = Builder::with_dims(old.dims.clone());
    let mut new: HashMap<NodeId, NodeId> = HashMap::new();
    for (at, node) in with_nodes.nodes.iter().enumerate() {
        b.rule = node.rule;
        b.span = node.span;
        let mut op = node.op.clone();
        op.for_each_operand(&mut |x| *x = new[x]);
        let mut rewritten = None;
        if let (Op::Gated { gates, row, .. }, Op::Gated { gates: moved, .. }) = (&node.op, &op) {
            let found = Found::of(gates, *row, &with_nodes, &bounds);
            if found.allowed && inside == Inside::Anchored {
                b.rule = RULE.name;
                rewritten = anchored(&mut b, &op, node, moved, found.half(), old.reverse);
            }
            if !all.contains(&found) {
                all.push(found);
            }
        }
        let id = rewritten.unwrap_or_else(|| b.add(op, node.dims.clone()));
        new.insert(NodeId(at as u32), id);
    }
    for carry in &mut old.carries {
        carry.input = new[&carry.input];
        carry.output = new[&carry.output];
    }
    for (_, node) in old.outputs.iter_mut().chain(&mut old.saves) {
        *node = new[node];
    }
    (Graph { dims: b.dims, nodes: b.nodes, ..old }, all)
}

/// The plain product for one derivative of the gated form; none where it has to stay a sum over pairs.
fn anchored(b: &mut Builder, op: &Op, node: &Node, gates: &Gates, half: f64, backward: bool) -> Option<NodeId> {
    let Op::Gated { part, weight, rows, cols, row, col, axes, .. } = op else { return None };
    let (row, col) = (*row, *col);
    let p_row = prefix(b, gates, gates.to, row, half);
    let p_col = {
        let p = prefix(b, gates, gates.from, row, half);
        let inverse = b.unary(Unary::Recip, p);
        b.rename(inverse, row, col)
    };
    // The mask comes after the product: what it hides may have overflowed, and is left out, not multiplied by zero.
    let no_gates = Gates { events: vec![], from: 0, to: 0 };
    let mask = b.add(Op::Segment { gates: no_gates, row, col, diagonal: false }, vec![row, col]);
    let result = match (part, weight, rows, cols) {
        (GatedPart::Weight, _, Some(rows), Some(cols)) => {
            let rows = b.times(*rows, p_row);
            let cols = b.times(*cols, p_col);
            let product = b.contract(rows, cols, axes);
            b.times(product, mask)
        }
        // A sum over tokens meets every column, hidden or not, and a large one times 1/p may be infinite. In a forward
        // that would let the future into the past.
        (GatedPart::Rows, Some(weight), _, Some(cols)) if backward => {
            let weight = b.times(*weight, mask);
            let cols = b.times(*cols, p_col);
            let product = b.contract(weight, cols, &[col]);
            b.times(product, p_row)
        }
        (GatedPart::Cols, Some(weight), Some(rows), _) if backward => {
            let weight = b.times(*weight, mask);
            let rows = b.times(*rows, p_row);
            let product = b.contract(weight, rows, &[row]);
            b.times(product, p_col)
        }
        (GatedPart::Weight | GatedPart::Rows | GatedPart::Cols | GatedPart::Gate(_), ..) => return None,
    };
    Some(b.broadcast(result, &node.dims))
}

/// `[row, …]`: 2^h times the decay from the block's opening to a clock of each row, as a running product.
fn prefix(b: &mut Builder, gates: &Gates, clock: usize, row: DimId, half: f64) -> NodeId {
    let events: Vec<Gate> =
        gates.events.iter().map(|gate| Gate { value: b.exp(gate.value), kind: GateKind::Factor }).collect();
    let gates = Gates { events, from: 0, to: clock };
    let dims = b.gate_dims(&gates);
    let decay = b.add(Op::Boundary { side: Side::Prefix, gates, row }, dims);
    let half = b.constant(half);
    b.times(decay, half)
}
