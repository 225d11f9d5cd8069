//! A transaction.
//!
//! A transaction needs two round trips and a flush of the server. The first round trip locks and reads the rows, the second one
//! writes and commits. An existing key is locked by its row. A key that must be absent is inserted, which prevents a concurrent
//! insertion. So the conditions still hold at the commit, at every isolation level. `SERIALIZABLE` is not used, because it locks
//! whole index pages, so that writers of different keys conflict. At levels above `READ COMMITTED` the server refuses more
//! transactions, which are retried.
//!
//! Deadlocks are avoided by a lock order. First, existing rows are locked in the order of spaces and keys, each with its final
//! strength: exclusive if the row is written, shared if only a condition reads it. Then, absent keys are inserted in the same
//! order. A transaction that inserts therefore only waits for others that insert, and only for keys greater than its own. If a
//! concurrent change breaks this order, the server reports it, and the transaction is retried.

use std::collections::BTreeMap;

use bytes::Bytes;
use enjambre_core::storage::queued::{TransactError, Transacted, Transaction};
use enjambre_core::{Durability, Space};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use crate::connection::{Connection, Step, key_and_value, pipelined};
use crate::error::{Class, Failure};
use crate::schema::Schema;

/// The maximum number of statements that lock the rows of one space.
const RUNS: usize = 8;
/// The approximate maximum size in bytes of the writes of one statement.
const STATEMENT_BYTES: usize = 2 * 1024 * 1024;

/// The access of a transaction to a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Access<'a> {
    /// The value that a condition requires, or `Some(None)` if it requires that the key is absent.
    required: Option<Option<&'a Bytes>>,
    /// The new value, or `Some(None)` for a deletion.
    written: Option<Option<&'a Bytes>>,
    /// Whether the key exists.
    exists: bool,
    /// Whether the key has the required value.
    equals: bool,
}

impl Access<'_> {
    fn holds(&self) -> bool {
        match self.required {
            None => true,
            Some(None) => !self.exists,
            Some(Some(_)) => self.equals,
        }
    }
}

type Keys<'a> = BTreeMap<&'a [u8], Access<'a>>;
type Accesses<'a> = BTreeMap<Space, Keys<'a>>;

fn accesses(transaction: &Transaction) -> Accesses<'_> {
    let mut accesses = Accesses::new();
    for condition in &transaction.conditions {
        let (space, key) = condition.target();
        let access = accesses.entry(space).or_default().entry(key.as_bytes()).or_default();
        access.required = Some(condition.value());
    }
    for write in &transaction.writes {
        let (space, key) = write.target();
        accesses.entry(space).or_default().entry(key.as_bytes()).or_default().written = Some(write.value());
    }
    accesses
}

/// Runs a transaction. Afterwards the connection has no open transaction, or is lost or abandoned.
pub(crate) async fn run(
    schema: &Schema,
    connection: &Connection,
    transaction: &Transaction,
) -> Result<Transacted, TransactError> {
    let mut accesses = accesses(transaction);
    if let Err(failure) = schema.ensure_tables(connection, accesses.keys()).await {
        return not_applied(failure);
    }
    // In case that the future is dropped.
    connection.set_abandoned(true);
    let (outcome, is_lost) = match attempt(schema, connection, transaction, &mut accesses).await {
        Ok(outcome) => (Ok(outcome), false),
        Err(Error::AtCommit(failure)) if !failure.is_answer() => {
            (Err(TransactError::Unknown(failure.into())), true)
        }
        // After an error at the commit the server has rolled back.
        Err(Error::AtCommit(failure)) => (not_applied(failure), false),
        Err(Error::BeforeCommit(failure)) => {
            let is_lost =
                failure.class() == Class::ConnectionLost || connection.run("ROLLBACK").await.is_err();
            (not_applied(failure), is_lost)
        }
    };
    connection.set_abandoned(is_lost);
    outcome
}

fn not_applied(failure: Failure) -> Result<Transacted, TransactError> {
    match failure.class() {
        // A concurrent transaction interfered.
        Class::Retryable => Ok(Transacted::Refused),
        Class::LockTimeout => Err(TransactError::Contended(failure.explain("commit"))),
        Class::ConnectionLost | Class::Rejected => Err(failure.explain("commit").into()),
    }
}

/// The failure of a transaction.
enum Error {
    /// Not applied.
    BeforeCommit(Failure),
    /// Not applied if the server has answered.
    AtCommit(Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::BeforeCommit(failure)
    }
}

async fn attempt(
    schema: &Schema,
    connection: &Connection,
    transaction: &Transaction,
    accesses: &mut Accesses<'_>,
) -> Result<Transacted, Error> {
    let begin = match transaction.durability {
        Durability::Durable => "BEGIN".to_owned(),
        Durability::Buffered => {
            let timeout = transaction.lock_timeout.as_millis().max(1);
            // The commit waits neither for the disk nor for a replica.
            format!("BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = {timeout}")
        }
    };
    lock_and_read(schema, connection, &begin, accesses).await?;
    if !accesses.values().flat_map(BTreeMap::values).all(Access::holds) {
        connection.run("ROLLBACK").await?;
        return Ok(Transacted::Refused);
    }
    let calls: Vec<Call<'_>> =
        accesses.iter().flat_map(|(space, keys)| calls_of(schema, *space, keys)).collect();
    let sql: Vec<String> = calls.iter().map(|call| call.sql.clone()).collect();
    let statements = connection.prepare_all(&sql).await?;
    commit(connection, &statements, &calls).await.map_err(Error::AtCommit)?;
    Ok(Transacted::Applied)
}

/// Begins the transaction, locks the rows and reads them.
async fn lock_and_read(
    schema: &Schema,
    connection: &Connection,
    begin: &str,
    accesses: &mut Accesses<'_>,
) -> Result<(), Failure> {
    let runs: Vec<Run<'_>> = accesses.iter().flat_map(|(space, keys)| runs_of(*space, keys)).collect();
    let sql: Vec<String> = runs.iter().map(|run| run.sql(schema)).collect();
    // Before the transaction: a rejected statement would leave it open.
    let statements = connection.prepare_all(&sql).await?;
    let begin = async { connection.step_run(begin).await.map(|_| Vec::new()) };
    let mut steps: Vec<Step<'_, Vec<Row>>> = vec![Box::pin(begin)];
    for (statement, run) in statements.iter().zip(&runs) {
        steps.push(connection.step_query(statement, run.parameters()));
    }
    let mut answers = connection.with_timeout(pipelined(steps)).await?.into_iter();
    // In order: the first error is the cause of the following ones.
    answers.next().transpose().map_err(Failure::Server)?;
    let spaces: Vec<Space> = runs.iter().map(|run| run.space).collect();
    for (space, rows) in spaces.into_iter().zip(answers) {
        let Some(keys) = accesses.get_mut(&space) else { continue };
        for row in &rows.map_err(Failure::Server)? {
            let (key, value) = key_and_value::<Option<&[u8]>>(row)?;
            if let Some(access) = keys.get_mut(key) {
                access.exists = true;
                access.equals = value == access.required.flatten().map(|required| &required[..]);
            }
        }
    }
    Ok(())
}

/// Writes and commits.
async fn commit(
    connection: &Connection,
    statements: &[Statement],
    calls: &[Call<'_>],
) -> Result<(), Failure> {
    let mut steps = Vec::with_capacity(calls.len() + 1);
    for (call, statement) in calls.iter().zip(statements) {
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&call.keys];
        if let Some(values) = &call.values {
            parameters.push(values);
        }
        steps.push(connection.step_execute(statement, parameters));
    }
    // After an error the server rolls back instead.
    steps.push(connection.step_run("COMMIT"));
    let answers = connection.with_timeout(pipelined(steps)).await?;
    answers.into_iter().find_map(Result::err).map_or(Ok(()), |error| Err(Failure::Server(error)))
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
fn runs_of<'a>(space: Space, keys: &Keys<'a>) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (key, access) in keys {
        let written = access.written.is_some();
        let differs = runs.last().is_none_or(|run| run.written != written);
        if differs && runs.len() < RUNS {
            runs.push(Run { space, keys: Vec::new(), read: Vec::new(), written });
        }
        if let Some(run) = runs.last_mut() {
            run.keys.push(key);
            run.read.push(access.required.is_some());
            run.written |= written;
        }
    }
    runs
}

/// A statement that writes, with its parameters.
#[derive(Debug)]
struct Call<'a> {
    sql: String,
    keys: Vec<&'a [u8]>,
    values: Option<Vec<&'a [u8]>>,
}

/// Returns the statements that write to a space, split by size. Absent keys that must stay absent are inserted and deleted again,
/// which prevents a concurrent insertion.
fn calls_of<'a>(schema: &Schema, space: Space, keys: &Keys<'a>) -> Vec<Call<'a>> {
    let (mut inserts, mut puts, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
    for (key, access) in keys {
        let must_stay_absent = access.required == Some(None) && access.written.is_none();
        match access.written.or(must_stay_absent.then_some(None)) {
            Some(Some(value)) if access.exists => puts.push((*key, &value[..])),
            Some(Some(value)) => inserts.push((*key, &value[..])),
            Some(None) => {
                if !access.exists {
                    inserts.push((*key, &[][..]));
                }
                deletes.push(*key);
            }
            None => {}
        }
    }
    let mut calls = Vec::new();
    for (sql, entries) in [(schema.insert(space), &inserts), (schema.put(space), &puts)] {
        for part in parts(entries, |(key, value)| key.len() + value.len()) {
            let (keys, values) = part.iter().copied().unzip();
            calls.push(Call { sql: sql.clone(), keys, values: Some(values) });
        }
    }
    for part in parts(&deletes, |key| key.len()) {
        calls.push(Call { sql: schema.delete(space), keys: part.to_vec(), values: None });
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

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::Role;

    const SPACE: Space = Space::new("a");

    fn access<'a>(
        exists: bool,
        required: Option<Option<&'a Bytes>>,
        written: Option<Option<&'a Bytes>>,
    ) -> Access<'a> {
        Access { required, written, exists, equals: false }
    }

    /// Whether each call updates existing rows, and its keys and values.
    fn calls(keys: &[(&'static str, Access<'_>)]) -> Vec<(bool, String)> {
        let keys = keys.iter().map(|(key, access)| (key.as_bytes(), *access)).collect();
        let schema = Schema::new("s".to_owned(), Role::Records, "d");
        let text = |call: &Call<'_>| {
            let values = call.values.iter().flatten().map(|value| String::from_utf8_lossy(value));
            let keys = call.keys.iter().map(|key| String::from_utf8_lossy(key)).collect::<Vec<_>>().join(" ");
            format!("{keys} = {}", values.collect::<Vec<_>>().join(" "))
        };
        let calls = calls_of(&schema, SPACE, &keys);
        calls.iter().map(|call| (call.sql.contains("ON CONFLICT"), text(call))).collect()
    }

    #[test]
    fn absent_key_is_inserted_and_deleted_if_it_must_stay_absent() {
        let (one, two) = (Bytes::from("1"), Bytes::from("2"));
        let found = calls(&[
            ("deleted", access(true, None, Some(None))),
            ("deleted-absent", access(false, None, Some(None))),
            ("new", access(false, Some(None), Some(Some(&one)))),
            ("only-read", access(true, Some(Some(&one)), None)),
            ("required-absent", access(false, Some(None), None)),
            ("there", access(true, Some(Some(&one)), Some(Some(&two)))),
        ]);
        let expected = [
            (false, "deleted-absent new required-absent =  1 "),
            (true, "there = 2"),
            (false, "deleted deleted-absent required-absent = "),
        ];
        assert_eq!(found, expected.map(|(upsert, text)| (upsert, text.to_owned())));
    }
}
