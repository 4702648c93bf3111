//! Cuts the text of a tile program into words, numbers and signs.
//!
//! Takes text, gives tokens with their places; drops spaces and comments. Never looks at what the words mean.

use super::parse::ParseError;

/// A word, a number or a sign.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name, possibly with dots.
    Word(String),
    /// `%name`
    Scratch(String),
    /// Digits only.
    Integer(String),
    /// A number with a point or an exponent.
    Decimal(String),
    /// Punctuation.
    Sign(&'static str),
    /// The end of the text.
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Word(text) | Token::Integer(text) | Token::Decimal(text) => write!(f, "`{text}`"),
            Token::Scratch(name) => write!(f, "`%{name}`"),
            Token::Sign(sign) => write!(f, "`{sign}`"),
            Token::End => write!(f, "the end of the text"),
        }
    }
}

/// A token and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) token: Token,
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
}

/// Longer signs first.
const SIGNS: [&str; 18] =
    ["..", "+=", "-=", "<=", "==", "<", "=", "+", "-", "*", "/", "(", ")", "[", "]", "{", "}", ","];

fn is_word_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The tokens of a text, the last of them [`Token::End`].
pub(super) fn scan(text: &str) -> Result<Vec<Placed>, ParseError> {
    let mut tokens = Vec::new();
    for (line_idx, line) in text.lines().enumerate() {
        let chars: Vec<char> = line.chars().collect();
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            let start = at;
            let run = |mut at: usize, accept: &dyn Fn(char) -> bool| {
                while chars.get(at).is_some_and(|c| accept(*c)) {
                    at += 1;
                }
                at
            };
            let token = if c == '#' {
                break;
            } else if c.is_whitespace() {
                at += 1;
                continue;
            } else if is_word_start(c) {
                at = run(at, &is_word);
                // A dot joins names (`final.S`), two dots are a range.
                while chars.get(at) == Some(&'.') && chars.get(at + 1).is_some_and(|c| is_word_start(*c)) {
                    at = run(at + 1, &is_word);
                }
                Token::Word(chars[start..at].iter().collect())
            } else if c == '%' && chars.get(at + 1).is_some_and(|c| is_word_start(*c)) {
                at = run(at + 1, &is_word);
                Token::Scratch(chars[start + 1..at].iter().collect())
            } else if c.is_ascii_digit() {
                let digit = |c: char| c.is_ascii_digit();
                at = run(at, &digit);
                let mut decimal = false;
                if chars.get(at) == Some(&'.') && chars.get(at + 1).is_some_and(|c| digit(*c)) {
                    at = run(at + 1, &digit);
                    decimal = true;
                }
                if chars.get(at) == Some(&'e') {
                    let sign = usize::from(matches!(chars.get(at + 1), Some('+' | '-')));
                    if chars.get(at + 1 + sign).is_some_and(|c| digit(*c)) {
                        at = run(at + 1 + sign, &digit);
                        decimal = true;
                    }
                }
                let text = chars[start..at].iter().collect();
                if decimal { Token::Decimal(text) } else { Token::Integer(text) }
            } else if c == ':' {
                at += 1;
                Token::Sign(":")
            } else {
                let rest: String = chars[at..chars.len().min(at + 2)].iter().collect();
                let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) else {
                    let message = format!("`{c}` means nothing here");
                    return Err(ParseError { line: line_idx + 1, column: start + 1, message });
                };
                at += sign.len();
                Token::Sign(sign)
            };
            tokens.push(Placed { token, line: line_idx + 1, column: start + 1 });
        }
    }
    let line = text.lines().count().max(1);
    let column = text.lines().last().map_or(0, |line| line.chars().count()) + 1;
    tokens.push(Placed { token: Token::End, line, column });
    Ok(tokens)
}
