//! Everything that a machine with a GPU and without Rust needs to test and measure: one file to carry there. In: the
//! working tree, perhaps a folder of recorded tensors; out: `chunkwise.tar.xz` with the program, the test binaries, the
//! examples, the scripts of `benches` and the tensors. It never runs what it packs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::packages;
use crate::steps::{self, Stop};

/// The test binaries that have something to do on a GPU: targets, and the names they get.
const TESTS: [(&str, &str); 2] = [("all", "tests"), ("runtime", "tests-runtime")];

/// What the file unpacks to.
const ROOT: &str = "chunkwise";

/// Builds, strips, copies, packs; `arguments` may name the folder for the file.
pub fn run(arguments: &[String]) -> Result<(), Stop> {
    let folder = match arguments {
        [] => target().join("bundle"),
        [folder] => PathBuf::from(folder),
        _ => return Err(Stop { message: "usage: cargo xtask bundle [FOLDER]".to_owned(), code: 2 }),
    };
    packages::ensure(&packages::BUILD)?;
    let tests = build()?;
    let stage = folder.join(ROOT);
    if stage.exists() {
        fs::remove_dir_all(&stage).map_err(|error| cannot(&stage, &error))?;
    }
    strip(&target().join("release/chunkwise"), &stage.join("bin/chunkwise"))?;
    for (test, (_, name)) in tests.iter().zip(TESTS) {
        strip(test, &stage.join("bin").join(name))?;
    }
    copy("examples/mechanisms", "cw", &stage.join("examples/mechanisms"))?;
    copy("benches", "py", &stage.join("benches"))?;
    match std::env::var_os("CHUNKWISE_FIXTURES") {
        Some(recorded) => copy(recorded, "safetensors", &stage.join("fixtures"))?,
        None => println!("\nCHUNKWISE_FIXTURES names no folder of recorded tensors: the bundle has none."),
    }
    let packed = folder.join(format!("{ROOT}.tar.xz"));
    pack(&folder, &packed)?;
    let bytes = fs::metadata(&packed).map_err(|error| cannot(&packed, &error))?.len();
    println!("\n{}: {:.1} MiB", packed.display(), bytes as f64 / f64::from(1 << 20));
    println!("There: tar xJf {ROOT}.tar.xz && python3 {ROOT}/benches/gpu.py --help");
    Ok(())
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| steps::root().join("target"), PathBuf::from)
}

fn cannot(path: &Path, error: &std::io::Error) -> Stop {
    Stop::machine(format!("{}: {error}", path.display()))
}

/// Builds the test binaries, the program along with them, and gives the paths of these, which cargo tells among its messages.
fn build() -> Result<Vec<PathBuf>, Stop> {
    // All in one: for each package alone, cargo would choose other features and build everything again.
    let mut arguments = vec!["test", "--release", "--no-run", "--message-format", "json"];
    arguments.extend(TESTS.iter().flat_map(|(test, _)| ["--test", test]));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    println!("\n$ {cargo} {}", arguments.join(" "));
    let said = Command::new(&cargo)
        .args(&arguments)
        .current_dir(steps::root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Stop::machine(format!("`{cargo}` could not be started: {error}")))?;
    if !said.status.success() {
        return Err(Stop::failed("the program and its tests could not be built"));
    }
    let text = String::from_utf8_lossy(&said.stdout);
    let path = |test: &str| {
        let name = format!("\"kind\":[\"test\"],\"crate_types\":[\"bin\"],\"name\":\"{test}\"");
        let line = text.lines().find(|line| line.contains(&name))?;
        line.split_once("\"executable\":\"")?.1.split('"').next().map(PathBuf::from)
    };
    let found = TESTS.iter().map(|(test, _)| {
        path(test).ok_or_else(|| Stop::failed(format!("cargo does not say where the tests `{test}` are")))
    });
    found.collect()
}

/// Copies a binary without its symbols.
fn strip(from: &Path, to: &Path) -> Result<(), Stop> {
    let folder = to.parent().expect("a file lies in a folder");
    fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
    steps::run("strip", &["-o", &to.display().to_string(), &from.display().to_string()])
}

/// Copies the files of a folder that have an extension.
fn copy(from: impl AsRef<Path>, extension: &str, to: &Path) -> Result<(), Stop> {
    let from = steps::root().join(from);
    fs::create_dir_all(to).map_err(|error| cannot(to, &error))?;
    for entry in fs::read_dir(&from).map_err(|error| cannot(&from, &error))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == extension) {
            fs::copy(&path, to.join(entry.file_name())).map_err(|error| cannot(&path, &error))?;
        }
    }
    Ok(())
}

/// Packs the staged folder. The binaries hold the same compiler: a dictionary larger than one of them finds it again in
/// the next, which halves the file.
fn pack(folder: &Path, packed: &Path) -> Result<(), Stop> {
    let (folder, packed) = (folder.display().to_string(), packed.display().to_string());
    // The smallest files between the binaries, so that these lie next to each other.
    let compress = "--use-compress-program=xz -6 --lzma2=preset=6,dict=256MiB";
    steps::run("tar", &["--sort=name", compress, "-C", &folder, "-cf", &packed, ROOT])
}
