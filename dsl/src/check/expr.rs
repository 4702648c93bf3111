//! Expressions: names to meanings, functions to operations, and the axes of every value. In: syntax; out: an
//! [`ExprId`], or nothing where an error was given already.

use super::Checker;
use super::functions::{self, Function};
use super::names::Meaning;
use crate::ast::{self, Operator};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::format::format_expr;
use crate::program::{AxisId, Binary, ExprId, ExprKind, Reduce, Unary};
use crate::span::Span;

impl Checker {
    /// Checks an expression.
    pub(super) fn expr(&mut self, expr: &ast::Expr) -> Option<ExprId> {
        let span = expr.span;
        match &expr.kind {
            ast::ExprKind::Number { value, text: _ } => Some(self.push(ExprKind::Number(*value), Vec::new(), span)),
            ast::ExprKind::Name(name) => self.name(name, span),
            ast::ExprKind::Paren(inner) => self.expr(inner),
            ast::ExprKind::Neg(inner) => {
                let value = self.expr(inner)?;
                Some(self.unary(Unary::Neg, value, span))
            }
            ast::ExprKind::Binary { op, op_span, lhs, rhs } => {
                // Both sides are checked before either may end it: two errors, two messages.
                let (left, right) = (self.expr(lhs), self.expr(rhs));
                let (left, right) = (left?, right?);
                match op {
                    Operator::Add => Some(self.binary(Binary::Add, left, right, span)),
                    Operator::Sub => Some(self.binary(Binary::Sub, left, right, span)),
                    Operator::Mul | Operator::Div => {
                        self.grouping_after_a_sum(lhs, left, right, expr);
                        let function = if *op == Operator::Mul { Binary::Mul } else { Binary::Div };
                        Some(self.binary(function, left, right, span))
                    }
                    Operator::Pow => Some(self.binary(Binary::Pow, left, right, span)),
                    Operator::Contract => self.contract(left, right, *op_span, lhs, rhs, span),
                }
            }
            ast::ExprKind::Call { function, arguments } => self.call(function, arguments, span),
            ast::ExprKind::Mapping { from, to } => {
                self.diagnostics.push(
                    Diagnostic::new(Code::MisplacedMapping, span, "`->` stands outside of `rename`", "no meaning here")
                        .help(format!("write `rename(x, {} -> {})`", from.text, to.text)),
                );
                None
            }
            ast::ExprKind::Index { base, index } => self.index(base, index, span),
        }
    }

    fn name(&mut self, name: &str, span: Span) -> Option<ExprId> {
        let Some(meaning) = self.names.use_of(name) else {
            let error = self.names.undefined(name, span);
            self.diagnostics.push(error);
            return None;
        };
        match meaning {
            Meaning::Axis(axis) => Some(self.push(ExprKind::AxisSize(axis), Vec::new(), span)),
            Meaning::Tensor(id) => {
                let axes = self.program.tensors[id.index()].axes.clone();
                Some(self.push(ExprKind::Tensor(id), axes, span))
            }
            Meaning::Const(id) => Some(self.push(ExprKind::Const(id), Vec::new(), span)),
            Meaning::State(id) => {
                let axes = self.program.states[id.index()].axes.clone();
                Some(self.push(ExprKind::State(id), axes, span))
            }
            Meaning::Local(id) => {
                let axes = self.program.locals[id.index()].axes.clone();
                Some(self.push(ExprKind::Local(id), axes, span))
            }
            Meaning::LoopVar(id) => Some(self.push(ExprKind::LoopIndex(id), Vec::new(), span)),
            Meaning::Output(_) => {
                let declared = self.names.span(name).unwrap_or(span);
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::OutputAsValue,
                        span,
                        format!("output `{name}` cannot be used as a value"),
                        "used here",
                    )
                    .and_at(declared, "declared as an output here")
                    .help("name the value with `let`, and use that for the output and here"),
                );
                None
            }
            Meaning::Broken => None,
        }
    }

    pub(super) fn in_order(&self, axes: &[AxisId]) -> Vec<AxisId> {
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        axes.dedup();
        axes
    }

    fn union(&self, lhs: ExprId, rhs: ExprId) -> Vec<AxisId> {
        let both: Vec<AxisId> = self.axes_of(lhs).iter().chain(self.axes_of(rhs)).copied().collect();
        self.in_order(&both)
    }

    fn unary(&mut self, function: Unary, value: ExprId, span: Span) -> ExprId {
        let axes = self.in_order(self.axes_of(value));
        self.push(ExprKind::Unary(function, value), axes, span)
    }

    fn binary(&mut self, function: Binary, lhs: ExprId, rhs: ExprId, span: Span) -> ExprId {
        let axes = self.union(lhs, rhs);
        self.push(ExprKind::Binary(function, lhs, rhs), axes, span)
    }

    fn contract(
        &mut self,
        lhs: ExprId,
        rhs: ExprId,
        op_span: Span,
        lhs_syntax: &ast::Expr,
        rhs_syntax: &ast::Expr,
        span: Span,
    ) -> Option<ExprId> {
        let right = self.axes_of(rhs).to_vec();
        let shared: Vec<AxisId> = self.axes_of(lhs).iter().copied().filter(|axis| right.contains(axis)).collect();
        let over = self.in_order(&shared);
        if over.is_empty() {
            let left = self.axes_text(self.axes_of(lhs));
            let right = self.axes_text(&right);
            self.diagnostics.push(
                Diagnostic::new(
                    Code::NoSharedAxis,
                    op_span,
                    format!("`@` between {left} and {right}, which share no axis"),
                    "nothing to sum over",
                )
                .and_at(lhs_syntax.span, left)
                .and_at(rhs_syntax.span, right)
                .replace("the product without a sum, also the outer product, is `*`", op_span, "*"),
            );
            return None;
        }
        self.grouping(lhs_syntax, lhs, rhs, rhs_syntax, span);
        let axes: Vec<AxisId> = self.union(lhs, rhs).into_iter().filter(|axis| !over.contains(axis)).collect();
        Some(self.push(ExprKind::Contract { lhs, rhs, over }, axes, span))
    }

    /// `a * b @ c`, where `a * (b @ c)` would be another value: perhaps it is the one meant.
    fn grouping(&mut self, syntax: &ast::Expr, lhs: ExprId, rhs: ExprId, rhs_syntax: &ast::Expr, span: Span) {
        let ast::ExprKind::Binary { op: Operator::Mul | Operator::Div, lhs: first, rhs: second, .. } = &syntax.kind
        else {
            return;
        };
        let ExprKind::Binary(_, a, b) = self.program.expr(lhs).kind else { return };
        let shares = |one: ExprId, other: ExprId| {
            self.axes_of(one).iter().copied().find(|axis| self.axes_of(other).contains(axis))
        };
        let (Some(axis), Some(_)) = (shares(a, rhs), shares(b, rhs)) else { return };
        let axis = self.axis_name(axis).to_owned();
        let as_read = format!("({}) @ {}", format_expr(syntax), format_expr(rhs_syntax));
        let (first_text, second_text) = (format_expr(first), format_expr(second));
        self.diagnostics.push(
            Diagnostic::new(
                Code::Grouping,
                span,
                "the grouping of this product matters",
                format!("read as `{as_read}`"),
            )
            .note(format!(
                "`*`, `/` and `@` group from the left; `{first_text} * ({second_text} @ …)` would not sum `{first_text}` over {axis}"
            ))
            .replace("say which is meant with parentheses", span, as_read),
        );
    }

    /// `a @ b * c`, where c has an axis that `a @ b` summed over: perhaps `a @ (b * c)` is meant.
    fn grouping_after_a_sum(&mut self, syntax: &ast::Expr, lhs: ExprId, rhs: ExprId, whole: &ast::Expr) {
        let (
            ast::ExprKind::Binary { op: Operator::Contract, lhs: first, .. },
            ExprKind::Contract { over, .. },
            ast::ExprKind::Binary { op, rhs: last, .. },
        ) = (&syntax.kind, &self.program.expr(lhs).kind, &whole.kind)
        else {
            return;
        };
        let Some(&axis) = over.iter().find(|axis| self.axes_of(rhs).contains(axis)) else { return };
        let axis = self.axis_name(axis).to_owned();
        let (first, last) = (format_expr(first), format_expr(last));
        let symbol = op.symbol();
        let as_read = format!("({}) {symbol} {last}", format_expr(syntax));
        self.diagnostics.push(
            Diagnostic::new(
                Code::Grouping,
                whole.span,
                "the grouping of this product matters",
                format!("read as `{as_read}`"),
            )
            .note(format!(
                "`*`, `/` and `@` group from the left; `{first} @ (… {symbol} {last})` would sum `{last}` over {axis} as well"
            ))
            .replace("say which is meant with parentheses", whole.span, as_read),
        );
    }

    fn call(&mut self, function: &ast::Name, arguments: &[ast::Expr], span: Span) -> Option<ExprId> {
        let Some(found) = functions::find(&function.text) else {
            self.unknown_function(function, arguments);
            return None;
        };
        let name = function.text.as_str();
        match found {
            Function::Unary(unary) => {
                let [argument] = self.exactly::<1>(name, arguments, span, "one value")?;
                let value = self.expr(argument)?;
                Some(self.unary(unary, value, span))
            }
            Function::StopGradient => {
                let [argument] = self.exactly::<1>(name, arguments, span, "one value")?;
                let value = self.expr(argument)?;
                let axes = self.in_order(self.axes_of(value));
                Some(self.push(ExprKind::StopGradient(value), axes, span))
            }
            Function::Binary(binary) => self.two_values(binary, name, arguments, span),
            Function::Max => match arguments.get(1).map(|argument| self.as_axis(argument)) {
                Some(Some(_)) => self.reduce(Reduce::Max, name, arguments, span),
                Some(None) | None => self.two_values(Binary::Max, name, arguments, span),
            },
            Function::Reduce(reduce) => self.reduce(reduce, name, arguments, span),
            Function::Rename => self.rename(arguments, span),
        }
    }

    fn unknown_function(&mut self, function: &ast::Name, arguments: &[ast::Expr]) {
        let name = function.text.as_str();
        // The arguments may hold errors of their own, except that axes and mappings mean something only to functions.
        for argument in arguments {
            if !matches!(argument.kind, ast::ExprKind::Mapping { .. }) {
                self.expr(argument);
            }
        }
        if let Some(meaning) = self.names.use_of(name) {
            if meaning != Meaning::Broken {
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::ValueCalled,
                        function.span,
                        format!("`{name}` is {}, not a function", meaning.words()),
                        "cannot be applied to arguments",
                    )
                    .help(format!(
                        "for a product write `{name} * (…)` or `{name} @ (…)`, for a position along an axis `{name}[r]`"
                    )),
                );
            }
            return;
        }
        let error = Diagnostic::new(
            Code::UnknownFunction,
            function.span,
            format!("there is no function `{name}`"),
            "unknown function",
        );
        let error = match (functions::foreign(name), crate::suggest::nearest(name, functions::names())) {
            (Some((Some(meant), sentence)), _) => error.replace(sentence, function.span, meant),
            (Some((None, sentence)), _) => error.help(sentence),
            (None, Some(meant)) => error.replace(format!("did you mean `{meant}`?"), function.span, meant),
            (None, None) => {
                error.note(format!("the functions are {}", functions::names().collect::<Vec<_>>().join(" ")))
            }
        };
        self.diagnostics.push(error);
    }

    /// The arguments, if there are `N` of them.
    fn exactly<'e, const N: usize>(
        &mut self,
        name: &str,
        arguments: &'e [ast::Expr],
        span: Span,
        wanted: &str,
    ) -> Option<&'e [ast::Expr; N]> {
        if let Ok(arguments) = <&[ast::Expr; N]>::try_from(arguments) {
            return Some(arguments);
        }
        let found = match arguments.len() {
            0 => "none".to_owned(),
            1 => "one".to_owned(),
            2 => "two".to_owned(),
            3 => "three".to_owned(),
            count => count.to_string(),
        };
        let error = Diagnostic::new(
            Code::ArgumentCount,
            span,
            format!("`{name}` takes {wanted}, not {found}"),
            format!("{found} given"),
        );
        // sqrt(x, K), exp(g, V): elementwise functions over an axis.
        let names_axis = arguments.get(1).is_some_and(|argument| self.as_axis(argument).is_some());
        self.diagnostics.push(if N == 1 && names_axis {
            error.note("it works on every entry by itself; no axis is named")
        } else {
            error
        });
        None
    }

    fn two_values(&mut self, binary: Binary, name: &str, arguments: &[ast::Expr], span: Span) -> Option<ExprId> {
        let wanted = match binary {
            Binary::Max => "two values, or a value and an axis",
            Binary::Min | Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Pow => "two values",
        };
        let [lhs, rhs] = self.exactly::<2>(name, arguments, span, wanted)?;
        if let (Binary::Min, Some(axis)) = (binary, self.as_axis(rhs)) {
            let axis = self.axis_name(axis).to_owned();
            let value = format_expr(&ast::Expr { kind: ast::ExprKind::Neg(Box::new(lhs.clone())), span: lhs.span });
            self.diagnostics.push(
                Diagnostic::new(
                    Code::ArgumentCount,
                    span,
                    "`min` takes two values and has no form over an axis",
                    format!("`{axis}` is an axis"),
                )
                .replace("the least over an axis is", span, format!("-max({value}, {axis})")),
            );
            return None;
        }
        let (left, right) = (self.expr(lhs), self.expr(rhs));
        Some(self.binary(binary, left?, right?, span))
    }

    /// The axis, if an expression is the bare name of one.
    fn as_axis(&self, expr: &ast::Expr) -> Option<AxisId> {
        let ast::ExprKind::Name(name) = &expr.kind else { return None };
        match self.names.meaning(name)? {
            Meaning::Axis(axis) => Some(axis),
            Meaning::Tensor(_)
            | Meaning::Const(_)
            | Meaning::State(_)
            | Meaning::Output(_)
            | Meaning::Local(_)
            | Meaning::LoopVar(_)
            | Meaning::Broken => None,
        }
    }

    fn reduce(&mut self, reduce: Reduce, name: &str, arguments: &[ast::Expr], span: Span) -> Option<ExprId> {
        if arguments.len() > 2 || arguments.is_empty() {
            self.exactly::<2>(name, arguments, span, "a value and the name of an axis");
            return None;
        }
        let value = self.expr(&arguments[0])?;
        let has = self.axes_of(value).to_vec();
        let axes = self.axes_text(&has);
        let Some(argument) = arguments.get(1) else {
            let end = Span::new(span.end - 1, span.end - 1);
            let error = Diagnostic::new(
                Code::ReduceNeedsAxis,
                span,
                format!("`{name}` over which axis?"),
                "the name of an axis has to follow the value",
            )
            .and_at(arguments[0].span, axes);
            self.diagnostics.push(match has.first() {
                Some(&axis) => {
                    let axis = self.axis_name(axis);
                    error.replace(format!("write `{name}(x, {axis})`"), end, format!(", {axis}"))
                }
                None => error.note("this value has no axes"),
            });
            return None;
        };
        let Some(axis) = self.as_axis(argument) else {
            if let ast::ExprKind::Mapping { from, to: _ } = &argument.kind {
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::MisplacedMapping,
                        argument.span,
                        "`->` stands outside of `rename`",
                        format!("`{name}` takes one axis"),
                    )
                    .replace(
                        format!("write `{name}(x, {})`", from.text),
                        argument.span,
                        from.text.as_str(),
                    ),
                );
                return None;
            }
            if let ast::ExprKind::Name(name) = &argument.kind {
                let is_value = self.names.meaning(name);
                match is_value {
                    None => {
                        let error = self.not_an_axis(&ast::Name { text: name.clone(), span: argument.span });
                        self.diagnostics.extend(error);
                        return None;
                    }
                    Some(Meaning::Broken) => return None,
                    Some(_) => {}
                }
            }
            let error = Diagnostic::new(
                Code::ReduceNeedsAxis,
                argument.span,
                format!("the second argument of `{name}` names an axis"),
                "this is no axis",
            )
            .and_at(arguments[0].span, format!("has axes {axes}"));
            let error = match has.last() {
                Some(&axis) => {
                    let axis = self.axis_name(axis);
                    error.replace(format!("name the axis: `{name}(x, {axis})`"), argument.span, axis)
                }
                None => error.note("this value has no axes"),
            };
            self.diagnostics.push(error);
            return None;
        };
        if let ast::ExprKind::Name(name) = &argument.kind {
            self.names.use_of(name);
        }
        if !has.contains(&axis) {
            let axis_name = self.axis_name(axis).to_owned();
            let error = Diagnostic::new(
                Code::ReduceMissingAxis,
                argument.span,
                format!("`{name}` over {axis_name}, which the value does not have"),
                "not an axis of the value",
            )
            .and_at(arguments[0].span, format!("has axes {axes}"));
            let only = match has.as_slice() {
                [only] => Some(self.axis_name(*only).to_owned()),
                _ => None,
            };
            self.diagnostics.push(match only {
                Some(only) => error.replace(format!("perhaps over {only}"), argument.span, only),
                None if has.is_empty() => error.note("a value without axes is a single number"),
                None => error,
            });
            return None;
        }
        let keeps_axis = match reduce {
            Reduce::Sum | Reduce::Mean | Reduce::Max => false,
            Reduce::Softmax | Reduce::L2Norm => true,
        };
        let axes: Vec<AxisId> = self.in_order(&has).into_iter().filter(|&other| keeps_axis || other != axis).collect();
        Some(self.push(ExprKind::Reduce(reduce, value, axis), axes, span))
    }

    fn rename(&mut self, arguments: &[ast::Expr], span: Span) -> Option<ExprId> {
        let form = "a value and `K -> L`";
        if let [_, from, to] = arguments
            && let (ast::ExprKind::Name(from_name), ast::ExprKind::Name(to_name)) = (&from.kind, &to.kind)
        {
            let both = from.span.join(to.span);
            let arrow = format!("{from_name} -> {to_name}");
            self.diagnostics.push(
                Diagnostic::new(Code::BadRename, both, format!("`rename` takes {form}"), "not of the form `K -> L`")
                    .replace("write an arrow between the names", both, arrow),
            );
            return None;
        }
        let [value, mapping] = self.exactly::<2>("rename", arguments, span, form)?;
        let ast::ExprKind::Mapping { from, to } = &mapping.kind else {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::BadRename,
                    mapping.span,
                    "`rename` takes the old and the new name of an axis",
                    "not of the form `K -> L`",
                )
                .help("write `rename(x, K -> L)`"),
            );
            return None;
        };
        let value_span = value.span;
        let (value, from_axis, to_axis) = (self.expr(value), self.axis(from), self.axis(to));
        let (value, from_axis, to_axis) = (value?, from_axis?, to_axis?);
        let has = self.axes_of(value).to_vec();
        let axes = self.axes_text(&has);
        if !has.contains(&from_axis) {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::BadRename,
                    from.span,
                    format!("`rename` of {}, which the value does not have", from.text),
                    "not an axis of the value",
                )
                .and_at(value_span, format!("has axes {axes}")),
            );
            return None;
        }
        if has.contains(&to_axis) {
            let title = if from_axis == to_axis {
                format!("`rename` of {} to itself", from.text)
            } else {
                format!("`rename` to {}, which the value already has", to.text)
            };
            self.diagnostics.push(
                Diagnostic::new(Code::BadRename, to.span, title, "an axis can be there only once")
                    .and_at(value_span, format!("has axes {axes}"))
                    .help("declare another axis for it"),
            );
            return None;
        }
        let renamed: Vec<AxisId> = has.iter().map(|&axis| if axis == from_axis { to_axis } else { axis }).collect();
        let axes = self.in_order(&renamed);
        Some(self.push(ExprKind::Rename { value, from: from_axis, to: to_axis }, axes, span))
    }

    /// The axis behind a name, or an error.
    pub(super) fn axis(&mut self, name: &ast::Name) -> Option<AxisId> {
        if let Some(Meaning::Axis(axis)) = self.names.use_of(&name.text) {
            return Some(axis);
        }
        let error = self.not_an_axis(name);
        self.diagnostics.extend(error);
        None
    }

    /// What to say about a name that should be an axis; nothing about a broken one.
    pub(super) fn not_an_axis(&self, name: &ast::Name) -> Option<Diagnostic> {
        let text = name.text.as_str();
        let axes = self.names.that_are(|meaning| matches!(meaning, Meaning::Axis(_)));
        match self.names.meaning(text) {
            Some(Meaning::Broken) => None,
            Some(meaning) => {
                let error = Diagnostic::new(
                    Code::NotAnAxis,
                    name.span,
                    format!("`{text}` is {}, not an axis", meaning.words()),
                    "an axis has to stand here",
                )
                .and_at(self.names.span(text).unwrap_or(name.span), "declared here");
                Some(match crate::suggest::nearest(text, axes) {
                    Some(meant) => error.replace(format!("did you mean `{meant}`?"), name.span, meant),
                    None => error,
                })
            }
            None => {
                let error =
                    Diagnostic::new(Code::NotAnAxis, name.span, format!("there is no axis `{text}`"), "unknown axis");
                if matches!(text, "T" | "B" | "H") {
                    return Some(error.note(
                        "batch, time and head are never written: a recurrence says what one token does to one head",
                    ));
                }
                Some(match crate::suggest::nearest(text, axes) {
                    Some(meant) => error.replace(format!("did you mean `{meant}`?"), name.span, meant),
                    None => error.help(format!("declare it with `axis {text}`")),
                })
            }
        }
    }
}
