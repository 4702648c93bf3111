//! Rows of tensors that the next step will need, asked for while this one computes.
//!
//! Comes in: an address and a length where a row is read. Goes out: a queue in scratch, from which every block of a
//! product takes a few lines and asks for them, so that memory works while the multiplications do. Asked for all at
//! once they would keep the processor waiting. What is left when a step ends is forgotten; an address beyond its
//! tensor is never touched.
//!
//! The queue is an array of 64-bit words: how many were taken, how many were put in, then pairs of an address and the
//! offset of its last line.

use super::kernel::Lowering;
use super::writer::{Elem, Ty, Val, Writer};
use crate::tile::ir::{Kernel, Stmt};

/// Entries of the queue.
const ENTRIES: i64 = 1024;
/// Lines of an entry.
const LINES: i64 = 4;
/// Bytes of a line of the cache.
const LINE: i64 = 64;
/// Terms of a contraction for every entry that a block of it takes.
const TERMS: i64 = 32;
/// Words before the entries.
const HEAD: i64 = 2;

/// Bytes of scratch for the queue: none in a kernel without products.
pub(super) fn bytes(kernel: &Kernel) -> usize {
    if multiplies(&kernel.body) { usize::try_from((HEAD + 2 * ENTRIES) * 8).expect("a few thousand") } else { 0 }
}

fn multiplies(body: &[Stmt]) -> bool {
    body.iter().any(|stmt| match stmt {
        Stmt::Matmul(_) => true,
        Stmt::For { body, .. } | Stmt::If { body, .. } | Stmt::Lanes { body, .. } => multiplies(body),
        Stmt::Local { .. } | Stmt::Assign { .. } | Stmt::Store { .. } | Stmt::ReduceLanes { .. } => false,
    })
}

impl Lowering<'_> {
    /// Empties the queue.
    pub(super) fn forget_requests(&mut self) {
        let Some(queue) = self.requests else { return };
        let zero = self.w.i64(0);
        let put = self.w.element_at(queue, 1, Elem::I64);
        self.w.store(zero, queue, Ty::I64, "");
        self.w.store(zero, put, Ty::I64, "");
    }

    /// Puts some neighbouring lines into the queue.
    pub(super) fn request(&mut self, address: Val, bytes: usize) {
        let queue = self.requests.expect("called where there is a queue");
        let w = &mut self.w;
        let put = w.element_at(queue, 1, Elem::I64);
        let count = w.load(put, Ty::I64, "");
        let (one, size) = (w.i64(1), w.i64(ENTRIES - 1));
        let place = w.op("and", count, size, Ty::I64);
        let words = w.op("add", place, place, Ty::I64);
        let entry = w.element(queue, words, Elem::I64);
        let (first, second) = (w.element_at(entry, HEAD, Elem::I64), w.element_at(entry, HEAD + 1, Elem::I64));
        let last = w.i64(i64::try_from(bytes.saturating_sub(1)).expect("a few vectors") / LINE * LINE);
        w.store(address, first, Ty::PTR, "");
        w.store(last, second, Ty::I64, "");
        let more = w.op("add", count, one, Ty::I64);
        w.store(more, put, Ty::I64, "");
    }
}

/// Asks for as many entries as go well with a block of a product of `terms` terms.
pub(super) fn issue(w: &mut Writer, queue: Val, terms: Val) {
    let put = w.element_at(queue, 1, Elem::I64);
    let (taken, put) = (w.load(queue, Ty::I64, ""), w.load(put, Ty::I64, ""));
    let (each, more) = (w.i64(TERMS), w.i64(TERMS - 1));
    let terms = w.op("add", terms, more, Ty::I64);
    let share = w.op("sdiv", terms, each, Ty::I64);
    let end = w.op("add", taken, share, Ty::I64);
    let end = w.intrinsic("smin", &[end, put], Ty::I64);
    let turn = w.open_for(taken, end, 1);
    let size = w.i64(ENTRIES - 1);
    let place = w.op("and", turn, size, Ty::I64);
    let words = w.op("add", place, place, Ty::I64);
    let entry = w.element(queue, words, Elem::I64);
    let (first, second) = (w.element_at(entry, HEAD, Elem::I64), w.element_at(entry, HEAD + 1, Elem::I64));
    let (address, last) = (w.load(first, Ty::PTR, ""), w.load(second, Ty::I64, ""));
    for line in 0..LINES {
        let offset = w.i64(line * LINE);
        let offset = w.intrinsic("smin", &[offset, last], Ty::I64);
        let at = w.byte(address, offset);
        w.prefetch(at, false);
    }
    w.end();
    w.store(end, queue, Ty::I64, "");
}
