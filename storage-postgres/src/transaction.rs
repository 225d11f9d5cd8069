//! One group of batches as one transaction.
//!
//! Two round trips and the server's flush: the first locks and reads what the batches have to do with, the second writes
//! and commits. Locks, not the `SERIALIZABLE` level: that watches whole pages of an index, so that processes which write
//! different keys would be in each other's way. A key that is there is locked by its row. A key that must be absent
//! is inserted, which nobody else can until the transaction ends. So the conditions still hold at the commit, on every
//! isolation level; a server that runs on a stronger one than `READ COMMITTED` refuses more, and that is tried again.
//!
//! Nobody waits for somebody who waits. First all rows that are there are locked, in the order of spaces and keys, each as
//! firmly as it will be needed: what is written alone, what a condition asks for and nobody writes together with
//! others. Then what is not there is inserted, in that order again. A transaction that inserts waits for others that
//! insert only, and for greater keys than it has inserted; whatever else it writes is locked already. Where somebody
//! came in between all the same, the server says so, and it is done again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, Space};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::connection::{BEGIN_BUFFERED, Connection, Step, pipelined};
use crate::error::{Class, Failure};
use crate::group::{Found, SpaceWrites, Use, Verdict, decide, used};
use crate::schema::Schema;
use crate::writer::{Row, Writer};

/// Into how many statements the locks of one space are cut at most.
const RUNS: usize = 8;
/// About how many bytes one statement writes.
const STATEMENT_BYTES: usize = 2 * 1024 * 1024;

/// How a transaction ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is committed, or there was nothing to commit.
    Done(Vec<Verdict>),
    /// Nothing of it is or will be applied.
    Failed(Failure),
    /// The connection broke, or the server was silent, when the commit was on its way.
    Unknown(Failure, Vec<Verdict>),
    /// This process is no longer a writer of the schema. Nothing was applied.
    NoWriter,
}

/// What is to be committed, and as which commit of the writer.
pub(crate) struct Transaction<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) writer: &'a Writer,
    pub(crate) number: i64,
    pub(crate) batches: &'a [&'a Batch],
    pub(crate) durability: Durability,
    /// How long what need not be durable waits for somebody who holds what it needs. That may be a transaction which waits
    /// for a replica, and the commits behind this one have nothing to do with it.
    pub(crate) patience: Duration,
    /// Whether something is to be committed also where the batches write nothing, because everything before is to be
    /// made durable.
    pub(crate) sync: bool,
}

impl Transaction<'_> {
    /// Runs it. Whatever comes of it, nothing is left open on the connection, or the connection is lost or abandoned.
    pub(crate) async fn run(&self, connection: &Connection) -> Outcome {
        let begun = connection.begun();
        let outcome = self.attempt(connection).await;
        begun.has_ended();
        if matches!(outcome, Outcome::Unknown(..)) {
            connection.abandon();
        }
        outcome
    }

    async fn attempt(&self, connection: &Connection) -> Outcome {
        let used = used(self.batches.iter().copied());
        let decision = match self.look(connection, &used).await {
            Ok(Some(found)) => decide(self.batches.iter().copied(), &found),
            Ok(None) => return self.give_up(connection, Outcome::NoWriter).await,
            Err(failure) => return self.give_up(connection, Outcome::Failed(failure)).await,
        };
        let applied = decision.verdicts.contains(&Verdict::Applied);
        let sync = self.sync || (applied && self.durability == Durability::Durable);
        if decision.writes.is_empty() && !sync {
            return self.give_up(connection, Outcome::Done(decision.verdicts)).await;
        }
        let mut calls = Vec::new();
        for (space, writes) in &decision.writes {
            calls.extend(calls_of(self.schema, *space, writes));
        }
        let sql: Vec<String> = calls.iter().map(|call| call.sql.clone()).collect();
        let statements = match connection.prepare_all(&sql).await {
            Ok(statements) => statements,
            Err(failure) => return self.give_up(connection, Outcome::Failed(failure)).await,
        };
        let note = match connection.prepared(&self.writer.note()).await {
            Ok(note) => note,
            Err(failure) => return self.give_up(connection, Outcome::Failed(failure)).await,
        };
        self.commit(connection, &note, &calls, &statements, decision.verdicts).await
    }

    /// Begins, and reads under locks. `None` where this process is no writer any more.
    async fn look(
        &self,
        connection: &Connection,
        used: &BTreeMap<Space, BTreeMap<Key, Use>>,
    ) -> Result<Option<Found>, Failure> {
        let runs: Vec<Run<'_>> = used.iter().flat_map(|(space, keys)| runs_of(*space, keys)).collect();
        let mut sql = vec![self.writer.look()];
        sql.extend(runs.iter().map(|run| run.sql(self.schema)));
        // Before the transaction, so that one of them that is refused leaves nothing open.
        let statements = connection.prepare_all(&sql).await?;
        let (name, session) = self.writer.parameters();
        let begin = self.begin();
        let begin = async { connection.step_run(&begin).await.map(|_| Vec::new()) };
        let mut steps: Vec<Step<'_, Vec<tokio_postgres::Row>>> = vec![Box::pin(begin)];
        steps.push(connection.step_query(&statements[0], vec![name, session]));
        for (statement, run) in statements[1..].iter().zip(&runs) {
            steps.push(connection.step_query(statement, run.parameters()));
        }
        let mut answers = connection.within(pipelined(steps)).await?.into_iter();
        // The first error is the cause of those behind it.
        answers.next().transpose().map_err(Failure::Server)?;
        let own = answers.next().transpose().map_err(Failure::Server)?.unwrap_or_default();
        let mut found = Found::new();
        for (run, rows) in runs.iter().zip(answers) {
            for row in rows.map_err(Failure::Server)? {
                let (key, value): (&[u8], Option<&[u8]>) =
                    (row.try_get(0).map_err(Failure::Server)?, row.try_get(1).map_err(Failure::Server)?);
                // A key that cannot be ours was not asked for.
                if let Ok(key) = Key::new(Bytes::copy_from_slice(key)) {
                    found.insert((run.space, key), value.map(Bytes::copy_from_slice));
                }
            }
        }
        Ok(match Writer::row(&own) {
            Row::Ours(_) => Some(found),
            Row::Gone => None,
        })
    }

    async fn commit(
        &self,
        connection: &Connection,
        note: &Statement,
        calls: &[Call<'_>],
        statements: &[Statement],
        verdicts: Vec<Verdict>,
    ) -> Outcome {
        let (name, session) = self.writer.parameters();
        let mut steps = vec![connection.step_execute(note, vec![name, session, &self.number])];
        for (call, statement) in calls.iter().zip(statements) {
            let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&call.keys];
            if let Some(values) = &call.values {
                parameters.push(values);
            }
            steps.push(connection.step_execute(statement, parameters));
        }
        // Where one before it fails, the server makes a rollback of it.
        steps.push(connection.step_run("COMMIT"));
        let answers = match connection.within(pipelined(steps)).await {
            Ok(answers) => answers,
            Err(silent) => return Outcome::Unknown(silent, verdicts),
        };
        match answers.into_iter().find_map(Result::err).map(Failure::Server) {
            None => Outcome::Done(verdicts),
            Some(failure) if failure.is_answer() => Outcome::Failed(failure),
            Some(failure) => Outcome::Unknown(failure, verdicts),
        }
    }

    /// How it begins. An owner relies on it that what was committed is there until it is told otherwise: it marks pieces as
    /// held once it has synced. So nothing of its commits may go in a crash of the server, which it might not notice.
    fn begin(&self) -> String {
        match self.durability {
            Durability::Buffered if !self.writer.is_owner() => {
                format!("{BEGIN_BUFFERED}; SET LOCAL lock_timeout = {}", self.patience.as_millis().max(1))
            }
            _ => "BEGIN".to_owned(),
        }
    }

    /// Ends the transaction without a commit.
    async fn give_up(&self, connection: &Connection, outcome: Outcome) -> Outcome {
        if matches!(&outcome, Outcome::Failed(failure) if failure.class() == Class::Lost) {
            return outcome;
        }
        connection.roll_back().await;
        outcome
    }
}

/// Keys of a space, one after the other, that are locked by one statement.
struct Run<'a> {
    space: Space,
    keys: Vec<&'a [u8]>,
    /// Whether the value of each is wanted.
    asked: Vec<bool>,
    /// Whether one of them is written.
    written: bool,
}

impl Run<'_> {
    fn sql(&self, schema: &Schema) -> String {
        if self.written { schema.lock(self.space) } else { schema.share(self.space) }
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        if self.written { vec![&self.keys, &self.asked] } else { vec![&self.keys] }
    }
}

/// The keys of a space in their order, cut wherever they are to be locked in another way. Where that would be too often,
/// the rest is locked as what is written is.
fn runs_of(space: Space, keys: &BTreeMap<Key, Use>) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (key, Use { asked, written }) in keys {
        let cut = runs.last().is_none_or(|run| run.written != *written);
        if cut && runs.len() < RUNS {
            runs.push(Run { space, keys: Vec::new(), asked: Vec::new(), written: *written });
        }
        if let Some(run) = runs.last_mut() {
            run.keys.push(key.as_bytes());
            run.asked.push(*asked);
            run.written |= *written;
        }
    }
    runs
}

/// One statement that writes.
struct Call<'a> {
    sql: String,
    keys: Vec<&'a [u8]>,
    values: Option<Vec<&'a [u8]>>,
}

/// The statements for a space, none of them very large.
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

/// Cuts a list into parts of about [`STATEMENT_BYTES`].
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

/// Finds out on a new connection what became of a commit: whether it came to be. Waits until the old session has let
/// go of the writer's row, so that the answer is final.
pub(crate) async fn find_out(
    connection: &Connection,
    writer: &Writer,
    number: i64,
    durability: Durability,
) -> Result<bool, StorageError> {
    let failed = |failure: Failure| failure.explain("find out what became of a commit");
    let begun = connection.begun();
    connection.run("BEGIN").await.map_err(failed)?;
    let (name, session) = writer.parameters();
    let rows = connection.query(&writer.look(), &[name, session]).await.map_err(failed)?;
    let applied = match Writer::row(&rows) {
        Row::Ours(commits) => commits == number,
        Row::Gone => {
            return Err(StorageError::backend("find out what became of a commit", "its note is gone"));
        }
    };
    if applied && (durability == Durability::Durable || writer.is_owner()) {
        // It may have been cut off while it waited for the disk or for a replica. This waits for the same.
        connection.execute(&writer.note(), &[name, session, &number]).await.map_err(failed)?;
        connection.run("COMMIT").await.map_err(failed)?;
    } else {
        // To look was to lock, and even a commit of that would wait for a replica.
        connection.roll_back().await;
    }
    begun.has_ended();
    Ok(applied)
}
