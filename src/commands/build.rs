//! `chunkwise build`: a library that needs neither LLVM nor chunkwise. In: programs and sizes; out: a folder with a
//! shared library, a C header, a manifest, and a C example that compiles against them.

use std::path::PathBuf;

use crate::failure::Failure;
use crate::options::{FormChoice, InsideChoice, Which};
use crate::precision::Precision;

/// Processors a library can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// processors with the vectors of this machine
    Cpu,
    /// any x86-64
    CpuPlain,
    /// x86-64 with AVX2 and FMA
    CpuAvx2,
    /// x86-64 with AVX-512
    CpuAvx512,
    /// NVIDIA graphics processors
    Cuda,
}

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sizes of axes and types are fixed in a library; batch, length and number of heads are arguments of its functions.
Sizes that are not given are 64, and 2 for an axis that a `for` runs over.

Examples:
  chunkwise build delta.cw --target cpu -o lib/ --size K=128,V=128
  chunkwise build gla.cw delta.cw --target cpu-avx2 --dtype bf16 --name attention -o lib/
  cc -O2 lib/example.c -Llib -lattention -Wl,-rpath,lib -lm -o example")]
pub struct Arguments {
    /// Programs; every recurrence in them becomes part of the library
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What to build for
    #[arg(long, value_enum, default_value_t = Target::Cpu)]
    target: Target,
    /// Folder to write to
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Name of the library [default: that of the only recurrence, or `recurrences`]
    #[arg(long)]
    name: Option<String>,
    /// Which form
    #[arg(long, value_enum, default_value_t = FormChoice::Chunkwise)]
    form: FormChoice,
    /// Tokens a chunk, 16 to 256
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u16).range(16..=256))]
    chunk: Option<u16>,
    /// The longest sequence of a parallel form
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    length: usize,
    /// Type of the tensors of a token
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    dtype: Precision,
    /// How a decay inside a sum is computed within a block of 16 rows
    #[arg(long, value_enum, default_value_t = InsideChoice::Anchored)]
    inside: InsideChoice,
    #[command(flatten)]
    which: Which,
    /// Print the manifest on standard output too
    #[arg(long)]
    json: bool,
}

/// Builds.
#[cfg(not(feature = "llvm"))]
pub fn run(_: &Arguments) -> Result<(), Failure> {
    Err(crate::engine::no_compiler())
}

/// Builds.
#[cfg(feature = "llvm")]
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    building::run(arguments)
}

#[cfg(feature = "llvm")]
mod building {
    use std::path::Path;
    use std::process::Command;

    use chunkwise_abi::{ABI_VERSION, Manifest};
    use chunkwise_compiler::artifact::{self, Artifact, Parts};
    use chunkwise_compiler::target::cpu::{CpuTarget, LEVELS, Level};
    use chunkwise_dsl::program::Program;

    use super::{Arguments, Target};
    use crate::c_interface;
    use crate::engine::request;
    use crate::failure::Failure;
    use crate::report;
    use crate::source::{Checked, plain};
    use crate::tensors::write_whole;

    pub fn run(arguments: &Arguments) -> Result<(), Failure> {
        let target = target(arguments.target)?;
        let Some(form) = arguments.form.derived() else {
            return Err(Failure::Input("the naive form is not compiled; --form takes the others here".to_owned()));
        };
        let Some(dtype) = arguments.dtype.compiled() else {
            return Err(Failure::Input("float64 is for the interpreters; --dtype takes f32, bf16 or f16".to_owned()));
        };
        let files: Vec<Checked> = arguments.files.iter().map(|file| Checked::read(file)).collect::<Result<_, _>>()?;
        let programs = programs(arguments, &files)?;
        let name = library_name(arguments, &programs)?;
        let request =
            request(form, arguments.chunk.map(usize::from), arguments.length, Parts::Both, arguments.inside.into());
        let mut artifacts = Vec::new();
        for program in &programs {
            let instance = arguments.which.instance(program)?;
            artifacts.push(artifact::compile_cpu(&instance, &request, Parts::Both, dtype, &target)?);
        }
        std::fs::create_dir_all(&arguments.output).map_err(|error| cannot(&arguments.output, &error))?;
        let library = format!("lib{name}.so");
        link(&artifacts, &arguments.output, &library)?;
        let manifest = Manifest {
            abi: ABI_VERSION,
            library: library.clone(),
            features: target.level.needs().iter().map(|need| need.trim_start_matches('+').to_owned()).collect(),
            recurrences: artifacts.into_iter().map(|made| made.signature).collect(),
        };
        let json = serde_json::to_string_pretty(&manifest)
            .map_err(|error| Failure::Ours(format!("the manifest cannot be written: {error}")))?;
        let files = [
            (format!("{name}.json"), format!("{json}\n")),
            (format!("{name}.h"), c_interface::header(&name, &manifest)),
            ("example.c".to_owned(), c_interface::example(&name, &manifest, &programs)),
            ("Makefile".to_owned(), c_interface::makefile(&name)),
        ];
        for (file, text) in &files {
            write_whole(&arguments.output.join(file), text.as_bytes())?;
        }
        if arguments.json {
            report::say(json);
            return Ok(());
        }
        for file in std::iter::once(&library).chain(files.iter().map(|(file, _)| file)) {
            report::say(arguments.output.join(file).display());
        }
        Ok(())
    }

    fn target(target: Target) -> Result<CpuTarget, Failure> {
        match target {
            // The level and not the very processor: the manifest has to be able to say what is needed.
            Target::Cpu => {
                let host = CpuTarget::host().level;
                Ok(CpuTarget::of_level(*LEVELS.iter().find(|level| **level == host).unwrap_or(&Level::Plain)))
            }
            Target::CpuPlain => Ok(CpuTarget::of_level(Level::Plain)),
            Target::CpuAvx2 => Ok(CpuTarget::of_level(Level::Avx2)),
            Target::CpuAvx512 => Ok(CpuTarget::of_level(Level::Avx512)),
            Target::Cuda => Err(Failure::Input(
                "`--target cuda` is not supported yet; this chunkwise builds for cpu, cpu-plain, cpu-avx2 and cpu-avx512"
                    .to_owned(),
            )),
        }
    }

    /// The recurrences of all files; no name twice, since their functions are named after them.
    fn programs<'c>(arguments: &Arguments, files: &'c [Checked]) -> Result<Vec<&'c Program>, Failure> {
        let mut programs: Vec<&Program> = Vec::new();
        for file in files {
            let chosen: Vec<&Program> = match arguments.which.recurrence.as_deref() {
                Some(name) => vec![file.select(Some(name))?],
                None => file.programs.iter().collect(),
            };
            for program in chosen {
                if programs.iter().any(|known| known.name == program.name) {
                    return Err(Failure::Input(format!(
                        "two recurrences are called `{}`, and the functions of a library are named after them; \
                         rename one",
                        program.name
                    )));
                }
                programs.push(program);
            }
        }
        Ok(programs)
    }

    fn library_name(arguments: &Arguments, programs: &[&Program]) -> Result<String, Failure> {
        let name = match (&arguments.name, programs) {
            (Some(name), _) => name.clone(),
            (None, [only]) => only.name.clone(),
            (None, _) => "recurrences".to_owned(),
        };
        let mut letters = name.chars();
        let fits = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
        if fits {
            Ok(name)
        } else {
            Err(Failure::Input(format!(
                "`{name}` cannot name a library; use letters, digits and `_`, and begin with a letter"
            )))
        }
    }

    /// Links objects into a shared library beside its final place, and moves it there.
    fn link(artifacts: &[Artifact], folder: &Path, library: &str) -> Result<(), Failure> {
        let work = tempfile::Builder::new()
            .prefix(".chunkwise-")
            .tempdir_in(folder)
            .map_err(|error| cannot(folder, &error))?;
        let mut command = Command::new("cc");
        command.arg("-shared").arg("-o").arg(work.path().join(library)).arg(format!("-Wl,-soname,{library}"));
        for (number, made) in artifacts.iter().enumerate() {
            let object = work.path().join(format!("{number}.o"));
            std::fs::write(&object, &made.object).map_err(|error| cannot(&object, &error))?;
            command.arg(object);
        }
        let said = command.output().map_err(|error| {
            Failure::Input(format!(
                "`cc`, which links the library, cannot be started ({}); on Debian: apt-get install gcc libc6-dev",
                plain(&error)
            ))
        })?;
        if !said.status.success() {
            return Err(Failure::Ours(format!("`cc` does not link:\n{}", String::from_utf8_lossy(&said.stderr))));
        }
        let place = folder.join(library);
        std::fs::rename(work.path().join(library), &place).map_err(|error| cannot(&place, &error))
    }

    fn cannot(path: &Path, error: &std::io::Error) -> Failure {
        Failure::Input(format!("`{}` cannot be written: {}", path.display(), plain(error)))
    }
}
