//! Declarations, which have no order and are read before the statements: names first, then axes, ranges and the
//! values of constants. In: a block of syntax; out: the declared part of the program.

use super::Checker;
use super::names::Meaning;
use crate::ast::{self, Block, RangeKind, StatementKind};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{
    Axis, AxisId, Const, ConstId, ExprId, ExprKind, Output, OutputId, Range, State, StateId, Tensor, TensorId,
    TensorKind,
};
use crate::span::Span;

impl Checker {
    /// Gives every declared name its meaning; axes of tensors follow in a second pass.
    pub(super) fn declare(&mut self, block: &Block) {
        for statement in &block.statements {
            match &statement.kind {
                StatementKind::Axes(names) => {
                    for name in names {
                        let id = AxisId(self.program.axes.len() as u32);
                        if self.define(name, Meaning::Axis(id)) {
                            self.program.axes.push(Axis { name: name.text.clone(), span: name.span });
                        }
                    }
                }
                StatementKind::Inputs(decls) => self.declare_tensors(decls, TensorKind::Input),
                StatementKind::Params(decls) => self.declare_tensors(decls, TensorKind::Param),
                StatementKind::States(decls) => {
                    for decl in decls {
                        let id = StateId(self.program.states.len() as u32);
                        if self.define(&decl.name, Meaning::State(id)) {
                            let name = decl.name.text.clone();
                            self.program.states.push(State { name, axes: Vec::new(), span: decl.span });
                        }
                    }
                }
                StatementKind::Output { name, axes, value: _ } => {
                    let id = OutputId(self.program.outputs.len() as u32);
                    if self.define(name, Meaning::Output(id)) {
                        let span = name.span.join(axes.span);
                        self.program.outputs.push(Output { name: name.text.clone(), axes: Vec::new(), span });
                    }
                }
                StatementKind::Consts(decls) => {
                    for decl in decls {
                        self.names.announce(&decl.name.text, decl.name.span);
                    }
                }
                StatementKind::Let { name, value: _ } => self.names.announce(&name.text, name.span),
                StatementKind::Broken { names, text: _ } => {
                    for name in names {
                        self.define(name, Meaning::Broken);
                    }
                }
                StatementKind::Update { .. } | StatementKind::For { .. } => {}
            }
        }
    }

    fn declare_tensors(&mut self, decls: &[ast::TensorDecl], kind: TensorKind) {
        for decl in decls {
            let id = TensorId(self.program.tensors.len() as u32);
            if self.define(&decl.name, Meaning::Tensor(id)) {
                let name = decl.name.text.clone();
                self.program.tensors.push(Tensor { name, kind, axes: Vec::new(), range: Range::Any, span: decl.span });
            }
        }
    }

    /// Whether the declaration at `span` is the one that gave `name` its meaning, rather than a second one.
    pub(super) fn is_first(&self, name: &ast::Name) -> bool {
        self.names.span(&name.text) == Some(name.span)
    }

    /// Axes and ranges of what was declared, and the values of constants.
    pub(super) fn resolve_declarations(&mut self, block: &Block) {
        for statement in &block.statements {
            match &statement.kind {
                StatementKind::Inputs(decls) | StatementKind::Params(decls) => {
                    for decl in decls {
                        let axes = self.axis_list(&decl.axes);
                        let range = decl.range.as_ref().map(|range| self.range(range, decl, &axes));
                        if let (true, Some(Meaning::Tensor(id))) =
                            (self.is_first(&decl.name), self.names.meaning(&decl.name.text))
                        {
                            let tensor = &mut self.program.tensors[id.index()];
                            tensor.axes = axes;
                            tensor.range = range.unwrap_or(Range::Any);
                        }
                    }
                }
                StatementKind::States(decls) => {
                    for decl in decls {
                        let axes = self.axis_list(&decl.axes);
                        if let Some(range) = &decl.range {
                            let clause = Span::new(decl.axes.span.end, range.span.end);
                            self.diagnostics.push(
                                Diagnostic::new(
                                    Code::RangeOnState,
                                    range.span,
                                    format!("state `{}` cannot have a range", decl.name.text),
                                    "what it holds follows from the recurrence",
                                )
                                .replace("leave the range out", clause, ""),
                            );
                        }
                        if let (true, Some(Meaning::State(id))) =
                            (self.is_first(&decl.name), self.names.meaning(&decl.name.text))
                        {
                            self.program.states[id.index()].axes = axes;
                        }
                    }
                }
                StatementKind::Output { name, axes, value: _ } => {
                    let axes = self.axis_list(axes);
                    if let (true, Some(Meaning::Output(id))) = (self.is_first(name), self.names.meaning(&name.text)) {
                        self.program.outputs[id.index()].axes = axes;
                    }
                }
                StatementKind::Consts(decls) => {
                    for decl in decls {
                        self.constant(decl);
                    }
                }
                StatementKind::Axes(_)
                | StatementKind::Let { .. }
                | StatementKind::Update { .. }
                | StatementKind::For { .. }
                | StatementKind::Broken { .. } => {}
            }
        }
    }

    fn axis_list(&mut self, list: &ast::AxisList) -> Vec<AxisId> {
        let mut axes: Vec<AxisId> = Vec::new();
        for name in &list.names {
            let Some(axis) = self.axis(name) else { continue };
            if axes.contains(&axis) {
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::RepeatedAxis,
                        name.span,
                        format!("the axis `{}` stands here twice", name.text),
                        "axes are told apart by their names",
                    )
                    .help(format!(
                        "declare a second axis of the same size, `axis L`, and use `rename(x, {} -> L)` where they meet",
                        name.text
                    )),
                );
                continue;
            }
            axes.push(axis);
        }
        axes
    }

    fn range(&mut self, range: &ast::Range, decl: &ast::TensorDecl, axes: &[AxisId]) -> Range {
        match &range.kind {
            RangeKind::Unit(name) => {
                let Some(axis) = self.axis(name) else { return Range::Any };
                if !axes.contains(&axis) {
                    let text = self.axes_text(axes);
                    let error = Diagnostic::new(
                        Code::UnitMissingAxis,
                        name.span,
                        format!("`{}` has no axis {} to be a unit vector over", decl.name.text, name.text),
                        "not one of its axes",
                    )
                    .and_at(decl.axes.span, format!("its axes are {text}"));
                    self.diagnostics.push(match axes {
                        [only] => {
                            let only = self.axis_name(*only).to_owned();
                            error.replace(format!("perhaps `unit({only})`"), name.span, only)
                        }
                        _ => error,
                    });
                }
                Range::Unit(axis)
            }
            RangeKind::Interval { lo, hi, lo_closed, hi_closed } => {
                let empty = lo.value > hi.value || (lo.value == hi.value && !(*lo_closed && *hi_closed));
                if empty {
                    let error = Diagnostic::new(
                        Code::EmptyRange,
                        range.span,
                        "no number lies in this range",
                        format!("from {} to {}", lo.text, hi.text),
                    );
                    self.diagnostics.push(if lo.value > hi.value {
                        error.replace(
                            "the lower bound comes first",
                            lo.span.join(hi.span),
                            format!("{}, {}", hi.text, lo.text),
                        )
                    } else {
                        error.help(format!("to include the bound write `[{}, {}]`", lo.text, hi.text))
                    });
                }
                Range::Interval { lo: lo.value, hi: hi.value, lo_closed: *lo_closed, hi_closed: *hi_closed }
            }
        }
    }

    fn constant(&mut self, decl: &ast::ConstDecl) {
        let value = self.expr(&decl.value);
        let value = value.filter(|&value| {
            let offender = self.not_constant(value);
            if let Some(offender) = offender {
                let found = self.program.expr(offender);
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::NotConstant,
                        found.span,
                        format!("constant `{}` depends on data", decl.name.text),
                        "this is not known before the data are",
                    )
                    .and_at(decl.name.span, "declared constant here")
                    .help(format!("name a value of the token with `let {} = …`", decl.name.text)),
                );
            }
            offender.is_none()
        });
        let meaning = match value {
            Some(_) => Meaning::Const(ConstId(self.program.consts.len() as u32)),
            None => Meaning::Broken,
        };
        if self.define(&decl.name, meaning)
            && let Some(value) = value
        {
            self.program.consts.push(Const { name: decl.name.text.clone(), value, span: decl.span });
        }
    }

    /// A part of an expression that a constant cannot have.
    fn not_constant(&self, id: ExprId) -> Option<ExprId> {
        match &self.program.expr(id).kind {
            ExprKind::Number(_) | ExprKind::AxisSize(_) | ExprKind::Const(_) => None,
            ExprKind::Unary(_, value) | ExprKind::StopGradient(value) => self.not_constant(*value),
            ExprKind::Binary(_, lhs, rhs) => self.not_constant(*lhs).or_else(|| self.not_constant(*rhs)),
            ExprKind::Tensor(_) | ExprKind::State(_) | ExprKind::Local(_) | ExprKind::LoopIndex(_) => Some(id),
            ExprKind::Index { base: value, .. }
            | ExprKind::Reduce(_, value, _)
            | ExprKind::Rename { value, .. }
            | ExprKind::Contract { lhs: value, .. } => self.not_constant(*value).or(Some(id)),
        }
    }
}
