//! Launches: blocks one by one, on as many processors as there are, and the warps of each in turn, as far as each gets
//! without the others.

use crate::arrivals::{Barriers, Mbarriers};
use crate::clock::{WARPS, add};
use crate::memory::Memory;
use crate::parse::{Kernel, SHARED_AT};
use crate::shared::Shared;
use crate::warp::{Stop, Warp, World, Wrong};
use crate::warpgroup::Warpgroups;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A launch of a kernel.
pub struct Launch<'a> {
    /// What is run.
    pub kernel: &'a Kernel,
    /// Blocks along x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block.
    pub shared_bytes: u32,
    /// What is in every byte of shared memory that was not written: [`NOT_A_NUMBER`], or to see whether it matters
    /// something else.
    pub unwritten: u8,
    /// The parameter.
    pub parameter: &'a [u8],
}

/// A byte of which no number is made in any type of float.
pub const NOT_A_NUMBER: u8 = 0xff;

/// What a kernel did wrong.
#[derive(Debug)]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread, or the first of a warp.
    pub thread: u32,
    /// The line of the PTX, from 1, and what stands there.
    pub line: u32,
    /// As above.
    pub text: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kernel, block, thread, line, text, what } = self;
        write!(f, "{kernel}, block {block:?}, thread {thread}, line {line}: `{text}`: {what}")
    }
}

impl std::error::Error for Fault {}

/// Threads of a warp.
const WARP: u32 = 32;

/// Runs a kernel to its end, on up to `processors` threads.
pub fn run(launch: &Launch, memory: &Memory, processors: usize) -> Result<(), Fault> {
    let before = |what: String| Fault {
        kernel: launch.kernel.name.clone(),
        block: [0; 3],
        thread: 0,
        line: 0,
        text: String::new(),
        what,
    };
    if launch.parameter.len() != launch.kernel.parameter_bytes {
        let (given, wanted) = (launch.parameter.len(), launch.kernel.parameter_bytes);
        return Err(before(format!("it takes a parameter of {wanted} bytes, and is given one of {given}")));
    }
    if launch.threads == 0 || !launch.threads.is_multiple_of(WARP) || launch.threads > WARP * WARPS as u32 {
        return Err(before(format!("{} threads are no whole warps, or too many", launch.threads)));
    }
    let count: u32 = launch.blocks.iter().product();
    let next = AtomicU32::new(0);
    let fault: Mutex<Option<Fault>> = Mutex::new(None);
    let work = || {
        let mut block = Block::new(launch);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            if let Err(wrong) = block.run(launch, memory, number) {
                next.store(count, Ordering::Relaxed);
                let mut fault = fault.lock().expect("no holder panics");
                // Of several, the one a single processor would have met.
                if fault.as_ref().is_none_or(|known| wrong.block < known.block) {
                    *fault = Some(wrong);
                }
                return;
            }
        }
    };
    let processors = processors.min(count as usize);
    if processors <= 1 {
        work();
    } else {
        std::thread::scope(|scope| (0..processors).for_each(|_| drop(scope.spawn(work))));
    }
    memory.end_launch();
    match fault.into_inner().expect("no holder panics") {
        None => Ok(()),
        Some(fault) => Err(fault),
    }
}

/// A block, one after the other in the same place.
struct Block {
    warps: Vec<Warp>,
    states: Vec<State>,
    shared: Shared,
    warpgroups: Warpgroups,
    mbarriers: Mbarriers,
    barriers: Barriers,
}

/// What a warp does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    /// Waits, as it said when it stopped.
    Waits(Stop),
}

impl Block {
    fn new(launch: &Launch) -> Block {
        let count = launch.threads / WARP;
        Block {
            warps: (0..count).map(|number| Warp::new(number, launch.kernel)).collect(),
            states: vec![State::Runs; count as usize],
            shared: Shared::new(launch.shared_bytes as usize, SHARED_AT, launch.unwritten, count as usize),
            warpgroups: Warpgroups::new(count),
            mbarriers: Mbarriers::default(),
            barriers: Barriers::default(),
        }
    }

    fn run(&mut self, launch: &Launch, memory: &Memory, number: u32) -> Result<(), Fault> {
        let [x, y, _] = launch.blocks;
        let block = [number % x, number / x % y, number / x / y];
        self.warps.iter_mut().for_each(Warp::reset);
        self.states.fill(State::Runs);
        self.shared.reset();
        self.warpgroups.reset();
        (self.mbarriers, self.barriers) = (Mbarriers::default(), Barriers::default());
        let fault = |warp: usize, lane: u32, line: u32, what: String| Fault {
            kernel: launch.kernel.name.clone(),
            block,
            thread: warp as u32 * WARP + lane,
            line,
            text: launch.kernel.line(line).to_owned(),
            what,
        };
        let line = |at: u32| launch.kernel.code.get(at as usize).map_or(0, |it| it.line);
        let astray = |(warp, line): (usize, u32)| {
            fault(warp, 0, line, "other warps of its warpgroup do this, and it went another way".to_owned())
        };
        loop {
            let mut stuck = true;
            for warp in 0..self.warps.len() {
                if !self.goes_on(warp) {
                    continue;
                }
                stuck = false;
                let mut world = World {
                    memory,
                    shared: &mut self.shared,
                    warpgroups: &mut self.warpgroups,
                    mbarriers: &mut self.mbarriers,
                    parameter: launch.parameter,
                    block,
                    blocks: launch.blocks,
                    block_number: number,
                    threads: launch.threads,
                };
                let stop = self.warps[warp].run(launch.kernel, &mut world);
                let stop = stop.map_err(|Wrong { at, lane, what }| fault(warp, lane.unwrap_or(0), line(at), what))?;
                self.states[warp] = State::Waits(stop);
                if let Stop::Barrier { number, threads } = stop {
                    let meeting = self.barriers.stand(number, threads, warp as u32);
                    let before = self.warps[warp].at().saturating_sub(1);
                    let meeting = meeting.map_err(|what| fault(warp, 0, line(before), what))?;
                    if let Some(warps) = meeting {
                        self.warpgroups.meet(warps).map_err(astray)?;
                        self.meet(warps);
                    }
                }
            }
            if self.states.iter().all(|state| *state == State::Waits(Stop::Done)) {
                return self.warpgroups.meet(u32::MAX).map_err(astray);
            }
            if stuck {
                let first = self.states.iter().position(|state| *state != State::Waits(Stop::Done)).unwrap_or(0);
                let before = self.warps[first].at().saturating_sub(1);
                return Err(fault(first, 0, line(before), self.why_stuck()));
            }
        }
    }

    fn goes_on(&self, warp: usize) -> bool {
        match self.states[warp] {
            State::Runs => true,
            State::Waits(Stop::Phase { address, odd }) => self.mbarriers.has_ended(address, odd),
            State::Waits(Stop::Barrier { .. } | Stop::Done) => false,
        }
    }

    /// Warps that stood at a barrier go on, and have seen each other.
    fn meet(&mut self, warps: u32) {
        let own = |warp: &usize| warps >> warp & 1 == 1;
        let mut seen = [0; 2 * WARPS];
        (0..self.warps.len()).filter(own).for_each(|warp| add(&mut seen, &self.warps[warp].clock.told(true)));
        for warp in (0..self.warps.len()).filter(own) {
            self.warps[warp].clock.see(&seen);
            self.warps[warp].clock.go_on();
            self.states[warp] = State::Runs;
        }
    }

    /// Who waits for what, when nobody can go on.
    fn why_stuck(&self) -> String {
        let mut parts: Vec<(String, Vec<usize>)> = Vec::new();
        for (warp, state) in self.states.iter().enumerate() {
            let what = match state {
                State::Runs => continue,
                State::Waits(Stop::Done) => "ended".to_owned(),
                State::Waits(Stop::Barrier { number, threads }) => {
                    format!("at barrier {number} of {threads} threads")
                }
                State::Waits(Stop::Phase { address, odd }) => {
                    format!("waiting {}", self.mbarriers.why(&self.shared, *address, *odd))
                }
            };
            match parts.iter_mut().find(|(known, _)| *known == what) {
                Some((_, warps)) => warps.push(warp),
                None => parts.push((what, vec![warp])),
            }
        }
        let part = |(what, warps): &(String, Vec<usize>)| {
            let names = warps.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            format!("{what}: warp{} {names}", if warps.len() == 1 { "" } else { "s" })
        };
        format!("no warp can go on; {}", parts.iter().map(part).collect::<Vec<_>>().join("; "))
    }
}
