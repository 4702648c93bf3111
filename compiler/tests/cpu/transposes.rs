//! Copies across the diagonal, in whole blocks and otherwise, both ways round, into views.

use super::native::agree_on;

#[test]
fn rows_become_columns() {
    for (m, n) in [(16, 16), (64, 128), (32, 48), (5, 7), (16, 20), (80, 16)] {
        for order in ["for i in 0 .. M { for j in 0 .. N", "for j in 0 .. N { for i in 0 .. M"] {
            let order = order.replace('M', &m.to_string()).replace('N', &n.to_string());
            agree_on(
                &format!(
                    "kernel transpose {{ arg x : f32 head[{n}, {m}] read arg y : f32 head[3, {m2}, {n2}] write
                       buf %x : [{n}, {m}] buf %y : [3, {m2}, {n2}]
                       for r in 0 .. {n} {{ lanes c in 0 .. {m} {{ %x[r, c] = x[r, c] }} }}
                       for k in 0 .. 3 {{ for r in 0 .. {m2} {{ lanes c in 0 .. {n2} {{ %y[k, r, c] = 7 }} }} }}
                       for k in 1 .. 3 {{ {order} {{ %y[k, i + 1, j + 2] = %x[j, i] }} }} }}
                       for k in 0 .. 3 {{ for r in 0 .. {m2} {{ lanes c in 0 .. {n2} {{ y[k, r, c] = %y[k, r, c] }} }} }}
                     }}",
                    m2 = m + 2,
                    n2 = n + 3,
                ),
                1,
                0.0,
            );
        }
    }
}
