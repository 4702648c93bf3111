//! What was written: the syntax of a file, every node with its place, comments kept.
//!
//! Comes from [`crate::parse`], goes to [`crate::check`] and [`crate::format`]. Names are not resolved and axes not
//! known. A statement that could not be read is here too, as [`StatementKind::Broken`], so that the others can be
//! checked all the same; a file that has one came with an error.

use crate::span::Span;

/// A source file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// Its recurrences, in order.
    pub recurrences: Vec<Recurrence>,
    /// Comments after the last one.
    pub trailing: Vec<Comment>,
}

/// A comment, to the end of its line.
#[derive(Clone, Debug, PartialEq)]
pub struct Comment {
    /// With its slashes, without the spaces at its end.
    pub text: String,
    /// Whether a blank line stands before it.
    pub blank_before: bool,
    /// Where it stands.
    pub span: Span,
}

impl Comment {
    /// The text of a doc comment (`///`), without the slashes; nothing for another comment.
    pub fn doc(&self) -> Option<&str> {
        let text = self.text.strip_prefix("///")?;
        if text.starts_with('/') { None } else { Some(text.strip_prefix(' ').unwrap_or(text)) }
    }
}

/// A name where it is declared or used.
#[derive(Clone, Debug, PartialEq)]
pub struct Name {
    /// The name.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// `recurrence name { … }`
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrence {
    /// Comments before it; the doc comments among them are its documentation.
    pub leading: Vec<Comment>,
    /// Whether a blank line stands between them and it.
    pub blank_before: bool,
    /// Its name.
    pub name: Name,
    /// What is between the braces.
    pub body: Block,
    /// A comment on the line of its closing brace.
    pub trailing: Option<Comment>,
    /// From the keyword to the closing brace.
    pub span: Span,
}

impl Recurrence {
    /// The documentation: the doc comments before it, without slashes, a line each.
    pub fn doc(&self) -> String {
        let lines: Vec<&str> = self.leading.iter().filter_map(Comment::doc).collect();
        lines.join("\n")
    }
}

/// Statements between braces.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The statements, in order.
    pub statements: Vec<Statement>,
    /// Comments after the last one.
    pub trailing: Vec<Comment>,
    /// With the braces.
    pub span: Span,
}

/// A statement with the comments that belong to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// Comments before it, and those inside it.
    pub leading: Vec<Comment>,
    /// Whether a blank line stands before it, after those comments.
    pub blank_before: bool,
    /// What it says.
    pub kind: StatementKind,
    /// A comment after it on its last line.
    pub trailing: Option<Comment>,
    /// The statement without its comments.
    pub span: Span,
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq)]
pub enum StatementKind {
    /// `axis K, V`
    Axes(Vec<Name>),
    /// `input q: [K], g: [] in (-inf, 0]`
    Inputs(Vec<TensorDecl>),
    /// `param u: [K]`
    Params(Vec<TensorDecl>),
    /// `const scale = K ^ -0.5`
    Consts(Vec<ConstDecl>),
    /// `state S: [K, V], n: [K]`
    States(Vec<TensorDecl>),
    /// `output o: [V] = …`
    Output {
        /// Its name.
        name: Name,
        /// Its axes, in the order of its layout.
        axes: AxisList,
        /// Its value.
        value: Expr,
    },
    /// `let name = …`
    Let {
        /// What is bound.
        name: Name,
        /// Its value.
        value: Expr,
    },
    /// `name = …`
    Update {
        /// What is updated.
        name: Name,
        /// Its new value.
        value: Expr,
    },
    /// `for var in axis { … }`
    For {
        /// The loop variable.
        var: Name,
        /// The axis it runs over.
        axis: Name,
        /// What is repeated.
        body: Block,
    },
    /// What could not be read. An error says why.
    Broken {
        /// As it stands in the source.
        text: String,
        /// Names it would seem to declare: nothing more is said about them.
        names: Vec<Name>,
    },
}

/// `name: [axes] in range`
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDecl {
    /// Its name.
    pub name: Name,
    /// Its axes, in the order of its layout.
    pub axes: AxisList,
    /// What it promises.
    pub range: Option<Range>,
    /// The declaration.
    pub span: Span,
}

/// `[K, V]`
#[derive(Clone, Debug, PartialEq)]
pub struct AxisList {
    /// Names of axes.
    pub names: Vec<Name>,
    /// With the brackets.
    pub span: Span,
}

/// `name = value`
#[derive(Clone, Debug, PartialEq)]
pub struct ConstDecl {
    /// Its name.
    pub name: Name,
    /// Its value.
    pub value: Expr,
    /// The declaration.
    pub span: Span,
}

/// What stands after `in`.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Bounds or norm.
    pub kind: RangeKind,
    /// Without the keyword.
    pub span: Span,
}

/// Bounds or norm.
#[derive(Clone, Debug, PartialEq)]
pub enum RangeKind {
    /// `[lo, hi)` and the like.
    Interval {
        /// Lower bound.
        lo: Bound,
        /// Upper bound.
        hi: Bound,
        /// `[` rather than `(`.
        lo_closed: bool,
        /// `]` rather than `)`.
        hi_closed: bool,
    },
    /// `unit(K)`
    Unit(Name),
}

/// A bound of an interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// As written: `-inf`, `0.5`.
    pub text: String,
    /// Its value.
    pub value: f64,
    /// Where it stands.
    pub span: Span,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it says.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// What an expression says.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `0.5`
    Number {
        /// As written.
        text: String,
        /// Its value.
        value: f64,
    },
    /// `q`
    Name(String),
    /// `(…)`
    Paren(Box<Expr>),
    /// `-x`
    Neg(Box<Expr>),
    /// `x + y`
    Binary {
        /// Which.
        op: Operator,
        /// Where it stands.
        op_span: Span,
        /// Left operand.
        lhs: Box<Expr>,
        /// Right operand.
        rhs: Box<Expr>,
    },
    /// `f(x, y)`
    Call {
        /// What is called.
        function: Name,
        /// With what.
        arguments: Vec<Expr>,
    },
    /// `K -> L`, an argument of `rename`.
    Mapping {
        /// The axis that disappears.
        from: Name,
        /// The axis that takes its place.
        to: Name,
    },
    /// `k[r]`
    Index {
        /// What is indexed.
        base: Box<Expr>,
        /// The position.
        index: Box<Expr>,
    },
}

/// An operator between two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `@`
    Contract,
    /// `^`
    Pow,
}

impl Operator {
    /// As it is typed.
    pub fn symbol(self) -> &'static str {
        match self {
            Operator::Add => "+",
            Operator::Sub => "-",
            Operator::Mul => "*",
            Operator::Div => "/",
            Operator::Contract => "@",
            Operator::Pow => "^",
        }
    }
}
