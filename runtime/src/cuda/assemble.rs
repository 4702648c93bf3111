//! NVIDIA's assembler and disassembler, where they are installed: PTX → machine code → text.
//!
//! Comes in: PTX, an architecture. Goes out: a cubin with what the assembler says of it, or the tool's own words for
//! why not. Neither tool is needed to run anything; nothing is left on disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a tool did not do what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssembleError {
    /// It is not there, or cannot be started.
    Missing {
        /// `ptxas` or `nvdisasm`.
        tool: &'static str,
        /// Where it was looked for, or the system's reason.
        why: String,
    },
    /// It refuses.
    Refused {
        /// `ptxas` or `nvdisasm`.
        tool: &'static str,
        /// Its words.
        said: String,
    },
    /// A file in between could not be written or read.
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        why: String,
    },
}

impl std::fmt::Display for AssembleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AssembleError::Missing { tool, why } => {
                write!(f, "`{tool}` {why}; install the CUDA toolkit, or name the program in {}", variable(tool))
            }
            AssembleError::Refused { tool, said } => write!(f, "`{tool}` refuses:\n{said}"),
            AssembleError::File { path, why } => write!(f, "{}: {why}", path.display()),
        }
    }
}
impl std::error::Error for AssembleError {}

/// NVIDIA's assembler.
#[derive(Clone, Debug)]
pub struct Assembler {
    path: PathBuf,
    version: String,
    /// Whether it assembles several kernels side by side.
    splits: bool,
}

/// The number of threads is written into the machine code, which is otherwise the same for any, so it is the same on any
/// machine.
const SPLIT: &str = "--split-compile=8";

/// The release of CUDA from which on the assembler is known to take [`SPLIT`].
const SPLITS_FROM: u32 = 13;

/// What the assembler makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// The machine code.
    pub cubin: Vec<u8>,
    /// What the assembler says of each kernel: registers, memory, spills, warnings.
    pub report: String,
}

impl Assembler {
    /// Looks for `ptxas`: as `CHUNKWISE_PTXAS` names it, in the `PATH`, in the toolkit's folder. One that is named and
    /// does not start is an error, so that nobody measures with another than they think.
    pub fn find() -> Result<Assembler, AssembleError> {
        let path = find("ptxas")?;
        let said = start("ptxas", Command::new(&path).arg("--version"))?;
        let version = String::from_utf8_lossy(&said.stdout).into_owned();
        // The last line names the build.
        let version = version.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("").trim().to_string();
        let release = version.split_once("cuda_").and_then(|(_, rest)| rest.split('.').next()?.parse::<u32>().ok());
        Ok(Assembler { path, version, splits: release.is_some_and(|release| release >= SPLITS_FROM) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which build of it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Assembles for an architecture.
    pub fn assemble(&self, ptx: &str, arch: &str) -> Result<Assembled, AssembleError> {
        let source = Scratch::new("ptx", ptx.as_bytes())?;
        let target = Scratch::new("cubin", b"")?;
        let mut command = Command::new(&self.path);
        command.arg(format!("-arch={arch}")).args(["-O3", "-v", "-o"]).arg(&target.0).arg(&source.0);
        if self.splits && ptx.matches(".entry ").nth(1).is_some() {
            command.arg(SPLIT);
        }
        let said = start("ptxas", &mut command)?;
        let report = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        if !said.status.success() {
            return Err(AssembleError::Refused { tool: "ptxas", said: report.trim().to_string() });
        }
        Ok(Assembled { cubin: target.read()?, report })
    }
}

/// Machine code as text.
pub fn disassemble(cubin: &[u8]) -> Result<String, AssembleError> {
    let path = find("nvdisasm")?;
    let source = Scratch::new("cubin", cubin)?;
    let said = start("nvdisasm", Command::new(path).arg("-c").arg(&source.0))?;
    if !said.status.success() {
        let said = String::from_utf8_lossy(&said.stderr).trim().to_string();
        return Err(AssembleError::Refused { tool: "nvdisasm", said });
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// The variable of the environment that names a tool.
fn variable(tool: &str) -> String {
    format!("CHUNKWISE_{}", tool.to_uppercase())
}

fn find(tool: &'static str) -> Result<PathBuf, AssembleError> {
    if let Some(named) = std::env::var_os(variable(tool)) {
        let path = PathBuf::from(named);
        let why = || format!("is not at {}, where {} says it is", path.display(), variable(tool));
        return if path.is_file() { Ok(path.clone()) } else { Err(AssembleError::Missing { tool, why: why() }) };
    }
    let searched: Vec<PathBuf> = std::env::var_os("PATH").map_or(vec![], |path| std::env::split_paths(&path).collect());
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|folder| folder.join("bin"));
    let found = searched.into_iter().chain(toolkits).map(|folder| folder.join(tool)).find(|path| path.is_file());
    found.ok_or_else(|| AssembleError::Missing { tool, why: "is not installed".to_string() })
}

fn start(tool: &'static str, command: &mut Command) -> Result<std::process::Output, AssembleError> {
    command.output().map_err(|error| AssembleError::Missing { tool, why: format!("does not start ({error})") })
}

/// A file of our own that is gone when we are.
struct Scratch(PathBuf);

impl Scratch {
    fn new(extension: &str, content: &[u8]) -> Result<Scratch, AssembleError> {
        use std::io::Write;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("chunkwise-{}-{number}.{extension}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_file(&path);
        let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(content));
        written.map_err(|error| AssembleError::File { path: path.clone(), why: error.to_string() })?;
        Ok(Scratch(path))
    }

    fn read(&self) -> Result<Vec<u8>, AssembleError> {
        std::fs::read(&self.0).map_err(|error| AssembleError::File { path: self.0.clone(), why: error.to_string() })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
