//! What machine code is made for, and how.

pub mod cpu;
pub mod nvptx;
