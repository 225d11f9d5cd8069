//! What a schema looks like: its mark with the format version, the processes that write to it, and a table for each space.
//!
//! A table for each space, not one for all: the server cleans up after changes table by table, and leases change all
//! the time while millions of claims lie still.

use std::collections::HashSet;
use std::ops::Bound;

use enjambre_core::storage::Role;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{KeyRange, Space};
use parking_lot::RwLock;
use tokio_postgres::error::SqlState;

use crate::connection::Connection;
use crate::error::Failure;

/// The version of the tables that this program writes.
pub(crate) const FORMAT: u64 = 1;
/// The longest name of a schema in the settings, in bytes. PostgreSQL cuts names after 63, and something is put behind it.
const MAX_NAME: usize = 32;
/// How often something is made anew that another process made at the same time.
const ATTEMPTS: usize = 20;

/// Whether the settings may name a schema so.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.starts_with("pg_")
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

const fn purpose(role: Role) -> &'static str {
    match role {
        Role::Records => "records",
        Role::Content => "content",
    }
}

/// A schema, and which of its tables are known to exist.
#[derive(Debug)]
pub(crate) struct Schema {
    /// The name, a checked identifier, which may be a word of SQL.
    name: String,
    role: Role,
    /// The schema and its database, for messages.
    pub(crate) place: String,
    known: RwLock<HashSet<Space>>,
}

impl Schema {
    pub(crate) fn new(name: String, role: Role, database: &str) -> Self {
        let place = format!("the schema {name} of the database {database}");
        Self { name, role, place, known: RwLock::default() }
    }

    /// A table that is not a space's.
    pub(crate) fn own_table(&self, name: &str) -> String {
        format!("\"{}\".enjambre_{name}", self.name)
    }

    /// The table of a space. The name of a space is a checked identifier, and the prefix keeps it off words of SQL.
    pub(crate) fn table(&self, space: Space) -> String {
        format!("\"{}\".space_{}", self.name, space.name())
    }

    /// Checks that the schema is ours and of a format that we know, or makes a new one ours. Any number of processes may
    /// do so at the same time.
    pub(crate) async fn prepare(&self, connection: &Connection) -> Result<(), StorageError> {
        let failed = |failure: Failure| failure.explain(&format!("open {}", self.place));
        let found = connection
            .query("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[&self.name])
            .await
            .map_err(failed)?;
        if found.is_empty() {
            self.make(connection, &format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", self.name))
                .await
                .map_err(failed)?;
        }
        let tables = self.tables(connection).await.map_err(failed)?;
        let marked = tables.iter().any(|table| table == "enjambre_format");
        if !marked && !tables.is_empty() {
            return Err(self.is_not_ours());
        }
        if !marked {
            let columns = "(only_one INT PRIMARY KEY, purpose TEXT NOT NULL, format BIGINT NOT NULL)";
            self.make_table(connection, &self.own_table("format"), columns).await.map_err(failed)?;
        }
        let select = format!("SELECT purpose, format FROM {}", self.own_table("format"));
        let mut rows = connection.query(&select, &[]).await.map_err(failed)?;
        if rows.is_empty() {
            let insert = format!(
                "INSERT INTO {} (only_one, purpose, format) VALUES (0, $1, $2) ON CONFLICT (only_one) DO NOTHING",
                self.own_table("format")
            );
            connection.execute(&insert, &[&purpose(self.role), &(FORMAT as i64)]).await.map_err(failed)?;
            rows = connection.query(&select, &[]).await.map_err(failed)?;
        }
        let row = rows
            .first()
            .and_then(|row| Some((row.try_get::<_, &str>(0).ok()?, row.try_get::<_, i64>(1).ok()?)));
        let Some((found_purpose, format)) = row else { return Err(self.is_not_ours()) };
        let format = u64::try_from(format).unwrap_or(u64::MAX);
        if format > FORMAT {
            return Err(StorageError::NewerFormat {
                path: self.place.clone().into(),
                found: format,
                supported: FORMAT,
            });
        }
        if found_purpose != purpose(self.role) {
            return Err(self.is_not_ours());
        }
        let columns = "(name TEXT PRIMARY KEY, folder TEXT NOT NULL, session TEXT NOT NULL, commits BIGINT NOT NULL, \
                       seen TIMESTAMPTZ NOT NULL)";
        if !tables.iter().any(|table| table == "enjambre_writers") {
            self.make_table(connection, &self.own_table("writers"), columns).await.map_err(failed)?;
        }
        let spaces = tables.iter().filter_map(|table| Space::parse(table.strip_prefix("space_")?));
        self.known.write().extend(spaces);
        Ok(())
    }

    fn is_not_ours(&self) -> StorageError {
        StorageError::corrupt(format!(
            "{} holds tables, but not those of Enjambre's {}; choose another schema",
            self.place,
            purpose(self.role)
        ))
    }

    async fn tables(&self, connection: &Connection) -> Result<Vec<String>, Failure> {
        let sql = "SELECT table_name::TEXT FROM information_schema.tables WHERE table_schema = $1";
        let rows = connection.query(sql, &[&self.name]).await?;
        Ok(rows.iter().filter_map(|row| row.try_get(0).ok()).collect())
    }

    /// Whether a space has a table. Where it was never written, by whatever process, it has none.
    pub(crate) async fn exists(&self, connection: &Connection, space: Space) -> Result<bool, Failure> {
        if self.known.read().contains(&space) {
            return Ok(true);
        }
        let sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = $1 AND table_name = $2";
        let table = format!("space_{}", space.name());
        let found = !connection.query(sql, &[&self.name, &table]).await?.is_empty();
        if found {
            self.known.write().insert(space);
        }
        Ok(found)
    }

    /// Makes the table of a space where it is missing. To be called outside of a transaction: a table that nothing is
    /// written to in the end does no harm.
    pub(crate) async fn make_sure(&self, connection: &Connection, space: Space) -> Result<(), Failure> {
        if self.exists(connection, space).await? {
            return Ok(());
        }
        self.make_table(connection, &self.table(space), "(key BYTEA PRIMARY KEY, value BYTEA NOT NULL)")
            .await?;
        if self.role == Role::Content {
            // Content does not get smaller by compression. A server that knows nothing of this stores it in its own way.
            let sql = format!("ALTER TABLE {} ALTER COLUMN value SET STORAGE EXTERNAL", self.table(space));
            match self.make(connection, &sql).await {
                Err(failure) if failure.is_answer() => tracing::debug!(%failure, "values may be compressed"),
                outcome => outcome?,
            }
        }
        self.known.write().insert(space);
        Ok(())
    }

    async fn make_table(&self, connection: &Connection, table: &str, columns: &str) -> Result<(), Failure> {
        self.make(connection, &format!("CREATE TABLE IF NOT EXISTS {table} {columns}")).await
    }

    /// `IF NOT EXISTS` does not wait for another process that makes the same thing: that one's success is our error.
    async fn make(&self, connection: &Connection, sql: &str) -> Result<(), Failure> {
        for _ in 1..ATTEMPTS {
            match connection.run(sql).await {
                Err(Failure::Server(error))
                    if error.code().is_some_and(|code| {
                        // The last one: two processes changed the same entry of the server's catalogue.
                        [
                            SqlState::UNIQUE_VIOLATION,
                            SqlState::DUPLICATE_TABLE,
                            SqlState::DUPLICATE_SCHEMA,
                            SqlState::DUPLICATE_OBJECT,
                            SqlState::T_R_SERIALIZATION_FAILURE,
                            SqlState::INTERNAL_ERROR,
                        ]
                        .contains(code)
                    }) => {}
                outcome => return outcome,
            }
            tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(1..20))).await;
        }
        connection.run(sql).await
    }

    /// Everything that one of several keys has.
    pub(crate) fn select(&self, space: Space) -> String {
        format!("SELECT key, value FROM {} WHERE key = ANY($1::BYTEA[])", self.table(space))
    }

    /// The same, and nobody else changes or removes them before the transaction ends.
    pub(crate) fn share(&self, space: Space) -> String {
        format!("{} ORDER BY key FOR SHARE", self.select(space))
    }

    /// Which of several keys are there, with the values of those for which $2 says so; and nobody else locks, changes or
    /// removes them before the transaction ends.
    pub(crate) fn lock(&self, space: Space) -> String {
        format!(
            "SELECT held.key, CASE WHEN used.asked THEN held.value END \
             FROM unnest($1::BYTEA[], $2::BOOLEAN[]) AS used (key, asked) \
             JOIN {} AS held ON held.key = used.key ORDER BY held.key FOR UPDATE OF held",
            self.table(space)
        )
    }

    /// Fails where one of the keys is there, also where another transaction is about to write it.
    pub(crate) fn insert(&self, space: Space) -> String {
        format!(
            "INSERT INTO {} (key, value) SELECT * FROM unnest($1::BYTEA[], $2::BYTEA[])",
            self.table(space)
        )
    }

    pub(crate) fn put(&self, space: Space) -> String {
        format!("{} ON CONFLICT (key) DO UPDATE SET value = excluded.value", self.insert(space))
    }

    pub(crate) fn delete(&self, space: Space) -> String {
        format!("DELETE FROM {} WHERE key = ANY($1::BYTEA[])", self.table(space))
    }

    /// The entries of a range: $1 and $2 are its bounds, of which those that it does not have are not looked at, $3 is the
    /// limit in entries and $4 that in bytes, which one entry may go beyond.
    pub(crate) fn scan(&self, space: Space, range: &KeyRange) -> String {
        let start = match range.start {
            Bound::Included(_) => "key >= $1::BYTEA",
            Bound::Excluded(_) => "key > $1::BYTEA",
            Bound::Unbounded => "$1::BYTEA IS NULL",
        };
        let end = match range.end {
            Bound::Included(_) => "key <= $2::BYTEA",
            Bound::Excluded(_) => "key < $2::BYTEA",
            Bound::Unbounded => "$2::BYTEA IS NULL",
        };
        // The length of a large value is known without reading it.
        format!(
            "SELECT key, value FROM (
                 SELECT key, value, sum(octet_length(key) + octet_length(value))
                     OVER (ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                 FROM (SELECT key, value FROM {} WHERE {start} AND {end} ORDER BY key LIMIT $3::BIGINT) AS page
             ) AS measured WHERE before IS NULL OR before < $4::BIGINT ORDER BY key",
            self.table(space)
        )
    }
}

/// Removes a schema with everything in it, if it is one of ours.
pub(crate) async fn remove(connection: &Connection, schema: &Schema) -> Result<(), StorageError> {
    let failed = |failure: Failure| failure.explain(&format!("remove {}", schema.place));
    let tables = schema.tables(connection).await.map_err(failed)?;
    if tables.is_empty() {
        return Ok(());
    }
    if !tables.iter().any(|table| table == "enjambre_format") {
        return Err(schema.is_not_ours());
    }
    connection.run(&format!("DROP SCHEMA \"{}\" CASCADE", schema.name)).await.map_err(failed)
}
