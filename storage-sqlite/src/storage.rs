//! The engine: one connection that writes, and one for each reader.
//!
//! Records: `Durable` commits run with `synchronous = FULL`, which syncs the log at each commit, `Buffered` ones with
//! `NORMAL`, which does not (<https://sqlite.org/pragma.html#pragma_synchronous>). A sync is a small commit with
//! `FULL`: an empty one would sync nothing. The log is kept short by checkpoints, and cut where readers kept it from
//! being reused.
//!
//! Content: every commit runs with `FULL`, because behind a rollback journal a weaker one lets a power cut damage the
//! database. Pages that a database grows by need no journal, so a commit costs what it takes to write them once.
//! Readers wait while a commit runs, and a commit waits until they have read, in the order in which they came.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::buffers::BufferPool;
use enjambre_core::storage::Role;
use enjambre_core::storage::engine::{ApplyError, Engine, ReadError, Reader};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place;
use enjambre_core::storage::value::{Durability, Key, KeyRange, Limits, Space, Write};
use parking_lot::{RwLock, RwLockWriteGuard};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::create;
use crate::error::{explain, is_full};
use crate::schema::{self, Tables};

/// The largest value in bytes.
const MAX_VALUE: usize = 1024 * 1024;
/// The largest batch in bytes.
const MAX_BATCH: usize = 16 * 1024 * 1024;
/// From how many bytes on a group commit takes no more batches.
pub(crate) const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// About how many bytes a page of a scan has.
const MAX_PAGE: usize = 1024 * 1024;
/// From how many bytes on the log of records is written back into the database after a commit.
const CHECKPOINT: i64 = 16 * 1024 * 1024;
/// To how many bytes the journal of content is cut after a commit that took more. It is kept, because writing over
/// what is there costs the disk less than making it anew.
const KEPT_JOURNAL: i64 = 4 * 1024 * 1024;
/// From how many bytes on a transaction writes content into the database before it commits, which takes two more syncs.
const HELD_BACK: i64 = 8 * 1024 * 1024;
/// Leaves a log from an earlier version, which is written back; lets SQLite remove the journal of an earlier process;
/// and keeps the next one. A kill may have come between the end of the old one and its sync. Were it written over, a
/// power cut could leave the old beginning before new pages, and it would be played back in part.
const FRESH_JOURNAL: &[&str] = &["persist", "delete", "persist"];
/// From how many bytes on the log is cut; with the largest group on top it stays below 64 MiB.
const CUT_LOG: u64 = 40 * 1024 * 1024;
/// How many bytes of the disk are left to small writes: deleting what fills it takes some room, too.
const RESERVE: u64 = 8 * 1024 * 1024;
/// Up to how many bytes writes may use the reserve.
const SMALL: u64 = 64 * 1024;
/// How long a checkpoint that cuts the log waits for readers, and whatever else for another process that reads.
const BUSY: Duration = Duration::from_secs(2);
/// Waits for another process that reads content before anything is written, and never later. To records it makes no
/// difference: behind a log nobody waits for readers.
const BEGIN: &str = "BEGIN EXCLUSIVE";
/// Changes something, so that there is something to sync.
const COUNT_SYNC: &str = "UPDATE enjambre_sync SET count = count + 1";
/// From how many bytes on a value is read into a buffer that is used again.
const LARGE: usize = 32 * 1024;
/// How many bytes of buffers for large values wait to be used again.
const KEPT_BUFFERS: usize = 4 * 1024 * 1024;
/// How many statements a connection keeps prepared.
const STATEMENTS: usize = 64;

/// What the engine is opened with.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) role: Role,
    /// The page cache of one connection in KiB.
    pub(crate) cache_kib: u64,
}

/// Keeps the readers of content and its writer apart; records need none of it. Neither side can starve the other: whoever
/// waits for the lock is before all who come later.
type Turns = Option<Arc<RwLock<()>>>;

/// The writing side.
#[derive(Debug)]
pub(crate) struct Sqlite {
    connection: Connection,
    tables: Tables,
    options: Options,
    /// The write-ahead log of records, the rollback journal of content.
    log: PathBuf,
    turns: Turns,
    /// The setting of `synchronous` that is in force, if it is known.
    synchronous: Option<Durability>,
    /// Whether something was committed that may not be durable yet.
    unsynced: bool,
    /// What its readers read large values into.
    buffers: BufferPool,
    /// Last, so that it goes after the connection.
    lock: Arc<File>,
}

impl Sqlite {
    pub(crate) fn open(options: &Options) -> Result<Self, StorageError> {
        let path = options.path.as_path();
        place::make_folder(path)?;
        let lock = Arc::new(place::lock(path)?);
        create::where_missing(path, options.role)?;
        let mut connection = connect(options, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Before anything is changed in a file that may be somebody else's.
        schema::prepare(&mut connection, path, options.role)?;
        let (modes, wanted, name, turns) = match options.role {
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
                format!("its journal cannot be changed from {mode} to {wanted}; choose a local disk"),
            ));
        }
        Ok(Self {
            connection,
            tables: Tables::new(options.role),
            log: place::beside(path, name),
            turns,
            options: options.clone(),
            synchronous: None,
            // What another process committed before it was killed may not be.
            unsynced: true,
            buffers: BufferPool::new(KEPT_BUFFERS),
            lock,
        })
    }

    /// Refuses writes that could fill the disk to the brim.
    fn check_room(&self, writes: &[Write]) -> Result<(), StorageError> {
        let bytes: u64 = writes.iter().filter_map(Write::value).map(|value| value.len() as u64).sum();
        if bytes <= SMALL {
            return Ok(());
        }
        if self.missing_room(bytes)? == 0 {
            return Ok(());
        }
        // What was deleted is free for use once the log is written back.
        if self.options.role == Role::Records {
            let _ = self.checkpoint();
        }
        match self.missing_room(bytes)? {
            0 => Ok(()),
            missing => {
                let source = format!("the disk has {missing} bytes too few to go on safely");
                Err(StorageError::Full { source: source.into() })
            }
        }
    }

    /// How many free bytes the disk lacks.
    fn missing_room(&self, bytes: u64) -> Result<u64, StorageError> {
        // A file system that does not tell is taken as large enough; SQLite finds out in time.
        let Ok(stat) = rustix::fs::statvfs(self.options.path.parent().unwrap_or(&self.options.path)) else {
            return Ok(0);
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed =
            self.room_for(bytes).map_err(|error| explain(&self.options.path, "look for room in", error))?;
        Ok(needed.saturating_sub(free))
    }

    /// How many free bytes of the disk it takes to write this many, and a reserve behind them.
    fn room_for(&self, bytes: u64) -> rusqlite::Result<u64> {
        let number = |name: &str| {
            self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
        };
        let page_size = number("page_size")?;
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        // What lies in the log only, and has its place in the database file still to come.
        let to_come = (number("page_count")? * page_size).saturating_sub(length(&self.options.path));
        let growth = bytes.saturating_sub(number("freelist_count")? * page_size);
        // The log is used again once it is written back, which `to_come` makes sure that it can be. A journal takes what
        // is written over.
        let log = (RESERVE + bytes).saturating_sub(length(&self.log));
        Ok(to_come + growth + log)
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

    /// Everything before the commit point.
    fn write(&mut self, writes: &[Write], durability: Durability) -> rusqlite::Result<()> {
        self.set_synchronous(durability)?;
        self.connection.prepare_cached(BEGIN)?.execute([])?;
        match self.options.role {
            // Small records of many batches fall onto the same pages, so they are written page by page.
            Role::Records => self.write_all(&in_order(writes))?,
            // Large values are written as they came.
            Role::Content => self.write_all(&writes.iter().collect::<Vec<_>>())?,
        }
        // A transaction that finds nothing to change is not written, and would leave what is before it unsynced.
        if durability == Durability::Durable && self.unsynced {
            self.connection.prepare_cached(COUNT_SYNC)?.execute([])?;
        }
        Ok(())
    }

    fn write_all(&mut self, writes: &[&Write]) -> rusqlite::Result<()> {
        // One statement after the other, each for as many writes as it serves.
        let same = |a: &&Write, b: &&Write| {
            a.target().0 == b.target().0 && a.value().is_some() == b.value().is_some()
        };
        for run in writes.chunk_by(same) {
            let space = run[0].target().0;
            if run[0].value().is_some() {
                let sql = &self.tables.made(&self.connection, space)?.put;
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

    /// Undoes what was written; whether that went well.
    fn roll_back(&mut self) -> bool {
        self.tables.forget();
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        // To read, it must have played back what a journal still has; a reader could not.
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

    /// Cuts the log where readers, always one somewhere, kept SQLite from beginning it anew.
    fn bound_log(&self) {
        let length = std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        if length >= CUT_LOG
            && let Err(error) = self.checkpoint()
        {
            tracing::debug!(log = %self.log.display(), %error, "the log could not be cut; it is tried again");
        }
    }

    fn checkpoint(&self) -> rusqlite::Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    /// How strongly a commit is made that has to be so durable.
    fn strength(&self, durability: Durability) -> Durability {
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
            // There was no room for the whole transaction, so what makes it count was not written.
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
            turns: self.turns.clone(),
            _lock: self.lock.clone(),
        })
    }

    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        self.check_room(writes).map_err(ApplyError::Refused)?;
        let durability = self.strength(durability);
        let turns = self.turns.clone();
        // From the beginning: a large transaction writes into the database before it commits.
        let turn = turns.as_ref().map(|turns| turns.write());
        let outcome = self.commit(writes, durability);
        // To those who wait, also where the next commit is there already.
        if let Some(turn) = turn {
            RwLockWriteGuard::unlock_fair(turn);
        }
        outcome?;
        self.unsynced = durability == Durability::Buffered;
        if self.options.role == Role::Records {
            self.bound_log();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if !self.unsynced {
            return Ok(());
        }
        let turns = self.turns.clone();
        let _turn = turns.as_ref().map(|turns| turns.write());
        self.set_synchronous(Durability::Durable)
            .and_then(|()| self.connection.prepare_cached(COUNT_SYNC))
            .and_then(|mut update| update.execute([]))
            .map_err(|error| explain(&self.options.path, "sync", error))?;
        self.unsynced = false;
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits { max_value: MAX_VALUE, max_batch: MAX_BATCH, max_page_bytes: MAX_PAGE }
    }

    fn close(mut self) -> Result<(), StorageError> {
        self.sync()?;
        if self.options.role == Role::Records {
            // Only a shorter start the next time: everything is durable in the log.
            let _ = self.checkpoint();
        }
        self.connection.flush_prepared_statement_cache();
        self.connection.close().map_err(|(_, error)| explain(&self.options.path, "close", error))
    }
}

/// A reading side: a connection of its own.
#[derive(Debug)]
pub(crate) struct SqliteReader {
    connection: Connection,
    tables: Tables,
    path: PathBuf,
    buffers: BufferPool,
    turns: Turns,
    /// Held until the last connection is gone.
    _lock: Arc<File>,
}

impl Reader for SqliteReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        let _turn = self.turns.as_ref().map(|turns| turns.read());
        let mut read = || {
            let Some(statements) = self.tables.existing(&self.connection, space)? else { return Ok(None) };
            self.connection
                .prepare_cached(&statements.get)?
                .query_row([key.as_bytes()], |row| Ok(copy(&self.buffers, row.get_ref(0)?.as_blob()?)))
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
        let mut page = Vec::new();
        let mut damaged = false;
        let _turn = self.turns.as_ref().map(|turns| turns.read());
        let mut read = || {
            let Some(statements) = self.tables.existing(&self.connection, space)? else { return Ok(()) };
            let mut select = self.connection.prepare_cached(&statements.scan(range))?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut rows = select.query(params![bound(&range.start), bound(&range.end), limit])?;
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let (key, value) = (row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
                bytes += key.len() + value.len();
                let Ok(key) = Key::new(Bytes::copy_from_slice(key)) else {
                    damaged = true;
                    return Ok(());
                };
                page.push((key, copy(&self.buffers, value)));
                if bytes >= max_bytes {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(|error: rusqlite::Error| explain(&self.path, "read from", error))?;
        if damaged {
            return Err(
                StorageError::corrupt(format!("{} has an impossible key", self.path.display())).into()
            );
        }
        Ok(page)
    }
}

fn copy(buffers: &BufferPool, value: &[u8]) -> Bytes {
    if value.len() < LARGE {
        return Bytes::copy_from_slice(value);
    }
    let mut copy = buffers.take(value.len());
    copy.copy_from_slice(value);
    copy.freeze()
}

/// The last write to each key, in the order of spaces and keys.
fn in_order(writes: &[Write]) -> Vec<&Write> {
    let mut sorted: Vec<&Write> = writes.iter().collect();
    // Stable: of several writes to a key the last one is behind the others.
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
        // Negative: KiB, not pages.
        connection.pragma_update(None, "cache_size", -(options.cache_kib as i64))?;
        connection.pragma_update(None, "mmap_size", 0)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(connection)
    };
    connect().map_err(|error| explain(&options.path, "open", error))
}
