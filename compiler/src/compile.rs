//! From an instance of a program to the graphs of a form: the order of the stages above the tile program.
//!
//! In: a program with its sizes, and what is asked for. Out: graphs of one step, forward and backward, with the record
//! of how they were derived. Does no lowering and no IO.

use crate::derive::chunk::BLOCK;
use crate::derive::form::{Form, Inside};
use crate::derive::forms::{self, Options, Plan, Step};
use crate::derive::recognise::recognise;
use crate::derive::recurrence::{Class, Recurrence};
use crate::derive::rule::Derivation;
use crate::derive::rules::{anchor_inside, gate_inside, transpose};
use crate::error::CompileError;
use crate::graph::build::{Builder, reachable};
use crate::graph::ir::{Begin, Carry, DimId, GatedPart, Graph, InputKind, Node, NodeId, Op};
use crate::lower::program_to_graph::{TokenGraph, program_to_graph};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{AxisId, ExprKind, Program};

/// The smallest and largest chunk that can be asked for.
pub const CHUNKS: std::ops::RangeInclusive<usize> = 1..=256;

/// Float32 values one worker may keep for a step before the form is refused.
pub const STEP_LIMIT: usize = 1 << 27;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Which form.
    pub form: Form,
    /// Tokens a chunk; none leaves it to the compiler. Of no effect on the values of a recurrent form.
    pub chunk: Option<usize>,
    /// The longest sequence a parallel form must take.
    pub max_length: usize,
    /// Also the backward.
    pub backward: bool,
    /// How a decay inside a sum is computed within a block.
    pub inside: Inside,
}

/// A form, derived.
#[derive(Clone, Debug)]
pub struct Derived {
    /// Which.
    pub form: Form,
    /// Tokens a step.
    pub chunk: usize,
    /// The longest sequence it takes, if there is a limit.
    pub max_length: Option<usize>,
    /// What one token does, as written.
    pub token: Graph,
    /// The strata it was recognised as.
    pub recurrence: Recurrence,
    /// Outputs and last states from inputs.
    pub forward: Graph,
    /// The same, and the states at the start of every step. Present with a backward.
    pub forward_saving: Option<Graph>,
    /// Gradients from inputs, saved states and cotangents.
    pub backward: Option<Graph>,
    /// How.
    pub derivation: Derivation,
}

/// Derives a form.
pub fn derive(instance: &Instance, request: &Request) -> Result<Derived, CompileError> {
    let token = program_to_graph(instance);
    let mut arena = Builder::resume(token.graph.dims.clone(), token.graph.nodes.clone());
    let mut derivation = Derivation::default();
    let recurrence = recognise(&token, &mut arena, &mut derivation);

    let tokens = match request.form {
        Form::Recurrent => recurrent_rows(&token, request.backward),
        Form::Chunkwise => request.chunk.unwrap_or_else(|| default_chunk(&recurrence)),
        Form::Parallel => parallel_rows(request.max_length),
    };
    if tokens == 0 || (request.form == Form::Chunkwise && !CHUNKS.contains(&tokens)) {
        return Err(CompileError::Limit {
            what: format!("a chunk of {tokens} tokens"),
            instead: format!("use a chunk from {} to {}", CHUNKS.start(), CHUNKS.end()),
            span: None,
        });
    }
    let rows = padded(tokens);
    let memory = rows.saturating_mul(rows);
    if memory.saturating_mul(8) > STEP_LIMIT {
        return Err(CompileError::Limit {
            what: format!(
                "the parallel form of {} tokens needs several matrices of {rows} × {rows} numbers for every head",
                request.max_length
            ),
            instead: "use --form chunkwise, whose memory does not grow with the square of the length".to_owned(),
            span: None,
        });
    }
    let options = |for_backward| Options { rows, recurrent: request.form == Form::Recurrent, for_backward };
    let plan = || Plan { token: &token, arena: arena.clone(), recurrence: recurrence.clone() };
    let name = |direction: &str| format!("{}.{}.{direction}", instance.program.name, request.form.name());

    let step = forms::forward(plan(), options(false), derivation)?;
    let mut derivation = step.chunk.derivation.clone();
    let (mut forward_saving, mut backward) = (None, None);
    if request.backward {
        forward_saving = Some(forward_graph(&token, &step, tokens, name("forward_saving"), true));
        let step = forms::forward(plan(), options(true), Derivation::default())?;
        derivation.record(&transpose::RULE, format!("steps of {tokens} tokens"), None);
        backward = Some(backward_graph(&token, step, tokens, name("backward"))?);
    }
    // The last rule: what it rewrites has no gradient taken through it.
    let mut decays = Vec::new();
    let mut anchor = |graph: Graph| {
        let (graph, found) = anchor_inside::apply(graph, instance.program, request.inside);
        decays.extend(found);
        assemble(graph)
    };
    let forward = anchor(forward_graph(&token, &step, tokens, name("forward"), false));
    let forward_saving = forward_saving.map(&mut anchor);
    let backward = backward.map(&mut anchor);
    for (at, found) in decays.iter().enumerate() {
        if decays[..at].contains(found) {
            continue;
        }
        let (rule, route) = match (found.allowed, request.inside) {
            (true, Inside::Anchored) => (&anchor_inside::RULE, "a plain product"),
            (true, Inside::Pairs) => {
                (&gate_inside::RULE, "pair by pair as asked, though the ranges allow a plain product")
            }
            (false, Inside::Anchored | Inside::Pairs) => (&gate_inside::RULE, "pair by pair"),
        };
        derivation.record(rule, format!("within a block, {route}: {found}"), found.span);
    }
    Ok(Derived {
        form: request.form,
        chunk: tokens,
        max_length: (request.form == Form::Parallel).then_some(tokens),
        token: token.graph,
        recurrence,
        forward,
        forward_saving,
        backward,
        derivation,
    })
}

/// Derives the summary of a span, steps of `chunk` tokens: a graph whose carries are, for each state `S`, `U.S` (from
/// zero), `M.S` (from `init.M.S`, block rows of the identity over the stratum's stacked contracted axes) and, where it
/// decays along kept axes, `D.S` (from `init.D.S`, ones); their last values are `summary.U.S` and so on. Then
/// S_end = (M S) ⊙ D + U. For an elementwise state, `M.S` is from `init.M.S`, ones, along the axes that its factors vary
/// along, and S_end = M ⊙ S + U.
pub fn summarise(instance: &Instance, chunk: Option<usize>) -> Result<Graph, CompileError> {
    let token = program_to_graph(instance);
    let mut arena = Builder::resume(token.graph.dims.clone(), token.graph.nodes.clone());
    let mut derivation = Derivation::default();
    let recurrence = recognise(&token, &mut arena, &mut derivation);
    let tokens = chunk.unwrap_or_else(|| default_chunk(&recurrence));
    let plan = Plan { token: &token, arena, recurrence };
    let summary = forms::summary(plan, padded(tokens), derivation)?;
    let carries = summary
        .carries
        .iter()
        .map(|c| Carry {
            name: c.name.clone(),
            input: c.start,
            output: c.end,
            init: c.from_tensor.then(|| format!("init.{}", c.name)),
            begins: Begin::Zero,
            last: Some(format!("summary.{}", c.name)),
            layout: c.layout.clone(),
        })
        .collect();
    Ok(assemble(Graph {
        name: format!("{}.summary.forward", instance.program.name),
        dims: summary.chunk.b.dims,
        nodes: summary.chunk.b.nodes,
        time: Some(summary.chunk.t),
        tokens,
        reverse: false,
        span: None,
        carries,
        outputs: vec![],
        layouts: vec![],
        saves: vec![],
    }))
}

/// Rows of a step of that many tokens: whole blocks; the rows past its tokens are void.
fn padded(tokens: usize) -> usize {
    if tokens > BLOCK { tokens.next_multiple_of(BLOCK) } else { tokens }
}

/// Takes the steps of a derivation again and compares record and graphs.
pub fn replay(instance: &Instance, request: &Request, derived: &Derived) -> Result<(), CompileError> {
    let again = derive(instance, request)?;
    let same = again.derivation == derived.derivation
        && again.forward == derived.forward
        && again.forward_saving == derived.forward_saving
        && again.backward == derived.backward;
    if same {
        return Ok(());
    }
    Err(CompileError::Bug {
        pass: "derive",
        message: "the same steps led to another result".to_owned(),
        dump: again.derivation.to_string(),
    })
}

/// Tokens a chunk when nobody asks: short where a decay stands inside the sums, longer where it does not.
fn default_chunk(recurrence: &Recurrence) -> usize {
    let mut chunk = 64;
    for stratum in &recurrence.strata {
        match &stratum.class {
            Class::LowRank(form) => {
                let inside = form.states.iter().any(|s| !s.on_contracted.is_empty() || !s.on_free.is_empty());
                let reading = form.edits.iter().any(|e| !e.reads.is_empty());
                chunk = chunk.min(if inside {
                    16
                } else if reading {
                    32
                } else {
                    64
                });
            }
            Class::Elementwise { .. } | Class::General { .. } => chunk = chunk.min(32),
        }
    }
    chunk
}

/// Rows a recurrent form takes at once: their inputs are prepared together, and a backward keeps a state for each.
fn recurrent_rows(token: &TokenGraph, backward: bool) -> usize {
    let elements: usize =
        token.graph.carries.iter().map(|c| token.graph.sizes(&c.layout).iter().product::<usize>()).sum();
    if backward && elements > 1 << 12 { 16 } else { 32 }
}

/// Rows of a parallel form: the length, rounded up so that few lengths are compiled.
fn parallel_rows(length: usize) -> usize {
    let length = length.max(1);
    if length <= BLOCK { BLOCK } else { length.next_multiple_of(64) }
}

/// Makes a graph of nodes, keeping what the results need.
fn assemble(mut graph: Graph) -> Graph {
    let roots: Vec<NodeId> = graph
        .outputs
        .iter()
        .chain(&graph.saves)
        .map(|(_, node)| *node)
        .chain(graph.carries.iter().flat_map(|c| [c.input, c.output]))
        .collect();
    let (nodes, map) = reachable(&graph.nodes, &roots);
    graph.nodes = nodes;
    for (_, node) in graph.outputs.iter_mut().chain(&mut graph.saves) {
        *node = map[node];
    }
    for carry in &mut graph.carries {
        carry.input = map[&carry.input];
        carry.output = map[&carry.output];
    }
    graph
}

fn forward_graph(token: &TokenGraph, step: &Step, tokens: usize, name: String, saving: bool) -> Graph {
    let carries = token
        .graph
        .carries
        .iter()
        .enumerate()
        .map(|(s, carry)| Carry { input: step.starts[s], output: step.ends[s], ..carry.clone() })
        .collect();
    let outputs =
        token.graph.outputs.iter().zip(&step.outputs).map(|((name, _), node)| (name.clone(), *node)).collect();
    let saves = if saving {
        token.graph.carries.iter().zip(&step.starts).map(|(c, s)| (format!("saved.{}", c.name), *s)).collect()
    } else {
        vec![]
    };
    assemble(Graph {
        name,
        dims: step.chunk.b.dims.clone(),
        nodes: step.chunk.b.nodes.clone(),
        time: Some(step.chunk.t),
        tokens,
        reverse: false,
        span: None,
        carries,
        outputs,
        layouts: token.graph.layouts.clone(),
        saves,
    })
}

fn backward_graph(token: &TokenGraph, step: Step, tokens: usize, name: String) -> Result<Graph, CompileError> {
    let Step { mut chunk, outputs, starts, ends, tensors } = step;
    let t = chunk.t;
    chunk.b.rule = transpose::RULE.name;
    chunk.b.span = None;
    let mut seeds = Vec::new();
    for ((name, _), &node) in token.graph.outputs.iter().zip(&outputs) {
        let layout = token.graph.output_layout(name);
        let plain = name.strip_prefix("out.").unwrap_or(name);
        seeds.push((node, chunk.b.input(&format!("grad_out.{plain}"), InputKind::Cotangent, layout, Some(t))));
    }
    let mut end_adjs = Vec::new();
    for (carry, &end) in token.graph.carries.iter().zip(&ends) {
        let input = chunk.b.input(&format!("adj.{}", carry.name), InputKind::Carry, carry.layout.clone(), None);
        end_adjs.push(input);
        seeds.push((end, input));
    }
    let wanted: Vec<NodeId> = starts.iter().copied().chain(tensors.iter().map(|(_, node)| *node)).collect();
    let found = transpose::transpose(&mut chunk.b, &seeds, &wanted)?;
    chunk.b.rule = transpose::RULE.name;
    let zero = chunk.b.constant(0.0);
    let mut carries = Vec::new();
    for ((carry, &start), &input) in token.graph.carries.iter().zip(&starts).zip(&end_adjs) {
        let adj = found.get(&start).copied().unwrap_or(zero);
        carries.push(Carry {
            name: format!("adj.{}", carry.name),
            input,
            output: chunk.b.broadcast(adj, &carry.layout),
            init: Some(format!("grad_final.{}", carry.name)),
            begins: Begin::Zero,
            last: Some(format!("grad_init.{}", carry.name)),
            layout: carry.layout.clone(),
        });
    }
    let mut outputs = Vec::new();
    let mut layouts = Vec::new();
    for (name, node) in &tensors {
        let Op::Input { kind, layout, .. } = chunk.b.nodes[node.index()].op.clone() else {
            unreachable!("tensors are inputs")
        };
        let adj = found.get(node).copied().unwrap_or(zero);
        let dims = chunk.b.dims_of(*node).to_vec();
        let adj = chunk.b.broadcast(adj, &dims);
        if kind == InputKind::Head {
            let input = chunk.b.input(&format!("sum.{name}"), InputKind::Carry, layout.clone(), None);
            carries.push(Carry {
                name: format!("sum.{name}"),
                input,
                output: chunk.b.plus(input, adj),
                init: None,
                begins: Begin::Zero,
                last: Some(format!("grad.{name}")),
                layout,
            });
        } else {
            outputs.push((format!("grad.{name}"), adj));
            layouts.push((format!("grad.{name}"), layout));
        }
    }
    Ok(assemble(Graph {
        name,
        dims: chunk.b.dims,
        nodes: chunk.b.nodes,
        time: Some(t),
        tokens,
        reverse: true,
        span: None,
        carries,
        outputs,
        layouts,
        saves: vec![],
    }))
}

/// Axes along which every position of a form's forward goes its own way: no sum, maximum or index runs over them, and
/// no value but a constant knows their size. Such an axis may be computed in blocks, each by itself.
pub fn separable_axes(program: &Program, derived: &Derived) -> Vec<AxisId> {
    let mut meets: Vec<DimId> = Vec::new();
    let mut visit = |nodes: &[Node]| {
        for node in nodes {
            match &node.op {
                Op::Sum(_, over) | Op::Contract(_, _, over) => meets.extend(over),
                Op::MaxOver(_, dim) | Op::Index(_, dim, _) | Op::Stack(_, dim) => meets.push(*dim),
                Op::Rename(_, from, to) => meets.extend([from, to]),
                Op::Gated { part: GatedPart::Weight, axes, .. } => meets.extend(axes),
                _ => {}
            }
        }
    };
    visit(&derived.forward.nodes);
    for node in &derived.forward.nodes {
        if let Op::Scan(scan) = &node.op {
            visit(&scan.body.nodes);
        }
    }
    // A size may enter a constant, whose value is settled before; anywhere else it is a number of the program.
    let mut in_constants = vec![false; program.exprs.len()];
    for constant in &program.consts {
        in_constants[constant.value.index()] = true;
    }
    for (at, expr) in program.exprs.iter().enumerate().rev() {
        if in_constants[at] {
            match &expr.kind {
                ExprKind::Unary(_, x) => in_constants[x.index()] = true,
                ExprKind::Binary(_, x, y) => {
                    in_constants[x.index()] = true;
                    in_constants[y.index()] = true;
                }
                _ => {}
            }
        }
    }
    let size_matters = |axis: AxisId| {
        let sizes = program.exprs.iter().zip(&in_constants);
        sizes.into_iter().any(|(expr, in_constant)| expr.kind == ExprKind::AxisSize(axis) && !in_constant)
    };
    (0..program.axes.len())
        .map(|at| AxisId(at as u32))
        .filter(|&axis| {
            let name = &program.axes[axis.index()].name;
            let met = meets.iter().any(|dim| derived.forward.dim(*dim).name == *name);
            let of_state = program.states.iter().any(|state| state.axes.contains(&axis));
            of_state && !met && !size_matters(axis)
        })
        .collect()
}

/// Whether a form exists for a recurrence, and why not.
pub fn refuses(recurrence: &Recurrence, form: Form) -> Option<String> {
    let general = recurrence.strata.iter().find_map(|s| match &s.class {
        Class::General { because, .. } => Some(because.clone()),
        Class::LowRank(_) | Class::Elementwise { .. } => None,
    });
    match form {
        Form::Recurrent => None,
        Form::Chunkwise | Form::Parallel => general,
    }
}
