//! Right answers through the command line: corner sizes by hand, recorded results, and a verification that fails.

use super::{Folder, chunkwise, delta_rule, example, fixture, read, tensor};

#[test]
fn no_tokens_at_all_leave_the_state_as_it_was() {
    let folder = Folder::new();
    for form in ["naive", "recurrent", "parallel", "chunkwise"] {
        let mut tensors = delta_rule(2, 0, 3, 4, 5);
        let state = tensor(&[2, 3, 4, 5], |i| i as f64);
        tensors.insert("init.S".to_owned(), state.clone());
        tensors.insert("grad_final.S".to_owned(), state.clone());
        let (input, output) = (folder.tensors("in", &tensors), folder.word("out"));
        let file = example("delta_rule");
        let arguments = ["run", &file, "--input", &input, "--output", &output, "--form", form, "--dtype", "f64"];
        chunkwise(&[arguments.as_slice(), &["--backward"]].concat()).well();
        let results = read(&output);
        assert_eq!(results["final.S"], state, "{form}");
        assert_eq!(results["grad_init.S"], state, "{form}");
        assert_eq!(results["out.o"].shape, [2, 0, 3, 5], "{form}");
        assert_eq!(results["grad.beta"].shape, [2, 0, 3], "{form}");
    }
}

#[test]
fn one_number_in_every_place_is_computed_by_hand() {
    let folder = Folder::new();
    let mut tensors = delta_rule(1, 2, 1, 1, 1);
    for (name, numbers) in [("q", [2.0, 3.0]), ("k", [0.5, 1.0]), ("v", [4.0, -1.0]), ("beta", [1.0, 0.5])] {
        tensors[name].data.copy_from_slice(&numbers);
    }
    // S₁ = ½·(4 − 0) = 2, o₁ = 2·2;  S₂ = 2 + ½·(−1 − 2) = ½, o₂ = 3·½. K = 1 makes the scale 1.
    for form in ["naive", "recurrent", "parallel", "chunkwise"] {
        let (input, output) = (folder.tensors("in", &tensors), folder.word("out"));
        let file = example("delta_rule");
        chunkwise(&["run", &file, "--input", &input, "--output", &output, "--form", form, "--dtype", "f64"]).well();
        let results = read(&output);
        assert_eq!(results["out.o"].data, [4.0, 1.5], "{form}");
        assert_eq!(results["final.S"].data, [0.5], "{form}");
    }
}

#[test]
fn heads_are_shared_in_groups() {
    let folder = Folder::new();
    let file = example("delta_rule");
    let run = |name: &str, tensors: &chunkwise_compiler::tensor::Bundle| {
        let (input, output) = (folder.tensors(name, tensors), folder.word("out"));
        chunkwise(&["run", &file, "--input", &input, "--output", &output, "--form", "naive"]).well();
        read(&output)["out.o"].clone()
    };
    let mut whole = delta_rule(1, 7, 4, 3, 2);
    let mut shared = whole.clone();
    let few = delta_rule(1, 7, 2, 3, 2)["q"].clone();
    // Heads 0 and 1 read the first of two, heads 2 and 3 the second.
    whole["q"] = tensor(&[1, 7, 4, 3], |i| {
        let (token, head, k) = (i / 12, i / 3 % 4, i % 3);
        few.data[(token * 2 + head / 2) * 3 + k]
    });
    shared["q"] = few;
    assert_eq!(run("whole", &whole), run("shared", &shared));
}

#[test]
fn constants_are_overridden_by_name() {
    let folder = Folder::new();
    let (input, output) = (folder.tensors("in", &delta_rule(1, 5, 1, 4, 2)), folder.word("out"));
    let file = example("delta_rule");
    let run = |set: &str| {
        chunkwise(&["run", &file, "--input", &input, "--output", &output, "--form", "naive", "--set", set]).well();
        read(&output)["out.o"].clone()
    };
    let (one, two) = (run("scale=1"), run("scale=2"));
    assert!(one.data.iter().zip(&two.data).all(|(one, two)| 2.0 * one == *two));
}

#[test]
fn recorded_results_are_met_in_float64() {
    let folder = Folder::new();
    for name in ["gated_delta_rule", "kda", "gated_delta_product", "mlstm", "mamba1", "rwkv6"] {
        let Some(fixture) = fixture(name) else { return };
        let expected = read(&fixture);
        for (form, limit) in [("naive", 1e-11), ("recurrent", 1e-9), ("parallel", 1e-9), ("chunkwise", 1e-9)] {
            let (file, output) = (example(name), folder.word("out"));
            let input = fixture.to_str().unwrap();
            let arguments = ["run", &file, "--input", input, "--output", &output, "--form", form, "--dtype", "f64"];
            chunkwise(&[arguments.as_slice(), &["--backward"]].concat()).well();
            let results = read(&output);
            for (tensor, expected) in expected.iter().filter(|(name, _)| is_result(name)) {
                let error = results[tensor].relative_error(expected, 0.0);
                assert!(error <= limit, "{name} {form} {tensor}: {error:e}");
            }
        }
    }
}

/// Whether a tensor of a fixture is something a run computes.
pub fn is_result(name: &str) -> bool {
    ["out.", "final.", "grad.", "grad_init."].iter().any(|prefix| name.starts_with(prefix))
}

#[test]
fn verify_sees_what_holds() {
    let json = chunkwise(&["verify", &example("gla"), "--cases", "3", "--json"]).well().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["failed"].as_array().unwrap().is_empty());
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.len() >= 12 && checks.iter().all(|check| check["result"] == "ok"), "{checks:?}");
}

/// What has no chunk form keeps its promises a token at a time, and the limit is told once.
#[test]
fn verify_checks_the_contracts_of_what_is_only_recurrent() {
    let folder = Folder::new();
    let file = folder.file(
        "coupled.cw",
        "recurrence coupled { axis K, V input q: [K], k: [K] in unit(K), v: [V], a: [] in [0, 0.5]
         state S: [K, V], M: [K, V] S = a * S + 0.3 * M + k * (v - k @ S) M = 0.5 * M + 0.1 * a * S
         output o: [V] = q @ S }",
    );
    let json = chunkwise(&["verify", &file, "--cases", "2", "--json"]).well().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let checks = json["checks"].as_array().unwrap();
    for contract in ["causal", "batch invariant", "repeatable", "two calls"] {
        let wanted = format!("recurrent {contract}");
        let made = checks.iter().filter(|check| check["check"].as_str().unwrap().starts_with(&wanted));
        assert!(
            made.clone().count() > 0 && made.clone().all(|check| check["result"] == "ok"),
            "{contract}: {checks:?}"
        );
    }
    let text = chunkwise(&["verify", &file, "--cases", "2"]).well().out;
    assert_eq!(text.matches("a coupling of full rank").count(), 1, "{text}");
}

/// A comparison that could not fail would prove nothing: here what is compared is wrong by one part in a thousand.
#[test]
fn verification_fails_on_results_that_are_off() {
    use chunkwise::precision::Precision;
    use chunkwise::verify::budget;
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mechanisms/gla.cw")).unwrap();
    let program = chunkwise_dsl::compile(&source).unwrap().programs.remove(0);
    let right = tensor(&[4, 8], |i| (i as f64).sin());
    let wrong = tensor(&[4, 8], |i| (i as f64).sin() * 1.001);
    for (precision, caught) in [(Precision::F64, true), (Precision::F32, true), (Precision::Bf16, false)] {
        let error = wrong.relative_error(&right, budget::floor(&right));
        assert_eq!(error > budget::allowed(&program, "out.o", precision), caught, "{precision:?}");
    }
}
