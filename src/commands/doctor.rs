//! `chunkwise doctor`: what this machine has and what chunkwise lacks. In: the machine; out: a list. It changes
//! nothing but for one empty file in the cache's folder, which it takes away again.

use std::path::Path;
use std::process::Command;

use chunkwise_runtime::cache::Cache;
use chunkwise_runtime::cuda::assemble::Assembler;
use chunkwise_runtime::cuda::device::CudaDevice;
use chunkwise_runtime::cuda::error::CudaError;
use chunkwise_runtime::cuda::measure;
use chunkwise_runtime::cuda::memory::Stream;
use serde_json::json;

use crate::failure::Failure;
use crate::report;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  chunkwise doctor
  chunkwise doctor --json")]
pub struct Arguments {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// One thing looked at.
struct Finding {
    what: &'static str,
    /// Whether it is as it should be.
    well: bool,
    found: String,
    /// What to do, where something is to be done.
    advice: Option<&'static str>,
}

/// Looks at everything.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut findings = vec![version(), llvm(), processor(), threads(), cache(), linker()];
    findings.extend(gpus());
    findings.push(assembler());
    if arguments.json {
        let list = findings.iter().map(|finding| {
            json!({ "what": finding.what, "well": finding.well, "found": finding.found, "advice": finding.advice })
        });
        report::say_json(&json!({ "findings": list.collect::<Vec<_>>() }));
        return Ok(());
    }
    for finding in &findings {
        report::say(format_args!("{} {:<12} {}", if finding.well { "✓" } else { "✗" }, finding.what, finding.found));
        if let Some(advice) = finding.advice {
            report::say(format_args!("  {:<12} {advice}", ""));
        }
    }
    Ok(())
}

fn version() -> Finding {
    let found = format!("{} (calling contract {})", env!("CARGO_PKG_VERSION"), chunkwise_abi::ABI_VERSION);
    Finding { what: "chunkwise", well: true, found, advice: None }
}

#[cfg(feature = "llvm")]
fn llvm() -> Finding {
    let (major, minor, patch) = chunkwise_compiler::target::cpu::llvm_version();
    Finding { what: "LLVM", well: true, found: format!("{major}.{minor}.{patch}, linked in"), advice: None }
}

#[cfg(not(feature = "llvm"))]
fn llvm() -> Finding {
    let advice = "without it programs run in the float64 interpreters only; build with the feature `llvm`";
    Finding { what: "LLVM", well: false, found: "not part of this build".to_owned(), advice: Some(advice) }
}

#[cfg(feature = "llvm")]
fn processor() -> Finding {
    let target = chunkwise_compiler::target::cpu::CpuTarget::host();
    Finding {
        what: "processor",
        well: true,
        found: format!("{}, vectors of {}", target.processor, target.level.name()),
        advice: None,
    }
}

#[cfg(not(feature = "llvm"))]
fn processor() -> Finding {
    Finding { what: "processor", well: true, found: std::env::consts::ARCH.to_owned(), advice: None }
}

fn threads() -> Finding {
    let found = std::thread::available_parallelism().map_or("unknown".to_owned(), |number| number.to_string());
    Finding { what: "threads", well: true, found, advice: None }
}

fn cache() -> Finding {
    let (cache, warning) = Cache::of_user();
    let (well, found) = match (cache.directory(), warning) {
        (_, Some(warning)) => (false, warning.to_string()),
        (None, None) => (false, "none".to_owned()),
        (Some(folder), None) => match writable(folder) {
            Ok(()) => (true, folder.display().to_string()),
            Err(error) => {
                (false, format!("{} cannot be written to: {}", folder.display(), crate::source::plain(&error)))
            }
        },
    };
    let advice = (!well).then_some("set CHUNKWISE_CACHE to a folder that can be written to, or compile anew each time");
    Finding { what: "cache", well, found, advice }
}

fn writable(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    tempfile::NamedTempFile::new_in(folder).map(drop)
}

fn linker() -> Finding {
    let said = Command::new("cc").arg("--version").output();
    match said {
        Ok(said) if said.status.success() => {
            let first = String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or("cc").to_owned();
            Finding { what: "cc", well: true, found: first, advice: None }
        }
        Ok(_) | Err(_) => Finding {
            what: "cc",
            well: false,
            found: "not found".to_owned(),
            advice: Some("`chunkwise build` links with it; on Debian: apt-get install gcc libc6-dev"),
        },
    }
}

/// The first GPU and what it does; the others by name.
fn gpus() -> Vec<Finding> {
    let count = match CudaDevice::count() {
        Ok(count) => count,
        // No GPU is nothing wrong: everything but `--device cuda` works.
        Err(error @ (CudaError::NoDriver | CudaError::NoDevice)) => {
            return vec![Finding { what: "GPU", well: true, found: format!("none: {error}"), advice: None }];
        }
        Err(error) => return vec![Finding { what: "GPU", well: false, found: error.to_string(), advice: None }],
    };
    (0..count).map(gpu).collect()
}

fn gpu(number: usize) -> Finding {
    let device = match CudaDevice::open(number) {
        Ok(device) => device,
        Err(error) => return Finding { what: "GPU", well: false, found: error.to_string(), advice: None },
    };
    let facts = device.facts();
    let copy = Stream::new(&device).and_then(|stream| measure::copy_bandwidth(&stream));
    let (well, copy) = match copy {
        Ok(bytes) => (true, format!("copies {:.0} GB/s (read and written)", bytes / 1e9)),
        Err(error) => (false, error.to_string()),
    };
    let found = format!(
        "cuda:{number} {}, compute capability {}.{}, {} multiprocessors, {}, driver for CUDA {}.{}, {copy}",
        facts.name,
        facts.capability.0,
        facts.capability.1,
        facts.multiprocessors,
        report::bytes(facts.memory as f64),
        facts.driver.0,
        facts.driver.1
    );
    Finding { what: "GPU", well, found, advice: None }
}

fn assembler() -> Finding {
    let (what, advice) = ("ptxas", "needed by `chunkwise emit --to sass` only; elsewhere the driver does its work");
    match Assembler::find() {
        Ok(found) => Finding {
            what,
            well: true,
            found: format!("{}, {}", found.path().display(), found.version()),
            advice: None,
        },
        Err(error) => {
            let named = std::env::var_os("CHUNKWISE_PTXAS").is_some();
            Finding { what, well: !named, found: error.to_string(), advice: Some(advice) }
        }
    }
}
