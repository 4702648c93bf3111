//! Products of a warpgroup, as far as one of its warps makes them: its own sixteen rows.
//!
//! Values are read and sums written where a product is asked for. What that must not hide is watched: shared memory that a
//! product reads is read until the product was waited for, and its registers are its own until then, and from the fence
//! before it on. Every warp counts as reading both factors whole.

use super::{ALL, Warp, World};
use crate::clock::Seen;
use crate::instruction::{AsyncProduct, Instruction, Left, Operation, Register, Scale};
use crate::matrix::{Narrow, hand_out, multiply};
use crate::parse::Touched;
use crate::shared::Who;
use crate::warpgroup::{Step, Tile, WARPS};
use std::collections::VecDeque;

/// What is wrong, and by which thread if it is one.
type Wrong = (Option<u32>, String);

/// A product under way.
struct Product {
    sums: Vec<Register>,
    factors: Vec<Register>,
    tiles: Vec<Tile>,
    /// What the warp had seen when it asked for it.
    since: Seen,
}

/// What a register was used for.
#[derive(Clone, Copy)]
struct Use {
    /// Whether it was read, or written, since the last fence.
    read: bool,
    written: bool,
    /// How many columns the product had whose sum it held since, if one had.
    columns: u16,
    /// Products under way that add to it, or have it as a factor.
    sums: u16,
    factors: u16,
}

/// Before the first fence.
const FRESH: Use = Use { read: true, written: true, columns: 0, sums: 0, factors: 0 };

/// The products of a warp.
pub(super) struct Products {
    /// Of each narrow register, if there are products at all.
    uses: Vec<Use>,
    asked: Vec<Product>,
    committed: VecDeque<Vec<Product>>,
}

impl Products {
    pub(super) fn new(registers: usize) -> Products {
        Products { uses: vec![FRESH; registers], asked: Vec::new(), committed: VecDeque::new() }
    }

    pub(super) fn reset(&mut self) {
        self.uses.fill(FRESH);
        self.asked.clear();
        self.committed.clear();
    }

    pub(super) fn are_under_way(&self) -> bool {
        !self.asked.is_empty() || !self.committed.is_empty()
    }

    /// An instruction that is no product touches registers.
    pub(super) fn watch(&mut self, instruction: &Instruction, touched: &Touched) -> Result<(), String> {
        if let Operation::MultiplyAsync(_) = instruction.operation {
            return Ok(());
        }
        for register in &touched.read {
            let used = &mut self.uses[*register as usize];
            if used.sums > 0 {
                return Err("accumulators are read before wgmma.wait_group".to_owned());
            }
            used.read = true;
        }
        for register in &touched.written {
            let used = &mut self.uses[*register as usize];
            if used.sums > 0 {
                return Err("accumulators are written before wgmma.wait_group".to_owned());
            }
            if used.factors > 0 {
                return Err("a factor in registers is written before wgmma.wait_group".to_owned());
            }
            used.written = true;
        }
        Ok(())
    }

    fn fence(&mut self) {
        for used in &mut self.uses {
            (used.read, used.written, used.columns) = (false, false, 0);
        }
    }

    /// Gives a product its registers.
    fn take(&mut self, sums: &[Register], factors: &[Register]) -> Result<(), String> {
        let columns = 2 * sums.len() as u16;
        for register in factors {
            let used = &mut self.uses[*register as usize];
            if used.sums > 0 {
                return Err("accumulators are a factor before wgmma.wait_group".to_owned());
            }
            if used.written || used.columns != 0 {
                return Err("a factor in registers was written since the last wgmma.fence".to_owned());
            }
            used.factors += 1;
        }
        for register in sums {
            let used = &mut self.uses[*register as usize];
            if used.factors > 0 {
                return Err("accumulators are a factor of a product that was not waited for".to_owned());
            }
            if used.read || used.written {
                return Err("accumulators were touched since the last wgmma.fence".to_owned());
            }
            if used.columns != 0 && used.columns != columns {
                return Err("accumulators were those of another shape since the last wgmma.fence".to_owned());
            }
            (used.columns, used.sums) = (columns, used.sums + 1);
        }
        Ok(())
    }

    fn give_back(&mut self, product: &Product) {
        product.sums.iter().for_each(|register| self.uses[*register as usize].sums -= 1);
        product.factors.iter().for_each(|register| self.uses[*register as usize].factors -= 1);
    }
}

/// The same value of all threads.
pub(super) fn common<T: Copy + PartialEq>(values: &[T; 32], what: &str) -> Result<T, Wrong> {
    match values.iter().position(|value| *value != values[0]) {
        None => Ok(values[0]),
        Some(lane) => Err((Some(lane as u32), format!("the threads of a warp have different {what}"))),
    }
}

impl Warp {
    pub(super) fn step(&self, instruction: &Instruction, operands: [u64; 3], world: &mut World) -> Result<(), Wrong> {
        let step = Step { line: instruction.line, operands };
        world.warpgroups.step(self.number, step).map_err(|what| (None, what))
    }

    pub(super) fn fence_products(&mut self, instruction: &Instruction, world: &mut World) -> Result<(), Wrong> {
        self.step(instruction, [0; 3], world)?;
        self.products.fence();
        Ok(())
    }

    pub(super) fn commit_products(&mut self, instruction: &Instruction, world: &mut World) -> Result<(), Wrong> {
        self.step(instruction, [0; 3], world)?;
        let asked = std::mem::take(&mut self.products.asked);
        self.products.committed.push_back(asked);
        Ok(())
    }

    pub(super) fn await_products(
        &mut self,
        instruction: &Instruction,
        left: usize,
        world: &mut World,
    ) -> Result<(), Wrong> {
        self.step(instruction, [0; 3], world)?;
        let who = Who { clock: &self.clock, lane: 0 };
        while self.products.committed.len() > left {
            for product in self.products.committed.pop_front().unwrap_or_default() {
                for row in product.tiles.iter().flat_map(|tile| tile.rows()) {
                    world.shared.end_product(row, &product.since, who).map_err(|what| (None, what))?;
                }
                self.products.give_back(&product);
            }
        }
        Ok(())
    }

    pub(super) fn multiply_async(
        &mut self,
        instruction: &Instruction,
        product: &AsyncProduct,
        world: &mut World,
    ) -> Result<(), Wrong> {
        let wrong = |what| (None, what);
        let AsyncProduct { factors, d, left, right, right_transposed, add, negated } = product;
        let add = match add {
            Scale::Always(add) => *add,
            Scale::If(predicate) => match self.predicates[*predicate as usize] {
                0 => false,
                ALL => true,
                _ => return Err(wrong("some threads add the product, and some do not".to_owned())),
            },
        };
        let right = common(&self.read_wide(*right), "descriptors")?;
        let (left_descriptor, registers) = match left {
            Left::Registers(registers) => (None, &registers[..]),
            Left::Shared { descriptor, .. } => (Some(common(&self.read_wide(*descriptor), "descriptors")?), &[][..]),
        };
        self.step(instruction, [left_descriptor.unwrap_or(0), right, u64::from(add)], world)?;
        self.products.take(d, registers).map_err(wrong)?;
        let right = Tile::new(right, 2 * d.len()).map_err(wrong)?;
        let mut tiles = vec![right];
        let who = self.who(0);
        let mut a = match left {
            Left::Registers(registers) => registers.map(|register| self.narrow[register as usize]),
            Left::Shared { transposed, .. } => {
                let tile = Tile::new(left_descriptor.unwrap_or(0), 64).map_err(wrong)?;
                tiles.push(tile);
                let all = read(tile, *transposed, who, world).map_err(wrong)?;
                // Two groups of eight rows are of this warp.
                let own = 2 * (self.number % WARPS) as usize;
                let [[a, c], [b, d]] = [all[own], all[own + 1]];
                [a, b, c, d]
            }
        };
        if negated[0] {
            a = a.map(negative);
        }
        let right = read(right, *right_transposed, who, world).map_err(wrong)?;
        for (d, mut b) in d.chunks_exact(4).zip(right) {
            if negated[1] {
                b = b.map(negative);
            }
            let c = std::array::from_fn(|at| if add { self.narrow[d[at] as usize] } else { [0; 32] });
            for (to, value) in d.iter().zip(multiply(*factors, &a, &b, &c)) {
                self.narrow[*to as usize] = value;
            }
        }
        let (sums, factors) = (d.clone(), registers.to_vec());
        self.products.asked.push(Product { sums, factors, tiles, since: self.clock.seen });
        Ok(())
    }
}

/// The core matrices of a factor as a warp's threads would hold them: of each group of eight, the two along what is summed
/// over.
fn read(tile: Tile, transposed: bool, who: Who, world: &mut World) -> Result<Vec<[Narrow; 2]>, String> {
    let rows = tile.rows().map(|row| world.shared.begin_product(row, who)).collect::<Result<Vec<u128>, String>>()?;
    let core = |rows: &[u128]| {
        let rows = std::array::from_fn(|at| std::array::from_fn(|column| (rows[at] >> (16 * column)) as u16));
        hand_out(&rows, transposed)
    };
    Ok(rows.chunks_exact(16).map(|rows| [core(&rows[..8]), core(&rows[8..])]).collect())
}

/// With the signs of both numbers of 16 bits turned.
fn negative(register: Narrow) -> Narrow {
    register.map(|bits| bits ^ 0x8000_8000)
}
