//! `enjambre revoke`

use clap::Args;
use serde_json::json;

use super::output::Stdout;
use super::{Context, drive};
use crate::control::message::{Command, Event};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The id of a peer, or the first digits of one
    peer: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { peer, json }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Revoked { peer, new } if json => stdout.json(&json!({ "peer": peer, "new": new })),
        Event::Revoked { peer, new: true } => stdout.line(&format!("threw out {peer}")),
        Event::Revoked { peer, new: false } => stdout.line(&format!("{peer} was thrown out before")),
        _ => {}
    };
    drive::run_at_tracker(&context, Command::Revoke { peer }, &mut show).await?;
    stdout.end()
}
