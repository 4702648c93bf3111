//! What the language has to say to its user, as plain data. Comes from parsing and checking, goes to whoever draws
//! it. Nothing here is drawn: every part is one line of words without markup and a place in the source.

use crate::codes::Code;
use crate::span::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The program is refused.
    Error,
    /// The program is accepted, and probably not what was meant.
    Warning,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// What kind of message it is; its number leads to the long explanation.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a few words.
    pub title: String,
    /// Places in the source and what is there. The first is where the trouble is.
    pub labels: Vec<Label>,
    /// Further sentences: why, and what follows from it.
    pub notes: Vec<String>,
    /// What to do about it.
    pub help: Option<Help>,
}

/// A place in the source and what is to be said there.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// What is there; may be empty.
    pub text: String,
    /// Whether this is where the trouble is, or only has to do with it.
    pub primary: bool,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Help {
    /// A sentence.
    pub text: String,
    /// The text to type, where it is known.
    pub replacement: Option<Replacement>,
}

/// A piece of source and the text to put in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Replacement {
    /// What to take out; empty to insert.
    pub span: Span,
    /// What to put in.
    pub text: String,
}

impl Diagnostic {
    /// A message about the place `span`, of the severity its code has.
    pub fn new(code: Code, span: Span, title: impl Into<String>, label: impl Into<String>) -> Diagnostic {
        let label = Label { span, text: label.into(), primary: true };
        Diagnostic {
            code,
            severity: code.severity(),
            title: title.into(),
            labels: vec![label],
            notes: Vec::new(),
            help: None,
        }
    }
    /// Adds a place that has to do with it.
    pub fn and_at(mut self, span: Span, text: impl Into<String>) -> Diagnostic {
        self.labels.push(Label { span, text: text.into(), primary: false });
        self
    }
    /// Adds a sentence.
    pub fn note(mut self, text: impl Into<String>) -> Diagnostic {
        self.notes.push(text.into());
        self
    }
    /// Says what to do.
    pub fn help(mut self, text: impl Into<String>) -> Diagnostic {
        self.help = Some(Help { text: text.into(), replacement: None });
        self
    }
    /// Says what to type, and where.
    pub fn replace(mut self, text: impl Into<String>, span: Span, replacement: impl Into<String>) -> Diagnostic {
        self.help = Some(Help { text: text.into(), replacement: Some(Replacement { span, text: replacement.into() }) });
        self
    }
    /// The place where the trouble is.
    pub fn span(&self) -> Span {
        self.labels.first().map(|label| label.span).unwrap_or_default()
    }
    /// Whether it refuses the program.
    pub fn is_error(&self) -> bool {
        match self.severity {
            Severity::Error => true,
            Severity::Warning => false,
        }
    }
}
