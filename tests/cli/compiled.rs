//! Compiled code through the command line: recorded results, the cache, libraries, measurements.

use std::path::Path;
use std::process::Command;

use chunkwise::c_interface::filling;
use chunkwise_abi::{Manifest, Signature};
use chunkwise_compiler::reference;
use chunkwise_compiler::tensor::{Bundle, Tensor};
use chunkwise_dsl::instance::Instance;

use super::results::is_result;
use super::{Folder, Run, chunkwise, chunkwise_with, delta_rule, example, fixture, read};

/// The norm below which a gradient is judged by its absolute error: a root mean square of 1e-3.
fn floor(tensor: &Tensor) -> f64 {
    1e-3 * (tensor.data.len() as f64).sqrt()
}

#[test]
fn recorded_results_are_met_in_float32() {
    let folder = Folder::new();
    for name in ["linear_attention", "gated_delta_rule", "kda", "gla_strong_decay", "mamba1", "mlstm"] {
        let Some(fixture) = fixture(name) else { return };
        let expected = read(&fixture);
        for form in [&["chunkwise"][..], &["chunkwise", "--chunk", "100"], &["recurrent"], &["parallel"]] {
            let (file, output) = (example(name), folder.word("out"));
            let input = fixture.to_str().unwrap();
            let arguments = ["run", &file, "--input", input, "--output", &output, "--no-cache", "--backward", "--form"];
            chunkwise(&[arguments.as_slice(), form].concat()).well();
            let results = read(&output);
            for (tensor, expected) in expected.iter().filter(|(name, _)| is_result(name)) {
                let limit = if tensor.starts_with("grad") { 1e-4 } else { 2e-5 };
                let error = results[tensor].relative_error(expected, floor(expected));
                assert!(error <= limit, "{name} {form:?} {tensor}: {error:e}");
            }
        }
    }
}

#[test]
fn sixteen_bit_tensors_stay_near_the_reference_on_the_same_numbers() {
    let folder = Folder::new();
    for dtype in ["bf16", "f16"] {
        let (input, reference, output) =
            (folder.tensors("in", &delta_rule(2, 70, 2, 16, 16)), folder.word("reference"), folder.word("out"));
        let file = example("delta_rule");
        let run = |output: &str, form: &str| {
            let arguments = ["run", &file, "--input", &input, "--output", output, "--dtype", dtype, "--form", form];
            chunkwise(&[arguments.as_slice(), &["--no-cache"]].concat()).well()
        };
        run(&reference, "naive");
        run(&output, "chunkwise");
        let error = read(&output)["out.o"].relative_error(&read(&reference)["out.o"], 0.0);
        assert!(error <= 5e-3, "{dtype}: {error:e}");
    }
}

fn run_cached(folder: &Folder, cache: &str) -> Run {
    let (input, output) = (folder.tensors("in", &delta_rule(1, 20, 1, 4, 4)), folder.word("out"));
    let file = example("delta_rule");
    chunkwise_with(&["run", &file, "--input", &input, "--output", &output], &[("CHUNKWISE_CACHE", cache)])
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn code_is_kept_and_a_damaged_entry_made_anew() {
    let folder = Folder::new();
    let cache = folder.word("cache");
    run_cached(&folder, &cache).well();
    let first = read(folder.path("out"));
    let entries = files_below(&folder.path("cache"));
    assert_eq!(entries.len(), 1);
    let sound = std::fs::read(&entries[0]).unwrap();

    run_cached(&folder, &cache).well();
    assert_eq!(read(folder.path("out")), first);
    assert_eq!(std::fs::read(&entries[0]).unwrap(), sound);

    for damage in [sound[..sound.len() / 2].to_vec(), vec![], {
        let mut bytes = sound.clone();
        let middle = bytes.len() * 3 / 4;
        bytes[middle] ^= 0x40;
        bytes
    }] {
        std::fs::write(&entries[0], damage).unwrap();
        run_cached(&folder, &cache).well();
        assert_eq!(read(folder.path("out")), first);
        assert_eq!(std::fs::read(&entries[0]).unwrap(), sound);
    }
}

#[test]
fn a_cache_that_cannot_be_written_to_is_a_warning() {
    let folder = Folder::new();
    let run = run_cached(&folder, "/proc/nowhere").well();
    assert!(run.err.contains("warning: compiled kernels are not kept"), "{}", run.err);
}

/// A C program that knows nothing of us gets the reference's results from a library.
#[test]
fn a_library_serves_a_c_program() {
    let folder = Folder::new();
    let library = folder.word("lib");
    let names = ["gated_delta_rule", "mamba1"];
    let files = names.map(example);
    let sizes = "K=20,V=24,N=5";
    for name in names {
        // Sizes are refused where a recurrence lacks the axis, so each is checked by itself first.
        chunkwise(&["build", &example(name), "-o", &library, "--size", sizes]).refused(&["there is no axis"]);
    }
    chunkwise(&["build", &files[0], &files[1], "-o", &library, "--name", "pair"]).well();
    let manifest: Manifest =
        serde_json::from_str(&std::fs::read_to_string(folder.path("lib/pair.json")).unwrap()).unwrap();
    assert_eq!(manifest.recurrences.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), names);

    let make = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "example.c", "-L.", "-lpair"])
        .args(["-Wl,-rpath,$ORIGIN", "-lm", "-o", "example"])
        .current_dir(folder.path("lib"))
        .output()
        .unwrap();
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let said = Command::new(folder.path("lib/example")).output().unwrap();
    assert!(said.status.success());
    let said = String::from_utf8(said.stdout).unwrap();

    let names = names.map(str::to_owned);
    says_what_the_reference_says(&said, &names, &manifest.recurrences.iter().collect::<Vec<_>>(), 1e-4);
}

/// Whether an example's words are the reference's: norms of everything written, within `limit`.
pub fn says_what_the_reference_says(said: &str, names: &[String], signatures: &[&Signature], limit: f64) {
    for (name, signature) in names.iter().zip(signatures) {
        let source = std::fs::read_to_string(super::root().join(example(name))).unwrap();
        let program = chunkwise_dsl::compile(&source).unwrap().programs.remove(0);
        let sizes = program.axes.iter().map(|axis| (axis.name.clone(), 64)).collect();
        let instance = Instance::new(&program, &sizes, &Default::default()).unwrap();
        // The numbers of the example: element i of the tensor that was made as number p is base + scale·sin(0.7 i + p).
        let mut tensors = Bundle::new();
        let mut made: Vec<&str> = Vec::new();
        let kernels = [&signature.forward, &signature.forward_saving, &signature.backward];
        for arg in kernels.into_iter().flatten().flat_map(|kernel| &kernel.args) {
            if made.contains(&arg.name.as_str()) {
                continue;
            }
            let leading: &[usize] = match arg.role {
                chunkwise_abi::Role::Token => &[2, 70, 3],
                chunkwise_abi::Role::Head => &[3],
                chunkwise_abi::Role::Sequence | chunkwise_abi::Role::Chunk(_) => &[2, 3],
            };
            if arg.access == chunkwise_abi::Access::Read && !arg.name.starts_with("saved.") {
                let (base, scale) = filling(&program, &arg.name);
                let phase = made.len() as f64;
                let numbers = Tensor::from_fn(&[leading, &arg.inner].concat(), |i| {
                    f64::from((base + scale * (0.7 * i as f64 + phase).sin()) as f32)
                });
                tensors.insert(arg.name.clone(), numbers);
            }
            made.push(&arg.name);
        }
        let expected = reference::run_backward(&instance, &tensors).unwrap();
        let mut compared = 0;
        for (tensor, expected) in &expected {
            let label = format!("{name}.{tensor} sum ");
            let line = said.lines().find(|line| line.starts_with(&label));
            let Some(line) = line else { panic!("the example says nothing of {tensor}:\n{said}") };
            let norm: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            // Gradients of parameters come per sequence: their norm before the sum over sequences says nothing of it.
            let per_sequence = program.tensors.iter().any(|it| {
                it.kind == chunkwise_dsl::program::TensorKind::Param && *tensor == format!("grad.{}", it.name)
            });
            if !per_sequence {
                assert!(
                    (norm - expected.norm()).abs() <= limit * expected.norm().max(floor(expected)),
                    "{line}, expected {}",
                    expected.norm()
                );
                compared += 1;
            }
        }
        assert!(compared >= 7, "{name}");
    }
}

#[test]
fn libraries_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let (file, library) = (example("delta_rule"), folder.word("lib"));
    chunkwise(&["build", &file, "-o", &library, "--target", "cuda"]).refused(&["sm_80", "sm_90a"]);
    chunkwise(&["build", &file, "-o", &library, "--target", "cpu,sm_80"]).refused(&["a folder of its own"]);
    chunkwise(&["build", &file, "-o", &library, "--target", "cpu-plain,cpu-avx2"]).refused(&["a folder of its own"]);
    chunkwise(&["build", &file, &file, "-o", &library]).refused(&["two recurrences are called `delta_rule`"]);
    chunkwise(&["build", &file, "-o", &library, "--name", "../x"]).refused(&["cannot name a library"]);
    chunkwise(&["build", &file, "-o", &library, "--dtype", "f64"]).refused(&["f32, bf16 or f16"]);
    chunkwise(&["build", &file, "-o", &library, "--form", "naive"]).refused(&["not compiled"]);
    let blocked = folder.file("blocked", "");
    chunkwise(&["build", &file, "-o", &blocked]).refused(&["cannot be written"]);
    assert!(!folder.path("lib").exists());
}

#[test]
fn every_level_of_machine_code_has_a_text() {
    let file = example("linear_attention");
    for (stage, word) in [("mlir", "func"), ("llvm", "define"), ("asm", "ret")] {
        let text = chunkwise(&["emit", &file, "--to", stage, "--size", "K=16,V=16"]).well().out;
        assert!(text.contains(word), "{stage}");
    }
}

#[test]
fn bench_measures_both_directions() {
    let file = example("linear_attention");
    let size = ["--length", "128", "--heads", "2", "--size", "K=16,V=16", "--seconds", "0.02", "--json"];
    let json = chunkwise(&[["bench", &file].as_slice(), &size].concat()).well().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let figures = json["figures"].as_array().unwrap();
    assert_eq!(figures.iter().map(|it| &it["direction"]).collect::<Vec<_>>(), ["forward", "forward+backward"]);
    assert!(
        figures.iter().all(|it| it["median_seconds"].as_f64().unwrap() > 0.0 && it["flops"].as_f64().unwrap() > 0.0)
    );
    chunkwise(&["bench", &file, "--heads", "60000", "--length", "16777216"]).refused(&["would take about"]);
}

#[test]
fn verify_holds_for_compiled_code() {
    for name in ["gated_delta_rule", "mamba2"] {
        let json = chunkwise(&["verify", &example(name), "--cases", "2", "--json"]).well().out;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let checks = json["checks"].as_array().unwrap();
        assert!(checks.iter().any(|it| it["check"] == "chunkwise f32 compiled = reference"), "{checks:?}");
    }
}
