//! Batches, conditions, and many writers at once.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Barrier;

use super::Builder;
use super::bench::{Bench, Broken, ensure, key};
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

const A: Space = Space::new("a");
const B_: Space = Space::new("b");
const C: Space = Space::new("c");

/// How many writers run at once.
const WRITERS: u32 = 16;

pub(super) async fn an_empty_batch_is_applied<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    bench.probe.commit(Batch::new(), Durability::Buffered).await?;
    bench.probe.commit(Batch::new(), Durability::Durable).await?;
    let mut batch = Batch::new();
    batch.require_absent(A, key("k"));
    bench.probe.commit(batch.clone(), Durability::Durable).await?;
    bench.probe.put(A, &key("k"), "v").await?;
    let outcome = bench.probe.commit(batch, Durability::Durable).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "the conditions of a batch without writes are checked, but: {outcome:?}"
    );
    Ok(())
}

pub(super) async fn conditions_decide<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    let k = key("k");
    // What is there, what is required (None: absent), and whether that holds.
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
    for (there, required, holds) in rows {
        let mut batch = Batch::new();
        match there {
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
        let as_it_should =
            if holds { outcome.is_ok() } else { matches!(outcome, Err(StorageError::Conflict)) };
        ensure!(
            as_it_should,
            "with {there:?} there, requiring {required:?} {}, but: {outcome:?}",
            if holds { "holds" } else { "is a Conflict" }
        );
        let marked = bench.probe.value(A, &key("mark")).await?.is_some();
        ensure!(marked == holds, "a batch is applied exactly if its conditions hold");
    }
    Ok(())
}

pub(super) async fn a_refused_batch_changes_nothing_in_any_space<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let probe = &bench.probe;
    probe.put(A, &key("kept"), "old").await?;
    probe.put(C, &key("there"), "v").await?;
    let all_of_it = |with: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        batch.put(A, key("new"), "n").delete(A, key("kept")).put(B_, key("new"), "n").put(C, key("new"), "n");
        with(&mut batch);
        batch
    };
    // The condition that fails is the last of several, and in the last space.
    let refused = all_of_it(&|batch| {
        batch.require_absent(A, key("new")).require(A, key("kept"), "old").require_absent(C, key("there"));
    });
    let outcome = probe.commit(refused, Durability::Durable).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "one condition that fails is enough: {outcome:?}"
    );
    let untouched = probe.value(A, &key("kept")).await?.as_deref() == Some(b"old")
        && probe.value(A, &key("new")).await?.is_none()
        && probe.value(B_, &key("new")).await?.is_none()
        && probe.value(C, &key("new")).await?.is_none();
    ensure!(untouched, "a batch that is refused changes nothing in any space");
    probe.commit(all_of_it(&|_| {}), Durability::Durable).await?;
    let applied = probe.value(A, &key("kept")).await?.is_none()
        && probe.value(A, &key("new")).await?.is_some()
        && probe.value(B_, &key("new")).await?.is_some()
        && probe.value(C, &key("new")).await?.is_some();
    ensure!(applied, "a batch is applied in all of its spaces");
    Ok(())
}

pub(super) async fn conditions_see_the_state_before_the_batch<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let mut batch = Batch::new();
    batch.put(A, key("k"), "v").require_absent(A, key("k"));
    let outcome = bench.probe.commit(batch, Durability::Buffered).await;
    ensure!(outcome.is_ok(), "conditions see the state before the batch, but: {outcome:?}");
    let mut batch = Batch::new();
    batch.put(A, key("k"), "w").require(A, key("k"), "w");
    let outcome = bench.probe.commit(batch, Durability::Buffered).await;
    ensure!(
        matches!(outcome, Err(StorageError::Conflict)),
        "conditions do not see the batch's own writes, but: {outcome:?}"
    );
    Ok(())
}

pub(super) async fn the_last_write_to_a_key_counts<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
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
            "of several writes to a key the last one counts{round}, but: {values:?}"
        );
        bench.reopen().await?;
    }
    Ok(())
}

pub(super) fn number(value: Option<&Bytes>) -> u32 {
    value.and_then(|bytes| bytes[..].try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(super) async fn one_of_many_writers_wins<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
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
        ensure!(winners.len() == 1, "exactly one of {WRITERS} writers wins, but {winners:?} did");
        let value = bench.probe.value(A, &prize).await?;
        ensure!(number(value.as_ref()) == winners[0], "the value is the winner's");
        let marks = bench.probe.scan(B_, KeyRange::prefix(format!("{round} ").as_bytes()), 100).await?;
        ensure!(marks.len() == 1, "nothing of the losers is applied, but {marks:?}");
    }
    Ok(())
}

pub(super) async fn no_update_is_lost<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    const EACH: u32 = 10;
    let all = Arc::new(Barrier::new(WRITERS as usize));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (probe, all) = (bench.probe.clone(), Arc::clone(&all));
        tasks.spawn(async move {
            let counter = key("counter");
            for _ in 0..EACH {
                // Somebody gets on in each round, so this is enough.
                for attempt in 0.. {
                    let value = probe.value(A, &counter).await?;
                    let mut batch = Batch::new();
                    match value.clone() {
                        Some(value) => batch.require(A, counter.clone(), value),
                        None => batch.require_absent(A, counter.clone()),
                    };
                    let next = number(value.as_ref()) + 1;
                    // However fast a storage is, all have read the same value before the first of them writes.
                    if attempt == 0 {
                        all.wait().await;
                    }
                    batch.put(A, counter.clone(), next.to_be_bytes().to_vec());
                    match probe.commit(batch, Durability::Buffered).await {
                        Ok(()) => break,
                        Err(StorageError::Conflict) => {
                            ensure!(attempt < WRITERS * EACH * 2, "of several writers one gets on");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(())
        });
    }
    // Not all at the end: the others would wait for one that failed.
    while let Some(outcome) = tasks.join_next().await {
        outcome.map_err(|error| Broken(format!("no call panics, but: {error}")))??;
    }
    let found = number(bench.probe.value(A, &key("counter")).await?.as_ref());
    ensure!(
        found == WRITERS * EACH,
        "no update is lost: {} were acknowledged, {found} are there",
        WRITERS * EACH
    );
    Ok(())
}

pub(super) async fn a_conflict_fails_alone<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
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
            continue; // It bears larger values than are tried here.
        }
        ensure!(
            outcome.is_ok() != refused(index),
            "a batch that is refused fails alone among those committed with it, but {index}: {outcome:?}"
        );
    }
    let there = bench.probe.entries(A, KeyRange::prefix(b"at "), 1000).await?.len();
    let expected = (0..90).filter(|index| !refused(*index)).count();
    ensure!(
        there == expected || there == expected + 1,
        "the {expected} others are applied, but {there} are there"
    );
    Ok(())
}

pub(super) async fn a_read_sees_what_was_acknowledged<B: Builder>(
    bench: &mut Bench<'_, B>,
) -> Result<(), Broken> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let probe = bench.probe.clone();
        tasks.spawn(async move {
            let own = key(format!("own {writer}"));
            for step in 0..30u32 {
                probe.put(A, &own, step.to_be_bytes().to_vec()).await?;
                let found = number(probe.value(A, &own).await?.as_ref());
                ensure!(found == step, "a get sees what was acknowledged: {step}, not {found}");
                let page = probe.scan(A, KeyRange::prefix(own.as_bytes()), 10).await?;
                let found = page.iter().find(|(key, _)| key == &own).map(|(_, value)| value);
                ensure!(number(found) == step, "a scan sees what was acknowledged: {step}");
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

pub(super) async fn a_page_is_consistent<B: Builder>(bench: &mut Bench<'_, B>) -> Result<(), Broken> {
    let keys: Vec<Key> = (0..40).map(|index| key(format!("{index:02}"))).collect();
    // All keys always have the same value, and in odd rounds every second one is gone.
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
    bench.probe.commit(round(0), Durability::Buffered).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (probe, stopped) = (bench.probe.clone(), stopped.clone());
        readers.spawn(async move {
            while !*stopped.borrow() {
                let page = probe.scan(A, KeyRange::all(), 100).await?;
                let first = number(page.first().map(|(_, value)| value));
                let expected = if first % 2 == 1 { 20 } else { 40 };
                ensure!(
                    page.len() == expected && page.iter().all(|(_, value)| number(Some(value)) == first),
                    "a page shows each batch whole or not at all, but it mixes: {:?}",
                    page.iter().map(|(_, value)| number(Some(value))).collect::<Vec<_>>()
                );
                tokio::task::yield_now().await;
            }
            Ok(())
        });
    }
    let mut outcome = Ok(());
    for number in 1..200 {
        outcome = bench.probe.commit(round(number), Durability::Buffered).await;
        if outcome.is_err() {
            break;
        }
    }
    stop.send_replace(true);
    for outcome in readers.join_all().await {
        outcome?;
    }
    Ok(outcome?)
}
