//! The inverse of a triangular system, in float32.
//!
//! Comes in: the blocks of a strictly lower triangular L. Goes out: (I − L)⁻¹ in shared memory. Blocks of sixteen rows on
//! the diagonal are solved by substitution, a column a lane; then pairs of neighbouring blocks become one, the corner
//! being T₁ L₁₀ T₀, until one is left. Those products are float32 in three of the tensor cores' (tf32, high and low
//! parts), since an error here is multiplied by everything after it.
//!
//! Several unknowns of one token stand beside each other, in their order, so that the system stays triangular.

use super::Refusal;
use super::block::{Block, Fold, Home};
use super::index::{Linear, Step};
use super::memory::{Region, Touch};
use super::shape::STRIP;
use crate::graph::ir::{NodeId, Op};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;

/// A square matrix in shared memory.
struct Square {
    region: Region,
    /// Bytes from row to row.
    pitch: usize,
    /// Rows.
    n: usize,
}

impl Block<'_> {
    /// Computes an inverse.
    pub fn inverse(&mut self, x: NodeId) -> Result<(), Refusal> {
        let Op::Inverse(inverse) = self.op(x) else { return Err(self.bug(x, "is no inverse")) };
        let slots = self.size(inverse.slot);
        let rows = self.size(inverse.row);
        let n = slots * rows;
        if !(n / STRIP).is_power_of_two() || !n.is_multiple_of(STRIP) || n / STRIP > 2 * self.warps.count() {
            return Err(Refusal::unsupported("the inverse of a system of such a size"));
        }
        for block in inverse.lower.iter().flatten() {
            self.ready(*block)?;
        }
        // Rows start in different banks, also every second.
        let pitch = 4 * n + 16;
        let asked = self.warps.padded_rows(rows).max(self.warps.padded_cols(rows));
        let region = self.memory.allocate(pitch * slots * asked + 4 * slots * asked, false);
        let square = Square { region, pitch, n };
        let shape = self.matrix(&[inverse.row, inverse.col])?;
        let nowhere = super::block::Point::default();
        let mut stores = Vec::new();
        for (number, block) in inverse.lower.iter().enumerate() {
            let (to, from) = (number / slots, number % slots);
            for element in self.elements(&shape, &nowhere) {
                let (t, s) = (element.at.get(inverse.row), element.at.get(inverse.col));
                let (t, s) = (t.expect("a row"), s.expect("a column"));
                let zero = self.w.f32(0.0, 0);
                let value = match block {
                    None => zero,
                    Some(block) => {
                        let value = self.eval(*block, &element.at)?;
                        let before = self.compare(if from < to { "sle" } else { "slt" }, s, t);
                        self.choose(before, value, zero)
                    }
                };
                let mut bytes = Linear::number((to * pitch + 4 * from) as i64);
                bytes.add_scaled(&self.ix.get(t).clone(), (slots * pitch) as i64);
                bytes.add_scaled(&self.ix.get(s).clone(), 4 * slots as i64);
                stores.push((bytes, value, self.real(&shape, &element.at)));
            }
        }
        self.statement();
        self.touch(region, Touch::Write);
        for (bytes, value, real) in stores {
            if let Some(real) = real {
                self.open_if(real);
            }
            let address = self.shared(region, &bytes);
            text::store(&mut self.w, value, address, "f32", 4);
            if real.is_some() {
                self.close_if();
            }
        }
        self.diagonal_blocks(&square);
        let mut size = STRIP;
        while size < n {
            self.join(&square, size);
            size *= 2;
        }
        let strides =
            [(inverse.col, 4 * slots), (inverse.row, slots * pitch), (inverse.from, 4), (inverse.slot, pitch)];
        let strides = strides.map(|(dim, step)| (dim, Step::even(step))).to_vec();
        let home = Home { region, dtype: DType::F32, strides, parts: (1, 0), fold: Fold::Sum, half: None };
        self.homes.insert(x, home);
        Ok(())
    }

    /// Inverts the blocks on the diagonal, each by half a warp: a lane has a column.
    fn diagonal_blocks(&mut self, square: &Square) {
        let blocks = square.n / STRIP;
        let (four, fifteen) = (self.int(4), self.int(STRIP - 1));
        let thread = self.thread;
        let number = self.w.op("lshr", thread, four, Ty::I32);
        let column = self.w.op("and", thread, fifteen, Ty::I32);
        let last = self.int(blocks - 1);
        let own = self.w.icmp("sle", number, last, Ty::I32);
        let block = self.w.intrinsic("smin", &[number, last], Ty::I32);
        let corner = Linear::value(block, (STRIP * (square.pitch + 4)) as i64);
        let (zero, one) = (self.w.f32(0.0, 0), self.w.f32(1.0, 0));
        self.statement();
        self.touch(square.region, Touch::Read);
        let mut solved: Vec<Val> = Vec::new();
        for row in 0..STRIP {
            let number = self.int(row);
            let diagonal = self.w.icmp("eq", column, number, Ty::I32);
            let mut sums = [self.w.select(diagonal, one, zero, Ty::F32), zero];
            for start in (0..row).step_by(4) {
                let mut bytes = corner.clone();
                bytes.constant = (row * square.pitch + 4 * start) as i64;
                let address = self.shared(square.region, &bytes);
                let four = text::load(&mut self.w, address, Ty::f32s(4), 16);
                for k in start..row.min(start + 4) {
                    let factor = text::lane(&mut self.w, four, k - start, Ty::f32s(4));
                    let sum = &mut sums[k % 2];
                    *sum = self.w.intrinsic("fma", &[factor, solved[k], *sum], Ty::F32);
                }
            }
            solved.push(self.w.op("fadd", sums[0], sums[1], Ty::F32));
        }
        self.statement();
        self.touch(square.region, Touch::Write);
        self.open_if(own);
        for (row, value) in solved.into_iter().enumerate() {
            let mut bytes = corner.clone();
            bytes.add(column, 4);
            bytes.constant = (row * square.pitch) as i64;
            let address = self.shared(square.region, &bytes);
            text::store(&mut self.w, value, address, "f32", 4);
        }
        self.close_if();
    }

    /// Makes one block of every two neighbours of a size: a warp has sixteen rows of a corner.
    fn join(&mut self, square: &Square, size: usize) {
        let tasks = square.n / (2 * STRIP);
        let strips = size / STRIP;
        let five = self.int(5);
        let warp = self.w.op("lshr", self.thread, five, Ty::I32);
        let last = self.int(tasks - 1);
        let own = self.w.icmp("sle", warp, last, Ty::I32);
        let task = self.w.intrinsic("smin", &[warp, last], Ty::I32);
        let (shift, mask) = (self.int(strips.ilog2() as usize), self.int(strips - 1));
        let pair = self.w.op("lshr", task, shift, Ty::I32);
        let strip = self.w.op("and", task, mask, Ty::I32);
        let (pitch, step) = (square.pitch as i64, size as i64);
        // Corners of the upper block, of the lower one's own rows, and of what lies between.
        let upper = Linear::value(pair, 2 * step * (pitch + 4));
        let mut between = upper.clone();
        between.constant = step * pitch;
        let mut rows = upper.clone();
        rows.add(strip, STRIP as i64 * pitch);
        rows.constant = step * (pitch + 4);
        let mut to = upper.clone();
        to.add(strip, STRIP as i64 * pitch);
        to.constant = step * pitch;
        self.statement();
        self.touch(square.region, Touch::Read);
        // In eights of steps: rows of the lower block, then what the first product leaves.
        let mut left = Vec::new();
        for eight in 0..size / 8 {
            let pairs = [0, 8].map(|half| {
                let mut bytes = rows.clone();
                bytes.add(self.group, pitch);
                bytes.add(self.quad, 8);
                bytes.constant += half * pitch + 32 * eight as i64;
                let address = self.shared(square.region, &bytes);
                text::load(&mut self.w, address, Ty::f32s(2), 8)
            });
            let number =
                |this: &mut Self, half: usize, odd: usize| text::lane(&mut this.w, pairs[half], odd, Ty::f32s(2));
            left.push([number(self, 0, 0), number(self, 1, 0), number(self, 0, 1), number(self, 1, 1)]);
        }
        let first = self.three_products(square, &left, &between, size);
        let left: Vec<[Val; 4]> = first.iter().map(|sums| [sums[0], sums[2], sums[1], sums[3]]).collect();
        let second = self.three_products(square, &left, &upper, size);
        self.statement();
        self.touch(square.region, Touch::Write);
        self.open_if(own);
        for (eight, sums) in second.iter().enumerate() {
            for half in 0..2 {
                let mut bytes = to.clone();
                bytes.add(self.group, pitch);
                bytes.add(self.quad, 8);
                bytes.constant += 8 * half as i64 * pitch + 32 * eight as i64;
                let address = self.shared(square.region, &bytes);
                let both = text::vector(&mut self.w, &sums[2 * half..2 * half + 2], Elem::F32);
                text::store(&mut self.w, both, address, "vector<2xf32>", 8);
            }
        }
        self.close_if();
    }

    /// Sixteen rows times a square block. A thread's numbers of a row of the left operand are columns 2q and 2q + 1 of
    /// every eight, as sums lie; the instruction adds its eight steps in any order, so these are its steps q and q + 4.
    fn three_products(&mut self, square: &Square, left: &[[Val; 4]], right: &Linear, size: usize) -> Vec<[Val; 4]> {
        let zero = self.w.f32(0.0, 0);
        let pitch = square.pitch as i64;
        let split: Vec<([Val; 4], [Val; 4])> = left.iter().map(|numbers| self.high_and_low(*numbers)).collect();
        let mut all = Vec::new();
        for eight in 0..size / 8 {
            let mut sums = [zero; 4];
            for (step, (high, low)) in split.iter().enumerate() {
                let numbers = [0, 1].map(|odd| {
                    let mut bytes = right.clone();
                    bytes.add(self.quad, 2 * pitch);
                    bytes.add(self.group, 4);
                    bytes.constant += (8 * step as i64 + odd) * pitch + 32 * eight as i64;
                    let address = self.shared(square.region, &bytes);
                    text::load(&mut self.w, address, Ty::F32, 4)
                });
                let (b_high, b_low) = self.high_and_low(numbers);
                self.tf32(low, &b_high, &mut sums);
                self.tf32(high, &b_low, &mut sums);
                self.tf32(high, &b_high, &mut sums);
            }
            all.push(sums);
        }
        all
    }

    /// The leading bits of each number, and the rest, as words.
    fn high_and_low<const N: usize>(&mut self, numbers: [Val; N]) -> ([Val; N], [Val; N]) {
        let mut low = numbers;
        let high = std::array::from_fn(|n| {
            let bits = self.w.cast("bitcast", numbers[n], Ty::F32, Ty::I32);
            let mask = text::int(&mut self.w, -8192);
            let leading = self.w.op("and", bits, mask, Ty::I32);
            let number = self.w.cast("bitcast", leading, Ty::I32, Ty::F32);
            let rest = self.w.op("fsub", numbers[n], number, Ty::F32);
            low[n] = self.w.cast("bitcast", rest, Ty::F32, Ty::I32);
            leading
        });
        (high, low)
    }

    fn tf32(&mut self, a: &[Val; 4], b: &[Val; 2], sums: &mut [Val; 4]) {
        let words = a.iter().chain(b).map(|word| (*word, Ty::I32));
        let operands: Vec<(Val, Ty)> = words.chain(sums.iter().map(|sum| (*sum, Ty::F32))).collect();
        let of = text::struct_of(4, Ty::F32);
        let result = text::intrinsic(&mut self.w, "llvm.nvvm.mma.m16n8k8.row.col.tf32", &operands, &of);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = text::member(&mut self.w, result, n, &of);
        }
    }
}
