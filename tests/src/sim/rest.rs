//! At rest nothing grows, trackers know who is there, and of what is gone nothing is left.

use std::collections::BTreeSet;
use std::time::Duration;

use enjambre_core::catalogue::layout;
use enjambre_core::library::content;
use enjambre_core::library::entry::Location;
use enjambre_core::library::error::LibraryError;
use enjambre_core::model::id::FileId;
use enjambre_core::storage::memory::Disk;
use enjambre_core::storage::value::Space;
use tokio::time::sleep;

use super::world::World;

/// The tasks that a peer and a tracker may have at rest, and the connections among all of them.
const TASKS_EACH: usize = 24;
/// A file, a folder with it, and a name of it that somebody else may have given: so often everything is removed.
const REMOVALS: usize = 3;
/// More than a tracker keeps anything of which it does not hear, however wrong its clock was when it did.
const FORGOTTEN: Duration = Duration::from_secs(60 * 24 * 60 * 60);
/// The longest time between two searches for what is to be forgotten.
const SEARCH: Duration = Duration::from_secs(61 * 60);

impl World {
    fn entries(&self) -> usize {
        let disks = self.peers.iter().flat_map(|peer| &peer.disks);
        let disks = disks.chain(self.databases.iter().map(|database| &database.disk));
        disks.flat_map(Disk::entries).map(|(_, entries)| entries).sum()
    }

    /// Nothing has more tasks or entries than before, and trackers know who has something.
    pub(super) async fn nothing_grows(&self) -> Result<(), String> {
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        // What a database lost is announced again within a quarter of an hour.
        sleep(Duration::from_secs(16 * 60)).await;
        let before = (alive(), self.entries());
        sleep(Duration::from_secs(600)).await;
        let after = (alive(), self.entries());
        self.note(&format!("tasks and entries {before:?} {after:?}"));
        let nodes = self.peers.len() + self.trackers.len();
        if after.0 > nodes * TASKS_EACH || after.1 > before.1 {
            return Err(format!("tasks and entries grow without a reason: {before:?}, {after:?}"));
        }
        self.providers_are_right().await
    }

    /// Trackers name all who have something, and nobody who is down. Who removed something may still be named: a database may
    /// have lost that in a power cut, and a clock that was put back keeps what is of a former session.
    async fn providers_are_right(&self) -> Result<(), String> {
        let Some(asker) = self.peers.iter().find_map(|peer| peer.running()) else { return Ok(()) };
        let known = self.model.lock().known.clone();
        for (id, known) in known.iter().filter(|(_, known)| !known.acknowledged.is_empty()) {
            let name = &known.original.name;
            let providers = asker.trackers.providers(id).await;
            let providers = providers.map_err(|error| format!("nobody says who has {name}: {error}"))?;
            for peer in &self.peers {
                let named = providers.iter().find(|provider| provider.peer == peer.id());
                let whole = peer.running().map(|running| running.offers_whole(id));
                match (whole, named) {
                    (None, Some(_)) => return Err(format!("{} is down and named for {name}", peer.name)),
                    (Some(true), None) => return Err(format!("{} is not named for {name}", peer.name)),
                    (Some(true), Some(named)) if !named.complete => {
                        return Err(format!("{} is named for {name} as {named:?}", peer.name));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Nothing lies on a disk that belongs to no file, once the library was opened and swept.
    pub(super) async fn nothing_is_left_over(&self) -> Result<(), String> {
        sleep(Duration::from_secs(30)).await;
        for peer in &self.peers {
            let Some(running) = peer.running() else { continue };
            let entries = running.library.entries();
            let whole = entries.iter().filter(|entry| entry.is_complete());
            let whole: BTreeSet<FileId> = whole.map(|entry| entry.id).collect();
            let in_database = entries.iter().filter(|entry| entry.location == Location::Database);
            let all: BTreeSet<FileId> = in_database.map(|entry| entry.id).collect();
            for (disk, spaces) in
                [(&peer.disks[1], content::SPACES), (&peer.disks[0], enjambre_core::library::SPACES)]
            {
                for space in spaces {
                    self.belongs(&peer.name, disk, *space, &all, &whole)?;
                }
            }
        }
        Ok(())
    }

    /// Every key of a space belongs to a file that needs it.
    fn belongs(
        &self,
        peer: &str,
        disk: &Disk,
        space: Space,
        all: &BTreeSet<FileId>,
        whole: &BTreeSet<FileId>,
    ) -> Result<(), String> {
        let name = format!("{space:?}");
        let by_file =
            ["content", "hashes", "have", "dirty", "tombs"].iter().find(|part| name.contains(*part));
        let Some(part) = by_file else { return Ok(()) };
        for key in disk.keys(space) {
            let Some(id) = key.get(..32).and_then(|id| <[u8; 32]>::try_from(id).ok()) else { continue };
            let id = FileId::from_bytes(id);
            let wrong = match *part {
                "tombs" => true,
                "have" | "dirty" => !all.contains(&id) || whole.contains(&id),
                _ => !all.contains(&id),
            };
            if wrong {
                return Err(format!("{peer} keeps something in {space:?} of {id} for nothing"));
            }
        }
        Ok(())
    }

    /// Once everything is removed nothing is left of it on any disk of a peer.
    pub(super) async fn nothing_remains_of_what_is_removed(&self) -> Result<(), String> {
        for (at, peer) in self.peers.iter().enumerate() {
            let Some(running) = peer.running() else { continue };
            for _ in 0..REMOVALS {
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
                return Err(format!("{} cannot be rid of {entry:?}", peer.name));
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

    /// Trackers have nothing left of peers that do not come back and of files that nobody has.
    pub(super) async fn trackers_forget(&self) -> Result<(), String> {
        // First the peers are forgotten and the files noted as gone, then they are forgotten too.
        for _ in 0..2 {
            self.clock.jump(FORGOTTEN, true);
            sleep(SEARCH).await;
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
