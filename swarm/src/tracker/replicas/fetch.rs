//! Fetching the replicas.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{RETRY_INTERVAL, ReplicaStore};
use crate::catalogue::error::CatalogueError;
use crate::catalogue::layout::PinId;
use crate::download::DownloadError;
use crate::download::downloader::Download;
use crate::download::get::{GetRequest, get};
use crate::download::request::{DownloadRequest, Progress};
use crate::library::entry::NewFile;
use crate::library::output::Destination;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::storage::inspect::with_causes;
use enjambre_core::{FileId, FileKind, FileRecord};

/// Time between two checks of a running fetch.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// The number of bytes that a running fetch reserves beyond the stored ones.
const RESERVED_AHEAD: u64 = 16 << 20;
/// The longest time between attempts to fetch a file.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Time after which a download ends its turn if others wait for one, however slowly content arrives.
pub(super) const MAX_TURN: Duration = Duration::from_secs(180);
/// Time without new content after which a download ends its turn.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Time of attempts without new content after which a pin of which nothing is stored expires.
const EMPTY_PIN_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// As [`EMPTY_PIN_TIMEOUT`], for a pin of which a part is stored.
const PARTIAL_PIN_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The result of an attempt to fetch a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The replica is complete, or the pin was removed.
    Done,
    /// Providers were searched, and content was requested for this time.
    Tried(Duration),
    /// The storage failed before.
    NotTried,
}

impl ReplicaStore {
    /// Fetches a file and retries as long as content arrives now and then. Fails if the file cannot be stored.
    pub(super) async fn fetch(&self, id: &PinId) -> Result<(), ErrorReply> {
        // The time of the attempts without new content, and of the pauses after them. Waits for a turn do not count.
        let (mut stored, mut idle) = (self.stored_bytes(&id.file).await, Duration::ZERO);
        let mut backoff = Backoff::new(RETRY_INTERVAL, MAX_RETRY_INTERVAL);
        loop {
            let pause = backoff.next_jittered();
            match self.try_fetch(id).await? {
                Attempt::Done => return Ok(()),
                Attempt::Tried(time) => idle += time + pause,
                Attempt::NotTried => {}
            }
            let now_stored = self.stored_bytes(&id.file).await;
            if now_stored != stored {
                (stored, idle) = (now_stored, Duration::ZERO);
                backoff.reset();
            }
            let timeout = if stored == 0 { EMPTY_PIN_TIMEOUT } else { PARTIAL_PIN_TIMEOUT };
            if idle >= timeout {
                let problem =
                    format!("the pin expired: no content arrived for {} h", timeout.as_secs() / 3600);
                return Err(ErrorReply::new(ErrorCode::NotFound, problem));
            }
            sleep(pause).await;
        }
    }

    /// Fetches a file, if it has providers, when it is the turn of the peer that pinned it.
    pub(super) async fn try_fetch(&self, id: &PinId) -> Result<Attempt, ErrorReply> {
        let PinId { file, by } = *id;
        match self.parts.catalogue.pinned(id).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                // Another tracker of the catalogue removed the pin.
                self.give_up(id).await;
                return Ok(Attempt::Done);
            }
            Err(error) => {
                // Not logged for each of many pins. The tracker logs that the database is unreachable.
                tracing::debug!(id = %file, %error, "reading a pin failed; will retry");
                return Ok(Attempt::NotTried);
            }
        }
        let file = match self.parts.catalogue.file(&file, self.parts.clock.now()).await {
            Ok(Some(file)) => file,
            Ok(None) => {
                return Err(ErrorReply::new(ErrorCode::NotFound, "file is no longer offered by any peer"));
            }
            Err(error) => {
                tracing::debug!(id = %file, %error, "looking up a pinned file failed; will retry");
                return Ok(Attempt::NotTried);
            }
        };
        if self.complete(id).await? {
            return Ok(Attempt::Done);
        }
        // A file without providers must not occupy a turn.
        if !self.is_complete(&file.id).await && !self.has_provider(&file.id).await {
            return Ok(Attempt::Tried(Duration::ZERO));
        }
        let _turn = self.downloads.turn(Some(by)).await;
        let start = Instant::now();
        let is_done = self.store_replica(&file, id).await?;
        Ok(if is_done { Attempt::Done } else { Attempt::Tried(start.elapsed()) })
    }

    /// Downloads a file. Returns whether the replica is complete or the pin was removed.
    async fn store_replica(&self, file: &FileRecord, pin: &PinId) -> Result<bool, ErrorReply> {
        let id = &file.id;
        let max_size = match self.parts.catalogue.max_pin_size(pin, self.quota).await {
            Ok(max_size) => max_size,
            Err(error) => {
                tracing::debug!(%id, %error, "reading reservations failed; will retry");
                return Ok(false);
            }
        };
        let download = self.download(file, max_size);
        let progress = download.progress();
        if !self.reserve_during(file, pin, 0, progress, download.wait()).await? {
            return Ok(false);
        }
        let kind = match self.library().verify_kind(id).await {
            Ok(kind) => kind,
            Err(error) => {
                warn_download(file, &error.into());
                return Ok(false);
            }
        };
        // The bytes of the list of members, which the progress of the members does not include.
        let mut list = 0;
        if kind == FileKind::Collection {
            list = self.library().entry(id).map_or(0, |entry| entry.size);
            let members = match self.library().collection(id).await {
                Ok(collection) => collection.total_size(),
                Err(error) => return Err(ErrorReply::new(ErrorCode::Malformed, error.to_string())),
            };
            let size = list.saturating_add(members);
            if size > max_size {
                // Fails, unless space was released meanwhile, which the next attempt uses.
                self.reserve(pin, size).await?;
                return Ok(false);
            }
        }
        let (progress, updates) = watch::channel(Progress::default());
        let members = self.download_members(file, kind, &progress);
        if !self.reserve_during(file, pin, list, updates, members).await? {
            return Ok(false);
        }
        let is_done = self.complete(pin).await?;
        if is_done {
            tracing::info!(%id, name = %file.name, "replica stored");
        }
        Ok(is_done)
    }

    /// Marks a pin as complete, durably, if the replica is complete, which it may be because of another pin.
    pub(super) async fn complete(&self, pin: &PinId) -> Result<bool, ErrorReply> {
        let (id, library) = (&pin.file, self.library());
        // A member of a directory that was never fetched for itself has no name. It would be deleted with the directory.
        if library.entry(id).is_none_or(|entry| entry.name.is_none()) || !self.is_complete(id).await {
            return Ok(false);
        }
        let _guard = self.pins.read().await;
        let prepared = async {
            library.verify_kind(id).await?;
            library.checkpoint_all().await
        };
        if let Err(error) = prepared.await {
            tracing::warn!(%id, error = with_causes(&error), "completing a replica failed; will retry");
            return Ok(false);
        }
        // It may be a collection, whose members are not complete.
        if !self.is_complete(id).await || !self.reserve(pin, self.stored_bytes(id).await).await? {
            return Ok(false);
        }
        Ok(self.parts.catalogue.set_complete(pin, true).await.unwrap_or_else(|error| {
            tracing::warn!(%id, %error, "marking a replica as complete failed; will retry");
            false
        }))
    }

    /// Waits for a download of the file, and reserves space for `base` bytes and for what the download has stored. Returns
    /// `false` if the download failed, stalled or ended its turn, or the pin was removed.
    pub(super) async fn reserve_during(
        &self,
        file: &FileRecord,
        pin: &PinId,
        base: u64,
        progress: watch::Receiver<Progress>,
        download: impl Future<Output = Result<(), Arc<DownloadError>>>,
    ) -> Result<bool, ErrorReply> {
        tokio::pin!(download);
        let Ok(Some(record)) = self.parts.catalogue.pinned(pin).await else { return Ok(false) };
        let start = Instant::now();
        let (mut done, mut since, mut reserved) = (0, start, record.size);
        loop {
            tokio::select! {
                biased;
                result = &mut download => return match result {
                    Ok(()) => Ok(true),
                    Err(error) => {
                        if let DownloadError::TooLarge { size, .. } = &*error {
                            // As for a collection. The size may be that of a member, whose own pin limits the download
                            // that both joined.
                            self.reserve(pin, reserved.max(base.saturating_add(*size))).await?;
                        }
                        warn_download(file, &error);
                        Ok(false)
                    }
                },
                () = sleep(CHECK_INTERVAL) => {}
            }
            let now = *progress.borrow();
            if now.done != done {
                (done, since) = (now.done, Instant::now());
            } else if since.elapsed() >= STALL_TIMEOUT {
                tracing::debug!(id = %file.id, "fetching a replica stalled; will retry");
                return Ok(false);
            }
            if start.elapsed() >= MAX_TURN && self.downloads.has_waiting() {
                tracing::debug!(id = %file.id, "fetching a replica paused: others wait");
                return Ok(false);
            }
            if done == 0 {
                // The total is only claimed.
                continue;
            }
            let wanted = base.saturating_add(done.saturating_add(RESERVED_AHEAD).min(now.total.max(done)));
            if wanted > reserved {
                if !self.reserve(pin, wanted).await? {
                    return Ok(false);
                }
                reserved = wanted;
            }
        }
    }

    /// Starts the download of a file or the list of a collection. It fails before content is fetched that exceeds `max_size`.
    fn download(&self, file: &FileRecord, max_size: u64) -> Download {
        let request = DownloadRequest {
            id: file.id,
            file: NewFile { name: Some(file.name.clone()), kind: file.kind, member_of: None },
            claimed_size: file.size,
            accepted_sizes: 0..=max_size,
            destination: Destination::Library,
            announced_as: file.id,
            providers: Arc::clone(&self.parts.trackers) as _,
        };
        self.parts.downloader.get(request)
    }

    /// Downloads the members of a collection and makes the replica durable.
    async fn download_members(
        &self,
        file: &FileRecord,
        kind: FileKind,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Arc<DownloadError>> {
        let request = GetRequest {
            id: file.id,
            name: Some(file.name.clone()),
            kind,
            size: file.size,
            output: None,
            force: false,
            durable: true,
        };
        let providers = Arc::clone(&self.parts.trackers) as _;
        get(&self.parts.downloader, &request, providers, progress).await.map(drop)
    }

    /// Whether another peer offers the file.
    async fn has_provider(&self, id: &FileId) -> bool {
        let me = self.parts.key.peer_id();
        let providers = self.parts.trackers.providers(id).await;
        providers.is_ok_and(|providers| providers.iter().any(|provider| provider.peer != me))
    }

    /// Reserves space for a pin. Returns `false` if the pin was removed, or if the storage failed: the next attempt, in
    /// another turn, continues with the stored content.
    async fn reserve(&self, id: &PinId, size: u64) -> Result<bool, ErrorReply> {
        match self.parts.catalogue.resize_pin(id, size, self.quota).await {
            Err(error @ CatalogueError::QuotaFull { .. }) => Err(error.into()),
            Err(error) => {
                tracing::warn!(id = %id.file, %error, "reserving space for a replica failed; will retry");
                Ok(false)
            }
            reserved => Ok(reserved?),
        }
    }
}

fn warn_download(file: &FileRecord, error: &DownloadError) {
    let error = with_causes(error);
    tracing::warn!(id = %file.id, name = %file.name, error, "fetching a replica failed; will retry");
}
