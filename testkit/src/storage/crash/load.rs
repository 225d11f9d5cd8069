//! The commits of victims, and the check of the data after they are killed.
//!
//! A victim commits increasing numbers from its first one on. Each of its concurrent writers commits every sixth number in
//! sequence. Commit `n` writes the key `n`, overwrites the key of the previous commit of the writer, and deletes some of the
//! keys before. So the data shows the last commit of each writer. It may be one more than acknowledged, which was in
//! progress.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::storage::bench::{Bench, Violation, ensure};
use crate::storage::builder::Builder;
use enjambre_core::{Batch, Durability, Key, KeyRange, Space};

/// The number of concurrent writers.
pub(super) const WRITERS: u64 = 6;
/// The maximum number of commits of a victim.
pub(super) const MAX_COMMITS: u64 = 50_000;
/// Every n-th key of a writer is deleted.
const DELETED_EVERY: u64 = 4;

/// The load of the victims of a case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Different for each case, so that cases can share a place. A batch writes the same to all of them.
    spaces: &'static [Space],
    pub(super) durability: fn(u64) -> Durability,
    /// Whether acknowledged commits must survive.
    survives: bool,
}

impl Load {
    pub(super) fn of(name: &str) -> Option<Self> {
        const DURABLE: &[Space] = &[Space::new("durable")];
        const BUFFERED: &[Space] = &[Space::new("buffered")];
        const TORN: &[Space] = &[Space::new("torn_a"), Space::new("torn_b"), Space::new("torn_c")];
        Some(match name {
            "durable_commits_survive_kill" => {
                Self { spaces: DURABLE, durability: |_| Durability::Durable, survives: true }
            }
            "buffered_commits_survive_kill" => {
                Self { spaces: BUFFERED, durability: |_| Durability::Buffered, survives: true }
            }
            "batches_are_atomic_after_kill" => {
                let durability =
                    |number| if number % 5 == 0 { Durability::Durable } else { Durability::Buffered };
                Self { spaces: TORN, durability, survives: false }
            }
            _ => return None,
        })
    }

    /// Returns the batch with this number of a victim whose first number is `first`.
    pub(super) fn batch(&self, first: u64, number: u64, largest: usize) -> Batch {
        let mut batch = Batch::new();
        for space in self.spaces {
            batch.put(*space, key(number), value(number, Version::First, largest));
            let before = |commits| number.checked_sub(commits * WRITERS).filter(|before| *before >= first);
            if let Some(before) = before(1) {
                batch.put(*space, key(before), value(before, Version::Second, largest));
            }
            if let Some(before) = before(2).filter(|before| is_deleted(*before)) {
                batch.delete(*space, key(before));
            }
        }
        batch
    }
}

/// Returns whether the key is deleted. Each writer has such keys.
fn is_deleted(number: u64) -> bool {
    (number / WRITERS).is_multiple_of(DELETED_EVERY)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    First,
    Second,
}

/// The acknowledged commits of a victim.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) acknowledged: Vec<u64>,
}

impl Run {
    /// The first number of the next victim, after all numbers that may be in progress in this one.
    pub(super) fn next(&self) -> u64 {
        let last = self.acknowledged.iter().max().map_or(self.first, |last| last + WRITERS);
        (last / WRITERS + 2) * WRITERS
    }
}

type Entries = BTreeMap<u64, Version>;

/// Checks that the data is a possible result of these victims in sequence.
pub(super) async fn check<B: Builder>(
    bench: &Bench<'_, B>,
    load: Load,
    runs: &[Run],
) -> Result<(), Violation> {
    let mut all = read_all(bench, load).await?;
    // A server may still apply the last commit of a killed client between two reads. Two equal results contain no change.
    loop {
        let again = read_all(bench, load).await?;
        if again == all {
            break;
        }
        all = again;
    }
    let found = &all[0];
    for (space, entries) in load.spaces.iter().zip(&all) {
        let numbers = found.keys().chain(entries.keys());
        let wrong = numbers.copied().find(|number| found.get(number) != entries.get(number));
        ensure!(
            wrong.is_none(),
            "the batch {} is not the same in the spaces {} and {}",
            wrong.unwrap_or_default(),
            load.spaces[0].name(),
            space.name()
        );
    }
    let mut lost = Vec::new();
    for run in runs {
        for writer in 0..WRITERS {
            let is_own = |number: &u64| number % WRITERS == writer;
            let found: Entries = found
                .range(run.first..run.next())
                .filter(|(number, _)| is_own(number))
                .map(|(number, version)| (*number, *version))
                .collect();
            let last = found.iter().rfind(|(_, version)| **version == Version::First).map(|(last, _)| *last);
            check_writer(run.first + writer, last, &found)?;
            let is_lost = |number: &u64| is_own(number) && last.is_none_or(|last| *number > last);
            lost.extend(run.acknowledged.iter().copied().filter(is_lost));
        }
    }
    if load.survives {
        let acknowledged: usize = runs.iter().map(|run| run.acknowledged.len()).sum();
        ensure!(
            lost.is_empty(),
            "of {acknowledged} acknowledged commits {} are lost, the first is {:?}",
            lost.len(),
            lost.iter().min()
        );
    }
    Ok(())
}

/// Checks that the entries of a writer are the result of its commits from the first to the last one.
fn check_writer(first: u64, last: Option<u64>, found: &Entries) -> Result<(), Violation> {
    let mut expected = Entries::new();
    for number in (first..=last.unwrap_or_default()).step_by(WRITERS as usize).filter(|_| last.is_some()) {
        let later = last.map_or(0, |last| (last - number) / WRITERS);
        match later {
            0 => expected.insert(number, Version::First),
            2.. if is_deleted(number) => None,
            _ => expected.insert(number, Version::Second),
        };
    }
    let numbers = expected.keys().chain(found.keys());
    let wrong = numbers.copied().find(|number| expected.get(number) != found.get(number));
    let describe = |entries: &Entries, number| match entries.get(&number) {
        None => "absent",
        Some(Version::First) => "written",
        Some(Version::Second) => "overwritten",
    };
    match wrong {
        None => Ok(()),
        Some(number) => Err(Violation(format!(
            "a batch is applied partially: the last commit of the writer is {last:?}, but the key {number} is {} instead \
             of {}",
            describe(found, number),
            describe(&expected, number)
        ))),
    }
}

async fn read_all<B: Builder>(bench: &Bench<'_, B>, load: Load) -> Result<Vec<Entries>, Violation> {
    let mut all = Vec::new();
    for space in load.spaces {
        all.push(read(bench, *space).await?);
    }
    Ok(all)
}

async fn read<B: Builder>(bench: &Bench<'_, B>, space: Space) -> Result<Entries, Violation> {
    let probe = &bench.probe;
    let largest = probe.limits().max_value;
    let mut entries = Entries::new();
    for (key, found) in probe.entries(space, KeyRange::all(), 100).await? {
        let number = key.as_bytes().try_into().map(u64::from_be_bytes);
        let number = number.map_err(|_| Violation(format!("unknown key {key:?}")))?;
        let versions = [Version::First, Version::Second];
        let version = versions.into_iter().find(|version| value(number, *version, largest) == found);
        let Some(version) = version else {
            return Err(Violation(format!("the value of the key {number} was never written")));
        };
        entries.insert(number, version);
    }
    Ok(entries)
}

fn key(number: u64) -> Key {
    Key::new(number.to_be_bytes().to_vec()).expect("8 bytes")
}

/// Returns a small or large value, so that commits use different code paths of the engine.
fn value(number: u64, version: Version, largest: usize) -> Bytes {
    let seed = match version {
        Version::First => number,
        Version::Second => number + (1 << 32),
    };
    let len = match seed % 7 {
        0 => 60 * 1024,
        1 => 0,
        _ => 40 + (seed % 500) as usize,
    };
    let mut value = (seed.wrapping_mul(31) + 7).to_be_bytes().repeat(len.div_ceil(8));
    value.truncate(len.min(largest));
    value.into()
}
