//! `enjambre revoke`

use clap::Args;
use serde_json::json;

use super::invite::short;
use super::output::{Stdout, time};
use super::{Context, drive};
use crate::control::message::{Command, Event, InvitationLine};
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
        Event::Revoked { peer, new, cancelled } if json => {
            let cancelled: Vec<_> = cancelled.into_iter().map(|invitation| invitation.id).collect();
            stdout.json(&json!({ "peer": peer, "new": new, "cancelled": cancelled }));
        }
        Event::Revoked { peer, new: true, cancelled } => {
            stdout.line(&format!("threw out {peer}"));
            cancelled.iter().for_each(|invitation| stdout.line(&line(invitation)));
        }
        Event::Revoked { peer, new: false, .. } => stdout.line(&format!("{peer} was thrown out before")),
        _ => {}
    };
    drive::run_at_tracker(&context, Command::Revoke { peer }, &mut show).await?;
    stdout.end()
}

fn line(invitation: &InvitationLine) -> String {
    let InvitationLine { id, uses, until_ms, .. } = invitation;
    format!(
        "cancelled the invitation {} that it came by, for {uses} more until {}; whoever else has it needs another",
        short(id),
        time(*until_ms)
    )
}
