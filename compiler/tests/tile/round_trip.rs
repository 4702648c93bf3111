//! Text and back: by hand, and over random kernels.

use crate::kernels::{CHUNKWISE, EVERYTHING, RECURRENT};
use chunkwise_abi::{Access, DType, Role};
use chunkwise_compiler::tile::ir::*;
use chunkwise_compiler::tile::text::{self, canonical, parse, print};
use proptest::prelude::*;

#[test]
fn written_kernels_print_as_they_were_written() {
    for text in [RECURRENT, CHUNKWISE, EVERYTHING] {
        let kernel = parse(text).unwrap();
        assert_eq!(print(&kernel), text);
        assert_eq!(canonical(&kernel), kernel, "a parsed kernel is canonical");
    }
}

#[test]
fn numbers_that_are_none_have_names() {
    let text = "kernel k {\n  arg y : f32 head[2] write\n  y[0] = nan + inf\n  y[1] = -inf - -0.0\n}\n";
    assert_eq!(print(&parse(text).unwrap()), text);
}

#[test]
fn comments_and_line_breaks_are_only_space() {
    let text = "kernel k{ # a comment\n arg y:f32 head[]write y\n[\n]=1 # another\n}";
    let kernel = parse(text).unwrap();
    assert_eq!(print(&kernel), "kernel k {\n  arg y : f32 head[] write\n  y[] = 1.0\n}\n");
}

#[test]
fn words_of_the_grammar_may_name_arguments_and_loops() {
    let text = "kernel for {
        arg for : f32 head[2] read  arg sum : f32 head[] read  arg kernel : f32 head[2] write
        for lanes in 0 .. 2 { kernel[lanes] = sum[] + for[lanes] }
    }";
    let kernel = parse(text).unwrap();
    assert_eq!(parse(&print(&kernel)).unwrap(), kernel);
}

#[test]
fn doubled_and_strange_names_become_unique() {
    let mut kernel = parse(RECURRENT).unwrap();
    kernel.vars.iter_mut().for_each(|name| *name = "T".to_string());
    kernel.buffers.iter_mut().for_each(|buffer| buffer.name = "1.γ".to_string());
    let text = print(&kernel);
    assert!(
        text.contains("buf %b1__ : [3, 2]\n  buf %b1___1 : [2]\n  for T_1 in 0 .. 3 {\n    lanes T_2 in"),
        "{text}"
    );
    let parsed = parse(&text).unwrap();
    assert_eq!(parsed, canonical(&kernel));
    assert_eq!(print(&parsed), text);
}

#[test]
fn an_unused_variable_is_dropped_and_the_rest_renumbered() {
    let mut kernel = parse("kernel k { arg y : f32 head[2] write for i in 0 .. 2 { y[i] = 1 } }").unwrap();
    kernel.vars = vec!["unused".to_string(), "i".to_string()];
    kernel.body = vec![Stmt::For {
        var: VarId(1),
        lo: Index { value: Affine::default(), at_most: None },
        hi: Index { value: Affine { constant: 2, ..Affine::default() }, at_most: None },
        order: Order::Any,
        body: vec![
            Stmt::Local { local: LocalId(7), value: Expr::Const(1.0) },
            Stmt::Store {
                place: Place {
                    memory: Memory::Arg(ArgId(0)),
                    indices: vec![Index {
                        value: Affine { vars: vec![(VarId(1), 1)], ..Affine::default() },
                        at_most: None,
                    }],
                },
                value: Expr::Local(LocalId(7)),
            },
        ],
    }];
    kernel.n_locals = 8;
    let parsed = parse(&print(&kernel)).unwrap();
    assert_eq!(parsed.vars, ["i"]);
    assert_eq!(parsed.n_locals, 1);
    assert_eq!(parsed, canonical(&kernel));
}

#[test]
fn what_is_no_tile_program_is_located() {
    let cases = [
        ("", "line 1, column 1: found the end of the text, expected `kernel`"),
        ("kernel", "line 1, column 7: found the end of the text, expected the kernel's name"),
        ("kernel k {", "line 1, column 11: found the end of the text, expected a statement or `}`"),
        ("kernel k { } }", "line 1, column 14: found `}`, expected nothing after the kernel"),
        (
            "kernel k {\n  arg q : f64 token[3] read }",
            "line 2, column 11: found `f64`, expected an element type: `f32`, `bf16` or `f16`",
        ),
        (
            "kernel k { arg q : f32 row[3] read }",
            "line 1, column 24: found `row`, expected a role: `token`, `head`, `sequence` or `chunk(tokens)`",
        ),
        ("kernel k { arg q : f32 token[3] }", "line 1, column 33: found `}`, expected `read` or `write`"),
        (
            "kernel k { arg q : f32 head[] read arg q : f32 head[] read }",
            "line 1, column 60: argument `q` is declared twice",
        ),
        ("kernel k { buf %b : [] }", "line 1, column 24: buffer `%b` needs at least one dimension"),
        (
            "kernel k { buf %b : [99999999999999999999999] }",
            "line 1, column 22: `99999999999999999999999` is too large",
        ),
        ("kernel k { %b[0] = 1 }", "line 1, column 12: buffer `%b` is not declared"),
        ("kernel k { q[0] = 1 }", "line 1, column 12: argument `q` is not declared"),
        ("kernel k { buf %b : [1] %b[i] = 1 }", "line 1, column 28: variable `i` is not in scope"),
        ("kernel k { buf %b : [1] %b[0] = x }", "line 1, column 33: local `x` is not in scope"),
        (
            "kernel k { buf %b : [1] if 0 < 1 { local x = 1 } %b[0] = x }",
            "line 1, column 58: local `x` is not in scope",
        ),
        ("kernel k { buf %b : [1] %b[0] = cosh(1) }", "line 1, column 33: `cosh` is not a function"),
        (
            "kernel k { buf %b : [1] %b[0] = -cos(1) }",
            "line 1, column 34: found `cos`, expected a number after `-`; the negative of a value is `neg(value)`",
        ),
        (
            "kernel k { buf %b : [1] %b[0] += 1 }",
            "line 1, column 34: found `1`, expected `sum` or `max`: only a reduction or a product adds in place",
        ),
        (
            "kernel k { buf %b : [1] matmul %b[1, 1] = %b[1, 2] * %b[3, 1] }",
            "line 1, column 63: the extents of a product must read [m, n] = [m, k] * [k, n]",
        ),
        (
            "kernel k { buf %b : [1] matmul %b[T, 1] = %b[T, 2] * %b[2, 1] }",
            "line 1, column 63: the rows and columns of a product must be plain numbers",
        ),
        ("kernel k { lanes i in 1 .. 2 { } }", "line 1, column 25: lanes count from 0"),
        ("kernel k { £ }", "line 1, column 12: `£` means nothing here"),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).expect_err(text).to_string(), expected);
    }
}

#[test]
fn hostile_texts_are_refused_without_a_crash() {
    let deep = format!("kernel k {{ buf %b : [1] %b[0] = {}1{} }}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(parse(&deep).unwrap_err().message.contains("nested"));
    let blocks = format!("kernel k {{ {} {} }}", "if 0 < 1 {".repeat(100_000), "}".repeat(100_000));
    assert!(parse(&blocks).unwrap_err().message.contains("nested"));
    let long = format!("kernel k {{ buf %b : [1] %b[0] = 1{} }}", " + 1".repeat(100_000));
    assert!(parse(&long).unwrap_err().message.contains("operators"));
    let large = "kernel k { buf %b : [1] %b[9223372036854775807 + 9223372036854775807] = 1 }";
    assert!(parse(large).unwrap_err().message.contains("too large"));
}

// Random kernels. They need not verify: the text holds whatever the types hold, as long as names are in scope.

const N_ARGS: u32 = 3;
const N_BUFFERS: u32 = 2;

/// A statement tree in which variables and locals are chosen by number among those in scope.
#[derive(Clone, Debug)]
enum Shape {
    For(IndexShape, IndexShape, Order, Vec<Shape>),
    Lanes(usize, Vec<Shape>),
    If(AffineShape, Compare, AffineShape, Vec<Shape>),
    Local(ExprShape),
    Assign(usize, ExprShape),
    Store(PlaceShape, ExprShape),
    Reduce(PlaceShape, bool, usize, ExprShape, bool),
    Matmul([(u32, AffineShape, usize, usize); 3], usize, usize, AffineShape, u8, u8),
}
type AffineShape = (i64, Vec<(usize, i64)>, Vec<(u8, i64)>);
type IndexShape = (AffineShape, Option<AffineShape>);
type PlaceShape = (u32, Vec<IndexShape>);
#[derive(Clone, Debug)]
enum ExprShape {
    Const(f64),
    Load(PlaceShape),
    Local(usize),
    Unary(usize, Box<ExprShape>),
    Binary(u8, Box<ExprShape>, Box<ExprShape>),
    Select(AffineShape, Compare, AffineShape, Box<ExprShape>, Box<ExprShape>),
    SelectValue(Compare, [Box<ExprShape>; 4]),
}

/// Gives shapes their ids.
#[derive(Default)]
struct Builder {
    vars: Vec<String>,
    scope: Vec<VarId>,
    locals: Vec<LocalId>,
    n_locals: u32,
}

impl Builder {
    fn affine(&self, (constant, vars, symbols): &AffineShape) -> Affine {
        let mut affine = Affine { constant: *constant, ..Affine::default() };
        for (pick, factor) in vars {
            let Some(var) = self.scope.get(pick % self.scope.len().max(1)) else { continue };
            if *factor != 0 && affine.vars.iter().all(|(found, _)| found != var) {
                affine.vars.push((*var, *factor));
            }
        }
        for (pick, factor) in symbols {
            let symbol = [Symbol::Length, Symbol::Chunks(16), Symbol::Chunks(64)][*pick as usize];
            if *factor != 0 && affine.symbols.iter().all(|(found, _)| *found != symbol) {
                affine.symbols.push((symbol, *factor));
            }
        }
        affine
    }
    fn index(&self, (value, at_most): &IndexShape) -> Index {
        Index { value: self.affine(value), at_most: at_most.as_ref().map(|limit| self.affine(limit)) }
    }
    fn place(&self, (memory, indices): &PlaceShape) -> Place {
        let memory =
            if *memory < N_ARGS { Memory::Arg(ArgId(*memory)) } else { Memory::Buffer(BufferId(memory - N_ARGS)) };
        Place { memory, indices: indices.iter().map(|index| self.index(index)).collect() }
    }
    fn expr(&self, shape: &ExprShape) -> Expr {
        let boxed = |shape: &ExprShape| Box::new(self.expr(shape));
        match shape {
            ExprShape::Const(value) => Expr::Const(*value),
            ExprShape::Load(place) => Expr::Load(self.place(place)),
            ExprShape::Local(pick) => match self.locals.get(pick % self.locals.len().max(1)) {
                Some(local) => Expr::Local(*local),
                None => Expr::Const(0.5),
            },
            ExprShape::Unary(pick, x) => Expr::Unary(text::UNARY[pick % text::UNARY.len()], boxed(x)),
            ExprShape::Binary(pick, a, b) => {
                use chunkwise_compiler::graph::ir::Binary::*;
                Expr::Binary([Add, Sub, Mul, Div, Min, Max, Pow][*pick as usize], boxed(a), boxed(b))
            }
            ExprShape::Select(lhs, op, rhs, a, b) => {
                Expr::Select(Cond { lhs: self.affine(lhs), op: *op, rhs: self.affine(rhs) }, boxed(a), boxed(b))
            }
            ExprShape::SelectValue(op, [lhs, rhs, a, b]) => {
                Expr::SelectValue(*op, boxed(lhs), boxed(rhs), boxed(a), boxed(b))
            }
        }
    }
    fn declare(&mut self, name: &str) -> VarId {
        self.vars.push(name.to_string());
        VarId(self.vars.len() as u32 - 1)
    }
    fn block(&mut self, shapes: &[Shape]) -> Vec<Stmt> {
        let n_locals = self.locals.len();
        let body = shapes.iter().map(|shape| self.stmt(shape)).collect();
        self.locals.truncate(n_locals);
        body
    }
    fn within(&mut self, var: VarId, shapes: &[Shape]) -> Vec<Stmt> {
        self.scope.push(var);
        let body = self.block(shapes);
        self.scope.pop();
        body
    }
    fn stmt(&mut self, shape: &Shape) -> Stmt {
        match shape {
            Shape::For(lo, hi, order, body) => {
                let (lo, hi) = (self.index(lo), self.index(hi));
                let var = self.declare("i");
                Stmt::For { var, lo, hi, order: *order, body: self.within(var, body) }
            }
            Shape::Lanes(extent, body) => {
                let var = self.declare("min");
                Stmt::Lanes { var, extent: *extent, body: self.within(var, body) }
            }
            Shape::If(lhs, op, rhs, body) => {
                let cond = Cond { lhs: self.affine(lhs), op: *op, rhs: self.affine(rhs) };
                Stmt::If { cond, body: self.block(body) }
            }
            Shape::Local(value) => {
                let value = self.expr(value);
                let local = LocalId(self.n_locals);
                self.n_locals += 1;
                self.locals.push(local);
                Stmt::Local { local, value }
            }
            Shape::Assign(pick, value) => match self.locals.get(pick % self.locals.len().max(1)) {
                Some(local) => Stmt::Assign { local: *local, value: self.expr(value) },
                None => self.stmt(&Shape::Local(value.clone())),
            },
            Shape::Store(place, value) => Stmt::Store { place: self.place(place), value: self.expr(value) },
            Shape::Reduce(place, max, extent, value, accumulate) => {
                let place = self.place(place);
                let var = self.declare("k");
                self.scope.push(var);
                let value = self.expr(value);
                self.scope.pop();
                let op = if *max { ReduceOp::Max } else { ReduceOp::Sum };
                Stmt::ReduceLanes { place, op, var, extent: *extent, value, accumulate: *accumulate }
            }
            Shape::Matmul(views, m, n, k, update, triangle) => {
                let view = |(buffer, offset, row_stride, col_stride): &(u32, AffineShape, usize, usize)| View {
                    buffer: BufferId(*buffer),
                    offset: self.affine(offset),
                    row_stride: *row_stride,
                    col_stride: *col_stride,
                };
                use Triangle::*;
                Stmt::Matmul(Matmul {
                    dst: view(&views[0]),
                    a: view(&views[1]),
                    b: view(&views[2]),
                    m: *m,
                    n: *n,
                    k: self.affine(k),
                    update: [Update::Set, Update::Add, Update::Subtract][*update as usize],
                    triangle: [Full, LowerResult, LowerLeft, UpperLeft][*triangle as usize % 4],
                    exact: *triangle >= 4,
                })
            }
        }
    }
}

fn any_affine() -> impl Strategy<Value = AffineShape> {
    let factor = prop_oneof![Just(1i64), Just(-1), -70i64..70, any::<i32>().prop_map(i64::from)];
    let vars = prop::collection::vec((0usize..8, factor.clone()), 0..3);
    let symbols = prop::collection::vec((0u8..3, factor.clone()), 0..3);
    (factor, vars, symbols)
}
fn any_index() -> impl Strategy<Value = IndexShape> {
    (any_affine(), prop::option::weighted(0.3, any_affine()))
}
fn any_place() -> impl Strategy<Value = PlaceShape> {
    (0..N_ARGS + N_BUFFERS, prop::collection::vec(any_index(), 0..4))
}
fn any_compare() -> impl Strategy<Value = Compare> {
    prop::sample::select(vec![Compare::Lt, Compare::Le, Compare::Eq])
}
fn any_expr() -> impl Strategy<Value = ExprShape> {
    let number = any::<f64>().prop_filter("NaN equals nothing", |value| !value.is_nan());
    let leaf = prop_oneof![
        number.prop_map(ExprShape::Const),
        prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, f64::INFINITY, f64::NEG_INFINITY, 1e300, 5e-324])
            .prop_map(ExprShape::Const),
        any_place().prop_map(ExprShape::Load),
        (0usize..8).prop_map(ExprShape::Local),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let boxed = inner.prop_map(Box::new);
        prop_oneof![
            (0usize..32, boxed.clone()).prop_map(|(op, x)| ExprShape::Unary(op, x)),
            (0u8..7, boxed.clone(), boxed.clone()).prop_map(|(op, a, b)| ExprShape::Binary(op, a, b)),
            (any_affine(), any_compare(), any_affine(), boxed.clone(), boxed.clone())
                .prop_map(|(lhs, op, rhs, a, b)| ExprShape::Select(lhs, op, rhs, a, b)),
            (any_compare(), boxed.clone(), boxed.clone(), boxed.clone(), boxed)
                .prop_map(|(op, a, b, c, d)| ExprShape::SelectValue(op, [a, b, c, d])),
        ]
    })
}
fn any_body() -> impl Strategy<Value = Vec<Shape>> {
    let view = || (0..N_BUFFERS, any_affine(), prop::sample::select(vec![1usize, 16, 64, 100]), 1usize..40);
    let leaf = prop_oneof![
        any_expr().prop_map(Shape::Local),
        (0usize..8, any_expr()).prop_map(|(pick, value)| Shape::Assign(pick, value)),
        (any_place(), any_expr()).prop_map(|(place, value)| Shape::Store(place, value)),
        (any_place(), any::<bool>(), 1usize..200, any_expr(), any::<bool>())
            .prop_map(|(place, max, n, value, add)| Shape::Reduce(place, max, n, value, add)),
        ([view(), view(), view()], 1usize..99, 1usize..99, any_affine(), 0u8..3, 0u8..8)
            .prop_map(|(views, m, n, k, update, triangle)| Shape::Matmul(views, m, n, k, update, triangle)),
    ];
    let stmt = leaf.prop_recursive(3, 12, 4, |inner| {
        let body = prop::collection::vec(inner, 0..4);
        prop_oneof![
            (
                any_index(),
                any_index(),
                prop::sample::select(vec![Order::Forward, Order::Reverse, Order::Any]),
                body.clone()
            )
                .prop_map(|(lo, hi, order, body)| Shape::For(lo, hi, order, body)),
            (1usize..300, body.clone()).prop_map(|(n, body)| Shape::Lanes(n, body)),
            (any_affine(), any_compare(), any_affine(), body)
                .prop_map(|(lhs, op, rhs, body)| Shape::If(lhs, op, rhs, body)),
        ]
    });
    prop::collection::vec(stmt, 0..6)
}

fn kernel_of(shapes: &[Shape]) -> Kernel {
    let mut builder = Builder::default();
    let body = builder.block(shapes);
    let arg = |name: &str, dtype, role, inner: &[usize], access| Arg {
        name: name.to_string(),
        dtype,
        role,
        inner: inner.to_vec(),
        access,
    };
    Kernel {
        name: "random.kernel".to_string(),
        args: vec![
            arg("q", DType::F32, Role::Token, &[3, 40], Access::Read),
            arg("init.S", DType::BF16, Role::Chunk(16), &[], Access::Read),
            arg("out.o", DType::F16, Role::Sequence, &[7], Access::Write),
        ],
        buffers: vec![
            Buffer { name: "b".to_string(), shape: vec![40, 64], pad: 0 },
            Buffer { name: "b".to_string(), shape: vec![100], pad: 4 },
        ],
        vars: builder.vars,
        n_locals: builder.n_locals,
        body,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_kernels_survive_the_text(shapes in any_body()) {
        let kernel = kernel_of(&shapes);
        let text = print(&kernel);
        let parsed = parse(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&parsed, &canonical(&kernel));
        prop_assert_eq!(print(&parsed), text);
        // The generator numbers in the order of the text, so only names may have changed.
        prop_assert_eq!(&parsed.body, &kernel.body);
    }

    #[test]
    fn random_kernels_neither_crash_the_verifier_nor_the_interpreter(shapes in any_body()) {
        use chunkwise_compiler::tile::{interp, verify};
        let kernel = kernel_of(&shapes);
        let verdict = verify::verify(&kernel);
        if let Err(error) = &verdict {
            prop_assert!(error.text.contains("# ^"));
        }
        // Loops of random bounds can be long; only short programs are run.
        let has_loop = format!("{:?}", kernel.body).contains("For {");
        if !has_loop {
            let mut call = interp::HostCall::new(1, 20, 1);
            for arg in &kernel.args {
                let data = vec![0.5; call.dense_elements(arg, 1)];
                let tensor = call.dense(arg, 1, data);
                call.tensors.push(tensor);
            }
            let _may_fail = interp::run(&kernel, &mut call);
        }
    }
}
