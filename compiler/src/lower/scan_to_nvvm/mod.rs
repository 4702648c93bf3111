//! Graph of a form that goes through tokens one at a time → MLIR for NVIDIA GPUs, its states in registers.
//!
//! Comes in: a forward graph whose steps hold one scan over their tokens, and the arguments that its general lowering
//! would take. Goes out: an entry as text in the `llvm` dialect structured by `scf`, and what a launch of it needs. It
//! never looks at a mechanism. What it cannot do it refuses, and the general lowering takes it.
//!
//! # How a token runs
//! A block of threads owns one head of a sequence, or a block of a dimension of it whose positions have nothing to do
//! with each other. Every dimension is dealt out to registers, lanes, warps and blocks ([`spread`], chosen by
//! [`choose`]). The states are read once, sixteen bytes a thread at once, and stay in registers; for each token its
//! tensors are read, sums go from registers over lanes to warps, in a fixed order, and outputs are written; after the
//! last token the states are written once. Each element of a state is read and written by one thread, or all have read
//! it before one writes, so the last states may take the place of the first.

mod choose;
mod kernel;
mod memory;
mod spread;
mod token;
mod value;

use super::tile_to_mlir::functions::Functions;
use super::tile_to_nvvm::Entry;
use crate::error::CompileError;
use crate::graph::ir::Graph;
use crate::tile::ir::Arg;

/// Lowers a graph to the entry of a kernel.
pub fn lower(graph: &Graph, args: &[Arg], symbol: &str) -> Result<Entry, CompileError> {
    let token = token::one_token(graph)?;
    let mut functions = Functions::default();
    let (entry, launch) = kernel::lower(&token, args, symbol, &mut functions)?;
    Ok(Entry { symbol: symbol.to_owned(), text: entry, launch, functions })
}

#[cfg(test)]
mod tests {
    use super::choose::choose;
    use super::token::one_token;
    use crate::compile::{Derived, Request, derive};
    use crate::derive::form::{Form, Inside};
    use crate::error::CompileError;
    use crate::graph::ir::{Graph, Op};
    use chunkwise_abi::DType;
    use chunkwise_dsl::instance::Instance;
    use std::collections::BTreeMap;

    const DELTA: &str = "recurrence delta { axis K, V  input q: [K], k: [K] in unit(K), v: [V], beta: [] in [0, 1]
        state S: [K, V]  S = S + k * (beta * (v - k @ S))  output o: [V] = q @ S }";
    const NORMALISED: &str = "recurrence normalised { axis K, V  input q: [K], k: [K], v: [V]
        state S: [K, V], z: [K]  S = S + k * v  z = z + k  output o: [V] = (q @ S) / (q @ z) }";
    const ELEMENTWISE: &str = "recurrence elementwise { axis V  input f: [V], i: [V]  state h: [V]  h = sigmoid(f) * h + i  output o: [V] = h }";
    const SUMMED: &str = "recurrence summed { axis K, V  input k: [K], v: [V]  state S: [K, V]  S = S + k * v
        output o: [K] = sum(S, V) }";

    fn derived(source: &str, form: Form, sizes: &[(&str, usize)]) -> Derived {
        let compiled = chunkwise_dsl::compile(source).unwrap();
        let sizes: BTreeMap<String, usize> = sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        let instance = Instance::new(&compiled.programs[0], &sizes, &BTreeMap::new()).unwrap();
        let request = Request { form, chunk: None, max_length: 0, backward: true, inside: Inside::default() };
        derive(&instance, &request).unwrap()
    }

    fn token(source: &str, sizes: &[(&str, usize)]) -> Graph {
        one_token(&derived(source, Form::Recurrent, sizes).forward).unwrap()
    }

    fn is_a_limit<T>(result: Result<T, CompileError>) -> bool {
        matches!(result, Err(CompileError::Limit { .. }))
    }

    #[test]
    fn a_token_has_no_rows_and_no_scan() {
        let graph = token(DELTA, &[("K", 8), ("V", 4)]);
        let derived = derived(DELTA, Form::Recurrent, &[("K", 8), ("V", 4)]).forward;
        let time = derived.time.unwrap();
        assert!(graph.nodes.iter().all(|node| !node.dims.contains(&time) && !matches!(node.op, Op::Scan(_))));
        assert_eq!((graph.time, graph.tokens), (None, 1));
        assert_eq!(graph.carries[0].init.as_deref(), Some("init.S"));
        // A token's graph is its own.
        assert_eq!(one_token(&graph).unwrap(), graph);
        // Its last state is what its last edit gave.
        assert!(matches!(graph.node(graph.carries[0].output).op, Op::Binary(..)));
    }

    #[test]
    fn what_looks_at_several_tokens_is_refused() {
        let sizes = [("K", 16), ("V", 16)];
        let chunkwise = derived(DELTA, Form::Chunkwise, &sizes);
        assert!(is_a_limit(one_token(&chunkwise.forward)));
        let recurrent = derived(DELTA, Form::Recurrent, &sizes);
        assert!(is_a_limit(one_token(&recurrent.backward.unwrap())));
        assert!(is_a_limit(one_token(&recurrent.forward_saving.unwrap())));
    }

    #[test]
    fn a_state_is_read_in_long_runs_and_summed_within_a_warp() {
        let graph = token(DELTA, &[("K", 128), ("V", 128)]);
        let choice = choose(&graph, DType::F32).unwrap();
        let dim = |name: &str| choice.spread.shares[graph.dims.iter().position(|dim| dim.name == name).unwrap()];
        let (k, v) = (dim("K"), dim("V"));
        assert_eq!((k.warps, k.blocks, k.room()), (1, 1, 128));
        assert_eq!((v.inner, v.room()), (4, 128));
        assert!(v.lanes * 16 >= 64, "{v:?}");
        assert_eq!(k.lanes * v.lanes, 32);
        assert_eq!((choice.registers, choice.tokens), (None, 1));
        // A state of half the bytes is read in runs of as many.
        let choice = choose(&graph, DType::BF16).unwrap();
        assert_eq!(choice.spread.shares[graph.dims.iter().position(|dim| dim.name == "V").unwrap()].inner, 8);
    }

    #[test]
    fn blocks_share_only_what_goes_its_own_way_in_every_state() {
        let sizes = [("K", 128), ("V", 128)];
        assert!(choose(&token(DELTA, &sizes), DType::F32).unwrap().spread.blocks > 1);
        // Another block would read a state that this one writes.
        let whole = choose(&token(NORMALISED, &sizes), DType::F32).unwrap();
        assert_eq!((whole.spread.blocks, whole.registers), (1, Some(128)));
        let graph = token(SUMMED, &sizes);
        let spread = choose(&graph, DType::F32).unwrap().spread;
        assert!(graph.dims.iter().zip(&spread.shares).all(|(dim, share)| dim.name != "V" || share.blocks == 1));
    }

    #[test]
    fn every_size_has_room_and_what_is_too_large_is_refused() {
        for (k, v) in [(1, 1), (3, 5), (60, 100), (128, 128), (256, 256), (37, 1000)] {
            for source in [DELTA, SUMMED] {
                let graph = token(source, &[("K", k), ("V", v)]);
                let spread = choose(&graph, DType::F32).unwrap().spread;
                for (dim, share) in graph.dims.iter().zip(&spread.shares) {
                    assert!(share.room() >= dim.size, "{} of {k} × {v}: {share:?}", dim.name);
                }
            }
        }
        let vast = token(NORMALISED, &[("K", 1024), ("V", 1024)]);
        assert!(is_a_limit(choose(&vast, DType::F32)));
    }

    #[test]
    fn tokens_are_read_together_where_registers_are_left() {
        let choice = choose(&token(ELEMENTWISE, &[("V", 2048)]), DType::F32).unwrap();
        assert!(choice.tokens > 1 && choice.spread.blocks > 1, "{choice:?}");
    }
}
