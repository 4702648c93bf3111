//! Loop nests over named axes: where each operand's element lies at every point of an iteration space.
//!
//! Comes from the planner, walked by the interpreter. An axis that an operand lacks has stride 0, so broadcasting,
//! contraction, transposition and copying are one and the same walk.

use chunkwise_dsl::program::AxisId;

/// Where a value lies: its first slot and its axes, the last one varying fastest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// First slot.
    pub start: usize,
    /// Layout.
    pub axes: Vec<AxisId>,
}

impl View {
    /// Number of elements.
    pub fn elements(&self, sizes: &[usize]) -> usize {
        self.axes.iter().map(|axis| sizes[axis.index()]).product()
    }

    /// Distance between neighbours along an axis; 0 along an axis the value lacks.
    pub fn stride(&self, axis: AxisId, sizes: &[usize]) -> usize {
        match self.axes.iter().position(|&own| own == axis) {
            Some(position) => self.axes[position + 1..].iter().map(|inner| sizes[inner.index()]).product(),
            None => 0,
        }
    }
}

/// One loop: how often, and how far each operand moves.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Loop {
    count: usize,
    strides: [usize; 3],
}

/// A walk over result and up to two operands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Nest {
    starts: [usize; 3],
    /// Outermost first.
    loops: Vec<Loop>,
}

impl Nest {
    /// The walk over every combination of positions along `axes`, the last one innermost.
    pub fn new(axes: &[AxisId], views: [&View; 3], sizes: &[usize]) -> Nest {
        let mut loops: Vec<Loop> = Vec::with_capacity(axes.len());
        for &axis in axes {
            let inner = Loop { count: sizes[axis.index()], strides: views.map(|view| view.stride(axis, sizes)) };
            if inner.count == 1 {
                continue;
            }
            match loops.last_mut() {
                // Two loops that every operand passes without a jump are one longer loop.
                Some(outer) if (0..3).all(|i| outer.strides[i] == inner.strides[i] * inner.count) => {
                    *outer = Loop { count: outer.count * inner.count, strides: inner.strides };
                }
                Some(_) | None => loops.push(inner),
            }
        }
        Nest { starts: views.map(|view| view.start), loops }
    }

    /// The first slots of result and operands.
    pub fn starts(&self) -> [usize; 3] {
        self.starts
    }

    /// Visits the slots of result and operands at every point.
    #[inline]
    pub fn each(&self, mut visit: impl FnMut([usize; 3])) {
        self.rows(|row| {
            for i in 0..row.count {
                visit([0, 1, 2].map(|operand| row.firsts[operand] + i * row.strides[operand]));
            }
        });
    }

    /// Visits the innermost loops.
    pub fn rows(&self, mut visit: impl FnMut(Row)) {
        walk(&self.loops, self.starts, &mut visit);
    }
}

/// One innermost loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Row {
    /// The first slots of result and operands.
    pub firsts: [usize; 3],
    /// How far each moves.
    pub strides: [usize; 3],
    /// How often.
    pub count: usize,
}

fn walk(loops: &[Loop], mut at: [usize; 3], visit: &mut impl FnMut(Row)) {
    match loops {
        [] => visit(Row { firsts: at, strides: [0; 3], count: 1 }),
        [inner] => visit(Row { firsts: at, strides: inner.strides, count: inner.count }),
        [outer, rest @ ..] => {
            for _ in 0..outer.count {
                walk(rest, at, visit);
                at = [0, 1, 2].map(|operand| at[operand] + outer.strides[operand]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AxisId = AxisId(0);
    const B: AxisId = AxisId(1);

    #[test]
    fn a_contraction_visits_each_pair_once() {
        let sizes = [2, 3];
        let vector = View { start: 10, axes: vec![A] };
        let matrix = View { start: 20, axes: vec![A, B] };
        let result = View { start: 0, axes: vec![B] };
        let mut seen = Vec::new();
        Nest::new(&[A, B], [&result, &vector, &matrix], &sizes).each(|at| seen.push(at));
        assert_eq!(seen, [[0, 10, 20], [1, 10, 21], [2, 10, 22], [0, 11, 23], [1, 11, 24], [2, 11, 25]]);
    }

    #[test]
    fn aligned_axes_become_one_loop_and_transposed_ones_do_not() {
        let sizes = [2, 3];
        let straight = View { start: 0, axes: vec![A, B] };
        let turned = View { start: 0, axes: vec![B, A] };
        assert_eq!(Nest::new(&[A, B], [&straight, &straight, &straight], &sizes).loops.len(), 1);
        let nest = Nest::new(&[A, B], [&straight, &turned, &turned], &sizes);
        let mut seen = Vec::new();
        nest.each(|at| seen.push((at[0], at[1])));
        assert_eq!(seen, [(0, 0), (1, 2), (2, 4), (3, 1), (4, 3), (5, 5)]);
    }
}
