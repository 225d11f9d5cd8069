//! `enjambre revoke`

use clap::Args;
use enjambre_control::{Command, Event, Failure, InvitationLine, Revoked};
use serde_json::json;

use super::context::Context;
use super::invite::short;
use super::output::time;
use super::runner;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Id of the peer, or a prefix of it
    peer: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { peer, json }: Arguments) -> Result<(), Failure> {
    runner::print_at_tracker(&context, Command::Revoke { peer }, |stdout, event| match event {
        Event::Revoked(Revoked { peer, new, cancelled }) if json => {
            let cancelled: Vec<_> = cancelled.into_iter().map(|invitation| invitation.id).collect();
            stdout.json(&json!({ "peer": peer, "new": new, "cancelled": cancelled }));
        }
        Event::Revoked(Revoked { peer, new: true, cancelled }) => {
            stdout.line(&format!("revoked {peer}"));
            cancelled.iter().for_each(|invitation| stdout.line(&line(invitation)));
        }
        Event::Revoked(Revoked { peer, new: false, .. }) => {
            stdout.line(&format!("{peer} is already revoked"));
        }
        _ => {}
    })
    .await
}

fn line(invitation: &InvitationLine) -> String {
    let InvitationLine { id, uses, expires_ms, .. } = invitation;
    format!(
        "cancelled invitation {} of this peer (uses left: {uses}, expires {}); other holders need a new invitation",
        short(id),
        time(*expires_ms)
    )
}
