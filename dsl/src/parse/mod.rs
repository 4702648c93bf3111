//! Text to syntax. In: any text at all; out: a [`File`] and every error found on the way. It never panics, and one
//! broken statement hides no error in another.
//!
//! The text is cut into tokens; slips from other notations are reported and mended in a copy of the same length, so
//! that reading can go on; the tokens are cut into statements; each statement is read alone.

mod cut;
mod explain;
mod reader;
mod slips;
mod token;

use crate::ast::File;
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use token::{KEYWORDS, STATEMENT_KEYWORDS, Token, TokenKind};

/// How deep brackets may nest: pest recurses on them.
const MAX_NESTING: usize = 100;

/// Reads a file. The diagnostics are errors; without any, nothing in the file is `Broken`.
pub fn parse(source: &str) -> (File, Vec<Diagnostic>) {
    let (mended, mut diagnostics) = slips::mend(source, &reader::tokens(source));
    let tokens = reader::tokens(&mended);
    if let Some(error) = too_deep(&mended, &tokens) {
        diagnostics.push(error);
        return (File { recurrences: Vec::new(), trailing: Vec::new() }, diagnostics);
    }
    let file = cut::file(source, &mended, &tokens, &mut diagnostics);
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().start);
    (file, diagnostics)
}

fn too_deep(text: &str, tokens: &[Token]) -> Option<Diagnostic> {
    let mut depth = 0usize;
    for token in tokens.iter().filter(|token| token.kind == TokenKind::Symbol) {
        match &text[token.span.start..token.span.end] {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Some(
                Diagnostic::new(
                    Code::TooDeep,
                    token.span,
                    format!("brackets nest more than {MAX_NESTING} deep"),
                    "this one is too deep",
                )
                .help("name the inner parts with `let`"),
            );
        }
    }
    None
}
