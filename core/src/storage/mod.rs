//! The plug-in trait for databases: spaces, keys, bytes and atomic batches.
//!
//! What the bytes mean lives once, above it, in [`crate::catalogue`] and [`crate::library`]. A networked backend
//! implements [`Storage`] itself. An embedded engine is synchronous: it implements the small [`engine::Engine`],
//! and [`embedded::Embedded`] makes it a `Storage` with group commit and reader threads. The obligations below
//! are checked by the `conformance` kit (feature `testkit`).

#[cfg(any(test, feature = "testkit"))]
pub mod conformance;
pub mod copy;
pub mod embedded;
pub mod engine;
pub mod error;
#[cfg(any(test, feature = "testkit"))]
pub mod fault;
pub mod layers;
pub mod memory;
pub mod place;
pub mod value;

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use error::StorageError;
use value::{Batch, Durability, Key, KeyRange, Limits, Space};

/// What a storage is opened for, so that a backend can choose page sizes and table shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Many small records.
    Records,
    /// Pieces of files: values of up to the backend's largest, written once.
    Content,
}

/// An ordered key-value store with atomic, conditional batches.
///
/// Keys are ordered by unsigned bytes within their space; a space that was never written is empty. Every method
/// may be called from many tasks at once. After [`Storage::close`] each method returns
/// [`StorageError::Closed`]. No method blocks the thread it is polled on.
#[async_trait]
pub trait Storage: Debug + Send + Sync + 'static {
    /// The value of each key, in the order asked for; `None` where a key is absent. What a successful commit
    /// wrote before the call began is seen. The values of one call are not a snapshot.
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError>;

    /// One page of the entries in `range`, ascending by unsigned bytes of the key: at most `limit` entries and
    /// about [`Limits::max_page_bytes`] bytes, but at least one entry where there is one and `limit` is not 0.
    /// Ask for the next page with [`KeyRange::after`] the last key; an empty page is the end. A page is
    /// consistent in itself; several pages are not a snapshot.
    async fn scan(
        &self,
        space: Space,
        range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError>;

    /// Applies all of the batch or nothing of it. Its conditions are checked and its writes applied, in their
    /// order, as one step in the order of all commits.
    ///
    /// - [`StorageError::Conflict`]: a condition does not hold; nothing was applied.
    /// - [`StorageError::TooLarge`]: nothing was applied, and it never will fit.
    /// - [`StorageError::Full`]: nothing was applied; it may be repeated once there is room.
    /// - [`StorageError::Indeterminate`]: it is not known whether the batch was applied. Not to be repeated
    ///   blindly: the repeated batch would meet its own writes as a `Conflict`.
    ///
    /// On `Ok` with [`Durability::Buffered`] the batch survives a crash of the process; with
    /// [`Durability::Durable`] it and everything committed before it survives a power cut. Dropping the future
    /// leaves nothing half applied: the batch is applied in whole or not at all.
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StorageError>;

    /// Returns when everything that was committed before the call survives a power cut.
    ///
    /// After an error, whichever it is, some of what was only [`Durability::Buffered`] may be lost, and a later sync that
    /// succeeds speaks for what is there then. So it is not repeated blindly: whoever has to know looks, or writes it again.
    async fn sync(&self) -> Result<(), StorageError>;

    /// What this backend can hold. Constant over the life of the storage.
    fn limits(&self) -> Limits;

    /// Makes everything durable and lets go of files, locks and connections. Calls under way finish or return
    /// [`StorageError::Closed`]. A second `close` is `Ok`. Dropping a storage without it loses nothing that was
    /// acknowledged, but may leave the release of its lock to the background.
    async fn close(&self) -> Result<(), StorageError>;
}
