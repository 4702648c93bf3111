//! Gated operations against their definition, written out token by token and event by event, and their derivatives
//! against differences of the values.

use super::{Draw, assert_close, bundle, graph, run};
use chunkwise_compiler::tensor::{Bundle, Tensor};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Log,
    Factor,
}
use Kind::{Factor, Log};

const ROWS: usize = 4;

/// The decay of one line: by event, by token.
#[derive(Clone)]
struct Decay {
    kinds: Vec<Kind>,
    values: Vec<Vec<f64>>,
    from: usize,
    to: usize,
}

impl Decay {
    fn factor(&self, event: usize, token: usize) -> f64 {
        match self.kinds[event] {
            Log => self.values[event][token].exp(),
            Factor => self.values[event][token],
        }
    }
    fn all(&self, token: usize) -> f64 {
        (0..self.kinds.len()).map(|event| self.factor(event, token)).product()
    }
    /// From clock `from` of token s to clock `to` of token t.
    fn segment_at(&self, s: usize, from: usize, t: usize, to: usize) -> f64 {
        if s == t {
            return (from..to).map(|event| self.factor(event, t)).product();
        }
        let tail: f64 = (from..self.kinds.len()).map(|event| self.factor(event, s)).product();
        let between: f64 = (s + 1..t).map(|token| self.all(token)).product();
        let head: f64 = (0..to).map(|event| self.factor(event, t)).product();
        tail * between * head
    }
    fn segment(&self, s: usize, t: usize) -> f64 {
        self.segment_at(s, self.from, t, self.to)
    }
    fn boundary(&self, side: &str, row: usize) -> f64 {
        let n = self.kinds.len();
        match side {
            "prefix" => {
                (0..row).map(|t| self.all(t)).product::<f64>()
                    * (0..self.to).map(|m| self.factor(m, row)).product::<f64>()
            }
            "suffix" => {
                (self.from..n).map(|m| self.factor(m, row)).product::<f64>()
                    * (row + 1..ROWS).map(|t| self.all(t)).product::<f64>()
            }
            _ => (0..ROWS).map(|t| self.all(t)).product(),
        }
    }
}

/// Decays of every kind of event, with zero and negative factors, at every pair of clocks.
fn decays(draw: &mut Draw) -> Vec<Decay> {
    let mut decays = Vec::new();
    for kinds in [&[][..], &[Log], &[Factor], &[Log, Factor], &[Factor, Factor, Log]] {
        for from in 0..=kinds.len() {
            for to in 0..=kinds.len() {
                let mut value = |kind: &Kind| -> Vec<f64> {
                    match kind {
                        Log => (0..ROWS).map(|_| draw.between(-2.0, 0.3)).collect(),
                        Factor => (0..ROWS).map(|t| if t == 2 { 0.0 } else { draw.between(-1.5, 1.5) }).collect(),
                    }
                };
                let values = kinds.iter().map(&mut value).collect();
                decays.push(Decay { kinds: kinds.to_vec(), values, from, to });
            }
        }
    }
    decays
}

/// The derivative by one gate, from differences.
fn difference(decay: &Decay, event: usize, token: usize, value: impl Fn(&Decay) -> f64) -> f64 {
    let step = 1e-5;
    let [mut above, mut below] = [decay.clone(), decay.clone()];
    above.values[event][token] += step;
    below.values[event][token] -= step;
    (value(&above) - value(&below)) / (2.0 * step)
}

/// `gates (…) from a to b` for gates named %0, %1, ….
fn gates(decay: &Decay) -> String {
    let word = |(event, kind): (usize, &Kind)| format!("{} %{event}", if *kind == Log { "log" } else { "factor" });
    let words: Vec<String> = decay.kinds.iter().enumerate().map(word).collect();
    format!("gates ({}) from {} to {}", words.join(", "), decay.from, decay.to)
}

/// A graph over free rows `t` and columns `s` whose first nodes are the gates, then inputs `names`.
fn free_graph(decay: &Decay, inputs: &[(&str, &str)], op: &str, dims: &str) -> String {
    let mut text = format!(
        "graph g {{ dim j : slot 2 dim b : block 2 dim t : row {ROWS} dim s : col {ROWS} dim K : axis 0 3 step tokens=1\n"
    );
    for event in 0..decay.kinds.len() {
        text += &format!("%{event} = token g{event} : [t]\n");
    }
    let first = decay.kinds.len();
    for (at, (name, dims)) in inputs.iter().enumerate() {
        text += &format!("%{} = token {name} : [{dims}]\n", first + at);
    }
    let last = first + inputs.len();
    text += &format!("%{last} = {op} : [{dims}]\noutput y = %{last} }}");
    text
}

fn tensors(decay: &Decay, inputs: Vec<(&str, Vec<usize>, Vec<f64>)>) -> Bundle {
    let mut given = Bundle::new();
    for (event, values) in decay.values.iter().enumerate() {
        given.insert(format!("g{event}"), Tensor { shape: vec![1, 1, 1, ROWS], data: values.clone() });
    }
    for (name, shape, data) in inputs {
        given.insert(name.to_owned(), Tensor { shape: [&[1, 1, 1][..], &shape].concat(), data });
    }
    // A graph without a decay still needs something that says how many tokens there are.
    given
}

fn pairs(diagonal: bool) -> impl Iterator<Item = (usize, usize)> {
    (0..ROWS).flat_map(move |t| (0..ROWS).map(move |s| (t, s))).filter(move |(t, s)| s < t || (diagonal && s == t))
}

#[test]
fn segments_and_their_derivatives() {
    let mut draw = Draw(11);
    for decay in decays(&mut draw) {
        for diagonal in [false, true] {
            let word = if diagonal { " diagonal" } else { "" };
            let weight: Vec<f64> = (0..ROWS * ROWS).map(|_| draw.between(-1.0, 1.0)).collect();
            let w = |t: usize, s: usize| weight[t * ROWS + s];
            let inputs = || vec![("w", vec![ROWS, ROWS], weight.clone())];

            let op = format!("segment t s{word} {}", gates(&decay));
            let found = run(&graph(&free_graph(&decay, &[("w", "t, s")], &op, "t, s")), &tensors(&decay, inputs()));
            let mut expected = vec![0.0; ROWS * ROWS];
            for (t, s) in pairs(diagonal) {
                expected[t * ROWS + s] = decay.segment(s, t);
            }
            assert_close(&found["y"].data, &expected, 1e-14);

            for event in 0..decay.kinds.len() {
                let op = format!("segment_grad {event} %{} t s{word} {}", decay.kinds.len(), gates(&decay));
                let found = run(&graph(&free_graph(&decay, &[("w", "t, s")], &op, "t")), &tensors(&decay, inputs()));
                let total = |decay: &Decay| pairs(diagonal).map(|(t, s)| w(t, s) * decay.segment(s, t)).sum();
                let expected: Vec<f64> = (0..ROWS).map(|t| difference(&decay, event, t, total)).collect();
                assert_close(&found["y"].data, &expected, 1e-8);
            }
        }
    }
}

#[test]
fn boundaries_and_their_derivatives() {
    let mut draw = Draw(12);
    for decay in decays(&mut draw) {
        for side in ["prefix", "suffix", "total"] {
            let (rows, dims) = if side == "total" { (1, "") } else { (ROWS, "t") };
            let weight: Vec<f64> = (0..rows).map(|_| draw.between(-1.0, 1.0)).collect();
            let shape = if side == "total" { vec![] } else { vec![ROWS] };
            let inputs = || vec![("w", shape.clone(), weight.clone())];

            let op = format!("boundary {side} t {}", gates(&decay));
            let found = run(&graph(&free_graph(&decay, &[("w", dims)], &op, dims)), &tensors(&decay, inputs()));
            let expected: Vec<f64> = (0..rows).map(|row| decay.boundary(side, row)).collect();
            assert_close(&found["y"].data, &expected, 1e-14);

            for event in 0..decay.kinds.len() {
                let op = format!("boundary_grad {event} %{} {side} t {}", decay.kinds.len(), gates(&decay));
                let found = run(&graph(&free_graph(&decay, &[("w", dims)], &op, "t")), &tensors(&decay, inputs()));
                let total = |decay: &Decay| (0..rows).map(|row| weight[row] * decay.boundary(side, row)).sum();
                let expected: Vec<f64> = (0..ROWS).map(|t| difference(&decay, event, t, total)).collect();
                assert_close(&found["y"].data, &expected, 1e-8);
            }
        }
    }
}

#[test]
fn logarithms_of_zero_close_a_segment_and_nothing_else() {
    let values = vec![vec![-0.5, f64::NEG_INFINITY, -0.25, -0.125]];
    let decay = Decay { kinds: vec![Log], values, from: 1, to: 1 };
    let text = free_graph(&decay, &[], &format!("segment t s diagonal {}", gates(&decay)), "t, s");
    let found = run(&graph(&text), &tensors(&decay, vec![]));
    let e = |x: f64| x.exp();
    let expected = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, e(-0.25), 1.0, 0.0, 0.0, e(-0.375), e(-0.125), 1.0];
    assert_close(&found["y"].data, &expected, 1e-15);
}

/// The trilinear form with one gate that has blocks and axes, one with blocks only and one with axes only.
struct Form {
    kinds: [Kind; 3],
    from: usize,
    to: usize,
    /// `[b, t, s]`, `[b, t, K]`, `[b, s, K]`, then gates `[b, t, K]`, `[b, t]`, `[t, K]`.
    parts: [Vec<f64>; 6],
}

const SHAPES: [(&str, &[usize]); 6] = [
    ("b, t, s", &[2, ROWS, ROWS]),
    ("b, t, K", &[2, ROWS, 3]),
    ("b, s, K", &[2, ROWS, 3]),
    ("b, t, K", &[2, ROWS, 3]),
    ("b, t", &[2, ROWS]),
    ("t, K", &[ROWS, 3]),
];

impl Form {
    fn draw(draw: &mut Draw, kinds: [Kind; 3], from: usize, to: usize) -> Form {
        let part = |at: usize| {
            let n = SHAPES[at].1.iter().product();
            let logarithm = at >= 3 && kinds[at - 3] == Log;
            let mut element = |i: usize| match logarithm {
                true => draw.between(-1.5, 0.2),
                false if at >= 3 && i % 5 == 2 => 0.0,
                false => draw.between(-1.3, 1.3),
            };
            (0..n).map(&mut element).collect()
        };
        let mut part = part;
        Form { kinds, from, to, parts: std::array::from_fn(&mut part) }
    }

    /// Φ, from its definition.
    fn value(&self) -> f64 {
        let [weight, rows, cols, g0, g1, g2] = &self.parts;
        let mut total = 0.0;
        for b in 0..2 {
            for a in 0..3 {
                let values = vec![
                    (0..ROWS).map(|t| g0[(b * ROWS + t) * 3 + a]).collect(),
                    (0..ROWS).map(|t| g1[b * ROWS + t]).collect(),
                    (0..ROWS).map(|t| g2[t * 3 + a]).collect(),
                ];
                let decay = Decay { kinds: self.kinds.to_vec(), values, from: self.from, to: self.to };
                for (i, j) in pairs(false) {
                    let w = weight[(b * ROWS + i) * ROWS + j];
                    total += w * rows[(b * ROWS + i) * 3 + a] * cols[(b * ROWS + j) * 3 + a] * decay.segment(j, i);
                }
            }
        }
        total
    }

    /// The derivative by every element of a part.
    fn derivative(&mut self, part: usize) -> Vec<f64> {
        let step = 1e-5;
        let mut found = Vec::new();
        for at in 0..self.parts[part].len() {
            let before = self.parts[part][at];
            self.parts[part][at] = before + step;
            let above = self.value();
            self.parts[part][at] = before - step;
            let below = self.value();
            self.parts[part][at] = before;
            found.push((above - below) / (2.0 * step));
        }
        found
    }

    /// The same derivative, by the graph.
    fn by_graph(&self, part: usize) -> Vec<f64> {
        let mut text = format!(
            "graph g {{ dim b : block 2 dim t : row {ROWS} dim s : col {ROWS} dim K : axis 0 3 step tokens=1\n"
        );
        let mut inputs = Vec::new();
        for (at, (dims, shape)) in SHAPES.iter().enumerate() {
            text += &format!("%{at} = token x{at} : [{dims}]\n");
            let shape = [&[1, 1, 1][..], shape].concat();
            inputs.push((["x0", "x1", "x2", "x3", "x4", "x5"][at], Tensor { shape, data: self.parts[at].clone() }));
        }
        let operand = |at: usize, name: &str| if at == part { String::new() } else { format!("{name}=%{at} ") };
        let which = ["weight", "rows", "cols", "gate 0", "gate 1", "gate 2"][part];
        let kind = |at: usize| if self.kinds[at] == Log { "log" } else { "factor" };
        text += &format!(
            "%6 = gated {which} {}{}{}t s over K gates ({} %3, {} %4, {} %5) from {} to {} : [{}]\noutput y = %6 }}",
            operand(0, "weight"),
            operand(1, "rows"),
            operand(2, "cols"),
            kind(0),
            kind(1),
            kind(2),
            self.from,
            self.to,
            SHAPES[part].0
        );
        run(&graph(&text), &bundle(inputs))["y"].data.clone()
    }
}

#[test]
fn every_derivative_of_the_trilinear_form() {
    let mut draw = Draw(13);
    for kinds in [[Log, Log, Log], [Factor, Factor, Factor], [Factor, Log, Factor], [Log, Factor, Log]] {
        for (from, to) in [(0, 0), (0, 3), (3, 0), (3, 3), (1, 2), (2, 1)] {
            let mut form = Form::draw(&mut draw, kinds, from, to);
            for part in 0..6 {
                let expected = form.derivative(part);
                assert_close(&form.by_graph(part), &expected, 1e-7);
            }
        }
    }
}

/// Solves a dense system by elimination with pivots.
fn eliminate(mut matrix: Vec<Vec<f64>>, mut rhs: Vec<f64>) -> Vec<f64> {
    let n = rhs.len();
    for at in 0..n {
        let pivot = (at..n).max_by(|&a, &b| matrix[a][at].abs().total_cmp(&matrix[b][at].abs())).unwrap();
        matrix.swap(at, pivot);
        rhs.swap(at, pivot);
        let above = matrix[at].clone();
        for row in at + 1..n {
            let factor = matrix[row][at] / above[at];
            for (x, y) in matrix[row].iter_mut().zip(&above) {
                *x -= factor * y;
            }
            rhs[row] -= factor * rhs[at];
        }
    }
    for at in (0..n).rev() {
        for col in at + 1..n {
            rhs[at] -= matrix[at][col] * rhs[col];
        }
        rhs[at] /= matrix[at][at];
    }
    rhs
}

#[test]
fn solves_against_elimination() {
    let mut draw = Draw(14);
    // Two slots; slot 0 has a right-hand side [t, V], slot 1 one without V; only slot 1 is scaled, by [t, V].
    for (kinds, clocks) in [
        (vec![], [[0, 0], [0, 0]]),
        (vec![Log], [[0, 1], [1, 1]]),
        (vec![Log, Factor], [[0, 2], [1, 0]]),
        (vec![Factor, Log], [[2, 1], [0, 2]]),
    ] {
        let [reads, writes] = clocks;
        for transposed in [false, true] {
            for absent in [None, Some(1)] {
                let v = 2;
                let mut numbers = |n: usize| -> Vec<f64> { (0..n).map(|_| draw.between(-0.9, 0.9)).collect() };
                let blocks: Vec<Vec<f64>> = (0..4).map(|_| numbers(ROWS * ROWS)).collect();
                let rhs = [numbers(ROWS * v), numbers(ROWS)];
                let scale = numbers(ROWS * v);
                // Gate 0 has V, gate 1 has not.
                let values: Vec<Vec<f64>> =
                    kinds.iter().enumerate().map(|(at, _)| numbers(if at == 0 { ROWS * v } else { ROWS })).collect();

                let mut text = format!(
                    "graph g {{ dim j : slot 2 dim t : row {ROWS} dim s : col {ROWS} dim V : axis 0 {v} step tokens=1\n"
                );
                let mut given = Bundle::new();
                let mut add = |dims: &str, shape: Vec<usize>, data: &[f64]| {
                    let at = given.len();
                    text += &format!("%{at} = token x{at} : [{dims}]\n");
                    let shape = [&[1, 1, 1][..], &shape].concat();
                    given.insert(format!("x{at}"), Tensor { shape, data: data.to_vec() });
                };
                for block in &blocks {
                    add("t, s", vec![ROWS, ROWS], block);
                }
                add("t, V", vec![ROWS, v], &rhs[0]);
                add("t", vec![ROWS], &rhs[1]);
                add("t, V", vec![ROWS, v], &scale);
                for (at, value) in values.iter().enumerate() {
                    match at {
                        0 => add("t, V", vec![ROWS, v], value),
                        _ => add("t", vec![ROWS], value),
                    }
                }
                let first = given.len() - kinds.len();
                let word = |(at, kind): (usize, &Kind)| {
                    format!("{} %{}", if *kind == Log { "log" } else { "factor" }, first + at)
                };
                let gates: Vec<String> = kinds.iter().enumerate().map(word).collect();
                let entry = |at: usize| if absent == Some(at) { "_".to_owned() } else { format!("%{at}") };
                text += &format!(
                    "%{} = solve {}j t s lower ({}, {}, {}, {}) rhs (%4, %5) scale (_, %6) reads ({}, {}) \
                     writes ({}, {}) gates ({}) from 0 to 0 : [j, t, V]\noutput y = %{} }}",
                    given.len(),
                    if transposed { "transposed " } else { "" },
                    entry(0),
                    entry(1),
                    entry(2),
                    entry(3),
                    reads[0],
                    reads[1],
                    writes[0],
                    writes[1],
                    gates.join(", "),
                    given.len()
                );
                let found = run(&graph(&text), &given)["y"].data.clone();

                for a in 0..v {
                    let line = |at: usize| -> Vec<f64> {
                        (0..ROWS).map(|t| if at == 0 { values[at][t * v + a] } else { values[at][t] }).collect()
                    };
                    let values = (0..kinds.len()).map(line).collect();
                    let decay = Decay { kinds: kinds.clone(), values, from: 0, to: 0 };
                    // Unknown (slot, row) stands at slot · ROWS + row.
                    let n = 2 * ROWS;
                    let mut matrix = vec![vec![0.0; n]; n];
                    for (at, row) in matrix.iter_mut().enumerate() {
                        let (j, t) = (at / ROWS, at % ROWS);
                        for (i, s) in (0..n).map(|col| (col / ROWS, col % ROWS)) {
                            if absent != Some(j * 2 + i) && (s < t || (s == t && i < j)) {
                                let factor = if j == 1 { scale[t * v + a] } else { 1.0 };
                                let segment = decay.segment_at(s, writes[i], t, reads[j]);
                                row[i * ROWS + s] = -factor * blocks[j * 2 + i][t * ROWS + s] * segment;
                            }
                        }
                        row[at] = 1.0;
                    }
                    if transposed {
                        matrix = (0..n).map(|row| (0..n).map(|col| matrix[col][row]).collect()).collect();
                    }
                    let side: Vec<f64> =
                        (0..n).map(|at| if at < ROWS { rhs[0][at * v + a] } else { rhs[1][at - ROWS] }).collect();
                    let expected = eliminate(matrix, side);
                    let found: Vec<f64> = (0..n).map(|at| found[at * v + a]).collect();
                    assert_close(&found, &expected, 1e-11);
                }
            }
        }
    }
}
