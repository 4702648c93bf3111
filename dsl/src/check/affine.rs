//! Whether every state is an affine function of what it depends on in a circle. In: a program whose names and axes
//! are settled; out: an error for each state that is not.
//!
//! First, which old states each new state depends on: that gives the circles. Then, for each circle, how every value
//! of the token depends on the old states in it: not at all, affinely, or in a curved way. Only the new states of the
//! circle itself have to be affine; what leaves it, an output or a state downstream, may be anything.
//!
//! Loops are followed to a fixed point over the whole body at once, so nested loops cost no more than flat ones.

use std::collections::{BTreeSet, HashMap};

use super::functions::{name_of_reduce, name_of_unary};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{Binary, ExprId, ExprKind, LocalId, LoopVarId, Program, Reduce, StateId, Stmt, Unary};
use crate::span::Span;

/// Checks all states.
pub fn check(program: &Program) -> Vec<Diagnostic> {
    let mut errors = Vec::new();
    for circle in circles(program) {
        let start = (0..program.states.len() as u32)
            .map(StateId)
            .map(|state| if circle.contains(&state) { Degree::Affine } else { Degree::Free });
        let end = flow(program, start.collect(), &degree);
        let mut reported: Vec<ExprId> = Vec::new();
        for &state in &circle {
            if let Degree::Curved(culprit) = end.states[state.index()]
                && !reported.contains(&culprit)
            {
                reported.push(culprit);
                errors.push(explain(program, &circle, state, culprit, &end));
            }
        }
    }
    errors
}

/// States that depend on each other, each set once; a state that depends on no old state is in none.
pub fn circles(program: &Program) -> Vec<BTreeSet<StateId>> {
    let count = program.states.len();
    let start = (0..count as u32).map(|state| BTreeSet::from([StateId(state)]));
    let end = flow(program, start.collect(), &dependencies);
    let forward: Vec<Vec<usize>> =
        end.states.iter().map(|set| set.iter().map(|state| state.index()).collect()).collect();
    let mut backward: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (state, reads) in forward.iter().enumerate() {
        for &read in reads {
            backward[read].push(state);
        }
    }
    let mut circles: Vec<BTreeSet<StateId>> = Vec::new();
    let mut placed = vec![false; count];
    for state in 0..count {
        if placed[state] {
            continue;
        }
        let to = reachable(&forward, state);
        let from = reachable(&backward, state);
        let circle: BTreeSet<StateId> =
            (0..count).filter(|&other| to[other] && from[other]).map(|other| StateId(other as u32)).collect();
        for member in &circle {
            placed[member.index()] = true;
        }
        if !circle.is_empty() {
            circles.push(circle);
        }
    }
    circles
}

/// What can be reached from a node in one step or more.
fn reachable(edges: &[Vec<usize>], from: usize) -> Vec<bool> {
    let mut reached = vec![false; edges.len()];
    let mut open = edges[from].clone();
    while let Some(node) = open.pop() {
        if !reached[node] {
            reached[node] = true;
            open.extend(&edges[node]);
        }
    }
    reached
}

/// A fact about values that can be joined where ways meet.
trait Fact: Clone + PartialEq {
    /// What holds of a value that does not depend on any state.
    fn free() -> Self;
    /// What holds if either may hold.
    fn join(&mut self, other: &Self);
}

/// The old states that a value depends on.
impl Fact for BTreeSet<StateId> {
    fn free() -> Self {
        BTreeSet::new()
    }
    fn join(&mut self, other: &Self) {
        self.extend(other);
    }
}

/// How a value depends on the old states of one circle.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Degree {
    /// Not at all.
    Free,
    /// Affinely.
    Affine,
    /// Otherwise, because of this expression.
    Curved(ExprId),
}

impl Fact for Degree {
    fn free() -> Self {
        Degree::Free
    }
    fn join(&mut self, other: &Self) {
        *self = match (*self, *other) {
            (Degree::Curved(culprit), _) | (_, Degree::Curved(culprit)) => Degree::Curved(culprit),
            (Degree::Affine, Degree::Free | Degree::Affine) | (Degree::Free, Degree::Affine) => Degree::Affine,
            (Degree::Free, Degree::Free) => Degree::Free,
        };
    }
}

/// What is known about states and `let`s at one point of the body.
#[derive(Clone, PartialEq)]
struct Env<T> {
    states: Vec<T>,
    locals: Vec<T>,
}

impl<T: Fact> Env<T> {
    fn join(&mut self, other: &Env<T>) {
        for (mine, theirs) in self.states.iter_mut().zip(&other.states) {
            mine.join(theirs);
        }
        for (mine, theirs) in self.locals.iter_mut().zip(&other.locals) {
            mine.join(theirs);
        }
    }
}

type Rule<T> = dyn Fn(&Program, &Env<T>, ExprId) -> T;

/// Follows facts through the body; what holds at its end.
fn flow<T: Fact>(program: &Program, start: Vec<T>, rule: &Rule<T>) -> Env<T> {
    let start = Env { states: start, locals: vec![T::free(); program.locals.len()] };
    let mut heads: HashMap<LoopVarId, Env<T>> = HashMap::new();
    loop {
        let mut end = start.clone();
        let mut changed = false;
        follow(program, &program.body, &mut end, &mut heads, &mut changed, rule);
        if !changed {
            return end;
        }
    }
}

fn follow<T: Fact>(
    program: &Program,
    body: &[Stmt],
    env: &mut Env<T>,
    heads: &mut HashMap<LoopVarId, Env<T>>,
    changed: &mut bool,
    rule: &Rule<T>,
) {
    for stmt in body {
        match stmt {
            Stmt::Let { local, value, .. } => env.locals[local.index()] = rule(program, env, *value),
            Stmt::Update { state, value, .. } => env.states[state.index()] = rule(program, env, *value),
            Stmt::Output { .. } => {}
            Stmt::For { var, body, .. } => {
                if let Some(head) = heads.get(var) {
                    env.join(head);
                }
                let before = env.clone();
                follow(program, body, env, heads, changed, rule);
                // What one turn leaves behind, the next one finds.
                let mut head = before.clone();
                head.join(env);
                *changed |= head != before;
                heads.insert(*var, head);
            }
        }
    }
}

fn dependencies(program: &Program, env: &Env<BTreeSet<StateId>>, id: ExprId) -> BTreeSet<StateId> {
    match &program.expr(id).kind {
        ExprKind::State(state) => env.states[state.index()].clone(),
        ExprKind::Local(local) => env.locals[local.index()].clone(),
        ExprKind::Number(_)
        | ExprKind::AxisSize(_)
        | ExprKind::Const(_)
        | ExprKind::Tensor(_)
        | ExprKind::LoopIndex(_) => BTreeSet::new(),
        ExprKind::Index { base: value, .. }
        | ExprKind::Unary(_, value)
        | ExprKind::Reduce(_, value, _)
        | ExprKind::Rename { value, .. }
        | ExprKind::StopGradient(value) => dependencies(program, env, *value),
        ExprKind::Binary(_, lhs, rhs) | ExprKind::Contract { lhs, rhs, .. } => {
            let mut both = dependencies(program, env, *lhs);
            both.extend(dependencies(program, env, *rhs));
            both
        }
    }
}

fn degree(program: &Program, env: &Env<Degree>, id: ExprId) -> Degree {
    let of = |id: ExprId| degree(program, env, id);
    // A function that keeps only what does not depend on the state.
    let bend = |degree: Degree| match degree {
        Degree::Free => Degree::Free,
        Degree::Affine => Degree::Curved(id),
        Degree::Curved(culprit) => Degree::Curved(culprit),
    };
    let product = |lhs: Degree, rhs: Degree| match (lhs, rhs) {
        (Degree::Curved(culprit), _) | (_, Degree::Curved(culprit)) => Degree::Curved(culprit),
        (Degree::Affine, Degree::Affine) => Degree::Curved(id),
        (Degree::Free, other) | (other, Degree::Free) => other,
    };
    let sum = |mut lhs: Degree, rhs: Degree| {
        lhs.join(&rhs);
        lhs
    };
    match &program.expr(id).kind {
        ExprKind::State(state) => env.states[state.index()],
        ExprKind::Local(local) => env.locals[local.index()],
        ExprKind::Number(_)
        | ExprKind::AxisSize(_)
        | ExprKind::Const(_)
        | ExprKind::Tensor(_)
        | ExprKind::LoopIndex(_) => Degree::Free,
        ExprKind::Index { base: value, .. } | ExprKind::Rename { value, .. } | ExprKind::StopGradient(value) => {
            of(*value)
        }
        ExprKind::Unary(Unary::Neg, value) => of(*value),
        ExprKind::Unary(
            Unary::Exp
            | Unary::Exp2
            | Unary::Log
            | Unary::Sqrt
            | Unary::Abs
            | Unary::Sign
            | Unary::Sigmoid
            | Unary::LogSigmoid
            | Unary::Softplus
            | Unary::Silu
            | Unary::Tanh
            | Unary::Elu
            | Unary::Relu
            | Unary::Gelu
            | Unary::Sin
            | Unary::Cos
            | Unary::Square,
            value,
        ) => bend(of(*value)),
        ExprKind::Reduce(Reduce::Sum | Reduce::Mean, value, _) => of(*value),
        ExprKind::Reduce(Reduce::Max | Reduce::Softmax | Reduce::L2Norm, value, _) => bend(of(*value)),
        ExprKind::Binary(Binary::Add | Binary::Sub, lhs, rhs) => sum(of(*lhs), of(*rhs)),
        ExprKind::Binary(Binary::Mul, lhs, rhs) | ExprKind::Contract { lhs, rhs, .. } => product(of(*lhs), of(*rhs)),
        ExprKind::Binary(Binary::Div, lhs, rhs) => product(of(*lhs), bend(of(*rhs))),
        ExprKind::Binary(Binary::Pow, lhs, rhs) => match (&program.expr(*rhs).kind, of(*lhs)) {
            (ExprKind::Number(one), base) if *one == 1.0 => base,
            (_, base) => sum(bend(base), bend(of(*rhs))),
        },
        ExprKind::Binary(Binary::Min | Binary::Max, lhs, rhs) => sum(bend(of(*lhs)), bend(of(*rhs))),
    }
}

/// The words for one offence.
fn explain(
    program: &Program,
    circle: &BTreeSet<StateId>,
    state: StateId,
    culprit: ExprId,
    end: &Env<Degree>,
) -> Diagnostic {
    let name = program.states[state.index()].name.as_str();
    let expr = program.expr(culprit);
    let depends = |id: ExprId| mentions(program, circle, end, id).unwrap_or_else(|| "the state".to_owned());
    let (label, help) = match &expr.kind {
        ExprKind::Binary(Binary::Mul, lhs, rhs) | ExprKind::Contract { lhs, rhs, .. } => {
            let (left, right) = (depends(*lhs), depends(*rhs));
            let label = if left == right {
                format!("both factors depend on {left}")
            } else {
                format!("the left factor depends on {left}, the right one on {right}")
            };
            (label, MULTIPLY_BY_OTHERS)
        }
        ExprKind::Binary(Binary::Div, _, divisor) => (
            format!("the divisor depends on {}", depends(*divisor)),
            "divide what is read instead: `output o: [V] = (q @ S) / (q @ n)`, with a state `n` of its own",
        ),
        ExprKind::Binary(Binary::Pow, ..) => {
            (format!("a power of something that depends on {}", depends(culprit)), MULTIPLY_BY_OTHERS)
        }
        ExprKind::Binary(Binary::Min | Binary::Max, ..) => (
            format!("a cut-off of something that depends on {}", depends(culprit)),
            "a running maximum that only keeps exponentials in range cannot be written: leave it out, write `exp(i)`, and declare a range for `i`",
        ),
        ExprKind::Unary(function, _) => (
            format!("`{}` of something that depends on {}", name_of_unary(*function), depends(culprit)),
            MOVE_TO_OUTPUT,
        ),
        ExprKind::Reduce(function, ..) => (
            format!("`{}` of something that depends on {}", name_of_reduce(*function), depends(culprit)),
            MOVE_TO_OUTPUT,
        ),
        ExprKind::Number(_)
        | ExprKind::AxisSize(_)
        | ExprKind::Const(_)
        | ExprKind::Tensor(_)
        | ExprKind::State(_)
        | ExprKind::Local(_)
        | ExprKind::LoopIndex(_)
        | ExprKind::Index { .. }
        | ExprKind::Binary(Binary::Add | Binary::Sub, ..)
        | ExprKind::Rename { .. }
        | ExprKind::StopGradient(_) => ("depends on the state in a curved way".to_owned(), MOVE_TO_OUTPUT),
    };
    let old = if circle.len() > 1 { "old states" } else { "old one" };
    let title = format!("the new `{name}` is not affine in the {old}");
    let mut error = Diagnostic::new(Code::NotAffine, expr.span, title, label);
    if let Some(update) = last_update(&program.body, state, None)
        && !(update.start <= expr.span.start && expr.span.end <= update.end)
    {
        error = error.and_at(update, format!("it reaches `{name}` here"));
    }
    if circle.len() > 1 {
        let names: Vec<String> =
            circle.iter().map(|state| format!("`{}`", program.states[state.index()].name)).collect();
        error = error.note(format!("{} depend on each other, so they count as one state", names.join(" and ")));
    }
    error = error.note(
        "a state's new value has to be a factor without the state times the state, plus terms without it: only then can many tokens be taken in one step",
    );
    error.help(help)
}

const MULTIPLY_BY_OTHERS: &str = "multiply the state by values that do not depend on it: inputs, parameters, constants";

const MOVE_TO_OUTPUT: &str = "an output may be any function of what is read: `output o: [V] = tanh(q @ S)`; a gate may be any function of inputs";

/// A state of the circle that an expression depends on, in words.
fn mentions(program: &Program, circle: &BTreeSet<StateId>, end: &Env<Degree>, id: ExprId) -> Option<String> {
    let of = |id: ExprId| mentions(program, circle, end, id);
    match &program.expr(id).kind {
        ExprKind::State(state) if circle.contains(state) => Some(format!("`{}`", program.states[state.index()].name)),
        ExprKind::State(state) if end.states[state.index()] != Degree::Free => {
            Some(format!("`{}`, which depends on the state", program.states[state.index()].name))
        }
        ExprKind::Local(LocalId(local)) if end.locals[*local as usize] != Degree::Free => {
            Some(format!("the state through `{}`", program.locals[*local as usize].name))
        }
        ExprKind::State(_)
        | ExprKind::Local(_)
        | ExprKind::Number(_)
        | ExprKind::AxisSize(_)
        | ExprKind::Const(_)
        | ExprKind::Tensor(_)
        | ExprKind::LoopIndex(_) => None,
        ExprKind::Index { base: value, .. }
        | ExprKind::Unary(_, value)
        | ExprKind::Reduce(_, value, _)
        | ExprKind::Rename { value, .. }
        | ExprKind::StopGradient(value) => of(*value),
        ExprKind::Binary(_, lhs, rhs) | ExprKind::Contract { lhs, rhs, .. } => of(*lhs).or_else(|| of(*rhs)),
    }
}

fn last_update(body: &[Stmt], state: StateId, mut found: Option<Span>) -> Option<Span> {
    for stmt in body {
        match stmt {
            Stmt::Update { state: updated, span, .. } if *updated == state => found = Some(*span),
            Stmt::For { body, .. } => found = last_update(body, state, found),
            Stmt::Update { .. } | Stmt::Let { .. } | Stmt::Output { .. } => {}
        }
    }
    found
}
