//! Shared memory of a block: regions, how long each is needed, and when threads have to wait for one another.
//!
//! Comes in: what is read and written, in the order in which the kernel does it. Goes out: an offset for each region,
//! and whether a barrier has to stand before an access. The kernel is written twice: the first time to learn how long
//! each region is needed, the second with the offsets. It emits nothing.

/// A piece of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(pub u32);

/// What is done to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Its content is used.
    Read,
    /// It gets content.
    Write,
}

/// When regions are needed, and where they lie.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    regions: Vec<Life>,
    /// Bytes in all.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    bytes: usize,
    first: usize,
    last: usize,
    /// The statements of these moments.
    begins: usize,
    ends: usize,
    offset: usize,
}

/// Keeps the books while a kernel is written.
#[derive(Debug, Default)]
pub struct Memory {
    /// Offsets found the first time.
    layout: Option<Layout>,
    seen: Vec<Life>,
    /// Accesses so far.
    clock: usize,
    /// Accesses since the last barrier, with the statement they belong to.
    pending: Vec<(Region, Touch, usize)>,
    /// The statement at hand.
    statement: usize,
    /// When its first write was; none before that.
    written: Option<usize>,
}

/// Every region starts at a multiple of so many bytes.
const ALIGNMENT: usize = 128;

impl Memory {
    /// For writing a kernel with these offsets, or for finding them.
    pub fn new(layout: Option<Layout>) -> Memory {
        Memory { layout, ..Memory::default() }
    }

    /// A new region. `always`: needed from the first to the last moment.
    pub fn allocate(&mut self, bytes: usize, always: bool) -> Region {
        let region = Region(u32::try_from(self.seen.len()).expect("a kernel has few regions"));
        let (first, last) = if always { (0, usize::MAX) } else { (usize::MAX, 0) };
        let (begins, ends) = (first, last);
        self.seen.push(Life { bytes: bytes.next_multiple_of(ALIGNMENT), first, last, begins, ends, offset: 0 });
        region
    }

    /// Where a region lies; 0 while that is not known.
    pub fn offset(&self, region: Region) -> usize {
        let place = self.layout.as_ref().and_then(|layout| layout.regions.get(region.0 as usize));
        place.map_or(0, |life| life.offset)
    }

    /// A new statement begins: the writes of one do not wait for each other.
    pub fn begin(&mut self) {
        self.statement += 1;
        self.written = None;
    }

    /// Notes accesses that are about to be made, all of one kind; whether a barrier has to stand before them.
    pub fn touch(&mut self, regions: &[Region], touch: Touch) -> bool {
        let statement = self.statement;
        let mut conflict = false;
        for region in regions {
            self.live(*region, touch);
            conflict |= self.pending.iter().any(|(other, before, of)| {
                let written_together = touch == Touch::Write && *before == Touch::Write && *of == statement;
                let apart = touch == Touch::Read && *before == Touch::Read;
                !written_together && !apart && self.meet(*region, *other)
            });
        }
        if conflict {
            self.pending.clear();
        }
        for region in regions {
            if !self.pending.contains(&(*region, touch, statement)) {
                self.pending.push((*region, touch, statement));
            }
        }
        conflict
    }

    /// A region is needed now.
    fn live(&mut self, region: Region, touch: Touch) {
        self.clock += 1;
        // What a statement writes is written at no particular moment of it: its regions are all needed from the first.
        let first = match touch {
            Touch::Read => self.clock,
            Touch::Write => *self.written.get_or_insert(self.clock),
        };
        let life = &mut self.seen[region.0 as usize];
        if life.last != usize::MAX {
            life.first = life.first.min(first);
            life.last = self.clock;
            life.begins = life.begins.min(self.statement);
            life.ends = self.statement;
        }
    }

    /// By statement: bytes of the regions that are needed then.
    pub fn needed(&self) -> Vec<usize> {
        let at = |statement: usize| {
            let needed = self.seen.iter().filter(|life| life.begins <= statement && statement <= life.ends);
            needed.map(|life| life.bytes).sum()
        };
        (0..=self.statement).map(at).collect()
    }

    /// Notes that each thread reads of a region what it wrote itself: it waits for nobody, and who writes there next does.
    pub fn touch_own(&mut self, region: Region) {
        self.live(region, Touch::Read);
        let own = (region, Touch::Read, self.statement);
        if !self.pending.contains(&own) {
            self.pending.push(own);
        }
    }

    /// All threads have waited for one another.
    pub fn settled(&mut self) {
        self.pending.clear();
    }

    /// Whether anything was touched since they last did.
    pub fn unsettled(&self) -> bool {
        !self.pending.is_empty()
    }

    fn meet(&self, a: Region, b: Region) -> bool {
        if a == b {
            return true;
        }
        let Some(layout) = &self.layout else { return false };
        match (layout.regions.get(a.0 as usize), layout.regions.get(b.0 as usize)) {
            (Some(a), Some(b)) => a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes,
            (None, _) | (_, None) => false,
        }
    }

    /// Offsets, the largest regions first, each as low as can be.
    pub fn place(&self) -> Layout {
        let mut regions = self.seen.clone();
        let mut order: Vec<usize> = (0..regions.len()).filter(|&n| regions[n].first <= regions[n].last).collect();
        order.sort_by_key(|&n| {
            (std::cmp::Reverse(regions[n].last == usize::MAX), std::cmp::Reverse(regions[n].bytes), n)
        });
        let mut placed: Vec<usize> = Vec::new();
        let mut bytes = 0;
        for n in order {
            let own = regions[n];
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .map(|&m| regions[m])
                .filter(|other| other.first <= own.last && own.first <= other.last)
                .map(|other| (other.offset, other.offset + other.bytes))
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (start, end) in taken {
                if at + own.bytes <= start {
                    break;
                }
                at = at.max(end);
            }
            regions[n].offset = at;
            bytes = bytes.max(at + own.bytes);
            placed.push(n);
        }
        Layout { regions, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_waited_for_once() {
        let mut memory = Memory::new(None);
        let (a, b) = (memory.allocate(100, false), memory.allocate(100, false));
        memory.begin();
        assert!(!memory.touch(&[a], Touch::Write));
        assert!(!memory.touch(&[b], Touch::Write));
        // Also within the statement that wrote it: another thread may have.
        assert!(memory.touch(&[a], Touch::Read));
        assert!(!memory.touch(&[b], Touch::Read));
        memory.begin();
        assert!(memory.touch(&[a], Touch::Write));
    }

    #[test]
    fn accesses_that_follow_together_are_settled_together() {
        let mut memory = Memory::new(None);
        let (a, b) = (memory.allocate(100, false), memory.allocate(100, false));
        memory.begin();
        memory.touch(&[b], Touch::Read);
        memory.begin();
        // A barrier stands before both are written, so what is written is still to be waited for.
        assert!(memory.touch(&[a, b], Touch::Write));
        memory.begin();
        assert!(memory.touch(&[a], Touch::Read));
    }

    /// One of them is never read, so that it is needed at a single moment.
    #[test]
    fn what_a_statement_writes_shares_no_bytes() {
        let mut memory = Memory::new(None);
        let regions = [100, 100, 100].map(|bytes| memory.allocate(bytes, false));
        memory.begin();
        memory.touch(&regions[..2], Touch::Write);
        memory.touch(&regions[2..], Touch::Write);
        memory.begin();
        memory.touch(&regions[2..], Touch::Read);
        assert_eq!(memory.place().bytes, 3 * 128);
    }

    #[test]
    fn regions_share_bytes_unless_they_are_needed_together() {
        let run = |memory: &mut Memory| {
            let regions = [200, 300, 100].map(|bytes| memory.allocate(bytes, false));
            let always = memory.allocate(50, true);
            for region in regions {
                memory.begin();
                memory.touch(&[region], Touch::Write);
                memory.begin();
                memory.touch(&[region], Touch::Read);
            }
            (regions, always)
        };
        let mut first = Memory::new(None);
        run(&mut first);
        let layout = first.place();
        assert_eq!(layout.bytes, 128 + 384);
        let mut second = Memory::new(Some(layout));
        let (regions, always) = run(&mut second);
        assert_eq!(second.offset(always), 0);
        for region in regions {
            assert_eq!(second.offset(region), 128);
        }
        // The next to lie there waits for who still reads the last.
        second.begin();
        assert!(second.touch(&[regions[0]], Touch::Write));
    }
}
