//! Reading and writing places: addresses, masks, and the conversion of element types.
//!
//! Comes in: a [`Place`]. Goes out: loads and stores of scalars or vectors of float32. bfloat16 is converted by integer
//! arithmetic, the same on every processor; binary16 by instructions where there are some.

use super::expr::{Value, has_leading_index, mentions};
use super::kernel::{Linear, Lowering, element, tag};
use super::writer::{Elem, Ty, Val};
use crate::tile::ir::{Arg, Expr, Memory, Place};
use chunkwise_abi::{Access, DType, Role};

/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Rows to ask for ahead of time, at least.
const AHEAD: i64 = 16;
/// Bytes of a tensor that may still be found in a cache by who reads it next.
pub(super) const CACHED: i64 = 8 << 20;

/// Bytes from one leading index to the next inside of one head, of a tensor that is written row by row in whole lines.
pub(super) fn row_bytes(arg: &Arg) -> Option<usize> {
    let last = arg.inner.last()?;
    let whole = (last * arg.dtype.bytes()).is_multiple_of(LINE);
    (arg.access == Access::Write && has_leading_index(arg.role) && whole)
        .then(|| arg.inner.iter().product::<usize>() * arg.dtype.bytes())
}

impl Lowering<'_> {
    /// Whether neighbouring lanes are neighbours in memory; else the place is the same for every lane. There is no
    /// other way: the verifier sees to it.
    fn varies(&self, place: &Place) -> bool {
        let Some(group) = &self.group else { return false };
        place.indices.last().is_some_and(|last| mentions(&last.value, group))
    }

    fn dtype(&self, memory: Memory) -> DType {
        match memory {
            Memory::Buffer(_) => DType::F32,
            Memory::Arg(arg) => self.kernel.args[arg.0 as usize].dtype,
        }
    }

    fn tag(&self, memory: Memory) -> String {
        match memory {
            Memory::Arg(arg) => tag(self.number, 'a', arg.0),
            Memory::Buffer(buffer) => tag(self.number, 'b', buffer.0),
        }
    }

    /// The address of a place; of the first lane, if it depends on the lane.
    pub(super) fn address(&mut self, place: &Place) -> Val {
        let size = |n: usize| i64::try_from(n).expect("a tensor fits memory");
        let (base, elem, strides, leading) = match place.memory {
            Memory::Buffer(buffer) => {
                let strides = self.kernel.buffers[buffer.0 as usize].strides();
                (self.buffers[buffer.0 as usize], Elem::F32, strides, None)
            }
            Memory::Arg(arg) => {
                let tensor = &self.tensors[arg.0 as usize];
                let (base, stride) = (tensor.base, tensor.stride);
                let arg = &self.kernel.args[arg.0 as usize];
                let mut strides = vec![1; arg.inner.len()];
                for d in (1..arg.inner.len()).rev() {
                    strides[d - 1] = strides[d] * arg.inner[d];
                }
                let leading = has_leading_index(arg.role).then_some(stride);
                (base, element(arg.dtype), strides, leading)
            }
        };
        let mut base = base;
        let mut inner = place.indices.as_slice();
        if let Some(stride) = leading {
            let (first, rest) = place.indices.split_first().expect("a token or chunk comes first");
            inner = rest;
            let index = self.index(first);
            let offset = self.w.op("mul", index, stride, Ty::I64);
            base = self.w.element(base, offset, elem);
        }
        let mut sum = Linear::default();
        for (index, stride) in inner.iter().zip(strides) {
            if index.at_most.is_some() {
                let val = self.index(index);
                sum.add_term(val, size(stride));
            } else {
                let linear = self.resolve(&index.value);
                sum.add(&linear, size(stride));
            }
        }
        self.offset(base, &sum, elem)
    }

    /// Asks for the row of a tensor that will be needed a chunk later: rows of one head lie pages apart, where no
    /// processor sees a pattern. Beyond the tensor the request is void.
    fn fetch_ahead(&mut self, place: &Place, address: Val, for_write: bool) {
        let Memory::Arg(arg) = place.memory else { return };
        let group = self.group.as_ref().expect("rows are read by lanes");
        let (lanes, count) = (group.lanes, group.count);
        let shape = &self.kernel.args[arg.0 as usize];
        let bytes = shape.dtype.bytes();
        let Some(token) = place.indices.first().filter(|_| has_leading_index(shape.role)) else { return };
        let Some((var, step)) = token.value.vars.iter().copied().max_by_key(|(_, step)| step.abs()) else { return };
        if lanes * count * bytes < LINE || !self.fetched.insert((arg, token.clone())) {
            return;
        }
        let rows = match shape.role {
            Role::Chunk(_) => step,
            Role::Token | Role::Sequence | Role::Head => step * (AHEAD / step.abs()).max(1),
        };
        let rows = if self.backwards.get(&var).copied().unwrap_or(false) { -rows } else { rows };
        let rows = self.w.i64(rows);
        let distance = self.w.op("mul", self.tensors[arg.0 as usize].stride, rows, Ty::I64);
        let ahead = self.w.element(address, distance, element(shape.dtype));
        if self.requests.is_some() && !for_write {
            return self.request(ahead, lanes * count * bytes);
        }
        for n in (0..count).filter(|n| (n * lanes * bytes).is_multiple_of(LINE)) {
            let at = self.w.element_at(ahead, lane(n * lanes), element(shape.dtype));
            self.w.prefetch(at, for_write);
        }
    }

    /// Whether a row is written past the caches, where whole vectors of it are written.
    fn streams(&self, place: &Place) -> Option<Val> {
        let Memory::Arg(arg) = place.memory else { return None };
        let group = self.group.as_ref()?;
        let last = place.indices.last()?;
        let from_start = last.value.constant == 0 && last.value.symbols.is_empty() && last.at_most.is_none();
        let plain = from_start && last.value.vars == [(group.var, 1)] && group.valid == group.lanes;
        self.tensors[arg.0 as usize].streams.filter(|_| plain)
    }

    pub(super) fn load(&mut self, place: &Place) -> Value {
        let dtype = self.dtype(place.memory);
        let tag = self.tag(place.memory);
        let address = self.address(place);
        if !self.varies(place) {
            let raw = self.w.load(address, Ty::scalar(element(dtype)), &tag);
            return Value::Uniform(self.widen(raw, dtype, 0));
        }
        let group = self.group.as_ref().expect("a place that depends on the lane stands inside lanes");
        let (lanes, count, valid) = (group.lanes, group.count, group.valid);
        let active = group.active.clone();
        let ty = Ty { elem: element(dtype), lanes };
        self.fetch_ahead(place, address, false);
        // Scratch may be read past the end of a row; a tensor of the caller may not.
        let guarded = matches!(place.memory, Memory::Arg(_));
        let vectors = (0..count)
            .map(|n| {
                let at = self.w.element_at(address, lane(n * lanes), ty.elem);
                let mut mask = None;
                if guarded {
                    mask = active.as_ref().map(|masks| masks[n]);
                    if valid < lanes {
                        let tail = self.w.mask(lanes, 0, valid);
                        mask = Some(match mask {
                            None => tail,
                            Some(mask) => self.w.op("and", mask, tail, Ty { elem: Elem::I1, lanes }),
                        });
                    }
                }
                let raw = match mask {
                    None => self.w.load(at, ty, &tag),
                    Some(mask) => self.w.masked_load(at, mask, ty),
                };
                self.widen(raw, dtype, lanes)
            })
            .collect();
        Value::Lanes(vectors)
    }

    pub(super) fn store(&mut self, place: &Place, value: &Expr) {
        let values = self.values(value);
        if !self.varies(place) {
            self.store_scalar(place, values[0]);
            return;
        }
        let dtype = self.dtype(place.memory);
        let tag = self.tag(place.memory);
        let group = self.group.as_ref().expect("a place that depends on the lane stands inside lanes");
        let (lanes, valid) = (group.lanes, group.valid);
        let ty = Ty { elem: element(dtype), lanes };
        let address = self.address(place);
        if let Some(streams) = self.streams(place) {
            let raw: Vec<Val> = values.iter().map(|value| self.narrow(*value, dtype, lanes)).collect();
            let at: Vec<Val> = (0..raw.len()).map(|n| self.w.element_at(address, lane(n * lanes), ty.elem)).collect();
            self.w.open_if(streams);
            raw.iter().zip(&at).for_each(|(raw, at)| self.w.store_past_caches(*raw, *at, ty));
            self.w.open_else();
            self.fetch_ahead(place, address, true);
            raw.iter().zip(&at).for_each(|(raw, at)| self.w.store(*raw, *at, ty, &tag));
            self.w.end();
            return;
        }
        self.fetch_ahead(place, address, true);
        for (n, value) in values.into_iter().enumerate() {
            let raw = self.narrow(value, dtype, lanes);
            let at = self.w.element_at(address, lane(n * lanes), ty.elem);
            if valid == lanes {
                self.w.store(raw, at, ty, &tag);
                continue;
            }
            if valid == 1 {
                // LLVM 22 narrows a masked store of one lane of halves to a store of a whole word.
                let one = self.w.extract(raw, 0, ty);
                self.w.store(one, at, Ty::scalar(ty.elem), &tag);
                continue;
            }
            let mask = self.w.mask(lanes, 0, valid);
            if self.vectors.masks || matches!(place.memory, Memory::Arg(_)) {
                self.w.masked_store(raw, at, mask, ty);
            } else {
                // Scratch belongs to this worker alone: writing back what was there is the cheaper mask.
                let old = self.w.load(at, ty, "");
                let mixed = self.w.select(mask, raw, old, ty);
                self.w.store(mixed, at, ty, "");
            }
        }
    }

    /// Writes one number to a place that does not depend on the lane.
    pub(super) fn store_scalar(&mut self, place: &Place, value: Val) {
        let dtype = self.dtype(place.memory);
        let tag = self.tag(place.memory);
        let raw = self.narrow(value, dtype, 0);
        let address = self.address(place);
        self.w.store(raw, address, Ty::scalar(element(dtype)), &tag);
    }

    fn widen(&mut self, raw: Val, dtype: DType, lanes: usize) -> Val {
        let (floats, ints) = (Ty::f32s(lanes), Ty { elem: Elem::I32, lanes });
        let w = &mut self.w;
        match dtype {
            DType::F32 => raw,
            DType::BF16 => {
                let wide = w.cast("zext", raw, ints.with(Elem::I16), ints);
                let sixteen = w.int(ints, 16);
                let bits = w.op("shl", wide, sixteen, ints);
                w.cast("bitcast", bits, ints, floats)
            }
            DType::F16 if self.vectors.f16 => w.cast("fpext", raw, ints.with(Elem::F16), floats),
            DType::F16 => {
                let half = w.cast("bitcast", raw, ints.with(Elem::F16), ints.with(Elem::I16));
                let wide = w.cast("zext", half, ints.with(Elem::I16), ints);
                let magnitude_bits = w.int(ints, 0x7fff);
                let magnitude = w.op("and", wide, magnitude_bits, ints);
                // Normal numbers: the exponent moves by 112; infinity and NaN: to the top; the rest count 2⁻²⁴.
                let thirteen = w.int(ints, 13);
                let shifted = w.op("shl", magnitude, thirteen, ints);
                let bias = w.int(ints, 112 << 23);
                let normal = w.op("add", shifted, bias, ints);
                let top_bits = w.int(ints, 0x7f80_0000);
                let top = w.op("or", shifted, top_bits, ints);
                let infinite = w.int(ints, 0x7bff);
                let beyond = w.icmp("sgt", magnitude, infinite, ints);
                let bits = w.select(beyond, top, normal, ints);
                let large = w.cast("bitcast", bits, ints, floats);
                let count = w.cast("sitofp", magnitude, ints, floats);
                let unit = w.f32(f32::from_bits((127 - 24) << 23), lanes);
                let small = w.op("fmul", count, unit, floats);
                let least = w.int(ints, 0x400);
                let below = w.icmp("slt", magnitude, least, ints);
                let value = w.select(below, small, large, floats);
                let sign_bit = w.int(ints, 0x8000);
                let sign = w.op("and", wide, sign_bit, ints);
                let sixteen = w.int(ints, 16);
                let sign = w.op("shl", sign, sixteen, ints);
                let bits = w.cast("bitcast", value, floats, ints);
                let bits = w.op("or", bits, sign, ints);
                w.cast("bitcast", bits, ints, floats)
            }
        }
    }

    /// Rounds to nearest, ties to even.
    fn narrow(&mut self, value: Val, dtype: DType, lanes: usize) -> Val {
        let (floats, ints) = (Ty::f32s(lanes), Ty { elem: Elem::I32, lanes });
        let w = &mut self.w;
        match dtype {
            DType::F32 => value,
            DType::BF16 => {
                let bits = w.cast("bitcast", value, floats, ints);
                let (sixteen, one, half) = (w.int(ints, 16), w.int(ints, 1), w.int(ints, 0x7fff));
                let odd = w.op("lshr", bits, sixteen, ints);
                let odd = w.op("and", odd, one, ints);
                let up = w.op("add", bits, half, ints);
                let up = w.op("add", up, odd, ints);
                // A NaN must not round to infinity.
                let quiet = w.int(ints, 0x40_0000);
                let quiet = w.op("or", bits, quiet, ints);
                let nan = w.fcmp("uno", value, value, floats);
                let rounded = w.select(nan, quiet, up, ints);
                let high = w.op("lshr", rounded, sixteen, ints);
                w.cast("trunc", high, ints, ints.with(Elem::I16))
            }
            DType::F16 if self.vectors.f16 => w.cast("fptrunc", value, floats, floats.with(Elem::F16)),
            DType::F16 => {
                let bits = w.cast("bitcast", value, floats, ints);
                let magnitude_bits = w.int(ints, 0x7fff_ffff);
                let magnitude = w.op("and", bits, magnitude_bits, ints);
                let (thirteen, one, half) = (w.int(ints, 13), w.int(ints, 1), w.int(ints, 0xfff));
                let odd = w.op("lshr", magnitude, thirteen, ints);
                let odd = w.op("and", odd, one, ints);
                let up = w.op("add", magnitude, half, ints);
                let up = w.op("add", up, odd, ints);
                let bias = w.int(ints, 112 << 23);
                let up = w.op("sub", up, bias, ints);
                let normal = w.op("lshr", up, thirteen, ints);
                // Below 2⁻¹⁴ adding ½ leaves multiples of 2⁻²⁴ in the low bits.
                let float = w.cast("bitcast", magnitude, ints, floats);
                let point_five = w.f32(0.5, lanes);
                let sum = w.op("fadd", float, point_five, floats);
                let sum = w.cast("bitcast", sum, floats, ints);
                let point_five_bits = w.int(ints, i64::from(0.5f32.to_bits()));
                let small = w.op("sub", sum, point_five_bits, ints);
                let least = w.int(ints, (127 - 14) << 23);
                let below = w.icmp("slt", magnitude, least, ints);
                let value = w.select(below, small, normal, ints);
                // 65520 and above round to infinity.
                let (most, infinity) = (w.int(ints, 0x477f_efff), w.int(ints, 0x7c00));
                let beyond = w.icmp("sgt", magnitude, most, ints);
                let value = w.select(beyond, infinity, value, ints);
                let (endless, nan) = (w.int(ints, 0x7f80_0000), w.int(ints, 0x7e00));
                let wrong = w.icmp("sgt", magnitude, endless, ints);
                let value = w.select(wrong, nan, value, ints);
                let (sixteen, sign_bit) = (w.int(ints, 16), w.int(ints, 0x8000));
                let sign = w.op("lshr", bits, sixteen, ints);
                let sign = w.op("and", sign, sign_bit, ints);
                let half = w.op("or", value, sign, ints);
                let half = w.cast("trunc", half, ints, ints.with(Elem::I16));
                w.cast("bitcast", half, ints.with(Elem::I16), ints.with(Elem::F16))
            }
        }
    }
}

fn lane(n: usize) -> i64 {
    i64::try_from(n).expect("a lane")
}
