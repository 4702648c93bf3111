//! How a recurrence is derived and what it costs, for people. In: an instance of a program; out: text, or a page that
//! needs nothing but itself. It derives; it compiles and runs nothing.

pub mod drawing;
pub mod equations;
pub mod linear_text;
pub mod page;

use chunkwise_compiler::artifact::{self, Direction, Parts};
use chunkwise_compiler::compile::{self, Derived};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::error::CompileError;
use chunkwise_dsl::instance::Instance;

use crate::costs::{self, Costs};
use crate::engine::request;
use crate::failure::Failure;
use crate::report;

/// One form: derived and counted, or why it is not to be had.
#[derive(Clone, Debug)]
pub struct FormFacts {
    /// Which.
    pub form: Form,
    /// What was found.
    pub outcome: Result<Found, String>,
}

/// A form that exists.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its graphs and derivation.
    pub derived: Derived,
    /// Outputs only.
    pub forward: Costs,
    /// Outputs with what the gradients need, and the gradients.
    pub gradients: Costs,
    /// Bytes that the backward finds saved, a token and head.
    pub saved_bytes: f64,
}

/// Derives every form. `length` is what a parallel form is made for.
pub fn forms(
    instance: &Instance,
    chunk: Option<usize>,
    length: usize,
    inside: Inside,
) -> Result<Vec<FormFacts>, Failure> {
    let mut facts = Vec::new();
    for form in [Form::Recurrent, Form::Parallel, Form::Chunkwise] {
        let chunk = chunk.filter(|_| form == Form::Chunkwise);
        let outcome = match compile::derive(instance, &request(form, chunk, length, Parts::Both, inside)) {
            Ok(derived) => Ok(found(derived)?),
            Err(CompileError::Limit { what, instead, .. }) => Err(format!("{what}; {instead}")),
            Err(error @ CompileError::Bug { .. }) => return Err(error.into()),
        };
        facts.push(FormFacts { form, outcome });
    }
    Ok(facts)
}

fn found(derived: Derived) -> Result<Found, Failure> {
    let mut forward = Costs::default();
    let mut gradients = Costs::default();
    let mut saved_bytes = 0.0;
    for (direction, graph) in artifact::graphs(&derived, Parts::Both)? {
        let costs = costs::of(&graph);
        match direction {
            Direction::Forward => forward = costs,
            Direction::ForwardSaving | Direction::Backward => {
                gradients.matmul_flops += costs.matmul_flops;
                gradients.other_flops += costs.other_flops;
                gradients.bytes += costs.bytes;
                gradients.step_bytes = gradients.step_bytes.max(costs.step_bytes);
            }
        }
        if direction == Direction::ForwardSaving {
            let sizes = graph.saves.iter().map(|(_, node)| graph.sizes(&graph.node(*node).dims));
            let saved: usize = sizes.map(|sizes| sizes.iter().product::<usize>()).sum();
            saved_bytes = 4.0 * saved as f64 / graph.tokens.max(1) as f64;
        }
    }
    Ok(Found { derived, forward, gradients, saved_bytes })
}

/// The table of what each form costs.
pub fn costs_table(facts: &[FormFacts]) -> String {
    let head = ["form", "tokens a step", "flops", "flops with gradients", "tensors", "saved", "numbers of a step"];
    let rows = facts.iter().filter_map(|facts| {
        let found = facts.outcome.as_ref().ok()?;
        Some([
            facts.form.name().to_owned(),
            found.derived.chunk.to_string(),
            whole(found.forward.flops()),
            whole(found.gradients.flops()),
            report::bytes(found.forward.bytes),
            report::bytes(found.saved_bytes),
            report::bytes(found.forward.step_bytes),
        ])
    });
    report::table(head, rows)
}

/// A count with thin groups of three digits.
pub fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
