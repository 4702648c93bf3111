//! Running one command after another. In: a program and its arguments; out: done, or why everything stops here.
//! It never runs anything without saying it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Why the work stops, and the exit code that says so.
pub struct Stop {
    pub message: String,
    pub code: u8,
}

impl Stop {
    /// Something of ours failed.
    pub fn failed(message: impl Into<String>) -> Stop {
        Stop { message: message.into(), code: 1 }
    }

    /// The machine lacks something.
    pub fn machine(message: impl Into<String>) -> Stop {
        Stop { message: message.into(), code: 2 }
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask stands inside the repository").to_path_buf()
}

/// Says the command, runs it in the root of the repository, and stops if it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<(), Stop> {
    let line = format!("{program} {}", arguments.join(" "));
    println!("\n$ {line}");
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status()
        .map_err(|error| Stop::machine(format!("`{program}` could not be started: {error}")))?;
    if status.success() { Ok(()) } else { Err(Stop::failed(format!("`{line}` failed ({status})"))) }
}

/// The same through the cargo that runs us.
pub fn cargo(arguments: &[&str]) -> Result<(), Stop> {
    // `cargo xtask` sets CARGO to its own path: the same toolchain is used all the way down.
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    run(&cargo, arguments)
}

/// Whether a program of this name can be started.
pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}
