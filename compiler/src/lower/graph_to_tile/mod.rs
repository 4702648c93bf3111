//! Graph → tile program: where values live and in what order they are computed, the step that decides speed on the
//! processor. In: a graph. Out: a kernel that computes one head of one sequence. It never asks which mechanism it
//! lowers, and never looks below the tile program.
//!
//! Every value either lies in scratch or is computed where it is read ([`plan`]). Scratch is handed out and taken back
//! while the statements are emitted, so that a step works in as little memory as its values' lifetimes allow. A carry
//! keeps its scratch from step to step and is overwritten in place where its old value is no longer needed.

mod build;
mod contract;
mod decay;
mod elementwise;
mod gated;
mod index;
mod memory;
mod plan;
mod scan;
mod scope;
mod solve;

use build::Builder;
use chunkwise_abi::{Access, DType, Role};
use index::{Env, Region, exactly, number};
use plan::{Plan, Root, Sink};
use scope::{Position, Scope};

use crate::error::CompileError;
use crate::graph::ir::{DimId, Graph, NodeId, Op};
use crate::tile::ir::{Affine, Expr, Kernel, Order, ReduceOp, Stmt, Symbol};

/// Types of a kernel's tensors. States are always float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Per-token inputs and outputs, cotangents and their gradients.
    pub dtype_tokens: DType,
    /// Parameters.
    pub dtype_heads: DType,
    /// Padding of every buffer's rows, 0 for what suits a processor; see [`crate::tile::ir::Buffer::pad`].
    pub pad: usize,
    /// Products take a right operand whose rows are contiguous as it is, instead of a transposed copy.
    pub any_strides: bool,
    /// A buffer serves several values, one after another. Without, every value has its own, and whoever places them
    /// finds out which may share.
    pub reuse: bool,
    /// Many threads share the work: sums over several axes go one axis after another, each for all threads, and inputs
    /// are asked for at the start of a step.
    pub spread: bool,
    /// Values kept for the backward.
    pub dtype_saved: DType,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            dtype_tokens: DType::F32,
            dtype_heads: DType::F32,
            pad: 0,
            any_strides: false,
            reuse: true,
            spread: false,
            dtype_saved: DType::F32,
        }
    }
}

/// Lowers a verified graph.
pub fn lower(graph: &Graph, options: &Options) -> Result<Kernel, CompileError> {
    let mut lowering = Lowering { b: Builder::new(graph, options.pad, options.reuse), options: *options };
    lowering.kernel(graph)?;
    let (args, buffers, vars, n_locals, body) = lowering.b.finish();
    Ok(Kernel { name: graph.name.clone(), args, buffers, vars, n_locals, body })
}

/// A kernel in the making.
struct Lowering<'g> {
    b: Builder<'g>,
    options: Options,
}

/// Emits the element-by-element sink of a given number.
type EmitSink<'e, 'g> = dyn FnMut(&mut Lowering<'g>, &mut Scope, usize) -> Result<(), CompileError> + 'e;

impl<'g> Lowering<'g> {
    fn kernel(&mut self, graph: &'g Graph) -> Result<(), CompileError> {
        let stores = graph.outputs.iter().chain(&graph.saves).map(|(_, x)| (*x, Sink::Store));
        let sinks: Vec<(NodeId, Sink)> = stores.chain(graph.carries.iter().map(|c| (c.output, Sink::Keep))).collect();
        let mut plan = Plan::new(graph, &graph.nodes, &sinks);
        if self.options.spread {
            plan.inputs_first(&graph.nodes);
        }
        let mut scope = Scope::new(graph, &graph.nodes, plan);

        // What does not depend on the sequence, and the first values of the carries.
        for root in scope.plan.order.clone() {
            if let Root::Node(id) = root
                && scope.plan.fixed[id.index()]
            {
                self.node(&mut scope, id)?;
            }
        }
        let mut homes = Vec::new();
        for carry in &graph.carries {
            let dims = graph.node(carry.input).dims.clone();
            let region = self.b.allocate(&carry.name, &dims);
            match &carry.init {
                Some(name) => {
                    let arg = self.argument(name, DType::F32, Role::Sequence, &carry.layout, Access::Read);
                    self.load(arg, None, &carry.layout, &dims, &region, &Env::default());
                }
                None => self.fill_at(&region, &dims, &Env::default(), 0.0),
            }
            scope.regions[carry.input.index()] = Some(region.clone());
            scope.lent[carry.input.index()] = true;
            homes.push((carry.output, region));
        }

        let step = self.b.var("c");
        scope.position = Some(Position { step, tokens: graph.tokens });
        let mut result = Ok(());
        let body = self.inside(|this| {
            result = this.roots(&mut scope, &mut |this, scope, k| {
                let outputs = graph.outputs.len();
                if k < outputs {
                    let (name, id) = &graph.outputs[k];
                    this.output(scope, *id, name, &graph.output_layout(name));
                } else {
                    let (name, id) = &graph.saves[k - outputs];
                    this.keep(scope, *id, name);
                }
                Ok(())
            });
            this.hand_over(&mut scope, &homes);
        });
        result?;
        let steps = Affine { symbols: vec![(Symbol::Chunks(graph.tokens), 1)], ..Affine::default() };
        let (lo, hi) = (exactly(number(0)), exactly(steps));
        let order = if graph.carries.is_empty() { Order::Any } else { Order::reversed(graph.reverse) };
        self.b.emit(Stmt::For { var: step, lo, hi, order, body });

        for (carry, (_, home)) in graph.carries.iter().zip(&homes) {
            if let Some(name) = &carry.last {
                let dims = graph.node(carry.input).dims.clone();
                let arg = self.argument(name, DType::F32, Role::Sequence, &carry.layout, Access::Write);
                self.save(arg, None, &carry.layout, &dims, home, &Env::default());
            }
        }
        Ok(())
    }

    /// Collects what `body` emits.
    fn inside(&mut self, body: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.b.open();
        body(self);
        self.b.close()
    }

    /// Emits everything a scope computes in a step, in the planned order.
    fn roots(&mut self, scope: &mut Scope, sink: &mut EmitSink<'_, 'g>) -> Result<(), CompileError> {
        for n in 0..scope.plan.order.len() {
            let root = scope.plan.order[n];
            match root {
                Root::Node(id) if scope.plan.fixed[id.index()] && scope.regions[id.index()].is_some() => continue,
                Root::Node(id) => {
                    self.node(scope, id)?;
                    scope.release_if_unused(&mut self.b, id);
                }
                Root::Sink(k) => sink(self, scope, k)?,
            }
            for read in scope.plan.reads[n].clone() {
                scope.done(&mut self.b, read);
            }
        }
        Ok(())
    }

    /// Computes a stored value.
    fn node(&mut self, scope: &mut Scope, id: NodeId) -> Result<(), CompileError> {
        match &scope.node(id).op {
            Op::Input { name, kind, layout } => self.input(scope, id, name, *kind, layout),
            Op::BodyInput(_) | Op::ScanResult(..) => {}
            Op::Sum(x, over) => self.reduction(scope, id, *x, over, ReduceOp::Sum),
            Op::MaxOver(x, over) => self.reduction(scope, id, *x, &[*over], ReduceOp::Max),
            Op::Contract(_, _, over) if !over.is_empty() => self.contract(scope, id),
            Op::Stack(parts, slot) => self.stack(scope, id, parts, *slot),
            Op::Merge(x, outer, inner, one) => self.merge(scope, id, *x, *outer, *inner, *one),
            Op::Segment { gates, .. } if !gates.events.is_empty() => self.segment(scope, id),
            Op::SegmentGrad { .. } => self.segment_grad(scope, id),
            Op::Boundary { .. } => self.boundary(scope, id),
            Op::BoundaryGrad { .. } => self.boundary_grad(scope, id),
            Op::Gated { .. } => self.gated(scope, id),
            Op::Solve(_) => self.solve(scope, id),
            Op::Inverse(_) => return Err(self.bug("a tile program solves a system, it does not invert one")),
            Op::Scan(_) => self.scan(scope, id)?,
            Op::Const(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Contract(..)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Guard(..)
            | Op::Diagonal(..)
            | Op::DiagonalPart(..)
            | Op::Split(..)
            | Op::StopGradient(_)
            | Op::Segment { .. } => self.elementwise(scope, id),
        }
        Ok(())
    }

    /// Puts what goes on to the next step where the next step looks for it, as if all at once.
    fn hand_over(&mut self, scope: &mut Scope, moves: &[(NodeId, Region)]) {
        let dims = |scope: &Scope, id: NodeId| -> Vec<DimId> { scope.dims(id).to_vec() };
        let there: Vec<(NodeId, Region)> = moves
            .iter()
            .filter(|(id, home)| {
                let region = scope.region(*id);
                let same = dims(scope, *id).iter().all(|&d| region.step(d) == home.step(d));
                !(same && region.buffer == home.buffer && region.row == home.row && region.col == home.col)
            })
            .cloned()
            .collect();
        let outer = scope.outer.clone();
        // A value that lies where another one is about to go is set aside first.
        let mut from: Vec<Region> = there.iter().map(|(id, _)| scope.region(*id)).collect();
        let mut aside = Vec::new();
        for (n, (id, _)) in there.iter().enumerate() {
            if moves.iter().any(|(_, home)| home.buffer == from[n].buffer) {
                let dims = dims(scope, *id);
                let region = self.b.allocate("aside", &dims);
                let value = from[n].clone();
                self.b.nest(&dims, &outer, &mut |b, env| b.store(region.place(env), Expr::Load(value.place(env))));
                aside.push(region.buffer);
                from[n] = region;
            }
        }
        for ((id, home), value) in there.iter().zip(&from) {
            let dims = dims(scope, *id);
            self.b.nest(&dims, &outer, &mut |b, env| b.store(home.place(env), Expr::Load(value.place(env))));
        }
        aside.into_iter().for_each(|buffer| self.b.release(buffer));
        for (id, _) in moves {
            let behind = scope.behind(*id);
            scope.done(&mut self.b, behind);
        }
    }

    /// A mistake of this stage.
    fn bug(&self, message: &str) -> CompileError {
        CompileError::Bug { pass: "graph_to_tile", message: message.to_string(), dump: format!("{:#?}", self.b.graph) }
    }
}
