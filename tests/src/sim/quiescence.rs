//! Checks after the end of all faults: acknowledged data is present, downloads finish, and all nodes stop.

use std::collections::BTreeSet;
use std::time::Duration;

use enjambre_testkit::transport::fault::Faults;
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use super::faults::DiskFaults;
use super::workload::check_lookup;
use super::world::{TIMEOUT, World};

/// The timeout of a download without faults. The longest wait is that of a peer before it retries an announcement that its
/// trackers refused or lost.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(20 * 60);

impl World {
    /// Ends all faults and checks all guarantees.
    pub async fn check_quiescence(&mut self) -> Result<(), String> {
        self.note("faults end");
        // Expiry takes most of the simulated time, so only some seeds include it.
        let with_expiry = self.random.random_bool(0.25);
        self.end_faults().await?;
        self.check_acknowledged_names().await?;
        self.check_downloads().await?;
        self.check_slow_providers().await?;
        self.check_pins().await?;
        if with_expiry {
            self.check_idle_growth().await?;
        }
        self.check_durability().await?;
        self.check_orphaned_data().await?;
        if with_expiry {
            self.check_removal().await?;
        }
        self.stop_all_nodes(with_expiry).await
    }

    /// Ends all faults. Some stopped peers stay stopped.
    async fn end_faults(&mut self) -> Result<(), String> {
        let endpoints: Vec<_> = self.peers.iter().map(|peer| peer.site.endpoint.clone()).collect();
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .chain(self.trackers.iter().map(|tracker| tracker.site.endpoint.clone()))
            .collect();
        for at in 0..self.trackers.len() {
            self.trackers[at].set_faults(DiskFaults::None);
            if !self.trackers[at].is_up() {
                self.start_tracker(at, DiskFaults::None).await;
            }
            if !self.trackers[at].is_up() {
                return Err(format!("{} does not start without faults", self.trackers[at].name));
            }
        }
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            peer.set_disk_faults(DiskFaults::None);
            peer.set_network_faults(Faults::default());
            endpoints.iter().for_each(|endpoint| peer.set_reachable(endpoint, true));
            if peer.running().is_none() && self.random.random_bool(0.7) {
                self.start_peer(at, false).await?;
            }
        }
        Ok(())
    }

    async fn check_acknowledged_names(&self) -> Result<(), String> {
        let known = self.model.lock().known.clone();
        let until = Instant::now() + TIMEOUT;
        for (id, name) in
            known.iter().flat_map(|(id, known)| known.acknowledged.keys().map(move |name| (id, name)))
        {
            let Some(running) = self.peers.iter().find_map(|peer| peer.running()) else { return Ok(()) };
            loop {
                let found = running.trackers.find(name).await;
                let is_answered = found.is_ok();
                check_lookup(*id, name, found, true)?;
                if is_answered {
                    break;
                }
                if Instant::now() > until {
                    return Err(format!("no tracker answers the lookup of {name}"));
                }
                sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(())
    }

    /// Every running peer downloads every file that an honest running peer has completely.
    async fn check_downloads(&mut self) -> Result<(), String> {
        let until = Instant::now() + DOWNLOAD_TIMEOUT;
        let known = self.model.lock().known.clone();
        let mut pending = BTreeSet::new();
        for (id, known) in &known {
            let has = |at: usize| {
                let complete =
                    self.peers[at].running().is_some_and(|peer| peer.is_complete(id, &known.original));
                complete && !self.peers[at].misbehaving
            };
            // Otherwise possibly no tracker knows the file.
            let announced = !known.acknowledged.is_empty() || has(known.publisher);
            if announced && (0..self.peers.len()).any(has) {
                let all = (0..self.peers.len()).filter(|at| self.peers[*at].running().is_some());
                pending.extend(all.map(|at| (at, *id)));
            }
        }
        while !pending.is_empty() {
            for (at, id) in &pending {
                self.get(*at, *id, known[id].clone(), true);
            }
            sleep(Duration::from_secs(5)).await;
            let model = self.model.lock();
            if let Some(failure) = model.failures.first() {
                return Err(failure.clone());
            }
            pending.retain(|(at, id)| model.complete.get(&(*at, *id)) != Some(&true));
            if let (Some((at, id)), true) = (pending.first(), Instant::now() > until) {
                let (name, peer) = (&known[id].original.name, &self.peers[*at].name);
                return Err(format!(
                    "{peer} cannot download {name} although an honest peer has the complete file"
                ));
            }
        }
        // Earlier downloads of unavailable files fail.
        while !self.model.lock().getting.is_empty() {
            if Instant::now() > until + TIMEOUT {
                return Err(format!("download does not end: {:?}", self.model.lock().getting));
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// After a power cut of all peers, files that were acknowledged as durable are complete and correct.
    async fn check_durability(&mut self) -> Result<(), String> {
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
                    return Err(format!("{} cannot read its file {}", self.peers[at].name, original.name));
                }
            }
        }
        Ok(())
    }

    /// All nodes stop, and no task remains.
    async fn stop_all_nodes(&mut self, with_expiry: bool) -> Result<(), String> {
        for peer in &mut self.peers {
            timeout(TIMEOUT, peer.stop()).await.map_err(|_| format!("{} does not stop", peer.name))?;
        }
        if let Some(malicious) = self.malicious_tracker.take() {
            malicious.stop().await;
        }
        self.end_replicas().await?;
        if with_expiry {
            self.check_expiry().await?;
        }
        for tracker in &mut self.trackers {
            timeout(TIMEOUT, tracker.stop()).await.map_err(|_| format!("{} does not stop", tracker.name))?;
        }
        sleep(TIMEOUT).await;
        match tokio::runtime::Handle::current().metrics().num_alive_tasks() {
            0 => Ok(()),
            tasks => Err(format!("{tasks} tasks remain after all nodes have stopped")),
        }
    }
}
