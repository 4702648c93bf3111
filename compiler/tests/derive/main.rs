//! Derived forms against recorded fixtures and against the reference, in float64.

mod anchored;
mod draw;
// Of what it offers, only the examples and their fixtures are used here.
#[allow(dead_code)]
#[path = "../reference/examples.rs"]
mod examples;
mod fixtures;
mod limits;
mod random;
mod summary;
