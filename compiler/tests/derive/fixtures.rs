//! Every example, every form it has, several chunks: outputs, last states and gradients as recorded.

use crate::examples::{MECHANISMS, fixture, mechanism, sized};
use chunkwise_compiler::compile::{Request, derive, refuses, replay};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::tensor::Bundle;
use chunkwise_dsl::instance::Instance;

/// The forms tried: (form, chunk).
const FORMS: [(Form, Option<usize>); 6] = [
    (Form::Recurrent, None),
    (Form::Parallel, None),
    (Form::Chunkwise, Some(16)),
    (Form::Chunkwise, Some(64)),
    (Form::Chunkwise, Some(100)),
    (Form::Chunkwise, None),
];

fn compare(label: &str, found: &Bundle, recorded: &Bundle, tolerance: f64) -> f64 {
    let mut worst: f64 = 0.0;
    let mut n_compared = 0;
    for (name, expected) in recorded {
        if !["out.", "final.", "grad.", "grad_init."].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let value = found.get(name).unwrap_or_else(|| panic!("{label}: `{name}` was not given"));
        let error = value.relative_error(expected, 1e-30);
        assert!(error <= tolerance, "{label}: {name} is off by {error:e}");
        worst = worst.max(error);
        n_compared += 1;
    }
    assert_eq!(n_compared, found.len(), "{label}: results nobody recorded");
    worst
}

fn forms_of(instance: &Instance, recorded: &Bundle, label: &str) {
    for (form, chunk) in FORMS {
        let request = Request { form, chunk, max_length: 100, backward: true, inside: Inside::default() };
        let label = format!("{label} {} {chunk:?}", form.name());
        let derived = derive(instance, &request).unwrap_or_else(|error| panic!("{label}: {error}"));
        assert_eq!(refuses(&derived.recurrence, form), None, "{label}");
        let (saving, backward) =
            (derived.forward_saving.as_ref().expect("asked for"), derived.backward.as_ref().expect("asked for"));
        let found =
            interp::run_backward(saving, backward, recorded, None).unwrap_or_else(|error| panic!("{label}: {error}"));
        let worst = compare(&label, &found, recorded, 1e-10);
        let forward = interp::run(&derived.forward, recorded, None).unwrap_or_else(|error| panic!("{label}: {error}"));
        for (name, value) in &forward {
            assert_eq!(value, &found[name], "{label}: {name} with and without saving");
        }
        replay(instance, &request, &derived).unwrap_or_else(|error| panic!("{label}: {error}"));
        println!("{label}: {worst:.1e}");
    }
}

#[test]
fn every_form_gives_what_was_recorded() {
    for name in MECHANISMS {
        let Some(recorded) = fixture(name) else { continue };
        let program = mechanism(name);
        let instance = sized(&program, &recorded);
        let token = interp::run(
            &derive(
                &instance,
                &Request {
                    form: Form::Recurrent,
                    chunk: None,
                    max_length: 0,
                    backward: false,
                    inside: Inside::default(),
                },
            )
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .token,
            &recorded,
            None,
        )
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        for (result, tensor) in &token {
            let error = tensor.relative_error(&recorded[result], 1e-30);
            assert!(error <= 1e-11, "{name}: token graph, {result} is off by {error:e}");
        }
        forms_of(&instance, &recorded, name);
    }
}
