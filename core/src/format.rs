//! The format of what lies in a database: noted under one key, checked at open, and brought forward step by step.
//!
//! A [`Step`] leads from one format to the next, batch by batch. Each batch has the condition that the [`Mark`] still is
//! what it was when the batch was made, and writes the next mark, in which the step notes how far it is. So the batches
//! of a migration are one after the other, whoever makes them: it can end at any point and go on from there, and of
//! several programs that migrate one database at once none undoes or repeats what another one did.
//!
//! While a step is under way the mark is none that a program would take for a database of either format.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::storage::Storage;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, Key, Space};

/// How often in a row a batch may come to nothing while nobody else gets on either.
const ATTEMPTS: usize = 100;
/// How often the log is told how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What a database says of its format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The format, or while a step is under way the one that it leads away from.
    pub format: u64,
    /// How far the step from this format is; none where none is under way.
    pub note: Option<Bytes>,
}

/// What a step does next.
#[derive(Debug)]
pub struct Move {
    /// What is written.
    pub batch: Batch,
    /// How far the step is after it; none where it is done.
    pub note: Option<Bytes>,
    /// How many entries the batch brings forward.
    pub entries: u64,
}

/// Leads from one format to the next.
#[async_trait]
pub trait Step: Send + Sync {
    /// What comes after the batch that noted `note`; of the first one it is empty. Depends on nothing but the note and
    /// what is in the storage.
    async fn next(&self, storage: &dyn Storage, note: &[u8]) -> Result<Move, StorageError>;
}

/// The formats of one kind of database.
#[expect(missing_debug_implementations, reason = "it is made of functions")]
pub struct Format<'a> {
    /// What is in the database, for the log.
    pub what: &'static str,
    /// Where the mark is.
    pub space: Space,
    /// The key of the mark.
    pub key: Key,
    /// The newest format, the one that this program reads and writes.
    pub newest: u64,
    /// The last one leads to the newest format, and each other one to where the next begins.
    pub steps: &'a [&'a dyn Step],
    /// Reads a mark.
    pub read: fn(&[u8]) -> Result<Mark, StorageError>,
    /// Writes a mark.
    pub write: fn(&Mark) -> Bytes,
}

impl Format<'_> {
    /// The mark of a database and its bytes; none where the database has none.
    pub async fn stored(&self, storage: &dyn Storage) -> Result<Option<(Mark, Bytes)>, StorageError> {
        let stored = storage.get(self.space, std::slice::from_ref(&self.key)).await?;
        let stored = stored.into_iter().next().flatten();
        stored.map(|bytes| Ok(((self.read)(&bytes)?, bytes))).transpose()
    }

    /// The format of a database, where a step away from it is under way as well; none where it has no mark. An error where
    /// it can neither be read nor be brought forward.
    pub async fn of(&self, storage: &dyn Storage) -> Result<Option<u64>, StorageError> {
        let Some((mark, _)) = self.stored(storage).await? else { return Ok(None) };
        self.step(&mark)?;
        Ok(Some(mark.format))
    }

    /// Whether a database with this mark is of the newest format. An error where it can neither be read nor be brought
    /// forward.
    pub fn is_newest(&self, mark: &[u8]) -> Result<bool, StorageError> {
        let mark = (self.read)(mark)?;
        Ok(self.step(&mark)?.is_none())
    }

    /// The step that is next; none where the format is the newest.
    fn step(&self, mark: &Mark) -> Result<Option<&dyn Step>, StorageError> {
        let Some(behind) = self.newest.checked_sub(mark.format) else {
            let path = format!("the database of the {}", self.what).into();
            return Err(StorageError::NewerFormat { path, found: mark.format, supported: self.newest });
        };
        if behind == 0 {
            return match mark.note {
                None => Ok(None),
                // Its step is one that only a newer program knows.
                Some(_) => {
                    let path = format!("the database of the {}", self.what).into();
                    let found = mark.format.saturating_add(1);
                    Err(StorageError::NewerFormat { path, found, supported: self.newest })
                }
            };
        }
        let at = usize::try_from(behind).ok().and_then(|behind| self.steps.len().checked_sub(behind));
        at.map(|at| Some(self.steps[at])).ok_or_else(|| {
            StorageError::corrupt(format!("a {} of format {} was never written", self.what, mark.format))
        })
    }

    /// Brings the database to the newest format. It has a mark.
    pub async fn bring_forward(&self, storage: &dyn Storage) -> Result<(), StorageError> {
        let (mut entries, mut attempts) = (0, 0);
        let (mut told, mut from) = (Instant::now(), None);
        let mut last = None;
        loop {
            let Some((mark, stored)) = self.stored(storage).await? else {
                return Err(StorageError::corrupt(format!("the format of the {} is not noted", self.what)));
            };
            let Some(step) = self.step(&mark)? else {
                if let Some(from) = from {
                    let (what, newest) = (self.what, self.newest);
                    tracing::info!(
                        "the {what} was brought from format {from} to {newest}: {entries} entries"
                    );
                }
                return Ok(());
            };
            if from.is_none() {
                from = Some(mark.format);
                tracing::info!(
                    "the {} is of format {} and is brought to {}; it may be stopped and goes on at the next start",
                    self.what,
                    mark.format,
                    self.newest
                );
            }
            attempts = if last.as_ref() == Some(&stored) { attempts + 1 } else { 0 };
            if attempts == ATTEMPTS {
                let reason = format!("the {} could not be brought to its newest format", self.what);
                return Err(StorageError::Unavailable { reason });
            }
            let Move { mut batch, note, entries: brought } =
                step.next(storage, mark.note.as_deref().unwrap_or_default()).await?;
            let format = mark.format + u64::from(note.is_none());
            batch.require(self.space, self.key.clone(), stored.clone());
            batch.put(self.space, self.key.clone(), (self.write)(&Mark { format, note }));
            match storage.commit(batch, Durability::Durable).await {
                Ok(()) => entries += brought,
                // Whatever happened, the mark says how far it is now.
                Err(StorageError::Conflict | StorageError::Indeterminate { .. }) => {}
                Err(error) => return Err(error),
            }
            last = Some(stored);
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                tracing::info!("the {} is being brought forward: {entries} entries so far", self.what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::fault::{Fault, FaultyStorage, Operation, When};
    use crate::storage::memory::Memory;
    use crate::storage::value::KeyRange;
    use std::sync::Arc;

    const SPACE: Space = Space::new("meta");
    const LOG: Space = Space::new("log");

    /// Writes `letter` 1 to 3, each in a batch of its own.
    struct Letters(u8);

    #[async_trait]
    impl Step for Letters {
        async fn next(&self, _: &dyn Storage, note: &[u8]) -> Result<Move, StorageError> {
            let n = note.first().map_or(1, |n| n + 1);
            let mut batch = Batch::new();
            let key = Key::new(vec![self.0, n])?;
            // A batch that is made twice does not pass unseen.
            batch.require_absent(LOG, key.clone()).put(LOG, key, vec![n]);
            Ok(Move { batch, note: (n < 3).then(|| vec![n].into()), entries: 1 })
        }
    }

    fn format<'a>(steps: &'a [&'a dyn Step]) -> Format<'a> {
        Format {
            what: "log",
            space: SPACE,
            key: Key::new("format").unwrap(),
            newest: 7,
            steps,
            read: |bytes| {
                let (format, note) = bytes.split_first().ok_or_else(|| StorageError::corrupt("mark"))?;
                let note = (!note.is_empty()).then(|| Bytes::copy_from_slice(note));
                Ok(Mark { format: u64::from(*format), note })
            },
            write: |mark| [&[mark.format as u8], mark.note.as_deref().unwrap_or_default()].concat().into(),
        }
    }

    async fn marked(mark: &[u8]) -> Arc<Memory> {
        let memory = Arc::new(Memory::new());
        let mut batch = Batch::new();
        batch.put(SPACE, Key::new("format").unwrap(), mark.to_vec());
        memory.commit(batch, Durability::Buffered).await.unwrap();
        memory
    }

    async fn log(storage: &dyn Storage) -> Vec<Vec<u8>> {
        let entries = storage.scan(LOG, KeyRange::all(), 100).await.unwrap();
        entries.into_iter().map(|(key, _)| key.as_bytes().to_vec()).collect()
    }

    #[tokio::test]
    async fn steps_are_done_in_their_order_from_where_the_database_is() {
        let steps: [&dyn Step; 2] = [&Letters(b'a'), &Letters(b'b')];
        for (mark, expected) in [
            (&[5][..], &["a1", "a2", "a3", "b1", "b2", "b3"][..]),
            (&[5, 2], &["a3", "b1", "b2", "b3"]),
            (&[6], &["b1", "b2", "b3"]),
            (&[7], &[]),
        ] {
            let memory = marked(mark).await;
            assert_eq!(format(&steps).is_newest(mark).unwrap(), mark == [7]);
            assert_eq!(format(&steps).of(&*memory).await.unwrap(), Some(u64::from(mark[0])));
            format(&steps).bring_forward(&*memory).await.unwrap();
            let expected: Vec<_> =
                expected.iter().map(|key| vec![key.as_bytes()[0], key.as_bytes()[1] - b'0']).collect();
            assert_eq!(log(&*memory).await, expected, "{mark:?}");
            format(&steps).bring_forward(&*memory).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_format_that_is_newer_or_never_was_is_refused_and_nothing_is_touched() {
        let steps: [&dyn Step; 2] = [&Letters(b'a'), &Letters(b'b')];
        for mark in [&[8][..], &[7, 1], &[4], &[0], &[]] {
            let memory = marked(mark).await;
            assert!(format(&steps).is_newest(mark).is_err(), "{mark:?}");
            assert!(format(&steps).of(&*memory).await.is_err(), "{mark:?}");
            assert!(format(&steps).bring_forward(&*memory).await.is_err(), "{mark:?}");
            assert!(log(&*memory).await.is_empty());
        }
    }

    #[tokio::test]
    async fn after_any_failure_it_goes_on_where_it_was() {
        for fault in
            [Fault::Fail, Fault::Indeterminate { applied: true }, Fault::Indeterminate { applied: false }]
        {
            for nth in 1..=6 {
                let steps: [&dyn Step; 2] = [&Letters(b'a'), &Letters(b'b')];
                let memory = marked(&[5]).await;
                let faulty = FaultyStorage::new(memory.clone(), 1);
                faulty.add(Operation::Commit, When::Nth(nth), fault);
                let first = format(&steps).bring_forward(&faulty).await;
                assert_eq!(first.is_err(), fault == Fault::Fail);
                format(&steps).bring_forward(&faulty).await.unwrap();
                assert_eq!(log(&*memory).await.len(), 6, "{fault:?} {nth}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_at_once_do_each_batch_once() {
        for seed in 0..20 {
            let memory = marked(&[5]).await;
            let mut tasks = tokio::task::JoinSet::new();
            for task in 0..3 {
                let faulty = FaultyStorage::new(memory.clone(), seed * 3 + task);
                for operation in [Operation::Get, Operation::Commit] {
                    faulty.add(operation, When::Chance(0.5), Fault::Delay(Duration::from_millis(1 + task)));
                }
                tasks.spawn(async move {
                    let steps: [&dyn Step; 2] = [&Letters(b'a'), &Letters(b'b')];
                    format(&steps).bring_forward(&faulty).await
                });
            }
            for outcome in tasks.join_all().await {
                outcome.unwrap();
            }
            assert_eq!(log(&*memory).await.len(), 6, "seed {seed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_in_which_nothing_moves_is_given_up() {
        let memory = marked(&[6]).await;
        let faulty = FaultyStorage::new(memory.clone(), 1);
        faulty.add(Operation::Commit, When::Always, Fault::Indeterminate { applied: false });
        let outcome = format(&[&Letters(b'b')]).bring_forward(&faulty).await;
        assert!(matches!(outcome, Err(StorageError::Unavailable { .. })), "{outcome:?}");
    }
}
