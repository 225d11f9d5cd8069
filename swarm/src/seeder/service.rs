//! The request handler of a seeder.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::long_poll::LongPoll;
use super::slots::Slots;
use super::super_seeding::SuperSeeding;
use crate::library::error::LibraryError;
use crate::library::file::LibraryFile;
use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::model::layout::MAX_PIECE_SIZE;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{HaveWait, MAX_FILES, PeerStatus, Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::{FileId, PeerInfo, ReplySink, RequestId};

/// Maximum bytes of small files in a reply.
const MAX_FILES_REPLY_BYTES: u64 = 1024 * 1024;

/// Serves the files of a library.
#[derive(Debug)]
pub struct Seeder {
    library: Arc<Library>,
    upload: Arc<BandwidthLimit>,
    super_seeding: SuperSeeding,
    long_poll: LongPoll,
    slots: Slots,
    sent: AtomicU64,
    started: Instant,
}

impl Seeder {
    /// Creates a seeder for this library that sends no faster than `upload`.
    pub fn new(library: Arc<Library>, upload: Arc<BandwidthLimit>) -> Self {
        Self {
            library,
            upload,
            super_seeding: SuperSeeding::default(),
            long_poll: LongPoll::default(),
            slots: Slots::default(),
            sent: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Returns the bytes of content sent since the start.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Returns the number of requests for content that are not answered yet.
    pub fn pending_requests(&self) -> u64 {
        self.slots.request_count()
    }

    /// Returns the current status.
    pub fn status(&self) -> PeerStatus {
        PeerStatus {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            files: self.library.offers().len() as u64,
            sent_bytes: self.sent_bytes(),
            active_requests: self.pending_requests(),
        }
    }

    async fn open(&self, id: &FileId) -> Result<Arc<LibraryFile>, ErrorReply> {
        let file = self.library.open_cached(id).await?;
        let not_found =
            || ErrorReply::new(ErrorCode::NotFound, format!("file {id} is not offered by this peer"));
        file.ok_or_else(not_found)
    }

    async fn serve_manifest(
        &self,
        id: &FileId,
        first: u32,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let file = self.open(id).await?;
        let hashes = file.manifest().hashes();
        let page = hashes.get(first as usize..).unwrap_or_default();
        let page = &page[..page.len().min(MAX_PIECE_SIZE as usize / 32)];
        sink.reserve(page.len() * 32).await?;
        let mut payload = BytesMut::with_capacity(page.len() * 32);
        for hash in page {
            payload.extend_from_slice(hash);
        }
        Ok((Reply::Manifest { size: file.manifest().layout().size() }, payload.freeze()))
    }

    async fn serve_have(
        &self,
        id: &FileId,
        wait: Option<HaveWait>,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let mut file = self.open(id).await?;
        if let Some(wait) = wait {
            self.long_poll.until_changed(&file, wait, peer.connection, sink).await?;
            // The file may have been removed or replaced.
            file = self.open(id).await?;
        }
        let size = file.manifest().layout().size();
        let have = file.have();
        let complete = have.is_full();
        let payload = if complete { Bytes::new() } else { Bytes::copy_from_slice(have.as_bytes()) };
        Ok((Reply::Have { size, complete }, payload))
    }

    async fn serve_piece(
        &self,
        file: &Arc<LibraryFile>,
        index: u32,
        super_seed: bool,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let layout = file.manifest().layout();
        let piece = layout.piece(index).filter(|&piece| file.has(piece)).ok_or_else(|| {
            ErrorReply::new(ErrorCode::NotFound, format!("piece {index} of the file is not available"))
        })?;
        // A closed connection does not use the upload limit, however many requests are pending.
        sink.reserve(0).await?;
        let mut claim = self.super_seeding.claim(file, super_seed);
        // Claimed when it is this request's turn, so that a waiting request does not withhold a piece from others.
        if !self.upload.take_if(layout.len(piece), || claim.take(piece, super_seed)).await {
            let sent = claim.sent_pieces();
            sink.reserve(sent.len()).await?;
            return Ok((Reply::AlreadySent, sent));
        }
        sink.reserve(layout.len(piece)).await?;
        let content = file.read_piece(piece).await?;
        self.sent.fetch_add(content.len() as u64, Relaxed);
        claim.commit();
        Ok((Reply::Piece, content))
    }

    /// Reads small files, from the first one up to the size limit of a reply.
    async fn serve_files(
        &self,
        ids: &[FileId],
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let mut sizes = self.library.small_sizes(ids);
        let mut bytes = 0;
        let fit = sizes.iter().take_while(|size| {
            bytes += size.unwrap_or(0);
            bytes <= MAX_FILES_REPLY_BYTES
        });
        sizes.truncate(fit.count());
        let bytes = sizes.iter().flatten().sum::<u64>() as usize;
        // A closed connection does not use the upload limit, however many requests are pending.
        sink.reserve(0).await?;
        self.upload.take(bytes).await;
        sink.reserve(bytes).await?;
        // Files that were added meanwhile exceed the reserved bytes.
        let known = ids.iter().zip(&sizes).filter(|(_, size)| size.is_some()).map(|(id, _)| *id);
        let read = self.library.read_small(&known.collect::<Vec<_>>()).await?;
        for (size, now) in sizes.iter_mut().filter(|size| size.is_some()).zip(read.sizes) {
            *size = now;
        }
        self.sent.fetch_add(read.content.len() as u64, Relaxed);
        Ok((Reply::Files { sizes }, read.content))
    }
}

/// Converts a library error to an error reply without internal details.
impl From<LibraryError> for ErrorReply {
    fn from(error: LibraryError) -> Self {
        match error {
            LibraryError::Storage(error) => error.into(),
            LibraryError::Changed { .. } | LibraryError::NotFound { .. } => {
                Self::new(ErrorCode::NotFound, "file is no longer offered by this peer")
            }
            error => {
                tracing::warn!(%error, "piece read failed");
                Self::new(ErrorCode::Storage, "piece read failed")
            }
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
            Request::Manifest { id: file, first } => self.serve_manifest(&file, first, sink).await,
            Request::Have { id: file, wait } => self.serve_have(&file, wait, peer, sink).await,
            Request::Piece { id: file, index, super_seed } => {
                let file = self.open(&file).await?;
                let pending = self.slots.register(peer, id)?;
                pending.run(self.serve_piece(&file, index, super_seed, sink)).await
            }
            Request::Files { ids } => {
                if ids.len() > MAX_FILES {
                    let message = format!("request contains {} files; the limit is {MAX_FILES}", ids.len());
                    return Err(ErrorReply::new(ErrorCode::TooLarge, message));
                }
                let pending = self.slots.register(peer, id)?;
                pending.run(self.serve_files(&ids, sink)).await
            }
            Request::Cancel { ids } => {
                self.slots.cancel(peer.connection, &ids);
                Ok((Reply::Done, Bytes::new()))
            }
            Request::Status => Ok((Reply::PeerStatus(self.status()), Bytes::new())),
            _ => Err(ErrorReply::new(
                ErrorCode::Unsupported,
                "request not supported by a peer; send it to a tracker",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::library::content::ContentStore;
    use crate::library::publish::PublishOptions;
    use enjambre_core::storage::memory::Disk;
    use enjambre_core::{ConnectionHandle, ConnectionId, Message, TransportError};

    /// A reply sink that publishes a file while space for a reply is reserved.
    #[derive(Debug)]
    struct PublishingSink {
        library: Arc<Library>,
        late: PathBuf,
        reserved: usize,
    }

    #[async_trait]
    impl ReplySink for PublishingSink {
        async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
            self.reserved += bytes;
            self.library.publish(&self.late, PublishOptions::default(), |_| {}).await.unwrap();
            Ok(())
        }

        async fn send(self: Box<Self>, _: Message) -> Result<(), TransportError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn files_reply_stays_within_reserved_bytes() {
        let dir = TempDir::new().unwrap();
        let (early, late) = (dir.path().join("early"), dir.path().join("late"));
        std::fs::write(&early, [1; 700]).unwrap();
        std::fs::write(&late, [2; 900]).unwrap();
        let store = ContentStore::Database(Arc::new(Disk::new().open()));
        let index = Arc::new(Disk::new().open());
        let library = Library::open(index, store).await.unwrap();
        let early = library.publish(&early, PublishOptions::default(), |_| {}).await.unwrap().id;
        let no_limit = Arc::new(BandwidthLimit::new(None));
        let seeder = Seeder::new(Arc::clone(&library), no_limit);
        let peer = PeerInfo {
            connection: ConnectionId(1),
            handle: ConnectionHandle::default(),
            address: None,
            identity: None,
        };
        let ids = vec![FileId::from_bytes(*blake3::hash(&[2; 900]).as_bytes()), early];
        let mut sink = PublishingSink { library: Arc::clone(&library), late, reserved: 0 };
        let request = Request::Files { ids: ids.clone() };
        let (reply, content) = seeder.handle(RequestId(1), request, &peer, &mut sink).await.unwrap();
        assert_eq!(reply, Reply::Files { sizes: vec![None, Some(700)] });
        assert_eq!((&content[..], sink.reserved), (&[1; 700][..], 700));
        assert_eq!(library.small_sizes(&ids), [Some(900), Some(700)], "the late file was published");
    }
}
