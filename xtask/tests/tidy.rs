//! The rules of the house that a machine can check. In: the source files; out: every line that breaks a rule.
//! A rule that is hard to keep is discussed, not silenced: there is no list of exceptions but the ones named here.

use std::path::{Path, PathBuf};

struct Source {
    /// Path from the root of the repository, with forward slashes.
    path: String,
    text: String,
}

/// Every Rust file of the repository, without build output.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands inside the repository");
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "dsl", "compiler", "runtime", "xtask", "tests", "examples"].map(|folder| root.join(folder)).into();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).expect("it was found under the root");
                let text = std::fs::read_to_string(&path).expect("a source file is readable text");
                found.push(Source { path: relative.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.contains("tests/") || self.path.ends_with("/tests.rs")
    }

    /// The lines outside `#[cfg(test)] mod …`, numbered from 1. Such a module stands last in its file.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let end = (0..lines.len())
            .find(|&at| {
                lines[at].trim() == "#[cfg(test)]"
                    && lines
                        .get(at + 1)
                        .is_some_and(|next| next.trim_start().starts_with("mod ") && next.ends_with('{'))
            })
            .unwrap_or(lines.len());
        lines.into_iter().enumerate().take(end).map(|(at, line)| (at + 1, line))
    }
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

fn report(rule: &str, complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{rule}:\n  {}\n", complaints.join("\n  "));
}

#[test]
fn every_module_says_what_comes_in_and_what_goes_out() {
    let complaints = sources().into_iter().filter(|source| !source.text.starts_with("//!")).map(|s| s.path.clone());
    report("A module opens with `//!`", complaints.collect());
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (number, line) in source.product_lines() {
            let code = without_comment(line);
            if code.contains(".unwrap()") || code.contains("todo!(") || code.contains("unimplemented!(") {
                complaints.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report("Say why it cannot fail, with `expect`; nothing is left to do", complaints);
}

#[test]
fn libraries_neither_print_nor_touch_files() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let pure = source.path.starts_with("dsl/src/") || source.path.starts_with("compiler/src/");
        let silent = pure || source.path.starts_with("runtime/");
        for (number, line) in source.product_lines() {
            let code = without_comment(line);
            let prints = ["println!(", "eprintln!(", "print!(", "eprint!(", "dbg!("];
            let io = ["std::fs", "std::env::", "std::process", "File::open", "std::net"];
            if (silent && prints.iter().any(|word| code.contains(word)))
                || (pure && io.iter().any(|w| code.contains(w)))
            {
                complaints.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report("Only `src`, `xtask` and (without printing) `runtime` do input and output", complaints);
}

#[test]
fn walls_between_the_parts_stand() {
    // Crate, and where alone its name may be written.
    let walls: [(&str, &[&str]); 7] = [
        ("pest", &["dsl/src/parse.rs", "dsl/src/parse/"]),
        ("petgraph", &["compiler/src/derive/recognise.rs"]),
        ("melior", &["compiler/src/lower/", "compiler/src/target/"]),
        ("mlir_sys", &["compiler/src/lower/", "compiler/src/target/"]),
        ("inkwell", &["compiler/src/lower/", "compiler/src/target/"]),
        ("llvm_sys", &["compiler/src/lower/", "compiler/src/target/"]),
        ("cudarc", &["runtime/"]),
    ];
    let mut complaints = Vec::new();
    for source in sources() {
        for (number, line) in source.product_lines() {
            let code = without_comment(line);
            for (name, allowed) in walls {
                let used = [format!("{name}::"), format!("use {name};"), format!("use {name} as")];
                let inside = allowed.iter().any(|place| source.path.starts_with(place));
                if !inside && !source.path.starts_with("xtask/") && used.iter().any(|word| names(code, word)) {
                    complaints.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
            let upwards = (source.path.starts_with("dsl/") && code.contains("chunkwise_compiler"))
                || (source.path.starts_with("dsl/") && code.contains("chunkwise_runtime"))
                || (source.path.starts_with("runtime/") && code.contains("chunkwise_compiler"))
                || (source.path.starts_with("compiler/src/reference/") && code.contains("crate::derive"))
                || (source.path.starts_with("compiler/src/reference/") && code.contains("crate::graph"));
            if upwards {
                complaints.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report("Each outside library is seen by one part only, and no part looks at one above it", complaints);
}

/// Whether a word stands in the code and is not the end of a longer one (`pest::` in `proptest::`).
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| at == 0 || !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

#[test]
fn names_of_files_belong_to_the_field() {
    let complaints = sources()
        .into_iter()
        .filter(|source| {
            let stem = source.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
            ["utils", "util", "helpers", "helper", "common", "misc", "manager"].contains(&stem)
        })
        .map(|source| source.path.clone());
    report("A file is named for what it is about", complaints.collect());
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !source.path.starts_with("xtask/")) {
        for (at, line) in source.text.lines().enumerate() {
            if ["/work/", "/home/", "/root/"].iter().any(|path| line.contains(path)) {
                complaints.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    report("A path of one machine means nothing on another", complaints);
}
