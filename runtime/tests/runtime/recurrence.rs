//! A small recurrence, S ← w·S + k·v, o = q·S with V = 3, twice: as kernels that keep the calling contract, and as
//! plain loops over dense tensors in float64.

use chunkwise_runtime::abi::{
    ABI_VERSION, Access, ArgSignature, Call, DType, KernelSignature, Role, Signature, TensorArg, chunk_slot,
};
use chunkwise_runtime::execute::CpuArtifact;
use chunkwise_runtime::tensor::{ElementType, HostTensor, Tensors};
use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;

pub const V: usize = 3;
pub const CHUNK: usize = 2;

/// One item's view of a call, addressed exactly as the contract says.
struct Item<'a> {
    call: &'a Call,
    sequence: i64,
    head: i64,
    length: i64,
    start: i64,
}

impl Item<'_> {
    fn tensor(&self, i: usize) -> TensorArg {
        unsafe { *self.call.tensors.add(i) }
    }
    fn at(&self, i: usize, offset: i64) -> *mut f32 {
        let tensor = self.tensor(i);
        let head = self.head / (self.call.heads / tensor.heads);
        unsafe { tensor.data.cast::<f32>().offset((offset + head * tensor.stride_head) as isize) }
    }
    fn token(&self, i: usize, t: i64) -> *mut f32 {
        let tensor = self.tensor(i);
        let sequence = if self.call.offsets.is_null() {
            self.sequence * tensor.stride_sequence
        } else {
            self.start * tensor.stride_time
        };
        self.at(i, sequence + t * tensor.stride_time)
    }
    fn sequence(&self, i: usize) -> *mut f32 {
        self.at(i, self.sequence * self.tensor(i).stride_sequence)
    }
    fn head(&self, i: usize) -> *mut f32 {
        self.at(i, 0)
    }
    fn chunk(&self, i: usize, chunk: i64) -> *mut f32 {
        let slot = chunk_slot(CHUNK, self.start as usize, self.sequence as usize) as i64;
        self.at(i, (slot + chunk) * self.tensor(i).stride_time)
    }
}

unsafe fn each_item(call: *const Call, begin: i64, end: i64, mut work: impl FnMut(&Item)) {
    let call = unsafe { &*call };
    for i in begin..end {
        let (sequence, head) = (i / call.heads, i % call.heads);
        let (start, length) = if call.offsets.is_null() {
            (sequence * call.length, call.length)
        } else {
            unsafe {
                let start = *call.offsets.offset(sequence as isize);
                (start, *call.offsets.offset(sequence as isize + 1) - start)
            }
        };
        work(&Item { call, sequence, head, length, start });
    }
}

/// Arguments: q k v w init out.o final.S, and saved.S if `SAVING`.
unsafe extern "C" fn forward<const SAVING: bool>(call: *const Call, begin: i64, end: i64, scratch: *mut c_void) {
    assert_eq!(scratch as usize % 64, 0);
    let state = scratch.cast::<f32>();
    unsafe {
        each_item(call, begin, end, |item| {
            let w = *item.head(3);
            for j in 0..V {
                *state.add(j) = *item.sequence(4).add(j);
            }
            for t in 0..item.length {
                if SAVING && t % CHUNK as i64 == 0 {
                    for j in 0..V {
                        *item.chunk(7, t / CHUNK as i64).add(j) = *state.add(j);
                    }
                }
                for j in 0..V {
                    *state.add(j) = w * *state.add(j) + *item.token(1, t) * *item.token(2, t).add(j);
                    *item.token(5, t).add(j) = *item.token(0, t) * *state.add(j);
                }
            }
            for j in 0..V {
                *item.sequence(6).add(j) = *state.add(j);
            }
        });
    }
}

/// Arguments: q k v w saved.S grad_out.o grad_final.S, grad.q grad.k grad.v grad.w grad_init.S.
unsafe extern "C" fn backward(call: *const Call, begin: i64, end: i64, scratch: *mut c_void) {
    let (adj, states) = (scratch.cast::<f32>(), unsafe { scratch.cast::<f32>().add(16) });
    unsafe {
        each_item(call, begin, end, |item| {
            let w = *item.head(3);
            let mut w_adj = 0.0;
            for j in 0..V {
                *adj.add(j) = *item.sequence(6).add(j);
            }
            for t in (0..item.length).rev() {
                // The states before and after the token, again from the chunk's first.
                let first = t / CHUNK as i64 * CHUNK as i64;
                for j in 0..V {
                    *states.add(16 + j) = *item.chunk(4, t / CHUNK as i64).add(j);
                    for u in first..=t {
                        *states.add(j) = *states.add(16 + j);
                        *states.add(16 + j) = w * *states.add(j) + *item.token(1, u) * *item.token(2, u).add(j);
                    }
                }
                let (mut q_adj, mut k_adj) = (0.0, 0.0);
                for j in 0..V {
                    let o_adj = *item.token(5, t).add(j);
                    *adj.add(j) += *item.token(0, t) * o_adj;
                    q_adj += o_adj * *states.add(16 + j);
                    k_adj += *adj.add(j) * *item.token(2, t).add(j);
                    *item.token(9, t).add(j) = *adj.add(j) * *item.token(1, t);
                    w_adj += *adj.add(j) * *states.add(j);
                    *adj.add(j) *= w;
                }
                *item.token(7, t) = q_adj;
                *item.token(8, t) = k_adj;
            }
            *item.sequence(10) = w_adj;
            for j in 0..V {
                *item.sequence(11).add(j) = *adj.add(j);
            }
        });
    }
}

fn arg(name: &str, role: Role, vector: bool, access: Access) -> ArgSignature {
    let (inner, axes) = if vector { (vec![V], vec!["V".to_string()]) } else { (vec![], vec![]) };
    ArgSignature { name: name.to_string(), dtype: DType::F32, role, inner, axes, access }
}

fn inputs() -> Vec<ArgSignature> {
    vec![
        arg("q", Role::Token, false, Access::Read),
        arg("k", Role::Token, false, Access::Read),
        arg("v", Role::Token, true, Access::Read),
        arg("w", Role::Head, false, Access::Read),
    ]
}

pub fn signature() -> Signature {
    let kernel = |symbol: &str, args| KernelSignature { symbol: symbol.to_string(), args, scratch_bytes: 256 };
    let results = || {
        let results = [
            arg("init.S", Role::Sequence, true, Access::Read),
            arg("out.o", Role::Token, true, Access::Write),
            arg("final.S", Role::Sequence, true, Access::Write),
        ];
        inputs().into_iter().chain(results)
    };
    let gradients = [
        arg("saved.S", Role::Chunk(CHUNK), true, Access::Read),
        arg("grad_out.o", Role::Token, true, Access::Read),
        arg("grad_final.S", Role::Sequence, true, Access::Read),
        arg("grad.q", Role::Token, false, Access::Write),
        arg("grad.k", Role::Token, false, Access::Write),
        arg("grad.v", Role::Token, true, Access::Write),
        arg("grad.w", Role::Sequence, false, Access::Write),
        arg("grad_init.S", Role::Sequence, true, Access::Write),
    ];
    let saved = arg("saved.S", Role::Chunk(CHUNK), true, Access::Write);
    Signature {
        abi: ABI_VERSION,
        name: "small".to_string(),
        form: "recurrent".to_string(),
        chunk: CHUNK,
        max_length: None,
        forward: Some(kernel("forward", results().collect())),
        forward_saving: Some(kernel("forward_saving", results().chain([saved]).collect())),
        backward: Some(kernel("backward", inputs().into_iter().chain(gradients).collect())),
    }
}

pub fn artifact() -> CpuArtifact {
    artifact_of(signature())
}

pub fn artifact_of(signature: Signature) -> CpuArtifact {
    let nothing: Arc<dyn Any + Send + Sync> = Arc::new(());
    let find = |symbol: &str| -> Option<chunkwise_runtime::abi::KernelFn> {
        match symbol {
            "forward" => Some(forward::<false>),
            "forward_saving" => Some(forward::<true>),
            "backward" => Some(backward),
            _ => None,
        }
    };
    unsafe { CpuArtifact::new(signature, &nothing, find) }.unwrap()
}

/// Numbers without a pattern, the same in every run.
pub struct Numbers(pub u64);
impl Numbers {
    pub fn tensor(&mut self, shape: &[usize]) -> HostTensor {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        HostTensor::from_f32(ElementType::F32, shape, &values).unwrap()
    }
}

/// Sizes of a case; heads of q, k, v and w.
#[derive(Clone)]
pub struct Case {
    pub lengths: Vec<usize>,
    pub packed: bool,
    pub heads: [usize; 4],
}

impl Case {
    pub fn equal(count: usize, length: usize, heads: [usize; 4]) -> Case {
        Case { lengths: vec![length; count], packed: false, heads }
    }
    pub fn h(&self) -> usize {
        *self.heads.iter().max().unwrap()
    }
    pub fn offsets(&self) -> Option<Vec<usize>> {
        let ends = self.lengths.iter().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        });
        self.packed.then(|| [0].into_iter().chain(ends).collect())
    }
    /// Inputs, first states and cotangents.
    pub fn tensors(&self, numbers: &mut Numbers, length_if_none: usize) -> Tensors {
        let total: usize = self.lengths.iter().sum();
        let tokens = if self.packed {
            [1, total]
        } else {
            [self.lengths.len(), self.lengths.first().copied().unwrap_or(length_if_none)]
        };
        let [q, k, v, w] = self.heads;
        let h = self.h();
        let mut tensors = Tensors::new();
        let mut add = |name: &str, shape: &[usize]| {
            tensors.insert(name.to_string(), numbers.tensor(shape));
        };
        add("q", &[tokens[0], tokens[1], q]);
        add("k", &[tokens[0], tokens[1], k]);
        add("v", &[tokens[0], tokens[1], v, V]);
        add("w", &[w]);
        add("init.S", &[self.lengths.len(), h, V]);
        add("grad_out.o", &[tokens[0], tokens[1], h, V]);
        add("grad_final.S", &[self.lengths.len(), h, V]);
        tensors
    }
}

/// The same by plain loops: name, shape and values of every result and gradient.
pub fn expected(case: &Case, tensors: &Tensors) -> Vec<(&'static str, Vec<f64>)> {
    let [q, k, v, w, init, o_adj, last_adj] =
        ["q", "k", "v", "w", "init.S", "grad_out.o", "grad_final.S"].map(|name| tensors[name].to_f64());
    let (h, total): (usize, usize) = (case.h(), case.lengths.iter().sum());
    let [hq, hk, hv, hw] = case.heads;
    let mut o = vec![0.0; total * h * V];
    let mut last = vec![0.0; case.lengths.len() * h * V];
    let (mut q_adj, mut k_adj) = (vec![0.0; total * hq], vec![0.0; total * hk]);
    let (mut v_adj, mut w_adj) = (vec![0.0; total * hv * V], vec![0.0; hw]);
    let mut init_adj = last.clone();
    let mut start = 0;
    for (n, length) in case.lengths.iter().enumerate() {
        for head in 0..h {
            let [iq, ik, iv, iw] = case.heads.map(|own| head / (h / own));
            for j in 0..V {
                let at = (n * h + head) * V + j;
                let mut states = vec![init[at]];
                for t in start..start + length {
                    let state = w[iw] * states.last().unwrap() + k[t * hk + ik] * v[(t * hv + iv) * V + j];
                    states.push(state);
                    o[(t * h + head) * V + j] = q[t * hq + iq] * state;
                }
                last[at] = *states.last().unwrap();
                let mut adj = last_adj[at];
                for t in (start..start + length).rev() {
                    let out = o_adj[(t * h + head) * V + j];
                    adj += q[t * hq + iq] * out;
                    q_adj[t * hq + iq] += out * states[t - start + 1];
                    k_adj[t * hk + ik] += adj * v[(t * hv + iv) * V + j];
                    v_adj[(t * hv + iv) * V + j] += adj * k[t * hk + ik];
                    w_adj[iw] += adj * states[t - start];
                    adj *= w[iw];
                }
                init_adj[at] = adj;
            }
        }
        start += length;
    }
    vec![
        ("out.o", o),
        ("final.S", last),
        ("grad.q", q_adj),
        ("grad.k", k_adj),
        ("grad.v", v_adj),
        ("grad.w", w_adj),
        ("grad_init.S", init_adj),
    ]
}

pub fn assert_close(name: &str, found: &HostTensor, expected: &[f64]) {
    assert_eq!(found.n_elements(), expected.len(), "{name}");
    for (at, (a, b)) in found.to_f64().into_iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 2e-5, "{name}, element {at}: {a} instead of {b}");
    }
}
