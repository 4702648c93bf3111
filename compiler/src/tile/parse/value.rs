//! Reads indices, conditions and expressions; what stands inside a statement.
//!
//! Takes tokens from the parser, gives parts of statements. Declares nothing.

use super::super::ir::*;
use super::super::scan::Token;
use super::super::text::{UNARY, unary_name};
use super::{MAX_OPERATORS, Parsed, Parser};

impl Parser {
    // Indices.

    pub(super) fn scratch(&mut self) -> Parsed<BufferId> {
        let Token::Scratch(name) = self.peek() else { return self.expected("a buffer, `%name`") };
        match self.buffers.get(name) {
            Some(&id) => {
                self.advance();
                Ok(id)
            }
            None => self.fail(format!("buffer `%{name}` is not declared")),
        }
    }

    pub(super) fn place(&mut self) -> Parsed<Place> {
        let memory = match self.peek() {
            Token::Scratch(_) => Memory::Buffer(self.scratch()?),
            Token::Word(name) => match self.args.get(name) {
                Some(&id) => {
                    self.advance();
                    Memory::Arg(id)
                }
                None => return self.fail(format!("argument `{name}` is not declared")),
            },
            Token::Integer(_) | Token::Decimal(_) | Token::Sign(_) | Token::End => {
                return self.expected("an argument or a buffer");
            }
        };
        self.sign("[")?;
        let mut indices = Vec::new();
        while !self.take_sign("]") {
            if !indices.is_empty() {
                self.sign(",")?;
            }
            indices.push(self.index()?);
        }
        Ok(Place { memory, indices })
    }

    pub(super) fn index(&mut self) -> Parsed<Index> {
        if self.is_word("min") && *self.peek_after() == Token::Sign("(") {
            self.advance();
            self.sign("(")?;
            let value = self.affine()?;
            self.sign(",")?;
            let limit = self.affine()?;
            self.sign(")")?;
            return Ok(Index { value, at_most: Some(limit) });
        }
        Ok(Index { value: self.affine()?, at_most: None })
    }

    pub(super) fn affine(&mut self) -> Parsed<Affine> {
        let mut sum = Affine::default();
        let mut negative = self.take_sign("-");
        loop {
            self.term(negative, &mut sum)?;
            negative = self.is_sign("-");
            if !self.take_sign("+") && !self.take_sign("-") {
                break;
            }
        }
        sum.vars.retain(|(_, factor)| *factor != 0);
        sum.symbols.retain(|(_, factor)| *factor != 0);
        Ok(sum)
    }

    fn term(&mut self, negative: bool, sum: &mut Affine) -> Parsed<()> {
        let mut factor: i64 = 1;
        if let Token::Integer(digits) = self.peek() {
            let signed = format!("{}{digits}", if negative { "-" } else { "" });
            factor = match signed.parse() {
                Ok(factor) => factor,
                Err(_) => return self.fail(format!("{} is too large", self.peek())),
            };
            self.advance();
            if !self.take_sign("*") {
                return self.add_to(factor, sum, |sum| &mut sum.constant);
            }
        } else if negative {
            factor = -1;
        }
        let name = match self.peek() {
            Token::Word(name) => name.clone(),
            Token::Scratch(_) | Token::Integer(_) | Token::Decimal(_) | Token::Sign(_) | Token::End => {
                return self.expected("an integer, a loop variable, `T` or `chunks(tokens)`");
            }
        };
        let symbol = if name == "T" {
            self.advance();
            Symbol::Length
        } else if name == "chunks" {
            self.advance();
            self.sign("(")?;
            let tokens = self.integer()?;
            self.sign(")")?;
            Symbol::Chunks(tokens)
        } else {
            let Some(&var) = self.vars.get(&name) else {
                return self.fail(format!("variable `{name}` is not in scope"));
            };
            self.advance();
            return self.add_to(factor, sum, |sum| entry(&mut sum.vars, var));
        };
        self.add_to(factor, sum, |sum| entry(&mut sum.symbols, symbol))
    }

    fn add_to(&self, n: i64, sum: &mut Affine, part: impl FnOnce(&mut Affine) -> &mut i64) -> Parsed<()> {
        let part = part(sum);
        match part.checked_add(n) {
            Some(total) => {
                *part = total;
                Ok(())
            }
            None => self.fail("the index is too large".to_string()),
        }
    }

    fn compare(&mut self) -> Parsed<Compare> {
        if self.take_sign("<") {
            Ok(Compare::Lt)
        } else if self.take_sign("<=") {
            Ok(Compare::Le)
        } else if self.take_sign("==") {
            Ok(Compare::Eq)
        } else {
            self.expected("`<`, `<=` or `==`")
        }
    }

    pub(super) fn cond(&mut self) -> Parsed<Cond> {
        let lhs = self.affine()?;
        let op = self.compare()?;
        Ok(Cond { lhs, op, rhs: self.affine()? })
    }

    // Expressions.

    pub(super) fn expr(&mut self) -> Parsed<Expr> {
        self.nested(|parser| {
            let mut sum = parser.product()?;
            loop {
                let op = if parser.take_sign("+") {
                    BinaryOp::Add
                } else if parser.take_sign("-") {
                    BinaryOp::Sub
                } else {
                    return Ok(sum);
                };
                parser.count_operator()?;
                sum = Expr::Binary(op, Box::new(sum), Box::new(parser.product()?));
            }
        })
    }

    fn count_operator(&mut self) -> Parsed<()> {
        self.n_operators += 1;
        if self.n_operators > MAX_OPERATORS {
            return self.fail(format!("more than {MAX_OPERATORS} operators in one statement"));
        }
        Ok(())
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut product = self.atom()?;
        loop {
            let op = if self.take_sign("*") {
                BinaryOp::Mul
            } else if self.take_sign("/") {
                BinaryOp::Div
            } else {
                return Ok(product);
            };
            self.count_operator()?;
            product = Expr::Binary(op, Box::new(product), Box::new(self.atom()?));
        }
    }

    fn atom(&mut self) -> Parsed<Expr> {
        if self.take_sign("(") {
            let inner = self.expr()?;
            self.sign(")")?;
            return Ok(inner);
        }
        let negative = self.take_sign("-");
        let signed = |value: f64| Expr::Const(if negative { -value } else { value });
        match self.peek().clone() {
            Token::Integer(digits) | Token::Decimal(digits) => match digits.parse() {
                Ok(value) => {
                    self.advance();
                    Ok(signed(value))
                }
                Err(_) => self.expected("a number"),
            },
            Token::Word(word) if word == "inf" => {
                self.advance();
                Ok(signed(f64::INFINITY))
            }
            Token::Word(_) | Token::Scratch(_) | Token::Sign(_) | Token::End if negative => {
                self.expected("a number after `-`; the negative of a value is `neg(value)`")
            }
            Token::Scratch(_) => Ok(Expr::Load(self.place()?)),
            Token::Word(word) => self.named(&word),
            Token::Sign(_) | Token::End => self.expected("a value"),
        }
    }

    /// A load, a function, a local or `nan`.
    fn named(&mut self, word: &str) -> Parsed<Expr> {
        match self.peek_after() {
            Token::Sign("[") => return Ok(Expr::Load(self.place()?)),
            Token::Sign("(") => {}
            Token::Word(_)
            | Token::Scratch(_)
            | Token::Integer(_)
            | Token::Decimal(_)
            | Token::Sign(_)
            | Token::End => {
                if let Some(&local) = self.locals.get(word) {
                    self.advance();
                    return Ok(Expr::Local(local));
                }
                if word == "nan" {
                    self.advance();
                    return Ok(Expr::Const(f64::NAN));
                }
                return self.fail(format!("local `{word}` is not in scope"));
            }
        }
        let unary = UNARY.into_iter().find(|op| unary_name(*op) == word);
        let binary = match word {
            "min" => Some(BinaryOp::Min),
            "max" => Some(BinaryOp::Max),
            "pow" => Some(BinaryOp::Pow),
            _ => None,
        };
        if unary.is_none() && binary.is_none() && word != "select" && word != "select_value" {
            return self.fail(format!("`{word}` is not a function"));
        }
        self.advance();
        self.sign("(")?;
        let value = if let Some(op) = unary {
            Expr::Unary(op, Box::new(self.expr()?))
        } else if let Some(op) = binary {
            let a = self.expr()?;
            self.sign(",")?;
            Expr::Binary(op, Box::new(a), Box::new(self.expr()?))
        } else if word == "select" {
            let cond = self.cond()?;
            let (a, b) = self.branches()?;
            Expr::Select(cond, a, b)
        } else {
            let lhs = Box::new(self.expr()?);
            let op = self.compare()?;
            let rhs = Box::new(self.expr()?);
            let (a, b) = self.branches()?;
            Expr::SelectValue(op, lhs, rhs, a, b)
        };
        self.sign(")")?;
        Ok(value)
    }

    fn branches(&mut self) -> Parsed<(Box<Expr>, Box<Expr>)> {
        self.sign(",")?;
        let a = Box::new(self.expr()?);
        self.sign(",")?;
        Ok((a, Box::new(self.expr()?)))
    }
}

fn entry<K: PartialEq + Copy>(terms: &mut Vec<(K, i64)>, key: K) -> &mut i64 {
    match terms.iter().position(|(found, _)| *found == key) {
        Some(at) => &mut terms[at].1,
        None => {
            terms.push((key, 0));
            &mut terms.last_mut().expect("an element was just pushed").1
        }
    }
}
