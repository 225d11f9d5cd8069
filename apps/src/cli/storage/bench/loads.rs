//! What is measured: the loads of a tracker on records, those of a peer on content.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use enjambre_core::storage::Storage;
use enjambre_core::storage::conformance::load::{PIECES, RECORDS, key, record, scan_records};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Batch, Durability};
use rand::RngExt;
use tokio::task::JoinSet;

use super::measurement::Measurement;

/// How many operations a load has at most: what is fast needs no more to be measured, and memory and disk are bounded.
const MOST: u64 = 200_000;
/// How many writers commit at once.
const WRITERS: u64 = 16;
/// The largest piece of a file.
const PIECE: usize = 4 << 20;
/// How many pieces are written at most, and how many at once.
const MOST_PIECES: u64 = 128;
const PIECES_AT_ONCE: usize = 4;

type Shared = Arc<dyn Storage>;

pub(super) async fn of_records(
    storage: &Shared,
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
            let numbers = next + writer..next + MOST;
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
            // One writer leaves no gaps.
            known = written;
        }
        add(Measurement::new(name, writers, written, began.elapsed()).with_latencies(latencies));
        next += MOST;
    }
    storage.sync().await?;
    reads(storage, known, length, add).await?;
    let (began, mut entries) = (Instant::now(), 0);
    while began.elapsed() < length && entries < 10 * MOST as usize {
        entries += scan_records(storage).await?;
    }
    add(Measurement::new("scanned_entries", 1, entries as u64, began.elapsed()));
    Ok(())
}

/// Reads the keys of the first `known` records in any order.
async fn reads(
    storage: &Shared,
    known: u64,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), StorageError> {
    let (began, mut latencies) = (Instant::now(), Vec::new());
    while began.elapsed() < length && (latencies.len() as u64) < MOST {
        let wanted = key(rand::rng().random_range(0..known));
        let start = Instant::now();
        let values = storage.get(RECORDS, &[wanted]).await?;
        latencies.push(start.elapsed());
        if values.first().is_none_or(Option::is_none) {
            return Err(StorageError::corrupt("a record that was committed is not there"));
        }
    }
    let reads = Measurement::new("reads_of_one_key", 1, latencies.len() as u64, began.elapsed());
    add(reads.with_latencies(latencies));
    Ok(())
}

pub(super) async fn of_content(
    storage: &Shared,
    length: Duration,
    add: &mut impl FnMut(Measurement),
) -> Result<(), StorageError> {
    let limits = storage.limits();
    // Each value with its key fits into a batch.
    let value = limits.max_value.min(PIECE).min(limits.max_batch - 128);
    let parts = PIECE.div_ceil(value) as u64;
    // What cannot be made smaller.
    let mut content = vec![0; PIECE];
    rand::rng().fill(&mut content[..]);
    let content = Bytes::from(content);
    let (began, mut pieces) = (Instant::now(), 0);
    let mut writing = JoinSet::new();
    while began.elapsed() < length && pieces < MOST_PIECES {
        if writing.len() == PIECES_AT_ONCE
            && let Some(written) = writing.join_next().await
        {
            written.map_err(|error| StorageError::backend("write a piece", error))??;
        }
        writing.spawn(write_piece(Arc::clone(storage), pieces * parts, content.clone(), value));
        pieces += 1;
    }
    writing.join_all().await.into_iter().collect::<Result<(), _>>()?;
    storage.sync().await?;
    let bytes = PIECE as u64;
    add(Measurement::new("piece_ingest", PIECES_AT_ONCE as u64, pieces, began.elapsed())
        .with_bytes(pieces * bytes));
    let (began, mut read, mut latencies) = (Instant::now(), 0, Vec::new());
    while began.elapsed() < length && read < 4 * MOST_PIECES {
        let first = (read % pieces) * parts;
        let keys: Vec<_> = (first..first + parts).map(key).collect();
        let start = Instant::now();
        let values = storage.get(PIECES, &keys).await?;
        latencies.push(start.elapsed());
        if values.iter().flatten().map(Bytes::len).sum::<usize>() != PIECE {
            return Err(StorageError::corrupt("a piece that was written is not there"));
        }
        read += 1;
    }
    add(Measurement::new("piece_read_back", 1, read, began.elapsed())
        .with_bytes(read * bytes)
        .with_latencies(latencies));
    Ok(())
}

/// With as few commits as it fits in.
async fn write_piece(storage: Shared, first: u64, content: Bytes, value: usize) -> Result<(), StorageError> {
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
