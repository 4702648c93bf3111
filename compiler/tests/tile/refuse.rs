//! Every rule of the verifier, broken once and, where it is a matter of proof, kept once.

use crate::kernels::CHUNKWISE;
use chunkwise_compiler::tile::ir::*;
use chunkwise_compiler::tile::text::{Line, parse};
use chunkwise_compiler::tile::verify::{VerifyError, verify};

/// Declarations for the bodies below.
const DECLARED: &str = "
    arg q : f32 token[8] read
    arg g : f32 token[] read
    arg init : f32 sequence[8, 4] read
    arg kept : f32 chunk(16)[4] read
    arg y : f32 token[8] write
    buf %a : [20, 8]
    buf %b : [32, 32]
    buf %v : [8]";

/// Fills what the bodies read, writes what must be written.
const FILLED: &str = "
    for i in 0 .. 20 { lanes j in 0 .. 8 { %a[i, j] = 0 } }
    for i in 0 .. 32 { lanes j in 0 .. 32 { %b[i, j] = 0 } }
    lanes j in 0 .. 8 { %v[j] = 0 }
    for t in 0 .. T { y[t, 0] = 0 }";

fn kernel(body: &str) -> Kernel {
    let text = format!("kernel k {{ {DECLARED} {FILLED} {body} }}");
    parse(&text).unwrap_or_else(|error| panic!("{error}\n{body}"))
}

fn complaints(error: &VerifyError) -> String {
    error.complaints.values().flatten().cloned().collect::<Vec<_>>().join("; ")
}

fn refused(body: &str, expected: &str) {
    let error = verify(&kernel(body)).expect_err(body);
    assert_eq!(complaints(&error), expected, "\n{body}");
}

fn accepted(body: &str) {
    verify(&kernel(body)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_complaint_stands_under_its_line() {
    let text = CHUNKWISE.replace("r_2 in 0 .. min(4, T - 4*c)", "r_2 in 0 .. 4");
    let error = verify(&parse(&text).unwrap()).unwrap_err();
    let expected = "\
        out.o[4*c + r_2, b_1] = %o[r_2, b_1]
        # ^ cannot show that `4*c + r_2` is below `T`
";
    assert!(error.text.contains(expected), "{error}");
    assert!(error.to_string().starts_with("this is not a tile program (1 found wrong):\nkernel linear_attention"));
    assert_eq!(error.complaints.keys().collect::<Vec<_>>(), [&Line::Stmt(24)]);
    // The comments do not keep the text from being read.
    assert!(parse(&error.text).is_ok());
}

#[test]
fn tokens_are_read_inside_the_sequence() {
    accepted("for t in 0 .. T { %v[0] = q[t, 0] }");
    accepted("for t in reverse 1 .. T { %v[0] = q[t - 1, 0] }");
    accepted("for c in 0 .. chunks(64) { for i in 0 .. 64 { %v[0] = q[min(64*c + i, T - 1), 0] } }");
    accepted("for c in 0 .. chunks(64) { for i in 0 .. min(64, T - 64*c) { %v[0] = q[64*c + i, 0] } }");
    accepted("for c in 0 .. chunks(64) { for i in 0 .. 64 { if 64*c + i < T { %v[0] = q[64*c + i, 0] } } }");
    accepted(
        "for c in 0 .. chunks(64) { for b in 0 .. 4 { for i in 0 .. 16 { if 64*c + 16*b + i <= T - 1 { %v[0] = q[64*c + 16*b + i, 0] } } } }",
    );
    accepted("for c in 0 .. chunks(16) { %v[0] = q[16*c, 0] %v[1] = kept[c, 3] }");
    accepted("for c in 0 .. chunks(16) { %v[0] = q[min(16*c + 15, T - 1), 0] }");
    accepted("if 1 <= T { %v[0] = q[T - 1, 0] %v[1] = q[0, 0] }");
    accepted("if T == 5 { %v[0] = q[4, 0] }");
    accepted("for i in min(3, T) .. T { %v[0] = q[i, 0] }");
    refused("%v[0] = q[0, 0]", "cannot show that `0` is below `T`");
    refused("%v[0] = q[T - 1, 0]", "cannot show that `T - 1` is at least 0");
    refused("for t in 0 .. T { %v[0] = q[t + 1, 0] }", "cannot show that `t_1 + 1` is below `T`");
    refused("for t in 0 .. T { %v[0] = q[t - 1, 0] }", "cannot show that `t_1 - 1` is at least 0");
    refused("for t in 0 .. T { %v[0] = q[min(t, T - 2), 0] }", "cannot show that `min(t_1, T - 2)` is at least 0");
    refused(
        "for c in 0 .. chunks(16) { for i in 0 .. 16 { %v[0] = q[16*c + i, 0] } }",
        "cannot show that `16*c + i_2` is below `T`",
    );
    refused("for c in 0 .. chunks(16) { %v[0] = q[min(17*c, T), 0] }", "cannot show that `min(17*c, T)` is below `T`");
    refused("for c in 0 .. chunks(16) { %v[0] = kept[c + 1, 0] }", "cannot show that `c + 1` is below `chunks(16)`");
    refused("for c in 0 .. chunks(8) { %v[0] = kept[c, 0] }", "cannot show that `c` is below `chunks(16)`");
    refused("for i in min(-1, T) .. T { %v[0] = q[i, 0] }", "cannot show that `i_2` is at least 0");
    // The branch that is not taken may be evaluated all the same.
    refused("for t in 0 .. T { %v[0] = select(t < 5, q[t + 1, 0], 0) }", "cannot show that `t_1 + 1` is below `T`");
}

#[test]
fn elements_lie_inside_their_dimensions() {
    accepted("for i in 4 .. 20 { for j in 0 .. 4 { %a[i - j, 2*j + 1] = 1 } }");
    refused("for i in 0 .. 21 { %a[i, 0] = 1 }", "cannot show that `i_2` is below `20`");
    refused("for i in 0 .. 5 { for j in 0 .. 4 { %a[i - j, 0] = 1 } }", "cannot show that `i_2 - j_3` is at least 0");
    refused("%a[0, 8] = 1", "cannot show that `8` is below `8`");
    refused("lanes l in 0 .. 9 { %a[0, l] = 1 }", "cannot show that `l` is below `8`");
    refused("%v[0] = init[8, 0]", "cannot show that `8` is below `8`");
    refused("%v[0] = init[0]", "1 indices where there are 2 dimensions");
    refused("%v[0] = %a[0]", "1 indices where there are 2 dimensions");
    refused("%v[0] = g[]", "0 indices where there are 1 dimensions");
    refused("for t in 0 .. T { %v[0] = %v[0] + %a[t, 0] }", "cannot show that `t_1` is below `20`");
}

#[test]
fn arguments_are_read_or_written_not_both() {
    refused("for t in 0 .. T { %v[0] = y[t, 0] }", "`y` is written, it cannot be read");
    refused("for t in 0 .. T { q[t, 0] = 0 }", "`q` is read, it cannot be written");
    let never = parse("kernel k { arg y : f32 head[] write }").unwrap();
    let error = verify(&never).unwrap_err();
    assert_eq!(error.text, "kernel k {\n  arg y : f32 head[] write\n  # ^ never written\n}\n");
}

#[test]
fn buffers_are_written_before_they_are_read() {
    let body = |body: &str| parse(&format!("kernel k {{ buf %a : [2, 2] buf %b : [2, 2] {body} }}")).unwrap();
    let refused = |text: &str, expected: &str| {
        assert_eq!(complaints(&verify(&body(text)).expect_err(text)), expected, "{text}");
    };
    let unwritten = "buffer `b` is read, but nothing above writes it";
    refused("%a[0, 0] = %b[0, 0]", unwritten);
    refused("%a[0, 0] = %b[0, 0] %b[0, 0] = 1", unwritten);
    refused("%a[0, 0] = 1 matmul %a[1, 1] = %b[1, 1] * %b[1, 1]", unwritten);
    refused("%a[0, 0] = 1 matmul %b[2, 2] += %a[2, 2] * %a[2, 2]", unwritten);
    refused("%a[0, 0] = 1 %b[0, 0] += sum i in 0 .. 2 of %a[0, i]", unwritten);
    verify(&body("%a[0, 0] = 1 matmul %b[2, 2] = %a[2, 2] * %a[2, 2] matmul %b[2, 2] -= %a[2, 2] * %a[2, 2]")).unwrap();
}

#[test]
fn lanes_do_not_depend_on_their_order() {
    accepted("for t in 0 .. T { lanes l in 0 .. 8 { y[t, l] = %v[l] * q[t, l] + g[t] + q[t, 3] } }");
    accepted("lanes l in 0 .. 7 { %v[l] = %a[3, l + 1] * %b[0, l + 9] }");
    accepted("lanes l in 0 .. 16 { %b[0, l] = %b[0, l + 16] }");
    accepted("for i in 1 .. 20 { lanes l in 0 .. 7 { %a[i, l] = %a[i - 1, l + 1] } }");
    accepted("for i in 0 .. 20 { lanes l in 0 .. 8 { for j in 0 .. i { %a[i, l] = %a[i, l] - %a[j, l] } } }");
    accepted("lanes l in 0 .. 8 { local x = 1 for i in 0 .. 3 { x = x + %a[i, l] } %v[l] = x }");
    accepted("local x = 1 lanes l in 0 .. 8 { %v[l] = x }");
    refused("lanes l in 0 .. 8 { %a[l, 0] = 1 }", "a lane variable stands before the last index");
    let alone = "a lane variable stands in the last index with a factor of 1, and not under `min`";
    refused("lanes l in 0 .. 4 { %v[2*l] = 1 }", alone);
    refused("lanes l in 0 .. 4 { %v[min(l, 3)] = 1 }", alone);
    refused("lanes l in 0 .. 4 { %v[4 - l] = 1 }", alone);
    refused("%v[0] = sum l in 0 .. 8 of %a[0, 7 - l]", alone);
    let strided = "a lane variable stands in a token's or chunk's index, which has a stride";
    refused("if 8 <= T { lanes l in 0 .. 8 { %v[l] = g[l] } }", strided);
    refused("lanes l in 0 .. 8 { %v[0] = 1 }", "every lane stores to the same element");
    let order = "a lane touches what another lane may have stored: the order of lanes would matter";
    refused("lanes l in 0 .. 7 { %v[l] = %v[l + 1] }", order);
    refused("lanes l in 0 .. 8 { %v[l] = %v[0] }", order);
    refused("lanes l in 0 .. 16 { %b[0, l] = %b[0, l + 15] }", order);
    refused("for i in 0 .. 20 { lanes l in 0 .. 8 { for j in 0 .. i { %a[i, l] = %a[i, j - j] - %a[j, l] } } }", order);
    refused("for i in 0 .. 19 { lanes l in 0 .. 7 { for j in 0 .. 19 { %a[j, l] = %a[j + 1, l + 1] } } }", order);
    refused(
        "local x = 1 lanes l in 0 .. 8 { x = 2 %v[l] = x }",
        "lanes cannot assign one local together; declare it inside them",
    );
    refused("lanes l in 0 .. 8 { lanes m in 0 .. 8 { %v[m] = 1 } %v[l] = 1 }", "lanes inside lanes");
    refused("lanes l in 0 .. 8 { %v[0] = sum m in 0 .. 8 of 1 }", "a reduction inside lanes");
    refused("lanes l in 0 .. 8 { matmul %a[1, 1] = %b[1, 1] * %b[1, 1] }", "a product inside lanes");
    refused("lanes l in 0 .. 8 { if l < 3 { %v[l] = 1 } }", "an `if` is the same for every lane; `select` may differ");
    refused(
        "lanes l in 0 .. 8 { for i in 0 .. l { %v[l] = 1 } }",
        "the bounds of a loop inside lanes are the same for every lane",
    );
    refused("lanes l in 0 .. 0 { %v[l] = 1 }", "the number of lanes is at least 1");
}

#[test]
fn products_stay_inside_and_apart() {
    accepted("matmul %b[8, 8] = %a[8, 8] * %a[8, 8]");
    accepted("for r in 0 .. 4 { matmul %b[8, 8 at 256*r] = %a[8, 8] * %a[8, 8] }");
    // Blocks of one buffer, below each other, then side by side.
    accepted("for r in 1 .. 4 { matmul %b[8, 8 at 256*r] -= %a[8, 8] * %b[8, 8 at 256*r - 256] }");
    accepted("for r in 1 .. 4 { matmul %b[8, 8 at 8*r] -= %b[8, 8] * %a[8, 8] }");
    accepted("for r in 1 .. 4 { matmul %b[8, 8 at 8*r] -= %b[8, 8 at 256*r + 8*r - 8] * %a[8, 8] }");
    accepted("for r in 0 .. 4 { matmul %b[8, 8 at 8*r] = %a[8, r step 1, 16] * %a[r, 8] }");
    accepted("for r in 0 .. 3 { matmul %b[8, 8 at 8*r] = %b[8, 8 at 256*r + 24] * %a[8, 8] }");
    refused(
        "for r in 0 .. 4 { matmul %b[8, 8 at 8*r] = %b[8, 8 at 256*r + 24] * %a[8, 8] }",
        "cannot show that the result shares no element with the left operand",
    );
    refused(
        "for r in 0 .. 5 { matmul %b[8, 8 at 256*r] = %a[8, 8] * %a[8, 8] }",
        "cannot show that the view of `b` lies inside it",
    );
    refused(
        "for r in 0 .. 4 { matmul %b[8, 8 at 256*r - 1] = %a[8, 8] * %a[8, 8] }",
        "cannot show that the view of `b` lies inside it",
    );
    refused(
        "for r in 0 .. 22 { matmul %b[1, 8] = %a[1, r step 1, 16] * %a[r, 8] }",
        "cannot show that the view of `a` lies inside it",
    );
    refused(
        "matmul %b[8, 8] = %a[8, 9] * %a[9, 8]",
        "cannot show that the view of `a` leaves out the padding of its rows",
    );
    refused(
        "matmul %b[8, 8] = %a[8, 8 at 1] * %a[8, 8]",
        "cannot show that the view of `a` leaves out the padding of its rows",
    );
    refused(
        "matmul %a[8, 9] = %b[8, 8] * %b[8, 9]",
        "cannot show that the view of `a` leaves out the padding of its rows",
    );
    refused(
        "for r in 0 .. 4 { matmul %b[8, 8] = %a[8, r - 1] * %a[r - 1, 8] }",
        "cannot show that the length of the contraction is at least 0",
    );
    accepted("matmul %b[8, 8] = %a[8, 8] * %a[8, 8 step 1, 16]");
    refused(
        "matmul %b[2, 2] = %a[2, 2] * %a[2, 2 step 32, 16]",
        "the columns of the right operand are contiguous, or its rows are",
    );
    refused("matmul %b[8, 8 step 1, 32] = %a[8, 8] * %a[8, 8]", "the columns of the result are contiguous");
    refused(
        "matmul %b[8, 8] = %b[8, 8 at 7] * %a[8, 8]",
        "cannot show that the result shares no element with the left operand",
    );
    refused(
        "matmul %b[8, 8] = %a[8, 8] * %b[8, 8 at 32]",
        "cannot show that the result shares no element with the right operand",
    );
    refused("matmul %b[8, 8] = %a[8, 8 step 0, 1] * %a[8, 8]", "the steps of a view are at least 1");
    refused("matmul %b[0, 8] = %a[0, 8] * %a[8, 8]", "a product has at least one row and one column");
}

#[test]
fn sizes_and_names_are_sound() {
    let refused = |text: &str, expected: &str| {
        assert_eq!(complaints(&verify(&parse(text).unwrap()).expect_err(text)), expected, "{text}");
    };
    refused("kernel k { buf %a : [4, 0] }", "a dimension is at least 1");
    refused("kernel k { arg q : f32 head[0] read }", "a dimension is at least 1");
    refused("kernel k { buf %a : [4294967296, 4294967296, 4] }", "too many elements");
    refused("kernel k { arg q : f32 chunk(0)[] read }", "a chunk takes at least one token");
    refused("kernel k { buf %a : [1] for i in 0 .. chunks(0) { %a[0] = 1 } }", "a chunk takes at least one token");
    refused("kernel k { buf %a : [1] if 9223372036854775807 < 1 { %a[0] = 1 } }", "a number in an index is too large");
}

/// Breaks a kernel in a way the text cannot express.
fn broken(change: impl FnOnce(&mut Kernel), expected: &str) {
    let mut kernel = kernel("local x = 1 for t in 0 .. T { for i in 0 .. 8 { %v[i] = q[t, i] + x } }");
    verify(&kernel).unwrap();
    change(&mut kernel);
    assert_eq!(complaints(&verify(&kernel).unwrap_err()), expected);
}

/// The outer loop, the inner loop and the store of that kernel.
fn outer(kernel: &mut Kernel) -> &mut Stmt {
    kernel.body.last_mut().unwrap()
}
fn inside(stmt: &mut Stmt) -> &mut Vec<Stmt> {
    match stmt {
        Stmt::For { body, .. } => body,
        _ => panic!("not a loop"),
    }
}
fn place(kernel: &mut Kernel) -> &mut Place {
    match &mut inside(&mut inside(outer(kernel))[0])[0] {
        Stmt::Store { place, .. } => place,
        _ => panic!("not a store"),
    }
}

#[test]
fn ids_are_declared_once_and_in_scope() {
    let value = |vars: &[(u32, i64)]| Affine {
        vars: vars.iter().map(|(var, factor)| (VarId(*var), *factor)).collect(),
        ..Affine::default()
    };
    broken(
        |kernel| place(kernel).indices[0].value = value(&[(0, 1)]),
        "a variable is used outside its loop; cannot show that `i` is at least 0; cannot show that `i` is below `8`",
    );
    broken(
        |kernel| place(kernel).indices[0].value = value(&[(7, 0)]),
        "an index names each variable once, with a factor that is not 0",
    );
    broken(
        |kernel| place(kernel).indices[0].value = value(&[(7, 2), (7, -1)]),
        "an index names each variable once, with a factor that is not 0",
    );
    broken(|kernel| place(kernel).memory = Memory::Buffer(BufferId(9)), "no such buffer");
    broken(|kernel| place(kernel).memory = Memory::Arg(ArgId(9)), "no such argument");
    broken(
        |kernel| match outer(kernel) {
            Stmt::For { var, body, .. } => match &mut body[0] {
                Stmt::For { var: inner, .. } => *var = *inner,
                _ => panic!("not a loop"),
            },
            _ => panic!("not a loop"),
        },
        "this variable is declared a second time; a variable is used outside its loop; \
         cannot show that `undeclared_v6` is at least 0; cannot show that `undeclared_v6` is below `T`",
    );
    broken(|kernel| kernel.vars.truncate(7), "the variable has no name");
    broken(|kernel| kernel.n_locals = 0, "the local's number is beyond the kernel's count of locals");
    broken(
        |kernel| {
            let local = kernel.body.iter().find(|stmt| matches!(stmt, Stmt::Local { .. })).unwrap().clone();
            kernel.body.push(local);
        },
        "this local is declared a second time",
    );
    broken(
        |kernel| {
            let at = kernel.body.iter().position(|stmt| matches!(stmt, Stmt::Local { .. })).unwrap();
            kernel.body.remove(at);
        },
        "a local is read where it is not declared",
    );
    broken(
        |kernel| kernel.body.push(Stmt::Assign { local: LocalId(3), value: Expr::Const(0.0) }),
        "the local is not declared here",
    );
    broken(|kernel| kernel.args[1].name = "q".to_string(), "an argument of this name stands above");
    broken(
        |kernel| kernel.args[1].name = "q r".to_string(),
        "an argument's name is made of letters, digits, `_` and `.`",
    );
    broken(|kernel| kernel.name = "k.".to_string(), "the kernel's name is made of letters, digits, `_` and `.`");
    broken(|kernel| kernel.buffers[0].shape.clear(), "a buffer has at least one dimension");
}
