//! Copies of inputs to shared memory, sixteen bytes at a time past the registers.
//!
//! Comes in: inputs of a chunk, staged as [`super::stage`] says. Goes out: copies, all at once or a few at each product, so
//! that they need not queue; and numbers that are too few for it, read one by one and stored later.

use super::block::{Block, Point};
use super::index::Linear;
use super::shape::extent;
use super::stage::{Later, Staged, Way};
use crate::graph::ir::{DimId, InputKind, Op};
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::call::element;
use crate::lower::tile_to_nvvm::text::{self, Address};
use chunkwise_abi::Role;
use std::collections::VecDeque;

/// Copies of a chunk's inputs that were not started yet.
pub struct Coming {
    /// The chunk's first token, and the sequence's last.
    start: Val,
    last: Val,
    /// Which half of double room they go to.
    half: Option<Val>,
    inputs: Vec<Source>,
    turns: VecDeque<Turn>,
}

/// An input: where the chunk's part of it, or the sequence's, begins, and elements from one position to the next.
struct Source {
    staged: Staged,
    base: Address,
    inner: Vec<(DimId, usize)>,
}

/// A piece of an input for each thread.
struct Turn {
    /// Number of the input, which of its matrices, and how many pieces came before.
    input: usize,
    outer: Point,
    turn: usize,
}

impl Block<'_> {
    /// Starts the copies of a chunk; gives what has to be stored later: numbers read one by one, and where they go.
    pub fn copy(&mut self, staged: &[Staged], chunk: Val, half: Option<Val>) -> Vec<Later> {
        let (coming, later) = self.coming(staged, chunk, half);
        for turn in &coming.turns {
            self.copy_turn(&coming, turn);
        }
        self.under_way |= half.is_none() && !coming.turns.is_empty();
        later
    }

    /// The copies of a chunk, none of them started; numbers read one by one, and where they go.
    pub fn coming(&mut self, staged: &[Staged], chunk: Val, half: Option<Val>) -> (Coming, Vec<Later>) {
        let mut later = Vec::new();
        self.unfenced = true;
        let wide_chunk = self.w.cast("sext", chunk, Ty::I32, Ty::I64);
        let tokens = self.int(self.graph.tokens);
        let start = self.w.op("mul", chunk, tokens, Ty::I32);
        let one = self.int(1);
        let last = self.w.op("sub", self.length, one, Ty::I32);
        let mut coming = Coming { start, last, half, inputs: Vec::new(), turns: VecDeque::new() };
        for input in staged {
            let arg = &self.args[input.arg];
            let tensor = self.tensors[input.arg];
            let by_token = arg.role == Role::Token;
            let elem = element(arg.dtype);
            let Op::Input { layout, kind, .. } = self.op(input.node) else { continue };
            let own: Vec<DimId> =
                if *kind == InputKind::Saved { self.dims(input.node).to_vec() } else { layout.clone() };
            let inner = self.inner_strides(input.arg, &own);
            let mut base = tensor.base;
            if !by_token {
                let skip = self.w.op("mul", wide_chunk, tensor.stride, Ty::I64);
                base = text::element(&mut self.w, base, skip, Ty::I64, elem);
            }
            if let Some(skip) = self.part_offset(input.arg, &own) {
                base = text::element(&mut self.w, base, skip, Ty::I32, elem);
            }
            match &input.way {
                Way::Rows { shape, run, piece } => {
                    let total = extent(self.graph, &shape.rows) * (run / piece);
                    let turns = total.div_ceil(self.copiers.1);
                    for outer in self.outer_points(&shape.outer) {
                        coming.turns.extend((0..turns).map(|turn| Turn {
                            input: coming.inputs.len(),
                            outer: outer.clone(),
                            turn,
                        }));
                    }
                    coming.inputs.push(Source { staged: input.clone(), base, inner });
                }
                Way::Elements => {
                    let (half, step) = match (half, input.home.half) {
                        (Some(half), Some((_, step))) => (Some(half), step as i64),
                        _ => (None, 0),
                    };
                    let dims = self.dims(input.node);
                    let time = self.graph.time;
                    let tensor_stride = tensor.stride;
                    let zero_void = input.zero;
                    let stores = self.flat_elements(dims, |this, at| {
                        let mut from = base;
                        let mut real = None;
                        let mut offset = Linear::default();
                        for (dim, ix) in &at.0 {
                            if by_token && Some(*dim) == time {
                                let row = this.position(*ix);
                                let token = this.w.op("add", start, row, Ty::I32);
                                if zero_void {
                                    real = Some(this.w.icmp("sle", token, last, Ty::I32));
                                }
                                let token = this.w.intrinsic("smin", &[token, last], Ty::I32);
                                let token = this.w.cast("sext", token, Ty::I32, Ty::I64);
                                let moved = this.w.op("mul", token, tensor_stride, Ty::I64);
                                from = text::element(&mut this.w, from, moved, Ty::I64, elem);
                            } else {
                                let stride = inner.iter().find(|(d, _)| d == dim).map_or(0, |(_, s)| *s);
                                offset.add_scaled(&this.ix.get(*ix).clone(), stride as i64);
                            }
                        }
                        if offset != Linear::default() {
                            let offset = this.number(&offset);
                            from = text::element(&mut this.w, from, offset, Ty::I32, elem);
                        }
                        let value = this.global_number(from, arg.dtype);
                        Ok(match real {
                            None => value,
                            Some(real) => {
                                let zero = this.w.f32(0.0, 0);
                                this.w.select(real, value, zero, Ty::F32)
                            }
                        })
                    });
                    let stores = stores.expect("reading an element cannot be refused");
                    for (at, value, own) in stores {
                        let mut bytes = Linear::default();
                        self.add_place(&mut bytes, &input.home, &at);
                        if let Some(half) = half {
                            bytes.add(half, step);
                        }
                        later.push(Later { region: input.home.region, bytes, value, own });
                    }
                }
            }
        }
        (coming, later)
    }

    /// Starts as many of the next chunk's copies as fall to one product of so many: all at once they would have to queue.
    pub fn copy_some(&mut self, products: usize) {
        if self.branches > 0 {
            return;
        }
        let Some(mut coming) = self.next.take() else { return };
        let share = coming.turns.len().div_ceil(products.max(1));
        for turn in coming.turns.drain(..share).collect::<Vec<_>>() {
            self.copy_turn(&coming, &turn);
        }
        self.next = (!coming.turns.is_empty()).then_some(coming);
    }

    /// A piece for each thread.
    fn copy_turn(&mut self, coming: &Coming, Turn { input, outer, turn }: &Turn) {
        let Source { staged: input, base, inner } = &coming.inputs[*input];
        let Way::Rows { shape, run, piece } = &input.way else { return };
        let (run, piece) = (*run, *piece);
        let (base, arg) = (*base, &self.args[input.arg]);
        let (by_token, elem, stride) = (arg.role == Role::Token, element(arg.dtype), self.tensors[input.arg].stride);
        let pieces = run / piece;
        let total = extent(self.graph, &shape.rows) * pieces;
        let (thread, threads) = self.copiers;
        let (col_step, row_step) = (input.home.strides[0].1, input.home.strides[1].1);
        let (mut there, mut skip) = (0i64, 0i64);
        for (dim, ix) in &outer.0 {
            let n = self.ix.get(*ix).as_number().expect("outer positions are numbers");
            let step = input.home.strides.iter().find(|(d, _)| d == dim);
            there += n * step.map_or(0, |(_, step)| step.one) as i64;
            skip += n * inner.iter().find(|(d, _)| d == dim).map_or(0, |(_, s)| *s) as i64;
        }
        let (per_row, ahead) = (self.int(pieces), self.int(turn * threads));
        let mut flat = thread;
        if *turn > 0 {
            flat = self.w.op("add", flat, ahead, Ty::I32);
        }
        let mut own = None;
        if (turn + 1) * threads > total {
            let end = self.int(total - 1);
            own = Some(self.w.icmp("sle", flat, end, Ty::I32));
            flat = self.w.intrinsic("smin", &[flat, end], Ty::I32);
        }
        let row = self.w.op("udiv", flat, per_row, Ty::I32);
        let column = self.w.op("urem", flat, per_row, Ty::I32);
        let mut bytes = Linear::number(there);
        self.add_step(&mut bytes, row_step, &Linear::value(row, 1));
        self.add_step(&mut bytes, col_step, &Linear::value(column, (piece / col_step.one) as i64));
        if let (Some(half), Some((_, step))) = (coming.half, input.home.half) {
            bytes.add(half, step as i64);
        }
        let to = self.shared(input.home.region, &bytes);
        let mut from = base;
        let mut real = None;
        if by_token {
            let token = self.w.op("add", coming.start, row, Ty::I32);
            if input.zero {
                real = Some(self.w.icmp("sle", token, coming.last, Ty::I32));
            }
            let token = self.w.intrinsic("smin", &[token, coming.last], Ty::I32);
            let token = self.w.cast("sext", token, Ty::I32, Ty::I64);
            let moved = self.w.op("mul", token, stride, Ty::I64);
            from = text::element(&mut self.w, from, moved, Ty::I64, elem);
        } else {
            let last_row = shape.rows.last().expect("a matrix has rows");
            let stride = inner.iter().find(|(d, _)| d == last_row).map_or(0, |(_, s)| *s);
            let stride = self.int(stride);
            let moved = self.w.op("mul", row, stride, Ty::I32);
            from = text::element(&mut self.w, from, moved, Ty::I32, elem);
        }
        let size = self.int(piece);
        let moved = self.w.op("mul", column, size, Ty::I32);
        let from = text::further(&mut self.w, from, moved);
        let skipped = usize::try_from(skip).expect("not negative") * arg.dtype.bytes();
        let from = text::bytes(&mut self.w, from, skipped);
        if let Some(own) = own {
            self.open_if(own);
        }
        self.copy_piece(to, from, piece, real);
        if own.is_some() {
            self.close_if();
        }
    }

    fn copy_piece(&mut self, to: Address, from: Address, piece: usize, real: Option<Val>) {
        let kind = if piece == 16 { "cg" } else { "ca" };
        let name = format!("llvm.nvvm.cp.async.{kind}.shared.global.{piece}");
        match real {
            None => self.w.raw(format_args!(
                "llvm.call_intrinsic \"{name}\"({}, {}) : ({}, {}) -> ()",
                to.at, from.at, to.space, from.space
            )),
            Some(real) => {
                let (all, none) = (self.int(piece), self.int(0));
                let size = self.w.select(real, all, none, Ty::I32);
                self.w.raw(format_args!(
                    "llvm.call_intrinsic \"{name}.s\"({}, {}, {size}) : ({}, {}, i32) -> ()",
                    to.at, from.at, to.space, from.space
                ));
            }
        }
    }
}
