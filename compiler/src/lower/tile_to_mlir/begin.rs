//! Where a call's sequence begins in each tensor.
//!
//! In: a sequence, packed or not, as values of the kernel; a tensor's role and strides. Out: an offset in elements.

use super::writer::{Ty, Val, Writer};
use chunkwise_abi::Role;

/// A sequence of a call.
#[derive(Clone, Copy)]
pub struct Begin {
    /// Its number.
    pub sequence: Val,
    /// Its number where sequences are apart, 0 where they are packed.
    pub unpacked: Val,
    /// Its first token where sequences are packed, else 0.
    pub first: Val,
    /// Tokens of all sequences before it.
    pub start: Val,
}

impl Begin {
    /// Where a tensor of a role begins, with `offset` elements to its head.
    pub fn offset(self, w: &mut Writer, role: Role, offset: Val, by_sequence: Val, by_time: Val) -> Val {
        let mut offset = offset;
        let mut advance = |w: &mut Writer, index: Val, stride: Val| {
            let step = w.op("mul", index, stride, Ty::I64);
            offset = w.op("add", offset, step, Ty::I64);
        };
        match role {
            Role::Head => {}
            Role::Sequence => advance(w, self.sequence, by_sequence),
            Role::Token => {
                advance(w, self.unpacked, by_sequence);
                advance(w, self.first, by_time);
            }
            Role::Chunk(tokens) => {
                let tokens = w.i64(i64::try_from(tokens).expect("a chunk fits memory"));
                let whole = w.op("sdiv", self.start, tokens, Ty::I64);
                let slot = w.op("add", whole, self.sequence, Ty::I64);
                advance(w, slot, by_time);
            }
        }
        offset
    }
}
