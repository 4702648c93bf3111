//! Checked program → token graph: what one token does, as dataflow.
//!
//! In: a program with its sizes. Out: a graph without a row dimension, one token a step, and the list of *versions* of
//! every state, in the order the statements make them. Loops over an axis are unrolled (sizes are known here).
//! Never looks for structure: that is [`crate::derive`]'s work.

use crate::graph::build::Builder;
use crate::graph::ir::{Begin, Binary, Carry, Compare, DimId, DimKind, Graph, InputKind, NodeId, Op, Unary};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{
    self as program, AxisId, ExprId, ExprKind, Index, LocalId, LoopVarId, Program, Reduce, Stmt, TensorKind,
};
use std::collections::{BTreeSet, HashMap};

/// A token graph and what the statements did to the states.
#[derive(Clone, Debug)]
pub struct TokenGraph {
    /// The dataflow of one token.
    pub graph: Graph,
    /// States, by [`program::StateId`]: every value each one takes in a token, the first being its carry input.
    pub versions: Vec<Vec<Version>>,
    /// Dimension of each axis, by [`AxisId`].
    pub axes: Vec<DimId>,
}

/// One value of a state in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The value.
    pub node: NodeId,
    /// Position of its statement in the unrolled program; 0 is the token's start.
    pub order: usize,
}

/// Builds the token graph.
pub fn program_to_graph(instance: &Instance) -> TokenGraph {
    let program = instance.program;
    let mut builder = Builder::default();
    let contracted = contracted_axes(program);
    let axes: Vec<DimId> = program
        .axes
        .iter()
        .enumerate()
        .map(|(i, axis)| {
            // Axes that reads sum over come first: the state is then a matrix of (read axis, free axis).
            let rank = i as u32 + if contracted.contains(&AxisId(i as u32)) { 0 } else { program.axes.len() as u32 };
            builder.dim(&axis.name, DimKind::Axis(rank), instance.sizes[i])
        })
        .collect();
    let layout = |list: &[AxisId]| -> Vec<DimId> { list.iter().map(|a| axes[a.index()]).collect() };

    let tensors = program
        .tensors
        .iter()
        .map(|t| {
            builder.span = Some(t.span);
            let kind = match t.kind {
                TensorKind::Input => InputKind::Token,
                TensorKind::Param => InputKind::Head,
            };
            builder.input(&t.name, kind, layout(&t.axes), None)
        })
        .collect();
    let states: Vec<NodeId> = program
        .states
        .iter()
        .map(|s| {
            builder.span = Some(s.span);
            builder.input(&s.name, InputKind::Carry, layout(&s.axes), None)
        })
        .collect();

    let mut walk = Walk {
        instance,
        axes: axes.clone(),
        tensors,
        locals: HashMap::new(),
        loops: HashMap::new(),
        versions: states.iter().map(|&node| vec![Version { node, order: 0 }]).collect(),
        outputs: vec![None; program.outputs.len()],
        order: 0,
        builder,
    };
    walk.statements(&program.body);

    let Walk { builder, versions, outputs, .. } = walk;
    let carries = program
        .states
        .iter()
        .zip(&versions)
        .map(|(s, versions)| Carry {
            name: s.name.clone(),
            input: versions[0].node,
            output: versions.last().expect("a state has its first version").node,
            init: Some(format!("init.{}", s.name)),
            begins: Begin::Zero,
            last: Some(format!("final.{}", s.name)),
            layout: layout(&s.axes),
        })
        .collect();
    let outputs = program
        .outputs
        .iter()
        .zip(outputs)
        .map(|(o, node)| (format!("out.{}", o.name), node.expect("the checker wants every output given")))
        .collect();
    let layouts = program.outputs.iter().map(|o| (format!("out.{}", o.name), layout(&o.axes))).collect();
    let graph = Graph {
        name: format!("{}.token.forward", program.name),
        dims: builder.dims,
        nodes: builder.nodes,
        time: None,
        tokens: 1,
        reverse: false,
        span: None,
        carries,
        outputs,
        layouts,
        saves: vec![],
    };
    TokenGraph { graph, versions, axes }
}

/// Axes summed over in a product or sum that involves a state.
fn contracted_axes(program: &Program) -> BTreeSet<AxisId> {
    let mut stateful = vec![false; program.exprs.len()];
    let mut local_stateful: HashMap<LocalId, bool> = HashMap::new();
    let mut found = BTreeSet::new();
    // Locals first: a `let` may read a state.
    fn locals(body: &[Stmt], visit: &mut dyn FnMut(LocalId, ExprId)) {
        for stmt in body {
            match stmt {
                Stmt::Let { local, value, .. } => visit(*local, *value),
                Stmt::For { body, .. } => locals(body, visit),
                Stmt::Update { .. } | Stmt::Output { .. } => {}
            }
        }
    }
    // Expressions are in order of use, so a few rounds settle chains of lets.
    for _ in 0..=program.locals.len() {
        for (i, expr) in program.exprs.iter().enumerate() {
            let at = |id: &ExprId| stateful[id.index()];
            stateful[i] = match &expr.kind {
                ExprKind::State(_) => true,
                ExprKind::Local(local) => local_stateful.get(local).copied().unwrap_or(false),
                ExprKind::Number(_)
                | ExprKind::AxisSize(_)
                | ExprKind::Const(_)
                | ExprKind::Tensor(_)
                | ExprKind::LoopIndex(_) => false,
                ExprKind::Index { base: x, .. }
                | ExprKind::Unary(_, x)
                | ExprKind::Rename { value: x, .. }
                | ExprKind::StopGradient(x)
                | ExprKind::Reduce(_, x, _) => at(x),
                ExprKind::Binary(_, a, b) => at(a) || at(b),
                ExprKind::Contract { lhs, rhs, over } => {
                    if at(lhs) || at(rhs) {
                        found.extend(over.iter().copied());
                    }
                    at(lhs) || at(rhs)
                }
            };
            if let (ExprKind::Reduce(Reduce::Sum | Reduce::Mean, x, axis), true) = (&expr.kind, stateful[i]) {
                let _ = x;
                found.insert(*axis);
            }
        }
        locals(&program.body, &mut |local, value| {
            local_stateful.insert(local, stateful[value.index()]);
        });
    }
    found
}

struct Walk<'a> {
    instance: &'a Instance<'a>,
    axes: Vec<DimId>,
    tensors: Vec<NodeId>,
    locals: HashMap<LocalId, NodeId>,
    loops: HashMap<LoopVarId, usize>,
    versions: Vec<Vec<Version>>,
    outputs: Vec<Option<NodeId>>,
    order: usize,
    builder: Builder,
}

impl Walk<'_> {
    fn statements(&mut self, body: &[Stmt]) {
        let program = self.instance.program;
        for stmt in body {
            self.order += 1;
            match stmt {
                Stmt::Let { local, value, .. } => {
                    let node = self.expr(*value);
                    self.locals.insert(*local, node);
                }
                Stmt::Update { state, value, .. } => {
                    let value = self.expr(*value);
                    let dims: Vec<DimId> =
                        program.states[state.index()].axes.iter().map(|a| self.axes[a.index()]).collect();
                    let node = self.builder.broadcast(value, &dims);
                    self.versions[state.index()].push(Version { node, order: self.order });
                }
                Stmt::Output { output, value, .. } => {
                    let value = self.expr(*value);
                    let dims: Vec<DimId> =
                        program.outputs[output.index()].axes.iter().map(|a| self.axes[a.index()]).collect();
                    self.outputs[output.index()] = Some(self.builder.broadcast(value, &dims));
                }
                Stmt::For { var, body, .. } => {
                    let axis = program.loop_vars[var.index()].axis;
                    for r in 0..self.instance.sizes[axis.index()] {
                        self.loops.insert(*var, r);
                        self.statements(body);
                    }
                    self.loops.remove(var);
                }
            }
        }
    }

    fn expr(&mut self, id: ExprId) -> NodeId {
        let program = self.instance.program;
        let expr = program.expr(id);
        match &expr.kind {
            ExprKind::Number(x) => self.builder.constant(*x),
            ExprKind::AxisSize(axis) => self.builder.constant(self.instance.sizes[axis.index()] as f64),
            ExprKind::Const(c) => self.builder.constant(self.instance.consts[c.index()]),
            ExprKind::Tensor(t) => self.tensors[t.index()],
            ExprKind::State(s) => self.versions[s.index()].last().expect("a state has its first version").node,
            ExprKind::Local(local) => self.locals[local],
            ExprKind::LoopIndex(var) => self.builder.constant(self.loops[var] as f64),
            ExprKind::Index { base, axis, index } => {
                let base = self.expr(*base);
                let at = match index {
                    Index::Loop(var) => self.loops[var],
                    Index::Literal(n) => *n,
                };
                self.builder.span = Some(expr.span);
                self.builder.index(base, self.axes[axis.index()], at)
            }
            ExprKind::Unary(function, x) => {
                let x = self.expr(*x);
                self.builder.span = Some(expr.span);
                self.unary(*function, x)
            }
            ExprKind::Binary(function, a, b) => {
                let (a, b) = (self.expr(*a), self.expr(*b));
                self.builder.span = Some(expr.span);
                self.binary(*function, a, b)
            }
            ExprKind::Contract { lhs, rhs, over } => {
                let (a, b) = (self.expr(*lhs), self.expr(*rhs));
                let over: Vec<DimId> = over.iter().map(|axis| self.axes[axis.index()]).collect();
                self.builder.span = Some(expr.span);
                self.builder.contract(a, b, &over)
            }
            ExprKind::Reduce(function, x, axis) => {
                let x = self.expr(*x);
                self.builder.span = Some(expr.span);
                self.reduce(*function, x, self.axes[axis.index()])
            }
            ExprKind::Rename { value, from, to } => {
                let x = self.expr(*value);
                self.builder.span = Some(expr.span);
                self.builder.rename(x, self.axes[from.index()], self.axes[to.index()])
            }
            ExprKind::StopGradient(x) => {
                let x = self.expr(*x);
                let dims = self.builder.dims_of(x).to_vec();
                self.builder.span = Some(expr.span);
                self.builder.add(Op::StopGradient(x), dims)
            }
        }
    }

    fn unary(&mut self, function: program::Unary, x: NodeId) -> NodeId {
        let b = &mut self.builder;
        match function {
            program::Unary::Neg => b.neg(x),
            program::Unary::Exp => b.unary(Unary::Exp, x),
            program::Unary::Exp2 => {
                let ln2 = b.constant(std::f64::consts::LN_2);
                let scaled = b.times(ln2, x);
                b.exp(scaled)
            }
            program::Unary::Log => b.unary(Unary::Log, x),
            program::Unary::Sqrt => b.unary(Unary::Sqrt, x),
            program::Unary::Abs => b.unary(Unary::Abs, x),
            program::Unary::Sign => b.unary(Unary::Sign, x),
            program::Unary::Sigmoid => b.unary(Unary::Sigmoid, x),
            program::Unary::LogSigmoid => b.unary(Unary::LogSigmoid, x),
            program::Unary::Softplus => b.unary(Unary::Softplus, x),
            program::Unary::Silu => {
                let gate = b.unary(Unary::Sigmoid, x);
                b.times(x, gate)
            }
            program::Unary::Tanh => b.unary(Unary::Tanh, x),
            program::Unary::Elu => {
                // The branch not taken stays finite, so that its zero adjoint stays zero.
                let zero = b.constant(0.0);
                let below = b.select(Compare::Lt, zero, x, zero, x);
                let low = b.unary(Unary::Expm1, below);
                b.select(Compare::Lt, zero, x, x, low)
            }
            program::Unary::Relu => {
                let zero = b.constant(0.0);
                b.select(Compare::Lt, zero, x, x, zero)
            }
            program::Unary::Gelu => {
                let scale = b.constant(std::f64::consts::FRAC_1_SQRT_2);
                let scaled = b.times(scale, x);
                let erf = b.unary(Unary::Erf, scaled);
                let one = b.constant(1.0);
                let sum = b.plus(one, erf);
                let half = b.constant(0.5);
                let phi = b.times(half, sum);
                b.times(x, phi)
            }
            program::Unary::Sin => b.unary(Unary::Sin, x),
            program::Unary::Cos => b.unary(Unary::Cos, x),
            program::Unary::Square => b.unary(Unary::Square, x),
        }
    }

    fn binary(&mut self, function: program::Binary, x: NodeId, y: NodeId) -> NodeId {
        let b = &mut self.builder;
        match function {
            program::Binary::Add => b.plus(x, y),
            program::Binary::Sub => b.minus(x, y),
            program::Binary::Mul => b.times(x, y),
            program::Binary::Div => b.binary(Binary::Div, x, y),
            program::Binary::Min => b.binary(Binary::Min, x, y),
            program::Binary::Max => b.binary(Binary::Max, x, y),
            program::Binary::Pow => match b.as_constant(y) {
                // Small whole powers are products: right for negative bases, and cheap.
                Some(n) if n.fract() == 0.0 && n.abs() <= 8.0 => {
                    let base = if n < 0.0 { b.unary(Unary::Recip, x) } else { x };
                    b.product(std::iter::repeat_n(base, n.abs() as usize))
                }
                Some(0.5) => b.unary(Unary::Sqrt, x),
                Some(-0.5) => {
                    let root = b.unary(Unary::Sqrt, x);
                    b.unary(Unary::Recip, root)
                }
                Some(_) | None => b.binary(Binary::Pow, x, y),
            },
        }
    }

    fn reduce(&mut self, function: Reduce, x: NodeId, dim: DimId) -> NodeId {
        let b = &mut self.builder;
        match function {
            Reduce::Sum => b.sum(x, &[dim]),
            Reduce::Mean => {
                let total = b.sum(x, &[dim]);
                let inverse = b.constant(1.0 / b.size(dim) as f64);
                b.times(inverse, total)
            }
            Reduce::Max => b.max_over(x, dim),
            Reduce::Softmax => {
                // The maximum cancels, so no gradient goes through it.
                let top = b.max_over(x, dim);
                let top = {
                    let dims = b.dims_of(top).to_vec();
                    b.add(Op::StopGradient(top), dims)
                };
                let shifted = b.minus(x, top);
                let weights = b.exp(shifted);
                let total = b.sum(weights, &[dim]);
                b.binary(Binary::Div, weights, total)
            }
            Reduce::L2Norm => {
                let squares = b.unary(Unary::Square, x);
                let total = b.sum(squares, &[dim]);
                let epsilon = b.constant(1e-6);
                let sum = b.plus(total, epsilon);
                let norm = b.unary(Unary::Sqrt, sum);
                b.binary(Binary::Div, x, norm)
            }
        }
    }
}
