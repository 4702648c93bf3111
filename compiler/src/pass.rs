//! What a pass is, what its runner does, and the proof that a program passed its verifier.
//!
//! Comes in: a program and a list of passes. Goes out: the program after each, verified, with the time it took. Never
//! writes a file: what a pass changed is handed to whoever asked for it.

use crate::error::CompileError;
use std::time::{Duration, Instant};

/// Proof that a program passed its verifier. Changing the program ends the borrow, and with it the proof.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'v, T>(&'v T);

impl<'v, T> Verified<'v, T> {
    /// Only a verifier may call this, once it has found nothing.
    pub(crate) fn by_its_verifier(program: &'v T) -> Self {
        Verified(program)
    }
    /// The program.
    pub fn get(self) -> &'v T {
        self.0
    }
}

impl<T> std::ops::Deref for Verified<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0
    }
}

/// A rewrite that keeps a program's meaning.
pub struct Pass<T> {
    /// Name, as in dumps and lists.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// The rewrite.
    pub run: fn(&mut T),
}

/// What the runner needs of a program.
pub trait Level: Sized {
    /// The program as text.
    fn text(&self) -> String;
    /// What is wrong with it, as its text with complaints.
    fn complaints(&self) -> Option<String>;
}

impl Level for crate::graph::ir::Graph {
    fn text(&self) -> String {
        crate::graph::text::print(self)
    }
    fn complaints(&self) -> Option<String> {
        crate::graph::verify::verify(self).err().map(|error| error.text)
    }
}

/// Takes number, name and text of a pass that changed the program.
pub type Dump<'o> = &'o mut dyn FnMut(usize, &str, &str);

/// How passes are run.
pub struct Options<'o> {
    /// Verify after every pass.
    pub verify: bool,
    /// Is handed what every pass that changed the program left.
    pub dump: Option<Dump<'o>>,
}

impl Options<'_> {
    /// Verifying in a debug build, dumping nothing.
    pub fn quiet() -> Self {
        Options { verify: cfg!(debug_assertions), dump: None }
    }
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its name.
    pub pass: &'static str,
    /// How long it took.
    pub took: Duration,
    /// Whether it changed anything; not known if nobody asked for dumps.
    pub changed: Option<bool>,
}

/// Runs passes in order. A program that does not verify is a mistake of the pass before.
pub fn run<T: Level>(program: &mut T, passes: &[Pass<T>], options: &mut Options) -> Result<Vec<Report>, CompileError> {
    let mut reports = Vec::new();
    for (number, pass) in passes.iter().enumerate() {
        let before = options.dump.is_some().then(|| program.text());
        let start = Instant::now();
        (pass.run)(program);
        let took = start.elapsed();
        let mut changed = None;
        if let (Some(before), Some(dump)) = (before, options.dump.as_mut()) {
            let after = program.text();
            changed = Some(after != before);
            if after != before {
                dump(number, pass.name, &after);
            }
        }
        if options.verify
            && let Some(dump) = program.complaints()
        {
            let message = "what it left does not verify".to_owned();
            return Err(CompileError::Bug { pass: pass.name, message, dump });
        }
        reports.push(Report { pass: pass.name, took, changed });
    }
    Ok(reports)
}
