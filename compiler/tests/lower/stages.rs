//! The stages of every mechanism's schedules, as kernels.

use super::compare;
use super::mechanisms::derived;
use chunkwise_abi::{Access, DType};
use chunkwise_compiler::derive::form::Form;
use chunkwise_compiler::graph::interp::Extent;
use chunkwise_compiler::graph::split::{split, temporaries};
use chunkwise_compiler::lower::graph_to_tile::{Options, lower};
use chunkwise_compiler::pass;
use chunkwise_compiler::pipeline::SIMPLIFY;
use chunkwise_compiler::schedule::{Schedule, Stages};
use chunkwise_compiler::tile::arguments::share_arguments;
use chunkwise_compiler::tile::ir::{Kernel, Order, Stmt};
use chunkwise_compiler::tile::text::print;
use chunkwise_compiler::tile::verify::verify;

fn every_mechanism(chunk: usize, shape: [usize; 3]) {
    let extent = Extent { batch: shape[0], length: shape[1], heads: shape[2], offsets: None };
    for (what, derived, mut given) in derived(Form::Chunkwise, Some(chunk), shape, "", 11) {
        let saving = derived.forward_saving.expect("asked for");
        let backward = derived.backward.expect("asked for");
        for graph in [derived.forward, saving, backward] {
            let mut graph = graph;
            pass::run(&mut graph, SIMPLIFY, &mut pass::Options::quiet()).unwrap();
            for stages in [Stages::PreparePass, Stages::PassOutputs, Stages::PreparePassOutputs] {
                let mut handed = given.clone();
                for stage in split(&graph, &Schedule::of(stages)).unwrap() {
                    let label = format!("{what}, {}", stage.graph.name);
                    handed.extend(compare(&label, &stage.graph, &handed, &extent));
                }
                handed.retain(|name, _| name.starts_with("saved."));
                given.extend(handed);
            }
        }
    }
}

#[test]
fn stages_in_chunks_of_16() {
    every_mechanism(16, [2, 35, 2]);
}

#[test]
fn stages_with_void_rows() {
    every_mechanism(20, [1, 45, 1]);
}

#[test]
fn stages_of_nothing_and_of_one_token() {
    every_mechanism(4, [1, 0, 1]);
    every_mechanism(4, [1, 1, 1]);
}

/// Whether the loop over the chunks of a sequence may run in any order.
fn any_order(body: &[Stmt]) -> bool {
    body.iter().any(|stmt| match stmt {
        Stmt::For { order, hi, .. } => *order == Order::Any && !hi.value.symbols.is_empty(),
        _ => false,
    })
}

#[test]
fn stages_without_carries_run_in_any_order_and_states_have_the_type_asked_for() {
    let schedule = Schedule { states: DType::BF16, ..Schedule::of(Stages::PassOutputs) };
    for (what, derived, _) in derived(Form::Chunkwise, Some(16), [1, 32, 1], "", 3) {
        for stage in split(&derived.forward, &schedule).unwrap() {
            let mut kernel = lower(&stage.graph, &Options::default()).unwrap();
            stage.set_types(&mut kernel);
            assert_eq!(any_order(&kernel.body), stage.name == "outputs", "{what} {}", stage.name);
            for handed in stage.reads.iter().chain(&stage.writes) {
                let arg = kernel.args.iter().find(|arg| arg.name == handed.name).expect("it is an argument");
                assert_eq!(arg.dtype, handed.dtype, "{what} {}", arg.name);
                let state = derived.forward.carries.iter().any(|c| handed.name == format!("handed.{}", c.name));
                assert_eq!(arg.dtype == DType::BF16, state, "{what} {}", arg.name);
            }
        }
    }
}

#[test]
fn kernels_of_a_schedule_share_one_list_of_arguments() {
    for (what, derived, _) in derived(Form::Chunkwise, Some(16), [1, 32, 1], "", 3) {
        let whole = lower(&derived.forward, &Options::default()).unwrap();
        let stages = split(&derived.forward, &Schedule::of(Stages::PreparePassOutputs)).unwrap();
        let alone: Vec<Kernel> = stages.iter().map(|s| lower(&s.graph, &Options::default()).unwrap()).collect();
        let mut kernels = alone.clone();
        let temporaries = temporaries(&stages);
        let last: Vec<&str> = temporaries.iter().map(|handed| handed.name.as_str()).collect();
        let all = share_arguments(&mut kernels, &last);
        let names: Vec<&str> = all.iter().map(|arg| arg.name.as_str()).collect();
        let (own, handed) = names.split_at(names.len() - last.len());
        assert_eq!(handed, last, "{what}");
        let sorted = |mut args: Vec<(String, Access)>| {
            args.sort_by(|a, b| a.0.cmp(&b.0));
            args
        };
        let of_whole = whole.args.iter().map(|arg| (arg.name.clone(), arg.access)).collect();
        let of_stages = all[..own.len()].iter().map(|arg| (arg.name.clone(), arg.access)).collect();
        assert_eq!(sorted(of_stages), sorted(of_whole), "{what}");
        for (kernel, before) in kernels.iter().zip(&alone) {
            assert_eq!(kernel.args.iter().map(|arg| arg.name.as_str()).collect::<Vec<_>>(), names, "{what}");
            if let Err(error) = verify(kernel) {
                panic!("{what}: {error}");
            }
            // Its text names arguments, and so says what it does with which.
            let body = |kernel: &Kernel| {
                let text = print(kernel);
                text.lines().filter(|line| !line.trim_start().starts_with("arg ")).collect::<Vec<_>>().join("\n")
            };
            assert_eq!(body(kernel), body(before), "{what}");
        }
    }
}
