//! The language of chunkwise: text in, checked [`program::Program`] out. Pure: no input or output, no LLVM.
//!
//! [`parse()`] reads a text, [`check()`] makes programs of what was read, [`format()`] writes it again, and [`compile`]
//! is the first two in one. What the language has to say comes as [`diagnostic::Diagnostic`]s, which the caller draws.
//! [`instance::Instance`] adds sizes and constants.

pub mod ast;
pub mod bounds;
pub mod check;
pub mod codes;
pub mod diagnostic;
pub mod format;
pub mod instance;
pub mod parse;
pub mod program;
pub mod span;
pub mod suggest;
mod value;

pub use check::check;
pub use format::format;
pub use parse::parse;

use diagnostic::Diagnostic;
use program::Program;

/// The programs of a file, and what there is to say about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// One for each recurrence, in order.
    pub programs: Vec<Program>,
    /// Warnings, in the order of the source.
    pub warnings: Vec<Diagnostic>,
}

/// Reads and checks a text. If anything in it is refused, all errors and warnings come back, in the order of the source.
pub fn compile(source: &str) -> Result<Compiled, Vec<Diagnostic>> {
    let (file, mut diagnostics) = parse(source);
    let (programs, found) = check(&file);
    diagnostics.extend(found);
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().start);
    if diagnostics.iter().any(Diagnostic::is_error) {
        // What seems unused may be used in a statement that is refused.
        diagnostics.retain(|diagnostic| !diagnostic.code.is_about_absence());
        return Err(diagnostics);
    }
    Ok(Compiled { programs, warnings: diagnostics })
}
