//! What order means: statements, several states, loops, reads before and after an update; and where gradients stop.

use chunkwise_compiler::reference::{run, run_backward};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::program::{Binary, Index, Program, Reduce, Stmt, TensorKind, Unary};
use chunkwise_dsl::span::Span;

use crate::builder::{Builder, at};
use crate::draw::{bundle, check_gradients};

fn column(data: &[f64]) -> Tensor {
    Tensor { shape: vec![1, data.len(), 1], data: data.to_vec() }
}

/// Reads before, between and after two updates of one state, one of them kept in a `let`.
fn reads_at_every_point() -> Program {
    let mut b = Builder::new(&[]);
    let x = b.input("x", &[]);
    let s = b.state("s", &[]);
    let read = b.read(s);
    let first = b.output("before", &[], read);
    let (kept, local) = b.let_("kept", read);
    let plus = b.binary(Binary::Add, read, x);
    let add = b.update(s, plus);
    let between = b.output("between", &[], read);
    let times = b.binary(Binary::Mul, read, local);
    let multiply = b.update(s, times);
    let after = b.output("after", &[], read);
    b.program.body = vec![first, kept, add, between, multiply, after];
    b.program
}

#[test]
fn a_read_sees_the_state_of_its_place() {
    let program = reads_at_every_point();
    let mut tensors = Bundle::new();
    tensors.insert("x".to_string(), column(&[1.0, 2.0]));
    tensors.insert("init.s".to_string(), Tensor { shape: vec![1, 1], data: vec![3.0] });
    let results = run(&at(&program, &[]), &tensors).unwrap();
    // 3, then 3 + 1 = 4, then 4 · 3 = 12; 12, then 12 + 2 = 14, then 14 · 12 = 168.
    assert_eq!(results["out.before"].data, [3.0, 12.0]);
    assert_eq!(results["out.between"].data, [4.0, 14.0]);
    assert_eq!(results["out.after"].data, [12.0, 168.0]);
    assert_eq!(results["final.s"].data, [168.0]);
    let instance = at(&program, &[]);
    check_gradients("reads at every point", &instance, &bundle(&instance, [2, 3, 2], 0.5, 1.2, 7));
}

#[test]
fn coupled_states_see_each_other_in_the_order_of_statements() {
    let mut b = Builder::new(&[]);
    let x = b.input("x", &[]);
    let (s, n) = (b.state("s", &[]), b.state("n", &[]));
    let (read_s, read_n) = (b.read(s), b.read(n));
    let sum = b.binary(Binary::Add, read_s, read_n);
    let product = b.binary(Binary::Mul, read_s, x);
    let to_s = b.update(s, sum);
    let to_n = b.update(n, product);
    let output = b.output("o", &[], read_n);
    b.program.body = vec![to_s, to_n, output];
    let mut tensors = Bundle::new();
    tensors.insert("x".to_string(), column(&[2.0, 3.0]));
    tensors.insert("init.s".to_string(), Tensor { shape: vec![1, 1], data: vec![1.0] });
    tensors.insert("init.n".to_string(), Tensor { shape: vec![1, 1], data: vec![10.0] });
    let instance = at(&b.program, &[]);
    let results = run(&instance, &tensors).unwrap();
    // s = 1 + 10, n = 11 · 2; s = 11 + 22, n = 33 · 3.
    assert_eq!(results["out.o"].data, [22.0, 99.0]);
    assert_eq!(results["final.s"].data, [33.0]);
    assert_eq!(results["final.n"].data, [99.0]);
    check_gradients("coupled states", &instance, &bundle(&instance, [1, 5, 1], -1.0, 1.0, 1));
}

/// `for r in R { let e = v[r] − k[r] @ S   S = S + k[r] · e · (r + 1) }`, `o = q @ S + k[1] @ S`
pub fn looping(k_axes: &[&str]) -> Program {
    let mut b = Builder::new(&["K", "V", "R"]);
    let (q, k, v) = (b.input("q", &["K"]), b.input("k", k_axes), b.input("v", &["V", "R"]));
    let s = b.state("S", &["V", "K"]);
    let (var, r) = b.loop_var("r", "R");
    let k_r = b.index(k, "R", Index::Loop(var));
    let v_r = b.index(v, "R", Index::Loop(var));
    let read = b.read(s);
    let erased = b.contract(k_r, read);
    let error = b.binary(Binary::Sub, v_r, erased);
    let (bind, e) = b.let_("e", error);
    let one = b.number(1.0);
    let weight = b.binary(Binary::Add, r, one);
    let outer = b.binary(Binary::Mul, k_r, e);
    let scaled = b.binary(Binary::Mul, outer, weight);
    let sum = b.binary(Binary::Add, read, scaled);
    let update = b.update(s, sum);
    let direct = b.contract(q, read);
    let k_1 = b.index(k, "R", Index::Literal(1));
    let other = b.contract(k_1, read);
    let both = b.binary(Binary::Add, direct, other);
    let output = b.output("o", &["V"], both);
    b.program.body = vec![Stmt::For { var, body: vec![bind, update], span: Span::default() }, output];
    b.program
}

#[test]
fn a_loop_runs_once_for_each_index_and_sees_its_own_updates() {
    let program = looping(&["R", "K"]);
    let mut tensors = Bundle::new();
    let with = |shape: &[usize], data: &[f64]| Tensor { shape: shape.to_vec(), data: data.to_vec() };
    tensors.insert("q".to_string(), with(&[1, 1, 1, 1], &[1.0]));
    tensors.insert("k".to_string(), with(&[1, 1, 1, 2, 1], &[1.0, 2.0]));
    tensors.insert("v".to_string(), with(&[1, 1, 1, 1, 2], &[5.0, 7.0]));
    tensors.insert("init.S".to_string(), with(&[1, 1, 1, 1], &[1.0]));
    let results = run(&at(&program, &[("K", 1), ("V", 1), ("R", 2)]), &tensors).unwrap();
    // S = 1 + 1·(5 − 1)·1 = 5, then 5 + 2·(7 − 10)·2 = −7; o = −7 + 2·(−7).
    assert_eq!(results["final.S"].data, [-7.0]);
    assert_eq!(results["out.o"].data, [-21.0]);
}

#[test]
fn layout_is_the_order_declared_and_changes_nothing_else() {
    let (straight, turned) = (looping(&["R", "K"]), looping(&["K", "R"]));
    let sizes = [("K", 3), ("V", 2), ("R", 2)];
    let (straight, turned) = (at(&straight, &sizes), at(&turned, &sizes));
    let tensors = bundle(&straight, [2, 3, 2], -0.6, 0.6, 3);
    check_gradients("a loop", &straight, &tensors);
    let transpose = |tensor: &Tensor| {
        let (rows, columns) = (tensor.shape[3], tensor.shape[4]);
        let shape = [&tensor.shape[..3], &[columns, rows]].concat();
        Tensor::from_fn(&shape, |at| {
            let (outer, row, column) = (at / (rows * columns), at % rows, at % (rows * columns) / rows);
            tensor.data[outer * rows * columns + row * columns + column]
        })
    };
    let mut tensors_turned = tensors.clone();
    tensors_turned["k"] = transpose(&tensors["k"]);
    let expected = run_backward(&straight, &tensors).unwrap();
    let found = run_backward(&turned, &tensors_turned).unwrap();
    let expected_k = transpose(&expected["grad.k"]);
    for (name, tensor) in &found {
        let expected = if name == "grad.k" { &expected_k } else { &expected[name] };
        assert!(tensor.relative_error(expected, 0.0) < 1e-13, "{name}");
    }
}

#[test]
fn renamed_copies_contract_and_differentiate() {
    // S = S + x · rename(x, K → L), o = x @ S + rename(y, L → K): a symmetric outer product.
    let mut b = Builder::new(&["K", "L"]);
    let (x, y) = (b.input("x", &["K"]), b.input("y", &["L"]));
    let s = b.state("S", &["L", "K"]);
    let copy = b.rename(x, "K", "L");
    let outer = b.binary(Binary::Mul, x, copy);
    let read = b.read(s);
    let sum = b.binary(Binary::Add, read, outer);
    let update = b.update(s, sum);
    let seen = b.contract(copy, read);
    let renamed = b.rename(y, "L", "K");
    let both = b.binary(Binary::Add, seen, renamed);
    let output = b.output("o", &["K"], both);
    b.program.body = vec![update, output];
    let instance = at(&b.program, &[("K", 3), ("L", 3)]);
    check_gradients("rename", &instance, &bundle(&instance, [1, 3, 2], -1.0, 1.0, 5));

    let mut tensors = Bundle::new();
    tensors.insert("x".to_string(), Tensor { shape: vec![1, 1, 1, 3], data: vec![1.0, 2.0, 3.0] });
    tensors.insert("y".to_string(), Tensor { shape: vec![1, 1, 1, 3], data: vec![100.0, 200.0, 300.0] });
    let results = run(&instance, &tensors).unwrap();
    assert_eq!(results["final.S"].data, [1.0, 2.0, 3.0, 2.0, 4.0, 6.0, 3.0, 6.0, 9.0]);
    assert_eq!(results["out.o"].data, [114.0, 228.0, 342.0]);
}

#[test]
fn broadcasting_updates_and_outputs_differentiate() {
    // S = exp(a) · sum(x, V) on K alone, broadcast over V; o = a on nothing, broadcast over K and V.
    let mut b = Builder::new(&["K", "V"]);
    let (x, a) = (b.input("x", &["V", "K"]), b.tensor(TensorKind::Param, "a", &[]));
    let s = b.state("S", &["V", "K"]);
    let total = b.reduce(Reduce::Sum, x, "V");
    let gate = b.unary(Unary::Exp, a);
    let new = b.binary(Binary::Mul, gate, total);
    let update = b.update(s, new);
    let output = b.output("o", &["V", "K"], gate);
    let read = b.read(s);
    let other = b.output("p", &["K", "V"], read);
    b.program.body = vec![output, other, update];
    let instance = at(&b.program, &[("K", 2), ("V", 3)]);
    check_gradients("broadcasting", &instance, &bundle(&instance, [2, 2, 2], -1.0, 1.0, 9));
}

#[test]
fn nothing_flows_back_through_stop_gradient() {
    // Everything twice, once stopped: the gradient is that of the part which is not.
    let mut b = Builder::new(&[]);
    let (x, y) = (b.input("x", &[]), b.input("y", &[]));
    let (s, n) = (b.state("s", &[]), b.state("n", &[]));
    let read = b.read(s);
    let stopped_read = b.stop_gradient(read);
    let stopped_x = b.stop_gradient(x);
    let open = b.binary(Binary::Mul, x, read);
    let closed = b.binary(Binary::Mul, stopped_x, stopped_read);
    let sum = b.binary(Binary::Add, open, closed);
    let (bind, sum) = b.let_("sum", sum);
    let output = b.output("o", &[], sum);
    let stopped_y = b.stop_gradient(y);
    let second = b.output("p", &[], stopped_y);
    let to_n = b.update(n, stopped_y);
    b.program.body = vec![bind, output, second, to_n];
    let mut tensors = Bundle::new();
    tensors.insert("x".to_string(), column(&[2.0]));
    tensors.insert("y".to_string(), column(&[5.0]));
    tensors.insert("init.s".to_string(), Tensor { shape: vec![1, 1], data: vec![3.0] });
    for cotangent in ["grad_out.o", "grad_out.p"] {
        tensors.insert(cotangent.to_string(), column(&[1.0]));
    }
    for cotangent in ["grad_final.s", "grad_final.n"] {
        tensors.insert(cotangent.to_string(), Tensor { shape: vec![1, 1], data: vec![1.0] });
    }
    let results = run_backward(&at(&b.program, &[]), &tensors).unwrap();
    assert_eq!(results["out.o"].data, [12.0]);
    assert_eq!(results["out.p"].data, [5.0]);
    assert_eq!(results["final.n"].data, [5.0]);
    assert_eq!(results["grad.x"].data, [3.0]);
    assert_eq!(results["grad.y"].data, [0.0]);
    // 2 through the open product, 1 because the state itself goes on to the end.
    assert_eq!(results["grad_init.s"].data, [3.0]);
    // The state that is overwritten has no past.
    assert_eq!(results["grad_init.n"].data, [0.0]);
}

#[test]
fn a_long_sum_does_not_exhaust_the_stack() {
    let mut b = Builder::new(&[]);
    let x = b.input("x", &[]);
    let mut sum = x;
    for _ in 1..20_000 {
        sum = b.binary(Binary::Add, sum, x);
    }
    let output = b.output("o", &[], sum);
    b.program.body = vec![output];
    let mut tensors = Bundle::new();
    tensors.insert("x".to_string(), column(&[2.0]));
    tensors.insert("grad_out.o".to_string(), column(&[1.0]));
    let results = run_backward(&at(&b.program, &[]), &tensors).unwrap();
    assert_eq!(results["out.o"].data, [40_000.0]);
    assert_eq!(results["grad.x"].data, [20_000.0]);
}
