//! One kernel: what a block knows when it starts, and the statements that all its threads run together.
//!
//! Comes in: a [`Kernel`]. Goes out: the text of its entry, taking a parameter as [`chunkwise_abi::gpu`] says. It trusts
//! the verifier of the tile program: places and variables are in scope and in range.

use super::call::{self, Call, Tensor};
use super::place::{self, Homes, Space};
use super::text::{self, Address, Pointer};
use super::{Launch, Options};
use crate::error::CompileError;
use crate::lower::tile_to_mlir::functions::Functions;
use crate::lower::tile_to_mlir::writer::{Ty, Val, Writer};
use crate::tile::ir::{
    Affine, BufferId, Compare, Cond, Expr, Index, Kernel, LocalId, Memory, Order, Stmt, Symbol, VarId,
};
use chunkwise_abi::gpu::Grid;
use std::collections::{BTreeSet, HashMap};

/// The value of a variable: what it is made of, and lanes that are known to be beside it.
pub(super) struct Lowering<'k> {
    pub kernel: &'k Kernel,
    pub options: &'k Options,
    pub w: Writer,
    pub functions: &'k mut Functions,
    pub homes: Homes,
    pub buffers: Vec<Address>,
    pub tensors: Vec<Tensor>,
    pub vars: HashMap<VarId, Val>,
    /// Where the values of locals are kept, one slot for each lane of a group.
    pub locals: HashMap<LocalId, Vec<Val>>,
    /// Lanes that a thread works on together: their variable and number.
    pub group: Option<(VarId, usize)>,
    /// Number of the thread in its block, in its warp, and of its warp.
    pub thread: Val,
    pub lane: Val,
    pub warp: Val,
    /// Tokens of the sequence, 32 bits.
    length: Option<Val>,
    /// Copies to shared memory are under way.
    pub under_way: bool,
    /// What was touched since the last barrier.
    read: BTreeSet<Memory>,
    written: BTreeSet<Memory>,
    /// Locals of the block that nests read: every thread computes them.
    common: BTreeSet<LocalId>,
}

/// The entry of one kernel.
pub fn lower(
    kernel: &Kernel,
    symbol: &str,
    options: &Options,
    functions: &mut Functions,
) -> Result<(String, Launch), CompileError> {
    let homes = place::place(kernel, options.products, options.shared_limit);
    let mut w = Writer::new(1);
    let thread = text::register(&mut w, "tid.x");
    let thirty_one = text::int(&mut w, 31);
    let five = text::int(&mut w, 5);
    let lane = w.op("and", thread, thirty_one, Ty::I32);
    let warp = w.op("lshr", thread, five, Ty::I32);
    let mut lowering = Lowering {
        kernel,
        options,
        w,
        functions,
        homes,
        buffers: Vec::new(),
        tensors: Vec::new(),
        vars: HashMap::new(),
        locals: HashMap::new(),
        group: None,
        thread,
        lane,
        warp,
        length: None,
        under_way: false,
        read: BTreeSet::new(),
        written: BTreeSet::new(),
        common: BTreeSet::new(),
    };
    locals_of_nests(&kernel.body, &mut lowering.common);
    let grid = grid(kernel);
    lowering.item(grid);
    lowering.body(&kernel.body, grid)?;
    let entry = lowering.w.finish(&call::entry(symbol, kernel.args.len()));
    let Homes { shared_bytes, workspace_bytes, .. } = lowering.homes;
    let threads = options.threads;
    Ok((entry, Launch { threads, registers: None, resident: 0, shared_bytes, workspace_bytes, grid }))
}

/// The outermost loop over chunks becomes blocks of the grid if its turns may run in any order and nothing but loads of
/// parameters stands around it.
fn grid(kernel: &Kernel) -> Grid {
    match kernel.body.last() {
        Some(Stmt::For { lo, hi, order: Order::Any, .. }) if lo.as_number() == Some(0) && hi.at_most.is_none() => {
            match (&hi.value.vars[..], &hi.value.symbols[..], hi.value.constant) {
                ([], [(Symbol::Chunks(tokens), 1)], 0) => {
                    Grid::Chunk { tokens: u32::try_from(*tokens).expect("a chunk is small") }
                }
                _ => Grid::Item,
            }
        }
        _ => Grid::Item,
    }
}

/// Locals declared outside nests that a nest reads.
fn locals_of_nests(body: &[Stmt], found: &mut BTreeSet<LocalId>) {
    for stmt in body {
        match stmt {
            Stmt::For { body, .. } | Stmt::If { body, .. } => locals_of_nests(body, found),
            Stmt::Lanes { body, .. } => {
                let (mut used, mut declared) = (BTreeSet::new(), BTreeSet::new());
                locals(body, &mut used, &mut declared);
                found.extend(used.difference(&declared));
            }
            Stmt::ReduceLanes { .. }
            | Stmt::Local { .. }
            | Stmt::Assign { .. }
            | Stmt::Store { .. }
            | Stmt::Matmul(_) => {}
        }
    }
}

fn locals(body: &[Stmt], used: &mut BTreeSet<LocalId>, declared: &mut BTreeSet<LocalId>) {
    for stmt in body {
        match stmt {
            Stmt::For { body, .. } | Stmt::If { body, .. } | Stmt::Lanes { body, .. } => locals(body, used, declared),
            Stmt::Local { local, value } => {
                declared.insert(*local);
                value.for_each_local(&mut |local| used.extend([local]));
            }
            Stmt::Assign { local, value } => {
                used.insert(*local);
                value.for_each_local(&mut |local| used.extend([local]));
            }
            Stmt::Store { value, .. } | Stmt::ReduceLanes { value, .. } => {
                value.for_each_local(&mut |local| used.extend([local]));
            }
            Stmt::Matmul(_) => {}
        }
    }
}

/// Whether a statement is one warp's work: it has nothing to spread over a block.
fn is_narrow(stmt: &Stmt) -> bool {
    match stmt {
        Stmt::For { order: Order::Any, .. } | Stmt::Lanes { .. } | Stmt::Matmul(_) => false,
        Stmt::For { body, .. } | Stmt::If { body, .. } => body.iter().all(is_narrow),
        Stmt::Local { .. } | Stmt::Assign { .. } | Stmt::Store { .. } | Stmt::ReduceLanes { .. } => true,
    }
}

/// Whether a statement holds a product, or a loop in order around something to spread.
fn is_sequential(stmt: &Stmt) -> bool {
    match stmt {
        Stmt::Matmul(_) => true,
        Stmt::For { body, .. } | Stmt::If { body, .. } => body.iter().any(is_sequential),
        Stmt::Lanes { .. }
        | Stmt::Local { .. }
        | Stmt::Assign { .. }
        | Stmt::Store { .. }
        | Stmt::ReduceLanes { .. } => false,
    }
}

impl Lowering<'_> {
    /// Finds the tensors of the block's item and the block's own memory.
    fn item(&mut self, grid: Grid) {
        let Call { block, workspace, length, tensors } = call::read(&mut self.w, &self.kernel.args, grid);
        self.length = Some(self.w.cast("trunc", length, Ty::I64, Ty::I32));
        self.tensors = tensors;

        let w = &mut self.w;
        let shared = w.raw_value(format_args!("llvm.mlir.addressof @shared : !llvm.ptr<3>"));
        let shared = Address { at: shared, space: Pointer::Shared };
        let own = w.i64(i64::try_from(self.homes.workspace_bytes).expect("scratch fits memory"));
        let skip = w.op("mul", block, own, Ty::I64);
        let start = w.op("add", workspace, skip, Ty::I64);
        let at = w.raw_value(format_args!("llvm.inttoptr {start} : i64 to !llvm.ptr<1>"));
        let workspace = Address { at, space: Pointer::Global };
        for home in self.homes.homes.clone() {
            let base = match home.space {
                Space::Shared => shared,
                Space::Workspace => workspace,
            };
            let address = text::bytes(&mut self.w, base, home.offset);
            self.buffers.push(address);
        }
    }

    fn body(&mut self, body: &[Stmt], grid: Grid) -> Result<(), CompileError> {
        let Grid::Chunk { .. } = grid else { return self.stmts(body) };
        let Some((Stmt::For { var, hi, body: turn, .. }, before)) = body.split_last() else {
            return self.stmts(body);
        };
        self.stmts(before)?;
        let chunk = text::register(&mut self.w, "ctaid.x");
        let chunks = self.index(hi);
        let real = self.w.icmp("slt", chunk, chunks, Ty::I32);
        self.w.open_if(real);
        self.vars.insert(*var, chunk);
        self.stmts(turn)?;
        self.w.end();
        Ok(())
    }

    /// Statements of the whole block.
    fn stmts(&mut self, body: &[Stmt]) -> Result<(), CompileError> {
        let mut rest = body;
        while let Some((first, after)) = rest.split_first() {
            let narrow = rest.iter().take_while(|stmt| is_narrow(stmt)).count();
            if narrow > 0 {
                let (section, after) = rest.split_at(narrow);
                self.narrow(section)?;
                rest = after;
                continue;
            }
            self.stmt(first)?;
            rest = after;
        }
        Ok(())
    }

    /// Statements without anything to spread: one warp runs them, and every thread what nests read of them.
    fn narrow(&mut self, section: &[Stmt]) -> Result<(), CompileError> {
        let (mut used, mut declared) = (BTreeSet::new(), BTreeSet::new());
        locals(section, &mut used, &mut declared);
        let mut all: BTreeSet<LocalId> = used;
        all.extend(&declared);
        if all.iter().any(|local| self.common.contains(local)) {
            // Every thread for itself; then nothing may be stored in between.
            if section.iter().any(stores) {
                return Err(CompileError::Bug {
                    pass: "tile-to-nvvm",
                    message: "a number that nests read is computed beside a store".to_owned(),
                    dump: crate::tile::text::print(self.kernel),
                });
            }
            self.before(section);
            self.in_thread(section);
            return Ok(());
        }
        for stmt in section {
            // Slots of locals stand before the branch.
            if let Stmt::Local { local, .. } = stmt {
                let slot = self.w.slot(Ty::F32);
                self.locals.insert(*local, vec![slot]);
            }
        }
        self.before(section);
        let zero = text::int(&mut self.w, 0);
        let first = self.w.icmp("eq", self.warp, zero, Ty::I32);
        self.w.open_if(first);
        self.in_warp(section);
        self.w.end();
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), CompileError> {
        match stmt {
            Stmt::For { order: Order::Any, .. } if !is_sequential(stmt) => {
                self.before(std::slice::from_ref(stmt));
                self.spread(stmt);
            }
            Stmt::For { var, lo, hi, order, body } => {
                // There may be no turn, and then none of the barriers in it.
                self.settle();
                let (lo, hi) = (self.index(lo), self.index(hi));
                self.enter_loop(*var, lo, hi, *order);
                self.stmts(body)?;
                // The next turn starts as this one did.
                self.barrier();
                self.w.end();
            }
            Stmt::If { cond, body } => {
                self.settle();
                let holds = self.cond(cond);
                self.w.open_if(holds);
                self.stmts(body)?;
                self.w.end();
            }
            Stmt::Lanes { .. } => {
                self.before(std::slice::from_ref(stmt));
                self.spread(stmt);
            }
            Stmt::Matmul(product) => {
                self.before(std::slice::from_ref(stmt));
                self.matmul(product);
            }
            Stmt::Local { .. } | Stmt::Assign { .. } | Stmt::Store { .. } | Stmt::ReduceLanes { .. } => {
                self.narrow(std::slice::from_ref(stmt))?;
            }
        }
        Ok(())
    }

    /// Puts a barrier before statements that touch what is still being written, or write what is still being read.
    fn before(&mut self, stmts: &[Stmt]) {
        let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
        place::touched(stmts, &mut reads, &mut writes);
        let (reads, writes) = (self.with_neighbours(reads), self.with_neighbours(writes));
        let conflict =
            !self.written.is_disjoint(&reads) || !self.written.is_disjoint(&writes) || !self.read.is_disjoint(&writes);
        if conflict {
            self.barrier();
        }
        self.read.extend(reads);
        self.written.extend(writes);
    }

    /// Leaves nothing unfinished behind.
    fn settle(&mut self) {
        if self.under_way || !self.read.is_empty() || !self.written.is_empty() {
            self.barrier();
        }
    }

    /// Waits for all threads, and for what they copy.
    fn barrier(&mut self) {
        if self.under_way {
            text::command(&mut self.w, "llvm.nvvm.cp.async.wait.all", &[]);
            self.under_way = false;
        }
        text::barrier(&mut self.w);
        self.read.clear();
        self.written.clear();
    }

    /// Memories, and those that share bytes with them.
    fn with_neighbours(&self, memories: BTreeSet<Memory>) -> BTreeSet<Memory> {
        let mut all = memories.clone();
        for memory in memories {
            if let Memory::Buffer(buffer) = memory {
                all.extend(self.homes.beside(buffer).map(Memory::Buffer));
            }
        }
        all
    }

    /// Opens a loop and binds its variable.
    pub fn enter_loop(&mut self, var: VarId, lo: Val, hi: Val, order: Order) {
        let one = text::int(&mut self.w, 1);
        let turn = self.w.open_loop(lo, hi, one, Ty::I32);
        let value = match order {
            Order::Forward | Order::Any => turn,
            Order::Reverse => {
                let ends = self.w.op("add", lo, hi, Ty::I32);
                let top = self.w.op("sub", ends, one, Ty::I32);
                self.w.op("sub", top, turn, Ty::I32)
            }
        };
        self.vars.insert(var, value);
    }

    /// The value of an affine form, 32 bits.
    pub fn affine(&mut self, affine: &Affine) -> Val {
        let mut sum: Option<Val> = None;
        let mut terms: Vec<(Val, i64)> = Vec::new();
        for (symbol, factor) in &affine.symbols {
            let val = self.symbol(*symbol);
            terms.push((val, *factor));
        }
        terms.extend(affine.vars.iter().map(|(var, factor)| (self.vars[var], *factor)));
        for (val, factor) in terms {
            let term = if factor == 1 {
                val
            } else {
                let factor = text::int(&mut self.w, factor);
                self.w.op("mul", val, factor, Ty::I32)
            };
            sum = Some(match sum {
                None => term,
                Some(sum) => self.w.op("add", sum, term, Ty::I32),
            });
        }
        match sum {
            None => text::int(&mut self.w, affine.constant),
            Some(sum) if affine.constant == 0 => sum,
            Some(sum) => {
                let constant = text::int(&mut self.w, affine.constant);
                self.w.op("add", sum, constant, Ty::I32)
            }
        }
    }

    fn symbol(&mut self, symbol: Symbol) -> Val {
        let length = self.length.expect("set when the block starts");
        match symbol {
            Symbol::Length => length,
            Symbol::Chunks(tokens) => {
                let size = i64::try_from(tokens).expect("a chunk is small");
                let (more, size) = (text::int(&mut self.w, size - 1), text::int(&mut self.w, size));
                let sum = self.w.op("add", length, more, Ty::I32);
                self.w.op("udiv", sum, size, Ty::I32)
            }
        }
    }

    /// The value of an index.
    pub fn index(&mut self, index: &Index) -> Val {
        let value = self.affine(&index.value);
        match &index.at_most {
            None => value,
            Some(limit) => {
                let limit = self.affine(limit);
                self.w.intrinsic("smin", &[value, limit], Ty::I32)
            }
        }
    }

    /// Whether a condition holds.
    pub fn cond(&mut self, cond: &Cond) -> Val {
        let (lhs, rhs) = (self.affine(&cond.lhs), self.affine(&cond.rhs));
        let predicate = match cond.op {
            Compare::Lt => "slt",
            Compare::Le => "sle",
            Compare::Eq => "eq",
        };
        self.w.icmp(predicate, lhs, rhs, Ty::I32)
    }

    /// Where a buffer starts.
    pub fn buffer(&self, buffer: BufferId) -> Address {
        self.buffers[buffer.0 as usize]
    }

    /// A number that no lane has a part in.
    pub fn uniform(&mut self, expr: &Expr) -> Val {
        self.values(expr, 1)[0]
    }
}

fn stores(stmt: &Stmt) -> bool {
    match stmt {
        Stmt::Store { .. } | Stmt::ReduceLanes { .. } | Stmt::Matmul(_) => true,
        Stmt::For { body, .. } | Stmt::If { body, .. } | Stmt::Lanes { body, .. } => body.iter().any(stores),
        Stmt::Local { .. } | Stmt::Assign { .. } => false,
    }
}
