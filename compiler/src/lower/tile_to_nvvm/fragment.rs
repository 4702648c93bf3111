//! The tensor cores' operands and their product.
//!
//! Comes in: matrices of float32 in scratch. Goes out: what each thread of a warp hands to an instruction, and the
//! instruction. Rows of the table are [`Products`].
//!
//! An instruction sums over its steps in an order of its own, so which step is which does not matter as long as both
//! operands agree: thread q of a group of four takes steps 4q … 4q + 3 of sixteen, which lie side by side, where the
//! manual gives it 2q, 2q + 1, 2q + 8, 2q + 9 (PTX ISA, "Matrix fragments for mma.m16n8k16" and "… m16n8k8").

use super::Products;
use super::kernel::Lowering;
use super::matmul::size;
use super::text::{self, Address};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};

/// Which operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// `a`: a fragment has 16 rows.
    Left,
    /// `b`: a fragment has 8 columns.
    Right,
}

/// A matrix in scratch as an operand.
pub(super) struct Operand {
    /// Its first element.
    pub base: Address,
    /// Which operand.
    pub side: Side,
    /// Elements from row to row (left) or column to column (right).
    pub along: usize,
    /// Elements from step to step.
    pub step: usize,
    /// Rows or columns.
    pub extent: usize,
    /// Four neighbouring steps lie in one aligned vector.
    pub aligned: bool,
    /// The length of the contraction is a multiple of sixteen.
    pub whole_steps: bool,
}

/// A thread's share of sixteen steps: for each of its rows (two on the left, one on the right) four numbers.
pub(super) struct Fragments {
    rows: Vec<[Val; 4]>,
}

impl Lowering<'_> {
    /// Reads a thread's share of a fragment that starts at row (or column) `start + ahead` and at step `k`.
    pub(super) fn fragments(&mut self, operand: &Operand, start: Val, ahead: usize, k: Val, end: Val) -> Fragments {
        let (group, quad) = self.lane_parts();
        let rows = match operand.side {
            Side::Left => vec![0, 8],
            Side::Right => vec![0],
        };
        let fragment = match operand.side {
            Side::Left => 16,
            Side::Right => 8,
        };
        let four = text::int(&mut self.w, 4);
        let own = self.w.op("mul", quad, four, Ty::I32);
        let first = self.w.op("add", k, own, Ty::I32);
        let rows = rows
            .into_iter()
            .map(|row| {
                let ahead = text::int(&mut self.w, size(ahead + row));
                let at = self.w.op("add", start, ahead, Ty::I32);
                let mut at = self.w.op("add", at, group, Ty::I32);
                if !operand.extent.is_multiple_of(fragment) || operand.extent < fragment {
                    // What lies beyond is computed from the last row, and never stored.
                    let last = text::int(&mut self.w, size(operand.extent) - 1);
                    at = self.w.intrinsic("smin", &[at, last], Ty::I32);
                }
                self.four(operand, at, first, end)
            })
            .collect();
        Fragments { rows }
    }

    /// Four neighbouring steps of one row; zero beyond the end.
    fn four(&mut self, operand: &Operand, row: Val, first: Val, end: Val) -> [Val; 4] {
        let along = text::int(&mut self.w, size(operand.along));
        let start = self.w.op("mul", row, along, Ty::I32);
        if operand.whole_steps {
            let step = text::int(&mut self.w, size(operand.step));
            let moved = self.w.op("mul", first, step, Ty::I32);
            let offset = self.w.op("add", start, moved, Ty::I32);
            let address = text::element(&mut self.w, operand.base, offset, Ty::I32, Elem::F32);
            if operand.aligned {
                let vector = text::load(&mut self.w, address, Ty::f32s(4), 16);
                return [0, 1, 2, 3].map(|n| text::lane(&mut self.w, vector, n, Ty::f32s(4)));
            }
            return [0, 1, 2, 3].map(|n| {
                let at = text::bytes(&mut self.w, address, 4 * n * operand.step);
                text::load(&mut self.w, at, Ty::F32, 4)
            });
        }
        let one = text::int(&mut self.w, 1);
        let last = self.w.op("sub", end, one, Ty::I32);
        [0, 1, 2, 3].map(|n| {
            let n = text::int(&mut self.w, n);
            let at = self.w.op("add", first, n, Ty::I32);
            let inside = self.w.icmp("slt", at, end, Ty::I32);
            let at = self.w.intrinsic("smin", &[at, last], Ty::I32);
            let step = text::int(&mut self.w, size(operand.step));
            let moved = self.w.op("mul", at, step, Ty::I32);
            let offset = self.w.op("add", start, moved, Ty::I32);
            let address = text::element(&mut self.w, operand.base, offset, Ty::I32, Elem::F32);
            let value = text::load(&mut self.w, address, Ty::F32, 4);
            let zero = self.w.f32(0.0, 0);
            self.w.select(inside, value, zero, Ty::F32)
        })
    }

    /// `sums + a · b` for one tile.
    pub(super) fn multiply(&mut self, products: Products, a: &Fragments, b: &Fragments, sums: &[Val]) -> Vec<Val> {
        match products {
            Products::Bf16 => {
                let low = |this: &mut Self, row: &[Val; 4]| text::pack_bf16(&mut this.w, row[0], row[1]);
                let high = |this: &mut Self, row: &[Val; 4]| text::pack_bf16(&mut this.w, row[2], row[3]);
                let left =
                    [low(self, &a.rows[0]), low(self, &a.rows[1]), high(self, &a.rows[0]), high(self, &a.rows[1])];
                let right = [low(self, &b.rows[0]), high(self, &b.rows[0])];
                self.instruction("llvm.nvvm.mma.m16n8k16.row.col.bf16", &left, &right, sums)
            }
            Products::Tf32 => {
                let (a, b) = (self.bits(a), self.bits(b));
                self.tf32(&a, &b, sums)
            }
            Products::Tf32x3 => {
                let (a_high, a_low) = self.split(a);
                let (b_high, b_low) = self.split(b);
                let sums = self.tf32(&a_low, &b_high, sums);
                let sums = self.tf32(&a_high, &b_low, &sums);
                self.tf32(&a_high, &b_high, &sums)
            }
        }
    }

    /// Two instructions of eight steps.
    fn tf32(&mut self, a: &[[Val; 4]], b: &[[Val; 4]], sums: &[Val]) -> Vec<Val> {
        let mut sums = sums.to_vec();
        for n in [0, 2] {
            let left = [a[0][n], a[1][n], a[0][n + 1], a[1][n + 1]];
            let right = [b[0][n], b[0][n + 1]];
            sums = self.instruction("llvm.nvvm.mma.m16n8k8.row.col.tf32", &left, &right, &sums);
        }
        sums
    }

    /// Rounded to tf32, to the nearest.
    fn bits(&mut self, fragments: &Fragments) -> Vec<[Val; 4]> {
        let rows = fragments.rows.iter();
        rows.map(|row| row.map(|x| text::intrinsic(&mut self.w, "llvm.nvvm.f2tf32.rna", &[(x, Ty::F32)], "i32")))
            .collect()
    }

    /// The leading bits of each number, and the rest.
    fn split(&mut self, fragments: &Fragments) -> (Vec<[Val; 4]>, Vec<[Val; 4]>) {
        let (mut high, mut low) = (Vec::new(), Vec::new());
        for row in &fragments.rows {
            let mut rest = [row[0]; 4];
            let leading = [0, 1, 2, 3].map(|n| {
                let w = &mut self.w;
                let bits = w.cast("bitcast", row[n], Ty::F32, Ty::I32);
                let mask = text::int(w, -8192);
                let leading = w.op("and", bits, mask, Ty::I32);
                let number = w.cast("bitcast", leading, Ty::I32, Ty::F32);
                let difference = w.op("fsub", row[n], number, Ty::F32);
                rest[n] = w.cast("bitcast", difference, Ty::F32, Ty::I32);
                leading
            });
            high.push(leading);
            low.push(rest);
        }
        (high, low)
    }

    fn instruction(&mut self, name: &str, a: &[Val], b: &[Val], sums: &[Val]) -> Vec<Val> {
        let words = a.iter().chain(b).map(|word| (*word, Ty::I32));
        let operands: Vec<(Val, Ty)> = words.chain(sums.iter().map(|sum| (*sum, Ty::F32))).collect();
        let of = text::struct_of(4, Ty::F32);
        let result = text::intrinsic(&mut self.w, name, &operands, &of);
        (0..4).map(|n| text::member(&mut self.w, result, n, &of)).collect()
    }
}
