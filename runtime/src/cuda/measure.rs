//! How long kernels take, and how fast the GPU copies.
//!
//! Comes in: a call on the GPU. Goes out: seconds. The time of the GPU is taken between two events around each run,
//! with the shared cache emptied before it; the time from launch to launch by this machine's clock over runs queued
//! without a pause, as a training loop queues them.

use super::error::CudaError;
use super::execute::Direction;
use super::memory::{Buffer, Stream};
use super::resident::Resident;
use std::time::Instant;

/// What was measured, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// Median time of the GPU.
    pub gpu: f64,
    /// Its best.
    pub best: f64,
    /// Median time from launch to launch.
    pub launch: f64,
    /// Runs timed by events.
    pub runs: usize,
}

/// The fewest and the most runs that are timed.
const RUNS: std::ops::RangeInclusive<usize> = 10..=1000;
/// Runs queued between two looks at the clock.
const QUEUED: usize = 10;
/// Seconds of work before anything is timed: clocks rise, code and memory are touched.
const WARM_UP: f64 = 0.2;

/// Times directions that are launched one after the other, as one run.
pub fn times(resident: &mut Resident, directions: &[Direction], seconds: f64) -> Result<Times, CudaError> {
    let stream = resident.stream().clone();
    let mut once = || directions.iter().try_for_each(|direction| resident.launch(*direction));
    once()?;
    stream.synchronize()?;
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < WARM_UP {
        once()?;
        stream.synchronize()?;
    }

    let eraser = Eraser::new(&stream)?;
    let mut gpu = Vec::new();
    let started = Instant::now();
    while gpu.len() < *RUNS.start() || (started.elapsed().as_secs_f64() < seconds && gpu.len() < *RUNS.end()) {
        let mut marks = Vec::new();
        for _ in 0..QUEUED {
            eraser.erase()?;
            let begin = stream.mark()?;
            once()?;
            marks.push((begin, stream.mark()?));
        }
        stream.synchronize()?;
        for (begin, end) in &marks {
            gpu.push(stream.seconds(begin, end)?);
        }
    }

    let mut launch = Vec::new();
    let started = Instant::now();
    while launch.len() < 5 || (started.elapsed().as_secs_f64() < seconds && launch.len() < *RUNS.end()) {
        let begin = Instant::now();
        for _ in 0..QUEUED {
            once()?;
        }
        stream.synchronize()?;
        launch.push(begin.elapsed().as_secs_f64() / QUEUED as f64);
    }
    let runs = gpu.len();
    Ok(Times {
        best: gpu.iter().copied().fold(f64::INFINITY, f64::min),
        gpu: median(gpu),
        launch: median(launch),
        runs,
    })
}

/// Bytes a second that a plain copy moves, read and written counted.
pub fn copy_bandwidth(stream: &Stream) -> Result<f64, CudaError> {
    const COPIES: usize = 20;
    // Much more than any cache holds, and no more than a small part of the memory.
    let (free, _) = stream.device().memory()?;
    let bytes = (1u64 << 30).min(free / 8).max(1 << 20);
    let (from, to) = (stream.buffer(bytes, "a copy")?, stream.buffer(bytes, "a copy")?);
    from.fill(1)?;
    to.fill(2)?;
    to.copy(0, &from, bytes)?;
    let mut seconds = Vec::new();
    for _ in 0..COPIES {
        let begin = stream.mark()?;
        to.copy(0, &from, bytes)?;
        let end = stream.mark()?;
        stream.synchronize()?;
        seconds.push(stream.seconds(&begin, &end)?);
    }
    Ok(2.0 * bytes as f64 / median(seconds))
}

/// Memory that is written to drive everything else out of the shared cache.
struct Eraser(Buffer);

impl Eraser {
    fn new(stream: &Stream) -> Result<Eraser, CudaError> {
        let bytes = (4 * stream.device().facts().cache).max(64 << 20);
        Ok(Eraser(stream.buffer(bytes, "emptying the cache")?))
    }
    fn erase(&self) -> Result<(), CudaError> {
        self.0.fill(0)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
