//! `enjambre peers`

use enjambre_control::{Command, Event, Failure, MemberLine};

use super::context::Context;
use super::invite::short;
use super::output::time;
use super::runner;

pub(super) async fn run(context: Context<'_>, json: bool) -> Result<(), Failure> {
    runner::print_at_tracker(&context, Command::Peers, |stdout, event| match event {
        Event::Member(member) if json => stdout.json(&member),
        Event::Member(member) => stdout.line(&line(&member)),
        _ => {}
    })
    .await
}

fn line(member: &MemberLine) -> String {
    let state = match (member.revoked_ms, member.online, member.last_seen_ms) {
        (Some(at), ..) => format!("revoked {}", time(at)),
        (None, true, _) => "online".to_owned(),
        (None, false, Some(at)) => format!("last seen {}", time(at)),
        (None, false, None) => "no recent connection".to_owned(),
    };
    let invitations: String = member.invitations.iter().map(|id| format!(" with {}", short(id))).collect();
    let joined = time(member.joined_ms);
    format!("{}  {:<9}  joined {joined}{invitations}  {state}", member.peer, member.rights.to_string())
}
