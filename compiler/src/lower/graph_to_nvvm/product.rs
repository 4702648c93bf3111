//! Products of matrices, on the tensor cores.
//!
//! Comes in: a contraction with rows on one side and columns on the other. Goes out: its elements in the registers of
//! the threads that [`super::shape`] says. Operands lie in shared memory as bfloat16 ([`Block::tile`]) and are read as
//! 8 × 8 matrices, or are computed element by element by the warp that needs them. Sums are float32.
//!
//! Where one operand is a triangle of ones, the other is the sum of two bfloat16 numbers, so that sixteen bits of each
//! number are kept. So are operands that [`crate::graph::edits`] says have to keep their digits.

use super::Refusal;
use super::block::{Block, Element, Point, Tile};
use super::index::{Linear, Step};
use super::memory::Touch;
use super::shape::{STRIP, Shape, extent};
use crate::graph::edits::is_exact;
use crate::graph::ir::{DimId, NodeId, Op, Unary};
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;

/// Summands of a float32 that are bfloat16: with two of them a number keeps sixteen bits, which is enough where tensors
/// have eight, and more than a logarithm needs whose exponential is small when it is large.
pub const PARTS: usize = 2;

/// Bytes from one matrix of eight rows of sixteen bytes to the next.
const CORE: usize = 128 + 16;

/// Bytes of an operand that has a matrix for each block of tokens.
const LARGEST_OPERAND: usize = 80 << 10;

/// Where an operand of a product comes from.
pub(super) enum Source {
    /// A matrix in shared memory.
    Tile(Tile),
    /// Computed by whoever needs it, as so many summands.
    Elements(NodeId, usize),
}

/// What is done with a product at once.
#[derive(Clone, Copy, Debug)]
pub enum Around {
    /// Nothing.
    Nothing,
    /// Its sums start from a value.
    Start(NodeId),
    /// Only a function of it is wanted.
    Function(Unary),
}

/// A product about to be written.
pub(super) struct Product<'p> {
    pub shape: &'p Shape,
    pub outer: &'p Point,
    pub over: &'p [DimId],
    /// Warps have strips and eights of the result: columns of it, for an operand on the right.
    pub n_cols: usize,
}

impl Block<'_> {
    /// Whether a contraction is a product of matrices.
    pub fn is_product(&self, x: NodeId) -> bool {
        let Op::Contract(a, b, over) = self.op(x) else { return false };
        let own = |one: NodeId, other: NodeId| {
            let dims: Vec<DimId> = self.dims(one).iter().copied().filter(|d| !self.dims(other).contains(d)).collect();
            extent(self.graph, &dims)
        };
        let long = extent(self.graph, over) >= 8;
        let matrix = Shape::of(self.graph, self.dims(x)).is_some_and(|shape| shape.is_matrix());
        long && matrix && own(*a, *b) >= 4 && own(*b, *a) >= 4
    }

    /// Computes a product into registers, as elements of another value: the sums start from a third one, or a function
    /// of them is what is kept.
    pub fn product(&mut self, x: NodeId, result: NodeId, around: Around) -> Result<(), Refusal> {
        let start = match around {
            Around::Start(start) => Some(start),
            Around::Nothing | Around::Function(_) => None,
        };
        let Op::Contract(a, b, over) = self.op(x) else { return Err(self.bug(x, "is no product")) };
        let shape = self.matrix(self.dims(x))?;
        let has = |this: &Self, operand: NodeId, dims: &[DimId]| {
            dims.last().is_some_and(|last| this.dims(operand).contains(last))
        };
        let (left, right) = match (has(self, *a, &shape.rows), has(self, *b, &shape.rows)) {
            (true, false) => (*a, *b),
            (false, true) => (*b, *a),
            (true, true) | (false, false) => return Err(Refusal::unsupported("a product along blocks of both sides")),
        };
        if !has(self, right, &shape.cols) {
            return Err(Refusal::unsupported("a product whose rows and columns come from one side"));
        }
        let exact = is_exact(self.graph, left, right, self.options.exact_edits);
        let exact_left = exact || self.is_ones(right);
        let exact_right = exact || self.is_ones(left);
        self.ready(left)?;
        self.ready(right)?;
        if let Some(start) = start {
            self.ready(start)?;
        }
        let a = self.source(left, &shape.rows, &shape, exact_left)?;
        let b = self.source(right, &shape.cols, &shape, exact_right)?;
        self.statement();
        self.copy_some(self.products);
        self.products = self.products.saturating_sub(1);
        let n_cols = extent(self.graph, &shape.cols);
        let outer = self.outer_points(&shape.outer);
        let outer_count = outer.len();
        for outer in &outer {
            let product = Product { shape: &shape, outer, over, n_cols };
            let elements = self.elements(&shape, outer);
            let mut sums = Vec::new();
            for element in &elements {
                sums.push(match start {
                    Some(start) => self.eval(start, &element.at)?,
                    None => self.w.f32(0.0, 0),
                });
            }
            if !self.multiply_in_groups(&product, &a, &b, start.is_none(), &mut sums)? {
                self.multiply(&product, &a, &b, &mut sums)?;
            }
            let mut kept = Vec::new();
            for (element, sum) in elements.iter().zip(sums) {
                let key = self.key(result, &element.at)?;
                let value = match around {
                    Around::Function(function) => {
                        let value = self.function(function, sum);
                        text::pinned(&mut self.w, value)
                    }
                    Around::Nothing | Around::Start(_) => sum,
                };
                kept.push((key, value));
            }
            let count = elements.len() * outer_count;
            for pair in kept.chunks_exact(2) {
                self.keep(result, [pair[0], pair[1]], count);
            }
        }
        Ok(())
    }

    /// Adds a product to sums, which are in the order of [`Block::elements`].
    fn multiply(&mut self, product: &Product, a: &Source, b: &Source, sums: &mut [Val]) -> Result<(), Refusal> {
        let n_rows = extent(self.graph, &product.shape.rows);
        let (strips, eights) = (self.warps.strips(n_rows), self.warps.eights(product.n_cols));
        let steps = extent(self.graph, product.over).div_ceil(STRIP);
        for step in 0..steps {
            let mut left = Vec::new();
            for strip in 0..strips {
                left.push(self.left(product, a, strip, step * STRIP)?);
            }
            let mut eight = 0;
            while eight < eights {
                let together = if eights - eight >= 2 { 2 } else { 1 };
                let right = self.right(product, b, eight, together, step * STRIP)?;
                for (n, words) in right.iter().enumerate() {
                    for (strip, left) in left.iter().enumerate() {
                        let at = 4 * (strip * eights + eight + n);
                        // In the order of an element's half and column.
                        for (high, a) in left.iter().enumerate() {
                            for (low, b) in words.iter().enumerate() {
                                // What is second on both sides is below what is kept.
                                if high + low < PARTS {
                                    self.mma(a, b, &mut sums[at..at + 4]);
                                }
                            }
                        }
                    }
                }
                eight += together;
            }
        }
        Ok(())
    }

    pub fn mma(&mut self, a: &[Val], b: &[Val], sums: &mut [Val]) {
        let words = a.iter().chain(b).map(|word| (*word, Ty::I32));
        let operands: Vec<(Val, Ty)> = words.chain(sums.iter().map(|sum| (*sum, Ty::F32))).collect();
        let of = text::struct_of(4, Ty::F32);
        let result = text::intrinsic(&mut self.w, "llvm.nvvm.mma.m16n8k16.row.col.bf16", &operands, &of);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = text::member(&mut self.w, result, n, &of);
        }
    }

    /// Sixteen rows and sixteen steps of the left operand, for each of its summands.
    pub(super) fn left(
        &mut self,
        product: &Product,
        a: &Source,
        strip: usize,
        k: usize,
    ) -> Result<Vec<Vec<Val>>, Refusal> {
        let row = self.first_row(strip);
        match a {
            Source::Tile(tile) => {
                let tile = tile.clone();
                let (place, along_rows) = self.corner(&tile, product, &product.shape.rows, &row, k);
                // Matrices: rows, then steps.
                let pattern = if along_rows { Pattern::LowThenHigh } else { Pattern::HighThenLow };
                Ok((0..tile.parts.0).map(|part| self.matrices(&tile, &place, part, pattern, !along_rows, 4)).collect())
            }
            Source::Elements(x, parts) => {
                let mut numbers = Vec::new();
                for ahead in [0, 8] {
                    for half in [0, 8] {
                        for odd in [0, 1] {
                            let mut m = row.clone();
                            m.add(self.group, 1);
                            m.constant += half;
                            let mut at = product.outer.clone();
                            self.spread(&product.shape.rows, &m, &mut at);
                            numbers.push(self.step_element(*x, product, at, k, ahead + odd)?);
                        }
                    }
                }
                Ok(self.words_of(&numbers, *parts))
            }
        }
    }

    /// Eights of columns and sixteen steps of the right operand, for each of its summands.
    fn right(
        &mut self,
        product: &Product,
        b: &Source,
        eight: usize,
        together: usize,
        k: usize,
    ) -> Result<Vec<Vec<Vec<Val>>>, Refusal> {
        let first = self.first_col(product.n_cols, eight);
        match b {
            Source::Tile(tile) => {
                let tile = tile.clone();
                let (place, along_rows) = self.corner(&tile, product, &product.shape.cols, &first, k);
                let pattern = if along_rows { Pattern::HighThenLow } else { Pattern::LowThenHigh };
                let mut eights = vec![Vec::new(); together];
                for part in 0..tile.parts.0 {
                    let words = self.matrices(&tile, &place, part, pattern, !along_rows, 2 * together);
                    for (n, words) in words.chunks(2).enumerate() {
                        eights[n].push(words.to_vec());
                    }
                }
                Ok(eights)
            }
            Source::Elements(x, parts) => {
                let mut eights = Vec::new();
                for n in 0..together {
                    let first = self.first_col(product.n_cols, eight + n);
                    let mut numbers = Vec::new();
                    for ahead in [0, 8] {
                        for odd in [0, 1] {
                            let mut col = first.clone();
                            col.add(self.group, 1);
                            let mut at = product.outer.clone();
                            self.spread(&product.shape.cols, &col, &mut at);
                            // A block of tokens that both sides share is that of the warp's rows.
                            let mut row = Linear::value(self.down, STRIP as i64);
                            row.constant = 0;
                            let mut rows = Point::default();
                            self.spread(&product.shape.rows, &row, &mut rows);
                            at.0.extend(rows.0);
                            numbers.push(self.step_element(*x, product, at, k, ahead + odd)?);
                        }
                    }
                    eights.push(self.words_of(&numbers, *parts));
                }
                Ok(eights)
            }
        }
    }

    /// An operand's element: a thread has steps 2q, 2q + 1, 2q + 8 and 2q + 9 of sixteen.
    fn step_element(&mut self, x: NodeId, product: &Product, at: Point, k: usize, ahead: i64) -> Result<Val, Refusal> {
        let mut at = at;
        let mut step = Linear::value(self.quad, 2);
        step.constant = k as i64 + ahead;
        self.spread(product.over, &step, &mut at);
        let value = self.eval(x, &at)?;
        let padded = extent(self.graph, product.over).next_multiple_of(STRIP);
        Ok(match self.inside(product.over, &at, padded) {
            None => value,
            Some(inside) => {
                let zero = self.w.f32(0.0, 0);
                self.w.select(inside, value, zero, Ty::F32)
            }
        })
    }

    /// Numbers, two to a word, as summands.
    pub fn words_of(&mut self, numbers: &[Val], parts: usize) -> Vec<Vec<Val>> {
        let mut rest = numbers.to_vec();
        let mut all = Vec::new();
        for part in 0..parts {
            let words: Vec<Val> = rest.chunks(2).map(|pair| text::pack_bf16(&mut self.w, pair[0], pair[1])).collect();
            if part + 1 < parts {
                for (n, word) in words.iter().enumerate() {
                    let taken = text::unpack_bf16(&mut self.w, *word);
                    for odd in 0..2 {
                        rest[2 * n + odd] = self.w.op("fsub", rest[2 * n + odd], taken[odd], Ty::F32);
                    }
                }
            }
            all.push(words);
        }
        all
    }

    /// Where a fragment of an operand starts in its tile, and whether its rows (or columns, on the right) are the
    /// tile's.
    pub(super) fn corner(
        &mut self,
        tile: &Tile,
        product: &Product,
        own: &[DimId],
        first: &Linear,
        k: usize,
    ) -> (Linear, bool) {
        let mut at = product.outer.clone();
        self.spread(own, first, &mut at);
        self.spread(product.over, &Linear::number(k as i64), &mut at);
        // A block of tokens that both sides share is that of the warp's rows.
        let mut rows = Point::default();
        self.spread(&product.shape.rows, &Linear::value(self.down, STRIP as i64), &mut rows);
        at.0.extend(rows.0);
        let flat = |this: &Self, dims: &[DimId]| {
            let mut sum = Linear::default();
            let mut step = 1;
            for dim in dims.iter().rev() {
                if let Some(ix) = at.get(*dim) {
                    sum.add_scaled(&this.ix.get(ix).clone(), step);
                }
                step *= this.size(*dim) as i64;
            }
            sum
        };
        let mut bytes = Linear::number(tile.start as i64);
        let (row, col) = (flat(self, &tile.rows), flat(self, &tile.cols));
        self.add_step(&mut bytes, tile.row, &row);
        self.add_step(&mut bytes, tile.col, &col);
        for (dim, step) in &tile.outer {
            if let Some(ix) = at.get(*dim) {
                bytes.add_scaled(&self.ix.get(ix).clone(), *step as i64);
            }
        }
        if let Some((value, step)) = tile.half {
            bytes.add(value, step as i64);
        }
        let along_rows = own.last().is_some_and(|last| tile.rows.contains(last));
        (bytes, along_rows)
    }

    /// Reads 8 × 8 matrices, each lane the address of one row of one of them.
    pub fn matrices(
        &mut self,
        tile: &Tile,
        place: &Linear,
        part: usize,
        pattern: Pattern,
        transposed: bool,
        count: usize,
    ) -> Vec<Val> {
        self.touch(tile.region, Touch::Read);
        let lane_bytes = self.lane_bytes((tile.row, tile.col), pattern);
        let mut bytes = place.clone();
        bytes.constant += (tile.parts.1 * part) as i64;
        bytes.add(lane_bytes, 1);
        let address = self.shared(tile.region, &bytes);
        let trans = if transposed { ".trans" } else { "" };
        let of = text::struct_of(count, Ty::I32);
        let name = format!("llvm.nvvm.ldmatrix.sync.aligned.m8n8.x{count}{trans}.b16");
        let words =
            self.w.raw_value(format_args!("llvm.call_intrinsic \"{name}\"({}) : (!llvm.ptr<3>) -> {of}", address.at));
        let words = (0..count).map(|n| text::member(&mut self.w, words, n, &of)).collect::<Vec<_>>();
        match tile.finite {
            false => words,
            true => words.into_iter().map(|word| self.kept_finite(word)).collect(),
        }
    }

    /// Bytes from a fragment's corner to the row whose address a lane gives. Lanes 8 n to 8 n + 7 have the rows of matrix
    /// n; the low bit of n or the high one goes down the tile, the other across.
    fn lane_bytes(&mut self, (row, col): (Step, Step), pattern: Pattern) -> Val {
        if let Some(known) = self.lane_offsets.get(&(row, col, pattern)) {
            return *known;
        }
        let (seven, three, four, one) = (self.int(7), self.int(3), self.int(4), self.int(1));
        let lane = self.lane;
        let w = &mut self.w;
        let within = w.op("and", lane, seven, Ty::I32);
        let low = w.op("lshr", lane, three, Ty::I32);
        let low = w.op("and", low, one, Ty::I32);
        let high = w.op("lshr", lane, four, Ty::I32);
        let (down, across) = match pattern {
            Pattern::LowThenHigh => (low, high),
            Pattern::HighThenLow => (high, low),
        };
        let mut bytes = Linear::value(within, row.one as i64);
        bytes.add(down, row.eight as i64);
        bytes.add(across, col.eight as i64);
        let bytes = self.number(&bytes);
        if self.branches == 0 {
            self.lane_offsets.insert((row, col, pattern), bytes);
        }
        bytes
    }

    /// Where to take an operand from.
    fn source(&mut self, x: NodeId, own: &[DimId], shape: &Shape, exact: bool) -> Result<Source, Refusal> {
        if self.is_ones(x) {
            return Ok(Source::Elements(x, 1));
        }
        let parts = if exact && !self.is_narrow(x) { PARTS } else { 1 };
        // A side that differs from block to block of the other side's rows is no matrix of its own.
        let other: Vec<DimId> = shape.rows.iter().chain(&shape.cols).copied().filter(|d| !own.contains(d)).collect();
        if self.dims(x).iter().any(|d| other.contains(d)) {
            if self.warps.strips(extent(self.graph, &shape.rows)) > 1 {
                return Err(Refusal::unsupported("a product along blocks of both sides, of more blocks than warps"));
            }
            if !self.may_be_tile(x) {
                return Ok(Source::Elements(x, parts));
            }
        }
        if let Some(tile) = self.tile_of(x, parts) {
            return Ok(Source::Tile(tile));
        }
        let base = self.stripped(x);
        self.tile(base, parts)?;
        match self.tile_of(x, parts) {
            Some(tile) => Ok(Source::Tile(tile)),
            None => Err(self.bug(x, "has a matrix that is not found again")),
        }
    }

    /// Whether an operand that differs from block to block lies in shared memory whole: one matrix for each block, where
    /// there is room for them.
    fn may_be_tile(&self, x: NodeId) -> bool {
        let Some(shape) = Shape::of(self.graph, self.dims(x)).filter(Shape::is_matrix) else { return false };
        let (rows, cols) = self.room(extent(self.graph, &shape.rows), extent(self.graph, &shape.cols));
        let (_, _, bytes) = self.lie(rows, cols);
        let count = extent(self.graph, &shape.outer);
        count == 1 || self.options.whole_operands && count * bytes <= LARGEST_OPERAND
    }

    /// How an operand of so many rows and columns lies: steps down and to the right, and bytes in all. Row after row,
    /// which start in different banks; or, for warp groups, as matrices of eight rows of sixteen bytes, each by itself,
    /// with sixteen bytes between them for the same reason.
    pub fn lie(&self, rows: usize, cols: usize) -> (Step, Step, usize) {
        if self.in_groups() {
            let (down, right) = (rows.div_ceil(8), cols.div_ceil(8));
            let row = Step { one: 16, eight: CORE * right };
            return (row, Step { one: 2, eight: CORE }, row.eight * down);
        }
        let sixteens = (2 * cols).div_ceil(16);
        let pitch = 16 * if sixteens.is_multiple_of(2) { sixteens + 1 } else { sixteens };
        (Step::even(pitch), Step::even(2), rows * pitch)
    }

    /// Rows and columns of an operand in shared memory, also where its rows are columns of a product, or its columns rows:
    /// what lies beyond a matrix is read, and not used.
    pub fn room(&self, n_rows: usize, n_cols: usize) -> (usize, usize) {
        let both = |n: usize| self.warps.padded_rows(n).max(self.warps.padded_cols(n)).next_multiple_of(STRIP);
        (both(n_rows), both(n_cols))
    }

    /// Writes a value to shared memory as an operand.
    pub fn tile(&mut self, x: NodeId, parts: usize) -> Result<(), Refusal> {
        if self.tiles.contains_key(&(x, parts)) {
            return Ok(());
        }
        self.ready(x)?;
        let shape = self.matrix(self.dims(x))?;
        let (n_rows, n_cols) = (extent(self.graph, &shape.rows), extent(self.graph, &shape.cols));
        let (rows, cols) = self.room(n_rows, n_cols);
        let (row, col, matrix) = self.lie(rows, cols);
        let count = extent(self.graph, &shape.outer);
        let mut outer = Vec::new();
        let mut step = matrix;
        for dim in shape.outer.iter().rev() {
            outer.push((*dim, step));
            step *= self.size(*dim);
        }
        let region = self.memory.allocate(matrix * count * parts, false);
        let tile = Tile {
            region,
            rows: shape.rows.clone(),
            cols: shape.cols.clone(),
            outer,
            row,
            col,
            start: 0,
            parts: (parts, matrix * count),
            half: None,
            finite: false,
        };
        let points = self.outer_points(&shape.outer);
        let mut all = Vec::new();
        for point in &points {
            let elements = self.elements(&shape, point);
            let mut values = Vec::new();
            for element in &elements {
                let value = self.eval(x, &element.at)?;
                values.push(match self.real(&shape, &element.at) {
                    None => value,
                    Some(real) => {
                        let zero = self.w.f32(0.0, 0);
                        self.w.select(real, value, zero, Ty::F32)
                    }
                });
            }
            let words = self.words_of(&values, parts);
            all.push((elements, words));
        }
        self.statement();
        self.touch(region, Touch::Write);
        self.unfenced = true;
        for (elements, words) in all {
            for (part, words) in words.iter().enumerate() {
                if self.options.store_matrices {
                    self.store_matrices(&tile, &shape, (part, &elements), words);
                    continue;
                }
                for (pair, word) in elements.chunks(2).zip(words) {
                    let bytes = self.place_in(&tile, &shape, part, &pair[0].at);
                    let address = self.shared(region, &bytes);
                    text::store(&mut self.w, *word, address, "i32", 4);
                }
            }
        }
        self.tiles.insert((x, parts), tile);
        Ok(())
    }

    /// Where one of an operand's summands has an element.
    fn place_in(&mut self, tile: &Tile, shape: &Shape, part: usize, at: &Point) -> Linear {
        let mut bytes = Linear::number((part * tile.parts.1) as i64);
        let (row, col) = (self.flat(&shape.rows, at), self.flat(&shape.cols, at));
        self.add_step(&mut bytes, tile.row, &row);
        self.add_step(&mut bytes, tile.col, &col);
        self.add_steps(&mut bytes, &tile.outer, at);
        bytes
    }

    /// Writes an operand's words as 8 × 8 matrices, four at a time where there are as many, each lane the address of one row
    /// of one of them.
    fn store_matrices(&mut self, tile: &Tile, shape: &Shape, (part, elements): (usize, &[Element]), words: &[Val]) {
        let count = if self.warps.eights(extent(self.graph, &shape.cols)) == 1 { 2 } else { 4 };
        // Both halves of a strip's rows, then the next eight.
        let lanes = self.lane_bytes((tile.row, tile.col), Pattern::LowThenHigh);
        for (elements, words) in elements.chunks(2 * count).zip(words.chunks(count)) {
            let first = &elements[0];
            let (row, col) =
                (self.first_row(first.strip), self.first_col(extent(self.graph, &shape.cols), first.eight));
            let at = self.moved(&first.at, &shape.rows, &row);
            let at = self.moved(&at, &shape.cols, &col);
            let mut bytes = self.place_in(tile, shape, part, &at);
            bytes.add(lanes, 1);
            let address = self.shared(tile.region, &bytes);
            text::store_matrices(&mut self.w, address, words);
        }
    }

    /// The number that counts positions along dimensions together.
    pub fn flat(&self, dims: &[DimId], at: &Point) -> Linear {
        let mut sum = Linear::default();
        let mut step = 1;
        for dim in dims.iter().rev() {
            let ix = at.get(*dim).expect("a position of each dimension");
            sum.add_scaled(self.ix.get(ix), step);
            step *= self.size(*dim) as i64;
        }
        sum
    }
}

/// Which bit of a matrix's number goes down the tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// The low one.
    LowThenHigh,
    /// The high one.
    HighThenLow,
}
