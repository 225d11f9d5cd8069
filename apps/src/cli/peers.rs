//! `enjambre peers`

use clap::Args;

use super::context::Context;
use super::invite::short;
use super::output::{Stdout, time};
use super::runner;
use crate::control::message::{Command, Event, MemberLine};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { json }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Member(member) if json => stdout.json(&member),
        Event::Member(member) => stdout.line(&line(&member)),
        _ => {}
    };
    runner::run_at_tracker(&context, Command::Peers, &mut show).await?;
    stdout.finish()
}

fn line(member: &MemberLine) -> String {
    let state = match (member.revoked_ms, member.online, member.last_seen_ms) {
        (Some(at), ..) => format!("revoked {}", time(at)),
        (None, true, _) => "online".to_owned(),
        (None, false, Some(at)) => format!("last seen {}", time(at)),
        (None, false, None) => "offline".to_owned(),
    };
    let invitations: String = member.invitations.iter().map(|id| format!(" with {}", short(id))).collect();
    let joined = time(member.joined_ms);
    format!("{}  {:<9}  joined {joined}{invitations}  {state}", member.peer, member.rights.to_string())
}
