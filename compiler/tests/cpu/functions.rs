//! Elementwise functions against float64, over the whole range and at the limits.

use super::native::{Native, checked, compile, levels};
use chunkwise_compiler::tile::interp::HostCall;
use chunkwise_compiler::tile::ir::Kernel;

/// Numbers tried in one run.
const N: usize = 4096;

fn elementwise(expr: &str) -> Kernel {
    checked(&format!(
        "kernel f {{ arg x : f32 head[{N}] read arg y : f32 head[{N}] read arg z : f32 head[{N}] write
           lanes i in 0 .. {N} {{ z[i] = {expr} }} }}"
    ))
}

fn apply(kernel: &Kernel, native: &Native, x: &[f64], y: &[f64]) -> Vec<f64> {
    let mut results = Vec::new();
    for (xs, ys) in x.chunks(N).zip(y.chunks(N)) {
        let mut call = HostCall::new(1, 1, 1);
        for (arg, values) in kernel.args.iter().zip([xs, ys, &[]]) {
            let mut data = values.to_vec();
            data.resize(N, 1.0);
            let tensor = call.dense(arg, 1, data);
            call.tensors.push(tensor);
        }
        native.run(kernel, &mut call);
        results.extend(&call.tensors[2].data[..xs.len()]);
    }
    results
}

/// Distance in units of the last place of float32 at the expected value.
fn ulps(found: f64, expected: f64) -> f64 {
    let (_, exponent) = libm::frexp(expected);
    (found - expected).abs() / (exponent.max(-125) as f64 - 24.0).exp2()
}

/// A dense sample: both signs, every size, and evenly spaced numbers up to `reach`.
fn sample(reach: f64) -> Vec<f64> {
    let mut numbers = Vec::new();
    for n in 0..40_000 {
        numbers.push(f64::from((reach * (f64::from(n) / 20_000.0 - 1.0)) as f32));
    }
    for n in 0..6_000 {
        let size = f64::from((f64::from(n) / 6_000.0 * 60.0 - 40.0).exp2() as f32);
        numbers.extend([size, -size]);
    }
    numbers.retain(|x| x.abs() <= reach);
    numbers
}

/// Compares a function with its float64 meaning where that is a normal number or zero; absolute slack is for results
/// near a zero of the function.
fn close(name: &str, reach: f64, budget: f64, slack: f64, meaning: impl Fn(f64) -> f64) {
    let kernel = elementwise(&format!("{name}(x[i])"));
    let x = sample(reach);
    for level in levels() {
        let native = compile(&kernel, level);
        let found = apply(&kernel, &native, &x, &x);
        let mut worst = (0.0, 0.0, 0.0);
        for (x, f) in x.iter().zip(&found) {
            let e = meaning(*x);
            let size = e.abs();
            if e.is_nan() || size > f64::from(f32::MAX) {
                continue;
            }
            if size < f64::from(f32::MIN_POSITIVE) {
                assert!(f.abs() <= 2.0 * f64::from(f32::MIN_POSITIVE), "{name}({x}) at {level:?} is {f}, not {e}");
                continue;
            }
            let distance = if (f - e).abs() <= slack { 0.0 } else { ulps(*f, e) };
            if distance > worst.0 || distance.is_nan() {
                worst = (distance, *x, *f);
            }
        }
        let (distance, x, f) = worst;
        println!("{name} at {level:?}: {distance:.2} ulp at {x:e}");
        assert!(distance <= budget, "{name}({x:e}) at {level:?} is {f:e}, not {:e}: {distance:.2} ulp", meaning(x));
    }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[test]
fn functions_are_close_to_their_meaning() {
    close("neg", 1e6, 0.0, 0.0, |x| -x);
    close("abs", 1e6, 0.0, 0.0, f64::abs);
    close("sign", 1e6, 0.0, 0.0, |x| if x == 0.0 { 0.0 } else { x.signum() });
    close("square", 1e6, 0.51, 0.0, |x| x * x);
    close("sqrt", 1e6, 0.51, 0.0, f64::sqrt);
    close("recip", 1e6, 0.51, 0.0, |x| 1.0 / x);
    // Just below the overflow the last power of two is left to the polynomial.
    close("exp", 88.3, 2.0, 0.0, f64::exp);
    close("exp", 88.7, 8.0, 0.0, f64::exp);
    close("expm1", 88.0, 3.0, 0.0, f64::exp_m1);
    close("log", 1e6, 2.0, 0.0, f64::ln);
    close("sigmoid", 90.0, 3.0, 0.0, |x| 1.0 / (1.0 + (-x).exp()));
    close("log_sigmoid", 90.0, 3.0, 0.0, |x| -softplus(-x));
    close("softplus", 90.0, 3.0, 0.0, softplus);
    close("tanh", 12.0, 3.0, 0.0, f64::tanh);
    close("sin", 10_000.0, 2.0, 1e-7, f64::sin);
    close("cos", 10_000.0, 2.0, 1e-7, f64::cos);
    close("erf", 6.0, 3.0, 0.0, libm::erf);
}

#[test]
fn functions_take_their_limits() {
    let inf = f64::INFINITY;
    let nan = f64::NAN;
    let huge = f64::from(f32::MAX);
    let cases: &[(&str, &[(f64, f64)])] = &[
        (
            "exp",
            &[(inf, inf), (-inf, 0.0), (100.0, inf), (-200.0, 0.0), (0.0, 1.0), (nan, nan), (huge, inf), (-huge, 0.0)],
        ),
        ("expm1", &[(inf, inf), (-inf, -1.0), (-200.0, -1.0), (0.0, 0.0), (nan, nan), (1e-30, 1e-30)]),
        ("log", &[(inf, inf), (0.0, -inf), (-1.0, nan), (-inf, nan), (1.0, 0.0), (nan, nan)]),
        ("sigmoid", &[(inf, 1.0), (-inf, 0.0), (0.0, 0.5), (100.0, 1.0), (-100.0, 0.0), (nan, nan)]),
        ("log_sigmoid", &[(inf, 0.0), (-inf, -inf), (-100.0, -100.0), (nan, nan)]),
        ("softplus", &[(inf, inf), (-inf, 0.0), (100.0, 100.0), (huge, huge), (nan, nan)]),
        ("tanh", &[(inf, 1.0), (-inf, -1.0), (50.0, 1.0), (0.0, 0.0), (nan, nan)]),
        ("erf", &[(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (nan, nan)]),
        ("sin", &[(0.0, 0.0), (inf, nan), (nan, nan)]),
        ("cos", &[(0.0, 1.0), (-inf, nan), (nan, nan)]),
        ("sqrt", &[(0.0, 0.0), (-1.0, nan), (inf, inf), (nan, nan)]),
        ("recip", &[(0.0, inf), (inf, 0.0), (nan, nan)]),
        ("sign", &[(inf, 1.0), (-inf, -1.0), (nan, nan)]),
        ("square", &[(inf, inf), (nan, nan), (1e30, inf)]),
        ("abs", &[(-inf, inf), (nan, nan)]),
    ];
    for (name, points) in cases {
        let kernel = elementwise(&format!("{name}(x[i])"));
        let x: Vec<f64> = points.iter().map(|p| p.0).collect();
        for level in levels() {
            let found = apply(&kernel, &compile(&kernel, level), &x, &x);
            for ((x, expected), found) in points.iter().zip(&found) {
                let same = found == expected || found.is_nan() && expected.is_nan();
                // Float32 rounds what is not a limit.
                let near = (found - expected).abs() <= 1e-6 * expected.abs();
                // The true value is below the normal range.
                let tiny = *expected == 0.0 && found.abs() < 1e-37;
                assert!(same || near || tiny, "{name}({x}) at {level:?} is {found}, not {expected}");
            }
        }
    }
}

#[test]
fn large_angles_keep_their_meaning() {
    let x: Vec<f64> = (1..4000).map(|n| f64::from((f64::from(n) * 1234.567) as f32)).collect();
    for level in levels() {
        for (name, meaning) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
            let kernel = elementwise(&format!("{name}(x[i])"));
            let found = apply(&kernel, &compile(&kernel, level), &x, &x);
            for (x, f) in x.iter().zip(&found) {
                assert!((f - meaning(*x)).abs() < 1e-6, "{name}({x}) at {level:?} is {f}");
            }
        }
    }
}

/// What a function of two values means.
type Meaning<'a> = &'a dyn Fn(f64, f64) -> f64;

#[test]
fn functions_of_two_values_agree() {
    let nan = f64::NAN;
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    for a in [-2.5, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0, 1e3] {
        for b in [-3.0, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.5, 7.0] {
            pairs.push((a, b));
        }
    }
    pairs.extend([(nan, 1.0), (1.5, nan), (nan, nan)]);
    let x: Vec<f64> = pairs.iter().map(|p| p.0).collect();
    let y: Vec<f64> = pairs.iter().map(|p| p.1).collect();
    let nan_if_any = |a: f64, b: f64, value: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { value };
    let cases: &[(&str, Meaning)] = &[
        ("x[i] + y[i]", &|a, b| a + b),
        ("x[i] - y[i]", &|a, b| a - b),
        ("x[i] * y[i]", &|a, b| a * b),
        ("x[i] / y[i]", &|a, b| a / b),
        ("min(x[i], y[i])", &|a, b| nan_if_any(a, b, a.min(b))),
        ("max(x[i], y[i])", &|a, b| nan_if_any(a, b, a.max(b))),
        ("pow(x[i], y[i])", &|a, b| a.powf(b)),
    ];
    for (text, meaning) in cases {
        let kernel = elementwise(text);
        for level in levels() {
            let found = apply(&kernel, &compile(&kernel, level), &x, &y);
            for ((a, b), found) in pairs.iter().zip(&found) {
                let expected = meaning(*a, *b);
                let same = *found == expected || found.is_nan() && expected.is_nan();
                // The error of a power grows with the size of its logarithm.
                assert!(
                    same || (found - expected).abs() <= 4e-6 * expected.abs(),
                    "{text} of {a}, {b} at {level:?} is {found}, not {expected}"
                );
            }
        }
    }
}
