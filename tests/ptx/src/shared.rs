//! Shared memory of a block, and who touched it.
//!
//! Two accesses to the same bytes, at least one of them a write, have to be in an order ([`crate::clock`]): of two warps, a
//! barrier of both stands between them, or one arrived at an mbarrier for which the other waited; of two threads of a warp,
//! that or a barrier of the warp. Whatever is not is a fault, whether or not it went well this time; but for two writes of
//! the same, and for two of which nobody reads what they wrote. An asynchronous copy is a write from where it is asked for
//! until it was waited for, when its bytes arrive; nobody may touch them meanwhile. One that is told to arrive at an
//! mbarrier is waited for there. So is an access beyond the end a fault, and one that is not aligned, or to an mbarrier.
//!
//! What was never written since the block began is what a launch says. Reading it is no fault: rows and columns beyond the
//! last are multiplied along with the others and thrown away. With what is not a number there, nothing that uses it stays
//! one.
//!
//! It is remembered of every two bytes: who wrote them last, and when each warp has read them since.
//!
//! Products of a warpgroup read through what PTX calls the asynchronous proxy. On the way from a write to them lies a fence
//! (`fence.proxy.async`): of the thread that wrote, after it wrote and before others knew, or of the whole warp that reads,
//! once it knew. They read until they were waited for.

use crate::clock::{Clock, Seen, copier};

/// Bytes of a unit: the smallest access.
const UNIT: usize = 2;

/// Whose access it is, and when.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub clock: &'a Clock,
    pub lane: u32,
}

/// A copy is under way.
const PENDING: u8 = 1;
/// Others wrote something else before without an order.
const CONTESTED: u8 = 2;
/// An mbarrier lies there.
const RESERVED: u8 = 4;

#[derive(Clone, Copy, Default)]
struct Mark {
    /// Stretch of the last write; 0 for never.
    written: u32,
    /// Warps that may have read it without an order since.
    readers: u32,
    /// Who wrote, as in [`Seen`].
    writer: u8,
    writer_lane: u8,
    /// What there is about it.
    state: u8,
}

/// When a warp last read a unit, and which of its threads did since its last barrier.
#[derive(Clone, Copy, Default)]
struct Read {
    at: u32,
    lanes: u32,
}

/// A fence of threads of a warp towards the asynchronous proxy.
struct Fence {
    /// Its stretch, which ends with it.
    at: u32,
    lanes: u32,
    /// Which copies of the warp had arrived.
    copies: u32,
}

/// Shared memory of a block.
pub struct Shared {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Of each warp, of each unit; true where the mark says that the warp is a reader.
    reads: Vec<Vec<Read>>,
    /// Of each warp, in their order.
    fences: Vec<Vec<Fence>>,
    begin: u64,
    unwritten: u8,
}

impl Shared {
    pub fn new(bytes: usize, begin: u64, unwritten: u8, warps: usize) -> Shared {
        let units = bytes.div_ceil(UNIT);
        Shared {
            bytes: vec![unwritten; bytes],
            marks: vec![Mark::default(); units],
            reads: (0..warps).map(|_| vec![Read::default(); units]).collect(),
            fences: (0..warps).map(|_| Vec::new()).collect(),
            begin,
            unwritten,
        }
    }

    /// Makes it new: nobody wrote it.
    pub fn reset(&mut self) {
        self.bytes.fill(self.unwritten);
        self.marks.fill(Mark::default());
        self.fences.iter_mut().for_each(Vec::clear);
    }

    /// Where an address is, if as many bytes are there and it is a multiple of them.
    pub fn find(&self, address: u64, bytes: usize) -> Result<usize, String> {
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!(
                "{bytes} bytes of shared memory at once at {address:#x}, which is no multiple of that"
            ));
        }
        let offset = address as i64 - self.begin as i64;
        if offset < 0 || offset as usize + bytes > self.bytes.len() {
            return Err(format!("{bytes} bytes at {offset} of shared memory, of which there are {}", self.bytes.len()));
        }
        Ok(offset as usize)
    }

    /// The units of some bytes, what is known of each, and of when a warp read it.
    fn units_read(
        &mut self,
        offset: usize,
        bytes: usize,
        who: Who,
    ) -> impl Iterator<Item = (usize, &mut Mark, &mut Read)> {
        let units = offset / UNIT..(offset + bytes) / UNIT;
        let reads = &mut self.reads[who.clock.warp as usize][units.clone()];
        self.marks[units.clone()].iter_mut().zip(reads).zip(units).map(|((mark, read), unit)| (unit, mark, read))
    }

    /// Reads up to 16 bytes at once, the first lowest. `by_all`: the whole warp gets them.
    #[inline]
    pub fn read(&mut self, address: u64, bytes: usize, who: Who, by_all: bool) -> Result<u128, String> {
        let offset = self.find(address, bytes)?;
        let lanes = if by_all { u32::MAX } else { 1 << who.lane };
        for (unit, mark, read) in self.units_read(offset, bytes, who) {
            if mark.state != 0 || mark.is_news_to(who, by_all) {
                return Err(mark.why(unit, who, "read"));
            }
            mark.note_reader(read, who, lanes);
        }
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&self.bytes[offset..offset + bytes]);
        Ok(u128::from_le_bytes(value))
    }

    /// Lets a product of a warpgroup begin to read 16 bytes, for the whole warp.
    pub fn begin_product(&mut self, address: u64, who: Who) -> Result<u128, String> {
        let offset = self.find(address, 16)?;
        let mut passed = (0, 0, 0);
        for unit in offset / UNIT..(offset + 16) / UNIT {
            let mark = self.marks[unit];
            if mark.state != 0 {
                return Err(mark.why(unit, who, "read"));
            }
            let (byte, writer) = (unit * UNIT, mark.writer_name());
            if mark.is_news_to(who, true) {
                return Err(format!(
                    "wgmma reads byte {byte} of shared memory, and {writer} it since the last barrier"
                ));
            }
            let write = (mark.written, mark.writer, mark.writer_lane);
            if mark.written != 0 && write != passed && !self.is_fenced(mark, who) {
                return Err(format!(
                    "wgmma reads shared memory that no fence.proxy.async made visible: byte {byte}, which {writer}"
                ));
            }
            passed = write;
        }
        self.read(address, 16, who, true)
    }

    /// Whether a fence lies between a write that somebody knows of and him.
    fn is_fenced(&self, mark: Mark, who: Who) -> bool {
        if mark.written <= who.clock.fenced[usize::from(mark.writer)] {
            return true;
        }
        let (warp, by_copy) = mark.writer_warp();
        let fences = &self.fences[warp as usize];
        let known = fences.partition_point(|fence| fence.at <= who.clock.seen[warp as usize]);
        let after = |fence: &&Fence| mark.written <= if by_copy { fence.copies } else { fence.at };
        fences[..known].iter().rev().take_while(after).any(|fence| fence.lanes >> mark.writer_lane & 1 == 1)
    }

    /// Ends what a product began that had seen so much: until now nobody may have written what it read.
    pub fn end_product(&mut self, address: u64, since: &Seen, who: Who) -> Result<(), String> {
        let offset = self.find(address, 16)?;
        for (unit, mark, read) in self.units_read(offset, 16, who) {
            if mark.written > since[usize::from(mark.writer)] {
                let byte = unit * UNIT;
                let (warp, _) = mark.writer_warp();
                return Err(format!(
                    "byte {byte} of shared memory was written by thread {} of warp {warp} while a wgmma that was not \
                     waited for read it",
                    mark.writer_lane
                ));
            }
            mark.note_reader(read, who, u32::MAX);
        }
        Ok(())
    }

    /// Makes what threads wrote, and what the warp has seen, visible to the asynchronous proxy.
    pub fn fence(&mut self, clock: &mut Clock, lanes: u32) {
        let fence = Fence { at: clock.now, lanes, copies: clock.known_copies() };
        self.fences[clock.warp as usize].push(fence);
        if lanes == u32::MAX {
            clock.fenced = clock.seen;
        }
        clock.go_on();
    }

    /// Marks bytes as written. Of those that are as they were (`same`) nothing else is asked of who wrote them.
    fn mark_written(&mut self, offset: usize, bytes: usize, who: Who, pending: bool, same: bool) -> Result<(), String> {
        for unit in offset / UNIT..(offset + bytes) / UNIT {
            let mark = &mut self.marks[unit];
            if mark.state & (PENDING | RESERVED) != 0 {
                return Err(mark.why(unit, who, "written"));
            }
            let unknown = mark.unknown_reads(unit, &self.reads, who)?;
            if mark.is_news_to(who, false) {
                if mark.writer_warp().1 {
                    return Err(mark.why(unit, who, "written"));
                }
                mark.state |= if same { 0 } else { CONTESTED };
            } else {
                (mark.written, mark.readers, mark.state) = (who.clock.now, unknown, 0);
                (mark.writer, mark.writer_lane) = (who.clock.warp as u8, who.lane as u8);
            }
            mark.state |= if pending { PENDING } else { 0 };
        }
        Ok(())
    }

    /// Writes up to 16 bytes at once.
    #[inline]
    pub fn write(&mut self, address: u64, bytes: usize, value: u128, who: Who) -> Result<(), String> {
        let offset = self.find(address, bytes)?;
        let value = &value.to_le_bytes()[..bytes];
        let same = self.bytes[offset..offset + bytes] == *value;
        self.mark_written(offset, bytes, who, false, same)?;
        self.bytes[offset..offset + bytes].copy_from_slice(value);
        Ok(())
    }

    /// Sets eight bytes aside for an mbarrier.
    pub fn reserve(&mut self, address: u64, who: Who) -> Result<(), String> {
        let offset = self.find(address, 8)?;
        self.mark_written(offset, 8, who, false, false)?;
        self.marks[offset / UNIT..(offset + 8) / UNIT].iter_mut().for_each(|mark| mark.state = RESERVED);
        self.bytes[offset..offset + 8].fill(self.unwritten);
        Ok(())
    }

    /// Begins a copy: until it arrives, nobody may touch the bytes.
    pub fn begin_copy(&mut self, address: u64, bytes: usize, who: Who) -> Result<(), String> {
        let offset = self.find(address, bytes)?;
        self.mark_written(offset, bytes, who, true, false)?;
        self.bytes[offset..offset + bytes].fill(self.unwritten);
        Ok(())
    }

    /// Ends a copy, for the thread that made it.
    pub fn end_copy(&mut self, address: u64, bytes: usize, value: u128, who: Who) -> Result<(), String> {
        self.arrive(address, bytes, value, (who.clock.now, who.clock.warp as usize))
    }

    /// Ends a copy for those who wait where it arrives: in a stretch of the warp's copies.
    pub fn hand_over(&mut self, address: u64, bytes: usize, value: u128, warp: u32, at: u32) -> Result<(), String> {
        self.arrive(address, bytes, value, (at, copier(warp)))
    }

    fn arrive(&mut self, address: u64, bytes: usize, value: u128, (at, writer): (u32, usize)) -> Result<(), String> {
        let offset = self.find(address, bytes)?;
        for mark in &mut self.marks[offset / UNIT..(offset + bytes) / UNIT] {
            (mark.written, mark.writer) = (at, writer as u8);
            mark.state &= !PENDING;
        }
        self.bytes[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }
}

impl Mark {
    /// Notes who reads it, and for which threads of the warp.
    #[inline]
    fn note_reader(&mut self, read: &mut Read, who: Who, lanes: u32) {
        let bit = 1 << who.clock.warp;
        let lasts = self.readers & bit != 0 && read.at > who.clock.seen[who.clock.warp as usize];
        *read = Read { at: who.clock.now, lanes: if lasts { read.lanes | lanes } else { lanes } };
        self.readers |= bit;
    }

    /// Which warp wrote it, and whether by a copy that arrived by itself.
    fn writer_warp(&self) -> (u32, bool) {
        let writer = u32::from(self.writer);
        let first = copier(0) as u32;
        if writer < first { (writer, false) } else { (writer - first, true) }
    }

    fn writer_name(&self) -> String {
        let lane = self.writer_lane;
        match self.writer_warp() {
            (warp, false) => format!("thread {lane} of warp {warp} wrote"),
            (warp, true) => format!("a copy of thread {lane} of warp {warp} wrote"),
        }
    }

    /// Whether somebody else wrote it without an order.
    #[inline]
    fn is_news_to(&self, who: Who, by_all: bool) -> bool {
        self.written > who.clock.seen[usize::from(self.writer)] && (by_all || !self.is_of(who))
    }

    /// Whether a thread wrote it, and not by a copy for which it has not waited.
    fn is_of(&self, who: Who) -> bool {
        let (warp, by_copy) = self.writer_warp();
        let own = warp == who.clock.warp && u32::from(self.writer_lane) == who.lane;
        own && (!by_copy || who.clock.has_awaited(who.lane, self.written))
    }

    /// Whether others read it without an order is a fault; gives whose reads are not in an order with everybody.
    fn unknown_reads(&self, unit: usize, reads: &[Vec<Read>], who: Who) -> Result<u32, String> {
        let (mut readers, mut unknown) = (self.readers, 0);
        let byte = unit * UNIT;
        while readers != 0 {
            let warp = readers.trailing_zeros();
            readers &= readers - 1;
            let read = reads[warp as usize][unit];
            if read.at <= who.clock.seen[warp as usize] {
                continue;
            }
            if warp != who.clock.warp {
                return Err(format!(
                    "byte {byte} of shared memory is written, and warp {warp} read it since the last barrier"
                ));
            }
            let lanes = read.lanes & !(1 << who.lane);
            if lanes != 0 {
                return Err(format!(
                    "byte {byte} of shared memory is written, and thread {} of the same warp read it since the last \
                     barrier of the warp",
                    lanes.trailing_zeros()
                ));
            }
            unknown |= 1 << warp;
        }
        Ok(unknown)
    }

    fn why(&self, unit: usize, who: Who, what: &str) -> String {
        let (byte, lane) = (unit * UNIT, self.writer_lane);
        let access = format!("byte {byte} of shared memory is {what}, and");
        let (warp, by_copy) = self.writer_warp();
        if self.state & RESERVED != 0 {
            return format!("{access} an mbarrier lies there");
        }
        if self.state & PENDING != 0 {
            return format!("{access} a copy to it was not waited for");
        }
        if self.state & CONTESTED != 0 {
            return format!(
                "{access} thread {lane} of warp {warp} and another wrote it without a barrier between them"
            );
        }
        if by_copy {
            return format!("{access} a copy to it by thread {lane} of warp {warp} was not waited for");
        }
        if warp != who.clock.warp {
            return format!("{access} thread {lane} of warp {warp} wrote it since the last barrier");
        }
        format!("{access} thread {lane} of the same warp wrote it since the last barrier of the warp")
    }
}
