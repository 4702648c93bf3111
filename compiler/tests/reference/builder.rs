//! Programs put together by hand, for what has no name in the source: one function at a time, and layouts that are not
//! the order in which axes were declared.

use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::*;
use chunkwise_dsl::span::Span;
use std::collections::BTreeMap;

/// A program under construction. Axes of expressions are inferred as the checker does.
pub struct Builder {
    pub program: Program,
}

impl Builder {
    /// A program without anything but these axes.
    pub fn new(axes: &[&str]) -> Builder {
        Builder {
            program: Program {
                name: "by_hand".to_string(),
                doc: String::new(),
                axes: axes.iter().map(|name| Axis { name: name.to_string(), span: Span::default() }).collect(),
                tensors: vec![],
                consts: vec![],
                states: vec![],
                outputs: vec![],
                locals: vec![],
                loop_vars: vec![],
                exprs: vec![],
                body: vec![],
                span: Span::default(),
            },
        }
    }

    fn axes(&self, names: &[&str]) -> Vec<AxisId> {
        names.iter().map(|name| self.axis(name)).collect()
    }

    pub fn axis(&self, name: &str) -> AxisId {
        self.program.axis_named(name).expect("the test names a declared axis")
    }

    pub fn tensor(&mut self, kind: TensorKind, name: &str, axes: &[&str]) -> ExprId {
        let axes = self.axes(axes);
        let span = Span::default();
        self.program.tensors.push(Tensor { name: name.to_string(), kind, axes: axes.clone(), range: Range::Any, span });
        self.push(ExprKind::Tensor(TensorId(self.program.tensors.len() as u32 - 1)), axes)
    }

    pub fn input(&mut self, name: &str, axes: &[&str]) -> ExprId {
        self.tensor(TensorKind::Input, name, axes)
    }

    pub fn state(&mut self, name: &str, axes: &[&str]) -> StateId {
        let axes = self.axes(axes);
        self.program.states.push(State { name: name.to_string(), axes, span: Span::default() });
        StateId(self.program.states.len() as u32 - 1)
    }

    pub fn read(&mut self, state: StateId) -> ExprId {
        let axes = self.program.states[state.index()].axes.clone();
        self.push(ExprKind::State(state), axes)
    }

    pub fn number(&mut self, number: f64) -> ExprId {
        self.push(ExprKind::Number(number), vec![])
    }

    pub fn unary(&mut self, function: Unary, value: ExprId) -> ExprId {
        let axes = self.sorted(&[value]);
        self.push(ExprKind::Unary(function, value), axes)
    }

    pub fn binary(&mut self, function: Binary, lhs: ExprId, rhs: ExprId) -> ExprId {
        let axes = self.sorted(&[lhs, rhs]);
        self.push(ExprKind::Binary(function, lhs, rhs), axes)
    }

    pub fn contract(&mut self, lhs: ExprId, rhs: ExprId) -> ExprId {
        let right = self.program.expr(rhs).axes.clone();
        let over: Vec<AxisId> =
            self.program.expr(lhs).axes.iter().copied().filter(|axis| right.contains(axis)).collect();
        let mut axes = self.sorted(&[lhs, rhs]);
        axes.retain(|axis| !over.contains(axis));
        self.push(ExprKind::Contract { lhs, rhs, over }, axes)
    }

    pub fn reduce(&mut self, function: Reduce, value: ExprId, axis: &str) -> ExprId {
        let axis = self.axis(axis);
        let mut axes = self.sorted(&[value]);
        match function {
            Reduce::Sum | Reduce::Mean | Reduce::Max => axes.retain(|own| *own != axis),
            Reduce::Softmax | Reduce::L2Norm => {}
        }
        self.push(ExprKind::Reduce(function, value, axis), axes)
    }

    pub fn index(&mut self, base: ExprId, axis: &str, index: Index) -> ExprId {
        let axis = self.axis(axis);
        let mut axes = self.sorted(&[base]);
        axes.retain(|own| *own != axis);
        self.push(ExprKind::Index { base, axis, index }, axes)
    }

    pub fn rename(&mut self, value: ExprId, from: &str, to: &str) -> ExprId {
        let (from, to) = (self.axis(from), self.axis(to));
        let mut axes = self.sorted(&[value]);
        axes.retain(|own| *own != from);
        axes.push(to);
        axes.sort_unstable();
        self.push(ExprKind::Rename { value, from, to }, axes)
    }

    pub fn stop_gradient(&mut self, value: ExprId) -> ExprId {
        let axes = self.sorted(&[value]);
        self.push(ExprKind::StopGradient(value), axes)
    }

    pub fn let_(&mut self, name: &str, value: ExprId) -> (Stmt, ExprId) {
        let axes = self.sorted(&[value]);
        self.program.locals.push(Local { name: name.to_string(), axes: axes.clone(), span: Span::default() });
        let local = LocalId(self.program.locals.len() as u32 - 1);
        (Stmt::Let { local, value, span: Span::default() }, self.push(ExprKind::Local(local), axes))
    }

    pub fn loop_var(&mut self, name: &str, axis: &str) -> (LoopVarId, ExprId) {
        let axis = self.axis(axis);
        self.program.loop_vars.push(LoopVar { name: name.to_string(), axis, span: Span::default() });
        let var = LoopVarId(self.program.loop_vars.len() as u32 - 1);
        (var, self.push(ExprKind::LoopIndex(var), vec![]))
    }

    pub fn update(&self, state: StateId, value: ExprId) -> Stmt {
        Stmt::Update { state, value, span: Span::default() }
    }

    pub fn output(&mut self, name: &str, axes: &[&str], value: ExprId) -> Stmt {
        let axes = self.axes(axes);
        self.program.outputs.push(Output { name: name.to_string(), axes, span: Span::default() });
        Stmt::Output { output: OutputId(self.program.outputs.len() as u32 - 1), value, span: Span::default() }
    }

    fn sorted(&self, operands: &[ExprId]) -> Vec<AxisId> {
        let mut axes: Vec<AxisId> = operands.iter().flat_map(|id| self.program.expr(*id).axes.clone()).collect();
        axes.sort_unstable();
        axes.dedup();
        axes
    }

    fn push(&mut self, kind: ExprKind, axes: Vec<AxisId>) -> ExprId {
        self.program.exprs.push(Expr { kind, axes, span: Span::default() });
        ExprId(self.program.exprs.len() as u32 - 1)
    }
}

/// The program at these sizes, constants as they are declared.
pub fn at<'p>(program: &'p Program, sizes: &[(&str, usize)]) -> Instance<'p> {
    let sizes: BTreeMap<String, usize> = sizes.iter().map(|(name, size)| (name.to_string(), *size)).collect();
    Instance::new(program, &sizes, &BTreeMap::new()).expect("the test's program and sizes fit")
}
