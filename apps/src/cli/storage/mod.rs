//! `enjambre storage`: what can be done to the databases of a tracker or peer while it is stopped.

pub(super) mod copy;
mod databases;
mod dump;
mod stats;

use clap::{Args, Subcommand};

use super::Context;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy everything in one configured storage to another one, of whatever backend
    Copy(copy::Arguments),
    /// Count what is in the databases
    Stats(stats::Arguments),
    /// Print the records, one JSON object a line
    Dump(dump::Arguments),
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        // It has two configurations and none of these.
        Command::Copy(_) => Ok(()),
        Command::Stats(arguments) => stats::run(context, arguments).await,
        Command::Dump(arguments) => dump::run(context, arguments).await,
    }
}
