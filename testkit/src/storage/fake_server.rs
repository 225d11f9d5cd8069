//! A database server in memory that loses replies, delays transactions and fails on request.
//!
//! It tests the adapter [`enjambre_core::storage::queued::Queued`]. The clones of a [`FakeServer`] are clients of the same server.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::storage::memory::Spaces;
use enjambre_core::storage::queued::{Remote, TransactError, Transacted, Transaction};
use enjambre_core::storage::value::MIN_WRITES;
use enjambre_core::{Durability, Key, KeyRange, Limits, Space, StorageError, Write};
use parking_lot::{Mutex, MutexGuard};

const LIMITS: Limits =
    Limits { max_value: 64 * 1024, max_batch: 8 << 20, max_writes: MIN_WRITES, max_page_bytes: 64 * 1024 };

/// A fault of a transaction.
#[derive(Debug)]
pub enum ServerFault {
    /// The transaction is applied, but its reply is lost.
    ReplyLost,
    /// The transaction is lost.
    RequestLost,
    /// The reply is lost, and the transaction takes effect only with the next call of [`FakeState::deliver`].
    Delayed,
    /// The connection cannot be established.
    Unavailable,
    /// Another transaction holds a lock.
    Contended,
    /// No reply ever arrives, and the transaction is lost.
    Silent,
    /// A concurrent transaction interferes.
    Interfered,
}

/// The data of the server, the faults to come, and counters.
#[derive(Debug, Default)]
pub struct FakeState {
    /// The entries.
    pub spaces: Spaces,
    /// The entries that survive a power failure.
    pub durable: Spaces,
    /// The faults of the next transactions.
    pub faults: VecDeque<ServerFault>,
    /// Whether every call fails.
    pub down: bool,
    /// The number of conditions and writes and the durability of each transaction that arrived.
    pub arrived: Vec<(usize, usize, Durability)>,
    delayed: Vec<Transaction>,
}

impl FakeState {
    /// Lets the delayed transactions take effect.
    pub fn deliver(&mut self) {
        for transaction in std::mem::take(&mut self.delayed) {
            self.apply(&transaction);
        }
    }

    /// Loses the transactions that are not durable.
    pub fn power_failure(&mut self) {
        self.spaces = self.durable.clone();
    }

    /// Loses all data.
    pub fn empty(&mut self) {
        self.spaces = Spaces::default();
    }

    fn apply(&mut self, transaction: &Transaction) -> Transacted {
        if !transaction.conditions.iter().all(|condition| self.spaces.holds(condition)) {
            return Transacted::Refused;
        }
        for write in &transaction.writes {
            self.spaces.apply(write);
        }
        if transaction.durability == Durability::Durable {
            self.durable = self.spaces.clone();
        }
        Transacted::Applied
    }

    fn check_up(&self) -> Result<(), StorageError> {
        if self.down {
            Err(StorageError::Unavailable { reason: "injected fault".to_owned() })
        } else {
            Ok(())
        }
    }
}

/// A key that the server refuses to write.
pub const REJECTED: &[u8] = b"rejected";

/// A client of a server in memory.
#[derive(Debug, Clone, Default)]
pub struct FakeServer(Arc<Mutex<FakeState>>);

impl FakeServer {
    /// The state, for adding faults and reading data and counters.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock()
    }
}

#[async_trait]
impl Remote for FakeServer {
    async fn prepare(&self) -> Result<(), StorageError> {
        self.state().check_up()
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Transacted, TransactError> {
        tokio::task::yield_now().await;
        let unavailable = || StorageError::Unavailable { reason: "injected fault".to_owned() };
        let is_silent = {
            let mut state = self.state();
            state.check_up()?;
            let (conditions, writes) = (transaction.conditions.len(), transaction.writes.len());
            state.arrived.push((conditions, writes, transaction.durability));
            let is_rejected = |write: &Write| write.target().1.as_bytes() == REJECTED;
            if transaction.writes.iter().any(is_rejected) {
                return Err(StorageError::Full { source: "injected fault".into() }.into());
            }
            match state.faults.pop_front() {
                None => return Ok(state.apply(transaction)),
                Some(ServerFault::ReplyLost) => {
                    state.apply(transaction);
                    false
                }
                Some(ServerFault::RequestLost) => false,
                Some(ServerFault::Delayed) => {
                    state.delayed.push(transaction.clone());
                    false
                }
                Some(ServerFault::Unavailable) => return Err(unavailable().into()),
                Some(ServerFault::Contended) => return Err(TransactError::Contended(unavailable())),
                Some(ServerFault::Interfered) => return Ok(Transacted::Refused),
                Some(ServerFault::Silent) => true,
            }
        };
        if is_silent {
            std::future::pending::<()>().await;
        }
        Err(TransactError::Unknown("the connection failed".into()))
    }

    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let state = self.state();
        state.check_up()?;
        Ok(keys.iter().map(|key| state.spaces.get(space, key).cloned()).collect())
    }

    async fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        let state = self.state();
        state.check_up()?;
        Ok(state.spaces.scan(space, range, limit, LIMITS.max_page_bytes))
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn description(&self) -> &str {
        "the fake server"
    }
}
