//! The command line.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

/// Benchmark Enjambre against other tools on this machine, over loopback
///
/// Uses the installed ones of aria2, libtorrent (Python module), rqbit, sendme, rsync, curl with nginx, opentracker and
/// aquatic_udp. Every received file is compared with the original.
#[derive(Debug, Parser)]
#[command(name = "enjambre-bench", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    /// What to measure.
    #[command(flatten)]
    pub(crate) options: Options,
    /// A program that takes part in the measurement.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only these cases; see --list
    #[arg(long = "case", value_name = "CASE", value_delimiter = ',')]
    pub(crate) cases: Vec<String>,
    /// Run only these tools, by the first word of their names
    #[arg(long, value_name = "TOOL", value_delimiter = ',')]
    pub(crate) tools: Vec<String>,
    /// Number of rounds of each tool in each case
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Size of the file instead of the default of the case
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,
    /// Include the cases that need much disk space and time
    #[arg(long)]
    pub(crate) large: bool,
    /// Directory for temporary files [default: the temporary directory of the system]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Write all samples to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the tables to FILE, between its markers if it has any
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// The program to measure [default: target/release/enjambre of the workspace]
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// An earlier build of the program, to run in turn with it in every case
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,
    /// List the cases and the installed tools
    #[arg(long)]
    pub(crate) list: bool,
    /// The working directory, created and removed by the parent process
    #[arg(long, hide = true)]
    pub(crate) inside: Option<PathBuf>,
}

/// Programs that take part in the measurement.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The baseline program: the least that any tool can take
    Limit {
        /// Which side
        #[command(subcommand)]
        side: Side,
    },
}

/// A process of the baseline program.
#[derive(Debug, Subcommand)]
pub(crate) enum Side {
    /// Serve a file
    Send {
        /// The file
        file: PathBuf,
    },
    /// Fetch a file, hash it and write it
    Receive {
        /// What `send` printed
        address: String,
        /// Where to
        file: PathBuf,
    },
    /// Hash a file with all cores
    Hash {
        /// The file
        file: PathBuf,
    },
}
