//! A graph as a picture. In: a graph; out: SVG with a box a node, rows from the inputs down, and a line for each use.
//! It lays out by the longest way from an input, which keeps lines pointing down; it never leaves a node out.

use std::collections::HashMap;
use std::fmt::Write;

use chunkwise_compiler::graph::ir::{DimId, Graph, InputKind, NodeId, Op};
use chunkwise_compiler::graph::text;

use super::linear_text::escape;

const BOX: (f64, f64) = (128.0, 34.0);
const GAP: (f64, f64) = (14.0, 34.0);

/// Draws a graph.
pub fn svg(graph: &Graph) -> String {
    let labels = labels(graph);
    let rows = rows(graph);
    let widest = rows.iter().map(Vec::len).max().unwrap_or(1) as f64;
    let width = widest * (BOX.0 + GAP.0) + GAP.0;
    let height = rows.len() as f64 * (BOX.1 + GAP.1) + GAP.1;
    let mut places: HashMap<NodeId, (f64, f64)> = HashMap::new();
    for (level, row) in rows.iter().enumerate() {
        let left = (width - row.len() as f64 * (BOX.0 + GAP.0) + GAP.0) / 2.0;
        for (at, id) in row.iter().enumerate() {
            places.insert(*id, (left + at as f64 * (BOX.0 + GAP.0), GAP.1 / 2.0 + level as f64 * (BOX.1 + GAP.1)));
        }
    }
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\">"
    );
    for (at, node) in graph.nodes.iter().enumerate() {
        let (x, y) = places[&NodeId(at as u32)];
        for operand in node.op.operands() {
            let (from_x, from_y) = places[&operand];
            let (x1, y1, x2, y2) = (from_x + BOX.0 / 2.0, from_y + BOX.1, x + BOX.0 / 2.0, y);
            let middle = (y1 + y2) / 2.0;
            line(
                &mut svg,
                format_args!(
                    "<path class=\"wire\" d=\"M{x1:.0} {y1:.0} C{x1:.0} {middle:.0} {x2:.0} {middle:.0} {x2:.0} {y2:.0}\"/>"
                ),
            );
        }
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(at as u32);
        let (x, y) = places[&id];
        let class = match &node.op {
            Op::Input { kind: InputKind::Carry, .. } => "state",
            Op::Input { .. } => "input",
            _ if graph.outputs.iter().any(|(_, output)| *output == id) => "output",
            _ if graph.carries.iter().any(|carry| carry.output == id) => "state",
            _ => "op",
        };
        let (label, result) = &labels[at];
        line(
            &mut svg,
            format_args!(
                "<g class=\"{class}\"><rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"5\"/>",
                BOX.0, BOX.1
            ),
        );
        let (middle, first, second) = (x + BOX.0 / 2.0, y + 14.0, y + 27.0);
        line(&mut svg, format_args!("<text x=\"{middle:.0}\" y=\"{first:.0}\">{}</text>", escape(label)));
        line(
            &mut svg,
            format_args!("<text class=\"dims\" x=\"{middle:.0}\" y=\"{second:.0}\">{}</text>", escape(result)),
        );
        let rule = if node.rule.is_empty() { "as written" } else { node.rule };
        line(&mut svg, format_args!("<title>%{at}: {}</title></g>", escape(rule)));
    }
    svg.push_str("</svg>");
    svg
}

fn line(svg: &mut String, markup: std::fmt::Arguments) {
    svg.write_fmt(markup).expect("writing to a string does not fail");
}

/// Nodes by their longest way from a node without operands.
fn rows(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut levels: Vec<usize> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let above = node.op.operands().iter().map(|operand| levels[operand.index()] + 1).max();
        levels.push(above.unwrap_or(0));
    }
    let mut rows = vec![Vec::new(); levels.iter().max().map_or(0, |deepest| deepest + 1)];
    for (at, level) in levels.into_iter().enumerate() {
        rows[level].push(NodeId(at as u32));
    }
    rows
}

/// What is computed and over which dimensions, by node.
fn labels(graph: &Graph) -> Vec<(String, String)> {
    let printed = text::print(graph);
    // A node's line begins `%n = operation …`; the operation's name is what a reader looks for.
    let mut names: HashMap<usize, String> = HashMap::new();
    for line in printed.lines() {
        let Some((id, rest)) = line.trim().strip_prefix('%').and_then(|line| line.split_once(" = ")) else { continue };
        let Ok(id) = id.parse::<usize>() else { continue };
        let (what, _) = rest.split_once(" : ").unwrap_or((rest, ""));
        let words = what.split_whitespace().filter(|word| !word.starts_with('%')).take(3);
        // A scan's body numbers its own nodes from 0 again; the first line of a number is the outer one.
        names.entry(id).or_insert_with(|| words.collect::<Vec<_>>().join(" "));
    }
    let dims = |of: &[DimId]| of.iter().map(|dim| graph.dim(*dim).name.as_str()).collect::<Vec<_>>().join(", ");
    let label = |at: usize| names.get(&at).map_or_else(String::new, |name| shortened(name));
    let results = |at: usize| {
        let id = NodeId(at as u32);
        let mut result = format!("[{}]", dims(&graph.nodes[at].dims));
        for (name, _) in graph.outputs.iter().filter(|(_, output)| *output == id) {
            result = format!("{name} {result}");
        }
        for carry in graph.carries.iter().filter(|carry| carry.output == id) {
            result = format!("{}′ {result}", carry.name);
        }
        shortened(&result)
    };
    (0..graph.nodes.len()).map(|at| (label(at), results(at))).collect()
}

fn shortened(text: &str) -> String {
    const MOST: usize = 20;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST - 1).chain(['…']).collect() }
}
