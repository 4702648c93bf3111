//! Affine indices and regions. In: loop variables and the dimensions of a value. Out: places and views of the tile
//! program. It never emits a statement and never asks what a value means.

use crate::graph::ir::DimId;
use crate::tile::ir::{Affine, BufferId, Index, Memory, Place, VarId, View};

/// A constant.
pub fn number(constant: i64) -> Affine {
    Affine { constant, ..Affine::default() }
}

/// A loop variable.
pub fn variable(var: VarId) -> Affine {
    Affine { vars: vec![(var, 1)], ..Affine::default() }
}

/// `a + b`.
pub fn sum(a: &Affine, b: &Affine) -> Affine {
    fn merge<T: Copy + PartialEq>(into: &mut Vec<(T, i64)>, from: &[(T, i64)]) {
        for &(term, n) in from {
            match into.iter_mut().find(|(t, _)| *t == term) {
                Some((_, m)) => *m += n,
                None => into.push((term, n)),
            }
        }
        into.retain(|&(_, n)| n != 0);
    }
    let mut total = a.clone();
    total.constant += b.constant;
    merge(&mut total.vars, &b.vars);
    merge(&mut total.symbols, &b.symbols);
    total
}

/// `n · a`.
pub fn scaled(a: &Affine, n: i64) -> Affine {
    if n == 0 {
        return number(0);
    }
    Affine {
        constant: a.constant * n,
        vars: a.vars.iter().map(|&(v, m)| (v, m * n)).collect(),
        symbols: a.symbols.iter().map(|&(s, m)| (s, m * n)).collect(),
    }
}

/// `a + n`.
pub fn plus(a: &Affine, n: i64) -> Affine {
    let mut total = a.clone();
    total.constant += n;
    total
}

/// The coefficient of a variable.
pub fn coefficient(a: &Affine, var: VarId) -> i64 {
    a.vars.iter().find(|(v, _)| *v == var).map_or(0, |&(_, n)| n)
}

/// An index without an upper limit.
pub fn exactly(value: Affine) -> Index {
    Index { value, at_most: None }
}

/// Where each dimension of a nest stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Env(pub Vec<(DimId, Affine)>);

impl Env {
    /// The position along a dimension.
    pub fn at(&self, dim: DimId) -> Affine {
        let found = self.0.iter().rev().find(|(d, _)| *d == dim);
        found.map(|(_, a)| a.clone()).expect("a value is read only inside loops over its dimensions")
    }
    /// The same with one dimension bound (again).
    pub fn with(&self, dim: DimId, at: Affine) -> Env {
        let mut env = self.clone();
        env.0.retain(|(d, _)| *d != dim);
        env.0.push((dim, at));
        env
    }
    /// Binds a dimension in place.
    pub fn bind(&mut self, dim: DimId, at: Affine) {
        self.0.retain(|(d, _)| *d != dim);
        self.0.push((dim, at));
    }
}

/// How far one position along a dimension is, in the two indices of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The dimension.
    pub dim: DimId,
    /// Buffer rows.
    pub row: i64,
    /// Buffer columns.
    pub col: i64,
}

/// A value in scratch. Every buffer has two dimensions here, rows and columns: the columns hold the value's last
/// dimension, the rows all others, so that dimensions can be split, merged, renamed and indexed without a copy.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// The buffer.
    pub buffer: BufferId,
    /// Row of the first element.
    pub row: Affine,
    /// Column of the first element.
    pub col: Affine,
    /// One for each dimension that moves; a dimension that is not named does not move.
    pub steps: Vec<Step>,
}

impl Region {
    /// The step of a dimension.
    pub fn step(&self, dim: DimId) -> Step {
        self.steps.iter().copied().find(|s| s.dim == dim).unwrap_or(Step { dim, row: 0, col: 0 })
    }
    /// The element at a position.
    pub fn place(&self, env: &Env) -> Place {
        let (mut row, mut col) = (self.row.clone(), self.col.clone());
        for step in &self.steps {
            let at = env.at(step.dim);
            row = sum(&row, &scaled(&at, step.row));
            col = sum(&col, &scaled(&at, step.col));
        }
        Place { memory: Memory::Buffer(self.buffer), indices: vec![exactly(row), exactly(col)] }
    }
    /// The part at one position of a dimension, which disappears.
    pub fn indexed(&self, dim: DimId, at: &Affine) -> Region {
        let step = self.step(dim);
        Region {
            buffer: self.buffer,
            row: sum(&self.row, &scaled(at, step.row)),
            col: sum(&self.col, &scaled(at, step.col)),
            steps: self.steps.iter().copied().filter(|s| s.dim != dim).collect(),
        }
    }
    /// With a dimension called otherwise.
    pub fn renamed(&self, from: DimId, to: DimId) -> Region {
        let mut region = self.clone();
        for step in &mut region.steps {
            if step.dim == from {
                step.dim = to;
            }
        }
        region
    }
    /// With the diagonal of two dimensions under the name of the first.
    pub fn diagonal(&self, row: DimId, col: DimId) -> Region {
        let (a, b) = (self.step(row), self.step(col));
        let mut steps: Vec<Step> = self.steps.iter().copied().filter(|s| s.dim != row && s.dim != col).collect();
        steps.push(Step { dim: row, row: a.row + b.row, col: a.col + b.col });
        Region { steps, ..self.clone() }
    }
    /// With a dimension as two, the inner of the given size.
    pub fn split(&self, one: DimId, outer: DimId, inner: DimId, size: usize) -> Region {
        let step = self.step(one);
        let mut steps: Vec<Step> = self.steps.iter().copied().filter(|s| s.dim != one).collect();
        steps.push(Step { dim: outer, row: step.row * size as i64, col: step.col * size as i64 });
        steps.push(Step { dim: inner, row: step.row, col: step.col });
        Region { steps, ..self.clone() }
    }
    /// With two dimensions as one, where they lie one after the other.
    pub fn merged(&self, outer: DimId, inner: DimId, size: usize, one: DimId) -> Option<Region> {
        let (a, b) = (self.step(outer), self.step(inner));
        if a.row != b.row * size as i64 || a.col != b.col * size as i64 {
            return None;
        }
        let mut steps: Vec<Step> = self.steps.iter().copied().filter(|s| s.dim != outer && s.dim != inner).collect();
        steps.push(Step { dim: one, row: b.row, col: b.col });
        Some(Region { steps, ..self.clone() })
    }
    /// Elements from one position of a dimension to the next.
    pub fn stride(&self, dim: DimId, pitch: usize) -> i64 {
        let step = self.step(dim);
        step.row * pitch as i64 + step.col
    }
    /// Element offset of a position; dimensions that `env` does not name stay at their start.
    pub fn offset(&self, env: &Env, pitch: usize) -> Affine {
        let mut offset = sum(&scaled(&self.row, pitch as i64), &self.col);
        for step in &self.steps {
            if let Some((_, at)) = env.0.iter().find(|(d, _)| *d == step.dim) {
                offset = sum(&offset, &scaled(at, step.row * pitch as i64 + step.col));
            }
        }
        offset
    }
    /// The matrix of two strides that starts at a position.
    pub fn matrix(&self, env: &Env, pitch: usize, row_stride: i64, col_stride: i64) -> View {
        View {
            buffer: self.buffer,
            offset: self.offset(env, pitch),
            row_stride: row_stride.max(0) as usize,
            col_stride: col_stride.max(0) as usize,
        }
    }
}
