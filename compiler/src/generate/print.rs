//! A sketch as `.cw` text. In: a sketch; out: its source. Declares what the sketch mentions and nothing else.
//! Long because it is one case for each thing a sketch can hold, with no seam between them.

use super::{
    Content, Edit, Epilogue, Gate, Join, Law, Map, Output, Place, Read, Scalar, Sketch, Snapshot, StateKind, Step,
    Strength, Update, Value, Vector, Way,
};
use indexmap::{IndexMap, IndexSet};

impl Sketch {
    /// The text.
    pub fn source(&self) -> String {
        let mut page = Page {
            sketch: self,
            axes: IndexSet::new(),
            inputs: IndexMap::new(),
            params: IndexMap::new(),
            consts: IndexMap::new(),
            states: IndexMap::new(),
            lines: vec![],
            lets: IndexMap::new(),
            n_lets: 0,
            n_outputs: 0,
            looped: false,
            shifted: None,
        };
        for step in &self.steps {
            page.step(step);
        }
        page.finish()
    }
}

/// A value as text, and the axes it has.
struct Text {
    text: String,
    keys: bool,
    values: bool,
}

struct Page<'s> {
    sketch: &'s Sketch,
    axes: IndexSet<&'static str>,
    inputs: IndexMap<String, String>,
    params: IndexMap<String, String>,
    consts: IndexMap<&'static str, &'static str>,
    states: IndexMap<&'static str, String>,
    lines: Vec<String>,
    /// Names of expressions bound so far in this scope.
    lets: IndexMap<String, String>,
    n_lets: usize,
    n_outputs: usize,
    /// Inside `for r in R`.
    looped: bool,
    /// The key of which the token before is kept.
    shifted: Option<String>,
}

const NO_RANGE: &str = "";
const LOG_DECAY: &str = " in (-inf, 0]";
const FACTOR: &str = " in [0, 1]";

impl Page<'_> {
    fn finish(mut self) -> String {
        if let Some(key) = self.shifted.clone() {
            self.lines.push(format!("p = {key}"));
            let axes = self.list(self.keys());
            self.states.insert("p", axes);
        }
        let mut text = String::from("recurrence drawn {\n");
        // Inputs say how many tokens there are.
        if self.inputs.is_empty() {
            let axes = self.list(&[]);
            self.inputs.insert("tick".to_owned(), axes);
            self.lines.push("output o: [] = tick".to_owned());
        }
        let order = ["K", "L", "V", "J", "N", "R"];
        let axes: Vec<&str> = order.into_iter().filter(|axis| self.axes.contains(axis)).collect();
        text += &format!("    axis {}\n", axes.join(", "));
        for (name, declared) in &self.inputs {
            text += &format!("    input {name}: {declared}\n");
        }
        for (name, declared) in &self.params {
            text += &format!("    param {name}: {declared}\n");
        }
        for (name, value) in &self.consts {
            text += &format!("    const {name} = {value}\n");
        }
        for (name, axes) in &self.states {
            text += &format!("    state {name}: {axes}\n");
        }
        for line in &self.lines {
            text += &format!("    {line}\n");
        }
        text + "}\n"
    }

    fn keys(&self) -> &'static [&'static str] {
        if self.sketch.two_keys { &["K", "L"] } else { &["K"] }
    }

    fn list(&mut self, axes: &[&'static str]) -> String {
        self.axes.extend(axes);
        format!("[{}]", axes.join(", "))
    }

    fn with_values(&self, axes: &[&'static str]) -> Vec<&'static str> {
        axes.iter().copied().chain(["V"]).collect()
    }

    /// An input, in a loop the one of this turn.
    fn input(&mut self, name: &str, axes: &[&'static str], range: &str) -> String {
        if !self.looped {
            let declared = self.list(axes) + range;
            self.inputs.insert(name.to_owned(), declared);
            return name.to_owned();
        }
        let axes: Vec<&'static str> = ["R"].into_iter().chain(axes.iter().copied()).collect();
        let name = format!("{name}_r");
        let declared = self.list(&axes) + range;
        self.inputs.insert(name.clone(), declared);
        name + "[r]"
    }

    fn param(&mut self, name: &str, axes: &[&'static str], range: &str) -> String {
        let declared = self.list(axes) + range;
        self.params.insert(name.to_owned(), declared);
        name.to_owned()
    }

    fn scale(&mut self) -> &'static str {
        self.axes.extend(self.keys());
        self.consts.insert("scale", if self.sketch.two_keys { "(K * L) ^ -0.5" } else { "K ^ -0.5" });
        "scale"
    }

    /// An expression that reads no state, named or in brackets.
    fn bind(&mut self, expr: String) -> String {
        if !self.sketch.named {
            return format!("({expr})");
        }
        if let Some(known) = self.lets.get(&expr) {
            return known.clone();
        }
        let name = self.hold(expr.clone());
        self.lets.insert(expr, name.clone());
        name
    }

    /// An expression as it is at this point, named or in brackets.
    fn hold(&mut self, expr: String) -> String {
        if !self.sketch.named {
            return format!("({expr})");
        }
        let name = format!("w{}", self.n_lets);
        self.n_lets += 1;
        self.line(format!("let {name} = {expr}"));
        name
    }

    fn line(&mut self, line: String) {
        self.lines.push(if self.looped { format!("    {line}") } else { line });
    }

    fn state(&mut self, state: usize) -> &'static str {
        let kind = self.sketch.states[state];
        let name = match (kind, state) {
            (StateKind::Matrix, 0) => "S",
            (StateKind::Matrix, _) => "M",
            (StateKind::Normaliser, _) => "n",
            (StateKind::Row, _) => "h",
            (StateKind::Scalar, _) => "c",
        };
        let axes: Vec<&'static str> = match kind {
            StateKind::Matrix if self.sketch.transposed => ["V"].iter().chain(self.keys()).copied().collect(),
            StateKind::Matrix => self.with_values(self.keys()),
            StateKind::Normaliser => self.keys().to_vec(),
            StateKind::Row => vec!["V"],
            StateKind::Scalar => vec![],
        };
        let axes = self.list(&axes);
        self.states.insert(name, axes);
        name
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Update(update) => self.update(update),
            Step::Repeat(updates) => {
                self.axes.insert("R");
                self.line("for r in R {".to_owned());
                self.looped = true;
                let outside = std::mem::take(&mut self.lets);
                for update in updates {
                    self.update(update);
                }
                self.lets = outside;
                self.looped = false;
                self.line("}".to_owned());
            }
            Step::Snapshot(Snapshot { id, state, reader }) => {
                let name = self.state(*state);
                let value = match reader {
                    Some(reader) => format!("{} @ {name}", self.vector(*reader)),
                    None => name.to_owned(),
                };
                self.line(format!("let seen{id} = {value}"));
            }
            Step::Output(output) => self.output(output),
        }
    }

    // ---- Keys, values, numbers

    /// A key of norm at most one; with two axes an outer product.
    fn unit(&mut self, name: &str) -> String {
        let key = self.input(name, &["K"], " in unit(K)");
        self.times_second(key, name)
    }

    fn times_second(&mut self, key: String, name: &str) -> String {
        if !self.sketch.two_keys {
            return key;
        }
        let second = self.input(&format!("{name}_l"), &["L"], " in unit(L)");
        format!("({key} * {second})")
    }

    fn vector(&mut self, vector: Vector) -> String {
        let Vector { map, id } = vector;
        let keys = self.keys();
        let x = |page: &mut Self| page.input(&format!("x{id}"), keys, NO_RANGE);
        let of_two = if self.sketch.two_keys { " * L ^ -0.5" } else { "" };
        let expr = match map {
            Map::Unit => return self.unit(&format!("k{id}")),
            Map::L2Norm => format!("l2norm({}, K){of_two}", x(self)),
            Map::Softmax => format!("softmax({}, K){of_two}", x(self)),
            Map::Mean => {
                let (one, other) = (self.unit(&format!("k{id}")), self.unit(&format!("k{}", (id + 1) % 3)));
                format!("0.5 * ({one} + {other})")
            }
            Map::Renamed => {
                self.axes.insert("K");
                let own = self.input(&format!("j{id}"), &["J"], " in unit(J)");
                let key = format!("rename({own}, J -> K)");
                self.times_second(key, &format!("j{id}"))
            }
            Map::Stopped => format!("stop_gradient({})", self.unit(&format!("k{id}"))),
            Map::First => {
                let declared = self.list(&["R", "K"]) + " in unit(K)";
                let name = format!("s{id}");
                self.inputs.insert(name.clone(), declared);
                self.times_second(format!("{name}[0]"), &name)
            }
            Map::Shifted if self.looped => return self.unit(&format!("k{id}")),
            Map::Shifted => {
                let key = self.unit(&format!("k{id}"));
                self.shifted.get_or_insert_with(|| key.clone());
                format!("0.5 * ({key} + p)")
            }
            Map::Elu => format!("{} * (elu({}) + 1)", self.scale(), x(self)),
            Map::Silu => format!("{} * silu({})", self.scale(), x(self)),
            Map::Relu => format!("{} * relu({})", self.scale(), x(self)),
            Map::Gelu => format!("{} * gelu({})", self.scale(), x(self)),
            Map::Tanh => format!("{} * tanh({})", self.scale(), x(self)),
            Map::SinCos => format!("0.7 * {} * (sin({}) + cos({}))", self.scale(), x(self), x(self)),
            Map::Exp => format!("{} * exp(min({}, 0))", self.scale(), x(self)),
            Map::Param => {
                let param = self.param(&format!("W{id}"), keys, NO_RANGE);
                format!("{} * {param} * {}", self.scale(), x(self))
            }
            Map::Fixed => {
                let param = self.param(&format!("W{id}"), keys, NO_RANGE);
                format!("{} * {param}", self.scale())
            }
        };
        self.bind(expr)
    }

    fn value(&mut self, value: Value) -> String {
        let v = |page: &mut Self, id: u8| page.input(&format!("v{id}"), &["V"], NO_RANGE);
        let expr = match value {
            Value::Plain(id) => return v(self, id),
            Value::Tanh(id) => format!("tanh({})", v(self, id)),
            Value::Gated(id) => {
                let gate = self.input(&format!("z{id}"), &["V"], NO_RANGE);
                format!("{} * sigmoid({gate})", v(self, id))
            }
            Value::Rms(id) => format!("{} / sqrt(mean(square({}), V) + 0.1)", v(self, id), v(self, id)),
            Value::Softmax(id) => format!("softmax({}, V)", v(self, id)),
            Value::Shifted(id) => {
                let param = self.param(&format!("D{id}"), &["V"], NO_RANGE);
                format!("{} + {param} - 0.1 * max({}, V)", v(self, id), v(self, id))
            }
            Value::Log(id) => format!("log(1 + square({}))", v(self, id)),
            Value::Param(id) => return self.param(&format!("D{id}"), &["V"], NO_RANGE),
            Value::One => return "1".to_owned(),
        };
        self.bind(expr)
    }

    fn scalar(&mut self, scalar: Scalar) -> String {
        match scalar {
            Scalar::Beta(id) => self.input(&format!("beta{id}"), &[], FACTOR),
            Scalar::Sigmoid(id) => {
                let x = self.input(&format!("y{id}"), &[], NO_RANGE);
                format!("sigmoid({x})")
            }
            Scalar::Exp(id) => {
                let x = self.input(&format!("i{id}"), &[], " in [-3, 0]");
                format!("exp({x})")
            }
            Scalar::Constant => {
                self.consts.insert("rate", "0.7");
                "rate".to_owned()
            }
            Scalar::Param(id) => self.param(&format!("B{id}"), &[], FACTOR),
            Scalar::OfRead(state, id) => {
                let (state, key) = (self.state(state), self.unit(&format!("k{id}")));
                let v = self.value(Value::Plain(id));
                self.hold(format!("sigmoid(({key} @ {state}) @ {v})"))
            }
        }
    }

    fn strength(&mut self, strength: Strength, values: bool) -> String {
        match strength {
            Strength::One => String::new(),
            Strength::Scalar(scalar) => self.scalar(scalar) + " * ",
            Strength::OnValue(id) if values => self.input(&format!("e{id}"), &["V"], FACTOR) + " * ",
            Strength::OnValue(id) => self.scalar(Scalar::Beta(id)) + " * ",
        }
    }

    // ---- Updates

    fn update(&mut self, update: &Update) {
        let edits = || update.inside.iter().chain(&update.outside);
        if update.gates.is_empty() && edits().next().is_none() {
            return;
        }
        let name = self.state(update.state);
        // Readers of one statement add up: each gets its share.
        let n_reading = edits().filter(|edit| edit.content.reads()).count();
        let share = if n_reading > 1 { "0.5 * " } else { "" };
        let gates: Vec<String> = update.gates.iter().map(|&gate| self.gate(gate)).collect();
        let mut inside = String::new();
        for edit in &update.inside {
            inside += &self.edit(update.state, edit, share);
        }
        let mut outside = String::new();
        for edit in &update.outside {
            outside += &self.edit(update.state, edit, share);
        }
        // What is forgotten for a parameter would be the same for every token.
        let fixed = |edit: &Edit| matches!(edit.content, Content::Value(Value::Param(_)));
        let fresh = update.fresh && edits().next().is_some() && !edits().any(fixed);
        let value = if fresh {
            (inside + &outside).trim_start_matches(" + ").trim_start().to_owned()
        } else {
            let within = match (update.inside.is_empty(), gates.is_empty()) {
                (true, _) => name.to_owned(),
                (false, true) => format!("{name}{inside}"),
                (false, false) => format!("({name}{inside})"),
            };
            let gated = match (gates.is_empty(), update.gate_last) {
                (true, _) => within,
                (false, false) => format!("{} * {within}", gates.join(" * ")),
                (false, true) => format!("{within} * {}", gates.join(" * ")),
            };
            gated + &outside
        };
        self.line(format!("{name} = {value}"));
    }

    /// A term with its sign.
    fn edit(&mut self, target: usize, edit: &Edit, share: &str) -> String {
        let kind = self.sketch.states[target];
        let name = self.state(target);
        let values = match kind {
            StateKind::Matrix | StateKind::Row => true,
            StateKind::Normaliser | StateKind::Scalar => false,
        };
        let sign = if edit.negative { " - " } else { " + " };
        if let Content::Whole(state) = edit.content {
            return format!("{sign}0.2 * {}", self.state(state));
        }
        let strength = self.strength(edit.strength, values);
        let key = |page: &mut Self| page.vector(edit.write);
        let term = match (kind, edit.content) {
            (StateKind::Row, Content::Value(value)) => format!("{strength}{}", self.value(value)),
            (StateKind::Scalar, _) => format!("{strength}{}", self.input("u", &[], NO_RANGE)),
            (StateKind::Normaliser, Content::Value(_)) => format!("{strength}{}", key(self)),
            (StateKind::Matrix, Content::Value(value)) => {
                let key = key(self);
                format!("{strength}{key} * {}", self.value(value))
            }
            (_, Content::Delta(value)) => {
                let key = key(self);
                format!("{key} * ({share}{strength}({} - {key} @ {name}))", self.value(value))
            }
            (_, Content::Read(state, reader)) => {
                let (key, reader) = (key(self), self.vector(reader));
                let small = if state == target { "0.5" } else { "0.2" };
                format!("{key} * ({share}{small} * {strength}({reader} @ {}))", self.state(state))
            }
            (_, Content::Modulated(state, reader, value)) => {
                let (key, reader, value) = (key(self), self.vector(reader), self.value(value));
                format!("{key} * ({share}0.5 * {strength}sigmoid({value}) * ({reader} @ {}))", self.state(state))
            }
            (_, Content::Seen(id, value)) => {
                let key = key(self);
                format!("{key} * ({share}0.5 * {strength}({} - seen{id}))", self.value(value))
            }
            (_, Content::Whole(_)) => unreachable!("printed above"),
        };
        sign.to_owned() + &term
    }

    fn gate(&mut self, gate: Gate) -> String {
        let Gate { place, law, id } = gate;
        let keys = self.keys();
        let (letter, axes): (&str, Vec<&'static str>) = match place {
            Place::Scalar => ("", vec![]),
            Place::Key => ("k", keys.to_vec()),
            Place::KeyPart => ("p", vec!["K"]),
            Place::Value => ("v", vec!["V"]),
            Place::Both => {
                let one = self.input(&format!("gk{id}"), keys, LOG_DECAY);
                let other = self.input(&format!("gv{id}"), &["V"], LOG_DECAY);
                let exponent = self.bind(format!("{one} + {other}"));
                return format!("exp({exponent})");
            }
            Place::Full => ("f", self.with_values(keys)),
        };
        let name = |what: &str| format!("{what}{letter}{id}");
        let expr = match law {
            Law::Exp => format!("exp({})", self.input(&name("g"), &axes, LOG_DECAY)),
            Law::Exp2 => format!("exp2({})", self.input(&name("g"), &axes, LOG_DECAY)),
            Law::Sigmoid => format!("sigmoid({})", self.input(&name("f"), &axes, NO_RANGE)),
            Law::Slow => format!("exp(logsigmoid({}) / 4)", self.input(&name("f"), &axes, NO_RANGE)),
            Law::Factor => return self.input(&name("a"), &axes, FACTOR),
            Law::Signed => return self.input(&name("b"), &axes, " in [-1, 1]"),
            Law::OneMinus => format!("1 - {}", self.input(&name("a"), &axes, FACTOR)),
            Law::Literal => return "0.9".to_owned(),
            Law::Constant => {
                self.consts.insert("decay", "0.95");
                return "decay".to_owned();
            }
            Law::Param => format!("exp({})", self.param(&name("G"), &axes, LOG_DECAY)),
            Law::Rate => {
                // As in Mamba, a full decay is a product of something along the keys and something along the values.
                let along = if place == Place::Full { vec!["V"] } else { axes.clone() };
                let rate = self.param(&name("A"), &axes, NO_RANGE);
                let bias = self.param(&name("C"), &along, NO_RANGE);
                let step = self.input(&name("d"), &along, NO_RANGE);
                let exponent = self.bind(format!("-exp({rate}) * softplus({step} + {bias})"));
                return format!("exp({exponent})");
            }
            Law::Bounded => format!("exp(-4 * sigmoid({}))", self.input(&name("f"), &axes, NO_RANGE)),
            Law::Quotient => format!("1 / (1 + {})", self.input(&name("a"), &axes, FACTOR)),
            Law::OfRead(state) => {
                let (state, key) = (self.state(state), self.unit(&format!("k{id}")));
                let read = if place == Place::Value {
                    format!("{key} @ {state}")
                } else {
                    let v = self.value(Value::Plain(id));
                    format!("({key} @ {state}) @ {v}")
                };
                return self.hold(format!("sigmoid({read})"));
            }
        };
        self.bind(expr)
    }

    // ---- Outputs

    fn output(&mut self, output: &Output) {
        let mut reads = output.reads.iter().map(|read| self.read(read)).collect::<Vec<_>>();
        let mut value = reads.remove(0);
        for other in reads {
            value.text = match output.join {
                Join::Sum => format!("{} + 0.5 * ({})", value.text, other.text),
                Join::Product => format!("({}) * tanh({})", value.text, other.text),
                Join::Quotient => format!("({}) / max(abs({}), 0.83)", value.text, other.text),
            };
            value.keys |= other.keys;
            value.values |= other.values;
        }
        let mut extra = false;
        let x = value.text.clone();
        let text = match output.epilogue {
            Epilogue::None => x,
            Epilogue::Tanh => format!("tanh({x})"),
            Epilogue::Guarded => {
                let x = self.hold(x);
                format!("{x} / max(abs({x}), 0.83)")
            }
            Epilogue::Stopped => {
                let x = self.hold(x);
                format!("{x} + stop_gradient(tanh({x}))")
            }
            Epilogue::Gate(id) => {
                value.values = true;
                let z = self.input(&format!("z{id}"), &["V"], NO_RANGE);
                format!("({x}) * silu({z})")
            }
            Epilogue::Skip(id) => {
                value.values = true;
                let (param, v) = (self.param(&format!("D{id}"), &["V"], NO_RANGE), self.value(Value::Plain(id)));
                format!("{x} + {param} * {v}")
            }
            Epilogue::Outer => {
                extra = true;
                let p = self.input("y", &["N"], NO_RANGE);
                format!("({x}) * {p}")
            }
            // The others are about the values.
            Epilogue::Softmax
            | Epilogue::L2Norm
            | Epilogue::Rms
            | Epilogue::Project
            | Epilogue::Onto(_)
            | Epilogue::LogSumExp
                if !value.values =>
            {
                x
            }
            Epilogue::Softmax => format!("softmax({x}, V)"),
            Epilogue::L2Norm => format!("l2norm({x}, V)"),
            Epilogue::Rms => {
                let x = self.hold(x);
                format!("{x} / sqrt(mean(square({x}), V) + 0.1)")
            }
            Epilogue::Project => {
                (extra, value.values) = (true, false);
                let param = self.param("P", &["V", "N"], NO_RANGE);
                format!("({x}) @ {param}")
            }
            Epilogue::Onto(id) => {
                value.values = false;
                let v = self.value(Value::Plain(id));
                format!("({x}) @ {v}")
            }
            Epilogue::LogSumExp => {
                value.values = false;
                format!("log(sum(exp({x} - max({x}, V)), V)) + max({x}, V)")
            }
        };
        let mut axes: Vec<&'static str> = if value.keys { self.keys().to_vec() } else { vec![] };
        axes.extend(value.values.then_some("V"));
        axes.extend(extra.then_some("N"));
        if self.sketch.transposed {
            axes.reverse();
        }
        let axes = self.list(&axes);
        self.line(format!("output o{}: {axes} = {text}", self.n_outputs));
        self.n_outputs += 1;
    }

    fn read(&mut self, read: &Read) -> Text {
        let kind = self.sketch.states[read.state];
        if let Way::Seen(id) = read.way {
            let whole = self
                .sketch
                .steps
                .iter()
                .any(|step| matches!(step, Step::Snapshot(it) if it.id == id && it.reader.is_none()));
            let text = if whole { format!("{} @ seen{id}", self.vector(read.reader)) } else { format!("seen{id}") };
            return Text { text, keys: false, values: true };
        }
        let name = self.state(read.state);
        let (keys, values) = match (kind, read.way) {
            (StateKind::Matrix, Way::Whole) => (true, true),
            (StateKind::Matrix, Way::OtherSide) => (true, false),
            (StateKind::Matrix | StateKind::Row, _) => (false, true),
            (StateKind::Normaliser | StateKind::Scalar, _) => (false, false),
        };
        let text = match read.way {
            Way::Whole => name.to_owned(),
            Way::OtherSide => format!("{name} @ {}", self.value(Value::Plain(read.reader.id))),
            Way::Plain => format!("{} @ {name}", self.vector(read.reader)),
            Way::Swapped => format!("{name} @ {}", self.vector(read.reader)),
            Way::Scaled => format!("{} * {} @ {name}", self.scale(), self.vector(read.reader)),
            Way::Sum => {
                let summed = format!("sum({} * {name}, K)", self.vector(read.reader));
                if self.sketch.two_keys { format!("sum({summed}, L)") } else { summed }
            }
            Way::Bonus(key, value) => {
                let bonus = self.param("U", self.keys(), NO_RANGE);
                let (reader, key, value) = (self.vector(read.reader), self.vector(key), self.value(value));
                format!("{reader} @ ({name} + {bonus} * {key} * {value})")
            }
            Way::Decayed(gate) => {
                let (reader, gate) = (self.vector(read.reader), self.gate(gate));
                format!("{reader} @ ({gate} * {name})")
            }
            Way::Seen(_) => unreachable!("printed above"),
        };
        Text { text, keys, values }
    }
}
