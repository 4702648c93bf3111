//! Tensors of the caller into shared memory, and where the block's item and tensors are.
//!
//! Comes in: inputs of the graph. Goes out: copies under way, sixteen bytes at a time past the registers where rows
//! allow it, and homes for what arrives. A void row of an input repeats the last real one, or is zero where that makes
//! no difference but to save a test.

use super::Refusal;
use super::block::{Block, Fold, Home, Tile};
use super::index::{Linear, Step};
use super::memory::Region;
use super::shape::{STRIP, Shape, extent};
use crate::graph::ir::{Binary, DimId, InputKind, NodeId, Op, Unary};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::call::{self, element};
use crate::lower::tile_to_nvvm::text::{self, Address};
use chunkwise_abi::DType;
use chunkwise_abi::gpu::Grid;

/// Inputs with fewer elements a token are read one by one.
const SHORT: usize = 8;

/// An input of the graph that changes from chunk to chunk.
#[derive(Clone, Debug)]
pub struct Staged {
    /// The value.
    pub node: NodeId,
    /// Number of its tensor.
    pub(super) arg: usize,
    /// Where it goes.
    pub(super) way: Way,
    /// Where it lies.
    pub(super) home: Home,
    /// Void rows are zero.
    pub(super) zero: bool,
}

impl Staged {
    /// Where it lies.
    pub fn region(&self) -> Region {
        self.home.region
    }

    /// Says which half of its room holds what is used now.
    pub fn set_parity(&mut self, parity: Val) {
        if let Some((value, _)) = &mut self.home.half {
            *value = parity;
        }
    }
}

/// A number that was read, and is stored later: where, and whether it is this thread that does.
pub struct Later {
    pub(super) region: Region,
    pub(super) bytes: Linear,
    pub(super) value: Val,
    pub(super) own: Option<Val>,
}

/// How an input is read.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Element by element, into float32.
    Elements,
    /// Row by row: dimensions that are rows, others that are not columns, bytes of a row and how many at a time.
    Rows { shape: Shape, run: usize, piece: usize },
}

impl Block<'_> {
    /// Finds the sequence, the head, the chunk and the tensors that the graph names.
    pub fn item(&mut self, grid: Grid) {
        let found = call::read(&mut self.w, self.args, grid);
        self.length = self.w.cast("trunc", found.length, Ty::I64, Ty::I32);
        self.first = text::register(&mut self.w, "ctaid.x");
        self.tensors = found.tensors;
    }

    /// The number of a tensor.
    pub fn arg(&self, name: &str) -> Result<usize, Refusal> {
        let found = self.args.iter().position(|arg| arg.name == name);
        found.ok_or_else(|| Refusal::Bug(format!("no argument `{name}`")))
    }

    /// Elements from one position to the next of a tensor's inner dimensions, whole axes counted.
    pub fn inner_strides(&self, arg: usize, layout: &[DimId]) -> Vec<(DimId, usize)> {
        layout.iter().copied().zip(self.args[arg].strides()).collect()
    }

    /// Where a block's part of an axis begins, in elements of a tensor with that layout; none if it has them all.
    pub fn part_offset(&mut self, arg: usize, layout: &[DimId]) -> Option<Val> {
        let (dim, first) = self.part?;
        let (_, stride) = self.inner_strides(arg, layout).into_iter().find(|(d, _)| *d == dim)?;
        let stride = self.int(stride);
        Some(self.w.op("mul", first, stride, Ty::I32))
    }

    /// Whether an input may be zero in void rows without anybody seeing it: nothing divides by it or takes a logarithm.
    pub fn may_be_zero(&self, x: NodeId) -> bool {
        let mut reached = vec![false; self.graph.nodes.len()];
        reached[x.index()] = true;
        for (n, node) in self.graph.nodes.iter().enumerate() {
            if !node.op.operands().iter().any(|operand| reached[operand.index()]) {
                continue;
            }
            match &node.op {
                Op::Guard(_, fill) if *fill == 0.0 => {}
                Op::Unary(Unary::Log | Unary::Recip, _) | Op::Binary(Binary::Div | Binary::Pow, ..) => return false,
                _ => reached[n] = true,
            }
        }
        true
    }

    /// Room for the inputs that change from chunk to chunk; twice, if the next chunk's arrive while this one's are used.
    pub fn staged(&mut self, double: bool) -> Result<Vec<Staged>, Refusal> {
        let mut all = Vec::new();
        for n in 0..self.graph.nodes.len() {
            let node = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            let Op::Input { name, kind, layout } = self.op(node) else { continue };
            let zero = match kind {
                InputKind::Carry | InputKind::Head => continue,
                InputKind::Cotangent => true,
                InputKind::Token => self.may_be_zero(node),
                InputKind::Saved => false,
            };
            if zero {
                self.zeroed.insert(node);
            }
            let arg = self.arg(name)?;
            let dtype = self.args[arg].dtype;
            let dims = self.dims(node);
            let inner: usize = layout.iter().map(|d| self.size(*d)).product();
            let shape = Shape::of(self.graph, dims).filter(Shape::is_matrix);
            let long = *kind == InputKind::Saved || inner >= SHORT;
            let (way, home) = match shape.filter(|_| long) {
                None => {
                    if extent(self.graph, dims) > 1024 {
                        return Err(Refusal::unsupported(&format!("`{name}` element by element")));
                    }
                    (Way::Elements, self.flat_home(dims, 1, Fold::Sum))
                }
                Some(shape) => self.rows(node, arg, layout, &shape, dtype)?,
            };
            let home = Home { region: Region(u32::MAX), ..home };
            all.push((Staged { node, arg, way, home, zero }, self.bytes_of(node)));
        }
        // Regions, now that their sizes are known.
        let mut staged = Vec::new();
        for (mut input, bytes) in all {
            let bytes = bytes.next_multiple_of(128);
            // What is cleared once stays so.
            let always = double || self.beyond(&input) != (0, 0);
            input.home.region = self.memory.allocate(if double { 2 * bytes } else { bytes }, always);
            input.home.half = double.then_some((self.parity, bytes));
            staged.push(input);
        }
        Ok(staged)
    }

    fn rows(
        &mut self,
        node: NodeId,
        arg: usize,
        layout: &[DimId],
        shape: &Shape,
        dtype: DType,
    ) -> Result<(Way, Home), Refusal> {
        let name = &self.args[arg].name;
        let refuse = || Refusal::unsupported(&format!("`{name}` as it lies in memory"));
        let ([col], size) = (&shape.cols[..], dtype.bytes()) else { return Err(refuse()) };
        if layout.last() != Some(col) {
            return Err(refuse());
        }
        if dtype == DType::F16 {
            return Err(Refusal::unsupported("float16"));
        }
        let run = self.size(*col) * size;
        let whole_run = self.args[arg].inner.last().copied().unwrap_or(1) * size;
        let piece = [16, 8, 4].into_iter().find(|n| run.is_multiple_of(*n) && whole_run.is_multiple_of(*n));
        let piece = piece.ok_or_else(|| Refusal::unsupported(&format!("rows of `{name}` of {run} bytes")))?;
        let n_rows = extent(self.graph, &shape.rows);
        let (rows, cols) = self.room(n_rows, self.size(*col));
        let (row, across, matrix) = match dtype {
            DType::BF16 => self.lie(rows, cols),
            DType::F32 | DType::F16 => {
                let pitch = 4 * cols + 16;
                (Step::even(pitch), Step::even(size), rows * pitch)
            }
        };
        let mut strides = vec![(*col, across)];
        let mut before = 1;
        for dim in shape.rows.iter().rev() {
            strides.push((*dim, if before == 1 { row } else { Step::even(row.ahead(before)) }));
            before *= self.size(*dim);
        }
        let mut step = matrix;
        for dim in shape.outer.iter().rev() {
            strides.push((*dim, Step::even(step)));
            step *= self.size(*dim);
        }
        self.sizes.insert(node, step);
        let home = Home { region: Region(u32::MAX), dtype, strides, parts: (1, 0), fold: Fold::Sum, half: None };
        Ok((Way::Rows { shape: shape.clone(), run, piece }, home))
    }

    fn bytes_of(&self, node: NodeId) -> usize {
        self.sizes.get(&node).copied().unwrap_or_else(|| {
            let mut bytes = 4;
            for dim in self.dims(node) {
                bytes *= self.asked(*dim);
            }
            bytes
        })
    }

    /// Makes what was staged known as homes, and as operands.
    pub fn arrived(&mut self, staged: &[Staged]) {
        for input in staged {
            self.homes.insert(input.node, input.home.clone());
            let Way::Rows { shape, .. } = &input.way else { continue };
            if input.home.dtype != DType::BF16 {
                continue;
            }
            let stride = |dim: &DimId| {
                let found = input.home.strides.iter().find(|(d, _)| d == dim);
                found.map(|(_, step)| (*dim, *step)).expect("every dimension has its stride")
            };
            let row = stride(shape.rows.last().expect("a matrix has rows")).1;
            let col = stride(shape.cols.last().expect("a matrix has columns")).1;
            let tile = Tile {
                region: input.home.region,
                rows: shape.rows.clone(),
                cols: shape.cols.clone(),
                outer: shape.outer.iter().map(|dim| (*dim, stride(dim).1.one)).collect(),
                row,
                col,
                start: 0,
                parts: (1, 0),
                half: input.home.half,
                finite: false,
            };
            self.tiles.insert((input.node, 1), tile);
        }
    }

    /// Rows and columns beyond the last that products read: they add nothing if they are zero.
    fn beyond(&self, input: &Staged) -> (usize, usize) {
        let Way::Rows { shape, .. } = &input.way else { return (0, 0) };
        if input.home.dtype != DType::BF16 {
            return (0, 0);
        }
        let beyond = |n: usize| n.next_multiple_of(STRIP) - n;
        (beyond(extent(self.graph, &shape.rows)), beyond(self.size(shape.cols[0])))
    }

    /// Rows and columns beyond the last that products read are zero, once and for all.
    pub fn clear_padding(&mut self, staged: &[Staged]) {
        for input in staged {
            let Way::Rows { shape, .. } = &input.way else { continue };
            let (below, beside) = self.beyond(input);
            let (n_rows, n_cols) = (extent(self.graph, &shape.rows), self.size(shape.cols[0]));
            let outer = extent(self.graph, &shape.outer);
            let (rows, cols) = self.room(n_rows, n_cols);
            let (col, row) = (input.home.strides[0].1, input.home.strides[1].1);
            let (_, _, bytes) = self.lie(rows, cols);
            let halves = if input.home.half.is_some() { 2 } else { 1 };
            let step = input.home.half.map_or(0, |(_, step)| step);
            for half in 0..halves {
                for matrix in 0..outer {
                    let start = half * step + matrix * bytes;
                    if beside > 0 {
                        self.clear(input.home.region, start, (row, col), (0, n_cols), (n_rows, beside));
                    }
                    if below > 0 {
                        let width = n_cols.next_multiple_of(STRIP);
                        self.clear(input.home.region, start, (row, col), (n_rows, 0), (below, width));
                    }
                }
            }
        }
    }

    /// Writes zero over so many rows and columns of a matrix, from a corner on.
    fn clear(
        &mut self,
        region: Region,
        start: usize,
        (down, right): (Step, Step),
        (first_row, first_number): (usize, usize),
        (rows, numbers): (usize, usize),
    ) {
        let threads = 32 * self.warps.count();
        for turn in 0..(rows * numbers).div_ceil(threads) {
            let (ahead, last, width) = (self.int(turn * threads), self.int(rows * numbers - 1), self.int(numbers));
            let flat = self.w.op("add", self.thread, ahead, Ty::I32);
            let own = self.w.icmp("sle", flat, last, Ty::I32);
            self.open_if(own);
            let (row, number) = (self.w.op("udiv", flat, width, Ty::I32), self.w.op("urem", flat, width, Ty::I32));
            let (mut row, mut number) = (Linear::value(row, 1), Linear::value(number, 1));
            (row.constant, number.constant) = (first_row as i64, first_number as i64);
            let mut at = Linear::number(start as i64);
            self.add_step(&mut at, down, &row);
            self.add_step(&mut at, right, &number);
            let address = self.shared(region, &at);
            let zero = self.w.int(Ty::scalar(Elem::I16), 0);
            text::store(&mut self.w, zero, address, "i16", 2);
            self.close_if();
        }
    }

    /// Stores numbers that were read one by one.
    pub fn store_later(&mut self, later: Vec<Later>) {
        for Later { region, bytes, value, own } in later {
            if let Some(own) = own {
                self.open_if(own);
            }
            let address = self.shared(region, &bytes);
            text::store(&mut self.w, value, address, "f32", 4);
            if own.is_some() {
                self.close_if();
            }
        }
    }

    /// A number from the GPU's memory.
    pub fn global_number(&mut self, from: Address, dtype: DType) -> Val {
        let w = &mut self.w;
        let ty = Ty::scalar(element(dtype));
        let value = text::load(w, from, ty, dtype.bytes());
        match dtype {
            DType::F32 => value,
            DType::BF16 => {
                let word = w.cast("zext", value, ty, Ty::I32);
                let sixteen = text::int(w, 16);
                let bits = w.op("shl", word, sixteen, Ty::I32);
                w.cast("bitcast", bits, Ty::I32, Ty::F32)
            }
            DType::F16 => w.cast("fpext", value, ty, Ty::F32),
        }
    }

    /// Parameters, once.
    pub fn parameters(&mut self) -> Result<(), Refusal> {
        for n in 0..self.graph.nodes.len() {
            let node = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            let Op::Input { name, kind: InputKind::Head, layout } = self.op(node) else { continue };
            let arg = self.arg(name)?;
            let (dtype, base) = (self.args[arg].dtype, self.tensors[arg].base);
            let inner = self.inner_strides(arg, layout);
            let skip = self.part_offset(arg, layout);
            let base = match skip {
                Some(skip) => text::element(&mut self.w, base, skip, Ty::I32, element(dtype)),
                None => base,
            };
            let dims = self.dims(node);
            if extent(self.graph, dims) > 1024 {
                return Err(Refusal::unsupported("a large parameter"));
            }
            let mut home = self.flat_home(dims, 1, Fold::Sum);
            home.region = self.memory.allocate(self.bytes_of(node), true);
            let stores = self.flat_elements(dims, |this, at| {
                let mut offset = Linear::default();
                this.add_steps(&mut offset, &inner, at);
                let offset = this.number(&offset);
                let from = text::element(&mut this.w, base, offset, Ty::I32, element(dtype));
                Ok(this.global_number(from, dtype))
            })?;
            self.store_flat(&home, stores);
            self.homes.insert(node, home);
        }
        Ok(())
    }
}
