//! How the threads of a warp read and write memory, each its own, and copy from one memory to another.
//!
//! Comes in: an instruction's operands and the threads that carry it out. Goes out: registers, memory, copies under way;
//! or which thread does what it must not. Whether an access is allowed is said by [`crate::memory`] and
//! [`crate::shared`].

use super::{ALL, Arriving, Warp, World, lanes};
use crate::instruction::{Address, Operand, Register, Space};
use crate::matrix::hand_out;
use crate::parse::PARAMETER_AT;

impl Warp {
    pub(super) fn load(
        &mut self,
        space: Space,
        bytes: u32,
        to: &[Register],
        from: Address,
        active: u32,
        world: &mut World,
    ) -> Result<(), (Option<u32>, String)> {
        let addresses = self.addresses(from);
        let all = bytes as usize * to.len();
        for lane in lanes(active) {
            let address = addresses[lane];
            let mut value = match space {
                Space::Parameter => parameter(world.parameter, address, all),
                Space::Shared => {
                    let who = self.who(lane);
                    world.shared.read(address, all, who, false)
                }
                Space::Global => world.memory.read(address, all as u64, self.who_globally(world, lane)),
            }
            .map_err(|what| (Some(lane as u32), what))?;
            for register in to {
                match bytes {
                    8 => self.wide[*register as usize][lane] = value as u64,
                    4 => self.narrow[*register as usize][lane] = value as u32,
                    _ => self.narrow[*register as usize][lane] = value as u32 & 0xffff,
                }
                value = value.checked_shr(8 * bytes).unwrap_or(0);
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        space: Space,
        bytes: u32,
        to: Address,
        from: &[Operand],
        active: u32,
        world: &mut World,
    ) -> Result<(), (Option<u32>, String)> {
        let addresses = self.addresses(to);
        let all = bytes as usize * from.len();
        for lane in lanes(active) {
            let mut value = 0u128;
            for operand in from.iter().rev() {
                let own = match (bytes, operand) {
                    (_, Operand::Number(number)) => *number,
                    (8, Operand::Register(register)) => self.wide[*register as usize][lane],
                    (_, Operand::Register(register)) => u64::from(self.narrow[*register as usize][lane]),
                };
                let own = if bytes == 8 { own } else { own & ((1 << (8 * bytes)) - 1) };
                value = value.checked_shl(8 * bytes).unwrap_or(0) | u128::from(own);
            }
            match space {
                Space::Parameter => Err("a parameter is written".to_owned()),
                Space::Shared => {
                    let who = self.who(lane);
                    world.shared.write(addresses[lane], all, value, who)
                }
                Space::Global => world.memory.write(addresses[lane], all as u64, value, self.who_globally(world, lane)),
            }
            .map_err(|what| (Some(lane as u32), what))?;
        }
        Ok(())
    }

    pub(super) fn copy_async(
        &mut self,
        to: Address,
        from: Address,
        bytes: u32,
        read: Option<Operand>,
        active: u32,
        world: &mut World,
    ) -> Result<(), (Option<u32>, String)> {
        let (to, from) = (self.addresses(to), self.addresses(from));
        let read = read.map_or([bytes; 32], |read| self.read(read));
        for lane in lanes(active) {
            let who = self.who(lane);
            let copied = world.shared.begin_copy(to[lane], bytes as usize, who).and_then(|()| match read[lane] {
                0 => Ok(0),
                all if all == bytes => world.memory.read(from[lane], u64::from(bytes), self.who_globally(world, lane)),
                some => Err(format!("a copy of {some} bytes of {bytes} is not known")),
            });
            let value = copied.map_err(|what| (Some(lane as u32), what))?;
            self.copies.push(Arriving { lane: lane as u32, to: to[lane], bytes: bytes as usize, value });
        }
        Ok(())
    }

    pub(super) fn load_matrices(
        &mut self,
        transposed: bool,
        to: &[Register],
        from: Address,
        world: &mut World,
    ) -> Result<(), (Option<u32>, String)> {
        let addresses = self.addresses(from);
        for (at, register) in to.iter().enumerate() {
            let mut rows = [[0; 8]; 8];
            for (lane, row) in (8 * at..).zip(&mut rows) {
                let who = self.who(lane);
                let read = world.shared.read(addresses[lane], 16, who, true);
                let bytes = read.map_err(|what| (Some(lane as u32), what))?;
                *row = std::array::from_fn(|column| (bytes >> (16 * column)) as u16);
            }
            self.write(*register, ALL, &hand_out(&rows, transposed));
        }
        Ok(())
    }

    /// Row `n` of a matrix lies in threads 4 n to 4 n + 3; its address is thread `n`'s of the matrix's eight.
    pub(super) fn store_matrices(
        &mut self,
        to: Address,
        from: &[Operand],
        world: &mut World,
    ) -> Result<(), (Option<u32>, String)> {
        let addresses = self.addresses(to);
        for (at, register) in from.iter().enumerate() {
            let words = self.read(*register);
            for (row, four) in words.chunks(4).enumerate() {
                let lane = 8 * at + row;
                let value = four.iter().rev().fold(0u128, |value, word| value << 32 | u128::from(*word));
                let who = self.who(lane);
                let written = world.shared.write(addresses[lane], 16, value, who);
                written.map_err(|what| (Some(lane as u32), what))?;
            }
        }
        Ok(())
    }
}

fn parameter(bytes: &[u8], address: u64, count: usize) -> Result<u128, String> {
    let offset = address.wrapping_sub(PARAMETER_AT) as usize;
    let part = offset.checked_add(count).and_then(|end| bytes.get(offset..end));
    let part = part.ok_or_else(|| format!("{count} bytes at {offset} of a parameter of {}", bytes.len()))?;
    if !offset.is_multiple_of(count) {
        return Err(format!("{count} bytes at once at {offset} of the parameter, which is no multiple of that"));
    }
    let mut value = [0; 16];
    value[..count].copy_from_slice(part);
    Ok(u128::from_le_bytes(value))
}
