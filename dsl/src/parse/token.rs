//! Words of a source text and where lines end between them. Plain data between the reader and the cutter.

use crate::span::Span;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `// …`
    Comment,
    /// `/* … */`, which the language does not have.
    BlockComment,
    /// `# …`, which the language does not have.
    HashComment,
    /// A number.
    Number,
    /// A number with something stuck to it.
    BadNumber,
    /// A name or a keyword.
    Word,
    /// An operator, a bracket, a comma …
    Symbol,
    /// Any other character.
    Stray,
}

/// A word of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Where it stands.
    pub span: Span,
    /// Whether a line ends before it.
    pub newline_before: bool,
    /// Whether a blank line stands before it.
    pub blank_before: bool,
}

/// The words a name may not be.
pub const KEYWORDS: [&str; 10] =
    ["recurrence", "axis", "input", "param", "const", "state", "output", "let", "for", "in"];

/// The words a statement begins with.
pub const STATEMENT_KEYWORDS: [&str; 8] = ["axis", "input", "param", "const", "state", "output", "let", "for"];
