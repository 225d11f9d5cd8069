//! `enjambre remove`

use clap::Args;
use enjambre_control::{Command, Event, Failure, Removed};

use super::context::Context;
use super::runner;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name, id, or a prefix of an id with at least 8 digits
    #[arg(value_name = "NAME|ID")]
    query: String,
}

pub(super) async fn run(context: Context<'_>, Arguments { query }: Arguments) -> Result<(), Failure> {
    runner::print(&context, Command::Remove { query }, |stdout, event| match event {
        Event::Removed(Removed { name: Some(name), id, left: None }) => {
            stdout.line(&format!("removed {name}  {id}"));
        }
        Event::Removed(Removed { name: Some(name), id, left: Some(left) }) => {
            stdout.line(&format!("removed the name {name}; the library contains {id} as {left}"));
        }
        Event::Removed(Removed { name: None, id, .. }) => stdout.line(&format!("removed {id}")),
        _ => {}
    })
    .await
}
