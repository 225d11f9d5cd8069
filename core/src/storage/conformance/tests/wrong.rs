//! Storages that are wrong on purpose, so that each case is known to be able to fail.

use std::ops::Bound;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::flaws::{FOUND, Flaw};
use super::*;
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Condition, Durability, Key, KeyRange, Limits, MAX_KEY, Space, Write};

#[derive(Debug)]
struct Wrong {
    inner: Arc<Memory>,
    flaw: Flaw,
    conflicted: parking_lot::Mutex<bool>,
    locked: Arc<AtomicBool>,
}

impl Wrong {
    fn open(disk: &Disk, flaw: Flaw, locked: &Arc<AtomicBool>) -> Result<Self, StorageError> {
        if flaw == Flaw::LetsGoLate && locked.swap(true, Ordering::AcqRel) {
            return Err(StorageError::Locked { path: "wrong".into() });
        }
        if flaw == Flaw::ForgetsBuffered {
            disk.power_cut();
        }
        let mut inner = disk.open();
        let limits = inner.limits();
        match flaw {
            Flaw::Narrow => inner = inner.with_limits(Limits { max_value: 32 * 1024 - 1, ..limits }),
            Flaw::NarrowPages => {
                inner = inner.with_limits(Limits { max_page_bytes: 64 * 1024 - 1, ..limits });
            }
            Flaw::HeavyPages => inner = inner.with_limits(Limits { max_page_bytes: usize::MAX, ..limits }),
            Flaw::AppliesTooLarge | Flaw::NoBatchLimit => {
                inner = inner.with_limits(Limits { max_batch: usize::MAX, ..limits });
            }
            _ => {}
        }
        let (inner, locked) = (Arc::new(inner), Arc::clone(locked));
        Ok(Self { inner, flaw, conflicted: parking_lot::Mutex::default(), locked })
    }

    fn space(&self, space: Space) -> Space {
        if self.flaw == Flaw::OneSpace { Space::new("one") } else { space }
    }

    fn key(&self, key: &Key) -> Key {
        match self.flaw {
            Flaw::ShortKeys => Key::new(key.as_bytes()[..key.as_bytes().len().min(MAX_KEY - 1)].to_vec())
                .expect("it is shorter than a key"),
            _ => key.clone(),
        }
    }

    fn rewrite(&self, batch: &mut Batch) {
        for write in &mut batch.writes {
            if let Write::Put(_, _, value) = write
                && self.flaw == Flaw::NoLimits
            {
                value.truncate(self.limits().max_value);
            }
            match write {
                Write::Put(space, key, _) | Write::Delete(space, key) => {
                    (*space, *key) = (self.space(*space), self.key(key));
                }
            }
        }
        if self.flaw == Flaw::FirstWriteCounts {
            batch.writes.reverse();
        }
        for condition in &mut batch.conditions {
            if let Condition::Equals(space, key, value) = condition
                && self.flaw == Flaw::EmptyIsAbsent
                && value.is_empty()
            {
                *condition = Condition::Absent(*space, key.clone());
            }
        }
        if self.flaw == Flaw::ChecksTooLate {
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
impl Storage for Wrong {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let mut keys: Vec<Key> = keys.iter().map(|key| self.key(key)).collect();
        if self.flaw == Flaw::SortsAnswers {
            keys.sort();
        }
        let outcome = self.inner.get(self.space(space), &keys).await;
        match (self.flaw, outcome) {
            (Flaw::NeverCloses, Err(StorageError::Closed)) => Ok(vec![None; keys.len()]),
            (Flaw::EmptyIsAbsent, Ok(values)) => {
                Ok(values.into_iter().map(|value| value.filter(|value| !value.is_empty())).collect())
            }
            (Flaw::CutsAnswers, Ok(mut values)) => {
                let mut bytes = 0;
                for value in &mut values {
                    bytes += value.as_ref().map_or(0, Bytes::len);
                    *value = value.take().filter(|_| bytes <= 1 << 20);
                }
                Ok(values)
            }
            (Flaw::AbsentIsEmpty, Ok(values)) => {
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
        match self.flaw {
            Flaw::ExcludesEnds => {
                if let Bound::Included(end) = range.end {
                    range.end = Bound::Excluded(end);
                }
            }
            Flaw::PanicsOnInverted => assert!(!range.is_empty(), "range start is greater than range end"),
            _ => {}
        }
        let limit = limit.saturating_add(usize::from(self.flaw == Flaw::LongPages));
        let mut page = self.inner.scan(self.space(space), range, limit).await?;
        if self.flaw == Flaw::SignedOrder {
            page.sort_by_key(|(key, _)| key.as_bytes().iter().map(|byte| *byte as i8).collect::<Vec<_>>());
        }
        Ok(page)
    }

    async fn commit(&self, mut batch: Batch, durability: Durability) -> Result<(), StorageError> {
        self.rewrite(&mut batch);
        match self.flaw {
            Flaw::ChecksTooEarly => {
                let conditions = std::mem::take(&mut batch.conditions);
                self.inner.commit(Batch { conditions, writes: Vec::new() }, durability).await?;
                tokio::task::yield_now().await;
            }
            Flaw::TearsBatches | Flaw::SplitsBatches => {
                let writes = std::mem::take(&mut batch.writes);
                self.inner.commit(batch, durability).await?;
                for some in writes.chunks(if self.flaw == Flaw::TearsBatches { 1 } else { 128 }) {
                    let part = Batch { conditions: Vec::new(), writes: some.to_vec() };
                    self.inner.commit(part, durability).await?;
                    tokio::task::yield_now().await;
                }
                return Ok(());
            }
            Flaw::AppliesRefused => {
                let outcome = self.inner.commit(batch.clone(), durability).await;
                if matches!(outcome, Err(StorageError::Conflict)) {
                    batch.writes.truncate(1);
                    batch.conditions.clear();
                    self.inner.commit(batch, durability).await?;
                }
                return outcome;
            }
            Flaw::AppliesTooLarge => {
                let outcome = self.inner.commit(batch.clone(), durability).await;
                if matches!(outcome, Err(StorageError::TooLarge { .. })) {
                    let largest = self.limits().max_value;
                    batch.writes.retain(|write| write.value().is_none_or(|value| value.len() <= largest));
                    self.inner.commit(batch, durability).await?;
                }
                return outcome;
            }
            Flaw::Blocks if !batch.conditions.is_empty() => loop {
                std::thread::park();
            },
            Flaw::SkipsEmptyBatches if batch.writes.is_empty() => return Ok(()),
            Flaw::ConflictsSpread => {
                if std::mem::take(&mut *self.conflicted.lock()) {
                    return Err(StorageError::Conflict);
                }
                let outcome = self.inner.commit(batch, durability).await;
                *self.conflicted.lock() = matches!(outcome, Err(StorageError::Conflict));
                return outcome;
            }
            Flaw::AcknowledgesEarly => {
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move { inner.commit(batch, durability).await });
                return Ok(());
            }
            Flaw::HangsAtClose | Flaw::AcknowledgesAfterClose => {
                let outcome = self.inner.commit(batch, durability).await;
                return match (self.flaw, outcome) {
                    (Flaw::HangsAtClose, Err(StorageError::Closed)) => std::future::pending().await,
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
        match self.flaw {
            Flaw::HeavyPages => Limits { max_page_bytes: 1 << 20, ..self.inner.limits() },
            Flaw::NoBatchLimit => Limits { max_batch: 8 << 20, ..self.inner.limits() },
            _ => self.inner.limits(),
        }
    }

    async fn close(&self) -> Result<(), StorageError> {
        if self.flaw == Flaw::LetsGoLate {
            let locked = Arc::clone(&self.locked);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                locked.store(false, Ordering::Release);
            });
        }
        // Without the sync that a close is.
        if self.flaw == Flaw::ForgetsBuffered { Ok(()) } else { self.inner.close().await }
    }
}

fn on(flaw: Flaw) -> impl Builder<Place = Disk> {
    let locked = Arc::new(AtomicBool::new(false));
    On(move |disk: Disk| {
        let opened = Wrong::open(&disk, flaw, &locked);
        std::future::ready(opened.map(|wrong| Arc::new(wrong) as Arc<dyn Storage>))
    })
}

// The time is paused, so that a hang is found out at once.
#[tokio::test(start_paused = true)]
async fn a_wrong_backend_is_found_out_by_every_case_and_the_message_says_by_what() {
    for case in CASES {
        let flaws: Vec<Flaw> =
            FOUND.iter().filter(|(_, name)| *name == case.name).map(|(flaw, _)| *flaw).collect();
        assert!(!flaws.is_empty(), "nothing shows that {} can fail", case.name);
        for flaw in flaws {
            let builder = on(flaw);
            // A random case may miss a flaw, but not time and again.
            let tries = if case.name.starts_with("random") { 20 } else { 1 };
            let mut outcome = run(&builder, case).await;
            for _ in 1..tries {
                if outcome.result.is_ok() {
                    outcome = run(&builder, case).await;
                }
            }
            let failure = outcome.result.expect_err(&format!("{flaw:?} is found out by {}", case.name));
            assert_eq!(failure.case, case);
            let text = failure.to_string();
            assert!(text.contains(case.obligation) && text.contains(&failure.broken), "{text}");
            assert!(!failure.operations.is_empty(), "the operations before are told: {text}");
        }
    }
    let unknown = FOUND.iter().find(|(_, name)| case(name).is_none());
    assert!(unknown.is_none(), "there is no such case: {unknown:?}");
}

#[tokio::test]
async fn a_call_that_blocks_ends_the_run_under_the_name_of_its_case() {
    const TEST: &str =
        "storage::conformance::tests::wrong::a_call_that_blocks_ends_the_run_under_the_name_of_its_case";
    const BLOCKED: &str = "ENJAMBRE_TEST_BLOCKED";
    if let Ok(name) = std::env::var(BLOCKED) {
        // Where the watchdog sleeps, this process ends all the same.
        std::thread::spawn(|| {
            std::thread::sleep(PATIENCE);
            std::process::exit(3)
        });
        let case = case(&name).expect("a case");
        let standstill = Duration::from_millis(100);
        guard(&on(Flaw::Blocks), case, standstill, async |bench| body(case, bench).await).await;
        return;
    }
    // The call is polled by the case itself, and by tasks of their own.
    for name in ["conditions_decide", "one_of_many_writers_wins"] {
        let mut command = Command::new(std::env::current_exe().expect("the test binary"));
        command.args([TEST, "--exact", "--nocapture"]).env(BLOCKED, name);
        let output = command.output().expect("the test binary is started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(101), "{text}");
        for part in [name, "blocks the thread", "commit ", "-> no answer yet"] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }
}
