//! Warps that only copy what the others read.
//!
//! Comes in: the inputs of chunks that follow each other. Goes out: a branch in which a warp group of its own starts
//! copies of a chunk as soon as its room is free, and the barriers at which it and the others wait for each other: one for
//! each half of the room that says it is full, one that it is free. So those who compute have no copies among their
//! instructions, and no fence of theirs waits for what is on its way.
//!
//! Registers are shared out by need: the loaders give most of theirs to the others (PTX ISA, "setmaxnreg").

use super::block::Block;
use super::index::Linear;
use super::stage::Staged;
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text::{self, Address};
use std::collections::HashMap;

/// Threads that copy: a warp group.
pub const LOADERS: usize = 128;
/// Registers of a thread at first, and then: of those who copy, and of the others. A multiprocessor has 65536.
pub const AT_FIRST: usize = 168;
const OF_LOADERS: usize = 72;
const OF_OTHERS: usize = 216;

/// Which barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// What was copied is there.
    Full,
    /// It was used.
    Free,
}

impl Block<'_> {
    /// Makes the barriers.
    pub fn begin_loaders(&mut self) {
        self.loaders = Some(self.memory.allocate(32, true));
        let zero = self.int(0);
        let first = self.w.icmp("eq", self.thread, zero, Ty::I32);
        self.open_if(first);
        for half in 0..2 {
            let half = Linear::number(half);
            // Each copier twice: when it wrote, and when what it copied is there.
            let full = self.arrivals(Says::Full, &half);
            text::init_arrivals(&mut self.w, full, 2 * LOADERS);
            let free = self.arrivals(Says::Free, &half);
            text::init_arrivals(&mut self.w, free, self.warps.count());
        }
        self.close_if();
        text::barrier(&mut self.w);
    }

    /// The branch of those who copy; the others' is open after it.
    pub fn load_chunks(&mut self, staged: &[Staged], chunks: Val, place: impl Fn(&mut Self, Val) -> Val) {
        let others = self.int(32 * self.warps.count());
        let copies = self.w.icmp("uge", self.thread, others, Ty::I32);
        self.open_if(copies);
        text::set_registers(&mut self.w, false, OF_LOADERS);
        let thread = self.w.op("sub", self.thread, others, Ty::I32);
        let (zero, one) = (self.int(0), self.int(1));
        let turn = self.w.open_loop(zero, chunks, one, Ty::I32);
        self.numbers.push(HashMap::new());
        // Addresses are computed anew in every turn: there are few registers to keep them in.
        let thread = text::unknown(&mut self.w, thread);
        let all = std::mem::replace(&mut self.copiers, (thread, LOADERS));
        let (half, round) = self.half_and_round(turn);
        let before = self.w.op("xor", round, one, Ty::I32);
        let at = Linear::value(half, 1);
        let free = self.arrivals(Says::Free, &at);
        text::wait_for_arrivals(&mut self.w, free, before);
        let chunk = place(self, turn);
        let later = self.copy(staged, chunk, Some(half));
        self.store_later(later);
        let full = self.arrivals(Says::Full, &at);
        text::arrive_after_copies(&mut self.w, full);
        text::arrive(&mut self.w, full);
        self.numbers.pop();
        self.w.end();
        self.copiers = all;
        self.numbers.pop();
        self.w.open_else();
        self.numbers.push(HashMap::new());
        text::set_registers(&mut self.w, true, OF_OTHERS);
        // What follows is as good as no branch: all who compute take it.
        self.branches -= 1;
    }

    /// Waits for a turn's inputs.
    pub fn await_loaded(&mut self, turn: Val) {
        let (half, round) = self.half_and_round(turn);
        let full = self.arrivals(Says::Full, &Linear::value(half, 1));
        text::wait_for_arrivals(&mut self.w, full, round);
    }

    /// The warp needs a turn's inputs no longer.
    pub fn release(&mut self, turn: Val) {
        if self.loaders.is_none() {
            return;
        }
        let (half, _) = self.half_and_round(turn);
        text::warp_barrier(&mut self.w);
        let zero = self.int(0);
        let first = self.w.icmp("eq", self.lane, zero, Ty::I32);
        self.open_if(first);
        let free = self.arrivals(Says::Free, &Linear::value(half, 1));
        text::arrive(&mut self.w, free);
        self.close_if();
    }

    /// Closes the branch of those who compute.
    pub fn end_loaders(&mut self) {
        if self.loaders.take().is_some() {
            self.branches += 1;
            self.close_if();
        }
    }

    /// Of a turn: which half of the room is its, and the parity of how often it was before.
    fn half_and_round(&mut self, turn: Val) -> (Val, Val) {
        let one = self.int(1);
        let half = self.w.op("and", turn, one, Ty::I32);
        let round = self.w.op("lshr", turn, one, Ty::I32);
        (half, self.w.op("and", round, one, Ty::I32))
    }

    fn arrivals(&mut self, says: Says, half: &Linear) -> Address {
        let mut bytes = Linear::number(if says == Says::Full { 0 } else { 16 });
        bytes.add_scaled(half, 8);
        let region = self.loaders.expect("there are loaders");
        self.shared(region, &bytes)
    }
}
