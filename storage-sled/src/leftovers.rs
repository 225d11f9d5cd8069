//! What a kill can leave of a file that sled was writing, and sled then cannot open: it is taken away before.
//!
//! sled writes a snapshot of its page table under another name, `snap.<number>.generating`, and renames it when it is
//! whole. Its next start takes one that was not renamed for the newest, and refuses the database because it is not
//! whole. Its settings are written in two steps, and half of them are refused as well. Neither holds any data: without
//! a snapshot the log is read from the one before, and the settings are always the same.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use enjambre_core::storage::error::StorageError;

/// What sled writes as its settings, before a checksum of four bytes.
const SETTINGS: &[u8] = b"segment_size: 524288\nuse_compression: false\nversion: 0.34\n";

/// Takes it away. The caller keeps other processes out of the database.
pub(crate) fn remove(path: &Path) -> Result<(), StorageError> {
    let failed =
        |error| StorageError::backend(format!("take away what a kill left in {}", path.display()), error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let unfinished = name.starts_with("snap.") && name.ends_with(".generating");
        if unfinished || name == "conf" && is_torn(&fs::read(entry.path()).map_err(failed)?) {
            tracing::info!(file = %entry.path().display(), "an unfinished file of a killed process is removed");
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether these are the first bytes of the settings, and not all.
fn is_torn(found: &[u8]) -> bool {
    found.len() < SETTINGS.len() + 4 && found.iter().zip(SETTINGS).all(|(found, written)| found == written)
}
