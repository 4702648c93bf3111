//! IR 2, the tile program: where values live and when they are computed.
//!
//! Comes from [`crate::lower::graph_to_tile`], goes to the interpreter ([`super::interp`]) and to MLIR. It never asks
//! which mechanism it runs.
//!
//! # Meaning
//! A [`Kernel`] is what is done for one *item*: one head `h` of one sequence `n`. Items are independent; the caller
//! hands ranges of them to threads. Inside an item everything runs in program order.
//!
//! *Arguments* are tensors of the caller. By [`Role`] an argument has a leading index (the token of the sequence, the
//! chunk of the sequence, or none) and then static inner dimensions, contiguous in row-major order. Elements are
//! converted to float32 when loaded and from it when stored.
//!
//! *Buffers* are float32 scratch, private to the worker, of static shape, row-major, their content undefined when the
//! item starts (the interpreter fills them with NaN). The last dimension is padded up to a multiple of
//! [`LANES`] elements, and by [`Buffer::pad`] more, [`Buffer::pitch`]; padding is never read by an operation whose extents stay inside the shape.
//!
//! *Indices* are affine in the loop variables and in [`Symbol`]s known when the item starts.
//!
//! *Lanes*: `lanes k in 0..n` means the same as a loop whose iterations may run in any order and together. Every place
//! in it is either unit-stride in the lane variable (it occurs in the last index, with coefficient 1) or does not
//! mention it. A local declared inside has one value per lane.
//!
//! *Locals* are mutable float32 variables, scoped to the block that declares them.
//!
//! Text form (`.cwt`), as printed and parsed by [`super::text`]:
//! ```text
//! kernel gated_delta_rule.chunkwise.forward {
//!   arg q : bf16 token[128] read
//!   arg final.S : f32 sequence[128, 128] write
//!   buf %s : [128, 128]
//!   for c in 0 .. chunks(64) {
//!     for i in any 0 .. 64 { lanes k in 0 .. 128 { %qs[i, k] = q[min(64*c + i, T - 1), k] } }
//!     matmul %p[64, 64] = %qs[64, 128] * %kt[128, 64] lower
//!   }
//! }
//! ```

/// Lanes of the widest vector; buffers are padded to it.
pub const LANES: usize = 16;

/// An argument of [`Kernel::args`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArgId(pub u32);
/// A buffer of [`Kernel::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);
/// A loop or lane variable; unique in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VarId(pub u32);
/// A mutable float32 variable; unique in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalId(pub u32);

/// What is done for one item.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Name, `mechanism.form.direction`.
    pub name: String,
    /// Tensors of the caller.
    pub args: Vec<Arg>,
    /// Scratch.
    pub buffers: Vec<Buffer>,
    /// Names of variables, for printing; by [`VarId`].
    pub vars: Vec<String>,
    /// Number of locals.
    pub n_locals: u32,
    /// The program.
    pub body: Vec<Stmt>,
}

/// A tensor of the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// Name, as in the calling contract: `q`, `init.S`, `out.o`, `grad.q`, `saved.S`, …
    pub name: String,
    /// Type of an element in memory.
    pub dtype: chunkwise_abi::DType,
    /// What the leading index is.
    pub role: chunkwise_abi::Role,
    /// Static dimensions after the leading index; empty for a scalar.
    pub inner: Vec<usize>,
    /// Read or written.
    pub access: chunkwise_abi::Access,
}

impl Arg {
    /// Elements from one position to the next of each inner dimension.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.inner.len()];
        for d in (1..self.inner.len()).rev() {
            strides[d - 1] = strides[d] * self.inner[d];
        }
        strides
    }
}

/// Scratch memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// Name, for printing.
    pub name: String,
    /// Static shape, at least one dimension; row-major.
    pub shape: Vec<usize>,
    /// Elements of padding after each row, beyond what the lanes need: memory in banks wants rows that do not all
    /// start in the same one.
    pub pad: usize,
}

impl Buffer {
    /// Elements from one row of the last dimension to the next.
    pub fn pitch(&self) -> usize {
        self.shape.last().map_or(LANES, |n| n.div_ceil(LANES) * LANES) + self.pad
    }
    /// Elements, padding included.
    pub fn elements(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product::<usize>() * self.pitch()
    }
    /// Element strides of each dimension.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        let mut step = self.pitch();
        for d in (0..self.shape.len() - 1).rev() {
            strides[d] = step;
            step *= self.shape[d];
        }
        strides
    }
}

/// A number known when the item starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Symbol {
    /// Tokens of this sequence, `T`.
    Length,
    /// ⌈T / n⌉, `chunks(n)`.
    Chunks(usize),
}

/// `constant + Σ coefficient · variable + Σ coefficient · symbol`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Affine {
    /// Constant term.
    pub constant: i64,
    /// Terms in loop variables; no variable twice, no zero coefficient.
    pub vars: Vec<(VarId, i64)>,
    /// Terms in symbols; no symbol twice, no zero coefficient.
    pub symbols: Vec<(Symbol, i64)>,
}

impl Affine {
    /// The value, if it depends on nothing.
    pub fn as_number(&self) -> Option<i64> {
        (self.vars.is_empty() && self.symbols.is_empty()).then_some(self.constant)
    }
    /// The factor of a variable; 0 if it is absent.
    pub fn coefficient(&self, var: VarId) -> i64 {
        self.vars.iter().find(|(v, _)| *v == var).map_or(0, |(_, factor)| *factor)
    }
    /// Whether it depends on a variable.
    pub fn mentions(&self, var: VarId) -> bool {
        self.coefficient(var) != 0
    }
}

/// An index or a bound: the smallest of one or two affine forms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Index {
    /// The value, unless `at_most` is smaller.
    pub value: Affine,
    /// An upper limit.
    pub at_most: Option<Affine>,
}

impl Index {
    /// The value, if it depends on nothing.
    pub fn as_number(&self) -> Option<i64> {
        if self.at_most.is_none() { self.value.as_number() } else { None }
    }
    /// Whether it depends on a variable.
    pub fn mentions(&self, var: VarId) -> bool {
        self.value.mentions(var) || self.at_most.as_ref().is_some_and(|limit| limit.mentions(var))
    }
}

/// The order of a loop's turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reverse,
    /// Any, or all at once: no turn reads what another writes, and none writes what another does. Processors run it
    /// forwards, the interpreter backwards, a GPU spreads it over threads or blocks.
    Any,
}

impl Order {
    /// From the last to the first, or from the first to the last.
    pub fn reversed(reverse: bool) -> Order {
        if reverse { Order::Reverse } else { Order::Forward }
    }
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `for var in lo .. hi { body }`.
    For {
        /// The variable.
        var: VarId,
        /// First value.
        lo: Index,
        /// One past the last value; nothing runs when it is not above `lo`.
        hi: Index,
        /// In which order its turns run.
        order: Order,
        /// Statements.
        body: Vec<Stmt>,
    },
    /// `lanes var in 0 .. extent { body }`. The body holds only `Local`, `Assign`, `Store`, `If` and `For`
    /// statements, no further lanes.
    Lanes {
        /// The variable.
        var: VarId,
        /// Number of lanes, at least one.
        extent: usize,
        /// Statements.
        body: Vec<Stmt>,
    },
    /// `if lhs op rhs { body }` on indices; the lane variable does not occur in it.
    If {
        /// The condition.
        cond: Cond,
        /// Statements.
        body: Vec<Stmt>,
    },
    /// `local x = value`.
    Local {
        /// The variable declared.
        local: LocalId,
        /// Its first value.
        value: Expr,
    },
    /// `x = value`.
    Assign {
        /// The variable assigned.
        local: LocalId,
        /// Its new value.
        value: Expr,
    },
    /// `place = value`.
    Store {
        /// Where.
        place: Place,
        /// What.
        value: Expr,
    },
    /// `place (=|+=) reduce(op) var in 0 .. extent of value`. The place does not mention `var`.
    ReduceLanes {
        /// Where the result goes.
        place: Place,
        /// Sum or maximum.
        op: ReduceOp,
        /// The lane variable.
        var: VarId,
        /// Number of lanes, at least one.
        extent: usize,
        /// What is reduced.
        value: Expr,
        /// Add to (or maximise with) what is there, rather than replace it.
        accumulate: bool,
    },
    /// A product of matrices in scratch.
    Matmul(Matmul),
}

/// `dst[m, n] (=|+=|-=) a[m, k] · b[k, n]`, float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    /// Result; its columns are contiguous. Does not overlap `a` or `b`.
    pub dst: View,
    /// Left operand; any strides.
    pub a: View,
    /// Right operand; its columns are contiguous, or else its rows are (which processors do not take).
    pub b: View,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the contraction; may depend on loop variables, may be 0.
    pub k: Affine,
    /// What happens to what is in `dst`.
    pub update: Update,
    /// What may be skipped.
    pub triangle: Triangle,
    /// The operands keep float32, or what amounts to it: a triangular system is solved with them. Otherwise a GPU may
    /// round them to the type of the tensors.
    pub exact: bool,
}

/// What a product does to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// `=`
    Set,
    /// `+=`
    Add,
    /// `-=`
    Subtract,
}

/// What a product may leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triangle {
    /// Nothing.
    Full,
    /// Elements of the result with column > row are unspecified afterwards (the interpreter makes them NaN).
    LowerResult,
    /// `a[row, k]` is zero for k > row: those terms may be skipped.
    LowerLeft,
    /// `a[row, k]` is zero for k < row: those terms may be skipped.
    UpperLeft,
}

/// A matrix inside a buffer: element (r, c) is at `offset + r·row_stride + c·col_stride`.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// Element offset from the start of the buffer.
    pub offset: Affine,
    /// Elements from row to row.
    pub row_stride: usize,
    /// Elements from column to column.
    pub col_stride: usize,
}

/// One element: of an argument (leading index first, if its role has one) or of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Which memory.
    pub memory: Memory,
    /// One index per dimension.
    pub indices: Vec<Index>,
}

/// A memory that can be indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// A tensor of the caller.
    Arg(ArgId),
    /// Scratch.
    Buffer(BufferId),
}

/// A comparison of indices, which may mention the lane variable when used in [`Expr::Select`].
#[derive(Clone, Debug, PartialEq)]
pub struct Cond {
    /// Left side.
    pub lhs: Affine,
    /// Comparison.
    pub op: Compare,
    /// Right side.
    pub rhs: Affine,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compare {
    /// <
    Lt,
    /// ≤
    Le,
    /// =
    Eq,
}

/// A float32 expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A number.
    Const(f64),
    /// An element of memory.
    Load(Place),
    /// A local.
    Local(LocalId),
    /// A function of one value.
    Unary(UnaryOp, Box<Expr>),
    /// A function of two values.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `cond ? a : b` on indices. The branch not taken has no effect, whatever its value.
    Select(Cond, Box<Expr>, Box<Expr>),
    /// `lhs op rhs ? a : b` on values; any comparison with NaN is false.
    SelectValue(Compare, Box<Expr>, Box<Expr>, Box<Expr>, Box<Expr>),
}

impl Expr {
    /// Visits every element that is loaded.
    pub fn for_each_load(&self, visit: &mut dyn FnMut(&Place)) {
        match self {
            Expr::Const(_) | Expr::Local(_) => {}
            Expr::Load(place) => visit(place),
            Expr::Unary(_, x) => x.for_each_load(visit),
            Expr::Binary(_, a, b) | Expr::Select(_, a, b) => [a, b].iter().for_each(|x| x.for_each_load(visit)),
            Expr::SelectValue(_, a, b, c, d) => [a, b, c, d].iter().for_each(|x| x.for_each_load(visit)),
        }
    }

    /// Visits every local that is read.
    pub fn for_each_local(&self, visit: &mut dyn FnMut(LocalId)) {
        match self {
            Expr::Const(_) | Expr::Load(_) => {}
            Expr::Local(local) => visit(*local),
            Expr::Unary(_, x) => x.for_each_local(visit),
            Expr::Binary(_, a, b) | Expr::Select(_, a, b) => [a, b].iter().for_each(|x| x.for_each_local(visit)),
            Expr::SelectValue(_, a, b, c, d) => [a, b, c, d].iter().for_each(|x| x.for_each_local(visit)),
        }
    }
}

/// Elementwise functions of one value, as [`crate::graph::ir::Unary`] means them.
pub type UnaryOp = crate::graph::ir::Unary;
/// Elementwise functions of two values, as [`crate::graph::ir::Binary`] means them.
pub type BinaryOp = crate::graph::ir::Binary;

/// Reductions over lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReduceOp {
    /// Σ
    Sum,
    /// max; NaN if any is NaN
    Max,
}
