//! The writer thread: it owns the engine, gathers what is queued into groups, and answers every caller.
//!
//! ```text
//!            opened          failed commit or sync, broken reader, panic
//! (start) ------------> Up ---------------------------------------------> Down
//!                        ^                                                  | pause (doubles)
//!                        +------------------- opened ----------------------+
//! ```
//! While it is down, commits and syncs are answered `Unavailable`. A close is taken in either state.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::group::{Failure, commit_group};
use super::pool::{FailedRead, Pool};
use super::request::{Commit, Request, Sync};
use super::settings::EmbeddedSettings;
use super::shared_error::guarded;
use crate::storage::engine::Engine;
use crate::storage::error::{Source, StorageError};
use crate::storage::value::Limits;

/// Opens the engine; called again after each failure.
pub(super) type Opener<E> = Arc<dyn Fn() -> Result<E, StorageError> + Send + std::marker::Sync>;

/// An engine with the readers it starts with: the writer's own, and those of the reader threads.
struct Opened<E: Engine> {
    engine: E,
    reader: E::Reader,
    readers: Vec<E::Reader>,
}

/// How far the reopening has come.
enum Reopening<E: Engine> {
    /// The failed engine is on its way out.
    Dropping(Receiver<()>),
    /// Between two attempts.
    Pausing,
    Opening(Receiver<Result<Opened<E>, StorageError>>),
}

enum State<E: Engine> {
    Up { engine: E, reader: E::Reader },
    Down { reason: String, look_at: Instant, reopening: Reopening<E> },
}

/// How often the writer looks whether an engine has gone or come, which happens on threads of their own: an engine
/// may hang there, and callers must have their answers.
const LOOK: Duration = Duration::from_millis(5);

/// What was queued when the writer came to look.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
    failed: Option<FailedRead>,
    close: Option<Sender<Result<(), StorageError>>>,
}

pub(super) struct Writer<E: Engine> {
    settings: EmbeddedSettings,
    opener: Opener<E>,
    requests: Receiver<Request>,
    pool: Arc<Pool<E::Reader>>,
    state: State<E>,
    /// The pauses before the attempts to reopen.
    backoff: Backoff,
}

impl<E: Engine> Writer<E> {
    /// Opens the engine for the first time.
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
        let mut backoff = Backoff::new(settings.reopen_first, settings.reopen_longest);
        backoff.opened(Instant::now());
        Ok((Self { settings, opener, requests, pool, state: State::Up { engine, reader }, backoff }, limits))
    }

    /// The life of the thread: ends with a close, or when the storage is gone.
    pub(super) fn run(mut self) {
        loop {
            let first = match &self.state {
                State::Up { .. } => self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                State::Down { look_at, .. } => {
                    match look_at.checked_duration_since(Instant::now()) {
                        Some(wait) if !wait.is_zero() => self.requests.recv_timeout(wait),
                        // Even where requests never cease to come.
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
            let last = group.close.is_some() || first_is_gone(&group);
            let Group { commits, syncs, failed, close } = group;
            self.serve(commits, syncs);
            // One of an earlier opening is out of use already.
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

    /// Takes what else is queued, as far as it fits into a group.
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
                Request::Sync(sync) => group.syncs.push(sync),
                Request::Failed(failed) => group.failed = Some(failed),
                Request::Close(done) => group.close = Some(done),
            }
            let full = group.commits.len() + group.syncs.len() >= self.settings.group_batches
                || bytes >= self.settings.group_bytes;
            if full || group.close.is_some() || group.failed.is_some() {
                break;
            }
            next = self.requests.try_recv().ok();
        }
        group
    }

    fn serve(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) {
        let State::Up { engine, reader } = &mut self.state else {
            self.refuse(commits, syncs);
            return;
        };
        if let Err(Failure { source, answers, commits, syncs }) = commit_group(engine, reader, commits, syncs)
        {
            self.fail(source);
            for (reply, error) in answers {
                let _ = reply.send(Err(error));
            }
            self.refuse(commits, syncs);
        }
    }

    fn refuse(&self, commits: Vec<Commit>, syncs: Vec<Sync>) {
        let State::Down { reason, .. } = &self.state else { return };
        let replies =
            commits.into_iter().map(|commit| commit.reply).chain(syncs.into_iter().map(|sync| sync.reply));
        for reply in replies {
            let _ = reply.send(Err(StorageError::Unavailable { reason: reason.clone() }));
        }
    }

    /// Drops the engine, to be opened anew after a pause.
    fn fail(&mut self, source: Source) {
        if matches!(self.state, State::Down { .. }) {
            return;
        }
        let reason = format!("it failed and is being reopened ({source})");
        tracing::warn!(storage = self.settings.name, error = %source, "the storage failed; it is reopened");
        self.pool.take_down(&reason, self.settings.close_timeout);
        let (gone, dropping) = channel();
        let now = Instant::now();
        let look_at = now + self.backoff.pause(now);
        let down = State::Down { reason, look_at, reopening: Reopening::Dropping(dropping) };
        let failed = std::mem::replace(&mut self.state, down);
        self.on_a_thread("drop", move || {
            let _ = guarded(|| drop(failed));
            let _ = gone.send(());
        });
    }

    /// Runs what may hang. Where there is no thread, it is not run, and what it owns is dropped.
    fn on_a_thread(&self, purpose: &str, run: impl FnOnce() + Send + 'static) {
        let name = format!("{}-{purpose}", self.settings.name);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(run) {
            tracing::warn!(%error, purpose, "no thread for the failed storage");
        }
    }

    /// Takes the next step towards an open engine.
    fn reopen(&mut self) {
        let State::Down { reason, look_at, reopening } = &mut self.state else { return };
        *look_at = Instant::now() + LOOK;
        let outcome = match reopening {
            Reopening::Dropping(gone) => match gone.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(()) | Err(TryRecvError::Disconnected) => None,
            },
            Reopening::Pausing => None,
            Reopening::Opening(opened) => match opened.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(outcome) => Some(outcome),
                Err(TryRecvError::Disconnected) => {
                    Some(Err(StorageError::backend("reopen", "there is no thread for it")))
                }
            },
        };
        match outcome {
            None => {
                let (opened, opening) = channel();
                *reopening = Reopening::Opening(opening);
                let (opener, readers) = (self.opener.clone(), self.pool.threads());
                self.on_a_thread("open", move || {
                    // Where the storage was closed meanwhile, the engine is dropped here.
                    let _ = opened.send(open(&opener, readers));
                });
            }
            Some(Ok(Opened { engine, reader, readers })) => {
                tracing::info!(storage = self.settings.name, "the storage is open again");
                self.pool.bring_up(readers);
                self.state = State::Up { engine, reader };
                self.backoff.opened(Instant::now());
            }
            Some(Err(error)) => {
                tracing::warn!(storage = self.settings.name, %error, "the storage cannot be reopened yet");
                *reason = format!("it cannot be reopened yet ({error})");
                let now = Instant::now();
                *look_at = now + self.backoff.pause(now);
                *reopening = Reopening::Pausing;
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

/// Nothing was received: nobody can send any more.
fn first_is_gone(group: &Group) -> bool {
    group.commits.is_empty() && group.syncs.is_empty() && group.failed.is_none()
}

/// Opens the engine and makes its readers.
fn open<E: Engine>(opener: &Opener<E>, threads: usize) -> Result<Opened<E>, StorageError> {
    guarded(|| {
        let engine = opener()?;
        let reader = engine.reader()?;
        let readers = (0..threads).map(|_| engine.reader()).collect::<Result<_, _>>()?;
        Ok(Opened { engine, reader, readers })
    })
    .unwrap_or_else(|panicked| Err(StorageError::backend("open", panicked)))
}
