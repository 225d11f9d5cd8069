//! `enjambre list`: lists the catalogue of the trackers.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use enjambre_control::Failure;
use enjambre_core::{FileKind, FileRecord};

use super::context::Context;
use super::output::{Stdout, date, name, size};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Text that the names contain, a pattern for the whole name if it has * or ?, or / and the name [default: all names]
    #[arg(default_value = "", hide_default_value = true)]
    pattern: String,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { pattern, json }: Arguments) -> Result<(), Failure> {
    let trackers = context.trackers().await?;
    let mut listing = trackers.list(&pattern);
    let silent = AtomicBool::new(true);
    let mut stdout = Stdout::default();
    // For people only: scripts read lines of files.
    let mut needs_header = !json && std::io::stdout().is_terminal();
    let mut print = async || -> Result<(), Failure> {
        while let Some(file) = listing.next().await? {
            silent.store(false, Ordering::Relaxed);
            if json {
                stdout.json(&file);
            } else {
                if std::mem::take(&mut needs_header) {
                    stdout.line(HEADER);
                }
                stdout.line(&line(&file));
            }
            if stdout.is_closed() {
                break;
            }
        }
        Ok(())
    };
    context.run(context.wait_for_trackers(print(), || silent.load(Ordering::Relaxed))).await?;
    stdout.finish()
}

/// The names of the columns of [`line`].
const HEADER: &str = "ID                      SIZE     PEERS  PUBLISHED   PUBLISHER    VERSION  NAME";

fn line(file: &FileRecord) -> String {
    let name = name(file.name.as_str(), file.kind);
    let peers = match file.providers {
        1 => "1 peer ".to_owned(),
        count => format!("{count} peers"),
    };
    // The size of a directory entry is that of its file list.
    let size = if file.kind == FileKind::Collection { "directory".to_owned() } else { size(file.size) };
    let id = &file.id.to_string()[..16];
    let (date, by) = (date(file.published_ms), file.publisher.short());
    let version = file.version;
    format!("{id}  {size:>10}  {peers:>8}  {date}  by {by}  {version:<7}  {name}")
}

#[cfg(test)]
mod tests {
    use enjambre_core::{FileId, PeerId, UnixMillis};

    use super::*;

    #[test]
    fn header_is_aligned_with_the_columns() {
        let file = FileRecord {
            id: FileId::from_bytes([0xab; 32]),
            name: "name".parse().unwrap(),
            version: 1,
            size: 1 << 20,
            kind: FileKind::File,
            publisher: PeerId::from_bytes([0xcd; 32]),
            published_ms: UnixMillis(0),
            providers: 12,
        };
        let line = line(&file);
        for (title, value) in
            [("ID", "abab"), ("PUBLISHED", "1970-"), ("PUBLISHER", "by cdcd"), ("NAME", "name")]
        {
            assert_eq!(HEADER.find(title), line.find(value), "{HEADER}\n{line}");
        }
        for (title, value) in [("SIZE", "MiB"), ("PEERS", "peers")] {
            let end = |text: &str, part: &str| text.find(part).map(|start| start + part.len());
            assert_eq!(end(HEADER, title), end(&line, value), "{HEADER}\n{line}");
        }
    }
}
