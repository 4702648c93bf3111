//! Tensors of the caller. In: inputs, outputs, saves and carries of a graph. Out: arguments, and the loops between them
//! and scratch. It never computes.

use super::Lowering;
use super::elementwise::{Memo, last_real_row};
use super::index::{Env, Region, exactly, number, plus, scaled, sum, variable};
use super::scope::{Position, Scope};
use crate::graph::ir::{DimId, InputKind, NodeId};
use crate::tile::ir::{Affine, Arg, ArgId, Expr, Index, Memory, Order, Place, Symbol};
use chunkwise_abi::{Access, DType, Role};

/// `T`.
pub fn length() -> Affine {
    Affine { symbols: vec![(Symbol::Length, 1)], ..Affine::default() }
}

/// Number of real rows of the step, as a bound.
pub fn real_rows(position: Position) -> Index {
    let rest = sum(&length(), &scaled(&position.first(), -1));
    Index { value: rest, at_most: Some(number(position.tokens as i64)) }
}

impl Lowering<'_> {
    /// Declares an argument.
    pub fn argument(&mut self, name: &str, dtype: DType, role: Role, layout: &[DimId], access: Access) -> ArgId {
        let inner = layout.iter().map(|&d| self.b.size(d)).collect();
        self.b.args.push(Arg { name: name.to_string(), dtype, role, inner, access });
        ArgId(self.b.args.len() as u32 - 1)
    }

    /// Copies a tensor without a leading index, or with a given one, to scratch.
    pub fn load(
        &mut self,
        arg: ArgId,
        leading: Option<&Index>,
        layout: &[DimId],
        dims: &[DimId],
        into: &Region,
        env: &Env,
    ) {
        self.b.nest(dims, env, &mut |b, env| {
            b.store(into.place(env), Expr::Load(element(arg, leading, layout, env)));
        });
    }

    /// Copies scratch to a tensor.
    pub fn save(
        &mut self,
        arg: ArgId,
        leading: Option<&Index>,
        layout: &[DimId],
        dims: &[DimId],
        from: &Region,
        env: &Env,
    ) {
        self.b.nest(dims, env, &mut |b, env| {
            b.store(element(arg, leading, layout, env), Expr::Load(from.place(env)));
        });
    }

    /// Brings an input of the step to scratch.
    pub fn input(&mut self, scope: &mut Scope, id: NodeId, name: &str, kind: InputKind, layout: &[DimId]) {
        let options = self.options;
        let (dtype, role) = match kind {
            InputKind::Token | InputKind::Cotangent => (options.dtype_tokens, Role::Token),
            InputKind::Head => (options.dtype_heads, Role::Head),
            InputKind::Saved => (options.dtype_saved, Role::Chunk(scope.graph.tokens)),
            // Settled before the loop over the steps.
            InputKind::Carry => return,
        };
        let arg = self.argument(name, dtype, role, layout, Access::Read);
        let region = scope.allocate(&mut self.b, id);
        let dims = scope.dims(id).to_vec();
        let outer = scope.outer.clone();
        let Some(position) = scope.position else {
            return self.load(arg, None, layout, &dims, &region, &outer);
        };
        let time = match kind {
            InputKind::Token | InputKind::Cotangent => scope.graph.time.filter(|t| dims.contains(t)),
            InputKind::Head => return self.load(arg, None, layout, &dims, &region, &outer),
            InputKind::Saved | InputKind::Carry => None,
        };
        let Some(time) = time else {
            let step = exactly(variable(position.step));
            return self.load(arg, Some(&step), layout, &dims, &region, &outer);
        };
        let axes: Vec<DimId> = dims.iter().copied().filter(|&d| d != time).collect();
        let (rows, tokens) = (scope.graph.rows(), position.tokens);
        let zero = exactly(number(0));
        if kind == InputKind::Cotangent {
            self.rows("i", zero, real_rows(position), |this, i| {
                let token = exactly(sum(&position.first(), i));
                this.load(arg, Some(&token), layout, &axes, &region, &outer.with(time, i.clone()));
            });
            self.rows("i", real_rows(position), exactly(number(rows as i64)), |this, i| {
                this.fill_at(&region, &axes, &outer.with(time, i.clone()), 0.0);
            });
            return;
        }
        let last = plus(&length(), -1);
        self.rows("i", zero, exactly(number(tokens.min(rows) as i64)), |this, i| {
            let token = Index { value: sum(&position.first(), i), at_most: Some(last.clone()) };
            this.load(arg, Some(&token), layout, &axes, &region, &outer.with(time, i.clone()));
        });
        if rows > tokens {
            self.rows("i", exactly(number(tokens as i64)), exactly(number(rows as i64)), |this, i| {
                let value = plus(&position.first(), tokens as i64 - 1);
                let token = Index { value, at_most: Some(last.clone()) };
                this.load(arg, Some(&token), layout, &axes, &region, &outer.with(time, i.clone()));
            });
        }
    }

    /// Writes a per-token result of the step.
    pub fn output(&mut self, scope: &mut Scope, id: NodeId, name: &str, layout: &[DimId]) {
        let arg = self.argument(name, self.options.dtype_tokens, Role::Token, layout, Access::Write);
        let Some(position) = scope.position else { return };
        let dims = scope.dims(id).to_vec();
        let outer = scope.outer.clone();
        let axes: Vec<DimId> = dims.iter().copied().filter(|&d| Some(d) != scope.graph.time).collect();
        let scope = &*scope;
        let write = |this: &mut Self, token: &Index, env: &Env| {
            this.b.nest(&axes, env, &mut |b, env| {
                let value = scope.expr(b, id, env, &mut Memo::default());
                b.store(element(arg, Some(token), layout, env), value);
            });
        };
        match scope.graph.time {
            Some(time) => self.rows("i", exactly(number(0)), real_rows(position), |this, i| {
                write(this, &exactly(sum(&position.first(), i)), &outer.with(time, i.clone()));
            }),
            None => write(self, &exactly(variable(position.step)), &outer),
        }
    }

    /// Writes a value kept for the backward.
    pub fn keep(&mut self, scope: &mut Scope, id: NodeId, name: &str) {
        let dims = scope.dims(id).to_vec();
        let arg = self.argument(name, self.options.dtype_saved, Role::Chunk(scope.graph.tokens), &dims, Access::Write);
        let Some(position) = scope.position else { return };
        let step = exactly(variable(position.step));
        let scope = &*scope;
        self.b.nest(&dims, &scope.outer, &mut |b, env| {
            let value = scope.expr(b, id, env, &mut Memo::default());
            b.store(element(arg, Some(&step), &dims, env), value);
        });
    }

    /// A loop over rows that have nothing to do with each other, whose body emits through the whole lowering.
    pub fn rows(&mut self, name: &str, lo: Index, hi: Index, body: impl FnOnce(&mut Self, &Affine)) {
        self.rows_in_order(name, lo, hi, Order::Any, body);
    }

    /// As [`Self::rows`], in a given order.
    pub fn rows_in_order(
        &mut self,
        name: &str,
        lo: Index,
        hi: Index,
        order: Order,
        body: impl FnOnce(&mut Self, &Affine),
    ) {
        let var = self.b.var(name);
        let body = self.inside(|this| body(this, &variable(var)));
        if !body.is_empty() {
            self.b.emit(crate::tile::ir::Stmt::For { var, lo, hi, order, body });
        }
    }

    /// Sets every element at a position to a number.
    pub fn fill_at(&mut self, region: &Region, dims: &[DimId], env: &Env, number: f64) {
        self.b.nest(dims, env, &mut |b, env| b.store(region.place(env), Expr::Const(number)));
    }

    /// The last real row, as an index.
    pub fn last_row(&self, position: Position) -> Index {
        last_real_row(position)
    }
}

/// An element of a tensor.
fn element(arg: ArgId, leading: Option<&Index>, layout: &[DimId], env: &Env) -> Place {
    let inner = layout.iter().map(|&d| exactly(env.at(d)));
    Place { memory: Memory::Arg(arg), indices: leading.cloned().into_iter().chain(inner).collect() }
}
