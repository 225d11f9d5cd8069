//! The transaction of a group of batches.
//!
//! A transaction needs two round trips and a flush of the server. The first round trip locks and reads the rows of the group,
//! the second one writes and commits. An existing key is locked by its row. A key that must be absent is inserted, which
//! prevents a concurrent insertion. So the conditions still hold at the commit, at every isolation level. `SERIALIZABLE` is not
//! used, because it locks whole index pages, so that writers of different keys conflict. At levels above `READ COMMITTED` the
//! server rejects more transactions, which are retried.
//!
//! Deadlocks are avoided by a lock order. First, existing rows are locked in the order of spaces and keys, each with its final
//! strength: exclusive if the row is written, shared if only a condition reads it. Then, absent keys are inserted in the same
//! order. A transaction that inserts therefore only waits for others that insert, and only for keys greater than its own. If a
//! concurrent change breaks this order, the server reports it, and the transaction is retried.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::{Batch, Durability, Key, Space, StorageError};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::connection::{BEGIN_BUFFERED, Connection, Step, key_and_value, pipelined};
use crate::error::{Class, Failure};
use crate::group::{Access, Existing, SpaceWrites, Verdict, decide};
use crate::schema::Schema;
use crate::writer::Writer;

/// The maximum number of statements that lock the rows of one space.
const RUNS: usize = 8;
/// The approximate maximum size in bytes of the writes of one statement.
const STATEMENT_BYTES: usize = 2 * 1024 * 1024;

/// The outcome of a transaction.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Committed, or nothing to commit.
    Done(Vec<Verdict>),
    /// Not applied.
    Failed(Failure),
    /// The connection failed or timed out during the commit.
    Unknown(Failure, Vec<Verdict>),
    /// Not applied, because the row of the writer was removed or taken over.
    NotRegistered,
}

/// A group of batches and its commit options.
pub(crate) struct Transaction<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) writer: &'a Writer,
    /// The number of the commit, unique for the writer.
    pub(crate) number: i64,
    pub(crate) batches: &'a [&'a Batch],
    /// The keys that the batches access.
    pub(crate) accesses: &'a BTreeMap<Space, BTreeMap<Key, Access>>,
    pub(crate) durability: Durability,
    /// How long a buffered commit waits for row locks. The holder may wait for a replica, and later commits must not wait for
    /// it.
    pub(crate) lock_timeout: Duration,
}

impl Transaction<'_> {
    /// Runs the transaction. Afterwards the connection has no open transaction, or is lost or abandoned.
    pub(crate) async fn run(&self, connection: &Connection) -> Outcome {
        let guard = connection.guard();
        let outcome = self.attempt(connection).await;
        guard.disarm();
        if matches!(outcome, Outcome::Unknown(..)) {
            connection.abandon();
        }
        outcome
    }

    async fn attempt(&self, connection: &Connection) -> Outcome {
        let decision = match self.lock_and_read(connection).await {
            Ok(Some(existing)) => decide(self.batches.iter().copied(), &existing),
            Ok(None) => return self.end_without_commit(connection, Outcome::NotRegistered).await,
            Err(failure) => return self.end_without_commit(connection, Outcome::Failed(failure)).await,
        };
        // A durable batch without writes makes earlier commits durable.
        let sync = self.durability == Durability::Durable && decision.verdicts.contains(&Verdict::Applied);
        if decision.writes.is_empty() && !sync {
            return self.end_without_commit(connection, Outcome::Done(decision.verdicts)).await;
        }
        let calls: Vec<Call<'_>> = decision
            .writes
            .iter()
            .flat_map(|(space, writes)| calls_of(self.schema, *space, writes))
            .collect();
        let mut sql = vec![self.writer.record_commit()];
        sql.extend(calls.iter().map(|call| call.sql.clone()));
        match connection.prepare_all(&sql).await {
            Ok(statements) => self.commit(connection, &statements, &calls, decision.verdicts).await,
            Err(failure) => self.end_without_commit(connection, Outcome::Failed(failure)).await,
        }
    }

    /// Begins the transaction, locks the rows and reads them. Returns `None` if the writer is not registered.
    async fn lock_and_read(&self, connection: &Connection) -> Result<Option<Existing>, Failure> {
        let runs: Vec<Run<'_>> =
            self.accesses.iter().flat_map(|(space, keys)| runs_of(*space, keys)).collect();
        let mut sql = vec![self.writer.lock_row()];
        sql.extend(runs.iter().map(|run| run.sql(self.schema)));
        // Before the transaction: a rejected statement would leave it open.
        let statements = connection.prepare_all(&sql).await?;
        let (name, session) = self.writer.parameters();
        let begin = self.begin();
        let begin = async { connection.step_run(&begin).await.map(|_| Vec::new()) };
        let mut steps: Vec<Step<'_, Vec<tokio_postgres::Row>>> = vec![Box::pin(begin)];
        steps.push(connection.step_query(&statements[0], vec![name, session]));
        for (statement, run) in statements[1..].iter().zip(&runs) {
            steps.push(connection.step_query(statement, run.parameters()));
        }
        let mut answers = connection.with_timeout(pipelined(steps)).await?.into_iter();
        // In order: the first error is the cause of the following ones.
        answers.next().transpose().map_err(Failure::Server)?;
        let own_row = answers.next().transpose().map_err(Failure::Server)?.unwrap_or_default();
        let mut existing = Existing::new();
        for (run, rows) in runs.iter().zip(answers) {
            for row in &rows.map_err(Failure::Server)? {
                let (key, value) = key_and_value::<Option<&[u8]>>(row)?;
                // Only valid keys were queried.
                if let Ok(key) = Key::new(Bytes::copy_from_slice(key)) {
                    existing.insert((run.space, key), value.map(Bytes::copy_from_slice));
                }
            }
        }
        Ok(Writer::last_commit(&own_row).map(|_| existing))
    }

    /// Writes and commits. The first statement records the commit, the others are those of `calls`.
    async fn commit(
        &self,
        connection: &Connection,
        statements: &[Statement],
        calls: &[Call<'_>],
        verdicts: Vec<Verdict>,
    ) -> Outcome {
        let (name, session) = self.writer.parameters();
        let mut steps = vec![connection.step_execute(&statements[0], vec![name, session, &self.number])];
        for (call, statement) in calls.iter().zip(&statements[1..]) {
            let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&call.keys];
            if let Some(values) = &call.values {
                parameters.push(values);
            }
            steps.push(connection.step_execute(statement, parameters));
        }
        // After an error the server rolls back instead.
        steps.push(connection.step_run("COMMIT"));
        let answers = match connection.with_timeout(pipelined(steps)).await {
            Ok(answers) => answers,
            Err(failure) => return Outcome::Unknown(failure, verdicts),
        };
        match answers.into_iter().find_map(Result::err).map(Failure::Server) {
            None => Outcome::Done(verdicts),
            Some(failure) if failure.is_answer() => Outcome::Failed(failure),
            Some(failure) => Outcome::Unknown(failure, verdicts),
        }
    }

    /// Returns the statement that begins the transaction. Commits of an owner are always durable: an owner caches its records,
    /// for example the stored pieces, and might not notice that a crash of the server lost them.
    fn begin(&self) -> String {
        match self.durability {
            Durability::Buffered if !self.writer.is_owner() => {
                format!("{BEGIN_BUFFERED}; SET LOCAL lock_timeout = {}", self.lock_timeout.as_millis().max(1))
            }
            _ => "BEGIN".to_owned(),
        }
    }

    /// Rolls back and returns `outcome`.
    async fn end_without_commit(&self, connection: &Connection, outcome: Outcome) -> Outcome {
        if matches!(&outcome, Outcome::Failed(failure) if failure.class() == Class::ConnectionLost) {
            return outcome;
        }
        connection.roll_back().await;
        outcome
    }
}

/// Consecutive keys of a space that one statement locks.
struct Run<'a> {
    space: Space,
    keys: Vec<&'a [u8]>,
    /// Whether a condition reads the value, for each key.
    read: Vec<bool>,
    /// Whether any of the keys is written, so all locks are exclusive.
    written: bool,
}

impl Run<'_> {
    fn sql(&self, schema: &Schema) -> String {
        if self.written { schema.select_for_update(self.space) } else { schema.select_for_share(self.space) }
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        if self.written { vec![&self.keys, &self.read] } else { vec![&self.keys] }
    }
}

/// Splits the keys of a space into runs with the same lock strength. The last of [`RUNS`] runs takes all remaining keys.
fn runs_of(space: Space, keys: &BTreeMap<Key, Access>) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (key, Access { read, written }) in keys {
        let differs = runs.last().is_none_or(|run| run.written != *written);
        if differs && runs.len() < RUNS {
            runs.push(Run { space, keys: Vec::new(), read: Vec::new(), written: *written });
        }
        if let Some(run) = runs.last_mut() {
            run.keys.push(key.as_bytes());
            run.read.push(*read);
            run.written |= *written;
        }
    }
    runs
}

/// A statement that writes, with its parameters.
struct Call<'a> {
    sql: String,
    keys: Vec<&'a [u8]>,
    values: Option<Vec<&'a [u8]>>,
}

/// Returns the statements that write to a space, split by size.
fn calls_of<'a>(schema: &Schema, space: Space, writes: &'a SpaceWrites) -> Vec<Call<'a>> {
    let mut calls = Vec::new();
    for (sql, entries) in [(schema.insert(space), &writes.inserts), (schema.put(space), &writes.puts)] {
        for part in parts(entries, |(key, value)| key.as_bytes().len() + value.len()) {
            calls.push(Call {
                sql: sql.clone(),
                keys: part.iter().map(|(key, _)| key.as_bytes()).collect(),
                values: Some(part.iter().map(|(_, value)| &value[..]).collect()),
            });
        }
    }
    for part in parts(&writes.deletes, |key| key.as_bytes().len()) {
        let keys = part.iter().map(Key::as_bytes).collect();
        calls.push(Call { sql: schema.delete(space), keys, values: None });
    }
    calls
}

/// Splits a list into parts of about [`STATEMENT_BYTES`].
fn parts<T>(entries: &[T], size: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, entry) in entries.iter().enumerate() {
        bytes += size(entry);
        if bytes >= STATEMENT_BYTES {
            parts.push(&entries[start..=index]);
            (start, bytes) = (index + 1, 0);
        }
    }
    if start < entries.len() {
        parts.push(&entries[start..]);
    }
    parts
}

/// Determines on a new connection whether a commit was applied. Waits until the old session has released the row of the writer,
/// so the answer is final.
pub(crate) async fn was_applied(
    connection: &Connection,
    writer: &Writer,
    number: i64,
    durability: Durability,
) -> Result<bool, StorageError> {
    const ACTION: &str = "look up the outcome of a commit";
    let failed = |failure: Failure| failure.explain(ACTION);
    let guard = connection.guard();
    connection.run("BEGIN").await.map_err(failed)?;
    let (name, session) = writer.parameters();
    let rows = connection.query(&writer.lock_row(), &[name, session]).await.map_err(failed)?;
    let Some(last) = Writer::last_commit(&rows) else {
        return Err(StorageError::backend(ACTION, "the row of the writer was removed"));
    };
    let applied = last == number;
    if applied && (durability == Durability::Durable || writer.is_owner()) {
        // The commit may have been interrupted while it waited for the disk or a replica. This commit waits again.
        connection.execute(&writer.record_commit(), &[name, session, &number]).await.map_err(failed)?;
        connection.run("COMMIT").await.map_err(failed)?;
    } else {
        // A commit would wait for a replica, because the query took a row lock.
        connection.roll_back().await;
    }
    guard.disarm();
    Ok(applied)
}
