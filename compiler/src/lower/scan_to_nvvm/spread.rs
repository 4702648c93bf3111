//! Which thread of which block holds which positions of every dimension.
//!
//! Comes in: how many lanes, warps and blocks a dimension is dealt out to. Goes out: for a thread and a register, the
//! position it holds, and back. Plain numbers: it emits nothing.
//!
//! Every value is held alike: a thread has those of its elements whose position along each of its dimensions the thread
//! holds, and what does not vary along a dimension stands in all threads that differ only there. So elementwise
//! functions stay within a thread, and a sum over a dimension goes over a thread's registers, then the lanes, then the
//! warps that the dimension is dealt out to.

use crate::graph::ir::DimId;

/// Threads of a warp.
pub const WARP: usize = 32;

/// How the positions of one dimension are dealt out. Position `j + inner·(lane + lanes·(o + outer·(warp + warps·block)))`
/// is that of register `o·inner + j`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Positions there are.
    pub size: usize,
    /// Neighbouring positions in one thread.
    pub inner: usize,
    /// Lanes of a warp that share the dimension.
    pub lanes: usize,
    /// Runs of neighbouring positions in one thread.
    pub outer: usize,
    /// Warps of a block that share the dimension.
    pub warps: usize,
    /// Blocks of an item that share the dimension.
    pub blocks: usize,
    /// Lanes from one that holds other positions to the next.
    pub lane_step: usize,
    /// The same for warps.
    pub warp_step: usize,
}

impl Share {
    /// All of a dimension in every thread.
    pub fn whole(size: usize) -> Share {
        Share { size, inner: size, lanes: 1, outer: 1, warps: 1, blocks: 1, lane_step: 1, warp_step: 1 }
    }

    /// Positions a thread holds.
    pub fn registers(&self) -> usize {
        self.inner * self.outer
    }

    /// Positions there is room for.
    pub fn room(&self) -> usize {
        self.registers() * self.lanes * self.warps * self.blocks
    }

    /// Whether some threads hold positions that there are not.
    pub fn is_padded(&self) -> bool {
        self.room() > self.size
    }

    /// Whether every thread holds all positions.
    pub fn is_whole(&self) -> bool {
        self.lanes * self.warps * self.blocks == 1
    }

    /// The part of a position that depends on the register.
    pub fn of_register(&self, register: usize) -> usize {
        register % self.inner + self.inner * self.lanes * (register / self.inner)
    }

    /// The part of a position that depends on the thread, as factors of its lane, warp and block along the dimension.
    pub fn of_thread(&self) -> [usize; 3] {
        let warp = self.inner * self.lanes * self.outer;
        [self.inner, warp, warp * self.warps]
    }
}

/// How everything is dealt out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// By dimension of the graph.
    pub shares: Vec<Share>,
    /// Warps of a block.
    pub warps: usize,
    /// Blocks of an item.
    pub blocks: usize,
}

impl Spread {
    /// How a dimension is dealt out.
    pub fn share(&self, dim: DimId) -> &Share {
        &self.shares[dim.index()]
    }

    /// Registers of a value with these dimensions.
    pub fn registers(&self, dims: &[DimId]) -> usize {
        dims.iter().map(|dim| self.share(*dim).registers()).product()
    }

    /// The register of each dimension, for register `n` of a value with these dimensions: the last varies fastest.
    pub fn split(&self, dims: &[DimId], mut n: usize) -> Vec<usize> {
        let mut found = vec![0; dims.len()];
        for (at, dim) in dims.iter().enumerate().rev() {
            let registers = self.share(*dim).registers();
            found[at] = n % registers;
            n /= registers;
        }
        found
    }

    /// The register of a value with dimensions `of` that stands beside these registers of `dims`; a dimension that is
    /// not among them counts as its first.
    pub fn beside(&self, of: &[DimId], dims: &[DimId], registers: &[usize]) -> usize {
        of.iter().fold(0, |n, dim| {
            let here = dims.iter().position(|other| other == dim).map_or(0, |at| registers[at]);
            n * self.share(*dim).registers() + here
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(share: &Share, block: usize, warp: usize, lane: usize, register: usize) -> usize {
        let [by_lane, by_warp, by_block] = share.of_thread();
        share.of_register(register) + by_lane * lane + by_warp * warp + by_block * block
    }

    #[test]
    fn every_position_has_one_thread_and_register() {
        for (inner, lanes, outer, warps, blocks) in
            [(4, 8, 3, 2, 5), (1, 1, 1, 1, 1), (3, 2, 1, 4, 1), (16, 4, 1, 1, 2)]
        {
            let room = inner * lanes * outer * warps * blocks;
            let share = Share { size: room, inner, lanes, outer, warps, blocks, lane_step: 1, warp_step: 1 };
            let mut seen = vec![0; room];
            for block in 0..blocks {
                for warp in 0..warps {
                    for lane in 0..lanes {
                        for register in 0..share.registers() {
                            seen[position(&share, block, warp, lane, register)] += 1;
                        }
                    }
                }
            }
            assert!(seen.iter().all(|n| *n == 1), "{share:?}: {seen:?}");
            assert_eq!((share.room(), share.is_padded()), (room, false));
        }
    }

    #[test]
    fn neighbours_lie_in_one_thread_and_then_in_the_next_lane() {
        let share = Share { size: 128, inner: 4, lanes: 8, outer: 2, warps: 2, blocks: 1, lane_step: 1, warp_step: 1 };
        let held: Vec<usize> = (0..8).map(|register| position(&share, 0, 0, 1, register)).collect();
        assert_eq!(held, [4, 5, 6, 7, 36, 37, 38, 39]);
        assert_eq!(position(&share, 0, 1, 0, 0), 64);
    }

    #[test]
    fn registers_of_values_are_found_by_dimension() {
        let share = |registers| Share { size: registers, inner: registers, ..Share::whole(1) };
        let spread = Spread { shares: vec![share(2), share(3)], warps: 1, blocks: 1 };
        let (a, b) = (DimId(0), DimId(1));
        assert_eq!(spread.registers(&[a, b]), 6);
        assert_eq!(spread.split(&[a, b], 5), [1, 2]);
        assert_eq!(spread.beside(&[b], &[a, b], &[1, 2]), 2);
        assert_eq!(spread.beside(&[a, b], &[a], &[1]), 3);
        assert_eq!(spread.beside(&[], &[a], &[1]), 0);
    }
}
