//! `enjambre export`

use std::path::PathBuf;

use clap::Args;

use super::output::{Stdout, size};
use super::{Context, drive};
use crate::control::message::{Command, Event};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A name, an id, or the first 8 or more digits of one
    #[arg(value_name = "NAME|ID")]
    query: String,
    /// Where to write it
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Replace what is at PATH
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { query, output, force } = arguments;
    let command = Command::Export { query, output: std::path::absolute(output)?, force };
    let mut stdout = Stdout::default();
    let mut show = |event| {
        if let Event::Exported { path, bytes, .. } = event {
            stdout.line(&format!("{} ({})", path.display(), size(bytes)));
        }
    };
    drive::run(&context, command, Reach::Command, &mut show).await?;
    stdout.end()
}
