//! Creation of a new database file with two syncs: it is built under another name without syncs, then synced and renamed.
//!
//! A power cut leaves no file, an unfinished one under the other name that the next start recreates, or the complete
//! database.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use enjambre_core::storage::database_file;
use enjambre_core::{Role, StorageError};
use rusqlite::Connection;

use crate::error::explain;
use crate::schema;

/// Creates the database at `path` if there is no file or an empty one. The caller holds the lock of the database.
pub(crate) fn if_missing(path: &Path, role: Role) -> Result<(), StorageError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { source: error.into() },
        _ => StorageError::backend(format!("create {}", path.display()), error),
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {}
        // Devices and sockets are not replaced either.
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // The file may exist and would be replaced.
        Err(error) => return Err(failed(error)),
    }
    let new = database_file::with_suffix(path, ".new");
    // Files of an interrupted start, and journals of a deleted database that SQLite would apply to the new one.
    let leftovers = [&new, path]
        .into_iter()
        .flat_map(|of| ["-journal", "-wal", "-shm"].map(|suffix| database_file::with_suffix(of, suffix)))
        .chain([new.clone()]);
    for leftover in leftovers {
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    // SQLite gives the permissions of the database to its log as well.
    database_file::create_private_file(&new).map_err(failed)?;
    build(&new, role)?;
    let publish = || {
        File::open(&new)?.sync_all()?;
        std::fs::rename(&new, path)
    };
    publish().map_err(failed)?;
    database_file::sync_parent_dir(path)
}

fn build(new: &Path, role: Role) -> Result<(), StorageError> {
    let explained = |error| explain(new, "create", error);
    let mut connection = Connection::open(new).map_err(explained)?;
    let begin = |connection: &Connection| {
        connection.pragma_update(None, "page_size", schema::page_size(role))?;
        if role == Role::Content {
            // Without it, returning space to the file system requires a copy of the database.
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        }
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update_and_check(None, "journal_mode", "MEMORY", |_| Ok(()))
    };
    begin(&connection).map_err(explained)?;
    schema::prepare(&mut connection, new, role)?;
    if role == Role::Records {
        // The file stores the mode. A later change would need syncs.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(explained)?;
    }
    connection.close().map_err(|(_, error)| explained(error))
}
