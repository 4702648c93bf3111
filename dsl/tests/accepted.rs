//! What the language accepts, and what it understands by it: the examples, corners of the grammar, and the programs
//! that come out. In: `examples/mechanisms/*.cw` and small sources written here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chunkwise_dsl::instance::{Instance, InstanceError};
use chunkwise_dsl::program::{AxisId, Binary, ExprKind, Index, Program, Range, Stmt, TensorKind};
use chunkwise_dsl::{compile, format, parse};

fn mechanisms() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/mechanisms");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the examples are there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cw"))
        .collect();
    paths.sort();
    paths
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("file names are plain")
}

/// The one program of a source without warnings.
fn program(source: &str) -> Program {
    match compile(source) {
        Ok(mut compiled) => {
            assert_eq!(compiled.warnings, [], "{source}");
            assert_eq!(compiled.programs.len(), 1);
            compiled.programs.remove(0)
        }
        Err(diagnostics) => panic!("refused: {diagnostics:#?}\n{source}"),
    }
}

fn names(program: &Program, axes: &[AxisId]) -> Vec<String> {
    axes.iter().map(|axis| program.axes[axis.index()].name.clone()).collect()
}

fn sizes(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
}

fn values(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

#[test]
fn every_mechanism_is_accepted_without_a_warning() {
    let paths = mechanisms();
    assert_eq!(paths.len(), 16);
    for path in paths {
        let source = fs::read_to_string(&path).expect("the file can be read");
        let program = program(&source);
        assert_eq!(program.name, stem(&path));
        assert!(program.doc.contains("arXiv"), "{} cites no paper", stem(&path));
        assert!(source.lines().count() <= 20, "{} is too long", stem(&path));
    }
}

#[test]
fn every_mechanism_is_formatted_already() {
    for path in mechanisms() {
        let source = fs::read_to_string(&path).expect("the file can be read");
        assert_eq!(format(&parse(&source).0), source, "{}", stem(&path));
    }
}

#[test]
fn layouts_are_those_of_the_declarations() {
    let source = fs::read_to_string(mechanisms().into_iter().find(|path| stem(path) == "mamba1").expect("it is there"));
    let program = program(&source.expect("the file can be read"));
    assert_eq!(names(&program, &program.states[0].axes), ["V", "N"]);
    let a = program.tensors.iter().find(|tensor| tensor.name == "A").expect("declared");
    assert_eq!((a.kind, names(&program, &a.axes)), (TensorKind::Param, vec!["V".to_owned(), "N".to_owned()]));
    let range = Range::Interval { lo: f64::NEG_INFINITY, hi: 0.0, lo_closed: false, hi_closed: true };
    assert_eq!(a.range, range);
}

#[test]
fn newlines_mean_nothing() {
    let tight = "recurrence x{axis K,V input q:[K],k:[K] in unit(K),v:[V] state S:[K,V],n:[K] S=S+k*v n=n+k output o:[V]=(q@S)/max(abs(q@n),1)}";
    let loose = tight.replace(' ', "\n").replace("=", "\n=\n").replace("+", "\n+\n");
    let (tight, loose) = (program(tight), program(&loose));
    assert_eq!(tight.body.len(), 3);
    let kinds = |program: &Program| {
        program.exprs.iter().map(|expr| format!("{:?}{:?}", expr.kind, expr.axes)).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&tight), kinds(&loose));
}

/// The value of the constant `x` in a recurrence whose axis K has size 8.
fn constant(value: &str) -> f64 {
    let source = format!(
        "recurrence c {{ axis K const x = {value} input k: [K] state n: [K] n = n + x * k output o: [] = K * sum(n, K) }}"
    );
    let program = program(&source);
    let instance = Instance::new(&program, &sizes(&[("K", 8)]), &BTreeMap::new()).expect("it fits");
    instance.consts[0]
}

#[test]
fn operators_bind_as_the_language_says() {
    assert_eq!(constant("2 + 3 * 4"), 14.0);
    assert_eq!(constant("2 - 3 - 4"), -5.0);
    assert_eq!(constant("16 / 4 / 2"), 2.0);
    assert_eq!(constant("-2 ^ 2"), -4.0);
    assert_eq!(constant("(-2) ^ 2"), 4.0);
    assert_eq!(constant("2 ^ -1"), 0.5);
    assert_eq!(constant("2 ^ 3 ^ 2"), 512.0);
    assert_eq!(constant("2 ^ -1 ^ 2"), 0.5);
    assert_eq!(constant("2 ^ --1"), 2.0);
    assert_eq!(constant("--3"), 3.0);
    assert_eq!(constant("3 * -2"), -6.0);
    assert_eq!(constant("K ^ -0.5"), 8f64.powf(-0.5));
    assert_eq!(constant("1e-3 * 2E+3"), 2.0);
    assert_eq!(constant("max(K, 3) + min(2, 1)"), 9.0);
}

#[test]
fn at_binds_as_a_product_from_the_left() {
    let program = program(
        "recurrence x { axis K, V input q: [K], k: [K], v: [V] const scale = K ^ -0.5 state S: [K, V] S = S + k * v output o: [V] = scale * q @ S }",
    );
    let Some(Stmt::Output { value, .. }) = program.body.last() else { panic!("the output is last") };
    let ExprKind::Contract { lhs, rhs, over } = &program.expr(*value).kind else { panic!("@ is outermost") };
    assert!(matches!(program.expr(*lhs).kind, ExprKind::Binary(Binary::Mul, ..)));
    assert!(matches!(program.expr(*rhs).kind, ExprKind::State(_)));
    assert_eq!(names(&program, over), ["K"]);
    assert_eq!(names(&program, &program.expr(*value).axes), ["V"]);
}

#[test]
fn indices_are_loop_variables_or_literals() {
    let program = program(
        "recurrence x { axis K, V, R input q: [K], k: [K, R], v: [V] state S: [K, V] for r in R { let e = k[r] S = S + r * e * v } output o: [V] = (q * k[0][1]) @ S + rename(q, K -> V) }",
    );
    let indices: Vec<(String, Index)> = (program.exprs.iter())
        .filter_map(|expr| match &expr.kind {
            ExprKind::Index { axis, index, .. } => Some((program.axes[axis.index()].name.clone(), *index)),
            _ => None,
        })
        .collect();
    let r = Index::Loop(chunkwise_dsl::program::LoopVarId(0));
    let expected = [("R", r), ("K", Index::Literal(0)), ("R", Index::Literal(1))];
    assert_eq!(indices, expected.map(|(axis, index)| (axis.to_owned(), index)));
    let fits = |k, v, r| Instance::new(&program, &sizes(&[("K", k), ("V", v), ("R", r)]), &BTreeMap::new()).map(|_| ());
    assert_eq!(fits(4, 4, 2), Ok(()));
    assert!(matches!(&fits(4, 4, 1).unwrap_err()[..], [InstanceError::IndexOutOfRange { index: 1, size: 1, .. }]));
    assert!(matches!(&fits(4, 5, 2).unwrap_err()[..], [InstanceError::RenameSizes { .. }]));
}

#[test]
fn states_that_feed_nothing_back_may_enter_in_any_way() {
    // A gate computed from another state's read; a product of two states outside of both; overwriting.
    program(
        "recurrence x { axis K, V input q: [K], k: [K], v: [V] state S: [K, V], n: [K], m: [K] n = n + k m = n * n S = sigmoid(q @ n) * S + k * v output o: [V] = tanh((q @ S) * (q @ m)) }",
    );
    // A low-rank coupling of two states, and reads through `let`.
    program(
        "recurrence x { axis K, V input q: [K], k: [K], v: [V] state S: [K, V], n: [V] let r = k @ S S = S + k * (v - r - n) n = n + r output o: [V] = q @ S }",
    );
    // One loop variable for two loops.
    program(
        "recurrence x { axis K, V, R input q: [K], k: [R, K], v: [V] state S: [K, V] for r in R { S = S + k[r] * v } for r in R { S = S - k[r] * (k[r] @ S) } output o: [V] = q @ S }",
    );
}

#[test]
fn every_function_is_understood() {
    let with = |call: &str| {
        let source = format!(
            "recurrence x {{ axis K, V, L input q: [K], k: [K], v: [V] state S: [K, V] let x = {call} S = S + k * v output o: [V] = sum(x * q, K) * (q @ S) + L }}"
        );
        let program = program(&source);
        let value = program.body.iter().find_map(|stmt| match stmt {
            Stmt::Let { value, .. } => Some(*value),
            Stmt::Update { .. } | Stmt::Output { .. } | Stmt::For { .. } => None,
        });
        let expr = program.expr(value.expect("there is a let"));
        (
            format!("{:?}", expr.kind).split('(').next().unwrap_or("").to_owned(),
            format!("{:?}", expr.kind),
            names(&program, &expr.axes),
        )
    };
    for (call, function) in [
        ("exp", "Exp"),
        ("exp2", "Exp2"),
        ("log", "Log"),
        ("sqrt", "Sqrt"),
        ("abs", "Abs"),
        ("sign", "Sign"),
        ("sigmoid", "Sigmoid"),
        ("logsigmoid", "LogSigmoid"),
        ("softplus", "Softplus"),
        ("silu", "Silu"),
        ("tanh", "Tanh"),
        ("elu", "Elu"),
        ("relu", "Relu"),
        ("gelu", "Gelu"),
        ("sin", "Sin"),
        ("cos", "Cos"),
        ("square", "Square"),
    ] {
        let (kind, text, axes) = with(&format!("{call}(k)"));
        assert_eq!((kind.as_str(), axes), ("Unary", vec!["K".to_owned()]));
        assert!(text.contains(&format!("({function},")), "{call} became {text}");
    }
    for (call, kind, function, axes) in [
        ("min(k, 0)", "Binary", "Min", "K"),
        ("max(k, q)", "Binary", "Max", "K"),
        ("max(k, K)", "Reduce", "Max", ""),
        ("sum(k, K)", "Reduce", "Sum", ""),
        ("mean(k * v, V)", "Reduce", "Mean", "K"),
        ("softmax(k, K)", "Reduce", "Softmax", "K"),
        ("l2norm(k, K)", "Reduce", "L2Norm", "K"),
        ("stop_gradient(k)", "StopGradient", "StopGradient", "K"),
        ("sum(rename(k, K -> L) * k, L)", "Reduce", "Sum", "K"),
        ("-k", "Unary", "Neg", "K"),
    ] {
        let (found, text, has) = with(call);
        assert_eq!((found.as_str(), has.join(",").as_str()), (kind, axes), "{call}");
        assert!(text.contains(function), "{call} became {text}");
    }
}

#[test]
fn declarations_have_no_order() {
    program(
        "recurrence x { output o: [V] = q @ S S = S + k * v state S: [K, V] input q: [K], k: [K], v: [V] axis K, V }",
    );
}

#[test]
fn several_recurrences_stand_in_one_file() {
    let one = "recurrence a { axis K input k: [K] state n: [K] n = n + k output o: [K] = n }";
    let two = one.replace(" a ", " b ");
    let compiled = compile(&format!("{one}\n{two}")).expect("both are right");
    let names: Vec<&str> = compiled.programs.iter().map(|program| program.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_broken_recurrence_leaves_the_other_one_whole() {
    let good = "recurrence a { axis K input k: [K] state n: [K] n = n + k output o: [K] = n }";
    let bad = "recurrence b { axis K input k: [K] state n: [K] n = n + output o: [K] = n }";
    let (file, errors) = parse(&format!("{bad}\n{good}"));
    assert_eq!(errors.len(), 1);
    let (programs, more) = chunkwise_dsl::check(&file);
    assert_eq!(more, []);
    assert_eq!(programs.len(), 1);
    assert_eq!(programs[0].name, "a");
}

#[test]
fn documentation_is_kept() {
    let program = program(
        "// licence\n\n/// One line.\n///  Another.\n// aside\nrecurrence a { axis K input k: [K] state n: [K] n = n + k output o: [K] = n }",
    );
    assert_eq!(program.doc, "One line.\n Another.");
}

#[test]
fn instances_say_everything_that_does_not_fit() {
    let program = program(
        "recurrence a { axis K, V const c = 1 / (K - 1), d = c + 1 input k: [K] state n: [K, V] n = n + d * k output o: [K] = V * sum(n, V) }",
    );
    let none = BTreeMap::new();
    let said = |sizes: &BTreeMap<String, usize>, consts: &BTreeMap<String, f64>| -> Vec<String> {
        Instance::new(&program, sizes, consts).unwrap_err().iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        said(&sizes(&[("k", 3), ("V", 0)]), &values(&[("e", 1.0), ("c", f64::NAN)])),
        [
            "there is no axis `k`; did you mean `K`?",
            "axis `K` has no size; give one, for example K=64",
            "axis `V` has size 0; every axis needs at least 1",
            "constant `c` was given as NaN; it has to be a finite number",
            "there is no constant `e`; the constants are c, d",
        ]
    );
    assert_eq!(
        said(&sizes(&[("K", 1), ("V", 1)]), &none),
        ["constant `c` comes out as inf at these sizes; it has to be a finite number"]
    );
    let large = said(&sizes(&[("K", 1 << 20), ("V", 1 << 20)]), &none);
    assert_eq!(large, ["state `n` would have more than 2^31 elements for every token and head (K=1048576, V=1048576)"]);
    let overridden = Instance::new(&program, &sizes(&[("K", 1), ("V", 1)]), &values(&[("c", 2.0)])).expect("it fits");
    assert_eq!(overridden.consts, [2.0, 3.0]);
}
