//! Random programs on a GPU, in bfloat16, float16 and float32 by turns: forward and all gradients against the float64
//! reference on the same rounded inputs, within the budgets of `verify`.
//!
//! Programs are compiled, and the reference computed, on all processors; one at a time is on the GPU. How many, from
//! which seed, and how many seconds at most: `CHUNKWISE_PROGRAMS`, `CHUNKWISE_SEED`, `CHUNKWISE_SECONDS`. Every seed that
//! fails is printed as it fails. A kernel that breaks the GPU off ends the run: what is begun with `CHUNKWISE_SEED`
//! after it goes on.

use std::time::Duration;

use chunkwise::engine::Place;
use chunkwise::gpu::Gpu;
use chunkwise::options::FormChoice;
use chunkwise::precision::Precision;
use chunkwise::verify::measure::Check;
use chunkwise_compiler::schedule::{Schedule, Stages};

use crate::random::{Extent, Trial, conclude, number, try_many};

/// What is tried of the program of a seed: the types by turns, the chunkwise form of every program, and of every second
/// one the recurrent form too.
pub fn trial(seed: u64, place: &Place) -> Trial {
    let precision = [Precision::Bf16, Precision::F16, Precision::F32][seed as usize % 3];
    let forms = [FormChoice::Chunkwise, FormChoice::Recurrent];
    let forms = &forms[..1 + usize::from(seed / 3 % 2 == 1)];
    let checks = forms.iter().map(|&form| Check::Agrees(form.into(), precision)).collect();
    Trial { checks, place: place.clone(), wide: seed % 5 == 4, may_be_limited: false }
}

#[test]
fn random_programs_on_a_gpu() {
    let gpu = match Gpu::open(0, None, None) {
        Ok(gpu) => gpu,
        Err(error) => return println!("skipped: {error}"),
    };
    let extent = Extent {
        first: number("CHUNKWISE_SEED", 3_000_000),
        count: number("CHUNKWISE_PROGRAMS", 300),
        within: Duration::from_secs(number("CHUNKWISE_SECONDS", 600)),
        enough: 1000,
        shrink_for: Duration::from_secs(number("CHUNKWISE_SHRINK_SECONDS", 10)),
        progress: true,
    };
    let place = Place::Gpu(gpu.clone());
    let mut in_spans = gpu.clone();
    in_spans.schedule = Some(Schedule { chunk: Some(16), spans: Some(2), ..Schedule::of(Stages::Fused) });
    let in_spans = Place::Gpu(in_spans);
    let tally = try_many(&extent, &|seed| {
        let own = trial(seed, &place);
        // Some go in spans beside each other, where they can: nobody would choose that for sequences as short as these.
        match seed % 12 == 3 {
            true => Trial { place: in_spans.clone(), may_be_limited: true, checks: own.checks[..1].to_vec(), ..own },
            false => own,
        }
    });
    if gpu.stream.synchronize().is_err() {
        println!("the GPU was broken off: of what failed, only the first is sure to have");
    } else if tally.programs() < extent.count as usize {
        println!("{} of {} programs in {} s", tally.programs(), extent.count, extent.within.as_secs());
    }
    conclude(&tally);
}
