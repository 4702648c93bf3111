//! One kernel: its grid, its loop over chunks, and the two times it is written.
//!
//! Comes in: a graph. Goes out: the text of its entry, taking a parameter as [`chunkwise_abi::gpu`] says.

use super::aside::Lives;
use super::block::Block;
use super::loaders::{self, LOADERS};
use super::memory::{Layout, Memory, Touch};
use super::shape::extent;
use super::stage::Staged;
use super::{Options, Refusal};
use crate::graph::ir::{DimId, Graph, NodeId, Op};
use crate::lower::tile_to_mlir::functions::Functions;
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;
use crate::lower::tile_to_nvvm::{Launch, call};
use crate::tile::ir::Arg;
use chunkwise_abi::gpu::Grid;
use std::collections::{BTreeSet, HashMap};

/// Times that values may turn out to be needed by other threads than those that compute them.
const ATTEMPTS: usize = 16;

/// Shared memory that the hardware keeps for itself, of each block.
const OF_A_BLOCK: usize = 1024;

/// Registers that may be lacking, by the estimate, for a second block: the assembler finds some, and a few words more to
/// memory cost less than half of the multiprocessor standing still. A third is not worth any.
const TOLERATED: usize = 48;

/// The entry of one kernel.
pub fn lower(
    graph: &Graph,
    args: &[Arg],
    symbol: &str,
    options: &Options,
    functions: &mut Functions,
) -> Result<(String, Launch), Refusal> {
    if graph.time.is_none() || graph.nodes.iter().any(|node| matches!(node.op, Op::Scan(_))) {
        return Err(Refusal::unsupported("a graph without chunks"));
    }
    let own;
    let (graph, part) = match options.parts {
        Some((dim, parts)) if parts > 1 => {
            let mut part = graph.clone();
            part.dims[dim.index()].size /= parts;
            own = part;
            (&own, Some((dim, own.dim(dim).size, parts)))
        }
        Some(_) | None => (graph, None),
    };
    let small = |n: usize| u32::try_from(n).expect("a small number");
    let grid = match (graph.carries.is_empty(), graph.span_tokens(), part) {
        (true, _, None) => Grid::Chunk { tokens: small(graph.tokens) },
        (true, _, Some(_)) => return Err(Refusal::unsupported("parts of an axis of chunks by themselves")),
        (false, Some(tokens), None) => Grid::Spans { tokens: small(tokens), blocks: 1 },
        (false, Some(tokens), Some((_, _, parts))) => Grid::Spans { tokens: small(tokens), blocks: small(parts) },
        (false, None, None) => Grid::Item,
        (false, None, Some((_, _, parts))) => Grid::Blocks { blocks: small(parts) },
    };
    let part = part.map(|(dim, size, _)| (dim, size));
    let mut parked = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let mut first = Block::new(graph, args, options, functions, None);
        first.parked.clone_from(&parked);
        match first.kernel(grid, part) {
            Ok(()) => {}
            Err(Refusal::Park(x)) if parked.insert(x) => continue,
            Err(Refusal::Park(x)) => return Err(first.bug(x, "lies in memory and is not found there")),
            Err(refusal) => return Err(refusal),
        }
        let (memory, lives) = (first.memory, first.lives);
        let mut write = |aside: &[NodeId], layout: Option<Layout>| {
            let mut block = Block::new(graph, args, options, functions, layout);
            block.parked.clone_from(&parked);
            block.aside.wanted.extend(aside);
            block.kernel(grid, part)?;
            Ok((block.memory.place(), block.w.finish(&call::entry(symbol, args.len()))))
        };
        let Plan { aside, layout, resident } = plan(&memory, &lives, grid, options, &mut write)?;
        let shared_bytes = layout.bytes;
        let (_, entry) = write(&aside, Some(layout))?;
        let launch = match has_loaders(options, grid) {
            false => Launch {
                threads: 32 * options.warps,
                resident,
                registers: None,
                shared_bytes,
                workspace_bytes: 0,
                grid,
            },
            true => {
                let (threads, registers) = (32 * options.warps + LOADERS, Some(loaders::AT_FIRST));
                Launch { threads, resident: 0, registers, shared_bytes, workspace_bytes: 0, grid }
            }
        };
        return Ok((entry, launch));
    }
    Err(Refusal::unsupported("so many values that threads ask each other for"))
}

/// Whether warps of its own copy what a kernel reads.
fn has_loaders(options: &Options, grid: Grid) -> bool {
    options.loaders && options.ahead && !matches!(grid, Grid::Chunk { .. })
}

/// Writes a kernel with values aside and its regions in their places; where they would lie, and its text.
type Write<'w> = dyn FnMut(&[NodeId], Option<Layout>) -> Result<(Layout, String), Refusal> + 'w;

/// How a kernel is written at last.
struct Plan {
    /// Values that lie aside.
    aside: Vec<NodeId>,
    layout: Layout,
    /// Blocks that a multiprocessor holds at once.
    resident: usize,
}

/// As many blocks a multiprocessor as are asked for and shared memory and registers last for, and one more where they do
/// not wait for each other, since one alone waits at every barrier. As much lies aside as is needed and has room
/// beside the other blocks.
fn plan(memory: &Memory, lives: &Lives, grid: Grid, options: &Options, write: &mut Write) -> Result<Plan, Refusal> {
    let layout = memory.place();
    if layout.bytes > options.shared_limit {
        return Err(Refusal::Room(layout.bytes));
    }
    let asked = options.resident.max(1);
    let most = if matches!(grid, Grid::Chunk { .. }) { asked + 1 } else { asked };
    for resident in (1..=most).rev() {
        let limit = (options.shared_limit + OF_A_BLOCK) / resident - OF_A_BLOCK;
        if layout.bytes > limit {
            continue;
        }
        let left = memory.needed().into_iter().map(|bytes| limit.saturating_sub(bytes)).collect();
        let (mut aside, lacking) = lives.to_put_aside(32 * options.warps, resident, left);
        let tolerated = if resident == 2 { TOLERATED } else { 0 };
        if resident > 1 && lacking > tolerated {
            continue;
        }
        let mut layout = layout.clone();
        while !aside.is_empty() {
            let (other, _) = write(&aside, None)?;
            if other.bytes <= limit {
                layout = other;
                break;
            }
            aside.pop();
        }
        return Ok(Plan { aside, layout, resident });
    }
    Err(Refusal::Bug("no number of blocks a multiprocessor is right".to_owned()))
}

impl Block<'_> {
    fn kernel(&mut self, grid: Grid, part: Option<(DimId, usize)>) -> Result<(), Refusal> {
        self.item(grid);
        let mut block = self.first;
        if let Grid::Spans { blocks, .. } = grid {
            self.span = Some(self.first);
            if blocks > 1 {
                let blocks = self.int(blocks as usize);
                self.span = Some(self.w.op("udiv", self.first, blocks, Ty::I32));
                block = self.w.op("urem", self.first, blocks, Ty::I32);
            }
        }
        if let Some((dim, size)) = part {
            let size = self.int(size);
            let first = block;
            let first = self.w.op("mul", first, size, Ty::I32);
            self.part = Some((dim, first));
        }
        let tokens = self.int(self.graph.tokens);
        let more = self.int(self.graph.tokens - 1);
        let length = self.length;
        let whole = self.w.op("add", length, more, Ty::I32);
        let chunks = self.w.op("udiv", whole, tokens, Ty::I32);
        match (grid, self.graph.span.zip(self.span)) {
            (Grid::Spans { .. }, None) => return Err(Refusal::Bug("spans of no steps".to_owned())),
            (Grid::Spans { .. }, Some((steps, span))) => {
                let steps = self.int(steps);
                let first = self.w.op("mul", span, steps, Ty::I32);
                let some = self.w.icmp("slt", first, chunks, Ty::I32);
                self.open_if(some);
                self.branches -= 1;
                let left = self.w.op("sub", chunks, first, Ty::I32);
                let count = self.w.intrinsic("smin", &[left, steps], Ty::I32);
                self.loop_over_chunks(first, count)?;
                self.branches += 1;
                self.close_if();
            }
            (Grid::Chunk { .. }, _) => {
                let chunk = self.first;
                let real = self.w.icmp("slt", chunk, chunks, Ty::I32);
                self.open_if(real);
                self.branches -= 1;
                self.parameters()?;
                let staged = self.staged(false)?;
                self.clear_padding(&staged);
                self.arrive_now(&staged, chunk);
                self.arrived(&staged);
                self.chunk = chunk;
                self.set_limit();
                self.results()?;
                self.branches += 1;
                self.close_if();
            }
            (Grid::Item | Grid::Blocks { .. }, _) => {
                let first = self.int(0);
                self.loop_over_chunks(first, chunks)?;
            }
        }
        Ok(())
    }

    /// Chunk after chunk, so many from the first; the next one's inputs arrive while this one's are used.
    fn loop_over_chunks(&mut self, begin: Val, chunks: Val) -> Result<(), Refusal> {
        let graph = self.graph;
        let ahead = self.options.ahead;
        let mut staged = self.staged(ahead)?;
        let (zero, one) = (self.int(0), self.int(1));
        let last = self.w.op("sub", chunks, one, Ty::I32);
        let place = |this: &mut Self, turn| {
            let turn = if graph.reverse { this.w.op("sub", last, turn, Ty::I32) } else { turn };
            // Without spans it begins at the first of all.
            if graph.span.is_some() { this.w.op("add", begin, turn, Ty::I32) } else { turn }
        };
        if ahead && self.options.loaders {
            self.begin_loaders();
            self.load_chunks(&staged, chunks, place);
        }
        self.parameters()?;
        for carry in &graph.carries {
            self.begin_carry(carry)?;
        }
        self.clear_padding(&staged);
        self.settle();
        if ahead && self.loaders.is_none() {
            let some = self.w.icmp("slt", zero, chunks, Ty::I32);
            self.open_if(some);
            let first = place(self, zero);
            let later = self.copy(&staged, first, Some(zero));
            self.store_later(later);
            self.close_if();
        }

        let turn = self.w.open_loop(zero, chunks, one, Ty::I32);
        self.numbers.push(HashMap::new());
        let offsets = self.lane_offsets.clone();
        self.parity = self.w.op("and", turn, one, Ty::I32);
        let parity = self.parity;
        staged.iter_mut().for_each(|input| input.set_parity(parity));
        if self.loaders.is_some() {
            self.await_loaded(turn);
        } else if ahead {
            text::command(&mut self.w, "llvm.nvvm.cp.async.wait.all", &[]);
        }
        // Whatever the turn before wrote.
        self.unfenced = true;
        self.barrier();
        self.memory.settled();
        self.recent.clear();
        self.words.clear();
        self.chunk = place(self, turn);
        self.set_limit();
        let later = if self.loaders.is_some() {
            Vec::new()
        } else if ahead {
            let next = self.w.op("add", turn, one, Ty::I32);
            let next = self.w.intrinsic("smin", &[next, last], Ty::I32);
            let coming = place(self, next);
            let other = self.w.op("sub", one, parity, Ty::I32);
            let (coming, later) = self.coming(&staged, coming, Some(other));
            self.next = Some(coming);
            later
        } else {
            self.arrive_now(&staged, self.chunk);
            Vec::new()
        };
        self.arrived(&staged);
        self.products = (0..graph.nodes.len())
            .filter(|n| self.is_product(NodeId(u32::try_from(*n).expect("ids have 32 bits"))))
            .count();
        for carry in &graph.carries {
            self.take_carry(carry)?;
        }
        self.results()?;
        self.put_carries(&graph.carries)?;
        self.copy_some(1);
        self.store_later(later);
        self.release(turn);
        self.numbers.pop();
        self.w.end();
        self.lane_offsets = offsets;
        self.recent.clear();
        self.words.clear();
        self.values.clear();
        self.memory.settled();
        if ahead && self.loaders.is_none() {
            // The last chunk's arrive a second time, for nobody; but no block ends before its copies do.
            text::command(&mut self.w, "llvm.nvvm.cp.async.wait.all", &[]);
        }
        self.barrier();
        for carry in &graph.carries {
            self.take_carry(carry)?;
            self.store_last(carry)?;
        }
        self.end_loaders();
        Ok(())
    }

    /// Copies a chunk's inputs and waits for them.
    fn arrive_now(&mut self, staged: &[Staged], chunk: Val) {
        let later = self.copy(staged, chunk, None);
        self.statement();
        let regions: Vec<_> = staged.iter().map(Staged::region).collect();
        self.touch_all(&regions, Touch::Write);
        self.store_later(later);
        self.settle();
    }

    /// How many tokens of the chunk are real.
    fn set_limit(&mut self) {
        let tokens = self.int(self.graph.tokens);
        let before = self.w.op("mul", self.chunk, tokens, Ty::I32);
        let left = self.w.op("sub", self.length, before, Ty::I32);
        self.limit = self.w.intrinsic("smin", &[left, tokens], Ty::I32);
    }

    /// What a chunk gives: next always what takes least that was not computed yet, so that what is computed is soon used
    /// up, and takes registers no longer.
    fn results(&mut self) -> Result<(), Refusal> {
        let graph = self.graph;
        let saves = graph.saves.iter().map(|(name, x)| (name, *x, self.dims(*x).to_vec()));
        let outputs = graph.outputs.iter().map(|(name, x)| (name, *x, graph.output_layout(name)));
        let mut left: Vec<_> = saves.chain(outputs).collect();
        while !left.is_empty() {
            let mut least = (usize::MAX, 0);
            for (at, (_, x, _)) in left.iter().enumerate() {
                least = least.min((self.still_to_do(*x), at));
            }
            let (name, x, dims) = left.remove(least.1);
            self.store(name, x, &dims)?;
        }
        Ok(())
    }

    /// Elements of what threads still have to compute together before a value can be asked for.
    fn still_to_do(&self, x: NodeId) -> usize {
        let mut seen = BTreeSet::new();
        let mut open = vec![x];
        let mut elements = 0;
        while let Some(x) = open.pop() {
            if self.is_at_hand(x) || self.visited.contains(&x) || !seen.insert(x) {
                continue;
            }
            match self.op(x) {
                Op::Contract(..)
                | Op::Sum(..)
                | Op::MaxOver(..)
                | Op::Gated { .. }
                | Op::Inverse(_)
                | Op::Segment { .. }
                | Op::DiagonalPart(..) => elements += extent(self.graph, self.dims(x)),
                _ => {}
            }
            open.extend(self.op(x).operands());
        }
        elements
    }
}
