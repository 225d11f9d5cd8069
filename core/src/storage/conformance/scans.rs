//! Order, paging and ranges.

use std::ops::Bound;

use bytes::Bytes;

use super::Builder;
use super::bench::{Bench, Broken, ensure, key, short};
use crate::storage::value::{Batch, Durability, KeyRange, Space};

const A: Space = Space::new("a");

/// Keys that a comparison of signed bytes, of texts, or by length first would order otherwise.
fn tricky() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> =
        [&b"\x00"[..], b"\x00\x00", b"\x00\xff", b"\x01", b"a", b"a\x00", b"a\x00b", b"aa", b"b"]
            .into_iter()
            .chain([
                &b"\x7f"[..],
                b"\x7f\xff",
                b"\x80",
                b"\x80\x00",
                b"\xfe\xff",
                b"\xff",
                b"\xff\x00",
                b"\xff\xff",
            ])
            .map(<[u8]>::to_vec)
            .collect();
    keys.push(vec![b'a'; 300]);
    keys.push(vec![0xff; 1024]);
    keys.sort();
    keys
}

async fn fill<B: Builder>(bench: &Bench<'_, B>, keys: &[Vec<u8>]) -> Result<(), Broken> {
    let mut batch = Batch::new();
    // Not in order, so that the order of writing is not the order of the keys.
    for step in 0..keys.len() {
        let bytes = &keys[(step * 7) % keys.len()];
        batch.put(A, key(bytes), bytes.clone());
    }
    for bytes in keys {
        batch.put(A, key(bytes), bytes.clone());
    }
    Ok(bench.probe.commit(batch, Durability::Buffered).await?)
}

pub(super) async fn keys_are_ordered_by_unsigned_bytes<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let keys = tricky();
    fill(bench, &keys).await?;
    for round in ["", " after a reopen"] {
        let entries = bench.probe.scan(A, KeyRange::all(), 1000).await?;
        let found: Vec<&[u8]> = entries.iter().map(|(key, _)| key.as_bytes()).collect();
        ensure!(
            found == keys.iter().map(|key| &key[..]).collect::<Vec<_>>(),
            "a scan is ascending by unsigned bytes{round}, but: {:?}",
            found.iter().map(|key| short(key)).collect::<Vec<_>>()
        );
        ensure!(
            entries.iter().all(|(key, value)| key.as_bytes() == &value[..]),
            "each key of a scan has its own value{round}"
        );
        bench.reopen().await?;
    }
    Ok(())
}

pub(super) async fn pages_are_cut_by_entries<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    let keys: Vec<Vec<u8>> = (0..500u32).map(|i| i.to_be_bytes().to_vec()).collect();
    fill(bench, &keys).await?;
    ensure!(bench.probe.scan(A, KeyRange::all(), 0).await?.is_empty(), "a page of 0 entries is empty");
    for limit in [1, 7, 499, 500, 501, usize::MAX] {
        let first = bench.probe.scan(A, KeyRange::all(), limit).await?;
        ensure!(
            first.len() == limit.min(500),
            "a page of small entries has {} of them, but it has {}",
            limit.min(500),
            first.len()
        );
        let all = bench.probe.entries(A, KeyRange::all(), limit).await?;
        ensure!(
            all.iter().map(|(key, _)| key.as_bytes()).eq(keys.iter().map(|key| &key[..])),
            "the pages of {limit} entries together hold every key once"
        );
    }
    Ok(())
}

pub(super) async fn pages_are_cut_by_bytes<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    let limits = bench.probe.limits();
    let len = limits.max_value.min(limits.max_page_bytes / 3 + 1).min(1 << 20);
    let count = (3 * limits.max_page_bytes / len).clamp(4, 200) as u32;
    for index in 0..count {
        bench.probe.put(A, &key(index.to_be_bytes()), vec![index as u8; len]).await?;
    }
    let mut rest = KeyRange::all();
    let mut seen = 0;
    loop {
        let page = bench.probe.scan(A, rest.clone(), usize::MAX).await?;
        let Some((last, _)) = page.last() else { break };
        let bytes: usize = page.iter().map(|(key, value)| key.as_bytes().len() + value.len()).sum();
        ensure!(
            bytes <= limits.max_page_bytes + len + 4,
            "a page has about {} bytes, one entry more at most, but it has {bytes}",
            limits.max_page_bytes
        );
        seen += page.len();
        rest = rest.after(last);
    }
    ensure!(seen == count as usize, "the pages together hold all {count} entries, but {seen}");
    bench.probe.put(A, &key("\0"), vec![1; limits.max_value.min(8 << 20)]).await?;
    let first = bench.probe.scan(A, KeyRange::all(), 10).await?;
    ensure!(!first.is_empty(), "a page has at least one entry, however large");
    Ok(())
}

fn bounds(at: &[u8]) -> [Bound<Bytes>; 3] {
    let at = Bytes::copy_from_slice(at);
    [Bound::Included(at.clone()), Bound::Excluded(at), Bound::Unbounded]
}

pub(super) async fn ranges_hold_what_their_bounds_say<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let keys = tricky();
    fill(bench, &keys).await?;
    let check = async |range: KeyRange| {
        let found = bench.probe.entries(A, range.clone(), 5).await?;
        let expected = keys.iter().filter(|bytes| range.contains(&key(bytes)));
        ensure!(
            found.iter().map(|(key, _)| key.as_bytes()).eq(expected.map(|key| &key[..])),
            "the range {range:?} holds the keys between its bounds, but it gave {:?}",
            found.iter().map(|(key, _)| short(key.as_bytes())).collect::<Vec<_>>()
        );
        Ok(())
    };
    let ends: [&[u8]; 9] = [b"", b"\0", b"a", b"a\0", b"aaa", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff"];
    for start in ends.iter().flat_map(|end| bounds(end)) {
        for end in ends.iter().flat_map(|end| bounds(end)) {
            check(KeyRange { start: start.clone(), end }).await?;
        }
    }
    for prefix in [&b""[..], b"\0", b"a", b"a\0", b"\xff", b"\xff\xff", b"x"] {
        check(KeyRange::prefix(prefix)).await?;
    }
    Ok(())
}

pub(super) async fn inverted_ranges_are_empty<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    fill(bench, &tricky()).await?;
    for (start, end) in [("b", "a"), ("a", "a"), ("\u{7f}", "\0"), ("a", "")] {
        for start in [Bound::Included(Bytes::from(start)), Bound::Excluded(Bytes::from(start))] {
            let range = KeyRange { start, end: Bound::Excluded(Bytes::from(end)) };
            let found = bench.probe.scan(A, range.clone(), 10).await?;
            ensure!(found.is_empty(), "the inverted range {range:?} is empty");
        }
    }
    Ok(())
}
