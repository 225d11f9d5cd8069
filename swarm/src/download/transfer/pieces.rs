//! Pieces of a transfer: requests, and the verification and storage of received pieces.

use std::sync::{Arc, OnceLock};

use futures::future::{AbortHandle, Abortable, FutureExt};
use tokio::time::Instant;

use super::event::{Event, PieceContent, Received};
use super::state::{OpenFile, PendingRequest, Transfer};
use crate::download::context::{DownloadContext, StorageWait};
use crate::download::error::DownloadError;
use crate::download::provider::{self, ProviderError};
use crate::download::schedule::ProviderKey;
use crate::library::error::LibraryError;
use enjambre_core::protocol::client::call;
use enjambre_core::protocol::message::Request;
use enjambre_core::runtime::HashMap;
use enjambre_core::{Deadline, PieceIndex, PieceLayout, TransportError};

/// Maximum size of a batch of pieces that is hashed and written together; a larger piece is its own batch.
const BATCH_BYTES: usize = 1024 * 1024;
/// The same for content in a database, where each commit syncs the disk several times.
const DATABASE_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The part of a piece for which a provider may take the silence timeout.
const BYTES_PER_SILENCE: u32 = 1024 * 1024;

impl Transfer<'_> {
    /// Returns the active providers that have pending requests and delivered nothing for too long, although their
    /// connection may be alive.
    pub(super) fn stalled_providers(&self, now: Instant) -> Vec<ProviderKey> {
        let Some(OpenFile { file, .. }) = &self.open else { return Vec::new() };
        let silence = self.context.settings.silence_timeout;
        let timeout = silence * file.layout().piece_size().div_ceil(BYTES_PER_SILENCE);
        let mut oldest: HashMap<ProviderKey, Instant> = HashMap::default();
        for ((key, _), request) in &self.requests {
            if let Some(&sent) = request.sent.get() {
                oldest.entry(*key).and_modify(|oldest| *oldest = sent.min(*oldest)).or_insert(sent);
            }
        }
        oldest.retain(|key, oldest| {
            self.providers.active(*key).is_some_and(|active| now >= active.delivered.max(*oldest) + timeout)
        });
        oldest.into_keys().collect()
    }

    /// Marks overdue requests, and disconnects stalled providers whose pieces other providers have.
    pub(super) fn handle_stalled_providers(&mut self) {
        let now = Instant::now();
        let stalled = self.stalled_providers(now);
        let Some(OpenFile { schedule, .. }) = &mut self.open else { return };
        for (&(key, piece), request) in &self.requests {
            let silence = self.context.settings.silence_timeout;
            if request.sent.get().is_some_and(|&sent| now >= sent + silence) {
                schedule.overdue(key, piece);
            }
        }
        let replaceable: Vec<_> =
            stalled.iter().copied().filter(|&key| schedule.others_have(key, &stalled)).collect();
        for key in replaceable {
            if let Some(active) = self.providers.active(key) {
                let endpoint = active.connection.endpoint().clone();
                self.on_error(key, ProviderError::Unreachable(TransportError::Deadline { endpoint }));
            }
        }
    }

    /// Hashes and writes received pieces, several batches in parallel.
    pub(super) fn write_received(&mut self) {
        let Some(OpenFile { file, .. }) = &self.open else { return };
        let pipeline = &mut self.pipeline;
        if pipeline.wait.is_some_and(|wait| Instant::now() < wait.until) {
            return;
        }
        let max_bytes = if file.is_in_database() { DATABASE_BATCH_BYTES } else { BATCH_BYTES };
        while pipeline.writing < pipeline.max_writers && !pipeline.queue.is_empty() {
            let batch = take_batch(&mut pipeline.queue, max_bytes);
            pipeline.writing += 1;
            let file = Arc::clone(file);
            let write = async move {
                let pieces = batch.iter().map(|received| (received.piece, received.content.clone()));
                let result = file.write_pieces(pieces.collect()).await;
                Event::Written(batch, result)
            };
            self.events.push(write.boxed());
        }
    }

    /// Sends piece requests, each to the provider that is expected to deliver first.
    pub(super) fn request_pieces(&mut self) {
        if self.pipeline.wait.is_some() {
            // Nothing can be written, so received pieces would only withhold the budget from other transfers.
            return;
        }
        let elapsed = self.elapsed();
        let Some(OpenFile { schedule, file, .. }) = &mut self.open else { return };
        let layout = file.manifest().layout();
        let now = Instant::now();
        let mut ready = schedule.ready_providers(elapsed);
        ready.retain(|&key| self.providers.active(key).is_some_and(|active| active.is_ready(now)));
        while let Some(at) = schedule.fastest(&ready, elapsed) {
            let key = ready[at];
            let budget = Arc::clone(&self.context.budget);
            let units = DownloadContext::piece_units(layout);
            let permit = self.budget_permit.take().or_else(|| budget.try_acquire_many_owned(units).ok());
            let Some(permit) = permit else {
                self.wait_for_budget(layout);
                return;
            };
            let (Some(request), Some(active)) = (schedule.next(key, elapsed), self.providers.active(key))
            else {
                self.budget_permit = Some(permit);
                ready.remove(at);
                continue;
            };
            let piece = request.piece;
            file.expect(piece);
            let connection = Arc::clone(&active.connection);
            let request_id = connection.next_id();
            let id = self.request.id;
            let deadline = Deadline::Silence(self.context.settings.silence_timeout);
            let limit = Arc::clone(&self.context.limit);
            let bytes = layout.len(piece);
            let sent = Arc::new(OnceLock::new());
            let (abort, registration) = AbortHandle::new_pair();
            let pending = PendingRequest { abort, id: request_id, sent: Arc::clone(&sent) };
            self.requests.insert((key, piece), pending);
            let call = async move {
                limit.take(bytes).await;
                let _ = sent.set(Instant::now());
                let content = provider::piece(&*connection, request_id, id, request, deadline).await;
                content.map(|content| (content, permit)).inspect_err(|_| limit.refund(bytes))
            };
            let call = Abortable::new(call, registration).map(move |result| match result {
                Ok(result) => Event::Piece(key, piece, result),
                Err(_aborted) => Event::Ignored,
            });
            self.events.push(call.boxed());
        }
    }

    /// Waits for the budget while other transfers use all of it. A pending request of this transfer returns its share, so
    /// then there is nothing to wait for.
    fn wait_for_budget(&mut self, layout: PieceLayout) {
        if self.requests.is_empty() && !self.budget_pending {
            self.budget_pending = true;
            let budget = Arc::clone(&self.context.budget);
            let permit = budget.acquire_many_owned(DownloadContext::piece_units(layout));
            self.events.push(permit.map(|permit| Event::Budget(permit.ok())).boxed());
        }
    }

    pub(super) fn on_piece(
        &mut self,
        key: ProviderKey,
        piece: PieceIndex,
        result: Result<PieceContent, ProviderError>,
    ) {
        let request = self.requests.remove(&(key, piece));
        match result {
            Ok((content, permit)) => {
                self.last_progress = Instant::now();
                self.last_piece = self.last_progress;
                if let Some(&sent) = request.as_ref().and_then(|request| request.sent.get()) {
                    self.context.metrics.pieces.record(self.last_piece - sent);
                }
                if let Some(entry) = self.providers.get_mut(key) {
                    entry.piece_received();
                }
                self.pipeline.queue.push(Received { from: key, piece, content, _permit: permit });
            }
            Err(ProviderError::AlreadySent(sent)) => self.on_already_sent(key, piece, &sent),
            Err(error) => {
                self.context.metrics.failed.add(1);
                if let Some(open) = &mut self.open {
                    open.schedule.failed(key, piece);
                }
                self.on_error(key, error);
            }
        }
    }

    /// Handles the end of a write: records the written pieces and bans the providers of wrong ones.
    pub(super) fn on_written(
        &mut self,
        batch: Vec<Received>,
        result: Result<Vec<PieceIndex>, LibraryError>,
    ) -> Result<(), DownloadError> {
        let elapsed = self.elapsed();
        self.pipeline.writing -= 1;
        self.last_progress = Instant::now();
        let wrong = match result {
            Ok(wrong) => wrong,
            Err(error) => {
                self.pipeline.wait = Some(StorageWait::after(self.pipeline.wait, error, self.context)?);
                self.pipeline.queue.splice(0..0, batch);
                return Ok(());
            }
        };
        self.pipeline.wait = None;
        let Some(OpenFile { schedule, samples, .. }) = &mut self.open else { return Ok(()) };
        let mut senders_of_wrong = Vec::new();
        let mut superfluous = Vec::new();
        let metrics = &self.context.metrics;
        for Received { from, piece, content, .. } in batch {
            if wrong.contains(&piece) {
                metrics.invalid.add(1);
                schedule.failed(from, piece);
                senders_of_wrong.push(from);
                continue;
            }
            metrics.verified.add(1);
            metrics.received.add(content.len() as u64);
            let arrival = schedule.arrived(from, piece, elapsed);
            superfluous.extend(arrival.cancel.into_iter().map(|other| (other, piece)));
            if let Some(entry) = self.providers.get_mut(from) {
                entry.piece_verified();
                samples.insert(piece, from);
                let endpoint = || Some(entry.active()?.connection.endpoint().clone());
                self.activity.deliver(entry.provider.peer, content.len() as u64, endpoint);
            }
        }
        for request in superfluous {
            self.cancel_request(request);
        }
        for key in senders_of_wrong {
            self.on_error(key, ProviderError::InvalidData("piece content does not match its hash"));
        }
        Ok(())
    }

    /// Cancels a request for a piece that another provider has delivered.
    fn cancel_request(&mut self, (key, piece): (ProviderKey, PieceIndex)) {
        let Some(PendingRequest { abort, id, .. }) = self.requests.remove(&(key, piece)) else { return };
        abort.abort();
        self.context.metrics.cancelled.add(1);
        if let Some(active) = self.providers.active(key) {
            let connection = Arc::clone(&active.connection);
            let deadline = Deadline::Total(self.context.settings.silence_timeout);
            let cancel = async move {
                // Best effort: the piece may already be on its way.
                let _ = call(&*connection, &Request::Cancel { ids: vec![id] }, deadline).await;
                Event::Ignored
            };
            self.events.push(cancel.boxed());
        }
    }
}

/// Takes the front of the queue: up to `max_bytes` and at least one piece, without duplicate pieces.
fn take_batch(queue: &mut Vec<Received>, max_bytes: usize) -> Vec<Received> {
    let mut bytes = 0;
    let count = queue
        .iter()
        .enumerate()
        .take_while(|(at, received)| {
            let is_duplicate = queue[..*at].iter().any(|before| before.piece == received.piece);
            bytes += received.content.len();
            *at == 0 || (bytes <= max_bytes && !is_duplicate)
        })
        .count();
    queue.drain(..count).collect()
}
