//! Makes a new database file, with two syncs: under another name and without any, then synced and renamed.
//!
//! A power cut leaves no file, an unfinished one under the other name, which the next start makes anew, or the whole
//! database.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use enjambre_core::storage::Role;
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place;
use rusqlite::Connection;

use crate::error::explain;
use crate::schema;

/// Makes the database `path` where there is nothing, or an empty file. The caller keeps other processes away.
pub(crate) fn where_missing(path: &Path, role: Role) -> Result<(), StorageError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { source: error.into() },
        _ => StorageError::backend(format!("make {}", path.display()), error),
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {}
        // Also where it is no file: a device is not to be replaced.
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // It may be there, and would be replaced.
        Err(error) => return Err(failed(error)),
    }
    let new = place::beside(path, ".new");
    // What an interrupted start left, and the journals of a database that is gone, which would be taken for the new one's.
    let leftovers = [&new, path]
        .into_iter()
        .flat_map(|of| ["-journal", "-wal", "-shm"].map(|suffix| place::beside(of, suffix)))
        .chain([new.clone()]);
    for leftover in leftovers {
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    build(&new, role)?;
    let publish = || {
        File::open(&new)?.sync_all()?;
        std::fs::rename(&new, path)?;
        match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => File::open(folder)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    };
    publish().map_err(failed)
}

fn build(new: &Path, role: Role) -> Result<(), StorageError> {
    let explained = |error| explain(new, "make", error);
    let mut connection = Connection::open(new).map_err(explained)?;
    let begin = |connection: &Connection| {
        connection.pragma_update(None, "page_size", schema::page_size(role))?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.pragma_update_and_check(None, "journal_mode", "MEMORY", |_| Ok(()))
    };
    begin(&connection).map_err(explained)?;
    schema::prepare(&mut connection, new, role)?;
    if role == Role::Records {
        // It is written down in the file; doing it later would cost syncs.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(explained)?;
    }
    connection.close().map_err(|(_, error)| explained(error))
}
