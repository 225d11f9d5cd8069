//! The state of a transfer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::{AbortHandle, BoxFuture};
use futures::stream::FuturesUnordered;
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::event::{Event, Received};
use super::provider_table::ProviderTable;
use crate::download::activity::Activity;
use crate::download::context::{self, DownloadContext, StorageWait};
use crate::download::error::DownloadError;
use crate::download::request::{DownloadRequest, Phase, Progress};
use crate::download::schedule::{ProviderKey, Schedule};
use crate::download::view::Samples;
use crate::download::wanted::Wanted;
use crate::library::error::LibraryError;
use crate::library::file::LibraryFile;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::runtime::{self, HashMap};
use enjambre_core::{Manifest, PieceIndex, RequestId};

/// Maximum number of batches of pieces that are hashed and written in parallel.
const MAX_WRITERS: usize = 8;
/// Bounds of the interval of provider lookups. The first ones follow each other quickly, since peers that start together
/// find each other that way.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_millis(50);
pub(super) const MAX_LOOKUP_INTERVAL: Duration = Duration::from_secs(15);

/// A pending request for a piece.
#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) abort: AbortHandle,
    pub(super) id: RequestId,
    /// When it was sent, after the wait for the rate limit.
    pub(super) sent: Arc<OnceLock<Instant>>,
}

/// The file and the schedule, once the manifest is verified.
pub(super) struct OpenFile {
    pub(super) file: Arc<LibraryFile>,
    pub(super) schedule: Schedule,
    pub(super) samples: Samples,
}

/// Received pieces that are hashed and written.
pub(super) struct WritePipeline {
    pub(super) queue: Vec<Received>,
    pub(super) writing: usize,
    pub(super) max_writers: usize,
    /// Set while the library cannot store pieces.
    pub(super) wait: Option<StorageWait>,
}

impl WritePipeline {
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.writing == 0
    }
}

/// The state of a transfer.
pub(super) struct Transfer<'a> {
    pub(super) context: &'a Arc<DownloadContext>,
    pub(super) request: &'a DownloadRequest,
    pub(super) progress: &'a watch::Sender<Progress>,
    pub(super) wanted: &'a Wanted,
    pub(super) activity: &'a Activity,
    pub(super) cancel: &'a CancellationToken,
    /// The origin of the schedule's time.
    pub(super) start: Instant,
    pub(super) open: Option<OpenFile>,
    pub(super) providers: ProviderTable,
    pub(super) lookup_pending: bool,
    pub(super) next_lookup: Instant,
    pub(super) lookup_backoff: Backoff,
    pub(super) requests: HashMap<(ProviderKey, PieceIndex), PendingRequest>,
    pub(super) pipeline: WritePipeline,
    /// Whether the transfer waits for the shared budget.
    pub(super) budget_pending: bool,
    /// The awaited permit for one piece. The next request uses it. If it was returned, it would pass from one waiting
    /// transfer to the next and none would use it.
    pub(super) budget_permit: Option<OwnedSemaphorePermit>,
    pub(super) events: FuturesUnordered<BoxFuture<'static, Event>>,
    /// When the transfer last made progress or was not waiting for a provider.
    pub(super) last_progress: Instant,
    pub(super) last_piece: Instant,
    /// When to check next whether an active provider blocks another one.
    pub(super) next_review: Instant,
    pub(super) last_error: Option<String>,
    pub(super) cancelled: bool,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        context: &'a Arc<DownloadContext>,
        request: &'a DownloadRequest,
        progress: &'a watch::Sender<Progress>,
        wanted: &'a Wanted,
        activity: &'a Activity,
        cancel: &'a CancellationToken,
    ) -> Self {
        let now = Instant::now();
        Self {
            context,
            request,
            progress,
            wanted,
            activity,
            cancel,
            start: now,
            open: None,
            providers: ProviderTable::default(),
            lookup_pending: false,
            next_lookup: now,
            lookup_backoff: Backoff::new(MIN_LOOKUP_INTERVAL, MAX_LOOKUP_INTERVAL),
            requests: HashMap::default(),
            pipeline: WritePipeline {
                queue: Vec::new(),
                writing: 0,
                max_writers: runtime::cores().clamp(2, MAX_WRITERS),
                wait: None,
            },
            budget_pending: false,
            budget_permit: None,
            events: FuturesUnordered::new(),
            last_progress: now,
            last_piece: now,
            next_review: now,
            last_error: None,
            cancelled: false,
        }
    }

    /// The time since the start, which is the clock of the schedule.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Fails if the proven size of the file is not accepted.
    pub(super) fn check_size(&self, size: u64) -> Result<(), DownloadError> {
        let accepted = &self.request.accepted_sizes;
        if accepted.contains(&size) {
            return Ok(());
        }
        Err(DownloadError::TooLarge { size, max: *accepted.end() })
    }

    pub(super) async fn create(&mut self, manifest: Manifest) -> Result<(), DownloadError> {
        let (library, request) = (&self.context.library, self.request);
        let create = || library.create(manifest.clone(), request.file.clone(), request.destination.clone());
        let file = self.retry_storage(create).await?;
        self.open(file);
        Ok(())
    }

    /// Starts a schedule for the missing pieces of the file.
    pub(super) fn open(&mut self, file: Arc<LibraryFile>) {
        let seed = runtime::rng().next_u64();
        let mut schedule = Schedule::new(file.manifest().layout(), &file.have(), seed);
        schedule.set_wanted(&self.wanted.bytes());
        let samples = Samples::new(file.layout());
        self.open = Some(OpenFile { file, schedule, samples });
        self.report();
    }

    pub(super) fn report(&self) {
        let providers = self.providers.all_active().count() as u32;
        let (done, total) = match &self.open {
            Some(OpenFile { file, .. }) => (stored_bytes(file), file.layout().size()),
            None => (0, self.request.claimed_size),
        };
        let phase = match (self.pipeline.wait, providers) {
            (Some(StorageWait { full: true, .. }), _) => Phase::DiskFull,
            (_, 0) => Phase::Searching,
            _ => Phase::Fetching,
        };
        let new = Progress { done, total, providers, phase };
        self.progress.send_if_modified(|old| std::mem::replace(old, new) != new);
    }

    /// Runs a library operation and retries it as [`context::retry_storage`] does. The transfer stands still
    /// meanwhile.
    pub(super) async fn retry_storage<T, F: Future<Output = Result<T, LibraryError>>>(
        &mut self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, DownloadError> {
        let retry = context::retry_storage(self.context, self.progress, attempt);
        let done = self.cancel.run_until_cancelled(retry).await.ok_or(DownloadError::Cancelled)?;
        self.last_progress = Instant::now();
        Ok(done?)
    }

    pub(super) fn abort_requests(&mut self) {
        for (_, request) in self.requests.drain() {
            request.abort.abort();
        }
    }
}

fn stored_bytes(file: &LibraryFile) -> u64 {
    let layout = file.layout();
    // Checked before the count is read: pieces are added and removed concurrently, and this order keeps the result from
    // being too large.
    let last = layout.last().filter(|&last| file.has(last));
    let shorter = last.map_or(0, |last| u64::from(layout.piece_size()) - layout.len(last) as u64);
    (u64::from(file.have_count()) * u64::from(layout.piece_size())).saturating_sub(shorter)
}
