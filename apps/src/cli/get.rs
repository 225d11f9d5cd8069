//! `enjambre get`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::output::{Stdout, plain, rate, size, warn};
use super::progress::Bar;
use super::runner;
use crate::control::message::{Command, Event};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name (selects its newest version), id, or a prefix of an id with at least 8 digits
    #[arg(value_name = "NAME|ID")]
    query: String,
    /// Write the download to PATH, or into PATH if it is a directory, and seed it from there, instead of storing it in
    /// the library
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Replace an existing file or directory at PATH
    #[arg(long)]
    force: bool,
    /// Sync the content to disk before returning
    #[arg(long)]
    sync: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { query, output, force, sync, json } = arguments;
    let output = output.map(std::path::absolute).transpose()?;
    let mut stdout = Stdout::default();
    let mut bar = if json { Bar::hidden() } else { Bar::new() };
    let label = plain(&query);
    let mut show = |event| match event {
        event @ (Event::Progress { .. } | Event::Complete { .. }) if json => stdout.json(&event),
        Event::Progress { done, total, providers } => {
            bar.show(&label, done, total, Some(providers));
        }
        Event::Complete { name, id, path, bytes, received, seconds } => {
            let place = path.map_or_else(|| "library".to_owned(), |path| path.display().to_string());
            let text = match received {
                0 => format!("{name}: already complete, {place} ({})  {id}", size(bytes)),
                _ => {
                    let rate = rate(received, seconds);
                    let received = if received < bytes {
                        format!(", {} of it new", size(received))
                    } else {
                        String::new()
                    };
                    format!("{name}: {place} ({}{received} in {seconds:.1} s, {rate})  {id}", size(bytes))
                }
            };
            bar.suspend(|| stdout.line(&text));
        }
        Event::Warning { message } => bar.suspend(|| warn(&message)),
        _ => {}
    };
    let command = Command::Get { query, output, force, sync };
    let result = runner::run(&context, command, &mut show).await;
    bar.clear();
    if let (Err(failure), true) = (&result, json) {
        stdout.json(&json!({ "event": "error", "message": failure.message }));
    }
    result?;
    stdout.finish()
}
