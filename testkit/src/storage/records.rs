//! Keys, values, spaces and limits.

use bytes::Bytes;

use super::bench::{Bench, Violation, ensure, key};
use super::builder::Builder;
use enjambre_core::storage::value::{MAX_KEY, MIN_WRITES};
use enjambre_core::{Batch, Durability, Key, KeyRange, Space, StorageError};

const A: Space = Space::new("a");

pub(super) async fn limits_meet_minimum<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    let limits = bench.probe.limits();
    ensure!(limits.max_value >= 32 * 1024, "the limit of values is below 32 KiB: {limits:?}");
    ensure!(limits.max_batch >= 8 << 20, "the limit of batches is below 8 MiB: {limits:?}");
    ensure!(limits.max_writes >= MIN_WRITES, "the limit of writes is below {MIN_WRITES}: {limits:?}");
    ensure!(limits.max_page_bytes >= 64 * 1024, "the limit of pages is below 64 KiB: {limits:?}");
    bench.reopen().await?;
    ensure!(bench.probe.limits() == limits, "the limits changed after a reopen, they were {limits:?}");
    Ok(())
}

pub(super) async fn get_of_absent_key_returns_none<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let probe = &bench.probe;
    ensure!(probe.value(A, &key("k")).await?.is_none(), "a space that was never written has a value");
    ensure!(
        probe.scan(A, KeyRange::all(), 10).await?.is_empty(),
        "a space that was never written has an entry"
    );
    ensure!(probe.get(A, &[]).await?.is_empty(), "a get without keys returned a value");
    let mut batch = Batch::new();
    batch.delete(A, key("k"));
    probe.commit(batch, Durability::Buffered).await?;
    ensure!(probe.value(A, &key("k")).await?.is_none(), "deletion of an absent key changed its value");
    probe.put(A, &key("k"), "v").await?;
    ensure!(probe.value(A, &key("kk")).await?.is_none(), "a longer key has the value of its prefix");
    let mut batch = Batch::new();
    batch.delete(A, key("k"));
    probe.commit(batch, Durability::Buffered).await?;
    ensure!(probe.value(A, &key("k")).await?.is_none(), "a deleted key has a value");
    ensure!(probe.scan(A, KeyRange::all(), 10).await?.is_empty(), "a scan returned a deleted key");
    Ok(())
}

pub(super) async fn get_returns_values_in_requested_order<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let probe = &bench.probe;
    for name in ["1", "2", "3"] {
        probe.put(A, &key(name), name).await?;
    }
    let keys = ["3", "none", "1", "3", "2"].map(key);
    let expected = [Some("3"), None, Some("1"), Some("3"), Some("2")].map(|v| v.map(Bytes::from));
    ensure!(
        probe.get(A, &keys).await? == expected,
        "the values are not in the order of the keys with None for absent ones"
    );
    let many: Vec<Key> = (0..1000).rev().map(|i| key(format!("{}", i % 5))).collect();
    let values = probe.get(A, &many).await?;
    ensure!(values.len() == 1000, "a get of 1000 keys returned {} values", values.len());
    for (key, value) in many.iter().zip(&values) {
        let there = matches!(key.as_bytes(), b"1" | b"2" | b"3");
        ensure!(
            value.as_deref() == there.then_some(key.as_bytes()),
            "a get of many keys returned a wrong value"
        );
    }
    Ok(())
}

pub(super) async fn keys_of_any_bytes_and_length_round_trip<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    ensure!(
        matches!(Key::new(Bytes::new()), Err(StorageError::InvalidKey { length: 0 })),
        "an empty key is accepted"
    );
    let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    keys.extend([0, b'a', 0xff].map(|byte| vec![byte; MAX_KEY]));
    keys.extend([vec![0, 0], vec![0xff, 0], vec![0xff, 0xff], b"a\0b".to_vec(), vec![0; MAX_KEY - 1]]);
    let mut batch = Batch::new();
    for bytes in &keys {
        batch.put(A, key(bytes), bytes.clone());
    }
    bench.probe.commit(batch, Durability::Buffered).await?;
    for round in ["", " after a reopen"] {
        for bytes in &keys {
            let value = bench.probe.value(A, &key(bytes)).await?;
            ensure!(
                value.as_deref() == Some(&bytes[..]),
                "a key of {} bytes starting with {:?} has a wrong value{round}",
                bytes.len(),
                bytes.first()
            );
        }
        let entries = bench.probe.entries(A, KeyRange::all(), 50).await?;
        ensure!(
            entries.len() == keys.len(),
            "expected {} keys in a scan{round}, found {}",
            keys.len(),
            entries.len()
        );
        bench.reopen().await?;
    }
    Ok(())
}

/// Returns varying bytes.
pub(super) fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

pub(super) async fn values_up_to_limit_round_trip<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let max = bench.probe.limits().max_value.min(8 << 20);
    let sizes = [0, 1, 4095, 4096, 32 * 1024, max - 1, max];
    for size in sizes {
        bench.probe.put(A, &key(format!("{size}")), pattern(size)).await?;
    }
    let changed = key("changed");
    for size in [max, 0, max, 10] {
        bench.probe.put(A, &changed, pattern(size)).await?;
        let value = bench.probe.value(A, &changed).await?;
        ensure!(value == Some(pattern(size)), "a value does not replace one of another length");
    }
    bench.reopen().await?;
    for size in sizes {
        let value = bench.probe.value(A, &key(format!("{size}"))).await?;
        ensure!(value == Some(pattern(size)), "a value of {size} bytes changed");
    }
    Ok(())
}

pub(super) async fn oversized_batch_is_refused<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let limits = bench.probe.limits();
    let largest = limits.max_value.min(64 << 20);
    if largest == limits.max_value {
        let mut batch = Batch::new();
        batch.put(A, key("small"), "v").put(A, key("large"), vec![7; largest + 1]);
        let outcome = bench.probe.commit(batch, Durability::Buffered).await;
        ensure!(
            matches!(outcome, Err(StorageError::TooLarge { what: "value", .. })),
            "expected TooLarge for a value above the limit, found {outcome:?}"
        );
        ensure_empty(bench).await?;
    }
    if limits.max_writes <= 1 << 20 {
        let mut batch = Batch::new();
        for index in 0..=limits.max_writes as u32 {
            batch.put(A, key(index.to_be_bytes()), "v");
        }
        let outcome = bench.probe.commit(batch, Durability::Buffered).await;
        ensure!(
            matches!(outcome, Err(StorageError::TooLarge { unit: "writes", .. })),
            "expected TooLarge for more writes than allowed, found {outcome:?}"
        );
        ensure_empty(bench).await?;
    }
    // The values of the refused batch share one buffer, but an applied batch uses memory.
    if limits.max_batch <= 1 << 30 {
        let part = limits.max_value.min(1 << 20);
        let content = Bytes::from(vec![7; part]);
        let fill = |size: usize| {
            let (mut batch, mut left) = (Batch::new(), size);
            for index in 0u32.. {
                let name = key(index.to_be_bytes());
                let value = part.min(left.saturating_sub(4));
                left = left.saturating_sub(4 + value);
                batch.put(A, name, content.slice(..value));
                if left == 0 {
                    break;
                }
            }
            batch
        };
        let outcome = bench.probe.commit(fill(limits.max_batch + 8), Durability::Buffered).await;
        ensure!(
            matches!(outcome, Err(StorageError::TooLarge { what: "batch", .. })),
            "expected TooLarge for a batch above the limit, found {outcome:?}"
        );
        ensure_empty(bench).await?;
        if limits.max_batch <= 64 << 20 {
            let whole = fill(limits.max_batch - 8);
            let count = whole.writes.len();
            bench.probe.commit(whole, Durability::Durable).await?;
            let entries = bench.probe.entries(A, KeyRange::all(), 1000).await?;
            ensure!(entries.len() == count, "a batch at the limit is not applied completely");
        }
    }
    bench.probe.put(A, &key("after"), "v").await?;
    Ok(())
}

async fn ensure_empty<B: Builder>(bench: &Bench<'_, B>) -> Result<(), Violation> {
    let page = bench.probe.scan(A, KeyRange::all(), 10).await?;
    ensure!(page.is_empty(), "a refused batch was applied partially");
    Ok(())
}

pub(super) async fn spaces_are_independent<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    // Names that are prefixes of other names, names that differ in the last of 32 bytes, and SQL keywords.
    const NAMES: &[&str] = &[
        "a",
        "aa",
        "ab",
        "a_",
        "a0",
        "a_b",
        "b",
        "z",
        "select",
        "table",
        "order",
        "index",
        "group",
        "key",
        "value",
        "sqlite_x",
        "default",
        "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzy",
        "s1",
        "s2",
        "s3",
        "s4",
        "s5",
        "s6",
        "s7",
        "s8",
        "s9",
        "s10",
        "s11",
        "s12",
        "s13",
        "s14",
        "s15",
        "s16",
        "s17",
        "s18",
        "s19",
        "s20",
        "s21",
        "s22",
        "s23",
        "s24",
    ];
    let spaces: Vec<Space> = NAMES.iter().map(|name| Space::new(name)).collect();
    let mut batch = Batch::new();
    for space in &spaces {
        batch.put(*space, key("k"), space.name().to_owned()).put(
            *space,
            key([0xff; 4]),
            space.name().to_owned(),
        );
    }
    bench.probe.commit(batch, Durability::Buffered).await?;
    for round in ["", " after a reopen"] {
        for space in &spaces {
            let entries = bench.probe.entries(*space, KeyRange::all(), 10).await?;
            ensure!(
                entries.len() == 2 && entries.iter().all(|(_, value)| value == space.name()),
                "the space {} does not contain exactly its own entries{round}: {entries:?}",
                space.name()
            );
            let value = bench.probe.value(*space, &key("k")).await?;
            ensure!(
                value.as_deref() == Some(space.name().as_bytes()),
                "a key has the value of another space{round}"
            );
        }
        bench.reopen().await?;
    }
    let mut batch = Batch::new();
    batch.delete(spaces[0], key("k"));
    bench.probe.commit(batch, Durability::Buffered).await?;
    ensure!(
        bench.probe.value(spaces[1], &key("k")).await?.is_some(),
        "a deletion in one space affected another one"
    );
    Ok(())
}
