//! One kernel: the loop over items, what is known when an item starts, and statements.
//!
//! Comes in: a [`Kernel`]. Goes out: the text of its C function, as [`chunkwise_abi::KernelFn`] says. It trusts the
//! verifier of the tile program: places and variables are in scope and in range.

use super::begin::Begin;
use super::functions::Functions;
use super::lanes::Group;
use super::writer::{Elem, Ty, Val, Writer};
use super::{Vectors, matmul, memory, requests};
use crate::tile::ir::{
    Affine, ArgId, BinaryOp as Binary, Compare, Cond, Expr, Index, Kernel, LocalId, Matmul, Memory, Order, Place, Stmt,
    Symbol, Triangle, Update, VarId, View,
};
use chunkwise_abi::Role;
use std::collections::{HashMap, HashSet};

/// A tensor of the caller, for the item at hand.
pub(super) struct Tensor {
    /// Its first element.
    pub base: Val,
    /// Elements from one leading index to the next.
    pub stride: Val,
    /// Whether what is written to it goes past the caches, for a tensor of which every row begins a line of them.
    pub streams: Option<Val>,
}

/// A sum of a constant and multiples of values, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Linear {
    pub constant: i64,
    pub terms: Vec<(Val, i64)>,
}

impl Linear {
    /// Adds `factor` times another sum.
    pub fn add(&mut self, other: &Linear, factor: i64) {
        self.constant += factor * other.constant;
        for (val, coefficient) in &other.terms {
            self.add_term(*val, factor * coefficient);
        }
    }
    /// Adds `coefficient · val`.
    pub fn add_term(&mut self, val: Val, coefficient: i64) {
        match self.terms.iter_mut().find(|(v, _)| *v == val) {
            Some((_, c)) => *c += coefficient,
            None => self.terms.push((val, coefficient)),
        }
        self.terms.retain(|(_, c)| *c != 0);
        // Loop variables are numbered from the outside in: sums of outer terms come first, where they can be hoisted.
        self.terms.sort_by_key(|(v, _)| v.order());
    }
}

/// Where the value of a local lives, one slot for each vector of the group.
pub(super) struct Slots {
    pub places: Vec<Val>,
    pub lanes: usize,
}

/// A kernel being written.
pub(super) struct Lowering<'k> {
    pub kernel: &'k Kernel,
    /// Index of the kernel in its module.
    pub number: usize,
    pub vectors: &'k Vectors,
    pub functions: &'k mut Functions,
    pub w: Writer,
    pub tensors: Vec<Tensor>,
    pub buffers: Vec<Val>,
    pub vars: HashMap<VarId, Val>,
    pub locals: HashMap<LocalId, Slots>,
    /// Which loops run from the last to the first.
    pub backwards: HashMap<VarId, bool>,
    /// Rows of tensors already asked for ahead of time, by the group at work.
    pub fetched: HashSet<(ArgId, Index)>,
    /// The lanes at work, inside `lanes`.
    pub group: Option<Group>,
    /// Rows to be asked for while products are computed, if there are any; see [`super::requests`].
    pub requests: Option<Val>,
    /// Open loops.
    depth: usize,
    length: Option<Val>,
    /// Sums already computed, by scope.
    sums: Vec<HashMap<Vec<(Val, i64)>, Val>>,
    quotients: Vec<HashMap<usize, Val>>,
}

/// Name of the TBAA tag of a tensor or buffer: memory of one is never memory of another.
pub(super) fn tag(kernel: usize, kind: char, index: u32) -> String {
    format!("#k{kernel}{kind}{index}")
}

/// Bytes of scratch: every buffer, and room for one vector read past the last.
pub(super) fn scratch_bytes(kernel: &Kernel) -> usize {
    let numbers = kernel.buffers.iter().map(|buffer| buffer.elements()).sum::<usize>() + crate::tile::ir::LANES;
    numbers * 4 + requests::bytes(kernel)
}

/// The function of a kernel, as text.
pub(super) fn lower(
    kernel: &Kernel,
    number: usize,
    symbol: &str,
    vectors: &Vectors,
    functions: &mut Functions,
) -> String {
    let mut lowering = Lowering {
        kernel,
        number,
        vectors,
        functions,
        w: Writer::new(4),
        tensors: Vec::new(),
        buffers: Vec::new(),
        vars: HashMap::new(),
        locals: HashMap::new(),
        backwards: HashMap::new(),
        fetched: HashSet::new(),
        group: None,
        requests: None,
        depth: 0,
        length: None,
        sums: vec![HashMap::new()],
        quotients: vec![HashMap::new()],
    };
    lowering.function();
    lowering.w.finish(&format!(
        "llvm.func @{symbol}(%0: !llvm.ptr {{llvm.noalias, llvm.readonly}}, %1: i64, %2: i64, %3: !llvm.ptr {{llvm.noalias, llvm.align = 64 : i64}}) attributes {{no_unwind}}"
    ))
}

impl Lowering<'_> {
    fn function(&mut self) {
        let (begin, end, scratch) = (self.w.param(1), self.w.param(2), self.w.param(3));
        // Numbers below the normal range count as zero: hundreds of times faster, and 1e-38 is nothing here.
        let control = self.w.slot(Ty::I32);
        self.w.raw(format_args!("llvm.call_intrinsic \"llvm.x86.sse.stmxcsr\"({control}) : (!llvm.ptr) -> ()"));
        let before = self.w.load(control, Ty::I32, "");
        let flags = self.w.int(Ty::I32, 0x8040);
        let flushing = self.w.op("or", before, flags, Ty::I32);
        self.w.store(flushing, control, Ty::I32, "");
        self.w.raw(format_args!("llvm.call_intrinsic \"llvm.x86.sse.ldmxcsr\"({control}) : (!llvm.ptr) -> ()"));

        let mut offset = 0;
        for buffer in &self.kernel.buffers {
            let elements = i64::try_from(buffer.elements()).expect("scratch fits memory");
            self.buffers.push(self.w.element_at(scratch, offset, Elem::F32));
            offset += elements;
        }
        if requests::bytes(self.kernel) > 0 {
            let padding = i64::try_from(crate::tile::ir::LANES).expect("a vector is short");
            let requests = self.w.element_at(scratch, offset + padding, Elem::F32);
            self.requests = Some(requests);
            self.forget_requests();
        }
        let item = self.w.open_for(begin, end, 1);
        self.item(item);
        self.stmts(&self.kernel.body);
        self.w.end();

        if self.tensors.iter().any(|tensor| tensor.streams.is_some()) {
            self.w.raw(format_args!("llvm.call_intrinsic \"llvm.x86.sse.sfence\"() : () -> ()"));
        }
        self.w.store(before, control, Ty::I32, "");
        self.w.raw(format_args!("llvm.call_intrinsic \"llvm.x86.sse.ldmxcsr\"({control}) : (!llvm.ptr) -> ()"));
    }

    /// Finds the sequence, the head and every tensor of an item.
    fn item(&mut self, item: Val) {
        let call = self.w.param(0);
        let word = |w: &mut Writer, base: Val, index: i64, ty: Ty| {
            let at = w.element_at(base, index, Elem::I64);
            w.load(at, ty, "")
        };
        let tensors = word(&mut self.w, call, 0, Ty::PTR);
        let offsets = word(&mut self.w, call, 1, Ty::PTR);
        let sequences = word(&mut self.w, call, 2, Ty::I64);
        let equal_length = word(&mut self.w, call, 3, Ty::I64);
        let heads = word(&mut self.w, call, 4, Ty::I64);
        let w = &mut self.w;
        let sequence = w.op("sdiv", item, heads, Ty::I64);
        let before = w.op("mul", sequence, heads, Ty::I64);
        let head = w.op("sub", item, before, Ty::I64);

        // Packed sequences: `first` is the first token, and there is no stride from sequence to sequence.
        let address = w.cast("ptrtoint", offsets, Ty::PTR, Ty::I64);
        let zero = w.i64(0);
        let packed = w.icmp("ne", address, zero, Ty::I64);
        let results = w.open_if_yielding(packed, 3, Ty::I64);
        let at = w.element(offsets, sequence, Elem::I64);
        let first = w.load(at, Ty::I64, "");
        let last = word(w, at, 1, Ty::I64);
        let length = w.op("sub", last, first, Ty::I64);
        w.other(&[length, first, first], Ty::I64);
        let start = w.op("mul", sequence, equal_length, Ty::I64);
        let found = w.end_yielding(results, &[equal_length, zero, start], Ty::I64);
        let (length, first, start) = (found[0], found[1], found[2]);
        let unpacked_sequence = w.select(packed, zero, sequence, Ty::I64);
        self.length = Some(length);

        for (index, arg) in self.kernel.args.iter().enumerate() {
            let w = &mut self.w;
            let words = i64::try_from(index).expect("a handful of tensors") * 5;
            let data = word(w, tensors, words, Ty::PTR);
            let by_sequence = word(w, tensors, words + 1, Ty::I64);
            let by_time = word(w, tensors, words + 2, Ty::I64);
            let by_head = word(w, tensors, words + 3, Ty::I64);
            let own_heads = word(w, tensors, words + 4, Ty::I64);
            let sharing = w.op("sdiv", heads, own_heads, Ty::I64);
            let own_head = w.op("sdiv", head, sharing, Ty::I64);
            let offset = w.op("mul", own_head, by_head, Ty::I64);
            let begin = Begin { sequence, unpacked: unpacked_sequence, first, start };
            let offset = begin.offset(w, arg.role, offset, by_sequence, by_time);
            let base = w.element(data, offset, element(arg.dtype));
            let streams = memory::row_bytes(arg).map(|row| {
                let elements = w.i64(i64::try_from(row / arg.dtype.bytes()).expect("a row fits memory"));
                let steps = match arg.role {
                    Role::Chunk(tokens) => {
                        let tokens = w.i64(i64::try_from(tokens).expect("a chunk fits memory"));
                        w.op("sdiv", length, tokens, Ty::I64)
                    }
                    Role::Token | Role::Sequence | Role::Head => length,
                };
                let of_sequence = w.op("mul", steps, heads, Ty::I64);
                let rows = w.op("mul", of_sequence, sequences, Ty::I64);
                let size = w.op("mul", rows, elements, Ty::I64);
                let most = w.i64(memory::CACHED / i64::try_from(arg.dtype.bytes()).expect("a few bytes"));
                let large = w.icmp("sgt", size, most, Ty::I64);
                let address = w.cast("ptrtoint", base, Ty::PTR, Ty::I64);
                let width = w.i64(i64::try_from(arg.dtype.bytes()).expect("a few bytes"));
                let stride = w.op("mul", by_time, width, Ty::I64);
                let bits = w.op("or", address, stride, Ty::I64);
                let within = w.i64(63);
                let odd = w.op("and", bits, within, Ty::I64);
                let zero = w.i64(0);
                let even = w.icmp("eq", odd, zero, Ty::I64);
                w.op("and", large, even, Ty::scalar(Elem::I1))
            });
            self.tensors.push(Tensor { base, stride: by_time, streams });
        }
    }

    pub(super) fn stmts(&mut self, body: &[Stmt]) {
        let mut rest = body;
        while let Some((stmt, after)) = rest.split_first() {
            rest = after;
            if let Some((Stmt::Matmul(product), after)) = rest.split_first()
                && let Some(factor) = self.scaling(stmt, product)
            {
                self.matmul(product, Some(factor));
                rest = after;
                continue;
            }
            self.stmt(stmt);
        }
    }

    /// The factor, if a statement does nothing but multiply by one number what a product is then added to: the product
    /// can do that in passing, with the same roundings.
    fn scaling<'s>(&self, stmt: &'s Stmt, product: &Matmul) -> Option<&'s Expr> {
        let Stmt::For { var: row, lo, hi, order: _, body } = stmt else { return None };
        let [Stmt::Lanes { var: column, extent, body }] = body.as_slice() else { return None };
        let [Stmt::Store { place, value: Expr::Binary(Binary::Mul, a, b) }] = body.as_slice() else { return None };
        let whole = Place {
            memory: Memory::Buffer(product.dst.buffer),
            indices: [row, column].map(|var| Index { value: variable(*var), at_most: None }).to_vec(),
        };
        let there = Expr::Load(whole.clone());
        let factor = match (&**a, &**b) {
            (old, factor) | (factor, old) if *old == there => factor,
            _ => return None,
        };
        let fixed = |n: usize| {
            let constant = i64::try_from(n).expect("a buffer fits memory");
            Index { value: Affine { constant, ..Affine::default() }, at_most: None }
        };
        let pitch = self.kernel.buffers[product.dst.buffer.0 as usize].pitch();
        let uniform = match factor {
            Expr::Const(_) => true,
            Expr::Load(from) => {
                let moves = |index: &Index| index.value.vars.iter().any(|(v, _)| v == row || v == column);
                from.memory != whole.memory && !from.indices.iter().any(moves)
            }
            Expr::Local(_) | Expr::Unary(..) | Expr::Binary(..) | Expr::Select(..) | Expr::SelectValue(..) => false,
        };
        let covered = product.update == Update::Add
            && product.triangle != Triangle::LowerResult
            && product.dst.offset == Affine::default()
            && product.dst.row_stride == pitch
            && (*lo == fixed(0) && *hi == fixed(product.m) && *extent == product.n);
        (*place == whole && uniform && covered).then_some(factor)
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::For { var, lo, hi, order: _, body } if self.transposes(*var, lo, hi, body) => {}
            Stmt::For { var, lo, hi, order, body } => {
                let reverse = *order == Order::Reverse;
                let (lo, hi) = (self.index(lo), self.index(hi));
                let turn = self.w.open_for(lo, hi, 1);
                self.open_scope();
                self.depth += 1;
                if self.depth == 1 {
                    self.forget_requests();
                }
                let value = if reverse {
                    let one = self.w.i64(1);
                    let ends = self.w.op("add", lo, hi, Ty::I64);
                    let top = self.w.op("sub", ends, one, Ty::I64);
                    self.w.op("sub", top, turn, Ty::I64)
                } else {
                    turn
                };
                self.vars.insert(*var, value);
                self.backwards.insert(*var, reverse);
                self.stmts(body);
                self.depth -= 1;
                self.close_scope();
                self.w.end();
            }
            Stmt::Lanes { var, extent, body } => self.lanes(*var, *extent, body),
            Stmt::If { cond, body } => {
                let holds = self.cond(cond);
                self.w.open_if(holds);
                self.open_scope();
                self.stmts(body);
                self.close_scope();
                self.w.end();
            }
            Stmt::Local { local, value } => {
                let (count, lanes) = self.group.as_ref().map_or((1, 0), |group| (group.count, group.lanes));
                let values = self.values(value);
                let places: Vec<Val> = (0..count).map(|_| self.w.slot(Ty::f32s(lanes))).collect();
                for (place, value) in places.iter().zip(values) {
                    self.w.store(value, *place, Ty::f32s(lanes), "");
                }
                self.locals.insert(*local, Slots { places, lanes });
            }
            Stmt::Assign { local, value } => {
                let values = self.values(value);
                let slots = &self.locals[local];
                for (place, value) in slots.places.iter().zip(values) {
                    self.w.store(value, *place, Ty::f32s(slots.lanes), "");
                }
            }
            // What is copied onto itself stays what it is.
            Stmt::Store { place, value: Expr::Load(source) } if place == source => {}
            Stmt::Store { place, value } => self.store(place, value),
            Stmt::ReduceLanes { place, op, var, extent, value, accumulate } => {
                self.reduce(place, *op, *var, *extent, value, *accumulate);
            }
            Stmt::Matmul(product) => self.matmul(product, None),
        }
    }

    fn matmul(&mut self, product: &Matmul, factor: Option<&Expr>) {
        let size = |n: usize| i64::try_from(n).expect("a buffer fits memory");
        let dst = self.view(&product.dst);
        let a = self.view(&product.a);
        let b = self.view(&product.b);
        let k = self.affine(&product.k);
        let dst_stride = self.w.i64(size(product.dst.row_stride));
        let a_row = self.w.i64(size(product.a.row_stride));
        let a_col = self.w.i64(size(product.a.col_stride));
        let b_stride = self.w.i64(size(product.b.row_stride));
        let (m, n) = (self.w.i64(size(product.m)), self.w.i64(size(product.n)));
        let update = self.w.i64(match (product.update, factor) {
            (Update::Add, Some(_)) => matmul::SCALE,
            (Update::Set, _) => matmul::SET,
            (Update::Add, None) => matmul::ADD,
            (Update::Subtract, _) => matmul::SUBTRACT,
        });
        let factor = match factor {
            Some(factor) => self.values(factor)[0],
            None => self.w.f32(1.0, 0),
        };
        let triangle = self.w.i64(match product.triangle {
            Triangle::Full => matmul::FULL,
            Triangle::LowerResult => matmul::LOWER_RESULT,
            Triangle::LowerLeft => matmul::LOWER_LEFT,
            Triangle::UpperLeft => matmul::UPPER_LEFT,
        });
        let requests = self.requests.expect("every kernel with a product has them");
        let operands = [dst, dst_stride, a, a_row, a_col, b, b_stride, m, n, k, update, triangle, requests, factor];
        self.functions.needs_matmul = true;
        self.w.raw(format_args!("{}", matmul::call(&operands)));
    }

    fn view(&mut self, view: &View) -> Val {
        let offset = self.resolve(&view.offset);
        let base = self.buffers[view.buffer.0 as usize];
        self.offset(base, &offset, Elem::F32)
    }

    /// The sum an affine form stands for here.
    pub(super) fn resolve(&mut self, affine: &Affine) -> Linear {
        let mut linear = Linear { constant: affine.constant, terms: Vec::new() };
        for (symbol, coefficient) in &affine.symbols {
            let val = self.symbol(*symbol);
            linear.add_term(val, *coefficient);
        }
        for (var, coefficient) in &affine.vars {
            linear.add_term(self.vars[var], *coefficient);
        }
        linear
    }

    fn symbol(&mut self, symbol: Symbol) -> Val {
        let length = self.length.expect("set when the item starts");
        match symbol {
            Symbol::Length => length,
            Symbol::Chunks(tokens) => {
                if let Some(val) = self.quotients.iter().rev().find_map(|known| known.get(&tokens)) {
                    return *val;
                }
                let size = i64::try_from(tokens).expect("a chunk fits memory");
                let (more, size) = (self.w.i64(size - 1), self.w.i64(size));
                let sum = self.w.op("add", length, more, Ty::I64);
                let val = self.w.op("sdiv", sum, size, Ty::I64);
                self.quotients.last_mut().expect("a scope is open").insert(tokens, val);
                val
            }
        }
    }

    /// The value of the terms of a sum, without its constant; nothing if there are none.
    pub(super) fn terms(&mut self, linear: &Linear) -> Option<Val> {
        let mut sum: Option<Val> = None;
        for (count, (val, coefficient)) in linear.terms.iter().enumerate() {
            let key = &linear.terms[..=count];
            if let Some(known) = self.sums.iter().rev().find_map(|known| known.get(key)) {
                sum = Some(*known);
                continue;
            }
            let product = if *coefficient == 1 {
                *val
            } else {
                let factor = self.w.i64(*coefficient);
                self.w.op("mul", *val, factor, Ty::I64)
            };
            let total = match sum {
                None => product,
                Some(before) => self.w.op("add", before, product, Ty::I64),
            };
            self.sums.last_mut().expect("a scope is open").insert(key.to_vec(), total);
            sum = Some(total);
        }
        sum
    }

    /// The value of a sum.
    pub(super) fn linear(&mut self, linear: &Linear) -> Val {
        match self.terms(linear) {
            None => self.w.i64(linear.constant),
            Some(val) if linear.constant == 0 => val,
            Some(val) => {
                let constant = self.w.i64(linear.constant);
                self.w.op("add", val, constant, Ty::I64)
            }
        }
    }

    /// `base` advanced by a sum of elements.
    pub(super) fn offset(&mut self, base: Val, linear: &Linear, elem: Elem) -> Val {
        let moved = match self.terms(linear) {
            None => base,
            Some(val) => self.w.element(base, val, elem),
        };
        self.w.element_at(moved, linear.constant, elem)
    }

    pub(super) fn affine(&mut self, affine: &Affine) -> Val {
        let linear = self.resolve(affine);
        self.linear(&linear)
    }

    pub(super) fn index(&mut self, index: &Index) -> Val {
        let value = self.affine(&index.value);
        match &index.at_most {
            None => value,
            Some(limit) => {
                let limit = self.affine(limit);
                self.w.intrinsic("smin", &[value, limit], Ty::I64)
            }
        }
    }

    /// A condition without lanes.
    pub(super) fn cond(&mut self, cond: &Cond) -> Val {
        let (lhs, rhs) = (self.affine(&cond.lhs), self.affine(&cond.rhs));
        self.w.icmp(predicate(cond.op), lhs, rhs, Ty::I64)
    }

    pub(super) fn open_scope(&mut self) {
        self.sums.push(HashMap::new());
        self.quotients.push(HashMap::new());
    }

    pub(super) fn close_scope(&mut self) {
        self.sums.pop();
        self.quotients.pop();
    }
}

fn variable(var: VarId) -> Affine {
    Affine { vars: vec![(var, 1)], ..Affine::default() }
}

/// How an element stands in memory.
pub(super) fn element(dtype: chunkwise_abi::DType) -> Elem {
    match dtype {
        chunkwise_abi::DType::F32 => Elem::F32,
        chunkwise_abi::DType::BF16 => Elem::I16,
        chunkwise_abi::DType::F16 => Elem::F16,
    }
}

/// MLIR's name of a comparison of integers.
pub(super) fn predicate(op: Compare) -> &'static str {
    match op {
        Compare::Lt => "slt",
        Compare::Le => "sle",
        Compare::Eq => "eq",
    }
}
