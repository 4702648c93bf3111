//! Trains two small language models that differ in nothing but their `.cw` file.

fn main() {}
