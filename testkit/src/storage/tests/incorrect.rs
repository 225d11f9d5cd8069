//! Incorrect storages, which prove that each case can fail.

use std::ops::Bound;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::defects::{DETECTED_BY, Defect};
use super::*;
use enjambre_core::storage::value::{MAX_KEY, MIN_WRITES};
use enjambre_core::{Batch, Condition, Durability, Key, KeyRange, Limits, Memory, Space, Write};

#[derive(Debug)]
struct Incorrect {
    inner: Arc<Memory>,
    defect: Defect,
    conflicted: parking_lot::Mutex<bool>,
    locked: Arc<AtomicBool>,
}

impl Incorrect {
    fn open(disk: &Disk, defect: Defect, locked: &Arc<AtomicBool>) -> Result<Self, StorageError> {
        if defect == Defect::LetsGoLate && locked.swap(true, Ordering::AcqRel) {
            return Err(StorageError::Locked { path: "incorrect".into() });
        }
        if defect == Defect::ForgetsBuffered {
            disk.power_cut();
        }
        let opens_twice = defect == Defect::OpensTwice && locked.swap(true, Ordering::AcqRel);
        let mut inner = if opens_twice { Disk::new().open() } else { disk.open() };
        let limits = Limits { max_writes: 20_000, ..inner.limits() };
        inner = inner.with_limits(limits);
        match defect {
            Defect::FewWrites => inner = inner.with_limits(Limits { max_writes: MIN_WRITES - 1, ..limits }),
            Defect::AppliesManyWrites => {
                inner = inner.with_limits(Limits { max_writes: usize::MAX, ..limits });
            }
            Defect::Narrow => inner = inner.with_limits(Limits { max_value: 32 * 1024 - 1, ..limits }),
            Defect::NarrowPages => {
                inner = inner.with_limits(Limits { max_page_bytes: 64 * 1024 - 1, ..limits });
            }
            Defect::HeavyPages => inner = inner.with_limits(Limits { max_page_bytes: usize::MAX, ..limits }),
            Defect::AppliesTooLarge | Defect::NoBatchLimit => {
                inner = inner.with_limits(Limits { max_batch: usize::MAX, ..limits });
            }
            _ => {}
        }
        let (inner, locked) = (Arc::new(inner), Arc::clone(locked));
        Ok(Self { inner, defect, conflicted: parking_lot::Mutex::default(), locked })
    }

    fn space(&self, space: Space) -> Space {
        match self.defect {
            Defect::OneSpace => Space::new("one"),
            Defect::ShortSpaces => Space::new(&space.name()[..space.name().len().min(8)]),
            _ => space,
        }
    }

    fn key(&self, key: &Key) -> Key {
        match self.defect {
            Defect::ShortKeys => Key::new(key.as_bytes()[..key.as_bytes().len().min(MAX_KEY - 1)].to_vec())
                .expect("a prefix of a key"),
            _ => key.clone(),
        }
    }

    fn rewrite(&self, batch: &mut Batch) {
        for write in &mut batch.writes {
            if let Write::Put(_, _, value) = write
                && self.defect == Defect::NoLimits
            {
                value.truncate(self.limits().max_value);
            }
            match write {
                Write::Put(space, key, _) | Write::Delete(space, key) => {
                    (*space, *key) = (self.space(*space), self.key(key));
                }
            }
        }
        if self.defect == Defect::FirstWriteCounts {
            batch.writes.reverse();
        }
        for condition in &mut batch.conditions {
            if let Condition::Equals(space, key, value) = condition
                && self.defect == Defect::EmptyIsAbsent
                && value.is_empty()
            {
                *condition = Condition::Absent(*space, key.clone());
            }
        }
        if self.defect == Defect::ChecksTooLate {
            let writes = batch.writes.clone();
            let meets = |space: Space, key: &Key, value: Option<&Bytes>| {
                let own = writes.iter().rev().find(|write| write.target() == (space, key));
                own.is_some_and(|write| write.value() == value)
            };
            batch.conditions.retain(|condition| match condition {
                Condition::Absent(space, key) => !meets(*space, key, None),
                Condition::Equals(space, key, value) => !meets(*space, key, Some(value)),
            });
        }
    }
}

#[async_trait]
impl Storage for Incorrect {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let mut keys: Vec<Key> = keys.iter().map(|key| self.key(key)).collect();
        if self.defect == Defect::SortsAnswers {
            keys.sort();
        }
        let outcome = self.inner.get(self.space(space), &keys).await;
        match (self.defect, outcome) {
            (Defect::NeverCloses, Err(StorageError::Closed)) => Ok(vec![None; keys.len()]),
            (Defect::EmptyIsAbsent, Ok(values)) => {
                Ok(values.into_iter().map(|value| value.filter(|value| !value.is_empty())).collect())
            }
            (Defect::CutsAnswers, Ok(mut values)) => {
                let mut bytes = 0;
                for value in &mut values {
                    bytes += value.as_ref().map_or(0, Bytes::len);
                    *value = value.take().filter(|_| bytes <= 1 << 20);
                }
                Ok(values)
            }
            (Defect::AbsentIsEmpty, Ok(values)) => {
                Ok(values.into_iter().map(|value| Some(value.unwrap_or_default())).collect())
            }
            (_, outcome) => outcome,
        }
    }

    async fn scan(
        &self,
        space: Space,
        mut range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        match self.defect {
            Defect::ExcludesEnds => {
                if let Bound::Included(end) = range.end {
                    range.end = Bound::Excluded(end);
                }
            }
            Defect::PanicsOnInverted => assert!(!range.is_empty(), "range start is greater than range end"),
            _ => {}
        }
        let limit = limit.saturating_add(usize::from(self.defect == Defect::LongPages));
        let mut page = self.inner.scan(self.space(space), range, limit).await?;
        if self.defect == Defect::SignedOrder {
            page.sort_by_key(|(key, _)| key.as_bytes().iter().map(|byte| *byte as i8).collect::<Vec<_>>());
        }
        Ok(page)
    }

    async fn commit(&self, mut batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.rewrite(&mut batch);
        match self.defect {
            Defect::ChecksTooEarly => {
                let conditions = std::mem::take(&mut batch.conditions);
                self.inner.commit(Batch { conditions, writes: Vec::new() }, durability).await?;
                tokio::task::yield_now().await;
            }
            Defect::TearsBatches | Defect::SplitsBatches | Defect::TearsSpaces => {
                let writes = std::mem::take(&mut batch.writes);
                self.inner.commit(batch, durability).await?;
                let parts: Vec<&[Write]> = match self.defect {
                    Defect::TearsBatches => writes.chunks(1).collect(),
                    Defect::SplitsBatches => writes.chunks(5000).collect(),
                    _ => writes.chunk_by(|one, next| one.target().0 == next.target().0).collect(),
                };
                for some in parts {
                    let part = Batch { conditions: Vec::new(), writes: some.to_vec() };
                    self.inner.commit(part, durability).await?;
                    tokio::task::yield_now().await;
                }
                return Ok(());
            }
            Defect::ComparesPrefixes => {
                for condition in &mut batch.conditions {
                    let Condition::Equals(space, key, required) = condition else { continue };
                    let stored = self.inner.get(*space, std::slice::from_ref(key)).await?.remove(0);
                    if let Some(stored) = stored
                        && required.len() > 64
                        && stored.get(..64) == required.get(..64)
                    {
                        *required = stored;
                    }
                }
            }
            Defect::AppliesRefused => {
                let outcome = self.inner.commit(batch.clone(), durability).await;
                if matches!(outcome, Err(StorageError::Conflict)) {
                    batch.writes.truncate(1);
                    batch.conditions.clear();
                    self.inner.commit(batch, durability).await?;
                }
                return outcome;
            }
            Defect::AppliesTooLarge => {
                let outcome = self.inner.commit(batch.clone(), durability).await;
                if matches!(outcome, Err(StorageError::TooLarge { .. })) {
                    let largest = self.limits().max_value;
                    batch.writes.retain(|write| write.value().is_none_or(|value| value.len() <= largest));
                    self.inner.commit(batch, durability).await?;
                }
                return outcome;
            }
            Defect::Blocks if !batch.conditions.is_empty() => loop {
                std::thread::park();
            },
            Defect::SkipsEmptyBatches if batch.writes.is_empty() => return Ok(()),
            Defect::ConflictsSpread => {
                if std::mem::take(&mut *self.conflicted.lock()) {
                    return Err(StorageError::Conflict);
                }
                let outcome = self.inner.commit(batch, durability).await;
                *self.conflicted.lock() = matches!(outcome, Err(StorageError::Conflict));
                return outcome;
            }
            Defect::AcknowledgesEarly => {
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move { inner.commit(batch, durability).await });
                return Ok(());
            }
            Defect::HangsAtClose | Defect::AcknowledgesAfterClose => {
                let outcome = self.inner.commit(batch, durability).await;
                return match (self.defect, outcome) {
                    (Defect::HangsAtClose, Err(StorageError::Closed)) => std::future::pending().await,
                    (_, Err(StorageError::Closed)) => Ok(()),
                    (_, outcome) => outcome,
                };
            }
            _ => {}
        }
        self.inner.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.inner.sync().await
    }

    fn limits(&self) -> Limits {
        match self.defect {
            Defect::HeavyPages => Limits { max_page_bytes: 1 << 20, ..self.inner.limits() },
            Defect::NoBatchLimit => Limits { max_batch: 8 << 20, ..self.inner.limits() },
            Defect::AppliesManyWrites => Limits { max_writes: 20_000, ..self.inner.limits() },
            _ => self.inner.limits(),
        }
    }

    async fn close(&self) -> Result<(), StorageError> {
        if self.defect == Defect::LetsGoLate {
            let locked = Arc::clone(&self.locked);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                locked.store(false, Ordering::Release);
            });
        }
        // Skips the sync of a close.
        if self.defect == Defect::ForgetsBuffered { Ok(()) } else { self.inner.close().await }
    }
}

fn builder_with(defect: Defect) -> impl Builder<Place = Disk> {
    let locked = Arc::new(AtomicBool::new(false));
    WithDisk(move |disk: Disk| {
        let opened = Incorrect::open(&disk, defect, &locked);
        std::future::ready(opened.map(|storage| Arc::new(storage) as Arc<dyn Storage>))
    })
}

// The time is paused, so that a hang is detected at once.
#[tokio::test(start_paused = true)]
async fn every_case_detects_an_incorrect_backend() {
    for case in CASES {
        let defects: Vec<Defect> =
            DETECTED_BY.iter().filter(|(_, name)| *name == case.name).map(|(defect, _)| *defect).collect();
        assert!(!defects.is_empty(), "no defect is detected by {}", case.name);
        for defect in defects {
            let builder = builder_with(defect);
            // The random case may miss a defect in one run.
            let tries = if case.name.starts_with("random") { 20 } else { 1 };
            let mut outcome = run(&builder, case).await;
            for _ in 1..tries {
                if outcome.result.is_ok() {
                    outcome = run(&builder, case).await;
                }
            }
            let failure = outcome.result.expect_err(&format!("{defect:?} is detected by {}", case.name));
            assert_eq!(failure.case, case);
            let text = failure.to_string();
            assert!(text.contains(case.requirement) && text.contains(&failure.violation), "{text}");
            assert!(!failure.operations.is_empty(), "the failure lists operations: {text}");
        }
    }
    let unknown = DETECTED_BY.iter().find(|(_, name)| case(name).is_none());
    assert!(unknown.is_none(), "unknown case: {unknown:?}");
}

#[tokio::test]
async fn blocking_call_ends_process_and_names_its_case() {
    const TEST: &str = "storage::tests::incorrect::blocking_call_ends_process_and_names_its_case";
    const BLOCKED: &str = "ENJAMBRE_TEST_BLOCKED";
    if let Ok(name) = std::env::var(BLOCKED) {
        // Ends this process even if the watchdog fails.
        std::thread::spawn(|| {
            std::thread::sleep(CASE_TIMEOUT);
            std::process::exit(3)
        });
        let case = case(&name).expect("a case");
        let blocked_timeout = Duration::from_millis(100);
        guard(&builder_with(Defect::Blocks), case, blocked_timeout, async |bench| body(case, bench).await)
            .await;
        return;
    }
    // In one case the task of the case blocks, in the other one separate tasks.
    for name in ["batch_is_applied_only_if_conditions_hold", "one_of_concurrent_conditional_writers_wins"] {
        let mut command = Command::new(std::env::current_exe().expect("the test binary"));
        command.args([TEST, "--exact", "--nocapture"]).env(BLOCKED, name);
        let output = command.output().expect("the test binary is started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(101), "{text}");
        for part in [name, "blocks the polling thread", "commit ", "-> pending"] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }
}
