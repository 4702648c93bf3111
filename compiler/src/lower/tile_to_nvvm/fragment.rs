//! The tensor cores' operands and their product.
//!
//! Comes in: matrices in scratch. Goes out: what each thread of a warp hands to an instruction, and the instruction.
//! Rows of the table are [`Products`].
//!
//! Thread q of a group of four takes steps 2q, 2q + 1, 2q + 8 and 2q + 9 of sixteen, as the manual says for bfloat16 (PTX
//! ISA, "Matrix fragments for mma.m16n8k16"). For tf32 an instruction takes eight steps; since it adds them in an order
//! of its own, which is which does not matter as long as both operands agree, and the same four numbers serve two of them.

use super::Products;
use super::kernel::Lowering;
use super::matmul::{COLUMNS, ROWS, size};
use super::text::{self, Address};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use chunkwise_abi::DType;

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
    /// Type of its elements.
    pub dtype: DType,
    /// Which operand.
    pub side: Side,
    /// Elements from row to row (left) or column to column (right).
    pub along: usize,
    /// Elements from step to step.
    pub step: usize,
    /// Rows or columns.
    pub extent: usize,
    /// Rows or columns that a warp takes at once: what it takes last may lie beyond the end.
    pub taken: usize,
    /// Its first element lies at a multiple of so many elements: 8, 2 or 1.
    pub aligned: usize,
    /// The length of the contraction is a multiple of sixteen.
    pub whole_steps: bool,
    /// It lies in shared memory.
    pub shared: bool,
}

/// The steps of a thread among sixteen, less 2q.
const OWN_STEPS: [usize; 4] = [0, 1, 8, 9];

/// A thread's share of sixteen steps.
pub(super) enum Fragment {
    /// For each of its rows (two on the left, one on the right) four numbers.
    Numbers(Vec<[Val; 4]>),
    /// As an instruction takes them: bfloat16, two in a word.
    Words(Vec<Val>),
}

impl Operand {
    /// Whether whole 8 × 8 matrices can be loaded at once.
    fn in_matrices(&self) -> bool {
        let rows = if self.step == 1 { self.along } else { self.step };
        self.dtype == DType::BF16
            && self.shared
            && self.aligned >= 8
            && rows.is_multiple_of(8)
            && (self.step == 1 || self.along == 1)
    }
}

impl Lowering<'_> {
    /// Reads a thread's share of `count` fragments, from row (or column) `start` and step `k` on.
    pub(super) fn fragments(&mut self, operand: &Operand, start: Val, count: usize, k: Val, end: Val) -> Vec<Fragment> {
        if operand.in_matrices() {
            return match operand.side {
                Side::Left => (0..count).map(|n| self.left_matrices(operand, start, n, k, end)).collect(),
                Side::Right => self.right_matrices(operand, start, count, k, end),
            };
        }
        let (rows, fragment) = match operand.side {
            Side::Left => (vec![0, 8], ROWS),
            Side::Right => (vec![0], COLUMNS),
        };
        let (group, quad) = self.lane_parts();
        let two = text::int(&mut self.w, 2);
        let own = self.w.op("mul", quad, two, Ty::I32);
        let first = self.w.op("add", k, own, Ty::I32);
        let mut fragments = Vec::new();
        for n in 0..count {
            let mut numbers = Vec::new();
            for row in &rows {
                let ahead = text::int(&mut self.w, size(n * fragment + row));
                let at = self.w.op("add", start, ahead, Ty::I32);
                let at = self.w.op("add", at, group, Ty::I32);
                let at = self.inside(operand, at, 1);
                numbers.push(self.four(operand, at, first, end));
            }
            fragments.push(Fragment::Numbers(numbers));
        }
        fragments
    }

    /// What lies beyond the last row is computed from it, and never stored. `together` rows are read from here on.
    fn inside(&mut self, operand: &Operand, row: Val, together: usize) -> Val {
        if operand.extent.is_multiple_of(operand.taken) {
            return row;
        }
        let last = text::int(&mut self.w, size((operand.extent - 1) / together * together));
        self.w.intrinsic("smin", &[row, last], Ty::I32)
    }

    /// Four steps of one row; zero beyond the end.
    fn four(&mut self, operand: &Operand, row: Val, first: Val, end: Val) -> [Val; 4] {
        let along = text::int(&mut self.w, size(operand.along));
        let start = self.w.op("mul", row, along, Ty::I32);
        let elem = super::call::element(operand.dtype);
        if operand.whole_steps {
            let step = text::int(&mut self.w, size(operand.step));
            let moved = self.w.op("mul", first, step, Ty::I32);
            let offset = self.w.op("add", start, moved, Ty::I32);
            let address = text::element(&mut self.w, operand.base, offset, Ty::I32, elem);
            if operand.step == 1 && operand.along.is_multiple_of(2) && operand.aligned >= 2 {
                let [a, b] = [0, 8].map(|n| {
                    let at = text::bytes(&mut self.w, address, n * operand.dtype.bytes());
                    self.two(operand.dtype, at)
                });
                return [a[0], a[1], b[0], b[1]];
            }
            return OWN_STEPS.map(|n| {
                let at = text::bytes(&mut self.w, address, n * operand.step * operand.dtype.bytes());
                self.number(operand.dtype, at)
            });
        }
        let one = text::int(&mut self.w, 1);
        let last = self.w.op("sub", end, one, Ty::I32);
        OWN_STEPS.map(|n| {
            let n = text::int(&mut self.w, size(n));
            let at = self.w.op("add", first, n, Ty::I32);
            let inside = self.w.icmp("slt", at, end, Ty::I32);
            let at = self.w.intrinsic("smin", &[at, last], Ty::I32);
            let step = text::int(&mut self.w, size(operand.step));
            let moved = self.w.op("mul", at, step, Ty::I32);
            let offset = self.w.op("add", start, moved, Ty::I32);
            let address = text::element(&mut self.w, operand.base, offset, Ty::I32, elem);
            let value = self.number(operand.dtype, address);
            let zero = self.w.f32(0.0, 0);
            self.w.select(inside, value, zero, Ty::F32)
        })
    }

    fn two(&mut self, dtype: DType, at: Address) -> [Val; 2] {
        match dtype {
            DType::F32 => {
                let pair = text::load(&mut self.w, at, Ty::f32s(2), 8);
                [0, 1].map(|n| text::lane(&mut self.w, pair, n, Ty::f32s(2)))
            }
            DType::BF16 => {
                let word = text::load(&mut self.w, at, Ty::I32, 4);
                text::unpack_bf16(&mut self.w, word)
            }
            DType::F16 => [0, 1].map(|n| {
                let at = text::bytes(&mut self.w, at, 2 * n);
                self.number(dtype, at)
            }),
        }
    }

    fn number(&mut self, dtype: DType, at: Address) -> Val {
        let w = &mut self.w;
        match dtype {
            DType::F32 => text::load(w, at, Ty::F32, 4),
            DType::BF16 => {
                let half = Ty::scalar(Elem::I16);
                let value = text::load(w, at, half, 2);
                let word = w.cast("zext", value, half, Ty::I32);
                let sixteen = text::int(w, 16);
                let bits = w.op("shl", word, sixteen, Ty::I32);
                w.cast("bitcast", bits, Ty::I32, Ty::F32)
            }
            DType::F16 => {
                let half = Ty::scalar(Elem::F16);
                let value = text::load(w, at, half, 2);
                w.cast("fpext", value, half, Ty::F32)
            }
        }
    }

    /// Addresses of 8 × 8 matrices, one row of one of them by thread: matrix number `lane / 8` lies `rows[lane / 8]` rows
    /// (columns, on the right) and `steps[lane / 8]` steps further.
    fn matrix_row(&mut self, operand: &Operand, row: Val, k: Val, end: Val, rows_first: bool) -> Address {
        let w = &mut self.w;
        let (seven, three, one) = (text::int(w, 7), text::int(w, 3), text::int(w, 1));
        let lane = self.lane;
        let within = w.op("and", lane, seven, Ty::I32);
        let matrix = w.op("lshr", lane, three, Ty::I32);
        let low = w.op("and", matrix, one, Ty::I32);
        let high = w.op("lshr", matrix, one, Ty::I32);
        let (row_half, step_half) = if rows_first { (low, high) } else { (high, low) };
        let row_half = w.op("shl", row_half, three, Ty::I32);
        let step_half = w.op("shl", step_half, three, Ty::I32);
        let mut row = w.op("add", row, row_half, Ty::I32);
        let mut step = w.op("add", k, step_half, Ty::I32);
        // The rows of what lies in memory are rows of the operand, or its steps.
        if operand.step == 1 {
            row = w.op("add", row, within, Ty::I32);
            row = self.inside(operand, row, 1);
        } else {
            step = w.op("add", step, within, Ty::I32);
            if !operand.whole_steps {
                let last = w.op("sub", end, one, Ty::I32);
                step = w.intrinsic("smin", &[step, last], Ty::I32);
            }
            row = self.inside(operand, row, 8);
        }
        let w = &mut self.w;
        let (along, stride) = (text::int(w, size(operand.along)), text::int(w, size(operand.step)));
        let down = w.op("mul", row, along, Ty::I32);
        let right = w.op("mul", step, stride, Ty::I32);
        let offset = w.op("add", down, right, Ty::I32);
        text::element(w, operand.base, offset, Ty::I32, Elem::I16)
    }

    fn load_matrices(&mut self, operand: &Operand, at: Address, count: usize) -> Vec<Val> {
        // Rows of the left operand are rows of a matrix; the right one's columns are.
        let transposed = if operand.step == 1 { "" } else { ".trans" };
        let name = format!("llvm.nvvm.ldmatrix.sync.aligned.m8n8.x{count}{transposed}.b16");
        let of = text::struct_of(count, Ty::I32);
        let words =
            self.w.raw_value(format_args!("llvm.call_intrinsic \"{name}\"({}) : (!llvm.ptr<3>) -> {of}", at.at));
        (0..count).map(|n| text::member(&mut self.w, words, n, &of)).collect()
    }

    fn left_matrices(&mut self, operand: &Operand, start: Val, n: usize, k: Val, end: Val) -> Fragment {
        let ahead = text::int(&mut self.w, size(n * ROWS));
        let row = self.w.op("add", start, ahead, Ty::I32);
        let at = self.matrix_row(operand, row, k, end, true);
        let words = self.load_matrices(operand, at, 4);
        // Words 0 and 1 are the first eight steps, 2 and 3 the others.
        Fragment::Words(self.masked(operand, words, k, end, |word| word / 2))
    }

    fn right_matrices(&mut self, operand: &Operand, start: Val, count: usize, k: Val, end: Val) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        for n in (0..count).step_by(2) {
            let ahead = text::int(&mut self.w, size(n * COLUMNS));
            let column = self.w.op("add", start, ahead, Ty::I32);
            let at = self.matrix_row(operand, column, k, end, false);
            let pair = count - n > 1;
            let words = self.load_matrices(operand, at, if pair { 4 } else { 2 });
            let words = self.masked(operand, words, k, end, |word| word % 2);
            fragments.extend(words.chunks(2).map(|words| Fragment::Words(words.to_vec())));
        }
        fragments
    }

    /// Zero beyond the end of the contraction.
    fn masked(
        &mut self,
        operand: &Operand,
        words: Vec<Val>,
        k: Val,
        end: Val,
        half: impl Fn(usize) -> usize,
    ) -> Vec<Val> {
        if operand.whole_steps {
            return words;
        }
        let (_, quad) = self.lane_parts();
        let w = &mut self.w;
        let (zero, one) = (text::int(w, 0), text::int(w, 1));
        let own = w.op("shl", quad, one, Ty::I32);
        let first = w.op("add", k, own, Ty::I32);
        let masks = [0, 8].map(|ahead| {
            let ahead = text::int(w, ahead);
            let low = w.op("add", first, ahead, Ty::I32);
            let high = w.op("add", low, one, Ty::I32);
            let (low, high) = (w.icmp("slt", low, end, Ty::I32), w.icmp("slt", high, end, Ty::I32));
            let (low_bits, high_bits) = (text::int(w, 0xffff), text::int(w, -0x10000));
            let low = w.select(low, low_bits, zero, Ty::I32);
            let high = w.select(high, high_bits, zero, Ty::I32);
            w.op("or", low, high, Ty::I32)
        });
        words.iter().enumerate().map(|(n, word)| w.op("and", *word, masks[half(n)], Ty::I32)).collect()
    }

    /// `sums + a · b` for one tile.
    pub(super) fn multiply(&mut self, products: Products, a: &Fragment, b: &Fragment, sums: &[Val]) -> Vec<Val> {
        match products {
            Products::Bf16 => {
                let (a, b) = (self.words(a), self.words(b));
                self.instruction("llvm.nvvm.mma.m16n8k16.row.col.bf16", &a, &b, sums)
            }
            Products::Tf32 => {
                let (a, b) = (self.rounded(a), self.rounded(b));
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

    /// Rounded to bfloat16, two in a word, in the order of the instruction: first halves of all rows, then second ones.
    fn words(&mut self, fragment: &Fragment) -> Vec<Val> {
        match fragment {
            Fragment::Words(words) => words.clone(),
            Fragment::Numbers(rows) => {
                let mut words = Vec::new();
                for half in [0, 2] {
                    words.extend(rows.iter().map(|row| text::pack_bf16(&mut self.w, row[half], row[half + 1])));
                }
                words
            }
        }
    }

    /// The numbers of each row.
    fn numbers(&mut self, fragment: &Fragment) -> Vec<[Val; 4]> {
        match fragment {
            Fragment::Numbers(rows) => rows.clone(),
            Fragment::Words(words) => {
                let rows = words.len() / 2;
                (0..rows)
                    .map(|row| {
                        let first = text::unpack_bf16(&mut self.w, words[row]);
                        let second = text::unpack_bf16(&mut self.w, words[rows + row]);
                        [first[0], first[1], second[0], second[1]]
                    })
                    .collect()
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
    fn rounded(&mut self, fragment: &Fragment) -> Vec<[Val; 4]> {
        let rows = self.numbers(fragment);
        let round = |x| text::intrinsic(&mut self.w, "llvm.nvvm.f2tf32.rna", &[(x, Ty::F32)], "i32");
        let mut round = round;
        rows.into_iter().map(|row| row.map(&mut round)).collect()
    }

    /// The leading bits of each number, and the rest.
    fn split(&mut self, fragment: &Fragment) -> (Vec<[Val; 4]>, Vec<[Val; 4]>) {
        let (mut high, mut low) = (Vec::new(), Vec::new());
        for row in self.numbers(fragment) {
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
