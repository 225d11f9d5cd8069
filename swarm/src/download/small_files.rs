//! Download of small members of a collection in batches: each request fetches several whole files.
//!
//! Every provider of the collection takes batches off a shared queue and has a few of them in flight. Files that one
//! provider does not have or sends late are requested from the others. The rest is left to single downloads, which wait
//! for providers and for free disk space and report errors. Only content that hashes to its id is stored, and a provider
//! that sends other content is banned.

mod member;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};

pub(super) use self::member::SmallMember;
use super::activity::Activity;
use super::batch_provider::{BATCH_BYTES, BatchProvider, ConnectionState, FILE_BYTES, MAX_IN_FLIGHT};
use super::context::DownloadContext;
use super::error::DownloadError;
use super::provider::{self, ProviderError, ProviderSource};
use super::request::{Phase, Progress};
use crate::library::error::LibraryError;
use crate::library::small::{SmallFile, SmallOutput};
use enjambre_core::protocol::message::MAX_FILES;
use enjambre_core::runtime;
use enjambre_core::{Connection, Deadline, FileId, Provider};

/// A reply is late, and others are asked too, after this time and [`LATE_FACTOR`] times the last reply time of the provider.
const LATE: Duration = Duration::from_secs(2);
const LATE_FACTOR: u32 = 4;
/// Maximum number of files per write, and of parallel writes.
const WRITE_FILES: usize = 1024;
const MAX_WRITERS: usize = 2;

struct BatchReply {
    from: usize,
    files: Vec<SmallMember>,
    latency: Duration,
    /// Whether the files were returned to the queue before the reply.
    is_late: bool,
    reply: Result<(Vec<Option<u64>>, Bytes), ProviderError>,
    permit: Option<OwnedSemaphorePermit>,
}

struct HashedBatch {
    from: usize,
    valid: Vec<(SmallMember, Bytes)>,
    invalid: Vec<SmallMember>,
    permit: Option<OwnedSemaphorePermit>,
}

enum Event {
    Providers(Result<Vec<Provider>, String>),
    Connected(usize, Result<Arc<dyn Connection>, ProviderError>),
    Reply(BatchReply),
    /// The reply is late; the future returns it.
    Late(usize, Vec<SmallMember>, BoxFuture<'static, Event>),
    /// `None` if hashing was interrupted.
    Hashed(Option<HashedBatch>),
    Written(Vec<SmallMember>, Result<Vec<FileId>, LibraryError>),
}

struct Batches<'a> {
    context: &'a Arc<DownloadContext>,
    collection: FileId,
    output: Option<SmallOutput>,
    progress: &'a watch::Sender<Progress>,
    activity: Arc<Activity>,
    source: Arc<dyn ProviderSource>,
    is_searching: bool,
    providers: Vec<BatchProvider>,
    /// Further providers, each of which takes the place of one that is late or excluded.
    spare: VecDeque<Provider>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The files without valid content. Those of late replies may also be in the queue.
    missing: HashSet<FileId>,
    queue: VecDeque<SmallMember>,
    /// Files that at least one provider did not have, and how many were ever added here.
    returned: VecDeque<SmallMember>,
    returned_count: u64,
    to_write: Vec<(SmallMember, Bytes)>,
    permits: Vec<OwnedSemaphorePermit>,
    writing: usize,
    remaining: Vec<SmallMember>,
    done: u64,
}

/// Downloads the files into the library or to `output`. Returns the files that are left for single downloads.
pub(super) async fn fetch(
    context: &Arc<DownloadContext>,
    collection: FileId,
    files: Vec<SmallMember>,
    output: Option<SmallOutput>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<Vec<SmallMember>, DownloadError> {
    let mut batches = Batches::new(context, collection, files, output, providers, progress);
    batches.search();
    batches.drive().await
}

impl<'a> Batches<'a> {
    fn new(
        context: &'a Arc<DownloadContext>,
        collection: FileId,
        files: Vec<SmallMember>,
        output: Option<SmallOutput>,
        source: Arc<dyn ProviderSource>,
        progress: &'a watch::Sender<Progress>,
    ) -> Self {
        Self {
            context,
            collection,
            output,
            progress,
            activity: context.activities.enter(collection),
            source,
            is_searching: false,
            providers: Vec::new(),
            spare: VecDeque::new(),
            events: FuturesUnordered::new(),
            returned: VecDeque::new(),
            returned_count: 0,
            to_write: Vec::new(),
            permits: Vec::new(),
            writing: 0,
            remaining: Vec::new(),
            missing: files.iter().map(|file| file.id).collect(),
            queue: files.into(),
            done: 0,
        }
    }

    async fn drive(mut self) -> Result<Vec<SmallMember>, DownloadError> {
        loop {
            self.write_files();
            let wake = self.send_requests();
            // Slow providers may still be connecting.
            let is_settled = self.missing.is_empty() && self.to_write.is_empty() && self.writing == 0;
            if is_settled || self.events.is_empty() && wake.is_none() {
                break;
            }
            tokio::select! {
                biased;
                Some(event) = self.events.next() => self.on_event(event)?,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            self.report();
        }
        self.leave_queued();
        Ok(self.remaining)
    }

    /// Leaves all queued files to single downloads.
    fn leave_queued(&mut self) {
        let queued = self.queue.drain(..).chain(self.returned.drain(..));
        self.remaining.extend(queued.filter(|file| self.missing.remove(&file.id)));
    }

    fn report(&self) {
        let is_active = |provider: &&BatchProvider| matches!(provider.state, ConnectionState::Active(_));
        let active = self.providers.iter().filter(is_active).count();
        let phase = if active > 0 { Phase::Fetching } else { Phase::Searching };
        let new = Progress { done: self.done, total: 0, providers: active as u32, phase };
        self.progress.send_if_modified(|old| std::mem::replace(old, new) != new);
    }

    /// Fills the window of every provider. Returns the earliest end of a backoff.
    fn send_requests(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut wake: Option<Instant> = None;
        for at in 0..self.providers.len() {
            if self.queue.is_empty() && self.returned.is_empty() {
                return None;
            }
            if let ConnectionState::BackedOff(until) = self.providers[at].state {
                if now < until {
                    wake = Some(wake.map_or(until, |wake| wake.min(until)));
                    continue;
                }
                self.connect(at);
            }
            while let ConnectionState::Active(connection) = &self.providers[at].state
                && self.providers[at].accepts_batch()
            {
                let connection = Arc::clone(connection);
                let late = LATE + self.providers[at].latency * LATE_FACTOR;
                let files = self.next_batch(at);
                if files.is_empty() {
                    break;
                }
                self.providers[at].in_flight += 1;
                self.events.push(request(Arc::clone(self.context), connection, at, files, late).boxed());
            }
        }
        wake
    }

    /// Takes the next files for a provider, without those that it does not have.
    fn next_batch(&mut self, at: usize) -> Vec<SmallMember> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let max = self.providers[at].batch_bytes();
        let is_full = |batch: &Vec<SmallMember>, bytes: u64, next: &SmallMember| {
            !batch.is_empty() && (bytes + next.size > max || batch.len() == MAX_FILES)
        };
        while let Some(next) = self.queue.pop_front() {
            if !self.missing.contains(&next.id) {
                continue;
            }
            if is_full(&batch, bytes, &next) {
                self.queue.push_front(next);
                return batch;
            }
            bytes += next.size;
            batch.push(next);
        }
        let provider = &mut self.providers[at];
        if provider.checked == Some(self.returned_count) {
            return batch;
        }
        let mut skipped = VecDeque::with_capacity(self.returned.len());
        while let Some(next) = self.returned.pop_front() {
            if !self.missing.contains(&next.id) {
                continue;
            }
            if next.missing_at.contains(&at) {
                skipped.push_back(next);
            } else if is_full(&batch, bytes, &next) {
                self.returned.push_front(next);
                break;
            } else {
                bytes += next.size;
                batch.push(next);
            }
        }
        if self.returned.is_empty() {
            provider.checked = Some(self.returned_count);
        }
        // Skipped files move to the back: the next provider starts with unchecked ones.
        self.returned.append(&mut skipped);
        batch
    }

    /// Looks up providers, unless a lookup is in progress.
    fn search(&mut self) {
        if !std::mem::replace(&mut self.is_searching, true) {
            let (source, collection) = (Arc::clone(&self.source), self.collection);
            self.events.push(async move { Event::Providers(source.providers(&collection).await) }.boxed());
        }
    }

    /// Connects another provider unless too many are connected. Returns whether no more have to be looked up.
    fn connect_spare(&mut self) -> bool {
        let is_used = |provider: &&BatchProvider| !matches!(provider.state, ConnectionState::Excluded);
        if self.providers.iter().filter(is_used).count() >= 2 * self.context.settings.max_providers {
            // Late requests hold their share of the budget until they end.
            return true;
        }
        let Some(provider) = self.spare.pop_front() else { return false };
        self.providers.push(BatchProvider::new(provider));
        self.connect(self.providers.len() - 1);
        true
    }

    fn connect(&mut self, at: usize) {
        self.providers[at].state = ConnectionState::Connecting;
        let (context, collection) = (Arc::clone(self.context), self.collection);
        let provider = self.providers[at].provider.clone();
        self.events.push(
            async move {
                let deadline = Deadline::Silence(context.settings.silence_timeout);
                let connecting = provider::connect(&context.dialer, &provider, collection, deadline);
                let connected = context.limit_time(BATCH_BYTES, connecting).await;
                Event::Connected(at, connected.map(|connected| connected.connection))
            }
            .boxed(),
        );
    }

    fn write_files(&mut self) {
        while self.writing < MAX_WRITERS && !self.to_write.is_empty() {
            self.writing += 1;
            let batch: Vec<(SmallMember, Bytes)> =
                self.to_write.drain(..self.to_write.len().min(WRITE_FILES)).collect();
            let permits = std::mem::take(&mut self.permits);
            let library = Arc::clone(&self.context.library);
            let (collection, output) = (self.collection, self.output.clone());
            self.events.push(
                async move {
                    let paths =
                        |file: &SmallMember| if output.is_some() { file.paths.clone() } else { Vec::new() };
                    let files = batch
                        .iter()
                        .map(|(file, content)| SmallFile {
                            id: file.id,
                            content: content.clone(),
                            paths: paths(file),
                        })
                        .collect();
                    let remaining = library.add_small(files, collection, output.clone()).await;
                    drop(permits);
                    Event::Written(batch.into_iter().map(|(file, _)| file).collect(), remaining)
                }
                .boxed(),
            );
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), DownloadError> {
        match event {
            Event::Providers(Ok(found)) => {
                self.is_searching = false;
                let wanted = if self.providers.is_empty() { self.context.settings.max_providers } else { 1 };
                let is_known = |peer| self.providers.iter().any(|known| known.provider.peer == peer);
                let is_new = |peer| Some(peer) != self.context.me && !is_known(peer);
                self.spare = found.into_iter().filter(|found| is_new(found.peer)).collect();
                for _ in 0..wanted {
                    self.connect_spare();
                }
            }
            Event::Providers(Err(reason)) => {
                self.is_searching = false;
                tracing::debug!(reason, "provider lookup for small files failed");
            }
            Event::Connected(at, Ok(connection)) => {
                let state = &mut self.providers[at].state;
                // An earlier reply may have been found to be invalid meanwhile.
                if !matches!(state, ConnectionState::Excluded) {
                    *state = ConnectionState::Active(connection);
                }
            }
            Event::Connected(at, Err(error)) => self.on_error(at, error),
            Event::Reply(reply) => self.on_reply(reply),
            Event::Late(from, files, reply) => {
                self.providers[from].late += 1;
                self.queue.extend(files);
                self.events.push(reply);
                // A lookup does not return all providers.
                if !self.connect_spare() {
                    self.search();
                }
            }
            Event::Hashed(None) => return Err(DownloadError::Cancelled),
            Event::Hashed(Some(HashedBatch { from, valid, invalid, permit })) => {
                let received = valid.iter().map(|(file, _)| file.size).sum();
                self.context.metrics.add_files(valid.len(), invalid.len(), received);
                if let Some(BatchProvider { provider, .. }) = self.providers.get(from) {
                    let endpoint = || provider.endpoints.first().cloned();
                    self.activity.deliver(provider.peer, received, endpoint);
                }
                let before = self.to_write.len();
                self.to_write.extend(valid.into_iter().filter(|(file, _)| self.missing.remove(&file.id)));
                // Without files to write, the permit would never be released.
                self.permits.extend(permit.filter(|_| self.to_write.len() > before));
                if !invalid.is_empty() {
                    self.queue.extend(invalid);
                    self.on_error(from, ProviderError::InvalidData("file content does not match its id"));
                }
            }
            Event::Written(files, result) => {
                self.writing -= 1;
                match result {
                    Ok(remaining) => {
                        let remaining: HashSet<FileId> = remaining.into_iter().collect();
                        for file in files {
                            match remaining.contains(&file.id) {
                                true => self.remaining.push(file),
                                false => self.done += file.bytes(),
                            }
                        }
                    }
                    Err(error) if error.is_temporary() => {
                        // Single downloads wait for free space.
                        self.remaining.extend(files);
                        self.leave_queued();
                        self.remaining.extend(self.to_write.drain(..).map(|(file, _)| file));
                        self.permits.clear();
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, BatchReply { from, files, latency, is_late, reply, permit }: BatchReply) {
        let provider = &mut self.providers[from];
        provider.in_flight -= 1;
        provider.late -= usize::from(is_late);
        let (sizes, payload) = match reply {
            Ok(reply) => reply,
            Err(error) => {
                if !is_late {
                    self.queue.extend(files);
                }
                return self.on_error(from, error);
            }
        };
        let mut rest = payload;
        let mut found = Vec::with_capacity(sizes.len());
        let mut sizes = sizes.into_iter();
        for mut file in files {
            match sizes.next() {
                // The queue contains the file already.
                None if is_late => {}
                // The reply was full.
                None => self.queue.push_front(file),
                Some(size) => {
                    let content = rest.split_to(size.unwrap_or(0) as usize);
                    if size == Some(file.size) {
                        found.push((file, content));
                    } else if !is_late {
                        file.missing_at.push(from);
                        self.returned.push_back(file);
                        self.returned_count += 1;
                    }
                }
            }
        }
        let received = found.iter().map(|(file, _)| file.size.max(FILE_BYTES)).sum();
        self.providers[from].on_reply(latency, received);
        if found.is_empty() {
            return;
        }
        let hashed = runtime::spawn_blocking(move || {
            let is_valid =
                |(file, content): &(SmallMember, Bytes)| blake3::hash(content) == *file.id.as_bytes();
            let (valid, invalid): (Vec<_>, Vec<_>) = found.into_iter().partition(is_valid);
            HashedBatch { from, valid, invalid: invalid.into_iter().map(|(file, _)| file).collect(), permit }
        });
        self.events.push(hashed.map(|hashed| Event::Hashed(hashed.ok())).boxed());
    }

    fn on_error(&mut self, at: usize, error: ProviderError) {
        if self.providers[at].on_error(self.collection, error) {
            self.connect_spare();
        }
    }
}

/// Requests a batch as soon as the budget permits. The reply is late after the time `late`.
async fn request(
    context: Arc<DownloadContext>,
    connection: Arc<dyn Connection>,
    from: usize,
    files: Vec<SmallMember>,
    late: Duration,
) -> Event {
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let units = bytes.div_ceil(1024).max(1) as u32;
    let permit = Arc::clone(&context.budget).acquire_many_owned(units).await.ok();
    context.limit.take(bytes as usize).await;
    let ids = files.iter().map(|file| file.id).collect();
    let start = Instant::now();
    let mut receive = async move {
        let reply = provider::files(&*connection, ids, Deadline::Silence(context.settings.silence_timeout));
        // Other batches share the connection.
        let mut reply = context.limit_time(bytes * MAX_IN_FLIGHT as u64, reply).await;
        let received = reply.as_ref().map_or(0, |(_, payload)| payload.len());
        context.limit.refund((bytes as usize).saturating_sub(received));
        if matches!(&reply, Ok((_, payload)) if payload.len() as u64 > bytes) {
            // The budget covers only the requested sizes.
            reply = Err(ProviderError::InvalidData("reply is longer than requested"));
        }
        reply
    }
    .boxed();
    let event = move |files, reply, is_late| {
        let latency = start.elapsed();
        Event::Reply(BatchReply { from, files, latency, is_late, reply, permit })
    };
    match timeout(late, &mut receive).await {
        Ok(reply) => event(files, reply, false),
        Err(_) => Event::Late(from, files.clone(), async move { event(files, receive.await, true) }.boxed()),
    }
}

#[cfg(test)]
mod tests;
