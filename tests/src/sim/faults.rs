//! Random faults of networks and disks.

use std::time::Duration;

use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};
use enjambre_testkit::transport::fault::Faults;
use rand::RngExt;
use rand::rngs::StdRng;

const EVERY_OPERATION: [Operation; 4] = [Operation::Get, Operation::Scan, Operation::Commit, Operation::Sync];

/// Draws faults for the outgoing connections of a node.
pub fn network(random: &mut StdRng) -> Faults {
    let mut draw = |max: f64| if random.random_bool(0.5) { random.random_range(0.0..max) } else { 0.0 };
    let time = |seconds: f64| Duration::from_secs_f64(seconds);
    Faults {
        delay: time(draw(0.2)),
        jitter: time(draw(1.0)),
        drop_request: draw(0.15),
        drop_reply: draw(0.15),
        cut: draw(0.1),
        reorder: draw(0.3),
        hold: time(draw(5.0)),
        duplicate: draw(0.2),
    }
}

/// The faults of a disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DiskFaults {
    /// No faults.
    None,
    /// Commits fail because the disk is full.
    Full,
    /// Operations fail with this probability, in various ways.
    Some(f64),
    /// As `Some`, and all syncs fail.
    NoSync(f64),
}

impl DiskFaults {
    /// Draws random faults.
    pub fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0..4 => Self::None,
            4..6 => Self::Full,
            6..9 => Self::Some(random.random_range(0.01..0.3)),
            _ => Self::NoSync(random.random_range(0.0..0.1)),
        }
    }

    /// Replaces the faults of a storage by these.
    pub fn apply(self, storage: &FaultyStorage) {
        storage.clear();
        let (probability, no_sync) = match self {
            Self::None => return,
            Self::Full => {
                storage.add(Operation::Commit, When::Always, Fault::Full);
                return;
            }
            Self::Some(probability) => (probability, false),
            Self::NoSync(probability) => (probability, true),
        };
        if no_sync {
            storage.add(Operation::Sync, When::Always, Fault::Fail);
        }
        let each = When::Chance(probability / 5.0);
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

/// Makes all later operations fail, so that tasks of a killed process no longer reach the disk.
pub fn disconnect(storage: &FaultyStorage) {
    storage.clear();
    for operation in EVERY_OPERATION {
        storage.add(operation, When::Always, Fault::Fail);
    }
}
