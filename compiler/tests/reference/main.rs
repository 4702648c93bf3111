//! The float64 reference against what does not come from it: recorded results of another implementation, finite
//! differences, arithmetic done by hand, NumPy.

mod builder;
mod calls;
mod draw;
mod examples;
mod fixtures;
mod numpy;
mod rounding;
mod slopes;
mod statements;
