//! Whether the book says what is true of the tree: its pages are linked, and rules, codes, options, passes, examples
//! and the tests it cites are there on both sides. In: `docs` and the source files; out: everything that is missing.
//! It never builds the book.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands inside the repository")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files with an extension anywhere under a folder, as paths from that folder.
fn files(folder: &str, extension: &str) -> BTreeSet<String> {
    let base = root().join(folder);
    let mut found = BTreeSet::new();
    let mut folders = vec![base.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path: PathBuf = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                let relative = path.strip_prefix(&base).expect("it was found under the folder");
                found.insert(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found
}

/// Every page with its text.
fn pages() -> Vec<(String, String)> {
    let read = |page: String| (page.clone(), read(&format!("docs/src/{page}")));
    files("docs/src", "md").into_iter().map(read).collect()
}

/// The targets of Markdown links outside code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        if !in_code {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            found.extend(targets.map(|(target, _)| target.to_owned()));
        }
    }
    found
}

/// What stands between double quotes after each `key`, in order.
fn quoted_after<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    let after = text.split(key).skip(1).map(|rest| rest.trim_start_matches(|letter| letter != '"'));
    after.filter_map(|rest| rest.get(1..)?.split('"').next()).collect()
}

fn report(rule: &str, complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{rule}:\n  {}\n", complaints.join("\n  "));
}

#[test]
fn every_page_is_linked_and_every_link_leads_somewhere() {
    let listed: BTreeSet<String> = links(&read("docs/src/SUMMARY.md")).into_iter().collect();
    let mut there = files("docs/src", "md");
    there.remove("SUMMARY.md");
    let mut complaints: Vec<String> = listed.difference(&there).map(|page| format!("{page} does not exist")).collect();
    complaints.extend(there.difference(&listed).map(|page| format!("{page} is not in SUMMARY.md")));
    for (page, text) in pages() {
        let folder = Path::new(&page).parent().expect("a page lies in a folder").to_path_buf();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            match std::fs::read_to_string(root().join("docs/src").join(&target)) {
                Err(_) => complaints.push(format!("{page}: {link} leads nowhere")),
                Ok(text) if !anchor.is_empty() && !headings(&text).contains(anchor) => {
                    complaints.push(format!("{page}: {link} names no heading"));
                }
                Ok(_) => {}
            }
        }
    }
    report("Pages and links fit", complaints);
}

/// The anchors of a page's headings: small letters, hyphens for spaces, nothing else.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles
        .map(|title| {
            let kept = title.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_rule_has_a_page() {
    let folder = "compiler/src/derive/rules";
    let rules: BTreeSet<String> =
        files(folder, "rs").into_iter().filter(|file| file != "mod.rs").map(|file| file.replace(".rs", "")).collect();
    let described: BTreeSet<String> =
        files("docs/src/theory/rules", "md").into_iter().map(|file| file.replace(".md", "")).collect();
    let mut complaints: Vec<String> =
        described.difference(&rules).map(|page| format!("theory/rules/{page}.md is about no rule")).collect();
    for rule in &rules {
        if !described.contains(rule) {
            complaints.push(format!("{folder}/{rule}.rs has no page theory/rules/{rule}.md"));
            continue;
        }
        let source = read(&format!("{folder}/{rule}.rs"));
        let page = read(&format!("docs/src/theory/rules/{rule}.md"));
        let names = quoted_after(&source, "    name: ");
        let title = names.first().map(|name| format!("# {name}"));
        if title.is_none() || page.lines().next() != title.as_deref() {
            complaints.push(format!("theory/rules/{rule}.md has to be called `{}`", names.join(", ")));
        }
        for part in ["**Before**", "**After**", "**Holds when**", "**Why.**", "**Source.**", "**Numerics.**"] {
            if !page.contains(part) {
                complaints.push(format!("theory/rules/{rule}.md has no part {part}"));
            }
        }
        let cited = quoted_after(&source, "    source: ").join(" ");
        for paper in cited.split("arXiv ").skip(1).map(|rest| &rest[..rest.len().min(10)]) {
            if !page.contains(paper) {
                complaints.push(format!("theory/rules/{rule}.md does not cite arXiv {paper}"));
            }
        }
    }
    assert!(rules.len() >= 10, "the rules were not found");
    report("Each rule has its page", complaints);
}

#[test]
fn every_code_is_in_the_book() {
    let codes = read("dsl/src/codes.rs");
    let page = read("docs/src/language/refused.md");
    let mut found = 0;
    let mut complaints = Vec::new();
    // An entry is `Variant "E0101" "title"`, at one level of indentation.
    for line in codes.lines().filter(|line| line.starts_with("    ") && line.matches('"').count() == 4) {
        let parts: Vec<&str> = line.split('"').collect();
        let (number, title) = (parts[1], parts[3]);
        if number.len() == 5 && number.starts_with(['E', 'W']) {
            found += 1;
            let row = format!("| {number} | {title} |");
            if !page.lines().any(|line| line == row) {
                complaints.push(format!("language/refused.md lacks the row {row}"));
            }
        }
    }
    assert!(found > 50, "the codes were not found");
    report("Each code has its row", complaints);
}

#[test]
fn every_option_is_in_the_book() {
    let page = read("docs/src/command-line.md");
    let mut found = 0;
    let mut complaints = Vec::new();
    let commands = files("src/commands", "rs").into_iter().map(|file| format!("src/commands/{file}"));
    for file in commands.chain(["src/options.rs".to_owned()]) {
        let source = read(&file);
        let stem = file.trim_start_matches("src/commands/").trim_end_matches(".rs");
        // An option of one command stands in that command's part, one of several anywhere.
        let part = match stem {
            "mod" | "src/options" => Some(page.as_str()),
            _ => page.split_once(&format!("\n## {stem}\n")).map(|(_, rest)| rest.split("\n## ").next().unwrap_or(rest)),
        };
        let Some(part) = part else {
            complaints.push(format!("command-line.md has no part `## {stem}`"));
            continue;
        };
        for option in options(&source) {
            found += 1;
            let named = |mark: &str| {
                part.contains(&format!("`--{option}{mark}")) || part.contains(&format!(" --{option}{mark}"))
            };
            if !["`", " "].iter().any(|mark| named(mark)) {
                complaints.push(format!("command-line.md does not name `--{option}` of {file} where it belongs"));
            }
        }
    }
    assert!(found > 25, "the options were not found");
    report("Each command and option is described", complaints);
}

/// Long options by the attributes of clap: `long = "name"`, or the name of the field that follows.
fn options(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in source.split("#[arg(").skip(1) {
        let Some((arguments, after)) = rest.split_once(")]\n") else { continue };
        if !arguments.split(',').any(|argument| argument.trim() == "long" || argument.trim().starts_with("long =")) {
            continue;
        }
        let given = quoted_after(arguments, "long =");
        let field = after.lines().next().unwrap_or_default().trim().trim_start_matches("pub ");
        let field = field.split(':').next().unwrap_or_default().replace('_', "-");
        found.push(given.first().map_or(field, |name| (*name).to_owned()));
    }
    found
}

#[test]
fn every_pass_and_every_example_is_in_the_book() {
    let table = read("docs/src/architecture/irs.md");
    let passes = read("compiler/src/pipeline.rs");
    let names = quoted_after(&passes, "name: ");
    assert!(!names.is_empty(), "the passes were not found");
    let mut complaints: Vec<String> = names
        .into_iter()
        .filter(|name| !table.contains(&format!("| `{name}` |")))
        .map(|name| format!("architecture/irs.md has no row for the pass `{name}`"))
        .collect();
    let examples = read("docs/src/language/examples.md");
    for file in files("examples/mechanisms", "cw") {
        if !examples.contains(&format!("| `{file}` |")) {
            complaints.push(format!("language/examples.md has no row for `{file}`"));
        }
    }
    report("Passes and examples have their rows", complaints);
}

#[test]
fn invariants_name_tests_that_exist() {
    let page = read("docs/src/architecture/invariants.md");
    let mut complaints = Vec::new();
    let mut held = 0;
    for line in page.lines().filter(|line| line.starts_with("Held by:")) {
        held += 1;
        let mut file = None;
        for word in line.split('`').skip(1).step_by(2) {
            if word.contains('/') {
                file = Some(word);
            } else if let Some(file) = file {
                let there = std::fs::read_to_string(root().join(file)).unwrap_or_default();
                if !there.contains(&format!("fn {word}(")) {
                    complaints.push(format!("{file} holds no test `{word}`"));
                }
            }
        }
    }
    let bold = page.lines().filter(|line| line.starts_with("**")).count();
    assert_eq!(bold, held, "each invariant, a bold sentence, has one line of tests");
    report("Invariants are held", complaints);
}

#[test]
fn no_mechanism_is_named_in_the_compiler() {
    let mut mechanisms: Vec<String> =
        files("examples/mechanisms", "cw").into_iter().map(|file| file.trim_end_matches(".cw").to_owned()).collect();
    // Too short, or a word of its own.
    mechanisms.retain(|name| !["gla", "kda", "retention"].contains(&name.as_str()));
    let mut complaints = Vec::new();
    for file in files("compiler/src", "rs") {
        for (at, line) in read(&format!("compiler/src/{file}")).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if mechanisms.iter().any(|name| code.contains(name.as_str())) {
                complaints.push(format!("compiler/src/{file}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    report("The compiler derives from the form, not from a name", complaints);
}

#[test]
fn the_book_keeps_to_its_own_style() {
    let mut complaints = Vec::new();
    let american =
        ["normaliz", "recogniz", "optimiz", "summariz", "vectoriz", "behavior", "color", "neighbor", "serializ"];
    for (page, text) in pages() {
        let mut in_code = false;
        for (at, line) in text.lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            let prose: String = line.split('`').step_by(2).collect();
            let lower = prose.to_lowercase();
            if !in_code && american.iter().any(|word| lower.contains(word)) {
                complaints.push(format!("{page}:{}: British spelling: {line}", at + 1));
            }
            if ["/work/", "/home/", "/root/"].iter().any(|path| line.contains(path)) {
                complaints.push(format!("{page}:{}: a path of one machine: {line}", at + 1));
            }
        }
    }
    report("The book keeps to its style", complaints);
}

#[test]
fn messages_in_the_book_are_messages_of_the_language() {
    let snapshots: Vec<String> = ["dsl/tests/refused/snapshots", "dsl/tests/warned/snapshots"]
        .into_iter()
        .flat_map(|folder| files(folder, "snap").into_iter().map(move |file| read(&format!("{folder}/{file}"))))
        .collect();
    let mut found = 0;
    let mut complaints = Vec::new();
    for (page, text) in pages() {
        for block in text.split("\n```").skip(1).step_by(2) {
            let code = block.split_once('\n').map_or("", |(_, code)| code);
            if code.starts_with("error[") || code.starts_with("warning[") {
                found += 1;
                if !snapshots.iter().any(|snapshot| snapshot.contains(code.trim_end())) {
                    complaints.push(format!("{page}: no program of the tests is answered with\n{code}"));
                }
            }
        }
    }
    assert!(found > 0, "the book shows messages");
    report("Messages are quoted as they are", complaints);
}
