//! What processors of this family can do: one row a level, and which row the host is.
//!
//! Numbers about hardware stand here and nowhere else.

use crate::lower::tile_to_mlir::Vectors;
use inkwell::targets::TargetMachine;

/// A level of vector instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// x86-64 as every such processor has it: SSE2.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// Every level, the least first.
pub const LEVELS: [Level; 3] = [Level::Plain, Level::Avx2, Level::Avx512];

impl Level {
    /// Its name, as `--target` and manifests spell it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Plain => "plain",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The processor LLVM is told of, when not the host: the least that has the level.
    fn processor(self) -> &'static str {
        match self {
            Level::Plain => "x86-64",
            Level::Avx2 => "x86-64-v3",
            Level::Avx512 => "x86-64-v4",
        }
    }

    fn vectors(self) -> Vectors {
        match self {
            Level::Plain => Vectors { lanes: 4, masks: false, f16: false },
            Level::Avx2 => Vectors { lanes: 8, masks: false, f16: true },
            Level::Avx512 => Vectors { lanes: 16, masks: true, f16: true },
        }
    }

    pub fn needs(self) -> &'static [&'static str] {
        match self {
            Level::Plain => &[],
            Level::Avx2 => &["+avx2", "+fma", "+f16c", "+bmi2"],
            Level::Avx512 => &["+avx512f", "+avx512bw", "+avx512dq", "+avx512vl", "+avx2", "+fma", "+f16c", "+bmi2"],
        }
    }
}

/// A processor to compile for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CpuTarget {
    /// Its level.
    pub level: Level,
    /// LLVM's name of the processor.
    pub processor: String,
    /// LLVM's list of features, empty for what the name implies.
    pub features: String,
}

impl CpuTarget {
    /// This machine's processor.
    pub fn host() -> CpuTarget {
        let processor = TargetMachine::get_host_cpu_name().to_string();
        let features = TargetMachine::get_host_cpu_features().to_string();
        let has = |level: &&Level| level.needs().iter().all(|need| features.split(',').any(|feature| feature == *need));
        let level = *LEVELS.iter().rev().find(has).expect("the plain level needs nothing");
        CpuTarget { level, processor, features }
    }

    /// Any processor of a level: what to build libraries for, and to test with.
    pub fn of_level(level: Level) -> CpuTarget {
        CpuTarget { level, processor: level.processor().to_string(), features: String::new() }
    }

    /// Whether this machine runs what is compiled for a level.
    pub fn host_runs(level: Level) -> bool {
        CpuTarget::host().level >= level
    }

    /// What the lowering has to know.
    pub fn vectors(&self) -> Vectors {
        self.level.vectors()
    }
}
