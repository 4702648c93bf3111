//! What is moved when every computed value is, and what is not.

use chunkwise_compiler::reference::{Rounding, run_backward, run_backward_rounded};

use crate::builder::at;
use crate::draw::bundle;
use crate::examples::{EVERYTHING, program};

const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;

fn by_token(seed: u64) -> Rounding {
    Rounding { half_unit: HALF_UNIT, seed, block: None }
}

#[test]
fn moving_by_nothing_moves_nothing() {
    let program = program(EVERYTHING);
    let instance = at(&program, &[("K", 3), ("V", 2), ("L", 3), ("H", 2)]);
    let tensors = bundle(&instance, [2, 5, 2], 0.1, 0.9, 0);
    for block in [None, Some(1), Some(3), Some(64)] {
        let rounding = Rounding { half_unit: 0.0, seed: 1, block };
        let moved = run_backward_rounded(&instance, &tensors, rounding).unwrap();
        assert_eq!(moved, run_backward(&instance, &tensors).unwrap());
    }
}

#[test]
fn what_computers_give_exactly_stays() {
    let program = program(
        "recurrence exact { axis K, J input x: [K], y: [J] state S: [K] \
         S = max(abs(x), -rename(y, J -> K)) output o: [K] = max(S, K) + 0 * x }",
    );
    let instance = at(&program, &[("K", 3), ("J", 3)]);
    let tensors = bundle(&instance, [1, 4, 2], -0.9, 0.9, 3);
    let (still, moved) =
        (run_backward(&instance, &tensors).unwrap(), run_backward_rounded(&instance, &tensors, by_token(1)).unwrap());
    assert_eq!(still["final.S"], moved["final.S"]);
    // The sum is rounded: by half a unit, no more, and not everywhere the same way.
    let parts: Vec<f64> = still["out.o"].data.iter().zip(&moved["out.o"].data).map(|(x, y)| (y - x) / x).collect();
    assert!(parts.iter().all(|part| (part.abs() / HALF_UNIT - 1.0).abs() < 1e-6), "{parts:?}");
    assert!(parts.iter().any(|part| *part > 0.0) && parts.iter().any(|part| *part < 0.0), "{parts:?}");
}

#[test]
fn a_difference_of_equal_computed_numbers_answers() {
    let program = program(
        "recurrence overwritten { axis K, V input x: [K], v: [V], q: [K] state S: [K, V] \
         S = S + softmax(x, K) * (v - softmax(x, K) @ S) output o: [V] = q @ S }",
    );
    // One position: the key is 1, and nothing of the first state is left.
    let instance = at(&program, &[("K", 1), ("V", 3)]);
    let tensors = bundle(&instance, [1, 1, 1], 0.1, 0.9, 5);
    let still = run_backward(&instance, &tensors).unwrap();
    assert!(still["grad_init.S"].data.iter().all(|part| *part == 0.0));
    let largest = (0..16)
        .flat_map(|seed| run_backward_rounded(&instance, &tensors, by_token(seed)).unwrap()["grad_init.S"].data.clone())
        .fold(0.0, |largest: f64, part| largest.max(part.abs()));
    // One rounding of one of the terms at least, and not more than the few that there are.
    assert!(largest > 0.05 * HALF_UNIT && largest < 20.0 * HALF_UNIT, "{largest:e}");
}

/// How far the gradient of the first state is moved at most, where every token overwrites the state three times.
fn moved_by_edits(tokens: usize, block: Option<usize>) -> f64 {
    let program = program(
        "recurrence overwritten { axis K, R input k: [R, K] in unit(K), v: [R], q: [K] state S: [K] \
         for r in R { S = S + k[r] * (v[r] - k[r] @ S) } output o: [] = q @ S }",
    );
    let instance = at(&program, &[("K", 1), ("R", 3)]);
    let mut tensors = bundle(&instance, [1, tokens, 1], 0.1, 0.9, 5);
    tensors["k"].data.fill(1.0);
    assert!(run_backward(&instance, &tensors).unwrap()["grad_init.S"].data.iter().all(|part| *part == 0.0));
    let moved = (0..16).map(|seed| {
        let rounding = Rounding { half_unit: HALF_UNIT, seed, block };
        run_backward_rounded(&instance, &tensors, rounding).unwrap()["grad_init.S"].data[0].abs()
    });
    moved.fold(0.0, f64::max)
}

#[test]
fn in_a_block_what_edits_take_away_was_rounded_too() {
    // A token at a time each edit takes away the rounding of those after it, three times.
    assert!(moved_by_edits(16, None) < 1e-6 * HALF_UNIT);
    // 48 edits at once are as many terms, each of the size of a cotangent: their root is about seven.
    let at_once = moved_by_edits(16, Some(16));
    assert!(at_once > HALF_UNIT && at_once < 32.0 * HALF_UNIT, "{at_once:e}");
    // What a block adds up, it alone adds up.
    let apart = moved_by_edits(16, Some(1));
    assert!(apart > 0.1 * HALF_UNIT && apart < 0.7 * at_once, "{apart:e} {at_once:e}");
}
