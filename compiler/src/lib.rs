//! From a checked program to compiled kernels, one stage after another.
