//! The page of results. Comes in: two mechanisms, their verifications and what was learned. Goes out: one HTML text
//! that needs no other file and no network. It judges nothing: the numbers are shown as they came.

use chunkwise::explain::linear_text::escape;
use chunkwise::explain::{equations, page as explained};
use chunkwise::report;
use chunkwise::verify::Report;

use crate::chart::{Chart, Curve};
use crate::mechanism::Mechanism;
use crate::recall::Task;
use crate::training::{Outcome, Schedule};

/// Everything about one mechanism.
pub struct Run<'a> {
    /// The mechanism.
    pub mechanism: &'a Mechanism,
    /// What its verification found.
    pub verification: &'a Report,
    /// The language model.
    pub text: &'a Outcome,
    /// The recall.
    pub recall: &'a Outcome,
}

/// What both have in common.
pub struct Setting<'a> {
    /// The text that was learned.
    pub corpus: &'a str,
    /// Bytes learned from, bytes held out.
    pub n_bytes: (usize, usize),
    /// The model in words.
    pub model: &'a str,
    /// The schedule of the language models.
    pub text: &'a Schedule,
    /// The schedule of the recall.
    pub recall: &'a Schedule,
    /// The recall task.
    pub task: &'a Task,
    /// Processor threads.
    pub threads: usize,
    /// Seconds from start to page.
    pub seconds: f64,
}

/// Puts the page together.
pub fn page(setting: &Setting, runs: &[Run]) -> String {
    let names: Vec<String> = runs.iter().map(|run| spoken(&run.mechanism.name)).collect();
    let sections = [
        introduction(setting, &names),
        language(setting, runs),
        recall(setting, runs),
        sources(runs),
        derivations(runs),
        verifications(runs),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>chunkwise: two models, one file apart</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}\n\
         </main>\n</body>\n</html>\n",
        sections.join("\n")
    )
}

const STYLE: &str = include_str!("page.css");

/// `gated_delta_rule` → `gated delta rule`
fn spoken(name: &str) -> String {
    escape(&name.replace('_', " "))
}

fn introduction(setting: &Setting, names: &[String]) -> String {
    format!(
        "<h1>Two models, one file apart</h1>\n<p class=\"lead\">A recurrence was written in a <code>.cw</code> file of a \
         few lines; chunkwise derived its chunkwise form and its gradient, compiled both for this machine's processor, \
         and compared them with the recurrence as written. Then two byte-level language models learned the same text. \
         They differ in that file and in nothing else: <b class=\"series-0\">{}</b> against \
         <b class=\"series-1\">{}</b>. Every forward and backward pass through the recurrence on this page ran the \
         compiled code. All of it took {:.0} seconds on {} threads.</p>",
        names[0], names[1], setting.seconds, setting.threads
    )
}

fn language(setting: &Setting, runs: &[Run]) -> String {
    let Schedule { steps, batch, window, .. } = *setting.text;
    let chart = Chart {
        title: "Held-out loss of both language models while they learn".to_owned(),
        across: "steps".to_owned(),
        up: "bits per byte, held-out text (faint: loss while learning)".to_owned(),
        behind: runs.iter().map(|run| smooth(&run.text.learning)).collect(),
        curves: curves(runs, |run| run.text),
        range: Some((
            runs.iter().map(|run| run.text.last).fold(f64::INFINITY, f64::min) - 0.1,
            // The first measurement, before anything was learned, would press all the rest to the floor.
            runs.iter().filter_map(|run| run.text.measured.get(1)).map(|(_, up)| *up).fold(1.0, f64::max),
        )),
        shares: false,
    };
    let rows = runs.iter().enumerate().map(|(number, run)| {
        format!(
            "<tr><th class=\"series-{number}\">{}</th><td>{:.3}</td><td>{}</td><td>{:.0} %</td><td>{}</td>\
             <td>{}</td></tr>",
            spoken(&run.mechanism.name),
            run.text.last,
            thousands(run.text.tokens_per_second),
            run.text.share_in_recurrence * 100.0,
            thousands(run.text.n_parameters as f64),
            report::duration(run.mechanism.compile_seconds),
        )
    });
    format!(
        "<section>\n<h2>Learning English</h2>\n<p>The text is {} ({} bytes to learn from, {} held out). {} Each model \
         takes {steps} steps of {batch} × {window} bytes with AdamW, in the same order and from the same first \
         parameters.</p>\n{}\n<table><thead><tr><th></th><th>bits per byte</th><th>tokens a second</th>\
         <th>time in the recurrence</th><th>parameters</th><th>compiled in</th></tr></thead><tbody>{}</tbody></table>\n\
         <p class=\"note\">Tokens a second are of whole training steps: forward, backward and optimiser. The models \
         share all parameters but those that make an input which only one of the files declares. Code found in \
         the cache is not compiled again.</p>\n</section>",
        escape(setting.corpus),
        thousands(setting.n_bytes.0 as f64),
        thousands(setting.n_bytes.1 as f64),
        escape(setting.model),
        chart.draw(),
        rows.collect::<String>()
    )
}

fn recall(setting: &Setting, runs: &[Run]) -> String {
    let Task { keys, values, pairs, questions } = *setting.task;
    let chart = Chart {
        title: "Questions answered rightly while learning to recall".to_owned(),
        across: "steps".to_owned(),
        up: "questions answered rightly, new sequences".to_owned(),
        behind: vec![],
        curves: curves(runs, |run| run.recall),
        range: Some((0.0, 1.0)),
        shares: true,
    };
    let rows = runs.iter().enumerate().map(|(number, run)| {
        format!(
            "<tr><th class=\"series-{number}\">{}</th><td>{:.1} %</td><td>{}</td></tr>",
            spoken(&run.mechanism.name),
            run.recall.last * 100.0,
            thousands(run.recall.tokens_per_second)
        )
    });
    format!(
        "<section>\n<h2>Recalling what belongs to what</h2>\n<p>A sequence holds {pairs} pairs of one of {keys} keys and \
         one of {values} values, then {questions} keys alone, each to be answered with its value. Keys come again with \
         other values, and the last one counts. A state that is only ever added to, as in plain linear attention, keeps \
         what a key was bound to before; the delta rule first takes out what the state holds for the key. Guessing \
         answers {:.1} % rightly. Both models, smaller ones of the same kind, take {} steps of {} fresh \
         sequences.</p>\n{}\n<table><thead><tr><th></th><th>answered rightly</th><th>tokens a second</th></tr></thead>\
         <tbody>{}</tbody></table>\n</section>",
        100.0 / values as f64,
        setting.recall.steps,
        setting.recall.batch,
        chart.draw(),
        rows.collect::<String>()
    )
}

fn sources(runs: &[Run]) -> String {
    let columns = runs.iter().enumerate().map(|(number, run)| {
        format!(
            "<div><h3 class=\"series-{number}\">{}.cw</h3>\n<pre>{}</pre>\n<div class=\"equations\">{}</div></div>",
            escape(&run.mechanism.name),
            escape(run.mechanism.source.trim_end()),
            equations::of(&run.mechanism.program).concat()
        )
    });
    format!(
        "<section>\n<h2>The two files</h2>\n<p>What one token does to the state of one head, as written and as read: \
         ⊗ makes a matrix of two vectors, ← changes the state.</p>\n<div class=\"columns\">{}</div>\n</section>",
        columns.collect::<String>()
    )
}

fn derivations(runs: &[Run]) -> String {
    let parts = runs.iter().enumerate().map(|(number, run)| {
        format!(
            "<details open><summary class=\"series-{number}\">{}, in chunks of {} tokens</summary>\n{}</details>",
            spoken(&run.mechanism.name),
            run.mechanism.chunk,
            explained::derivation(&run.mechanism.derivation)
        )
    });
    format!(
        "<section>\n<h2>How the chunkwise forms were derived</h2>\n<p>Each step is a named rule with what stood before, \
         what stands after, and the condition that was checked. The backward pass is the transpose of what came out. \
         <code>chunkwise explain FILE</code> says the same in a terminal.</p>\n{}\n</section>",
        parts.collect::<String>()
    )
}

fn verifications(runs: &[Run]) -> String {
    let tables = runs.iter().enumerate().map(|(number, run)| {
        let rows = run.verification.rows.iter().map(|row| {
            let (error, allowed) = match &row.worst {
                Some(worst) => (report::error(worst.error), report::error(worst.allowed)),
                None => (String::new(), String::new()),
            };
            format!(
                "<tr><th>{}</th><td class=\"word\">{}</td><td>{}</td><td>{error}</td><td>{allowed}</td></tr>",
                escape(&row.check.name()),
                row.share.map_or(String::new(), |share| share.name().to_owned()),
                row.cases
            )
        });
        format!(
            "<h3 class=\"series-{number}\">{}</h3>\n<table><thead><tr><th>check</th><th class=\"word\">of</th>\
             <th>cases</th><th>worst</th><th>allowed</th></tr></thead><tbody>{}</tbody></table>",
            spoken(&run.mechanism.name),
            rows.collect::<String>()
        )
    });
    format!(
        "<section>\n<h2>Proof that all forms agree</h2>\n<p>Before learning began, every form and every gradient was \
         compared with the recurrence as written, in float64, on drawn sequences at the sizes the models use. Relative \
         errors; all of them are within what is allowed.</p>\n<details><summary>The worst of every check</summary>{}\
         </details>\n</section>",
        tables.collect::<String>()
    )
}

fn curves<'a>(runs: &[Run<'a>], of: impl Fn(&Run<'a>) -> &'a Outcome) -> Vec<Curve> {
    let curve = |run: &Run<'a>| Curve { label: run.mechanism.name.replace('_', " "), points: of(run).measured.clone() };
    runs.iter().map(curve).collect()
}

/// Means over neighbours: single batches jump.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = (points.len() / 80).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|it| it.0).sum::<f64>() / n, part.iter().map(|it| it.1).sum::<f64>() / n)
    };
    points.chunks(group).map(mean).collect()
}

/// `123 456`, with a thin space that does not break.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}
