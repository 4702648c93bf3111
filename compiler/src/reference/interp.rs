//! Runs a recurrence and its reverse mode, token by token, in float64.
//!
//! Comes from an [`Instance`] and tensors, goes to whoever compares. Heads and sequences are independent and are run
//! one after another. Never approximates: the only freedom taken is where to store and where to compute again.
//!
//! Backward: states are kept every √T tokens on the way forward; each stretch between is run again with every value
//! of every token kept, and then walked backwards operation by operation.

use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Binary, Reduce, TensorKind};

use super::bind::{Call, Sequence, bind};
use super::error::ReferenceError;
use super::functions::{binary, binary_slopes, unary, unary_slope};
use super::nest::{Nest, Row};
use super::plan::{Compute, Operation, Plan, Slots, plan};
use super::rounding::Rounding;
use super::rows::{Line, LineMut, add_product, assign};
use super::sums::Sums;
use crate::tensor::{Bundle, Tensor};

/// Added under the root of `l2norm`, as in the language's definition.
const L2NORM_EPSILON: f64 = 1e-6;
/// The most numbers kept of one stretch of tokens on the way back.
const MAX_TAPE: usize = 1 << 24;

/// `out.NAME` and `final.STATE` of inputs, parameters and initial states.
pub fn run(instance: &Instance, tensors: &Bundle) -> Result<Bundle, ReferenceError> {
    interpret(instance, tensors, None, false, None)
}

/// What [`run`] gives, and `grad.NAME` and `grad_init.STATE` of the cotangents `grad_out.NAME` and
/// `grad_final.STATE`.
pub fn run_backward(instance: &Instance, tensors: &Bundle) -> Result<Bundle, ReferenceError> {
    interpret(instance, tensors, None, true, None)
}

/// What [`run_backward`] gives when every value that is computed on the way, forwards and backwards, is moved once as
/// much as a type rounds.
pub fn run_backward_rounded(
    instance: &Instance,
    tensors: &Bundle,
    rounding: Rounding,
) -> Result<Bundle, ReferenceError> {
    interpret(instance, tensors, None, true, Some(rounding))
}

/// [`run`] for sequences packed one after another in a batch of one: sequence `n` has the tokens
/// `offsets[n]..offsets[n + 1]`, and states are `[N, H, axes…]`.
pub fn run_packed(instance: &Instance, tensors: &Bundle, offsets: &[usize]) -> Result<Bundle, ReferenceError> {
    interpret(instance, tensors, Some(offsets), false, None)
}

/// [`run_backward`] for packed sequences, as in [`run_packed`].
pub fn run_packed_backward(instance: &Instance, tensors: &Bundle, offsets: &[usize]) -> Result<Bundle, ReferenceError> {
    interpret(instance, tensors, Some(offsets), true, None)
}

fn interpret(
    instance: &Instance,
    tensors: &Bundle,
    offsets: Option<&[usize]>,
    backward: bool,
    rounding: Option<Rounding>,
) -> Result<Bundle, ReferenceError> {
    let plan = plan(instance)?;
    let call = bind(instance, tensors, offsets, backward)?;
    let mut machine =
        Machine { plan: &plan, call: &call, rounding, results: Results::zeros(instance, &call, backward) };
    for row in 0..call.n_sequences * call.heads {
        let (number, head) = (row / call.heads, row % call.heads);
        machine.head(number, &call.sequence(number), head, backward);
    }
    Ok(machine.results.into_bundle(instance, backward))
}

/// Everything that is handed back, by id.
struct Results {
    outputs: Vec<Tensor>,
    finals: Vec<Tensor>,
    grads: Vec<Tensor>,
    init_grads: Vec<Tensor>,
}

impl Results {
    fn zeros(instance: &Instance, call: &Call, backward: bool) -> Results {
        let program = instance.program;
        let states = || program.states.iter().map(|state| Tensor::zeros(&call.state_shape(instance, &state.axes)));
        let outputs = program.outputs.iter();
        Results {
            outputs: outputs.map(|output| Tensor::zeros(&call.output_shape(instance, &output.axes))).collect(),
            finals: states().collect(),
            grads: if backward {
                call.tensors.iter().map(|bound| Tensor::zeros(bound.shape)).collect()
            } else {
                vec![]
            },
            init_grads: if backward { states().collect() } else { vec![] },
        }
    }

    fn into_bundle(self, instance: &Instance, backward: bool) -> Bundle {
        let program = instance.program;
        let mut bundle = Bundle::new();
        let states = || program.states.iter().map(|state| &state.name);
        bundle.extend(program.outputs.iter().map(|output| format!("out.{}", output.name)).zip(self.outputs));
        bundle.extend(states().map(|name| format!("final.{name}")).zip(self.finals));
        if backward {
            bundle.extend(program.tensors.iter().map(|tensor| format!("grad.{}", tensor.name)).zip(self.grads));
            bundle.extend(states().map(|name| format!("grad_init.{name}")).zip(self.init_grads));
        }
        bundle
    }
}

struct Machine<'c> {
    plan: &'c Plan,
    call: &'c Call<'c>,
    rounding: Option<Rounding>,
    results: Results,
}

impl Machine<'_> {
    /// One head of one sequence, forwards and, if asked, back.
    fn head(&mut self, number: usize, sequence: &Sequence, head: usize, backward: bool) {
        let plan = self.plan;
        let n_tokens = sequence.tokens.len();
        let stretch = if backward { stretch_length(n_tokens, plan.n_slots) } else { n_tokens.max(1) };

        let mut slots = vec![0.0; plan.n_slots];
        for &(slot, value) in &plan.constants {
            slots[slot] = value;
        }
        for (bound, into) in self.call.tensors.iter().zip(&plan.tensors) {
            if bound.kind == TensorKind::Param {
                let at = bound.row(self.call, 0, 0, head) * into.len;
                slots[into.range()].copy_from_slice(&bound.data[at..at + into.len]);
            }
        }
        let state_row = number * self.call.heads + head;
        for (init, into) in self.call.inits.iter().zip(&plan.states) {
            if let Some(init) = init {
                let at = state_row * into.len;
                slots[into.range()].copy_from_slice(&init[at..at + into.len]);
            }
        }

        let block = self.rounding.and_then(|it| it.block);
        let mut sums = block.map(|_| Sums::new(plan));
        // Whether a block begins with a token.
        let begins = |token: usize| block.is_some_and(|block| (token - sequence.tokens.start).is_multiple_of(block));
        let mut state = plan.gather(&slots, &plan.states);
        let mut squares = Vec::new();
        let mut checkpoints = Vec::new();
        for token in sequence.tokens.clone() {
            if backward && (token - sequence.tokens.start).is_multiple_of(stretch) {
                checkpoints.push((state.clone(), squares.clone()));
            }
            self.load(&mut slots, &state, sequence.batch, token, head);
            if let Some(sums) = &mut sums {
                sums.load(&slots, &plan.states, (!begins(token)).then_some(&squares));
            }
            let rounding = self.rounding.map(|it| it.of(number, head, token));
            evaluate(&plan.operations, &mut slots, rounding, sums.as_mut());
            squares = sums.as_ref().map_or_else(Vec::new, |sums| sums.gather(&plan.finals));
            for (output, from) in self.results.outputs.iter_mut().zip(&plan.outputs) {
                let at = self.call.row(sequence.batch, token, head) * from.len;
                output.data[at..at + from.len].copy_from_slice(&slots[from.range()]);
            }
            state = plan.gather(&slots, &plan.finals);
        }
        let mut rest = state.as_slice();
        for (result, from) in self.results.finals.iter_mut().zip(&plan.states) {
            let (own, others) = rest.split_at(from.len);
            result.data[state_row * from.len..][..from.len].copy_from_slice(own);
            rest = others;
        }
        if !backward {
            return;
        }

        let mut state_adj = Vec::with_capacity(state.len());
        for (cotangent, state) in self.call.grad_finals.iter().zip(&plan.states) {
            match cotangent {
                Some(cotangent) => state_adj.extend_from_slice(&cotangent[state_row * state.len..][..state.len]),
                None => state_adj.extend(std::iter::repeat_n(0.0, state.len)),
            }
        }
        let mut tape = vec![slots; stretch.min(n_tokens)];
        let mut adj = vec![0.0; plan.n_slots];
        let mut squares_adj = Vec::new();
        for (idx, checkpoint) in checkpoints.into_iter().enumerate().rev() {
            let first = sequence.tokens.start + idx * stretch;
            let tokens = first..(first + stretch).min(sequence.tokens.end);
            let (mut state, mut squares) = checkpoint;
            for (token, slots) in tokens.clone().zip(&mut tape) {
                self.load(slots, &state, sequence.batch, token, head);
                if let Some(sums) = &mut sums {
                    sums.load(slots, &plan.states, (!begins(token)).then_some(&squares));
                }
                let rounding = self.rounding.map(|it| it.of(number, head, token));
                evaluate(&plan.operations, slots, rounding, sums.as_mut());
                squares = sums.as_ref().map_or_else(Vec::new, |sums| sums.gather(&plan.finals));
                state = plan.gather(slots, &plan.finals);
            }
            for (token, slots) in tokens.clone().zip(&tape).rev() {
                let rounding = self.rounding.map(|it| it.of(number, head, token).backwards());
                if let Some(sums) = &mut sums {
                    let last = token + 1 == sequence.tokens.end || begins(token + 1);
                    sums.load_back(&plan.finals, &state_adj, (!last).then_some(&squares_adj));
                }
                self.token_back(slots, &mut adj, &mut state_adj, sequence.batch, token, head, rounding, sums.as_mut());
                squares_adj = sums.as_ref().map_or_else(Vec::new, |sums| sums.gather(&plan.states));
            }
        }
        let mut rest = state_adj.as_slice();
        for (result, state) in self.results.init_grads.iter_mut().zip(&plan.states) {
            let (own, others) = rest.split_at(state.len);
            result.data[state_row * state.len..][..state.len].copy_from_slice(own);
            rest = others;
        }
    }

    /// Puts a token's inputs and the states before it into the slots.
    fn load(&self, slots: &mut [f64], state: &[f64], batch: usize, token: usize, head: usize) {
        for (bound, into) in self.call.tensors.iter().zip(&self.plan.tensors) {
            if bound.kind == TensorKind::Input {
                let at = bound.row(self.call, batch, token, head) * into.len;
                slots[into.range()].copy_from_slice(&bound.data[at..at + into.len]);
            }
        }
        let mut rest = state;
        for into in &self.plan.states {
            let (own, others) = rest.split_at(into.len);
            slots[into.range()].copy_from_slice(own);
            rest = others;
        }
    }

    /// One token backwards: adds to the gradients, and turns the adjoint of the states after it into that before it.
    #[allow(clippy::too_many_arguments)]
    fn token_back(
        &mut self,
        slots: &[f64],
        adj: &mut [f64],
        state_adj: &mut Vec<f64>,
        batch: usize,
        token: usize,
        head: usize,
        rounding: Option<Rounding>,
        mut sums: Option<&mut Sums>,
    ) {
        let plan = self.plan;
        adj.fill(0.0);
        for (cotangent, output) in self.call.grad_outputs.iter().zip(&plan.outputs) {
            if let Some(cotangent) = cotangent {
                let at = self.call.row(batch, token, head) * output.len;
                add(&mut adj[output.range()], &cotangent[at..at + output.len]);
            }
        }
        let mut rest = state_adj.as_slice();
        for state in &plan.finals {
            let (own, others) = rest.split_at(state.len);
            add(&mut adj[state.range()], own);
            rest = others;
        }
        for (number, operation) in plan.operations.iter().enumerate().rev() {
            if let Some(sums) = &mut sums {
                sums.complete(operation.result, adj);
            }
            if let Some(rounding) = rounding {
                rounding.apply(operation, adj, sums.as_deref());
            }
            pull_back(operation, slots, adj);
            if let Some(sums) = &mut sums {
                sums.hand_back(number, operation, slots, adj);
            }
        }
        if let (Some(rounding), Some(sums)) = (rounding, &mut sums) {
            for &state in &plan.states {
                sums.complete(state, adj);
                rounding.shift(state, adj, Some(sums));
            }
        }
        for ((bound, from), grad) in self.call.tensors.iter().zip(&plan.tensors).zip(&mut self.results.grads) {
            let at = bound.row(self.call, batch, token, head) * from.len;
            add(&mut grad.data[at..at + from.len], &adj[from.range()]);
        }
        *state_adj = plan.gather(adj, &plan.states);
    }
}

impl Plan {
    /// The values of several runs of slots, one after another.
    fn gather(&self, slots: &[f64], runs: &[Slots]) -> Vec<f64> {
        runs.iter().flat_map(|run| &slots[run.range()]).copied().collect()
    }
}

/// Tokens between two kept states: about √T, fewer where one token alone fills the memory.
fn stretch_length(n_tokens: usize, n_slots: usize) -> usize {
    let root = (n_tokens as f64).sqrt().ceil() as usize;
    root.min(MAX_TAPE / n_slots.max(1)).max(1)
}

fn add(into: &mut [f64], from: &[f64]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += from;
    }
}

/// Runs the operations in order. A result lies behind its operands, so the slots can be split between them.
fn evaluate(operations: &[Operation], slots: &mut [f64], rounding: Option<Rounding>, mut sums: Option<&mut Sums>) {
    for (number, operation) in operations.iter().enumerate() {
        let first = operation.result.start;
        match &operation.compute {
            Compute::Copy(nest) => nest.each(|[y, x, _]| slots[y] = slots[x]),
            Compute::Map(function, nest) => nest.each(|[y, x, _]| slots[y] = unary(*function, slots[x])),
            Compute::Zip(function, nest) => nest.rows(|row| {
                let (operands, results) = slots.split_at_mut(first);
                let y = LineMut { data: results, first: row.firsts[0] - first, stride: row.strides[0] };
                let [a, b] = [1, 2].map(|i| Line { data: operands, first: row.firsts[i], stride: row.strides[i] });
                match function {
                    Binary::Add => assign(y, a, b, row.count, |a, b| a + b),
                    Binary::Sub => assign(y, a, b, row.count, |a, b| a - b),
                    Binary::Mul => assign(y, a, b, row.count, |a, b| a * b),
                    Binary::Div | Binary::Pow | Binary::Min | Binary::Max => {
                        assign(y, a, b, row.count, |a, b| binary(*function, a, b));
                    }
                }
            }),
            Compute::Contract(nest) => {
                slots[operation.result.range()].fill(0.0);
                nest.rows(|row| {
                    let (operands, results) = slots.split_at_mut(first);
                    let y = LineMut { data: results, first: row.firsts[0] - first, stride: row.strides[0] };
                    let [a, b] = [1, 2].map(|i| Line { data: operands, first: row.firsts[i], stride: row.strides[i] });
                    add_product(y, a, b, row.count);
                });
            }
            Compute::Reduce { function, fibres, count, strides } => {
                fibres.each(|[y, x, _]| reduce(*function, slots, Fibre { y, x, count: *count, strides: *strides }));
            }
        }
        if let Some(sums) = &mut sums {
            sums.add_up(number, operation, slots);
        }
        if let Some(rounding) = rounding {
            rounding.apply(operation, slots, sums.as_deref());
        }
    }
}

/// Adds to the adjoints of the operands what the adjoint of the result sends them.
fn pull_back(operation: &Operation, slots: &[f64], adj: &mut [f64]) {
    let [to_lhs, to_rhs] = operation.differentiate;
    if !to_lhs && !to_rhs {
        return;
    }
    let first = operation.result.start;
    // Adds the result's adjoint times a number to one operand's, and times the other operand.
    let scaled = |nest: &Nest, adj: &mut [f64], to: usize, factor: f64| {
        nest.rows(|row| send(row, first, adj, to, Line { data: &[factor], first: 0, stride: 0 }));
    };
    let multiplied = |nest: &Nest, adj: &mut [f64], to: usize| {
        let other = 3 - to;
        nest.rows(|row| {
            send(row, first, adj, to, Line { data: slots, first: row.firsts[other], stride: row.strides[other] });
        });
    };
    match &operation.compute {
        Compute::Copy(nest) => scaled(nest, adj, 1, 1.0),
        Compute::Map(function, nest) => {
            nest.each(|[y, x, _]| adj[x] += adj[y] * unary_slope(*function, slots[x], slots[y]));
        }
        Compute::Zip(function, nest) => match function {
            Binary::Add | Binary::Sub => {
                if to_lhs {
                    scaled(nest, adj, 1, 1.0);
                }
                if to_rhs {
                    scaled(nest, adj, 2, if *function == Binary::Add { 1.0 } else { -1.0 });
                }
            }
            Binary::Mul => {
                if to_lhs {
                    multiplied(nest, adj, 1);
                }
                if to_rhs {
                    multiplied(nest, adj, 2);
                }
            }
            Binary::Div | Binary::Pow | Binary::Min | Binary::Max => nest.each(|[y, a, b]| {
                let (slope_a, slope_b) = binary_slopes(*function, slots[a], slots[b], slots[y]);
                if to_lhs {
                    adj[a] += adj[y] * slope_a;
                }
                if to_rhs {
                    adj[b] += adj[y] * slope_b;
                }
            }),
        },
        Compute::Contract(nest) => {
            if to_lhs {
                multiplied(nest, adj, 1);
            }
            if to_rhs {
                multiplied(nest, adj, 2);
            }
        }
        Compute::Reduce { function, fibres, count, strides } => {
            fibres.each(|[y, x, _]| {
                pull_back_fibre(*function, slots, adj, Fibre { y, x, count: *count, strides: *strides });
            });
        }
    }
}

/// One row: adds the result's adjoint, times `factor`, to the adjoint of operand `to`, which lies before it.
fn send(row: Row, result: usize, adj: &mut [f64], to: usize, factor: Line) {
    let (operands, results) = adj.split_at_mut(result);
    let from = Line { data: results, first: row.firsts[0] - result, stride: row.strides[0] };
    let into = LineMut { data: operands, first: row.firsts[to], stride: row.strides[to] };
    add_product(into, from, factor, row.count);
}

/// One line of elements along the axis of a reduction.
#[derive(Clone, Copy)]
struct Fibre {
    y: usize,
    x: usize,
    count: usize,
    strides: [usize; 2],
}

impl Fibre {
    /// Slots of the elements of result and value.
    fn elements(self) -> impl Iterator<Item = (usize, usize)> + Clone {
        (0..self.count).map(move |i| (self.y + i * self.strides[0], self.x + i * self.strides[1]))
    }
}

fn reduce(function: Reduce, slots: &mut [f64], fibre: Fibre) {
    let elements = fibre.elements();
    match function {
        Reduce::Sum => slots[fibre.y] = elements.map(|(_, x)| slots[x]).sum(),
        Reduce::Mean => slots[fibre.y] = elements.map(|(_, x)| slots[x]).sum::<f64>() / fibre.count as f64,
        Reduce::Max => slots[fibre.y] = largest(elements.map(|(_, x)| slots[x])),
        Reduce::Softmax => {
            let top = largest(elements.clone().map(|(_, x)| slots[x]));
            let total: f64 = elements.clone().map(|(_, x)| (slots[x] - top).exp()).sum();
            for (y, x) in elements {
                slots[y] = (slots[x] - top).exp() / total;
            }
        }
        Reduce::L2Norm => {
            let norm = l2norm(elements.clone().map(|(_, x)| slots[x]));
            for (y, x) in elements {
                slots[y] = slots[x] / norm;
            }
        }
    }
}

fn pull_back_fibre(function: Reduce, slots: &[f64], adj: &mut [f64], fibre: Fibre) {
    let elements = fibre.elements();
    match function {
        Reduce::Sum => elements.for_each(|(y, x)| adj[x] += adj[y]),
        Reduce::Mean => elements.for_each(|(y, x)| adj[x] += adj[y] / fibre.count as f64),
        Reduce::Max => {
            let top = slots[fibre.y];
            let n_tied = elements.clone().filter(|&(_, x)| slots[x] == top).count();
            for (y, x) in elements {
                if top.is_nan() {
                    adj[x] += f64::NAN;
                } else if slots[x] == top {
                    adj[x] += adj[y] / n_tied as f64;
                }
            }
        }
        Reduce::Softmax => {
            let along: f64 = elements.clone().map(|(y, _)| adj[y] * slots[y]).sum();
            elements.for_each(|(y, x)| adj[x] += slots[y] * (adj[y] - along));
        }
        Reduce::L2Norm => {
            let norm = l2norm(elements.clone().map(|(_, x)| slots[x]));
            let along: f64 = elements.clone().map(|(y, _)| adj[y] * slots[y]).sum();
            elements.for_each(|(y, x)| adj[x] += (adj[y] - slots[y] * along) / norm);
        }
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NEG_INFINITY, |top, x| if x > top || x.is_nan() { x } else { top })
}

fn l2norm(values: impl Iterator<Item = f64>) -> f64 {
    (values.map(|x| x * x).sum::<f64>() + L2NORM_EPSILON).sqrt()
}
