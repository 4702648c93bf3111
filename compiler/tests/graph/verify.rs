//! Every rule of the verifier, broken.

use super::graph;
use super::text::EVERYTHING;
use chunkwise_compiler::graph::text::parse;
use chunkwise_compiler::graph::verify::verify;

/// Breaks a rule by replacing some text; the complaint must stand under the line that then holds `line`.
#[track_caller]
fn refused(found: &str, replaced: &str, line: &str, complaint: &str) {
    let text = EVERYTHING.replace(found, replaced);
    assert_ne!(text, EVERYTHING, "`{found}` is not in the text");
    let graph = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let error = verify(&graph).expect_err(complaint);
    let lines: Vec<&str> = error.text.lines().collect();
    let under = lines.iter().position(|printed| printed.contains(line)).expect("the line is printed") + 1;
    let noted = lines[under..].iter().take_while(|printed| printed.trim().starts_with("; ^"));
    assert!(noted.clone().any(|note| note.contains(complaint)), "expected `{complaint}` after `{line}` in\n{error}");
}

#[test]
fn a_right_graph_is_proven() {
    let graph = graph(EVERYTHING);
    assert_eq!(*verify(&graph).unwrap(), graph);
}

#[test]
fn dimensions_and_step() {
    refused("axis 2 3", "axis 2 0", "dim L", "at least one position");
    refused("dim L : axis", "dim V : axis", "dim V : axis 2", "another dimension has this name");
    refused("tokens=4", "tokens=0", "step", "at least one token");
    refused("tokens=4", "tokens=5", "step", "t has 4 rows for 5 tokens");
    refused("time=t", "time=s", "step", "not a row dimension");
    refused(" time=t", "", "step", "no row dimension");
}

#[test]
fn operands_come_first_and_exist() {
    refused("%8 = sub %7 %6", "%8 = sub %7 %8", "%8 = sub", "%8 does not come before it");
    refused("rhs (%2, %12)", "rhs (%2, %99)", "%31 = solve", "%99 does not come before it");
    refused("%3 = mul %0 %1", "%3 = mul %0 %4", "%3 = mul", "%4 does not come before it");
}

#[test]
fn dimensions_follow_from_the_operation() {
    refused("%7 %6 : [t, K]", "%7 %6 : [K, t]", "%8 = sub", "its dimensions are [t, K]");
    refused("%7 %6 : [t, K]", "%7 %6 : [t]", "%8 = sub", "its dimensions are [t, K]");
    refused("= broadcast %6", "= broadcast %0", "%10 = broadcast", "drops dimension K of %0");
    refused("sum %0 over K", "sum %0 over V", "%12 = sum", "%0 lacks dimension V");
    refused("max_over %0 over K", "max_over %0 over V", "%13 = max", "%0 lacks dimension V");
    refused("contract %0 %4 over K", "contract %0 %4 over V", "%14 = contract", "%0 lacks dimension V");
    refused("rename %0 t -> s", "rename %0 V -> s", "%16 = rename", "%0 lacks dimension V");
    refused("rename %0 t -> s", "rename %0 t -> K", "%16 = rename", "%0 has dimension K");
    refused("rename %0 t -> s", "rename %0 K -> s", "%16 = rename", "K has 3 positions, s has 4");
    refused("index %1 V at 1", "index %1 V at 2", "%17 = index", "V has no position 2");
    refused("stack j (%0, _)", "stack j (%0)", "%18 = stack", "1 parts along j");
    refused("stack j (%0, _)", "stack V (%1, _)", "%18 = stack", "%1 has dimension V");
    refused("guard %12 -inf : [t]", "guard %3 -inf : [K, V]", "%19 = guard", "%3 lacks dimension t");
    refused("diagonal %19 t s", "diagonal %19 K s", "%20 = diagonal", "%19 lacks dimension K");
    refused("diagonal %19 t s", "diagonal %19 t K", "%20 = diagonal", "t has 4 positions, K has 3");
    refused("diagonal_part %20 t s", "diagonal_part %19 t s", "%21 = diagonal_part", "%19 lacks dimension s");
    refused("diagonal_part %20 t s", "diagonal_part %20 t t", "%21 = diagonal_part", "the same dimension");
    refused("split %19 t -> b, i", "split %19 t -> b, K", "%22 = split", "t is not b times K");
    refused("merge %22 b, i -> t", "merge %22 b, i -> K", "%23 = merge", "K is not b times i");
    refused("result %32 0", "result %31 0", "%33 = result", "%31 is not a scan");
    refused("result %32 1", "result %32 2", "%34 = result", "the scan has 2 results");
}

#[test]
fn inputs_lie_in_memory_somehow() {
    refused("q : [t, K]", "q layout [K, K] : [t, K]", "%0 = token", "stands twice");
    refused("q : [t, K]", "q layout [t, K] : [t, K]", "%0 = token", "contains the row dimension t");
    refused("q : [t, K]", "q layout [] : [t, K]", "%0 = token", "its dimensions are [t]");
    refused("head A", "head q", "%3 = head", "another input reads `q`");
    refused("carry dS =", "carry dS = %0 -> %0 layout [] carry dS =", "carry dS = %0", "not an input that carries");
    refused("output grad.q", "output out.q", "%2 = cotangent", "a forward reads no cotangent");
    refused("%6 = const -0.5", "%6 = given 0", "%6 = given", "outside a scan");
}

#[test]
fn gates_have_rows_and_clocks() {
    refused(
        "segment t s diagonal gates (log %12,",
        "segment t s diagonal gates (log %3,",
        "%24 = segment",
        "%3 lacks dimension t",
    );
    refused(
        "(log %12, factor %13) from 1 to 2",
        "(log %12, factor %13) from 3 to 2",
        "%24 = segment",
        "clock 3 of a decay with 2",
    );
    refused("segment t s diagonal", "segment t t diagonal", "%24 = segment", "the same dimension");
    refused("segment t s gates ()", "segment t K gates ()", "%25 = segment", "t has 4 positions, K has 3");
    refused("segment_grad 1", "segment_grad 2", "%26 = segment_grad", "event 2 of a decay with 2");
    refused("segment_grad 1 %24", "segment_grad 1 %12", "%26 = segment_grad", "%12 lacks dimension s");
    refused("boundary_grad 0 %0", "boundary_grad 0 %1", "%28 = boundary_grad", "the weight %1 has dimension V");
    refused(
        "boundary total t gates (log %0) from 0 to 1",
        "boundary total t gates (log %0) from 0 to 2",
        "%27 = boundary",
        "clock 2",
    );
}

#[test]
fn the_trilinear_form_has_its_operands() {
    refused("gated rows weight=%24 cols=%16", "gated rows cols=%16", "%29 = gated", "needs an operand `weight`");
    refused("gated rows weight=%24", "gated rows weight=%24 rows=%0", "%29 = gated", "has an operand `rows`");
    refused("gated rows weight=%24 cols=%16", "gated rows weight=%24 cols=%0", "%29 = gated", "%0 lacks dimension s");
    refused("gated rows weight=%24", "gated rows weight=%12", "%29 = gated", "%12 lacks dimension s");
    refused(
        "cols=%16 t s over K gates (log %0) from 0 to 1 : [t, K]",
        "cols=%16 t s gates (log %0) from 0 to 1 : [t, K]",
        "%29 = gated",
        "axis K is not among its axes",
    );
    refused("gated gate 0", "gated gate 1", "%30 = gated", "event 1 of a decay with 1");
}

#[test]
fn a_solve_has_its_parts() {
    refused("(_, _, %24, _)", "(_, %24, _)", "%31 = solve", "2 right-hand sides with 3 blocks");
    refused("reads (1, 0)", "reads (1)", "%31 = solve", "1 read and 2 write clocks");
    refused("reads (1, 0)", "reads (2, 0)", "%31 = solve", "clock 2 of a decay with 1");
    refused("(_, _, %24, _)", "(_, _, %12, _)", "%31 = solve", "%12 lacks dimension s");
    refused("rhs (%2, %12)", "rhs (%2, %3)", "%31 = solve", "%3 lacks dimension t");
    refused("scale (_, %13)", "scale (_, %18)", "%31 = solve", "%18 has dimension j");
    refused("solve transposed j t s", "solve transposed K t s", "%31 = solve", "K of size 3");
}

#[test]
fn an_inverse_has_its_blocks() {
    refused("(_, %24, _, %25)", "(_, %24, _)", "%35 = inverse", "3 blocks, j has 2 positions");
    refused("(_, %24, _, %25)", "(_, %12, _, %25)", "%35 = inverse", "%12 lacks dimension s");
    refused("inverse j from t s", "inverse j j t s", "%35 = inverse", "two slot dimensions");
    refused("inverse j from t s", "inverse j K t s", "%35 = inverse", "j has 2 positions, K has 3");
    refused("inverse j from t s", "inverse j from i s", "%35 = inverse", "i has 2 positions, s has 4");
}

#[test]
fn a_body_is_closed() {
    refused("sequences (%0)", "sequences (%3)", "} : []", "%3 lacks dimension t");
    refused("invariants (%3)", "invariants (%0)", "} : []", "%0 has dimension t");
    refused("invariants (%3)", "invariants ()", "} : []", "takes 3 inputs, it is given 2");
    refused("outputs (%4, %3)", "outputs ()", "} : []", "gives 0 of 1 carries");
    refused("outputs (%4, %3)", "outputs (%0, %3)", "inputs (%0", "%0 has not the dimensions of its carry");
    refused("outputs (%4, %3)", "outputs (%4, %9)", "inputs (%0", "%9 does not exist");
    refused("inputs (%0, %1, %2)", "inputs (%1, %0, %2)", "inputs (%1", "each once");
    refused("%0 = given 0 : [K]", "%0 = token k : [K]", "%0 = token k", "read inside a scan");
    refused("%2 = given 2", "%2 = given 3", "%2 = given 3", "no input 3");
}

#[test]
fn carries_and_results_fit() {
    refused("dS = %4 -> %33", "dS = %4 -> %30", "carry dS =", "different dimensions");
    refused("dS = %4 -> %33", "dS = %4 -> %99", "carry dS =", "does not exist");
    refused("dS = %4 -> %33", "dS = %5 -> %33", "%4 = carry dS", "0 carries feed this input");
    refused("final=grad_init.S layout [V, K]", "final=grad_init.S layout [K]", "carry dS =", "its layout has not");
    refused("final=grad_init.S", "final=grad.q", "output grad.q", "another result has this name");
    refused("output grad.q = %30", "output grad.q = %4", "output grad.q", "%4 lacks the row dimension");
    refused("layout grad.k [V, K]", "layout grad.k [K]", "output grad.k", "its layout has not");
    refused("layout grad.k [V, K]", "layout grad.z [K]", "layout grad.z", "a layout of no output");
    refused("save saved.X = %31", "save saved.X = %99", "save saved.X", "does not exist");
    refused("save saved.X", "save grad.k", "save grad.k", "another result has this name");
}
