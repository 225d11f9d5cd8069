//! What a database file looks like: its name, its format version, and the table of a space.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;

use enjambre_core::storage::Role;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{KeyRange, Space};
use rusqlite::{Connection, OptionalExtension};

use crate::error::explain;

/// The version of the tables that this program writes.
pub(crate) const FORMAT: u64 = 1;

/// What marks a file as ours, by role: `EjmR` and `EjmC` in the header (<https://sqlite.org/fileformat2.html>).
const fn application_id(role: Role) -> i64 {
    match role {
        Role::Records => 0x456a_6d52,
        Role::Content => 0x456a_6d43,
    }
}

/// The size of the pages of a new file.
pub(crate) const fn page_size(role: Role) -> i64 {
    match role {
        Role::Records => 4096,
        Role::Content => 65536,
    }
}

/// Checks that the file is ours and of a format that we know, or makes a new file ours.
pub(crate) fn prepare(connection: &mut Connection, path: &Path, role: Role) -> Result<(), StorageError> {
    let failed = |error| explain(path, "open", error);
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (id, version) = (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    if id == application_id(role) {
        let found = u64::try_from(version).unwrap_or(u64::MAX);
        if found > FORMAT {
            return Err(StorageError::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT });
        }
        return Ok(());
    }
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if id != 0 || version != 0 || tables != 0 {
        let purpose = match role {
            Role::Records => "records",
            Role::Content => "content",
        };
        return Err(StorageError::corrupt(format!(
            "{} is a database, but not one of Enjambre's {purpose}; choose another path",
            path.display()
        )));
    }
    // Both or neither: a file without them is a new one.
    let mut mark = || {
        let transaction = connection.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE enjambre_sync (only INTEGER PRIMARY KEY, count INTEGER NOT NULL);
             INSERT INTO enjambre_sync (only, count) VALUES (0, 0);",
        )?;
        transaction.pragma_update(None, "application_id", application_id(role))?;
        transaction.pragma_update(None, "user_version", FORMAT as i64)?;
        transaction.commit()
    };
    mark().map_err(failed)
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
        // The name of a space is a checked identifier; the prefix keeps it off SQLite's own names.
        let table = format!("space_{}", space.name());
        // In a table without row ids and other indexes REPLACE is one step: it looks for the place once, and writes there.
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

    /// The entries of a range; ?1 and ?2 are its bounds, ?3 is the limit.
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

/// The spaces whose table is known to exist.
#[derive(Debug)]
pub(crate) struct Tables {
    role: Role,
    known: HashMap<Space, Statements>,
}

impl Tables {
    pub(crate) fn new(role: Role) -> Self {
        Self { role, known: HashMap::new() }
    }

    /// The statements of a space that has a table; `None` where it was never written.
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

    /// The statements of a space whose table is made where it is missing, within the transaction under way.
    pub(crate) fn made(
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

    /// Forgets what a transaction made that was rolled back.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }
}
