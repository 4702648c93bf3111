//! How a warp waits for copies, and at mbarriers.

use super::products::common;
use super::{ALL, Stop, Warp, World, lanes};
use crate::instruction::{Address, Operand, Register};
use crate::shared::Who;

/// What is wrong, and by which thread if it is one.
type Wrong = (Option<u32>, String);

impl Warp {
    pub(super) fn await_copies(&mut self, active: u32, world: &mut World) -> Result<(), Wrong> {
        for copy in self.copies.extract_if(.., |copy| active >> copy.lane & 1 == 1) {
            let who = Who { clock: &self.clock, lane: copy.lane };
            let done = world.shared.end_copy(copy.to, copy.bytes, copy.value, who);
            done.map_err(|what| (Some(copy.lane), what))?;
        }
        self.clock.await_copies(active);
        Ok(())
    }

    pub(super) fn begin_arrivals(
        &mut self,
        at: Address,
        count: Operand,
        active: u32,
        world: &mut World,
    ) -> Result<(), Wrong> {
        let (addresses, counts) = (self.addresses(at), self.read(count));
        for lane in lanes(active) {
            let made = world.mbarriers.begin(world.shared, addresses[lane], counts[lane], self.who(lane));
            made.map_err(|what| (Some(lane as u32), what))?;
        }
        Ok(())
    }

    /// Threads that arrive at the same mbarrier at once: the whole warp, or each by itself.
    fn arriving(addresses: &[u64; 32], active: u32) -> Vec<u32> {
        if active == ALL && addresses.iter().all(|address| *address == addresses[0]) {
            return vec![ALL];
        }
        lanes(active).map(|lane| 1 << lane).collect()
    }

    pub(super) fn arrive(
        &mut self,
        to: Option<Register>,
        at: Address,
        active: u32,
        world: &mut World,
    ) -> Result<(), Wrong> {
        let addresses = self.addresses(at);
        for threads in Warp::arriving(&addresses, active) {
            let told = self.clock.told(threads == ALL);
            let lane = threads.trailing_zeros();
            let (address, who) = (addresses[lane as usize], self.who(lane as usize));
            let phase = world.mbarriers.arrive(world.shared, address, threads.count_ones(), &told, who);
            let phase = phase.map_err(|what| (Some(lane), what))?;
            if let Some(to) = to {
                self.write_wide(to, threads, &[u64::from(phase); 32]);
            }
        }
        self.clock.go_on();
        Ok(())
    }

    pub(super) fn arrive_after_copies(&mut self, at: Address, world: &mut World) -> Result<(), Wrong> {
        let address = common(&self.addresses(at), "addresses")?;
        let (stretch, told) = self.clock.copied();
        for copy in self.copies.drain(..) {
            let done = world.shared.hand_over(copy.to, copy.bytes, copy.value, self.number, stretch);
            done.map_err(|what| (Some(copy.lane), what))?;
        }
        let arrived = world.mbarriers.arrive(world.shared, address, ALL.count_ones(), &told, self.who(0));
        arrived.map(|_| ()).map_err(|what| (None, what))
    }

    /// Gives where to wait if the phase has not ended.
    pub(super) fn await_phase(
        &mut self,
        to: Register,
        at: Address,
        parity: Operand,
        world: &mut World,
    ) -> Result<Option<Stop>, Wrong> {
        let address = common(&self.addresses(at), "addresses")?;
        let odd = common(&self.read(parity), "parities")?;
        let seen = world.mbarriers.await_phase(world.shared, address, odd, self.who(0)).map_err(|what| (None, what))?;
        let ended = seen.is_some();
        if let Some(seen) = seen {
            self.clock.see(seen);
        }
        self.write_predicate(to, ALL, if ended { ALL } else { 0 });
        Ok((!ended).then_some(Stop::Phase { address, odd }))
    }
}
