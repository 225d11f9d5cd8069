//! Tests of the replica store with access to its internal state.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::download::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::publish::PublishOptions;
use crate::rate_limit::bandwidth::BandwidthLimit;
use crate::tracker::service::TrackerService;
use crate::tracker::settings::TrackerSettings;
use crate::tracker::tests::endpoint;
use crate::tracker_client::client::TrackerClient;
use enjambre_core::protocol::server;
use enjambre_core::storage::memory::Disk;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{Dialer, Listener, Publication, SessionId};
use enjambre_testkit::clock::TimerClock;

/// Longer than any successful operation takes.
const TIMEOUT: Duration = Duration::from_secs(30);
const QUOTA: u64 = 1 << 20;
const TRACKER: &str = "memory://tracker:1";

/// The disks of a tracker's catalogue, and of the index and the content of its library.
#[derive(Default)]
struct Disks([Disk; 3]);

/// A tracker with a replica store.
struct World {
    disks: Disks,
    network: MemoryNetwork,
    store: Arc<ReplicaStore>,
    client: TrackerClient,
    listener: Arc<dyn Listener>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    dir: TempDir,
}

impl World {
    async fn new() -> Self {
        Self::start(Disks::default()).await
    }

    async fn start(disks: Disks) -> Self {
        let network = MemoryNetwork::new();
        let dialer = Arc::new(Dialer::new(vec![network.transport()]));
        let clock: Arc<dyn Clock> = Arc::new(TimerClock::new());
        let settings = TrackerSettings::default();
        let [catalogue, index, content] = disks.0.each_ref().map(|disk| Arc::new(disk.open()));
        let catalogue = Catalogue::open(catalogue, settings.rules(), clock.now()).await.unwrap();
        let catalogue = Arc::new(catalogue);
        let library = Library::open(index, ContentStore::Database(content));
        let download = DownloadSettings {
            provider_timeout: Duration::from_secs(60 * 60),
            ..DownloadSettings::default()
        };
        let key = KeyPair::generate();
        let downloader = Downloader::new(
            library.await.unwrap(),
            Arc::clone(&dialer),
            Arc::new(BandwidthLimit::new(None)),
            Some(key.peer_id()),
            download,
        );
        let parts = ReplicaParts {
            downloader: Arc::new(downloader),
            members: None,
            catalogue: Arc::clone(&catalogue),
            trackers: Arc::new(Trackers::new(&dialer, [endpoint(TRACKER)])),
            key,
            endpoints: vec![endpoint(TRACKER)],
            clock: Arc::clone(&clock),
        };
        let store = ReplicaStore::new(parts, QUOTA);
        let pins = Some(Arc::clone(&store) as Arc<dyn PinStore>);
        let service = Arc::new(TrackerService::new(catalogue, settings, clock, pins));
        let listener = dialer.bind(&endpoint(TRACKER)).await.unwrap();
        let shutdown = CancellationToken::new();
        let run = {
            let (service, shutdown) = (Arc::clone(&service), shutdown.clone());
            tokio::spawn(async move { service.run(shutdown).await })
        };
        let serve = tokio::spawn(server::serve(Arc::clone(&listener), service));
        store.start();
        let client = TrackerClient::new(dialer, endpoint(TRACKER));
        let (tasks, dir) = (vec![run, serve], TempDir::new().unwrap());
        Self { disks, network, store, client, listener, shutdown, tasks, dir }
    }

    /// Opens a session of a new peer with this endpoint.
    async fn peer(&self, at: &str) -> SessionId {
        self.client.open_session(&KeyPair::generate(), &[endpoint(at)]).await.unwrap().1.session
    }

    /// Publishes files that do not exist.
    async fn publish(&self, session: SessionId, count: u8) -> Vec<FileId> {
        let mut ids = Vec::new();
        for number in 0..count {
            let id = FileId::from_bytes([number; 32]);
            let name = format!("file {number}").parse().unwrap();
            let file = Publication { name, id, size: 1, kind: FileKind::File };
            self.client.publish(session, &file).await.unwrap();
            ids.push(id);
        }
        ids
    }

    async fn stop(self) -> Disks {
        let stop = async {
            self.store.leave().await;
            self.store.stop().await;
            self.store.parts.downloader.shutdown().await;
            self.store.library().close().await.unwrap();
            self.listener.shutdown(Duration::ZERO).await;
            self.shutdown.cancel();
            for task in self.tasks {
                task.await.unwrap();
            }
        };
        timeout(TIMEOUT, stop).await.expect("stop timed out");
        self.disks
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, holds).await.unwrap_or_else(|_| panic!("timed out: {what}"));
}

#[tokio::test(start_paused = true)]
async fn pin_without_provider_waits_without_slot() {
    let world = World::new().await;
    let session = world.peer("memory://peer:1").await;
    let ids = world.publish(session, 1).await;
    world.client.leave(session).await.unwrap();
    let slots = world.store.download_slots.acquire_many(MAX_DOWNLOADS as u32).await.unwrap();
    let attempt = timeout(TIMEOUT, world.store.try_fetch(&ids[0])).await.expect("no slot is needed");
    assert!(!attempt.unwrap());
    drop(slots);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn parallel_fetches_are_limited() {
    let world = World::new().await;
    // The peer accepts connections and never replies.
    let dialer = Dialer::new(vec![world.network.transport()]);
    let _listener = dialer.bind(&endpoint("memory://silent:1")).await.unwrap();
    let session = world.peer("memory://silent:1").await;
    let ids = world.publish(session, MAX_DOWNLOADS as u8 + 2).await;
    for id in &ids {
        world.client.pin(session, *id).await.unwrap();
    }
    until("all slots are used", || world.store.download_slots.available_permits() == 0).await;
    assert_eq!(world.store.fetches.lock().len(), ids.len(), "the other pins are pending");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn restart_removes_only_unpinned_replicas() {
    let world = World::new().await;
    let session = world.peer("memory://peer:1").await;
    let mut ids = Vec::new();
    for name in ["pinned", "unpinned"] {
        let path = world.dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        let options = PublishOptions { store: true, ..PublishOptions::default() };
        let copy = world.store.library().publish(&path, options, |_| {}).await.unwrap();
        let file = Publication { name: copy.name, id: copy.id, size: copy.size, kind: copy.kind };
        world.client.publish(session, &file).await.unwrap();
        ids.push(copy.id);
    }
    let ReplicaParts { catalogue, key, clock, .. } = &world.store.parts;
    catalogue.pin(ids[0], 6, QUOTA, key.peer_id(), clock.now()).await.unwrap();
    assert!(catalogue.set_complete(&ids[0], true).await.unwrap());

    let world = World::start(world.stop().await).await;
    let library = world.store.library();
    until("the unpinned replica is removed", || library.entry(&ids[1]).is_none()).await;
    assert!(library.entry(&ids[0]).is_some_and(|entry| entry.is_complete()));
    world.stop().await;
}
