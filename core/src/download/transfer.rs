//! One file from the first question to the last written piece.
//!
//! A transfer is one task that owns the schedule and waits for whatever comes next: a reply, a batch of verified
//! pieces, a finished write, a list of providers, the clock. Reading the sockets, hashing and writing overlap;
//! the bytes between the request and the written piece are bounded by the budget that all transfers of a peer
//! share. Nothing is written that was not verified against the file's id.
//!
//! ```text
//! provider:  idle -> joining -> active -> resting (away, busy, refused) -> idle
//!                                  \----> banned (lied)
//! piece:     asked -> arrived -> verified -> written        (any failure: asked again, of another)
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::DownloadError;
use super::downloader::{Parts, Wanted};
use super::progress::{Phase, Progress};
use super::schedule::{ProviderKey, Schedule};
use super::source::{self, Fault};
use crate::library::entry::NewFile;
use crate::library::error::LibraryError;
use crate::library::file::LibraryFile;
use crate::model::bitmap::Bitmap;
use crate::model::id::{FileId, PeerId};
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::Manifest;
use crate::model::record::Provider;
use crate::protocol::client::ask;
use crate::protocol::codec;
use crate::protocol::message::{Reply, Request};
use crate::transport::envelope::RequestId;
use crate::transport::{Connection, Deadline};

/// How often the clock is looked at: rests that end, bitmaps to ask for again, patience.
const TICK: Duration = Duration::from_millis(200);
/// How often the bitmap of a provider that has only a part is asked for again.
const HAVE_AGAIN: Duration = Duration::from_millis(500);
/// How often the trackers are asked again, when there are enough providers, and when there are too few.
const PROVIDERS_AGAIN: Duration = Duration::from_secs(15);
const PROVIDERS_SOON: Duration = Duration::from_secs(2);
/// The first and the longest pause after a provider was away.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Pieces are hashed in batches of about this many bytes, written in batches of at most this many.
const HASH_BATCH: usize = 2 * 1024 * 1024;
const WRITE_BATCH: usize = 4 * 1024 * 1024;
/// Batches that are hashed at once.
const HASHERS: usize = 2;
/// Providers that are asked at once to prove the file's size and hashes.
const PROVERS: usize = 3;
/// How long to wait before a write is tried again that found the disk full.
const FULL_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum State {
    /// May be joined from this time on.
    Idle {
        from: Instant,
    },
    Joining,
    Active(Active),
    /// It lied.
    Banned,
}

#[derive(Debug)]
struct Active {
    connection: Arc<dyn Connection>,
    /// Whether it had everything when last asked.
    complete: bool,
    /// When to ask again what it has; none while such a question is under way.
    have_again: Option<Instant>,
    /// No piece is asked of it before this time.
    busy_until: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    peer: PeerId,
    provider: Provider,
    state: State,
    failures: u32,
}

/// A request for a piece.
#[derive(Debug)]
struct Call {
    abort: AbortHandle,
    request: RequestId,
    since: Instant,
}

/// A piece between its arrival and its write.
struct Arrived {
    from: ProviderKey,
    piece: PieceIndex,
    content: Bytes,
    /// Gives its part of the budget back once the piece is written.
    _permit: OwnedSemaphorePermit,
}

enum Event {
    Providers(Result<Vec<Provider>, String>),
    Joined(ProviderKey, Result<Box<Joined>, Fault>),
    Have(ProviderKey, Result<(PieceLayout, Bitmap), Fault>),
    Piece(ProviderKey, PieceIndex, Result<(Bytes, OwnedSemaphorePermit), Fault>),
    Hashed(Vec<(Arrived, bool)>),
    Written(Vec<Arrived>, Result<(), LibraryError>),
    /// There is room in the budget for one piece.
    Room(Option<OwnedSemaphorePermit>),
    /// Of no consequence: a question that was called off.
    Nothing,
}

struct Joined {
    connection: Arc<dyn Connection>,
    layout: PieceLayout,
    have: Bitmap,
    /// The proven manifest and the last piece, where that was what the provider was joined for.
    proof: Option<(Manifest, Option<(Bytes, OwnedSemaphorePermit)>)>,
}

/// What a transfer works on once the manifest is proven.
struct Open {
    file: Arc<LibraryFile>,
    schedule: Schedule,
}

pub(super) struct Transfer<'a> {
    parts: &'a Arc<Parts>,
    wanted: &'a Wanted,
    progress: &'a watch::Sender<Progress>,
    open: Option<Open>,
    known: HashMap<ProviderKey, Known>,
    keys: HashMap<PeerId, ProviderKey>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    calls: HashMap<(ProviderKey, PieceIndex), Call>,
    to_hash: Vec<Arrived>,
    hashing: usize,
    to_write: Vec<Arrived>,
    writing: bool,
    write_after: Option<Instant>,
    asking_providers: bool,
    providers_at: Instant,
    waiting_for_room: bool,
    /// Room for one piece that was waited for. It goes to the next request: given back it would go to another
    /// transfer that waits, and from there to the next, and none would ever use it.
    room: Option<OwnedSemaphorePermit>,
    /// When there was last a sign that the download will go on.
    hopeful: Instant,
    last_fault: Option<String>,
    cancelled: bool,
}

/// Gets one file; returns when every piece is verified and written, with the result or the reason why not.
pub(super) async fn run(
    parts: &Arc<Parts>,
    wanted: &Wanted,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<Arc<LibraryFile>, DownloadError> {
    let now = Instant::now();
    let mut transfer = Transfer {
        parts,
        wanted,
        progress,
        open: None,
        known: HashMap::new(),
        keys: HashMap::new(),
        events: FuturesUnordered::new(),
        calls: HashMap::new(),
        to_hash: Vec::new(),
        hashing: 0,
        to_write: Vec::new(),
        writing: false,
        write_after: None,
        asking_providers: false,
        providers_at: now,
        waiting_for_room: false,
        room: None,
        hopeful: now,
        last_fault: None,
        cancelled: false,
    };
    if let Some(file) = parts.library.open_file(&wanted.id).await? {
        transfer.create(Manifest::clone(file.manifest())).await?;
    } else if let Some(manifest) = known_manifest(wanted) {
        // The size was proven by whoever named it, or the file is empty: there is nothing to ask about it.
        transfer.create(manifest).await?;
    }
    transfer.drive(cancel).await
}

/// The manifest of a file whose hashes follow from its id: an empty one, or one of a single piece and known size.
fn known_manifest(wanted: &Wanted) -> Option<Manifest> {
    let layout = PieceLayout::new(wanted.proven_size?).ok()?;
    match layout.count() {
        0 => Manifest::verify(wanted.id, layout, Vec::new()).ok(),
        1 => Manifest::verify(wanted.id, layout, vec![*wanted.id.as_bytes()]).ok(),
        _ => None,
    }
}

impl Transfer<'_> {
    async fn drive(mut self, cancel: &CancellationToken) -> Result<Arc<LibraryFile>, DownloadError> {
        let mut tick = Instant::now() + TICK;
        loop {
            self.mend();
            self.pump();
            if let Some(file) = self.finished() {
                file.finish(false).await?;
                return Ok(file);
            }
            if self.cancelled && !self.writing && self.hashing == 0 {
                return self.give_up(DownloadError::Cancelled).await;
            }
            tokio::select! {
                biased;
                () = cancel.cancelled(), if !self.cancelled => self.cancel(),
                Some(event) = self.events.next() => {
                    if let Err(error) = self.on_event(event).await {
                        return self.give_up(error).await;
                    }
                }
                () = sleep_until(tick) => {
                    tick = Instant::now() + TICK;
                    self.note_overdue();
                    if let Some(error) = self.out_of_patience() {
                        return self.give_up(error).await;
                    }
                }
            }
            self.report();
        }
    }

    /// Ends the transfer with an error and keeps what it has.
    async fn give_up(mut self, error: DownloadError) -> Result<Arc<LibraryFile>, DownloadError> {
        self.stop_calls();
        if let Some(Open { file, .. }) = &self.open
            && let Err(error) = file.checkpoint().await
        {
            tracing::warn!(id = %self.wanted.id, %error, "what was fetched is not yet durable");
        }
        Err(error)
    }

    fn begin(&mut self, file: Arc<LibraryFile>) {
        let schedule =
            Schedule::new(file.manifest().layout(), &file.have(), self.parts.settings.window, rand::random());
        self.open = Some(Open { file, schedule });
        self.report();
    }

    async fn create(&mut self, manifest: Manifest) -> Result<(), DownloadError> {
        let new = NewFile {
            name: self.wanted.name.clone(),
            kind: self.wanted.kind,
            member_of: self.wanted.member_of,
        };
        let file = self.parts.library.create(manifest, new, self.wanted.destination.clone()).await?;
        self.begin(file);
        Ok(())
    }

    /// The file, when all of it is written.
    fn finished(&self) -> Option<Arc<LibraryFile>> {
        let Open { file, .. } = self.open.as_ref()?;
        (self.all_arrived() && file.is_complete()).then(|| Arc::clone(file))
    }

    /// Whether nothing is missing and nothing is on its way.
    fn all_arrived(&self) -> bool {
        let idle = self.to_hash.is_empty() && self.hashing == 0 && self.to_write.is_empty() && !self.writing;
        idle && self.open.as_ref().is_some_and(|open| open.schedule.is_complete())
    }

    /// Begins again with what is missing, where the library lost pieces that it had: damage that a reader found.
    fn mend(&mut self) {
        if !self.all_arrived() {
            return;
        }
        let Some(Open { file, .. }) = &self.open else { return };
        if !file.is_complete() {
            let file = Arc::clone(file);
            for known in self.known.values_mut() {
                if matches!(known.state, State::Active(_)) {
                    known.state = State::Idle { from: Instant::now() };
                }
            }
            self.begin(file);
        }
    }

    fn cancel(&mut self) {
        self.cancelled = true;
        self.stop_calls();
        self.to_hash.clear();
    }

    fn stop_calls(&mut self) {
        for (_, call) in self.calls.drain() {
            call.abort.abort();
        }
    }

    fn note_overdue(&mut self) {
        let Some(Open { schedule, .. }) = &mut self.open else { return };
        let now = Instant::now();
        for (&(key, piece), call) in &self.calls {
            if now >= call.since + self.parts.settings.silence {
                schedule.overdue(key, piece);
            }
        }
    }

    /// Why it makes no sense to wait any longer.
    fn out_of_patience(&mut self) -> Option<DownloadError> {
        let now = Instant::now();
        let at_work = !self.calls.is_empty() || self.hashing > 0 || self.writing || !self.to_write.is_empty();
        // Without room it is the other transfers that hold it up, not the lack of a provider.
        let busy = at_work || self.waiting_for_room;
        if busy {
            self.hopeful = now;
        }
        (now >= self.hopeful + self.parts.settings.patience).then(|| DownloadError::Nobody {
            patience: self.parts.settings.patience,
            reason: self.last_fault.take(),
        })
    }

    fn report(&self) {
        let sources =
            self.known.values().filter(|known| matches!(known.state, State::Active(_))).count() as u32;
        let (done, total) = match &self.open {
            Some(Open { file, .. }) => (bytes_of(file), file.layout().size()),
            None => (0, self.wanted.claimed_size.unwrap_or(0)),
        };
        let phase = match (self.write_after, sources) {
            (Some(_), _) => Phase::DiskFull,
            (None, 0) => Phase::Searching,
            (None, _) => Phase::Fetching,
        };
        let new = Progress { done, total, sources, phase };
        self.progress.send_if_modified(|old| std::mem::replace(old, new) != new);
    }

    /// Starts everything that can be started now.
    fn pump(&mut self) {
        self.pump_pipeline();
        if self.cancelled {
            return;
        }
        let missing = self.open.as_ref().is_none_or(|open| !open.schedule.is_complete());
        if missing {
            self.ask_for_providers();
            self.join_providers();
            self.ask_what_they_have();
            self.ask_for_pieces();
        }
        // Nobody can be asked now: others may have it.
        self.room = None;
    }

    fn pump_pipeline(&mut self) {
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

    fn ask_for_providers(&mut self) {
        let now = Instant::now();
        if self.asking_providers || now < self.providers_at {
            return;
        }
        self.asking_providers = true;
        let source = Arc::clone(&self.wanted.providers);
        let id = self.wanted.announced_as;
        self.events.push(async move { Event::Providers(source.providers(&id).await) }.boxed());
    }

    fn join_providers(&mut self) {
        let now = Instant::now();
        let mut at_work = self
            .known
            .values()
            .filter(|known| matches!(known.state, State::Active(_) | State::Joining))
            .count();
        let mut candidates: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| matches!(known.state, State::Idle { from } if now >= from))
            .map(|(&key, known)| (known.failures, !known.provider.complete, key))
            .collect();
        candidates.sort_unstable();
        let prove = self.open.is_none();
        let most = if prove { PROVERS } else { self.parts.settings.max_providers };
        for (_, _, key) in candidates {
            if at_work >= most {
                // Those who have nothing that is missing must not keep out who may have it.
                let Some(useless) = self.useless() else { break };
                self.rest(useless, now + LONGEST_REST);
                at_work -= 1;
            }
            let Some(known) = self.known.get_mut(&key) else { continue };
            known.state = State::Joining;
            at_work += 1;
            let parts = Arc::clone(self.parts);
            let provider = known.provider.clone();
            let id = self.wanted.id;
            self.events
                .push(async move { Event::Joined(key, join(&parts, &provider, id, prove).await) }.boxed());
        }
    }

    /// A provider at work that has nothing which is still missing, or has owed everything for long.
    fn useless(&self) -> Option<ProviderKey> {
        let Some(Open { schedule, .. }) = &self.open else { return None };
        let now = Instant::now();
        let stalled = |key| {
            let mut calls = self.calls.iter().filter(|((provider, _), _)| *provider == key).peekable();
            calls.peek().is_some()
                && calls.all(|(_, call)| now >= call.since + self.parts.settings.silence * 6)
        };
        let mut at_work = self.known.iter().filter(|(_, known)| matches!(known.state, State::Active(_)));
        at_work.find(|&(&key, _)| !schedule.is_useful(key) || stalled(key)).map(|(&key, _)| key)
    }

    /// Lets a provider go that was at work, until this time.
    fn rest(&mut self, key: ProviderKey, from: Instant) {
        if let Some(known) = self.known.get_mut(&key) {
            known.state = State::Idle { from };
            // Others come first from now on.
            known.failures += 1;
        }
        self.drop_provider(key);
    }

    /// Takes a provider out of the schedule and calls off what was asked of it.
    fn drop_provider(&mut self, key: ProviderKey) {
        if let Some(open) = &mut self.open {
            open.schedule.remove_provider(key);
        }
        self.calls.retain(|(provider, _), call| {
            if *provider == key {
                call.abort.abort();
            }
            *provider != key
        });
    }

    fn ask_what_they_have(&mut self) {
        let now = Instant::now();
        for (&key, known) in &mut self.known {
            let State::Active(active) = &mut known.state else { continue };
            if active.complete || active.have_again.is_none_or(|again| now < again) {
                continue;
            }
            active.have_again = None;
            let connection = Arc::clone(&active.connection);
            let id = self.wanted.id;
            let deadline = Deadline::Silence(self.parts.settings.silence);
            self.events.push(
                async move { Event::Have(key, source::have(&*connection, id, deadline).await) }.boxed(),
            );
        }
    }

    fn ask_for_pieces(&mut self) {
        let Some(Open { schedule, file }) = &mut self.open else { return };
        if self.write_after.is_some() {
            // The disk is full: more would only take the budget from transfers that go elsewhere.
            return;
        }
        let layout = file.manifest().layout();
        let now = Instant::now();
        // One piece of each in turn, so that no provider takes all of the budget.
        let mut askable: Vec<_> = self
            .known
            .iter_mut()
            .filter_map(|(&key, known)| match &mut known.state {
                State::Active(active) if active.busy_until.is_none_or(|until| now >= until) => {
                    Some((key, Arc::clone(&active.connection)))
                }
                _ => None,
            })
            .collect();
        while !askable.is_empty() {
            let mut still_askable = Vec::with_capacity(askable.len());
            for (key, connection) in askable {
                let room = self
                    .room
                    .take()
                    .or_else(|| Arc::clone(&self.parts.budget).try_acquire_many_owned(cost(layout)).ok());
                let Some(permit) = room else {
                    // All of the budget is with other transfers: wait until some of it comes back.
                    if self.calls.is_empty() && !self.waiting_for_room {
                        self.waiting_for_room = true;
                        let budget = Arc::clone(&self.parts.budget);
                        self.events.push(
                            budget
                                .acquire_many_owned(cost(layout))
                                .map(|room| Event::Room(room.ok()))
                                .boxed(),
                        );
                    }
                    return;
                };
                let Some(piece) = schedule.next(key) else { continue };
                let request = connection.next_id();
                let header = codec::encode_request(
                    request,
                    &Request::Piece { id: self.wanted.id, index: piece.get() },
                );
                let deadline = Deadline::Silence(self.parts.settings.silence);
                let limit = Arc::clone(&self.parts.limit);
                let bytes = layout.len(piece);
                let called = Arc::clone(&connection);
                let call = async move {
                    limit.take(bytes).await;
                    let message = called.call(request, header, deadline).await?;
                    match codec::decode_reply(&message.header) {
                        Some(Ok(Reply::Piece)) => Ok((message.payload, permit)),
                        Some(Err(error)) => Err(Fault::refused(error)),
                        _ => Err(Fault::Lie("a reply that does not fit the request")),
                    }
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

    async fn on_event(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Providers(result) => self.on_providers(result),
            Event::Joined(key, Ok(joined)) => self.on_joined(key, *joined).await?,
            Event::Joined(key, Err(fault)) => self.on_fault(key, fault),
            Event::Have(key, Ok((layout, have))) => self.on_have(key, layout, have),
            Event::Have(key, Err(fault)) => {
                if let Some(Known { state: State::Active(active), .. }) = self.known.get_mut(&key) {
                    // A busy one stays and is asked again.
                    active.have_again = Some(Instant::now() + HAVE_AGAIN);
                }
                self.on_fault(key, fault);
            }
            Event::Piece(key, piece, result) => self.on_piece(key, piece, result),
            Event::Hashed(batch) => self.on_hashed(batch),
            Event::Written(batch, result) => self.on_written(batch, result)?,
            Event::Room(room) => {
                self.waiting_for_room = false;
                self.room = room;
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    fn on_providers(&mut self, result: Result<Vec<Provider>, String>) {
        self.asking_providers = false;
        let now = Instant::now();
        match result {
            Ok(providers) => {
                if providers.is_empty() {
                    self.last_fault = Some("the trackers know of no living peer that offers it".to_owned());
                }
                for provider in providers.into_iter().filter(|provider| Some(provider.peer) != self.parts.me)
                {
                    let fresh = ProviderKey(u32::try_from(self.keys.len()).unwrap_or(u32::MAX));
                    let key = *self.keys.entry(provider.peer).or_insert(fresh);
                    let known = self.known.entry(key).or_insert_with(|| Known {
                        peer: provider.peer,
                        provider: provider.clone(),
                        state: State::Idle { from: now },
                        failures: 0,
                    });
                    // A peer that came back elsewhere need not rest for what it did there.
                    if known.provider.endpoints != provider.endpoints
                        && let State::Idle { from } = &mut known.state
                    {
                        *from = now;
                    }
                    known.provider = provider;
                }
            }
            Err(reason) => self.last_fault = Some(reason),
        }
        let at_work = self.known.values().filter(|known| matches!(known.state, State::Active(_))).count();
        let enough = at_work >= self.parts.settings.max_providers.min(4);
        self.providers_at = now + if enough { PROVIDERS_AGAIN } else { PROVIDERS_SOON };
    }

    async fn on_joined(&mut self, key: ProviderKey, joined: Joined) -> Result<(), DownloadError> {
        let Joined { connection, layout, have, proof } = joined;
        if self.wanted.proven_size.is_some_and(|size| size != layout.size()) {
            // Whoever keeps files within a quota relies on it.
            self.on_fault(key, Fault::Lie("another size than the file has"));
            return Ok(());
        }
        if self.open.is_none() {
            let Some((manifest, last)) = proof else {
                // It has not the last piece, which proves the size.
                self.on_fault(key, Fault::NotHere);
                return Ok(());
            };
            self.create(manifest).await?;
            if let (Some((content, permit)), Some(piece)) = (last, layout.last())
                && let Some(open) = &mut self.open
                && open.schedule.arrived(key, piece).wanted
            {
                self.to_write.push(Arrived { from: key, piece, content, _permit: permit });
            }
        }
        let Some(known) = self.known.get_mut(&key) else { return Ok(()) };
        known.state =
            State::Active(Active { connection, complete: false, have_again: None, busy_until: None });
        self.on_have(key, layout, have);
        Ok(())
    }

    fn on_have(&mut self, key: ProviderKey, layout: PieceLayout, have: Bitmap) {
        let (Some(Open { schedule, file }), Some(known)) = (&mut self.open, self.known.get_mut(&key)) else {
            return;
        };
        let State::Active(active) = &mut known.state else { return };
        if layout != file.manifest().layout() {
            // The size is proven, and it is another.
            self.on_fault(key, Fault::Lie("another size than the file has"));
            return;
        }
        active.complete = have.is_full();
        active.have_again = Some(Instant::now() + HAVE_AGAIN);
        schedule.set_provider(key, have);
    }

    fn on_piece(
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
            Err(fault) => {
                if let Some(open) = &mut self.open {
                    open.schedule.failed(key, piece);
                }
                self.on_fault(key, fault);
            }
        }
    }

    fn on_hashed(&mut self, batch: Vec<(Arrived, bool)>) {
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
            let arrival = schedule.arrived(arrived.from, arrived.piece);
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

    fn on_written(
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

    fn on_fault(&mut self, key: ProviderKey, fault: Fault) {
        let Some(known) = self.known.get_mut(&key) else { return };
        if matches!(known.state, State::Banned) {
            return;
        }
        let now = Instant::now();
        tracing::debug!(peer = %known.peer.short(), %fault, "a provider failed");
        if let (Fault::Busy { retry_after }, State::Active(active)) = (&fault, &mut known.state) {
            active.busy_until = Some(now + *retry_after);
            if let Some(open) = &mut self.open {
                open.schedule.busy(key);
            }
            return;
        }
        self.last_fault = Some(format!("peer {}: {fault}", known.peer.short()));
        known.state = match fault {
            Fault::Lie(what) => {
                tracing::warn!(peer = %known.peer, id = %self.wanted.id, what, "a provider is left out: it lied");
                State::Banned
            }
            Fault::Busy { retry_after } => State::Idle { from: now + retry_after },
            // A peer that was just announced may have its first piece any moment.
            Fault::NotHere => State::Idle { from: now + HAVE_AGAIN },
            Fault::Away(_) | Fault::Refused(_) => {
                let rest = FIRST_REST.saturating_mul(1 << known.failures.min(6)).min(LONGEST_REST);
                known.failures += 1;
                State::Idle { from: now + rest }
            }
        };
        self.drop_provider(key);
        self.providers_at = self.providers_at.min(now + FIRST_REST);
    }
}

/// The bytes of the pieces that are there.
fn bytes_of(file: &LibraryFile) -> u64 {
    let layout = file.layout();
    let full = u64::from(file.have_count()) * u64::from(layout.piece_size());
    match layout.last() {
        Some(last) if file.has(last) => full - (u64::from(layout.piece_size()) - layout.len(last) as u64),
        _ => full,
    }
}

/// The cost of a piece in units of the budget, 1 KiB.
fn cost(layout: PieceLayout) -> u32 {
    layout.piece_size() / 1024
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

async fn join(parts: &Parts, provider: &Provider, id: FileId, prove: bool) -> Result<Box<Joined>, Fault> {
    let deadline = Deadline::Silence(parts.settings.silence);
    let (connection, layout, have) = source::join(&parts.dialer, provider, id, deadline).await?;
    let mut proof = None;
    if prove {
        let manifest = source::manifest(&*connection, id, layout, deadline).await?;
        match layout.last() {
            None => proof = Some((manifest, None)),
            // Only the last piece proves the size.
            Some(last) if have.contains(last) => {
                let room = Arc::clone(&parts.budget).acquire_many_owned(cost(layout)).await;
                let permit = room.map_err(|_| Fault::Refused("the downloads are closed".to_owned()))?;
                parts.limit.take(layout.len(last)).await;
                let content = source::piece(&*connection, id, last, deadline).await?;
                let (manifest, content, good) = tokio::task::spawn_blocking(move || {
                    let good = manifest.piece_is(last, &content);
                    (manifest, content, good)
                })
                .await
                .map_err(|_| Fault::Refused("hashing was interrupted".to_owned()))?;
                if !good {
                    return Err(Fault::Lie("a last piece that does not fit the size"));
                }
                proof = Some((manifest, Some((content, permit))));
            }
            Some(_) => {}
        }
    }
    Ok(Box::new(Joined { connection, layout, have, proof }))
}
