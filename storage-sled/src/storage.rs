//! The sled engine: one tree, written by one thread.
//!
//! `Buffered` is a flush, which reaches the operating system. `Durable` and sync are a flush and an `fsync` of sled's
//! file, because sled's own flush does not reach the disk. Free space is checked before each commit: after a full disk
//! in the middle of a write, sled has to be reopened.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use enjambre_core::model::time::human;
use enjambre_core::storage::database_file::{self, FileLock};
use enjambre_core::storage::engine::page_of;
use enjambre_core::storage::format::foreign;
use enjambre_core::{
    ApplyError, Durability, Engine, Key, KeyRange, Limits, ReadError, Reader, Role, Space, StorageError,
    Write,
};
use sled::{Db, Tree};

use crate::error::{catch_panic, explain, is_locked};
use crate::files;
use crate::format;

/// The largest value in bytes. Values above 128 KiB become files that sled never syncs.
const MAX_VALUE: usize = 64 * 1024;
/// The largest batch in bytes.
const MAX_BATCH: usize = 16 * 1024 * 1024;
/// The size in bytes from which a group commit takes no further batch.
pub(crate) const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// The approximate size in bytes of a scan page.
const MAX_PAGE: usize = 1024 * 1024;
/// The free bytes required in addition to a multiple of the written bytes.
const RESERVE: u64 = 32 * 1024 * 1024;
/// The size in bytes up to which writes may use half of the reserve.
const SMALL: usize = 64 * 1024;
/// The free bytes that an opening needs at most, for segments of the log.
pub(crate) const SPARE: u64 = 16 * 1024 * 1024;
/// The number of times that sled may write a byte.
const AMPLIFICATION: u64 = 4;
/// The time for the threads of an earlier opening to release the database.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of a close: sled may hang on a full disk.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The options of the engine.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) role: Role,
    pub(crate) cache_bytes: u64,
}

/// The writer.
#[derive(Debug)]
pub(crate) struct Sled {
    db: Db,
    data: Tree,
    path: PathBuf,
    /// sled's file, for syncs.
    file: File,
    /// Held while a batch is applied, so that no scan page shows a part of it.
    applying: Arc<RwLock<()>>,
    /// The last field: dropped after the database.
    lock: Arc<FileLock>,
}

impl Sled {
    pub(crate) fn open(options: &Options) -> Result<Self, StorageError> {
        let path = options.path.as_path();
        database_file::create_parent_dir(path)?;
        let lock = Arc::new(database_file::lock(path)?);
        files::prepare(path, options.role)?;
        let (db, data) = catch_panic(path, || {
            let db = open_when_released(options)?;
            format::prepare(&db, path, options.role)?;
            let data = db.open_tree(format::DATA).map_err(|error| explain(path, "open", error))?;
            Ok((db, data))
        })?;
        let failed = |error| StorageError::backend(format!("sync {}", path.display()), error);
        let file = File::open(path.join("db")).map_err(failed)?;
        // Makes the directory entries of the files durable.
        file.sync_all().and_then(|()| File::open(path)?.sync_all()).map_err(failed)?;
        database_file::sync_parent_dir(path)?;
        Ok(Self { db, data, path: path.to_path_buf(), file, applying: Arc::default(), lock })
    }

    /// Refuses writes that may not fit on the disk.
    fn check_free_space(&self, writes: &[Write]) -> Result<(), StorageError> {
        let bytes: usize = writes.iter().map(Write::size).sum();
        // Small writes may use half of the reserve: a deletion also needs some space.
        let needed = if bytes <= SMALL { RESERVE / 2 } else { RESERVE + AMPLIFICATION * bytes as u64 };
        database_file::check_free_space(&self.path, needed)
    }
}

/// Opens sled and retries while an earlier opening in this process releases the database.
fn open_when_released(options: &Options) -> Result<Db, StorageError> {
    let path = options.path.as_path();
    let deadline = Instant::now() + OPEN_TIMEOUT;
    loop {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(options.cache_bytes)
            .segment_size(files::segment_size(options.role))
            // sled's garbage collection depends on it.
            .flush_every_ms(Some(500));
        match config.open() {
            Ok(db) => return Ok(db),
            Err(error) if is_locked(&error) => {
                if Instant::now() >= deadline {
                    return Err(StorageError::Locked { path: path.to_path_buf() });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // The segment size differs.
            Err(error @ sled::Error::Unsupported(_)) => {
                return Err(foreign(&path.display().to_string(), options.role, Some(error.into())));
            }
            Err(error) => return Err(explain(path, "open", error)),
        }
    }
}

impl Engine for Sled {
    type Reader = SledReader;

    fn reader(&self) -> Result<SledReader, StorageError> {
        Ok(SledReader {
            data: self.data.clone(),
            path: self.path.clone(),
            applying: self.applying.clone(),
            _lock: self.lock.clone(),
        })
    }

    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        self.check_free_space(writes).map_err(ApplyError::Refused)?;
        let mut batch = sled::Batch::default();
        for write in writes {
            let (space, key) = write.target();
            let key = format::encode(space, key.as_bytes());
            match write.value() {
                Some(value) => batch.insert(key, &value[..]),
                None => batch.remove(key),
            }
        }
        {
            let _applying = self.applying.write().unwrap_or_else(PoisonError::into_inner);
            self.data.apply_batch(batch).map_err(|error| ApplyError::Uncertain(error.into()))?;
        }
        self.db.flush().map_err(|error| ApplyError::Uncertain(error.into()))?;
        if durability == Durability::Durable {
            self.file.sync_all().map_err(|error| ApplyError::Uncertain(error.into()))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let failed = |error| StorageError::backend(format!("sync {}", self.path.display()), error);
        self.db.flush().map_err(|error| explain(&self.path, "sync", error))?;
        self.file.sync_all().map_err(failed)
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
        let path = self.path.clone();
        let failed = |cause: String| StorageError::backend(format!("close {}", path.display()), cause);
        let (done, closed) = channel();
        std::thread::Builder::new()
            .name("sled-close".to_owned())
            .spawn(move || {
                drop(self);
                let _ = done.send(());
            })
            .map_err(|error| failed(error.to_string()))?;
        closed
            .recv_timeout(CLOSE_TIMEOUT)
            .map_err(|_| failed(format!("sled did not release its files within {}", human(CLOSE_TIMEOUT))))
    }
}

/// A reader.
#[derive(Debug)]
pub(crate) struct SledReader {
    data: Tree,
    path: PathBuf,
    applying: Arc<RwLock<()>>,
    /// Held until the last user of the database is dropped.
    _lock: Arc<FileLock>,
}

impl Reader for SledReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        let key = format::encode(space, key.as_bytes());
        let value = catch_panic(&self.path, || {
            self.data.get(key).map_err(|error| explain(&self.path, "read from", error))
        })?;
        // Copied: an `IVec` may keep a whole page in memory.
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let _applying = self.applying.read().unwrap_or_else(PoisonError::into_inner);
        let entries = self.data.range(format::encode_range(space, range)).map(|entry| {
            let (key, value) = entry.map_err(|error| explain(&self.path, "read from", error))?;
            Ok((format::decode(space, &key, &self.path)?, Bytes::copy_from_slice(&value)))
        });
        Ok(catch_panic(&self.path, || page_of(entries, limit, max_bytes))?)
    }
}
