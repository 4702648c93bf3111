//! Where buffers lie, and how wide their elements are.
//!
//! Comes in: a kernel, how products are computed, and how much shared memory a block may use. Goes out: for every buffer
//! its memory, its offset and its type. It never moves a buffer while the kernel runs.
//!
//! - Two buffers share bytes if no statement of a turn of the loop over chunks lies between the first and the last that
//!   touch the one and also between those of the other. What is touched outside that loop, or read in a turn before it is
//!   written, lives throughout.
//! - A buffer holds bfloat16 where that changes no result: all that is written to it came from tensors of that type, or
//!   all that reads it are products which would round it to that type.
//! - The buffers that are touched most for their size come first into shared memory; what does not fit lies in the
//!   block's workspace.

use super::Products;
use crate::tile::ir::{BufferId, Expr, Index, Kernel, Memory, Place, Stmt, Update};
use chunkwise_abi::DType;
use std::collections::BTreeSet;

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
    /// Type of its elements.
    pub dtype: DType,
    /// Bytes it takes.
    pub bytes: usize,
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

impl Homes {
    /// The buffers that share bytes with one, itself among them.
    pub fn beside(&self, buffer: BufferId) -> impl Iterator<Item = BufferId> + '_ {
        let own = self.homes[buffer.0 as usize];
        let shares = move |other: &Home| {
            other.space == own.space && other.offset < own.offset + own.bytes && own.offset < other.offset + other.bytes
        };
        let ids = (0..self.homes.len()).filter(move |&n| shares(&self.homes[n]) || n == buffer.0 as usize);
        ids.map(|n| BufferId(u32::try_from(n).expect("ids have 32 bits")))
    }
}

/// When a buffer holds something: statements of a turn, or always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Never,
    Turn { first: usize, last: usize },
    Always,
}

impl Life {
    fn meets(self, other: Life) -> bool {
        match (self, other) {
            (Life::Never, _) | (_, Life::Never) => false,
            (Life::Always, _) | (_, Life::Always) => true,
            (Life::Turn { first, last }, Life::Turn { first: start, last: end }) => first <= end && start <= last,
        }
    }
}

/// Finds a place for every buffer.
pub fn place(kernel: &Kernel, products: Products, shared_limit: usize) -> Homes {
    let lives = lives(kernel);
    let dtypes = dtypes(kernel, products);
    let mut touches = vec![0.0; kernel.buffers.len()];
    count(&kernel.body, 1.0, &mut touches);
    let bytes: Vec<usize> = (0..kernel.buffers.len())
        .map(|n| (kernel.buffers[n].elements() * dtypes[n].bytes()).next_multiple_of(128))
        .collect();
    let mut order: Vec<usize> = (0..kernel.buffers.len()).collect();
    // What lives throughout first, so that it lies together; then what is touched most for its size.
    let worth = |n: usize| touches[n] / bytes[n] as f64;
    order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
    let mut homes: Vec<Option<Home>> = vec![None; kernel.buffers.len()];
    let mut used = [0, 0];
    for n in order {
        let fit = |space: Space, homes: &[Option<Home>]| {
            let mut taken: Vec<(usize, usize)> = homes
                .iter()
                .enumerate()
                .filter_map(|(m, home)| home.as_ref().map(|home| (m, home)))
                .filter(|(m, home)| home.space == space && lives[*m].meets(lives[n]))
                .map(|(_, home)| (home.offset, home.offset + home.bytes))
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (start, end) in taken {
                if at + bytes[n] <= start {
                    break;
                }
                at = at.max(end);
            }
            at
        };
        let shared = fit(Space::Shared, &homes);
        let (space, offset) = if shared + bytes[n] <= shared_limit {
            (Space::Shared, shared)
        } else {
            (Space::Workspace, fit(Space::Workspace, &homes))
        };
        let end = &mut used[usize::from(space == Space::Workspace)];
        *end = (*end).max(offset + bytes[n]);
        homes[n] = Some(Home { space, offset, dtype: dtypes[n], bytes: bytes[n] });
    }
    let homes = homes.into_iter().map(|home| home.expect("every buffer was placed")).collect();
    Homes { homes, shared_bytes: used[0], workspace_bytes: used[1].next_multiple_of(256) }
}

/// When each buffer holds something.
fn lives(kernel: &Kernel) -> Vec<Life> {
    let mut lives = vec![Life::Never; kernel.buffers.len()];
    for stmt in &kernel.body {
        match stmt {
            Stmt::For { hi, body, .. } if is_over_chunks(hi) => {
                for (at, stmt) in body.iter().enumerate() {
                    let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
                    touched(std::slice::from_ref(stmt), &mut reads, &mut writes);
                    for memory in reads.union(&writes) {
                        let Memory::Buffer(buffer) = memory else { continue };
                        let life = &mut lives[buffer.0 as usize];
                        *life = match *life {
                            Life::Never if reads.contains(memory) => Life::Always,
                            Life::Never => Life::Turn { first: at, last: at },
                            Life::Turn { first, .. } => Life::Turn { first, last: at },
                            Life::Always => Life::Always,
                        };
                    }
                }
            }
            stmt => outside(stmt, &mut lives),
        }
    }
    // A second look: what is touched both in a turn and outside lives throughout.
    for stmt in &kernel.body {
        if !matches!(stmt, Stmt::For { hi, .. } if is_over_chunks(hi)) {
            outside(stmt, &mut lives);
        }
    }
    // More than one loop over chunks: what they hand on is not followed.
    let loops = kernel.body.iter().filter(|stmt| matches!(stmt, Stmt::For { hi, .. } if is_over_chunks(hi))).count();
    if loops > 1 {
        lives.fill(Life::Always);
    }
    lives
}

/// Whether a loop of the kernel goes over its chunks: nothing else there depends on the sequence.
fn is_over_chunks(hi: &Index) -> bool {
    !hi.value.symbols.is_empty()
}

fn outside(stmt: &Stmt, lives: &mut [Life]) {
    let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
    touched(std::slice::from_ref(stmt), &mut reads, &mut writes);
    for memory in reads.union(&writes) {
        if let Memory::Buffer(buffer) = memory {
            lives[buffer.0 as usize] = Life::Always;
        }
    }
}

/// The types of the buffers' elements.
fn dtypes(kernel: &Kernel, products: Products) -> Vec<DType> {
    let mut seen = Seen {
        kernel,
        written: vec![false; kernel.buffers.len()],
        other_writes: vec![false; kernel.buffers.len()],
        other_reads: vec![false; kernel.buffers.len()],
        operands: vec![false; kernel.buffers.len()],
    };
    seen.stmts(&kernel.body);
    let narrow = |n: usize| match products {
        Products::Tf32 | Products::Tf32x3 => false,
        Products::Bf16 => seen.written[n] && !seen.other_writes[n] || seen.operands[n] && !seen.other_reads[n],
    };
    (0..kernel.buffers.len()).map(|n| if narrow(n) { DType::BF16 } else { DType::F32 }).collect()
}

/// How buffers are used.
struct Seen<'k> {
    kernel: &'k Kernel,
    /// Something is written to it.
    written: Vec<bool>,
    /// Something that may not be a bfloat16 is.
    other_writes: Vec<bool>,
    /// Something reads it that would not round it.
    other_reads: Vec<bool>,
    /// A product that would round it reads it.
    operands: Vec<bool>,
}

impl Seen<'_> {
    fn stmts(&mut self, body: &[Stmt]) {
        for stmt in body {
            match stmt {
                Stmt::For { body, .. } | Stmt::If { body, .. } | Stmt::Lanes { body, .. } => self.stmts(body),
                Stmt::Local { value, .. } | Stmt::Assign { value, .. } => self.read(value),
                Stmt::Store { place, value } => {
                    let same = self.is_narrow(value);
                    self.write(place.memory, same);
                    self.read(value);
                }
                Stmt::ReduceLanes { place, value, accumulate, .. } => {
                    self.write(place.memory, false);
                    if *accumulate && let Memory::Buffer(buffer) = place.memory {
                        self.other_reads[buffer.0 as usize] = true;
                    }
                    self.read(value);
                }
                Stmt::Matmul(product) => {
                    let dst = product.dst.buffer.0 as usize;
                    self.write(Memory::Buffer(product.dst.buffer), false);
                    match product.update {
                        Update::Set => {}
                        Update::Add | Update::Subtract => self.other_reads[dst] = true,
                    }
                    for view in [&product.a, &product.b] {
                        let rounded = if product.exact { &mut self.other_reads } else { &mut self.operands };
                        rounded[view.buffer.0 as usize] = true;
                    }
                }
            }
        }
    }

    fn write(&mut self, memory: Memory, narrow: bool) {
        if let Memory::Buffer(buffer) = memory {
            self.written[buffer.0 as usize] = true;
            self.other_writes[buffer.0 as usize] |= !narrow;
        }
    }

    fn read(&mut self, value: &Expr) {
        value.for_each_load(&mut |place| {
            if let Memory::Buffer(buffer) = place.memory {
                self.other_reads[buffer.0 as usize] = true;
            }
        });
    }

    /// Whether a value is a bfloat16 whatever the data.
    fn is_narrow(&self, value: &Expr) -> bool {
        match value {
            Expr::Const(number) => *number == 0.0 || *number == 1.0,
            Expr::Load(Place { memory: Memory::Arg(arg), .. }) => self.kernel.args[arg.0 as usize].dtype == DType::BF16,
            Expr::Select(_, a, b) => self.is_narrow(a) && self.is_narrow(b),
            Expr::Load(_) | Expr::Local(_) | Expr::Unary(..) | Expr::Binary(..) | Expr::SelectValue(..) => false,
        }
    }
}

/// The memories that statements read and write.
pub fn touched(stmts: &[Stmt], reads: &mut BTreeSet<Memory>, writes: &mut BTreeSet<Memory>) {
    for stmt in stmts {
        match stmt {
            Stmt::For { body, .. } | Stmt::If { body, .. } | Stmt::Lanes { body, .. } => touched(body, reads, writes),
            Stmt::Local { value, .. } | Stmt::Assign { value, .. } => {
                value.for_each_load(&mut |place| reads.extend([place.memory]));
            }
            Stmt::Store { place, value } => {
                writes.insert(place.memory);
                value.for_each_load(&mut |place| reads.extend([place.memory]));
            }
            Stmt::ReduceLanes { place, value, accumulate, .. } => {
                writes.insert(place.memory);
                if *accumulate {
                    reads.insert(place.memory);
                }
                value.for_each_load(&mut |place| reads.extend([place.memory]));
            }
            Stmt::Matmul(product) => {
                reads.insert(Memory::Buffer(product.a.buffer));
                reads.insert(Memory::Buffer(product.b.buffer));
                writes.insert(Memory::Buffer(product.dst.buffer));
                match product.update {
                    Update::Set => {}
                    Update::Add | Update::Subtract => {
                        reads.insert(Memory::Buffer(product.dst.buffer));
                    }
                }
            }
        }
    }
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
