//! Results to the GPU's memory.
//!
//! Comes in: values. Goes out: stores of what is real: rows before the end of the sequence, columns before the end of an
//! axis.

use super::Refusal;
use super::block::{Block, Element, Point};
use super::index::Linear;
use super::shape::{COLUMNS, Shape, extent};
use crate::graph::ir::{Begin, Carry, DimId, NodeId};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::call::element;
use crate::lower::tile_to_nvvm::text::{self, Address};
use chunkwise_abi::{DType, Role};

/// Lanes that have elements of one row.
const LANES_OF_A_ROW: usize = 4;

/// A tensor about to be written.
struct Target {
    base: Address,
    dtype: DType,
    /// Elements from one position to the next.
    strides: Vec<(DimId, usize)>,
    /// Rows are tokens: the first of the chunk, and elements from one to the next.
    tokens: Option<(DimId, Val, Val)>,
}

impl Block<'_> {
    /// Writes a result of each token, or what is kept of each chunk.
    pub fn store(&mut self, name: &str, x: NodeId, layout: &[DimId]) -> Result<(), Refusal> {
        self.ready(x)?;
        let arg = self.arg(name)?;
        let (role, dtype) = (self.args[arg].role, self.args[arg].dtype);
        let tensor = self.tensors[arg];
        let elem = element(dtype);
        let mut base = tensor.base;
        let mut tokens = None;
        match role {
            Role::Token => {
                let time = self.graph.time.expect("a graph of chunks has rows");
                let count = self.int(self.graph.tokens);
                let chunk = self.chunk;
                let first = self.w.op("mul", chunk, count, Ty::I32);
                let first = self.w.cast("sext", first, Ty::I32, Ty::I64);
                let moved = self.w.op("mul", first, tensor.stride, Ty::I64);
                base = text::element(&mut self.w, base, moved, Ty::I64, elem);
                tokens = Some((time, first, tensor.stride));
            }
            Role::Chunk(_) => {
                let chunk = self.chunk;
                let chunk = self.w.cast("sext", chunk, Ty::I32, Ty::I64);
                let moved = self.w.op("mul", chunk, tensor.stride, Ty::I64);
                base = text::element(&mut self.w, base, moved, Ty::I64, elem);
            }
            Role::Head | Role::Sequence => {}
        }
        if let Some(skip) = self.part_offset(arg, layout) {
            base = text::element(&mut self.w, base, skip, Ty::I32, elem);
        }
        let target = Target { base, dtype, strides: self.inner_strides(arg, layout), tokens };
        let mut dims: Vec<DimId> = layout.to_vec();
        dims.extend(tokens.map(|(time, ..)| time).filter(|time| !dims.contains(time)));
        let order = |d: &DimId| (self.graph.dim(*d).kind, *d);
        dims.sort_by_key(order);
        self.write(&target, &dims, |this, at| this.eval(x, at))
    }

    /// Writes the last value of what goes from chunk to chunk.
    pub fn store_last(&mut self, carry: &Carry) -> Result<(), Refusal> {
        let Some(name) = &carry.last else { return Ok(()) };
        let target = self.carry_target(name, carry)?;
        let dims = self.dims(carry.input);
        self.write(&target, dims, |this, at| this.eval(carry.input, at))
    }

    /// The tensor with a carry's first or last value: of the sequence, or of the block's span.
    fn carry_target(&mut self, name: &str, carry: &Carry) -> Result<Target, Refusal> {
        let arg = self.arg(name)?;
        let dtype = self.args[arg].dtype;
        let mut base = self.tensors[arg].base;
        if let Some(span) = self.span {
            let stride = self.tensors[arg].stride;
            let span = self.w.cast("sext", span, Ty::I32, Ty::I64);
            let moved = self.w.op("mul", span, stride, Ty::I64);
            base = text::element(&mut self.w, base, moved, Ty::I64, element(dtype));
        }
        if let Some(skip) = self.part_offset(arg, &carry.layout) {
            base = text::element(&mut self.w, base, skip, Ty::I32, element(dtype));
        }
        Ok(Target { base, dtype, strides: self.inner_strides(arg, &carry.layout), tokens: None })
    }

    /// The first value of a carry that no tensor gives, at a position.
    fn begins(&mut self, carry: &Carry, at: &Point) -> Val {
        let (zero, one) = (self.w.f32(0.0, 0), self.w.f32(1.0, 0));
        match carry.begins {
            Begin::Zero => zero,
            Begin::One => one,
            Begin::Identity => {
                let [row, col] = self.dims(carry.input)[..] else { return zero };
                let [row, col] = [row, col].map(|dim| {
                    let ix = at.get(dim).expect("a position of each dimension");
                    let mut place = self.ix.get(ix).clone();
                    if let Some((_, first)) = self.part.filter(|(of, _)| *of == dim) {
                        place.add(first, 1);
                    }
                    self.ix.of(place)
                });
                let same = self.compare("eq", row, col);
                self.choose(same, one, zero)
            }
        }
    }

    fn write(
        &mut self,
        target: &Target,
        dims: &[DimId],
        mut value: impl FnMut(&mut Self, &Point) -> Result<Val, Refusal>,
    ) -> Result<(), Refusal> {
        let shape = Shape::of(self.graph, dims).filter(Shape::is_matrix);
        let Some(shape) = shape else {
            let stores = self.flat_elements(dims, value)?;
            for (at, value, own) in stores {
                let real = self.before_end(target, &at);
                let real = self.both(real, own);
                if let Some(real) = real {
                    self.open_if(real);
                }
                let address = self.target_address(target, &at);
                self.store_number(value, address, target.dtype);
                if real.is_some() {
                    self.close_if();
                }
            }
            return Ok(());
        };
        let together = target.strides.iter().all(|(dim, stride)| match shape.cols.last() == Some(dim) {
            true => *stride == 1 && extent(self.graph, &shape.cols).is_multiple_of(2),
            false => stride.is_multiple_of(2),
        });
        let eights = self.warps.eights(extent(self.graph, &shape.cols));
        let wide = target.dtype == DType::BF16
            && eights.is_multiple_of(LANES_OF_A_ROW)
            && target.strides.iter().all(|(dim, stride)| match shape.cols.last() == Some(dim) {
                true => *stride == 1 && self.size(*dim).is_multiple_of(COLUMNS),
                false => stride.is_multiple_of(COLUMNS),
            });
        for outer in self.outer_points(&shape.outer) {
            let elements = self.elements(&shape, &outer);
            let mut values = Vec::new();
            for element in &elements {
                values.push(value(self, &element.at)?);
            }
            for strip in 0..self.warps.strips(extent(self.graph, &shape.rows)) {
                for half in 0..2 {
                    let own: Vec<usize> = (0..elements.len())
                        .filter(|&n| elements[n].strip == strip && elements[n].half == half)
                        .collect();
                    let runs = if wide { self.runs(&elements, &values, &own) } else { Vec::new() };
                    let rows = self.warps.padded_rows(extent(self.graph, &shape.rows));
                    let below = self.inside(&shape.rows, &elements[own[0]].at, rows);
                    let real = self.before_end(target, &elements[own[0]].at);
                    let real = self.both(below, real);
                    if let Some(real) = real {
                        self.open_if(real);
                    }
                    for (n, run) in runs.iter().enumerate() {
                        self.store_run(target, &shape, &elements[own[0]].at, n * LANES_OF_A_ROW, *run);
                    }
                    for eight in 0..if wide { 0 } else { eights } {
                        let pair: Vec<usize> = own.iter().copied().filter(|&n| elements[n].eight == eight).collect();
                        let pair: Vec<(&Element, Val)> = pair.iter().map(|&n| (&elements[n], values[n])).collect();
                        self.store_pair(target, &shape, &pair, together);
                    }
                    if real.is_some() {
                        self.close_if();
                    }
                }
            }
        }
        Ok(())
    }

    /// A row's elements as sixteen bytes at a time: of four eights, each lane of the row gets one, whole.
    fn runs(&mut self, elements: &[Element], values: &[Val], own: &[usize]) -> Vec<[Val; LANES_OF_A_ROW]> {
        let eights = own.len() / 2;
        let mut words = Vec::new();
        for eight in 0..eights {
            let of = |odd| own.iter().copied().find(|&n| elements[n].eight == eight && elements[n].odd == odd);
            let [low, high] = [0, 1].map(|odd| values[of(odd).expect("every eight has its pairs")]);
            words.push(text::pack_bf16(&mut self.w, low, high));
        }
        let four = |words: &[Val]| <[Val; LANES_OF_A_ROW]>::try_from(words).expect("there are four");
        let groups: Vec<[Val; LANES_OF_A_ROW]> = words.chunks_exact(LANES_OF_A_ROW).map(four).collect();
        groups.into_iter().map(|words| self.turned_in_row(words)).collect()
    }

    /// Word `n` of lane `m` of a row becomes word `m` of lane `n`.
    fn turned_in_row(&mut self, mut words: [Val; LANES_OF_A_ROW]) -> [Val; LANES_OF_A_ROW] {
        for (bit, pairs) in [(1, [(0, 1), (2, 3)]), (2, [(0, 2), (1, 3)])] {
            let (bit_val, zero) = (self.int(bit), self.int(0));
            let own = self.w.op("and", self.quad, bit_val, Ty::I32);
            let high = self.w.icmp("ne", own, zero, Ty::I32);
            for (a, b) in pairs {
                let sent = self.w.select(high, words[a], words[b], Ty::I32);
                let got = self.exchanged_word(sent, bit);
                words[a] = self.w.select(high, got, words[a], Ty::I32);
                words[b] = self.w.select(high, words[b], got, Ty::I32);
            }
        }
        words
    }

    /// An eight of a row, of the four from `first` on the one that is the lane's.
    fn store_run(&mut self, target: &Target, shape: &Shape, row: &Point, first: usize, words: [Val; LANES_OF_A_ROW]) {
        let n_cols = extent(self.graph, &shape.cols);
        let mut col = self.first_col(n_cols, first);
        col.add(self.quad, COLUMNS as i64);
        let at = self.moved(row, &shape.cols, &col);
        let inside = self.inside(&shape.cols, &at, self.warps.padded_cols(n_cols));
        if let Some(inside) = inside {
            self.open_if(inside);
        }
        let address = self.target_address(target, &at);
        let run = text::vector(&mut self.w, &words, Elem::I32);
        text::store(&mut self.w, run, address, "vector<4xi32>", 16);
        if inside.is_some() {
            self.close_if();
        }
    }

    /// Two neighbours of a row.
    fn store_pair(&mut self, target: &Target, shape: &Shape, pair: &[(&Element, Val)], together: bool) {
        let cols = self.warps.padded_cols(extent(self.graph, &shape.cols));
        let [(first, low), (_, high)] = pair else { return };
        if together {
            let inside = self.inside(&shape.cols, &first.at, cols);
            if let Some(inside) = inside {
                self.open_if(inside);
            }
            let address = self.target_address(target, &first.at);
            if target.dtype == DType::BF16 {
                let word = text::pack_bf16(&mut self.w, *low, *high);
                text::store(&mut self.w, word, address, "i32", 4);
            } else if target.dtype == DType::F32 {
                let both = text::vector(&mut self.w, &[*low, *high], Elem::F32);
                text::store(&mut self.w, both, address, "vector<2xf32>", 8);
            }
            if inside.is_some() {
                self.close_if();
            }
            return;
        }
        for (element, value) in pair {
            let inside = self.inside(&shape.cols, &element.at, cols);
            if let Some(inside) = inside {
                self.open_if(inside);
            }
            let address = self.target_address(target, &element.at);
            self.store_number(*value, address, target.dtype);
            if inside.is_some() {
                self.close_if();
            }
        }
    }

    /// Whether a token is one of the sequence; none where there are no tokens.
    fn before_end(&mut self, target: &Target, at: &Point) -> Option<Val> {
        let (time, ..) = target.tokens?;
        let row = self.position(at.get(time).expect("a token"));
        let limit = self.limit;
        Some(self.w.icmp("slt", row, limit, Ty::I32))
    }

    fn target_address(&mut self, target: &Target, at: &Point) -> Address {
        let elem = element(target.dtype);
        let mut address = target.base;
        if let Some((time, _, stride)) = target.tokens {
            let row = self.position(at.get(time).expect("a token"));
            let row = self.w.cast("sext", row, Ty::I32, Ty::I64);
            let moved = self.w.op("mul", row, stride, Ty::I64);
            address = text::element(&mut self.w, address, moved, Ty::I64, elem);
        }
        let mut offset = Linear::default();
        self.add_steps(&mut offset, &target.strides, at);
        let constant = offset.constant;
        offset.constant = 0;
        if !offset.terms.is_empty() {
            let number = self.number(&offset);
            address = text::element(&mut self.w, address, number, Ty::I32, elem);
        }
        text::bytes(&mut self.w, address, usize::try_from(constant).expect("not negative") * target.dtype.bytes())
    }

    fn store_number(&mut self, value: Val, to: Address, dtype: DType) {
        let w = &mut self.w;
        match dtype {
            DType::F32 => text::store(w, value, to, "f32", 4),
            DType::BF16 => {
                let narrow = w.raw_value(format_args!("llvm.fptrunc {value} : f32 to bf16"));
                text::store(w, narrow, to, "bf16", 2);
            }
            DType::F16 => {
                let narrow = w.raw_value(format_args!("llvm.fptrunc {value} : f32 to f16"));
                text::store(w, narrow, to, "f16", 2);
            }
        }
    }

    /// The first value of what goes from chunk to chunk, into its slots or its home.
    pub fn begin_carry(&mut self, carry: &Carry) -> Result<(), Refusal> {
        let dims = self.dims(carry.input);
        let init = match &carry.init {
            None => None,
            Some(name) => Some(self.carry_target(name, carry)?),
        };
        let zero = self.w.f32(0.0, 0);
        let Some(shape) = Shape::of(self.graph, dims).filter(Shape::is_matrix) else {
            let mut home = self.flat_home(dims, 1, super::block::Fold::Sum);
            let bytes = home.parts.1;
            home.region = self.memory.allocate(bytes, true);
            let stores = self.flat_elements(dims, |this, at| match &init {
                None => Ok(this.begins(carry, at)),
                Some(target) => {
                    let address = this.target_address(target, at);
                    Ok(this.global_number(address, target.dtype))
                }
            })?;
            self.store_flat(&home, stores);
            self.homes.insert(carry.input, home);
            return Ok(());
        };
        let mut slots = Vec::new();
        for outer in self.outer_points(&shape.outer) {
            let elements = self.elements(&shape, &outer);
            for element in &elements {
                let slot = self.w.slot(Ty::F32);
                slots.push(slot);
                let value = match &init {
                    None => self.begins(carry, &element.at),
                    Some(target) => match self.real(&shape, &element.at) {
                        None => {
                            let address = self.target_address(target, &element.at);
                            self.global_number(address, target.dtype)
                        }
                        Some(real) => {
                            let results = self.w.open_if_yielding(real, 1, Ty::F32);
                            self.numbers.push(Default::default());
                            let address = self.target_address(target, &element.at);
                            let value = self.global_number(address, target.dtype);
                            self.numbers.pop();
                            self.w.other(&[value], Ty::F32);
                            self.w.end_yielding(results, &[zero], Ty::F32)[0]
                        }
                    },
                };
                self.w.store(value, slot, Ty::F32, "");
            }
        }
        self.slots.insert(carry.input, slots);
        Ok(())
    }

    /// Takes what goes from chunk to chunk out of its slots, as values of this chunk.
    pub fn take_carry(&mut self, carry: &Carry) -> Result<(), Refusal> {
        let Some(slots) = self.slots.get(&carry.input).cloned() else { return Ok(()) };
        let shape = self.matrix(self.dims(carry.input))?;
        let mut n = 0;
        for outer in self.outer_points(&shape.outer) {
            for element in self.elements(&shape, &outer) {
                let value = self.w.load(slots[n], Ty::F32, "");
                let key = self.key(carry.input, &element.at)?;
                self.values.insert(key, value);
                self.lives.kept(carry.input, 1, false);
                n += 1;
            }
        }
        self.held.insert(carry.input);
        Ok(())
    }

    /// The values for the next chunk, of everything that goes there; computed from this one's before any is replaced.
    pub fn put_carries(&mut self, carries: &[Carry]) -> Result<(), Refusal> {
        let mut slots = Vec::new();
        let mut flats = Vec::new();
        for carry in carries {
            self.ready(carry.output)?;
            let dims = self.dims(carry.input);
            let Some(own) = self.slots.get(&carry.input).cloned() else {
                let home = self.homes[&carry.input].clone();
                let values = self.flat_elements(dims, |this, at| this.eval(carry.output, at))?;
                flats.push((home, values));
                continue;
            };
            let shape = self.matrix(dims)?;
            let mut n = 0;
            for outer in self.outer_points(&shape.outer) {
                for element in self.elements(&shape, &outer) {
                    let value = self.eval(carry.output, &element.at)?;
                    slots.push((own[n], value));
                    n += 1;
                }
            }
        }
        for (slot, value) in slots {
            self.w.store(value, slot, Ty::F32, "");
        }
        for (home, values) in flats {
            self.store_flat(&home, values);
        }
        Ok(())
    }
}
