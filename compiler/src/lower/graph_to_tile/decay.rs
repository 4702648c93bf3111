//! Decays along time: `Segment`, `Boundary` and their gradients. In: gates, already stored. Out: loops along the rows
//! that carry a running product or a running sum of logarithms, in lanes over everything else. Nothing here divides,
//! and nothing subtracts two sums.

use std::ops::Range;

use super::Lowering;
use super::build::Builder;
use super::elementwise::{add, compare, exp, select, times};
use super::index::{Env, Region, exactly, number, plus};
use super::scope::{Form, Scope};
use crate::graph::ir::{DimId, GateKind, Gates, NodeId, Op, Side};
use crate::tile::ir::{Affine, Compare, Expr, LocalId, Order, ReduceOp, Stmt, Update};

/// One event of a token: where its factor lies, and its logarithm if that was given.
pub struct Event {
    /// The factor.
    factor: Option<Region>,
    /// The value as given.
    pub given: Region,
    /// What was given.
    pub kind: GateKind,
}

/// The events of a token, at the ready.
pub struct Events(pub Vec<Event>);

impl Events {
    /// Π of the factors of some events at a token; nothing for none.
    pub fn product(&self, events: Range<usize>, env: &Env) -> Option<Expr> {
        let factors = self.0[events]
            .iter()
            .map(|e| Expr::Load(e.factor.as_ref().expect("asked for with the factors").place(env)));
        factors.reduce(times)
    }
    /// Σ of the logarithms among some events at a token.
    fn logs(&self, events: Range<usize>, env: &Env) -> Option<Expr> {
        self.given(events, GateKind::Log, env).reduce(add)
    }
    /// Π of what was given as a factor among some events.
    fn factors(&self, events: Range<usize>, env: &Env) -> Option<Expr> {
        self.given(events, GateKind::Factor, env).reduce(times)
    }
    fn given(&self, events: Range<usize>, kind: GateKind, env: &Env) -> impl Iterator<Item = Expr> {
        self.0[events].iter().filter(move |e| e.kind == kind).map(|e| Expr::Load(e.given.place(env)))
    }
    /// Number of events.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// ∂factor/∂gate, without the other factors: the factor itself for a logarithm.
    pub fn inner_derivative(&self, event: usize, env: &Env) -> Option<Expr> {
        match self.0[event].kind {
            GateKind::Log => self.product(event..event + 1, env),
            GateKind::Factor => None,
        }
    }
}

/// `a · b`, where nothing stands for one.
pub fn maybe_times(a: Expr, b: Option<Expr>) -> Expr {
    match b {
        Some(b) => times(a, b),
        None => a,
    }
}

/// Multiplies a local.
pub fn scale_local(b: &mut Builder, local: LocalId, by: Option<Expr>) {
    if let Some(by) = by {
        b.emit(Stmt::Assign { local, value: times(Expr::Local(local), by) });
    }
}

/// Adds to a local.
pub fn add_to_local(b: &mut Builder, local: LocalId, value: Expr) {
    b.emit(Stmt::Assign { local, value: add(Expr::Local(local), value) });
}

/// How to choose between going on and starting anew, and the events to start with.
type Restart<'r> = (&'r dyn Fn(Expr, Expr) -> Expr, Range<usize>);

/// A running segment: the sum of its logarithms and the product of its other factors.
struct Running {
    logs: Option<LocalId>,
    factors: Option<LocalId>,
}

impl Running {
    fn start(b: &mut Builder, events: &Events) -> Running {
        let has = |kind| events.0.iter().any(|e| e.kind == kind);
        Running {
            logs: has(GateKind::Log).then(|| b.local(Expr::Const(0.0))),
            factors: has(GateKind::Factor).then(|| b.local(Expr::Const(1.0))),
        }
    }
    /// The segment so far, and some events of one more token.
    fn value(&self, events: &Events, more: Range<usize>, env: &Env) -> Expr {
        let logs = self.logs.map(|local| exp(plus_maybe(Expr::Local(local), events.logs(more.clone(), env))));
        let factors = self.factors.map(|local| maybe_times(Expr::Local(local), events.factors(more, env)));
        match (logs, factors) {
            (Some(a), Some(b)) => times(a, b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => Expr::Const(1.0),
        }
    }
    /// Goes on over all events of a token; elsewhere (if `unless` does not hold) restarts with some of them.
    fn go_on(&self, b: &mut Builder, events: &Events, env: &Env, restart: Option<Restart<'_>>) {
        let all = 0..events.len();
        if let Some(local) = self.logs {
            let mut value = plus_maybe(Expr::Local(local), events.logs(all.clone(), env));
            if let Some((choose, first)) = &restart {
                value = choose(value, events.logs(first.clone(), env).unwrap_or(Expr::Const(0.0)));
            }
            b.emit(Stmt::Assign { local, value });
        }
        if let Some(local) = self.factors {
            let mut value = maybe_times(Expr::Local(local), events.factors(all, env));
            if let Some((choose, first)) = &restart {
                value = choose(value, events.factors(first.clone(), env).unwrap_or(Expr::Const(1.0)));
            }
            b.emit(Stmt::Assign { local, value });
        }
    }
}

fn plus_maybe(a: Expr, b: Option<Expr>) -> Expr {
    match b {
        Some(b) => add(a, b),
        None => a,
    }
}

impl Lowering<'_> {
    /// The events of a decay, with their factors if those are needed.
    pub fn events(&mut self, scope: &mut Scope, gates: &Gates, with_factors: bool) -> Events {
        let events = gates.events.iter().map(|gate| {
            let given = scope.region(gate.value);
            let factor = match (with_factors, gate.kind) {
                (false, _) => None,
                (true, GateKind::Factor) => Some(given.clone()),
                (true, GateKind::Log) => Some(self.copied(scope, gate.value, &Form::Exp)),
            };
            Event { factor, given, kind: gate.kind }
        });
        Events(events.collect())
    }

    /// Stores an [`Op::Segment`] that has events.
    pub fn segment(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Segment { gates, row, col, diagonal } = &scope.node(id).op else { unreachable!("called for segments") };
        let (row, col, diagonal) = (*row, *col, *diagonal);
        let events = self.events(scope, gates, false);
        let region = scope.allocate(&mut self.b, id);
        let dims: Vec<DimId> = scope.dims(id).iter().copied().filter(|&d| d != row).collect();
        let rows = self.b.size(row);
        let n = events.len();
        self.b.nest(&dims, &scope.outer, &mut |b, env| {
            let running = Running::start(b, &events);
            b.for_each("i", rows, |b, i| {
                let env = env.with(row, i.clone());
                let before = compare(env.at(col), Compare::Lt, i.clone());
                let on = compare(env.at(col), Compare::Eq, i.clone());
                let zero = Expr::Const(0.0);
                let beyond = if diagonal {
                    let within = gates.from..gates.to.max(gates.from);
                    let logs = events.logs(within.clone(), &env).map(exp);
                    let value = match (logs, events.factors(within.clone(), &env)) {
                        (Some(a), Some(b)) => times(a, b),
                        (Some(a), None) | (None, Some(a)) => a,
                        (None, None) => Expr::Const(1.0),
                    };
                    select(on, value, zero)
                } else {
                    zero
                };
                let value = select(before.clone(), running.value(&events, 0..gates.to, &env), beyond);
                b.store(region.place(&env), value);
                let choose = |going: Expr, fresh: Expr| select(before.clone(), going, fresh);
                running.go_on(b, &events, &env, Some((&choose, gates.from..n)));
            });
        });
    }

    /// Stores an [`Op::Boundary`].
    pub fn boundary(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Boundary { side, gates, row } = &scope.node(id).op else { unreachable!("called for boundaries") };
        let (side, row) = (*side, *row);
        let events = self.events(scope, gates, false);
        let region = scope.allocate(&mut self.b, id);
        let dims: Vec<DimId> = scope.dims(id).iter().copied().filter(|&d| d != row).collect();
        let rows = self.b.size(row);
        let n = events.len();
        self.b.nest(&dims, &scope.outer, &mut |b, env| {
            let running = Running::start(b, &events);
            let hi = exactly(number(rows as i64));
            b.for_range("i", exactly(number(0)), hi, Order::reversed(side == Side::Suffix), |b, i| {
                let env = env.with(row, i.clone());
                let more = match side {
                    Side::Prefix => Some(0..gates.to),
                    Side::Suffix => Some(gates.from..n),
                    Side::Total => None,
                };
                if let Some(more) = more {
                    let value = running.value(&events, more, &env);
                    b.store(region.place(&env), value);
                }
                running.go_on(b, &events, &env, None);
            });
            if side == Side::Total {
                let value = running.value(&events, 0..0, env);
                b.store(region.place(env), value);
            }
        });
    }

    /// Stores an [`Op::SegmentGrad`].
    pub fn segment_grad(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::SegmentGrad { weight, gates, row, col, diagonal, event } = &scope.node(id).op else {
            unreachable!("called for gradients of segments")
        };
        let (row, col, diagonal, event) = (*row, *col, *diagonal, *event);
        let events = self.events(scope, gates, true);
        let weight = scope.region(*weight);
        let result = scope.allocate(&mut self.b, id);
        let mut dims = scope.dims(id).to_vec();
        dims.push(col);
        // What each pair of tokens contributes; first, the product from the column to the start of the row's token.
        let pairs = self.b.allocate("pairs", &dims);
        let lanes: Vec<DimId> = dims.iter().copied().filter(|&d| d != row).collect();
        let rows = self.b.size(row);
        let n = events.len();
        self.b.nest(&lanes, &scope.outer, &mut |b, env| {
            let before = |i: &Affine| compare(env.at(col), Compare::Lt, i.clone());
            let on = |i: &Affine| compare(env.at(col), Compare::Eq, i.clone());
            let p = b.local(Expr::Const(1.0));
            b.for_each("i", rows, |b, i| {
                let env = env.with(row, i.clone());
                b.store(pairs.place(&env), Expr::Local(p));
                let going = maybe_times(Expr::Local(p), events.product(0..n, &env));
                let fresh = events.product(gates.from..n, &env).unwrap_or(Expr::Const(1.0));
                b.emit(Stmt::Assign { local: p, value: select(before(i), going, fresh) });
            });
            let s = b.local(Expr::Const(0.0));
            b.for_range("i", exactly(number(0)), exactly(number(rows as i64)), Order::Reverse, |b, i| {
                let env = env.with(row, i.clone());
                for clock in (0..=n).rev() {
                    if clock == gates.to {
                        let w = Expr::Load(weight.place(&env));
                        let zero = Expr::Const(0.0);
                        let beyond = if diagonal { select(on(i), w.clone(), zero) } else { zero };
                        add_to_local(b, s, select(before(i), w, beyond));
                    }
                    if clock == event + 1 {
                        let pre = maybe_times(Expr::Load(pairs.place(&env)), events.product(0..event, &env));
                        let beyond = if event >= gates.from {
                            let fresh = events.product(gates.from..event, &env).unwrap_or(Expr::Const(1.0));
                            select(on(i), fresh, Expr::Const(0.0))
                        } else {
                            Expr::Const(0.0)
                        };
                        let pre = select(before(i), pre, beyond);
                        let value = times(pre, maybe_times(Expr::Local(s), events.inner_derivative(event, &env)));
                        // A pair that does not count adds nothing, whatever the sum holds there.
                        let here = if event >= gates.from { Compare::Le } else { Compare::Lt };
                        let counts = compare(env.at(col), here, i.clone());
                        b.store(pairs.place(&env), select(counts, value, Expr::Const(0.0)));
                    }
                    if clock > 0 {
                        scale_local(b, s, events.product(clock - 1..clock, &env));
                    }
                }
                // A column is done with at its own token.
                b.emit(Stmt::Assign { local: s, value: select(before(i), Expr::Local(s), Expr::Const(0.0)) });
            });
        });
        self.collect(scope, id, &pairs, &result, &[col]);
        self.b.release(pairs.buffer);
    }

    /// Stores an [`Op::BoundaryGrad`].
    pub fn boundary_grad(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::BoundaryGrad { weight, side, gates, row, event } = &scope.node(id).op else {
            unreachable!("called for gradients of boundaries")
        };
        let (side, row, event) = (*side, *row, *event);
        let mut dims = scope.dims(*weight).to_vec();
        for gate in &gates.events {
            dims.extend(scope.dims(gate.value));
        }
        dims.extend(scope.dims(id));
        let dims = self.canonical_order(dims);
        let events = self.events(scope, gates, true);
        let weight = scope.region(*weight);
        let result = scope.allocate(&mut self.b, id);
        let over: Vec<DimId> = dims.iter().copied().filter(|d| !scope.dims(id).contains(d)).collect();
        let parts = if over.is_empty() { result.clone() } else { self.b.allocate("parts", &dims) };
        let lanes: Vec<DimId> = dims.iter().copied().filter(|&d| d != row).collect();
        let rows = self.b.size(row);
        let n = events.len();
        let (from, to) = (gates.from, gates.to);
        // A suffix is a prefix seen from the other end of the step.
        let suffix = side == Side::Suffix;
        self.b.nest(&lanes, &scope.outer, &mut |b, env| {
            let (lo, hi) = (exactly(number(0)), exactly(number(rows as i64)));
            let p = b.local(Expr::Const(1.0));
            b.for_range("i", lo.clone(), hi.clone(), Order::reversed(suffix), |b, i| {
                let env = env.with(row, i.clone());
                b.store(parts.place(&env), Expr::Local(p));
                scale_local(b, p, events.product(0..n, &env));
            });
            let start = if side == Side::Total { Expr::Load(weight.place(env)) } else { Expr::Const(0.0) };
            let s = b.local(start);
            b.for_range("i", lo, hi, Order::reversed(!suffix), |b, i| {
                let env = env.with(row, i.clone());
                let clocks: Vec<usize> = if suffix { (0..=n).collect() } else { (0..=n).rev().collect() };
                for clock in clocks {
                    let reads = match side {
                        Side::Prefix => clock == to,
                        Side::Suffix => clock == from,
                        Side::Total => false,
                    };
                    if reads {
                        add_to_local(b, s, Expr::Load(weight.place(&env)));
                    }
                    // The event next to this clock, on the way.
                    let next = if suffix { (clock < n).then_some(clock) } else { clock.checked_sub(1) };
                    let Some(next) = next else { continue };
                    if next == event {
                        let others = if suffix { event + 1..n } else { 0..event };
                        let far = maybe_times(Expr::Load(parts.place(&env)), events.product(others, &env));
                        let near = maybe_times(Expr::Local(s), events.inner_derivative(event, &env));
                        b.store(parts.place(&env), times(far, near));
                    }
                    scale_local(b, s, events.product(next..next + 1, &env));
                }
            });
        });
        if !over.is_empty() {
            self.collect(scope, id, &parts, &result, &over);
            self.b.release(parts.buffer);
        }
    }

    /// Sums what was stored with more dimensions than the result has.
    pub fn collect(&mut self, scope: &Scope, id: NodeId, parts: &Region, result: &Region, over: &[DimId]) {
        let mut element = |_: &mut Builder, env: &Env, _: &mut super::elementwise::Memo| Expr::Load(parts.place(env));
        let dims = scope.dims(id);
        super::contract::reduce(
            &mut self.b,
            &scope.outer,
            result,
            dims,
            over,
            ReduceOp::Sum,
            Update::Set,
            &mut element,
        );
    }

    /// A set of dimensions in canonical order.
    pub fn canonical_order(&self, mut dims: Vec<DimId>) -> Vec<DimId> {
        dims.sort_by_key(|&d| (self.b.graph.dim(d).kind, d));
        dims.dedup();
        dims
    }
}

/// `i + 1 .. rows`, as bounds.
pub fn after(i: &Affine, rows: usize) -> (crate::tile::ir::Index, crate::tile::ir::Index) {
    (exactly(plus(i, 1)), exactly(number(rows as i64)))
}
