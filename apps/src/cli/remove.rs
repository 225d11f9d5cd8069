//! `enjambre remove`

use clap::Args;

use super::output::Stdout;
use super::{Context, drive};
use crate::control::message::{Command, Event};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A name, an id, or the first 8 or more digits of one
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
    // The trackers hear of it when the peer runs next, if it does not run now: it then announces what it has.
    drive::run(&context, Command::Remove { query }, Reach::Offline, &mut show).await?;
    stdout.end()
}
