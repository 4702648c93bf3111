//! GPUs: what is said where there is none, and, where there is one, the same results as on a processor.

use crate::ptx::{module, recurrence};
use crate::recurrence::{Case, Numbers, assert_close, expected, signature};
use chunkwise_runtime::abi::gpu::{GpuModule, GpuRecurrence, Grid};
use chunkwise_runtime::abi::{Access, KernelSignature};
use chunkwise_runtime::cache::Cache;
use chunkwise_runtime::cuda::assemble::{AssembleError, Assembler, disassemble};
use chunkwise_runtime::cuda::device::CudaDevice;
use chunkwise_runtime::cuda::error::CudaError;
use chunkwise_runtime::cuda::execute::{Direction, GpuArtifact};
use chunkwise_runtime::cuda::measure;
use chunkwise_runtime::cuda::memory::Stream;
use chunkwise_runtime::error::LaunchError;
use chunkwise_runtime::tensor::HostTensor;

const RESULTS: [&str; 7] = ["out.o", "final.S", "grad.q", "grad.k", "grad.v", "grad.w", "grad_init.S"];

/// The first GPU, or a printed reason why the test says nothing.
fn gpu() -> Option<Stream> {
    match CudaDevice::open(0) {
        Ok(device) => Some(Stream::new(&device).expect("a GPU that opens gives a stream")),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// The assembler, or a printed reason. One that is named must be there.
fn assembler() -> Option<Assembler> {
    match Assembler::find() {
        Ok(assembler) => Some(assembler),
        Err(error) => {
            let named = std::env::var_os("CHUNKWISE_PTXAS").is_some();
            assert!(!named || std::env::var_os("CHUNKWISE_TEST_DRIVER").is_some(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

fn load(stream: &Stream, recurrence: &GpuRecurrence) -> Result<GpuArtifact, CudaError> {
    // SAFETY: the kernels of these tests keep the contract, but for those whose test is that they do not.
    unsafe { GpuArtifact::load(stream, recurrence, None, &Cache::off()) }
}

fn cases() -> Vec<Case> {
    let packed = |lengths: &[usize], heads| Case { lengths: lengths.to_vec(), packed: true, heads };
    vec![
        Case::equal(1, 1, [1; 4]),
        Case::equal(2, 7, [2; 4]),
        Case::equal(3, 4, [4, 2, 1, 2]),
        Case::equal(2, 5, [1, 3, 3, 1]),
        Case::equal(2, 0, [2, 1, 2, 2]),
        Case::equal(37, 150, [6, 6, 2, 3]),
        packed(&[3, 0, 5, 1], [2; 4]),
        packed(&[6, 3], [2, 4, 1, 4]),
        packed(&[0, 0], [2; 4]),
        packed(&[], [1; 4]),
    ]
}

#[test]
fn a_machine_without_a_gpu_says_so_in_one_sentence() {
    match CudaDevice::open(0) {
        Ok(device) => {
            let facts = device.facts();
            assert!(!facts.name.is_empty() && facts.multiprocessors > 0 && facts.memory > 0, "{facts:?}");
            let found = CudaDevice::count().unwrap();
            let error = CudaDevice::open(found).unwrap_err();
            assert_eq!(error, CudaError::NoSuchDevice { asked: found, found });
        }
        Err(error) => {
            let said = error.to_string();
            assert!(error.is_a_limit() && !said.contains('\n') && said.len() < 200, "{said}");
            println!("skipped: {said}");
        }
    }
}

#[test]
fn outputs_and_gradients_agree_with_plain_loops() {
    let Some(stream) = gpu() else { return };
    let artifact = load(&stream, &recurrence()).unwrap();
    let mut numbers = Numbers(11);
    for case in cases() {
        let inputs = case.tensors(&mut numbers, 0);
        let offsets = case.offsets();
        let results = artifact.run_backward(&inputs, offsets.as_deref()).unwrap();
        assert_eq!(results.keys().collect::<Vec<_>>(), RESULTS);
        for (name, values) in expected(&case, &inputs) {
            // Sums over 37 sequences and 150 tokens.
            let scale = values.iter().fold(1.0f64, |most, value| most.max(value.abs()));
            let scaled: Vec<f64> = values.iter().map(|value| value / scale).collect();
            let found = results[name].to_f64().into_iter().map(|value| value / scale).collect::<Vec<_>>();
            let found = HostTensor::from_f64(results[name].dtype(), results[name].shape(), &found).unwrap();
            assert_close(name, &found, &scaled);
        }
        for (gradient, source) in [("grad.q", "q"), ("grad.v", "v"), ("grad.w", "w"), ("grad_init.S", "init.S")] {
            assert_eq!(results[gradient].shape(), inputs[source].shape());
        }
        for _ in 0..3 {
            let again = artifact.run_backward(&inputs, offsets.as_deref()).unwrap();
            assert_eq!(bits(&again), bits(&results));
        }
        let forward = artifact.run(&inputs, offsets.as_deref()).unwrap();
        assert_eq!(forward.keys().collect::<Vec<_>>(), RESULTS[..2].iter().collect::<Vec<_>>());
        for (name, tensor) in &forward {
            assert_eq!(tensor.to_f32(), results[name].to_f32());
        }
    }
}

fn bits(results: &chunkwise_runtime::tensor::Tensors) -> Vec<Vec<u32>> {
    results.values().map(|tensor| tensor.to_f32().into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn absent_first_states_and_cotangents_are_zero() {
    let Some(stream) = gpu() else { return };
    let artifact = load(&stream, &recurrence()).unwrap();
    let case = Case::equal(2, 5, [2; 4]);
    let mut inputs = case.tensors(&mut Numbers(5), 0);
    for name in ["init.S", "grad_final.S"] {
        inputs.shift_remove(name);
    }
    let found = artifact.run_backward(&inputs, None).unwrap();
    for name in ["init.S", "grad_final.S"] {
        let zeros = HostTensor::zeros(chunkwise_runtime::tensor::ElementType::F32, &[2, 2, 3]).unwrap();
        inputs.insert(name.to_string(), zeros);
    }
    assert_eq!(bits(&found), bits(&artifact.run_backward(&inputs, None).unwrap()));
    inputs.shift_remove("k");
    let error = artifact.run(&inputs, None).unwrap_err();
    assert!(matches!(error, CudaError::Launch(LaunchError::Missing { .. })), "{error}");
}

#[test]
fn poison_shows_what_a_kernel_leaves_out() {
    let Some(stream) = gpu() else { return };
    let mut recurrence = recurrence();
    let signature = recurrence.signature.forward.clone().unwrap();
    recurrence.forward = Some(module(signature, vec![], &[("idle", Grid::Item, String::new())]));
    let artifact = load(&stream, &recurrence).unwrap();
    let inputs = Case::equal(2, 5, [2; 4]).tensors(&mut Numbers(7), 0);
    for tensor in artifact.run(&inputs, None).unwrap().values() {
        assert!(tensor.to_f32().iter().all(|x| x.is_nan()));
    }
}

#[test]
fn a_call_stays_on_the_gpu_and_is_launched_again_and_again() {
    let Some(stream) = gpu() else { return };
    let artifact = load(&stream, &recurrence()).unwrap();
    let case = Case::equal(2, 9, [2; 4]);
    let inputs = case.tensors(&mut Numbers(8), 0);
    let directions = [Direction::ForwardSaving, Direction::Backward];
    let expected = artifact.run_backward(&inputs, None).unwrap();
    let mut resident = artifact.resident(&directions, &inputs, None).unwrap();
    // 2·9/2 + 2 slots of saved states; states of 9 tokens; 4 blocks' workspace; 2 heads and V = 3 each.
    assert_eq!(resident.extra_bytes(), (11 * 2 * 3 + 2 * 9 * 2 * 3) * 4 + 4 * 256);
    for _ in 0..3 {
        resident.poison().unwrap();
        for direction in directions {
            resident.launch(direction).unwrap();
        }
        let results = resident.results(Direction::Backward).unwrap();
        assert_eq!(results["grad.q"].to_f32(), expected["grad.q"].to_f32());
    }
    let times = measure::times(&mut resident, &directions, 0.05).unwrap();
    assert!(times.gpu > 0.0 && times.best <= times.gpu && times.launch > 0.0 && times.runs >= 10, "{times:?}");
    assert!(resident.launch(Direction::Forward).is_err());
    assert!(measure::copy_bandwidth(&stream).unwrap() > 1e9);
}

#[test]
fn data_of_a_measurement_repeat_what_is_given() {
    let Some(stream) = gpu() else { return };
    let artifact = load(&stream, &recurrence()).unwrap();
    let case = Case::equal(1, 2, [2; 4]);
    let period = case.tensors(&mut Numbers(9), 0);
    let whole = Case::equal(3, 5, [2; 4]);
    let batch = chunkwise_runtime::batch::Batch {
        sequences: chunkwise_runtime::batch::Sequences::Equal { count: 3, length: 5 },
        heads: 2,
    };
    let resident = artifact.resident_of(&[Direction::Forward], batch, &period).unwrap();
    let found = resident.tensor("v").unwrap().unwrap();
    let given = period["v"].to_f32();
    assert_eq!(found.shape(), whole.tensors(&mut Numbers(1), 0)["v"].shape());
    assert!(found.to_f32().iter().enumerate().all(|(at, x)| *x == given[at % given.len()]));
}

#[test]
fn memory_is_used_again_and_its_end_is_told() {
    let Some(stream) = gpu() else { return };
    let first = stream.buffer(3 << 20, "a test").unwrap();
    let address = first.address();
    drop(first);
    assert_eq!(stream.buffer(3 << 20, "a test").unwrap().address(), address);
    let error = stream.buffer(1 << 50, "a very large tensor").unwrap_err();
    assert!(matches!(&error, CudaError::OutOfMemory { what, .. } if what == "a very large tensor"), "{error}");
    // And the GPU is as good as before.
    assert!(stream.buffer(1 << 20, "a test").is_ok());
}

/// The refusal of a module that is not what it says.
fn refusal(stream: &Stream, change: impl FnOnce(&mut GpuModule)) -> String {
    let mut recurrence = recurrence();
    change(recurrence.forward.as_mut().unwrap());
    load(stream, &recurrence).unwrap_err().to_string()
}

#[test]
fn modules_that_are_not_what_they_say_are_refused() {
    let Some(stream) = gpu() else { return };
    let said = refusal(&stream, |module| module.kernels[0].symbol = "elsewhere".into());
    assert!(said.contains("the code has no kernel `elsewhere`"), "{said}");
    let said = refusal(&stream, |module| module.temporaries.clear());
    assert!(said.contains("takes parameters of [352] bytes, and should take one of 312"), "{said}");
    let said = refusal(&stream, |module| module.kernels[0].threads = 2048);
    assert!(said.contains("2048 threads"), "{said}");
    let said = refusal(&stream, |module| module.kernels[1].shared_bytes = 1 << 24);
    assert!(said.contains("the shared memory of `outputs`"), "{said}");
    let said = refusal(&stream, |module| module.kernels[0].workspace_bytes = 100);
    assert!(said.contains("100 bytes of workspace"), "{said}");
    let said = refusal(&stream, |module| module.arch = "sm_77a".into());
    assert!(said.contains("made for sm_77a"), "{said}");
    let said = refusal(&stream, |module| module.ptx = module.ptx.replace("fma.rn.f32", "fma.rm.f33"));
    assert!(said.contains("the driver does not take the code of `forward`"), "{said}");
    let said = refusal(&stream, |module| module.ptx = module.ptx.replace(".version 7.0", ".version 99.0"));
    assert!(said.contains("too old") || said.contains("does not take"), "{said}");
}

/// Run in a process of its own: after a fault nothing works any more.
#[test]
#[ignore = "run by `a_fault_is_told_and_takes_only_its_own_process`"]
fn faulty() {
    let Some(stream) = gpu() else { return };
    let mut recurrence = recurrence();
    let signature = recurrence.signature.forward.clone().unwrap();
    let body = "  mov.u64 at, 16;\n  mov.f32 x, 0f00000000;\n  st.global.f32 [at], x;\n".to_string();
    recurrence.forward = Some(module(signature, vec![], &[("faulty", Grid::Item, body)]));
    let artifact = load(&stream, &recurrence).unwrap();
    let inputs = Case::equal(2, 5, [2; 4]).tensors(&mut Numbers(7), 0);
    for _ in 0..2 {
        let error = artifact.run(&inputs, None).unwrap_err();
        assert!(matches!(error, CudaError::Fault { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("broke off `forward`") && said.contains("ILLEGAL_ADDRESS"), "{said}");
    }
    println!("the fault was told");
}

#[test]
fn a_fault_is_told_and_takes_only_its_own_process() {
    let Some(stream) = gpu() else { return };
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["cuda::faulty", "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("the fault was told"), "{said}");
    stream.synchronize().unwrap();
}

#[test]
fn the_kernels_of_these_tests_assemble() {
    let Some(assembler) = assembler() else { return };
    let recurrence = recurrence();
    for module in [&recurrence.forward, &recurrence.forward_saving, &recurrence.backward].into_iter().flatten() {
        for arch in ["sm_80", "sm_90"] {
            let made = assembler.assemble(&module.ptx, arch).unwrap();
            assert_eq!(&made.cubin[..4], b"\x7fELF");
            for kernel in &module.kernels {
                assert!(made.report.contains(&format!("'{}' for '{arch}'", kernel.symbol)), "{}", made.report);
            }
        }
    }
    let error = assembler.assemble("nonsense", "sm_80").unwrap_err();
    assert!(matches!(error, AssembleError::Refused { tool: "ptxas", .. }), "{error}");
}

#[test]
fn machine_code_has_a_text() {
    let Some(assembler) = assembler() else { return };
    let module = recurrence().backward.unwrap();
    let made = assembler.assemble(&module.ptx, "sm_90").unwrap();
    match disassemble(&made.cubin) {
        Ok(text) => assert!(text.contains("gradients") && text.contains("EXIT"), "{text}"),
        Err(error @ AssembleError::Missing { .. }) => println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn assembled_code_gives_what_the_driver_s_own_gives() {
    let Some(stream) = gpu() else { return };
    let recurrence = recurrence();
    for assembler in [None, assembler()] {
        assembled_gives_the_same(&stream, &recurrence, assembler.as_ref());
    }
}

fn assembled_gives_the_same(stream: &Stream, recurrence: &GpuRecurrence, assembler: Option<&Assembler>) {
    let folder = std::env::temp_dir().join(format!("chunkwise-cubins-{}", std::process::id()));
    let cache = Cache::at(folder.clone());
    let inputs = Case::equal(2, 5, [2; 4]).tensors(&mut Numbers(7), 0);
    let by_driver = load(stream, recurrence).unwrap().run_backward(&inputs, None).unwrap();
    // Made, then found.
    for _ in 0..2 {
        // SAFETY: as `load`.
        let artifact = unsafe { GpuArtifact::load(stream, recurrence, assembler, &cache) }.unwrap();
        assert_eq!(artifact.warning, None);
        let found = artifact.run_backward(&inputs, None).unwrap();
        for name in RESULTS {
            assert_eq!(found[name].to_f32(), by_driver[name].to_f32(), "{name}");
        }
    }
    // Nothing is kept where nothing could be assembled.
    let _ = std::fs::remove_dir_all(folder);
}

/// Everything here that wants a GPU, on a driver made of C here and now.
#[test]
fn the_tests_of_this_file_hold_on_a_driver_without_a_gpu() {
    let folder = std::env::temp_dir().join(format!("chunkwise-driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtime/driver.c");
    let mut cc = std::process::Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(folder.join("libcuda.so"))
        .arg(source);
    let made = cc.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["cuda::", "--skip", "the_tests_of_this_file_hold", "--nocapture"])
        .env("LD_LIBRARY_PATH", &folder)
        // Its machine code would be for another machine.
        .env("CHUNKWISE_PTXAS", folder.join("none"))
        .env("CHUNKWISE_TEST_DRIVER", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(!said.contains("no NVIDIA driver"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_description_survives_being_written_down() {
    let recurrence = recurrence();
    let text = serde_json::to_string(&recurrence).unwrap();
    assert_eq!(serde_json::from_str::<GpuRecurrence>(&text).unwrap(), recurrence);
    let written = |kernel: &Option<KernelSignature>| {
        let args = &kernel.as_ref().unwrap().args;
        args.iter().filter(|arg| arg.access == Access::Write).count()
    };
    assert_eq!((written(&signature().forward), written(&signature().backward)), (2, 5));
}
