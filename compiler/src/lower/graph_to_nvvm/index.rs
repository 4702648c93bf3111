//! Positions along a dimension as a thread knows them: sums of values with factors, and a number.
//!
//! Comes in: values of the kernel being written. Goes out: numbers for equal positions, so that what was computed for
//! a position is found again. It emits nothing.

use crate::lower::tile_to_mlir::writer::Val;
use std::collections::HashMap;

/// A position, by its number in an [`Interner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ix(u32);

impl Ix {
    /// What stands where a value has no such dimension.
    pub const NONE: Ix = Ix(u32::MAX);
}

/// `constant + Σ factor · value`, each value at most once and in the order they were made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Linear {
    /// Values with their factors, none of them 0.
    pub terms: Vec<(Val, i64)>,
    /// The number.
    pub constant: i64,
}

impl Linear {
    /// A number.
    pub fn number(constant: i64) -> Linear {
        Linear { terms: Vec::new(), constant }
    }

    /// `factor · value`.
    pub fn value(value: Val, factor: i64) -> Linear {
        let mut sum = Linear::default();
        sum.add(value, factor);
        sum
    }

    /// Adds `factor · value`.
    pub fn add(&mut self, value: Val, factor: i64) {
        match self.terms.iter().position(|(known, _)| *known == value) {
            Some(at) => {
                self.terms[at].1 += factor;
                if self.terms[at].1 == 0 {
                    self.terms.remove(at);
                }
            }
            None if factor == 0 => {}
            None => {
                self.terms.push((value, factor));
                self.terms.sort_by_key(|(value, _)| value.order());
            }
        }
    }

    /// Adds `factor` times another sum.
    pub fn add_scaled(&mut self, other: &Linear, factor: i64) {
        self.constant += factor * other.constant;
        for (value, by) in &other.terms {
            self.add(*value, by * factor);
        }
    }

    /// The number, if no value is in it.
    pub fn as_number(&self) -> Option<i64> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// What is a whole number of times `size`, divided by it, and the rest. Right where the rest is below `size`
    /// whatever the values are, as it is for every position that [`super::shape`] gives and `size` 16.
    pub fn divide(&self, size: i64) -> (Linear, Linear) {
        let (mut whole, mut rest) = (Linear::default(), Linear::default());
        whole.constant = self.constant.div_euclid(size);
        rest.constant = self.constant.rem_euclid(size);
        for (value, factor) in &self.terms {
            if factor % size == 0 {
                whole.terms.push((*value, factor / size));
            } else {
                rest.terms.push((*value, *factor));
            }
        }
        (whole, rest)
    }
}

/// How far it is along a dimension: from one position to the next, and from eight to eight, which may lie further apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Between neighbours of the same eight.
    pub one: usize,
    /// Between the first of an eight and the first of the next.
    pub eight: usize,
}

impl Step {
    /// All alike.
    pub fn even(one: usize) -> Step {
        Step { one, eight: 8 * one }
    }

    /// Whether all are alike.
    pub fn is_even(self) -> bool {
        self.eight == 8 * self.one
    }

    /// So many positions ahead, a whole number of eights.
    pub fn ahead(self, positions: usize) -> usize {
        debug_assert!(positions.is_multiple_of(8));
        positions / 8 * self.eight
    }
}

/// Gives equal positions the same number.
#[derive(Default)]
pub struct Interner {
    known: HashMap<Linear, Ix>,
    all: Vec<Linear>,
}

impl Interner {
    /// The number of a position.
    pub fn of(&mut self, linear: Linear) -> Ix {
        if let Some(known) = self.known.get(&linear) {
            return *known;
        }
        let new = Ix(u32::try_from(self.all.len()).expect("a kernel has fewer positions than 2³²"));
        self.all.push(linear.clone());
        self.known.insert(linear, new);
        new
    }

    /// The position of a number.
    pub fn get(&self, ix: Ix) -> &Linear {
        &self.all[ix.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::tile_to_mlir::writer::Writer;

    #[test]
    fn a_position_divides_into_its_block_and_its_place_there() {
        let w = Writer::new(2);
        let (warp, group) = (w.param(0), w.param(1));
        let mut row = Linear::value(warp, 16);
        row.add(group, 1);
        row.constant = 64 + 8;
        let (block, place) = row.divide(16);
        assert_eq!((block.terms.as_slice(), block.constant), ([(warp, 1)].as_slice(), 4));
        assert_eq!((place.terms.as_slice(), place.constant), ([(group, 1)].as_slice(), 8));
    }

    #[test]
    fn equal_positions_have_one_number() {
        let w = Writer::new(2);
        let (a, b) = (w.param(0), w.param(1));
        let mut all = Interner::default();
        let mut one = Linear::value(a, 2);
        one.add(b, 3);
        let mut other = Linear::value(b, 3);
        other.add(a, 5);
        other.add(a, -3);
        assert_eq!(all.of(one), all.of(other));
        assert_ne!(all.of(Linear::number(1)), all.of(Linear::number(2)));
        let mut gone = Linear::value(a, 1);
        gone.add(a, -1);
        assert_eq!(gone.as_number(), Some(0));
    }
}
