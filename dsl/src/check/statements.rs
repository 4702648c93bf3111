//! Declarations and statements. Declarations have no order and come first; statements run in order. In: a block of
//! syntax; out: statements of the program, and errors for those that make none.

use super::Checker;
use super::names::Meaning;
use crate::ast::{self, Block, RangeKind, Statement, StatementKind};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{
    Axis, AxisId, Const, ConstId, ExprId, ExprKind, Local, LocalId, LoopVar, LoopVarId, Output, OutputId, Range, State,
    StateId, Stmt, Tensor, TensorId, TensorKind,
};
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

    fn define(&mut self, name: &ast::Name, meaning: Meaning) -> bool {
        match self.names.define(&name.text, name.span, meaning) {
            Ok(()) => true,
            Err(error) => {
                self.diagnostics.push(error);
                false
            }
        }
    }

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
    fn is_first(&self, name: &ast::Name) -> bool {
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
        self.diagnostics.push(if let ([_], [meant]) = (foreign.as_slice(), missing.as_slice()) {
            error.help(format!(
                "if {axis} and {meant} are one direction under two names, write `rename(…, {axis} -> {meant})`; to sum over {axis} write `@` or `sum(…, {axis})`"
            ))
        } else {
            error.help(format!(
                "to sum over {axis}, write `@` with a factor that has it, or `sum(…, {axis})`; to keep it, declare {what} with it"
            ))
        });
        None
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
            self.unused_name(&name.text, name.span, "`let`");
        }
    }

    fn unused_name(&mut self, name: &str, span: Span, what: &str) {
        self.diagnostics.push(
            Diagnostic::new(Code::UnusedName, span, format!("{what} `{name}` is never used"), "nothing depends on it")
                .help("leave it out"),
        );
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
            warnings.push((&local.name, local.span, Code::UnusedName, "`let`"));
        }
        let found: Vec<Diagnostic> = warnings
            .into_iter()
            .filter(|(name, _, _, _)| !self.names.is_used(name))
            .map(|(name, span, code, what)| {
                Diagnostic::new(code, span, format!("{what} `{name}` is never used"), "nothing depends on it")
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
