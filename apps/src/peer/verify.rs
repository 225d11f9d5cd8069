//! Verification of the library: damaged and missing pieces.

use std::collections::BTreeMap;

use enjambre_control::{Event, Events, Failure, Verified};
use enjambre_core::model::layout::PieceLayout;
use enjambre_core::{FileId, FileKind};
use enjambre_swarm::library::entry::Entry;
use enjambre_swarm::library::error::LibraryError;

use super::Node;

/// A file of a directory.
struct MemberFile {
    /// `NAME/PATH`.
    name: String,
    size: u64,
}

impl Node {
    /// Verifies a file, or a directory with its files, or the whole library. Fails if a piece is damaged. Missing pieces are
    /// a failure only of a file that was named: a library may contain unfinished downloads and parts of directories.
    pub(super) async fn verify(&self, query: Option<&str>, events: &Events) -> Result<(), Failure> {
        let library = &self.services.library;
        let mut entries = match query {
            Some(query) => vec![library.find(query)?],
            None => self.entries().await?,
        };
        if query.is_some() && entries[0].kind == FileKind::Collection {
            let collection = library.collection(&entries[0].id).await?;
            entries.extend(collection.members().iter().filter_map(|member| library.entry(&member.id)));
            entries[1..].sort_by_key(|entry| entry.id);
            entries.dedup_by_key(|entry| entry.id);
        }
        let mut members = self.members(&entries).await;
        let (mut damaged, mut incomplete) = (0_u64, 0_u64);
        for entry in entries {
            let member = members.remove(&entry.id);
            let report = match library.verify(&entry.id).await {
                Ok(report) => report,
                // Removed concurrently.
                Err(LibraryError::NotFound { .. }) => continue,
                Err(error @ LibraryError::Changed { .. }) => {
                    damaged += 1;
                    events.warn(error.to_string()).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            damaged += u64::from(!report.bad.is_empty());
            incomplete += u64::from(report.bad.is_empty() && report.missing > 0);
            let verified = Verified {
                name: entry.name.map(|name| name.to_string()).or(member.map(|member| member.name)),
                id: entry.id,
                good: u64::from(report.good),
                bad: report.bad.len() as u64,
                missing: u64::from(report.missing),
            };
            events.send(Event::Verified(verified)).await;
        }
        // The library has no entry for them.
        for (id, MemberFile { name, size }) in members {
            incomplete += 1;
            let missing = u64::from(PieceLayout::new(size)?.count());
            events.send(Event::Verified(Verified { name: Some(name), id, good: 0, bad: 0, missing })).await;
        }
        let remedy = match (damaged, incomplete) {
            (0, incomplete) if incomplete == 0 || query.is_none() => return Ok(()),
            (0, incomplete) => {
                format!("incomplete files: {incomplete}; run `get` to download their missing pieces")
            }
            (damaged, _) => format!(
                "damaged files: {damaged}; their damaged pieces are no longer offered; run `get` to download them again"
            ),
        };
        Err(Failure::failed(remedy))
    }

    /// Returns the files of the directories among these entries.
    async fn members(&self, entries: &[Entry]) -> BTreeMap<FileId, MemberFile> {
        let mut members = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == FileKind::Collection) {
            let Some(name) = &entry.name else { continue };
            // An incomplete directory has no list of members yet; a damaged one is reported by its verification.
            let Ok(collection) = self.services.library.collection(&entry.id).await else { continue };
            members.extend(collection.members().iter().map(|member| {
                (
                    member.id,
                    MemberFile { name: format!("{name}/{}", member.path.as_str()), size: member.size },
                )
            }));
        }
        members
    }
}
