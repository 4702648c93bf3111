//! Loops over the rows of a step. In: a scan's operands and its body. Out: a loop whose carries stay where they are
//! and whose body is lowered like a graph of its own, on values without rows.

use super::Lowering;
use super::elementwise::Memo;
use super::index::{Env, Region, exactly, number, sum};
use super::memory::real_rows;
use super::plan::{Plan, Sink};
use super::scope::Scope;
use crate::error::CompileError;
use crate::graph::ir::{DimId, NodeId, Op};
use crate::tile::ir::{Expr, Index, Memory, Order, Place};

impl Lowering<'_> {
    /// Computes all results of an [`Op::Scan`].
    pub fn scan(&mut self, scope: &mut Scope, id: NodeId) -> Result<(), CompileError> {
        let Op::Scan(scan) = &scope.node(id).op else { unreachable!("called for scans") };
        let Some(position) = scope.position else { return Err(self.bug("a scan outside the loop over the steps")) };
        let body = &scan.body;
        let carries = scan.carries.len();

        // Where the results go: those that have a node, and scratch for those that have none.
        let mut results: Vec<Option<NodeId>> = vec![None; body.outputs.len()];
        for (n, node) in scope.nodes.iter().enumerate() {
            if let Op::ScanResult(of, k) = &node.op
                && *of == id
            {
                results[*k] = Some(NodeId(n as u32));
            }
        }
        let mut regions = Vec::new();
        let mut nobody = Vec::new();
        for (k, result) in results.iter().enumerate() {
            let region = match result {
                Some(node) => scope.allocate(&mut self.b, *node),
                None => {
                    let mut dims = body.nodes[body.outputs[k].index()].dims.clone();
                    if k >= carries {
                        dims.push(scan.row);
                    }
                    let dims = self.canonical_order(dims);
                    let region = self.b.allocate("nobody", &dims);
                    nobody.push(region.buffer);
                    region
                }
            };
            regions.push(region);
        }
        for (&first, region) in scan.carries.iter().zip(&regions) {
            let dims = scope.dims(first).to_vec();
            let scope = &*scope;
            self.b.nest(&dims, &scope.outer, &mut |b, env| {
                let value = scope.expr(b, first, env, &mut Memo::default());
                b.store(region.place(env), value);
            });
        }

        let sinks: Vec<(NodeId, Sink)> = body
            .outputs
            .iter()
            .enumerate()
            .map(|(k, &x)| (x, if k < carries { Sink::Keep } else { Sink::Store }))
            .collect();
        let plan = Plan::new(scope.graph, &body.nodes, &sinks);
        let mut inner = Scope::new(scope.graph, &body.nodes, plan);
        inner.position = scope.position;
        let sequences: Vec<Region> = scan.sequences.iter().map(|&x| scope.region(x)).collect();
        let invariants: Vec<Region> = scan.invariants.iter().map(|&x| scope.region(x)).collect();
        let outer = scope.outer.clone();
        let mut failed = None;
        self.rows_in_order("i", exactly(number(0)), real_rows(position), Order::reversed(scan.reverse), |this, i| {
            inner.outer = outer.with(scan.row, i.clone());
            let given = sequences.iter().map(|s| s.indexed(scan.row, i)).chain(invariants.iter().cloned());
            for (&input, region) in body.inputs.iter().zip(given) {
                inner.regions[input.index()] = Some(region);
            }
            let homes: Vec<(NodeId, Region)> = body.inputs[sequences.len() + invariants.len()..]
                .iter()
                .copied()
                .zip(regions.iter().cloned())
                .collect();
            for (input, home) in &homes {
                inner.regions[input.index()] = Some(home.clone());
                inner.lent[input.index()] = true;
            }
            let stored = |this: &mut Self, inner: &mut Scope, k: usize| {
                let x = body.outputs[k];
                let dims = inner.dims(x).to_vec();
                let inner = &*inner;
                let to = regions[k].indexed(scan.row, i);
                this.b.nest(&dims, &inner.outer, &mut |b, env| {
                    let value = inner.expr(b, x, env, &mut Memo::default());
                    b.store(to.place(env), value);
                });
            };
            let result = this.roots(&mut inner, &mut |this, inner, k| {
                stored(this, inner, k);
                Ok(())
            });
            failed = result.err();
            let moves: Vec<(NodeId, Region)> =
                body.outputs[..carries].iter().copied().zip(homes.into_iter().map(|(_, home)| home)).collect();
            this.hand_over(&mut inner, &moves);
        });
        if let Some(error) = failed {
            return Err(error);
        }

        // Void rows.
        let rows = scope.graph.rows();
        let last = self.last_row(position);
        for (k, region) in regions.iter().enumerate().skip(carries) {
            let dims: Vec<DimId> = body.nodes[body.outputs[k].index()].dims.clone();
            let outer = scope.outer.clone();
            self.rows("i", real_rows(position), exactly(number(rows as i64)), |this, i| {
                let env = outer.with(scan.row, i.clone());
                if scan.reverse {
                    this.fill_at(region, &dims, &env, 0.0);
                } else {
                    this.b.nest(&dims, &env, &mut |b, env| {
                        let from = place_at_row(region, scan.row, &last, env);
                        b.store(region.place(env), Expr::Load(from));
                    });
                }
            });
        }
        nobody.into_iter().for_each(|buffer| self.b.release(buffer));
        Ok(())
    }
}

/// An element of a region at a row that is an index with a limit.
fn place_at_row(region: &Region, row: DimId, at: &Index, env: &Env) -> Place {
    let fixed = region.indexed(row, &number(0));
    let step = region.step(row);
    let mut place = fixed.place(env);
    debug_assert_eq!(place.memory, Memory::Buffer(region.buffer));
    for (index, n) in place.indices.iter_mut().zip([step.row, step.col]) {
        if n != 0 {
            let base = index.value.clone();
            index.value = sum(&base, &super::index::scaled(&at.value, n));
            index.at_most = at.at_most.as_ref().map(|limit| sum(&base, &super::index::scaled(limit, n)));
        }
    }
    place
}
