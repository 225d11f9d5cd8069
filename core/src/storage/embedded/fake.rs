//! An engine in memory that does what a test tells it: fail, panic, or wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::storage::engine::{ApplyError, Engine, ReadError, Reader};
use crate::storage::error::StorageError;
use crate::storage::memory::Spaces;
use crate::storage::value::{Durability, Key, KeyRange, Limits, Space, Write};

/// What an operation of the engine does instead of working.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Waits until the sender is gone or sends, then works.
    Wait(Receiver<()>),
    Uncertain {
        applied: bool,
    },
    Fail,
    Panic,
    /// A read: this one and all later ones fail before the engine is opened anew.
    Break,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) spaces: Spaces,
    /// For the next openings, applies, syncs, reads and closes.
    pub(crate) on_open: VecDeque<Trouble>,
    pub(crate) on_apply: VecDeque<Trouble>,
    pub(crate) on_sync: VecDeque<Trouble>,
    pub(crate) on_read: VecDeque<Trouble>,
    pub(crate) on_close: VecDeque<Trouble>,
    /// What was done: opening, applying (how many writes), syncing.
    pub(crate) opened: usize,
    pub(crate) applied: Vec<(usize, Durability)>,
    pub(crate) synced: usize,
    open_now: bool,
    /// All reads fail until it is opened anew.
    pub(crate) broken: bool,
}

/// What the engines of a test share.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeDisk(pub(crate) Arc<Mutex<Inner>>);

impl FakeDisk {
    pub(crate) fn open(&self) -> Result<Fake, StorageError> {
        let trouble = self.0.lock().on_open.pop_front();
        meet(trouble).map_err(|_| StorageError::backend("open", "told to"))?;
        let mut inner = self.0.lock();
        if inner.open_now {
            return Err(StorageError::Locked { path: "fake".into() });
        }
        inner.open_now = true;
        inner.broken = false;
        inner.opened += 1;
        Ok(Fake(self.clone()))
    }
}

fn meet(trouble: Option<Trouble>) -> Result<(), bool> {
    match trouble {
        None => Ok(()),
        Some(Trouble::Wait(until)) => {
            let _ = until.recv();
            Ok(())
        }
        Some(Trouble::Uncertain { applied }) => Err(applied),
        Some(Trouble::Fail | Trouble::Break) => Err(false),
        Some(Trouble::Panic) => panic!("told to panic"),
    }
}

/// The key whose write is refused.
pub(crate) const REFUSED: &[u8] = b"refused";

#[derive(Debug)]
pub(crate) struct Fake(FakeDisk);

impl Drop for Fake {
    fn drop(&mut self) {
        self.0.0.lock().open_now = false;
    }
}

impl Engine for Fake {
    type Reader = FakeReader;

    fn reader(&self) -> Result<FakeReader, StorageError> {
        Ok(FakeReader(self.0.clone()))
    }

    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        let trouble = self.0.0.lock().on_apply.pop_front();
        let outcome = meet(trouble);
        let mut inner = self.0.0.lock();
        inner.applied.push((writes.len(), durability));
        if writes.iter().any(|write| write.target().1.as_bytes() == REFUSED) {
            return Err(ApplyError::Refused(StorageError::Full { source: "told to".into() }));
        }
        if outcome != Err(false) {
            for write in writes {
                inner.spaces.apply(write);
            }
        }
        outcome.map_err(|_| ApplyError::Uncertain("told to".into()))
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let trouble = self.0.0.lock().on_sync.pop_front();
        meet(trouble).map_err(|_| StorageError::backend("sync", "told to"))?;
        self.0.0.lock().synced += 1;
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits { max_value: 64 * 1024, max_batch: 8 << 20, max_page_bytes: 64 * 1024 }
    }

    fn close(self) -> Result<(), StorageError> {
        let trouble = self.0.0.lock().on_close.pop_front();
        meet(trouble).map_err(|_| StorageError::backend("close", "told to"))
    }
}

pub(crate) struct FakeReader(FakeDisk);

impl FakeReader {
    fn meet(&self) -> Result<(), ReadError> {
        let mut inner = self.0.0.lock();
        let trouble = inner.on_read.pop_front();
        inner.broken |= matches!(trouble, Some(Trouble::Break));
        if inner.broken {
            return Err(ReadError::Broken("told to".into()));
        }
        drop(inner);
        Ok(meet(trouble).map_err(|_| StorageError::backend("read", "told to"))?)
    }
}

impl Reader for FakeReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        self.meet()?;
        Ok(self.0.0.lock().spaces.get(space, key).cloned())
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.meet()?;
        Ok(self.0.0.lock().spaces.scan(space, range, limit, max_bytes))
    }
}
