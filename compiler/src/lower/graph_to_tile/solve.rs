//! Triangular systems. In: blocks, right-hand sides, factors and gates. Out: the solution by substitution. Without a
//! decay on the solution's axes, in blocks of rows: what earlier blocks contribute is a matrix product, the rest is
//! done in registers. It never inverts a block.

use super::Lowering;
use super::build::Builder;
use super::decay::{Events, add_to_local, maybe_times, scale_local};
use super::elementwise::{Memo, add, times};
use super::index::{Env, Region, exactly, number, plus, scaled, sum, variable};
use super::scope::Scope;
use crate::graph::ir::{DimId, NodeId, Op, Solve};
use crate::tile::ir::{Affine, Expr, LocalId, Matmul, Order, Stmt, Triangle, Update};

/// Values of one block that are kept in registers.
const BLOCK: usize = 16;

/// A system at the ready.
struct System<'s> {
    solve: &'s Solve,
    /// Slots.
    n: usize,
    /// Blocks of the matrix.
    lower: Vec<Option<Region>>,
    scale: Vec<Option<Region>>,
    /// The solution.
    x: Region,
}

impl System<'_> {
    /// Where the solution of a slot at a row lies.
    fn at(&self, slot: usize, row: &Affine, env: &Env) -> crate::tile::ir::Place {
        self.x.place(&env.with(self.solve.slot, number(slot as i64)).with(self.solve.row, row.clone()))
    }
    /// How much slot `q` of row `there` contributes to slot `p` of row `here`, the factors aside.
    fn entry(&self, p: usize, here: &Affine, q: usize, there: &Affine, env: &Env) -> Option<Expr> {
        let (block, row, col) =
            if self.solve.transposed { (q * self.n + p, there, here) } else { (p * self.n + q, here, there) };
        let region = self.lower[block].as_ref()?;
        let env = env.with(self.solve.row, row.clone()).with(self.solve.col, col.clone());
        Some(Expr::Load(region.place(&env)))
    }
    /// The factor of a slot at a row.
    fn factor(&self, slot: usize, row: &Affine, env: &Env) -> Option<Expr> {
        let region = self.scale[slot].as_ref()?;
        Some(Expr::Load(region.place(&env.with(self.solve.row, row.clone()))))
    }
    /// Slots in the order in which a row's are solved.
    fn slots(&self) -> Vec<usize> {
        if self.solve.transposed { (0..self.n).rev().collect() } else { (0..self.n).collect() }
    }
    /// Whether slot `q` comes before slot `p` in a token.
    fn earlier(&self, q: usize, p: usize) -> bool {
        if self.solve.transposed { q > p } else { q < p }
    }
}

impl Lowering<'_> {
    /// Stores an [`Op::Solve`].
    pub fn solve(&mut self, scope: &mut Scope, id: NodeId) {
        let Op::Solve(solve) = &scope.node(id).op else { unreachable!("called for systems") };
        let events = self.events(scope, &solve.gates, true);
        let x = scope.allocate(&mut self.b, id);
        let dims: Vec<DimId> = scope.dims(id).iter().copied().filter(|&d| d != solve.slot).collect();
        for (j, &rhs) in solve.rhs.iter().enumerate() {
            let outer = scope.outer.with(solve.slot, number(j as i64));
            let scope = &*scope;
            self.b.nest(&dims, &outer, &mut |b, env| {
                let value = scope.expr(b, rhs, env, &mut Memo::default());
                b.store(x.place(env), value);
            });
        }
        let system = System {
            solve,
            n: solve.rhs.len(),
            lower: solve.lower.iter().map(|l| l.map(|l| scope.region(l))).collect(),
            scale: solve.scale.iter().map(|s| s.map(|s| scope.region(s))).collect(),
            x,
        };
        let axes: Vec<DimId> = dims.iter().copied().filter(|&d| d != solve.row).collect();
        let batched =
            solve.lower.iter().flatten().any(|&l| scope.dims(l).iter().any(|&d| d != solve.row && d != solve.col));
        if events.len() == 0 && !batched && !axes.is_empty() {
            self.solve_in_blocks(scope, &system, &axes);
        } else {
            self.solve_by_rows(scope, &system, &events, &axes);
        }
    }

    /// A row after another, each the sum over all solved rows; the solved rows are decayed as time goes on.
    fn solve_by_rows(&mut self, scope: &Scope, system: &System, events: &Events, axes: &[DimId]) {
        let solve = system.solve;
        let rows = self.b.size(solve.row);
        let n = events.len();
        let back = solve.transposed;
        // Solved rows as the next row sees them: `slot, row, axes`.
        let mut dims = vec![solve.slot, solve.row];
        dims.extend(axes);
        let seen = self.b.allocate("seen", &dims);
        self.fill(scope, &seen, &dims, 0.0);
        let seen_at = |slot: usize, row: &Affine, env: &Env| {
            seen.place(&env.with(solve.slot, number(slot as i64)).with(solve.row, row.clone()))
        };
        // A clock inside a row's token: its events on the near side of a reader, and on the far side of a writer.
        let near = |slot: usize| if back { solve.writes[slot]..n } else { 0..solve.reads[slot] };
        let far = |slot: usize| if back { 0..solve.reads[slot] } else { solve.writes[slot]..n };
        let (lo, hi) = (exactly(number(0)), exactly(number(rows as i64)));
        self.b.nest(axes, &scope.outer, &mut |b, env| {
            b.for_range("t", lo.clone(), hi.clone(), Order::reversed(back), |b, t| {
                let at = env.with(solve.row, t.clone());
                let solved = |b: &mut Builder, body: &mut dyn FnMut(&mut Builder, &Affine)| {
                    let (lo, hi) = if back { (plus(t, 1), number(rows as i64)) } else { (number(0), t.clone()) };
                    b.for_range("s", exactly(lo), exactly(hi), Order::Forward, |b, s| body(b, s));
                };
                for p in system.slots() {
                    let total = b.local(Expr::Const(0.0));
                    solved(b, &mut |b, s| {
                        for q in 0..system.n {
                            let Some(entry) = system.entry(p, t, q, s, env) else { continue };
                            let value = times(entry, Expr::Load(seen_at(q, s, env)));
                            add_to_local(b, total, value);
                        }
                    });
                    scale_local(b, total, events.product(near(p), &at));
                    for q in (0..system.n).filter(|&q| system.earlier(q, p)) {
                        let Some(entry) = system.entry(p, t, q, t, env) else { continue };
                        let (reader, writer) = if back { (q, p) } else { (p, q) };
                        let (from, to) = (solve.writes[writer], solve.reads[reader]);
                        let mut value = Expr::Load(system.at(q, t, env));
                        if back {
                            value = maybe_times(value, system.factor(q, t, env));
                        }
                        value = maybe_times(value, events.product(from..to.max(from), &at));
                        add_to_local(b, total, times(entry, value));
                    }
                    let own = if back { None } else { system.factor(p, t, env) };
                    let place = system.at(p, t, env);
                    b.store(place.clone(), add(Expr::Load(place), maybe_times(Expr::Local(total), own)));
                }
                if n > 0 {
                    solved(b, &mut |b, s| {
                        for q in 0..system.n {
                            let place = seen_at(q, s, env);
                            let value = maybe_times(Expr::Load(place.clone()), events.product(0..n, &at));
                            b.store(place, value);
                        }
                    });
                }
                for q in 0..system.n {
                    let mut value = Expr::Load(system.at(q, t, env));
                    if back {
                        value = maybe_times(value, system.factor(q, t, env));
                    }
                    b.store(seen_at(q, t, env), maybe_times(value, events.product(far(q), &at)));
                }
            });
        });
        self.b.release(seen.buffer);
    }

    /// Blocks of rows: products with the blocks that are solved, then substitution in registers.
    fn solve_in_blocks(&mut self, scope: &Scope, system: &System, axes: &[DimId]) {
        let solve = system.solve;
        let rows = self.b.size(solve.row);
        let back = solve.transposed;
        let height = (2 * BLOCK / system.n.max(2)).clamp(1, BLOCK).min(rows);
        let scaled_rows = system.scale.iter().any(Option::is_some);
        // With factors, what is multiplied is not what is solved for: the sums (forwards) or the factored solution
        // (transposed) are kept beside it.
        let mut dims = vec![solve.slot, solve.row];
        dims.extend(axes);
        let beside = scaled_rows.then(|| {
            let region = self.b.allocate("beside", &dims);
            self.fill(scope, &region, &dims, 0.0);
            region
        });
        let full = rows / height;
        let rest = rows % height;
        let left_over = (rest > 0).then(|| (number((full * height) as i64), rest));
        let block = |this: &mut Self, start: &Affine, size: usize| {
            this.solve_block(scope, system, axes, beside.as_ref(), start, size, rows);
        };
        if let (Some((start, size)), true) = (&left_over, back) {
            block(self, start, *size);
        }
        if full == 1 {
            block(self, &number(0), height);
        } else if full > 1 {
            let var = self.b.var("block");
            let start = scaled(&variable(var), height as i64);
            let body = self.inside(|this| block(this, &start, height));
            let (lo, hi) = (exactly(number(0)), exactly(number(full as i64)));
            self.b.emit(Stmt::For { var, lo, hi, order: Order::reversed(back), body });
        }
        if let (Some((start, size)), false) = (&left_over, back) {
            block(self, start, *size);
        }
        if let Some(region) = beside {
            self.b.release(region.buffer);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn solve_block(
        &mut self,
        scope: &Scope,
        system: &System,
        axes: &[DimId],
        beside: Option<&Region>,
        start: &Affine,
        height: usize,
        rows: usize,
    ) {
        let solve = system.solve;
        let back = solve.transposed;
        let Some((&last, around)) = axes.split_last() else { return };
        // Where products are added up, and what they multiply.
        let sums = if back { &system.x } else { beside.unwrap_or(&system.x) };
        let solved = if back { beside.unwrap_or(&system.x) } else { &system.x };
        let columns = self.b.size(last);
        let (lo, k) = if back {
            let end = plus(start, height as i64);
            (end.clone(), sum(&number(rows as i64), &scaled(&end, -1)))
        } else {
            (number(0), start.clone())
        };
        self.b.for_dims(around, Order::Any, &scope.outer, &mut |b, env| {
            for p in 0..system.n {
                for q in 0..system.n {
                    let block = if back { q * system.n + p } else { p * system.n + q };
                    let Some(l) = &system.lower[block] else { continue };
                    let pl = b.pitch(l.buffer);
                    let (here, there) = if back { (solve.col, solve.row) } else { (solve.row, solve.col) };
                    let at = env.with(here, start.clone()).with(there, lo.clone());
                    let a = l.matrix(&at, pl, l.stride(here, pl), l.stride(there, pl));
                    let view = |b: &Builder, region: &Region, slot: usize, row: &Affine| {
                        let pitch = b.pitch(region.buffer);
                        let env = env.with(solve.slot, number(slot as i64)).with(solve.row, row.clone());
                        region.matrix(&env, pitch, region.stride(solve.row, pitch), 1)
                    };
                    let (dst, right) = (view(b, sums, p, start), view(b, solved, q, &lo));
                    b.emit(Stmt::Matmul(Matmul {
                        dst,
                        a,
                        b: right,
                        m: height,
                        n: columns,
                        k: k.clone(),
                        update: Update::Add,
                        triangle: Triangle::Full,
                        exact: true,
                    }));
                }
            }
        });
        self.b.nest(axes, &scope.outer, &mut |b, env| {
            let row = |t: usize| plus(start, t as i64);
            let place = |region: &Region, slot: usize, t: usize| {
                region.place(&env.with(solve.slot, number(slot as i64)).with(solve.row, row(t)))
            };
            let held: Vec<Vec<LocalId>> =
                (0..system.n).map(|p| (0..height).map(|t| b.local(Expr::Load(place(sums, p, t)))).collect()).collect();
            let mut solution = Vec::new();
            let order: Vec<usize> = if back { (0..height).rev().collect() } else { (0..height).collect() };
            for (rank, &t) in order.iter().enumerate() {
                for p in system.slots() {
                    let own = held[p][t];
                    let factor = system.factor(p, &row(t), env);
                    // Forwards, the sum becomes a solution; transposed, the solution is factored for those to come.
                    let value = match (&factor, back) {
                        (Some(f), false) => {
                            let sum = times(Expr::Local(own), f.clone());
                            let value = add(Expr::Load(place(&system.x, p, t)), sum);
                            b.emit(Stmt::Assign { local: own, value });
                            own
                        }
                        (None, false) if beside.is_some() => {
                            let value = add(Expr::Load(place(&system.x, p, t)), Expr::Local(own));
                            b.emit(Stmt::Assign { local: own, value });
                            own
                        }
                        (Some(f), true) => b.local(times(Expr::Local(own), f.clone())),
                        (None, _) => own,
                    };
                    // Stored at the end: until then nothing stands in the way of reading the matrix ahead.
                    solution.push((place(&system.x, p, t), own));
                    if let (Some(beside), true) = (beside, back) {
                        solution.push((place(beside, p, t), value));
                    }
                    let same = system.slots().into_iter().filter(|&q| system.earlier(p, q)).map(|q| (q, t));
                    let later = order[rank + 1..].iter().flat_map(|&u| (0..system.n).map(move |q| (q, u)));
                    let targets: Vec<(usize, usize)> = same.chain(later).collect();
                    for (q, u) in targets {
                        let Some(entry) = system.entry(q, &row(u), p, &row(t), env) else { continue };
                        add_to_local(b, held[q][u], times(entry, Expr::Local(value)));
                    }
                }
            }
            for (place, local) in solution {
                b.store(place, Expr::Local(local));
            }
        });
    }
}
