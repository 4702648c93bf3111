//! Products of matrices: shapes that do and do not fill blocks, triangles, updates, strides and views.

use super::native::{Numbers, agree, checked, compare, compile, fill, levels};
use chunkwise_compiler::tile::interp::{HostCall, run};

/// A kernel that fills two buffers, multiplies views of them and writes the whole destination out.
fn product(m: usize, n: usize, k: usize, update: &str, triangle: &str, transposed: bool) -> String {
    // The destination is larger than the product: what lies around must stay.
    let (rows, columns) = (m + 2, n + 3);
    let (a_shape, a_view) = if transposed {
        (format!("[{k1}, {m}]", k1 = k.max(1)), format!("%a[{m}, {k} step 1, {}]", pitch(m)))
    } else {
        (format!("[{m}, {k1}]", k1 = k.max(1)), format!("%a[{m}, {k}]"))
    };
    let entry = match (triangle, transposed) {
        ("lower_left", false) => "select(c <= r, a[r, c], 0.0)",
        ("lower_left", true) => "select(r <= c, a[r, c], 0.0)",
        ("upper_left", false) => "select(r <= c, a[r, c], 0.0)",
        ("upper_left", true) => "select(c <= r, a[r, c], 0.0)",
        _ => "a[r, c]",
    };
    let (ar, ac) = if transposed { (k.max(1), m) } else { (m, k.max(1)) };
    let keep = if triangle == "lower" {
        // Only the lower part means anything.
        format!(
            "for r in 0 .. {rows} {{ lanes c in 0 .. {columns} {{ out[r, c] = select(c <= r + 1, %d[r, c], 0.0) }} }}"
        )
    } else {
        format!("for r in 0 .. {rows} {{ lanes c in 0 .. {columns} {{ out[r, c] = %d[r, c] }} }}")
    };
    let origin = pitch(columns) + 2;
    format!(
        "kernel product {{
           arg a : f32 head{a_shape} read arg b : f32 head[{kb}, {n}] read arg d : f32 head[{rows}, {columns}] read
           arg out : f32 head[{rows}, {columns}] write
           buf %a : {a_shape} buf %b : [{kb}, {n}] buf %d : [{rows}, {columns}]
           for r in 0 .. {ar} {{ lanes c in 0 .. {ac} {{ %a[r, c] = {entry} }} }}
           for r in 0 .. {kb} {{ lanes c in 0 .. {n} {{ %b[r, c] = b[r, c] }} }}
           for r in 0 .. {rows} {{ lanes c in 0 .. {columns} {{ %d[r, c] = d[r, c] }} }}
           matmul %d[{m}, {n} at {origin}] {update} {a_view} * %b[{k}, {n}] {triangle}
           {keep}
         }}",
        kb = k.max(1),
    )
}

fn pitch(n: usize) -> usize {
    n.div_ceil(16) * 16
}

fn check(m: usize, n: usize, k: usize, update: &str, triangle: &str, transposed: bool) {
    let kernel = checked(&product(m, n, k, update, triangle, transposed));
    let call = fill(&kernel, HostCall::new(1, 1, 1), &[], &mut Numbers((m * 1000 + n * 10 + k) as u64));
    agree(&kernel, &call, 2e-6 * (k.max(1) as f64));
}

#[test]
fn products_of_any_shape_agree() {
    let mut numbers = Numbers(3);
    for (m, n, k) in
        [(1, 1, 1), (8, 32, 16), (16, 16, 16), (64, 64, 64), (64, 1, 128), (1, 64, 64), (7, 33, 5), (13, 47, 0)]
    {
        check(m, n, k, "=", "", false);
    }
    for _ in 0..24 {
        let (m, n, k) = (1 + numbers.below(35), 1 + numbers.below(70), numbers.below(40));
        let update = ["=", "+=", "-="][numbers.below(3)];
        check(m, n, k, update, "", numbers.below(2) == 0);
    }
}

#[test]
fn triangles_leave_out_only_what_does_not_matter() {
    let mut numbers = Numbers(5);
    for triangle in ["lower", "lower_left", "upper_left"] {
        for n in [1, 16, 37, 64] {
            check(n, n, n, "=", triangle, false);
        }
        for _ in 0..8 {
            let (m, n) = (1 + numbers.below(50), 1 + numbers.below(50));
            let k = if triangle == "lower" { numbers.below(40) } else { m };
            let update = ["=", "+=", "-="][numbers.below(3)];
            check(m, n, k, update, triangle, numbers.below(2) == 0);
        }
    }
}

/// A product may multiply what it is added to in passing, if that is all of what is multiplied.
#[test]
fn what_a_product_is_added_to_may_be_scaled_before() {
    for (rows, columns, update, triangle) in [
        (32, 48, "+=", ""),
        (20, 17, "+=", "lower_left"),
        (20, 17, "-=", ""),
        (32, 48, "+=", "lower"),
        (40, 48, "+=", ""),
    ] {
        let kernel = checked(&format!(
            "kernel scaled {{
               arg a : f32 head[32, 32] read arg b : f32 head[32, 48] read arg d : f32 head[40, 48] read
               arg x : f32 head[3] read arg out : f32 head[40, 48] write
               buf %a : [32, 32] buf %b : [32, 48] buf %d : [40, 48] buf %x : [1, 3]
               for r in 0 .. 32 {{
                 lanes c in 0 .. 32 {{ %a[r, c] = select(c <= r, a[r, c], 0.0) }}
                 lanes c in 0 .. 48 {{ %b[r, c] = b[r, c] }}
               }}
               lanes c in 0 .. 3 {{ %x[0, c] = x[c] }}
               for r in 0 .. 40 {{ lanes c in 0 .. 48 {{ %d[r, c] = d[r, c] }} }}
               for r in 0 .. {rows} {{ lanes c in 0 .. {columns} {{ %d[r, c] = %x[0, 1] * %d[r, c] }} }}
               matmul %d[{m}, {columns}] {update} %a[{m}, 32] * %b[32, {columns}] {triangle}
               for r in 0 .. 40 {{ lanes c in 0 .. 48 {{ out[r, c] = {kept} }} }}
             }}",
            m = rows.min(32),
            kept = if triangle == "lower" { "select(c <= r, %d[r, c], 0.0)" } else { "%d[r, c]" },
        ));
        let call = fill(&kernel, HostCall::new(1, 1, 1), &[], &mut Numbers(11));
        agree(&kernel, &call, 1e-5);
    }
}

#[test]
fn the_length_of_a_contraction_may_depend_on_a_loop() {
    let kernel = checked(
        "kernel steps {
           arg a : f32 head[20, 20] read arg b : f32 head[20, 24] read arg out : f32 head[20, 24] write
           buf %a : [20, 20] buf %b : [20, 24] buf %d : [20, 24]
           for r in 0 .. 20 {
             lanes c in 0 .. 20 { %a[r, c] = a[r, c] }
             lanes c in 0 .. 24 { %b[r, c] = b[r, c] }
           }
           for r in 0 .. 20 {
             matmul %d[1, 24 at 32*r] = %a[1, r at 32*r] * %b[r, 24]
             lanes c in 0 .. 24 { out[r, c] = %d[r, c] }
           }
         }",
    );
    let call = fill(&kernel, HostCall::new(1, 1, 1), &[], &mut Numbers(1));
    let mut expected = call.clone();
    run(&kernel, &mut expected).expect("the kernel is sound");
    for level in levels() {
        compare(&kernel, &call, &expected, &compile(&kernel, level), level, 1e-5);
    }
}
