//! Elementwise values. In: a node and the positions of its dimensions. Out: an expression in which everything that is
//! not stored is computed in place, and the loop nests that store one. It never sums.

use super::Lowering;
use super::build::Builder;
use super::index::{Env, Region, exactly, number, plus, scaled, sum};
use super::plan::Lower;
use super::scope::{Form, Scope};
use crate::graph::ir::{Binary, DimId, NodeId, Op, Unary};
use crate::tile::ir::{Affine, BinaryOp, Compare, Cond, Expr, LocalId, Place, Stmt, Symbol, UnaryOp, Update};

/// Shared values of one nest, already in locals.
#[derive(Default)]
pub struct Memo {
    known: Vec<(NodeId, Env, LocalId)>,
    /// Locals may not be declared here: the expression stands inside a reduction.
    bare: bool,
}

impl Memo {
    /// For an expression inside a reduction, where nothing can be declared.
    pub fn bare() -> Memo {
        Memo { known: Vec::new(), bare: true }
    }
}

/// `a · b`.
pub fn times(a: Expr, b: Expr) -> Expr {
    Expr::Binary(BinaryOp::Mul, Box::new(a), Box::new(b))
}

/// `a + b`.
pub fn add(a: Expr, b: Expr) -> Expr {
    Expr::Binary(BinaryOp::Add, Box::new(a), Box::new(b))
}

/// eˣ.
pub fn exp(x: Expr) -> Expr {
    Expr::Unary(UnaryOp::Exp, Box::new(x))
}

/// `cond ? a : b`.
pub fn select(cond: Cond, a: Expr, b: Expr) -> Expr {
    if cond.lhs.vars.is_empty()
        && cond.rhs.vars.is_empty()
        && cond.lhs.symbols.is_empty()
        && cond.rhs.symbols.is_empty()
    {
        let (l, r) = (cond.lhs.constant, cond.rhs.constant);
        let holds = match cond.op {
            Compare::Lt => l < r,
            Compare::Le => l <= r,
            Compare::Eq => l == r,
        };
        return if holds { a } else { b };
    }
    Expr::Select(cond, Box::new(a), Box::new(b))
}

/// `lhs op rhs` on indices.
pub fn compare(lhs: Affine, op: Compare, rhs: Affine) -> Cond {
    Cond { lhs, op, rhs }
}

/// The condition under which an element of a triangle is not zero by definition.
pub fn visible(lower: &Lower, env: &Env) -> Cond {
    compare(env.at(lower.col), if lower.strict { Compare::Lt } else { Compare::Le }, env.at(lower.row))
}

impl Scope<'_> {
    /// Whether the void rows of a value already hold a number.
    fn void_rows_hold(&self, id: NodeId, number: f64) -> bool {
        match &self.node(id).op {
            Op::Input { kind: crate::graph::ir::InputKind::Cotangent, .. } => number == 0.0,
            Op::Guard(_, n) => n.to_bits() == number.to_bits(),
            Op::StopGradient(x) => self.void_rows_hold(*x, number),
            _ => false,
        }
    }

    /// Whether nothing is left of a sum once its absorbed products are gone.
    pub fn vanishes(&self, id: NodeId) -> bool {
        if self.plan.absorbed[id.index()] {
            return true;
        }
        if self.plan.stored[id.index()] {
            return false;
        }
        match &self.node(id).op {
            Op::Binary(Binary::Add | Binary::Sub, a, b) => self.vanishes(*a) && self.vanishes(*b),
            Op::Unary(Unary::Neg, a) => self.vanishes(*a),
            _ => false,
        }
    }

    /// An element of a value.
    pub fn expr(&self, b: &mut Builder, id: NodeId, env: &Env, memo: &mut Memo) -> Expr {
        if self.plan.stored[id.index()] {
            return Expr::Load(self.region(id).place(env));
        }
        if let Some((_, _, local)) = memo.known.iter().find(|(n, e, _)| *n == id && self.agree(id, e, env)) {
            return Expr::Local(*local);
        }
        let value = self.compute(b, id, env, memo);
        let shared = self.plan.users[id.index()] > 1
            && !memo.bare
            && !matches!(value, Expr::Const(_) | Expr::Local(_) | Expr::Load(_));
        if shared {
            let local = b.local(value);
            memo.known.push((id, env.clone(), local));
            return Expr::Local(local);
        }
        value
    }

    /// Whether two positions are the same for the dimensions of a value.
    fn agree(&self, id: NodeId, a: &Env, b: &Env) -> bool {
        self.dims(id).iter().all(|&d| a.at(d) == b.at(d))
    }

    /// The element of a node from its operands, whether or not it is stored.
    pub fn compute(&self, b: &mut Builder, id: NodeId, env: &Env, memo: &mut Memo) -> Expr {
        let node = self.node(id);
        match &node.op {
            Op::Const(n) => Expr::Const(*n),
            Op::Unary(op, x) => Expr::Unary(*op, Box::new(self.expr(b, *x, env, memo))),
            Op::Binary(op, x, y) => self.binary(b, *op, *x, *y, env, memo),
            Op::Contract(x, y, _) => self.binary(b, Binary::Mul, *x, *y, env, memo),
            Op::Select { op, lhs, rhs, then, otherwise } => {
                let parts = [lhs, rhs, then, otherwise].map(|x| Box::new(self.expr(b, *x, env, memo)));
                let [l, r, t, o] = parts;
                Expr::SelectValue(*op, l, r, t, o)
            }
            Op::Broadcast(x) | Op::StopGradient(x) => self.expr(b, *x, env, memo),
            Op::Rename(x, from, to) => self.expr(b, *x, &env.with(*from, env.at(*to)), memo),
            Op::Index(x, dim, at) => self.expr(b, *x, &env.with(*dim, number(*at as i64)), memo),
            Op::Guard(x, number) => {
                let value = self.expr(b, *x, env, memo);
                if self.void_rows_hold(*x, *number) { value } else { self.guard(id, value, *number, env) }
            }
            Op::Diagonal(x, row, col) => {
                let value = self.expr(b, *x, env, memo);
                select(compare(env.at(*row), Compare::Eq, env.at(*col)), value, Expr::Const(0.0))
            }
            Op::DiagonalPart(x, row, col) => self.expr(b, *x, &env.with(*col, env.at(*row)), memo),
            Op::Split(x, one, outer, inner) => {
                let size = b.size(*inner) as i64;
                let at = sum(&scaled(&env.at(*outer), size), &env.at(*inner));
                self.expr(b, *x, &env.with(*one, at), memo)
            }
            Op::Segment { row, col, diagonal, .. } => {
                let lower = Lower { row: *row, col: *col, strict: !diagonal };
                select(visible(&lower, env), Expr::Const(1.0), Expr::Const(0.0))
            }
            Op::Input { .. }
            | Op::BodyInput(_)
            | Op::Sum(..)
            | Op::MaxOver(..)
            | Op::Stack(..)
            | Op::Merge(..)
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => unreachable!("the plan stores these"),
        }
    }

    fn binary(&self, b: &mut Builder, op: BinaryOp, x: NodeId, y: NodeId, env: &Env, memo: &mut Memo) -> Expr {
        match op {
            Binary::Add | Binary::Sub if self.vanishes(y) => return self.expr(b, x, env, memo),
            Binary::Add if self.vanishes(x) => return self.expr(b, y, env, memo),
            Binary::Sub if self.vanishes(x) => {
                return Expr::Unary(Unary::Neg, Box::new(self.expr(b, y, env, memo)));
            }
            Binary::Mul => {
                for (mask, other) in [(x, y), (y, x)] {
                    // A plain mask selects; so does any triangle where the product beyond it was never computed.
                    if let (Op::Segment { row, col, diagonal, .. }, false) =
                        (&self.node(mask).op, self.plan.stored[mask.index()])
                    {
                        let lower = Lower { row: *row, col: *col, strict: !diagonal };
                        let value = self.expr(b, other, env, memo);
                        return select(visible(&lower, env), value, Expr::Const(0.0));
                    }
                    if let (Some(_), Some(lower)) = (self.plan.masked[other.index()], self.plan.lower[mask.index()]) {
                        let product = times(self.expr(b, x, env, memo), self.expr(b, y, env, memo));
                        return select(visible(&lower, env), product, Expr::Const(0.0));
                    }
                }
            }
            _ => {}
        }
        let (x, y) = (self.expr(b, x, env, memo), self.expr(b, y, env, memo));
        Expr::Binary(op, Box::new(x), Box::new(y))
    }

    fn guard(&self, id: NodeId, value: Expr, number: f64, env: &Env) -> Expr {
        let (Some(position), Some(time)) = (self.position, self.graph.time) else { return value };
        if !self.dims(id).contains(&time) {
            return value;
        }
        let row = env.at(time);
        let length = Affine { symbols: vec![(Symbol::Length, 1)], ..Affine::default() };
        let real = compare(sum(&position.first(), &row), Compare::Lt, length);
        let mut guarded = select(real, value, Expr::Const(number));
        if self.graph.rows() > position.tokens {
            let inside = compare(row, Compare::Lt, super::index::number(position.tokens as i64));
            guarded = select(inside, guarded, Expr::Const(number));
        }
        guarded
    }
}

impl Lowering<'_> {
    /// Stores an elementwise value: the part without absorbed products, then those.
    pub fn elementwise(&mut self, scope: &mut Scope, id: NodeId) {
        let dims = scope.dims(id).to_vec();
        let products = self.absorbed_terms(scope, id);
        let empty = !products.is_empty()
            && match &scope.node(id).op {
                Op::Binary(_, x, y) => scope.vanishes(*x) && scope.vanishes(*y),
                _ => false,
            };
        let factors: Vec<NodeId> = products.iter().map(|p| p.0).collect();
        let region = match if empty { None } else { self.overwritable(scope, id, &factors) } {
            Some(region) => region,
            None => scope.allocate(&mut self.b, id),
        };
        if let (Op::Guard(x, number), false) = (&scope.node(id).op, empty) {
            // In place, only the void rows change.
            if scope.plan.stored[x.index()] && scope.regions[x.index()].as_ref() == Some(&region) {
                return self.clear_void_rows(scope, &region, &dims, *number);
            }
        }
        if !empty {
            let outer = scope.outer.clone();
            self.b.nest(&dims, &outer, &mut |b, env| {
                let value = scope.compute(b, id, env, &mut Memo::default());
                b.store(region.place(env), value);
            });
        }
        for (n, (product, minus)) in products.into_iter().enumerate() {
            let update = match (empty && n == 0, minus) {
                (true, false) => Update::Set,
                (true, true) => {
                    self.fill(scope, &region, &dims, 0.0);
                    Update::Subtract
                }
                (false, false) => Update::Add,
                (false, true) => Update::Subtract,
            };
            self.product(scope, product, &region, update);
        }
    }

    /// Sets the void rows of a value to a number.
    fn clear_void_rows(&mut self, scope: &Scope, region: &Region, dims: &[DimId], number: f64) {
        let (Some(position), Some(time)) = (scope.position, scope.graph.time.filter(|t| dims.contains(t))) else {
            return;
        };
        let others: Vec<DimId> = dims.iter().copied().filter(|&d| d != time).collect();
        let rows = exactly(super::index::number(scope.graph.rows() as i64));
        let outer = scope.outer.clone();
        self.rows("i", super::memory::real_rows(position), rows, |this, i| {
            this.fill_at(region, &others, &outer.with(time, i.clone()), number);
        });
    }

    /// The absorbed products below a sum, with whether they are subtracted.
    fn absorbed_terms(&self, scope: &Scope, id: NodeId) -> Vec<(NodeId, bool)> {
        fn walk(scope: &Scope, id: NodeId, minus: bool, found: &mut Vec<(NodeId, bool)>) {
            if scope.plan.absorbed[id.index()] {
                found.push((id, minus));
            } else if !scope.plan.stored[id.index()] {
                inside(scope, id, minus, found);
            }
        }
        fn inside(scope: &Scope, id: NodeId, minus: bool, found: &mut Vec<(NodeId, bool)>) {
            match &scope.node(id).op {
                Op::Binary(Binary::Add, a, b) => {
                    walk(scope, *a, minus, found);
                    walk(scope, *b, minus, found);
                }
                Op::Binary(Binary::Sub, a, b) => {
                    walk(scope, *a, minus, found);
                    walk(scope, *b, !minus, found);
                }
                Op::Unary(Unary::Neg, a) => walk(scope, *a, !minus, found),
                _ => {}
            }
        }
        let mut found = Vec::new();
        inside(scope, id, false, &mut found);
        // A product that is added comes first: it may then be the one that sets the result.
        found.sort_by_key(|(_, minus)| *minus);
        found
    }

    /// A buffer that a value may overwrite element by element: of an operand nobody reads afterwards, and that it
    /// reads only where it writes.
    fn overwritable(&mut self, scope: &mut Scope, id: NodeId, products: &[NodeId]) -> Option<Region> {
        let dims = scope.dims(id).to_vec();
        let outer = scope.outer.clone();
        let mut loads: Vec<Place> = Vec::new();
        let mut at = Env::default();
        let _ = self.b.block(|b| {
            b.nest(&dims, &outer, &mut |b, env| {
                at = env.clone();
                let stmts = b.block(|b| {
                    let value = scope.compute(b, id, env, &mut Memo::default());
                    b.local(value);
                });
                for stmt in &stmts {
                    if let Stmt::Local { value, .. } = stmt {
                        value.for_each_load(&mut |place| loads.push(place.clone()));
                    }
                }
            });
        });
        let mut factors = Vec::new();
        for product in products {
            scope.node(*product).op.operands().iter().for_each(|&x| self.buffers_behind(scope, x, &mut factors));
        }
        let position = scope.plan.order.iter().position(|r| *r == super::plan::Root::Node(id))?;
        let mut candidates: Vec<NodeId> = scope.plan.reads[position]
            .iter()
            .copied()
            .filter(|&x| {
                scope.uses[x.index()] == 1
                    && !scope.plan.fixed[x.index()]
                    && (scope.owned[x.index()] || scope.lent[x.index()])
            })
            .collect();
        candidates.sort_by_key(|x| !scope.lent[x.index()]);
        for x in candidates {
            let Some(have) = scope.regions[x.index()].clone() else { continue };
            if factors.contains(&have.buffer) || have.row != number(0) || have.col != number(0) {
                continue;
            }
            let region = Region { buffer: have.buffer, ..canonical(&self.b, have.buffer, &dims) };
            let there = region.place(&at);
            let buffer = &self.b.buffers[have.buffer.0 as usize];
            let (rows, cols) = match dims.split_last() {
                Some((&last, rest)) => (self.b.count(rest), self.b.size(last)),
                None => (1, 1),
            };
            let fits = buffer.shape[0] >= rows && buffer.shape[1] >= cols;
            let mut only_there = true;
            let mut seen = false;
            for load in loads.iter().filter(|l| l.memory == there.memory) {
                seen = true;
                only_there &= *load == there;
            }
            if fits && seen && only_there {
                scope.regions[id.index()] = Some(region.clone());
                scope.owned[id.index()] = std::mem::take(&mut scope.owned[x.index()]);
                scope.lent[id.index()] = std::mem::take(&mut scope.lent[x.index()]);
                return Some(region);
            }
        }
        None
    }

    /// Buffers that hold a value or copies of it.
    fn buffers_behind(&self, scope: &Scope, id: NodeId, found: &mut Vec<crate::tile::ir::BufferId>) {
        if let Some(region) = &scope.regions[id.index()] {
            found.push(region.buffer);
        } else {
            scope.node(id).op.operands().iter().for_each(|&x| self.buffers_behind(scope, x, found));
        }
    }

    /// A copy of a value in another form, made once and kept as long as the value.
    pub fn copied(&mut self, scope: &mut Scope, id: NodeId, form: &Form) -> Region {
        let keeper = scope.behind(id);
        if let Some(copy) = scope.copies[keeper.index()].iter().find(|c| c.of == id && c.form == *form) {
            return copy.region.clone();
        }
        let dims = match form {
            Form::Order(dims) => dims.clone(),
            Form::Exp => scope.dims(id).to_vec(),
        };
        let from = scope.region(id);
        let region = self.b.allocate(&format!("c{}", id.0), &dims);
        let outer = scope.outer.clone();
        self.b.nest(&dims, &outer, &mut |b, env| {
            let value = Expr::Load(from.place(env));
            let value = match form {
                Form::Order(_) => value,
                Form::Exp => exp(value),
            };
            b.store(region.place(env), value);
        });
        scope.copies[keeper.index()].push(super::scope::Copied { of: id, form: form.clone(), region: region.clone() });
        region
    }

    /// Sets every element to a number.
    pub fn fill(&mut self, scope: &Scope, region: &Region, dims: &[DimId], number: f64) {
        self.b.nest(dims, &scope.outer, &mut |b, env| b.store(region.place(env), Expr::Const(number)));
    }

    /// Stores values side by side.
    pub fn stack(&mut self, scope: &mut Scope, id: NodeId, parts: &[Option<NodeId>], slot: DimId) {
        let dims: Vec<DimId> = scope.dims(id).iter().copied().filter(|&d| d != slot).collect();
        let region = scope.allocate(&mut self.b, id);
        for (n, part) in parts.iter().enumerate() {
            let outer = scope.outer.with(slot, number(n as i64));
            self.b.nest(&dims, &outer, &mut |b, env| {
                let value = part.map_or(Expr::Const(0.0), |x| scope.expr(b, x, env, &mut Memo::default()));
                b.store(region.place(env), value);
            });
        }
    }

    /// Two dimensions as one: another name where they lie one after the other, a copy otherwise.
    pub fn merge(&mut self, scope: &mut Scope, id: NodeId, x: NodeId, outer: DimId, inner: DimId, one: DimId) {
        let size = self.b.size(inner);
        let from = scope.region(x);
        if let Some(region) = from.merged(outer, inner, size, one) {
            // The stored value behind `x` is released when this one is.
            scope.regions[id.index()] = Some(region);
            let behind = scope.behind(x);
            scope.uses[behind.index()] += 1;
            scope.holder[id.index()] = Some(behind);
            return;
        }
        let region = scope.allocate(&mut self.b, id);
        let place = region.split(one, outer, inner, size);
        let dims: Vec<DimId> = scope.dims(x).to_vec();
        let env = scope.outer.clone();
        self.b.nest(&dims, &env, &mut |b, env| b.store(place.place(env), Expr::Load(from.place(env))));
    }
}

/// The region of a value alone in a buffer.
pub fn canonical(b: &Builder, buffer: crate::tile::ir::BufferId, dims: &[DimId]) -> Region {
    let mut steps = Vec::new();
    let mut row = 1;
    for (n, &dim) in dims.iter().enumerate().rev() {
        if n + 1 == dims.len() {
            steps.push(super::index::Step { dim, row: 0, col: 1 });
        } else {
            steps.push(super::index::Step { dim, row, col: 0 });
            row *= b.size(dim) as i64;
        }
    }
    steps.reverse();
    Region { buffer, row: number(0), col: number(0), steps }
}

/// The last real row of the step, as an index.
pub fn last_real_row(position: super::scope::Position) -> crate::tile::ir::Index {
    let length = Affine { symbols: vec![(Symbol::Length, 1)], ..Affine::default() };
    let rest = plus(&sum(&length, &scaled(&position.first(), -1)), -1);
    crate::tile::ir::Index { value: rest, at_most: Some(exactly(number(position.tokens as i64 - 1)).value) }
}
