//! The tile program as text (`.cwt`).
//!
//! Takes a [`Kernel`], right or wrong, and gives text; [`parse`] takes text back. Never checks what the kernel means:
//! that is [`super::verify`]'s part.
//!
//! Variables and locals are numbered in the order of their declaration, so a parsed kernel is *canonical*: for every
//! kernel `k` that verifies, `parse(print(k))` equals [`canonical`]`(k)`, which prints as the same text.
//!
//! # Grammar
//! `*` repeats, `?` is optional, `#` starts a comment that ends with the line. Line breaks are only spaces.
//! ```text
//! kernel    = "kernel" name "{" arg* buf* stmt* "}"
//! arg       = "arg" name ":" ("f32" | "bf16" | "f16") role shape ("read" | "write")
//! role      = "token" | "head" | "sequence" | "chunk" "(" integer ")"
//! buf       = "buf" "%"name ":" shape ("pad" integer)?
//! shape     = "[" (integer ("," integer)*)? "]"
//!
//! stmt      = "for" var "in" ("reverse" | "any")? index ".." index block
//!           | "lanes" var "in" "0" ".." integer block
//!           | "if" affine ("<" | "<=" | "==") affine block
//!           | "local" local "=" expr
//!           | local "=" expr
//!           | place "=" expr
//!           | place ("=" | "+=") ("sum" | "max") var "in" "0" ".." integer "of" expr      (*)
//!           | "matmul" view ("=" | "+=" | "-=") view "*" view ("lower" | "lower_left" | "upper_left")? "exact"?
//! block     = "{" stmt* "}"
//! view      = "%"name "[" affine "," affine ("at" affine)? ("step" integer "," integer)? "]"
//!
//! place     = ("%"name | name) "[" (index ("," index)*)? "]"
//! index     = affine | "min" "(" affine "," affine ")"
//! affine    = "-"? term (("+" | "-") term)*
//! term      = integer | (integer "*")? (var | "T" | "chunks" "(" integer ")")
//!
//! expr      = product (("+" | "-") product)*
//! product   = atom (("*" | "/") atom)*
//! atom      = "(" expr ")" | number | local | place | function "(" expr ("," expr)? ")"
//!           | "select" "(" affine compare affine "," expr "," expr ")"
//!           | "select_value" "(" expr compare expr "," expr "," expr ")"
//! number    = decimal float, "inf", "nan", each with an optional "-"
//! ```
//! (*) `+=` with `max` keeps the larger of what is there and the maximum found.
//!
//! A view `%b[r, c at o step y, x]` has `r` rows and `c` columns; element (i, j) is at `o + i·y + j·x`. Without `at`
//! the offset is 0; without `step` the steps are the buffer's pitch and 1.

use super::ir::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

pub use super::parse::{ParseError, parse};

/// A line of the printed kernel that a complaint can stand under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Line {
    /// The first line.
    Head,
    /// The declaration of an argument.
    Arg(usize),
    /// The declaration of a buffer.
    Buffer(usize),
    /// A statement, counted from 0 in the order of the text.
    Stmt(usize),
}

/// The kernel as text.
pub fn print(kernel: &Kernel) -> String {
    print_with_notes(kernel, &BTreeMap::new())
}

/// The kernel as text, with notes as comments under the lines they are about.
pub fn print_with_notes(kernel: &Kernel, notes: &BTreeMap<Line, Vec<String>>) -> String {
    let mut printer = Printer { names: Names::of(kernel), kernel, notes, text: String::new(), n_stmts: 0 };
    printer.kernel();
    printer.text
}

/// One statement as it is printed, without its body.
pub fn print_line(kernel: &Kernel, stmt: &Stmt) -> String {
    Printer { names: Names::of(kernel), kernel, notes: &BTreeMap::new(), text: String::new(), n_stmts: 0 }.first(stmt)
}

/// An index as it is printed.
pub fn print_index(kernel: &Kernel, index: &Index) -> String {
    Names::of(kernel).index(index)
}

/// The kernel with the names and the numbers it gets by being printed and parsed.
pub fn canonical(kernel: &Kernel) -> Kernel {
    let names = Names::of(kernel);
    let mut renumbered = kernel.clone();
    renumbered.buffers.iter_mut().zip(&names.buffers).for_each(|(buffer, name)| buffer.name.clone_from(name));
    renumbered.vars = names.var_order.iter().map(|id| names.var(*id)).collect();
    renumbered.n_locals = names.locals.len() as u32;
    let numbers = Numbers {
        vars: names.var_order.iter().enumerate().map(|(i, id)| (*id, VarId(i as u32))).collect(),
        locals: names.locals.iter().map(|(id, i)| (*id, LocalId(*i))).collect(),
    };
    renumbered.body.iter_mut().for_each(|stmt| numbers.stmt(stmt));
    renumbered
}

/// Names of one function of one value, as in the text.
pub fn unary_name(op: UnaryOp) -> &'static str {
    match op {
        UnaryOp::Neg => "neg",
        UnaryOp::Exp => "exp",
        UnaryOp::Expm1 => "expm1",
        UnaryOp::Log => "log",
        UnaryOp::Sqrt => "sqrt",
        UnaryOp::Recip => "recip",
        UnaryOp::Abs => "abs",
        UnaryOp::Sign => "sign",
        UnaryOp::Square => "square",
        UnaryOp::Sigmoid => "sigmoid",
        UnaryOp::LogSigmoid => "log_sigmoid",
        UnaryOp::Softplus => "softplus",
        UnaryOp::Tanh => "tanh",
        UnaryOp::Sin => "sin",
        UnaryOp::Cos => "cos",
        UnaryOp::Erf => "erf",
    }
}

/// Every function of one value.
pub const UNARY: [UnaryOp; 16] = [
    UnaryOp::Neg,
    UnaryOp::Exp,
    UnaryOp::Expm1,
    UnaryOp::Log,
    UnaryOp::Sqrt,
    UnaryOp::Recip,
    UnaryOp::Abs,
    UnaryOp::Sign,
    UnaryOp::Square,
    UnaryOp::Sigmoid,
    UnaryOp::LogSigmoid,
    UnaryOp::Softplus,
    UnaryOp::Tanh,
    UnaryOp::Sin,
    UnaryOp::Cos,
    UnaryOp::Erf,
];

/// How a function of two values is written.
enum Notation {
    /// Between its operands, with a binding strength.
    Infix(&'static str, u8),
    /// Before them.
    Call(&'static str),
}

fn notation(op: BinaryOp) -> Notation {
    match op {
        BinaryOp::Add => Notation::Infix("+", 1),
        BinaryOp::Sub => Notation::Infix("-", 1),
        BinaryOp::Mul => Notation::Infix("*", 2),
        BinaryOp::Div => Notation::Infix("/", 2),
        BinaryOp::Min => Notation::Call("min"),
        BinaryOp::Max => Notation::Call("max"),
        BinaryOp::Pow => Notation::Call("pow"),
    }
}

/// How a comparison is written.
pub fn compare_sign(op: Compare) -> &'static str {
    match op {
        Compare::Lt => "<",
        Compare::Le => "<=",
        Compare::Eq => "==",
    }
}

/// Words of the grammar that could be taken for a variable.
const RESERVED: [&str; 8] = ["T", "min", "chunks", "reverse", "any", "in", "at", "step"];

/// What ids are called: unique names, made of letters, digits and underscores.
struct Names {
    buffers: Vec<String>,
    vars: HashMap<VarId, String>,
    /// Declared variables, in the order of the text.
    var_order: Vec<VarId>,
    /// Locals, numbered in the order of the text.
    locals: HashMap<LocalId, u32>,
}

impl Names {
    fn of(kernel: &Kernel) -> Names {
        let mut taken = HashSet::new();
        let buffers = kernel.buffers.iter().map(|buffer| unique(&buffer.name, "b", &mut taken)).collect();
        let mut declared = Declared::default();
        kernel.body.iter().for_each(|stmt| declared.stmt(stmt));
        let mut taken = RESERVED.iter().map(|word| word.to_string()).collect();
        let mut vars = HashMap::new();
        for id in &declared.vars {
            let wish = kernel.vars.get(id.0 as usize).map_or("i", String::as_str);
            vars.entry(*id).or_insert_with(|| unique(wish, "i", &mut taken));
        }
        let mut seen = HashSet::new();
        let var_order = declared.vars.into_iter().filter(|id| seen.insert(*id)).collect();
        let mut locals = HashMap::new();
        for id in declared.locals {
            let next = locals.len() as u32;
            locals.entry(id).or_insert(next);
        }
        Names { buffers, vars, var_order, locals }
    }

    fn var(&self, id: VarId) -> String {
        self.vars.get(&id).cloned().unwrap_or_else(|| format!("undeclared_v{}", id.0))
    }

    fn local(&self, id: LocalId) -> String {
        match self.locals.get(&id) {
            Some(number) => format!("x{number}"),
            None => format!("undeclared_x{}", id.0),
        }
    }

    fn buffer(&self, id: BufferId) -> String {
        match self.buffers.get(id.0 as usize) {
            Some(name) => format!("%{name}"),
            None => format!("%undeclared_b{}", id.0),
        }
    }

    fn affine(&self, affine: &Affine) -> String {
        let vars = affine.vars.iter().map(|(var, factor)| (*factor, self.var(*var)));
        let symbols = affine.symbols.iter().map(|(symbol, factor)| {
            let name = match symbol {
                Symbol::Length => "T".to_string(),
                Symbol::Chunks(n) => format!("chunks({n})"),
            };
            (*factor, name)
        });
        // Only the order among variables and among symbols means something: a positive term may lead.
        let symbols_lead = affine.vars.first().is_some_and(|(_, factor)| *factor < 0)
            && affine.symbols.first().is_some_and(|(_, factor)| *factor > 0);
        let terms: Vec<_> = if symbols_lead { symbols.chain(vars).collect() } else { vars.chain(symbols).collect() };
        let mut text = String::new();
        for (factor, name) in terms {
            let sign = match (text.is_empty(), factor < 0) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            };
            text.push_str(sign);
            match factor.unsigned_abs() {
                1 => text.push_str(&name),
                n => text.push_str(&format!("{n}*{name}")),
            }
        }
        match (text.is_empty(), affine.constant) {
            (true, n) => n.to_string(),
            (false, 0) => text,
            (false, n) => format!("{text} {} {}", if n < 0 { '-' } else { '+' }, n.unsigned_abs()),
        }
    }

    fn index(&self, index: &Index) -> String {
        match &index.at_most {
            None => self.affine(&index.value),
            Some(limit) => format!("min({}, {})", self.affine(&index.value), self.affine(limit)),
        }
    }
}

/// A name nobody has yet, close to the wished one.
fn unique(wish: &str, fallback: &str, taken: &mut HashSet<String>) -> String {
    let mut base: String = wish.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if !base.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        base.insert_str(0, fallback);
    }
    let mut name = base.clone();
    let mut n = 0;
    while !taken.insert(name.clone()) {
        n += 1;
        name = format!("{base}_{n}");
    }
    name
}

/// Ids in the order of their declaration in the text.
#[derive(Default)]
struct Declared {
    vars: Vec<VarId>,
    locals: Vec<LocalId>,
}

impl Declared {
    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::For { var, body, .. } | Stmt::Lanes { var, body, .. } => {
                self.vars.push(*var);
                body.iter().for_each(|stmt| self.stmt(stmt));
            }
            Stmt::If { body, .. } => body.iter().for_each(|stmt| self.stmt(stmt)),
            Stmt::Local { local, .. } => self.locals.push(*local),
            Stmt::ReduceLanes { var, .. } => self.vars.push(*var),
            Stmt::Assign { .. } | Stmt::Store { .. } | Stmt::Matmul(_) => {}
        }
    }
}

/// New numbers for variables and locals.
struct Numbers {
    vars: HashMap<VarId, VarId>,
    locals: HashMap<LocalId, LocalId>,
}

impl Numbers {
    fn var(&self, id: &mut VarId) {
        *id = self.vars.get(id).copied().unwrap_or(*id);
    }
    fn local(&self, id: &mut LocalId) {
        *id = self.locals.get(id).copied().unwrap_or(*id);
    }
    fn affine(&self, affine: &mut Affine) {
        affine.vars.iter_mut().for_each(|(var, _)| self.var(var));
    }
    fn index(&self, index: &mut Index) {
        self.affine(&mut index.value);
        index.at_most.iter_mut().for_each(|limit| self.affine(limit));
    }
    fn place(&self, place: &mut Place) {
        place.indices.iter_mut().for_each(|index| self.index(index));
    }
    fn cond(&self, cond: &mut Cond) {
        self.affine(&mut cond.lhs);
        self.affine(&mut cond.rhs);
    }
    fn expr(&self, expr: &mut Expr) {
        match expr {
            Expr::Const(_) => {}
            Expr::Load(place) => self.place(place),
            Expr::Local(local) => self.local(local),
            Expr::Unary(_, x) => self.expr(x),
            Expr::Binary(_, a, b) => [a, b].into_iter().for_each(|x| self.expr(x)),
            Expr::Select(cond, a, b) => {
                self.cond(cond);
                [a, b].into_iter().for_each(|x| self.expr(x));
            }
            Expr::SelectValue(_, lhs, rhs, a, b) => [lhs, rhs, a, b].into_iter().for_each(|x| self.expr(x)),
        }
    }
    fn stmt(&self, stmt: &mut Stmt) {
        match stmt {
            Stmt::For { var, lo, hi, body, .. } => {
                self.var(var);
                self.index(lo);
                self.index(hi);
                body.iter_mut().for_each(|stmt| self.stmt(stmt));
            }
            Stmt::Lanes { var, body, .. } => {
                self.var(var);
                body.iter_mut().for_each(|stmt| self.stmt(stmt));
            }
            Stmt::If { cond, body } => {
                self.cond(cond);
                body.iter_mut().for_each(|stmt| self.stmt(stmt));
            }
            Stmt::Local { local, value } | Stmt::Assign { local, value } => {
                self.local(local);
                self.expr(value);
            }
            Stmt::Store { place, value } => {
                self.place(place);
                self.expr(value);
            }
            Stmt::ReduceLanes { place, var, value, .. } => {
                self.place(place);
                self.var(var);
                self.expr(value);
            }
            Stmt::Matmul(product) => {
                for view in [&mut product.dst, &mut product.a, &mut product.b] {
                    self.affine(&mut view.offset);
                }
                self.affine(&mut product.k);
            }
        }
    }
}

struct Printer<'a> {
    kernel: &'a Kernel,
    names: Names,
    notes: &'a BTreeMap<Line, Vec<String>>,
    text: String,
    n_stmts: usize,
}

impl Printer<'_> {
    fn line(&mut self, depth: usize, line: &str, about: Option<Line>) {
        let indent = "  ".repeat(depth);
        writeln!(self.text, "{indent}{line}").expect("writing to a string cannot fail");
        for note in about.and_then(|about| self.notes.get(&about)).into_iter().flatten() {
            writeln!(self.text, "{indent}# ^ {note}").expect("writing to a string cannot fail");
        }
    }

    fn kernel(&mut self) {
        let kernel = self.kernel;
        self.line(0, &format!("kernel {} {{", kernel.name), Some(Line::Head));
        for (i, arg) in kernel.args.iter().enumerate() {
            let role = match arg.role {
                chunkwise_abi::Role::Token => "token".to_string(),
                chunkwise_abi::Role::Head => "head".to_string(),
                chunkwise_abi::Role::Sequence => "sequence".to_string(),
                chunkwise_abi::Role::Chunk(n) => format!("chunk({n})"),
            };
            let access = match arg.access {
                chunkwise_abi::Access::Read => "read",
                chunkwise_abi::Access::Write => "write",
            };
            let line = format!("arg {} : {} {role}{} {access}", arg.name, arg.dtype.name(), shape(&arg.inner));
            self.line(1, &line, Some(Line::Arg(i)));
        }
        for (i, buffer) in kernel.buffers.iter().enumerate() {
            let pad = if buffer.pad == 0 { String::new() } else { format!(" pad {}", buffer.pad) };
            let line = format!("buf {} : {}{pad}", self.names.buffer(BufferId(i as u32)), shape(&buffer.shape));
            self.line(1, &line, Some(Line::Buffer(i)));
        }
        self.block(1, &kernel.body);
        self.line(0, "}", None);
    }

    fn block(&mut self, depth: usize, body: &[Stmt]) {
        for stmt in body {
            let first = self.first(stmt);
            let about = Line::Stmt(self.n_stmts);
            self.n_stmts += 1;
            self.line(depth, &first, Some(about));
            match stmt {
                Stmt::For { body, .. } | Stmt::Lanes { body, .. } | Stmt::If { body, .. } => {
                    self.block(depth + 1, body);
                    self.line(depth, "}", None);
                }
                Stmt::Local { .. }
                | Stmt::Assign { .. }
                | Stmt::Store { .. }
                | Stmt::ReduceLanes { .. }
                | Stmt::Matmul(_) => {}
            }
        }
    }

    /// The first line of a statement.
    fn first(&self, stmt: &Stmt) -> String {
        let names = &self.names;
        match stmt {
            Stmt::For { var, lo, hi, order, .. } => {
                let order = match order {
                    Order::Forward => "",
                    Order::Reverse => "reverse ",
                    Order::Any => "any ",
                };
                format!("for {} in {order}{} .. {} {{", names.var(*var), names.index(lo), names.index(hi))
            }
            Stmt::Lanes { var, extent, .. } => format!("lanes {} in 0 .. {extent} {{", names.var(*var)),
            Stmt::If { cond, .. } => format!("if {} {{", self.cond(cond)),
            Stmt::Local { local, value } => format!("local {} = {}", names.local(*local), self.expr(value, 0)),
            Stmt::Assign { local, value } => format!("{} = {}", names.local(*local), self.expr(value, 0)),
            Stmt::Store { place, value } => format!("{} = {}", self.place(place), self.expr(value, 0)),
            Stmt::ReduceLanes { place, op, var, extent, value, accumulate } => {
                let op = match op {
                    ReduceOp::Sum => "sum",
                    ReduceOp::Max => "max",
                };
                let sign = if *accumulate { "+=" } else { "=" };
                let var = names.var(*var);
                format!("{} {sign} {op} {var} in 0 .. {extent} of {}", self.place(place), self.expr(value, 0))
            }
            Stmt::Matmul(product) => {
                let (m, n) = (product.m.to_string(), product.n.to_string());
                let k = names.affine(&product.k);
                let sign = match product.update {
                    Update::Set => "=",
                    Update::Add => "+=",
                    Update::Subtract => "-=",
                };
                let triangle = match product.triangle {
                    Triangle::Full => "",
                    Triangle::LowerResult => " lower",
                    Triangle::LowerLeft => " lower_left",
                    Triangle::UpperLeft => " upper_left",
                };
                let dst = self.view(&product.dst, &m, &n);
                let (a, b) = (self.view(&product.a, &m, &k), self.view(&product.b, &k, &n));
                let exact = if product.exact { " exact" } else { "" };
                format!("matmul {dst} {sign} {a} * {b}{triangle}{exact}")
            }
        }
    }

    fn view(&self, view: &View, rows: &str, cols: &str) -> String {
        let mut text = format!("{}[{rows}, {cols}", self.names.buffer(view.buffer));
        if view.offset != Affine::default() {
            text.push_str(&format!(" at {}", self.names.affine(&view.offset)));
        }
        let pitch = self.kernel.buffers.get(view.buffer.0 as usize).map(Buffer::pitch);
        if pitch != Some(view.row_stride) || view.col_stride != 1 {
            text.push_str(&format!(" step {}, {}", view.row_stride, view.col_stride));
        }
        text.push(']');
        text
    }

    fn place(&self, place: &Place) -> String {
        let memory = match place.memory {
            Memory::Buffer(id) => self.names.buffer(id),
            Memory::Arg(id) => match self.kernel.args.get(id.0 as usize) {
                Some(arg) => arg.name.clone(),
                None => format!("undeclared_a{}", id.0),
            },
        };
        let indices: Vec<_> = place.indices.iter().map(|index| self.names.index(index)).collect();
        format!("{memory}[{}]", indices.join(", "))
    }

    fn cond(&self, cond: &Cond) -> String {
        format!("{} {} {}", self.names.affine(&cond.lhs), compare_sign(cond.op), self.names.affine(&cond.rhs))
    }

    /// `binding`: how strongly the surroundings bind; weaker operators get parentheses.
    fn expr(&self, expr: &Expr, binding: u8) -> String {
        match expr {
            Expr::Const(value) => number(*value),
            Expr::Load(place) => self.place(place),
            Expr::Local(local) => self.names.local(*local),
            Expr::Unary(op, x) => format!("{}({})", unary_name(*op), self.expr(x, 0)),
            Expr::Binary(op, a, b) => match notation(*op) {
                Notation::Infix(sign, strength) => {
                    let text = format!("{} {sign} {}", self.expr(a, strength), self.expr(b, strength + 1));
                    if strength < binding { format!("({text})") } else { text }
                }
                Notation::Call(name) => format!("{name}({}, {})", self.expr(a, 0), self.expr(b, 0)),
            },
            Expr::Select(cond, a, b) => {
                format!("select({}, {}, {})", self.cond(cond), self.expr(a, 0), self.expr(b, 0))
            }
            Expr::SelectValue(op, lhs, rhs, a, b) => {
                let cond = format!("{} {} {}", self.expr(lhs, 0), compare_sign(*op), self.expr(rhs, 0));
                format!("select_value({cond}, {}, {})", self.expr(a, 0), self.expr(b, 0))
            }
        }
    }
}

fn shape(dims: &[usize]) -> String {
    let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// The shortest decimal that reads back as the same number.
fn number(value: f64) -> String {
    if value.is_nan() { "nan".to_string() } else { format!("{value:?}") }
}
