//! `enjambre storage`: what can be done to the databases of a tracker or peer while it is stopped, and what can be said
//! about its backend at any time.

mod bench;
mod check;
mod databases;
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Check that the configured backend keeps its obligations, apart from the data of the node
    Check(check::Arguments),
    /// Measure the configured backend, apart from the data of the node
    Bench(bench::Arguments),
    /// Commit until killed; started by `check --crash`
    #[command(hide = true)]
    Victim(check::victim::Arguments),
    /// Count what is in the databases
    Stats(stats::Arguments),
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Check(arguments) => check::run(context, arguments).await,
        Command::Bench(arguments) => bench::run(context, arguments).await,
        Command::Victim(arguments) => check::victim::run(context, arguments).await,
        Command::Stats(arguments) => stats::run(context, arguments).await,
    }
}
