//! `enjambre storage bench`: what the configured backend does on this machine, in a scratch place.

mod loads;
mod measurement;

use std::time::Duration;

use clap::Args;
use enjambre_core::storage::Role;
use enjambre_core::storage::conformance::Builder;
use enjambre_core::storage::error::StorageError;
use serde::Serialize;

use self::measurement::Measurement;
use super::trial::Trial;
use crate::cli::Context;
use crate::cli::output::Stdout;
use crate::failure::{Failure, Status};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How long each measurement takes, in seconds
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=30))]
    seconds: u64,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    backend: String,
    measurements: Vec<Measurement>,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let backend = context.loaded.config.storage.backend.clone();
    let mut report = Report { backend, measurements: Vec::new() };
    let mut stdout = Stdout::default();
    if !arguments.json {
        stdout.line(&format!("storage {}, {} s each", report.backend, arguments.seconds));
    }
    let mut add = |measurement: Measurement| {
        if !arguments.json {
            stdout.line(&measurement.to_string());
        }
        report.measurements.push(measurement);
    };
    let length = Duration::from_secs(arguments.seconds);
    for role in [Role::Records, Role::Content] {
        let trial = Trial::new(context.registry, &context.loaded, role);
        let measuring = trial.run(&context.stop, one(&trial, role, length, &mut add)).await;
        let removed = trial.remove().await;
        let measured = measuring.ok_or_else(|| Failure::failed("interrupted"))?;
        measured.map_err(|error| Failure::from_error(Status::Failed, &error))?;
        removed?;
    }
    if arguments.json {
        stdout.json(&report);
    }
    stdout.end()
}

async fn one(
    trial: &Trial<'_>,
    role: Role,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), StorageError> {
    let storage = trial.open(&trial.place()).await?;
    match role {
        Role::Records => loads::of_records(&storage, length, add).await?,
        Role::Content => loads::of_content(&storage, length, add).await?,
    }
    storage.close().await
}
