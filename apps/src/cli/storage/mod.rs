//! `enjambre storage`: what can be done to the databases of a tracker or peer while it is stopped, and what can be said
//! about its backend at any time.

mod bench;
mod check;
pub(super) mod copy;
mod databases;
mod dump;
mod stats;
mod trial;

use clap::{Args, Subcommand};

use super::Context;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// The command that has two configurations of its own, if it is that.
    pub(super) const fn copy(&self) -> Option<&copy::Arguments> {
        match &self.command {
            Command::Copy(arguments) => Some(arguments),
            _ => None,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy everything in one configured storage to another one, of whatever backend
    Copy(copy::Arguments),
    /// Check that the configured backend keeps its obligations, apart from the data of the node
    Check(check::Arguments),
    /// Measure the configured backend, apart from the data of the node
    Bench(bench::Arguments),
    /// Commit until killed; started by `check --crash`
    #[command(hide = true)]
    Victim(check::victim::Arguments),
    /// Count what is in the databases
    Stats(stats::Arguments),
    /// Print the records, one JSON object a line
    Dump(dump::Arguments),
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        // It has two configurations and none of these.
        Command::Copy(_) => Ok(()),
        Command::Check(arguments) => check::run(context, arguments).await,
        Command::Bench(arguments) => bench::run(context, arguments).await,
        Command::Victim(arguments) => check::victim::run(context, arguments).await,
        Command::Stats(arguments) => stats::run(context, arguments).await,
        Command::Dump(arguments) => dump::run(context, arguments).await,
    }
}
