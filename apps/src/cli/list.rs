//! `enjambre list`: asks the trackers, without the library.

use clap::Args;
use enjambre_core::model::record::{FileKind, FileRecord};

use super::Context;
use super::output::{Stdout, size, time};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Names that contain this text, or match it as a whole where it has a * or ?
    #[arg(default_value = "")]
    pattern: String,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { pattern, json }: Arguments) -> Result<(), Failure> {
    let trackers = context.trackers().await?;
    let mut listing = trackers.list(&pattern);
    let mut stdout = Stdout::default();
    let mut print = async || -> Result<(), Failure> {
        while let Some(file) = listing.next().await? {
            if json {
                stdout.json(&file);
            } else {
                stdout.line(&line(&file));
            }
            if stdout.is_closed() {
                break;
            }
        }
        Ok(())
    };
    match context.stop.run_until_cancelled(print()).await {
        Some(result) => result?,
        None => return Err(Failure::failed("interrupted")),
    }
    stdout.end()
}

fn line(file: &FileRecord) -> String {
    let mark = if file.kind == FileKind::Collection { "/" } else { "" };
    let date = time(file.published_ms);
    let peers = match file.providers {
        1 => "1 peer ".to_owned(),
        count => format!("{count} peers"),
    };
    // A folder's size is that of its list, which says nothing.
    let size = if mark.is_empty() { size(file.size) } else { "folder".to_owned() };
    let id = &file.id.to_string()[..16];
    let (date, by) = (date.get(..10).unwrap_or(&date), file.publisher.short());
    format!("{id}  {size:>10}  {peers:>8}  {date}  by {by}  {}{mark}", file.name)
}
