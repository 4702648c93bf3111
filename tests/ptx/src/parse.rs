//! From PTX text to instructions.
//!
//! Comes in: a module as LLVM prints it. Goes out: kernels, or which line was not understood. Nothing is guessed: every
//! word of an opcode has to be known.

mod names;
mod products;
mod waiting;

use crate::instruction::{Binary, Compared, Exchange, Instruction, Logic, Operation, Register, Relation, Ternary};
use crate::opcodes::{binary, bytes_of, comparison, space_of, special, unary, vector_of};
use std::collections::HashMap;

/// Where the parameter of a kernel lies, as its code sees it.
pub const PARAMETER_AT: u64 = 0x1_0000;
/// Where shared memory lies: where 18 bits are enough for an address, as descriptors of matrices have them.
pub const SHARED_AT: u64 = 0x400;

/// A module.
#[derive(Debug)]
pub struct Module {
    /// Its kernels.
    pub kernels: Vec<Kernel>,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Bytes of its parameter.
    pub parameter_bytes: usize,
    pub(crate) code: Vec<Instruction>,
    pub(crate) narrow: usize,
    pub(crate) wide: usize,
    pub(crate) predicates: usize,
    /// Of every instruction, if there are products of a warpgroup, which have to own their registers: what it touches.
    pub(crate) touched: Vec<Touched>,
    /// Lines of the module, for messages.
    text: Vec<String>,
    first_line: usize,
}

/// Narrow registers that an instruction touches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub read: Vec<Register>,
    pub written: Vec<Register>,
}

impl Kernel {
    /// A line of the module.
    pub fn line(&self, number: u32) -> &str {
        (number as usize).checked_sub(self.first_line).and_then(|at| self.text.get(at)).map_or("", |line| line.trim())
    }
}

impl Module {
    /// Reads a module.
    pub fn parse(text: &str) -> Result<Module, String> {
        let mut kernels = Vec::new();
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
        let mut header: Option<String> = None;
        while let Some((number, line)) = lines.next() {
            let words = without_comment(line);
            if let Some(at) = words.find(".entry") {
                header = Some(words[at..].to_owned());
            } else if words == "{" && header.is_some() {
                let (mut body, mut depth) = (Vec::new(), 1);
                for (_, line) in lines.by_ref() {
                    match without_comment(line) {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                    body.push(line);
                }
                kernels.push(kernel(&header.take().unwrap_or_default(), &body, number + 1)?);
            } else if let Some(header) = &mut header {
                header.push_str(words);
            }
        }
        Ok(Module { kernels })
    }

    /// A kernel by its name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default().trim()
}

fn kernel(header: &str, body: &[&str], first_line: usize) -> Result<Kernel, String> {
    let name = header.trim_start_matches(".entry").split('(').next().unwrap_or_default().trim().to_owned();
    let parameter = header.split('(').nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
    let mut reader = Reader { parameter: String::new(), ..Reader::default() };
    let mut parameter_bytes = 0;
    if let Some((declared, size)) = parameter.rsplit_once('[') {
        reader.parameter = declared.split_whitespace().last().unwrap_or_default().to_owned();
        parameter_bytes =
            size.trim_end_matches(']').parse().map_err(|_| format!("{name}: a parameter `{parameter}`"))?;
    }
    let mut statement = String::new();
    let mut begun = first_line;
    for (at, line) in body.iter().enumerate() {
        let line = without_comment(line);
        if let Some(label) = line.strip_suffix(':') {
            let before = reader.labels.insert(label.to_owned(), reader.code.len() as u32);
            if before.is_some() {
                return Err(format!("{name}: there are two labels `{label}`"));
            }
            continue;
        }
        match line {
            "{" if statement.is_empty() => {
                reader.scopes.push(HashMap::new());
                continue;
            }
            "}" if statement.is_empty() => {
                reader.scopes.pop();
                continue;
            }
            _ => {}
        }
        if statement.is_empty() {
            begun = first_line + at;
        } else {
            statement.push(' ');
        }
        statement.push_str(line);
        if let Some(whole) = statement.strip_suffix(';') {
            let read = reader.statement(whole.trim(), begun as u32);
            read.map_err(|why| format!("{name}, line {begun}: `{whole}`: {why}"))?;
            statement.clear();
        }
    }
    if !statement.trim().is_empty() {
        return Err(format!("{name}: `{statement}` does not end"));
    }
    reader.finish().map_err(|why| format!("{name}: {why}"))?;
    Ok(Kernel {
        name,
        parameter_bytes,
        code: reader.code,
        narrow: reader.narrow.len(),
        wide: reader.wide.len(),
        predicates: reader.predicates.len(),
        touched: reader.touched,
        text: body.iter().map(|line| (*line).to_owned()).collect(),
        first_line,
    })
}

#[derive(Default)]
struct Reader {
    parameter: String,
    code: Vec<Instruction>,
    labels: HashMap<String, u32>,
    /// Branches to labels that may come later.
    branches: Vec<(usize, String)>,
    /// Registers of 32 and of 16 bits share a file: name to number, as they come.
    narrow: HashMap<String, Register>,
    wide: HashMap<String, Register>,
    predicates: HashMap<String, Register>,
    /// Of each scope within the body: the names declared there, and under which they are in the files.
    scopes: Vec<HashMap<String, String>>,
    /// How many names were declared.
    declared: usize,
    /// What the statement touches that is being read, and what those before it did.
    touches: Touched,
    touched: Vec<Touched>,
}

type Read<T> = Result<T, String>;

impl Reader {
    fn finish(&mut self) -> Read<()> {
        for (at, label) in &self.branches {
            let target = self.labels.get(label).ok_or_else(|| format!("there is no label `{label}`"))?;
            self.code[*at].operation = Operation::Branch(*target);
        }
        if !self.code.iter().any(|it| matches!(it.operation, Operation::MultiplyAsync(_))) {
            self.touched.clear();
        }
        Ok(())
    }

    fn statement(&mut self, text: &str, line: u32) -> Read<()> {
        if let Some(declared) = text.strip_prefix(".reg") {
            return self.declare(declared.trim());
        }
        if text.starts_with(".pragma") {
            return Ok(());
        }
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(rest) => {
                let (predicate, rest) = rest.split_once(char::is_whitespace).ok_or("nothing depends on it")?;
                let (wanted, name) = predicate.strip_prefix('!').map_or((true, predicate), |name| (false, name));
                (Some((self.predicate(name)?, wanted)), rest.trim())
            }
        };
        let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = split(rest);
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        if let "bra" | "bra.uni" = opcode {
            let [label] = operands[..] else { return Err("one label is expected".to_owned()) };
            self.branches.push((self.code.len(), label.to_owned()));
            self.code.push(Instruction { guard, operation: Operation::Branch(0), line });
            self.touched.push(Touched::default());
            return Ok(());
        }
        let operation = self.operation(opcode, &operands)?;
        self.code.push(Instruction { guard, operation, line });
        self.touched.push(std::mem::take(&mut self.touches));
        Ok(())
    }

    fn operation(&mut self, opcode: &str, x: &[&str]) -> Read<Operation> {
        let words: Vec<&str> = opcode.split('.').collect();
        let wide = words.last().is_some_and(|it| it.ends_with("64"));
        let counted = |n: usize| if x.len() == n { Ok(()) } else { Err(format!("{n} operands are expected")) };
        if let Some(what) = unary(opcode) {
            counted(2)?;
            return Ok(match wide {
                true => Operation::WideUnary(what, self.wide(x[0])?, self.wide_operand(x[1])?),
                false => Operation::Unary(what, self.narrow(x[0])?, self.operand(x[1])?),
            });
        }
        if let Some(what) = binary(opcode) {
            counted(3)?;
            if wide {
                // How far to shift is a narrow number.
                let b = match what {
                    Binary::ShiftLeft | Binary::ShiftRightSigned | Binary::ShiftRightUnsigned => self.operand(x[2])?,
                    _ => self.wide_operand(x[2])?,
                };
                return Ok(Operation::WideBinary(what, self.wide(x[0])?, self.wide_operand(x[1])?, b));
            }
            let half = words.last().is_some_and(|it| it.ends_with("16"));
            let signed = half
                && matches!(words[..], [.., "s16"])
                && !matches!(what, Binary::Add | Binary::Subtract | Binary::Multiply);
            if signed {
                return Err("this is not known of signed numbers of 16 bits".to_owned());
            }
            let (to, a, b) = (self.narrow(x[0])?, self.operand(x[1])?, self.operand(x[2])?);
            return Ok(Operation::Binary { what, half, to, a, b });
        }
        match words[..] {
            ["fma", "rn", "ftz", "f32"] | ["mad", "lo", "s32" | "u32"] | ["bfe", "u32" | "s32"] => {
                counted(4)?;
                let what = match (words[0], words[1]) {
                    ("fma", _) => Ternary::MultiplyAddFloat,
                    ("mad", _) => Ternary::MultiplyAdd,
                    (_, "u32") => Ternary::ExtractUnsigned,
                    _ => Ternary::ExtractSigned,
                };
                let operands = [self.operand(x[1])?, self.operand(x[2])?, self.operand(x[3])?];
                Ok(Operation::Ternary(what, self.narrow(x[0])?, operands))
            }
            ["bfe", "u64"] => {
                counted(4)?;
                let (first, length) = (self.operand(x[2])?, self.operand(x[3])?);
                Ok(Operation::WideExtract { to: self.wide(x[0])?, from: self.wide_operand(x[1])?, first, length })
            }
            ["mad", "lo", "s64" | "u64"] => {
                counted(4)?;
                let operands = [self.wide_operand(x[1])?, self.wide_operand(x[2])?, self.wide_operand(x[3])?];
                Ok(Operation::WideMultiplyAdd(self.wide(x[0])?, operands))
            }
            ["fma", "rn", "f64"] => {
                counted(4)?;
                let operands = [self.wide_operand(x[1])?, self.wide_operand(x[2])?, self.wide_operand(x[3])?];
                Ok(Operation::DoubleMultiplyAdd(self.wide(x[0])?, operands))
            }
            ["add", "rn", "f64"] => {
                counted(3)?;
                Ok(Operation::DoubleAdd(self.wide(x[0])?, self.wide_operand(x[1])?, self.wide_operand(x[2])?))
            }
            ["cvt", "ftz", "f64", "f32"] => {
                counted(2)?;
                Ok(Operation::ToDouble(self.wide(x[0])?, self.operand(x[1])?))
            }
            ["cvt", "rn", "ftz", "f32", "f64"] => {
                counted(2)?;
                Ok(Operation::FromDouble(self.narrow(x[0])?, self.wide_operand(x[1])?))
            }
            ["mul", "wide", kind @ ("s32" | "u32")] => {
                counted(3)?;
                let (to, a, b) = (self.wide(x[0])?, self.operand(x[1])?, self.operand(x[2])?);
                Ok(Operation::MultiplyWide { signed: kind == "s32", to, a, b, more: None })
            }
            ["mad", "wide", kind @ ("s32" | "u32")] => {
                counted(4)?;
                let (to, a, b) = (self.wide(x[0])?, self.operand(x[1])?, self.operand(x[2])?);
                let more = Some(self.wide_operand(x[3])?);
                Ok(Operation::MultiplyWide { signed: kind == "s32", to, a, b, more })
            }
            ["mul", "wide", kind @ ("s16" | "u16")] => {
                counted(3)?;
                let (to, a, b) = (self.narrow(x[0])?, self.operand(x[1])?, self.operand(x[2])?);
                Ok(Operation::MultiplyHalves { signed: kind == "s16", to, a, b })
            }
            ["mov", "b16" | "b32" | "u32" | "f32" | "b64" | "u64"] => {
                counted(2)?;
                self.movement(wide, x[0], x[1])
            }
            // Also to what is known without data.
            ["mov", "pred"] => {
                counted(2)?;
                if self.kind_of(x[1]) == Some("p") {
                    return Ok(Operation::MovePredicate(self.predicate(x[0])?, self.predicate(x[1])?));
                }
                let (to, a, b) = (self.predicate(x[0])?, self.operand(x[1])?, self.operand("0")?);
                Ok(Operation::Compare { compared: Compared::Unsigned, relation: Relation::NotEqual, to, a, b })
            }
            ["cvt", to, from] => {
                counted(2)?;
                self.conversion(to, from, x[0], x[1])
            }
            ["selp", "b16" | "b32" | "s32" | "u32" | "f32" | "b64" | "u64"] => {
                counted(4)?;
                let by = self.predicate(x[3])?;
                Ok(match wide {
                    true => {
                        Operation::WideSelect(self.wide(x[0])?, self.wide_operand(x[1])?, self.wide_operand(x[2])?, by)
                    }
                    false => Operation::Select(self.narrow(x[0])?, self.operand(x[1])?, self.operand(x[2])?, by),
                })
            }
            ["setp", relation, "ftz", "f32" | "f16"]
            | ["setp", relation, "b16" | "u16" | "b32" | "u32" | "s32" | "b64" | "u64" | "s64"] => {
                counted(3)?;
                let (relation, compared) = comparison(relation, words[words.len() - 1])?;
                let to = self.predicate(x[0])?;
                let (a, b) = match wide {
                    true => (self.wide_operand(x[1])?, self.wide_operand(x[2])?),
                    false => (self.operand(x[1])?, self.operand(x[2])?),
                };
                Ok(Operation::Compare { compared, relation, to, a, b })
            }
            [what @ ("and" | "or" | "xor"), "pred"] => {
                counted(3)?;
                let what = match what {
                    "and" => Logic::And,
                    "or" => Logic::Or,
                    _ => Logic::Xor,
                };
                Ok(Operation::Logic(what, self.predicate(x[0])?, self.predicate(x[1])?, self.predicate(x[2])?))
            }
            ["not", "pred"] => {
                counted(2)?;
                Ok(Operation::Negation(self.predicate(x[0])?, self.predicate(x[1])?))
            }
            ["ld", space, kind] | ["ld", space, "v2" | "v4", kind] => {
                counted(2)?;
                let (space, bytes) = (space_of(space)?, bytes_of(kind)?);
                let names = listed(x[0]);
                let to = names.iter().map(|name| if bytes == 8 { self.wide(name) } else { self.narrow(name) });
                let to = to.collect::<Read<Vec<_>>>()?;
                vector_of(&words, to.len())?;
                Ok(Operation::Load { space, bytes, to, from: self.address(x[1])? })
            }
            ["st", space, kind] | ["st", space, "v2" | "v4", kind] => {
                counted(2)?;
                let (space, bytes) = (space_of(space)?, bytes_of(kind)?);
                let values = listed(x[1]);
                let from = values.iter().map(|it| if bytes == 8 { self.wide_operand(it) } else { self.operand(it) });
                let from = from.collect::<Read<Vec<_>>>()?;
                vector_of(&words, from.len())?;
                Ok(Operation::Store { space, bytes, to: self.address(x[0])?, from })
            }
            ["shfl", "sync", how, "b32"] if x.len() == 5 && x[4] == "-1" => {
                let how = match how {
                    "bfly" => Exchange::Butterfly,
                    "up" => Exchange::Up,
                    "down" => Exchange::Down,
                    "idx" => Exchange::Index,
                    _ => return Err("this exchange is not known".to_owned()),
                };
                let (to, from) = (self.narrow(x[0])?, self.operand(x[1])?);
                Ok(Operation::Exchange { how, to, from, lane: self.operand(x[2])?, clamp: self.operand(x[3])? })
            }
            ["ldmatrix", "sync", "aligned", "m8n8", count, "shared", "b16"]
            | ["ldmatrix", "sync", "aligned", "m8n8", count, "trans", "shared", "b16"] => {
                counted(2)?;
                let to = listed(x[0]).iter().map(|name| self.narrow(name)).collect::<Read<Vec<_>>>()?;
                if format!("x{}", to.len()) != count {
                    return Err("as many registers are expected as matrices".to_owned());
                }
                Ok(Operation::LoadMatrices { transposed: words.len() == 8, to, from: self.address(x[1])? })
            }
            ["stmatrix", "sync", "aligned", "m8n8", count, "shared", "b16"] => {
                counted(2)?;
                let from = listed(x[1]).iter().map(|name| self.operand(name)).collect::<Read<Vec<_>>>()?;
                if format!("x{}", from.len()) != count {
                    return Err("as many registers are expected as matrices".to_owned());
                }
                Ok(Operation::StoreMatrices { to: self.address(x[0])?, from })
            }
            ["movmatrix", "sync", "aligned", "m8n8", "trans", "b16"] => {
                counted(2)?;
                Ok(Operation::TransposeMatrix(self.narrow(x[0])?, self.operand(x[1])?))
            }
            ["mma" | "wgmma", ..] => self.product(opcode, &words, x),
            ["bar" | "barrier" | "mbarrier" | "cp" | "fence" | "setmaxnreg", ..] => self.waiting(opcode, &words, x),
            ["ret"] | ["exit"] => counted(0).map(|()| Operation::Exit),
            _ => Err(format!("the instruction `{opcode}` is not known")),
        }
    }

    fn movement(&mut self, wide: bool, to: &str, from: &str) -> Read<Operation> {
        let pair = |names: &[&str]| names.len() == 2;
        if from.starts_with('{') {
            let parts = listed(from);
            if !pair(&parts) {
                return Err("two parts are expected".to_owned());
            }
            let parts = [self.operand(parts[0])?, self.operand(parts[1])?];
            return Ok(match wide {
                true => Operation::WidePack(self.wide(to)?, parts),
                false => Operation::Pack(self.narrow(to)?, parts),
            });
        }
        if to.starts_with('{') {
            let parts = listed(to);
            if !pair(&parts) {
                return Err("two parts are expected".to_owned());
            }
            let parts = [self.narrow(parts[0])?, self.narrow(parts[1])?];
            return Ok(match wide {
                true => Operation::WideUnpack(parts, self.wide_operand(from)?),
                false => Operation::Unpack(parts, self.operand(from)?),
            });
        }
        if wide {
            return Ok(Operation::WideMove(self.wide(to)?, self.wide_operand(from)?));
        }
        let to = self.narrow(to)?;
        Ok(match special(from) {
            Some(special) => Operation::Special(to, special),
            None => Operation::Move(to, self.operand(from)?),
        })
    }

    fn conversion(&mut self, kind: &str, from_kind: &str, to: &str, from: &str) -> Read<Operation> {
        Ok(match (kind, from_kind) {
            ("u64" | "s64", "u32") => Operation::Widen { signed: false, to: self.wide(to)?, from: self.operand(from)? },
            ("u64" | "s64", "s32") => Operation::Widen { signed: true, to: self.wide(to)?, from: self.operand(from)? },
            ("u32" | "s32", "u64" | "s64") => {
                Operation::Narrow { bits: 32, to: self.narrow(to)?, from: self.wide_operand(from)? }
            }
            ("u16" | "s16", "u64" | "s64") => {
                Operation::Narrow { bits: 16, to: self.narrow(to)?, from: self.wide_operand(from)? }
            }
            ("u16" | "s16", "u32" | "s32") | ("u32" | "s32", "u16") => {
                Operation::Halve { signed: false, to: self.narrow(to)?, from: self.operand(from)? }
            }
            ("u32" | "s32", "s16") => {
                Operation::Halve { signed: true, to: self.narrow(to)?, from: self.operand(from)? }
            }
            // A register of 16 bits has zeros above them.
            ("u64" | "s64", "u16") => Operation::Widen { signed: false, to: self.wide(to)?, from: self.operand(from)? },
            _ => return Err(format!("the conversion from {from_kind} to {kind} is not known")),
        })
    }
}

/// Operands between commas that stand in no brackets.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for letter in text.chars() {
        match letter {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        match parts.last_mut() {
            Some(_) if letter == ',' && depth == 0 => parts.push(String::new()),
            Some(part) if !letter.is_whitespace() => part.push(letter),
            Some(_) | None => {}
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// One name, or those in braces.
fn listed(text: &str) -> Vec<&str> {
    text.trim_start_matches('{').trim_end_matches('}').split(',').collect()
}
