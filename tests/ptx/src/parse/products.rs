//! Products of matrices, of a warp and of a warpgroup, as text.

use super::{Read, Reader, listed};
use crate::instruction::{AsyncProduct, Factors, Left, Operand, Operation, Register, Scale};

impl Reader {
    pub(super) fn product(&mut self, opcode: &str, words: &[&str], x: &[&str]) -> Read<Operation> {
        let counted = |n: usize| if x.len() == n { Ok(()) } else { Err(format!("{n} operands are expected")) };
        match *words {
            ["mma", "sync", "aligned", shape, "row", "col", "f32", a, b, "f32"] if a == b => {
                counted(4)?;
                let factors = match (shape, a) {
                    ("m16n8k16" | "m16n8k8", "bf16") => Factors::Bf16,
                    ("m16n8k16", "f16") => Factors::F16,
                    ("m16n8k8", "tf32") => Factors::Tf32,
                    _ => return Err("this product is not known".to_owned()),
                };
                let d = listed(x[0]).iter().map(|name| self.narrow(name)).collect::<Read<Vec<_>>>()?;
                let mut read = |text: &str| listed(text).iter().map(|it| self.operand(it)).collect::<Read<Vec<_>>>();
                let (mut a, mut b, c) = (read(x[1])?, read(x[2])?, read(x[3])?);
                if shape == "m16n8k8" && factors == Factors::Bf16 && (a.len(), b.len()) == (2, 1) {
                    // The same with zeros for the other half of what is summed over.
                    let zero = read("0")?[0];
                    a.extend([zero, zero]);
                    b.push(zero);
                }
                let wrong = || "a fragment has another number of registers".to_owned();
                let four = |it: Vec<Operand>| <[Operand; 4]>::try_from(it).map_err(|_| wrong());
                let d = d.try_into().map_err(|_| wrong())?;
                let b = b.try_into().map_err(|_| wrong())?;
                Ok(Operation::Multiply { factors, d, a: four(a)?, b, c: four(c)? })
            }
            ["wgmma", "fence", "sync", "aligned"] => counted(0).map(|()| Operation::FenceProducts),
            ["wgmma", "commit_group", "sync", "aligned"] => counted(0).map(|()| Operation::CommitProducts),
            ["wgmma", "wait_group", "sync", "aligned"] => {
                counted(1)?;
                let left = x[0].parse().map_err(|_| "the number of groups is no number")?;
                Ok(Operation::AwaitProducts(left))
            }
            ["wgmma", "mma_async", "sync", "aligned", shape, "f32", a, b] if a == b => {
                let factors = match a {
                    "bf16" => Factors::Bf16,
                    "f16" => Factors::F16,
                    _ => return Err("this product is not known".to_owned()),
                };
                let columns = shape.strip_prefix("m64n").and_then(|it| it.strip_suffix("k16"));
                let columns = columns.and_then(|it| it.parse::<usize>().ok()).unwrap_or(0);
                if !(8..=256).contains(&columns) || !columns.is_multiple_of(8) {
                    return Err("this product is not known".to_owned());
                }
                self.product_of_warpgroup(factors, columns, x)
            }
            _ => Err(format!("the instruction `{opcode}` is not known")),
        }
    }

    fn product_of_warpgroup(&mut self, factors: Factors, columns: usize, x: &[&str]) -> Read<Operation> {
        let in_registers = x.get(1).is_some_and(|a| a.starts_with('{'));
        let expected = if in_registers { 7 } else { 8 };
        if x.len() != expected {
            return Err(format!("{expected} operands are expected"));
        }
        let d = listed(x[0]).iter().map(|name| self.narrow(name)).collect::<Read<Vec<Register>>>()?;
        if d.len() != columns / 2 {
            return Err(format!("{} registers are expected for sums", columns / 2));
        }
        let left = match in_registers {
            true => {
                let a = listed(x[1]).iter().map(|name| self.up_to_32_bits(name)).collect::<Read<Vec<Register>>>()?;
                Left::Registers(a.try_into().map_err(|_| "four registers are expected for the left factor".to_owned())?)
            }
            false => Left::Shared { descriptor: self.wide_operand(x[1])?, transposed: flag(x[6])? },
        };
        let right: Operand = self.wide_operand(x[2])?;
        let add = match self.kind_of(x[3]).is_some() {
            true => Scale::If(self.predicate(x[3])?),
            false => Scale::Always(flag(x[3])?),
        };
        let negated = [negated(x[4])?, negated(x[5])?];
        let right_transposed = flag(x[expected - 1])?;
        Ok(Operation::MultiplyAsync(Box::new(AsyncProduct { factors, d, left, right, right_transposed, add, negated })))
    }
}

fn flag(text: &str) -> Read<bool> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("`{text}` is neither 0 nor 1")),
    }
}

fn negated(text: &str) -> Read<bool> {
    match text {
        "1" => Ok(false),
        "-1" => Ok(true),
        _ => Err(format!("`{text}` is neither 1 nor -1")),
    }
}
