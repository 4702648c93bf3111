//! How the positions of a token's values are dealt out to threads.
//!
//! Comes in: the graph of a token, and the type its states have in memory. Goes out: a [`Spread`], or a refusal where
//! the states do not fit the registers of a block. It looks at sizes, never at data, the batch or the length.
//!
//! Ways to deal out are few, so all are weighed: states should be read in long runs, with little room to spare; sums
//! should stay within warps; a thread should hold enough to be worth its start, and little enough that many run at once.

use super::spread::{Share, Spread, WARP};
use super::token::refuse;
use crate::error::CompileError;
use crate::graph::ir::{DimId, Graph, InputKind, NodeId, Op};
use chunkwise_abi::DType;

/// Bytes a thread moves at once.
pub const ACCESS: usize = 16;
/// Values a thread may keep from token to token or for a token, of the 255 registers it can have.
const MOST_VALUES: usize = 168;
/// Registers beside values: addresses, sums under way.
const OTHER_REGISTERS: usize = 48;
/// Values that leave a thread content with [`FEW_REGISTERS`].
const FEW_VALUES: usize = 117;
/// Registers a thread is held to where that does: sixteen warps run at once.
const FEW_REGISTERS: usize = 128;
/// Warps of a block that is told how many registers its threads may take.
const LARGE: usize = 8;
/// Registers of a multiprocessor.
const ALL_REGISTERS: usize = 1 << 16;
/// Bytes of states that should be under way on a multiprocessor at once.
const UNDER_WAY: usize = 1 << 17;
/// Warps a block may have.
const MOST_WARPS: usize = 16;
/// Blocks an item may have.
const MOST_BLOCKS: usize = 1 << 12;
/// Tokens whose tensors are read together, at most.
const MOST_TOKENS: usize = 8;
/// Dimensions dealt out; the others stand whole in every thread.
const DEALT: usize = 3;

/// What decides how a token is dealt out.
struct Facts {
    /// Dimensions of each state, in their order in memory.
    states: Vec<Vec<DimId>>,
    /// Dimensions of each tensor of a token.
    tokens: Vec<Vec<DimId>>,
    /// Dimensions of each tensor of a head.
    heads: Vec<Vec<DimId>>,
    /// Sums: dimensions of the result, and those summed over.
    sums: Vec<(Vec<DimId>, Vec<DimId>)>,
    /// Dimensions that a thread must hold whole.
    whole: Vec<DimId>,
    /// Neighbouring elements of a state that are moved at once.
    run: usize,
    sizes: Vec<usize>,
}

/// How a token runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How its values are dealt out.
    pub spread: Spread,
    /// Registers a thread is held to, if it is.
    pub registers: Option<usize>,
    /// Tokens whose tensors are read together, a power of two.
    pub tokens: usize,
}

/// Deals a token out.
pub fn choose(graph: &Graph, states: DType) -> Result<Choice, CompileError> {
    let facts = facts(graph, states);
    let mut dealt: Vec<DimId> =
        facts.states.iter().flatten().copied().filter(|dim| !facts.whole.contains(dim)).collect();
    dealt.sort_unstable();
    dealt.dedup();
    dealt.sort_by_key(|dim| (std::cmp::Reverse(facts.sizes[dim.index()]), *dim));
    dealt.truncate(DEALT);
    // Neighbouring lanes hold neighbours in the memory of the largest state.
    let size = |layout: &Vec<DimId>| layout.iter().map(|dim| facts.sizes[dim.index()]).product::<usize>();
    let largest = facts.states.iter().rev().max_by_key(|layout| size(layout)).cloned().unwrap_or_default();
    dealt.sort_by_key(|dim| std::cmp::Reverse(largest.iter().position(|other| other == dim)));
    let blocked =
        dealt.iter().copied().filter(|dim| facts.goes_its_own_way(*dim)).max_by_key(|dim| facts.sizes[dim.index()]);
    let mut best: Option<(f64, Spread)> = None;
    let mut tried =
        Trial { facts: &facts, dealt: &dealt, blocked, innermost: largest.last().copied(), best: &mut best };
    tried.deal(&mut Vec::new(), WARP, MOST_WARPS);
    match best {
        Some((_, spread)) => {
            let [state, tokens, heads] = facts.values(&spread);
            // The assembler finds the number that suits small blocks by itself; of large ones only one would run.
            let few = spread.warps >= LARGE && state + tokens + heads <= FEW_VALUES;
            let registers = few.then_some(FEW_REGISTERS);
            let at_once = FEW_VALUES.saturating_sub(state + heads) / tokens.max(1);
            let tokens = 1 << at_once.clamp(1, MOST_TOKENS).ilog2();
            Ok(Choice { spread, registers, tokens })
        }
        None => Err(refuse("a token whose values do not fit the registers of a block of threads")),
    }
}

fn facts(graph: &Graph, states: DType) -> Facts {
    let mut facts = Facts {
        states: graph.carries.iter().map(|carry| carry.layout.clone()).collect(),
        tokens: Vec::new(),
        heads: Vec::new(),
        sums: Vec::new(),
        whole: Vec::new(),
        run: ACCESS / states.bytes(),
        sizes: graph.dims.iter().map(|dim| dim.size).collect(),
    };
    for node in &graph.nodes {
        match &node.op {
            Op::Input { kind: InputKind::Token, .. } => facts.tokens.push(node.dims.clone()),
            Op::Input { kind: InputKind::Head, .. } => facts.heads.push(node.dims.clone()),
            Op::Sum(_, over) | Op::Contract(_, _, over) => facts.sums.push((node.dims.clone(), over.clone())),
            Op::MaxOver(_, dim) => facts.sums.push((node.dims.clone(), vec![*dim])),
            Op::Index(_, dim, _) | Op::Stack(_, dim) => facts.whole.push(*dim),
            Op::Rename(_, from, to) => facts.whole.extend([*from, *to]),
            // The rest stays within a thread; what looks at several tokens was refused.
            Op::Input { kind: InputKind::Carry | InputKind::Cotangent | InputKind::Saved, .. }
            | Op::BodyInput(_)
            | Op::Const(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::StopGradient(_)
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
            | Op::ScanResult(..) => {}
        }
    }
    facts
}

impl Facts {
    /// Whether the positions along a dimension have nothing to do with each other, and every state has it.
    fn goes_its_own_way(&self, dim: DimId) -> bool {
        self.states.iter().all(|layout| layout.contains(&dim)) && !self.sums.iter().any(|(_, over)| over.contains(&dim))
    }
}

/// What one dimension is dealt out to.
#[derive(Clone, Copy)]
struct Deal {
    lanes: usize,
    warps: usize,
    blocks: usize,
}

struct Trial<'t> {
    facts: &'t Facts,
    dealt: &'t [DimId],
    /// The dimension that may be shared by blocks.
    blocked: Option<DimId>,
    innermost: Option<DimId>,
    best: &'t mut Option<(f64, Spread)>,
}

impl Trial<'_> {
    /// Tries everything for the dimensions that are left.
    fn deal(&mut self, deals: &mut Vec<Deal>, lanes_left: usize, warps_left: usize) {
        let Some(&dim) = self.dealt.get(deals.len()) else {
            let spread = self.spread(deals);
            if let Some(cost) = self.facts.cost(&spread)
                && self.best.as_ref().is_none_or(|(least, _)| cost < *least)
            {
                *self.best = Some((cost, spread));
            }
            return;
        };
        let size = self.facts.sizes[dim.index()];
        let powers = |most: usize| (0..).map(|n| 1usize << n).take_while(move |n| *n <= most);
        let most_blocks = if self.blocked == Some(dim) { MOST_BLOCKS } else { 1 };
        for lanes in powers(lanes_left) {
            for warps in powers(warps_left) {
                for blocks in powers(most_blocks) {
                    let parts = lanes * warps * blocks;
                    if parts > 1 && parts >= 2 * size {
                        break;
                    }
                    deals.push(Deal { lanes, warps, blocks });
                    self.deal(deals, lanes_left / lanes, warps_left / warps);
                    deals.pop();
                }
            }
        }
    }

    fn spread(&self, deals: &[Deal]) -> Spread {
        let facts = self.facts;
        let mut shares: Vec<Share> = facts.sizes.iter().map(|size| Share::whole(*size)).collect();
        let (mut lane_step, mut warp_step, mut blocks) = (1, 1, 1);
        for (dim, deal) in self.dealt.iter().zip(deals) {
            let size = facts.sizes[dim.index()];
            let parts = deal.lanes * deal.warps * deal.blocks;
            // What is moved at once is whole: it is there for all of its positions or for none.
            let run = if self.innermost == Some(*dim) { facts.run } else { 4 };
            let run =
                (0..).map(|n| 1usize << n).take_while(|n| *n <= run && size.is_multiple_of(*n)).last().unwrap_or(1);
            let registers = size.div_ceil(parts).next_multiple_of(run);
            let inner = if self.innermost == Some(*dim) { run } else { registers };
            shares[dim.index()] = Share {
                size,
                inner,
                lanes: deal.lanes,
                outer: registers / inner,
                warps: deal.warps,
                blocks: deal.blocks,
                lane_step,
                warp_step,
            };
            lane_step *= deal.lanes;
            warp_step *= deal.warps;
            blocks *= deal.blocks;
        }
        Spread { shares, warps: warp_step, blocks }
    }
}

impl Facts {
    /// Registers that states take, tensors of a token, and tensors of a head.
    fn values(&self, spread: &Spread) -> [usize; 3] {
        [&self.states, &self.tokens, &self.heads].map(|list| list.iter().map(|dims| spread.registers(dims)).sum())
    }

    /// What a way to deal out costs, in parts of the time that the states' way through memory takes; none if it cannot
    /// be had.
    fn cost(&self, spread: &Spread) -> Option<f64> {
        let [state, tokens, heads] = self.values(spread);
        let given = tokens + heads;
        let values = state + given;
        if values > MOST_VALUES || (values + OTHER_REGISTERS) * WARP * spread.warps > ALL_REGISTERS {
            return None;
        }
        let per_state = 1.0 / state.max(1) as f64;
        let mut cost = 0.0;
        let size = |layout: &[DimId]| layout.iter().map(|dim| self.sizes[dim.index()]).product::<usize>() as f64;
        let all: f64 = self.states.iter().map(|layout| size(layout)).sum();
        for layout in &self.states {
            let Some(last) = layout.last() else { continue };
            let share = spread.share(*last);
            let bytes = share.inner.min(self.run) * share.lanes * ACCESS / self.run;
            let run = match bytes {
                128.. => 1.0,
                64.. => 1.03,
                32.. => 1.5,
                16.. => 2.5,
                _ => 5.0,
            };
            let room: f64 = layout.iter().map(|dim| spread.share(*dim).room() as f64).product();
            cost += run * room / all;
        }
        let mut meets = false;
        for (result, over) in &self.sums {
            let over = || over.iter().map(|dim| spread.share(*dim));
            meets |= over().any(|share| !share.is_whole());
            let steps: u32 = over().map(|share| share.lanes.ilog2()).sum();
            let results = spread.registers(result);
            cost += 0.2 * f64::from(steps) * results as f64 * per_state;
            let warps: usize = over().map(|share| share.warps).product();
            if warps > 1 {
                cost += 0.15 + 0.2 * (warps * results) as f64 * per_state;
            }
        }
        // What every thread does before it holds anything, and what it holds beside the states.
        cost += if meets { 1.0 } else { 0.1 } * per_state;
        cost += 0.05 * given as f64 * per_state;
        cost += 0.02 * f64::from(spread.warps.ilog2().abs_diff(2));
        // Threads that share nothing may be many.
        cost += if meets { 0.0005 } else { 0.01 } * state as f64;
        // Few blocks at once wait for memory together, and then compute together.
        let registers = if values <= FEW_VALUES { FEW_REGISTERS } else { values + OTHER_REGISTERS / 2 };
        let at_once = (ALL_REGISTERS / (registers * WARP * spread.warps)).max(1);
        if meets {
            let under_way = at_once * spread.warps * WARP * state * size_of::<f32>();
            cost += 0.3 * (UNDER_WAY as f64 / under_way as f64 - 1.0).max(0.0) + if at_once == 1 { 0.2 } else { 0.0 };
        }
        // Lanes and warps that only repeat what others do.
        let busy: usize = spread.shares.iter().map(|share| share.lanes * share.warps).product();
        cost += 1.0 - busy as f64 / (WARP * spread.warps) as f64;
        Some(cost)
    }
}

/// Nodes that no token and no state has a part in.
pub fn steady(graph: &Graph) -> Vec<bool> {
    let mut steady: Vec<bool> = Vec::new();
    for node in &graph.nodes {
        let here = match &node.op {
            Op::Input { kind, .. } => *kind == InputKind::Head,
            op => op.operands().iter().all(|NodeId(n)| steady[*n as usize]),
        };
        steady.push(here);
    }
    steady
}
