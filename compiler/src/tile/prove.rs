//! Proves inequalities between indices.
//!
//! Takes what is known about loop variables and symbols, as sums that are not negative, and a sum; says whether the
//! sum is never negative either. Integers only. `false` means "found no proof", never "is false".
//!
//! The method is Fourier and Motzkin's: assume the opposite, eliminate one unknown after the other, and look for
//! `0 ≥ 1`. Each row is divided by the greatest common divisor of its coefficients and its constant rounded down,
//! which is what makes facts such as ⌈T/64⌉ ≥ 1 ⇒ T ≥ 1 come out.

use super::ir::{Affine, Compare, Cond, Index, Symbol, VarId};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Unknown {
    Var(u32),
    Length,
    Chunks(usize),
}

/// `constant + Σ factor · unknown ≥ 0`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    factors: BTreeMap<Unknown, i128>,
    constant: i128,
}

/// More rows than this are given up on.
const MAX_ROWS: usize = 400;

/// What is known at a point of the program. Each alternative is a list of rows that hold together; one alternative
/// holds.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    alternatives: Vec<Vec<Row>>,
}

impl Facts {
    pub(super) fn none() -> Facts {
        Facts { alternatives: vec![Vec::new()] }
    }

    /// `lhs ≥ rhs`
    fn at_least(&mut self, lhs: &Affine, rhs: &Affine) {
        if let Some(row) = difference(lhs, rhs) {
            self.alternatives.iter_mut().for_each(|rows| rows.push(row.clone()));
        }
    }

    /// `var` runs from `lo` to below `hi`.
    pub(super) fn range(&mut self, var: VarId, lo: &Index, hi: &Index) {
        let var = Affine { vars: vec![(var, 1)], ..Affine::default() };
        let next = Affine { constant: 1, ..var.clone() };
        for limit in [Some(&hi.value), hi.at_most.as_ref()].into_iter().flatten() {
            self.at_least(limit, &next);
        }
        match &lo.at_most {
            None => self.at_least(&var, &lo.value),
            // The smaller of two is one of them.
            Some(limit) => {
                let mut other = self.clone();
                self.at_least(&var, &lo.value);
                other.at_least(&var, limit);
                self.alternatives.extend(other.alternatives);
            }
        }
    }

    /// `var` runs from 0 to below `extent`.
    pub(super) fn lanes(&mut self, var: VarId, extent: usize) {
        let constant = |n| Index { value: Affine { constant: n, ..Affine::default() }, at_most: None };
        self.range(var, &constant(0), &constant(extent as i64));
    }

    /// A condition that holds.
    pub(super) fn holds(&mut self, cond: &Cond) {
        match cond.op {
            Compare::Le => self.at_least(&cond.rhs, &cond.lhs),
            Compare::Lt => {
                if let Some(rhs) = cond.rhs.constant.checked_sub(1) {
                    self.at_least(&Affine { constant: rhs, ..cond.rhs.clone() }, &cond.lhs);
                }
            }
            Compare::Eq => {
                self.at_least(&cond.rhs, &cond.lhs);
                self.at_least(&cond.lhs, &cond.rhs);
            }
        }
    }

    /// Whether `lhs ≥ rhs` follows.
    pub(super) fn prove_at_least(&self, lhs: &Affine, rhs: &Affine) -> bool {
        let Some(goal) = difference(lhs, rhs) else { return false };
        if goal.factors.is_empty() {
            return goal.constant >= 0;
        }
        self.alternatives.iter().all(|rows| follows(rows, &goal))
    }
}

/// `lhs − rhs ≥ 0` as a row.
fn difference(lhs: &Affine, rhs: &Affine) -> Option<Row> {
    let mut row = Row { factors: BTreeMap::new(), constant: i128::from(lhs.constant) - i128::from(rhs.constant) };
    for (affine, sign) in [(lhs, 1), (rhs, -1)] {
        let vars = affine.vars.iter().map(|(var, factor)| (Unknown::Var(var.0), *factor));
        let symbols = affine.symbols.iter().map(|(symbol, factor)| match symbol {
            Symbol::Length => (Unknown::Length, *factor),
            Symbol::Chunks(n) => (Unknown::Chunks(*n), *factor),
        });
        for (unknown, factor) in vars.chain(symbols) {
            let entry = row.factors.entry(unknown).or_insert(0);
            *entry = entry.checked_add(i128::from(factor) * sign)?;
        }
    }
    row.factors.retain(|_, factor| *factor != 0);
    Some(row)
}

/// What is always true of the symbols that occur in `rows`.
fn about_symbols(rows: &[Row]) -> Vec<Row> {
    let row = |terms: &[(Unknown, i128)], constant| Row { factors: terms.iter().copied().collect(), constant };
    let mut facts = vec![row(&[(Unknown::Length, 1)], 0)];
    let mut seen: Vec<usize> = Vec::new();
    for unknown in rows.iter().flat_map(|row| row.factors.keys()) {
        match unknown {
            Unknown::Chunks(n) if *n > 0 && !seen.contains(n) => {
                seen.push(*n);
                let n_tokens = *n as i128;
                facts.push(row(&[(*unknown, 1)], 0));
                facts.push(row(&[(*unknown, n_tokens), (Unknown::Length, -1)], 0));
                facts.push(row(&[(*unknown, -n_tokens), (Unknown::Length, 1)], n_tokens - 1));
            }
            Unknown::Chunks(_) | Unknown::Length | Unknown::Var(_) => {}
        }
    }
    facts
}

fn follows(facts: &[Row], goal: &Row) -> bool {
    // The opposite of goal ≥ 0 is −goal − 1 ≥ 0.
    let opposite = Row {
        factors: goal.factors.iter().map(|(unknown, factor)| (*unknown, -factor)).collect(),
        constant: -goal.constant - 1,
    };
    let mut all: Vec<Row> = facts.to_vec();
    all.push(opposite.clone());
    all.extend(about_symbols(&all));
    // Only what is linked to the goal by shared unknowns can matter.
    let mut linked: Vec<Unknown> = opposite.factors.keys().copied().collect();
    let mut rows = Vec::new();
    loop {
        let (near, far): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|row| row.factors.keys().any(|unknown| linked.contains(unknown)));
        if near.is_empty() {
            break;
        }
        linked.extend(near.iter().flat_map(|row| row.factors.keys().copied()));
        rows.extend(near);
        all = far;
    }
    contradiction(rows)
}

/// Whether no integers satisfy all rows, as far as elimination shows it.
fn contradiction(rows: Vec<Row>) -> bool {
    let mut system: BTreeMap<Vec<(Unknown, i128)>, i128> = BTreeMap::new();
    for row in rows {
        if !tighten_into(row, &mut system) {
            return true;
        }
    }
    while !system.is_empty() {
        let mut counts: BTreeMap<Unknown, (usize, usize)> = BTreeMap::new();
        for (unknown, factor) in system.keys().flatten() {
            let count = counts.entry(*unknown).or_default();
            if *factor > 0 { count.0 += 1 } else { count.1 += 1 }
        }
        let Some((&unknown, _)) = counts.iter().min_by_key(|(_, (above, below))| above * below) else { return false };
        let (mut above, mut below, mut rest) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (factors, constant) in system {
            match factors.iter().find(|(found, _)| *found == unknown).map(|(_, factor)| *factor) {
                None => {
                    rest.insert(factors, constant);
                }
                Some(factor) if factor > 0 => above.push((factors, constant, factor)),
                Some(factor) => below.push((factors, constant, -factor)),
            }
        }
        for (low, low_constant, low_factor) in &above {
            for (high, high_constant, high_factor) in &below {
                let sum = combine(low, *low_constant, *high_factor, high, *high_constant, *low_factor);
                let Some(sum) = sum else { return false };
                if !tighten_into(sum, &mut rest) {
                    return true;
                }
                if rest.len() > MAX_ROWS {
                    return false;
                }
            }
        }
        system = rest;
    }
    false
}

fn combine(
    lhs: &[(Unknown, i128)],
    lhs_constant: i128,
    lhs_scale: i128,
    rhs: &[(Unknown, i128)],
    rhs_constant: i128,
    rhs_scale: i128,
) -> Option<Row> {
    let constant = lhs_constant.checked_mul(lhs_scale)?.checked_add(rhs_constant.checked_mul(rhs_scale)?)?;
    let mut factors = BTreeMap::new();
    for (terms, scale) in [(lhs, lhs_scale), (rhs, rhs_scale)] {
        for (unknown, factor) in terms {
            let entry = factors.entry(*unknown).or_insert(0i128);
            *entry = entry.checked_add(factor.checked_mul(scale)?)?;
        }
    }
    factors.retain(|_, factor| *factor != 0);
    Some(Row { factors, constant })
}

/// Adds a row in lowest terms; `false` when the row alone cannot hold.
fn tighten_into(row: Row, system: &mut BTreeMap<Vec<(Unknown, i128)>, i128>) -> bool {
    let divisor = row.factors.values().fold(0i128, |divisor, factor| gcd(divisor, factor.abs()));
    if divisor == 0 {
        return row.constant >= 0;
    }
    let factors = row.factors.into_iter().map(|(unknown, factor)| (unknown, factor / divisor)).collect();
    let constant = row.constant.div_euclid(divisor);
    let known = system.entry(factors).or_insert(constant);
    *known = (*known).min(constant);
    true
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}
