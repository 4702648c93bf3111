//! Random programs in stages.

use super::examples::{Prepared, check};
use crate::draw::Case;
use chunkwise_compiler::generate::Sketch;

#[test]
fn stages_of_random_programs() {
    let mut ran = 0;
    for seed in 0..100 {
        let source = Sketch::draw(seed).source();
        let program = chunkwise_dsl::compile(&source).expect("drawn programs are well formed").programs.remove(0);
        let mut case = Case::draw(seed, &program);
        case.sizes.retain(|name, _| program.axes.iter().any(|axis| axis.name == *name));
        case.tokens = case.tokens.min(24);
        case.batch = 1;
        let chunk = case.chunks[seed as usize % 2].min(32);
        let prepared = Prepared::ALL[seed as usize / 2 % 3];
        match check(&program, &case, chunk, prepared) {
            Ok(done) => ran += usize::from(done),
            Err(error) => panic!("seed {seed}, chunk {chunk}, {prepared:?}: {error}\n{case:?}\n{source}"),
        }
    }
    assert!(ran >= 80, "only {ran} of 100 programs have a chunk form and tame numbers");
}
