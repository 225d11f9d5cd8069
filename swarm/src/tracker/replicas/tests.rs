//! Tests of the replica store with access to its internal state.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::download::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::publish::PublishOptions;
use crate::rate_limit::bandwidth::BandwidthLimit;
use crate::seeder::Seeder;
use crate::tracker::service::TrackerService;
use crate::tracker::settings::TrackerSettings;
use crate::tracker::tests::endpoint;
use crate::tracker_client::client::TrackerClient;
use enjambre_core::protocol::server;
use enjambre_core::storage::memory::Disk;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{Dialer, FileKind, Listener, Memory, Publication, SessionId};
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
        let me = key.peer_id();
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
        let service = Arc::new(TrackerService::new(catalogue, me, settings, clock, pins));
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
        self.client.open_session(None, &KeyPair::generate(), &[endpoint(at)]).await.unwrap().1.session
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

    /// Starts a peer that offers a file of this size, and publishes the file with another size.
    async fn source(&self, size: usize) -> (SessionId, FileId) {
        let memory = || Arc::new(Memory::new());
        let library = Library::open(memory(), ContentStore::Database(memory())).await.unwrap();
        let path = self.dir.path().join("source");
        std::fs::write(&path, vec![7; size]).unwrap();
        let options = PublishOptions { store: true, ..PublishOptions::default() };
        let copy = library.publish(&path, options, |_| {}).await.unwrap();
        let listener = Dialer::new(vec![self.network.transport()]).bind(&endpoint("memory://source:1")).await;
        let seeder = Seeder::new(library, Arc::new(BandwidthLimit::new(None)));
        tokio::spawn(server::serve(listener.unwrap(), Arc::new(seeder)));
        let session = self.peer("memory://source:1").await;
        let file = Publication { name: copy.name, id: copy.id, size: 1, kind: FileKind::Collection };
        self.client.publish(session, &file).await.unwrap();
        (session, copy.id)
    }

    /// Pins a file and waits until its replica is complete.
    async fn pin_complete(&self, session: SessionId, id: FileId) {
        let complete = async {
            while !self.client.pin(session, id).await.unwrap().1 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(TIMEOUT, complete).await.expect("the replica is complete");
    }

    async fn reserved(&self) -> (u64, u64) {
        let reserved = self.store.parts.catalogue.reserved().await.unwrap();
        (reserved.bytes, reserved.pins)
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
    let ReplicaParts { catalogue, key, clock, .. } = &world.store.parts;
    catalogue.pin(ids[0], key.peer_id(), clock.now()).await.unwrap();
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

/// A stranger pins content as large as the quota that nobody has.
#[tokio::test(start_paused = true)]
async fn pin_without_content_reserves_nothing_and_expires() {
    let world = World::new().await;
    let stranger = world.peer("memory://stranger:1").await;
    let id = FileId::from_bytes([9; 32]);
    let missing = Publication { name: "x".parse().unwrap(), id, size: QUOTA, kind: FileKind::File };
    world.client.publish(stranger, &missing).await.unwrap();
    assert_eq!(world.client.pin(stranger, id).await.unwrap(), (0, false));
    assert_eq!(world.reserved().await, (0, 1));
    // The size and the kind in the catalogue are wrong.
    let size = QUOTA / 2;
    let (session, file) = world.source(size as usize).await;
    world.pin_complete(session, file).await;
    assert_eq!(world.reserved().await, (size, 2));
    tokio::time::sleep(Duration::from_secs(65 * 60)).await;
    assert_eq!(world.reserved().await, (size, 1), "the pin without content expired");
    let catalogue = &world.store.parts.catalogue;
    assert!(catalogue.pinned(&file).await.unwrap().unwrap().complete);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn file_larger_than_the_share_of_a_peer_is_refused() {
    let world = World::new().await;
    let (session, file) = world.source(QUOTA as usize).await;
    let refused = async {
        loop {
            if let Err(error) = world.client.pin(session, file).await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let refused = timeout(TIMEOUT, refused).await.expect("the pin is refused");
    assert_eq!(refused.code(), Some(ErrorCode::Full));
    assert_eq!(world.reserved().await, (0, 0));
    until("the content is deleted", || world.store.library().entry(&file).is_none()).await;
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
    catalogue.pin(ids[0], key.peer_id(), clock.now()).await.unwrap();
    assert!(catalogue.set_complete(&ids[0], true).await.unwrap());

    let world = World::start(world.stop().await).await;
    let library = world.store.library();
    until("the unpinned replica is removed", || library.entry(&ids[1]).is_none()).await;
    assert!(library.entry(&ids[0]).is_some_and(|entry| entry.is_complete()));
    world.stop().await;
}
