//! `enjambre storage bench`: benchmarks of the configured backend, in a scratch place.

mod measurement;
mod workloads;

use std::time::Duration;

use clap::Args;
use enjambre_control::Failure;
use enjambre_core::Role;
use enjambre_testkit::storage::Builder;
use serde::Serialize;

use self::measurement::Measurement;
use super::scratch::ScratchBuilder;
use crate::cli::context::Context;
use crate::cli::number::whole_number;
use crate::cli::output::Stdout;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Duration of each measurement in seconds
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole_number::<u64>(1..=30))]
    seconds: u64,
    /// Print a JSON report
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
        stdout.line(&format!("storage {}, {} s per measurement", report.backend, arguments.seconds));
    }
    let mut add = |measurement: Measurement| {
        if !arguments.json {
            stdout.line(&measurement.to_string());
        }
        report.measurements.push(measurement);
    };
    let length = Duration::from_secs(arguments.seconds);
    for role in [Role::Records, Role::Content] {
        let builder = ScratchBuilder::new(context.registry, &context.loaded, role);
        builder.run(&context.stop, measure(&builder, role, length, &mut add)).await?;
    }
    if arguments.json {
        stdout.json(&report);
    }
    stdout.finish()
}

async fn measure(
    builder: &ScratchBuilder<'_>,
    role: Role,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), Failure> {
    let storage = builder.open(&builder.place()).await?;
    match role {
        Role::Records => workloads::records(&storage, length, add).await?,
        Role::Content => workloads::content(&storage, length, add).await?,
    }
    Ok(storage.close().await?)
}
