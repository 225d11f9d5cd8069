//! Tests of the replica store with access to its internal state.

mod reservations;
mod shared;

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::fetch::{Attempt, MAX_TURN};
use super::*;
use crate::download::request::Progress;
use crate::download::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::publish::PublishOptions;
use crate::rate_limit::bandwidth::BandwidthLimit;
use crate::rate_limit::turns::Turn;
use crate::seeder::Seeder;
use crate::tracker::service::TrackerService;
use crate::tracker::settings::TrackerSettings;
use crate::tracker::tests::endpoint;
use crate::tracker_client::client::TrackerClient;
use crate::tracker_client::error::TrackerError;
use enjambre_core::protocol::server;
use enjambre_core::storage::memory::Disk;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{Dialer, FileKind, Listener, Memory, Publication, SessionId, Storage};
use enjambre_testkit::clock::TimerClock;
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

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
    /// The storage of the catalogue.
    storage: Arc<FaultyStorage>,
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
        let storage = Arc::new(FaultyStorage::new(catalogue, 1));
        let catalogue: Arc<dyn Storage> = storage.clone();
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
        Self { disks, storage, network, store, client, listener, shutdown, tasks, dir }
    }

    /// Opens a session of a new peer with this endpoint.
    async fn peer(&self, at: &str) -> SessionId {
        self.client.open_session(None, &KeyPair::generate(), &[endpoint(at)]).await.unwrap().1.session
    }

    /// Listens at an endpoint of peers that accept connections and never reply.
    async fn silent_listener(&self) -> Arc<dyn Listener> {
        let dialer = Dialer::new(vec![self.network.transport()]);
        dialer.bind(&endpoint("memory://silent:1")).await.unwrap()
    }

    /// Takes all turns, for peers that do not exist.
    async fn take_turns(&self) -> Vec<Turn<'_, PeerId>> {
        let peers = (0..MAX_DOWNLOADS).map(|n| PeerId::from_bytes([(n / MAX_DOWNLOADS_PER_PEER) as u8; 32]));
        join_all(peers.map(|peer| self.store.downloads.turn(Some(peer)))).await
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

    /// Starts a peer that offers a file of this size, and publishes the file with another size. The seeder counts what it sends.
    async fn source(&self, size: usize) -> (SessionId, FileId, Arc<Seeder>) {
        let path = self.dir.path().join("source");
        std::fs::write(&path, vec![7; size]).unwrap();
        let (session, id, seeder, _) = self.source_of(&path).await;
        (session, id, seeder)
    }

    /// As [`World::source`], for the file or directory at a path. Also returns the library of the peer.
    async fn source_of(&self, path: &Path) -> (SessionId, FileId, Arc<Seeder>, Arc<Library>) {
        let memory = || Arc::new(Memory::new());
        let library = Library::open(memory(), ContentStore::Database(memory())).await.unwrap();
        let options = PublishOptions { store: true, ..PublishOptions::default() };
        let copy = library.publish(path, options, |_| {}).await.unwrap();
        let listener = Dialer::new(vec![self.network.transport()]).bind(&endpoint("memory://source:1")).await;
        let seeder = Arc::new(Seeder::new(Arc::clone(&library), Arc::new(BandwidthLimit::new(None))));
        tokio::spawn(server::serve(listener.unwrap(), Arc::clone(&seeder) as _));
        let session = self.peer("memory://source:1").await;
        let (name, id) = (copy.name, copy.id);
        let file = Publication { name, id, size: 1, kind: FileKind::Collection };
        self.client.publish(session, &file).await.unwrap();
        (session, id, seeder, library)
    }

    /// Pins a file until the tracker refuses it.
    async fn pin_refused(&self, session: SessionId, id: FileId) -> TrackerError {
        let start = Instant::now();
        loop {
            if let Err(error) = self.client.pin(session, id).await {
                return error;
            }
            assert!(start.elapsed() < TIMEOUT, "the pin is not refused");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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

    /// A peer with a pin of a file that nobody can serve.
    async fn pending_pin(&self) -> (SessionId, FileId) {
        let session = self.peer("memory://peer:1").await;
        let id = self.publish(session, 1).await[0];
        self.client.pin(session, id).await.unwrap();
        (session, id)
    }

    /// Pins a file for the tracker itself. Nothing fetches it yet.
    async fn own_pin(&self, file: FileId) -> PinId {
        let ReplicaParts { catalogue, key, clock, .. } = &self.store.parts;
        let pin = PinId { file, by: key.peer_id() };
        catalogue.pin(&pin, clock.now()).await.unwrap();
        pin
    }

    async fn pins(&self) -> Vec<(PinId, PinRecord)> {
        self.store.parts.catalogue.pins(None).await.unwrap()
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
    let pin = world.own_pin(ids[0]).await;
    let turns = world.take_turns().await;
    let attempt = timeout(TIMEOUT, world.store.try_fetch(&pin)).await.expect("no turn is needed");
    assert_eq!(attempt.unwrap(), Attempt::Tried(Duration::ZERO));
    drop(turns);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn repeated_request_for_a_pending_pin_writes_nothing() {
    let world = World::new().await;
    let (session, id) = world.pending_pin().await;
    for operation in [Operation::Sync, Operation::Commit] {
        world.storage.add(operation, When::Always, Fault::Unavailable);
    }
    assert_eq!(world.client.pin(session, id).await.unwrap(), (0, false));
}

#[tokio::test(start_paused = true)]
async fn parallel_fetches_are_limited() {
    let world = World::new().await;
    let _listener = world.silent_listener().await;
    let peers = [world.peer("memory://silent:1").await, world.peer("memory://silent:1").await];
    let ids = world.publish(peers[0], MAX_DOWNLOADS as u8 + 2).await;
    for (at, id) in ids.iter().enumerate() {
        world.client.pin(peers[at % 2], *id).await.unwrap();
    }
    until("all turns are taken", || world.store.downloads.free() == 0).await;
    assert_eq!(world.store.fetches.lock().len(), ids.len(), "the other pins are pending");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stalled_pins_of_some_peers_do_not_delay_others() {
    let world = World::new().await;
    let _listener = world.silent_listener().await;
    let publisher = world.peer("memory://silent:1").await;
    let ids = world.publish(publisher, 30).await;
    for pins in ids.chunks(10) {
        let peer = world.peer("memory://silent:1").await;
        for id in pins {
            world.client.pin(peer, *id).await.unwrap();
        }
    }
    until("all turns are taken", || world.store.downloads.free() == 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.reserved().await, (0, 30), "nothing has arrived");
    let (session, file, _) = world.source(1000).await;
    let start = Instant::now();
    while !world.client.pin(session, file).await.unwrap().1 {
        world.client.renew(session, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Two stalled downloads. In the order of their pins it would be seven.
    assert!(start.elapsed() < Duration::from_secs(130), "{:?}", start.elapsed());
    world.stop().await;
}

/// Content arrives just often enough that the download does not stall.
#[tokio::test(start_paused = true)]
async fn slow_download_ends_its_turn_only_if_others_wait() {
    let world = World::new().await;
    let session = world.peer("memory://peer:1").await;
    let id = world.publish(session, 1).await[0];
    let pin = world.own_pin(id).await;
    let ReplicaParts { catalogue, key, clock, .. } = &world.store.parts;
    let file = catalogue.file(&id, clock.now()).await.unwrap().unwrap();
    let (progress, updates) = watch::channel(Progress::default());
    let slow = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(50)).await;
            progress.send_modify(|progress| progress.done += 1);
        }
    });
    let turns = world.take_turns().await;
    let download = |limit| {
        timeout(limit, world.store.reserve_during(&file, &pin, 0, updates.clone(), std::future::pending()))
    };
    download(10 * MAX_TURN).await.expect_err("it continues while no other download waits");
    let mut other = Box::pin(world.store.downloads.turn(Some(key.peer_id())));
    assert!(futures::poll!(&mut other).is_pending());
    assert!(!download(2 * MAX_TURN).await.expect("it ends").unwrap());
    slow.abort();
    drop((other, turns));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn wait_for_a_turn_does_not_expire_a_pin() {
    let world = World::new().await;
    let _listener = world.silent_listener().await;
    let session = world.peer("memory://silent:1").await;
    let id = world.publish(session, 1).await[0];
    let turns = world.take_turns().await;
    world.client.pin(session, id).await.unwrap();
    for _ in 0..5 * 60 {
        // The provider stays alive.
        tokio::time::sleep(Duration::from_secs(20)).await;
        world.client.renew(session, None).await.unwrap();
    }
    drop(turns);
    until("the download begins", || world.store.downloads.free() < MAX_DOWNLOADS).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    until("the download stalls", || world.store.downloads.free() == MAX_DOWNLOADS).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.reserved().await, (0, 1), "the pin did not expire");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn storage_failure_ends_the_turn_of_a_download() {
    let world = World::new().await;
    let (session, file, _) = world.source(1000).await;
    let turns = world.take_turns().await;
    world.client.pin(session, file).await.unwrap();
    world.storage.add(Operation::Commit, When::Always, Fault::Unavailable);
    drop(turns);
    until("the content is stored", || {
        world.store.library().entry(&file).is_some_and(|entry| entry.is_complete())
    })
    .await;
    for _ in 0..3 {
        until("the download ends", || world.store.downloads.free() == MAX_DOWNLOADS).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    world.storage.clear();
    let complete = async {
        while !world.pins().await.iter().any(|(_, pin)| pin.complete) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(120), complete).await.expect("the next attempt completes it");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pin_beyond_the_share_of_a_peer_is_refused() {
    let world = World::new().await;
    let [first, second] = [world.peer("memory://peer:1").await, world.peer("memory://peer:2").await];
    let ids = world.publish(first, 1 + (MAX_FETCHES / FETCHES_PART) as u8).await;
    let (last, others) = ids.split_last().unwrap();
    for id in others {
        world.client.pin(first, *id).await.unwrap();
    }
    let refused = world.client.pin(first, *last).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Busy));
    assert_eq!(world.reserved().await, (0, others.len() as u64), "a refused pin is not stored");
    world.client.pin(first, others[0]).await.expect("a pending pin is not refused");
    world.client.pin(second, *last).await.expect("another peer has its own share");
    world.client.unpin(second, *last).await.unwrap();
    // The pin is stored, and then its removal fails.
    world.storage.add(Operation::Commit, When::Nth(2), Fault::Fail);
    let refused = world.client.pin(first, *last).await.unwrap_err();
    assert_eq!((refused.code(), world.storage.faults_met()), (Some(ErrorCode::Busy), 1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pins_of_hundreds_of_peers_leave_a_share_for_another() {
    let world = World::new().await;
    let mut next = 0_u32;
    let mut start_fetch = |by: u16| {
        next += 1;
        let id = FileId::from_bytes(*blake3::hash(&next.to_be_bytes()).as_bytes());
        let by = PeerId::from_bytes(*blake3::hash(&by.to_be_bytes()).as_bytes());
        world.store.start_fetch(PinId { file: id, by }, |fetches| has_share(fetches, by))
    };
    // No fetch ends meanwhile, because nothing is awaited.
    for by in 0..200 {
        while start_fetch(by) {}
    }
    assert!(start_fetch(200));
    assert!(world.store.fetches.lock().len() <= MAX_FETCHES);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refusals_of_other_peers_are_kept() {
    let world = World::new().await;
    let [refused, by] = [1, 2].map(|n| PeerId::from_bytes([n; 32]));
    let refusal = Some(ErrorReply::new(ErrorCode::NotFound, "refused"));
    let fetch = Fetch { stop: CancellationToken::new(), task: tokio::spawn(async {}), refusal };
    let id = PinId { file: FileId::from_bytes([0xff; 32]), by: refused };
    world.store.fetches.lock().insert(id, fetch);
    let mut next = 0;
    let mut start_fetch = || {
        next += 1;
        let file = FileId::from_bytes([next; 32]);
        world.store.start_fetch(PinId { file, by }, |fetches| has_share(fetches, by))
    };
    while start_fetch() {}
    assert!(world.store.fetches.lock().contains_key(&id));
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
    let pin = world.own_pin(ids[0]).await;
    assert!(world.store.parts.catalogue.set_complete(&pin, true).await.unwrap());

    let world = World::start(world.stop().await).await;
    let library = world.store.library();
    until("the unpinned replica is removed", || library.entry(&ids[1]).is_none()).await;
    assert!(library.entry(&ids[0]).is_some_and(|entry| entry.is_complete()));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn replica_is_deleted_with_the_last_of_its_pins() {
    let world = World::new().await;
    let (first, file, seeder) = world.source(1000).await;
    let second = world.peer("memory://peer:1").await;
    let is_stored = || world.store.library().entry(&file).is_some_and(|entry| entry.is_complete());
    world.pin_complete(first, file).await;
    assert_eq!(world.client.pin(second, file).await.unwrap(), (1000, true), "nothing has to be fetched");
    let sent = seeder.sent_bytes();
    assert_eq!(world.reserved().await, (1000, 2), "the replica is shared");
    assert_eq!(world.client.pins(second, None).await.unwrap().0[0].reserved, 1000);
    world.client.unpin(first, file).await.unwrap();
    assert!(is_stored());
    assert_eq!(world.reserved().await, (1000, 1));

    world.client.unpin(second, file).await.unwrap();
    assert_eq!(seeder.sent_bytes(), sent);
    assert!(!is_stored());
    assert_eq!(world.reserved().await, (0, 0));
    world.stop().await;
}
