//! Runs a tile program, statement by statement, in float64.
//!
//! Takes a [`Kernel`] and tensors of the caller, fills the tensors the kernel writes. What the kernel may not rely on
//! it cannot rely on here: scratch starts as NaN for every item, written tensors start as NaN, the part of a product
//! that is unspecified becomes NaN, and a triangle that is promised to be zero must be zero. Element types are not
//! looked at: who wants bf16 rounds the values before and after. A kernel that does not verify gives an error, too,
//! never a panic.

use super::ir::*;
use super::text;
use crate::graph::scalar::compare;
use chunkwise_abi::{Access, Role, chunk_slot};

/// One call: the arguments in the kernel's order, and how many sequences, tokens and heads there are.
#[derive(Clone, Debug)]
pub struct HostCall {
    /// One per argument of the kernel.
    pub tensors: Vec<HostArg>,
    /// First token of each sequence and, last, their total number; none when all have `length` tokens.
    pub offsets: Option<Vec<usize>>,
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of each sequence, unless there are offsets.
    pub length: usize,
    /// Number of heads.
    pub heads: usize,
}

/// A tensor of a call; strides as in [`chunkwise_abi::TensorArg`].
#[derive(Clone, Debug, PartialEq)]
pub struct HostArg {
    /// Elements.
    pub data: Vec<f64>,
    /// From sequence to sequence.
    pub stride_sequence: usize,
    /// From token to token, or from chunk to chunk.
    pub stride_time: usize,
    /// From head to head.
    pub stride_head: usize,
    /// Heads this tensor has; divides the call's heads.
    pub heads: usize,
}

/// Why a kernel could not be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterpError {
    /// What went wrong.
    pub message: String,
    /// The statement, as printed; empty when it is about the call.
    pub stmt: String,
    /// Sequence and head that were worked on.
    pub item: Option<(usize, usize)>,
    /// Loop variables around, by name.
    pub vars: Vec<(String, i64)>,
}

impl std::fmt::Display for InterpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.message)?;
        if !self.stmt.is_empty() {
            write!(f, "\n  in `{}`", self.stmt)?;
        }
        if let Some((sequence, head)) = self.item {
            write!(f, "\n  at sequence {sequence}, head {head}")?;
        }
        for (name, value) in &self.vars {
            write!(f, ", {name} = {value}")?;
        }
        Ok(())
    }
}
impl std::error::Error for InterpError {}

impl HostCall {
    /// A call without tensors yet.
    pub fn new(sequences: usize, length: usize, heads: usize) -> HostCall {
        HostCall { tensors: Vec::new(), offsets: None, sequences, length, heads }
    }

    /// A call on packed sequences, which start at `offsets` and end at the next one.
    pub fn packed(offsets: Vec<usize>, heads: usize) -> HostCall {
        let sequences = offsets.len().saturating_sub(1);
        HostCall { tensors: Vec::new(), offsets: Some(offsets), sequences, length: 0, heads }
    }

    /// Tokens of all sequences together.
    pub fn total_tokens(&self) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.last().copied().unwrap_or(0),
            None => self.sequences.saturating_mul(self.length),
        }
    }

    /// First token of sequence `n` among all.
    fn start(&self, n: usize) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.get(n).copied().unwrap_or(0),
            None => n.saturating_mul(self.length),
        }
    }

    /// Tokens of sequence `n`.
    fn tokens(&self, n: usize) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.get(n + 1).copied().unwrap_or(0).saturating_sub(self.start(n)),
            None => self.length,
        }
    }

    /// The strides of a tensor of this call that lies densely in memory, and its number of elements: `[B, T, H, …]`,
    /// `[H, …]` or `[B, H, …]`; for a chunk's `[slots, H, …]`.
    pub fn dense(&self, arg: &Arg, heads: usize, data: Vec<f64>) -> HostArg {
        let inner: usize = arg.inner.iter().product();
        let row = heads * inner;
        let (stride_sequence, stride_time) = match arg.role {
            Role::Token => (self.length * row, row),
            Role::Head => (0, 0),
            Role::Sequence => (row, 0),
            Role::Chunk(_) => (0, row),
        };
        HostArg { data, stride_sequence, stride_time, stride_head: inner, heads }
    }

    /// Elements of a dense tensor of this call.
    pub fn dense_elements(&self, arg: &Arg, heads: usize) -> usize {
        let outer = match arg.role {
            Role::Token => self.total_tokens(),
            Role::Head => 1,
            Role::Sequence => self.sequences,
            Role::Chunk(chunk) => chunk_slot(chunk, self.total_tokens(), self.sequences),
        };
        outer * heads * arg.inner.iter().product::<usize>()
    }
}

/// Does every item of the call, in order.
pub fn run(kernel: &Kernel, call: &mut HostCall) -> Result<(), InterpError> {
    check_call(kernel, call)?;
    for (arg, tensor) in kernel.args.iter().zip(&mut call.tensors) {
        if arg.access == Access::Write {
            tensor.data.fill(f64::NAN);
        }
    }
    // Taken out so that elements can be written while the rest of the call is read.
    let mut tensors = std::mem::take(&mut call.tensors);
    let mut result = Ok(());
    'items: for sequence in 0..call.sequences {
        for head in 0..call.heads {
            let mut item = Item {
                kernel,
                call,
                tensors: &mut tensors,
                sequence,
                head,
                length: call.tokens(sequence) as i64,
                vars: vec![None; kernel.vars.len()],
                around: Vec::new(),
                locals: vec![f64::NAN; kernel.n_locals as usize],
                buffers: kernel.buffers.iter().map(|buffer| vec![f64::NAN; buffer.elements()]).collect(),
                stmt: None,
            };
            let ran = item.block(&kernel.body);
            if let Err(message) = ran {
                result = Err(item.locate(message));
                break 'items;
            }
        }
    }
    call.tensors = tensors;
    result
}

fn check_call(kernel: &Kernel, call: &HostCall) -> Result<(), InterpError> {
    let fail = |message: String| Err(InterpError { message, stmt: String::new(), item: None, vars: Vec::new() });
    if call.tensors.len() != kernel.args.len() {
        return fail(format!("the kernel takes {} tensors, the call has {}", kernel.args.len(), call.tensors.len()));
    }
    for (arg, tensor) in kernel.args.iter().zip(&call.tensors) {
        if tensor.heads == 0 || !call.heads.is_multiple_of(tensor.heads) {
            return fail(format!("`{}` has {} heads, which do not divide {}", arg.name, tensor.heads, call.heads));
        }
    }
    if let Some(offsets) = &call.offsets
        && (offsets.len() != call.sequences + 1 || offsets.windows(2).any(|pair| pair[0] > pair[1]))
    {
        return fail(format!("offsets must be {} numbers that do not fall", call.sequences + 1));
    }
    for buffer in &kernel.buffers {
        if buffer.shape.is_empty() {
            return fail(format!("buffer `{}` has no dimensions", buffer.name));
        }
    }
    Ok(())
}

/// Where a value is kept.
enum Address {
    Tensor(usize, usize),
    Buffer(usize, usize),
}

struct Item<'a> {
    kernel: &'a Kernel,
    call: &'a HostCall,
    tensors: &'a mut Vec<HostArg>,
    sequence: usize,
    head: usize,
    length: i64,
    vars: Vec<Option<i64>>,
    /// Variables of the loops around, outermost first.
    around: Vec<VarId>,
    locals: Vec<f64>,
    buffers: Vec<Vec<f64>>,
    stmt: Option<&'a Stmt>,
}

type Ran<T> = Result<T, String>;

impl<'a> Item<'a> {
    fn locate(&self, message: String) -> InterpError {
        let name = |var: &VarId| self.kernel.vars.get(var.0 as usize).cloned().unwrap_or_default();
        let value = |var: &VarId| self.vars.get(var.0 as usize).copied().flatten();
        InterpError {
            message,
            stmt: self.stmt.map(|stmt| text::print_line(self.kernel, stmt)).unwrap_or_default(),
            item: Some((self.sequence, self.head)),
            vars: self.around.iter().filter_map(|var| Some((name(var), value(var)?))).collect(),
        }
    }

    fn block(&mut self, body: &'a [Stmt]) -> Ran<()> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    /// Runs `inner` for each value of a variable.
    fn each(
        &mut self,
        var: VarId,
        values: impl Iterator<Item = i64>,
        mut inner: impl FnMut(&mut Self) -> Ran<()>,
    ) -> Ran<()> {
        if self.vars.get(var.0 as usize).is_none() {
            return Err("the loop's variable is not one of the kernel's".to_string());
        }
        self.around.push(var);
        for value in values {
            self.vars[var.0 as usize] = Some(value);
            inner(self)?;
        }
        self.vars[var.0 as usize] = None;
        self.around.pop();
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt) -> Ran<()> {
        self.stmt = Some(stmt);
        match stmt {
            Stmt::For { var, lo, hi, order, body } => {
                let (lo, hi) = (self.index(lo)?, self.index(hi)?);
                match order {
                    Order::Forward => self.each(*var, lo..hi, |item| item.block(body)),
                    // Processors run loops of any order forwards: a loop that is not one would be found out here.
                    Order::Reverse | Order::Any => self.each(*var, (lo..hi).rev(), |item| item.block(body)),
                }
            }
            Stmt::Lanes { var, extent, body } => self.each(*var, 0..*extent as i64, |item| item.block(body)),
            Stmt::If { cond, body } => {
                if self.cond(cond)? {
                    self.block(body)?;
                }
                Ok(())
            }
            Stmt::Local { local, value } | Stmt::Assign { local, value } => {
                let value = self.expr(value)?;
                let slot = self.locals.get_mut(local.0 as usize).ok_or("no such local")?;
                *slot = value;
                Ok(())
            }
            Stmt::Store { place, value } => {
                let value = self.expr(value)?;
                self.store(place, value)
            }
            Stmt::ReduceLanes { place, op, var, extent, value, accumulate } => {
                let mut total = match op {
                    ReduceOp::Sum => 0.0,
                    ReduceOp::Max => f64::NEG_INFINITY,
                };
                let combine = |a: f64, b: f64| match op {
                    ReduceOp::Sum => a + b,
                    ReduceOp::Max => BinaryOp::Max.apply(a, b),
                };
                self.each(*var, 0..*extent as i64, |item| {
                    total = combine(total, item.expr(value)?);
                    Ok(())
                })?;
                if *accumulate {
                    // The same element is read and written: only scratch allows both.
                    total = combine(self.load(place)?, total);
                }
                self.store(place, total)
            }
            Stmt::Matmul(product) => self.matmul(product),
        }
    }

    fn affine(&self, affine: &Affine) -> Ran<i64> {
        let too_large = || "an index leaves 64 bits".to_string();
        let mut sum = affine.constant;
        for (var, factor) in &affine.vars {
            let value =
                self.vars.get(var.0 as usize).copied().flatten().ok_or("a variable is used outside its loop")?;
            sum = value.checked_mul(*factor).and_then(|term| sum.checked_add(term)).ok_or_else(too_large)?;
        }
        for (symbol, factor) in &affine.symbols {
            let value = match symbol {
                Symbol::Length => self.length,
                Symbol::Chunks(0) => return Err("a chunk of no tokens".to_string()),
                Symbol::Chunks(n) => (self.length as usize).div_ceil(*n) as i64,
            };
            sum = value.checked_mul(*factor).and_then(|term| sum.checked_add(term)).ok_or_else(too_large)?;
        }
        Ok(sum)
    }

    fn index(&self, index: &Index) -> Ran<i64> {
        let value = self.affine(&index.value)?;
        match &index.at_most {
            None => Ok(value),
            Some(limit) => Ok(value.min(self.affine(limit)?)),
        }
    }

    fn cond(&self, cond: &Cond) -> Ran<bool> {
        let (lhs, rhs) = (self.affine(&cond.lhs)?, self.affine(&cond.rhs)?);
        Ok(match cond.op {
            Compare::Lt => lhs < rhs,
            Compare::Le => lhs <= rhs,
            Compare::Eq => lhs == rhs,
        })
    }

    fn address(&self, place: &Place, access: Access) -> Ran<Address> {
        match place.memory {
            Memory::Buffer(id) => {
                let buffer = self.kernel.buffers.get(id.0 as usize).ok_or("no such buffer")?;
                let mut at = 0;
                self.dimensions(place.indices.len(), buffer.shape.len())?;
                for ((index, size), stride) in place.indices.iter().zip(&buffer.shape).zip(buffer.strides()) {
                    at += self.bounded(index, *size)? * stride;
                }
                Ok(Address::Buffer(id.0 as usize, at))
            }
            Memory::Arg(id) => {
                let arg = self.kernel.args.get(id.0 as usize).ok_or("no such argument")?;
                if arg.access != access {
                    return Err(match access {
                        Access::Read => format!("`{}` is written, it cannot be read", arg.name),
                        Access::Write => format!("`{}` is read, it cannot be written", arg.name),
                    });
                }
                let tensor = &self.tensors[id.0 as usize];
                let group = self.call.heads / tensor.heads;
                let (leading, length, first) = match arg.role {
                    Role::Head => (0, 1, 0),
                    Role::Sequence => (0, 1, self.sequence * tensor.stride_sequence),
                    Role::Token => {
                        let first = match self.call.offsets {
                            Some(_) => self.call.start(self.sequence) * tensor.stride_time,
                            None => self.sequence * tensor.stride_sequence,
                        };
                        (1, self.length as usize, first)
                    }
                    Role::Chunk(0) => return Err("a chunk of no tokens".to_string()),
                    Role::Chunk(n) => {
                        let slot = chunk_slot(n, self.call.start(self.sequence), self.sequence);
                        (1, (self.length as usize).div_ceil(n), slot * tensor.stride_time)
                    }
                };
                self.dimensions(place.indices.len(), leading + arg.inner.len())?;
                let mut at = first + self.head / group * tensor.stride_head;
                let (outer, inner) = place.indices.split_at(leading);
                for index in outer {
                    at += self.bounded(index, length)? * tensor.stride_time;
                }
                let mut step: usize = arg.inner.iter().product();
                for (index, size) in inner.iter().zip(&arg.inner) {
                    step /= (*size).max(1);
                    at += self.bounded(index, *size)? * step;
                }
                if at >= tensor.data.len() {
                    return Err(format!("`{}` has {} elements, this is number {at}", arg.name, tensor.data.len()));
                }
                Ok(Address::Tensor(id.0 as usize, at))
            }
        }
    }

    fn dimensions(&self, found: usize, expected: usize) -> Ran<()> {
        if found == expected { Ok(()) } else { Err(format!("{found} indices where there are {expected} dimensions")) }
    }

    fn bounded(&self, index: &Index, size: usize) -> Ran<usize> {
        let value = self.index(index)?;
        match usize::try_from(value) {
            Ok(position) if position < size => Ok(position),
            Ok(_) | Err(_) => {
                Err(format!("index `{}` is {value}, outside 0 .. {size}", text::print_index(self.kernel, index)))
            }
        }
    }

    fn load(&self, place: &Place) -> Ran<f64> {
        Ok(match self.address(place, Access::Read)? {
            Address::Tensor(id, at) => self.tensors[id].data[at],
            Address::Buffer(id, at) => self.buffers[id][at],
        })
    }

    fn store(&mut self, place: &Place, value: f64) -> Ran<()> {
        match self.address(place, Access::Write)? {
            Address::Tensor(id, at) => self.tensors[id].data[at] = value,
            Address::Buffer(id, at) => self.buffers[id][at] = value,
        }
        Ok(())
    }

    fn expr(&self, expr: &Expr) -> Ran<f64> {
        Ok(match expr {
            Expr::Const(value) => *value,
            Expr::Load(place) => self.load(place)?,
            Expr::Local(local) => *self.locals.get(local.0 as usize).ok_or("no such local")?,
            Expr::Unary(op, x) => op.apply(self.expr(x)?),
            Expr::Binary(op, a, b) => op.apply(self.expr(a)?, self.expr(b)?),
            // Both branches are evaluated, as compiled code may do: an index out of range shows in either.
            Expr::Select(cond, a, b) => {
                let (a, b) = (self.expr(a)?, self.expr(b)?);
                if self.cond(cond)? { a } else { b }
            }
            Expr::SelectValue(op, lhs, rhs, a, b) => {
                let (lhs, rhs, a, b) = (self.expr(lhs)?, self.expr(rhs)?, self.expr(a)?, self.expr(b)?);
                if compare(*op, lhs, rhs) { a } else { b }
            }
        })
    }

    fn matmul(&mut self, product: &Matmul) -> Ran<()> {
        let Matmul { dst, a, b, m, n, k, update, triangle, exact: _ } = product;
        let length = self.affine(k)?;
        let length = usize::try_from(length).map_err(|_| format!("the contraction has length {length}"))?;
        let dst = self.view(dst, *m, *n)?;
        let (a, b) = (self.view(a, *m, length)?, self.view(b, length, *n)?);
        let mut sums = vec![0.0; m * n];
        for row in 0..*m {
            for j in 0..length {
                let lhs = self.buffers[a.buffer][a.at(row, j)];
                let promised_zero = match triangle {
                    Triangle::Full | Triangle::LowerResult => false,
                    Triangle::LowerLeft => j > row,
                    Triangle::UpperLeft => j < row,
                };
                if promised_zero && lhs != 0.0 {
                    return Err(format!("element ({row}, {j}) of the left operand is {lhs}, promised to be 0"));
                }
                for col in 0..*n {
                    sums[row * n + col] += lhs * self.buffers[b.buffer][b.at(j, col)];
                }
            }
        }
        for row in 0..*m {
            for col in 0..*n {
                let sum = sums[row * n + col];
                let element = &mut self.buffers[dst.buffer][dst.at(row, col)];
                *element = match update {
                    Update::Set => sum,
                    Update::Add => *element + sum,
                    Update::Subtract => *element - sum,
                };
                if *triangle == Triangle::LowerResult && col > row {
                    *element = f64::NAN;
                }
            }
        }
        Ok(())
    }

    fn view(&self, view: &View, rows: usize, cols: usize) -> Ran<Window> {
        let id = view.buffer.0 as usize;
        let elements = self.buffers.get(id).ok_or("no such buffer")?.len();
        let first = self.affine(&view.offset)?;
        let outside =
            || format!("a view of `{}` at {first} leaves its {elements} elements", self.kernel.buffers[id].name);
        let first = usize::try_from(first).map_err(|_| outside())?;
        let window = Window { buffer: id, first, row_stride: view.row_stride, col_stride: view.col_stride };
        if rows > 0 && cols > 0 {
            let far = |count: usize, step: usize| (count - 1).checked_mul(step);
            let last = far(rows, view.row_stride)
                .and_then(|down| far(cols, view.col_stride)?.checked_add(down))
                .and_then(|last| last.checked_add(first));
            if last.is_none_or(|last| last >= elements) {
                return Err(outside());
            }
        }
        Ok(window)
    }
}

/// A view whose offset is known.
struct Window {
    buffer: usize,
    first: usize,
    row_stride: usize,
    col_stride: usize,
}

impl Window {
    fn at(&self, row: usize, col: usize) -> usize {
        self.first + row * self.row_stride + col * self.col_stride
    }
}
