//! Token graph → normal form. Recognised, never guessed: what is not seen to be of the form keeps a reason.

use super::affine::{Analysis, Base, Term, Value, VersionId};
use super::recurrence::{Class, Clock, Edit, Event, LowRank, MatrixState, Read, Recurrence, Stratum};
use super::rule::Derivation;
use super::rules;
use crate::graph::build::Builder;
use crate::graph::ir::{Binary, DimId, GateKind, NodeId, Op, Unary};
use crate::lower::program_to_graph::{TokenGraph, Version};
use chunkwise_dsl::span::Span;
use petgraph::graph::DiGraph;
use std::collections::{BTreeMap, HashSet};

/// Recognises every stratum. New products are added to `arena`, which began as the token graph's.
pub fn recognise(token: &TokenGraph, arena: &mut Builder, derivation: &mut Derivation) -> Recurrence {
    let mut strata: Vec<Stratum> = Vec::new();
    for states in components(token) {
        let class = classify(token, arena, &states);
        strata.push(Stratum { states, class });
    }
    part_products(token, arena, &mut strata);
    let names = |list: &[usize]| -> String {
        list.iter().map(|&s| token.graph.carries[s].name.as_str()).collect::<Vec<_>>().join(", ")
    };
    for Stratum { states, class } in &strata {
        let facts = match class {
            Class::LowRank(form) => format!("{}: {}", names(states), describe(token, arena, form)),
            Class::Elementwise { because } => format!("{}: elementwise, {because}", names(states)),
            Class::General { because, .. } => format!("{}: a token at a time, {because}", names(states)),
        };
        derivation.record(&rules::normal_form::RULE, facts, None);
    }
    Recurrence { strata }
}

/// States that depend on each other, each set after those it depends on.
fn components(token: &TokenGraph) -> Vec<Vec<usize>> {
    let graph = &token.graph;
    let mut needs = DiGraph::<usize, ()>::new();
    let ids: Vec<_> = (0..graph.carries.len()).map(|s| needs.add_node(s)).collect();
    let operands: Vec<Vec<NodeId>> = graph.nodes.iter().map(|n| n.op.operands()).collect();
    for (s, versions) in token.versions.iter().enumerate() {
        // Also what only a value in between needs: an output may read that one.
        let reached: HashSet<NodeId> = versions.iter().flat_map(|v| ancestors(&operands, v.node)).collect();
        for (other, from) in graph.carries.iter().enumerate() {
            if reached.contains(&from.input) {
                needs.add_edge(ids[s], ids[other], ());
            }
        }
    }
    // Tarjan gives a component after everything it points to.
    petgraph::algo::tarjan_scc(&needs)
        .into_iter()
        .map(|set| {
            let mut states: Vec<usize> = set.into_iter().map(|id| needs[id]).collect();
            states.sort_unstable();
            states
        })
        .collect()
}

fn ancestors(operands: &[Vec<NodeId>], from: NodeId) -> HashSet<NodeId> {
    let mut seen = HashSet::new();
    let mut stack = vec![from];
    while let Some(id) = stack.pop() {
        if seen.insert(id) {
            stack.extend(&operands[id.index()]);
        }
    }
    seen
}

/// Why a stratum is not of low rank.
struct Reason {
    because: String,
    span: Option<Span>,
}

fn reason<T>(because: impl Into<String>, span: Option<Span>) -> Result<T, Reason> {
    Err(Reason { because: because.into(), span })
}

/// The versions of these states, as the analysis wants them.
pub fn versions_of(token: &TokenGraph, states: &[usize]) -> Vec<(VersionId, NodeId)> {
    let mut list = Vec::new();
    for &state in states {
        for (version, v) in token.versions[state].iter().enumerate() {
            list.push((VersionId { state, version }, v.node));
        }
    }
    list
}

fn classify(token: &TokenGraph, arena: &mut Builder, states: &[usize]) -> Class {
    let reason = match low_rank(token, arena, states) {
        Ok(form) => return Class::LowRank(form),
        Err(reason) => reason,
    };
    if sums_come_back(token, arena, states) {
        Class::General { because: reason.because, span: reason.span }
    } else {
        Class::Elementwise { because: reason.because }
    }
}

/// Two states multiplied with each other and summed, `p @ n`, look like a read from either side, with the whole of the
/// other as its weight. One of the two is gone through a token at a time instead, preferably one that can be in chunks.
fn part_products(token: &TokenGraph, arena: &mut Builder, strata: &mut [Stratum]) {
    for reader in 0..strata.len() {
        for other in 0..strata.len() {
            let low_rank = |at: usize| matches!(strata[at].class, Class::LowRank(_));
            if reader == other || !low_rank(reader) || !low_rank(other) {
                continue;
            }
            let (states, others) = (&strata[reader].states, &strata[other].states);
            if let Err(Reason { because, span }) = weights_use_only_reads(token, arena, states, others) {
                let sequential = if sums_come_back(token, arena, others) { reader } else { other };
                strata[sequential].class = if sums_come_back(token, arena, &strata[sequential].states) {
                    Class::General { because, span }
                } else {
                    Class::Elementwise { because }
                };
            }
        }
    }
}

/// Checks that what reads some states needs nothing of the other ones but reads.
fn weights_use_only_reads(
    token: &TokenGraph,
    arena: &mut Builder,
    states: &[usize],
    others: &[usize],
) -> Result<(), Reason> {
    let outside: Vec<NodeId> = nodes_outside(token, states).collect();
    let mut analysis = Analysis::new(arena, &versions_of(token, states));
    let mut seen = HashSet::new();
    for node in outside {
        uses_only_reads(token, &mut analysis, node, &mut seen)?;
    }
    let weights: Vec<NodeId> = analysis.reads.iter().map(|read| read.weight).collect();
    let mut analysis = Analysis::new(arena, &versions_of(token, others));
    let mut seen = HashSet::new();
    weights.into_iter().try_for_each(|weight| uses_only_reads(token, &mut analysis, weight, &mut seen))
}

/// Outputs, and all values of the other states.
fn nodes_outside<'a>(token: &'a TokenGraph, states: &'a [usize]) -> impl Iterator<Item = NodeId> + 'a {
    let outputs = token.graph.outputs.iter().map(|(_, node)| *node);
    let others = (0..token.graph.carries.len()).filter(|s| !states.contains(s));
    outputs.chain(others.flat_map(|s| token.versions[s].iter().map(|v| v.node)))
}

/// Whether a new value of these states goes through a sum or maximum over something that depends on them.
fn sums_come_back(token: &TokenGraph, arena: &mut Builder, states: &[usize]) -> bool {
    let operands: Vec<Vec<NodeId>> = arena.nodes.iter().map(|n| n.op.operands()).collect();
    let mut analysis = Analysis::new(arena, &versions_of(token, states));
    states.iter().any(|&s| {
        let last = token.versions[s].last().expect("a state has its first version").node;
        ancestors(&operands, last).into_iter().any(|id| {
            let op = analysis.builder.nodes[id.index()].op.clone();
            match op {
                Op::Contract(..) | Op::Sum(..) | Op::MaxOver(..) | Op::Rename(..) | Op::Index(..) => {
                    analysis.depends(id)
                }
                _ => false,
            }
        })
    })
}

fn low_rank(token: &TokenGraph, arena: &mut Builder, states: &[usize]) -> Result<LowRank, Reason> {
    let all_versions = versions_of(token, states);
    let mut analysis = Analysis::new(arena, &all_versions);

    // Definitions of every version, and of everything outside that uses the states.
    let mut definitions: BTreeMap<VersionId, Vec<Term>> = BTreeMap::new();
    for &(id, node) in &all_versions {
        if id.version > 0 && node != token.versions[id.state][id.version - 1].node {
            definitions.insert(id, definition(token, &mut analysis, id, node)?);
        }
    }
    let mut seen = HashSet::new();
    for node in nodes_outside(token, states).collect::<Vec<_>>() {
        uses_only_reads(token, &mut analysis, node, &mut seen)?;
    }

    // What is coupled as a whole has no other form, however it is read.
    for (id, terms) in &definitions {
        let whole = terms.iter().find_map(|term| match term.base {
            Base::Version(of) => (of.state != id.state).then_some(of.state),
            Base::One | Base::Read(_) => None,
        });
        if let Some(other) = whole {
            let (name, other) = (&token.graph.carries[id.state].name, &token.graph.carries[other].name);
            return reason(
                format!("{name} takes in the whole of {other}: a coupling of full rank"),
                analysis.builder.nodes[token.versions[id.state][id.version].node.index()].span,
            );
        }
    }

    // Every read of a state sums over the same axes.
    let mut contracted: BTreeMap<usize, Vec<DimId>> = BTreeMap::new();
    for read in &analysis.reads {
        let known = contracted.entry(read.of.state).or_insert_with(|| read.over.clone());
        if *known != read.over {
            return reason(
                format!("{} is read over different axes", token.graph.carries[read.of.state].name),
                analysis.builder.nodes[read.weight.index()].span,
            );
        }
    }
    let mut forms = Vec::new();
    for &state in states {
        let name = &token.graph.carries[state].name;
        let Some(contracted) = contracted.get(&state) else {
            return reason(format!("no axis of {name} is summed over when it is read"), None);
        };
        let free = analysis.dims_of_state(state).iter().copied().filter(|d| !contracted.contains(d)).collect();
        forms.push(MatrixState {
            state,
            contracted: contracted.clone(),
            free,
            scalar: vec![],
            on_contracted: vec![],
            on_free: vec![],
            clocks: vec![],
        });
    }

    // Decays, and with them the clocks, before the edits that refer to them.
    for form in &mut forms {
        let versions = &token.versions[form.state];
        for (version, v) in versions.iter().enumerate() {
            let id = VersionId { state: form.state, version };
            if let Some(terms) = definitions.get(&id) {
                decay(token, &mut analysis, form, id, terms)?;
            }
            form.clocks.push(Clock {
                order: v.order,
                scalar: form.scalar.len(),
                contracted: form.on_contracted.len(),
                free: form.on_free.len(),
            });
        }
    }
    let mut edits = Vec::new();
    for (id, terms) in &definitions {
        collect_edits(token, &mut analysis, &forms, *id, terms, &mut edits)?;
    }
    edits.sort_by_key(|edit: &Edit| edit.write.order);
    Ok(LowRank { states: forms, edits })
}

/// The terms of a version's definition.
fn definition(
    token: &TokenGraph,
    analysis: &mut Analysis<'_>,
    id: VersionId,
    node: NodeId,
) -> Result<Vec<Term>, Reason> {
    // A version that is another state's value is a coupling, not a definition of its own.
    let value = match analysis.value(node) {
        Value::Affine(terms) if terms.len() == 1 && terms[0].base != Base::Version(id) => Value::Affine(terms),
        _ => analysis.definition(node),
    };
    match value {
        Value::Affine(terms) => Ok(terms),
        Value::Free => {
            Ok(analysis.products(node).into_iter().map(|factors| Term { factors, base: Base::One }).collect())
        }
        Value::Opaque => reason(
            format!(
                "the new value of {} is not a decay of it plus edits of low rank",
                token.graph.carries[id.state].name
            ),
            analysis.builder.nodes[node.index()].span,
        ),
    }
}

/// Checks that a node outside the stratum needs nothing of the states but reads.
fn uses_only_reads(
    token: &TokenGraph,
    analysis: &mut Analysis<'_>,
    node: NodeId,
    seen: &mut HashSet<NodeId>,
) -> Result<(), Reason> {
    if !analysis.depends(node) || !seen.insert(node) {
        return Ok(());
    }
    match analysis.value(node) {
        Value::Free => Ok(()),
        Value::Affine(terms) => {
            for term in &terms {
                if let Base::Version(of) = term.base {
                    let name = &token.graph.carries[of.state].name;
                    return reason(
                        format!("the whole of {name} is used, not only sums over it"),
                        analysis.builder.nodes[node.index()].span,
                    );
                }
            }
            Ok(())
        }
        Value::Opaque => {
            for operand in analysis.builder.nodes[node.index()].op.operands() {
                uses_only_reads(token, analysis, operand, seen)?;
            }
            Ok(())
        }
    }
}

/// Takes the elementwise terms of a version's definition as its decay.
fn decay(
    token: &TokenGraph,
    analysis: &mut Analysis<'_>,
    form: &mut MatrixState,
    id: VersionId,
    terms: &[Term],
) -> Result<(), Reason> {
    let name = &token.graph.carries[id.state].name;
    let span = analysis.builder.nodes[token.versions[id.state][id.version].node.index()].span;
    let before = token.versions[id.state][id.version - 1].node;
    let mut coefficients = Vec::new();
    for term in terms {
        let Base::Version(of) = term.base else { continue };
        if token.versions[of.state][of.version].node != before {
            return reason(format!("{name} goes back to a value it had before an update"), span);
        }
        coefficients.push(term.factors.clone());
    }
    let factors = match coefficients.len() {
        0 => vec![analysis.builder.constant(0.0)],
        1 => coefficients.remove(0),
        _ => {
            // What all have in common stays a factor of its own: it may lie along other axes than the rest.
            let mut common = Vec::new();
            for factor in coefficients[0].clone() {
                if coefficients.iter().all(|factors| factors.contains(&factor)) {
                    for factors in &mut coefficients {
                        let at = factors.iter().position(|it| *it == factor).expect("it was seen there");
                        factors.remove(at);
                    }
                    common.push(factor);
                }
            }
            let products: Vec<NodeId> =
                coefficients.into_iter().map(|factors| analysis.builder.product(factors)).collect();
            common.push(analysis.builder.sum_all(products).expect("there are several"));
            common
        }
    };
    let mut split = SplitDecay::default();
    for factor in factors {
        split.factor(analysis.builder, form, factor, name, span)?;
    }
    split.finish(analysis.builder, form);
    Ok(())
}

/// The parts of one decay: logarithms and factors, by where they vary.
#[derive(Default)]
struct SplitDecay {
    logs: [Vec<NodeId>; 3],
    factors: [Vec<NodeId>; 3],
}

impl SplitDecay {
    fn place(builder: &Builder, form: &MatrixState, node: NodeId) -> Option<usize> {
        let dims = builder.dims_of(node);
        if dims.is_empty() {
            Some(0)
        } else if dims.iter().all(|d| form.contracted.contains(d)) {
            Some(1)
        } else if dims.iter().all(|d| form.free.contains(d)) {
            Some(2)
        } else {
            None
        }
    }

    fn factor(
        &mut self,
        builder: &mut Builder,
        form: &MatrixState,
        factor: NodeId,
        name: &str,
        span: Option<Span>,
    ) -> Result<(), Reason> {
        if builder.as_constant(factor) == Some(1.0) {
            return Ok(());
        }
        let logarithm = match builder.nodes[factor.index()].op.clone() {
            Op::Unary(Unary::Exp, x) => Some(x),
            Op::Unary(Unary::Sigmoid, x) => Some(builder.unary(Unary::LogSigmoid, x)),
            Op::Broadcast(x) => return self.factor(builder, form, x, name, span),
            Op::Const(value) if value > 0.0 => Some(builder.constant(value.ln())),
            _ => None,
        };
        match logarithm {
            Some(log) => {
                for part in addends(builder, form, log) {
                    let Some(place) = Self::place(builder, form, part) else {
                        return reason(format!("the decay of {name} varies along all its axes at once"), span);
                    };
                    self.logs[place].push(part);
                }
            }
            None => {
                let Some(place) = Self::place(builder, form, factor) else {
                    return reason(format!("the decay of {name} varies along all its axes at once"), span);
                };
                self.factors[place].push(factor);
            }
        }
        Ok(())
    }

    fn finish(self, builder: &mut Builder, form: &mut MatrixState) {
        let lists = [&mut form.scalar, &mut form.on_contracted, &mut form.on_free];
        for ((list, logs), factors) in lists.into_iter().zip(self.logs).zip(self.factors) {
            if let Some(value) = builder.sum_all(logs) {
                list.push(Event { value, kind: GateKind::Log });
            }
            if !factors.is_empty() {
                let value = builder.product(factors);
                list.push(Event { value, kind: GateKind::Factor });
            }
        }
    }
}

/// A logarithm as a sum of parts that vary along one kind of axis each, as far as it is written as one.
fn addends(builder: &mut Builder, form: &MatrixState, log: NodeId) -> Vec<NodeId> {
    if SplitDecay::place(builder, form, log).is_some() {
        return vec![log];
    }
    match builder.nodes[log.index()].op.clone() {
        Op::Broadcast(x) => addends(builder, form, x),
        Op::Unary(Unary::Neg, x) => addends(builder, form, x).into_iter().map(|part| builder.neg(part)).collect(),
        Op::Binary(Binary::Add, x, y) => {
            let mut parts = addends(builder, form, x);
            parts.extend(addends(builder, form, y));
            parts
        }
        Op::Binary(Binary::Sub, x, y) => {
            let mut parts = addends(builder, form, x);
            let minus: Vec<NodeId> = addends(builder, form, y).into_iter().map(|p| builder.neg(p)).collect();
            parts.extend(minus);
            parts
        }
        _ => vec![log],
    }
}

/// Takes the other terms of a version's definition as edits.
fn collect_edits(
    token: &TokenGraph,
    analysis: &mut Analysis<'_>,
    forms: &[MatrixState],
    id: VersionId,
    terms: &[Term],
    edits: &mut Vec<Edit>,
) -> Result<(), Reason> {
    let target = forms.iter().position(|f| f.state == id.state).expect("a member of the stratum");
    let form = &forms[target];
    let name = &token.graph.carries[id.state].name;
    let span = analysis.builder.nodes[token.versions[id.state][id.version].node.index()].span;
    let first = edits.len();
    let write = form.clocks[id.version];
    for term in terms {
        if let Base::Version(_) = term.base {
            continue;
        }
        let builder = &mut *analysis.builder;
        let (mut along_u, mut along_v, mut scalars) = (Vec::new(), Vec::new(), Vec::new());
        for &factor in &term.factors {
            let dims = builder.dims_of(factor);
            let touches = |list: &[DimId]| dims.iter().any(|d| list.contains(d));
            match (touches(&form.contracted), touches(&form.free)) {
                (true, true) => {
                    return reason(format!("an edit of {name} is a full matrix, not a product of two vectors"), span);
                }
                (true, false) => along_u.push(factor),
                (false, true) => along_v.push(factor),
                (false, false) => scalars.push(factor),
            }
        }
        along_u.sort_unstable();
        along_v.sort_unstable();
        scalars.sort_unstable();
        let u = builder.product(along_u);
        let u = builder.broadcast(u, &form.contracted);
        match term.base {
            Base::Version(_) => {}
            Base::One => {
                let c = builder.product(scalars.into_iter().chain(along_v));
                match edits[first..].iter_mut().find(|e| e.u == u) {
                    Some(edit) => {
                        edit.c = Some(match edit.c {
                            Some(already) => builder.plus(already, c),
                            None => c,
                        });
                    }
                    None => edits.push(Edit { target, u, reads: vec![], scale: None, c: Some(c), write }),
                }
            }
            Base::Read(at) => {
                let read = analysis.reads[at].clone();
                let source = forms.iter().position(|f| f.state == read.of.state).expect("a member of the stratum");
                if forms[source].free != form.free {
                    return reason(format!("{name} takes in a read with other axes than its own"), span);
                }
                let builder = &mut *analysis.builder;
                let weight = builder.product(scalars.into_iter().chain([read.weight]));
                let weight = builder.broadcast(weight, &forms[source].contracted);
                let scale = (!along_v.is_empty()).then(|| builder.product(along_v));
                let read = Read { state: source, weight, clock: forms[source].clocks[read.of.version] };
                let same = |e: &&mut Edit| e.u == u && (e.scale == scale || e.reads.is_empty());
                match edits[first..].iter_mut().find(same) {
                    Some(edit) => {
                        edit.scale = scale;
                        // Two reads at one moment are one read with the sum of the readers.
                        match edit.reads.iter_mut().find(|r| r.state == read.state && r.clock == read.clock) {
                            Some(other) => other.weight = builder.plus(other.weight, read.weight),
                            None => edit.reads.push(read),
                        }
                    }
                    None => edits.push(Edit { target, u, reads: vec![read], scale, c: None, write }),
                }
            }
        }
    }
    Ok(())
}

/// A version of a state that begins at `order`.
pub fn version_at(versions: &[Version], order: usize) -> usize {
    versions.iter().rposition(|v| v.order <= order).unwrap_or(0)
}

fn describe(token: &TokenGraph, arena: &Builder, form: &LowRank) -> String {
    let axes = |dims: &[DimId]| -> String {
        dims.iter().map(|d| arena.dims[d.index()].name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let mut parts = Vec::new();
    for state in &form.states {
        let name = &token.graph.carries[state.state].name;
        let mut decays = Vec::new();
        if !state.scalar.is_empty() {
            decays.push("scalar".to_owned());
        }
        if !state.on_contracted.is_empty() {
            decays.push(format!("on {}", axes(&state.contracted)));
        }
        if !state.on_free.is_empty() {
            decays.push(format!("on {}", axes(&state.free)));
        }
        let decays = if decays.is_empty() { "none".to_owned() } else { decays.join(" and ") };
        parts.push(format!("{name} is [{}] × [{}], decay {decays}", axes(&state.contracted), axes(&state.free)));
    }
    let reading = form.edits.iter().filter(|e| !e.reads.is_empty()).count();
    parts.push(format!("{} edits a token, {reading} of them read the state", form.edits.len()));
    parts.join("; ")
}
