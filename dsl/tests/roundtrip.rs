//! Text to syntax and back, on programs nobody wrote: what is formatted reads as the same syntax, formatting twice is
//! formatting once, every comment survives, and nothing makes the parser or the checker panic.

use std::fs;
use std::path::Path;

use chunkwise_dsl::ast::{
    AxisList, Block, Bound, Comment, ConstDecl, Expr, ExprKind, File, Name, Operator, Range, RangeKind, Recurrence,
    Statement, StatementKind, TensorDecl,
};
use chunkwise_dsl::span::Span;
use chunkwise_dsl::{check, compile, format, parse};
use proptest::prelude::*;

// ---- Syntax without places and layout, to compare

fn bare_name(name: &mut Name) {
    name.span = Span::default();
}

fn bare_comment(comment: &mut Comment) {
    comment.span = Span::default();
    comment.blank_before = false;
}

fn bare_axes(axes: &mut AxisList) {
    axes.span = Span::default();
    axes.names.iter_mut().for_each(bare_name);
}

fn bare_tensor(decl: &mut TensorDecl) {
    decl.span = Span::default();
    bare_name(&mut decl.name);
    bare_axes(&mut decl.axes);
    if let Some(range) = &mut decl.range {
        range.span = Span::default();
        match &mut range.kind {
            RangeKind::Interval { lo, hi, .. } => {
                lo.span = Span::default();
                hi.span = Span::default();
            }
            RangeKind::Unit(name) => bare_name(name),
        }
    }
}

/// Without places, and without parentheses: the tree says the same.
fn bare_expr(expr: &mut Expr) {
    while let ExprKind::Paren(inner) = &mut expr.kind {
        let inner = std::mem::replace(&mut **inner, number("0"));
        *expr = inner;
    }
    expr.span = Span::default();
    match &mut expr.kind {
        ExprKind::Number { .. } | ExprKind::Name(_) | ExprKind::Paren(_) => {}
        ExprKind::Neg(inner) => bare_expr(inner),
        ExprKind::Binary { op: _, op_span, lhs, rhs } => {
            *op_span = Span::default();
            bare_expr(lhs);
            bare_expr(rhs);
        }
        ExprKind::Call { function, arguments } => {
            bare_name(function);
            arguments.iter_mut().for_each(bare_expr);
        }
        ExprKind::Mapping { from, to } => {
            bare_name(from);
            bare_name(to);
        }
        ExprKind::Index { base, index } => {
            bare_expr(base);
            bare_expr(index);
        }
    }
}

fn bare_block(block: &mut Block) {
    block.span = Span::default();
    block.trailing.iter_mut().for_each(bare_comment);
    for statement in &mut block.statements {
        statement.span = Span::default();
        statement.blank_before = false;
        statement.leading.iter_mut().for_each(bare_comment);
        statement.trailing.iter_mut().for_each(bare_comment);
        match &mut statement.kind {
            StatementKind::Axes(names) => names.iter_mut().for_each(bare_name),
            StatementKind::Inputs(decls) | StatementKind::Params(decls) | StatementKind::States(decls) => {
                decls.iter_mut().for_each(bare_tensor);
            }
            StatementKind::Consts(decls) => {
                for decl in decls {
                    decl.span = Span::default();
                    bare_name(&mut decl.name);
                    bare_expr(&mut decl.value);
                }
            }
            StatementKind::Output { name, axes, value } => {
                bare_name(name);
                bare_axes(axes);
                bare_expr(value);
            }
            StatementKind::Let { name, value } | StatementKind::Update { name, value } => {
                bare_name(name);
                bare_expr(value);
            }
            StatementKind::For { var, axis, body } => {
                bare_name(var);
                bare_name(axis);
                bare_block(body);
            }
            StatementKind::Broken { .. } => panic!("something could not be read"),
        }
    }
}

fn bare(mut file: File) -> File {
    file.trailing.iter_mut().for_each(bare_comment);
    for recurrence in &mut file.recurrences {
        recurrence.span = Span::default();
        recurrence.blank_before = false;
        bare_name(&mut recurrence.name);
        recurrence.leading.iter_mut().for_each(bare_comment);
        recurrence.trailing.iter_mut().for_each(bare_comment);
        bare_block(&mut recurrence.body);
    }
    file
}

// ---- Random syntax

fn name_of(text: &str) -> Name {
    Name { text: text.to_owned(), span: Span::default() }
}

fn number(text: &str) -> Expr {
    let value = text.parse().expect("a number");
    Expr { kind: ExprKind::Number { text: text.to_owned(), value }, span: Span::default() }
}

fn names() -> impl Strategy<Value = Name> {
    prop::sample::select(vec!["q", "k", "v", "S", "K", "V", "exp_2", "in_", "inputs", "fore", "unit", "inf", "_x9"])
        .prop_map(name_of)
}

fn expr(kind: ExprKind) -> Expr {
    Expr { kind, span: Span::default() }
}

fn exprs() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        names().prop_map(|name| expr(ExprKind::Name(name.text))),
        prop::sample::select(vec!["0", "1", "2.50", "1e-6", "3E+2"]).prop_map(number),
    ];
    leaf.prop_recursive(6, 40, 3, |inner| {
        let operator = prop_oneof![
            Just(Operator::Add),
            Just(Operator::Sub),
            Just(Operator::Mul),
            Just(Operator::Div),
            Just(Operator::Contract),
            Just(Operator::Pow)
        ];
        let mapping = (names(), names()).prop_map(|(from, to)| expr(ExprKind::Mapping { from, to }));
        let argument = prop_oneof![4 => inner.clone(), 1 => mapping];
        prop_oneof![
            inner.clone().prop_map(|inner| expr(ExprKind::Neg(Box::new(inner)))),
            inner.clone().prop_map(|inner| expr(ExprKind::Paren(Box::new(inner)))),
            (operator, inner.clone(), inner.clone()).prop_map(|(op, lhs, rhs)| {
                let op_span = Span::default();
                expr(ExprKind::Binary { op, op_span, lhs: Box::new(lhs), rhs: Box::new(rhs) })
            }),
            (names(), prop::collection::vec(argument, 0..3))
                .prop_map(|(function, arguments)| expr(ExprKind::Call { function, arguments })),
            (inner.clone(), inner)
                .prop_map(|(base, index)| { expr(ExprKind::Index { base: Box::new(base), index: Box::new(index) }) }),
        ]
    })
}

fn axis_lists() -> impl Strategy<Value = AxisList> {
    prop::collection::vec(names(), 0..3).prop_map(|names| AxisList { names, span: Span::default() })
}

fn bounds() -> impl Strategy<Value = Bound> {
    prop::sample::select(vec!["-inf", "inf", "0", "-4", "1e-3"]).prop_map(|text| {
        let value = text.parse().expect("Rust reads inf too");
        Bound { text: text.to_owned(), value, span: Span::default() }
    })
}

fn ranges() -> impl Strategy<Value = Range> {
    let interval = (bounds(), bounds(), any::<bool>(), any::<bool>())
        .prop_map(|(lo, hi, lo_closed, hi_closed)| RangeKind::Interval { lo, hi, lo_closed, hi_closed });
    prop_oneof![interval, names().prop_map(RangeKind::Unit)].prop_map(|kind| Range { kind, span: Span::default() })
}

fn tensors() -> impl Strategy<Value = Vec<TensorDecl>> {
    let one = (names(), axis_lists(), prop::option::of(ranges())).prop_map(|(name, axes, range)| TensorDecl {
        name,
        axes,
        range,
        span: Span::default(),
    });
    prop::collection::vec(one, 1..4)
}

fn comments() -> impl Strategy<Value = Comment> {
    let text = prop::sample::select(vec!["//", "// a = b }", "/// doc é ×", "//// four", "// {[("]);
    (text, any::<bool>()).prop_map(|(text, blank_before)| Comment {
        text: text.to_owned(),
        blank_before,
        span: Span::default(),
    })
}

fn some_comments() -> impl Strategy<Value = Vec<Comment>> {
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(comments(), 1..3)]
}

fn statement_of(kind: impl Strategy<Value = StatementKind>) -> impl Strategy<Value = Statement> {
    (some_comments(), any::<bool>(), kind, prop::option::weighted(0.2, comments())).prop_map(
        |(leading, blank_before, kind, trailing)| Statement {
            leading,
            blank_before,
            kind,
            trailing,
            span: Span::default(),
        },
    )
}

fn blocks() -> impl Strategy<Value = Block> {
    let constant = (names(), exprs()).prop_map(|(name, value)| ConstDecl { name, value, span: Span::default() });
    let flat = prop_oneof![
        prop::collection::vec(names(), 1..3).prop_map(StatementKind::Axes),
        tensors().prop_map(StatementKind::Inputs),
        tensors().prop_map(StatementKind::Params),
        tensors().prop_map(StatementKind::States),
        prop::collection::vec(constant, 1..3).prop_map(StatementKind::Consts),
        (names(), axis_lists(), exprs()).prop_map(|(name, axes, value)| StatementKind::Output { name, axes, value }),
        (names(), exprs()).prop_map(|(name, value)| StatementKind::Let { name, value }),
        (names(), exprs()).prop_map(|(name, value)| StatementKind::Update { name, value }),
    ]
    .boxed();
    let block =
        |kind: BoxedStrategy<StatementKind>| {
            (prop::collection::vec(statement_of(kind), 0..6), some_comments())
                .prop_map(|(statements, trailing)| Block { statements, trailing, span: Span::default() })
        };
    let inner = block(flat.clone());
    let looped = (names(), names(), inner).prop_map(|(var, axis, body)| StatementKind::For { var, axis, body });
    block(prop_oneof![5 => flat, 1 => looped].boxed())
}

fn files() -> impl Strategy<Value = File> {
    let recurrence = (some_comments(), any::<bool>(), names(), blocks(), prop::option::weighted(0.2, comments()))
        .prop_map(|(leading, blank_before, name, body, trailing)| Recurrence {
            leading,
            blank_before,
            name,
            body,
            trailing,
            span: Span::default(),
        });
    (prop::collection::vec(recurrence, 0..3), some_comments())
        .prop_map(|(recurrences, trailing)| File { recurrences, trailing })
}

// ---- Random text

fn sources() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.join("../examples/mechanisms"), root.join("tests/refused"), root.join("tests/warned")];
    let mut paths: Vec<_> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("the folder is there"))
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cw"))
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).expect("the file can be read")).collect()
}

/// Pieces that make trouble.
const PIECES: [&str; 46] = [
    "recurrence",
    "axis",
    "input",
    "param",
    "const",
    "state",
    "output",
    "let",
    "for",
    "in",
    "K",
    "V",
    "S",
    "q",
    "x",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "=",
    "+",
    "-",
    "*",
    "/",
    "@",
    "^",
    ",",
    ":",
    ";",
    "->",
    "+=",
    "**",
    "0",
    "1.5",
    "1e999",
    ".5",
    "2x",
    "unit",
    "inf",
    "max",
    "rename",
    "// c\n",
    "\n",
    "é→²\"#",
];

fn soup() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60).prop_map(|pieces| pieces.join(" "))
}

/// A program with a few pieces put in, taken out or exchanged.
fn mutants() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0usize..12, prop::option::of(prop::sample::select(&PIECES[..])));
    (prop::sample::select(sources()), prop::collection::vec(edit, 1..4)).prop_map(|(mut source, edits)| {
        for (place, length, piece) in edits {
            let boundaries: Vec<usize> = source.char_indices().map(|(at, _)| at).chain([source.len()]).collect();
            let from = place.index(boundaries.len());
            let to = (from + length).min(boundaries.len() - 1);
            source.replace_range(boundaries[from]..boundaries[to], piece.unwrap_or(""));
        }
        source
    })
}

/// What can be said of every text: no panic, labels inside of it, errors or programs; and formatting keeps a program.
fn survives(source: &str) {
    let said = match compile(source) {
        Err(diagnostics) => {
            assert!(diagnostics.iter().any(|diagnostic| diagnostic.is_error()));
            diagnostics
        }
        Ok(compiled) => {
            let formatted = format(&parse(source).0);
            let again = compile(&formatted).unwrap_or_else(|errors| panic!("{errors:#?}\n{formatted}"));
            let meaning = |programs: &[chunkwise_dsl::program::Program]| -> Vec<String> {
                programs
                    .iter()
                    .map(|program| {
                        let exprs: Vec<_> = program.exprs.iter().map(|expr| (&expr.kind, &expr.axes)).collect();
                        format!("{exprs:?} {}", program.doc)
                    })
                    .collect()
            };
            assert_eq!(meaning(&compiled.programs), meaning(&again.programs));
            compiled.warnings
        }
    };
    for diagnostic in said {
        let help = diagnostic.help.iter().filter_map(|help| help.replacement.as_ref()).map(|it| it.span);
        for span in diagnostic.labels.iter().map(|label| label.span).chain(help) {
            assert!(source.get(span.start..span.end).is_some(), "{span:?} is no place in the source");
        }
        assert!(!diagnostic.title.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn what_is_formatted_reads_the_same(file in files()) {
        let text = format(&file);
        let (read, errors) = parse(&text);
        prop_assert!(errors.is_empty(), "{errors:#?}\n{text}");
        prop_assert_eq!(format(&read), text.as_str(), "formatted twice");
        prop_assert!(bare(read) == bare(file), "{}", text);
    }

    #[test]
    fn random_syntax_is_checked_without_a_panic(file in files()) {
        survives(&format(&file));
    }

    #[test]
    fn a_soup_of_words_is_survived(source in soup()) {
        survives(&source);
    }

    #[test]
    fn a_soup_in_a_recurrence_is_survived(source in soup()) {
        survives(&format!("recurrence x {{ axis K, V input q: [K] state S: [K, V] {source} }}"));
    }

    #[test]
    fn any_text_is_survived(source in "\\PC*") {
        survives(&source);
    }

    #[test]
    fn mutilated_programs_are_survived(source in mutants()) {
        survives(&source);
    }
}

#[test]
fn formatting_twice_is_formatting_once() {
    for source in sources() {
        let (file, errors) = parse(&source);
        if errors.is_empty() {
            let once = format(&file);
            let (again, errors) = parse(&once);
            assert_eq!(errors, []);
            assert_eq!(format(&again), once);
            assert_eq!(bare(again), bare(file));
        }
    }
}

#[test]
fn comments_stay_where_they_belong() {
    let source = "\
// file

/// doc
recurrence a { // after the brace
    axis K // trailing
    // before the state


    state n: [K]  // short
    input k: [K],   // inside
        g: [] in (-inf, 0]
    n = exp(g)*n+k // long
    for r in K { // loop
        n = n + r
        // at the end of the loop
    } // after the loop
    output o: [K] = n
    // at the end
} // after
// last
";
    let formatted = "\
// file

/// doc
recurrence a {
    // after the brace
    axis K  // trailing
    // before the state

    state n: [K]  // short
    // inside
    input k: [K], g: [] in (-inf, 0]
    n = exp(g) * n + k  // long
    for r in K {
        // loop
        n = n + r
        // at the end of the loop
    }  // after the loop
    output o: [K] = n
    // at the end
}  // after

// last
";
    let (file, errors) = parse(source);
    assert_eq!(errors, []);
    assert_eq!(format(&file), formatted);
}

/// On a stack no larger than a thread's usually is, in a build without optimisation.
#[test]
fn deep_and_long_programs_do_not_exhaust_the_stack() {
    let body =
        |value: &str| format!("recurrence x {{ axis K input k: [K] state n: [K] n = {value} output o: [K] = n }}");
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    let programs = [
        body(&nested("(", "n", ")", 90)),
        body(&nested("exp(", "k", ")", 90)),
        body(&nested("k[", "0", "]", 90)),
        body(&nested("(", "n", ")", 100_000)),
        body(&nested("(", "n", "", 100_000)),
        body(&"-".repeat(100_000)),
        body(&format!("n{}", " + k".repeat(150))),
        body(&format!("n{}", " + k".repeat(100_000))),
        body(&format!("k{}", " ^ k".repeat(100_000))),
        body(&format!("k{}", "[0]".repeat(100_000))),
        body(&format!("k{}", " k".repeat(20_000))),
        nested("recurrence x { for r in K {", "", "}", 100_000),
        format!("recurrence x {{ axis R {} n = n {} }}", "for r in R { ".repeat(90), "}".repeat(90)),
    ];
    let survive = move || {
        for source in &programs {
            survives(source);
        }
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(survive).expect("a thread can be started");
    thread.join().expect("nothing panicked");
}

#[test]
fn nested_loops_cost_no_more_than_flat_ones() {
    let axes: Vec<String> = (0..60).map(|index| format!("R{index}")).collect();
    let loops: String = axes.iter().map(|axis| format!("for r{axis} in {axis} {{ ")).collect();
    let source = format!(
        "recurrence x {{ axis K, {} input k: [K] state n: [K], m: [K] {loops} n = n + m m = m - k {} output o: [K] = n }}",
        axes.join(", "),
        "}".repeat(60)
    );
    let (file, errors) = parse(&source);
    assert_eq!(errors, []);
    let start = std::time::Instant::now();
    let (programs, _) = check(&file);
    assert_eq!(programs.len(), 1);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
