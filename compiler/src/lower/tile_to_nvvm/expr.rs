//! Expressions, for one thread: one number, or one for each lane of its group.
//!
//! Comes in: an [`Expr`]. Goes out: its values. What does not depend on the lane is computed once. Products that are
//! added or subtracted become fused multiply-adds here, so that the result does not depend on what a later pass makes
//! of them.

use super::call::element;
use super::kernel::Lowering;
use super::text::{self, Address};
use crate::lower::tile_to_mlir::functions::Functions;
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val, Writer};
use crate::tile::ir::{Affine, BinaryOp, Compare, Cond, Expr, Index, Memory, Place, UnaryOp, VarId};
use chunkwise_abi::{DType, Role};

/// Where an element lies, and whether the lanes of a group lie side by side there.
struct Spot {
    address: Address,
    dtype: DType,
    side_by_side: bool,
    /// The address differs from lane to lane.
    by_lane: bool,
}

impl Lowering<'_> {
    /// The value of an expression in each of `count` lanes.
    pub fn values(&mut self, expr: &Expr, count: usize) -> Vec<Val> {
        let values = self.expr(expr);
        if values.len() == count { values } else { vec![values[0]; count] }
    }

    /// One value if it is the same in every lane, else one a lane.
    fn expr(&mut self, expr: &Expr) -> Vec<Val> {
        match expr {
            // The rounding to float32 is what a constant means.
            #[expect(clippy::cast_possible_truncation)]
            Expr::Const(number) => vec![self.w.f32(*number as f32, 0)],
            Expr::Load(place) => self.load(place),
            Expr::Local(local) => {
                let slots = self.locals[local].clone();
                slots.iter().map(|slot| self.w.load(*slot, Ty::F32, "")).collect()
            }
            Expr::Unary(op, x) => {
                let x = self.expr(x);
                self.each(&[x], |this, v| unary(&mut this.w, this.functions, *op, v[0]))
            }
            Expr::Binary(op, a, b) => self.binary(*op, a, b),
            Expr::Select(cond, a, b) => self.select(cond, a, b),
            Expr::SelectValue(op, lhs, rhs, a, b) => {
                let operands = [self.expr(lhs), self.expr(rhs), self.expr(a), self.expr(b)];
                let predicate = match op {
                    Compare::Lt => "olt",
                    Compare::Le => "ole",
                    Compare::Eq => "oeq",
                };
                self.each(&operands, |this, v| {
                    let holds = this.w.fcmp(predicate, v[0], v[1], Ty::F32);
                    this.w.select(holds, v[2], v[3], Ty::F32)
                })
            }
        }
    }

    fn each(&mut self, operands: &[Vec<Val>], mut f: impl FnMut(&mut Self, &[Val]) -> Val) -> Vec<Val> {
        let count = operands.iter().map(Vec::len).max().unwrap_or(1);
        (0..count)
            .map(|n| {
                let here: Vec<Val> = operands.iter().map(|o| if o.len() == 1 { o[0] } else { o[n] }).collect();
                f(self, &here)
            })
            .collect()
    }

    fn binary(&mut self, op: BinaryOp, a: &Expr, b: &Expr) -> Vec<Val> {
        // (factors, addend, negate the product, negate the addend)
        let fused = match (op, a, b) {
            (BinaryOp::Add, Expr::Binary(BinaryOp::Mul, x, y), c) => Some(((x, y), c, false, false)),
            (BinaryOp::Add, c, Expr::Binary(BinaryOp::Mul, x, y)) => Some(((x, y), c, false, false)),
            (BinaryOp::Sub, c, Expr::Binary(BinaryOp::Mul, x, y)) => Some(((x, y), c, true, false)),
            (BinaryOp::Sub, Expr::Binary(BinaryOp::Mul, x, y), c) => Some(((x, y), c, false, true)),
            _ => None,
        };
        let Some(((x, y), c, minus_product, minus_addend)) = fused else {
            let operands = [self.expr(a), self.expr(b)];
            return self.each(&operands, |this, v| this.functions.binary(&mut this.w, op, v[0], v[1], 0));
        };
        let operands = [self.expr(x), self.expr(y), self.expr(c)];
        self.each(&operands, |this, v| {
            let factor = if minus_product { this.w.negate(v[0], Ty::F32) } else { v[0] };
            let addend = if minus_addend { this.w.negate(v[2], Ty::F32) } else { v[2] };
            this.w.intrinsic("fma", &[factor, v[1], addend], Ty::F32)
        })
    }

    fn select(&mut self, cond: &Cond, a: &Expr, b: &Expr) -> Vec<Val> {
        let by_lane = self.group.filter(|(var, _)| cond.lhs.mentions(*var) || cond.rhs.mentions(*var));
        let count = by_lane.map_or(1, |(_, count)| count);
        let holds: Vec<Val> = (0..count)
            .map(|n| {
                let mut here = cond.clone();
                if let Some((var, _)) = by_lane {
                    let n = i64::try_from(n).expect("a lane");
                    here.lhs.constant += n * cond.lhs.coefficient(var);
                    here.rhs.constant += n * cond.rhs.coefficient(var);
                }
                self.cond(&here)
            })
            .collect();
        if reads_unclamped(a) || reads_unclamped(b) {
            // Not to be read when the condition does not hold.
            let lanes = self.group.map_or(1, |(_, count)| count);
            let mut results = Vec::new();
            for n in 0..lanes {
                let taken = self.w.open_if_yielding(holds[n.min(count - 1)], 1, Ty::F32);
                let first = self.values(a, lanes)[n];
                self.w.other(&[first], Ty::F32);
                let second = self.values(b, lanes)[n];
                results.extend(self.w.end_yielding(taken, &[second], Ty::F32));
            }
            return results;
        }
        let operands = [holds, self.expr(a), self.expr(b)];
        self.each(&operands, |this, v| this.w.select(v[0], v[1], v[2], Ty::F32))
    }

    fn spot(&mut self, place: &Place, lane: i64) -> Spot {
        let group = self.group;
        let by_lane = group.is_some_and(|(var, _)| place.indices.iter().any(|index| index.mentions(var)));
        let shift = |index: &Index| {
            let mut index = index.clone();
            if let Some((var, _)) = group {
                index.value.constant += lane * index.value.coefficient(var);
                if let Some(limit) = &mut index.at_most {
                    limit.constant += lane * limit.coefficient(var);
                }
            }
            index
        };
        let indices: Vec<Index> = place.indices.iter().map(shift).collect();
        let (base, dtype, inner, inner_indices) = match place.memory {
            Memory::Buffer(buffer) => {
                let strides = self.kernel.buffers[buffer.0 as usize].strides();
                (self.buffer(buffer), self.homes.homes[buffer.0 as usize].dtype, strides, &indices[..])
            }
            Memory::Arg(arg) => {
                let tensor = &self.tensors[arg.0 as usize];
                let (base, stride) = (tensor.base, tensor.stride);
                let arg = &self.kernel.args[arg.0 as usize];
                let strides = arg.strides();
                let dtype = arg.dtype;
                let leads = match arg.role {
                    Role::Token | Role::Chunk(_) => true,
                    Role::Head | Role::Sequence => false,
                };
                if leads {
                    let at = self.index(&indices[0]);
                    let at = self.w.cast("sext", at, Ty::I32, Ty::I64);
                    let moved = self.w.op("mul", at, stride, Ty::I64);
                    (text::element(&mut self.w, base, moved, Ty::I64, element(dtype)), dtype, strides, &indices[1..])
                } else {
                    (base, dtype, strides, &indices[..])
                }
            }
        };
        // One affine form for all indices without a limit; the others one by one.
        let mut flat = Affine::default();
        let mut address = base;
        for (index, stride) in inner_indices.iter().zip(&inner) {
            let stride = i64::try_from(*stride).expect("a buffer fits memory");
            if index.at_most.is_some() {
                let at = self.index(index);
                let stride = text::int(&mut self.w, stride);
                let moved = self.w.op("mul", at, stride, Ty::I32);
                address = text::element(&mut self.w, address, moved, Ty::I32, element(dtype));
            } else {
                add_scaled(&mut flat, &index.value, stride);
            }
        }
        let side_by_side = lane == 0 && group.is_some_and(|(var, count)| self.lie_together(place, var, count));
        let constant = flat.constant;
        flat.constant = 0;
        if !(flat.vars.is_empty() && flat.symbols.is_empty()) {
            let at = self.affine(&flat);
            address = text::element(&mut self.w, address, at, Ty::I32, element(dtype));
        }
        if constant >= 0 {
            address =
                text::bytes(&mut self.w, address, usize::try_from(constant).expect("not negative") * dtype.bytes());
        } else {
            let at = text::int(&mut self.w, constant);
            address = text::element(&mut self.w, address, at, Ty::I32, element(dtype));
        }
        Spot { address, dtype, side_by_side, by_lane }
    }

    /// Where an element lies.
    pub fn address(&mut self, place: &Place) -> Address {
        self.spot(place, 0).address
    }

    /// Whether so many neighbouring lanes lie side by side in one aligned vector.
    pub fn lie_together(&self, place: &Place, var: VarId, count: usize) -> bool {
        let count_number = i64::try_from(count).expect("a lane");
        let whole = |factor: i64| factor % count_number == 0;
        let (strides, leading, inner) = match place.memory {
            Memory::Buffer(buffer) => (self.kernel.buffers[buffer.0 as usize].strides(), 0, 0),
            Memory::Arg(arg) => {
                let arg = &self.kernel.args[arg.0 as usize];
                let strides = arg.strides();
                let leading = place.indices.len() - strides.len();
                (strides, leading, arg.inner.iter().product())
            }
        };
        let mut flat = Affine::default();
        for (index, stride) in place.indices[leading..].iter().zip(&strides) {
            if index.at_most.is_some() {
                return false;
            }
            add_scaled(&mut flat, &index.value, i64::try_from(*stride).expect("a buffer fits memory"));
        }
        flat.coefficient(var) == 1
            && whole(flat.constant)
            && flat.vars.iter().all(|(v, factor)| *v == var || whole(*factor))
            && flat.symbols.iter().all(|(_, factor)| whole(*factor))
            && inner % count == 0
            && !place.indices[..leading].iter().any(|index| index.mentions(var))
    }

    fn load(&mut self, place: &Place) -> Vec<Val> {
        let spot = self.spot(place, 0);
        let count = self.group.map_or(1, |(_, count)| count);
        if !spot.by_lane || count == 1 {
            return vec![self.load_one(&spot)];
        }
        if !spot.side_by_side {
            let mut values = vec![self.load_one(&spot)];
            for n in 1..count {
                let spot = self.spot(place, i64::try_from(n).expect("a lane"));
                values.push(self.load_one(&spot));
            }
            return values;
        }
        let w = &mut self.w;
        match spot.dtype {
            DType::F32 => {
                let ty = Ty::f32s(count);
                let vector = text::load(w, spot.address, ty, 4 * count);
                (0..count).map(|n| text::lane(w, vector, n, ty)).collect()
            }
            DType::BF16 => {
                let words = Ty { elem: Elem::I32, lanes: count / 2 };
                let vector = text::load(w, spot.address, words, 2 * count);
                let (sixteen, high) = (text::int(w, 16), text::int(w, -65536));
                (0..count)
                    .map(|n| {
                        let word = text::lane(w, vector, n / 2, words);
                        let bits = if n % 2 == 0 {
                            w.op("shl", word, sixteen, Ty::I32)
                        } else {
                            w.op("and", word, high, Ty::I32)
                        };
                        w.cast("bitcast", bits, Ty::I32, Ty::F32)
                    })
                    .collect()
            }
            DType::F16 => {
                let ty = Ty { elem: Elem::F16, lanes: count };
                let vector = text::load(w, spot.address, ty, 2 * count);
                let wide = w.cast("fpext", vector, ty, Ty::f32s(count));
                (0..count).map(|n| text::lane(w, wide, n, Ty::f32s(count))).collect()
            }
        }
    }

    fn load_one(&mut self, spot: &Spot) -> Val {
        let w = &mut self.w;
        let ty = Ty::scalar(element(spot.dtype));
        let value = text::load(w, spot.address, ty, spot.dtype.bytes());
        match spot.dtype {
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

    /// Writes values to a place, one a lane.
    pub fn store(&mut self, place: &Place, values: &[Val]) {
        let spot = self.spot(place, 0);
        if spot.side_by_side && values.len() > 1 {
            self.store_side_by_side(&spot, values);
            return;
        }
        for (n, value) in values.iter().enumerate() {
            let spot = if n == 0 { self.spot(place, 0) } else { self.spot(place, i64::try_from(n).expect("a lane")) };
            self.store_one(&spot, *value);
        }
    }

    fn store_side_by_side(&mut self, spot: &Spot, values: &[Val]) {
        let count = values.len();
        let w = &mut self.w;
        let vector = text::vector(w, values, Elem::F32);
        let wide = Ty::f32s(count);
        match spot.dtype {
            DType::F32 => text::store(w, vector, spot.address, &wide.to_string(), 4 * count),
            DType::BF16 => {
                let ty = format!("vector<{count}xbf16>");
                let narrow = w.raw_value(format_args!("llvm.fptrunc {vector} : {wide} to {ty}"));
                text::store(w, narrow, spot.address, &ty, 2 * count);
            }
            DType::F16 => {
                let ty = Ty { elem: Elem::F16, lanes: count };
                let narrow = w.cast("fptrunc", vector, wide, ty);
                text::store(w, narrow, spot.address, &ty.to_string(), 2 * count);
            }
        }
    }

    fn store_one(&mut self, spot: &Spot, value: Val) {
        let w = &mut self.w;
        match spot.dtype {
            DType::F32 => text::store(w, value, spot.address, "f32", 4),
            DType::BF16 => {
                let narrow = w.raw_value(format_args!("llvm.fptrunc {value} : f32 to bf16"));
                text::store(w, narrow, spot.address, "bf16", 2);
            }
            DType::F16 => {
                let narrow = w.raw_value(format_args!("llvm.fptrunc {value} : f32 to f16"));
                text::store(w, narrow, spot.address, "f16", 2);
            }
        }
    }
}

/// A function of one number.
pub fn unary(w: &mut Writer, functions: &mut Functions, op: UnaryOp, x: Val) -> Val {
    match op {
        // The hardware's power of two is right to two units in the last place, and takes its limits at ±∞.
        UnaryOp::Exp => {
            let log2_e = w.f32(std::f32::consts::LOG2_E, 0);
            let x = w.op("fmul", x, log2_e, Ty::F32);
            text::intrinsic(w, "llvm.nvvm.ex2.approx.ftz.f", &[(x, Ty::F32)], "f32")
        }
        UnaryOp::Neg
        | UnaryOp::Expm1
        | UnaryOp::Log
        | UnaryOp::Sqrt
        | UnaryOp::Recip
        | UnaryOp::Abs
        | UnaryOp::Square
        | UnaryOp::Sign
        | UnaryOp::Sigmoid
        | UnaryOp::LogSigmoid
        | UnaryOp::Softplus
        | UnaryOp::Tanh
        | UnaryOp::Sin
        | UnaryOp::Cos
        | UnaryOp::Erf => functions.unary(w, op, x, 0),
    }
}

/// Adds `factor` times an affine form.
fn add_scaled(to: &mut Affine, other: &Affine, factor: i64) {
    to.constant += factor * other.constant;
    for (var, coefficient) in &other.vars {
        match to.vars.iter_mut().find(|(v, _)| v == var) {
            Some((_, c)) => *c += factor * coefficient,
            None => to.vars.push((*var, factor * coefficient)),
        }
    }
    for (symbol, coefficient) in &other.symbols {
        match to.symbols.iter_mut().find(|(s, _)| s == symbol) {
            Some((_, c)) => *c += factor * coefficient,
            None => to.symbols.push((*symbol, factor * coefficient)),
        }
    }
    to.vars.retain(|(_, c)| *c != 0);
    to.symbols.retain(|(_, c)| *c != 0);
}

/// An argument read at an index without an upper limit may lie outside when a condition does not hold.
fn reads_unclamped(expr: &Expr) -> bool {
    let mut found = false;
    expr.for_each_load(&mut |place| {
        found |= matches!(place.memory, Memory::Arg(_))
            && place.indices.first().is_some_and(|index| index.at_most.is_none());
    });
    found
}
