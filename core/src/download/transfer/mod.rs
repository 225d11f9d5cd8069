//! One file from the first question to the last written piece.
//!
//! A transfer is one task that owns the schedule and waits for whatever comes next: a reply, a batch of
//! pieces that was hashed and written, a list of providers, the clock. Reading the sockets, hashing and writing overlap;
//! the bytes between the request and the written piece are bounded by the budget that all transfers of a peer
//! share. Nothing is written that was not verified against the file's id.
//!
//! ```text
//! provider:  idle -> joining -> active -> resting (away, busy, refused) -> idle
//!                                  \----> banned (lied)
//! piece:     asked -> arrived -> verified and written        (any failure: asked again, of another)
//! ```

mod pieces;
mod providers;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{AbortHandle, BoxFuture};
use futures::stream::FuturesUnordered;
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::DownloadError;
use super::hold::{self, Hold};
use super::progress::{Phase, Progress};
use super::schedule::{ProviderKey, Schedule};
use super::source::{Fault, Reached};
use super::wanted::{Parts, Wanted};
use crate::library::entry::NewFile;
use crate::library::error::LibraryError;
use crate::library::file::LibraryFile;
use crate::machine::{self, HashMap};
use crate::model::bitmap::Bitmap;
use crate::model::id::PeerId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::manifest::Manifest;
use crate::model::record::Provider;
use crate::transport::Connection;
use crate::transport::envelope::RequestId;

/// How often the clock is looked at: rests that end, bitmaps to ask for again, patience.
const TICK: Duration = Duration::from_millis(100);
/// The most batches of pieces that are hashed and written at once.
const MAX_KEEPERS: usize = 8;

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
    /// Since when it is at work.
    since: Instant,
    /// Whether it had everything when last asked, and how many pieces that were.
    complete: bool,
    pieces: u32,
    /// When to ask again what it has; none while such a question is under way.
    have_again: Option<Instant>,
    /// When that was asked last.
    have_asked: Instant,
    /// No piece is asked of it before this time.
    busy_until: Option<Instant>,
    /// When its last piece came.
    delivered: Instant,
    /// How many pieces in a row it did not send, because it gave them to somebody else.
    refusals: u32,
}

#[derive(Debug)]
struct Known {
    peer: PeerId,
    provider: Provider,
    state: State,
    failures: u32,
    /// Where the last that it said is that it was busy.
    busy: Option<Busy>,
}

/// A provider that was busy, with whatever it was asked.
#[derive(Debug, Clone, Copy)]
struct Busy {
    since: Instant,
    /// How often in a row.
    times: u32,
}

/// A request for a piece.
#[derive(Debug)]
struct Call {
    abort: AbortHandle,
    request: RequestId,
    /// When it was sent: behind the limit on the rate.
    sent: Arc<OnceLock<Instant>>,
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
    /// Since when the provider was at work that was asked: it may have come anew meanwhile.
    Have(ProviderKey, Instant, Result<(PieceLayout, Bitmap), Fault>),
    Piece(ProviderKey, PieceIndex, Result<(Bytes, OwnedSemaphorePermit), Fault>),
    /// Which of them were wrong.
    Kept(Vec<Arrived>, Result<Vec<PieceIndex>, LibraryError>),
    /// There is room in the budget for one piece.
    Room(Option<OwnedSemaphorePermit>),
    /// Of no consequence: a question that was called off.
    Nothing,
}

struct Joined {
    reached: Reached,
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
    /// What the schedule counts time from.
    begun: Instant,
    progress: &'a watch::Sender<Progress>,
    cancel: &'a CancellationToken,
    open: Option<Open>,
    known: HashMap<ProviderKey, Known>,
    keys: HashMap<PeerId, ProviderKey>,
    next_key: u32,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    calls: HashMap<(ProviderKey, PieceIndex), Call>,
    to_keep: Vec<Arrived>,
    /// Batches that are hashed and written now, and how many may be at once.
    keeping: usize,
    keepers: usize,
    /// What it waits for before it writes.
    hold: Option<Hold>,
    asking_providers: bool,
    providers_at: Instant,
    /// The pause before the trackers are asked again.
    providers_pause: Duration,
    waiting_for_room: bool,
    /// Room for one piece that was waited for. It goes to the next request: given back it would go to another
    /// transfer that waits, and from there to the next, and none would ever use it.
    room: Option<OwnedSemaphorePermit>,
    /// When there was last a sign that the download will go on.
    hopeful: Instant,
    /// When a piece came last, or it began.
    arrived: Instant,
    /// When to look again whether somebody at work is in the way of another.
    review_at: Instant,
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
        begun: now,
        progress,
        cancel,
        open: None,
        known: HashMap::default(),
        keys: HashMap::default(),
        next_key: 0,
        events: FuturesUnordered::new(),
        calls: HashMap::default(),
        to_keep: Vec::new(),
        keeping: 0,
        keepers: machine::cores().clamp(2, MAX_KEEPERS),
        hold: None,
        asking_providers: false,
        providers_at: now,
        providers_pause: providers::FIRST_PAUSE,
        waiting_for_room: false,
        room: None,
        hopeful: now,
        arrived: now,
        review_at: now,
        last_fault: None,
        cancelled: false,
    };
    if let Some(file) = parts.library.open_file(&wanted.id).await? {
        transfer.create(Manifest::clone(file.manifest())).await?;
    } else if let Some(manifest) = known_manifest(wanted) {
        // The size was proven by whoever named it, or the file is empty: there is nothing to ask about it.
        transfer.create(manifest).await?;
    }
    transfer.drive().await
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
    async fn drive(mut self) -> Result<Arc<LibraryFile>, DownloadError> {
        let mut tick = Instant::now() + TICK;
        loop {
            self.mend();
            self.pump();
            if let Some(file) = self.finished() {
                return match self.with_room(|| file.finish(false)).await {
                    Ok(()) => Ok(file),
                    Err(error) => self.give_up(error).await,
                };
            }
            if self.cancelled && self.keeping == 0 {
                return self.give_up(DownloadError::Cancelled).await;
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled(), if !self.cancelled => self.cancel(),
                Some(event) = self.events.next() => {
                    if let Err(error) = self.on_event(event).await {
                        return self.give_up(error).await;
                    }
                }
                () = sleep_until(tick) => {
                    tick = Instant::now() + TICK;
                    self.note_stalled();
                    if let Some(error) = self.out_of_patience() {
                        return self.give_up(error).await;
                    }
                }
            }
            self.report();
        }
    }

    /// The time as the schedule counts it.
    fn clock(&self) -> Duration {
        self.begun.elapsed()
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
        let seed = machine::rng().next_u64();
        let schedule =
            Schedule::new(file.manifest().layout(), &file.have(), self.parts.settings.window, seed);
        self.open = Some(Open { file, schedule });
        self.report();
    }

    async fn create(&mut self, manifest: Manifest) -> Result<(), DownloadError> {
        let new = NewFile {
            name: self.wanted.name.clone(),
            kind: self.wanted.kind,
            member_of: self.wanted.member_of,
        };
        let (library, destination) = (&self.parts.library, &self.wanted.destination);
        let create = || library.create(manifest.clone(), new.clone(), destination.clone());
        let file = self.with_room(create).await?;
        self.begin(file);
        Ok(())
    }

    /// Does something with the library; where the disk is full, when there is room. All else stands still meanwhile.
    async fn with_room<T, F: Future<Output = Result<T, LibraryError>>>(
        &mut self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, DownloadError> {
        let done = hold::with_room(self.parts, self.progress, attempt);
        let done = self.cancel.run_until_cancelled(done).await.ok_or(DownloadError::Cancelled)?;
        self.hopeful = Instant::now();
        Ok(done?)
    }

    /// The file, when all of it is written.
    fn finished(&self) -> Option<Arc<LibraryFile>> {
        let Open { file, .. } = self.open.as_ref()?;
        (self.all_arrived() && file.is_complete()).then(|| Arc::clone(file))
    }

    /// Whether nothing is missing and nothing is on its way.
    fn all_arrived(&self) -> bool {
        let idle = self.to_keep.is_empty() && self.keeping == 0;
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
    }

    /// Why it makes no sense to wait any longer.
    fn out_of_patience(&mut self) -> Option<DownloadError> {
        let now = Instant::now();
        let patience = self.parts.settings.patience;
        let stalled = self.stalled(now);
        let sends = |key| self.known.get(key).is_some_and(|known| known.busy.is_none());
        // A call that lasts so long is one over which something comes.
        let silence = self.parts.settings.silence;
        let lasts = |call: &Call| call.sent.get().is_some_and(|&sent| now >= sent + silence);
        let owes = |key, call| (sends(key) || lasts(call)) && !stalled.contains(key);
        let owed = self.calls.iter().any(|((key, _), call)| owes(key, call));
        // Who is busy may have time soon, and may go on with that for ever, or others like it may.
        let lately = |known: &Known| known.busy.is_some_and(|busy| now < busy.since + patience);
        let promised = now < self.arrived + patience * 2 && self.known.values().any(lately);
        let at_work = owed || promised || self.keeping > 0 || !self.to_keep.is_empty();
        // Without room it is the other transfers that hold it up, not the lack of a provider.
        let busy = at_work || self.waiting_for_room;
        if busy {
            self.hopeful = now;
        }
        (now >= self.hopeful + patience)
            .then(|| DownloadError::Nobody { patience, reason: self.last_fault.take() })
    }

    fn report(&self) {
        let sources =
            self.known.values().filter(|known| matches!(known.state, State::Active(_))).count() as u32;
        let (done, total) = match &self.open {
            Some(Open { file, .. }) => (bytes_of(file), file.layout().size()),
            None => (0, self.wanted.claimed_size.unwrap_or(0)),
        };
        let phase = match (self.hold, sources) {
            (Some(Hold { full: true, .. }), _) => Phase::DiskFull,
            (_, 0) => Phase::Searching,
            _ => Phase::Fetching,
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

    async fn on_event(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Providers(result) => self.on_providers(result),
            Event::Joined(key, Ok(joined)) => self.on_joined(key, *joined).await?,
            Event::Joined(key, Err(fault)) => self.on_fault(key, fault),
            Event::Have(key, since, result) => self.on_answer(key, since, result),
            Event::Piece(key, piece, result) => self.on_piece(key, piece, result),
            Event::Kept(batch, result) => self.on_kept(batch, result)?,
            Event::Room(room) => {
                self.waiting_for_room = false;
                self.room = room;
            }
            Event::Nothing => {}
        }
        Ok(())
    }
}

/// The bytes of the pieces that are there.
fn bytes_of(file: &LibraryFile) -> u64 {
    let layout = file.layout();
    // Looked at before the count, which then has it: pieces are kept and lost while this is told.
    let last = layout.last().filter(|&last| file.has(last));
    let shorter = last.map_or(0, |last| u64::from(layout.piece_size()) - layout.len(last) as u64);
    (u64::from(file.have_count()) * u64::from(layout.piece_size())).saturating_sub(shorter)
}
