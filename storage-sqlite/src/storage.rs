//! The SQLite engine: one connection for the writer and one for each reader.
//!
//! Records: `Durable` commits run with `synchronous = FULL`, which syncs the log at each commit, `Buffered` ones with
//! `NORMAL`, which does not (<https://sqlite.org/pragma.html#pragma_synchronous>). A sync is a small commit with `FULL`,
//! because an empty commit syncs nothing. Checkpoints keep the log short; it is truncated if readers prevent its reuse.
//!
//! Content: every commit runs with `FULL`, because with a rollback journal a weaker level lets a power cut damage the
//! database. New pages need no journal, so a commit writes them once. Readers and commits exclude each other, in order
//! of arrival.

#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::storage::database_file::{self, FileLock};
use enjambre_core::storage::engine::page_of;
use enjambre_core::{
    ApplyError, Durability, Engine, Key, KeyRange, Limits, ReadError, Reader, Role, Space, StorageError,
    Write,
};
use parking_lot::{RwLock, RwLockWriteGuard};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::checkpoint::{BUSY, Checkpoints};
use crate::create;
use crate::error::{explain, is_full};
use crate::schema::{self, Tables};

/// The largest value in bytes.
const MAX_VALUE: usize = 1024 * 1024;
/// The largest batch in bytes.
const MAX_BATCH: usize = 16 * 1024 * 1024;
/// The size in bytes from which a group commit takes no further batch.
pub(crate) const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// The approximate size in bytes of a scan page.
const MAX_PAGE: usize = 1024 * 1024;
/// The log size in bytes from which a commit of records is followed by a checkpoint.
const CHECKPOINT: i64 = 16 * 1024 * 1024;
/// The size in bytes to which a longer journal of content is truncated after a commit. The journal is kept because
/// overwriting a file is cheaper than creating one.
const KEPT_JOURNAL: i64 = 4 * 1024 * 1024;
/// The size in bytes from which a transaction writes content to the database before the commit, with two more syncs.
const HELD_BACK: i64 = 8 * 1024 * 1024;
/// Journal modes that delete the journal of an earlier process and keep the next one. SQLite deletes it when the mode
/// changes from `persist` to `delete`, which is the initial mode. A kill may have prevented the sync of the old journal.
/// If it were overwritten, a power cut could leave its header before new pages, and SQLite would roll back a part of it.
const FRESH_JOURNAL: &[&str] = &["persist", "delete", "persist"];
/// The free bytes that large writes leave.
const RESERVE: u64 = 8 * 1024 * 1024;
/// The approximate size in bytes of the journal of a transaction that writes only new and free pages.
const JOURNAL: u64 = 1024 * 1024;
/// The free bytes that small writes leave, for deletions and the next start.
const SMALL_RESERVE: u64 = 1024 * 1024;
/// The size in bytes of the largest small write.
const SMALL: u64 = 64 * 1024;
/// The free bytes that an opening needs at most, for the index of the log.
pub(crate) const SPARE: u64 = 1024 * 1024;
/// Waits for other processes that read content at the start of a transaction and never later. It has no effect on
/// records: with a log, writers do not wait for readers.
const BEGIN: &str = "BEGIN EXCLUSIVE";
/// Writes a row so that the commit is synced.
const COUNT_SYNC: &str = "UPDATE enjambre_sync SET count = count + 1";
/// The bytes of buffers for large values that are kept for reuse.
const KEPT_BUFFERS: usize = 4 * 1024 * 1024;
/// The number of prepared statements that a connection keeps.
const STATEMENTS: usize = 64;

/// The options of the engine.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) role: Role,
    /// The page cache of one connection in KiB.
    pub(crate) cache_kib: u64,
}

/// Excludes readers of content during a commit; `None` for records. The lock is fair: neither side starves the other.
type ReadWriteLock = Option<Arc<RwLock<()>>>;

/// The writer.
#[derive(Debug)]
pub(crate) struct Sqlite {
    connection: Connection,
    tables: Tables,
    options: Options,
    /// The write-ahead log of records, the rollback journal of content.
    log: PathBuf,
    read_write: ReadWriteLock,
    /// The current setting of `synchronous`, if known.
    synchronous: Option<Durability>,
    /// Whether a commit may not be durable yet.
    unsynced: bool,
    checkpoints: Checkpoints,
    /// The buffers of its readers for large values.
    buffers: BufferPool,
    /// The last field: dropped after the connection.
    lock: Arc<FileLock>,
}

impl Sqlite {
    pub(crate) fn open(options: &Options) -> Result<Self, StorageError> {
        let path = options.path.as_path();
        database_file::create_parent_dir(path)?;
        let lock = Arc::new(database_file::lock(path)?);
        create::if_missing(path, options.role)?;
        let mut connection = connect(options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Before any change: the file may be a foreign database.
        schema::prepare(&mut connection, path, options.role)?;
        let (modes, wanted, suffix, read_write) = match options.role {
            Role::Records => (&["wal"][..], "wal", "-wal", None),
            Role::Content => (FRESH_JOURNAL, "persist", "-journal", Some(Arc::new(RwLock::new(())))),
        };
        let configured = (|| {
            match options.role {
                Role::Records => {
                    let pages = CHECKPOINT / schema::page_size(options.role);
                    connection.pragma_update(None, "wal_autocheckpoint", pages)?;
                }
                Role::Content => {
                    connection.pragma_update(None, "journal_size_limit", KEPT_JOURNAL)?;
                    let pages = HELD_BACK / schema::page_size(options.role);
                    connection.pragma_update(None, "cache_spill", pages)?;
                }
            }
            modes.iter().try_fold(String::new(), |_, mode| {
                connection.pragma_update_and_check(None, "journal_mode", mode, |row| row.get(0))
            })
        })();
        let mode = configured.map_err(|error| explain(path, "open", error))?;
        if mode != wanted {
            return Err(StorageError::backend(
                format!("open {}", path.display()),
                format!("cannot change its journal mode from {mode} to {wanted}; use a local disk"),
            ));
        }
        let log = database_file::with_suffix(path, suffix);
        Ok(Self {
            connection,
            tables: Tables::new(options.role),
            checkpoints: Checkpoints::new(log.clone()),
            log,
            read_write,
            options: options.clone(),
            synchronous: None,
            // The last commit of a killed process may not be durable.
            unsynced: true,
            buffers: BufferPool::new(KEPT_BUFFERS),
            lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.options.path
    }

    pub(crate) const fn role(&self) -> Role {
        self.options.role
    }

    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Refuses writes that could fill the disk completely.
    fn check_free_space(&mut self, writes: &[Write]) -> Result<(), StorageError> {
        let values = || writes.iter().filter_map(Write::value);
        let (bytes, is_small) = {
            let bytes = values().map(|value| value.len() as u64).sum();
            (bytes, bytes <= SMALL)
        };
        // Deletions free space, so they need none.
        if is_small && 2 * values().count() <= writes.len() {
            return Ok(());
        }
        let check = |engine: &Self| {
            let path = &engine.options.path;
            if is_small && database_file::check_free_space(path, SMALL_RESERVE).is_ok() {
                return Ok(());
            }
            let needed = match engine.options.role {
                Role::Records if is_small => SMALL_RESERVE,
                _ => engine
                    .required_space(bytes)
                    .map_err(|error| explain(path, "determine the size of", error))?,
            };
            database_file::check_free_space(path, needed)
        };
        match check(self) {
            // A checkpoint frees the pages of deleted entries.
            Err(StorageError::Full { .. }) if self.options.role == Role::Records => {
                self.checkpoints.run(&self.connection);
                check(self)
            }
            outcome => outcome,
        }
    }

    /// Returns the free bytes required to write `bytes` bytes, with a reserve. Pages of deleted content are reused even if
    /// the reserve is in use, because new pages need no journal.
    fn required_space(&self, bytes: u64) -> rusqlite::Result<u64> {
        let number = |name: &str| {
            self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
        };
        let page_size = number("page_size")?;
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        // Pages that are in the log only and still need space in the database file.
        let unwritten = (number("page_count")? * page_size).saturating_sub(length(&self.options.path));
        let growth = bytes.saturating_sub(number("freelist_count")? * page_size);
        let log = match self.options.role {
            // The log is reused after a checkpoint, whose space is part of `unwritten`.
            Role::Records => RESERVE + bytes,
            Role::Content if growth == 0 => JOURNAL,
            Role::Content => RESERVE,
        };
        Ok(unwritten + growth + log.saturating_sub(length(&self.log)))
    }

    fn set_synchronous(&mut self, durability: Durability) -> rusqlite::Result<()> {
        if self.synchronous != Some(durability) {
            self.synchronous = None;
            let level = match durability {
                Durability::Buffered => "NORMAL",
                Durability::Durable => "FULL",
            };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.synchronous = Some(durability);
        }
        Ok(())
    }

    /// Runs the transaction up to the commit point.
    fn write(&mut self, writes: &[Write], durability: Durability) -> rusqlite::Result<()> {
        self.set_synchronous(durability)?;
        self.connection.prepare_cached(BEGIN)?.execute([])?;
        match self.options.role {
            // Small records of many batches share pages, so they are written in key order.
            Role::Records => self.write_all(&last_writes_in_key_order(writes))?,
            // Large values are written in the order of the batch.
            Role::Content => self.write_all(&writes.iter().collect::<Vec<_>>())?,
        }
        // SQLite does not write a transaction without changes and would leave earlier commits unsynced.
        if durability == Durability::Durable && self.unsynced {
            self.connection.prepare_cached(COUNT_SYNC)?.execute([])?;
        }
        Ok(())
    }

    fn write_all(&mut self, writes: &[&Write]) -> rusqlite::Result<()> {
        // Each statement runs for as many consecutive writes as it fits.
        let same = |a: &&Write, b: &&Write| {
            a.target().0 == b.target().0 && a.value().is_some() == b.value().is_some()
        };
        for run in writes.chunk_by(same) {
            let space = run[0].target().0;
            if run[0].value().is_some() {
                let sql = &self.tables.create_missing(&self.connection, space)?.put;
                let mut put = self.connection.prepare_cached(sql)?;
                for write in run {
                    let value = write.value().map_or(&[][..], |value| &value[..]);
                    put.execute(params![write.target().1.as_bytes(), value])?;
                }
            } else if let Some(statements) = self.tables.existing(&self.connection, space)? {
                let mut delete = self.connection.prepare_cached(&statements.delete)?;
                for write in run {
                    delete.execute([write.target().1.as_bytes()])?;
                }
            }
        }
        Ok(())
    }

    /// Rolls the transaction back and returns whether that succeeded.
    fn roll_back(&mut self) -> bool {
        self.tables.clear();
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        // A read forces the playback of a remaining journal, which a reader could not do.
        let read = "SELECT count FROM enjambre_sync";
        self.connection.is_autocommit()
            && self.connection.query_row(read, [], |row| row.get::<_, i64>(0)).is_ok()
    }

    fn refuse(&mut self, error: rusqlite::Error) -> ApplyError {
        if self.roll_back() {
            ApplyError::Refused(explain(&self.options.path, "write to", error))
        } else {
            ApplyError::Uncertain(error.into())
        }
    }

    /// Returns the durability that a commit is made with.
    fn commit_durability(&self, durability: Durability) -> Durability {
        match self.options.role {
            Role::Records => durability,
            Role::Content => Durability::Durable,
        }
    }

    fn commit(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        if let Err(error) = self.write(writes, durability) {
            return Err(self.refuse(error));
        }
        let committed = self.connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
        match committed {
            Ok(_) => Ok(()),
            // The transaction did not fit, so its commit record was not written.
            Err(error) if is_full(&error) => Err(self.refuse(error)),
            Err(error) => Err(ApplyError::Uncertain(error.into())),
        }
    }
}

impl Engine for Sqlite {
    type Reader = SqliteReader;

    fn reader(&self) -> Result<SqliteReader, StorageError> {
        let connection = connect(&self.options, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(SqliteReader {
            connection,
            tables: Tables::new(self.options.role),
            path: self.options.path.clone(),
            buffers: self.buffers.clone(),
            read_write: self.read_write.clone(),
            _lock: self.lock.clone(),
        })
    }

    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        self.check_free_space(writes).map_err(ApplyError::Refused)?;
        let durability = self.commit_durability(durability);
        let read_write = self.read_write.clone();
        // From the start: a large transaction writes to the database before the commit.
        let guard = read_write.as_ref().map(|lock| lock.write());
        let outcome = self.commit(writes, durability);
        // Waiting readers precede the next commit.
        if let Some(guard) = guard {
            RwLockWriteGuard::unlock_fair(guard);
        }
        outcome?;
        self.unsynced = durability == Durability::Buffered;
        if self.options.role == Role::Records {
            self.checkpoints.limit_log(&self.connection);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if !self.unsynced {
            return Ok(());
        }
        let read_write = self.read_write.clone();
        let _guard = read_write.as_ref().map(|lock| lock.write());
        self.set_synchronous(Durability::Durable)
            .and_then(|()| self.connection.prepare_cached(COUNT_SYNC))
            .and_then(|mut update| update.execute([]))
            .map_err(|error| explain(&self.options.path, "sync", error))?;
        self.unsynced = false;
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            max_value: MAX_VALUE,
            max_batch: MAX_BATCH,
            max_writes: usize::MAX,
            max_page_bytes: MAX_PAGE,
        }
    }

    fn close(mut self) -> Result<(), StorageError> {
        self.sync()?;
        if self.options.role == Role::Records {
            // Optional: the log is durable, and a checkpoint shortens the next start.
            self.checkpoints.run(&self.connection);
        }
        self.connection.flush_prepared_statement_cache();
        self.connection.close().map_err(|(_, error)| explain(&self.options.path, "close", error))
    }
}

/// A reader with its own connection.
#[derive(Debug)]
pub(crate) struct SqliteReader {
    connection: Connection,
    tables: Tables,
    path: PathBuf,
    buffers: BufferPool,
    read_write: ReadWriteLock,
    /// Held until the last connection is closed.
    _lock: Arc<FileLock>,
}

impl Reader for SqliteReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        let _guard = self.read_write.as_ref().map(|lock| lock.read());
        let mut read = || {
            let Some(statements) = self.tables.existing(&self.connection, space)? else { return Ok(None) };
            self.connection
                .prepare_cached(&statements.get)?
                .query_row([key.as_bytes()], |row| Ok(self.buffers.copy(row.get_ref(0)?.as_blob()?)))
                .optional()
        };
        read().map_err(|error: rusqlite::Error| explain(&self.path, "read from", error).into())
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let _guard = self.read_write.as_ref().map(|lock| lock.read());
        let mut read = || {
            let Some(statements) = self.tables.existing(&self.connection, space)? else {
                return Ok(Vec::new());
            };
            let mut select = self.connection.prepare_cached(&statements.scan(range))?;
            let limit_of_query = i64::try_from(limit).unwrap_or(i64::MAX);
            let parameters = params![bound(&range.start), bound(&range.end), limit_of_query];
            let entries = select.query_map(parameters, |row| {
                let (key, value) = (row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
                Ok((Bytes::copy_from_slice(key), self.buffers.copy(value)))
            })?;
            page_of(entries, limit, max_bytes)
        };
        let page = read().map_err(|error: rusqlite::Error| explain(&self.path, "read from", error))?;
        let invalid = |_| StorageError::corrupt(format!("{} contains an invalid key", self.path.display()));
        page.into_iter().map(|(key, value)| Ok((Key::new(key).map_err(invalid)?, value))).collect()
    }
}

/// Returns the last write to each key, ordered by space and key.
fn last_writes_in_key_order(writes: &[Write]) -> Vec<&Write> {
    let mut sorted: Vec<&Write> = writes.iter().collect();
    // The sort is stable: the last write to a key stays last.
    sorted.sort_by(|a, b| a.target().cmp(&b.target()));
    let mut last: Vec<&Write> = Vec::with_capacity(sorted.len());
    for write in sorted {
        match last.last_mut() {
            Some(before) if before.target() == write.target() => *before = write,
            _ => last.push(write),
        }
    }
    last
}

fn bound(bound: &Bound<Bytes>) -> Option<&[u8]> {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => Some(key),
        Bound::Unbounded => None,
    }
}

fn connect(options: &Options, flags: OpenFlags) -> Result<Connection, StorageError> {
    let connect = || {
        let connection = Connection::open_with_flags(&options.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.busy_timeout(BUSY)?;
        // A negative value is in KiB, a positive one in pages.
        connection.pragma_update(None, "cache_size", -(options.cache_kib as i64))?;
        connection.pragma_update(None, "mmap_size", 0)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(connection)
    };
    connect().map_err(|error| explain(&options.path, "open", error))
}
