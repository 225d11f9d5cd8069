//! A swarm in one process: nodes with memory storage on a memory network, under tokio's paused clock.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::download::downloader::{Download, Downloader};
use crate::download::fixtures::{NodeEndpoint, StaticProviders};
use crate::download::provider::ProviderSource;
use crate::download::request::{DownloadRequest, Progress};
use crate::download::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::entry::NewFile;
use crate::library::library::Library;
use crate::library::output::Destination;
use crate::rate_limit::bandwidth::BandwidthLimit;
use crate::seeder::Seeder;
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{
    Bitmap, FileKind, Listener, Manifest, Memory, PeerInfo, PieceLayout, Provider, ReplySink, RequestId,
    Storage,
};

pub(super) const MIB: usize = 1024 * 1024;

/// How a node replies to requests.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Behavior {
    Honest,
    /// Changes a byte of every piece but the last, which proves the size.
    Corrupt,
    /// Claims that the file is one byte longer.
    Inflates,
    /// Always replies `busy` to requests for pieces.
    Busy,
    /// As `Busy`, and suggests to retry at once.
    BusyRetryNow,
    /// Always replies `busy` to all requests, and suggests to retry at once.
    BusyForAll,
    /// As `BusyRetryNow`, for [`BUSY_TIME`].
    BusyForLong,
    /// Replies `busy` to the first [`BUSY_REQUESTS`] requests for pieces.
    BusyAtFirst,
    /// Never replies to requests for pieces.
    Silent,
    /// Never completes a reply to requests of one kind: `have`, `manifest` or all pieces, in this order.
    Stalls(u8),
    /// Always claims to have new pieces and never sends one.
    ClaimsNewPieces,
    /// Replies `already_sent` to super-seeding requests and never sends a piece.
    AlreadySent,
}

const BUSY_REQUESTS: u32 = 20;
/// Longer than the provider timeout.
const BUSY_TIME: Duration = Duration::from_secs(90);

fn busy(retry_after: Duration) -> ErrorReply {
    ErrorReply::new(ErrorCode::Busy, "busy").retry_after(retry_after)
}

/// A seeder with a behavior.
pub(super) struct TestSeeder {
    seeder: Seeder,
    behavior: Behavior,
    pieces: u32,
    /// Number of `manifest` requests.
    pub(super) manifests: AtomicU32,
    /// Number of `have` requests.
    pub(super) haves: AtomicU32,
    /// Number of refused requests.
    pub(super) refused: AtomicU32,
    started: Instant,
}

impl TestSeeder {
    fn refuse(&self, error: ErrorReply) -> Result<(Reply, Bytes), ErrorReply> {
        self.refused.fetch_add(1, Relaxed);
        Err(error)
    }

    /// Claims a growing number of pieces, and starts over.
    fn claim_new_pieces(&self, request: u32) -> (Reply, Bytes) {
        let layout = PieceLayout::new(u64::from(self.pieces) * 256 * 1024).unwrap();
        let mut have = Bitmap::empty(layout);
        for piece in layout.pieces().take(1 + request as usize % (self.pieces as usize - 1)) {
            have.insert(piece);
        }
        let reply = Reply::Have { size: layout.size(), complete: false };
        (reply, Bytes::copy_from_slice(have.as_bytes()))
    }
}

#[async_trait]
impl Handler for TestSeeder {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        if self.behavior == Behavior::BusyForAll {
            return self.refuse(busy(Duration::ZERO));
        }
        let kind = match &request {
            Request::Have { .. } => 0,
            Request::Manifest { .. } => 1,
            _ => 2,
        };
        if self.behavior == Behavior::Stalls(kind) {
            std::future::pending::<()>().await;
        }
        // The last piece proves the size, so all behaviors send it, except one that stalls.
        let mut is_early_piece = false;
        match request {
            Request::Manifest { .. } => {
                self.manifests.fetch_add(1, Relaxed);
            }
            Request::Have { .. } => {
                let number = self.haves.fetch_add(1, Relaxed);
                if self.behavior == Behavior::ClaimsNewPieces {
                    return Ok(self.claim_new_pieces(number));
                }
            }
            Request::Piece { super_seed, index, .. } => match self.behavior {
                Behavior::AlreadySent if super_seed => {
                    self.refused.fetch_add(1, Relaxed);
                    let none = vec![0; self.pieces.div_ceil(8) as usize];
                    return Ok((Reply::AlreadySent, Bytes::from(none)));
                }
                Behavior::AlreadySent | Behavior::ClaimsNewPieces => std::future::pending().await,
                _ => is_early_piece = index + 1 < self.pieces,
            },
            _ => {}
        }
        if is_early_piece {
            match self.behavior {
                Behavior::Busy => return Err(ErrorReply::new(ErrorCode::Busy, "busy")),
                Behavior::BusyRetryNow => return self.refuse(busy(Duration::ZERO)),
                Behavior::BusyForLong if self.started.elapsed() < BUSY_TIME => {
                    return self.refuse(busy(Duration::ZERO));
                }
                Behavior::BusyAtFirst if self.refused.fetch_add(1, Relaxed) < BUSY_REQUESTS => {
                    return Err(busy(Duration::from_millis(500)));
                }
                Behavior::Silent => std::future::pending().await,
                _ => {}
            }
        }
        let (mut reply, mut payload) = self.seeder.handle(id, request, peer, sink).await?;
        match (self.behavior, &mut reply) {
            (Behavior::Corrupt, Reply::Piece) if is_early_piece => {
                let mut changed = payload.to_vec();
                changed[0] ^= 1;
                payload = changed.into();
            }
            (Behavior::Inflates, Reply::Have { size, .. } | Reply::Manifest { size }) => *size += 1,
            _ => {}
        }
        Ok((reply, payload))
    }
}

/// A peer.
pub(super) struct Node {
    pub(super) library: Arc<Library>,
    pub(super) downloader: Downloader,
    pub(super) seeder: Arc<TestSeeder>,
    listener: Arc<dyn Listener>,
    serving: JoinHandle<()>,
    pub(super) provider: Provider,
}

/// A swarm with one file of random content.
pub(super) struct World {
    pub(super) network: MemoryNetwork,
    pub(super) providers: Arc<StaticProviders>,
    pub(super) content: Vec<u8>,
    pub(super) manifest: Manifest,
    /// The download limit of the nodes in bytes per second.
    pub(super) download: Option<NonZeroU64>,
}

impl World {
    pub(super) fn new(size: usize) -> Self {
        let mut content = vec![0; size];
        SmallRng::seed_from_u64(size as u64).fill_bytes(&mut content);
        let layout = PieceLayout::new(size as u64).unwrap();
        let hashes = layout.pieces().map(|piece| {
            let start = layout.offset(piece) as usize;
            hash_piece(layout, piece, &content[start..start + layout.len(piece)])
        });
        let manifest = Manifest::from_hashes(layout, hashes.collect()).unwrap();
        Self { network: MemoryNetwork::new(), providers: Arc::default(), content, manifest, download: None }
    }

    pub(super) async fn node(&self, name: &str, behavior: Behavior, settings: DownloadSettings) -> Node {
        self.node_with(name, behavior, settings, BandwidthLimit::new(None)).await
    }

    pub(super) async fn node_with(
        &self,
        name: &str,
        behavior: Behavior,
        settings: DownloadSettings,
        upload: BandwidthLimit,
    ) -> Node {
        self.node_on(name, behavior, settings, upload, Arc::new(Memory::new())).await
    }

    /// Creates a node with its content in this storage.
    pub(super) async fn node_on(
        &self,
        name: &str,
        behavior: Behavior,
        settings: DownloadSettings,
        upload: BandwidthLimit,
        content: Arc<dyn Storage>,
    ) -> Node {
        let library = Library::open(Arc::new(Memory::new()), ContentStore::Database(content)).await.unwrap();
        let size = self.manifest.layout().size();
        let endpoint = NodeEndpoint::new(&self.network, name, size, false).await;
        let (dialer, me) = (Arc::clone(&endpoint.dialer), Some(endpoint.provider.peer));
        let download = Arc::new(BandwidthLimit::new(self.download));
        let downloader = Downloader::new(Arc::clone(&library), dialer, download, me, settings);
        let seeder = Seeder::new(Arc::clone(&library), Arc::new(upload));
        let seeder = Arc::new(TestSeeder {
            seeder,
            behavior,
            pieces: self.manifest.layout().count(),
            manifests: AtomicU32::new(0),
            haves: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            started: Instant::now(),
        });
        let serving = endpoint.serve(Arc::clone(&seeder) as Arc<dyn Handler>);
        let NodeEndpoint { listener, provider, .. } = endpoint;
        Node { library, downloader, seeder, listener, serving, provider }
    }

    /// Creates a provider with the pieces for which `has` is true.
    pub(super) async fn provider(&self, name: &str, behavior: Behavior, has: impl Fn(u32) -> bool) -> Node {
        let node = self.node(name, behavior, DownloadSettings::default()).await;
        self.fill(&node, has).await;
        node
    }

    /// Writes the pieces for which `has` is true and adds the node to the providers.
    pub(super) async fn fill(&self, node: &Node, has: impl Fn(u32) -> bool) {
        let new = NewFile { name: None, kind: FileKind::File, member_of: None };
        let file = node.library.create(self.manifest.clone(), new, Destination::Library).await.unwrap();
        let layout = self.manifest.layout();
        let pieces = layout.pieces().filter(|piece| has(piece.get())).map(|piece| {
            let start = layout.offset(piece) as usize;
            (piece, Bytes::copy_from_slice(&self.content[start..start + layout.len(piece)]))
        });
        file.write_pieces(pieces.collect()).await.unwrap();
        self.providers.list.lock().push(node.provider.clone());
    }

    pub(super) fn request(&self) -> DownloadRequest {
        DownloadRequest {
            id: self.manifest.id(),
            file: NewFile { name: Some("a file".parse().unwrap()), kind: FileKind::File, member_of: None },
            claimed_size: 0,
            accepted_sizes: 0..=u64::MAX,
            destination: Destination::Library,
            announced_as: self.manifest.id(),
            providers: Arc::clone(&self.providers) as Arc<dyn ProviderSource>,
        }
    }

    pub(super) async fn assert_complete(&self, node: &Node) {
        let file = node.library.open_file(&self.manifest.id()).await.unwrap().unwrap();
        assert!(file.is_complete());
        let mut content = Vec::new();
        for piece in self.manifest.layout().pieces() {
            content.extend_from_slice(&file.read_piece(piece).await.unwrap());
        }
        assert!(content == self.content, "wrong content");
    }
}

impl Node {
    /// Returns the bytes of content that the node sent.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.seeder.seeder.sent_bytes()
    }

    /// Closes the listener and all connections.
    pub(super) async fn die(&self) {
        self.listener.shutdown(Duration::ZERO).await;
        self.serving.abort();
    }
}

/// Waits until a download has this many bytes.
pub(super) async fn reaches(download: &Download, done: u64) -> Progress {
    *download.progress().wait_for(|progress| progress.done >= done).await.unwrap()
}
