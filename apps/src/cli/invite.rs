//! `enjambre invite`

use clap::Args;
use enjambre_core::model::endpoint::Endpoint;
use serde_json::json;

use super::output::{Stdout, note};
use super::{Context, drive};
use crate::config::value::Span;
use crate::control::message::{Command, Event};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How many peers may come in by it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// For how long
    #[arg(long, default_value = "24h", value_name = "TIME")]
    expires: Span,
    /// Those who come in may download, and not publish
    #[arg(long)]
    read_only: bool,
    /// Another tracker on the same database, to be told with it; SCHEME://ID@HOST:PORT
    #[arg(long = "tracker", value_name = "ENDPOINT")]
    trackers: Vec<Endpoint>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { uses, expires, read_only, trackers, json } = arguments;
    let millis = u64::try_from(expires.get().as_millis()).unwrap_or(u64::MAX);
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Invitation { invitation, uses, until_ms } if json => {
            stdout.json(&json!({ "invitation": invitation, "uses": uses, "until_ms": until_ms }));
        }
        Event::Invitation { invitation, .. } => stdout.line(&invitation),
        Event::Warning { message } => note(&format!("warning: {message}")),
        _ => {}
    };
    let command = Command::Invite { uses, millis, read_only, trackers };
    drive::run_at_tracker(&context, command, &mut show).await?;
    stdout.end()
}
