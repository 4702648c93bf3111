//! Products of matrices as tensor cores make them, and how matrices lie in the registers of a warp.
//!
//! Products are exact. They are added up eight (bfloat16, binary16) or four (tf32) at a time, without rounding, to what
//! is there, and the sum is cut off to float32, not rounded: so measurements of tensor cores describe it. How many digits
//! they keep while adding is not known to be the same everywhere; here it is all of them.

use crate::instruction::Factors;
use crate::numbers::towards_zero;
use half::f16;

/// A register of each thread of a warp.
pub type Narrow = [u32; 32];

fn halves(factors: Factors, bits: u32) -> [f32; 2] {
    let each = [bits & 0xffff, bits >> 16];
    match factors {
        Factors::Bf16 => each.map(|bits| f32::from_bits(bits << 16)),
        Factors::F16 => each.map(|bits| f16::from_bits(bits as u16).to_f32()),
        Factors::Tf32 => unreachable!("a register holds one number"),
    }
}

/// The value of a register as tf32: the lower digits are not looked at.
fn tf32(bits: u32) -> f32 {
    f32::from_bits(bits & !0x1fff)
}

/// `c + a b`, with 16 rows, 8 columns, and 16 or 8 between.
pub fn multiply(factors: Factors, a: &[Narrow; 4], b: &[Narrow; 2], c: &[Narrow; 4]) -> [Narrow; 4] {
    let mut left = [[0f32; 16]; 16];
    // Rows are what is summed over, so that eight columns are added at once.
    let mut right = [[0f32; 8]; 16];
    let (depth, at_once) = match factors {
        Factors::Bf16 | Factors::F16 => (16, 8),
        Factors::Tf32 => (8, 4),
    };
    for lane in 0..32 {
        let (group, place) = (lane / 4, lane % 4);
        for (at, register) in a.iter().enumerate() {
            let row = group + 8 * (at % 2);
            match factors {
                Factors::Bf16 | Factors::F16 => {
                    let column = 2 * place + 8 * (at / 2);
                    left[row][column..column + 2].copy_from_slice(&halves(factors, register[lane]));
                }
                Factors::Tf32 => left[row][place + 4 * (at / 2)] = tf32(register[lane]),
            }
        }
        for (at, register) in b.iter().enumerate() {
            match factors {
                Factors::Bf16 | Factors::F16 => {
                    let row = 2 * place + 8 * at;
                    let [first, second] = halves(factors, register[lane]);
                    (right[row][group], right[row + 1][group]) = (first, second);
                }
                Factors::Tf32 => right[place + 4 * at][group] = tf32(register[lane]),
            }
        }
    }
    let mut d = [[0; 32]; 4];
    for (row, left) in left.iter().enumerate() {
        let at = |column: usize| (2 * (row / 8) + column % 2, 4 * (row % 8) + column / 2);
        let mut sums: [f32; 8] = std::array::from_fn(|column| {
            let (register, lane) = at(column);
            f32::from_bits(c[register][lane])
        });
        for begin in (0..depth).step_by(at_once) {
            let mut exact = sums.map(f64::from);
            for k in begin..begin + at_once {
                let factor = f64::from(left[k]);
                for (sum, other) in exact.iter_mut().zip(&right[k]) {
                    *sum += factor * f64::from(*other);
                }
            }
            sums = exact.map(towards_zero);
        }
        for (column, sum) in sums.iter().enumerate() {
            let (register, lane) = at(column);
            d[register][lane] = sum.to_bits();
        }
    }
    d
}

/// The rows of a matrix of 8 by 8 numbers of 16 bits, handed to the threads: row by row, or column by column.
pub fn hand_out(rows: &[[u16; 8]; 8], transposed: bool) -> Narrow {
    std::array::from_fn(|lane| {
        let (at, pair) = (lane / 4, 2 * (lane % 4));
        let (low, high) = match transposed {
            false => (rows[at][pair], rows[at][pair + 1]),
            true => (rows[pair][at], rows[pair + 1][at]),
        };
        u32::from(low) | u32::from(high) << 16
    })
}

/// The same, with the rows in the registers of the threads.
pub fn transpose(register: &Narrow) -> Narrow {
    let mut rows = [[0; 8]; 8];
    for (lane, bits) in register.iter().enumerate() {
        let pair = 2 * (lane % 4);
        (rows[lane / 4][pair], rows[lane / 4][pair + 1]) = (*bits as u16, (*bits >> 16) as u16);
    }
    hand_out(&rows, true)
}
