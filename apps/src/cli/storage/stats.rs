//! `enjambre storage stats`: the number of entries and bytes in each space.

use std::collections::BTreeMap;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::storage::database_file::DiskSpace;
use enjambre_swarm::record_copy::{Count, count};
use serde::Serialize;

use super::databases;
use crate::cli::context::Context;
use crate::cli::output::{Stdout, size};
use crate::display;
use crate::registry::locations::folder_of;

#[derive(Debug, Serialize)]
struct Stats {
    database: &'static str,
    backend: String,
    /// `None` if the database is empty, and for content.
    format: Option<u64>,
    entries: u64,
    bytes: u64,
    /// By the name of the space.
    spaces: BTreeMap<String, Count>,
    /// `None` if the database is not on a disk of this machine.
    free_bytes: Option<u64>,
}

pub(super) async fn run(context: Context<'_>, json: bool) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    databases::inspect(&context, async |databases| {
        for database in &databases.all {
            let action = format!("cannot read the {} database", database.name);
            let mut spaces = BTreeMap::new();
            for space in database.spaces() {
                let counted = count(&*database.storage, *space).await.context(&action)?;
                spaces.insert(space.name().to_owned(), counted);
            }
            let folder = folder_of(&context.loaded, &database.place, database.kind.role()).await?;
            let stats = Stats {
                database: database.name,
                backend: context.loaded.config.storage.backend.clone(),
                format: database.format().await.context(&action)?,
                entries: spaces.values().map(|count| count.entries).sum(),
                bytes: spaces.values().map(|count| count.bytes).sum(),
                spaces,
                free_bytes: folder.and_then(|folder| Some(DiskSpace::of(&folder)?.free)),
            };
            if json { stdout.json(&stats) } else { show(&mut stdout, &stats) }
        }
        Ok(())
    })
    .await?;
    stdout.finish()
}

fn show(stdout: &mut Stdout, stats: &Stats) {
    let format = stats.format.map_or_else(String::new, |format| format!(", format {format}"));
    let free = stats.free_bytes.map_or_else(String::new, |free| format!(", {} free on disk", size(free)));
    stdout.line(&format!("{} ({}{format}{free})", stats.database, stats.backend));
    for (space, Count { entries, bytes }) in &stats.spaces {
        stdout.line(&format!(
            "  {space:<16} {:>20}  {:>12}",
            display::count(*entries, "entry"),
            size(*bytes)
        ));
    }
    let entries = display::count(stats.entries, "entry");
    stdout.line(&format!("  {:<16} {entries:>20}  {:>12}", "total", size(stats.bytes)));
}
