//! A commit lane: a writer with a connection, on which groups of batches are committed one after the other.
//!
//! A group is one transaction. It is retried for a limited time if a concurrent transaction interferes. If the connection fails
//! during a commit, the lane reconnects and looks up the outcome.

use std::sync::Arc;
use std::time::Duration;

use enjambre_core::model::time::human;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::{Batch, Durability, StorageError};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::connection::Connection;
use crate::error::{Class, Failure};
use crate::group::{Verdict, accesses};
use crate::schema::Schema;
use crate::server::Servers;
use crate::transaction::{Outcome, Transaction, was_applied};
use crate::writer::Writer;

/// The timeout of the last commit and the removal of the writer's row.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// The delays before a retry after a conflict with a concurrent transaction.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(5);
const MAX_RETRY_DELAY: Duration = Duration::from_millis(20);
/// The delays between attempts to look up the outcome of a commit.
const MIN_LOOKUP_DELAY: Duration = Duration::from_millis(50);
const MAX_LOOKUP_DELAY: Duration = Duration::from_millis(200);

/// The error of a group. Nothing is applied, except possibly for [`CommitError::Unknown`].
pub(crate) enum CommitError {
    /// The server is unavailable, whatever the batches.
    Unavailable(StorageError),
    /// The server rejected one of the batches or their total size.
    Rejected(StorageError),
    /// A concurrent transaction holds the lock of a row.
    LockTimeout(StorageError),
    /// The outcome is unknown, for the given reason. The verdicts are those of the batches if the group is applied.
    Unknown(String, Vec<Verdict>),
}

/// A commit lane.
pub(crate) struct Lane {
    servers: Arc<Servers>,
    schema: Arc<Schema>,
    writer: Writer,
    connection: Option<Connection>,
    /// The number of the last commit.
    number: i64,
    /// Whether commits since the last durable one may not be durable yet.
    unsynced: bool,
    /// Whether another process has taken over the schema.
    lost: bool,
}

impl Lane {
    /// A lane of a writer. A lane without a connection connects and registers its writer on first use.
    pub(crate) fn new(
        servers: Arc<Servers>,
        schema: Arc<Schema>,
        writer: Writer,
        connection: Option<Connection>,
    ) -> Self {
        Self { servers, schema, writer, connection, number: 0, unsynced: false, lost: false }
    }

    /// Returns a second lane, or `None` if the schema has an owner.
    pub(crate) fn second(&self) -> Option<Self> {
        (!self.is_owner()).then(|| {
            let writer = Writer::new(&self.schema, None);
            Self::new(self.servers.clone(), self.schema.clone(), writer, None)
        })
    }

    /// The time limit for the retries of a group.
    pub(crate) fn retry_timeout(&self) -> Duration {
        self.servers.statement_timeout
    }

    pub(crate) fn is_owner(&self) -> bool {
        self.writer.is_owner()
    }

    /// Commits the batches in one transaction. `lock_timeout` limits how long a buffered commit waits for row locks.
    pub(crate) async fn commit(
        &mut self,
        batches: &[&Batch],
        durability: Durability,
        lock_timeout: Duration,
    ) -> Result<Vec<Verdict>, CommitError> {
        let accesses = accesses(batches.iter().copied());
        let deadline = Instant::now() + self.retry_timeout();
        let mut backoff = Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        // An existing connection may have failed unnoticed, so it is replaced once. A failure of a new connection is final.
        let mut may_be_stale = self.connection.is_some();
        loop {
            let connection = self.take_connection().await.map_err(CommitError::Unavailable)?;
            let outcome = match self.schema.ensure_tables(&connection, accesses.keys()).await {
                Err(failure) => Outcome::Failed(failure),
                Ok(()) => {
                    self.number += 1;
                    let transaction = Transaction {
                        schema: &self.schema,
                        writer: &self.writer,
                        number: self.number,
                        batches,
                        accesses: &accesses,
                        durability,
                        lock_timeout,
                    };
                    transaction.run(&connection).await
                }
            };
            self.connection = Some(connection);
            match outcome {
                Outcome::Done(verdicts) => {
                    let applied = verdicts.contains(&Verdict::Applied);
                    self.unsynced = match durability {
                        Durability::Durable if applied => false,
                        Durability::Durable => self.unsynced,
                        Durability::Buffered => self.unsynced || applied,
                    };
                    return Ok(verdicts);
                }
                Outcome::NotRegistered => self.register_again().await.map_err(CommitError::Unavailable)?,
                Outcome::Failed(failure) => match failure.class() {
                    Class::ConnectionLost => {
                        self.connection = None;
                        if !std::mem::take(&mut may_be_stale) || matches!(failure, Failure::Timeout(_)) {
                            return Err(CommitError::Unavailable(failure.explain("commit")));
                        }
                    }
                    Class::Retryable if Instant::now() < deadline => {
                        tracing::debug!(%failure, "concurrent transaction, retrying commit");
                        sleep(backoff.next_jittered()).await;
                    }
                    Class::LockTimeout => return Err(CommitError::LockTimeout(failure.explain("commit"))),
                    _ => {
                        return Err(match failure.explain("commit") {
                            // Not `Rejected`: each batch of the group would fail in the same way.
                            error @ StorageError::Unavailable { .. } => CommitError::Unavailable(error),
                            error => CommitError::Rejected(error),
                        });
                    }
                },
                Outcome::Unknown(failure, verdicts) => {
                    // The drop cancels the transaction, which releases its locks.
                    self.connection = None;
                    match self.look_up_outcome(durability).await {
                        Ok(true) => {
                            self.unsynced |= durability == Durability::Buffered;
                            return Ok(verdicts);
                        }
                        Ok(false) => return Err(CommitError::Unavailable(failure.explain("commit"))),
                        Err(error) => {
                            self.replace_writer();
                            let reason = format!("{failure}; looking up the outcome failed: {error}");
                            return Err(CommitError::Unknown(reason, verdicts));
                        }
                    }
                }
            }
        }
    }

    /// Returns whether the last commit was applied. Waits for the server up to the retry timeout.
    async fn look_up_outcome(&mut self, durability: Durability) -> Result<bool, StorageError> {
        let deadline = Instant::now() + self.retry_timeout();
        let mut backoff = Backoff::new(MIN_LOOKUP_DELAY, MAX_LOOKUP_DELAY);
        let mut reason = "the server did not respond".to_owned();
        loop {
            let lookup = async {
                let connection = self.servers.connect().await?;
                let applied = was_applied(&connection, &self.writer, self.number, durability).await?;
                Ok((connection, applied))
            };
            match timeout_at(deadline, lookup).await {
                Ok(Ok((connection, applied))) => {
                    tracing::info!(applied, "connection lost during a commit, outcome looked up");
                    self.connection = Some(connection);
                    return Ok(applied);
                }
                Ok(Err(StorageError::Unavailable { reason: latest })) => reason = latest,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(StorageError::Unavailable { reason }),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Replaces the writer after an unknown outcome: the transaction may continue at the server and keep the writer's row locked.
    /// An owner has to wait for its row.
    fn replace_writer(&mut self) {
        if !self.writer.is_owner() {
            self.writer = Writer::new(&self.schema, None);
        }
    }

    /// Takes the connection, or reconnects if it is closed. The caller puts it back while it is usable.
    async fn take_connection(&mut self) -> Result<Connection, StorageError> {
        if self.lost {
            return Err(StorageError::Locked { path: self.schema.description.clone().into() });
        }
        match self.connection.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => Ok(connection),
            None => self.servers.connect().await,
        }
    }

    /// Registers the writer again after its row was removed. An owner stops instead, because another process may have changed
    /// the records that it caches.
    async fn register_again(&mut self) -> Result<(), StorageError> {
        self.lost = self.writer.is_owner();
        let connection = self.take_connection().await?;
        self.writer.register(&connection, &self.schema, self.servers.statement_timeout).await?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Renews the row of the owner.
    pub(crate) async fn renew(&mut self) {
        let Ok(connection) = self.take_connection().await else { return };
        match self.writer.renew(&connection).await {
            Ok(is_owned) => {
                self.lost = !is_owned;
                self.connection = Some(connection);
            }
            Err(failure) => tracing::debug!(%failure, "renewing the ownership of the schema failed"),
        }
    }

    /// Makes all commits durable and removes the row of the writer.
    pub(crate) async fn finish(&mut self) -> Result<(), StorageError> {
        let never_used = self.number == 0 && self.connection.is_none();
        if self.lost || never_used {
            return Ok(());
        }
        let end = async {
            if self.unsynced {
                match self.commit(&[&Batch::new()], Durability::Durable, CLOSE_TIMEOUT).await {
                    Ok(_) => {}
                    Err(
                        CommitError::Unavailable(error)
                        | CommitError::Rejected(error)
                        | CommitError::LockTimeout(error),
                    ) => return Err(error),
                    Err(CommitError::Unknown(reason, _)) => {
                        return Err(StorageError::Unavailable { reason });
                    }
                }
            }
            // Optional: without it, another data directory waits until the lease of the owner has expired.
            if let Ok(connection) = self.take_connection().await
                && let Err(failure) = self.writer.deregister(&connection).await
            {
                tracing::debug!(%failure, "removing the writer failed");
            }
            Ok(())
        };
        let late = || StorageError::Unavailable {
            reason: format!("the server did not answer within {}", human(CLOSE_TIMEOUT)),
        };
        timeout(CLOSE_TIMEOUT, end).await.unwrap_or_else(|_| Err(late()))
    }
}
