//! Shapes: grouped heads, packed sequences, empty ones, and what is refused in which words.

use chunkwise_compiler::reference::{ReferenceError, run, run_backward, run_packed, run_packed_backward};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Binary, Program, TensorKind};

use crate::builder::{Builder, at};
use crate::draw::{Draw, bundle};
use crate::statements::looping;

const SIZES: [(&str, usize); 2] = [("K", 2), ("V", 3)];

/// `S = a * S + k * v`, `o = q @ S`
fn linear() -> Program {
    let mut b = Builder::new(&["K", "V"]);
    let (q, k, v) = (b.input("q", &["K"]), b.input("k", &["K"]), b.input("v", &["V"]));
    let a = b.tensor(TensorKind::Param, "a", &["K"]);
    let s = b.state("S", &["K", "V"]);
    let before = b.read(s);
    let decayed = b.binary(Binary::Mul, a, before);
    let written = b.binary(Binary::Mul, k, v);
    let after = b.binary(Binary::Add, decayed, written);
    let update = b.update(s, after);
    let now = b.read(s);
    let read = b.contract(q, now);
    let output = b.output("o", &["V"], read);
    b.program.body = vec![update, output];
    b.program
}

/// Elements `[outer, extent, inner]` of one dimension, chosen by position: `take(i)` of the old for each new `i`.
fn gather(tensor: &Tensor, dim: usize, extent: usize, take: impl Fn(usize) -> usize) -> Tensor {
    let inner: usize = tensor.shape[dim + 1..].iter().product();
    let mut shape = tensor.shape.clone();
    shape[dim] = extent;
    Tensor::from_fn(&shape, |at| {
        let (outer, position, within) = (at / (extent * inner), at / inner % extent, at % inner);
        tensor.data[(outer * tensor.shape[dim] + take(position)) * inner + within]
    })
}

/// The sum over groups of `group` neighbours along a dimension.
fn sum_groups(tensor: &Tensor, dim: usize, group: usize) -> Tensor {
    let groups = tensor.shape[dim] / group;
    let parts = (0..group).map(|offset| gather(tensor, dim, groups, |i| i * group + offset));
    parts.reduce(|sum, part| Tensor::from_fn(&sum.shape, |at| sum.data[at] + part.data[at])).unwrap()
}

#[test]
fn grouped_heads_are_heads_repeated() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let full = bundle(&instance, [2, 4, 6], -1.0, 1.0, 0);
    let mut grouped = full.clone();
    let mut repeated = full.clone();
    // Six heads; q has 2, k all 6, v 3, the parameter 1.
    for (name, dim, heads) in [("q", 2, 2), ("v", 2, 3), ("a", 0, 1)] {
        grouped[name] = gather(&full[name], dim, heads, |head| head);
        repeated[name] = gather(&grouped[name], dim, 6, |head| head / (6 / heads));
    }
    let mut expected = run_backward(&instance, &repeated).unwrap();
    for (name, dim, heads) in [("grad.q", 2, 2), ("grad.v", 2, 3), ("grad.a", 0, 1)] {
        expected[name] = sum_groups(&expected[name], dim, 6 / heads);
    }
    for (name, tensor) in run_backward(&instance, &grouped).unwrap() {
        assert!(tensor.relative_error(&expected[&name], 0.0) < 1e-13, "{name}");
    }
}

#[test]
fn packed_sequences_are_single_ones() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let offsets = [0, 3, 3, 8, 9];
    let mut packed = bundle(&instance, [1, 9, 2], -1.0, 1.0, 4);
    let mut draw = Draw::new(11);
    for name in ["init.S", "grad_final.S"] {
        packed[name] = draw.tensor(&[4, 2, 2, 3], -1.0, 1.0);
    }
    let found = run_packed_backward(&instance, &packed, &offsets).unwrap();
    let forward = run_packed(&instance, &packed, &offsets).unwrap();
    let mut a_sum = Tensor::zeros(&[2, 2]);
    for sequence in 0..4 {
        let (start, end) = (offsets[sequence], offsets[sequence + 1]);
        let cut = |name: &str, tensor: &Tensor| match name {
            "a" | "grad.a" => tensor.clone(),
            "init.S" | "grad_final.S" | "final.S" | "grad_init.S" => gather(tensor, 0, 1, |_| sequence),
            _ => gather(tensor, 1, end - start, |token| start + token),
        };
        let single: Bundle = packed.iter().map(|(name, tensor)| (name.clone(), cut(name, tensor))).collect();
        for (name, expected) in run_backward(&instance, &single).unwrap() {
            if name == "grad.a" {
                a_sum = Tensor::from_fn(&[2, 2], |at| a_sum.data[at] + expected.data[at]);
            } else {
                assert_eq!(cut(&name, &found[&name]), expected, "{name} of sequence {sequence}");
            }
        }
        for name in ["out.o", "final.S"] {
            assert_eq!(forward[name], found[name]);
        }
    }
    assert!(found["grad.a"].relative_error(&a_sum, 0.0) < 1e-14);
}

#[test]
fn gradients_do_not_depend_on_where_states_are_kept() {
    // 50 tokens at once against 49 + 1 tokens, whose stretches between kept states differ.
    let program = linear();
    let instance = at(&program, &SIZES);
    let whole = bundle(&instance, [1, 50, 1], -0.9, 0.9, 2);
    let expected = run_backward(&instance, &whole).unwrap();
    let part = |bundle: &Bundle, from: usize, to: usize| -> Bundle {
        let cut = |name: &str, tensor: &Tensor| match name {
            "a" | "init.S" | "grad_final.S" => tensor.clone(),
            _ => gather(tensor, 1, to - from, |token| from + token),
        };
        bundle.iter().map(|(name, tensor)| (name.clone(), cut(name, tensor))).collect()
    };
    let (mut head, mut tail) = (part(&whole, 0, 49), part(&whole, 49, 50));
    tail["init.S"] = run(&instance, &head).unwrap()["final.S"].clone();
    let tail = run_backward(&instance, &tail).unwrap();
    head["grad_final.S"] = tail["grad_init.S"].clone();
    let head = run_backward(&instance, &head).unwrap();
    assert_eq!(tail["final.S"], expected["final.S"]);
    assert_eq!(head["grad_init.S"], expected["grad_init.S"]);
    assert_eq!(gather(&expected["grad.k"], 1, 49, |token| token), head["grad.k"]);
    assert_eq!(gather(&expected["grad.k"], 1, 1, |_| 49), tail["grad.k"]);
}

#[test]
fn no_tokens_or_no_batch_give_empty_outputs_and_the_initial_state() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let no_tokens = bundle(&instance, [2, 0, 3], -1.0, 1.0, 0);
    let results = run_backward(&instance, &no_tokens).unwrap();
    assert_eq!(results["out.o"].shape, [2, 0, 3, 3]);
    assert_eq!(results["final.S"], no_tokens["init.S"]);
    assert_eq!(results["grad_init.S"], no_tokens["grad_final.S"]);
    assert_eq!(results["grad.a"], Tensor::zeros(&[3, 2]));

    for extents in [[0, 5, 3], [2, 5, 0]] {
        let results = run_backward(&instance, &bundle(&instance, extents, -1.0, 1.0, 0)).unwrap();
        assert_eq!(results["out.o"].shape, [extents[0], 5, extents[2], 3]);
        assert_eq!(results["final.S"].shape, [extents[0], extents[2], 2, 3]);
        assert_eq!(results["grad.a"].data, vec![0.0; 2 * extents[2]]);
    }
}

#[test]
fn absent_states_and_cotangents_are_zero() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let mut given = bundle(&instance, [1, 4, 1], -1.0, 1.0, 0);
    let mut absent = given.clone();
    for name in ["init.S", "grad_final.S"] {
        given[name] = Tensor::zeros(&given[name].shape);
        absent.shift_remove(name);
    }
    assert_eq!(run_backward(&instance, &given).unwrap(), run_backward(&instance, &absent).unwrap());
}

#[test]
fn results_come_in_the_order_declared_and_results_given_are_ignored() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let mut tensors = bundle(&instance, [1, 2, 1], -1.0, 1.0, 0);
    for name in ["out.o", "final.S", "grad.q", "grad_init.S", "grad.nonsense"] {
        tensors.insert(name.to_string(), Tensor::zeros(&[7]));
    }
    let names: Vec<String> = run_backward(&instance, &tensors).unwrap().into_keys().collect();
    assert_eq!(names, ["out.o", "final.S", "grad.q", "grad.k", "grad.v", "grad.a", "grad_init.S"]);
    let names: Vec<String> = run(&instance, &tensors).unwrap().into_keys().collect();
    assert_eq!(names, ["out.o", "final.S"]);
}

/// What the reference says after this change to a call that was right.
fn refusal(change: impl Fn(&mut Bundle)) -> String {
    let program = linear();
    let instance = at(&program, &SIZES);
    let mut tensors = bundle(&instance, [2, 4, 2], -1.0, 1.0, 0);
    change(&mut tensors);
    run_backward(&instance, &tensors).expect_err("the call is wrong").to_string()
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    assert_eq!(
        refusal(|t| {
            t.shift_remove("k");
        }),
        "`k` is missing: a tensor of shape [B, T, H, K=2] is needed"
    );
    assert_eq!(
        refusal(|t| {
            t.insert("kk".to_string(), Tensor::zeros(&[1]));
        }),
        "`kk` is not a tensor of this recurrence; it knows q, k, v, a, init.S, grad_out.o, grad_final.S"
    );
    assert_eq!(
        refusal(|t| t["v"] = Tensor::zeros(&[2, 4, 2, 5])),
        "`v` has shape [2, 4, 2, 5], but [B, T, H, V=3] was expected"
    );
    assert_eq!(
        refusal(|t| t["k"] = Tensor::zeros(&[2, 3, 2, 2])),
        "`k` has shape [2, 3, 2, 2], but [B=2, T=4, H, K=2] was expected"
    );
    assert_eq!(refusal(|t| t["a"] = Tensor::zeros(&[])), "`a` has shape [], but [H, K=2] was expected");
    assert_eq!(
        refusal(|t| t["init.S"] = Tensor::zeros(&[2, 2, 3, 2])),
        "`init.S` has shape [2, 2, 3, 2], but [B=2, H=2, K=2, V=3] was expected"
    );
    assert_eq!(
        refusal(|t| t["grad_out.o"] = Tensor::zeros(&[2, 4, 1, 3])),
        "`grad_out.o` has shape [2, 4, 1, 3], but [B=2, T=4, H=2, V=3] was expected"
    );
    assert_eq!(
        refusal(|t| t["a"] = Tensor::zeros(&[3, 2])),
        "`q` has 2 heads and another tensor has 3: the smaller count must divide the larger, \
         so that heads can share it in groups"
    );
    assert_eq!(
        refusal(|t| {
            t["q"].data.pop();
        }),
        "`q` has shape [2, 4, 2, 2] but holds 31 elements"
    );
}

#[test]
fn extents_that_overflow_are_refused() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let mut tensors = Bundle::new();
    for (name, axis) in [("q", 2), ("k", 2), ("v", 3)] {
        tensors.insert(name.to_string(), Tensor { shape: vec![usize::MAX, 0, 2, axis], data: vec![] });
    }
    tensors.insert("a".to_string(), Tensor::zeros(&[2, 2]));
    let refusal = run(&instance, &tensors).unwrap_err();
    assert!(matches!(refusal, ReferenceError::TooLarge { .. }));
    assert_eq!(
        refusal.to_string(),
        "the number of sequences and heads, [18446744073709551615, 2], is too large for the reference, \
         whose limit is 2147483648"
    );
}

#[test]
fn a_loop_too_long_to_unroll_is_refused() {
    let program = looping(&["R", "K"]);
    let instance = at(&program, &[("K", 128), ("V", 128), ("R", 100_000)]);
    assert_eq!(
        run(&instance, &Bundle::new()).unwrap_err().to_string(),
        "the number of values of one token of `by_hand`, loops unrolled, is too large for the reference, \
         whose limit is 67108864"
    );
}

#[test]
fn offsets_that_are_no_packing_are_refused() {
    let program = linear();
    let instance = at(&program, &SIZES);
    let mut tensors = bundle(&instance, [1, 4, 2], -1.0, 1.0, 0);
    tensors.shift_remove("init.S");
    let refusal = |offsets: &[usize]| run_packed(&instance, &tensors, offsets).unwrap_err().to_string();
    let prefix = "the offsets of the packed sequences are wrong: ";
    assert_eq!(refusal(&[]), format!("{prefix}they start with 0"));
    assert_eq!(refusal(&[1, 4]), format!("{prefix}they start with 0"));
    assert_eq!(refusal(&[0, 3]), format!("{prefix}they end with the number of tokens, 4"));
    assert_eq!(refusal(&[0, 3, 2, 4]), format!("{prefix}they never fall, but 3 is followed by 2"));
    let mut two = bundle(&instance, [2, 4, 2], -1.0, 1.0, 0);
    two.shift_remove("init.S");
    assert_eq!(
        run_packed(&instance, &two, &[0, 4]).unwrap_err().to_string(),
        format!("{prefix}packed sequences stand in a batch of 1, and this batch is 2")
    );
}
