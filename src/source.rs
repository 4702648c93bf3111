//! `.cw` files. In: a path; out: its text and its checked recurrences, or why not. It never guesses which of several
//! recurrences is meant.

use std::io::Read;
use std::path::Path;

use chunkwise_dsl::diagnostic::Diagnostic;
use chunkwise_dsl::program::Program;
use chunkwise_dsl::suggest::nearest;

use crate::failure::Failure;
use crate::render;
use crate::report;

/// The largest source file that is looked at.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a file and what it is called in messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// As given on the command line.
    pub path: String,
    /// The text.
    pub text: String,
}

/// A source whose recurrences have been checked.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The text.
    pub source: Source,
    /// Its recurrences, in order.
    pub programs: Vec<Program>,
}

impl Source {
    /// Reads a program; `-` is standard input.
    pub fn read(path: &Path) -> Result<Source, Failure> {
        Source::read_at_most(path, MAX_BYTES)
    }

    /// Reads a text of at most so many bytes; `-` is standard input.
    pub fn read_at_most(path: &Path, max_bytes: u64) -> Result<Source, Failure> {
        let shown = path.display().to_string();
        if shown == "-" {
            return Source::take("standard input".to_owned(), std::io::stdin().lock(), max_bytes);
        }
        if path.is_dir() {
            return Err(Failure::Input(format!("`{shown}` is a folder; give a .cw file")));
        }
        let file = std::fs::File::open(path)
            .map_err(|error| Failure::Input(format!("`{shown}` cannot be read: {}", plain(&error))))?;
        Source::take(shown, file, max_bytes)
    }

    fn take(path: String, reader: impl Read, max_bytes: u64) -> Result<Source, Failure> {
        let mut bytes = Vec::new();
        reader
            .take(max_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::Input(format!("`{path}` cannot be read: {}", plain(&error))))?;
        if bytes.len() as u64 > max_bytes {
            return Err(Failure::Input(format!(
                "`{path}` is larger than {} MiB; a recurrence takes a few lines, so this is probably another file",
                max_bytes >> 20
            )));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            Failure::Input(format!("`{path}` is not text: line {line} holds bytes that are not UTF-8"))
        })?;
        Ok(Source { path, text })
    }

    /// Parses and checks. Warnings and errors are handed back undrawn; a recurrence with errors is left out.
    pub fn check(&self) -> (Vec<Program>, Vec<Diagnostic>) {
        let (file, mut diagnostics) = chunkwise_dsl::parse(&self.text);
        let (programs, found) = chunkwise_dsl::check(&file);
        diagnostics.extend(found);
        (programs, diagnostics)
    }
}

impl Checked {
    /// Reads, parses and checks; draws what there is to say on standard error; stops if there is an error.
    pub fn read(path: &Path) -> Result<Checked, Failure> {
        let source = Source::read(path)?;
        let (programs, diagnostics) = source.check();
        for diagnostic in &diagnostics {
            report::complain(format_args!("{}\n", render::draw(&source, diagnostic, render::colours_on_stderr())));
        }
        let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
        if errors > 0 {
            return Err(Failure::Refused(render::count(errors, "error")));
        }
        if programs.is_empty() {
            return Err(Failure::Input(format!(
                "`{}` holds no recurrence; one begins with `recurrence NAME {{`",
                source.path
            )));
        }
        Ok(Checked { source, programs })
    }

    /// The recurrence asked for, or the only one.
    pub fn select(&self, name: Option<&str>) -> Result<&Program, Failure> {
        let names = || self.programs.iter().map(|program| program.name.as_str());
        let listed = || names().collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => self.programs.iter().find(|program| program.name == name).ok_or_else(|| {
                let hint = match nearest(name, names()) {
                    Some(similar) => format!("did you mean `{similar}`?"),
                    None => format!("there are {}", listed()),
                };
                Failure::Input(format!("`{}` holds no recurrence `{name}`; {hint}", self.source.path))
            }),
            None if self.programs.len() == 1 => Ok(&self.programs[0]),
            None => Err(Failure::Input(format!(
                "`{}` holds several recurrences ({}); choose one with --recurrence NAME",
                self.source.path,
                listed()
            ))),
        }
    }
}

/// What an input or output error says, without the number of the operating system.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}
