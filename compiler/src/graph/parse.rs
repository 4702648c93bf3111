//! Reads the text form of a graph; the grammar stands in [`super::text`].
//!
//! Comes in: text. Goes out: a [`Graph`], or the place where the text stops making sense. Dimensions must be declared
//! and nodes numbered in order; nothing else is checked.

mod operation;

use super::ir::*;
use super::text::default_layout;
use chunkwise_dsl::span::Span;
use std::fmt;

/// Why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ParseError {}

/// Scans nested deeper than this are refused, so that no text exhausts the stack.
const MAX_DEPTH: usize = 32;

type Parsed<T> = Result<T, ParseError>;

/// The graph a text describes.
pub fn parse(text: &str) -> Parsed<Graph> {
    let tokens = scan(text)?;
    let graph = Graph {
        name: String::new(),
        dims: Vec::new(),
        nodes: Vec::new(),
        time: None,
        tokens: 1,
        reverse: false,
        span: None,
        carries: Vec::new(),
        outputs: Vec::new(),
        layouts: Vec::new(),
        saves: Vec::new(),
    };
    let mut parser = Parser { tokens, next: 0, graph, layout: None, rules: Vec::new() };
    parser.graph()?;
    Ok(parser.graph)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A name, a keyword or a number.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// `%n`
    Node(u32),
    /// Anything else.
    Mark(&'static str),
    /// What a comment says of the node before it.
    Origin {
        rule: Option<String>,
        span: Option<Span>,
    },
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => write!(f, "`{word}`"),
            Token::Quoted(name) => write!(f, "\"{name}\""),
            Token::Node(number) => write!(f, "%{number}"),
            Token::Mark(mark) => write!(f, "`{mark}`"),
            Token::Origin { .. } => write!(f, "a comment"),
            Token::End => write!(f, "the end"),
        }
    }
}

struct Located {
    token: Token,
    line: usize,
    column: usize,
}

const MARKS: &[&str] = &["->", "{", "}", "(", ")", "[", "]", ",", ":", "=", "@"];

/// Cuts a text into tokens.
fn scan(text: &str) -> Parsed<Vec<Located>> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        // Columns are counted on as the line is gone through: a line may be long.
        let (mut column, mut counted) = (1, 0);
        while let Some(first) = rest.chars().next() {
            let done = line.len() - rest.len();
            column += line[counted..done].chars().count();
            counted = done;
            let located = |token| Located { token, line: number + 1, column };
            let error = |message: String| ParseError { line: number + 1, column, message };
            if first.is_whitespace() {
                rest = &rest[first.len_utf8()..];
            } else if let Some(comment) = rest.strip_prefix(';') {
                tokens.extend(origin(comment).map(located));
                rest = "";
            } else if let Some(mark) = MARKS.iter().find(|mark| rest.starts_with(**mark)) {
                tokens.push(located(Token::Mark(mark)));
                rest = &rest[mark.len()..];
            } else if let Some(quoted) = rest.strip_prefix('"') {
                let (name, after) = unquote(quoted).ok_or_else(|| error("a quote that does not end".into()))?;
                tokens.push(located(Token::Quoted(name)));
                rest = after;
            } else if let Some(digits) = rest.strip_prefix('%') {
                let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                let number = digits[..length].parse();
                tokens.push(located(Token::Node(number.map_err(|_| error("`%` without a node's number".into()))?)));
                rest = &digits[length..];
            } else {
                let length = word_length(rest);
                if length == 0 {
                    return Err(error(format!("`{first}` has no meaning here")));
                }
                tokens.push(located(Token::Word(rest[..length].to_owned())));
                rest = &rest[length..];
            }
        }
    }
    let line = text.lines().count().max(1);
    tokens.push(Located { token: Token::End, line, column: text.lines().last().map_or(0, |l| l.chars().count()) + 1 });
    Ok(tokens)
}

/// Bytes of the name or number a text begins with; an arrow ends it.
fn word_length(text: &str) -> usize {
    let inside = |at: usize, c: char| match c {
        '-' => !text[at..].starts_with("->"),
        '+' => at > 0,
        _ => c.is_alphanumeric() || "_.".contains(c),
    };
    text.char_indices().find(|&(at, c)| !inside(at, c)).map_or(text.len(), |(at, _)| at)
}

/// The name before the closing quote, and what comes after it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (escaped, c) {
            (false, '"') => return Some((name, &text[at + 1..])),
            (false, '\\') => {
                escaped = true;
                continue;
            }
            (true, 'n') => name.push('\n'),
            (_, c) => name.push(c),
        }
        escaped = false;
    }
    None
}

/// What a comment `rule NAME @a..b` says; nothing if it is another comment.
fn origin(comment: &str) -> Option<Token> {
    let mut rest = comment.trim();
    let mut rule = None;
    if let Some(name) = rest.strip_prefix("rule ") {
        let (name, after) = match name.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (name, after) = name.split_at(word_length(name));
                (name.to_owned(), after)
            }
        };
        rule = Some(name);
        rest = after.trim();
    }
    let span = rest.strip_prefix('@').and_then(|range| {
        let (start, end) = range.split_once("..")?;
        Some(Span::new(start.parse().ok()?, end.parse().ok()?))
    });
    (rule.is_some() || span.is_some()).then_some(Token::Origin { rule, span })
}

struct Parser {
    tokens: Vec<Located>,
    next: usize,
    graph: Graph,
    /// What the input last met says of its layout.
    layout: Option<Vec<DimId>>,
    /// Names of rules met so far.
    rules: Vec<&'static str>,
}

impl Parser {
    fn error<T>(&self, expected: &str) -> Parsed<T> {
        let Located { token, line, column } = &self.tokens[self.next];
        Err(ParseError { line: *line, column: *column, message: format!("{token} where {expected} is expected") })
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next].token
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.next].token.clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    /// Takes a mark if it comes next.
    fn mark(&mut self, mark: &str) -> bool {
        let found = matches!(self.peek(), Token::Mark(next) if *next == mark);
        if found {
            self.take();
        }
        found
    }

    fn expect_mark(&mut self, mark: &str) -> Parsed<()> {
        if self.mark(mark) { Ok(()) } else { self.error(&format!("`{mark}`")) }
    }

    /// Takes a keyword if it comes next.
    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(next) if next == word);
        if found {
            self.take();
        }
        found
    }

    fn expect_word(&mut self, word: &str) -> Parsed<()> {
        if self.word(word) { Ok(()) } else { self.error(&format!("`{word}`")) }
    }

    /// `word = ` if the keyword comes next.
    fn setting(&mut self, word: &str) -> Parsed<bool> {
        let follows = matches!(self.tokens.get(self.next + 1), Some(Located { token: Token::Mark("="), .. }));
        let found = follows && self.word(word);
        if found {
            self.expect_mark("=")?;
        }
        Ok(found)
    }

    fn name(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Word(name) | Token::Quoted(name) => {
                let name = name.clone();
                self.take();
                Ok(name)
            }
            Token::Node(_) | Token::Mark(_) | Token::Origin { .. } | Token::End => self.error("a name"),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, expected: &str) -> Parsed<T> {
        let number = match self.peek() {
            Token::Word(word) => word.parse().ok(),
            Token::Quoted(_) | Token::Node(_) | Token::Mark(_) | Token::Origin { .. } | Token::End => None,
        };
        match number {
            Some(number) => {
                self.take();
                Ok(number)
            }
            None => self.error(expected),
        }
    }

    fn integer(&mut self) -> Parsed<usize> {
        self.number("a whole number")
    }

    fn node_id(&mut self) -> Parsed<NodeId> {
        match *self.peek() {
            Token::Node(number) => {
                self.take();
                Ok(NodeId(number))
            }
            Token::Word(_) | Token::Quoted(_) | Token::Mark(_) | Token::Origin { .. } | Token::End => {
                self.error("a node")
            }
        }
    }

    fn dim(&mut self) -> Parsed<DimId> {
        let at = self.next;
        let name = self.name()?;
        match self.graph.dims.iter().position(|dim| dim.name == name) {
            Some(idx) => Ok(DimId(idx as u32)),
            None => {
                self.next = at;
                self.error("a dimension")
            }
        }
    }

    /// One or more dimensions with commas between.
    fn dims(&mut self) -> Parsed<Vec<DimId>> {
        let mut dims = vec![self.dim()?];
        while self.mark(",") {
            dims.push(self.dim()?);
        }
        Ok(dims)
    }

    fn bracketed_dims(&mut self) -> Parsed<Vec<DimId>> {
        self.expect_mark("[")?;
        if self.mark("]") {
            return Ok(Vec::new());
        }
        let dims = self.dims()?;
        self.expect_mark("]")?;
        Ok(dims)
    }

    fn over(&mut self) -> Parsed<Vec<DimId>> {
        if self.word("over") { self.dims() } else { Ok(Vec::new()) }
    }

    /// Items with commas between, in parentheses.
    fn list<T>(&mut self, item: impl Fn(&mut Parser) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect_mark("(")?;
        let mut items = Vec::new();
        while !self.mark(")") {
            if !items.is_empty() {
                self.expect_mark(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn nodes_after(&mut self, word: &str) -> Parsed<Vec<NodeId>> {
        self.expect_word(word)?;
        self.list(Parser::node_id)
    }

    fn optional_nodes(&mut self) -> Parsed<Vec<Option<NodeId>>> {
        self.list(|parser| if parser.word("_") { Ok(None) } else { parser.node_id().map(Some) })
    }

    /// One of the words of a table.
    fn one_of<T: Copy>(&mut self, table: &[(T, &str)], expected: &str) -> Parsed<T> {
        let found = table.iter().find(|(_, name)| matches!(self.peek(), Token::Word(word) if word == name));
        match found {
            Some((value, _)) => {
                self.take();
                Ok(*value)
            }
            None => self.error(expected),
        }
    }

    fn graph(&mut self) -> Parsed<()> {
        self.expect_word("graph")?;
        self.graph.name = self.name()?;
        self.expect_mark("{")?;
        while self.word("dim") {
            let name = self.name()?;
            self.expect_mark(":")?;
            let kind = self.dim_kind()?;
            let size = self.integer()?;
            self.graph.dims.push(Dim { name, kind, size });
        }
        self.expect_word("step")?;
        self.expect_word("tokens")?;
        self.expect_mark("=")?;
        self.graph.tokens = self.integer()?;
        if self.setting("time")? {
            self.graph.time = Some(self.dim()?);
        }
        self.graph.reverse = self.word("reverse");
        if self.setting("span")? {
            self.graph.span = Some(self.integer()?);
        }
        self.graph.nodes = self.nodes(0)?;
        while self.word("carry") {
            let carry = self.carry()?;
            self.graph.carries.push(carry);
        }
        while self.word("output") {
            let entry = self.named_node()?;
            self.graph.outputs.push(entry);
        }
        while self.word("layout") {
            let entry = (self.name()?, self.bracketed_dims()?);
            self.graph.layouts.push(entry);
        }
        while self.word("save") {
            let entry = self.named_node()?;
            self.graph.saves.push(entry);
        }
        self.expect_mark("}")?;
        if *self.peek() == Token::End { Ok(()) } else { self.error("the end") }
    }

    fn dim_kind(&mut self) -> Parsed<DimKind> {
        let kinds = [
            (DimKind::Slot, "slot"),
            (DimKind::Block, "block"),
            (DimKind::BlockCol, "block_col"),
            (DimKind::Row, "row"),
            (DimKind::Col, "col"),
        ];
        match self.word("axis") {
            true => Ok(DimKind::Axis(self.number("an axis's rank")?)),
            false => self.one_of(&kinds, "`slot`, `block`, `block_col`, `row`, `col` or `axis`"),
        }
    }

    fn named_node(&mut self) -> Parsed<(String, NodeId)> {
        let name = self.name()?;
        self.expect_mark("=")?;
        Ok((name, self.node_id()?))
    }

    fn carry(&mut self) -> Parsed<Carry> {
        let (name, input) = self.named_node()?;
        self.expect_mark("->")?;
        let output = self.node_id()?;
        let init = if self.setting("init")? { Some(self.name()?) } else { None };
        let begins = match self.word("from") {
            true => self.one_of(&[(Begin::One, "one"), (Begin::Identity, "identity")], "`one` or `identity`")?,
            false => Begin::Zero,
        };
        let last = if self.setting("final")? { Some(self.name()?) } else { None };
        // After the carries stand outputs' layouts: those begin with a name.
        let own = matches!(self.tokens.get(self.next + 1), Some(Located { token: Token::Mark("["), .. }));
        let layout = match own && self.word("layout") {
            true => self.bracketed_dims()?,
            false => self.graph.nodes.get(input.index()).map_or(Vec::new(), |node| node.dims.clone()),
        };
        Ok(Carry { name, input, output, init, begins, last, layout })
    }

    /// Nodes up to whatever is none.
    fn nodes(&mut self, depth: usize) -> Parsed<Vec<Node>> {
        let mut nodes = Vec::new();
        // A comment that names a rule stands behind the node it is about.
        while let Token::Node(number) = *self.peek() {
            if number as usize != nodes.len() {
                return self.error(&format!("%{}", nodes.len()));
            }
            self.take();
            self.expect_mark("=")?;
            let mut op = self.op(depth)?;
            self.expect_mark(":")?;
            let dims = self.bracketed_dims()?;
            if let Op::Input { kind, layout, .. } = &mut op {
                let said = self.layout.take();
                *layout = said.unwrap_or_else(|| default_layout(self.graph.time, *kind, &dims));
            }
            let (rule, span) = self.origin();
            nodes.push(Node { op, dims, span, rule });
        }
        Ok(nodes)
    }

    fn origin(&mut self) -> (&'static str, Option<Span>) {
        let Token::Origin { rule, span } = self.peek().clone() else { return ("", None) };
        self.take();
        let rule = rule.map_or("", |name| match self.rules.iter().find(|known| **known == name) {
            Some(known) => known,
            None => {
                // A rule's name lives as long as the program; a text is read once, its few names are kept.
                let kept: &'static str = name.leak();
                self.rules.push(kept);
                kept
            }
        });
        (rule, span)
    }
}
