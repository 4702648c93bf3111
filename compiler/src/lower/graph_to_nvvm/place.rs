//! Positions of a thread's elements, and where they lie.
//!
//! Comes in: dimensions of values, and steps of memory along them. Goes out: positions as sums of what the thread knows of
//! itself, bytes from a region's start, and conditions that a position is one of the value's. What is written are the few
//! words that such conditions take.

use super::block::{Block, Element, Home, Point};
use super::index::{Linear, Step};
use super::shape::{STRIP, Shape, extent};
use crate::graph::ir::DimId;
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};

impl Block<'_> {
    /// Every position of the outer dimensions.
    pub fn outer_points(&mut self, outer: &[DimId]) -> Vec<Point> {
        let mut points = vec![Point::default()];
        for dim in outer {
            let mut next = Vec::new();
            for point in &points {
                for n in 0..self.size(*dim) {
                    let ix = self.fixed(n);
                    next.push(point.with(*dim, ix));
                }
            }
            points = next;
        }
        points
    }

    /// First row of a warp's strip.
    pub fn first_row(&self, strip: usize) -> Linear {
        let mut row = Linear::value(self.down, STRIP as i64);
        row.constant = (STRIP * self.warps.down * strip) as i64;
        row
    }

    /// A thread's row: number of the strip, upper or lower half.
    pub fn row(&self, strip: usize, half: usize) -> Linear {
        let mut row = self.first_row(strip);
        row.add(self.group, 1);
        row.constant += 8 * half as i64;
        row
    }

    /// First column of a warp's eight, of a matrix with so many columns.
    pub fn first_col(&self, n_cols: usize, eight: usize) -> Linear {
        let own = self.warps.eights(n_cols);
        let mut col = Linear::number((8 * eight) as i64);
        if own == 1 && self.warps.across > 1 {
            // Eights are handed out one by one: their sixteens apart, for blocks of tokens.
            col.add(self.across_pair, 16);
            col.add(self.across_odd, 8);
        } else if self.warps.across > 1 {
            col.add(self.across, (8 * own) as i64);
        }
        col
    }

    /// Positions of dimensions that together are counted by one number, the slowest first.
    pub fn spread(&mut self, dims: &[DimId], along: &Linear, to: &mut Point) {
        let mut rest = along.clone();
        for (n, dim) in dims.iter().enumerate() {
            let inner = dims[n + 1..].iter().map(|d| self.size(*d)).product::<usize>();
            let (own, left) = if inner == 1 { (rest.clone(), Linear::default()) } else { rest.divide(inner as i64) };
            to.0.push((*dim, self.ix.of(own)));
            rest = left;
        }
    }

    /// The same position but along dimensions counted together.
    pub fn moved(&mut self, at: &Point, dims: &[DimId], along: &Linear) -> Point {
        let mut there = Point::default();
        self.spread(dims, along, &mut there);
        there.0.iter().fold(at.clone(), |at, (dim, ix)| at.with(*dim, *ix))
    }

    /// The elements of a thread, of one matrix of a value.
    pub fn elements(&mut self, shape: &Shape, outer: &Point) -> Vec<Element> {
        let (n_rows, n_cols) = (extent(self.graph, &shape.rows), extent(self.graph, &shape.cols));
        let mut all = Vec::new();
        for strip in 0..self.warps.strips(n_rows) {
            for eight in 0..self.warps.eights(n_cols) {
                for half in 0..2 {
                    for odd in 0..2 {
                        let row = self.row(strip, half);
                        let mut col = self.first_col(n_cols, eight);
                        col.add(self.quad, 2);
                        col.constant += odd as i64;
                        let mut at = outer.clone();
                        self.spread(&shape.rows, &row, &mut at);
                        self.spread(&shape.cols, &col, &mut at);
                        all.push(Element { at, strip, eight, half, odd });
                    }
                }
            }
        }
        all
    }

    /// Adds the steps that lead to a position, so many bytes or elements along each dimension.
    pub fn add_steps(&self, to: &mut Linear, strides: &[(DimId, usize)], at: &Point) {
        for (dim, stride) in strides {
            let ix = at.get(*dim).expect("a position of each dimension");
            to.add_scaled(&self.ix.get(ix).clone(), *stride as i64);
        }
    }

    /// Adds the bytes to a position along one dimension.
    pub fn add_step(&mut self, to: &mut Linear, step: Step, along: &Linear) {
        if step.is_even() {
            to.add_scaled(along, step.one as i64);
            return;
        }
        let (whole, rest) = self.divided(along, 8);
        to.add_scaled(&whole, step.eight as i64);
        to.add_scaled(&rest, step.one as i64);
    }

    /// A position divided by a number, and the rest: known while the kernel is written, or computed by it.
    pub fn divided(&mut self, along: &Linear, size: usize) -> (Linear, Linear) {
        let (whole, rest) = along.divide(size as i64);
        let most = |value: Val| match value {
            value if value == self.group => Some(7),
            value if value == self.quad => Some(3),
            value if value == self.across_odd => Some(1),
            _ => None,
        };
        let last =
            rest.terms.iter().try_fold(rest.constant, |last, (value, factor)| Some(last + factor * most(*value)?));
        if last.is_some_and(|last| last < size as i64) {
            return (whole, rest);
        }
        let (size, at) = (self.int(size), self.number(along));
        let whole = self.w.op("udiv", at, size, Ty::I32);
        let rest = self.w.op("urem", at, size, Ty::I32);
        (Linear::value(whole, 1), Linear::value(rest, 1))
    }

    /// Adds the bytes to where a value's element lies.
    pub fn add_place(&mut self, to: &mut Linear, home: &Home, at: &Point) {
        for (dim, step) in &home.strides {
            let along = self.ix.get(at.get(*dim).expect("a position of each dimension")).clone();
            self.add_step(to, *step, &along);
        }
    }

    /// Whether a position along dimensions counted together lies before their end; none if it does for sure.
    pub fn inside(&mut self, dims: &[DimId], at: &Point, padded: usize) -> Option<Val> {
        let n = extent(self.graph, dims);
        if n == padded {
            return None;
        }
        let mut flat = Linear::default();
        let mut step = 1;
        for dim in dims.iter().rev() {
            let ix = at.get(*dim).expect("a position of each dimension");
            flat.add_scaled(&self.ix.get(ix).clone(), step);
            step *= self.size(*dim) as i64;
        }
        if let Some(number) = flat.as_number() {
            return if number < n as i64 { None } else { Some(self.w.int(Ty::scalar(Elem::I1), 0)) };
        }
        let (at, end) = (self.number(&flat), self.int(n));
        Some(self.w.icmp("slt", at, end, Ty::I32))
    }

    /// Whether an element is one of the matrix; none if it is for sure.
    pub fn real(&mut self, shape: &Shape, at: &Point) -> Option<Val> {
        let (n_rows, n_cols) = (extent(self.graph, &shape.rows), extent(self.graph, &shape.cols));
        let (rows, cols) = (self.warps.padded_rows(n_rows), self.warps.padded_cols(n_cols));
        let (below, before) = (self.inside(&shape.rows, at, rows), self.inside(&shape.cols, at, cols));
        self.both(below, before)
    }
}
