//! One graph as several, run one after another: what some steps need from no other step is computed for all at once.
//!
//! Comes in: a graph that verifies, and a schedule. Goes out: [`Stage`]s, graphs too, that give the same results when
//! each is run over the whole sequence before the next; and what they hand on between them. Never changes what is
//! computed from what: every value is computed by the same operations from the same values as before, so in exact types
//! the results are the same to the last bit. Never looks at a mechanism.
//!
//! # Stages
//! - `prepare` has no carries. It computes what depends on none and is dearer to compute in the pass than to hand on.
//!   Without `outputs`, it also gives the results it can.
//! - `pass` has the carries, and is the only one whose steps wait for each other. With `outputs` after it, it computes
//!   the carries' new values only, and hands on each carry's value at the start of every step.
//! - `outputs` has no carries: it reads them as they were at the start of its step, and computes everything else.
//! - `sums` has the carries that only add something up which nobody reads on the way (gradients of parameters). Then
//!   `outputs` hands on what each step adds, and `sums` adds it in the order of the steps.
//!
//! With [`Schedule::spans`] the stage that has the carries is run over spans of the sequence that do not wait for each
//! other, after stages that find the states at their starts ([`spans`]); then results are no longer the same to the last
//! bit, since a span's states are computed in another order.
//!
//! A graph without carries is [`crate::tile::ir::Order::Any`] and becomes a block for each chunk on a GPU. A stage that
//! would have nothing to do is left out; a graph without carries stays whole.
//!
//! # What is handed on
//! Every value handed on is kept once a step with all its rows ([`Graph::saves`], [`InputKind::Saved`]): void rows come
//! back as they were. It is named `handed.…`, but a state that the graph saves for a backward anyway keeps that name and
//! is handed on under it. It is float32 in memory unless the schedule says otherwise: [`Schedule::states`] is for
//! states, whatever their readers do with them; [`Schedule::operands`] for what its readers only multiply on the tensor
//! cores, which round it to that type in any case.
//!
//! Whether a stage computes a value or reads it is a minimum cut ([`cut`]): the sum of what everything costs ([`price`])
//! is as small as can be, first between `prepare` and `pass`, then for `outputs`, given what is handed on already. The
//! same graph and prices give the same cut everywhere.

mod cut;
mod handed;
mod linear;
pub mod price;
mod spans;

use super::build::reachable;
use super::ir::{Binary, Carry, Graph, InputKind, NodeId, Op};
use crate::error::CompileError;
use crate::graph::edits::{EDITS, INVERSE, of_edits, of_inverse};
use crate::pass;
use crate::pipeline::SIMPLIFY;
use crate::schedule::Schedule;
use crate::tile::ir::Kernel;
use chunkwise_abi::DType;
use cut::{Choice, Choices, NEVER};
pub use handed::Handed;
use handed::{may_be_handed, only_multiplied, word};
use price::{Prices, elements, node_work};
pub use spans::can_be_in_spans;
use std::collections::{BTreeMap, BTreeSet};

/// What names of values handed on begin with.
pub const HANDED: &str = "handed.";

/// One kernel's part of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// `fused`, `prepare`, `pass`, `outputs` or `sums`; in spans also `summary`, `factors`, `combine` or `spans`.
    pub name: &'static str,
    /// What it computes.
    pub graph: Graph,
    /// What it reads of what earlier stages wrote.
    pub reads: Vec<Handed>,
    /// What it writes that a later stage reads.
    pub writes: Vec<Handed>,
}

impl Stage {
    /// Gives the arguments of the stage's kernel the types of what is handed on. What the caller keeps has its own.
    pub fn set_types(&self, kernel: &mut Kernel) {
        for arg in &mut kernel.args {
            let mut handed = self.reads.iter().chain(&self.writes).filter(|handed| !handed.result);
            if let Some(handed) = handed.find(|handed| handed.name == arg.name) {
                arg.dtype = handed.dtype;
            }
        }
    }
}

/// Everything the stages hand on that is no result: what a launcher allocates.
pub fn temporaries(stages: &[Stage]) -> Vec<Handed> {
    stages.iter().flat_map(|stage| stage.writes.iter().filter(|handed| !handed.result).cloned()).collect()
}

/// The stages of a graph.
pub fn split(graph: &Graph, schedule: &Schedule) -> Result<Vec<Stage>, CompileError> {
    split_at(graph, schedule, &Prices::default())
}

/// The stages of a graph where work is worth these prices.
pub fn split_at(graph: &Graph, schedule: &Schedule, prices: &Prices) -> Result<Vec<Stage>, CompileError> {
    let stages = by_dependence(graph, schedule, prices)?;
    match schedule.spans {
        Some(steps) => spans::in_spans(stages, steps, schedule.operands),
        None => Ok(stages),
    }
}

fn by_dependence(graph: &Graph, schedule: &Schedule, prices: &Prices) -> Result<Vec<Stage>, CompileError> {
    let stages = schedule.stages;
    if graph.carries.is_empty() || !(stages.prepares() || stages.has_outputs()) {
        return Ok(vec![Stage { name: "fused", graph: graph.clone(), reads: vec![], writes: vec![] }]);
    }
    let mut splitter = Splitter::new(graph, schedule, prices);
    if stages.has_outputs() { splitter.outputs(stages.prepares()) } else { splitter.prepare_and_pass() }
}

struct Splitter<'g> {
    graph: &'g Graph,
    prices: &'g Prices,
    schedule: Schedule,
    /// By node: it depends on a carry of the pass.
    carried: Vec<bool>,
    /// By carry: it only adds up, and stands in a stage of its own.
    sums: Vec<Option<NodeId>>,
    /// By node handed on: its name.
    names: BTreeMap<NodeId, String>,
    taken: BTreeSet<String>,
}

/// What a stage computes and what it reads instead.
#[derive(Default)]
struct Share {
    computes: BTreeSet<NodeId>,
    reads: BTreeSet<NodeId>,
    /// Results that an earlier stage gives instead.
    spares: BTreeSet<NodeId>,
}

/// What a stage gives.
#[derive(Default)]
struct Results {
    carries: Vec<Carry>,
    outputs: Vec<(String, NodeId)>,
    saves: Vec<(String, NodeId)>,
}

impl<'g> Splitter<'g> {
    fn new(graph: &'g Graph, schedule: &Schedule, prices: &'g Prices) -> Self {
        let sums = match schedule.stages.has_outputs() {
            true => graph.carries.iter().map(|carry| summand(graph, carry)).collect(),
            false => vec![None; graph.carries.len()],
        };
        let mut carried = vec![false; graph.nodes.len()];
        for (carry, sum) in graph.carries.iter().zip(&sums) {
            carried[carry.input.index()] = sum.is_none();
        }
        for (at, node) in graph.nodes.iter().enumerate() {
            carried[at] |= node.op.operands().iter().any(|x| carried[x.index()]);
        }
        let taken = graph.nodes.iter().filter_map(|node| match &node.op {
            Op::Input { name, .. } => Some(name.clone()),
            _ => None,
        });
        let taken = taken.chain(graph.saves.iter().map(|(name, _)| name.clone())).collect();
        Splitter { graph, prices, schedule: *schedule, carried, sums, names: BTreeMap::new(), taken }
    }

    /// `prepare`, and a pass that does all the rest.
    fn prepare_and_pass(&mut self) -> Result<Vec<Stage>, CompileError> {
        let graph = self.graph;
        let mut rest =
            Results { carries: graph.carries.clone(), outputs: graph.outputs.clone(), saves: graph.saves.clone() };
        let given: BTreeSet<NodeId> = graph.outputs.iter().map(|(_, node)| *node).collect();
        let free = given.into_iter().filter(|x| !self.carried[x.index()]).collect();
        let pass = self.pass_share(&roots(&rest), true, &free);
        let mut stages = Vec::new();
        let outputs;
        (outputs, rest.outputs) = rest.outputs.into_iter().partition(|(_, node)| pass.spares.contains(node));
        self.prepare_stage(&pass.reads, outputs, &mut stages)?;
        stages.push(self.stage("pass", &pass.reads, rest)?);
        self.finish(stages)
    }

    /// A pass of the states, and outputs after it; perhaps something prepared, perhaps sums at the end.
    fn outputs(&mut self, prepares: bool) -> Result<Vec<Stage>, CompileError> {
        let graph = self.graph;
        let of_pass = |at: usize| self.sums[at].is_none();
        let states: Vec<Carry> =
            (0..graph.carries.len()).filter(|&at| of_pass(at)).map(|at| graph.carries[at].clone()).collect();
        let sums: Vec<(Carry, NodeId)> =
            graph.carries.iter().zip(&self.sums).filter_map(|(carry, x)| Some((carry.clone(), (*x)?))).collect();
        let mut pass = Results { carries: states.clone(), ..Results::default() };
        let mut outputs = Results { outputs: graph.outputs.clone(), ..Results::default() };
        for (name, node) in &graph.saves {
            // A state at the start of a step is the pass's to keep.
            if let Some(state) = states.iter().find(|carry| carry.input == *node) {
                self.names.entry(state.input).or_insert_with(|| name.clone());
                pass.saves.push((name.clone(), *node));
            } else {
                outputs.saves.push((name.clone(), *node));
            }
        }
        let mut summands = BTreeMap::new();
        for (carry, x) in &sums {
            let name = self.fresh(&carry.name);
            summands.insert(*x, name.clone());
        }
        outputs.saves.extend(summands.iter().map(|(x, name)| (name.clone(), *x)));

        let pass_share = match states.is_empty() {
            true => Share::default(),
            false => self.pass_share(&roots(&pass), prepares, &BTreeSet::new()),
        };
        let prepared = self.ancestors(&pass_share.reads);
        let kept: BTreeSet<NodeId> = pass.saves.iter().map(|(_, node)| *node).collect();
        let read = self.outputs_share(&roots(&outputs), &pass_share, &prepared, &kept);
        let of_prepare: BTreeSet<NodeId> =
            read.iter().copied().filter(|x| prepared.contains(x)).chain(pass_share.reads.iter().copied()).collect();
        let mut stages = Vec::new();
        self.prepare_stage(&of_prepare, Vec::new(), &mut stages)?;
        if !states.is_empty() {
            for &x in read.iter().filter(|x| !of_prepare.contains(x) && !kept.contains(x)) {
                let name = self.name(x);
                pass.saves.push((name, x));
            }
            stages.push(self.stage("pass", &pass_share.reads, pass)?);
        }
        if !roots(&outputs).is_empty() {
            stages.push(self.stage("outputs", &read, outputs)?);
        }
        if !sums.is_empty() {
            let reads: BTreeSet<NodeId> = summands.keys().copied().collect();
            self.names.extend(summands);
            let carries = sums.into_iter().map(|(carry, _)| carry).collect();
            stages.push(self.stage("sums", &reads, Results { carries, ..Results::default() })?);
        }
        self.finish(stages)
    }

    /// What the pass computes and what it reads from `prepare`. The results in `either` are as good if `prepare` gives
    /// them.
    ///
    /// For each node three choices: `here`, the pass has its value; `computed`, it computed it; `absent`, `prepare` has
    /// not. A node the pass has and does not compute is handed on; one it does not compute, `prepare` does, from
    /// operands it computes.
    fn pass_share(&self, roots: &[NodeId], prepares: bool, either: &BTreeSet<NodeId>) -> Share {
        let graph = self.graph;
        let bytes = self.bytes(roots);
        let mut choices = Choices::new();
        let needed = self.ancestors(roots);
        let mut here: BTreeMap<NodeId, (Choice, Choice)> = BTreeMap::new();
        let mut absent: BTreeMap<NodeId, Choice> = BTreeMap::new();
        for &x in &needed {
            let node = graph.node(x);
            let (has, computed) = (choices.choice(), choices.choice());
            let work = node_work(graph, &graph.nodes, node, self.prices);
            let free = prepares && !self.carried[x.index()];
            let handing =
                if free && may_be_handed(&node.op) { self.writing(x, &bytes) + self.reading(x, &bytes) } else { NEVER };
            choices.if_without(has, computed, handing);
            let moved = self.prices.moving(work.bytes);
            choices.if_true(computed, moved + self.prices.sequential * self.prices.computing(work));
            if free {
                let not = choices.choice();
                choices.if_false(not, moved + self.prices.computing(work));
                choices.if_without(not, computed, NEVER);
                absent.insert(x, not);
            }
            here.insert(x, (has, computed));
        }
        for &x in &needed {
            for operand in graph.node(x).op.operands() {
                choices.if_without(here[&x].1, here[&operand].0, NEVER);
                if let (Some(&user), Some(&used)) = (absent.get(&x), absent.get(&operand)) {
                    choices.if_without(used, user, NEVER);
                }
            }
        }
        for root in roots {
            match absent.get(root).filter(|_| either.contains(root)) {
                Some(&not) => choices.if_without(not, here[root].0, NEVER),
                None => choices.if_false(here[root].0, NEVER),
            }
        }
        let solved = choices.solve();
        let mut share = Share::default();
        share.spares.extend(either.iter().filter(|x| absent.get(x).is_some_and(|&not| !solved.is(not))));
        for (&x, &(has, computed)) in &here {
            match (solved.is(has), solved.is(computed)) {
                (true, true) => _ = share.computes.insert(x),
                (true, false) => _ = share.reads.insert(x),
                (false, true | false) => {}
            }
        }
        share
    }

    /// What the outputs read of what is computed before them.
    fn outputs_share(
        &self,
        roots: &[NodeId],
        pass: &Share,
        prepared: &BTreeSet<NodeId>,
        kept: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let graph = self.graph;
        let bytes = self.bytes(roots);
        let mut choices = Choices::new();
        let needed = self.ancestors(roots);
        let mut here: BTreeMap<NodeId, (Choice, Choice)> = BTreeMap::new();
        for &x in &needed {
            let node = graph.node(x);
            let (has, computed) = (choices.choice(), choices.choice());
            let work = node_work(graph, &graph.nodes, node, self.prices);
            let state = graph.carries.iter().zip(&self.sums).any(|(carry, sum)| sum.is_none() && carry.input == x);
            let handing = if pass.reads.contains(&x) || kept.contains(&x) {
                self.reading(x, &bytes)
            } else if state || (may_be_handed(&node.op) && (pass.computes.contains(&x) || prepared.contains(&x))) {
                self.writing(x, &bytes) + self.reading(x, &bytes)
            } else {
                NEVER
            };
            choices.if_without(has, computed, handing);
            let price = self.prices.moving(work.bytes) + self.prices.computing(work);
            choices.if_true(computed, if state { NEVER } else { price });
            here.insert(x, (has, computed));
        }
        for &x in &needed {
            for operand in graph.node(x).op.operands() {
                choices.if_without(here[&x].1, here[&operand].0, NEVER);
            }
        }
        for root in roots {
            choices.if_false(here[root].0, NEVER);
        }
        let solved = choices.solve();
        let read = here.into_iter().filter(|(_, (has, computed))| solved.is(*has) && !solved.is(*computed));
        read.map(|(x, _)| x).collect()
    }

    /// By node: bytes of an element, were it handed on to a stage that gives these results.
    fn bytes(&self, results: &[NodeId]) -> Vec<u64> {
        let type_of = |only| if only { self.schedule.operands } else { DType::F32 };
        let only = only_multiplied(self.graph, results);
        let mut bytes: Vec<u64> = only.into_iter().map(|only| type_of(only).bytes() as u64).collect();
        for carry in &self.graph.carries {
            let bytes = &mut bytes[carry.input.index()];
            *bytes = (*bytes).min(self.schedule.states.bytes() as u64);
        }
        for (_, node) in &self.graph.saves {
            bytes[node.index()] = DType::F32.bytes() as u64;
        }
        bytes
    }

    fn writing(&self, x: NodeId, bytes: &[u64]) -> u64 {
        self.reading(x, bytes) + self.prices.moving(self.prices.handing)
    }

    fn reading(&self, x: NodeId, bytes: &[u64]) -> u64 {
        self.prices.moving(bytes[x.index()] * elements(self.graph, self.graph.node(x)))
    }

    /// These nodes and all they are computed from.
    fn ancestors<'x>(&self, of: impl IntoIterator<Item = &'x NodeId>) -> BTreeSet<NodeId> {
        let mut stack: Vec<NodeId> = of.into_iter().copied().collect();
        let mut found = BTreeSet::new();
        while let Some(x) = stack.pop() {
            if found.insert(x) {
                stack.extend(self.graph.node(x).op.operands());
            }
        }
        found
    }

    /// The name under which a node is handed on.
    fn name(&mut self, x: NodeId) -> String {
        if let Some(name) = self.names.get(&x) {
            return name.clone();
        }
        let state = self.graph.carries.iter().find(|carry| carry.input == x);
        let name = match state {
            Some(carry) => self.fresh(&carry.name.clone()),
            None => {
                // How many digits a reader keeps of them, it tells by their names.
                let word = match (of_inverse(self.graph, x, true), of_edits(self.graph, x)) {
                    (true, _) => INVERSE.trim_start_matches(HANDED),
                    (false, true) => EDITS.trim_start_matches(HANDED),
                    (false, false) => word(&self.graph.node(x).op),
                };
                self.fresh(&format!("{word}{}", x.0))
            }
        };
        self.names.insert(x, name.clone());
        name
    }

    fn fresh(&mut self, wanted: &str) -> String {
        let mut name = format!("{HANDED}{wanted}");
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    fn prepare_stage(
        &mut self,
        hands: &BTreeSet<NodeId>,
        outputs: Vec<(String, NodeId)>,
        stages: &mut Vec<Stage>,
    ) -> Result<(), CompileError> {
        if hands.is_empty() && outputs.is_empty() {
            return Ok(());
        }
        let saves = hands.iter().map(|&x| (self.name(x), x)).collect();
        stages.push(self.stage("prepare", &BTreeSet::new(), Results { outputs, saves, ..Results::default() })?);
        Ok(())
    }

    /// A graph that reads some nodes and gives some results.
    fn stage(&mut self, name: &'static str, reads: &BTreeSet<NodeId>, results: Results) -> Result<Stage, CompileError> {
        let Results { mut carries, mut outputs, mut saves } = results;
        let mut nodes = self.graph.nodes.clone();
        for &x in reads {
            let node = &mut nodes[x.index()];
            node.op = Op::Input { name: self.name(x), kind: InputKind::Saved, layout: node.dims.clone() };
        }
        let given = outputs.iter().chain(&saves).map(|(_, node)| *node);
        let roots: Vec<NodeId> = given.chain(carries.iter().flat_map(|c| [c.input, c.output])).collect();
        let (nodes, new) = reachable(&nodes, &roots);
        for (_, node) in outputs.iter_mut().chain(&mut saves) {
            *node = new[node];
        }
        for carry in &mut carries {
            carry.input = new[&carry.input];
            carry.output = new[&carry.output];
        }
        let layouts = outputs.iter().map(|(name, _)| (name.clone(), self.graph.output_layout(name))).collect();
        let reverse = self.graph.reverse && !carries.is_empty();
        let mut graph = Graph {
            name: format!("{}.{name}", self.graph.name),
            dims: self.graph.dims.clone(),
            nodes,
            time: self.graph.time,
            tokens: self.graph.tokens,
            reverse,
            span: None,
            carries,
            outputs,
            layouts,
            saves,
        };
        pass::run(&mut graph, SIMPLIFY, &mut pass::Options::quiet())?;
        Ok(Stage { name, graph, reads: vec![], writes: vec![] })
    }

    /// Says what each stage reads and writes of what is handed on, from the last to the first. What a reader turned out
    /// not to need once it was simplified is not handed on.
    fn finish(&self, stages: Vec<Stage>) -> Result<Vec<Stage>, CompileError> {
        let mut read_later: BTreeSet<String> = BTreeSet::new();
        let mut finished: Vec<Stage> = Vec::new();
        for Stage { name, mut graph, .. } in stages.into_iter().rev() {
            let kept = |name: &String| !name.starts_with(HANDED) || read_later.contains(name);
            if !graph.saves.iter().all(|(name, _)| kept(name)) {
                graph.saves.retain(|(name, _)| kept(name));
                pass::run(&mut graph, SIMPLIFY, &mut pass::Options::quiet())?;
            }
            if graph.saves.is_empty() && graph.outputs.is_empty() && graph.carries.is_empty() {
                continue;
            }
            let saves = graph.saves.iter().filter(|(name, _)| read_later.contains(name));
            let writes: Vec<Handed> = saves.map(|(name, node)| self.handed(&graph, name, *node)).collect();
            // The graph as a whole may read what an earlier kernel saved: that is no stage's.
            let given = |wanted: &str| {
                let whole = self.graph.nodes.iter();
                whole.into_iter().any(|node| matches!(&node.op, Op::Input { name, .. } if name == wanted))
            };
            let reads: Vec<Handed> = (graph.nodes.iter().enumerate())
                .filter_map(|(id, node)| match &node.op {
                    Op::Input { name, kind: InputKind::Saved, .. } if !given(name) => {
                        Some(self.handed(&graph, name, NodeId(id as u32)))
                    }
                    _ => None,
                })
                .collect();
            read_later.extend(reads.iter().map(|handed| handed.name.clone()));
            finished.push(Stage { name, graph, reads, writes });
        }
        finished.reverse();
        self.set_types(&mut finished);
        Ok(finished)
    }

    fn handed(&self, graph: &Graph, name: &str, node: NodeId) -> Handed {
        let result = self.graph.saves.iter().any(|(saved, _)| saved == name);
        Handed { result, ..Handed::new(graph, name, &graph.node(node).dims, graph.tokens) }
    }

    /// Decides the type of everything handed on. What a caller sees is float32.
    fn set_types(&self, stages: &mut [Stage]) {
        let mut not_operands: BTreeSet<String> = BTreeSet::new();
        for Stage { graph, .. } in stages.iter() {
            let results = graph.outputs.iter().chain(&graph.saves).map(|(_, node)| *node);
            let results: Vec<NodeId> = results.chain(graph.carries.iter().map(|carry| carry.output)).collect();
            for (node, only) in graph.nodes.iter().zip(only_multiplied(graph, &results)) {
                if let (Op::Input { name, kind: InputKind::Saved, .. }, false) = (&node.op, only) {
                    not_operands.insert(name.clone());
                }
            }
        }
        let is_state =
            |name: &str| {
                self.graph.carries.iter().zip(&self.sums).any(|(carry, sum)| {
                    sum.is_none() && self.names.get(&carry.input).is_some_and(|handed| handed == name)
                })
            };
        for handed in stages.iter_mut().flat_map(|stage| stage.reads.iter_mut().chain(&mut stage.writes)) {
            if handed.result {
                continue;
            }
            handed.dtype = match (is_state(&handed.name), not_operands.contains(&handed.name)) {
                (true, _) if self.schedule.states != DType::F32 => self.schedule.states,
                (true | false, false) => self.schedule.operands,
                (true | false, true) => DType::F32,
            };
        }
    }
}

/// Everything a stage's results are.
fn roots(results: &Results) -> Vec<NodeId> {
    let given = results.outputs.iter().chain(&results.saves).map(|(_, node)| *node);
    given.chain(results.carries.iter().flat_map(|carry| [carry.input, carry.output])).collect()
}

/// What a carry adds at every step, if it does nothing but add, from zero, and nobody reads it on the way.
fn summand(graph: &Graph, carry: &Carry) -> Option<NodeId> {
    let Op::Binary(Binary::Add, a, b) = graph.node(carry.output).op else { return None };
    let x = match (a == carry.input, b == carry.input) {
        (true, false) => b,
        (false, true) => a,
        (true, true) | (false, false) => return None,
    };
    let read = |id: NodeId| {
        let operands = graph.nodes.iter().flat_map(|node| node.op.operands()).filter(|x| *x == id).count();
        operands + graph.outputs.iter().chain(&graph.saves).filter(|(_, node)| *node == id).count()
    };
    let given = graph.carries.iter().filter(|other| other.output == carry.output || other.output == carry.input);
    let alone = read(carry.input) == 1 && read(carry.output) == 0 && given.count() == 1;
    (carry.init.is_none() && alone).then_some(x)
}
