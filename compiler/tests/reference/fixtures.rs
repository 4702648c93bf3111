//! Each example mechanism against what another implementation recorded: outputs, final states, every gradient.

use chunkwise_compiler::reference::{run, run_backward};

use crate::examples::{MECHANISMS, fixture, mechanism, sized};

#[test]
fn every_mechanism_gives_what_was_recorded() {
    let mut worst: f64 = 0.0;
    for name in MECHANISMS {
        let Some(recorded) = fixture(name) else { continue };
        let program = mechanism(name);
        let instance = sized(&program, &recorded);
        let results = run_backward(&instance, &recorded).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = recorded
            .keys()
            .filter(|name| ["out.", "final.", "grad.", "grad_init."].iter().any(|prefix| name.starts_with(prefix)));
        let mut n_compared = 0;
        for result in expected {
            let found = results.get(result).unwrap_or_else(|| panic!("{name}: `{result}` was recorded but not given"));
            let error = found.relative_error(&recorded[result], 1e-30);
            assert!(error <= 1e-11, "{name}: {result} is off by {error:e}");
            worst = worst.max(error);
            n_compared += 1;
        }
        assert_eq!(n_compared, results.len(), "{name}: every result has a recorded one");
        let forward = run(&instance, &recorded).expect("the backward pass ran");
        for (result, tensor) in &forward {
            assert_eq!(tensor, &results[result], "{name}: {result} is the same with and without gradients");
        }
    }
    println!("largest relative error {worst:e}");
}
