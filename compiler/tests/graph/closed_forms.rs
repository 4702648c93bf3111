//! The interpreter against loops written out here.

use super::{Draw, assert_close, bundle, graph, run};
use chunkwise_compiler::graph::interp::{self, Extent, InterpError};
use chunkwise_compiler::tensor::{Bundle, Tensor};

/// Linear attention with a scalar decay after the read, a chunk of 4 tokens in 5 rows a step.
const CHUNKED: &str = "
graph decayed.chunkwise.forward {
  dim t : row 5  dim s : col 5  dim K : axis 0 2  dim V : axis 1 3
  step tokens=4 time=t
  %0 = token q : [t, K]
  %1 = token k : [t, K]
  %2 = token v : [t, V]
  %3 = token g : [t]
  %4 = carry S : [K, V]
  %5 = guard %3 0.0 : [t]
  %6 = guard %1 0.0 : [t, K]
  %7 = rename %6 t -> s : [s, K]
  %8 = contract %0 %7 over K : [t, s]
  %9 = segment t s diagonal gates (log %5) from 1 to 1 : [t, s]
  %10 = mul %8 %9 : [t, s]
  %11 = rename %2 t -> s : [s, V]
  %12 = contract %10 %11 over s : [t, V]
  %13 = boundary prefix t gates (log %5) from 1 to 1 : [t]
  %14 = contract %0 %4 over K : [t, V]
  %15 = mul %13 %14 : [t, V]
  %16 = add %12 %15 : [t, V]
  %17 = boundary suffix t gates (log %5) from 1 to 1 : [t]
  %18 = mul %17 %6 : [t, K]
  %19 = contract %18 %2 over t : [K, V]
  %20 = boundary total t gates (log %5) from 1 to 1 : []
  %21 = mul %20 %4 : [K, V]
  %22 = add %21 %19 : [K, V]
  carry S = %4 -> %22 init=init.S final=final.S layout [V, K]
  output out.o = %16
  save saved.S = %4
}";

/// What [`CHUNKED`] means, token by token: S ← eᵍ S + k v, o = q S. State laid out [V, K].
struct Naive {
    out: Vec<f64>,
    last: Vec<f64>,
    /// The state before every fourth token, laid out [K, V].
    saved: Vec<f64>,
}

fn naive(given: &Bundle, sequences: &[(usize, usize, usize)], length: usize, heads: usize, steps: usize) -> Naive {
    let mut found = Naive { out: vec![], last: vec![], saved: vec![] };
    found.out.resize(given["q"].shape[0] * length * heads * 3, 0.0);
    for (n, &(b, start, end)) in sequences.iter().enumerate() {
        for h in 0..heads {
            let read = |name: &str, t: usize, i: usize| {
                let tensor = &given[name];
                let own = tensor.shape[2];
                let inner: usize = tensor.shape[3..].iter().product();
                tensor.data[((b * length + t) * own + h * own / heads) * inner + i]
            };
            let mut state = [[0.0; 3]; 2];
            for (k, row) in state.iter_mut().enumerate() {
                for (v, x) in row.iter_mut().enumerate() {
                    *x = given.get("init.S").map_or(0.0, |init| init.data[((n * heads + h) * 3 + v) * 2 + k]);
                }
            }
            for t in start..end {
                if (t - start) % 4 == 0 {
                    let at = ((n * steps + (t - start) / 4) * heads + h) * 6;
                    found.saved.resize(found.saved.len().max(at + 6), 0.0);
                    found.saved[at..at + 6].copy_from_slice(state.as_flattened());
                }
                for v in 0..3 {
                    let mut o = 0.0;
                    for (k, row) in state.iter_mut().enumerate() {
                        row[v] = read("g", t, 0).exp() * row[v] + read("k", t, k) * read("v", t, v);
                        o += read("q", t, k) * row[v];
                    }
                    found.out[((b * length + t) * heads + h) * 3 + v] = o;
                }
            }
            let [first, second] = state;
            found.last.extend(first.into_iter().zip(second).flat_map(|(x, y)| [x, y]));
        }
    }
    found
}

/// Four heads; k and g are shared by two heads each, v by all.
fn inputs(draw: &mut Draw, batch: usize, length: usize) -> Bundle {
    bundle(vec![
        ("q", draw.tensor(&[batch, length, 4, 2], -1.0, 1.0)),
        ("k", draw.tensor(&[batch, length, 2, 2], -1.0, 1.0)),
        ("v", draw.tensor(&[batch, length, 1, 3], -1.0, 1.0)),
        ("g", draw.tensor(&[batch, length, 2], -1.0, 0.0)),
    ])
}

#[test]
fn chunks_equal_tokens() {
    let mut draw = Draw(21);
    let graph = graph(CHUNKED);
    for length in [0, 1, 3, 4, 5, 8, 11] {
        for start in [false, true] {
            let mut given = inputs(&mut draw, 2, length);
            if start {
                given.insert("init.S".into(), draw.tensor(&[2, 4, 3, 2], -1.0, 1.0));
            }
            let found = run(&graph, &given);
            let steps = length.div_ceil(4);
            let expected = naive(&given, &[(0, 0, length), (1, 0, length)], length, 4, steps);
            assert_eq!(found["out.o"].shape, [2, length, 4, 3]);
            assert_eq!(found["final.S"].shape, [2, 4, 3, 2]);
            assert_eq!(found["saved.S"].shape, [2, steps, 4, 2, 3]);
            assert_close(&found["out.o"].data, &expected.out, 1e-13);
            assert_close(&found["final.S"].data, &expected.last, 1e-13);
            assert_close(&found["saved.S"].data, &expected.saved, 1e-13);
        }
    }
}

#[test]
fn packed_sequences_start_anew() {
    let mut draw = Draw(22);
    let graph = graph(CHUNKED);
    let mut given = inputs(&mut draw, 1, 13);
    given.insert("init.S".into(), draw.tensor(&[3, 4, 3, 2], -1.0, 1.0));
    let extent = Extent::of(&[&graph], &given, None, Some(&[0, 6, 6, 13])).unwrap();
    let found = interp::run_over(&graph, &given, &extent).unwrap();
    let expected = naive(&given, &[(0, 0, 6), (0, 6, 6), (0, 6, 13)], 13, 4, 2);
    assert_close(&found["out.o"].data, &expected.out, 1e-13);
    assert_close(&found["final.S"].data, &expected.last, 1e-13);

    for wrong in [&[0, 6][..], &[1, 13], &[0, 7, 6, 13], &[]] {
        assert!(matches!(Extent::of(&[&graph], &given, None, Some(wrong)), Err(InterpError::Offsets(_))), "{wrong:?}");
    }
}

#[test]
fn a_token_graph_goes_token_by_token() {
    let text = "
graph decayed.token.forward {
  dim K : axis 0 2  dim V : axis 1 3
  step tokens=1
  %0 = token q : [K]
  %1 = token k : [K]
  %2 = token v : [V]
  %3 = token g : []
  %4 = carry S : [K, V]
  %5 = exp %3 : []
  %6 = mul %5 %4 : [K, V]
  %7 = mul %1 %2 : [K, V]
  %8 = add %6 %7 : [K, V]
  %9 = contract %0 %8 over K : [V]
  carry S = %4 -> %8 init=init.S final=final.S layout [V, K]
  output out.o = %9
}";
    let mut draw = Draw(23);
    let given = inputs(&mut draw, 2, 7);
    let found = run(&graph(text), &given);
    let expected = naive(&given, &[(0, 0, 7), (1, 0, 7)], 7, 4, 2);
    assert_close(&found["out.o"].data, &expected.out, 1e-13);
    assert_close(&found["final.S"].data, &expected.last, 1e-13);
}

/// A backward, in reverse: grad.x of y = a·x + Σ over earlier tokens of x, with a parameter, and heads that share.
#[test]
fn a_backward_goes_backwards_and_sums_over_what_is_shared() {
    let forward = "
graph sums.chunkwise.forward {
  dim t : row 2  dim s : col 2  dim R : axis 0 2  dim V : axis 1 2
  step tokens=2 time=t
  %0 = token x layout [V, R] : [t, R, V]
  %1 = head a : [V]
  %2 = carry n : [R, V]
  %3 = guard %0 0.0 : [t, R, V]
  %4 = segment t s gates () from 0 to 0 : [t, s]
  %5 = rename %3 t -> s : [s, R, V]
  %6 = contract %4 %5 over s : [t, R, V]
  %7 = add %2 %6 : [t, R, V]
  %8 = mul %1 %0 : [t, R, V]
  %9 = add %7 %8 : [t, R, V]
  %10 = sum %3 over t : [R, V]
  %11 = add %2 %10 : [R, V]
  carry n = %2 -> %11 init=init.n final=final.n
  output out.y = %9
  save saved.n = %2
}";
    let backward = "
graph sums.chunkwise.backward {
  dim t : row 2  dim s : col 2  dim R : axis 0 2  dim V : axis 1 2
  step tokens=2 time=t reverse
  %0 = token x layout [V, R] : [t, R, V]
  %1 = head a : [V]
  %2 = cotangent grad_out.y : [t, R, V]
  %3 = carry dn : [R, V]
  %4 = carry da : [V]
  %5 = mul %1 %2 : [t, R, V]
  %6 = segment t s gates () from 0 to 0 : [t, s]
  %7 = contract %6 %2 over t : [s, R, V]
  %8 = rename %7 s -> t : [t, R, V]
  %9 = add %5 %8 : [t, R, V]
  %10 = add %9 %3 : [t, R, V]
  %11 = sum %2 over t : [R, V]
  %12 = add %3 %11 : [R, V]
  %13 = mul %0 %2 : [t, R, V]
  %14 = sum %13 over t, R : [V]
  %15 = add %4 %14 : [V]
  %16 = saved saved.n : [R, V]
  %17 = broadcast %16 : [t, R, V]
  carry dn = %3 -> %12 init=grad_final.n final=grad_init.n
  carry da = %4 -> %15 final=grad.a
  output grad.x = %10
  output before = %17
}";
    let (batch, length, heads, own) = (2, 5, 4, 2);
    let mut draw = Draw(24);
    let given = bundle(vec![
        ("x", draw.tensor(&[batch, length, own, 2, 2], -1.0, 1.0)),
        ("a", draw.tensor(&[own, 2], -1.0, 1.0)),
        ("grad_out.y", draw.tensor(&[batch, length, heads, 2, 2], -1.0, 1.0)),
        ("grad_final.n", draw.tensor(&[batch, heads, 2, 2], -1.0, 1.0)),
    ]);
    let found = interp::run_backward(&graph(forward), &graph(backward), &given, None).unwrap();
    assert!(!found.contains_key("saved.n"));
    let (x, a, dy) = (&given["x"].data, &given["a"].data, &given["grad_out.y"].data);
    let dn = &given["grad_final.n"].data;
    let mut y = vec![0.0; dy.len()];
    let (mut dx, mut da, mut first) = (vec![0.0; x.len()], vec![0.0; a.len()], dn.clone());
    let mut before = vec![0.0; dy.len()];
    for b in 0..batch {
        for (h, r, v) in (0..heads).flat_map(|h| (0..2).flat_map(move |r| (0..2).map(move |v| (h, r, v)))) {
            let shared = h / 2;
            let at_x = |t: usize| ((b * length + t) * own + shared) * 4 + v * 2 + r;
            let at_y = |t: usize| ((b * length + t) * heads + h) * 4 + r * 2 + v;
            let at_n = (b * heads + h) * 4 + r * 2 + v;
            for t in 0..length {
                let earlier: f64 = (0..t).map(|s| x[at_x(s)]).sum();
                y[at_y(t)] = a[shared * 2 + v] * x[at_x(t)] + earlier;
                before[at_y(t)] = (0..t / 2 * 2).map(|s| x[at_x(s)]).sum();
                let later: f64 = (t + 1..length).map(|s| dy[at_y(s)]).sum();
                dx[at_x(t)] += a[shared * 2 + v] * dy[at_y(t)] + later + dn[at_n];
                da[shared * 2 + v] += x[at_x(t)] * dy[at_y(t)];
                first[at_n] += dy[at_y(t)];
            }
        }
    }
    assert_close(&found["out.y"].data, &y, 1e-13);
    assert_eq!(found["grad.x"].shape, given["x"].shape);
    assert_close(&found["grad.x"].data, &dx, 1e-13);
    assert_eq!(found["grad.a"].shape, given["a"].shape);
    assert_close(&found["grad.a"].data, &da, 1e-13);
    assert_close(&found["grad_init.n"].data, &first, 1e-13);
    assert_close(&found["before"].data, &before, 1e-13);

    let mut no_cotangents = given.clone();
    no_cotangents.retain(|name, _| !name.starts_with("grad"));
    let found = interp::run_backward(&graph(forward), &graph(backward), &no_cotangents, Some(heads)).unwrap();
    assert_eq!(found["grad.x"], Tensor::zeros(&given["x"].shape));
    assert_eq!(found["out.y"].shape, [batch, length, heads, 2, 2]);
}

/// h ← a h + x, swapped with m each token; per-row results in void rows.
#[test]
fn scans_go_over_real_rows_only() {
    for reverse in [false, true] {
        let word = if reverse { "reverse " } else { "" };
        let text = format!(
            "graph scans {{
  dim t : row 4  dim V : axis 0 2
  step tokens=3 time=t
  %0 = token x : [t, V]
  %1 = head a : [V]
  %2 = carry h : [V]
  %3 = carry m : [V]
  %4 = scan {word}t sequences (%0) invariants (%1) carries (%2, %3) {{
    %0 = given 0 : [V]
    %1 = given 1 : [V]
    %2 = given 2 : [V]
    %3 = given 3 : [V]
    %4 = mul %1 %2 : [V]
    %5 = add %4 %0 : [V]
    inputs (%0, %1, %2, %3) outputs (%3, %5, %2)
  }} : []
  %5 = result %4 0 : [V]
  %6 = result %4 1 : [V]
  %7 = result %4 2 : [t, V]
  %8 = sum %7 over t : [V]
  %9 = broadcast %8 : [t, V]
  carry h = %2 -> %5 init=init.h final=final.h
  carry m = %3 -> %6 final=final.m
  output all = %9
  output each = %7
}}"
        );
        let mut draw = Draw(25);
        let (length, heads) = (5, 2);
        let given = bundle(vec![
            ("x", draw.tensor(&[1, length, heads, 2], -1.0, 1.0)),
            ("a", draw.tensor(&[heads, 2], -1.0, 1.0)),
            ("init.h", draw.tensor(&[1, heads, 2], -1.0, 1.0)),
        ]);
        let found = run(&graph(&text), &given);
        for (h, v) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (mut now, mut other) = (given["init.h"].data[h * 2 + v], 0.0);
            for first in [0, 3] {
                let count = 3.min(length - first);
                let mut each = [0.0; 4];
                for turn in 0..count {
                    let t = if reverse { count - 1 - turn } else { turn };
                    each[t] = now;
                    let next = given["a"].data[h * 2 + v] * now + given["x"].data[((first + t) * heads + h) * 2 + v];
                    (now, other) = (other, next);
                }
                if !reverse {
                    let last = each[count - 1];
                    each[count..].fill(last);
                }
                for t in 0..count {
                    let at = ((first + t) * heads + h) * 2 + v;
                    assert_close(&found["each"].data[at..=at], &each[t..=t], 1e-14);
                    assert_close(&found["all"].data[at..=at], &[each.iter().sum()], 1e-14);
                }
            }
            assert_close(&found["final.h"].data[h * 2 + v..=h * 2 + v], &[now], 1e-14);
            assert_close(&found["final.m"].data[h * 2 + v..=h * 2 + v], &[other], 1e-14);
        }
    }
}

#[test]
fn rearrangements_put_every_element_where_it_belongs() {
    // Rows of 4 as 2 blocks of 2; ranks put V before K, so canonical order is not the order of declaration.
    let text = "
graph moves {
  dim j : slot 2  dim b : block 2  dim t : row 4  dim i : row 2  dim s : col 4  dim K : axis 1 3  dim V : axis 0 2
  step tokens=4 time=t
  %0 = token x : [t, V, K]
  %1 = split %0 t -> b, i : [b, i, V, K]
  %2 = merge %1 b, i -> t : [t, V, K]
  %3 = index %0 K at 2 : [t, V]
  %4 = index %0 K at 0 : [t, V]
  %5 = stack j (%3, _) : [j, t, V]
  %6 = index %5 j at 0 : [t, V]
  %7 = index %5 j at 1 : [t, V]
  %8 = diagonal %3 t s : [t, s, V]
  %9 = diagonal_part %8 t s : [t, V]
  %10 = sum %8 over s : [t, V]
  %11 = max_over %0 over K : [t, V]
  %12 = select lt %3 %4 %3 %4 : [t, V]
  %13 = index %1 i at 1 : [b, V, K]
  %14 = merge %13 b, V -> s : [s, K]
  %15 = sum %14 over K : [s]
  %16 = rename %15 s -> t : [t]
  %17 = sum %8 over t : [s, V]
  %18 = rename %17 s -> t : [t, V]
  output whole = %2
  output first = %6
  output none = %7
  output diagonal = %9
  output row_sums = %10
  output col_sums = %18
  output largest = %11
  output smaller = %12
  output merged = %16
}";
    // b·V must have 4 positions: b 2, V 2.
    let mut draw = Draw(26);
    let given = bundle(vec![("x", draw.tensor(&[1, 4, 1, 2, 3], -1.0, 1.0))]);
    let found = run(&graph(text), &given);
    let x = |t: usize, v: usize, k: usize| given["x"].data[(t * 2 + v) * 3 + k];
    assert_eq!(found["whole"].data, given["x"].data);
    for (t, v) in (0..4).flat_map(|t| [(t, 0), (t, 1)]) {
        let at = t * 2 + v;
        for name in ["first", "diagonal", "row_sums", "col_sums"] {
            assert_eq!(found[name].data[at], x(t, v, 2), "{name}");
        }
        assert_eq!(found["none"].data[at], 0.0);
        assert_eq!(found["largest"].data[at], x(t, v, 0).max(x(t, v, 1)).max(x(t, v, 2)));
        assert_eq!(found["smaller"].data[at], x(t, v, 2).min(x(t, v, 0)));
        // Block b, its second row, V as it comes: row b·2 + v of the merged dimension.
        let (b, v) = (t / 2, t % 2);
        assert_close(&found["merged"].data[t..=t], &[(0..3).map(|k| x(b * 2 + 1, v, k)).sum()], 1e-15);
    }
}

#[test]
fn functions_have_their_values() {
    use chunkwise_compiler::graph::ir::{Binary, Unary};
    for x in [-30.0, -2.5, -0.5, 0.5, 1.0, 3.0, 30.0f64] {
        for (function, expected) in [
            (Unary::Neg, -x),
            (Unary::Exp, x.exp()),
            (Unary::Expm1, x.exp() - 1.0),
            (Unary::Recip, 1.0 / x),
            (Unary::Abs, (x * x).sqrt()),
            (Unary::Sign, x / x.abs()),
            (Unary::Square, x * x),
            (Unary::Sigmoid, 0.5 + 0.5 * (x / 2.0).tanh()),
            (Unary::LogSigmoid, -(1.0 + (-x).exp()).ln()),
            (Unary::Softplus, (1.0 + x.exp()).ln()),
            (Unary::Tanh, (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
            (Unary::Sin, (x - std::f64::consts::FRAC_PI_2).cos()),
            (Unary::Cos, (x + std::f64::consts::FRAC_PI_2).sin()),
        ] {
            assert_close(&[function.apply(x)], &[expected], 1e-12);
        }
    }
    assert_close(&[Unary::Erf.apply(0.5), Unary::Erf.apply(-2.0)], &[0.5204998778130465, -0.9953222650189527], 1e-15);
    assert_eq!(Unary::Log.apply(4.0), 2.0 * 2.0f64.ln());
    assert_eq!([Unary::Sqrt.apply(9.0), Unary::Sign.apply(0.0), Unary::Recip.apply(0.0)], [3.0, 0.0, f64::INFINITY]);
    assert_eq!([Unary::Softplus.apply(800.0), Unary::LogSigmoid.apply(-800.0)], [800.0, -800.0]);
    assert!(Binary::Min.apply(1.0, f64::NAN).is_nan() && Binary::Max.apply(f64::NAN, 1.0).is_nan());
    assert_eq!(
        [Binary::Min.apply(1.0, 2.0), Binary::Max.apply(1.0, 2.0), Binary::Pow.apply(2.0, 3.0)],
        [1.0, 2.0, 8.0]
    );
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    let mut draw = Draw(27);
    let graph = graph(CHUNKED);
    let given = inputs(&mut draw, 2, 5);
    let refused = |change: &dyn Fn(&mut Bundle)| {
        let mut given = given.clone();
        change(&mut given);
        interp::run(&graph, &given, None).unwrap_err().to_string()
    };
    assert_eq!(refused(&|given| drop(given.shift_remove("k"))), "tensor `k` is missing");
    for (name, shape) in [
        ("k", vec![2, 5, 3, 2]),
        ("k", vec![2, 5, 0, 2]),
        ("g", vec![2, 4, 2]),
        ("v", vec![2, 5, 3]),
        ("v", vec![2, 5, 1, 2]),
        ("init.S", vec![2, 4, 2, 3]),
        ("init.S", vec![2, 2, 3, 2]),
    ] {
        let message = refused(&|given| drop(given.insert(name.into(), Tensor::zeros(&shape))));
        assert!(message.starts_with(&format!("tensor `{name}` has shape {shape:?}, expected")), "{message}");
    }
    assert!(refused(&|given| given.clear()).contains("no tensor given says how many tokens"));
}
