//! The kit on the reference, on the adapter and through the fault layer; and backends that are wrong on purpose,
//! which the kit must find out.

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::storage::embedded::fake::FakeDisk;
use crate::storage::embedded::{Embedded, EmbeddedSettings};
use crate::storage::fault::FaultyStorage;
use crate::storage::memory::Disk;
use crate::storage::value::{Batch, Durability, Key, KeyRange, Limits, Space, Write};

/// A builder on a shared disk in memory.
struct On<F>(F);

impl<F, Fut> Builder for On<F>
where
    F: Fn(Disk) -> Fut + Sync,
    Fut: Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send,
{
    type Place = Disk;

    fn place(&self) -> Disk {
        Disk::new()
    }

    async fn open(&self, place: &Disk) -> Result<Arc<dyn Storage>, StorageError> {
        (self.0)(place.clone()).await
    }
}

#[tokio::test]
async fn memory_keeps_its_obligations() {
    run_all(&On(async |disk: Disk| Ok(Arc::new(disk.open()) as Arc<dyn Storage>))).await;
}

#[tokio::test]
async fn the_fault_layer_without_faults_keeps_its_obligations() {
    run_all(&On(async |disk: Disk| {
        Ok(Arc::new(FaultyStorage::new(Arc::new(disk.open()), 0)) as Arc<dyn Storage>)
    }))
    .await;
}

#[derive(Default)]
struct OnFake;

impl Builder for OnFake {
    type Place = FakeDisk;

    fn place(&self) -> FakeDisk {
        FakeDisk::default()
    }

    async fn open(&self, place: &FakeDisk) -> Result<Arc<dyn Storage>, StorageError> {
        let place = place.clone();
        Ok(Arc::new(Embedded::open(EmbeddedSettings::default(), move || place.open()).await?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapter_keeps_its_obligations() {
    run_all(&OnFake).await;
}

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    /// Conditions are checked, then others may commit, then the writes are applied.
    ChecksTooEarly,
    /// A batch is applied write by write.
    TearsBatches,
    /// A refused batch is applied up to its second write.
    AppliesRefused,
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
    /// A page has one entry too many.
    LongPages,
    /// An end that is included is left out.
    ExcludesEnds,
    /// Says nothing about a value that is too large.
    NoLimits,
    /// The empty value is the same as none.
    EmptyIsAbsent,
}

#[derive(Debug)]
struct Wrong {
    inner: crate::storage::memory::Memory,
    flaw: Flaw,
}

#[async_trait]
impl Storage for Wrong {
    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let space = if self.flaw == Flaw::OneSpace { Space::new("one") } else { space };
        match self.inner.get(space, keys).await {
            Err(StorageError::Closed) if self.flaw == Flaw::NeverCloses => Ok(vec![None; keys.len()]),
            Ok(values) if self.flaw == Flaw::EmptyIsAbsent => {
                Ok(values.into_iter().map(|value| value.filter(|value| !value.is_empty())).collect())
            }
            outcome => outcome,
        }
    }

    async fn scan(
        &self,
        space: Space,
        mut range: KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        let space = if self.flaw == Flaw::OneSpace { Space::new("one") } else { space };
        if self.flaw == Flaw::ExcludesEnds
            && let std::ops::Bound::Included(end) = range.end
        {
            range.end = std::ops::Bound::Excluded(end);
        }
        let limit = limit.saturating_add(usize::from(self.flaw == Flaw::LongPages));
        let mut page = self.inner.scan(space, range, limit).await?;
        if self.flaw == Flaw::SignedOrder {
            page.sort_by_key(|(key, _)| key.as_bytes().iter().map(|byte| *byte as i8).collect::<Vec<_>>());
        }
        Ok(page)
    }

    async fn commit(&self, mut batch: Batch, durability: Durability) -> Result<(), StorageError> {
        match self.flaw {
            Flaw::ChecksTooEarly => {
                let conditions = std::mem::take(&mut batch.conditions);
                self.inner.commit(Batch { conditions, writes: Vec::new() }, durability).await?;
                tokio::task::yield_now().await;
            }
            Flaw::TearsBatches => {
                let writes = std::mem::take(&mut batch.writes);
                self.inner.commit(batch, durability).await?;
                for write in writes {
                    let single = Batch { conditions: Vec::new(), writes: vec![write] };
                    self.inner.commit(single, durability).await?;
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
            Flaw::FirstWriteCounts => batch.writes.reverse(),
            Flaw::OneSpace => {
                for write in &mut batch.writes {
                    match write {
                        Write::Put(space, ..) | Write::Delete(space, _) => *space = Space::new("one"),
                    }
                }
            }
            Flaw::NoLimits => {
                for write in &mut batch.writes {
                    if let Write::Put(_, _, value) = write {
                        value.truncate(self.limits().max_value);
                    }
                }
            }
            _ => {}
        }
        self.inner.commit(batch, durability).await
    }

    async fn sync(&self) -> Result<(), StorageError> {
        self.inner.sync().await
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    async fn close(&self) -> Result<(), StorageError> {
        // Without the sync that a close is.
        if self.flaw == Flaw::ForgetsBuffered { Ok(()) } else { self.inner.close().await }
    }
}

#[tokio::test]
async fn a_wrong_backend_is_found_out_and_the_message_says_by_what() {
    for (flaw, case) in [
        (Flaw::ChecksTooEarly, "one_of_many_writers_wins"),
        (Flaw::ChecksTooEarly, "no_update_is_lost"),
        (Flaw::TearsBatches, "a_page_is_consistent"),
        (Flaw::TearsBatches, "a_dropped_commit_is_whole_or_nothing"),
        (Flaw::AppliesRefused, "a_refused_batch_changes_nothing_in_any_space"),
        (Flaw::AppliesRefused, "conditions_decide"),
        (Flaw::SignedOrder, "keys_are_ordered_by_unsigned_bytes"),
        (Flaw::FirstWriteCounts, "the_last_write_to_a_key_counts"),
        (Flaw::ForgetsBuffered, "what_was_committed_is_there_after_a_reopen"),
        (Flaw::ForgetsBuffered, "a_drop_without_close_loses_nothing"),
        (Flaw::OneSpace, "spaces_are_apart"),
        (Flaw::NeverCloses, "a_closed_storage_says_so"),
        (Flaw::LongPages, "pages_are_cut_by_entries"),
        (Flaw::ExcludesEnds, "ranges_hold_what_their_bounds_say"),
        (Flaw::NoLimits, "what_exceeds_a_limit_is_refused_whole"),
        (Flaw::EmptyIsAbsent, "values_up_to_the_limit_are_kept"),
        (Flaw::EmptyIsAbsent, "random_operations_give_what_the_reference_gives"),
        (Flaw::AppliesRefused, "random_operations_give_what_the_reference_gives"),
        (Flaw::ExcludesEnds, "random_operations_give_what_the_reference_gives"),
    ] {
        let builder = On(move |disk: Disk| async move {
            if flaw == Flaw::ForgetsBuffered {
                disk.power_cut();
            }
            Ok(Arc::new(Wrong { inner: disk.open(), flaw }) as Arc<dyn Storage>)
        });
        let mut outcome = run(&builder, case).await;
        // A random case may miss a flaw, but not time and again.
        for _ in 0..20 {
            if outcome.is_ok() && case.starts_with("random") {
                outcome = run(&builder, case).await;
            }
        }
        let failure = outcome.expect_err(&format!("{flaw:?} is found out by {case}"));
        assert_eq!(failure.case, case);
        assert!(!failure.operations.is_empty(), "the operations before are told: {failure}");
    }
}
