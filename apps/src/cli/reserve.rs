//! `enjambre reserve`

use clap::Args;
use enjambre_control::{Command, Event, Failure, Reserved};
use enjambre_core::Name;

use super::context::Context;
use super::runner;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name of the file or directory
    name: Name,
    /// Id, or a prefix of the id, of the only peer that can publish the name
    #[arg(required_unless_present = "release", conflicts_with = "release")]
    peer: Option<String>,
    /// Release the name, so that all peers can publish it
    #[arg(long)]
    release: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { name, peer, json, .. } = arguments;
    runner::print_at_tracker(&context, Command::Reserve { name, peer }, |stdout, event| match event {
        Event::Reserved(reserved) if json => stdout.json(&reserved),
        Event::Reserved(Reserved { name, peer: Some(peer), replaced }) => {
            let replaced = replaced.map(|peer| format!("; replaced the reservation for {peer}"));
            stdout.line(&format!("reserved {name} for {peer}{}", replaced.unwrap_or_default()));
        }
        Event::Reserved(Reserved { name, peer: None, .. }) => stdout.line(&format!("released {name}")),
        _ => {}
    })
    .await
}
