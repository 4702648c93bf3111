//! Shared memory of a block, and who touched it.
//!
//! Two accesses to the same bytes, at least one of them a write, have to be in an order: of two warps, a barrier of the
//! block stands between them; of two threads of a warp, that or one of the warp. Whatever is not is a fault, whether or not
//! it went well this time; but for two writes of the same, and for two of which nobody reads what they wrote. An asynchronous copy is a write from where it is asked for until it was waited for, when its
//! bytes arrive; nobody may touch them meanwhile. So is an access beyond the end, and one that is not aligned.
//!
//! What was never written since the block began is what a launch says. Reading it is no fault: rows and columns beyond the
//! last are multiplied along with the others and thrown away. With what is not a number there, nothing that uses it stays
//! one.
//!
//! It is remembered of every two bytes: who wrote them last, and who has read them since.
//!
//! Products of a warpgroup read through what PTX calls the asynchronous proxy. What they read has to lie before a barrier,
//! and between the two the thread that wrote it has to have fenced its writes off (`fence.proxy.async`). They read until
//! they were waited for.

/// Bytes of a unit: the smallest access.
const UNIT: usize = 2;

/// Threads that a block has at most.
const THREADS: usize = 1024;

/// Whose access it is, and when.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// Barriers of the block so far, from 1.
    pub interval: u32,
    /// Barriers of the warp so far.
    pub step: u32,
    pub warp: u32,
    pub lane: u32,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    /// Interval of the last write; 0 for never.
    written: u32,
    writer_step: u32,
    /// Interval of the last read, and by which warps in it.
    read: u32,
    readers: u32,
    /// Of the last warp that read: its step, and by which threads in it.
    reader_step: u32,
    reader_lanes: u32,
    /// Fences of the writer before it wrote.
    fences: u16,
    reader_warp: u8,
    writer_warp: u8,
    writer_lane: u8,
    /// Whether a copy is under way.
    pending: bool,
    /// Whether others wrote something else before without an order.
    contested: bool,
}

/// The fences of a thread towards the asynchronous proxy, counted round and round.
#[derive(Clone, Copy, Default)]
struct Fences {
    /// Interval of the last one.
    interval: u32,
    all: u16,
    /// Those before that interval.
    before: u16,
}

/// Shared memory of a block.
pub struct Shared {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    fences: Vec<Fences>,
    begin: u64,
    unwritten: u8,
}

impl Shared {
    pub fn new(bytes: usize, begin: u64, unwritten: u8) -> Shared {
        let marks = vec![Mark::default(); bytes.div_ceil(UNIT)];
        Shared { bytes: vec![unwritten; bytes], marks, fences: vec![Fences::default(); THREADS], begin, unwritten }
    }

    /// Makes it new: nobody wrote it.
    pub fn reset(&mut self) {
        self.bytes.fill(self.unwritten);
        self.marks.fill(Mark::default());
        self.fences.fill(Fences::default());
    }

    fn find(&self, address: u64, bytes: usize) -> Result<usize, String> {
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

    /// Reads up to 16 bytes at once, the first lowest. `by_all`: the whole warp gets them.
    #[inline]
    pub fn read(&mut self, address: u64, bytes: usize, who: Who, by_all: bool) -> Result<u128, String> {
        let offset = self.find(address, bytes)?;
        let lanes = if by_all { u32::MAX } else { 1 << who.lane };
        for unit in offset / UNIT..(offset + bytes) / UNIT {
            let mark = &mut self.marks[unit];
            let recent = mark.written == who.interval;
            if mark.pending || mark.contested || (recent && mark.concerns(who, by_all)) {
                return Err(mark.why(unit, who, "read"));
            }
            mark.note_reader(who, lanes);
        }
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&self.bytes[offset..offset + bytes]);
        Ok(u128::from_le_bytes(value))
    }

    /// Lets a product of a warpgroup begin to read 16 bytes, for the whole warp.
    pub fn begin_product(&mut self, address: u64, who: Who) -> Result<u128, String> {
        let offset = self.find(address, 16)?;
        for unit in offset / UNIT..(offset + 16) / UNIT {
            let mark = &self.marks[unit];
            if mark.pending || mark.contested {
                return Err(mark.why(unit, who, "read"));
            }
            let (byte, Mark { writer_warp, writer_lane, .. }) = (unit * UNIT, mark);
            if mark.written == who.interval {
                return Err(format!(
                    "wgmma reads byte {byte} of shared memory, and thread {writer_lane} of warp {writer_warp} wrote it \
                     since the last barrier"
                ));
            }
            let fences = self.fences[thread(u32::from(*writer_warp), u32::from(*writer_lane))];
            let passed = if fences.interval == who.interval { fences.before } else { fences.all };
            if mark.written != 0 && mark.fences == passed {
                return Err(format!(
                    "wgmma reads shared memory that no fence.proxy.async made visible: byte {byte}, which thread \
                     {writer_lane} of warp {writer_warp} wrote"
                ));
            }
        }
        self.read(address, 16, who, true)
    }

    /// Ends what a product began in an interval: until now nobody may have written what it read.
    pub fn end_product(&mut self, address: u64, since: u32, who: Who) -> Result<(), String> {
        let offset = self.find(address, 16)?;
        for unit in offset / UNIT..(offset + 16) / UNIT {
            let mark = &mut self.marks[unit];
            if mark.written >= since {
                let (byte, Mark { writer_warp, writer_lane, .. }) = (unit * UNIT, mark);
                return Err(format!(
                    "byte {byte} of shared memory was written by thread {writer_lane} of warp {writer_warp} while a wgmma \
                     that was not waited for read it"
                ));
            }
            mark.note_reader(who, u32::MAX);
        }
        Ok(())
    }

    /// Makes what a thread wrote visible to the asynchronous proxy.
    pub fn fence(&mut self, who: Who) {
        let fences = &mut self.fences[thread(who.warp, who.lane)];
        if fences.interval != who.interval {
            (fences.interval, fences.before) = (who.interval, fences.all);
        }
        fences.all = fences.all.wrapping_add(1);
    }

    /// Marks bytes as written. Of those that are as they were (`same`) nothing else is asked of who wrote them.
    fn mark_written(&mut self, offset: usize, bytes: usize, who: Who, pending: bool, same: bool) -> Result<(), String> {
        let fences = self.fences[thread(who.warp, who.lane)].all;
        for unit in offset / UNIT..(offset + bytes) / UNIT {
            let mark = &mut self.marks[unit];
            let recent = mark.written == who.interval && mark.concerns(who, false);
            if mark.pending {
                return Err(mark.why(unit, who, "written"));
            }
            if let Some(reader) = mark.read_by_another(who) {
                let byte = unit * UNIT;
                return Err(format!("byte {byte} of shared memory is written, and {reader}"));
            }
            if recent {
                mark.contested |= !same;
            } else {
                (mark.written, mark.writer_step) = (who.interval, who.step);
                (mark.writer_warp, mark.writer_lane) = (who.warp as u8, who.lane as u8);
                (mark.fences, mark.contested) = (fences, false);
            }
            mark.pending = pending;
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

    /// Begins a copy: until it arrives, nobody may touch the bytes.
    pub fn begin_copy(&mut self, address: u64, bytes: usize, who: Who) -> Result<(), String> {
        let offset = self.find(address, bytes)?;
        self.mark_written(offset, bytes, who, true, false)?;
        self.bytes[offset..offset + bytes].fill(self.unwritten);
        Ok(())
    }

    /// Ends a copy.
    pub fn end_copy(&mut self, address: u64, bytes: usize, value: u128, who: Who) -> Result<(), String> {
        let offset = self.find(address, bytes)?;
        let fences = self.fences[thread(who.warp, who.lane)].all;
        for mark in &mut self.marks[offset / UNIT..(offset + bytes) / UNIT] {
            (mark.written, mark.writer_step, mark.pending) = (who.interval, who.step, false);
            mark.fences = fences;
        }
        self.bytes[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }
}

fn thread(warp: u32, lane: u32) -> usize {
    (32 * warp + lane) as usize
}

impl Mark {
    /// Notes who reads it, and for which threads of the warp.
    #[inline]
    fn note_reader(&mut self, who: Who, lanes: u32) {
        if self.read != who.interval {
            (self.read, self.readers, self.reader_lanes) = (who.interval, 0, 0);
        }
        if self.reader_warp != who.warp as u8 || self.reader_step != who.step {
            (self.reader_warp, self.reader_step, self.reader_lanes) = (who.warp as u8, who.step, 0);
        }
        self.readers |= 1 << who.warp;
        self.reader_lanes |= lanes;
    }

    /// Whether somebody else wrote it in this interval without an order.
    fn concerns(&self, who: Who, by_all: bool) -> bool {
        let same_warp = u32::from(self.writer_warp) == who.warp;
        let same_thread = same_warp && u32::from(self.writer_lane) == who.lane && !by_all;
        !same_warp || (self.writer_step == who.step && !same_thread)
    }

    /// Who else read it in this interval without an order, if somebody did.
    fn read_by_another(&self, who: Who) -> Option<String> {
        let others = self.readers & !(1 << who.warp);
        let same_step = u32::from(self.reader_warp) == who.warp && self.reader_step == who.step;
        let lanes = self.reader_lanes & !(1 << who.lane);
        if self.read == who.interval && others != 0 {
            return Some(format!("warp {} read it since the last barrier", others.trailing_zeros()));
        }
        (self.read == who.interval && same_step && lanes != 0).then(|| {
            format!("thread {} of the same warp read it since the last barrier of the warp", lanes.trailing_zeros())
        })
    }

    fn why(&self, unit: usize, who: Who, what: &str) -> String {
        let byte = unit * UNIT;
        let Mark { writer_warp, writer_lane, .. } = self;
        if self.pending {
            return format!("byte {byte} of shared memory is {what}, and a copy to it was not waited for");
        }
        if self.contested {
            return format!(
                "byte {byte} of shared memory is {what}, and thread {writer_lane} of warp {writer_warp} and another wrote \
                 it without a barrier between them"
            );
        }
        if u32::from(*writer_warp) != who.warp {
            return format!(
                "byte {byte} of shared memory is {what}, and thread {writer_lane} of warp {writer_warp} wrote it since the \
                 last barrier"
            );
        }
        format!(
            "byte {byte} of shared memory is {what}, and thread {writer_lane} of the same warp wrote it since the last \
             barrier of the warp"
        )
    }
}
