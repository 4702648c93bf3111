//! The bridges between levels, one file each, down only.
