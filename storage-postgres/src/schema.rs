//! The schema: one table for each space.
//!
//! Spaces have separate tables because the server vacuums table by table: leases change all the time, while millions of other
//! records do not change.

use std::collections::HashSet;
use std::time::Duration;

use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::{Role, Space, StorageError};
use parking_lot::RwLock;
use tokio_postgres::error::SqlState;

use crate::connection::Connection;
use crate::error::Failure;

/// The prefix of the names of tables, which avoids reserved words.
const PREFIX: &str = "space_";
/// The maximum number of attempts to create an object that another process creates at the same time.
const ATTEMPTS: usize = 20;
/// The delays between these attempts.
const MIN_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_millis(20);

/// A schema and its tables that are known to exist.
#[derive(Debug)]
pub(crate) struct Schema {
    /// The name. It is a valid identifier, but may be a reserved word, so it is always quoted.
    name: String,
    role: Role,
    /// The schema and its database, for messages.
    pub(crate) description: String,
    known: RwLock<HashSet<Space>>,
}

impl Schema {
    pub(crate) fn new(name: String, role: Role, database: &str) -> Self {
        let description = format!("the schema {name} of the database {database}");
        Self { name, role, description, known: RwLock::default() }
    }

    /// Returns the name of the table of a space. The name of a space is a valid identifier.
    pub(crate) fn table(&self, space: Space) -> String {
        format!("\"{}\".{PREFIX}{}", self.name, space.name())
    }

    /// Creates the schema if it does not exist. Several processes may do so at the same time.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if the schema contains tables of another program.
    pub(crate) async fn prepare(&self, connection: &Connection) -> Result<(), StorageError> {
        let failed = |failure: Failure| failure.explain(&format!("open {}", self.description));
        let found = connection
            .query("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[&self.name])
            .await
            .map_err(failed)?;
        if found.is_empty() {
            let sql = format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", self.name);
            self.create(connection, &sql).await.map_err(failed)?;
        }
        let spaces = self.spaces(connection).await.map_err(failed)?;
        self.known.write().extend(spaces.ok_or_else(|| self.foreign())?);
        Ok(())
    }

    fn foreign(&self) -> StorageError {
        StorageError::corrupt(format!(
            "{} has tables, but is not an Enjambre database for {}; choose another schema",
            self.description,
            self.role.name()
        ))
    }

    /// Returns the spaces that have tables, or `None` if the schema contains tables of another program.
    async fn spaces(&self, connection: &Connection) -> Result<Option<Vec<Space>>, Failure> {
        let sql = "SELECT table_name::TEXT FROM information_schema.tables WHERE table_schema = $1";
        let rows = connection.query(sql, &[&self.name]).await?;
        let tables = rows.iter().map(|row| row.try_get::<_, &str>(0).map_err(Failure::Server));
        tables.map(|table| Ok(table?.strip_prefix(PREFIX).and_then(Space::parse))).collect()
    }

    /// Returns whether a space has a table. It has none until a process writes to it.
    pub(crate) async fn has_table(&self, connection: &Connection, space: Space) -> Result<bool, Failure> {
        if self.known.read().contains(&space) {
            return Ok(true);
        }
        let sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = $1 AND table_name = $2";
        let table = format!("{PREFIX}{}", space.name());
        let found = !connection.query(sql, &[&self.name, &table]).await?.is_empty();
        if found {
            self.known.write().insert(space);
        }
        Ok(found)
    }

    /// Creates the missing tables of spaces. Must be called outside a transaction.
    pub(crate) async fn ensure_tables(
        &self,
        connection: &Connection,
        spaces: impl Iterator<Item = &Space>,
    ) -> Result<(), Failure> {
        for space in spaces {
            self.ensure_table(connection, *space).await?;
        }
        Ok(())
    }

    /// Creates the table of a space if it is missing. Must be called outside a transaction. A table that stays empty is harmless.
    pub(crate) async fn ensure_table(&self, connection: &Connection, space: Space) -> Result<(), Failure> {
        if self.has_table(connection, space).await? {
            return Ok(());
        }
        self.create_table(connection, &self.table(space), "(key BYTEA PRIMARY KEY, value BYTEA NOT NULL)")
            .await?;
        if self.role == Role::Content {
            // Content is usually compressed already. A compatible database may not support the option.
            let sql = format!("ALTER TABLE {} ALTER COLUMN value SET STORAGE EXTERNAL", self.table(space));
            match self.create(connection, &sql).await {
                Err(failure) if failure.is_answer() => {
                    tracing::debug!(%failure, "disabling compression of content failed");
                }
                outcome => outcome?,
            }
        }
        self.known.write().insert(space);
        Ok(())
    }

    async fn create_table(&self, connection: &Connection, table: &str, columns: &str) -> Result<(), Failure> {
        self.create(connection, &format!("CREATE TABLE IF NOT EXISTS {table} {columns}")).await
    }

    /// Creates an object, with retries: if another process creates it at the same time, `IF NOT EXISTS` fails.
    async fn create(&self, connection: &Connection, sql: &str) -> Result<(), Failure> {
        let mut backoff = Backoff::new(MIN_DELAY, MAX_DELAY);
        for _ in 1..ATTEMPTS {
            match connection.run(sql).await {
                Err(Failure::Server(error))
                    if error.code().is_some_and(|code| {
                        // The last one: a concurrent update of the system catalogue.
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
            tokio::time::sleep(backoff.next_jittered()).await;
        }
        connection.run(sql).await
    }

    /// Returns the query for the entries of several keys.
    pub(crate) fn select(&self, space: Space) -> String {
        format!("SELECT key, value FROM {} WHERE key = ANY($1::BYTEA[])", self.table(space))
    }

    /// Like [`Schema::select`], with locks that prevent changes until the transaction ends.
    pub(crate) fn select_for_share(&self, space: Space) -> String {
        format!("{} ORDER BY key FOR SHARE", self.select(space))
    }

    /// Returns the query for the existing keys among several, with exclusive locks until the transaction ends. $2 selects the
    /// keys whose values are returned.
    pub(crate) fn select_for_update(&self, space: Space) -> String {
        format!(
            "SELECT stored.key, CASE WHEN wanted.with_value THEN stored.value END \
             FROM unnest($1::BYTEA[], $2::BOOLEAN[]) AS wanted (key, with_value) \
             JOIN {} AS stored ON stored.key = wanted.key ORDER BY stored.key FOR UPDATE OF stored",
            self.table(space)
        )
    }

    /// Returns the statement that inserts entries. It fails if a key exists or a concurrent transaction inserts it.
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

    /// Returns the query for a page of the keys from $1 on, and before $2 if the range has an end. $3 is the limit in entries and
    /// $4 the limit in bytes, which the last entry may exceed.
    pub(crate) fn scan(&self, space: Space, has_end: bool) -> String {
        let end = if has_end { "key < $2::BYTEA" } else { "$2::BYTEA IS NOT NULL" };
        // `octet_length` does not read a large value.
        format!(
            "SELECT key, value FROM (
                 SELECT key, value, sum(octet_length(key) + octet_length(value))
                     OVER (ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                 FROM (SELECT key, value FROM {} WHERE key >= $1::BYTEA AND {end} ORDER BY key LIMIT $3::BIGINT) AS page
             ) AS measured WHERE before IS NULL OR before < $4::BIGINT ORDER BY key",
            self.table(space)
        )
    }

    /// Removes the schema with all tables. Refuses a schema that does not belong to Enjambre.
    pub(crate) async fn remove(&self, connection: &Connection) -> Result<(), StorageError> {
        let failed = |failure: Failure| failure.explain(&format!("remove {}", self.description));
        let spaces = self.spaces(connection).await.map_err(failed)?.ok_or_else(|| self.foreign())?;
        if spaces.is_empty() {
            return Ok(());
        }
        connection.run(&format!("DROP SCHEMA \"{}\" CASCADE", self.name)).await.map_err(failed)
    }
}
