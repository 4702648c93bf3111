//! Syntax to checked programs. In: a [`File`]; out: a [`Program`] for every recurrence without errors, and everything
//! there is to say. It never stops at the first error, and says nothing twice: what depends on a broken piece is
//! passed over.

mod affine;
mod declarations;
mod expr;
mod functions;
mod growth;
mod index;
mod names;
mod statements;

use std::collections::HashMap;

use crate::ast::{self, File};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{AxisId, Expr, ExprId, ExprKind, Program};
use crate::span::Span;
use names::Names;

/// Checks a file.
pub fn check(file: &File) -> (Vec<Program>, Vec<Diagnostic>) {
    let mut programs = Vec::new();
    let mut diagnostics = Vec::new();
    let mut earlier: HashMap<&str, Span> = HashMap::new();
    for recurrence in &file.recurrences {
        let name = &recurrence.name;
        if !name.text.is_empty()
            && let Some(&first) = earlier.get(name.text.as_str())
        {
            diagnostics.push(
                Diagnostic::new(
                    Code::DuplicateRecurrence,
                    name.span,
                    format!("there are two recurrences called `{}`", name.text),
                    "the second one",
                )
                .and_at(first, "the first one")
                .help("give one of them another name"),
            );
        }
        earlier.entry(&name.text).or_insert(name.span);
        let (program, found) = Checker::new(recurrence).run(recurrence);
        if !found.iter().any(Diagnostic::is_error) && !has_broken(&recurrence.body) {
            programs.push(program);
        }
        diagnostics.extend(found);
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().start);
    (programs, diagnostics)
}

fn has_broken(block: &ast::Block) -> bool {
    block.statements.iter().any(|statement| match &statement.kind {
        ast::StatementKind::Broken { .. } => true,
        ast::StatementKind::For { body, .. } => has_broken(body),
        ast::StatementKind::Axes(_)
        | ast::StatementKind::Inputs(_)
        | ast::StatementKind::Params(_)
        | ast::StatementKind::Consts(_)
        | ast::StatementKind::States(_)
        | ast::StatementKind::Output { .. }
        | ast::StatementKind::Let { .. }
        | ast::StatementKind::Update { .. } => false,
    })
}

/// One recurrence being checked.
struct Checker {
    program: Program,
    names: Names,
    diagnostics: Vec<Diagnostic>,
}

impl Checker {
    fn new(recurrence: &ast::Recurrence) -> Checker {
        let program = Program {
            name: recurrence.name.text.clone(),
            doc: recurrence.doc(),
            axes: Vec::new(),
            tensors: Vec::new(),
            consts: Vec::new(),
            states: Vec::new(),
            outputs: Vec::new(),
            locals: Vec::new(),
            loop_vars: Vec::new(),
            exprs: Vec::new(),
            body: Vec::new(),
            span: recurrence.span,
        };
        Checker { program, names: Names::default(), diagnostics: Vec::new() }
    }

    fn run(mut self, recurrence: &ast::Recurrence) -> (Program, Vec<Diagnostic>) {
        self.recurrence_name(&recurrence.name);
        self.declare(&recurrence.body);
        self.resolve_declarations(&recurrence.body);
        self.program.body = self.statements(&recurrence.body, false);
        self.diagnostics.extend(affine::check(&self.program));
        // What is missing may be in a statement that could not be understood.
        let complete = !has_broken(&recurrence.body);
        if complete && !self.diagnostics.iter().any(Diagnostic::is_error) {
            self.completeness(recurrence);
        }
        if !self.diagnostics.iter().any(Diagnostic::is_error) {
            if complete {
                self.unused();
            }
            self.diagnostics.extend(growth::check(&self.program));
        }
        (self.program, self.diagnostics)
    }

    fn push(&mut self, kind: ExprKind, axes: Vec<AxisId>, span: Span) -> ExprId {
        let id = ExprId(self.program.exprs.len() as u32);
        self.program.exprs.push(Expr { kind, axes, span });
        id
    }

    fn axes_of(&self, id: ExprId) -> &[AxisId] {
        &self.program.expr(id).axes
    }

    fn axis_name(&self, axis: AxisId) -> &str {
        &self.program.axes[axis.index()].name
    }

    /// `[K, V]`
    fn axes_text(&self, axes: &[AxisId]) -> String {
        let names: Vec<&str> = axes.iter().map(|&axis| self.axis_name(axis)).collect();
        format!("[{}]", names.join(", "))
    }
}
