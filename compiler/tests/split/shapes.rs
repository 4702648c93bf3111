//! What the stages look like: who has carries, what is handed on and how large it is.

use super::{graphs, prepared, prices, simplified, stages_of};
use crate::examples::examples;
use chunkwise_abi::{Access, DType, Role};
use chunkwise_compiler::compile::{Request, derive};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::ir::{Graph, Op};
use chunkwise_compiler::graph::split::price::Prices;
use chunkwise_compiler::graph::split::{Handed, Stage, split, temporaries};
use chunkwise_compiler::graph::text::parse;
use chunkwise_compiler::pipeline::FOR_TENSOR_CORES;
use chunkwise_compiler::schedule::{Schedule, Stages};
use chunkwise_dsl::instance::Instance;
use std::collections::BTreeMap;

fn of(name: &str) -> Vec<Graph> {
    let (_, program) = examples().into_iter().find(|(example, _)| example == name).expect("an example");
    // R counts edits of a token.
    let size = |axis: &str| if axis == "R" { 2 } else { 128 };
    let sizes: BTreeMap<String, usize> =
        program.axes.iter().map(|axis| (axis.name.clone(), size(&axis.name))).collect();
    let instance = Instance::new(&program, &sizes, &BTreeMap::new()).expect("sizes fit");
    let request =
        Request { form: Form::Chunkwise, chunk: Some(64), max_length: 64, backward: true, inside: Inside::default() };
    graphs(&derive(&instance, &request).expect("it has a chunk form"))
}

fn names(stages: &[Stage]) -> Vec<&'static str> {
    stages.iter().map(|stage| stage.name).collect()
}

fn has_inverse(stage: &Stage) -> bool {
    stage.graph.nodes.iter().any(|node| matches!(node.op, Op::Inverse(_)))
}

#[test]
fn only_the_pass_waits() {
    for name in ["gated_delta_rule", "kda", "mamba2", "mlstm", "rwkv6"] {
        for graph in of(name) {
            for stages in Stages::ALL {
                for stage in stages_of(&graph, stages, &Prices::default()).unwrap() {
                    let waits = matches!(stage.name, "fused" | "pass" | "sums");
                    assert_eq!(!stage.graph.carries.is_empty(), waits, "{}", stage.graph.name);
                    println!("{}", stage.graph.name);
                    for handed in &stage.writes {
                        let (bytes, axes) = (handed.bytes_per_token(), handed.axes.join(", "));
                        println!("    writes {} [{axes}], {bytes} bytes a token", handed.name);
                    }
                    let reads: Vec<&str> = stage.reads.iter().map(|handed| handed.name.as_str()).collect();
                    println!("    reads {}", reads.join(", "));
                }
            }
        }
    }
}

#[test]
fn the_states_of_linear_attention_and_nothing_else() {
    let [forward, saving, backward] = <[Graph; 3]>::try_from(of("linear_attention")).unwrap();
    let states = |graph: &Graph, dtype| {
        let schedule = Schedule { states: dtype, ..Schedule::of(Stages::PassOutputs) };
        let stages = split(graph, &schedule).unwrap();
        assert_eq!(names(&stages), ["pass", "outputs"]);
        stages
    };
    for (graph, name) in [(&forward, "handed.S"), (&backward, "handed.adj.S")] {
        let stages = states(graph, DType::F32);
        let [handed] = <[_; 1]>::try_from(temporaries(&stages)).unwrap();
        assert_eq!((handed.name.as_str(), handed.inner.as_slice()), (name, &[128, 128][..]));
        assert_eq!(handed.bytes_per_token(), 1024.0);
        let argument = handed.argument(Access::Read);
        assert_eq!((argument.role, argument.dtype), (Role::Chunk(64), DType::F32));
        let [halved] = <[_; 1]>::try_from(temporaries(&states(graph, DType::BF16))).unwrap();
        assert_eq!(halved.bytes_per_token(), 512.0);
    }
    // What a backward reads anyway is not kept twice, and stays what its reader expects.
    let stages = states(&saving, DType::BF16);
    assert_eq!(temporaries(&stages), []);
    assert_eq!((stages[0].writes[0].name.as_str(), stages[0].writes[0].dtype), ("saved.S", DType::F32));
    assert_eq!(stages[0].writes, stages[1].reads);
}

#[test]
fn what_is_only_multiplied_has_the_type_of_operands() {
    let schedule = Schedule { operands: DType::BF16, ..Schedule::of(Stages::PassOutputs) };
    let types = |graph: &Graph| -> BTreeMap<String, DType> {
        let stages = split(graph, &schedule).unwrap();
        let types = |handed: &[Handed]| -> BTreeMap<String, DType> {
            handed.iter().map(|handed| (handed.name.clone(), handed.dtype)).collect()
        };
        let (writes, reads) = (types(&stages[0].writes), types(&stages[1].reads));
        assert_eq!(writes, reads);
        writes
    };
    let [forward, saving, backward] = <[Graph; 3]>::try_from(of("gated_delta_rule")).unwrap();
    // Read by q S and by A X. A decay is multiplied by element by element.
    for (name, dtype) in types(&forward) {
        let decay = name.starts_with("handed.decay");
        assert_eq!(dtype, if decay { DType::F32 } else { DType::BF16 }, "{name}");
    }
    assert!(types(&forward).len() >= 2);
    assert_eq!(types(&saving)["saved.S"], DType::F32);
    // The gradient of the gates sums dS ⊙ S, element by element.
    assert_eq!(types(&backward)["handed.adj.S"], DType::F32);
}

#[test]
fn rounding_commutes_with_moves_and_with_nothing_else() {
    let text = |way: &str| {
        format!(
            "graph g {{ dim K : axis 0 16 dim V : axis 1 16 dim t : row 16 dim s : col 16 step tokens=16 time=t
            %0 = token x : [t, K] %1 = carry S : [K, V] %2 = contract %0 %0 over K : [t] %3 = mul %2 %0 : [t, K]
            %4 = contract %0 %3 over t, K : [] %5 = mul %4 %1 : [K, V] %6 = {way} %1 : [K, V]
            %7 = contract %0 %6 over K : [t, V]
            carry S = %1 -> %5 init=init.S final=final.S output out.o = %7 }}"
        )
    };
    let dtype = |way: &str| {
        let graph = simplified(&parse(&text(way)).unwrap());
        let schedule = Schedule { operands: DType::BF16, ..Schedule::of(Stages::PassOutputs) };
        let stages = split(&graph, &schedule).unwrap();
        stages[1].reads[0].dtype
    };
    assert_eq!(dtype("neg"), DType::BF16);
    assert_eq!(dtype("stop_gradient"), DType::BF16);
    assert_eq!(dtype("exp"), DType::F32);
    assert_eq!(dtype("add %1"), DType::F32);
}

#[test]
fn sums_over_the_sequence_come_last() {
    // The backward of a parameter: its gradient is a sum that no step reads.
    let [_, _, backward] = <[Graph; 3]>::try_from(of("retention")).unwrap();
    let accumulators: Vec<&str> =
        backward.carries.iter().filter(|carry| carry.init.is_none()).map(|carry| carry.name.as_str()).collect();
    assert!(!accumulators.is_empty());
    for stages in [Stages::PassOutputs, Stages::PreparePassOutputs] {
        let parts = stages_of(&backward, stages, &Prices::default()).unwrap();
        let sums = parts.last().unwrap();
        assert_eq!(sums.name, "sums");
        let carries: Vec<&str> = sums.graph.carries.iter().map(|carry| carry.name.as_str()).collect();
        assert_eq!(carries, accumulators);
        assert!(sums.graph.reverse, "they are added in the order of the whole graph");
        let pass = parts.iter().find(|stage| stage.name == "pass").unwrap();
        assert!(pass.graph.carries.iter().all(|carry| carry.init.is_some()));
    }
}

#[test]
fn a_sum_that_is_read_on_the_way_is_a_state() {
    let text = |output: &str, init: &str| {
        format!(
            "graph g {{ dim t : row 4 step tokens=4 time=t %0 = token x : [t] %1 = carry a : [] %2 = sum %0 over t : [] \
             %3 = add %1 %2 : [] %4 = mul %0 {output} : [t] %5 = carry b : [] %6 = mul %5 %2 : [] \
             %7 = mul %0 %5 : [t] \
             carry a = %1 -> %3 {init} final=last.a carry b = %5 -> %6 init=init.b final=final.b \
             output out.o = %4 output out.p = %7 }}"
        )
    };
    let split = |text: &str| {
        let graph = simplified(&parse(text).unwrap());
        names(&stages_of(&graph, Stages::PassOutputs, &Prices::default()).unwrap())
    };
    assert_eq!(split(&text("%2", "")), ["pass", "outputs", "sums"]);
    assert_eq!(split(&text("%1", "")), ["pass", "outputs"]);
    assert_eq!(split(&text("%3", "")), ["pass", "outputs"]);
    assert_eq!(split(&text("%2", "init=init.a")), ["pass", "outputs"]);
}

#[test]
fn what_has_no_carries_stays_whole() {
    let text = "graph g { dim t : row 4 step tokens=4 time=t %0 = token x : [t] %1 = exp %0 : [t] output out.o = %1 }";
    let graph = parse(text).unwrap();
    for stages in Stages::ALL {
        for prices in prices() {
            let parts = stages_of(&graph, stages, &prices).unwrap();
            assert_eq!(names(&parts), ["fused"]);
            assert_eq!(parts[0].graph, graph);
        }
    }
}

/// Products of a stage that know a carry, and all of them: what is summed, on tensor cores or not.
fn products(stage: &Stage) -> (usize, usize) {
    let graph = &stage.graph;
    let mut carried: Vec<bool> = Vec::new();
    let mut count = (0, 0);
    for (at, node) in graph.nodes.iter().enumerate() {
        let input = graph.carries.iter().any(|carry| carry.input.index() == at);
        carried.push(input || node.op.operands().iter().any(|x| carried[x.index()]));
        if matches!(node.op, Op::Contract(..)) {
            count.0 += usize::from(carried[at]);
            count.1 += 1;
        }
    }
    count
}

#[test]
fn the_pass_computes_the_state_and_little_else() {
    // Products of the pass that know the state, all of them, and bytes a token that are handed to it: forward, backward.
    let expected = [
        ("delta_rule", [(3, 3, 128.0), (3, 5, 256.0)]),
        ("gated_delta_rule", [(3, 3, 144.0), (3, 5, 272.0)]),
        ("kda", [(3, 3, 648.0), (3, 5, 1032.0)]),
        ("gated_delta_product", [(8, 8, 528.0), (8, 11, 784.0)]),
    ];
    for (name, directions) in expected {
        let [forward, _, backward] = <[Graph; 3]>::try_from(of(name)).unwrap();
        for (graph, (know, all, most)) in [forward, backward].iter().zip(directions) {
            let graph = prepared(graph, FOR_TENSOR_CORES);
            let schedule: Schedule = "prepare + pass + outputs, states bf16, operands bf16".parse().unwrap();
            let stages = split(&graph, &schedule).unwrap();
            assert_eq!(names(&stages), ["prepare", "pass", "outputs"], "{}", graph.name);
            let [prepare, pass, _] = &stages[..] else { unreachable!("just compared") };
            assert!(has_inverse(prepare), "{}", graph.name);
            assert_eq!(products(pass), (know, all), "{}", pass.graph.name);
            let bytes: f64 = pass.reads.iter().map(Handed::bytes_per_token).sum();
            assert!(bytes <= most, "{}: {bytes} bytes a token", pass.graph.name);
            // What is solved for is not computed from the inverse a second time.
            assert!(stages.iter().skip(1).all(|stage| !has_inverse(stage)));
        }
    }
}

#[test]
fn a_result_that_knows_no_state_is_prepared() {
    let [_, _, backward] = <[Graph; 3]>::try_from(of("gated_delta_rule")).unwrap();
    let parts = stages_of(&backward, Stages::PreparePass, &Prices::default()).unwrap();
    let outputs = |stage: &Stage| stage.graph.outputs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    // Queries only read states, which the forward saved.
    assert_eq!(outputs(&parts[0]), ["grad.q"]);
    assert_eq!(outputs(&parts[1]), ["grad.k", "grad.v", "grad.g", "grad.beta"]);
}

#[test]
fn what_has_no_state_is_prepared() {
    for name in ["delta_rule", "gated_delta_rule", "kda"] {
        for graph in of(name) {
            let graph = prepared(&graph, FOR_TENSOR_CORES);
            for stages in [Stages::PreparePass, Stages::PreparePassOutputs] {
                let parts = stages_of(&graph, stages, &Prices::default()).unwrap();
                assert_eq!(parts[0].name, "prepare", "{}", graph.name);
                for part in &parts {
                    println!("{}: {} nodes", part.graph.name, part.graph.nodes.len());
                    for handed in &part.writes {
                        println!("    {} [{}], {}", handed.name, handed.axes.join(", "), handed.bytes_per_token());
                    }
                    assert_eq!(has_inverse(part), part.name == "prepare", "{stages}: {}", part.graph.name);
                }
            }
        }
    }
}
