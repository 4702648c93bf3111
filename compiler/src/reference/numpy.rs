//! Prints a program as a NumPy function that a person could have written.
//!
//! Comes from a checked [`Program`], goes to a `.py` file. The function takes arrays `[B, T, H, axes…]`, loops over
//! tokens and works on all batches and heads at once; names and statements are those of the source. Needs no sizes:
//! they are read off the arrays. Gradients and grouped heads are not its concern.
//!
//! ```python
//! def delta_rule(q, k, v, beta, init=None):
//!     …
//!     for t in range(T):
//!         q_t, k_t, v_t, beta_t = q[:, t], k[:, t], v[:, t], beta[:, t]
//!         S = S + k_t[..., None] * (beta_t[..., None] * (v_t - np.einsum("...k,...kv->...v", k_t, S)))[..., None, :]
//!         o[:, t] = np.einsum("...k,...kv->...v", q_t, S)
//!     return {"o": o}, {"S": S}
//! ```

use chunkwise_dsl::program::{AxisId, ExprId, ExprKind, Program, Stmt, TensorKind};
use std::collections::BTreeSet;

use super::plan::operands_first;
use super::python::{Helper, Kind, Names, Text, Writer, definitions};

/// A complete Python module with one function of the program's name.
pub fn print(program: &Program) -> String {
    let names = Names::new(program);
    let mut writer = Writer::new(program, &names);

    let sizes = needed_sizes(program);
    let mut body = Vec::new();
    prologue(&mut writer, &sizes, &mut body);
    body.push(format!("for {} in range({}):", names.token, names.tokens));
    let read: Vec<usize> = inputs_read(program);
    if !read.is_empty() {
        let rows: Vec<&str> = read.iter().map(|&idx| names.rows[idx].as_str()).collect();
        let values: Vec<String> =
            read.iter().map(|&idx| format!("{}[:, {}]", names.tensors[idx], names.token)).collect();
        body.push(format!("    {} = {}", rows.join(", "), values.join(", ")));
    }
    block(&mut writer, &program.body, 1, &mut body);
    let dictionary = |pairs: Vec<(&str, &str)>| {
        let entries: Vec<String> = pairs.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        format!("{{{}}}", entries.join(", "))
    };
    let outputs =
        program.outputs.iter().zip(&names.outputs).map(|(output, name)| (output.name.as_str(), name.as_str()));
    let states = program.states.iter().zip(&names.states).map(|(state, name)| (state.name.as_str(), name.as_str()));
    body.push(format!("return {}, {}", dictionary(outputs.collect()), dictionary(states.collect())));

    let mut module = String::new();
    if writer.helpers.contains(&Helper::Gelu) {
        module.push_str("import math\n\n");
    }
    module.push_str("import numpy as np\n\n\n");
    for definition in definitions(&writer.helpers, &names) {
        module.push_str(&definition);
        module.push_str("\n\n\n");
    }
    module.push_str(&format!("def {}({}):\n", names.function, signature(&mut writer, &sizes)));
    for line in docstring(program, &names).iter().chain(&body) {
        if !line.is_empty() {
            module.push_str("    ");
            module.push_str(line);
        }
        module.push('\n');
    }
    module
}

/// Where the size of an axis is read from.
enum Size {
    /// The extent of this tensor at this place, counted from the end.
    Extent { tensor: usize, from_end: usize },
    /// The size of another axis, of which this one is a renamed copy.
    Same(AxisId),
    /// No tensor has the axis: the caller has to say.
    Asked,
}

/// The axes whose sizes the function mentions, and where each is read from.
fn needed_sizes(program: &Program) -> Vec<(AxisId, Size)> {
    let mut needed = BTreeSet::new();
    needed.extend(program.states.iter().flat_map(|state| state.axes.iter().copied()));
    needed.extend(program.outputs.iter().flat_map(|output| output.axes.iter().copied()));
    needed.extend(program.loop_vars.iter().map(|var| var.axis));
    needed.extend(program.exprs.iter().filter_map(|expr| match expr.kind {
        ExprKind::AxisSize(axis) => Some(axis),
        ExprKind::Number(_)
        | ExprKind::Const(_)
        | ExprKind::Tensor(_)
        | ExprKind::State(_)
        | ExprKind::Local(_)
        | ExprKind::LoopIndex(_)
        | ExprKind::Index { .. }
        | ExprKind::Unary(..)
        | ExprKind::Binary(..)
        | ExprKind::Contract { .. }
        | ExprKind::Reduce(..)
        | ExprKind::Rename { .. }
        | ExprKind::StopGradient(_) => None,
    }));
    let extent = |axis: AxisId| {
        program.tensors.iter().enumerate().find_map(|(tensor, declared)| {
            let position = declared.axes.iter().position(|&own| own == axis)?;
            Some(Size::Extent { tensor, from_end: declared.axes.len() - position })
        })
    };
    let renamed = |axis: AxisId| {
        program.exprs.iter().find_map(|expr| match expr.kind {
            ExprKind::Rename { from, to, .. } if to == axis && extent(from).is_some() => Some(from),
            ExprKind::Rename { from, to, .. } if from == axis && extent(to).is_some() => Some(to),
            ExprKind::Rename { .. }
            | ExprKind::Number(_)
            | ExprKind::AxisSize(_)
            | ExprKind::Const(_)
            | ExprKind::Tensor(_)
            | ExprKind::State(_)
            | ExprKind::Local(_)
            | ExprKind::LoopIndex(_)
            | ExprKind::Index { .. }
            | ExprKind::Unary(..)
            | ExprKind::Binary(..)
            | ExprKind::Contract { .. }
            | ExprKind::Reduce(..)
            | ExprKind::StopGradient(_) => None,
        })
    };
    let twins: Vec<AxisId> =
        needed.iter().filter(|&&axis| extent(axis).is_none()).filter_map(|&a| renamed(a)).collect();
    needed.extend(twins);
    let mut sizes: Vec<(AxisId, Size)> = needed
        .into_iter()
        .map(|axis| (axis, extent(axis).or_else(|| renamed(axis).map(Size::Same)).unwrap_or(Size::Asked)))
        .collect();
    // A copy is read after what it copies.
    sizes.sort_by_key(|(_, size)| matches!(size, Size::Same(_)));
    sizes
}

fn inputs_read(program: &Program) -> Vec<usize> {
    let read: BTreeSet<usize> = program
        .exprs
        .iter()
        .filter_map(|expr| if let ExprKind::Tensor(id) = expr.kind { Some(id.index()) } else { None })
        .filter(|&idx| program.tensors[idx].kind == TensorKind::Input)
        .collect();
    read.into_iter().collect()
}

fn signature(writer: &mut Writer, sizes: &[(AxisId, Size)]) -> String {
    let (program, names) = (writer.program, writer.names);
    let mut arguments = names.tensors.clone();
    if !program.tensors.iter().any(|tensor| tensor.kind == TensorKind::Input) {
        arguments.extend([names.batch.clone(), names.tokens.clone(), names.heads.clone()]);
    }
    let asked = sizes.iter().filter(|(_, size)| matches!(size, Size::Asked));
    arguments.extend(asked.map(|(axis, _)| names.axes[axis.index()].clone()));
    arguments.push(format!("{}=None", names.init));
    for (constant, name) in program.consts.iter().zip(&names.consts) {
        let default = literal(writer, constant.value).unwrap_or_else(|| "None".to_string());
        arguments.push(format!("{name}={default}"));
    }
    arguments.join(", ")
}

/// The text of an expression that is a number as written, perhaps with a minus.
fn literal(writer: &mut Writer, id: ExprId) -> Option<String> {
    let program = writer.program;
    let plain = |id: ExprId| matches!(program.expr(id).kind, ExprKind::Number(_));
    match program.expr(id).kind {
        ExprKind::Number(_) => Some(expression(writer, id, &[]).code),
        ExprKind::Unary(chunkwise_dsl::program::Unary::Neg, operand) if plain(operand) => {
            Some(expression(writer, id, &[]).code)
        }
        ExprKind::Unary(..)
        | ExprKind::AxisSize(_)
        | ExprKind::Const(_)
        | ExprKind::Tensor(_)
        | ExprKind::State(_)
        | ExprKind::Local(_)
        | ExprKind::LoopIndex(_)
        | ExprKind::Index { .. }
        | ExprKind::Binary(..)
        | ExprKind::Contract { .. }
        | ExprKind::Reduce(..)
        | ExprKind::Rename { .. }
        | ExprKind::StopGradient(_) => None,
    }
}

fn docstring(program: &Program, names: &Names) -> Vec<String> {
    let shape = |leading: &str, axes: &[AxisId]| {
        let axes = axes.iter().map(|axis| names.axes[axis.index()].as_str());
        let leading = leading.chars().map(|extent| match extent {
            'B' => names.batch.as_str(),
            'T' => names.tokens.as_str(),
            _ => names.heads.as_str(),
        });
        format!("[{}]", leading.chain(axes).collect::<Vec<_>>().join(", "))
    };
    let mut lines: Vec<String> = program.doc.trim().lines().map(|line| line.trim_end().to_string()).collect();
    if lines.is_empty() {
        lines.push(format!("{}, one token at a time.", program.name));
    }
    // What would end the string early, or mean something else inside it.
    for line in &mut lines {
        *line = line.replace('\\', "\\\\").replace("\"\"\"", "\\\"\\\"\\\"");
    }
    lines.push(String::new());
    for (tensor, name) in program.tensors.iter().zip(&names.tensors) {
        lines.push(match tensor.kind {
            TensorKind::Input => format!("{name}: {}", shape("BTH", &tensor.axes)),
            TensorKind::Param => format!("{name}: {}, a parameter", shape("H", &tensor.axes)),
        });
    }
    let states = program.states.iter().map(|state| format!("{} {}", state.name, shape("BH", &state.axes)));
    let states = states.collect::<Vec<_>>().join(", ");
    lines.push(format!("{}: initial states by name, zero where absent: {states}", names.init));
    let outputs = program.outputs.iter().map(|output| format!("{} {}", output.name, shape("BTH", &output.axes)));
    lines.push(format!("Returns the outputs ({}) and the final states.", outputs.collect::<Vec<_>>().join(", ")));
    lines[0] = format!("\"\"\"{}", lines[0]);
    lines.push("\"\"\"".to_string());
    lines
}

/// Sizes, constants, and arrays for states and outputs.
fn prologue(writer: &mut Writer, sizes: &[(AxisId, Size)], body: &mut Vec<String>) {
    let (program, names) = (writer.program, writer.names);
    let axis_name = |axis: AxisId| names.axes[axis.index()].clone();
    let first_input = program.tensors.iter().position(|tensor| tensor.kind == TensorKind::Input);
    let mut settled = Vec::new();
    if let Some(first) = first_input {
        let mut extents = vec![names.batch.clone(), names.tokens.clone(), names.heads.clone()];
        let own = &program.tensors[first].axes;
        let name = &names.tensors[first];
        if own.iter().all(|axis| sizes.iter().any(|(needed, _)| needed == axis)) {
            settled.extend(own.iter().copied());
            extents.extend(own.iter().map(|&axis| axis_name(axis)));
            body.push(format!("{} = {name}.shape", extents.join(", ")));
        } else {
            body.push(format!("{} = {name}.shape[:3]", extents.join(", ")));
        }
    }
    for (axis, size) in sizes.iter().filter(|(axis, _)| !settled.contains(axis)) {
        match size {
            Size::Extent { tensor, from_end } => {
                body.push(format!("{} = {}.shape[-{from_end}]", axis_name(*axis), names.tensors[*tensor]));
            }
            Size::Same(other) => body.push(format!("{} = {}", axis_name(*axis), axis_name(*other))),
            Size::Asked => {}
        }
    }
    for (constant, name) in program.consts.iter().zip(&names.consts) {
        if literal(writer, constant.value).is_none() {
            let value = expression(writer, constant.value, &[]);
            body.push(format!("if {name} is None:"));
            body.push(format!("    {name} = {}", value.code));
        }
    }
    let zeros = |leading: &[&String], axes: &[AxisId]| {
        let leading = leading.iter().map(|name| name.to_string());
        let extents: Vec<String> = leading.chain(axes.iter().map(|&axis| axis_name(axis))).collect();
        format!("np.zeros(({}))", extents.join(", "))
    };
    body.push(format!("{0} = {0} or {{}}", names.init));
    for (state, name) in program.states.iter().zip(&names.states) {
        let zeros = zeros(&[&names.batch, &names.heads], &state.axes);
        body.push(format!("{name} = {}.get(\"{}\", {zeros})", names.init, state.name));
    }
    for (output, name) in program.outputs.iter().zip(&names.outputs) {
        body.push(format!("{name} = {}", zeros(&[&names.batch, &names.tokens, &names.heads], &output.axes)));
    }
}

fn block(writer: &mut Writer, statements: &[Stmt], depth: usize, body: &mut Vec<String>) {
    let (program, names) = (writer.program, writer.names);
    let indent = "    ".repeat(depth);
    if statements.is_empty() {
        body.push(format!("{indent}pass"));
    }
    for stmt in statements {
        match stmt {
            Stmt::Let { local, value, .. } => {
                let axes = &program.locals[local.index()].axes;
                let value = expression(writer, *value, &[]).aligned(axes, writer);
                body.push(format!("{indent}{} = {}", names.locals[local.index()], value.code));
                writer.locals[local.index()] = value.kind;
            }
            Stmt::Update { state, value, .. } => {
                let axes = &program.states[state.index()].axes;
                let name = &names.states[state.index()];
                let value = expression(writer, *value, axes);
                let whole = value.kind == Kind::Sequence && value.axes.len() == axes.len();
                let value = value.aligned(axes, writer).code;
                body.push(match whole {
                    true => format!("{indent}{name} = {value}"),
                    false => format!("{indent}{name} = np.broadcast_to({value}, {name}.shape)"),
                });
            }
            Stmt::Output { output, value, .. } => {
                let axes = &program.outputs[output.index()].axes;
                // An output of one axis says nothing about the order of the matrices that it was read from.
                let preferred = if axes.len() > 1 { axes.as_slice() } else { &[] };
                let value = expression(writer, *value, preferred).aligned(axes, writer).code;
                body.push(format!("{indent}{}[:, {}] = {value}", names.outputs[output.index()], names.token));
            }
            Stmt::For { var, body: inner, .. } => {
                let axis = program.loop_vars[var.index()].axis;
                let (name, size) = (&names.loop_vars[var.index()], &names.axes[axis.index()]);
                body.push(format!("{indent}for {name} in range({size}):"));
                block(writer, inner, depth + 1, body);
            }
        }
    }
}

/// The text of an expression; where the printer may choose, axes come in the order of `preferred`.
fn expression(writer: &mut Writer, root: ExprId, preferred: &[AxisId]) -> Text {
    let needed = operands_first(writer.program, root);
    let mut done: Vec<Text> = Vec::with_capacity(needed.len());
    for &id in &needed {
        let text = writer.node(id, preferred, |operand| {
            let position = needed.binary_search(&operand).expect("every operand was collected above");
            done[position].clone()
        });
        done.push(text);
    }
    done.pop().expect("the root itself was collected, and comes last")
}
