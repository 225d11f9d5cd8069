//! Batches of up to 20,000 writes and replies of several MiB.

use bytes::Bytes;

use super::bench::{Bench, Violation, ensure, key};
use super::builder::Builder;
use super::commits::{commit_beside_readers, number};
use super::records::pattern;
use enjambre_core::{Batch, Durability, Key, KeyRange, Space, StorageError};

const A: Space = Space::new("a");

pub(super) async fn large_batch_is_atomic<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    let writes = bench.probe.limits().max_writes.min(20_000) as u32;
    // All keys have the same value, so that a page with parts of two batches is detected.
    let round = move |number: u32| {
        let mut batch = Batch::new();
        for index in 0..writes {
            batch.put(A, key(index.to_be_bytes()), number.to_be_bytes().to_vec());
        }
        batch
    };
    let probe = bench.probe.clone();
    let read = move || {
        let probe = probe.clone();
        async move {
            let page = probe.scan(A, KeyRange::all(), usize::MAX).await?;
            let first = number(page.first().map(|(_, value)| value));
            let others = page.iter().filter(|(_, value)| number(Some(value)) != first).count();
            ensure!(others == 0, "a page with batch {first} contains {others} entries of another batch");
            Ok(())
        }
    };
    commit_beside_readers(bench, 4, round, [read]).await?;
    let mut refused = round(4);
    refused.require_absent(A, key(0u32.to_be_bytes()));
    let outcome = bench.probe.commit(refused, Durability::Buffered).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "expected Conflict for a large batch, found {outcome:?}"
    );
    bench.reopen().await?;
    let entries = bench.probe.entries(A, KeyRange::all(), 1000).await?;
    let intact = entries.iter().filter(|(_, value)| number(Some(value)) == 3).count();
    ensure!(
        entries.len() == writes as usize && intact == entries.len(),
        "the last large batch is incomplete: {intact} of {} entries",
        entries.len()
    );
    Ok(())
}

pub(super) async fn get_of_many_large_values_is_complete<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    const ALL: usize = 4 << 20;
    let len = bench.probe.limits().max_value.min(32 * 1024);
    let value = |index: usize| {
        let mut value = pattern(len).to_vec();
        value[..8].copy_from_slice(&(index as u64).to_be_bytes());
        Bytes::from(value)
    };
    let keys: Vec<Key> = (0..ALL / len).map(|index| key((index as u64).to_be_bytes())).collect();
    let mut batch = Batch::new();
    for (index, key) in keys.iter().enumerate() {
        batch.put(A, key.clone(), value(index));
    }
    bench.probe.commit(batch, Durability::Buffered).await?;
    for round in ["", " after a reopen"] {
        let values = bench.probe.get(A, &keys).await?;
        ensure!(values.len() == keys.len(), "expected {} values{round}, found {}", keys.len(), values.len());
        for (index, found) in values.iter().enumerate() {
            ensure!(found.as_ref() == Some(&value(index)), "value {index} of {} is wrong{round}", keys.len());
        }
        bench.reopen().await?;
    }
    Ok(())
}
