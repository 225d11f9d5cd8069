//! The files of a database that sled 0.34 does not look after well enough, before and after it writes them.
//!
//! - A leaf of its tree that does not fit into a quarter of a segment is written to a file in `blobs/` that sled never
//!   syncs, although the log that names it is: a power cut takes what was acknowledged long before. So segments are made
//!   large enough for a leaf of the largest values. Of a database that was made with smaller segments these files are
//!   synced before the log is flushed.
//! - `conf` has the size of the segments. sled writes it in two steps and does not sync it; here it is written at once.
//! - Snapshots of its page table are written as `snap.<number>.generating` and renamed. The next start takes one that
//!   was not renamed, because of a kill, for the newest, and refuses the database. It is removed: the log has all of it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use enjambre_core::storage::Role;
use enjambre_core::storage::error::StorageError;

/// The size of a segment in bytes in databases that were made before, sled's own.
const SMALL_SEGMENT: usize = 512 * 1024;
/// A leaf has at most 16 values, and a few more until it is split. Those of content have 64 KiB each, the largest records
/// half of it.
const fn segment(role: Role) -> usize {
    match role {
        Role::Records => 4 * 1024 * 1024,
        Role::Content => 8 * 1024 * 1024,
    }
}

/// What sled's `conf` says, before a checksum of four bytes.
fn settings(segment: usize) -> String {
    format!("segment_size: {segment}\nuse_compression: false\nversion: 0.34\n")
}

/// Puts the files into a state that sled can open; returns the size of a segment. The caller keeps other processes out.
pub(crate) fn prepare(path: &Path, role: Role) -> Result<usize, StorageError> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { source: error.into() },
        _ => StorageError::backend(format!("prepare {}", path.display()), error),
    };
    prepare_in(path, role).map_err(failed)
}

fn prepare_in(path: &Path, role: Role) -> io::Result<usize> {
    fs::create_dir_all(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(file = %entry.path().display(), "what a killed process did not finish is removed");
            fs::remove_file(entry.path())?;
        }
    }
    let conf = path.join("conf");
    let found = match fs::read(&conf) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        found => found?,
    };
    if !is_torn(&found) {
        return Ok(segment_in(&found).unwrap_or(SMALL_SEGMENT));
    }
    // Where the log is there already it is an older program that wrote the settings, or did not come to the end of it.
    let has_log = fs::metadata(path.join("db")).is_ok_and(|log| log.len() > 0);
    let segment = if has_log { SMALL_SEGMENT } else { segment(role) };
    let new = path.join("conf.new");
    let text = settings(segment);
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.write_all(&crc32fast::hash(text.as_bytes()).to_le_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &conf)?;
    File::open(path)?.sync_all()?;
    Ok(segment)
}

/// Whether these are the first bytes of the settings of a small segment, as a kill leaves them, and not all.
fn is_torn(found: &[u8]) -> bool {
    let whole = settings(SMALL_SEGMENT);
    found.len() < whole.len() + 4
        && found.iter().zip(whole.as_bytes()).all(|(found, written)| found == written)
}

fn segment_in(found: &[u8]) -> Option<usize> {
    let line = found.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.strip_prefix("segment_size: ")?.parse().ok()
}

/// Syncs the files that sled does not.
#[derive(Debug)]
pub(crate) struct Blobs {
    folder: PathBuf,
    synced: HashSet<OsString>,
}

impl Blobs {
    pub(crate) fn new(path: &Path) -> Self {
        Self { folder: path.join("blobs"), synced: HashSet::new() }
    }

    /// Returns when all that are there survive a power cut.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        let mut there = HashSet::new();
        let mut new = false;
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            if !self.synced.contains(&name) {
                new = true;
                match File::open(self.folder.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled removed it meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            there.insert(name);
        }
        if new {
            File::open(&self.folder)?.sync_all()?;
        }
        self.synced = there;
        Ok(())
    }
}
