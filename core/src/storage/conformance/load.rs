//! What is measured of a backend, by its benches and by `enjambre storage bench`: the loads of a tracker and of a peer.

use std::sync::Arc;

use bytes::Bytes;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

/// Where small records go.
pub const RECORDS: Space = Space::new("records");
/// Where content goes.
pub const PIECES: Space = Space::new("pieces");

/// The size of a record's value in bytes: about what a provider entry has.
const RECORD: usize = 200;

/// The key of a record or a value of content. Keys that follow each other are not neighbours.
pub fn key(number: u64) -> Key {
    // As long as a key of a catalogue: a tag and two ids.
    let mut bytes = [0x5a; 66];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Key::new(bytes.to_vec()).expect("66 bytes")
}

/// A batch that writes one small record.
pub fn record(number: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(RECORDS, key(number), vec![number as u8; RECORD]);
    batch
}

/// Commits `each` small records one by one from each of `writers` tasks, all durable.
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

/// Writes `bytes` of content in values of `value` bytes, 256 KiB to a commit or one value, and syncs every 8 MiB.
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

/// Reads `count` values one by one that [`ingest`] or [`durable_commits`] wrote.
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

/// Removes `count` values that [`ingest`] wrote, 64 to a commit.
pub async fn remove(storage: &Arc<dyn Storage>, count: u64) -> Result<(), StorageError> {
    let numbers: Vec<u64> = (0..count).collect();
    for some in numbers.chunks(64) {
        let mut batch = Batch::new();
        some.iter().for_each(|number| {
            batch.delete(PIECES, key(*number));
        });
        storage.commit(batch, Durability::Buffered).await?;
    }
    Ok(())
}

/// Scans all records, 1,000 to a page, and counts them.
pub async fn scan_records(storage: &Arc<dyn Storage>) -> Result<usize, StorageError> {
    let (mut count, mut rest) = (0, KeyRange::all());
    loop {
        let page = storage.scan(RECORDS, rest.clone(), 1000).await?;
        let Some((last, _)) = page.last() else { return Ok(count) };
        rest = rest.after(last);
        count += page.len();
    }
}
