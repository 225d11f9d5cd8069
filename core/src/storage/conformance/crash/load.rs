//! What victims commit, and what has to be there after they were killed.
//!
//! A victim commits numbers from its first one on, several at once: each of its writers has every sixth of them and commits
//! one after the other. Commit `n` of a writer writes the key `n`, overwrites the key of its commit before, and deletes
//! some of the keys before that. So what is there after a kill says up to which commit each writer came; there may be one
//! commit more than was acknowledged, which was under way.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::storage::conformance::Builder;
use crate::storage::conformance::bench::{Bench, Broken, ensure};
use crate::storage::value::{Batch, Durability, Key, KeyRange, Space};

/// How many commits are under way at once.
pub(super) const WRITERS: u64 = 6;
/// A victim that nobody kills ends by itself.
pub(super) const MOST: u64 = 50_000;
/// Which of the keys are deleted in the end.
const DELETED: u64 = 4;

/// What the victims of a case do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Of their own for each case, so that cases can share a place. A batch does the same in all of them.
    spaces: &'static [Space],
    pub(super) durability: fn(u64) -> Durability,
    /// Whether what was acknowledged must be there.
    keeps: bool,
}

impl Load {
    pub(super) fn of(name: &str) -> Option<Self> {
        const DURABLE: &[Space] = &[Space::new("durable")];
        const BUFFERED: &[Space] = &[Space::new("buffered")];
        const TORN: &[Space] = &[Space::new("torn_a"), Space::new("torn_b"), Space::new("torn_c")];
        Some(match name {
            "a_kill_loses_nothing_durable" => {
                Self { spaces: DURABLE, durability: |_| Durability::Durable, keeps: true }
            }
            "a_kill_loses_nothing_buffered" => {
                Self { spaces: BUFFERED, durability: |_| Durability::Buffered, keeps: true }
            }
            "a_kill_tears_no_batch" => {
                let durability =
                    |number| if number % 5 == 0 { Durability::Durable } else { Durability::Buffered };
                Self { spaces: TORN, durability, keeps: false }
            }
            _ => return None,
        })
    }

    /// What a victim whose first number is `first` commits as `number`.
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

/// Not those of one writer alone.
fn is_deleted(number: u64) -> bool {
    (number / WRITERS).is_multiple_of(DELETED)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    First,
    Second,
}

/// What one victim acknowledged.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) acknowledged: Vec<u64>,
}

impl Run {
    /// The first number of the next victim, behind everything that may be under way in this one.
    pub(super) fn next(&self) -> u64 {
        let last = self.acknowledged.iter().max().map_or(self.first, |last| last + WRITERS);
        (last / WRITERS + 2) * WRITERS
    }
}

type Entries = BTreeMap<u64, Version>;

/// Whether what is there is what these victims may have left, one after the other.
pub(super) async fn check<B: Builder>(bench: &Bench<'_, B>, load: Load, runs: &[Run]) -> Result<(), Broken> {
    let mut all: Vec<Entries> = Vec::new();
    for space in load.spaces {
        all.push(read(bench, *space).await?);
    }
    let found = &all[0];
    for (space, entries) in load.spaces.iter().zip(&all) {
        let numbers = found.keys().chain(entries.keys());
        let odd = numbers.copied().find(|number| found.get(number) != entries.get(number));
        ensure!(
            odd.is_none(),
            "every batch is there in all of its spaces, but what is there of {} is not the same in {} and {}",
            odd.unwrap_or_default(),
            load.spaces[0].name(),
            space.name()
        );
    }
    let mut lost = Vec::new();
    for run in runs {
        for writer in 0..WRITERS {
            let theirs = |number: &u64| number % WRITERS == writer;
            let found: Entries = found
                .range(run.first..run.next())
                .filter(|(number, _)| theirs(number))
                .map(|(number, version)| (*number, *version))
                .collect();
            let last = found.iter().rfind(|(_, version)| **version == Version::First).map(|(last, _)| *last);
            check_writer(run.first + writer, last, &found)?;
            let is_lost = |number: &u64| theirs(number) && last.is_none_or(|last| *number > last);
            lost.extend(run.acknowledged.iter().copied().filter(is_lost));
        }
    }
    if load.keeps {
        let acknowledged: usize = runs.iter().map(|run| run.acknowledged.len()).sum();
        ensure!(
            lost.is_empty(),
            "what was acknowledged is there, but of {acknowledged} commits {} are lost, the first {:?}",
            lost.len(),
            lost.iter().min()
        );
    }
    Ok(())
}

/// Whether the entries of a writer are what its commits leave behind from its first to its last one.
fn check_writer(first: u64, last: Option<u64>, found: &Entries) -> Result<(), Broken> {
    let mut expected = Entries::new();
    for number in (first..=last.unwrap_or_default()).step_by(WRITERS as usize).filter(|_| last.is_some()) {
        let left = last.map_or(0, |last| (last - number) / WRITERS);
        match left {
            0 => expected.insert(number, Version::First),
            2.. if is_deleted(number) => None,
            _ => expected.insert(number, Version::Second),
        };
    }
    let numbers = expected.keys().chain(found.keys());
    let odd = numbers.copied().find(|number| expected.get(number) != found.get(number));
    let say = |entries: &Entries, number| match entries.get(&number) {
        None => "not there",
        Some(Version::First) => "as it was written first",
        Some(Version::Second) => "overwritten",
    };
    match odd {
        None => Ok(()),
        Some(number) => Err(Broken(format!(
            "a batch is there whole or not at all, with all that it wrote, overwrote and deleted, but where {last:?} is \
             the last one of its writer the key {number} is {}, and not {}",
            say(found, number),
            say(&expected, number)
        ))),
    }
}

async fn read<B: Builder>(bench: &Bench<'_, B>, space: Space) -> Result<Entries, Broken> {
    let probe = &bench.probe;
    let largest = probe.limits().max_value;
    let mut entries = Entries::new();
    for (key, found) in probe.entries(space, KeyRange::all(), 100).await? {
        let number = key.as_bytes().try_into().map(u64::from_be_bytes);
        let number = number.map_err(|_| Broken(format!("nobody wrote the key {key:?}")))?;
        let versions = [Version::First, Version::Second];
        let version = versions.into_iter().find(|version| value(number, *version, largest) == found);
        let Some(version) = version else {
            return Err(Broken(format!("the value of {number} is one that was written, but it is another")));
        };
        entries.insert(number, version);
    }
    Ok(entries)
}

fn key(number: u64) -> Key {
    Key::new(number.to_be_bytes().to_vec()).expect("8 bytes")
}

/// Small and large ones, so that commits take different ways through the engine.
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
