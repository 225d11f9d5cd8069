//! `enjambre log`: the log level of the running node.

use clap::Args;
use enjambre_control::{Command, Event, Failure};

use super::context::Context;
use super::output::{Stdout, warn};
use super::runner::connect_to_running;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The new level: error, warn, info, debug, trace, or a filter such as info,enjambre_swarm=debug [default: show the level]
    level: Option<String>,
}

pub(super) async fn run(context: Context<'_>, Arguments { level }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::LogLevel { level } => stdout.line(&level),
        Event::Warning { message } => warn(&message),
        _ => {}
    };
    let kind = context.loaded.kind;
    let run = async {
        let not_running = || {
            let path = context.loaded.data_dir(kind);
            Failure::unreachable(format!("no node runs in {}", path.display()))
        };
        let connection = connect_to_running(&context.loaded, kind).await?.ok_or_else(not_running)?;
        let result = connection.run(Command::Log { level }, &mut show).await;
        result.unwrap_or_else(|| Err(Failure::failed("the node exited during the command")))
    };
    context.run(run).await?;
    stdout.finish()
}
