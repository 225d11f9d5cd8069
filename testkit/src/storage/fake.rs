//! An embedded engine in memory that fails, panics or blocks on request.
//!
//! It tests the adapter [`enjambre_core::storage::embedded::Embedded`]. [`FakeDisk`] outlives the engines opened on it and holds
//! the faults to come, in a queue for each operation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use enjambre_core::storage::memory::Spaces;
use enjambre_core::storage::value::MIN_WRITES;
use enjambre_core::{
    ApplyError, Durability, Engine, Key, KeyRange, Limits, ReadError, Reader, Space, StorageError, Write,
};

/// A failure of one operation.
#[derive(Debug)]
pub enum EngineFault {
    /// Blocks until the sender sends or is dropped, then succeeds.
    Block(Receiver<()>),
    /// A commit fails with an unknown outcome.
    Uncertain {
        /// Whether the writes are applied nevertheless.
        applied: bool,
    },
    /// Fails; nothing is applied.
    Fail,
    /// Panics.
    Panic,
    /// A read fails, and so does every later one until the engine is reopened.
    Break,
}

/// The data, the faults to come, and the counters of a [`FakeDisk`].
#[derive(Debug, Default)]
pub struct FakeState {
    spaces: Spaces,
    /// Faults of the next calls of [`FakeDisk::open`].
    pub on_open: VecDeque<EngineFault>,
    /// Faults of the next calls of [`Engine::apply`].
    pub on_apply: VecDeque<EngineFault>,
    /// Faults of the next calls of [`Engine::sync`].
    pub on_sync: VecDeque<EngineFault>,
    /// Faults of the next calls of [`Reader`].
    pub on_read: VecDeque<EngineFault>,
    /// Faults of the next calls of [`Engine::close`].
    pub on_close: VecDeque<EngineFault>,
    /// The number of successful openings.
    pub opened: usize,
    /// The number of writes and the durability of each [`Engine::apply`].
    pub applied: Vec<(usize, Durability)>,
    /// The number of successful syncs.
    pub synced: usize,
    /// Whether all reads fail until the engine is reopened.
    pub broken: bool,
    open_now: bool,
}

/// A disk in memory on which one [`FakeEngine`] at a time is open.
#[derive(Debug, Clone, Default)]
pub struct FakeDisk(Arc<Mutex<FakeState>>);

impl FakeDisk {
    /// The state, for adding faults and reading counters.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock()
    }

    /// Opens an engine.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if one is open, or the next fault of [`FakeState::on_open`].
    pub fn open(&self) -> Result<FakeEngine, StorageError> {
        let fault = self.0.lock().on_open.pop_front();
        meet(fault).map_err(|_| StorageError::backend("open", "injected fault"))?;
        let mut inner = self.0.lock();
        if inner.open_now {
            return Err(StorageError::Locked { path: "fake".into() });
        }
        inner.open_now = true;
        inner.broken = false;
        inner.opened += 1;
        Ok(FakeEngine(self.clone()))
    }
}

/// Applies a fault. The error says whether the writes of a commit are applied nevertheless.
fn meet(fault: Option<EngineFault>) -> Result<(), bool> {
    match fault {
        None => Ok(()),
        Some(EngineFault::Block(until)) => {
            let _ = until.recv();
            Ok(())
        }
        Some(EngineFault::Uncertain { applied }) => Err(applied),
        Some(EngineFault::Fail | EngineFault::Break) => Err(false),
        Some(EngineFault::Panic) => panic!("injected panic"),
    }
}

/// A key that the engine refuses to write.
pub const REFUSED: &[u8] = b"refused";

/// An engine on a [`FakeDisk`].
#[derive(Debug)]
pub struct FakeEngine(FakeDisk);

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.0.state().open_now = false;
    }
}

impl Engine for FakeEngine {
    type Reader = FakeReader;

    fn reader(&self) -> Result<FakeReader, StorageError> {
        Ok(FakeReader(self.0.clone()))
    }

    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError> {
        let fault = self.0.state().on_apply.pop_front();
        let outcome = meet(fault);
        let mut inner = self.0.state();
        inner.applied.push((writes.len(), durability));
        if writes.iter().any(|write| write.target().1.as_bytes() == REFUSED) {
            return Err(ApplyError::Refused(StorageError::Full { source: "injected fault".into() }));
        }
        if outcome != Err(false) {
            for write in writes {
                inner.spaces.apply(write);
            }
        }
        outcome.map_err(|_| ApplyError::Uncertain("injected fault".into()))
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let fault = self.0.state().on_sync.pop_front();
        meet(fault).map_err(|_| StorageError::backend("sync", "injected fault"))?;
        self.0.state().synced += 1;
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits { max_value: 64 * 1024, max_batch: 8 << 20, max_writes: MIN_WRITES, max_page_bytes: 64 * 1024 }
    }

    fn close(self) -> Result<(), StorageError> {
        let fault = self.0.state().on_close.pop_front();
        meet(fault).map_err(|_| StorageError::backend("close", "injected fault"))
    }
}

/// A reader of a [`FakeEngine`].
#[derive(Debug)]
pub struct FakeReader(FakeDisk);

impl FakeReader {
    fn meet(&self) -> Result<(), ReadError> {
        let mut inner = self.0.state();
        let fault = inner.on_read.pop_front();
        inner.broken |= matches!(fault, Some(EngineFault::Break));
        if inner.broken {
            return Err(ReadError::Broken("injected fault".into()));
        }
        drop(inner);
        Ok(meet(fault).map_err(|_| StorageError::backend("read", "injected fault"))?)
    }
}

impl Reader for FakeReader {
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
        self.meet()?;
        Ok(self.0.state().spaces.get(space, key).cloned())
    }

    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError> {
        self.meet()?;
        Ok(self.0.state().spaces.scan(space, range, limit, max_bytes))
    }
}
