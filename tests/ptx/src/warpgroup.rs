//! What four warps do together: where the factors of their products lie, and that they all do the same.
//!
//! A factor in shared memory is made of core matrices: eight rows of 16 bytes, one after the other. A descriptor says
//! where the first begins, and how far it is from one to the next along each side.

/// Warps of a warpgroup.
pub const WARPS: u32 = 4;

/// Bits of a descriptor that mean nothing.
const NOTHING: u64 = 0x3 << 14 | 0x3 << 30 | 0x7 << 46 | 0x3ff << 52;

/// A factor of a product: as many groups of eight rows or columns as it has, two groups of eight of what is summed over.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    begin: u64,
    /// From one group of eight of what is summed over to the next, in bytes.
    leading: u64,
    /// From one group of eight of the others to the next, in bytes.
    stride: u64,
    groups: u64,
}

impl Tile {
    /// What a descriptor says, with so many rows or columns.
    pub fn new(descriptor: u64, size: usize) -> Result<Tile, String> {
        let field = |first: u32| (descriptor >> first & 0x3fff) << 4;
        let (base, swizzle) = (descriptor >> 49 & 7, descriptor >> 62);
        if swizzle != 0 {
            return Err(format!("the swizzle mode {swizzle} of a descriptor is not known"));
        }
        if base != 0 {
            return Err(format!("the base offset {base} of a descriptor is not known"));
        }
        if descriptor & NOTHING != 0 {
            return Err(format!("the descriptor {descriptor:#018x} has bits that mean nothing"));
        }
        Ok(Tile { begin: field(0), leading: field(16), stride: field(32), groups: size as u64 / 8 })
    }

    /// Where the rows of its core matrices are, 16 bytes each: group by group, and in a group one matrix after the other.
    pub fn rows(self) -> impl Iterator<Item = u64> {
        let Tile { begin, leading, stride, groups } = self;
        let cores = (0..groups).flat_map(move |group| [0, 1].map(|k| begin + group * stride + k * leading));
        cores.flat_map(|core| (0..8).map(move |row| core + 16 * row))
    }
}

/// What a warp did of what its warpgroup does together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it stands in the text.
    pub line: u32,
    /// Descriptors, and whether the product is added.
    pub operands: [u64; 3],
}

/// What the warpgroups of a block did, as far as not all warps of each have done it.
pub struct Warpgroups {
    steps: Vec<Vec<Step>>,
    /// How many steps each warp has done.
    done: Vec<usize>,
}

impl Warpgroups {
    pub fn new(warps: u32) -> Warpgroups {
        Warpgroups { steps: vec![Vec::new(); warps.div_ceil(WARPS) as usize], done: vec![0; warps as usize] }
    }

    /// Begins anew, in another block.
    pub fn reset(&mut self) {
        self.steps.iter_mut().for_each(Vec::clear);
        self.done.fill(0);
    }

    /// A warp does something: the others of its warpgroup have to do the same.
    pub fn step(&mut self, warp: u32, step: Step) -> Result<(), String> {
        let group = warp / WARPS;
        if (group + 1) * WARPS > self.done.len() as u32 {
            return Err(format!("a warpgroup has four warps, and warp {warp} is in none"));
        }
        let (steps, done) = (&mut self.steps[group as usize], &mut self.done[warp as usize]);
        match steps.get(*done) {
            None => steps.push(step),
            Some(first) if first.line != step.line => {
                return Err(format!("another warp of the warpgroup is at line {} instead", first.line));
            }
            Some(first) if *first != step => {
                return Err("another warp of the warpgroup has other descriptors".to_owned());
            }
            Some(_) => {}
        }
        *done += 1;
        let all = steps.len();
        let group = (group * WARPS) as usize..((group + 1) * WARPS) as usize;
        if self.done[group.clone()].iter().all(|done| *done == all) {
            steps.clear();
            self.done[group].fill(0);
        }
        Ok(())
    }

    /// At a barrier of some warps, and at the end: which warp did not do what its warpgroup did, and the line.
    pub fn meet(&self, warps: u32) -> Result<(), (usize, u32)> {
        for (group, steps) in self.steps.iter().enumerate() {
            let all = 0xf << (WARPS as usize * group);
            let own = WARPS as usize * group..self.done.len().min(WARPS as usize * (group + 1));
            for warp in own.filter(|_| warps & all == all) {
                if let Some(step) = steps.get(self.done[warp]) {
                    return Err((warp, step.line));
                }
            }
        }
        Ok(())
    }
}
