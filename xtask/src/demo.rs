//! The main job on real input: two mechanisms are verified, then two language models that differ in nothing else
//! learn the same English text, and a page with the results is written. In: a text from a Debian package; out: a page.

use std::path::PathBuf;
use std::process::Command;

use crate::packages;
use crate::steps::{self, Stop};

const DICTIONARY: &str = "/usr/share/dictd/jargon.dict.dz";

/// Installs and builds; the training program verifies, trains and draws, and `arguments` go on to it.
pub fn run(arguments: &[String]) -> Result<(), Stop> {
    packages::ensure(&[packages::BUILD.as_slice(), &[packages::TEXT]].concat())?;
    steps::cargo(&["build", "--release", "--package", "chunkwise-train"])?;
    let text = unpack_text()?.display().to_string();
    let page = steps::root().join("target/demo/index.html").display().to_string();
    let mut command = vec!["run", "--release", "--quiet", "--package", "chunkwise-train", "--"];
    command.extend(["--text", &text, "--corpus", "the Jargon File", "--page", &page]);
    command.extend(arguments.iter().map(String::as_str));
    steps::cargo(&command)?;
    println!("\nThe results are in {page}");
    Ok(())
}

/// The Jargon File as plain text. A dictionary file is gzip with an index, and gzip is part of every Debian.
fn unpack_text() -> Result<PathBuf, Stop> {
    let folder = steps::root().join("target/demo");
    let path = folder.join("jargon.txt");
    let unpacked = Command::new("gzip")
        .args(["--decompress", "--stdout", "--suffix", ".dz", DICTIONARY])
        .output()
        .map_err(|error| Stop::machine(format!("gzip could not be started: {error}")))?;
    if !unpacked.status.success() || unpacked.stdout.is_empty() {
        return Err(Stop::machine(format!(
            "{DICTIONARY} could not be unpacked: {}",
            String::from_utf8_lossy(&unpacked.stderr)
        )));
    }
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&path, unpacked.stdout))
        .map_err(|error| Stop::machine(format!("{} could not be written: {error}", path.display())))?;
    Ok(path)
}
