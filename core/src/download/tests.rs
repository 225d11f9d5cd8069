//! Whole downloads over the memory storage and the memory transport, under tokio's paused clock.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::DownloadError;
use super::downloader::{Download, Downloader};
use super::fixtures::{Directory, Place};
use super::progress::Progress;
use super::schedule::Question;
use super::source::ProviderSource;
use super::wanted::{DownloadSettings, Wanted};
use super::window::WindowSettings;
use crate::library::content::ContentStore;
use crate::library::entry::NewFile;
use crate::library::library::Library;
use crate::library::output::Destination;
use crate::library::settings::LibrarySettings;
use crate::model::bitmap::Bitmap;
use crate::model::id::PeerId;
use crate::model::layout::PieceLayout;
use crate::model::manifest::{Manifest, hash_piece};
use crate::model::record::{FileKind, Provider};
use crate::protocol::error::ErrorReply;
use crate::protocol::message::{Reply, Request};
use crate::protocol::server::Handler;
use crate::rate::RateLimit;
use crate::seeder::{Seeder, SeederSettings};
use crate::storage::Storage;
use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
use crate::storage::memory::Memory;
use crate::transport::dialer::Dialer;
use crate::transport::envelope::RequestId;
use crate::transport::memory::MemoryNetwork;
use crate::transport::{Listener, PeerInfo, ReplySink};

mod ends;
mod hold;
mod swarm;

/// What a peer does to the pieces that it sends.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    /// Changes a byte of every piece but the last, which proves the size.
    Lies,
    /// Says that the file is one byte longer.
    Inflates,
    /// Is always busy with pieces.
    Busy,
    /// The same, and wants to be asked again at once.
    BusyAtOnce,
    /// Is always busy with whatever it is asked, and wants to be asked again at once.
    BusyWithAll,
    /// Is busy with pieces for long, wants to be asked again at once, and then has time.
    BusyForLong,
    /// Is busy with the first pieces.
    BusyAtFirst,
    /// Never answers a request for a piece.
    Silent,
    /// Says all the time that it has something new, and never sends a piece.
    Boasts,
    /// Says of every piece that is asked for sparingly that it gave it to somebody else, and never sends another.
    Refuses,
}

/// How often that is.
const BUSY_AT_FIRST: u32 = 20;
/// And how long: longer than a download waits for somebody.
const BUSY_FOR: Duration = Duration::from_secs(90);

struct Odd {
    seeder: Seeder,
    manner: Manner,
    pieces: u32,
    /// How often it was asked for hashes, and for what it has.
    manifests: AtomicU32,
    haves: AtomicU32,
    /// How many requests it refused.
    refused: AtomicU32,
    begun: tokio::time::Instant,
}

#[async_trait]
impl Handler for Odd {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let asked_piece = if let Request::Piece { index, .. } = request { Some(index) } else { None };
        let is_busy = || {
            self.refused.fetch_add(1, Relaxed);
            let busy = ErrorReply::new(crate::protocol::error::ErrorCode::Busy, "busy");
            Err(busy.retry_after(Duration::ZERO))
        };
        if self.manner == Manner::BusyWithAll {
            return is_busy();
        }
        match &request {
            Request::Manifest { .. } => self.manifests.fetch_add(1, Relaxed),
            Request::Have { .. } => {
                let asked = self.haves.fetch_add(1, Relaxed);
                if self.manner == Manner::Boasts {
                    let size = PieceLayout::new(u64::from(self.pieces) * 256 * 1024).unwrap();
                    let mut have = Bitmap::empty(size);
                    // One more each time, and fewer again.
                    for piece in size.pieces().take(1 + asked as usize % (self.pieces as usize - 1)) {
                        have.insert(piece);
                    }
                    let reply = Reply::Have { size: size.size(), complete: false };
                    return Ok((reply, Bytes::copy_from_slice(have.as_bytes())));
                }
                asked
            }
            _ => 0,
        };
        if let Request::Piece { sparing, .. } = request
            && matches!(self.manner, Manner::Boasts | Manner::Refuses)
        {
            if !sparing || self.manner == Manner::Boasts {
                std::future::pending::<()>().await;
            }
            self.refused.fetch_add(1, Relaxed);
            let none = vec![0; self.pieces.div_ceil(8) as usize];
            return Ok((Reply::Elsewhere, Bytes::from(none)));
        }
        if let (Some(index), true) = (asked_piece, self.pieces > 1) {
            match self.manner {
                Manner::Busy if index + 1 < self.pieces => {
                    return Err(ErrorReply::new(crate::protocol::error::ErrorCode::Busy, "busy"));
                }
                Manner::BusyAtOnce if index + 1 < self.pieces => return is_busy(),
                Manner::BusyForLong if index + 1 < self.pieces && self.begun.elapsed() < BUSY_FOR => {
                    return is_busy();
                }
                Manner::BusyAtFirst
                    if index + 1 < self.pieces && self.refused.fetch_add(1, Relaxed) < BUSY_AT_FIRST =>
                {
                    let busy = ErrorReply::new(crate::protocol::error::ErrorCode::Busy, "busy");
                    return Err(busy.retry_after(Duration::from_millis(500)));
                }
                Manner::Silent if index + 1 < self.pieces => std::future::pending().await,
                _ => {}
            }
        }
        let (mut reply, mut payload) = self.seeder.handle(id, request, peer, sink).await?;
        match (self.manner, &mut reply) {
            (Manner::Lies, Reply::Piece) if asked_piece.is_some_and(|index| index + 1 < self.pieces) => {
                let mut changed = payload.to_vec();
                changed[0] ^= 1;
                payload = changed.into();
            }
            (Manner::Inflates, Reply::Have { size, .. } | Reply::Manifest { size }) => *size += 1,
            _ => {}
        }
        Ok((reply, payload))
    }
}

struct Node {
    library: Arc<Library>,
    downloader: Downloader,
    seeder: Arc<Odd>,
    listener: Arc<dyn Listener>,
    serving: JoinHandle<()>,
    provider: Provider,
}

struct World {
    network: MemoryNetwork,
    directory: Arc<Directory>,
    content: Vec<u8>,
    manifest: Manifest,
    /// How many bytes a second the nodes may fetch.
    download: Option<NonZeroU64>,
}

impl World {
    fn new(size: usize) -> Self {
        let mut content = vec![0; size];
        SmallRng::seed_from_u64(size as u64).fill_bytes(&mut content);
        let layout = PieceLayout::new(size as u64).unwrap();
        let hashes = layout.pieces().map(|piece| {
            let start = layout.offset(piece) as usize;
            hash_piece(layout, piece, &content[start..start + layout.len(piece)])
        });
        let manifest = Manifest::from_hashes(layout, hashes.collect()).unwrap();
        Self { network: MemoryNetwork::new(), directory: Arc::default(), content, manifest, download: None }
    }

    async fn node(&self, name: &str, manner: Manner, settings: DownloadSettings) -> Node {
        self.node_with(name, manner, settings, RateLimit::new(None)).await
    }

    async fn node_with(
        &self,
        name: &str,
        manner: Manner,
        settings: DownloadSettings,
        upload: RateLimit,
    ) -> Node {
        self.node_on(name, manner, settings, upload, Arc::new(Memory::new())).await
    }

    /// A node with its content in this storage.
    async fn node_on(
        &self,
        name: &str,
        manner: Manner,
        settings: DownloadSettings,
        upload: RateLimit,
        content: Arc<dyn Storage>,
    ) -> Node {
        let library = Library::open(
            Arc::new(Memory::new()),
            ContentStore::Database(content),
            LibrarySettings::default(),
        )
        .await
        .unwrap();
        let size = self.manifest.layout().size();
        let place = Place::new(&self.network, name, size, false).await;
        let (dialer, me) = (Arc::clone(&place.dialer), Some(place.provider.peer));
        let download = Arc::new(RateLimit::new(self.download));
        let downloader = Downloader::new(Arc::clone(&library), dialer, download, me, settings);
        let seeder = Seeder::new(Arc::clone(&library), Arc::new(upload), SeederSettings::default());
        let seeder = Arc::new(Odd {
            seeder,
            manner,
            pieces: self.manifest.layout().count(),
            manifests: AtomicU32::new(0),
            haves: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            begun: tokio::time::Instant::now(),
        });
        let serving = place.serve(Arc::clone(&seeder) as Arc<dyn Handler>);
        let Place { listener, provider, .. } = place;
        Node { library, downloader, seeder, listener, serving, provider }
    }

    /// A node that has the pieces for which `has` is true, and is known to the others.
    async fn source(&self, name: &str, manner: Manner, has: impl Fn(u32) -> bool) -> Node {
        let node = self.node(name, manner, DownloadSettings::default()).await;
        self.fill(&node, has).await;
        node
    }

    async fn fill(&self, node: &Node, has: impl Fn(u32) -> bool) {
        let new = NewFile { name: None, kind: FileKind::File, member_of: None };
        let file = node.library.create(self.manifest.clone(), new, Destination::Library).await.unwrap();
        let layout = self.manifest.layout();
        let pieces = layout.pieces().filter(|piece| has(piece.get())).map(|piece| {
            let start = layout.offset(piece) as usize;
            (piece, Bytes::copy_from_slice(&self.content[start..start + layout.len(piece)]))
        });
        file.write_pieces(pieces.collect()).await.unwrap();
        self.directory.providers.lock().push(node.provider.clone());
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            id: self.manifest.id(),
            name: Some("a file".parse().unwrap()),
            kind: FileKind::File,
            member_of: None,
            claimed_size: None,
            proven_size: None,
            destination: Destination::Library,
            announced_as: self.manifest.id(),
            providers: Arc::clone(&self.directory) as Arc<dyn ProviderSource>,
        }
    }

    async fn assert_complete(&self, node: &Node) {
        let file = node.library.open_file(&self.manifest.id()).await.unwrap().unwrap();
        assert!(file.is_complete());
        let mut content = Vec::new();
        for piece in self.manifest.layout().pieces() {
            content.extend_from_slice(&file.read_piece(piece).await.unwrap());
        }
        assert!(content == self.content, "the content is another");
    }
}

impl Node {
    async fn die(&self) {
        self.listener.shutdown(Duration::ZERO).await;
        self.serving.abort();
    }
}

async fn reaches(download: &Download, done: u64) -> Progress {
    let mut progress: watch::Receiver<Progress> = download.progress();
    *progress.wait_for(|progress| progress.done >= done).await.unwrap()
}

const MIB: usize = 1024 * 1024;

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_a_file_that_is_larger_than_it_was_said_to_be() {
    let world = World::new(3 * MIB);
    let source = world.source("source", Manner::Honest, |_| true).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let wanted = Wanted { proven_size: Some(MIB as u64), ..world.wanted() };
    let error = node.downloader.get(wanted).wait().await.unwrap_err();
    assert!(matches!(&*error, DownloadError::Nobody { .. }), "{error}");
    assert!(node.library.entry(&world.manifest.id()).is_none());
    assert_eq!(source.seeder.manifests.load(Relaxed), 0, "not even its hashes are fetched");
}

#[tokio::test(start_paused = true)]
async fn files_of_every_shape_arrive() {
    for size in [0, 1, 256 * 1024, 256 * 1024 + 1, 3 * MIB + 17] {
        let world = World::new(size);
        world.source("source", Manner::Honest, |_| true).await;
        let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
        node.downloader.get(world.wanted()).wait().await.unwrap();
        world.assert_complete(&node).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_source_of_a_part_is_used() {
    let world = World::new(6 * MIB);
    let even = world.source("even", Manner::Honest, |piece| piece % 2 == 0).await;
    let odd = world.source("odd", Manner::Honest, |piece| piece % 2 == 1).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(even.seeder.seeder.sent() + odd.seeder.seeder.sent(), 6 * MIB as u64, "nothing is sent twice");
}

#[tokio::test(start_paused = true)]
async fn liars_the_busy_and_the_silent_cost_themselves_and_not_the_download() {
    for manner in [Manner::Lies, Manner::Inflates, Manner::Busy, Manner::Silent] {
        let world = World::new(5 * MIB + 3);
        world.source("odd", manner, |_| true).await;
        let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
        let download = node.downloader.get(world.wanted());
        // The odd one is alone for a while; then an honest source comes.
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.source("honest", Manner::Honest, |_| true).await;
        download.wait().await.unwrap();
        world.assert_complete(&node).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_fetched_than_the_budget_while_nothing_is_written() {
    let world = World::new(20 * MIB);
    let source = world.source("source", Manner::Honest, |_| true).await;
    let content = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    content.add(Operation::Commit, When::Always, Fault::Delay(Duration::from_secs(30)));
    // Nothing but the budget holds it back.
    let window = WindowSettings { initial: 64, max_bytes: 64 * MIB as u64, max_requests: 64 };
    let settings = DownloadSettings { window, ..DownloadSettings::default() };
    let node = world.node_on("reader", Manner::Honest, settings, RateLimit::new(None), content.clone()).await;
    let download = node.downloader.get(world.wanted());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(source.seeder.seeder.sent(), settings.budget as u64);
    content.clear();
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(source.seeder.seeder.sent(), 20 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_is_replaced_in_mid_download() {
    let world = World::new(20 * MIB);
    let first = world.source("first", Manner::Honest, |_| true).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.wanted());
    reaches(&download, 4 * MIB as u64).await;
    first.die().await;
    world.directory.providers.lock().clear();
    world.source("second", Manner::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn without_sources_it_gives_up_after_its_patience_and_keeps_what_it_has() {
    let world = World::new(4 * MIB);
    world.source("half", Manner::Honest, |piece| piece >= 8).await;
    let patience = Duration::from_secs(60);
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let start = tokio::time::Instant::now();
    let error = node.downloader.get(world.wanted()).wait().await.unwrap_err();
    assert!(matches!(*error, DownloadError::Nobody { .. }), "{error}");
    assert!(start.elapsed() >= patience && start.elapsed() < patience + Duration::from_secs(10));
    let file = node.library.open_file(&world.manifest.id()).await.unwrap().unwrap();
    assert_eq!(file.have_count(), 8);
    // The rest comes from somebody else, and nothing comes again.
    let rest = world.source("rest", Manner::Honest, |piece| piece < 8).await;
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(rest.seeder.seeder.sent(), 2 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn two_who_want_the_same_file_share_one_download() {
    let world = World::new(8 * MIB);
    let source = world.source("source", Manner::Honest, |_| true).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let first = node.downloader.get(world.wanted());
    let second = node.downloader.get(world.wanted());
    // One goes; the other still gets it.
    reaches(&first, MIB as u64).await;
    drop(first);
    second.wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(source.seeder.seeder.sent(), 8 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn when_nobody_waits_any_more_the_download_stops_and_keeps_what_it_has() {
    let world = World::new(20 * MIB);
    let source = world.source("source", Manner::Honest, |_| true).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.wanted());
    let mut progress = download.progress();
    reaches(&download, 2 * MIB as u64).await;
    drop(download);
    // The transfer ends, and with it the sender of its progress.
    while progress.changed().await.is_ok() {}
    let file = node.library.open_file(&world.manifest.id()).await.unwrap().unwrap();
    let had = u64::from(file.have_count()) * 256 * 1024;
    assert!(had >= 2 * MIB as u64 && !file.is_complete());
    let sent = source.seeder.seeder.sent();
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(
        source.seeder.seeder.sent() - sent,
        20 * MIB as u64 - had,
        "nothing that was kept comes again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_small_budget_slows_down_and_never_stops_it() {
    let world = World::new(4 * MIB);
    world.source("a", Manner::Honest, |_| true).await;
    world.source("b", Manner::Honest, |_| true).await;
    let settings = DownloadSettings { budget: 1, ..DownloadSettings::default() };
    let node = world.node("reader", Manner::Honest, settings).await;
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn downloads_that_wait_for_the_last_room_in_the_budget_take_turns() {
    let node_world = World::new(1);
    let settings = DownloadSettings { budget: 4 * MIB, ..DownloadSettings::default() };
    let node = node_world.node("reader", Manner::Honest, settings).await;
    // Other transfers hold all of it but the room for one piece.
    let held = Arc::clone(&node.downloader.parts.budget).try_acquire_many_owned(15 * 256).unwrap();
    let mut sources = Vec::new();
    let mut downloads = Vec::new();
    for number in 0..4 {
        let mut world = World::new(2 * MIB + number);
        world.network = node_world.network.clone();
        sources.push(world.source(&format!("source{number}"), Manner::Honest, |_| true).await);
        downloads.push((node.downloader.get(world.wanted()), world));
    }
    for (download, world) in downloads {
        download.wait().await.unwrap();
        world.assert_complete(&node).await;
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn two_who_promise_everything_and_send_nothing_cannot_keep_a_piece_from_coming() {
    let world = World::new(5 * 256 * 1024);
    // They answer everything but requests for pieces, so their connections are never silent.
    world.source("one", Manner::Silent, |piece| piece != 3).await;
    world.source("two", Manner::Silent, |piece| piece != 2).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.wanted());
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.source("honest", Manner::Honest, |_| true).await;
    tokio::time::timeout(Duration::from_secs(600), download.wait()).await.unwrap().unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_with_nothing_that_is_missing_makes_room_for_another() {
    let world = World::new(4 * MIB);
    world.source("half", Manner::Honest, |piece| piece >= 8).await;
    let settings = DownloadSettings { max_providers: 1, ..DownloadSettings::default() };
    let node = world.node("reader", Manner::Honest, settings).await;
    let download = node.downloader.get(world.wanted());
    reaches(&download, 2 * MIB as u64).await;
    world.source("rest", Manner::Honest, |piece| piece < 8).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_gone_takes_nothing_from_the_upload_limit() {
    let world = World::new(4 * MIB);
    let limit = RateLimit::new(NonZeroU64::new(MIB as u64));
    let source = world.node_with("source", Manner::Honest, DownloadSettings::default(), limit).await;
    world.fill(&source, |_| true).await;
    let start = tokio::time::Instant::now();
    let id = world.manifest.id();
    let endpoint = &source.provider.endpoints[0];
    let ask_for_all = async {
        let connection = Dialer::new(vec![world.network.transport()]).connect(endpoint).await.unwrap();
        let silence = crate::transport::Deadline::Silence(Duration::from_secs(100));
        let calls =
            world.manifest.layout().pieces().map(|piece| {
                let connection = Arc::clone(&connection);
                let question = Question { piece, sparing: false };
                async move {
                    super::source::piece(&*connection, connection.next_id(), id, question, silence).await
                }
            });
        futures::future::join_all(calls).await;
    };
    // The first piece takes a quarter of a second.
    let _ = tokio::time::timeout(Duration::from_millis(300), ask_for_all).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    node.downloader.get(world.wanted()).wait().await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 6.0, "4 MiB at 1 MiB/s took {seconds} s behind requests of one who left");
}
