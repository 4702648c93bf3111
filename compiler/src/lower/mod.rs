//! The bridges between levels, one file each, down only.

#[cfg(feature = "llvm")]
pub mod graph_to_nvvm;
pub mod graph_to_tile;
#[cfg(feature = "llvm")]
pub mod mlir_to_llvm;
pub mod program_to_graph;
#[cfg(feature = "llvm")]
pub mod scan_to_nvvm;
#[cfg(feature = "llvm")]
pub mod tile_to_mlir;
#[cfg(feature = "llvm")]
pub mod tile_to_nvvm;
