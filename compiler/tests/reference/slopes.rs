//! Every function of the language: its derivative against finite differences, its value and slope where the derivative
//! does not exist against the conventions.

use chunkwise_compiler::reference::{run, run_backward};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Binary, Reduce, TensorKind, Unary};

use crate::builder::{Builder, at};
use crate::draw::{bundle, check_gradients};
use crate::examples::{EVERYTHING, MECHANISMS, mechanism, program};

/// The function after this one, so that a new one cannot be forgotten here.
fn next_unary(function: Unary) -> Option<Unary> {
    Some(match function {
        Unary::Neg => Unary::Exp,
        Unary::Exp => Unary::Exp2,
        Unary::Exp2 => Unary::Log,
        Unary::Log => Unary::Sqrt,
        Unary::Sqrt => Unary::Abs,
        Unary::Abs => Unary::Sign,
        Unary::Sign => Unary::Sigmoid,
        Unary::Sigmoid => Unary::LogSigmoid,
        Unary::LogSigmoid => Unary::Softplus,
        Unary::Softplus => Unary::Silu,
        Unary::Silu => Unary::Tanh,
        Unary::Tanh => Unary::Elu,
        Unary::Elu => Unary::Relu,
        Unary::Relu => Unary::Gelu,
        Unary::Gelu => Unary::Sin,
        Unary::Sin => Unary::Cos,
        Unary::Cos => Unary::Square,
        Unary::Square => return None,
    })
}

fn next_binary(function: Binary) -> Option<Binary> {
    Some(match function {
        Binary::Add => Binary::Sub,
        Binary::Sub => Binary::Mul,
        Binary::Mul => Binary::Div,
        Binary::Div => Binary::Pow,
        Binary::Pow => Binary::Min,
        Binary::Min => Binary::Max,
        Binary::Max => return None,
    })
}

fn next_reduce(function: Reduce) -> Option<Reduce> {
    Some(match function {
        Reduce::Sum => Reduce::Mean,
        Reduce::Mean => Reduce::Max,
        Reduce::Max => Reduce::Softmax,
        Reduce::Softmax => Reduce::L2Norm,
        Reduce::L2Norm => return None,
    })
}

#[test]
fn every_mechanism_has_the_gradient_of_its_values() {
    for (seed, name) in MECHANISMS.into_iter().enumerate() {
        let program = mechanism(name);
        let sizes: Vec<(&str, usize)> = program.axes.iter().map(|axis| (axis.name.as_str(), 2)).collect();
        let instance = at(&program, &sizes);
        check_gradients(name, &instance, &bundle(&instance, [2, 3, 2], -0.9, 0.9, seed as u64));
    }
}

#[test]
fn a_program_with_everything_has_the_gradient_of_its_values() {
    // Not the input behind its `stop_gradient`: a finite difference sees through that.
    let program = program(&EVERYTHING.replace("stop_gradient", ""));
    let instance = at(&program, &[("K", 3), ("V", 2), ("L", 3), ("H", 2)]);
    check_gradients("everything", &instance, &bundle(&instance, [1, 2, 1], 0.1, 0.9, 0));
}

#[test]
fn every_unary_function_has_the_slope_of_its_values() {
    for function in std::iter::successors(Some(Unary::Neg), |&function| next_unary(function)) {
        let mut b = Builder::new(&["K", "V"]);
        let x = b.input("x", &["V", "K"]);
        let s = b.state("s", &["K", "V"]);
        let half = b.number(0.5);
        let before = b.read(s);
        let kept = b.binary(Binary::Mul, half, before);
        let y = b.unary(function, x);
        let after = b.binary(Binary::Add, kept, y);
        let update = b.update(s, after);
        let now = b.read(s);
        let read = b.binary(Binary::Mul, now, x);
        let output = b.output("o", &["V", "K"], read);
        b.program.body = vec![update, output];
        let instance = at(&b.program, &[("K", 3), ("V", 2)]);
        // Some functions have no value below 0; the others are tried on both sides.
        let positive_only = matches!(function, Unary::Log | Unary::Sqrt);
        let sides: &[(f64, f64)] = if positive_only { &[(0.2, 2.0)] } else { &[(0.2, 3.0), (-3.0, -0.2)] };
        for (seed, &(lo, hi)) in sides.iter().enumerate() {
            check_gradients(&format!("{function:?}"), &instance, &bundle(&instance, [1, 2, 2], lo, hi, seed as u64));
        }
    }
}

#[test]
fn every_binary_function_has_the_slopes_of_its_values() {
    // Operands on the same axes, on different ones, and without any: each way to broadcast.
    let shapes: [(&[&str], &[&str]); 5] =
        [(&["K"], &["K"]), (&["K"], &["V"]), (&["V", "K"], &["K"]), (&[], &["K"]), (&["K", "V"], &[])];
    for function in std::iter::successors(Some(Binary::Add), |&function| next_binary(function)) {
        for (seed, (left, right)) in shapes.iter().enumerate() {
            let mut b = Builder::new(&["K", "V"]);
            let x = b.input("x", left);
            let y = b.tensor(TensorKind::Param, "y", right);
            let s = b.state("s", &["V", "K"]);
            let before = b.read(s);
            let combined = b.binary(function, x, y);
            let after = b.binary(Binary::Mul, before, combined);
            let update = b.update(s, after);
            let output = b.output("o", &["V", "K"], combined);
            b.program.body = vec![update, output];
            let instance = at(&b.program, &[("K", 3), ("V", 2)]);
            check_gradients(
                &format!("{function:?} of {left:?} and {right:?}"),
                &instance,
                &bundle(&instance, [2, 2, 1], 0.3, 1.7, seed as u64),
            );
        }
    }
}

#[test]
fn every_reduction_has_the_slopes_of_its_values() {
    for function in std::iter::successors(Some(Reduce::Sum), |&function| next_reduce(function)) {
        for (seed, axis) in ["K", "V", "N"].into_iter().enumerate() {
            let mut b = Builder::new(&["K", "V", "N"]);
            let x = b.input("x", &["V", "N", "K"]);
            let s = b.state("s", &["K", "N", "V"]);
            let reduced = b.reduce(function, x, axis);
            let before = b.read(s);
            let after = b.binary(Binary::Mul, before, reduced);
            let update = b.update(s, after);
            let now = b.read(s);
            let output = b.output("o", &["K", "V", "N"], now);
            b.program.body = vec![update, output];
            let instance = at(&b.program, &[("K", 3), ("V", 2), ("N", 4)]);
            check_gradients(
                &format!("{function:?} over {axis}"),
                &instance,
                &bundle(&instance, [1, 2, 1], -1.0, 1.0, seed as u64),
            );
        }
    }
}

/// `o = f(x)` for one element a token; values and gradients under cotangents of one.
fn trace(build: impl Fn(&mut Builder) -> chunkwise_dsl::program::ExprId, columns: &[(&str, &[f64])]) -> Bundle {
    let mut b = Builder::new(&[]);
    let value = build(&mut b);
    let output = b.output("o", &[], value);
    b.program.body = vec![output];
    let instance = at(&b.program, &[]);
    let mut tensors = Bundle::new();
    for (name, column) in columns {
        tensors.insert(name.to_string(), Tensor { shape: vec![1, column.len(), 1], data: column.to_vec() });
    }
    let n_tokens = columns[0].1.len();
    tensors.insert("grad_out.o".to_string(), Tensor::from_fn(&[1, n_tokens, 1], |_| 1.0));
    run_backward(&instance, &tensors).expect("the columns fit")
}

#[test]
fn kinks_have_the_slopes_that_were_agreed() {
    let of = |function: Unary| {
        move |b: &mut Builder| {
            let x = b.input("x", &[]);
            b.unary(function, x)
        }
    };
    let x = [("x", [-2.0, -0.0, 0.0, 2.0].as_slice())];
    assert_eq!(trace(of(Unary::Abs), &x)["grad.x"].data, [-1.0, 0.0, 0.0, 1.0]);
    assert_eq!(trace(of(Unary::Relu), &x)["grad.x"].data, [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(trace(of(Unary::Sign), &x)["out.o"].data, [-1.0, 0.0, 0.0, 1.0]);
    assert_eq!(trace(of(Unary::Sign), &x)["grad.x"].data, [0.0; 4]);

    let columns = [("x", [1.0, 2.0, 3.0].as_slice()), ("y", [2.0, 2.0, 2.0].as_slice())];
    for (function, values, x_slopes) in
        [(Binary::Max, [2.0, 2.0, 3.0], [0.0, 0.5, 1.0]), (Binary::Min, [1.0, 2.0, 2.0], [1.0, 0.5, 0.0])]
    {
        let results = trace(
            |b| {
                let (x, y) = (b.input("x", &[]), b.input("y", &[]));
                b.binary(function, x, y)
            },
            &columns,
        );
        assert_eq!(results["out.o"].data, values);
        assert_eq!(results["grad.x"].data, x_slopes);
        assert_eq!(results["grad.y"].data, x_slopes.map(|slope| 1.0 - slope));
    }
}

#[test]
fn powers_of_zero_have_finite_slopes() {
    let columns = [("x", [0.0, 0.0, 3.0].as_slice()), ("y", [2.0, 0.0, 0.0].as_slice())];
    let results = trace(
        |b| {
            let (x, y) = (b.input("x", &[]), b.input("y", &[]));
            b.binary(Binary::Pow, x, y)
        },
        &columns,
    );
    assert_eq!(results["out.o"].data, [0.0, 1.0, 1.0]);
    assert_eq!(results["grad.x"].data, [0.0, 0.0, 0.0]);
    assert_eq!(results["grad.y"].data, [0.0, 0.0, 3.0f64.ln()]);
}

#[test]
fn a_tied_maximum_splits_its_gradient() {
    let mut b = Builder::new(&["K"]);
    let x = b.input("x", &["K"]);
    let top = b.reduce(Reduce::Max, x, "K");
    let output = b.output("o", &[], top);
    b.program.body = vec![output];
    let instance = at(&b.program, &[("K", 4)]);
    let mut tensors = Bundle::new();
    tensors.insert("x".to_string(), Tensor { shape: vec![1, 1, 1, 4], data: vec![5.0, 1.0, 5.0, 5.0] });
    tensors.insert("grad_out.o".to_string(), Tensor { shape: vec![1, 1, 1], data: vec![6.0] });
    let results = run_backward(&instance, &tensors).unwrap();
    assert_eq!(results["out.o"].data, [5.0]);
    assert_eq!(results["grad.x"].data, [2.0, 0.0, 2.0, 2.0]);
}

#[test]
fn functions_keep_their_digits_far_from_zero() {
    // Exact values to double precision, from the defining series: e⁻⁴⁰, and its sums with 1 and 40.
    let tiny = (-40.0f64).exp();
    let value = |function: Unary, x: f64| {
        let results = trace(
            |b| {
                let x = b.input("x", &[]);
                b.unary(function, x)
            },
            &[("x", &[x])],
        );
        (results["out.o"].data[0], results["grad.x"].data[0])
    };
    for (function, x, expected, slope) in [
        (Unary::Sigmoid, -40.0, tiny, tiny),
        (Unary::Sigmoid, 40.0, 1.0, tiny),
        (Unary::LogSigmoid, 40.0, -tiny, tiny),
        (Unary::LogSigmoid, -40.0, -40.0, 1.0),
        (Unary::Softplus, -40.0, tiny, tiny),
        (Unary::Softplus, 800.0, 800.0, 1.0),
        (Unary::Sigmoid, -800.0, 0.0, 0.0),
        (Unary::Silu, -40.0, -40.0 * tiny, -39.0 * tiny),
        (Unary::Elu, -1e-20, -1e-20, 1.0),
        (Unary::Tanh, 20.0, 1.0, 4.0 * tiny),
        // Φ(−6) = 9.865876450376946e-10, and the density there is e⁻¹⁸ / √(2π).
        (
            Unary::Gelu,
            -6.0,
            -6.0 * 9.865876450376946e-10,
            9.865876450376946e-10 - 6.0 * (-18.0f64).exp() / std::f64::consts::TAU.sqrt(),
        ),
    ] {
        let (found, found_slope) = value(function, x);
        assert!((found - expected).abs() <= 1e-14 * expected.abs(), "{function:?}({x}) is {found}, not {expected}");
        assert!(
            (found_slope - slope).abs() <= 1e-14 * slope.abs(),
            "the slope of {function:?} at {x} is {found_slope}, not {slope}"
        );
    }
}

#[test]
fn not_a_number_goes_through_every_function() {
    let column = [("x", [f64::NAN].as_slice())];
    for function in std::iter::successors(Some(Unary::Neg), |&function| next_unary(function)) {
        let results = trace(
            |b| {
                let x = b.input("x", &[]);
                b.unary(function, x)
            },
            &column,
        );
        assert!(results["out.o"].data[0].is_nan(), "{function:?}");
    }
    for function in std::iter::successors(Some(Binary::Add), |&function| next_binary(function)) {
        for swapped in [false, true] {
            let mut b = Builder::new(&[]);
            let (x, one) = (b.input("x", &[]), b.number(2.0));
            let (lhs, rhs) = if swapped { (one, x) } else { (x, one) };
            let value = b.binary(function, lhs, rhs);
            let output = b.output("o", &[], value);
            b.program.body = vec![output];
            let mut tensors = Bundle::new();
            tensors.insert("x".to_string(), Tensor { shape: vec![1, 1, 1], data: vec![f64::NAN] });
            let results = run(&at(&b.program, &[]), &tensors).unwrap();
            assert!(
                results["out.o"].data[0].is_nan(),
                "{function:?} with NaN {}",
                if swapped { "right" } else { "left" }
            );
        }
    }
    for function in std::iter::successors(Some(Reduce::Sum), |&function| next_reduce(function)) {
        let mut b = Builder::new(&["K"]);
        let x = b.input("x", &["K"]);
        let reduced = b.reduce(function, x, "K");
        let total = match function {
            Reduce::Sum | Reduce::Mean | Reduce::Max => reduced,
            Reduce::Softmax | Reduce::L2Norm => b.reduce(Reduce::Sum, reduced, "K"),
        };
        let output = b.output("o", &[], total);
        b.program.body = vec![output];
        let mut tensors = Bundle::new();
        tensors.insert("x".to_string(), Tensor { shape: vec![1, 1, 1, 3], data: vec![1.0, f64::NAN, 2.0] });
        let results = run(&at(&b.program, &[("K", 3)]), &tensors).unwrap();
        assert!(results["out.o"].data[0].is_nan(), "{function:?}");
    }
}
