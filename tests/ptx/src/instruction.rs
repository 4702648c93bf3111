//! Instructions as they are carried out: opcodes without text, registers by number.
//!
//! There are three files of registers: *narrow* ones of 32 bits, which also hold those of 16 with zeros above, *wide* ones
//! of 64, and predicates.

/// Number of a register in its file.
pub type Register = u32;

/// A value that is read: a register, or the same number for every thread.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Register(Register),
    Number(u64),
}

/// A place in memory: a register, or none, and bytes beyond it.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Operand,
    /// Whether the register is a narrow one.
    pub narrow: bool,
    pub offset: i64,
}

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Parameter,
    Shared,
    Global,
}

/// Of a thread: what a launch tells it.
#[derive(Clone, Copy, Debug)]
pub enum Special {
    Thread,
    Lane,
    Threads,
    Block(usize),
    Blocks(usize),
    Zero,
    One,
}

#[derive(Clone, Copy, Debug)]
pub enum Unary {
    Not,
    Negate,
    NegateFloat,
    AbsoluteFloat,
    Exp2,
    Reciprocal,
    SquareRoot,
    Log2,
    ReciprocalSquareRoot,
    Tanh,
    /// To tf32, ties away from zero.
    ToTf32,
    ToBf16,
    ToF16,
    FromF16,
    /// Of either type of 16 bits.
    NegateHalf,
    AbsoluteHalf,
    FromSigned,
}

#[derive(Clone, Copy, Debug)]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    MultiplyHighUnsigned,
    MultiplyHighSigned,
    DivideUnsigned,
    DivideSigned,
    RemainderUnsigned,
    RemainderSigned,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRightUnsigned,
    ShiftRightSigned,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
    /// The smaller, and no less than zero.
    MinSignedNotNegative,
    MaxSignedNotNegative,
    AddFloat,
    SubtractFloat,
    MultiplyFloat,
    DivideFloat,
    MinFloat,
    MaxFloat,
    /// Of both numbers of a register; no number where either is none.
    MaxBf16OrNan,
    /// Two numbers to bfloat16, the first above the second.
    PackBf16,
    PackF16,
    /// The sign of the first and the value of the second.
    CopySign,
}

#[derive(Clone, Copy, Debug)]
pub enum Ternary {
    MultiplyAdd,
    MultiplyAddFloat,
    ExtractUnsigned,
    ExtractSigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Of floats: at least one is no number.
    Unordered,
    /// Of floats: both are numbers.
    Ordered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    Unsigned,
    Signed,
    Float,
    /// Of floats: true where one is no number.
    FloatOrUnordered,
    /// Of floats of 16 bits.
    Half,
    WideUnsigned,
    WideSigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    Butterfly,
    Up,
    Down,
    Index,
}

/// What the operands of a product of matrices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    Bf16,
    F16,
    Tf32,
}

/// Whether something is done: always or never, or where a predicate holds.
#[derive(Clone, Copy, Debug)]
pub enum Scale {
    Always(bool),
    If(Register),
}

/// The left factor of a product of a warpgroup. `transposed`: its rows follow each other in memory, not its columns.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    Registers([Register; 4]),
    Shared { descriptor: Operand, transposed: bool },
}

/// A product of a warpgroup, 64 rows and 16 between: `d` is it, or is added to.
#[derive(Clone, Debug)]
pub struct AsyncProduct {
    pub factors: Factors,
    pub d: Vec<Register>,
    pub left: Left,
    /// The descriptor of the right factor.
    pub right: Operand,
    /// Whether its columns follow each other in memory, not its rows.
    pub right_transposed: bool,
    pub add: Scale,
    /// Of the left factor and the right one.
    pub negated: [bool; 2],
}

/// What is done. Destinations come first, as in PTX.
#[derive(Clone, Debug)]
pub enum Operation {
    Unary(Unary, Register, Operand),
    /// `half`: only the lower 16 bits of the result are kept.
    Binary {
        what: Binary,
        half: bool,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Ternary(Ternary, Register, [Operand; 3]),
    Move(Register, Operand),
    Special(Register, Special),
    Pack(Register, [Operand; 2]),
    Unpack([Register; 2], Operand),
    WideUnary(Unary, Register, Operand),
    WideBinary(Binary, Register, Operand, Operand),
    WideMultiplyAdd(Register, [Operand; 3]),
    /// So many bits from one on.
    WideExtract {
        to: Register,
        from: Operand,
        first: Operand,
        length: Operand,
    },
    WideMove(Register, Operand),
    WidePack(Register, [Operand; 2]),
    WideUnpack([Register; 2], Operand),
    /// Of float64, as are the three after it.
    DoubleMultiplyAdd(Register, [Operand; 3]),
    DoubleAdd(Register, Operand, Operand),
    ToDouble(Register, Operand),
    FromDouble(Register, Operand),
    /// 32 bits by 32 bits to 64, and added to what is given.
    MultiplyWide {
        signed: bool,
        to: Register,
        a: Operand,
        b: Operand,
        more: Option<Operand>,
    },
    /// 16 bits by 16 bits to 32.
    MultiplyHalves {
        signed: bool,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Widen {
        signed: bool,
        to: Register,
        from: Operand,
    },
    /// The lower `bits` of a wide register.
    Narrow {
        bits: u32,
        to: Register,
        from: Operand,
    },
    /// The lower 16 bits of a narrow one, with or without their sign.
    Halve {
        signed: bool,
        to: Register,
        from: Operand,
    },
    Select(Register, Operand, Operand, Register),
    WideSelect(Register, Operand, Operand, Register),
    Compare {
        compared: Compared,
        relation: Relation,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Logic(Logic, Register, Register, Register),
    Negation(Register, Register),
    MovePredicate(Register, Register),
    Load {
        space: Space,
        bytes: u32,
        to: Vec<Register>,
        from: Address,
    },
    Store {
        space: Space,
        bytes: u32,
        to: Address,
        from: Vec<Operand>,
    },
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u32,
        read: Option<Operand>,
    },
    AwaitCopies,
    /// Of so many threads, or of all of the block.
    Barrier {
        number: usize,
        threads: Option<u32>,
    },
    WarpBarrier,
    /// Makes an mbarrier of so many arrivals.
    BeginArrivals(Address, Operand),
    /// Arrives at an mbarrier; may write a state.
    Arrive(Option<Register>, Address),
    /// Arrives at an mbarrier when the thread's copies have.
    ArriveAfterCopies(Address),
    /// Whether the phase of a parity has ended at an mbarrier.
    AwaitPhase {
        to: Register,
        at: Address,
        parity: Operand,
    },
    /// Gives a warpgroup more registers, or takes some.
    SetRegisters,
    /// A fence of which nothing here depends.
    Nothing,
    Exchange {
        how: Exchange,
        to: Register,
        from: Operand,
        lane: Operand,
        clamp: Operand,
    },
    LoadMatrices {
        transposed: bool,
        to: Vec<Register>,
        from: Address,
    },
    StoreMatrices {
        to: Address,
        from: Vec<Operand>,
    },
    TransposeMatrix(Register, Operand),
    Multiply {
        factors: Factors,
        d: [Register; 4],
        a: [Operand; 4],
        b: [Operand; 2],
        c: [Operand; 4],
    },
    /// Makes what was written to shared memory visible to products of warpgroups.
    FenceProxy,
    /// Orders accesses to registers before products that are asked for later.
    FenceProducts,
    MultiplyAsync(Box<AsyncProduct>),
    CommitProducts,
    /// Waits until no more than so many groups of products are under way.
    AwaitProducts(usize),
    Branch(u32),
    Exit,
}

impl Operation {
    /// Whether all threads of a warp have to do it together: because PTX wants it, or because it is known of whole warps only.
    pub fn is_together(&self) -> bool {
        use Operation as O;
        matches!(
            self,
            O::Barrier { .. }
                | O::WarpBarrier
                | O::ArriveAfterCopies(_)
                | O::AwaitPhase { .. }
                | O::SetRegisters
                | O::Exchange { .. }
                | O::LoadMatrices { .. }
                | O::StoreMatrices { .. }
                | O::TransposeMatrix(..)
                | O::Multiply { .. }
                | O::FenceProducts
                | O::MultiplyAsync(_)
                | O::CommitProducts
                | O::AwaitProducts(_)
        )
    }
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// The predicate it depends on, and the value that lets it be done.
    pub guard: Option<(Register, bool)>,
    pub operation: Operation,
    /// Where it stands in the text, from 1.
    pub line: u32,
}
