//! Preparation of the files that sled 0.34 does not handle safely across kills and power cuts.
//!
//! - sled writes a tree leaf that exceeds a quarter of a segment to a file in `blobs/` and never syncs it, although the
//!   log refers to it. Segments are therefore large enough for a leaf of the largest values.
//! - sled writes `conf`, which holds the segment size, in two steps without a sync. This module writes it atomically.
//! - sled writes snapshots of its page table as `snap.<number>.generating` and renames them. After a kill, the next start
//!   takes an unfinished one for the newest and refuses the database. This module removes it: the log is complete.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use enjambre_core::storage::database_file;
use enjambre_core::{Role, StorageError};

/// Returns the segment size in bytes of a database.
///
/// A leaf holds at most 16 values and a few more until it is split. Content values have at most 64 KiB, records half of
/// that.
pub(crate) const fn segment_size(role: Role) -> usize {
    match role {
        Role::Records => 4 * 1024 * 1024,
        Role::Content => 8 * 1024 * 1024,
    }
}

/// Puts the files into a state that sled can open. The caller holds the lock of the database.
pub(crate) fn prepare(path: &Path, role: Role) -> Result<(), StorageError> {
    prepare_in(path, role).map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { source: error.into() },
        _ => StorageError::backend(format!("prepare {}", path.display()), error),
    })
}

fn prepare_in(path: &Path, role: Role) -> io::Result<()> {
    database_file::create_private_dir(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %entry.path().display(), "removed unfinished sled snapshot");
            fs::remove_file(entry.path())?;
        }
    }
    let conf = path.join("conf");
    if conf.try_exists()? {
        return Ok(());
    }
    let new = path.join("conf.new");
    let text = format!("segment_size: {}\nuse_compression: false\nversion: 0.34\n", segment_size(role));
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.write_all(&crc32fast::hash(text.as_bytes()).to_le_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &conf)?;
    File::open(path)?.sync_all()
}
