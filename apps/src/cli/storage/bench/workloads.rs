//! Workloads of `enjambre storage bench`: those of a tracker on records, and those of a peer on content.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use enjambre_core::{Batch, Durability, Storage, StorageError};
use enjambre_testkit::storage::load::{PIECES, RECORDS, key, record, scan_records};
use rand::RngExt;
use tokio::task::JoinSet;

use super::measurement::Measurement;

/// Maximum number of operations of a workload, which limits the use of memory and disk.
const MAX_OPERATIONS: u64 = 200_000;
const WRITERS: u64 = 16;
const PIECE_SIZE: usize = 4 << 20;
const MAX_PIECES: u64 = 128;
const PIECE_WRITERS: usize = 4;

type SharedStorage = Arc<dyn Storage>;

pub(super) async fn records(
    storage: &SharedStorage,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), StorageError> {
    let (mut next, mut known) = (0, 0);
    for (name, writers, durability) in [
        ("durable_commits", 1, Durability::Durable),
        ("durable_commits", WRITERS, Durability::Durable),
        ("buffered_commits", 1, Durability::Buffered),
        ("buffered_commits", WRITERS, Durability::Buffered),
    ] {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let storage = Arc::clone(storage);
            let numbers = next + writer..next + MAX_OPERATIONS;
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                for number in numbers.step_by(writers as usize) {
                    let start = Instant::now();
                    storage.commit(record(number), durability).await?;
                    latencies.push(start.elapsed());
                    if began.elapsed() >= length {
                        break;
                    }
                }
                Ok::<_, StorageError>(latencies)
            });
        }
        let mut latencies = Vec::new();
        for outcome in tasks.join_all().await {
            latencies.extend(outcome?);
        }
        let written = latencies.len() as u64;
        if next == 0 {
            // The numbers of a single writer have no gaps.
            known = written;
        }
        add(Measurement::new(name, writers, written, began.elapsed()).with_latencies(latencies));
        next += MAX_OPERATIONS;
    }
    storage.sync().await?;
    reads(storage, known, length, add).await?;
    let (began, mut entries) = (Instant::now(), 0);
    while began.elapsed() < length && entries < 10 * MAX_OPERATIONS as usize {
        entries += scan_records(storage).await?;
    }
    add(Measurement::new("scanned_entries", 1, entries as u64, began.elapsed()));
    Ok(())
}

/// Reads keys of the first `known` records in random order.
async fn reads(
    storage: &SharedStorage,
    known: u64,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), StorageError> {
    let (began, mut latencies) = (Instant::now(), Vec::new());
    while began.elapsed() < length && (latencies.len() as u64) < MAX_OPERATIONS {
        let wanted = key(rand::rng().random_range(0..known));
        let start = Instant::now();
        let values = storage.get(RECORDS, &[wanted]).await?;
        latencies.push(start.elapsed());
        if values.first().is_none_or(Option::is_none) {
            return Err(StorageError::corrupt("a committed record is missing"));
        }
    }
    let reads = Measurement::new("point_reads", 1, latencies.len() as u64, began.elapsed());
    add(reads.with_latencies(latencies));
    Ok(())
}

pub(super) async fn content(
    storage: &SharedStorage,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), StorageError> {
    let limits = storage.limits();
    // Each value with its key must fit into a batch.
    let value = limits.max_value.min(PIECE_SIZE).min(limits.max_batch - 128);
    let parts = PIECE_SIZE.div_ceil(value) as u64;
    // Incompressible content.
    let mut content = vec![0; PIECE_SIZE];
    rand::rng().fill(&mut content[..]);
    let content = Bytes::from(content);
    let (began, mut pieces) = (Instant::now(), 0);
    let mut writing = JoinSet::new();
    while began.elapsed() < length && pieces < MAX_PIECES {
        if writing.len() == PIECE_WRITERS
            && let Some(written) = writing.join_next().await
        {
            written.map_err(|error| StorageError::backend("write a piece", error))??;
        }
        writing.spawn(write_piece(Arc::clone(storage), pieces * parts, content.clone(), value));
        pieces += 1;
    }
    writing.join_all().await.into_iter().collect::<Result<(), _>>()?;
    storage.sync().await?;
    let bytes = PIECE_SIZE as u64;
    add(Measurement::new("piece_writes", PIECE_WRITERS as u64, pieces, began.elapsed())
        .with_bytes(pieces * bytes));
    let (began, mut read, mut latencies) = (Instant::now(), 0, Vec::new());
    while began.elapsed() < length && read < 4 * MAX_PIECES {
        let first = (read % pieces) * parts;
        let keys: Vec<_> = (first..first + parts).map(key).collect();
        let start = Instant::now();
        let values = storage.get(PIECES, &keys).await?;
        latencies.push(start.elapsed());
        if values.iter().flatten().map(Bytes::len).sum::<usize>() != PIECE_SIZE {
            return Err(StorageError::corrupt("a written piece is missing"));
        }
        read += 1;
    }
    add(Measurement::new("piece_reads", 1, read, began.elapsed())
        .with_bytes(read * bytes)
        .with_latencies(latencies));
    Ok(())
}

/// Writes a piece with as few commits as possible.
async fn write_piece(
    storage: SharedStorage,
    first: u64,
    content: Bytes,
    value: usize,
) -> Result<(), StorageError> {
    let limits = storage.limits();
    let (mut batch, mut size) = (Batch::new(), 0);
    for (part, start) in (0..).zip((0..content.len()).step_by(value)) {
        let (key, bytes) = (key(first + part), content.slice(start..content.len().min(start + value)));
        let added = key.as_bytes().len() + bytes.len();
        if size + added > limits.max_batch {
            storage.commit(std::mem::take(&mut batch), Durability::Buffered).await?;
            size = 0;
        }
        size += added;
        batch.put(PIECES, key, bytes);
    }
    storage.commit(batch, Durability::Buffered).await
}
