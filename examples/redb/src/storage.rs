//! The engine: a table for each space, one transaction for each group of batches.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::storage::engine::{ApplyError, Engine, ReadError, Reader};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Durability, Key, KeyRange, Limits, MAX_KEY, Space, Write};
use enjambre_core::storage::{Role, place};
use redb::{Database, Error, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use crate::RedbSettings;

/// Whether the file is for content, and the format of its tables. No space has a name with a capital letter.
const MARK: TableDefinition<'_, bool, u64> = TableDefinition::new("Enjambre");
/// The format that this program writes.
const FORMAT: u64 = 1;
/// The largest value. redb gives an entry of more than 4 KiB a page of its own, of the next power of two that holds
/// key, value and 12 bytes. So a value of 64 KiB would take 128 KiB.
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
        let db = redb::Builder::new()
            .set_cache_size(settings.cache_mib.clamp(1, 4096) as usize * 1024 * 1024)
            .set_check_integrity_on_open(settings.check)
            .create(path)
            .map_err(|error| explain(path, "open", error.into()))?;
        let found = mark(&db, role).map_err(|error| explain(path, "open", error))?;
        place::sync_folder(path)?;
        if found != Some(FORMAT) {
            let what = format!("{} does not hold {role:?} of Enjambre in format {FORMAT}", path.display());
            return Err(StorageError::corrupt(what));
        }
        Ok(Self { db: Arc::new(db), path: path.to_owned() })
    }

    fn write(&self, writes: &[Write]) -> Result<(), Error> {
        let mut transaction = self.db.begin_write()?;
        // Commits in two phases, because strangers choose the values, and the checksums of the other way are not made
        // against them. And notes what is free: else the whole file is read at the start after a crash.
        transaction.set_quick_repair(true);
        for writes in writes.chunk_by(|a, b| a.target().0 == b.target().0) {
            let mut table = transaction.open_table(Entries::new(writes[0].target().0.name()))?;
            for write in writes {
                let key = write.target().1.as_bytes();
                match write.value() {
                    Some(value) => drop(table.insert(key, &value[..])?),
                    None => drop(table.remove(key)?),
                }
            }
        }
        Ok(transaction.commit()?)
    }

    /// Reads from a space as it is now; `None` where it was never written.
    fn read<T>(
        &self,
        space: Space,
        read: impl FnOnce(Table) -> Result<T, Error>,
    ) -> Result<Option<T>, ReadError> {
        let outcome = || match self.db.begin_read()?.open_table(Entries::new(space.name())) {
            Ok(table) => read(table).map(Some),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        };
        outcome().map_err(|error| match error {
            // After an error of the disk redb refuses everything.
            Error::PreviousIo => ReadError::Broken(error.into()),
            error => explain(&self.path, "read from", error).into(),
        })
    }
}

/// Marks a new database; gives the format of one that is Enjambre's and for this role.
fn mark(db: &Database, role: Role) -> Result<Option<u64>, Error> {
    let transaction = db.begin_write()?;
    let is_new = transaction.list_tables()?.next().is_none();
    let mut table = transaction.open_table(MARK)?;
    if is_new {
        table.insert(role == Role::Content, FORMAT)?;
    }
    let found = table.get(role == Role::Content)?.map(|format| format.value());
    drop(table);
    // What is somebody else's stays as it is: dropped, a transaction changes nothing.
    if is_new {
        transaction.commit()?;
    }
    Ok(found)
}

/// What an error of redb means for the caller who tried to do `action`.
fn explain(path: &Path, action: &str, error: Error) -> StorageError {
    let what = path.display().to_string();
    let is_invalid = matches!(&error, Error::Io(io) if io.kind() == ErrorKind::InvalidData);
    match error {
        Error::DatabaseAlreadyOpen => StorageError::Locked { path: path.to_owned() },
        error if is_invalid || matches!(error, Error::Corrupted(_)) => {
            StorageError::Corrupt { what, source: Some(error.into()) }
        }
        error => StorageError::backend(format!("{action} {what}"), error),
    }
}

impl Engine for Redb {
    type Reader = Self;

    fn reader(&self) -> Result<Self, StorageError> {
        Ok(self.clone())
    }

    /// Always durable: what redb commits without durability is lost by a crash of the process, and what is `Buffered`
    /// must not be.
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
        let get = |table: Table| Ok(table.get(key.as_bytes())?.map(|value| value.value().to_vec().into()));
        Ok(self.read(space, get)?.flatten())
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
            let (mut page, mut bytes) = (Vec::new(), 0);
            for entry in table.range::<&[u8]>(bounds)?.take(limit) {
                let (key, value) = entry?;
                page.push((key.value().to_vec(), value.value().to_vec()));
                bytes += key.value().len() + value.value().len();
                if bytes >= max_bytes {
                    break;
                }
            }
            Ok(page)
        })?;
        page.unwrap_or_default().into_iter().map(|(key, value)| Ok((Key::new(key)?, value.into()))).collect()
    }
}
