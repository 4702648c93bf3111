//! One test case: sizes, seed and how hard the data are. In: a random stream, or the words a failure was reported
//! with; out: a case, the same every time.

use std::collections::BTreeMap;
use std::fmt;

use chunkwise_dsl::program::{AxisId, Program};

use super::random::Random;
use crate::options::looped_axes;

/// How hard the data are, above all the gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Regime {
    /// As in a trained model.
    Usual,
    /// Gates that do nearly nothing.
    Weak,
    /// Gates that forget within a few tokens.
    Strong,
    /// Gates that forget at once: a log decay of about −12.
    Saturated,
    /// Values exactly at the bounds of their ranges.
    Bound,
    /// Values of exactly zero among usual ones.
    Zeros,
    /// Each element from another regime.
    Mixed,
}

impl Regime {
    /// All of them.
    pub const ALL: [Regime; 7] =
        [Regime::Usual, Regime::Weak, Regime::Strong, Regime::Saturated, Regime::Bound, Regime::Zeros, Regime::Mixed];

    /// A word.
    pub fn name(self) -> &'static str {
        match self {
            Regime::Usual => "usual",
            Regime::Weak => "weak",
            Regime::Strong => "strong",
            Regime::Saturated => "saturated",
            Regime::Bound => "bound",
            Regime::Zeros => "zeros",
            Regime::Mixed => "mixed",
        }
    }
}

/// A test case.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Decides the data.
    pub seed: u64,
    /// Sequences.
    pub batch: usize,
    /// Tokens a sequence.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Every second input has the heads divided by this, and shares them.
    pub groups: usize,
    /// Tokens a chunk, where there are chunks.
    pub chunk: usize,
    /// Whether initial states are given.
    pub init: bool,
    /// How hard the data are.
    pub regime: Regime,
    /// Size of each axis.
    pub sizes: BTreeMap<String, usize>,
}

impl Case {
    /// Case `number` of a verification. The regimes take turns, so that few cases see all of them.
    pub fn draw(program: &Program, seed: u64, number: usize) -> Case {
        let mut random = Random::new(seed.wrapping_add((number as u64).wrapping_mul(0x1000_0001)), "case");
        let looped = looped_axes(program);
        let sizes = program.axes.iter().enumerate().map(|(at, axis)| {
            let size = if looped.contains(&AxisId(at as u32)) {
                random.choose(&[1, 2, 3])
            } else {
                random.choose(&[1, 2, 3, 4, 5, 8, 12, 16, 17, 20, 24, 32, 33, 40])
            };
            (axis.name.clone(), size)
        });
        let sizes = sizes.collect();
        let heads = random.choose(&[1, 2, 2, 3, 4]);
        Case {
            seed: random.bits() >> 32,
            batch: random.choose(&[1, 1, 2, 3]),
            tokens: random.choose(&[0, 1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 130, 150]),
            heads,
            groups: if heads.is_multiple_of(2) && random.below(3) == 0 { 2 } else { 1 },
            chunk: random.choose(&[16, 16, 32, 48, 64, 64, 100, 128]),
            init: random.below(4) > 0,
            regime: Regime::ALL[number % Regime::ALL.len()],
            sizes,
        }
    }

    /// Case `number` of a verification of kernels whose layout depends on sizes: axes as models have them, and lengths
    /// around chunks and beyond, as long as the reference takes seconds and not minutes.
    pub fn draw_wide(program: &Program, seed: u64, number: usize) -> Case {
        /// Numbers in all states together, over all tokens.
        const MOST: usize = 1 << 23;
        let mut case = Case::draw(program, seed, number);
        let mut random = Random::new(case.seed, "wide");
        let looped = looped_axes(program);
        for (at, axis) in program.axes.iter().enumerate() {
            if !looped.contains(&AxisId(at as u32)) {
                case.sizes.insert(axis.name.clone(), random.choose(&[16, 48, 60, 64, 100, 128, 192, 256]));
            }
        }
        case.tokens = random.choose(&[1, 15, 64, 65, 500, 1000]);
        (case.batch, case.heads, case.groups) = (1, random.choose(&[1, 2]), 1);
        let state: usize = case.sizes.values().product();
        while case.tokens * case.heads * state > MOST && case.tokens > 1 {
            case.tokens = case.tokens.div_ceil(2);
        }
        case
    }

    /// A long sequence, of two heads; sizes that are not given are usual ones.
    pub fn long(program: &Program, seed: u64, tokens: usize, regime: Regime) -> Case {
        let sizes = crate::options::default_sizes(program);
        Case { seed, batch: 1, tokens, heads: 2, groups: 1, chunk: 64, init: true, regime, sizes }
    }

    /// Smaller cases, the boldest step first.
    pub fn smaller(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut push = |change: &dyn Fn(&mut Case)| {
            let mut case = self.clone();
            change(&mut case);
            if case != *self {
                cases.push(case);
            }
        };
        push(&|case| case.batch = 1);
        push(&|case| (case.heads, case.groups) = (1, 1));
        push(&|case| case.groups = 1);
        push(&|case| case.init = false);
        for tokens in [1, 2, 3, self.tokens / 2, self.tokens * 3 / 4, self.tokens.saturating_sub(1)] {
            if tokens < self.tokens {
                push(&|case| case.tokens = tokens);
            }
        }
        push(&|case| case.chunk = 16);
        for (axis, &size) in &self.sizes {
            for smaller in [1, 2, size / 2, size - 1] {
                if (1..size).contains(&smaller) {
                    push(&|case| {
                        case.sizes.insert(axis.clone(), smaller);
                    });
                }
            }
        }
        push(&|case| case.regime = Regime::Usual);
        cases
    }
}

/// As it is written on the command line: `seed=7,B=1,T=17,H=1,groups=1,chunk=16,init=yes,regime=strong,K=4,V=3`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { seed, batch, tokens, heads, groups, chunk, init, regime, sizes } = self;
        let init = if *init { "yes" } else { "no" };
        write!(f, "seed={seed},batch={batch},tokens={tokens},heads={heads},groups={groups},chunk={chunk},init={init}")?;
        write!(f, ",regime={}", regime.name())?;
        for (axis, size) in sizes {
            write!(f, ",size.{axis}={size}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Case, String> {
        let mut case = Case {
            seed: 0,
            batch: 1,
            tokens: 0,
            heads: 1,
            groups: 1,
            chunk: 16,
            init: true,
            regime: Regime::Usual,
            sizes: BTreeMap::new(),
        };
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not of the form NAME=VALUE"))?;
            let number = || {
                let number = value.parse::<usize>().ok().filter(|number| *number <= 1 << 20);
                number.ok_or_else(|| format!("`{key}` takes a whole number, and `{value}` is none it takes"))
            };
            match key {
                "seed" => case.seed = value.parse().map_err(|_| format!("`{value}` is no seed"))?,
                "batch" => case.batch = number()?,
                "tokens" => case.tokens = number()?,
                "heads" => case.heads = number()?.max(1),
                "groups" => case.groups = number()?.max(1),
                "chunk" => case.chunk = number()?.clamp(16, 256),
                "init" => case.init = value == "yes",
                "regime" => {
                    let regime = Regime::ALL.into_iter().find(|regime| regime.name() == value);
                    case.regime = regime.ok_or_else(|| format!("there is no regime `{value}`"))?;
                }
                _ => match key.strip_prefix("size.") {
                    Some(axis) => {
                        case.sizes.insert(axis.to_owned(), number()?);
                    }
                    None => return Err(format!("a case has no `{key}`")),
                },
            }
        }
        if !case.heads.is_multiple_of(case.groups) {
            return Err(format!("{} heads cannot be shared in groups of {}", case.heads, case.groups));
        }
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_reads_back_from_what_is_printed() {
        let source =
            "recurrence x { axis K, V input q: [K], v: [V] state S: [K, V] S = S + q * v output o: [V] = q @ S }";
        let programs = chunkwise_dsl::compile(source).unwrap().programs;
        for number in 0..50 {
            let case = Case::draw(&programs[0], 3, number);
            assert_eq!(case.to_string().parse(), Ok(case.clone()));
            assert!(case.smaller().iter().all(|smaller| *smaller != case));
        }
    }
}
