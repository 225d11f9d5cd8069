//! Clients of trackers that send invalid lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{FakeLibrary, Tracker, World, endpoint, file};
use crate::tracker::service::TrackerService;
use crate::tracker_client::error::TrackerError;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{MAX_OFFERS, Nonce, Reply, Request};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::{
    CatalogueId, FileId, FileKind, FileRecord, Memory, PeerId, PeerInfo, ReplySink, RequestId, UnixMillis,
};

const AT: &str = "memory://rogue:1";

/// A tracker with a list that never ends.
struct Rogue {
    /// The names on each page.
    names: &'static [&'static str],
    pages: AtomicU64,
    /// The time until a page is sent.
    delay: Duration,
}

fn record(name: &str) -> FileRecord {
    FileRecord {
        id: file(1),
        name: name.parse().unwrap(),
        version: 1,
        size: 10,
        kind: FileKind::File,
        published_ms: UnixMillis(u64::MAX),
        publisher: PeerId::from_bytes([1; 32]),
        providers: u32::MAX,
    }
}

#[async_trait]
impl Handler for Rogue {
    async fn handle(
        &self,
        _id: RequestId,
        request: Request,
        _peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let reply = match request {
            Request::OpenSession { .. } => {
                Reply::OpenSession { catalogue: CatalogueId([1; 16]), nonce: Nonce([1; 32]), grant: None }
            }
            Request::List { .. } => {
                sleep(self.delay).await;
                let page = self.pages.fetch_add(1, Ordering::Relaxed);
                let files = self.names.iter().map(|name| record(name)).collect();
                Reply::List { files, cursor: Some(page.to_be_bytes().to_vec()) }
            }
            _ => return Err(ErrorReply::new(ErrorCode::Unsupported, "only lists")),
        };
        Ok((reply, Bytes::new()))
    }
}

/// Lists the files of a rogue tracker, and of others. Returns the names of the files and the error at the end, if any.
async fn list_of(
    world: &World,
    names: &'static [&'static str],
    delay: Duration,
    others: &[&str],
) -> (Vec<String>, Option<TrackerError>) {
    let listener = world.dialer().bind(&endpoint(AT)).await.unwrap();
    let rogue = Rogue { names, pages: AtomicU64::new(0), delay };
    let serving = tokio::spawn(serve(Arc::clone(&listener), Arc::new(rogue)));
    let mut listing = world.trackers(&[&[AT], others].concat()).list("");
    let mut files = Vec::new();
    let error = loop {
        match listing.next().await {
            Ok(Some(file)) => files.push(file.name.to_string()),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    listener.shutdown(Duration::ZERO).await;
    serving.await.unwrap();
    (files, error)
}

/// Lists the files of a rogue tracker. Returns the number of files before the error, and the violation.
async fn list(names: &'static [&'static str], delay: Duration) -> (usize, &'static str) {
    let (files, error) = list_of(&World::new(), names, delay, &[]).await;
    match error.expect("the list does not end normally") {
        TrackerError::Protocol { problem, .. } => (files.len(), problem),
        error => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn failure_of_one_list_does_not_end_the_others() {
    let world = World::new();
    let _tracker = world.tracker("memory://honest:1", &Arc::new(Memory::new())).await;
    let library = Arc::new(FakeLibrary::default());
    let peer = world.peer(&library, &["memory://honest:1"]);
    for (name, n) in [("c", 1), ("d", 2)] {
        peer.publish(&library.outbox(name, n)).await.unwrap();
    }
    // An endless list, a page that is repeated, an unordered page and an unreachable tracker.
    let cases: [(&'static [&'static str], &str); 3] =
        [(&[], "c d"), (&["a", "b"], "a b c d"), (&["b", "a"], "c d")];
    for (names, listed) in cases {
        let (files, error) =
            list_of(&world, names, Duration::ZERO, &["memory://honest:1", "memory://absent:1"]).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(files.join(" "), listed);
    }
}

#[tokio::test(start_paused = true)]
async fn endless_empty_list_is_refused() {
    assert_eq!(list(&[], Duration::ZERO).await, (0, "the list does not end"));
    assert_eq!(list(&[], Duration::from_secs(5)).await, (0, "no file in time"));
}

#[tokio::test(start_paused = true)]
async fn repeated_page_of_a_list_is_refused() {
    assert_eq!(list(&["a", "b"], Duration::ZERO).await, (2, "the list is not in order"));
    assert_eq!(list(&["b", "a"], Duration::ZERO).await, (0, "the list is not in order"));
}

/// A tracker that refuses each request with this error.
struct Refusing(ErrorCode, AtomicU64);

#[async_trait]
impl Handler for Refusing {
    async fn handle(
        &self,
        _id: RequestId,
        _request: Request,
        _peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Err(ErrorReply::new(self.0, "refused"))
    }
}

#[tokio::test(start_paused = true)]
async fn tracker_that_refuses_each_request_is_backed_off() {
    for code in [ErrorCode::Replaced, ErrorCode::Unauthorized, ErrorCode::Busy] {
        let world = World::new();
        let listener = world.dialer().bind(&endpoint(AT)).await.unwrap();
        let refusing = Arc::new(Refusing(code, AtomicU64::new(0)));
        let serving = tokio::spawn(serve(Arc::clone(&listener), refusing.clone()));
        let peer = world.peer(&Arc::new(FakeLibrary::default()), &[AT]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let requests = refusing.1.load(Ordering::Relaxed);
        assert!((2..50).contains(&requests), "{code}: {requests}");
        drop(peer);
        serving.abort();
    }
}

/// A tracker that is busy for publications and for every second announcement.
struct BusyTracker {
    inner: Arc<TrackerService>,
    /// The first file of each announcement.
    announced: Mutex<Vec<FileId>>,
}

#[async_trait]
impl Handler for BusyTracker {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        if let Request::Announce { offers, .. } = &request {
            let mut announced = self.announced.lock();
            announced.push(offers[0].id);
            if announced.len() % 2 == 1 {
                return Err(ErrorReply::new(ErrorCode::Busy, "busy").retry_after(Duration::from_secs(1)));
            }
        }
        if let Request::Publish { .. } = &request {
            return Err(ErrorReply::new(ErrorCode::Busy, "busy"));
        }
        self.inner.handle(id, request, peer, sink).await
    }
}

impl BusyTracker {
    /// Starts a tracker in front of `inner`.
    async fn start(world: &World, inner: &Tracker) -> (Arc<Self>, JoinHandle<()>) {
        let busy = Arc::new(Self { inner: Arc::clone(&inner.service), announced: Mutex::default() });
        let listener = world.dialer().bind(&endpoint(AT)).await.unwrap();
        (Arc::clone(&busy), tokio::spawn(serve(listener, busy)))
    }
}

#[tokio::test(start_paused = true)]
async fn publication_for_which_a_tracker_was_busy_is_not_refused() {
    let (world, library) = (World::new(), Arc::new(FakeLibrary::default()));
    let tracker = world.tracker("memory://inner:1", &Arc::new(Memory::new())).await;
    let (_, serving) = BusyTracker::start(&world, &tracker).await;
    let peer = world.peer(&library, &[AT]);
    let error = peer.publish(&library.outbox("a", 1)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Busy));
    // The outbox is sent before.
    assert!(peer.wait_connected(Duration::from_secs(10)).await, "{:?}", peer.status());
    assert!(peer.refused().is_empty());
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn announcement_continues_at_the_page_for_which_a_tracker_was_busy() {
    let world = World::new();
    let tracker = world.tracker("memory://inner:1", &Arc::new(Memory::new())).await;
    let (busy, serving) = BusyTracker::start(&world, &tracker).await;
    let library = Arc::new(FakeLibrary::default());
    for n in 0..2000 {
        library.put(n);
    }
    let peer = world.peer(&library, &[AT]);
    assert!(peer.wait_connected(Duration::from_secs(10)).await, "{:?}", peer.status());
    let announced = busy.announced.lock().clone();
    assert_eq!(announced.len(), 2 * 2000_usize.div_ceil(MAX_OFFERS));
    assert!(announced.is_sorted() && announced.chunks(2).all(|pair| pair[0] == pair[1]), "{announced:?}");
    serving.abort();
}
