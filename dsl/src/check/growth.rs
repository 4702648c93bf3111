//! Exponentials that multiply a state and may exceed 1, and those that multiply what is written into one and may exceed
//! what float32 holds. In: a program without errors; out: warnings that name the consequence. It judges by the declared
//! ranges alone.

use super::affine::circles;
use crate::bounds::{Interval, bounds};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{Binary, ExprId, ExprKind, LocalId, Program, Range, StateId, Stmt, Unary};
use crate::span::Span;

/// Looks at all updates.
pub fn check(program: &Program) -> Vec<Diagnostic> {
    let mut search = Search {
        program,
        bounds: bounds(program),
        values: vec![None; program.locals.len()],
        warned: Vec::new(),
        warnings: Vec::new(),
    };
    let fed_back: Vec<StateId> = circles(program).into_iter().flatten().collect();
    search.statements(&program.body, &fed_back);
    search.warnings
}

struct Search<'p> {
    program: &'p Program,
    bounds: Vec<Interval>,
    /// The value of each `let` passed.
    values: Vec<Option<ExprId>>,
    warned: Vec<Span>,
    warnings: Vec<Diagnostic>,
}

impl Search<'_> {
    fn statements(&mut self, body: &[Stmt], fed_back: &[StateId]) {
        for stmt in body {
            match stmt {
                Stmt::Let { local, value, .. } => self.values[local.index()] = Some(*value),
                Stmt::Update { state, value, .. } if fed_back.contains(state) => {
                    self.terms(*value, *state, &mut Vec::new());
                    self.writes(*value, *state, &mut Vec::new());
                }
                Stmt::Update { .. } | Stmt::Output { .. } => {}
                Stmt::For { body, .. } => self.statements(body, fed_back),
            }
        }
    }

    /// Goes through the terms of an update; `factors` is what the current one is multiplied with.
    fn terms(&mut self, id: ExprId, state: StateId, factors: &mut Vec<ExprId>) {
        match self.program.expr(id).kind {
            ExprKind::State(found) if found == state => {
                for factor in factors.clone() {
                    self.factor(factor, state);
                }
            }
            ExprKind::Binary(Binary::Add | Binary::Sub, lhs, rhs) => {
                self.terms(lhs, state, factors);
                self.terms(rhs, state, factors);
            }
            ExprKind::Binary(Binary::Mul, lhs, rhs) => {
                factors.push(rhs);
                self.terms(lhs, state, factors);
                factors.pop();
                factors.push(lhs);
                self.terms(rhs, state, factors);
                factors.pop();
            }
            ExprKind::Binary(Binary::Div, value, _)
            | ExprKind::Unary(Unary::Neg, value)
            | ExprKind::StopGradient(value) => self.terms(value, state, factors),
            ExprKind::Local(LocalId(local)) => {
                if let Some(value) = self.values[local as usize] {
                    self.terms(value, state, factors);
                }
            }
            // Everything else is an edit, which the ranges of its own inputs keep small, or no state at all.
            ExprKind::State(_)
            | ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::LoopIndex(_)
            | ExprKind::Index { .. }
            | ExprKind::Unary(..)
            | ExprKind::Binary(..)
            | ExprKind::Contract { .. }
            | ExprKind::Reduce(..)
            | ExprKind::Rename { .. } => {}
        }
    }

    /// Goes through the terms of an update that hold no state; `factors` is what the current one is multiplied with.
    fn writes(&mut self, id: ExprId, state: StateId, factors: &mut Vec<ExprId>) {
        match self.program.expr(id).kind {
            ExprKind::Binary(Binary::Add | Binary::Sub, lhs, rhs) => {
                self.writes(lhs, state, factors);
                self.writes(rhs, state, factors);
            }
            ExprKind::Binary(Binary::Mul, lhs, rhs) => {
                factors.push(rhs);
                self.writes(lhs, state, factors);
                factors.pop();
                factors.push(lhs);
                self.writes(rhs, state, factors);
                factors.pop();
            }
            ExprKind::Local(LocalId(local)) => {
                if let Some(value) = self.values[local as usize] {
                    self.writes(value, state, factors);
                }
            }
            ExprKind::Unary(function @ (Unary::Exp | Unary::Exp2), exponent) => {
                let hi = self.bounds[exponent.index()].hi;
                if hi > largest_exponent(function) && !factors.iter().any(|factor| self.holds_a_state(*factor)) {
                    self.warn_of_write(id, function, exponent, hi, state);
                }
            }
            ExprKind::State(_)
            | ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::LoopIndex(_)
            | ExprKind::Index { .. }
            | ExprKind::Unary(..)
            | ExprKind::Binary(..)
            | ExprKind::Contract { .. }
            | ExprKind::Reduce(..)
            | ExprKind::StopGradient(_)
            | ExprKind::Rename { .. } => {}
        }
    }

    fn holds_a_state(&self, id: ExprId) -> bool {
        match &self.program.expr(id).kind {
            ExprKind::State(_) => true,
            ExprKind::Local(LocalId(local)) => self.values[*local as usize].is_some_and(|it| self.holds_a_state(it)),
            ExprKind::Binary(_, lhs, rhs) | ExprKind::Contract { lhs, rhs, .. } => {
                self.holds_a_state(*lhs) || self.holds_a_state(*rhs)
            }
            ExprKind::Unary(_, value)
            | ExprKind::Reduce(_, value, _)
            | ExprKind::StopGradient(value)
            | ExprKind::Index { base: value, .. }
            | ExprKind::Rename { value, .. } => self.holds_a_state(*value),
            ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::LoopIndex(_) => false,
        }
    }

    fn warn_of_write(&mut self, factor: ExprId, function: Unary, exponent: ExprId, hi: f64, state: StateId) {
        let span = self.program.expr(factor).span;
        if self.warned.contains(&span) {
            return;
        }
        self.warned.push(span);
        let name = &self.program.states[state.index()].name;
        let limit = largest_exponent(function);
        let label = if hi == f64::INFINITY {
            "nothing keeps its exponent from above".to_owned()
        } else {
            format!("its exponent may be as large as {hi}")
        };
        let mut warning = Diagnostic::new(
            Code::UnboundedWrite,
            span,
            format!("what this writes into state `{name}` may overflow"),
            label,
        )
        .note(format!("in float32 it is infinite above {limit}, and so is `{name}` from then on"));
        let tensor = match self.program.expr(exponent).kind {
            ExprKind::Tensor(id) => Some(&self.program.tensors[id.index()]),
            _ => None,
        };
        warning = match tensor {
            Some(tensor) if tensor.range == Range::Any => {
                let end = Span::new(tensor.span.end, tensor.span.end);
                warning.and_at(tensor.span, "declared without a range").replace(
                    format!("if it stays small, say so: `{}: … in (-inf, 20]`", tensor.name),
                    end,
                    " in (-inf, 20]",
                )
            }
            Some(tensor) => {
                warning.and_at(tensor.span, "declared here").help("a gate of an input ends well below that")
            }
            None => warning.help("build it from inputs with ranges, or use `sigmoid` for a gate"),
        };
        self.warnings.push(warning);
    }

    fn factor(&mut self, id: ExprId, state: StateId) {
        match self.program.expr(id).kind {
            ExprKind::Binary(Binary::Mul, lhs, rhs) => {
                self.factor(lhs, state);
                self.factor(rhs, state);
            }
            ExprKind::Local(LocalId(local)) => {
                if let Some(value) = self.values[local as usize] {
                    self.factor(value, state);
                }
            }
            ExprKind::Index { base: value, .. } | ExprKind::Rename { value, .. } => self.factor(value, state),
            ExprKind::Unary(function @ (Unary::Exp | Unary::Exp2), exponent) => {
                let hi = self.bounds[exponent.index()].hi;
                if hi > 0.0 {
                    self.warn(id, function, exponent, hi, state);
                }
            }
            ExprKind::State(_)
            | ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::LoopIndex(_)
            | ExprKind::Unary(..)
            | ExprKind::Binary(..)
            | ExprKind::Contract { .. }
            | ExprKind::Reduce(..)
            | ExprKind::StopGradient(_) => {}
        }
    }

    fn warn(&mut self, factor: ExprId, function: Unary, exponent: ExprId, hi: f64, state: StateId) {
        let span = self.program.expr(factor).span;
        if self.warned.contains(&span) {
            return;
        }
        self.warned.push(span);
        let name = &self.program.states[state.index()].name;
        let inner = self.program.expr(exponent);
        let limit = largest_exponent(function);
        let label = if hi == f64::INFINITY {
            "nothing keeps its exponent at or below 0".to_owned()
        } else {
            format!("its exponent may be as large as {hi}")
        };
        let mut warning = Diagnostic::new(
            Code::UnboundedGrowth,
            span,
            format!("this factor of state `{name}` may exceed 1"),
            label,
        )
        .note(format!(
            "above 0 the state grows from token to token, and overflows in float32 once the exponents of a sequence add up to more than {limit}"
        ));
        // The usual case: the exponent is an input of which nothing was promised.
        let tensor = match inner.kind {
            ExprKind::Tensor(id) => Some(&self.program.tensors[id.index()]),
            _ => None,
        };
        warning = match tensor {
            Some(tensor) if tensor.range == Range::Any => {
                let end = Span::new(tensor.span.end, tensor.span.end);
                warning.and_at(tensor.span, "declared without a range").replace(
                    format!("if it is a log decay, say so: `{}: … in (-inf, 0]`", tensor.name),
                    end,
                    " in (-inf, 0]",
                )
            }
            Some(tensor) => warning
                .and_at(tensor.span, "declared here")
                .help("if it is a log decay, its range ends at 0: `in (-inf, 0]`"),
            None => warning.help(
                "build it from parts of known sign: `-exp(A) * softplus(dt)`, `logsigmoid(f)`, or inputs with ranges",
            ),
        };
        self.warnings.push(warning);
    }
}

/// Where an exponential leaves float32, rounded down.
fn largest_exponent(function: Unary) -> f64 {
    if function == Unary::Exp2 { 128.0 } else { 88.0 }
}
