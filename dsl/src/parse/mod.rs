//! Text to syntax. In: any text at all; out: a [`File`] and every error found on the way. It never panics, and one
//! broken statement hides no error in another.
//!
//! The text is cut into tokens; slips from other notations are reported and mended in a copy of the same length, so
//! that reading can go on; the tokens are cut into statements; each statement is read alone.

mod cut;
mod explain;
mod headers;
mod reader;
mod slips;
mod token;

use crate::ast::File;
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use reader::Texts;
use token::{KEYWORDS, STATEMENT_KEYWORDS, Token, TokenKind};

/// How deep brackets may nest: pest recurses on them.
const MAX_NESTING: usize = 100;

/// Reads a file. The diagnostics are errors; without any, nothing in the file is `Broken`.
pub fn parse(source: &str) -> (File, Vec<Diagnostic>) {
    let (mended, mut diagnostics) = slips::mend(source, &reader::tokens(Texts { source, mended: source }));
    let texts = Texts { source, mended: &mended };
    let tokens = reader::tokens(texts);
    if let Some(error) = too_deep(texts, &tokens) {
        diagnostics.push(error);
        return (File { recurrences: Vec::new(), trailing: Vec::new() }, diagnostics);
    }
    let file = cut::file(texts, &tokens, &mut diagnostics);
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().start);
    (file, diagnostics)
}

fn too_deep(texts: Texts<'_>, tokens: &[Token]) -> Option<Diagnostic> {
    let mut depth = 0usize;
    for token in tokens.iter().filter(|token| token.kind == TokenKind::Symbol) {
        match texts.word(token.span) {
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
