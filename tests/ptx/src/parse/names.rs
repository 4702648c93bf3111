//! Names of registers, and what else stands for a value.
//!
//! Of a kernel's own registers the name says what they are. Those of a scope in braces, as text written by hand has them,
//! are declared there, and are others than those of the same name elsewhere.

use super::{PARAMETER_AT, Read, Reader, SHARED_AT, split};
use crate::instruction::{Address, Operand, Register};
use std::collections::HashMap;

impl Reader {
    /// `.pred done`: new in the innermost scope. What the kernel itself declares says nothing new.
    pub(super) fn declare(&mut self, text: &str) -> Read<()> {
        let Some(scope) = self.scopes.last_mut() else { return Ok(()) };
        let (ty, names) = text.split_once(char::is_whitespace).ok_or("a type and names are expected")?;
        let kind = match ty {
            ".pred" => "p",
            ".b16" | ".u16" | ".s16" | ".f16" | ".b32" | ".u32" | ".s32" | ".f32" => "r",
            ".b64" | ".u64" | ".s64" | ".f64" => "rd",
            _ => return Err(format!("registers of type `{ty}` are not known")),
        };
        for name in split(names) {
            if name.contains('<') {
                return Err("as many names as are written are expected".to_owned());
            }
            // No name of a kernel's own has a dot.
            self.declared += 1;
            let own = format!("%{kind}.{}", self.declared);
            if scope.insert(name.clone(), own).is_some() {
                return Err(format!("`{name}` is declared twice"));
            }
        }
        Ok(())
    }

    /// The name by which it is in a file.
    fn whole<'a>(&'a self, name: &'a str) -> &'a str {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).map_or(name, String::as_str)
    }

    /// `r` of `%r12`.
    pub(super) fn kind_of(&self, name: &str) -> Option<&str> {
        let name = self.whole(name);
        let at = name.strip_prefix('%')?.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
        let letters = name[1..=at].trim_end_matches('.');
        let letters = ["r", "rs", "f", "rd", "p"].into_iter().find(|kind| *kind == letters)?;
        (at + 1 < name.len()).then_some(letters)
    }

    pub(super) fn address(&mut self, text: &str) -> Read<Address> {
        let inner = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).ok_or("an address is expected")?;
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = offset.parse().map_err(|_| format!("`{offset}` is no number"))?;
        let narrow = matches!(self.kind_of(base), Some("r"));
        let base = if narrow { self.operand(base)? } else { self.wide_operand(base)? };
        Ok(Address { base, narrow, offset })
    }

    fn numbered(file: &mut HashMap<String, Register>, name: &str) -> Register {
        let next = file.len() as Register;
        *file.entry(name.to_owned()).or_insert(next)
    }

    pub(super) fn up_to_32_bits(&mut self, name: &str) -> Read<Register> {
        match self.kind_of(name) {
            Some("r" | "rs" | "f") => {
                let whole = self.whole(name).to_owned();
                Ok(Reader::numbered(&mut self.narrow, &whole))
            }
            _ => Err(format!("`{name}` is no register of up to 32 bits")),
        }
    }

    /// A register that is written.
    pub(super) fn narrow(&mut self, name: &str) -> Read<Register> {
        let register = self.up_to_32_bits(name)?;
        self.touches.written.push(register);
        Ok(register)
    }

    pub(super) fn wide(&mut self, name: &str) -> Read<Register> {
        match self.kind_of(name) {
            Some("rd") => {
                let whole = self.whole(name).to_owned();
                Ok(Reader::numbered(&mut self.wide, &whole))
            }
            _ => Err(format!("`{name}` is no register of 64 bits")),
        }
    }

    pub(super) fn predicate(&mut self, name: &str) -> Read<Register> {
        match self.kind_of(name) {
            Some("p") => {
                let whole = self.whole(name).to_owned();
                Ok(Reader::numbered(&mut self.predicates, &whole))
            }
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    pub(super) fn operand(&mut self, text: &str) -> Read<Operand> {
        if self.whole(text).starts_with('%') {
            let register = self.up_to_32_bits(text)?;
            self.touches.read.push(register);
            return Ok(Operand::Register(register));
        }
        if text == "shared" {
            return Ok(Operand::Number(SHARED_AT));
        }
        number(text).map(|number| Operand::Number(number & 0xffff_ffff))
    }

    pub(super) fn wide_operand(&mut self, text: &str) -> Read<Operand> {
        if self.whole(text).starts_with('%') {
            return Ok(Operand::Register(self.wide(text)?));
        }
        if text == self.parameter {
            return Ok(Operand::Number(PARAMETER_AT));
        }
        if text == "shared" {
            return Ok(Operand::Number(SHARED_AT));
        }
        number(text).map(Operand::Number)
    }
}

pub(super) fn number(text: &str) -> Read<u64> {
    let wrong = |_| format!("`{text}` is neither a number nor anything else that is known");
    if let Some(digits) = text.strip_prefix("0f") {
        return u32::from_str_radix(digits, 16).map(u64::from).map_err(wrong);
    }
    if let Some(digits) = text.strip_prefix("0d").or(text.strip_prefix("0x")) {
        return u64::from_str_radix(digits, 16).map_err(wrong);
    }
    if text.starts_with('-') {
        return text.parse::<i64>().map(i64::cast_unsigned).map_err(wrong);
    }
    text.parse().map_err(wrong)
}
