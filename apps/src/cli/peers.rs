//! `enjambre peers`

use clap::Args;

use super::invite::short;
use super::output::{Stdout, time};
use super::{Context, drive};
use crate::control::message::{Command, Event, MemberLine};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object a line
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
    drive::run_at_tracker(&context, Command::Peers, &mut show).await?;
    stdout.end()
}

fn line(member: &MemberLine) -> String {
    let state = match (member.revoked_ms, member.alive, member.seen_ms) {
        (Some(at), ..) => format!("thrown out {}", time(at)),
        (None, true, _) => "there".to_owned(),
        (None, false, Some(at)) => format!("last seen {}", time(at)),
        (None, false, None) => "away".to_owned(),
    };
    let by: String = member.invitations.iter().map(|id| format!(" by {}", short(id))).collect();
    let joined = time(member.joined_ms);
    format!("{}  {:<9}  joined {joined}{by}  {state}", member.peer, member.rights.to_string())
}
