//! Whether a graph is one.
//!
//! Comes in: any graph. Goes out: the proof that it keeps every rule below, or everything that is wrong with it, as the
//! printed graph with the complaints under the offending lines. Never changes a graph.
//!
//! - Names of dimensions are unique, sizes are at least one; the step takes at least one token, `time` is a row
//!   dimension with room for them; without one a step takes one token.
//! - Ids exist; an operand comes before its user.
//! - A node's dimensions are what its operation makes of its operands ([`super::shape`]), in canonical order.
//! - A tensor is read by one input; the layout of an input has all its dimensions, and no row dimension (but for what
//!   was saved).
//! - Gates have the row dimension; clocks and events exist.
//! - A scan's body is closed: it reads its own inputs only, each declared once, in order; it gives every carry with the
//!   dimensions it takes it with.
//! - Every input that carries belongs to exactly one carry; a carry's output has its input's dimensions, without rows,
//!   and its layout has them all.
//! - Results have different names; an output has the row dimension, a layout has all its other dimensions.
//! - A forward (a graph that gives outputs named `out.…`) reads no cotangent.

use super::ir::*;
use super::shape::{Scope, body_inputs, canonical};
use super::text::{Place, print_with_notes};
use crate::pass::Verified;
use std::collections::BTreeSet;
use std::fmt;

/// What is wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// Every complaint, with the line it is about.
    pub complaints: Vec<(Place, String)>,
    /// The graph with the complaints under the offending lines.
    pub text: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text)
    }
}

impl std::error::Error for VerifyError {}

/// The proof, or the complaints.
pub fn verify(graph: &Graph) -> Result<Verified<'_, Graph>, VerifyError> {
    let mut verifier = Verifier { graph, complaints: Vec::new() };
    verifier.dims();
    // Dimensions and the nodes' own ids are looked up everywhere below.
    if verifier.complaints.is_empty() {
        verifier.arena(&graph.nodes, None, &[]);
    }
    if verifier.complaints.is_empty() {
        verifier.inputs();
        verifier.carries();
        verifier.results();
    }
    match verifier.complaints.is_empty() {
        true => Ok(Verified::by_its_verifier(graph)),
        false => {
            let text = print_with_notes(graph, &verifier.complaints);
            Err(VerifyError { complaints: verifier.complaints, text })
        }
    }
}

struct Verifier<'v> {
    graph: &'v Graph,
    complaints: Vec<(Place, String)>,
}

impl Verifier<'_> {
    fn complain(&mut self, place: Place, complaint: impl Into<String>) {
        self.complaints.push((place, complaint.into()));
    }

    fn dims(&mut self) {
        let graph = self.graph;
        for (idx, dim) in graph.dims.iter().enumerate() {
            if dim.size == 0 {
                self.complain(Place::Dim(idx), "a dimension has at least one position");
            }
            if graph.dims[..idx].iter().any(|other| other.name == dim.name) {
                self.complain(Place::Dim(idx), "another dimension has this name");
            }
        }
        if graph.tokens == 0 {
            self.complain(Place::Step, "a step takes at least one token");
        }
        if graph.span == Some(0) {
            self.complain(Place::Step, "a span has at least one step");
        }
        match graph.time.map(|time| graph.dims.get(time.index())) {
            None if graph.tokens > 1 => self.complain(Place::Step, "several tokens a step, but no row dimension"),
            None => {}
            Some(None) => self.complain(Place::Step, "its row dimension does not exist"),
            Some(Some(dim)) if dim.kind != DimKind::Row => self.complain(Place::Step, "`time` is not a row dimension"),
            Some(Some(dim)) if dim.size < graph.tokens => {
                self.complain(Place::Step, format!("{} has {} rows for {} tokens", dim.name, dim.size, graph.tokens));
            }
            Some(Some(_)) => {}
        }
    }

    /// Nodes of the graph, or of a body that is given `inputs`.
    fn arena(&mut self, nodes: &[Node], inputs: Option<&[Vec<DimId>]>, around: &[usize]) {
        for (idx, node) in nodes.iter().enumerate() {
            let path = [around, &[idx]].concat();
            if let Err(complaint) = self.ids(node, idx) {
                self.complain(Place::Node(path), complaint);
                // What comes after may look at what is wrong here.
                return;
            }
            let scope = Scope { graph: self.graph, nodes: &nodes[..idx], inputs };
            match scope.infer(&node.op, &node.dims) {
                Err(complaint) => {
                    self.complain(Place::Node(path.clone()), complaint);
                    return;
                }
                Ok(dims) if dims != node.dims => {
                    let names: Vec<&str> = dims.iter().map(|&dim| self.graph.dim(dim).name.as_str()).collect();
                    self.complain(Place::Node(path.clone()), format!("its dimensions are [{}]", names.join(", ")));
                }
                Ok(_) => {}
            }
            if let Op::Scan(scan) = &node.op {
                let given = body_inputs(&scope, scan);
                let before = self.complaints.len();
                self.arena(&scan.body.nodes, Some(&given), &path);
                self.body(scan, &given, &path);
                if self.complaints.len() > before {
                    return;
                }
            }
        }
    }

    /// Whether every node and dimension named by a node exists.
    fn ids(&self, node: &Node, idx: usize) -> Result<(), String> {
        if let Some(late) = node.op.operands().into_iter().find(|x| x.index() >= idx) {
            return Err(format!("its operand %{} does not come before it", late.0));
        }
        let named = node.op.named_dims();
        match node.dims.iter().copied().chain(named).find(|dim| dim.index() >= self.graph.dims.len()) {
            Some(dim) => Err(format!("dimension number {} does not exist", dim.0)),
            None => Ok(()),
        }
    }

    fn body(&mut self, scan: &Scan, given: &[Vec<DimId>], path: &[usize]) {
        let body = &scan.body;
        let place = Place::Body(path.to_vec());
        let declared = |node: &Node| matches!(node.op, Op::BodyInput(_));
        let in_order =
            body.inputs.iter().enumerate().all(|(number, input)| {
                body.nodes.get(input.index()).is_some_and(|node| node.op == Op::BodyInput(number))
            });
        if !in_order || body.nodes.iter().filter(|node| declared(node)).count() != body.inputs.len() {
            self.complain(place.clone(), "its inputs are not `given 0`, `given 1`, …, each once");
        }
        for (number, output) in body.outputs.iter().enumerate() {
            let Some(node) = body.nodes.get(output.index()) else {
                self.complain(place.clone(), format!("its output %{} does not exist", output.0));
                continue;
            };
            if node.dims.contains(&scan.row) {
                self.complain(place.clone(), format!("its output %{} has the dimension it goes over", output.0));
            }
            let first = scan.sequences.len() + scan.invariants.len();
            if number < scan.carries.len() && given.get(first + number) != Some(&node.dims) {
                self.complain(place.clone(), format!("its output %{} has not the dimensions of its carry", output.0));
            }
        }
    }

    fn inputs(&mut self) {
        let graph = self.graph;
        let mut read = BTreeSet::new();
        let forward = graph.outputs.iter().any(|(name, _)| name.starts_with("out."));
        for (idx, node) in graph.nodes.iter().enumerate() {
            let Op::Input { name, kind, .. } = &node.op else { continue };
            let place = Place::Node(vec![idx]);
            if *kind == InputKind::Carry {
                let owners = graph.carries.iter().filter(|carry| carry.input.index() == idx).count();
                if owners != 1 {
                    self.complain(place, format!("{owners} carries feed this input"));
                }
            } else if !read.insert(name) {
                self.complain(place, format!("another input reads `{name}`"));
            } else if *kind == InputKind::Cotangent && forward {
                self.complain(place, "a forward reads no cotangent");
            }
        }
    }

    fn carries(&mut self) {
        let graph = self.graph;
        for (idx, carry) in graph.carries.iter().enumerate() {
            let place = Place::Carry(idx);
            let (Some(input), Some(output)) =
                (graph.nodes.get(carry.input.index()), graph.nodes.get(carry.output.index()))
            else {
                self.complain(place, "it names a node that does not exist");
                continue;
            };
            if !matches!(input.op, Op::Input { kind: InputKind::Carry, .. }) {
                self.complain(place.clone(), format!("%{} is not an input that carries", carry.input.0));
            }
            if input.dims != output.dims {
                let complaint = format!("%{} and %{} have different dimensions", carry.input.0, carry.output.0);
                self.complain(place.clone(), complaint);
            }
            let sizes: Vec<usize> =
                input.dims.iter().filter_map(|dim| graph.dims.get(dim.index())).map(|dim| dim.size).collect();
            if carry.begins == Begin::Identity && !matches!(sizes[..], [rows, cols] if rows == cols) {
                self.complain(place.clone(), "only a square matrix can begin as the identity");
            }
            if !self.lays_out(&carry.layout, &input.dims) {
                self.complain(place, format!("its layout has not the dimensions of %{}", carry.input.0));
            }
        }
    }

    /// Whether a layout has exactly these dimensions, each once.
    fn lays_out(&self, layout: &[DimId], dims: &[DimId]) -> bool {
        layout.len() == dims.len()
            && layout.iter().all(|dim| dim.index() < self.graph.dims.len())
            && canonical(self.graph, layout.iter().copied()) == dims
    }

    fn results(&mut self) {
        let graph = self.graph;
        let mut names = BTreeSet::new();
        for (idx, carry) in graph.carries.iter().enumerate() {
            if carry.last.as_ref().is_some_and(|name| !names.insert(name)) {
                self.complain(Place::Carry(idx), "another result has the name of its last value");
            }
        }
        for (idx, (name, value)) in graph.outputs.iter().enumerate() {
            let place = Place::Output(idx);
            if !names.insert(name) {
                self.complain(place.clone(), "another result has this name");
            }
            let Some(node) = graph.nodes.get(value.index()) else {
                self.complain(place, format!("%{} does not exist", value.0));
                continue;
            };
            let inner: Vec<DimId> = node.dims.iter().copied().filter(|&dim| Some(dim) != graph.time).collect();
            if graph.time.is_some() && inner.len() == node.dims.len() {
                self.complain(place.clone(), format!("%{} lacks the row dimension", value.0));
            }
            if !self.lays_out(&graph.output_layout(name), &inner) {
                self.complain(place, format!("its layout has not the dimensions of %{}", value.0));
            }
        }
        for (idx, (name, _)) in graph.layouts.iter().enumerate() {
            let earlier = graph.layouts[..idx].iter().any(|(other, _)| other == name);
            if earlier || !graph.outputs.iter().any(|(output, _)| output == name) {
                self.complain(Place::Layout(idx), "a layout of no output, or a second one");
            }
        }
        for (idx, (name, value)) in graph.saves.iter().enumerate() {
            if !names.insert(name) {
                self.complain(Place::Save(idx), "another result has this name");
            }
            if value.index() >= graph.nodes.len() {
                self.complain(Place::Save(idx), format!("%{} does not exist", value.0));
            }
        }
    }
}
