//! Keys, values, spaces and limits.

use bytes::Bytes;

use super::Builder;
use super::bench::{Bench, Broken, ensure, key};
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, MAX_KEY, Space};

const A: Space = Space::new("a");

pub(super) async fn limits_are_wide_enough<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    let limits = bench.probe.limits();
    ensure!(limits.max_value >= 32 * 1024, "a value may have 32 KiB, but {limits:?}");
    ensure!(limits.max_batch >= 8 << 20, "a batch may have 8 MiB, but {limits:?}");
    ensure!(limits.max_page_bytes >= 64 * 1024, "a page may have 64 KiB, but {limits:?}");
    bench.reopen().await?;
    ensure!(bench.probe.limits() == limits, "limits stay the same, but they were {limits:?}");
    Ok(())
}

pub(super) async fn absent_keys_have_no_value<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    let probe = &bench.probe;
    ensure!(probe.value(A, &key("k")).await?.is_none(), "a space that was never written has no values");
    ensure!(
        probe.scan(A, KeyRange::all(), 10).await?.is_empty(),
        "a space that was never written has no entries"
    );
    ensure!(probe.get(A, &[]).await?.is_empty(), "a get of no keys gives no values");
    let mut batch = Batch::new();
    batch.delete(A, key("k"));
    probe.commit(batch, Durability::Buffered).await?;
    ensure!(probe.value(A, &key("k")).await?.is_none(), "deleting what is not there changes nothing");
    probe.put(A, &key("k"), "v").await?;
    ensure!(probe.value(A, &key("kk")).await?.is_none(), "a longer key is another key");
    let mut batch = Batch::new();
    batch.delete(A, key("k"));
    probe.commit(batch, Durability::Buffered).await?;
    ensure!(probe.value(A, &key("k")).await?.is_none(), "a deleted key has no value");
    ensure!(probe.scan(A, KeyRange::all(), 10).await?.is_empty(), "a deleted key is in no scan");
    Ok(())
}

pub(super) async fn values_come_in_the_order_asked_for<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let probe = &bench.probe;
    for name in ["1", "2", "3"] {
        probe.put(A, &key(name), name).await?;
    }
    let keys = ["3", "none", "1", "3", "2"].map(key);
    let expected = [Some("3"), None, Some("1"), Some("3"), Some("2")].map(|v| v.map(Bytes::from));
    ensure!(
        probe.get(A, &keys).await? == expected,
        "values come in the order of the keys, None where absent"
    );
    let many: Vec<Key> = (0..1000).rev().map(|i| key(format!("{}", i % 5))).collect();
    let values = probe.get(A, &many).await?;
    ensure!(values.len() == 1000, "each of 1000 keys is answered, but {} are", values.len());
    for (key, value) in many.iter().zip(&values) {
        let there = matches!(key.as_bytes(), b"1" | b"2" | b"3");
        ensure!(value.as_deref() == there.then_some(key.as_bytes()), "each of many keys has its own value");
    }
    Ok(())
}

pub(super) async fn keys_of_any_bytes_and_length_are_kept<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    ensure!(
        matches!(Key::new(Bytes::new()), Err(StorageError::InvalidKey { length: 0 })),
        "an empty key is refused"
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
                "a key of {} bytes from {:?} keeps its value{round}",
                bytes.len(),
                bytes.first()
            );
        }
        let entries = bench.probe.entries(A, KeyRange::all(), 50).await?;
        ensure!(
            entries.len() == keys.len(),
            "a scan finds all {} keys{round}, but {}",
            keys.len(),
            entries.len()
        );
        bench.reopen().await?;
    }
    Ok(())
}

/// Bytes that are not the same throughout.
pub(super) fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

pub(super) async fn values_up_to_the_limit_are_kept<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let max = bench.probe.limits().max_value.min(8 << 20);
    let sizes = [0, 1, 4095, 4096, 32 * 1024, max - 1, max];
    for size in sizes {
        bench.probe.put(A, &key(format!("{size}")), pattern(size)).await?;
    }
    let changed = key("changed");
    for size in [max, 0, max, 10] {
        bench.probe.put(A, &changed, pattern(size)).await?;
        let value = bench.probe.value(A, &changed).await?;
        ensure!(value == Some(pattern(size)), "a value takes the place of one of another length");
    }
    bench.reopen().await?;
    for size in sizes {
        let value = bench.probe.value(A, &key(format!("{size}"))).await?;
        ensure!(value == Some(pattern(size)), "a value of {size} bytes is kept as it was");
    }
    Ok(())
}

pub(super) async fn what_exceeds_a_limit_is_refused_whole<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let limits = bench.probe.limits();
    let largest = limits.max_value.min(64 << 20);
    if largest == limits.max_value {
        let mut batch = Batch::new();
        batch.put(A, key("small"), "v").put(A, key("large"), vec![7; largest + 1]);
        let outcome = bench.probe.commit(batch, Durability::Buffered).await;
        ensure!(
            matches!(outcome, Err(StorageError::TooLarge { what: "value", .. })),
            "a value beyond the limit is refused as TooLarge, but: {outcome:?}"
        );
        nothing_is_there(bench).await?;
    }
    // What is refused takes no memory but that of one value; what is applied does.
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
            "a batch beyond the limit is refused as TooLarge, but: {outcome:?}"
        );
        nothing_is_there(bench).await?;
        if limits.max_batch <= 64 << 20 {
            let whole = fill(limits.max_batch - 8);
            let count = whole.writes.len();
            bench.probe.commit(whole, Durability::Durable).await?;
            let entries = bench.probe.entries(A, KeyRange::all(), 1000).await?;
            ensure!(entries.len() == count, "a batch up to the limit is applied whole");
        }
    }
    bench.probe.put(A, &key("after"), "v").await?;
    Ok(())
}

async fn nothing_is_there<B: Builder>(bench: &Bench<'_, B>) -> Result<(), Broken> {
    let page = bench.probe.scan(A, KeyRange::all(), 10).await?;
    ensure!(page.is_empty(), "nothing of what was refused is applied");
    Ok(())
}

pub(super) async fn spaces_are_apart<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    // Names that are the beginnings of others, and words that mean something to SQL.
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
                "the space {} holds its own entries and no others{round}, but {entries:?}",
                space.name()
            );
            let value = bench.probe.value(*space, &key("k")).await?;
            ensure!(
                value.as_deref() == Some(space.name().as_bytes()),
                "the same key is apart in each space{round}"
            );
        }
        bench.reopen().await?;
    }
    let mut batch = Batch::new();
    batch.delete(spaces[0], key("k"));
    bench.probe.commit(batch, Durability::Buffered).await?;
    ensure!(
        bench.probe.value(spaces[1], &key("k")).await?.is_some(),
        "a delete in one space leaves the others"
    );
    Ok(())
}
