//! The download queue with real transfers.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::world::{Behavior, MIB, Node, World};
use crate::download::downloader::Downloader;
use crate::download::error::DownloadError;
use crate::download::fixtures::NodeEndpoint;
use crate::download::get::{GetRequest, get};
use crate::download::queue::{
    DownloadQueue, DownloadStatus, MAX_ACTIVE, NewDownload, QueueError, QueueSubscription, Stage,
};
use crate::download::request::{DownloadRequest, Progress};
use crate::download::settings::DownloadSettings;
use crate::download::view::{FIRST_SOURCE, IN_FLIGHT, MISSING, STORED, SourceState};
use crate::library::content::ContentStore;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::storage::memory::Disk;
use enjambre_core::{FileId, FileKind, Memory};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

/// A world with a limited download rate.
fn slow_world(size: usize) -> World {
    World { download: NonZeroU64::new(MIB as u64), ..World::new(size) }
}

async fn reader(world: &World) -> (Arc<Downloader>, Arc<Library>) {
    let Node { downloader, library, .. } =
        world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    (Arc::new(downloader), library)
}

async fn started(downloader: &Arc<Downloader>, world: &World) -> DownloadQueue {
    let queue = DownloadQueue::open(Arc::clone(downloader), Arc::clone(&world.providers) as _).await.unwrap();
    queue.start();
    queue
}

async fn add(queue: &DownloadQueue, world: &World) -> FileId {
    let (id, size) = (world.manifest.id(), world.manifest.layout().size());
    let name = format!("file of {size} bytes").parse().unwrap();
    assert!(queue.add(NewDownload { id, name, kind: FileKind::File, size }).await.unwrap());
    id
}

/// Waits until the status of a download satisfies the condition.
async fn reached(
    queue: &DownloadQueue,
    id: FileId,
    is_reached: impl Fn(&DownloadStatus) -> bool,
) -> DownloadStatus {
    let mut subscription = QueueSubscription::default();
    let wait = async {
        loop {
            queue.changed(&mut subscription).await;
            if let Some(status) = queue.get(&id).filter(&is_reached) {
                return status;
            }
        }
    };
    timeout(Duration::from_secs(3600), wait).await.unwrap_or_else(|_| panic!("{:?}", queue.list()))
}

#[tokio::test(start_paused = true)]
async fn downloads_start_in_order_up_to_limit() {
    let first = slow_world(2 * MIB);
    let source = first.provider("source", Behavior::Honest, |_| true).await;
    let others: Vec<World> = (1..MAX_ACTIVE + 3).map(|more| World::new(2 * MIB + more)).collect();
    for other in &others {
        other.fill(&source, |_| true).await;
    }
    let (downloader, _) = reader(&first).await;
    let queue = started(&downloader, &first).await;
    let mut ids = vec![add(&queue, &first).await];
    for other in &others {
        ids.push(add(&queue, other).await);
    }
    let stages: Vec<Stage> = queue.list().iter().map(|status| status.stage).collect();
    assert!(stages[..MAX_ACTIVE].iter().all(|stage| *stage != Stage::Queued), "{stages:?}");
    assert!(stages[MAX_ACTIVE..].iter().all(|stage| *stage == Stage::Queued), "{stages:?}");
    let (next, last) = (ids[MAX_ACTIVE], ids[MAX_ACTIVE + 2]);
    queue.move_to(last, 0).await.unwrap();
    let moved = reached(&queue, last, |status| status.stage != Stage::Queued).await;
    assert_eq!((moved.position, queue.get(&next).unwrap().stage), (Some(0), Stage::Queued));
    for id in ids {
        reached(&queue, id, |status| status.stage == Stage::Complete && status.position.is_none()).await;
    }
    assert!(downloader.active().is_empty());
}

#[tokio::test(start_paused = true)]
async fn pause_keeps_pieces() {
    let world = slow_world(8 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    let (downloader, _) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    let id = add(&queue, &world).await;
    let active = reached(&queue, id, |status| status.done >= 4 * MIB as u64).await;
    assert!(active.stage == Stage::Active && active.eta().is_some(), "{active:?}");
    assert!((MIB as u64 / 2..2 * MIB as u64).contains(&active.rate), "{active:?}");
    queue.pause(id).await.unwrap();
    downloader.ended(&id).await;
    let paused = queue.get(&id).unwrap();
    assert!(paused.stage == Stage::Paused && paused.done >= 4 * MIB as u64, "{paused:?}");
    let sent = source.sent_bytes();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(source.sent_bytes(), sent);
    queue.resume(id).await.unwrap();
    reached(&queue, id, |status| status.stage == Stage::Complete).await;
    assert!(source.sent_bytes() < 8 * MIB as u64 + 3 * MIB as u64, "{}", source.sent_bytes());
    assert!(matches!(queue.pause(id).await, Err(QueueError::Finished(_))));
    queue.cancel(id, false).await.unwrap();
    assert!(queue.list().is_empty() && downloader.library().entry(&id).unwrap().is_complete());
}

#[tokio::test(start_paused = true)]
async fn download_without_providers_is_retried_and_gives_its_turn() {
    let world = World::new(MIB);
    let (downloader, _) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    let absent = 3 * MAX_ACTIVE;
    for byte in 0..absent as u8 {
        let (id, name) = (FileId::from_bytes([byte; 32]), "absent".parse().unwrap());
        queue.add(NewDownload { id, name, kind: FileKind::File, size: 1 }).await.unwrap();
    }
    let id = add(&queue, &world).await;
    let status = reached(&queue, id, |status| status.error.is_some()).await;
    assert_eq!((status.stage, status.position), (Stage::Searching, Some(absent)), "{status:?}");
    world.provider("source", Behavior::Honest, |_| true).await;
    reached(&queue, id, |status| status.stage == Stage::Complete).await;
}

#[tokio::test(start_paused = true)]
async fn size_limit_of_a_joined_download_does_not_fail_an_entry() {
    let world = World::new(2 * MIB);
    let (downloader, _) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    let limited = DownloadRequest { accepted_sizes: 0..=MIB as u64, ..world.request() };
    let limited = downloader.get(limited);
    let id = add(&queue, &world).await;
    world.provider("source", Behavior::Honest, |_| true).await;
    let error = limited.wait().await.unwrap_err();
    assert!(matches!(&*error, DownloadError::TooLarge { .. }), "{error}");
    let status = reached(&queue, id, |status| status.error.is_some()).await;
    assert!(status.position.is_some(), "it is retried: {status:?}");
    reached(&queue, id, |status| status.stage == Stage::Complete).await;
}

#[tokio::test(start_paused = true)]
async fn full_disk_is_awaited_and_other_storage_error_fails_download() {
    let world = World::new(2 * MIB);
    world.provider("source", Behavior::Honest, |_| true).await;
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let (settings, upload) = (DownloadSettings::default(), BandwidthLimit::new(None));
    let node = world.node_on("reader", Behavior::Honest, settings, upload, Arc::clone(&storage) as _).await;
    let queue = started(&Arc::new(node.downloader), &world).await;
    storage.add(Operation::Commit, When::Always, Fault::Full);
    let id = add(&queue, &world).await;
    reached(&queue, id, |status| status.stage == Stage::DiskFull).await;
    storage.clear();
    storage.add(Operation::Commit, When::Always, Fault::Fail);
    let failed = reached(&queue, id, |status| status.stage == Stage::Failed).await;
    assert!(failed.error.is_some() && failed.position.is_none(), "{failed:?}");
    storage.clear();
    queue.resume(id).await.unwrap();
    reached(&queue, id, |status| status.stage == Stage::Complete).await;
}

#[tokio::test(start_paused = true)]
async fn restart_continues_downloads() {
    let world = slow_world(6 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    let (index, content) = (Disk::new(), Disk::new());
    let mut id = None;
    for run in 0..2 {
        let store = ContentStore::Database(Arc::new(content.open()));
        let library = Library::open(Arc::new(index.open()), store).await.unwrap();
        let dialer = NodeEndpoint::new(&world.network, &format!("reader{run}"), 0, false).await.dialer;
        let limit = Arc::new(BandwidthLimit::new(world.download));
        let downloader = Arc::new(Downloader::new(library, dialer, limit, None, DownloadSettings::default()));
        let queue = started(&downloader, &world).await;
        if let Some(id) = id {
            reached(&queue, id, |status| status.stage == Stage::Complete).await;
        } else {
            let added = add(&queue, &world).await;
            reached(&queue, added, |status| status.done >= 3 * MIB as u64).await;
            id = Some(added);
        }
        queue.shutdown().await;
        downloader.shutdown().await;
        downloader.library().close().await.unwrap();
    }
    assert!(source.sent_bytes() < 9 * MIB as u64, "{}", source.sent_bytes());
}

#[tokio::test(start_paused = true)]
async fn cancel_removes_incomplete_file_unless_kept() {
    let world = slow_world(6 * MIB);
    world.provider("source", Behavior::Honest, |_| true).await;
    let (downloader, library) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    for keep in [true, false] {
        let id = add(&queue, &world).await;
        reached(&queue, id, |status| status.done >= 2 * MIB as u64).await;
        queue.cancel(id, keep).await.unwrap();
        assert!(queue.list().is_empty());
        assert_eq!(library.entry(&id).is_some(), keep);
        downloader.ended(&id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn command_is_listed_and_shares_its_file() {
    let world = slow_world(20 * MIB);
    world.provider("source", Behavior::Honest, |_| true).await;
    let (downloader, library) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    let id = world.manifest.id();
    let request = GetRequest {
        id,
        name: Some("film".parse().unwrap()),
        kind: FileKind::File,
        size: 1,
        output: None,
        force: false,
        durable: false,
    };
    let (progress, _) = tokio::sync::watch::channel(Progress::default());
    let command = get(&downloader, &request, Arc::clone(&world.providers) as _, &progress);
    let observe = async {
        let status = reached(&queue, id, |status| status.done >= MIB as u64).await;
        assert!(status.is_command && status.position.is_none(), "{status:?}");
        assert_eq!((status.name.unwrap().as_str(), status.size), ("film", 20 * MIB as u64));
        assert!(matches!(queue.find("film"), Err(QueueError::Command(_))));
        let queued = add(&queue, &world).await;
        assert_eq!(queue.list().len(), 1);
        queue.cancel(queued, false).await.unwrap();
        assert!(queue.get(&id).unwrap().is_command, "the command continues");
    };
    let (downloaded, ()) = tokio::join!(command, observe);
    assert_eq!(downloaded.unwrap(), 20 * MIB as u64);
    assert!(library.entry(&id).unwrap().is_complete() && queue.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn details_show_sources_and_their_pieces() {
    let world = slow_world(8 * MIB);
    let half = world.provider("half", Behavior::Honest, |piece| piece < 16).await;
    world.provider("rest", Behavior::Honest, |piece| piece >= 16).await;
    let (downloader, _) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    let id = add(&queue, &world).await;
    reached(&queue, id, |status| status.done >= 4 * MIB as u64).await;
    let details = queue.details(&id).await;
    let map = details.pieces.unwrap();
    assert_eq!((map.count, map.cells.len(), details.sources.len()), (32, 32, 2));
    for (at, source) in (FIRST_SOURCE..).zip(&details.sources) {
        let is_half = source.peer == half.provider.peer;
        let cells = map.cells.iter().enumerate().filter(|(_, cell)| **cell == at);
        let pieces: Vec<usize> = cells.map(|(piece, _)| piece).collect();
        assert!(!pieces.is_empty() && pieces.iter().all(|piece| (*piece < 16) == is_half), "{pieces:?}");
        assert!(source.state == SourceState::Active && source.endpoint.is_some() && source.rate > 0);
        assert_eq!(source.received_bytes, pieces.len() as u64 * 256 * 1024);
    }
    assert!(map.cells.contains(&IN_FLIGHT) || map.cells.contains(&MISSING), "{:?}", map.cells);
    queue.pause(id).await.unwrap();
    downloader.ended(&id).await;
    let paused = queue.details(&id).await;
    let stored = paused.pieces.unwrap().cells.iter().filter(|cell| **cell == STORED).count();
    assert!(stored >= 16 && paused.sources.is_empty(), "{stored} pieces");
}

#[tokio::test(start_paused = true)]
async fn observer_of_unchanged_queue_sleeps() {
    let world = World::new(MIB);
    let (downloader, _) = reader(&world).await;
    let queue = started(&downloader, &world).await;
    let mut subscription = QueueSubscription::default();
    queue.changed(&mut subscription).await;
    let year = Duration::from_secs(365 * 24 * 3600);
    assert!(timeout(year, queue.changed(&mut subscription)).await.is_err());
    let id = add(&queue, &world).await;
    timeout(year, queue.changed(&mut subscription)).await.unwrap();
    queue.pause(id).await.unwrap();
    downloader.ended(&id).await;
    queue.changed(&mut subscription).await;
    assert!(timeout(year, queue.changed(&mut subscription)).await.is_err());
}
