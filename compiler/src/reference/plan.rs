//! One token of a program as a flat list of operations over numbered slots.
//!
//! Comes from an [`Instance`], goes to the interpreter, which runs it once per token and, backwards, once more. Every
//! slot is written once a token: loops are unrolled, a state after an update is another value than before, so walking
//! the list backwards is all that reverse mode needs. Never reorders, merges or simplifies what the program says.

use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{AxisId, Binary, ExprId, ExprKind, Index, Program, Reduce, Stmt, Unary};

use super::error::ReferenceError;
use super::nest::{Nest, View};

/// The most numbers that one token of one head may need: three times half a gigabyte, on the way back.
const MAX_SLOTS: usize = 1 << 26;
/// The most operations of one token, loops unrolled.
const MAX_OPERATIONS: usize = 1 << 22;

/// A run of slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slots {
    /// The first.
    pub start: usize,
    /// How many.
    pub len: usize,
}

impl Slots {
    /// As an index of the slots' storage.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// What an operation computes. In every nest the result comes first.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Compute {
    /// result = value
    Copy(Nest),
    /// result = f(value)
    Map(Unary, Nest),
    /// result = f(lhs, rhs)
    Zip(Binary, Nest),
    /// result = Σ lhs · rhs
    Contract(Nest),
    /// A reduction or normalisation of fibres: the nest finds the first element of each.
    Reduce {
        /// Which.
        function: Reduce,
        /// First elements of the fibres of result and value.
        fibres: Nest,
        /// Elements in a fibre.
        count: usize,
        /// Distances between the elements of a fibre of the result (0 where the axis disappears) and of the value.
        strides: [usize; 2],
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operation {
    /// Where the result goes.
    pub result: Slots,
    /// What is computed.
    pub compute: Compute,
    /// Whether a gradient flows to the operands.
    pub differentiate: [bool; 2],
}

/// One token of a program.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// How many slots there are.
    pub n_slots: usize,
    /// Slots whose value never changes.
    pub constants: Vec<(usize, f64)>,
    /// Inputs and parameters, in the order declared.
    pub tensors: Vec<Slots>,
    /// States before the token, in the order declared.
    pub states: Vec<Slots>,
    /// States after the token.
    pub finals: Vec<Slots>,
    /// Outputs, in the order declared.
    pub outputs: Vec<Slots>,
    /// What to do, in order.
    pub operations: Vec<Operation>,
}

/// A value the program has computed so far.
#[derive(Clone, Debug)]
struct Value {
    view: View,
    differentiable: bool,
}

struct Planner<'i> {
    program: &'i Program,
    sizes: &'i [usize],
    consts: &'i [f64],
    n_slots: usize,
    constants: Vec<(usize, f64)>,
    operations: Vec<Operation>,
    /// Values of tensors, and of states, locals, outputs and loop variables at this point of the token.
    tensors: Vec<Value>,
    states: Vec<Value>,
    locals: Vec<Option<Value>>,
    outputs: Vec<Option<Value>>,
    loop_indices: Vec<usize>,
}

/// Lays out one token.
pub(super) fn plan(instance: &Instance) -> Result<Plan, ReferenceError> {
    let program = instance.program;
    let mut planner = Planner {
        program,
        sizes: &instance.sizes,
        consts: &instance.consts,
        n_slots: 0,
        constants: Vec::new(),
        operations: Vec::new(),
        tensors: Vec::new(),
        states: Vec::new(),
        locals: vec![None; program.locals.len()],
        outputs: vec![None; program.outputs.len()],
        loop_indices: vec![0; program.loop_vars.len()],
    };
    for tensor in &program.tensors {
        let view = planner.allocate(&tensor.axes)?;
        planner.tensors.push(Value { view, differentiable: true });
    }
    for state in &program.states {
        let view = planner.allocate(&state.axes)?;
        planner.states.push(Value { view, differentiable: true });
    }
    let states_before = planner.states.clone();
    planner.block(&program.body)?;

    let zero = planner.constant(0.0)?;
    let mut finals = Vec::new();
    for (idx, state) in program.states.iter().enumerate() {
        let value = planner.states[idx].clone();
        finals.push(planner.settle(value, &state.axes)?);
    }
    let mut outputs = Vec::new();
    for (idx, output) in program.outputs.iter().enumerate() {
        let value = planner.outputs[idx].clone().unwrap_or_else(|| zero.clone());
        outputs.push(planner.settle(value, &output.axes)?);
    }
    let slots = |value: &Value| Slots { start: value.view.start, len: value.view.elements(planner.sizes) };
    Ok(Plan {
        n_slots: planner.n_slots,
        tensors: planner.tensors.iter().map(slots).collect(),
        states: states_before.iter().map(slots).collect(),
        finals,
        outputs,
        constants: planner.constants,
        operations: planner.operations,
    })
}

impl Planner<'_> {
    fn block(&mut self, body: &[Stmt]) -> Result<(), ReferenceError> {
        for stmt in body {
            match stmt {
                Stmt::Let { local, value, .. } => {
                    let axes = &self.program.locals[local.index()].axes;
                    let value = self.expression(*value)?;
                    self.locals[local.index()] = Some(self.arrange(value, axes)?);
                }
                Stmt::Update { state, value, .. } => {
                    let axes = &self.program.states[state.index()].axes;
                    let value = self.expression(*value)?;
                    self.states[state.index()] = self.arrange(value, axes)?;
                }
                Stmt::Output { output, value, .. } => {
                    let value = self.expression(*value)?;
                    self.outputs[output.index()] = Some(value);
                }
                Stmt::For { var, body, .. } => {
                    let axis = self.program.loop_vars[var.index()].axis;
                    for idx in 0..self.sizes[axis.index()] {
                        self.loop_indices[var.index()] = idx;
                        self.block(body)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Evaluates an expression and everything it is made of.
    fn expression(&mut self, root: ExprId) -> Result<Value, ReferenceError> {
        let needed = operands_first(self.program, root);
        let mut done: Vec<Value> = Vec::with_capacity(needed.len());
        for &id in &needed {
            let value = self.node(id, |operand| {
                let position = needed.binary_search(&operand).expect("every operand was collected above");
                done[position].clone()
            })?;
            done.push(value);
        }
        Ok(done.pop().expect("the root itself was collected, and comes last"))
    }

    fn node(&mut self, id: ExprId, operand: impl Fn(ExprId) -> Value) -> Result<Value, ReferenceError> {
        let expr = self.program.expr(id);
        match &expr.kind {
            ExprKind::Number(number) => self.constant(*number),
            ExprKind::AxisSize(axis) => self.constant(self.sizes[axis.index()] as f64),
            ExprKind::Const(id) => self.constant(self.consts[id.index()]),
            ExprKind::Tensor(id) => Ok(self.tensors[id.index()].clone()),
            ExprKind::State(id) => Ok(self.states[id.index()].clone()),
            ExprKind::Local(id) => {
                Ok(self.locals[id.index()].clone().expect("a checked program binds a name before it reads it"))
            }
            ExprKind::LoopIndex(id) => self.constant(self.loop_indices[id.index()] as f64),
            ExprKind::Index { base, axis, index } => {
                let value = operand(*base);
                let position = match index {
                    Index::Loop(var) => self.loop_indices[var.index()],
                    Index::Literal(position) => *position,
                };
                let mut row = value.view.clone();
                row.start += position * value.view.stride(*axis, self.sizes);
                let result = self.allocate(&expr.axes)?;
                // The row keeps the axes of the whole, which give the strides; the nest walks only those that stay.
                let nest = Nest::new(&expr.axes, [&result, &row, &row], self.sizes);
                self.push(result, Compute::Copy(nest), [value.differentiable, false])
            }
            ExprKind::Unary(function, value) => {
                let value = operand(*value);
                let result = self.allocate(&expr.axes)?;
                let nest = Nest::new(&expr.axes, [&result, &value.view, &value.view], self.sizes);
                self.push(result, Compute::Map(*function, nest), [value.differentiable, false])
            }
            ExprKind::Binary(function, lhs, rhs) => {
                let (lhs, rhs) = (operand(*lhs), operand(*rhs));
                let result = self.allocate(&expr.axes)?;
                let nest = Nest::new(&expr.axes, [&result, &lhs.view, &rhs.view], self.sizes);
                self.push(result, Compute::Zip(*function, nest), [lhs.differentiable, rhs.differentiable])
            }
            ExprKind::Contract { lhs, rhs, over } => {
                let (lhs, rhs) = (operand(*lhs), operand(*rhs));
                let result = self.allocate(&expr.axes)?;
                let order = walking_order(over, [&result, &lhs.view, &rhs.view], self.sizes);
                let nest = Nest::new(&order, [&result, &lhs.view, &rhs.view], self.sizes);
                self.push(result, Compute::Contract(nest), [lhs.differentiable, rhs.differentiable])
            }
            ExprKind::Reduce(function, value, axis) => {
                let value = operand(*value);
                let result = self.allocate(&expr.axes)?;
                let across: Vec<AxisId> = value.view.axes.iter().copied().filter(|other| other != axis).collect();
                let compute = Compute::Reduce {
                    function: *function,
                    fibres: Nest::new(&across, [&result, &value.view, &value.view], self.sizes),
                    count: self.sizes[axis.index()],
                    strides: [result.stride(*axis, self.sizes), value.view.stride(*axis, self.sizes)],
                };
                self.push(result, compute, [value.differentiable, false])
            }
            ExprKind::Rename { value, from, to } => {
                let value = operand(*value);
                let mut renamed = value.view.clone();
                for axis in &mut renamed.axes {
                    if axis == from {
                        *axis = *to;
                    }
                }
                let result = self.allocate(&expr.axes)?;
                let nest = Nest::new(&expr.axes, [&result, &renamed, &renamed], self.sizes);
                self.push(result, Compute::Copy(nest), [value.differentiable, false])
            }
            // The same slots, but nothing flows back into them from here.
            ExprKind::StopGradient(value) => Ok(Value { differentiable: false, ..operand(*value) }),
        }
    }

    /// The value in this layout, copied only if it has another.
    fn arrange(&mut self, value: Value, axes: &[AxisId]) -> Result<Value, ReferenceError> {
        if value.view.axes == axes {
            return Ok(value);
        }
        let result = self.allocate(axes)?;
        let nest = Nest::new(axes, [&result, &value.view, &value.view], self.sizes);
        self.push(result, Compute::Copy(nest), [value.differentiable, false])
    }

    /// The slots of what leaves the token. Its adjoint is written there from outside, so a value behind a
    /// `stop_gradient` gets slots of its own, from which nothing flows on.
    fn settle(&mut self, value: Value, axes: &[AxisId]) -> Result<Slots, ReferenceError> {
        let value = if value.differentiable {
            self.arrange(value, axes)?
        } else {
            let result = self.allocate(axes)?;
            let nest = Nest::new(axes, [&result, &value.view, &value.view], self.sizes);
            self.push(result, Compute::Copy(nest), [false, false])?
        };
        Ok(Slots { start: value.view.start, len: value.view.elements(self.sizes) })
    }

    fn push(&mut self, view: View, compute: Compute, differentiate: [bool; 2]) -> Result<Value, ReferenceError> {
        if self.operations.len() == MAX_OPERATIONS {
            return Err(self.too_large("operations", MAX_OPERATIONS));
        }
        let result = Slots { start: view.start, len: view.elements(self.sizes) };
        self.operations.push(Operation { result, compute, differentiate });
        Ok(Value { view, differentiable: differentiate[0] || differentiate[1] })
    }

    fn constant(&mut self, number: f64) -> Result<Value, ReferenceError> {
        let view = self.allocate(&[])?;
        self.constants.push((view.start, number));
        Ok(Value { view, differentiable: false })
    }

    fn allocate(&mut self, axes: &[AxisId]) -> Result<View, ReferenceError> {
        let view = View { start: self.n_slots, axes: axes.to_vec() };
        let grown = (axes.iter())
            .try_fold(1usize, |len, axis| len.checked_mul(self.sizes[axis.index()]))
            .and_then(|len| self.n_slots.checked_add(len))
            .filter(|&slots| slots <= MAX_SLOTS);
        match grown {
            Some(slots) => self.n_slots = slots,
            None => return Err(self.too_large("values", MAX_SLOTS)),
        }
        Ok(view)
    }

    fn too_large(&self, what: &str, limit: usize) -> ReferenceError {
        let what = format!("the number of {what} of one token of `{}`, loops unrolled,", self.program.name);
        ReferenceError::TooLarge { what, limit }
    }
}

/// The axes of a contraction in the order of the largest value, so that memory is walked forwards.
fn walking_order(over: &[AxisId], views: [&View; 3], sizes: &[usize]) -> Vec<AxisId> {
    let mut order = Vec::new();
    let mut largest_first = views;
    largest_first.sort_by_key(|view| std::cmp::Reverse(view.elements(sizes)));
    for view in largest_first {
        order.extend(view.axes.iter().copied().filter(|axis| !order.contains(axis)).collect::<Vec<_>>());
    }
    debug_assert!(over.iter().all(|axis| order.contains(axis)), "a contracted axis belongs to both operands");
    order
}

/// An expression and everything it is made of, operands before their users. No recursion here or in who uses this: a
/// sum of ten thousand terms is ten thousand deep.
pub(super) fn operands_first(program: &Program, root: ExprId) -> Vec<ExprId> {
    let mut needed = vec![root];
    let mut next = 0;
    while next < needed.len() {
        match &program.expr(needed[next]).kind {
            ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::State(_)
            | ExprKind::Local(_)
            | ExprKind::LoopIndex(_) => {}
            ExprKind::Index { base: operand, .. }
            | ExprKind::Unary(_, operand)
            | ExprKind::Reduce(_, operand, _)
            | ExprKind::Rename { value: operand, .. }
            | ExprKind::StopGradient(operand) => needed.push(*operand),
            ExprKind::Binary(_, lhs, rhs) | ExprKind::Contract { lhs, rhs, .. } => needed.extend([*lhs, *rhs]),
        }
        next += 1;
    }
    // In the arena an operand stands before its user.
    needed.sort_unstable();
    needed.dedup();
    needed
}
