//! The Debian packages that the build needs. In: their names; out: all of them installed, or what to install.
//! On Debian 12 it installs what is missing, and says so; on any other system it changes nothing.

use std::process::Command;

use crate::steps::{self, Stop};

/// What building and testing needs: a C++ toolchain, LLVM and MLIR 22 and the libraries they are linked with.
pub const BUILD: [&str; 11] = [
    "gcc",
    "g++",
    "libc6-dev",
    "libstdc++-12-dev",
    "llvm-22-dev",
    "libmlir-22-dev",
    "libpolly-22-dev",
    "libclang1-22",
    "libclang-common-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];

/// The text the demo learns from: the Jargon File, which is in the public domain.
pub const TEXT: &str = "dict-jargon";

/// Sees to it that the packages are there.
pub fn ensure(packages: &[&str]) -> Result<(), Stop> {
    if !is_debian_12() {
        return elsewhere(packages);
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        println!("All {} Debian packages are installed.", packages.len());
        return Ok(());
    }
    println!("These Debian packages are missing and will be installed: {}", missing.join(" "));
    apt_get(&["update"])?;
    apt_get(&[["install", "--yes", "--no-install-recommends"].as_slice(), &missing].concat())
}

/// On another system: go on if LLVM is where the build looks for it, otherwise say what is needed.
fn elsewhere(packages: &[&str]) -> Result<(), Stop> {
    let built_for = [("MLIR_SYS_220_PREFIX", "/usr/lib/llvm-22"), ("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22")];
    let found = built_for.iter().all(|(variable, usual)| {
        let prefix = std::env::var(variable).unwrap_or_else(|_| (*usual).to_owned());
        std::path::Path::new(&prefix).join("lib").is_dir()
    });
    if found && !packages.contains(&TEXT) {
        println!("This is not Debian 12; LLVM 22 was found, so the rest is assumed to be there too.");
        return Ok(());
    }
    Err(Stop::machine(format!(
        "This is not Debian 12, so nothing is installed for you. Needed are LLVM and MLIR 22 with their headers and\n\
         static libraries, libclang 22, zlib, zstd and a C++ compiler. In Debian 12 these are the packages\n\
         \n    {}\n\n\
         Bring their like, point MLIR_SYS_220_PREFIX, LLVM_SYS_221_PREFIX, TABLEGEN_220_PREFIX and LIBCLANG_PATH\n\
         (see .cargo/config.toml) at them, and run `cargo test --workspace`. Without LLVM, everything but compiled\n\
         code works: `cargo run --no-default-features -- --help`.",
        packages.join(" ")
    )))
}

fn is_debian_12() -> bool {
    let Ok(release) = std::fs::read_to_string("/etc/os-release") else { return false };
    let has = |key: &str, value: &str| {
        release.lines().any(|line| {
            line.split_once('=').is_some_and(|(found, content)| found == key && content.trim_matches('"') == value)
        })
    };
    has("ID", "debian") && has("VERSION_ID", "12")
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn apt_get(arguments: &[&str]) -> Result<(), Stop> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let run = if is_root {
        steps::run("env", &[["DEBIAN_FRONTEND=noninteractive", "apt-get"].as_slice(), arguments].concat())
    } else if steps::exists("sudo") {
        let command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
        steps::run("sudo", &[command.as_slice(), arguments].concat())
    } else {
        return Err(Stop::machine(format!(
            "Installing needs an administrator, and there is no sudo here. As root, run\n\n    apt-get {}\n\n\
             and come back.",
            arguments.join(" ")
        )));
    };
    run.map_err(|stop| Stop::machine(format!("{}\nInstall the packages above by hand and come back.", stop.message)))
}
