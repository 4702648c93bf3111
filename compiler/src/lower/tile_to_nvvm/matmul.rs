//! Products of matrices in scratch, by all warps of a block on the tensor cores.
//!
//! Comes in: a [`Matmul`]. Goes out: a loop of each warp over its part of the result, and in it a loop over the length of
//! the contraction, sixteen steps at a time. The order of the additions depends on the sizes only.

use super::Products;
use super::call::element;
use super::fragment::{Operand, Side};
use super::kernel::Lowering;
use super::place::Space;
use super::text::{self, Address};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::tile::ir::{Affine, Matmul, Triangle, Update, View};
use chunkwise_abi::DType;

/// Rows, columns and steps of the tensor cores' product.
pub(super) const ROWS: usize = 16;
pub(super) const COLUMNS: usize = 8;
pub(super) const STEPS: usize = 16;

/// How a product is cut: tiles of 16 × 8 that a warp holds at once, down and across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    down: usize,
    across: usize,
    /// Parts of the result, down and across.
    parts: (usize, usize),
}

impl Cut {
    /// The cut that reads least for each product among those that give every warp some work.
    fn of(product: &Matmul, products: Products, warps: usize) -> Cut {
        let (rows, columns) = (product.m.div_ceil(ROWS), product.n.div_ceil(COLUMNS));
        let price = |stride: usize, fragments: usize| if stride == 1 { fragments } else { 4 * fragments };
        let (a, b) = (price(product.a.col_stride, 2), price(product.b.row_stride, 1));
        // Registers: sums, and both operands in as many parts as the product takes.
        let most = match products {
            Products::Bf16 | Products::Tf32 => 8,
            Products::Tf32x3 => 4,
        };
        let mut best: Option<((usize, usize), Cut)> = None;
        for down in [1, 2, 4] {
            for across in [1, 2, 4, 8] {
                if down > rows.next_power_of_two() || across > columns.next_power_of_two() || down * across > most {
                    continue;
                }
                let parts = (rows.div_ceil(down), columns.div_ceil(across));
                let turns = (parts.0 * parts.1).div_ceil(warps);
                // Per warp: what is read, and what is multiplied.
                let cost = turns * (down * a + across * b + 2 * down * across);
                let better = best.is_none_or(|(least, _)| (cost, parts.0 * parts.1) < least);
                if better {
                    best = Some(((cost, parts.0 * parts.1), Cut { down, across, parts }));
                }
            }
        }
        best.map_or(Cut { down: 1, across: 1, parts: (rows, columns) }, |(_, cut)| cut)
    }
}

/// Where a result goes: rows and columns of one tile.
struct Target {
    base: Address,
    row_stride: usize,
    m: usize,
    n: usize,
    /// Rows and columns of a warp's part: the last one may reach beyond the end.
    tall: usize,
    wide: usize,
    dtype: DType,
}

impl Lowering<'_> {
    /// A product.
    pub(super) fn matmul(&mut self, product: &Matmul) {
        let warps = self.options.threads / 32;
        let products = if product.exact { Products::Tf32x3 } else { self.options.products };
        let cut = Cut::of(product, products, warps);
        let (tall, wide) = (cut.down * ROWS, cut.across * COLUMNS);
        let a = self.operand(&product.a, Side::Left, product.m, tall, &product.k);
        // Columns are read two fragments at a time.
        let b = self.operand(&product.b, Side::Right, product.n, wide.max(2 * COLUMNS), &product.k);
        let dst = self.view(&product.dst);
        let dtype = self.homes.homes[product.dst.buffer.0 as usize].dtype;
        let target =
            Target { base: dst, row_stride: product.dst.row_stride, m: product.m, n: product.n, tall, wide, dtype };
        let k = self.affine(&product.k);

        let parts = text::int(&mut self.w, size(cut.parts.0 * cut.parts.1));
        let step = text::int(&mut self.w, size(warps));
        let warp = self.warp;
        let part = self.w.open_loop(warp, parts, step, Ty::I32);
        let across = text::int(&mut self.w, size(cut.parts.1));
        let down_at = self.w.op("udiv", part, across, Ty::I32);
        let across_at = self.w.op("urem", part, across, Ty::I32);
        let (height, width) =
            (text::int(&mut self.w, size(cut.down * ROWS)), text::int(&mut self.w, size(cut.across * COLUMNS)));
        let row = self.w.op("mul", down_at, height, Ty::I32);
        let column = self.w.op("mul", across_at, width, Ty::I32);

        let needed = self.open_needed(product.triangle, row, column, height);
        // What is zero beside the diagonal of the left operand is left out.
        let (lo, hi) = match product.triangle {
            Triangle::Full | Triangle::LowerResult => (text::int(&mut self.w, 0), k),
            Triangle::LowerLeft => {
                let end = self.w.op("add", row, height, Ty::I32);
                (text::int(&mut self.w, 0), self.w.intrinsic("smin", &[end, k], Ty::I32))
            }
            Triangle::UpperLeft => (row, k),
        };
        let start: Vec<(Val, Ty)> =
            self.start(product, &target, &cut, row, column).into_iter().map(|v| (v, Ty::F32)).collect();
        // Two turns at once: the operands of the second are on their way while the first is computed.
        let whole = product.k.as_number().is_some_and(|k| k % (2 * size(STEPS)) == 0);
        let together = match product.triangle {
            Triangle::Full | Triangle::LowerResult if whole => 2,
            Triangle::Full | Triangle::LowerResult | Triangle::LowerLeft | Triangle::UpperLeft => 1,
        };
        let steps = text::int(&mut self.w, size(together * STEPS));
        let turn = self.w.open_loop_carrying(lo, hi, steps, Ty::I32, &start);
        let mut sums = turn.values.clone();
        let mut operands = Vec::new();
        for n in 0..together {
            let ahead = text::int(&mut self.w, size(n * STEPS));
            let at = if n == 0 { turn.var } else { self.w.op("add", turn.var, ahead, Ty::I32) };
            let left = self.fragments(&a, row, cut.down, at, k);
            let right = self.fragments(&b, column, cut.across, at, k);
            operands.push((left, right));
        }
        for (left, right) in &operands {
            for (i, a) in left.iter().enumerate() {
                for (j, b) in right.iter().enumerate() {
                    let at = 4 * (i * cut.across + j);
                    let sum = self.multiply(products, a, b, &sums[at..at + 4]);
                    sums[at..at + 4].copy_from_slice(&sum);
                }
            }
        }
        let sums = self.w.end_carried(&turn, &sums);
        self.finish(product, &target, &cut, row, column, &sums);
        if needed {
            self.w.end();
        }
        self.w.end();
    }

    /// Opens a condition where a part may lie wholly above the diagonal, whose elements nobody reads.
    fn open_needed(&mut self, triangle: Triangle, row: Val, column: Val, height: Val) -> bool {
        match triangle {
            Triangle::Full | Triangle::LowerLeft | Triangle::UpperLeft => false,
            Triangle::LowerResult => {
                let end = self.w.op("add", row, height, Ty::I32);
                let below = self.w.icmp("slt", column, end, Ty::I32);
                self.w.open_if(below);
                true
            }
        }
    }

    /// Where a view starts.
    fn view(&mut self, view: &View) -> Address {
        let base = self.buffer(view.buffer);
        let dtype = self.homes.homes[view.buffer.0 as usize].dtype;
        let mut offset = view.offset.clone();
        let Ok(constant) = usize::try_from(offset.constant) else {
            let at = self.affine(&offset);
            return text::element(&mut self.w, base, at, Ty::I32, element(dtype));
        };
        offset.constant = 0;
        let base = text::bytes(&mut self.w, base, dtype.bytes() * constant);
        if offset.as_number() == Some(0) {
            return base;
        }
        let at = self.affine(&offset);
        text::element(&mut self.w, base, at, Ty::I32, element(dtype))
    }

    fn operand(&mut self, view: &View, side: Side, extent: usize, taken: usize, k: &Affine) -> Operand {
        let (along, step) = match side {
            Side::Left => (view.row_stride, view.col_stride),
            Side::Right => (view.col_stride, view.row_stride),
        };
        let whole = |affine: &Affine, n: i64| {
            affine.constant % n == 0
                && affine.vars.iter().all(|(_, factor)| factor % n == 0)
                && affine.symbols.iter().all(|(_, factor)| factor % n == 0)
        };
        let home = self.homes.homes[view.buffer.0 as usize];
        Operand {
            base: self.view(view),
            dtype: home.dtype,
            shared: home.space == Space::Shared,
            side,
            along,
            step,
            extent,
            taken,
            aligned: [8, 2].into_iter().find(|n| whole(&view.offset, size(*n))).unwrap_or(1),
            whole_steps: whole(k, size(STEPS)),
        }
    }

    /// What the sums start from.
    fn start(&mut self, product: &Matmul, target: &Target, cut: &Cut, row: Val, column: Val) -> Vec<Val> {
        let zero = self.w.f32(0.0, 0);
        match product.update {
            Update::Set | Update::Subtract => vec![zero; 4 * cut.down * cut.across],
            Update::Add => {
                let mut values = Vec::new();
                for i in 0..cut.down {
                    for j in 0..cut.across {
                        for half in 0..2 {
                            values.extend(self.pair(target, row, column, i, j, half));
                        }
                    }
                }
                values
            }
        }
    }

    /// Address of two neighbouring elements of a tile, and whether each of them is inside the result, where that may fail.
    fn corner(
        &mut self,
        target: &Target,
        row: Val,
        column: Val,
        tile: (usize, usize),
        half: usize,
    ) -> (Address, [Option<Val>; 2]) {
        let (group, pair) = self.lane_parts();
        let w = &mut self.w;
        let down = text::int(w, size(tile.0 * ROWS + 8 * half));
        let right = text::int(w, size(tile.1 * COLUMNS));
        let r = w.op("add", row, down, Ty::I32);
        let r = w.op("add", r, group, Ty::I32);
        let two = text::int(w, 2);
        let own = w.op("mul", pair, two, Ty::I32);
        let c = w.op("add", column, right, Ty::I32);
        let c = w.op("add", c, own, Ty::I32);
        let stride = text::int(w, size(target.row_stride));
        let offset = w.op("mul", r, stride, Ty::I32);
        let offset = w.op("add", offset, c, Ty::I32);
        let address = text::element(w, target.base, offset, Ty::I32, element(target.dtype));
        let mut inside = [None, None];
        let below = (!target.m.is_multiple_of(target.tall)).then(|| {
            let end = text::int(w, size(target.m));
            w.icmp("slt", r, end, Ty::I32)
        });
        for (n, inside) in inside.iter_mut().enumerate() {
            *inside = below;
            if !target.n.is_multiple_of(target.wide) {
                let end = text::int(w, size(target.n) - size(n));
                let before = w.icmp("slt", c, end, Ty::I32);
                *inside = Some(match below {
                    None => before,
                    Some(below) => w.op("and", below, before, Ty { elem: Elem::I1, lanes: 0 }),
                });
            }
        }
        (address, inside)
    }

    fn pair(&mut self, target: &Target, row: Val, column: Val, i: usize, j: usize, half: usize) -> [Val; 2] {
        let (address, inside) = self.corner(target, row, column, (i, j), half);
        let mut values = [address.at; 2];
        for (n, value) in values.iter_mut().enumerate() {
            let at = text::bytes(&mut self.w, address, 4 * n);
            *value = match inside[n] {
                None => text::load(&mut self.w, at, Ty::F32, 4),
                Some(inside) => {
                    let results = self.w.open_if_yielding(inside, 1, Ty::F32);
                    let there = text::load(&mut self.w, at, Ty::F32, 4);
                    self.w.other(&[there], Ty::F32);
                    let zero = self.w.f32(0.0, 0);
                    self.w.end_yielding(results, &[zero], Ty::F32)[0]
                }
            };
        }
        values
    }

    /// Stores the sums.
    fn finish(&mut self, product: &Matmul, target: &Target, cut: &Cut, row: Val, column: Val, sums: &[Val]) {
        for i in 0..cut.down {
            for j in 0..cut.across {
                for half in 0..2 {
                    let at = 4 * (i * cut.across + j) + 2 * half;
                    let mut values = [sums[at], sums[at + 1]];
                    if product.update == Update::Subtract {
                        let before = self.pair(target, row, column, i, j, half);
                        for (value, before) in values.iter_mut().zip(before) {
                            *value = self.w.op("fsub", before, *value, Ty::F32);
                        }
                    }
                    let (address, inside) = self.corner(target, row, column, (i, j), half);
                    let together = inside == [None, None] && target.row_stride.is_multiple_of(2) && even(product);
                    if target.dtype == DType::BF16 {
                        let word = text::pack_bf16(&mut self.w, values[0], values[1]);
                        if together {
                            text::store(&mut self.w, word, address, "i32", 4);
                            continue;
                        }
                        let pair = Ty { elem: Elem::I16, lanes: 2 };
                        let pair_value = self.w.cast("bitcast", word, Ty::I32, pair);
                        values = [0, 1].map(|n| text::lane(&mut self.w, pair_value, n, pair));
                    } else if together {
                        let both = text::vector(&mut self.w, &values, Elem::F32);
                        text::store(&mut self.w, both, address, "vector<2xf32>", 8);
                        continue;
                    }
                    let (ty, bytes) = if target.dtype == DType::BF16 { ("i16", 2) } else { ("f32", 4) };
                    for (n, value) in values.iter().enumerate() {
                        let at = text::bytes(&mut self.w, address, bytes * n);
                        if let Some(inside) = inside[n] {
                            self.w.open_if(inside);
                            text::store(&mut self.w, *value, at, ty, bytes);
                            self.w.end();
                        } else {
                            text::store(&mut self.w, *value, at, ty, bytes);
                        }
                    }
                }
            }
        }
    }

    /// Number of the thread's group of four in its warp, and its place in the group.
    pub(super) fn lane_parts(&mut self) -> (Val, Val) {
        let (two, three) = (text::int(&mut self.w, 2), text::int(&mut self.w, 3));
        let lane = self.lane;
        (self.w.op("lshr", lane, two, Ty::I32), self.w.op("and", lane, three, Ty::I32))
    }
}

/// Whether the result starts at an even element.
fn even(product: &Matmul) -> bool {
    let offset = &product.dst.offset;
    offset.constant % 2 == 0
        && offset.vars.iter().all(|(_, factor)| factor % 2 == 0)
        && offset.symbols.iter().all(|(_, factor)| factor % 2 == 0)
}

pub(super) fn size(n: usize) -> i64 {
    i64::try_from(n).expect("a buffer fits memory")
}
