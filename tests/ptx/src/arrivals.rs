//! The barriers of a block: those with a number, and those in shared memory that PTX calls mbarriers.
//!
//! At one with a number whole warps wait for each other, as many as it is told there. An mbarrier counts arrivals in
//! phases: with the last one a phase ends, and who waits for it goes on and has seen what those who arrived had. Phases are
//! told apart by whether their number is odd.

use crate::clock::{Seen, WARPS, add};
use crate::shared::{Shared, Who};
use std::collections::BTreeMap;

/// Barriers with a number.
const NUMBERS: usize = 16;

/// Arrivals that an mbarrier can count.
const MOST: u32 = (1 << 20) - 1;

/// Who stands at barriers with a number.
#[derive(Default)]
pub struct Barriers {
    /// For how many threads, and which warps stand there.
    standing: [(u32, u32); NUMBERS],
}

impl Barriers {
    /// A warp comes to a barrier: which warps go on, if it was the last.
    pub fn stand(&mut self, number: usize, threads: u32, warp: u32) -> Result<Option<u32>, String> {
        let (expected, warps) = &mut self.standing[number];
        if *warps != 0 && *expected != threads {
            let first = warps.trailing_zeros();
            return Err(format!("{threads} threads are to meet here, and {expected} where warp {first} stands"));
        }
        *expected = threads;
        *warps |= 1 << warp;
        Ok((32 * warps.count_ones() == threads).then(|| std::mem::take(warps)))
    }
}

/// An mbarrier.
struct Mbarrier {
    count: u32,
    missing: u32,
    /// Phases that have ended.
    ended: u32,
    /// What those who arrived had seen: in this phase, and in the one before.
    seen: Seen,
    seen_before: Seen,
    /// Who made it, and when.
    made: (u32, u32, u32),
}

/// The mbarriers of a block, by their addresses.
#[derive(Default)]
pub struct Mbarriers(BTreeMap<u64, Mbarrier>);

impl Mbarriers {
    /// Makes one.
    pub fn begin(&mut self, shared: &mut Shared, address: u64, count: u32, who: Who) -> Result<(), String> {
        if !(1..=MOST).contains(&count) {
            return Err(format!("an mbarrier of {count} arrivals"));
        }
        shared.reserve(address, who)?;
        let seen = [0; 2 * WARPS];
        let made = (who.clock.warp, who.lane, who.clock.now);
        self.0.insert(address, Mbarrier { count, missing: count, ended: 0, seen, seen_before: seen, made });
        Ok(())
    }

    fn find(&mut self, shared: &Shared, address: u64, who: Who) -> Result<&mut Mbarrier, String> {
        let at = shared.find(address, 8)?;
        let it =
            self.0.get_mut(&address).ok_or_else(|| format!("there is no mbarrier at byte {at} of shared memory"))?;
        let (warp, lane, when) = it.made;
        if when > who.clock.seen[warp as usize] && (warp, lane) != (who.clock.warp, who.lane) {
            return Err(format!(
                "thread {lane} of warp {warp} made the mbarrier at byte {at} of shared memory, and no barrier is between"
            ));
        }
        Ok(it)
    }

    /// Threads arrive, and tell what they have seen; gives the number of the phase.
    pub fn arrive(
        &mut self,
        shared: &Shared,
        address: u64,
        threads: u32,
        told: &Seen,
        who: Who,
    ) -> Result<u32, String> {
        let it = self.find(shared, address, who)?;
        if threads > it.missing {
            let Mbarrier { missing, count, .. } = it;
            return Err(format!("{threads} threads arrive, and of {count} arrivals only {missing} are missing"));
        }
        let phase = it.ended;
        add(&mut it.seen, told);
        it.missing -= threads;
        if it.missing == 0 {
            (it.missing, it.seen_before) = (it.count, it.seen);
            it.ended += 1;
            it.seen = [0; 2 * WARPS];
        }
        Ok(phase)
    }

    /// What those had seen who arrived in the phase of a parity, if it has ended.
    pub fn await_phase(&mut self, shared: &Shared, address: u64, odd: u32, who: Who) -> Result<Option<&Seen>, String> {
        if odd > 1 {
            return Err(format!("a parity of {odd}"));
        }
        let it = self.find(shared, address, who)?;
        Ok((it.ended % 2 != odd).then_some(&it.seen_before))
    }

    /// Whether the phase of a parity has ended.
    pub fn has_ended(&self, address: u64, odd: u32) -> bool {
        self.0.get(&address).is_some_and(|it| it.ended % 2 != odd)
    }

    /// Why somebody waits.
    pub fn why(&self, shared: &Shared, address: u64, odd: u32) -> String {
        let at = shared.find(address, 8).unwrap_or_default();
        let (missing, count) = self.0.get(&address).map_or((0, 0), |it| (it.missing, it.count));
        format!(
            "for the end of a phase of parity {odd} of the mbarrier at byte {at} of shared memory, where {missing} of \
             {count} arrivals are missing"
        )
    }
}
