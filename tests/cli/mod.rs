//! Tests through the command line, as a user meets it. Every run must end by itself, without a panic, with one of the
//! four documented exit codes.

mod bad_input;
mod commands;
#[cfg(feature = "llvm")]
mod compiled;
#[cfg(feature = "llvm")]
mod gpu;
mod results;

use std::path::{Path, PathBuf};
use std::process::Command;

use chunkwise::precision::Precision;
use chunkwise::tensors::{self, TensorFile};
use chunkwise_compiler::tensor::{Bundle, Tensor};

/// What a run of the command line gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    /// Ended well.
    pub fn well(self) -> Run {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    /// Was refused, with every one of these words.
    pub fn refused(self, words: &[&str]) -> Run {
        assert_eq!(self.code, 2, "{}{}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "should say `{word}`, but says:\n{}", self.err);
        }
        self
    }
}

/// The program under test. These tests also run on machines that they were not built on, which say where it is.
pub fn binary() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_chunkwise").map_or_else(|| env!("CARGO_BIN_EXE_chunkwise").into(), PathBuf::from)
}

/// The root of the repository, or of what was taken from it to another machine.
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Runs the command line in the root of the repository.
pub fn chunkwise(arguments: &[&str]) -> Run {
    chunkwise_with(arguments, &[])
}

/// Runs it with variables of the environment.
pub fn chunkwise_with(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let output = Command::new(binary())
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(root())
        .output()
        .expect("the binary was built");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("only text is printed");
    let run =
        Run { code: output.status.code().expect("no signal"), out: text(&output.stdout), err: text(&output.stderr) };
    assert!((0..=3).contains(&run.code) && !run.err.contains("panicked"), "{arguments:?}: {run:?}");
    run
}

/// The path of an example.
pub fn example(name: &str) -> String {
    format!("examples/mechanisms/{name}.cw")
}

/// A folder of its own, with words for the paths in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("there is a folder for temporary files"))
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub fn word(&self, name: &str) -> String {
        self.path(name).to_str().expect("the path is text").to_owned()
    }
    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).expect("the folder can be written to");
        self.word(name)
    }
    /// Writes tensors and gives the path.
    pub fn tensors(&self, name: &str, tensors: &Bundle) -> String {
        tensors::write(&self.path(name), tensors, |_| Precision::F64).expect("the folder can be written to");
        self.word(name)
    }
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the folder is there");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("it can be read").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

/// All tensors of a file, in float64.
pub fn read(path: impl AsRef<Path>) -> Bundle {
    let file = TensorFile::read(path.as_ref()).expect("a whole file");
    file.entries().keys().map(|name| (name.clone(), file.tensor(name, Precision::F64).expect("floats"))).collect()
}

/// A tensor whose elements are `element(position)`.
pub fn tensor(shape: &[usize], element: impl FnMut(usize) -> f64) -> Tensor {
    Tensor::from_fn(shape, element)
}

/// Inputs of the delta rule, small and tame.
pub fn delta_rule(batch: usize, tokens: usize, heads: usize, k: usize, v: usize) -> Bundle {
    let wave = |shape: &[usize], scale: f64| tensor(shape, |i| scale * (0.37 * i as f64 + 0.1).sin());
    let leading = [batch, tokens, heads];
    let mut bundle = Bundle::new();
    bundle.insert("q".to_owned(), wave(&[&leading[..], &[k]].concat(), 1.0));
    bundle.insert("k".to_owned(), wave(&[&leading[..], &[k]].concat(), 1.0 / (k as f64).sqrt()));
    bundle.insert("v".to_owned(), wave(&[&leading[..], &[v]].concat(), 1.0));
    bundle.insert("beta".to_owned(), tensor(&leading, |i| 0.5 + 0.4 * (i as f64).cos()));
    bundle
}

/// The recorded results of a mechanism, or a printed reason why the test says nothing.
pub fn fixture(name: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("CHUNKWISE_FIXTURES").map_or_else(|| root().join("../shared/fixtures"), PathBuf::from);
    let path = folder.join(format!("{name}.safetensors"));
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {} is not there (set CHUNKWISE_FIXTURES)", path.display());
    None
}
