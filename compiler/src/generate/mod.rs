//! Random recurrences, for tests. Comes in: a seed. Goes out: a [`Sketch`], which is plain data, and its `.cw` text.
//!
//! Every sketch is well formed, and tame: keys have norm at most one, decays at most one, reads come back scaled down,
//! so that a hundred tokens stay far from the end of float32. A test that fails takes features away until nothing more
//! can go ([`Sketch::smaller`]). Nothing here knows what the compiler makes of a program, except for
//! [`Sketch::may_be_limited`], which follows from the language's own rules.

mod draw;
mod print;
mod shrink;

/// The text of a random recurrence.
pub fn generate(seed: u64) -> String {
    Sketch::draw(seed).source()
}

/// What the recurrence of a seed is made of, in one line.
pub fn describe(seed: u64) -> String {
    Sketch::draw(seed).describe()
}

/// A recurrence before it is written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    /// Keys have two axes, K and L.
    pub two_keys: bool,
    /// Matrix states are declared with V first.
    pub transposed: bool,
    /// Prologue expressions are named with `let`.
    pub named: bool,
    /// The states.
    pub states: Vec<StateKind>,
    /// What a token does, in order.
    pub steps: Vec<Step>,
}

/// What a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKind {
    /// Keys × values.
    Matrix,
    /// Keys.
    Normaliser,
    /// Values.
    Row,
    /// A number.
    Scalar,
}

/// A statement, or some.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A new value of a state.
    Update(Update),
    /// `for r in R { … }`
    Repeat(Vec<Update>),
    /// `let`: a state, or a read of it, as it is here.
    Snapshot(Snapshot),
    /// An output of what is here.
    Output(Output),
}

/// `S = gates * (S + inside) + outside`
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which state.
    pub state: usize,
    /// What it is multiplied with.
    pub gates: Vec<Gate>,
    /// Edits before the decay.
    pub inside: Vec<Edit>,
    /// Edits after it.
    pub outside: Vec<Edit>,
    /// The old value is forgotten altogether.
    pub fresh: bool,
    /// The decay stands behind the state.
    pub gate_last: bool,
}

/// One factor of a decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Where it varies.
    pub place: Place,
    /// How it comes about.
    pub law: Law,
    /// Number of its source.
    pub id: u8,
}

/// Where a decay varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Scalar,
    /// Along the keys, all of their axes.
    Key,
    /// Along K alone, also where keys have two axes.
    KeyPart,
    /// Along the values.
    Value,
    /// Along both, as a sum under one exponential.
    Both,
    /// Every element has its own.
    Full,
}

/// How a decay comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// `exp(g)`, g at most 0.
    Exp,
    /// `exp2(g)`, g at most 0.
    Exp2,
    /// `sigmoid(f)`
    Sigmoid,
    /// `exp(logsigmoid(f) / 4)`
    Slow,
    /// A factor from 0 to 1, which may be exactly 0.
    Factor,
    /// A factor from −1 to 1.
    Signed,
    /// `1 - a`
    OneMinus,
    /// A literal.
    Literal,
    /// A constant the caller may override.
    Constant,
    /// `exp(gamma)` of a parameter.
    Param,
    /// `exp(-exp(A) * softplus(dt + b))`
    Rate,
    /// `exp(-4 * sigmoid(x))`
    Bounded,
    /// `1 / (1 + a)`
    Quotient,
    /// `sigmoid` of a read of an earlier state.
    OfRead(usize),
}

/// A term of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// Along the keys.
    pub write: Vector,
    /// How strong.
    pub strength: Strength,
    /// What is written.
    pub content: Content,
    /// Taken away instead of added.
    pub negative: bool,
}

/// What an edit writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content {
    /// `v`
    Value(Value),
    /// `v - k @ S`, k the key written with.
    Delta(Value),
    /// `w @ S`, scaled down, of this or another state.
    Read(usize, Vector),
    /// `(w @ S) * sigmoid(z)`, scaled down.
    Modulated(usize, Vector, Value),
    /// `v - seen`, a read named before.
    Seen(usize, Value),
    /// Another state as a whole.
    Whole(usize),
}

/// How strong an edit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// 1
    One,
    /// A number.
    Scalar(Scalar),
    /// One for each value.
    OnValue(u8),
}

/// A number a token, or a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// An input in `[0, 1]`.
    Beta(u8),
    /// `sigmoid(x)`
    Sigmoid(u8),
    /// `exp(i)`, i in `[-3, 0]`.
    Exp(u8),
    /// A constant.
    Constant,
    /// A parameter in `[0, 1]`.
    Param(u8),
    /// A read of an earlier state, squashed.
    OfRead(usize, u8),
}

/// Something along the keys, of norm about one at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// How it comes about.
    pub map: Map,
    /// Number of its source.
    pub id: u8,
}

/// How a key comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// An input `in unit(K)`.
    Unit,
    /// `l2norm(x, K)`
    L2Norm,
    /// `softmax(x, K)`
    Softmax,
    /// Half the sum of two unit inputs.
    Mean,
    /// A unit input on an axis of its own, renamed.
    Renamed,
    /// A unit input without a gradient.
    Stopped,
    /// The first of several.
    First,
    /// Half the sum of a unit input and that of the token before, which a state of its own keeps.
    Shifted,
    /// `elu(x) + 1`, scaled.
    Elu,
    /// `silu(x)`, scaled.
    Silu,
    /// `relu(x)`, scaled.
    Relu,
    /// `gelu(x)`, scaled.
    Gelu,
    /// `tanh(x)`, scaled.
    Tanh,
    /// `sin(x) + cos(x)`, scaled.
    SinCos,
    /// `exp(min(x, 0))`, scaled.
    Exp,
    /// A parameter times an input, scaled.
    Param,
    /// A parameter, scaled: the same for all tokens.
    Fixed,
}

/// Something along the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// An input.
    Plain(u8),
    /// `tanh(v)`
    Tanh(u8),
    /// `v * sigmoid(z)`
    Gated(u8),
    /// `v / sqrt(mean(square(v), V) + 0.1)`
    Rms(u8),
    /// `softmax(v, V)`
    Softmax(u8),
    /// `v + D - 0.1 * max(v, V)`, D a parameter.
    Shifted(u8),
    /// `log(1 + square(v))`
    Log(u8),
    /// A parameter.
    Param(u8),
    /// 1
    One,
}

/// `let seen0 = …`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number.
    pub id: usize,
    /// Of which state.
    pub state: usize,
    /// What reads it; absent keeps the state as a whole.
    pub reader: Option<Vector>,
}

/// An output.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// What it is made of.
    pub reads: Vec<Read>,
    /// How several become one.
    pub join: Join,
    /// What is done with that.
    pub epilogue: Epilogue,
}

/// One read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Read {
    /// Of which state.
    pub state: usize,
    /// The reader.
    pub reader: Vector,
    /// How it is written.
    pub way: Way,
}

/// How a read is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// `q @ S`
    Plain,
    /// `S @ q`
    Swapped,
    /// `scale * q @ S`
    Scaled,
    /// `sum(q * S, K)`
    Sum,
    /// `q @ (S + u * k * v)`
    Bonus(Vector, Value),
    /// `q @ (a * S)`
    Decayed(Gate),
    /// A snapshot, by its number.
    Seen(usize),
    /// The state itself.
    Whole,
    /// `S @ v`: over the values, where others read over the keys.
    OtherSide,
}

/// How several reads become one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Their sum.
    Sum,
    /// Their product.
    Product,
    /// The first by a guard of the others.
    Quotient,
}

/// What an output does with its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// `tanh(x)`
    Tanh,
    /// `x / max(abs(x), 0.83)`: sums of ones and zeros do not lie on the kink.
    Guarded,
    /// `softmax(x, V)`
    Softmax,
    /// `l2norm(x, V)`
    L2Norm,
    /// `x / sqrt(mean(square(x), V) + 0.1)`
    Rms,
    /// `x * silu(z)`
    Gate(u8),
    /// `x + D * v`
    Skip(u8),
    /// `x * p`, p along an axis of its own.
    Outer,
    /// `x @ W`, W a parameter, onto an axis of its own.
    Project,
    /// `x @ v`
    Onto(u8),
    /// `log(sum(exp(x), V))`, by way of the largest: ties of what was read would make the gradient of a plain maximum
    /// depend on rounding.
    LogSumExp,
    /// `x + stop_gradient(tanh(x))`
    Stopped,
}
