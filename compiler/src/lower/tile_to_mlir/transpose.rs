//! Transposition: two nested loops that copy `dst[a, b] = src[b, a]` inside scratch, done in square blocks of registers.
//!
//! Comes in: a loop, of which it finds out whether it is one. Goes out: a call of `@transpose`, and its text. Loops it
//! does not take are lowered as they stand, with the same result.
//!
//! `@transpose(dst, dst_row, src, src_row, rows, columns)`: rows and columns of `dst`, whole blocks.

use super::Vectors;
use super::kernel::Lowering;
use super::writer::{Elem, Ty, Val, Writer};
use crate::tile::ir::{Expr, Index, Memory, Place, Stmt, VarId};

const TYPES: [Ty; 6] = [Ty::PTR, Ty::I64, Ty::PTR, Ty::I64, Ty::I64, Ty::I64];

impl Lowering<'_> {
    /// Lowers a loop that is a transposition; false if it is none.
    pub(super) fn transposes(&mut self, outer: VarId, lo: &Index, hi: &Index, body: &[Stmt]) -> bool {
        let [Stmt::For { var: inner, lo: inner_lo, hi: inner_hi, order: _, body }] = body else { return false };
        let [Stmt::Store { place: dst, value: Expr::Load(src) }] = body.as_slice() else { return false };
        let (Some(outer_extent), Some(inner_extent)) = (whole(lo, hi), whole(inner_lo, inner_hi)) else { return false };
        let block = i64::try_from(self.vectors.lanes).expect("a vector is short");
        if self.group.is_some() || dst.memory == src.memory || outer_extent % block != 0 || inner_extent % block != 0 {
            return false;
        }
        let steps = |place| Some((self.step(place, outer)?, self.step(place, *inner)?));
        let (Some(to), Some(from)) = (steps(dst), steps(src)) else { return false };
        // Rows of the destination are the loop that moves by rows there.
        let (rows, columns, dst_row, src_row) = match (to, from) {
            ((dst_row, 1), (1, src_row)) => (outer_extent, inner_extent, dst_row, src_row),
            ((1, dst_row), (src_row, 1)) => (inner_extent, outer_extent, dst_row, src_row),
            _ => return false,
        };
        let zero = self.w.i64(0);
        self.vars.insert(outer, zero);
        self.vars.insert(*inner, zero);
        let (dst, src) = (self.address(dst), self.address(src));
        let numbers = [dst_row, src_row, rows, columns].map(|n| self.w.i64(n));
        let operands = [dst, numbers[0], src, numbers[1], numbers[2], numbers[3]];
        let names: Vec<String> = operands.iter().map(Val::to_string).collect();
        let types: Vec<String> = TYPES.iter().map(Ty::to_string).collect();
        self.functions.needs_transpose = true;
        self.w.raw(format_args!("llvm.call @transpose({}) : ({}) -> ()", names.join(", "), types.join(", ")));
        true
    }

    /// Elements a place of scratch moves when a variable grows by one; nothing if that is not a fixed number.
    fn step(&self, place: &Place, var: VarId) -> Option<i64> {
        let Memory::Buffer(buffer) = place.memory else { return None };
        let strides = self.kernel.buffers[buffer.0 as usize].strides();
        let mut step = 0;
        for (index, stride) in place.indices.iter().zip(strides) {
            if index.at_most.is_some() {
                return None;
            }
            let coefficient = index.value.vars.iter().find(|(v, _)| *v == var).map_or(0, |(_, c)| *c);
            step += coefficient * i64::try_from(stride).ok()?;
        }
        Some(step)
    }
}

/// The extent of a loop from 0 to a fixed number.
fn whole(lo: &Index, hi: &Index) -> Option<i64> {
    let fixed = |index: &Index| {
        let plain = index.at_most.is_none() && index.value.vars.is_empty() && index.value.symbols.is_empty();
        plain.then_some(index.value.constant)
    };
    (fixed(lo)? == 0).then_some(fixed(hi)?)
}

/// The text of `@transpose`.
pub(super) fn define(vectors: &Vectors) -> String {
    let lanes = vectors.lanes;
    let ty = Ty::f32s(lanes);
    let width = i64::try_from(lanes).expect("a vector is short");
    let mut w = Writer::new(TYPES.len());
    let p: Vec<Val> = (0..TYPES.len()).map(|n| w.param(n)).collect();
    let (dst, dst_row, src, src_row, rows, columns) = (p[0], p[1], p[2], p[3], p[4], p[5]);
    let zero = w.i64(0);
    let r = w.open_for(zero, rows, width);
    let c = w.open_for(zero, columns, width);
    let corner = |w: &mut Writer, base: Val, row: Val, stride: Val, column: Val| {
        let before = w.op("mul", row, stride, Ty::I64);
        let offset = w.op("add", before, column, Ty::I64);
        w.element(base, offset, Elem::F32)
    };
    let from = corner(&mut w, src, c, src_row, r);
    let to = corner(&mut w, dst, r, dst_row, c);
    let row = |w: &mut Writer, base: Val, stride: Val, n: usize| {
        let n = w.i64(i64::try_from(n).expect("a block is small"));
        let offset = w.op("mul", stride, n, Ty::I64);
        w.element(base, offset, Elem::F32)
    };
    let mut block: Vec<Val> = (0..lanes)
        .map(|n| {
            let at = row(&mut w, from, src_row, n);
            w.load(at, ty, "")
        })
        .collect();
    // Squares of twice the size at every stage: swap what stands off the diagonal.
    let mut half = 1;
    while half < lanes {
        for n in (0..lanes).filter(|n| n & half == 0) {
            let (low, high) = (block[n], block[n + half]);
            let upper = |l: usize| if l & half == 0 { l } else { lanes + l - half };
            let lower = |l: usize| if l & half == 0 { l + half } else { lanes + l };
            block[n] = w.shuffle(low, high, (0..lanes).map(upper), ty);
            block[n + half] = w.shuffle(low, high, (0..lanes).map(lower), ty);
        }
        half *= 2;
    }
    for (n, vector) in block.into_iter().enumerate() {
        let at = row(&mut w, to, dst_row, n);
        w.store(vector, at, ty, "");
    }
    w.end();
    w.end();
    let parameters: Vec<String> = TYPES.iter().enumerate().map(|(n, ty)| format!("%{n}: {ty}")).collect();
    w.finish(&format!("llvm.func internal @transpose({}) attributes {{no_unwind, no_inline}}", parameters.join(", ")))
}
