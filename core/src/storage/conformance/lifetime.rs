//! Durability as far as a process can see it: reopening, drops, close.

use std::task::{Context, Waker};

use bytes::Bytes;

use super::Builder;
use super::bench::{Bench, Broken, ensure, key};
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, KeyRange, Space};

const A: Space = Space::new("a");
const B_: Space = Space::new("b");

fn put(name: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Batch {
    let mut batch = Batch::new();
    batch.put(A, key(name), value);
    batch
}

pub(super) async fn what_was_committed_is_there_after_a_reopen<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
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
            "everything committed, and no more, is there after a close and an open, but {entries:?}"
        );
    }
    Ok(())
}

pub(super) async fn a_drop_without_close_loses_nothing<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    for round in 0..3 {
        bench.probe.commit(put(format!("{round} durable"), "v"), Durability::Durable).await?;
        bench.probe.commit(put(format!("{round} buffered"), "v"), Durability::Buffered).await?;
        bench.drop_and_open().await?;
        let entries = bench.probe.entries(A, KeyRange::all(), 100).await?;
        ensure!(
            entries.len() == (round + 1) * 2,
            "a storage that was dropped without a close has kept what it acknowledged, but {entries:?}"
        );
    }
    Ok(())
}

pub(super) async fn a_dropped_commit_is_whole_or_nothing<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    const COMMITS: u32 = 100;
    for index in 0..COMMITS {
        let name = key(index.to_be_bytes());
        let mut batch = Batch::new();
        batch.put(A, name.clone(), vec![index as u8; 2000]).put(B_, name, vec![index as u8; 2000]);
        let mut commit = Box::pin(bench.probe.commit(batch, Durability::Buffered));
        // Polled so often, then dropped, wherever it is.
        for _ in 0..index % 4 {
            if commit.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // Commits are in one order, so after this one the others have come or never will.
    bench.probe.commit(put("last", "v"), Durability::Durable).await?;
    for round in ["", " after a reopen"] {
        for index in 0..COMMITS {
            let name = key(index.to_be_bytes());
            let (a, b) = (bench.probe.value(A, &name).await?, bench.probe.value(B_, &name).await?);
            ensure!(a == b, "a commit whose future was dropped is applied whole or not at all{round}");
            let intact = a.is_none_or(|value| value == vec![index as u8; 2000]);
            ensure!(intact, "a value is not torn{round}");
        }
        bench.reopen().await?;
    }
    // Reads that were dropped leave nothing behind either.
    for index in 0..COMMITS {
        let keys = [key(index.to_be_bytes())];
        let mut get = Box::pin(bench.probe.get(A, &keys));
        let _ = get.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    let value = bench.probe.value(A, &key("last")).await?;
    ensure!(value.as_deref() == Some(b"v"), "the storage goes on after dropped reads");
    Ok(())
}

pub(super) async fn a_close_lets_go_of_everything<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
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
        ensure!(
            entries == round + 1,
            "everything committed is there, but {entries} of {} entries",
            round + 1
        );
    }
    Ok(())
}

pub(super) async fn a_closed_storage_says_so<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
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
            "after the close a {call} gives Closed, but: {error:?}"
        );
    }
    drop(probe);
    bench.reopen().await?;
    let entries = bench.probe.entries(A, KeyRange::all(), 10).await?;
    ensure!(entries.len() == 1, "what came after the close is not applied");
    Ok(())
}

pub(super) async fn a_close_leaves_nobody_waiting<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..200u32 {
        let probe = bench.probe.clone();
        tasks.spawn(async move {
            let outcome = probe.commit(put(format!("{index}"), vec![1; 3000]), Durability::Buffered).await;
            let read = probe.get(A, &[key("0")]).await;
            let read_fits = matches!(read, Ok(_) | Err(StorageError::Closed));
            ensure!(read_fits, "a read under way at the close ends or gives Closed, but: {read:?}");
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
        ensure!(value.is_some(), "what was acknowledged before the close is there, but {index} is not");
    }
    Ok(())
}
