//! What a caller may ask to be checked about data: that they are finite, and that they keep the promises of their
//! declarations. In: a program and its tensors; out: the first offence of each tensor, located.

use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Program, Range, Tensor as Declared, TensorKind};

use crate::binding::{self, Slot};
use crate::precision::Precision;

/// A vector `in unit(K)` may be longer than one by this much: what rounding to bfloat16 can do.
const UNIT_TOLERANCE: f64 = 0.01;

/// Tensors with NaN or an infinity, one complaint each.
pub fn not_finite(program: &Program, tensors: &Bundle) -> Vec<String> {
    let mut complaints = Vec::new();
    for slot in binding::slots(program) {
        let Some(tensor) = tensors.get(&slot.name) else { continue };
        let mut bad = tensor.data.iter().enumerate().filter(|(_, value)| !value.is_finite());
        if let Some((at, value)) = bad.next() {
            let more = others(bad.count());
            complaints.push(format!("{} is {value}{more}", element(program, &slot, tensor, at)));
        }
    }
    complaints
}

/// Results with NaN or an infinity although no input has one, one complaint each: something overflowed on the way.
pub fn overflowed(
    program: &Program,
    inputs: &Bundle,
    results: &Bundle,
    precision: impl Fn(&str) -> Precision,
) -> Vec<String> {
    if !not_finite(program, inputs).is_empty() {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (name, tensor) in results {
        let rounded = |value: &f64| precision(name).round(*value);
        let bad: Vec<f64> = tensor.data.iter().map(rounded).filter(|value| !value.is_finite()).collect();
        if let Some(first) = bad.first() {
            complaints.push(format!(
                "{} of {} elements of `{name}` are not finite; the first is {first}",
                bad.len(),
                tensor.data.len()
            ));
        }
    }
    complaints
}

/// Tensors outside the range declared for them, one complaint each.
pub fn out_of_range(program: &Program, tensors: &Bundle) -> Vec<String> {
    let mut complaints = Vec::new();
    for (declared, slot) in program.tensors.iter().zip(binding::slots(program)) {
        let Some(tensor) = tensors.get(&declared.name) else { continue };
        let complaint = match &declared.range {
            Range::Any => None,
            Range::Interval { lo, hi, lo_closed, hi_closed } => {
                let inside = |value: f64| {
                    (value > *lo || *lo_closed && value == *lo) && (value < *hi || *hi_closed && value == *hi)
                };
                // −∞ as a log decay of `(-inf, 0]` is the reset of a state; NaN is never inside.
                let allowed = |value: f64| inside(value) || value == *lo && lo.is_infinite();
                let mut bad = tensor.data.iter().enumerate().filter(|(_, value)| !allowed(**value));
                bad.next().map(|(at, value)| {
                    let place = element(program, &slot, tensor, at);
                    let (open, close) = (if *lo_closed { '[' } else { '(' }, if *hi_closed { ']' } else { ')' });
                    let range = format!("{open}{}, {}{close}", bound(*lo), bound(*hi));
                    format!("{place} is {value}, outside the range {range} it is declared with{}", others(bad.count()))
                })
            }
            Range::Unit(axis) => longest(declared, tensor, *axis).and_then(|(at, norm)| {
                (norm.is_nan() || norm > 1.0 + UNIT_TOLERANCE).then(|| {
                    let axis = &program.axes[axis.index()].name;
                    let place = element(program, &slot, tensor, at);
                    format!("the vector over {axis} that begins at {place} has length {norm:.4}; it is declared in unit({axis})")
                })
            }),
        };
        complaints.extend(complaint);
    }
    complaints
}

/// The longest vector over one axis: where it begins, and its length.
fn longest(declared: &Declared, tensor: &Tensor, axis: chunkwise_dsl::program::AxisId) -> Option<(usize, f64)> {
    let leading = match declared.kind {
        TensorKind::Input => 3,
        TensorKind::Param => 1,
    };
    let dimension = leading + declared.axes.iter().position(|it| *it == axis)?;
    let stride: usize = tensor.shape[dimension + 1..].iter().product();
    let extent = tensor.shape[dimension];
    let begins = (0..tensor.data.len()).filter(|at| extent > 0 && (at / stride).is_multiple_of(extent));
    begins
        .map(|at| (at, (0..extent).map(|i| tensor.data[at + i * stride].powi(2)).sum::<f64>().sqrt()))
        .max_by(|a, b| a.1.total_cmp(&b.1))
}

/// `g[B=0, T=5, H=1, K=3]`
fn element(program: &Program, slot: &Slot, tensor: &Tensor, at: usize) -> String {
    let axes = slot.axes.iter().map(|axis| program.axes[axis.index()].name.as_str());
    let names: Vec<&str> = slot.leading.letters().iter().copied().chain(axes).collect();
    let mut rest = at;
    let mut position = vec![0; tensor.shape.len()];
    for (index, &extent) in position.iter_mut().zip(&tensor.shape).rev() {
        *index = rest % extent;
        rest /= extent;
    }
    let position: Vec<String> = names.iter().zip(position).map(|(name, index)| format!("{name}={index}")).collect();
    format!("`{}`[{}]", slot.name, position.join(", "))
}

fn others(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " (and one more element)".to_owned(),
        count => format!(" (and {count} more elements)"),
    }
}

fn bound(value: f64) -> String {
    if value == f64::INFINITY {
        "inf".to_owned()
    } else if value == f64::NEG_INFINITY {
        "-inf".to_owned()
    } else {
        value.to_string()
    }
}
