//! Returning the space of deleted entries to the file system.

use enjambre_core::{Engine, Role, StorageError};

use crate::error::explain;
use crate::storage::Sqlite;

/// The number of pages that one transaction moves: 16 MiB of content.
pub(crate) const PAGES: u32 = 256;

impl Sqlite {
    /// Shrinks the database and closes it. Returns the number of freed bytes.
    ///
    /// Content moves within its file, in small transactions, so a full disk suffices. Records are copied, since they are
    /// much smaller.
    pub(crate) fn compact(self) -> Result<u64, StorageError> {
        let path = self.path().to_owned();
        let length = || std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let before = length();
        let compacted = match self.role() {
            Role::Records => self.connection().execute_batch("VACUUM"),
            Role::Content => self.release_pages(),
        };
        compacted.map_err(|error| explain(&path, "compact", error))?;
        self.close()?;
        Ok(before.saturating_sub(length()))
    }

    fn release_pages(&self) -> rusqlite::Result<()> {
        let mut before = i64::MAX;
        loop {
            let now = self.unused_pages()?;
            if now == 0 || now >= before {
                return Ok(());
            }
            before = now;
            self.release_some()?;
        }
    }

    pub(crate) fn unused_pages(&self) -> rusqlite::Result<i64> {
        self.connection().pragma_query_value(None, "freelist_count", |row| row.get(0))
    }

    /// Releases up to [`PAGES`] pages. Each step of the statement releases one.
    pub(crate) fn release_some(&self) -> rusqlite::Result<()> {
        let mut statement =
            self.connection().prepare_cached(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}
