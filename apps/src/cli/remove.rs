//! `enjambre remove`

use clap::Args;

use super::context::Context;
use super::output::Stdout;
use super::runner;
use crate::control::message::{Command, Event};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name, id, or a prefix of an id with at least 8 digits
    #[arg(value_name = "NAME|ID")]
    query: String,
}

pub(super) async fn run(context: Context<'_>, Arguments { query }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| {
        if let Event::Removed { name, id } = event {
            stdout.line(&match name {
                Some(name) => format!("removed {name}  {id}"),
                None => format!("removed {id}"),
            });
        }
    };
    // If no peer is running, the trackers learn of the removal when the peer starts and announces its files.
    runner::run(&context, Command::Remove { query }, Reach::Offline, &mut show).await?;
    stdout.finish()
}
