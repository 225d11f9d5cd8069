//! `enjambre storage`: what can be done to the databases of a tracker or peer while it is stopped.

mod databases;
mod stats;

use clap::{Args, Subcommand};

use super::Context;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count what is in the databases
    Stats(stats::Arguments),
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Stats(arguments) => stats::run(context, arguments).await,
    }
}
