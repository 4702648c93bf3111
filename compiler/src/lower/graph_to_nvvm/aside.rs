//! Values put aside in shared memory where registers end.
//!
//! Comes in: what is kept in registers, when it is computed and when it is used, as the kernel is written. Goes out:
//! which values lie in shared memory instead, each element where only its own thread writes and reads it, so that nobody
//! waits for anybody; and those accesses. It counts what is kept, not what a statement needs while it runs: that is
//! [`RESERVE`].

use super::block::{Block, Fold, Home, Key};
use super::index::Linear;
use super::memory::{Region, Touch};
use crate::graph::ir::NodeId;
use crate::lower::tile_to_mlir::writer::{Elem, Val};
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Registers of a multiprocessor, and the most that a thread can have.
const REGISTERS: usize = 65536;
const MOST: usize = 255;
/// Registers that statements, addresses and numbers take beside what is kept.
const RESERVE: usize = 60;

/// When a value is kept.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    /// Registers a thread has of it.
    registers: usize,
    /// The statement that computes it.
    first: usize,
    /// The last one that uses it, and how many do.
    last: usize,
    uses: usize,
    /// It may be put aside.
    movable: bool,
}

/// When all are.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    /// The statement at hand.
    now: usize,
    all: BTreeMap<NodeId, Life>,
    /// By statement: registers that it takes beside.
    working: Vec<(usize, usize)>,
}

impl Lives {
    /// A new statement begins.
    pub fn step(&mut self) {
        self.now += 1;
    }

    /// A value has so many more registers.
    pub fn kept(&mut self, x: NodeId, registers: usize, movable: bool) {
        let now = self.now;
        let life = self.all.entry(x).or_insert(Life { first: now, last: now, movable, ..Life::default() });
        life.registers += registers;
    }

    /// A value is used.
    pub fn used(&mut self, x: NodeId) {
        if let Some(life) = self.all.get_mut(&x)
            && life.last != self.now
        {
            life.last = self.now;
            life.uses += 1;
        }
    }

    /// A statement takes so many registers beside what is kept and what others take.
    pub fn works(&mut self, registers: usize) {
        self.working.push((self.now, registers));
    }

    /// What is put aside so that no more registers are taken than there are, where a multiprocessor holds so many blocks
    /// of so many threads, and by statement so many bytes of shared memory are left. The first is what takes registers
    /// longest for its uses. Also, how many registers are lacking still.
    pub fn to_put_aside(&self, threads: usize, resident: usize, mut left: Vec<usize>) -> (Vec<NodeId>, usize) {
        let most = (REGISTERS / (threads * resident.max(1))).min(MOST);
        let budget = most.saturating_sub(RESERVE);
        left.resize(self.now + 1, 0);
        let mut taken = vec![0; self.now + 1];
        for life in self.all.values() {
            taken[life.first..life.last].iter_mut().for_each(|taken| *taken += life.registers);
        }
        for (at, registers) in &self.working {
            taken[*at] += registers;
        }
        let mut aside: Vec<NodeId> = Vec::new();
        // Peaks at which nothing more can be done.
        let mut done = vec![false; self.now + 1];
        loop {
            let open = (0..=self.now).filter(|at| !done[*at] && taken[*at] > budget);
            let Some(peak) = open.max_by_key(|at| (taken[*at], std::cmp::Reverse(*at))) else {
                let beyond = taken.iter().max().map_or(0, |most| most.saturating_sub(budget));
                return (aside, beyond);
            };
            let bytes = |life: &Life| 4 * threads * life.registers;
            let candidates = self.all.iter().filter(|(x, life)| {
                let there = life.movable && life.first <= peak && peak < life.last && life.last > life.first + 1;
                there && !aside.contains(x) && left[life.first..=life.last].iter().all(|left| *left >= bytes(life))
            });
            let worth = |life: &Life| (life.last - life.first) * 16 / (1 + life.uses);
            let Some((x, life)) = candidates.max_by_key(|(x, life)| (worth(life), std::cmp::Reverse(**x))) else {
                done[peak] = true;
                continue;
            };
            left[life.first..=life.last].iter_mut().for_each(|left| *left -= bytes(life));
            taken[life.first..life.last].iter_mut().for_each(|taken| *taken -= life.registers);
            aside.push(*x);
        }
    }
}

/// Where a value lies aside.
#[derive(Clone, Debug, Default)]
pub struct Aside {
    /// Values that are to lie there.
    pub wanted: BTreeSet<NodeId>,
    /// Their regions, and how many pairs of elements are in each.
    regions: BTreeMap<NodeId, (Region, usize)>,
    /// By element: the region, and bytes from the start of its thread's part.
    places: std::collections::HashMap<Key, (Region, usize)>,
}

impl Block<'_> {
    /// Keeps two neighbours of a value that has so many elements a thread: in registers, or aside.
    pub fn keep(&mut self, x: NodeId, pair: [(Key, Val); 2], elements: usize) {
        self.held.insert(x);
        if !self.aside.wanted.contains(&x) {
            self.lives.kept(x, 2, true);
            self.values.extend(pair);
            return;
        }
        let step = 8 * 32 * self.warps.count();
        let region = match self.aside.regions.get(&x) {
            Some((region, _)) => *region,
            None => self.memory.allocate(elements / 2 * step, false),
        };
        let number = self.aside.regions.get(&x).map_or(0, |(_, number)| *number);
        self.aside.regions.insert(x, (region, number + 1));
        self.touch(region, Touch::Write);
        let address = self.shared(region, &self.own_bytes(number * step));
        let both = text::vector(&mut self.w, &pair.map(|(_, value)| value), Elem::F32);
        text::store(&mut self.w, both, address, "vector<2xf32>", 8);
        for (odd, (key, _)) in pair.into_iter().enumerate() {
            self.aside.places.insert(key, (region, number * step + 4 * odd));
        }
    }

    /// An element that lies aside.
    pub fn taken_up(&mut self, key: &Key) -> Option<Val> {
        let (region, bytes) = *self.aside.places.get(key)?;
        self.memory.touch_own(region);
        let home = Home { region, dtype: DType::F32, strides: Vec::new(), parts: (1, 0), fold: Fold::Sum, half: None };
        let bytes = self.own_bytes(bytes);
        Some(self.word(&home, &bytes))
    }

    fn own_bytes(&self, constant: usize) -> Linear {
        let mut bytes = Linear::value(self.thread, 8);
        bytes.constant = i64::try_from(constant).expect("shared memory is small");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(lives: &mut Lives, x: u32, registers: usize) {
        lives.kept(NodeId(x), registers, true);
    }

    #[test]
    fn what_waits_longest_is_put_aside_and_no_more_than_needed() {
        let mut lives = Lives::default();
        life(&mut lives, 0, 66);
        lives.step();
        life(&mut lives, 1, 66);
        for _ in 0..4 {
            lives.step();
            lives.used(NodeId(1));
        }
        life(&mut lives, 2, 66);
        lives.step();
        lives.step();
        (0..3).for_each(|x| lives.used(NodeId(x)));
        let room = |bytes: usize| vec![bytes; 16];
        assert_eq!(lives.to_put_aside(256, 1, room(1 << 20)).0, vec![NodeId(0)]);
        // Half the registers hold one value less, if there is room for it.
        assert_eq!(lives.to_put_aside(256, 2, room(1 << 20)).0, vec![NodeId(0), NodeId(1)]);
        assert_eq!(lives.to_put_aside(256, 2, room(70_000)).0, vec![NodeId(0)]);
        assert_eq!(lives.to_put_aside(256, 2, room(1 << 10)).0, vec![]);
    }

    #[test]
    fn what_is_used_at_once_stays() {
        let mut lives = Lives::default();
        life(&mut lives, 0, 300);
        lives.step();
        lives.used(NodeId(0));
        assert_eq!(lives.to_put_aside(256, 1, vec![1 << 20; 2]).0, vec![]);
    }
}
