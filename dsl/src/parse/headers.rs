//! What to say about text outside of recurrences, and about the heads of recurrences and loops. In: words and their
//! places; out: an error, and what can be made out in spite of it.

use super::{KEYWORDS, STATEMENT_KEYWORDS, Token, TokenKind};
use crate::ast::Name;
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::span::Span;

/// Text outside of any recurrence.
pub fn outside(word: &str, first: Token, span: Span) -> Diagnostic {
    if word == "}" {
        return Diagnostic::new(Code::UnopenedBracket, first.span, "a `}` too many", "nothing is open here").replace(
            "leave it out",
            first.span,
            "",
        );
    }
    let error = Diagnostic::new(Code::OutsideRecurrence, span, "this stands outside of any recurrence", "found here");
    if STATEMENT_KEYWORDS.contains(&word) || first.kind == TokenKind::Word {
        error.help("put it between the braces of `recurrence name { … }`")
    } else {
        error.note("a file holds `recurrence name { … }`, as many as one likes, and comments")
    }
}

/// A `{` without its `}`.
pub fn unclosed_brace(brace: Span, header: Span, end: usize) -> Diagnostic {
    Diagnostic::new(Code::UnclosedBracket, brace, "this `{` is never closed", "opened here")
        .and_at(header, "belongs to this")
        .replace("put `}` after its last statement", Span::new(end, end), "\n}")
}

/// A bad `recurrence name`; also gives a name to go on with.
pub fn recurrence_header(words: &[&str], spans: &[Span]) -> (Diagnostic, Name) {
    let keyword = spans.first().copied().unwrap_or_default();
    let name = |index: usize| match (words.get(index), spans.get(index)) {
        (Some(text), Some(&span)) => Name { text: (*text).to_owned(), span },
        (None, _) | (_, None) => Name { text: String::new(), span: keyword },
    };
    if words.first() != Some(&"recurrence") {
        let found = words.first().copied().unwrap_or_default();
        let error = Diagnostic::new(
            Code::MalformedRecurrence,
            keyword,
            format!("`{found}` begins nothing"),
            "a file holds recurrences",
        )
        .replace("did you mean `recurrence`?", keyword, "recurrence");
        return (error, name(1));
    }
    match words.get(1) {
        Some(word) if KEYWORDS.contains(word) => (reserved(word, spans[1]), name(1)),
        Some(word) if word.starts_with(|c: char| c.is_alphabetic()) => {
            let rest = spans.get(2).copied().unwrap_or(keyword).join(spans.last().copied().unwrap_or(keyword));
            let error = Diagnostic::new(
                Code::MalformedRecurrence,
                rest,
                "only a name stands between `recurrence` and `{`",
                "this does not belong here",
            )
            .note("inputs, states and outputs are declared between the braces")
            .replace("leave it out", rest, "");
            (error, name(1))
        }
        Some(_) | None => {
            let error =
                Diagnostic::new(Code::MalformedRecurrence, keyword, "a recurrence needs a name", "no name after this")
                    .help("write `recurrence name { … }`");
            (error, Name { text: String::new(), span: keyword })
        }
    }
}

/// A bad `for var in axis`; also gives the variable and the axis, if they can be made out.
pub fn for_header(words: &[&str], spans: &[Span]) -> (Diagnostic, Option<(Name, Name)>) {
    let whole = spans.first().copied().unwrap_or_default().join(spans.last().copied().unwrap_or_default());
    let name = |index: usize| Name { text: words[index].to_owned(), span: spans[index] };
    let is_name = |word: &&str| word.starts_with(|c: char| c.is_alphabetic() || c == '_') && !KEYWORDS.contains(word);
    let var = words.get(1).filter(|word| is_name(word)).map(|_| name(1));
    let axis = (2..words.len()).rev().find(|&index| is_name(&words[index]) && words[index] != "range").map(name);
    if let Some(word) = words.get(1)
        && KEYWORDS.contains(word)
        && *word != "in"
    {
        return (reserved(word, spans[1]), None);
    }
    let error = Diagnostic::new(
        Code::MalformedFor,
        whole,
        "a loop runs over an axis, from its first position to its last",
        "not of the form `for r in R`",
    );
    let error = match (&var, &axis) {
        (Some(var), Some(axis)) => {
            let text = format!("for {} in {}", var.text, axis.text);
            error.replace(format!("write `{text} {{`"), whole, text)
        }
        (None, _) | (_, None) => error.help("write `for r in R { … }`, with `axis R` declared"),
    };
    (error, var.zip(axis))
}

/// A keyword where a name has to stand.
pub fn reserved(word: &str, span: Span) -> Diagnostic {
    Diagnostic::new(Code::ReservedName, span, format!("`{word}` is a word of the language"), "a name has to stand here")
        .replace("choose another name", span, format!("{word}_"))
}
