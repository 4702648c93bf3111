//! Graph → tile program: what a kernel computes in the tile interpreter is what its graph computes in the graph's.

#[path = "lower/mechanisms.rs"]
mod mechanisms;
#[path = "lower/random.rs"]
mod random;
#[path = "lower/stages.rs"]
mod stages;

use chunkwise_abi::{Access, Role, chunk_slot};
use chunkwise_compiler::graph::interp::{self, Extent};
use chunkwise_compiler::graph::ir::Graph;
use chunkwise_compiler::graph::text;
use chunkwise_compiler::lower::graph_to_tile::{Options, lower};
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_compiler::tile;
use chunkwise_compiler::tile::interp::{HostArg, HostCall};

/// Numbers that look random and are the same every time.
struct Draw(u64);

impl Draw {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }
    fn between(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.bits() as f64 / (1u64 << 31) as f64
    }
    fn tensor(&mut self, shape: &[usize], lo: f64, hi: f64) -> Tensor {
        Tensor::from_fn(shape, |_| self.between(lo, hi))
    }
}

/// A graph's results from its kernel; errors as text.
fn run_kernel(graph: &Graph, given: &Bundle, extent: &Extent) -> Result<Bundle, String> {
    let kernel = lower(graph, &Options::default()).map_err(|error| error.to_string())?;
    tile::verify::verify(&kernel).map_err(|error| error.to_string())?;
    let steps = extent.length.div_ceil(graph.tokens);
    let mut call = HostCall::new(extent.batch, extent.length, extent.heads);
    for arg in &kernel.args {
        let elements = call.dense_elements(arg, extent.heads);
        let inner: usize = arg.inner.iter().product();
        let host = match (arg.access, given.get(&arg.name), arg.role) {
            (Access::Write, _, _) | (Access::Read, None, _) => call.dense(arg, extent.heads, vec![0.0; elements]),
            (Access::Read, Some(tensor), Role::Chunk(tokens)) => {
                let mut data = vec![f64::NAN; elements];
                let row = extent.heads * inner;
                for b in 0..extent.batch {
                    let slot = chunk_slot(tokens, b * extent.length, b);
                    for j in 0..steps {
                        let from = (b * steps + j) * row;
                        data[(slot + j) * row..][..row].copy_from_slice(&tensor.data[from..from + row]);
                    }
                }
                call.dense(arg, extent.heads, data)
            }
            (Access::Read, Some(tensor), role) => {
                let at = match role {
                    Role::Token => 2,
                    Role::Head | Role::Chunk(_) => 0,
                    Role::Sequence => 1,
                };
                call.dense(arg, tensor.shape[at], tensor.data.clone())
            }
        };
        call.tensors.push(host);
    }
    tile::interp::run(&kernel, &mut call).map_err(|error| format!("{error}\n{}", tile::text::print(&kernel)))?;
    let mut results = Bundle::new();
    for (arg, HostArg { data, .. }) in kernel.args.iter().zip(&call.tensors) {
        if arg.access == Access::Read {
            continue;
        }
        let (b, t, h) = (extent.batch, extent.length, extent.heads);
        let (leading, data) = match arg.role {
            Role::Token => (vec![b, t, h], data.clone()),
            Role::Sequence => (vec![b, h], data.clone()),
            Role::Head => (vec![h], data.clone()),
            Role::Chunk(tokens) => {
                let row: usize = h * arg.inner.iter().product::<usize>();
                let mut dense = Vec::new();
                for n in 0..b {
                    let slot = chunk_slot(tokens, n * t, n);
                    dense.extend_from_slice(&data[slot * row..(slot + steps) * row]);
                }
                (vec![b, steps, h], dense)
            }
        };
        results.insert(arg.name.clone(), Tensor { shape: [leading, arg.inner.clone()].concat(), data });
    }
    Ok(results)
}

/// Sums a per-sequence result over sequences.
fn over_sequences(tensor: &Tensor) -> Tensor {
    let row: usize = tensor.shape[1..].iter().product();
    let data = (0..row).map(|i| (0..tensor.shape[0]).map(|b| tensor.data[b * row + i]).sum()).collect();
    Tensor { shape: tensor.shape[1..].to_vec(), data }
}

/// Compares a graph with its kernel and gives the graph's results.
#[track_caller]
fn compare(what: &str, graph: &Graph, given: &Bundle, extent: &Extent) -> Bundle {
    println!("{what}");
    let expected = interp::run_over(graph, given, extent).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found =
        run_kernel(graph, given, extent).unwrap_or_else(|error| panic!("{what}: {error}\n{}", text::print(graph)));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (name, tensor) in &expected {
        let mut result = found[name].clone();
        if result.shape.len() > tensor.shape.len() {
            result = over_sequences(&result);
        }
        assert_eq!(result.shape, tensor.shape, "{what}: {name}");
        for (at, (x, y)) in result.data.iter().zip(&tensor.data).enumerate() {
            let close = (x - y).abs() <= 1e-9 * y.abs().max(1.0) || (x.is_nan() && y.is_nan()) || x == y;
            if !close {
                let kernel = lower(graph, &Options::default()).unwrap();
                let (graph, kernel) = (text::print(graph), tile::text::print(&kernel));
                panic!("{what}: element {at} of {name}: {x} where {y} is expected\n{graph}\n{kernel}");
            }
        }
    }
    expected
}
