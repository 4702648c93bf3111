//! The example mechanisms, and the tensors recorded for them.

use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{Program, TensorKind};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const MECHANISMS: [&str; 16] = [
    "delta_rule",
    "gated_delta_product",
    "gated_delta_rule",
    "gla",
    "gla_strong_decay",
    "hgrn",
    "kda",
    "linear_attention",
    "mamba1",
    "mamba2",
    "mlstm",
    "normalized_linear_attention",
    "retention",
    "rwkv6",
    "rwkv7",
    "simple_gla",
];

/// Everything the examples do not use, in awkward layouts and under awkward names.
pub const EVERYTHING: &str = r#"
/// Uses "every" function, and a \ in its description.
recurrence everything {
    axis K, V, L, H
    input x: [K, V], t: [V], lambda: [K] in (0, 1]
    input np: [], k: [H, K], range: [V, H]
    param a: [V], b: [], W: [H]
    const eps = 1e-6, low = -2.5, size = max(K, 3) * square(K) ^ -1 + abs(low) - eps

    state S: [V, K], z: [K], n: []

    let first = exp(lambda) + exp2(lambda) - log(lambda) / sqrt(lambda) + abs(x) * sign(x)
    let second = sigmoid(t) - logsigmoid(t) + softplus(t) - silu(a) - (tanh(a) - elu(t))
    let third = relu(-t) + gelu(t) * (sin(t) / cos(t)) - square(b) - -b
    let top = max(x, K) + sum(x * lambda, K) - mean(softmax(x, K), K) + l2norm(t, V)
    let old = rename(z, K -> L)
    z = lambda * z + softmax(first @ second, K) + min(lambda, 0.25) * max(lambda, mean(first, V)) ^ 2
    S = 0.5 * S + first * third + z * sum(k[1] @ rename(old * (old @ old), L -> K) * W, H) * size
    for H_ in H {
        let e = range[H_] - k[H_] @ S
        S = S + (H_ + 1) * 0.1 * k[H_] * e
    }
    n = stop_gradient(exp(-np ^ 2)) * b

    output o: [K, V] = S * n + top
    output p: [] = n - (low - (n - size))
    output y: [L] = old * rename(l2norm(x @ t, K), K -> L)
    S = exp(b)
}
"#;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The only program of a source.
pub fn program(source: &str) -> Program {
    let mut compiled = chunkwise_dsl::compile(source).expect("the source is a program");
    assert_eq!(compiled.programs.len(), 1, "one recurrence a source");
    compiled.programs.remove(0)
}

/// The program of `examples/mechanisms/NAME.cw`.
pub fn mechanism(name: &str) -> Program {
    let path = repository().join(format!("examples/mechanisms/{name}.cw"));
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    program(&source)
}

/// Tensors recorded from an independent implementation, or `None`, said aloud, where there are none.
pub fn fixture(name: &str) -> Option<Bundle> {
    let folder = match std::env::var_os("CHUNKWISE_FIXTURES") {
        Some(folder) => PathBuf::from(folder),
        None => repository().join("../shared/fixtures"),
    };
    let path = folder.join(format!("{name}.safetensors"));
    if !path.exists() {
        println!("skipped: no {}; set CHUNKWISE_FIXTURES to the folder of the fixtures", path.display());
        return None;
    }
    let bytes = std::fs::read(&path).expect("the file exists");
    let file = SafeTensors::deserialize(&bytes).expect("a fixture is a safetensors file");
    let mut bundle = Bundle::new();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), Dtype::F64, "fixtures are float64");
        let (numbers, _) = view.data().as_chunks::<8>();
        let data = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        bundle.insert(name, Tensor { shape: view.shape().to_vec(), data });
    }
    Some(bundle)
}

/// The program at the sizes its tensors have.
pub fn sized<'p>(program: &'p Program, tensors: &Bundle) -> Instance<'p> {
    let mut sizes = BTreeMap::new();
    for tensor in &program.tensors {
        let leading = match tensor.kind {
            TensorKind::Input => 3,
            TensorKind::Param => 1,
        };
        let given = tensors.get(&tensor.name).unwrap_or_else(|| panic!("the fixture lacks `{}`", tensor.name));
        for (axis, &size) in tensor.axes.iter().zip(&given.shape[leading..]) {
            sizes.insert(program.axes[axis.index()].name.clone(), size);
        }
    }
    Instance::new(program, &sizes, &BTreeMap::new()).expect("a fixture's sizes fit its program")
}
