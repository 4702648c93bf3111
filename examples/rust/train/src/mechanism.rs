//! A recurrence from its `.cw` file, verified and compiled, as an operation of candle. Comes in: a file and the sizes
//! of its axes. Goes out: packed inputs `[B, T, H, …]` to outputs `[B, T, H, …]`, and the gradient back. It knows no
//! mechanism by name: what the file declares is what it packs and unpacks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use chunkwise::compiled;
use chunkwise::engine::{self, Place};
use chunkwise::source::Source;
use chunkwise::verify::{self, measure::Check};
use chunkwise_compiler::artifact::Parts;
use chunkwise_compiler::compile;
use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_compiler::derive::rule::Derivation;
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{AxisId, Program, Range, TensorKind};
use chunkwise_runtime::cpu::Options;
use chunkwise_runtime::execute::{CpuArtifact, ForwardRun};
use chunkwise_runtime::tensor::{ElementType, HostTensor, Tensors};

/// Part of a packed row: one tensor of one token and head.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name in the file.
    pub name: String,
    /// Size of each of its axes.
    pub sizes: Vec<usize>,
    /// What the file promises of it, which decides how the model makes it.
    pub range: Range,
}

impl Part {
    /// Numbers a token and head.
    pub fn width(&self) -> usize {
        self.sizes.iter().product()
    }
}

/// A recurrence, ready to train with.
pub struct Mechanism {
    /// Its name.
    pub name: String,
    /// The file's text.
    pub source: String,
    /// The recurrence, checked.
    pub program: Program,
    /// Its inputs, in the order of a packed row.
    pub inputs: Vec<Part>,
    /// Its output.
    pub output: Part,
    /// How the compiled form was derived.
    pub derivation: Derivation,
    /// Tokens a chunk.
    pub chunk: usize,
    /// Seconds from the checked program to code that runs.
    pub compile_seconds: f64,
    sizes: BTreeMap<String, usize>,
    artifact: CpuArtifact,
    options: Options,
    nanoseconds: AtomicU64,
}

impl Mechanism {
    /// Reads, checks, derives and compiles a file whose axes all have the same size.
    pub fn load(path: &Path, size: usize) -> Result<Mechanism> {
        let source = Source::read(path)?;
        let (mut programs, diagnostics) = source.check();
        if diagnostics.iter().any(|it| it.is_error()) || programs.len() != 1 {
            bail!("{} does not hold one recurrence without errors; `chunkwise check` says more", path.display());
        }
        let program = programs.remove(0);
        if let Some(param) = program.tensors.iter().find(|it| it.kind == TensorKind::Param) {
            bail!("`{}` is a parameter; this model makes inputs only", param.name);
        }
        let [output] = program.outputs.as_slice() else {
            bail!("`{}` has {} outputs; this model takes one", program.name, program.outputs.len());
        };
        let sizes: BTreeMap<String, usize> = program.axes.iter().map(|axis| (axis.name.clone(), size)).collect();
        let part = |name: &str, axes: &[AxisId], range: &Range| Part {
            name: name.to_owned(),
            sizes: axes.iter().map(|_| size).collect(),
            range: range.clone(),
        };
        let inputs = program.tensors.iter().map(|it| part(&it.name, &it.axes, &it.range)).collect();
        let output = part(&output.name, &output.axes, &Range::Any);

        let started = Instant::now();
        let instance = instance_of(&program, &sizes)?;
        let request = engine::request(Form::Chunkwise, None, 0, Parts::Both, Inside::default());
        let derived = compile::derive(&instance, &request)?;
        let made = compiled::prepare(&instance, &request, Parts::Both, chunkwise_abi::DType::F32, true)?;
        Ok(Mechanism {
            name: program.name.clone(),
            source: source.text,
            inputs,
            output,
            derivation: derived.derivation,
            chunk: derived.chunk,
            compile_seconds: started.elapsed().as_secs_f64(),
            sizes,
            artifact: made.artifact,
            options: Options::all_processors(),
            nanoseconds: AtomicU64::new(0),
            program,
        })
    }

    /// Compares every form, compiled and interpreted, with the reference, at the sizes that will be trained.
    pub fn verify(&self, cases: usize, progress: impl FnMut(usize, usize)) -> verify::Report {
        let constants = BTreeMap::new();
        let checks = Check::all(&self.program, &constants);
        let options =
            verify::Options { cases, seed: 0, constants, checks, sizes: self.sizes.clone(), place: Place::Cpu };
        verify::verify(&self.program, &options, progress)
    }

    /// The recurrence with the sizes it was compiled for.
    pub fn instance(&self) -> Result<Instance<'_>> {
        instance_of(&self.program, &self.sizes)
    }

    /// Numbers a token and head in a packed row.
    pub fn packed_width(&self) -> usize {
        self.inputs.iter().map(Part::width).sum()
    }

    /// Seconds spent in compiled code and in packing for it, since the last call.
    pub fn take_seconds(&self) -> f64 {
        self.nanoseconds.swap(0, Ordering::Relaxed) as f64 * 1e-9
    }

    /// Outputs `[B, T, H, width]` of packed inputs `[B, T, H, packed width]`.
    pub fn apply(self: &Arc<Mechanism>, packed: &Tensor) -> candle_core::Result<Tensor> {
        let tracked = packed.track_op();
        packed.contiguous()?.apply_op1(Operation { mechanism: Arc::clone(self), tracked, kept: Mutex::new(None) })
    }

    /// Rows `[B, T, H, …]` to one tensor for each input.
    fn unpack(&self, packed: &[f32], leading: &[usize; 3]) -> candle_core::Result<Tensors> {
        let mut tensors = Tensors::new();
        let mut begin = 0;
        for part in &self.inputs {
            let shape = [leading.as_slice(), &part.sizes].concat();
            let mut tensor = HostTensor::zeros(ElementType::F32, &shape).map_err(candle_core::Error::wrap)?;
            let width = part.width();
            let numbers = tensor.as_mut_f32().expect("it was made as float32");
            for (to, row) in numbers.chunks_exact_mut(width).zip(packed.chunks_exact(self.packed_width())) {
                to.copy_from_slice(&row[begin..begin + width]);
            }
            tensors.insert(part.name.clone(), tensor);
            begin += width;
        }
        Ok(tensors)
    }

    /// One gradient for each input to rows `[B, T, H, …]`.
    fn pack_gradients(&self, gradients: &Tensors, rows: usize) -> candle_core::Result<Vec<f32>> {
        let mut packed = vec![0.0; rows * self.packed_width()];
        let mut begin = 0;
        for part in &self.inputs {
            let width = part.width();
            // An input that no output depends on has no gradient; zero it is.
            if let Some(numbers) = gradients.get(&format!("grad.{}", part.name)).and_then(HostTensor::as_f32) {
                for (from, row) in numbers.chunks_exact(width).zip(packed.chunks_exact_mut(self.packed_width())) {
                    row[begin..begin + width].copy_from_slice(from);
                }
            }
            begin += width;
        }
        Ok(packed)
    }

    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        let passed = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(passed, Ordering::Relaxed);
        result
    }
}

fn instance_of<'p>(program: &'p Program, sizes: &BTreeMap<String, usize>) -> Result<Instance<'p>> {
    Instance::new(program, sizes, &BTreeMap::new())
        .map_err(|errors| anyhow!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
}

/// One use of a mechanism in a graph of candle.
struct Operation {
    mechanism: Arc<Mechanism>,
    /// Whether a gradient will be asked for.
    tracked: bool,
    /// Inputs, and what the forward kept for the backward.
    kept: Mutex<Option<(Tensors, Tensors)>>,
}

impl CustomOp1 for Operation {
    fn name(&self) -> &'static str {
        "recurrence"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mechanism = &self.mechanism;
        let (batch, tokens, heads, _) = layout.shape().dims4()?;
        let Some((begin, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("packed inputs have to be contiguous");
        };
        let packed = &storage.as_slice::<f32>()?[begin..end];
        mechanism.time(|| {
            let inputs = mechanism.unpack(packed, &[batch, tokens, heads])?;
            let results = if self.tracked {
                let ForwardRun { results, saved } = mechanism
                    .artifact
                    .run_saving(&inputs, None, &mechanism.options)
                    .map_err(candle_core::Error::wrap)?;
                *self.kept.lock().expect("nobody panics while it is held") = Some((inputs, saved));
                results
            } else {
                mechanism.artifact.run(&inputs, None, &mechanism.options).map_err(candle_core::Error::wrap)?
            };
            let output = &results[&format!("out.{}", mechanism.output.name)];
            let shape = Shape::from((batch, tokens, heads, mechanism.output.width()));
            let numbers = output.to_f32();
            mechanism.artifact.recycle(results);
            Ok((CpuStorage::F32(numbers), shape))
        })
    }

    fn bwd(&self, packed: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mechanism = &self.mechanism;
        let (batch, tokens, heads, _) = packed.dims4()?;
        let cotangent = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        mechanism.time(|| {
            let kept = self.kept.lock().expect("nobody panics while it is held").take();
            let Some((mut inputs, saved)) = kept else {
                candle_core::bail!("the gradient of a recurrence was asked for twice, or without its forward");
            };
            let shape = [[batch, tokens, heads].as_slice(), &mechanism.output.sizes].concat();
            let cotangent =
                HostTensor::from_f32(ElementType::F32, &shape, &cotangent).map_err(candle_core::Error::wrap)?;
            inputs.insert(format!("grad_out.{}", mechanism.output.name), cotangent);
            let gradients = mechanism
                .artifact
                .gradients(&inputs, &saved, None, &mechanism.options)
                .map_err(candle_core::Error::wrap)?;
            let packed_gradients = mechanism.pack_gradients(&gradients, batch * tokens * heads)?;
            mechanism.artifact.recycle(saved);
            mechanism.artifact.recycle(gradients);
            Ok(Some(Tensor::from_vec(packed_gradients, packed.shape(), packed.device())?))
        })
    }
}
