//! `enjambre verify`

use clap::Args;

use super::output::{Stdout, note};
use super::{Context, drive};
use crate::control::message::{Command, Event};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A name, an id, or the first 8 or more digits of one; everything where it is left out
    #[arg(value_name = "NAME|ID")]
    query: Option<String>,
}

pub(super) async fn run(context: Context<'_>, Arguments { query }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::Verified { name, id, good, bad, missing } => {
            let what = name.map_or_else(|| id.to_string(), |name| format!("{name}  {id}"));
            let state = match (bad, missing) {
                (0, 0) => format!("right, {good} pieces"),
                (0, missing) => format!("right so far, {good} pieces; {missing} are missing"),
                (bad, _) => format!("DAMAGED: {bad} pieces are wrong, {good} are right"),
            };
            stdout.line(&format!("{what}: {state}"));
        }
        Event::Warning { message } => note(&format!("warning: {message}")),
        _ => {}
    };
    drive::run(&context, Command::Verify { query }, Reach::Command, &mut show).await?;
    stdout.end()
}
