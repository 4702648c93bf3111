//! Summaries of spans: each span on its own gives a map of the state, and maps composed are one pass. In: a program
//! and its data; out: the final states that composed summaries give. Everything is float64; what is compared is the
//! derivation's map with whatever made the one pass.

use std::collections::BTreeMap;

use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::compile::{self, summarise};
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::derive::recurrence::Class;
use chunkwise_compiler::graph::interp;
use chunkwise_compiler::graph::ir::{DimId, Graph};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;

use super::slices;
use crate::engine::request;
use crate::failure::Failure;

/// A state as a matrix: rows are what reads sum over, columns are kept.
struct Matrix {
    name: String,
    /// Extents in the layout of the state's tensor, and for each dimension whether it is a row dimension, and its
    /// stride inside rows or columns.
    layout: Vec<(usize, bool, usize)>,
    rows: usize,
    cols: usize,
    decays_along_columns: bool,
}

impl Matrix {
    /// Row and column of an element, by its position in the tensor.
    fn place(&self, mut at: usize) -> (usize, usize) {
        let (mut row, mut col) = (0, 0);
        for (extent, is_row, stride) in self.layout.iter().rev() {
            let index = at % extent;
            at /= extent;
            if *is_row { row += index * stride } else { col += index * stride }
        }
        (row, col)
    }
}

/// S ↦ (M S) ⊙ D + U, for the states of a stratum one above the other.
struct Map {
    /// Rows of all states by rows of all states.
    m: Vec<f64>,
    /// By state and column.
    d: Vec<Vec<f64>>,
    /// By state: rows by columns.
    u: Vec<Vec<f64>>,
}

/// Final states by composing the summaries of spans that meet at `cuts`.
pub fn compose(instance: &Instance, tensors: &Bundle, cuts: &[usize], chunk: usize) -> Result<Bundle, Failure> {
    let program = instance.program;
    let graph = summarise(instance, Some(chunk))?;
    let derived = compile::derive(instance, &request(Form::Recurrent, None, 0, Parts::Forward, Inside::default()))?;
    let (batch, heads) = batch_and_heads(instance, tensors);
    let mut summaries = Vec::new();
    for (&begin, &end) in cuts.iter().zip(cuts.iter().skip(1)) {
        let mut part = slices::tokens(program, tensors, begin..end);
        part.retain(|name, _| !name.starts_with("init.") && !name.starts_with("grad_"));
        part.extend(identities(&graph, &derived.recurrence.strata, &derived.token, batch, heads));
        summaries.push(interp::run(&graph, &part, Some(heads)).map_err(|error| Failure::Ours(error.to_string()))?);
    }
    let mut finals = Bundle::new();
    for stratum in &derived.recurrence.strata {
        let form = match &stratum.class {
            Class::LowRank(form) => form,
            Class::Elementwise { .. } => {
                for &state in &stratum.states {
                    let axes = &program.states[state].axes;
                    let shape = [vec![batch, heads], instance.shape(axes)].concat();
                    let name = &derived.token.carries[state].name;
                    finals.insert(format!("final.{name}"), elementwise(name, &graph, &summaries, tensors, &shape)?);
                }
                continue;
            }
            Class::General { .. } => return Err(Failure::Ours("a summary of a stratum that has none".to_owned())),
        };
        let states: Vec<Matrix> = form
            .states
            .iter()
            .map(|state| {
                let carry = &derived.token.carries[state.state];
                matrix(&derived.token, &carry.name, &carry.layout, &state.contracted, &state.free, &graph)
            })
            .collect();
        let mut composed: Vec<Option<Map>> = (0..batch * heads).map(|_| None).collect();
        for summary in &summaries {
            for (item, map) in composed.iter_mut().enumerate() {
                let next = read(&states, summary, item);
                *map = Some(match map.take() {
                    None => next,
                    Some(first) => after(&states, &first, &next),
                });
            }
        }
        for (matrix, state) in states.iter().zip(&form.states) {
            let axes = &program.states[state.state].axes;
            let shape = [vec![batch, heads], instance.shape(axes)].concat();
            finals.insert(format!("final.{}", matrix.name), Tensor::zeros(&shape));
        }
        for (item, map) in composed.iter().enumerate() {
            let Some(map) = map else { continue };
            apply(&states, map, tensors, item, &mut finals);
        }
    }
    Ok(finals)
}

/// The final state S ↦ M ⊙ S + U of composed spans, each element by itself; M lies along some of the state's axes.
fn elementwise(
    name: &str,
    graph: &Graph,
    summaries: &[Bundle],
    tensors: &Bundle,
    shape: &[usize],
) -> Result<Tensor, Failure> {
    let layout = |part: &str| {
        let carry = graph.carries.iter().find(|carry| carry.name == format!("{part}.{name}"));
        carry.map(|carry| &carry.layout).ok_or_else(|| Failure::Ours(format!("no {part} in the summary of {name}")))
    };
    let (whole, along) = (layout("U")?, layout("M")?);
    let inner: usize = graph.sizes(whole).iter().product();
    let factors: usize = graph.sizes(along).iter().product();
    // Where the factor of each element of a state lies.
    let places: Vec<usize> = (0..inner)
        .map(|mut at| {
            let mut place = 0;
            for dim in whole.iter().rev() {
                let size = graph.dim(*dim).size;
                if let Some(position) = along.iter().position(|other| other == dim) {
                    place += at % size * graph.sizes(&along[position + 1..]).iter().product::<usize>();
                }
                at /= size;
            }
            place
        })
        .collect();
    let elements = shape.iter().product::<usize>();
    let (mut m, mut u) = (vec![1.0; elements], vec![0.0; elements]);
    for summary in summaries {
        let (next_m, next_u) = (&summary[&format!("summary.M.{name}")], &summary[&format!("summary.U.{name}")]);
        for at in 0..elements {
            let factor = next_m.data[at / inner * factors + places[at % inner]];
            m[at] *= factor;
            u[at] = factor * u[at] + next_u.data[at];
        }
    }
    let init = tensors.get(&format!("init.{name}"));
    Ok(Tensor::from_fn(shape, |at| init.map_or(0.0, |init| m[at] * init.data[at]) + u[at]))
}

fn batch_and_heads(instance: &Instance, tensors: &Bundle) -> (usize, usize) {
    let shapes = tensors.iter().map(|(name, tensor)| (slices::leading(instance.program, name), &tensor.shape));
    let mut found = (0, 0);
    for (leading, shape) in shapes {
        match leading {
            Some(crate::binding::Leading::Token) => found = (shape[0], found.1.max(shape[2])),
            Some(crate::binding::Leading::Head) => found.1 = found.1.max(shape[0]),
            Some(crate::binding::Leading::Sequence) | None => {}
        }
    }
    found
}

fn matrix(
    token: &Graph,
    name: &str,
    layout: &[DimId],
    contracted: &[DimId],
    free: &[DimId],
    summary: &Graph,
) -> Matrix {
    let size = |dim: &DimId| token.dim(*dim).size;
    let stride = |dims: &[DimId], dim: &DimId| {
        let at = dims.iter().position(|it| it == dim).unwrap_or(0);
        dims[at + 1..].iter().map(size).product::<usize>()
    };
    let layout = layout
        .iter()
        .map(|dim| {
            let is_row = contracted.contains(dim);
            (size(dim), is_row, stride(if is_row { contracted } else { free }, dim))
        })
        .collect();
    Matrix {
        name: name.to_owned(),
        layout,
        rows: contracted.iter().map(size).product(),
        cols: free.iter().map(size).product(),
        decays_along_columns: summary.carries.iter().any(|carry| carry.name == format!("D.{name}")),
    }
}

/// First values of the carries of a summary: block rows of the identity, and ones.
fn identities(
    graph: &Graph,
    strata: &[chunkwise_compiler::derive::recurrence::Stratum],
    token: &Graph,
    batch: usize,
    heads: usize,
) -> Bundle {
    let mut first_rows: BTreeMap<String, usize> = BTreeMap::new();
    for stratum in strata {
        let Class::LowRank(form) = &stratum.class else { continue };
        let mut row = 0;
        for state in &form.states {
            first_rows.insert(token.carries[state.state].name.clone(), row);
            row += token.sizes(&state.contracted).iter().product::<usize>();
        }
    }
    let mut bundle = Bundle::new();
    for carry in &graph.carries {
        let Some(init) = &carry.init else { continue };
        let inner = graph.sizes(&carry.layout);
        let shape = [vec![batch, heads], inner.clone()].concat();
        let tensor = match carry.name.split_once('.') {
            // Of an elementwise state, M begins at ones like D.
            Some(("M", name)) if first_rows.contains_key(name) => {
                let cols = *inner.last().expect("a matrix has columns");
                let rows: usize = inner[..inner.len() - 1].iter().product();
                let first = first_rows[name];
                Tensor::from_fn(&shape, |i| if i % cols == first + i / cols % rows { 1.0 } else { 0.0 })
            }
            Some(_) | None => Tensor::from_fn(&shape, |_| 1.0),
        };
        bundle.insert(init.clone(), tensor);
    }
    bundle
}

/// The map of one sequence and head, from what the summary gave.
fn read(states: &[Matrix], summary: &Bundle, item: usize) -> Map {
    let all: usize = states.iter().map(|state| state.rows).sum();
    let mut map = Map { m: Vec::with_capacity(all * all), d: vec![], u: vec![] };
    for state in states {
        let part = |prefix: &str, elements: usize| {
            let tensor = &summary[&format!("summary.{prefix}.{}", state.name)];
            &tensor.data[item * elements..(item + 1) * elements]
        };
        map.m.extend_from_slice(part("M", state.rows * all));
        map.d.push(if state.decays_along_columns { part("D", state.cols).to_vec() } else { vec![1.0; state.cols] });
        let mut u = vec![0.0; state.rows * state.cols];
        for (at, value) in part("U", state.rows * state.cols).iter().enumerate() {
            let (row, col) = state.place(at);
            u[row * state.cols + col] = *value;
        }
        map.u.push(u);
    }
    map
}

/// M times the states one above the other: what each state becomes, before its columns decay.
fn times(states: &[Matrix], m: &[f64], of: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let all: usize = states.iter().map(|state| state.rows).sum();
    let mut first = 0;
    let mut products = Vec::new();
    for state in states {
        let mut product = vec![0.0; state.rows * state.cols];
        for row in 0..state.rows {
            let mut from = 0;
            for (other, values) in states.iter().zip(of) {
                for inner in 0..other.rows {
                    let factor = m[(first + row) * all + from + inner];
                    for col in 0..state.cols.min(other.cols) {
                        product[row * state.cols + col] += factor * values[inner * other.cols + col];
                    }
                }
                from += other.rows;
            }
        }
        first += state.rows;
        products.push(product);
    }
    products
}

/// The second map after the first.
fn after(states: &[Matrix], first: &Map, second: &Map) -> Map {
    let all: usize = states.iter().map(|state| state.rows).sum();
    let mut m = vec![0.0; all * all];
    for row in 0..all {
        for inner in 0..all {
            for col in 0..all {
                m[row * all + col] += second.m[row * all + inner] * first.m[inner * all + col];
            }
        }
    }
    let d = first.d.iter().zip(&second.d).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).collect()).collect();
    let mut u = times(states, &second.m, &first.u);
    for (state, (u, (d, more))) in states.iter().zip(u.iter_mut().zip(second.d.iter().zip(&second.u))) {
        for (at, value) in u.iter_mut().enumerate() {
            *value = *value * d[at % state.cols] + more[at];
        }
    }
    Map { m, d, u }
}

/// Final states of one sequence and head from its initial states.
fn apply(states: &[Matrix], map: &Map, tensors: &Bundle, item: usize, finals: &mut Bundle) {
    let elements = |state: &Matrix| state.rows * state.cols;
    let inits: Vec<Vec<f64>> = states
        .iter()
        .map(|state| {
            let mut matrix = vec![0.0; elements(state)];
            if let Some(init) = tensors.get(&format!("init.{}", state.name)) {
                for (at, value) in init.data[item * elements(state)..(item + 1) * elements(state)].iter().enumerate() {
                    let (row, col) = state.place(at);
                    matrix[row * state.cols + col] = *value;
                }
            }
            matrix
        })
        .collect();
    let carried = times(states, &map.m, &inits);
    for (number, state) in states.iter().enumerate() {
        let last = &mut finals[&format!("final.{}", state.name)];
        for (at, value) in last.data[item * elements(state)..(item + 1) * elements(state)].iter_mut().enumerate() {
            let (row, col) = state.place(at);
            let place = row * state.cols + col;
            *value = carried[number][place] * map.d[number][col] + map.u[number][place];
        }
    }
}
