//! The engine: a file that grows by a record with each group of commits, and a map of what they come to.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use enjambre_core::storage::engine::{ApplyError, Engine, ReadError, Reader, page_of};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place;
use enjambre_core::storage::value::{Durability, Key, KeyRange, Limits, Space, Write};

use crate::record;

/// What the file begins with; behind it stands, in 8 bytes, up to where it was synced when that was last noted.
const MARK: &[u8; 8] = b"journal1";
const HEAD: usize = 16;
/// What stays free on the disk.
const RESERVE: u64 = 16 * 1024 * 1024;

type Tables = BTreeMap<Space, BTreeMap<Bytes, Bytes>>;

/// The writing side.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    tables: Arc<RwLock<Tables>>,
    /// Keeps other processes out until it is dropped.
    _lock: File,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |error| StorageError::backend(format!("open {}", path.display()), error);
        place::make_folder(path)?;
        let lock = place::lock(path)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(path).map_err(failed)?;
        let mut bytes = std::fs::read(path).map_err(failed)?;
        // A new file, or one whose making was cut off.
        if bytes.len() <= HEAD
            && (head(HEAD as u64).starts_with(&bytes) || bytes.iter().all(|byte| *byte == 0))
        {
            bytes = head(HEAD as u64);
        }
        let (tables, synced, length) = replay(&bytes).ok_or_else(|| {
            StorageError::corrupt(format!(
                "{} is no journal, or what was synced of it is gone",
                path.display()
            ))
        })?;
        file.write_all_at(&bytes[..HEAD], 0).map_err(failed)?;
        // After a failed sync the system takes as written what is not on the disk; written again, it is synced again.
        file.write_all_at(&bytes[synced..length], synced as u64).map_err(failed)?;
        let (length, tables) = (length as u64, Arc::new(RwLock::new(tables)));
        // What is behind that was never acknowledged as durable.
        file.set_len(length).map_err(failed)?;
        let journal = Self { path: path.to_owned(), file, length, tables, _lock: lock };
        journal.sync_file().map_err(failed)?;
        place::sync_folder(path)?;
        Ok(journal)
    }

    /// Syncs, and notes how far.
    fn sync_file(&self) -> std::io::Result<()> {
        self.file.sync_data()?;
        self.file.write_all_at(&head(self.length), 0)
    }
}

fn head(synced: u64) -> Vec<u8> {
    [&MARK[..], &synced.to_be_bytes()].concat()
}

/// What the records come to, up to where they were synced, and where the last whole one ends; `None` if that is not all
/// that was synced.
fn replay(bytes: &[u8]) -> Option<(Tables, usize, usize)> {
    let (head, mut rest) = bytes.split_at_checked(HEAD)?;
    let synced = u64::from_be_bytes(head.strip_prefix(MARK)?.try_into().ok()?);
    let synced = HEAD.max(synced.try_into().ok()?);
    let mut tables = Tables::new();
    while let Some((writes, behind)) = record::decode(rest) {
        writes.iter().for_each(|write| put(&mut tables, write));
        rest = behind;
    }
    let length = bytes.len() - rest.len();
    (synced <= length).then_some((tables, synced, length))
}

fn put(tables: &mut Tables, write: &Write) {
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
        place::check_room(&self.path, RESERVE + record.len() as u64).map_err(ApplyError::Refused)?;
        let uncertain = |error: std::io::Error| ApplyError::Uncertain(error.into());
        self.file.write_all_at(&record, self.length).map_err(uncertain)?;
        self.length += record.len() as u64;
        if durability == Durability::Durable {
            self.sync_file().map_err(uncertain)?;
        }
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        writes.iter().for_each(|write| put(&mut tables, write));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.sync_file()
            .map_err(|error| StorageError::backend(format!("sync {}", self.path.display()), error))
    }

    fn limits(&self) -> Limits {
        Limits { max_value: 1024 * 1024, max_batch: 16 * 1024 * 1024, max_page_bytes: 1024 * 1024 }
    }

    fn close(mut self) -> Result<(), StorageError> {
        self.sync()
    }
}

/// A reading side.
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
