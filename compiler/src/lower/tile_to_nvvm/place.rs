//! Where buffers lie.
//!
//! Comes in: a kernel and how much shared memory a block may use. Goes out: for every buffer its memory and its offset
//! in it. The buffers that are touched most for their size come first into shared memory; the rest lies in the
//! block's workspace. It never moves a buffer while the kernel runs.

use crate::tile::ir::{Expr, Kernel, Memory, Place, Stmt};

/// A memory that buffers lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Of the block, on the multiprocessor.
    Shared,
    /// Of the block, in the GPU's memory.
    Workspace,
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// In which memory.
    pub space: Space,
    /// Bytes from its start, a multiple of 128.
    pub offset: usize,
}

/// Where all buffers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Homes {
    /// By buffer.
    pub homes: Vec<Home>,
    /// Shared memory used.
    pub shared_bytes: usize,
    /// Workspace used, a multiple of 256.
    pub workspace_bytes: usize,
}

/// Finds a place for every buffer.
pub fn place(kernel: &Kernel, shared_limit: usize) -> Homes {
    let mut touches = vec![0.0; kernel.buffers.len()];
    count(&kernel.body, 1.0, &mut touches);
    let bytes = |n: usize| (kernel.buffers[n].elements() * 4).next_multiple_of(128);
    let mut order: Vec<usize> = (0..kernel.buffers.len()).collect();
    let worth = |n: usize| touches[n] / bytes(n) as f64;
    order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
    let mut homes = vec![Home { space: Space::Workspace, offset: 0 }; kernel.buffers.len()];
    let (mut shared_bytes, mut workspace_bytes) = (0, 0);
    for n in order {
        if shared_bytes + bytes(n) <= shared_limit {
            homes[n] = Home { space: Space::Shared, offset: shared_bytes };
            shared_bytes += bytes(n);
        } else {
            homes[n] = Home { space: Space::Workspace, offset: workspace_bytes };
            workspace_bytes += bytes(n);
        }
    }
    Homes { homes, shared_bytes, workspace_bytes: workspace_bytes.next_multiple_of(256) }
}

/// Adds up how often elements of each buffer are touched, loops of unknown length counted as sixteen turns.
fn count(body: &[Stmt], times: f64, touches: &mut [f64]) {
    let touch = |touches: &mut [f64], place: &Place, times: f64| {
        if let Memory::Buffer(buffer) = place.memory {
            touches[buffer.0 as usize] += times;
        }
    };
    for stmt in body {
        match stmt {
            Stmt::For { lo, hi, body, .. } => {
                let turns = match (lo.as_number(), hi.as_number()) {
                    (Some(lo), Some(hi)) => (hi - lo).max(0) as f64,
                    (None, _) | (_, None) => 16.0,
                };
                count(body, times * turns, touches);
            }
            Stmt::Lanes { extent, body, .. } => count(body, times * *extent as f64, touches),
            Stmt::If { body, .. } => count(body, times, touches),
            Stmt::Local { value, .. } | Stmt::Assign { value, .. } => {
                value.for_each_load(&mut |place| touch(touches, place, times));
            }
            Stmt::Store { place, value } => {
                touch(touches, place, times);
                value.for_each_load(&mut |place| touch(touches, place, times));
            }
            Stmt::ReduceLanes { place, extent, value, .. } => {
                touch(touches, place, times);
                value.for_each_load(&mut |place| touch(touches, place, times * *extent as f64));
            }
            Stmt::Matmul(product) => {
                let k = usize::try_from(product.k.constant).unwrap_or(0).max(16);
                for (view, elements) in [
                    (&product.dst, product.m * product.n),
                    // Every operand is read once for each of a few warps.
                    (&product.a, 2 * product.m * k),
                    (&product.b, 2 * k * product.n),
                ] {
                    touches[view.buffer.0 as usize] += times * elements as f64;
                }
            }
        }
    }
}

/// The memories an expression reads.
pub fn reads(expr: &Expr, found: &mut dyn FnMut(Memory)) {
    expr.for_each_load(&mut |place| found(place.memory));
}
