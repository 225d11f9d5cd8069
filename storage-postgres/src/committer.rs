//! The task that commits: it gathers what is queued, and commits it as one transaction on a connection of its own.
//!
//! What the server refuses as a whole is tried batch by batch, so that a batch fails alone. Where somebody else was in
//! the way it is tried again for a while. When the connection breaks in the middle of a commit, the task connects
//! anew and looks what became of it; only where that is not to be learnt in time, callers get `Indeterminate`.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Condition, Durability, Space};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use crate::connection::Connection;
use crate::error::{Class, Failure};
use crate::group::Verdict;
use crate::request::{Commit, Reply, Request, Sync};
use crate::schema::Schema;
use crate::server::Servers;
use crate::transaction::{Outcome, Transaction, find_out};
use crate::writer::{RENEWAL, Writer};

/// How many batches are committed as one at most.
const GROUP_BATCHES: usize = 256;
/// From how many bytes on a group takes no more batches.
const GROUP_BYTES: usize = 16 * 1024 * 1024;
/// How long the last commit and the goodbye may take.
const CLOSE: Duration = Duration::from_secs(4);
/// The longest pause before a group is tried again that met somebody else's.
const AGAIN_MS: u64 = 20;
/// The pause between attempts to learn what became of a commit.
const LOOK: Duration = Duration::from_millis(100);

/// How a group ended that is not committed.
enum Failed {
    /// Nothing of it is applied, and none of the batches is to blame.
    Away(StorageError),
    /// Nothing of it is applied, because of one of the batches or of their number.
    Refused(StorageError),
    /// It is not known whether it is applied.
    Unknown(String, Vec<Verdict>),
}

/// What was queued when the task came to look.
#[derive(Default)]
struct Group {
    commits: Vec<Commit>,
    syncs: Vec<Sync>,
    close: Option<Reply>,
}

pub(crate) struct Committer {
    servers: Arc<Servers>,
    schema: Arc<Schema>,
    writer: Writer,
    connection: Option<Connection>,
    requests: UnboundedReceiver<Request>,
    /// The number of the last commit.
    number: i64,
    /// Something was committed since the last commit that was made durable.
    unsynced: bool,
    /// Another process has claimed the schema.
    lost: bool,
    /// Held until the task ends.
    _lock: Option<File>,
}

impl Committer {
    pub(crate) fn new(
        servers: Arc<Servers>,
        schema: Arc<Schema>,
        writer: Writer,
        connection: Connection,
        requests: UnboundedReceiver<Request>,
        lock: Option<File>,
    ) -> Self {
        let connection = Some(connection);
        Self {
            servers,
            schema,
            writer,
            connection,
            requests,
            number: 0,
            unsynced: false,
            lost: false,
            _lock: lock,
        }
    }

    /// The life of the task: ends with a close, or when the storage is gone.
    pub(crate) async fn run(mut self) {
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                request = self.requests.recv() => request,
                _ = renewal.tick(), if self.writer.is_owner() => {
                    self.renew().await;
                    continue;
                }
            };
            let Some(first) = first else { break };
            let Group { commits, syncs, close } = self.gather(first);
            self.serve(commits, syncs).await;
            if let Some(reply) = close {
                // Callers behind it see that nobody takes their requests.
                self.requests.close();
                let outcome = self.finish().await;
                drop(self);
                let _ = reply.send(outcome);
                return;
            }
        }
        if let Err(error) = self.finish().await {
            tracing::warn!(storage = "postgres", %error, "the database was left without a goodbye");
        }
    }

    fn gather(&mut self, first: Request) -> Group {
        let mut group = Group::default();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Commit(commit) => {
                    if commit.turn.take() {
                        bytes += commit.batch.size();
                        group.commits.push(commit);
                    }
                }
                Request::Sync(sync) => {
                    if sync.turn.take() {
                        group.syncs.push(sync);
                    }
                }
                Request::Close(reply) => {
                    group.close = Some(reply);
                    break;
                }
            }
            let full = group.commits.len() >= GROUP_BATCHES || bytes >= GROUP_BYTES;
            next = if full { None } else { self.requests.try_recv().ok() };
        }
        group
    }

    /// Commits a group and answers everybody in it. Gives the reason where the server is away.
    async fn serve(&mut self, commits: Vec<Commit>, syncs: Vec<Sync>) -> Option<String> {
        if commits.is_empty() && syncs.is_empty() {
            return None;
        }
        let alone = commits.len() + syncs.len() == 1;
        match self.commit(&commits, !syncs.is_empty()).await {
            Ok(verdicts) => {
                for (commit, verdict) in commits.into_iter().zip(verdicts) {
                    let applied = verdict == Verdict::Applied;
                    let _ = commit.reply.send(if applied { Ok(()) } else { Err(StorageError::Conflict) });
                }
                for sync in syncs {
                    let _ = sync.reply.send(Ok(()));
                }
                None
            }
            Err(Failed::Refused(error)) if alone => {
                let replies = commits.into_iter().map(|commit| commit.reply);
                for reply in replies.chain(syncs.into_iter().map(|sync| sync.reply)) {
                    let _ = reply.send(Err(copy(&error)));
                }
                None
            }
            Err(Failed::Refused(error)) => {
                tracing::debug!(%error, batches = commits.len(), "a group was refused; one after the other");
                let mut away: Option<String> = None;
                for commit in commits {
                    match &away {
                        None => away = Box::pin(self.serve(vec![commit], Vec::new())).await,
                        // Nothing of it was sent, and each would wait as long as the one before.
                        Some(reason) => _ = commit.reply.send(Err(unavailable(reason))),
                    }
                }
                for sync in syncs {
                    match &away {
                        None => away = Box::pin(self.serve(Vec::new(), vec![sync])).await,
                        Some(reason) => _ = sync.reply.send(Err(unavailable(reason))),
                    }
                }
                away
            }
            Err(Failed::Away(error)) => {
                let replies = commits.into_iter().map(|commit| commit.reply);
                for reply in replies.chain(syncs.into_iter().map(|sync| sync.reply)) {
                    let _ = reply.send(Err(copy(&error)));
                }
                Some(error.to_string())
            }
            Err(Failed::Unknown(reason, verdicts)) => {
                for (commit, verdict) in commits.into_iter().zip(verdicts) {
                    let _ = commit.reply.send(Err(match verdict {
                        Verdict::Applied => StorageError::Indeterminate { source: reason.clone().into() },
                        Verdict::Conflict => StorageError::Conflict,
                        // Only if the ones before it are applied.
                        Verdict::ConflictInGroup => unavailable(&reason),
                    }));
                }
                for sync in syncs {
                    let _ = sync.reply.send(Err(unavailable(&reason)));
                }
                Some(reason)
            }
        }
    }

    /// Commits the batches as one.
    async fn commit(&mut self, commits: &[Commit], sync: bool) -> Result<Vec<Verdict>, Failed> {
        let batches: Vec<&Batch> = commits.iter().map(|commit| &commit.batch).collect();
        let strongest = commits.iter().map(|commit| commit.durability).max();
        let durability = if sync { Durability::Durable } else { strongest.unwrap_or(Durability::Buffered) };
        let mut spaces = BTreeSet::new();
        for batch in &batches {
            spaces.extend(spaces_of(batch));
        }
        let deadline = Instant::now() + self.servers.patience;
        // A connection that was there before may have ended unnoticed; one that is new is not tried twice.
        let mut may_be_stale = self.connection.is_some();
        loop {
            let connection = self.connected().await.map_err(Failed::Away)?;
            let outcome = match make_tables(&self.schema, &connection, &spaces).await {
                Err(failure) => Outcome::Failed(failure),
                Ok(()) => {
                    self.number += 1;
                    let transaction = Transaction {
                        schema: &self.schema,
                        writer: &self.writer,
                        number: self.number,
                        batches: &batches,
                        durability,
                        sync,
                    };
                    transaction.run(&connection).await
                }
            };
            self.connection = Some(connection);
            match outcome {
                Outcome::Done(verdicts) => {
                    let applied = verdicts.contains(&Verdict::Applied);
                    self.unsynced = match durability {
                        Durability::Durable if applied || sync => false,
                        Durability::Durable => self.unsynced,
                        Durability::Buffered => self.unsynced || applied,
                    };
                    return Ok(verdicts);
                }
                Outcome::NoWriter => self.sign_on_again().await.map_err(Failed::Away)?,
                Outcome::Failed(failure) => match failure.class() {
                    Class::Lost => {
                        self.connection = None;
                        if !std::mem::take(&mut may_be_stale) || matches!(failure, Failure::Silent(_)) {
                            return Err(Failed::Away(failure.explain("commit")));
                        }
                    }
                    Class::Again if Instant::now() < deadline => {
                        tracing::debug!(%failure, "another process was in the way; the group is tried again");
                        sleep(Duration::from_millis(rand::random_range(1..=AGAIN_MS))).await;
                    }
                    _ => {
                        return Err(match failure.explain("commit") {
                            // One by one they would only wait one after the other.
                            error @ StorageError::Unavailable { .. } => Failed::Away(error),
                            error => Failed::Refused(error),
                        });
                    }
                },
                Outcome::Unknown(failure, verdicts) => {
                    self.connection = None;
                    match self.settle(durability).await {
                        Ok(true) => {
                            self.unsynced |= durability == Durability::Buffered;
                            return Ok(verdicts);
                        }
                        Ok(false) => return Err(Failed::Away(failure.explain("commit"))),
                        Err(error) => {
                            let reason = format!("{failure}; and afterwards: {error}");
                            return Err(Failed::Unknown(reason, verdicts));
                        }
                    }
                }
            }
        }
    }

    /// What became of the last commit. Waits for the server to come back, not for ever.
    async fn settle(&mut self, durability: Durability) -> Result<bool, StorageError> {
        let deadline = Instant::now() + self.servers.patience;
        let mut reason = "the server did not come back".to_owned();
        loop {
            let found = async {
                let connection = self.servers.connect().await?;
                let applied = find_out(&connection, &self.writer, self.number, durability).await?;
                Ok((connection, applied))
            };
            match timeout_at(deadline, found).await {
                Ok(Ok((connection, applied))) => {
                    tracing::info!(
                        applied,
                        "a connection broke in the middle of a commit, which was looked up"
                    );
                    self.connection = Some(connection);
                    return Ok(applied);
                }
                Ok(Err(StorageError::Unavailable { reason: latest })) => reason = latest,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StorageError::Unavailable { reason }),
            }
            sleep(LOOK).await;
        }
    }

    /// The connection, made anew where it has ended. Whoever takes it puts it back if it is of use any longer.
    async fn connected(&mut self) -> Result<Connection, StorageError> {
        if self.lost {
            return Err(StorageError::Locked { path: self.schema.place.clone().into() });
        }
        match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => Ok(connection),
            None => self.servers.connect().await,
        }
    }

    /// After the row of this writer was found gone.
    async fn sign_on_again(&mut self) -> Result<(), StorageError> {
        // Another process may have changed everything meanwhile that an owner believes to know.
        self.lost = self.writer.is_owner();
        let connection = self.connected().await?;
        self.writer.sign_on(&connection, &self.schema).await?;
        self.connection = Some(connection);
        Ok(())
    }

    async fn renew(&mut self) {
        let Ok(connection) = self.connected().await else { return };
        match self.writer.renew(&connection).await {
            Ok(ours) => {
                self.lost = !ours;
                self.connection = Some(connection);
            }
            Err(failure) => tracing::debug!(%failure, "the claim to the database could not be renewed"),
        }
    }

    /// Makes everything durable and signs off.
    async fn finish(&mut self) -> Result<(), StorageError> {
        if self.lost {
            return Ok(());
        }
        let end = async {
            if self.unsynced
                && let Err(Failed::Away(error) | Failed::Refused(error)) = self.commit(&[], true).await
            {
                return Err(error);
            }
            // Nothing is lost without it; whoever comes next may have to wait.
            if let Ok(connection) = self.connected().await
                && let Err(failure) = self.writer.sign_off(&connection).await
            {
                tracing::debug!(%failure, "no goodbye to the database");
            }
            Ok(())
        };
        let late =
            || StorageError::Unavailable { reason: format!("the server did not answer within {CLOSE:?}") };
        timeout(CLOSE, end).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn make_tables(
    schema: &Schema,
    connection: &Connection,
    spaces: &BTreeSet<Space>,
) -> Result<(), Failure> {
    for space in spaces {
        schema.make_sure(connection, *space).await?;
    }
    Ok(())
}

fn spaces_of(batch: &Batch) -> impl Iterator<Item = Space> {
    let conditions = batch.conditions.iter().map(|condition| match condition {
        Condition::Absent(space, _) | Condition::Equals(space, _, _) => *space,
    });
    conditions.chain(batch.writes.iter().map(|write| write.target().0))
}

fn unavailable(reason: &str) -> StorageError {
    StorageError::Unavailable { reason: reason.to_owned() }
}

/// The same error for another caller.
fn copy(error: &StorageError) -> StorageError {
    match error {
        StorageError::Unavailable { reason } => StorageError::Unavailable { reason: reason.clone() },
        StorageError::Locked { path } => StorageError::Locked { path: path.clone() },
        StorageError::Full { source } => StorageError::Full { source: source.to_string().into() },
        other => StorageError::backend("commit", other.to_string()),
    }
}
