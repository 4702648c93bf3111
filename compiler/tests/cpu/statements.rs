//! Every statement, with extents that do and do not fill a vector, and every way a tensor may lie in memory.

use super::native::{Numbers, agree, agree_on, checked, compare, compile, fill, levels, round_inputs};
use chunkwise_compiler::target::cpu::{CpuTarget, Loaded, Want, compile_kernels};
use chunkwise_compiler::tile::interp::{HostCall, run};
use std::sync::Arc;

#[path = "../tile/kernels.rs"]
mod kernels;

#[test]
fn whole_kernels_agree() {
    for text in [kernels::RECURRENT, kernels::CHUNKWISE, kernels::EVERYTHING] {
        for length in [0, 1, 4, 9] {
            agree_on(text, length, 1e-5);
        }
    }
}

#[test]
fn lanes_of_any_extent_touch_only_what_is_theirs() {
    for n in (1..=40).chain([63, 64, 65, 100, 128, 130]) {
        // A copy, a view one element in, and a store into the middle of a longer row.
        let text = format!(
            "kernel lanes {{ arg x : f32 token[{n}] read arg y : f32 token[{n}] write arg z : f32 token[{m}] write
               buf %a : [2, {n}] buf %b : [2, {m}]
               for t in 0 .. T {{
                 lanes i in 0 .. {m} {{ %b[0, i] = 5 %b[1, i] = 6 }}
                 lanes i in 0 .. {n} {{
                   local u = 2 * x[t, i] + 1
                   %a[1, i] = u * u - x[t, i]
                   %b[0, i + 3] = u
                 }}
                 lanes i in 0 .. {n} {{ y[t, i] = %a[1, i] - %b[0, i + 3] }}
                 lanes i in 0 .. {m} {{ z[t, i] = %b[0, i] + %b[1, i] }}
               }} }}",
            m = n + 7
        );
        agree_on(&text, 3, 1e-5);
    }
}

#[test]
fn loops_run_forwards_and_backwards_between_their_bounds() {
    agree_on(
        "kernel loops { arg x : f32 token[5] read arg y : f32 token[5] write arg s : f32 sequence[5] write
           buf %s : [5]
           lanes i in 0 .. 5 { %s[i] = 0 }
           for c in reverse 0 .. chunks(4) {
             for r in reverse 0 .. min(4, T - 4*c) {
               lanes i in 0 .. 5 {
                 %s[i] = 0.5 * %s[i] + x[min(4*c + r, T - 1), i]
                 y[4*c + r, i] = %s[i]
               }
             }
           }
           for c in 3 .. 1 { %s[0] = 100 }
           lanes i in 0 .. 5 { s[i] = %s[i] }
         }",
        10,
        1e-5,
    );
}

/// Results too large for a cache are written past it where their rows begin its lines.
#[test]
fn large_results_are_written_whole() {
    let text = "kernel large {
        arg x : f32 token[] read
        arg inside : f32 token[512] write
        arg lines : f32 token[512] write
        arg y : f32 token[] read
        arg narrow : bf16 token[512] write
        for t in 0 .. T {
            lanes c in 0 .. 512 {
                inside[t, c] = x[t]
                lines[t, c] = y[t]
                narrow[t, c] = x[t] * y[t]
            }
        }
    }";
    agree_on(text, 2200, 1e-2);
    agree_on(text, 3, 1e-2);
}

#[test]
fn locals_keep_a_value_for_each_lane() {
    for n in [1, 5, 16, 37, 64, 80] {
        agree_on(
            &format!(
                "kernel locals {{ arg a : f32 head[9, {n}] read arg w : f32 head[9] read arg y : f32 head[9, {n}] write
                   buf %a : [9, {n}] buf %w : [9]
                   for r in 0 .. 9 {{ %w[r] = w[r] lanes i in 0 .. {n} {{ %a[r, i] = a[r, i] }} }}
                   for r in 0 .. 9 {{
                     local scale = 0.5 * %w[r] + 1
                     scale = scale * scale
                     lanes i in 0 .. {n} {{
                       local sum = 0
                       local product = scale
                       for j in 0 .. r {{
                         sum = sum + %w[j] * %a[j, i]
                         if j < 3 {{ product = product * (1 + 0.5 * %a[j, i]) }}
                       }}
                       y[r, i] = sum + product
                     }}
                   }} }}"
            ),
            1,
            1e-5,
        );
    }
}

#[test]
fn choices_follow_indices_and_values() {
    for n in [7, 16, 50] {
        agree_on(
            &format!(
                "kernel choices {{ arg x : f32 token[{n}] read arg y : f32 token[{n}] write
                   for t in 0 .. T {{
                     lanes i in 0 .. {n} {{
                       local u = select(i < t, x[t, i], neg(x[t, i]))
                       local v = select(2*i <= t + 3, 1, exp(x[min(t + 1, T - 1), i]))
                       local w = select(t < 2, 3, 4 * u)
                       local z = select_value(u < x[t, i], u, v)
                       z = z + select_value(x[t, i] <= 0.25, select(t == i, 10, 20), 30)
                       y[t, i] = z + w + select(t + 1 < T, x[min(t + 1, T - 1), i], 0)
                     }}
                   }} }}"
            ),
            6,
            1e-5,
        );
    }
}

#[test]
fn reductions_agree() {
    for n in (1..=40).chain([64, 100, 128, 130, 200]) {
        agree_on(
            &format!(
                "kernel reductions {{ arg x : f32 token[{n}] read arg y : f32 token[{n}] read arg z : f32 token[4] write
                   buf %s : [4] buf %x : [{n}]
                   for t in 0 .. T {{
                     lanes i in 0 .. {n} {{ %x[i] = x[t, i] }}
                     %s[0] = 1 %s[1] = 0.1
                     %s[0] += sum i in 0 .. {n} of x[t, i] * y[t, i]
                     %s[1] += max i in 0 .. {n} of y[t, i]
                     %s[2] = sum i in 0 .. {n} of exp(%x[i]) - select(i < 3, %x[i], 2)
                     %s[3] = max i in 0 .. {n} of neg(square(%x[i]))
                     z[t, 0] = sum i in 0 .. {n} of square(%x[i])
                     for k in 1 .. 4 {{ z[t, k] = %s[k] }}
                     z[t, 0] = %s[0]
                   }} }}"
            ),
            3,
            1e-4,
        );
    }
}

#[test]
fn not_a_number_survives_a_maximum() {
    let kernel = checked(
        "kernel maximum { arg x : f32 token[20] read arg z : f32 token[] write
           for t in 0 .. T { z[t] = max i in 0 .. 20 of x[t, i] } }",
    );
    for place in [0, 15, 16, 19] {
        let mut call = fill(&kernel, HostCall::new(1, 2, 1), &[], &mut Numbers(1));
        call.tensors[0].data[place] = f64::NAN;
        for level in levels() {
            let mut found = call.clone();
            compile(&kernel, level).run(&kernel, &mut found);
            assert!(found.tensors[1].data[0].is_nan(), "{level:?} lost the NaN at {place}");
            let expected = call.tensors[0].data[20..40].iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            assert_eq!(found.tensors[1].data[1], expected);
        }
    }
}

/// Reads and writes every role, with fewer heads for some.
const ROLES: &str = "
kernel roles {
  arg x : f32 token[6] read arg g : bf16 token[] read arg a : f16 head[6] read arg s : f32 sequence[2, 6] read
  arg y : f32 token[6] write arg h : f16 token[6] write arg e : bf16 sequence[2, 6] write arg saved : f32 chunk(4)[6] write
  buf %s : [2, 6]
  for r in 0 .. 2 { lanes i in 0 .. 6 { %s[r, i] = s[r, i] } }
  for c in 0 .. chunks(4) {
    lanes i in 0 .. 6 { saved[c, i] = %s[0, i] }
    for r in 0 .. min(4, T - 4*c) {
      lanes i in 0 .. 6 {
        %s[0, i] = g[min(4*c + r, T - 1)] * %s[0, i] + x[min(4*c + r, T - 1), i] * a[i]
        y[4*c + r, i] = %s[0, i] + %s[1, i]
        h[4*c + r, i] = %s[0, i]
      }
    }
  }
  for r in 0 .. 2 { lanes i in 0 .. 6 { e[r, i] = %s[r, i] } }
}";

#[test]
fn heads_may_be_shared() {
    let kernel = checked(ROLES);
    for length in [0, 1, 4, 7] {
        let heads = [("x", 2), ("g", 1), ("a", 4), ("s", 2)];
        let call = fill(&kernel, HostCall::new(3, length, 4), &heads, &mut Numbers(4));
        agree(&kernel, &call, 8e-3);
    }
}

#[test]
fn packed_sequences_keep_to_themselves() {
    let kernel = checked(ROLES);
    let call = fill(&kernel, HostCall::packed(vec![0, 5, 5, 6, 14], 2), &[], &mut Numbers(9));
    agree(&kernel, &call, 8e-3);
}

#[test]
fn strides_are_taken_from_the_call() {
    let kernel = checked(ROLES);
    let mut call = fill(&kernel, HostCall::new(2, 5, 2), &[], &mut Numbers(2));
    let mut numbers = Numbers(3);
    for (arg, tensor) in kernel.args.iter().zip(&mut call.tensors) {
        // Heads before tokens, and room between.
        let inner: usize = arg.inner.iter().product();
        let slots = 8;
        tensor.stride_time = inner + 2;
        tensor.stride_head = slots * (inner + 2) + 3;
        tensor.stride_sequence = 2 * tensor.stride_head + 1;
        let elements = 2 * tensor.stride_sequence + slots * (inner + 2) + 8;
        tensor.data = (0..elements).map(|_| numbers.next()).collect();
    }
    round_inputs(&kernel, &mut call);
    agree(&kernel, &call, 8e-3);
}

#[test]
fn narrow_types_are_rounded_to_nearest_even() {
    for dtype in ["bf16", "f16"] {
        for n in [1, 16, 23, 64] {
            let kernel = checked(&format!(
                "kernel narrow {{ arg x : {dtype} token[{n}] read arg f : f32 token[{n}] read
                   arg y : {dtype} token[{n}] write arg z : {dtype} token[{n}] write arg w : f32 token[{n}] write
                   for t in 0 .. T {{
                     lanes i in 0 .. {n} {{ y[t, i] = x[t, i] z[t, i] = f[t, i] w[t, i] = x[t, i] }}
                     y[t, 0] = x[t, 0]
                     z[t, 0] = f[t, 0]
                   }} }}"
            ));
            let mut call = fill(&kernel, HostCall::new(1, 40, 1), &[], &mut Numbers(8));
            let scales = [1.0, 1e-3, 3e4, 6.2e-5, 1e-6, 7e4, 1e30, 3e-8];
            for (k, x) in call.tensors[1].data.iter_mut().enumerate() {
                *x *= scales[k % scales.len()];
            }
            call.tensors[1].data[0] = f64::INFINITY;
            call.tensors[1].data[n] = f64::NEG_INFINITY;
            round_inputs(&kernel, &mut call);
            let mut expected = call.clone();
            run(&kernel, &mut expected).expect("the kernel is sound");
            // The interpreter does not round: what the memory holds is the written number, rounded.
            round_inputs(&kernel, &mut expected);
            for level in levels() {
                compare(&kernel, &call, &expected, &compile(&kernel, level), level, 0.0);
            }
        }
    }
}

#[test]
fn a_number_that_is_none_stays_none_in_narrow_types() {
    for dtype in ["bf16", "f16"] {
        let kernel = checked(&format!(
            "kernel nan {{ arg f : f32 token[20] read arg y : {dtype} token[20] write
               for t in 0 .. T {{ lanes i in 0 .. 20 {{ y[t, i] = f[t, i] }} }} }}"
        ));
        let mut call = fill(&kernel, HostCall::new(1, 1, 1), &[], &mut Numbers(8));
        call.tensors[0].data.fill(f64::NAN);
        for level in levels() {
            let mut found = call.clone();
            compile(&kernel, level).run(&kernel, &mut found);
            assert!(found.tensors[1].data.iter().all(|x| x.is_nan()), "{level:?} lost a NaN");
        }
    }
}

#[test]
fn one_module_holds_several_kernels_and_every_text() {
    let first = checked(kernels::RECURRENT);
    let second = checked(kernels::CHUNKWISE);
    let want = Want { mlir: true, llvm: true, asm: true, object: true };
    let compiled = compile_kernels(&[(&first, "first"), (&second, "second")], &CpuTarget::host(), want).expect("sound");
    let (mlir, llvm) = (compiled.mlir.expect("asked for"), compiled.llvm.expect("asked for"));
    let asm = compiled.asm.expect("asked for");
    assert!(mlir.contains("llvm.func @first(") && mlir.contains("scf.for"));
    assert!(llvm.contains("define void @second("));
    assert!(asm.contains("first:") && asm.contains("second:"));
    let loaded = Loaded::load(&compiled.object.expect("asked for"), &["first", "second"]).expect("it links");
    assert!(loaded.function("first").is_some() && loaded.function("second").is_some());
    assert!(loaded.function("third").is_none());
}

#[test]
fn a_missing_symbol_is_an_error() {
    let kernel = checked(kernels::RECURRENT);
    let compiled = compile_kernels(&[(&kernel, "here")], &CpuTarget::host(), Want::OBJECT).expect("sound");
    let object = compiled.object.expect("asked for");
    assert!(Loaded::load(&object, &["elsewhere"]).is_err());
    assert!(Loaded::load(&object[..object.len() / 2], &["here"]).is_err());
}

#[test]
fn several_threads_compile_at_once() {
    let kernel = Arc::new(checked(kernels::CHUNKWISE));
    let call = Arc::new(fill(&kernel, HostCall::new(1, 9, 1), &[], &mut Numbers(1)));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (kernel, call) = (Arc::clone(&kernel), Arc::clone(&call));
            std::thread::spawn(move || agree(&kernel, &call, 1e-5))
        })
        .collect();
    for worker in workers {
        worker.join().expect("no thread fails");
    }
}
