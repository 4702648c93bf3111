//! The pass of a sequence in spans that do not wait for each other, where there are too few heads to keep a GPU busy.
//!
//! Comes in: the stages of a graph, and how many steps make a span. Goes out: stages in which the one that has the
//! carries runs over all spans at once, after others that find the state at the start of each. A span makes M S + U of
//! the state S at its start (M ⊙ S + U where its elements do not mix), so:
//!
//! - `summary`, all spans at once: U, what a span makes of nothing; and M where elements do not mix, or where a token has
//!   one edit and a matrix from the identity has the state's sizes.
//! - `factors`, all spans at once: M otherwise: what a span makes of the identity, with nothing added.
//! - `combine`, span after span: S ← M S + U. It hands on the state at the start of every span and gives the last one.
//! - the stage itself, all spans at once, each beginning with the state that it is handed.
//! - `spans`, span after span: adds up what the spans have of carries that only add something up.
//!
//! Holds when the new value of every state is affine in that state, knows of no other, and, where positions of an axis
//! mix, nothing that depends on it varies along the state's other axis. Source: Blelloch 1990 (scans of affine maps).
//! Never looks at a mechanism.

use super::handed::Handed;
use super::linear::linear;
use super::{HANDED, Stage, summand};
use crate::error::CompileError;
use crate::graph::build::{Builder, reachable};
use crate::graph::ir::{Begin, Binary, Carry, Dim, DimId, DimKind, Graph, InputKind, Node, NodeId, Op};
use crate::graph::separable::separable_along;
use crate::pass;
use crate::pipeline::SIMPLIFY;
use chunkwise_abi::DType;

/// Why a graph has no spans.
fn refused(carry: &Carry, because: &str) -> CompileError {
    CompileError::Limit {
        what: format!("no spans that go side by side: {}: {because}", carry.name),
        instead: "take a schedule without `spans`".to_owned(),
        span: None,
    }
}

/// Whether a graph can run in spans.
pub fn can_be_in_spans(graph: &Graph) -> bool {
    !graph.carries.is_empty() && states(graph).is_ok()
}

/// The stages of a graph, those with carries in spans of so many steps. Matrices that states are multiplied with are
/// handed on in a type for operands.
pub fn in_spans(stages: Vec<Stage>, steps: usize, operands: DType) -> Result<Vec<Stage>, CompileError> {
    let mut all = Vec::new();
    for stage in stages {
        // What only adds up what others hand on is little.
        if stage.graph.carries.is_empty() || stage.name == "sums" {
            all.push(stage);
        } else {
            all.extend(one_in_spans(stage, steps, operands)?);
        }
    }
    Ok(all)
}

/// How a span changes a state.
enum Change {
    /// Elements by themselves: a carry that collects their factors, in the arena of the states.
    Factors(Carry),
    /// Positions of axis `over` mix: a matrix from the identity, in a graph whose dimension `free` counts `over` too. If
    /// that is as long anyway, and a token has one edit, `beside` is the same as a carry in the arena of the states.
    Matrix { output: NodeId, over: DimId, free: DimId, beside: Option<Carry> },
}

struct State {
    carry: Carry,
    change: Change,
}

/// How a span changes each state of a graph, with the nodes that say so beside the graph's own.
fn states(graph: &Graph) -> Result<(Builder, Vec<State>), CompileError> {
    let mut builder = Builder::resume(graph.dims.clone(), graph.nodes.clone());
    builder.rule = "summarise a span";
    let of_states: Vec<&Carry> = graph.carries.iter().filter(|carry| summand(graph, carry).is_none()).collect();
    let mut found = Vec::new();
    for &carry in &of_states {
        let needed = reachable(&graph.nodes, &[carry.output]).1;
        if of_states.iter().any(|other| other.input != carry.input && needed.contains_key(&other.input)) {
            return Err(refused(carry, "it takes in another state"));
        }
        let change = change(&mut builder, carry).map_err(|because| refused(carry, because))?;
        found.push(State { carry: carry.clone(), change });
    }
    // All matrices are computed in one graph, whose free axis is as long as the one that mixes.
    let axes = |state: &State| match &state.change {
        Change::Matrix { over, free, .. } => Some((*free, graph.dim(*over).size)),
        Change::Factors(_) => None,
    };
    let mut matrices = found.iter().filter_map(|state| Some((state, axes(state)?)));
    if let Some((_, first)) = matrices.next()
        && let Some((other, _)) = matrices.find(|(_, axes)| *axes != first)
    {
        return Err(refused(&other.carry, "states mix along axes of several sizes, or beside each other's"));
    }
    Ok((builder, found))
}

fn change(builder: &mut Builder, carry: &Carry) -> Result<Change, &'static str> {
    let one = builder.constant(1.0);
    let dims = builder.dims_of(carry.input).to_vec();
    let factor = linear(builder, carry.input, carry.output, one, false)?;
    let node = factor.node.unwrap_or_else(|| builder.constant(0.0));
    let own = builder.dims_of(node).to_vec();
    if !factor.mixes && own.iter().all(|dim| dims.contains(dim)) {
        let name = format!("M.{}", carry.name);
        let input = builder.input(&name, InputKind::Carry, own.clone(), None);
        let product = linear(builder, carry.input, carry.output, input, false)?;
        let product = product.node.unwrap_or(node);
        let output = builder.broadcast(product, &own);
        return Ok(Change::Factors(Carry {
            name,
            input,
            output,
            init: None,
            begins: Begin::One,
            last: None,
            layout: own,
        }));
    }
    let output = linear(builder, carry.input, carry.output, carry.input, true)?.node.ok_or("nothing is left of it")?;
    let (nodes, new) = reachable(&builder.nodes, &[carry.input, output]);
    let [first, second] = dims[..] else { return Err("positions mix, and it is no matrix") };
    // Nothing but what the state gives lies along the free axis.
    let free_of = |free: DimId| {
        let mut gives = vec![false; nodes.len()];
        gives[new[&carry.input].index()] = true;
        for at in 0..nodes.len() {
            gives[at] |= nodes[at].op.operands().iter().any(|x| gives[x.index()]);
        }
        nodes.iter().zip(gives).all(|(node, gives)| gives || !node.dims.contains(&free))
    };
    let graph = part(builder, nodes.clone());
    let free = [second, first].into_iter().find(|dim| separable_along(&graph, *dim) && free_of(*dim));
    let free = free.ok_or("what mixes its positions varies along its other axis")?;
    let over = if free == first { second } else { first };
    // With several edits a token, both in one kernel are slower than one after the other: their registers do not last.
    let several = builder.dims.iter().any(|dim| matches!(dim.kind, DimKind::Slot) && dim.size > 1);
    let beside = if !several && builder.dims[over.index()].size == builder.dims[free.index()].size {
        let name = format!("M.{}", carry.name);
        let input = builder.input(&name, InputKind::Carry, dims.clone(), None);
        let output = linear(builder, carry.input, carry.output, input, true)?.node.ok_or("nothing is left of it")?;
        let (init, last) = (None, None);
        Some(Carry { name, input, output, init, begins: Begin::Identity, last, layout: dims })
    } else {
        None
    };
    Ok(Change::Matrix { output, over, free, beside })
}

/// A graph of some nodes alone, to be looked at.
fn part(builder: &Builder, nodes: Vec<Node>) -> Graph {
    Graph {
        name: String::new(),
        dims: builder.dims.clone(),
        nodes,
        time: None,
        tokens: 1,
        reverse: false,
        span: None,
        carries: vec![],
        outputs: vec![],
        layouts: vec![],
        saves: vec![],
    }
}

fn one_in_spans(stage: Stage, steps: usize, operands: DType) -> Result<Vec<Stage>, CompileError> {
    let graph = &stage.graph;
    let (builder, states) = states(graph)?;
    let tokens = graph.tokens * steps;
    let name = |kind: &str, carry: &Carry| format!("{HANDED}{kind}.{}", carry.name);
    let mut stages = Vec::new();
    if !states.is_empty() {
        let (mut summary, mut factors) = (Vec::new(), Vec::new());
        for State { carry, change } in &states {
            let (own, last) = (graph.node(carry.input).dims.clone(), name("U", carry));
            summary.push((from_nothing(carry, carry.output, own.clone(), last), DType::F32));
            let last = name("M", carry);
            match change {
                Change::Factors(factors) => summary.push((Carry { last: Some(last), ..factors.clone() }, DType::F32)),
                Change::Matrix { beside: Some(beside), .. } => {
                    summary.push((Carry { last: Some(last), ..beside.clone() }, operands));
                }
                Change::Matrix { output, beside: None, .. } => {
                    let matrix = Carry { begins: Begin::Identity, ..from_nothing(carry, *output, own, last) };
                    factors.push((matrix, operands));
                }
            }
        }
        stages.push(spanned(&stage, "summary", &builder, summary, steps)?);
        if !factors.is_empty() {
            let mut square = builder.clone();
            for State { change, .. } in &states {
                if let Change::Matrix { over, free, .. } = change {
                    square.dims[free.index()].size = graph.dim(*over).size;
                }
            }
            stages.push(spanned(&stage, "factors", &square, factors, steps)?);
        }
        stages.push(combine(&stage, &states, tokens, operands)?);
    }
    let mut own = graph.clone();
    own.span = Some(steps);
    let mut sums = Vec::new();
    for carry in &mut own.carries {
        match states.iter().any(|state| state.carry.input == carry.input) {
            true => (carry.init, carry.last) = (Some(name("at", carry)), None),
            false => {
                let last = name("part", carry);
                sums.push((carry.clone(), last.clone()));
                carry.last = Some(last);
            }
        }
        // What is handed on lies in the order of its dimensions, not in that of the caller's tensor.
        carry.layout.clone_from(&graph.node(carry.input).dims);
    }
    let part = |(carry, last): &(Carry, String)| Handed::new(graph, last, &graph.node(carry.input).dims, tokens);
    let writes = sums.iter().map(part).chain(stage.writes);
    let reads = states.iter().map(|state| {
        let dims = &graph.node(state.carry.input).dims;
        Handed::new(graph, &name("at", &state.carry), dims, tokens)
    });
    let reads = reads.chain(stage.reads).collect();
    stages.push(Stage { name: stage.name, reads, writes: writes.collect(), graph: own });
    if !sums.is_empty() {
        stages.push(add_up(graph, sums, tokens)?);
    }
    Ok(stages)
}

/// A state that begins at nothing.
fn from_nothing(carry: &Carry, output: NodeId, layout: Vec<DimId>, last: String) -> Carry {
    Carry { output, init: None, begins: Begin::Zero, last: Some(last), layout, ..carry.clone() }
}

/// A graph of carries alone, over all spans at once; what each ends with is handed on in its type.
fn spanned(
    whole: &Stage,
    name: &'static str,
    arena: &Builder,
    carries: Vec<(Carry, DType)>,
    steps: usize,
) -> Result<Stage, CompileError> {
    let (mut carries, dtypes): (Vec<Carry>, Vec<DType>) = carries.into_iter().unzip();
    let roots: Vec<NodeId> = carries.iter().flat_map(|carry| [carry.input, carry.output]).collect();
    let (nodes, new) = reachable(&arena.nodes, &roots);
    for carry in &mut carries {
        (carry.input, carry.output) = (new[&carry.input], new[&carry.output]);
    }
    let mut graph = Graph {
        name: format!("{}.{name}", whole.graph.name),
        dims: arena.dims.clone(),
        nodes,
        span: Some(steps),
        carries,
        outputs: vec![],
        layouts: vec![],
        saves: vec![],
        ..whole.graph.clone()
    };
    pass::run(&mut graph, SIMPLIFY, &mut pass::Options::quiet())?;
    let used =
        |name: &str| graph.nodes.iter().any(|node| matches!(&node.op, Op::Input { name: own, .. } if own == name));
    let reads = whole.reads.iter().filter(|handed| used(&handed.name)).cloned().collect();
    let tokens = graph.tokens * steps;
    let last = |(carry, dtype): (&Carry, DType)| {
        let name = carry.last.as_deref().unwrap_or_default();
        Handed { dtype, ..Handed::new(&graph, name, &carry.layout, tokens) }
    };
    let writes = graph.carries.iter().zip(dtypes).map(last).collect();
    Ok(Stage { name, reads, writes, graph })
}

/// A graph whose steps are spans.
fn over_spans(like: &Graph, name: &str, tokens: usize) -> (Graph, Builder) {
    let mut dims = like.dims.clone();
    if let Some(time) = like.time {
        dims[time.index()].size = tokens;
    }
    let graph = Graph {
        name: format!("{}.{name}", like.name),
        tokens,
        span: None,
        carries: vec![],
        outputs: vec![],
        layouts: vec![],
        saves: vec![],
        dims: vec![],
        nodes: vec![],
        ..like.clone()
    };
    (graph, Builder::with_dims(dims))
}

/// States from span to span.
fn combine(whole: &Stage, states: &[State], tokens: usize, operands: DType) -> Result<Stage, CompileError> {
    let like = &whole.graph;
    let (mut graph, mut b) = over_spans(like, "combine", tokens);
    b.rule = "summarise a span";
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for State { carry, change } in states {
        let dims = like.node(carry.input).dims.clone();
        let name = |kind: &str| format!("{HANDED}{kind}.{}", carry.name);
        let state = b.input(&carry.name, InputKind::Carry, carry.layout.clone(), None);
        let added = b.input(&name("U"), InputKind::Saved, dims.clone(), None);
        let (factors, dtype, kept) = match change {
            Change::Factors(factors) => {
                let by = b.input(&name("M"), InputKind::Saved, factors.layout.clone(), None);
                (factors.layout.clone(), DType::F32, b.times(by, state))
            }
            Change::Matrix { over, free, .. } => {
                let Dim { name: of, kind, size } = like.dim(*over).clone();
                let from = b.dim(&format!("{of}.from"), kind, size);
                // In memory it lies as the graph that made it had its dimensions.
                let layout: Vec<DimId> = dims.iter().map(|dim| if dim == free { from } else { *dim }).collect();
                let by = b.input(&name("M"), InputKind::Saved, layout.clone(), None);
                let before = b.rename(state, *over, from);
                (layout, operands, b.contract(by, before, &[from]))
            }
        };
        let output = b.plus(kept, added);
        let output = b.broadcast(output, &dims);
        graph.carries.push(Carry { input: state, output, begins: Begin::Zero, ..carry.clone() });
        graph.saves.push((name("at"), state));
        graph.dims.clone_from(&b.dims);
        reads.push(Handed::new(&graph, &name("U"), &dims, tokens));
        reads.push(Handed { dtype, ..Handed::new(&graph, &name("M"), &factors, tokens) });
        writes.push(Handed::new(&graph, &name("at"), &dims, tokens));
    }
    graph.dims = b.dims;
    graph.nodes = b.nodes;
    pass::run(&mut graph, SIMPLIFY, &mut pass::Options::quiet())?;
    Ok(Stage { name: "combine", graph, reads, writes })
}

/// Sums of what spans added up.
fn add_up(like: &Graph, sums: Vec<(Carry, String)>, tokens: usize) -> Result<Stage, CompileError> {
    let (mut graph, mut b) = over_spans(like, "spans", tokens);
    let mut reads = Vec::new();
    for (carry, part) in sums {
        let dims = like.node(carry.input).dims.clone();
        let sum = b.input(&carry.name, InputKind::Carry, carry.layout.clone(), None);
        let own = b.input(&part, InputKind::Saved, dims.clone(), None);
        let output = b.add(Op::Binary(Binary::Add, sum, own), dims.clone());
        reads.push(Handed::new(like, &part, &dims, tokens));
        graph.carries.push(Carry { input: sum, output, ..carry });
    }
    graph.dims = b.dims;
    graph.nodes = b.nodes;
    pass::run(&mut graph, SIMPLIFY, &mut pass::Options::quiet())?;
    Ok(Stage { name: "spans", graph, reads, writes: vec![] })
}
