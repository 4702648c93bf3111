//! The kernel under construction. In: statements, one after another, and requests for scratch. Out: the statements
//! in nested blocks, and the list of buffers. It never asks what is computed.

use super::index::{Env, Region, Step, exactly, number, variable};
use crate::graph::ir::{DimId, Graph};
use crate::tile::ir::{Affine, Arg, Buffer, BufferId, Expr, Index, LANES, LocalId, Memory, Order, Place, Stmt, VarId};

/// Statements, variables and scratch of one kernel.
pub struct Builder<'g> {
    /// The graph, for the sizes and names of dimensions.
    pub graph: &'g Graph,
    /// Padding of every buffer's rows.
    pad: usize,
    /// Buffers given back are handed out again.
    reuse: bool,
    /// Arguments so far.
    pub args: Vec<Arg>,
    /// Buffers so far.
    pub buffers: Vec<Buffer>,
    /// Buffers nobody uses now.
    free: Vec<BufferId>,
    /// Variables so far.
    pub vars: Vec<String>,
    /// Locals so far.
    pub n_locals: u32,
    /// Open blocks, the innermost last.
    blocks: Vec<Vec<Stmt>>,
}

impl<'g> Builder<'g> {
    /// An empty kernel.
    pub fn new(graph: &'g Graph, pad: usize, reuse: bool) -> Self {
        Builder {
            graph,
            pad,
            reuse,
            args: Vec::new(),
            buffers: Vec::new(),
            free: Vec::new(),
            vars: Vec::new(),
            n_locals: 0,
            blocks: vec![Vec::new()],
        }
    }

    /// Size of a dimension.
    pub fn size(&self, dim: DimId) -> usize {
        self.graph.dim(dim).size
    }

    /// Number of positions of some dimensions.
    pub fn count(&self, dims: &[DimId]) -> usize {
        dims.iter().map(|&d| self.size(d)).product()
    }

    /// A fresh variable.
    pub fn var(&mut self, name: &str) -> VarId {
        self.vars.push(name.to_string());
        VarId(self.vars.len() as u32 - 1)
    }

    /// A fresh variable for a dimension.
    pub fn dim_var(&mut self, dim: DimId) -> VarId {
        let name = self.graph.dim(dim).name.clone();
        self.var(&name)
    }

    /// Adds a statement to the innermost block.
    pub fn emit(&mut self, stmt: Stmt) {
        self.blocks.last_mut().expect("the outermost block stays open").push(stmt);
    }

    /// Collects the statements of `body` instead of adding them.
    pub fn block(&mut self, body: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.blocks.push(Vec::new());
        body(self);
        self.blocks.pop().expect("pushed above")
    }

    /// Opens a block.
    pub fn open(&mut self) {
        self.blocks.push(Vec::new());
    }

    /// Closes the innermost block and gives its statements.
    pub fn close(&mut self) -> Vec<Stmt> {
        self.blocks.pop().expect("every block is opened before it is closed")
    }

    /// A loop with any bounds.
    pub fn for_range(&mut self, name: &str, lo: Index, hi: Index, order: Order, body: impl FnOnce(&mut Self, &Affine)) {
        let var = self.var(name);
        let stmts = self.block(|b| body(b, &variable(var)));
        if !stmts.is_empty() {
            self.emit(Stmt::For { var, lo, hi, order, body: stmts });
        }
    }

    /// A loop from zero, in order.
    pub fn for_each(&mut self, name: &str, extent: usize, body: impl FnOnce(&mut Self, &Affine)) {
        if extent == 1 {
            return body(self, &number(0));
        }
        self.for_range(name, exactly(number(0)), exactly(number(extent as i64)), Order::Forward, body);
    }

    /// A loop over the positions of each dimension.
    pub fn for_dims(&mut self, dims: &[DimId], order: Order, env: &Env, body: &mut dyn FnMut(&mut Self, &Env)) {
        match dims.split_first() {
            None => body(self, env),
            Some((&first, rest)) if self.size(first) == 1 => {
                self.for_dims(rest, order, &env.with(first, number(0)), body);
            }
            Some((&first, rest)) => {
                let name = self.graph.dim(first).name.clone();
                let end = exactly(number(self.size(first) as i64));
                self.for_range(&name, exactly(number(0)), end, order, |b, at| {
                    b.for_dims(rest, order, &env.with(first, at.clone()), body);
                });
            }
        }
    }

    /// Loops over the positions of each dimension, in any order: lanes over one of them where that is legal, the last
    /// for preference.
    pub fn nest(&mut self, dims: &[DimId], env: &Env, body: &mut dyn FnMut(&mut Self, &Env)) {
        let loops: Vec<(DimId, VarId)> = dims.iter().map(|&d| (d, self.dim_var(d))).collect();
        let mut inner = env.clone();
        for &(dim, var) in &loops {
            inner.bind(dim, if self.size(dim) == 1 { number(0) } else { variable(var) });
        }
        let mut stmts = self.block(|b| body(b, &inner));
        let lane = loops.iter().rev().copied().find(|&(d, v)| self.size(d) > 1 && lanes_are_legal(&stmts, v));
        if let Some((dim, var)) = lane {
            stmts = vec![Stmt::Lanes { var, extent: self.size(dim), body: stmts }];
        }
        for &(dim, var) in loops.iter().rev() {
            if self.size(dim) > 1 && lane.is_none_or(|(d, _)| d != dim) {
                let hi = exactly(number(self.size(dim) as i64));
                stmts = vec![Stmt::For { var, lo: exactly(number(0)), hi, order: Order::Any, body: stmts }];
            }
        }
        stmts.into_iter().for_each(|s| self.emit(s));
    }

    /// Declares a local.
    pub fn local(&mut self, value: Expr) -> LocalId {
        let local = LocalId(self.n_locals);
        self.n_locals += 1;
        self.emit(Stmt::Local { local, value });
        local
    }

    /// Stores an element.
    pub fn store(&mut self, place: Place, value: Expr) {
        self.emit(Stmt::Store { place, value });
    }

    /// Elements from row to row of a buffer.
    pub fn pitch(&self, buffer: BufferId) -> usize {
        self.buffers[buffer.0 as usize].pitch()
    }

    /// Scratch for a value of these dimensions; the last one lies in the columns.
    pub fn allocate(&mut self, name: &str, dims: &[DimId]) -> Region {
        let (rows, cols) = match dims.split_last() {
            Some((&last, rest)) => (self.count(rest), self.size(last)),
            None => (1, 1),
        };
        let buffer = self.take(name, rows, cols);
        let mut steps = Vec::new();
        let mut row = 1;
        for (n, &dim) in dims.iter().enumerate().rev() {
            if n + 1 == dims.len() {
                steps.push(Step { dim, row: 0, col: 1 });
            } else {
                steps.push(Step { dim, row, col: 0 });
                row *= self.size(dim) as i64;
            }
        }
        steps.reverse();
        Region { buffer, row: number(0), col: number(0), steps }
    }

    /// A buffer of at least that size: one that is free and has the same pitch, or a new one.
    fn take(&mut self, name: &str, rows: usize, cols: usize) -> BufferId {
        let whole = cols.div_ceil(LANES) * LANES;
        // Rows a multiple of four lines apart would share a few sets of a processor's cache.
        let pad = if self.pad == 0 && whole.is_multiple_of(4 * LANES) { LANES } else { self.pad };
        let pitch = whole + pad;
        let fits = |b: &Buffer| (b.pitch() == pitch && b.pad == pad).then_some(b.shape[0]);
        // The tightest that is large enough, else the largest.
        let best = (0..self.free.len())
            .filter_map(|n| fits(&self.buffers[self.free[n].0 as usize]).map(|have| (n, have)))
            .min_by_key(|&(_, have)| if have >= rows { (0, have) } else { (1, usize::MAX - have) });
        match best {
            Some((n, _)) => {
                let id = self.free.remove(n);
                let buffer = &mut self.buffers[id.0 as usize];
                buffer.shape[0] = buffer.shape[0].max(rows);
                buffer.shape[1] = buffer.shape[1].max(cols);
                id
            }
            None => {
                self.buffers.push(Buffer { name: name.to_string(), shape: vec![rows, cols], pad });
                BufferId(self.buffers.len() as u32 - 1)
            }
        }
    }

    /// Gives a buffer back.
    pub fn release(&mut self, buffer: BufferId) {
        debug_assert!(!self.free.contains(&buffer), "a buffer is given back once");
        if self.reuse {
            self.free.push(buffer);
        }
    }

    /// The finished statements.
    pub fn finish(mut self) -> (Vec<Arg>, Vec<Buffer>, Vec<String>, u32, Vec<Stmt>) {
        let body = self.blocks.pop().unwrap_or_default();
        (self.args, self.buffers, self.vars, self.n_locals, body)
    }
}

/// Whether these statements may run in lanes over a variable.
pub fn lanes_are_legal(stmts: &[Stmt], var: VarId) -> bool {
    let bound = |index: &Index| {
        !mentions(&index.value, var) && index.at_most.as_ref().is_none_or(|limit| !mentions(limit, var))
    };
    stmts.iter().all(|stmt| match stmt {
        Stmt::For { lo, hi, body, .. } => bound(lo) && bound(hi) && lanes_are_legal(body, var),
        Stmt::If { cond, body } => !mentions(&cond.lhs, var) && !mentions(&cond.rhs, var) && lanes_are_legal(body, var),
        Stmt::Local { value, .. } | Stmt::Assign { value, .. } => expr_has_lanes(value, var),
        // A store that does not move with the lanes would be a race.
        Stmt::Store { place, value } => {
            place_mentions(place, var) && place_has_lanes(place, var) && expr_has_lanes(value, var)
        }
        Stmt::Lanes { .. } | Stmt::ReduceLanes { .. } | Stmt::Matmul(_) => false,
    })
}

/// Whether an expression may be computed in lanes over a variable.
pub fn expr_has_lanes(expr: &Expr, var: VarId) -> bool {
    match expr {
        Expr::Const(_) | Expr::Local(_) => true,
        Expr::Load(place) => place_has_lanes(place, var),
        Expr::Unary(_, x) => expr_has_lanes(x, var),
        Expr::Binary(_, a, b) | Expr::Select(_, a, b) => expr_has_lanes(a, var) && expr_has_lanes(b, var),
        Expr::SelectValue(_, a, b, c, d) => [a, b, c, d].iter().all(|x| expr_has_lanes(x, var)),
    }
}

/// Whether a form mentions a variable.
pub fn mentions(affine: &Affine, var: VarId) -> bool {
    affine.mentions(var)
}

fn place_mentions(place: &Place, var: VarId) -> bool {
    place.indices.iter().any(|i| mentions(&i.value, var) || i.at_most.as_ref().is_some_and(|a| mentions(a, var)))
}

fn place_has_lanes(place: &Place, var: VarId) -> bool {
    let Some((last, rest)) = place.indices.split_last() else { return true };
    let still = |i: &Index| !mentions(&i.value, var) && i.at_most.as_ref().is_none_or(|a| !mentions(a, var));
    if !rest.iter().all(still) {
        return false;
    }
    if still(last) {
        return true;
    }
    // The only index of an argument without inner dimensions counts tokens, which are not side by side.
    let leading = matches!(place.memory, Memory::Arg(_)) && rest.is_empty();
    !leading && last.at_most.is_none() && super::index::coefficient(&last.value, var) == 1
}
