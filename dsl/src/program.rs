//! A checked recurrence: what was meant.
//!
//! Comes from [`crate::check`], goes to the reference interpreter and to the compiler. Every name is resolved,
//! every expression knows its axes, every contraction says which axes it sums. Nothing here is about time: a
//! `Program` is what one token does to the state of one head.
//!
//! Meaning. `body` runs in order, once per token. `Expr::State(s)` is the value of state `s` at the point of the
//! statement that holds the expression, before that statement takes effect. A `Stmt::Let` is evaluated where it
//! stands and keeps that value, also when it reads a state. `Stmt::For` runs its body for index 0, 1, … of the
//! axis; a `Local` bound inside is bound anew each time. An axis's size is not known here: sizes come with the data.
//!
//! Every value has a set of axes, listed in the order the axes were declared, except that a declared tensor
//! (input, param, state, output) keeps the order of its own declaration, which is also its layout in memory.
//! Elementwise operations broadcast by name.

use crate::span::Span;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            /// Position in its arena.
            pub fn index(self) -> usize { self.0 as usize }
        }
    };
}
id!(/// An axis of [`Program::axes`].
    AxisId);
id!(/// An input or parameter of [`Program::tensors`].
    TensorId);
id!(/// A constant of [`Program::consts`].
    ConstId);
id!(/// A state of [`Program::states`].
    StateId);
id!(/// An output of [`Program::outputs`].
    OutputId);
id!(/// A `let` of [`Program::locals`].
    LocalId);
id!(/// A loop variable of [`Program::loop_vars`].
    LoopVarId);
id!(/// An expression of [`Program::exprs`].
    ExprId);

/// One checked recurrence.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Name after the keyword `recurrence`.
    pub name: String,
    /// The doc comment before it, without the slashes.
    pub doc: String,
    /// Named axes, in the order declared.
    pub axes: Vec<Axis>,
    /// Inputs and parameters, in the order declared.
    pub tensors: Vec<Tensor>,
    /// Constants, in the order declared; a later one may use an earlier one.
    pub consts: Vec<Const>,
    /// States, in the order declared.
    pub states: Vec<State>,
    /// Outputs, in the order declared.
    pub outputs: Vec<Output>,
    /// Names bound by `let`.
    pub locals: Vec<Local>,
    /// Variables bound by `for`.
    pub loop_vars: Vec<LoopVar>,
    /// All expressions; an operand comes before its user.
    pub exprs: Vec<Expr>,
    /// What a token does, in order.
    pub body: Vec<Stmt>,
    /// Where the recurrence stands in the source.
    pub span: Span,
}

/// A named axis. Its size comes with the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Name.
    pub name: String,
    /// Where it was declared.
    pub span: Span,
}

/// How often a tensor changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// One value a token and head: `[B, T, H, axes…]`.
    Input,
    /// One learned value a head: `[H, axes…]`.
    Param,
}

/// An `input` or a `param`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Per token or per head.
    pub kind: TensorKind,
    /// Axes in the order declared: the layout.
    pub axes: Vec<AxisId>,
    /// What `in …` promises.
    pub range: Range,
    /// Where it was declared.
    pub span: Span,
}

/// What a declaration promises about values.
#[derive(Clone, Debug, PartialEq)]
pub enum Range {
    /// Nothing.
    Any,
    /// Every element lies between the bounds.
    Interval {
        /// Lower bound, −∞ allowed.
        lo: f64,
        /// Upper bound, +∞ allowed.
        hi: f64,
        /// `[lo` (true) or `(lo`.
        lo_closed: bool,
        /// `hi]` (true) or `hi)`.
        hi_closed: bool,
    },
    /// The Euclidean norm over this axis is at most one.
    Unit(AxisId),
}

/// A named number. Its value may use axis sizes and earlier constants; a caller may override it.
#[derive(Clone, Debug, PartialEq)]
pub struct Const {
    /// Name.
    pub name: String,
    /// Value: an expression without tensors, states or locals, and without axes.
    pub value: ExprId,
    /// Where it was declared.
    pub span: Span,
}

/// A state, one per sequence and head: `[B, H, axes…]`.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Name.
    pub name: String,
    /// Axes in the order declared: the layout.
    pub axes: Vec<AxisId>,
    /// Where it was declared.
    pub span: Span,
}

/// An output, one value a token and head.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name.
    pub name: String,
    /// Axes in the order declared: the layout.
    pub axes: Vec<AxisId>,
    /// Where it was declared.
    pub span: Span,
}

/// A name bound by `let`.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// Name.
    pub name: String,
    /// Axes of its value.
    pub axes: Vec<AxisId>,
    /// Where it was bound.
    pub span: Span,
}

/// A variable bound by `for`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoopVar {
    /// Name.
    pub name: String,
    /// The axis it runs over.
    pub axis: AxisId,
    /// Where it was bound.
    pub span: Span,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `let local = value`.
    Let {
        /// What is bound.
        local: LocalId,
        /// Its value.
        value: ExprId,
        /// The statement.
        span: Span,
    },
    /// `state = value`.
    Update {
        /// What is updated.
        state: StateId,
        /// Its new value; axes are the state's, or a subset that broadcasts.
        value: ExprId,
        /// The statement.
        span: Span,
    },
    /// `output name = value`.
    Output {
        /// What is given.
        output: OutputId,
        /// Its value; axes are the output's, or a subset that broadcasts.
        value: ExprId,
        /// The statement.
        span: Span,
    },
    /// `for var in axis { body }`.
    For {
        /// The loop variable.
        var: LoopVarId,
        /// Statements, in order. No outputs.
        body: Vec<Stmt>,
        /// The statement.
        span: Span,
    },
}

/// An expression with its axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What is computed.
    pub kind: ExprKind,
    /// Axes of the value: for a declared tensor or state its declared order, otherwise the order of [`Program::axes`].
    pub axes: Vec<AxisId>,
    /// Where it was written.
    pub span: Span,
}

/// What an expression computes.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// A literal.
    Number(f64),
    /// The size of an axis.
    AxisSize(AxisId),
    /// A constant.
    Const(ConstId),
    /// An input or parameter.
    Tensor(TensorId),
    /// A state, as it is before the enclosing statement.
    State(StateId),
    /// A `let`.
    Local(LocalId),
    /// A loop variable as a number.
    LoopIndex(LoopVarId),
    /// `base[index]`: one position along an axis, which disappears.
    Index {
        /// What is indexed.
        base: ExprId,
        /// The axis that disappears.
        axis: AxisId,
        /// Which position.
        index: Index,
    },
    /// A function of one value, elementwise.
    Unary(Unary, ExprId),
    /// A function of two values, elementwise, broadcast by name.
    Binary(Binary, ExprId, ExprId),
    /// `a @ b`: multiply and sum over the shared axes `over` (never empty).
    Contract {
        /// Left operand.
        lhs: ExprId,
        /// Right operand.
        rhs: ExprId,
        /// Every axis both have.
        over: Vec<AxisId>,
    },
    /// A reduction or a normalisation over one axis.
    Reduce(Reduce, ExprId, AxisId),
    /// A copy under another axis name. Both axes have the same size.
    Rename {
        /// What is renamed.
        value: ExprId,
        /// The axis that disappears.
        from: AxisId,
        /// The axis that takes its place.
        to: AxisId,
    },
    /// The value, with no gradient through it.
    StopGradient(ExprId),
}

/// A position along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// The value of a loop variable.
    Loop(LoopVarId),
    /// A literal; checked against the size when sizes are known.
    Literal(usize),
}

/// Elementwise functions of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unary {
    /// −x
    Neg,
    /// eˣ
    Exp,
    /// 2ˣ
    Exp2,
    /// ln x
    Log,
    /// √x
    Sqrt,
    /// |x|; its derivative at 0 is 0
    Abs,
    /// −1, 0 or 1; its derivative is 0
    Sign,
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// ln sigmoid(x)
    LogSigmoid,
    /// ln(1 + eˣ)
    Softplus,
    /// x · sigmoid(x)
    Silu,
    /// tanh x
    Tanh,
    /// x for x > 0, else eˣ − 1
    Elu,
    /// max(x, 0); its derivative at 0 is 0
    Relu,
    /// x · Φ(x), Φ the standard normal distribution (the exact form, through erf)
    Gelu,
    /// sin x
    Sin,
    /// cos x
    Cos,
    /// x²
    Square,
}

/// Elementwise functions of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Binary {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// aᵇ
    Pow,
    /// The smaller; a tie splits the gradient equally.
    Min,
    /// The larger; a tie splits the gradient equally.
    Max,
}

/// Reductions and normalisations over one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reduce {
    /// Σ x; the axis disappears.
    Sum,
    /// Σ x / size; the axis disappears.
    Mean,
    /// max x; the axis disappears; ties split the gradient equally.
    Max,
    /// e^(x − max) / Σ e^(x − max); the axis stays.
    Softmax,
    /// x / √(Σ x² + 1e-6); the axis stays.
    L2Norm,
}

impl Program {
    /// The expression behind an id.
    pub fn expr(&self, id: ExprId) -> &Expr {
        &self.exprs[id.index()]
    }
    /// An axis by name.
    pub fn axis_named(&self, name: &str) -> Option<AxisId> {
        self.axes.iter().position(|axis| axis.name == name).map(|i| AxisId(i as u32))
    }
}
