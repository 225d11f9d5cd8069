//! `enjambre reserve`

use clap::Args;
use enjambre_core::model::name::Name;
use serde_json::json;

use super::output::Stdout;
use super::{Context, drive};
use crate::control::message::{Command, Event};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The name
    name: Name,
    /// Who alone publishes it from now on: the id of a peer, or the first digits of one
    #[arg(required_unless_present = "release", conflicts_with = "release")]
    peer: Option<String>,
    /// Everybody publishes it from now on
    #[arg(long)]
    release: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { name, peer, json, .. } = arguments;
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Reserved { name, by } if json => stdout.json(&json!({ "name": name, "by": by })),
        Event::Reserved { name, by: Some(by) } => stdout.line(&format!("only {by} publishes {name}")),
        Event::Reserved { name, by: None } => stdout.line(&format!("everybody publishes {name}")),
        _ => {}
    };
    drive::run_at_tracker(&context, Command::Reserve { name, peer }, &mut show).await?;
    stdout.end()
}
