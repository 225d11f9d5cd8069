//! `enjambre list`: lists the catalogue of the trackers.

use clap::Args;
use enjambre_core::{FileKind, FileRecord};

use super::context::Context;
use super::output::{Stdout, size, time};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Text that the names contain, or a pattern for the whole name if it has * or ? [default: all names]
    #[arg(default_value = "", hide_default_value = true)]
    pattern: String,
    /// Print one JSON object per line
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
    context.run(print()).await?;
    stdout.finish()
}

fn line(file: &FileRecord) -> String {
    let mark = if file.kind == FileKind::Collection { "/" } else { "" };
    let date = time(file.published_ms);
    let peers = match file.providers {
        1 => "1 peer ".to_owned(),
        count => format!("{count} peers"),
    };
    // The size of a directory entry is that of its file list.
    let size = if mark.is_empty() { size(file.size) } else { "directory".to_owned() };
    let id = &file.id.to_string()[..16];
    let (date, by) = (date.get(..10).unwrap_or(&date), file.publisher.short());
    format!("{id}  {size:>10}  {peers:>8}  {date}  by {by}  {}{mark}", file.name)
}
