//! What tile programs compute, against plain loops.

use crate::kernels::{CHUNKWISE, EVERYTHING, RECURRENT};
use chunkwise_compiler::tile::interp::{HostCall, run};
use chunkwise_compiler::tile::ir::Kernel;
use chunkwise_compiler::tile::text::parse;
use chunkwise_compiler::tile::verify::verify;

/// Numbers without a pattern, the same in every run.
struct Numbers(u64);
impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    }
    fn take(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.next()).collect()
    }
}

fn checked(text: &str) -> Kernel {
    let kernel = parse(text).unwrap();
    verify(&kernel).unwrap_or_else(|error| panic!("{error}"));
    kernel
}

/// A call with dense tensors; `heads` by argument name, where it is not the call's.
fn call_with(kernel: &Kernel, mut call: HostCall, heads: &[(&str, usize)], numbers: &mut Numbers) -> HostCall {
    for arg in &kernel.args {
        let heads = heads.iter().find(|(name, _)| *name == arg.name).map_or(call.heads, |(_, heads)| *heads);
        let data = numbers.take(call.dense_elements(arg, heads));
        let tensor = call.dense(arg, heads, data);
        call.tensors.push(tensor);
    }
    call
}

/// Linear attention with K = 3, V = 2: outputs and final states, from dense tensors.
fn linear_attention(call: &HostCall, ranges: &[(usize, usize)]) -> (Vec<f64>, Vec<f64>) {
    let [q, k, v, init] = [0, 1, 2, 3].map(|i| &call.tensors[i]);
    let heads = call.heads;
    let mut o = vec![f64::NAN; call.total_tokens() * heads * 2];
    let mut last = vec![f64::NAN; call.sequences * heads * 6];
    for (n, (start, end)) in ranges.iter().enumerate() {
        for h in 0..heads {
            let own = |tensor: &chunkwise_compiler::tile::interp::HostArg| h / (heads / tensor.heads);
            let at = (n * init.heads + own(init)) * 6;
            let mut state: Vec<f64> = init.data[at..at + 6].to_vec();
            for t in *start..*end {
                for i in 0..3 {
                    for j in 0..2 {
                        let key = k.data[(t * k.heads + own(k)) * 3 + i];
                        state[i * 2 + j] += key * v.data[(t * v.heads + own(v)) * 2 + j];
                    }
                }
                for j in 0..2 {
                    let query = |i: usize| q.data[(t * q.heads + own(q)) * 3 + i];
                    o[(t * heads + h) * 2 + j] = (0..3).map(|i| query(i) * state[i * 2 + j]).sum();
                }
            }
            last[(n * heads + h) * 6..(n * heads + h) * 6 + 6].copy_from_slice(&state);
        }
    }
    (o, last)
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12, "element {at}: {a} instead of {b}");
    }
}

#[test]
fn both_forms_of_linear_attention_agree_with_a_loop() {
    let mut numbers = Numbers(1);
    for text in [RECURRENT, CHUNKWISE] {
        let kernel = checked(text);
        for length in 0..10 {
            for (sequences, heads) in [(1, 1), (2, 4), (0, 1)] {
                let grouped = if heads == 4 { vec![("k", 2), ("v", 1)] } else { vec![] };
                let mut call = call_with(&kernel, HostCall::new(sequences, length, heads), &grouped, &mut numbers);
                run(&kernel, &mut call).unwrap();
                let ranges: Vec<_> = (0..sequences).map(|n| (n * length, (n + 1) * length)).collect();
                let (o, last) = linear_attention(&call, &ranges);
                assert_close(&call.tensors[4].data, &o);
                assert_close(&call.tensors[5].data, &last);
            }
        }
    }
}

#[test]
fn packed_sequences_keep_to_themselves() {
    let mut numbers = Numbers(2);
    for text in [RECURRENT, CHUNKWISE] {
        let kernel = checked(text);
        let offsets = vec![0, 5, 5, 6, 14];
        let mut call = call_with(&kernel, HostCall::packed(offsets, 3), &[], &mut numbers);
        run(&kernel, &mut call).unwrap();
        let (o, last) = linear_attention(&call, &[(0, 5), (5, 5), (5, 6), (6, 14)]);
        assert_close(&call.tensors[4].data, &o);
        assert_close(&call.tensors[5].data, &last);
    }
}

#[test]
fn chunk_slots_hold_the_state_before_each_chunk() {
    let mut numbers = Numbers(3);
    let kernel = checked(CHUNKWISE);
    let mut call = call_with(&kernel, HostCall::packed(vec![0, 6, 11], 1), &[], &mut numbers);
    run(&kernel, &mut call).unwrap();
    let (init, saved) = (&call.tensors[3].data, &call.tensors[6].data);
    // Sequence 0 has slots 0 and 1, sequence 1 starts at slot 6 / 4 + 1 = 2.
    assert_eq!(&saved[0..6], &init[0..6]);
    assert_eq!(&saved[12..18], &init[6..12]);
    // A prefix of a sequence ends in the state that was saved there.
    let mut prefix = HostCall::new(1, 4, 1);
    for (arg, tensor) in kernel.args.iter().zip(&call.tensors) {
        let mut tensor = tensor.clone();
        if arg.name == "saved.S" {
            tensor.data.truncate(12);
        }
        prefix.tensors.push(tensor);
    }
    run(&kernel, &mut prefix).unwrap();
    assert_close(&prefix.tensors[5].data[0..6], &saved[6..12]);
}

#[test]
fn every_statement_does_what_it_says() {
    let kernel = checked(EVERYTHING);
    for length in [0, 1, 4, 6] {
        let mut call = call_with(&kernel, HostCall::new(1, length, 1), &[], &mut Numbers(4));
        call.tensors[2].data[0] = 0.75;
        if length > 1 {
            call.tensors[0].data[7] = 0.0;
        }
        run(&kernel, &mut call).unwrap();
        let [x, g, w, u, y, peak, last] = [0, 1, 2, 3, 4, 5, 6].map(|i| call.tensors[i].data.clone());
        let a: Vec<f64> = u.iter().map(|u| u - (1.0 - 2.0) / (-3.5 * 4e-7)).collect();
        let dot: f64 = (0..5).map(|f| a[f] * a[5 + f]).sum();
        let expected = if dot < w[0] { dot.max(1.0) } else { w[0] };
        assert_close(&peak, &[expected]);
        for t in 0..length {
            for l in 0..5 {
                let gate = g[0].powf(2.0) + w[0].sin() * w[0].cos() + libm::erf(w[0]);
                let first =
                    gate * x[l] + a[l] * if l == 0 { 1.0 } else { 0.25 } + a[5 + l] * if l <= 2 { 1.0 } else { 0.25 };
                let other = if x[t * 5 + l] == 0.0 { 1.0 } else { x[t * 5 + l] };
                let expected = if t == 0 { first } else { other };
                assert!((y[t * 5 + l] - expected).abs() <= 1e-9 * expected.abs(), "{} {expected}", y[t * 5 + l]);
            }
        }
        for c in 0..length.div_ceil(3) {
            assert_eq!(last[c], g[(3 * c + 2).min(length - 1)]);
        }
    }
}

/// Runs a kernel that writes `y[n]`, one value a head, and gives `y`.
fn head_values(body: &str, n: usize) -> Vec<f64> {
    let kernel = checked(&format!("kernel k {{ arg y : f32 head[{n}] write {body} }}"));
    let mut call = call_with(&kernel, HostCall::new(1, 0, 1), &[], &mut Numbers(5));
    run(&kernel, &mut call).unwrap();
    call.tensors.remove(0).data
}

#[test]
fn products_update_as_they_are_told() {
    let fill = "buf %a : [3, 2] buf %b : [2, 3] buf %c : [3, 3]
        for i in 0 .. 3 { %a[i, 0] = 1 %a[i, 1] = 10 if i == 1 { %a[i, 0] = 2 } }
        for i in 0 .. 3 { %b[0, i] = 3 %b[1, i] = 5 }
        for i in 0 .. 3 { for j in 0 .. 3 { %c[i, j] = 1000 } }";
    let out = "for i in 0 .. 3 { for j in 0 .. 3 { y[i] = %c[i, 1] } }";
    let value = |product: &str| head_values(&format!("{fill} {product} {out}"), 3);
    assert_eq!(value("matmul %c[3, 3] = %a[3, 2] * %b[2, 3]"), [53.0, 56.0, 53.0]);
    assert_eq!(value("matmul %c[3, 3] += %a[3, 2] * %b[2, 3]"), [1053.0, 1056.0, 1053.0]);
    assert_eq!(value("matmul %c[3, 3] -= %a[3, 2] * %b[2, 3]"), [947.0, 944.0, 947.0]);
    assert_eq!(value("matmul %c[3, 3] = %a[3, 0] * %b[0, 3]"), [0.0, 0.0, 0.0]);
    // Left operand transposed: rows of %b are its columns.
    assert_eq!(value("matmul %c[3, 3] = %b[3, 2 step 1, 16] * %b[2, 3]"), [34.0, 34.0, 34.0]);
    // A block: rows 1 and 2, columns 1 and 2, from the second column of %a and the second row of %b.
    assert_eq!(value("matmul %c[2, 2 at 17] = %a[2, 1 at 17] * %b[1, 2 at 17]"), [1000.0, 50.0, 50.0]);
    // A contraction whose length grows with a loop.
    assert_eq!(value("for r in 0 .. 3 { matmul %c[1, 2 at 16*r] = %b[1, r] * %b[r, 2 step 1, 1] }"), [0.0, 9.0, 18.0]);
    let lower = value("matmul %c[3, 3] = %a[3, 2] * %b[2, 3] lower");
    assert!(lower[0].is_nan(), "column 1 lies above the diagonal in row 0");
    assert_eq!(lower[1..], [56.0, 53.0]);
}

#[test]
fn reductions_and_loops_keep_their_order() {
    assert_eq!(head_values("y[0] = 0.0 for i in 0 .. 3 { y[0] = 1.0 }", 1), [1.0]);
    let digits = |order: &str| {
        let body = format!(
            "local x = 0 for i in {order} 1 .. min(4, 9) {{ local d = 0 for j in 0 .. i {{ d = d + 1 }} x = 10*x + d }} y[0] = x"
        );
        head_values(&body, 1)[0]
    };
    assert_eq!(digits(""), 123.0);
    assert_eq!(digits("reverse"), 321.0);
    let reduce = "buf %a : [3] buf %m : [2] %a[0] = 2 %a[1] = -7 %a[2] = 4 %m[0] = 100 %m[1] = 1";
    let both = "%m[0] += sum i in 0 .. 3 of %a[i] %m[1] += max i in 0 .. 2 of %a[i] y[0] = %m[0] y[1] = %m[1]";
    assert_eq!(head_values(&format!("{reduce} {both}"), 2), [99.0, 2.0]);
    let nan = head_values(&format!("{reduce} %a[1] = nan %m[0] = max i in 0 .. 3 of %a[i] y[0] = %m[0]"), 1);
    assert!(nan[0].is_nan());
}

#[test]
fn what_was_never_written_is_not_a_number() {
    // The verifier only sees that some element is written above; here it is another one.
    assert!(head_values("buf %a : [2] %a[0] = 1 y[0] = %a[1]", 1)[0].is_nan());
    let kernel = checked("kernel k { arg y : f32 head[2] write y[0] = 1 }");
    let mut call = call_with(&kernel, HostCall::new(1, 0, 1), &[], &mut Numbers(6));
    run(&kernel, &mut call).unwrap();
    assert!(call.tensors[0].data[1].is_nan());
}

#[test]
fn a_broken_promise_or_a_wrong_call_is_an_error() {
    let fails = |text: &str, call: HostCall| {
        let kernel = parse(text).unwrap();
        let mut call = call_with(&kernel, call, &[], &mut Numbers(7));
        run(&kernel, &mut call).unwrap_err().to_string()
    };
    let one = || HostCall::new(1, 3, 1);
    let triangle = "kernel k { buf %a : [2, 2] buf %c : [2, 2]
        for i in 0 .. 2 { %a[i, 0] = 1 %a[i, 1] = 1 } matmul %c[2, 2] = %a[2, 2] * %a[2, 2] lower_left }";
    assert_eq!(
        fails(triangle, one()),
        "element (0, 1) of the left operand is 1, promised to be 0\n  \
         in `matmul %c[2, 2] = %a[2, 2] * %a[2, 2] lower_left`\n  at sequence 0, head 0"
    );
    let outside = "kernel k { arg q : f32 token[2] read buf %a : [4] for t in 0 .. 9 { %a[0] = q[2*t, 0] } }";
    assert_eq!(
        fails(outside, one()),
        "index `2*t` is 4, outside 0 .. 3\n  in `%a[0] = q[2*t, 0]`\n  at sequence 0, head 0, t = 2"
    );
    let mut short = one();
    let kernel = checked(RECURRENT);
    short = call_with(&kernel, short, &[], &mut Numbers(8));
    short.tensors[1].data.truncate(8);
    let error = run(&kernel, &mut short).unwrap_err();
    assert_eq!(error.message, "`k` has 8 elements, this is number 8");
    assert_eq!(error.stmt, "local x0 = k[t, i_1]");
    short.tensors.pop();
    assert_eq!(run(&kernel, &mut short).unwrap_err().message, "the kernel takes 6 tensors, the call has 5");
    let mut odd = call_with(&kernel, HostCall::new(1, 1, 3), &[("q", 2)], &mut Numbers(8));
    assert_eq!(run(&kernel, &mut odd).unwrap_err().message, "`q` has 2 heads, which do not divide 3");
    odd = call_with(&kernel, HostCall::packed(vec![0, 4, 2], 1), &[], &mut Numbers(8));
    assert_eq!(run(&kernel, &mut odd).unwrap_err().message, "offsets must be 3 numbers that do not fall");
}
