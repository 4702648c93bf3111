//! Tensors to registers and back.
//!
//! Comes in: a tensor, the order of its dimensions in memory, and how they are dealt out. Goes out: one value a
//! register, read or written sixteen bytes at once where that many lie side by side. It computes nothing.

use super::choose::ACCESS;
use super::kernel::Scanning;
use super::spread::Share;
use crate::graph::ir::DimId;
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val, Writer};
use crate::lower::tile_to_nvvm::call::element;
use crate::lower::tile_to_nvvm::text::{self, Address};
use chunkwise_abi::DType;

/// A tensor of the item (or of one token of it), as this thread sees it.
pub struct Seen<'s> {
    /// Its first element.
    pub base: Address,
    /// Elements from there to the first that this thread may hold, 32 bits; none if that is 0 in every thread.
    pub skip: Option<Val>,
    /// Dimensions in their order in memory.
    pub layout: &'s [DimId],
    /// Type of an element.
    pub dtype: DType,
}

/// Neighbouring elements along the last dimension in memory that are moved at once.
fn run(share: Option<&Share>, dtype: DType) -> usize {
    let Some(share) = share else { return 1 };
    let fits =
        |n: &usize| *n * dtype.bytes() <= ACCESS && share.inner.is_multiple_of(*n) && share.size.is_multiple_of(*n);
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

impl Scanning<'_> {
    /// Elements from the first of a tensor to the first that this thread may hold.
    pub fn skip(&mut self, layout: &[DimId]) -> Option<Val> {
        let mut sum: Option<Val> = None;
        let mut stride = 1;
        for dim in layout.iter().rev() {
            if let Some(part) = self.part(*dim) {
                let factor = text::int(&mut self.w, i64::try_from(stride).expect("a tile is small"));
                let term = if stride == 1 { part } else { self.w.op("mul", part, factor, Ty::I32) };
                sum = Some(match sum {
                    None => term,
                    Some(sum) => self.w.op("add", sum, term, Ty::I32),
                });
            }
            stride *= self.spread.share(*dim).size;
        }
        sum
    }

    /// Runs of a tensor that this thread holds: registers of their first elements by dimension in memory, elements from
    /// the thread's first, and how many elements a run has.
    fn runs(&self, seen: &Seen) -> (usize, Vec<(Vec<usize>, usize)>) {
        let count = run(seen.layout.last().map(|dim| self.spread.share(*dim)), seen.dtype);
        let mut runs = Vec::new();
        for n in (0..self.spread.registers(seen.layout)).step_by(count) {
            let registers = self.spread.split(seen.layout, n);
            let mut at = 0;
            for (dim, register) in seen.layout.iter().zip(&registers) {
                let share = self.spread.share(*dim);
                at = at * share.size + share.of_register(*register);
            }
            runs.push((registers, at));
        }
        (count, runs)
    }

    /// Whether a run is there; none if it is in every thread.
    fn there(&mut self, layout: &[DimId], registers: &[usize]) -> Option<Val> {
        let mut all: Option<Val> = None;
        for (dim, register) in layout.iter().zip(registers) {
            if let Some(here) = self.valid(*dim, *register) {
                all = Some(match all {
                    None => here,
                    Some(all) => self.w.op("and", all, here, Ty::scalar(Elem::I1)),
                });
            }
        }
        all
    }

    /// Reads what this thread holds of a tensor, by register of a value with these dimensions; 0 where nothing is there.
    pub fn load(&mut self, seen: &Seen, dims: &[DimId]) -> Vec<Val> {
        let elem = element(seen.dtype);
        let start = match seen.skip {
            Some(skip) => text::element(&mut self.w, seen.base, skip, Ty::I32, elem),
            None => seen.base,
        };
        let zero = self.w.f32(0.0, 0);
        let mut values = vec![zero; self.spread.registers(dims)];
        let (count, runs) = self.runs(seen);
        for (mut registers, at) in runs {
            let there = self.there(seen.layout, &registers);
            let from = match there {
                None => text::bytes(&mut self.w, start, at * seen.dtype.bytes()),
                // Where nothing is, the first element is read, and forgotten.
                Some(there) => {
                    let at = text::int(&mut self.w, i64::try_from(at).expect("a tile is small"));
                    let at = match seen.skip {
                        Some(skip) => self.w.op("add", skip, at, Ty::I32),
                        None => at,
                    };
                    let none = text::int(&mut self.w, 0);
                    let at = self.w.select(there, at, none, Ty::I32);
                    text::element(&mut self.w, seen.base, at, Ty::I32, elem)
                }
            };
            for value in read(&mut self.w, from, seen.dtype, count) {
                let value = match there {
                    None => value,
                    Some(there) => self.w.select(there, value, zero, Ty::F32),
                };
                values[self.spread.beside(dims, seen.layout, &registers)] = value;
                if let Some(last) = registers.last_mut() {
                    *last += 1;
                }
            }
        }
        values
    }

    /// Writes what this thread holds of a value with these dimensions; one thread writes each element.
    pub fn store(&mut self, seen: &Seen, dims: &[DimId], values: &[Val]) {
        let owner = self.owner(seen.layout);
        if let Some(owner) = owner {
            self.w.open_if(owner);
        }
        let start = match seen.skip {
            Some(skip) => text::element(&mut self.w, seen.base, skip, Ty::I32, element(seen.dtype)),
            None => seen.base,
        };
        let (count, runs) = self.runs(seen);
        for (mut registers, at) in runs {
            let there = self.there(seen.layout, &registers);
            let mut here = Vec::new();
            for _ in 0..count {
                here.push(values[self.spread.beside(dims, seen.layout, &registers)]);
                if let Some(last) = registers.last_mut() {
                    *last += 1;
                }
            }
            if let Some(there) = there {
                self.w.open_if(there);
            }
            let to = text::bytes(&mut self.w, start, at * seen.dtype.bytes());
            write(&mut self.w, to, seen.dtype, &here);
            if there.is_some() {
                self.w.end();
            }
        }
        if owner.is_some() {
            self.w.end();
        }
    }
}

/// So many neighbours as float32.
fn read(w: &mut Writer, from: Address, dtype: DType, count: usize) -> Vec<Val> {
    let bytes = count * dtype.bytes();
    match (dtype, count) {
        (DType::F32, 1) => vec![text::load(w, from, Ty::F32, bytes)],
        (DType::F32, _) => {
            let ty = Ty::f32s(count);
            let vector = text::load(w, from, ty, bytes);
            (0..count).map(|n| text::lane(w, vector, n, ty)).collect()
        }
        (DType::BF16, 1) => {
            let value = text::load(w, from, Ty::scalar(Elem::I16), bytes);
            let word = w.cast("zext", value, Ty::scalar(Elem::I16), Ty::I32);
            let sixteen = text::int(w, 16);
            let bits = w.op("shl", word, sixteen, Ty::I32);
            vec![w.cast("bitcast", bits, Ty::I32, Ty::F32)]
        }
        (DType::BF16, 2) => {
            let word = text::load(w, from, Ty::I32, bytes);
            text::unpack_bf16(w, word).to_vec()
        }
        (DType::BF16, _) => {
            let ty = Ty { elem: Elem::I32, lanes: count / 2 };
            let vector = text::load(w, from, ty, bytes);
            let mut values = Vec::new();
            for n in 0..count / 2 {
                let word = text::lane(w, vector, n, ty);
                values.extend(text::unpack_bf16(w, word));
            }
            values
        }
        (DType::F16, 1) => {
            let value = text::load(w, from, Ty::scalar(Elem::F16), bytes);
            vec![w.cast("fpext", value, Ty::scalar(Elem::F16), Ty::F32)]
        }
        (DType::F16, _) => {
            let ty = Ty { elem: Elem::F16, lanes: count };
            let vector = text::load(w, from, ty, bytes);
            let wide = w.cast("fpext", vector, ty, Ty::f32s(count));
            (0..count).map(|n| text::lane(w, wide, n, Ty::f32s(count))).collect()
        }
    }
}

/// Writes neighbours.
fn write(w: &mut Writer, to: Address, dtype: DType, values: &[Val]) {
    let count = values.len();
    let bytes = count * dtype.bytes();
    match (dtype, count) {
        (DType::F32, 1) => text::store(w, values[0], to, "f32", bytes),
        (DType::F32, _) => {
            let vector = text::vector(w, values, Elem::F32);
            text::store(w, vector, to, &Ty::f32s(count).to_string(), bytes);
        }
        (DType::BF16, 1) => {
            let narrow = w.raw_value(format_args!("llvm.fptrunc {} : f32 to bf16", values[0]));
            text::store(w, narrow, to, "bf16", bytes);
        }
        (DType::BF16, _) => {
            let words: Vec<Val> = values.chunks(2).map(|pair| text::pack_bf16(w, pair[0], pair[1])).collect();
            let (value, ty) = match words[..] {
                [word] => (word, Ty::I32),
                _ => (text::vector(w, &words, Elem::I32), Ty { elem: Elem::I32, lanes: count / 2 }),
            };
            text::store(w, value, to, &ty.to_string(), bytes);
        }
        (DType::F16, 1) => {
            let narrow = w.raw_value(format_args!("llvm.fptrunc {} : f32 to f16", values[0]));
            text::store(w, narrow, to, "f16", bytes);
        }
        (DType::F16, _) => {
            let vector = text::vector(w, values, Elem::F32);
            let ty = Ty { elem: Elem::F16, lanes: count };
            let narrow = w.cast("fptrunc", vector, Ty::f32s(count), ty);
            text::store(w, narrow, to, &ty.to_string(), bytes);
        }
    }
}
