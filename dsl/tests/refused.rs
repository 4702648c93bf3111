//! What the language refuses or warns of, one program a file, with the rendered message as a snapshot. In:
//! `tests/refused/*.cw` and `tests/warned/*.cw`. A file is named for the situation it shows.

use std::fs;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use chunkwise_dsl::compile;
use chunkwise_dsl::diagnostic::{Diagnostic, Severity};

fn render(name: &str, source: &str, diagnostic: &Diagnostic) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let labels = diagnostic.labels.iter().map(|label| {
        let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
        kind.span(label.span.start..label.span.end).label(label.text.as_str())
    });
    let snippet = Snippet::source(source).path(name).annotations(labels);
    let title = level.primary_title(diagnostic.title.as_str()).id(diagnostic.code.number());
    let mut main = title.element(snippet);
    for note in &diagnostic.notes {
        main = main.element(Level::NOTE.message(note.as_str()));
    }
    let mut report: Vec<Group<'_>> = Vec::new();
    match &diagnostic.help {
        Some(help) => match &help.replacement {
            Some(replacement) => {
                let span = replacement.span.start..replacement.span.end;
                let patch = Snippet::source(source).path(name).patch(Patch::new(span, replacement.text.as_str()));
                report.push(main);
                report.push(Level::HELP.secondary_title(help.text.as_str()).element(patch));
            }
            None => report.push(main.element(Level::HELP.message(help.text.as_str()))),
        },
        None => report.push(main),
    }
    Renderer::plain().render(&report).to_string()
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cw"))
        .collect();
    paths.sort();
    paths
}

fn snapshot(folder: &str, path: &Path, diagnostics: &[Diagnostic]) {
    let source = fs::read_to_string(path).expect("the file can be read");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("file names are plain");
    let rendered: Vec<String> =
        diagnostics.iter().map(|diagnostic| render(&format!("{stem}.cw"), &source, diagnostic)).collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("{folder}/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(stem, rendered.join("\n\n")));
}

#[test]
fn refused_programs_are_refused_in_these_words() {
    let paths = sources("refused");
    assert!(paths.len() >= 45, "only {} refused programs", paths.len());
    for path in paths {
        let source = fs::read_to_string(&path).expect("the file can be read");
        match compile(&source) {
            Ok(_) => panic!("{} was accepted", path.display()),
            Err(diagnostics) => snapshot("refused", &path, &diagnostics),
        }
    }
}

#[test]
fn doubtful_programs_are_accepted_with_these_warnings() {
    for path in sources("warned") {
        let source = fs::read_to_string(&path).expect("the file can be read");
        match compile(&source) {
            Ok(compiled) => {
                assert!(!compiled.warnings.is_empty(), "{} has no warning", path.display());
                snapshot("warned", &path, &compiled.warnings);
            }
            Err(diagnostics) => panic!("{} was refused: {:?}", path.display(), diagnostics[0]),
        }
    }
}

#[test]
fn every_code_has_a_program_that_shows_it() {
    let mut shown = Vec::new();
    for path in sources("refused").into_iter().chain(sources("warned")) {
        let source = fs::read_to_string(&path).expect("the file can be read");
        let diagnostics = compile(&source).map_or_else(|errors| errors, |compiled| compiled.warnings);
        shown.extend(diagnostics.iter().map(|diagnostic| diagnostic.code));
    }
    for code in chunkwise_dsl::codes::Code::ALL {
        assert!(shown.contains(code), "no program shows {} ({})", code.number(), code.title());
    }
}
