//! Decays inside a contraction: the gated trilinear form and its derivatives. In: weight, rows, cols and gates, stored.
//! Out: running products of factors along time. It never divides and never forms a factor that is not between two
//! tokens.

use super::Lowering;
use super::build::Builder;
use super::decay::{Events, add_to_local, after, maybe_times, scale_local};
use super::elementwise::{add, compare, select, times};
use super::index::{Env, Region, number};
use super::scope::{Form, Scope};
use crate::graph::ir::{DimId, GatedPart, NodeId, Op};
use crate::tile::ir::{Compare, Expr, LocalId, Order, Stmt};

/// Rows up to which the sums of one column of lanes stay in registers.
const UNROLLED: usize = 16;

impl Lowering<'_> {
    /// Stores an [`Op::Gated`].
    pub fn gated(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Gated { part, .. } = &scope.node(id).op else { unreachable!("called for gated products") };
        match *part {
            GatedPart::Weight => self.gated_weight(scope, id),
            GatedPart::Rows => self.gated_rows(scope, id),
            GatedPart::Cols => self.gated_cols(scope, id),
            GatedPart::Gate(event) => self.gated_gate(scope, id, event),
        }
    }

    /// ∂Φ/∂weight: lanes over columns, one running product for each pair of a column and an axis.
    fn gated_weight(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Gated { rows, cols, gates, row, col, axes, .. } = &scope.node(id).op else { return };
        let (Some(rows), Some(cols)) = (*rows, *cols) else { return };
        let (row, col) = (*row, *col);
        let events = self.events(scope, gates, true);
        let mut order: Vec<DimId> = scope.dims(cols).iter().copied().filter(|&d| d != col).collect();
        order.push(col);
        let cols = self.copied(scope, cols, &Form::Order(order));
        let rows = scope.region(rows);
        let region = scope.allocate(&mut self.b, id);
        let dims = scope.dims(id).to_vec();
        let lanes: Vec<DimId> = dims.iter().copied().filter(|&d| d != row).collect();
        let count = self.b.size(row);
        let (from, to, n) = (gates.from, gates.to, events.len());
        let unrolled = count <= UNROLLED;
        if !unrolled {
            self.fill(scope, &region, &dims, 0.0);
        }
        // One more row: its product, and what the running product becomes.
        let advance = |b: &mut Builder, p: LocalId, env: &Env| -> Expr {
            let value = maybe_times(Expr::Local(p), events.product(0..to, env));
            let value = times(Expr::Load(rows.place(env)), value);
            let going = maybe_times(Expr::Local(p), events.product(0..n, env));
            let fresh = maybe_times(Expr::Load(cols.place(env)), events.product(from..n, env));
            let on = compare(env.at(col), Compare::Eq, env.at(row));
            let kept = b.local(value);
            b.emit(Stmt::Assign { local: p, value: select(on, fresh, going) });
            Expr::Local(kept)
        };
        self.b.nest(&lanes, &scope.outer, &mut |b, env| {
            let sums: Vec<LocalId> =
                if unrolled { (0..count).map(|_| b.local(Expr::Const(0.0))).collect() } else { Vec::new() };
            b.for_dims(axes, Order::Forward, env, &mut |b, env| {
                let p = b.local(Expr::Const(0.0));
                if unrolled {
                    for (i, &sum) in sums.iter().enumerate() {
                        let value = advance(b, p, &env.with(row, number(i as i64)));
                        add_to_local(b, sum, value);
                    }
                } else {
                    b.for_each("i", count, |b, i| {
                        let env = env.with(row, i.clone());
                        let value = advance(b, p, &env);
                        let place = region.place(&env);
                        b.store(place.clone(), add(Expr::Load(place), value));
                    });
                }
            });
            // Where the column has not begun, the sums hold zero times whatever the rows held.
            let clean = |b: &mut Builder, i, value| {
                let env = env.with(row, i);
                let before = compare(env.at(col), Compare::Lt, env.at(row));
                b.store(region.place(&env), select(before, value, Expr::Const(0.0)));
            };
            if unrolled {
                for (i, &sum) in sums.iter().enumerate() {
                    clean(b, number(i as i64), Expr::Local(sum));
                }
            } else {
                b.for_each("i", count, |b, i| {
                    let value = Expr::Load(region.place(&env.with(row, i.clone())));
                    clean(b, i.clone(), value);
                });
            }
        });
    }

    /// ∂Φ/∂rows: each column is carried forward through the rows below it.
    fn gated_rows(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Gated { weight, cols, gates, row, col, .. } = &scope.node(id).op else { return };
        let (Some(weight), Some(cols)) = (*weight, *cols) else { return };
        let (row, col) = (*row, *col);
        let events = self.events(scope, gates, true);
        let (weight, cols) = (scope.region(weight), scope.region(cols));
        let region = scope.allocate(&mut self.b, id);
        let dims = scope.dims(id).to_vec();
        self.fill(scope, &region, &dims, 0.0);
        let lanes: Vec<DimId> = dims.iter().copied().filter(|&d| d != row).collect();
        let count = self.b.size(row);
        let (from, to, n) = (gates.from, gates.to, events.len());
        self.b.nest(&lanes, &scope.outer, &mut |b, env| {
            b.for_each("j", count, |b, j| {
                let env = env.with(col, j.clone());
                let at = env.with(row, j.clone());
                let p = b.local(maybe_times(Expr::Load(cols.place(&env)), events.product(from..n, &at)));
                let (lo, hi) = after(j, count);
                b.for_range("i", lo, hi, Order::Forward, |b, i| {
                    let env = env.with(row, i.clone());
                    let value = maybe_times(Expr::Local(p), events.product(0..to, &env));
                    let value = times(Expr::Load(weight.place(&env)), value);
                    let place = region.place(&env);
                    b.store(place.clone(), add(Expr::Load(place), value));
                    scale_local(b, p, events.product(0..n, &env));
                });
            });
        });
    }

    /// ∂Φ/∂cols: what every row below a column gives back to it.
    fn gated_cols(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Gated { weight, rows, gates, row, col, .. } = &scope.node(id).op else { return };
        let (Some(weight), Some(rows)) = (*weight, *rows) else { return };
        let (row, col) = (*row, *col);
        let events = self.events(scope, gates, true);
        let (weight, rows) = (scope.region(weight), scope.region(rows));
        let region = scope.allocate(&mut self.b, id);
        let lanes: Vec<DimId> = scope.dims(id).iter().copied().filter(|&d| d != col).collect();
        let count = self.b.size(col);
        let (from, to, n) = (gates.from, gates.to, events.len());
        self.b.nest(&lanes, &scope.outer, &mut |b, env| {
            b.for_each("j", count, |b, j| {
                let env = env.with(col, j.clone());
                let at = env.with(row, j.clone());
                let p = b.local(events.product(from..n, &at).unwrap_or(Expr::Const(1.0)));
                let total = b.local(Expr::Const(0.0));
                let (lo, hi) = after(j, count);
                b.for_range("i", lo, hi, Order::Forward, |b, i| {
                    let env = env.with(row, i.clone());
                    let value = maybe_times(Expr::Local(p), events.product(0..to, &env));
                    let pair = times(Expr::Load(weight.place(&env)), Expr::Load(rows.place(&env)));
                    add_to_local(b, total, times(pair, value));
                    scale_local(b, p, events.product(0..n, &env));
                });
                b.store(region.place(&env), Expr::Local(total));
            });
        });
    }

    /// ∂Φ/∂gate: for each column, products from the column up to each event, then sums from the rows back to it.
    fn gated_gate(&mut self, scope: &mut Scope, id: NodeId, event: usize) {
        let Op::Gated { weight, rows, cols, gates, row, col, axes, .. } = &scope.node(id).op else { return };
        let (Some(weight), Some(rows), Some(cols)) = (*weight, *rows, *cols) else { return };
        let (row, col) = (*row, *col);
        let mut dims = scope.dims(id).to_vec();
        dims.extend(axes);
        for x in [weight, rows, cols] {
            dims.extend(scope.dims(x).iter().filter(|&&d| d != col));
        }
        let dims = self.canonical_order(dims);
        let events = self.events(scope, gates, true);
        let (weight, rows, cols) = (scope.region(weight), scope.region(rows), scope.region(cols));
        let result = scope.allocate(&mut self.b, id);
        let over: Vec<DimId> = dims.iter().copied().filter(|d| !scope.dims(id).contains(d)).collect();
        let parts = if over.is_empty() { result.clone() } else { self.b.allocate("parts", &dims) };
        let products = self.b.allocate("products", &dims);
        self.fill(scope, &parts, &dims, 0.0);
        let lanes: Vec<DimId> = dims.iter().copied().filter(|&d| d != row).collect();
        let count = self.b.size(row);
        let (from, to, n) = (gates.from, gates.to, events.len());
        self.b.nest(&lanes, &scope.outer, &mut |b, env| {
            b.for_each("j", count, |b, j| {
                let env = env.with(col, j.clone());
                let at = env.with(row, j.clone());
                let p = b.local(maybe_times(Expr::Load(cols.place(&env)), events.product(from..n, &at)));
                let (lo, hi) = after(j, count);
                b.for_range("i", lo.clone(), hi.clone(), Order::Forward, |b, i| {
                    let env = env.with(row, i.clone());
                    b.store(products.place(&env), Expr::Local(p));
                    scale_local(b, p, events.product(0..n, &env));
                });
                let s = b.local(Expr::Const(0.0));
                b.for_range("i", lo, hi, Order::Reverse, |b, i| {
                    let env = env.with(row, i.clone());
                    for clock in (0..=n).rev() {
                        if clock == to {
                            let pair = times(Expr::Load(weight.place(&env)), Expr::Load(rows.place(&env)));
                            add_to_local(b, s, pair);
                        }
                        if clock == event + 1 {
                            let far = Expr::Load(products.place(&env));
                            credit(b, &events, event, 0, far, s, &parts, &env);
                        }
                        if clock > 0 {
                            scale_local(b, s, events.product(clock - 1..clock, &env));
                        }
                    }
                });
                // The events of the column's own token, from the moment it writes.
                if event >= from {
                    for clock in (from + 1..=n).rev() {
                        if clock == event + 1 {
                            let far = Expr::Load(cols.place(&at));
                            credit(b, &events, event, from, far, s, &parts, &at);
                        }
                        scale_local(b, s, events.product(clock - 1..clock, &at));
                    }
                }
            });
        });
        self.b.release(products.buffer);
        if !over.is_empty() {
            self.collect(scope, id, &parts, &result, &over);
            self.b.release(parts.buffer);
        }
    }
}

/// Adds one column's share to the gradient of an event: what lies before it, times what lies after it.
#[allow(clippy::too_many_arguments)]
fn credit(
    b: &mut Builder,
    events: &Events,
    event: usize,
    first: usize,
    far: Expr,
    s: LocalId,
    parts: &Region,
    env: &Env,
) {
    let far = maybe_times(far, events.product(first..event, env));
    let near = maybe_times(Expr::Local(s), events.inner_derivative(event, env));
    let place = parts.place(env);
    b.store(place.clone(), add(Expr::Load(place), times(far, near)));
}
