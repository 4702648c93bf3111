//! What a graph means, in float64.
//!
//! Comes in: a graph that passed its verifier and named tensors as in a fixture. Goes out: its outputs, the last
//! values of its carries, what it saves. Slow and plain on purpose: it is the oracle of every rewrite and of every
//! compiled kernel. Never reorders a step, never shares a value between two nodes, never reads a file.

mod bind;
mod gated;
mod plan;

use super::ir::{Begin, DimId, Graph, InputKind, NodeId, Op};
use crate::tensor::{Bundle, Tensor};
use bind::Placed;
pub use bind::{Extent, InterpError};
use plan::{Frame, Plan};

/// Runs the graph over every sequence and head. `heads` is the head count where it is more than any tensor shows.
pub fn run(graph: &Graph, bundle: &Bundle, heads: Option<usize>) -> Result<Bundle, InterpError> {
    run_over(graph, bundle, &Extent::of(&[graph], bundle, heads, None)?)
}

/// Runs a forward that saves, then the backward that reads what was saved. Gives the results of both, without
/// what was saved.
pub fn run_backward(
    forward_saving: &Graph,
    backward: &Graph,
    bundle: &Bundle,
    heads: Option<usize>,
) -> Result<Bundle, InterpError> {
    let extent = Extent::of(&[forward_saving, backward], bundle, heads, None)?;
    run_backward_over(forward_saving, backward, bundle, &extent)
}

/// [`run_backward`] where it is known what to go over.
pub fn run_backward_over(
    forward_saving: &Graph,
    backward: &Graph,
    bundle: &Bundle,
    extent: &Extent,
) -> Result<Bundle, InterpError> {
    let mut results = run_over(forward_saving, bundle, extent)?;
    let mut given = bundle.clone();
    for (name, _) in &forward_saving.saves {
        let saved = results.shift_remove(name).expect("a run gives everything the graph saves");
        given.insert(name.clone(), saved);
    }
    results.extend(run_over(backward, &given, extent)?);
    Ok(results)
}

/// [`run`] where it is known what to go over.
pub fn run_over(graph: &Graph, bundle: &Bundle, extent: &Extent) -> Result<Bundle, InterpError> {
    let plan = Plan::new(graph, &graph.nodes);
    let mut run = Run::new(graph, bundle, extent)?;
    let mut frame = plan.frame();
    for sequence in 0..extent.sequences() {
        for head in 0..extent.heads {
            run.item(&plan, &mut frame, sequence, head);
        }
    }
    Ok(run.results)
}

/// Everything that is fixed while the items of a run are gone through.
struct Run<'r> {
    graph: &'r Graph,
    extent: &'r Extent,
    /// Where the value of each input node comes from.
    inputs: Vec<(NodeId, Source<'r>)>,
    /// By carry: where its first value comes from.
    first: Vec<Option<&'r Tensor>>,
    /// Spans of a sequence for which tensors have room; one where there are no spans.
    spans: usize,
    /// By carry: its value between steps, and where its elements stand in a tensor.
    carried: Vec<(Vec<f64>, Placed)>,
    /// By output and by save: where the elements stand.
    outputs: Vec<Placed>,
    saves: Vec<Placed>,
    results: Bundle,
}

/// Where an input's value comes from.
enum Source<'r> {
    /// `[B, T, H, …]`; void rows repeat the last real row.
    Token(&'r Tensor, Placed),
    /// `[B, T, H, …]`, zero in void rows and where absent.
    Cotangent(Option<&'r Tensor>, Placed),
    /// `[H, …]`
    Head(&'r Tensor, Placed),
    /// `[B, steps, H, …]`
    Saved(&'r Tensor, Placed),
    /// The carry of this number.
    Carry(usize),
}

/// Some tokens of one sequence and head.
struct Step {
    sequence: usize,
    head: usize,
    /// Which step of the sequence.
    number: usize,
    /// Position of the first token in the token tensors, and how many there are.
    first: (usize, usize),
    count: usize,
}

impl<'r> Run<'r> {
    fn new(graph: &'r Graph, bundle: &'r Bundle, extent: &'r Extent) -> Result<Run<'r>, InterpError> {
        let steps = extent.steps(graph.tokens);
        let sizes = |layout: &[DimId]| graph.sizes(layout);
        let mut inputs = Vec::new();
        for (idx, node) in graph.nodes.iter().enumerate() {
            let Op::Input { name, kind, layout } = &node.op else { continue };
            let placed = Placed::new(graph, &node.dims, layout);
            let inner = sizes(layout);
            let source = match kind {
                InputKind::Token => Source::Token(extent.token_tensor(bundle, name, &inner)?, placed),
                InputKind::Cotangent if !bundle.contains_key(name) => Source::Cotangent(None, placed),
                InputKind::Cotangent => Source::Cotangent(Some(extent.token_tensor(bundle, name, &inner)?), placed),
                InputKind::Head => Source::Head(extent.head_tensor(bundle, name, &inner)?, placed),
                InputKind::Saved => {
                    let leading = [extent.sequences(), steps, extent.heads];
                    Source::Saved(bind::exact_tensor(bundle, name, &leading, &inner)?, placed)
                }
                InputKind::Carry => {
                    let carry = graph.carries.iter().position(|carry| carry.input.index() == idx);
                    Source::Carry(carry.ok_or_else(|| InterpError::Graph(format!("no carry feeds input `{name}`")))?)
                }
            };
            inputs.push((NodeId(idx as u32), source));
        }
        let mut results = Bundle::new();
        for (name, _) in &graph.outputs {
            let heads = extent.heads_of_result(bundle, name, 2);
            let mut shape = vec![extent.batch, extent.length, heads];
            shape.extend(sizes(&graph.output_layout(name)));
            results.insert(name.clone(), Tensor::zeros(&shape));
        }
        let spans = graph.span_tokens().map_or(1, |tokens| extent.steps(tokens));
        let leading = match graph.span {
            Some(_) => vec![extent.sequences(), spans, extent.heads],
            None => vec![extent.sequences(), extent.heads],
        };
        let mut first = Vec::new();
        let mut carried = Vec::new();
        for carry in &graph.carries {
            let inner = sizes(&carry.layout);
            let init = carry.init.as_ref().filter(|name| bundle.contains_key(*name));
            first.push(init.map(|name| bind::exact_tensor(bundle, name, &leading, &inner)).transpose()?);
            let dims = &graph.node(carry.input).dims;
            let elements = sizes(dims).iter().product();
            carried.push((vec![0.0; elements], Placed::new(graph, dims, &carry.layout)));
            if let Some(name) = &carry.last {
                let mut shape = match is_parameter_gradient(name) {
                    true => vec![extent.heads_of_result(bundle, name, 0)],
                    false => leading.clone(),
                };
                shape.extend(inner);
                results.insert(name.clone(), Tensor::zeros(&shape));
            }
        }
        for (name, node) in &graph.saves {
            let mut shape = vec![extent.sequences(), steps, extent.heads];
            shape.extend(sizes(&graph.node(*node).dims));
            results.insert(name.clone(), Tensor::zeros(&shape));
        }
        let outputs = graph.outputs.iter().map(|(name, node)| {
            let dims = &graph.node(*node).dims;
            Placed::new(graph, dims, &graph.output_layout(name))
        });
        let saves = graph.saves.iter().map(|(_, node)| {
            let dims = &graph.node(*node).dims;
            Placed::new(graph, dims, dims)
        });
        let (outputs, saves) = (outputs.collect(), saves.collect());
        Ok(Run { graph, extent, inputs, first, spans, carried, outputs, saves, results })
    }

    /// All steps of one sequence and head.
    fn item(&mut self, plan: &Plan, frame: &mut Frame, sequence: usize, head: usize) {
        let (_, _, length) = self.extent.sequence(sequence);
        let n_steps = length.div_ceil(self.graph.tokens);
        match self.graph.span {
            None => self.steps(plan, frame, (sequence, head, 0), 0..n_steps),
            Some(steps) => {
                for span in 0..n_steps.div_ceil(steps) {
                    let own = span * steps..n_steps.min((span + 1) * steps);
                    self.steps(plan, frame, (sequence, head, span), own);
                }
            }
        }
    }

    /// Steps that follow one another: all of an item's, or those of one span.
    fn steps(
        &mut self,
        plan: &Plan,
        frame: &mut Frame,
        (sequence, head, span): (usize, usize, usize),
        own: std::ops::Range<usize>,
    ) {
        let block = (sequence * self.spans + span) * self.extent.heads + head;
        for (((value, placed), init), carry) in self.carried.iter_mut().zip(&self.first).zip(&self.graph.carries) {
            match (init, carry.begins) {
                (Some(tensor), _) => placed.load(value, &tensor.data[block * placed.inner..]),
                (None, Begin::Zero) => value.fill(0.0),
                (None, Begin::One) => value.fill(1.0),
                (None, Begin::Identity) => {
                    let rows = value.len().isqrt();
                    value.fill(0.0);
                    value.iter_mut().step_by(rows + 1).for_each(|element| *element = 1.0);
                }
            }
        }
        let (batch, start, length) = self.extent.sequence(sequence);
        for turn in 0..own.len() {
            let number = if self.graph.reverse { own.end - 1 - turn } else { own.start + turn };
            let offset = number * self.graph.tokens;
            let count = self.graph.tokens.min(length - offset);
            let step = Step { sequence, head, number, first: (batch, start + offset), count };
            self.load(frame, &step);
            plan.evaluate(frame, count);
            self.store(frame, &step);
            for (carry, (value, _)) in self.graph.carries.iter().zip(&mut self.carried) {
                value.copy_from_slice(frame.value(carry.output));
            }
        }
        for (carry, (value, placed)) in self.graph.carries.iter().zip(&self.carried) {
            let Some(name) = &carry.last else { continue };
            let tensor = self.results.get_mut(name).expect("made when the run began");
            let block = match is_parameter_gradient(name) {
                true => head / (self.extent.heads / tensor.shape[0]),
                false => block,
            };
            placed.add(value, &mut tensor.data[block * placed.inner..]);
        }
    }

    /// Fills the values of all input nodes for a step.
    fn load(&self, frame: &mut Frame, step: &Step) {
        for (node, source) in &self.inputs {
            let value = frame.value_mut(*node);
            match source {
                Source::Token(tensor, placed) => {
                    let at = self.token_block(tensor, step, placed);
                    placed.load_rows(value, &tensor.data[at..], tensor.shape[2], |row| Some(row.min(step.count - 1)));
                }
                Source::Cotangent(None, _) => value.fill(0.0),
                Source::Cotangent(Some(tensor), placed) => {
                    let at = self.token_block(tensor, step, placed);
                    let real = |row| (row < step.count).then_some(row);
                    placed.load_rows(value, &tensor.data[at..], tensor.shape[2], real);
                }
                Source::Head(tensor, placed) => {
                    let head = step.head / (self.extent.heads / tensor.shape[0]);
                    placed.load(value, &tensor.data[head * placed.inner..]);
                }
                Source::Saved(tensor, placed) => {
                    let block = (step.sequence * tensor.shape[1] + step.number) * tensor.shape[2] + step.head;
                    placed.load(value, &tensor.data[block * placed.inner..]);
                }
                Source::Carry(carry) => value.copy_from_slice(&self.carried[*carry].0),
            }
        }
    }

    /// Keeps the outputs and saves of a step. Heads that share an input add up their gradients.
    fn store(&mut self, frame: &Frame, step: &Step) {
        for ((name, node), placed) in self.graph.outputs.iter().zip(&self.outputs) {
            let tensor = &self.results[name];
            let (at, heads) = (self.token_block(tensor, step, placed), tensor.shape[2]);
            let data = &mut self.results.get_mut(name).expect("made when the run began").data;
            placed.add_rows(frame.value(*node), &mut data[at..], heads, step.count);
        }
        for ((name, node), placed) in self.graph.saves.iter().zip(&self.saves) {
            let tensor = self.results.get_mut(name).expect("made when the run began");
            let block = (step.sequence * tensor.shape[1] + step.number) * tensor.shape[2] + step.head;
            placed.add(frame.value(*node), &mut tensor.data[block * placed.inner..]);
        }
    }

    /// Where the elements of a step's first token and of its head begin in a token tensor.
    fn token_block(&self, tensor: &Tensor, step: &Step, placed: &Placed) -> usize {
        let (batch, token) = step.first;
        let heads = tensor.shape[2];
        let head = step.head / (self.extent.heads / heads);
        ((batch * self.extent.length + token) * heads + head) * placed.inner
    }
}

/// A parameter has one gradient for all sequences. (A state's is `grad_init.…`, an input's is not a carry.)
fn is_parameter_gradient(name: &str) -> bool {
    name.starts_with("grad.")
}
