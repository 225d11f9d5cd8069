//! `enjambre invite`

use clap::Args;
use enjambre_control::{Command, Event, Failure, InvitationLine};
use enjambre_core::Endpoint;
use serde_json::json;

use super::context::Context;
use super::number::whole_number;
use super::output::time;
use super::runner;
use crate::config::value::Span;

/// Number of digits of an invitation id in text output.
const SHOWN_DIGITS: usize = 16;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Maximum number of peers that can join with the invitation
    #[arg(long, default_value_t = 1, value_parser = whole_number::<u32>(1..=u32::MAX.into()))]
    uses: u32,
    /// Validity period of the invitation
    #[arg(long, default_value = "24h", value_name = "DURATION")]
    expires: Span,
    /// Grant download rights only; peers that join cannot publish
    #[arg(long)]
    read_only: bool,
    /// Add another tracker of the same swarm to the invitation: SCHEME://ID@HOST:PORT; can be repeated
    #[arg(long = "tracker", value_name = "ENDPOINT")]
    trackers: Vec<Endpoint>,
    /// List the invitations that are still valid
    #[arg(long, conflicts_with_all = ["uses", "expires", "read_only", "trackers", "cancel"])]
    list: bool,
    /// Cancel an invitation; ID is an id from --list or a prefix of one
    #[arg(long, value_name = "ID", conflicts_with_all = ["uses", "expires", "read_only", "trackers"])]
    cancel: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { uses, expires, read_only, trackers, list, cancel, json } = arguments;
    let lifetime_ms = u64::try_from(expires.get().as_millis()).unwrap_or(u64::MAX);
    let command = match cancel {
        Some(id) => Command::CancelInvitation { id },
        None if list => Command::Invitations,
        None => Command::Invite { uses, lifetime_ms, read_only, trackers },
    };
    runner::print_at_tracker(&context, command, |stdout, event| match event {
        Event::Invitation(created) if json => stdout.json(&created),
        Event::Invitation(created) => stdout.line(&created.invitation),
        Event::OpenInvitation(invitation) if json => stdout.json(&invitation),
        Event::OpenInvitation(invitation) => stdout.line(&line(&invitation)),
        Event::Cancelled { id } if json => stdout.json(&json!({ "cancelled": id })),
        Event::Cancelled { id } => stdout.line(&format!("cancelled invitation {}", short(&id))),
        _ => {}
    })
    .await
}

/// Returns the first digits of an invitation id.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHOWN_DIGITS).unwrap_or(id)
}

fn line(invitation: &InvitationLine) -> String {
    let InvitationLine { id, rights, uses, expires_ms, created_ms } = invitation;
    let (created, expires) = (time(*created_ms), time(*expires_ms));
    format!(
        "{}  {:<9}  uses left: {uses}  expires {expires}  created {created}",
        short(id),
        rights.to_string()
    )
}
