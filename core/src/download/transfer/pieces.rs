//! The way of a piece: asked for, arrived, hashed, written.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::{AbortHandle, Abortable, FutureExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Arrived, Call, Event, Known, Open, State, Transfer};
use crate::download::DownloadError;
use crate::download::hold::Hold;
use crate::download::schedule::ProviderKey;
use crate::download::source::{self, Fault};
use crate::download::wanted::Parts;
use crate::library::error::LibraryError;
use crate::machine::HashMap;
use crate::model::layout::PieceIndex;
use crate::protocol::client::ask;
use crate::protocol::message::Request;
use crate::transport::Deadline;
use crate::transport::error::TransportError;

/// Pieces are hashed and written in batches of at most this many bytes, or one by one.
const BATCH: usize = 1024 * 1024;
/// The same for content in a database, where each commit has to wait for the disk several times.
const BATCH_IN_DATABASE: usize = 4 * 1024 * 1024;
/// A provider may take as long for this much of a piece as it may be silent.
const SILENT_BYTES: u32 = 1024 * 1024;

impl Transfer<'_> {
    /// Calls every request for a piece off.
    pub(super) fn stop_calls(&mut self) {
        for (_, call) in self.calls.drain() {
            call.abort.abort();
        }
    }

    /// Those at work who owe pieces and have not sent any for long, although their connection may live.
    pub(super) fn stalled(&self, now: Instant) -> Vec<ProviderKey> {
        let Some(Open { file, .. }) = &self.open else { return Vec::new() };
        let allowed = self.parts.settings.silence * file.layout().piece_size().div_ceil(SILENT_BYTES);
        let mut oldest: HashMap<ProviderKey, Instant> = HashMap::default();
        for ((key, _), call) in &self.calls {
            if let Some(&sent) = call.sent.get() {
                oldest.entry(*key).and_modify(|oldest| *oldest = sent.min(*oldest)).or_insert(sent);
            }
        }
        oldest.retain(|key, oldest| match self.known.get(key).map(|known| &known.state) {
            Some(State::Active(active)) => now >= active.delivered.max(*oldest) + allowed,
            _ => false,
        });
        oldest.into_keys().collect()
    }

    /// What is owed for long may be asked of others, and who sends nothing at all goes, where others have what it owes.
    pub(super) fn note_stalled(&mut self) {
        let now = Instant::now();
        let stalled = self.stalled(now);
        let Some(Open { schedule, .. }) = &mut self.open else { return };
        for (&(key, piece), call) in &self.calls {
            if call.sent.get().is_some_and(|&sent| now >= sent + self.parts.settings.silence) {
                schedule.overdue(key, piece);
            }
        }
        let replaced: Vec<_> =
            stalled.iter().copied().filter(|&key| schedule.others_have(key, &stalled)).collect();
        for key in replaced {
            if let Some(Known { state: State::Active(active), .. }) = self.known.get(&key) {
                let endpoint = active.connection.endpoint().clone();
                self.on_fault(key, Fault::Away(TransportError::Deadline { endpoint }));
            }
        }
    }

    /// Hashes and writes what has arrived, a few batches at once.
    pub(super) fn pump_pipeline(&mut self) {
        let Some(Open { file, .. }) = &self.open else { return };
        if self.hold.is_some_and(|hold| Instant::now() < hold.until) {
            return;
        }
        let most = if file.is_in_database() { BATCH_IN_DATABASE } else { BATCH };
        while self.keeping < self.keepers && !self.to_keep.is_empty() {
            let batch = take_batch(&mut self.to_keep, most);
            self.keeping += 1;
            let file = Arc::clone(file);
            self.events.push(
                async move {
                    let pieces =
                        batch.iter().map(|arrived| (arrived.piece, arrived.content.clone())).collect();
                    let result = file.write_pieces(pieces).await;
                    Event::Kept(batch, result)
                }
                .boxed(),
            );
        }
    }

    pub(super) fn ask_for_pieces(&mut self) {
        let clock = self.clock();
        let Some(Open { schedule, file }) = &mut self.open else { return };
        if self.hold.is_some() {
            // Nothing can be written: more would only take the budget from transfers that go elsewhere.
            return;
        }
        let layout = file.manifest().layout();
        let now = Instant::now();
        let mut open = schedule.by_turn(clock);
        open.retain(|key| match self.known.get(key).map(|known| &known.state) {
            Some(State::Active(active)) => active.busy_until.is_none_or(|until| now >= until),
            _ => false,
        });
        // Each piece is asked of who is likely to send it first.
        while let Some(place) = schedule.soonest(&open, clock) {
            let key = open[place];
            let room = self
                .room
                .take()
                .or_else(|| Arc::clone(&self.parts.budget).try_acquire_many_owned(Parts::units(layout)).ok());
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
            let question = schedule.next(key, clock);
            let (Some(question), Some(Known { state: State::Active(active), .. })) =
                (question, self.known.get(&key))
            else {
                self.room = Some(permit);
                open.remove(place);
                continue;
            };
            let piece = question.piece;
            file.expect(piece);
            let connection = Arc::clone(&active.connection);
            let request = connection.next_id();
            let id = self.wanted.id;
            let deadline = Deadline::Silence(self.parts.settings.silence);
            let limit = Arc::clone(&self.parts.limit);
            let bytes = layout.len(piece);
            let sent = Arc::new(OnceLock::new());
            let (abort, registration) = AbortHandle::new_pair();
            self.calls.insert((key, piece), Call { abort, request, sent: Arc::clone(&sent) });
            let call = async move {
                limit.take(bytes).await;
                let _first = sent.set(Instant::now());
                match source::piece(&*connection, request, id, question, deadline).await {
                    Ok(content) => Ok((content, permit)),
                    Err(fault) => {
                        limit.give_back(bytes);
                        Err(fault)
                    }
                }
            };
            let call = Abortable::new(call, registration);
            self.events.push(
                call.map(move |result| match result {
                    Ok(result) => Event::Piece(key, piece, result),
                    Err(_aborted) => Event::Nothing,
                })
                .boxed(),
            );
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
                self.arrived = self.hopeful;
                if let Some(Known { state: State::Active(active), busy, .. }) = self.known.get_mut(&key) {
                    *busy = None;
                    active.refusals = 0;
                    active.delivered = Instant::now();
                }
                self.to_keep.push(Arrived { from: key, piece, content, _permit: permit });
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

    /// Pieces were hashed, and those that are right written.
    pub(super) fn on_kept(
        &mut self,
        batch: Vec<Arrived>,
        result: Result<Vec<PieceIndex>, LibraryError>,
    ) -> Result<(), DownloadError> {
        let clock = self.clock();
        self.keeping -= 1;
        self.hopeful = Instant::now();
        let wrong = match result {
            Ok(wrong) => wrong,
            Err(error) => {
                self.hold = Some(Hold::after(self.hold, error, self.parts)?);
                self.to_keep.splice(0..0, batch);
                return Ok(());
            }
        };
        self.hold = None;
        let Some(Open { schedule, .. }) = &mut self.open else { return Ok(()) };
        let mut liars = Vec::new();
        let mut cancel = Vec::new();
        for Arrived { from, piece, .. } in batch {
            if wrong.contains(&piece) {
                schedule.failed(from, piece);
                liars.push(from);
                continue;
            }
            let arrival = schedule.arrived(from, piece, clock);
            cancel.extend(arrival.cancel.into_iter().map(|other| (other, piece)));
            if let Some(known) = self.known.get_mut(&from) {
                known.failures = 0;
            }
        }
        for call in cancel {
            self.call_off(call);
        }
        for liar in liars {
            self.on_fault(liar, Fault::Lie("a piece that is not part of the file"));
        }
        Ok(())
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
}

/// The front of the queue: at most so many bytes, but at least one piece, and none of them twice.
fn take_batch(queue: &mut Vec<Arrived>, most: usize) -> Vec<Arrived> {
    let mut taken = 0;
    let count = queue
        .iter()
        .enumerate()
        .take_while(|(at, arrived)| {
            let twice = queue[..*at].iter().any(|before| before.piece == arrived.piece);
            taken += arrived.content.len();
            *at == 0 || (taken <= most && !twice)
        })
        .count();
    queue.drain(..count).collect()
}
