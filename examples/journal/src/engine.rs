//! The engine: a file that grows by one record per group of commits, and a map with the current state in memory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use enjambre_core::storage::database_file::{self, FileLock};
use enjambre_core::storage::engine::page_of;
use enjambre_core::{
    ApplyError, Durability, Engine, Key, KeyRange, Limits, ReadError, Reader, Space, StorageError, Write,
};

use crate::record;

/// The first bytes of the file. The next 8 bytes hold the synced length, as of the last time it was written.
const MAGIC: &[u8; 8] = b"journal1";
const HEADER: usize = 16;
/// Disk space to leave free, in bytes.
const RESERVE: u64 = 16 * 1024 * 1024;

type Tables = BTreeMap<Space, BTreeMap<Bytes, Bytes>>;

/// The writing side.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    tables: Arc<RwLock<Tables>>,
    /// Holds the lock against other processes until it is dropped.
    _lock: FileLock,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |error| StorageError::backend(format!("open {}", path.display()), error);
        database_file::create_parent_dir(path)?;
        let lock = database_file::lock(path)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(path).map_err(failed)?;
        let mut bytes = std::fs::read(path).map_err(failed)?;
        // A new file, or one whose creation was interrupted.
        if bytes.len() <= HEADER
            && (header(HEADER as u64).starts_with(&bytes) || bytes.iter().all(|byte| *byte == 0))
        {
            bytes = header(HEADER as u64);
        }
        let (tables, synced, length) = replay(&bytes).ok_or_else(|| {
            StorageError::corrupt(format!(
                "{} is not a journal, or synced records are missing",
                path.display()
            ))
        })?;
        file.write_all_at(&bytes[..HEADER], 0).map_err(failed)?;
        // After a failed fsync the kernel may treat unwritten pages as clean. Rewriting them makes them dirty again, so
        // that the next fsync writes them.
        file.write_all_at(&bytes[synced..length], synced as u64).map_err(failed)?;
        let (length, tables) = (length as u64, Arc::new(RwLock::new(tables)));
        // Bytes after the last complete record were never acknowledged as durable.
        file.set_len(length).map_err(failed)?;
        let journal = Self { path: path.to_owned(), file, length, tables, _lock: lock };
        journal.sync_file().map_err(failed)?;
        database_file::sync_parent_dir(path)?;
        Ok(journal)
    }

    /// Syncs the file and records the synced length in the header.
    fn sync_file(&self) -> std::io::Result<()> {
        self.file.sync_data()?;
        self.file.write_all_at(&header(self.length), 0)
    }
}

fn header(synced: u64) -> Vec<u8> {
    [&MAGIC[..], &synced.to_be_bytes()].concat()
}

/// Replays all complete records.
///
/// Returns the state, the synced length and the end of the last complete record, or `None` if the header is invalid or
/// a synced record is incomplete.
fn replay(bytes: &[u8]) -> Option<(Tables, usize, usize)> {
    let (header, mut rest) = bytes.split_at_checked(HEADER)?;
    let synced = u64::from_be_bytes(header.strip_prefix(MAGIC)?.try_into().ok()?);
    let synced = HEADER.max(synced.try_into().ok()?);
    let mut tables = Tables::new();
    while let Some((writes, remaining)) = record::decode(rest) {
        writes.iter().for_each(|write| apply_write(&mut tables, write));
        rest = remaining;
    }
    let length = bytes.len() - rest.len();
    (synced <= length).then_some((tables, synced, length))
}

fn apply_write(tables: &mut Tables, write: &Write) {
    let (space, key) = write.target();
    let (table, key) = (tables.entry(space).or_default(), key.clone().into_bytes());
    match write.value() {
        Some(value) => table.insert(key, value.clone()),
        None => table.remove(&key),
    };
}

impl Engine for Journal {
    type Reader = JournalReader;

    fn reader(&self) -> Result<JournalReader, StorageError> {
        Ok(JournalReader { tables: Arc::clone(&self.tables) })
    }

    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        let record = record::encode(writes);
        database_file::check_free_space(&self.path, RESERVE + record.len() as u64)
            .map_err(ApplyError::Refused)?;
        let uncertain = |error: std::io::Error| ApplyError::Uncertain(error.into());
        self.file.write_all_at(&record, self.length).map_err(uncertain)?;
        self.length += record.len() as u64;
        if durability == Durability::Durable {
            self.sync_file().map_err(uncertain)?;
        }
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        writes.iter().for_each(|write| apply_write(&mut tables, write));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.sync_file()
            .map_err(|error| StorageError::backend(format!("sync {}", self.path.display()), error))
    }

    fn limits(&self) -> Limits {
        Limits {
            max_value: 1024 * 1024,
            max_batch: 16 * 1024 * 1024,
            max_writes: usize::MAX,
            max_page_bytes: 1024 * 1024,
        }
    }

    fn close(mut self) -> Result<(), StorageError> {
        self.sync()
    }
}

/// The reading side.
#[derive(Debug)]
pub(crate) struct JournalReader {
    tables: Arc<RwLock<Tables>>,
}

impl Reader for JournalReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        Ok(tables.get(&space).and_then(|table| table.get(key.as_bytes())).cloned())
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = tables.get(&space) else { return Ok(Vec::new()) };
        let entries = table.range((range.start.clone(), range.end.clone()));
        page_of(entries.map(|(key, value)| Ok((Key::new(key.clone())?, value.clone()))), limit, max_bytes)
    }
}
