//! `enjambre export`

use std::path::PathBuf;

use clap::Args;
use enjambre_control::{Command, Event, Exported, Failure};

use super::context::Context;
use super::output::size;
use super::runner;
use super::streams::{is_descriptor, is_stdout};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name, id, or a prefix of an id with at least 8 digits
    #[arg(value_name = "NAME|ID")]
    query: String,
    /// Path of the exported file or directory, or with a final / the directory to write it into; a file is written into an
    /// existing directory, too
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Replace an existing file or directory at PATH
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { query, output, force } = arguments;
    if is_stdout(&output) || is_descriptor(&output) {
        return Err(Failure::usage(
            "export writes to a path; to write to an open file, use `enjambre get NAME -o -` and redirect the standard \
             output",
        ));
    }
    let command = Command::Export { query, output: std::path::absolute(output)?, force };
    runner::print(&context, command, |stdout, event| {
        if let Event::Exported(Exported { path, bytes, .. }) = event {
            stdout.line(&format!("{} ({})", path.display(), size(bytes)));
        }
    })
    .await
}
