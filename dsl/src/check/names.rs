//! The one namespace of a recurrence: what each name stands for, where it was given, whether it was used, and what to
//! say about a name that is not there. It knows no expressions.

use std::collections::HashMap;

use super::functions;
use crate::codes::Code;
use crate::diagnostic::Diagnostic;
use crate::program::{AxisId, ConstId, LocalId, LoopVarId, OutputId, StateId, TensorId};
use crate::span::Span;
use crate::suggest::nearest;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// An axis.
    Axis(AxisId),
    /// An input or parameter.
    Tensor(TensorId),
    /// A constant.
    Const(ConstId),
    /// A state.
    State(StateId),
    /// An output.
    Output(OutputId),
    /// A `let`.
    Local(LocalId),
    /// A loop variable.
    LoopVar(LoopVarId),
    /// Something that could not be understood, about which enough was said.
    Broken,
}

impl Meaning {
    /// In words, with its article.
    pub fn words(self) -> &'static str {
        match self {
            Meaning::Axis(_) => "an axis",
            Meaning::Tensor(_) => "an input or parameter",
            Meaning::Const(_) => "a constant",
            Meaning::State(_) => "a state",
            Meaning::Output(_) => "an output",
            Meaning::Local(_) => "a `let`",
            Meaning::LoopVar(_) => "a loop variable",
            Meaning::Broken => "something else",
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    meaning: Meaning,
    span: Span,
    used: bool,
}

/// The names of a recurrence.
#[derive(Default)]
pub struct Names {
    entries: HashMap<String, Entry>,
    /// Where names will be bound by a `let` (or a constant) that has not been reached yet.
    later: HashMap<String, Span>,
    /// Names whose loop has ended.
    ended: HashMap<String, Span>,
}

impl Names {
    /// Gives a name its meaning. If it has one already, the error says where.
    pub fn define(&mut self, name: &str, span: Span, meaning: Meaning) -> Result<(), Box<Diagnostic>> {
        if let Some(earlier) = self.entries.get(name) {
            // Enough was said about a broken piece.
            if earlier.meaning == Meaning::Broken || meaning == Meaning::Broken {
                return Ok(());
            }
            let (first, second) =
                if earlier.span.start <= span.start { (earlier.span, span) } else { (span, earlier.span) };
            let mut error =
                Diagnostic::new(Code::Redefinition, second, format!("`{name}` is defined twice"), "defined again here")
                    .and_at(first, "first defined here");
            error = match (earlier.meaning, meaning) {
                (Meaning::State(_), Meaning::Local(_)) => {
                    error.help(format!("an update has no `let`: write `{name} = …`"))
                }
                (Meaning::Axis(_), _) | (_, Meaning::Axis(_)) => error
                    .note("axes and values share one namespace, because an axis used as a value is its size")
                    .help("give one of them another name"),
                (Meaning::Local(_), Meaning::Local(_)) => {
                    error.note("a name means one value for the whole token").help("give the second value another name")
                }
                (
                    Meaning::Tensor(_)
                    | Meaning::Const(_)
                    | Meaning::State(_)
                    | Meaning::Output(_)
                    | Meaning::Local(_)
                    | Meaning::LoopVar(_)
                    | Meaning::Broken,
                    _,
                ) => error.help("give one of them another name"),
            };
            return Err(Box::new(error));
        }
        if functions::find(name).is_some() {
            let title = format!("`{name}` is a function of the language");
            let error = Diagnostic::new(Code::ReservedName, span, title, "cannot be a name as well");
            return Err(Box::new(error.replace("choose another name", span, format!("{name}_"))));
        }
        self.entries.insert(name.to_owned(), Entry { meaning, span, used: false });
        self.later.remove(name);
        Ok(())
    }

    /// Notes that a name will be bound further on.
    pub fn announce(&mut self, name: &str, span: Span) {
        self.later.entry(name.to_owned()).or_insert(span);
    }

    /// Ends the life of a name bound inside a loop.
    pub fn end(&mut self, name: &str) -> bool {
        match self.entries.remove(name) {
            Some(entry) => {
                self.ended.insert(name.to_owned(), entry.span);
                entry.used
            }
            None => true,
        }
    }

    /// What a name stands for; marks it as used.
    pub fn use_of(&mut self, name: &str) -> Option<Meaning> {
        let entry = self.entries.get_mut(name)?;
        entry.used = true;
        Some(entry.meaning)
    }

    /// What a name stands for.
    pub fn meaning(&self, name: &str) -> Option<Meaning> {
        self.entries.get(name).map(|entry| entry.meaning)
    }

    /// Where a name was given.
    pub fn span(&self, name: &str) -> Option<Span> {
        self.entries.get(name).map(|entry| entry.span)
    }

    /// Whether a name was used.
    pub fn is_used(&self, name: &str) -> bool {
        self.entries.get(name).is_none_or(|entry| entry.used)
    }

    /// The names that satisfy a condition, sorted.
    pub fn that_are(&self, condition: impl Fn(Meaning) -> bool) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.entries.iter().filter(|(_, entry)| condition(entry.meaning)).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// What to say about the use of a name that means nothing here.
    pub fn undefined(&self, name: &str, span: Span) -> Diagnostic {
        if let Some(&later) = self.later.get(name) {
            return Diagnostic::new(
                Code::BoundLater,
                span,
                format!("`{name}` is used before it is defined"),
                "used here",
            )
            .and_at(later, "defined here, further on")
            .note("statements run in order, once for every token")
            .help(format!("move the definition of `{name}` up"));
        }
        if let Some(&ended) = self.ended.get(name) {
            return Diagnostic::new(
                Code::OutOfScope,
                span,
                format!("`{name}` ends with its loop"),
                "used outside of it",
            )
            .and_at(ended, "bound here, anew for each position")
            .help("what is to outlast a loop has to be a state");
        }
        if functions::find(name).is_some() {
            return Diagnostic::new(
                Code::FunctionAsValue,
                span,
                format!("`{name}` is a function"),
                "its argument has to follow",
            )
            .help(format!("write `{name}(…)`"));
        }
        let error = Diagnostic::new(Code::UndefinedName, span, format!("`{name}` is not defined"), "unknown name");
        // S_t, S_prev: a paper's index of time.
        let base = name.rsplit_once('_').filter(|(base, tail)| {
            self.entries.contains_key(*base) && matches!(*tail, "t" | "prev" | "old" | "new" | "next" | "last" | "tm1")
        });
        if let Some((base, _)) = base {
            return error
                .note("time is never written: on the right of `=` a state is the one before the statement, on the left the one after")
                .replace(format!("write `{base}`"), span, base);
        }
        if let Some(meant) = nearest(name, self.that_are(|meaning| meaning != Meaning::Broken)) {
            return error.replace(format!("did you mean `{meant}`?"), span, meant);
        }
        match name {
            "t" | "T" | "B" | "H" | "L" => {
                error.note("batch, time and head are never written: a recurrence says what one token does to one head")
            }
            "pi" => error.replace("write the number", span, "3.141592653589793"),
            "inf" => error.note("`inf` is a bound of a range, and no value"),
            "eps" | "epsilon" => error.help(format!("declare it: `const {name} = 1e-6`")),
            "None" | "True" | "False" | "true" | "false" => error.note("values are numbers with axes"),
            "I" | "eye" | "identity" => error.note(
                "the identity needs no name: `S - beta * k * (k @ S)` is (I - beta k kᵀ) S",
            ),
            _ => error.help(format!(
                "declare it with `input {name}: [K]`, `param`, `const` or `state`, or name a value with `let {name} = …`"
            )),
        }
    }
}
