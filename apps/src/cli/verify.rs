//! `enjambre verify`

use clap::Args;
use enjambre_control::{Command, Event, Failure, Verified};

use super::context::Context;
use super::runner;
use crate::display::count;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name, id, or a prefix of an id with at least 8 digits [default: all files]
    #[arg(value_name = "NAME|ID")]
    query: Option<String>,
}

pub(super) async fn run(context: Context<'_>, Arguments { query }: Arguments) -> Result<(), Failure> {
    runner::print(&context, Command::Verify { query }, |stdout, event| {
        if let Event::Verified(Verified { name, id, good, bad, missing }) = event {
            let file = name.map_or_else(|| id.to_string(), |name| format!("{name}  {id}"));
            let state = match (bad, missing) {
                (0, 0) => format!("valid, {}", count(good, "piece")),
                (0, missing) if good == 0 => format!("not stored, {} missing", count(missing, "piece")),
                (0, missing) => {
                    format!("valid but incomplete, {} valid, {missing} missing", count(good, "piece"))
                }
                (bad, _) => format!("DAMAGED, {} damaged, {good} valid", count(bad, "piece")),
            };
            stdout.line(&format!("{file}: {state}"));
        }
    })
    .await
}
