//! The only file that sees pest. In: text; out: tokens, and the syntax of one statement.
//!
//! It never recovers from an error: one statement is read or it is not. Depth is bounded here: the caller bounds the
//! nesting of brackets (pest recurses on it), and a chain of operators deeper than [`MAX_DEPTH`] is refused.

use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::Pair;

use super::token::{Token, TokenKind};
use crate::ast::{
    AxisList, Bound, ConstDecl, Expr, ExprKind, Name, Operator, Range, RangeKind, StatementKind, TensorDecl,
};
use crate::span::Span;

// The derive makes types without docs of their own.
#[derive(pest_derive::Parser)]
#[grammar = "grammar.pest"]
struct Grammar;

/// The deepest expression accepted: later stages walk expressions recursively.
pub const MAX_DEPTH: usize = 200;

/// Why a statement could not be read.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadError {
    /// Something else was expected at a byte of the source.
    Expected {
        /// The byte.
        at: usize,
        /// What could stand there, in words.
        expected: Vec<&'static str>,
    },
    /// The expression is too deep.
    TooDeep(Span),
    /// The number is no float64.
    NumberTooLarge(Span),
}

/// A text and its mended copy, byte for byte as long: what is read, and where it stands.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// As it was written: places refer to it.
    pub source: &'a str,
    /// With slips mended: this is read.
    pub mended: &'a str,
}

impl Texts<'_> {
    /// The smallest range of whole characters of the source: one may have been mended to several shorter ones.
    fn whole(self, start: usize, end: usize) -> Span {
        Span::new(self.source.floor_char_boundary(start), self.source.ceil_char_boundary(end))
    }

    /// The word at a place, as mended.
    pub fn word(&self, span: Span) -> &str {
        self.mended[span.start..span.end].trim()
    }
}

/// Cuts the mended text into tokens. Every byte that is no blank belongs to one.
pub fn tokens(texts: Texts<'_>) -> Vec<Token> {
    let source = texts.mended;
    // The rule accepts any text: its last alternative is any character.
    let Ok(mut pairs) = Grammar::parse(Rule::tokens, source) else { return Vec::new() };
    let Some(all) = pairs.next() else { return Vec::new() };
    let mut tokens = Vec::new();
    let mut end = 0;
    for pair in all.into_inner() {
        let kind = match pair.as_rule() {
            Rule::comment => TokenKind::Comment,
            Rule::block_comment => TokenKind::BlockComment,
            Rule::hash_comment => TokenKind::HashComment,
            Rule::number => TokenKind::Number,
            Rule::bad_number => TokenKind::BadNumber,
            Rule::word => TokenKind::Word,
            Rule::symbol => TokenKind::Symbol,
            Rule::stray => TokenKind::Stray,
            _ => continue,
        };
        let (start, stop) = (pair.as_span().start(), pair.as_span().end());
        let newlines = source[end..start].matches('\n').count();
        let span = texts.whole(start, stop);
        tokens.push(Token { kind, span, newline_before: newlines > 0, blank_before: newlines > 1 });
        end = stop;
    }
    tokens
}

/// Reads the statement at a place, any but `for`.
pub fn statement(texts: Texts<'_>, span: Span) -> Result<StatementKind, ReadError> {
    let mut reader = Reader { texts, offset: span.start };
    let pair = reader.parse(Rule::statement, span)?;
    let inner = first(pair);
    match inner.as_rule() {
        Rule::axes => Ok(StatementKind::Axes(reader.names(inner))),
        Rule::inputs => Ok(StatementKind::Inputs(reader.tensors(inner)?)),
        Rule::params => Ok(StatementKind::Params(reader.tensors(inner)?)),
        Rule::states => Ok(StatementKind::States(reader.tensors(inner)?)),
        Rule::consts => {
            let mut decls = Vec::new();
            for pair in inner.into_inner().filter(|pair| pair.as_rule() == Rule::constant) {
                let span = reader.span(&pair);
                let (name, value) = reader.name_and_value(pair)?;
                decls.push(ConstDecl { name, value, span });
            }
            Ok(StatementKind::Consts(decls))
        }
        Rule::output => {
            let axes = inner.clone().into_inner().find(|pair| pair.as_rule() == Rule::axis_list);
            let axes = reader.axis_list(axes.expect("the rule `output` has an axis list"));
            let (name, value) = reader.name_and_value(inner)?;
            Ok(StatementKind::Output { name, axes, value })
        }
        Rule::binding => {
            let (name, value) = reader.name_and_value(inner)?;
            Ok(StatementKind::Let { name, value })
        }
        // The only alternative left is `update`.
        _ => {
            let (name, value) = reader.name_and_value(inner)?;
            Ok(StatementKind::Update { name, value })
        }
    }
}

/// Reads `for var in axis`.
pub fn for_header(texts: Texts<'_>, span: Span) -> Result<(Name, Name), ReadError> {
    let mut reader = Reader { texts, offset: span.start };
    let pair = reader.parse(Rule::for_header, span)?;
    let mut names = reader.names(pair).into_iter();
    let var = names.next().expect("the rule has two names");
    let axis = names.next().expect("the rule has two names");
    Ok((var, axis))
}

/// Reads `recurrence name`.
pub fn recurrence_header(texts: Texts<'_>, span: Span) -> Result<Name, ReadError> {
    let mut reader = Reader { texts, offset: span.start };
    let pair = reader.parse(Rule::recurrence_header, span)?;
    Ok(reader.names(pair).pop().expect("the rule has a name"))
}

struct Reader<'s> {
    texts: Texts<'s>,
    /// Where the text given to pest begins in the source.
    offset: usize,
}

/// An expression and the depth of its tree.
type Deep = (Expr, usize);

impl<'s> Reader<'s> {
    fn parse(&mut self, rule: Rule, span: Span) -> Result<Pair<'s, Rule>, ReadError> {
        match Grammar::parse(rule, &self.texts.mended[span.start..span.end]) {
            Ok(mut pairs) => Ok(pairs.next().expect("a parse of one rule gives one pair")),
            Err(error) => {
                let at = match error.location {
                    InputLocation::Pos(at) | InputLocation::Span((at, _)) => self.offset + at,
                };
                let rules = match &error.variant {
                    ErrorVariant::ParsingError { positives, .. } => positives.as_slice(),
                    ErrorVariant::CustomError { .. } => &[],
                };
                Err(ReadError::Expected { at, expected: in_words(rules) })
            }
        }
    }

    fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        let span = pair.as_span();
        // A rule that ends in optional parts takes the blanks and comments before them along.
        let text = without_blanks_at_end(span.as_str());
        self.texts.whole(self.offset + span.start(), self.offset + span.start() + text)
    }

    fn name(&self, pair: &Pair<'_, Rule>) -> Name {
        Name { text: pair.as_str().to_owned(), span: self.span(pair) }
    }

    fn names(&self, pair: Pair<'_, Rule>) -> Vec<Name> {
        pair.into_inner().filter(|pair| pair.as_rule() == Rule::name).map(|pair| self.name(&pair)).collect()
    }

    fn axis_list(&self, pair: Pair<'_, Rule>) -> AxisList {
        let span = self.span(&pair);
        AxisList { names: self.names(pair), span }
    }

    fn name_and_value(&mut self, pair: Pair<'_, Rule>) -> Result<(Name, Expr), ReadError> {
        let mut name = None;
        let mut value = None;
        for part in pair.into_inner() {
            if part.as_rule() == Rule::name {
                name = Some(self.name(&part));
            } else if part.as_rule() == Rule::expr {
                value = Some(self.expr(part)?.0);
            }
        }
        Ok((name.expect("the rule has a name"), value.expect("the rule has a value")))
    }

    fn tensors(&mut self, pair: Pair<'_, Rule>) -> Result<Vec<TensorDecl>, ReadError> {
        let mut decls = Vec::new();
        for pair in pair.into_inner().filter(|pair| pair.as_rule() == Rule::tensor) {
            let span = self.span(&pair);
            let (mut name, mut axes, mut range) = (None, None, None);
            for part in pair.into_inner() {
                match part.as_rule() {
                    Rule::name => name = Some(self.name(&part)),
                    Rule::axis_list => axes = Some(self.axis_list(part)),
                    Rule::range => range = Some(self.range(part)?),
                    _ => {}
                }
            }
            let name = name.expect("the rule `tensor` has a name");
            let axes = axes.expect("the rule `tensor` has an axis list");
            decls.push(TensorDecl { name, axes, range, span });
        }
        Ok(decls)
    }

    fn range(&mut self, pair: Pair<'_, Rule>) -> Result<Range, ReadError> {
        let span = self.span(&pair);
        let inner = first(pair);
        if inner.as_rule() == Rule::unit {
            let name = self.names(inner).pop().expect("the rule `unit` has a name");
            return Ok(Range { kind: RangeKind::Unit(name), span });
        }
        let mut bounds = Vec::new();
        let (mut lo_closed, mut hi_closed) = (false, false);
        for part in inner.into_inner() {
            match part.as_rule() {
                Rule::open_square => lo_closed = true,
                Rule::close_square => hi_closed = true,
                Rule::bound => bounds.push(self.bound(part)?),
                _ => {}
            }
        }
        let hi = bounds.pop().expect("the rule `interval` has two bounds");
        let lo = bounds.pop().expect("the rule `interval` has two bounds");
        Ok(Range { kind: RangeKind::Interval { lo, hi, lo_closed, hi_closed }, span })
    }

    fn bound(&mut self, pair: Pair<'_, Rule>) -> Result<Bound, ReadError> {
        let span = self.span(&pair);
        let mut text = String::new();
        let mut value = 0.0;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::sign if part.as_str() == "-" => text.push('-'),
                Rule::inf => value = f64::INFINITY,
                Rule::number => value = self.number(&part)?,
                _ => continue,
            }
            if part.as_rule() != Rule::sign {
                text.push_str(part.as_str());
            }
        }
        if text.starts_with('-') {
            value = -value;
        }
        Ok(Bound { text, value, span })
    }

    fn number(&self, pair: &Pair<'_, Rule>) -> Result<f64, ReadError> {
        // The rule's text is a number as Rust writes it.
        let value: f64 = pair.as_str().parse().unwrap_or(f64::INFINITY);
        if value.is_finite() { Ok(value) } else { Err(ReadError::NumberTooLarge(self.span(pair))) }
    }

    fn expr(&mut self, pair: Pair<'_, Rule>) -> Result<Deep, ReadError> {
        match pair.as_rule() {
            Rule::expr | Rule::product => self.chain(pair),
            Rule::signed | Rule::exponent => self.signed(pair),
            Rule::power => self.power(pair),
            Rule::postfix => self.postfix(pair),
            Rule::number => {
                let value = self.number(&pair)?;
                let kind = ExprKind::Number { text: pair.as_str().to_owned(), value };
                Ok((Expr { kind, span: self.span(&pair) }, 1))
            }
            Rule::name => Ok((Expr { kind: ExprKind::Name(pair.as_str().to_owned()), span: self.span(&pair) }, 1)),
            Rule::paren => {
                let span = self.span(&pair);
                let inner = pair.into_inner().find(|pair| pair.as_rule() == Rule::expr);
                let (inner, depth) = self.expr(inner.expect("the rule `paren` has an expression"))?;
                self.bounded(ExprKind::Paren(Box::new(inner)), span, depth + 1)
            }
            Rule::mapping => {
                let span = self.span(&pair);
                let mut names = self.names(pair).into_iter();
                let from = names.next().expect("the rule `mapping` has two names");
                let to = names.next().expect("the rule `mapping` has two names");
                Ok((Expr { kind: ExprKind::Mapping { from, to }, span }, 1))
            }
            // `call`, the only rule left that an expression can be.
            _ => self.call(pair),
        }
    }

    fn bounded(&self, kind: ExprKind, span: Span, depth: usize) -> Result<Deep, ReadError> {
        if depth > MAX_DEPTH { Err(ReadError::TooDeep(span)) } else { Ok((Expr { kind, span }, depth)) }
    }

    fn binary(&self, op: (Operator, Span), lhs: Deep, rhs: Deep) -> Result<Deep, ReadError> {
        let span = lhs.0.span.join(rhs.0.span);
        let depth = lhs.1.max(rhs.1) + 1;
        let (op, op_span) = op;
        self.bounded(ExprKind::Binary { op, op_span, lhs: Box::new(lhs.0), rhs: Box::new(rhs.0) }, span, depth)
    }

    /// Operands with operators between them, grouped from the left.
    fn chain(&mut self, pair: Pair<'_, Rule>) -> Result<Deep, ReadError> {
        let mut parts = pair.into_inner();
        let mut whole = self.expr(parts.next().expect("a chain has a first operand"))?;
        while let Some(operator) = parts.next() {
            let op = (operator_of(operator.as_rule()), self.span(&operator));
            let rhs = self.expr(parts.next().expect("an operator has an operand after it"))?;
            whole = self.binary(op, whole, rhs)?;
        }
        Ok(whole)
    }

    fn signed(&mut self, pair: Pair<'_, Rule>) -> Result<Deep, ReadError> {
        let mut minuses = Vec::new();
        let mut parts = pair.into_inner().peekable();
        while let Some(minus) = parts.next_if(|part| part.as_rule() == Rule::neg) {
            minuses.push(self.span(&minus));
        }
        let mut whole = self.expr(parts.next().expect("a sign has an operand after it"))?;
        for minus in minuses.into_iter().rev() {
            let span = minus.join(whole.0.span);
            whole = self.bounded(ExprKind::Neg(Box::new(whole.0)), span, whole.1 + 1)?;
        }
        Ok(whole)
    }

    /// `a ^ b ^ c`, grouped from the right.
    fn power(&mut self, pair: Pair<'_, Rule>) -> Result<Deep, ReadError> {
        let mut operands = Vec::new();
        let mut carets = Vec::new();
        for part in pair.into_inner() {
            if part.as_rule() == Rule::pow {
                carets.push(self.span(&part));
            } else {
                operands.push(part);
            }
        }
        // The signs of an exponent stand outside of the powers to its right: -b ^ c is -(b ^ c).
        let mut whole: Option<Deep> = None;
        for (index, operand) in operands.into_iter().enumerate().rev() {
            let caret = carets.get(index).map(|&span| (Operator::Pow, span));
            let raise = |reader: &Reader<'_>, base: Deep, exponent: Option<Deep>| match (caret, exponent) {
                (Some(op), Some(exponent)) => reader.binary(op, base, exponent),
                (None, _) | (_, None) => Ok(base),
            };
            if operand.as_rule() != Rule::exponent {
                let base = self.expr(operand)?;
                whole = Some(raise(self, base, whole)?);
                continue;
            }
            let mut minuses = Vec::new();
            let mut parts = operand.into_inner().peekable();
            while let Some(minus) = parts.next_if(|part| part.as_rule() == Rule::neg) {
                minuses.push(self.span(&minus));
            }
            let base = self.expr(parts.next().expect("an exponent has an operand"))?;
            let mut raised = raise(self, base, whole)?;
            for minus in minuses.into_iter().rev() {
                let span = minus.join(raised.0.span);
                raised = self.bounded(ExprKind::Neg(Box::new(raised.0)), span, raised.1 + 1)?;
            }
            whole = Some(raised);
        }
        Ok(whole.expect("the rule `power` has an operand"))
    }

    fn postfix(&mut self, pair: Pair<'_, Rule>) -> Result<Deep, ReadError> {
        let mut parts = pair.into_inner();
        let mut whole = self.expr(parts.next().expect("the rule `postfix` has an operand"))?;
        for index in parts {
            let span = whole.0.span.join(self.span(&index));
            let position = index.into_inner().find(|pair| pair.as_rule() == Rule::expr);
            let position = self.expr(position.expect("the rule `index` has an expression"))?;
            let depth = whole.1.max(position.1) + 1;
            let kind = ExprKind::Index { base: Box::new(whole.0), index: Box::new(position.0) };
            whole = self.bounded(kind, span, depth)?;
        }
        Ok(whole)
    }

    fn call(&mut self, pair: Pair<'_, Rule>) -> Result<Deep, ReadError> {
        let span = self.span(&pair);
        let mut function = None;
        let mut arguments = Vec::new();
        let mut depth = 1;
        for part in pair.into_inner() {
            match part.as_rule() {
                Rule::name => function = Some(self.name(&part)),
                Rule::expr | Rule::mapping => {
                    let (argument, deep) = self.expr(part)?;
                    depth = depth.max(deep);
                    arguments.push(argument);
                }
                _ => {}
            }
        }
        let function = function.expect("the rule `call` has a name");
        self.bounded(ExprKind::Call { function, arguments }, span, depth + 1)
    }
}

fn first(pair: Pair<'_, Rule>) -> Pair<'_, Rule> {
    pair.into_inner().next().expect("the rule has a part")
}

fn operator_of(rule: Rule) -> Operator {
    match rule {
        Rule::add => Operator::Add,
        Rule::sub => Operator::Sub,
        Rule::mul => Operator::Mul,
        Rule::div => Operator::Div,
        // `contract`, the only rule left that joins a chain.
        _ => Operator::Contract,
    }
}

/// The length of a text without the blanks and comments at its end.
fn without_blanks_at_end(text: &str) -> usize {
    let mut end = 0;
    let mut rest = text;
    loop {
        let blanks = rest.len() - rest.trim_start_matches(is_blank).len();
        rest = &rest[blanks..];
        if rest.is_empty() {
            return end;
        }
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |newline| &rest[newline..]);
            continue;
        }
        let step = rest.find(|c: char| is_blank(c) || c == '/').unwrap_or(rest.len()).max(1);
        end = text.len() - rest.len() + step;
        rest = &rest[step..];
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{00A0}' | '\u{FEFF}')
}

/// What pest expected, in words, without repetitions.
fn in_words(rules: &[Rule]) -> Vec<&'static str> {
    let has_operator = rules.iter().any(|rule| matches!(rule, Rule::add | Rule::mul | Rule::contract));
    let mut words = Vec::new();
    for rule in rules {
        let word = match rule {
            Rule::add | Rule::sub | Rule::mul | Rule::div | Rule::contract | Rule::pow => "an operator",
            Rule::index | Rule::open_square | Rule::open_round if has_operator => continue,
            Rule::expr
            | Rule::product
            | Rule::signed
            | Rule::power
            | Rule::exponent
            | Rule::postfix
            | Rule::neg
            | Rule::number
            | Rule::paren
            | Rule::call => "a value",
            Rule::bound | Rule::sign | Rule::inf => "a number or `inf`",
            Rule::name | Rule::word => "a name",
            Rule::tensor | Rule::constant => "a declaration",
            Rule::mapping | Rule::arrow => "`->`",
            Rule::comma => "`,`",
            Rule::colon => "`:`",
            Rule::equals => "`=`",
            Rule::axis_list => "axes in brackets",
            Rule::open_square | Rule::index => "`[`",
            Rule::close_square => "`]`",
            Rule::open_round => "`(`",
            Rule::close_round => "`)`",
            Rule::kw_in => "`in`",
            Rule::range | Rule::unit | Rule::interval => "a range such as `[0, 1]` or `unit(K)`",
            Rule::EOI => "the end of the statement",
            _ => "a statement",
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if words.contains(&"a value") {
        words.retain(|word| *word != "a name");
    }
    words
}
