//! The workloads of benchmarks and of `enjambre storage bench`, similar to those of a tracker and of a peer.

use std::sync::Arc;

use bytes::Bytes;

use enjambre_core::storage::pages::StorageExt as _;
use enjambre_core::{Batch, Durability, Key, KeyRange, Space, Storage, StorageError};

/// The space of small records.
pub const RECORDS: Space = Space::new("records");
/// The space of content.
pub const PIECES: Space = Space::new("pieces");

/// The size of the value of a record in bytes, similar to a provider entry.
const RECORD: usize = 200;

/// Returns the key with this number. Consecutive numbers have distant keys.
pub fn key(number: u64) -> Key {
    // The length of a key of the catalogue: a tag and two ids.
    let mut bytes = [0x5a; 66];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Key::new(bytes.to_vec()).expect("66 bytes")
}

/// Returns a batch that writes a small record.
pub fn record(number: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(RECORDS, key(number), vec![number as u8; RECORD]);
    batch
}

/// Commits `each` small records durably, one by one, in each of `writers` tasks.
pub async fn durable_commits(
    storage: &Arc<dyn Storage>,
    writers: u64,
    each: u64,
) -> Result<(), StorageError> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let storage = storage.clone();
        tasks.spawn(async move {
            for number in 0..each {
                storage.commit(record(writer << 32 | number), Durability::Durable).await?;
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Writes `bytes` bytes of content in values of `value` bytes, with 256 KiB or one value per commit, and syncs every 8 MiB.
pub async fn ingest(storage: &Arc<dyn Storage>, bytes: usize, value: usize) -> Result<(), StorageError> {
    let content: Bytes = (0..value).map(|index| (index * 31) as u8).collect();
    let mut since_sync = 0;
    let mut commits = tokio::task::JoinSet::new();
    let per_commit = (256 * 1024 / value).max(1);
    for number in 0..bytes / value / per_commit {
        let mut batch = Batch::new();
        for part in 0..per_commit {
            batch.put(PIECES, key((number * per_commit + part) as u64), content.clone());
        }
        let storage_of_task = storage.clone();
        commits.spawn(async move { storage_of_task.commit(batch, Durability::Buffered).await });
        if commits.len() == 16
            && let Some(outcome) = commits.join_next().await
        {
            outcome.map_err(|error| StorageError::backend("commit", error))??;
        }
        since_sync += per_commit * value;
        if since_sync >= 8 << 20 {
            since_sync = 0;
            storage.sync().await?;
        }
    }
    commits.join_all().await.into_iter().collect::<Result<(), _>>()?;
    storage.sync().await
}

/// Reads `count` values of [`ingest`] or [`durable_commits`] one by one.
pub async fn read_one_by_one(
    storage: &Arc<dyn Storage>,
    pieces: bool,
    count: u64,
) -> Result<usize, StorageError> {
    let space = if pieces { PIECES } else { RECORDS };
    let mut bytes = 0;
    for number in 0..count {
        let values = storage.get(space, &[key(number)]).await?;
        bytes += values[0].as_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

/// Deletes `count` values of [`ingest`], 64 per commit.
pub async fn remove(storage: &Arc<dyn Storage>, count: u64) -> Result<(), StorageError> {
    let numbers: Vec<u64> = (0..count).collect();
    for chunk in numbers.chunks(64) {
        let mut batch = Batch::new();
        chunk.iter().for_each(|number| {
            batch.delete(PIECES, key(*number));
        });
        storage.commit(batch, Durability::Buffered).await?;
    }
    Ok(())
}

/// Scans all records in pages of 1,000 entries and counts them.
pub async fn scan_records(storage: &Arc<dyn Storage>) -> Result<usize, StorageError> {
    let (mut pages, mut count) = (storage.pages(RECORDS, KeyRange::all(), 1000), 0);
    while let Some(page) = pages.next().await? {
        count += page.len();
    }
    Ok(count)
}
