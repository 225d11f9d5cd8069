//! The interface of a database server, which [`super::Queued`] adapts to [`Storage`](crate::Storage).

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::storage::error::{Source, StorageError};
use crate::storage::inspect::with_causes;
use crate::storage::value::{Condition, Durability, Key, KeyRange, Limits, Space, Write};

/// Conditions and writes that a server applies atomically.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Transaction {
    /// The conditions, all of which must hold before the writes. Their keys are distinct.
    pub conditions: Vec<Condition>,
    /// The writes. Their keys are distinct.
    pub writes: Vec<Write>,
    /// The durability of this transaction. If it is [`Durability::Durable`], the earlier ones become durable as well.
    pub durability: Durability,
    /// How long a buffered transaction should wait for locks of other transactions, if the server has locks.
    pub lock_timeout: Duration,
}

/// The outcome of a transaction that the server has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transacted {
    /// All conditions held, and all writes are applied.
    Applied,
    /// Nothing is applied, because a condition does not hold or a concurrent transaction interfered.
    Refused,
}

/// The error of a transaction.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactError {
    /// Nothing is or will be applied. [`StorageError::Unavailable`] means that the server cannot be used at the moment, and any
    /// other error that the transaction is at fault.
    #[error(transparent)]
    NotApplied(#[from] StorageError),
    /// Nothing is or will be applied, because another transaction holds a lock.
    #[error("another transaction holds a lock: {0}")]
    Contended(#[source] StorageError),
    /// The transaction may be applied, now or later.
    #[error("commit outcome unknown")]
    Unknown(#[source] Source),
}

/// The error of a transaction that may be repeated, whatever its outcome.
impl From<TransactError> for StorageError {
    fn from(error: TransactError) -> Self {
        match error {
            TransactError::NotApplied(error) | TransactError::Contended(error) => error,
            TransactError::Unknown(source) => Self::Unavailable { reason: with_causes(&*source) },
        }
    }
}

/// A client of a database server.
///
/// The methods are called concurrently, and the future of any call may be dropped. A call whose connection has failed connects
/// again; [`StorageError::Unavailable`] is an error of the connection. `Queued` limits the duration of each call.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use async_trait::async_trait;
/// use bytes::Bytes;
/// use enjambre_core::storage::engine::page_of;
/// use enjambre_core::storage::queued::{Queued, QueuedSettings, Remote, TransactError, Transacted, Transaction};
/// use enjambre_core::storage::value::MIN_WRITES;
/// use enjambre_core::{Key, KeyRange, Limits, Place, Role, Space, Storage, StorageError, Tenancy};
/// use parking_lot::Mutex;
///
/// /// The "server": a map.
/// #[derive(Debug, Default)]
/// struct Map(Mutex<BTreeMap<(Space, Key), Bytes>>);
///
/// #[async_trait]
/// impl Remote for Map {
///     async fn transact(&self, transaction: &Transaction) -> Result<Transacted, TransactError> {
///         let mut entries = self.0.lock();
///         for condition in &transaction.conditions {
///             let (space, key) = condition.target();
///             if entries.get(&(space, key.clone())) != condition.value() {
///                 return Ok(Transacted::Refused);
///             }
///         }
///         for write in &transaction.writes {
///             let (space, key) = write.target();
///             match write.value() {
///                 Some(value) => entries.insert((space, key.clone()), value.clone()),
///                 None => entries.remove(&(space, key.clone())),
///             };
///         }
///         Ok(Transacted::Applied)
///     }
///
///     async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
///         let entries = self.0.lock();
///         Ok(keys.iter().map(|key| entries.get(&(space, key.clone())).cloned()).collect())
///     }
///
///     async fn scan(
///         &self,
///         space: Space,
///         range: &KeyRange,
///         limit: usize,
///     ) -> Result<Vec<(Key, Bytes)>, StorageError> {
///         let entries = self.0.lock();
///         let found = entries.iter().filter(|((of, key), _)| *of == space && range.contains(key));
///         page_of(found.map(|((_, key), value)| Ok((key.clone(), value.clone()))), limit, 1 << 20)
///     }
///
///     fn limits(&self) -> Limits {
///         Limits { max_value: 1 << 20, max_batch: 8 << 20, max_writes: MIN_WRITES, max_page_bytes: 1 << 20 }
///     }
///
///     fn description(&self) -> &str {
///         "map"
///     }
/// }
///
/// # fn main() -> Result<(), StorageError> {
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// # let dir = tempfile::tempdir().unwrap();
/// let place = Place::new(dir.path(), Tenancy::Shared);
/// let storage = Queued::open(Map::default(), &place, Role::Records, QueuedSettings::default()).await?;
/// assert_eq!(storage.get(Space::new("users"), &[Key::new("alice")?]).await?, [None]);
/// storage.close().await
/// # })
/// # }
/// ```
#[async_trait]
pub trait Remote: Debug + Send + Sync + 'static {
    /// Connects and creates what the database needs, for example tables. Called before all other methods, and again while it
    /// fails with [`StorageError::Unavailable`].
    async fn prepare(&self) -> Result<(), StorageError> {
        Ok(())
    }

    /// Applies a transaction atomically. Transactions of all clients are strictly serializable: each one observes all those that
    /// ended before it began.
    ///
    /// A transaction exceeds [`Remote::limits`] by at most one condition and one write of 200 bytes each.
    async fn transact(&self, transaction: &Transaction) -> Result<Transacted, TransactError>;

    /// Returns the value of each key in the order of `keys`, or `None` for an absent key. The call observes every transaction
    /// that ended before it began. `keys` is not empty.
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError>;

    /// Returns a page of a range, see [`Storage::scan`](crate::Storage::scan). The page is a snapshot. The range is not empty, and
    /// `limit` is not 0.
    async fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError>;

    /// Returns the limits, which are known before [`Remote::prepare`] and do not change.
    fn limits(&self) -> Limits;

    /// Returns a description of the database for messages, such as its name and server, without a password.
    fn description(&self) -> &str;

    /// Closes all connections. All calls have ended.
    async fn close(&self) {}
}
