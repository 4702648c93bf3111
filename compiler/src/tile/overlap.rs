//! Which elements of a buffer a view of a product covers.
//!
//! Takes views with their extents, says whether two of them are apart and whether one stays out of the padding. Like
//! [`super::prove`], `false` means that no proof was found.

use super::ir::{Affine, Buffer, View};
use super::prove::Facts;

/// The elements of a view.
#[derive(Clone, Debug)]
pub(super) struct Footprint {
    /// The first element.
    pub(super) first: Affine,
    /// The last element.
    pub(super) last: Affine,
    /// Rows and columns, each with its step, without those that occur once.
    sides: Vec<(Affine, usize)>,
}

impl Footprint {
    /// None if a number leaves 64 bits.
    pub(super) fn of(view: &View, rows: &Affine, cols: &Affine) -> Option<Footprint> {
        let sides = [(rows, view.row_stride), (cols, view.col_stride)];
        let mut last = view.offset.clone();
        for (count, step) in sides {
            last = add(&last, &scale(count, step)?, 1)?;
            last.constant = last.constant.checked_sub(i64::try_from(step).ok()?)?;
        }
        let once = Affine { constant: 1, ..Affine::default() };
        let sides = sides.into_iter().filter(|(count, _)| **count != once);
        Some(Footprint {
            first: view.offset.clone(),
            last,
            sides: sides.map(|(count, step)| (count.clone(), step)).collect(),
        })
    }

    /// How many neighbouring elements each row of `pitch` elements has, if the footprint is of that kind.
    fn width(&self, pitch: usize) -> Option<Affine> {
        let mut width = Affine { constant: 1, ..Affine::default() };
        for (count, step) in &self.sides {
            if *step == 1 {
                width = add(&width, count, 1)?;
                width.constant = width.constant.checked_sub(1)?;
            } else if step % pitch != 0 {
                return None;
            }
        }
        Some(width)
    }
}

/// `affine · n`
fn scale(affine: &Affine, n: usize) -> Option<Affine> {
    let n = i64::try_from(n).ok()?;
    let mut scaled = affine.clone();
    scaled.constant = scaled.constant.checked_mul(n)?;
    let factors = scaled.vars.iter_mut().map(|(_, factor)| factor);
    for factor in factors.chain(scaled.symbols.iter_mut().map(|(_, factor)| factor)) {
        *factor = factor.checked_mul(n)?;
    }
    Some(scaled)
}

/// `lhs + sign · rhs`
fn add(lhs: &Affine, rhs: &Affine, sign: i64) -> Option<Affine> {
    fn merge<K: PartialEq + Copy>(lhs: &mut Vec<(K, i64)>, rhs: &[(K, i64)], sign: i64) -> Option<()> {
        for (key, factor) in rhs {
            let factor = factor.checked_mul(sign)?;
            match lhs.iter_mut().find(|(found, _)| found == key) {
                Some((_, sum)) => *sum = sum.checked_add(factor)?,
                None => lhs.push((*key, factor)),
            }
        }
        lhs.retain(|(_, factor)| *factor != 0);
        Some(())
    }
    let mut sum = lhs.clone();
    sum.constant = sum.constant.checked_add(rhs.constant.checked_mul(sign)?)?;
    merge(&mut sum.vars, &rhs.vars, sign)?;
    merge(&mut sum.symbols, &rhs.symbols, sign)?;
    Some(sum)
}

/// The part of an offset that is no multiple of the pitch: the column, if it turns out to lie inside a row.
fn column(offset: &Affine, pitch: usize) -> Option<Affine> {
    let pitch = i64::try_from(pitch).ok()?;
    let mut column = offset.clone();
    column.vars.iter_mut().for_each(|(_, factor)| *factor %= pitch);
    column.vars.retain(|(_, factor)| *factor != 0);
    column.symbols.iter_mut().for_each(|(_, factor)| *factor %= pitch);
    column.symbols.retain(|(_, factor)| *factor != 0);
    column.constant = column.constant.rem_euclid(pitch);
    Some(column)
}

/// Whether no element of the footprint is padding.
pub(super) fn stays_in_rows(footprint: &Footprint, buffer: &Buffer, facts: &Facts) -> bool {
    let (pitch, size) = (buffer.pitch(), buffer.shape.last().copied().unwrap_or(1));
    if size == pitch {
        return true;
    }
    let (Some(width), Some(column)) = (footprint.width(pitch), column(&footprint.first, pitch)) else { return false };
    let Some(end) = add(&column, &width, 1) else { return false };
    let size = Affine { constant: size as i64, ..Affine::default() };
    facts.prove_at_least(&column, &Affine::default()) && facts.prove_at_least(&size, &end)
}

/// Whether two footprints in one buffer share no element.
pub(super) fn are_disjoint(lhs: &Footprint, rhs: &Footprint, pitch: usize, facts: &Facts) -> bool {
    let after = |late: &Footprint, early: &Footprint| {
        early
            .last
            .constant
            .checked_add(1)
            .is_some_and(|next| facts.prove_at_least(&late.first, &Affine { constant: next, ..early.last.clone() }))
    };
    after(lhs, rhs) || after(rhs, lhs) || side_by_side(lhs, rhs, pitch, facts)
}

/// Whether the two lie in different columns of the buffer's rows.
fn side_by_side(lhs: &Footprint, rhs: &Footprint, pitch: usize, facts: &Facts) -> bool {
    let shown = || {
        let (lhs_width, rhs_width) = (lhs.width(pitch)?, rhs.width(pitch)?);
        let shift = add(&column(&rhs.first, pitch)?, &column(&lhs.first, pitch)?, -1)?;
        let pitch = i64::try_from(pitch).ok()?;
        let row = Affine { constant: pitch, ..Affine::default() };
        // The shift is known only up to a multiple of the pitch.
        Some([-pitch, 0, pitch].into_iter().any(|turn| {
            let shift = Affine { constant: shift.constant + turn, ..shift.clone() };
            let end = add(&shift, &rhs_width, 1);
            facts.prove_at_least(&shift, &lhs_width) && end.is_some_and(|end| facts.prove_at_least(&row, &end))
        }))
    };
    shown().unwrap_or(false)
}
