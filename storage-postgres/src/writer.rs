//! The row of a writer in the table `enjambre_writers`. It grants the right to write and records the last commit.
//!
//! Every transaction stores its number in the column `commits` of its writer. If the connection fails during a commit, the
//! row shows whether the commit was applied.
//!
//! If only one process may write, its writer uses the row `owner`. Every transaction locks the row and checks its session, so
//! a process that lost the row cannot write any more. The row belongs to a data directory: a restarted process with the same
//! directory takes it over at once, another directory only after the owner has closed, or has not renewed it for
//! [`OWNER_LEASE`]. Session locks are not used, because not every compatible database supports them and they would occupy a
//! connection.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use enjambre_core::StorageError;
use tempfile::NamedTempFile;
use tokio_postgres::types::ToSql;

use crate::connection::Connection;
use crate::error::Failure;
use crate::schema::Schema;

/// The time after the last renewal until another data directory may take over the owner's row. Longer statement timeouts extend
/// it, see [`Writer::register`].
const OWNER_LEASE: Duration = Duration::from_secs(30);
/// The interval at which an owner renews its row.
pub(crate) const RENEWAL: Duration = Duration::from_secs(10);
/// The time after which rows of shared writers that did not close are removed. A writer that still runs creates its row again.
const RETENTION_DAYS: u32 = 7;
/// The file in the data directory that contains its id.
const FOLDER_ID: &str = "postgres.id";
/// The name of the row of an owner.
const OWNER: &str = "owner";

/// A writer of one schema.
#[derive(Debug)]
pub(crate) struct Writer {
    name: String,
    folder: String,
    session: String,
    table: String,
}

impl Writer {
    /// One of several writers, or the owner of the schema if `folder` is the id of its data directory.
    pub(crate) fn new(schema: &Schema, folder: Option<String>) -> Self {
        let session = random_id();
        let name = if folder.is_some() { OWNER.to_owned() } else { session.clone() };
        Self { name, folder: folder.unwrap_or_default(), session, table: schema.meta_table("writers") }
    }

    pub(crate) fn is_owner(&self) -> bool {
        self.name == OWNER
    }

    /// Creates the row with zero commits, or takes over that of the owner.
    ///
    /// Only the row of an owner is durable: a shared writer whose row was lost in a crash creates it again. An owner does not
    /// renew its row while it commits, retries, looks up and splits a group, and each of these steps takes up to
    /// `statement_timeout`.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another data directory owns the schema.
    pub(crate) async fn register(
        &self,
        connection: &Connection,
        schema: &Schema,
        statement_timeout: Duration,
    ) -> Result<(), StorageError> {
        let failed = |failure: Failure| failure.explain(&format!("open {}", schema.description));
        let table = &self.table;
        if !self.is_owner() {
            // Locked rows are skipped: their sessions may wait for a replica.
            let sql = format!(
                "DELETE FROM {table} WHERE name IN (SELECT name FROM {table} \
                 WHERE seen < now() - INTERVAL '{RETENTION_DAYS} days' FOR UPDATE SKIP LOCKED)"
            );
            connection.execute_buffered(&sql, &[]).await.map_err(failed)?;
        }
        let sql = format!(
            "INSERT INTO {table} AS held (name, folder, session, commits, seen) VALUES ($1, $2, $3, 0, now()) \
             ON CONFLICT (name) DO UPDATE \
             SET folder = excluded.folder, session = excluded.session, commits = 0, seen = excluded.seen \
             WHERE held.folder = excluded.folder OR held.seen < now() - INTERVAL '{} seconds'",
            OWNER_LEASE.max(statement_timeout * 6 + RENEWAL).as_secs()
        );
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.name, &self.folder, &self.session];
        let changed = if self.is_owner() {
            connection.execute(&sql, &parameters).await
        } else {
            connection.execute_buffered(&sql, &parameters).await
        };
        if changed.map_err(failed)? == 0 {
            return Err(StorageError::Locked { path: schema.description.clone().into() });
        }
        Ok(())
    }

    /// Returns the statement that reads and locks the row. $1 and $2 are [`Writer::parameters`].
    pub(crate) fn lock_row(&self) -> String {
        format!("SELECT commits FROM {} WHERE name = $1 AND session = $2 FOR UPDATE", self.table)
    }

    /// Returns the statement that stores the number of a commit, $3, in the row.
    pub(crate) fn record_commit(&self) -> String {
        format!("UPDATE {} SET commits = $3, seen = now() WHERE name = $1 AND session = $2", self.table)
    }

    pub(crate) fn parameters(&self) -> (&String, &String) {
        (&self.name, &self.session)
    }

    /// Returns the number of the last commit from the rows of [`Writer::lock_row`], or `None` if the row was removed or taken
    /// over.
    pub(crate) fn last_commit(rows: &[tokio_postgres::Row]) -> Option<i64> {
        rows.first().and_then(|row| row.try_get(0).ok())
    }

    /// Renews the row and returns whether it still exists.
    pub(crate) async fn renew(&self, connection: &Connection) -> Result<bool, Failure> {
        let sql = format!("UPDATE {} SET seen = now() WHERE name = $1 AND session = $2", self.table);
        Ok(connection.execute_buffered(&sql, &[&self.name, &self.session]).await? == 1)
    }

    /// Removes the row.
    pub(crate) async fn deregister(&self, connection: &Connection) -> Result<(), Failure> {
        let sql = format!("DELETE FROM {} WHERE name = $1 AND session = $2", self.table);
        connection.execute_buffered(&sql, &[&self.name, &self.session]).await.map(drop)
    }
}

fn random_id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// Returns the id of a data directory. Creates it if it does not exist. Blocks.
pub(crate) fn folder_id(data_dir: &Path) -> Result<String, StorageError> {
    let path = data_dir.join(FOLDER_ID);
    let failed = |error: io::Error| {
        StorageError::backend(format!("read or create the id file {}", path.display()), error)
    };
    let read = || match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim_end();
            let is_valid = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_valid {
                Ok(Some(id.to_owned()))
            } else {
                Err(io::Error::other("the file does not contain a valid id; remove it"))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    if let Some(id) = read().map_err(failed)? {
        return Ok(id);
    }
    let create = || {
        let mut draft = NamedTempFile::new_in(data_dir)?;
        writeln!(draft, "{}", random_id())?;
        draft.as_file().sync_all()?;
        match draft.persist_noclobber(&path) {
            // If several processes create the file, the first one wins.
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
            _ => Ok(()),
        }
    };
    create().map_err(failed)?;
    read().map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}
