//! Writes the text of one function in MLIR's `llvm` dialect, structured by `scf`.
//!
//! Comes in: operations by name with their operands and types. Goes out: text that parses. It knows MLIR's spelling
//! and nothing of what is computed. Constants and stack slots go to the head of the function, so that they dominate
//! every use and are written once.

use std::collections::HashMap;
use std::fmt::Write;

/// An SSA value of the function being written: its number, and which of several results it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Val {
    number: u32,
    member: Option<u16>,
}

impl std::fmt::Display for Val {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.member {
            None => write!(f, "%{}", self.number),
            Some(member) => write!(f, "%{}#{member}", self.number),
        }
    }
}

impl Val {
    /// Grows with the order in which values were made.
    pub fn order(self) -> (u32, Option<u16>) {
        (self.number, self.member)
    }
}

/// Type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    I1,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
    Ptr,
}

/// A scalar (`lanes` 0) or a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ty {
    pub elem: Elem,
    pub lanes: usize,
}

impl Ty {
    pub const I32: Ty = Ty::scalar(Elem::I32);
    pub const I64: Ty = Ty::scalar(Elem::I64);
    pub const F32: Ty = Ty::scalar(Elem::F32);
    pub const PTR: Ty = Ty::scalar(Elem::Ptr);
    /// One element.
    pub const fn scalar(elem: Elem) -> Ty {
        Ty { elem, lanes: 0 }
    }
    /// A vector of float32; a scalar for no lanes.
    pub const fn f32s(lanes: usize) -> Ty {
        Ty { elem: Elem::F32, lanes }
    }
    /// The same number of lanes of another element.
    pub const fn with(self, elem: Elem) -> Ty {
        Ty { elem, lanes: self.lanes }
    }
}

impl std::fmt::Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let elem = match self.elem {
            Elem::I1 => "i1",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::F16 => "f16",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
            Elem::Ptr => "!llvm.ptr",
        };
        if self.lanes == 0 { f.write_str(elem) } else { write!(f, "vector<{}x{elem}>", self.lanes) }
    }
}

/// The text of one function.
pub struct Writer {
    head: String,
    body: String,
    next: u32,
    depth: usize,
    constants: HashMap<(Ty, u64), Val>,
    ramps: HashMap<(usize, i64), Val>,
    masks: HashMap<(usize, usize, usize), Val>,
}

impl Writer {
    /// An empty function with so many parameters; those are the values `0..params`.
    pub fn new(params: usize) -> Writer {
        Writer {
            head: String::new(),
            body: String::new(),
            next: u32::try_from(params).expect("a handful of parameters"),
            depth: 2,
            constants: HashMap::new(),
            ramps: HashMap::new(),
            masks: HashMap::new(),
        }
    }

    /// Parameter `index`.
    pub fn param(&self, index: usize) -> Val {
        Val { number: u32::try_from(index).expect("a handful of parameters"), member: None }
    }

    /// The text of the function with this head (up to and without the opening brace), ready to stand in a module.
    pub fn finish(self, signature: &str) -> String {
        format!("  {signature} {{\n{}{}    llvm.return\n  }}\n", self.head, self.body)
    }

    /// As [`Writer::finish`], of a function that returns a value.
    pub fn finish_with(self, signature: &str, result: Val, ty: Ty) -> String {
        format!("  {signature} {{\n{}{}    llvm.return {result} : {ty}\n  }}\n", self.head, self.body)
    }

    fn fresh(&mut self) -> Val {
        let val = Val { number: self.next, member: None };
        self.next += 1;
        val
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        for _ in 0..self.depth {
            self.body.push_str("  ");
        }
        self.body.write_fmt(text).expect("writing to a string");
        self.body.push('\n');
    }

    fn head_line(&mut self, text: std::fmt::Arguments<'_>) {
        self.head.push_str("    ");
        self.head.write_fmt(text).expect("writing to a string");
        self.head.push('\n');
    }

    /// An operation without result, spelled out.
    pub fn raw(&mut self, text: std::fmt::Arguments<'_>) {
        self.line(text);
    }

    /// An operation with one result, spelled out.
    pub fn raw_value(&mut self, text: std::fmt::Arguments<'_>) -> Val {
        let val = self.fresh();
        self.line(format_args!("{val} = {text}"));
        val
    }

    /// A float32 number, in every lane.
    pub fn f32(&mut self, value: f32, lanes: usize) -> Val {
        self.constant(Ty::f32s(lanes), u64::from(value.to_bits()))
    }

    /// A float64 number, in every lane.
    pub fn f64(&mut self, value: f64, lanes: usize) -> Val {
        self.constant(Ty { elem: Elem::F64, lanes }, value.to_bits())
    }

    /// A 64-bit integer.
    pub fn i64(&mut self, value: i64) -> Val {
        self.constant(Ty::I64, value.cast_unsigned())
    }

    /// An integer of a given type, in every lane.
    pub fn int(&mut self, ty: Ty, value: i64) -> Val {
        self.constant(ty, value.cast_unsigned())
    }

    fn constant(&mut self, ty: Ty, bits: u64) -> Val {
        if let Some(val) = self.constants.get(&(ty, bits)) {
            return *val;
        }
        let val = self.fresh();
        let literal = match ty.elem {
            Elem::F16 => format!("0x{bits:04X}"),
            Elem::F32 => format!("0x{bits:08X}"),
            Elem::F64 => format!("0x{bits:016X}"),
            Elem::I1 => if bits & 1 == 1 { "true" } else { "false" }.to_string(),
            Elem::I16 | Elem::I32 | Elem::I64 | Elem::Ptr => bits.cast_signed().to_string(),
        };
        match (ty.lanes, ty.elem) {
            (0, Elem::I1) => self.head_line(format_args!("{val} = llvm.mlir.constant({literal}) : i1")),
            (0, _) => self.head_line(format_args!("{val} = llvm.mlir.constant({literal} : {ty}) : {ty}")),
            _ => self.head_line(format_args!("{val} = llvm.mlir.constant(dense<{literal}> : {ty}) : {ty}")),
        }
        self.constants.insert((ty, bits), val);
        val
    }

    /// A mask, true for the lanes `from .. to`.
    pub fn mask(&mut self, lanes: usize, from: usize, to: usize) -> Val {
        if let Some(val) = self.masks.get(&(lanes, from, to)) {
            return *val;
        }
        let ty = Ty { elem: Elem::I1, lanes };
        let bits: Vec<&str> = (0..lanes).map(|n| if (from..to).contains(&n) { "true" } else { "false" }).collect();
        let val = self.fresh();
        self.head_line(format_args!("{val} = llvm.mlir.constant(dense<[{}]> : {ty}) : {ty}", bits.join(", ")));
        self.masks.insert((lanes, from, to), val);
        val
    }

    /// Stack memory for one value.
    pub fn slot(&mut self, ty: Ty) -> Val {
        let one = self.i64(1);
        let val = self.fresh();
        self.head_line(format_args!("{val} = llvm.alloca {one} x {ty} : (i64) -> !llvm.ptr"));
        val
    }

    /// An operation on operands of one type with a result of that type: `fadd`, `mul`, `and`, …
    pub fn op(&mut self, name: &str, lhs: Val, rhs: Val, ty: Ty) -> Val {
        self.raw_value(format_args!("llvm.{name} {lhs}, {rhs} : {ty}"))
    }

    /// An intrinsic on operands of one type with a result of that type: `fmuladd`, `smin`, `fabs`, …
    pub fn intrinsic(&mut self, name: &str, operands: &[Val], ty: Ty) -> Val {
        let names: Vec<String> = operands.iter().map(Val::to_string).collect();
        let types = vec![ty.to_string(); operands.len()].join(", ");
        self.raw_value(format_args!("llvm.intr.{name}({}) : ({types}) -> {ty}", names.join(", ")))
    }

    /// A change of type: `bitcast`, `sext`, `fpext`, `trunc`, …
    pub fn cast(&mut self, name: &str, value: Val, from: Ty, to: Ty) -> Val {
        self.raw_value(format_args!("llvm.{name} {value} : {from} to {to}"))
    }

    /// Comparison of integers: `slt`, `sle`, `eq`, …; gives i1 per lane.
    pub fn icmp(&mut self, predicate: &str, lhs: Val, rhs: Val, ty: Ty) -> Val {
        self.raw_value(format_args!("llvm.icmp \"{predicate}\" {lhs}, {rhs} : {ty}"))
    }

    /// Comparison of floats: `olt`, `uno`, …; gives i1 per lane.
    pub fn fcmp(&mut self, predicate: &str, lhs: Val, rhs: Val, ty: Ty) -> Val {
        self.raw_value(format_args!("llvm.fcmp \"{predicate}\" {lhs}, {rhs} : {ty}"))
    }

    /// `cond ? lhs : rhs`, lane by lane (the condition has as many lanes as the values).
    pub fn select(&mut self, cond: Val, lhs: Val, rhs: Val, ty: Ty) -> Val {
        self.raw_value(format_args!("llvm.select {cond}, {lhs}, {rhs} : {}, {ty}", ty.with(Elem::I1)))
    }

    /// One number in every lane.
    pub fn broadcast(&mut self, value: Val, elem: Elem, lanes: usize) -> Val {
        if lanes == 0 {
            return value;
        }
        let ty = Ty { elem, lanes };
        let zero = self.i64(0);
        let empty = self.raw_value(format_args!("llvm.mlir.poison : {ty}"));
        let first = self.raw_value(format_args!("llvm.insertelement {value}, {empty}[{zero} : i64] : {ty}"));
        self.shuffle(first, empty, std::iter::repeat_n(0, lanes), ty)
    }

    /// Lanes picked from two vectors, the second's counted on from the first's.
    pub fn shuffle(&mut self, low: Val, high: Val, lanes: impl Iterator<Item = usize>, ty: Ty) -> Val {
        let lanes: Vec<String> = lanes.map(|lane| lane.to_string()).collect();
        self.raw_value(format_args!("llvm.shufflevector {low}, {high} [{}] : {ty}", lanes.join(", ")))
    }

    /// Asks for the memory at an address to be brought into the second-level cache.
    pub fn prefetch(&mut self, address: Val, for_write: bool) {
        let rw = u8::from(for_write);
        self.line(format_args!(
            "\"llvm.intr.prefetch\"({address}) <{{rw = {rw} : i32, hint = 2 : i32, cache = 1 : i32}}> : (!llvm.ptr) -> ()"
        ));
    }

    /// One lane of a vector.
    pub fn extract(&mut self, vector: Val, lane: usize, ty: Ty) -> Val {
        let at = self.i64(i64::try_from(lane).expect("a lane"));
        self.raw_value(format_args!("llvm.extractelement {vector}[{at} : i64] : {ty}"))
    }

    /// Address of element `index` of an array of `elem` at `base`.
    pub fn element(&mut self, base: Val, index: Val, elem: Elem) -> Val {
        let elem = Ty::scalar(elem);
        self.raw_value(format_args!("llvm.getelementptr {base}[{index}] : (!llvm.ptr, i64) -> !llvm.ptr, {elem}"))
    }

    /// Address so many bytes further.
    pub fn byte(&mut self, base: Val, bytes: Val) -> Val {
        self.raw_value(format_args!("llvm.getelementptr {base}[{bytes}] : (!llvm.ptr, i64) -> !llvm.ptr, i8"))
    }

    /// Address of a fixed element of an array of `elem` at `base`.
    pub fn element_at(&mut self, base: Val, index: i64, elem: Elem) -> Val {
        if index == 0 {
            return base;
        }
        let offset = self.i64(index);
        self.element(base, offset, elem)
    }

    /// The same address, from where LLVM cannot see that: it keeps its hands off the arithmetic that follows.
    pub fn opaque(&mut self, address: Val) -> Val {
        self.raw_value(format_args!("llvm.inline_asm \"\", \"=r,0\" {address} : (!llvm.ptr) -> !llvm.ptr"))
    }

    /// Reads memory. `tag` names a TBAA attribute, or is empty.
    pub fn load(&mut self, address: Val, ty: Ty, tag: &str) -> Val {
        let attributes = access_attributes(ty, tag);
        self.raw_value(format_args!("llvm.load {address} {{{attributes}}} : !llvm.ptr -> {ty}"))
    }

    /// Writes memory.
    pub fn store(&mut self, value: Val, address: Val, ty: Ty, tag: &str) {
        let attributes = access_attributes(ty, tag);
        self.line(format_args!("llvm.store {value}, {address} {{{attributes}}} : {ty}, !llvm.ptr"));
    }

    /// Writes a vector past the caches, to an address that is a multiple of its size.
    pub fn store_past_caches(&mut self, value: Val, address: Val, ty: Ty) {
        let align = alignment(ty.elem) * ty.lanes;
        self.line(format_args!(
            "llvm.store {value}, {address} {{alignment = {align} : i64, nontemporal}} : {ty}, !llvm.ptr"
        ));
    }

    /// Reads the lanes of a mask; the others are 0.
    pub fn masked_load(&mut self, address: Val, mask: Val, ty: Ty) -> Val {
        let rest = self.constant(ty, 0);
        let masks = ty.with(Elem::I1);
        self.raw_value(format_args!(
            "llvm.intr.masked.load {address}, {mask}, {rest} {{alignment = {} : i32}} : (!llvm.ptr, {masks}, {ty}) -> {ty}",
            alignment(ty.elem)
        ))
    }

    /// Writes the lanes of a mask.
    pub fn masked_store(&mut self, value: Val, address: Val, mask: Val, ty: Ty) {
        let masks = ty.with(Elem::I1);
        self.line(format_args!(
            "llvm.intr.masked.store {value}, {address}, {mask} {{alignment = {} : i32}} : {ty}, {masks} into !llvm.ptr",
            alignment(ty.elem)
        ));
    }

    /// `factor · (0, 1, 2, …)` as 32-bit integers.
    pub fn ramp(&mut self, lanes: usize, factor: i64) -> Val {
        if let Some(val) = self.ramps.get(&(lanes, factor)) {
            return *val;
        }
        let ty = Ty { elem: Elem::I32, lanes };
        let last = i64::try_from(lanes).expect("a lane");
        let numbers: Vec<String> = (0..last).map(|n| (n * factor).to_string()).collect();
        let val = self.fresh();
        self.head_line(format_args!("{val} = llvm.mlir.constant(dense<[{}]> : {ty}) : {ty}", numbers.join(", ")));
        self.ramps.insert((lanes, factor), val);
        val
    }

    /// −x
    pub fn negate(&mut self, x: Val, ty: Ty) -> Val {
        self.raw_value(format_args!("llvm.fneg {x} : {ty}"))
    }

    /// Opens `for i in lo .. hi step step`; gives `i`. Close with [`Writer::end`].
    pub fn open_for(&mut self, lo: Val, hi: Val, step: i64) -> Val {
        let step = self.i64(step);
        let var = self.fresh();
        self.line(format_args!("scf.for {var} = {lo} to {hi} step {step} : i64 {{"));
        self.depth += 1;
        var
    }

    /// Opens `for i in lo .. hi step step` over integers of a type; gives `i`. Close with [`Writer::end`].
    pub fn open_loop(&mut self, lo: Val, hi: Val, step: Val, ty: Ty) -> Val {
        let var = self.fresh();
        self.line(format_args!("scf.for {var} = {lo} to {hi} step {step} : {ty} {{"));
        self.depth += 1;
        var
    }

    /// Opens a loop that carries values; gives the variable and the values at the start of a turn. Close with
    /// [`Writer::end_carried`].
    pub fn open_for_carrying(&mut self, lo: Val, hi: Val, step: i64, start: &[(Val, Ty)]) -> Carried {
        let step = self.i64(step);
        self.open_loop_carrying(lo, hi, step, Ty::I64, start)
    }

    /// As [`Writer::open_for_carrying`], over integers of a type.
    pub fn open_loop_carrying(&mut self, lo: Val, hi: Val, step: Val, ty: Ty, start: &[(Val, Ty)]) -> Carried {
        let var = self.fresh();
        let values: Vec<Val> = start.iter().map(|_| self.fresh()).collect();
        let results = self.fresh();
        let bindings: Vec<String> = values.iter().zip(start).map(|(v, (s, _))| format!("{v} = {s}")).collect();
        let types: Vec<String> = start.iter().map(|(_, ty)| ty.to_string()).collect();
        let types = types.join(", ");
        self.line(format_args!(
            "{results}:{} = scf.for {var} = {lo} to {hi} step {step} iter_args({}) -> ({types}) : {ty} {{",
            start.len(),
            bindings.join(", "),
        ));
        self.depth += 1;
        Carried { var, values, results, types }
    }

    /// Closes a carrying loop with the values for the next turn; gives the final ones.
    pub fn end_carried(&mut self, carried: &Carried, next: &[Val]) -> Vec<Val> {
        let names: Vec<String> = next.iter().map(Val::to_string).collect();
        self.line(format_args!("scf.yield {} : {}", names.join(", "), carried.types));
        self.end();
        members(carried.results, next.len())
    }

    /// Opens `if cond`. Close with [`Writer::end`].
    pub fn open_if(&mut self, cond: Val) {
        self.line(format_args!("scf.if {cond} {{"));
        self.depth += 1;
    }

    /// Ends the first branch of an `if` without values and opens the second.
    pub fn open_else(&mut self) {
        self.depth -= 1;
        self.line(format_args!("}} else {{"));
        self.depth += 1;
    }

    /// Opens `if cond` that gives values: yield with [`Writer::other`] and [`Writer::end_yielding`].
    pub fn open_if_yielding(&mut self, cond: Val, count: usize, ty: Ty) -> Val {
        let results = self.fresh();
        let types = vec![ty.to_string(); count].join(", ");
        self.line(format_args!("{results}:{count} = scf.if {cond} -> ({types}) {{"));
        self.depth += 1;
        results
    }

    /// Ends the first branch with its values and opens the second.
    pub fn other(&mut self, values: &[Val], ty: Ty) {
        self.yields(values, ty);
        self.depth -= 1;
        self.line(format_args!("}} else {{"));
        self.depth += 1;
    }

    /// Ends the second branch with its values; gives values of the whole.
    pub fn end_yielding(&mut self, results: Val, values: &[Val], ty: Ty) -> Vec<Val> {
        self.yields(values, ty);
        self.end();
        members(results, values.len())
    }

    fn yields(&mut self, values: &[Val], ty: Ty) {
        let names: Vec<String> = values.iter().map(Val::to_string).collect();
        let types = vec![ty.to_string(); values.len()].join(", ");
        self.line(format_args!("scf.yield {} : {types}", names.join(", ")));
    }

    /// Closes a loop or a condition.
    pub fn end(&mut self) {
        self.depth -= 1;
        self.line(format_args!("}}"));
    }
}

/// A loop that carries values.
pub struct Carried {
    /// The variable.
    pub var: Val,
    /// The carried values at the start of a turn.
    pub values: Vec<Val>,
    results: Val,
    types: String,
}

fn members(results: Val, count: usize) -> Vec<Val> {
    let count = u16::try_from(count).expect("a handful of results");
    (0..count).map(|member| Val { number: results.number, member: Some(member) }).collect()
}

fn alignment(elem: Elem) -> usize {
    match elem {
        Elem::I1 => 1,
        Elem::I16 | Elem::F16 => 2,
        Elem::I32 | Elem::F32 => 4,
        Elem::I64 | Elem::F64 | Elem::Ptr => 8,
    }
}

fn access_attributes(ty: Ty, tag: &str) -> String {
    let align = alignment(ty.elem);
    if tag.is_empty() {
        format!("alignment = {align} : i64")
    } else {
        format!("alignment = {align} : i64, tbaa = [{tag}]")
    }
}
