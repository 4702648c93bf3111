//! Every statement, with extents that do and do not fill a vector.

use super::native::agree_on;

#[path = "../tile/kernels.rs"]
mod kernels;

#[test]
fn whole_kernels_agree() {
    agree_on(kernels::RECURRENT, 9, 1e-5);
    agree_on(kernels::CHUNKWISE, 9, 1e-5);
}

#[test]
fn a_vector_is_copied_and_scaled_at_any_extent() {
    for n in 1..=40 {
        let text = format!(
            "kernel scale {{ arg x : f32 token[{n}] read arg y : f32 token[{n}] write
               for t in 0 .. T {{ lanes i in 0 .. {n} {{ y[t, i] = 2 * x[t, i] + 1 }} }} }}"
        );
        agree_on(&text, 3, 1e-6);
    }
}
