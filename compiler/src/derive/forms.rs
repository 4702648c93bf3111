//! Normal form → graph of one chunk (or of one token at a time): the strategy that calls the rules in order.
//!
//! In: the token graph, its arena with the products recognition added, the strata. Out: a builder that holds the
//! forward of one step, and which nodes are its results. Nothing here knows a mechanism. A little over 600 lines: the
//! order in which the rules are called is one thing, and is read as one.

use super::affine::{Analysis, Base, ReadTerm, Value};
use super::chunk::{Chunk, ChunkEdit, ChunkState};
use super::recognise::versions_of;
use super::recurrence::{Class, LowRank, Read, Recurrence};
use super::rule::Derivation;
use super::rules::{carry_in, carry_out, close_intra, scan_tokens, split_time, summarise_span, ut_transform};
use crate::error::CompileError;
use crate::graph::build::Builder;
use crate::graph::ir::{DimId, DimKind, InputKind, NodeId, Op, Side};
use crate::lower::program_to_graph::TokenGraph;
use std::collections::{BTreeSet, HashMap};

/// What the forward of a step is built from.
pub struct Plan<'a> {
    /// The token graph.
    pub token: &'a TokenGraph,
    /// Its arena, grown by recognition.
    pub arena: Builder,
    /// The strata.
    pub recurrence: Recurrence,
}

/// What a step is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rows of the row dimension, whole blocks.
    pub rows: usize,
    /// All strata a token at a time.
    pub recurrent: bool,
    /// The states at the step's start are read from what a forward saved, and scans give the states before each row.
    pub for_backward: bool,
}

/// The forward of one step.
pub struct Step {
    /// Nodes, dimensions, record.
    pub chunk: Chunk,
    /// Value of each output, by its index.
    pub outputs: Vec<NodeId>,
    /// Each state at the step's start, by its index.
    pub starts: Vec<NodeId>,
    /// Each state at its end.
    pub ends: Vec<NodeId>,
    /// Tensor inputs by name.
    pub tensors: Vec<(String, NodeId)>,
}

/// One stratum's span as an affine map; see [`crate::derive::rules::summarise_span`].
pub struct Summary {
    /// Nodes, dimensions, record.
    pub chunk: Chunk,
    /// Carries of each state: what it is called, which tensors hold its first and last value, the two nodes.
    pub carries: Vec<SummaryCarry>,
}

/// A carry of a summary.
pub struct SummaryCarry {
    /// `U.S`, `M.S` or `D.S`.
    pub name: String,
    /// Whether it starts from a tensor (`init.NAME`: the identity, or ones) rather than zero.
    pub from_tensor: bool,
    /// At the step's start.
    pub start: NodeId,
    /// At its end.
    pub end: NodeId,
    /// Order of its dimensions.
    pub layout: Vec<DimId>,
}

/// A stratum already built.
enum Done {
    LowRank { form: LowRank, states: Vec<ChunkState>, edits: Vec<ChunkEdit> },
    Scanned(HashMap<NodeId, NodeId>),
}

struct Deriver<'a> {
    token: &'a TokenGraph,
    arena: Builder,
    strata: Vec<Vec<usize>>,
    chunk: Chunk,
    done: Vec<Done>,
    lifted: HashMap<NodeId, NodeId>,
    strata_of: HashMap<NodeId, BTreeSet<usize>>,
    kept: &'a BTreeSet<usize>,
    wanted: &'a mut Option<usize>,
}

/// Builds the forward of one step.
pub fn forward(plan: Plan<'_>, options: Options, derivation: Derivation) -> Result<Step, CompileError> {
    let mut kept = BTreeSet::new();
    loop {
        let plan = Plan { token: plan.token, arena: plan.arena.clone(), recurrence: plan.recurrence.clone() };
        let mut wanted = None;
        let step = attempt(plan, options, derivation.clone(), &kept, &mut wanted);
        // A product that the recognition has made anew may need a scanned state itself, where the token graph as
        // written needed only what was computed from it. Then the scan gives that state too.
        match wanted {
            Some(state) if step.is_err() && kept.insert(state) => {}
            Some(_) | None => return step,
        }
    }
}

/// [`forward`], where scans give the states in `kept` row by row; `wanted` is one that is missing.
fn attempt(
    plan: Plan<'_>,
    options: Options,
    derivation: Derivation,
    kept: &BTreeSet<usize>,
    wanted: &mut Option<usize>,
) -> Result<Step, CompileError> {
    let Plan { token, arena, recurrence } = plan;
    let n_states = token.graph.carries.len();
    let mut chunk = Chunk::new(Builder::with_dims(arena.dims.clone()), options.rows);
    chunk.derivation = derivation;
    let kind = if options.for_backward { InputKind::Saved } else { InputKind::Carry };
    let starts: Vec<NodeId> = token
        .graph
        .carries
        .iter()
        .map(|carry| {
            if options.for_backward {
                // What a step saves lies in canonical order, whatever the layout of the state.
                let canonical = token.graph.nodes[carry.input.index()].dims.clone();
                chunk.b.input(&format!("saved.{}", carry.name), kind, canonical, None)
            } else {
                chunk.b.input(&carry.name, kind, carry.layout.clone(), None)
            }
        })
        .collect();
    let mut tensors = Vec::new();
    for node in &token.graph.nodes {
        if let Op::Input { name, kind: kind @ (InputKind::Token | InputKind::Head), layout } = &node.op {
            let t = chunk.t;
            tensors.push((name.clone(), chunk.b.input(name, *kind, layout.clone(), Some(t))));
        }
    }
    let all: Vec<usize> = (0..n_states).collect();
    let mut deriver = Deriver {
        token,
        arena,
        strata: if options.recurrent {
            vec![all.clone()]
        } else {
            recurrence.strata.iter().map(|s| s.states.clone()).collect()
        },
        chunk,
        done: vec![],
        lifted: HashMap::new(),
        strata_of: HashMap::new(),
        kept,
        wanted,
    };
    let mut ends = vec![None; n_states];
    if options.recurrent {
        if n_states > 0 {
            deriver.scan(&all, &starts, &mut ends, options.for_backward)?;
        }
    } else {
        for stratum in recurrence.strata {
            match stratum.class {
                Class::LowRank(form) => deriver.low_rank(form, &starts, &mut ends)?,
                Class::Elementwise { .. } => {
                    deriver.scan(&stratum.states, &starts, &mut ends, options.for_backward)?;
                }
                Class::General { because, span } => {
                    return Err(CompileError::Limit {
                        what: format!("no chunk form: {because}"),
                        instead: "--form recurrent computes it a token at a time".to_owned(),
                        span,
                    });
                }
            }
        }
    }
    let outputs = token.graph.outputs.iter().map(|(_, node)| deriver.lift(*node)).collect::<Result<Vec<_>, _>>()?;
    let t = deriver.chunk.t;
    let outputs = outputs.into_iter().map(|x| deriver.chunk.b.broadcast(x, &[t])).collect();
    let ends = ends
        .into_iter()
        .enumerate()
        .map(|(s, end)| {
            let end = end.expect("every stratum gives its states");
            deriver.chunk.b.broadcast(end, &token.graph.carries[s].layout)
        })
        .collect();
    Ok(Step { chunk: deriver.chunk, outputs, starts, ends, tensors })
}

/// Builds the summary of a step, for a recurrence whose strata are of low rank or one elementwise state each and do not
/// feed each other.
pub fn summary(plan: Plan<'_>, rows: usize, derivation: Derivation) -> Result<Summary, CompileError> {
    let Plan { token, mut arena, mut recurrence } = plan;
    // Nothing is asked for but the states; an elementwise one has what collects its factors beside it.
    let mut token = token.clone();
    token.graph.outputs.clear();
    let n_states = token.graph.carries.len();
    for stratum in &mut recurrence.strata {
        match (&stratum.class, stratum.states.as_slice()) {
            (Class::LowRank(_), _) => {}
            (Class::Elementwise { .. }, &[state]) => {
                stratum.states.push(summarise_span::collect_factors(&mut token, &mut arena, state)?);
            }
            (Class::Elementwise { .. }, _) => {
                return Err(no_summary("states take in the whole of each other, element by element"));
            }
            (Class::General { because, .. }, _) => return Err(no_summary(because)),
        }
    }
    let token = &token;
    let mut chunk = Chunk::new(Builder::with_dims(arena.dims.clone()), rows);
    chunk.derivation = derivation;
    let starts: Vec<NodeId> = token
        .graph
        .carries
        .iter()
        .enumerate()
        .map(|(s, c)| {
            let name = if s < n_states { format!("U.{}", c.name) } else { c.name.clone() };
            chunk.b.input(&name, InputKind::Carry, c.layout.clone(), None)
        })
        .collect();
    let (kept, mut wanted) = (BTreeSet::new(), None);
    let mut deriver = Deriver {
        token,
        arena,
        strata: recurrence.strata.iter().map(|s| s.states.clone()).collect(),
        chunk,
        done: vec![],
        lifted: HashMap::new(),
        strata_of: HashMap::new(),
        kept: &kept,
        wanted: &mut wanted,
    };
    let mut carries = Vec::new();
    for stratum in recurrence.strata {
        let Class::LowRank(form) = stratum.class else {
            carries.extend(deriver.elementwise_summary(&stratum.states, &starts)?);
            continue;
        };
        deriver.feeds_nothing(&form)?;
        let mut ends = vec![None; starts.len()];
        deriver.low_rank(form.clone(), &starts, &mut ends)?;
        // The same edits without what they write of their own, on the columns of the identity.
        let extents: Vec<usize> = form.states.iter().map(|s| deriver.chunk.extent(&s.contracted)).collect();
        let rank = deriver.arena.dims.len() as u32 * 2;
        let names: Vec<&str> = form.states.iter().map(|s| token.graph.carries[s.state].name.as_str()).collect();
        let from = deriver.chunk.b.dim(&format!("from_{}", names.join("_")), DimKind::Axis(rank), extents.iter().sum());
        let homogeneous = summarise_span::homogeneous(&form, from)?;
        let mut m_starts = starts.clone();
        for (state, name) in form.states.iter().zip(&names) {
            let layout: Vec<DimId> = state.contracted.iter().copied().chain([from]).collect();
            m_starts[state.state] = deriver.chunk.b.input(&format!("M.{name}"), InputKind::Carry, layout, None);
        }
        let mut m_ends = vec![None; starts.len()];
        deriver.low_rank(homogeneous, &m_starts, &mut m_ends)?;
        let Some(Done::LowRank { .. }) = deriver.done.pop() else { unreachable!("just built") };
        let Some(Done::LowRank { states, .. }) = deriver.done.last() else { unreachable!("built before") };
        let on_free: Vec<_> = states.iter().map(|s| s.on_free.clone()).collect();
        for ((state, name), on_free) in form.states.iter().zip(&names).zip(on_free) {
            let at = state.state;
            let layout = token.graph.carries[at].layout.clone();
            let end = ends[at].expect("every state of the stratum has an end");
            let end = deriver.chunk.b.broadcast(end, &layout);
            carries.push(SummaryCarry {
                name: format!("U.{name}"),
                from_tensor: false,
                start: starts[at],
                end,
                layout,
            });
            let layout: Vec<DimId> = state.contracted.iter().copied().chain([from]).collect();
            let end = m_ends[at].expect("every state of the stratum has an end");
            let end = deriver.chunk.b.broadcast(end, &layout);
            carries.push(SummaryCarry {
                name: format!("M.{name}"),
                from_tensor: true,
                start: m_starts[at],
                end,
                layout,
            });
            if let Some(total) = deriver.chunk.boundary(Side::Total, &on_free, 0) {
                let layout = state.free.clone();
                let start = deriver.chunk.b.input(&format!("D.{name}"), InputKind::Carry, layout.clone(), None);
                let end = deriver.chunk.b.times(start, total);
                let end = deriver.chunk.b.broadcast(end, &layout);
                carries.push(SummaryCarry { name: format!("D.{name}"), from_tensor: true, start, end, layout });
            }
        }
        deriver.chunk.derivation.record(&summarise_span::RULE, names.join(", "), None);
    }
    Ok(Summary { chunk: deriver.chunk, carries })
}

/// Why states of one stratum that enter another have no summary.
const FED: &str = "a read of one state enters another, so they are not affine together";

/// Why there is no summary.
pub fn no_summary(because: &str) -> CompileError {
    CompileError::Limit {
        what: format!("no span summary: {because}"),
        instead: "carry the state through the span instead".to_owned(),
        span: None,
    }
}

impl Deriver<'_> {
    /// Checks that nothing of a stratum comes from another stratum's state.
    fn feeds_nothing(&mut self, form: &LowRank) -> Result<(), CompileError> {
        let mut nodes = Vec::new();
        for state in &form.states {
            for events in [&state.scalar, &state.on_contracted, &state.on_free] {
                nodes.extend(events.iter().map(|e| e.value));
            }
        }
        for edit in &form.edits {
            nodes.push(edit.u);
            nodes.extend(edit.reads.iter().map(|r| r.weight));
            nodes.extend(edit.scale.iter().chain(&edit.c));
        }
        if nodes.into_iter().any(|node| !self.strata_of(node).is_empty()) {
            return Err(no_summary(FED));
        }
        Ok(())
    }

    /// The carries of an elementwise state, gone through a token at a time together with what collects its factors.
    fn elementwise_summary(&mut self, states: &[usize], starts: &[NodeId]) -> Result<Vec<SummaryCarry>, CompileError> {
        let token = self.token;
        for &state in states {
            let last = token.versions[state].last().expect("a state has its first version").node;
            if self.strata_of(last).into_iter().any(|at| !self.strata[at].contains(&state)) {
                return Err(no_summary(FED));
            }
        }
        let mut ends = vec![None; starts.len()];
        self.scan(states, starts, &mut ends, false)?;
        let name = &token.graph.carries[states[0]].name;
        self.chunk.derivation.record(&summarise_span::RULE, format!("{name}, elementwise"), None);
        let carries = states.iter().zip(["U", "M"]).map(|(&state, part)| {
            let layout = token.graph.carries[state].layout.clone();
            let end = ends[state].expect("the scan gives every state");
            let end = self.chunk.b.broadcast(end, &layout);
            SummaryCarry { name: format!("{part}.{name}"), from_tensor: part == "M", start: starts[state], end, layout }
        });
        Ok(carries.collect())
    }

    /// The strata a token node depends on.
    fn strata_of(&mut self, node: NodeId) -> BTreeSet<usize> {
        if let Some(known) = self.strata_of.get(&node) {
            return known.clone();
        }
        let found: BTreeSet<usize> = match self.state_at(node) {
            Some(state) => self.strata.iter().position(|s| s.contains(&state)).into_iter().collect(),
            None => {
                let operands = self.arena.nodes[node.index()].op.operands();
                operands.into_iter().flat_map(|x| self.strata_of(x)).collect()
            }
        };
        self.strata_of.insert(node, found.clone());
        found
    }

    /// The state of which this node is the value at the token's start.
    fn state_at(&self, node: NodeId) -> Option<usize> {
        self.token.graph.carries.iter().position(|c| c.input == node)
    }

    /// A token node as rows of the chunk (or without rows where it is the same for every token).
    fn lift(&mut self, node: NodeId) -> Result<NodeId, CompileError> {
        if let Some(&known) = self.lifted.get(&node) {
            return Ok(known);
        }
        self.chunk.b.span = self.arena.nodes[node.index()].span;
        let mut found = None;
        // The last stratum first: to it, what comes from the others is data.
        for at in self.strata_of(node).into_iter().rev() {
            found = match &self.done[at] {
                Done::Scanned(values) => values.get(&node).copied(),
                Done::LowRank { .. } => self.lift_reads(node, at)?,
            };
            if found.is_some() {
                break;
            }
        }
        let found = match (found, self.state_at(node)) {
            (Some(found), _) => found,
            (None, None) => self.copy(node)?,
            (None, Some(state)) => {
                *self.wanted = Some(state);
                return Err(CompileError::Bug {
                    pass: "derive",
                    message: "a whole state is used outside of its stratum".to_owned(),
                    dump: format!("{:?}", self.arena.nodes[node.index()]),
                });
            }
        };
        self.chunk.b.span = None;
        self.lifted.insert(node, found);
        Ok(found)
    }

    /// A token node as a sum of reads of a stratum of low rank, each times rows, if it is one.
    fn lift_reads(&mut self, node: NodeId, at: usize) -> Result<Option<NodeId>, CompileError> {
        let states = self.strata[at].clone();
        let mut analysis = Analysis::new(&mut self.arena, &versions_of(self.token, &states));
        let value = analysis.value(node);
        let reads = std::mem::take(&mut analysis.reads);
        let Value::Affine(terms) = value else { return Ok(None) };
        if terms.iter().any(|term| matches!(term.base, Base::Version(_))) {
            return Ok(None);
        }
        let mut sum = Vec::new();
        for term in terms {
            let mut factors = Vec::new();
            for factor in &term.factors {
                factors.push(self.lift(*factor)?);
            }
            match term.base {
                Base::One => {}
                Base::Read(r) => factors.push(self.read(&reads[r], at)?),
                Base::Version(_) => unreachable!("looked for above"),
            }
            sum.push(self.chunk.b.product(factors));
        }
        let total = self.chunk.b.sum_all(sum);
        let total = total.unwrap_or_else(|| self.chunk.b.constant(0.0));
        let dims = self.arena.dims_of(node).to_vec();
        Ok(Some(self.chunk.b.broadcast(total, &dims)))
    }

    /// `[t, free…]`: a read at its clock.
    fn read(&mut self, read: &ReadTerm, at: usize) -> Result<NodeId, CompileError> {
        let weight = self.lift(read.weight)?;
        let chunk = &mut self.chunk;
        let Done::LowRank { form, states, edits } = &self.done[at] else {
            unreachable!("asked for a stratum of low rank")
        };
        let index = form.states.iter().position(|s| s.state == read.of.state).expect("a member of the stratum");
        let clock = form.states[index].clocks[read.of.version];
        let state = &states[index];
        let weight = chunk.b.broadcast(weight, &state.contracted);
        let mut sum = carry_in::read(chunk, state, weight, clock);
        for edit in edits.iter().filter(|e| e.target == index) {
            let scores = close_intra::scores(chunk, state, weight, edit.u, edit.write, clock);
            let seen = close_intra::apply(chunk, state, scores, edit.x, edit.write, clock);
            sum = chunk.b.plus(sum, seen);
        }
        Ok(sum)
    }

    /// The same operation on lifted operands.
    fn copy(&mut self, node: NodeId) -> Result<NodeId, CompileError> {
        let node = self.arena.nodes[node.index()].clone();
        let mut operands = Vec::new();
        for x in node.op.operands() {
            operands.push(self.lift(x)?);
        }
        self.chunk.b.span = node.span;
        self.chunk.b.rule = "";
        let t = self.chunk.t;
        copy_op(&mut self.chunk.b, &node.op, &node.dims, &operands, Some(t))
    }

    fn low_rank(&mut self, form: LowRank, starts: &[NodeId], ends: &mut [Option<NodeId>]) -> Result<(), CompileError> {
        let mut states = Vec::new();
        for state in &form.states {
            let mut lists = Vec::new();
            for events in [&state.scalar, &state.on_contracted, &state.on_free] {
                let mut gates = Vec::new();
                for event in events {
                    let value = self.lift(event.value)?;
                    self.chunk.b.rule = split_time::RULE.name;
                    gates.push(split_time::gate(&mut self.chunk, value, event.kind));
                }
                lists.push(gates);
            }
            let [scalar, on_contracted, on_free]: [Vec<_>; 3] = lists.try_into().expect("three lists");
            states.push(ChunkState {
                name: self.token.graph.carries[state.state].name.clone(),
                start: starts[state.state],
                contracted: state.contracted.clone(),
                free: state.free.clone(),
                scalar,
                on_contracted,
                on_free,
            });
        }
        let mut open = Vec::new();
        for edit in &form.edits {
            let mut reads = Vec::new();
            for read in &edit.reads {
                reads.push(Read { weight: self.lift(read.weight)?, ..read.clone() });
            }
            let u = self.lift(edit.u)?;
            self.chunk.b.rule = split_time::RULE.name;
            open.push(ut_transform::OpenEdit {
                target: edit.target,
                u: split_time::writer(&mut self.chunk, u),
                reads,
                scale: edit.scale.map(|x| self.lift(x)).transpose()?,
                c: edit.c.map(|x| self.lift(x)).transpose()?,
                write: edit.write,
            });
        }
        let edits = ut_transform::solve(&mut self.chunk, &states, &open)?;
        for (index, state) in states.iter().enumerate() {
            let own: Vec<&ChunkEdit> = edits.iter().filter(|e| e.target == index).collect();
            ends[form.states[index].state] = Some(carry_out::state(&mut self.chunk, state, &own));
        }
        self.done.push(Done::LowRank { form, states, edits });
        Ok(())
    }

    /// These states a row at a time.
    fn scan(
        &mut self,
        states: &[usize],
        starts: &[NodeId],
        ends: &mut [Option<NodeId>],
        keep_states: bool,
    ) -> Result<(), CompileError> {
        let earlier: Vec<usize> = self.strata[..self.done.len()].concat();
        let needed = scan_tokens::split(self.token, &self.arena, states, &earlier, self.kept);
        let mut operands = HashMap::new();
        for &node in &needed.operands {
            operands.insert(node, self.lift(node)?);
        }
        self.chunk.b.rule = scan_tokens::RULE.name;
        let first: Vec<NodeId> = states.iter().map(|&s| starts[s]).collect();
        let results = scan_tokens::scan(
            &mut self.chunk,
            self.token,
            &self.arena,
            states,
            &needed,
            &operands,
            &first,
            keep_states,
        )?;
        for (&state, &end) in states.iter().zip(&results.ends) {
            ends[state] = Some(end);
        }
        self.done.push(Done::Scanned(results.values));
        Ok(())
    }
}

/// An operation of the token graph on other operands; with rows, inputs get them.
pub fn copy_op(
    b: &mut Builder,
    op: &Op,
    dims: &[DimId],
    operands: &[NodeId],
    time: Option<DimId>,
) -> Result<NodeId, CompileError> {
    Ok(match op {
        Op::Input { name, kind, layout } => b.input(name, *kind, layout.clone(), time),
        Op::Const(value) => b.constant(*value),
        Op::Unary(function, _) => b.unary(*function, operands[0]),
        Op::Binary(function, _, _) => b.binary(*function, operands[0], operands[1]),
        Op::Select { op, .. } => b.select(*op, operands[0], operands[1], operands[2], operands[3]),
        Op::Broadcast(_) => b.broadcast(operands[0], dims),
        Op::Sum(_, over) => b.sum(operands[0], over),
        Op::MaxOver(_, dim) => b.max_over(operands[0], *dim),
        Op::Contract(_, _, over) => b.contract(operands[0], operands[1], over),
        Op::Rename(_, from, to) => b.rename(operands[0], *from, *to),
        Op::Index(_, dim, at) => b.index(operands[0], *dim, *at),
        Op::StopGradient(_) => {
            let dims = b.dims_of(operands[0]).to_vec();
            b.add(Op::StopGradient(operands[0]), dims)
        }
        Op::BodyInput(_)
        | Op::Stack(..)
        | Op::Guard(..)
        | Op::Diagonal(..)
        | Op::DiagonalPart(..)
        | Op::Split(..)
        | Op::Merge(..)
        | Op::Segment { .. }
        | Op::SegmentGrad { .. }
        | Op::Boundary { .. }
        | Op::BoundaryGrad { .. }
        | Op::Gated { .. }
        | Op::Solve(_)
        | Op::Inverse(_)
        | Op::Scan(_)
        | Op::ScanResult(..) => {
            return Err(CompileError::Bug {
                pass: "derive",
                message: "an operation of a chunk graph in a token graph".to_owned(),
                dump: format!("{op:?}"),
            });
        }
    })
}

/// Whether a token node is a plain elementwise function.
pub fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Unary(..) | Op::Binary(..) | Op::Broadcast(_) | Op::Select { .. })
}
