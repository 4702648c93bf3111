//! Copies, barriers and fences as text: all by which threads wait for each other, or make what they wrote known.

use super::names::number;
use super::{Read, Reader};
use crate::instruction::Operation;

impl Reader {
    pub(super) fn waiting(&mut self, opcode: &str, words: &[&str], x: &[&str]) -> Read<Operation> {
        let counted = |n: usize| if x.len() == n { Ok(()) } else { Err(format!("{n} operands are expected")) };
        match *words {
            ["cp", "async", "cg" | "ca", "shared", "global"] => {
                let ([to, from, bytes] | [to, from, bytes, _]) = x[..] else {
                    return Err("3 or 4 operands are expected".to_owned());
                };
                let bytes = bytes.parse().map_err(|_| "the number of bytes is no number")?;
                let read = x.get(3).map(|read| self.operand(read)).transpose()?;
                Ok(Operation::CopyAsync { to: self.address(to)?, from: self.address(from)?, bytes, read })
            }
            ["cp", "async", "wait_all"] => counted(0).map(|()| Operation::AwaitCopies),
            ["cp", "async", "mbarrier", "arrive", "noinc", "shared" | "shared::cta", "b64"] => {
                counted(1)?;
                Ok(Operation::ArriveAfterCopies(self.address(x[0])?))
            }
            ["bar", "sync"]
            | ["bar", "cta", "sync"]
            | ["barrier", "sync"]
            | ["barrier", "sync", "aligned"]
            | ["barrier", "cta", "sync"]
            | ["barrier", "cta", "sync", "aligned"] => {
                let ([at] | [at, _]) = x[..] else { return Err("1 or 2 operands are expected".to_owned()) };
                let at = number(at)?;
                if at > 15 {
                    return Err("barriers have numbers up to 15".to_owned());
                }
                let threads = x.get(1).map(|it| number(it)).transpose()?.map(|it| it as u32);
                if threads.is_some_and(|it| it == 0 || !it.is_multiple_of(32)) {
                    return Err("whole warps meet at a barrier".to_owned());
                }
                Ok(Operation::Barrier { number: at as usize, threads })
            }
            ["bar", "warp", "sync"] if x == ["-1"] => Ok(Operation::WarpBarrier),
            ["mbarrier", "init", "shared" | "shared::cta", "b64"] => {
                counted(2)?;
                Ok(Operation::BeginArrivals(self.address(x[0])?, self.operand(x[1])?))
            }
            ["mbarrier", "arrive", "shared" | "shared::cta", "b64"]
            | ["mbarrier", "arrive", "release", "cta", "shared" | "shared::cta", "b64"] => {
                counted(2)?;
                let to = if x[0] == "_" { None } else { Some(self.wide(x[0])?) };
                Ok(Operation::Arrive(to, self.address(x[1])?))
            }
            ["mbarrier", "try_wait" | "test_wait", "parity", "shared" | "shared::cta", "b64"]
            | ["mbarrier", "try_wait" | "test_wait", "parity", "acquire", "cta", "shared" | "shared::cta", "b64"] => {
                counted(3)?;
                let (to, at) = (self.predicate(x[0])?, self.address(x[1])?);
                Ok(Operation::AwaitPhase { to, at, parity: self.operand(x[2])? })
            }
            ["fence", "mbarrier_init", "release", "cluster"] => counted(0).map(|()| Operation::Nothing),
            ["fence", "proxy", "async"] | ["fence", "proxy", "async", "shared::cta"] => {
                counted(0).map(|()| Operation::FenceProxy)
            }
            ["setmaxnreg", "inc" | "dec", "sync", "aligned", "u32"] => {
                counted(1)?;
                match number(x[0])? {
                    24..=256 if number(x[0])?.is_multiple_of(8) => Ok(Operation::SetRegisters),
                    other => Err(format!("{other} registers are no multiple of 8 from 24 to 256")),
                }
            }
            _ => Err(format!("the instruction `{opcode}` is not known")),
        }
    }
}
