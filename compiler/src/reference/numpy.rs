//! Prints a program as a NumPy function.
