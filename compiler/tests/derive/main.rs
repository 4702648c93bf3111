//! Derived forms against recorded fixtures and against the reference, in float64.

#[path = "../reference/examples.rs"]
mod examples;
mod draw;
mod fixtures;
mod limits;
mod random;
mod summary;
