//! Sums and products: `Sum`, `MaxOver` and `Contract`. In: nodes and the regions of their operands. Out: calls of the
//! matrix product where a contraction is one, loop nests with a running sum otherwise.

use super::Lowering;
use super::build::{Builder, expr_has_lanes, lanes_are_legal};
use super::elementwise::{Memo, times};
use super::index::{Env, Region, exactly, number, variable};
use super::plan::Lower;
use super::scope::{Form, Scope};
use crate::graph::ir::{DimId, NodeId, Op};
use crate::tile::ir::{BinaryOp, Expr, Matmul, Order, ReduceOp, Stmt, Triangle, Update, VarId};

/// An element of what is reduced.
type Element<'e> = dyn FnMut(&mut Builder, &Env, &mut Memo) -> Expr + 'e;

/// A contraction as a matrix product inside loops.
struct Shape {
    /// Rows of the left operand, merged into one; the outermost first.
    m: Vec<DimId>,
    /// Columns of the right operand, merged into one.
    n: Vec<DimId>,
    /// What is summed over, merged into one.
    k: Vec<DimId>,
    /// Loops around that move the result.
    loops: Vec<DimId>,
    /// Loops around that add to it.
    sums: Vec<DimId>,
}

impl Lowering<'_> {
    /// Σ or max over dimensions of an expression.
    pub fn reduction(&mut self, scope: &mut Scope, id: NodeId, x: NodeId, over: &[DimId], op: ReduceOp) {
        let region = scope.allocate(&mut self.b, id);
        let dims = scope.dims(id).to_vec();
        let scope = &*scope;
        let mut element = |b: &mut Builder, env: &Env, memo: &mut Memo| scope.expr(b, x, env, memo);
        self.reduce(&scope.outer, &region, &dims, over, op, Update::Set, &mut element);
    }

    /// A contraction that stands alone.
    pub fn contract(&mut self, scope: &mut Scope, id: NodeId) {
        let region = scope.allocate(&mut self.b, id);
        self.product(scope, id, &region, Update::Set);
    }

    /// A contraction into a given region.
    pub fn product(&mut self, scope: &mut Scope, id: NodeId, dst: &Region, update: Update) {
        let Op::Contract(a, b, over) = &scope.node(id).op else { unreachable!("called for contractions") };
        let dims = scope.dims(id).to_vec();
        if let Some((left, right)) = self.orient(scope, &dims, *a, *b, over) {
            self.matmul(scope, id, &dims, left, right, over, dst, update);
            return;
        }
        let (ra, rb) = (scope.region(*a), scope.region(*b));
        let mut element =
            |_: &mut Builder, env: &Env, _: &mut Memo| times(Expr::Load(ra.place(env)), Expr::Load(rb.place(env)));
        self.reduce(&scope.outer, dst, &dims, over, ReduceOp::Sum, update, &mut element);
    }

    /// Stores a reduction; where many threads share the work, over one axis after another.
    #[allow(clippy::too_many_arguments)]
    fn reduce(
        &mut self,
        outer: &Env,
        dst: &Region,
        dims: &[DimId],
        over: &[DimId],
        op: ReduceOp,
        update: Update,
        element: &mut Element,
    ) {
        let long: Vec<DimId> = over.iter().copied().filter(|&d| self.b.size(d) > 1).collect();
        let [rest @ .., last] = &long[..] else {
            return reduce(&mut self.b, outer, dst, dims, over, op, update, element);
        };
        if !self.options.spread || rest.is_empty() {
            return reduce(&mut self.b, outer, dst, dims, over, op, update, element);
        }
        // Axes of one position are bound where they are met first.
        let short: Vec<DimId> = over.iter().copied().filter(|d| !long.contains(d)).collect();
        let all = self.canonical_order(dims.iter().chain(rest).copied().collect());
        let parts = self.b.allocate("parts", &all);
        let first: Vec<DimId> = short.iter().chain([last]).copied().collect();
        reduce(&mut self.b, outer, &parts, &all, &first, op, Update::Set, element);
        let mut part = |_: &mut Builder, env: &Env, _: &mut Memo| Expr::Load(parts.place(env));
        self.reduce(outer, dst, dims, rest, op, update, &mut part);
        self.b.release(parts.buffer);
    }

    /// Which operand stands on the left of a matrix product, if it is one.
    fn orient(&self, scope: &Scope, dims: &[DimId], a: NodeId, b: NodeId, over: &[DimId]) -> Option<(NodeId, NodeId)> {
        let last = *dims.last()?;
        let (left, right) = match (scope.dims(a).contains(&last), scope.dims(b).contains(&last)) {
            (true, true) | (false, false) => return None,
            (true, false) => (b, a),
            (false, true) => (a, b),
        };
        let (l, r) = (scope.region(left), scope.region(right));
        let (lp, rp) = (self.b.pitch(l.buffer), self.b.pitch(r.buffer));
        // A matrix has steps, each along rows or along columns, and not both along columns: a value that repeats has
        // none, a diagonal both, and a row that was split has two along columns.
        let odd = |x: NodeId, region: &Region| {
            let long = || scope.dims(x).iter().copied().filter(|&d| self.b.size(d) > 1);
            let both = |d: &DimId| scope.dims(a).contains(d) && scope.dims(b).contains(d) && !over.contains(d);
            let along_columns = long().filter(|d| !both(d) && region.step(*d).col != 0).count();
            along_columns > 1 || long().map(|d| region.step(d)).any(|step| (step.row == 0) == (step.col == 0))
        };
        if odd(left, &l) || odd(right, &r) {
            return None;
        }
        let alone = !scope.dims(left).iter().any(|d| !over.contains(d) && !scope.dims(right).contains(d));
        let columns = r.stride(last, rp) == 1 || self.b.size(last) == 1;
        // A vector times a matrix whose columns are not side by side: dot products need no copy.
        if alone && !columns && over.iter().any(|&k| l.stride(k, lp) == 1 && r.stride(k, rp) == 1) {
            return None;
        }
        Some((left, right))
    }

    #[allow(clippy::too_many_arguments)]
    fn matmul(
        &mut self,
        scope: &mut Scope,
        id: NodeId,
        dims: &[DimId],
        left: NodeId,
        right: NodeId,
        over: &[DimId],
        dst: &Region,
        update: Update,
    ) {
        let last = *dims.last().expect("checked by `orient`");
        let l = scope.region(left);
        let mut r = scope.region(right);
        let rows_contiguous = || match over {
            [d] => self.options.any_strides && r.stride(*d, self.b.pitch(r.buffer)) == 1,
            _ => false,
        };
        if r.stride(last, self.b.pitch(r.buffer)) != 1 && self.b.size(last) > 1 && !rows_contiguous() {
            let mut order: Vec<DimId> = scope.dims(right).iter().copied().filter(|&d| d != last).collect();
            order.push(last);
            r = self.copied(scope, right, &Form::Order(order));
        }
        let shape = self.shape(scope, dims, left, right, over, &l, &r, dst);
        let size = |dims: &[DimId]| self.b.count(dims);
        let (m, n, k) = (size(&shape.m), size(&shape.n), size(&shape.k));
        let stride = |region: &Region, dims: &[DimId]| match dims.last() {
            Some(&d) => region.stride(d, self.b.pitch(region.buffer)).max(1),
            None => 1,
        };
        let strides = (
            (stride(dst, &shape.m), 1),
            (stride(&l, &shape.m), stride(&l, &shape.k)),
            // One column is contiguous whatever it is a part of.
            (stride(&r, &shape.k), if n == 1 { 1 } else { stride(&r, &shape.n) }),
        );
        let triangle = self.triangle(scope, id, &shape, left);
        // A product with a triangle of ones is a sum, whose terms keep their digits.
        let is_triangle = |x: NodeId| match &scope.node(x).op {
            Op::Segment { gates, .. } => gates.events.is_empty(),
            _ => false,
        };
        let exact = is_triangle(left) || is_triangle(right);
        let update = if shape.sums.is_empty() {
            update
        } else {
            match update {
                Update::Set => {
                    self.fill(scope, dst, dims, 0.0);
                    Update::Add
                }
                Update::Add | Update::Subtract => update,
            }
        };
        let outer = scope.outer.clone();
        let product = &mut |b: &mut Builder, env: &Env| {
            let (pd, pl, pr) = (b.pitch(dst.buffer), b.pitch(l.buffer), b.pitch(r.buffer));
            b.emit(Stmt::Matmul(Matmul {
                dst: dst.matrix(env, pd, strides.0.0, strides.0.1),
                a: l.matrix(env, pl, strides.1.0, strides.1.1),
                b: r.matrix(env, pr, strides.2.0, strides.2.1),
                m,
                n,
                k: number(k as i64),
                update,
                triangle,
                exact,
            }));
        };
        self.b.for_dims(&shape.loops, Order::Any, &outer, &mut |b, env| {
            b.for_dims(&shape.sums, Order::Forward, env, product);
        });
    }

    /// Splits the dimensions of a contraction between the product and the loops around it.
    #[allow(clippy::too_many_arguments)]
    fn shape(
        &self,
        scope: &Scope,
        dims: &[DimId],
        left: NodeId,
        right: NodeId,
        over: &[DimId],
        l: &Region,
        r: &Region,
        dst: &Region,
    ) -> Shape {
        let in_left = |d: &DimId| scope.dims(left).contains(d);
        let in_right = |d: &DimId| scope.dims(right).contains(d);
        let rows: Vec<DimId> = dims.iter().copied().filter(|d| in_left(d) && !in_right(d)).collect();
        let cols: Vec<DimId> = dims.iter().copied().filter(|d| in_right(d) && !in_left(d)).collect();
        let m = self.largest_run(&rows, &[l, dst]);
        let k = self.largest_run(over, &[l, r]);
        // The columns have to end with the dimension whose elements are side by side.
        let mut n: Vec<DimId> = Vec::new();
        for d in cols.iter().rev() {
            if n.first().is_some_and(|&inner| !self.adjacent(*d, inner, &[r, dst])) {
                break;
            }
            n.insert(0, *d);
        }
        let loops = dims.iter().copied().filter(|d| !m.contains(d) && !n.contains(d)).collect();
        let sums = over.iter().copied().filter(|d| !k.contains(d)).collect();
        Shape { m, n, k, loops, sums }
    }

    /// Whether the positions of `outer` follow those of `inner` in all regions.
    fn adjacent(&self, outer: DimId, inner: DimId, regions: &[&Region]) -> bool {
        regions.iter().all(|region| {
            let pitch = self.b.pitch(region.buffer);
            region.stride(outer, pitch) == region.stride(inner, pitch) * self.b.size(inner) as i64
        })
    }

    /// The largest run of dimensions that can be gone through with one stride in all regions.
    fn largest_run(&self, dims: &[DimId], regions: &[&Region]) -> Vec<DimId> {
        let mut best: Vec<DimId> = Vec::new();
        for start in 0..dims.len() {
            let mut end = start + 1;
            while end < dims.len() && self.adjacent(dims[end - 1], dims[end], regions) {
                end += 1;
            }
            if best.is_empty() || self.b.count(&dims[start..end]) > self.b.count(&best) {
                best = dims[start..end].to_vec();
            }
        }
        best
    }

    fn triangle(&self, scope: &Scope, id: NodeId, shape: &Shape, left: NodeId) -> Triangle {
        let single = |dims: &[DimId], d: DimId| dims == [d];
        if let Some(lower) = &scope.plan.masked[id.index()] {
            let skips = super::plan::may_skip(scope.nodes, id, lower);
            if skips && single(&shape.m, lower.row) && single(&shape.n, lower.col) {
                return Triangle::LowerResult;
            }
        }
        if let Some(Lower { row, col, .. }) = scope.plan.lower[left.index()] {
            if single(&shape.m, row) && single(&shape.k, col) {
                return Triangle::LowerLeft;
            }
            if single(&shape.m, col) && single(&shape.k, row) {
                return Triangle::UpperLeft;
            }
        }
        Triangle::Full
    }
}

/// The result of one reduction, added to or taken from what is there, or in its place.
fn settle(place: Expr, value: Expr, update: Update) -> Expr {
    match update {
        Update::Set => value,
        Update::Add => super::elementwise::add(place, value),
        Update::Subtract => Expr::Binary(BinaryOp::Sub, Box::new(place), Box::new(value)),
    }
}

/// Stores a reduction: lanes over a dimension of the result, or over one that is summed, or no lanes at all.
#[allow(clippy::too_many_arguments)]
pub fn reduce(
    b: &mut Builder,
    outer: &Env,
    dst: &Region,
    dims: &[DimId],
    over: &[DimId],
    op: ReduceOp,
    update: Update,
    element: &mut Element,
) {
    let (binary, start) = match op {
        ReduceOp::Sum => (BinaryOp::Add, 0.0),
        ReduceOp::Max => (BinaryOp::Max, f64::NEG_INFINITY),
    };
    let loops: Vec<(DimId, VarId)> = dims.iter().map(|&d| (d, b.dim_var(d))).collect();
    let mut env = outer.clone();
    for &(dim, var) in &loops {
        env.bind(dim, if b.size(dim) == 1 { number(0) } else { variable(var) });
    }
    let running = |b: &mut Builder, element: &mut Element| {
        b.block(|b| {
            let total = b.local(Expr::Const(start));
            b.for_dims(over, Order::Forward, &env, &mut |b, env| {
                let value = element(b, env, &mut Memo::default());
                let value = Expr::Binary(binary, Box::new(Expr::Local(total)), Box::new(value));
                b.emit(Stmt::Assign { local: total, value });
            });
            let place = dst.place(&env);
            b.store(place.clone(), settle(Expr::Load(place), Expr::Local(total), update));
        })
    };
    let mut stmts = running(b, element);
    let lane = loops.iter().rev().copied().find(|&(d, v)| b.size(d) > 1 && lanes_are_legal(&stmts, v));
    if let Some((dim, var)) = lane {
        stmts = vec![Stmt::Lanes { var, extent: b.size(dim), body: stmts }];
    } else if let Some(in_lanes) = across(b, &env, dst, over, op, update, element) {
        stmts = in_lanes;
    }
    for &(dim, var) in loops.iter().rev() {
        if b.size(dim) > 1 && lane.is_none_or(|(d, _)| d != dim) {
            let hi = exactly(number(b.size(dim) as i64));
            stmts = vec![Stmt::For { var, lo: exactly(number(0)), hi, order: Order::Any, body: stmts }];
        }
    }
    stmts.into_iter().for_each(|s| b.emit(s));
}

/// One element of the result, with lanes over one of the dimensions that are summed.
fn across(
    b: &mut Builder,
    env: &Env,
    dst: &Region,
    over: &[DimId],
    op: ReduceOp,
    update: Update,
    element: &mut Element,
) -> Option<Vec<Stmt>> {
    let mut bare = Memo::bare();
    let candidates: Vec<DimId> = over.iter().rev().copied().filter(|&d| b.size(d) > 1).collect();
    for lane in candidates {
        let var = b.dim_var(lane);
        let rest: Vec<DimId> = over.iter().copied().filter(|&d| d != lane).collect();
        let mut legal = true;
        let single = rest.iter().all(|&d| b.size(d) == 1) && update != Update::Subtract;
        let extent = b.size(lane);
        let stmts = b.block(|b| {
            let place = dst.place(env);
            if !single {
                let start = match (op, update) {
                    (_, Update::Add | Update::Subtract) => None,
                    (ReduceOp::Sum, Update::Set) => Some(0.0),
                    (ReduceOp::Max, Update::Set) => Some(f64::NEG_INFINITY),
                };
                if let Some(start) = start {
                    b.store(place.clone(), Expr::Const(start));
                }
            }
            b.for_dims(&rest, Order::Forward, &env.with(lane, variable(var)), &mut |b, env| {
                let mut value = element(b, env, &mut bare);
                legal &= expr_has_lanes(&value, var);
                if update == Update::Subtract {
                    value = Expr::Unary(crate::tile::ir::UnaryOp::Neg, Box::new(value));
                }
                let accumulate = !single || update == Update::Add;
                b.emit(Stmt::ReduceLanes { place: place.clone(), op, var, extent, value, accumulate });
            });
        });
        if legal {
            return Some(stmts);
        }
    }
    None
}
