//! The writer thread, which owns the engine and collects queued requests into groups.
//!
//! ```text
//!            opened          failed commit or sync, broken reader, panic
//! (start) ------------> Up ---------------------------------------------> Down
//!                        ^                                                  | delay (doubles)
//!                        +------------------- opened ----------------------+
//! ```
//! In state `Down`, commits and syncs fail with `Unavailable`. A close is accepted in both states.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::group::{Commit, Failure, commit_group};
use super::guarded::guarded;
use super::pool::{FailedRead, Pool};
use super::settings::EmbeddedSettings;
use crate::runtime::backoff::Backoff;
use crate::storage::engine::Engine;
use crate::storage::error::{Source, StorageError};
use crate::storage::value::Limits;

/// A request to the writer thread.
pub(super) enum Request {
    Commit(Commit),
    /// A reader failed or panicked.
    Failed(FailedRead),
    /// The last request.
    Close(Sender<Result<(), StorageError>>),
}

/// Opens the engine, also after each failure.
pub(super) type Opener<E> = Arc<dyn Fn() -> Result<E, StorageError> + Send + std::marker::Sync>;

/// An engine with the reader of the writer thread and those of the reader threads.
struct Opened<E: Engine> {
    engine: E,
    reader: E::Reader,
    readers: Vec<E::Reader>,
}

/// The phase of a reopening.
enum Reopening<E: Engine> {
    /// The failed engine is being dropped.
    Dropping(Receiver<()>),
    /// The delay between two attempts.
    Waiting,
    Opening(Receiver<Result<Opened<E>, StorageError>>),
}

enum State<E: Engine> {
    Up { engine: E, reader: E::Reader },
    Down { reason: String, check_at: Instant, reopening: Reopening<E> },
}

/// The interval at which the writer polls the threads that drop and open engines. An engine may hang there, and callers must
/// get replies.
const POLL: Duration = Duration::from_millis(5);

/// The queued requests that are served together.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    failed: Option<FailedRead>,
    close: Option<Sender<Result<(), StorageError>>>,
}

pub(super) struct Writer<E: Engine> {
    settings: EmbeddedSettings,
    opener: Opener<E>,
    requests: Receiver<Request>,
    pool: Arc<Pool<E::Reader>>,
    state: State<E>,
    /// The delays before the attempts to reopen.
    backoff: Backoff,
    /// The time of the last successful opening, until the engine fails.
    open_since: Option<Instant>,
}

impl<E: Engine> Writer<E> {
    /// Opens the engine the first time.
    pub(super) fn start(
        settings: EmbeddedSettings,
        opener: Opener<E>,
        requests: Receiver<Request>,
        pool: Arc<Pool<E::Reader>>,
    ) -> Result<(Self, Limits), StorageError> {
        let Opened { engine, reader, readers } = open(&opener, pool.threads())?;
        pool.bring_up(readers);
        let limits =
            guarded(|| engine.limits()).map_err(|panicked| StorageError::backend("open", panicked))?;
        let backoff = Backoff::new(settings.reopen_first, settings.reopen_longest);
        let (state, open_since) = (State::Up { engine, reader }, Some(Instant::now()));
        Ok((Self { settings, opener, requests, pool, state, backoff, open_since }, limits))
    }

    /// Runs the thread until a close or until the storage is dropped.
    pub(super) fn run(mut self) {
        loop {
            let first = match &self.state {
                State::Up { .. } => self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                State::Down { check_at, .. } => {
                    match check_at.checked_duration_since(Instant::now()) {
                        Some(wait) if !wait.is_zero() => self.requests.recv_timeout(wait),
                        // Checked before requests, which may arrive without a break.
                        _ => Err(RecvTimeoutError::Timeout),
                    }
                }
            };
            let group = match first {
                Ok(request) => self.gather(request),
                Err(RecvTimeoutError::Timeout) => {
                    self.reopen();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => Group::default(),
            };
            let Group { commits, failed, close } = group;
            // An empty group: the storage was dropped.
            let last = close.is_some() || (commits.is_empty() && failed.is_none());
            self.serve(commits);
            // A failure of an earlier opening has been handled.
            if let Some(FailedRead { generation, source }) = failed
                && generation == self.pool.generation()
            {
                self.fail(source);
            }
            if last {
                let outcome = self.shut_down();
                if let Some(done) = close {
                    let _ = done.send(outcome);
                }
                return;
            }
        }
    }

    /// Collects queued requests up to the limits of a group.
    fn gather(&self, first: Request) -> Group {
        let mut group = Group::default();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(commit) => {
                    bytes += commit.batch.size();
                    group.commits.push(commit);
                }
                Request::Failed(failed) => group.failed = Some(failed),
                Request::Close(done) => group.close = Some(done),
            }
            let full =
                group.commits.len() >= self.settings.group_batches || bytes >= self.settings.group_bytes;
            if full || group.close.is_some() || group.failed.is_some() {
                break;
            }
            next = self.requests.try_recv().ok();
        }
        group
    }

    fn serve(&mut self, commits: Vec<Commit>) {
        let State::Up { engine, reader } = &mut self.state else { return self.refuse(commits) };
        if let Err(Failure { source, replies, commits }) = commit_group(engine, reader, commits) {
            self.fail(source);
            for (reply, error) in replies {
                let _ = reply.send(Err(error));
            }
            self.refuse(commits);
        }
    }

    fn refuse(&self, commits: Vec<Commit>) {
        let State::Down { reason, .. } = &self.state else { return };
        for commit in commits {
            let _ = commit.reply.send(Err(StorageError::Unavailable { reason: reason.clone() }));
        }
    }

    /// Drops the engine and schedules a reopening.
    fn fail(&mut self, source: Source) {
        if matches!(self.state, State::Down { .. }) {
            return;
        }
        let reason = format!("the engine failed and is being reopened ({source})");
        tracing::warn!(storage = self.settings.name, error = %source, "storage failed, reopening");
        self.pool.take_down(&reason, self.settings.close_timeout);
        let (dropped, dropping) = channel();
        let uptime = self.open_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let check_at = Instant::now() + self.backoff.next_delay_after(uptime);
        let down = State::Down { reason, check_at, reopening: Reopening::Dropping(dropping) };
        let failed = std::mem::replace(&mut self.state, down);
        self.on_thread("drop", move || {
            let _ = guarded(|| drop(failed));
            let _ = dropped.send(());
        });
    }

    /// Runs a function that may hang on a new thread. If no thread can be started, the function is dropped.
    fn on_thread(&self, purpose: &str, run: impl FnOnce() + Send + 'static) {
        let name = format!("{}-{purpose}", self.settings.name);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(run) {
            tracing::warn!(%error, purpose, "cannot start a thread for the failed storage");
        }
    }

    /// Advances the reopening.
    fn reopen(&mut self) {
        let State::Down { reason, check_at, reopening } = &mut self.state else { return };
        *check_at = Instant::now() + POLL;
        let outcome = match reopening {
            Reopening::Dropping(dropped) => match dropped.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(()) | Err(TryRecvError::Disconnected) => None,
            },
            Reopening::Waiting => None,
            Reopening::Opening(opened) => match opened.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(outcome) => Some(outcome),
                Err(TryRecvError::Disconnected) => {
                    Some(Err(StorageError::backend("reopen", "cannot start a thread")))
                }
            },
        };
        match outcome {
            None => {
                let (opened, opening) = channel();
                *reopening = Reopening::Opening(opening);
                let (opener, readers) = (self.opener.clone(), self.pool.threads());
                self.on_thread("open", move || {
                    // If the storage was closed meanwhile, this drops the engine.
                    let _ = opened.send(open(&opener, readers));
                });
            }
            Some(Ok(Opened { engine, reader, readers })) => {
                tracing::info!(storage = self.settings.name, "storage recovered");
                self.pool.bring_up(readers);
                self.state = State::Up { engine, reader };
                self.open_since = Some(Instant::now());
            }
            Some(Err(error)) => {
                tracing::warn!(storage = self.settings.name, %error, "storage reopen failed");
                *reason = format!("reopen failed ({error})");
                *check_at = Instant::now() + self.backoff.next_delay();
                *reopening = Reopening::Waiting;
                self.pool.take_down(reason, Duration::ZERO);
            }
        }
    }

    fn shut_down(self) -> Result<(), StorageError> {
        self.pool.close(self.settings.close_timeout / 2);
        match self.state {
            State::Up { engine, reader } => guarded(move || {
                drop(reader);
                engine.close()
            })
            .unwrap_or_else(|panicked| Err(StorageError::backend("close", panicked))),
            State::Down { reason, .. } => Err(StorageError::Unavailable { reason }),
        }
    }
}

/// Opens the engine and creates its readers.
fn open<E: Engine>(opener: &Opener<E>, threads: usize) -> Result<Opened<E>, StorageError> {
    guarded(|| {
        let engine = opener()?;
        let reader = engine.reader()?;
        let readers = (0..threads).map(|_| engine.reader()).collect::<Result<_, _>>()?;
        Ok(Opened { engine, reader, readers })
    })
    .unwrap_or_else(|panicked| Err(StorageError::backend("open", panicked)))
}
