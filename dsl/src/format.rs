//! Syntax to text: one statement a line, four spaces a level, every comment kept, at most one blank line between
//! lines. Formatting what was formatted changes nothing. It never changes what a program means: parentheses stay as
//! written, and a tree that needs more of them gets them.

use crate::ast::{
    AxisList, Bound, Comment, Expr, ExprKind, File, Name, Operator, Range, RangeKind, Recurrence, Statement,
    StatementKind, TensorDecl,
};

/// Beyond this column a trailing comment is not aligned with its neighbours.
const ALIGN_UP_TO: usize = 88;

/// The text of a file.
pub fn format(file: &File) -> String {
    let mut lines = Lines { lines: Vec::new() };
    for (index, recurrence) in file.recurrences.iter().enumerate() {
        if index > 0 {
            lines.blank();
        }
        lines.recurrence(recurrence);
    }
    if !file.recurrences.is_empty() && !file.trailing.is_empty() {
        lines.blank();
    }
    lines.comments(&file.trailing, 0);
    lines.finish()
}

/// The text of an expression, on one line.
pub fn format_expr(expr: &Expr) -> String {
    let mut text = String::new();
    write_expr(&mut text, expr, Level::Sum);
    text
}

struct Line {
    text: String,
    comment: Option<String>,
}

impl Line {
    /// Blank lines, comments and braces separate what is aligned.
    fn breaks_alignment(&self) -> bool {
        let text = self.text.trim_start();
        text.is_empty() || text.starts_with("//") || text == "}" || self.opens_block()
    }

    fn opens_block(&self) -> bool {
        self.text.ends_with('{') && !self.text.trim_start().starts_with("//")
    }
}

struct Lines {
    lines: Vec<Line>,
}

impl Lines {
    fn push(&mut self, level: usize, text: &str, comment: Option<&Comment>) {
        let mut line = "    ".repeat(level);
        line.push_str(text);
        self.lines.push(Line { text: line, comment: comment.map(|comment| comment.text.clone()) });
    }

    fn blank(&mut self) {
        // Never two in a row, never at the beginning of a file or a block.
        if self.lines.last().is_some_and(|line| !line.text.is_empty() && !line.opens_block()) {
            self.lines.push(Line { text: String::new(), comment: None });
        }
    }

    fn comments(&mut self, comments: &[Comment], level: usize) {
        for comment in comments {
            if comment.blank_before {
                self.blank();
            }
            self.push(level, &comment.text, None);
        }
    }

    fn recurrence(&mut self, recurrence: &Recurrence) {
        self.comments(&recurrence.leading, 0);
        if recurrence.blank_before {
            self.blank();
        }
        self.push(0, &format!("recurrence {} {{", recurrence.name.text), None);
        self.statements(&recurrence.body.statements, 1);
        self.comments(&recurrence.body.trailing, 1);
        self.push(0, "}", recurrence.trailing.as_ref());
    }

    fn statements(&mut self, statements: &[Statement], level: usize) {
        for statement in statements {
            self.comments(&statement.leading, level);
            if statement.blank_before {
                self.blank();
            }
            if let StatementKind::For { var, axis, body } = &statement.kind {
                self.push(level, &format!("for {} in {} {{", var.text, axis.text), None);
                self.statements(&body.statements, level + 1);
                self.comments(&body.trailing, level + 1);
                self.push(level, "}", statement.trailing.as_ref());
            } else {
                self.push(level, &write_statement(&statement.kind), statement.trailing.as_ref());
            }
        }
    }

    /// Joins the lines; comments at the ends of neighbouring lines begin in one column.
    fn finish(self) -> String {
        let mut text = String::new();
        let mut index = 0;
        while index < self.lines.len() {
            let mut end = index;
            let mut column = 0;
            while end < self.lines.len() && !self.lines[end].breaks_alignment() {
                let width = self.lines[end].text.chars().count() + 2;
                if self.lines[end].comment.is_some() && width <= ALIGN_UP_TO {
                    column = column.max(width);
                }
                end += 1;
            }
            for line in &self.lines[index..end.max(index + 1)] {
                text.push_str(&line.text);
                if let Some(comment) = &line.comment {
                    let width = line.text.chars().count();
                    text.push_str(&" ".repeat(column.saturating_sub(width).max(2)));
                    text.push_str(comment);
                }
                text.push('\n');
            }
            index = end.max(index + 1);
        }
        text
    }
}

fn write_statement(kind: &StatementKind) -> String {
    match kind {
        StatementKind::Axes(names) => format!("axis {}", join(names, |name: &Name| name.text.clone())),
        StatementKind::Inputs(decls) => format!("input {}", join(decls, write_tensor)),
        StatementKind::Params(decls) => format!("param {}", join(decls, write_tensor)),
        StatementKind::States(decls) => format!("state {}", join(decls, write_tensor)),
        StatementKind::Consts(decls) => {
            format!("const {}", join(decls, |decl| format!("{} = {}", decl.name.text, format_expr(&decl.value))))
        }
        StatementKind::Output { name, axes, value } => {
            format!("output {}: {} = {}", name.text, write_axes(axes), format_expr(value))
        }
        StatementKind::Let { name, value } => format!("let {} = {}", name.text, format_expr(value)),
        StatementKind::Update { name, value } => format!("{} = {}", name.text, format_expr(value)),
        StatementKind::For { var, axis, body: _ } => format!("for {} in {}", var.text, axis.text),
        StatementKind::Broken { text, names: _ } => text.clone(),
    }
}

fn join<T>(items: &[T], write: impl Fn(&T) -> String) -> String {
    items.iter().map(write).collect::<Vec<_>>().join(", ")
}

fn write_axes(axes: &AxisList) -> String {
    format!("[{}]", join(&axes.names, |name| name.text.clone()))
}

fn write_tensor(decl: &TensorDecl) -> String {
    let range = decl.range.as_ref().map(|range| format!(" in {}", write_range(range))).unwrap_or_default();
    format!("{}: {}{range}", decl.name.text, write_axes(&decl.axes))
}

fn write_range(range: &Range) -> String {
    match &range.kind {
        RangeKind::Interval { lo: Bound { text: lo, .. }, hi: Bound { text: hi, .. }, lo_closed, hi_closed } => {
            let open = if *lo_closed { '[' } else { '(' };
            let close = if *hi_closed { ']' } else { ')' };
            format!("{open}{lo}, {hi}{close}")
        }
        RangeKind::Unit(axis) => format!("unit({})", axis.text),
    }
}

/// How tightly something binds.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Sum,
    Product,
    Signed,
    Power,
    Atom,
}

fn level_of(expr: &Expr) -> Level {
    match &expr.kind {
        ExprKind::Number { .. }
        | ExprKind::Name(_)
        | ExprKind::Paren(_)
        | ExprKind::Call { .. }
        | ExprKind::Mapping { .. }
        | ExprKind::Index { .. } => Level::Atom,
        ExprKind::Neg(_) => Level::Signed,
        ExprKind::Binary { op, .. } => match op {
            Operator::Add | Operator::Sub => Level::Sum,
            Operator::Mul | Operator::Div | Operator::Contract => Level::Product,
            Operator::Pow => Level::Power,
        },
    }
}

fn write_expr(text: &mut String, expr: &Expr, at_least: Level) {
    if level_of(expr) < at_least {
        text.push('(');
        write_expr(text, expr, Level::Sum);
        text.push(')');
        return;
    }
    match &expr.kind {
        ExprKind::Number { text: number, value: _ } => text.push_str(number),
        ExprKind::Name(name) => text.push_str(name),
        ExprKind::Paren(inner) => {
            text.push('(');
            write_expr(text, inner, Level::Sum);
            text.push(')');
        }
        ExprKind::Neg(inner) => {
            text.push('-');
            write_expr(text, inner, Level::Signed);
        }
        ExprKind::Binary { op, op_span: _, lhs, rhs } => {
            let (left, right) = match op {
                Operator::Add | Operator::Sub => (Level::Sum, Level::Product),
                Operator::Mul | Operator::Div | Operator::Contract => (Level::Product, Level::Signed),
                // The exponent may have a sign, and powers group from the right.
                Operator::Pow => (Level::Atom, Level::Signed),
            };
            write_expr(text, lhs, left);
            text.push(' ');
            text.push_str(op.symbol());
            text.push(' ');
            write_expr(text, rhs, right);
        }
        ExprKind::Call { function, arguments } => {
            text.push_str(&function.text);
            text.push('(');
            for (index, argument) in arguments.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                write_expr(text, argument, Level::Sum);
            }
            text.push(')');
        }
        ExprKind::Mapping { from, to } => {
            text.push_str(&from.text);
            text.push_str(" -> ");
            text.push_str(&to.text);
        }
        ExprKind::Index { base, index } => {
            write_expr(text, base, Level::Atom);
            text.push('[');
            write_expr(text, index, Level::Sum);
            text.push(']');
        }
    }
}
