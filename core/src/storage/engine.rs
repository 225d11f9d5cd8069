//! The small synchronous interface of an embedded engine, which [`super::embedded::Embedded`] makes a
//! [`super::Storage`].
//!
//! The adapter opens the engine on a thread that may block, asks it for its readers, one more than there are reader
//! threads, and then calls it from one writer thread. A reader is used by one thread at a time, not always the same, also
//! while the engine writes. The adapter checks sizes, keys and conditions, gathers what is queued into one group, and
//! answers the callers; an engine only reads and writes.
//!
//! An engine that failed or panicked is dropped without [`Engine::close`], on any thread, and opened anew when that is
//! done. A reader that hangs may outlive it by then.

use std::fmt::Debug;

use bytes::Bytes;

use super::error::{Source, StorageError};
use super::value::{Durability, Key, KeyRange, Limits, Space, Write};

/// What became of a group of writes that the engine could not commit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// Nothing of it is or will be applied, and the engine goes on working.
    #[error("the writes were refused: {0}")]
    Refused(#[source] StorageError),
    /// The commit itself failed: whether it is applied is known only after a reopen. The adapter answers
    /// `Indeterminate`, drops the engine and opens it anew.
    #[error("the commit failed in the middle")]
    Uncertain(#[source] Source),
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This read failed, and the engine goes on working.
    #[error(transparent)]
    Failed(#[from] StorageError),
    /// Nothing can be read any more before the engine is opened anew, as with engines that refuse everything after the
    /// first error of the disk. The adapter answers `Unavailable`, drops the engine and opens it anew.
    #[error("the engine has to be opened anew")]
    Broken(#[source] Source),
}

/// The writing side of an embedded engine.
pub trait Engine: Debug + Send + 'static {
    /// The reading side.
    type Reader: Reader;

    /// A new reader of this engine. It sees every commit that `apply` returned from, by the next call at the latest.
    fn reader(&self) -> Result<Self::Reader, StorageError>;

    /// Applies the writes in their order, all of them or none. With [`Durability::Durable`] they and everything
    /// before them survive a power cut on return; with [`Durability::Buffered`] a `kill -9` of the process.
    ///
    /// There is at least one write. They are those of a group of batches, in several spaces, of up to
    /// [`super::embedded::EmbeddedSettings::group_bytes`] and one batch more; of several to one key the last one counts.
    fn apply(&mut self, writes: &[Write], durability: Durability) -> Result<(), ApplyError>;

    /// Returns when everything applied so far survives a power cut, also what an earlier opening applied and this one
    /// found. It may be called when there is nothing new. After an error the adapter drops the engine and opens it anew.
    fn sync(&mut self) -> Result<(), StorageError>;

    /// What the engine can hold. Asked once, after the first opening.
    fn limits(&self) -> Limits;

    /// Lets go of files and locks after everything is durable, within
    /// [`super::embedded::EmbeddedSettings::close_timeout`]: then the caller is told that it did not end. Its readers are
    /// gone by then, but for one that hangs.
    fn close(self) -> Result<(), StorageError>;
}

/// The reading side of an embedded engine; used from one thread at a time.
pub trait Reader: Send + 'static {
    /// The value of the key, `None` where it is absent, also where its space was never written.
    fn get(&mut self, space: Space, key: &Key) -> Result<Option<Bytes>, ReadError>;

    /// Entries of the range in ascending order of unsigned bytes: at most `limit` entries, and none after the page has
    /// reached `max_bytes` bytes of keys and values, see [`page_of`]. All of it is of one moment, so that no group is seen in
    /// part. The range is one that can hold a key, and `limit` is not 0.
    fn scan(
        &mut self,
        space: Space,
        range: &KeyRange,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Key, Bytes)>, ReadError>;
}

/// Cuts the entries of a range, in their order, to the page that [`Reader::scan`] is asked for.
pub fn page_of<K: AsRef<[u8]>, V: AsRef<[u8]>, E>(
    entries: impl IntoIterator<Item = Result<(K, V), E>>,
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<(K, V)>, E> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for entry in entries.into_iter().take(limit) {
        let (key, value) = entry?;
        bytes += key.as_ref().len() + value.as_ref().len();
        page.push((key, value));
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(page)
}
