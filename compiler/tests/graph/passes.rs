//! The simplifying passes: what they leave, and that it means the same.

use super::{Draw, assert_close, bundle, graph, run};
use chunkwise_compiler::error::CompileError;
use chunkwise_compiler::graph::ir::{Graph, NodeId, Op};
use chunkwise_compiler::graph::text::print;
use chunkwise_compiler::pass::{self, Options, Pass};
use chunkwise_compiler::pipeline::{CSE, DCE, FOLD, FOR_CPU, SIMPLIFY};

fn simplified(text: &str) -> Graph {
    let mut graph = graph(text);
    pass::run(&mut graph, SIMPLIFY, &mut Options { verify: true, dump: None }).unwrap();
    graph
}

/// Nodes inside the braces of a graph over x [t, K], y [t, K], a [K], simplified; the last one is the output.
#[track_caller]
fn becomes(nodes: &str, expected: &str) {
    let head = "graph g {\n  dim j : slot 2\n  dim b : block 2\n  dim t : row 4\n  dim i : row 2\n  dim s : col 4\n  \
                dim u : col 4\n  dim K : axis 0 1\n  step tokens=4 time=t\n";
    let given = "%0 = token x : [t, K]\n%1 = token y : [t, K]\n%2 = token z : [t]\n";
    let last = nodes.trim().lines().last().unwrap().trim().split(' ').next().unwrap().to_owned();
    let text = format!("{head}{given}{nodes}\noutput o = {last}\n}}");
    let simple = simplified(&text);
    let printed = print(&simple);
    let shown: Vec<&str> = printed.lines().skip(9).take_while(|line| line.trim() != "}").map(str::trim).collect();
    assert_eq!(shown.join("\n"), expected);

    let mut draw = Draw(31);
    let tensors = bundle(vec![
        ("x", draw.tensor(&[1, 7, 1, 1], -1.0, 1.0)),
        ("y", draw.tensor(&[1, 7, 1, 1], -1.0, 1.0)),
        ("z", draw.tensor(&[1, 7, 1], -1.0, 1.0)),
    ]);
    // What is left may read no tensor at all.
    let extent = chunkwise_compiler::graph::interp::Extent { batch: 1, length: 7, heads: 1, offsets: None };
    let after = chunkwise_compiler::graph::interp::run_over(&simple, &tensors, &extent).unwrap();
    assert_close(&after["o"].data, &run(&graph(&text), &tensors)["o"].data, 1e-15);
}

const X: &str = "%0 = token x : [t, K]\noutput o = %0";

#[test]
fn neutral_terms_go() {
    becomes("%3 = const 1.0 : []\n%4 = mul %0 %3 : [t, K]\n%5 = mul %3 %4 : [t, K]\n%6 = div %5 %3 : [t, K]", X);
    becomes("%3 = const 0.0 : []\n%4 = add %0 %3 : [t, K]\n%5 = add %3 %4 : [t, K]\n%6 = sub %5 %3 : [t, K]", X);
    becomes("%3 = neg %0 : [t, K]\n%4 = neg %3 : [t, K]", X);
    becomes("%3 = const -1.0 : []\n%4 = mul %3 %0 : [t, K]\n%5 = mul %4 %3 : [t, K]", X);
    becomes(
        "%3 = const 0.0 : []\n%4 = sub %3 %0 : [t, K]",
        "%0 = token x : [t, K]\n%1 = neg %0 : [t, K]\noutput o = %1",
    );
    // The number was repeated along K, so the value must be.
    becomes(
        "%3 = const 1.0 : []\n%4 = broadcast %3 : [K]\n%5 = mul %2 %4 : [t, K]",
        "%0 = token z : [t]\n%1 = broadcast %0 : [t, K]\noutput o = %1",
    );
    becomes("%3 = const 2.0 : []\n%4 = const 1.0 : []\n%5 = select lt %4 %3 %0 %1 : [t, K]", X);
    becomes("%3 = select lt %0 %1 %0 %0 : [t, K]", X);
    becomes(
        "%3 = stop_gradient %0 : [t, K]\n%4 = stop_gradient %3 : [t, K]",
        "%0 = token x : [t, K]\n%1 = stop_gradient %0 : [t, K]\noutput o = %1",
    );
}

#[test]
fn numbers_are_computed() {
    becomes(
        "%3 = const 2.0 : []\n%4 = const 3.0 : []\n%5 = pow %3 %4 : []\n%6 = sqrt %5 : []\n%7 = square %6 : []\n\
         %8 = sub %7 %5 : []\n%9 = broadcast %8 : [s]\n%10 = sum %9 over s : []\n%11 = add %10 %4 : []\n%12 = mul %0 %11 : [t, K]",
        "%0 = token x : [t, K]\n%1 = const 3.000000000000007 : []\n%2 = mul %0 %1 : [t, K]\noutput o = %2",
    );
}

#[test]
fn zero_times_data_stays() {
    let expected = "%0 = token x : [t, K]\n%1 = const 0.0 : []\n%2 = mul %1 %0 : [t, K]\noutput o = %2";
    becomes("%3 = const 0.0 : []\n%4 = mul %3 %0 : [t, K]", expected);
    becomes(
        "%3 = const 0.0 : []\n%4 = segment t s gates () from 0 to 0 : [t, s]\n%5 = mul %3 %4 : [t, s]\n\
         %6 = sum %5 over s : [t]",
        "%0 = const 0.0 : []\n%1 = broadcast %0 : [t]\noutput o = %1",
    );
}

#[test]
fn rearrangements_cancel() {
    becomes("%3 = rename %0 t -> s : [s, K]\n%4 = rename %3 s -> t : [t, K]", X);
    becomes("%3 = rename %0 t -> s : [s, K]\n%4 = rename %3 s -> u : [u, K]\n%5 = rename %4 u -> t : [t, K]", X);
    becomes("%3 = split %0 t -> b, i : [b, i, K]\n%4 = merge %3 b, i -> t : [t, K]", X);
    becomes("%3 = stack j (%0, %1) : [j, t, K]\n%4 = index %3 j at 0 : [t, K]", X);
    becomes(
        "%3 = stack j (%0, _) : [j, t, K]\n%4 = index %3 j at 1 : [t, K]",
        "%0 = const 0.0 : []\n%1 = broadcast %0 : [t, K]\noutput o = %1",
    );
    // One part lacks a dimension that the stack has.
    becomes(
        "%3 = stack j (%0, %2) : [j, t, K]\n%4 = index %3 j at 1 : [t, K]",
        "%0 = token z : [t]\n%1 = broadcast %0 : [t, K]\noutput o = %1",
    );
    becomes("%3 = diagonal %0 t s : [t, s, K]\n%4 = diagonal_part %3 t s : [t, K]", X);
    becomes("%3 = sum %0 : [t, K]", X);
    becomes(
        "%3 = rename %0 t -> s : [s, K]\n%4 = sum %3 over s : [K]\n%5 = sum %4 over K : []\n%6 = mul %5 %2 : [t]",
        "%0 = token x : [t, K]\n%1 = token z : [t]\n%2 = rename %0 t -> s : [s, K]\n%3 = sum %2 over s, K : []\n\
         %4 = mul %3 %1 : [t]\noutput o = %4",
    );
    becomes("%3 = broadcast %0 : [t, s, K]\n%4 = index %3 s at 1 : [t, K]", X);
    becomes(
        "%3 = contract %0 %1 : [t, K]",
        "%0 = token x : [t, K]\n%1 = token y : [t, K]\n%2 = mul %0 %1 : [t, K]\noutput o = %2",
    );
    becomes(
        "%3 = guard %2 0.0 : [t]\n%4 = guard %3 0.0 : [t]",
        "%0 = token z : [t]\n%1 = guard %0 0.0 : [t]\noutput o = %1",
    );
    becomes(
        "%3 = guard %2 0.0 : [t]\n%4 = guard %3 1.0 : [t]",
        "%0 = token z : [t]\n%1 = guard %0 0.0 : [t]\n%2 = guard %1 1.0 : [t]\noutput o = %2",
    );
}

#[test]
fn a_stack_of_all_positions_is_the_whole() {
    let text = "graph g { dim j : slot 2 step tokens=1 %0 = token x : [j] %1 = index %0 j at 0 : [] \
                %2 = index %0 j at 1 : [] %3 = stack j (%1, %2) : [j] %4 = stack j (%2, %1) : [j] \
                output same = %3 output swapped = %4 }";
    let simple = simplified(text);
    assert_eq!(simple.outputs[0].1, NodeId(0));
    assert!(matches!(simple.node(simple.outputs[1].1).op, Op::Stack(..)));
}

#[test]
fn equal_nodes_are_shared_and_carries_are_not() {
    let text = "graph g { dim K : axis 0 2 step tokens=1
        %0 = token x : [K]  %1 = carry S : [K]  %2 = carry S : [K]
        %3 = exp %0 : [K]  ; rule one
        %4 = exp %0 : [K]  ; rule other
        %5 = add %1 %3 : [K]  %6 = mul %2 %4 : [K]  %7 = add %1 %4 : [K]  %8 = sub %5 %7 : [K]
        carry S = %1 -> %5 final=final.S  carry S = %2 -> %6 final=final.R  output o = %8 }";
    let simple = simplified(text);
    let expected = "  %0 = token x : [K]\n  %1 = carry S : [K]\n  %2 = carry S : [K]\n  %3 = exp %0 : [K]  ; rule one\n  \
                    %4 = add %1 %3 : [K]\n  %5 = mul %2 %3 : [K]\n  %6 = sub %4 %4 : [K]\n";
    assert!(print(&simple).contains(expected), "{}", print(&simple));
}

#[test]
fn unused_nodes_carries_and_results_go() {
    let text = "graph g { dim t : row 3 dim K : axis 0 2 step tokens=3 time=t
        %0 = token x : [t, K]  %1 = head a : [K]  %2 = carry S : [K]  %3 = carry unread : [K]  %4 = carry R : [K]
        %5 = token unused : [t]  %6 = exp %5 : [t]
        %7 = scan t sequences (%5, %0) invariants (%4, %1) carries (%2) {
            %0 = given 0 : []  %1 = given 1 : [K]  %2 = given 2 : [K]  %3 = given 3 : [K]  %4 = given 4 : [K]
            %5 = mul %3 %4 : [K]  %6 = add %5 %1 : [K]  %7 = mul %2 %0 : [K]  %8 = neg %6 : [K]
            inputs (%0, %1, %2, %3, %4) outputs (%6, %7, %8)
        } : []
        %8 = result %7 0 : [K]  %9 = result %7 1 : [t, K]  %10 = result %7 2 : [t, K]
        %11 = add %3 %1 : [K]  %12 = sum %9 over t : [K]
        carry S = %2 -> %8 init=init.S
        carry unread = %3 -> %11 init=init.U
        carry R = %4 -> %12
        output o = %10 }";
    let simple = simplified(text);
    let expected = "  step tokens=3 time=t
  %0 = token x : [t, K]
  %1 = head a : [K]
  %2 = carry S : [K]
  %3 = scan t sequences (%0) invariants (%1) carries (%2) {
    %0 = given 0 : [K]
    %1 = given 1 : [K]
    %2 = given 2 : [K]
    %3 = mul %1 %2 : [K]
    %4 = add %3 %0 : [K]
    %5 = neg %4 : [K]
    inputs (%0, %1, %2) outputs (%4, %5)
  } : []
  %4 = result %3 0 : [K]
  %5 = result %3 1 : [t, K]
  carry S = %2 -> %4 init=init.S
  output o = %5
}
";
    assert!(print(&simple).ends_with(expected), "{}", print(&simple));
}

#[test]
fn the_runner_reports_dumps_and_stops_at_a_broken_graph() {
    let text = "graph g { step tokens=1 %0 = token x : [] %1 = neg %0 : [] %2 = neg %1 : [] output o = %2 }";
    let mut dumped = Vec::new();
    let mut dump =
        |number: usize, name: &str, text: &str| dumped.push(format!("{number} {name} {}", text.lines().count()));
    let reports = pass::run(&mut graph(text), SIMPLIFY, &mut Options { verify: true, dump: Some(&mut dump) }).unwrap();
    assert_eq!(dumped, ["0 fold-trivial 6", "2 drop-unused 5"]);
    let changed: Vec<_> = reports.iter().map(|report| (report.pass, report.changed)).collect();
    assert_eq!(changed, [("fold-trivial", Some(true)), ("share-equal", Some(false)), ("drop-unused", Some(true))]);

    let breaking: Pass<Graph> = Pass { name: "break", about: "breaks", run: |graph| graph.outputs[0].1 = NodeId(7) };
    let error = pass::run(&mut graph(text), &[FOLD, CSE, breaking, DCE], &mut Options { verify: true, dump: None });
    let Err(CompileError::Bug { pass: "break", dump, .. }) = error else { panic!("{error:?}") };
    assert!(dump.contains("output o = %7\n  ; ^ %7 does not exist"), "{dump}");
}

/// The contraction over K of x with y, each as given, for a processor.
fn contracted(nodes: &str) -> String {
    let text = format!(
        "graph g {{\n dim t : row 4\n dim s : col 4\n dim K : axis 0 2\n step tokens=4 time=t\n\
         %0 = token x : [t, K]\n%1 = token y : [t, K]\n%2 = token z : [t]\n%3 = rename %1 t -> s : [s, K]\n{nodes}\n}}"
    );
    let mut simple = graph(&text);
    pass::run(&mut simple, FOR_CPU, &mut Options { verify: true, dump: None }).unwrap();
    let mut draw = Draw(5);
    let tensors = bundle(vec![
        ("x", draw.tensor(&[1, 7, 1, 2], -1.0, 1.0)),
        ("y", draw.tensor(&[1, 7, 1, 2], -1.0, 1.0)),
        ("z", draw.tensor(&[1, 7, 1], -1.0, 1.0)),
    ]);
    assert_close(&run(&simple, &tensors)["o"].data, &run(&graph(&text), &tensors)["o"].data, 1e-14);
    print(&simple)
        .lines()
        .filter(|line| line.contains("mul") || line.contains("contract"))
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn factors_go_after_the_contractions_that_do_not_sum_over_them() {
    // Two factors of the row, one after the other.
    let rows = "%4 = mul %2 %0 : [t, K]\n%5 = mul %4 %2 : [t, K]\n%6 = contract %5 %3 over K : [t, s]\n\
                %7 = sum %6 over s : [t]\noutput o = %7";
    assert_eq!(
        contracted(rows),
        "%4 = contract %0 %3 over K : [t, s]\n%5 = mul %4 %2 : [t, s]\n%6 = mul %5 %2 : [t, s]"
    );
    // A factor that is summed over stays, and so does one whose product something else reads.
    let summed = "%4 = mul %2 %0 : [t, K]\n%5 = contract %4 %1 over t : [K]\n%6 = sum %5 over K : []\n\
                  %7 = mul %6 %2 : [t]\noutput o = %7";
    assert!(contracted(summed).contains("[t, K]\n"), "{}", contracted(summed));
    let read = "%4 = mul %2 %0 : [t, K]\n%5 = contract %4 %3 over K : [t, s]\n%6 = sum %5 over s : [t]\n\
                %7 = mul %4 %6 : [t, K]\n%8 = sum %7 over K : [t]\noutput o = %8";
    assert!(contracted(read).contains("= mul %2 %0 : [t, K]"), "{}", contracted(read));
}
