//! The product of matrices: one function for every product of a module, blocked in registers.
//!
//! Comes in: how wide vectors are. Goes out: `@matmul` and what it calls. The result is cut into strips of two vectors
//! of columns (the last may be one), a strip into blocks of rows; a block's sums stay in registers over the whole
//! contraction. One row of `b` is loaded for every term, elements of `a` are broadcast from memory. Triangles shorten
//! the contraction of a block, or leave the block out.
//!
//! `@matmul(dst, dst_row, a, a_row, a_col, b, b_row, m, n, k, update, triangle, requests, factor)`, strides in elements.

use super::Vectors;
use super::writer::{Elem, Ty, Val, Writer};

pub(super) const SET: i64 = 0;
pub(super) const ADD: i64 = 1;
pub(super) const SUBTRACT: i64 = 2;
/// What is there, times the factor, and the product added.
pub(super) const SCALE: i64 = 3;
pub(super) const FULL: i64 = 0;
pub(super) const LOWER_RESULT: i64 = 1;
pub(super) const LOWER_LEFT: i64 = 2;
pub(super) const UPPER_LEFT: i64 = 3;

/// Rows whose elements of `a` are found from one address.
const SHARED: usize = 8;

const MATMUL_TYPES: [Ty; 14] = {
    let (p, i) = (Ty::PTR, Ty::I64);
    [p, i, p, i, i, p, i, i, i, i, i, i, p, Ty::F32]
};

/// The call of `@matmul`.
pub(super) fn call(operands: &[Val; 14]) -> String {
    call_of("matmul", operands, &MATMUL_TYPES)
}

fn call_of(name: &str, operands: &[Val], types: &[Ty]) -> String {
    let names: Vec<String> = operands.iter().map(Val::to_string).collect();
    let types: Vec<String> = types.iter().map(Ty::to_string).collect();
    format!("llvm.call @{name}({}) : ({}) -> ()", names.join(", "), types.join(", "))
}

fn signature(name: &str, types: &[Ty], attributes: &str) -> String {
    let parameters: Vec<String> = types.iter().enumerate().map(|(n, ty)| format!("%{n}: {ty}")).collect();
    format!("llvm.func internal @{name}({}) attributes {{no_unwind, {attributes}}}", parameters.join(", "))
}

/// Rows of the blocks of a strip, largest first; the last is 1.
fn block_rows(vectors: &Vectors, strip: usize) -> &'static [usize] {
    match (vectors.lanes, strip) {
        (16, 2) => &[12, 8, 4, 1],
        (16, _) => &[16, 4, 1],
        (_, 2) => &[6, 2, 1],
        (_, _) => &[8, 2, 1],
    }
}

/// The text of `@matmul` and what it calls.
pub(super) fn define(vectors: &Vectors) -> String {
    let mut text = driver(vectors);
    for strip in [2, 1] {
        text.push_str(&strip_function(vectors, strip));
    }
    text
}

/// Cuts columns into strips.
fn driver(vectors: &Vectors) -> String {
    let mut w = Writer::new(MATMUL_TYPES.len());
    let p: Vec<Val> = (0..MATMUL_TYPES.len()).map(|n| w.param(n)).collect();
    let (dst, b, m, n, triangle) = (p[0], p[5], p[7], p[8], p[11]);
    let width = i64::try_from(vectors.lanes).expect("a vector is short");
    let zero = w.i64(0);
    let j = w.open_for(zero, n, 2 * width);
    let left = w.op("sub", n, j, Ty::I64);
    let strip_dst = w.element(dst, j, Elem::F32);
    let strip_b = w.element(b, j, Elem::F32);
    let lower_result = w.i64(LOWER_RESULT);
    let lower = w.icmp("eq", triangle, lower_result, Ty::I64);
    // A result whose upper part does not matter starts on the diagonal, with one vector for as many rows.
    let first = w.select(lower, j, zero, Ty::I64);
    let one_vector = w.i64(width);
    let wide = w.icmp("sgt", left, one_vector, Ty::I64);
    let diagonal_end = w.op("add", j, one_vector, Ty::I64);
    let diagonal_end = w.intrinsic("smin", &[diagonal_end, m], Ty::I64);
    let wide_first = w.select(lower, diagonal_end, zero, Ty::I64);
    let narrow_end = w.select(wide, wide_first, m, Ty::I64);
    let both = w.i64(2 * width);
    let wide_columns = w.intrinsic("smin", &[left, both], Ty::I64);
    let narrow_columns = w.intrinsic("smin", &[left, one_vector], Ty::I64);
    let strip = |w: &mut Writer, strip: usize, columns: Val, from: Val, to: Val| {
        let operands =
            [strip_dst, p[1], p[2], p[3], p[4], strip_b, p[6], columns, from, to, p[9], p[10], p[11], p[12], p[13]];
        w.raw(format_args!("{}", call_of(&format!("strip_{strip}"), &operands, &STRIP_TYPES)));
    };
    let some = w.icmp("slt", first, narrow_end, Ty::I64);
    w.open_if(some);
    strip(&mut w, 1, narrow_columns, first, narrow_end);
    w.end();
    w.open_if(wide);
    strip(&mut w, 2, wide_columns, wide_first, m);
    w.end();
    w.end();
    w.finish(&signature("matmul", &MATMUL_TYPES, "no_inline"))
}

/// `(dst, dst_row, a, a_row, a_col, b, b_row, columns, from, to, k, update, triangle, requests, factor)`
const STRIP_TYPES: [Ty; 15] = {
    let (p, i) = (Ty::PTR, Ty::I64);
    [p, i, p, i, i, p, i, i, i, i, i, i, i, p, Ty::F32]
};

/// Cuts the rows of a strip into blocks.
fn strip_function(vectors: &Vectors, strip: usize) -> String {
    let mut w = Writer::new(STRIP_TYPES.len());
    let p: Vec<Val> = (0..STRIP_TYPES.len()).map(|n| w.param(n)).collect();
    let (from, to) = (p[8], p[9]);
    let mut start = from;
    for &rows in block_rows(vectors, strip) {
        let height = i64::try_from(rows).expect("a block is small");
        let end = if rows == 1 {
            to
        } else {
            let size = w.i64(height);
            let left = w.op("sub", to, start, Ty::I64);
            let rest = w.op("srem", left, size, Ty::I64);
            w.op("sub", to, rest, Ty::I64)
        };
        let i = w.open_for(start, end, height);
        block(&mut w, vectors, strip, rows, i, &p);
        w.end();
        start = end;
    }
    w.finish(&signature(&format!("strip_{strip}"), &STRIP_TYPES, "no_inline"))
}

/// One block: `rows` rows from `i`, `strip` vectors of columns.
fn block(w: &mut Writer, vectors: &Vectors, strip: usize, rows: usize, i: Val, p: &[Val]) {
    let lanes = vectors.lanes;
    let ty = Ty::f32s(lanes);
    let width = i64::try_from(lanes).expect("a vector is short");
    let (dst, dst_row, a, a_row, a_col, b, b_row, columns) = (p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]);
    let (k, update, triangle) = (p[10], p[11], p[12]);
    let zero = w.i64(0);
    super::requests::issue(w, p[13], k);

    // The terms that matter: up to the last row, or from the first.
    let height = w.i64(i64::try_from(rows).expect("a block is small"));
    let below = w.op("add", i, height, Ty::I64);
    let (lower_left, upper_left) = (w.i64(LOWER_LEFT), w.i64(UPPER_LEFT));
    let lower = w.icmp("eq", triangle, lower_left, Ty::I64);
    let shorter = w.intrinsic("smin", &[k, below], Ty::I64);
    let end = w.select(lower, shorter, k, Ty::I64);
    let upper = w.icmp("eq", triangle, upper_left, Ty::I64);
    let begin = w.select(upper, i, zero, Ty::I64);

    // Addresses of the rows of `a` at the first term.
    let rows_before = w.op("mul", i, a_row, Ty::I64);
    let columns_before = w.op("mul", begin, a_col, Ty::I64);
    let a_offset = w.op("add", rows_before, columns_before, Ty::I64);
    let a_first = w.element(a, a_offset, Elem::F32);
    let b_offset = w.op("mul", begin, b_row, Ty::I64);
    let b_first = w.element(b, b_offset, Elem::F32);
    // Eight rows share an advancing address; left to itself LLVM advances one for each row, and those additions take
    // the ports of the multiplications.
    let offsets: Vec<Val> = (0..rows.min(SHARED))
        .map(|r| {
            let bytes = w.i64(4 * i64::try_from(r).expect("a block is small"));
            w.op("mul", a_row, bytes, Ty::I64)
        })
        .collect();
    let four = w.i64(4);
    let a_col_bytes = w.op("mul", a_col, four, Ty::I64);
    let b_row_bytes = w.op("mul", b_row, four, Ty::I64);
    let groups = rows.div_ceil(SHARED);
    let none = w.f32(0.0, lanes);
    let mut carried = vec![(none, ty); rows * strip];
    for group in 0..groups {
        let row = w.i64(i64::try_from(SHARED * group).expect("a block is small"));
        let offset = w.op("mul", a_row, row, Ty::I64);
        carried.push((w.element(a_first, offset, Elem::F32), Ty::PTR));
    }
    carried.push((b_first, Ty::PTR));
    let turn = w.open_for_carrying(begin, end, 1, &carried);
    let b_here = turn.values[rows * strip + groups];
    let b_vectors: Vec<Val> = (0..strip)
        .map(|v| {
            let at = w.element_at(b_here, i64::try_from(v).expect("two vectors") * width, Elem::F32);
            w.load(at, ty, "")
        })
        .collect();
    let mut next = Vec::with_capacity(carried.len());
    let mut a_next = Vec::with_capacity(groups);
    for group in 0..groups {
        let a_here = w.opaque(turn.values[rows * strip + group]);
        for r in SHARED * group..rows.min(SHARED * group + SHARED) {
            let at = if r == SHARED * group { a_here } else { w.byte(a_here, offsets[r % SHARED]) };
            let number = w.load(at, Ty::F32, "");
            let factor = w.broadcast(number, Elem::F32, lanes);
            for (v, b_vector) in b_vectors.iter().enumerate() {
                next.push(w.intrinsic("fmuladd", &[factor, *b_vector, turn.values[r * strip + v]], ty));
            }
        }
        a_next.push(w.byte(a_here, a_col_bytes));
    }
    next.extend(a_next);
    next.push(w.byte(b_here, b_row_bytes));
    let mut sums = w.end_carried(&turn, &next);
    sums.truncate(rows * strip);

    // The last vector may reach past the columns of the result.
    let before_last = w.i64(i64::try_from(strip - 1).expect("two vectors") * width);
    let in_last = w.op("sub", columns, before_last, Ty::I64);
    let in_last = w.cast("trunc", in_last, Ty::I64, Ty::I32);
    let limit = w.broadcast(in_last, Elem::I32, lanes);
    let ramp = w.ramp(lanes, 1);
    let mask = w.icmp("slt", ramp, limit, Ty { elem: Elem::I32, lanes });
    let dst_offset = w.op("mul", i, dst_row, Ty::I64);
    let dst_first = w.element(dst, dst_offset, Elem::F32);
    // One way for all updates: old·keep ± sum, where what is not kept is not read as a number at all.
    let (set, subtract) = (w.i64(SET), w.i64(SUBTRACT));
    let keeps = w.icmp("ne", update, set, Ty::I64);
    let keep = w.broadcast(keeps, Elem::I1, lanes);
    let subtracts = w.icmp("eq", update, subtract, Ty::I64);
    let (plus, minus) = (w.f32(1.0, 0), w.f32(-1.0, 0));
    let sign = w.select(subtracts, minus, plus, Ty::F32);
    let sign = w.broadcast(sign, Elem::F32, lanes);
    let settled = Settled { dst_first, dst_row, strip, width, ty, mask, keep, sign };
    let scale = w.i64(SCALE);
    let scales = w.icmp("eq", update, scale, Ty::I64);
    w.open_if(scales);
    let factor = w.broadcast(p[14], Elem::F32, lanes);
    settle(w, vectors, &settled, &sums, Some(factor));
    w.open_else();
    settle(w, vectors, &settled, &sums, None);
    w.end();
}

/// Where the sums of a block go and how.
struct Settled {
    dst_first: Val,
    dst_row: Val,
    strip: usize,
    width: i64,
    ty: Ty,
    /// Lanes of the last vector that are columns.
    mask: Val,
    /// Whether what is there matters.
    keep: Val,
    /// 1 or −1, in every lane.
    sign: Val,
}

/// Writes the sums of a block: (what is there, times the factor if there is one) ± sum.
fn settle(w: &mut Writer, vectors: &Vectors, to: &Settled, sums: &[Val], factor: Option<Val>) {
    let Settled { dst_first, dst_row, strip, width, ty, mask, keep, sign } = *to;
    let zeros = w.f32(0.0, vectors.lanes);
    let scaled = |w: &mut Writer, old: Val| factor.map_or(old, |factor| w.op("fmul", old, factor, ty));
    for (n, sum) in sums.iter().enumerate() {
        let row = w.i64(i64::try_from(n / strip).expect("a block is small"));
        let offset = w.op("mul", dst_row, row, Ty::I64);
        let at = w.element(dst_first, offset, Elem::F32);
        let at = w.element_at(at, i64::try_from(n % strip).expect("two vectors") * width, Elem::F32);
        let last = n % strip + 1 == strip;
        if vectors.masks {
            let old = w.masked_load(at, keep, ty);
            let old = scaled(w, old);
            let value = w.intrinsic("fmuladd", &[*sum, sign, old], ty);
            if last { w.masked_store(value, at, mask, ty) } else { w.store(value, at, ty, "") }
        } else {
            // Scratch belongs to this worker alone: writing back what was there is the cheaper mask.
            let there = w.load(at, ty, "");
            let old = w.select(keep, there, zeros, ty);
            let old = scaled(w, old);
            let value = w.intrinsic("fmuladd", &[*sum, sign, old], ty);
            let value = if last { w.select(mask, value, there, ty) } else { value };
            w.store(value, at, ty, "");
        }
    }
}
