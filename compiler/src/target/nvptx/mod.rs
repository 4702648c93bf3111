//! NVIDIA GPUs: what a family has, as rows of a table, and PTX for it.
//!
//! Comes in: tile programs and a family. Goes out: PTX. It never runs what it makes, and never asks for a GPU.

mod emit;

pub use emit::{Compiled, Want, compile_kernels};

/// A family of GPUs: all of a row hold for every one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The name of its instructions, as compilers take it.
    pub name: &'static str,
    /// The oldest compute capability it runs on.
    pub capability: (u32, u32),
    /// Shared memory a block may use, in bytes.
    pub shared_limit: usize,
    /// Four warps can work together: multiply (`wgmma`) and share out registers (`setmaxnreg`); and a warp writes matrices as
    /// it reads them (`stmatrix`).
    pub warpgroups: bool,
    /// What it is good for, in words.
    pub covers: &'static str,
}

/// The families compiled for, the most portable first. Shared memory: CUDA C++ Programming Guide, table of technical
/// specifications by compute capability; the portable row takes what 8.6 and 8.9 have, less the kilobyte the system
/// keeps.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "sm_80",
        capability: (8, 0),
        shared_limit: 99 * 1024,
        warpgroups: false,
        covers: "compute capability 8.0 and newer",
    },
    Family {
        name: "sm_90a",
        capability: (9, 0),
        shared_limit: 227 * 1024,
        warpgroups: true,
        covers: "compute capability 9.0 (Hopper) only",
    },
];

/// The family of a name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

/// The family for a GPU of a compute capability; none if it is too old.
pub fn family_of(major: i32, minor: i32) -> Option<&'static Family> {
    match (major, minor) {
        (9, 0) => family("sm_90a"),
        (8.., _) => family("sm_80"),
        _ => None,
    }
}
