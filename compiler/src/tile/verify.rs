//! Says whether a tile program is one.
//!
//! Takes a [`Kernel`], gives `Ok` or every complaint, each under the line it is about. Changes nothing. A little over
//! 600 lines, so that the invariants below and the checks that hold them stand together. After it the
//! interpreter and the lowering to MLIR may rely on:
//!
//! - Names of arguments are unique and made of letters, digits, `_` and `.`; sizes are at least 1 and their products
//!   small enough for any machine.
//! - Every variable and local is declared once, before its use and around it; symbols count chunks of at least one
//!   token; an affine form names nothing twice and has no zero factor.
//! - Every element of an argument or a buffer that is touched lies inside, for every T ≥ 0: shown by [`super::prove`]
//!   from the bounds of the enclosing loops and the enclosing conditions. That holds for both branches of a
//!   `select`, since both may be evaluated.
//! - A read argument is only read, a written one only written, and written somewhere.
//! - A buffer is written somewhere above the first place that reads it.
//! - In lanes: no lanes, reductions or products; bounds and conditions do not depend on the lane; every place has the
//!   lane variable alone in its last, contiguous index, or nowhere; what is stored has it; locals from outside are
//!   not assigned; no lane reads or writes what another lane writes.
//! - A product's views lie inside their buffers and leave out the padding, the columns of its result and of its right
//!   operand are contiguous, its extents are not negative, and its result shares no element with an operand.

use super::ir::*;
use super::overlap::{Footprint, are_disjoint, stays_in_rows};
use super::prove::Facts;
use super::text::{self, Line};
use chunkwise_abi::{Access, Role};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A kernel that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// What is wrong, by line.
    pub complaints: BTreeMap<Line, Vec<String>>,
    /// The kernel with the complaints as comments under their lines.
    pub text: String,
}

impl std::fmt::Display for VerifyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n_complaints: usize = self.complaints.values().map(Vec::len).sum();
        writeln!(f, "this is not a tile program ({n_complaints} found wrong):")?;
        f.write_str(&self.text)
    }
}
impl std::error::Error for VerifyError {}

/// Checks every rule at the head of this file.
pub fn verify(kernel: &Kernel) -> Result<(), VerifyError> {
    let mut verifier = Verifier {
        kernel,
        facts: Facts::none(),
        line: Line::Head,
        n_stmts: 0,
        declared_vars: HashSet::new(),
        scope: Vec::new(),
        declared_locals: HashSet::new(),
        locals: HashMap::new(),
        lane: None,
        arg_written: vec![false; kernel.args.len()],
        buffer_written: vec![false; kernel.buffers.len()],
        complaints: BTreeMap::new(),
    };
    verifier.kernel();
    if verifier.complaints.is_empty() {
        return Ok(());
    }
    let complaints = verifier.complaints;
    Err(VerifyError { text: text::print_with_notes(kernel, &complaints), complaints })
}

/// Elements of one buffer, of the inner part of one argument, and the largest number in an index: with these bounds
/// no sum of products of them leaves 64 bits.
const MAX_SIZE: usize = 1 << 40;

/// The lanes a statement stands in.
#[derive(Clone, Copy)]
struct Lane {
    var: VarId,
    extent: usize,
}

struct Verifier<'a> {
    kernel: &'a Kernel,
    facts: Facts,
    /// Where complaints go.
    line: Line,
    n_stmts: usize,
    declared_vars: HashSet<VarId>,
    scope: Vec<VarId>,
    declared_locals: HashSet<LocalId>,
    /// Locals in scope, and whether they were declared inside the current lanes.
    locals: HashMap<LocalId, bool>,
    lane: Option<Lane>,
    arg_written: Vec<bool>,
    buffer_written: Vec<bool>,
    complaints: BTreeMap<Line, Vec<String>>,
}

fn constant(n: usize) -> Affine {
    Affine { constant: n as i64, ..Affine::default() }
}

fn mentions(affine: &Affine, var: VarId) -> bool {
    affine.vars.iter().any(|(found, _)| *found == var)
}

fn index_mentions(index: &Index, var: VarId) -> bool {
    mentions(&index.value, var) || index.at_most.as_ref().is_some_and(|limit| mentions(limit, var))
}

fn is_name(name: &str) -> bool {
    name.split('.').all(|part| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    })
}

impl Verifier<'_> {
    fn complain(&mut self, message: impl Into<String>) {
        let list = self.complaints.entry(self.line).or_default();
        let message = message.into();
        if !list.contains(&message) {
            list.push(message);
        }
    }

    fn kernel(&mut self) {
        let kernel = self.kernel;
        if !is_name(&kernel.name) {
            self.complain("the kernel's name is made of letters, digits, `_` and `.`");
        }
        let mut names = HashSet::new();
        for (i, arg) in kernel.args.iter().enumerate() {
            self.line = Line::Arg(i);
            if !is_name(&arg.name) {
                self.complain("an argument's name is made of letters, digits, `_` and `.`");
            }
            if !names.insert(&arg.name) {
                self.complain("an argument of this name stands above");
            }
            self.sizes(&arg.inner);
            match arg.role {
                Role::Chunk(0) => self.complain("a chunk takes at least one token"),
                Role::Chunk(n) if n > MAX_SIZE => self.complain("the chunk is too large"),
                Role::Chunk(_) | Role::Token | Role::Head | Role::Sequence => {}
            }
        }
        for (i, buffer) in kernel.buffers.iter().enumerate() {
            self.line = Line::Buffer(i);
            if buffer.shape.is_empty() {
                self.complain("a buffer has at least one dimension");
            }
            self.sizes(&buffer.shape);
        }
        // Sizes are used by everything below.
        if !self.complaints.is_empty() {
            return;
        }
        self.block(&kernel.body);
        for (i, arg) in kernel.args.iter().enumerate() {
            self.line = Line::Arg(i);
            if arg.access == Access::Write && !self.arg_written[i] {
                self.complain("never written");
            }
        }
    }

    fn sizes(&mut self, shape: &[usize]) {
        if shape.contains(&0) {
            self.complain("a dimension is at least 1");
        }
        let padded = shape.iter().try_fold(LANES, |product, n| product.checked_mul(*n));
        if padded.is_none_or(|n| n > MAX_SIZE) {
            self.complain("too many elements");
        }
    }

    fn block(&mut self, body: &[Stmt]) {
        let locals = self.locals.clone();
        body.iter().for_each(|stmt| self.stmt(stmt));
        self.locals = locals;
    }

    /// Checks `body` with a variable in scope.
    fn within(&mut self, var: VarId, learn: impl FnOnce(&mut Facts), body: impl FnOnce(&mut Self)) {
        if self.kernel.vars.get(var.0 as usize).is_none() {
            self.complain("the variable has no name");
        }
        if !self.declared_vars.insert(var) {
            self.complain("this variable is declared a second time");
        }
        let facts = self.facts.clone();
        learn(&mut self.facts);
        self.scope.push(var);
        body(self);
        self.scope.pop();
        self.facts = facts;
    }

    fn stmt(&mut self, stmt: &Stmt) {
        self.line = Line::Stmt(self.n_stmts);
        self.n_stmts += 1;
        match stmt {
            Stmt::For { var, lo, hi, body, order: _ } => {
                for bound in [lo, hi] {
                    self.index(bound);
                    if self.lane.is_some_and(|lane| index_mentions(bound, lane.var)) {
                        self.complain("the bounds of a loop inside lanes are the same for every lane");
                    }
                }
                self.within(*var, |facts| facts.range(*var, lo, hi), |verifier| verifier.block(body));
            }
            Stmt::Lanes { var, extent, body } => {
                if self.lane.is_some() {
                    self.complain("lanes inside lanes");
                    return self.skip(body);
                }
                if *extent == 0 || *extent > MAX_SIZE {
                    self.complain("the number of lanes is at least 1");
                    return self.skip(body);
                }
                self.lane = Some(Lane { var: *var, extent: *extent });
                let outside = self.locals.clone();
                self.locals.values_mut().for_each(|inside| *inside = false);
                let (line, n_lines) = (self.line, self.complaints.len());
                self.within(*var, |facts| facts.lanes(*var, *extent), |verifier| verifier.block(body));
                if self.complaints.len() == n_lines {
                    self.line = line;
                    self.across_lanes(Lane { var: *var, extent: *extent }, body);
                }
                self.locals = outside;
                self.lane = None;
            }
            Stmt::If { cond, body } => {
                self.cond(cond);
                if self.lane.is_some_and(|lane| mentions(&cond.lhs, lane.var) || mentions(&cond.rhs, lane.var)) {
                    self.complain("an `if` is the same for every lane; `select` may differ");
                }
                let facts = self.facts.clone();
                self.facts.holds(cond);
                self.block(body);
                self.facts = facts;
            }
            Stmt::Local { local, value } => {
                self.expr(value);
                if local.0 >= self.kernel.n_locals {
                    self.complain("the local's number is beyond the kernel's count of locals");
                }
                if !self.declared_locals.insert(*local) {
                    self.complain("this local is declared a second time");
                }
                self.locals.insert(*local, self.lane.is_some());
            }
            Stmt::Assign { local, value } => {
                self.expr(value);
                match self.locals.get(local) {
                    None => self.complain("the local is not declared here"),
                    Some(false) if self.lane.is_some() => {
                        self.complain("lanes cannot assign one local together; declare it inside them");
                    }
                    Some(_) => {}
                }
            }
            Stmt::Store { place, value } => {
                self.expr(value);
                self.place(place, Access::Write);
                if let Some(lane) = self.lane
                    && !place.indices.iter().any(|index| index_mentions(index, lane.var))
                {
                    self.complain("every lane stores to the same element");
                }
            }
            Stmt::ReduceLanes { place, var, extent, value, accumulate, op: _ } => {
                if self.lane.is_some() {
                    self.complain("a reduction inside lanes");
                    return;
                }
                if *extent == 0 || *extent > MAX_SIZE {
                    self.complain("the number of lanes is at least 1");
                    return;
                }
                self.lane = Some(Lane { var: *var, extent: *extent });
                self.within(*var, |facts| facts.lanes(*var, *extent), |verifier| verifier.expr(value));
                self.lane = None;
                if *accumulate {
                    self.place(place, Access::Read);
                }
                self.place(place, Access::Write);
            }
            Stmt::Matmul(product) => {
                if self.lane.is_some() {
                    self.complain("a product inside lanes");
                    return;
                }
                self.matmul(product);
            }
        }
    }

    /// Passes over statements that cannot be checked, so that the lines below keep their numbers.
    fn skip(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.n_stmts += 1;
            match stmt {
                Stmt::For { body, .. } | Stmt::Lanes { body, .. } | Stmt::If { body, .. } => self.skip(body),
                Stmt::Local { .. }
                | Stmt::Assign { .. }
                | Stmt::Store { .. }
                | Stmt::ReduceLanes { .. }
                | Stmt::Matmul(_) => {}
            }
        }
    }

    fn affine(&mut self, affine: &Affine) {
        for (i, (var, factor)) in affine.vars.iter().enumerate() {
            if !self.scope.contains(var) {
                self.complain("a variable is used outside its loop");
            }
            if *factor == 0 || affine.vars[..i].iter().any(|(before, _)| before == var) {
                self.complain("an index names each variable once, with a factor that is not 0");
            }
        }
        for (i, (symbol, factor)) in affine.symbols.iter().enumerate() {
            match symbol {
                Symbol::Chunks(0) => self.complain("a chunk takes at least one token"),
                Symbol::Chunks(n) if *n > MAX_SIZE => self.complain("the chunk is too large"),
                Symbol::Chunks(_) | Symbol::Length => {}
            }
            if *factor == 0 || affine.symbols[..i].iter().any(|(before, _)| before == symbol) {
                self.complain("an index names each symbol once, with a factor that is not 0");
            }
        }
        let factors = affine.vars.iter().map(|(_, n)| n).chain(affine.symbols.iter().map(|(_, n)| n));
        if factors.chain([&affine.constant]).any(|n| n.unsigned_abs() > MAX_SIZE as u64) {
            self.complain("a number in an index is too large");
        }
    }

    fn index(&mut self, index: &Index) {
        self.affine(&index.value);
        index.at_most.iter().for_each(|limit| self.affine(limit));
    }

    fn cond(&mut self, cond: &Cond) {
        self.affine(&cond.lhs);
        self.affine(&cond.rhs);
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Const(_) => {}
            Expr::Load(place) => self.place(place, Access::Read),
            Expr::Local(local) => {
                if !self.locals.contains_key(local) {
                    self.complain("a local is read where it is not declared");
                }
            }
            Expr::Unary(_, x) => self.expr(x),
            Expr::Binary(_, a, b) => [a, b].into_iter().for_each(|x| self.expr(x)),
            Expr::Select(cond, a, b) => {
                self.cond(cond);
                [a, b].into_iter().for_each(|x| self.expr(x));
            }
            Expr::SelectValue(_, lhs, rhs, a, b) => [lhs, rhs, a, b].into_iter().for_each(|x| self.expr(x)),
        }
    }

    fn place(&mut self, place: &Place, access: Access) {
        place.indices.iter().for_each(|index| self.index(index));
        // What each index must stay below.
        let mut limits = Vec::new();
        match place.memory {
            Memory::Arg(id) => {
                let Some(arg) = self.kernel.args.get(id.0 as usize) else {
                    return self.complain("no such argument");
                };
                if arg.access != access {
                    let name = &arg.name;
                    match access {
                        Access::Read => self.complain(format!("`{name}` is written, it cannot be read")),
                        Access::Write => self.complain(format!("`{name}` is read, it cannot be written")),
                    }
                }
                if access == Access::Write {
                    self.arg_written[id.0 as usize] = true;
                }
                let symbol = |symbol| Affine { symbols: vec![(symbol, 1)], ..Affine::default() };
                match arg.role {
                    Role::Token => limits.push(symbol(Symbol::Length)),
                    Role::Chunk(n) => limits.push(symbol(Symbol::Chunks(n))),
                    Role::Head | Role::Sequence => {}
                }
                let leading = limits.len();
                limits.extend(arg.inner.iter().map(|n| constant(*n)));
                if let Some(lane) = self.lane
                    && place.indices.iter().take(leading).any(|index| index_mentions(index, lane.var))
                {
                    return self.complain("a lane variable stands in a token's or chunk's index, which has a stride");
                }
            }
            Memory::Buffer(id) => {
                let Some(buffer) = self.kernel.buffers.get(id.0 as usize) else {
                    return self.complain("no such buffer");
                };
                limits.extend(buffer.shape.iter().map(|n| constant(*n)));
                self.touch_buffer(id, access);
            }
        }
        if limits.len() != place.indices.len() {
            let (found, expected) = (place.indices.len(), limits.len());
            return self.complain(format!("{found} indices where there are {expected} dimensions"));
        }
        if let Some(lane) = self.lane {
            self.unit_stride(place, lane);
        }
        for (index, limit) in place.indices.iter().zip(&limits) {
            self.inside(index, limit);
        }
    }

    fn touch_buffer(&mut self, id: BufferId, access: Access) {
        let written = &mut self.buffer_written[id.0 as usize];
        match access {
            Access::Write => *written = true,
            Access::Read if !*written => {
                let name = self.kernel.buffers[id.0 as usize].name.clone();
                self.complain(format!("buffer `{name}` is read, but nothing above writes it"));
            }
            Access::Read => {}
        }
    }

    fn unit_stride(&mut self, place: &Place, lane: Lane) {
        let Some((last, others)) = place.indices.split_last() else { return };
        if others.iter().any(|index| index_mentions(index, lane.var)) {
            self.complain("a lane variable stands before the last index");
        }
        if index_mentions(last, lane.var) {
            let alone = last.value.vars.contains(&(lane.var, 1));
            if !alone || last.at_most.is_some() {
                self.complain("a lane variable stands in the last index with a factor of 1, and not under `min`");
            }
        }
    }

    /// `0 ≤ index < limit`
    fn inside(&mut self, index: &Index, limit: &Affine) {
        let zero = Affine::default();
        let parts: Vec<&Affine> = [Some(&index.value), index.at_most.as_ref()].into_iter().flatten().collect();
        let printed = || text::print_index(self.kernel, index);
        let limit_printed = || text::print_index(self.kernel, &Index { value: limit.clone(), at_most: None });
        let last = Affine { constant: limit.constant - 1, ..limit.clone() };
        let mut found = Vec::new();
        if !parts.iter().all(|part| self.facts.prove_at_least(part, &zero)) {
            found.push(format!("cannot show that `{}` is at least 0", printed()));
        }
        // The smaller of two is below the limit if either is.
        if !parts.iter().any(|part| self.facts.prove_at_least(&last, part)) {
            found.push(format!("cannot show that `{}` is below `{}`", printed(), limit_printed()));
        }
        found.into_iter().for_each(|message| self.complain(message));
    }

    /// No lane touches what another lane stores.
    fn across_lanes(&mut self, lane: Lane, body: &[Stmt]) {
        let mut accesses = Accesses::default();
        body.iter().for_each(|stmt| accesses.stmt(stmt));
        for stored in accesses.places.iter().filter(|(_, access)| *access == Access::Write).map(|(place, _)| place) {
            for (other, _) in &accesses.places {
                if stored.memory == other.memory && !self.apart(stored, other, lane, &accesses.vars) {
                    self.complain("a lane touches what another lane may have stored: the order of lanes would matter");
                }
            }
        }
    }

    /// Whether different lanes never meet at two places of one memory.
    fn apart(&self, lhs: &Place, rhs: &Place, lane: Lane, inner: &HashSet<VarId>) -> bool {
        let (Some((lhs_last, lhs_rest)), Some((rhs_last, rhs_rest))) =
            (lhs.indices.split_last(), rhs.indices.split_last())
        else {
            return false;
        };
        // The same last index: different lanes, different elements.
        if lhs_last == rhs_last && index_mentions(lhs_last, lane.var) {
            return true;
        }
        // Loops inside the lanes run at different times in different lanes, so their variables are not comparable.
        let fixed = |index: &Index| index.at_most.is_none() && !inner.iter().any(|var| mentions(&index.value, *var));
        let past = |from: &Affine, steps: i64| Affine { constant: from.constant.saturating_add(steps), ..from.clone() };
        let rest = lhs_rest.iter().zip(rhs_rest).any(|(a, b)| {
            fixed(a)
                && fixed(b)
                && (self.facts.prove_at_least(&a.value, &past(&b.value, 1))
                    || self.facts.prove_at_least(&b.value, &past(&a.value, 1)))
        });
        // First element and number of elements a last index covers over all lanes.
        let span = |index: &Index| {
            let mut first = index.value.clone();
            first.vars.retain(|(var, _)| *var != lane.var);
            (first, if mentions(&index.value, lane.var) { lane.extent as i64 } else { 1 })
        };
        let last = fixed(lhs_last) && fixed(rhs_last) && {
            let ((a, a_count), (b, b_count)) = (span(lhs_last), span(rhs_last));
            self.facts.prove_at_least(&a, &past(&b, b_count)) || self.facts.prove_at_least(&b, &past(&a, a_count))
        };
        rest || last
    }

    fn matmul(&mut self, product: &Matmul) {
        let Matmul { dst, a, b, m, n, k, update, triangle: _, exact: _ } = product;
        self.affine(k);
        let views = [dst, a, b];
        for view in views {
            self.affine(&view.offset);
            if self.kernel.buffers.get(view.buffer.0 as usize).is_none() {
                return self.complain("no such buffer");
            }
            if [view.row_stride, view.col_stride].into_iter().any(|stride| stride == 0 || stride > MAX_SIZE) {
                return self.complain("the steps of a view are at least 1");
            }
        }
        if *m == 0 || *n == 0 || *m > MAX_SIZE || *n > MAX_SIZE {
            return self.complain("a product has at least one row and one column");
        }
        if !self.facts.prove_at_least(k, &Affine::default()) {
            self.complain("cannot show that the length of the contraction is at least 0");
        }
        if dst.col_stride != 1 {
            self.complain("the columns of the result are contiguous");
        }
        if b.col_stride != 1 && b.row_stride != 1 {
            self.complain("the columns of the right operand are contiguous, or its rows are");
        }
        let extents = [(constant(*m), constant(*n)), (constant(*m), k.clone()), (k.clone(), constant(*n))];
        let footprints: Vec<Option<Footprint>> =
            views.iter().zip(&extents).map(|(view, (rows, cols))| Footprint::of(view, rows, cols)).collect();
        for (view, footprint) in views.iter().zip(&footprints) {
            let buffer = &self.kernel.buffers[view.buffer.0 as usize];
            let Some(footprint) = footprint else {
                self.complain("a number in a view is too large");
                continue;
            };
            let end = constant(buffer.elements() - 1);
            if !self.facts.prove_at_least(&view.offset, &Affine::default())
                || !self.facts.prove_at_least(&end, &footprint.last)
            {
                let name = buffer.name.clone();
                self.complain(format!("cannot show that the view of `{name}` lies inside it"));
            } else if !stays_in_rows(footprint, buffer, &self.facts) {
                let name = buffer.name.clone();
                self.complain(format!("cannot show that the view of `{name}` leaves out the padding of its rows"));
            }
        }
        for (operand, name) in [(1, "left"), (2, "right")] {
            if views[operand].buffer != dst.buffer {
                continue;
            }
            let pitch = self.kernel.buffers[dst.buffer.0 as usize].pitch();
            let apart = match (&footprints[0], &footprints[operand]) {
                (Some(result), Some(operand)) => are_disjoint(result, operand, pitch, &self.facts),
                (None, _) | (_, None) => false,
            };
            if !apart {
                self.complain(format!("cannot show that the result shares no element with the {name} operand"));
            }
        }
        self.touch_buffer(a.buffer, Access::Read);
        self.touch_buffer(b.buffer, Access::Read);
        match update {
            Update::Set => {}
            Update::Add | Update::Subtract => self.touch_buffer(dst.buffer, Access::Read),
        }
        self.touch_buffer(dst.buffer, Access::Write);
    }
}

/// Places that statements inside lanes touch, and the variables of loops among them.
#[derive(Default)]
struct Accesses {
    places: Vec<(Place, Access)>,
    vars: HashSet<VarId>,
}

impl Accesses {
    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::For { var, body, .. } | Stmt::Lanes { var, body, .. } => {
                self.vars.insert(*var);
                body.iter().for_each(|stmt| self.stmt(stmt));
            }
            Stmt::If { body, .. } => body.iter().for_each(|stmt| self.stmt(stmt)),
            Stmt::Local { value, .. } | Stmt::Assign { value, .. } => self.expr(value),
            Stmt::Store { place, value } => {
                self.places.push((place.clone(), Access::Write));
                self.expr(value);
            }
            Stmt::ReduceLanes { .. } | Stmt::Matmul(_) => {}
        }
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Const(_) | Expr::Local(_) => {}
            Expr::Load(place) => self.places.push((place.clone(), Access::Read)),
            Expr::Unary(_, x) => self.expr(x),
            Expr::Binary(_, a, b) | Expr::Select(_, a, b) => [a, b].into_iter().for_each(|x| self.expr(x)),
            Expr::SelectValue(_, lhs, rhs, a, b) => [lhs, rhs, a, b].into_iter().for_each(|x| self.expr(x)),
        }
    }
}
