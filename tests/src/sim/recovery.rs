//! Checks of state: no growth without activity, correct providers, and no remains of removed or expired files.

use std::collections::BTreeSet;
use std::time::Duration;

use enjambre_core::storage::memory::Disk;
use enjambre_core::{FileId, Space};
use enjambre_swarm::catalogue::layout;
use enjambre_swarm::library::content;
use enjambre_swarm::library::entry::Location;
use enjambre_swarm::library::error::LibraryError;
use tokio::time::sleep;

use super::world::World;

/// The maximum number of tasks per idle node, including those of its connections.
const MAX_TASKS_PER_NODE: usize = 24;
/// The number of passes that remove all library entries. A file that also belongs to a directory or has another name
/// remains after the first pass.
const REMOVAL_PASSES: usize = 3;
/// Longer than the retention of trackers plus the largest clock error.
const RETENTION: Duration = Duration::from_secs(60 * 24 * 60 * 60);
/// Longer than the interval between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(61 * 60);

impl World {
    fn entries(&self) -> usize {
        let disks = self.peers.iter().flat_map(|peer| &peer.disks);
        let disks = disks.chain(self.databases.iter().map(|database| &database.disk));
        disks.flat_map(Disk::entries).map(|(_, entries)| entries).sum()
    }

    /// Tasks and entries do not grow without activity, and trackers know all providers.
    pub(super) async fn check_idle_growth(&self) -> Result<(), String> {
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        // Peers announce offers that a database lost again within 15 minutes.
        sleep(Duration::from_secs(16 * 60)).await;
        let before = (alive(), self.entries());
        sleep(Duration::from_secs(600)).await;
        let after = (alive(), self.entries());
        self.note(&format!("tasks and entries {before:?} {after:?}"));
        let nodes = self.peers.len() + self.trackers.len() + usize::from(self.malicious_tracker.is_some());
        if after.0 > nodes * MAX_TASKS_PER_NODE || after.1 > before.1 {
            return Err(format!("tasks or entries grow without activity: {before:?}, {after:?}"));
        }
        self.check_providers().await
    }

    /// Trackers list all running peers that offer a file, and no stopped peer. A peer that removed a file may still be listed:
    /// a power cut may have reverted the withdrawal, and a clock that was set back keeps offers of a former session.
    async fn check_providers(&self) -> Result<(), String> {
        let Some(client) = self.peers.iter().find_map(|peer| peer.running()) else { return Ok(()) };
        let known = self.model.lock().known.clone();
        for (id, known) in known.iter().filter(|(_, known)| !known.acknowledged.is_empty()) {
            let name = &known.original.name;
            let providers = client.trackers.providers(id).await;
            let providers =
                providers.map_err(|error| format!("cannot get the providers of {name}: {error}"))?;
            for peer in &self.peers {
                let listed = providers.iter().find(|provider| provider.peer == peer.id());
                let complete = peer
                    .running()
                    .map(|running| running.offers_complete(id) && running.is_complete(id, &known.original));
                match (complete, listed) {
                    (None, Some(_)) => {
                        return Err(format!("{} is stopped but listed as a provider of {name}", peer.name));
                    }
                    (Some(true), None) => {
                        return Err(format!("{} is not listed as a provider of {name}", peer.name));
                    }
                    (Some(true), Some(listed)) if !listed.complete => {
                        return Err(format!(
                            "{} is listed as an incomplete provider of {name}: {listed:?}",
                            peer.name
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Disks of peers contain no orphaned data after the library was opened and swept.
    pub(super) async fn check_orphaned_data(&self) -> Result<(), String> {
        sleep(Duration::from_secs(30)).await;
        for peer in &self.peers {
            let Some(running) = peer.running() else { continue };
            let entries = running.library.entries();
            let complete = entries.iter().filter(|entry| entry.is_complete());
            let complete: BTreeSet<FileId> = complete.map(|entry| entry.id).collect();
            let in_database = entries.iter().filter(|entry| entry.location == Location::Database);
            let all: BTreeSet<FileId> = in_database.map(|entry| entry.id).collect();
            for (disk, spaces) in
                [(&peer.disks[1], content::SPACES), (&peer.disks[0], enjambre_swarm::library::SPACES)]
            {
                for space in spaces {
                    self.check_space(&peer.name, disk, *space, &all, &complete)?;
                }
            }
        }
        Ok(())
    }

    /// Checks that every key of a space belongs to a file that needs it.
    fn check_space(
        &self,
        peer: &str,
        disk: &Disk,
        space: Space,
        all: &BTreeSet<FileId>,
        complete: &BTreeSet<FileId>,
    ) -> Result<(), String> {
        let name = format!("{space:?}");
        let by_file =
            ["content", "hashes", "have", "dirty", "tombs"].iter().find(|part| name.contains(*part));
        let Some(part) = by_file else { return Ok(()) };
        for key in disk.keys(space) {
            let Some(id) = key.get(..32).and_then(|id| <[u8; 32]>::try_from(id).ok()) else { continue };
            let id = FileId::from_bytes(id);
            let orphaned = match *part {
                "tombs" => true,
                "have" | "dirty" => !all.contains(&id) || complete.contains(&id),
                _ => !all.contains(&id),
            };
            if orphaned {
                return Err(format!("{peer} keeps orphaned data of {id} in {space:?}"));
            }
        }
        Ok(())
    }

    /// After all files are removed, the disks of peers are empty.
    pub(super) async fn check_removal(&self) -> Result<(), String> {
        for (at, peer) in self.peers.iter().enumerate() {
            let Some(running) = peer.running() else { continue };
            for _ in 0..REMOVAL_PASSES {
                for entry in running.library.entries() {
                    self.model.lock().removed(at, entry.id);
                    match running.library.remove(&entry.id).await {
                        Ok(()) | Err(LibraryError::NotFound { .. }) => {}
                        Err(error) => {
                            return Err(format!("{} cannot remove {}: {error}", peer.name, entry.id));
                        }
                    }
                }
            }
            if let Some(entry) = running.library.entries().first() {
                return Err(format!("{} cannot remove {entry:?}", peer.name));
            }
            for (disk, meta) in [(&peer.disks[0], Some("library_meta")), (&peer.disks[1], None)] {
                for (space, entries) in disk.entries() {
                    if entries > 0 && Some(space.name()) != meta {
                        return Err(format!("{} keeps {entries} entries in {}", peer.name, space.name()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Databases contain no entries of expired peers and files without providers.
    pub(super) async fn check_expiry(&self) -> Result<(), String> {
        // The first sweep expires the peers and marks their files as unavailable, the second expires the files.
        for _ in 0..2 {
            self.clock.jump(RETENTION, true);
            sleep(SWEEP_INTERVAL).await;
        }
        for (number, database) in self.databases.iter().enumerate() {
            for (space, entries) in database.disk.entries() {
                if entries > 0 && space != layout::META {
                    return Err(format!("database {number} keeps {entries} entries in {}", space.name()));
                }
            }
        }
        Ok(())
    }
}
