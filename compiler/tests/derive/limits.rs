//! What has no chunk form, and the reason given for it.

use chunkwise_compiler::compile::{Request, derive, refuses};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_dsl::instance::Instance;
use std::collections::BTreeMap;

/// The reason why a program has no chunk form; none if it has one. The recurrent form has to exist.
fn reason(body: &str) -> Option<String> {
    let source = format!("recurrence limited {{ axis K, V input q: [K], k: [K], v: [V], a: [] {body} }}");
    let programs = chunkwise_dsl::compile(&source).expect("the program is right").programs;
    let sizes = BTreeMap::from([("K".to_owned(), 3), ("V".to_owned(), 2)]);
    let instance = Instance::new(&programs[0], &sizes, &BTreeMap::new()).expect("the sizes fit");
    let request = |form| Request { form, chunk: None, max_length: 8, backward: true, inside: Inside::default() };
    let recurrent = derive(&instance, &request(Form::Recurrent)).expect("a token at a time everything is possible");
    let found = refuses(&recurrent.recurrence, Form::Chunkwise);
    assert_eq!(derive(&instance, &request(Form::Chunkwise)).is_err(), found.is_some());
    found
}

#[test]
fn a_coupling_of_full_rank_is_refused_by_name() {
    let found =
        reason("state S: [K, V], M: [K, V] S = a * S + M + k * (v - k @ S) M = 0.5 * M + a * S output o: [V] = q @ S");
    assert_eq!(found.as_deref(), Some("S takes in the whole of M: a coupling of full rank"));
    // Nothing comes back out of a sum here: every element goes its own way, in any form.
    let apart = reason("state S: [K, V], M: [K, V] S = a * S + M + k * v M = 0.5 * M + a * S output o: [V] = q @ S");
    assert_eq!(apart, None);
}
