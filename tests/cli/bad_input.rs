//! Everything a user can get wrong, and what the command line says to it.

use chunkwise::tensors::TensorFile;
use chunkwise_compiler::tensor::Bundle;

use super::{Folder, chunkwise, delta_rule, example, read, tensor};

/// `run` of the delta rule in the reference, which every build has.
fn run_delta(input: &str, output: &str, more: &[&str]) -> super::Run {
    let file = example("delta_rule");
    chunkwise(&[&["run", &file, "--input", input, "--output", output, "--form", "naive"], more].concat())
}

#[test]
fn programs_that_cannot_be_read_are_refused_in_words() {
    let folder = Folder::new();
    chunkwise(&["check", "nowhere.cw"]).refused(&["`nowhere.cw` cannot be read", "no such file"]);
    chunkwise(&["check", "examples"]).refused(&["is a folder"]);
    chunkwise(&["check", &folder.file("x.cw", b"recurrence\n\xff\xfe")]).refused(&["line 2", "not UTF-8"]);
    chunkwise(&["verify", &folder.file("empty.cw", "// nothing\n")]).refused(&["holds no recurrence"]);
    chunkwise(&["check", &folder.file("large.cw", vec![b'x'; 2 << 20])]).refused(&["larger than 1 MiB"]);
}

#[test]
fn a_refused_program_is_drawn_with_its_source_and_every_error() {
    let folder = Folder::new();
    let source = "recurrence r {\n    axis K, V\n    input q: [K], k: [K], v: [V]\n    state S: [K, V]\n    S = S * S + k * w\n    output o: [V] = q @ S\n}\n";
    let path = folder.file("r.cw", source);
    let run = chunkwise(&["check", &path]).refused(&["error[E", "S = S * S + k * w", "r.cw:5:"]);
    assert!(run.err.matches("error[E").count() >= 1);
    let json: serde_json::Value = serde_json::from_str(&chunkwise(&["check", "--json", &path]).out).unwrap();
    assert!(json["errors"].as_u64().unwrap() >= 1);
    assert_eq!(json["diagnostics"][0]["labels"][0]["at"]["line"], 5);
    // A program with errors goes nowhere else either.
    chunkwise(&["verify", &path]).refused(&["error[E"]);
    chunkwise(&["emit", &path, "--to", "graph"]).refused(&["error[E"]);
}

#[test]
fn tensors_that_are_missing_misnamed_or_misshapen_are_named() {
    let folder = Folder::new();
    let output = folder.word("out.safetensors");
    let case = |name: &str, change: &dyn Fn(&mut Bundle), words: &[&str]| {
        let mut tensors = delta_rule(2, 5, 2, 3, 4);
        change(&mut tensors);
        run_delta(&folder.tensors(name, &tensors), &output, &[]).refused(words);
        assert!(!folder.path("out.safetensors").exists());
    };
    let put = |bundle: &mut Bundle, name: &str, shape: &[usize]| {
        bundle.insert(name.to_owned(), tensor(shape, |_| 0.5));
    };
    case("a", &|t| drop(t.shift_remove("beta")), &["input `beta` is missing", "[B, T, H]"]);
    case("b", &|t| put(t, "bta", &[2, 5, 2]), &["no tensor `bta`", "did you mean `beta`?"]);
    case("c", &|t| put(t, "init.Q", &[2, 2, 3, 4]), &["no tensor `init.Q`"]);
    case("d", &|t| put(t, "k", &[2, 5, 3]), &["`k` has shape [2, 5, 3]", "4 were expected", "[B, T, H, K]"]);
    case("e", &|t| put(t, "k", &[2, 5, 2, 7]), &["`q` says K=3, but `k` says K=7"]);
    case("f", &|t| put(t, "v", &[2, 6, 2, 4]), &["T=5", "T=6", "number of tokens"]);
    case("g", &|t| put(t, "init.S", &[2, 2, 4, 3]), &["init.S", "K=4", "V=3"]);
    case("h", &|t| put(t, "v", &[2, 5, 3, 4]), &["`v` has H=3", "divide"]);
    case("i", &|t| put(t, "init.S", &[2, 1, 3, 4]), &["`init.S` has H=1 heads"]);
    // Everything at once, in one run.
    case(
        "j",
        &|t| {
            t.shift_remove("q");
            put(t, "x", &[1]);
            put(t, "v", &[1]);
        },
        &["`q` is missing", "no tensor `x`", "`v` has shape [1]"],
    );
}

#[test]
fn results_in_the_input_are_passed_over_and_other_types_refused() {
    let folder = Folder::new();
    let mut tensors = delta_rule(1, 3, 1, 2, 2);
    for name in ["out.o", "final.S", "grad.q", "grad_init.S", "out.anything"] {
        tensors.insert(name.to_owned(), tensor(&[7], |_| f64::NAN));
    }
    let input = folder.tensors("in", &tensors);
    run_delta(&input, &folder.word("out"), &[]).well();
    assert_eq!(read(folder.path("out")).keys().collect::<Vec<_>>(), ["final.S", "out.o"]);

    let header = r#"{"q":{"dtype":"I64","shape":[1,3,1,2],"data_offsets":[0,48]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 48]].concat();
    let file = TensorFile::parse("x".to_owned(), bytes).unwrap();
    let refusal = file.tensor("q", chunkwise::precision::Precision::F64).unwrap_err().to_string();
    assert!(refusal.contains("holds I64"), "{refusal}");
}

#[test]
fn files_that_are_no_safetensors_are_refused() {
    let folder = Folder::new();
    let output = folder.word("out");
    let whole = std::fs::read(folder.tensors("whole", &delta_rule(1, 4, 1, 2, 2))).unwrap();
    run_delta(&folder.file("a", ""), &output, &[]).refused(&["not a whole .safetensors file", "0 bytes"]);
    run_delta(&folder.file("b", &whole[..whole.len() - 5]), &output, &[]).refused(&["not a whole .safetensors file"]);
    run_delta(&folder.file("c", [0xff; 64]), &output, &[]).refused(&["not a whole .safetensors file"]);
    run_delta(&folder.file("d", "PK\x03\x04 this is a zip file, really"), &output, &[]).refused(&["header"]);
    run_delta("examples", &output, &[]).refused(&["is a folder"]);
    run_delta("/dev/zero", &output, &[]).refused(&["is not an ordinary file"]);
    run_delta(&folder.word("nowhere"), &output, &[]).refused(&["cannot be read"]);
    let endless = r#"{"q":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,18446744073709551615]}}"#;
    let bytes = [&(endless.len() as u64).to_le_bytes(), endless.as_bytes()].concat();
    run_delta(&folder.file("e", bytes), &output, &[]).refused(&["tensor `q`", "0 bytes"]);
    assert!(!folder.path("out").exists());
}

#[test]
fn a_failed_run_leaves_the_output_as_it_was() {
    let folder = Folder::new();
    let output = folder.file("out", "what was here before");
    let mut tensors = delta_rule(1, 3, 1, 2, 2);
    tensors.shift_remove("v");
    let input = folder.tensors("in", &tensors);
    run_delta(&input, &output, &[]).refused(&["`v` is missing"]);
    assert_eq!(std::fs::read(folder.path("out")).unwrap(), b"what was here before");

    let input = folder.tensors("in", &delta_rule(1, 3, 1, 2, 2));
    run_delta(&input, &folder.word("no/such/folder/out"), &[]).refused(&["cannot be written", "no such file"]);
    run_delta(&input, folder.0.path().to_str().unwrap(), &[]).refused(&["is a folder"]);
    assert_eq!(folder.names(), ["in", "out"]);
}

#[test]
fn data_are_checked_when_asked_for_and_passed_through_otherwise() {
    let folder = Folder::new();
    let output = folder.word("out");
    let mut tensors = delta_rule(1, 6, 2, 2, 2);
    tensors["v"].data[9] = f64::NAN;
    let input = folder.tensors("nan", &tensors);
    run_delta(&input, &output, &["--check-finite"]).refused(&["`v`[B=0, T=2, H=0, V=1] is NaN"]);
    run_delta(&input, &output, &[]).well();
    let results = read(&output);
    let poisoned = results["out.o"].data.iter().filter(|value| value.is_nan()).count();
    assert!(poisoned > 0 && results["out.o"].data[..4].iter().all(|value| value.is_finite()));

    let mut tensors = delta_rule(1, 6, 2, 2, 2);
    tensors["beta"].data[3] = 1.5;
    tensors["beta"].data[5] = -0.5;
    let input = folder.tensors("range", &tensors);
    run_delta(&input, &output, &["--check-ranges"]).refused(&[
        "`beta`[B=0, T=1, H=1] is 1.5",
        "[0, 1]",
        "one more element",
    ]);
    tensors["beta"] = delta_rule(1, 6, 2, 2, 2)["beta"].clone();
    tensors["k"].data[4..6].fill(3.0);
    let input = folder.tensors("unit", &tensors);
    run_delta(&input, &output, &["--check-ranges"]).refused(&["`k`[B=0, T=1, H=0, K=0]", "length 4.24", "unit(K)"]);
    run_delta(&input, &output, &["--check-finite"]).well();
}

#[test]
fn results_that_overflow_are_not_passed_over_in_silence() {
    let folder = Folder::new();
    let output = folder.word("out");
    let mut tensors = delta_rule(1, 6, 2, 2, 2);
    // 1e30 · 1e30 is beyond float32 and well inside float64.
    for name in ["q", "v"] {
        tensors[name].data.iter_mut().for_each(|value| *value *= 1e30);
    }
    let input = folder.tensors("large", &tensors);
    let said = run_delta(&input, &output, &["--dtype", "f32"]).well();
    assert!(said.err.contains("elements of `out.o` are not finite"), "{}", said.err);
    assert!(said.err.contains("every input is finite, so something overflowed"), "{}", said.err);
    std::fs::remove_file(&output).unwrap();
    let arguments = ["--dtype", "f32", "--check-finite"];
    run_delta(&input, &output, &arguments).refused(&["--check-finite refuses the results", "`out.o`"]);
    assert!(!std::path::Path::new(&output).exists());
    assert!(run_delta(&input, &output, &["--check-finite"]).well().err.is_empty());
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let folder = Folder::new();
    let input = folder.tensors("in", &delta_rule(1, 3, 1, 2, 2));
    let output = folder.word("out");
    run_delta(&input, &output, &["--device", "toaster"]).refused(&["there is no device `toaster`"]);
    run_delta(&input, &output, &["--chunk", "32"]).refused(&["--chunk has a meaning with --form chunkwise only"]);
    run_delta(&input, &output, &["--set", "scal=2"]).refused(&["no constant `scal`", "did you mean `scale`?"]);
    run_delta(&input, &output, &["--set", "scale=inf"]).refused(&["finite"]);
    run_delta(&input, &output, &["--set", "scale"]).refused(&["NAME=VALUE"]);
    run_delta(&input, &output, &["--set", "scale=1", "--set", "scale=2"]).refused(&["twice"]);
    run_delta(&input, &output, &["--size", "K=3"]).refused(&["`--size` says K=3, but `q` says K=2"]);
    run_delta(&input, &output, &["--size", "Z=3"]).refused(&["no axis `Z`"]);
    run_delta(&input, &output, &["--recurrence", "delta_rul"]).refused(&["did you mean `delta_rule`?"]);
    run_delta(&input, &output, &["--dtype", "f8"]).refused(&["f64, f32, bf16, f16"]);
    run_delta(&input, &output, &["--threads", "0"]).refused(&["1..=1024"]);
    let file = example("delta_rule");
    for sizes in ["K=0", "K=-1", "K=1e3", "K=99999999999999999999", "K=4294967296,V=4294967296", "Q=4"] {
        for command in ["emit", "verify", "explain"] {
            let to: &[&str] = if command == "emit" { &["--to", "derived"] } else { &[] };
            chunkwise(&[&[command, &file, "--size", sizes], to].concat()).refused(&[]);
        }
    }
    chunkwise(&["verify", &file, "--case", "seed=1,size.K=3"]).refused(&["gives no size.V"]);
    chunkwise(&["verify", &file, "--case", "tokens=x"]).refused(&["tokens"]);
    chunkwise(&["explain", "E9999"]).refused(&["there is no code E9999"]);
    chunkwise(&["emit", &file, "--to", "derived", "--form", "naive"])
        .refused(&["the naive form is the program itself"]);
}

#[test]
fn a_parallel_form_of_a_long_sequence_is_a_limit_that_says_why() {
    let folder = Folder::new();
    let input = folder.tensors("in", &delta_rule(1, 6000, 1, 1, 1));
    let file = example("delta_rule");
    let output = folder.word("out");
    chunkwise(&["run", &file, "--input", &input, "--output", &output, "--form", "parallel", "--dtype", "f64"])
        .refused(&["parallel form", "--form chunkwise"]);
}

#[test]
fn results_too_large_to_hold_are_refused_though_the_input_is_empty() {
    let folder = Folder::new();
    let input = folder.tensors("in", &delta_rule(1 << 20, 0, 1 << 10, 64, 64));
    run_delta(&input, &folder.word("out"), &[]).refused(&["more than 2^31 elements"]);
}

#[test]
fn texts_of_our_own_levels_are_not_believed_either() {
    let folder = Folder::new();
    let graph = chunkwise(&["emit", &example("delta_rule"), "--to", "derived", "--size", "K=4,V=4"]).well().out;
    chunkwise(&["emit", &folder.file("x.cwg", "graph {"), "--to", "derived"]).refused(&["line 1"]);
    chunkwise(&["emit", &folder.file("x.cwt", "kernel ("), "--to", "tile"]).refused(&["line 1"]);
    chunkwise(&["emit", &folder.file("y.cwg", &graph), "--to", "reference"]).refused(&["--to derived, tile"]);
    // Taking away any one line never does worse than being refused.
    let lines: Vec<&str> = graph.lines().collect();
    for skipped in (0..lines.len()).step_by(5) {
        let rest: Vec<&str> =
            lines.iter().enumerate().filter(|(at, _)| *at != skipped).map(|(_, line)| *line).collect();
        let run = chunkwise(&["emit", &folder.file("z.cwg", rest.join("\n")), "--to", "tile"]);
        assert!(run.code == 0 || run.code == 2, "without line {skipped}: {run:?}");
    }
}

#[test]
fn nobody_has_to_listen() {
    let mut child = std::process::Command::new(super::binary())
        .args(["check", "nowhere.cw"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary was built");
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(2));
}
