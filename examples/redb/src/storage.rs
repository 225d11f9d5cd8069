//! The engine: one table per space, one transaction per group of batches.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::storage::database_file;
use enjambre_core::storage::engine::page_of;
use enjambre_core::storage::value::MAX_KEY;
use enjambre_core::{
    ApplyError, Durability, Engine, Key, KeyRange, Limits, ReadError, Reader, Role, Space, StorageError,
    Write,
};
use redb::{Database, Error, ReadOnlyTable, ReadableDatabase, TableDefinition, TableError, TableHandle};

use crate::RedbSettings;

/// The largest value. With the longest key and 12 bytes of overhead it fills a page of 64 KiB; page sizes are powers of two.
const MAX_VALUE: usize = 64 * 1024 - MAX_KEY - 12;
/// Disk space to leave free for deletions, in bytes. redb must be reopened after it runs out of disk space.
const RESERVE: u64 = 16 * 1024 * 1024;

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Entries<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// An open database. The original is the writer, its clones are the readers.
#[derive(Debug, Clone)]
pub(crate) struct Redb {
    db: Arc<Database>,
    path: PathBuf,
}

impl Redb {
    pub(crate) fn open(path: &Path, role: Role, settings: &RedbSettings) -> Result<Self, StorageError> {
        database_file::create_parent_dir(path)?;
        let open = || {
            let db = redb::Builder::new()
                .set_cache_size(settings.cache_mib.clamp(1, 4096) as usize * 1024 * 1024)
                .set_check_integrity_on_open(settings.check)
                .create(path)?;
            Ok((mark(&db, role)?, db))
        };
        let (is_marked, db) = open().map_err(|error| storage_error(path, "open", error))?;
        database_file::sync_parent_dir(path)?;
        if !is_marked {
            let what = format!("{} is not an Enjambre database of {role:?} in format 1", path.display());
            return Err(StorageError::corrupt(what));
        }
        Ok(Self { db: Arc::new(db), path: path.to_owned() })
    }

    fn write(&self, writes: &[Write]) -> Result<(), Error> {
        let mut transaction = self.db.begin_write()?;
        // Enables two-phase commits, because remote peers choose the values, and saves the allocator state; see README.md.
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

    /// Reads the current state of a space. Returns the default value if the space was never written.
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
            Error::PreviousIo => ReadError::Broken(error.into()), // redb refuses all calls after an I/O error
            error => storage_error(&self.path, "read from", error).into(),
        })
    }
}

/// Returns whether the database has the mark of Enjambre for this role and format. Marks a new database.
fn mark(db: &Database, role: Role) -> Result<bool, Error> {
    // The mark is an empty table. Its name cannot collide with a space, because spaces have no capital letters.
    let mark = format!("Enjambre {role:?} 1");
    let transaction = db.begin_write()?;
    let tables: Vec<_> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    if tables.is_empty() {
        transaction.open_table(Entries::new(&mark))?;
        transaction.commit()?;
    }
    // A foreign database stays unchanged: dropping the transaction aborts it.
    Ok(tables.is_empty() || tables.contains(&mark))
}

/// Converts an error of redb that occurred during `action`.
fn storage_error(path: &Path, action: &str, error: Error) -> StorageError {
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

    /// Ignores the requested durability and always commits durably: a process crash loses redb's non-durable commits, but
    /// `Buffered` must survive one.
    fn apply(&mut self, writes: &[Write], _: Durability) -> Result<(), ApplyError> {
        // A batch of deletions frees space, so it is always accepted.
        if writes.iter().any(|write| write.value().is_some()) {
            let bytes: usize = writes.iter().map(Write::size).sum();
            database_file::check_free_space(&self.path, RESERVE + 2 * bytes as u64)
                .map_err(ApplyError::Refused)?;
        }
        self.write(writes).map_err(|error| ApplyError::Uncertain(error.into()))
    }

    /// Does nothing: every commit is durable already.
    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            max_value: MAX_VALUE,
            max_batch: 16 * 1024 * 1024,
            max_writes: usize::MAX,
            max_page_bytes: 1024 * 1024,
        }
    }

    fn close(self) -> Result<(), StorageError> {
        let db = Arc::into_inner(self.db)
            .ok_or_else(|| StorageError::backend("close redb", "a reader is still in use"))?;
        db.close().map_err(|error| storage_error(&self.path, "close", error.into()))
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
        let page = self.read(space, |table| {
            let entries = table.range::<&[u8]>(range.bounds())?;
            let entries = entries.map(|entry| entry.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())));
            Ok(page_of(entries, limit, max_bytes)?)
        })?;
        page.into_iter().map(|(key, value)| Ok((Key::new(key)?, value.into()))).collect()
    }
}
