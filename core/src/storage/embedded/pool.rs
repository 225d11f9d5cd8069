//! The reader threads and their queue.
//!
//! The threads live as long as the storage. The readers belong to one opening of the engine: when it fails, the writer removes
//! them, reads fail with `Unavailable`, and the next opening provides new ones. The permits of the callers bound the queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::OwnedSemaphorePermit;

use super::guarded::guarded;
use crate::storage::engine::Reader;
use crate::storage::error::{Source, StorageError};

/// The maximum number of reads that a thread takes from the queue at once.
const TAKEN_AT_ONCE: usize = 16;

/// Reads with a reader and replies to the caller. Without a reader, replies with the error. If the engine is broken, returns
/// its error and drops the reply channel.
pub(super) type Query<R> = Box<dyn FnOnce(Result<&mut R, StorageError>) -> Result<(), Source> + Send>;

/// A queued read.
pub(super) struct Read<R> {
    pub(super) query: Query<R>,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// A failure of the engine during a read.
#[derive(Debug)]
pub(super) struct FailedRead {
    /// The opening of the engine.
    pub(super) generation: u64,
    pub(super) source: Source,
}

enum Phase {
    Up,
    Down(String),
    Closed,
}

struct State<R> {
    phase: Phase,
    /// Changes with each opening and failure. A reader of an earlier generation is dropped after use.
    generation: u64,
    queue: VecDeque<Read<R>>,
    readers: Vec<R>,
    /// The number of readers in use.
    busy: usize,
}

pub(super) struct Pool<R> {
    threads: usize,
    state: Mutex<State<R>>,
    /// Signals work for a thread.
    work: Condvar,
    /// Signals finished work.
    done: Condvar,
}

impl<R: Reader> Pool<R> {
    pub(super) fn new(threads: usize) -> Self {
        let state = State {
            phase: Phase::Down("the engine is being opened".to_owned()),
            generation: 0,
            queue: VecDeque::new(),
            readers: Vec::new(),
            busy: 0,
        };
        Self { threads, state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() }
    }

    /// The number of threads, which is the number of readers it needs.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// The current generation, which changes with [`Pool::bring_up`] and [`Pool::take_down`].
    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Queues a read. After the pool is closed, drops it.
    pub(super) fn push(&self, read: Read<R>) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Closed) {
            state.queue.push_back(read);
            self.work.notify_one();
        }
    }

    /// Starts to serve reads with the readers of a new opening.
    pub(super) fn bring_up(&self, readers: Vec<R>) {
        let mut state = self.state.lock();
        state.phase = Phase::Up;
        state.generation += 1;
        state.readers = readers;
        self.work.notify_all();
    }

    /// Drops all readers, and waits up to `timeout` for those in use.
    pub(super) fn take_down(&self, reason: &str, timeout: Duration) {
        let mut state = self.state.lock();
        state.phase = Phase::Down(reason.to_owned());
        state.generation += 1;
        let readers = std::mem::take(&mut state.readers);
        self.work.notify_all();
        MutexGuard::unlocked(&mut state, || drop(guarded(|| drop(readers))));
        self.wait(&mut state, timeout, |state| state.busy == 0);
    }

    /// Finishes the queued reads, drops all readers and ends the threads.
    pub(super) fn close(&self, timeout: Duration) {
        let mut state = self.state.lock();
        self.wait(&mut state, timeout, |state| state.busy == 0 && state.queue.is_empty());
        state.phase = Phase::Closed;
        let readers = std::mem::take(&mut state.readers);
        self.work.notify_all();
        MutexGuard::unlocked(&mut state, || drop(guarded(|| drop(readers))));
        self.wait(&mut state, timeout, |state| state.busy == 0);
    }

    fn wait(
        &self,
        state: &mut MutexGuard<'_, State<R>>,
        timeout: Duration,
        reached: impl Fn(&State<R>) -> bool,
    ) {
        let until = Instant::now() + timeout;
        while !reached(state) && !self.done.wait_until(state, until).timed_out() {}
    }

    /// Runs a reader thread. `failed` is called when a reader is broken or panics.
    pub(super) fn serve(&self, failed: impl Fn(FailedRead)) {
        let mut state = self.state.lock();
        loop {
            match &state.phase {
                Phase::Closed => {
                    state.queue.clear();
                    return;
                }
                Phase::Down(reason) => {
                    let reason = reason.clone();
                    for read in std::mem::take(&mut state.queue) {
                        let _ = (read.query)(Err(StorageError::Unavailable { reason: reason.clone() }));
                    }
                    self.done.notify_all();
                }
                Phase::Up if !state.queue.is_empty() => {
                    if let Some(reader) = state.readers.pop() {
                        self.take_and_answer(&mut state, reader, &failed);
                        continue;
                    }
                }
                Phase::Up => {}
            }
            self.work.wait(&mut state);
        }
    }

    fn take_and_answer(
        &self,
        state: &mut MutexGuard<'_, State<R>>,
        mut reader: R,
        failed: &impl Fn(FailedRead),
    ) {
        let count = (state.queue.len() / self.threads).clamp(1, TAKEN_AT_ONCE);
        let taken: Vec<Read<R>> = state.queue.drain(..count).collect();
        let generation = state.generation;
        state.busy += 1;
        let outcome = MutexGuard::unlocked(state, || {
            guarded(|| taken.into_iter().try_for_each(|read| (read.query)(Ok(&mut reader))))
                .unwrap_or_else(|panicked| Err(panicked.into()))
                .map_err(|source| failed(FailedRead { generation, source }))
        });
        // A failed reader is dropped; the writer reopens the engine.
        if outcome.is_ok() && state.generation == generation && !matches!(state.phase, Phase::Closed) {
            state.readers.push(reader);
        } else {
            MutexGuard::unlocked(state, || drop(guarded(|| drop(reader))));
        }
        state.busy -= 1;
        self.done.notify_all();
    }
}
