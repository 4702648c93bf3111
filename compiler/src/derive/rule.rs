//! Rules, their applications, and the chain of them that is a derivation.
//!
//! A rule is a named step with what stands before it, what after, and when it holds. The code that takes the step is
//! in the rule's own file under `rules/`; here is only how a step is written down. A [`Derivation`] is data: it prints,
//! and taking the same steps again from the same program must give the same record and the same graphs
//! ([`crate::compile::replay`]).

use chunkwise_dsl::span::Span;

/// A named step.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name, an imperative phrase.
    pub name: &'static str,
    /// What stands before.
    pub before: &'static str,
    /// What stands after.
    pub after: &'static str,
    /// When the step may be taken; numerics are part of it.
    pub holds_when: &'static str,
    /// Why before equals after.
    pub why: &'static str,
    /// Where it is from.
    pub source: &'static str,
}

/// A rule applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Which rule.
    pub rule: &'static Rule,
    /// To what, and what was found: the condition made concrete.
    pub facts: String,
    /// What in the source it is about.
    pub span: Option<Span>,
}

/// The steps that led from a program to a form, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Derivation {
    /// Steps.
    pub steps: Vec<Step>,
}

impl Derivation {
    /// Writes a step down.
    pub fn record(&mut self, rule: &'static Rule, facts: impl Into<String>, span: Option<Span>) {
        let step = Step { rule, facts: facts.into(), span };
        if self.steps.last() != Some(&step) {
            self.steps.push(step);
        }
    }
}

impl std::fmt::Display for Derivation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>2}. {}: {}", i + 1, step.rule.name, step.facts)?;
            writeln!(f, "      before      {}", step.rule.before)?;
            writeln!(f, "      after       {}", step.rule.after)?;
            writeln!(f, "      holds when  {}", step.rule.holds_when)?;
            writeln!(f, "      source      {}", step.rule.source)?;
        }
        Ok(())
    }
}
