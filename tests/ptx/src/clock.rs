//! What happened before what: clocks of the warps of a block.
//!
//! A warp counts the stretches of its way between the places where others may learn how far it is. An access is remembered
//! with its warp and stretch, and happened before what a warp does now if that warp has seen the stretch. Warps see each
//! other's at barriers and through mbarriers ([`crate::arrivals`]); a warp sees its own, which is what puts its threads in
//! an order, at its own barriers. Copies that arrive by themselves are as if another warp made them, one beside each.

/// Warps of a block, at most.
pub const WARPS: usize = 32;

/// Up to which stretch, and including it, everything was seen: of each warp, and then of the copies of each.
pub type Seen = [u32; 2 * WARPS];

/// Where the copies of a warp stand in a [`Seen`].
pub fn copier(warp: u32) -> usize {
    WARPS + warp as usize
}

/// Adds what another has seen.
pub fn add(seen: &mut Seen, more: &Seen) {
    seen.iter_mut().zip(more).for_each(|(seen, more)| *seen = (*seen).max(*more));
}

/// The clock of a warp.
#[derive(Clone)]
pub struct Clock {
    pub warp: u32,
    /// The stretch it is in, from 1.
    pub now: u32,
    pub seen: Seen,
    /// What it had seen when all its threads last fenced towards the asynchronous proxy.
    pub fenced: Seen,
    /// Stretches of its copies, and up to which each thread has waited for its own otherwise than at an mbarrier.
    copies: u32,
    awaited: [u32; 32],
}

impl Clock {
    pub fn new(warp: u32) -> Clock {
        Clock { warp, now: 1, seen: [0; 2 * WARPS], fenced: [0; 2 * WARPS], copies: 0, awaited: [0; 32] }
    }

    /// What others may see, if all threads of the warp say it, or only some: of these it is what the warp's own last
    /// barrier had put before.
    pub fn told(&self, by_all: bool) -> Seen {
        let mut told = self.seen;
        if by_all {
            (told[self.warp as usize], told[copier(self.warp)]) = (self.now, self.known_copies());
        }
        told
    }

    /// Begins another stretch.
    pub fn go_on(&mut self) {
        self.now += 1;
    }

    pub fn see(&mut self, more: &Seen) {
        add(&mut self.seen, more);
    }

    /// All threads of the warp wait for each other.
    pub fn meet(&mut self) {
        self.seen = self.told(true);
        self.go_on();
    }

    /// Up to which stretch its copies have arrived, as those know who made them.
    pub fn known_copies(&self) -> u32 {
        let awaited = self.awaited.iter().min().copied().unwrap_or(0);
        self.seen[copier(self.warp)].max(awaited)
    }

    /// Whether a thread has waited for what it copied in a stretch.
    pub fn has_awaited(&self, lane: u32, stretch: u32) -> bool {
        stretch <= self.awaited[lane as usize]
    }

    /// Threads wait for all their copies.
    pub fn await_copies(&mut self, lanes: u32) {
        let own = self.awaited.iter_mut().enumerate().filter(|(lane, _)| lanes >> lane & 1 == 1);
        own.for_each(|(_, awaited)| *awaited = self.copies);
    }

    /// Copies arrive by themselves: their stretch, and what others see with them. Of what the warp itself did that is
    /// nothing.
    pub fn copied(&mut self) -> (u32, Seen) {
        self.copies += 1;
        let mut told = self.seen;
        (told[self.warp as usize], told[copier(self.warp)]) = (0, self.copies);
        (self.copies, told)
    }
}
