//! Smaller sketches, and what may be said of a sketch. In: a sketch; out: sketches with one feature less, or words.

use super::{
    Content, Edit, Epilogue, Gate, Join, Law, Map, Place, Sketch, StateKind, Step, Strength, Update, Value, Vector, Way,
};

impl Content {
    /// Whether it reads the state it goes into, or another.
    pub fn reads(self) -> bool {
        match self {
            Content::Delta(_) | Content::Read(..) | Content::Modulated(..) | Content::Seen(..) => true,
            Content::Value(_) | Content::Whole(_) => false,
        }
    }
}

const KEY: Vector = Vector { map: Map::Unit, id: 0 };

impl Sketch {
    /// Sketches with one feature less, the boldest step first. Some are no programs: a snapshot may be gone that is
    /// still used.
    pub fn smaller(&self) -> Vec<Sketch> {
        let mut found = Vec::new();
        let mut push = |change: &dyn Fn(&mut Sketch)| {
            let mut sketch = self.clone();
            change(&mut sketch);
            let has_output = sketch.steps.iter().any(|step| matches!(step, Step::Output(_)));
            if has_output && sketch != *self {
                found.push(sketch);
            }
        };
        for at in 0..self.steps.len() {
            push(&|it| {
                it.steps.remove(at);
            });
        }
        push(&|it| it.two_keys = false);
        push(&|it| it.transposed = false);
        push(&|it| it.named = false);
        for (at, step) in self.steps.iter().enumerate() {
            match step {
                Step::Update(update) => {
                    for smaller in smaller_updates(update, self.states[update.state]) {
                        push(&|it| it.steps[at] = Step::Update(smaller.clone()));
                    }
                }
                Step::Repeat(updates) => {
                    push(&|it| {
                        it.steps.splice(at..=at, updates.iter().cloned().map(Step::Update));
                    });
                    for (place, update) in updates.iter().enumerate() {
                        for smaller in smaller_updates(update, self.states[update.state]) {
                            let mut updates = updates.clone();
                            updates[place] = smaller;
                            push(&|it| it.steps[at] = Step::Repeat(updates.clone()));
                        }
                    }
                }
                Step::Snapshot(snapshot) => {
                    let smaller = snapshot.reader.map(|_| KEY);
                    push(&|it| it.steps[at] = Step::Snapshot(super::Snapshot { reader: smaller, ..*snapshot }));
                }
                Step::Output(output) => {
                    let mut change = |change: &dyn Fn(&mut super::Output)| {
                        let mut smaller = output.clone();
                        change(&mut smaller);
                        push(&|it| it.steps[at] = Step::Output(smaller.clone()));
                    };
                    change(&|it| it.epilogue = Epilogue::None);
                    change(&|it| it.join = Join::Sum);
                    for place in 0..output.reads.len() {
                        if output.reads.len() > 1 {
                            change(&|it| {
                                it.reads.remove(place);
                            });
                        }
                        let kind = self.states[output.reads[place].state];
                        if matches!(kind, StateKind::Matrix | StateKind::Normaliser) {
                            change(&|it| it.reads[place].way = Way::Plain);
                        }
                        change(&|it| it.reads[place].reader = Vector { map: Map::Unit, ..it.reads[place].reader });
                        change(&|it| it.reads[place].reader = KEY);
                    }
                }
            }
        }
        found
    }

    /// Whether only a token at a time may be possible: some state is read back into itself, and something about the
    /// states is neither a product of vectors nor a decay along an axis, or every column would have a system of its own.
    pub fn may_be_limited(&self) -> bool {
        let reading = self.updates().any(|update| edits(update).any(|edit| edit.content.reads()));
        let awkward = self.updates().any(|update| {
            let has = |places: &[Place]| update.gates.iter().any(|gate| places.contains(&gate.place));
            has(&[Place::Full])
                // exp(a + b) * k * v: nothing promises that exp(a) and exp(b) stay in range on their own.
                || (has(&[Place::Both]) && !update.inside.is_empty())
                || (has(&[Place::Both, Place::Value]) && self.is_coupled())
                || edits(update).any(|edit| matches!(edit.content, Content::Whole(_)))
        });
        let awkward_read = self.steps.iter().any(|step| match step {
            Step::Output(output) => output.reads.iter().any(|read| {
                self.states[read.state] == StateKind::Matrix && matches!(read.way, Way::Whole | Way::OtherSide)
            }),
            Step::Update(_) | Step::Repeat(_) | Step::Snapshot(_) => false,
        });
        reading && (awkward || awkward_read)
    }

    /// Whether two states read each other.
    fn is_coupled(&self) -> bool {
        let reads = |from: usize, to: usize| {
            self.updates().filter(|update| update.state == to).any(|update| {
                edits(update).any(|edit| match edit.content {
                    Content::Read(state, _) | Content::Modulated(state, ..) => state == from,
                    Content::Value(_) | Content::Delta(_) | Content::Seen(..) | Content::Whole(_) => false,
                })
            })
        };
        reads(0, 1) && reads(1, 0)
    }

    fn updates(&self) -> impl Iterator<Item = &Update> {
        self.steps.iter().flat_map(|step| match step {
            Step::Update(update) => std::slice::from_ref(update),
            Step::Repeat(updates) => updates.as_slice(),
            Step::Snapshot(_) | Step::Output(_) => &[],
        })
    }

    /// One line: states, decays, edits, outputs.
    pub fn describe(&self) -> String {
        let mut words: Vec<String> = self.states.iter().map(|state| format!("{state:?}")).collect();
        if self.two_keys {
            words.push("two keys".to_owned());
        }
        for step in &self.steps {
            let (name, updates) = match step {
                Step::Update(update) => ("", std::slice::from_ref(update)),
                Step::Repeat(updates) => ("repeated ", updates.as_slice()),
                Step::Snapshot(_) => {
                    words.push("snapshot".to_owned());
                    continue;
                }
                Step::Output(output) => {
                    let ways: Vec<String> = output.reads.iter().map(|read| format!("{:?}", read.way)).collect();
                    words.push(format!("output {} {:?}", ways.join(" "), output.epilogue));
                    continue;
                }
            };
            for update in updates {
                let gates = update.gates.iter().map(|gate| format!("decay {:?} {:?}", gate.place, gate.law));
                let edits = edits(update).map(|edit| match edit.content {
                    Content::Value(_) => "write".to_owned(),
                    Content::Delta(_) => "delta".to_owned(),
                    Content::Read(..) => "read and write".to_owned(),
                    Content::Modulated(..) => "scaled read".to_owned(),
                    Content::Seen(..) => "earlier read".to_owned(),
                    Content::Whole(_) => "whole state".to_owned(),
                });
                words.push(format!("{name}[{}]", gates.chain(edits).collect::<Vec<_>>().join(", ")));
            }
        }
        words.join("; ")
    }
}

fn edits(update: &Update) -> impl Iterator<Item = &Edit> {
    update.inside.iter().chain(&update.outside)
}

fn smaller_updates(update: &Update, kind: StateKind) -> Vec<Update> {
    let mut found = Vec::new();
    let mut push = |change: &dyn Fn(&mut Update)| {
        let mut smaller = update.clone();
        change(&mut smaller);
        if smaller != *update {
            found.push(smaller);
        }
    };
    for at in 0..update.gates.len() {
        push(&|it| {
            it.gates.remove(at);
        });
        push(&|it| it.gates[at] = Gate { place: Place::Scalar, law: Law::Exp, id: 0 });
        push(&|it| it.gates[at].law = Law::Exp);
        push(&|it| it.gates[at].id = 0);
    }
    push(&|it| it.fresh = false);
    push(&|it| it.gate_last = false);
    push(&|it| {
        let inside = std::mem::take(&mut it.inside);
        it.outside.splice(0..0, inside);
    });
    for at in 0..update.inside.len() + update.outside.len() {
        let place = |it: &Update| (at < it.inside.len(), if at < it.inside.len() { at } else { at - it.inside.len() });
        push(&|it| {
            let (inside, at) = place(it);
            if inside {
                it.inside.remove(at)
            } else {
                it.outside.remove(at)
            };
        });
        let change = |change: &dyn Fn(&mut Edit)| {
            let mut smaller = update.clone();
            let (inside, at) = place(&smaller);
            change(if inside { &mut smaller.inside[at] } else { &mut smaller.outside[at] });
            smaller
        };
        let mut simpler = vec![
            change(&|edit| edit.content = Content::Value(Value::Plain(0))),
            change(&|edit| edit.strength = Strength::One),
            change(&|edit| edit.negative = false),
            change(&|edit| edit.write.map = Map::Unit),
            change(&|edit| edit.write = KEY),
        ];
        if kind == StateKind::Matrix {
            simpler.push(change(&|edit| match &mut edit.content {
                Content::Value(value) | Content::Delta(value) | Content::Seen(_, value) => *value = Value::Plain(0),
                Content::Modulated(state, reader, _) => edit.content = Content::Read(*state, *reader),
                Content::Read(_, reader) => *reader = KEY,
                Content::Whole(_) => {}
            }));
        }
        for smaller in simpler {
            push(&|it| *it = smaller.clone());
        }
    }
    found
}
