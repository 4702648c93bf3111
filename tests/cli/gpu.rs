//! GPUs through the command line: what is refused where there is none, what can be looked at without one, and, where
//! there is one, the results of the reference.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use chunkwise::options::FormChoice;
use chunkwise::precision::Precision;
use chunkwise::verify::case::Case;
use chunkwise::verify::measure::{Check, Way};
use chunkwise::verify::verify_case;
use chunkwise_abi::{Manifest, Signature};
use chunkwise_compiler::tensor::Tensor;
use chunkwise_runtime::cuda::assemble::Assembler;
use chunkwise_runtime::cuda::device::CudaDevice;
use chunkwise_runtime::cuda::error::CudaError;
use chunkwise_runtime::cuda::memory::Stream;
use chunkwise_runtime::library::load_for_gpu;

use super::compiled::says_what_the_reference_says;
use super::results::is_result;
use super::{Folder, chunkwise, chunkwise_with, delta_rule, example, fixture, read, root};

/// Whether there is a GPU; if not, a printed reason why the test says nothing.
fn gpu() -> bool {
    match CudaDevice::open(0) {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

#[test]
fn without_a_gpu_every_command_says_so_in_one_sentence() {
    let Err(error) = CudaDevice::open(0) else {
        println!("skipped: there is a GPU");
        return;
    };
    let folder = Folder::new();
    let (file, input, output) =
        (example("delta_rule"), folder.tensors("in", &delta_rule(1, 3, 1, 2, 2)), folder.word("out"));
    for arguments in [
        &["run", &file, "--input", &input, "--output", &output, "--device", "cuda"][..],
        &["run", &file, "--input", &input, "--output", &output, "--device", "cuda:3"],
        &["verify", &file, "--device", "cuda"],
        &["bench", &file, "--device", "cuda:0"],
        &["tune", &file],
    ] {
        let run = chunkwise(arguments).refused(&[]);
        assert_eq!(run.err.trim(), format!("error: {error}"), "{arguments:?}");
        assert_eq!(run.out, "");
    }
    assert!(!folder.path("out").exists());
    let doctor = chunkwise(&["doctor"]).well().out;
    assert!(doctor.contains(&error.to_string()), "{doctor}");
}

#[test]
fn devices_and_families_that_are_none_are_refused() {
    let file = example("delta_rule");
    for word in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "cuda:0:0"] {
        chunkwise(&["verify", &file, "--device", word])
            .refused(&[&format!("there is no device `{word}`"), "cuda:NUMBER"]);
    }
    chunkwise(&["verify", &file, "--arch", "sm_80"]).refused(&["--device cuda only"]);
    chunkwise(&["tune", &file, "--device", "cpu"]).refused(&["only GPUs are tuned for"]);
    chunkwise(&["emit", &file, "--to", "ptx", "--arch", "sm_70"]).refused(&["sm_80", "sm_90a"]);
    chunkwise(&["emit", &file, "--to", "asm", "--arch", "sm_80"]).refused(&["--to ptx or --to sass"]);
    let nowhere = [("CHUNKWISE_PTXAS", "/nowhere/ptxas")];
    chunkwise_with(&["emit", &file, "--to", "sass"], &nowhere).refused(&["/nowhere/ptxas", "install the CUDA toolkit"]);
}

#[test]
fn code_for_a_gpu_has_a_text_at_every_level() {
    let folder = Folder::new();
    let file = example("gated_delta_rule");
    for arch in ["sm_80", "sm_90a"] {
        let emit = |to: &str| {
            let arguments = ["emit", &file, "--to", to, "--arch", arch, "--dtype", "bf16", "--size", "K=32,V=32"];
            chunkwise(&arguments).well().out
        };
        let ptx = emit("ptx");
        assert!(ptx.contains(&format!(".target {arch}")) && ptx.contains(".entry cw_gated_delta_rule"), "{ptx}");
        assert!(emit("llvm").contains("nvptx64-nvidia-cuda"));
        let tile = folder.file("kernel.cwt", emit("tile"));
        let again = chunkwise(&["emit", &tile, "--to", "ptx", "--arch", arch, "--dtype", "bf16"]).well().out;
        assert!(again.contains(&format!(".target {arch}")) && again.contains(".entry kernel"), "{again}");
        if let Err(error) = Assembler::find() {
            println!("skipped: {error}");
            continue;
        }
        let sass = emit("sass");
        assert!(sass.contains(&format!("for '{arch}'")) && sass.contains("EXIT"), "{sass}");
        // Products are the tensor cores'.
        assert!(sass.contains("HMMA") || sass.contains("HGMMA"));
    }
}

#[test]
fn a_library_for_gpus_serves_a_c_program() {
    let folder = Folder::new();
    let names = ["gated_delta_rule", "mamba1"];
    let files = names.map(example);
    let library = folder.word("lib");
    let build = ["build", &files[0], &files[1], "-o", &library, "--name", "pair", "--target", "sm_90a,sm_80"];
    chunkwise(&build).well();
    let text = std::fs::read_to_string(folder.path("lib/pair.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&text).unwrap();
    assert_eq!((manifest.recurrences.len(), manifest.gpu.len()), (0, 4));
    let make = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "example.c", "-L.", "-lpair"])
        .args(["-Wl,-rpath,$ORIGIN", "-lm", "-ldl", "-o", "example"])
        .current_dir(folder.path("lib"))
        .output()
        .unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let run = Command::new(folder.path("lib/example")).output().unwrap();
    let device = match CudaDevice::open(0) {
        Ok(device) => device,
        Err(CudaError::NoDriver) => {
            assert_eq!(run.status.code(), Some(1));
            assert_eq!(String::from_utf8_lossy(&run.stderr), "there is no NVIDIA driver\n");
            return;
        }
        Err(error) => return println!("skipped: {error}"),
    };
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let said = String::from_utf8(run.stdout).unwrap();
    let signatures: Vec<&Signature> = manifest.gpu.iter().step_by(2).map(|it| &it.signature).collect();
    says_what_the_reference_says(&said, &names.map(str::to_owned), &signatures, 1e-4);

    // And from Rust.
    let stream = Stream::new(&device).unwrap();
    // SAFETY: made above.
    let artifacts = unsafe { load_for_gpu(&folder.path("lib/pair.json"), &stream) }.unwrap();
    assert_eq!(artifacts.iter().map(|it| it.signature.name.as_str()).collect::<Vec<_>>(), names);
}

#[test]
fn a_gpu_gives_the_reference_s_results() {
    if !gpu() {
        return;
    }
    let folder = Folder::new();
    let (input, reference, output) =
        (folder.tensors("in", &delta_rule(2, 200, 3, 48, 64)), folder.word("reference"), folder.word("out"));
    let file = example("delta_rule");
    for (dtype, allowed) in [("f32", 2e-5), ("bf16", 5e-3), ("f16", 5e-3)] {
        let run = |output: &str, more: &[&str]| {
            let arguments = ["run", &file, "--input", &input, "--output", output, "--dtype", dtype];
            let cache = [("CHUNKWISE_CACHE", folder.word("cache"))];
            let cache = [(cache[0].0, cache[0].1.as_str())];
            chunkwise_with(&[arguments.as_slice(), more].concat(), &cache).well()
        };
        run(&reference, &["--form", "naive"]);
        for form in ["chunkwise", "recurrent"] {
            // Keys that are so much alike ask for more digits of operands than bfloat16 has.
            let schedule: &[&str] = if (form, dtype) == ("chunkwise", "bf16") { &["--schedule", "fused"] } else { &[] };
            let on_gpu = [&["--form", form, "--device", "cuda"], schedule].concat();
            run(&output, &on_gpu);
            let first = read(&output);
            let error = first["out.o"].relative_error(&read(&reference)["out.o"], 0.0);
            assert!(error <= allowed, "{form} {dtype}: {error:e}");
            // The second time the code is found and not made.
            run(&output, &on_gpu);
            assert_eq!(read(&output), first, "{form} {dtype}");
        }
    }
}

/// Every example whose results were recorded: float32 against them, the narrow types against the reference on the same
/// rounded numbers. Gates have gradients that nearly cancel, and twice the budget in the narrow types.
#[test]
fn recorded_results_are_met_on_a_gpu() {
    if !gpu() {
        return;
    }
    let folder = root().join("examples/mechanisms");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".cw").map(str::to_owned))
        .collect();
    names.sort();
    let next = AtomicUsize::new(0);
    let wrong: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(8) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let worst = recorded_on_a_gpu(name, &wrong);
                    println!("{name}: {}", worst.join(", "));
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The worst errors of a recorded example, by type and form; what is too far off goes to `wrong`.
fn recorded_on_a_gpu(name: &str, wrong: &Mutex<Vec<String>>) -> Vec<String> {
    let Some(fixture) = fixture(name) else { return vec!["no recorded tensors".to_owned()] };
    let folder = Folder::new();
    let (file, input) = (example(name), fixture.to_str().unwrap().to_owned());
    let (reference, output) = (folder.word("reference"), folder.word("out"));
    let recorded = read(&fixture);
    // Below this norm a result is judged by its absolute error: a root mean square of 1e-3.
    let floor = |tensor: &Tensor| 1e-3 * (tensor.data.len() as f64).sqrt();
    let mut said = Vec::new();
    for dtype in ["f32", "bf16", "f16"] {
        let run = |output: &str, more: &[&str]| {
            let arguments = ["run", &file, "--input", &input, "--output", output, "--dtype", dtype, "--backward"];
            chunkwise(&[arguments.as_slice(), more].concat())
        };
        let expected = if dtype == "f32" {
            recorded.clone()
        } else {
            run(&reference, &["--form", "naive"]).well();
            read(&reference)
        };
        let in_spans = ["fused, chunk 16, spans 2", "prepare + pass, chunk 32, spans 1"];
        let in_spans = in_spans.iter().filter(|_| dtype == "bf16").map(|schedule| ("chunkwise", Some(*schedule)));
        for (form, schedule) in [("chunkwise", None), ("recurrent", None)].into_iter().chain(in_spans) {
            let asked = schedule.map_or(vec![], |schedule| vec!["--schedule", schedule]);
            let arguments = ["--form", form, "--device", "cuda", "--no-cache"];
            let ran = run(&output, &[arguments.as_slice(), &asked].concat());
            let form = schedule.unwrap_or(form);
            // Theirs are scans.
            let none = ["hgrn", "mamba1"].contains(&name) && schedule.is_some();
            if none && ran.code == 2 && ran.err.contains("no spans") {
                continue;
            }
            if ran.code != 0 {
                wrong.lock().unwrap().push(format!("{name} {dtype} {form}: {}", ran.err.trim()));
                continue;
            }
            let results = read(&output);
            let mut worst = (0.0, String::new());
            for (tensor, expected) in expected.iter().filter(|(name, _)| is_result(name)) {
                let limit = match (dtype, tensor.starts_with("grad")) {
                    ("f32", false) => 2e-5,
                    ("f32", true) => 1e-4,
                    (_, false) => 5e-3,
                    (_, true) => 2e-2,
                };
                let error = results[tensor].relative_error(expected, floor(expected));
                if error.is_nan() || error > limit {
                    wrong
                        .lock()
                        .unwrap()
                        .push(format!("{name} {dtype} {form} {tensor}: {error:.1e}, allowed {limit:e}"));
                }
                if error.is_nan() || error > worst.0 {
                    worst = (error, tensor.clone());
                }
            }
            said.push(format!("{dtype} {form} {:.1e} ({})", worst.0, worst.1));
        }
    }
    said
}

#[test]
fn the_checks_made_for_gpus_hold_on_a_processor_too() {
    let file = example("gated_delta_rule");
    chunkwise(&["verify", &file, "--long", "700", "--size", "K=24,V=20"]).well();
    let source = std::fs::read_to_string(root().join(&file)).unwrap();
    let program = chunkwise_dsl::compile(&source).unwrap().programs.remove(0);
    let chunkwise = Way::from(FormChoice::Chunkwise);
    let checks = [Precision::Bf16, Precision::F16].map(|precision| Check::NearRounding(chunkwise, precision));
    let case = Case { tokens: 150, ..Case::draw_wide(&program, 3, 0) };
    let report = verify_case(&program, &Default::default(), &checks, &case);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(report.rows.len(), 4, "outputs and gradients, twice");
    for worst in report.rows.iter().filter_map(|row| row.worst.as_ref()) {
        // A processor computes in float32, so that nothing but rounding of inputs and results is left.
        assert!((0.5..1.1).contains(&worst.error), "{worst:?}");
    }
    // What so few rounding errors come to is a matter of chance.
    for tokens in [0, 1, 7] {
        let report = verify_case(&program, &Default::default(), &checks, &Case { tokens, ..case.clone() });
        assert!(report.rows.is_empty() && report.void == 1, "{tokens}: {:?}", report.rows);
    }
}

#[test]
fn verify_holds_on_a_gpu() {
    if !gpu() {
        return;
    }
    let verify = ["verify", &example("gated_delta_rule"), "--device", "cuda", "--cases", "2", "--json"];
    let json: serde_json::Value = serde_json::from_str(&chunkwise(&verify).well().out).unwrap();
    let checks = json["checks"].as_array().unwrap();
    for check in ["chunkwise bf16 compiled = reference", "chunkwise causal, bitwise"] {
        assert!(checks.iter().any(|it| it["check"] == check && it["result"] == "ok"), "{check}: {checks:?}");
    }
}

#[test]
fn bench_on_a_gpu_stands_on_a_floor() {
    if !gpu() {
        return;
    }
    let size = ["--batch", "2", "--length", "1024", "--heads", "4", "--size", "K=64,V=64", "--seconds", "0.05"];
    let bench = ["bench", &example("linear_attention"), "--device", "cuda", "--dtype", "bf16", "--json"];
    let json = chunkwise(&[bench.as_slice(), &size].concat()).well().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["copy_bytes_per_second"].as_f64().unwrap() > 1e9);
    let figures = json["figures"].as_array().unwrap();
    let names = ["forward", "forward+backward", "backward"];
    assert_eq!(figures.iter().map(|it| it["direction"].as_str().unwrap()).collect::<Vec<_>>(), names);
    for figure in figures {
        for number in ["gpu_seconds", "launch_seconds", "floor_bytes", "times_floor"] {
            assert!(figure[number].as_f64().unwrap() > 0.0, "{number}: {figure}");
        }
    }
    // q, k, v and o of 2·1024·4 rows of 64 numbers of 2 bytes; the first and last states of 8 heads, 64·64 of 4 bytes.
    assert_eq!(figures[0]["floor_bytes"].as_f64().unwrap(), (4 * 2 * 1024 * 4 * 64 * 2 + 2 * 8 * 64 * 64 * 4) as f64);
}
