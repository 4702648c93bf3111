//! Products that four warps compute together, where a GPU can.
//!
//! Comes in: a product whose operands lie in shared memory as [`Block::lie`] has them for warp groups; the left one may
//! also be computed by each warp. Goes out: the same elements in the same registers as [`super::product`] leaves. Shared
//! memory is read once for four warps, not by each of them. An instruction is `wgmma.mma_async` with a row of the table
//! below; what it reads must have been made visible to it ([`Block::barrier`]).
//!
//! Where an operand lies: PTX ISA, "Asynchronous warpgroup level matrix instructions", without swizzle. A *core matrix*
//! is eight rows of sixteen bytes, one after the other.

use super::Refusal;
use super::block::{Block, Tile};
use super::index::Linear;
use super::memory::Touch;
use super::product::{PARTS, Product, Source};
use super::shape::{STRIP, extent};
use crate::graph::ir::DimId;
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;

/// Columns of a product that an instruction has at most.
const MOST_COLUMNS: usize = 256;

/// An operand in shared memory, as an instruction is told of it.
struct Described {
    tile: Tile,
    /// Where its first core matrix of the first step is, and bytes to that of the next step.
    start: Linear,
    per_step: usize,
    /// Bytes from one core matrix to the next, along the product's steps and along its rows or columns.
    along_steps: usize,
    along_own: usize,
    /// Its rows are steps.
    transposed: bool,
}

/// What an instruction takes as its left operand.
enum Left {
    Described(Described),
    /// By strip and step, for each summand: four words.
    Words(Vec<Vec<Vec<Vec<Val>>>>),
}

/// Operands of a piece of assembly.
#[derive(Default)]
struct Operands {
    /// Float32 that come out.
    results: usize,
    values: Vec<(Val, Ty)>,
    constraints: Vec<String>,
}

impl Operands {
    /// One more; its name in the assembly.
    fn add(&mut self, value: Val, ty: Ty, constraint: String) -> String {
        let name = format!("${}", self.results + self.values.len());
        self.values.push((value, ty));
        self.constraints.push(constraint);
        name
    }

    /// The assembly.
    fn assembly(&self, block: &mut Block, lines: &str, of: &str) -> Val {
        let results = "=f,".repeat(self.results);
        let names: Vec<String> = self.values.iter().map(|(val, _)| val.to_string()).collect();
        let types: Vec<String> = self.values.iter().map(|(_, ty)| ty.to_string()).collect();
        block.w.raw_value(format_args!(
            "llvm.inline_asm has_side_effects \"{lines}\", \"{results}{},~{{memory}}\" {} : ({}) -> {of}",
            self.constraints.join(","),
            names.join(", "),
            types.join(", ")
        ))
    }
}

impl Block<'_> {
    /// Adds a product to sums, which are in the order of [`Block::elements`], if warps can do so together. `fresh`: the sums
    /// are zero.
    pub(super) fn multiply_in_groups(
        &mut self,
        product: &Product,
        a: &Source,
        b: &Source,
        fresh: bool,
        sums: &mut [Val],
    ) -> Result<bool, Refusal> {
        let n_rows = extent(self.graph, &product.shape.rows);
        let (strips, eights) = (self.warps.strips(n_rows), self.warps.eights(product.n_cols));
        if !self.in_groups() || 8 * eights > MOST_COLUMNS {
            return Ok(false);
        }
        let Source::Tile(right) = b else { return Ok(false) };
        let first_col = self.first_col(product.n_cols, 0);
        let Some(right) = self.described(product, right, &product.shape.cols, &first_col, 0) else { return Ok(false) };
        let steps = extent(self.graph, product.over).div_ceil(STRIP);
        let left = match a {
            Source::Tile(left) => {
                let row = self.first_row(0);
                match self.described(product, left, &product.shape.rows, &row, STRIP) {
                    Some(left) => Left::Described(left),
                    None => return Ok(false),
                }
            }
            Source::Elements(..) => {
                let mut words = Vec::new();
                for strip in 0..strips {
                    let mut own = Vec::new();
                    for step in 0..steps {
                        own.push(self.left(product, a, strip, step * STRIP)?);
                    }
                    words.push(own);
                }
                Left::Words(words)
            }
        };
        let mut regions = vec![right.tile.region];
        if let Left::Described(left) = &left {
            regions.push(left.tile.region);
        }
        self.touch_all(&regions, Touch::Read);
        self.together(&left, &right, (strips, eights, steps), fresh, sums);
        Ok(true)
    }

    /// An operand as instructions are told of it; none if it has to be changed on the way, or differs from warp to warp by
    /// more than its rows. `first`: the warp's first row or column, of which `per_warp` lie between two warps.
    fn described(
        &mut self,
        product: &Product,
        tile: &Tile,
        own: &[DimId],
        first: &Linear,
        per_warp: usize,
    ) -> Option<Described> {
        if tile.finite {
            return None;
        }
        let (mut start, along_rows) = self.corner(tile, product, own, first, 0);
        let (mut next, _) = self.corner(tile, product, own, first, STRIP);
        let (own_step, over_step) = if along_rows { (tile.row, tile.col) } else { (tile.col, tile.row) };
        let expected = if per_warp == 0 { 0 } else { own_step.ahead(per_warp) };
        for place in [&mut start, &mut next] {
            place.add(self.down, -(expected as i64));
        }
        if start.terms.iter().any(|(value, _)| *value == self.down) || start.terms != next.terms {
            return None;
        }
        // A product over several dimensions may not go on evenly.
        let per_step = usize::try_from(next.constant - start.constant).ok()?;
        if extent(self.graph, product.over) > STRIP && per_step != over_step.ahead(STRIP) {
            return None;
        }
        Some(Described {
            tile: tile.clone(),
            start,
            per_step,
            along_steps: over_step.eight,
            along_own: own_step.eight,
            transposed: !along_rows,
        })
    }

    /// All instructions of a product: one piece of assembly, so that nothing comes between them.
    fn together(
        &mut self,
        left: &Left,
        right: &Described,
        (strips, eights, steps): (usize, usize, usize),
        fresh: bool,
        sums: &mut [Val],
    ) {
        let of_strip = 4 * eights;
        let count = strips * of_strip;
        debug_assert_eq!(sums.len(), count);
        let mut operands = Operands { results: count, ..Operands::default() };
        if !fresh {
            for (n, sum) in sums.iter().enumerate() {
                operands.add(*sum, Ty::F32, n.to_string());
            }
        }
        let mut rights = Vec::new();
        for step in 0..steps {
            let mut own = Vec::new();
            for part in 0..right.tile.parts.0 {
                let description = self.description(right, step * right.per_step + part * right.tile.parts.1);
                own.push(operands.add(description, Ty::I64, "l".to_owned()));
            }
            rights.push(own);
        }
        let shape = format!("m64n{}k16", 8 * eights);
        let turned = u8::from(right.transposed);
        let mut lines = vec!["wgmma.fence.sync.aligned;".to_owned()];
        for strip in 0..strips {
            let sums: Vec<String> = (0..of_strip).map(|n| format!("${}", strip * of_strip + n)).collect();
            let sums = sums.join(", ");
            // The first product of fresh sums takes nothing to add to.
            let mut adds = u8::from(!fresh);
            for (step, rights) in rights.iter().enumerate() {
                let lefts = self.lefts(left, (strip, step), &mut operands);
                for (high, (left, flag)) in lefts.iter().enumerate() {
                    // What is second on both sides is below what is kept.
                    for right in rights.iter().take(PARTS - high) {
                        lines.push(format!(
                            "wgmma.mma_async.sync.aligned.{shape}.f32.bf16.bf16 {{{sums}}}, {left}, {right}, {adds}, 1, 1, {flag}{turned};"
                        ));
                        adds = 1;
                    }
                }
            }
        }
        lines.push("wgmma.commit_group.sync.aligned;".to_owned());
        lines.push("wgmma.wait_group.sync.aligned 0;".to_owned());
        let of = text::struct_of(count, Ty::F32);
        let result = operands.assembly(self, &lines.join("\\0A"), &of);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = text::member(&mut self.w, result, n, &of);
        }
    }

    /// The left operand of a strip and a step, for each of its summands: as written, and the flag that goes with it.
    fn lefts(&mut self, left: &Left, (strip, step): (usize, usize), operands: &mut Operands) -> Vec<(String, String)> {
        match left {
            Left::Described(own) => {
                let start = strip * own.along_own * self.warps.down * STRIP / 8 + step * own.per_step;
                let flag = format!("{}, ", u8::from(own.transposed));
                let descriptions: Vec<Val> =
                    (0..own.tile.parts.0).map(|part| self.description(own, start + part * own.tile.parts.1)).collect();
                let name = |description| (operands.add(description, Ty::I64, "l".to_owned()), flag.clone());
                descriptions.into_iter().map(name).collect()
            }
            Left::Words(own) => {
                let words = |words: &Vec<Val>| {
                    let names: Vec<String> =
                        words.iter().map(|word| operands.add(*word, Ty::I32, "r".to_owned())).collect();
                    (format!("{{{}}}", names.join(", ")), String::new())
                };
                own[strip][step].iter().map(words).collect()
            }
        }
    }

    /// The matrix descriptor of an operand, so many bytes further (PTX ISA, "Matrix descriptor").
    fn description(&mut self, operand: &Described, further: usize) -> Val {
        let mut bytes = operand.start.clone();
        bytes.constant += further as i64;
        let address = self.shared(operand.tile.region, &bytes);
        let w = &mut self.w;
        let address = text::number_of(w, address);
        let (four, low) = (text::int(w, 4), text::int(w, 0x3fff));
        let sixteens = w.op("lshr", address, four, Ty::I32);
        let sixteens = w.op("and", sixteens, low, Ty::I32);
        let wide = w.cast("zext", sixteens, Ty::I32, Ty::I64);
        // The distance that changes along steps is the leading one, whichever way it lies.
        let distances = (operand.along_steps / 16) << 16 | (operand.along_own / 16) << 32;
        let distances = w.int(Ty::I64, i64::try_from(distances).expect("distances in shared memory are small"));
        w.op("or", wide, distances, Ty::I64)
    }
}
