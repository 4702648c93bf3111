//! Work on the repository.
fn main() {}
