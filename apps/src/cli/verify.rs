//! `enjambre verify`

use clap::Args;

use super::context::Context;
use super::output::{Stdout, warn};
use super::runner;
use crate::control::message::{Command, Event};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name, id, or a prefix of an id with at least 8 digits [default: all files]
    #[arg(value_name = "NAME|ID")]
    query: Option<String>,
}

pub(super) async fn run(context: Context<'_>, Arguments { query }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Verified { name, id, good, bad, missing } => {
            let file = name.map_or_else(|| id.to_string(), |name| format!("{name}  {id}"));
            let state = match (bad, missing) {
                (0, 0) => format!("valid, {good} pieces"),
                (0, missing) => format!("valid but incomplete, {good} pieces valid, {missing} missing"),
                (bad, _) => format!("DAMAGED, {bad} pieces damaged, {good} valid"),
            };
            stdout.line(&format!("{file}: {state}"));
        }
        Event::Warning { message } => warn(&message),
        _ => {}
    };
    runner::run(&context, Command::Verify { query }, Reach::Command, &mut show).await?;
    stdout.finish()
}
