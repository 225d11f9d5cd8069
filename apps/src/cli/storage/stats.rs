//! `enjambre storage stats`: entries and bytes of each space, counted.

use std::collections::BTreeMap;

use clap::Args;
use enjambre_core::storage::Storage;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{KeyRange, Space};
use serde::Serialize;

use super::databases::{Databases, folder_of};
use crate::cli::Context;
use crate::cli::output::{Stdout, size};
use crate::failure::{Failure, Status};

/// How many entries are read at once.
const PAGE: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object for each database
    #[arg(long)]
    json: bool,
}

/// What a database holds.
#[derive(Debug, Serialize)]
struct Stats {
    database: &'static str,
    backend: String,
    /// None where nothing is in it, and for content.
    format: Option<u64>,
    entries: u64,
    bytes: u64,
    /// By the name of the space.
    spaces: BTreeMap<String, Count>,
    /// None where the database is not on a disk of this machine.
    free_bytes: Option<u64>,
}

/// What a space holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct Count {
    entries: u64,
    /// Of keys and values; what the database needs beyond them is not counted.
    bytes: u64,
}

pub(super) async fn run(context: Context<'_>, Arguments { json }: Arguments) -> Result<(), Failure> {
    let databases = Databases::open(context.registry, &context.loaded).await?;
    let mut stdout = Stdout::default();
    let counting = async {
        for database in &databases.all {
            let failed = |error: StorageError| {
                Failure::from_error(Status::Failed, &error)
                    .context(format!("the {} cannot be read", database.name))
            };
            let mut spaces = BTreeMap::new();
            for space in database.spaces() {
                let counted = count(&*database.storage, *space).await.map_err(failed)?;
                spaces.insert(space.name().to_owned(), counted);
            }
            let folder = folder_of(&context.loaded, &database.place);
            let stats = Stats {
                database: database.name,
                backend: context.loaded.config.storage.backend.clone(),
                format: database.format().await.map_err(failed)?,
                entries: spaces.values().map(|count| count.entries).sum(),
                bytes: spaces.values().map(|count| count.bytes).sum(),
                spaces,
                free_bytes: folder.and_then(|folder| {
                    let found = rustix::fs::statvfs(&folder).ok()?;
                    Some(found.f_bavail.saturating_mul(found.f_frsize))
                }),
            };
            if json { stdout.json(&stats) } else { show(&mut stdout, &stats) }
        }
        Ok(())
    };
    let counted = context.stop.run_until_cancelled(counting).await;
    databases.close().await?;
    counted.unwrap_or_else(|| Err(Failure::failed("interrupted")))?;
    stdout.end()
}

fn show(stdout: &mut Stdout, stats: &Stats) {
    let format = stats.format.map_or_else(String::new, |format| format!(", format {format}"));
    let free = stats.free_bytes.map_or_else(String::new, |free| format!(", {} free on its disk", size(free)));
    stdout.line(&format!("{} ({}{format}{free})", stats.database, stats.backend));
    for (space, Count { entries, bytes }) in &stats.spaces {
        stdout.line(&format!("  {space:<16} {entries:>12} entries  {:>12}", size(*bytes)));
    }
    stdout.line(&format!("  {:<16} {:>12} entries  {:>12}", "in all", stats.entries, size(stats.bytes)));
}

async fn count(storage: &dyn Storage, space: Space) -> Result<Count, StorageError> {
    let (mut range, mut count) = (KeyRange::all(), Count::default());
    loop {
        let page = storage.scan(space, range.clone(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(count) };
        range = range.after(last);
        count.entries += page.len() as u64;
        count.bytes +=
            page.iter().map(|(key, value)| (key.as_bytes().len() + value.len()) as u64).sum::<u64>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::storage::memory::Memory;
    use enjambre_core::storage::value::{Batch, Durability, Key};

    #[tokio::test]
    async fn every_entry_of_a_space_is_counted_once() {
        const SPACE: Space = Space::new("some");
        let storage = Memory::new();
        for first in 0..5 {
            let mut batch = Batch::new();
            for second in 0..=255u8 {
                batch.put(SPACE, Key::new(vec![first, second]).unwrap(), vec![0; 3]);
            }
            storage.commit(batch, Durability::Buffered).await.unwrap();
        }
        assert_eq!(count(&storage, SPACE).await.unwrap(), Count { entries: 1280, bytes: 1280 * 5 });
        assert_eq!(count(&storage, Space::new("other")).await.unwrap(), Count::default());
    }
}
