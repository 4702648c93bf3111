//! What one token does, taken out of the graph of a form that goes through tokens one at a time.
//!
//! Comes in: a graph whose steps take rows and whose only way from row to row is one scan. Goes out: the same as a graph
//! of steps of one token, where the scan's carries are the graph's. It refuses what mixes rows in any other way, and
//! computes nothing.

use crate::error::CompileError;
use crate::graph::ir::{Carry, DimId, Graph, InputKind, Node, NodeId, Op, Scan};

/// Takes the rows out of a graph.
pub fn one_token(graph: &Graph) -> Result<Graph, CompileError> {
    if graph.reverse || !graph.saves.is_empty() {
        return Err(refuse("a graph that runs backwards or keeps states"));
    }
    let Some(time) = graph.time else { return Ok(graph.clone()) };
    let mut taking = Taking { graph, time, nodes: Vec::new(), becomes: Vec::new(), ends: Vec::new() };
    for node in &graph.nodes {
        let becomes = taking.node(node)?;
        taking.becomes.push(becomes);
    }
    let value = |id: NodeId| match taking.becomes[id.index()] {
        Becomes::Node(new) => Ok(new),
        Becomes::State(_) | Becomes::Scan | Becomes::End(_) => Err(refuse("an output that is a state of the step")),
    };
    let mut carries = Vec::new();
    for (at, carry) in graph.carries.iter().enumerate() {
        let Becomes::State(input) = taking.becomes[carry.input.index()] else {
            return Err(refuse("a carry that is no input"));
        };
        let output = match taking.becomes[carry.output.index()] {
            Becomes::End(n) if taking.ends[n].0 == at => taking.ends[n].1,
            Becomes::State(same) if carry.output == carry.input => same,
            Becomes::End(_) | Becomes::State(_) | Becomes::Scan | Becomes::Node(_) => {
                return Err(refuse("a state that is not what its scan leaves"));
            }
        };
        carries.push(Carry { input, output, ..carry.clone() });
    }
    let outputs = graph.outputs.iter().map(|(name, node)| Ok((name.clone(), value(*node)?)));
    let outputs = outputs.collect::<Result<Vec<_>, CompileError>>()?;
    let layouts = graph.outputs.iter().map(|(name, _)| (name.clone(), graph.output_layout(name))).collect();
    Ok(Graph {
        name: graph.name.clone(),
        dims: graph.dims.clone(),
        nodes: taking.nodes,
        time: None,
        tokens: 1,
        reverse: false,
        span: None,
        carries,
        outputs,
        layouts,
        saves: vec![],
    })
}

/// A limit of this lowering, in the words of whoever reads graphs.
pub fn refuse(what: &str) -> CompileError {
    CompileError::Limit {
        what: format!("{what} does not go through tokens with its states in registers"),
        instead: "it takes the general lowering for GPUs".to_owned(),
        span: None,
    }
}

/// What a node of the graph is in the token.
#[derive(Clone, Copy, Debug)]
enum Becomes {
    /// A value of every token.
    Node(NodeId),
    /// A state before the step; only a scan may take it.
    State(NodeId),
    /// A scan; its results are looked up.
    Scan,
    /// A state after the step: an entry of [`Taking::ends`].
    End(usize),
}

struct Taking<'g> {
    graph: &'g Graph,
    time: DimId,
    nodes: Vec<Node>,
    becomes: Vec<Becomes>,
    /// Carries of the graph with their values after a token; then what a scan gives for every row.
    ends: Vec<(usize, NodeId)>,
}

impl Taking<'_> {
    fn add(&mut self, op: Op, dims: Vec<DimId>, like: &Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("ids have 32 bits"));
        self.nodes.push(Node { op, dims, span: like.span, rule: like.rule });
        id
    }

    fn without_time(&self, dims: &[DimId]) -> Vec<DimId> {
        dims.iter().copied().filter(|dim| *dim != self.time).collect()
    }

    /// An operand that is a value of every token.
    fn value(&self, id: NodeId) -> Result<NodeId, CompileError> {
        match self.becomes[id.index()] {
            Becomes::Node(node) => Ok(node),
            Becomes::State(_) | Becomes::Scan | Becomes::End(_) => Err(refuse("a state of the step outside its scan")),
        }
    }

    fn node(&mut self, node: &Node) -> Result<Becomes, CompileError> {
        let time = self.time;
        let dims = self.without_time(&node.dims);
        match &node.op {
            Op::Input { kind, .. } => {
                let added = self.add(node.op.clone(), dims, node);
                match kind {
                    InputKind::Carry => Ok(Becomes::State(added)),
                    InputKind::Token | InputKind::Head => Ok(Becomes::Node(added)),
                    InputKind::Cotangent | InputKind::Saved => Err(refuse("a graph of gradients")),
                }
            }
            Op::Const(_) => Ok(Becomes::Node(self.add(node.op.clone(), dims, node))),
            // The rows it replaces are those that are no tokens.
            Op::Guard(x, _) => Ok(Becomes::Node(self.value(*x)?)),
            Op::Broadcast(x) if self.nodes[self.value(*x)?.index()].dims == dims => Ok(Becomes::Node(self.value(*x)?)),
            Op::Unary(..)
            | Op::Binary(..)
            | Op::Select { .. }
            | Op::Broadcast(_)
            | Op::Sum(..)
            | Op::MaxOver(..)
            | Op::Contract(..)
            | Op::Rename(..)
            | Op::Index(..)
            | Op::Stack(..)
            | Op::StopGradient(_) => {
                if node.op.named_dims().contains(&time) {
                    return Err(refuse("what sums or moves along time"));
                }
                let mut op = node.op.clone();
                let mut wrong = None;
                op.for_each_operand(&mut |id| match self.value(*id) {
                    Ok(new) => *id = new,
                    Err(error) => wrong = Some(error),
                });
                match wrong {
                    Some(error) => Err(error),
                    None => Ok(Becomes::Node(self.add(op, dims, node))),
                }
            }
            Op::Scan(scan) => self.scan(scan),
            Op::ScanResult(scan, n) => {
                let Op::Scan(scan) = &self.graph.node(*scan).op else {
                    return Err(refuse("a result of no scan"));
                };
                if *n < scan.carries.len() { Ok(Becomes::End(*n)) } else { Ok(Becomes::Node(self.ends[*n].1)) }
            }
            Op::BodyInput(_)
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
            | Op::Inverse(_) => Err(refuse("what looks at several tokens at once")),
        }
    }

    /// Puts the body of the scan among the token's nodes.
    fn scan(&mut self, scan: &Scan) -> Result<Becomes, CompileError> {
        if scan.reverse || scan.row != self.time || !self.ends.is_empty() {
            return Err(refuse("more than one scan, or one that does not follow the tokens"));
        }
        let mut given = Vec::new();
        for &id in scan.sequences.iter().chain(&scan.invariants) {
            given.push(self.value(id)?);
        }
        let mut states = Vec::new();
        for &id in &scan.carries {
            let Becomes::State(state) = self.becomes[id.index()] else {
                return Err(refuse("a scan that starts from something computed"));
            };
            let carried = self.graph.carries.iter().position(|carry| carry.input == id);
            states.push(carried.ok_or_else(|| refuse("a scan that starts from no carry"))?);
            given.push(state);
        }
        let mut map: Vec<NodeId> = Vec::new();
        for node in &scan.body.nodes {
            let new = match &node.op {
                Op::BodyInput(n) => given[*n],
                op => {
                    let mut op = op.clone();
                    op.for_each_operand(&mut |id| *id = map[id.index()]);
                    self.add(op, node.dims.clone(), node)
                }
            };
            map.push(new);
        }
        for (n, output) in scan.body.outputs.iter().enumerate() {
            let carry = states.get(n).copied().unwrap_or(usize::MAX);
            self.ends.push((carry, map[output.index()]));
        }
        Ok(Becomes::Scan)
    }
}
