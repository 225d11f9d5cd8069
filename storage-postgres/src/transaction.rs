//! One group of batches as one transaction.
//!
//! Two round trips and the server's flush: the first locks and reads what the conditions ask for, the second writes and
//! commits. Locks, not the `SERIALIZABLE` level: that watches whole pages of an index, so that processes which write
//! different keys would be in each other's way. A key that is there is locked by its row. A key that must be absent
//! is inserted, which nobody else can until the transaction ends. So the conditions still hold at the commit, on every
//! isolation level; a server that runs on a stronger one than `READ COMMITTED` refuses more, and that is tried again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability, Key, Space};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use crate::connection::{Connection, Step, pipelined};
use crate::error::{Class, Failure};
use crate::group::{Found, SpaceWrites, Verdict, asked, decide};
use crate::schema::Schema;
use crate::writer::{Row, Writer};

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
    /// Whether something is to be committed also where the batches write nothing, because everything before is to be
    /// made durable.
    pub(crate) sync: bool,
}

impl Transaction<'_> {
    /// Runs it. Whatever comes of it, nothing is left open on the connection, or the connection is lost.
    pub(crate) async fn run(&self, connection: &Connection) -> Outcome {
        let asked = asked(self.batches.iter().copied());
        let decision = match self.look(connection, &asked).await {
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
        asked: &BTreeMap<Space, BTreeSet<Key>>,
    ) -> Result<Option<Found>, Failure> {
        let mut sql = vec![self.writer.look()];
        sql.extend(asked.keys().map(|space| self.schema.lock(*space)));
        // Before the transaction, so that one of them that is refused leaves nothing open.
        let statements = connection.prepare_all(&sql).await?;
        let keys: Vec<Vec<&[u8]>> =
            asked.values().map(|keys| keys.iter().map(Key::as_bytes).collect()).collect();
        let (name, session) = self.writer.parameters();
        let begin = begin(self.durability, self.writer.is_owner());
        let begin = async { connection.step_run(begin).await.map(|_| Vec::new()) };
        let mut steps: Vec<Step<'_, Vec<tokio_postgres::Row>>> = vec![Box::pin(begin)];
        steps.push(connection.step_query(&statements[0], vec![name, session]));
        for (statement, keys) in statements[1..].iter().zip(&keys) {
            steps.push(connection.step_query(statement, vec![keys]));
        }
        let mut answers = connection.within(pipelined(steps)).await?.into_iter();
        // The first error is the cause of those behind it.
        answers.next().transpose().map_err(Failure::Server)?;
        let own = answers.next().transpose().map_err(Failure::Server)?.unwrap_or_default();
        let mut found = Found::new();
        for (space, rows) in asked.keys().zip(answers) {
            for row in rows.map_err(Failure::Server)? {
                let (key, value): (&[u8], &[u8]) =
                    (row.try_get(0).map_err(Failure::Server)?, row.try_get(1).map_err(Failure::Server)?);
                // A key that cannot be ours was not asked for.
                if let Ok(key) = Key::new(Bytes::copy_from_slice(key)) {
                    found.insert((*space, key), Bytes::copy_from_slice(value));
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

    /// Ends the transaction without a commit.
    async fn give_up(&self, connection: &Connection, outcome: Outcome) -> Outcome {
        if matches!(&outcome, Outcome::Failed(failure) if failure.class() == Class::Lost) {
            return outcome;
        }
        connection.roll_back().await;
        outcome
    }
}

/// How a transaction begins. An owner relies on it that what was committed is there until it is told otherwise: it marks
/// pieces as held once it has synced. So nothing of its commits may go in a crash of the server, which it might not notice.
const fn begin(durability: Durability, by_owner: bool) -> &'static str {
    match durability {
        Durability::Buffered if !by_owner => "BEGIN; SET LOCAL synchronous_commit = off",
        _ => "BEGIN",
    }
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
    let valued = [(schema.insert(space), &writes.inserts), (schema.put(space), &writes.puts)];
    for (sql, entries) in valued {
        for part in parts(entries, |(key, value)| key.as_bytes().len() + value.len()) {
            calls.push(Call {
                sql: sql.clone(),
                keys: part.iter().map(|(key, _)| key.as_bytes()).collect(),
                values: Some(part.iter().map(|(_, value)| &value[..]).collect()),
            });
        }
    }
    let keyed = [(schema.insert(space), &writes.guards, true), (schema.delete(space), &writes.guards, false)];
    for (sql, keys, with_values) in keyed.into_iter().chain([(schema.delete(space), &writes.deletes, false)])
    {
        for part in parts(keys, |key| key.as_bytes().len()) {
            calls.push(Call {
                sql: sql.clone(),
                keys: part.iter().map(Key::as_bytes).collect(),
                values: with_values.then(|| vec![&[][..]; part.len()]),
            });
        }
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
    connection.run("BEGIN").await.map_err(failed)?;
    let (name, session) = writer.parameters();
    let rows = connection.query(&writer.look(), &[name, session]).await.map_err(failed)?;
    let applied = match Writer::row(&rows) {
        Row::Ours(commits) => commits == number,
        Row::Gone => {
            return Err(StorageError::backend("find out what became of a commit", "its note is gone"));
        }
    };
    if applied && durability == Durability::Durable {
        // It may have been cut off while it waited for the disk or for a replica. This waits for the same.
        connection.execute(&writer.note(), &[name, session, &number]).await.map_err(failed)?;
    }
    connection.run("COMMIT").await.map_err(failed)?;
    Ok(applied)
}
