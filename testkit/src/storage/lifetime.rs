//! Reopening, drop and close.

use std::task::{Context, Waker};

use bytes::Bytes;

use super::bench::{Bench, Violation, ensure, key};
use super::builder::Builder;
use enjambre_core::{Batch, Durability, KeyRange, Space, StorageError};

const A: Space = Space::new("a");
const B_: Space = Space::new("b");

fn put(name: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Batch {
    let mut batch = Batch::new();
    batch.put(A, key(name), value);
    batch
}

pub(super) async fn committed_data_survives_reopen<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    bench.probe.sync().await?;
    for round in 0..3 {
        bench.probe.commit(put(format!("{round} durable"), "v"), Durability::Durable).await?;
        bench.probe.commit(put(format!("{round} synced"), "v"), Durability::Buffered).await?;
        bench.probe.sync().await?;
        bench.probe.sync().await?;
        bench.probe.commit(put(format!("{round} buffered"), "v"), Durability::Buffered).await?;
        let mut batch = Batch::new();
        batch.delete(A, key(format!("{round} durable")));
        bench.probe.commit(batch, Durability::Buffered).await?;
        bench.reopen().await?;
        let entries = bench.probe.entries(A, KeyRange::all(), 100).await?;
        let found: Vec<&[u8]> = entries.iter().map(|(key, _)| key.as_bytes()).collect();
        let expected: Vec<String> =
            (0..=round).flat_map(|round| [format!("{round} buffered"), format!("{round} synced")]).collect();
        ensure!(
            found == expected.iter().map(String::as_bytes).collect::<Vec<_>>(),
            "a reopened storage does not contain exactly the committed data: {entries:?}"
        );
    }
    Ok(())
}

pub(super) async fn committed_data_survives_drop_without_close<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    for round in 0..3 {
        bench.probe.commit(put(format!("{round} durable"), "v"), Durability::Durable).await?;
        bench.probe.commit(put(format!("{round} buffered"), "v"), Durability::Buffered).await?;
        bench.drop_and_open().await?;
        let entries = bench.probe.entries(A, KeyRange::all(), 100).await?;
        ensure!(
            entries.len() == (round + 1) * 2,
            "a storage dropped without a close lost acknowledged commits: {entries:?}"
        );
    }
    Ok(())
}

pub(super) async fn dropped_commit_is_atomic<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    const COMMITS: u32 = 100;
    for index in 0..COMMITS {
        let name = key(index.to_be_bytes());
        let mut batch = Batch::new();
        batch.put(A, name.clone(), vec![index as u8; 2000]).put(B_, name, vec![index as u8; 2000]);
        let mut commit = Box::pin(bench.probe.commit(batch, Durability::Buffered));
        // Polled up to three times, then dropped.
        for _ in 0..index % 4 {
            if commit.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // Commits are ordered, so after this one the earlier ones are applied or never will be.
    bench.probe.commit(put("last", "v"), Durability::Durable).await?;
    for round in ["", " after a reopen"] {
        for index in 0..COMMITS {
            let name = key(index.to_be_bytes());
            let (a, b) = (bench.probe.value(A, &name).await?, bench.probe.value(B_, &name).await?);
            ensure!(a == b, "a dropped commit was applied partially{round}");
            let intact = a.is_none_or(|value| value == vec![index as u8; 2000]);
            ensure!(intact, "a value is torn{round}");
        }
        bench.reopen().await?;
    }
    // Dropped reads must not affect the storage either.
    for index in 0..COMMITS {
        let keys = [key(index.to_be_bytes())];
        let mut get = Box::pin(bench.probe.get(A, &keys));
        let _ = get.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    let value = bench.probe.value(A, &key("last")).await?;
    ensure!(value.as_deref() == Some(b"v"), "a read after dropped reads returned a wrong value");
    Ok(())
}

pub(super) async fn close_releases_lock<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    for round in 0..5 {
        bench.probe.commit(put(format!("{round}"), "v"), Durability::Buffered).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let probe = bench.probe.clone();
            tasks.spawn(async move { probe.scan(A, KeyRange::all(), 100).await.map(drop) });
        }
        tasks.join_all().await.into_iter().collect::<Result<(), _>>()?;
        bench.reopen().await?;
        let entries = bench.probe.entries(A, KeyRange::all(), 100).await?.len();
        ensure!(entries == round + 1, "found {entries} of {} committed entries", round + 1);
    }
    Ok(())
}

pub(super) async fn second_opening_is_refused<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    bench.probe.commit(put("k", "first"), Durability::Buffered).await?;
    let second = match bench.open_another().await {
        Err(StorageError::Locked { .. }) => return bench.reopen().await,
        opened => opened?,
    };
    // Only one of them may be in use, unless several nodes share the storage.
    second.commit(put("k", "second"), Durability::Buffered).await?;
    let observed = bench.probe.get(A, &[key("k")]).await;
    let expected = match &observed {
        Err(StorageError::Closed) => !bench.is_shared(),
        Ok(values) => bench.is_shared() && values == &[Some(Bytes::from("second"))],
        Err(_) => false,
    };
    second.close().await?;
    ensure!(
        expected,
        "expected Locked for a second opening{}, found a storage; the first one returns {observed:?}",
        if bench.is_shared() { " or the same entries in both storages" } else { "" }
    );
    bench.reopen().await
}

pub(super) async fn closed_storage_returns_closed<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let probe = bench.probe.clone();
    let too_large = vec![0; probe.limits().max_value.min(8 << 20) + 1];
    probe.commit(put("k", "v"), Durability::Buffered).await?;
    let (first, second) = tokio::join!(probe.close(), probe.close());
    first?;
    second?;
    probe.close().await?;
    let outcomes = [
        ("get", probe.get(A, &[key("k")]).await.err()),
        ("get of nothing", probe.get(A, &[]).await.err()),
        ("scan", probe.scan(A, KeyRange::all(), 1).await.err()),
        ("empty scan", probe.scan(A, KeyRange::all(), 0).await.err()),
        ("commit", probe.commit(put("l", "v"), Durability::Buffered).await.err()),
        ("commit that is too large", probe.commit(put("l", too_large), Durability::Buffered).await.err()),
        ("empty commit", probe.commit(Batch::new(), Durability::Buffered).await.err()),
        ("sync", probe.sync().await.err()),
    ];
    for (call, error) in outcomes {
        ensure!(
            matches!(error, Some(StorageError::Closed)),
            "expected Closed for a {call} after the close, found {error:?}"
        );
    }
    drop(probe);
    bench.reopen().await?;
    let entries = bench.probe.entries(A, KeyRange::all(), 10).await?;
    ensure!(entries.len() == 1, "a commit after the close was applied");
    Ok(())
}

pub(super) async fn close_completes_calls_in_progress<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..200u32 {
        let probe = bench.probe.clone();
        tasks.spawn(async move {
            let outcome = probe.commit(put(format!("{index}"), vec![1; 3000]), Durability::Buffered).await;
            let read = probe.get(A, &[key("0")]).await;
            let read_fits = matches!(read, Ok(_) | Err(StorageError::Closed));
            ensure!(read_fits, "a read during the close returned {read:?}");
            match outcome {
                Ok(()) => Ok(Some(index)),
                Err(StorageError::Closed) => Ok(None),
                Err(error) => Err(error.into()),
            }
        });
        if index % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    bench.probe.close().await?;
    let mut acknowledged = Vec::new();
    for outcome in tasks.join_all().await {
        acknowledged.extend(outcome?);
    }
    bench.reopen().await?;
    for index in acknowledged {
        let value = bench.probe.value(A, &key(format!("{index}"))).await?;
        ensure!(value.is_some(), "the acknowledged commit {index} is lost after a close");
    }
    Ok(())
}
