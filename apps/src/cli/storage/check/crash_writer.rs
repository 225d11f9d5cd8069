//! The child process that `enjambre storage check --crash` kills: the same program with the same configuration.

use std::path::Path;
use std::process::Command;

use clap::Args;
use enjambre_control::Failure;
use enjambre_core::{Place, Role, Scratch};
use enjambre_testkit::storage::crash;

use crate::cli::context::Context;
use crate::cli::storage::scratch::ScratchBuilder;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Role of the storage
    #[arg(value_parser = parse_role)]
    role: Role,
    /// Name of the scratch place
    scratch: String,
}

fn parse_role(name: &str) -> Result<Role, &'static str> {
    let roles = [Role::Records, Role::Content];
    roles.into_iter().find(|role| role.name() == name).ok_or("expected records or content")
}

/// Returns the command that starts the child process.
pub(super) fn command(program: &Path, context: &Context<'_>, role: Role, place: &Place) -> Command {
    let mut command = Command::new(program);
    if let Some(file) = &context.loaded.file {
        command.arg("--config").arg(file);
    }
    for assignment in &context.sources.set {
        command.arg("--set").arg(assignment);
    }
    let scratch = place.scratch.as_ref().map_or("", Scratch::name);
    command.args(["storage", "crash-writer", role.name(), scratch]);
    command
}

pub(crate) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { role, scratch } = arguments;
    let place = ScratchBuilder::new(context.registry, &context.loaded, role)
        .place_of_other_process(&scratch)
        .ok_or_else(|| Failure::usage(format!("invalid scratch place {scratch:?}")))?;
    crash::announce_opening();
    let storage = context.registry.open_storage(&context.loaded, place, role).await?;
    let committing = context.stop.run_until_cancelled(crash::run_victim(storage)).await;
    Ok(committing.unwrap_or(Ok(()))?)
}
