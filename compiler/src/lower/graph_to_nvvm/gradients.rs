//! The gradients of a decay inside a sum, within a block of sixteen tokens.
//!
//! Comes in: derivatives of the gated trilinear form by rows, columns and logarithms ([`Op::Gated`]). Goes out: their
//! elements. Those of several weights under one decay are computed together, and what is only added up comes out as one
//! sum. See [`super::gated`] for how pairs of rows are put together.
//!
//! With the weights of a half's pairs, both ways, and the later rows and earlier columns times their factors, one product
//! of matrices gives both gradients: a row's factor times it. What a factor's logarithm gets goes back to those it was
//! summed from, by the transposed spans.

use super::Refusal;
use super::block::{Block, Element, Home, Key, Point};
use super::halves::HALVES;
use super::shape::{Shape, extent};
use crate::graph::ir::{Binary, DimId, GatedPart, Gates, NodeId, Op};
use crate::lower::tile_to_mlir::writer::{Ty, Val};
use crate::lower::tile_to_nvvm::text;
use std::collections::HashMap;

/// Registers that a weight takes while its gradients are computed, and those of all together.
const OF_EACH: usize = 16;
const OF_ALL: usize = 32;

/// The gradients of one weight.
struct Group {
    weight: NodeId,
    rows: Option<NodeId>,
    cols: Option<NodeId>,
    forms: Vec<(NodeId, GatedPart)>,
}

/// What is computed for an element: which gradient, and the sum it is added to in the end.
type Sum = (GatedPart, NodeId);

impl Block<'_> {
    /// Makes a gradient of the gated form ready, and those that are computed along with it.
    pub fn gated_gradients(&mut self, x: NodeId, axis: DimId) -> Result<(), Refusal> {
        let Op::Gated { gates, row, col, .. } = self.op(x) else { return Err(self.bug(x, "is no gated form")) };
        let groups = self.groups(x)?;
        let mut homes = Vec::new();
        for group in &groups {
            for operand in [group.rows, group.cols].into_iter().flatten() {
                self.ready(operand)?;
            }
            self.ready(group.weight)?;
        }
        for group in &groups {
            homes.push(self.homes.get(&group.weight).cloned().ok_or(Refusal::Park(group.weight))?);
        }
        let model = groups[0].rows.or(groups[0].cols).ok_or_else(|| self.bug(x, "lacks both operands"))?;
        let shape = self.matrix(self.dims(model))?;
        if shape.rows.len() != 2 || shape.cols != [axis] || !shape.outer.is_empty() {
            return Err(Refusal::unsupported("a decay inside a sum over blocks that lie otherwise"));
        }
        let with = |inner: DimId| Shape { rows: vec![shape.rows[0], inner], ..shape.clone() };
        let (by_row, by_col) = (with(*row), with(*col));
        let roots = self.roots(&groups);
        let spans = self.spans(gates, &by_row)?;
        self.statement();
        self.lives.works(OF_ALL + OF_EACH * groups.len());
        let nowhere = Point::default();
        let (elements, there) = (self.elements(&by_row, &nowhere), self.elements(&by_col, &nowhere));
        let n_cols = extent(self.graph, &shape.cols);
        let (strips, eights) = (self.warps.strips(extent(self.graph, &shape.rows)), self.warps.eights(n_cols));
        for strip in 0..strips {
            let weights = self.all_symmetric(&homes, &by_row, *col, strip)?;
            for eight in 0..eights {
                let first = 4 * (strip * eights + eight);
                let own = [&elements[first..first + 4], &there[first..first + 4]];
                let logs = self.logarithms(&spans, &by_row, (strip, eight), 1)?;
                let mut sums: HashMap<Sum, [Val; 4]> = HashMap::new();
                // By sum of logarithms: what each half's get.
                let mut shares: HashMap<Sum, Vec<[Val; 4]>> = HashMap::new();
                let operands = self.operands(&groups, &by_row, own)?;
                let mut factors = Vec::new();
                for (level, &half) in HALVES.iter().enumerate() {
                    if level % 2 == 0 {
                        factors.extend(self.half_factors(&spans, &by_row, &logs, own[0], [half, HALVES[level + 1]]));
                    }
                    for (n, group) in groups.iter().enumerate() {
                        let place = (level, own[0]);
                        let (y, share) = self.one_half(place, &weights[n][level], &operands[n], &factors[level]);
                        self.add_sums(group, &roots, place, (&y, &factors[level]), &mut sums);
                        self.add_shares(group, &roots, level, &share, &mut shares);
                    }
                }
                let mut order: Vec<Sum> = shares.keys().copied().collect();
                order.sort_unstable();
                for sum in order {
                    let GatedPart::Gate(event) = sum.0 else { continue };
                    let logs = self.transposed_spans(&spans, event, &shares[&sum]);
                    sums.insert(sum, logs);
                }
                self.keep_sums(&groups, &roots, &sums, own, elements.len())?;
            }
        }
        for (form, _) in groups.iter().flat_map(|group| &group.forms) {
            self.visited.insert(*form);
        }
        Ok(())
    }

    /// The gradient at hand and what is computed with it: everything of its weight, then of other weights under the same
    /// decay that wait for no gradient.
    fn groups(&mut self, x: NodeId) -> Result<Vec<Group>, Refusal> {
        let Op::Gated { weight: Some(own), .. } = self.op(x) else { return Err(self.bug(x, "lacks its weight")) };
        let mut weights = vec![*own];
        for n in 0..self.graph.nodes.len() {
            let other = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            if let Op::Gated { weight: Some(weight), .. } = self.op(other)
                && self.same_decay(x, other)
                && !self.is_at_hand(other)
                && !weights.contains(weight)
                && self.waits_for_no_gradient(*weight)
            {
                weights.push(*weight);
            }
        }
        let groups = weights.into_iter().map(|weight| self.group(x, weight));
        Ok(groups.filter(|group| !group.forms.is_empty()).collect())
    }

    /// The gradients of a weight under a decay whose operands are plain.
    fn group(&self, x: NodeId, weight: NodeId) -> Group {
        let mut group = Group { weight, rows: None, cols: None, forms: Vec::new() };
        for n in 0..self.graph.nodes.len() {
            let other = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            let Op::Gated { part, weight: Some(w), rows, cols, .. } = self.op(other) else { continue };
            let plain = || rows.iter().chain(cols).all(|operand| self.is_plain(*operand));
            let fits = |own: Option<NodeId>, known: Option<NodeId>| own.is_none() || known.is_none() || own == known;
            if *w == weight
                && self.same_decay(x, other)
                && !self.is_at_hand(other)
                && (other == x || plain())
                && fits(*rows, group.rows)
                && fits(*cols, group.cols)
            {
                group.rows = group.rows.or(*rows);
                group.cols = group.cols.or(*cols);
                group.forms.push((other, *part));
            }
        }
        group
    }

    /// Whether two gradients are under one decay, and lie alike.
    fn same_decay(&self, x: NodeId, y: NodeId) -> bool {
        fn parts(op: &Op) -> Option<(&Gates, DimId, DimId, &Vec<DimId>)> {
            match op {
                Op::Gated { gates, row, col, axes, weight: Some(_), .. } => Some((gates, *row, *col, axes)),
                _ => None,
            }
        }
        parts(self.op(x)).is_some_and(|own| parts(self.op(y)) == Some(own))
    }

    /// Whether nothing that a value is still to be computed from is a gradient.
    fn waits_for_no_gradient(&self, x: NodeId) -> bool {
        let mut open = vec![x];
        let mut seen = std::collections::HashSet::new();
        while let Some(x) = open.pop() {
            if self.is_at_hand(x) || !seen.insert(x) {
                continue;
            }
            if matches!(self.op(x), Op::Gated { weight: Some(_), .. }) {
                return false;
            }
            open.extend(self.op(x).operands());
        }
        true
    }

    /// By gradient: the sum that it is one summand of and nothing else.
    fn roots(&self, groups: &[Group]) -> HashMap<NodeId, NodeId> {
        let root = |x: NodeId| {
            let mut sum = x;
            while self.uses[sum.index()] == 1
                && let Some(n) = self.graph.nodes.iter().position(|node| node.op.operands().contains(&sum))
                && let Op::Binary(Binary::Add, ..) = self.graph.nodes[n].op
                && self.graph.nodes[n].dims == *self.dims(sum)
            {
                sum = NodeId(u32::try_from(n).expect("ids have 32 bits"));
            }
            (x, sum)
        };
        groups.iter().flat_map(|group| &group.forms).map(|(x, _)| root(*x)).collect()
    }

    /// The weights of a strip, of all groups.
    fn all_symmetric(
        &mut self,
        homes: &[Home],
        by_row: &Shape,
        col: DimId,
        strip: usize,
    ) -> Result<Vec<[[Val; 4]; 4]>, Refusal> {
        let [block, row] = by_row.rows[..] else {
            return Err(Refusal::Bug("rows of blocks are two dimensions".into()));
        };
        homes.iter().map(|home| self.symmetric(home, block, row, col, strip)).collect()
    }

    /// By group: rows and columns at some elements.
    fn operands(
        &mut self,
        groups: &[Group],
        shape: &Shape,
        [own, there]: [&[Element]; 2],
    ) -> Result<Vec<Vec<(Val, Val)>>, Refusal> {
        let zero = self.w.f32(0.0, 0);
        let mut all = Vec::new();
        for group in groups {
            let mut operands = Vec::new();
            for (element, there) in own.iter().zip(there) {
                let real = self.real(shape, &element.at);
                let operand = |this: &mut Self, node: Option<NodeId>, at: &Point| match node {
                    None => Ok(zero),
                    Some(node) => this.eval(node, at).map(|value| this.or_zero(real, value)),
                };
                operands.push((operand(self, group.rows, &element.at)?, operand(self, group.cols, &there.at)?));
            }
            all.push(operands);
        }
        Ok(all)
    }

    /// One half's product for one weight, before its rows' factors, and what their logarithms get of it.
    fn one_half(
        &mut self,
        (level, elements): (usize, &[Element]),
        weights: &[Val; 4],
        operands: &[(Val, Val)],
        factors: &[Val],
    ) -> ([Val; 4], [Val; 4]) {
        let zero = self.w.f32(0.0, 0);
        let decayed: [Val; 4] = std::array::from_fn(|n| {
            let value = self.of_half(HALVES[level], &elements[n], operands[n].0, operands[n].1);
            self.w.op("fmul", value, factors[n], Ty::F32)
        });
        let words = self.pairs(&decayed);
        let turned = [self.turned(words[0]), self.turned(words[1])];
        let mut sums = [zero; 4];
        self.mma(weights, &turned, &mut sums);
        (sums, std::array::from_fn(|n| self.w.op("fmul", decayed[n], sums[n], Ty::F32)))
    }

    /// Adds a half's product to the gradients by rows and columns.
    fn add_sums(
        &mut self,
        group: &Group,
        roots: &HashMap<NodeId, NodeId>,
        (level, elements): (usize, &[Element]),
        (y, factors): (&[Val; 4], &[Val]),
        sums: &mut HashMap<Sum, [Val; 4]>,
    ) {
        let zero = self.w.f32(0.0, 0);
        let half = HALVES[level];
        for (form, part) in &group.forms {
            let later = match part {
                GatedPart::Rows => true,
                GatedPart::Cols => false,
                GatedPart::Gate(_) | GatedPart::Weight => continue,
            };
            let sums = sums.entry((*part, roots[form])).or_insert([zero; 4]);
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = self.add_to_half(half, &elements[n], (y[n], factors[n]), later, *sum);
            }
        }
    }

    /// Adds what the logarithms of a half get.
    fn add_shares(
        &mut self,
        group: &Group,
        roots: &HashMap<NodeId, NodeId>,
        level: usize,
        share: &[Val; 4],
        shares: &mut HashMap<Sum, Vec<[Val; 4]>>,
    ) {
        for (form, part) in &group.forms {
            let GatedPart::Gate(_) = part else { continue };
            let shares = shares.entry((*part, roots[form])).or_default();
            match shares.get_mut(level) {
                None => shares.push(*share),
                Some(sums) => {
                    for (sum, share) in sums.iter_mut().zip(share) {
                        *sum = self.w.op("fadd", *sum, *share, Ty::F32);
                    }
                }
            }
        }
    }

    /// Keeps the gradients of some elements: a sum of several as the first of them, the others being zero.
    fn keep_sums(
        &mut self,
        groups: &[Group],
        roots: &HashMap<NodeId, NodeId>,
        sums: &HashMap<Sum, [Val; 4]>,
        [own, there]: [&[Element]; 2],
        elements: usize,
    ) -> Result<(), Refusal> {
        let zero = self.w.f32(0.0, 0);
        let mut given = Vec::new();
        for (form, part) in groups.iter().flat_map(|group| &group.forms) {
            let places = if *part == GatedPart::Cols { there } else { own };
            let keys = places.iter().map(|element| self.key(*form, &element.at)).collect::<Result<Vec<Key>, _>>()?;
            let sum = (*part, roots[form]);
            if given.contains(&sum) {
                self.held.insert(*form);
                self.values.extend(keys.into_iter().map(|key| (key, zero)));
                continue;
            }
            given.push(sum);
            let values = sums[&sum].map(|value| text::pinned(&mut self.w, value));
            for pair in [0, 2] {
                self.keep(*form, [0, 1].map(|odd: usize| (keys[pair + odd], values[pair + odd])), elements);
            }
        }
        Ok(())
    }
}
