//! The recurrences that the book shows are accepted without a warning. In: the Markdown files of `docs` and the
//! README; out: what is wrong with a program that a reader would copy.

use std::fs;
use std::path::{Path, PathBuf};

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands inside the repository");
    let mut found = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.into_iter().filter(|path| path.exists()).collect()
}

/// The blocks of code of a page that hold a whole recurrence, with the line they begin on.
fn recurrences(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut block, line.trim_start().starts_with("```")) {
            (None, true) => block = Some((number + 1, String::new())),
            (Some(_), true) => found.extend(block.take()),
            (Some((_, code)), false) => {
                code.push_str(line);
                code.push('\n');
            }
            (None, false) => {}
        }
    }
    found.retain(|(_, code)| code.lines().any(|line| line.starts_with("recurrence ") && line.ends_with('{')));
    found
}

#[test]
fn every_recurrence_in_the_book_is_accepted() {
    let mut count = 0;
    for path in pages() {
        let text = fs::read_to_string(&path).expect("the page can be read");
        for (line, code) in recurrences(&text) {
            count += 1;
            let place = format!("{}:{line}", path.display());
            match chunkwise_dsl::compile(&code) {
                Ok(compiled) => assert!(compiled.warnings.is_empty(), "{place}: {:#?}", compiled.warnings),
                Err(diagnostics) => panic!("{place}: {diagnostics:#?}"),
            }
        }
    }
    assert!(count >= 3, "the book shows recurrences, and {count} were found");
}
