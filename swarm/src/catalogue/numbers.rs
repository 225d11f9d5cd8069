//! Allocation of the numbers of files and peers.

use std::sync::atomic::Ordering;

use tokio::time::timeout;

use super::access::{ATTEMPTS, TURN_TIMEOUT, require_same, turn_timeout};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, MAX_NUMBER, META};
use enjambre_core::{Batch, Durability};

/// The numbers that a tracker allocates at once. Those that it has not used when it stops are lost.
pub(super) const BLOCK: u64 = 1024;

impl Catalogue {
    /// Returns a number for a file or a peer that is never used again.
    pub(super) async fn next_number(&self) -> Result<u64, CatalogueError> {
        // Held over a durable commit, so that concurrent callers allocate one block together.
        let mut block = timeout(TURN_TIMEOUT, self.numbers.lock())
            .await
            .map_err(|_| turn_timeout("the allocation of file and peer numbers"))?;
        if let Some(number) = block.next() {
            return Ok(number);
        }
        let key = layout::meta_key("numbers");
        for _ in 0..ATTEMPTS {
            let raw = self.read(META, &key).await?;
            let begin = raw.as_ref().map_or(Ok(0), |raw| layout::read_number(META, raw))?;
            let end = begin.saturating_add(BLOCK);
            if end > MAX_NUMBER {
                return Err(CatalogueError::TooManyFiles);
            }
            let mut batch = Batch::new();
            require_same(&mut batch, META, key.clone(), raw);
            batch.put(META, key.clone(), layout::number(end));
            // The block of a commit with unknown outcome is lost. Durable, because a server that lost this write in a crash would
            // give the same block to another tracker.
            if !self.try_commit(batch, Durability::Durable).await? {
                continue;
            }
            *block = begin + 1..end;
            self.highest_number.fetch_max(end, Ordering::Relaxed);
            return Ok(begin);
        }
        Err(CatalogueError::Conflict)
    }
}
