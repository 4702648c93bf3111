//! Derived forms against recorded fixtures and against the reference, in float64.

mod draw;
#[path = "../reference/examples.rs"]
mod examples;
mod fixtures;
mod limits;
mod random;
mod summary;
