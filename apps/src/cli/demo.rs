//! `enjambre demo`

use std::path::PathBuf;

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What to publish; 256 MiB of random bytes where it is left out
    path: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments, _stop: CancellationToken) -> Result<(), Failure> {
    let _ = &arguments.path;
    Err(Failure::failed("not yet"))
}
