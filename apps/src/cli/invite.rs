//! `enjambre invite`

use clap::Args;
use enjambre_core::model::endpoint::Endpoint;
use serde_json::json;

use super::output::{Stdout, note, time};
use super::{Context, drive};
use crate::config::value::Span;
use crate::control::message::{Command, Event, InvitationLine};
use crate::failure::Failure;

/// So many digits of an invitation's id are shown to people.
pub(super) const SHOWN: usize = 16;

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
    /// List the invitations that still let somebody in
    #[arg(long, conflicts_with_all = ["uses", "expires", "read_only", "trackers", "cancel"])]
    list: bool,
    /// Let nobody in any more by this invitation: an id of --list, or the first digits of one
    #[arg(long, value_name = "ID", conflicts_with_all = ["uses", "expires", "read_only", "trackers"])]
    cancel: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { uses, expires, read_only, trackers, list, cancel, json } = arguments;
    let millis = u64::try_from(expires.get().as_millis()).unwrap_or(u64::MAX);
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Invitation { invitation, id, uses, until_ms } if json => {
            let made = json!({ "invitation": invitation, "id": id, "uses": uses, "until_ms": until_ms });
            stdout.json(&made);
        }
        Event::Invitation { invitation, .. } => stdout.line(&invitation),
        Event::OpenInvitation(invitation) if json => stdout.json(&invitation),
        Event::OpenInvitation(invitation) => stdout.line(&line(&invitation)),
        Event::Cancelled { id } if json => stdout.json(&json!({ "cancelled": id })),
        Event::Cancelled { id } => stdout.line(&format!("nobody comes in by {} any more", short(&id))),
        Event::Warning { message } => note(&format!("warning: {message}")),
        _ => {}
    };
    let command = match cancel {
        Some(id) => Command::CancelInvitation { id },
        None if list => Command::Invitations,
        None => Command::Invite { uses, millis, read_only, trackers },
    };
    drive::run_at_tracker(&context, command, &mut show).await?;
    stdout.end()
}

/// The first digits of an invitation's id.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHOWN).unwrap_or(id)
}

fn line(invitation: &InvitationLine) -> String {
    let InvitationLine { id, rights, uses, until_ms, made_ms } = invitation;
    let (made, until) = (time(*made_ms), time(*until_ms));
    format!("{}  {:<9}  {uses} more until {until}  made {made}", short(id), rights.to_string())
}
