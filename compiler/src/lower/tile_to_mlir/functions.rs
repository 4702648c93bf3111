//! Elementwise functions as polynomials on vectors: no call of a mathematical library, the same bits in every lane.
//!
//! Comes in: which functions at how many lanes. Goes out: one internal function of MLIR text for each, always inlined.
//! Every function gives NaN for NaN and takes its limits at ±∞. Results below the normal range are zero: kernels run
//! with denormals off.
//!
//! The coefficients are least-maximum fits of the quoted expressions over the quoted intervals; the errors of the fits
//! are below half a unit in the last place of the result.

use super::writer::{Elem, Ty, Val, Writer};
use std::collections::BTreeSet;

use crate::graph::ir::{Binary, Unary};

/// A function that is too long to repeat where it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Function {
    Exp,
    Expm1,
    Log,
    Sigmoid,
    LogSigmoid,
    Softplus,
    Tanh,
    Sin,
    Cos,
    Erf,
    Pow,
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Function::Exp => "exp",
            Function::Expm1 => "expm1",
            Function::Log => "log",
            Function::Sigmoid => "sigmoid",
            Function::LogSigmoid => "log_sigmoid",
            Function::Softplus => "softplus",
            Function::Tanh => "tanh",
            Function::Sin => "sin",
            Function::Cos => "cos",
            Function::Erf => "erf",
            Function::Pow => "pow",
        }
    }

    fn operands(self) -> usize {
        match self {
            Function::Pow => 2,
            Function::Exp
            | Function::Expm1
            | Function::Log
            | Function::Sigmoid
            | Function::LogSigmoid
            | Function::Softplus
            | Function::Tanh
            | Function::Sin
            | Function::Cos
            | Function::Erf => 1,
        }
    }
}

/// The functions a module uses.
#[derive(Clone, Default)]
pub struct Functions {
    used: BTreeSet<(Function, usize)>,
    /// Whether any kernel multiplies matrices.
    pub needs_matmul: bool,
    /// Whether any kernel transposes one.
    pub needs_transpose: bool,
}

/// How much work a function of one value is, in simple operations.
pub fn weight(unary: Unary) -> usize {
    match unary {
        Unary::Neg | Unary::Sqrt | Unary::Recip | Unary::Abs | Unary::Square => 1,
        Unary::Sign => 4,
        Unary::Exp | Unary::Expm1 => 20,
        Unary::Log | Unary::Sigmoid | Unary::Tanh => 25,
        Unary::LogSigmoid | Unary::Softplus | Unary::Sin | Unary::Cos | Unary::Erf => 35,
    }
}

impl Functions {
    /// Also what others use.
    pub fn include(&mut self, others: &Functions) {
        self.used.extend(others.used.iter().copied());
        self.needs_matmul |= others.needs_matmul;
        self.needs_transpose |= others.needs_transpose;
    }

    /// Applies a function of one value to every lane.
    pub fn unary(&mut self, w: &mut Writer, unary: Unary, x: Val, lanes: usize) -> Val {
        let ty = Ty::f32s(lanes);
        match unary {
            Unary::Neg => w.negate(x, ty),
            Unary::Sqrt => w.intrinsic("sqrt", &[x], ty),
            Unary::Recip => {
                let one = w.f32(1.0, lanes);
                w.op("fdiv", one, x, ty)
            }
            Unary::Abs => w.intrinsic("fabs", &[x], ty),
            Unary::Square => w.op("fmul", x, x, ty),
            Unary::Sign => {
                let mut m = Maths { w, lanes };
                let (zero, one, minus) = (m.c(0.0), m.c(1.0), m.c(-1.0));
                let (above, below) = (m.cmp("ogt", x, zero), m.cmp("olt", x, zero));
                // Zero and NaN stay what they are.
                let low = m.pick(below, minus, x);
                m.pick(above, one, low)
            }
            Unary::Exp => self.call(w, Function::Exp, &[x], lanes),
            Unary::Expm1 => self.call(w, Function::Expm1, &[x], lanes),
            Unary::Log => self.call(w, Function::Log, &[x], lanes),
            Unary::Sigmoid => self.call(w, Function::Sigmoid, &[x], lanes),
            Unary::LogSigmoid => self.call(w, Function::LogSigmoid, &[x], lanes),
            Unary::Softplus => self.call(w, Function::Softplus, &[x], lanes),
            Unary::Tanh => self.call(w, Function::Tanh, &[x], lanes),
            Unary::Sin => self.call(w, Function::Sin, &[x], lanes),
            Unary::Cos => self.call(w, Function::Cos, &[x], lanes),
            Unary::Erf => self.call(w, Function::Erf, &[x], lanes),
        }
    }

    /// Applies a function of two values to every lane.
    pub fn binary(&mut self, w: &mut Writer, binary: Binary, a: Val, b: Val, lanes: usize) -> Val {
        let ty = Ty::f32s(lanes);
        match binary {
            Binary::Add => w.op("fadd", a, b, ty),
            Binary::Sub => w.op("fsub", a, b, ty),
            Binary::Mul => w.op("fmul", a, b, ty),
            Binary::Div => w.op("fdiv", a, b, ty),
            Binary::Min => Maths { w, lanes }.extreme("olt", a, b),
            Binary::Max => Maths { w, lanes }.extreme("ogt", a, b),
            Binary::Pow => self.call(w, Function::Pow, &[a, b], lanes),
        }
    }

    fn call(&mut self, w: &mut Writer, function: Function, operands: &[Val], lanes: usize) -> Val {
        self.used.insert((function, lanes));
        let names: Vec<String> = operands.iter().map(Val::to_string).collect();
        let ty = Ty::f32s(lanes);
        let types = vec![ty.to_string(); operands.len()].join(", ");
        w.raw_value(format_args!("llvm.call @{}_x{lanes}({}) : ({types}) -> {ty}", function.name(), names.join(", ")))
    }

    /// The text of every function used.
    pub fn define(&self) -> String {
        let mut text = String::new();
        for (function, lanes) in &self.used {
            text.push_str(&define(*function, *lanes));
        }
        text
    }
}

fn define(function: Function, lanes: usize) -> String {
    let ty = Ty::f32s(lanes);
    let mut w = Writer::new(function.operands());
    let x = w.param(0);
    let mut m = Maths { w: &mut w, lanes };
    let result = match function {
        Function::Exp => m.exp(x),
        Function::Expm1 => m.expm1(x),
        Function::Log => m.log(x),
        Function::Sigmoid => m.sigmoid(x),
        Function::LogSigmoid => {
            let zero = m.c(0.0);
            let below = m.cmp("olt", x, zero);
            let low = m.pick(below, x, zero);
            let tail = m.log1p_exp_minus_abs(x);
            m.op("fsub", low, tail)
        }
        Function::Softplus => {
            let zero = m.c(0.0);
            let above = m.cmp("ogt", x, zero);
            let high = m.pick(above, x, zero);
            let tail = m.log1p_exp_minus_abs(x);
            m.op("fadd", high, tail)
        }
        Function::Tanh => m.tanh(x),
        Function::Sin => m.sine(x, 0),
        Function::Cos => m.sine(x, 1),
        Function::Erf => m.erf(x),
        Function::Pow => {
            let exponent = m.w.param(1);
            m.pow(x, exponent)
        }
    };
    let parameters: Vec<String> = (0..function.operands()).map(|n| format!("%{n}: {ty}")).collect();
    let signature = format!(
        "llvm.func internal @{}_x{lanes}({}) -> {ty} attributes {{always_inline, no_unwind}}",
        function.name(),
        parameters.join(", ")
    );
    w.finish_with(&signature, result, ty)
}

/// (eʳ − 1 − r) / r² on |r| ≤ 0.35.
const EXP: [f32; 6] = [0.5, 0.166_666_67, 0.041_666_456, 0.008_333_284, 0.001_393_453_5, 0.000_199_088_9];
/// (ln(1 + f) − f + f²/2) / f³ on √½ − 1 ≤ f ≤ √2 − 1.
const LOG: [f32; 9] = [
    0.333_333_3,
    -0.249_999_8,
    0.200_006_89,
    -0.166_691_51,
    0.142_511_55,
    -0.123_967_074,
    0.116_346_77,
    -0.116_598_87,
    0.073_324_37,
];
/// (artanh(s)/s − 1) / s² on 0 ≤ s² ≤ 1/9.
const ARTANH: [f32; 5] = [0.333_333_34, 0.199_998_48, 0.142_964_05, 0.108_500_22, 0.116_268_87];
/// (sin(r)/r − 1) / r² on |r| ≤ π/4.
const SIN: [f32; 4] = [-0.166_666_67, 0.008_333_332, -0.000_198_400_64, 0.000_002_724_694_2];
/// (cos r − 1 + r²/2) / r⁴ on |r| ≤ π/4.
const COS: [f32; 4] = [0.041_666_668, -0.001_388_888_8, 0.000_024_800_582, -2.7298466e-7];
/// erf(x)/x on |x| ≤ 1, in x².
const ERF: [f32; 7] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    -0.376_126_26,
    0.112_836,
    -0.026_854_444,
    0.005_189_535,
    -0.000_802_084_1,
    0.000_078_891_19,
];
/// ln(1 − erf(x)) on 1 ≤ x ≤ 4.
const LOG_ERFC: [f32; 8] = [
    -0.000_748_414_95,
    -1.125_957,
    -0.639_047_15,
    -0.103_355_53,
    0.022_638_643,
    -0.003_441_248_8,
    0.000_318_189_5,
    -0.000_013_345_474,
];

/// ln 2 in two parts, the first short enough that a multiple by an exponent is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -0.000_212_194_44;
/// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Arithmetic on lanes.
struct Maths<'w> {
    w: &'w mut Writer,
    lanes: usize,
}

impl Maths<'_> {
    fn ty(&self) -> Ty {
        Ty::f32s(self.lanes)
    }
    fn int_ty(&self) -> Ty {
        Ty { elem: Elem::I32, lanes: self.lanes }
    }
    fn c(&mut self, value: f32) -> Val {
        self.w.f32(value, self.lanes)
    }
    fn i(&mut self, value: i64) -> Val {
        let ty = self.int_ty();
        self.w.int(ty, value)
    }
    fn op(&mut self, name: &str, a: Val, b: Val) -> Val {
        let ty = self.ty();
        self.w.op(name, a, b, ty)
    }
    fn int_op(&mut self, name: &str, a: Val, b: Val) -> Val {
        let ty = self.int_ty();
        self.w.op(name, a, b, ty)
    }
    fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        let ty = self.ty();
        self.w.intrinsic("fmuladd", &[a, b, c], ty)
    }
    fn abs(&mut self, x: Val) -> Val {
        let ty = self.ty();
        self.w.intrinsic("fabs", &[x], ty)
    }
    fn neg(&mut self, x: Val) -> Val {
        let ty = self.ty();
        self.w.negate(x, ty)
    }
    fn with_sign_of(&mut self, magnitude: Val, sign: Val) -> Val {
        let ty = self.ty();
        self.w.intrinsic("copysign", &[magnitude, sign], ty)
    }
    fn cmp(&mut self, predicate: &str, a: Val, b: Val) -> Val {
        let ty = self.ty();
        self.w.fcmp(predicate, a, b, ty)
    }
    fn pick(&mut self, cond: Val, a: Val, b: Val) -> Val {
        let ty = self.ty();
        self.w.select(cond, a, b, ty)
    }
    fn bits(&mut self, x: Val) -> Val {
        let (from, to) = (self.ty(), self.int_ty());
        self.w.cast("bitcast", x, from, to)
    }
    fn floats(&mut self, x: Val) -> Val {
        let (from, to) = (self.int_ty(), self.ty());
        self.w.cast("bitcast", x, from, to)
    }
    /// `min(x, high)` that keeps NaN.
    fn at_most(&mut self, x: Val, high: f32) -> Val {
        let high = self.c(high);
        let over = self.cmp("olt", high, x);
        self.pick(over, high, x)
    }
    /// `max(x, low)` that keeps NaN.
    fn at_least(&mut self, x: Val, low: f32) -> Val {
        let low = self.c(low);
        let under = self.cmp("ogt", low, x);
        self.pick(under, low, x)
    }
    /// The larger or smaller; NaN if either is.
    fn extreme(&mut self, better: &str, a: Val, b: Val) -> Val {
        let first = self.cmp(better, a, b);
        let best = self.pick(first, a, b);
        let nan = self.cmp("uno", a, a);
        self.pick(nan, a, best)
    }
    /// `c₀ + c₁x + …`
    fn polynomial(&mut self, coefficients: &[f32], x: Val) -> Val {
        let mut terms = coefficients.iter().rev();
        let mut sum = self.c(*terms.next().expect("at least one coefficient"));
        for coefficient in terms {
            let c = self.c(*coefficient);
            sum = self.fma(sum, x, c);
        }
        sum
    }

    /// `(p, s)` with eˣ = s·(1 + p), s a power of two, p small where x is. Below the normal range s is 0; above it
    /// s·(1 + p) overflows.
    fn exp_parts(&mut self, x: Val) -> (Val, Val) {
        let x = self.at_most(x, 88.8);
        let x = self.at_least(x, -88.0);
        let (log2_e, round) = (self.c(std::f32::consts::LOG2_E), self.c(ROUND));
        let shifted = self.fma(x, log2_e, round);
        // 2¹²⁸ is no float: the last step to infinity is left to the polynomial.
        let shifted = self.at_most(shifted, ROUND + 127.0);
        let n = self.op("fsub", shifted, round);
        let (high, low) = (self.c(-LN2_HIGH), self.c(-LN2_LOW));
        let r = self.fma(n, high, x);
        let r = self.fma(n, low, r);
        let q = self.polynomial(&EXP, r);
        let square = self.op("fmul", r, r);
        let p = self.fma(q, square, r);
        let bits = self.bits(shifted);
        let twenty_three = self.i(23);
        let exponent = self.int_op("shl", bits, twenty_three);
        let bias = self.i(127 << 23);
        let scale = self.int_op("add", exponent, bias);
        (p, self.floats(scale))
    }

    fn exp(&mut self, x: Val) -> Val {
        let (p, scale) = self.exp_parts(x);
        let one = self.c(1.0);
        let sum = self.op("fadd", p, one);
        self.op("fmul", sum, scale)
    }

    fn expm1(&mut self, x: Val) -> Val {
        let (p, scale) = self.exp_parts(x);
        let one = self.c(1.0);
        let rest = self.op("fsub", scale, one);
        self.fma(scale, p, rest)
    }

    fn log(&mut self, x: Val) -> Val {
        // x = 2ᵉ·m with √½ ≤ m < √2: taking √½ from the bits makes the exponent field count from there.
        let bits = self.bits(x);
        let root_half = self.i(i64::from(std::f32::consts::FRAC_1_SQRT_2.to_bits()));
        let offset = self.int_op("sub", bits, root_half);
        let twenty_three = self.i(23);
        let exponent = self.int_op("ashr", offset, twenty_three);
        let high_bits = self.int_op("shl", exponent, twenty_three);
        let mantissa = self.int_op("sub", bits, high_bits);
        let mantissa = self.floats(mantissa);
        let (int_ty, ty) = (self.int_ty(), self.ty());
        let e = self.w.cast("sitofp", exponent, int_ty, ty);
        let one = self.c(1.0);
        let f = self.op("fsub", mantissa, one);
        let square = self.op("fmul", f, f);
        let q = self.polynomial(&LOG, f);
        let cube = self.op("fmul", square, f);
        let tail = self.op("fmul", q, cube);
        let (low, minus_half, high) = (self.c(LN2_LOW), self.c(-0.5), self.c(LN2_HIGH));
        let tail = self.fma(e, low, tail);
        let tail = self.fma(square, minus_half, tail);
        let y = self.op("fadd", f, tail);
        let y = self.fma(e, high, y);
        // The limits: infinity stays, what is below the normal range counts as zero, negative numbers have none.
        let (infinity, zero, tiny) = (self.c(f32::INFINITY), self.c(0.0), self.c(f32::MIN_POSITIVE));
        let (minus_infinity, nan) = (self.c(f32::NEG_INFINITY), self.c(f32::NAN));
        let endless = self.cmp("oeq", x, infinity);
        let y = self.pick(endless, infinity, y);
        let none = self.cmp("olt", x, tiny);
        let y = self.pick(none, minus_infinity, y);
        let wrong = self.cmp("ult", x, zero);
        self.pick(wrong, nan, y)
    }

    fn sigmoid(&mut self, x: Val) -> Val {
        // Through e^−|x|, which never overflows, so that small results keep their digits.
        let magnitude = self.abs(x);
        let minus = self.neg(magnitude);
        let z = self.exp(minus);
        let one = self.c(1.0);
        let sum = self.op("fadd", z, one);
        let zero = self.c(0.0);
        let below = self.cmp("olt", x, zero);
        let top = self.pick(below, z, one);
        self.op("fdiv", top, sum)
    }

    /// ln(1 + e^−|x|) = 2·artanh(s) with s = u / (2 + u), u = e^−|x|.
    fn log1p_exp_minus_abs(&mut self, x: Val) -> Val {
        let magnitude = self.abs(x);
        let minus = self.neg(magnitude);
        let u = self.exp(minus);
        let (two, half) = (self.c(2.0), self.c(0.5));
        let bottom = self.op("fadd", u, two);
        // 2s first: s itself may lie below the normal range where u does not.
        let top = self.op("fadd", u, u);
        let double = self.op("fdiv", top, bottom);
        let s = self.op("fmul", double, half);
        let square = self.op("fmul", s, s);
        let q = self.polynomial(&ARTANH, square);
        let q = self.op("fmul", q, square);
        self.fma(double, q, double)
    }

    fn tanh(&mut self, x: Val) -> Val {
        // −t / (2 + t) with t = e^−2|x| − 1, exact for small x.
        let magnitude = self.abs(x);
        let minus_two = self.c(-2.0);
        let argument = self.op("fmul", magnitude, minus_two);
        let t = self.expm1(argument);
        let two = self.c(2.0);
        let bottom = self.op("fadd", t, two);
        let top = self.neg(t);
        let y = self.op("fdiv", top, bottom);
        self.with_sign_of(y, x)
    }

    /// sin(x + quarter·π/2).
    fn sine(&mut self, x: Val, quarter: i64) -> Val {
        let lanes = self.lanes;
        let wide = Ty { elem: Elem::F64, lanes };
        let wide_int = Ty { elem: Elem::I64, lanes };
        let (ty, int_ty) = (self.ty(), self.int_ty());
        // The nearest multiple of π/2, found and taken away in float64: right for any x below 2⁵¹.
        let wide_x = self.w.cast("fpext", x, ty, wide);
        let (per_quarter, round) =
            (self.w.f64(std::f64::consts::FRAC_2_PI, lanes), self.w.f64(6_755_399_441_055_744.0, lanes));
        let shifted = self.w.intrinsic("fmuladd", &[wide_x, per_quarter, round], wide);
        let n = self.w.op("fsub", shifted, round, wide);
        let step = self.w.f64(-std::f64::consts::FRAC_PI_2, lanes);
        let rest = self.w.intrinsic("fmuladd", &[n, step, wide_x], wide);
        let r = self.w.cast("fptrunc", rest, wide, ty);
        // Beyond that the remainder means nothing; keep the result within [−1, 1].
        let r = self.at_most(r, 0.8);
        let r = self.at_least(r, -0.8);
        let bits = self.w.cast("bitcast", shifted, wide, wide_int);
        let which = self.w.cast("trunc", bits, wide_int, int_ty);
        let turn = self.i(quarter);
        let which = self.int_op("add", which, turn);

        let square = self.op("fmul", r, r);
        let q = self.polynomial(&SIN, square);
        let cube = self.op("fmul", square, r);
        let sin = self.fma(q, cube, r);
        let q = self.polynomial(&COS, square);
        let fourth = self.op("fmul", square, square);
        let (half, one) = (self.c(-0.5), self.c(1.0));
        let cos = self.fma(square, half, one);
        let cos = self.fma(q, fourth, cos);

        let (bit, zero) = (self.i(1), self.i(0));
        let odd = self.int_op("and", which, bit);
        let odd = self.w.icmp("ne", odd, zero, int_ty);
        let y = self.pick(odd, cos, sin);
        let thirty = self.i(30);
        let sign = self.int_op("shl", which, thirty);
        let top = self.i(i64::from(i32::MIN));
        let sign = self.int_op("and", sign, top);
        let y_bits = self.bits(y);
        let y_bits = self.int_op("xor", y_bits, sign);
        self.floats(y_bits)
    }

    fn erf(&mut self, x: Val) -> Val {
        let square = self.op("fmul", x, x);
        let near = self.polynomial(&ERF, square);
        let near = self.op("fmul", near, x);
        let magnitude = self.abs(x);
        // erf(4) is 1 in float32.
        let t = self.at_most(magnitude, 4.0);
        let log = self.polynomial(&LOG_ERFC, t);
        let rest = self.exp(log);
        let one = self.c(1.0);
        let far = self.op("fsub", one, rest);
        let far = self.with_sign_of(far, x);
        let small = self.cmp("olt", magnitude, one);
        self.pick(small, near, far)
    }

    fn pow(&mut self, base: Val, exponent: Val) -> Val {
        let magnitude = self.abs(base);
        let log = self.log(magnitude);
        let product = self.op("fmul", exponent, log);
        let y = self.exp(product);
        // A negative base has a power for integers only, negative for the odd ones.
        let (zero, one, nan) = (self.c(0.0), self.c(1.0), self.c(f32::NAN));
        let size = self.abs(exponent);
        let size = self.at_most(size, 4_194_304.0);
        let round = self.c(8_388_608.0);
        let shifted = self.op("fadd", size, round);
        let whole = self.op("fsub", shifted, round);
        let integer = self.cmp("oeq", whole, size);
        let bits = self.bits(shifted);
        let (bit, none) = (self.i(1), self.i(0));
        let parity = self.int_op("and", bits, bit);
        let int_ty = self.int_ty();
        let odd = self.w.icmp("ne", parity, none, int_ty);
        let minus = self.neg(y);
        let signed = self.pick(odd, minus, y);
        let signed = self.pick(integer, signed, nan);
        let negative = self.cmp("olt", base, zero);
        let y = self.pick(negative, signed, y);
        // x⁰ and 1ʸ are 1, whatever the other.
        let no_power = self.cmp("oeq", exponent, zero);
        let y = self.pick(no_power, one, y);
        let unit = self.cmp("oeq", base, one);
        self.pick(unit, one, y)
    }
}
