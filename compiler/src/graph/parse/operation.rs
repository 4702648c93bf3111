//! Operations of the graph's text form, one arm a keyword.
//!
//! Comes in: the tokens after `%n =`. Goes out: the operation, up to its dimensions. Never checks operands.

use super::{MAX_DEPTH, Parsed, Parser, Token};
use crate::graph::ir::*;
use crate::graph::text::{BINARY, COMPARE, GATE, INPUT, SIDE, UNARY};

impl Parser {
    /// One operation. What an input says of its layout is put aside.
    pub(super) fn op(&mut self, depth: usize) -> Parsed<Op> {
        let at = self.next;
        let keyword = match self.take() {
            Token::Word(word) => word,
            Token::Quoted(_) | Token::Node(_) | Token::Mark(_) | Token::Origin { .. } | Token::End => String::new(),
        };
        if let Some((kind, _)) = INPUT.iter().find(|(_, name)| *name == keyword) {
            let name = self.name()?;
            self.layout = if self.word("layout") { Some(self.bracketed_dims()?) } else { None };
            return Ok(Op::Input { name, kind: *kind, layout: Vec::new() });
        }
        if let Some((function, _)) = UNARY.iter().find(|(_, name)| *name == keyword) {
            return Ok(Op::Unary(*function, self.node_id()?));
        }
        if let Some((function, _)) = BINARY.iter().find(|(_, name)| *name == keyword) {
            return Ok(Op::Binary(*function, self.node_id()?, self.node_id()?));
        }
        match keyword.as_str() {
            "given" => Ok(Op::BodyInput(self.integer()?)),
            "const" => Ok(Op::Const(self.number("a number")?)),
            "select" => Ok(Op::Select {
                op: self.one_of(COMPARE, "`lt`, `le` or `eq`")?,
                lhs: self.node_id()?,
                rhs: self.node_id()?,
                then: self.node_id()?,
                otherwise: self.node_id()?,
            }),
            "broadcast" => Ok(Op::Broadcast(self.node_id()?)),
            "stop_gradient" => Ok(Op::StopGradient(self.node_id()?)),
            "sum" => Ok(Op::Sum(self.node_id()?, self.over()?)),
            "max_over" => {
                let x = self.node_id()?;
                self.expect_word("over")?;
                Ok(Op::MaxOver(x, self.dim()?))
            }
            "contract" => Ok(Op::Contract(self.node_id()?, self.node_id()?, self.over()?)),
            "rename" => {
                let (x, from) = (self.node_id()?, self.dim()?);
                self.expect_mark("->")?;
                Ok(Op::Rename(x, from, self.dim()?))
            }
            "index" => {
                let (x, dim) = (self.node_id()?, self.dim()?);
                self.expect_word("at")?;
                Ok(Op::Index(x, dim, self.integer()?))
            }
            "stack" => {
                let dim = self.dim()?;
                Ok(Op::Stack(self.optional_nodes()?, dim))
            }
            "guard" => Ok(Op::Guard(self.node_id()?, self.number("a number")?)),
            "diagonal" => Ok(Op::Diagonal(self.node_id()?, self.dim()?, self.dim()?)),
            "diagonal_part" => Ok(Op::DiagonalPart(self.node_id()?, self.dim()?, self.dim()?)),
            "split" => {
                let (x, dim) = (self.node_id()?, self.dim()?);
                self.expect_mark("->")?;
                let (outer, inner) = self.two_dims()?;
                Ok(Op::Split(x, dim, outer, inner))
            }
            "merge" => {
                let x = self.node_id()?;
                let (outer, inner) = self.two_dims()?;
                self.expect_mark("->")?;
                Ok(Op::Merge(x, outer, inner, self.dim()?))
            }
            "segment" => {
                let (row, col, diagonal) = (self.dim()?, self.dim()?, self.word("diagonal"));
                Ok(Op::Segment { gates: self.gates()?, row, col, diagonal })
            }
            "segment_grad" => {
                let (event, weight) = (self.integer()?, self.node_id()?);
                let (row, col, diagonal) = (self.dim()?, self.dim()?, self.word("diagonal"));
                Ok(Op::SegmentGrad { weight, gates: self.gates()?, row, col, diagonal, event })
            }
            "boundary" => {
                let (side, row) = (self.side()?, self.dim()?);
                Ok(Op::Boundary { side, gates: self.gates()?, row })
            }
            "boundary_grad" => {
                let (event, weight) = (self.integer()?, self.node_id()?);
                let (side, row) = (self.side()?, self.dim()?);
                Ok(Op::BoundaryGrad { weight, side, gates: self.gates()?, row, event })
            }
            "gated" => self.gated(),
            "solve" => self.solve(),
            "inverse" => {
                let (slot, from, row, col) = (self.dim()?, self.dim()?, self.dim()?, self.dim()?);
                self.expect_word("lower")?;
                Ok(Op::Inverse(Inverse { lower: self.optional_nodes()?, slot, from, row, col }))
            }
            "scan" => self.scan(depth),
            "result" => Ok(Op::ScanResult(self.node_id()?, self.integer()?)),
            _ => {
                self.next = at;
                self.error("an operation")
            }
        }
    }

    fn two_dims(&mut self) -> Parsed<(DimId, DimId)> {
        let outer = self.dim()?;
        self.expect_mark(",")?;
        Ok((outer, self.dim()?))
    }

    fn side(&mut self) -> Parsed<Side> {
        self.one_of(SIDE, "`prefix`, `suffix` or `total`")
    }

    fn gates(&mut self) -> Parsed<Gates> {
        self.expect_word("gates")?;
        let events = self.list(|parser| {
            let kind = parser.one_of(GATE, "`log` or `factor`")?;
            Ok(Gate { kind, value: parser.node_id()? })
        })?;
        self.expect_word("from")?;
        let from = self.integer()?;
        self.expect_word("to")?;
        Ok(Gates { events, from, to: self.integer()? })
    }

    fn gated(&mut self) -> Parsed<Op> {
        let parts = [(GatedPart::Weight, "weight"), (GatedPart::Rows, "rows"), (GatedPart::Cols, "cols")];
        let part = match self.word("gate") {
            true => GatedPart::Gate(self.integer()?),
            false => self.one_of(&parts, "`weight`, `rows`, `cols` or `gate`")?,
        };
        let mut operands = [None; 3];
        for (operand, name) in operands.iter_mut().zip(["weight", "rows", "cols"]) {
            if self.setting(name)? {
                *operand = Some(self.node_id()?);
            }
        }
        let [weight, rows, cols] = operands;
        let (row, col, axes) = (self.dim()?, self.dim()?, self.over()?);
        Ok(Op::Gated { part, weight, rows, cols, gates: self.gates()?, row, col, axes })
    }

    fn solve(&mut self) -> Parsed<Op> {
        let transposed = self.word("transposed");
        let (slot, row, col) = (self.dim()?, self.dim()?, self.dim()?);
        self.expect_word("lower")?;
        let lower = self.optional_nodes()?;
        let rhs = self.nodes_after("rhs")?;
        self.expect_word("scale")?;
        let scale = self.optional_nodes()?;
        self.expect_word("reads")?;
        let reads = self.list(Parser::integer)?;
        self.expect_word("writes")?;
        let writes = self.list(Parser::integer)?;
        let gates = self.gates()?;
        Ok(Op::Solve(Solve { lower, rhs, scale, gates, reads, writes, transposed, slot, row, col }))
    }

    fn scan(&mut self, depth: usize) -> Parsed<Op> {
        if depth == MAX_DEPTH {
            return self.error("no deeper nesting");
        }
        let reverse = self.word("reverse");
        let row = self.dim()?;
        let sequences = self.nodes_after("sequences")?;
        let invariants = self.nodes_after("invariants")?;
        let carries = self.nodes_after("carries")?;
        self.expect_mark("{")?;
        let nodes = self.nodes(depth + 1)?;
        let inputs = self.nodes_after("inputs")?;
        let outputs = self.nodes_after("outputs")?;
        self.expect_mark("}")?;
        let body = Body { nodes, inputs, outputs };
        Ok(Op::Scan(Box::new(Scan { sequences, invariants, carries, body, reverse, row })))
    }
}
