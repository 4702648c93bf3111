//! Python expressions: names, precedence, and how named axes become positions.
//!
//! Comes from the NumPy printer one expression at a time, goes back to it as text. An array has batch and head first
//! (a parameter only the head), then its named axes; so broadcasting by name is an index like `[..., None, :]`.

use chunkwise_dsl::program::{AxisId, Binary, ExprId, ExprKind, Index, Program, Reduce, TensorKind, Unary};
use std::collections::BTreeSet;

/// Words that a Python function cannot use for something else: the language's own, and what the printer writes.
const RESERVED: [&str; 42] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "abs", "math", "max", "min", "np",
    "range", "print",
];

/// A Python name for everything; the source's own wherever Python allows.
pub(super) struct Names {
    pub function: String,
    pub axes: Vec<String>,
    pub tensors: Vec<String>,
    /// One token of each tensor: `q_t`.
    pub rows: Vec<String>,
    pub consts: Vec<String>,
    pub states: Vec<String>,
    pub outputs: Vec<String>,
    pub locals: Vec<String>,
    pub loop_vars: Vec<String>,
    pub token: String,
    pub batch: String,
    pub tokens: String,
    pub heads: String,
    pub init: String,
    helpers: Vec<(Helper, String)>,
}

impl Names {
    pub fn new(program: &Program) -> Names {
        let mut taken: BTreeSet<String> = RESERVED.iter().map(|word| word.to_string()).collect();
        let mut fresh = |name: &str| {
            let mut name = name.to_string();
            while !taken.insert(name.clone()) {
                name.push('_');
            }
            name
        };
        // The names of the source first: the printer's own make way for them.
        let tensors: Vec<String> = program.tensors.iter().map(|tensor| fresh(&tensor.name)).collect();
        let consts = program.consts.iter().map(|constant| fresh(&constant.name)).collect();
        let axes = program.axes.iter().map(|axis| fresh(&axis.name)).collect();
        let states = program.states.iter().map(|state| fresh(&state.name)).collect();
        let outputs = program.outputs.iter().map(|output| fresh(&output.name)).collect();
        // Names bound in separate blocks may repeat, and then may be the same variable.
        let mut bound: Vec<(String, String)> = Vec::new();
        let mut bind = |name: &str| match bound.iter().find(|(source, _)| source == name) {
            Some((_, python)) => python.clone(),
            None => {
                bound.push((name.to_string(), fresh(name)));
                bound[bound.len() - 1].1.clone()
            }
        };
        let locals = program.locals.iter().map(|local| bind(&local.name)).collect();
        let loop_vars = program.loop_vars.iter().map(|var| bind(&var.name)).collect();
        let token = fresh("t");
        let rows = program
            .tensors
            .iter()
            .zip(&tensors)
            .map(|(tensor, name)| match tensor.kind {
                TensorKind::Input => fresh(&format!("{}_{token}", tensor.name)),
                TensorKind::Param => name.clone(),
            })
            .collect();
        Names {
            rows,
            token,
            batch: fresh("B"),
            tokens: fresh("T"),
            heads: fresh("H"),
            init: fresh("init"),
            helpers: Helper::ALL.iter().map(|&helper| (helper, fresh(helper.name()))).collect(),
            function: if RESERVED.contains(&program.name.as_str()) {
                format!("{}_", program.name)
            } else {
                program.name.clone()
            },
            axes,
            tensors,
            consts,
            states,
            outputs,
            locals,
            loop_vars,
        }
    }

    fn helper(&self, helper: Helper) -> &str {
        let found = self.helpers.iter().find(|(known, _)| *known == helper);
        &found.expect("every helper was given a name").1
    }
}

/// What depends on what: plain numbers broadcast with anything; parameters have heads; the rest has a batch as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Number,
    Head,
    Sequence,
}

/// How tightly a text holds together, loosest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strength {
    Sum,
    Product,
    Sign,
    Power,
    Atom,
}

/// A Python expression.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub code: String,
    pub strength: Strength,
    /// The named axes, in the order of the array's last dimensions.
    pub axes: Vec<AxisId>,
    pub kind: Kind,
    /// If this is an indexed array: the array and what stands for each of its axes.
    indexed: Option<(String, Vec<String>)>,
}

impl Text {
    fn at_least(&self, strength: Strength) -> String {
        if self.strength < strength { format!("({})", self.code) } else { self.code.clone() }
    }

    /// The array and its index, `:` for every axis if it has none yet.
    fn places(&self) -> (String, Vec<String>) {
        let whole = || (self.at_least(Strength::Atom), vec![":".to_string(); self.axes.len()]);
        self.indexed.clone().unwrap_or_else(whole)
    }

    /// `array[..., places]` with these axes left; whole axes right after the ellipsis are covered by it.
    fn index(array: String, places: Vec<String>, axes: Vec<AxisId>, kind: Kind) -> Text {
        let first = places.iter().position(|place| place != ":").unwrap_or(places.len());
        let mut index = vec!["..."];
        index.extend(places[first..].iter().map(String::as_str));
        let code = format!("{array}[{}]", index.join(", "));
        Text { code, strength: Strength::Atom, axes, kind, indexed: Some((array, places)) }
    }

    /// The same value with these axes in this order, those it lacks having extent 1.
    pub fn aligned(mut self, axes: &[AxisId], writer: &Writer) -> Text {
        if self.kind == Kind::Number {
            return self;
        }
        let order: Vec<AxisId> = axes.iter().copied().filter(|axis| self.axes.contains(axis)).collect();
        if order != self.axes {
            let letters = writer.letters(&order);
            self.code = format!(
                "np.einsum(\"...{}->...{}\", {})",
                writer.spell(&letters, &self.axes),
                writer.spell(&letters, &order),
                self.code
            );
            self.strength = Strength::Atom;
            self.indexed = None;
            self.axes = order;
        }
        if self.axes.len() == axes.len() {
            return self;
        }
        // A `None` for each axis it lacks, between the places of those it has.
        let (array, old) = self.places();
        let mut old = old.into_iter();
        let mut places = Vec::new();
        for axis in axes {
            if self.axes.contains(axis) {
                // Positions picked before this axis keep their place in front of it.
                for place in old.by_ref() {
                    let is_axis = place == ":";
                    places.push(place);
                    if is_axis {
                        break;
                    }
                }
            } else {
                places.push("None".to_string());
            }
        }
        places.extend(old);
        Text::index(array, places, self.axes, self.kind)
    }
}

/// Writes expressions of one program.
pub(super) struct Writer<'p> {
    pub program: &'p Program,
    pub names: &'p Names,
    /// Functions used so far that NumPy lacks.
    pub helpers: BTreeSet<Helper>,
    /// What each local depends on, once it is bound.
    pub locals: Vec<Kind>,
    /// The letter each axis would like in `einsum`.
    initials: Vec<Option<char>>,
}

impl<'p> Writer<'p> {
    pub fn new(program: &'p Program, names: &'p Names) -> Writer<'p> {
        let mut initials: Vec<Option<char>> = Vec::new();
        for axis in &program.axes {
            let letters = axis.name.chars().map(|letter| letter.to_ascii_lowercase());
            let free = letters.filter(char::is_ascii_lowercase).find(|letter| !initials.contains(&Some(*letter)));
            initials.push(free);
        }
        Writer {
            program,
            names,
            helpers: BTreeSet::new(),
            locals: vec![Kind::Sequence; program.locals.len()],
            initials,
        }
    }

    /// A letter for each of these axes.
    fn letters(&self, axes: &[AxisId]) -> Vec<(AxisId, char)> {
        let mut letters: Vec<(AxisId, char)> = Vec::new();
        for &axis in axes {
            let wanted = self.initials[axis.index()];
            let reserved = |letter: &char| {
                axes.iter().any(|other| self.initials[other.index()] == Some(*letter))
                    || letters.iter().any(|(_, other)| other == letter)
            };
            let letter = wanted.or_else(|| ('a'..='z').chain('A'..='Z').find(|letter| !reserved(letter)));
            letters.push((axis, letter.expect("an array has fewer dimensions than the alphabet has letters")));
        }
        letters
    }

    fn spell(&self, letters: &[(AxisId, char)], axes: &[AxisId]) -> String {
        axes.iter().flat_map(|axis| letters.iter().find(|(known, _)| known == axis)).map(|(_, letter)| letter).collect()
    }

    /// Every axis of either. If one side has them all, in its order, else the preferred ones first, then as declared.
    fn union(&self, lhs: &[AxisId], rhs: &[AxisId], preferred: &[AxisId]) -> Vec<AxisId> {
        if rhs.iter().all(|axis| lhs.contains(axis)) {
            return lhs.to_vec();
        }
        if lhs.iter().all(|axis| rhs.contains(axis)) {
            return rhs.to_vec();
        }
        let mut axes: Vec<AxisId> = lhs.iter().chain(rhs).copied().collect();
        self.sort(&mut axes, preferred);
        axes.dedup();
        axes
    }

    fn sort(&self, axes: &mut [AxisId], preferred: &[AxisId]) {
        axes.sort_by_key(|axis| (preferred.iter().position(|own| own == axis).unwrap_or(preferred.len()), *axis));
    }

    /// One expression from the texts of its operands.
    pub fn node(&mut self, id: ExprId, preferred: &[AxisId], operand: impl Fn(ExprId) -> Text) -> Text {
        let expr = self.program.expr(id);
        let atom = |code: &str, axes: &[AxisId], kind| Text {
            code: code.to_string(),
            strength: Strength::Atom,
            axes: axes.to_vec(),
            kind,
            indexed: None,
        };
        let names = self.names;
        match &expr.kind {
            ExprKind::Number(number) => {
                let strength = if number.is_sign_negative() { Strength::Sign } else { Strength::Atom };
                Text { strength, ..atom(&spell_number(*number), &[], Kind::Number) }
            }
            ExprKind::AxisSize(axis) => atom(&names.axes[axis.index()], &[], Kind::Number),
            ExprKind::Const(id) => atom(&names.consts[id.index()], &[], Kind::Number),
            ExprKind::Tensor(id) => {
                let tensor = &self.program.tensors[id.index()];
                let kind = match tensor.kind {
                    TensorKind::Input => Kind::Sequence,
                    TensorKind::Param => Kind::Head,
                };
                atom(&names.rows[id.index()], &tensor.axes, kind)
            }
            ExprKind::State(id) => {
                atom(&names.states[id.index()], &self.program.states[id.index()].axes, Kind::Sequence)
            }
            ExprKind::Local(id) => {
                atom(&names.locals[id.index()], &self.program.locals[id.index()].axes, self.locals[id.index()])
            }
            ExprKind::LoopIndex(id) => atom(&names.loop_vars[id.index()], &[], Kind::Number),
            ExprKind::Index { base, axis, index } => {
                let value = operand(*base);
                let at = match index {
                    Index::Loop(var) => names.loop_vars[var.index()].clone(),
                    Index::Literal(position) => position.to_string(),
                };
                let (array, mut places) = value.places();
                let position = value.axes.iter().position(|own| own == axis);
                let position = position.expect("an index is along an axis of what is indexed");
                let mut whole = places.iter_mut().filter(|place| *place == ":");
                *whole.nth(position).expect("every axis that is left has its place") = at;
                let axes = value.axes.iter().copied().filter(|own| own != axis).collect();
                Text::index(array, places, axes, value.kind)
            }
            ExprKind::Unary(function, value) => self.unary(*function, operand(*value)),
            ExprKind::Binary(function, lhs, rhs) => self.binary(*function, operand(*lhs), operand(*rhs), preferred),
            ExprKind::Contract { lhs, rhs, over } => {
                let (lhs, rhs) = (operand(*lhs), operand(*rhs));
                let mut axes: Vec<AxisId> =
                    lhs.axes.iter().chain(&rhs.axes).copied().filter(|axis| !over.contains(axis)).collect();
                self.sort(&mut axes, preferred);
                let letters = self.letters(&[axes.as_slice(), over].concat());
                let code = format!(
                    "np.einsum(\"...{},...{}->...{}\", {}, {})",
                    self.spell(&letters, &lhs.axes),
                    self.spell(&letters, &rhs.axes),
                    self.spell(&letters, &axes),
                    lhs.code,
                    rhs.code
                );
                atom(&code, &axes, lhs.kind.max(rhs.kind))
            }
            ExprKind::Reduce(function, value, axis) => {
                let value = operand(*value);
                let position = value.axes.iter().position(|own| own == axis);
                let from_end = value.axes.len() - position.expect("a reduction is over an axis of its operand");
                let without: Vec<AxisId> = value.axes.iter().copied().filter(|own| own != axis).collect();
                let (name, axes) = match function {
                    Reduce::Sum => ("np.sum", without),
                    Reduce::Mean => ("np.mean", without),
                    Reduce::Max => ("np.max", without),
                    Reduce::Softmax => (self.helper(Helper::Softmax), value.axes.clone()),
                    Reduce::L2Norm => (self.helper(Helper::L2Norm), value.axes.clone()),
                };
                atom(&format!("{name}({}, axis=-{from_end})", value.code), &axes, value.kind)
            }
            ExprKind::Rename { value, from, to } => {
                let mut value = operand(*value);
                for axis in &mut value.axes {
                    if axis == from {
                        *axis = *to;
                    }
                }
                value
            }
            ExprKind::StopGradient(value) => operand(*value),
        }
    }

    fn unary(&mut self, function: Unary, value: Text) -> Text {
        let (code, strength) = match function {
            Unary::Neg => (format!("-{}", value.at_least(Strength::Sign)), Strength::Sign),
            Unary::Square => (format!("{} ** 2", value.at_least(Strength::Atom)), Strength::Power),
            Unary::Abs if value.kind == Kind::Number => (format!("abs({})", value.code), Strength::Atom),
            Unary::Exp => (format!("np.exp({})", value.code), Strength::Atom),
            Unary::Exp2 => (format!("np.exp2({})", value.code), Strength::Atom),
            Unary::Log => (format!("np.log({})", value.code), Strength::Atom),
            Unary::Sqrt => (format!("np.sqrt({})", value.code), Strength::Atom),
            Unary::Abs => (format!("np.abs({})", value.code), Strength::Atom),
            Unary::Sign => (format!("np.sign({})", value.code), Strength::Atom),
            Unary::Tanh => (format!("np.tanh({})", value.code), Strength::Atom),
            Unary::Sin => (format!("np.sin({})", value.code), Strength::Atom),
            Unary::Cos => (format!("np.cos({})", value.code), Strength::Atom),
            Unary::Sigmoid => (format!("{}({})", self.helper(Helper::Sigmoid), value.code), Strength::Atom),
            Unary::LogSigmoid => (format!("{}({})", self.helper(Helper::LogSigmoid), value.code), Strength::Atom),
            Unary::Softplus => (format!("{}({})", self.helper(Helper::Softplus), value.code), Strength::Atom),
            Unary::Silu => (format!("{}({})", self.helper(Helper::Silu), value.code), Strength::Atom),
            Unary::Elu => (format!("{}({})", self.helper(Helper::Elu), value.code), Strength::Atom),
            Unary::Relu => (format!("{}({})", self.helper(Helper::Relu), value.code), Strength::Atom),
            Unary::Gelu => (format!("{}({})", self.helper(Helper::Gelu), value.code), Strength::Atom),
        };
        Text { code, strength, indexed: None, ..value }
    }

    fn binary(&mut self, function: Binary, lhs: Text, rhs: Text, preferred: &[AxisId]) -> Text {
        let axes = match (lhs.kind, rhs.kind) {
            (Kind::Number, _) => rhs.axes.clone(),
            (_, Kind::Number) => lhs.axes.clone(),
            (Kind::Head | Kind::Sequence, Kind::Head | Kind::Sequence) => self.union(&lhs.axes, &rhs.axes, preferred),
        };
        let kind = lhs.kind.max(rhs.kind);
        let (lhs, rhs) = (lhs.aligned(&axes, self), rhs.aligned(&axes, self));
        // The right side of a chain keeps its parentheses: rounding is part of what was written.
        let chain = |sign: &str, strength: Strength, tighter: Strength| {
            (format!("{} {sign} {}", lhs.at_least(strength), rhs.at_least(tighter)), strength)
        };
        let module = if kind == Kind::Number { "" } else { "np." };
        let suffix = if kind == Kind::Number { "" } else { "imum" };
        let call = |name: &str| (format!("{module}{name}{suffix}({}, {})", lhs.code, rhs.code), Strength::Atom);
        let (code, strength) = match function {
            Binary::Add => chain("+", Strength::Sum, Strength::Product),
            Binary::Sub => chain("-", Strength::Sum, Strength::Product),
            Binary::Mul => chain("*", Strength::Product, Strength::Sign),
            Binary::Div => chain("/", Strength::Product, Strength::Sign),
            Binary::Pow => {
                let code = format!("{} ** {}", lhs.at_least(Strength::Atom), rhs.at_least(Strength::Sign));
                (code, Strength::Power)
            }
            Binary::Min => call("min"),
            Binary::Max => call("max"),
        };
        Text { code, strength, axes, kind, indexed: None }
    }

    fn helper(&mut self, helper: Helper) -> &'p str {
        self.helpers.insert(helper);
        if helper == Helper::Silu {
            self.helpers.insert(Helper::Sigmoid);
        }
        self.names.helper(helper)
    }
}

fn spell_number(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "np.inf".to_string() } else { "-np.inf".to_string() };
    }
    let text = format!("{number:?}");
    text.strip_suffix(".0").map(str::to_string).unwrap_or(text)
}

/// A function of the language that NumPy lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Helper {
    Sigmoid,
    LogSigmoid,
    Softplus,
    Silu,
    Elu,
    Relu,
    Gelu,
    Softmax,
    L2Norm,
}

impl Helper {
    const ALL: [Helper; 9] = [
        Helper::Sigmoid,
        Helper::LogSigmoid,
        Helper::Softplus,
        Helper::Silu,
        Helper::Elu,
        Helper::Relu,
        Helper::Gelu,
        Helper::Softmax,
        Helper::L2Norm,
    ];

    fn name(self) -> &'static str {
        match self {
            Helper::Sigmoid => "sigmoid",
            Helper::LogSigmoid => "logsigmoid",
            Helper::Softplus => "softplus",
            Helper::Silu => "silu",
            Helper::Elu => "elu",
            Helper::Relu => "relu",
            Helper::Gelu => "gelu",
            Helper::Softmax => "softmax",
            Helper::L2Norm => "l2norm",
        }
    }
}

/// The definitions of these functions, without the newline at the end.
pub(super) fn definitions(helpers: &BTreeSet<Helper>, names: &Names) -> Vec<String> {
    let define = |helper: Helper| {
        let (argument, body) = match helper {
            Helper::Sigmoid => ("x", "return np.exp(-np.logaddexp(0, -x))".to_string()),
            Helper::LogSigmoid => ("x", "return -np.logaddexp(0, -x)".to_string()),
            Helper::Softplus => ("x", "return np.logaddexp(0, x)".to_string()),
            Helper::Silu => ("x", format!("return x * {}(x)", names.helper(Helper::Sigmoid))),
            Helper::Elu => ("x", "return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))".to_string()),
            Helper::Relu => ("x", "return np.maximum(x, 0)".to_string()),
            Helper::Gelu => (
                "x",
                "erfc = np.vectorize(math.erfc, otypes=[float])\n    return 0.5 * x * erfc(-x / np.sqrt(2))"
                    .to_string(),
            ),
            Helper::Softmax => (
                "x, axis",
                "e = np.exp(x - np.max(x, axis=axis, keepdims=True))\n    \
                 return e / np.sum(e, axis=axis, keepdims=True)"
                    .to_string(),
            ),
            Helper::L2Norm => {
                ("x, axis", "return x / np.sqrt(np.sum(x ** 2, axis=axis, keepdims=True) + 1e-6)".to_string())
            }
        };
        format!("def {}({argument}):\n    {body}", names.helper(helper))
    };
    helpers.iter().map(|&helper| define(helper)).collect()
}
