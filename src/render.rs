//! Draws what the language has to say. In: a diagnostic and its source; out: text with the source lines in it.

use std::io::IsTerminal;

use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use chunkwise_dsl::diagnostic::{Diagnostic, Severity};
use chunkwise_dsl::span::Span;
use serde_json::{Value, json};

use crate::source::Source;

/// A message as a person reads it.
pub fn draw(source: &Source, diagnostic: &Diagnostic, colours: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let text = source.text.as_str();
    let annotations = diagnostic.labels.iter().map(|label| {
        let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
        kind.span(inside(label.span, text)).label(label.text.as_str())
    });
    let mut group = level
        .primary_title(diagnostic.title.as_str())
        .id(diagnostic.code.number())
        .element(Snippet::source(text).path(source.path.as_str()).annotations(annotations));
    for note in &diagnostic.notes {
        group = group.element(Level::NOTE.message(note.as_str()));
    }
    let mut groups = vec![group];
    if let Some(help) = &diagnostic.help {
        match &help.replacement {
            Some(replacement) => {
                let patch = Patch::new(inside(replacement.span, text), replacement.text.as_str());
                let snippet = Snippet::source(text).path(source.path.as_str()).patch(patch);
                groups.push(Group::with_title(Level::HELP.secondary_title(help.text.as_str())).element(snippet));
            }
            None => {
                let last = groups.pop().expect("the first group was just pushed");
                groups.push(last.element(Level::HELP.message(help.text.as_str())));
            }
        }
    }
    let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
    renderer.render(&groups)
}

/// A message as a program reads it.
pub fn as_json(source: &Source, diagnostic: &Diagnostic) -> Value {
    let place = |span: Span| {
        let range = inside(span, &source.text);
        let (line, column) = line_and_column(&source.text, range.start);
        json!({ "start": range.start, "end": range.end, "line": line, "column": column })
    };
    json!({
        "file": source.path,
        "code": diagnostic.code.number(),
        "severity": match diagnostic.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "title": diagnostic.title,
        "labels": diagnostic.labels.iter().map(|label| json!({
            "at": place(label.span), "text": label.text, "primary": label.primary,
        })).collect::<Vec<_>>(),
        "notes": diagnostic.notes,
        "help": diagnostic.help.as_ref().map(|help| json!({
            "text": help.text,
            "replace": help.replacement.as_ref().map(|it| json!({ "at": place(it.span), "with": it.text })),
        })),
    })
}

/// Whether standard error is a screen that shows colours.
pub fn colours_on_stderr() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `1 error`, `3 errors`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Line and column of a byte, counted from 1, the column in characters.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The span as a byte range of this text, whatever the span says.
fn inside(span: Span, text: &str) -> std::ops::Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(span.start);
    start..floor(span.end).max(start)
}
