//! Factors taken off the operands of products.

use super::{Draw, assert_close, bundle, graph};
use chunkwise_compiler::graph::interp::{Extent, run_over};
use chunkwise_compiler::graph::text::print;
use chunkwise_compiler::pass::{self, Options};
use chunkwise_compiler::pipeline::FOR_TENSOR_CORES;

/// The products and factors of some nodes over x [t, K], y [t, K], z [t] and y as [s, K], prepared; the last node is
/// the result, which must be the same as before.
fn products(nodes: &str) -> String {
    let last = nodes.trim().lines().last().unwrap().trim().split(' ').next().unwrap().to_owned();
    let text = format!(
        "graph g {{\n dim t : row 4\n dim s : col 4\n dim K : axis 0 3\n dim L : axis 1 3\n step tokens=4 time=t\n\
         %0 = token x : [t, K]\n%1 = token y : [t, K]\n%2 = token z : [t]\n%3 = rename %1 t -> s : [s, K]\n\
         %4 = exp %0 : [t, K]\n{nodes}\nsave o = {last}\n}}"
    );
    let before = graph(&text);
    let mut after = before.clone();
    pass::run(&mut after, FOR_TENSOR_CORES, &mut Options { verify: true, dump: None }).unwrap();
    let mut draw = Draw(5);
    let given = bundle(vec![
        ("x", draw.tensor(&[1, 7, 1, 3], -1.0, 1.0)),
        ("y", draw.tensor(&[1, 7, 1, 3], -1.0, 1.0)),
        ("z", draw.tensor(&[1, 7, 1], -1.0, 1.0)),
    ]);
    let extent = Extent { batch: 1, length: 7, heads: 1, offsets: None };
    let [expected, found] = [&before, &after].map(|graph| run_over(graph, &given, &extent).unwrap());
    assert_close(&found["o"].data, &expected["o"].data, 1e-13);
    let text = print(&after);
    let shown = text.lines().filter(|line| ["mul", "contract", "neg"].iter().any(|word| line.contains(word)));
    shown.map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_factor_goes_after_the_sum_it_is_no_part_of() {
    // Two factors of a row are one.
    let rows = products("%5 = mul %2 %0 : [t, K]\n%6 = mul %5 %2 : [t, K]\n%7 = contract %6 %3 over K : [t, s]");
    let expected = "%4 = contract %0 %3 over K : [t, s]\n%5 = mul %2 %2 : [t]\n%6 = mul %4 %5 : [t, s]";
    assert_eq!(rows, expected);
    // Under another name of its dimension, and with the sign taken off too.
    let columns = products(
        "%5 = mul %2 %1 : [t, K]\n%6 = neg %5 : [t, K]\n%7 = rename %6 t -> s : [s, K]\n\
         %8 = contract %0 %7 over K : [t, s]",
    );
    assert_eq!(columns, "%5 = contract %0 %4 over K : [t, s]\n%6 = neg %3 : [s]\n%7 = mul %5 %6 : [t, s]");
}

#[test]
fn products_that_differ_in_factors_are_one() {
    let found = products(
        "%5 = mul %2 %0 : [t, K]\n%6 = contract %5 %3 over K : [t, s]\n%7 = contract %0 %3 over K : [t, s]\n\
         %8 = exp %6 : [t, s]\n%9 = mul %7 %8 : [t, s]",
    );
    assert_eq!(found.matches("contract").count(), 1, "{found}");
}

#[test]
fn a_factor_of_what_is_summed_goes_to_the_computed_side() {
    // Over t of (z x) and an exponential: x is multiplied as it is.
    let left = "%5 = mul %2 %0 : [t, K]\n%6 = rename %4 K -> L : [t, L]\n%7 = contract %5 %6 over t : [K, L]";
    let right = "%5 = mul %4 %2 : [t, K]\n%6 = rename %5 K -> L : [t, L]\n%7 = contract %0 %6 over t : [K, L]";
    for nodes in [left, right] {
        let found = products(nodes);
        assert!(found.contains("= contract %0 ") || found.contains(" %0 over t"), "{found}");
        assert_eq!(found.matches("mul").count(), 1, "{found}");
    }
    // Of two tensors from outside the one that is scaled stays so, and takes a number with it.
    let found = products(
        "%5 = mul %2 %0 : [t, K]\n%6 = const 3.0 : []\n%7 = rename %1 K -> L : [t, L]\n%8 = mul %7 %6 : [t, L]\n\
         %9 = contract %5 %8 over t : [K, L]",
    );
    assert!(!found.contains("mul %2 %0"), "{found}");
    assert!(found.ends_with("over t : [K, L]"), "{found}");
    assert_eq!(found.matches(": [t, L]").count(), 0, "{found}");
}

#[test]
fn what_is_computed_keeps_its_factor_unless_it_is_multiplied_without() {
    let scaled = "%5 = mul %4 %2 : [t, K]\n%6 = contract %5 %3 over K : [t, s]";
    let found = products(scaled);
    assert!(found.ends_with("over K : [t, s]"), "{found}");
    // Once it is an operand by itself, its product with the factor is not made.
    let found = products(&format!(
        "{scaled}\n%7 = contract %4 %3 over K : [t, s]\n%8 = exp %6 : [t, s]\n%9 = mul %7 %8 : [t, s]"
    ));
    assert_eq!(found.matches("contract").count(), 1, "{found}");
    // Nor does a factor leave that varies along what is summed.
    let found = products("%5 = sum %1 over t : [K]\n%6 = mul %0 %5 : [t, K]\n%7 = contract %6 %3 over K : [t, s]");
    assert!(found.ends_with("over K : [t, s]"), "{found}");
}
