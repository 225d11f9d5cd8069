//! Answers other peers: piece hashes, bitmaps, pieces and small files of what the library has.
//!
//! Fair among connections: each has a few pieces in preparation at a time, and the connections take turns at the
//! upload limit; connections from one address take at most half of the slots that others leave. Bounded in memory: a
//! reply's bytes are reserved at the transport before the piece is read. Who asks while there is no slot for it is told
//! `busy` and when to come back.

mod small;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::given::Giving;
use crate::have_waits::HaveWaits;
use crate::library::error::LibraryError;
use crate::library::file::LibraryFile;
use crate::library::library::Library;
use crate::model::id::FileId;
use crate::model::layout::MAX_PIECE_SIZE;
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{MAX_CANCEL, PeerStatus, Reply, Request};
use crate::protocol::server::Handler;
use crate::rate::RateLimit;
use crate::transport::envelope::RequestId;
use crate::transport::{ConnectionId, PeerInfo, ReplySink, network_of};

/// How much a seeder serves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeederSettings {
    /// Connections that may have piece requests waiting or under way; further ones are told `busy`, and those from an
    /// address that has half of what others leave.
    pub slots: usize,
    /// Pieces in preparation for one connection.
    pub per_connection: usize,
}

impl Default for SeederSettings {
    fn default() -> Self {
        Self { slots: 256, per_connection: 3 }
    }
}

/// When to ask again after `busy`.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// One connection that has piece requests here.
#[derive(Debug)]
struct Turn {
    /// Where it comes from.
    from: Option<IpAddr>,
    /// Pieces in preparation.
    permits: Arc<Semaphore>,
    /// Requests that wait or are served, so that they can be cancelled.
    requests: HashMap<RequestId, CancellationToken>,
}

/// Serves the files of a library.
#[derive(Debug)]
pub struct Seeder {
    library: Arc<Library>,
    upload: Arc<RateLimit>,
    settings: SeederSettings,
    /// What was given of the files that several download at once.
    given: Giving,
    waits: HaveWaits,
    turns: Mutex<HashMap<ConnectionId, Turn>>,
    sent: AtomicU64,
    started: Instant,
}

/// A request's place among those of its connection; given back when dropped.
struct Place<'a> {
    seeder: &'a Seeder,
    connection: ConnectionId,
    id: RequestId,
    cancelled: CancellationToken,
    permits: Arc<Semaphore>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut turns = self.seeder.turns.lock();
        if let Some(turn) = turns.get_mut(&self.connection) {
            turn.requests.remove(&self.id);
            if turn.requests.is_empty() {
                turns.remove(&self.connection);
            }
        }
    }
}

impl Seeder {
    /// A seeder for this library, sending no faster than `upload`.
    pub fn new(library: Arc<Library>, upload: Arc<RateLimit>, settings: SeederSettings) -> Self {
        Self {
            library,
            upload,
            settings,
            given: Giving::default(),
            waits: HaveWaits::default(),
            turns: Mutex::default(),
            sent: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Bytes of pieces sent since the start.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// How it does.
    pub fn status(&self) -> PeerStatus {
        PeerStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            files: self.library.offers().len() as u64,
            sent: self.sent(),
            serving: self.turns.lock().values().map(|turn| turn.requests.len() as u64).sum(),
        }
    }

    async fn open(&self, id: &FileId) -> Result<Arc<LibraryFile>, ErrorReply> {
        self.library
            .open_recent(id)
            .await
            .map_err(refusal)?
            .ok_or_else(|| ErrorReply::new(ErrorCode::NotFound, format!("the file {id} is not offered here")))
    }

    fn take_place(&self, peer: &PeerInfo, id: RequestId) -> Result<Place<'_>, ErrorReply> {
        let connection = peer.connection;
        let from = peer.address.map(network_of);
        let mut turns = self.turns.lock();
        if !turns.contains_key(&connection) && !self.has_slot(&turns, from) {
            return Err(ErrorReply::new(ErrorCode::Busy, "all slots are taken").retry_after(RETRY_AFTER));
        }
        let turn = turns.entry(connection).or_insert_with(|| Turn {
            from,
            permits: Arc::new(Semaphore::new(self.settings.per_connection.max(1))),
            requests: HashMap::new(),
        });
        if turn.requests.contains_key(&id) {
            return Err(ErrorReply::new(ErrorCode::Malformed, format!("the request id {id} is in use")));
        }
        let cancelled = CancellationToken::new();
        turn.requests.insert(id, cancelled.clone());
        Ok(Place { seeder: self, connection, id, cancelled, permits: Arc::clone(&turn.permits) })
    }

    /// Whether there is a slot for one more connection from there.
    fn has_slot(&self, turns: &HashMap<ConnectionId, Turn>, from: Option<IpAddr>) -> bool {
        let free = self.settings.slots.saturating_sub(turns.len());
        if free > self.settings.slots / 2 || from.is_none() {
            return free > 0;
        }
        // However many connections somebody opens, others find a slot.
        let taken = turns.values().filter(|turn| turn.from == from).count();
        free > 0 && taken < (free + taken).div_ceil(2)
    }

    async fn manifest(
        &self,
        id: &FileId,
        first: u32,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let file = self.open(id).await?;
        let hashes = file.manifest().hashes();
        let page = hashes.get(first as usize..).unwrap_or_default();
        let page = &page[..page.len().min(MAX_PIECE_SIZE as usize / 32)];
        sink.reserve(page.len() * 32).await.map_err(|_| gone())?;
        let mut payload = BytesMut::with_capacity(page.len() * 32);
        for hash in page {
            payload.extend_from_slice(hash);
        }
        Ok((Reply::Manifest { size: file.manifest().layout().size() }, payload.freeze()))
    }

    async fn piece(
        &self,
        file: &Arc<LibraryFile>,
        index: u32,
        sparing: bool,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let layout = file.manifest().layout();
        let piece = layout.piece(index).filter(|&piece| file.has(piece)).ok_or_else(|| {
            ErrorReply::new(ErrorCode::NotFound, format!("piece {index} of the file is not here"))
        })?;
        // Who is gone takes nothing from the limit, however much it asked for.
        sink.reserve(0).await.map_err(|_| gone())?;
        let share = self.given.of(file, sparing);
        // Only now, so that nobody is promised a piece that others could have had long before.
        if !self.upload.take_if(layout.len(piece), || share.give(piece, sparing)).await {
            let given = share.given();
            sink.reserve(given.len()).await.map_err(|_| gone())?;
            return Ok((Reply::Elsewhere, given));
        }
        sink.reserve(layout.len(piece)).await.map_err(|_| gone())?;
        let content = file.read_piece(piece).await.map_err(refusal)?;
        self.sent.fetch_add(content.len() as u64, Relaxed);
        share.sent();
        Ok((Reply::Piece, content))
    }

    async fn serve_piece(
        &self,
        request: RequestId,
        id: &FileId,
        index: u32,
        sparing: bool,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let file = self.open(id).await?;
        let place = self.take_place(peer, request)?;
        let work = async {
            let _permit: Option<OwnedSemaphorePermit> = Arc::clone(&place.permits).acquire_owned().await.ok();
            self.piece(&file, index, sparing, sink).await
        };
        tokio::select! {
            biased;
            () = place.cancelled.cancelled() => Err(ErrorReply::new(ErrorCode::Busy, "cancelled")),
            answer = work => answer,
        }
    }

    fn cancel(&self, connection: ConnectionId, ids: &[RequestId]) {
        if let Some(turn) = self.turns.lock().get(&connection) {
            for id in ids.iter().take(MAX_CANCEL) {
                if let Some(token) = turn.requests.get(id) {
                    token.cancel();
                }
            }
        }
    }
}

fn gone() -> ErrorReply {
    ErrorReply::new(ErrorCode::Internal, "the connection is gone")
}

/// What a remote learns when the library cannot give a piece.
fn refusal(error: LibraryError) -> ErrorReply {
    match error {
        LibraryError::Storage(error) => error.into(),
        LibraryError::Changed { .. } | LibraryError::NotFound { .. } => {
            ErrorReply::new(ErrorCode::NotFound, "the file is no longer offered here")
        }
        error => {
            tracing::warn!(%error, "a piece cannot be read");
            ErrorReply::new(ErrorCode::Storage, "the piece cannot be read")
        }
    }
}

#[async_trait]
impl Handler for Seeder {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        match request {
            Request::Manifest { id: file, first } => self.manifest(&file, first, sink).await,
            Request::Have { id, wait } => {
                let mut file = self.open(&id).await?;
                if let Some(wait) = wait {
                    self.waits.until_changed(&file, wait, peer.connection, sink).await.map_err(|_| gone())?;
                    // It may be gone, or another one by now.
                    file = self.open(&id).await?;
                }
                let size = file.manifest().layout().size();
                let have = file.have();
                let complete = have.is_full();
                let payload = if complete { Bytes::new() } else { Bytes::copy_from_slice(have.as_bytes()) };
                Ok((Reply::Have { size, complete }, payload))
            }
            Request::Piece { id: file, index, sparing } => {
                self.serve_piece(id, &file, index, sparing, peer, sink).await
            }
            Request::Files { ids } => self.serve_files(id, ids, peer, sink).await,
            Request::Cancel { ids } => {
                self.cancel(peer.connection, &ids);
                Ok((Reply::Done, Bytes::new()))
            }
            Request::Status => Ok((Reply::PeerStatus(self.status()), Bytes::new())),
            _ => Err(ErrorReply::new(ErrorCode::Unsupported, "this is a peer; ask a tracker")),
        }
    }
}

#[cfg(test)]
#[path = "seeder/slots_tests.rs"]
mod slots_tests;
