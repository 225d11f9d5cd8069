//! The schema of a database file: application id, format version and the table of a space.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;

use enjambre_core::storage::format::{check_version, foreign};
use enjambre_core::{KeyRange, Role, Space, StorageError};
use rusqlite::{Connection, OptionalExtension};

use crate::error::explain;

/// The format version that this program writes.
pub(crate) const FORMAT: u64 = 1;

/// Returns the application id in the file header: `EjmR` or `EjmC` (<https://sqlite.org/fileformat2.html>).
const fn application_id(role: Role) -> i64 {
    match role {
        Role::Records => 0x456a_6d52,
        Role::Content => 0x456a_6d43,
    }
}

/// Returns the page size in bytes of a new file.
pub(crate) const fn page_size(role: Role) -> i64 {
    match role {
        Role::Records => 4096,
        Role::Content => 65536,
    }
}

/// Checks that the file belongs to Enjambre and has a supported format, or initialises a new one.
pub(crate) fn prepare(connection: &mut Connection, path: &Path, role: Role) -> Result<(), StorageError> {
    let failed = |error| explain(path, "open", error);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (id, version) = (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    if id == application_id(role) {
        let found = u64::try_from(version).unwrap_or(u64::MAX);
        return check_version(&path.display().to_string(), found, FORMAT);
    }
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if id != 0 || version != 0 || tables != 0 {
        return Err(foreign(&path.display().to_string(), role, None));
    }
    // In one transaction: a file without both is a new one.
    let mut initialise = || {
        let transaction = connection.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE enjambre_sync (only INTEGER PRIMARY KEY, count INTEGER NOT NULL);
             INSERT INTO enjambre_sync (only, count) VALUES (0, 0);",
        )?;
        transaction.pragma_update(None, "application_id", application_id(role))?;
        transaction.pragma_update(None, "user_version", FORMAT as i64)?;
        transaction.commit()
    };
    initialise().map_err(failed)
}

/// The statements of one space.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) create: String,
    pub(crate) get: String,
    pub(crate) put: String,
    pub(crate) delete: String,
    table: String,
}

impl Statements {
    fn new(space: Space, role: Role) -> Self {
        // The name of a space is a valid identifier. The prefix avoids the reserved names of SQLite.
        let table = format!("space_{}", space.name());
        // In a table without row ids and other indexes, REPLACE needs one search.
        let (columns, put) = match role {
            Role::Records => (
                "(key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
                format!("REPLACE INTO {table} (key, value) VALUES (?1, ?2)"),
            ),
            Role::Content => (
                "(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
                format!(
                    "INSERT INTO {table} (key, value) VALUES (?1, ?2) \
                     ON CONFLICT (key) DO UPDATE SET value = excluded.value"
                ),
            ),
        };
        Self {
            create: format!("CREATE TABLE IF NOT EXISTS {table} {columns}"),
            get: format!("SELECT value FROM {table} WHERE key = ?1"),
            put,
            delete: format!("DELETE FROM {table} WHERE key = ?1"),
            table,
        }
    }

    /// Returns the query for a range: ?1 and ?2 are its bounds, ?3 is the limit.
    pub(crate) fn scan(&self, range: &KeyRange) -> String {
        let start = match range.start {
            Bound::Included(_) => "key >= ?1",
            Bound::Excluded(_) => "key > ?1",
            Bound::Unbounded => "?1 IS NULL",
        };
        let end = match range.end {
            Bound::Included(_) => "key <= ?2",
            Bound::Excluded(_) => "key < ?2",
            Bound::Unbounded => "?2 IS NULL",
        };
        format!("SELECT key, value FROM {} WHERE {start} AND {end} ORDER BY key LIMIT ?3", self.table)
    }
}

/// The spaces whose tables exist.
#[derive(Debug)]
pub(crate) struct Tables {
    role: Role,
    known: HashMap<Space, Statements>,
}

impl Tables {
    pub(crate) fn new(role: Role) -> Self {
        Self { role, known: HashMap::new() }
    }

    /// Returns the statements of a space, or `None` if it was never written.
    pub(crate) fn existing(
        &mut self,
        connection: &Connection,
        space: Space,
    ) -> Result<Option<&Statements>, rusqlite::Error> {
        if !self.known.contains_key(&space) {
            let statements = Statements::new(space, self.role);
            let found = connection
                .prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1")?
                .query_row([&statements.table], |_| Ok(()))
                .optional()?;
            if found.is_none() {
                return Ok(None);
            }
            self.known.insert(space, statements);
        }
        Ok(self.known.get(&space))
    }

    /// Returns the statements of a space and creates its table if it is missing, within the current transaction.
    pub(crate) fn create_missing(
        &mut self,
        connection: &Connection,
        space: Space,
    ) -> Result<&Statements, rusqlite::Error> {
        match self.known.entry(space) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let statements = Statements::new(space, self.role);
                connection.execute(&statements.create, [])?;
                Ok(entry.insert(statements))
            }
        }
    }

    /// Discards the tables of a transaction that was rolled back.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }
}
