//! The plug-in trait for databases: an ordered key-value store with atomic batches.
//!
//! An embedded, synchronous engine implements the small trait [`engine::Engine`], and [`embedded::Embedded`] adapts it to
//! `Storage` with group commit and reader threads. The client of a database server implements [`queued::Remote`], and
//! [`queued::Queued`] adapts it with group commit, retries and the lookup of interrupted commits. The meaning of keys
//! and values is defined in the catalogue and the library of the crate `enjambre-swarm`. The conformance test suite of
//! the crate `enjambre-testkit` tests the requirements of `Storage`.

pub mod budget;
pub mod database_file;
pub mod embedded;
pub mod engine;
pub mod error;
pub mod format;
pub mod inspect;
pub mod layers;
pub mod location;
pub mod memory;
pub mod metrics;
pub mod pages;
pub mod password;
pub mod queued;
pub mod value;

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use error::StorageError;
use metrics::StorageMetrics;
use value::{Batch, Durability, Key, KeyRange, Limits, Space};

pub use value::Role;

/// An ordered key-value store with atomic, conditional batches.
///
/// Keys are sorted by unsigned bytes within their space. A space that was never written is empty. All methods may be called
/// concurrently. After [`Storage::close`] every method returns [`StorageError::Closed`]. No method blocks the polling thread.
///
/// ```
/// use enjambre_core::{Batch, Durability, Key, KeyRange, Memory, Space, Storage, StorageError};
///
/// const USERS: Space = Space::new("users");
///
/// # fn main() -> Result<(), StorageError> {
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let storage = Memory::new();
/// let alice = Key::new("alice")?;
/// let mut batch = Batch::new();
/// batch.require_absent(USERS, alice.clone()).put(USERS, alice.clone(), "1");
/// storage.commit(batch.clone(), Durability::Durable).await?;
/// // The condition of the same batch does not hold any more.
/// assert!(matches!(storage.commit(batch, Durability::Durable).await, Err(StorageError::Conflict)));
/// assert_eq!(storage.get(USERS, &[alice.clone()]).await?, [Some("1".into())]);
/// assert_eq!(storage.scan(USERS, KeyRange::all(), 10).await?, [(alice, "1".into())]);
/// storage.close().await
/// # })
/// # }
/// ```
#[async_trait]
pub trait Storage: Debug + Send + Sync + 'static {
    /// Returns the value of each key in the order of `keys`, or `None` for an absent key. The call observes every commit that
    /// returned before it started. The values are not a snapshot.
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError>;

    /// Returns one page of the entries in `range` in ascending order of the unsigned bytes of their keys: at most `limit` entries
    /// and about [`Limits::max_page_bytes`] bytes, but at least one entry if the range is not empty and `limit` is not 0. The
    /// range [`KeyRange::after`] the last key is the next page; an empty page is the end (see
    /// [`pages::StorageExt::pages`]). A page is a snapshot; several pages together are not.
    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError>;

    /// Applies the batch atomically. Commits are serializable: the conditions are checked and the writes applied in order as one
    /// step.
    ///
    /// After `Ok` with [`Durability::Buffered`] the batch survives a crash of the process. With [`Durability::Durable`] the
    /// batch and all earlier commits survive a power failure. If the future is dropped, the batch is applied completely or not
    /// at all.
    ///
    /// # Errors
    /// - [`StorageError::Conflict`]: a condition does not hold. Nothing is applied.
    /// - [`StorageError::TooLarge`]: the batch exceeds the limits. Nothing is applied.
    /// - [`StorageError::Full`]: no space left. Nothing is applied; the batch may be repeated after space is freed.
    /// - [`StorageError::Indeterminate`]: the batch may or may not be applied. A caller must not simply repeat it, because the
    ///   repeated batch could conflict with its own writes.
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError>;

    /// Makes all commits that returned before the call durable.
    ///
    /// # Errors
    /// After any error, commits with [`Durability::Buffered`] may be lost, and a later successful sync does not prove the
    /// opposite. So a caller must not simply repeat it, but check or rewrite its data.
    async fn sync(&self) -> Result<(), StorageError>;

    /// Returns the limits of the backend, which do not change while the storage is open.
    fn limits(&self) -> Limits;

    /// Makes all commits durable and releases files, locks and connections. Calls in progress finish or return
    /// [`StorageError::Closed`]. A second `close` returns `Ok`. A storage that is dropped without `close` loses no acknowledged
    /// commit, but its lock may be released later, in the background.
    async fn close(&self) -> Result<(), StorageError>;

    /// Returns the metrics of the calls. Backends need not count: [`layers::observe`] does, around each of them.
    fn metrics(&self) -> Option<&StorageMetrics> {
        None
    }
}
