//! Schedules as text, and the choice between them.

use super::examples::examples;
use super::graphs;
use chunkwise_abi::DType;
use chunkwise_compiler::compile::{Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::ir::Graph;
use chunkwise_compiler::schedule::cost::{Gpu, Load, estimates};
use chunkwise_compiler::schedule::{Products, Schedule, Stages, choose_for};
use chunkwise_dsl::instance::Instance;
use std::collections::BTreeMap;

#[test]
fn schedules_print_and_parse() {
    for stages in Stages::ALL {
        for chunk in [None, Some(1), Some(64)] {
            for threads in [None, Some(32), Some(1024)] {
                for states in [DType::F32, DType::BF16, DType::F16] {
                    for operands in [DType::F32, DType::BF16] {
                        let schedule = Schedule {
                            stages,
                            forward: threads.map(|_| Stages::Fused),
                            chunk,
                            threads,
                            parts: chunk.map(|_| 2),
                            spans: threads.map(|_| 32),
                            states,
                            operands,
                            products: if chunk.is_some() { Products::Warpgroup } else { Products::Warp },
                        };
                        assert_eq!(schedule.to_string().parse(), Ok(schedule), "{schedule}");
                    }
                }
            }
        }
    }
    let loose = " prepare+pass  +outputs ,states bf16, chunk   32";
    let schedule = Schedule { chunk: Some(32), states: DType::BF16, ..Schedule::of(Stages::PreparePassOutputs) };
    assert_eq!(loose.parse(), Ok(schedule));
    assert_eq!(schedule.to_string(), "prepare + pass + outputs, chunk 32, states bf16");
}

#[test]
fn what_is_no_schedule_is_refused_with_what_to_write() {
    for (text, word) in [
        ("", "`fused`"),
        ("fuse", "`fused`"),
        ("outputs + pass", "`pass + outputs`"),
        ("pass", "`prepare + pass`"),
        ("fused, chunk", "chunk 64"),
        ("fused, chunk 0", "from 1 to"),
        ("fused, chunk 1000", "256"),
        ("fused, threads 100", "multiple of 32"),
        ("fused, threads 2048", "1024"),
        ("fused, threads 64, threads 64", "twice"),
        ("fused, states f64", "bf16"),
        ("fused, spans 0", "spans 64"),
        ("fused, warps 4", "threads 256"),
        ("fused, products lanes", "products warpgroup"),
    ] {
        let error = text.parse::<Schedule>().expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

fn graph(name: &str, direction: usize) -> Graph {
    let (_, program) = examples().into_iter().find(|(example, _)| example == name).expect("an example");
    let sizes: BTreeMap<String, usize> =
        program.axes.iter().map(|axis| (axis.name.clone(), if axis.name == "R" { 2 } else { 128 })).collect();
    let instance = Instance::new(&program, &sizes, &BTreeMap::new()).expect("sizes fit");
    let request =
        Request { form: Form::Chunkwise, chunk: Some(64), max_length: 64, backward: true, inside: Inside::default() };
    graphs(&derive(&instance, &request).expect("it has a chunk form")).remove(direction)
}

#[test]
fn few_heads_are_not_left_to_one_kernel() {
    for name in ["gated_delta_rule", "kda", "linear_attention", "gla"] {
        for direction in 0..3 {
            let graph = graph(name, direction);
            let few = choose_for(&[&graph], DType::F32, &Gpu::H200, &Load::FEW).unwrap();
            assert_ne!(few.stages, Stages::Fused, "{name} {}", graph.name);
            for (load, text) in [(Load::MANY, "many"), (Load::SOME, "some"), (Load::FEW, "few")] {
                for estimate in estimates(&graph, &Gpu::H200, &load).unwrap() {
                    println!(
                        "{} {text}: {} {:.2e} s {:?}",
                        graph.name, estimate.stages, estimate.seconds, estimate.kernels
                    );
                    assert!(estimate.seconds.is_finite() && estimate.seconds > 0.0);
                }
            }
        }
    }
}

/// Where values stay in registers, heads that fill the GPU go through in one kernel; fewer have spans beside each other,
/// as many as fit; and short sequences of few are taken in parts, as are gradients of several edits a token where
/// spans would be few.
#[test]
fn fewer_heads_are_taken_in_spans_or_parts() {
    for name in ["gated_delta_rule", "gated_delta_product", "kda", "linear_attention", "gla"] {
        let all = [0, 1, 2].map(|direction| graph(name, direction));
        for graphs in [&all[..1], &all[1..], &all[..]] {
            let graphs: Vec<&Graph> = graphs.iter().collect();
            let chosen = |load: &Load| choose_for(&graphs, DType::BF16, &Gpu::H200, load).unwrap();
            let many = chosen(&Load::MANY);
            // Systems are solved first.
            let solves = name.starts_with("gated_delta") || name == "kda";
            let forward = if solves { Stages::PreparePass } else { Stages::Fused };
            assert_eq!((many.forward, many.parts, many.spans), (Some(forward), Some(1), None), "{name}");
            // Several edits a token make rows enough for warp groups.
            let groups = name == "gated_delta_product" && graphs.len() == 1;
            assert_eq!(many.products == Products::Warpgroup, groups, "{name}");
            let older = choose_for(&graphs, DType::BF16, &Gpu::A100, &Load::MANY).unwrap();
            assert_eq!(older.products, Products::Warp, "{name}");
            for load in [Load::SOME, Load::FEW] {
                let chosen = chosen(&load);
                if name == "gated_delta_product" && load == Load::SOME && graphs.len() > 1 {
                    assert_eq!((chosen.stages, chosen.spans), (Stages::PreparePassOutputs, None), "{name}");
                    continue;
                }
                let tokens = chosen.spans.expect("it says how many") * chosen.chunk.unwrap_or(64);
                let blocks = load.items * load.tokens.div_ceil(tokens);
                let fits = Gpu::H200.multiprocessors / 2..=Gpu::H200.multiprocessors;
                assert!(fits.contains(&blocks), "{name}: {chosen}");
            }
            let short = chosen(&Load { tokens: 256, ..Load::FEW });
            let parts = short.parts.expect("it says how many");
            assert_eq!((short.stages, short.spans), (Stages::PreparePassOutputs, None), "{name}");
            assert!(parts > 1 && parts * Load::FEW.items <= Gpu::H200.multiprocessors, "{name}: {short}");
        }
    }
}

#[test]
fn the_batch_does_not_choose_where_it_must_not() {
    let graph = graph("gated_delta_rule", 0);
    let choice = |sequences, tokens, invariant| {
        let load = Load::of(sequences, 8, tokens, invariant);
        choose_for(&[&graph], DType::BF16, &Gpu::H200, &load).unwrap()
    };
    let alone = choice(1, 100, true);
    for (sequences, tokens) in [(1, 1 << 17), (64, 4096), (1000, 17)] {
        assert_eq!(choice(sequences, tokens, true), alone);
    }
    assert_ne!(Load::of(1, 8, 100, false), Load::of(64, 8, 100, false));
}

/// Directions are compiled with one schedule, which is the best for their sum and not for one of them.
#[test]
fn one_schedule_serves_all_directions() {
    for name in ["gated_delta_rule", "kda", "linear_attention", "gla"] {
        let graphs = [0, 1, 2].map(|direction| graph(name, direction));
        let graphs = graphs.each_ref();
        for (load, text) in [(Load::MANY, "many"), (Load::SOME, "some"), (Load::FEW, "few")] {
            let chosen = choose_for(&graphs, DType::F32, &Gpu::H200, &load).unwrap();
            println!("{name} {text}: {chosen}");
            let sum = |stages: Stages| {
                let each = graphs.map(|graph| estimates(graph, &Gpu::H200, &load).unwrap());
                each.iter().flatten().filter(|it| it.stages == stages).map(|it| it.seconds).sum::<f64>()
            };
            assert!(Stages::ALL.into_iter().all(|stages| sum(chosen.stages) <= sum(stages) * (1.0 + 1e-9)));
        }
    }
    // Nearly equal calls share their code, and a GPU like another is twice as fast with twice the multiprocessors.
    assert_eq!(Load::of(3, 5, 1000, false), Load::of(4, 4, 1024, false));
    assert_eq!(Gpu::of((9, 0), 132), Gpu::H200);
    assert_eq!(Gpu::of((8, 6), 216).bytes, 2.0 * Gpu::A100.bytes);
    // What came after Hopper has no products of warp groups.
    assert!(!Gpu::of((10, 0), 132).warpgroups);
}
