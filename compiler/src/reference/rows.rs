//! The inner loops: one run of elements at fixed distances.
//!
//! Comes from the interpreter, row by row of a [`super::nest::Nest`]. Neighbouring elements and repeated ones, which
//! are nearly all there is, are taken as slices, which is what makes the reference fast enough to check long sequences.

/// A run of elements: the first, and the distance to the next (0 repeats the first).
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    pub data: &'a [f64],
    pub first: usize,
    pub stride: usize,
}

impl<'a> Line<'a> {
    fn neighbours(self, count: usize) -> &'a [f64] {
        &self.data[self.first..self.first + count]
    }

    fn at(self, i: usize) -> f64 {
        self.data[self.first + i * self.stride]
    }
}

/// A run of elements to write.
pub(super) struct LineMut<'a> {
    pub data: &'a mut [f64],
    pub first: usize,
    pub stride: usize,
}

impl LineMut<'_> {
    fn neighbours(&mut self, count: usize) -> &mut [f64] {
        &mut self.data[self.first..self.first + count]
    }
}

/// y = f(a, b)
#[inline]
pub(super) fn assign(mut y: LineMut, a: Line, b: Line, count: usize, f: impl Fn(f64, f64) -> f64) {
    match [y.stride, a.stride, b.stride] {
        [1, 1, 1] => {
            let operands = a.neighbours(count).iter().zip(b.neighbours(count));
            y.neighbours(count).iter_mut().zip(operands).for_each(|(y, (&a, &b))| *y = f(a, b));
        }
        [1, 1, 0] => {
            let b = b.at(0);
            y.neighbours(count).iter_mut().zip(a.neighbours(count)).for_each(|(y, &a)| *y = f(a, b));
        }
        [1, 0, 1] => {
            let a = a.at(0);
            y.neighbours(count).iter_mut().zip(b.neighbours(count)).for_each(|(y, &b)| *y = f(a, b));
        }
        _ => {
            for i in 0..count {
                y.data[y.first + i * y.stride] = f(a.at(i), b.at(i));
            }
        }
    }
}

/// y += a · b
#[inline]
pub(super) fn add_product(mut y: LineMut, a: Line, b: Line, count: usize) {
    match [y.stride, a.stride, b.stride] {
        [1, 1, 1] => {
            let operands = a.neighbours(count).iter().zip(b.neighbours(count));
            y.neighbours(count).iter_mut().zip(operands).for_each(|(y, (a, b))| *y += a * b);
        }
        [1, 1, 0] => {
            let b = b.at(0);
            y.neighbours(count).iter_mut().zip(a.neighbours(count)).for_each(|(y, a)| *y += a * b);
        }
        [1, 0, 1] => {
            let a = a.at(0);
            y.neighbours(count).iter_mut().zip(b.neighbours(count)).for_each(|(y, b)| *y += a * b);
        }
        [0, 1, 1] => {
            let products = a.neighbours(count).iter().zip(b.neighbours(count)).map(|(a, b)| a * b);
            y.data[y.first] += products.sum::<f64>();
        }
        _ => {
            for i in 0..count {
                y.data[y.first + i * y.stride] += a.at(i) * b.at(i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_of_strides_does_the_same() {
        let a: Vec<f64> = (0..12).map(|i| f64::from(i) + 0.5).collect();
        let b: Vec<f64> = (0..12).map(|i| 2.0 - f64::from(i * i)).collect();
        for pattern in 0..27 {
            let [ys, xs, zs] = [pattern / 9, pattern / 3 % 3, pattern % 3];
            let lines = || {
                let a = Line { data: &a, first: 1, stride: xs };
                (a, Line { data: &b, first: 2, stride: zs })
            };
            let (mut assigned, mut expected) = ([1.0; 12], [1.0; 12]);
            let (mut added, mut expected_sum) = ([1.0; 12], [1.0; 12]);
            let (x, z) = lines();
            assign(LineMut { data: &mut assigned, first: 1, stride: ys }, x, z, 4, |a, b| a - b);
            add_product(LineMut { data: &mut added, first: 1, stride: ys }, x, z, 4);
            for i in 0..4 {
                expected[1 + i * ys] = a[1 + i * xs] - b[2 + i * zs];
                expected_sum[1 + i * ys] += a[1 + i * xs] * b[2 + i * zs];
            }
            assert_eq!(assigned, expected);
            assert_eq!(added, expected_sum);
        }
    }
}
