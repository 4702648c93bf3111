//! How much a state is a sum of.
//!
//! In: the slots of a token, or their adjoints, operation by operation. Out: for each slot of a state the sum of the
//! squares of all that was added up in it since a block of tokens began, with what it was multiplied by since; for any
//! other the square of its value. Never changes a slot or an adjoint.
//!
//! A form that goes through a block of tokens at once adds up the edits of the block. An edit that takes away what a
//! state held makes the sum small, and not its terms.

use chunkwise_dsl::program::{Binary, Unary};

use super::functions::binary_slopes;
use super::nest::Nest;
use super::plan::{Compute, Operation, Plan, Slots};

/// Sums of squares while a head of a sequence is gone through.
pub(super) struct Sums {
    /// By operation: which operands are states that it hands on.
    handing: Vec<[bool; 2]>,
    /// By slot.
    squares: Vec<f64>,
    /// By slot, on the way back: the part of an adjoint that comes from the state's next value, not from who reads it.
    handed: Vec<f64>,
}

impl Sums {
    /// Finds what hands a state on: what adds to it, or multiplies it by what depends on none.
    pub fn new(plan: &Plan) -> Sums {
        let mut is_state = vec![false; plan.n_slots];
        plan.states.iter().for_each(|state| is_state[state.range()].fill(true));
        let mut handing = Vec::with_capacity(plan.operations.len());
        for operation in &plan.operations {
            let of = |nest: &Nest| nest.starts().map(|at| is_state[at]);
            let handed = match &operation.compute {
                Compute::Copy(nest) | Compute::Map(Unary::Neg, nest) => [of(nest)[1], false],
                Compute::Zip(Binary::Add | Binary::Sub, nest) => [of(nest)[1], of(nest)[2]],
                Compute::Zip(Binary::Mul, nest) if of(nest)[1] != of(nest)[2] => [of(nest)[1], of(nest)[2]],
                Compute::Zip(Binary::Div, nest) => [of(nest)[1] && !of(nest)[2], false],
                Compute::Map(..) | Compute::Zip(..) | Compute::Contract(_) | Compute::Reduce { .. } => [false; 2],
            };
            is_state[operation.result.range()].fill(handed != [false; 2]);
            handing.push(handed);
        }
        Sums { handing, squares: vec![0.0; plan.n_slots], handed: vec![0.0; plan.n_slots] }
    }

    /// By slot.
    pub fn squares(&self) -> &[f64] {
        &self.squares
    }

    /// Those of some runs of slots.
    pub fn gather(&self, runs: &[Slots]) -> Vec<f64> {
        runs.iter().flat_map(|run| &self.squares[run.range()]).copied().collect()
    }

    /// Begins a token: its states are the sums that they were after the one before, or begin anew.
    pub fn load(&mut self, slots: &[f64], states: &[Slots], before: Option<&[f64]>) {
        self.squares.iter_mut().zip(slots).for_each(|(square, value)| *square = value * value);
        let mut rest = before.unwrap_or_default();
        for state in states.iter().filter(|_| before.is_some()) {
            let (own, others) = rest.split_at(state.len);
            self.squares[state.range()].copy_from_slice(own);
            rest = others;
        }
    }

    /// An operation has written its result.
    pub fn add_up(&mut self, number: usize, operation: &Operation, slots: &[f64]) {
        let squares = &mut self.squares;
        match &operation.compute {
            Compute::Copy(nest) | Compute::Map(Unary::Neg, nest) => nest.each(|[y, x, _]| squares[y] = squares[x]),
            Compute::Zip(function @ (Binary::Add | Binary::Sub | Binary::Mul | Binary::Div), nest)
                if self.handing[number] != [false; 2] =>
            {
                nest.each(|[y, a, b]| {
                    squares[y] = match function {
                        Binary::Mul => squares[a] * squares[b],
                        Binary::Div => squares[a] / squares[b],
                        Binary::Add | Binary::Sub | Binary::Pow | Binary::Min | Binary::Max => squares[a] + squares[b],
                    }
                });
            }
            Compute::Map(..) | Compute::Zip(..) | Compute::Contract(_) | Compute::Reduce { .. } => {
                operation.result.range().for_each(|at| squares[at] = slots[at] * slots[at]);
            }
        }
    }

    /// Begins a token on the way back: the adjoints of the states after it are the sums that they were before the next
    /// one, or begin anew.
    pub fn load_back(&mut self, finals: &[Slots], state_adj: &[f64], before: Option<&[f64]>) {
        self.squares.fill(0.0);
        self.handed.fill(0.0);
        let slots = finals.iter().flat_map(|state| state.range());
        for (at, (place, adj)) in slots.zip(state_adj).enumerate() {
            self.handed[place] += adj;
            self.squares[place] += before.map_or(adj * adj, |before| before[at]);
        }
    }

    /// The adjoints of some slots are complete: what does not come from the state's next value is one term more.
    pub fn complete(&mut self, slots: Slots, adj: &[f64]) {
        for at in slots.range() {
            let read = adj[at] - self.handed[at];
            self.squares[at] += read * read;
        }
    }

    /// An operation has sent the adjoint of its result to its operands.
    pub fn hand_back(&mut self, number: usize, operation: &Operation, slots: &[f64], adj: &[f64]) {
        let [lhs, rhs] = [0, 1].map(|i| self.handing[number][i] && operation.differentiate[i]);
        let Sums { squares, handed, .. } = self;
        let mut hand = |y: usize, x: usize, slope: f64| {
            handed[x] += slope * adj[y];
            squares[x] += slope * slope * squares[y];
        };
        match &operation.compute {
            Compute::Copy(nest) if lhs => nest.each(|[y, x, _]| hand(y, x, 1.0)),
            Compute::Map(_, nest) if lhs => nest.each(|[y, x, _]| hand(y, x, -1.0)),
            Compute::Zip(function, nest) => nest.each(|[y, a, b]| {
                let (slope_a, slope_b) = binary_slopes(*function, slots[a], slots[b], slots[y]);
                if lhs {
                    hand(y, a, slope_a);
                }
                if rhs {
                    hand(y, b, slope_b);
                }
            }),
            Compute::Copy(_) | Compute::Map(..) | Compute::Contract(_) | Compute::Reduce { .. } => {}
        }
    }
}
