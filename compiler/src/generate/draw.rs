//! A sketch from a seed. In: random numbers; out: a sketch that is well formed and tame. The order of the draws decides
//! what a seed means: adding a choice in the middle changes every program.

use super::{
    Content, Edit, Epilogue, Gate, Join, Law, Map, Output, Place, Read, Scalar, Sketch, Snapshot, StateKind, Step,
    Strength, Update, Value, Vector, Way,
};

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.bits() % count as u64) as usize
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// True once in `n`.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn id(&mut self) -> u8 {
        self.below(3) as u8
    }
}

const SHORT: [Map; 9] =
    [Map::Unit, Map::Unit, Map::Unit, Map::L2Norm, Map::Softmax, Map::Mean, Map::Renamed, Map::Stopped, Map::First];

const LONG: [Map; 9] =
    [Map::Elu, Map::Silu, Map::Relu, Map::Gelu, Map::Tanh, Map::SinCos, Map::Exp, Map::Param, Map::Fixed];

const LAWS: [Law; 13] = [
    Law::Exp,
    Law::Exp2,
    Law::Sigmoid,
    Law::Slow,
    Law::Factor,
    Law::Signed,
    Law::OneMinus,
    Law::Literal,
    Law::Constant,
    Law::Param,
    Law::Rate,
    Law::Bounded,
    Law::Quotient,
];

impl Sketch {
    /// The sketch of a seed.
    pub fn draw(seed: u64) -> Sketch {
        let random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x6a09_e667_f3bc_c908);
        let sketch = Sketch { two_keys: false, transposed: false, named: false, states: vec![], steps: vec![] };
        let mut draw = Draw { random, sketch, n_snapshots: 0 };
        draw.whole();
        draw.sketch
    }
}

struct Draw {
    random: Random,
    sketch: Sketch,
    n_snapshots: usize,
}

impl Draw {
    fn whole(&mut self) {
        self.sketch.two_keys = self.random.once_in(8);
        self.sketch.transposed = self.random.once_in(5);
        self.sketch.named = self.random.once_in(2);
        self.sketch.states = match self.random.below(14) {
            0..6 => vec![StateKind::Matrix],
            6 | 7 => vec![StateKind::Matrix, StateKind::Normaliser],
            8..11 => vec![StateKind::Matrix, StateKind::Matrix],
            11 => vec![StateKind::Matrix, StateKind::Row],
            12 => vec![StateKind::Matrix, StateKind::Scalar],
            _ => vec![StateKind::Row],
        };
        // What a second state has to do with the first.
        let relation =
            if self.sketch.states == [StateKind::Matrix, StateKind::Matrix] { self.random.below(8) } else { 0 };
        for state in 0..self.sketch.states.len() {
            self.maybe_output();
            self.updates(state);
            if state == 1 {
                self.relate(relation);
            }
        }
        let missing = usize::from(!self.sketch.steps.iter().any(|step| matches!(step, Step::Output(_))));
        for _ in 0..missing + self.random.below(2) {
            let output = self.output();
            self.sketch.steps.push(Step::Output(output));
        }
    }

    fn maybe_output(&mut self) {
        if self.random.once_in(4) {
            let output = self.output();
            self.sketch.steps.push(Step::Output(output));
        }
    }

    /// The second matrix takes in reads of the first; sometimes also the other way round.
    fn relate(&mut self, relation: usize) {
        let [first, second] = [0, 1];
        match relation {
            2 => {
                let edit = self.coupling(first);
                self.sketch.steps.push(Step::Update(plain(second, vec![edit])));
            }
            3 => {
                let (to, back) = (self.coupling(first), self.coupling(second));
                self.sketch.steps.push(Step::Update(plain(second, vec![to])));
                self.sketch.steps.push(Step::Update(plain(first, vec![back])));
            }
            4 => {
                let place = self.random.choose(&[Place::Scalar, Place::Value]);
                let gate = Gate { place, law: Law::OfRead(first), id: self.random.id() };
                self.sketch.steps.push(Step::Update(Update { gates: vec![gate], ..plain(second, vec![]) }));
            }
            5 => {
                let strength = Strength::Scalar(Scalar::OfRead(first, self.random.id()));
                let write = self.short();
                let content = Content::Value(self.value());
                let edit = Edit { write, strength, content, negative: false };
                self.sketch.steps.push(Step::Update(plain(second, vec![edit])));
            }
            6 if self.random.once_in(2) => {
                let write = self.short();
                let edit = Edit { write, strength: Strength::One, content: Content::Whole(first), negative: false };
                self.sketch.steps.push(Step::Update(plain(second, vec![edit])));
            }
            _ => {}
        }
    }

    fn coupling(&mut self, from: usize) -> Edit {
        let (write, reader) = (self.short(), self.short());
        let strength = self.strength();
        Edit { write, strength, content: Content::Read(from, reader), negative: self.random.once_in(3) }
    }

    fn updates(&mut self, state: usize) {
        let kind = self.sketch.states[state];
        if kind == StateKind::Matrix && self.random.once_in(6) {
            self.snapshot(state);
        }
        match self.random.below(10) {
            // Everything in one statement.
            0..4 => {
                let update = self.update(state, true, true);
                self.sketch.steps.push(Step::Update(update));
            }
            // A decay, then edits, each in a statement of its own.
            4..8 => {
                if !self.random.once_in(5) {
                    let gates = self.gates(kind);
                    self.sketch.steps.push(Step::Update(Update { gates, ..plain(state, vec![]) }));
                }
                for _ in 0..1 + self.random.below(2) {
                    if self.random.once_in(6) {
                        self.maybe_output();
                    }
                    let with_gate = self.random.once_in(5);
                    let update = self.update(state, with_gate, false);
                    self.sketch.steps.push(Step::Update(update));
                }
            }
            _ if kind == StateKind::Matrix => {
                if self.random.once_in(2) {
                    let gates = self.gates(kind);
                    self.sketch.steps.push(Step::Update(Update { gates, ..plain(state, vec![]) }));
                }
                let with_gate = self.random.once_in(3);
                let update = self.update(state, with_gate, false);
                self.sketch.steps.push(Step::Repeat(vec![update]));
            }
            _ => {
                let update = self.update(state, true, false);
                self.sketch.steps.push(Step::Update(update));
            }
        }
        if kind == StateKind::Matrix && self.random.once_in(8) {
            self.snapshot(state);
            if self.random.once_in(2) {
                let update = self.update(state, false, false);
                self.sketch.steps.push(Step::Update(update));
            }
        }
    }

    fn snapshot(&mut self, state: usize) {
        let id = self.n_snapshots;
        self.n_snapshots += 1;
        let reader = if self.random.once_in(3) { None } else { Some(self.short()) };
        self.sketch.steps.push(Step::Snapshot(Snapshot { id, state, reader }));
    }

    fn update(&mut self, state: usize, with_gate: bool, several: bool) -> Update {
        let kind = self.sketch.states[state];
        let gates = if with_gate { self.gates(kind) } else { vec![] };
        let count = if several { 1 + self.random.choose(&[0, 0, 0, 1, 1, 2]) } else { 1 };
        let reads_may_come = !gates.iter().any(|gate| gate.place == Place::Full) || self.random.once_in(6);
        let edits: Vec<Edit> = (0..count).map(|_| self.edit(state, kind, reads_may_come)).collect();
        let signed = gates.iter().any(|gate| gate.law == Law::Signed);
        let (mut inside, mut outside) = (vec![], vec![]);
        for edit in edits {
            // −S with an erasure of S on top has norm two.
            let within = !gates.is_empty() && (self.random.once_in(3) || (signed && edit.content.reads()));
            if within { inside.push(edit) } else { outside.push(edit) }
        }
        let fresh = kind != StateKind::Matrix && self.random.once_in(12);
        Update { state, gates, inside, outside, fresh, gate_last: self.random.once_in(5) }
    }

    fn gates(&mut self, kind: StateKind) -> Vec<Gate> {
        let places: &[&[Place]] = match kind {
            StateKind::Matrix => &[
                &[],
                &[Place::Scalar],
                &[Place::Scalar],
                &[Place::Scalar],
                &[Place::Key],
                &[Place::Key],
                &[Place::Key],
                &[Place::KeyPart],
                &[Place::Value],
                &[Place::Value],
                &[Place::Key, Place::Value],
                &[Place::Scalar, Place::Key],
                &[Place::Scalar, Place::Value],
                &[Place::Both],
                &[Place::Full],
            ],
            StateKind::Normaliser => &[&[], &[Place::Scalar], &[Place::Key]],
            StateKind::Row => &[&[Place::Scalar], &[Place::Value], &[Place::Value]],
            StateKind::Scalar => &[&[], &[Place::Scalar]],
        };
        let places = self.random.choose(places);
        places
            .iter()
            .map(|&place| {
                let law = match place {
                    Place::Both => Law::Exp,
                    Place::Scalar | Place::Key | Place::KeyPart | Place::Value | Place::Full => {
                        self.random.choose(&LAWS)
                    }
                };
                Gate { place, law, id: self.random.id() }
            })
            .collect()
    }

    fn edit(&mut self, state: usize, kind: StateKind, reads_may_come: bool) -> Edit {
        let negative = self.random.once_in(5);
        match kind {
            StateKind::Matrix if reads_may_come => match self.random.below(10) {
                0..4 => {}
                4..7 => {
                    let content = Content::Delta(self.value());
                    return Edit { write: self.short(), strength: self.strength(), content, negative: false };
                }
                7 | 8 => {
                    let (write, reader) = (self.short(), self.short());
                    let content = if self.random.once_in(3) {
                        Content::Modulated(state, reader, self.value())
                    } else {
                        Content::Read(state, reader)
                    };
                    return Edit { write, strength: self.strength(), content, negative };
                }
                _ => {
                    if let Some(seen) = self.seen(state) {
                        let content = Content::Seen(seen, self.value());
                        return Edit { write: self.short(), strength: self.strength(), content, negative };
                    }
                }
            },
            StateKind::Normaliser if reads_may_come && self.random.once_in(4) => {
                let content = Content::Delta(Value::One);
                return Edit { write: self.short(), strength: self.scalar_strength(), content, negative: false };
            }
            StateKind::Matrix | StateKind::Normaliser | StateKind::Row | StateKind::Scalar => {}
        }
        let strength = match kind {
            StateKind::Matrix | StateKind::Row => self.strength(),
            StateKind::Normaliser | StateKind::Scalar => self.scalar_strength(),
        };
        Edit { write: self.vector(), strength, content: Content::Value(self.value()), negative }
    }

    /// A snapshot of a read of this state.
    fn seen(&mut self, state: usize) -> Option<usize> {
        let ids: Vec<usize> = self.snapshots(state, true);
        (!ids.is_empty()).then(|| self.random.choose(&ids))
    }

    fn snapshots(&self, state: usize, read: bool) -> Vec<usize> {
        let of = |step: &Step| match step {
            Step::Snapshot(it) if it.state == state && (!read || it.reader.is_some()) => Some(it.id),
            Step::Snapshot(_) | Step::Update(_) | Step::Repeat(_) | Step::Output(_) => None,
        };
        self.sketch.steps.iter().filter_map(of).collect()
    }

    fn strength(&mut self) -> Strength {
        if self.random.once_in(5) { Strength::OnValue(self.random.id()) } else { self.scalar_strength() }
    }

    fn scalar_strength(&mut self) -> Strength {
        let id = self.random.id();
        match self.random.below(8) {
            0 | 1 => Strength::One,
            2 | 3 => Strength::Scalar(Scalar::Beta(id)),
            4 => Strength::Scalar(Scalar::Sigmoid(id)),
            5 => Strength::Scalar(Scalar::Exp(id)),
            6 => Strength::Scalar(Scalar::Constant),
            _ => Strength::Scalar(Scalar::Param(id)),
        }
    }

    fn short(&mut self) -> Vector {
        let map = if self.random.once_in(24) { Map::Shifted } else { self.random.choose(&SHORT) };
        Vector { map, id: self.random.id() }
    }

    fn vector(&mut self) -> Vector {
        if self.random.once_in(2) {
            return self.short();
        }
        Vector { map: self.random.choose(&LONG), id: self.random.id() }
    }

    fn value(&mut self) -> Value {
        let id = self.random.id();
        match self.random.below(12) {
            0..5 => Value::Plain(id),
            5 => Value::Tanh(id),
            6 => Value::Gated(id),
            7 => Value::Rms(id),
            8 => Value::Softmax(id),
            9 => Value::Shifted(id),
            10 => Value::Log(id),
            _ => Value::Param(id),
        }
    }

    fn output(&mut self) -> Output {
        let count = 1 + usize::from(self.random.once_in(3));
        let n_states = self.sketch.states.len();
        let reads: Vec<Read> = (0..count)
            .map(|n| {
                // Every state is read sooner or later, the last one most of all.
                let state = if n == 0 { self.random.below(n_states) } else { n_states - 1 };
                self.read(state)
            })
            .collect();
        let join = self.random.choose(&[Join::Sum, Join::Sum, Join::Product, Join::Quotient]);
        let id = self.random.id();
        let epilogue = self.random.choose(&[
            Epilogue::None,
            Epilogue::None,
            Epilogue::None,
            Epilogue::None,
            Epilogue::Tanh,
            Epilogue::Guarded,
            Epilogue::Softmax,
            Epilogue::L2Norm,
            Epilogue::Rms,
            Epilogue::Gate(id),
            Epilogue::Skip(id),
            Epilogue::Outer,
            Epilogue::Project,
            Epilogue::Onto(id),
            Epilogue::LogSumExp,
            Epilogue::Stopped,
        ]);
        Output { reads, join, epilogue }
    }

    fn read(&mut self, state: usize) -> Read {
        let kind = self.sketch.states[state];
        let reader = self.vector();
        let way = match kind {
            StateKind::Matrix => match self.random.below(20) {
                0..8 => Way::Plain,
                8 => Way::Swapped,
                9..12 => Way::Scaled,
                12 | 13 => Way::Sum,
                14 | 15 => Way::Bonus(self.vector(), self.value()),
                16 => {
                    let place = self.random.choose(&[Place::Scalar, Place::Key, Place::Value]);
                    Way::Decayed(Gate { place, law: self.random.choose(&LAWS), id: self.random.id() })
                }
                17 | 18 => {
                    let ids = self.snapshots(state, false);
                    if ids.is_empty() { Way::Plain } else { Way::Seen(self.random.choose(&ids)) }
                }
                _ if self.random.once_in(3) => self.random.choose(&[Way::Whole, Way::OtherSide]),
                _ => Way::Plain,
            },
            StateKind::Normaliser => self.random.choose(&[Way::Plain, Way::Plain, Way::Swapped, Way::Scaled, Way::Sum]),
            StateKind::Row | StateKind::Scalar => Way::Whole,
        };
        Read { state, reader, way }
    }
}

/// An update without a decay.
fn plain(state: usize, outside: Vec<Edit>) -> Update {
    Update { state, gates: vec![], inside: vec![], outside, fresh: false, gate_last: false }
}
