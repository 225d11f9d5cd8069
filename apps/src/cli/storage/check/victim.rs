//! The process that `enjambre storage check --crash` kills: the same program with the same configuration.

use std::path::Path;
use std::process::Command;

use clap::{Args, ValueEnum};
use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::crash;

use super::report::name_of;
use crate::cli::Context;
use crate::cli::storage::trial::Trial;
use crate::failure::{Failure, Status};
use crate::registry::Place;
use crate::scratch::Scratch;

#[derive(Debug, Args)]
pub(in crate::cli::storage) struct Arguments {
    /// What the storage is opened for
    role: RoleName,
    /// The name of the scratch
    scratch: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Records,
    Content,
}

/// How to start it.
pub(super) fn command(program: &Path, context: &Context<'_>, role: Role, place: &Place) -> Command {
    let mut command = Command::new(program);
    if let Some(file) = &context.loaded.file {
        command.arg("--config").arg(file);
    }
    for assignment in &context.sources.set {
        command.arg("--set").arg(assignment);
    }
    let scratch = place.scratch.as_ref().map_or("", Scratch::name);
    command.args(["storage", "victim", name_of(role), scratch]);
    command
}

pub(in crate::cli::storage) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let role = match arguments.role {
        RoleName::Records => Role::Records,
        RoleName::Content => Role::Content,
    };
    let place = Trial::new(context.registry, &context.loaded, role)
        .of_another(&arguments.scratch)
        .ok_or_else(|| Failure::usage(format!("there is no scratch {:?}", arguments.scratch)))?;
    crash::say_opening();
    let storage = context.registry.open_storage(&context.loaded, place).await?;
    let committing = context.stop.run_until_cancelled(crash::be_the_victim(storage)).await;
    committing.unwrap_or(Ok(())).map_err(|error| Failure::from_error(Status::Failed, &error))
}
