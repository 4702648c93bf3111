//! Print and parse.

use super::graph;
use chunkwise_compiler::graph::ir::{Dim, DimKind, Graph, Node, Op};
use chunkwise_compiler::graph::text::{parse, print};

/// Every operation, in the form the printer gives it.
pub const EVERYTHING: &str = "\
graph everything.chunkwise.backward {
  dim j : slot 2
  dim from : slot 2
  dim b : block 2
  dim c : block_col 2
  dim t : row 4
  dim i : row 2
  dim s : col 4
  dim K : axis 0 3
  dim V : axis 1 2
  dim L : axis 2 3
  step tokens=4 time=t reverse
  %0 = token q : [t, K]  ; @3..14
  %1 = token v layout [V, K] : [t, K, V]
  %2 = cotangent grad_out.o : [t, V]
  %3 = head A layout [V, K] : [K, V]
  %4 = carry dS : [K, V]
  %5 = saved saved.S layout [V, K] : [K, V]
  %6 = const -0.5 : []  ; rule scale
  %7 = exp %0 : [t, K]  ; rule carry-in @0..7
  %8 = sub %7 %6 : [t, K]
  %9 = select le %8 %6 %0 %7 : [t, K]
  %10 = broadcast %6 : [t]
  %11 = stop_gradient %9 : [t, K]
  %12 = sum %0 over K : [t]
  %13 = max_over %0 over K : [t]
  %14 = contract %0 %4 over K : [t, V]
  %15 = contract %0 %2 : [t, K, V]
  %16 = rename %0 t -> s : [s, K]
  %17 = index %1 V at 1 : [t, K]
  %18 = stack j (%0, _) : [j, t, K]
  %19 = guard %12 -inf : [t]
  %20 = diagonal %19 t s : [t, s]
  %21 = diagonal_part %20 t s : [t]
  %22 = split %19 t -> b, i : [b, i]
  %23 = merge %22 b, i -> t : [t]
  %24 = segment t s diagonal gates (log %12, factor %13) from 1 to 2 : [t, s]
  %25 = segment t s gates () from 0 to 0 : [t, s]
  %26 = segment_grad 1 %24 t s gates (log %12, factor %13) from 0 to 0 : [t]
  %27 = boundary total t gates (log %0) from 0 to 1 : [K]
  %28 = boundary_grad 0 %0 prefix t gates (log %0) from 0 to 1 : [t, K]
  %29 = gated rows weight=%24 cols=%16 t s over K gates (log %0) from 0 to 1 : [t, K]
  %30 = gated gate 0 weight=%24 rows=%0 cols=%16 t s over K gates (log %0) from 0 to 1 : [t, K]
  %31 = solve transposed j t s lower (_, _, %24, _) rhs (%2, %12) scale (_, %13) reads (1, 0) writes (0, 1) \
gates (log %2) from 0 to 0 : [j, t, V]
  %32 = scan reverse t sequences (%0) invariants (%3) carries (%4) {
    %0 = given 0 : [K]
    %1 = given 1 : [K, V]
    %2 = given 2 : [K, V]
    %3 = mul %0 %1 : [K, V]  ; rule \"as a scan\"
    %4 = add %2 %3 : [K, V]
    inputs (%0, %1, %2) outputs (%4, %3)
  } : []
  %33 = result %32 0 : [K, V]
  %34 = result %32 1 : [t, K, V]
  %35 = inverse j from t s lower (_, %24, _, %25) : [j, from, t, s]
  carry dS = %4 -> %33 init=grad_final.S final=grad_init.S layout [V, K]
  output grad.q = %30
  output grad.k = %34
  layout grad.k [V, K]
  save saved.X = %31
}
";

#[test]
fn every_operation_survives_a_round_trip() {
    let graph = graph(EVERYTHING);
    assert_eq!(print(&graph), EVERYTHING);
    assert_eq!(parse(&print(&graph)).unwrap(), graph);
}

#[test]
fn what_is_printed_without_words_is_read_as_such() {
    let graph = graph(EVERYTHING);
    // `final` without `init`, default layouts, no row dimension, an odd name.
    let mut odd = Graph { name: "a graph: \"named\" {\n".into(), time: None, tokens: 1, ..graph.clone() };
    odd.dims.push(Dim { name: "reverse".into(), kind: DimKind::Axis(7), size: 1 });
    odd.carries[0].init = None;
    odd.carries[0].layout = odd.node(odd.carries[0].input).dims.clone();
    odd.layouts.clear();
    odd.nodes.push(Node { op: Op::Const(f64::INFINITY), dims: vec![], span: None, rule: "50% \\ odd" });
    assert_eq!(parse(&print(&odd)).unwrap(), odd);
}

#[test]
fn numbers_survive_exactly() {
    for number in [0.0, -0.0, 1e-320, f64::MAX, 0.1, f64::NEG_INFINITY, 12345678.9] {
        let text = format!("graph g {{ step tokens=1 %0 = const {number:?} : [] }}");
        let Op::Const(read) = parse(&text).unwrap().nodes[0].op else { panic!("not a number") };
        assert_eq!(read.to_bits(), number.to_bits());
    }
    let text = "graph g { step tokens=1 %0 = const NaN : [] }";
    assert!(matches!(parse(text).unwrap().nodes[0].op, Op::Const(number) if number.is_nan()));
}

#[test]
fn a_text_that_is_no_graph_is_refused_where_it_goes_wrong() {
    for (found, replaced, message) in [
        ("%7 = exp", "%7 = expo", "`expo` where an operation is expected"),
        ("%7 = exp", "%8 = exp", "%8 where %7 is expected"),
        ("sum %0 over K :", "sum %0 over X :", "`X` where a dimension is expected"),
        ("index %1 V at 1", "index %1 V at -1", "`-1` where a whole number is expected"),
        ("stack j (%0, _)", "stack j (%0 _)", "`_` where `,` is expected"),
        ("save saved.X = %31", "save saved.X = 31", "`31` where a node is expected"),
        ("save saved.X = %31\n}", "save saved.X = %31", "the end where `}` is expected"),
        ("gates () from 0", "gates () 0", "`0` where `from` is expected"),
        ("%19 = guard", "%19 = \"guard", "a quote that does not end"),
        ("dim j : slot 2", "dim j : slut 2", "`slut` where `slot`"),
        ("%0 = token q", "%0 = token & q", "`&` has no meaning here"),
        ("inputs (%0, %1, %2)", "inputs (%, %1, %2)", "`%` without a node's number"),
    ] {
        let text = EVERYTHING.replacen(found, replaced, 1);
        assert_ne!(text, EVERYTHING, "{found}");
        let error = parse(&text).unwrap_err();
        assert!(error.message.starts_with(message), "{replaced}: {error}");
        let line = text.lines().position(|line| line.contains(replaced)).unwrap();
        assert_eq!(error.line, line + 1, "{replaced}: {error}");
    }
}

#[test]
fn deep_nesting_is_refused() {
    let open = "%0 = scan t sequences () invariants () carries () { ".repeat(100_000);
    let text = format!("graph g {{ dim t : row 1 step tokens=1 time=t {open}");
    assert!(parse(&text).unwrap_err().message.contains("no deeper nesting"));
}

#[test]
fn a_damaged_text_never_panics() {
    let mut draw = super::Draw(1);
    let mut refused = 0;
    for _ in 0..3000 {
        let mut text: Vec<char> = EVERYTHING.chars().collect();
        for _ in 0..1 + draw.below(3) {
            let at = draw.below(text.len());
            match draw.below(3) {
                0 => drop(text.remove(at)),
                1 => text.insert(at, ['%', '"', '-', '9', '{', ';', 'é'][draw.below(7)]),
                _ => text[at] = text[draw.below(text.len())],
            }
        }
        let text: String = text.into_iter().collect();
        match parse(&text) {
            Err(_) => refused += 1,
            // Whatever is read can be printed, verified and read again.
            Ok(graph) => {
                let _ = chunkwise_compiler::graph::verify::verify(&graph);
                assert_eq!(parse(&print(&graph)).unwrap(), graph, "{text}");
            }
        }
    }
    assert!(refused > 1000);
}
