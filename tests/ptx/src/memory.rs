//! Memory of a GPU: tensors with nothing around them, and who wrote what of them.
//!
//! Every tensor has a range of addresses for itself, so that an access beyond it is one into nowhere, however far beyond.
//! It begins at a multiple of what it has to be aligned to and of no more. What nobody wrote is not a number, in every
//! type, and reading it is a fault. So is reading, or writing again, what another block of the same launch wrote, and what
//! another thread of the same block wrote without an order ([`crate::clock`]), but for writing the same; and writing to what
//! a launch may only read.
//!
//! Blocks of a launch may run on several processors: elements are atomic, and in no order.

use crate::clock::Clock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// Addresses of a tensor are this number above its own, and below the next.
const RANGE: u64 = 1 << 36;
/// Where a tensor begins in its range, but for what makes it aligned to no more than it has to be.
const BEGIN: u64 = 1 << 20;

/// Bytes of a unit of memory: the smallest access.
const UNIT: u64 = 2;

/// Never written.
const NEVER: u64 = 0;
/// Written before this launch.
const BEFORE: u64 = u64::MAX;

/// All of it.
#[derive(Default)]
pub struct Memory {
    tensors: Vec<Stored>,
}

struct Stored {
    name: String,
    begin: u64,
    units: Vec<AtomicU16>,
    /// Of every unit: [`NEVER`], [`BEFORE`] or which thread wrote it when in this launch.
    written: Vec<AtomicU64>,
    may_be_written: bool,
    /// Whether it may be read before it was written.
    is_scratch: bool,
}

/// A tensor in a [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

/// Who accesses: the block counted from 0, the warp and when, the thread.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub block: u32,
    pub clock: &'a Clock,
    pub thread: u32,
}

impl Who<'_> {
    /// All of it in a word, neither [`NEVER`] nor [`BEFORE`].
    fn word(self) -> u64 {
        (u64::from(self.block & 0xf_ffff) + 1) << 43 | u64::from(self.clock.now) << 11 | u64::from(self.thread)
    }

    /// Why an access of this one is in no order with that of another, if it is not.
    fn conflict(self, other: u64) -> Option<String> {
        if self.word() >> 43 != other >> 43 {
            return Some(format!("block {} of the same launch wrote it", (other >> 43) - 1));
        }
        let (thread, at) = (other & 0x7ff, (other >> 11) as u32);
        let warp = thread as u32 / 32;
        if thread == u64::from(self.thread) || at <= self.clock.seen[warp as usize] {
            return None;
        }
        Some(match warp == self.clock.warp {
            false => format!("thread {thread} wrote it since the last barrier"),
            true => format!("thread {thread} of the same warp wrote it since the last barrier of the warp"),
        })
    }
}

impl Memory {
    /// Nothing.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// A tensor of some bytes, aligned to a power of two of at least two. Without content nobody has written it yet.
    pub fn add(&mut self, name: &str, bytes: usize, alignment: usize, content: Option<&[u8]>) -> Place {
        let tensor = Place(self.tensors.len());
        let units = bytes.div_ceil(UNIT as usize);
        let word = |at: usize| match content {
            Some(content) => u16::from_le_bytes([content[2 * at], content.get(2 * at + 1).copied().unwrap_or(0)]),
            None => 0xffff,
        };
        self.tensors.push(Stored {
            name: name.to_owned(),
            begin: RANGE * (tensor.0 as u64 + 1) + BEGIN + alignment as u64,
            units: (0..units).map(|at| AtomicU16::new(word(at))).collect(),
            written: (0..units).map(|_| AtomicU64::new(if content.is_some() { BEFORE } else { NEVER })).collect(),
            may_be_written: content.is_none(),
            is_scratch: false,
        });
        tensor
    }

    /// Memory of the blocks of a launch, filled with something. As with shared memory, reading what was never written is no
    /// fault.
    pub fn add_scratch(&mut self, name: &str, bytes: usize, unwritten: u8) -> Place {
        let tensor = self.add(name, bytes, 256, None);
        let stored = &mut self.tensors[tensor.0];
        stored.units.iter_mut().for_each(|unit| *unit.get_mut() = u16::from_le_bytes([unwritten; 2]));
        stored.is_scratch = true;
        tensor
    }

    /// Where a tensor begins.
    pub fn address(&self, tensor: Place) -> u64 {
        self.tensors[tensor.0].begin
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, tensor: Place) -> Vec<u8> {
        self.tensors[tensor.0].units.iter().flat_map(|unit| unit.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    /// Lets a launch write to a tensor, or only read it.
    pub fn may_be_written(&mut self, tensor: Place, may: bool) {
        self.tensors[tensor.0].may_be_written = may;
    }

    /// Ends a launch: what was written in it was written before the next.
    pub(crate) fn end_launch(&self) {
        for written in self.tensors.iter().flat_map(|tensor| &tensor.written) {
            if written.load(Ordering::Relaxed) != NEVER {
                written.store(BEFORE, Ordering::Relaxed);
            }
        }
    }

    /// The tensor of an access and its first unit.
    fn find(&self, address: u64, bytes: u64) -> Result<(&Stored, usize), String> {
        if !address.is_multiple_of(bytes) {
            return Err(format!("{bytes} bytes at once at {address:#x}, which is no multiple of that"));
        }
        let stored = (address / RANGE).checked_sub(1).and_then(|at| self.tensors.get(at as usize));
        let Some(stored) = stored else { return Err(format!("{address:#x} is no address of a tensor")) };
        let offset = address as i64 - stored.begin as i64;
        if offset < 0 || offset + bytes as i64 > (stored.units.len() as u64 * UNIT) as i64 {
            let (name, size) = (&stored.name, stored.units.len() as u64 * UNIT);
            return Err(format!("{bytes} bytes at {offset} of `{name}`, which has {size}"));
        }
        Ok((stored, (offset as u64 / UNIT) as usize))
    }

    /// Reads up to 16 bytes at once, the first lowest.
    pub(crate) fn read(&self, address: u64, bytes: u64, who: Who) -> Result<u128, String> {
        let (stored, first) = self.find(address, bytes)?;
        let mut value = 0u128;
        for (place, at) in (first..first + (bytes / UNIT) as usize).enumerate() {
            let written = stored.written[at].load(Ordering::Relaxed);
            if written != BEFORE {
                stored.may_read(at, written, who)?;
            }
            value |= u128::from(stored.units[at].load(Ordering::Relaxed)) << (16 * place);
        }
        Ok(value)
    }

    /// Writes up to 16 bytes at once.
    pub(crate) fn write(&self, address: u64, bytes: u64, value: u128, who: Who) -> Result<(), String> {
        let (stored, first) = self.find(address, bytes)?;
        if !stored.may_be_written {
            return Err(format!("`{}` may only be read", stored.name));
        }
        let mut value = value;
        for at in first..first + (bytes / UNIT) as usize {
            let before = stored.written[at].swap(who.word(), Ordering::Relaxed);
            let same = stored.units[at].swap(value as u16, Ordering::Relaxed) == value as u16;
            if before != NEVER && before != BEFORE && !same {
                stored.may_write(at, before, who)?;
            }
            value >>= 16;
        }
        Ok(())
    }
}

impl Stored {
    fn may_read(&self, at: usize, written: u64, who: Who) -> Result<(), String> {
        let (name, byte) = (&self.name, at as u64 * UNIT);
        if written == NEVER && self.is_scratch {
            return Ok(());
        }
        if written == NEVER {
            return Err(format!("byte {byte} of `{name}` is read and was never written"));
        }
        self.in_order(at, written, who, "is read")
    }

    fn may_write(&self, at: usize, written: u64, who: Who) -> Result<(), String> {
        self.in_order(at, written, who, "is written")
    }

    /// Whether an access comes after what was written in this launch.
    fn in_order(&self, at: usize, written: u64, who: Who, what: &str) -> Result<(), String> {
        match who.conflict(written) {
            None => Ok(()),
            Some(conflict) => Err(format!("byte {} of `{}` {what}, and {conflict}", at as u64 * UNIT, self.name)),
        }
    }
}
