//! The row that a process has in `enjambre_writers`: who may write, and which commits came to be.
//!
//! Every commit counts up `commits` in the row of its writer, in the same transaction. When the connection breaks in the
//! middle of a commit, the row says later whether it came to be. Where only one process may write, all of them claim
//! the same row: a claim takes effect in every transaction at once, so whoever lost it writes nothing more. It belongs to
//! a data folder, so that a process that was killed and started again goes on at once; another folder gets it when the
//! owner has closed, or has said nothing for the time of [`CLAIM`]. No lock of a session is needed for it, which not every
//! distributed database has, and which would keep a connection for itself.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use enjambre_core::storage::error::StorageError;
use tokio_postgres::types::ToSql;

use crate::connection::Connection;
use crate::error::Failure;
use crate::schema::Schema;

/// After so long without a sign of life an owner has lost its claim to whoever comes, or after longer where it may be busy for
/// longer, see [`Writer::sign_on`].
const CLAIM: Duration = Duration::from_secs(30);
/// How often an owner shows that it lives.
pub(crate) const RENEWAL: Duration = Duration::from_secs(10);
/// Rows of processes that share a schema and did not sign off are removed after so many days. One that lives and comes
/// back later makes its row anew.
const FORGOTTEN_DAYS: u32 = 7;
/// The file in the data folder that holds its id.
const FOLDER_ID: &str = "postgres.id";
/// The row that owners claim.
const OWNER: &str = "owner";

/// This process as a writer of one schema.
#[derive(Debug)]
pub(crate) struct Writer {
    name: String,
    folder: String,
    session: String,
    table: String,
}

/// What the row says about the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// It counts this many commits, and nobody changes it before the transaction ends.
    Ours(i64),
    /// It is gone, or another process has claimed it.
    Gone,
}

impl Writer {
    /// One of many writers, or the only one where `folder` is the id of the folder that it owns.
    pub(crate) fn new(schema: &Schema, folder: Option<String>) -> Self {
        let session = random_id();
        let name = if folder.is_some() { OWNER.to_owned() } else { session.clone() };
        Self { name, folder: folder.unwrap_or_default(), session, table: schema.own_table("writers") }
    }

    pub(crate) fn is_owner(&self) -> bool {
        self.name == OWNER
    }

    /// Signs on, with no commits. Of many writers none waits for the disk or a replica: whose row a crash takes with it
    /// makes it anew. Only the claim of an owner has to last: it shows no sign of life while it commits a group, tries that
    /// again, looks up what became of it and splits it, for which it has `patience` each time.
    pub(crate) async fn sign_on(
        &self,
        connection: &Connection,
        schema: &Schema,
        patience: Duration,
    ) -> Result<(), StorageError> {
        let failed = |failure: Failure| failure.explain(&format!("open {}", schema.place));
        let table = &self.table;
        if !self.is_owner() {
            // Others may do so at the same time, and a row may be locked by a session that waits for a replica.
            let old = format!(
                "DELETE FROM {table} WHERE name IN (SELECT name FROM {table} \
                 WHERE seen < now() - INTERVAL '{FORGOTTEN_DAYS} days' FOR UPDATE SKIP LOCKED)"
            );
            connection.execute_buffered(&old, &[]).await.map_err(failed)?;
        }
        let sql = format!(
            "INSERT INTO {table} AS held (name, folder, session, commits, seen) VALUES ($1, $2, $3, 0, now()) \
             ON CONFLICT (name) DO UPDATE \
             SET folder = excluded.folder, session = excluded.session, commits = 0, seen = excluded.seen \
             WHERE held.folder = excluded.folder OR held.seen < now() - INTERVAL '{} seconds'",
            CLAIM.max(patience * 6 + RENEWAL).as_secs()
        );
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.name, &self.folder, &self.session];
        let claimed = if self.is_owner() {
            connection.execute(&sql, &parameters).await
        } else {
            connection.execute_buffered(&sql, &parameters).await
        };
        if claimed.map_err(failed)? == 0 {
            return Err(StorageError::Locked { path: schema.place.clone().into() });
        }
        Ok(())
    }

    /// Reads and locks the row; $1 and $2 are [`Writer::parameters`].
    pub(crate) fn look(&self) -> String {
        format!("SELECT commits FROM {} WHERE name = $1 AND session = $2 FOR UPDATE", self.table)
    }

    /// Notes a commit in the row; $3 is its number.
    pub(crate) fn note(&self) -> String {
        format!("UPDATE {} SET commits = $3, seen = now() WHERE name = $1 AND session = $2", self.table)
    }

    pub(crate) fn parameters(&self) -> (&String, &String) {
        (&self.name, &self.session)
    }

    /// What the row says, from what [`Writer::look`] gave.
    pub(crate) fn row(rows: &[tokio_postgres::Row]) -> Row {
        rows.first().and_then(|row| row.try_get(0).ok()).map_or(Row::Gone, Row::Ours)
    }

    /// Shows that this process lives. Says whether the row is still its own.
    pub(crate) async fn renew(&self, connection: &Connection) -> Result<bool, Failure> {
        let sql = format!("UPDATE {} SET seen = now() WHERE name = $1 AND session = $2", self.table);
        Ok(connection.execute_buffered(&sql, &[&self.name, &self.session]).await? == 1)
    }

    /// Signs off.
    pub(crate) async fn sign_off(&self, connection: &Connection) -> Result<(), Failure> {
        let sql = format!("DELETE FROM {} WHERE name = $1 AND session = $2", self.table);
        connection.execute_buffered(&sql, &[&self.name, &self.session]).await.map(drop)
    }
}

fn random_id() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// The id of a data folder, made when it is first asked for. Blocks for as long as a small file takes.
pub(crate) fn folder_id(base: &Path) -> Result<String, StorageError> {
    let path = base.join(FOLDER_ID);
    let failed = |error: io::Error| StorageError::backend(format!("keep an id in {}", path.display()), error);
    let read = || match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim_end();
            let valid = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            if valid {
                Ok(Some(id.to_owned()))
            } else {
                Err(io::Error::other("it holds something else; remove it"))
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    if let Some(id) = read().map_err(failed)? {
        return Ok(id);
    }
    let draft = base.join(format!("{FOLDER_ID}.{}", random_id()));
    let made = write_synced(&draft, &format!("{}\n", random_id()))
        // Of several at once the first one counts.
        .and_then(|()| match std::fs::hard_link(&draft, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        });
    let _ = std::fs::remove_file(&draft);
    made.map_err(failed)?;
    read().map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
