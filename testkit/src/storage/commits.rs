//! Batches, conditions and concurrent writers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Barrier;

use super::bench::{Bench, Violation, ensure, key};
use super::builder::Builder;
use super::records::pattern;
use enjambre_core::{Batch, Durability, Key, KeyRange, Space, StorageError};

const A: Space = Space::new("a");
const B_: Space = Space::new("b");
const C: Space = Space::new("c");

/// The number of concurrent writers.
const WRITERS: u32 = 16;

pub(super) async fn empty_batch_checks_its_conditions<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    bench.probe.commit(Batch::new(), Durability::Buffered).await?;
    bench.probe.commit(Batch::new(), Durability::Durable).await?;
    let mut batch = Batch::new();
    batch.require_absent(A, key("k"));
    bench.probe.commit(batch.clone(), Durability::Durable).await?;
    bench.probe.put(A, &key("k"), "v").await?;
    let outcome = bench.probe.commit(batch, Durability::Durable).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "expected Conflict for a batch without writes, found {outcome:?}"
    );
    Ok(())
}

pub(super) async fn batch_is_applied_only_if_conditions_hold<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let k = key("k");
    // The stored value, the required one (`None` means absent), and whether the condition holds.
    let rows: [(Option<&str>, Option<&str>, bool); 9] = [
        (None, None, true),
        (Some("v"), None, false),
        (Some(""), None, false),
        (Some("v"), Some("v"), true),
        (Some("v"), Some("w"), false),
        (Some("v"), Some("vv"), false),
        (Some("v"), Some(""), false),
        (Some(""), Some(""), true),
        (None, Some(""), false),
    ];
    for (stored, required, holds) in rows {
        let mut batch = Batch::new();
        match stored {
            Some(value) => batch.put(A, k.clone(), value),
            None => batch.delete(A, k.clone()),
        };
        batch.delete(A, key("mark"));
        bench.probe.commit(batch, Durability::Buffered).await?;
        let mut batch = Batch::new();
        match required {
            Some(value) => batch.require(A, k.clone(), value),
            None => batch.require_absent(A, k.clone()),
        };
        batch.put(A, key("mark"), "set");
        let outcome = bench.probe.commit(batch, Durability::Buffered).await;
        let expected = if holds { outcome.is_ok() } else { matches!(outcome, Err(StorageError::Conflict)) };
        ensure!(
            expected,
            "with the value {stored:?}, the condition {required:?} {}, but the result is {outcome:?}",
            if holds { "holds" } else { "is a conflict" }
        );
        let marked = bench.probe.value(A, &key("mark")).await?.is_some();
        ensure!(
            marked == holds,
            "the batch is applied although its condition does not hold, or the other way round"
        );
    }
    Ok(())
}

pub(super) async fn condition_compares_every_byte<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    for len in [1, 64, 65, 255, 256, 1024, 4097, 32 * 1024] {
        let k = key(format!("{len}"));
        let value = pattern(len);
        bench.probe.put(A, &k, value.clone()).await?;
        for changed in [0, len / 2, len - 1] {
            let mut other = value.to_vec();
            other[changed] ^= 1;
            let mut batch = Batch::new();
            batch.require(A, k.clone(), other).put(A, key("applied"), "");
            let outcome = bench.probe.commit(batch, Durability::Buffered).await;
            ensure!(
                matches!(outcome, Err(StorageError::Conflict)),
                "expected Conflict for a value of {len} bytes that differs in byte {changed}, found {outcome:?}"
            );
        }
        let mut batch = Batch::new();
        batch.require(A, k.clone(), value).delete(A, k);
        let outcome = bench.probe.commit(batch, Durability::Buffered).await;
        ensure!(
            outcome.is_ok(),
            "a condition with the stored value of {len} bytes does not hold: {outcome:?}"
        );
    }
    let left = bench.probe.scan(A, KeyRange::all(), 10).await?;
    ensure!(left.is_empty(), "a refused batch changed an entry, or an applied one did not: {left:?}");
    Ok(())
}

pub(super) async fn batch_is_atomic_across_spaces<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let probe = &bench.probe;
    probe.put(A, &key("kept"), "old").await?;
    probe.put(C, &key("there"), "v").await?;
    let batch_with = |with: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        batch.put(A, key("new"), "n").delete(A, key("kept")).put(B_, key("new"), "n").put(C, key("new"), "n");
        with(&mut batch);
        batch
    };
    // Only the last of several conditions fails, in the last space.
    let refused = batch_with(&|batch| {
        batch.require_absent(A, key("new")).require(A, key("kept"), "old").require_absent(C, key("there"));
    });
    let outcome = probe.commit(refused, Durability::Durable).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "expected Conflict if one condition fails, found {outcome:?}"
    );
    let unchanged = probe.value(A, &key("kept")).await?.as_deref() == Some(b"old")
        && probe.value(A, &key("new")).await?.is_none()
        && probe.value(B_, &key("new")).await?.is_none()
        && probe.value(C, &key("new")).await?.is_none();
    ensure!(unchanged, "a refused batch changed an entry");
    probe.commit(batch_with(&|_| {}), Durability::Durable).await?;
    let applied = probe.value(A, &key("kept")).await?.is_none()
        && probe.value(A, &key("new")).await?.is_some()
        && probe.value(B_, &key("new")).await?.is_some()
        && probe.value(C, &key("new")).await?.is_some();
    ensure!(applied, "a batch is not applied in all of its spaces");
    Ok(())
}

pub(super) async fn conditions_see_state_before_batch<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let mut batch = Batch::new();
    batch.put(A, key("k"), "v").require_absent(A, key("k"));
    let outcome = bench.probe.commit(batch, Durability::Buffered).await;
    ensure!(outcome.is_ok(), "the conditions do not observe the state before the batch: {outcome:?}");
    let mut batch = Batch::new();
    batch.put(A, key("k"), "w").require(A, key("k"), "w");
    let outcome = bench.probe.commit(batch, Durability::Buffered).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "the conditions observe the writes of their own batch: {outcome:?}"
    );
    Ok(())
}

pub(super) async fn last_write_to_key_wins<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    let mut batch = Batch::new();
    batch.put(A, key("put"), "1").delete(A, key("put")).put(A, key("put"), "2");
    batch.put(A, key("deleted"), "1").put(A, key("deleted"), "2").delete(A, key("deleted"));
    batch.delete(A, key("again")).put(A, key("again"), "1").put(A, key("again"), "");
    bench.probe.commit(batch, Durability::Durable).await?;
    for round in ["", " after a reopen"] {
        let keys = ["put", "deleted", "again"].map(key);
        let values = bench.probe.get(A, &keys).await?;
        ensure!(
            values == [Some(Bytes::from("2")), None, Some(Bytes::new())],
            "the last write to a key does not win{round}: {values:?}"
        );
        bench.reopen().await?;
    }
    Ok(())
}

pub(super) fn number(value: Option<&Bytes>) -> u32 {
    value.and_then(|bytes| bytes[..].try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(super) async fn one_of_concurrent_conditional_writers_wins<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    for round in 0..20u32 {
        let prize = key(format!("prize {round}"));
        let all = Arc::new(Barrier::new(WRITERS as usize));
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let (probe, prize, all) = (bench.probe.clone(), prize.clone(), Arc::clone(&all));
            tasks.spawn(async move {
                let mut batch = Batch::new();
                batch.require_absent(A, prize.clone()).put(A, prize, writer.to_be_bytes().to_vec());
                batch.put(B_, key(format!("{round} {writer}")), "won");
                let durability = if writer % 2 == 0 { Durability::Durable } else { Durability::Buffered };
                all.wait().await;
                (writer, probe.commit(batch, durability).await)
            });
        }
        let mut winners = Vec::new();
        for (writer, outcome) in tasks.join_all().await {
            match outcome {
                Ok(()) => winners.push(writer),
                Err(StorageError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ensure!(winners.len() == 1, "expected one winner of {WRITERS} writers, found {winners:?}");
        let value = bench.probe.value(A, &prize).await?;
        ensure!(number(value.as_ref()) == winners[0], "the value is not the one of the winner");
        let marks = bench.probe.scan(B_, KeyRange::prefix(format!("{round} ").as_bytes()), 100).await?;
        ensure!(marks.len() == 1, "a refused batch was applied partially: {marks:?}");
    }
    Ok(())
}

pub(super) async fn concurrent_updates_are_not_lost<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    const EACH: u32 = 10;
    let all = Arc::new(Barrier::new(WRITERS as usize));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (probe, all) = (bench.probe.clone(), Arc::clone(&all));
        tasks.spawn(async move {
            let counter = key("counter");
            for _ in 0..EACH {
                // One writer succeeds in each round, so the attempts suffice.
                for attempt in 0.. {
                    let value = probe.value(A, &counter).await?;
                    let mut batch = Batch::new();
                    match value.clone() {
                        Some(value) => batch.require(A, counter.clone(), value),
                        None => batch.require_absent(A, counter.clone()),
                    };
                    let next = number(value.as_ref()) + 1;
                    // All writers read the same value before the first one writes.
                    if attempt == 0 {
                        all.wait().await;
                    }
                    batch.put(A, counter.clone(), next.to_be_bytes().to_vec());
                    match probe.commit(batch, Durability::Buffered).await {
                        Ok(()) => break,
                        Err(StorageError::Conflict) => {
                            ensure!(attempt < WRITERS * EACH * 2, "no concurrent writer succeeds");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(())
        });
    }
    // Checked one by one, because the other writers would wait for a failed one at the barrier.
    while let Some(outcome) = tasks.join_next().await {
        outcome.map_err(|error| Violation(format!("a call panicked: {error}")))??;
    }
    let found = number(bench.probe.value(A, &key("counter")).await?.as_ref());
    ensure!(
        found == WRITERS * EACH,
        "an update was lost: {} updates acknowledged, the counter is {found}",
        WRITERS * EACH
    );
    Ok(())
}

pub(super) async fn conflict_does_not_fail_other_batches<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    bench.probe.put(A, &key("taken"), "v").await?;
    let too_large = bench.probe.limits().max_value.min(64 << 20) + 1;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..90u32 {
        let probe = bench.probe.clone();
        tasks.spawn(async move {
            let mut batch = Batch::new();
            batch.put(A, key(format!("at {index:03}")), "v");
            match index % 10 {
                3 => batch.require_absent(A, key("taken")),
                7 if index == 7 => batch.put(A, key("large"), vec![0; too_large]),
                _ => &mut batch,
            };
            (index, probe.commit(batch, Durability::Buffered).await)
        });
    }
    let refused = |index: u32| index % 10 == 3 || index == 7;
    for (index, outcome) in tasks.join_all().await {
        if index == 7 && outcome.is_ok() {
            continue; // The limit of the backend is larger.
        }
        ensure!(
            outcome.is_ok() != refused(index),
            "a refused batch affected another one: batch {index} returned {outcome:?}"
        );
    }
    let applied = bench.probe.entries(A, KeyRange::prefix(b"at "), 1000).await?.len();
    let expected = (0..90).filter(|index| !refused(*index)).count();
    ensure!(
        applied == expected || applied == expected + 1,
        "expected {expected} applied batches, found {applied}"
    );
    Ok(())
}

pub(super) async fn read_sees_acknowledged_commits<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let probe = bench.probe.clone();
        tasks.spawn(async move {
            let own = key(format!("own {writer}"));
            for step in 0..30u32 {
                probe.put(A, &own, step.to_be_bytes().to_vec()).await?;
                let found = number(probe.value(A, &own).await?.as_ref());
                ensure!(
                    found == step,
                    "a get does not observe an acknowledged commit: expected {step}, found {found}"
                );
                let page = probe.scan(A, KeyRange::prefix(own.as_bytes()), 10).await?;
                let found = page.iter().find(|(key, _)| key == &own).map(|(_, value)| value);
                ensure!(
                    number(found) == step,
                    "a scan does not observe an acknowledged commit: expected {step}"
                );
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Commits the batches of the rounds one after the other, while each reader repeats its check in a task.
pub(super) async fn commit_beside_readers<B: Builder, Read, Reading>(
    bench: &Bench<'_, B>,
    rounds: u32,
    batch: impl Fn(u32) -> Batch,
    readers: impl IntoIterator<Item = Read>,
) -> Result<(), Violation>
where
    Read: Fn() -> Reading + Send + 'static,
    Reading: Future<Output = Result<(), Violation>> + Send,
{
    bench.probe.commit(batch(0), Durability::Buffered).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut tasks = tokio::task::JoinSet::<Result<(), Violation>>::new();
    for read in readers {
        let stopped = stopped.clone();
        tasks.spawn(async move {
            while !*stopped.borrow() {
                read().await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        });
    }
    let mut outcome = Ok(());
    for round in 1..rounds {
        outcome = bench.probe.commit(batch(round), Durability::Buffered).await;
        if outcome.is_err() {
            break;
        }
    }
    stop.send_replace(true);
    for outcome in tasks.join_all().await {
        outcome?;
    }
    Ok(outcome?)
}

pub(super) async fn batch_is_observed_in_all_spaces_at_once<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Violation> {
    let round = |number: u32| {
        let mut batch = Batch::new();
        for space in [A, B_, C] {
            batch.put(space, key("round"), number.to_be_bytes().to_vec());
        }
        batch
    };
    // In each order, because a backend may write the spaces in any order.
    let orders = [[A, B_], [B_, C], [C, A], [A, C], [C, B_], [B_, A]];
    let readers = orders.map(|[first, second]| {
        let probe = bench.probe.clone();
        move || {
            let probe = probe.clone();
            async move {
                let observed = number(probe.value(first, &key("round")).await?.as_ref());
                let later = number(probe.value(second, &key("round")).await?.as_ref());
                ensure!(
                    later >= observed,
                    "batch {observed} is observed in the space {}, and afterwards batch {later} in the space {}",
                    first.name(),
                    second.name()
                );
                Ok(())
            }
        }
    });
    commit_beside_readers(bench, 200, round, readers).await
}

pub(super) async fn scan_page_is_a_snapshot<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Violation> {
    let keys: Vec<Key> = (0..40).map(|index| key(format!("{index:02}"))).collect();
    // All keys have the same value, and every second one is absent in odd rounds.
    let round = |number: u32| {
        let mut batch = Batch::new();
        for (index, key) in keys.iter().enumerate() {
            if number % 2 == 1 && index % 2 == 1 {
                batch.delete(A, key.clone());
            } else {
                batch.put(A, key.clone(), number.to_be_bytes().to_vec());
            }
        }
        batch
    };
    let probe = bench.probe.clone();
    let read = move || {
        let probe = probe.clone();
        async move {
            let page = probe.scan(A, KeyRange::all(), 100).await?;
            let first = number(page.first().map(|(_, value)| value));
            let expected = if first % 2 == 1 { 20 } else { 40 };
            ensure!(
                page.len() == expected && page.iter().all(|(_, value)| number(Some(value)) == first),
                "a page contains a part of a batch: {:?}",
                page.iter().map(|(_, value)| number(Some(value))).collect::<Vec<_>>()
            );
            Ok(())
        }
    };
    commit_beside_readers(bench, 200, round, [read.clone(), read.clone(), read]).await
}
