//! Storages that are wrong on purpose: one for each case at least, so that each case is known to be able to fail.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::storage::memory::Memory;
use crate::storage::value::{Batch, Condition, Durability, Key, KeyRange, Limits, MAX_KEY, Space, Write};

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    /// Conditions are checked, then others may commit, then the writes are applied.
    ChecksTooEarly,
    /// A batch is applied write by write.
    TearsBatches,
    /// A refused batch is applied up to its second write.
    AppliesRefused,
    /// Conditions see the writes of their own batch.
    ChecksTooLate,
    /// A batch without writes is taken for nothing at all.
    SkipsEmptyBatches,
    /// After a conflict the next commit fails as well.
    ConflictsSpread,
    /// Acknowledges a commit before it is applied.
    AcknowledgesEarly,
    /// Keys are ordered as signed bytes.
    SignedOrder,
    /// The first write to a key counts.
    FirstWriteCounts,
    /// `Buffered` is lost without a sync.
    ForgetsBuffered,
    /// Every space is the same.
    OneSpace,
    /// Works on after the close.
    NeverCloses,
    /// A commit that meets the close never ends.
    HangsAtClose,
    /// Says that a commit after the close went well.
    AcknowledgesAfterClose,
    /// A page has one entry too many.
    LongPages,
    /// A page has any number of bytes.
    HeavyPages,
    /// An end that is included is left out.
    ExcludesEnds,
    /// Panics where an end is before a start, as some engines do.
    PanicsOnInverted,
    /// Says nothing about a value that is too large.
    NoLimits,
    /// Of a batch with a value that is too large the others are applied. Its batches have no bound that is tried.
    AppliesTooLarge,
    /// Takes batches of any size, beyond the limit that it tells.
    NoBatchLimit,
    /// A batch is applied 128 writes at a time.
    SplitsBatches,
    /// An answer has 1 MiB at most, and no values beyond.
    CutsAnswers,
    /// Lets go of the lock some time after the close.
    LetsGoLate,
    /// Holds less than a backend must.
    Narrow,
    /// The empty value is the same as none.
    EmptyIsAbsent,
    /// What is absent has an empty value.
    AbsentIsEmpty,
    /// Answers in the order of the keys, not in the one asked for.
    SortsAnswers,
    /// Keys are cut.
    ShortKeys,
}

/// Which case finds out which flaw.
const FOUND: &[(Flaw, &str)] = &[
    (Flaw::Narrow, "limits_are_wide_enough"),
    (Flaw::AbsentIsEmpty, "absent_keys_have_no_value"),
    (Flaw::SortsAnswers, "values_come_in_the_order_asked_for"),
    (Flaw::ShortKeys, "keys_of_any_bytes_and_length_are_kept"),
    (Flaw::EmptyIsAbsent, "values_up_to_the_limit_are_kept"),
    (Flaw::NoLimits, "what_exceeds_a_limit_is_refused_whole"),
    (Flaw::AppliesTooLarge, "what_exceeds_a_limit_is_refused_whole"),
    (Flaw::NoBatchLimit, "what_exceeds_a_limit_is_refused_whole"),
    (Flaw::CutsAnswers, "a_get_of_many_large_values_has_all_of_them"),
    (Flaw::SplitsBatches, "a_batch_of_thousands_of_writes_is_one_step"),
    (Flaw::LetsGoLate, "a_close_lets_go_of_everything"),
    (Flaw::OneSpace, "spaces_are_apart"),
    (Flaw::SignedOrder, "keys_are_ordered_by_unsigned_bytes"),
    (Flaw::LongPages, "pages_are_cut_by_entries"),
    (Flaw::HeavyPages, "pages_are_cut_by_bytes"),
    (Flaw::ExcludesEnds, "ranges_hold_what_their_bounds_say"),
    (Flaw::PanicsOnInverted, "ranges_hold_what_their_bounds_say"),
    (Flaw::PanicsOnInverted, "inverted_ranges_are_empty"),
    (Flaw::SkipsEmptyBatches, "an_empty_batch_is_applied"),
    (Flaw::AppliesRefused, "conditions_decide"),
    (Flaw::EmptyIsAbsent, "conditions_decide"),
    (Flaw::AppliesRefused, "a_refused_batch_changes_nothing_in_any_space"),
    (Flaw::ChecksTooLate, "conditions_see_the_state_before_the_batch"),
    (Flaw::FirstWriteCounts, "the_last_write_to_a_key_counts"),
    (Flaw::ChecksTooEarly, "one_of_many_writers_wins"),
    (Flaw::ChecksTooEarly, "no_update_is_lost"),
    (Flaw::ConflictsSpread, "a_conflict_fails_alone"),
    (Flaw::AcknowledgesEarly, "a_read_sees_what_was_acknowledged"),
    (Flaw::TearsBatches, "a_page_is_consistent"),
    (Flaw::TearsBatches, "a_dropped_commit_is_whole_or_nothing"),
    (Flaw::HangsAtClose, "a_close_leaves_nobody_waiting"),
    (Flaw::AcknowledgesAfterClose, "a_close_leaves_nobody_waiting"),
    (Flaw::ForgetsBuffered, "what_was_committed_is_there_after_a_reopen"),
    (Flaw::ForgetsBuffered, "a_drop_without_close_loses_nothing"),
    (Flaw::NeverCloses, "a_closed_storage_says_so"),
    (Flaw::AcknowledgesAfterClose, "a_closed_storage_says_so"),
    (Flaw::EmptyIsAbsent, "random_operations_give_what_the_reference_gives"),
    (Flaw::AppliesRefused, "random_operations_give_what_the_reference_gives"),
    (Flaw::ExcludesEnds, "random_operations_give_what_the_reference_gives"),
];

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

// The time is paused, so that a hang is found out at once.
#[tokio::test(start_paused = true)]
async fn a_wrong_backend_is_found_out_by_every_case_and_the_message_says_by_what() {
    for case in CASES {
        let flaws: Vec<Flaw> =
            FOUND.iter().filter(|(_, name)| *name == case.name).map(|(flaw, _)| *flaw).collect();
        assert!(!flaws.is_empty(), "nothing shows that {} can fail", case.name);
        for flaw in flaws {
            let locked = Arc::new(AtomicBool::new(false));
            let builder = On(move |disk: Disk| {
                let opened = Wrong::open(&disk, flaw, &locked);
                std::future::ready(opened.map(|wrong| Arc::new(wrong) as Arc<dyn Storage>))
            });
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
