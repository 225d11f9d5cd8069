//! `enjambre unpin`

use clap::Args;
use enjambre_control::{Command, Event, Failure};

use super::context::Context;
use super::runner;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name, id, or a prefix of an id with at least 8 digits
    #[arg(value_name = "NAME|ID")]
    query: String,
}

pub(super) async fn run(context: Context<'_>, Arguments { query }: Arguments) -> Result<(), Failure> {
    runner::print_at_either(&context, Command::Unpin { query }, |stdout, event| {
        if let Event::Unpinned { id } = event {
            stdout.line(&format!("unpinned {id}"));
        }
    })
    .await
}
