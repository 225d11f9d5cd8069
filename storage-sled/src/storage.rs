//! The engine: one tree, written by one thread.
//!
//! `Buffered` is a flush, which reaches the operating system; `Durable` and sync are a flush and an `fsync` of
//! sled's file, because its own flush does not reach the disk. Free space is watched before each commit: once
//! sled meets a full disk in the middle, it has to be opened anew.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use enjambre_core::storage::Role;
use enjambre_core::storage::engine::{ApplyError, Engine, ReadError, Reader, page_of};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::place;
use enjambre_core::storage::value::{Durability, Key, KeyRange, Limits, Space, Write};
use sled::{Db, Tree};

use crate::error::{explain, is_locked, sane};
use crate::files::{self, Blobs};
use crate::format;

/// The largest value in bytes: larger ones than 128 KiB become files that sled never syncs.
const MAX_VALUE: usize = 64 * 1024;
/// The largest batch in bytes.
const MAX_BATCH: usize = 16 * 1024 * 1024;
/// From how many bytes on a group commit takes no more batches.
pub(crate) const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// About how many bytes a page of a scan has.
const MAX_PAGE: usize = 1024 * 1024;
/// How many bytes must be free beside several times the writes.
const RESERVE: u64 = 32 * 1024 * 1024;
/// Up to how many bytes writes may use the reserve.
const SMALL: usize = 64 * 1024;
/// How often the writes may be written over and over.
const AMPLIFICATION: u64 = 4;
/// How long an opening waits for the threads of an earlier one to let go.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a close waits for sled, which may hang on a full disk.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the engine is opened with.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) role: Role,
    pub(crate) cache_bytes: u64,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Sled {
    db: Db,
    data: Tree,
    path: PathBuf,
    /// sled's file, to sync it.
    file: File,
    blobs: Blobs,
    /// Held while a batch is applied, so that a page does not show half of it.
    applying: Arc<RwLock<()>>,
    /// Last, so that it goes after the database.
    lock: Arc<File>,
}

impl Sled {
    pub(crate) fn open(options: &Options) -> Result<Self, StorageError> {
        let path = options.path.as_path();
        place::make_folder(path)?;
        let lock = Arc::new(place::lock(path)?);
        let segment = files::prepare(path, options.role)?;
        let (db, data) = sane(path, || {
            let db = open_patiently(options, segment)?;
            format::prepare(&db, path, options.role)?;
            let data = db.open_tree(format::DATA).map_err(|error| explain(path, "open", error))?;
            Ok((db, data))
        })?;
        let failed = |error| StorageError::backend(format!("sync {}", path.display()), error);
        let file = File::open(path.join("db")).map_err(failed)?;
        // Once, so that the files do not only exist but are found after a power cut.
        file.sync_all().and_then(|()| File::open(path)?.sync_all()).map_err(failed)?;
        place::sync_folder(path)?;
        let blobs = Blobs::new(path);
        Ok(Self { db, data, path: path.to_path_buf(), file, blobs, applying: Arc::default(), lock })
    }

    /// Refuses writes for which there may be no room.
    fn check_room(&self, writes: &[Write]) -> Result<(), StorageError> {
        let bytes: usize = writes.iter().map(Write::size).sum();
        // Small writes may use half of the reserve: deleting what fills the disk takes some room, too.
        let needed = if bytes <= SMALL { RESERVE / 2 } else { RESERVE + AMPLIFICATION * bytes as u64 };
        place::check_room(&self.path, needed)
    }
}

/// Opens sled, and tries again while an earlier opening in this process is on its way out.
fn open_patiently(options: &Options, segment: usize) -> Result<Db, StorageError> {
    let path = options.path.as_path();
    let deadline = Instant::now() + OPEN_TIMEOUT;
    loop {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(options.cache_bytes)
            .segment_size(segment)
            // Its garbage collection depends on it.
            .flush_every_ms(Some(500));
        match config.open() {
            Ok(db) => return Ok(db),
            Err(error) if is_locked(&error) => {
                if Instant::now() >= deadline {
                    return Err(StorageError::Locked { path: path.to_path_buf() });
                }
                std::thread::sleep(Duration::from_millis(20));
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
        self.check_room(writes).map_err(ApplyError::Refused)?;
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
        // Before the log that names them.
        self.blobs.sync().map_err(|error| ApplyError::Uncertain(error.into()))?;
        self.db.flush().map_err(|error| ApplyError::Uncertain(error.into()))?;
        if durability == Durability::Durable {
            self.file.sync_all().map_err(|error| ApplyError::Uncertain(error.into()))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let failed = |error| StorageError::backend(format!("sync {}", self.path.display()), error);
        self.blobs.sync().map_err(failed)?;
        self.db.flush().map_err(|error| explain(&self.path, "sync", error))?;
        self.file.sync_all().map_err(failed)
    }

    fn limits(&self) -> Limits {
        Limits { max_value: MAX_VALUE, max_batch: MAX_BATCH, max_page_bytes: MAX_PAGE }
    }

    fn close(mut self) -> Result<(), StorageError> {
        self.sync()?;
        let path = self.path.clone();
        let failed = |what: String| StorageError::backend(format!("close {}", path.display()), what);
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
            .map_err(|_| failed(format!("sled did not let go within {CLOSE_TIMEOUT:?}")))
    }
}

/// A reading side.
#[derive(Debug)]
pub(crate) struct SledReader {
    data: Tree,
    path: PathBuf,
    applying: Arc<RwLock<()>>,
    /// Held until the last user of the database is gone.
    _lock: Arc<File>,
}

impl Reader for SledReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        let key = format::encode(space, key.as_bytes());
        let value =
            sane(&self.path, || self.data.get(key).map_err(|error| explain(&self.path, "read from", error)))?;
        // Copied: an `IVec` may hold on to a whole page.
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let _no_batch = self.applying.read().unwrap_or_else(PoisonError::into_inner);
        let entries = self.data.range(format::encode_range(space, range)).map(|entry| {
            let (key, value) = entry.map_err(|error| explain(&self.path, "read from", error))?;
            Ok((format::decode(space, &key, &self.path)?, Bytes::copy_from_slice(&value)))
        });
        Ok(sane(&self.path, || page_of(entries, limit, max_bytes))?)
    }
}
