//! Values of a token: one number for each register that a thread holds of them.
//!
//! Comes in: a node. Goes out: its numbers, computed when they are first asked for, so that no more of them are alive
//! than are needed. Products that are added or subtracted become fused multiply-adds here, so that the result does not
//! depend on what a later pass makes of them. Sums are made in a fixed order, and are the same in all threads that
//! share them.

use super::kernel::Scanning;
use super::spread::WARP;
use super::token::refuse;
use crate::error::CompileError;
use crate::graph::ir::{Binary, Compare, DimId, Graph, NodeId, Op};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::expr;
use crate::lower::tile_to_nvvm::text::{self, Address, Pointer};

/// Refuses what has no lowering here.
pub fn check(graph: &Graph) -> Result<(), CompileError> {
    for node in &graph.nodes {
        match &node.op {
            Op::Input { .. }
            | Op::Const(_)
            | Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Sum(..)
            | Op::MaxOver(..)
            | Op::Contract(..)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::StopGradient(_) => {}
            Op::BodyInput(_)
            | Op::Guard(..)
            | Op::Diagonal(..)
            | Op::DiagonalPart(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::Segment { .. }
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => return Err(refuse("an operation on several tokens")),
        }
    }
    Ok(())
}

/// What is summed.
#[derive(Clone, Copy)]
enum Summed {
    Value(NodeId),
    Product(NodeId, NodeId),
    Largest(NodeId),
}

impl Scanning<'_> {
    /// All numbers of a node.
    pub fn values(&mut self, node: NodeId) -> Vec<Val> {
        (0..self.found[node.index()].len()).map(|register| self.value(node, register)).collect()
    }

    /// One number of a node.
    fn value(&mut self, node: NodeId, register: usize) -> Val {
        if let Some(found) = self.found[node.index()][register] {
            return found;
        }
        let graph = self.graph;
        let here = graph.node(node);
        let value = match &here.op {
            // The rounding to float32 is what a constant means.
            #[expect(clippy::cast_possible_truncation)]
            Op::Const(number) => self.w.f32(*number as f32, 0),
            Op::Unary(function, x) => {
                let x = self.beside(*x, &here.dims, register);
                expr::unary(&mut self.w, self.functions, *function, x)
            }
            Op::Binary(function, a, b) => self.binary(*function, *a, *b, &here.dims, register),
            Op::Select { op, lhs, rhs, then, otherwise } => {
                let operands = [*lhs, *rhs, *then, *otherwise].map(|id| self.beside(id, &here.dims, register));
                let [lhs, rhs, then, otherwise] = operands;
                let predicate = match op {
                    Compare::Lt => "olt",
                    Compare::Le => "ole",
                    Compare::Eq => "oeq",
                };
                let holds = self.w.fcmp(predicate, lhs, rhs, Ty::F32);
                self.w.select(holds, then, otherwise, Ty::F32)
            }
            Op::Broadcast(x) | Op::StopGradient(x) => self.beside(*x, &here.dims, register),
            // The dimensions named here stand whole in every thread: positions are registers.
            Op::Index(x, dim, position) => {
                let dims = [&here.dims[..], &[*dim]].concat();
                let mut registers = self.spread.split(&here.dims, register);
                registers.push(*position);
                self.at(*x, &dims, &registers)
            }
            Op::Rename(x, from, to) => {
                let dims: Vec<DimId> = here.dims.iter().map(|dim| if dim == to { *from } else { *dim }).collect();
                let registers = self.spread.split(&here.dims, register);
                self.at(*x, &dims, &registers)
            }
            Op::Stack(parts, dim) => {
                let registers = self.spread.split(&here.dims, register);
                let which = here.dims.iter().position(|other| other == dim).map_or(0, |at| registers[at]);
                match parts[which] {
                    Some(part) => self.at(part, &here.dims, &registers),
                    None => self.w.f32(0.0, 0),
                }
            }
            Op::Sum(x, over) => self.summed(node, Summed::Value(*x), over)[register],
            Op::MaxOver(x, dim) => self.summed(node, Summed::Largest(*x), &[*dim])[register],
            Op::Contract(a, b, over) => self.summed(node, Summed::Product(*a, *b), over)[register],
            Op::Input { .. }
            | Op::BodyInput(_)
            | Op::Guard(..)
            | Op::Diagonal(..)
            | Op::DiagonalPart(..)
            | Op::Split(..)
            | Op::Merge(..)
            | Op::Segment { .. }
            | Op::SegmentGrad { .. }
            | Op::Boundary { .. }
            | Op::BoundaryGrad { .. }
            | Op::Gated { .. }
            | Op::Solve(_)
            | Op::Inverse(_)
            | Op::Scan(_)
            | Op::ScanResult(..) => unreachable!("inputs are read before, and the others were refused"),
        };
        self.found[node.index()][register] = Some(value);
        value
    }

    /// The number of an operand that stands beside a register of a value with these dimensions.
    fn beside(&mut self, operand: NodeId, dims: &[DimId], register: usize) -> Val {
        let registers = self.spread.split(dims, register);
        self.at(operand, dims, &registers)
    }

    /// The number of a node at registers of dimensions.
    fn at(&mut self, node: NodeId, dims: &[DimId], registers: &[usize]) -> Val {
        let graph = self.graph;
        let register = self.spread.beside(&graph.node(node).dims, dims, registers);
        self.value(node, register)
    }

    fn binary(&mut self, function: Binary, a: NodeId, b: NodeId, dims: &[DimId], register: usize) -> Val {
        let graph = self.graph;
        let product = |this: &Self, id: NodeId| {
            let Op::Binary(Binary::Mul, x, y) = graph.node(id).op else { return None };
            let registers = this.spread.split(dims, register);
            let at = this.spread.beside(&graph.node(id).dims, dims, &registers);
            // One that is there already needs no second multiplication.
            this.found[id.index()][at].is_none().then_some((x, y))
        };
        // (factors, addend, negate the product, negate the addend)
        let fused = match function {
            Binary::Add => match (product(self, b), product(self, a)) {
                (Some(factors), _) => Some((factors, a, false, false)),
                (None, Some(factors)) => Some((factors, b, false, false)),
                (None, None) => None,
            },
            Binary::Sub => match (product(self, b), product(self, a)) {
                (Some(factors), _) => Some((factors, a, true, false)),
                (None, Some(factors)) => Some((factors, b, false, true)),
                (None, None) => None,
            },
            Binary::Mul | Binary::Div | Binary::Min | Binary::Max | Binary::Pow => None,
        };
        let Some(((x, y), c, minus_product, minus_addend)) = fused else {
            let (a, b) = (self.beside(a, dims, register), self.beside(b, dims, register));
            return self.functions.binary(&mut self.w, function, a, b, 0);
        };
        let [x, y, c] = [x, y, c].map(|id| self.beside(id, dims, register));
        let x = if minus_product { self.w.negate(x, Ty::F32) } else { x };
        let c = if minus_addend { self.w.negate(c, Ty::F32) } else { c };
        self.w.intrinsic("fma", &[x, y, c], Ty::F32)
    }

    /// Computes all numbers of a sum: over this thread's registers, over lanes, over warps.
    fn summed(&mut self, node: NodeId, summed: Summed, over: &[DimId]) -> Vec<Val> {
        let dims = self.graph.node(node).dims.clone();
        let mut sums = self.over_registers(&dims, summed, over);
        let shares: Vec<_> = over.iter().map(|dim| *self.spread.share(*dim)).collect();
        for share in &shares {
            let mut distance = 1;
            while distance < share.lanes {
                for sum in &mut sums {
                    let other = self.exchanged(*sum, distance * share.lane_step);
                    *sum = self.joined(summed, *sum, other);
                }
                distance *= 2;
            }
        }
        if shares.iter().any(|share| share.warps > 1) {
            self.over_warps(summed, over, &mut sums);
        }
        self.found[node.index()] = sums.iter().copied().map(Some).collect();
        sums
    }

    fn joined(&mut self, summed: Summed, a: Val, b: Val) -> Val {
        let function = match summed {
            Summed::Value(_) | Summed::Product(..) => Binary::Add,
            Summed::Largest(_) => Binary::Max,
        };
        self.functions.binary(&mut self.w, function, a, b, 0)
    }

    /// What a thread's own registers sum up to.
    fn over_registers(&mut self, dims: &[DimId], summed: Summed, over: &[DimId]) -> Vec<Val> {
        let all = [dims, over].concat();
        let none = match summed {
            Summed::Value(_) | Summed::Product(..) => 0.0,
            Summed::Largest(_) => f32::NEG_INFINITY,
        };
        let mut sums: Vec<Option<Val>> = vec![None; self.spread.registers(dims)];
        for inside in 0..self.spread.registers(over) {
            let within = self.spread.split(over, inside);
            let mut there: Option<Val> = None;
            for (dim, register) in over.iter().zip(&within) {
                if let Some(here) = self.valid(*dim, *register) {
                    there = Some(match there {
                        None => here,
                        Some(there) => self.w.op("and", there, here, Ty::scalar(Elem::I1)),
                    });
                }
            }
            for (n, sum) in sums.iter_mut().enumerate() {
                let registers = [self.spread.split(dims, n), within.clone()].concat();
                let next = match (summed, *sum) {
                    (Summed::Value(x) | Summed::Largest(x), None) => self.at(x, &all, &registers),
                    (Summed::Value(x) | Summed::Largest(x), Some(sum)) => {
                        let x = self.at(x, &all, &registers);
                        self.joined(summed, sum, x)
                    }
                    (Summed::Product(a, b), None) => {
                        let (a, b) = (self.at(a, &all, &registers), self.at(b, &all, &registers));
                        self.w.op("fmul", a, b, Ty::F32)
                    }
                    (Summed::Product(a, b), Some(sum)) => {
                        let (a, b) = (self.at(a, &all, &registers), self.at(b, &all, &registers));
                        self.w.intrinsic("fma", &[a, b, sum], Ty::F32)
                    }
                };
                // Registers beyond the end hold anything.
                *sum = Some(match there {
                    None => next,
                    Some(there) => {
                        let before = sum.unwrap_or_else(|| self.w.f32(none, 0));
                        self.w.select(there, next, before, Ty::F32)
                    }
                });
            }
        }
        sums.into_iter().map(|sum| sum.expect("a dimension has at least one position")).collect()
    }

    /// The value of the lane whose number differs in one bit.
    fn exchanged(&mut self, value: Val, distance: usize) -> Val {
        let (all, clamp) = (text::int(&mut self.w, -1), text::int(&mut self.w, 31));
        let distance = text::int(&mut self.w, i64::try_from(distance).expect("a warp is small"));
        let operands = [(all, Ty::I32), (value, Ty::F32), (distance, Ty::I32), (clamp, Ty::I32)];
        text::intrinsic(&mut self.w, "llvm.nvvm.shfl.sync.bfly.f32", &operands, "f32")
    }

    /// Joins the sums of the warps that share dimensions, through shared memory that no other sum of the token uses.
    fn over_warps(&mut self, summed: Summed, over: &[DimId], sums: &mut [Val]) {
        let row = WARP * size_of::<f32>();
        let shared = self.w.raw_value(format_args!("llvm.mlir.addressof @shared : !llvm.ptr<3>"));
        let shared = Address { at: shared, space: Pointer::Shared };
        let own = text::bytes(&mut self.w, shared, self.shared_bytes);
        self.shared_bytes += self.spread.warps * sums.len() * row;
        let lane = text::element(&mut self.w, own, self.lane, Ty::I32, Elem::F32);
        let of_warp = text::int(&mut self.w, i64::try_from(sums.len() * WARP).expect("a block is small"));
        let rows = |this: &mut Self, warp: Val| {
            let at = this.w.op("mul", warp, of_warp, Ty::I32);
            text::element(&mut this.w, lane, at, Ty::I32, Elem::F32)
        };
        let mine = rows(self, self.warp);
        for (n, sum) in sums.iter().enumerate() {
            let to = text::bytes(&mut self.w, mine, n * row);
            text::store(&mut self.w, *sum, to, "f32", size_of::<f32>());
        }
        text::barrier(&mut self.w);
        // The warps that differ from this one only along what is summed over.
        let mut bits = 0;
        let mut warps = vec![0];
        for dim in over {
            let share = self.spread.share(*dim);
            bits |= (share.warps - 1) * share.warp_step;
            warps = (0..share.warps).flat_map(|n| warps.iter().map(move |w| w + n * share.warp_step)).collect();
        }
        let rest = text::int(&mut self.w, !i64::try_from(bits).expect("a block is small"));
        let first = self.w.op("and", self.warp, rest, Ty::I32);
        for (turn, warp) in warps.into_iter().enumerate() {
            let more = text::int(&mut self.w, i64::try_from(warp).expect("a block is small"));
            let warp = self.w.op("add", first, more, Ty::I32);
            let theirs = rows(self, warp);
            for (n, sum) in sums.iter_mut().enumerate() {
                let from = text::bytes(&mut self.w, theirs, n * row);
                let other = text::load(&mut self.w, from, Ty::F32, size_of::<f32>());
                *sum = if turn == 0 { other } else { self.joined(summed, *sum, other) };
            }
        }
    }
}
