//! One element of a value, for one thread.
//!
//! Comes in: a value and a position. Goes out: a float32. What lies in registers or in shared memory is taken from
//! there; everything else is computed from its operands, element by element, as often as it is asked for. A value that
//! threads have to work on together is asked for before ([`super::ready`]).

use super::Refusal;
use super::block::{Block, Fold, Home, Point};
use super::index::{Ix, Linear};
use super::memory::Touch;
use crate::graph::ir::{Binary, Compare, DimId, Gate, GateKind, Gates, NodeId, Op, Unary};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;

/// Sums over so few positions are made by each thread for itself.
pub const FEW: usize = 16;

impl Block<'_> {
    /// The value of an element.
    pub fn eval(&mut self, x: NodeId, at: &Point) -> Result<Val, Refusal> {
        let key = self.key(x, at)?;
        if let Some(known) = self.values.get(&key) {
            self.lives.used(x);
            return Ok(*known);
        }
        if let Some(known) = self.recent.get(&key) {
            return Ok(*known);
        }
        let value = match (self.taken_up(&key), self.homes.get(&x).cloned()) {
            (Some(value), _) => value,
            (None, Some(home)) => self.load(&home, at)?,
            (None, None) => self.compute(x, at)?,
        };
        self.recent.insert(key, value);
        Ok(value)
    }

    fn compute(&mut self, x: NodeId, at: &Point) -> Result<Val, Refusal> {
        match self.op(x) {
            // The rounding to float32 is what a constant means.
            #[expect(clippy::cast_possible_truncation)]
            Op::Const(number) => Ok(self.w.f32(*number as f32, 0)),
            Op::Unary(function, operand) => {
                let operand = self.eval(*operand, at).map_err(|why| self.parked_here(x, why))?;
                Ok(self.function(*function, operand))
            }
            Op::Binary(function, a, b) => self.binary(*function, *a, *b, at).map_err(|why| self.parked_here(x, why)),
            Op::Select { op, lhs, rhs, then, otherwise } => {
                let predicate = match op {
                    Compare::Lt => "olt",
                    Compare::Le => "ole",
                    Compare::Eq => "oeq",
                };
                let (lhs, rhs) = (self.eval(*lhs, at)?, self.eval(*rhs, at)?);
                let (then, otherwise) = (self.eval(*then, at)?, self.eval(*otherwise, at)?);
                let holds = self.w.fcmp(predicate, lhs, rhs, Ty::F32);
                Ok(self.w.select(holds, then, otherwise, Ty::F32))
            }
            Op::Broadcast(operand) | Op::StopGradient(operand) => self.eval(*operand, at),
            Op::Rename(..) | Op::Index(..) | Op::Split(..) | Op::Merge(..) => {
                let (operand, there) = self.seen_through(x, at)?;
                self.eval(operand, &there)
            }
            Op::Stack(parts, dim) => {
                let place = at.get(*dim).expect("a position of each dimension");
                let Some(n) = self.ix.get(place).as_number() else {
                    return Err(Refusal::unsupported("values side by side along a dimension spread over threads"));
                };
                match usize::try_from(n).ok().and_then(|n| parts.get(n).copied().flatten()) {
                    Some(part) => self.eval(part, at),
                    None => Ok(self.w.f32(0.0, 0)),
                }
            }
            Op::Guard(operand, fill) => {
                let value = self.eval(*operand, at)?;
                if *fill == 0.0 && self.is_zeroed(*operand) {
                    return Ok(value);
                }
                let time = self.graph.time.expect("a graph of chunks has rows");
                let row = at.get(time).expect("a position of each dimension");
                let row = self.position(row);
                let limit = self.limit;
                let real = self.w.icmp("slt", row, limit, Ty::I32);
                #[expect(clippy::cast_possible_truncation)]
                let fill = self.w.f32(*fill as f32, 0);
                Ok(self.w.select(real, value, fill, Ty::F32))
            }
            Op::Diagonal(operand, row, col) => {
                let (row, col) = (at.get(*row), at.get(*col));
                let (row, col) = (row.expect("a position of each"), col.expect("a position of each"));
                let zero = self.w.f32(0.0, 0);
                match self.compare("eq", row, col) {
                    Known::Never => Ok(zero),
                    Known::Always => self.eval(*operand, at),
                    Known::Perhaps(same) => {
                        let value = self.eval(*operand, at)?;
                        Ok(self.w.select(same, value, zero, Ty::F32))
                    }
                }
            }
            Op::DiagonalPart(operand, row, col) => {
                let there = at.get(*row).expect("a position of each dimension");
                self.eval(*operand, &at.with(*col, there))
            }
            Op::Segment { .. } if self.segments.contains_key(&x) => self.between(x, at),
            Op::Boundary { .. } if self.segments.contains_key(&x) => self.boundary(x, at),
            Op::Segment { gates, row, col, diagonal } => self.segment(gates, *row, *col, *diagonal, at),
            Op::Sum(_, over) | Op::Contract(_, _, over) if !self.is_few(x, over) => Err(Refusal::Park(x)),
            Op::Sum(operand, over) => self.few(over, at, |this, there| this.eval(*operand, there)),
            Op::Contract(a, b, over) => self.few(over, at, |this, there| this.binary(Binary::Mul, *a, *b, there)),
            Op::Input { .. }
            | Op::BodyInput(_)
            | Op::MaxOver(..)
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => Err(Refusal::Park(x)),
        }
    }

    /// What is computed element by element from a value that has to lie in memory lies there itself, if it is as large.
    fn parked_here(&self, x: NodeId, why: Refusal) -> Refusal {
        match why {
            Refusal::Park(operand) if self.dims(operand) == self.dims(x) => Refusal::Park(x),
            why => why,
        }
    }

    /// A value that only names positions of its operand otherwise: the operand, and the position there.
    fn seen_through(&mut self, x: NodeId, at: &Point) -> Result<(NodeId, Point), Refusal> {
        let position = |dim: DimId| at.get(dim).expect("a position of each dimension");
        Ok(match self.op(x) {
            Op::Rename(operand, from, to) => (*operand, at.with(*from, position(*to))),
            Op::Index(operand, dim, n) => {
                let ix = self.fixed(*n);
                (*operand, at.with(*dim, ix))
            }
            Op::Split(operand, dim, outer, inner) => {
                let size = self.size(*inner) as i64;
                let mut flat = self.ix.get(position(*inner)).clone();
                flat.add_scaled(&self.ix.get(position(*outer)).clone(), size);
                (*operand, at.with(*dim, self.ix.of(flat)))
            }
            Op::Merge(operand, outer, inner, dim) => {
                let along = self.ix.get(position(*dim)).clone();
                let (whole, rest) = self.divided(&along, self.size(*inner));
                let (whole, rest) = (self.ix.of(whole), self.ix.of(rest));
                (*operand, at.with(*outer, whole).with(*inner, rest))
            }
            _ => return Err(self.bug(x, "does not only name positions otherwise")),
        })
    }

    /// Whether void rows of a value are zero as it lies in memory.
    pub fn is_zeroed(&self, x: NodeId) -> bool {
        match self.op(x) {
            Op::Input { .. } => self.zeroed.contains(&x),
            Op::Index(operand, ..) => self.is_zeroed(*operand),
            _ => false,
        }
    }

    /// A function of one value.
    pub fn function(&mut self, function: Unary, x: Val) -> Val {
        match function {
            // The hardware's power of two is right to two units in the last place, and takes its limits at ±∞.
            Unary::Exp => {
                let log2_e = self.w.f32(std::f32::consts::LOG2_E, 0);
                let x = self.w.op("fmul", x, log2_e, Ty::F32);
                text::intrinsic(&mut self.w, "llvm.nvvm.ex2.approx.ftz.f", &[(x, Ty::F32)], "f32")
            }
            Unary::Neg
            | Unary::Expm1
            | Unary::Log
            | Unary::Sqrt
            | Unary::Recip
            | Unary::Abs
            | Unary::Square
            | Unary::Sign
            | Unary::Sigmoid
            | Unary::LogSigmoid
            | Unary::Softplus
            | Unary::Tanh
            | Unary::Sin
            | Unary::Cos
            | Unary::Erf => self.functions.unary(&mut self.w, function, x, 0),
        }
    }

    fn binary(&mut self, function: Binary, a: NodeId, b: NodeId, at: &Point) -> Result<Val, Refusal> {
        // Products that are added are added at once, whatever a later pass would make of them.
        let factors = |this: &Self, x: NodeId| match this.op(x) {
            Op::Binary(Binary::Mul, p, q) if !this.is_at_hand(x) => Some((*p, *q)),
            _ => None,
        };
        let fused = match function {
            Binary::Add => {
                factors(self, a).map(|f| (f, b, false, false)).or(factors(self, b).map(|f| (f, a, false, false)))
            }
            Binary::Sub => {
                factors(self, b).map(|f| (f, a, true, false)).or(factors(self, a).map(|f| (f, b, false, true)))
            }
            _ => None,
        };
        let Some(((p, q), addend, minus_product, minus_addend)) = fused else {
            let a_value = self.eval(a, at)?;
            let b_value = if a == b { a_value } else { self.eval(b, at)? };
            return Ok(self.functions.binary(&mut self.w, function, a_value, b_value, 0));
        };
        let (mut p, q, mut addend) = (self.eval(p, at)?, self.eval(q, at)?, self.eval(addend, at)?);
        if minus_product {
            p = self.w.negate(p, Ty::F32);
        }
        if minus_addend {
            addend = self.w.negate(addend, Ty::F32);
        }
        Ok(self.w.intrinsic("fma", &[p, q, addend], Ty::F32))
    }

    /// Whether a value is taken from registers or memory.
    pub fn is_at_hand(&self, x: NodeId) -> bool {
        self.held.contains(&x) || self.homes.contains_key(&x)
    }

    /// A sum over few positions.
    fn few(
        &mut self,
        over: &[DimId],
        at: &Point,
        mut term: impl FnMut(&mut Self, &Point) -> Result<Val, Refusal>,
    ) -> Result<Val, Refusal> {
        let mut sum: Option<Val> = None;
        for there in self.outer_points(over) {
            let mut point = at.clone();
            there.0.iter().for_each(|(dim, ix)| point = point.with(*dim, *ix));
            let value = term(self, &point)?;
            sum = Some(sum.map_or(value, |sum| self.w.op("fadd", sum, value, Ty::F32)));
        }
        Ok(sum.unwrap_or_else(|| self.w.f32(0.0, 0)))
    }

    /// Compares two positions.
    pub fn compare(&mut self, predicate: &str, a: Ix, b: Ix) -> Known {
        let (a, b) = (self.ix.get(a).clone(), self.ix.get(b).clone());
        let mut difference = a.clone();
        difference.add_scaled(&b, -1);
        if let Some(number) = difference.as_number() {
            let holds = match predicate {
                "slt" => number < 0,
                "sle" => number <= 0,
                "sgt" => number > 0,
                "sge" => number >= 0,
                _ => number == 0,
            };
            return if holds { Known::Always } else { Known::Never };
        }
        let (a, b) = (self.number(&a), self.number(&b));
        Known::Perhaps(self.w.icmp(predicate, a, b, Ty::I32))
    }

    /// `then` where a comparison holds, else `otherwise`.
    pub fn choose(&mut self, known: Known, then: Val, otherwise: Val) -> Val {
        match known {
            Known::Always => then,
            Known::Never => otherwise,
            Known::Perhaps(cond) => self.w.select(cond, then, otherwise, Ty::F32),
        }
    }

    /// A segment: between few positions as it is defined, factor by factor.
    fn segment(&mut self, gates: &Gates, row: DimId, col: DimId, diagonal: bool, at: &Point) -> Result<Val, Refusal> {
        let (t, s) = (at.get(row).expect("a position of each"), at.get(col).expect("a position of each"));
        let visible = self.compare(if diagonal { "sle" } else { "slt" }, s, t);
        let zero = self.w.f32(0.0, 0);
        if visible == Known::Never {
            return Ok(zero);
        }
        let value = match gates.events.is_empty() {
            true => self.w.f32(1.0, 0),
            false => self.factors(gates, row, t, s, at)?,
        };
        Ok(self.choose(visible, value, zero))
    }

    /// The product of the factors of a segment from one position to another.
    fn factors(&mut self, gates: &Gates, row: DimId, t: Ix, s: Ix, at: &Point) -> Result<Val, Refusal> {
        if self.size(row) > FEW {
            return Err(Refusal::unsupported("a decay between many tokens, element by element"));
        }
        let logs = gates.events.iter().all(|gate| gate.kind == GateKind::Log);
        let neutral = self.w.f32(if logs { 0.0 } else { 1.0 }, 0);
        let mut product = neutral;
        for n in 0..self.size(row) {
            let j = self.fixed(n);
            for (event, gate) in gates.events.iter().enumerate() {
                let after = self.compare(if event >= gates.from { "sle" } else { "slt" }, s, j);
                let before = self.compare(if event < gates.to { "sle" } else { "slt" }, j, t);
                if after == Known::Never || before == Known::Never {
                    continue;
                }
                let factor = self.gate(gate, logs, &at.with(row, j))?;
                let factor = self.choose(after, factor, neutral);
                let factor = self.choose(before, factor, neutral);
                product = self.w.op(if logs { "fadd" } else { "fmul" }, product, factor, Ty::F32);
            }
        }
        Ok(if logs { self.function(Unary::Exp, product) } else { product })
    }

    /// An event's logarithm or factor.
    pub fn gate(&mut self, gate: &Gate, log: bool, at: &Point) -> Result<Val, Refusal> {
        let value = self.eval(gate.value, at)?;
        Ok(if gate.kind == GateKind::Log && !log { self.function(Unary::Exp, value) } else { value })
    }

    /// An element from shared memory.
    pub fn load(&mut self, home: &Home, at: &Point) -> Result<Val, Refusal> {
        self.touch(home.region, Touch::Read);
        let mut bytes = Linear::default();
        for (dim, _) in &home.strides {
            if at.get(*dim).is_none() {
                return Err(Refusal::Bug(format!("no position along `{}`", self.graph.dim(*dim).name)));
            }
        }
        self.add_place(&mut bytes, home, at);
        if let Some((value, step)) = home.half {
            bytes.add(value, step as i64);
        }
        let (parts, step) = home.parts;
        let mut total = self.word(home, &bytes);
        for _ in 1..parts {
            bytes.constant += step as i64;
            let part = self.word(home, &bytes);
            total = match home.fold {
                Fold::Sum => self.w.op("fadd", total, part, Ty::F32),
                Fold::Max => self.functions.binary(&mut self.w, Binary::Max, total, part, 0),
            };
        }
        Ok(total)
    }

    /// Two neighbours are read at once where they lie so that they can be.
    pub fn word(&mut self, home: &Home, bytes: &Linear) -> Val {
        let size = home.dtype.bytes() as i64;
        let together = bytes.terms.iter().all(|(_, factor)| factor % (2 * size) == 0);
        let lead = if together { bytes.constant.rem_euclid(2 * size) } else { 0 };
        let mut start = bytes.clone();
        start.constant -= lead;
        let known = self.words.get(&(home.region, start.clone())).copied();
        let word = match known {
            Some(word) => word,
            None => {
                let address = self.shared(home.region, &start);
                let word = match (home.dtype, together) {
                    (DType::F32, true) => text::load(&mut self.w, address, Ty::f32s(2), 8),
                    (DType::F32, false) => text::load(&mut self.w, address, Ty::F32, 4),
                    (DType::BF16 | DType::F16, true) => text::load(&mut self.w, address, Ty::I32, 4),
                    (DType::BF16 | DType::F16, false) => {
                        let half = Ty::scalar(Elem::I16);
                        let value = text::load(&mut self.w, address, half, 2);
                        self.w.cast("zext", value, half, Ty::I32)
                    }
                };
                self.words.insert((home.region, start), word);
                word
            }
        };
        match home.dtype {
            DType::F32 if together => text::lane(&mut self.w, word, usize::from(lead > 0), Ty::f32s(2)),
            DType::F32 => word,
            DType::BF16 => {
                let bits = if lead == 0 {
                    let sixteen = self.int(16);
                    self.w.op("shl", word, sixteen, Ty::I32)
                } else {
                    let high = text::int(&mut self.w, -0x10000);
                    self.w.op("and", word, high, Ty::I32)
                };
                self.w.cast("bitcast", bits, Ty::I32, Ty::F32)
            }
            DType::F16 => {
                let bits = if lead == 0 {
                    word
                } else {
                    let sixteen = self.int(16);
                    self.w.op("lshr", word, sixteen, Ty::I32)
                };
                let half = self.w.cast("trunc", bits, Ty::I32, Ty::scalar(Elem::I16));
                let half = self.w.cast("bitcast", half, Ty::scalar(Elem::I16), Ty::scalar(Elem::F16));
                self.w.cast("fpext", half, Ty::scalar(Elem::F16), Ty::F32)
            }
        }
    }
}

/// What is known of a comparison while the kernel is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It holds.
    Always,
    /// It does not.
    Never,
    /// The kernel finds out.
    Perhaps(Val),
}
