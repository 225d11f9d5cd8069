//! How bad things are: what the faults of a network and of a disk are drawn from.

use std::time::Duration;

use enjambre_core::storage::fault::{Fault, FaultyStorage, Operation, When};
use enjambre_core::transport::fault::Faults;
use rand::RngExt;
use rand::rngs::StdRng;

const EVERY_OPERATION: [Operation; 4] = [Operation::Get, Operation::Scan, Operation::Commit, Operation::Sync];

/// The weather on one node's way to the others.
pub fn network(random: &mut StdRng) -> Faults {
    let mut some = |most: f64| if random.random_bool(0.5) { random.random_range(0.0..most) } else { 0.0 };
    let time = |seconds: f64| Duration::from_secs_f64(seconds);
    Faults {
        delay: time(some(0.2)),
        jitter: time(some(1.0)),
        drop_request: some(0.15),
        drop_reply: some(0.15),
        cut: some(0.1),
        reorder: some(0.3),
        hold: time(some(5.0)),
        duplicate: some(0.2),
    }
}

/// What a disk does from now on instead of working.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DiskFaults {
    /// It works.
    None,
    /// It has no room.
    Full,
    /// Each operation fails with this chance, in one way or the other.
    Some(f64),
    /// As the last, and syncs fail all the time.
    NoSync(f64),
}

impl DiskFaults {
    /// Draws one.
    pub fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0..4 => Self::None,
            4..6 => Self::Full,
            6..9 => Self::Some(random.random_range(0.01..0.3)),
            _ => Self::NoSync(random.random_range(0.0..0.1)),
        }
    }

    /// Has a storage behave so, and no longer as it did.
    pub fn apply(self, storage: &FaultyStorage) {
        storage.clear();
        let (chance, no_sync) = match self {
            Self::None => return,
            Self::Full => {
                storage.add(Operation::Commit, When::Always, Fault::Full);
                return;
            }
            Self::Some(chance) => (chance, false),
            Self::NoSync(chance) => (chance, true),
        };
        if no_sync {
            storage.add(Operation::Sync, When::Always, Fault::Fail);
        }
        let each = When::Chance(chance / 5.0);
        for fault in [
            Fault::Full,
            Fault::Indeterminate { applied: true },
            Fault::Indeterminate { applied: false },
            Fault::Delay(Duration::from_millis(700)),
        ] {
            storage.add(Operation::Commit, each, fault);
        }
        for operation in EVERY_OPERATION {
            storage.add(operation, each, Fault::Fail);
            storage.add(operation, each, Fault::Unavailable);
            storage.add(operation, each, Fault::Delay(Duration::from_millis(150)));
        }
    }
}

/// Nothing that runs on after the end of its process reaches the disk any more.
pub fn cut_off(storage: &FaultyStorage) {
    storage.clear();
    for operation in EVERY_OPERATION {
        storage.add(operation, When::Always, Fault::Fail);
    }
}
