//! The equations of a program as one would print them, in MathML. In: a checked program; out: one formula a
//! statement. Products say what they do: `⊗` joins axes that only one side has, `⊙` goes entry by entry, a dot with an
//! axis under it sums over that axis.

use chunkwise_dsl::program::{Binary, Expr, ExprId, ExprKind, Index, Program, Reduce, Stmt, TensorKind, Unary};

use super::linear_text::escape;

/// How tightly a formula holds together; one that is looser than its place needs gets parentheses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tightness {
    Sum,
    Product,
    Power,
    Atom,
}

/// The constants of a program and its statements, in order.
pub fn of(program: &Program) -> Vec<String> {
    let mut lines = Vec::new();
    for constant in &program.consts {
        let (left, value) = (name(&constant.name, false), formula(program, constant.value, Tightness::Sum));
        lines.push(format!("<math display=\"block\"><mrow>{left}<mo>=</mo>{value}</mrow></math>"));
    }
    statements(program, &program.body, &mut lines);
    lines
}

fn statements(program: &Program, body: &[Stmt], lines: &mut Vec<String>) {
    for statement in body {
        let (left, sign, value) = match statement {
            Stmt::Let { local, value, .. } => (name(&program.locals[local.index()].name, true), "=", *value),
            Stmt::Update { state, value, .. } => (name(&program.states[state.index()].name, false), "←", *value),
            Stmt::Output { output, value, .. } => (name(&program.outputs[output.index()].name, true), "=", *value),
            Stmt::For { var, body, .. } => {
                let variable = &program.loop_vars[var.index()];
                let axis = &program.axes[variable.axis.index()].name;
                lines.push(format!(
                    "<math><mtext>for </mtext><mi>{}</mi><mo>=</mo><mn>1</mn><mo>…</mo><mi>{}</mi><mtext>:</mtext></math>",
                    escape(&variable.name),
                    escape(axis)
                ));
                statements(program, body, lines);
                continue;
            }
        };
        let value = formula(program, value, Tightness::Sum);
        lines.push(format!("<math display=\"block\"><mrow>{left}<mo>{sign}</mo>{value}</mrow></math>"));
    }
}

/// A formula, in parentheses where its place asks for more than it has.
fn formula(program: &Program, id: ExprId, needed: Tightness) -> String {
    let (markup, tightness) = bare(program, program.expr(id));
    if tightness < needed { format!("<mrow><mo>(</mo>{markup}<mo>)</mo></mrow>") } else { markup }
}

fn bare(program: &Program, expr: &Expr) -> (String, Tightness) {
    let sub = |id: &ExprId, needed| formula(program, *id, needed);
    let axis = |index: usize| format!("<mi>{}</mi>", escape(&program.axes[index].name));
    match &expr.kind {
        ExprKind::Number(value) => (format!("<mn>{value}</mn>"), Tightness::Atom),
        ExprKind::AxisSize(id) => (axis(id.index()), Tightness::Atom),
        ExprKind::Const(id) => (name(&program.consts[id.index()].name, false), Tightness::Atom),
        ExprKind::Tensor(id) => {
            let tensor = &program.tensors[id.index()];
            (name(&tensor.name, tensor.kind == TensorKind::Input), Tightness::Atom)
        }
        ExprKind::State(id) => (name(&program.states[id.index()].name, false), Tightness::Atom),
        ExprKind::Local(id) => (name(&program.locals[id.index()].name, true), Tightness::Atom),
        ExprKind::LoopIndex(id) => (name(&program.loop_vars[id.index()].name, false), Tightness::Atom),
        ExprKind::Index { base, index, .. } => {
            let index = match index {
                Index::Loop(id) => format!("<mi>{}</mi>", escape(&program.loop_vars[id.index()].name)),
                Index::Literal(number) => format!("<mn>{number}</mn>"),
            };
            (
                format!("<msup>{}<mrow><mo>(</mo>{index}<mo>)</mo></mrow></msup>", sub(base, Tightness::Atom)),
                Tightness::Power,
            )
        }
        ExprKind::Unary(function, operand) => unary(*function, |needed| sub(operand, needed)),
        ExprKind::Binary(function, lhs, rhs) => binary(program, *function, *lhs, *rhs),
        ExprKind::Contract { lhs, rhs, over } => {
            let over: String = over.iter().map(|id| axis(id.index())).collect();
            let (lhs, rhs) = (sub(lhs, Tightness::Product), sub(rhs, Tightness::Power));
            (format!("{lhs}<munder><mo>·</mo><mrow>{over}</mrow></munder>{rhs}"), Tightness::Product)
        }
        ExprKind::Reduce(function, operand, over) => {
            let over = axis(over.index());
            let operand = sub(operand, Tightness::Product);
            match function {
                Reduce::Sum => (format!("<munder><mo>∑</mo>{over}</munder>{operand}"), Tightness::Product),
                Reduce::Mean | Reduce::Max | Reduce::Softmax | Reduce::L2Norm => {
                    let word = match function {
                        Reduce::Mean => "mean",
                        Reduce::Max => "max",
                        Reduce::Softmax => "softmax",
                        Reduce::L2Norm => "l2norm",
                        Reduce::Sum => "sum",
                    };
                    (
                        format!("<munder><mi mathvariant=\"normal\">{word}</mi>{over}</munder>{operand}"),
                        Tightness::Product,
                    )
                }
            }
        }
        ExprKind::Rename { value, from, to } => {
            let (from, to) = (axis(from.index()), axis(to.index()));
            (format!("<msub>{}<mrow>{from}<mo>→</mo>{to}</mrow></msub>", sub(value, Tightness::Atom)), Tightness::Power)
        }
        ExprKind::StopGradient(value) => (
            format!("<mi mathvariant=\"normal\">sg</mi><mo>(</mo>{}<mo>)</mo>", sub(value, Tightness::Sum)),
            Tightness::Atom,
        ),
    }
}

fn unary(function: Unary, operand: impl Fn(Tightness) -> String) -> (String, Tightness) {
    let called = |word: &str| {
        let operand = operand(Tightness::Sum);
        (format!("<mi mathvariant=\"normal\">{word}</mi><mo>(</mo>{operand}<mo>)</mo>"), Tightness::Atom)
    };
    match function {
        Unary::Neg => (format!("<mo>−</mo>{}", operand(Tightness::Product)), Tightness::Sum),
        Unary::Exp => (format!("<msup><mi>e</mi><mrow>{}</mrow></msup>", operand(Tightness::Sum)), Tightness::Power),
        Unary::Exp2 => (format!("<msup><mn>2</mn><mrow>{}</mrow></msup>", operand(Tightness::Sum)), Tightness::Power),
        Unary::Sqrt => (format!("<msqrt>{}</msqrt>", operand(Tightness::Sum)), Tightness::Atom),
        Unary::Abs => (format!("<mo>|</mo>{}<mo>|</mo>", operand(Tightness::Sum)), Tightness::Atom),
        Unary::Square => (format!("<msup>{}<mn>2</mn></msup>", operand(Tightness::Atom)), Tightness::Power),
        Unary::Sigmoid => (format!("<mi>σ</mi><mo>(</mo>{}<mo>)</mo>", operand(Tightness::Sum)), Tightness::Atom),
        Unary::Log => called("log"),
        Unary::Sign => called("sign"),
        Unary::LogSigmoid => called("logsigmoid"),
        Unary::Softplus => called("softplus"),
        Unary::Silu => called("silu"),
        Unary::Tanh => called("tanh"),
        Unary::Elu => called("elu"),
        Unary::Relu => called("relu"),
        Unary::Gelu => called("gelu"),
        Unary::Sin => called("sin"),
        Unary::Cos => called("cos"),
    }
}

fn binary(program: &Program, function: Binary, lhs: ExprId, rhs: ExprId) -> (String, Tightness) {
    let sub = |id: ExprId, needed| formula(program, id, needed);
    match function {
        Binary::Add => (format!("{}<mo>+</mo>{}", sub(lhs, Tightness::Sum), sub(rhs, Tightness::Sum)), Tightness::Sum),
        Binary::Sub => {
            (format!("{}<mo>−</mo>{}", sub(lhs, Tightness::Sum), sub(rhs, Tightness::Product)), Tightness::Sum)
        }
        Binary::Mul => {
            let (a, b) = (&program.expr(lhs).axes, &program.expr(rhs).axes);
            let sign = if a.is_empty() || b.is_empty() {
                "<mspace width=\"0.17em\"/>"
            } else if a.iter().any(|axis| b.contains(axis)) {
                "<mo>⊙</mo>"
            } else {
                "<mo>⊗</mo>"
            };
            (format!("{}{sign}{}", sub(lhs, Tightness::Product), sub(rhs, Tightness::Product)), Tightness::Product)
        }
        Binary::Div => (
            format!("<mfrac>{}{}</mfrac>", grouped(sub(lhs, Tightness::Sum)), grouped(sub(rhs, Tightness::Sum))),
            Tightness::Atom,
        ),
        Binary::Pow => (
            format!("<msup>{}{}</msup>", sub(lhs, Tightness::Atom), grouped(sub(rhs, Tightness::Sum))),
            Tightness::Power,
        ),
        Binary::Min | Binary::Max => {
            let word = if function == Binary::Min { "min" } else { "max" };
            let (a, b) = (sub(lhs, Tightness::Sum), sub(rhs, Tightness::Sum));
            (format!("<mi mathvariant=\"normal\">{word}</mi><mo>(</mo>{a}<mo>,</mo>{b}<mo>)</mo>"), Tightness::Atom)
        }
    }
}

fn grouped(markup: String) -> String {
    format!("<mrow>{markup}</mrow>")
}

/// A name, Greek where it is spelled so, with the token's index where it has one value a token.
fn name(name: &str, of_token: bool) -> String {
    const GREEK: [(&str, &str); 16] = [
        ("alpha", "α"),
        ("beta", "β"),
        ("gamma", "γ"),
        ("delta", "δ"),
        ("epsilon", "ε"),
        ("eta", "η"),
        ("theta", "θ"),
        ("kappa", "κ"),
        ("lambda", "λ"),
        ("mu", "μ"),
        ("rho", "ρ"),
        ("sigma", "σ"),
        ("tau", "τ"),
        ("phi", "φ"),
        ("psi", "ψ"),
        ("omega", "ω"),
    ];
    let shown =
        GREEK.iter().find(|(word, _)| *word == name).map_or_else(|| escape(name), |(_, letter)| (*letter).to_owned());
    if of_token { format!("<msub><mi>{shown}</mi><mi>t</mi></msub>") } else { format!("<mi>{shown}</mi>") }
}
