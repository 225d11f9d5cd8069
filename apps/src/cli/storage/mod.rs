//! `enjambre storage`: commands on the databases of a stopped node, and tests of its storage backend.

mod bench;
mod check;
mod compact;
pub(super) mod copy;
mod databases;
mod dump;
mod scratch;
mod stats;

use clap::{Args, Subcommand};
use enjambre_control::Failure;

use super::context::Context;
use super::output::Json;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy all data of a node to another storage, possibly of another backend
    Copy(copy::Arguments),
    /// Run the conformance tests on the configured backend, in temporary databases
    Check(check::Arguments),
    /// Benchmark the configured backend, in temporary databases
    Bench(bench::Arguments),
    /// Commit records until the process is killed; started by `check --crash`
    #[command(hide = true)]
    CrashWriter(check::crash_writer::Arguments),
    /// Return the space of removed data to the file system
    Compact,
    /// Count the entries and bytes in the databases
    Stats(Json),
    /// Print the records of the databases, one JSON object per line
    Dump(dump::Arguments),
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        // Handled by the caller, because it loads two configurations of its own.
        Command::Copy(_) => Ok(()),
        Command::Check(arguments) => check::run(context, arguments).await,
        Command::Bench(arguments) => bench::run(context, arguments).await,
        Command::CrashWriter(arguments) => check::crash_writer::run(context, arguments).await,
        Command::Compact => compact::run(context).await,
        Command::Stats(Json { json }) => stats::run(context, json).await,
        Command::Dump(arguments) => dump::run(context, arguments).await,
    }
}
