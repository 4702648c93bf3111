//! Why a statement could not be read, in words, with what to type instead. In: the words of one statement and where
//! reading stopped; out: one error. It looks for the likely mistake first and falls back on what was expected.

use super::headers;
use super::reader::{MAX_DEPTH, ReadError};
use super::{KEYWORDS, STATEMENT_KEYWORDS, Token, TokenKind};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::span::Span;
use crate::suggest::nearest;

/// A statement that could not be read. `after` is what follows it.
pub fn statement(words: &[&str], tokens: &[Token], error: &ReadError, after: Option<(Span, &str)>) -> Diagnostic {
    let (at, expected) = match error {
        ReadError::TooDeep(span) => {
            let first = tokens.iter().find(|token| token.span.start >= span.start);
            return Diagnostic::new(
                Code::TooDeep,
                first.map_or(*span, |token| token.span),
                format!("this expression is more than {MAX_DEPTH} operations deep"),
                "the expression that begins here",
            )
            .help("name parts of it with `let`");
        }
        ReadError::NumberTooLarge(span) => {
            return Diagnostic::new(
                Code::MalformedNumber,
                *span,
                "this number is too large",
                "float64 ends at 1.8e308",
            );
        }
        ReadError::Expected { at, expected } => (*at, expected.as_slice()),
    };
    let statement = Statement { words, tokens };
    statement
        .indexed_assignment()
        .or_else(|| statement.foreign_keyword())
        .or_else(|| statement.keyword_as_name())
        .or_else(|| statement.declaration())
        .or_else(|| statement.without_equals())
        .or_else(|| statement.brackets())
        .or_else(|| statement.keyword_argument())
        .or_else(|| statement.index_list(at))
        .or_else(|| statement.range(at))
        .or_else(|| statement.operator_missing(at))
        .or_else(|| statement.index_in_braces(at))
        .unwrap_or_else(|| statement.unexpected(at, expected, after))
}

struct Statement<'a> {
    words: &'a [&'a str],
    tokens: &'a [Token],
}

impl Statement<'_> {
    fn word(&self, index: usize) -> &str {
        self.words.get(index).copied().unwrap_or("")
    }

    fn span(&self, index: usize) -> Span {
        self.tokens.get(index).or(self.tokens.last()).map(|token| token.span).unwrap_or_default()
    }

    fn whole(&self) -> Span {
        self.span(0).join(self.span(self.tokens.len()))
    }

    fn is_word(&self, index: usize) -> bool {
        self.tokens.get(index).is_some_and(|token| token.kind == TokenKind::Word)
    }

    fn is_name(&self, index: usize) -> bool {
        self.is_word(index) && !KEYWORDS.contains(&self.word(index))
    }

    fn position(&self, word: &str) -> Option<usize> {
        self.words.iter().position(|found| *found == word)
    }

    /// The index of the token at or after a byte.
    fn token_at(&self, at: usize) -> usize {
        self.tokens.iter().position(|token| token.span.end > at).unwrap_or(self.tokens.len())
    }

    /// `S[r] = …`
    fn indexed_assignment(&self) -> Option<Diagnostic> {
        let equals = self.position("=")?;
        if !(self.is_name(0) && self.word(1) == "[" && self.word(equals - 1) == "]") {
            return None;
        }
        let target = self.span(0).join(self.span(equals - 1));
        let name = self.word(0);
        let is_time = matches!(self.word(2), "t" | "i" | "n");
        let error = Diagnostic::new(
            Code::IndexedAssignment,
            target,
            "a state is updated as a whole",
            "one position of it cannot be assigned",
        );
        let note = if is_time {
            "time is never written: on the right of `=` the state is the one before this statement, on the left the one after, and an input is its value for the token"
        } else {
            "to write to one row, add an outer product: `S = S + e * v`, with `e: [K]` zero everywhere else"
        };
        Some(error.note(note).replace(format!("write `{name} = …`"), target, name))
    }

    /// `return o`, `if …`, `while …`
    fn foreign_keyword(&self) -> Option<Diagnostic> {
        let word = self.word(0);
        let (title, note) = match word {
            "return" | "yield" => ("nothing is returned", "an output is declared: `output o: [V] = …`"),
            "if" | "else" | "elif" | "while" | "match" | "when" => (
                "there are no branches",
                "every token does the same; a gate multiplies: `S = S + gate * (…)`, and `max`, `min`, `relu` cut off",
            ),
            "def" | "fn" | "function" | "lambda" | "class" => {
                ("functions cannot be defined", "a value of one token gets its name with `let phi = elu(q) + 1`")
            }
            "import" | "from" | "use" | "include" => {
                ("nothing is imported", "every function of the language is always there")
            }
            "var" | "mut" | "val" | "auto" | "float" | "Tensor" | "tensor" if self.is_word(1) => (
                "this declares nothing here",
                "a value of one token is named with `let name = …`, a state with `state S: [K, V]`",
            ),
            _ => return None,
        };
        if self.word(1) == "=" {
            return None;
        }
        Some(
            Diagnostic::new(
                Code::ForeignStatement,
                self.span(0),
                title,
                format!("`{word}` is not part of the language"),
            )
            .note(note),
        )
    }

    fn keyword_as_name(&self) -> Option<Diagnostic> {
        let is_declaration = STATEMENT_KEYWORDS.contains(&self.word(0));
        if is_declaration && self.is_word(1) && KEYWORDS.contains(&self.word(1)) {
            return Some(headers::reserved(self.word(1), self.span(1)));
        }
        (2..self.words.len())
            .find(|&index| {
                KEYWORDS.contains(&self.word(index))
                    && self.word(index) != "in"
                    && matches!(self.word(index - 1), "," | "+" | "-" | "*" | "/" | "@" | "^" | "(" | "=" | "[")
                    && self.word(index + 1) != "="
            })
            .map(|index| headers::reserved(self.word(index), self.span(index)))
    }

    /// A declaration that lacks a part.
    fn declaration(&self) -> Option<Diagnostic> {
        let keyword = self.word(0);
        if keyword == "let" && self.is_name(1) && self.word(2) == ":" {
            let end = self.position("=").map_or(self.words.len(), |equals| equals).max(3);
            let axes = self.span(2).join(self.span(end - 1));
            return Some(
                Diagnostic::new(
                    Code::MalformedDeclaration,
                    axes,
                    "a `let` declares no axes",
                    "they follow from its value",
                )
                .replace("leave them out", axes, ""),
            );
        }
        if keyword == "output" && self.is_name(1) && self.position("=").is_none() {
            let end = self.whole().end;
            let name = self.word(1);
            return Some(
                Diagnostic::new(
                    Code::OutputWithoutValue,
                    self.whole(),
                    format!("output `{name}` is given no value"),
                    "an output gets its value where it is declared",
                )
                .replace(
                    format!("write `output {name}: [V] = …`, after the statements it reads"),
                    Span::new(end, end),
                    if self.position(":").is_some() { " = …" } else { ": [V] = …" },
                ),
            );
        }
        if !matches!(keyword, "input" | "param" | "state" | "output") || !self.is_name(1) {
            return None;
        }
        // Each declaration of the list: a name, `:`, brackets.
        let mut index = 1;
        while index < self.words.len() {
            let name = self.word(index).to_owned();
            if !self.is_name(index) {
                return None;
            }
            if self.word(index + 1) == "[" || (keyword == "output" && self.word(index + 1) == "=") {
                let after = self.span(index).end;
                let (label, help, insert) = if self.word(index + 1) == "[" {
                    ("`:` has to stand between the name and its axes", "put `:` there".to_owned(), ":")
                } else {
                    ("its axes have to follow", format!("write `{name}: [V]`, with the axes it has"), ": [V]")
                };
                return Some(
                    Diagnostic::new(
                        Code::MalformedDeclaration,
                        self.span(index),
                        format!("`{name}` is not declared with its axes"),
                        label,
                    )
                    .replace(help, Span::new(after, after), insert),
                );
            }
            if matches!(self.word(index + 1), "" | "," | "in" | "=") {
                let after = self.span(index).end;
                return Some(
                    Diagnostic::new(
                        Code::MalformedDeclaration,
                        self.span(index),
                        format!("`{name}` is declared without axes"),
                        "its axes have to follow",
                    )
                    .note(format!("`{name}: [K]` has one axis, `{name}: []` is a single number"))
                    .replace(
                        format!("write `{name}: []` or name its axes"),
                        Span::new(after, after),
                        ": []",
                    ),
                );
            }
            if self.word(index + 1) == ":" && self.word(index + 2) != "[" {
                return Some(self.axes_without_brackets(index, &name));
            }
            if keyword == "state" && self.word(index + 1) == ":" {
                let close = (index..self.words.len()).find(|&at| self.word(at) == "]").unwrap_or(index);
                if self.word(close + 1) == "=" {
                    let end = self.whole().end;
                    let rest = Span::new(self.span(close + 1).start, end);
                    return Some(
                        Diagnostic::new(
                            Code::MalformedDeclaration,
                            rest,
                            format!("state `{name}` is given a value where it is declared"),
                            "a state begins at zero, or where the caller says",
                        )
                        .replace(
                            "leave the value out",
                            Span::new(self.span(close).end, end),
                            "",
                        ),
                    );
                }
            }
            // On to the next one: the comma outside of brackets.
            let mut depth = 0usize;
            while index < self.words.len() {
                match self.word(index) {
                    "(" | "[" => depth += 1,
                    ")" | "]" => depth = depth.saturating_sub(1),
                    "," if depth == 0 => break,
                    _ => {}
                }
                index += 1;
            }
            index += 1;
        }
        None
    }

    /// `q: K` for `q: [K]`.
    fn axes_without_brackets(&self, index: usize, name: &str) -> Diagnostic {
        let first = index + 2;
        let mut last = first;
        // `q: K, V` is one tensor unless a `:` follows the second name.
        while self.word(last + 1) == "," && self.is_name(last + 2) && self.word(last + 3) != ":" {
            last += 2;
        }
        let span = self.span(first).join(self.span(last.min(self.tokens.len().saturating_sub(1))));
        let error = Diagnostic::new(
            Code::MalformedDeclaration,
            span,
            format!("the axes of `{name}` need brackets"),
            "found here",
        );
        if self.is_name(first) {
            let axes: Vec<&str> = (first..=last).step_by(2).map(|at| self.word(at)).collect();
            let text = format!("[{}]", axes.join(", "));
            error.replace("write them in brackets", span, text)
        } else {
            error.help(format!("write `{name}: [K, V]`, or `{name}: []` for a single number"))
        }
    }

    fn without_equals(&self) -> Option<Diagnostic> {
        let keyword = self.word(0);
        let first_equals = self.position("=");
        if matches!(keyword, "let" | "const") {
            if !self.is_name(1) || self.word(2) == "=" {
                return None;
            }
            let after = self.span(1).end;
            let name = self.word(1);
            return Some(
                Diagnostic::new(
                    Code::MissingEquals,
                    self.span(1),
                    format!("`{name}` is given no value"),
                    "`=` has to follow",
                )
                .replace(format!("write `{keyword} {name} = …`"), Span::new(after, after), " ="),
            );
        }
        if STATEMENT_KEYWORDS.contains(&keyword) || keyword == "in" || !self.is_word(0) {
            return None;
        }
        // A word that is nearly a keyword, before a name.
        if self.is_word(1) || self.word(1) == ":" {
            if let Some(meant) = nearest(keyword, STATEMENT_KEYWORDS).filter(|_| self.is_word(1)) {
                return Some(
                    Diagnostic::new(
                        Code::UnknownStatement,
                        self.span(0),
                        format!("`{keyword}` begins no statement"),
                        "not a word of the language",
                    )
                    .replace(format!("did you mean `{meant}`?"), self.span(0), meant),
                );
            }
            if self.word(1) == ":" {
                let start = self.span(0).start;
                let meant = if first_equals.is_some() { "output" } else { "input" };
                return Some(
                    Diagnostic::new(
                        Code::UnknownStatement,
                        self.span(0),
                        format!("it is not said what `{keyword}` is"),
                        "a declaration begins with `input`, `param`, `state` or `output`",
                    )
                    .replace(
                        format!("perhaps `{meant}`"),
                        Span::new(start, start),
                        format!("{meant} "),
                    ),
                );
            }
            if first_equals.is_some_and(|equals| equals > 1) {
                return Some(
                    Diagnostic::new(
                        Code::UnknownStatement,
                        self.span(0),
                        format!("`{keyword}` begins no statement"),
                        "not a word of the language",
                    )
                    .note("a statement begins with axis, input, param, const, state, output, let, for, or the name of a state"),
                );
            }
        }
        if first_equals.is_some() {
            return None;
        }
        Some(
            Diagnostic::new(Code::MissingEquals, self.whole(), "nothing happens to this value", "`=` is missing")
                .note("a statement gives a value to a name: `S = …`, `let x = …` or `output o: [V] = …`"),
        )
    }

    fn brackets(&self) -> Option<Diagnostic> {
        let mut open: Vec<usize> = Vec::new();
        for index in 0..self.words.len() {
            if self.tokens[index].kind != TokenKind::Symbol {
                continue;
            }
            match self.word(index) {
                "(" | "[" => open.push(index),
                bracket @ (")" | "]") if open.pop().is_none() => {
                    let error = Diagnostic::new(
                        Code::UnopenedBracket,
                        self.span(index),
                        format!("a `{bracket}` too many"),
                        "nothing is open here",
                    );
                    return Some(error.replace("leave it out", self.span(index), ""));
                }
                _ => {}
            }
        }
        let index = open.pop()?;
        let bracket = self.word(index);
        let closing = if bracket == "(" { ")" } else { "]" };
        let end = self.whole().end;
        Some(
            Diagnostic::new(
                Code::UnclosedBracket,
                self.span(index),
                format!("this `{bracket}` is never closed"),
                "opened here",
            )
            .replace(format!("put `{closing}` where it ends"), Span::new(end, end), closing),
        )
    }

    /// `sum(x, axis=K)`
    fn keyword_argument(&self) -> Option<Diagnostic> {
        let mut depth = 0usize;
        for index in 0..self.words.len() {
            match self.word(index) {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                "=" if depth > 0 && self.is_word(index - 1) => {
                    let span = self.span(index - 1).join(self.span(index));
                    let keyword = self.word(index - 1);
                    return Some(
                        Diagnostic::new(
                            Code::KeywordArgument,
                            span,
                            format!("arguments have no names: `{keyword}=`"),
                            "found here",
                        )
                        .note("a reduction takes the name of its axis second: `sum(x, K)`")
                        .replace("leave it out", span, ""),
                    );
                }
                _ => {}
            }
        }
        None
    }

    /// `k[r, 0]`, `k[:, r]`
    fn index_list(&self, at: usize) -> Option<Diagnostic> {
        let stop = self.token_at(at);
        if !matches!(self.word(stop), "," | ":") || !self.words[..stop.min(self.words.len())].contains(&"=") {
            return None;
        }
        let mut depth = 0usize;
        for index in (0..stop).rev() {
            match self.word(index) {
                ")" | "]" => depth += 1,
                "(" | "[" if depth > 0 => depth -= 1,
                "[" => {
                    let close = (stop..self.words.len()).find(|&at| self.word(at) == "]").unwrap_or(stop);
                    let span = self.span(index).join(self.span(close));
                    return Some(
                        Diagnostic::new(
                            Code::BadIndex,
                            span,
                            "an index is one position along one axis",
                            "more than that",
                        )
                        .note("`k[r]` takes position r along the axis that the loop `for r in R` runs over; several are written `k[r][s]`"),
                    );
                }
                "(" => return None,
                _ => {}
            }
        }
        None
    }

    /// Something odd after `in`.
    fn range(&self, at: usize) -> Option<Diagnostic> {
        let keyword = self.word(0);
        if !matches!(keyword, "input" | "param" | "state") {
            return None;
        }
        let stop = self.token_at(at).min(self.words.len());
        let start = (0..stop).rev().find(|&index| self.word(index) == "in")?;
        let from = start + 1;
        if self.word(from) == "unit" && self.word(from + 1) != "(" {
            return Some(
                Diagnostic::new(
                    Code::MalformedRange,
                    self.span(from),
                    "`unit` of which axis?",
                    "an axis has to follow",
                )
                .replace("write `unit(K)`", self.span(from), "unit(K)"),
            );
        }
        let mut end = stop.max(from);
        while end + 1 < self.words.len() && !matches!(self.word(end), "]" | ")") {
            end += 1;
        }
        let span = self.span(from).join(self.span(end));
        Some(
            Diagnostic::new(Code::MalformedRange, span, "this is no range", "cannot be read")
                .note("a range is two numbers in brackets, `inf` allowed: `[0, 1]`, `(-inf, 0]`; or `unit(K)` for a vector whose norm over K is at most one")
                .note("`[` and `]` include the bound, `(` and `)` exclude it; bounds are plain numbers"),
        )
    }

    /// Two values with nothing between them.
    fn operator_missing(&self, at: usize) -> Option<Diagnostic> {
        let stop = self.token_at(at);
        let before = stop.checked_sub(1)?;
        if stop >= self.words.len() || !self.words[..stop].contains(&"=") {
            return None;
        }
        let ends_value = match self.tokens[before].kind {
            TokenKind::Word => !KEYWORDS.contains(&self.word(before)),
            TokenKind::Number => true,
            TokenKind::Symbol => matches!(self.word(before), ")" | "]"),
            TokenKind::BadNumber
            | TokenKind::Stray
            | TokenKind::Comment
            | TokenKind::BlockComment
            | TokenKind::HashComment => false,
        };
        let begins_value =
            matches!(self.tokens[stop].kind, TokenKind::Word | TokenKind::Number) || self.word(stop) == "(";
        if !ends_value || !begins_value || KEYWORDS.contains(&self.word(stop)) {
            return None;
        }
        let between = Span::new(self.span(before).end, self.span(before).end);
        Some(
            Diagnostic::new(
                Code::MissingOperator,
                self.span(stop),
                format!("no operator between `{}` and `{}`", self.word(before), self.word(stop)),
                "expected an operator before this",
            )
            .and_at(self.span(before), "a value ends here")
            .replace(
                "products are written out: `*` elementwise and outer, `@` to sum over shared axes",
                between,
                " *",
            ),
        )
    }

    /// `S_{t-1}`
    fn index_in_braces(&self, at: usize) -> Option<Diagnostic> {
        let stop = self.token_at(at);
        let before = stop.checked_sub(1)?;
        if self.word(stop) != "{" || !self.is_name(before) {
            return None;
        }
        let close = (stop..self.words.len()).find(|&index| self.word(index) == "}").unwrap_or(stop);
        let name = self.word(before).trim_end_matches('_');
        let span = self.span(before).join(self.span(close));
        Some(
            Diagnostic::new(Code::UnexpectedToken, span, "braces hold no index", "an index as in a paper")
                .note("time is never written: on the right of `=` a state is the one before the statement, on the left the one after, and an input is its value for the token")
                .replace(format!("write `{name}`"), span, name),
        )
    }

    fn unexpected(&self, at: usize, expected: &[&str], after: Option<(Span, &str)>) -> Diagnostic {
        let stop = self.token_at(at);
        let wanted = match expected {
            [] => "something else".to_owned(),
            [one] => (*one).to_owned(),
            [most @ .., last] => format!("{} or {last}", most.join(", ")),
        };
        if stop < self.words.len() {
            return Diagnostic::new(
                Code::UnexpectedToken,
                self.span(stop),
                format!("unexpected `{}`", self.word(stop)),
                format!("expected {wanted}"),
            );
        }
        let last = self.span(self.tokens.len());
        let error = Diagnostic::new(
            Code::UnexpectedToken,
            last,
            "this statement breaks off",
            format!("expected {wanted} after this"),
        );
        match after {
            Some((span, word)) if word != "}" => error.and_at(span, "another statement begins here"),
            Some(_) | None => error,
        }
    }
}
