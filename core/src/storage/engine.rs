//! The synchronous interface of an embedded engine, which [`super::embedded::Embedded`] adapts to [`super::Storage`].
//!
//! The adapter opens the engine on a blocking thread, creates one reader for each reader thread and one for the writer, and
//! calls the engine from the writer thread. A reader is used by one thread at a time, but not always by the same, and
//! concurrently with writes. The adapter validates keys and sizes, checks conditions, groups queued batches and replies to the
//! callers. The engine only reads and writes.
//!
//! An engine that failed or panicked is dropped without [`Engine::close`] on any thread, then reopened. A reader that hangs may
//! outlive it.

use std::fmt::Debug;

use bytes::Bytes;

use super::error::{Source, StorageError};
use super::pages::PageBudget;
use super::value::{Durability, Key, KeyRange, Limits, Space, Write};

/// The error of a group of writes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// Nothing is or will be applied, and the engine remains usable.
    #[error("writes refused: {0}")]
    Refused(#[source] StorageError),
    /// The commit failed, and only a reopen shows whether it is applied. The adapter returns `Indeterminate` and reopens the
    /// engine.
    #[error("commit outcome unknown")]
    Uncertain(#[source] Source),
}

/// The error of a read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The read failed, and the engine remains usable.
    #[error(transparent)]
    Failed(#[from] StorageError),
    /// No read can succeed until the engine is reopened, as with engines that refuse all calls after the first I/O error. The
    /// adapter returns `Unavailable` and reopens the engine.
    #[error("the engine must be reopened")]
    Broken(#[source] Source),
}

/// The writer of an embedded engine.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::{Arc, Mutex};
///
/// use bytes::Bytes;
/// use enjambre_core::storage::engine::{ApplyError, ReadError, Reader, page_of};
/// use enjambre_core::{
///     Durability, Embedded, EmbeddedSettings, Engine, Key, KeyRange, Limits, Space, Storage, StorageError, Write,
/// };
///
/// type Entries = Arc<Mutex<BTreeMap<(Space, Key), Bytes>>>;
///
/// #[derive(Debug, Default)]
/// struct Map(Entries);
/// struct MapReader(Entries);
///
/// impl Engine for Map {
///     type Reader = MapReader;
///
///     fn reader(&self) -> Result<MapReader, StorageError> {
///         Ok(MapReader(self.0.clone()))
///     }
///
///     fn apply(&mut self, writes: &[Write], _: Durability) -> Result<(), ApplyError> {
///         let mut entries = self.0.lock().unwrap();
///         for write in writes {
///             let (space, key) = write.target();
///             match write.value() {
///                 Some(value) => entries.insert((space, key.clone()), value.clone()),
///                 None => entries.remove(&(space, key.clone())),
///             };
///         }
///         Ok(())
///     }
///
///     fn sync(&mut self) -> Result<(), StorageError> {
///         Ok(())
///     }
///
///     fn limits(&self) -> Limits {
///         Limits { max_value: 1 << 20, max_batch: 8 << 20, max_writes: usize::MAX, max_page_bytes: 1 << 20 }
///     }
///
///     fn close(self) -> Result<(), StorageError> {
///         Ok(())
///     }
/// }
///
/// impl Reader for MapReader {
///     fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError> {
///         Ok(self.0.lock().unwrap().get(&(space, key.clone())).cloned())
///     }
///
///     fn scan(
///         &mut self,
///         space: Space,
///         range: &KeyRange,
///         limit: usize,
///         max_bytes: usize,
///     ) -> Result<Vec<(Key, Bytes)>, ReadError> {
///         let entries = self.0.lock().unwrap();
///         let found = entries.iter().filter(|((of, key), _)| *of == space && range.contains(key));
///         page_of(found.map(|((_, key), value)| Ok((key.clone(), value.clone()))), limit, max_bytes)
///     }
/// }
///
/// # fn main() -> Result<(), StorageError> {
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let storage = Embedded::open(EmbeddedSettings::default(), || Ok(Map::default())).await?;
/// assert_eq!(storage.get(Space::new("users"), &[Key::new("alice")?]).await?, [None]);
/// storage.close().await
/// # })
/// # }
/// ```
pub trait Engine: Debug + Send + 'static {
    /// The reader of this engine.
    type Reader: Reader;

    /// Creates a reader. Each of its calls observes all writes for which `apply` returned before the call.
    fn reader(&self) -> Result<Self::Reader, StorageError>;

    /// Applies the writes in order and atomically. After `Ok` with [`Durability::Durable`], these and all earlier writes survive a
    /// power failure. With [`Durability::Buffered`] they survive `kill -9`.
    ///
    /// `writes` is not empty. It contains the writes of a group of batches to several spaces, with a total size of up to
    /// [`super::embedded::EmbeddedSettings::group_bytes`] plus one batch. The last write to a key wins.
    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError>;

    /// Makes all applied writes durable, including those of earlier openings. It may be called without new writes. After an
    /// error the adapter reopens the engine.
    fn sync(&mut self) -> Result<(), StorageError>;

    /// Returns the limits of the engine. Called once, after the first opening.
    fn limits(&self) -> Limits;

    /// Makes all writes durable and releases files and locks. If this takes longer than
    /// [`super::embedded::EmbeddedSettings::close_timeout`], the caller gets an error. All readers are dropped before, except
    /// those that hang.
    fn close(self) -> Result<(), StorageError>;
}

/// A reader of an embedded engine, used by one thread at a time.
pub trait Reader: Send + 'static {
    /// Returns the value of a key, or `None` if the key or its space does not exist.
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError>;

    /// Returns entries of the range in ascending order of unsigned bytes: at most `limit` entries, and no more after the page
    /// reached `max_bytes` bytes of keys and values, see [`page_of`]. The page is a snapshot. The range is not empty
    /// ([`KeyRange::is_empty`]), and `limit` is not 0.
    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError>;
}

/// Collects the page of [`Reader::scan`] from the sorted entries of the range.
pub fn page_of<K: AsRef<[u8]>, V: AsRef<[u8]>, E>(
    entries: impl IntoIterator<Item = Result<(K, V), E>>,
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<(K, V)>, E> {
    let (mut page, mut budget) = (Vec::new(), PageBudget::new(limit, max_bytes));
    let mut entries = entries.into_iter();
    while !budget.is_complete()
        && let Some(entry) = entries.next()
    {
        let (key, value) = entry?;
        budget.add(key.as_ref().len() + value.as_ref().len());
        page.push((key, value));
    }
    Ok(page)
}
