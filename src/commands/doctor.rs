//! `chunkwise doctor`.
use crate::failure::Failure;
/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}
/// Does it.
pub fn run(_arguments: &Arguments) -> Result<(), Failure> { Ok(()) }
