//! `chunkwise bench`.
use crate::failure::Failure;
/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}
/// Does it.
pub fn run(_arguments: &Arguments) -> Result<(), Failure> { Ok(()) }
