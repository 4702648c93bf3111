//! The halves of a block of sixteen tokens: rows later and earlier than a middle, and the factors that lead there.
//!
//! Comes in: decays given by logarithms, one for each row and column ([`Gates`]). Goes out: each row's factor for every
//! half, the gradients of the logarithms, and what [`super::gated`] needs to put pairs together. It looks at no weight.
//!
//! # Spans
//! The logarithm of a row's factor is the sum of those between the row and the middle of its 2h rows: a product of a
//! matrix of zeros and ones with the block's logarithms, on the tensor cores. The ones of h = 1, 2 and 4 lie in blocks of
//! eight rows on the diagonal, alike in both; those of h = 8 as well, but the upper and the lower differ. Logarithms are
//! kept finite there, since zero times infinity is no number. Nothing is subtracted.

use super::Refusal;
use super::block::{Block, Element, Home, Point, Tile};
use super::index::Linear;
use super::operand::LEAST;
use super::product::{PARTS, Pattern};
use super::shape::{Shape, extent};
use crate::graph::ir::{Binary, DimId, Gates, NodeId};
use crate::lower::tile_to_mlir::writer::{Elem, Ty, Val};
use crate::lower::tile_to_nvvm::text;

/// Halves of a block: rows whose bit is set are the later ones.
pub const HALVES: [usize; 4] = [1, 2, 4, 8];

/// Logarithms as the right operand of a product over the rows of a block: by eight of columns, summand and eight of rows.
pub type Words = Vec<Vec<Vec<Val>>>;

/// The spans of a decay.
pub struct Spans {
    events: Vec<Event>,
}

/// One event of a decay.
struct Event {
    /// Its logarithms.
    value: NodeId,
    /// Where they lie as an operand; else they are taken one by one.
    tile: Option<Tile>,
    /// A row's own event belongs to its factor where it is the reader's, or the writer's.
    read: bool,
    written: bool,
}

/// One, in bfloat16.
const ONE: u32 = 0x3f80;

/// A number as the sum of two of bfloat16, as their bits.
fn bf16_parts(number: f32) -> [u32; PARTS] {
    let rounded = |number: f32| (number.to_bits() + 0x8000) >> 16;
    let high = rounded(number);
    [high, rounded(number - f32::from_bits(high << 16))]
}

impl Block<'_> {
    /// The spans of a decay whose logarithms are ready and lie in a shape.
    pub fn spans(&mut self, gates: &Gates, shape: &Shape) -> Result<Spans, Refusal> {
        let mut events = Vec::new();
        for (n, gate) in gates.events.iter().enumerate() {
            let lies_alike = |tile: &Tile| tile.rows == shape.rows && tile.cols == shape.cols && tile.outer.is_empty();
            let narrow = self.is_narrow(gate.value);
            let tile = self.tile_of(gate.value, 1).filter(|tile| narrow && lies_alike(tile));
            let tile = tile.map(|tile| Tile { finite: true, ..tile });
            events.push(Event { value: gate.value, tile, read: n < gates.to, written: n >= gates.from });
        }
        Ok(Spans { events })
    }

    /// The logarithms of all events of one or two eights of a strip.
    pub fn logarithms(
        &mut self,
        spans: &Spans,
        shape: &Shape,
        place: (usize, usize),
        together: usize,
    ) -> Result<Vec<Words>, Refusal> {
        spans.events.iter().map(|event| self.event_logarithms(event, shape, place, together)).collect()
    }

    /// Of two halves: the factors of the elements of some eights, whose logarithms and elements are given.
    pub fn half_factors(
        &mut self,
        spans: &Spans,
        shape: &Shape,
        logarithms: &[Words],
        elements: &[Element],
        halves: [usize; 2],
    ) -> [Vec<Val>; 2] {
        let zero = self.w.f32(0.0, 0);
        // Powers of two are what the hardware has.
        let scale = bf16_parts(std::f32::consts::LOG2_E);
        let eights = elements.len() / 4;
        let mut logs = vec![[[zero; 4]; 2]; eights];
        for (event, words) in spans.events.iter().zip(logarithms) {
            let ones = scale.map(|bits| halves.map(|half| self.span(half, event.read, event.written, false, bits)));
            for (logs, parts) in logs.iter_mut().zip(words) {
                // The first eight rows' products of both halves at once, then those of the last eight.
                for block in 0..2 {
                    let mut both = [0, 1, 2, 3].map(|n| logs[n / 2][2 * block + n % 2]);
                    for (high, ones) in ones.iter().enumerate() {
                        for part in parts.iter().take(PARTS - high) {
                            self.short_mma([ones[0][block], ones[1][block]], part[block], &mut both);
                        }
                    }
                    for (n, sum) in both.into_iter().enumerate() {
                        logs[n / 2][2 * block + n % 2] = sum;
                    }
                }
            }
        }
        [0, 1].map(|half| {
            let mut own = Vec::new();
            for (element, n) in elements.iter().zip(0..) {
                // Beyond the last column may lie what is no number.
                let real = self.real(shape, &element.at);
                let log = self.or_zero(real, logs[n / 4][half][n % 4]);
                own.push(text::intrinsic(&mut self.w, "llvm.nvvm.ex2.approx.ftz.f", &[(log, Ty::F32)], "f32"));
            }
            own
        })
    }

    /// Adds a product of sixteen rows, eight steps and eight columns.
    fn short_mma(&mut self, a: [Val; 2], b: Val, sums: &mut [Val; 4]) {
        let words = a.into_iter().chain([b]).map(|word| (word, Ty::I32));
        let operands: Vec<(Val, Ty)> = words.chain(sums.iter().map(|sum| (*sum, Ty::F32))).collect();
        let of = text::struct_of(4, Ty::F32);
        let result = text::intrinsic(&mut self.w, "llvm.nvvm.mma.m16n8k8.row.col.bf16", &operands, &of);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = text::member(&mut self.w, result, n, &of);
        }
    }

    /// An event's.
    fn event_logarithms(
        &mut self,
        event: &Event,
        shape: &Shape,
        (strip, first): (usize, usize),
        together: usize,
    ) -> Result<Words, Refusal> {
        let n_cols = extent(self.graph, &shape.cols);
        let block = self.first_row(strip);
        if let Some(tile) = &event.tile {
            let mut bytes = Linear::number(tile.start as i64);
            self.add_step(&mut bytes, tile.row, &block);
            let first = self.first_col(n_cols, first);
            self.add_step(&mut bytes, tile.col, &first);
            if let Some((value, step)) = tile.half {
                bytes.add(value, step as i64);
            }
            let words = self.matrices(tile, &bytes, 0, Pattern::LowThenHigh, true, 2 * together);
            return Ok(words.chunks(2).map(|words| vec![words.to_vec()]).collect());
        }
        let least = self.w.f32(LEAST, 0);
        let mut eights = Vec::new();
        for eight in first..first + together {
            let mut numbers = Vec::new();
            for token in [0, 1, 8, 9] {
                let mut row = block.clone();
                row.add(self.quad, 2);
                row.constant += token;
                let mut col = self.first_col(n_cols, eight);
                col.add(self.group, 1);
                let mut at = Point::default();
                self.spread(&shape.rows, &row, &mut at);
                self.spread(&shape.cols, &col, &mut at);
                let log = self.eval(event.value, &at)?;
                numbers.push(self.functions.binary(&mut self.w, Binary::Max, log, least, 0));
            }
            eights.push(self.words_of(&numbers, PARTS));
        }
        Ok(eights)
    }

    /// The ones of a half's spans as a left operand, as bits of bfloat16: of the first eight rows with the first eight
    /// tokens, and of the last with the last; all others are zero. `turned`: a token's rows instead of a row's tokens.
    fn span(&mut self, half: usize, read: bool, written: bool, turned: bool, bits: u32) -> [Val; 2] {
        let (zero, one) = (text::int(&mut self.w, 0), self.int(1));
        let (group, quad) = (self.group, self.quad);
        let pair = self.w.op("shl", quad, one, Ty::I32);
        // By block of eight rows: the words of the columns of a pair.
        let mut ones = [zero; 2];
        for odd in 0..2 {
            let odd_val = self.int(odd);
            let col = self.w.op("or", pair, odd_val, Ty::I32);
            let (row, token) = if turned { (col, group) } else { (group, col) };
            // Rows of the last eight are the later ones of the last half, and tokens up to theirs count.
            let later = self.w.icmp(if read { "ule" } else { "ult" }, token, row, Ty::I32);
            let earlier = self.w.icmp(if written { "uge" } else { "ugt" }, token, row, Ty::I32);
            let bool = Ty::scalar(Elem::I1);
            let bit = text::int(&mut self.w, i64::from((bits << (16 * odd)).cast_signed()));
            let chosen = if half == 8 {
                [earlier, later]
            } else {
                let mask = self.int(half);
                let bit = self.w.op("and", row, mask, Ty::I32);
                let is_later = self.w.icmp("ne", bit, zero, Ty::I32);
                let differ = self.w.op("xor", row, token, Ty::I32);
                let near = self.w.icmp("ult", differ, mask, Ty::I32);
                let of_either = self.w.select(is_later, later, earlier, bool);
                let both = self.w.op("and", near, of_either, bool);
                [both, both]
            };
            for (ones, chosen) in ones.iter_mut().zip(chosen) {
                let one = self.w.select(chosen, bit, zero, Ty::I32);
                *ones = self.w.op("or", *ones, one, Ty::I32);
            }
        }
        ones
    }

    /// What the logarithms of an event get of what every half's factors do, of one eight.
    pub fn transposed_spans(&mut self, spans: &Spans, event: usize, shares: &[[Val; 4]]) -> [Val; 4] {
        let (zero, none) = (self.w.f32(0.0, 0), self.int(0));
        let Event { read, written, .. } = spans.events[event];
        let mut sums = [zero; 4];
        for (share, &half) in shares.iter().zip(&HALVES) {
            let [upper, lower] = self.span(half, read, written, true, ONE);
            for words in self.words_of(share, PARTS) {
                let turned = [self.turned(words[0]), self.turned(words[1])];
                self.mma(&[upper, none, none, lower], &turned, &mut sums);
            }
        }
        sums
    }

    /// A number where an element is one of the matrix, else zero.
    pub fn or_zero(&mut self, real: Option<Val>, number: Val) -> Val {
        match real {
            None => number,
            Some(real) => {
                let zero = self.w.f32(0.0, 0);
                self.w.select(real, number, zero, Ty::F32)
            }
        }
    }

    /// One value for the later rows of a half, another for the earlier ones.
    pub fn of_half(&mut self, half: usize, element: &Element, later: Val, earlier: Val) -> Val {
        if half == 8 {
            return if element.half == 1 { later } else { earlier };
        }
        let is_later = self.is_later(half);
        self.w.select(is_later, later, earlier, Ty::F32)
    }

    /// A sum and the product of two numbers, if the row is one of the later ones of a half, or of the earlier ones; else
    /// the sum.
    pub fn add_to_half(&mut self, half: usize, element: &Element, (a, b): (Val, Val), later: bool, sum: Val) -> Val {
        if half == 8 {
            let wanted = (element.half == 1) == later;
            return if wanted { self.w.intrinsic("fma", &[a, b, sum], Ty::F32) } else { sum };
        }
        let is_later = self.is_later(half);
        let (zero, one) = (self.w.f32(0.0, 0), self.w.f32(1.0, 0));
        let (then, otherwise) = if later { (one, zero) } else { (zero, one) };
        let product = self.w.op("fmul", a, b, Ty::F32);
        let weight = self.w.select(is_later, then, otherwise, Ty::F32);
        self.w.intrinsic("fma", &[product, weight, sum], Ty::F32)
    }

    /// Whether a lane's rows are the later ones of a half below eight.
    fn is_later(&mut self, half: usize) -> Val {
        let (bit, zero) = (self.int(half), self.int(0));
        let group = self.group;
        let bit = self.w.op("and", group, bit, Ty::I32);
        self.w.icmp("ne", bit, zero, Ty::I32)
    }

    /// Whether a lane's row is a later and its column an earlier one of the same middle, below eight.
    pub fn is_pair(&mut self, half: usize, odd: usize) -> Val {
        let col = self.column(odd);
        let group = self.group;
        let after = self.w.icmp("ugt", group, col, Ty::I32);
        let differ = self.differ_in(half, odd);
        self.w.op("and", after, differ, Ty::scalar(Elem::I1))
    }

    /// A lane's column of eight.
    fn column(&mut self, odd: usize) -> Val {
        let (one, odd) = (self.int(1), self.int(odd));
        let quad = self.quad;
        let pair = self.w.op("shl", quad, one, Ty::I32);
        self.w.op("or", pair, odd, Ty::I32)
    }

    /// Whether the highest bit in which a lane's row and column differ is that of a half below eight.
    fn differ_in(&mut self, half: usize, odd: usize) -> Val {
        let col = self.column(odd);
        let group = self.group;
        let differ = self.w.op("xor", group, col, Ty::I32);
        let (half, end) = (self.int(half), self.int(2 * half));
        let (far, near) = (self.w.icmp("uge", differ, half, Ty::I32), self.w.icmp("ult", differ, end, Ty::I32));
        self.w.op("and", far, near, Ty::scalar(Elem::I1))
    }

    /// Two numbers a word, in bfloat16.
    pub fn pairs(&mut self, numbers: &[Val]) -> Vec<Val> {
        numbers.chunks(2).map(|pair| text::pack_bf16(&mut self.w, pair[0], pair[1])).collect()
    }

    /// An 8 × 8 matrix transposed across the warp.
    pub fn turned(&mut self, word: Val) -> Val {
        self.w.raw_value(format_args!(
            "llvm.inline_asm has_side_effects \"movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;\", \"=r,r\" {word} : (i32) -> i32"
        ))
    }

    /// For each half, the weights of its pairs, both ways: row with column and column with row.
    pub fn symmetric(
        &mut self,
        home: &Home,
        block: DimId,
        row: DimId,
        col: DimId,
        strip: usize,
    ) -> Result<[[Val; 4]; 4], Refusal> {
        let mut at = Linear::value(self.down, 1);
        at.constant = (self.warps.down * strip) as i64;
        let block = (block, self.ix.of(at));
        let none = self.int(0);
        let zero = self.w.f32(0.0, 0);
        let mut words = [[none; 4]; 4];
        // Words of a left operand: rows of the first or last eight, then columns.
        for (number, (half, ahead)) in [(0, 0), (8, 0), (0, 8), (8, 8)].into_iter().enumerate() {
            let mut weights = Vec::new();
            for odd in 0..2 {
                let mut i = Linear::value(self.group, 1);
                i.constant = half;
                let mut k = Linear::value(self.quad, 2);
                k.constant = ahead + odd;
                let (i, k) = (self.ix.of(i), self.ix.of(k));
                let straight = Point(vec![block, (row, i), (col, k)]);
                let turned = Point(vec![block, (row, k), (col, i)]);
                weights.push(if half > ahead {
                    self.load(home, &straight)?
                } else if half < ahead {
                    self.load(home, &turned)?
                } else {
                    let (straight, turned) = (self.load(home, &straight)?, self.load(home, &turned)?);
                    let (group, col) = (self.group, self.column(usize::from(odd == 1)));
                    let below = self.w.icmp("ult", col, group, Ty::I32);
                    self.w.select(below, straight, turned, Ty::F32)
                });
            }
            if half != ahead {
                words[3][number] = self.pairs(&weights)[0];
                continue;
            }
            for (level, &half) in HALVES.iter().enumerate().take(3) {
                let mut own = Vec::new();
                for (odd, weight) in weights.iter().enumerate() {
                    let differ = self.differ_in(half, odd);
                    own.push(self.w.select(differ, *weight, zero, Ty::F32));
                }
                words[level][number] = self.pairs(&own)[0];
            }
        }
        Ok(words)
    }
}
