//! The command line.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

/// Measure Enjambre beside other tools on this machine, over loopback.
///
/// Nothing is installed: of aria2, libtorrent (its Python module), rqbit, sendme, rsync, curl with nginx, opentracker
/// and aquatic_udp those take part that are found. Everything that arrives is compared with what was sent.
#[derive(Debug, Parser)]
#[command(name = "enjambre-compare", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    /// What to measure.
    #[command(flatten)]
    pub(crate) options: Options,
    /// One of the programs that it measures with.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these cases, by their short names; see --list
    #[arg(long = "case", value_name = "CASE", value_delimiter = ',')]
    pub(crate) cases: Vec<String>,
    /// Only these tools, by the first word of their names
    #[arg(long, value_name = "TOOL", value_delimiter = ',')]
    pub(crate) tools: Vec<String>,
    /// How often each tool runs in each case, in turn with the others
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// The size of the file, instead of the one that belongs to the case
    #[arg(long)]
    pub(crate) size: Option<ByteSize>,
    /// The cases that need much room and time as well
    #[arg(long)]
    pub(crate) large: bool,
    /// Where to put the files; each run leaves it as it was [default: the system's temporary folder]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Write all samples to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the tables to FILE: between its markers where it has some, else as a new file
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Only list the cases, and which tools there are
    #[arg(long)]
    pub(crate) list: bool,
    /// The folder to work in; whoever made it starts this process and cleans up behind it
    #[arg(long, hide = true)]
    pub(crate) inside: Option<PathBuf>,
}

/// The programs that it measures with.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The least that any tool can take
    Limit {
        /// Which side
        #[command(subcommand)]
        side: Side,
    },
}

/// A process of the limit program.
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
