//! `k[r]` and `k[0]`: which position along which axis. In: syntax; out: an indexing expression, or an error.

use super::Checker;
use super::names::Meaning;
use crate::ast;
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::format::format_expr;
use crate::program::{AxisId, ExprId, ExprKind, Index};
use crate::span::Span;

impl Checker {
    /// Checks `base[index]`.
    pub(super) fn index(&mut self, base: &ast::Expr, index: &ast::Expr, span: Span) -> Option<ExprId> {
        let value = self.expr(base)?;
        let has = self.axes_of(value).to_vec();
        let (axis, position) = match &index.kind {
            ast::ExprKind::Name(name) => match self.names.use_of(name) {
                Some(Meaning::LoopVar(var)) => (self.program.loop_vars[var.index()].axis, Index::Loop(var)),
                Some(Meaning::Broken) => return None,
                None => {
                    self.undefined_index(name, base, index.span, span, &has);
                    return None;
                }
                Some(meaning) => {
                    self.bad_index(index, &format!("this is {}", meaning.words()));
                    return None;
                }
            },
            ast::ExprKind::Number { value, text: _ } if value.fract() == 0.0 && *value <= 1e9 => match has.first() {
                Some(&axis) => (axis, Index::Literal(*value as usize)),
                None => {
                    self.diagnostics.push(
                        Diagnostic::new(
                            Code::IndexMissingAxis,
                            base.span,
                            format!("`{}` has no axes to index", format_expr(base)),
                            "a single number",
                        )
                        .replace("leave the index out", Span::new(base.span.end, span.end), ""),
                    );
                    return None;
                }
            },
            ast::ExprKind::Number { .. }
            | ast::ExprKind::Paren(_)
            | ast::ExprKind::Neg(_)
            | ast::ExprKind::Binary { .. }
            | ast::ExprKind::Call { .. }
            | ast::ExprKind::Mapping { .. }
            | ast::ExprKind::Index { .. } => {
                self.bad_index(index, "this is neither");
                return None;
            }
        };
        if !has.contains(&axis) {
            let (name, axes) = (self.axis_name(axis).to_owned(), self.axes_text(&has));
            let bracket = Span::new(base.span.end, span.end);
            self.diagnostics.push(
                Diagnostic::new(
                    Code::IndexMissingAxis,
                    index.span,
                    format!("`{}` is indexed along {name}, which it does not have", format_expr(base)),
                    format!("runs over {name}"),
                )
                .and_at(base.span, format!("has axes {axes}"))
                .replace(
                    format!("leave the index out, or declare `{}` with the axis {name}", format_expr(base)),
                    bracket,
                    "",
                ),
            );
            return None;
        }
        let axes: Vec<AxisId> = self.in_order(&has).into_iter().filter(|&other| other != axis).collect();
        Some(self.push(ExprKind::Index { base: value, axis, index: position }, axes, span))
    }

    /// `k[t]` with a time that is never written, or `k[r]` outside of the loop over r.
    fn undefined_index(&mut self, name: &str, base: &ast::Expr, index: Span, span: Span, has: &[AxisId]) {
        let error = self.names.undefined(name, index);
        if error.code != Code::UndefinedName {
            self.diagnostics.push(error);
            return;
        }
        let error = Diagnostic::new(Code::UndefinedName, index, format!("`{name}` is not defined"), "no loop binds it");
        let over = has.iter().map(|&axis| self.axis_name(axis)).find(|axis| axis.eq_ignore_ascii_case(name));
        self.diagnostics.push(match over {
            Some(axis) => {
                error.help(format!("repeat the statement for every position of {axis}: `for {name} in {axis} {{ … }}`"))
            }
            None if matches!(name, "t" | "i" | "n") => error
                .note(
                    "time is never written: an input is its value for the token, a state the one before the statement",
                )
                .replace("leave the index out", Span::new(base.span.end, span.end), ""),
            None => error.help(format!(
                "bind it with a loop over one of the axes of `{}`: `for {name} in … {{ … }}`",
                format_expr(base)
            )),
        });
    }

    fn bad_index(&mut self, index: &ast::Expr, label: &str) {
        self.diagnostics.push(
            Diagnostic::new(Code::BadIndex, index.span, "an index is a loop variable or a whole number", label)
                .help("write `k[r]` inside `for r in R { … }`, or `k[0]`"),
        );
    }
}
