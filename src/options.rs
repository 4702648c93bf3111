//! Options that several commands share. In: words of the command line; out: typed values, or why a word is none.

use std::collections::BTreeMap;

use chunkwise_compiler::derive::form::{Form, Inside};
use chunkwise_dsl::instance::Instance;
use chunkwise_dsl::program::{AxisId, Program, Stmt};

use crate::engine::Place;
use crate::failure::Failure;

/// How the tokens are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum FormChoice {
    /// the program as written, token by token, in float64
    Naive,
    /// derived, a token at a time
    Recurrent,
    /// derived, the whole sequence at once
    Parallel,
    /// derived, in chunks
    Chunkwise,
}

impl FormChoice {
    /// All of them.
    pub const ALL: [FormChoice; 4] =
        [FormChoice::Naive, FormChoice::Recurrent, FormChoice::Parallel, FormChoice::Chunkwise];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self.derived() {
            None => "naive",
            Some(form) => form.name(),
        }
    }

    /// The derived form, unless it is the program as written.
    pub fn derived(self) -> Option<Form> {
        match self {
            FormChoice::Naive => None,
            FormChoice::Recurrent => Some(Form::Recurrent),
            FormChoice::Parallel => Some(Form::Parallel),
            FormChoice::Chunkwise => Some(Form::Chunkwise),
        }
    }
}

/// How a decay inside a sum is computed within a block of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum InsideChoice {
    /// pair by pair, right for any gate
    Pairs,
    /// as a plain product where the declared ranges of the gates allow it, else pair by pair
    Anchored,
}

impl From<InsideChoice> for Inside {
    fn from(choice: InsideChoice) -> Inside {
        match choice {
            InsideChoice::Pairs => Inside::Pairs,
            InsideChoice::Anchored => Inside::Anchored,
        }
    }
}

/// Where a recurrence is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// An NVIDIA GPU, counted from 0.
    Cuda(usize),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let unknown = || format!("there is no device `{text}`; the devices are: cpu, cuda, cuda:NUMBER");
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Device::Cuda).map_err(|_| unknown()),
            None | Some(_) => Err(unknown()),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Families of GPUs that code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Arch {
    /// compute capability 8.0 and newer
    #[value(name = "sm_80")]
    Sm80,
    /// compute capability 9.0 (Hopper) only
    #[value(name = "sm_90a")]
    Sm90a,
}

impl Arch {
    /// As compilers take it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        }
    }
}

/// What every command that computes takes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Where {
    /// Where to compute: cpu, cuda or cuda:NUMBER
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,
    /// Family of GPUs to make code for [default: the one of the GPU]
    #[arg(long, value_enum, value_name = "FAMILY")]
    pub arch: Option<Arch>,
    /// Kernels on a GPU, as in `pass + outputs, chunk 64` [default: the compiler's choice]
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<chunkwise_compiler::schedule::Schedule>,
    /// Lay kernels on a GPU out without regard to the number of sequences and their lengths
    #[arg(long)]
    pub batch_invariant: bool,
}

impl Where {
    /// Opens it.
    pub fn open(&self) -> Result<Place, Failure> {
        if let (Device::Cpu, Some(schedule)) = (self.device, self.schedule) {
            return Err(Failure::Input(format!(
                "--schedule \"{schedule}\" has a meaning with --device cuda only; leave it out for the cpu"
            )));
        }
        match (self.device, self.arch) {
            (Device::Cpu, None) => Ok(Place::Cpu),
            (Device::Cpu, Some(arch)) => Err(Failure::Input(format!(
                "--arch {} has a meaning with --device cuda only; code for the cpu is made for this processor",
                arch.name()
            ))),
            #[cfg(feature = "llvm")]
            (Device::Cuda(number), arch) => {
                let mut gpu = crate::gpu::Gpu::open(number, arch, self.schedule)?;
                gpu.batch_invariant = self.batch_invariant;
                Ok(Place::Gpu(gpu))
            }
            #[cfg(not(feature = "llvm"))]
            (Device::Cuda(_), _) => Err(crate::engine::no_compiler()),
        }
    }
}

/// `NAME=VALUE` with a number.
pub fn named_number(text: &str) -> Result<(String, f64), String> {
    let (name, value) = split(text)?;
    value.parse().map(|value| (name, value)).map_err(|_| format!("`{value}` is not a number"))
}

/// `AXIS=SIZE` with a whole number.
pub fn named_size(text: &str) -> Result<(String, usize), String> {
    let (name, value) = split(text)?;
    value.parse().map(|value| (name, value)).map_err(|_| format!("`{value}` is not a whole number that can be counted"))
}

fn split(text: &str) -> Result<(String, &str), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim())),
        Some(_) | None => Err("write NAME=VALUE".to_owned()),
    }
}

/// What every command that names one recurrence of a file takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// The recurrence, if the file holds several
    #[arg(long, value_name = "NAME")]
    pub recurrence: Option<String>,
    /// Override a constant of the program
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = named_number, value_delimiter = ',')]
    pub constants: Vec<(String, f64)>,
    /// Size of an axis
    #[arg(long = "size", value_name = "AXIS=SIZE", value_parser = named_size, value_delimiter = ',')]
    pub sizes: Vec<(String, usize)>,
}

impl Which {
    /// The constants by name; a name given twice is a slip.
    pub fn constants(&self) -> Result<BTreeMap<String, f64>, Failure> {
        collect("--set", &self.constants)
    }

    /// The sizes by name; a name given twice is a slip.
    pub fn sizes(&self) -> Result<BTreeMap<String, usize>, Failure> {
        collect("--size", &self.sizes)
    }

    /// Settles sizes without tensors: those given, and defaults for the rest.
    pub fn instance<'p>(&self, program: &'p Program) -> Result<Instance<'p>, Failure> {
        let mut sizes = default_sizes(program);
        sizes.extend(self.sizes()?);
        Instance::new(program, &sizes, &self.constants()?).map_err(Failure::input_all)
    }
}

fn collect<T: Copy + PartialEq + std::fmt::Display>(
    option: &str,
    pairs: &[(String, T)],
) -> Result<BTreeMap<String, T>, Failure> {
    let mut found = BTreeMap::new();
    for (name, value) in pairs {
        if let Some(earlier) = found.insert(name.clone(), *value)
            && earlier != *value
        {
            return Err(Failure::Input(format!("{option} gives `{name}` twice, as {earlier} and as {value}")));
        }
    }
    Ok(found)
}

/// Sizes that are usual: 2 for an axis that a `for` runs over, 64 for every other.
pub fn default_sizes(program: &Program) -> BTreeMap<String, usize> {
    let looped = looped_axes(program);
    let size = |at: usize| if looped.contains(&AxisId(at as u32)) { 2 } else { 64 };
    program.axes.iter().enumerate().map(|(at, axis)| (axis.name.clone(), size(at))).collect()
}

/// The axes that a `for` runs over: the edits of one token.
pub fn looped_axes(program: &Program) -> Vec<AxisId> {
    fn walk(program: &Program, body: &[Stmt], found: &mut Vec<AxisId>) {
        for statement in body {
            match statement {
                Stmt::For { var, body, .. } => {
                    found.push(program.loop_vars[var.index()].axis);
                    walk(program, body, found);
                }
                Stmt::Let { .. } | Stmt::Update { .. } | Stmt::Output { .. } => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(program, &program.body, &mut found);
    found
}
