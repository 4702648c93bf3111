//! The speed of compiled code beside PyTorch operations on the same processor, in the same run. In: nothing, or names
//! of mechanisms; out: a table of medians and ratios. PyTorch goes into a throwaway environment under `target/`.

use crate::packages;
use crate::steps::{self, Stop};
use std::path::PathBuf;
use std::process::Command;

const MECHANISMS: [&str; 3] = ["linear_attention", "gated_delta_rule", "kda"];

/// Builds, checks the competitor against the recurrence, measures both in turn, prints the table.
pub fn run(arguments: &[String]) -> Result<(), Stop> {
    let wanted: Vec<&str> = match arguments {
        [] => MECHANISMS.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    if let Some(unknown) = wanted.iter().find(|name| !MECHANISMS.contains(name)) {
        return Err(Stop { message: format!("no benchmark `{unknown}`; there are {MECHANISMS:?}"), code: 2 });
    }
    packages::ensure(&packages::BUILD)?;
    steps::cargo(&["build", "--release", "--bin", "chunkwise"])?;
    let python = environment()?;
    let script = steps::root().join("benches/torch_chunked.py").display().to_string();
    let mut rows = Vec::new();
    for name in wanted {
        let program = format!("examples/mechanisms/{name}.cw");
        steps::run(&python, &[&script, "--mechanism", name, "--check"])?;
        let sizes = "K=128,V=128";
        let ours = output(&chunkwise(), &["bench", &program, "--size", sizes, "--threads", "2", "--json"])?;
        let theirs = output(&python, &[&script, "--mechanism", name])?;
        let [forward, both] = [0, 1].map(|at| number_after(&ours, "\"median_seconds\":", at));
        let best = |key: &str| {
            let each = theirs.lines().filter_map(|line| number_after(line, key, 0));
            each.fold(None, |best: Option<f64>, x| Some(best.map_or(x, |b| b.min(x))))
        };
        for (direction, ours, theirs) in
            [("forward", forward, best("\"forward_s\":")), ("forward+backward", both, best("\"forward_backward_s\":"))]
        {
            let (Some(ours), Some(theirs)) = (ours, theirs) else {
                return Err(Stop::failed(format!("{name}: a measurement could not be read")));
            };
            rows.push(format!(
                "| {name} | {direction} | {:.1} ms | {:.1} ms | {:.2}× |",
                ours * 1e3,
                theirs * 1e3,
                theirs / ours
            ));
        }
    }
    println!("\nB 1, T 4096, H 8, K = V = 128, float32, 2 threads; medians\n");
    println!("| mechanism | direction | chunkwise | PyTorch, the faster form | ratio |\n|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

fn chunkwise() -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| steps::root().join("target"), PathBuf::from);
    target.join("release/chunkwise").display().to_string()
}

/// The interpreter of an environment that has PyTorch.
fn environment() -> Result<String, Stop> {
    let folder = steps::root().join("target/bench-python");
    let python = folder.join("bin/python").display().to_string();
    let has_torch = Command::new(&python).args(["-c", "import torch, numpy"]).output();
    if !has_torch.is_ok_and(|output| output.status.success()) {
        steps::run("python3", &["-m", "venv", &folder.display().to_string()])?;
        steps::run(&python, &["-m", "pip", "install", "--quiet", "torch", "numpy"])?;
    }
    Ok(python)
}

fn output(program: &str, arguments: &[&str]) -> Result<String, Stop> {
    println!("\n$ {program} {}", arguments.join(" "));
    let result = Command::new(program).args(arguments).current_dir(steps::root()).output();
    let result = result.map_err(|error| Stop::machine(format!("`{program}` could not be started: {error}")))?;
    if !result.status.success() {
        return Err(Stop::failed(String::from_utf8_lossy(&result.stderr).into_owned()));
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// The number behind the `at`-th occurrence of a key in JSON text.
fn number_after(text: &str, key: &str, at: usize) -> Option<f64> {
    let (begin, _) = text.match_indices(key).nth(at)?;
    let rest = text[begin + key.len()..].trim_start();
    let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c))).unwrap_or(rest.len());
    rest[..end].parse().ok()
}
