//! The kernel being written: its words, what each thread knows of itself, and what is already computed.
//!
//! Comes in: a graph and the tensors of a call. Goes out: text, through [`Writer`]. The parts of the lowering are
//! methods of [`Block`], one file each; this one has what they share.

use super::aside::{Aside, Lives};
use super::copy::Coming;
use super::index::{Interner, Ix, Linear, Step};
use super::memory::{Layout, Memory, Region, Touch};
use super::product::Pattern;
use super::segments::Segments;
use super::shape::{GROUP, Shape, Warps};
use super::{Options, Refusal};
use crate::graph::build::uses;
use crate::graph::ir::{DimId, DimKind, Graph, NodeId, Op};
use crate::lower::tile_to_mlir::functions::Functions;
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val, Writer};
use crate::lower::tile_to_nvvm::call::Tensor;
use crate::lower::tile_to_nvvm::text::{self, Address, Pointer};
use crate::tile::ir::Arg;
use chunkwise_abi::DType;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Dimensions a value has at most.
const MAX_DIMS: usize = 8;

/// A value at a position.
pub type Key = (NodeId, [Ix; MAX_DIMS]);

/// A position along each of some dimensions.
#[derive(Clone, Debug, Default)]
pub struct Point(pub Vec<(DimId, Ix)>);

impl Point {
    /// The position along a dimension.
    pub fn get(&self, dim: DimId) -> Option<Ix> {
        self.0.iter().find(|(d, _)| *d == dim).map(|(_, ix)| *ix)
    }

    /// The same, but there along a dimension.
    #[must_use]
    pub fn with(&self, dim: DimId, ix: Ix) -> Point {
        let mut point = self.clone();
        match point.0.iter_mut().find(|(d, _)| *d == dim) {
            Some((_, own)) => *own = ix,
            None => point.0.push((dim, ix)),
        }
        point
    }
}

/// Where a value lies in shared memory, so that any thread can read it.
#[derive(Clone, Debug)]
pub struct Home {
    /// The region.
    pub region: Region,
    /// Type of an element.
    pub dtype: DType,
    /// Bytes from one position to the next, by dimension.
    pub strides: Vec<(DimId, Step)>,
    /// So many summands lie so many bytes apart; the value is their sum.
    pub parts: (usize, usize),
    /// How they are summed.
    pub fold: Fold,
    /// Which of two halves holds it now, if it has two: the value that says so, and bytes from one to the other.
    pub half: Option<(Val, usize)>,
}

/// How parts become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// Their sum.
    Sum,
    /// The largest; NaN if any is.
    Max,
}

/// A matrix in shared memory as the tensor cores read it: bfloat16 in rows.
#[derive(Clone, Debug)]
pub struct Tile {
    /// The region.
    pub region: Region,
    /// What its rows are, the slowest first.
    pub rows: Vec<DimId>,
    /// What its columns are.
    pub cols: Vec<DimId>,
    /// Bytes from one position to the next of dimensions that are neither.
    pub outer: Vec<(DimId, usize)>,
    /// Bytes along its rows and along its columns.
    pub row: Step,
    pub col: Step,
    /// Bytes from the region's start to the first element.
    pub start: usize,
    /// Bytes from one summand to the next, if it was split into several that add up to it.
    pub parts: (usize, usize),
    /// As [`Home::half`].
    pub half: Option<(Val, usize)>,
    /// What is read is to be kept finite: logarithms, of which some may be of zero.
    pub finite: bool,
}

/// The kernel being written.
pub struct Block<'g> {
    pub graph: &'g Graph,
    pub args: &'g [Arg],
    pub options: &'g Options,
    pub w: Writer,
    pub functions: &'g mut Functions,
    pub memory: Memory,
    pub warps: Warps,
    pub ix: Interner,
    /// How often each value is used.
    pub uses: Vec<usize>,
    pub tensors: Vec<Tensor>,
    /// Number of the thread in its block.
    pub thread: Val,
    /// Number of the thread among those who copy, and how many do.
    pub copiers: (Val, usize),
    /// Barriers that loaders and the others wait at for each other, where there are loaders.
    pub loaders: Option<Region>,
    /// Its number in its warp.
    pub lane: Val,
    /// `lane / 4` and `lane mod 4`.
    pub group: Val,
    pub quad: Val,
    /// Where its warp stands in the grid of warps.
    pub down: Val,
    pub across: Val,
    /// `across mod 2` and `across / 2`.
    pub across_odd: Val,
    pub across_pair: Val,
    /// The block's number along the grid's first dimension.
    pub first: Val,
    /// 0 or 1: which half of double room holds this chunk's inputs.
    pub parity: Val,
    /// Tokens of the sequence, 32 bits.
    pub length: Val,
    /// Number of the chunk, and its tokens that are real.
    pub chunk: Val,
    pub limit: Val,
    /// The block's part of an axis: the axis, and its first position.
    pub part: Option<(DimId, Val)>,
    /// Values in registers, for as long as the step lasts.
    pub values: HashMap<Key, Val>,
    /// Which values are there, or lie aside.
    pub held: HashSet<NodeId>,
    /// When, and which lie aside.
    pub lives: Lives,
    pub aside: Aside,
    /// What was computed in this statement.
    pub recent: HashMap<Key, Val>,
    /// What was read in it: words of a region.
    pub words: HashMap<(Region, Linear), Val>,
    /// Addresses and numbers of positions, by where the writer is in nested branches.
    pub numbers: Vec<HashMap<Linear, Val>>,
    pub homes: HashMap<NodeId, Home>,
    /// By value, and by how many summands it has there.
    pub tiles: HashMap<(NodeId, usize), Tile>,
    /// See [`Block::matrices`].
    pub lane_offsets: HashMap<(Step, Step, Pattern), Val>,
    /// Values that were looked at.
    pub visited: HashSet<NodeId>,
    /// Values that have to lie in shared memory too, since threads read what others computed.
    pub parked: BTreeSet<NodeId>,
    /// Number of the block's span, where there are spans.
    pub span: Option<Val>,
    /// Copies to shared memory are under way.
    pub under_way: bool,
    /// The next chunk's copies that are not under way yet, and products that are to come in this one.
    pub next: Option<Coming>,
    pub products: usize,
    /// Operands were written that warp groups do not see yet.
    pub unfenced: bool,
    /// Inputs whose void rows are zero.
    pub zeroed: HashSet<NodeId>,
    /// Decays between tokens of a chunk, as tables.
    pub segments: BTreeMap<NodeId, Segments>,
    /// Bytes of staged inputs.
    pub sizes: HashMap<NodeId, usize>,
    /// Slots of the carries' elements, in the order of [`Block::elements`].
    pub slots: HashMap<NodeId, Vec<Val>>,
    /// Branches that are open.
    pub branches: usize,
    /// Start of shared memory.
    shared: Val,
}

/// What an element of a matrix is to its thread: which strip, eight and register.
#[derive(Clone, Debug)]
pub struct Element {
    /// Its position.
    pub at: Point,
    /// Strip, eight, half of the strip's rows, column of a pair.
    pub strip: usize,
    pub eight: usize,
    pub half: usize,
    pub odd: usize,
}

impl<'g> Block<'g> {
    /// An empty kernel.
    pub fn new(
        graph: &'g Graph,
        args: &'g [Arg],
        options: &'g Options,
        functions: &'g mut Functions,
        layout: Option<Layout>,
    ) -> Block<'g> {
        let mut w = Writer::new(1);
        let of_blocks = |dim: &DimId| matches!(graph.dim(*dim).kind, DimKind::Block | DimKind::BlockCol);
        let blocks = graph.nodes.iter().any(|node| node.dims.iter().any(of_blocks));
        let groups = Warps::of_groups(options.warps, graph.rows()).filter(|_| options.warpgroups);
        let warps = groups.unwrap_or_else(|| Warps::of(options.warps, graph.rows(), blocks));
        let thread = text::register(&mut w, "tid.x");
        let int = |w: &mut Writer, n: usize| text::int(w, i64::try_from(n).expect("a small number"));
        let (three, thirty_one, two, five) = (int(&mut w, 3), int(&mut w, 31), int(&mut w, 2), int(&mut w, 5));
        let lane = w.op("and", thread, thirty_one, Ty::I32);
        let warp = w.op("lshr", thread, five, Ty::I32);
        let group = w.op("lshr", lane, two, Ty::I32);
        let quad = w.op("and", lane, three, Ty::I32);
        let (mask, shift) = (int(&mut w, warps.down - 1), int(&mut w, warps.down.ilog2() as usize));
        let down = w.op("and", warp, mask, Ty::I32);
        let across = w.op("lshr", warp, shift, Ty::I32);
        let one = int(&mut w, 1);
        let across_odd = w.op("and", across, one, Ty::I32);
        let across_pair = w.op("lshr", across, one, Ty::I32);
        let shared = w.raw_value(format_args!("llvm.mlir.addressof @shared : !llvm.ptr<3>"));
        let zero = int(&mut w, 0);
        Block {
            graph,
            args,
            options,
            w,
            functions,
            memory: Memory::new(layout),
            warps,
            ix: Interner::default(),
            uses: uses(graph),
            tensors: Vec::new(),
            thread,
            copiers: (thread, 32 * options.warps),
            loaders: None,
            lane,
            group,
            quad,
            down,
            across,
            across_odd,
            across_pair,
            first: zero,
            parity: zero,
            length: zero,
            chunk: zero,
            limit: zero,
            part: None,
            values: HashMap::new(),
            held: HashSet::new(),
            lives: Lives::default(),
            aside: Aside::default(),
            recent: HashMap::new(),
            words: HashMap::new(),
            numbers: vec![HashMap::new()],
            homes: HashMap::new(),
            tiles: HashMap::new(),
            lane_offsets: HashMap::new(),
            visited: HashSet::new(),
            parked: BTreeSet::new(),
            span: None,
            under_way: false,
            next: None,
            products: 0,
            unfenced: true,
            zeroed: HashSet::new(),
            segments: BTreeMap::new(),
            sizes: HashMap::new(),
            slots: HashMap::new(),
            branches: 0,
            shared,
        }
    }

    /// Dimensions of a value.
    pub fn dims(&self, x: NodeId) -> &'g [DimId] {
        &self.graph.nodes[x.index()].dims
    }

    /// What computes it.
    pub fn op(&self, x: NodeId) -> &'g Op {
        &self.graph.nodes[x.index()].op
    }

    /// Positions of a dimension.
    pub fn size(&self, dim: DimId) -> usize {
        self.graph.dim(dim).size
    }

    /// A value at a position, as it is found again.
    pub fn key(&self, x: NodeId, at: &Point) -> Result<Key, Refusal> {
        let mut key = [Ix::NONE; MAX_DIMS];
        let dims = self.dims(x);
        if dims.len() > MAX_DIMS {
            return Err(Refusal::unsupported("a value of more than eight dimensions"));
        }
        for (n, dim) in dims.iter().enumerate() {
            key[n] = at.get(*dim).ok_or_else(|| self.bug(x, "is asked for without a position of each dimension"))?;
        }
        Ok((x, key))
    }

    /// A mistake of this stage.
    pub fn bug(&self, x: NodeId, what: &str) -> Refusal {
        let names: Vec<&str> = self.dims(x).iter().map(|d| self.graph.dim(*d).name.as_str()).collect();
        Refusal::Bug(format!("%{} ({:?} over {names:?}) {what}", x.0, self.op(x)))
    }

    /// A 32-bit number.
    pub fn int(&mut self, n: usize) -> Val {
        text::int(&mut self.w, i64::try_from(n).expect("sizes of a kernel are small"))
    }

    /// A fixed position.
    pub fn fixed(&mut self, n: usize) -> Ix {
        self.ix.of(Linear::number(i64::try_from(n).expect("sizes of a kernel are small")))
    }

    /// The number of a position, 32 bits.
    pub fn number(&mut self, linear: &Linear) -> Val {
        if linear.terms.is_empty() {
            return text::int(&mut self.w, linear.constant);
        }
        if let Some(known) = self.numbers.iter().find_map(|scope| scope.get(linear)) {
            return *known;
        }
        let mut sum: Option<Val> = None;
        for (value, factor) in &linear.terms {
            let term = if *factor == 1 {
                *value
            } else {
                let factor = text::int(&mut self.w, *factor);
                self.w.op("mul", *value, factor, Ty::I32)
            };
            sum = Some(sum.map_or(term, |sum| self.w.op("add", sum, term, Ty::I32)));
        }
        let mut sum = sum.expect("there are terms");
        if linear.constant != 0 {
            let constant = text::int(&mut self.w, linear.constant);
            sum = self.w.op("add", sum, constant, Ty::I32);
        }
        self.numbers.last_mut().expect("there is a scope").insert(linear.clone(), sum);
        sum
    }

    /// The number of a position.
    pub fn position(&mut self, ix: Ix) -> Val {
        let linear = self.ix.get(ix).clone();
        self.number(&linear)
    }

    /// An address in shared memory, so many bytes from the start of a region.
    pub fn shared(&mut self, region: Region, bytes: &Linear) -> Address {
        let offset = i64::try_from(self.memory.offset(region)).expect("shared memory is small");
        let moving = Linear { terms: bytes.terms.clone(), constant: 0 };
        let constant = offset + bytes.constant;
        let mut at = self.shared;
        if !moving.terms.is_empty() {
            let number = self.number(&moving);
            at = self
                .w
                .raw_value(format_args!("llvm.getelementptr {at}[{number}] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8"));
        }
        let base = Address { at, space: Pointer::Shared };
        text::bytes(&mut self.w, base, usize::try_from(constant).expect("an offset is not negative"))
    }

    /// Puts a barrier before an access that needs one. It is to follow at once: the next barrier settles it.
    pub fn touch(&mut self, region: Region, touch: Touch) {
        self.touch_all(&[region], touch);
    }

    /// The same before several accesses that follow together.
    pub fn touch_all(&mut self, regions: &[Region], touch: Touch) {
        if self.memory.touch(regions, touch) {
            self.wait();
        }
    }

    /// A barrier, if anything is unfinished.
    pub fn settle(&mut self) {
        if self.memory.unsettled() || self.under_way {
            self.memory.settled();
            self.wait();
        }
    }

    /// All threads wait for one another, and for what they copy.
    fn wait(&mut self) {
        if self.under_way {
            text::command(&mut self.w, "llvm.nvvm.cp.async.wait.all", &[]);
            self.under_way = false;
        }
        self.barrier();
    }

    /// All threads wait for one another, and what they wrote is seen by warp groups.
    pub fn barrier(&mut self) {
        if self.unfenced && self.in_groups() {
            text::fence_operands(&mut self.w);
            self.unfenced = false;
        }
        match self.loaders {
            None => text::barrier(&mut self.w),
            Some(_) => text::barrier_of(&mut self.w, 1, 32 * self.warps.count()),
        }
    }

    /// Whether four warps stand one below the other, so that together they are a warp group.
    pub fn in_groups(&self) -> bool {
        self.options.warpgroups && self.warps.down == GROUP
    }

    /// A new statement begins. What elements were worth is forgotten, here and nowhere else: they would take registers
    /// for long, and what is asked for again must not depend on where barriers turn out to stand.
    pub fn statement(&mut self) {
        self.memory.begin();
        self.lives.step();
        self.recent.clear();
        self.words.clear();
    }

    /// Opens a branch: what is computed in it is not known after it.
    pub fn open_if(&mut self, cond: Val) {
        self.w.open_if(cond);
        self.numbers.push(HashMap::new());
        self.branches += 1;
    }

    /// Closes it.
    pub fn close_if(&mut self) {
        self.w.end();
        self.numbers.pop();
        self.branches -= 1;
    }

    /// The shape of a value, refused if it is no matrix.
    pub fn matrix(&self, dims: &[DimId]) -> Result<Shape, Refusal> {
        match Shape::of(self.graph, dims) {
            Some(shape) if shape.is_matrix() => Ok(shape),
            Some(_) | None => {
                let names: Vec<&str> = dims.iter().map(|d| self.graph.dim(*d).name.as_str()).collect();
                Err(Refusal::unsupported(&format!("a value over {names:?} as a matrix")))
            }
        }
    }

    /// Both conditions, those that hold for sure left out.
    pub fn both(&mut self, a: Option<Val>, b: Option<Val>) -> Option<Val> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.w.op("and", a, b, Ty::scalar(Elem::I1))),
            (a, b) => a.or(b),
        }
    }

    /// The value of the thread of the warp whose number differs in some bits.
    pub fn exchanged(&mut self, value: Val, distance: usize) -> Val {
        let (all, clamp, distance) = (text::int(&mut self.w, -1), self.int(31), self.int(distance));
        let operands = [(all, Ty::I32), (value, Ty::F32), (distance, Ty::I32), (clamp, Ty::I32)];
        text::intrinsic(&mut self.w, "llvm.nvvm.shfl.sync.bfly.f32", &operands, "f32")
    }

    /// The same of a word.
    pub fn exchanged_word(&mut self, word: Val, distance: usize) -> Val {
        let (all, clamp, distance) = (text::int(&mut self.w, -1), self.int(31), self.int(distance));
        let operands = [(all, Ty::I32), (word, Ty::I32), (distance, Ty::I32), (clamp, Ty::I32)];
        text::intrinsic(&mut self.w, "llvm.nvvm.shfl.sync.bfly.i32", &operands, "i32")
    }
}
