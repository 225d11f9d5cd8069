//! Gets small members of a collection many at a time: each request fetches a batch of whole files.
//!
//! Every provider of the collection takes the next batch off one queue and has a few of them on the way. What one
//! does not have goes to the others; what none of them gives so is left to the usual way of a file, which has
//! patience, waits for room on the disk, and tells what is wrong. Nothing is kept that does not hash to its id, and who sends
//! such a thing is left out.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::DownloadError;
use super::progress::{Phase, Progress};
use super::source::{self, Fault, ProviderSource};
use super::wanted::Parts;
use crate::library::error::LibraryError;
use crate::library::small::{SmallFile, SmallOutput};
use crate::machine;
use crate::model::collection::MemberPath;
use crate::model::id::FileId;
use crate::model::record::Provider;
use crate::protocol::message::MAX_FILES;
use crate::transport::{Connection, Deadline};

/// About how many bytes a request asks for.
const BATCH_BYTES: u64 = 512 * 1024;
/// Batches on the way from one provider.
const WINDOW: usize = 4;
/// Files that the library is given at once, and how often at the same time.
const KEEP_FILES: usize = 1024;
const KEEPERS: usize = 2;
/// How often a provider may go away or be busy in a row before it is left out.
const MAX_FAILURES: u32 = 3;
/// How long one is left alone that went away.
const REST: Duration = Duration::from_millis(500);

/// A file to get.
#[derive(Debug)]
pub(super) struct Small {
    pub(super) id: FileId,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Where it goes, and whether it is executable there.
    pub(super) paths: Vec<(MemberPath, bool)>,
    /// Which providers do not have it.
    not_at: Vec<usize>,
}

impl Small {
    pub(super) const fn new(id: FileId, size: u64, paths: Vec<(MemberPath, bool)>) -> Self {
        Self { id, size, paths, not_at: Vec::new() }
    }

    /// What it counts for, once for each path.
    fn bytes(&self) -> u64 {
        self.size * self.paths.len() as u64
    }
}

enum State {
    Joining,
    Active(Arc<dyn Connection>),
    Resting(Instant),
    Out,
}

struct Source {
    provider: Provider,
    state: State,
    on_the_way: usize,
    failures: u32,
    /// How many files had come back to the queue when this one last found nothing for it there.
    seen: Option<u64>,
}

/// A batch that arrived.
struct Arrived {
    from: usize,
    files: Vec<Small>,
    reply: Result<(Vec<Option<u64>>, Bytes), Fault>,
    permit: Option<OwnedSemaphorePermit>,
}

/// A batch that was hashed.
struct Hashed {
    from: usize,
    good: Vec<(Small, Bytes)>,
    bad: Vec<Small>,
    permit: Option<OwnedSemaphorePermit>,
}

enum Event {
    Providers(Result<Vec<Provider>, String>),
    Joined(usize, Result<Arc<dyn Connection>, Fault>),
    Arrived(Arrived),
    /// None where hashing was interrupted.
    Hashed(Option<Hashed>),
    Kept(Vec<Small>, Result<Vec<FileId>, LibraryError>),
}

struct Batches<'a> {
    parts: &'a Arc<Parts>,
    collection: FileId,
    output: Option<SmallOutput>,
    progress: &'a watch::Sender<Progress>,
    sources: Vec<Source>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    queue: VecDeque<Small>,
    /// Files that somebody did not have, and how many ever came here.
    again: VecDeque<Small>,
    returned: u64,
    to_keep: Vec<(Small, Bytes)>,
    permits: Vec<OwnedSemaphorePermit>,
    keeping: usize,
    left: Vec<Small>,
    done: u64,
}

/// Gets the files into the library or to `output`. Returns those that are to be got in the usual way.
pub(super) async fn fetch(
    parts: &Arc<Parts>,
    collection: FileId,
    files: Vec<Small>,
    output: Option<SmallOutput>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<Vec<Small>, DownloadError> {
    let batches = Batches {
        parts,
        collection,
        output,
        progress,
        sources: Vec::new(),
        events: FuturesUnordered::new(),
        queue: files.into(),
        again: VecDeque::new(),
        returned: 0,
        to_keep: Vec::new(),
        permits: Vec::new(),
        keeping: 0,
        left: Vec::new(),
        done: 0,
    };
    if !batches.queue.is_empty() {
        batches.events.push(async move { Event::Providers(providers.providers(&collection).await) }.boxed());
    }
    batches.drive().await
}

impl Batches<'_> {
    async fn drive(mut self) -> Result<Vec<Small>, DownloadError> {
        loop {
            self.keep();
            let wake = self.ask();
            let waits = !self.events.is_empty() || wake.is_some();
            if !waits {
                break;
            }
            tokio::select! {
                biased;
                Some(event) = self.events.next() => self.on_event(event)?,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            self.report();
        }
        self.left.extend(self.queue);
        self.left.extend(self.again);
        Ok(self.left)
    }

    fn report(&self) {
        let working = self.sources.iter().filter(|source| matches!(source.state, State::Active(_))).count();
        let phase = if working > 0 { Phase::Fetching } else { Phase::Searching };
        let new = Progress { done: self.done, total: 0, sources: working as u32, phase };
        self.progress.send_if_modified(|old| std::mem::replace(old, new) != new);
    }

    /// Asks every provider for as much as it may have on the way. Returns when somebody is to be asked again.
    fn ask(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut wake: Option<Instant> = None;
        for at in 0..self.sources.len() {
            if self.queue.is_empty() && self.again.is_empty() {
                return None;
            }
            if let State::Resting(until) = self.sources[at].state {
                if now < until {
                    wake = Some(wake.map_or(until, |wake| wake.min(until)));
                    continue;
                }
                self.join(at);
            }
            while let State::Active(connection) = &self.sources[at].state
                && self.sources[at].on_the_way < WINDOW
            {
                let connection = Arc::clone(connection);
                let files = self.next_batch(at);
                if files.is_empty() {
                    break;
                }
                self.sources[at].on_the_way += 1;
                self.events.push(request(Arc::clone(self.parts), connection, at, files).boxed());
            }
        }
        wake
    }

    /// The next files for a provider, none that it does not have.
    fn next_batch(&mut self, at: usize) -> Vec<Small> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let full = |batch: &Vec<Small>, bytes: u64, next: &Small| {
            !batch.is_empty() && (bytes + next.size > BATCH_BYTES || batch.len() == MAX_FILES)
        };
        while let Some(next) = self.queue.front() {
            if full(&batch, bytes, next) {
                return batch;
            }
            bytes += next.size;
            batch.extend(self.queue.pop_front());
        }
        let source = &mut self.sources[at];
        if source.seen == Some(self.returned) {
            return batch;
        }
        let mut kept = VecDeque::with_capacity(self.again.len());
        while let Some(next) = self.again.pop_front() {
            if next.not_at.contains(&at) {
                kept.push_back(next);
            } else if full(&batch, bytes, &next) {
                self.again.push_front(next);
                break;
            } else {
                bytes += next.size;
                batch.push(next);
            }
        }
        if self.again.is_empty() {
            source.seen = Some(self.returned);
        }
        // Those that it does not have were looked at by it: others begin with them.
        self.again.append(&mut kept);
        batch
    }

    fn join(&mut self, at: usize) {
        self.sources[at].state = State::Joining;
        let (parts, provider) = (Arc::clone(self.parts), self.sources[at].provider.clone());
        let collection = self.collection;
        self.events.push(
            async move {
                let deadline = Deadline::Silence(parts.settings.silence);
                let joined = source::join(&parts.dialer, &provider, collection, deadline).await;
                Event::Joined(at, joined.map(|reached| reached.connection))
            }
            .boxed(),
        );
    }

    /// Gives the library what was verified.
    fn keep(&mut self) {
        while self.keeping < KEEPERS && !self.to_keep.is_empty() {
            self.keeping += 1;
            let some: Vec<(Small, Bytes)> =
                self.to_keep.drain(..self.to_keep.len().min(KEEP_FILES)).collect();
            let permits = std::mem::take(&mut self.permits);
            let library = Arc::clone(&self.parts.library);
            let (collection, output) = (self.collection, self.output.clone());
            self.events.push(
                async move {
                    let paths = |file: &Small| if output.is_some() { file.paths.clone() } else { Vec::new() };
                    let files = some
                        .iter()
                        .map(|(file, content)| SmallFile {
                            id: file.id,
                            content: content.clone(),
                            paths: paths(file),
                        })
                        .collect();
                    let kept = library.add_small(files, collection, output.clone()).await;
                    drop(permits);
                    Event::Kept(some.into_iter().map(|(file, _)| file).collect(), kept)
                }
                .boxed(),
            );
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Providers(Ok(providers)) => {
                let me = self.parts.me;
                let others = providers.into_iter().filter(|provider| Some(provider.peer) != me);
                for provider in others.take(self.parts.settings.max_providers) {
                    self.sources.push(Source {
                        provider,
                        state: State::Out,
                        on_the_way: 0,
                        failures: 0,
                        seen: None,
                    });
                    self.join(self.sources.len() - 1);
                }
            }
            Event::Providers(Err(reason)) => tracing::debug!(reason, "small files are fetched one by one"),
            Event::Joined(at, Ok(connection)) => {
                let state = &mut self.sources[at].state;
                // What came from it before may have shown meanwhile that it lies.
                if !matches!(state, State::Out) {
                    *state = State::Active(connection);
                }
            }
            Event::Joined(at, Err(fault)) => self.on_fault(at, fault),
            Event::Arrived(arrived) => self.on_arrived(arrived),
            Event::Hashed(None) => return Err(DownloadError::Cancelled),
            Event::Hashed(Some(Hashed { from, good, bad, permit })) => {
                self.to_keep.extend(good);
                self.permits.extend(permit);
                if !bad.is_empty() {
                    self.queue.extend(bad);
                    self.on_fault(from, Fault::Lie("a file with another content"));
                }
            }
            Event::Kept(files, result) => {
                self.keeping -= 1;
                match result {
                    Ok(left) => {
                        let left: HashSet<FileId> = left.into_iter().collect();
                        for file in files {
                            match left.contains(&file.id) {
                                true => self.left.push(file),
                                false => self.done += file.bytes(),
                            }
                        }
                    }
                    Err(error) if error.is_temporary() => {
                        // The usual way waits until there is room.
                        self.left.extend(files);
                        self.left.extend(self.queue.drain(..).chain(self.again.drain(..)));
                        self.left.extend(self.to_keep.drain(..).map(|(file, _)| file));
                        self.permits.clear();
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn on_arrived(&mut self, Arrived { from, files, reply, permit }: Arrived) {
        self.sources[from].on_the_way -= 1;
        let (sizes, payload) = match reply {
            Ok(reply) => reply,
            Err(fault) => {
                self.queue.extend(files);
                self.on_fault(from, fault);
                return;
            }
        };
        self.sources[from].failures = 0;
        let mut rest = payload;
        let mut found = Vec::with_capacity(sizes.len());
        let mut sizes = sizes.into_iter();
        for mut file in files {
            match sizes.next() {
                // It did not fit the reply.
                None => self.queue.push_front(file),
                Some(size) => {
                    let content = rest.split_to(size.unwrap_or(0) as usize);
                    if size == Some(file.size) {
                        found.push((file, content));
                    } else {
                        file.not_at.push(from);
                        self.again.push_back(file);
                        self.returned += 1;
                    }
                }
            }
        }
        if found.is_empty() {
            return;
        }
        let hashed = machine::spawn_blocking(move || {
            let is_right = |(file, content): &(Small, Bytes)| blake3::hash(content) == *file.id.as_bytes();
            let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(is_right);
            Hashed { from, good, bad: bad.into_iter().map(|(file, _)| file).collect(), permit }
        });
        self.events.push(hashed.map(|hashed| Event::Hashed(hashed.ok())).boxed());
    }

    fn on_fault(&mut self, at: usize, fault: Fault) {
        let source = &mut self.sources[at];
        let lied = matches!(fault, Fault::Lie(_));
        if matches!(source.state, State::Out) || matches!(source.state, State::Resting(_)) && !lied {
            return;
        }
        let peer = source.provider.peer;
        tracing::debug!(peer = %peer.short(), %fault, "a provider of small files failed");
        source.failures += 1;
        source.state = match fault {
            Fault::Lie(what) => {
                tracing::warn!(%peer, collection = %self.collection, what, "a provider is left out: it lied");
                State::Out
            }
            _ if source.failures > MAX_FAILURES => State::Out,
            Fault::Busy { retry_after } => State::Resting(Instant::now() + retry_after),
            Fault::Away(_) => State::Resting(Instant::now() + REST),
            // It may not know this kind of request.
            Fault::NotHere | Fault::Refused(_) | Fault::Elsewhere(_) => State::Out,
        };
    }
}

/// Asks for a batch, once there is room for it.
async fn request(
    parts: Arc<Parts>,
    connection: Arc<dyn Connection>,
    from: usize,
    files: Vec<Small>,
) -> Event {
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let units = bytes.div_ceil(1024).max(1) as u32;
    let permit = Arc::clone(&parts.budget).acquire_many_owned(units).await.ok();
    parts.limit.take(bytes as usize).await;
    let ids = files.iter().map(|file| file.id).collect();
    let asked = source::files(&*connection, ids, Deadline::Silence(parts.settings.silence));
    let mut reply = parts.in_time(asked).await;
    let came = reply.as_ref().map_or(0, |(_, payload)| payload.len());
    parts.limit.give_back((bytes as usize).saturating_sub(came));
    if matches!(&reply, Ok((_, payload)) if payload.len() as u64 > bytes) {
        // There is no room for more than what was asked for.
        reply = Err(Fault::Lie("more than it was asked for"));
    }
    Event::Arrived(Arrived { from, files, reply, permit })
}
