//! One kernel: where a thread stands, the states' way to registers and back, and the loop over the tokens.
//!
//! Comes in: the graph of a token and how it is dealt out. Goes out: the text of the entry. Values are
//! [`super::value`]'s, tensors [`super::memory`]'s.

use super::choose::{Choice, choose, steady};
use super::memory::Seen;
use super::spread::{Spread, WARP};
use super::token::refuse;
use crate::error::CompileError;
use crate::graph::ir::{DimId, Graph, InputKind, NodeId, Op};
use crate::lower::tile_to_mlir::functions::Functions;
use crate::lower::tile_to_mlir::writer::{Ty, Val, Writer};
use crate::lower::tile_to_nvvm::Launch;
use crate::lower::tile_to_nvvm::call::{self, Tensor, element};
use crate::lower::tile_to_nvvm::text;
use crate::tile::ir::Arg;
use chunkwise_abi::DType;
use chunkwise_abi::gpu::Grid;
use std::collections::{HashMap, HashSet};

/// Nodes a token may have: every number of each becomes an instruction.
const MOST_NODES: usize = 2000;

/// A kernel being written.
pub struct Scanning<'k> {
    pub graph: &'k Graph,
    pub spread: Spread,
    pub w: Writer,
    pub functions: &'k mut Functions,
    /// Number of the thread in its warp, and of its warp.
    pub lane: Val,
    pub warp: Val,
    /// For each dimension the first position that this thread holds; none where that is 0 in every thread.
    parts: Vec<Option<Val>>,
    /// Whether a register of a dimension holds a position, where some thread's does not.
    valid: HashMap<(DimId, usize), Val>,
    /// Values found so far: by node, then by register.
    pub found: Vec<Vec<Option<Val>>>,
    /// Nodes that are the same for every token.
    steady: Vec<bool>,
    /// Shared memory handed out, in bytes, and how much of it before the first token.
    pub shared_bytes: usize,
    steady_bytes: usize,
}

/// The entry of one kernel.
pub fn lower(
    graph: &Graph,
    args: &[Arg],
    symbol: &str,
    functions: &mut Functions,
) -> Result<(String, Launch), CompileError> {
    super::value::check(graph)?;
    if graph.carries.is_empty() || graph.nodes.len() > MOST_NODES {
        return Err(refuse("a token without states, or of many operations,"));
    }
    let dtype = |name: &Option<String>| {
        name.as_ref().and_then(|name| args.iter().find(|arg| arg.name == *name)).map(|arg| arg.dtype)
    };
    let states = graph.carries.iter().find_map(|carry| dtype(&carry.last)).unwrap_or(DType::F32);
    let Choice { spread, registers, tokens } = choose(graph, states)?;
    let grid = match u32::try_from(spread.blocks).expect("blocks are few") {
        1 => Grid::Item,
        blocks => Grid::Blocks { blocks },
    };
    let mut w = Writer::new(1);
    let called = call::read(&mut w, args, grid);
    let mut scanning = Scanning::new(graph, spread, w, functions);
    let tensors: Tensors<'_> =
        args.iter().zip(&called.tensors).map(|(arg, tensor)| (arg.name.as_str(), (arg, *tensor))).collect();
    scanning.body(&tensors, called.length, tokens)?;
    let (shared_bytes, threads) = (scanning.shared_bytes, WARP * scanning.spread.warps);
    let entry = scanning.w.finish(&call::entry(symbol, args.len()));
    Ok((entry, Launch { threads, registers, resident: 0, shared_bytes, workspace_bytes: 0, grid }))
}

/// Tensors by name.
type Tensors<'t> = HashMap<&'t str, (&'t Arg, Tensor)>;

/// A tensor of the item.
struct Whole {
    tensor: Tensor,
    skip: Option<Val>,
    layout: Vec<DimId>,
    dtype: DType,
}

impl Whole {
    /// All of it, where it has no tokens.
    fn whole(&self) -> Seen<'_> {
        Seen { base: self.tensor.base, skip: self.skip, layout: &self.layout, dtype: self.dtype }
    }

    /// As it lies for a token.
    fn of(&self, w: &mut Writer, token: Val) -> Seen<'_> {
        let moved = w.op("mul", token, self.tensor.stride, Ty::I64);
        let base = text::element(w, self.tensor.base, moved, Ty::I64, element(self.dtype));
        Seen { base, ..self.whole() }
    }
}

impl<'k> Scanning<'k> {
    fn new(graph: &'k Graph, spread: Spread, mut w: Writer, functions: &'k mut Functions) -> Scanning<'k> {
        let thread = text::register(&mut w, "tid.x");
        let (thirty_one, five) = (text::int(&mut w, 31), text::int(&mut w, 5));
        let lane = w.op("and", thread, thirty_one, Ty::I32);
        let warp = w.op("lshr", thread, five, Ty::I32);
        let found = graph.nodes.iter().map(|node| vec![None; spread.registers(&node.dims)]).collect();
        let mut scanning = Scanning {
            graph,
            spread,
            w,
            functions,
            lane,
            warp,
            parts: Vec::new(),
            valid: HashMap::new(),
            found,
            steady: steady(graph),
            shared_bytes: 0,
            steady_bytes: 0,
        };
        for dim in 0..graph.dims.len() {
            let part = scanning.first_position(dim);
            scanning.parts.push(part);
        }
        scanning.mark_valid();
        scanning
    }

    /// The first position of a dimension that this thread holds.
    fn first_position(&mut self, dim: usize) -> Option<Val> {
        let share = self.spread.shares[dim];
        let block = if share.blocks > 1 { Some(text::register(&mut self.w, "ctaid.x")) } else { None };
        let places = [
            (share.lanes > 1).then_some((self.lane, share.lane_step, share.lanes)),
            (share.warps > 1).then_some((self.warp, share.warp_step, share.warps)),
            block.map(|block| (block, 1, share.blocks)),
        ];
        let mut sum: Option<Val> = None;
        for (place, factor) in places.into_iter().zip(share.of_thread()) {
            let Some((number, step, count)) = place else { continue };
            let mut number = number;
            if step > 1 {
                let bits = text::int(&mut self.w, i64::from(step.ilog2()));
                number = self.w.op("lshr", number, bits, Ty::I32);
            }
            let mask = text::int(&mut self.w, i64::try_from(count - 1).expect("a block is small"));
            let here = self.w.op("and", number, mask, Ty::I32);
            let factor = text::int(&mut self.w, i64::try_from(factor).expect("a dimension is small"));
            let term = self.w.op("mul", here, factor, Ty::I32);
            sum = Some(match sum {
                None => term,
                Some(sum) => self.w.op("add", sum, term, Ty::I32),
            });
        }
        sum
    }

    fn mark_valid(&mut self) {
        for at in 0..self.spread.shares.len() {
            let share = self.spread.shares[at];
            // A dimension that no thread shares has no room to spare; and one of no value is of no concern.
            let Some(part) = self.parts[at].filter(|_| share.is_padded()) else { continue };
            let size = text::int(&mut self.w, i64::try_from(share.size).expect("a dimension is small"));
            for register in 0..share.registers() {
                let more = text::int(&mut self.w, i64::try_from(share.of_register(register)).expect("as above"));
                let position = self.w.op("add", part, more, Ty::I32);
                let here = self.w.icmp("slt", position, size, Ty::I32);
                self.valid.insert((DimId(u32::try_from(at).expect("dimensions are few")), register), here);
            }
        }
    }

    /// The first position of a dimension that this thread holds; none where that is 0 in every thread.
    pub fn part(&self, dim: DimId) -> Option<Val> {
        self.parts[dim.index()]
    }

    /// Whether a register of a dimension holds a position; none where every thread's does.
    pub fn valid(&self, dim: DimId, register: usize) -> Option<Val> {
        self.valid.get(&(dim, register)).copied()
    }

    /// Whether this thread is the one that writes what it holds of a tensor; none if every thread is.
    pub fn owner(&mut self, layout: &[DimId]) -> Option<Val> {
        let (mut lanes, mut warps, mut blocks) = (WARP - 1, self.spread.warps - 1, self.spread.blocks > 1);
        for dim in layout {
            let share = self.spread.share(*dim);
            lanes &= !((share.lanes - 1) * share.lane_step);
            warps &= !((share.warps - 1) * share.warp_step);
            blocks &= share.blocks == 1;
        }
        let mut others: Option<Val> = None;
        let block = if blocks { Some(text::register(&mut self.w, "ctaid.x")) } else { None };
        for (number, mask) in
            [(Some(self.lane), lanes), (Some(self.warp), warps), (block, if blocks { i32::MAX as usize } else { 0 })]
        {
            let (Some(number), 1..) = (number, mask) else { continue };
            let mask = text::int(&mut self.w, i64::try_from(mask).expect("a block is small"));
            let part = self.w.op("and", number, mask, Ty::I32);
            others = Some(match others {
                None => part,
                Some(others) => self.w.op("or", others, part, Ty::I32),
            });
        }
        let zero = text::int(&mut self.w, 0);
        others.map(|others| self.w.icmp("eq", others, zero, Ty::I32))
    }

    fn body(&mut self, tensors: &Tensors, length: Val, at_once: usize) -> Result<(), CompileError> {
        let graph = self.graph;
        // The states are under way before anything else is.
        let mut states = Vec::new();
        for carry in &graph.carries {
            let dims = &graph.node(carry.input).dims;
            let values = match &carry.init {
                Some(name) => {
                    let tensor = self.seen(tensors, name, &carry.layout)?;
                    self.load(&tensor.whole(), dims)
                }
                None => vec![self.w.f32(0.0, 0); self.spread.registers(dims)],
            };
            states.extend(values);
        }
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let mut used: HashSet<NodeId> = graph.outputs.iter().map(|(_, node)| *node).collect();
        used.extend(graph.nodes.iter().flat_map(|node| node.op.operands()));
        for (at, node) in graph.nodes.iter().enumerate() {
            let Op::Input { name, kind, layout } = &node.op else { continue };
            let id = NodeId(u32::try_from(at).expect("ids have 32 bits"));
            if *kind == InputKind::Carry || !used.contains(&id) {
                continue;
            }
            let tensor = self.seen(tensors, name, layout)?;
            if *kind == InputKind::Head {
                let values = self.load(&tensor.whole(), &node.dims);
                self.give(id, &values);
            } else {
                inputs.push((id, tensor));
            }
        }
        for (name, node) in &graph.outputs {
            let layout = graph.output_layout(name);
            outputs.push((*node, self.seen(tensors, name, &layout)?));
        }
        self.find_steady();
        self.steady_bytes = self.shared_bytes;

        let mut first = self.w.i64(0);
        if at_once > 1 {
            let mask = self.w.i64(-i64::try_from(at_once).expect("a few tokens"));
            let last = self.w.op("and", length, mask, Ty::I64);
            states = self.turns(&inputs, &outputs, &states, [first, last], at_once);
            first = last;
        }
        let states = self.turns(&inputs, &outputs, &states, [first, length], 1);
        self.keep(tensors, &states)
    }

    /// Goes through tokens, so many at once: what is read for them is under way before the first is computed. Gives the
    /// states after the last.
    fn turns(
        &mut self,
        inputs: &[(NodeId, Whole)],
        outputs: &[(NodeId, Whole)],
        states: &[Val],
        [from, to]: [Val; 2],
        at_once: usize,
    ) -> Vec<Val> {
        let graph = self.graph;
        let outside = self.found.clone();
        let start: Vec<(Val, Ty)> = states.iter().map(|value| (*value, Ty::F32)).collect();
        let step = self.w.i64(i64::try_from(at_once).expect("a few tokens"));
        let turn = self.w.open_loop_carrying(from, to, step, Ty::I64, &start);
        // What was summed before the first token keeps its shared memory; every turn uses the same beyond that.
        let shared_before = std::mem::replace(&mut self.shared_bytes, self.steady_bytes);
        let mut given = Vec::new();
        for n in 0..at_once {
            let more = self.w.i64(i64::try_from(n).expect("a few tokens"));
            let token = if n == 0 { turn.var } else { self.w.op("add", turn.var, more, Ty::I64) };
            let mut here = Vec::new();
            for (id, input) in inputs {
                let seen = input.of(&mut self.w, token);
                here.push((*id, self.load(&seen, &graph.node(*id).dims)));
            }
            given.push((token, here));
        }
        let mut states = turn.values.clone();
        for (token, here) in given {
            self.found.clone_from(&outside);
            let mut left = &states[..];
            for carry in &graph.carries {
                let (own, rest) = left.split_at(self.found[carry.input.index()].len());
                self.give(carry.input, own);
                left = rest;
            }
            for (id, values) in here {
                self.give(id, &values);
            }
            for (id, output) in outputs {
                let values = self.values(*id);
                let seen = output.of(&mut self.w, token);
                self.store(&seen, &graph.node(*id).dims, &values);
            }
            states = graph.carries.iter().flat_map(|carry| self.values(carry.output)).collect();
        }
        if self.shared_bytes > self.steady_bytes {
            // The next turn writes where this one's sums are read.
            text::barrier(&mut self.w);
        }
        self.shared_bytes = self.shared_bytes.max(shared_before);
        self.found = outside;
        self.w.end_carried(&turn, &states)
    }

    /// Says what the values of a node are.
    fn give(&mut self, id: NodeId, values: &[Val]) {
        self.found[id.index()] = values.iter().copied().map(Some).collect();
    }

    /// Writes the states after the last token.
    fn keep(&mut self, tensors: &Tensors, states: &[Val]) -> Result<(), CompileError> {
        let graph = self.graph;
        // Where several threads have read an element of a state, all have done so before one writes it.
        let mut shared = false;
        for carry in &graph.carries {
            shared |= self.owner(&carry.layout).is_some();
        }
        if shared {
            text::barrier(&mut self.w);
        }
        let mut left = states;
        for carry in &graph.carries {
            let dims = &graph.node(carry.input).dims;
            let (here, rest) = left.split_at(self.spread.registers(dims));
            left = rest;
            if let Some(name) = &carry.last {
                let tensor = self.seen(tensors, name, &carry.layout)?;
                self.store(&tensor.whole(), dims, here);
            }
        }
        Ok(())
    }

    /// A tensor, as this thread sees it.
    fn seen(&mut self, tensors: &Tensors, name: &str, layout: &[DimId]) -> Result<Whole, CompileError> {
        let Some((arg, tensor)) = tensors.get(name) else {
            return Err(CompileError::Bug {
                pass: "scan-to-nvvm",
                message: format!("`{name}` is no argument of the kernel"),
                dump: crate::graph::text::print(self.graph),
            });
        };
        Ok(Whole { tensor: *tensor, skip: self.skip(layout), layout: layout.to_vec(), dtype: arg.dtype })
    }

    /// Computes what is the same for every token, before the first.
    fn find_steady(&mut self) {
        let graph = self.graph;
        for (at, node) in graph.nodes.iter().enumerate() {
            if self.steady[at] {
                continue;
            }
            for operand in node.op.operands() {
                if self.steady[operand.index()] {
                    self.values(operand);
                }
            }
        }
    }
}
