//! Tensors of more than 2³¹ elements on a GPU: every sequence and every head of a large call is given the same numbers,
//! so each has to give, to the bit, what a call with one sequence and one head gives.
//!
//! It takes most of 80 GB of a GPU's memory and tens of seconds: `cargo test --release --test all -- --ignored
//! more_than_two_to_the_31 --nocapture`.

use std::collections::BTreeMap;

use chunkwise::compiled::narrow;
use chunkwise::engine::{Amount, request};
use chunkwise::gpu::{self, Gpu};
use chunkwise::precision::Precision;
use chunkwise::verify::case::{Case, Regime};
use chunkwise::verify::draw::draw;
use chunkwise_abi::{Access, DType, Role};
use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_runtime::batch::{Batch, Sequences};
use chunkwise_runtime::cuda::device::CudaDevice;
use chunkwise_runtime::cuda::execute::{Direction, GpuArtifact};
use chunkwise_runtime::cuda::resident::Resident;

/// A call: sequences, tokens, heads.
struct Sizes {
    count: usize,
    length: usize,
    heads: usize,
}

/// With K = V = 128, by one long sequence of many heads and by many short sequences.
const LARGE: [Sizes; 2] =
    [Sizes { count: 1, length: 132_001, heads: 128 }, Sizes { count: 1040, length: 1031, heads: 16 }];

/// Tokens that are drawn; a longer sequence repeats them. A sequence of the second call is one period.
const DRAWN: usize = 1031;

/// What the code is laid out for.
const MIDDLING: Amount = Amount { batch: 8, length: 2048, heads: 16 };

/// Free memory it takes.
const MEMORY: u64 = 90 << 30;

#[test]
#[ignore = "takes 90 GiB of a GPU's memory; see the top of this file"]
fn more_than_two_to_the_31_elements() {
    match CudaDevice::open(0).and_then(|device| device.memory()) {
        Err(error) => return println!("skipped: {error}"),
        Ok((free, _)) if free < MEMORY => return println!("skipped: the GPU has {} GiB free", free >> 30),
        Ok(_) => {}
    }
    for name in ["linear_attention", "gated_delta_rule"] {
        let source = std::fs::read_to_string(crate::cli::root().join(crate::cli::example(name))).unwrap();
        let program = chunkwise_dsl::compile(&source).unwrap().programs.remove(0);
        let axes = BTreeMap::from([("K".to_owned(), 128), ("V".to_owned(), 128)]);
        let instance = Instance::new(&program, &axes, &BTreeMap::new()).unwrap();
        let gpu = Gpu::open(0, None, None).unwrap();
        let request = request(Form::Chunkwise, None, 0, Parts::Both, Inside::default());
        let artifact =
            gpu::prepare(&instance, &request, Parts::Both, DType::BF16, &gpu, false, MIDDLING).unwrap().artifact;
        let case = Case {
            seed: 11,
            batch: 1,
            tokens: DRAWN,
            heads: 1,
            groups: 1,
            chunk: artifact.signature.chunk,
            init: true,
            regime: Regime::Usual,
            sizes: axes,
        };
        let drawn = draw(&program, &case, Precision::Bf16);
        for sizes in &LARGE {
            assert!(sizes.count * sizes.length * sizes.heads * 128 > 1 << 31);
            let alone = Sizes { count: 1, length: sizes.length, heads: 1 };
            for directions in [&[Direction::Forward][..], &[Direction::ForwardSaving, Direction::Backward]] {
                let small = launched(&artifact, directions, &alone, &drawn);
                let large = launched(&artifact, directions, sizes, &drawn);
                compare(&artifact, directions, sizes, &large, &small);
            }
            println!("{name}: {} sequences of {} tokens, {} heads", sizes.count, sizes.length, sizes.heads);
        }
    }
}

/// The drawn numbers of one sequence and head, for all of them.
fn launched(artifact: &GpuArtifact, directions: &[Direction], sizes: &Sizes, drawn: &Bundle) -> Resident {
    let signature = &artifact.signature;
    let kernels = [&signature.forward, &signature.forward_saving, &signature.backward];
    let role = |name: &str| {
        let mut args = kernels.into_iter().flatten().flat_map(|kernel| &kernel.args);
        args.find(|arg| arg.name == name).map(|arg| arg.role)
    };
    let heads = sizes.heads;
    let spread = drawn.iter().filter_map(|(name, tensor)| {
        // Where the heads stand in the shape: what is before them stays, and what is after them is repeated for each.
        let at = match role(name)? {
            Role::Token => 2,
            Role::Head => 0,
            Role::Sequence | Role::Chunk(_) => 1,
        };
        let mut shape = tensor.shape.clone();
        shape[at] = heads;
        let inner: usize = shape[at + 1..].iter().product();
        Some((name.clone(), Tensor::from_fn(&shape, |i| tensor.data[i / (inner * heads) * inner + i % inner])))
    });
    let period = narrow(signature, &spread.collect()).unwrap();
    let batch = Batch { sequences: Sequences::Equal { count: sizes.count, length: sizes.length }, heads };
    let mut resident = artifact.resident_of(directions, batch, &period).unwrap();
    resident.poison().unwrap();
    for direction in directions {
        resident.launch(*direction).unwrap();
    }
    resident
}

/// Every sequence and head of the large call has the bytes of the small one.
fn compare(artifact: &GpuArtifact, directions: &[Direction], sizes: &Sizes, large: &Resident, small: &Resident) {
    let Sizes { count, length, heads } = *sizes;
    for direction in directions {
        for arg in &artifact.module(*direction).unwrap().signature().args {
            if arg.access == Access::Read || arg.name.starts_with("saved.") {
                continue;
            }
            let row = arg.inner.iter().product::<usize>() * arg.dtype.bytes();
            let tensor = |of: &Resident| of.tensor(&arg.name).unwrap().unwrap();
            let (large, small) = (tensor(large), tensor(small));
            let (large, small) = (large.bytes(), small.bytes());
            let rows = match arg.role {
                Role::Token => length,
                Role::Sequence => 1,
                // A sum over sequences, which are more here than there.
                Role::Head => continue,
                Role::Chunk(chunk) => length.div_ceil(chunk),
            };
            assert_eq!((large.len(), small.len()), (count * rows * heads * row, rows * row), "{}", arg.name);
            for (number, found) in large.chunks_exact(row.max(1)).enumerate() {
                let at = number / heads % rows;
                let expected = &small[at * row..(at + 1) * row];
                assert!(
                    found == expected,
                    "{direction:?} `{}`: sequence {}, row {at}, head {} differs",
                    arg.name,
                    number / heads / rows,
                    number % heads
                );
            }
            assert!(small.iter().any(|byte| *byte != 0), "`{}` is nothing but zeros", arg.name);
        }
    }
}
