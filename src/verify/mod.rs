//! Proof by trying: many cases, every form and gradient against the reference, and the contracts. In: a program, how
//! many cases, a seed; out: a report, with a case as small as it could be made for everything that failed. It prints
//! nothing; the integration tests and the command share it.

pub mod budget;
pub mod case;
pub mod draw;
pub mod measure;
pub mod moved;
pub mod random;
pub mod slices;
pub mod summary;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chunkwise_dsl::program::Program;

use crate::engine::Place;
use crate::failure::Failure;
use budget::Share;
use case::Case;
use measure::{Check, Finding, Measured, Subject};

/// How long a failing case may be shrunk.
const SHRINK_FOR: Duration = Duration::from_secs(20);

/// What to verify.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of cases.
    pub cases: usize,
    /// Decides all of them.
    pub seed: u64,
    /// Overridden constants.
    pub constants: BTreeMap<String, f64>,
    /// The checks to make.
    pub checks: Vec<Check>,
    /// Sizes that every case has.
    pub sizes: BTreeMap<String, usize>,
    /// Where compiled code runs.
    pub place: Place,
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was checked.
    pub check: Check,
    /// On which results; absent where there were none.
    pub share: Option<Share>,
    /// How many cases said something.
    pub cases: usize,
    /// The finding that was nearest to its limit, or farthest beyond.
    pub worst: Option<Finding>,
    /// How many findings were allowed more because the case magnifies rounding.
    pub conditioned: usize,
    /// Why it could not be made.
    pub limit: Option<String>,
}

/// A check that failed, and the smallest case it was seen to fail on.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The check.
    pub check: Check,
    /// The case.
    pub case: Case,
    /// What was found on it.
    pub finding: Option<Finding>,
    /// What broke, where it was not a number.
    pub message: Option<String>,
}

/// Everything there is to say.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One line for each check and share.
    pub rows: Vec<Row>,
    /// What failed.
    pub failed: Vec<Failed>,
    /// Cases that said nothing to any check, because nothing stayed finite.
    pub void: usize,
}

/// Verifies a program. `progress` is told before each case, as (done, of).
pub fn verify(program: &Program, options: &Options, progress: impl FnMut(usize, usize)) -> Report {
    let cases: Vec<Case> = (0..options.cases)
        .map(|number| {
            let mut case = match &options.place {
                Place::Cpu => Case::draw(program, options.seed, number),
                #[cfg(feature = "llvm")]
                Place::Gpu(_) if number % 2 == 1 => Case::draw_wide(program, options.seed, number),
                #[cfg(feature = "llvm")]
                Place::Gpu(_) | Place::StandIn(_) => Case::draw(program, options.seed, number),
            };
            case.sizes.extend(options.sizes.clone());
            case
        })
        .collect();
    verify_cases(program, options, &cases, progress)
}

/// Makes the checks of given cases. Those of the options are not drawn.
pub fn verify_cases(
    program: &Program,
    options: &Options,
    cases: &[Case],
    mut progress: impl FnMut(usize, usize),
) -> Report {
    let mut report = Report::default();
    let mut subject = Subject::new(program, options.constants.clone(), options.place.clone());
    let mut broken: Vec<(Check, Case)> = Vec::new();
    let mut tallies: BTreeMap<(Check, Option<Share>), Row> = BTreeMap::new();
    'cases: for (number, case) in cases.iter().enumerate() {
        progress(number, cases.len());
        let mut said_something = false;
        for &check in &options.checks {
            // One failing case a check is enough to report, and the next would only say it again.
            if broken.iter().any(|(known, _)| *known == check) {
                continue;
            }
            match subject.measure(check, case) {
                Ok(Measured::Void(_)) => {}
                Ok(Measured::Findings(findings)) => {
                    said_something = true;
                    if findings.iter().any(|finding| !finding.holds()) {
                        broken.push((check, case.clone()));
                    }
                    for finding in findings {
                        tally(&mut tallies, check, finding);
                    }
                }
                Err(Failure::Input(limit)) => {
                    said_something = true;
                    row(&mut tallies, check, None).limit = Some(limit);
                }
                Err(failure @ (Failure::Ours(_) | Failure::Refused(_) | Failure::Verification(_))) => {
                    said_something = true;
                    row(&mut tallies, check, None).cases += 1;
                    // Where nothing works any more, nothing can be made smaller, and nothing else be checked.
                    if subject.is_lost() {
                        let (case, message) = (case.clone(), Some(failure.to_string()));
                        report.failed.push(Failed { check, case, finding: None, message });
                        break 'cases;
                    }
                    broken.push((check, case.clone()));
                }
            }
        }
        report.void += usize::from(!said_something);
    }
    progress(cases.len(), cases.len());
    for (check, case) in broken {
        // What was found before a kernel took the place with it can only be told, not be made smaller.
        if subject.is_lost() {
            report.failed.push(Failed { check, case, finding: None, message: None });
            continue;
        }
        report.failed.push(shrink(&mut subject, check, case));
    }
    // In the order of the checks, not of their names.
    for &check in &options.checks {
        report.rows.extend(tallies.iter().filter(|((it, _), _)| *it == check).map(|(_, row)| row.clone()));
    }
    report
}

/// Makes one check of one case and tells everything about it.
pub fn verify_case(program: &Program, constants: &BTreeMap<String, f64>, checks: &[Check], case: &Case) -> Report {
    verify_case_at(program, constants, checks, case, &Place::Cpu)
}

/// The same, with compiled code running somewhere.
pub fn verify_case_at(
    program: &Program,
    constants: &BTreeMap<String, f64>,
    checks: &[Check],
    case: &Case,
    place: &Place,
) -> Report {
    let mut report = Report::default();
    let mut subject = Subject::new(program, constants.clone(), place.clone());
    let mut tallies = BTreeMap::new();
    for &check in checks {
        match subject.measure(check, case) {
            Ok(Measured::Void(_)) => report.void = 1,
            Ok(Measured::Findings(findings)) => {
                for finding in findings {
                    if !finding.holds() {
                        let (case, finding) = (case.clone(), Some(finding.clone()));
                        report.failed.push(Failed { check, case, finding, message: None });
                    }
                    tally(&mut tallies, check, finding);
                }
            }
            Err(Failure::Input(limit)) => row(&mut tallies, check, None).limit = Some(limit),
            Err(failure) => {
                let message = Some(failure.to_string());
                report.failed.push(Failed { check, case: case.clone(), finding: None, message });
                row(&mut tallies, check, None).cases += 1;
                if subject.is_lost() {
                    break;
                }
            }
        }
    }
    report.rows = tallies.into_values().collect();
    report
}

fn row(tallies: &mut BTreeMap<(Check, Option<Share>), Row>, check: Check, share: Option<Share>) -> &mut Row {
    let empty = Row { check, share, cases: 0, worst: None, conditioned: 0, limit: None };
    tallies.entry((check, share)).or_insert(empty)
}

fn tally(tallies: &mut BTreeMap<(Check, Option<Share>), Row>, check: Check, finding: Finding) {
    let row = row(tallies, check, Some(finding.share));
    row.cases += 1;
    row.conditioned += usize::from(finding.conditioned);
    let badness = |finding: &Finding| finding.error / finding.allowed.max(f64::MIN_POSITIVE);
    if row.worst.as_ref().is_none_or(|worst| badness(&finding) > badness(worst)) {
        row.worst = Some(finding);
    }
}

/// Takes away what a failure does not need: sequences, heads, tokens, sizes.
fn shrink(subject: &mut Subject, check: Check, case: Case) -> Failed {
    let mut failure = |case: &Case| match subject.measure(check, case) {
        Ok(Measured::Findings(findings)) => {
            findings.into_iter().find(|finding| !finding.holds()).map(|finding| (Some(finding), None))
        }
        Ok(Measured::Void(_)) | Err(Failure::Input(_)) => None,
        Err(failure) => Some((None, Some(failure.to_string()))),
    };
    let first = failure(&case);
    let (case, what) = smallest(case, first, Instant::now() + SHRINK_FOR, failure);
    let (finding, message) = what.unwrap_or((None, Some("it failed once and not when it was repeated".to_owned())));
    Failed { check, case, finding, message }
}

/// The smallest case found before `until` on which `failure` still gives something, with what it gave there.
fn smallest<T>(
    case: Case,
    first: Option<T>,
    until: Instant,
    mut failure: impl FnMut(&Case) -> Option<T>,
) -> (Case, Option<T>) {
    let (mut smallest, mut what) = (case, first);
    'smaller: loop {
        for candidate in smallest.smaller() {
            if Instant::now() > until {
                break 'smaller;
            }
            if let Some(found) = failure(&candidate) {
                (smallest, what) = (candidate, Some(found));
                continue 'smaller;
            }
        }
        break;
    }
    (smallest, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_only_what_it_needs() {
        let case: Case =
            "seed=3,batch=3,tokens=150,heads=4,groups=2,chunk=100,init=yes,regime=strong,size.K=40,size.V=33"
                .parse()
                .unwrap();
        let fails = |case: &Case| (case.tokens > 16 && case.sizes["K"] >= 3 && case.init).then_some(case.tokens);
        let until = Instant::now() + Duration::from_secs(60);
        let (case, what) = smallest(case.clone(), fails(&case), until, fails);
        assert_eq!(what, Some(17));
        let expected = "seed=3,batch=1,tokens=17,heads=1,groups=1,chunk=16,init=yes,regime=usual,size.K=3,size.V=1";
        assert_eq!(case.to_string(), expected);
    }
}
