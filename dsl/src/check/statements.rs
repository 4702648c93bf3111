//! Statements, in the order they run. In: a block of syntax; out: statements of the program, and errors for those
//! that make none; then what is missing or never used.

use super::Checker;
use super::names::Meaning;
use crate::ast::{self, Block, Statement, StatementKind};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{AxisId, Binary, ExprId, ExprKind, Local, LocalId, LoopVar, LoopVarId, Stmt, TensorKind};
use crate::span::Span;

impl Checker {
    /// A recurrence's own name becomes the name of functions in other languages.
    pub(super) fn recurrence_name(&mut self, name: &ast::Name) {
        if super::functions::find(&name.text).is_some() {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::ReservedName,
                    name.span,
                    format!("`{}` is a function of the language", name.text),
                    "cannot be a name as well",
                )
                .replace("choose another name", name.span, format!("{}_", name.text)),
            );
        }
    }

    pub(super) fn define(&mut self, name: &ast::Name, meaning: Meaning) -> bool {
        match self.names.define(&name.text, name.span, meaning) {
            Ok(()) => true,
            Err(error) => {
                self.diagnostics.push(*error);
                false
            }
        }
    }

    /// The statements of a block, in order. Those that make none because of an error are left out.
    pub(super) fn statements(&mut self, block: &Block, in_loop: bool) -> Vec<Stmt> {
        let mut body = Vec::new();
        for statement in &block.statements {
            body.extend(self.statement(statement, in_loop));
        }
        body
    }

    fn statement(&mut self, statement: &Statement, in_loop: bool) -> Option<Stmt> {
        match &statement.kind {
            StatementKind::Axes(_)
            | StatementKind::Inputs(_)
            | StatementKind::Params(_)
            | StatementKind::Consts(_)
            | StatementKind::States(_) => {
                if in_loop {
                    self.diagnostics.push(
                        Diagnostic::new(
                            Code::DeclarationInLoop,
                            statement.span,
                            "a declaration inside a loop",
                            "declare this before the loop",
                        )
                        .help("what differs from position to position has the loop's axis: `input k: [R, K]`, and `k[r]` in the loop"),
                    );
                    self.declare_broken(statement);
                }
                None
            }
            StatementKind::Let { name, value } => self.binding(name, value, statement.span),
            StatementKind::Update { name, value } => self.update(name, value, statement.span),
            StatementKind::Output { name, value, axes } => {
                if in_loop {
                    self.diagnostics.push(
                        Diagnostic::new(
                            Code::OutputInLoop,
                            statement.span,
                            format!("output `{}` is given inside a loop", name.text),
                            "an output is given once a token",
                        )
                        .help("give it after the loop; what the loop computes reaches it through a state"),
                    );
                    self.expr(value);
                    self.declare_broken(statement);
                    return None;
                }
                self.output(name, axes, value, statement.span)
            }
            StatementKind::For { var, axis, body } => self.for_loop(var, axis, body, statement.span),
            StatementKind::Broken { names, text: _ } => {
                for name in names {
                    self.define(name, Meaning::Broken);
                }
                None
            }
        }
    }

    /// Names of a misplaced declaration, so that their uses are no further errors.
    fn declare_broken(&mut self, statement: &Statement) {
        let names: Vec<&ast::Name> = match &statement.kind {
            StatementKind::Axes(names) => names.iter().collect(),
            StatementKind::Inputs(decls) | StatementKind::Params(decls) | StatementKind::States(decls) => {
                decls.iter().map(|decl| &decl.name).collect()
            }
            StatementKind::Consts(decls) => decls.iter().map(|decl| &decl.name).collect(),
            StatementKind::Output { name, .. } => vec![name],
            StatementKind::Let { .. }
            | StatementKind::Update { .. }
            | StatementKind::For { .. }
            | StatementKind::Broken { .. } => Vec::new(),
        };
        for name in names {
            self.define(name, Meaning::Broken);
        }
    }

    fn binding(&mut self, name: &ast::Name, value: &ast::Expr, span: Span) -> Option<Stmt> {
        let Some(value) = self.expr(value) else {
            self.define(name, Meaning::Broken);
            return None;
        };
        let local = LocalId(self.program.locals.len() as u32);
        if !self.define(name, Meaning::Local(local)) {
            return None;
        }
        let mut axes = self.axes_of(value).to_vec();
        axes.sort_unstable();
        self.program.locals.push(Local { name: name.text.clone(), axes, span: name.span });
        Some(Stmt::Let { local, value, span })
    }

    fn update(&mut self, name: &ast::Name, value: &ast::Expr, span: Span) -> Option<Stmt> {
        let text = name.text.as_str();
        let meaning = self.names.meaning(text);
        let checked = self.expr(value);
        let state = match meaning {
            Some(Meaning::State(state)) => state,
            Some(Meaning::Broken) => return None,
            Some(meaning) => {
                let error = self.fixed(name, meaning);
                self.diagnostics.push(error);
                return None;
            }
            None => {
                let error = self.assigned_undeclared(name);
                // The value says what the name was meant for.
                self.diagnostics.push(error);
                self.define(name, Meaning::Broken);
                return None;
            }
        };
        let checked = checked?;
        let own = self.program.states[state.index()].axes.clone();
        let declared = self.program.states[state.index()].span;
        self.fits(checked, value, &own, declared, &format!("state `{text}`"))?;
        Some(Stmt::Update { state, value: checked, span })
    }

    fn output(&mut self, name: &ast::Name, axes: &ast::AxisList, value: &ast::Expr, span: Span) -> Option<Stmt> {
        let checked = self.expr(value);
        let Some(Meaning::Output(output)) = self.names.meaning(&name.text).filter(|_| self.is_first(name)) else {
            return None;
        };
        let checked = checked?;
        let own = self.program.outputs[output.index()].axes.clone();
        self.fits(checked, value, &own, axes.span, &format!("output `{}`", name.text))?;
        Some(Stmt::Output { output, value: checked, span })
    }

    /// A value may lack axes of what it is given to, and may have no others.
    fn fits(&mut self, id: ExprId, value: &ast::Expr, own: &[AxisId], declared: Span, what: &str) -> Option<()> {
        let has = self.axes_of(id).to_vec();
        let foreign: Vec<AxisId> = has.iter().copied().filter(|axis| !own.contains(axis)).collect();
        let Some(&first) = foreign.first() else { return Some(()) };
        let names: Vec<&str> = foreign.iter().map(|&axis| self.axis_name(axis)).collect();
        let names = names.join(" and ");
        let axis = self.axis_name(first).to_owned();
        let error = Diagnostic::new(
            Code::AxesDoNotFit,
            value.span,
            format!("the value has axes {}, {what} has {}", self.axes_text(&has), self.axes_text(own)),
            format!("has {names} besides"),
        )
        .and_at(declared, "declared here");
        let missing: Vec<&str> =
            own.iter().copied().filter(|axis| !has.contains(axis)).map(|axis| self.axis_name(axis)).collect();
        self.diagnostics.push(if let Some(op_span) = self.meant_contraction(id, value, own) {
            error.replace(format!("`@` multiplies and sums over {axis}"), op_span, "@")
        } else if let ([_], [meant]) = (foreign.as_slice(), missing.as_slice()) {
            error.help(format!(
                "to sum over {axis} and keep {meant}, write `@` with a factor that has {axis}; if {axis} and {meant} are one direction under two names, write `rename(…, {axis} -> {meant})`"
            ))
        } else {
            error.help(format!(
                "to sum over {axis}, write `@` with a factor that has it, or `sum(…, {axis})`; to keep it, declare {what} with it"
            ))
        });
        None
    }

    /// Where the `*` of a product stands that would fit if it were `@`.
    fn meant_contraction(&self, id: ExprId, value: &ast::Expr, own: &[AxisId]) -> Option<Span> {
        let ast::ExprKind::Binary { op: ast::Operator::Mul, op_span, .. } = value.kind else { return None };
        let ExprKind::Binary(Binary::Mul, lhs, rhs) = self.program.expr(id).kind else { return None };
        let (left, right) = (self.axes_of(lhs), self.axes_of(rhs));
        let summed = |axis: &AxisId| left.contains(axis) && right.contains(axis);
        left.iter().chain(right).all(|axis| summed(axis) || own.contains(axis)).then_some(op_span)
    }

    fn fixed(&self, name: &ast::Name, meaning: Meaning) -> Diagnostic {
        let text = name.text.as_str();
        let declared = self.names.span(text).unwrap_or(name.span);
        if let Meaning::Output(_) = meaning {
            return Diagnostic::new(
                Code::OutputAssigned,
                name.span,
                format!("output `{text}` is given where it is declared"),
                "assigned again here",
            )
            .and_at(declared, "declared here")
            .help(format!("give its value once: `output {text}: [V] = …`"));
        }
        let error = Diagnostic::new(
            Code::FixedValue,
            name.span,
            format!("`{text}` is {} and cannot be assigned", meaning.words()),
            "only states are assigned",
        )
        .and_at(declared, "given here");
        match meaning {
            Meaning::Axis(_) => error.note("the size of an axis comes with the data"),
            Meaning::LoopVar(_) => error.note("it takes every position of its axis by itself"),
            Meaning::Const(_) => error.note("a caller may override it"),
            Meaning::Tensor(_) | Meaning::Local(_) | Meaning::State(_) | Meaning::Output(_) | Meaning::Broken => {
                error.help(format!("give the new value its own name: `let {text}_2 = …`"))
            }
        }
    }

    fn assigned_undeclared(&self, name: &ast::Name) -> Diagnostic {
        let text = name.text.as_str();
        let error = Diagnostic::new(
            Code::AssignedUndeclared,
            name.span,
            format!("`{text}` is assigned, and not declared"),
            "unknown name",
        );
        let states = self.names.that_are(|meaning| matches!(meaning, Meaning::State(_)));
        if let Some(meant) = crate::suggest::nearest(text, states) {
            return error.replace(format!("did you mean the state `{meant}`?"), name.span, meant);
        }
        let at = Span::new(name.span.start, name.span.start);
        error.note(format!("if it is to last from token to token, declare `state {text}: [K]` with its axes")).replace(
            "to name a value of this token, write `let`",
            at,
            "let ",
        )
    }

    fn for_loop(&mut self, var: &ast::Name, axis: &ast::Name, body: &Block, span: Span) -> Option<Stmt> {
        let axis = self.axis(axis);
        let id = LoopVarId(self.program.loop_vars.len() as u32);
        let meaning = match axis {
            Some(_) => Meaning::LoopVar(id),
            None => Meaning::Broken,
        };
        let defined = self.define(var, meaning);
        if let (Some(axis), true) = (axis, defined) {
            self.program.loop_vars.push(LoopVar { name: var.text.clone(), axis, span: var.span });
        }
        // A `let` that an outer name forbids was reported; only names that the loop bound end with it.
        let body_statements = self.statements(body, true);
        for name in bound_in(body) {
            if self.is_first(name) {
                self.end(name);
            }
        }
        if defined {
            self.names.end(&var.text);
        }
        let var = axis.filter(|_| defined).map(|_| id)?;
        Some(Stmt::For { var, body: body_statements, span })
    }

    fn end(&mut self, name: &ast::Name) {
        let is_local = matches!(self.names.meaning(&name.text), Some(Meaning::Local(_)));
        let used = self.names.end(&name.text);
        if is_local && !used {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::UnusedName,
                    name.span,
                    format!("`{}` is never used", name.text),
                    "nothing depends on this let",
                )
                .help("leave it out, or use it"),
            );
        }
    }

    /// What every recurrence needs.
    pub(super) fn completeness(&mut self, recurrence: &ast::Recurrence) {
        let name = recurrence.name.span;
        if self.program.states.is_empty() {
            let title = format!("`{}` has no state", self.program.name);
            self.diagnostics.push(
                Diagnostic::new(Code::NoState, name, title, "nothing is carried from token to token")
                    .help("declare one and update it: `state S: [K, V]` and `S = S + k * v`"),
            );
        }
        if self.program.outputs.is_empty() {
            let title = format!("`{}` has no output", self.program.name);
            self.diagnostics.push(
                Diagnostic::new(Code::NoOutput, name, title, "nothing comes out of it")
                    .help("declare one: `output o: [V] = q @ S`"),
            );
        }
    }

    /// Warnings about what nothing depends on.
    pub(super) fn unused(&mut self) {
        let mut warnings: Vec<(&str, Span, Code, &str)> = Vec::new();
        for tensor in &self.program.tensors {
            let what = match tensor.kind {
                TensorKind::Input => "input",
                TensorKind::Param => "param",
            };
            warnings.push((&tensor.name, tensor.span, Code::UnusedInput, what));
        }
        for axis in &self.program.axes {
            warnings.push((&axis.name, axis.span, Code::UnusedName, "axis"));
        }
        for constant in &self.program.consts {
            warnings.push((&constant.name, constant.span, Code::UnusedName, "const"));
        }
        for local in &self.program.locals {
            warnings.push((&local.name, local.span, Code::UnusedName, "let"));
        }
        let found: Vec<Diagnostic> = warnings
            .into_iter()
            .filter(|(name, _, _, _)| !self.names.is_used(name))
            .map(|(name, span, code, what)| {
                Diagnostic::new(
                    code,
                    span,
                    format!("`{name}` is never used"),
                    format!("nothing depends on this {what}"),
                )
                .help("leave it out, or use it")
            })
            .collect();
        self.diagnostics.extend(found);
        let mut updated = vec![false; self.program.states.len()];
        mark_updated(&self.program.body, &mut updated);
        let found: Vec<Diagnostic> = (self.program.states.iter().zip(updated))
            .filter(|(_, updated)| !updated)
            .map(|(state, _)| {
                Diagnostic::new(
                    Code::StateNeverUpdated,
                    state.span,
                    format!("state `{}` is never updated", state.name),
                    "keeps its initial value for the whole sequence",
                )
                .help(format!("update it: `{} = …`", state.name))
            })
            .collect();
        self.diagnostics.extend(found);
    }
}

fn mark_updated(body: &[Stmt], updated: &mut [bool]) {
    for stmt in body {
        match stmt {
            Stmt::Update { state, .. } => updated[state.index()] = true,
            Stmt::For { body, .. } => mark_updated(body, updated),
            Stmt::Let { .. } | Stmt::Output { .. } => {}
        }
    }
}

/// The names that statements of a loop's body bind, not those of loops inside it.
fn bound_in(block: &Block) -> Vec<&ast::Name> {
    let mut names = Vec::new();
    for statement in &block.statements {
        match &statement.kind {
            StatementKind::Let { name, .. } | StatementKind::Output { name, .. } => names.push(name),
            StatementKind::Update { name, .. } => names.push(name),
            StatementKind::Broken { names: broken, .. } => names.extend(broken),
            StatementKind::Axes(axes) => names.extend(axes),
            StatementKind::Inputs(decls) | StatementKind::Params(decls) | StatementKind::States(decls) => {
                names.extend(decls.iter().map(|decl| &decl.name));
            }
            StatementKind::Consts(decls) => names.extend(decls.iter().map(|decl| &decl.name)),
            StatementKind::For { .. } => {}
        }
    }
    names
}
