//! The main loop of a transfer.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::provider_table::ProviderEntry;
use super::state::{OpenFile, PendingRequest, Transfer};
use crate::download::activity::Activity;
use crate::download::context::DownloadContext;
use crate::download::error::DownloadError;
use crate::download::request::{DownloadRequest, Progress};
use crate::download::schedule::ProviderKey;
use crate::download::wanted::Wanted;
use crate::library::file::LibraryFile;
use enjambre_core::{Manifest, PieceLayout};

/// Interval at which timers are checked: backoff, `have` requests, timeouts.
const TICK: Duration = Duration::from_millis(100);

/// Downloads one file. Returns when every piece is verified and written.
pub(in crate::download) async fn run(
    context: &Arc<DownloadContext>,
    request: &DownloadRequest,
    progress: &watch::Sender<Progress>,
    wanted: &Wanted,
    activity: &Activity,
    cancel: &CancellationToken,
) -> Result<Arc<LibraryFile>, DownloadError> {
    let mut transfer = Transfer::new(context, request, progress, wanted, activity, cancel);
    if let Some(file) = context.library.open_file(&request.id).await? {
        if !file.is_complete() {
            transfer.check_size(file.layout().size())?;
        }
        transfer.create(Manifest::clone(file.manifest())).await?;
    } else if let Some(manifest) = known_manifest(request) {
        transfer.create(manifest).await?;
    }
    transfer.drive().await
}

/// Returns the manifest if the id and the only accepted size determine it: for an empty file and for a single piece.
fn known_manifest(request: &DownloadRequest) -> Option<Manifest> {
    let (size, largest) = request.accepted_sizes.clone().into_inner();
    let layout = PieceLayout::new(size).ok().filter(|_| size == largest)?;
    match layout.count() {
        0 => Manifest::verify(request.id, layout, Vec::new()).ok(),
        1 => Manifest::verify(request.id, layout, vec![*request.id.as_bytes()]).ok(),
        _ => None,
    }
}

impl Transfer<'_> {
    async fn drive(mut self) -> Result<Arc<LibraryFile>, DownloadError> {
        let mut tick = Instant::now() + TICK;
        let wanted = self.wanted;
        let mut seen = 0;
        loop {
            self.restart_if_damaged();
            self.start_operations();
            if let Some(file) = self.completed_file() {
                return match self.retry_storage(|| file.finish(false)).await {
                    Ok(()) => Ok(file),
                    Err(error) => self.fail(error).await,
                };
            }
            if self.cancelled && self.pipeline.writing == 0 {
                return self.fail(DownloadError::Cancelled).await;
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled(), if !self.cancelled => {
                    self.cancelled = true;
                    self.abort_requests();
                }
                Some(event) = self.events.next() => {
                    if let Err(error) = self.on_event(event).await {
                        return self.fail(error).await;
                    }
                }
                () = wanted.changes.changed(&mut seen) => {
                    if let Some(open) = &mut self.open {
                        open.schedule.set_wanted(&wanted.bytes());
                    }
                    for observer in wanted.take_observers() {
                        let _ = observer.send(self.view());
                    }
                }
                () = sleep_until(tick) => {
                    tick = Instant::now() + TICK;
                    self.handle_stalled_providers();
                    if let Some(error) = self.check_provider_timeout() {
                        return self.fail(error).await;
                    }
                }
            }
            self.report();
        }
    }

    async fn fail(mut self, error: DownloadError) -> Result<Arc<LibraryFile>, DownloadError> {
        self.abort_requests();
        if let Some(OpenFile { file, .. }) = &self.open
            && let Err(error) = file.checkpoint().await
        {
            tracing::warn!(id = %self.request.id, %error, "checkpoint of an incomplete download failed");
        }
        Err(error)
    }

    fn completed_file(&self) -> Option<Arc<LibraryFile>> {
        let OpenFile { file, .. } = self.open.as_ref()?;
        (self.is_finished() && file.is_complete()).then(|| Arc::clone(file))
    }

    /// Whether no piece is missing, requested or being written.
    fn is_finished(&self) -> bool {
        self.pipeline.is_idle() && self.open.as_ref().is_some_and(|open| open.schedule.is_complete())
    }

    /// Starts a new schedule if the library dropped pieces that a reader found to be damaged.
    fn restart_if_damaged(&mut self) {
        if !self.is_finished() {
            return;
        }
        let Some(OpenFile { file, .. }) = &self.open else { return };
        if !file.is_complete() {
            let file = Arc::clone(file);
            self.providers.release_all();
            self.open(file);
        }
    }

    /// Returns an error if no provider had a missing piece for the provider timeout.
    fn check_provider_timeout(&mut self) -> Option<DownloadError> {
        let now = Instant::now();
        let timeout = self.context.settings.provider_timeout;
        let stalled = self.stalled_providers(now);
        let is_free = |key: ProviderKey| self.providers.get(key).is_some_and(|entry| !entry.is_busy());
        // Only a request over which data is received stays open for longer than the silence timeout.
        let silence = self.context.settings.silence_timeout;
        let is_long =
            |request: &PendingRequest| request.sent.get().is_some_and(|&sent| now >= sent + silence);
        let is_expected =
            |key: &ProviderKey, request| (is_free(*key) || is_long(request)) && !stalled.contains(key);
        let expected = self.requests.iter().any(|((key, _), request)| is_expected(key, request));
        // A busy provider may become free soon, but waiting for busy providers must end.
        let busy = |entry: &ProviderEntry| entry.became_busy_within(timeout, now);
        let may_become_free = now < self.last_piece + timeout * 2 && self.providers.values().any(busy);
        // Without budget other transfers cause the wait, not a lack of providers.
        if expected || may_become_free || !self.pipeline.is_idle() || self.budget_pending {
            self.last_progress = now;
        }
        (now >= self.last_progress + timeout)
            .then(|| DownloadError::NoProviders { timeout, reason: self.last_error.take() })
    }

    fn start_operations(&mut self) {
        self.write_received();
        if self.cancelled {
            return;
        }
        if self.open.as_ref().is_none_or(|open| !open.schedule.is_complete()) {
            self.look_up_providers();
            self.connect_providers();
            self.request_have();
            self.request_pieces();
        }
        // An unused permit goes to other transfers.
        self.budget_permit = None;
    }

    async fn on_event(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Providers(result) => self.on_providers(result),
            Event::Connected(key, Ok(connected)) => self.on_connected(key, *connected).await?,
            Event::Connected(key, Err(error)) => self.on_error(key, error),
            Event::Have(key, since, result) => self.on_have_reply(key, since, result),
            Event::Piece(key, piece, result) => self.on_piece(key, piece, result),
            Event::Written(batch, result) => self.on_written(batch, result)?,
            Event::Budget(permit) => {
                self.budget_pending = false;
                self.budget_permit = permit;
            }
            Event::Ignored => {}
        }
        Ok(())
    }
}
