//! After the faults: everything that was promised has to be there, everything that waits has to end, and nothing has to
//! have grown.

use std::collections::BTreeSet;
use std::time::Duration;

use enjambre_core::library::content;
use enjambre_core::library::entry::Location;
use enjambre_core::model::id::FileId;
use enjambre_core::storage::memory::Disk;
use enjambre_core::storage::value::Space;
use enjambre_core::transport::fault::Faults;
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use super::faults::DiskFaults;
use super::world::{PATIENCE, World, is_found};

/// How long a download may take once nothing is broken. The longest pause in it is that before a peer announces again what
/// its trackers did not know or refused.
const DOWNLOAD: Duration = Duration::from_secs(20 * 60);
/// The tasks that a peer and a tracker may have at rest, and the connections among all of them.
const TASKS_EACH: usize = 24;

impl World {
    /// Mends everything, and looks whether all is as it has to be.
    pub async fn calm(&mut self) -> Result<(), String> {
        self.note("calm");
        self.mend().await?;
        self.everything_is_found().await?;
        self.every_download_finishes().await?;
        self.nothing_grows().await?;
        self.completed_stays_complete().await?;
        self.nothing_is_left_over().await?;
        self.everything_ends().await
    }

    /// Ends all faults. Some peers that are down stay so.
    async fn mend(&mut self) -> Result<(), String> {
        let endpoints: Vec<_> = self.peers.iter().map(|peer| peer.endpoint.clone()).collect();
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .chain(self.trackers.iter().map(|tracker| tracker.endpoint.clone()))
            .collect();
        for at in 0..self.trackers.len() {
            self.trackers[at].set_faults(DiskFaults::None);
            if !self.trackers[at].is_up() {
                self.start_tracker(at, DiskFaults::None).await;
            }
            if !self.trackers[at].is_up() {
                return Err(format!("{} does not start although nothing is broken", self.trackers[at].name));
            }
        }
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            peer.set_disk_faults(DiskFaults::None);
            peer.set_network_faults(Faults::default());
            endpoints.iter().for_each(|endpoint| peer.set_reach(endpoint, true));
            if peer.running().is_none() && self.random.random_bool(0.7) {
                self.start_peer(at, false).await?;
            }
        }
        Ok(())
    }

    async fn everything_is_found(&self) -> Result<(), String> {
        let known = self.model.lock().known.clone();
        let until = Instant::now() + PATIENCE;
        for (id, name) in
            known.iter().flat_map(|(id, known)| known.acknowledged.iter().map(move |name| (id, name)))
        {
            let Some(running) = self.peers.iter().find_map(|peer| peer.running()) else { return Ok(()) };
            loop {
                let found = running.trackers.find(name).await;
                let answered = found.is_ok();
                is_found(*id, name, found, true)?;
                if answered {
                    break;
                }
                if Instant::now() > until {
                    return Err(format!("nobody answers where {name} is"));
                }
                sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(())
    }

    /// Everybody gets everything of which somebody honest has all.
    async fn every_download_finishes(&mut self) -> Result<(), String> {
        let until = Instant::now() + DOWNLOAD;
        let known = self.model.lock().known.clone();
        let mut left = BTreeSet::new();
        for (id, known) in &known {
            let has = |at: usize| {
                let whole = self.peers[at].running().is_some_and(|peer| peer.has_whole(id, &known.original));
                whole && !self.peers[at].liar
            };
            // Without that no tracker may ever have heard of it.
            let told = !known.acknowledged.is_empty() || has(known.publisher);
            if told && (0..self.peers.len()).any(has) {
                let all = (0..self.peers.len()).filter(|at| self.peers[*at].running().is_some());
                left.extend(all.map(|at| (at, *id)));
            }
        }
        while !left.is_empty() {
            for (at, id) in &left {
                self.get(*at, *id, known[id].clone(), true);
            }
            sleep(Duration::from_secs(5)).await;
            let model = self.model.lock();
            if let Some(failure) = model.failures.first() {
                return Err(failure.clone());
            }
            left.retain(|(at, id)| model.complete.get(&(*at, *id)) != Some(&true));
            if let (Some((at, id)), true) = (left.first(), Instant::now() > until) {
                let (name, peer) = (&known[id].original.name, &self.peers[*at].name);
                return Err(format!("{peer} does not get {name} although somebody has all of it"));
            }
        }
        // What was begun before and cannot be had gives up.
        while !self.model.lock().getting.is_empty() {
            if Instant::now() > until + PATIENCE {
                return Err(format!("a download does not end: {:?}", self.model.lock().getting));
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    fn entries(&self) -> usize {
        let disks = self.peers.iter().flat_map(|peer| &peer.disks);
        let disks = disks.chain(self.databases.iter().map(|database| &database.disk));
        disks.flat_map(Disk::entries).map(|(_, entries)| entries).sum()
    }

    async fn nothing_grows(&mut self) -> Result<(), String> {
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        // Most of what a world costs is this rest, so only some have it.
        if self.random.random_bool(0.75) {
            return Ok(());
        }
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
        Ok(())
    }

    /// Nothing lies on a disk that belongs to no file, once the library was opened and swept.
    async fn nothing_is_left_over(&self) -> Result<(), String> {
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

    /// After a power cut of all, everybody has what they were told is safe.
    async fn completed_stays_complete(&mut self) -> Result<(), String> {
        for at in 0..self.peers.len() {
            self.cut_power(at).await;
        }
        for at in 0..self.trackers.len() {
            self.trackers[at].kill().await;
        }
        for at in 0..self.peers.len() {
            self.start_peer(at, false).await?;
            let complete = self.model.lock().complete_at(at);
            for id in complete {
                let original = self.model.lock().known[&id].original.clone();
                let Some(running) = self.peers[at].running() else { continue };
                if !running.compare(id, &original).await? {
                    return Err(format!("{} cannot read {} any more", self.peers[at].name, original.name));
                }
            }
        }
        Ok(())
    }

    /// Everything can be stopped, and nothing is left of it.
    async fn everything_ends(&mut self) -> Result<(), String> {
        for peer in &mut self.peers {
            timeout(PATIENCE, peer.stop()).await.map_err(|_| format!("{} does not stop", peer.name))?;
        }
        for tracker in &mut self.trackers {
            timeout(PATIENCE, tracker.stop()).await.map_err(|_| format!("{} does not stop", tracker.name))?;
        }
        sleep(PATIENCE).await;
        match tokio::runtime::Handle::current().metrics().num_alive_tasks() {
            0 => Ok(()),
            tasks => Err(format!("{tasks} tasks run on after everything has stopped")),
        }
    }
}
