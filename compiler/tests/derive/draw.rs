//! Sizes and data for a random program: what its declarations promise, in several degrees of hardness.

use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Program, Range, TensorKind};
use std::collections::BTreeMap;

/// Numbers without pattern (splitmix64).
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.bits() % from.len() as u64) as usize]
    }

    fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.fraction()
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.fraction()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.fraction()).cos()
    }
}

/// How hard the data are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Regime {
    /// Gates as trained, inputs standard normal.
    Usual,
    /// Gates that do nearly nothing.
    Weak,
    /// Gates that forget within a few tokens.
    Strong,
    /// Gates that forget at once.
    Saturated,
    /// Exactly at the bounds.
    Bound,
    /// Many exact zeros.
    Zeros,
}

const REGIMES: [Regime; 6] =
    [Regime::Usual, Regime::Weak, Regime::Strong, Regime::Saturated, Regime::Bound, Regime::Zeros];

/// One run of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub seed: u64,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub chunks: [usize; 2],
    /// First states and every cotangent are given; otherwise only cotangents of outputs.
    pub full: bool,
    /// Inputs of every other tensor come with one head for all.
    pub shared: bool,
    pub regime: Regime,
    /// Each element from another regime.
    pub mixed: bool,
    pub sizes: BTreeMap<String, usize>,
}

impl Case {
    pub fn draw(seed: u64, program: &Program) -> Case {
        let mut draw = Draw::new(seed ^ 0x5bd1_e995);
        let mut sizes = BTreeMap::new();
        for axis in &program.axes {
            let size = match axis.name.as_str() {
                "R" => draw.choose(&[1, 2, 3]),
                "L" | "N" => draw.choose(&[1, 2, 3]),
                _ => draw.choose(&[1, 2, 3, 4, 5, 7, 8, 9]),
            };
            sizes.insert(axis.name.clone(), size);
        }
        // A renamed axis has the size of its new name.
        if let Some(&keys) = sizes.get("K") {
            sizes.entry("J".to_owned()).and_modify(|size| *size = keys);
        }
        let chunks = [1, 3, 16, 20, 32];
        Case {
            seed,
            batch: draw.choose(&[1, 1, 2]),
            tokens: draw.choose(&[0, 1, 2, 3, 5, 7, 11, 15, 16, 17, 19, 21, 25, 31, 33, 37, 40]),
            heads: draw.choose(&[1, 2]),
            chunks: [draw.choose(&chunks), draw.choose(&chunks)],
            full: draw.choose(&[true, true, false]),
            shared: draw.choose(&[true, false, false]),
            regime: draw.choose(&REGIMES),
            mixed: draw.choose(&[true, false, false]),
            sizes,
        }
    }

    /// Smaller cases, the boldest first.
    pub fn smaller(&self) -> Vec<Case> {
        let mut found = Vec::new();
        let mut push = |change: &dyn Fn(&mut Case)| {
            let mut case = self.clone();
            change(&mut case);
            if case != *self {
                found.push(case);
            }
        };
        push(&|case| case.batch = 1);
        push(&|case| (case.heads, case.shared) = (1, false));
        push(&|case| case.shared = false);
        push(&|case| case.mixed = false);
        push(&|case| case.regime = Regime::Usual);
        push(&|case| case.full = false);
        for tokens in [1, 2, 3, self.tokens / 2, self.tokens.saturating_sub(1)] {
            if tokens < self.tokens {
                push(&|case| case.tokens = tokens);
            }
        }
        for name in self.sizes.keys().filter(|name| *name != "J") {
            for size in [1, 2, 3] {
                if size < self.sizes[name] {
                    push(&|case| {
                        case.sizes.insert(name.clone(), size);
                        if name == "K" {
                            case.sizes.entry("J".to_owned()).and_modify(|other| *other = size);
                        }
                    });
                }
            }
        }
        found
    }

    /// Every input, parameter, first state and cotangent.
    pub fn bundle(&self, program: &Program) -> Bundle {
        let mut bundle = Bundle::new();
        let sizes = |axes: &[chunkwise_dsl::program::AxisId]| -> Vec<usize> {
            axes.iter().map(|axis| self.sizes[&program.axes[axis.index()].name]).collect()
        };
        for (number, tensor) in program.tensors.iter().enumerate() {
            // Every tensor has a stream of its own, so that a smaller program has the same data in what is left.
            let name =
                tensor.name.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
            let mut draw = Draw::new(self.seed ^ name.rotate_left(23));
            let heads = if self.shared && number % 2 == 1 { 1 } else { self.heads };
            let leading = match tensor.kind {
                TensorKind::Input => vec![self.batch, self.tokens, heads],
                TensorKind::Param => vec![self.heads],
            };
            let n_leading = leading.len();
            let shape = [leading, sizes(&tensor.axes)].concat();
            let mut drawn = Tensor::from_fn(&shape, |_| self.element(&mut draw, &tensor.range));
            if let Range::Unit(axis) = tensor.range {
                let at = tensor.axes.iter().position(|other| *other == axis).expect("the checker saw to it");
                shorten(&mut drawn, n_leading + at);
            }
            bundle.insert(tensor.name.clone(), drawn);
        }
        let mut draw = Draw::new(self.seed ^ 0x1234_5678);
        for output in &program.outputs {
            let shape = [vec![self.batch, self.tokens, self.heads], sizes(&output.axes)].concat();
            bundle.insert(format!("grad_out.{}", output.name), Tensor::from_fn(&shape, |_| draw.normal()));
        }
        if self.full {
            for state in &program.states {
                let shape = [vec![self.batch, self.heads], sizes(&state.axes)].concat();
                bundle.insert(format!("init.{}", state.name), Tensor::from_fn(&shape, |_| 0.3 * draw.normal()));
                bundle.insert(format!("grad_final.{}", state.name), Tensor::from_fn(&shape, |_| draw.normal()));
            }
        }
        bundle
    }

    fn element(&self, draw: &mut Draw, range: &Range) -> f64 {
        let mut regime = if self.mixed { draw.choose(&REGIMES) } else { self.regime };
        if regime == Regime::Zeros && draw.choose(&[true, true, false]) {
            regime = Regime::Usual;
        }
        match range {
            Range::Unit(_) => {
                if regime == Regime::Zeros {
                    0.0
                } else {
                    draw.normal()
                }
            }
            Range::Any => match regime {
                Regime::Usual | Regime::Bound => draw.normal(),
                Regime::Weak => 0.1 * draw.normal(),
                Regime::Strong | Regime::Saturated => 1.5 * draw.normal(),
                Regime::Zeros => 0.0,
            },
            Range::Interval { lo, hi, .. } if lo.is_finite() && hi.is_finite() => match regime {
                Regime::Usual => draw.between(*lo, *hi),
                Regime::Weak => lo + (hi - lo) * draw.between(0.0, 0.05),
                Regime::Strong | Regime::Saturated => hi - (hi - lo) * draw.between(0.0, 0.05),
                Regime::Bound => draw.choose(&[*lo, *hi]),
                Regime::Zeros => 0f64.clamp(*lo, *hi),
            },
            // A log decay.
            Range::Interval { .. } => match regime {
                Regime::Usual => -(-(draw.normal() + 2.0)).exp().ln_1p(),
                Regime::Weak => -1e-3 * draw.fraction(),
                Regime::Strong => -draw.between(0.0, 4.0),
                Regime::Saturated => -draw.between(11.0, 12.0),
                Regime::Bound | Regime::Zeros => 0.0,
            },
        }
    }
}

/// Scales to norm one along a dimension.
fn shorten(tensor: &mut Tensor, dimension: usize) {
    let stride: usize = tensor.shape[dimension + 1..].iter().product();
    let extent = tensor.shape[dimension];
    for begin in (0..tensor.data.len()).filter(|at| (at / stride).is_multiple_of(extent)) {
        let norm = (0..extent).map(|i| tensor.data[begin + i * stride].powi(2)).sum::<f64>().sqrt();
        for i in 0..extent {
            tensor.data[begin + i * stride] /= norm.max(1e-30);
        }
    }
}
