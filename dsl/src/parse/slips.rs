//! Habits from other notations, word by word: `;`, `**`, `np.exp`, `S.T`, `×`. In: tokens; out: an error for each,
//! and a text of the same length in which they are mended, so that reading goes on as if they had been typed right.
//!
//! What cannot be mended is left in place; the statement it stands in is then broken, and no second error is given.

use super::{Token, TokenKind};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::span::Span;

/// Modules whose functions people write with a prefix.
const MODULES: [&str; 14] =
    ["np", "numpy", "torch", "jnp", "jax", "lax", "math", "F", "nn", "functional", "tf", "mx", "scipy", "special"];

struct Mender<'a> {
    source: &'a str,
    mended: Vec<u8>,
    diagnostics: Vec<Diagnostic>,
    semicolons: Vec<Span>,
    hash_comments: Vec<Span>,
    /// Foreign names already reported.
    reported: Vec<&'a str>,
}

/// Reports slips and mends them.
pub fn mend(source: &str, tokens: &[Token]) -> (String, Vec<Diagnostic>) {
    let mut mender = Mender {
        source,
        mended: source.as_bytes().to_vec(),
        diagnostics: Vec::new(),
        semicolons: Vec::new(),
        hash_comments: Vec::new(),
        reported: Vec::new(),
    };
    let mut index = 0;
    while index < tokens.len() {
        index = mender.token(tokens, index);
    }
    mender.report_repeated();
    let mended = String::from_utf8(mender.mended).expect("whole characters are replaced by ASCII of the same length");
    (mended, mender.diagnostics)
}

impl<'a> Mender<'a> {
    fn text(&self, span: Span) -> &'a str {
        &self.source[span.start..span.end]
    }

    fn put(&mut self, span: Span, text: &str) {
        let place = &mut self.mended[span.start..span.end];
        place.fill(b' ');
        place[..text.len()].copy_from_slice(text.as_bytes());
    }

    /// Looks at one token, and those after it that belong to the same slip; returns where to go on.
    fn token(&mut self, tokens: &[Token], index: usize) -> usize {
        let token = tokens[index];
        match token.kind {
            TokenKind::Comment | TokenKind::Number => {}
            TokenKind::HashComment => {
                self.hash_comments.push(token.span);
                self.put(token.span, "");
            }
            TokenKind::BlockComment => {
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::ForeignComment,
                        Span::new(token.span.start, token.span.start + 2),
                        "`/* … */` is no comment here",
                        "comments begin with `//`",
                    )
                    .help("put `//` before each line of the comment"),
                );
                self.blank_out(token.span);
            }
            TokenKind::BadNumber => self.bad_number(token.span),
            TokenKind::Word => return self.word(tokens, index),
            TokenKind::Symbol => return self.symbol(tokens, index),
            TokenKind::Stray => return self.stray(tokens, index),
        }
        index + 1
    }

    /// Blanks that keep the ends of lines.
    fn blank_out(&mut self, span: Span) {
        for byte in &mut self.mended[span.start..span.end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    }

    fn bad_number(&mut self, span: Span) {
        let text = self.text(span);
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, rest) = text.split_at(digits);
        let title = format!("`{text}` is no number");
        let is_name = |text: &str| text.chars().all(|c| c == '_' || c.is_alphanumeric());
        let error = if number.is_empty() {
            Diagnostic::new(Code::MalformedNumber, span, title, "a digit has to stand before the point").replace(
                "write the zero",
                span,
                format!("0{text}"),
            )
        } else if rest == "." {
            Diagnostic::new(Code::MalformedNumber, span, title, "a digit has to stand after the point").replace(
                "leave the point out",
                span,
                number,
            )
        } else if rest.starts_with('_') && rest.chars().all(|c| c == '_' || c.is_ascii_digit()) {
            Diagnostic::new(Code::MalformedNumber, span, title, "digits are not grouped with `_`").replace(
                "write the digits together",
                span,
                text.replace('_', ""),
            )
        } else if is_name(rest) {
            Diagnostic::new(Code::MalformedNumber, span, title, "a number with a name stuck to it").replace(
                "a product is written with `*`",
                span,
                format!("{number} * {rest}"),
            )
        } else {
            Diagnostic::new(Code::MalformedNumber, span, title, "not a number as the language writes it")
                .note("numbers look like 2, 0.5 or 1e-6")
        };
        self.diagnostics.push(error);
    }

    fn word(&mut self, tokens: &[Token], index: usize) -> usize {
        let span = tokens[index].span;
        let text = self.text(span);
        if let Some(base) = text.strip_suffix('ᵀ').or_else(|| text.strip_suffix('ᵗ')) {
            let mark = Span::new(span.start + base.len(), span.end);
            self.transpose(mark);
        } else if !text.is_ascii() && !self.reported.contains(&text) {
            self.reported.push(text);
            let error = Diagnostic::new(
                Code::Lookalike,
                span,
                format!("the name `{text}` is not plain ASCII"),
                "names are made of the letters A to Z, digits and `_`",
            );
            let spelt = spell(text);
            self.diagnostics.push(match spelt {
                Some(spelt) => error.replace("spell it out", span, spelt),
                None => error.note("names become names in C and Python, where only those are safe"),
            });
        }
        // `np.exp`, `torch.nn.functional.silu`: the last word is meant. `S.T` and `x.sum()` are something else.
        let symbol_at = |at: usize, symbol: &str| {
            tokens.get(at).is_some_and(|token| token.kind == TokenKind::Symbol && self.text(token.span) == symbol)
        };
        let is_word = |at: usize| tokens.get(at).is_some_and(|token| token.kind == TokenKind::Word);
        let mut last = index;
        while symbol_at(last + 1, ".") && is_word(last + 2) {
            last += 2;
        }
        if last == index {
            return index + 1;
        }
        let whole = span.join(tokens[last].span);
        let member = self.text(tokens[last].span);
        let dot = tokens[last - 1].span;
        if matches!(member, "T" | "mT" | "H" | "t" | "transpose" | "permute" | "swapaxes") {
            let called = symbol_at(last + 1, "(");
            self.transpose(dot.join(tokens[last].span));
            if called {
                return last + 1;
            }
        } else if MODULES.contains(&text) {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::ForeignPrefix,
                    whole,
                    format!("`{}` names a Python module", self.text(whole)),
                    "functions stand alone here",
                )
                .replace("write the function without its module", whole, member),
            );
            self.put(Span::new(whole.start, tokens[last].span.start), "");
        } else {
            let object = self.text(Span::new(span.start, dot.start));
            self.diagnostics.push(
                Diagnostic::new(
                    Code::ForeignPrefix,
                    dot.join(tokens[last].span),
                    format!("values have no members: `.{member}`"),
                    "there is nothing behind a `.` here",
                )
                .help(format!("a function is written before its value: `{member}({object}, …)`")),
            );
        }
        last + 1
    }

    fn transpose(&mut self, span: Span) {
        self.diagnostics.push(
            Diagnostic::new(Code::Transpose, span, "there is no transpose", "not needed: axes have names, not places")
                .note("`@` sums over the axes both sides share, whatever their order: `q @ S` and `S @ q` are the same value")
                .replace("leave it out", span, ""),
        );
        self.put(span, "");
    }

    fn symbol(&mut self, tokens: &[Token], index: usize) -> usize {
        let span = tokens[index].span;
        let text = self.text(span);
        match text {
            ";" => {
                self.semicolons.push(span);
                self.put(span, "");
            }
            "'" => self.transpose(span),
            "**" => {
                self.diagnostics.push(
                    Diagnostic::new(Code::ForeignPower, span, "a power is not written `**`", "found here").replace(
                        "write `^`",
                        span,
                        "^",
                    ),
                );
                self.put(span, "^");
            }
            "+=" | "-=" | "*=" | "/=" | "@=" | "^=" => self.compound(tokens, index),
            ":=" | "<-" | "==" => {
                self.diagnostics.push(
                    Diagnostic::new(
                        Code::ForeignAssignment,
                        span,
                        format!("a value is not given with `{text}`"),
                        "found here",
                    )
                    .replace("write `=`", span, "="),
                );
                self.put(span, "=");
            }
            "=>" => {
                self.diagnostics.push(
                    Diagnostic::new(Code::UnexpectedToken, span, "unexpected `=>`", "found here").replace(
                        "an axis is renamed with `->`, as in `rename(x, K -> L)`",
                        span,
                        "->",
                    ),
                );
                self.put(span, "->");
            }
            _ => {}
        }
        index + 1
    }

    fn compound(&mut self, tokens: &[Token], index: usize) {
        let span = tokens[index].span;
        let operator = &self.text(span)[..1];
        let target = index.checked_sub(1).map(|before| tokens[before]).filter(|token| token.kind == TokenKind::Word);
        let error = Diagnostic::new(
            Code::CompoundAssignment,
            span,
            format!("there is no `{}`", self.text(span)),
            "the update has to be written out",
        );
        self.diagnostics.push(match target {
            Some(target) => {
                let name = self.text(target.span);
                error.replace(format!("write `{name} = {name} {operator} …`"), span, format!("= {name} {operator}"))
            }
            None => error.help(format!("write `S = S {operator} …`")),
        });
        self.put(span, "=");
    }

    fn stray(&mut self, tokens: &[Token], index: usize) -> usize {
        let span = tokens[index].span;
        let text = self.text(span);
        if text == "\"" {
            // The whole string is one mistake.
            let same_line = tokens[index + 1..].iter().take_while(|token| !token.newline_before);
            let length = same_line.clone().position(|token| self.text(token.span) == "\"");
            let last = index + length.map_or(0, |length| length + 1);
            self.diagnostics.push(
                Diagnostic::new(
                    Code::UnexpectedCharacter,
                    span.join(tokens[last].span),
                    "there are no strings",
                    "not part of the language",
                )
                .note("values are numbers with axes; what is to be said in words goes into a comment, `// …`"),
            );
            return last + 1;
        }
        self.character(span);
        index + 1
    }

    fn character(&mut self, span: Span) {
        let text = self.text(span);
        let Some((ascii, meaning)) = lookalike(text) else {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::UnexpectedCharacter,
                    span,
                    format!("the character `{}` means nothing here", visible(text)),
                    "not part of the language",
                )
                .note(what_instead(text)),
            );
            return;
        };
        let error = Diagnostic::new(Code::Lookalike, span, format!("`{text}` is not the `{ascii}` one types"), meaning);
        self.diagnostics.push(error.replace(format!("type `{ascii}`"), span, ascii));
        self.put(span, ascii);
    }

    /// One error for all semicolons, and one for all `#` comments: they come in dozens.
    fn report_repeated(&mut self) {
        let semicolons =
            together(Code::Semicolon, &self.semicolons, "`;` is not used", "statements need nothing between them");
        if let Some(error) = semicolons {
            let first = error.span();
            self.diagnostics.push(error.replace("leave it out", first, ""));
        }
        let signs: Vec<Span> = self.hash_comments.iter().map(|span| Span::new(span.start, span.start + 1)).collect();
        let hashes = together(Code::ForeignComment, &signs, "`#` begins no comment here", "comments begin with `//`");
        if let Some(error) = hashes {
            let first = error.span();
            self.diagnostics.push(error.replace("write `//`", first, "//"));
        }
    }
}

/// One error for the same slip in several places, if there is any.
fn together(code: Code, spans: &[Span], title: &str, label: &str) -> Option<Diagnostic> {
    let (&first, others) = spans.split_first()?;
    let mut error = Diagnostic::new(code, first, title, label);
    for &other in others.iter().take(4) {
        error = error.and_at(other, "");
    }
    if others.len() > 4 {
        error = error.note(format!("and {} more", others.len() - 4));
    }
    Some(error)
}

/// A character that can be printed, or its code.
fn visible(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_unicode().to_string() } else { text.to_owned() }
}

/// What one types for a character of mathematics, and what to say about it.
fn lookalike(text: &str) -> Option<(&'static str, &'static str)> {
    Some(match text {
        "·" | "⋅" | "∙" | "•" => ("*", "`*` multiplies elementwise; to sum over shared axes write `@`"),
        "×" | "✕" => ("*", "`*` multiplies elementwise; to sum over shared axes write `@`"),
        "∘" | "⊙" | "⊗" | "∗" | "⨂" => {
            ("*", "`*` multiplies; axes align by name, so it is also the outer product")
        }
        "−" | "–" | "—" | "‐" | "‑" => ("-", "a character that looks like a minus"),
        "÷" | "∕" | "⁄" => ("/", "division"),
        "→" | "⟶" | "⇒" | "↦" => ("->", "an arrow"),
        "←" | "⟵" | "⇐" | "≔" => ("=", "a value is given with `=`"),
        "∞" => ("inf", "infinity, in a range"),
        "∈" => ("in", "membership, in a range"),
        "²" => ("^2", "a square"),
        "³" => ("^3", "a cube"),
        "（" => ("(", "a wide bracket"),
        "）" => (")", "a wide bracket"),
        "，" => (",", "a wide comma"),
        "：" => (":", "a wide colon"),
        "＝" => ("=", "a wide `=`"),
        _ => return None,
    })
}

fn what_instead(text: &str) -> &'static str {
    match text {
        "%" => "there is no remainder; every token does the same",
        "<" | ">" | "!" | "?" | "&" | "|" | "≤" | "≥" => {
            "there are no comparisons and no branches; `max`, `min`, `sign` and `relu` are there for cut-offs"
        }
        "`" | "“" | "”" => "there are no strings",
        "\\" => "a statement may go on over several lines as it is; newlines mean nothing",
        "√" => "the square root is `sqrt(x)`",
        "∑" | "Σ" => "a sum over an axis is `sum(x, K)`",
        _ => "the operators are + - * / @ ^ and =",
    }
}

/// A Greek name in letters.
fn spell(text: &str) -> Option<String> {
    let mut spelt = String::new();
    for c in text.chars() {
        let letter = match c {
            'α' => "alpha",
            'β' => "beta",
            'γ' => "gamma",
            'δ' => "delta",
            'ε' | 'ϵ' => "epsilon",
            'ζ' => "zeta",
            'η' => "eta",
            'θ' | 'ϑ' => "theta",
            'ι' => "iota",
            'κ' | 'ϰ' => "kappa",
            'λ' => "lambda",
            'μ' | 'µ' => "mu",
            'ν' => "nu",
            'ξ' => "xi",
            'π' => "pi",
            'ρ' => "rho",
            'σ' | 'ς' => "sigma",
            'τ' => "tau",
            'φ' | 'ϕ' => "phi",
            'χ' => "chi",
            'ψ' => "psi",
            'ω' => "omega",
            'Γ' => "Gamma",
            'Δ' => "Delta",
            'Θ' => "Theta",
            'Λ' => "Lambda",
            'Σ' => "Sigma",
            'Φ' => "Phi",
            'Ψ' => "Psi",
            'Ω' => "Omega",
            _ if c == '_' || c.is_ascii_alphanumeric() => {
                spelt.push(c);
                continue;
            }
            _ => return None,
        };
        spelt.push_str(letter);
    }
    Some(spelt)
}
