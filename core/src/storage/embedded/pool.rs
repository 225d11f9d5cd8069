//! The reader threads: a queue of reads, and the engine's readers that serve it.
//!
//! The threads live as long as the storage; the readers belong to one opening of the engine. When the engine
//! fails, the writer takes all readers away, reads are answered `Unavailable`, and the next opening brings new
//! ones. How many reads may wait is bounded by the caller's permits, not here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::shared_error::guarded;
use crate::storage::engine::{ReadError, Reader};
use crate::storage::error::{Source, StorageError};
use crate::storage::value::{Key, KeyRange, Space};

/// How many reads a thread takes from the queue at once at most.
const TAKEN_AT_ONCE: usize = 16;

type Reply<T> = oneshot::Sender<Result<T, StorageError>>;

/// One read that waits, with its place in the queue.
pub(super) struct Read {
    pub(super) ask: Ask,
    pub(super) _place: OwnedSemaphorePermit,
}

/// What is read, and who waits for it.
pub(super) enum Ask {
    Get { space: Space, keys: Vec<Key>, reply: Reply<Vec<Option<Bytes>>> },
    Scan { space: Space, range: KeyRange, limit: usize, max_bytes: usize, reply: Reply<Vec<(Key, Bytes)>> },
}

impl Ask {
    /// Reads and answers. The error is of an engine that is broken; whoever waits then hears of it by the end of `reply`.
    fn answer(self, reader: &mut impl Reader) -> Result<(), Source> {
        match self {
            // Nobody waits any more for what was dropped.
            Self::Get { reply, .. } if reply.is_closed() => {}
            Self::Scan { reply, .. } if reply.is_closed() => {}
            Self::Get { space, keys, reply } => {
                let _ = reply.send(unless_broken(keys.iter().map(|key| reader.get(space, key)).collect())?);
            }
            Self::Scan { space, range, limit, max_bytes, reply } => {
                let _ = reply.send(unless_broken(reader.scan(space, &range, limit, max_bytes))?);
            }
        }
        Ok(())
    }

    fn refuse(self, error: StorageError) {
        match self {
            Self::Get { reply, .. } => drop(reply.send(Err(error))),
            Self::Scan { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

fn unless_broken<T>(outcome: Result<T, ReadError>) -> Result<Result<T, StorageError>, Source> {
    match outcome {
        Ok(found) => Ok(Ok(found)),
        Err(ReadError::Failed(error)) => Ok(Err(error)),
        Err(ReadError::Broken(source)) => Err(source),
    }
}

/// The engine of one opening failed while it read, and must go.
#[derive(Debug)]
pub(super) struct FailedRead {
    /// Which opening it was.
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
    /// Counts the openings of the engine; a reader of an earlier one is not put back.
    generation: u64,
    queue: VecDeque<Read>,
    readers: Vec<R>,
    /// How many readers are in use.
    busy: usize,
}

pub(super) struct Pool<R> {
    threads: usize,
    state: Mutex<State<R>>,
    /// There is something to do for a thread.
    work: Condvar,
    /// A thread has finished something.
    done: Condvar,
}

impl<R: Reader> Pool<R> {
    pub(super) fn new(threads: usize) -> Self {
        let state = State {
            phase: Phase::Down("it is being opened".to_owned()),
            generation: 0,
            queue: VecDeque::new(),
            readers: Vec::new(),
            busy: 0,
        };
        Self { threads, state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() }
    }

    /// How many readers it needs of an engine.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// The opening whose readers serve now; another one after each [`Pool::bring_up`] and [`Pool::take_down`].
    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Queues a read. Dropped unanswered once the pool is closed.
    pub(super) fn push(&self, read: Read) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Closed) {
            state.queue.push_back(read);
            self.work.notify_one();
        }
    }

    /// Begins to serve from the readers of a newly opened engine.
    pub(super) fn bring_up(&self, readers: Vec<R>) {
        let mut state = self.state.lock();
        state.phase = Phase::Up;
        state.generation += 1;
        state.readers = readers;
        self.work.notify_all();
    }

    /// Drops all readers, those in use when they are done, but does not wait longer than `patience` for them.
    pub(super) fn take_down(&self, reason: &str, patience: Duration) {
        let mut state = self.state.lock();
        state.phase = Phase::Down(reason.to_owned());
        state.generation += 1;
        let readers = std::mem::take(&mut state.readers);
        self.work.notify_all();
        MutexGuard::unlocked(&mut state, || drop(guarded(|| drop(readers))));
        self.wait(&mut state, patience, |state| state.busy == 0);
    }

    /// Lets the reads that wait finish, drops all readers and ends the threads.
    pub(super) fn close(&self, patience: Duration) {
        let mut state = self.state.lock();
        self.wait(&mut state, patience, |state| state.busy == 0 && state.queue.is_empty());
        state.phase = Phase::Closed;
        let readers = std::mem::take(&mut state.readers);
        self.work.notify_all();
        MutexGuard::unlocked(&mut state, || drop(guarded(|| drop(readers))));
        self.wait(&mut state, patience, |state| state.busy == 0);
    }

    fn wait(
        &self,
        state: &mut MutexGuard<'_, State<R>>,
        patience: Duration,
        reached: impl Fn(&State<R>) -> bool,
    ) {
        let until = Instant::now() + patience;
        while !reached(state) && !self.done.wait_until(state, until).timed_out() {}
    }

    /// The life of a thread. `failed` hears of a reader that is broken or panicked.
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
                        read.ask.refuse(StorageError::Unavailable { reason: reason.clone() });
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
        let taken: Vec<Read> = state.queue.drain(..count).collect();
        let generation = state.generation;
        state.busy += 1;
        let outcome = MutexGuard::unlocked(state, || {
            guarded(|| taken.into_iter().try_for_each(|read| read.ask.answer(&mut reader)))
                .unwrap_or_else(|panicked| Err(panicked.into()))
                .map_err(|source| failed(FailedRead { generation, source }))
        });
        // One that failed is not used again: the writer has heard of it and will open the engine anew.
        if outcome.is_ok() && state.generation == generation && !matches!(state.phase, Phase::Closed) {
            state.readers.push(reader);
        } else {
            MutexGuard::unlocked(state, || drop(guarded(|| drop(reader))));
        }
        state.busy -= 1;
        self.done.notify_all();
    }
}
