//! How the elements of a value lie in the registers of a block of threads.
//!
//! Comes in: the dimensions of a value. Goes out: which of them are rows and which columns of a matrix, and which part
//! of that matrix a warp has. It emits nothing.
//!
//! # The matrix
//! Every value of two dimensions or more is a matrix, or one for each position of its other dimensions (*outer*). Warps
//! stand in a grid: each has every so many-th strip of sixteen rows and a range of columns; within a strip the elements
//! lie as the tensor cores leave their sums (PTX ISA, "Matrix fragments for mma.m16n8k16"): thread `lane` of a warp has
//! rows `lane / 4` and `lane / 4 + 8` and columns `2 (lane mod 4)` and the next of every eight. So values with the same
//! rows and columns lie alike, whatever their dimensions are called, and what is done to them element by element stays
//! in one thread.
//!
//! Rows and columns are counted up to whole strips of all warps. What lies beyond the last is computed and never used.

use crate::graph::ir::{DimId, DimKind, Graph};

/// Rows of a block of tokens, and of a strip.
pub const STRIP: usize = 16;
/// Warps of a warp group.
pub const GROUP: usize = 4;
/// Columns that the tensor cores give at once.
pub const COLUMNS: usize = 8;

/// Which dimensions are what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows, the slowest first.
    pub rows: Vec<DimId>,
    /// Columns, the slowest first.
    pub cols: Vec<DimId>,
    /// One matrix for each of their positions.
    pub outer: Vec<DimId>,
}

impl Shape {
    /// The shape of a value with these dimensions; none if there is no such matrix.
    pub fn of(graph: &Graph, dims: &[DimId]) -> Option<Shape> {
        let kind = |d: &DimId| graph.dim(*d).kind;
        let size = |d: DimId| graph.dim(d).size;
        let of_kind =
            |wanted: fn(DimKind) -> bool| dims.iter().copied().filter(|d| wanted(kind(d))).collect::<Vec<_>>();
        let slots = of_kind(|kind| matches!(kind, DimKind::Slot));
        let blocks = of_kind(|kind| matches!(kind, DimKind::Block | DimKind::BlockCol));
        let inner = of_kind(|kind| matches!(kind, DimKind::Row | DimKind::Col));
        // An axis of few positions is no side of a matrix.
        let (axes, short): (Vec<DimId>, Vec<DimId>) =
            of_kind(|kind| matches!(kind, DimKind::Axis(_))).into_iter().partition(|d| size(*d) >= COLUMNS);
        let mut outer = slots;
        outer.extend(short);
        // The block that goes with a dimension inside blocks.
        let block_of = |d: DimId, left: &[DimId]| {
            let own = if kind(&d) == DimKind::Col { DimKind::BlockCol } else { DimKind::Block };
            left.iter().copied().find(|b| kind(b) == own).or(left.first().copied())
        };
        let within_block = |d: DimId| size(d) == STRIP && !blocks.is_empty();
        let (rows, cols) = match (&inner[..], &axes[..]) {
            ([], []) => (vec![], vec![]),
            ([], [only]) => (blocks.clone(), vec![*only]),
            ([], [_, _, ..]) if blocks.is_empty() => {
                // The two largest, in their order.
                let mut by_size = axes.clone();
                by_size.sort_by_key(|d| std::cmp::Reverse(size(*d)));
                let (matrix, rest) = by_size.split_at(2);
                outer.extend(rest);
                let first = axes.iter().copied().find(|d| matrix.contains(d))?;
                let second = axes.iter().rev().copied().find(|d| matrix.contains(d))?;
                (vec![first], vec![second])
            }
            ([], _) => return None,
            ([row], axes) => {
                let mut left = blocks.clone();
                let rows = match block_of(*row, &left).filter(|_| within_block(*row)) {
                    Some(block) => {
                        left.retain(|b| *b != block);
                        vec![block, *row]
                    }
                    None => vec![*row],
                };
                outer.extend(left);
                let widest = axes.iter().copied().max_by_key(|d| size(*d));
                outer.extend(axes.iter().copied().filter(|d| Some(*d) != widest));
                (rows, widest.into_iter().collect())
            }
            ([row, col], []) => {
                let mut left = blocks.clone();
                let mut with_block = |d: DimId| match block_of(d, &left).filter(|_| within_block(d)) {
                    Some(block) => {
                        left.retain(|b| *b != block);
                        vec![block, d]
                    }
                    None => vec![d],
                };
                let (rows, cols) = match blocks.len() {
                    // A block on its diagonal.
                    1 if within_block(*row) => (with_block(*row), vec![*col]),
                    _ => {
                        let rows = with_block(*row);
                        (rows, with_block(*col))
                    }
                };
                outer.extend(left);
                (rows, cols)
            }
            _ => return None,
        };
        outer.sort_unstable();
        Some(Shape { rows, cols, outer })
    }

    /// Whether it has both rows and columns.
    pub fn is_matrix(&self) -> bool {
        !self.rows.is_empty() && !self.cols.is_empty()
    }
}

/// The product of sizes.
pub fn extent(graph: &Graph, dims: &[DimId]) -> usize {
    dims.iter().map(|d| graph.dim(*d).size).product()
}

/// The grid of warps of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warps {
    /// Warps down the rows.
    pub down: usize,
    /// Warps across the columns.
    pub across: usize,
}

impl Warps {
    /// For chunks of so many rows. A grid that is no taller than wide reads operands least often; but blocks of rows
    /// each have a strip of their own, while there are warps.
    pub fn of(warps: usize, rows: usize, blocks: bool) -> Warps {
        let strips = rows.div_ceil(STRIP).max(1);
        let fits = |down: usize| down <= strips && if blocks { down <= warps } else { down * down <= warps };
        let mut down = 1;
        while fits(down * 2) {
            down *= 2;
        }
        Warps { down, across: warps / down }
    }

    /// For warp groups: four warps down, each group a range of columns. None where chunks have fewer rows than a group
    /// multiplies at once.
    pub fn of_groups(warps: usize, rows: usize) -> Option<Warps> {
        let fits = rows >= GROUP * STRIP && warps.is_multiple_of(GROUP);
        fits.then_some(Warps { down: GROUP, across: warps / GROUP })
    }

    /// All of them.
    pub fn count(self) -> usize {
        self.down * self.across
    }

    /// Strips a warp has of a matrix with so many rows.
    pub fn strips(self, rows: usize) -> usize {
        rows.div_ceil(STRIP).div_ceil(self.down).max(1)
    }

    /// Eights of columns a warp has: one, or an even number.
    pub fn eights(self, cols: usize) -> usize {
        let own = cols.div_ceil(COLUMNS).div_ceil(self.across).max(1);
        if own == 1 { 1 } else { own.next_multiple_of(2) }
    }

    /// Rows up to whole strips of all warps.
    pub fn padded_rows(self, rows: usize) -> usize {
        self.strips(rows) * self.down * STRIP
    }

    /// Columns up to whole eights of all warps.
    pub fn padded_cols(self, cols: usize) -> usize {
        self.eights(cols) * self.across * COLUMNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ir::Dim;

    fn graph(dims: &[(&str, DimKind, usize)]) -> (Graph, Vec<DimId>) {
        let dims: Vec<Dim> =
            dims.iter().map(|(name, kind, size)| Dim { name: (*name).to_owned(), kind: *kind, size: *size }).collect();
        let ids = (0..dims.len()).map(|n| DimId(u32::try_from(n).unwrap())).collect();
        let graph = Graph {
            name: String::new(),
            dims,
            nodes: Vec::new(),
            time: None,
            tokens: 64,
            reverse: false,
            span: None,
            carries: Vec::new(),
            outputs: Vec::new(),
            layouts: Vec::new(),
            saves: Vec::new(),
        };
        (graph, ids)
    }

    #[test]
    fn rows_are_tokens_or_the_first_axis_and_blocks_go_with_their_tokens() {
        let (graph, d) = graph(&[
            ("tb", DimKind::Block, 4),
            ("sb", DimKind::BlockCol, 4),
            ("ti", DimKind::Row, 16),
            ("si", DimKind::Col, 16),
            ("t", DimKind::Row, 64),
            ("K", DimKind::Axis(0), 128),
            ("V", DimKind::Axis(1), 64),
            ("R", DimKind::Axis(2), 2),
        ]);
        let (tb, sb, ti, si, t, k, v, r) = (d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]);
        let of = |dims: &[DimId]| {
            let shape = Shape::of(&graph, dims).unwrap();
            (shape.rows, shape.cols, shape.outer)
        };
        assert_eq!(of(&[t, k]), (vec![t], vec![k], vec![]));
        assert_eq!(of(&[k, v]), (vec![k], vec![v], vec![]));
        assert_eq!(of(&[t, k, r]), (vec![t], vec![k], vec![r]));
        assert_eq!(of(&[t, r]), (vec![t], vec![], vec![r]));
        assert_eq!(of(&[tb, ti, k]), (vec![tb, ti], vec![k], vec![]));
        assert_eq!(of(&[tb, si, k]), (vec![tb, si], vec![k], vec![]));
        assert_eq!(of(&[tb, sb, si, k]), (vec![sb, si], vec![k], vec![tb]));
        assert_eq!(of(&[tb, sb, ti, si]), (vec![tb, ti], vec![sb, si], vec![]));
        assert_eq!(of(&[tb, ti, si]), (vec![tb, ti], vec![si], vec![]));
    }

    #[test]
    fn every_strip_and_eight_has_one_warp() {
        for warps in [1, 2, 4, 8, 16] {
            for rows in [16, 32, 48, 64, 112, 128, 256] {
                let grid = Warps::of(warps, rows, rows % 32 == 0);
                assert_eq!(grid.count(), warps);
                for n in [16, 48, 60, 64, 100, 128, 192, 256] {
                    assert!(grid.padded_rows(n) >= n && grid.padded_rows(n).is_multiple_of(STRIP));
                    assert!(grid.padded_cols(n) >= n && grid.padded_cols(n).is_multiple_of(COLUMNS));
                    // Warp `down` has strips down, down + grid.down, …: each once.
                    let strips: std::collections::BTreeSet<usize> = (0..grid.down)
                        .flat_map(|down| (0..grid.strips(n)).map(move |strip| down + grid.down * strip))
                        .collect();
                    assert_eq!(strips.len() * STRIP, grid.padded_rows(n));
                    assert!(grid.eights(n) == 1 || grid.eights(n).is_multiple_of(2));
                }
            }
        }
    }
}
