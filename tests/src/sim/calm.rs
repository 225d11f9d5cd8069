//! After the faults: everything that was promised has to be there, and everything that waits has to end.

use std::collections::BTreeSet;
use std::time::Duration;

use enjambre_core::transport::fault::Faults;
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use super::faults::DiskFaults;
use super::people::is_found;
use super::world::{PATIENCE, World};

/// How long a download may take once nothing is broken. The longest pause in it is that before a peer announces again what
/// its trackers did not know or refused.
const DOWNLOAD: Duration = Duration::from_secs(20 * 60);

impl World {
    /// Mends everything, and looks whether all is as it has to be.
    pub async fn calm(&mut self) -> Result<(), String> {
        self.note("calm");
        // Most of what a world costs is rest, so only some have it.
        let rests = self.random.random_bool(0.25);
        self.mend().await?;
        self.everything_is_found().await?;
        self.every_download_finishes().await?;
        if rests {
            self.nothing_grows().await?;
        }
        self.completed_stays_complete().await?;
        self.nothing_is_left_over().await?;
        if rests {
            self.nothing_remains_of_what_is_removed().await?;
        }
        self.everything_ends(rests).await
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
            known.iter().flat_map(|(id, known)| known.acknowledged.keys().map(move |name| (id, name)))
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

    /// After a power cut of all, everybody has what they were told is safe.
    async fn completed_stays_complete(&mut self) -> Result<(), String> {
        for at in 0..self.peers.len() {
            self.cut_power(at).await;
        }
        for at in 0..self.trackers.len() {
            self.trackers[at].kill().await;
            self.start_tracker(at, DiskFaults::None).await;
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
    async fn everything_ends(&mut self, rests: bool) -> Result<(), String> {
        for peer in &mut self.peers {
            timeout(PATIENCE, peer.stop()).await.map_err(|_| format!("{} does not stop", peer.name))?;
        }
        if rests {
            self.trackers_forget().await?;
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
