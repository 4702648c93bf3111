//! The page: equations, derivation, picture, costs. In: a program and its forms; out: HTML that loads nothing.

use chunkwise_compiler::derive::form::Form;
use chunkwise_compiler::derive::rule::Derivation;
use chunkwise_dsl::instance::Instance;

use super::linear_text::{escape, typeset};
use super::{FormFacts, drawing, equations, whole};
use crate::report;

/// The look of the page; `demo` pages use it too.
pub const STYLE: &str = "\
body{font:16px/1.5 Georgia,serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1,h2,h3{font-weight:600;line-height:1.2}h2{margin-top:2.2rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}\
table{border-collapse:collapse;font:14px/1.4 system-ui,sans-serif}td,th{padding:.25rem .7rem;text-align:right;\
border-bottom:1px solid #e5e5e5}td:first-child,th:first-child{text-align:left}.step{margin:1rem 0;padding:.7rem 1rem;\
border:1px solid #e2e2e2;border-radius:6px}.step h3{margin:0 0 .3rem;font-size:1.05rem}.step dl{margin:.4rem 0 0;\
display:grid;grid-template-columns:6rem 1fr;gap:.25rem .8rem}.step dt{color:#777;font:13px/1.6 system-ui,sans-serif}\
.step dd{margin:0;overflow-x:auto}.facts{color:#555;font-style:italic}.wide{overflow-x:auto}math{font-size:1.05em}\
.equations math{margin:.5rem 0}svg text{font:11px system-ui,sans-serif;text-anchor:middle;fill:#222}\
svg .dims{fill:#777;font-size:10px}svg rect{fill:#f7f7f5;stroke:#bbb}svg .input rect{fill:#e8f0fa;stroke:#8fb0d6}\
svg .state rect{fill:#fdf1dc;stroke:#d9b36c}svg .output rect{fill:#e6f4e6;stroke:#86bd86}\
svg .wire{fill:none;stroke:#aaa;stroke-width:1.1}footer{margin-top:3rem;color:#888;font:13px system-ui,sans-serif}";

/// The whole page.
pub fn html(instance: &Instance, facts: &[FormFacts], length: usize) -> String {
    let program = instance.program;
    let sizes = program.axes.iter().zip(&instance.sizes).map(|(axis, size)| format!("{} = {size}", axis.name));
    let sizes = sizes.collect::<Vec<_>>().join(", ");
    let mut body = format!("<h1>{}</h1>\n<p>{}</p>\n", escape(&program.name), escape(program.doc.trim()));
    body.push_str("<h2>The recurrence</h2>\n<div class=\"equations\">\n");
    body.push_str(&equations::of(program).join("\n"));
    body.push_str("\n</div>\n");
    body.push_str(&format!("<h2>What each form costs</h2>\n<p>A token and head, at {}.</p>\n", escape(&sizes)));
    body.push_str(&costs(facts, length));
    for facts in facts {
        let Ok(found) = &facts.outcome else { continue };
        if facts.form == Form::Chunkwise {
            body.push_str("<h2>Derivation of the chunkwise form</h2>\n");
            body.push_str(&derivation(&found.derived.derivation));
            body.push_str("<h2>What one token does</h2>\n<div class=\"wide\">");
            body.push_str(&drawing::svg(&found.derived.token));
            body.push_str("</div>\n");
            body.push_str(&format!(
                "<h2>What one chunk of {} tokens does</h2>\n<div class=\"wide\">",
                found.derived.chunk
            ));
            body.push_str(&drawing::svg(&found.derived.forward));
            body.push_str("</div>\n");
        }
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head><body>\n{body}<footer>chunkwise \
         {}</footer></body></html>\n",
        escape(&program.name),
        env!("CARGO_PKG_VERSION")
    )
}

fn costs(facts: &[FormFacts], length: usize) -> String {
    let mut rows = String::new();
    for facts in facts {
        match &facts.outcome {
            Ok(found) => rows.push_str(&format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                facts.form.name(),
                found.derived.chunk,
                whole(found.forward.flops()),
                whole(found.gradients.flops()),
                report::bytes(found.forward.bytes),
                report::bytes(found.saved_bytes),
                report::bytes(found.forward.step_bytes),
            )),
            Err(why) => {
                rows.push_str(&format!(
                    "<tr><td>{}</td><td colspan=\"6\">{}</td></tr>\n",
                    facts.form.name(),
                    escape(why)
                ));
            }
        }
    }
    format!(
        "<div class=\"wide\"><table><tr><th>form</th><th>tokens a step</th><th>flops</th><th>flops with gradients</th>\
         <th>tensors</th><th>saved</th><th>numbers of a step</th></tr>\n{rows}</table></div>\n<p>The parallel form is \
         counted for a sequence of {length} tokens. These are counts of what is written down, not measurements.</p>\n"
    )
}

/// The steps of a derivation, a box each.
pub fn derivation(derivation: &Derivation) -> String {
    let mut html = String::new();
    for (number, step) in derivation.steps.iter().enumerate() {
        let rule = step.rule;
        html.push_str(&format!(
            "<div class=\"step\"><h3>{}. {}</h3><div class=\"facts\">{}</div><dl><dt>before</dt><dd>{}</dd><dt>after</dt>\
             <dd>{}</dd><dt>holds when</dt><dd>{}</dd><dt>why</dt><dd>{}</dd><dt>source</dt><dd>{}</dd></dl></div>\n",
            number + 1,
            escape(rule.name),
            escape(&step.facts),
            typeset(rule.before),
            typeset(rule.after),
            escape(rule.holds_when),
            escape(rule.why),
            escape(rule.source),
        ));
    }
    html
}
