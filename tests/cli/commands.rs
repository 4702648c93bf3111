//! What each command does when all is well.

use super::{Folder, chunkwise, example};

const ALL: [&str; 9] = ["check", "fmt", "run", "verify", "emit", "bench", "explain", "doctor", "build"];

#[test]
fn every_command_has_help_with_examples() {
    let help = chunkwise(&["--help"]).well().out;
    for command in ALL {
        assert!(help.contains(command), "{help}");
        let help = chunkwise(&[command, "--help"]).well().out;
        assert!(help.contains("Examples:\n  chunkwise "), "{help}");
    }
    assert_eq!(chunkwise(&["frobnicate"]).code, 2);
    assert_eq!(chunkwise(&[]).code, 2);
}

#[test]
fn every_example_is_accepted_without_a_word() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mechanisms")).unwrap() {
        let path = entry.unwrap().path();
        let run = chunkwise(&["check", path.to_str().unwrap()]).well();
        assert_eq!(run.err, "");
        assert_eq!(chunkwise(&["fmt", "--check", path.to_str().unwrap()]).well().out, "");
    }
}

#[test]
fn fmt_lays_out_in_place_and_then_finds_nothing_to_do() {
    let folder = Folder::new();
    let source = "recurrence r{axis K,V input q:[K],k:[K],v:[V] // three\nstate S:[K,V] S=S+k*v output o:[V]=q@S}";
    let path = folder.file("r.cw", source);
    let check = chunkwise(&["fmt", "--check", &path]);
    assert_eq!((check.code, check.out.trim()), (1, format!("{path}: would change").as_str()));
    let shown = chunkwise(&["fmt", "--stdout", &path]).well().out;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), source);
    chunkwise(&["fmt", &path]).well();
    let laid_out = std::fs::read_to_string(&path).unwrap();
    assert_eq!(laid_out, shown);
    assert!(laid_out.contains("// three") && laid_out.lines().count() > 5, "{laid_out}");
    assert_eq!(chunkwise(&["fmt", "--check", &path]).well().out, "");
    // What does not parse stays as it is.
    let broken = folder.file("b.cw", "recurrence r { axis K,, }");
    chunkwise(&["fmt", &broken]).refused(&["stays as it is"]);
    assert_eq!(std::fs::read_to_string(&broken).unwrap(), "recurrence r { axis K,, }");
}

#[test]
fn each_kernel_of_a_schedule_has_its_graph() {
    let file = example("gated_delta_rule");
    let more = ["--to", "derived", "--size", "K=128,V=128", "--chunk", "64", "--schedule"];
    let emit = |schedule: &str| chunkwise(&[["emit", &file].as_slice(), &more, &[schedule]].concat()).well().out;
    let text = emit("prepare + pass + outputs, operands bf16");
    let graphs: Vec<&str> = text.lines().filter(|line| line.starts_with("graph ")).collect();
    let expected =
        ["prepare", "pass", "outputs"].map(|name| format!("graph gated_delta_rule.chunkwise.forward.{name} {{"));
    assert_eq!(graphs, expected);
    assert!(text.contains("[t, s] bf16, 128 bytes a token"), "{text}");
    assert_eq!(emit("fused").matches("graph ").count(), 1);
    chunkwise(&["emit", &file, "--to", "tile", "--schedule", "fused"]).refused(&["write --to derived"]);
    chunkwise(&["emit", &file, "--to", "derived", "--schedule", "one"]).refused(&["names no kernels"]);
}

#[test]
fn every_level_is_read_back_and_goes_on_the_same() {
    let folder = Folder::new();
    for direction in ["forward", "backward"] {
        let emit = |file: &str, to: &str| {
            let more = ["--direction", direction, "--size", "K=4,V=8"];
            chunkwise(&[["emit", file, "--to", to].as_slice(), &more].concat()).well().out
        };
        let file = example("gated_delta_rule");
        let derived = emit(&file, "derived");
        let graph = folder.file("step.cwg", &derived);
        assert_eq!(emit(&graph, "derived"), derived);
        let kernel = emit(&file, "tile");
        assert_eq!(emit(&graph, "tile"), kernel);
        let tile = folder.file("kernel.cwt", &kernel);
        assert_eq!(emit(&tile, "tile"), kernel);
    }
    for name in ["gated_delta_rule", "rwkv7", "mlstm", "mamba1"] {
        let token = chunkwise(&["emit", &example(name), "--to", "graph"]).well().out;
        let graph = folder.file("token.cwg", &token);
        assert_eq!(chunkwise(&["emit", &graph, "--to", "graph"]).well().out, token);
    }
    let file = example("gated_delta_rule");
    let tree = chunkwise(&["emit", &file, "--to", "ast"]).well().out;
    assert_eq!(
        tree,
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mechanisms/gated_delta_rule.cw"))
            .unwrap()
    );
}

#[test]
fn a_dump_holds_every_stage_in_order() {
    let folder = Folder::new();
    let dump = folder.word("dump");
    chunkwise(&["emit", &example("delta_rule"), "--to", "tile", "--size", "K=4,V=4", "--dump", &dump]).well();
    let mut names: Vec<String> =
        std::fs::read_dir(&dump).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let stages: Vec<&str> = names.iter().map(|name| &name[3..]).collect();
    assert_eq!(stages[..4], ["ast.cw", "token.cwg", "derivation.txt", "derived.cwg"]);
    assert_eq!(stages.last(), Some(&"kernel.cwt"));
}

#[test]
fn explain_tells_rules_codes_and_costs() {
    let text = chunkwise(&["explain", &example("gated_delta_rule")]).well().out;
    for word in ["UT transform", "before", "after", "holds when", "source", "chunkwise", "recurrent", "parallel"] {
        assert!(text.contains(word), "should say `{word}`:\n{text}");
    }
    assert!(chunkwise(&["explain", "E0204"]).well().out.starts_with("E0204"));
    let json = chunkwise(&["explain", "--json", &example("gla")]).well().out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["forms"][2]["steps"].as_array().unwrap().len() > 2);
    assert!(json["forms"][2]["flops"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_page_stands_by_itself() {
    let folder = Folder::new();
    for name in ["gated_delta_rule", "mamba1", "mlstm"] {
        let path = folder.word("page.html");
        chunkwise(&["explain", &example(name), "--html", &path]).well();
        let page = std::fs::read_to_string(&path).unwrap();
        for piece in ["<math", "<svg", "<table", "</html>"] {
            assert!(page.contains(piece), "{name} lacks {piece}");
        }
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{name} loads something: {outside}");
        }
        for tag in ["math", "mrow", "msub", "msup", "mi", "mo", "svg", "table", "div", "g"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{name}: <{tag}>");
        }
    }
}

#[test]
fn the_reference_is_printed_as_numpy() {
    let text = chunkwise(&["emit", &example("delta_rule"), "--to", "reference"]).well().out;
    assert!(text.contains("def delta_rule(") && text.contains("import numpy"), "{text}");
}

#[test]
fn doctor_says_what_there_is() {
    let json: serde_json::Value = serde_json::from_str(&chunkwise(&["doctor", "--json"]).well().out).unwrap();
    let names: Vec<&str> = json["findings"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    assert_eq!(names, ["chunkwise", "LLVM", "processor", "threads", "cache", "cc", "GPU", "ptxas"]);
    assert_eq!(json["findings"][1]["well"], cfg!(feature = "llvm"));
    let text = super::chunkwise_with(&["doctor"], &[("CHUNKWISE_CACHE", "/proc/nowhere")]).well().out;
    assert!(text.contains("✗ cache"), "{text}");
}

#[test]
fn one_recurrence_of_several_is_chosen_by_name() {
    let folder = Folder::new();
    let one = |name: &str, sign: &str| {
        format!(
            "recurrence {name} {{ axis K, V input q: [K], k: [K], v: [V] state S: [K, V] S = S {sign} k * v output o: [V] = q @ S }}\n"
        )
    };
    let path = folder.file("two.cw", one("plus", "+") + &one("minus", "-"));
    chunkwise(&["emit", &path, "--to", "reference"]).refused(&["several recurrences (plus, minus)", "--recurrence"]);
    let text = chunkwise(&["emit", &path, "--to", "reference", "--recurrence", "minus"]).well().out;
    assert!(text.contains("def minus("));
}
