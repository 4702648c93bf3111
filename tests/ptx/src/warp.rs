//! A warp: 32 threads that go in step as far as they go the same way.
//!
//! Threads at the same line are a group. The group at the lowest line goes first, so that threads whose ways part meet
//! again where the text lets them. Where an instruction needs all threads, a group waits there for the others; if all
//! groups wait, and not at the same one, that is a fault.

mod access;
mod arrivals;
mod products;

use crate::arithmetic::{Wide, binary, order, source, ternary, unary, wide_binary, wide_shift, wide_unary, zip};
use crate::arrivals::Mbarriers;
use crate::clock::Clock;
use crate::instruction::{
    Address, Binary, Compared, Instruction, Logic, Operand, Operation, Register, Relation, Special,
};
use crate::matrix::{Narrow, multiply, transpose};
use crate::memory::{self, Memory};
use crate::numbers::{bits, float, half};
use crate::parse::Kernel;
use crate::shared::{self, Shared};
use crate::warpgroup::Warpgroups;
use products::Products;

/// Every thread.
const ALL: u32 = u32::MAX;

/// What a warp sees of the block it is in.
pub struct World<'a> {
    pub memory: &'a Memory,
    pub shared: &'a mut Shared,
    pub warpgroups: &'a mut Warpgroups,
    pub mbarriers: &'a mut Mbarriers,
    pub parameter: &'a [u8],
    pub block: [u32; 3],
    pub blocks: [u32; 3],
    pub block_number: u32,
    pub threads: u32,
}

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It came to a barrier of so many threads.
    Barrier {
        number: usize,
        threads: u32,
    },
    /// At an mbarrier the phase of a parity has not ended.
    Phase {
        address: u64,
        odd: u32,
    },
    Done,
}

/// What went wrong, where.
pub struct Wrong {
    pub at: u32,
    pub lane: Option<u32>,
    pub what: String,
}

struct Group {
    at: u32,
    lanes: u32,
    /// Whether it waits for the others.
    waits: bool,
}

/// A copy under way, of a thread.
struct Arriving {
    lane: u32,
    to: u64,
    bytes: usize,
    value: u128,
}

pub struct Warp {
    number: u32,
    pub clock: Clock,
    narrow: Vec<Narrow>,
    wide: Vec<Wide>,
    predicates: Vec<u32>,
    groups: Vec<Group>,
    copies: Vec<Arriving>,
    products: Products,
}

/// What an instruction does to the order.
enum Next {
    Further,
    To(u32, u32),
    Stop(Stop),
    End(u32),
}

fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

impl Warp {
    pub fn new(number: u32, kernel: &Kernel) -> Warp {
        Warp {
            number,
            clock: Clock::new(number),
            narrow: vec![[u32::MAX; 32]; kernel.narrow],
            wide: vec![[u64::MAX; 32]; kernel.wide],
            predicates: vec![0; kernel.predicates],
            groups: Vec::new(),
            copies: Vec::new(),
            products: Products::new(if kernel.touched.is_empty() { 0 } else { kernel.narrow }),
        }
    }

    /// Begins anew, in another block.
    pub fn reset(&mut self) {
        self.narrow.fill([u32::MAX; 32]);
        self.wide.fill([u64::MAX; 32]);
        self.predicates.fill(0);
        self.copies.clear();
        self.products.reset();
        self.clock = Clock::new(self.number);
        self.groups = vec![Group { at: 0, lanes: ALL, waits: false }];
    }

    /// The instruction that its first thread is at.
    pub fn at(&self) -> u32 {
        self.groups.first().map_or(0, |group| group.at)
    }

    /// Runs until all threads stand at a barrier of several warps, wait for a phase to end, or are done.
    pub fn run(&mut self, kernel: &Kernel, world: &mut World) -> Result<Stop, Wrong> {
        loop {
            let Some(first) = self.first() else {
                return match self.groups.first() {
                    // A copy that nobody waited for goes nowhere.
                    None => Ok(Stop::Done),
                    Some(group) => Err(Wrong {
                        at: group.at,
                        lane: Some(group.lanes.trailing_zeros()),
                        what: "this needs every thread of the warp, and some went another way".to_owned(),
                    }),
                };
            };
            if let Some(stop) = self.run_group(first, kernel, world)? {
                return Ok(stop);
            }
        }
    }

    /// The group that goes first, joined by those that are where it is.
    fn first(&mut self) -> Option<usize> {
        let at = self.groups.iter().filter(|group| !group.waits).map(|group| group.at).min()?;
        let together = |group: &Group| group.at == at;
        let lanes = self.groups.iter().filter(|it| together(it)).fold(0, |lanes, group| lanes | group.lanes);
        self.groups.retain(|group| !together(group));
        self.groups.push(Group { at, lanes, waits: false });
        Some(self.groups.len() - 1)
    }

    /// Runs a group until it meets another, its threads part, or it has to wait.
    fn run_group(&mut self, group: usize, kernel: &Kernel, world: &mut World) -> Result<Option<Stop>, Wrong> {
        let Group { mut at, lanes, .. } = self.groups[group];
        let alone = self.groups.len() == 1;
        loop {
            let Some(instruction) = kernel.code.get(at as usize) else {
                return Err(Wrong { at, lane: None, what: "the code ends without an end".to_owned() });
            };
            let active = match instruction.guard {
                None => lanes,
                Some((predicate, true)) => lanes & self.predicates[predicate as usize],
                Some((predicate, false)) => lanes & !self.predicates[predicate as usize],
            };
            if instruction.operation.is_together() && active != ALL && active != 0 {
                if active != lanes {
                    let what = "only some threads of a group are to do this".to_owned();
                    return Err(Wrong { at, lane: None, what });
                }
                self.groups[group] = Group { at, lanes, waits: true };
                return Ok(None);
            }
            if let Some(touched) = kernel.touched.get(at as usize)
                && active != 0
            {
                let watched = self.products.watch(instruction, touched);
                watched.map_err(|what| Wrong { at, lane: None, what })?;
            }
            let next = if active == 0 {
                Next::Further
            } else {
                self.carry_out(instruction, active, world).map_err(|(lane, what)| Wrong { at, lane, what })?
            };
            match next {
                Next::Further => at += 1,
                Next::Stop(stop) => {
                    self.groups[group] = Group { at: at + 1, lanes, waits: false };
                    return Ok(Some(stop));
                }
                Next::To(target, going) if going == lanes && alone => at = target,
                Next::To(target, going) => {
                    self.groups.swap_remove(group);
                    self.groups.push(Group { at: target, lanes: going, waits: false });
                    if going != lanes {
                        self.groups.push(Group { at: at + 1, lanes: lanes & !going, waits: false });
                    }
                    return Ok(None);
                }
                Next::End(ending) => {
                    self.groups.swap_remove(group);
                    if ending != lanes {
                        self.groups.push(Group { at: at + 1, lanes: lanes & !ending, waits: false });
                    }
                    return Ok(None);
                }
            }
            if !alone && self.groups.iter().any(|group| group.at == at) {
                self.groups[group].at = at;
                return Ok(None);
            }
        }
    }

    #[inline(always)]
    fn read(&self, operand: Operand) -> Narrow {
        match operand {
            Operand::Register(register) => self.narrow[register as usize],
            Operand::Number(number) => [number as u32; 32],
        }
    }

    #[inline(always)]
    fn read_wide(&self, operand: Operand) -> Wide {
        match operand {
            Operand::Register(register) => self.wide[register as usize],
            Operand::Number(number) => [number; 32],
        }
    }

    #[inline(always)]
    fn write(&mut self, to: Register, active: u32, value: &Narrow) {
        let register = &mut self.narrow[to as usize];
        if active == ALL {
            *register = *value;
        } else {
            lanes(active).for_each(|lane| register[lane] = value[lane]);
        }
    }

    #[inline(always)]
    fn write_wide(&mut self, to: Register, active: u32, value: &Wide) {
        let register = &mut self.wide[to as usize];
        if active == ALL {
            *register = *value;
        } else {
            lanes(active).for_each(|lane| register[lane] = value[lane]);
        }
    }

    fn write_predicate(&mut self, to: Register, active: u32, value: u32) {
        let register = &mut self.predicates[to as usize];
        *register = *register & !active | value & active;
    }

    fn addresses(&self, address: Address) -> Wide {
        let base = if address.narrow { self.read(address.base).map(u64::from) } else { self.read_wide(address.base) };
        base.map(|base| base.wrapping_add_signed(address.offset))
    }

    fn who(&self, lane: usize) -> shared::Who<'_> {
        shared::Who { clock: &self.clock, lane: lane as u32 }
    }

    fn who_globally(&self, world: &World, lane: usize) -> memory::Who<'_> {
        memory::Who { block: world.block_number, clock: &self.clock, thread: self.number * 32 + lane as u32 }
    }

    /// Carries an instruction out for some threads; what is wrong is told with the thread.
    fn carry_out(
        &mut self,
        instruction: &Instruction,
        active: u32,
        world: &mut World,
    ) -> Result<Next, (Option<u32>, String)> {
        use Operation as O;
        match &instruction.operation {
            O::Unary(what, to, a) => {
                let value = unary(*what, &self.read(*a));
                self.write(*to, active, &value);
            }
            O::Binary { what, half, to, a, b } => {
                let mut value = binary(*what, &self.read(*a), &self.read(*b));
                if *half {
                    value = value.map(|value| value & 0xffff);
                }
                self.write(*to, active, &value);
            }
            O::Ternary(what, to, [a, b, c]) => {
                let value = ternary(*what, &self.read(*a), &self.read(*b), &self.read(*c));
                self.write(*to, active, &value);
            }
            O::Move(to, from) => {
                let value = self.read(*from);
                self.write(*to, active, &value);
            }
            O::Special(to, special) => {
                let value = self.special(*special, world);
                self.write(*to, active, &value);
            }
            O::Pack(to, [low, high]) => {
                let (low, high) = (self.read(*low), self.read(*high));
                let value = zip(&low, &high, |low, high| low & 0xffff | high << 16);
                self.write(*to, active, &value);
            }
            O::Unpack([low, high], from) => {
                let value = self.read(*from);
                self.write(*low, active, &value.map(|value| value & 0xffff));
                self.write(*high, active, &value.map(|value| value >> 16));
            }
            O::WideUnary(what, to, a) => {
                let value = wide_unary(*what, &self.read_wide(*a)).ok_or_else(|| unknown(instruction))?;
                self.write_wide(*to, active, &value);
            }
            O::WideBinary(what, to, a, b) => {
                let a = self.read_wide(*a);
                let value = match what {
                    Binary::ShiftLeft | Binary::ShiftRightSigned | Binary::ShiftRightUnsigned => {
                        wide_shift(*what, &a, &self.read(*b))
                    }
                    _ => wide_binary(*what, &a, &self.read_wide(*b)).ok_or_else(|| unknown(instruction))?,
                };
                self.write_wide(*to, active, &value);
            }
            O::WideMultiplyAdd(to, [a, b, c]) => {
                let (a, b, c) = (self.read_wide(*a), self.read_wide(*b), self.read_wide(*c));
                let value = std::array::from_fn(|at| a[at].wrapping_mul(b[at]).wrapping_add(c[at]));
                self.write_wide(*to, active, &value);
            }
            O::WideExtract { to, from, first, length } => {
                let (from, first, length) = (self.read_wide(*from), self.read(*first), self.read(*length));
                let value = std::array::from_fn(|at| {
                    let mask = 1u64.checked_shl(length[at] & 0xff).map_or(u64::MAX, |bit| bit - 1);
                    from[at].checked_shr(first[at] & 0xff).unwrap_or(0) & mask
                });
                self.write_wide(*to, active, &value);
            }
            O::WideMove(to, from) => {
                let value = self.read_wide(*from);
                self.write_wide(*to, active, &value);
            }
            O::WidePack(to, [low, high]) => {
                let (low, high) = (self.read(*low), self.read(*high));
                let value = std::array::from_fn(|at| u64::from(low[at]) | u64::from(high[at]) << 32);
                self.write_wide(*to, active, &value);
            }
            O::WideUnpack([low, high], from) => {
                let value = self.read_wide(*from);
                self.write(*low, active, &value.map(|value| value as u32));
                self.write(*high, active, &value.map(|value| (value >> 32) as u32));
            }
            O::DoubleMultiplyAdd(to, [a, b, c]) => {
                let [a, b, c] = [*a, *b, *c].map(|operand| self.read_wide(operand).map(f64::from_bits));
                let value = std::array::from_fn(|at| a[at].mul_add(b[at], c[at]).to_bits());
                self.write_wide(*to, active, &value);
            }
            O::DoubleAdd(to, a, b) => {
                let [a, b] = [*a, *b].map(|operand| self.read_wide(operand).map(f64::from_bits));
                let value = std::array::from_fn(|at| (a[at] + b[at]).to_bits());
                self.write_wide(*to, active, &value);
            }
            O::ToDouble(to, from) => {
                let value = self.read(*from).map(|from| f64::from(float(from)).to_bits());
                self.write_wide(*to, active, &value);
            }
            O::FromDouble(to, from) => {
                let value = self.read_wide(*from).map(|from| bits(f64::from_bits(from) as f32));
                self.write(*to, active, &value);
            }
            O::MultiplyWide { signed, to, a, b, more } => {
                let (a, b) = (self.read(*a), self.read(*b));
                let more = more.map_or([0; 32], |more| self.read_wide(more));
                let product = |a: u32, b: u32| match signed {
                    true => (i64::from(a.cast_signed()) * i64::from(b.cast_signed())).cast_unsigned(),
                    false => u64::from(a) * u64::from(b),
                };
                let value = std::array::from_fn(|at| product(a[at], b[at]).wrapping_add(more[at]));
                self.write_wide(*to, active, &value);
            }
            O::MultiplyHalves { signed, to, a, b } => {
                let (a, b) = (self.read(*a), self.read(*b));
                let value = match signed {
                    true => zip(&a, &b, |a, b| (i32::from(a as i16) * i32::from(b as i16)).cast_unsigned()),
                    false => zip(&a, &b, |a, b| (a & 0xffff) * (b & 0xffff)),
                };
                self.write(*to, active, &value);
            }
            O::Widen { signed, to, from } => {
                let from = self.read(*from);
                let value = match signed {
                    true => from.map(|from| i64::from(from.cast_signed()).cast_unsigned()),
                    false => from.map(u64::from),
                };
                self.write_wide(*to, active, &value);
            }
            O::Narrow { bits, to, from } => {
                let mask = if *bits == 32 { u32::MAX } else { 0xffff };
                let value = self.read_wide(*from).map(|from| from as u32 & mask);
                self.write(*to, active, &value);
            }
            O::Halve { signed, to, from } => {
                let from = self.read(*from);
                let value = match signed {
                    true => from.map(|from| i32::from(from as i16).cast_unsigned()),
                    false => from.map(|from| from & 0xffff),
                };
                self.write(*to, active, &value);
            }
            O::Select(to, a, b, by) => {
                let (a, b, by) = (self.read(*a), self.read(*b), self.predicates[*by as usize]);
                let value = std::array::from_fn(|at| if by >> at & 1 == 1 { a[at] } else { b[at] });
                self.write(*to, active, &value);
            }
            O::WideSelect(to, a, b, by) => {
                let (a, b, by) = (self.read_wide(*a), self.read_wide(*b), self.predicates[*by as usize]);
                let value = std::array::from_fn(|at| if by >> at & 1 == 1 { a[at] } else { b[at] });
                self.write_wide(*to, active, &value);
            }
            O::Compare { compared, relation, to, a, b } => {
                let value = match compared {
                    Compared::Unsigned => order(&self.read(*a), &self.read(*b), *relation, |a| a),
                    Compared::Signed => order(&self.read(*a), &self.read(*b), *relation, u32::cast_signed),
                    Compared::Float => order(&self.read(*a), &self.read(*b), *relation, float),
                    Compared::FloatOrUnordered => {
                        let (a, b) = (self.read(*a), self.read(*b));
                        order(&a, &b, *relation, float) | order(&a, &b, Relation::Unordered, float)
                    }
                    Compared::Half => order(&self.read(*a), &self.read(*b), *relation, half),
                    Compared::WideUnsigned => order(&self.read_wide(*a), &self.read_wide(*b), *relation, |a| a),
                    Compared::WideSigned => {
                        order(&self.read_wide(*a), &self.read_wide(*b), *relation, u64::cast_signed)
                    }
                };
                self.write_predicate(*to, active, value);
            }
            O::Logic(what, to, a, b) => {
                let (a, b) = (self.predicates[*a as usize], self.predicates[*b as usize]);
                let value = match what {
                    Logic::And => a & b,
                    Logic::Or => a | b,
                    Logic::Xor => a ^ b,
                };
                self.write_predicate(*to, active, value);
            }
            O::Negation(to, a) => {
                let value = !self.predicates[*a as usize];
                self.write_predicate(*to, active, value);
            }
            O::MovePredicate(to, a) => {
                let value = self.predicates[*a as usize];
                self.write_predicate(*to, active, value);
            }
            O::Load { space, bytes, to, from } => self.load(*space, *bytes, to, *from, active, world)?,
            O::Store { space, bytes, to, from } => self.store(*space, *bytes, *to, from, active, world)?,
            O::CopyAsync { to, from, bytes, read } => self.copy_async(*to, *from, *bytes, *read, active, world)?,
            O::AwaitCopies => self.await_copies(active, world)?,
            O::Barrier { number, threads } => {
                return Ok(Next::Stop(Stop::Barrier { number: *number, threads: threads.unwrap_or(world.threads) }));
            }
            O::WarpBarrier => self.clock.meet(),
            O::BeginArrivals(at, count) => self.begin_arrivals(*at, *count, active, world)?,
            O::Arrive(to, at) => self.arrive(*to, *at, active, world)?,
            O::ArriveAfterCopies(at) => self.arrive_after_copies(*at, world)?,
            O::AwaitPhase { to, at, parity } => {
                if let Some(stop) = self.await_phase(*to, *at, *parity, world)? {
                    return Ok(Next::Stop(stop));
                }
            }
            O::SetRegisters => self.step(instruction, [0; 3], world)?,
            O::Nothing => {}
            O::Exchange { how, to, from, lane, clamp } => {
                let (from, lane, clamp) = (self.read(*from), self.read(*lane), self.read(*clamp));
                let value = std::array::from_fn(|at| from[source(*how, at as u32, lane[at], clamp[at]) as usize]);
                self.write(*to, active, &value);
            }
            O::LoadMatrices { transposed, to, from } => self.load_matrices(*transposed, to, *from, world)?,
            O::StoreMatrices { to, from } => self.store_matrices(*to, from, world)?,
            O::TransposeMatrix(to, from) => {
                let value = transpose(&self.read(*from));
                self.write(*to, active, &value);
            }
            O::Multiply { factors, d, a, b, c } => {
                let (a, b, c) = (a.map(|a| self.read(a)), b.map(|b| self.read(b)), c.map(|c| self.read(c)));
                let value = multiply(*factors, &a, &b, &c);
                for (to, value) in d.iter().zip(&value) {
                    self.write(*to, active, value);
                }
            }
            O::FenceProxy => world.shared.fence(&mut self.clock, active),
            O::FenceProducts => self.fence_products(instruction, world)?,
            O::MultiplyAsync(product) => self.multiply_async(instruction, product, world)?,
            O::CommitProducts => self.commit_products(instruction, world)?,
            O::AwaitProducts(left) => self.await_products(instruction, *left, world)?,
            O::Exit if self.products.are_under_way() => {
                return Err((None, "the kernel ends with a wgmma that was not waited for".to_owned()));
            }
            O::Branch(target) => return Ok(Next::To(*target, active)),
            O::Exit => return Ok(Next::End(active)),
        }
        Ok(Next::Further)
    }

    fn special(&self, special: Special, world: &World) -> Narrow {
        match special {
            Special::Thread => std::array::from_fn(|lane| self.number * 32 + lane as u32),
            Special::Lane => std::array::from_fn(|lane| lane as u32),
            Special::Threads => [world.threads; 32],
            Special::Block(at) => [world.block[at]; 32],
            Special::Blocks(at) => [world.blocks[at]; 32],
            Special::Zero => [0; 32],
            Special::One => [1; 32],
        }
    }
}

fn unknown(instruction: &Instruction) -> (Option<u32>, String) {
    (None, format!("{:?} is not known of 64 bits", instruction.operation))
}
