//! The child process that `enjambre storage check --crash` kills: the same program with the same configuration.

use std::path::Path;
use std::process::Command;

use clap::{Args, ValueEnum};
use enjambre_core::{Place, Role, Scratch};
use enjambre_testkit::storage::crash;

use super::report::role_name;
use crate::cli::context::Context;
use crate::cli::storage::scratch::ScratchBuilder;
use crate::failure::{Failure, Status};

#[derive(Debug, Args)]
pub(in crate::cli::storage) struct Arguments {
    /// Role of the storage
    role: RoleName,
    /// Name of the scratch place
    scratch: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Records,
    Content,
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
    command.args(["storage", "crash-writer", role_name(role), scratch]);
    command
}

pub(in crate::cli::storage) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let role = match arguments.role {
        RoleName::Records => Role::Records,
        RoleName::Content => Role::Content,
    };
    let place = ScratchBuilder::new(context.registry, &context.loaded, role)
        .place_of_other_process(&arguments.scratch)
        .ok_or_else(|| Failure::usage(format!("invalid scratch place {:?}", arguments.scratch)))?;
    crash::announce_opening();
    let storage = context.registry.open_storage(&context.loaded, place, role).await?;
    let committing = context.stop.run_until_cancelled(crash::run_victim(storage)).await;
    committing.unwrap_or(Ok(())).map_err(|error| Failure::from_error(Status::Failed, &error))
}
