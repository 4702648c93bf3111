//! Schedules, and the stages a graph is split into: their text, and that they compute what the whole graph does.

#[path = "derive/draw.rs"]
#[allow(dead_code)]
mod draw;
#[path = "split/examples.rs"]
mod examples;
#[path = "split/random.rs"]
mod random;
#[path = "split/schedule.rs"]
mod schedule;
#[path = "split/separable.rs"]
mod separable;
#[path = "split/shapes.rs"]
mod shapes;

use chunkwise_compiler::compile::Derived;
use chunkwise_compiler::graph::interp::{self, Extent};
use chunkwise_compiler::graph::ir::{Graph, InputKind, Op};
use chunkwise_compiler::graph::split::price::Prices;
use chunkwise_compiler::graph::split::{Stage, can_be_in_spans, split_at, temporaries};
use chunkwise_compiler::graph::text::{parse, print};
use chunkwise_compiler::graph::verify::verify;
use chunkwise_compiler::pass::{self, Pass};
use chunkwise_compiler::pipeline::SIMPLIFY;
use chunkwise_compiler::schedule::{Schedule, Stages};
use chunkwise_compiler::tensor::Bundle;
use std::collections::BTreeSet;

/// Prices under which nearly everything is handed on, nearly nothing is, and the usual ones.
fn prices() -> [Prices; 3] {
    let usual = Prices::default();
    let arithmetic_is_dear = Prices { tensor: 1, vector: 1, turn: 1 << 16, handing: 0, ..usual };
    let memory_is_dear = Prices { tensor: 1 << 20, vector: 1 << 16, turn: 0, sequential: 1, handing: 1 << 20, ..usual };
    [usual, arithmetic_is_dear, memory_is_dear]
}

fn simplified(graph: &Graph) -> Graph {
    prepared(graph, SIMPLIFY)
}

fn prepared(graph: &Graph, passes: &[Pass<Graph>]) -> Graph {
    let mut graph = graph.clone();
    pass::run(&mut graph, passes, &mut pass::Options { verify: true, dump: None }).expect("a derived graph is right");
    graph
}

/// All graphs of a form, forwards first.
fn graphs(derived: &Derived) -> Vec<Graph> {
    let saving = derived.forward_saving.as_ref().expect("asked for");
    let backward = derived.backward.as_ref().expect("asked for");
    [&derived.forward, saving, backward].map(simplified).to_vec()
}

/// Stages that verify, survive a round trip through text, and read only what an earlier one wrote.
fn stages_of(graph: &Graph, stages: Stages, prices: &Prices) -> Result<Vec<Stage>, String> {
    stages_at(graph, &Schedule::of(stages), prices)
}

/// The same for a whole schedule.
fn stages_at(graph: &Graph, schedule: &Schedule, prices: &Prices) -> Result<Vec<Stage>, String> {
    let parts = split_at(graph, schedule, prices).map_err(|error| error.to_string())?;
    let mut written: BTreeSet<String> = BTreeSet::new();
    let given: BTreeSet<String> = saved_inputs(graph);
    for part in &parts {
        verify(&part.graph).map_err(|error| format!("{}: {:?}\n{error}", part.graph.name, error.complaints))?;
        let again = parse(&print(&part.graph)).map_err(|error| format!("{}: {error}", part.graph.name))?;
        if again != part.graph {
            return Err(format!("{}: its text reads back differently", part.graph.name));
        }
        let begun = part.graph.carries.iter().filter_map(|carry| carry.init.clone());
        let begun = begun.filter(|_| part.graph.span.is_some());
        let reads: BTreeSet<String> = saved_inputs(&part.graph).difference(&given).cloned().chain(begun).collect();
        let said: BTreeSet<String> = part.reads.iter().map(|handed| handed.name.clone()).collect();
        if reads != said || !reads.is_subset(&written) {
            return Err(format!("{} reads {reads:?}, says {said:?}, of {written:?}", part.graph.name));
        }
        for handed in &part.writes {
            let ended = part.graph.carries.iter().filter_map(|carry| carry.last.as_ref());
            let gives = part.graph.saves.iter().map(|(name, _)| name).chain(ended);
            if !gives.into_iter().any(|name| *name == handed.name) || !written.insert(handed.name.clone()) {
                return Err(format!("{} does not write {} once", part.graph.name, handed.name));
            }
        }
    }
    let unread = written.iter().find(|name| !parts.iter().any(|part| part.reads.iter().any(|h| h.name == **name)));
    match unread {
        Some(name) => Err(format!("{name} is written for nobody")),
        None => Ok(parts),
    }
}

fn saved_inputs(graph: &Graph) -> BTreeSet<String> {
    let inputs = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::Input { name, kind: InputKind::Saved, .. } => Some(name.clone()),
        _ => None,
    });
    inputs.collect()
}

/// Runs stages one after another; gives the results of the whole.
fn run_stages(stages: &[Stage], given: &Bundle, extent: &Extent) -> Result<Bundle, String> {
    let mut given = given.clone();
    let mut results = Bundle::new();
    let handed: BTreeSet<String> = temporaries(stages).into_iter().map(|handed| handed.name).collect();
    for stage in stages {
        let found = interp::run_over(&stage.graph, &given, extent)
            .map_err(|error| format!("{}: {error}\n{}", stage.graph.name, print(&stage.graph)))?;
        for (name, tensor) in found {
            given.insert(name.clone(), tensor.clone());
            if !handed.contains(&name) {
                results.insert(name, tensor);
            }
        }
    }
    Ok(results)
}

/// Compares the stages of a graph under every schedule and price with the graph, to the last bit. Gives its results.
fn compare(graph: &Graph, given: &Bundle, extent: &Extent) -> Result<Bundle, String> {
    let whole = interp::run_over(graph, given, extent).map_err(|error| error.to_string())?;
    for stages in Stages::ALL {
        for prices in prices() {
            let parts = stages_of(graph, stages, &prices).map_err(|error| format!("{stages}: {error}"))?;
            let found = run_stages(&parts, given, extent).map_err(|error| format!("{stages}: {error}"))?;
            if found.len() != whole.len() {
                return Err(format!("{stages}: {:?} instead of {:?}", found.keys(), whole.keys()));
            }
            for (name, tensor) in &whole {
                let other = found.get(name).ok_or_else(|| format!("{stages}: no {name}"))?;
                let same = |(x, y): (&f64, &f64)| x == y || (x.is_nan() && y.is_nan());
                if other.shape != tensor.shape || !other.data.iter().zip(&tensor.data).all(same) {
                    let error = other.relative_error(tensor, 1e-30);
                    return Err(format!("{stages}, {prices:?}: {} of {name} is off by {error:e}", graph.name));
                }
            }
        }
    }
    in_spans(graph, &whole, given, extent)?;
    Ok(whole)
}

/// Compares the stages of a graph in spans of several lengths with its results.
fn in_spans(graph: &Graph, whole: &Bundle, given: &Bundle, extent: &Extent) -> Result<(), String> {
    if !can_be_in_spans(graph) {
        return Ok(());
    }
    for stages in Stages::ALL {
        for steps in [1, 2, 3] {
            let schedule = Schedule { spans: Some(steps), ..Schedule::of(stages) };
            let parts =
                stages_at(graph, &schedule, &Prices::default()).map_err(|error| format!("{schedule}: {error}"))?;
            let found = run_stages(&parts, given, extent).map_err(|error| format!("{schedule}: {error}"))?;
            if found.len() != whole.len() {
                return Err(format!("{schedule}: {:?} instead of {:?}", found.keys(), whole.keys()));
            }
            for (name, tensor) in whole {
                let other = found.get(name).ok_or_else(|| format!("{schedule}: no {name}"))?;
                let error = other.relative_error(tensor, 1e-3 * (tensor.data.len() as f64).sqrt());
                if other.shape != tensor.shape || error.is_nan() || error > 1e-9 {
                    return Err(format!("{schedule}: {} of {name} is off by {error:e}", graph.name));
                }
            }
        }
    }
    Ok(())
}
