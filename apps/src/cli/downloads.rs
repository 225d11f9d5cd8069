//! `enjambre downloads`

use std::time::Duration;

use clap::{Args, Subcommand};
use enjambre_control::{
    Command, Download, DownloadDetail, DownloadOrigin, DownloadSource, Event, Failure, Status,
};
use enjambre_swarm::download::queue::Stage;
use serde::Serialize;

use super::context::Context;
use super::number::whole_number;
use super::output::{name, rate, size};
use super::runner;
use crate::display::count;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Change>,
    /// Print one JSON object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Download whole files or directories into the library, in the running peer
    Add {
        /// Name (selects its newest version), id, or a prefix of an id with at least 8 digits
        #[arg(required = true, value_name = "NAME|ID")]
        queries: Vec<String>,
    },
    /// Pause a download; its verified pieces are kept
    Pause(Selected),
    /// Resume a paused download, or try a failed one again
    Resume(Selected),
    /// Remove a download from the list, and its incomplete file from the library
    Cancel {
        #[command(flatten)]
        selected: Selected,
        /// Keep the incomplete file; a later download continues it
        #[arg(long)]
        keep: bool,
    },
    /// Move a download in the queue
    Move {
        #[command(flatten)]
        selected: Selected,
        /// Position among the downloads that are not finished; 0 is the first
        #[arg(value_parser = whole_number::<u64>(0..=u64::MAX))]
        position: u64,
    },
}

#[derive(Debug, Args)]
struct Selected {
    /// Name, id, or a prefix of an id with at least 8 digits
    #[arg(value_name = "NAME|ID")]
    query: String,
}

/// With `sources` also prints the providers of each download.
pub(super) async fn run(context: Context<'_>, arguments: Arguments, sources: bool) -> Result<(), Failure> {
    let Arguments { command, json } = arguments;
    let command = match command {
        None if sources => return list_with_sources(&context, json).await,
        None => Command::Downloads,
        Some(Change::Add { queries }) => {
            for query in queries {
                print(&context, Command::StartDownload { query }, json).await?;
            }
            return Ok(());
        }
        Some(Change::Pause(Selected { query })) => Command::PauseDownload { query },
        Some(Change::Resume(Selected { query })) => Command::ResumeDownload { query },
        Some(Change::Cancel { selected: Selected { query }, keep }) => {
            Command::CancelDownload { query, keep }
        }
        Some(Change::Move { selected: Selected { query }, position }) => {
            Command::MoveDownload { query, position }
        }
    };
    print(&context, command, json).await
}

async fn print(context: &Context<'_>, command: Command, json: bool) -> Result<(), Failure> {
    runner::print(context, command, |stdout, event| {
        let downloads = match event {
            Event::Downloads(list) => list.downloads,
            Event::Download(download) | Event::DownloadStarted { download, .. } => vec![download],
            _ => return,
        };
        for download in downloads {
            if json { stdout.json(&download) } else { stdout.line(&line(&download)) }
        }
    })
    .await
}

async fn list_with_sources(context: &Context<'_>, json: bool) -> Result<(), Failure> {
    let mut downloads = Vec::new();
    let mut collect = |event| {
        if let Event::Downloads(list) = event {
            downloads = list.downloads;
        }
    };
    runner::run(context, Command::Downloads, &mut collect).await?;
    for Download { id, .. } in downloads {
        let query = id.to_string();
        let shown = runner::print(context, Command::Download { query }, |stdout, event| match event {
            Event::DownloadDetail(detail) if json => stdout.json(&detail),
            Event::DownloadDetail(DownloadDetail { download, sources, .. }) => {
                stdout.line(&line(&download));
                sources.iter().for_each(|source| stdout.line(&source_line(source)));
            }
            _ => {}
        });
        match shown.await {
            // Ended meanwhile.
            Err(failure) if failure.status == Status::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// The name of a value of an enumeration, as in JSON.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().replace('_', " ")
}

fn line(download: &Download) -> String {
    let Download { id, kind, size: total, done, state, error, eta_seconds, providers, origin, .. } = download;
    let percent = match state {
        Stage::Complete => 100,
        _ => (u128::from(*done) * 100 / u128::from((*total).max(1))).min(99),
    };
    let mut text = format!(
        "{}  {:>10}  {:<9}  {percent:>3} %  {}",
        &id.to_string()[..16],
        size(*total),
        word(state),
        name(&download.name, *kind)
    );
    if *state == Stage::Active {
        text += &format!("  {}, {}", rate(download.rate, 1.0), count((*providers).into(), "peer"));
    }
    if let Some(seconds) = eta_seconds {
        text += &format!(", {} left", humantime::format_duration(Duration::from_secs(*seconds)));
    }
    if *origin == DownloadOrigin::Command {
        text += "  (by a command or an HTTP client)";
    }
    if let Some(error) = error {
        text += &format!("  ({error})");
    }
    text
}

fn source_line(source: &DownloadSource) -> String {
    let DownloadSource { peer, endpoint, received_bytes, state, .. } = source;
    let endpoint = endpoint.as_ref().map_or_else(|| "unknown endpoint".to_owned(), ToString::to_string);
    format!(
        "    {}  {:>10}  {:<10}  {:>9}  {endpoint}",
        peer.short(),
        size(*received_bytes),
        word(state),
        rate(source.rate, 1.0)
    )
}
