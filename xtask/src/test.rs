//! Everything that has to hold before a change is good: formatting, lints, the rules of the house, tests, the book.
//! In: the working tree; out: done, or the first thing that fails. It never repairs anything.

use crate::assembler;
use crate::packages;
use crate::steps::{self, Stop};

/// Installs what is missing, then checks everything.
pub fn run() -> Result<(), Stop> {
    packages::ensure(&packages::BUILD)?;
    assembler::ensure();
    steps::cargo(&["fmt", "--all", "--check"])?;
    tidy()?;
    steps::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    // The demo is linted like the rest; building its deep-learning library to run no tests would double the time.
    steps::cargo(&["test", "--workspace", "--exclude", "chunkwise-train"])?;
    if steps::exists("mdbook") {
        // Where to is said in docs/book.toml.
        steps::run("mdbook", &["build", "docs"])?;
    } else {
        println!("\nThe book was not built: there is no mdbook here (`cargo install mdbook` brings it).");
    }
    println!("\nAll is well.");
    Ok(())
}

/// The rules of the house, which need neither LLVM nor the rest of the workspace.
pub fn tidy() -> Result<(), Stop> {
    steps::cargo(&["test", "--quiet", "--package", "xtask"])
}
