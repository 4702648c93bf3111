//! Data for a case, from what the program declares about them. In: a program and a case; out: every input, parameter,
//! initial state and cotangent, the same every time. It never draws outside a declared range.

use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{AxisId, Program, Range};

use super::case::{Case, Regime};
use super::random::Random;
use crate::binding::{self, Leading, Slot};
use crate::precision::Precision;

/// Everything a run with gradients takes, each number one that `precision` holds.
pub fn draw(program: &Program, case: &Case, precision: Precision) -> Bundle {
    let mut bundle = Bundle::new();
    for (number, slot) in binding::slots(program).into_iter().enumerate() {
        if slot.name.starts_with("init.") && !case.init {
            continue;
        }
        let shape = shape(program, case, &slot, number);
        let mut random = Random::new(case.seed, &slot.name);
        let range = program.tensors.iter().find(|it| it.name == slot.name).map_or(&Range::Any, |it| &it.range);
        let mut tensor = match range {
            Range::Any if slot.name.starts_with("init.") => Tensor::from_fn(&shape, |_| 0.3 * random.normal()),
            Range::Any if slot.cotangent => Tensor::from_fn(&shape, |_| random.normal()),
            Range::Any => Tensor::from_fn(&shape, |_| anything(&mut random, case.regime)),
            Range::Interval { lo, hi, lo_closed, hi_closed } => {
                let interval = Interval { lo: *lo, hi: *hi, lo_closed: *lo_closed, hi_closed: *hi_closed, precision };
                Tensor::from_fn(&shape, |_| interval.draw(&mut random, case.regime))
            }
            Range::Unit(axis) => unit(&mut random, case.regime, &shape, dimension(&slot, *axis)),
        };
        let precision = if slot.leading == Leading::Token { precision } else { precision.beside() };
        for value in &mut tensor.data {
            *value = precision.round(*value);
        }
        bundle.insert(slot.name, tensor);
    }
    bundle
}

/// The shape of a tensor in a case.
fn shape(program: &Program, case: &Case, slot: &Slot, number: usize) -> Vec<usize> {
    let shared = slot.leading == Leading::Token && !slot.cotangent && number % 2 == 1;
    let heads = if shared { case.heads / case.groups } else { case.heads };
    let leading = match slot.leading {
        Leading::Token => vec![case.batch, case.tokens, heads],
        Leading::Head => vec![case.heads],
        Leading::Sequence => vec![case.batch, case.heads],
    };
    let axes = slot.axes.iter().map(|axis| {
        let name = &program.axes[axis.index()].name;
        *case.sizes.get(name).expect("a case has a size for every axis")
    });
    leading.into_iter().chain(axes).collect()
}

fn dimension(slot: &Slot, axis: AxisId) -> usize {
    let place = slot.axes.iter().position(|it| *it == axis).expect("the checker saw that the tensor has this axis");
    slot.leading.letters().len() + place
}

/// The regime of one element.
fn one_of(random: &mut Random, regime: Regime) -> Regime {
    match regime {
        Regime::Mixed => random.choose(&Regime::ALL[..Regime::ALL.len() - 1]),
        Regime::Zeros if random.below(3) > 0 => Regime::Usual,
        Regime::Usual | Regime::Weak | Regime::Strong | Regime::Saturated | Regime::Bound | Regime::Zeros => regime,
    }
}

/// A value about which nothing is declared.
fn anything(random: &mut Random, regime: Regime) -> f64 {
    match one_of(random, regime) {
        Regime::Usual | Regime::Bound | Regime::Mixed => random.normal(),
        Regime::Weak => 0.1 * random.normal(),
        Regime::Strong | Regime::Saturated => 1.5 * random.normal(),
        Regime::Zeros => 0.0,
    }
}

struct Interval {
    lo: f64,
    hi: f64,
    lo_closed: bool,
    hi_closed: bool,
    precision: Precision,
}

impl Interval {
    fn draw(&self, random: &mut Random, regime: Regime) -> f64 {
        let regime = one_of(random, regime);
        let value = match (self.lo.is_finite(), self.hi.is_finite()) {
            (false, false) => anything(random, regime),
            (false, true) => self.hi - distance(random, regime),
            (true, false) => self.lo + distance(random, regime),
            (true, true) => {
                let width = self.hi - self.lo;
                match regime {
                    Regime::Usual | Regime::Mixed => self.lo + width * random.between(0.02, 0.98),
                    Regime::Weak => self.lo + width * random.between(0.0, 0.05),
                    Regime::Strong | Regime::Saturated => self.hi - width * random.between(0.0, 0.05),
                    Regime::Bound => random.choose(&[self.lo, self.hi]),
                    Regime::Zeros => 0.0,
                }
            }
        };
        self.inside(value)
    }

    /// The nearest number inside the range that the precision holds.
    fn inside(&self, value: f64) -> f64 {
        let step = match self.precision {
            Precision::F64 | Precision::F32 => 1e-6,
            Precision::Bf16 | Precision::F16 => 1.0 / 128.0,
        };
        let lo = if self.lo_closed { self.lo } else { self.lo + step * self.lo.abs().max(1.0) };
        let hi = if self.hi_closed { self.hi } else { self.hi - step * self.hi.abs().max(1.0) };
        let rounded = self.precision.round(value);
        // Rounding may cross a bound that the precision does not hold itself.
        if rounded < lo || rounded > hi { value.clamp(lo, hi.max(lo)) } else { rounded }
    }
}

/// How far from the one bound of a half-open range; for a log decay, how strong it is.
fn distance(random: &mut Random, regime: Regime) -> f64 {
    match regime {
        // −log of a sigmoid: as trained gates are.
        Regime::Usual | Regime::Mixed => (-(random.normal() + 2.0)).exp().ln_1p(),
        Regime::Weak => 1e-3 * random.normal().abs(),
        Regime::Strong => random.between(0.0, 4.0),
        Regime::Saturated => random.between(11.0, 12.0),
        Regime::Bound | Regime::Zeros => 0.0,
    }
}

/// Vectors of length one over one dimension, in some regimes shorter.
fn unit(random: &mut Random, regime: Regime, shape: &[usize], dimension: usize) -> Tensor {
    let mut tensor = Tensor::from_fn(shape, |_| random.normal());
    let stride: usize = shape[dimension + 1..].iter().product();
    let extent = shape[dimension];
    for begin in (0..tensor.data.len()).filter(|at| (at / stride).is_multiple_of(extent)) {
        let places = || (0..extent).map(|i| begin + i * stride);
        let norm = places().map(|at| tensor.data[at].powi(2)).sum::<f64>().sqrt().max(1e-30);
        let length = match one_of(random, regime) {
            Regime::Usual | Regime::Strong | Regime::Saturated | Regime::Bound | Regime::Mixed => 1.0,
            Regime::Weak => random.fraction(),
            Regime::Zeros => 0.0,
        };
        for at in places() {
            tensor.data[at] *= length / norm;
        }
    }
    tensor
}
