//! What is known of operands of products without data, and where their matrices are found.
//!
//! Comes in: values. Goes out: whether they are ones, or bfloat16 as they are; the tile that holds them,
//! under whatever names their dimensions have. It computes nothing but what keeps logarithms finite.

use super::block::{Block, Tile};
use crate::graph::ir::{Binary, DimId, InputKind, NodeId, Op, Unary};
use crate::lower::tile_to_mlir::writer::Val;
use crate::lower::tile_to_nvvm::text;
use chunkwise_abi::DType;

/// The logarithm of zero, kept finite: a chunk of them is finite still.
pub const LEAST: f32 = -1e30;

impl Block<'_> {
    /// Whether a value is a triangle of ones.
    pub fn is_ones(&self, x: NodeId) -> bool {
        match self.op(x) {
            Op::Segment { gates, .. } => gates.events.is_empty(),
            Op::Rename(y, ..) => self.is_ones(*y),
            _ => false,
        }
    }

    /// Whether a value is a bfloat16 whatever the data: nothing is lost if it is rounded to one.
    pub fn is_narrow(&self, x: NodeId) -> bool {
        match self.op(x) {
            Op::Input { name, kind: InputKind::Token | InputKind::Cotangent, .. } => {
                self.args.iter().any(|arg| arg.name == *name && arg.dtype == DType::BF16)
            }
            Op::Const(number) => *number == 0.0 || *number == 1.0,
            Op::Rename(y, ..) | Op::Guard(y, _) | Op::Index(y, ..) | Op::Split(y, ..) | Op::Merge(y, ..) => {
                self.is_narrow(*y)
            }
            Op::Unary(Unary::Neg, y) => self.is_narrow(*y),
            // The logarithm of zero, kept finite: rounded, it is as good.
            Op::Binary(Binary::Max, y, bound) => self.is_narrow(*y) && self.is_least(*bound),
            _ => false,
        }
    }

    /// Whether a value is what logarithms are kept above.
    fn is_least(&self, x: NodeId) -> bool {
        matches!(self.op(x), Op::Const(number) if *number <= -1e30)
    }

    /// What a value only names positions of otherwise.
    pub fn stripped(&self, x: NodeId) -> NodeId {
        match self.op(x) {
            Op::Rename(y, ..) | Op::Split(y, ..) | Op::Merge(y, ..) | Op::StopGradient(y) => self.stripped(*y),
            Op::Guard(y, fill) if *fill == 0.0 && self.is_zeroed(*y) => self.stripped(*y),
            _ => x,
        }
    }

    /// The matrix in shared memory that holds a value, in the value's own dimensions.
    pub fn tile_of(&self, x: NodeId, parts: usize) -> Option<Tile> {
        let replaced = |dims: &[DimId], from: &[DimId], to: &[DimId]| -> Vec<DimId> {
            match dims.windows(from.len()).position(|window| window == from) {
                Some(at) => [&dims[..at], to, &dims[at + from.len()..]].concat(),
                None => dims.to_vec(),
            }
        };
        let renamed = |tile: Tile, from: &[DimId], to: &[DimId]| {
            let outer = match (from, to) {
                ([from], [to]) => {
                    tile.outer.iter().map(|(d, step)| (if d == from { *to } else { *d }, *step)).collect()
                }
                _ => tile.outer.clone(),
            };
            Tile { rows: replaced(&tile.rows, from, to), cols: replaced(&tile.cols, from, to), outer, ..tile }
        };
        if let Some(tile) = self.tiles.get(&(x, parts)) {
            return Some(tile.clone());
        }
        match self.op(x) {
            Op::Rename(y, from, to) => Some(renamed(self.tile_of(*y, parts)?, &[*from], &[*to])),
            Op::Split(y, dim, outer, inner) => Some(renamed(self.tile_of(*y, parts)?, &[*dim], &[*outer, *inner])),
            Op::Merge(y, outer, inner, dim) => Some(renamed(self.tile_of(*y, parts)?, &[*outer, *inner], &[*dim])),
            Op::Guard(y, fill) if *fill == 0.0 && self.is_zeroed(*y) => self.tile_of(*y, parts),
            Op::StopGradient(y) => self.tile_of(*y, parts),
            Op::Binary(Binary::Max, y, bound) if self.is_least(*bound) && self.is_narrow(*y) => {
                Some(Tile { finite: true, ..self.tile_of(*y, parts)? })
            }
            Op::Index(y, dim, n) => {
                let mut tile = self.tile_of(*y, parts)?;
                let at = tile.outer.iter().position(|(d, _)| d == dim)?;
                let (_, step) = tile.outer.remove(at);
                tile.start += n * step;
                Some(tile)
            }
            _ => None,
        }
    }

    /// Two logarithms of a word, kept finite.
    pub fn kept_finite(&mut self, word: Val) -> Val {
        // Its leading half, which bfloat16 has.
        let least = LEAST.to_bits() >> 16;
        let both = text::int(&mut self.w, i64::from((least << 16 | least).cast_signed()));
        let pair = "vector<2xbf16>";
        let [word, both] =
            [word, both].map(|word| self.w.raw_value(format_args!("llvm.bitcast {word} : i32 to {pair}")));
        let most = self.w.raw_value(format_args!(
            "llvm.call_intrinsic \"llvm.nvvm.fmax.nan.bf16x2\"({word}, {both}) : ({pair}, {pair}) -> {pair}"
        ));
        self.w.raw_value(format_args!("llvm.bitcast {most} : {pair} to i32"))
    }
}
