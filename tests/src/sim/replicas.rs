//! The replica store of a simulated tracker.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::protocol::server::Handler;
use enjambre_core::runtime::clock::Clock;
use enjambre_core::storage::memory::Disk;
use enjambre_core::{Dialer, Transport};
use enjambre_swarm::catalogue::Catalogue;
use enjambre_swarm::download::downloader::Downloader;
use enjambre_swarm::download::settings::DownloadSettings;
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::rate_limit::bandwidth::BandwidthLimit;
use enjambre_swarm::seeder::Seeder;
use enjambre_swarm::tracker::handler::TrackerHandler;
use enjambre_swarm::tracker::pin_store::PinStore;
use enjambre_swarm::tracker::replicas::{ReplicaParts, ReplicaStore};
use enjambre_swarm::tracker::service::TrackerService;
use enjambre_swarm::tracker_client::trackers::Trackers;
use tokio::time::{Instant, sleep, timeout};

use super::site::Site;
use super::world::{TIMEOUT, World};

/// Sufficient for one replica of each file, in the share of one peer.
pub(super) const QUOTA: u64 = 1 << 30;
/// The longest time in which a tracker without faults stores a replica.
const PIN_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// A running replica store.
#[derive(Debug)]
pub(super) struct Replicas {
    pub(super) store: Arc<ReplicaStore>,
    downloader: Arc<Downloader>,
    seeder: Arc<Seeder>,
    catalogue: Arc<Catalogue>,
}

impl Replicas {
    pub(super) async fn open(
        disks: &[Disk; 2],
        link: Arc<dyn Transport>,
        site: &Site,
        catalogue: &Arc<Catalogue>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let [index, content] = disks.each_ref().map(|disk| Arc::new(disk.open()));
        let library = Library::open(index, ContentStore::Database(content)).await;
        let library = library.map_err(|error| error.to_string())?;
        let unlimited = || Arc::new(BandwidthLimit::new(None));
        let dialer = Arc::new(Dialer::new(vec![link]));
        let seeder = Arc::new(Seeder::new(Arc::clone(&library), unlimited()));
        let settings = DownloadSettings::default();
        let Site { key, endpoint, .. } = site;
        let me = Some(key.peer_id());
        let downloader = Downloader::new(library, Arc::clone(&dialer), unlimited(), me, settings);
        let downloader = Arc::new(downloader);
        let parts = ReplicaParts {
            downloader: Arc::clone(&downloader),
            members: None,
            catalogue: Arc::clone(catalogue),
            trackers: Arc::new(Trackers::new(&dialer, [endpoint.clone()])),
            key: key.clone(),
            endpoints: vec![endpoint.clone()],
            clock: Arc::clone(clock),
        };
        let store = ReplicaStore::new(parts, QUOTA);
        Ok(Self { store, downloader, seeder, catalogue: Arc::clone(catalogue) })
    }

    pub(super) fn handler(&self, service: Arc<TrackerService>) -> Arc<dyn Handler> {
        Arc::new(TrackerHandler { service, seeder: Some(Arc::clone(&self.seeder)) })
    }

    pub(super) async fn stop(&self) {
        self.store.stop().await;
        self.downloader.shutdown().await;
        let _closed = self.downloader.library().close().await;
    }

    /// Removes all pins, leaves the swarm and stops.
    async fn end(&self) -> Result<(), String> {
        loop {
            let pins = self.catalogue.pins(None).await.map_err(|error| error.to_string())?;
            if pins.is_empty() {
                break;
            }
            for (id, _) in pins {
                self.store.unpin(&id).await.map_err(|error| error.to_string())?;
            }
        }
        let entries = self.downloader.library().entries();
        self.store.leave().await;
        self.stop().await;
        match entries.first() {
            Some(entry) => Err(format!("a tracker keeps the replica {entry:?} without a pin")),
            None => Ok(()),
        }
    }
}

impl World {
    /// Whether the trackers store replicas.
    pub(super) fn has_replicas(&self) -> bool {
        self.trackers.len() == self.databases.len()
    }

    /// Every file that an honest running peer published and has can be pinned, whatever a stranger has pinned.
    pub(super) async fn check_pins(&mut self) -> Result<(), String> {
        if !self.has_replicas() {
            return Ok(());
        }
        for tracker in 0..self.trackers.len() {
            self.pin_missing_content(tracker).await;
        }
        let known = self.model.lock().known.clone();
        for (id, known) in known.iter().filter(|(_, known)| !known.acknowledged.is_empty()) {
            let Some(running) = self.peers[known.publisher].running().cloned() else { continue };
            if !running.is_complete(id, &known.original) || self.peers[known.publisher].misbehaving {
                continue;
            }
            let until = Instant::now() + PIN_TIMEOUT;
            loop {
                let pinned = running.presence.pin(*id).await;
                if pinned.as_ref().is_ok_and(|progress| progress.complete) {
                    break;
                }
                if Instant::now() > until {
                    return Err(format!(
                        "no tracker stores a replica of {}: {pinned:?}",
                        known.original.name
                    ));
                }
                sleep(Duration::from_secs(2)).await;
            }
        }
        Ok(())
    }

    /// Without pins, trackers have no replicas.
    pub(super) async fn end_replicas(&mut self) -> Result<(), String> {
        for tracker in &mut self.trackers {
            if let Some(replicas) = tracker.take_replicas() {
                timeout(TIMEOUT, replicas.end())
                    .await
                    .map_err(|_| format!("the replicas of {} do not end", tracker.name))??;
            }
        }
        Ok(())
    }
}
