//! The tile program: text, verifier and interpreter.

#[path = "tile/interp.rs"]
mod interp;
#[path = "tile/kernels.rs"]
mod kernels;
#[path = "tile/refuse.rs"]
mod refuse;
#[path = "tile/round_trip.rs"]
mod round_trip;
#[path = "tile/sound.rs"]
mod sound;
