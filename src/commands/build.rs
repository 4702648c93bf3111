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
    /// NVIDIA GPUs of compute capability 8.0 and newer
    #[value(name = "sm_80")]
    Sm80,
    /// NVIDIA GPUs of compute capability 9.0 (Hopper) only
    #[value(name = "sm_90a")]
    Sm90a,
}

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A library for GPUs holds PTX, and machine code too where ptxas is found; it needs the driver only, and has the functions
of all families given: the best for the GPU it finds itself on is taken. Libraries for processors and for GPUs are two.
Sizes of axes and types are fixed in a library; batch, length and number of heads are arguments of its functions.
Sizes that are not given are 64, and 2 for an axis that a `for` runs over.

Examples:
  chunkwise build delta.cw --target cpu -o lib/ --size K=128,V=128
  chunkwise build gla.cw delta.cw --target cpu-avx2 --dtype bf16 --name attention -o lib/
  chunkwise build delta.cw --target sm_90a,sm_80 --dtype bf16 -o lib/ --size K=128,V=128
  cc -O2 lib/example.c -Llib -lattention -Wl,-rpath,lib -lm -o example")]
pub struct Arguments {
    /// Programs; every recurrence in them becomes part of the library
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What to build for: one kind of processor, or families of GPUs
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Target::Cpu])]
    target: Vec<Target>,
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

    use chunkwise_abi::gpu::GpuRecurrence;
    use chunkwise_abi::{ABI_VERSION, DType, Manifest, Signature};
    use chunkwise_compiler::artifact::{self, Parts};
    use chunkwise_compiler::compile::Request;
    use chunkwise_compiler::derive::form::Form;
    use chunkwise_compiler::target::cpu::{CpuTarget, LEVELS, Level};
    use chunkwise_compiler::target::nvptx::Family;
    use chunkwise_dsl::program::Program;

    use super::{Arguments, Target};
    use crate::engine::request;
    use crate::failure::Failure;
    use crate::options::Arch;
    use crate::source::{Checked, plain};
    use crate::tensors::write_whole;
    use crate::{c_gpu, c_interface, gpu, report, tuning};

    /// What was asked for.
    enum Targets {
        Processor(CpuTarget),
        Gpus(Vec<&'static Family>),
    }

    /// What a folder gets besides the library itself.
    struct Made {
        manifest: Manifest,
        header: String,
        example: String,
        makefile: String,
        /// Records of tuning, by the names of their files.
        tuning: Vec<(String, String)>,
    }

    pub fn run(arguments: &Arguments) -> Result<(), Failure> {
        let targets = targets(&arguments.target)?;
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
        let made = match targets {
            Targets::Processor(target) => for_processor(arguments, &request, dtype, &programs, &name, &target)?,
            Targets::Gpus(families) => for_gpus(arguments, &request, dtype, &programs, &name, &families)?,
        };
        let json = serde_json::to_string_pretty(&made.manifest)
            .map_err(|error| Failure::Ours(format!("the manifest cannot be written: {error}")))?;
        let mut files = vec![
            (format!("{name}.json"), format!("{json}\n")),
            (format!("{name}.h"), made.header),
            ("example.c".to_owned(), made.example),
            ("Makefile".to_owned(), made.makefile),
        ];
        if !made.tuning.is_empty() {
            let folder = arguments.output.join("tuning");
            std::fs::create_dir_all(&folder).map_err(|error| cannot(&folder, &error))?;
            files.extend(made.tuning.into_iter().map(|(file, text)| (format!("tuning/{file}"), text)));
        }
        for (file, text) in &files {
            write_whole(&arguments.output.join(file), text.as_bytes())?;
        }
        if arguments.json {
            report::say(json);
            return Ok(());
        }
        for file in std::iter::once(&made.manifest.library).chain(files.iter().map(|(file, _)| file)) {
            report::say(arguments.output.join(file).display());
        }
        Ok(())
    }

    fn for_processor(
        arguments: &Arguments,
        request: &Request,
        dtype: DType,
        programs: &[&Program],
        name: &str,
        target: &CpuTarget,
    ) -> Result<Made, Failure> {
        let mut artifacts = Vec::new();
        for program in programs {
            let instance = arguments.which.instance(program)?;
            artifacts.push(artifact::compile_cpu(&instance, request, Parts::Both, dtype, target)?);
        }
        let objects = artifacts.iter().enumerate().map(|(at, made)| (format!("{at}.o"), made.object.clone())).collect();
        let library = format!("lib{name}.so");
        link(objects, &[], &arguments.output, &library)?;
        let manifest = Manifest {
            abi: ABI_VERSION,
            library,
            features: target.level.needs().iter().map(|need| need.trim_start_matches('+').to_owned()).collect(),
            recurrences: artifacts.into_iter().map(|made| made.signature).collect(),
            gpu: vec![],
        };
        Ok(Made {
            header: c_interface::header(name, &manifest),
            example: c_interface::example(name, &manifest, programs),
            makefile: c_interface::makefile(name),
            tuning: vec![],
            manifest,
        })
    }

    fn for_gpus(
        arguments: &Arguments,
        request: &Request,
        dtype: DType,
        programs: &[&Program],
        name: &str,
        families: &[&'static Family],
    ) -> Result<Made, Failure> {
        let assembler = gpu::assembler()?;
        let mut recurrences: Vec<GpuRecurrence> = Vec::new();
        let mut functions = Vec::new();
        let mut tuning = Vec::new();
        for program in programs {
            let instance = arguments.which.instance(program)?;
            let records = tuning::records(&instance, dtype)?;
            let mut made = Vec::new();
            for family in families {
                // Only chunks give a choice.
                let tuned = tuning::of_library(&records, family.name).filter(|_| request.form == Form::Chunkwise);
                made.push(gpu::make(&instance, request, Parts::Both, dtype, family, tuned)?);
            }
            tuning.extend(records.into_iter().map(|record| (record.file, record.text)));
            functions.extend(c_gpu::functions(&made, assembler.as_ref())?);
            recurrences.extend(made);
        }
        let library = format!("lib{name}.so");
        // One signature a recurrence: families differ in code alone.
        let signatures: Vec<&Signature> = recurrences.iter().step_by(families.len()).map(|it| &it.signature).collect();
        let header = c_gpu::header(name, &signatures);
        let (source, mut files) = c_gpu::source(name, &functions);
        files.insert(0, (format!("{name}.c"), source.into_bytes()));
        files.push((format!("{name}.h"), header.clone().into_bytes()));
        link(files, &["-fPIC", "-O2", "-pthread", "-ldl"], &arguments.output, &library)?;
        let example = c_gpu::example(name, &signatures, programs);
        for recurrence in &mut recurrences {
            let modules = [&mut recurrence.forward, &mut recurrence.forward_saving, &mut recurrence.backward];
            // The code is in the library.
            modules.into_iter().flatten().for_each(|module| module.ptx.clear());
        }
        let manifest = Manifest { abi: ABI_VERSION, library, features: vec![], recurrences: vec![], gpu: recurrences };
        Ok(Made { manifest, header, example, makefile: c_gpu::makefile(name), tuning })
    }

    fn targets(targets: &[Target]) -> Result<Targets, Failure> {
        let mut families = Vec::new();
        let mut processors = Vec::new();
        for target in targets {
            match target {
                // The level and not the very processor: the manifest has to be able to say what is needed.
                Target::Cpu => {
                    let host = CpuTarget::host().level;
                    processors.push(*LEVELS.iter().find(|level| **level == host).unwrap_or(&Level::Plain));
                }
                Target::CpuPlain => processors.push(Level::Plain),
                Target::CpuAvx2 => processors.push(Level::Avx2),
                Target::CpuAvx512 => processors.push(Level::Avx512),
                Target::Sm80 => families.push(gpu::family(Arch::Sm80)?),
                Target::Sm90a => families.push(gpu::family(Arch::Sm90a)?),
            }
        }
        families.sort_by_key(|family| family.name);
        families.dedup_by_key(|family| family.name);
        match (processors.as_slice(), families.is_empty()) {
            ([level], true) => Ok(Targets::Processor(CpuTarget::of_level(*level))),
            ([], false) => Ok(Targets::Gpus(families)),
            ([], true) => Err(Failure::Input("--target names nothing to build for".to_owned())),
            ([..], _) => Err(Failure::Input(
                "a library is for one kind of processor, or for families of GPUs; build one after the other, each into \
                 a folder of its own"
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

    /// Makes a shared library of files beside its final place, and moves it there. `cc` gets the objects and sources
    /// among them, and `more`.
    fn link(files: Vec<(String, Vec<u8>)>, more: &[&str], folder: &Path, library: &str) -> Result<(), Failure> {
        std::fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
        let work = tempfile::Builder::new()
            .prefix(".chunkwise-")
            .tempdir_in(folder)
            .map_err(|error| cannot(folder, &error))?;
        let mut command = Command::new("cc");
        command.current_dir(work.path());
        command.arg("-shared").arg("-o").arg(library).arg(format!("-Wl,-soname,{library}"));
        for (name, content) in files {
            let file = work.path().join(&name);
            std::fs::write(&file, content).map_err(|error| cannot(&file, &error))?;
            if name.ends_with(".o") || name.ends_with(".c") {
                command.arg(name);
            }
        }
        command.args(more);
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
