//! Reads the text form of a tile program; the grammar stands in [`super::text`].
//!
//! Takes text, gives a [`Kernel`] or the place where the text stops making sense. Every name must be declared before
//! it is used; nothing else is checked.

use super::ir::*;
use super::scan::{Placed, Token, scan};
use chunkwise_abi::{Access, DType, Role};
use std::collections::HashMap;

mod value;

/// Why a text is not a tile program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What was found and what was expected.
    pub message: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}
impl std::error::Error for ParseError {}

/// Blocks and expressions nested deeper than this are refused, so that no text exhausts the stack.
const MAX_DEPTH: usize = 200;

/// Operators in one statement beyond this many are refused, for the same reason.
const MAX_OPERATORS: usize = 2000;

/// The kernel a text describes.
pub fn parse(text: &str) -> Result<Kernel, ParseError> {
    let tokens = scan(text)?;
    let mut parser = Parser {
        tokens,
        next: 0,
        depth: 0,
        n_operators: 0,
        kernel: Kernel {
            name: String::new(),
            args: Vec::new(),
            buffers: Vec::new(),
            vars: Vec::new(),
            n_locals: 0,
            body: Vec::new(),
        },
        args: HashMap::new(),
        buffers: HashMap::new(),
        vars: HashMap::new(),
        locals: HashMap::new(),
    };
    parser.kernel()?;
    Ok(parser.kernel)
}

struct Parser {
    tokens: Vec<Placed>,
    next: usize,
    depth: usize,
    /// Operators of the statement so far.
    n_operators: usize,
    kernel: Kernel,
    args: HashMap<String, ArgId>,
    buffers: HashMap<String, BufferId>,
    /// Variables in scope.
    vars: HashMap<String, VarId>,
    /// Locals in scope.
    locals: HashMap<String, LocalId>,
}

type Parsed<T> = Result<T, ParseError>;

impl Parser {
    // Tokens.

    fn peek(&self) -> &Token {
        &self.tokens[self.next].token
    }
    fn peek_after(&self) -> &Token {
        &self.tokens[(self.next + 1).min(self.tokens.len() - 1)].token
    }
    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }
    fn fail<T>(&self, message: String) -> Parsed<T> {
        let Placed { line, column, .. } = self.tokens[self.next];
        Err(ParseError { line, column, message })
    }
    fn expected<T>(&self, what: &str) -> Parsed<T> {
        self.fail(format!("found {}, expected {what}", self.peek()))
    }
    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }
    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if found == word)
    }
    fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        if found {
            self.advance();
        }
        found
    }
    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }
    fn sign(&mut self, sign: &str) -> Parsed<()> {
        if self.take_sign(sign) { Ok(()) } else { self.expected(&format!("`{sign}`")) }
    }
    fn word(&mut self, word: &str) -> Parsed<()> {
        if self.take_word(word) { Ok(()) } else { self.expected(&format!("`{word}`")) }
    }
    fn name(&mut self, what: &str) -> Parsed<String> {
        match self.peek() {
            Token::Word(_) => match self.advance() {
                Token::Word(name) => Ok(name),
                Token::Scratch(_) | Token::Integer(_) | Token::Decimal(_) | Token::Sign(_) | Token::End => {
                    self.expected(what)
                }
            },
            Token::Scratch(_) | Token::Integer(_) | Token::Decimal(_) | Token::Sign(_) | Token::End => {
                self.expected(what)
            }
        }
    }
    fn integer<N: std::str::FromStr>(&mut self) -> Parsed<N> {
        let Token::Integer(digits) = self.peek() else { return self.expected("an integer") };
        match digits.parse() {
            Ok(value) => {
                self.advance();
                Ok(value)
            }
            Err(_) => self.fail(format!("{} is too large", self.peek())),
        }
    }
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return self.fail(format!("nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    // Declarations.

    fn kernel(&mut self) -> Parsed<()> {
        self.word("kernel")?;
        self.kernel.name = self.name("the kernel's name")?;
        self.sign("{")?;
        while self.is_word("arg") && *self.peek_after() != Token::Sign("[") {
            self.arg()?;
        }
        while self.is_word("buf") && *self.peek_after() != Token::Sign("[") {
            self.buffer()?;
        }
        let mut body = Vec::new();
        while !self.take_sign("}") {
            body.push(self.stmt()?);
        }
        self.kernel.body = body;
        if *self.peek() == Token::End { Ok(()) } else { self.expected("nothing after the kernel") }
    }

    fn arg(&mut self) -> Parsed<()> {
        self.advance();
        let name = self.name("the argument's name")?;
        self.sign(":")?;
        let dtype = if self.take_word("f32") {
            DType::F32
        } else if self.take_word("bf16") {
            DType::BF16
        } else if self.take_word("f16") {
            DType::F16
        } else {
            return self.expected("an element type: `f32`, `bf16` or `f16`");
        };
        let role = if self.take_word("token") {
            Role::Token
        } else if self.take_word("head") {
            Role::Head
        } else if self.take_word("sequence") {
            Role::Sequence
        } else if self.take_word("chunk") {
            self.sign("(")?;
            let tokens = self.integer()?;
            self.sign(")")?;
            Role::Chunk(tokens)
        } else {
            return self.expected("a role: `token`, `head`, `sequence` or `chunk(tokens)`");
        };
        let inner = self.shape()?;
        let access = if self.take_word("read") {
            Access::Read
        } else if self.take_word("write") {
            Access::Write
        } else {
            return self.expected("`read` or `write`");
        };
        if self.args.insert(name.clone(), ArgId(self.kernel.args.len() as u32)).is_some() {
            return self.fail(format!("argument `{name}` is declared twice"));
        }
        self.kernel.args.push(Arg { name, dtype, role, inner, access });
        Ok(())
    }

    fn buffer(&mut self) -> Parsed<()> {
        self.advance();
        let Token::Scratch(name) = self.peek().clone() else { return self.expected("the buffer's `%name`") };
        self.advance();
        self.sign(":")?;
        let shape = self.shape()?;
        if shape.is_empty() {
            return self.fail(format!("buffer `%{name}` needs at least one dimension"));
        }
        if self.buffers.insert(name.clone(), BufferId(self.kernel.buffers.len() as u32)).is_some() {
            return self.fail(format!("buffer `%{name}` is declared twice"));
        }
        let pad = if self.take_word("pad") { self.integer()? } else { 0 };
        self.kernel.buffers.push(Buffer { name, shape, pad });
        Ok(())
    }

    fn shape(&mut self) -> Parsed<Vec<usize>> {
        self.sign("[")?;
        let mut dims = Vec::new();
        while !self.take_sign("]") {
            if !dims.is_empty() {
                self.sign(",")?;
            }
            dims.push(self.integer()?);
        }
        Ok(dims)
    }

    // Statements.

    fn stmt(&mut self) -> Parsed<Stmt> {
        self.n_operators = 0;
        if let Token::Scratch(_) = self.peek() {
            return self.store();
        }
        // An argument is always followed by its indices, so any name will do for one.
        if *self.peek_after() == Token::Sign("[") {
            return self.store();
        }
        if self.take_word("for") {
            let name = self.name("the loop's variable")?;
            self.word("in")?;
            let order = if self.take_word("reverse") {
                Order::Reverse
            } else if self.take_word("any") {
                Order::Any
            } else {
                Order::Forward
            };
            let lo = self.index()?;
            self.sign("..")?;
            let hi = self.index()?;
            let (var, body) = self.scoped(name, |parser| parser.block())?;
            return Ok(Stmt::For { var, lo, hi, order, body });
        }
        if self.take_word("lanes") {
            let (name, extent) = self.lane_range()?;
            let (var, body) = self.scoped(name, |parser| parser.block())?;
            return Ok(Stmt::Lanes { var, extent, body });
        }
        if self.take_word("if") {
            let cond = self.cond()?;
            let body = self.block()?;
            return Ok(Stmt::If { cond, body });
        }
        if self.take_word("matmul") {
            return self.matmul();
        }
        if self.take_word("local") {
            let name = self.name("the local's name")?;
            self.sign("=")?;
            let value = self.expr()?;
            let local = LocalId(self.kernel.n_locals);
            self.kernel.n_locals += 1;
            self.locals.insert(name, local);
            return Ok(Stmt::Local { local, value });
        }
        let Token::Word(name) = self.peek().clone() else { return self.expected("a statement or `}`") };
        let Some(&local) = self.locals.get(&name) else {
            return self.fail(format!("found `{name}`, expected a statement, or the name of a local in scope"));
        };
        self.advance();
        self.sign("=")?;
        Ok(Stmt::Assign { local, value: self.expr()? })
    }

    fn lane_range(&mut self) -> Parsed<(String, usize)> {
        let name = self.name("the lanes' variable")?;
        self.word("in")?;
        match self.integer()? {
            0usize => {}
            _ => return self.fail("lanes count from 0".to_string()),
        }
        self.sign("..")?;
        Ok((name, self.integer()?))
    }

    /// Declares a variable for what `inner` reads.
    fn scoped<T>(&mut self, name: String, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<(VarId, T)> {
        let var = VarId(self.kernel.vars.len() as u32);
        self.kernel.vars.push(name.clone());
        let hidden = self.vars.insert(name.clone(), var);
        let result = inner(self)?;
        match hidden {
            Some(outer) => self.vars.insert(name, outer),
            None => self.vars.remove(&name),
        };
        Ok((var, result))
    }

    fn block(&mut self) -> Parsed<Vec<Stmt>> {
        self.nested(|parser| {
            parser.sign("{")?;
            let outer = parser.locals.clone();
            let mut body = Vec::new();
            while !parser.take_sign("}") {
                body.push(parser.stmt()?);
            }
            parser.locals = outer;
            Ok(body)
        })
    }

    fn store(&mut self) -> Parsed<Stmt> {
        let place = self.place()?;
        let accumulate = self.take_sign("+=");
        if !accumulate {
            self.sign("=")?;
        }
        let reduces = matches!(self.peek_after(), Token::Word(_));
        let op = match self.peek() {
            Token::Word(word) if reduces && word == "sum" => Some(ReduceOp::Sum),
            Token::Word(word) if reduces && word == "max" => Some(ReduceOp::Max),
            Token::Word(_)
            | Token::Scratch(_)
            | Token::Integer(_)
            | Token::Decimal(_)
            | Token::Sign(_)
            | Token::End => None,
        };
        match op {
            Some(op) => {
                self.advance();
                let (name, extent) = self.lane_range()?;
                self.word("of")?;
                let (var, value) = self.scoped(name, |parser| parser.expr())?;
                Ok(Stmt::ReduceLanes { place, op, var, extent, value, accumulate })
            }
            None if accumulate => self.expected("`sum` or `max`: only a reduction or a product adds in place"),
            None => Ok(Stmt::Store { place, value: self.expr()? }),
        }
    }

    fn matmul(&mut self) -> Parsed<Stmt> {
        let (dst, dst_rows, dst_cols) = self.view()?;
        let update = if self.take_sign("=") {
            Update::Set
        } else if self.take_sign("+=") {
            Update::Add
        } else if self.take_sign("-=") {
            Update::Subtract
        } else {
            return self.expected("`=`, `+=` or `-=`");
        };
        let (a, a_rows, k) = self.view()?;
        self.sign("*")?;
        let (b, b_rows, b_cols) = self.view()?;
        if a_rows != dst_rows || b_cols != dst_cols || k != b_rows {
            return self.fail("the extents of a product must read [m, n] = [m, k] * [k, n]".to_string());
        }
        let extent = |affine: &Affine| match usize::try_from(affine.constant) {
            Ok(n) if affine.vars.is_empty() && affine.symbols.is_empty() => Some(n),
            Ok(_) | Err(_) => None,
        };
        let (Some(m), Some(n)) = (extent(&dst_rows), extent(&dst_cols)) else {
            return self.fail("the rows and columns of a product must be plain numbers".to_string());
        };
        let triangle = if self.take_word("lower") {
            Triangle::LowerResult
        } else if self.take_word("lower_left") {
            Triangle::LowerLeft
        } else if self.take_word("upper_left") {
            Triangle::UpperLeft
        } else {
            Triangle::Full
        };
        let exact = self.take_word("exact");
        Ok(Stmt::Matmul(Matmul { dst, a, b, m, n, k, update, triangle, exact }))
    }

    fn view(&mut self) -> Parsed<(View, Affine, Affine)> {
        let buffer = self.scratch()?;
        self.sign("[")?;
        let rows = self.affine()?;
        self.sign(",")?;
        let cols = self.affine()?;
        let offset = if self.take_word("at") { self.affine()? } else { Affine::default() };
        let (row_stride, col_stride) = if self.take_word("step") {
            let row_stride = self.integer()?;
            self.sign(",")?;
            (row_stride, self.integer()?)
        } else {
            (self.kernel.buffers[buffer.0 as usize].pitch(), 1)
        };
        self.sign("]")?;
        Ok((View { buffer, offset, row_stride, col_stride }, rows, cols))
    }
}
