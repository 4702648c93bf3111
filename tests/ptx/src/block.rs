//! Launches: blocks one by one, on as many processors as there are, and the warps of each from barrier to barrier.

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
    if launch.threads == 0 || !launch.threads.is_multiple_of(WARP) {
        return Err(before(format!("{} threads are no whole warps", launch.threads)));
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
    shared: Shared,
    warpgroups: Warpgroups,
}

impl Block {
    fn new(launch: &Launch) -> Block {
        let warps = (0..launch.threads / WARP).map(|number| Warp::new(number, launch.kernel)).collect();
        let shared = Shared::new(launch.shared_bytes as usize, SHARED_AT, launch.unwritten);
        Block { warps, shared, warpgroups: Warpgroups::new(launch.threads / WARP) }
    }

    fn run(&mut self, launch: &Launch, memory: &Memory, number: u32) -> Result<(), Fault> {
        let [x, y, _] = launch.blocks;
        let block = [number % x, number / x % y, number / x / y];
        self.warps.iter_mut().for_each(Warp::reset);
        self.shared.reset();
        self.warpgroups.reset();
        let mut world = World {
            memory,
            shared: &mut self.shared,
            warpgroups: &mut self.warpgroups,
            parameter: launch.parameter,
            block,
            blocks: launch.blocks,
            block_number: number,
            threads: launch.threads,
            interval: 1,
        };
        let fault = |warp: usize, lane: u32, line: u32, what: String| Fault {
            kernel: launch.kernel.name.clone(),
            block,
            thread: warp as u32 * WARP + lane,
            line,
            text: launch.kernel.line(line).to_owned(),
            what,
        };
        loop {
            let mut stopped = None;
            for (at, warp) in self.warps.iter_mut().enumerate() {
                let stop = warp.run(launch.kernel, &mut world).map_err(|Wrong { at: instruction, lane, what }| {
                    let line = launch.kernel.code.get(instruction as usize).map_or(0, |it| it.line);
                    fault(at, lane.unwrap_or(0), line, what)
                })?;
                if stopped.is_some_and(|stopped| stopped != stop) {
                    let what = "some warps stand at a barrier of the block, and others have ended".to_owned();
                    return Err(fault(at, 0, 0, what));
                }
                stopped = Some(stop);
            }
            world.warpgroups.end_interval().map_err(|(warp, line)| {
                fault(warp, 0, line, "other warps of its warpgroup do this, and it went another way".to_owned())
            })?;
            if stopped != Some(Stop::Barrier) {
                return Ok(());
            }
            world.interval += 1;
        }
    }
}
