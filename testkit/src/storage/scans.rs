//! Order, pages and ranges of scans.

use std::ops::Bound;

use bytes::Bytes;

use super::bench::{Bench, Violation, ensure, key, short};
use super::builder::Builder;
use enjambre_core::{Batch, Durability, KeyRange, Space};

const A: Space = Space::new("a");

/// Keys in an order that differs from the order by signed bytes, by text, or by length.
fn ordered_keys() -> Vec<Vec<u8>> {
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

async fn fill<B: Builder>(bench: &Bench<'_, B>, keys: &[Vec<u8>]) -> Result<(), Violation> {
    let mut batch = Batch::new();
    // Written in another order than that of the keys.
    for step in 0..keys.len() {
        let bytes = &keys[(step * 7) % keys.len()];
        batch.put(A, key(bytes), bytes.clone());
    }
    for bytes in keys {
        batch.put(A, key(bytes), bytes.clone());
    }
    Ok(bench.probe.commit(batch, Durability::Buffered).await?)
}

pub(super) async fn scan_returns_keys_in_unsigned_byte_order<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let keys = ordered_keys();
    fill(bench, &keys).await?;
    for round in ["", " after a reopen"] {
        let entries = bench.probe.scan(A, KeyRange::all(), 1000).await?;
        let found: Vec<&[u8]> = entries.iter().map(|(key, _)| key.as_bytes()).collect();
        ensure!(
            found == keys.iter().map(|key| &key[..]).collect::<Vec<_>>(),
            "the keys of a scan are not in ascending order of unsigned bytes{round}: {:?}",
            found.iter().map(|key| short(key)).collect::<Vec<_>>()
        );
        ensure!(
            entries.iter().all(|(key, value)| key.as_bytes() == &value[..]),
            "a key of a scan has a wrong value{round}"
        );
        bench.reopen().await?;
    }
    Ok(())
}

pub(super) async fn scan_limits_entries_per_page<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let keys: Vec<Vec<u8>> = (0..500u32).map(|i| i.to_be_bytes().to_vec()).collect();
    fill(bench, &keys).await?;
    ensure!(
        bench.probe.scan(A, KeyRange::all(), 0).await?.is_empty(),
        "a page with the limit 0 is not empty"
    );
    for limit in [1, 7, 499, 500, 501, usize::MAX] {
        let first = bench.probe.scan(A, KeyRange::all(), limit).await?;
        ensure!(
            first.len() == limit.min(500),
            "expected {} small entries in a page, found {}",
            limit.min(500),
            first.len()
        );
        let all = bench.probe.entries(A, KeyRange::all(), limit).await?;
        ensure!(
            all.iter().map(|(key, _)| key.as_bytes()).eq(keys.iter().map(|key| &key[..])),
            "the pages of {limit} entries do not contain every key once"
        );
    }
    Ok(())
}

pub(super) async fn scan_limits_bytes_per_page<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
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
            "a page exceeds {} bytes by more than one entry: {bytes} bytes",
            limits.max_page_bytes
        );
        seen += page.len();
        rest = rest.after(last);
    }
    ensure!(seen == count as usize, "expected {count} entries in all pages, found {seen}");
    bench.probe.put(A, &key("\0"), vec![1; limits.max_value.min(8 << 20)]).await?;
    let first = bench.probe.scan(A, KeyRange::all(), 10).await?;
    ensure!(!first.is_empty(), "a page does not contain a large entry");
    Ok(())
}

fn bounds(at: &[u8]) -> [Bound<Bytes>; 3] {
    let at = Bytes::copy_from_slice(at);
    [Bound::Included(at.clone()), Bound::Excluded(at), Bound::Unbounded]
}

pub(super) async fn scan_respects_range_bounds<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let keys = ordered_keys();
    fill(bench, &keys).await?;
    let check = async |range: KeyRange| {
        let found = bench.probe.entries(A, range.clone(), 5).await?;
        let expected = keys.iter().filter(|bytes| range.contains(&key(bytes)));
        ensure!(
            found.iter().map(|(key, _)| key.as_bytes()).eq(expected.map(|key| &key[..])),
            "a scan of {range:?} returned wrong keys: {:?}",
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

pub(super) async fn scan_of_inverted_range_is_empty<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    fill(bench, &ordered_keys()).await?;
    for (start, end) in [("b", "a"), ("a", "a"), ("\u{7f}", "\0"), ("a", "")] {
        for start in [Bound::Included(Bytes::from(start)), Bound::Excluded(Bytes::from(start))] {
            let range = KeyRange { start, end: Bound::Excluded(Bytes::from(end)) };
            let found = bench.probe.scan(A, range.clone(), 10).await?;
            ensure!(found.is_empty(), "a scan of the inverted range {range:?} returned entries");
        }
    }
    Ok(())
}
