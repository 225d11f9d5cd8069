//! The way of a piece: asked for, arrived, hashed, written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{AbortHandle, Abortable, FutureExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Arrived, Call, Event, Known, Open, State, Transfer};
use crate::download::DownloadError;
use crate::download::schedule::ProviderKey;
use crate::download::source::{self, Fault};
use crate::download::wanted::Parts;
use crate::library::error::LibraryError;
use crate::model::layout::PieceIndex;
use crate::protocol::client::ask;
use crate::protocol::message::Request;
use crate::transport::Deadline;

/// Pieces are hashed in batches of about this many bytes, written in batches of at most this many.
const HASH_BATCH: usize = 2 * 1024 * 1024;
const WRITE_BATCH: usize = 4 * 1024 * 1024;
/// Batches that are hashed at once.
const HASHERS: usize = 2;
/// How long to wait before a write is tried again that found the disk full.
const FULL_PAUSE: Duration = Duration::from_secs(2);

impl Transfer<'_> {
    /// Calls every request for a piece off.
    pub(super) fn stop_calls(&mut self) {
        for (_, call) in self.calls.drain() {
            call.abort.abort();
        }
    }

    pub(super) fn note_overdue(&mut self) {
        let Some(Open { schedule, .. }) = &mut self.open else { return };
        let now = Instant::now();
        for (&(key, piece), call) in &self.calls {
            if now >= call.since + self.parts.settings.silence {
                schedule.overdue(key, piece);
            }
        }
    }

    pub(super) fn pump_pipeline(&mut self) {
        let Some(Open { file, .. }) = &self.open else { return };
        while self.hashing < HASHERS && !self.to_hash.is_empty() {
            let batch = take_batch(&mut self.to_hash, HASH_BATCH);
            self.hashing += 1;
            let file = Arc::clone(file);
            let hashed = tokio::task::spawn_blocking(move || {
                batch
                    .into_iter()
                    .map(|mut arrived| {
                        let good = file.manifest().piece_is(arrived.piece, &arrived.content);
                        // What came from a socket may hold on to a larger buffer with parts of other pieces.
                        arrived.content = Bytes::copy_from_slice(&arrived.content);
                        (arrived, good)
                    })
                    .collect()
            });
            self.events.push(hashed.map(|batch| Event::Hashed(batch.unwrap_or_default())).boxed());
        }
        let may_write = self.write_after.is_none_or(|after| Instant::now() >= after);
        if !self.writing && may_write && !self.to_write.is_empty() {
            let batch = take_batch(&mut self.to_write, WRITE_BATCH);
            self.writing = true;
            let file = Arc::clone(file);
            self.events.push(
                async move {
                    let pieces =
                        batch.iter().map(|arrived| (arrived.piece, arrived.content.clone())).collect();
                    let result = file.write_pieces(pieces).await;
                    Event::Written(batch, result)
                }
                .boxed(),
            );
        }
    }

    pub(super) fn ask_for_pieces(&mut self) {
        let clock = self.clock();
        let Some(Open { schedule, file }) = &mut self.open else { return };
        if self.write_after.is_some() {
            // The disk is full: more would only take the budget from transfers that go elsewhere.
            return;
        }
        let layout = file.manifest().layout();
        let now = Instant::now();
        // One piece of each in turn, so that no provider takes all of the budget.
        let mut askable: Vec<_> = schedule
            .by_turn(clock)
            .into_iter()
            .filter_map(|key| match &self.known.get(&key)?.state {
                State::Active(active) if active.busy_until.is_none_or(|until| now >= until) => {
                    Some((key, Arc::clone(&active.connection)))
                }
                _ => None,
            })
            .collect();
        while !askable.is_empty() {
            let mut still_askable = Vec::with_capacity(askable.len());
            for (key, connection) in askable {
                let room = self.room.take().or_else(|| {
                    Arc::clone(&self.parts.budget).try_acquire_many_owned(Parts::units(layout)).ok()
                });
                let Some(permit) = room else {
                    // All of the budget is with other transfers: wait until some of it comes back.
                    if self.calls.is_empty() && !self.waiting_for_room {
                        self.waiting_for_room = true;
                        let budget = Arc::clone(&self.parts.budget);
                        self.events.push(
                            budget
                                .acquire_many_owned(Parts::units(layout))
                                .map(|room| Event::Room(room.ok()))
                                .boxed(),
                        );
                    }
                    return;
                };
                let Some(question) = schedule.next(key, clock) else { continue };
                let piece = question.piece;
                let request = connection.next_id();
                let id = self.wanted.id;
                let deadline = Deadline::Silence(self.parts.settings.silence);
                let limit = Arc::clone(&self.parts.limit);
                let bytes = layout.len(piece);
                let called = Arc::clone(&connection);
                let call = async move {
                    limit.take(bytes).await;
                    Ok((source::piece(&*called, request, id, question, deadline).await?, permit))
                };
                let (abort, registration) = AbortHandle::new_pair();
                self.calls.insert((key, piece), Call { abort, request, since: now });
                let call = Abortable::new(call, registration);
                self.events.push(
                    call.map(move |result| match result {
                        Ok(result) => Event::Piece(key, piece, result),
                        Err(_aborted) => Event::Nothing,
                    })
                    .boxed(),
                );
                still_askable.push((key, connection));
            }
            askable = still_askable;
        }
    }

    pub(super) fn on_piece(
        &mut self,
        key: ProviderKey,
        piece: PieceIndex,
        result: Result<(Bytes, OwnedSemaphorePermit), Fault>,
    ) {
        self.calls.remove(&(key, piece));
        match result {
            Ok((content, permit)) => {
                self.hopeful = Instant::now();
                self.to_hash.push(Arrived { from: key, piece, content, _permit: permit });
            }
            Err(Fault::Elsewhere(given)) => self.on_elsewhere(key, piece, &given),
            Err(fault) => {
                if let Some(open) = &mut self.open {
                    open.schedule.failed(key, piece);
                }
                self.on_fault(key, fault);
            }
        }
    }

    pub(super) fn on_hashed(&mut self, batch: Vec<(Arrived, bool)>) {
        let clock = self.clock();
        self.hashing -= 1;
        let Some(Open { schedule, .. }) = &mut self.open else { return };
        let mut liars = Vec::new();
        let mut cancel = Vec::new();
        for (arrived, good) in batch {
            if !good {
                schedule.failed(arrived.from, arrived.piece);
                liars.push(arrived.from);
                continue;
            }
            let arrival = schedule.arrived(arrived.from, arrived.piece, clock);
            cancel.extend(arrival.cancel.into_iter().map(|other| (other, arrived.piece)));
            if let Some(known) = self.known.get_mut(&arrived.from) {
                known.failures = 0;
            }
            if arrival.wanted {
                self.to_write.push(arrived);
            }
        }
        for call in cancel {
            self.call_off(call);
        }
        for liar in liars {
            self.on_fault(liar, Fault::Lie("a piece that is not part of the file"));
        }
    }

    /// A piece has come from another provider: this one need not send it.
    fn call_off(&mut self, call: (ProviderKey, PieceIndex)) {
        let Some(Call { abort, request, .. }) = self.calls.remove(&call) else { return };
        abort.abort();
        if let Some(Known { state: State::Active(active), .. }) = self.known.get(&call.0) {
            let connection = Arc::clone(&active.connection);
            let deadline = Deadline::Total(self.parts.settings.silence);
            self.events.push(
                async move {
                    // Whether it still can be called off makes no difference here.
                    let _ = ask(&*connection, &Request::Cancel { ids: vec![request] }, deadline).await;
                    Event::Nothing
                }
                .boxed(),
            );
        }
    }

    pub(super) fn on_written(
        &mut self,
        batch: Vec<Arrived>,
        result: Result<(), LibraryError>,
    ) -> Result<(), DownloadError> {
        self.writing = false;
        self.hopeful = Instant::now();
        match result {
            Ok(()) => self.write_after = None,
            Err(error @ LibraryError::Full { .. }) => {
                if self.write_after.is_none() {
                    tracing::warn!(id = %self.wanted.id, %error, "the download waits for room");
                }
                self.write_after = Some(Instant::now() + FULL_PAUSE);
                self.to_write.splice(0..0, batch);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// The front of the queue: about `bytes` bytes, but at least one piece.
fn take_batch(queue: &mut Vec<Arrived>, bytes: usize) -> Vec<Arrived> {
    let mut taken = 0;
    let count = queue
        .iter()
        .take_while(|arrived| {
            let first = taken == 0;
            taken += arrived.content.len();
            first || taken <= bytes
        })
        .count();
    queue.drain(..count).collect()
}
