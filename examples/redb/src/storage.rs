//! The engine: a table for each space, one transaction for each group of batches.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::storage::engine::{ApplyError, Engine, ReadError, Reader, page_of};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Durability, Key, KeyRange, Limits, MAX_KEY, Space, Write};
use enjambre_core::storage::{Role, place};
use redb::{Database, Error, ReadOnlyTable, ReadableDatabase, TableDefinition, TableError, TableHandle};

use crate::RedbSettings;

/// The largest value: with the longest key and 12 bytes it fills a page of redb, whose sizes are powers of two.
const MAX_VALUE: usize = 64 * 1024 - MAX_KEY - 12;
/// What stays free on the disk, for deletions: after it met a full one, redb has to be opened anew.
const RESERVE: u64 = 16 * 1024 * 1024;

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Entries<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// An open database: the writing side, and its clones the reading sides.
#[derive(Debug, Clone)]
pub(crate) struct Redb {
    db: Arc<Database>,
    path: PathBuf,
}

impl Redb {
    pub(crate) fn open(path: &Path, role: Role, settings: &RedbSettings) -> Result<Self, StorageError> {
        place::make_folder(path)?;
        let open = || {
            let db = redb::Builder::new()
                .set_cache_size(settings.cache_mib.clamp(1, 4096) as usize * 1024 * 1024)
                .set_check_integrity_on_open(settings.check)
                .create(path)?;
            Ok((mark(&db, role)?, db))
        };
        let (is_ours, db) = open().map_err(|error| explain(path, "open", error))?;
        place::sync_folder(path)?;
        if !is_ours {
            let what = format!("{} does not hold {role:?} of Enjambre in format 1", path.display());
            return Err(StorageError::corrupt(what));
        }
        Ok(Self { db: Arc::new(db), path: path.to_owned() })
    }

    fn write(&self, writes: &[Write]) -> Result<(), Error> {
        let mut transaction = self.db.begin_write()?;
        // Commits in two phases, because strangers choose the values, and notes what is free, see README.md.
        transaction.set_quick_repair(true);
        for writes in writes.chunk_by(|a, b| a.target().0 == b.target().0) {
            let mut table = transaction.open_table(Entries::new(writes[0].target().0.name()))?;
            for write in writes {
                match write {
                    Write::Put(_, key, value) => drop(table.insert(key.as_bytes(), &value[..])?),
                    Write::Delete(_, key) => drop(table.remove(key.as_bytes())?),
                }
            }
        }
        Ok(transaction.commit()?)
    }

    /// Reads from a space as it is now; nothing where it was never written.
    fn read<T: Default>(
        &self,
        space: Space,
        read: impl FnOnce(Table) -> Result<T, Error>,
    ) -> Result<T, ReadError> {
        let outcome = || match self.db.begin_read()?.open_table(Entries::new(space.name())) {
            Ok(table) => read(table),
            Err(TableError::TableDoesNotExist(_)) => Ok(T::default()),
            Err(error) => Err(error.into()),
        };
        outcome().map_err(|error| match error {
            Error::PreviousIo => ReadError::Broken(error.into()), // it refuses everything after an error of the disk
            error => explain(&self.path, "read from", error).into(),
        })
    }
}

/// Whether the file is Enjambre's and for this role, in the only format so far. A new one is marked as that.
fn mark(db: &Database, role: Role) -> Result<bool, Error> {
    // A table without entries. No space has a name with a capital letter.
    let mark = format!("Enjambre {role:?} 1");
    let transaction = db.begin_write()?;
    let tables: Vec<_> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    if tables.is_empty() {
        transaction.open_table(Entries::new(&mark))?;
        transaction.commit()?;
    }
    // What is somebody else's stays as it is: dropped, a transaction changes nothing.
    Ok(tables.is_empty() || tables.contains(&mark))
}

/// What an error of redb means for the caller who tried to do `action`.
fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    match error {
        Error::DatabaseAlreadyOpen => StorageError::Locked { path: path.to_owned() },
        Error::Corrupted(_) => StorageError::damaged(path, error),
        Error::Io(error) if error.kind() == ErrorKind::InvalidData => StorageError::damaged(path, error),
        error => StorageError::backend(format!("{action} {}", path.display()), error),
    }
}

impl Engine for Redb {
    type Reader = Self;

    fn reader(&self) -> Result<Self, StorageError> {
        Ok(self.clone())
    }

    /// Always durable: redb loses what it commits otherwise in a crash of the process, which `Buffered` has to survive.
    fn apply(&mut self, writes: &[Write], _: Durability) -> Result<(), ApplyError> {
        // Deletions alone are to make room.
        if writes.iter().any(|write| write.value().is_some()) {
            let bytes: usize = writes.iter().map(Write::size).sum();
            place::check_room(&self.path, RESERVE + 2 * bytes as u64).map_err(ApplyError::Refused)?;
        }
        self.write(writes).map_err(|error| ApplyError::Uncertain(error.into()))
    }

    /// There is nothing to do, see `apply`.
    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits { max_value: MAX_VALUE, max_batch: 16 * 1024 * 1024, max_page_bytes: 1024 * 1024 }
    }

    fn close(self) -> Result<(), StorageError> {
        let db = Arc::into_inner(self.db)
            .ok_or_else(|| StorageError::backend("close redb", "a reader is busy and keeps it open"))?;
        db.close().map_err(|error| explain(&self.path, "close", error.into()))
    }
}

impl Reader for Redb {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        self.read(space, |table| Ok(table.get(key.as_bytes())?.map(|value| value.value().to_vec().into())))
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let bounds = (range.start.as_ref().map(|key| &key[..]), range.end.as_ref().map(|key| &key[..]));
        let page = self.read(space, |table| {
            let entries = table.range::<&[u8]>(bounds)?;
            let entries = entries.map(|entry| entry.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())));
            Ok(page_of(entries, limit, max_bytes)?)
        })?;
        page.into_iter().map(|(key, value)| Ok((Key::new(key)?, value.into()))).collect()
    }
}
