//! Makes values ready that threads have to work on together, before their elements are asked for.
//!
//! Comes in: a value. Goes out: nothing, but after it [`Block::eval`] finds what it needs. Everything a value is
//! computed from is looked at once; what is ready stays so to the end of the step.

use super::Refusal;
use super::block::{Block, Fold, Home, Point};
use super::eval::FEW;
use super::index::{Ix, Linear, Step};
use super::memory::Touch;
use super::product::Around;
use super::shape::{STRIP, Shape, extent};
use crate::graph::ir::{Binary, DimId, DimKind, NodeId, Op};
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;

/// An element, its value, and whether it is this thread that stores it; none if it is.
pub type Owned = (Point, Val, Option<Val>);

impl Block<'_> {
    /// See to it that elements of a value can be asked for.
    pub fn ready(&mut self, x: NodeId) -> Result<(), Refusal> {
        if self.is_at_hand(x) || self.segments.contains_key(&x) || !self.visited.insert(x) {
            return Ok(());
        }
        match self.op(x) {
            Op::Const(_) => {}
            Op::Input { .. } => return Err(self.bug(x, "was not read at the start")),
            Op::Binary(Binary::Add, a, b) if self.fused(x, *a, *b)? => {}
            // Who only wants a function of a product need not hold both.
            Op::Unary(function, y) if self.uses[y.index()] == 1 && self.is_product(*y) && !self.is_at_hand(*y) => {
                self.product(*y, x, Around::Function(*function))?;
            }
            Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::Guard(..)
            | Op::Diagonal(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::StopGradient(_) => self.operands_ready(x)?,
            Op::DiagonalPart(y, row, col) => {
                self.ready(*y)?;
                self.diagonal_part(x, *y, *row, *col)?;
            }
            Op::Contract(..) if self.is_product(x) => self.product(x, x, Around::Nothing)?,
            Op::Contract(_, _, over) | Op::Sum(_, over) => {
                self.operands_ready(x)?;
                if !self.is_few(x, over) {
                    self.reduce(x, over)?;
                } else if self.is_of_blocks(self.dims(x)) {
                    self.park_flat(x)?;
                }
            }
            Op::MaxOver(_, over) => {
                self.operands_ready(x)?;
                self.reduce(x, &[*over])?;
            }
            Op::Segment { gates, row, .. } if gates.events.is_empty() || self.size(*row) <= FEW => {
                self.operands_ready(x)?;
                if !gates.events.is_empty() {
                    self.park_flat(x)?;
                }
            }
            Op::Segment { .. } => self.segment_tables(x)?,
            Op::Boundary { .. } => self.boundary_tables(x)?,
            Op::Inverse(_) => self.inverse(x)?,
            Op::Solve(_) => return Err(Refusal::unsupported("a triangular system that is not inverted")),
            Op::Gated { .. } => self.gated(x)?,
            Op::BodyInput(_) | Op::SegmentGrad { .. } | Op::BoundaryGrad { .. } | Op::Scan(_) | Op::ScanResult(..) => {
                return Err(Refusal::unsupported(&self.op_name(x)));
            }
        }
        if self.parked.contains(&x) && !self.homes.contains_key(&x) {
            self.park(x)?;
        }
        Ok(())
    }

    fn operands_ready(&mut self, x: NodeId) -> Result<(), Refusal> {
        for operand in self.op(x).operands() {
            self.ready(operand)?;
        }
        Ok(())
    }

    /// The word that an operation begins with.
    fn op_name(&self, x: NodeId) -> String {
        let text = format!("{:?}", self.op(x));
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    /// A product that something is added to starts its sums from that, if nobody else wants the product.
    fn fused(&mut self, x: NodeId, a: NodeId, b: NodeId) -> Result<bool, Refusal> {
        for (product, start) in [(b, a), (a, b)] {
            let alone = self.uses[product.index()] == 1 && !self.is_at_hand(product) && a != b;
            if alone && self.is_product(product) && self.dims(product) == self.dims(x) {
                self.product(product, x, Around::Start(start))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether each thread sums for itself: over dimensions of which every position is its own.
    pub fn is_few(&self, x: NodeId, over: &[DimId]) -> bool {
        if over.is_empty() {
            return true;
        }
        let union = self.union(x);
        if self.is_of_blocks(&union) && extent(self.graph, over) <= FEW {
            return true;
        }
        let Some(shape) = Shape::of(self.graph, &union) else { return extent(self.graph, over) <= 4 };
        let outer = over.iter().all(|d| shape.outer.contains(d));
        outer && extent(self.graph, over) <= FEW
    }

    /// Whether there is a number for each block of tokens, perhaps of each position of an axis, and none for a token.
    fn is_of_blocks(&self, dims: &[DimId]) -> bool {
        let kind = |d: &DimId| self.graph.dim(*d).kind;
        let block = dims.iter().any(|d| matches!(kind(d), DimKind::Block | DimKind::BlockCol));
        block && !dims.iter().any(|d| matches!(kind(d), DimKind::Row | DimKind::Col | DimKind::Slot))
    }

    /// The dimensions of what is summed.
    fn union(&self, x: NodeId) -> Vec<DimId> {
        let mut dims: Vec<DimId> = self.op(x).operands().iter().flat_map(|y| self.dims(*y).to_vec()).collect();
        let rank = |d: &DimId| (self.graph.dim(*d).kind, *d);
        dims.sort_by_key(rank);
        dims.dedup();
        dims
    }

    /// The number that is summed, or compared, at a position.
    fn summand(&mut self, x: NodeId, at: &Point) -> Result<Val, Refusal> {
        match self.op(x) {
            Op::Sum(y, _) | Op::MaxOver(y, _) => self.eval(*y, at),
            Op::Contract(a, b, _) => {
                let (a, b) = (self.eval(*a, at)?, self.eval(*b, at)?);
                Ok(self.w.op("fmul", a, b, Ty::F32))
            }
            _ => Err(self.bug(x, "is no sum")),
        }
    }

    fn folded(&mut self, fold: Fold, sum: Option<Val>, value: Val) -> Val {
        match (sum, fold) {
            (None, _) => value,
            (Some(sum), Fold::Sum) => self.w.op("fadd", sum, value, Ty::F32),
            (Some(sum), Fold::Max) => self.functions.binary(&mut self.w, Binary::Max, sum, value, 0),
        }
    }

    /// A sum or maximum over dimensions that threads share.
    fn reduce(&mut self, x: NodeId, over: &[DimId]) -> Result<(), Refusal> {
        let fold = if matches!(self.op(x), Op::MaxOver(..)) { Fold::Max } else { Fold::Sum };
        let union = self.union(x);
        let shape = Shape::of(self.graph, &union).ok_or_else(|| Refusal::unsupported("a sum over such dimensions"))?;
        if !shape.is_matrix() {
            return self.reduce_vector(x, over, &union, fold);
        }
        let all = |dims: &[DimId]| dims.iter().all(|d| over.contains(d));
        let none = |dims: &[DimId]| !dims.iter().any(|d| over.contains(d));
        let within = shape.rows.len() == 2 && all(&shape.rows[1..]) && none(&shape.rows[..1]) && none(&shape.cols);
        let (down, across) = match (all(&shape.rows), all(&shape.cols), within) {
            (true, true, _) => (true, true),
            (true, false, _) if none(&shape.cols) => (true, false),
            (false, true, _) if none(&shape.rows) => (false, true),
            (false, false, true) => (true, false),
            _ => return Err(Refusal::unsupported("a sum over a part of the rows or columns")),
        };
        // Sums over outer dimensions are each thread's own.
        let kept: Vec<DimId> = shape.outer.iter().copied().filter(|d| !over.contains(d)).collect();
        let gone: Vec<DimId> = shape.outer.iter().copied().filter(|d| over.contains(d)).collect();
        let parts = match (down && !within, across) {
            (true, true) => self.warps.count(),
            (true, false) => self.warps.down,
            (false, true) => self.warps.across,
            (false, false) => 1,
        };
        let home = self.flat_home(self.dims(x), parts, fold);
        let mut stores: Vec<(Linear, Val)> = Vec::new();
        for outer in self.outer_points(&kept) {
            let mut sums: Vec<(Point, (usize, usize), Option<Val>)> = Vec::new();
            for inner in self.outer_points(&gone) {
                let mut point = outer.clone();
                point.0.extend(inner.0);
                for element in self.elements(&shape, &point) {
                    let mut value = self.summand(x, &element.at)?;
                    if let Some(real) = self.real(&shape, &element.at) {
                        let neutral = self.w.f32(if fold == Fold::Sum { 0.0 } else { f32::NEG_INFINITY }, 0);
                        value = self.w.select(real, value, neutral, Ty::F32);
                    }
                    let row = if within { element.strip } else { 2 * element.strip + element.half };
                    let row = if down && !within { 0 } else { row };
                    let col = if across { 0 } else { 2 * element.eight + element.odd };
                    match sums.iter_mut().find(|(_, own, _)| *own == (row, col)) {
                        Some((_, _, sum)) => *sum = Some(self.folded(fold, *sum, value)),
                        None => sums.push((element.at, (row, col), Some(value))),
                    }
                }
            }
            for (at, _, sum) in sums {
                let mut sum = sum.expect("there is an element");
                let distances: &[usize] = match (down, across) {
                    (true, true) => &[1, 2, 4, 8, 16],
                    (true, false) => &[4, 8, 16],
                    (false, _) => &[1, 2],
                };
                for distance in distances {
                    let other = self.exchanged(sum, *distance);
                    sum = self.folded(fold, Some(sum), other);
                }
                let mut bytes = Linear::default();
                self.add_place(&mut bytes, &home, &at);
                let step = home.parts.1 as i64;
                if down && !within {
                    bytes.add(self.down, step);
                }
                if across {
                    let factor = if down && !within { step * self.warps.down as i64 } else { step };
                    bytes.add(self.across, factor);
                }
                stores.push((bytes, sum));
            }
        }
        // After the exchanges all threads that share a sum have it: the first of them stores it.
        let zero = self.int(0);
        let first = match (down, across) {
            (true, true) => self.lane,
            (true, false) => self.group,
            (false, _) => self.quad,
        };
        let first = self.w.icmp("eq", first, zero, Ty::I32);
        self.statement();
        self.touch(home.region, Touch::Write);
        self.open_if(first);
        for (bytes, sum) in stores {
            let address = self.shared(home.region, &bytes);
            text::store(&mut self.w, sum, address, "f32", 4);
        }
        self.close_if();
        self.homes.insert(x, home);
        Ok(())
    }

    /// A sum of few numbers: every warp makes it, all alike.
    fn reduce_vector(&mut self, x: NodeId, over: &[DimId], union: &[DimId], fold: Fold) -> Result<(), Refusal> {
        let [only] = over else { return Err(Refusal::unsupported("a sum over two dimensions of a few numbers")) };
        let kept: Vec<DimId> = union.iter().copied().filter(|d| d != only).collect();
        if extent(self.graph, &kept) > FEW {
            return Err(Refusal::unsupported("many sums of few numbers"));
        }
        let home = self.flat_home(self.dims(x), 1, fold);
        let n = self.size(*only);
        let mut stores = Vec::new();
        for point in self.outer_points(&kept) {
            let mut sum: Option<Val> = None;
            for start in (0..n).step_by(32) {
                let mut linear = Linear::value(self.lane, 1);
                linear.constant = start as i64;
                let ix = self.ix.of(linear);
                let at = point.with(*only, ix);
                let mut value = self.summand(x, &at)?;
                if let Some(inside) = self.inside(&[*only], &at, n.next_multiple_of(32)) {
                    let neutral = self.w.f32(if fold == Fold::Sum { 0.0 } else { f32::NEG_INFINITY }, 0);
                    value = self.w.select(inside, value, neutral, Ty::F32);
                }
                sum = Some(self.folded(fold, sum, value));
            }
            let mut sum = sum.expect("a dimension has positions");
            for distance in [1, 2, 4, 8, 16] {
                let other = self.exchanged(sum, distance);
                sum = self.folded(fold, Some(sum), other);
            }
            let mut bytes = Linear::default();
            self.add_place(&mut bytes, &home, &point);
            stores.push((bytes, sum));
        }
        self.statement();
        self.touch(home.region, Touch::Write);
        let zero = self.int(0);
        let first = self.w.icmp("eq", self.thread, zero, Ty::I32);
        self.open_if(first);
        for (bytes, sum) in stores {
            let address = self.shared(home.region, &bytes);
            text::store(&mut self.w, sum, address, "f32", 4);
        }
        self.close_if();
        self.homes.insert(x, home);
        Ok(())
    }

    /// The diagonal of a matrix: what lies off it is left out of a sum over its columns. Of blocks, the diagonal ones.
    fn diagonal_part(&mut self, x: NodeId, y: NodeId, row: DimId, col: DimId) -> Result<(), Refusal> {
        let shape = self.matrix(self.dims(y))?;
        if !shape.outer.is_empty() {
            return Err(Refusal::unsupported("the diagonals of many matrices"));
        }
        let home = self.flat_home(self.dims(x), 1, Fold::Sum);
        let nowhere = Point::default();
        let elements = self.elements(&shape, &nowhere);
        let mut found = Vec::new();
        for element in elements {
            let value = self.eval(y, &element.at)?;
            let (a, b) = (element.at.get(row).expect("a row"), element.at.get(col).expect("a column"));
            let same = match self.compare("eq", a, b) {
                super::eval::Known::Never => continue,
                super::eval::Known::Always => None,
                super::eval::Known::Perhaps(cond) => Some(cond),
            };
            let real = self.real(&shape, &element.at);
            found.push((element.at.clone(), value, self.both(same, real)));
        }
        self.store_flat(&home, found);
        self.homes.insert(x, home);
        Ok(())
    }

    /// Positions along a dimension that threads may ask for, beyond its end too.
    pub fn asked(&self, dim: DimId) -> usize {
        let (kind, size) = (self.graph.dim(dim).kind, self.size(dim));
        let both = |n: usize| self.warps.padded_rows(n).max(self.warps.padded_cols(n));
        match kind {
            DimKind::Slot => size,
            DimKind::Block | DimKind::BlockCol => both(size * STRIP) / STRIP,
            // Inside a block of several.
            DimKind::Row | DimKind::Col if size == STRIP && self.graph.tokens > STRIP => size,
            DimKind::Row | DimKind::Col | DimKind::Axis(_) => both(size).max(size.next_multiple_of(32)),
        }
    }

    /// Room for a value in float32, every dimension as long as anybody may ask.
    pub fn flat_home(&mut self, dims: &[DimId], parts: usize, fold: Fold) -> Home {
        let mut strides = Vec::new();
        let mut step = 4;
        for dim in dims.iter().rev() {
            strides.push((*dim, Step::even(step)));
            step *= self.asked(*dim);
        }
        let bytes = step.next_multiple_of(16);
        let region = self.memory.allocate(bytes * parts, false);
        Home { region, dtype: DType::F32, strides, parts: (parts, bytes), fold, half: None }
    }

    /// Writes a value of few elements to shared memory, each element by one thread.
    pub fn park_flat(&mut self, x: NodeId) -> Result<(), Refusal> {
        let dims = self.dims(x);
        let home = self.flat_home(dims, 1, Fold::Sum);
        let stores = self.flat_elements(dims, |this, at| this.eval(x, at))?;
        self.store_flat(&home, stores);
        self.homes.insert(x, home);
        Ok(())
    }

    /// Stores what [`Block::flat_elements`] gives.
    pub fn store_flat(&mut self, home: &Home, stores: Vec<Owned>) {
        self.statement();
        self.touch(home.region, Touch::Write);
        for (at, value, own) in stores {
            let mut bytes = Linear::default();
            self.add_place(&mut bytes, home, &at);
            if let Some(own) = own {
                self.open_if(own);
            }
            let address = self.shared(home.region, &bytes);
            text::store(&mut self.w, value, address, "f32", 4);
            if own.is_some() {
                self.close_if();
            }
        }
    }

    /// Every element of some dimensions, the longest spread over the threads. Threads beyond its end compute as the last
    /// does, and store nothing.
    pub fn flat_elements(
        &mut self,
        dims: &[DimId],
        mut value: impl FnMut(&mut Self, &Point) -> Result<Val, Refusal>,
    ) -> Result<Vec<Owned>, Refusal> {
        let (thread, threads) = self.copiers;
        let Some(longest) = dims.iter().copied().max_by_key(|d| self.size(*d)) else {
            let nowhere = Point::default();
            let value = value(self, &nowhere)?;
            let zero = self.int(0);
            let first = self.w.icmp("eq", thread, zero, Ty::I32);
            return Ok(vec![(nowhere, value, Some(first))]);
        };
        let n = self.size(longest);
        let rest: Vec<DimId> = dims.iter().copied().filter(|d| *d != longest).collect();
        // Where a row is shorter than the block, its threads take several at once.
        let width = n.next_power_of_two();
        let second = rest.iter().copied().max_by_key(|d| self.size(*d));
        let rows = match second {
            Some(second) if width < threads && self.size(second).is_multiple_of(threads / width) => threads / width,
            Some(_) | None => 1,
        };
        let (place, group) = if rows > 1 {
            let (mask, shift) = (self.int(width - 1), self.int(width.ilog2() as usize));
            let place = self.w.op("and", thread, mask, Ty::I32);
            (place, Some(self.w.op("lshr", thread, shift, Ty::I32)))
        } else {
            (thread, None)
        };
        let mut stores = Vec::new();
        let turns = if rows > 1 { 1 } else { n.div_ceil(threads) };
        for turn in 0..turns {
            let last = self.int(n - 1);
            let at = self.int(turn * threads);
            let at = if turn == 0 { place } else { self.w.op("add", place, at, Ty::I32) };
            let exact = (if rows > 1 { width } else { threads * turns }) == n;
            let mut own = None;
            let at = if exact {
                at
            } else {
                own = Some(self.w.icmp("sle", at, last, Ty::I32));
                self.w.intrinsic("smin", &[at, last], Ty::I32)
            };
            let along = self.ix.of(Linear::value(at, 1));
            let mut points = vec![Point::default().with(longest, along)];
            for dim in &rest {
                let mut next = Vec::new();
                for point in &points {
                    for n in self.places(*dim, second, rows, group) {
                        next.push(point.with(*dim, n));
                    }
                }
                points = next;
            }
            for point in points {
                let value = value(self, &point)?;
                stores.push((point, value, own));
            }
        }
        Ok(stores)
    }

    /// Positions of a dimension a thread goes through: all, or those of its group.
    fn places(&mut self, dim: DimId, second: Option<DimId>, rows: usize, group: Option<Val>) -> Vec<Ix> {
        let size = self.size(dim);
        match group {
            Some(group) if second == Some(dim) => (0..size / rows)
                .map(|n| {
                    let mut linear = Linear::value(group, (size / rows) as i64);
                    linear.constant = n as i64;
                    self.ix.of(linear)
                })
                .collect(),
            Some(_) | None => (0..size).map(|n| self.fixed(n)).collect(),
        }
    }

    /// Writes a value in registers to shared memory in float32, for threads that did not compute it.
    fn park(&mut self, x: NodeId) -> Result<(), Refusal> {
        let Some(shape) = Shape::of(self.graph, self.dims(x)).filter(Shape::is_matrix) else {
            return self.park_flat(x);
        };
        let home = self.flat_home(self.dims(x), 1, Fold::Sum);
        let mut stores = Vec::new();
        for outer in self.outer_points(&shape.outer) {
            for element in self.elements(&shape, &outer) {
                let value = self.eval(x, &element.at)?;
                stores.push((element.at, value, None));
            }
        }
        self.store_flat(&home, stores);
        self.homes.insert(x, home);
        Ok(())
    }
}
