//! Cuts tokens into recurrences and statements, hands each statement to the reader, and gives comments to the
//! statements they belong to. In: tokens; out: the file. It knows where a statement begins, not what it means.

use super::reader::{self, ReadError, Texts};
use super::{STATEMENT_KEYWORDS, Token, TokenKind, explain, headers};
use crate::ast::{Block, Comment, File, Name, Recurrence, Statement, StatementKind};
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::span::Span;

/// Cuts and reads a whole file.
pub fn file(texts: Texts<'_>, tokens: &[Token], diagnostics: &mut Vec<Diagnostic>) -> File {
    let slips = diagnostics.iter().flat_map(|slip| slip.labels.iter().map(|label| label.span)).collect();
    let braces = |brace: &str| tokens.iter().filter(|token| texts.word(token.span) == brace).count();
    let lacks_brace = braces("{") > braces("}");
    let mut cutter = Cutter { texts, tokens, at: 0, diagnostics, slips, lacks_brace };
    let mut recurrences = Vec::new();
    loop {
        let mut leading = cutter.comments();
        let Some(token) = cutter.current() else {
            forget_first_blank(&mut leading, recurrences.is_empty());
            return File { recurrences, trailing: leading };
        };
        if cutter.begins_recurrence(cutter.at) {
            forget_first_blank(&mut leading, recurrences.is_empty());
            let blank_before = token.blank_before && !(leading.is_empty() && recurrences.is_empty());
            recurrences.extend(cutter.recurrence(leading, blank_before));
        } else {
            cutter.outside();
        }
    }
}

pub struct Cutter<'a> {
    texts: Texts<'a>,
    tokens: &'a [Token],
    at: usize,
    diagnostics: &'a mut Vec<Diagnostic>,
    /// Where slips were reported: a statement around one gets no second error.
    slips: Vec<Span>,
    /// A closing brace is missing somewhere: indentation then says where.
    lacks_brace: bool,
}

fn forget_first_blank(comments: &mut [Comment], is_first: bool) {
    if is_first && let Some(comment) = comments.first_mut() {
        comment.blank_before = false;
    }
}

impl Cutter<'_> {
    fn current(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    fn text(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |token| self.texts.word(token.span))
    }

    fn is_word(&self, index: usize) -> bool {
        self.tokens.get(index).is_some_and(|token| token.kind == TokenKind::Word)
    }

    /// The next token that is no comment, from `index` on.
    fn solid(&self, mut index: usize) -> usize {
        while self.tokens.get(index).is_some_and(|token| token.kind == TokenKind::Comment) {
            index += 1;
        }
        index
    }

    fn begins_recurrence(&self, index: usize) -> bool {
        if !self.is_word(index) {
            return false;
        }
        let text = self.text(index);
        // A misspelt keyword counts when a name and a brace follow.
        text == "recurrence"
            || (self.is_word(index + 1)
                && self.text(index + 2) == "{"
                && crate::suggest::nearest(text, ["recurrence"]).is_some())
    }

    fn comment(&self, token: Token) -> Comment {
        let text = self.texts.source[token.span.start..token.span.end].trim_end();
        Comment {
            text: text.to_owned(),
            blank_before: token.blank_before,
            span: Span::new(token.span.start, token.span.start + text.len()),
        }
    }

    /// Takes the comments at the cursor.
    fn comments(&mut self) -> Vec<Comment> {
        let mut comments = Vec::new();
        while let Some(token) = self.current().filter(|token| token.kind == TokenKind::Comment) {
            comments.push(self.comment(token));
            self.at += 1;
        }
        comments
    }

    /// Takes a comment on the same line, if one follows.
    fn trailing(&mut self) -> Option<Comment> {
        let token = self.current().filter(|token| token.kind == TokenKind::Comment && !token.newline_before)?;
        self.at += 1;
        Some(self.comment(token))
    }

    /// Something that belongs to no recurrence: one error for all of it up to the next one.
    fn outside(&mut self) {
        let first = self.at;
        while self.at < self.tokens.len() && !self.begins_recurrence(self.at) {
            self.at += 1;
        }
        let last = (first..self.at).rev().find(|&index| self.tokens[index].kind != TokenKind::Comment);
        let span = self.tokens[first].span.join(self.tokens[last.unwrap_or(first)].span);
        if self.slips.iter().any(|slip| span.start <= slip.start && slip.end <= span.end) {
            return;
        }
        let error = headers::outside(self.text(first), self.tokens[first], span);
        self.diagnostics.push(error);
    }

    fn recurrence(&mut self, leading: Vec<Comment>, blank_before: bool) -> Option<Recurrence> {
        let first = self.at;
        self.at += 1;
        while self.at < self.tokens.len() && self.text(self.at) != "{" && !self.ends_header(self.at) {
            self.at += 1;
        }
        let header = self.tokens[first].span.join(self.tokens[self.at - 1].span);
        let open = self.at;
        let read = reader::recurrence_header(self.texts, header);
        let name = match read {
            Ok(name) => name,
            Err(_) => {
                let words: Vec<&str> = (first..open).map(|index| self.text(index)).collect();
                let spans: Vec<Span> = (first..open).map(|index| self.tokens[index].span).collect();
                let (error, name) = headers::recurrence_header(&words, &spans);
                self.diagnostics.push(error);
                name
            }
        };
        if self.text(open) != "{" {
            self.diagnostics.push(
                Diagnostic::new(
                    Code::MalformedRecurrence,
                    header,
                    "a recurrence without a body",
                    "`{` has to follow the name",
                )
                .help("write `recurrence name { … }`"),
            );
            // What stands there was probably meant as the body.
            let body = self.block(None, header);
            return Some(self.finish_recurrence(leading, blank_before, name, body, header));
        }
        self.at += 1;
        let body = self.block(Some(open), header);
        Some(self.finish_recurrence(leading, blank_before, name, body, header))
    }

    fn finish_recurrence(
        &mut self,
        leading: Vec<Comment>,
        blank_before: bool,
        name: Name,
        body: Block,
        header: Span,
    ) -> Recurrence {
        let span = header.join(body.span);
        let trailing = self.trailing();
        Recurrence { leading, blank_before, name, body, trailing, span }
    }

    fn ends_header(&self, index: usize) -> bool {
        self.tokens[index].kind == TokenKind::Comment
            || self.text(index) == "}"
            || self.tokens[index].newline_before && self.is_word(index) && index > 0 && {
                STATEMENT_KEYWORDS.contains(&self.text(index)) || self.begins_recurrence(index)
            }
    }

    /// The statements up to the closing brace, which is taken. `open` is the index of the opening one.
    fn block(&mut self, open: Option<usize>, header: Span) -> Block {
        let start = open.map_or(header.end, |open| self.tokens[open].span.start);
        let mut statements: Vec<Statement> = Vec::new();
        loop {
            let mut leading = self.comments();
            forget_first_blank(&mut leading, statements.is_empty());
            let end_of_block = match self.current() {
                Some(token) if self.is_outdented(token, header) => {
                    self.lacks_brace = false;
                    false
                }
                Some(_) if self.text(self.at) == "}" => true,
                None => false,
                Some(_) if self.begins_recurrence(self.at) => false,
                Some(token) => {
                    let blank_before = token.blank_before && !(leading.is_empty() && statements.is_empty());
                    let statement = self.statement(leading, blank_before);
                    statements.push(statement);
                    continue;
                }
            };
            let end = if end_of_block {
                self.at += 1;
                self.tokens[self.at - 1].span.end
            } else {
                // Comments before the end may belong to what follows.
                let last = (0..self.at).rev().find(|&index| self.tokens[index].kind != TokenKind::Comment);
                let end = last.map_or(start, |last| self.tokens[last].span.end);
                if let Some(open) = open {
                    self.diagnostics.push(headers::unclosed_brace(self.tokens[open].span, header, end));
                }
                end
            };
            return Block { statements, trailing: leading, span: Span::new(start, end.max(start)) };
        }
    }

    /// Whether a token begins a line no deeper than the loop it would be in, while a brace is missing.
    fn is_outdented(&self, token: Token, header: Span) -> bool {
        let column = |at: usize| {
            let line = self.texts.source[..at].rfind('\n').map_or(0, |newline| newline + 1);
            at - line
        };
        self.lacks_brace
            && token.newline_before
            && self.texts.source[header.start..header.end].starts_with("for")
            && column(token.span.start) <= column(header.start)
            // The brace that closes the loop stands below its keyword.
            && !(self.text(self.at) == "}" && column(token.span.start) == column(header.start))
    }

    fn statement(&mut self, leading: Vec<Comment>, blank_before: bool) -> Statement {
        let first = self.at;
        if self.text(first) == "for" {
            return self.for_statement(leading, blank_before);
        }
        self.at = self.end_of_statement(first);
        let solid: Vec<usize> = self.solid_between(first, self.at);
        let last = solid.last().copied().unwrap_or(first);
        // Comments after the last word are not inside the statement.
        self.at = last + 1;
        let span = self.tokens[first].span.join(self.tokens[last].span);
        let kind = match reader::statement(self.texts, span) {
            Ok(kind) => kind,
            Err(error) => {
                self.explain(&solid, span, &error);
                StatementKind::Broken {
                    text: self.texts.source[span.start..span.end].to_owned(),
                    names: self.names_declared(&solid),
                }
            }
        };
        self.finish_statement(leading, blank_before, kind, first, span)
    }

    fn finish_statement(
        &mut self,
        mut leading: Vec<Comment>,
        mut blank_before: bool,
        kind: StatementKind,
        first: usize,
        span: Span,
    ) -> Statement {
        let header_end = match &kind {
            StatementKind::For { body, .. } => body.span.start,
            _ => span.end,
        };
        for index in first..self.at {
            let token = self.tokens[index];
            if token.kind == TokenKind::Comment && token.span.start < header_end {
                let mut comment = self.comment(token);
                comment.blank_before = leading.is_empty() && blank_before;
                blank_before &= !leading.is_empty();
                leading.push(comment);
            }
        }
        let trailing = self.trailing();
        Statement { leading, blank_before, kind, trailing, span }
    }

    fn solid_between(&self, from: usize, to: usize) -> Vec<usize> {
        (from..to).filter(|&index| self.tokens[index].kind != TokenKind::Comment).collect()
    }

    fn for_statement(&mut self, leading: Vec<Comment>, blank_before: bool) -> Statement {
        let first = self.at;
        let mut open = self.end_of_header(first);
        let solid = self.solid_between(first, open);
        let header = self.tokens[first].span.join(self.tokens[solid.last().copied().unwrap_or(first)].span);
        let words: Vec<&str> = solid.iter().map(|&index| self.text(index)).collect();
        let spans: Vec<Span> = solid.iter().map(|&index| self.tokens[index].span).collect();
        let named = match reader::for_header(self.texts, header) {
            Ok((var, axis)) => Some((var, axis)),
            Err(_) => {
                let (error, named) = headers::for_header(&words, &spans);
                let slipped = self.slips.iter().any(|slip| header.start <= slip.start && slip.end <= header.end);
                // Without a brace there is a plainer thing to say, below.
                if !slipped && self.text(open) == "{" {
                    self.diagnostics.push(error);
                }
                named
            }
        };
        if self.text(open) != "{" {
            let error = Diagnostic::new(Code::MalformedFor, header, "a loop without a body", "`{` has to follow");
            self.diagnostics.push(match &named {
                Some((var, axis)) => {
                    let text = format!("for {} in {} {{", var.text, axis.text);
                    error.replace("put what is repeated between braces", header, text)
                }
                None => error.help("write `for r in R { … }`, with `axis R` declared"),
            });
            let names = named.into_iter().map(|(var, _)| var).collect();
            let text = self.texts.source[header.start..header.end].to_owned();
            self.at = solid.last().map_or(first + 1, |last| last + 1);
            return self.finish_statement(leading, blank_before, StatementKind::Broken { text, names }, first, header);
        }
        open = self.solid(open);
        self.at = open + 1;
        let body = self.block(Some(open), header);
        let span = header.join(body.span);
        let kind = match named {
            Some((var, axis)) => StatementKind::For { var, axis, body },
            None => {
                StatementKind::Broken { text: self.texts.source[span.start..span.end].to_owned(), names: Vec::new() }
            }
        };
        // Comments inside the body are with its statements already; only those in the header are left.
        self.finish_statement(leading, blank_before, kind, first, span)
    }

    /// Where the `{` of a loop stands, or where its header ends without one.
    fn end_of_header(&self, first: usize) -> usize {
        let mut index = first + 1;
        while index < self.tokens.len() {
            let text = self.text(index);
            if text == "{" || text == "}" || index > first + 1 && self.begins_statement(first, index, 0) {
                break;
            }
            index += 1;
        }
        index
    }

    fn end_of_statement(&self, first: usize) -> usize {
        let mut depth = 0usize;
        let mut braces = 0usize;
        let mut index = first;
        while index < self.tokens.len() {
            let is_symbol = self.tokens[index].kind == TokenKind::Symbol;
            match self.text(index) {
                "(" | "[" if is_symbol => depth += 1,
                ")" | "]" if is_symbol => depth = depth.saturating_sub(1),
                // Braces belong to no expression; keep them paired all the same.
                "{" if is_symbol => braces += 1,
                "}" if is_symbol && braces > 0 => braces -= 1,
                "}" if is_symbol => break,
                _ => {}
            }
            if index > first && braces == 0 && self.begins_statement(first, index, depth) {
                break;
            }
            index += 1;
        }
        index
    }

    /// Whether a new statement begins at `index`, inside what began at `first`, `depth` brackets deep.
    fn begins_statement(&self, first: usize, index: usize, depth: usize) -> bool {
        if !self.is_word(index) {
            return false;
        }
        let Some(before) = (first..index).rev().find(|&i| self.tokens[i].kind != TokenKind::Comment) else {
            return false;
        };
        let text = self.text(index);
        let next = self.solid(index + 1);
        let previous = self.text(before);
        let first_in_line =
            self.tokens[index].newline_before || self.tokens[index - 1].newline_before && index - 1 > before;
        let after_keyword = STATEMENT_KEYWORDS.contains(&previous);
        if text == "recurrence" && self.text(index + 2) == "{" {
            return true;
        }
        let is_assignment = self.text(next) == "=";
        if STATEMENT_KEYWORDS.contains(&text) {
            let is_argument = depth > 0 && is_assignment && !first_in_line;
            return !(after_keyword || is_argument);
        }
        if after_keyword || (previous == "," && self.text(first) == "const") {
            return false;
        }
        if is_assignment {
            return depth == 0 || first_in_line;
        }
        if depth > 0 || !first_in_line {
            return false;
        }
        let ends_operand = match self.tokens[before].kind {
            TokenKind::Word => previous != "in",
            TokenKind::Number | TokenKind::BadNumber => true,
            TokenKind::Symbol => matches!(previous, ")" | "]" | "}"),
            TokenKind::Comment | TokenKind::BlockComment | TokenKind::HashComment | TokenKind::Stray => false,
        };
        // On a new line after a whole value: nothing that goes on begins with a word.
        ends_operand && text != "in" || (self.text(next) == ":" && previous != ",")
    }

    fn explain(&mut self, solid: &[usize], span: Span, error: &ReadError) {
        if self.slips.iter().any(|slip| span.start <= slip.start && slip.end <= span.end) {
            return;
        }
        let words: Vec<&str> = solid.iter().map(|&index| self.text(index)).collect();
        let tokens: Vec<Token> = solid.iter().map(|&index| self.tokens[index]).collect();
        let found = self.solid(solid.last().map_or(self.at, |last| last + 1));
        let after = self.tokens.get(found).map(|token| (token.span, self.text(found)));
        let error = explain::statement(&words, &tokens, error, after);
        self.diagnostics.push(error);
    }

    /// What a broken statement would seem to declare.
    fn names_declared(&self, solid: &[usize]) -> Vec<Name> {
        let keyword = solid.first().map_or("", |&index| self.text(index));
        let mut names: Vec<Name> = Vec::new();
        for (position, &index) in solid.iter().enumerate() {
            if !self.is_word(index) || position == 0 && STATEMENT_KEYWORDS.contains(&keyword) {
                continue;
            }
            let next = solid.get(position + 1).map_or("", |&index| self.text(index));
            let previous = position.checked_sub(1).map_or("", |before| self.text(solid[before]));
            let is_declaration = STATEMENT_KEYWORDS.contains(&keyword);
            let declared = next == ":"
                || (is_declaration && (position == 1 || keyword == "axis" || previous == ","))
                || (keyword == "const" && next == "=")
                // A misspelt keyword: `stat S: [K]`, `lett x = …`.
                || (position == 1 && next == "=");
            if declared {
                names.push(Name { text: self.text(index).to_owned(), span: self.tokens[index].span });
            }
        }
        names
    }
}
