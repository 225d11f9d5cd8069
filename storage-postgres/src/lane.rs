//! One way of a process to write to the schema: a row that says what it committed, a connection, and the last number.
//!
//! It commits a group of batches as one transaction. Where somebody else was in the way it is tried again for a while.
//! When the connection breaks in the middle of a commit, the lane connects anew and looks what became of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Condition, Durability, Space};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::connection::Connection;
use crate::error::{Class, Failure};
use crate::group::Verdict;
use crate::request::Commit;
use crate::schema::Schema;
use crate::server::Servers;
use crate::transaction::{Outcome, Transaction, find_out};
use crate::writer::Writer;

/// How long the last commit and the goodbye may take.
const CLOSE: Duration = Duration::from_secs(4);
/// The longest pause before a group is tried again that met somebody else's.
const AGAIN_MS: u64 = 20;
/// The pause between attempts to learn what became of a commit.
const LOOK: Duration = Duration::from_millis(100);

/// How a group ended that is not committed.
pub(crate) enum Failed {
    /// Nothing of it is applied, and none of the batches is to blame.
    Away(StorageError),
    /// Nothing of it is applied, because of one of the batches or of their number.
    Refused(StorageError),
    /// Nothing of it is applied, because somebody held what one of the batches needs.
    Held(StorageError),
    /// It is not known whether it is applied.
    Unknown(String, Vec<Verdict>),
}

/// A writer of the schema with its connection.
pub(crate) struct Lane {
    servers: Arc<Servers>,
    schema: Arc<Schema>,
    writer: Writer,
    connection: Option<Connection>,
    /// The number of the last commit.
    number: i64,
    /// Something was committed since the last commit that was made durable.
    unsynced: bool,
    /// Another process has claimed the schema.
    lost: bool,
}

impl Lane {
    /// A lane of this writer. Where it has a connection, the writer has signed on.
    pub(crate) fn new(
        servers: Arc<Servers>,
        schema: Arc<Schema>,
        writer: Writer,
        connection: Option<Connection>,
    ) -> Self {
        Self { servers, schema, writer, connection, number: 0, unsynced: false, lost: false }
    }

    /// Another one beside it, which connects and signs on when it is first used. None where there is but one writer.
    pub(crate) fn beside(&self) -> Option<Self> {
        (!self.is_owner()).then(|| {
            let writer = Writer::new(&self.schema, None);
            Self::new(self.servers.clone(), self.schema.clone(), writer, None)
        })
    }

    /// How long a group is tried.
    pub(crate) fn patience(&self) -> Duration {
        self.servers.patience
    }

    pub(crate) fn is_owner(&self) -> bool {
        self.writer.is_owner()
    }

    /// Commits the batches as one. `patience` is how long what need not be durable waits for what others hold.
    pub(crate) async fn commit(
        &mut self,
        commits: &[Commit],
        sync: bool,
        patience: Duration,
    ) -> Result<Vec<Verdict>, Failed> {
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
                        patience,
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
                    Class::Held => return Err(Failed::Held(failure.explain("commit"))),
                    _ => {
                        return Err(match failure.explain("commit") {
                            // One by one they would only wait one after the other.
                            error @ StorageError::Unavailable { .. } => Failed::Away(error),
                            error => Failed::Refused(error),
                        });
                    }
                },
                Outcome::Unknown(failure, verdicts) => {
                    // Dropped, so that the server gives up what it waits for, and what it holds meanwhile.
                    self.connection = None;
                    match self.settle(durability).await {
                        Ok(true) => {
                            self.unsynced |= durability == Durability::Buffered;
                            return Ok(verdicts);
                        }
                        Ok(false) => return Err(Failed::Away(failure.explain("commit"))),
                        Err(error) => {
                            self.begin_anew();
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

    /// After the outcome of a commit was not to be learnt: it may be under way at the server for as long as that likes, with
    /// the row of this writer. So the next commit makes a row of its own. An owner has only the one, and waits for it.
    fn begin_anew(&mut self) {
        if !self.writer.is_owner() {
            self.writer = Writer::new(&self.schema, None);
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
        self.writer.sign_on(&connection, &self.schema, self.servers.patience).await?;
        self.connection = Some(connection);
        Ok(())
    }

    pub(crate) async fn renew(&mut self) {
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
    pub(crate) async fn finish(&mut self) -> Result<(), StorageError> {
        let never_used = self.number == 0 && self.connection.is_none();
        if self.lost || never_used {
            return Ok(());
        }
        let end = async {
            if self.unsynced {
                match self.commit(&[], true, CLOSE).await {
                    Ok(_) => {}
                    Err(Failed::Away(error) | Failed::Refused(error) | Failed::Held(error)) => {
                        return Err(error);
                    }
                    Err(Failed::Unknown(reason, _)) => return Err(StorageError::Unavailable { reason }),
                }
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
